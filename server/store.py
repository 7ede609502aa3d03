"""Durable state: devices, rounds, the ledger of assignments and the sum of the open round, in one database.

SQLite by default (write-ahead log); any SQLAlchemy URL works. The tables are made and changed by the alembic migrations beside this file.
What must hold together is written in one `transaction`. A killed process loses none that has ended; a power cut none that was `durable`.
"""

import fcntl
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import alembic.util
import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from device_runtime import config
from device_runtime.errors import RunError
from device_runtime.wire import Cause, RoundReport
from server.aggregation import Sum
from server.rounds import OPEN, Phase, RoundState
from server.task import Task

metadata = sa.MetaData()
_SHA = sa.String(64)
_DEVICE = sa.String(16)
_ROUND = sa.BigInteger

devices = sa.Table(
    "devices",
    metadata,
    sa.Column("device", _DEVICE, primary_key=True),
    sa.Column("public_key", sa.String(64), nullable=False),
    sa.Column("enrolled_at", sa.Float, nullable=False),
    sa.Column("last_counted", _ROUND),
)
nonces = sa.Table(
    "nonces",
    metadata,
    sa.Column("device", _DEVICE, sa.ForeignKey("devices.device"), primary_key=True),
    sa.Column("nonce", sa.String(32), primary_key=True),
    sa.Column("seen_at", sa.Float, nullable=False, index=True),
)
tasks = sa.Table("tasks", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("body", sa.Text, nullable=False))
checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("sha", _SHA, primary_key=True),
    sa.Column("round", _ROUND, nullable=False, unique=True),
    sa.Column("half", _SHA, nullable=False),
    sa.Column("velocity", _SHA, nullable=False),
)
rounds = sa.Table(
    "rounds",
    metadata,
    sa.Column("round", _ROUND, primary_key=True, autoincrement=False),
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("base", _SHA, sa.ForeignKey("checkpoints.sha"), nullable=False),
    sa.Column("made", _SHA, sa.ForeignKey("checkpoints.sha")),
    sa.Column("opened_at", sa.Float, nullable=False),
    sa.Column("first_admitted", sa.Float),
    sa.Column("last_admitted", sa.Float),
    sa.Column("closed_at", sa.Float),
    sa.Column("bytes_down", sa.BigInteger, nullable=False),
)
check_ins = sa.Table(
    "check_ins",
    metadata,
    sa.Column("round", _ROUND, sa.ForeignKey("rounds.round"), primary_key=True),
    sa.Column("device", _DEVICE, sa.ForeignKey("devices.device"), primary_key=True),
    sa.Column("outcome", sa.String(32), nullable=False),
)
assignments = sa.Table(
    "assignments",
    metadata,
    sa.Column("assignment", sa.String(32), primary_key=True),
    sa.Column("round", _ROUND, sa.ForeignKey("rounds.round"), nullable=False),
    sa.Column("device", _DEVICE, sa.ForeignKey("devices.device"), nullable=False, index=True),
    sa.Column("admitted_at", sa.Float, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("cause", sa.String(32)),
    sa.Column("update_hash", _SHA),
    sa.Column("examples", sa.BigInteger, nullable=False),
    sa.Column("bytes_up", sa.BigInteger, nullable=False),
    sa.Column("downloaded", sa.Boolean, nullable=False),
    sa.UniqueConstraint("round", "device"),
)
sums = sa.Table(
    "sums",
    metadata,
    sa.Column("round", _ROUND, sa.ForeignKey("rounds.round"), primary_key=True),
    sa.Column("total", sa.LargeBinary, nullable=False),
    sa.Column("weight", sa.BigInteger, nullable=False),
    sa.Column("count", sa.BigInteger, nullable=False),
)

ASSIGNED = "assigned"  # the outcome of a check-in that was not refused


class Status(StrEnum):
    """What became of an assignment."""

    OPEN = "open"
    COUNTED = "counted"
    REFUSED = "refused"  # its update broke a rule
    ABANDONED = "abandoned"  # by the device
    CLOSED = "closed"  # the round ended without it


@dataclass(frozen=True)
class Device:
    public_key: str
    last_counted: int | None  # round


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint by the names of its blobs."""

    sha: str  # float32, what the server goes on from
    round: int
    half: str  # float16, what devices get
    velocity: str = ""  # momentum of the server's step, if it has any


@dataclass(frozen=True)
class StoredAssignment:
    assignment: str
    round: int
    device: str
    admitted_at: float
    status: Status
    cause: Cause | None
    update_hash: str | None


class Store:
    """One database, used by one server at a time."""

    def __init__(self, database: Path | str):
        """Open an SQLite file, or any database by its URL, and bring its tables up to date. Raises RunError if it cannot be used."""
        url = sa.URL.create("sqlite", database=str(database)) if isinstance(database, Path) else sa.make_url(database)
        where = url.database or url.render_as_string()
        # errors carry no parameters: an update or a key must not end in a log
        self._engine = sa.create_engine(url, hide_parameters=True)
        self._lock_file = None
        if url.get_backend_name() == "sqlite":
            self._lock_file = _locked(Path(where))
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        try:
            self._migrate()
        except (sa.exc.DBAPIError, alembic.util.CommandError) as error:
            self.close()
            reason = str(getattr(error, "orig", error)).splitlines()[0]
            raise RunError(where, f"cannot be used as the server's database ({reason})", "give a new folder, or a newer Fedboard") from None

    @contextmanager
    def transaction(self, durable: bool = False) -> Iterator["Rows"]:
        """All that is written inside holds together when the block ends, or not at all if it raises; if durable, the disk has it."""
        with self._engine.connect() as connection, connection.execution_options(durable=durable).begin():
            yield Rows(connection)

    def close(self) -> None:
        self._engine.dispose()
        if self._lock_file is not None:
            self._lock_file.close()

    def _migrate(self) -> None:
        settings = alembic.config.Config()
        settings.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        with self._engine.begin() as connection:
            settings.attributes["connection"] = connection
            alembic.command.upgrade(settings, "head")


class Rows:
    """Reading and writing inside one transaction."""

    def __init__(self, connection: sa.Connection):
        self._connection = connection

    # devices

    def enrol(self, device: str, public_key: str, now: float) -> None:
        row = {"device": device, "public_key": public_key, "enrolled_at": now}
        self._put(devices, row)

    def device(self, device: str) -> Device | None:
        row = self._connection.execute(_DEVICE_BY_NAME, {"device": device}).one_or_none()
        return None if row is None else Device(*row)

    def note_nonce(self, device: str, nonce: str, now: float) -> bool:
        """False if the device used it before."""
        row = {"device": device, "nonce": nonce, "seen_at": now}
        return self._put(nonces, row) == 1

    def forget_nonces(self, before: float) -> None:
        self._connection.execute(nonces.delete().where(nonces.c.seen_at < before))

    # the task and its checkpoints

    def add_task(self, task: Task) -> None:
        self._connection.execute(tasks.insert().values(id=1, body=config.to_json(task).decode()))

    def task(self) -> Task | None:
        """Raises ConfigError for a task of an unknown version."""
        body = self._connection.execute(sa.select(tasks.c.body)).scalar_one_or_none()
        return None if body is None else config.from_json(Task, body.encode(), "task")

    def add_checkpoint(self, checkpoint: StoredCheckpoint) -> None:
        row = {"sha": checkpoint.sha, "round": checkpoint.round, "half": checkpoint.half, "velocity": checkpoint.velocity}
        self._connection.execute(checkpoints.insert().values(row))

    def newest_checkpoint(self) -> StoredCheckpoint:
        columns = checkpoints.c
        query = sa.select(columns.sha, columns.round, columns.half, columns.velocity).order_by(columns.round.desc()).limit(1)
        return StoredCheckpoint(*self._connection.execute(query).one())

    def newest_halves(self, count: int) -> list[str]:
        """The newest checkpoints as devices get them."""
        query = sa.select(checkpoints.c.half).order_by(checkpoints.c.round.desc()).limit(count)
        return list(self._connection.execute(query).scalars())

    # rounds

    def open_round(self, round: int, base: str, now: float) -> None:
        row = {"round": round, "phase": Phase.SELECTING.value, "base": base, "opened_at": now, "bytes_down": 0}
        self._connection.execute(rounds.insert().values(row))

    def save_round(self, state: RoundState) -> None:
        """Keep how far an open round is. Its end is written by `close_round`, together with its checkpoint."""
        if state.phase in OPEN:
            changed = {"phase": state.phase.value, "first_admitted": state.first_admitted, "last_admitted": state.last_admitted}
            self._connection.execute(rounds.update().where(rounds.c.round == state.round).values(changed))

    def close_round(self, state: RoundState, made: str | None, cause: Cause, now: float) -> None:
        """End a round; its open assignments are dropped for `cause` and its sum is removed."""
        changed = {"phase": state.phase.value, "made": made, "closed_at": now}
        self._connection.execute(rounds.update().where(rounds.c.round == state.round).values(changed))
        left = (assignments.c.round == state.round) & (assignments.c.status == Status.OPEN.value)
        self._connection.execute(assignments.update().where(left).values(status=Status.CLOSED.value, cause=cause.value))
        self._connection.execute(sums.delete().where(sums.c.round == state.round))

    def newest_round(self) -> RoundState:
        """The last round opened, with the devices in it."""
        columns = rounds.c
        query = sa.select(columns.round, columns.phase, columns.first_admitted, columns.last_admitted).order_by(columns.round.desc()).limit(1)
        number, phase, first, last = self._connection.execute(query).one()
        members = self._connection.execute(sa.select(assignments.c.device, assignments.c.status).where(assignments.c.round == number)).all()
        return RoundState(
            number,
            Phase(phase),
            admitted=frozenset(device for device, _ in members),
            reported=frozenset(device for device, status in members if status == Status.COUNTED),
            dropped=frozenset(device for device, status in members if status in (Status.REFUSED, Status.ABANDONED)),
            first_admitted=first,
            last_admitted=last,
        )

    def committed(self) -> int:
        """Rounds committed so far."""
        return self._connection.execute(sa.select(sa.func.count()).where(rounds.c.phase == Phase.COMMITTED.value)).scalar_one()

    # check-ins and assignments

    def note_check_in(self, round: int, device: str, outcome: str) -> None:
        """One outcome for each device and round: the first refusal, or ASSIGNED once it is assigned."""
        row = {"round": round, "device": device, "outcome": outcome}
        self._put(check_ins, row, replaced=("outcome",) if outcome == ASSIGNED else ())

    def assign(self, assignment: str, round: int, device: str, now: float, holds: bool = False) -> None:
        """Give a device work. `holds`: it has the round's checkpoint already, and counts as having downloaded it."""
        row = {"assignment": assignment, "round": round, "device": device, "admitted_at": now, "status": Status.OPEN.value}
        self._connection.execute(assignments.insert(), {**row, "examples": 0, "bytes_up": 0, "downloaded": holds})

    def assignment(self, assignment: str) -> StoredAssignment | None:
        return self._assignment(_ASSIGNMENT_BY_NAME, {"assignment": assignment})

    def assignment_of(self, device: str, round: int) -> StoredAssignment | None:
        return self._assignment(_ASSIGNMENT_BY_DEVICE, {"device": device, "round": round})

    def settle(self, assignment: str, status: Status, cause: Cause | None = None, update_hash: str | None = None, examples: int = 0) -> None:
        changed = {"status": status.value, "cause": cause and cause.value, "update_hash": update_hash, "examples": examples}
        self._connection.execute(assignments.update().where(assignments.c.assignment == assignment).values(changed))

    def note_counted(self, device: str, round: int) -> None:
        self._connection.execute(devices.update().where(devices.c.device == device).values(last_counted=round))

    def note_upload(self, assignment: str, size: int) -> None:
        more = {"bytes_up": assignments.c.bytes_up + size}
        self._connection.execute(assignments.update().where(assignments.c.assignment == assignment).values(more))

    def note_download(self, device: str, blob: str, size: int, complete: bool) -> None:
        """Count bytes served in the round of the device's last assignment, or in the newest round if it has none."""
        last = sa.select(assignments.c.assignment, assignments.c.round).where(assignments.c.device == device)
        row = self._connection.execute(last.order_by(assignments.c.round.desc()).limit(1)).one_or_none()
        number = sa.select(sa.func.max(rounds.c.round)).scalar_subquery() if row is None else row.round
        self._connection.execute(rounds.update().where(rounds.c.round == number).values(bytes_down=rounds.c.bytes_down + size))
        if row is not None and complete:
            given = sa.select(checkpoints.c.half).join(rounds, rounds.c.base == checkpoints.c.sha).where(rounds.c.round == row.round)
            mine = (assignments.c.assignment == row.assignment) & (given.scalar_subquery() == blob)
            self._connection.execute(assignments.update().where(mine).values(downloaded=True))

    # the sum of the open round

    def save_sum(self, round: int, sum: Sum) -> None:
        total = sum.total.astype("<i8", copy=False).tobytes()
        row = {"round": round, "total": total, "weight": sum.weight, "count": sum.count}
        self._put(sums, row, replaced=("total", "weight", "count"))

    def sum(self, round: int) -> Sum | None:
        """None before the first counted update."""
        row = self._connection.execute(sa.select(sums.c.total, sums.c.weight, sums.c.count).where(sums.c.round == round)).one_or_none()
        return None if row is None else Sum(np.frombuffer(row[0], "<i8").astype(np.int64, copy=False), row[1], row[2])

    # reports

    def reports(self, goal: int, now: float) -> tuple[RoundReport, ...]:
        """Every round so far, oldest first."""
        outcomes = self._counts(check_ins.c.round, check_ins.c.outcome)
        dropped = self._counts(assignments.c.round, assignments.c.cause)
        columns = assignments.c
        query = sa.select(
            columns.round,
            sa.func.count(),
            sa.func.sum(sa.case((columns.downloaded, 1), else_=0)),
            sa.func.sum(sa.case((columns.bytes_up > 0, 1), else_=0)),
            sa.func.sum(sa.case((columns.status == Status.COUNTED.value, 1), else_=0)),
            sa.func.sum(columns.examples),
            sa.func.sum(columns.bytes_up),
        ).group_by(columns.round)
        names = ("assigned", "downloaded", "uploaded", "counted", "examples", "bytes_up")
        totals = {number: dict(zip(names, map(int, values), strict=True)) for number, *values in self._connection.execute(query)}
        return tuple(
            RoundReport(
                round=row.round,
                phase=row.phase,
                goal=goal,
                checked_in=sum(outcomes.get(row.round, {}).values()),
                refused={cause: count for cause, count in outcomes.get(row.round, {}).items() if cause != ASSIGNED},
                dropped=dropped.get(row.round, {}),
                bytes_down=row.bytes_down,
                seconds=(now if row.closed_at is None else row.closed_at) - row.opened_at,
                checkpoint=row.made or "",
                **totals.get(row.round, {}),
            )
            for row in self._connection.execute(sa.select(rounds).order_by(rounds.c.round))
        )

    def _counts(self, round: sa.Column[int], name: sa.Column[str]) -> dict[int, dict[str, int]]:
        """Rows of each round by the value of one column, in its order; rows without a value are left out."""
        found: dict[int, dict[str, int]] = {}
        for number, value, count in self._connection.execute(
            sa.select(round, name, sa.func.count()).where(name.is_not(None)).group_by(round, name).order_by(name)
        ):
            found.setdefault(number, {})[value] = count
        return found

    def _assignment(self, query: sa.Select[Any], key: dict[str, Any]) -> StoredAssignment | None:
        row = self._connection.execute(query, key).one_or_none()
        if row is None:
            return None
        name, number, device, admitted_at, status, cause, update_hash = row
        return StoredAssignment(name, number, device, admitted_at, Status(status), cause and Cause(cause), update_hash)

    def _put(self, table: sa.Table, row: dict[str, Any], replaced: tuple[str, ...] = ()) -> int:
        """Insert a row; where one of its key stands already, change the columns `replaced` and no other. Returns the rows written, 0 or 1."""
        return self._connection.execute(_upsert(self._connection.dialect.name, table, replaced), row).rowcount


# built once: building a statement takes longer than running it

_DEVICE_BY_NAME = sa.select(devices.c.public_key, devices.c.last_counted).where(devices.c.device == sa.bindparam("device"))
_ASSIGNMENT = sa.select(*(assignments.c[name] for name in ("assignment", "round", "device", "admitted_at", "status", "cause", "update_hash")))
_ASSIGNMENT_BY_NAME = _ASSIGNMENT.where(assignments.c.assignment == sa.bindparam("assignment"))
_ASSIGNMENT_BY_DEVICE = _ASSIGNMENT.where(assignments.c.device == sa.bindparam("device"), assignments.c.round == sa.bindparam("round"))


@functools.cache
def _upsert(dialect: str, table: sa.Table, replaced: tuple[str, ...]) -> Any:
    insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[dialect]
    statement = insert(table)
    if not replaced:
        return statement.on_conflict_do_nothing()
    return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_={name: statement.excluded[name] for name in replaced})


def _locked(database: Path) -> Any:
    """A file that stays locked until it is closed or the process ends, however it ends."""
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        file = database.with_name(f"{database.name}.lock").open("w")
    except OSError as error:
        raise RunError(database.parent, f"cannot be written ({error.strerror})", "give a folder that can be written") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise RunError(database.parent, "another server is using this folder", "stop that server or give another folder") from None
    return file


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy begins and ends the transactions, tables included
    for setting in ("journal_mode = WAL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {setting}")


def _begin_sqlite(connection: sa.Connection) -> None:
    # FULL waits for the disk, about a millisecond: worth it for an acknowledged update, not for a check-in
    level = "FULL" if connection.get_execution_options().get("durable", True) else "NORMAL"
    connection.exec_driver_sql(f"PRAGMA synchronous = {level}")
    connection.exec_driver_sql("BEGIN IMMEDIATE")
