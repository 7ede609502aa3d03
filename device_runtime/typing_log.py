"""The typing log: what was typed on this device, sealed record by record. Its text never leaves the
device.

Each record is sealed with AES-256-GCM (NIST SP 800-38D) under a key that lives where `keystore`
says. The number and the time of a record are authenticated with it, so records cannot be altered,
swapped or moved in time unnoticed: one that was is passed over, and counted. Other files learned
from what was typed can be sealed under the same key, so that wiping the log ends them too.

How long a record is kept goes by the log's own age (`ageing`), not by the record's time.
"""

import contextlib
import json
import math
import os
import re
import sqlite3
import struct
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from device_runtime import ageing, keystore
from device_runtime.ageing import Age
from device_runtime.errors import TypingLogError
from device_runtime.limits import MOST_USES
from device_runtime.text import fold, normalise, plain, spaceless, written
from device_runtime.wire import DAY_S

# of version 1 there is no column of uses, in version 2 none of what is held back, in version 3 none
# of since when a record counts: they are given them when they are opened
VERSION = 4
# messages: that one is held back from training for good, by its number, when it is recorded
HELD_ONE_IN = 10
NONCE_BYTES = 12
KEY_BYTES = 32
PATIENCE_S = 30.0  # that a process waits for another one's write
LOOK_EVERY_S = 3600.0  # `retain` looks at the clock so often
MASK = "<#>"  # stands in the place of a word that was removed; tokenises to <anon>
_ANY_USES = (1 << 63) - 1
_MOST_NUMBER = 1 << 62
_PAGE = 256  # records
_NO_ROOM = ("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_PERM")
# sealed in every log: a wrong key shows when the log is opened, not at the first read
_PROBE = b"fedboard-typing-log-v1"


@dataclass(frozen=True)
class Retention:
    """What `TypingLog.expire` keeps, by the log's own age."""

    max_age_s: float = 90 * DAY_S
    max_bytes: int = 4 << 20  # of sealed records
    # updates or scores one message may contribute to; then it is kept, and contributes no more
    max_uses: int = MOST_USES


@dataclass(frozen=True)
class Record:
    """One message, and the number it keeps as long as it is there."""

    id: int
    text: str = field(repr=False)


