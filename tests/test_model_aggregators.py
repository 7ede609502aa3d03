"""Aggregators in TFF: the device's encoding with its very numbers, privacy's clip and noise."""

import numpy as np
import pytest

from device_runtime import encoding, quantize, strategy
from device_runtime.encoding import Encoding
from device_runtime.errors import ConfigError
from device_runtime.noise import Mechanism, Noise
from device_runtime.terms import Aggregation, Terms
from device_runtime.update import encoded_bytes, sealed_bytes

SHAPES = [(3,), (2, 2)]
SETTINGS = {
    "encoded": False,
    "bits": 8,
    "clipping_norm": 10.0,
    "seed": 3,
    "mechanism": "none",
    "noise": None,
    "noise_multiplier": 0.0,
    "clients_per_round": 2,
}


def noise(mechanism: str, multiplier: float = 1.0, rounds: int = 13, restart: int = 0) -> Noise:
    buffers = ((0.9, 0.5), (0.3, 0.2)) if mechanism == "blt" else ((), ())
    return Noise(Mechanism(mechanism), multiplier, 8.0, 1e-10, rounds, 1, restart, *buffers)


@pytest.fixture(scope="module")
def aggregators():
    from model import aggregators, worker

    with worker.running(2):
        yield aggregators


def process(aggregators, shapes, **settings):
    import tensorflow_federated as tff

    factory, weighs = aggregators.build(aggregators.Averaging(**{**SETTINGS, **settings}))
    if not weighs:
        factory = tff.aggregators.as_weighted_aggregator(factory)
    return factory.create(
        tff.to_type(tuple((np.float32, shape) for shape in shapes)), tff.TensorType(np.float32)
    )


def delta(*values: float) -> tuple[np.ndarray, np.ndarray]:
    """Seven values as the two arrays of SHAPES."""
    flat = np.array(values, np.float32)
    return flat[:3], flat[3:].reshape(2, 2)


def flat(mean) -> np.ndarray:
    return np.concatenate([np.asarray(array).ravel() for array in mean])


def test_the_plain_mean_weighs_clients_and_nobody_left_gives_zero(aggregators):
    built = process(aggregators, SHAPES)
    one, two = delta(*[1.0] * 7), delta(*[4.0] * 7)
    assert flat(built.next(built.initialize(), [one, two], [2.0, 1.0]).result) == pytest.approx(
        [2.0] * 7
    )
    assert flat(built.next(built.initialize(), [one, two], [0.0, 0.0]).result).tolist() == [0.0] * 7


def test_sixteen_bits_give_the_mean_of_clients_who_count_once_each(aggregators):
    built = process(aggregators, SHAPES, encoded=True, bits=16)
    one, two = delta(1, -2, 3, 0, 0.5, 0, 2), delta(0, 4, -1, 1, 1, 1, 1)
    done = built.next(built.initialize(), [one, two, delta(*[9.0] * 7)], [3.0, 1.0, 0.0])
    assert flat(done.result) == pytest.approx((flat(one) + flat(two)) / 2, abs=2e-3)
    assert int(done.measurements["upload_bytes"]) == encoded_bytes(7, 16)
    # sums of two are under 2 x 65,535 + 1: three digits in seven bytes, and a header, seal and
    # signature of 192
    assert int(done.measurements["masked_bytes"]) == 192 + 7 * 1366
    assert float(done.measurements["norm"]) == pytest.approx(
        (np.linalg.norm(flat(one)) + np.linalg.norm(flat(two))) / 2, rel=1e-5
    )
    assert float(done.measurements["clipped"]) == 0


def test_a_delta_over_the_norm_is_scaled_down_and_counted(aggregators):
    built = process(aggregators, SHAPES, encoded=True, bits=16, clipping_norm=1.0)
    done = built.next(
        built.initialize(), [delta(30, 40, 0, 0, 0, 0, 0), delta(0, 0, 0.5, 0, 0, 0, 0)], [1.0, 1.0]
    )
    assert flat(done.result) == pytest.approx([0.3, 0.4, 0.25, 0, 0, 0, 0], abs=1e-3)
    assert float(done.measurements["clipped"]) == 0.5


