"""A server's folder as the version before left it: what goes on, what begins anew, and who is told.

It was made by the server of that time: of the task `default` a round committed and a second one
with one of its two reports and two at work; of the buffered task `buffered` a round with one of its
three reports and one at work; of the evaluation `scores` a round with one of its two reports.
"""

import json
import sqlite3
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from device_runtime import chain, config, weights
from device_runtime.causes import Cause
from device_runtime.terms import Aggregation
from device_runtime.wire import Phase, Scores
from server import operators
from server.coordinator import open_folder
from server.rounds import Rules
from tests.toy_server import READY, OneByOne, certify, delta, encoded, enrolled, stored

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def folder(tmp_path):
    zipfile.ZipFile(GOLDEN / "server-0004.zip").extractall(tmp_path)
    return tmp_path


@pytest.fixture
def coordinator(folder):
    opened = OneByOne(*open_folder(folder))
    yield opened
    opened.close()


def test_a_round_that_had_counted_is_abandoned_by_name_and_the_next_one_goes_on(coordinator):
    coordinator.tick(10.0)
    first, second, third = coordinator.reports(10.0).rounds
    assert [each.phase for each in (first, second, third)] == [
        "committed",
        "abandoned",
        "selecting",
    ]
    assert (second.counted, second.dropped) == (1, {"round_closed": 1})
    assert second.reason == "it had begun with updates of an earlier format"
    assert (third.base, third.counted) == (first.checkpoint, 0)
    certify(coordinator, 10.0)
    devices = enrolled(coordinator, 2)
    for number, device in enumerate(devices):
        work = coordinator.check_in(device, READY, 11.0)
        assert (work.task, work.round) == ("default", 3)
        assert coordinator.update(device, work.assignment, encoded(work, number), 12.0).counted
    done = coordinator.reports(12.0).rounds[2]
    assert done.phase == "committed"
    moved = weights.flatten(stored(coordinator, done.checkpoint).weights) - weights.flatten(
        stored(coordinator, first.checkpoint).weights
    )
    np.testing.assert_allclose(moved, (delta(0) + delta(1)) / 2, atol=0.02)


def test_who_works_for_such_a_round_is_told_that_it_is_closed(folder, coordinator):
    for number in (3, 5):
        device = enrolled(coordinator, 8)[number]
        with sqlite3.connect(folder / "server.sqlite") as database:
            query = "SELECT assignment FROM assignments WHERE device = ?"
            ((work,),) = database.execute(query, (device,))
        old = b"FBUP\x02\0" + bytes(4000)
        assert coordinator.update(device, work, old, 11.0).cause is Cause.ROUND_CLOSED


def test_a_buffered_round_begins_anew_and_nobody_is_at_work_for_it(coordinator):
    coordinator.tick(10.0)
    first, second = coordinator.reports(10.0, "buffered").rounds
    assert (first.phase, first.counted, first.dropped) == ("abandoned", 1, {"round_closed": 1})
    assert (second.phase, second.assigned, second.counted) == (Phase.SELECTING, 0, 0)
    with coordinator.store.reading() as rows:
        state = rows.open_rounds()["buffered"].state
    assert (state.admitted, state.waiting) == (0, 0)
    certify(coordinator, 10.0, "buffered")
    late = replace(READY, population="late")
    for number, device in enumerate(enrolled(coordinator, 3)):
        work = coordinator.check_in(device, late, 11.0)
        assert coordinator.update(device, work.assignment, encoded(work, number), 12.0).counted
    assert coordinator.reports(12.0, "buffered").rounds[1].phase == "committed"


def test_until_its_task_is_certified_anew_devices_get_no_work_and_the_operator_hears_why(
    coordinator,
):
    device = enrolled(coordinator, 1)[0]
    assert coordinator.check_in(device, READY, 10.0).cause is Cause.UNCERTIFIED
    said = operators.report(coordinator, "default", 10.0).certify
    assert "does not say who sees their updates" in said
    assert said.endswith("certify again: fedboard task certify default --aggregation plain")
    certify(coordinator, 11.0)
    work = coordinator.check_in(device, READY, 12.0)
    assert chain.terms_of(work).aggregation is Aggregation.PLAIN


def test_settings_that_are_no_more_are_left_out_of_the_tasks_that_had_them(folder, coordinator):
    assert [kept.task.rules.report_goal for kept in coordinator.tasks()] == [2, 3, 2]
    assert coordinator.tasks()[0].task.rules == replace(
        Rules(2, 1.5), selection_s=0.0, retry_s=0.0, permanent_retry_s=0.0
    )
    with sqlite3.connect(folder / "server.sqlite") as database:
        bodies = [json.loads(body) for (body,) in database.execute("SELECT body FROM tasks")]
    assert all("max_weight" not in body["rules"] for body in bodies)


def test_an_evaluation_goes_on_with_what_it_has_counted(coordinator):
    certify(coordinator, 10.0)
    coordinator.pause("default")
    device = enrolled(coordinator, 8)[7]
    work = coordinator.check_in(device, READY, 11.0)
    assert work.task == "scores"
    sums = config.to_json(Scores(50, 5, 10, 50, 250.25))
    assert coordinator.scores(device, work.assignment, sums, 12.0).counted
    done = coordinator.reports(12.0, "scores").rounds[0]
    assert (done.phase, done.scores) == ("committed", Scores(150, 25, 43, 150, 730.75))
