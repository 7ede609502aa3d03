"""The mechanism of a task: the plain one, and that another can take its place."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import encoding, update, weights
from device_runtime.bundle import NO_PRIVACY
from device_runtime.causes import Cause
from device_runtime.encoding import Encoding
from device_runtime.terms import Aggregation
from server import dashboard, mechanism, operators, overview
from server.mechanism import Exposure, Mechanism, Spent, beyond_reach, plain, staleness_share
from server.metrics import Metrics
from server.rounds import Mode, Rules
from server.sums import Checked
from server.task import Task, TaskSettings, task_of, terms
from tests.toy_server import (
    DIMENSION,
    PLAN,
    READY,
    SHAPES,
    TOKENIZER,
    WEIGHTS,
    delta,
    encoded,
    enrolled,
    new,
    stored,
)

RULES = Rules(report_goal=2, over_selection=1.0)
TASK = task_of(
    TaskSettings(PLAN, rules=RULES, aggregation=Aggregation.PLAIN, seed=3),
    TOKENIZER,
    SHAPES,
    DIMENSION,
)


def test_the_plain_mechanism_takes_reports_to_the_mean_of_their_deltas():
    by = plain(TASK)
    updates = [by.check(sent(delta(number), TASK), 1) for number in (0, 1)]
    total = by.add(by.empty(), [by.weigh(update, 0) for update in updates])
    assert (total.weight, total.count) == (2, 2)
    np.testing.assert_allclose(
        by.finish(by.total([total]), 1), (delta(0) + delta(1)) / 2, atol=0.02
    )
    assert by.check(b"FBUP", 1) is Cause.NOT_AN_UPDATE
    assert by.check(sent(delta(0), TASK), 2) is Cause.WRONG_ROUND


def sent(vector: np.ndarray, task: Task) -> bytes:
    return update.of_delta(
        {"all": vector.astype(np.float32)}, 1, terms(task), np.random.default_rng(0)
    )


def raw(codes: np.ndarray, task: Task) -> bytes:
    about = update.Header(update.Form.CODES, 1, len(codes), terms(task).name)
    return update.of_codes(codes, about, task.plan.bits)


def test_a_late_update_moves_the_mean_by_a_share_and_counts_fully_in_what_it_is_divided_by():
    assert [staleness_share(behind) for behind in (0, 3, 8)] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert staleness_share(3, exponent=0.0) == 1.0
    buffered = replace(TASK, rules=replace(RULES, mode=Mode.BUFFERED))
    by = plain(buffered)
    checked = by.check(sent(delta(1), buffered), 1)
    fresh, late = (by.weigh(checked, behind) for behind in (0, 3))
    assert (fresh.weight, late.weight) == (64, 32)
    alone = by.finish(by.add(by.empty(), [late]), 1)
    np.testing.assert_allclose(alone, 0.5 * delta(1), atol=0.02)
    both = by.finish(by.add(by.empty(), [fresh, late]), 1)
    np.testing.assert_allclose(both, 0.75 * delta(1), atol=0.02)
    assert by.weigh(checked, 10**6).weight == 1  # never nothing
    # who waits for its own devices hears none late
    assert plain(TASK).weigh(checked, 0).weight == 1


@settings(max_examples=60)
@given(st.integers(0, 1000), st.integers(1, 16), st.floats(0.001, 3.0), st.booleans())
def test_an_honest_update_is_never_refused(seed, bits, norm, spiky):
    vector = np.eye(DIMENSION)[seed % DIMENSION] if spiky else 2 * delta(seed)
    task = replace(TASK, plan=replace(PLAN, bits=bits))
    assert isinstance(plain(task).check(sent(vector * norm, task), 1), Checked)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_codes_that_stand_for_more_than_an_honest_norm_are_refused_and_not_scaled(bits):
    task = replace(TASK, plan=replace(PLAN, bits=bits))
    by, largest = terms(task).encoding, 2**bits - 1
    kind = np.uint8 if bits <= 8 else np.uint16
    # of 4096 values all in the middle, so many at the end of the range: each adds 9 / 4096
    middle, end = kind(2 ** (bits - 1)), kind(largest)
    most = 4096 * (by.bound**2 - 1 / largest**2 * 9) / (9 - 9 / largest**2)
    for many, counts in ((int(most), True), (int(most) + 1, False)):
        codes = np.where(np.arange(4096) < many, end, middle).astype(kind)
        checked = plain(task).check(raw(codes, task), 1)
        assert (isinstance(checked, Checked), checked is Cause.NORM_TOO_LARGE) == (
            counts,
            not counts,
        )


def test_updates_of_another_task_width_or_size_are_named():
    other = replace(TASK, seed=8)
    assert plain(other).check(sent(delta(1), TASK), 1) is Cause.WRONG_TERMS
    assert plain(TASK).check(raw(np.zeros(4095, np.uint8), TASK), 1) is Cause.NOT_AN_UPDATE
    about = update.Header(update.Form.CODES, 1, 4096, terms(TASK).name)
    few = update.of_codes(np.full(4096, 7, np.uint8), about, 4)
    assert plain(TASK).check(few, 1) is Cause.NOT_AN_UPDATE


# a sum whose codes nobody has seen one by one


def honest(count: int, by: Encoding) -> np.ndarray:
    return sum(
        encoding.encode({"all": 2 * delta(number)}, by, np.random.default_rng(number)).astype(
            np.int64
        )
        for number in range(count)
    )


@settings(max_examples=20)
@given(st.integers(1, 16), st.integers(1, 5))
def test_what_honest_devices_make_is_within_their_reach(bits, count):
    by = terms(replace(TASK, plan=replace(PLAN, bits=bits))).encoding
    assert beyond_reach(honest(count, by), count, by) == ""


def test_a_sum_is_beyond_the_reach_of_honest_devices_by_one_digit_or_by_its_norm():
    by = terms(replace(TASK, plan=replace(PLAN, bits=4))).encoding
    total = honest(3, by)
    total[17] = 46  # three devices reach 45
    assert beyond_reach(total, 3, by) == "a sum of codes is 46, and 3 devices reach 45"
    ends = np.full(4096, 45)  # each digit could be, and not all of them
    assert beyond_reach(ends, 3, by) == "the mean has a norm of 3, and honest devices reach 1.03"


def test_nothing_is_claimed_of_privacy_without_noise_however_little_was_counted():
    for exposure in (Exposure(0, 0, None), Exposure(900, 30, 4)):
        spent = plain(TASK).spent(exposure)
        assert (spent.protection, spent.epsilon, spent.claimed) == (NO_PRIVACY, math.inf, False)
        assert spent.sentence == f"{NO_PRIVACY}; {mechanism.NOTHING_CLAIMED}"


def shifted(task: Task) -> Mechanism:
    """A mechanism that adds 1 to every mean and counts the rounds as its privacy."""
    return replace(
        plain(task),
        finish=lambda total, round: plain(task).finish(total, round) + 1.0,
        spent=lambda exposure: Spent("shifted by one", 0.5 * exposure.rounds),
    )


def test_another_mechanism_takes_its_place_in_rounds_pages_and_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(mechanism, "of", shifted)
    coordinator = new(tmp_path, RULES)
    devices = enrolled(coordinator, 2)
    works = [coordinator.check_in(device, READY, 1.0) for device in devices]
    for number, (device, work) in enumerate(zip(devices, works, strict=True)):
        assert coordinator.update(device, work.assignment, encoded(work, number), 2.0).counted
    after = stored(coordinator, coordinator.checkpoint().sha).weights
    np.testing.assert_allclose(
        weights.flatten(after) - weights.flatten(WEIGHTS), 1 + (delta(0) + delta(1)) / 2, atol=0.02
    )
    page = dashboard.page(overview.read(coordinator, 3.0, 0.0, {})).html
    assert "shifted by one; epsilon 0.500." in page
    assert operators.report(coordinator, "default", 0.0).privacy == "shifted by one; epsilon 0.500"
    assert (
        'fedboard_privacy_epsilon{task="default"} 0.5'
        in Metrics(coordinator, lambda: 3.0).text().decode()
    )
    coordinator.close()
