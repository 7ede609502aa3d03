"""A helper killed at every step it writes repeats the same answer or gives none, and no second one.

It is killed with SIGKILL. Its leader is not: what it was answered it remembers (in a file beside
the helper's folder), what it was not it asks again.
"""

import pickle
import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa

from device_runtime.helper_wire import HelperProblem
from helper.desk import Desk
from helper.tables import FORMAT, metadata
from tests import postgres
from tests.conftest import GOLDEN
from tests.kill_points import every_kill_point
from tests.suite import strides
from tests.toy_helper import (
    TASK_ID,
    Report,
    expected,
    named,
    new,
    opened,
    reports,
)

# One round from its task's registration to the leader's having the answer, and the next one.
WORK = """
import pickle, sys
from pathlib import Path
import sqlalchemy as sa
from device_runtime.helper_wire import AnswerTaken
from tests.toy_helper import *

def step(*_):
    sys.audit("kill_points.step", "SQL")

def work(folder: Path) -> None:
    database, memory = Path(f"{folder}.database"), Path(f"{folder}.leader")
    if database.exists():  # PostgreSQL, whose statements are steps too
        sa.event.listen(sa.Engine, "before_cursor_execute", step)
        sa.event.listen(sa.Engine, "commit", step)
    told = pickle.loads(memory.read_bytes()) if memory.exists() else {}
    desk = new(folder, database=database.read_text() if database.exists() else None)

    def ask(name, call):
        if name not in told:
            told[name] = call()
            memory.write_bytes(pickle.dumps(told))
        return told[name]

    ask("register", lambda: desk.register(registration(), 0.0))
    keys = ask("keys", lambda: keys_of(desk, 1, 2))
    for round, devices in OF.items():
        sent = reports(devices, round, keys)
        ask(round, lambda: desk.answer(named(sent, round), 1.0))
        ask(f"done {round}", lambda: desk.taken(AnswerTaken(TASK_ID, round)))
    desk.close()
"""
OF = {1: range(3), 2: range(3, 6)}  # devices by the round they are counted in
OTHERS = {1: range(1, 5), 2: range(4, 8)}  # sets that nobody asked for before


class Played:
    """A helper's folder, what its leader remembers, and what must hold of both after a kill.

    So many rounds are played, from a helper that has begun once, or from nothing.
    """

    def __init__(
        self, place: Path, rounds: int = 1, database: str | None = None, has_begun: bool = True
    ):
        self.folder, self.copy = place / "helper", place / "copy"
        self.of = {round: OF[round] for round in range(1, rounds + 1)}
        self.script = f"OF = {self.of}\n{WORK}"
        self._template = place / "template" if has_begun and database is None else None
        if self._template is not None:
            new(self._template).close()
        self._database, self._scope = database, {}
        exec(compile(self.script, "work", "exec"), self._scope)

    def prepare(self, at: Path) -> None:
        Path(f"{at}.leader").unlink(missing_ok=True)
        if self._template is not None:
            shutil.copytree(self._template, at, dirs_exist_ok=True)
        if self._database is not None:
            Path(f"{at}.database").write_text(self._database)
            engine = sa.create_engine(self._database)
            metadata.drop_all(engine)
            engine.dispose()

    def told(self, at: Path) -> dict:
        memory = Path(f"{at}.leader")
        return pickle.loads(memory.read_bytes()) if memory.exists() else {}

    def check(self, at: Path) -> None:
        """What a killed helper has left: no seed, no way to a second set, and a way to go on."""
        told = self.told(at)
        for sent in self.sent(told):
            for path in (path for path in at.rglob("*") if path.is_file()):
                data = path.read_bytes()
                assert not any(each.seed in data for each in sent), path
        if self._database is None and "keys" in told:
            shutil.rmtree(self.copy, ignore_errors=True)
            shutil.copytree(at, self.copy)
            self.only_one_set(new(self.copy), told)
        self._scope["work"](at)
        self.ended(at)

    def sent(self, told: dict) -> list[list[Report]]:
        keys = told.get("keys")
        return [reports(each, round, keys) for round, each in self.of.items()] if keys else []

    def only_one_set(self, desk: Desk, told: dict) -> None:
        """A leader that was answered, or not, tries another set before it asks again."""
        for round in self.of:
            sent, others = (
                reports(devices[round], round, told["keys"]) for devices in (OF, OTHERS)
            )
            other, mine = (desk.answer(named(each, round), 2.0) for each in (others, sent))
            assert isinstance(other, HelperProblem) or isinstance(mine, HelperProblem)
            if round in told:
                assert isinstance(other, HelperProblem)
                assert isinstance(mine, HelperProblem) or mine == told[round]
            elif isinstance(mine, bytes):
                assert opened(mine, sent) == expected(sent)
            else:
                assert mine.refusal.value in ("second_set", "unknown_round", "too_soon")
        desk.close()

    def ended(self, at: Path) -> None:
        told = self.told(at)
        for round, sent in zip(self.of, self.sent(told), strict=True):
            assert opened(told[round], sent) == expected(sent)
        # nothing is left that could open any of it
        left = [path.name for name in ("keys", "answers") for path in (at / name).iterdir()]
        assert left == [f"{TASK_ID}~{round}" for round in OF if round not in self.of]


@strides(3)
def test_a_helper_killed_at_any_step_answers_once_and_keeps_no_seed(
    fast_folder, stride, record_property
):
    played = Played(fast_folder)
    kills = every_kill_point(
        played.script, played.folder, played.prepare, played.check, stride=stride
    )
    record_property("did", f"killed at each of {kills} steps")
    assert kills > 20 / stride


OPENS = """
from pathlib import Path
from tests.toy_helper import new

def work(folder: Path) -> None:
    new(folder).close()
"""


def test_a_helper_killed_while_it_brings_an_older_database_along_goes_on_with_it(fast_folder):
    def prepare(folder: Path) -> None:
        shutil.unpack_archive(GOLDEN / "helper-1.zip", folder)

    def check(folder: Path) -> None:
        desk = new(folder)
        assert desk.report().answers == 1
        with desk._store.transaction() as rows:  # of the newest format
            format, last_sum = rows._connection.execute(
                sa.text("SELECT format, max(last_sum) FROM helpers, participations")
            ).one()
        assert (format, last_sum) == (FORMAT, 0)
        desk.close()

    assert every_kill_point(OPENS, fast_folder / "helper", prepare, check) > 5


@pytest.fixture(scope="module")
def socket():
    with postgres.running() as folder:
        yield folder


@pytest.mark.prove
@pytest.mark.timeout(900)
@pytest.mark.parametrize("database", ["SQLite", "PostgreSQL"])
def test_a_helper_killed_at_any_step_from_its_first_on_answers_once(
    fast_folder, socket, database, record_property
):
    url = postgres.new_database(socket, "killed everywhere") if database != "SQLite" else None
    played = Played(fast_folder, rounds=2, database=url, has_begun=False)
    kills = every_kill_point(played.script, played.folder, played.prepare, played.check)
    record_property("did", f"killed at each of {kills} steps")
    assert kills > 50
