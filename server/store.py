"""Durable state: devices, tasks, rounds, assignments and the sums of open rounds, in one database.

SQLite by default (write-ahead log), used by one server; PostgreSQL by its URL for several replicas
that share it. The tables are made and changed by the alembic migrations beside this file. What must
hold together is written in one `transaction`. A killed process loses none that has ended; a power
cut none that was `durable`. Statements take whole groups: a transaction costs the same for one
device and for a hundred.
"""

import contextlib
import functools
import json
import operator
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import alembic.command
import alembic.config
import alembic.util
import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from device_runtime import config, scores
from device_runtime.causes import Cause, Step
from device_runtime.errors import RunError
from device_runtime.terms import Aggregation
from device_runtime.wire import MOST_ROUNDS, UNDER_WAY, Phase, RoundReport, Signed
from server import disk
from server.lists import is_one_of, parameter
from server.log_rows import LogRows
from server.pacing import Told
from server.places import Places, Ticket
from server.release_rows import ReleaseRows
from server.requests import Nonce
from server.rounds import RoundState
from server.score_rows import ScoreRows
from server.seal_rows import SealRows
from server.secagg_rows import SecaggRows
from server.spending_rows import SpendingRows
from server.tables import (
    REVISION,
    assignments,
    certificates,
    check_ins,
    checkpoints,
    codes,
    devices,
    due,
    heartbeats,
    nonces,
    outcomes,
    participations,
    rounds,
    seals,
    servers,
    sums,
    tallies,
    tasks,
)
from server.task import State, Task, agreeing

Unusable = sa.exc.SQLAlchemyError  # what a store raises while its database cannot be used
# of those, what no request has brought about: the database is away, locked or full
Away = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError)
ASSIGNED = "assigned"  # the outcome of a check-in that was not refused
REFUSED, DROPPED = Step.REFUSED.value, Step.DROPPED.value  # steps of `outcomes`
# of a round, added to
COUNTS = (
    "assigned",
    "downloaded",
    "uploaded",
    "examples",
    "bytes_up",
    "bytes_down",
)
_GOOD_SINCE = "good_since"  # of `heartbeats`
_LOG_PAGES, _PAGE_BYTES = 16_384, 4096  # of an SQLite file's log, before they are written back
_BUSY_MS = 5000  # until another process must have written to an SQLite file
_WRITER_KB = 8192  # of pages in memory, of the one connection that writes nearly always
_SIMULATED_KB = 512 * 1024  # the same of a simulated server, which has a million devices
_ADVISORY_LOCK = 0xFEDB0A2D  # one writing transaction at a time on a PostgreSQL database


class AssignmentStatus(StrEnum):
    """What became of an assignment."""

    OPEN = "open"
    COUNTED = "counted"
    REFUSED = "refused"  # its update broke a rule
    ABANDONED = "abandoned"  # by the device
    CLOSED = "closed"  # the round ended without it, or it came too late


@dataclass(frozen=True)
class StoredTask:
    """A task and what it is doing."""

    task: Task
    state: State
    created_at: float


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint by the names of its blobs."""

    sha: str  # float32, what the server goes on from
    round: int
    half: str  # float16, what devices get
    moments: str = ""  # state of the server's optimizer, if it has any
    parent: str = ""
    made_at: float = 0.0


@dataclass(frozen=True)
class StoredTally:
    """What one round of a task that counts has opened."""

    people: int
    body: bytes  # counts, int64 [entries], little-endian, zlib


@dataclass(frozen=True)
class StoredCertificate:
    """A certificate of a round key, and what it says."""

    number: int  # of the task's
    signed: Signed
    round_key: str
    first_round: int
    rounds: int
    expires_at: float
    made_at: float

    @property
    def end(self) -> int:
        """The first round that it does not cover any more."""
        return self.first_round + self.rounds


@dataclass(frozen=True)
class StoredRound:
    """A round that has not been closed: what it gives to devices, and how far it is."""

    task: str
    state: RoundState
    base: str  # sha of the checkpoint
    base_round: int
    half: str  # of the base


@dataclass(frozen=True)
class StoredAssignment:
    """One device's work in one round, and what became of it."""

    assignment: str
    task: str
    round: int
    device: str
    admitted_at: float
    status: AssignmentStatus = AssignmentStatus.OPEN
    cause: Cause | None = None
    update_hash: str | None = None
    downloaded: bool = False
    uploaded: bool = False
    counted_in: int | None = None


class StoredCheckIn(NamedTuple):
    """What came of a device's check-in to an open round, and its ticket for a place, if it has
    one.
    """

    outcome: str
    ticket: Ticket | None = None


class Known(NamedTuple):
    """Of an enrolled device: since when it is, and when it was told to come again."""

    enrolled_at: float
    told: Told | None = None


@dataclass(frozen=True)
class Participation:
    """One device in one task."""

    last_counted: int
    counted: int
    smallest_separation: int | None = None  # rounds; None before the second
    barred: bool = False  # it has cost a round what that had counted
    last_sum: int | None = None  # number of the last sum with noise that it was in
    in_sums: int = 0  # with noise


@dataclass(frozen=True)
class StoredCode:
    """An enrolment code, and the device that has used it."""

    expires_at: float
    device: str | None


@dataclass(frozen=True)
class StoredSum:
    """What a replica has counted of a round, as `server.masks` has sealed it."""

    replica: str
    generation: int  # of the key
    body: bytes | memoryview


