"""Sums: the running sum, its mean, and which updates may not enter."""

from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import quantize
from device_runtime.causes import Cause
from device_runtime.errors import UpdateError
from device_runtime.update import Header, Update, decode, dequantize, encode
from device_runtime.wire import Plan
from server import sums
from server.mechanism import staleness_share
from server.sums import Checked, Sum, Weighted
from tests.toy_server import DIMENSION, PLAN, SHAPES, delta

SEED = 11
BLOCK = quantize.BLOCK


def update_of(vector: np.ndarray, examples: int = 1, bits: int = 8, seed: int = 0) -> Update:
    rng = np.random.default_rng(seed)
    return decode(encode(vector.astype(np.float32), Header(1, SEED, SHAPES, bits, examples), rng))


def summed(updates: list[Update], max_weight: int = 100) -> Sum:
    """One update after the other, each by its examples."""
    return reduce(
        lambda sum, update: sums.add_all(
            sum, [Weighted(update, min(update.examples, max_weight), 1.0)]
        ),
        updates,
        sums.empty(DIMENSION),
    )


def checked(update: Update, plan: Plan = PLAN) -> Cause | None:
    """Why it is refused."""
    result = sums.check(update, 1, SEED, SHAPES, update.dimension, plan)
    return None if isinstance(result, Checked) else result


def alone(update: Update, plan: Plan, weight: int = 1) -> np.ndarray:
    """What a checked update alone adds to the sum, float64 [padded dimension]."""
    counts = sums.check(update, 1, SEED, SHAPES, update.dimension, plan)
    weighted = Weighted(counts.update, weight, counts.scale)
    return sums.add_all(sums.empty(update.dimension), [weighted]).total / sums.SCALE


def test_the_examples_of_an_update_travel_in_its_header():
    assert update_of(delta(1), examples=123).examples == 123
    with pytest.raises(ValueError, match="examples"):
        update_of(delta(1), examples=0)
    sent = encode(delta(1), Header(1, SEED, SHAPES, 8, 1), np.random.default_rng(0))
    assert sent[12:16] == b"\x01\0\0\0"
    with pytest.raises(UpdateError, match="at least 1 example"):
        decode(sent[:12] + b"\0\0\0\0" + sent[16:])


def test_an_update_counts_by_its_examples():
    # every rotated value is 1
    ones = Update(1, SEED, SHAPES, 8, 3, DIMENSION, one(1.0), one(0.0), np.zeros(BLOCK, np.uint16))
    fives = replace(ones, low=one(5.0), examples=1)
    sum = summed([ones, fives])
    assert (sum.weight, sum.count) == (4, 2)
    assert (sum.total == (3 * 1 + 1 * 5) * 2**36).all()
    np.testing.assert_allclose(
        sums.mean(sum, SEED, DIMENSION),
        quantize.unrotate(np.full(BLOCK, 2.0), SEED, DIMENSION),
    )


def test_an_update_counts_by_no_more_than_the_largest_weight():
    assert summed([update_of(delta(1), examples=2**32 - 1)], max_weight=40).weight == 40


def test_the_mean_of_updates_is_the_mean_of_the_deltas_within_the_rounding_step():
    deltas = [delta(number) for number in range(20)]
    updates = [update_of(vector, bits=16, seed=number) for number, vector in enumerate(deltas)]
    mean = sums.mean(summed(updates), SEED, DIMENSION)
    # each rotated value is within one step, so the vector is within step * sqrt(BLOCK)
    assert np.linalg.norm(mean - np.mean(deltas, axis=0)) <= max(
        float(update.step[0]) for update in updates
    ) * np.sqrt(BLOCK)


@settings(max_examples=25)
@given(st.permutations(range(6)), st.integers(1, 16))
def test_the_order_of_arrival_cannot_change_a_bit(order, bits):
    updates = [
        update_of(delta(number), examples=number + 1, bits=bits, seed=number) for number in range(6)
    ]
    first, second = summed(updates), summed([updates[i] for i in order])
    assert first.total.tobytes() == second.total.tobytes()
    assert (
        sums.mean(first, SEED, DIMENSION).tobytes() == sums.mean(second, SEED, DIMENSION).tobytes()
    )


def test_adding_leaves_the_sum_it_started_from_alone():
    before = summed([update_of(delta(1))])
    kept = before.total.copy()
    sums.add_all(before, [Weighted(update_of(delta(2)), 1, 1.0)])
    assert (before.total == kept).all()


