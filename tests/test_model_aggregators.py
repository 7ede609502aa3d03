"""Aggregators in TFF: the device's encoding by the same distribution, and privacy's clip and noise."""

import numpy as np
import pytest

from device_runtime import quantize
from device_runtime.errors import ConfigError

SHAPES = [(3,), (2, 2)]
SETTINGS = {
    "encoded": False, "bits": 8, "clipping_norm": 10.0, "seed": 3, "mechanism": "none", "noise_multiplier": 0.0,
    "privacy_clipping_norm": 1.0, "clients_per_round": 2, "shapes": SHAPES,
}  # fmt: skip


@pytest.fixture(scope="module")
def aggregators():
    from model import aggregators, worker

    with worker.running(2):
        yield aggregators


def process(aggregators, shapes, **settings):
    import tensorflow_federated as tff

    factory, weighs = aggregators.build(**{**SETTINGS, "shapes": shapes, **settings})
    if not weighs:
        factory = tff.aggregators.as_weighted_aggregator(factory)
    return factory.create(tff.to_type(tuple((np.float32, shape) for shape in shapes)), tff.TensorType(np.float32))


def delta(*values: float) -> tuple[np.ndarray, np.ndarray]:
    """Seven values as the two arrays of SHAPES."""
    flat = np.array(values, np.float32)
    return flat[:3], flat[3:].reshape(2, 2)


def flat(mean) -> np.ndarray:
    return np.concatenate([np.asarray(array).ravel() for array in mean])


def test_the_plain_mean_weighs_clients_and_nobody_left_gives_zero(aggregators):
    built = process(aggregators, SHAPES)
    one, two = delta(*[1.0] * 7), delta(*[4.0] * 7)
    assert flat(built.next(built.initialize(), [one, two], [2.0, 1.0]).result) == pytest.approx([2.0] * 7)
    assert flat(built.next(built.initialize(), [one, two], [0.0, 0.0]).result).tolist() == [0.0] * 7


def test_sixteen_bits_give_the_weighted_mean_almost_exactly(aggregators):
    built = process(aggregators, SHAPES, encoded=True, bits=16)
    one, two = delta(1, -2, 3, 0, 0.5, 0, 2), delta(0, 4, -1, 1, 1, 1, 1)
    done = built.next(built.initialize(), [one, two], [3.0, 1.0])
    assert flat(done.result) == pytest.approx((3 * flat(one) + flat(two)) / 4, abs=2e-3)
    assert int(done.measurements["upload_bytes"]) == quantize.encoded_bytes(7, 16)
    assert float(done.measurements["norm"]) == pytest.approx((np.linalg.norm(flat(one)) + np.linalg.norm(flat(two))) / 2, rel=1e-5)
    assert float(done.measurements["clipped"]) == 0


def test_a_delta_over_the_norm_is_scaled_down_and_counted(aggregators):
    built = process(aggregators, SHAPES, encoded=True, bits=16, clipping_norm=1.0)
    done = built.next(built.initialize(), [delta(30, 40, 0, 0, 0, 0, 0), delta(0, 0, 0.5, 0, 0, 0, 0)], [1.0, 1.0])
    assert flat(done.result) == pytest.approx([0.3, 0.4, 0.25, 0, 0, 0, 0], abs=1e-3)
    assert float(done.measurements["clipped"]) == 0.5


def test_a_constant_zero_and_nobody_left_stay_zero(aggregators):
    built = process(aggregators, SHAPES, encoded=True, bits=2)
    for weights in ([1.0, 1.0], [0.0, 0.0]):
        assert flat(built.next(built.initialize(), [delta(*[0.0] * 7)] * 2, weights).result).tolist() == [0.0] * 7