class Store:
    """One database. An SQLite file belongs to one server at a time; PostgreSQL is shared."""

    def __init__(self, database: Path | str, simulated: str = ""):
        """Open an SQLite file, or any database by its URL, and bring its tables up to date.
        `simulated` is the name of a simulated server, 32 hexadecimal digits: new tables are its,
        and nothing of an SQLite file waits for the disk. Raises RunError if it cannot be used.
        """
        self._simulated = simulated
        try:
            url = (
                sa.URL.create("sqlite", database=str(database))
                if isinstance(database, Path)
                else sa.make_url(database)
            )
            # errors carry no parameters: an update or a key must not end in a log
            self._engine = sa.create_engine(
                url, hide_parameters=True, **_ENGINE.get(url.get_backend_name(), {})
            )
        except sa.exc.ArgumentError:
            raise RunError(
                "database",
                "expected an address such as postgresql+psycopg://host/name, found another",
                "correct it",
            ) from None
        self.name = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}.get(
            url.get_backend_name(), url.get_backend_name()
        )
        where = url.set(password=None).render_as_string() if self.shared else str(url.database)
        self._file: disk.Held | None = None
        # of an SQLite file: where keys lie that must not be in it
        self.beside: Path | None = None
        if not self.shared:
            self.beside = Path(f"{where}.keys")
            _require_ours(Path(where))
            self._file = disk.Held(Path(where))
            sa.event.listen(self._engine, "do_connect", self._require_file)
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            if simulated:
                sa.event.listen(self._engine, "connect", _wait_for_no_disk)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        try:
            if self._migrate():
                self.forget()
            if simulated:
                with self.transaction() as rows:
                    rows.be_server(simulated)
        except (sa.exc.DBAPIError, alembic.util.CommandError) as error:
            self.close()
            reason = str(getattr(error, "orig", error)).splitlines()[0]
            raise RunError(
                where,
                f"cannot be used as the server's database ({reason})",
                "give another one, or a newer Fedboard",
            ) from None

    @property
    def shared(self) -> bool:
        """Whether other servers may be using the same database."""
        return self.name != "SQLite"

    @contextmanager
    def transaction(
        self, durable: bool = False, forgets: bool = False, at_once: bool = False
    ) -> Iterator["Rows"]:
        """All that is written inside holds together when the block ends, or not at all if it
        raises; if durable, the disk has it. If it forgets, an SQLite file keeps nothing of what is
        deleted inside; its log does until `tidy`. Raises RunError if an SQLite file is not there
        any more. If `at_once`, an SQLite file waits for no other process that is writing to it, but
        raises; and leaves it to `write_back` to bring home what its log holds.

        One at a time, of all servers that share the database.
        """
        options: dict[str, Any] = {"durable": durable, "forgets": forgets, "at_once": at_once}
        if self._simulated:
            options |= {"simulated": True, "cache_kb": _SIMULATED_KB}
        with (
            self._engine.connect() as connection,
            connection.execution_options(**options).begin(),
        ):
            if self.shared:
                connection.execute(
                    sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK}
                )
                if not durable:
                    connection.execute(sa.text("SET LOCAL synchronous_commit = off"))
            yield Rows(connection)
            self._require_file()

    @contextmanager
    def reading(self) -> Iterator["Rows"]:
        """What the last transaction left, without waiting for the one under way."""
        with (
            self._engine.connect() as connection,
            connection.execution_options(reading=True).begin(),
        ):
            yield Rows(connection)

    def write_back(self) -> None:
        """Bring home what a long log of an SQLite file holds, so that it begins anew."""
        if not self.shared and self._log_bytes() > _LOG_PAGES * _PAGE_BYTES:
            with self._engine.connect() as connection:
                connection.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _log_bytes(self) -> int:
        try:
            return os.stat(f"{self._engine.url.database}-wal").st_size
        except OSError:
            return 0

    def tidy(self) -> None:
        """Let go of what older versions of a file hold: sums that have been replaced are not
        kept.
        """
        if not self.shared:
            with self._engine.connect() as connection:
                connection.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def forget(self) -> None:
        """Let go of all that was replaced or deleted: what an older version stored of sums, as they
        were, is neither in a free page nor in the log. Every page is written anew.
        """
        if not self.shared:
            with self._engine.connect() as connection:
                connection.connection.execute("VACUUM")
            self.tidy()

    def beat(self, now: float) -> None:
        """Write something, to see that it can be written. Raises what writing raises, and RunError
        if there is no room for more.
        """
        if self.beside is not None:
            disk.require_room(self.beside.parent)
        with self.transaction() as rows:
            rows.beat(now)

    def close(self) -> None:
        """Let go of the database. Nothing is lost without it."""
        if self._file is not None:
            with contextlib.suppress(sa.exc.DBAPIError, RunError):
                self.tidy()
        self._engine.dispose()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _require_file(self, *_: Any) -> None:
        if self._file is not None:
            self._file.require_same()

    def _migrate(self) -> bool:
        """Bring the tables up to date; whether they were those of an older version."""
        settings = alembic.config.Config()
        settings.set_main_option(
            "script_location", str(Path(__file__).parent / "migrations").replace("%", "%%")
        )
        with self._engine.begin() as connection:
            if self.shared:
                connection.execute(
                    sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK}
                )
            has = sa.text("SELECT version_num FROM alembic_version")
            is_new = not sa.inspect(connection).has_table("alembic_version")
            if not is_new and connection.execute(has).scalars().all() == [REVISION]:
                return False  # looking through the migrations takes longer than all else
            settings.attributes["connection"] = connection
            alembic.command.upgrade(settings, "head")
            return not is_new


