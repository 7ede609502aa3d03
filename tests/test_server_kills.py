"""The server killed at every step it writes goes on as if it never was, to the bit.

It is killed with SIGKILL, beside one that is not.
"""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from device_runtime.wire import Assignment
from server.release_scores import from_flat, merge
from server.rounds import Rules
from server.step import ServerStep
from tests import toy_server
from tests.kill_points import every_kill_point, killed_in_turn
from tests.suite import strides
from tests.test_server_comparing import body, comparing, round_of
from tests.toy_releases import published
from tests.toy_server import READY, enrolled

# Devices are not killed: what they were answered they remember (in a file beside the server's
# folder), what they were not they ask again. Two rounds of training in groups, with momentum; a
# device that gives up, one that is late, an update that breaks the rules; an evaluation; a
# rollback.
WORK = """
import pickle, sys
from pathlib import Path
import obstore
from device_runtime import config
from device_runtime.causes import Cause
from device_runtime.wire import Assignment, Kind, Scores
from server import tasks
from server.requests import Abandoning, CheckingIn, Refused, Reporting
from server.rounds import Rules
from server.task import TaskSettings
from tests.toy_server import (
    READY,
    created,
    encoded,
    enrolled,
    reopened,
)

really_put = obstore.put
def put(*arguments, **options):
    sys.audit("kill_points.step", "put a blob")
    name = really_put(*arguments, **options)
    sys.audit("kill_points.step", "have put a blob")
    return name
obstore.put = put

def work(folder: Path) -> None:
    coordinator, memory, step = reopened(folder), Path(f"{folder}.devices"), 0
    answered = pickle.loads(memory.read_bytes()) if memory.exists() else []

    def told(call):
        nonlocal step
        step += 1
        if step > len(answered):
            answer = call()
            if isinstance(answer, list):
                answer = [str(each) if isinstance(each, Refused) else each for each in answer]
            answered.append(answer)
            memory.write_bytes(pickle.dumps(answered))
        return answered[step - 1]

    def evaluation():
        if len(coordinator.tasks()) == 1:
            rules = Rules(report_goal=1, over_selection=1.0, selection_s=0.0, retry_s=0.0)
            named = {"name": "scores", "kind": Kind.EVALUATION, "evaluates": "default"}
            created(coordinator, TaskSettings(**named, rules=rules, seed=5), 1.0)

    def reports(devices, answers, now):
        for number, (device, work) in enumerate(zip(devices, answers)):
            if not isinstance(work, Assignment):
                continue
            if work.kind is Kind.EVALUATION:
                scores = config.to_json(Scores(10, 2, 3, 10, 40.0 + number))
                yield Reporting(device, work.assignment, scores, Kind.EVALUATION)
            elif number == 1:
                yield Abandoning(device, work.assignment, Cause.IN_USE)
            elif number == 2 and now == 2.0:
                yield Reporting(device, work.assignment, b"no update")
            else:
                yield Reporting(device, work.assignment, encoded(work, number))

    devices = told(lambda: enrolled(coordinator, 5))
    told(evaluation)
    for now in (2.0, 3.0):
        asking = [CheckingIn(device, READY) for device in devices]
        answers = told(lambda: coordinator.handle(asking, now))
        asked = list(reports(devices, answers, now))
        for group in (asked[:2], asked[2:]):
            told(lambda: coordinator.handle(group, now))
        told(lambda: coordinator.tick(now + 0.5))
    told(
        lambda: coordinator.roll_back("default", 0, 4.0).sha
        if coordinator.reports(4.0).rounds[-1].base_round
        else "done already"
    )
    coordinator.tick(5.0)  # as a server does each second
    coordinator.close()
"""
RULES = Rules(report_goal=2, over_selection=2.0)