def test_rounding_repeats_by_seed_and_differs_by_round(aggregators):
    built = process(aggregators, SHAPES, encoded=True, bits=1)
    client = [delta(1, -2, 3, 0, 0.5, 0, 2)]
    first = built.next(built.initialize(), client, [1.0])
    assert (flat(first.result) == flat(built.next(built.initialize(), client, [1.0]).result)).all()
    assert not (flat(first.result) == flat(built.next(first.state, client, [1.0]).result)).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_error_has_the_distribution_of_the_devices_own_encoding(aggregators, bits):
    """200 clients with the same direction but slightly different lengths, so that each draws anew: mean and spread of the error, against numpy's."""
    from model.aggregators import rotate, round_at_random, unrotate

    rng = np.random.default_rng(1)
    vector = rng.normal(size=5000).astype(np.float32)
    ours, theirs = [], []
    for draw in range(40):
        turned = rotate(vector, np.array([9, draw], np.int32))
        assert float(np.linalg.norm(turned)) == pytest.approx(float(np.linalg.norm(vector)), rel=1e-5)
        np.testing.assert_allclose(unrotate(turned, np.array([9, draw], np.int32), 5000), vector, atol=1e-5)
        rounded = round_at_random(turned, bits, np.array([8, draw], np.int32))
        step = float(np.ptp(turned)) / (2**bits - 1)
        assert np.abs(rounded - turned).max() <= step * 1.001
        ours.append(unrotate(rounded, np.array([9, draw], np.int32), 5000) - vector)
        update = quantize.decode(quantize.encode(vector, 1, draw, "00" * 32, bits, 1, rng))
        theirs.append(quantize.unrotate(quantize.values(update), draw, 5000) - vector)
    ours, theirs = np.array(ours), np.array(theirs)
    spread = theirs.std()
    assert ours.std() == pytest.approx(spread, rel=0.05)
    assert np.percentile(ours, [1, 10, 90, 99]) == pytest.approx(np.percentile(theirs, [1, 10, 90, 99]), abs=0.08 * spread)
    assert abs(ours.mean()) < 5 * spread / np.sqrt(ours.size)  # unbiased
    assert np.abs(ours.mean(axis=0)).max() < 6 * spread / np.sqrt(len(ours))  # in every value


@pytest.mark.parametrize("mechanism", ["gaussian", "tree"])
def test_privacy_clips_and_adds_the_noise_it_states(aggregators, mechanism):
    """Noise on the sum of 4 clients has 0.5 x 2.0, on the mean a quarter of it; a huge client moves the mean by at most 2.0 / 4."""
    shapes = [(40_000,)]
    built = process(aggregators, shapes, mechanism=mechanism, noise_multiplier=0.5, privacy_clipping_norm=2.0, clients_per_round=4)
    huge, nothing = np.zeros(40_000, np.float32), np.zeros(40_000, np.float32)
    huge[0] = 1000.0
    (mean,) = built.next(built.initialize(), [(huge,), (nothing,), (nothing,), (nothing,)], [1.0] * 4).result
    assert mean[0] == pytest.approx(0.5, abs=6 * 0.25)
    assert np.asarray(mean)[1:].std() == pytest.approx(0.25, rel=0.05)


def test_without_noise_privacy_is_the_mean_of_clipped_deltas(aggregators):
    built = process(aggregators, SHAPES, mechanism="gaussian", noise_multiplier=0.0, privacy_clipping_norm=5.0)
    done = built.next(built.initialize(), [delta(30, 40, 0, 0, 0, 0, 0), delta(0, 0, 1, 0, 0, 0, 0)], [1.0, 1.0])
    assert flat(done.result) == pytest.approx([1.5, 2, 0.5, 0, 0, 0, 0], abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"encoded": True, "bits": 17}, "expected 1 to 16"),
        ({"encoded": True, "mechanism": "gaussian"}, "no privacy guarantee"),
        ({"mechanism": "laplace"}, "expected gaussian, gaussian-adaptive or tree"),
        ({"mechanism": "gaussian-adaptive", "noise_multiplier": 1.0}, "adaptive norm needs"),
    ],
)
def test_what_no_mechanism_takes_is_refused(aggregators, settings, says):
    with pytest.raises(ConfigError, match=says):
        aggregators.build(**{**SETTINGS, **settings})


def test_encoded_rounds_train(aggregators, tiny_checkpoint, tiny_rows, tiny_plan):
    from dataclasses import replace

    from model import simulation
    from model.recipe import Recipe, Server

    population = [tiny_rows[i : i + 12] for i in range(0, 120, 12)]
    recipe = Recipe("tiny", vocabulary=40, rounds=8, cohort=4, encoded=True, plan=replace(tiny_plan, bits=8), server=Server("fedadam", 0.02))
    rounds = list(simulation.train(tiny_checkpoint.weights, population, recipe))
    assert rounds[-1].loss < rounds[0].loss - 0.2
