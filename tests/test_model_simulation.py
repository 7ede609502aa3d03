"""Federated training in TFF, in the one process of the tests that loads it, on a worker of our own."""

import itertools
import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from device_runtime.errors import CheckpointError
from device_runtime.interpreter import Graph
from model import network
from model.recipe import Recipe


@pytest.fixture(scope="module")
def recipe(tiny_plan):
    plan = replace(tiny_plan, learning_rate=0.2, batch_size=4)
    return Recipe("tiny", 40, rounds=1, cohort=2, algorithm="fedavg", server_learning_rate=1.0, schedule="constant", plan=plan)


@pytest.fixture(scope="module")
def simulation():
    """The module, on a running worker."""
    from model import simulation, worker

    with worker.running(2) as running:
        simulation.worker_process = running.process
        yield simulation
    assert running.process.poll() is not None


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
    longer = replace(recipe, rounds=8, algorithm="fedadam", server_learning_rate=0.02, schedule="cosine", cohort=4)
    first, second = (list(simulation.train(tiny_checkpoint.weights, population, longer)) for _ in range(2))
    assert first[-1].loss < first[0].loss - 0.2
    assert all((first[-1].weights[name] == second[-1].weights[name]).all() for name in tiny_checkpoint.weights)


def test_a_client_whose_training_diverges_does_not_spoil_the_round(simulation, recipe, tiny_checkpoint, tiny_rows):
    wild = replace(recipe, plan=replace(recipe.plan, learning_rate=1e38))
    (done,) = simulation.train(tiny_checkpoint.weights, [np.tile(tiny_rows[:4], (3, 1))] * 2, wild)
    assert all((done.weights[name] == before).all() for name, before in tiny_checkpoint.weights.items())


def test_global_weights_that_are_not_finite_stop_the_run(simulation, recipe, tiny_checkpoint, tiny_rows):
    wild = replace(recipe, server_learning_rate=1e38, rounds=3)
    with pytest.raises(CheckpointError, match="not finite any more"):
        list(simulation.train({**tiny_checkpoint.weights}, [tiny_rows[:8]] * 2, replace(wild, plan=replace(wild.plan, learning_rate=100.0))))


def test_a_worker_that_is_killed_is_started_again_and_the_run_goes_on(simulation, recipe, tiny_checkpoint, tiny_rows):
    rounds = simulation.train(tiny_checkpoint.weights, [tiny_rows[:8]] * 2, replace(recipe, rounds=2))
    next(rounds)
    os.kill(simulation.worker_process.pid, signal.SIGKILL)
    assert next(rounds).number == 2


def test_cohorts_are_passes_in_which_nobody_trains_twice(simulation):
    drawn = list(itertools.islice(simulation.cohorts(10, 5, np.random.default_rng(0)), 6))
    for i in range(0, 6, 2):
        assert sorted(drawn[i] + drawn[i + 1]) == list(range(10))
    assert all(len(set(cohort)) == 3 for cohort in itertools.islice(simulation.cohorts(7, 3, np.random.default_rng(1)), 50))


def test_scoring_real_tokens_only_changes_no_gradient(tiny_checkpoint, tiny_rows):
    import tensorflow as tf

    from model import training

    weights = {name: tf.constant(array) for name, array in tiny_checkpoint.weights.items()}
    rows = tf.constant(tiny_rows[:5])
    plain, compact = (training.loss_and_gradients(weights, rows, rows.shape[1] - 1, compact=which) for which in (False, True))
    assert float(plain[0]) == pytest.approx(float(compact[0]), abs=1e-6)
    assert all(np.abs(plain[2][name] - compact[2][name]).max() < 1e-6 for name in weights)