# Five devices ask for two places in a window of a minute; they are drawn, one of those drawn never
# comes and is replaced; the other and the one in its place report.
WINDOW = """
import pickle
from pathlib import Path
from device_runtime.wire import Assignment
from server.requests import CheckingIn, Refused, Reporting
from tests.toy_server import READY, encoded, enrolled, reopened

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

    def asking(asked, now):
        return told(lambda: coordinator.handle([CheckingIn(each, READY) for each in asked], now))

    devices = told(lambda: enrolled(coordinator, 5))
    asking(devices[:2], 1.0)
    asking(devices[2:], 2.0)
    told(lambda: coordinator.tick(61.0))
    with coordinator.store.reading() as rows:
        places = {
            device: each.ticket.place
            for (device, _), each in rows.check_ins_of(devices).items()
            if each.ticket and each.ticket.place is not None
        }
    order = told(lambda: sorted(places, key=places.get))
    (first,) = asking(order[:1], 64.0)
    asking(order[2:], 64.0)
    (third,) = asking(order[2:3], 110.0)
    assert isinstance(first, Assignment) and isinstance(third, Assignment), (first, third)
    reports = [
        Reporting(order[place], work.assignment, encoded(work, place))
        for place, work in ((0, first), (2, third))
    ]
    told(lambda: [str(answer) for answer in coordinator.handle(reports, 111.0)])
    told(lambda: coordinator.tick(112.0))
    coordinator.close()
"""


# Two devices compare releases: with the one that waits since the round before, one of them tells
# enough of release 2 to stop it; what the other says waits, with what waits since then.
COMPARED = """
from pathlib import Path
from server.requests import Reporting
from device_runtime.wire import Kind
from tests.test_server_comparing import body
from tests.toy_server import enrolled, reopened

def work(folder: Path) -> None:
    coordinator = reopened(folder)
    devices = enrolled(coordinator, 2)
    with coordinator.store.reading() as rows:
        works = {each.device: each for each in rows.work_of(devices) if each.round == 2}
    reports = [
        Reporting(device, works[device].assignment, body(*each), Kind.EVALUATION)
        for device, each in zip(devices, ((2, 30, 1, 60), (1, 50, 2, 40)))
        if device in works
    ]
    coordinator.handle(reports, 3.0)
    coordinator.tick(3.0)
    coordinator.close()
"""


def begun(coordinator: toy_server.OneByOne) -> None:
    """Release 1 for all, release 2 for some, and a task that compares them: two devices have done
    so by the end of its first round, and two have work of the second.
    """
    comparing(coordinator, Rules(report_goal=2, over_selection=1.0, min_reports=2))
    published(coordinator, 1, share=10_000)
    published(coordinator, 2)
    round_of(coordinator, 2.0, body(2, 30, 1, 60), body(1, 60))
    for device in enrolled(coordinator, 2):
        assert isinstance(coordinator.check_in(device, READY, 3.0), Assignment)


def waiting(folder: Path) -> list:
    """What waits of releases, unsealed."""
    coordinator = toy_server.reopened(folder)
    with coordinator.store.reading() as rows:
        number = rows.open_rounds()["compared"].state.round
        sums = coordinator._sums.of_all(rows, ("compared", number))
    coordinator.close()
    return merge(from_flat(each.total) for each in sums).tolist()


def contents(folder: Path) -> dict[str, list]:
    """All that must be equal: every row but those of nonces and check-ins under way, every blob,
    and which rounds have keys. Bytes received are not: repeating costs some; nor how sums that
    wait are sealed.
    """
    with sqlite3.connect(folder / "server.sqlite") as connection:
        names = {
            table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            for table in TABLES
        }
        rows = {}
        for table, columns in names.items():
            kept = ", ".join(name for name in columns if name not in NOT_EQUAL)
            rows[table] = sorted(map(repr, connection.execute(f"SELECT {kept} FROM {table}")))
    connection.close()
    return {
        **rows,
        "blobs": sorted(path.name for path in (folder / "blobs").iterdir() if len(path.name) == 64),
        "keys": sorted(path.name for path in (folder / "server.sqlite.keys").iterdir()),
    }


