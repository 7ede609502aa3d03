"""At once: check-ins that are answered in the loop itself, and what is left to the worker."""

import asyncio
import sqlite3
from dataclasses import replace

import pytest

from device_runtime.causes import Cause
from device_runtime.wire import Assignment, Reject
from server.coordinator import Coordinator, open_folder
from server.groups import Groups
from server.records import changed
from server.requests import CheckingIn, Nonce
from server.rounds import Rules
from tests import toy_server
from tests.toy_server import READY, enrolled

# two places at once, for those who ask first
PLACES = Rules(report_goal=2, over_selection=1.0, selection_s=0.0, reporting_s=100.0, min_reports=1)


@pytest.fixture
def coordinator(tmp_path):
    coordinator = toy_server.new(tmp_path / "server", PLACES)
    coordinator.tick(1.0)
    yield coordinator
    coordinator.close()


def asking(devices: list[str], nonce: str = "0") -> list[CheckingIn]:
    return [CheckingIn(each, READY, Nonce(nonce * 32, 1)) for each in devices]


def test_what_is_answered_at_once_is_what_the_worker_would_answer(coordinator, tmp_path):
    devices = enrolled(coordinator, 3)
    answers = coordinator.handle_at_once(asking(devices), 2.0)
    assert [type(each) for each in answers] == [Assignment, Assignment, Reject]
    assert answers[2].cause is Cause.ROUND_FULL
    # it is stored: a server that begins anew gives the same work, and knows the nonces
    coordinator.close()
    again = Coordinator(*open_folder(tmp_path / "server"))
    (replayed,) = again.handle(asking(devices[:1]), 3.0)
    assert replayed.cause is Cause.REPLAYED
    (same,) = again.handle(asking(devices[:1], nonce="1"), 3.0)
    assert same.assignment == answers[0].assignment
    again.close()


def test_nobody_is_answered_at_once_while_another_thread_is_at_work(coordinator):
    devices = enrolled(coordinator, 1)
    with coordinator.locked():
        assert coordinator.handle_at_once(asking(devices), 2.0) == []
    assert len(coordinator.handle_at_once(asking(devices), 2.0)) == 1


def test_nobody_is_answered_at_once_where_time_has_something_to_change(coordinator):
    devices = enrolled(coordinator, 3)
    assert len(coordinator.handle_at_once(asking(devices), 2.0)) == 3
    # nobody has reported in time: the round is over, and closing it may take long
    assert coordinator.handle_at_once(asking(devices, nonce="1"), 200.0) == []
    (answer, *_) = coordinator.handle(asking(devices, nonce="1"), 200.0)
    assert answer.round == 2


def test_nobody_is_waited_for_who_writes_to_the_database(coordinator, tmp_path):
    devices = enrolled(coordinator, 1)
    other = sqlite3.connect(tmp_path / "server" / "server.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Exception, match="locked"):
        coordinator.handle_at_once(asking(devices), 2.0)
    other.execute("ROLLBACK")
    other.close()
    assert len(coordinator.handle_at_once(asking(devices), 2.0)) == 1


def test_a_log_that_nobody_brought_home_at_once_is_by_the_next_tick(coordinator, monkeypatch):
    monkeypatch.setattr("server.store._LOG_PAGES", 4)
    devices = enrolled(coordinator, 20)
    coordinator.handle_at_once(asking(devices), 2.0)
    log = coordinator.store._log_bytes()
    assert log > 4 * 4096
    coordinator.tick(3.0)
    coordinator.handle_at_once(asking(devices, nonce="1"), 4.0)
    assert coordinator.store._log_bytes() == log  # it has begun anew, in the same file


def play(groups: Groups, requests: list[int]) -> list[object]:
    async def asked() -> list[object]:
        return await asyncio.gather(*map(groups.answer, requests), return_exceptions=True)

    return asyncio.run(asked())


def test_what_cannot_be_answered_at_once_is_answered_by_the_worker():
    by_worker: list[list[int]] = []

    def handle(requests):
        by_worker.append(list(requests))
        return [-each for each in requests]

    groups = Groups(handle, at_once=lambda requests: [each for each in requests if each < 3][:2])
    assert play(groups, [1, 2, 3, 4]) == [1, 2, -3, -4]
    assert by_worker == [[3, 4]]


def test_what_goes_wrong_at_once_is_asked_of_the_worker_again():
    def fails(requests):
        raise OSError("the database is locked")

    groups = Groups(lambda requests: [10 * each for each in requests], at_once=fails)
    assert play(groups, [1, 2, 3]) == [10, 20, 30]


def test_a_changed_record_is_the_one_that_dataclasses_replace():
    rules = toy_server.PLAN
    assert changed(rules, bits=4) == replace(rules, bits=4)
    assert rules == toy_server.PLAN