def test_a_cohort_of_nobody_has_a_mean_of_zero(aggregators):
    built = process(aggregators, SHAPES, encoded=True, bits=2)
    done = built.next(built.initialize(), [delta(*[1.0] * 7)] * 2, [0.0, 0.0])
    assert flat(done.result).tolist() == [0.0] * 7


def test_rounding_repeats_by_seed_and_differs_by_round(aggregators):
    built = process(aggregators, SHAPES, encoded=True, bits=1)
    client = [delta(1, -2, 3, 0, 0.5, 0, 2)]
    first = built.next(built.initialize(), client, [1.0])
    assert (flat(first.result) == flat(built.next(built.initialize(), client, [1.0]).result)).all()
    assert not (flat(first.result) == flat(built.next(first.state, client, [1.0]).result)).all()


def position(vector: np.ndarray, by: Encoding) -> np.ndarray:
    """Where between the codes the device's own steps put each value: float64 [values]."""
    permuted = vector[np.arange(by.dimension) * by.stride % by.dimension]
    return (quantize.rotate(permuted, by.seed).astype(np.float64) + by.half) / by.step


@pytest.mark.parametrize(("bits", "size"), [(1, 5000), (4, 5000), (8, 4096)])
def test_values_are_rounded_as_the_device_rounds_them(aggregators, bits, size):
    """100 roundings: every code is one of the two beside the value, the upper as often as the
    value's place between them says; beyond the range it is the last one.
    """
    by, draws = Encoding(size, bits, 1.0, 3), 100
    vector = np.random.default_rng(1).standard_normal(size, np.float32)
    vector *= 0.95 / np.linalg.norm(vector)
    signs, places = aggregators.signs(by), position(vector, by).clip(0, by.largest)
    codes = np.array(
        [aggregators.encode(vector, signs, by, np.array([1, draw])) for draw in range(draws)],
    )
    assert np.abs(codes - places).max() < 1 + 1e-3
    fraction, ups = places % 1, codes.mean(axis=0) - np.floor(places)
    sure = (fraction < 1e-2) | (fraction > 1 - 1e-2)  # float rounding may put these on either side
    deviation = np.sqrt(fraction * (1 - fraction) / draws)
    # 8192 values: 6 deviations are a chance of one in 60,000
    assert np.abs(ups - fraction)[~sure].max() < 6 * deviation[~sure].max()
    # Bernoulli's own spread, no more and no less
    assert np.mean(((ups - fraction)[~sure] / deviation[~sure]) ** 2) == pytest.approx(1, abs=0.12)
    ours = [encoding.norm(one, by) for one in codes[:20]]
    rng = np.random.default_rng(2)
    theirs = [encoding.norm(encoding.encode({"all": vector}, by, rng), by) for _ in range(20)]
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.01)


@pytest.mark.parametrize(("bits", "count"), [(4, 1), (8, 3), (16, 70_000)])
def test_a_sum_of_codes_is_read_as_the_server_reads_it(aggregators, bits, count):
    by = Encoding(5000, bits, 0.5, 2**62 + 11)
    rng = np.random.default_rng(4)
    total = rng.integers(0, by.largest * count, by.values, endpoint=True)
    simulated = np.asarray(aggregators.mean(total, count, aggregators.signs(by), by))
    np.testing.assert_allclose(simulated, encoding.mean(total, count, by), atol=1e-6)


def test_codes_are_added_up_in_numbers_that_they_cannot_fill(aggregators):
    """32,768 codes of at most 65,535 stay under 2 to the 31, 32,769 do not."""
    by = Encoding(7, 16, 1.0, 3)
    assert aggregators.whole(by, 32_768).max == 2**31 - 1
    assert aggregators.whole(by, 32_769).max == 2**63 - 1


class Strict(Encoding):
    """An encoding whose bound leaves rounding no room at the clipping norm."""

    bound = 0.98