class Rows:
    """Reading and writing inside one transaction."""

    def __init__(self, connection: sa.Connection):
        self._connection = connection

    @property
    def releases(self) -> ReleaseRows:
        """What has been published."""
        return ReleaseRows(self._connection)

    @property
    def log(self) -> LogRows:
        """What is entered in the log, and the heads that were signed."""
        return LogRows(self._connection)

    @property
    def seals(self) -> SealRows:
        """What masked sums are opened with."""
        return SealRows(self._connection)

    @property
    def spending(self) -> SpendingRows:
        """What was spent of the privacy of tasks with noise."""
        return SpendingRows(self._connection)

    # the server, its devices, their codes and nonces

    def server(self) -> str:
        """The name of this database's server, 32 hexadecimal digits."""
        name: str = self._connection.execute(sa.select(servers.c.server)).scalar_one()
        return name

    def be_server(self, name: str) -> None:
        """Give a simulated server its name, before anything stands in its tables."""
        self._connection.execute(servers.update().values(server=name))

    def enrol(self, device: str, public_key: str, now: float) -> None:
        """Keep a device's key; one that is kept already stays as it is."""
        self._put(devices, [{"device": device, "public_key": public_key, "enrolled_at": now}])

    def certify_device(self, device: str, signature: str) -> None:
        """Keep what shows that a device is one, hexadecimal, in the place of what was there."""
        mine = devices.c.device == device
        self._connection.execute(devices.update().where(mine).values(enrolment=signature))

    def public_key(self, device: str) -> str | None:
        """The key of a device, hexadecimal; None if it is not enrolled."""
        return self.public_keys([device]).get(device)

    def public_keys(self, names: Iterable[str]) -> dict[str, str]:
        """The keys of those of the devices that are enrolled, hexadecimal."""
        return {name: key for name, key in self._of(_PUBLIC_KEYS, devices=names)}

    def known(self, names: Iterable[str]) -> dict[str, Known]:
        """Those of the devices that are enrolled."""
        kept = self._of(_KNOWN, devices=names)
        return {
            device: Known(at, None if due_at is None else Told(told_at, due_at))
            for device, at, told_at, due_at in kept
        }

    def enrolled_by(self, names: Iterable[str], now: float) -> None:
        """Let devices be enrolled since now: their time was that of a clock that was ahead."""
        ahead = devices.c.device.in_(list(names)) & (devices.c.enrolled_at > now)
        self._connection.execute(devices.update().where(ahead).values(enrolled_at=now))

    def tell(self, told: Mapping[str, Told]) -> None:
        """Remember when devices were told to come again, in the place of what they were told
        before.
        """
        rows = [
            {"device": device, "told_at": each.at, "due_at": each.due}
            for device, each in told.items()
        ]
        self._put(due, rows, replaced=("told_at", "due_at"))

    def forget_due(self, before: float) -> None:
        """Forget what devices were told whose time had come before some time."""
        self._connection.execute(due.delete().where(due.c.due_at < before))

    def count_devices(self) -> int:
        """Devices enrolled."""
        return self._connection.execute(
            sa.select(sa.func.count()).select_from(devices)
        ).scalar_one()

    def add_codes(self, hashes: Iterable[str], expires_at: float) -> None:
        """Keep enrolment codes, by their SHA-256."""
        self._connection.execute(
            codes.insert(), [{"code": name, "expires_at": expires_at} for name in hashes]
        )

    def code(self, hashed: str) -> StoredCode | None:
        """An enrolment code by its SHA-256; None if there is none."""
        row = self._connection.execute(
            sa.select(codes.c.expires_at, codes.c.device).where(codes.c.code == hashed)
        ).one_or_none()
        return None if row is None else StoredCode(*row)

    def forget_codes(self, before: float) -> None:
        """Forget codes that were good until some time, and which devices they let in."""
        self._connection.execute(codes.delete().where(codes.c.expires_at < before))

    def use_code(self, hashed: str, device: str) -> None:
        """Note which device a code has let in."""
        self._connection.execute(codes.update().where(codes.c.code == hashed).values(device=device))

    def seen(self, used: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those of the (device, nonce) that were noted before."""
        asked = set(used)
        noted = self._of(_NONCES, nonces=[nonce for _, nonce in asked])
        return {(device, nonce) for device, nonce in noted if (device, nonce) in asked}

    def note_nonces(self, used: Iterable[tuple[str, Nonce]]) -> None:
        """Remember the nonces of devices."""
        self._many(
            _INSERT_NONCE,
            [
                {"device": device, "nonce": nonce.text, "signed_at": nonce.time}
                for device, nonce in used
            ],
        )

    def forget_nonces(self, before: float) -> None:
        """Forget those of requests that were signed before some time."""
        self._connection.execute(nonces.delete().where(nonces.c.signed_at < int(before)))

    def good_since(self, now: float) -> float:
        """Since when a request must have been signed: of those before, the nonces are forgotten. A
        clock that was ahead may have forgotten some that are good by the one of now.
        """
        kept = sa.select(heartbeats.c.at).where(heartbeats.c.heartbeat == _GOOD_SINCE)
        return min(self._connection.execute(kept).scalar_one_or_none() or 0.0, now)

    def set_good_since(self, time: float) -> None:
        """Keep what `good_since` gives."""
        self._put(heartbeats, [{"heartbeat": _GOOD_SINCE, "at": time}], replaced=("at",))

    # tasks and their checkpoints

    def add_task(self, task: Task, now: float) -> None:
        """Keep a new task, which runs."""
        row = {
            "task": task.name,
            "state": State.RUNNING.value,
            "created_at": now,
            "body": task.body.decode(),
        }
        self._connection.execute(tasks.insert(), row)

    def tasks(self) -> list[StoredTask]:
        """Oldest first. Raises ConfigError for a task of an unknown version."""
        kept = [
            StoredTask(_task(body), State(state), created_at)
            for body, state, created_at in self._connection.execute(_TASKS)
        ]
        named = {each.task.name: each.task for each in kept}
        return [
            replace(each, task=agreeing(each.task, named.get(each.task.evaluates)))
            if each.task.evaluates
            else each
            for each in kept
        ]

    def set_state(self, task: str, state: State) -> None:
        """Change what a task is doing."""
        self._connection.execute(
            tasks.update().where(tasks.c.task == task).values(state=state.value)
        )

    def add_checkpoint(self, task: str, checkpoint: StoredCheckpoint) -> None:
        """Keep a checkpoint of a task; one that is kept already stays as it is."""
        names = ("sha", "round", "parent", "half", "moments", "made_at")
        self._put(
            checkpoints, [{"task": task, **{name: getattr(checkpoint, name) for name in names}}]
        )

    def checkpoint(self, task: str, sha: str) -> StoredCheckpoint | None:
        """A checkpoint of a task by the SHA-256 of its float32 form."""
        row = self._connection.execute(
            _CHECKPOINT.where(checkpoints.c.task == task, checkpoints.c.sha == sha)
        ).one_or_none()
        return None if row is None else StoredCheckpoint(*row)

    def checkpoint_of_round(self, task: str, round: int) -> StoredCheckpoint | None:
        """The checkpoint a round of a task has made."""
        row = self._connection.execute(
            _CHECKPOINT.where(checkpoints.c.task == task, checkpoints.c.round == round)
        ).one_or_none()
        return None if row is None else StoredCheckpoint(*row)

    def checkpoints(self, task: str, most: int) -> list[StoredCheckpoint]:
        """The newest ones, newest first."""
        query = (
            _CHECKPOINT.where(checkpoints.c.task == task)
            .order_by(checkpoints.c.round.desc())
            .limit(most)
        )
        return [StoredCheckpoint(*row) for row in self._connection.execute(query)]

    def current(self, task: str) -> StoredCheckpoint | None:
        """The checkpoint a training task goes on from, or ended with."""
        columns = rounds.c
        query = (
            sa.select(sa.func.coalesce(columns.made, columns.base))
            .where(columns.task == task)
            .order_by(columns.round.desc())
            .limit(1)
        )
        sha = self._connection.execute(query).scalar_one_or_none()
        return None if sha is None else self.checkpoint(task, sha)

    # who signs checkpoints

    def add_certificate(self, task: str, certificate: StoredCertificate) -> None:
        """Keep a certificate of a task: from now on it is the newest."""
        row = {name: getattr(certificate, name) for name in _CERTIFICATE_COLUMNS}
        body = config.to_json(certificate.signed).decode()
        self._connection.execute(certificates.insert(), {"task": task, "body": body, **row})

    def certificate(self, task: str) -> StoredCertificate | None:
        """The newest certificate of a task."""
        row = self._connection.execute(_CERTIFICATE, {"of_task": task}).one_or_none()
        if row is None:
            return None
        number, body, *rest = row
        return StoredCertificate(number, config.from_json(Signed, body.encode(), "signed"), *rest)

    def set_link(self, task: str, sha: str, certificate: int, link: Signed) -> None:
        """Keep the signature of a checkpoint, and the number of the certificate it is by."""
        self._connection.execute(
            checkpoints.update()
            .where(checkpoints.c.task == task, checkpoints.c.sha == sha)
            .values(certificate=certificate, link=config.to_json(link).decode())
        )

    def link(self, task: str, sha: str) -> tuple[str, str, int, float] | None:
        """Link and certificate of a checkpoint, as JSON, the first round the certificate does not
        cover, and when it expires; None for a checkpoint that is not signed.
        """
        row = self._connection.execute(_LINK, {"of_task": task, "of_sha": sha}).one_or_none()
        return None if row is None else (row[0], row[1], row[2], row[3])

    # rounds

    def open_round(self, task: str, state: RoundState, base: StoredCheckpoint, now: float) -> None:
        """Open a round that starts from the checkpoint `base`."""
        row = {
            "task": task,
            "base": base.sha,
            "base_round": base.round,
            "half": base.half,
            "opened_at": now,
            **_columns(state),
        }
        self._connection.execute(rounds.insert(), row)

    def open_rounds(self) -> dict[str, StoredRound]:
        """The round of each task that has not been closed; it may be over already."""
        open_rounds = {}
        for (
            task,
            number,
            phase,
            admitted,
            reported,
            dropped,
            first,
            last,
            places,
            base,
            base_round,
            half,
        ) in self._connection.execute(_OPEN_ROUNDS):
            counts = admitted, reported, dropped, first, last
            state = RoundState(number, Phase(phase), *counts, _places(places))
            open_rounds[task] = StoredRound(task, state, base, base_round, half)
        return open_rounds

    def open_places(self) -> dict[str, Places]:
        """How far each task is with the places of its open round."""
        return {task: round.state.places for task, round in self.open_rounds().items()}

    def save_rounds(self, changed: Iterable[StoredRound]) -> None:
        """Keep how far rounds are, and what they give: an evaluation takes its checkpoint when the
        first device joins.
        """
        rows = [
            {
                "at_task": each.task,
                "at_round": each.state.round,
                "base": each.base,
                "base_round": each.base_round,
                "half": each.half,
            }
            | {name: value for name, value in _columns(each.state).items() if name != "round"}
            for each in changed
        ]
        self._many(_SAVE_ROUND, rows)

    def add_counts(self, counts: Mapping[tuple[str, int], Mapping[str, int]]) -> None:
        """Add to the COUNTS of rounds, by (task, round)."""
        rows = [
            {
                "at_task": task,
                "at_round": number,
                **{f"more_{name}": more.get(name, 0) for name in COUNTS},
            }
            for (task, number), more in counts.items()
        ]
        self._many(_ADD_COUNTS, rows)

    def add_scores(self, task: str, round: int, vector: scores.Vector) -> None:
        """Add a vector of `scores` to what a round has."""
        at = (rounds.c.task == task) & (rounds.c.round == round)
        before = self._connection.execute(_SCORES.where(at)).one()
        values = scores.add([_vector(before), vector]).tolist()
        changed = dict(zip(scores.SUMS, values, strict=False))
        spread = json.dumps(values[len(scores.SUMS) :])
        self._connection.execute(rounds.update().where(at).values(**changed, spread=spread))

    def add_tally(self, task: str, round: int, tally: StoredTally) -> None:
        """Keep what a round of a task that counts has opened."""
        row = {"task": task, "round": round, "people": tally.people, "body": tally.body}
        self._connection.execute(tallies.insert(), row)

    def tallies(self, task: str) -> list[StoredTally]:
        """Of all rounds of a task that have opened one, oldest first."""
        query = sa.select(tallies.c.people, tallies.c.body).where(tallies.c.task == task)
        kept = self._connection.execute(query.order_by(tallies.c.round))
        return [StoredTally(*row) for row in kept]

    def add_outcomes(self, counts: Mapping[tuple[str, int, str, str], int]) -> None:
        """Add to the devices by (task, round, step, cause)."""
        rows = [
            dict(zip(("task", "round", "step", "cause", "count"), (*key, more), strict=True))
            for key, more in counts.items()
            if more
        ]
        self._many(_add_outcome(self._connection.dialect.name), rows)

    def close_round(
        self,
        task: str,
        state: RoundState,
        checkpoint: str | None,
        cause: Cause | None,
        now: float,
        all_rounds: bool = False,
    ) -> None:
        """End a round, with the checkpoint it made if any, and remove its sums.

        Its open assignments are dropped for `cause`, or stay open if that is None: then the tickets
        of an open window stay too. `all_rounds`: also those of the rounds before it.
        """
        at = (rounds.c.task == task) & (rounds.c.round == state.round)
        self._connection.execute(
            rounds.update()
            .where(at)
            .values(phase=state.phase.value, made=checkpoint, closed_at=now)
        )
        if cause is not None:
            self.close_work(task, None if all_rounds else state.round, cause)
        of_round = (seals.c.task == task) & (seals.c.round == state.round)
        self._connection.execute(seals.delete().where(of_round))
        gone = check_ins.c.task == task
        if cause is None and state.places.until is not None:
            gone &= check_ins.c.window.is_(None) | (check_ins.c.window != state.places.window)
        self._connection.execute(check_ins.delete().where(gone))
        self._connection.execute(
            sums.delete().where(sums.c.task == task, sums.c.round == state.round)
        )
        self.secagg.forget(task, state.round)

    def close_work(self, task: str, round: int | None, cause: Cause) -> None:
        """Drop the open assignments of a round, or of all rounds of a task, for `cause`."""
        left = _STILL_OPEN & (assignments.c.task == task)
        if round is not None:
            left &= assignments.c.round == round
        query = (
            sa.select(assignments.c.round, sa.func.count())
            .where(left)
            .group_by(assignments.c.round)
        )
        self.add_outcomes(
            {
                (task, number, DROPPED, cause.value): count
                for number, count in self._connection.execute(query).all()
            }
        )
        self._connection.execute(
            assignments.update()
            .where(left)
            .values(status=AssignmentStatus.CLOSED.value, cause=cause.value, admitted_at=0.0)
        )

    def say_of_round(self, task: str, round: int, reason: str = "", overlap: int = 0) -> None:
        """Keep why a round was abandoned, or how many of its devices were in the last sum too."""
        at = (rounds.c.task == task) & (rounds.c.round == round)
        self._connection.execute(rounds.update().where(at).values(reason=reason, overlap=overlap))

    def carry_tickets(self, task: str, before: int, after: int) -> None:
        """Let those who asked in the window that a round leaves open have asked in the one that
        follows it.
        """
        mine = check_ins.c.task == task
        asked = Cause.SELECTING.value
        query = sa.select(check_ins.c.outcome, sa.func.count()).where(mine)
        by_outcome: dict[str, int] = dict(
            self._connection.execute(query.group_by(check_ins.c.outcome)).tuples().all()
        )
        self.add_outcomes(
            {
                (task, before, REFUSED, asked): -by_outcome.get(asked, 0),
                (task, after, REFUSED, asked): sum(by_outcome.values()),
            }
        )
        self._connection.execute(check_ins.update().where(mine).values(outcome=asked))

    def given_by(self, task: str, round: int) -> tuple[str, str]:
        """The checkpoint a round gave to its devices: as float32 and as float16."""
        query = sa.select(rounds.c.base, rounds.c.half).where(
            rounds.c.task == task, rounds.c.round == round
        )
        base, half = self._connection.execute(query).one()
        return base, half

    def committed(self, task: str) -> int:
        """Rounds committed so far."""
        query = sa.select(sa.func.count()).where(
            rounds.c.task == task,
            rounds.c.phase == Phase.COMMITTED.value,
            rounds.c.closed_at.is_not(None),
        )
        return self._connection.execute(query).scalar_one()

    def last_base(self, task: str) -> str | None:
        """The checkpoint of the last committed round."""
        query = sa.select(rounds.c.base).where(
            rounds.c.task == task, rounds.c.phase == Phase.COMMITTED.value
        )
        return self._connection.execute(
            query.order_by(rounds.c.round.desc()).limit(1)
        ).scalar_one_or_none()

    # check-ins and assignments

    def check_ins_of(self, names: Iterable[str]) -> dict[tuple[str, str], StoredCheckIn]:
        """By (device, task): what came of the check-in to its open round."""
        kept = self._of(_CHECK_INS, devices=names)
        return {
            (device, task): StoredCheckIn(
                outcome, None if window is None else Ticket(window, place)
            )
            for device, task, outcome, window, place in kept
        }

    def note_check_ins(self, changed: Mapping[tuple[str, str], StoredCheckIn]) -> None:
        """Keep what came of check-ins, by (device, task)."""
        rows = [
            {
                "device": device,
                "task": task,
                "outcome": each.outcome,
                "window": each.ticket and each.ticket.window,
                "place": each.ticket and each.ticket.place,
            }
            for (device, task), each in changed.items()
        ]
        self._put(check_ins, rows, replaced=("outcome", "window", "place"))

    def tickets(self, task: str, window: int) -> list[str]:
        """The devices that asked in a window of the open round of a task."""
        query = sa.select(check_ins.c.device).where(
            check_ins.c.task == task, check_ins.c.window == window
        )
        return list(self._connection.execute(query).scalars())

    def place_tickets(self, task: str, places: Mapping[str, int]) -> None:
        """Keep the places that tickets were drawn, by device."""
        rows = [
            {"at_device": device, "at_task": task, "place": place}
            for device, place in places.items()
        ]
        self._many(_PLACE_TICKET, rows)

    def assignments(self, names: Iterable[str]) -> dict[str, StoredAssignment]:
        """By name, those that there are."""
        return {row[0]: _assignment(row) for row in self._of(_ASSIGNMENTS, assignments=names)}

    def work_of(self, names: Iterable[str]) -> list[StoredAssignment]:
        """The assignments of devices that are open, or of a round that has not been closed."""
        return [_assignment(row) for row in self._of(_WORK, devices=names)]

    def overdue(self, task: str, before: float) -> list[StoredAssignment]:
        """Open assignments of a task from before some time."""
        at = _STILL_OPEN & (assignments.c.task == task) & (assignments.c.admitted_at <= before)
        return [
            _assignment(row)
            for row in self._connection.execute(
                _ASSIGNMENT.where(at).order_by(assignments.c.assignment)
            )
        ]

    def open_work(self, task: str, round: int) -> list[StoredAssignment]:
        """Open assignments of a round, by name."""
        at = _STILL_OPEN & (assignments.c.task == task) & (assignments.c.round == round)
        query = _ASSIGNMENT.where(at).order_by(assignments.c.assignment)
        return [_assignment(row) for row in self._connection.execute(query)]

    def counted_in(self, task: str, round: int, oldest: int | None = None) -> list[str]:
        """The devices whose reports a round has counted: of those assigned in it, or since
        `oldest`.
        """
        mine = assignments.c.task == task
        if oldest is None:
            mine &= assignments.c.round == round
        else:
            mine &= assignments.c.round >= oldest
        query = sa.select(assignments.c.device).where(mine & (assignments.c.counted_in == round))
        return list(self._connection.execute(query).scalars())

    def admitted_by(self, task: str, now: float) -> None:
        """Let open assignments be given now whose time was that of a clock that was ahead."""
        ahead = _STILL_OPEN & (assignments.c.task == task) & (assignments.c.admitted_at > now)
        self._connection.execute(assignments.update().where(ahead).values(admitted_at=now))

    def save_assignments(self, changed: Iterable[StoredAssignment]) -> None:
        """Keep new assignments, and what has changed of others."""
        rows = [
            {
                **vars(each),
                "status": each.status.value,
                "cause": each.cause and each.cause.value,
            }
            for each in changed
        ]
        self._put(
            assignments,
            rows,
            replaced=(
                *("status", "cause", "update_hash", "downloaded", "uploaded", "counted_in"),
                "admitted_at",
            ),
        )

    def participations(self, names: Iterable[str]) -> dict[tuple[str, str], Participation]:
        """By (device, task)."""
        kept = self._of(_PARTICIPATIONS, devices=names)
        return {(device, task): Participation(*values) for device, task, *values in kept}

    def save_participations(self, changed: Mapping[tuple[str, str], Participation]) -> None:
        """Keep participations, by (device, task)."""
        names = ("last_counted", "counted", "smallest_separation")
        rows = [
            {"device": device, "task": task, **{name: getattr(each, name) for name in names}}
            for (device, task), each in changed.items()
        ]
        self._put(participations, rows, replaced=names)

    def bar(self, task: str, names: Iterable[str]) -> None:
        """Let devices that a task has counted have no more of its work."""
        mine = participations.c.task == task
        mine &= participations.c.device.in_(list(names))
        self._connection.execute(participations.update().where(mine).values(barred=True))

    def participation(self, task: str) -> tuple[int, int | None]:
        """The most rounds of a task one device was counted in, and the smallest separation of two
        of them.
        """
        columns = participations.c
        query = sa.select(
            sa.func.coalesce(sa.func.max(columns.counted), 0),
            sa.func.min(columns.smallest_separation),
        ).where(columns.task == task)
        most, smallest = self._connection.execute(query).one()
        return most, smallest

    # the sums of the open rounds

    def save_sum(self, task: str, round: int, sum: StoredSum) -> None:
        """Keep what a replica has counted of a round, in the place of what it had."""
        row = {
            "task": task,
            "round": round,
            "replica": sum.replica,
            "total": sum.body,
            "generation": sum.generation,
        }
        self._put(sums, [row], replaced=("total", "generation"))

    def sums(self, task: str, round: int, replica: str | None = None) -> list[StoredSum]:
        """What the replicas (or one of them) have counted of a round."""
        query = (
            sa.select(sums.c.replica, sums.c.generation, sums.c.total)
            .where(sums.c.task == task, sums.c.round == round)
            .order_by(sums.c.replica)
        )
        if replica is not None:
            query = query.where(sums.c.replica == replica)
        return [
            StoredSum(name, generation, bytes(total))
            for name, generation, total in self._connection.execute(query)
        ]

    def beat(self, now: float) -> None:
        """Note that the database could be written."""
        self._put(heartbeats, [{"heartbeat": "server", "at": now}], replaced=("at",))

    # releases

    @property
    def release_scores(self) -> ScoreRows:
        """What is told of how releases do."""
        return ScoreRows(self._connection)

    @property
    def secagg(self) -> SecaggRows:
        """How far rounds of SecAgg+ are, and what their devices have sent."""
        return SecaggRows(self._connection)

    # reports

    def first_round(self, task: str) -> int:
        """The number of a task's first round; 0 for no task."""
        query = sa.select(sa.func.min(rounds.c.round)).where(rounds.c.task == task)
        return self._connection.execute(query).scalar_one() or 0

    def reports(
        self, task: Task, now: float, most: int = MOST_ROUNDS, before: int | None = None
    ) -> tuple[RoundReport, ...]:
        """The newest rounds of a task, or the newest before a round, oldest first."""
        columns = rounds.c
        query = sa.select(rounds).where(columns.task == task.name)
        if before is not None:
            query = query.where(columns.round < before)
        newest = list(self._connection.execute(query.order_by(columns.round.desc()).limit(most)))[
            ::-1
        ]
        if not newest:
            return ()
        by_cause: dict[tuple[int, str], Counter[str]] = {}
        counted = sa.select(outcomes).where(
            outcomes.c.task == task.name,
            outcomes.c.round >= newest[0].round,
            outcomes.c.round <= newest[-1].round,
            outcomes.c.count > 0,
        )
        for row in self._connection.execute(counted.order_by(outcomes.c.cause)):
            by_cause.setdefault((row.round, row.step), Counter())[row.cause] = row._mapping["count"]
        steps = self.secagg.counts(task.name, newest[0].round, newest[-1].round)
        reports = (_report(task, row, by_cause, now) for row in newest)
        return tuple(replace(each, steps=steps.get(each.round, {})) for each in reports)

    def totals(self) -> dict[str, dict[str, dict[str, int]]]:
        """By task and phase: rounds, and what their COUNTS and counted reports add up to."""
        names = ("assigned", "downloaded", "uploaded", "examples", "bytes_up", "bytes_down")
        added = [sa.func.sum(rounds.c[name]) for name in ("reported", *names)]
        totals: dict[str, dict[str, dict[str, int]]] = {}
        for task, phase, *values in self._connection.execute(
            sa.select(rounds.c.task, rounds.c.phase, sa.func.count(), *added).group_by(
                rounds.c.task, rounds.c.phase
            )
        ):
            totals.setdefault(task, {})[phase] = dict(
                zip(("rounds", "counted", *names), map(int, values), strict=True)
            )
        return totals

    def causes(self) -> dict[tuple[str, str, str], int]:
        """Devices and rounds by (task, step, cause)."""
        columns = outcomes.c
        query = sa.select(
            columns.task, columns.step, columns.cause, sa.func.sum(columns.count)
        ).group_by(columns.task, columns.step, columns.cause)
        return {
            (task, step, cause): int(count)
            for task, step, cause, count in self._connection.execute(query)
        }

    def _of(self, statement: Any, **names: Iterable[str]) -> Sequence[Any]:
        """The rows of a statement that looks for one list of names."""
        ((name, listed),) = names.items()
        dialect = self._connection.dialect.name
        return self._connection.execute(statement, {name: parameter(listed, dialect)}).all()

    def _many(self, statement: Any, rows: Sequence[dict[str, Any]]) -> None:
        """The statement for each of the rows. SQLAlchemy would look at every value of them, and
        none needs it: the driver takes them as they are.
        """
        if rows:
            sql, values_of = _written(self._connection.dialect, statement, tuple(rows[0]))
            values: Any = rows if values_of is None else list(map(values_of, rows))
            self._connection.exec_driver_sql(sql, values)

    def _put(
        self, table: sa.Table, rows: Sequence[dict[str, Any]], replaced: tuple[str, ...] = ()
    ) -> None:
        """Insert rows; where one of its key stands already, change the columns `replaced` and no
        other.
        """
        self._many(_upsert(self._connection.dialect.name, table, replaced), rows)


# built once: building a statement takes longer than running it


_ASSIGNMENT_COLUMNS = tuple(StoredAssignment.__dataclass_fields__)
_PUBLIC_KEYS = sa.select(devices.c.device, devices.c.public_key).where(
    is_one_of(devices.c.device, "devices")
)
_KNOWN = (
    sa.select(devices.c.device, devices.c.enrolled_at, due.c.told_at, due.c.due_at)
    .select_from(devices.outerjoin(due, due.c.device == devices.c.device))
    .where(is_one_of(devices.c.device, "devices"))
)
_NONCES = sa.select(nonces.c.device, nonces.c.nonce).where(is_one_of(nonces.c.nonce, "nonces"))
_INSERT_NONCE = nonces.insert()
_TASKS = sa.select(tasks.c.body, tasks.c.state, tasks.c.created_at).order_by(
    tasks.c.created_at, tasks.c.task
)
_CHECKPOINT = sa.select(
    *(checkpoints.c[name] for name in ("sha", "round", "half", "moments", "parent", "made_at"))
)
_CERTIFICATE_COLUMNS = (
    "number",
    "round_key",
    "first_round",
    "rounds",
    "expires_at",
    "made_at",
)
_CERTIFICATE = (
    sa.select(certificates.c.number, certificates.c.body)
    .add_columns(*(certificates.c[name] for name in _CERTIFICATE_COLUMNS[1:]))
    .where(certificates.c.task == sa.bindparam("of_task"))
    .order_by(certificates.c.number.desc())
    .limit(1)
)
_LINK = (
    sa.select(
        checkpoints.c.link,
        certificates.c.body,
        certificates.c.first_round + certificates.c.rounds,
        certificates.c.expires_at,
    )
    .select_from(checkpoints)
    .join(
        certificates,
        (certificates.c.task == checkpoints.c.task)
        & (certificates.c.number == checkpoints.c.certificate),
    )
    .where(
        checkpoints.c.task == sa.bindparam("of_task"),
        checkpoints.c.sha == sa.bindparam("of_sha"),
    )
)
_STATE = ("round", "phase", "admitted", "reported", "dropped", "first_admitted", "last_admitted")
_KEPT = (*_STATE, "places")  # columns of a state
_OPEN_ROUNDS = sa.select(
    rounds.c.task, *(rounds.c[name] for name in (*_KEPT, "base", "base_round", "half"))
).where(rounds.c.closed_at.is_(None))
_AT_ROUND = (rounds.c.task == sa.bindparam("at_task")) & (
    rounds.c.round == sa.bindparam("at_round")
)
_SAVE_ROUND = (
    rounds.update()
    .where(_AT_ROUND)
    .values({name: sa.bindparam(name) for name in (*_KEPT[1:], "base", "base_round", "half")})
)
_ADD_COUNTS = (
    rounds.update()
    .where(_AT_ROUND)
    .values({name: rounds.c[name] + sa.bindparam(f"more_{name}") for name in COUNTS})
)
_SCORES = sa.select(*(rounds.c[name] for name in (*scores.SUMS, "spread")))
_CHECK_INS = sa.select(
    *(check_ins.c[name] for name in ("device", "task", "outcome", "window", "place"))
).where(is_one_of(check_ins.c.device, "devices"))
_PLACE_TICKET = (
    check_ins.update()
    .where(
        check_ins.c.device == sa.bindparam("at_device"),
        check_ins.c.task == sa.bindparam("at_task"),
    )
    .values(place=sa.bindparam("place"))
)
_STILL_OPEN = assignments.c.status == AssignmentStatus.OPEN.value
_ASSIGNMENT = sa.select(*(assignments.c[name] for name in _ASSIGNMENT_COLUMNS))
_ASSIGNMENTS = _ASSIGNMENT.where(is_one_of(assignments.c.assignment, "assignments"))
_WORK = (
    _ASSIGNMENT.join(
        rounds, (rounds.c.task == assignments.c.task) & (rounds.c.round == assignments.c.round)
    )
    .where(is_one_of(assignments.c.device, "devices"))
    .where(rounds.c.closed_at.is_(None) | _STILL_OPEN)
    .order_by(assignments.c.assignment)
)
_PARTICIPATIONS = sa.select(
    *(
        participations.c[name]
        for name in (
            *("device", "task", "last_counted", "counted", "smallest_separation", "barred"),
            *("last_sum", "in_sums"),
        )
    )
).where(is_one_of(participations.c.device, "devices"))
_WITHOUT_TERMS = {"aggregation": Aggregation.PLAIN.value}
_INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_ENGINE: dict[str, dict[str, Any]] = {
    # the same connection again, whose pages are in its memory
    "sqlite": {"pool_size": 48, "pool_use_lifo": True},
    "postgresql": {"pool_pre_ping": True, "pool_size": 4, "connect_args": {"connect_timeout": 5}},
}


@functools.cache
def _written(
    dialect: sa.Dialect, statement: Any, names: tuple[str, ...]
) -> tuple[str, Callable[[dict[str, Any]], tuple[Any, ...]] | None]:
    """A statement for values of these names as the driver takes it, and what puts a row's values
    into its order if it does not take them by name.
    """
    compiled = statement.compile(dialect=dialect, column_keys=list(names))
    order = compiled.positiontup
    if order is None:
        return str(compiled), None
    if len(order) == 1:
        return str(compiled), lambda row: (row[order[0]],)
    return str(compiled), operator.itemgetter(*order)


@functools.cache
def _upsert(dialect: str, table: sa.Table, replaced: tuple[str, ...]) -> Any:
    statement = _INSERTS[dialect](table)
    if not replaced:
        return statement.on_conflict_do_nothing()
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={name: statement.excluded[name] for name in replaced},
    )