def test_the_largest_sum_that_is_allowed_does_not_overflow():
    most, limit = sums.capacity(PLAN), PLAN.clipping_norm
    spike = Update(
        1,
        SEED,
        SHAPES,
        8,
        most,
        DIMENSION,
        np.array([-limit]),
        np.array([0.0]),
        np.zeros(BLOCK, np.uint16),
    )
    assert (summed([spike], max_weight=most).total < 0).all()
    assert (most + 2) * (limit * 2**36 + 2**15 + 2) >= 2**63  # and the bound is tight


@given(st.integers(0, 1000), st.integers(1, 16), st.floats(0.001, 1.0), st.booleans())
@settings(max_examples=50)
def test_an_honest_update_is_never_refused(seed, bits, norm, spiky):
    vector = np.eye(DIMENSION)[seed % DIMENSION] if spiky else delta(seed)
    clipped = quantize.clip(
        {"all": (vector * (norm / np.linalg.norm(vector))).astype(np.float32)}, PLAN.clipping_norm
    )["all"]
    plan = replace(PLAN, bits=bits)
    assert checked(update_of(clipped, bits=bits, seed=seed), plan) is None


def test_an_update_of_another_round_rotation_network_or_width_is_named():
    good = update_of(delta(1))
    assert checked(good) is None
    assert checked(replace(good, round=2)) is Cause.WRONG_ROUND
    assert checked(replace(good, seed=SEED + 1)) is Cause.WRONG_ROUND
    assert checked(replace(good, shapes="0" * 64)) is Cause.WRONG_SHAPES
    larger = replace(good, dimension=DIMENSION + 1)
    assert sums.check(larger, 1, SEED, SHAPES, DIMENSION, PLAN) is Cause.WRONG_SHAPES
    assert checked(update_of(delta(1), bits=4)) is Cause.NOT_AN_UPDATE


def test_an_update_beyond_the_clipping_norm_is_refused():
    assert checked(update_of(delta(1) * 1.9)) is None  # norm 0.95 of 1
    assert checked(update_of(delta(1) * 2.5)) is Cause.NORM_TOO_LARGE


def one(value: float) -> np.ndarray:
    return np.array([value], np.float32)


def test_many_blocks_of_the_largest_step_do_not_buy_a_larger_norm():
    dimension, plan = 4 * BLOCK, replace(PLAN, bits=1)
    # each alone would pass
    step = np.full(4, sums.largest_steps(plan, dimension) * 0.9, np.float32)
    spread = Update(
        1, SEED, SHAPES, 1, 1, dimension, -step / 2, step, np.ones(dimension, np.uint16)
    )
    assert checked(spread, plan) is Cause.NORM_TOO_LARGE
    first = np.array([1, 0, 0, 0], np.float32)
    assert checked(replace(spread, low=spread.low * first, step=step * first), plan) is None


def test_a_coarse_scale_does_not_buy_a_larger_norm():
    # one step excuses an error of 64,000
    coarse = replace(update_of(delta(1)), low=one(-500.0), step=one(1000.0))
    assert checked(coarse) is Cause.NORM_TOO_LARGE
    assert checked(replace(coarse, low=one(3e38), step=one(3e38))) is Cause.NORM_TOO_LARGE


