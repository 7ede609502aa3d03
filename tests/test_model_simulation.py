"""Federated training in TFF, in the one process of the tests that loads it, on a worker of our own."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from device_runtime.errors import CheckpointError, ConfigError
from device_runtime.interpreter import Graph
from model import network
from model.recipe import ALGORITHMS, Client, Recipe, Schedule, Server

CONSTANT = Schedule("constant")


@pytest.fixture(scope="module")
def recipe(tiny_plan):
    """Plain federated averaging of two clients."""
    plan = replace(tiny_plan, learning_rate=0.2, batch_size=4)
    return Recipe(
        "tiny", vocabulary=40, rounds=1, cohort=2, plan=plan, client=Client(schedule=CONSTANT), server=Server("fedavg", 1.0, schedule=CONSTANT)
    )


@pytest.fixture(scope="module")
def simulation():
    """The module, on a running worker."""
    from model import simulation, worker

    with worker.running(2) as running:
        simulation.worker_process = running.process
        yield simulation
    assert running.process.poll() is not None


def same(left, right) -> bool:
    """Equal to the bit."""
    return all((left[name] == right[name]).all() for name in left)


def test_one_round_of_fedavg_is_the_mean_of_what_devices_would_compute(simulation, recipe, tiny_bundle, tiny_checkpoint, tiny_rows):
    """Two clients of one batch each, so that their order does not matter: TFF against train.tflite."""
    weights, population = tiny_checkpoint.weights, [tiny_rows[:4], tiny_rows[10:13]]
    (done,) = simulation.train(weights, population, recipe)
    graph, sums, losses = Graph(tiny_bundle.train_graph), {name: 0.0 for name in weights}, []
    for rows in population:
        batch = np.zeros((4, rows.shape[1]), np.int32)
        batch[: len(rows)] = rows
        result = graph.run("train", rows=batch, learning_rate=np.float32(0.2), **weights)
        losses.append((float(result["loss"]), float(result["targets"])))
        sums = {name: sums[name] + len(rows) * result[name] for name in weights}
    for name in weights:
        np.testing.assert_allclose(done.weights[name], sums[name] / 7, atol=1e-5)
    assert done.loss == pytest.approx(sum(loss * count for loss, count in losses) / sum(count for _, count in losses), abs=1e-5)
    assert done.targets == sum(count for _, count in losses)


def test_the_loss_tff_reports_is_the_loss_evaluation_computes(simulation, recipe, tiny_checkpoint, tiny_rows):
    rows = tiny_rows[:4]
    (done,) = simulation.train(tiny_checkpoint.weights, [rows, rows], recipe)
    assert done.loss == pytest.approx(network.mean_loss(tiny_checkpoint.weights, rows), abs=1e-5)


def test_training_lowers_the_loss_and_a_seed_repeats_it(simulation, recipe, tiny_checkpoint, tiny_rows):
    population = [tiny_rows[i : i + 12] for i in range(0, 120, 12)]
    longer = replace(recipe, rounds=8, cohort=4, server=Server("fedadam", 0.02))
    first, second = (list(simulation.train(tiny_checkpoint.weights, population, longer)) for _ in range(2))
    assert first[-1].loss < first[0].loss - 0.2
    assert same(first[-1].weights, second[-1].weights)


RATES = {"fedavg": 1.0, "fedavgm": 0.5, "fedprox": 1.0, "fedadagrad": 0.3}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_lowers_the_loss(simulation, recipe, tiny_checkpoint, tiny_rows, algorithm):
    population = [tiny_rows[i : i + 12] for i in range(0, 120, 12)]
    server = Server(algorithm, RATES.get(algorithm, 0.02), schedule=CONSTANT)
    client = Client(proximal=0.1 if algorithm == "fedprox" else 0.0, momentum=0.5 if algorithm == "fedavg" else 0.0, schedule=CONSTANT)
    longer = replace(recipe, rounds=6, cohort=4, server=server, client=client, plan=replace(recipe.plan, learning_rate=2.0))
    rounds = list(simulation.train(tiny_checkpoint.weights, population, longer))
    assert rounds[-1].loss < rounds[0].loss - 0.02


def test_a_state_saved_and_loaded_by_tff_goes_on_to_the_same_bits(simulation, recipe, tiny_checkpoint, tiny_rows, tmp_path):
    import asyncio

    import tensorflow_federated as tff

    population = [tiny_rows[i : i + 12] for i in range(0, 120, 12)]
    longer = replace(recipe, rounds=4, cohort=3, server=Server("fedadam", 0.02, averaging=0.5))
    training = simulation.Training(tiny_checkpoint.weights, population, longer)
    two = training.next(training.next(training.start()).state)
    manager = tff.program.FileProgramStateManager(tmp_path)
    asyncio.run(manager.save(simulation.to_values(two.state), 2))
    again = simulation.Training(tiny_checkpoint.weights, population, longer)
    loaded = simulation.from_values(asyncio.run(manager.load(2, simulation.to_values(two.state))), again.start())
    expected, found = training.next(two.state), again.next(loaded)
    assert found.number == 3
    assert found.loss == expected.loss
    assert same(found.weights, expected.weights)
    assert same(again.next(found.state).weights, training.next(expected.state).weights)


def test_weighting_decides_what_a_client_counts_by(simulation, recipe, tiny_checkpoint, tiny_rows):
    """Two clients, one of 4 rows and one of 1: the mean lies 4:1, or in the middle."""
    population = [tiny_rows[:4], tiny_rows[10:11]]
    alone = [next(simulation.train(tiny_checkpoint.weights, [rows, rows], recipe)).weights["projection"] for rows in population]
    for weighting, share in (("rows", 4 / 5), ("uniform", 1 / 2)):
        chosen = replace(recipe, client=Client(weighting=weighting, schedule=CONSTANT))
        (done,) = simulation.train(tiny_checkpoint.weights, population, chosen)
        np.testing.assert_allclose(done.weights["projection"], share * alone[0] + (1 - share) * alone[1], atol=1e-6)


def test_a_client_without_any_row_changes_nothing(simulation, recipe, tiny_checkpoint, tiny_rows):
    (done,) = simulation.train(tiny_checkpoint.weights, [tiny_rows[:4], tiny_rows[:0]], recipe)
    (alone,) = simulation.train(tiny_checkpoint.weights, [tiny_rows[:4]] * 2, recipe)
    for name, array in alone.weights.items():
        np.testing.assert_allclose(done.weights[name], array, atol=1e-6)


def test_a_client_whose_training_diverges_does_not_spoil_the_round(simulation, recipe, tiny_checkpoint, tiny_rows):
    wild = replace(recipe, plan=replace(recipe.plan, learning_rate=1e38))
    (done,) = simulation.train(tiny_checkpoint.weights, [np.tile(tiny_rows[:4], (3, 1))] * 2, wild)
    assert done.dropped == 2
    assert same(done.weights, tiny_checkpoint.weights)


def test_a_run_that_diverges_stops_with_the_round_and_the_norm(simulation, recipe, tiny_checkpoint, tiny_rows):
    wild = replace(recipe, rounds=3, server=Server("fedavg", 1e6, schedule=CONSTANT))
    with pytest.raises(CheckpointError, match=r"round \d: training diverges: the norm of the global weights went from .* to"):
        list(simulation.train(tiny_checkpoint.weights, [tiny_rows[:8]] * 2, wild))


def test_a_population_too_small_for_the_cohort_is_refused(simulation, recipe, tiny_checkpoint, tiny_rows):
    with pytest.raises(ConfigError, match="need 6; the corpus has 2 train users"):
        next(simulation.train(tiny_checkpoint.weights, [tiny_rows[:8]] * 2, replace(recipe, min_separation=3)))


def test_a_worker_that_is_killed_is_started_again_and_the_run_goes_on(simulation, recipe, tiny_checkpoint, tiny_rows):
    rounds = simulation.train(tiny_checkpoint.weights, [tiny_rows[:8]] * 2, replace(recipe, rounds=2))
    next(rounds)
    os.kill(simulation.worker_process.pid, signal.SIGKILL)
    assert next(rounds).number == 2


def test_padding_and_the_fast_step_change_no_weight(tiny_checkpoint, tiny_rows):
    """`packed.train`, which TFF runs, against `training.sgd_step`, which devices run, over batches with short, long and empty rows."""
    import tensorflow as tf

    from model import packed, training
    from model.clients import batches

    weights = {name: tf.constant(array) for name, array in tiny_checkpoint.weights.items()}
    plan = Recipe().plan
    steps = batches(tiny_rows[:21], replace(plan, batch_size=4, epochs=2), Client(), np.random.default_rng(0))
    after, losses, targets = packed.train(weights, tf.constant(steps), tf.constant(0.3))
    plain, total, count = weights, 0.0, 0.0
    for rows in steps:
        plain, loss, found = training.sgd_step(plain, tf.constant(rows), tf.constant(0.3), rows.shape[1] - 1)
        total, count = total + float(loss * found), count + float(found)
    assert float(targets) == count
    assert float(losses) == pytest.approx(total, rel=1e-5)
    assert all(np.abs(after[name] - plain[name]).max() < 2e-5 for name in weights)


def test_gradients_with_dropout_are_those_of_the_network_with_the_same_values_dropped(tiny_checkpoint, tiny_rows):
    """Directional derivative of the loss: a small step along the gradient lowers it by the gradient's squared norm."""
    import tensorflow as tf

    from model import packed

    start = packed.pack({name: tf.constant(array, tf.float32) for name, array in tiny_checkpoint.weights.items()})
    rows, seed = tf.constant(tiny_rows[np.argsort(-(tiny_rows[:6] != 0).sum(axis=1), kind="stable")]), tf.constant([1, 2])
    loss, _, gradients = packed.changes(start, rows, 1.0, 0.3, seed)
    step = 1e-2
    ahead, _, _ = packed.changes({name: start[name] + step * gradients[name] for name in start}, rows, 1.0, 0.3, seed)
    behind, _, _ = packed.changes({name: start[name] - step * gradients[name] for name in start}, rows, 1.0, 0.3, seed)
    squared = sum(float(tf.reduce_sum(gradient**2)) for gradient in gradients.values())
    assert float(ahead - behind) / (2 * step) == pytest.approx(squared, rel=0.02)
    assert float(loss) != pytest.approx(float(packed.changes(start, rows, 1.0)[0]), abs=1e-4)


