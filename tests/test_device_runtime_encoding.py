"""Encoding: what codes stand for, what their sum does, and that no rounding leaves the bound."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import encoding, quantize, weights
from device_runtime.encoding import Encoding

BITS = st.integers(1, 16)
COMPRESSED = st.sampled_from([1, 2, 4, 8, 64])


def vector(seed: int, size: int, norm: float = 1.0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal(size)
    return (drawn * (norm / np.linalg.norm(drawn))).astype(np.float32)


def spike(size: int, norm: float = 1.0) -> np.ndarray:
    """All in one value."""
    only = np.zeros(size, np.float32)
    only[size // 2] = norm
    return only


def encoded(values: np.ndarray, by: Encoding, seed: int = 0) -> np.ndarray:
    return encoding.encode({"all": values}, by, np.random.default_rng(seed))


def test_codes_by_hand():
    """One bit: 3 standard deviations up or down, which are 3 / 64 each of 4096 values."""
    by = Encoding(4096, 1, 1.0, 0)
    assert (by.values, by.largest, by.half, by.step) == (4096, 1, 3 / 64, 6 / 64)
    ones = np.ones(4096, np.uint8)
    assert encoding.norm(ones, by) == pytest.approx(3.0)
    assert encoding.norm(np.tile(np.array([0, 1], np.uint8), 2048), by) == pytest.approx(3.0)
    # four bits: code 8 stands for half a step of 0.4 standard deviations
    middle = np.full(4096, 8, np.uint8)
    assert encoding.norm(middle, Encoding(4096, 4, 1.0, 0)) == pytest.approx(0.2)


@settings(max_examples=80)
@given(st.integers(1, 100_000))
def test_the_stride_meets_every_place_once(dimension):
    by = Encoding(dimension, 4, 1.0, 0)
    assert math.gcd(by.stride, dimension) == 1
    places = encoding._places(dimension, by.stride)
    assert np.bincount(places, minlength=dimension).tolist() == [1] * dimension


@pytest.mark.parametrize("dimension", [50, 8191, 1_423_511])
def test_neighbours_come_to_all_blocks_alike(dimension):
    """Of a hundred neighbours no block has many more than its share."""
    by = Encoding(dimension, 4, 1.0, 0)
    came_from = encoding._places(dimension, by.stride)
    place = np.empty(dimension, np.int64)
    place[came_from] = np.arange(dimension)
    blocks = by.values // quantize.BLOCK
    near = place[:100] // quantize.BLOCK
    assert np.bincount(near, minlength=blocks).max() <= math.ceil(100 / blocks) + 2


@settings(max_examples=60)
@given(
    st.integers(0, 999),
    BITS,
    st.sampled_from([1, 2, 3, 50, 4096, 9000]),
    st.sampled_from([1e-6, 0.5, 1.0, 30.0]),
    st.booleans(),
    COMPRESSED,
)
def test_no_rounding_leaves_the_bound(seed, bits, dimension, norm, spiky, compression):
    by = Encoding(dimension, bits, 1.0, seed, compression)
    codes = encoded(
        (spike if spiky else lambda d, n: vector(seed, d, n))(dimension, norm), by, seed
    )
    assert codes.dtype == (np.uint8 if bits <= 8 else np.uint16)
    assert (len(codes), int(codes.max()) <= by.largest) == (by.values, True)
    values = codes * by.step - by.half  # float64
    assert encoding.norm(codes, by) == pytest.approx(np.linalg.norm(values), rel=1e-9)
    assert np.linalg.norm(values) <= by.bound * by.clipping_norm * (1 + 1e-9)
    assert encoding.is_within(encoding.norm(codes, by), by)


@pytest.mark.parametrize(("bits", "bound"), [(8, 1.010), (4, 1.030), (3, 1.099), (2, 1.428)])
def test_the_bound_is_what_rounding_can_be_expected_to_add_and_one_per_cent(bits, bound):
    assert Encoding(4096, bits, 1.0, 0).bound == pytest.approx(bound, abs=1e-3)


class Up(np.random.Generator):
    """Randomness that rounds every value up, for so many draws; then it is fair."""

    def __init__(self, draws: int):
        super().__init__(np.random.PCG64(0))
        self.left = draws

    def random(self, size=None, dtype=np.float64, out=None):
        self.left -= 1
        drawn = super().random(size, dtype)
        return np.zeros_like(drawn) if self.left >= 0 else drawn


def test_a_draw_beyond_the_bound_is_drawn_again_and_in_the_end_the_delta_is_shortened():
    by = Encoding(4096, 2, 1.0, 0)
    # 2,844 values of 1.2 / 64 and zeros: rounded up to 3 / 64 and 1 / 64 their norm is 2.55
    rotated = np.where(np.arange(4096) < 2844, 1.2 / 64, 0).astype(np.float32)
    delta = np.empty(4096, np.float32)
    delta[encoding._places(4096, by.stride)] = quantize.unrotate(rotated, 0, 4096)
    delta /= np.linalg.norm(delta)
    most = encoding.MOST_DRAWS
    for unfair, draws in ((0, 1), (3, 4), (most, most + 1), (10**9, most + 6)):
        rng = Up(unfair)
        codes = encoding.encode({"all": delta}, by, rng)
        assert encoding.is_within(encoding.norm(codes, by), by)
        # a randomness that never turns fair: what is shortened six times no longer reaches 3 / 64
        assert unfair - rng.left <= draws


@settings(max_examples=20, deadline=None)
@given(BITS, st.integers(0, 99), COMPRESSED)
def test_rounding_is_right_on_average_but_for_what_the_range_cuts_off(bits, seed, compression):
    """The mean of 200 draws is within 5 deviations of the cut value; the deviation of one draw is
    at most half a step.
    """
    by, draws = Encoding(50, bits, 1.0, seed, compression), 200
    exact = vector(seed, 50, 0.5)
    rotated = quantize.rotate(exact[encoding._places(50, by.stride)], seed)
    kept = rotated[: 4096 // compression] * math.sqrt(compression)
    cut = np.clip(kept / max(1.0, np.linalg.norm(kept)), -by.half, by.half)
    rng = np.random.default_rng(seed)
    total = sum(encoding.encode({"all": exact}, by, rng).astype(np.int64) for _ in range(draws))
    error = total * (by.step / draws) - by.half - cut
    assert np.abs(error).max() <= 5 * by.step / 2 / math.sqrt(draws) + 2e-6 * by.half


@settings(max_examples=40)
@given(
    BITS, st.integers(1, 6), st.sampled_from([1, 50, 4097, 9000]), st.integers(0, 99), COMPRESSED
)
def test_a_sum_of_codes_stands_for_the_mean_of_what_the_codes_stand_for(
    bits, count, size, seed, compression
):
    by = Encoding(size, bits, 1.0, seed, compression)
    each = [encoded(vector(seed + n, size), by, n) for n in range(count)]
    total = sum(codes.astype(np.int64) for codes in each)
    alone = [encoding.mean(codes, 1, by) for codes in each]
    np.testing.assert_allclose(encoding.mean(total, count, by), np.mean(alone, axis=0), atol=1e-9)
    assert encoding.norm_of_sum(total, count, by) <= max(
        encoding.norm(codes, by) for codes in each
    ) * (1 + 1e-9)


def test_the_mean_of_updates_is_near_the_mean_of_the_deltas():
    by = Encoding(9000, 8, 1.0, 3)
    deltas = [vector(number, 9000, 0.5) for number in range(20)]
    total = sum(encoded(each, by, number).astype(np.int64) for number, each in enumerate(deltas))
    mean = np.mean(deltas, axis=0)
    # twenty roundings of at most a quarter step squared a value
    allowed = by.step / 2 * math.sqrt(by.values / 20)
    assert np.linalg.norm(encoding.mean(total, 20, by) - mean) <= allowed * 1.1


@given(st.integers(0, 999), st.sampled_from([1, 4, 8, 16]))
@settings(max_examples=10)
def test_device_and_server_work_the_norm_out_to_the_same_bit(seed, bits):
    by = Encoding(50, bits, 0.3, 0)
    kind = np.uint8 if bits <= 8 else np.uint16
    codes = np.random.default_rng(seed).integers(0, 2**bits, 4096).astype(kind)
    exact = sum((2 * code - by.largest) ** 2 for code in codes.tolist())
    assert encoding.norm(codes, by) == math.sqrt(exact) * (by.step / 2)
    assert encoding.norm(codes[::-1], by) == encoding.norm(codes, by)


@pytest.mark.parametrize("bits", [8, 4])
def test_what_the_range_cuts_off_of_a_spike_in_each_block_is_nothing_and_of_one_alone_is_most(bits):
    """A spike a block rotates to one size everywhere, a third of the range; a lone one is all in
    one block of a hundred, and ten times as large.
    """
    dimension = 100 * quantize.BLOCK
    by = Encoding(dimension, bits, 1.0, 1)
    a_block = np.zeros(dimension, np.float32)
    # places of the permuted vector, one a block
    a_block[encoding._places(dimension, by.stride)[:: quantize.BLOCK]] = 0.1
    draws = 10
    mean = [
        encoding.mean(
            sum(encoded(each, by, draw).astype(np.int64) for draw in range(draws)), draws, by
        )
        for each in (a_block, spike(dimension))
    ]
    assert mean[0] @ a_block == pytest.approx(1, abs=0.02)
    # 1 / 64 each in its block, where the range ends at 3 / 640
    assert mean[1] @ spike(dimension) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("compression", [2, 4, 8, 64])
def test_of_a_compressed_delta_comes_back_its_part_in_one_space_for_all(compression):
    """The first values of each rotated block, and nothing of the others."""
    by = Encoding(3 * quantize.BLOCK, 16, 1.0, 7, compression)
    delta = vector(1, by.dimension, 0.5)
    back = encoding.mean(encoded(delta, by), 1, by)
    places = encoding._places(by.dimension, by.stride)
    was, came = (quantize.rotate(each[places], 7).reshape(3, -1) for each in (delta, back))
    part = quantize.BLOCK // compression
    np.testing.assert_allclose(came[:, :part], was[:, :part], atol=by.step)
    np.testing.assert_allclose(came[:, part:], 0, atol=1e-6)
    # a part of a random direction: the square of its norm is that share, give or take
    assert np.linalg.norm(back) ** 2 == pytest.approx(0.25 / compression, rel=0.3)


def test_a_delta_whose_kept_part_is_longer_than_the_whole_is_clipped_again():
    """All of it lies in the part that travels: stretched it would be twice the clipping norm."""
    by = Encoding(quantize.BLOCK, 8, 1.0, 0, 4)
    rotated = np.zeros(quantize.BLOCK, np.float32)
    rotated[:1024] = 1 / 32  # of norm 1
    delta = np.empty(quantize.BLOCK, np.float32)
    delta[encoding._places(by.dimension, by.stride)] = quantize.unrotate(rotated, 0, 4096)
    codes = encoded(delta, by)
    assert encoding.norm(codes, by) == pytest.approx(1.0, abs=0.01)
    assert np.linalg.norm(encoding.mean(codes, 1, by)) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("compression", "first", "sha256"),
    [
        (
            1,
            [7, 8, 7, 7, 5, 5, 4, 8],
            "958c531915f2bacea06e097685ceb5d515644f020d832ab8988f2d5c61d92a58",
        ),
        (
            4,
            [7, 8, 7, 7, 5, 5, 4, 8],
            "72ef4fc4c7212ab2c25d9b7e42356deeb9f98b2c997b7cf8f668485e71872d50",
        ),
    ],
)
def test_codes_are_those_of_every_machine(compression, first, sha256):
    """Of a ramp over three blocks, in fours: what they were when the format was laid down."""
    by = Encoding(9000, 4, 1.0, 5, compression)
    codes = encoded((np.arange(9000) - 4500).astype(np.float32) / 1000, by, seed=3)
    assert codes[:8].tolist() == first
    assert weights.digest(codes.tobytes()) == sha256


def test_a_compression_that_cuts_no_block_into_whole_parts_is_refused():
    with pytest.raises(ValueError, match=r"compression: expected one of 1, 2, 4, .*, found 3"):
        Encoding(4096, 4, 1.0, 0, 3)


def test_a_value_that_is_not_finite_and_another_number_of_values_are_refused():
    by = Encoding(3, 8, 1.0, 0)
    with pytest.raises(ValueError, match="not finite"):
        encoded(np.array([1, np.nan, 0], np.float32), by)
    with pytest.raises(ValueError, match="expected 3 values, found 4"):
        encoded(np.zeros(4, np.float32), by)


def test_encoding_takes_little_more_memory_than_its_values():
    by = Encoding(40 * quantize.BLOCK, 4, 1.0, 0)
    values = vector(1, by.dimension)
    encoded(values, by)  # places are kept
    tracemalloc.start()
    encoded(values, by)
    assert tracemalloc.get_traced_memory()[1] < 24 * by.values + 4_000_000
    tracemalloc.stop()