@functools.cache
def _add_outcome(dialect: str) -> Any:
    statement = _INSERTS[dialect](outcomes)
    return statement.on_conflict_do_update(
        index_elements=list(outcomes.primary_key),
        set_={"count": outcomes.c.count + statement.excluded.count},
    )


@functools.lru_cache(maxsize=256)
def _task(body: str) -> Task:
    table = config.read_json(body.encode(), "task")
    # a task of a version without terms has asked for nothing else, and has no helper
    return config.from_table(Task, _WITHOUT_TERMS | table, "task")


@functools.lru_cache(maxsize=256)
def _places(text: str | None) -> Places:
    return Places() if text is None else config.from_json(Places, text.encode(), "places")


def _columns(state: RoundState) -> dict[str, Any]:
    kept = None if state.places == Places() else config.to_json(state.places).decode()
    values = {name: getattr(state, name) for name in _STATE}
    return values | {"phase": state.phase.value, "places": kept}


def _vector(row: Any) -> scores.Vector:
    """The vector of `scores` that a row of `rounds` holds."""
    spread = json.loads(row.spread) if row.spread else [0] * scores.BINS
    return np.array([*(getattr(row, name) for name in scores.SUMS), *spread], np.int64)


def _assignment(row: Any) -> StoredAssignment:
    name, task, number, device, admitted_at, text, cause, *rest = row
    status = AssignmentStatus(text)
    return StoredAssignment(
        name, task, number, device, admitted_at, status, cause and Cause(cause), *rest
    )


