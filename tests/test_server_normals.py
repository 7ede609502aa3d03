"""Normals are independent and normal, from the middle to tails that nobody waits for."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import normals

KEY = bytes(range(32))
MANY = 1_000_000


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    return normals.normals(MANY, KEY)


def cdf(x: np.ndarray) -> np.ndarray:
    """The standard normal's distribution function."""
    return np.array([math.erfc(-each / math.sqrt(2)) / 2 for each in x])


def test_mean_spread_skew_and_tails_are_those_of_normals(drawn):
    # each within four deviations of what so many independent normals give
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((drawn**power).mean() - moment) < 4 * math.sqrt(spread / MANY)


def test_a_hundred_bins_have_as_many_as_a_normal_puts_there(drawn):
    edges = np.linspace(-3, 3, 99)
    shares = np.diff(cdf(np.array([-40.0, *edges, 40.0])))
    counts = np.bincount(np.searchsorted(edges, drawn), minlength=100)
    chi_square = float(((counts - MANY * shares) ** 2 / (MANY * shares)).sum())
    assert abs(chi_square - 99) < 4 * math.sqrt(2 * 99)


def test_no_share_of_them_is_further_off_than_kolmogorov_and_smirnov_allow(drawn):
    part = np.sort(drawn[:50_000])
    distance = np.abs(np.arange(1, 50_001) / 50_000 - cdf(part)).max()
    assert distance * math.sqrt(50_000) < 1.95  # one in a thousand has more


def test_as_many_lie_far_out_as_should(drawn):
    for sigma in (2, 3, 4):
        expected = MANY * math.erfc(sigma / math.sqrt(2))
        assert abs((np.abs(drawn) > sigma).sum() - expected) < 4 * math.sqrt(expected)


def test_neighbours_pairs_and_halves_have_nothing_to_do_with_each_other(drawn):
    half = 16_384  # a pair's two lie so far apart
    for apart in (1, 2, half, 2 * half):
        together = float((drawn[:-apart] * drawn[apart:]).mean())
        assert abs(together) < 4 / math.sqrt(MANY)
    squares = drawn**2 - 1  # nor have how far out they are
    assert abs(float((squares[:-half] * squares[half:]).mean())) < 4 * 2 / math.sqrt(MANY)


def test_the_largest_is_beyond_nine_deviations_and_none_is_infinite():
    ends = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    radial, angular = (each.reshape(-1) for each in np.meshgrid(ends, ends))
    made = normals.box_muller(radial, angular)
    assert np.isfinite(made).all()
    assert made.max() == pytest.approx(math.sqrt(2 * 65 * math.log(2)))  # of 2^-65


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_a_pair_lies_where_its_two_numbers_say(radial, angular):
    x, y = normals.box_muller(np.array([radial], np.uint64), np.array([angular], np.uint64))
    # as likely to be further out as its number says
    assert math.exp(-(x * x + y * y) / 2) == pytest.approx((radial + 0.5) / 2**64)
    turned = math.atan2(y, x) / (2 * math.pi) % 1.0
    off = abs(turned - angular / 2**64) % 1.0
    assert x == y == 0 or min(off, 1 - off) < 1e-9


def test_so_many_values_lie_between_two_that_a_sum_of_millions_shows_none_of_them():
    # in float32 there were 2^24 a binade: a noise of a million values would show its own grid
    part = normals.normals(10_000, KEY)
    assert (part.astype(np.float32) != part).mean() > 0.999


@given(st.integers(0, 100_000), st.binary(min_size=32, max_size=32))
def test_a_key_gives_so_many_normals_and_the_same_again(values, key):
    made = normals.normals(values, key)
    assert made.dtype == np.float64 and len(made) == values
    assert np.array_equal(made, normals.normals(values, key))


def test_a_draw_takes_a_fresh_key_each_time():
    asked = []

    def random(size: int) -> bytes:
        asked.append(size)
        return len(asked).to_bytes(size, "little")

    draw = normals.source(5, random)
    first, second = draw(), draw()
    assert asked == [32, 32] and not set(first.tolist()) & set(second.tolist())


def test_a_key_gives_the_same_normals_on_every_machine():
    # zeros under a key of zeros are dc95c078a2408989 ad48a21492842087, as NIST says of AES-256: two
    # numbers, little-endian
    pair = normals.normals(2, bytes(32))
    radial, angular = 0x898940A278C095DC, 0x8720849214A248AD
    radius = math.sqrt(-2 * math.log((radial + 0.5) / 2**64))
    turn = 2 * math.pi * angular / 2**64
    assert pair.tolist() == pytest.approx([radius * math.cos(turn), radius * math.sin(turn)])