NOT_EQUAL = ("bytes_up", "bytes_down", "total", "generation")
TABLES = (
    "releases",
    "release_scores",
    "release_indexes",
    "devices",
    "tasks",
    "checkpoints",
    "rounds",
    "outcomes",
    "assignments",
    "participations",
    "sums",
)


class Played:
    """A server's folder before the work, and what the work leaves in one that is never killed."""

    def __init__(
        self,
        place: Path,
        script: str = WORK,
        rules: Rules = RULES,
        begin: Callable[[toy_server.OneByOne], None] = lambda coordinator: None,
        also: Callable[[Path], list] = lambda folder: [],
    ):
        self.folder, self._template, self._scope = place / "server", place / "template", {}
        self._also = also
        exec(compile(script, "work", "exec"), self._scope)
        coordinator = toy_server.new(self._template, rules, step=ServerStep(momentum=0.9))
        begin(coordinator)
        coordinator.close()
        undisturbed = place / "undisturbed"
        self.prepare(undisturbed)
        self._scope["work"](undisturbed)
        self.expected = contents(undisturbed) | {"also": also(undisturbed)}

    def prepare(self, at: Path) -> None:
        Path(f"{at}.devices").unlink(missing_ok=True)
        shutil.copytree(self._template, at, dirs_exist_ok=True)

    def goes_on(self, at: Path) -> None:
        self._scope["work"](at)
        left = contents(at) | {"also": self._also(at)}
        assert {name: rows for name, rows in left.items() if rows != self.expected[name]} == {}


@pytest.fixture
def played(fast_folder) -> Played:
    return Played(fast_folder)


@strides(8)
def test_a_server_killed_at_any_step_goes_on_as_if_it_never_was(played, stride, record_property):
    expected = played.expected
    assert [len(expected[table]) for table in ("checkpoints", "sums")] == [3, 0]
    assert {row.split(", ")[2] for row in expected["rounds"]} >= {
        "'committed'",
        "'abandoned'",
        "'selecting'",
    }
    kills = every_kill_point(WORK, played.folder, played.prepare, played.goes_on, stride=stride)
    record_property("did", f"killed at each of {kills} steps")
    assert kills > 100 / stride


@strides(5)
def test_a_server_killed_while_it_draws_loses_no_ticket_and_gives_no_place_twice(
    fast_folder, stride, record_property
):
    rules = Rules(report_goal=2, over_selection=1.0, selection_s=60.0, claim_s=30.0)
    played = Played(fast_folder, WINDOW, rules)
    assert {row.split(", ")[2] for row in played.expected["rounds"]} == {
        "'committed'",
        "'selecting'",
    }
    assert len(played.expected["assignments"]) == 2
    kills = every_kill_point(WINDOW, played.folder, played.prepare, played.goes_on, stride=stride)
    record_property("did", f"killed at each of {kills} steps")
    assert kills > 50 / stride


@pytest.fixture
def compared(fast_folder) -> Played:
    played = Played(fast_folder, COMPARED, RULES, begun, waiting)
    (told,) = played.expected["release_scores"]
    assert "2, 1, 2, 400, 60" in told
    assert [row[:3] for row in played.expected["also"][:2]] == [[1, 0, 1], [1, 2, 1]]
    assert "worse: -15.00 points" in "".join(played.expected["releases"])
    return played


@strides(4)
def test_a_server_killed_while_it_compares_releases_tells_of_each_device_once(
    compared, stride, record_property
):
    kills = every_kill_point(
        COMPARED, compared.folder, compared.prepare, compared.goes_on, stride=stride
    )
    record_property("did", f"killed at each of {kills} steps")
    assert kills > 60 / stride


@pytest.mark.prove
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(4))
def test_a_server_killed_three_times_in_a_row_goes_on_as_if_it_never_was(
    played, seed, record_property
):
    rng = np.random.default_rng(seed)
    tries = rng.integers(1, 150, (60, 3)).tolist()
    kills = killed_in_turn(WORK, played.folder, played.prepare, played.goes_on, tries)
    record_property("did", f"{kills} kills in {len(tries)} servers")
    assert kills > len(tries)