@given(
    st.integers(1, 16),
    st.integers(0, 99),
    st.floats(0.001, 1.0),
    st.integers(1, 10**6),
    st.sampled_from([DIMENSION, 3 * BLOCK + 1]),
)
@settings(max_examples=60)
def test_no_honest_update_moves_the_sum_by_more_than_its_weight_times_the_clip(
    bits, seed, norm, weight, dimension
):
    vector = delta(seed, dimension) * 2  # its norm is the clip, before it is rounded
    update = update_of((vector * norm).astype(np.float32), bits=bits, seed=seed)
    moved = alone(update, replace(PLAN, bits=bits), weight)
    assert np.linalg.norm(moved) <= weight * PLAN.clipping_norm * (1 + 1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_largest_update_that_is_let_in_moves_the_sum_by_no_more_than_the_clip(bits):
    dimension, plan = 4 * BLOCK, replace(PLAN, bits=bits)
    # as many blocks of as large a step as pass, all values at one end of it
    step = np.full(4, sums.largest_steps(plan, dimension) / 2 * 0.99, np.float32)
    codes = np.where(np.arange(dimension) % 2, 2**bits - 1, 0).astype(np.uint8)
    low = -step * (2**bits - 1) / 2
    update = Update(1, SEED, SHAPES, bits, 1, dimension, low, step, codes)
    while checked(update, plan) is Cause.NORM_TOO_LARGE:
        update = replace(
            update, low=update.low * np.float32(0.99), step=update.step * np.float32(0.99)
        )
    decoded = np.linalg.norm(dequantize(update))
    assert decoded > plan.clipping_norm  # the excuse of rounding
    moved = alone(update, plan)
    assert np.linalg.norm(moved) == pytest.approx(plan.clipping_norm, rel=1e-6)
    # scaled, not cut: its direction stays
    assert moved / plan.clipping_norm == pytest.approx(dequantize(update) / decoded, abs=1e-6)


def test_an_update_within_the_clip_is_added_as_it_is():
    update = update_of(delta(1), bits=8)  # norm 0.5 of 1
    assert alone(update, PLAN) == pytest.approx(dequantize(update), abs=1e-8)


@given(st.integers(1, 16), st.integers(0, 99))
@settings(max_examples=30)
def test_the_norm_an_update_is_scaled_by_is_that_of_its_decoded_values(bits, seed):
    vector = delta(seed, 2 * BLOCK) * 2
    update = update_of(vector, bits=bits, seed=seed)
    scale = sums.check(update, 1, SEED, SHAPES, update.dimension, replace(PLAN, bits=bits)).scale
    assert scale == pytest.approx(min(1.0, 1 / np.linalg.norm(dequantize(update))), rel=1e-12)


def test_an_update_counts_by_no_more_examples_than_the_plan_has_rows():
    boast = update_of(delta(1), examples=2**32 - 1)
    counts = sums.check(boast, 1, SEED, SHAPES, DIMENSION, replace(PLAN, max_rows=64))
    assert counts.examples == 64


def test_a_late_update_moves_the_mean_by_a_share_and_counts_fully_in_what_it_is_divided_by():
    assert [staleness_share(behind) for behind in (0, 3, 8)] == [
        1.0,
        0.5,
        pytest.approx(1 / 3),
    ]
    assert staleness_share(3, exponent=0.0) == 1.0
    update = update_of(delta(1), bits=16)
    fresh, late = (
        sums.add_all(sums.empty(DIMENSION), [(update, 4, share)]) for share in (1.0, 0.5)
    )
    assert (fresh.weight, late.weight) == (4, 4)
    np.testing.assert_allclose(
        sums.mean(late, SEED, DIMENSION),
        0.5 * sums.mean(fresh, SEED, DIMENSION),
        atol=1e-6,
    )


@given(st.integers(1, 16), st.integers(1, 1000), st.integers(0, 99))
@settings(max_examples=30)
def test_the_sum_is_the_weighted_value_within_half_a_unit_and_half_a_unit_a_code(
    bits, weight, seed
):
    update = update_of(delta(seed), bits=bits, seed=seed)
    total = sums.add_all(sums.empty(DIMENSION), [(update, weight, 1.0)]).total
    exact = dequantize(update) * weight * 2.0**36
    assert (np.abs(total - exact) <= 0.5 + 0.5 * update.codes + 1e-15 * np.abs(exact)).all()


# from ten million on, one update alone is beyond what float64 holds exactly
@pytest.mark.parametrize("weight", [1, 10**6, 10**7, 3 * 10**7])
def test_how_updates_are_grouped_cannot_change_a_bit_however_much_they_weigh(weight):
    updates = [(update_of(delta(number), seed=number), weight + number, 1.0) for number in range(3)]
    assert sum(each for _, each, _ in updates) <= sums.capacity(PLAN)
    together = sums.add_all(sums.empty(DIMENSION), updates)
    alone = reduce(
        lambda total, update: sums.add_all(total, [update]),
        updates,
        sums.empty(DIMENSION),
    )
    assert together.total.tobytes() == alone.total.tobytes()


def test_what_several_replicas_have_counted_adds_up_to_what_one_would_have():
    updates = [(update_of(delta(number), seed=number), number + 1, 1.0) for number in range(5)]
    one = sums.add_all(sums.empty(DIMENSION), updates)
    parts = [
        sums.add_all(sums.empty(DIMENSION), part)
        for part in (updates[3:], updates[:2], updates[2:3])
    ]
    together = sums.total(parts)
    assert (together.total.tobytes(), together.weight, together.count) == (
        one.total.tobytes(),
        one.weight,
        one.count,
    )