@pytest.mark.parametrize(("length", "shorter"), [(0.95, False), (1.0, True)])
def test_a_delta_that_no_drawing_rounds_to_within_the_bound_is_made_shorter(
    aggregators, length, shorter
):
    by = Strict(4096, 8, 1.0, 3)
    vector = np.random.default_rng(1).standard_normal(4096).astype(np.float32)
    vector *= length / np.linalg.norm(vector)
    codes = np.asarray(aggregators.encode(vector, aggregators.signs(by), by, np.array([1, 2])))
    theirs = encoding.encode({"all": vector}, by, np.random.default_rng(0))
    for each in (codes, theirs):
        assert encoding.norm(each, by) == pytest.approx(0.9 if shorter else length, abs=0.01)


def test_a_client_adds_the_same_to_the_sum_whoever_else_trains(aggregators):
    built = process(aggregators, SHAPES, encoded=True, bits=1)
    one, two = delta(1, -2, 3, 0, 0.5, 0, 2), delta(0, 4, -1, 1, 1, 1, 1)
    alone = [flat(built.next(built.initialize(), [client], [1.0]).result) for client in (one, two)]
    assert flat(built.next(built.initialize(), [two, one], [1.0, 3.0]).result) == pytest.approx(
        (alone[0] + alone[1]) / 2, abs=1e-4
    )


def test_a_client_of_weight_zero_is_not_measured(aggregators):
    built = process(aggregators, SHAPES, encoded=True, bits=16, clipping_norm=1.0)
    done = built.next(
        built.initialize(), [delta(3, 4, 0, 0, 0, 0, 0), delta(*[0.0] * 7)], [2.0, 0.0]
    )
    assert (float(done.measurements["clipped"]), float(done.measurements["norm"])) == (1.0, 5.0)
    assert flat(done.result) == pytest.approx([0.6, 0.8, 0, 0, 0, 0, 0], abs=1e-3)


def test_a_gigantic_finite_delta_is_clipped_and_not_dropped(aggregators):
    done = (built := process(aggregators, SHAPES, encoded=True, bits=16, clipping_norm=5.0)).next
    assert flat(
        done(built.initialize(), [delta(3e30, 4e30, 0, 0, 0, 0, 0)], [1.0]).result
    ) == pytest.approx([3, 4, 0, 0, 0, 0, 0], abs=1e-2)


def test_an_adaptive_norm_falls_while_nobody_is_clipped(aggregators):
    """Both clients stay under the norm: it shrinks by exp(0.2 x (0.5 - 1)) a round towards their
    median.
    """
    built = process(aggregators, SHAPES, mechanism="gaussian-adaptive", clipping_norm=5.0)
    done = built.next(
        built.initialize(), [delta(1, 0, 0, 0, 0, 0, 0), delta(0, 0, 1, 0, 0, 0, 0)], [1.0, 1.0]
    )
    assert flat(done.result) == pytest.approx([0.5, 0, 0.5, 0, 0, 0, 0], abs=1e-6)
    assert float(done.measurements["dp_query_metrics"]["clip"]) == pytest.approx(
        5 * np.exp(-0.1), rel=1e-5
    )


MECHANISMS = ["gaussian", "tree", "blt"]


@pytest.mark.parametrize("encoded", [True, False])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_noise_differs_by_array_and_by_round_and_repeats_by_seed(aggregators, mechanism, encoded):
    shapes, client = [(5000,), (5000,)], [(np.zeros(5000, np.float32),) * 2] * 2
    how = {"mechanism": mechanism, "noise": noise(mechanism), "encoded": encoded}
    built = process(aggregators, shapes, **how)
    first = built.next(built.initialize(), client, [1.0, 1.0])
    later, again = (
        built.next(first.state, client, [1.0, 1.0]),
        built.next(built.initialize(), client, [1.0, 1.0]),
    )
    assert abs(np.corrcoef(*map(np.asarray, first.result))[0, 1]) < 0.1
    assert np.mean(flat(first.result) == flat(later.result)) < 0.01
    assert (flat(first.result) == flat(again.result)).all()


