"""Log rows: what a server keeps of its log, read and written inside a transaction.

Entries are only ever added. The roots of all whole ranges are kept beside them, by their places in
one order of all nodes, so that a proof is read in one query, however long the log is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from device_runtime import config, merkle
from device_runtime.merkle import Frontier, Place, Range
from device_runtime.wire import Signed
from server.tables import checkpoints, log_entries, log_heads, log_nodes, logs, rounds


@dataclass(frozen=True)
class StoredLog:
    """One log of a server."""

    number: int
    key: str  # public, hexadecimal
    over: str  # why nobody will believe it any more; empty while they do


@dataclass(frozen=True)
class StoredHead:
    """A head that was signed."""

    size: int
    head: Signed
    countersigned: Signed | None = None


class LogRows:
    """Reading and writing inside one transaction."""

    def __init__(self, connection: sa.Connection):
        self._connection = connection

    def current(self) -> StoredLog | None:
        """The log that goes on; None before the first."""
        newest = sa.select(logs).order_by(logs.c.log.desc()).limit(1)
        row = self._connection.execute(newest).one_or_none()
        return None if row is None else StoredLog(row.log, row.log_key, row.over)

    def begin(self, key: str) -> StoredLog:
        """A new log, in the place of the one there is."""
        before = self.current()
        number = 1 if before is None else before.number + 1
        self._connection.execute(logs.insert().values(log=number, log_key=key))
        return StoredLog(number, key, "")

    def end(self, log: int, why: str) -> None:
        """Nobody will believe this log any more."""
        self._connection.execute(logs.update().where(logs.c.log == log).values(over=why))

    # entries

    def size(self, log: int) -> int:
        """How many entries a log has."""
        newest = sa.select(sa.func.max(log_entries.c.number)).where(log_entries.c.log == log)
        last: int | None = self._connection.execute(newest).scalar_one()
        return 0 if last is None else last + 1

    def frontier(self, log: int) -> Frontier:
        """All that appending needs of a log."""
        size = self.size(log)
        places = merkle.whole((0, size))
        roots = self.roots(log, [(0, size)])
        return Frontier(size, tuple(roots[place] for place in places))

    def add(
        self,
        log: int,
        first: int,
        entries: Sequence[tuple[str, bytes]],
        nodes: Mapping[Place, bytes],
    ) -> None:
        """Append entries, each as what it is about and its body, and the roots that come of it."""
        rows = [
            {"log": log, "number": first + at, "about": about, "body": body.decode("ascii")}
            for at, (about, body) in enumerate(entries)
        ]
        self._connection.execute(log_entries.insert(), rows)
        roots = [
            {"log": log, "place": _number(place), "root": root} for place, root in nodes.items()
        ]
        self._connection.execute(log_nodes.insert(), roots)

    def roots(self, log: int, ranges: Iterable[Range]) -> dict[Place, bytes]:
        """The roots of the whole ranges that some ranges are made of."""
        places = {_number(place): place for each in ranges for place in merkle.whole(each)}
        if not places:
            return {}
        query = sa.select(log_nodes.c.place, log_nodes.c.root).where(
            (log_nodes.c.log == log) & log_nodes.c.place.in_(list(places))
        )
        return {places[number]: root for number, root in self._connection.execute(query)}

    def number_of(self, log: int, about: str) -> int | None:
        """The number of the newest entry about something; None if there is none."""
        # with the log in it SQLite would look through all of its entries
        columns = log_entries.c.log, log_entries.c.number
        query = sa.select(*columns).where(log_entries.c.about == about)
        numbers = (number for of, number in self._connection.execute(query) if of == log)
        return max(numbers, default=None)

    def newest_about(self, about: str) -> str | None:
        """The newest entry about something in any log; None if there is none."""
        query = (
            sa.select(log_entries.c.body)
            .where(log_entries.c.about == about)
            .order_by(log_entries.c.log.desc(), log_entries.c.number.desc())
            .limit(1)
        )
        body: str | None = self._connection.execute(query).scalar_one_or_none()
        return body

    def bodies(self, log: int, first: int, most: int) -> list[str]:
        """Entries from a number on, at most so many."""
        query = (
            sa.select(log_entries.c.body)
            .where((log_entries.c.log == log) & (log_entries.c.number >= first))
            .order_by(log_entries.c.number)
            .limit(most)
        )
        return list(self._connection.execute(query).scalars())

    def first_checkpoint(self, task: str) -> str:
        """SHA-256 of the float16 form of the oldest checkpoint of a training task."""
        query = (
            sa.select(checkpoints.c.half)
            .where(checkpoints.c.task == task)
            .order_by(checkpoints.c.round)
            .limit(1)
        )
        half: str = self._connection.execute(query).scalar_one()
        return half

    def spent(self, task: str, round: int) -> float:
        """What a task had spent of its budget once a round was committed; 0 without noise."""
        query = sa.select(rounds.c.rho).where((rounds.c.task == task) & (rounds.c.round == round))
        rho: float | None = self._connection.execute(query).scalar_one_or_none()
        return rho or 0.0

    # heads

    def put_head(self, log: int, size: int, head: Signed) -> None:
        """Keep a head that was signed."""
        text = config.to_json(head).decode()
        self._connection.execute(log_heads.insert().values(log=log, size=size, head=text))

    def countersign(self, log: int, size: int, signature: Signed) -> None:
        """Keep a helper's signature of a head; those before it are not needed any more."""
        at = (log_heads.c.log == log) & (log_heads.c.size == size)
        text = config.to_json(signature).decode()
        self._connection.execute(log_heads.update().where(at).values(countersigned=text))
        older = (log_heads.c.log == log) & (log_heads.c.size < size)
        self._connection.execute(log_heads.delete().where(older))

    def head(self, log: int, is_countersigned: bool = False) -> StoredHead | None:
        """The newest head, or the newest that a helper has countersigned; None without one."""
        query = sa.select(log_heads).where(log_heads.c.log == log)
        if is_countersigned:
            query = query.where(log_heads.c.countersigned.is_not(None))
        row = self._connection.execute(
            query.order_by(log_heads.c.size.desc()).limit(1)
        ).one_or_none()
        if row is None:
            return None
        countersigned = None if row.countersigned is None else _signed(row.countersigned)
        return StoredHead(row.size, _signed(row.head), countersigned)


def _number(place: Place) -> int:
    """The number of a node where all nodes are counted from left to right.

    >>> [_number(place) for place in ((0, 0), (1, 0), (0, 1), (2, 0))]
    [0, 1, 2, 3]
    """
    level, index = place
    return ((2 * index + 1) << level) - 1


def _signed(text: str) -> Signed:
    return config.from_json(Signed, text.encode(), "signed")
