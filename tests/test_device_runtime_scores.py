"""Scores: the vector that carries them, and what one device can do to what is read out of it."""

import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import config, masking, packing, scores
from device_runtime.causes import Cause
from device_runtime.scores import BINS, LENGTH, SUMS, add, empty, from_vector, quartiles, to_vector
from device_runtime.wire import MOST_WORDS, Scores
from server.judging import scores_of


@st.composite
def reported(draw: st.DrawFn) -> Scores:
    """Scores of one device that a server counts."""
    targets = draw(st.integers(1, MOST_WORDS))
    known = draw(st.integers(0, targets))
    top3 = draw(st.integers(0, known))
    loss = draw(st.floats(0, 100.0 * known))
    return Scores(targets, draw(st.integers(0, top3)), top3, known, loss)


def mean(vector: scores.Vector) -> float:
    sums = from_vector(vector).scores
    return sums.top1 / sums.targets


def median(vector: scores.Vector) -> float:
    return quartiles(from_vector(vector).spread)[1]


def test_a_vector_holds_the_sums_and_then_the_devices_by_their_share_of_right_words():
    vector = to_vector(Scores(40, 5, 10, 30, 1.5))  # 12.5 % are right: the third bin
    assert vector.dtype == np.int64
    assert vector.tolist() == [40, 5, 10, 30, 3 * 2**29, 0, 0, 1, *[0] * 17]
    assert (len(SUMS), BINS, LENGTH) == (5, 20, 25)


@pytest.mark.parametrize(
    ("right", "of", "bin"), [(0, 7, 0), (1, 20, 1), (19, 400, 0), (39, 40, 19), (400, 400, 19)]
)
def test_a_bin_holds_its_lower_end_and_the_last_one_both(right, of, bin):
    assert from_vector(to_vector(Scores(of, right, right, of, 0.0))).spread.index(1) == bin


@given(st.lists(reported(), max_size=30), st.randoms())
def test_no_order_and_no_grouping_of_devices_changes_what_they_add_up_to(devices, random):
    vectors = [to_vector(each) for each in devices]
    total = from_vector(add(vectors))
    random.shuffle(vectors)
    split = random.randrange(len(vectors) + 1)
    assert from_vector(add([add(vectors[:split]), add(vectors[split:])])) == total
    assert sum(total.spread) == len(devices)
    assert astuple(total.scores)[:4] == tuple(
        sum(astuple(each)[column] for each in devices) for column in range(4)
    )
    assert total.scores.loss == pytest.approx(sum(each.loss for each in devices), abs=1e-6)


def test_the_quartiles_are_read_out_of_the_spread_as_if_a_bin_were_even():
    # four devices from 10 to 15 %, four from 20 to 25 %
    assert quartiles([0, 0, 4, 0, 4, *[0] * 15]) == pytest.approx((0.125, 0.15, 0.225))
    assert all(map(math.isnan, quartiles([0] * BINS)))


@given(st.lists(reported(), min_size=1, max_size=50))
def test_the_quartiles_of_the_spread_are_those_of_the_devices_to_the_width_of_a_bin(devices):
    shares = sorted(each.top1 / each.targets for each in devices)
    read = quartiles(from_vector(add(map(to_vector, devices))).spread)
    for quartile, share in zip(read, (0.25, 0.5, 0.75), strict=True):
        exact = shares[max(0, math.ceil(share * len(shares)) - 1)]
        assert abs(quartile - exact) <= 1 / BINS + 1e-9


@given(st.lists(reported(), min_size=19, max_size=19), reported())
def test_one_device_of_twenty_moves_the_mean_by_no_more_than_its_share_of_the_words(honest, lie):
    before = add(map(to_vector, honest))
    after = add([before, to_vector(lie)])
    words = from_vector(after).scores.targets
    assert abs(mean(after) - mean(before)) <= lie.targets / words + 1e-9
    assert lie.targets <= MOST_WORDS


def test_one_false_score_of_twenty_moves_the_median_by_less_than_a_bin_and_the_mean_by_its_cap():
    # 19 devices have 300 words each, 46 to 64 of them right: 15.3 to 21.3 %
    honest = [Scores(300, 46 + number, 100, 280, 1200.0) for number in range(19)]
    lie = Scores(MOST_WORDS, MOST_WORDS, MOST_WORDS, MOST_WORDS, 0.0)
    before, after = add(map(to_vector, honest)), add(map(to_vector, [*honest, lie]))
    assert mean(before) == pytest.approx(0.183, abs=1e-3)
    assert mean(after) - mean(before) < MOST_WORDS / (19 * 300 + MOST_WORDS)
    assert abs(median(after) - median(before)) < 1 / BINS


@pytest.mark.parametrize("targets", [-1, 0, MOST_WORDS + 1, 1000 * MOST_WORDS])
def test_no_device_reports_no_word_or_more_than_its_cap(targets):
    body = config.to_json(Scores(targets, 0, 0, 0, 0.0))
    assert scores_of(body) is Cause.NOT_SCORES


@given(st.lists(reported(), min_size=1, max_size=30), st.binary(min_size=32, max_size=32))
def test_masked_vectors_add_up_to_the_sum_and_devices_that_are_honest_reach_it(devices, seed):
    by = scores.layout(len(devices))
    assert by.bytes <= 8 * LENGTH
    total = np.zeros(by.words, np.uint64)
    for vector in map(to_vector, devices):
        total = packing.add(total, masking.masked(vector, seed, by), by)
        total = packing.subtract(total, masking.mask(seed, by), by)
    numbers = packing.unpack(total, by)
    assert numbers.tolist() == add(map(to_vector, devices)).tolist()
    assert scores.beyond_reach(numbers, len(devices)) == ""


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (0, 801, "the words are 801, and 2 devices reach 800"),
        (0, 1, "the words are 1, and 2 devices"),
        (1, 41, "of 80 words 60 are known, 40 in the strip and 41 at its head"),
        (3, 81, "of 80 words 81 are known"),
        (4, 60 * 100 * 2**30 + 1, "60 words cannot have a loss of 6e+03 nats"),
        (7, 3, "the spread holds 4 devices, and 2 have reported"),
        (24, 2**64 - 2, "devices, and 2 have reported"),
    ],
)
def test_a_sum_that_no_honest_devices_make_is_told_by_what_is_wrong_with_it(place, value, says):
    vectors = [Scores(40, 5, 20, 30, 1.5), Scores(40, 20, 20, 30, 1.5)]
    total = add(map(to_vector, vectors)).astype(np.uint64)
    assert scores.beyond_reach(total, 2) == ""
    total[place] = value
    assert says in scores.beyond_reach(total, 2)


def test_a_loss_that_no_word_can_have_counts_as_the_most_that_one_can():
    assert to_vector(Scores(2, 0, 0, 1, 1e9))[4] == 100 * 2**30


def test_an_empty_vector_is_of_nobody():
    assert from_vector(empty()).spread == (0,) * BINS