@pytest.mark.parametrize("encoded", [True, False])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_privacy_clips_and_adds_the_noise_it_states(aggregators, mechanism, encoded):
    """Noise on the sum of 4 clients has 0.5 x 2.0, on the mean a quarter of it; a huge client moves
    the mean by at most 2.0 / 4. Rounding to 8 bits may lengthen a delta by a hundredth.
    """
    built = process(
        aggregators,
        [(40_000,)],
        mechanism=mechanism,
        noise=noise(mechanism, 0.5),
        clipping_norm=2.0,
        clients_per_round=4,
        encoded=encoded,
    )
    huge, nothing = np.zeros(40_000, np.float32), np.zeros(40_000, np.float32)
    huge[0] = 1000.0
    (mean,) = built.next(
        built.initialize(), [(huge,), (nothing,), (nothing,), (nothing,)], [1.0] * 4
    ).result
    assert mean[0] == pytest.approx(0.5, abs=6 * 0.25)
    assert np.asarray(mean)[1:].std() == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize("encoded", [True, False])
def test_few_clients_that_stand_for_many_get_the_noise_of_the_many_on_their_mean(
    aggregators, encoded
):
    """4 for 400: of 400 clients the noise on the mean has 50 x 2.0 / 400."""
    built = process(
        aggregators,
        [(40_000,)],
        mechanism="blt",
        noise=noise("blt", 50.0),
        clipping_norm=2.0,
        clients_per_round=4,
        report_goal=400,
        encoded=encoded,
        bits=4,
    )
    nothing = (np.zeros(40_000, np.float32),)
    (mean,) = built.next(built.initialize(), [nothing] * 4, [1.0] * 4).result
    bound = Encoding(40_000, 4, 2.0, 3).bound if encoded else 1.0
    assert np.asarray(mean).std() == pytest.approx(0.25 * bound, rel=0.05)


@pytest.mark.parametrize("encoded", [True, False])
def test_the_mean_is_over_the_clients_that_were_to_come(aggregators, encoded):
    """One of two vanished: what the other sent counts half, whatever noise makes of it."""
    built = process(
        aggregators, SHAPES, mechanism="blt", noise=noise("blt", 0.0), bits=16, encoded=encoded
    )
    done = built.next(
        built.initialize(), [delta(2, 0, 0, 4, 0, 0, 0), delta(*[0.0] * 7)], [1.0, 0.0]
    )
    assert flat(done.result) == pytest.approx([1, 0, 0, 2, 0, 0, 0], abs=1e-3)


@pytest.mark.parametrize(
    ("mechanism", "restart"), [("gaussian", 0), ("blt", 0), ("tree", 0), ("tree", 5)]
)
def test_noise_of_a_round_is_made_of_the_rounds_before_as_a_helper_makes_it(
    aggregators, mechanism, restart
):
    """The same standard normals give the same noise, round by round."""
    of, rng = noise(mechanism, rounds=13, restart=restart), np.random.default_rng(1)
    theirs = strategy.begin(of, 50)
    arrays = aggregators.buffers(of, 50)
    assert arrays.shape == theirs.arrays.shape
    for step in range(13):
        fresh = rng.standard_normal((8, 50)).astype(np.float32)
        rows = iter(fresh)
        expected, theirs = strategy.advance(of, theirs, lambda rows=rows: next(rows))
        made, arrays = aggregators.noised(
            of, np.int32(step), arrays, lambda i, fresh=fresh: fresh[i]
        )
        np.testing.assert_allclose(made, expected, atol=1e-5)
        np.testing.assert_allclose(arrays, theirs.arrays, atol=1e-5)


@pytest.mark.parametrize(("bits", "compression", "most"), [(4, 1, 100), (2, 4, 1000), (8, 8, 100)])
def test_clip_noise_and_room_are_those_of_a_tasks_terms(aggregators, bits, compression, most):
    of = noise("blt", 8.0)
    terms = Terms(
        *(Aggregation.HELPER, bits, 0.5, 40_000, "0" * 64, 3, most, most, 1),
        helper="1" * 64,
        noise=of,
        compression=compression,
    )
    by = Encoding(40_000, bits, 0.5, 3, compression)
    assert by == terms.encoding
    assert aggregators.deviation_of(of, by) == terms.deviation
    assert aggregators.room(of, aggregators.deviation_of(of, by)) == terms.room
    made = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    codes = aggregators.whole_codes(made, terms.deviation, np.int64)
    assert (
        np.asarray(codes) == np.rint(made.astype(np.float64) * terms.deviation).astype(np.int64)
    ).all()