def test_momentum_and_the_proximal_pull_follow_their_formulas(tiny_checkpoint, tiny_rows):
    """Two equal batches at rate 0.1. Momentum adds half of the first change to the second one, the pull takes back rate x mu of the way gone."""
    import tensorflow as tf

    from model import packed, training

    weights = {name: tf.constant(array) for name, array in tiny_checkpoint.weights.items()}
    rows = tiny_rows[np.argsort(-(tiny_rows[:4] != 0).sum(axis=1), kind="stable")]
    steps, length = tf.constant(np.stack([rows, rows])), rows.shape[1] - 1
    once, _, _ = training.sgd_step(weights, tf.constant(rows), tf.constant(0.1), length)
    twice, _, _ = training.sgd_step(once, tf.constant(rows), tf.constant(0.1), length)
    heavy, _, _ = packed.train(weights, steps, tf.constant(0.1), momentum=0.5)
    pulled, _, _ = packed.train(weights, steps, tf.constant(0.1), proximal=2.0)
    for name in weights:
        np.testing.assert_allclose(heavy[name], twice[name] + 0.5 * (once[name] - weights[name]), atol=1e-6)
        np.testing.assert_allclose(pulled[name], twice[name] - 0.1 * 2.0 * (once[name] - weights[name]), atol=1e-6)
