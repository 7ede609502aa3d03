"""A helper killed at every step gives each sum one noise, keeps what was given and no other of it.

It is killed with SIGKILL while it answers two rounds of a task whose noise correlates. Its leader
is not: what it was answered it remembers, what it was not it asks again.
"""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from device_runtime.helper_wire import HelperProblem
from helper.desk import Desk
from helper.tables import metadata
from tests import postgres
from tests.kill_points import every_kill_point
from tests.suite import strides
from tests.toy_helper import (
    NOISE,
    NOISED,
    TASK_ID,
    Report,
    keys_of,
    named,
    new,
    noise_in,
    noised,
    registration,
    reports,
)

# one buffer that forgets nothing: the second noise takes off all that the first added, so that
# the two together are as wide as one
TERMS = replace(NOISED, noise=replace(NOISE, decays=(1.0,), scales=(1.0,)))
OF = {1: range(3), 2: range(2, 6)}  # devices by the round they are counted in
OTHERS = {1: range(1, 5), 2: range(4, 8)}  # sets that nobody asked for before

WORK = """
import pickle, sys
from pathlib import Path
import numpy as np
import sqlalchemy as sa
from device_runtime.helper_wire import AnswerTaken
from tests.toy_helper import TASK_ID, named, new, reports
from tests.test_helper_noise_kills import OF, TERMS

def step(*_):
    sys.audit("kill_points.step", "SQL")

def work(folder: Path) -> None:
    database, memory = Path(f"{folder}.database"), Path(f"{folder}.leader")
    if database.exists():  # PostgreSQL, whose statements are steps too
        sa.event.listen(sa.Engine, "before_cursor_execute", step)
        sa.event.listen(sa.Engine, "commit", step)
    told = pickle.loads(memory.read_bytes())
    source = np.random.default_rng()

    def random(size: int) -> bytes:  # what is drawn is known to who looks for it
        drawn = source.bytes(size)
        with open(f"{folder}.drawn", "ab") as file:
            file.write(drawn)
        return drawn

    desk = new(folder, database=database.read_text() if database.exists() else None, random=random)
    for round, devices in OF.items():
        sent = reports(devices, round, told["keys"], TERMS)
        for name, call in (
            (round, lambda: desk.answer(named(sent, round), 1.0)),
            (f"done {round}", lambda: desk.taken(AnswerTaken(TASK_ID, round))),
        ):
            if name not in told:
                told[name] = call()
                memory.write_bytes(pickle.dumps(told))
    desk.close()
"""


class Played:
    """A helper's folder, what its leader remembers, and what must hold of both after a kill."""

    def __init__(self, place: Path, database: str | None = None):
        self.folder, self.copy, self.database = place / "helper", place / "copy", database
        self._template = place / "template"
        if database is None:
            self._begin(self._template)
        self._scope: dict = {}
        exec(compile(WORK, "work", "exec"), self._scope)

    def prepare(self, at: Path) -> None:
        Path(f"{at}.drawn").write_bytes(b"")
        if self.database is None:
            shutil.copytree(self._template, at, dirs_exist_ok=True)
            shutil.copy(f"{self._template}.leader", f"{at}.leader")
            return
        Path(f"{at}.database").write_text(self.database)
        engine = sa.create_engine(self.database)
        metadata.drop_all(engine)
        engine.dispose()
        self._begin(at)

    def _begin(self, at: Path) -> None:
        desk = new(at, database=self.database)
        desk.register(registration(TERMS), 0.0)
        Path(f"{at}.leader").write_bytes(pickle.dumps({"keys": keys_of(desk, 1, 2)}))
        desk.close()

    def told(self, at: Path) -> dict:
        return pickle.loads(Path(f"{at}.leader").read_bytes())

    def sent(self, told: dict, of: dict = OF) -> dict[int, list[Report]]:
        return {round: reports(of[round], round, told["keys"], TERMS) for round in of}

    def check(self, at: Path) -> None:
        told = self.told(at)
        self.no_secret(at)
        if self.database is None:
            shutil.rmtree(self.copy, ignore_errors=True)
            shutil.copytree(at, self.copy)
            self.only_one_noise(new(self.copy), told)
        self._scope["work"](at)
        self.no_secret(at)
        self.ended(at)

    def no_secret(self, at: Path) -> None:
        """Of what was drawn, no byte is in a file that is no key's slot."""
        data = Path(f"{at}.drawn").read_bytes()
        drawn = [data[start : start + 32] for start in range(0, len(data), 32)]
        assert drawn or not list((at / "noise").glob("*"))
        for path in (path for path in at.rglob("*") if path.is_file()):
            if path.parent.name not in ("keys", "noise"):
                text = path.read_bytes()
                assert not any(each in text for each in drawn), path
        assert len(list((at / "noise").glob("*"))) <= 2

    def only_one_noise(self, desk: Desk, told: dict) -> None:
        """A leader that was answered, or not, tries another set before it asks again."""
        mine, others = self.sent(told), self.sent(told, OTHERS)
        for round in OF:
            other = desk.answer(named(others[round], round), 2.0)
            again = desk.answer(named(mine[round], round), 2.0)
            assert isinstance(other, HelperProblem) or isinstance(again, HelperProblem)
            if round in told:
                assert isinstance(other, HelperProblem)
                assert isinstance(again, HelperProblem) or again == told[round]
        desk.close()

    def ended(self, at: Path) -> None:
        """Each sum was given once, with the noise that the buffers know of, from one beginning."""
        told = self.told(at)
        sent = self.sent(told)
        account = [noised(told[round], TERMS) for round in OF]
        assert [(each.began, each.sums) for each in account] == [((1,), 1), ((1,), 2)]
        first, second = (noise_in(told[round], sent[round], TERMS) for round in OF)
        for together in (first, first + second):
            assert together.std() == pytest.approx(TERMS.deviation, rel=0.06)
        assert abs(np.corrcoef(first, first + second)[0, 1]) < 0.08
        left = [path.name for name in ("noise", "answers") for path in (at / name).iterdir()]
        assert left == [f"{TASK_ID}~2"]


@strides(5)
def test_a_helper_killed_at_any_step_gives_each_sum_one_noise(fast_folder, stride, record_property):
    played = Played(fast_folder)
    kills = every_kill_point(WORK, played.folder, played.prepare, played.check, stride=stride)
    record_property("did", f"killed at each of {kills} steps")
    assert kills > 30 / stride


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_a_helper_on_postgresql_killed_at_any_step_gives_each_sum_one_noise(
    fast_folder, record_property
):
    with postgres.running() as socket:
        played = Played(fast_folder, postgres.new_database(socket, "killed with noise"))
        kills = every_kill_point(WORK, played.folder, played.prepare, played.check)
    record_property("did", f"killed at each of {kills} steps")
    assert kills > 30
