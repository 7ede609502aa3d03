"""A server that adds noise, killed at every step it writes: no noise is drawn twice for a sum.

Neither is a sum published that is not accounted. It is killed with SIGKILL; what it goes on with
has randomness of its own, as a real one has.
"""

import shutil
import sqlite3
from pathlib import Path

import pytest

from device_runtime.accountant import Participation
from server.coordinator import Coordinator, open_folder
from tests.kill_points import every_kill_point, killed_in_turn
from tests.test_server_budget import noised
from tests.test_server_noise import BLT
from tests.toy_server import enrolled

# two rounds of two devices; what is to become of each sum is noted outside of the server's folder,
# before its checkpoint is
WORK = """
import hashlib, pickle
from pathlib import Path
from device_runtime.wire import Assignment
from server import closing
from server.requests import CheckingIn, Reporting
from tests.toy_server import READY, encoded, enrolled, reopened

def noting(folder, really):
    def next_checkpoint(task, round, base, total, blobs, now):
        with open(f"{folder}.sums", "a") as file:
            file.write(f"{round} {hashlib.sha256(total.total.tobytes()).hexdigest()}\\n")
        return really(task, round, base, total, blobs, now)
    return next_checkpoint

def work(folder: Path) -> None:
    really = closing.next_checkpoint
    closing.next_checkpoint = noting(folder, really)
    try:
        played(folder)
    finally:
        closing.next_checkpoint = really

def played(folder: Path) -> None:
    coordinator, memory, step = reopened(folder), Path(f"{folder}.devices"), 0
    answered = pickle.loads(memory.read_bytes()) if memory.exists() else []

    def told(call):
        nonlocal step
        step += 1
        if step > len(answered):
            answered.append(call())
            memory.write_bytes(pickle.dumps(answered))
        return answered[step - 1]

    devices = told(lambda: enrolled(coordinator, 2))
    for now in (1.0, 2.0):
        works = told(lambda: coordinator.handle([CheckingIn(d, READY) for d in devices], now))
        assert all(isinstance(work, Assignment) for work in works), works
        told(lambda: coordinator.handle([
            Reporting(device, work.assignment, encoded(work, number))
            for number, (device, work) in enumerate(zip(devices, works))
        ], now))
        told(lambda: coordinator.tick(now + 0.5))
    coordinator.close()
"""


class Played:
    """A server's folder before the work, and what must be true of it after."""

    def __init__(self, place: Path):
        self.folder, self._template, self._scope = place / "server", place / "template", {}
        exec(compile(WORK, "work", "exec"), self._scope)
        noised(self._template, BLT).close()

    def prepare(self, at: Path) -> None:
        for name in ("devices", "sums"):
            Path(f"{at}.{name}").unlink(missing_ok=True)
        shutil.copytree(self._template, at, dirs_exist_ok=True)

    def goes_on(self, at: Path) -> None:
        require_accounted(at)
        self._scope["work"](at)
        require_accounted(at)
        lines = Path(f"{at}.sums").read_text().split("\n")
        made = {tuple(line.split()) for line in lines if line}
        assert sorted(round for round, _ in made) == ["1", "2"], made
        coordinator = Coordinator(*open_folder(at))
        with coordinator.store.reading() as rows:
            devices = sorted(enrolled(coordinator, 2))
            assert rows.spending.members("default") == {1: devices, 2: devices}
            kept = rows.spending.of("default")
        assert (kept.happened, kept.drawn) == (Participation((2,), 1, 2), None)
        assert coordinator.checkpoint().round == 2
        coordinator.close()
        names = [each.name for each in (at / "server.sqlite.keys").iterdir()]
        assert [name for name in names if name.startswith(("noise", "buffers"))] == [
            "buffers~default~0"
        ]


def require_accounted(at: Path) -> None:
    """Whatever has been published, what it spent is on the same disk."""
    with sqlite3.connect(at / "server.sqlite") as database:
        made = database.execute("SELECT round FROM checkpoints WHERE round > 0").fetchall()
        spent = database.execute(
            "SELECT rounds.round, count(*) FROM rounds JOIN members USING (task, round) "
            "WHERE rho > 0 AND epsilon > 0 GROUP BY rounds.round"
        ).fetchall()
    database.close()
    assert {(round, 2) for (round,) in made} <= set(spent)


@pytest.fixture
def played(fast_folder) -> Played:
    return Played(fast_folder)


def test_a_server_killed_while_it_adds_noise_draws_none_twice_and_accounts_for_all(played):
    steps = [[n] for n in range(2, 150, 9)]
    assert killed_in_turn(WORK, played.folder, played.prepare, played.goes_on, steps) > 10


@pytest.mark.prove
@pytest.mark.timeout(1200)
def test_a_server_killed_at_any_step_draws_no_noise_twice_and_accounts_for_all(
    played, record_property
):
    kills = every_kill_point(WORK, played.folder, played.prepare, played.goes_on)
    record_property("did", f"killed at each of {kills} steps")
    assert kills > 60