def _report(
    task: Task, row: Any, by_cause: Mapping[tuple[int, str], Counter[str]], now: float
) -> RoundReport:
    refused, dropped = (dict(by_cause.get((row.round, step), {})) for step in (REFUSED, DROPPED))
    scored = scores.from_vector(_vector(row))
    return RoundReport(
        round=row.round,
        phase=Phase(row.phase)
        if row.closed_at is not None or row.phase in UNDER_WAY
        else Phase.REPORTING,
        goal=task.rules.report_goal,
        checked_in=row.assigned + sum(refused.values()),
        refused=refused,
        assigned=row.assigned,
        downloaded=row.downloaded,
        uploaded=row.uploaded,
        counted=row.reported,
        dropped=dropped,
        examples=row.examples,
        bytes_up=row.bytes_up,
        bytes_down=row.bytes_down,
        # never less than none: the clock may have been ahead when it was opened
        seconds=max(0.0, (now if row.closed_at is None else row.closed_at) - row.opened_at),
        checkpoint=row.made or "",
        task=task.name,
        kind=task.kind,
        base=row.base,
        base_round=row.base_round,
        # of an open round they would show how single devices did
        scores=scored.scores if row.targets and row.closed_at is not None else None,
        opened_at=row.opened_at,
        spread=scored.spread if row.spread and row.closed_at is not None else (),
        reason=row.reason,
        overlap=row.overlap,
        rho=row.rho,
        epsilon=row.epsilon,
    )