def test_an_upload_is_measured_with_the_room_that_noise_takes(aggregators):
    """Two clients for a goal of 100: packed as for 100, with room for their noise."""
    of = noise("blt", 8.0)
    how = {"encoded": True, "bits": 4, "compression": 4, "report_goal": 100}
    built = process(aggregators, [(40_000,)], mechanism="blt", noise=of, **how)
    done = built.next(built.initialize(), [(np.zeros(40_000, np.float32),)] * 2, [1.0, 1.0])
    terms = Terms(
        *(Aggregation.HELPER, 4, 10.0, 40_000, "0" * 64, 3, 100, 100, 1),
        helper="1" * 64,
        noise=of,
        compression=4,
    )
    assert int(done.measurements["masked_bytes"]) == sealed_bytes(terms.layout)
    assert int(done.measurements["upload_bytes"]) == encoded_bytes(terms.encoding.values, 4)


@pytest.mark.parametrize("compression", [2, 8])
def test_what_is_compressed_is_what_a_device_compresses(aggregators, compression):
    """A sum is read as the server reads it, and 16 bits come back as the device's own come back."""
    by = Encoding(5000, 16, 1.0, 7, compression)
    signs, rng = aggregators.signs(by), np.random.default_rng(2)
    total = rng.integers(0, by.largest * 3, by.values, endpoint=True)
    simulated = np.asarray(aggregators.mean(total, 3, signs, by))
    np.testing.assert_allclose(simulated, encoding.mean(total, 3, by), atol=1e-6)
    vector = rng.standard_normal(5000).astype(np.float32)
    vector /= np.linalg.norm(vector)
    ours = np.asarray(aggregators.encode(vector, signs, by, np.array([1, 2])), np.int64)
    theirs = encoding.encode({"all": vector}, by, rng).astype(np.int64)
    assert len(ours) == by.values == 8192 // compression
    assert np.abs(ours - theirs).max() <= 1


def test_without_noise_privacy_is_the_mean_of_clipped_deltas(aggregators):
    built = process(
        aggregators,
        SHAPES,
        mechanism="gaussian",
        noise=noise("gaussian", 0.0),
        clipping_norm=5.0,
    )
    done = built.next(
        built.initialize(), [delta(30, 40, 0, 0, 0, 0, 0), delta(0, 0, 1, 0, 0, 0, 0)], [1.0, 1.0]
    )
    assert flat(done.result) == pytest.approx([1.5, 2, 0.5, 0, 0, 0, 0], abs=1e-5)
    assert float(done.measurements["clipped"]) == 0.5


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"encoded": True, "bits": 17}, "expected 1 to 16"),
        ({"mechanism": "gaussian-adaptive", "noise_multiplier": 1.0}, "adaptive norm needs"),
    ],
)
def test_what_no_mechanism_takes_is_refused(aggregators, settings, says):
    with pytest.raises(ConfigError, match=says):
        aggregators.build(aggregators.Averaging(**{**SETTINGS, **settings}))


def test_encoded_rounds_train(aggregators, tiny_checkpoint, tiny_rows, tiny_plan):
    from dataclasses import replace

    from model import simulation
    from model.recipe import Recipe, Server

    population = [tiny_rows[i : i + 12] for i in range(0, 120, 12)]
    recipe = Recipe(
        "tiny",
        vocabulary=40,
        rounds=8,
        cohort=4,
        encoded=True,
        plan=replace(tiny_plan, bits=8),
        server=Server("fedadam", 0.02),
    )
    rounds = list(simulation.train(tiny_checkpoint.weights, population, recipe))
    assert rounds[-1].loss < rounds[0].loss - 0.2
