"""A server killed anywhere in a round whose devices open their sum goes on as if it never was.

It is killed with SIGKILL. Its devices live on: what they were answered they remember, and what they
were not they send again, the very same.
"""

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from server.task import Peers
from tests.kill_points import every_kill_point, killed_in_turn
from tests.toy_secagg_steps import RULES, new

WORK = """
import pickle
from pathlib import Path
from server.requests import CheckingIn
from tests.toy_secagg_steps import Member
from tests.toy_server import READY, enrolled, reopened

def work(folder: Path) -> None:
    coordinator, memory, step = reopened(folder), Path(f"{folder}.devices"), 0
    answered = pickle.loads(memory.read_bytes()) if memory.exists() else []

    def told(call):
        nonlocal step
        step += 1
        if step > len(answered):
            answered.append(call())
            memory.write_bytes(pickle.dumps(answered))
        return answered[step - 1]

    def ask(request):
        return told(lambda: coordinator.handle([request], 2.0)[0])

    devices = told(lambda: enrolled(coordinator, 5))
    works = [ask(CheckingIn(device, READY)) for device in devices]
    members = [Member(*each) for each in zip(devices, range(5), works)]
    while not all(each.is_over for each in members):
        for each in members:
            if not each.is_over:
                each.go_on(ask, 2.0)
        told(lambda: coordinator.tick(2.0))
        told(lambda: coordinator.open_sums(2.0))
    coordinator.tick(3.0)  # as a server does each second
    coordinator.open_sums(3.0)
    coordinator.close()
"""
ROWS = {  # what must be equal: an order that was drawn anew gives other masks, and the same sum
    "rounds": "round, phase, made, admitted, reported, dropped, uploaded, reason",
    "assignments": "assignment, status, cause, counted_in",
    "checkpoints": "sha, round, parent",
    "participations": "device, last_counted, counted",
    "outcomes": "round, step, cause, count",
    "secagg_rounds": "round, step, keys, shares, consents, unmasked",
    "secagg_devices": "round, device",
    "secagg_boxes": "round, receiver",
    "sums": "round, replica",
}


def contents(folder: Path) -> dict[str, list[str]]:
    with sqlite3.connect(folder / "server.sqlite") as connection:
        rows = {
            table: sorted(map(repr, connection.execute(f"SELECT {columns} FROM {table}")))
            for table, columns in ROWS.items()
        }
    connection.close()
    return rows


class Played:
    """A server's folder before the work, and what the work leaves in one that is never killed."""

    def __init__(self, place: Path):
        self.folder, self._template, self._scope = place / "server", place / "template", {}
        exec(compile(WORK, "work", "exec"), self._scope)
        rules = replace(RULES, report_goal=5, min_reports=5)
        new(self._template, rules, Peers(0.0, 0.1, semi_malicious=True)).close()
        undisturbed = place / "undisturbed"
        self.prepare(undisturbed)
        self._scope["work"](undisturbed)
        self.expected = contents(undisturbed)

    def prepare(self, at: Path) -> None:
        Path(f"{at}.devices").unlink(missing_ok=True)
        shutil.copytree(self._template, at, dirs_exist_ok=True)

    def goes_on(self, at: Path) -> None:
        self._scope["work"](at)
        left = contents(at)
        assert {name: rows for name, rows in left.items() if rows != self.expected[name]} == {}


@pytest.fixture
def played(fast_folder) -> Played:
    played = Played(fast_folder)
    first, second = played.expected["rounds"]
    assert first.startswith("(1, 'committed'") and second.startswith("(2, 'selecting', None")
    assert played.expected["secagg_rounds"] == ["(1, 'revealed', 5, 5, 5, 5)"]
    assert len(played.expected["checkpoints"]) == 2
    assert played.expected["secagg_devices"] == played.expected["secagg_boxes"] == []
    return played


def test_a_server_killed_again_and_again_in_a_round_loses_nothing_it_has_acknowledged(played):
    tries = [[31] * 60]
    assert killed_in_turn(WORK, played.folder, played.prepare, played.goes_on, tries) > 10


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_a_server_killed_at_any_step_of_a_round_goes_on_as_if_it_never_was(played, record_property):
    kills = every_kill_point(WORK, played.folder, played.prepare, played.goes_on)
    record_property("did", f"killed at each of {kills} steps")
    assert kills > 200