class TypingLog:
    """Append, read and expire what was typed. Several processes may hold one log open; each write
    is whole or not at all.
    """

    def __init__(
        self,
        path: Path,
        retention: Retention = Retention(),
        key_store: str = keystore.FILE,
        patience_s: float = PATIENCE_S,
    ):
        """Open the log at `path`, its key in the key store of that name. Both are made on first
        use, in a folder that is there; an older version is brought up to date. `patience_s`: how
        long every call waits while another process writes.

        Raises TypingLogError for another file or a key that does not fit, ConfigError for an
        unknown key store, RunError for one that is not usable.
        """
        self.path = Path(path)
        self.retention = retention
        keys = keystore.named(key_store, self.path)
        with self._errors():
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(self.path, timeout=patience_s, isolation_level=None)
        try:
            with self._errors():
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA secure_delete = ON")
                self._db.execute("PRAGMA synchronous = NORMAL")
            with self._transaction():  # one process at a time decides whether this log is new
                self._box = self._first_use(keys) if self._version() == 0 else self._unlock(keys)
        except BaseException:
            self._db.close()
            raise

    def append(self, text: str, at: float, private: bool = False) -> bool:
        """Record one typed utterance at `at` (seconds). False, and nothing recorded, if it is blank
        or `private` (a password field, incognito).
        """
        return not private and self.append_many([(text, at)]) == 1

    def append_many(self, records: Iterable[tuple[str, float]], uses: int = 0) -> int:
        """Record (text, time) pairs, all or none; blank ones are left out. The number recorded.
        Each counts as having contributed to so many updates already.
        """
        # first: an error of whoever gives them is not one of the log
        typed = [(text, at) for text, at in records if text.strip()]
        with self._transaction():
            last, age = self._last_number(), self._age()
            for number, (text, at) in enumerate(typed, start=last + 1):
                since = ageing.at(age, at) if age else at
                sealed = self._sealed(text, number, at)
                self._db.execute(
                    "INSERT INTO records (id, at, sealed, held, since, uses) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (number, at, sealed, number % HELD_ONE_IN == 0, since, uses),
                )
        return len(typed)

    def read(self, newest: int) -> list[str]:
        """The text of the `newest` latest records, oldest of them first. One that was altered, or
        sealed with another key, is passed over.
        """
        return [record.text for record in self.records(newest)]

    def newest_first(self) -> Iterator[Record]:
        """Every record, the latest first, read as they are asked for. An altered one is passed
        over.
        """
        with self._errors():
            rows = self._db.execute(
                "SELECT id, at, sealed FROM records ORDER BY since DESC, id DESC"
            )
        while True:
            with self._errors():
                page = rows.fetchmany(_PAGE)
            if not page:
                return
            yield from self._whole(page)

    def dated(self) -> list[tuple[str, float]]:
        """The text of every record that is whole, and its time, in the order they were recorded."""
        rows = self._rows("SELECT id, at, sealed FROM records ORDER BY id", ())
        times = {row[0]: row[1] for row in rows}
        return [(record.text, times[record.id]) for record in self._whole(rows)]

    def altered(self) -> int:
        """How many records were altered or sealed with another key: they are passed over."""
        rows = self._rows("SELECT id, at, sealed FROM records", ())
        return len(rows) - len(self._whole(rows))

    def records(self, newest: int, usable: bool = False, held: bool | None = None) -> list[Record]:
        """The `newest` latest records, oldest of them first; with `usable` only those below the cap
        of uses. Of those held back from training with `held`, of the others where that is False.
        Altered ones are passed over.
        """
        rows = self._rows(
            "SELECT id, at, sealed FROM records WHERE uses < ? AND held BETWEEN ? AND ? "
            "ORDER BY since DESC, id DESC LIMIT ?",
            (self._below(usable), held is True, held is not False, max(newest, 0)),
        )
        return self._whole(rows[::-1])

    def records_of(self, ids: Sequence[int]) -> list[Record]:
        """The records of these numbers that are still there, unaltered, and not held back from
        training, in this order.
        """
        query = "SELECT id, at, sealed FROM records WHERE id = ? AND NOT held"
        return self._whole([row for number in ids for row in self._rows(query, (number,))])

    def holds(self, ids: Sequence[int]) -> bool:
        """Whether the records of all these numbers are still there."""
        statement = "SELECT 1 FROM records WHERE id = ?"
        return all(self._rows(statement, (number,)) for number in ids)

    def count(self, usable: bool = False) -> int:
        """How many records there are; with `usable` only those below the cap of uses."""
        rows = self._rows("SELECT count(*) FROM records WHERE uses < ?", (self._below(usable),))
        return int(rows[0][0])

    def used_up(self) -> int:
        """How many records contributed as often as they may."""
        return self.count() - self.count(usable=True)

    def mark_used(self, ids: Sequence[int]) -> None:
        """Count one more use of each of these records, those gone aside. Durable when it returns:
        call it before an update leaves.
        """
        with self._errors():
            # the journal reaches the disk before the transaction counts as done
            self._db.execute("PRAGMA synchronous = FULL")
            try:
                with self._transaction():
                    self._db.executemany(
                        "UPDATE records SET uses = uses + 1 WHERE id = ?",
                        [(number,) for number in sorted(set(ids))],
                    )
            finally:
                self._db.execute("PRAGMA synchronous = NORMAL")

    def retain(self, now: float) -> int:
        """`expire`, if it has not been called for an hour by the device's clock: cheap enough to be
        called whenever something is typed. The number removed.
        """
        with self._errors():
            age = self._age()
        last = age.looks[-1] if age else math.inf
        return 0 if last <= now < last + LOOK_EVERY_S else self.expire(now)

    def expire(self, now: float) -> int:
        """Remove records that the retention's age has passed since they were recorded, as `ageing`
        has it, then the oldest ones over its bytes. `now` is the device's clock. The number
        removed.
        """
        over = (
            "SELECT id FROM (SELECT id, sum(length(sealed)) OVER (ORDER BY since DESC, id DESC) AS "
            "kept FROM records) WHERE kept > ?"
        )
        with self._transaction():
            age = self._aged(now)
            # also where a damaged database holds no number
            self._db.execute(
                "UPDATE records SET since = ?1 WHERE since > ?1 OR typeof(since) != 'real'",
                (age.own,),
            )
            oldest = age.own - self.retention.max_age_s
            removed = self._db.execute("DELETE FROM records WHERE since < ?", (oldest,)).rowcount
            removed += self._db.execute(
                f"DELETE FROM records WHERE id IN ({over})", (self.retention.max_bytes,)
            ).rowcount
        return self._gone(removed)

    def forget(self, containing: str, first: Callable[[], object] = lambda: None) -> int:
        """Remove every record that holds these words side by side, as `contains` has it. The number
        removed.

        `first` is called before any is removed, and not where none is.
        """
        return self._forgotten(lambda text: contains(text, containing), first)

    def _forgotten(self, goes: Callable[[str], bool], first: Callable[[], object]) -> int:
        with self._transaction():
            every = self._db.execute("SELECT id, at, sealed FROM records").fetchall()
            ids = [(record.id,) for record in self._whole(every) if goes(record.text)]
            if ids:
                first()
            self._db.executemany("DELETE FROM records WHERE id = ?", ids)
        return self._gone(len(ids))

    def mask(self, word: str, first: Callable[[], object] = lambda: None) -> int:
        """Put `<#>` in the place of a word, as `masked` has it, in every record that holds it. How
        often it was contributed, and whether it is held back, stays. The number of records changed.

        `first` is called before any is changed, and not where none is.
        """
        with self._transaction():
            every = self._db.execute("SELECT id, at, sealed FROM records").fetchall()
            times = {number: at for number, at, _ in every}
            changed = [
                (self._sealed(text, record.id, times[record.id]), record.id)
                for record in self._whole(every)
                if (text := masked(record.text, word)) != record.text
            ]
            if changed:
                first()
            self._db.executemany("UPDATE records SET sealed = ? WHERE id = ?", changed)
        return self._gone(len(changed))

    def forget_since(self, at: float, first: Callable[[], object] = lambda: None) -> int:
        """Remove every record stamped with `at` (seconds) or later. The number removed.

        `first` is called before any is removed, and not where none is.
        """
        with self._transaction():
            there = self._db.execute("SELECT 1 FROM records WHERE at >= ? LIMIT 1", (at,))
            if there.fetchone():
                first()
            removed = self._db.execute("DELETE FROM records WHERE at >= ?", (at,)).rowcount
        return self._gone(removed)

    def seal(self, data: bytes, purpose: str) -> bytes:
        """Seal other data learned from what was typed under the key of this log: it can be read as
        long as the log is not wiped.
        """
        return self._seal(data, _purpose(purpose))

    def unseal(self, data: bytes, purpose: str) -> bytes:
        """What was sealed for this purpose. Raises TypingLogError if it was altered, sealed for
        another purpose or under another key.
        """
        opened = self._unsealed(data, _purpose(purpose))
        if opened is None:
            raise TypingLogError(
                self.path,
                f"sealed data for {purpose!r} was altered or sealed with another key",
                "remove it, to have it made anew",
            )
        return opened

    def wipe(self) -> None:
        """Remove every record, the log and its key. The log is closed. Raises as the function
        `wipe`.
        """
        self.close()
        wipe(self.path)

    def close(self) -> None:
        """Close the database. Nothing is lost without it."""
        self._db.close()

    def __enter__(self) -> "TypingLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _first_use(self, keys: keystore.KeyStore) -> AESGCM:
        if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise TypingLogError(
                self.path, "expected a typing log, found another database", "give another path"
            )
        self._db.execute(
            "CREATE TABLE records (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, sealed "
            "BLOB NOT NULL)"
        )
        self._db.execute("CREATE INDEX records_by_time ON records (at)")
        self._db.execute("CREATE TABLE probe (sealed BLOB NOT NULL)")
        self._bring_up_to_date(1)
        key = keys.load()
        # one that is there stays: it may belong to a log that was moved away
        if key is None or len(key) != KEY_BYTES:
            key = AESGCM.generate_key(bit_length=8 * KEY_BYTES)
            keys.store(key)
        self._box = AESGCM(key)
        self._db.execute("INSERT INTO probe VALUES (?)", (self._seal(_PROBE, _identity(0, 0.0)),))
        return self._box

    def _unlock(self, keys: keystore.KeyStore) -> AESGCM:
        if not 1 <= self._version() <= VERSION:
            raise TypingLogError(
                self.path,
                f"expected format version {VERSION}, found {self._version()}",
                f"use the version of Fedboard that wrote it, or {_move_away(self.path)}",
            )
        key = keys.load()
        if key is None:
            raise TypingLogError(
                self.path,
                "the key of this typing log is missing",
                f"put it back where key_store says, or {_move_away(self.path)}",
            )
        if len(key) != KEY_BYTES:
            raise TypingLogError(
                self.path,
                f"expected a key of {KEY_BYTES} bytes, found {len(key)}",
                f"put the right key back, or {_move_away(self.path)}",
            )
        self._box = AESGCM(key)
        probe = self._db.execute("SELECT sealed FROM probe").fetchone()
        if self._unsealed(probe[0] if probe else b"", _identity(0, 0.0)) != _PROBE:
            raise TypingLogError(
                self.path,
                "its key belongs to another typing log",
                f"put the right key back, or {_move_away(self.path)}",
            )
        self._bring_up_to_date(self._version())
        return self._box

    def _bring_up_to_date(self, version: int) -> None:
        if version < 2:
            self._db.execute("ALTER TABLE records ADD COLUMN uses INTEGER NOT NULL DEFAULT 0")
        if version < 3:
            self._db.execute("ALTER TABLE records ADD COLUMN held INTEGER NOT NULL DEFAULT 0")
            # one that was trained on, as where there were few, is not held back any more; of the
            # first version's nobody knows
            self._db.execute(
                f"UPDATE records SET held = 1 WHERE id % {HELD_ONE_IN} = 0 AND uses = 0 AND ? > 1",
                (version,),
            )
        if version < 4:
            self._db.execute("ALTER TABLE records ADD COLUMN since REAL")
            self._db.execute("UPDATE records SET since = at")
            self._db.execute("CREATE INDEX records_by_since ON records (since)")
            self._db.execute("CREATE TABLE age (own REAL NOT NULL, looks TEXT NOT NULL)")
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def _last_number(self) -> int:
        """The highest number a record ever had; of those there are where that was altered."""
        noted = self._db.execute(
            "SELECT max(seq) FROM sqlite_sequence WHERE name = 'records'"
        ).fetchone()[0]
        there = self._db.execute("SELECT coalesce(max(id), 0) FROM records").fetchone()[0]
        if isinstance(noted, int) and there <= noted < _MOST_NUMBER:
            return noted
        if there >= _MOST_NUMBER:  # a number nobody gave
            query = "SELECT coalesce(max(id), 0) FROM records WHERE id < ?"
            there = self._db.execute(query, (_MOST_NUMBER,)).fetchone()[0]
        return max(int(there), 0)

    def _age(self) -> Age | None:
        """None before the first look at a clock, and where it is damaged."""
        row = self._db.execute("SELECT own, looks FROM age").fetchone()
        try:
            own, looks = float(row[0]), tuple(float(look) for look in json.loads(row[1]))
        except (TypeError, ValueError, RecursionError):
            return None
        return Age(own, looks) if looks and all(map(math.isfinite, (own, *looks))) else None

    def _aged(self, now: float) -> Age:
        """Look at the clock."""
        age = self._age()
        if age is None:
            latest = self._db.execute(
                "SELECT max(at) FROM records WHERE typeof(at) = 'real'"
            ).fetchone()[0]
            age = ageing.begun(now, latest)
            if age.own >= ageing.NO_CLOCK_BEFORE:
                self._db.execute(
                    "UPDATE records SET since = ? WHERE since < ?",
                    (age.own, ageing.NO_CLOCK_BEFORE),
                )
        else:
            age = ageing.looked(age, now)
        self._db.execute("DELETE FROM age")
        self._db.execute("INSERT INTO age VALUES (?, ?)", (age.own, json.dumps(age.looks)))
        return age

    def _below(self, usable: bool) -> int:
        return self.retention.max_uses if usable else _ANY_USES

    def _rows(self, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self._errors():
            return self._db.execute(query, values).fetchall()

    def _gone(self, removed: int) -> int:
        if removed:
            with self._errors():
                # old pages in the journal still hold what was removed
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return removed

    def _whole(self, rows: Iterable[tuple[Any, ...]]) -> list[Record]:
        """The records of rows (number, time, sealed), without those that were altered."""
        opened = (
            (number, self._unsealed(sealed, _identity(number, at))) for number, at, sealed in rows
        )
        return [
            Record(number, text.decode("utf-8", "surrogatepass"))
            for number, text in opened
            if text is not None
        ]

    def _sealed(self, text: str, number: int, at: float) -> bytes:
        # surrogatepass: an error about a lone surrogate would quote the text
        return self._seal(text.encode("utf-8", "surrogatepass"), _identity(number, at))

    def _seal(self, data: bytes, bound: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._box.encrypt(nonce, data, bound)

    def _unsealed(self, sealed: bytes, bound: bytes) -> bytes | None:
        """None if it was altered, bound to something else or sealed with another key."""
        try:
            return self._box.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound)
        except (InvalidTag, ValueError, TypeError):  # a damaged database gives values of any type
            return None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # SQLite ends it by itself when the disk is full or the file damaged
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError:  # SQLite's message quotes a damaged file
            raise self._unusable("damaged", _move_away(self.path)) from None
        except sqlite3.OperationalError as error:
            name = getattr(error, "sqlite_errorname", "") or ""
            remedy = (
                "wait for the process that writes it"
                if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
                else "make room, or give yourself the right to write there"
                if name.startswith(_NO_ROOM)
                else _move_away(self.path)
            )
            raise self._unusable(str(error), remedy) from None
        except OSError as error:
            remedy = "make room, or give yourself the right to write there"
            raise self._unusable(error.strerror or "refused", remedy) from None
        except (sqlite3.Error, MemoryError) as error:
            raise self._unusable(str(error) or "out of memory", _move_away(self.path)) from None

    def _unusable(self, why: str, remedy: str) -> TypingLogError:
        return TypingLogError(self.path, f"cannot be used as a typing log ({why})", remedy)


def wipe(path: Path) -> None:
    """Remove a typing log and its key, wherever that is; also a log that cannot be opened any more.
    Nothing to remove is no error.

    The key goes first: without it nothing below can be read, whatever happens next. Raises
    RunError, once the log is gone, if the key is in the system's keystore and cannot be removed
    from it now.
    """
    path = Path(path)
    try:
        keystore.holding(path).remove()
    finally:
        _remove_log(path)


def contains(typed: str, words: str) -> bool:
    """Whether `typed` holds `words` side by side, whatever their case and accents, and what stands
    between them.

    Numbers, links and addresses count as the words they are made of; an apostrophe stands within a
    word, or between two. Where there is no word, the very signs are looked for.

    >>> contains("İstanbul is cold", "istanbul"), contains("Hauptstraße 5", "HAUPTSTRASSE")
    (True, True)
    >>> contains("à l'hôpital", "hopital"), contains("i dont", "don't"), contains("older", "old")
    (True, True, False)
    """
    wanted = {_letters(words, apart) for apart in (True, False)} - {""}
    if not wanted:
        signs = normalise(words).casefold().strip()
        return bool(signs) and signs in normalise(typed).casefold()
    held = [_letters(typed, apart) for apart in (True, False)]
    return any(_holds(text, each) for each in wanted for text in held)


def masked(typed: str, word: str) -> str:
    """`typed` with `<#>` in the place of every word that is `word`, whatever its case, accents and
    apostrophes, with `'s` or without; of links, addresses and runs without spaces that hold it.

    >>> masked("Łukasz and lukasz's dog, lukas", "ŁUKASZ")
    '<#> and <#> dog, lukas'
    """
    wanted = _letters(word, False)
    if not wanted or wanted not in _letters(typed, False):
        return typed
    text, parts, done = normalise(typed), [], 0
    for token, stands in written(typed):
        at = text.index(stands, done)
        goes = _is_masked(token, stands, wanted)
        parts += [text[done:at], MASK if goes else stands]
        done = at + len(stands)
    changed = "".join((*parts, text[done:]))
    return typed if changed == text else changed


def _is_masked(token: str, stands: str, wanted: str) -> bool:
    own = _letters(stands, False)
    if token in ("<url>", "<anon>") or spaceless(token):
        return _holds(own, wanted)
    return wanted in (own, own.removesuffix("s") if fold(stands).endswith("'s") else own)


def _holds(text: str, words: str) -> bool:
    """Whether words stand in a text, both as `_letters` gives them."""
    if not words.isascii():
        return words in text  # of other scripts some write no space between words
    return re.search(rf"(?<![0-9a-z]){re.escape(words)}(?![0-9a-z])", text) is not None


def _letters(text: str, apart: bool) -> str:
    """The words of a text with one space between two, as `plain` compares them. `apart`: what
    stands on both sides of an apostrophe is two words.
    """
    words = []
    for chunk in normalise(text).split():
        for part in fold(chunk).split("'") if apart else (chunk,):
            words += _runs(plain(part))
    return " ".join(words)


def _runs(text: str) -> list[str]:
    """Letters and digits with the marks that belong to them.

    >>> _runs("ann@example.org"), _runs("हिन्दी"), _runs(":-)")
    (['ann', 'example', 'org'], ['हिन्दी'], [])
    """
    if text.isascii():
        return re.findall(r"[0-9A-Za-z]+", text)
    kept = (
        sign if sign.isalnum() or unicodedata.category(sign)[0] == "M" else " " for sign in text
    )
    return [run for run in "".join(kept).split() if any(map(str.isalnum, run))]


def _move_away(path: Path) -> str:
    return f"move {path.stem}.* away to begin a new log: what was typed is kept in it"


def _remove_log(path: Path) -> None:
    if path.exists():
        db = sqlite3.connect(path, timeout=30, isolation_level=None)
        with (
            contextlib.closing(db),
            # a damaged file cannot be emptied, only removed; nor can SQLite always name the damage
            contextlib.suppress(sqlite3.Error, UnicodeDecodeError, MemoryError),
        ):
            db.execute("PRAGMA secure_delete = ON")
            db.execute("DELETE FROM records")
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _identity(number: int, at: float) -> bytes:
    """What a record's text is bound to. A time that is none, as a damaged database may give, fits
    no record.
    """
    return struct.pack("<qd", number, at) if isinstance(at, int | float) else b""


def _purpose(purpose: str) -> bytes:
    return b"fedboard-sealed-file:" + purpose.encode()  # longer than the identity of any record
