"""Federated training in TFF, on a worker of our own, in the tests' process that loads it."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from device_runtime import accountant
from device_runtime.accountant import Participation
from device_runtime.errors import CheckpointError, ConfigError
from device_runtime.interpreter import Graph
from device_runtime.text import OOV
from model import network
from model.recipe import ALGORITHMS, Client, Privacy, Recipe, Schedule, Server

CONSTANT = Schedule("constant")


@pytest.fixture(scope="module")
def recipe(tiny_plan):
    """Plain federated averaging of two clients."""
    plan = replace(tiny_plan, learning_rate=0.2, batch_size=4)
    return Recipe(
        "tiny",
        vocabulary=40,
        rounds=1,
        cohort=2,
        plan=plan,
        client=Client(schedule=CONSTANT),
        server=Server("fedavg", 1.0, schedule=CONSTANT),
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


def test_one_round_of_fedavg_is_the_mean_of_what_devices_would_compute(
    simulation, recipe, tiny_bundle, tiny_checkpoint, tiny_rows
):
    """Two clients of one batch each, so that their order does not matter: TFF against
    train.tflite.
    """
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
    assert done.loss == pytest.approx(
        sum(loss * count for loss, count in losses) / sum(count for _, count in losses), abs=1e-5
    )
    assert done.targets == sum(count for _, count in losses)


def test_the_loss_tff_reports_is_the_loss_evaluation_computes(
    simulation, recipe, tiny_checkpoint, tiny_rows
):
    rows = tiny_rows[:4]
    (done,) = simulation.train(tiny_checkpoint.weights, [rows, rows], recipe)
    assert done.loss == pytest.approx(network.mean_loss(tiny_checkpoint.weights, rows), abs=1e-5)


def best_guesses(weights, rows) -> float:
    """The share of targets the network ranks first, by numpy; a word it does not know never is."""
    targets = rows[:, 1:]
    scores = network.log_probs(weights, network.forward(weights, rows[:, :-1])[targets != 0])
    own = targets[targets != 0]
    return float(((scores.argmax(axis=1) == own) & (own != OOV)).mean())


def test_a_round_says_how_loss_and_top_1_lie_over_its_clients(
    simulation, recipe, tiny_checkpoint, tiny_rows
):
    """Three clients of one batch each, so that each is measured by the weights it was given."""
    weights, population = tiny_checkpoint.weights, [tiny_rows[i : i + 4] for i in (0, 20, 50)]
    (done,) = simulation.train(weights, population, replace(recipe, cohort=3))
    losses = [network.mean_loss(weights, rows) for rows in population]
    shares = [best_guesses(weights, rows) for rows in population]
    assert len(set(losses)) == 3
    for name, values in (("loss", losses), ("train_top1", shares)):
        for percent in (10, 50, 90):
            expected = np.percentile(values, percent)
            assert done.spread[f"{name}_p{percent}"] == pytest.approx(expected, abs=1e-5)
    assert done.measured()["train_top1"] == pytest.approx(
        best_guesses(weights, np.concatenate(population)), abs=1e-6
    )


def test_training_lowers_the_loss_and_a_seed_repeats_it(
    simulation, recipe, tiny_checkpoint, tiny_rows
):
    population = [tiny_rows[i : i + 12] for i in range(0, 120, 12)]
    longer = replace(recipe, rounds=8, cohort=4, server=Server("fedadam", 0.02))
    first, second = (
        list(simulation.train(tiny_checkpoint.weights, population, longer)) for _ in range(2)
    )
    assert first[-1].loss < first[0].loss - 0.2
    assert same(first[-1].weights, second[-1].weights)


RATES = {"fedavg": 1.0, "fedavgm": 0.5, "fedprox": 1.0, "fedadagrad": 0.3}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_lowers_the_loss(simulation, recipe, tiny_checkpoint, tiny_rows, algorithm):
    population = [tiny_rows[i : i + 12] for i in range(0, 120, 12)]
    server = Server(algorithm, RATES.get(algorithm, 0.02), schedule=CONSTANT)
    client = Client(
        proximal=0.1 if algorithm == "fedprox" else 0.0,
        momentum=0.5 if algorithm == "fedavg" else 0.0,
        schedule=CONSTANT,
    )
    longer = replace(
        recipe,
        rounds=6,
        cohort=4,
        server=server,
        client=client,
        plan=replace(recipe.plan, learning_rate=2.0),
    )
    rounds = list(simulation.train(tiny_checkpoint.weights, population, longer))
    assert rounds[-1].loss < rounds[0].loss - 0.02


PRIVATE = {
    "privacy": Privacy("tree", 0.1),
    "client": Client(weighting="uniform", schedule=CONSTANT),
}


NOISED = {
    "encoded": True,
    "compression": 2,
    "privacy": Privacy("blt", 0.1, decays=(0.9,), scales=(0.5,)),
    "client": Client(weighting="uniform", schedule=CONSTANT),
}


@pytest.mark.parametrize(
    "how", [{"encoded": True}, PRIVATE, NOISED], ids=["encoded", "private", "noised"]
)
def test_a_state_saved_and_loaded_by_tff_goes_on_to_the_same_bits(
    simulation, recipe, tiny_checkpoint, tiny_rows, tmp_path, how
):
    import asyncio

    import tensorflow_federated as tff

    population = [tiny_rows[i : i + 12] for i in range(0, 120, 12)]
    longer = replace(
        recipe,
        rounds=4,
        cohort=3,
        min_separation=2,
        server=Server("fedadam", 0.02, averaging=0.5),
        **how,
    )
    training = simulation.Training(tiny_checkpoint.weights, population, longer)
    two = training.next(training.next(training.start()).state)
    manager = tff.program.FileProgramStateManager(tmp_path)
    asyncio.run(manager.save(simulation.to_values(two.state), 2))
    again = simulation.Training(tiny_checkpoint.weights, population, longer)
    loaded = simulation.from_values(
        asyncio.run(manager.load(2, simulation.to_values(two.state))), again.start()
    )
    expected, result = training.next(two.state), again.next(loaded)
    assert result.number == 3
    np.testing.assert_array_equal(result.state.sampler.last, expected.state.sampler.last)
    assert result.loss == expected.loss
    assert result.accounted == expected.accounted
    assert same(result.weights, expected.weights)
    assert same(again.next(result.state).weights, training.next(expected.state).weights)


def test_each_round_is_accounted_for_by_who_took_part_and_none_begins_beyond_the_budget(
    simulation, recipe, tiny_checkpoint, tiny_rows
):
    """Of six clients two train a round, so everybody in every third: after seven rounds somebody
    was in three.
    """
    population = [tiny_rows[i : i + 12] for i in range(0, 72, 12)]
    happened = [Participation((n,), 3 if n > 3 else None, -(-n // 3)) for n in range(1, 8)]
    noise = replace(recipe, rounds=7, **PRIVATE).noise
    accounts = [accountant.account(noise, each) for each in happened]
    budget = (accounts[5].epsilon + accounts[6].epsilon) / 2  # between six rounds and seven
    how = {**PRIVATE, "privacy": replace(PRIVATE["privacy"], epsilon=budget)}
    private = replace(recipe, rounds=7, min_separation=3, **how)
    training = simulation.Training(tiny_checkpoint.weights, population, private)
    state = training.start()
    for number in range(6):
        assert training.over_budget(state) is None
        done = training.next(state)
        state = done.state
        assert done.spent == accounts[number]
        assert done.measured()["epsilon"] == accounts[number].epsilon
    assert done.measured()["participations"] == 2
    assert done.measured()["separation"] == 3
    assert training.over_budget(state) == accounts[6]


def test_with_the_limits_of_devices_only_who_typed_enough_trains_and_a_resumed_run_counts_on(
    simulation, recipe, tiny_checkpoint, tiny_rows
):
    population = [tiny_rows[i : i + 60] for i in range(0, 360, 60)]
    population.insert(2, tiny_rows[:9])  # too few messages
    limited = replace(
        recipe,
        rounds=3,
        encoded=True,
        device_limits=True,
        plan=replace(recipe.plan, clipping_norm=1.0, max_rows=60),
    )
    training = simulation.Training(tiny_checkpoint.weights, population, limited)
    assert training.left_out == 1
    states = [training.start()]
    for _ in range(3):
        states.append(training.next(states[-1]).state)
    assert states[-1].sampler.taken.tolist() == [1] * 6  # separation is 2, the cohort 2
    loaded = simulation.from_values(simulation.to_values(states[2]), states[0])
    again = training.next(loaded).state
    assert again.sampler.taken.tolist() == [1] * 6
    assert same(*(training.next(state).weights for state in (states[2], loaded)))


def test_weighting_decides_what_a_client_counts_by(simulation, recipe, tiny_checkpoint, tiny_rows):
    """Two clients, one of 4 rows and one of 1: the mean lies 4:1, in the middle, or as their
    targets do, which a cap may cut.
    """
    tokens = [np.count_nonzero(rows[:, 1:]) for rows in (tiny_rows[:4], tiny_rows[10:11])]
    population = [tiny_rows[:4], tiny_rows[10:11]]
    alone = [
        next(simulation.train(tiny_checkpoint.weights, [rows, rows], recipe)).weights["projection"]
        for rows in population
    ]
    cap = tokens[1] + 2.0
    assert tokens[1] < cap < tokens[0]
    shares = {
        "rows": 4 / 5,
        "uniform": 1 / 2,
        "tokens": tokens[0] / sum(tokens),
        "capped": cap / (cap + tokens[1]),
    }
    for weighting, share in shares.items():
        chosen = replace(
            recipe, client=Client(weighting=weighting, weight_cap=cap, schedule=CONSTANT)
        )
        (done,) = simulation.train(tiny_checkpoint.weights, population, chosen)
        np.testing.assert_allclose(
            done.weights["projection"], share * alone[0] + (1 - share) * alone[1], atol=1e-6
        )


def test_a_client_without_any_row_changes_nothing(simulation, recipe, tiny_checkpoint, tiny_rows):
    (done,) = simulation.train(tiny_checkpoint.weights, [tiny_rows[:4], tiny_rows[:0]], recipe)
    (alone,) = simulation.train(tiny_checkpoint.weights, [tiny_rows[:4]] * 2, recipe)
    for name, array in alone.weights.items():
        np.testing.assert_allclose(done.weights[name], array, atol=1e-6)


def test_a_client_whose_training_diverges_does_not_spoil_the_round(
    simulation, recipe, tiny_checkpoint, tiny_rows
):
    """A rate at which one batch survives and the next one overflows: of two clients only the one of
    a single batch counts.
    """
    wild = replace(recipe, plan=replace(recipe.plan, learning_rate=1e18))
    good, bad = tiny_rows[:4], np.tile(tiny_rows[:4], (5, 1))
    (done,) = simulation.train(
        tiny_checkpoint.weights,
        [good, bad],
        replace(wild, server=Server("fedavg", 1e-18, schedule=CONSTANT)),
    )
    (alone,) = simulation.train(
        tiny_checkpoint.weights,
        [good, good],
        replace(wild, server=Server("fedavg", 1e-18, schedule=CONSTANT)),
    )
    assert (done.clients, done.dropped) == (2, 1)
    assert (alone.clients, alone.dropped) == (2, 0)
    assert done.spread["loss_p10"] == done.spread["loss_p90"] == pytest.approx(done.loss)
    assert done.spread == pytest.approx(alone.spread)
    for name, array in alone.weights.items():
        np.testing.assert_allclose(done.weights[name], array, atol=1e-6)


def test_a_round_in_which_every_client_diverges_stops_the_run(
    simulation, recipe, tiny_checkpoint, tiny_rows
):
    wild = replace(recipe, plan=replace(recipe.plan, learning_rate=1e38))
    with pytest.raises(
        CheckpointError,
        match=r"round 1: training diverges: no client's update is finite, "
        r"from global weights of norm \d",
    ):
        list(simulation.train(tiny_checkpoint.weights, [np.tile(tiny_rows[:4], (3, 1))] * 2, wild))


def test_encoded_updates_are_clipped_and_rounded_before_they_are_averaged(
    simulation, recipe, tiny_checkpoint, tiny_rows
):
    """Clipped to a norm of 0.01, two clients move the weights by no more than that and the
    rounding; 16 bits go as far as no encoding.
    """
    population = [tiny_rows[:4], tiny_rows[10:14]]
    (plain,) = simulation.train(tiny_checkpoint.weights, population, recipe)
    (fine,) = simulation.train(
        tiny_checkpoint.weights,
        population,
        replace(recipe, encoded=True, plan=replace(recipe.plan, bits=16)),
    )
    short = replace(recipe, encoded=True, plan=replace(recipe.plan, clipping_norm=0.01))
    (clipped,) = simulation.train(tiny_checkpoint.weights, population, short)
    assert fine.step == pytest.approx(plain.step, rel=1e-3)
    assert not same(fine.weights, plain.weights)
    assert clipped.step < 0.011 < plain.step
    assert (fine.encoding["clipped"], clipped.encoding["clipped"]) == (0.0, 1.0)
    assert fine.encoding["upload_bytes"] == pytest.approx(
        2 * clipped.encoding["upload_bytes"], rel=0.01
    )
    assert plain.encoding == {}


def test_a_schedule_sets_the_rate_of_its_round(simulation, recipe, tiny_checkpoint, tiny_rows):
    """A warm-up of one round gives half of the rate in the first: on devices and on the server."""
    population, warm = [tiny_rows[:4], tiny_rows[10:14]], Schedule("constant", warm_up=1)
    (whole,) = simulation.train(tiny_checkpoint.weights, population, recipe)
    (half,) = simulation.train(
        tiny_checkpoint.weights, population, replace(recipe, client=Client(schedule=warm))
    )
    (slow,) = simulation.train(
        tiny_checkpoint.weights,
        population,
        replace(recipe, server=Server("fedavg", 1.0, schedule=warm)),
    )
    # one batch each: a step is linear in the rate
    assert half.step == pytest.approx(whole.step / 2, rel=1e-4)
    assert slow.step == pytest.approx(whole.step / 2, rel=1e-4)


def test_server_optimizers_follow_their_formulas():
    """Two steps from 1 down the mean deltas 0.5 and -0.25, at rate 0.1, by the formulas of the
    papers as TFF has them.
    """
    import tensorflow as tf

    from model import simulation

    def moved(server: Server) -> list[float]:
        optimizer, at = simulation.optimizer(server), tf.constant(1.0)
        state, seen = optimizer.initialize(tf.TensorSpec([])), []
        for delta in (0.5, -0.25):
            state, at = optimizer.next(state, at, tf.constant(delta))
            seen.append(float(at))
        return seen

    assert moved(Server("fedavg", 0.1)) == pytest.approx([0.95, 0.975])
    assert moved(Server("fedprox", 0.1)) == pytest.approx([0.95, 0.975])
    assert moved(Server("fedavgm", 0.1, momentum=0.9)) == pytest.approx(
        [0.95, 0.95 - 0.1 * (0.9 * 0.5 - 0.25)]
    )
    accumulated = 0.1 + 0.5**2  # TFF starts with 0.1
    first = 1 - 0.1 * 0.5 / accumulated**0.5
    assert moved(Server("fedadagrad", 0.1, epsilon=0.0)) == pytest.approx(
        [first, first + 0.1 * 0.25 / (accumulated + 0.25**2) ** 0.5]
    )
    mean = 0.9 * 0.05 - 0.1 * 0.25
    rates = [0.1 * (1 - 0.8**n) ** 0.5 / (1 - 0.9**n) for n in (1, 2)]
    first = 1 - rates[0] * 0.05 / 0.05**0.5
    adam, yogi = (
        Server(name, 0.1, momentum=0.9, beta_2=0.8, epsilon=0.0) for name in ("fedadam", "fedyogi")
    )
    assert moved(adam) == pytest.approx(
        [first, first - rates[1] * mean / (0.8 * 0.05 + 0.2 * 0.0625) ** 0.5]
    )
    # TFF starts with 1e-6
    assert moved(yogi) == pytest.approx(
        [first, first - rates[1] * mean / (0.05 + 0.2 * 0.0625) ** 0.5], abs=1e-4
    )


def test_a_run_that_diverges_stops_with_the_round_and_the_norm(
    simulation, recipe, tiny_checkpoint, tiny_rows
):
    wild = replace(recipe, rounds=3, server=Server("fedavg", 1e6, schedule=CONSTANT))
    with pytest.raises(
        CheckpointError,
        match=r"round \d: training diverges: the norm of the global weights went from .* to",
    ):
        list(simulation.train(tiny_checkpoint.weights, [tiny_rows[:8]] * 2, wild))


def test_the_longest_work_comes_first_and_is_shared_out_among_machines():
    from model.simulation import dealt

    data = [[np.zeros((steps, 8, 7), np.int32)] for steps in (1, 5, 3, 4, 2)]
    assert [len(own) for (own,) in dealt(data, 1)] == [5, 4, 3, 2, 1]
    assert [len(own) for (own,) in dealt(data, 2)] == [5, 3, 1, 4, 2]


def test_a_population_too_small_for_the_cohort_is_refused(
    simulation, recipe, tiny_checkpoint, tiny_rows
):
    with pytest.raises(ConfigError, match="need 6; the corpus has 2 train users"):
        next(
            simulation.train(
                tiny_checkpoint.weights, [tiny_rows[:8]] * 2, replace(recipe, min_separation=3)
            )
        )


def test_a_worker_that_is_killed_is_started_again_and_the_run_goes_on(
    simulation, recipe, tiny_checkpoint, tiny_rows
):
    rounds = simulation.train(
        tiny_checkpoint.weights, [tiny_rows[:8]] * 2, replace(recipe, rounds=2)
    )
    next(rounds)
    os.kill(simulation.worker_process.pid, signal.SIGKILL)
    assert next(rounds).number == 2


def test_padding_and_the_fast_step_change_no_weight(tiny_checkpoint, tiny_rows):
    """`packed.train`, which TFF runs, against `training.sgd_step`, which devices run, over batches
    with short, long and empty rows.
    """
    import tensorflow as tf

    from model import packed, training
    from model.clients import batches

    weights = {name: tf.constant(array) for name, array in tiny_checkpoint.weights.items()}
    plan = Recipe().plan
    steps = batches(
        tiny_rows[:21], replace(plan, batch_size=4, epochs=2), Client(), np.random.default_rng(0)
    )
    after, losses, targets, _ = packed.train(weights, tf.constant(steps), tf.constant(0.3))
    plain, total, count = weights, 0.0, 0.0
    for rows in steps:
        plain, loss, result = training.sgd_step(
            plain, tf.constant(rows), tf.constant(0.3), rows.shape[1] - 1
        )
        total, count = total + float(loss * result), count + float(result)
    assert float(targets) == count
    assert float(losses) == pytest.approx(total, rel=1e-5)
    assert all(np.abs(after[name] - plain[name]).max() < 2e-5 for name in weights)


def test_gradients_with_dropout_are_those_of_the_network_with_the_same_values_dropped(
    tiny_checkpoint, tiny_rows
):
    """Directional derivative of the loss: a small step along the gradient lowers it by the
    gradient's squared norm.
    """
    import tensorflow as tf

    from model import packed

    start = packed.pack(
        {name: tf.constant(array, tf.float32) for name, array in tiny_checkpoint.weights.items()}
    )
    rows, seed = (
        tf.constant(tiny_rows[np.argsort(-(tiny_rows[:6] != 0).sum(axis=1), kind="stable")]),
        tf.constant([1, 2]),
    )
    loss, _, _, gradients = packed.changes(start, rows, 1.0, 0.3, seed)
    step = 1e-2
    ahead, _, _, _ = packed.changes(
        {name: start[name] + step * gradients[name] for name in start}, rows, 1.0, 0.3, seed
    )
    behind, _, _, _ = packed.changes(
        {name: start[name] - step * gradients[name] for name in start}, rows, 1.0, 0.3, seed
    )
    squared = sum(float(tf.reduce_sum(gradient**2)) for gradient in gradients.values())
    assert float(ahead - behind) / (2 * step) == pytest.approx(squared, rel=0.02)
    assert float(loss) != pytest.approx(float(packed.changes(start, rows, 1.0)[0]), abs=1e-4)


def test_momentum_and_the_proximal_pull_follow_their_formulas(tiny_checkpoint, tiny_rows):
    """Two equal batches at rate 0.1. Momentum adds half of the first change to the second one, the
    pull takes back rate x mu of the way gone.
    """
    import tensorflow as tf

    from model import packed, training

    weights = {name: tf.constant(array) for name, array in tiny_checkpoint.weights.items()}
    rows = tiny_rows[np.argsort(-(tiny_rows[:4] != 0).sum(axis=1), kind="stable")]
    steps, length = tf.constant(np.stack([rows, rows])), rows.shape[1] - 1
    once, _, _ = training.sgd_step(weights, tf.constant(rows), tf.constant(0.1), length)
    twice, _, _ = training.sgd_step(once, tf.constant(rows), tf.constant(0.1), length)
    heavy, *_ = packed.train(weights, steps, tf.constant(0.1), Client(momentum=0.5))
    pulled, *_ = packed.train(weights, steps, tf.constant(0.1), Client(proximal=2.0))
    for name in weights:
        np.testing.assert_allclose(
            heavy[name], twice[name] + 0.5 * (once[name] - weights[name]), atol=1e-6
        )
        np.testing.assert_allclose(
            pulled[name], twice[name] - 0.1 * 2.0 * (once[name] - weights[name]), atol=1e-6
        )
