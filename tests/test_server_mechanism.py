"""The mechanism of a task: the plain one, and that another can take its place."""

import math
from dataclasses import replace

import numpy as np
import pytest

from device_runtime import weights
from device_runtime.bundle import NO_PRIVACY
from device_runtime.causes import Cause
from device_runtime.errors import ConfigError
from server import dashboard, mechanism, operators, overview
from server.mechanism import Exposure, Mechanism, Spent, plain
from server.metrics import Metrics
from server.rounds import Rules
from server.task import Task
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

RULES = Rules(report_goal=2, over_selection=1.0, max_weight=30)
TASK = Task(plan=PLAN, rules=RULES, seed=7, tokenizer=TOKENIZER, shapes=SHAPES, dimension=DIMENSION)


def test_the_plain_mechanism_takes_reports_to_their_mean_by_examples(tmp_path):
    coordinator = new(tmp_path, RULES)
    work = coordinator.check_in(enrolled(coordinator, 1)[0], READY, 1.0)
    coordinator.close()
    by = plain(TASK)
    updates = [
        by.check(encoded(work, number, examples), 1) for number, examples in ((0, 10), (1, 30))
    ]
    total = by.add(by.empty(), [by.weigh(update, 0) for update in updates])
    assert (total.weight, total.count) == (40, 2)
    np.testing.assert_allclose(
        by.finish(by.total([total]), 1), (10 * delta(0) + 30 * delta(1)) / 40, atol=0.02
    )
    assert by.check(b"FBUP", 1) is Cause.NOT_AN_UPDATE
    assert by.check(encoded(work, 0), 2) is Cause.WRONG_ROUND
    heavy = by.check(encoded(work, 0, examples=500), 1)
    assert by.weigh(heavy, 0)[1:] == (30, 1.0)  # at most the largest weight
    assert by.weigh(heavy, 3)[1:] == (30, 0.5)  # three rounds late
    few = plain(replace(TASK, plan=replace(PLAN, max_rows=8)))
    assert few.weigh(few.check(encoded(work, 0, examples=500), 1), 0).weight == 8  # the plan's rows


def test_nothing_is_claimed_of_privacy_without_noise_however_little_was_counted():
    for exposure in (Exposure(0, 0, None), Exposure(900, 30, 4)):
        spent = plain(TASK).spent(exposure)
        assert (spent.protection, spent.epsilon, spent.claimed) == (NO_PRIVACY, math.inf, False)
        assert spent.sentence == f"{NO_PRIVACY}; {mechanism.NOTHING_CLAIMED}"


def test_rules_a_sum_cannot_hold_are_refused():
    task = replace(TASK, plan=replace(PLAN, clipping_norm=100.0, max_rows=10**7))
    most = plain(task).capacity
    mechanism.require_room(replace(task, rules=Rules(report_goal=1, max_weight=most)))
    with pytest.raises(ConfigError, match=f"is more than the {most} one sum can hold"):
        mechanism.require_room(replace(task, rules=Rules(report_goal=1, max_weight=most + 1)))
    # nobody counts for more than the plan's rows, whatever the rules allow
    few = replace(task, plan=replace(task.plan, max_rows=64))
    mechanism.require_room(replace(few, rules=Rules(report_goal=1, max_weight=most + 1)))


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
    assert "shifted by one; epsilon 0.50." in page
    assert operators.report(coordinator, "default", 0.0).privacy == "shifted by one; epsilon 0.50"
    assert (
        'fedboard_privacy_epsilon{task="default"} 0.5'
        in Metrics(coordinator, lambda: 3.0).text().decode()
    )
    coordinator.close()