def _require_ours(database: Path) -> None:
    """Raises RunError for an SQLite file with somebody else's tables. Writes nothing; what cannot
    be read is said by whoever opens it.
    """
    if not database.is_file():
        return
    try:
        address = f"{database.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error:
        return
    if tables and "alembic_version" not in tables:
        raise RunError(
            database, "is the database of another program", "give another folder, or move it away"
        )


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # SQLAlchemy begins and ends the transactions, tables included
    connection.isolation_level = None
    # each of many connections keeps half a megabyte of pages
    for setting in (
        "journal_mode = WAL",
        "foreign_keys = ON",
        "cache_size = -512",
        f"wal_autocheckpoint = {_LOG_PAGES}",
    ):
        connection.execute(f"PRAGMA {setting}")


def _wait_for_no_disk(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous = OFF")


def _begin_sqlite(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    if options.get("reading"):
        _set(connection, busy_timeout=_BUSY_MS)
        connection.exec_driver_sql("BEGIN")
        return
    at_once = options.get("at_once", False)
    # FULL waits for the disk: worth it for an acknowledged update, not for a check-in
    waits = "FULL" if options.get("durable", True) else "NORMAL"
    _set(
        connection,
        synchronous="OFF" if options.get("simulated") else waits,
        # what is deleted is overwritten: FAST where that costs no more writing, ON in any case
        secure_delete="ON" if options.get("forgets") else "FAST",
        cache_size=-options.get("cache_kb", _WRITER_KB),
        busy_timeout=0 if at_once else _BUSY_MS,
        wal_autocheckpoint=0 if at_once else _LOG_PAGES,
    )
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _set(connection: sa.Connection, **wanted: str | int) -> None:
    """Settings of an SQLite connection, as far as they are not what it has."""
    kept = connection.info.setdefault("fedboard.settings", {})
    for name, value in wanted.items():
        if kept.get(name) != value:
            connection.exec_driver_sql(f"PRAGMA {name} = {value}")
            kept[name] = value
