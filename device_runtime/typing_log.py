"""The typing log: what was typed on this device, sealed record by record. Its text never leaves the
device.

Each record is sealed with AES-256-GCM (NIST SP 800-38D) under a key that lives where `keystore`
says. The number and the time of a record are authenticated with it, so records cannot be altered,
swapped or moved in time unnoticed. Other files learned from what was typed can be sealed under the
same key, so that wiping the log ends them too.
"""

import contextlib
import os
import re
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from device_runtime import keystore
from device_runtime.errors import TypingLogError
from device_runtime.limits import MOST_USES
from device_runtime.text import normalise
from device_runtime.wire import DAY_S

# of version 1 there is no column of uses, and in version 2 none of what is held back: they are
# given them when they are opened
VERSION = 3
# messages: that one is held back from training for good, by its number, when it is recorded
HELD_ONE_IN = 10
NONCE_BYTES = 12
KEY_BYTES = 32
START_ANEW = "wipe this typing log to start anew"
_ANY_USES = (1 << 63) - 1
_WORD = re.compile(r"[^\W_]+")
# sealed in every log: a wrong key shows when the log is opened, not at the first read
_PROBE = b"fedboard-typing-log-v1"


@dataclass(frozen=True)
class Retention:
    """What `TypingLog.expire` keeps."""

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
        self, path: Path, retention: Retention = Retention(), key_store: str = keystore.FILE
    ):
        """Open the log at `path`, its key in the key store of that name. Both are made on first
        use; an older version is brought up to date.

        Raises TypingLogError for another file or a key that does not fit, ConfigError for an
        unknown key store, RunError for one that is not usable.
        """
        self.path = Path(path)
        self.retention = retention
        keys = keystore.named(key_store, self.path)
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
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

    def append_many(self, records: Iterable[tuple[str, float]]) -> int:
        """Record (text, time) pairs, all or none; blank ones are left out. The number recorded."""
        # first: an error of whoever gives them is not one of the log
        typed = [(text, at) for text, at in records if text.strip()]
        with self._transaction():
            last = self._db.execute(
                "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'records'"
            ).fetchone()[0]
            if not isinstance(last, int) or not 0 <= last < 1 << 62:
                raise TypingLogError(
                    self.path, "the numbers of its records were altered", START_ANEW
                )
            for number, (text, at) in enumerate(typed, start=last + 1):
                # surrogatepass: an error about a lone surrogate would quote the text
                sealed = self._seal(text.encode("utf-8", "surrogatepass"), _identity(number, at))
                self._db.execute(
                    "INSERT INTO records (id, at, sealed, held) VALUES (?, ?, ?, ?)",
                    (number, at, sealed, number % HELD_ONE_IN == 0),
                )
        return len(typed)

    def read(self, newest: int) -> list[str]:
        """The text of the `newest` latest records, oldest of them first. Raises TypingLogError if
        one was altered or sealed with another key.
        """
        return [record.text for record in self.records(newest)]

    def records(self, newest: int, usable: bool = False, held: bool | None = None) -> list[Record]:
        """The `newest` latest records, oldest of them first; with `usable` only those below the cap
        of uses. Of those held back from training with `held`, of the others where that is False.
        Raises as `read`.
        """
        rows = self._rows(
            "SELECT id, at, sealed FROM records WHERE uses < ? AND held BETWEEN ? AND ? "
            "ORDER BY at DESC, id DESC LIMIT ?",
            (self._below(usable), held is True, held is not False, max(newest, 0)),
        )
        return [self._record(*row) for row in reversed(rows)]

    def records_of(self, ids: Sequence[int]) -> list[Record]:
        """The records of these numbers that are still there and not held back from training, in
        this order. Raises as `read`.
        """
        return [
            self._record(*row)
            for number in ids
            for row in self._rows(
                "SELECT id, at, sealed FROM records WHERE id = ? AND NOT held", (number,)
            )
        ]

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

    def expire(self, now: float) -> int:
        """Remove records older than the retention's age, then the oldest ones over its bytes. The
        number removed.
        """
        over = (
            "SELECT id FROM (SELECT id, sum(length(sealed)) OVER (ORDER BY at DESC, id DESC) AS "
            "kept FROM records) WHERE kept > ?"
        )
        return self._remove(
            ("DELETE FROM records WHERE at < ?", (now - self.retention.max_age_s,)),
            (f"DELETE FROM records WHERE id IN ({over})", (self.retention.max_bytes,)),
        )

    def forget(self, containing: str) -> int:
        """Remove every record that holds these words side by side, whatever their case and what
        stands between them. The number removed.

        Numbers, links and addresses count as the words they are made of. Where there is no word,
        the very signs are looked for. Raises as `read`.
        """
        with self._transaction():
            every = self._db.execute("SELECT id, at, sealed FROM records").fetchall()
            ids = [
                number
                for number, at, sealed in every
                if contains(self._record(number, at, sealed).text, containing)
            ]
            self._db.executemany("DELETE FROM records WHERE id = ?", [(number,) for number in ids])
        return self._gone(len(ids))

    def forget_since(self, at: float) -> int:
        """Remove every record typed at `at` (seconds) or later. The number removed."""
        return self._remove(("DELETE FROM records WHERE at >= ?", (at,)))

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
        key = AESGCM.generate_key(bit_length=8 * KEY_BYTES)
        keys.store(key)
        self._box = AESGCM(key)
        self._db.execute("INSERT INTO probe VALUES (?)", (self._seal(_PROBE, _identity(0, 0.0)),))
        return self._box

    def _unlock(self, keys: keystore.KeyStore) -> AESGCM:
        if not 1 <= self._version() <= VERSION:
            raise TypingLogError(
                self.path, f"expected format version {VERSION}, found {self._version()}", START_ANEW
            )
        key = keys.load()
        if key is None:
            raise TypingLogError(
                self.path,
                "the key of this typing log is missing",
                f"put it back where key_store says, or {START_ANEW}",
            )
        if len(key) != KEY_BYTES:
            raise TypingLogError(
                self.path,
                f"expected a key of {KEY_BYTES} bytes, found {len(key)}",
                f"put the right key back, or {START_ANEW}",
            )
        self._box = AESGCM(key)
        probe = self._db.execute("SELECT sealed FROM probe").fetchone()
        if self._unsealed(probe[0] if probe else b"", _identity(0, 0.0)) != _PROBE:
            raise TypingLogError(
                self.path,
                "its key belongs to another typing log",
                f"put the right key back, or {START_ANEW}",
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
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def _below(self, usable: bool) -> int:
        return self.retention.max_uses if usable else _ANY_USES

    def _rows(self, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self._errors():
            return self._db.execute(query, values).fetchall()

    def _remove(self, *deletions: tuple[str, tuple[Any, ...]]) -> int:
        with self._transaction():
            removed = sum(self._db.execute(query, values).rowcount for query, values in deletions)
        return self._gone(removed)

    def _gone(self, removed: int) -> int:
        if removed:
            with self._errors():
                # old pages in the journal still hold what was removed
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return removed

    def _record(self, number: int, at: float, sealed: bytes) -> Record:
        opened = self._unsealed(sealed, _identity(number, at))
        if opened is None:
            raise TypingLogError(
                self.path,
                f"record {number} was altered or sealed with another key",
                f"put the right key back, or {START_ANEW}",
            )
        return Record(number, opened.decode("utf-8", "surrogatepass"))

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
            raise TypingLogError(
                self.path,
                "cannot be used as a typing log (damaged)",
                f"check the folder, or {START_ANEW}",
            ) from None
        except (OSError, sqlite3.Error, MemoryError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error) or "out of memory"
            raise TypingLogError(
                self.path,
                f"cannot be used as a typing log ({reason})",
                f"check the folder, or {START_ANEW}",
            ) from None


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
    """Whether `typed` holds `words` side by side, as `TypingLog.forget` has it."""
    wanted, held = (" ".join(_WORD.findall(normalise(part).casefold())) for part in (words, typed))
    if not wanted:
        signs = normalise(words).casefold().strip()
        return bool(signs) and signs in normalise(typed).casefold()
    if wanted.isascii():
        return f" {wanted} " in f" {held} "
    return wanted in held  # of other scripts some write no space between words


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
