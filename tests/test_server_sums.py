"""Sums: the running sum in whole numbers, and what it takes on disk."""

from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import scores
from device_runtime.errors import RunError
from server import sums
from server.sums import Sum, Weighted


def codes(number: int, largest: int = 255, values: int = 50) -> np.ndarray:
    kind = np.uint8 if largest < 256 else np.uint16
    return np.random.default_rng(number).integers(0, largest + 1, values).astype(kind)


def summed(updates: list[Weighted], largest: int = 255, values: int = 50) -> Sum:
    """One update after the other."""
    return reduce(
        lambda sum, update: sums.add_all(sum, [update], largest), updates, sums.empty(values)
    )


def test_codes_are_added_as_often_as_their_update_counts():
    first, second = np.array([1, 2, 3], np.uint8), np.array([10, 0, 255], np.uint8)
    sum = sums.add_all(sums.empty(3), [Weighted(first), Weighted(second, 64)], 255)
    assert (sum.count, sum.weight) == (2, 65)
    assert sum.total.tolist() == [1 + 640, 2, 3 + 64 * 255]


@settings(max_examples=25)
@given(
    st.permutations(range(6)),
    st.sampled_from([1, 15, 255, 65_535]),
    st.lists(st.integers(1, 64), min_size=6, max_size=6),
)
def test_the_order_of_arrival_cannot_change_a_bit(order, largest, weights):
    updates = [Weighted(codes(number, largest), weights[number]) for number in range(6)]
    first = summed(updates, largest)
    second = sums.add_all(sums.empty(50), [updates[number] for number in order], largest)
    assert bytes(first.to_bytes()) == bytes(second.to_bytes())


def test_adding_leaves_the_sum_it_started_from_alone():
    before = summed([Weighted(codes(1))])
    kept = before.total.copy()
    sums.add_all(before, [Weighted(codes(2))], 255)
    assert (before.total == kept).all()


@pytest.mark.parametrize(("largest", "size"), [(255, 257), (15, 4369), (65_535, 1)])
def test_a_sum_takes_two_bytes_a_number_until_they_could_overflow_and_then_four(largest, size):
    full = np.full(50, largest, np.uint8 if largest < 256 else np.uint16)
    last = sums.add_all(sums.empty(50), [Weighted(full, size)], largest)
    assert (last.total.dtype, set(last.total.tolist())) == (np.uint16, {65_535})
    more = sums.add_all(last, [Weighted(full)], largest)
    assert (more.total.dtype, set(more.total.tolist())) == (np.uint32, {65_535 + largest})


def test_a_sum_of_more_than_32_bits_goes_on_in_64_and_no_sum_wraps():
    full = np.full(50, 65_535, np.uint16)
    sum = sums.add_all(sums.empty(50), [Weighted(full, 65_537)] * 2, 65_535)
    assert (sum.total.dtype, set(sum.total.tolist())) == (np.int64, {2 * (2**32 - 1)})
    with pytest.raises(ValueError, match="no room"):
        sums.add_all(sum, [Weighted(full, 2**48)], 65_535)


@given(st.sampled_from([15, 255, 65_535]), st.integers(1, 10**6), st.integers(0, 99))
def test_what_is_written_is_read_as_it_was(largest, weight, seed):
    sum = sums.add_all(sums.empty(50), [Weighted(codes(seed, largest), weight)], largest)
    again = Sum.from_bytes(bytes(sum.to_bytes()))
    assert (again.count, again.weight, again.total.dtype) == (1, weight, sum.total.dtype)
    assert (again.total == sum.total).all()


def test_scores_are_written_with_their_sign_and_those_of_the_version_before_are_read():
    total = scores.empty() - 3
    again = Sum.from_bytes(bytes(Sum(total, count=2).to_bytes()))
    assert (again.count, again.total.tolist()) == (2, total.tolist())
    before = np.concatenate([np.array([2, 0], "<i8"), total.astype("<i8")]).tobytes()
    assert Sum.from_bytes(before).total.tolist() == total.tolist()
    assert Sum.from_bytes(before).count == 2


def test_a_sum_of_a_later_version_is_refused_by_name():
    later = bytearray(sums.empty(50).to_bytes())
    later[6] = 3
    with pytest.raises(RunError, match="expected numbers of kind 0 to 2, found 3"):
        Sum.from_bytes(bytes(later))


def test_what_several_replicas_have_counted_adds_up_to_what_one_would_have():
    updates = [Weighted(codes(number), number + 1) for number in range(5)]
    one = summed(updates)
    parts = [summed(part) for part in (updates[3:], updates[:2], updates[2:3])]
    assert bytes(sums.total(parts, 255).to_bytes()) == bytes(one.to_bytes())


def test_parts_that_would_overflow_together_are_added_in_wider_numbers():
    full = summed([Weighted(np.full(50, 255, np.uint8), 257)])
    both = sums.total([full, full], 255)
    assert (both.total.dtype, set(both.total.tolist())) == (np.uint32, {2 * 65_535})


@given(
    st.sampled_from([1, 15, 255, 65_535]),
    st.lists(st.integers(1, 600), min_size=2, max_size=12),
)
@settings(max_examples=25)
def test_many_updates_at_once_add_up_to_what_each_adds(largest, weights):
    updates = [Weighted(codes(number, largest), times) for number, times in enumerate(weights)]
    before = sums.add_all(sums.empty(50), [Weighted(codes(99, largest), 300)], largest)
    together = sums.add_all(before, updates, largest)
    expected = before.total.astype(np.int64)
    for update, times in updates:
        expected += update.astype(np.int64) * times
    assert together.total.tolist() == expected.tolist()
    assert (together.count, together.weight) == (1 + len(weights), 300 + sum(weights))
