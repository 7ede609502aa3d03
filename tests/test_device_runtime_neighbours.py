"""Neighbours: degree and threshold out of the chances that something goes wrong."""

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from device_runtime.neighbours import Graph, Impossible, Losses, around, find

# adversarial, drop-out, semi-malicious -> devices: degree, threshold
PUBLISHED = {
    (0.05, 0.05, False): {
        10: (2, 2),
        100: (12, 6),
        1_000: (30, 17),
        10_000: (34, 20),
        100_000: (36, 21),
        1_000_000: (38, 22),
    },
    (0.05, 0.05, True): {
        100: (16, 11),
        1_000: (52, 37),
        10_000: (62, 44),
        100_000: (68, 48),
        1_000_000: (74, 52),
    },
    (0.05, 0.33, False): {
        100: (28, 6),
        1_000: (72, 24),
        10_000: (86, 29),
        100_000: (96, 32),
        1_000_000: (102, 34),
    },
    (0.05, 0.33, True): {
        100: (72, 39),
        1_000: (398, 223),
        10_000: (746, 420),
        100_000: (882, 496),
        1_000_000: (970, 545),
    },
    (0.33, 0.33, False): {
        10: (8, 4),
        100: (68, 34),
        1_000: (286, 150),
        10_000: (422, 221),
        100_000: (480, 251),
        1_000_000: (518, 270),
    },
    (0.3, 0.3, True): {
        100: (92, 62),
        1_000: (872, 584),
        10_000: (4_822, 3_230),
        100_000: (9_388, 6_286),
        1_000_000: (11_136, 7_454),
    },
    # what a task has that says nothing else
    (0.05, 0.1, True): {30: (8, 5), 50: (14, 9), 100: (26, 16), 300: (52, 34), 1_000: (78, 52)},
}
ROWS = [
    (Losses(*losses), devices, numbers)
    for losses, row in PUBLISHED.items()
    for devices, numbers in row.items()
]


@pytest.mark.parametrize(("losses", "devices", "numbers"), ROWS)
def test_degree_and_threshold_are_those_that_were_published(losses, devices, numbers):
    graph = find(devices, losses)
    assert isinstance(graph, Graph)
    assert (graph.degree, graph.threshold) == numbers
    assert graph.exposure < 2.0**-40
    assert graph.failure < 2.0**-20


def exactly(devices: int, marked: int, degree: int, more_than: int) -> float:
    """The chance that of `degree` devices out of all more than so many are marked."""
    ways = sum(
        math.comb(marked, each) * math.comb(devices - marked, degree - each)
        for each in range(more_than + 1, degree + 1)
    )
    return ways / math.comb(devices, degree)


def test_the_chances_are_those_of_drawing_without_putting_back():
    """28 neighbours of 100, threshold 6: exposed beside 6 of 5 adversaries, which cannot be, or if
    two runs of 14 are lost whole; stuck if 23 of them are among the 33 that vanish.
    """
    graph = find(100, Losses(0.05, 0.33, False))
    apart = 100 * 71 / 2 * math.comb(38, 28) / math.comb(100, 28)
    assert graph.exposure == pytest.approx(apart, rel=1e-9)
    assert graph.failure == pytest.approx(100 * exactly(100, 33, 28, 22), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    devices=st.integers(10, 400),
    adversarial=st.sampled_from([0.0, 0.02, 0.05, 0.1, 0.2, 0.33]),
    drop_out=st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.3]),
    semi_malicious=st.booleans(),
)
def test_no_smaller_degree_would_do_and_this_one_does(
    devices, adversarial, drop_out, semi_malicious
):
    losses = Losses(adversarial, drop_out, semi_malicious)
    assume(adversarial + (2 if semi_malicious else 1) * drop_out <= 0.9)
    graph = find(devices, losses)
    for degree in range(2, graph.degree if isinstance(graph, Graph) else devices - 1, 2):
        assert not does(devices, degree, losses)
    if isinstance(graph, Graph):
        assert does(devices, graph.degree, losses) == graph.threshold


def does(devices: int, degree: int, losses: Losses) -> int:
    """The smallest threshold that keeps both promises at a degree, in whole numbers; 0: none."""
    bad = int(losses.adversarial * devices + 1e-9)
    lost = int(losses.drop_out * devices + 1e-9)
    pairs = devices * (devices - degree - 1) / 2
    apart = math.comb(bad + lost, degree) / math.comb(devices, degree)
    if pairs * apart >= 2**-41:
        return 0
    for threshold in range(2, degree + 1):
        borne = 2 * threshold - degree - 1 if losses.semi_malicious else threshold - 1
        is_hidden = borne >= 0 and devices * exactly(devices, bad, degree, borne) <= 2**-41
        fails = devices * exactly(devices, lost, degree, degree - threshold)
        if is_hidden:
            return threshold if fails < 2**-20 else 0
    return 0


@pytest.mark.parametrize(
    ("devices", "losses", "most", "reason"),
    [
        (1_000, Losses(0.5, 0.41, False), None, Impossible.TOO_MANY_LOST),
        (1_000, Losses(0.3, 0.31, True), None, Impossible.TOO_MANY_LOST),
        (5, Losses(0.05, 0.33, True), None, Impossible.TOO_FEW_DEVICES),
        (1, Losses(0.0, 0.0, False), None, Impossible.TOO_FEW_DEVICES),
        (10_000, Losses(0.3, 0.3, True), 2_048, Impossible.TOO_MANY_NEIGHBOURS),
    ],
)
def test_what_cannot_be_done_has_a_name(devices, losses, most, reason):
    assert find(devices, losses, most) is reason


def test_nine_tenths_of_all_may_be_lost_and_no_more():
    assert isinstance(find(1_000, Losses(0.45, 0.45, False)), Graph)
    assert find(1_000, Losses(0.46, 0.45, False)) is Impossible.TOO_MANY_LOST


def test_neighbours_are_those_who_stand_next_to_either_side():
    assert around(1, 8, 4) == (0, 2, 3, 7)


@given(devices=st.integers(4, 60), data=st.data())
def test_whoever_is_a_neighbour_has_one(devices, data):
    degree = 2 * data.draw(st.integers(1, (devices - 2) // 2))
    beside = {place: set(around(place, devices, degree)) for place in range(devices)}
    assert {len(each) for each in beside.values()} == {degree}
    assert all(place in beside[each] for place in beside for each in beside[place])
    assert all(b in beside[a] for a, b in pairwise(range(devices)))
