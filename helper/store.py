"""Durable state of a helper: tasks, public keys of rounds, what was answered, the ledger.

SQLite by default, any database by its URL; of one helper alone, whose identity stands in it. No
seed, no private key and no mask is ever in it, nor any noise. What must hold together is written in
one `transaction`, and is on disk when that has ended.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from device_runtime import config
from device_runtime.errors import RunError
from device_runtime.helper_wire import Named
from device_runtime.log_wire import Head
from device_runtime.terms import Terms
from device_runtime.wire import Kind, Signed
from helper.answers import History
from helper.budget import Spent
from helper.buffers import NONE
from helper.tables import (
    FORMAT,
    answers,
    heads,
    helpers,
    metadata,
    named,
    noises,
    participations,
    seal_keys,
    tasks,
)
from helper.tasks import Task, policy_in
from server import disk
from server.lists import is_one_of, parameter

Unusable = sa.exc.SQLAlchemyError  # what a store raises while its database cannot be used
_OTHER = "give another folder or database"


@dataclass(frozen=True)
class StoredTask:
    """A task, and how far its rounds are."""

    task: Task
    dead_through: int  # keys of rounds up to this one are dead; -1: none is
    newest: int  # the last round that a key was made for; -1: none


@dataclass(frozen=True)
class StoredAnswer:
    """What was answered of a round."""

    set_digest: str
    answer_digest: str
    is_taken: bool


@dataclass(frozen=True)
class StoredNoise:
    """Of a task whose sums carry noise: what they have spent, and which buffers it needs."""

    spent: Spent = field(default_factory=Spent)
    generation: int = NONE


class Store:
    """The database of one helper."""

    def __init__(self, database: Path | str, helper: str, simulated: bool = False):
        """Open an SQLite file, or any database by its URL; `helper` is the identity of its owner.
        Nothing of a file that is `simulated` waits for the disk. Raises RunError if it cannot be
        used, or is somebody else's.
        """
        is_file = isinstance(database, Path)
        try:
            url = (
                sa.URL.create("sqlite", database=str(database))
                if is_file
                else sa.make_url(str(database))
            )
            # errors carry no parameters: nothing of a device must end in a log
            self._engine = sa.create_engine(url, hide_parameters=True)
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError):
            raise RunError(
                "database",
                "expected an address such as postgresql+psycopg://host/name, found another",
                "correct it",
            ) from None
        where = url.set(password=None).render_as_string() if not is_file else str(database)
        self.folder = Path(where).parent if is_file else None
        self._file: disk.Held | None = None
        if is_file:
            require_ours(Path(where))
            self._file = disk.Held(Path(where))
        if url.get_backend_name() == "sqlite":
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            if simulated:
                sa.event.listen(self._engine, "connect", _wait_for_no_disk)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        try:
            with self._engine.begin() as connection:
                kept = _kept(connection)
                if kept is None or (kept.helper == helper and kept.format <= FORMAT):
                    _bring_along(connection, FORMAT if kept is None else kept.format)
                if kept is None:
                    connection.execute(helpers.insert().values(helper=helper, format=FORMAT))
        except sa.exc.DBAPIError as error:
            self.close()
            reason = str(error.orig).splitlines()[0]
            raise RunError(
                where, f"cannot be used as the helper's database ({reason})", _OTHER
            ) from None
        if kept is not None and (kept.helper != helper or kept.format > FORMAT):
            self.close()
            raise RunError(
                where,
                f"expected the database of helper {helper[:16]} in a format up to {FORMAT}, found "
                f"that of {kept.helper[:16]} in format {kept.format}",
                f"{_OTHER}, or start Fedboard in the version that made it",
            )

    @contextmanager
    def transaction(self) -> Iterator["Rows"]:
        """All that is written inside holds together, and is on disk, when the block ends; or not
        at all if it raises. Raises RunError if an SQLite file is not there any more.
        """
        with self._engine.begin() as connection:
            yield Rows(connection)
            if self._file is not None:
                self._file.require_same()

    @contextmanager
    def reading(self) -> Iterator["Rows"]:
        """What the last transaction left."""
        with (
            self._engine.connect() as connection,
            connection.execution_options(reading=True).begin(),
        ):
            yield Rows(connection)

    def require_usable(self) -> None:
        """Raises what reading raises, and RunError if an SQLite file is not there any more or has
        no room.
        """
        if self._file is not None and self.folder is not None:
            self._file.require_same()
            disk.require_room(self.folder)
        with self.reading() as rows:
            rows.count_answers()

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()
        if self._file is not None:
            self._file.close()
            self._file = None


class Rows:
    """Reading and writing inside one transaction."""

    def __init__(self, connection: sa.Connection):
        self._connection = connection

    def task(self, task_id: str) -> StoredTask | None:
        """A task by its id."""
        row = self._connection.execute(
            sa.select(tasks).where(tasks.c.task_id == task_id)
        ).one_or_none()
        return None if row is None else _task(row)

    def save_task(self, task: Task, certificate: Signed) -> None:
        """Keep a task, or the newer certificate of one that is kept."""
        values = {
            "task_id": task.task_id,
            "task": task.task,
            "server": task.server,
            "kind": task.kind.value,
            "terms": config.to_json(task.terms).decode(),
            "certificate": config.to_json(certificate).decode(),
        }
        self._put(tasks, [values], ("task", "certificate"))

    def certificates(self, server: str) -> list[Signed]:
        """The newest certificate of each task of a leader."""
        query = sa.select(tasks.c.certificate).where(tasks.c.server == server)
        texts = self._connection.execute(query).scalars()
        return [config.from_json(Signed, text.encode(), "certificate") for text in texts]

    def head(self, log_key: str) -> tuple[int, str]:
        """Size and root of the newest head of a log that was signed; 0 and empty before."""
        query = sa.select(heads.c.size, heads.c.root).where(heads.c.log_key == log_key)
        row = self._connection.execute(query).one_or_none()
        return (0, "") if row is None else (row.size, row.root)

    def newest_log(self, server: str) -> str:
        """The key of the log of a leader that was begun last; empty before the first."""
        query = sa.select(heads.c.log_key).where(heads.c.server == server)
        newest = query.order_by(heads.c.place.desc()).limit(1)
        key: str | None = self._connection.execute(newest).scalar_one_or_none()
        return key or ""

    def put_head(self, log_key: str, head: Head) -> None:
        """Keep what is about to be signed."""
        last = sa.select(sa.func.max(heads.c.place)).where(heads.c.server == head.log)
        place = 1 + (self._connection.execute(last).scalar_one() or 0)  # kept of one that is there
        row = {"log_key": log_key, "server": head.log, "place": place}
        self._put(heads, [row | {"size": head.size, "root": head.root}], ("size", "root"))

    def seal_keys(self, task_id: str) -> dict[int, str]:
        """The public halves of a task's keys that live, by round."""
        columns = seal_keys.c.round, seal_keys.c.public_key
        chosen = sa.select(*columns).where(seal_keys.c.task_id == task_id)
        return dict(self._connection.execute(chosen).tuples().all())

    def living(self) -> list[tuple[str, int]]:
        """The rounds of all tasks whose keys live."""
        chosen = sa.select(seal_keys.c.task_id, seal_keys.c.round)
        return [(task_id, round) for task_id, round in self._connection.execute(chosen)]

    def add_seal_keys(self, task_id: str, made: dict[int, str]) -> None:
        """Keep the public halves of new keys, by round."""
        if made:
            rows = [
                {"task_id": task_id, "round": round, "public_key": key}
                for round, key in made.items()
            ]
            self._connection.execute(seal_keys.insert(), rows)
            self._of(task_id, newest=max(made))

    def end_keys(self, task_id: str, through: int) -> None:
        """The keys of rounds up to one are dead, and which reports of them were answered need not
        be known any more.
        """
        for table in (seal_keys, named):
            self._connection.execute(
                table.delete().where((table.c.task_id == task_id) & (table.c.round <= through))
            )
        self._of(task_id, dead_through=through)

    def answer(self, task_id: str, round: int) -> StoredAnswer | None:
        """What was answered of a round; None if nothing was."""
        columns = answers.c.set_digest, answers.c.answer_digest, answers.c.is_taken
        row = self._connection.execute(
            sa.select(*columns).where(_is_round(answers, task_id, round))
        ).one_or_none()
        return None if row is None else StoredAnswer(*row)

    def last_answered(self, task_id: str) -> int:
        """The newest round that was answered; -1 if none was."""
        newest = sa.select(sa.func.max(answers.c.round)).where(answers.c.task_id == task_id)
        last: int | None = self._connection.execute(newest).scalar_one()
        return -1 if last is None else last

    def waiting(self) -> list[tuple[str, int]]:
        """The rounds whose answers the leader may ask for again."""
        chosen = sa.select(answers.c.task_id, answers.c.round).where(~answers.c.is_taken)
        return [(task_id, round) for task_id, round in self._connection.execute(chosen)]

    def add_answer(self, asked: Named, given: StoredAnswer, now: float, number: int = 0) -> None:
        """Keep what is answered of a round, and in the ledger who was in it. `number`: of the sum,
        if it carries noise.
        """
        self._connection.execute(
            answers.insert().values(
                task_id=asked.task_id,
                round=asked.round,
                set_digest=given.set_digest,
                answer_digest=given.answer_digest,
                reports=len(asked.reports),
                answered_at=now,
                is_taken=given.is_taken,
            )
        )
        self._put(
            participations,
            [
                {
                    "task_id": asked.task_id,
                    "public_key": each.public_key,
                    "last_round": asked.round,
                    "counted": 1,
                    "last_sum": number,
                }
                for each in asked.reports
            ],
            ("last_round", "last_sum"),
            "counted",
        )
        self._put(
            named,
            [
                {"task_id": asked.task_id, "round": each.round, "public_key": each.public_key}
                for each in asked.reports
            ],
        )

    def take(self, task_id: str, round: int) -> None:
        """The leader has the answers of all rounds up to one."""
        done = (answers.c.task_id == task_id) & (answers.c.round <= round)
        self._connection.execute(answers.update().where(done).values(is_taken=True))

    def history(self, asked: Named) -> History:
        """What is remembered of the devices of a set."""
        keys = [each.public_key for each in asked.reports]
        of = participations.c
        ledger = self._of_devices(
            sa.select(of.public_key, of.last_round, of.counted, of.last_sum),
            participations,
            asked.task_id,
            keys,
        )
        before = self._of_devices(
            sa.select(named.c.round, named.c.public_key), named, asked.task_id, keys
        )
        ledger = list(ledger)
        return History(
            {each.public_key: each.last_round for each in ledger},
            frozenset((round, public_key) for round, public_key in before),
            {each.public_key: each.counted for each in ledger},
            {each.public_key: each.last_sum for each in ledger},
        )

    def noise(self, task_id: str) -> StoredNoise:
        """What the noise of a task's sums has spent."""
        row = self._connection.execute(
            sa.select(noises.c.spent, noises.c.generation).where(noises.c.task_id == task_id)
        ).one_or_none()
        return StoredNoise() if row is None else StoredNoise(_spent(row.spent), row.generation)

    def put_noise(self, task_id: str, noise: StoredNoise) -> None:
        """Keep what has been spent with a sum, and which buffers the next one needs."""
        spent = config.to_json(noise.spent).decode()
        values = {"spent": spent, "generation": noise.generation}
        self._put(noises, [{"task_id": task_id, **values}], tuple(values))

    def generations(self) -> list[tuple[str, int]]:
        """Of all tasks that need buffers, which."""
        chosen = sa.select(noises.c.task_id, noises.c.generation)
        rows = self._connection.execute(chosen.where(noises.c.generation != NONE))
        return [(task_id, generation) for task_id, generation in rows]

    def budgets(self) -> list[tuple[Task, Spent]]:
        """All training tasks whose terms have noise, and what each has spent."""
        chosen = sa.select(tasks, noises.c.spent.label("spent")).outerjoin(
            noises, tasks.c.task_id == noises.c.task_id
        )
        rows = self._connection.execute(chosen.order_by(tasks.c.task, tasks.c.task_id))
        each = ((_task(row).task, row.spent) for row in rows)
        return [
            (task, Spent() if text is None else _spent(text))
            for task, text in each
            if task.noise is not None
        ]

    def counted(self, task_id: str) -> dict[str, int]:
        """In how many answers of a task each device was, by its public key."""
        columns = participations.c.public_key, participations.c.counted
        chosen = sa.select(*columns).where(participations.c.task_id == task_id)
        return dict(self._connection.execute(chosen).tuples().all())

    def count_answers(self) -> tuple[int, int]:
        """Rounds answered, and the reports in them."""
        row = self._connection.execute(
            sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(answers.c.reports), 0))
        ).one()
        return int(row[0]), int(row[1])

    def _of(self, task_id: str, **values: int) -> None:
        self._connection.execute(tasks.update().where(tasks.c.task_id == task_id).values(**values))

    def _of_devices(
        self, chosen: sa.Select[Any], table: sa.Table, task_id: str, keys: list[str]
    ) -> Iterable[Any]:
        statement = chosen.where(
            (table.c.task_id == task_id) & is_one_of(table.c.public_key, "devices")
        )
        devices = parameter(keys, self._connection.dialect.name)
        return self._connection.execute(statement, {"devices": devices})

    def _put(
        self,
        table: sa.Table,
        rows: list[dict[str, Any]],
        replaced: tuple[str, ...] = (),
        added_to: str = "",
    ) -> None:
        """Insert rows; of one that is there some columns are replaced, and one is added to."""
        insert: Any = _INSERTS[self._connection.dialect.name](table)
        values = {column: insert.excluded[column] for column in replaced}
        if added_to:
            values[added_to] = table.c[added_to] + insert.excluded[added_to]
        if values:
            keys = list(table.primary_key)
            statement = insert.on_conflict_do_update(index_elements=keys, set_=values)
        else:
            statement = insert.on_conflict_do_nothing()
        if rows:
            self._connection.execute(statement, rows)


