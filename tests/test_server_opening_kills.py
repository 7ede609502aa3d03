"""A server and its helper killed at every step they write count nothing twice and lose nothing.

Both are killed with SIGKILL, beside two that are not: from the first report of a round to the
checkpoint that comes of it, twice.
"""

import shutil
from pathlib import Path

import pytest

from device_runtime import log_wire
from device_runtime.log_wire import RoundEntry
from fedboard import log_check
from fedboard.log_check import Fetched
from tests.kill_points import every_kill_point, killed_in_turn
from tests.test_server_kills import contents
from tests.toy_opening import desk, new, opened, way_to

# devices are not killed: what they were answered they remember, what they were not they ask again
WORK = """
import pickle
from dataclasses import replace
from pathlib import Path
from device_runtime.chain import certificate_of
from device_runtime.log_wire import Believed, SeenLogs, believe
from device_runtime.wire import Assignment
from tests.toy_opening import desk, opened, sealed, way_to
from tests.toy_server import READY, enrolled

def work(folder: Path) -> None:
    memory = Path(f"{folder}.devices")
    told = pickle.loads(memory.read_bytes()) if memory.exists() else {}
    asked = desk(folder / "helper")
    coordinator = opened(folder / "server", way_to(asked))

    def ask(name, call):
        if name not in told:
            told[name] = call()
            memory.write_bytes(pickle.dumps(told))
        return told[name]

    devices = enrolled(coordinator, 2)
    for round in (1, 2):
        now = 10.0 * round
        for number, device in enumerate(devices):
            seen = told.get(("seen", number), SeenLogs())
            asking = replace(READY, log_size=seen.size(coordinator.server))
            work = ask((round, number), lambda: coordinator.check_in(device, asking, now))
            assert isinstance(work, Assignment) and work.round == round, work
            # whatever was killed, the log goes on from what this device has seen of it
            answer = believe(work, certificate_of(work), seen)
            assert isinstance(answer, Believed), answer
            told["seen", number] = answer.seen
        for number, device in enumerate(devices):
            work = told[round, number]
            body = sealed(work, number)
            sent = lambda: coordinator.update(device, work.assignment, body, now + 1)
            assert ask((round, number, "sent"), sent).counted
        coordinator.open_sums(now + 2)
        while coordinator.checkpoint().round < round:
            coordinator.open_sums(now + 2)
    coordinator.open_sums(25.0)
    coordinator.close()
    asked.close()
"""


class Played:
    """The folders of a server and its helper before the work, and what it leaves undisturbed."""

    def __init__(self, place: Path):
        from tests.test_server_opening import TWO
        from tests.toy_server import enrolled

        self.folder, self._template = place / "both", place / "template"
        self._scope: dict = {}
        exec(compile(WORK, "work", "exec"), self._scope)
        self._template.mkdir()
        asked = desk(self._template / "helper")
        coordinator = new(self._template / "server", way_to(asked), TWO)
        enrolled(coordinator, 2)
        coordinator.close()
        asked.close()
        undisturbed = place / "undisturbed"
        self.prepare(undisturbed)
        self._scope["work"](undisturbed)
        self.expected = contents(undisturbed / "server")

    def prepare(self, at: Path) -> None:
        Path(f"{at}.devices").unlink(missing_ok=True)
        shutil.copytree(self._template, at, dirs_exist_ok=True)

    def goes_on(self, at: Path) -> None:
        self._scope["work"](at)
        left = contents(at / "server")
        assert {name: rows for name, rows in left.items() if rows != self.expected[name]} == {}
        asked = desk(at / "helper")
        assert asked.report().answers == 2  # each round once
        coordinator = opened(at / "server", way_to(asked))
        with coordinator.store.reading() as rows:
            assert [rows.seals.of("default", round) for round in (1, 2, 3)] == [[], [], []]
            made = {each.half for each in rows.checkpoints("default", 10)}
        told = coordinator.log_head()
        texts = coordinator.log_entries(0, 100).entries
        assert log_check.check(Fetched(told, texts)).contradictions == ()
        assert told.countersigned == told.newest
        entered = [log_wire.read(each) for each in texts]
        assert made == {each.checkpoint for each in entered if isinstance(each, RoundEntry)}
        coordinator.close()
        asked.close()


@pytest.fixture
def played(fast_folder) -> Played:
    return Played(fast_folder)


def test_killed_while_a_sum_is_opened_both_go_on_as_if_they_never_were(played):
    assert [len(played.expected[table]) for table in ("checkpoints", "sums")] == [3, 0]
    steps = [[n] for n in range(1, 200, 9)]
    kills = killed_in_turn(WORK, played.folder, played.prepare, played.goes_on, steps)
    assert kills > 8


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_killed_at_any_step_while_sums_are_opened_both_go_on_as_if_they_never_were(
    played, record_property
):
    kills = every_kill_point(WORK, played.folder, played.prepare, played.goes_on)
    record_property("did", f"killed at each of {kills} steps")
    assert kills > 60