_INSERTS = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def _is_round(table: sa.Table, task_id: str, round: int) -> sa.ColumnElement[bool]:
    return (table.c.task_id == task_id) & (table.c.round == round)


def _kept(connection: sa.Connection) -> Any:
    """Whose database this is, and of which format; None of an empty one."""
    if not sa.inspect(connection).has_table(helpers.name):
        return None
    return connection.execute(sa.select(helpers)).one_or_none()


def _bring_along(connection: sa.Connection, format: int) -> None:
    """The tables of a format become those of FORMAT, in the transaction of the caller."""
    metadata.create_all(connection)  # those that are missing
    if format < 2:
        number = "ALTER TABLE participations ADD COLUMN last_sum BIGINT DEFAULT 0 NOT NULL"
        connection.execute(sa.text(number))
    if format < FORMAT:
        connection.execute(helpers.update().values(format=FORMAT))


def _task(row: Any) -> StoredTask:
    terms = config.from_json(Terms, row.terms.encode(), "terms")
    task = Task(
        row.task_id, row.task, row.server, Kind(row.kind), terms, policy_in(row.certificate)
    )
    return StoredTask(task, row.dead_through, row.newest)


def _spent(text: str) -> Spent:
    return config.from_json(Spent, text.encode(), "spent")


def require_ours(database: Path) -> None:
    """Raises RunError for a file that is no helper's SQLite database. Writes nothing."""
    if not database.is_file() or not database.stat().st_size:
        return
    try:
        address = f"{database.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    except sqlite3.OperationalError:  # it is busy, or cannot be read
        return
    except sqlite3.DatabaseError as error:
        raise RunError(
            database, f"cannot be used as the helper's database ({error})", _OTHER
        ) from None
    if tables and "helpers" not in tables:
        raise RunError(database, "is the database of another program", _OTHER)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # SQLAlchemy begins and ends the transactions
    connection.isolation_level = None
    for setting in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
        connection.execute(f"PRAGMA {setting}")


def _wait_for_no_disk(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous = OFF")


def _begin_sqlite(connection: sa.Connection) -> None:
    is_reading = connection.get_execution_options().get("reading")
    connection.exec_driver_sql("BEGIN" if is_reading else "BEGIN IMMEDIATE")
