"""The typing log: what was typed on this device, sealed record by record. Its text never leaves the device.

Each record is sealed with AES-256-GCM (NIST SP 800-38D) under a key that `keystore` keeps. The number and the time of a record are authenticated
with it, so records cannot be altered, swapped or moved in time unnoticed. Beside each stands how often it was used in an upload.
"""

import contextlib
import os
import re
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from device_runtime import keystore
from device_runtime.errors import RunError, TypingLogError
from device_runtime.keystore import KeyStore
from device_runtime.text import normalise

VERSION = 2
NONCE_BYTES = 12
KEY_BYTES = 32
_EVER = 2**62  # more uses than any record has
_USES = "ALTER TABLE records ADD COLUMN uses INTEGER NOT NULL DEFAULT 0"
START_ANEW = "wipe this typing log to start anew"
_PROBE = b"fedboard-typing-log-v1"  # sealed in every log: a wrong key shows when the log is opened, not at the first read


@dataclass(frozen=True)
class Retention:
    """What `TypingLog.expire` keeps, and how often a message may be used."""

    max_age_s: float = 90 * 86_400.0
    max_bytes: int = 4 << 20  # of sealed records
    max_uses: int = 30  # uploads one message may contribute to; then it is kept, and no upload reads it


@dataclass(frozen=True)
class Record:
    id: int
    text: str = field(repr=False)


class TypingLog:
    """Append, read and expire what was typed. Several processes may hold one log open; each write is whole or not at all."""

    def __init__(self, path: Path, retention: Retention = Retention(), key_store: KeyStore | None = None):
        """Open the log at `path`; log and key are made on first use. By default the key is a file beside it.

        Raises TypingLogError for another file or a key that does not fit, RunError if the key store cannot be used. A log of version 1 becomes one of
        version 2, whole or not at all.
        """
        self.path = Path(path)
        self.retention = retention
        self._key_store = key_store or keystore.named(keystore.FILE, self.path)
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            with self._errors():
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
                self._db.execute("PRAGMA secure_delete = ON")
            with self._transaction():  # one process at a time decides whether this log is new
                self._box = self._first_use() if self._version() == 0 else self._unlock()
        except (TypingLogError, RunError):
            self._db.close()
            raise

    def append(self, text: str, at: float, private: bool = False) -> bool:
        """Record one typed utterance at `at` (seconds). False, and nothing recorded, if it is blank or `private` (a password field, incognito)."""
        return not private and self.append_many([(text, at)]) == 1

    def append_many(self, records: Iterable[tuple[str, float]]) -> int:
        """Record (text, time) pairs, all or none; blank ones are left out. The number recorded."""
        typed = [(text, at) for text, at in records if text.strip()]  # first: an error of whoever gives them is not one of the log
        with self._transaction():
            last = self._db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'records'").fetchone()[0]
            for number, (text, at) in enumerate(typed, start=last + 1):
                # surrogatepass: an error about a lone surrogate would quote the text
                sealed = self._seal(text.encode("utf-8", "surrogatepass"), number, at)
                self._db.execute("INSERT INTO records (id, at, sealed) VALUES (?, ?, ?)", (number, at, sealed))
        return len(typed)

    def read(self, newest: int) -> list[str]:
        """The text of the `newest` latest records, oldest of them first. Raises TypingLogError if one was altered or sealed with another key."""
        return [record.text for record in self.records(newest)]

    def records(self, newest: int, usable: bool = False) -> list[Record]:
        """The `newest` latest records, oldest of them first; with `usable` only those that an upload may still use."""
        most = self.retention.max_uses if usable else _EVER
        query = "SELECT id, at, sealed FROM records WHERE uses < ? ORDER BY at DESC, id DESC LIMIT ?"
        with self._errors():
            found = self._db.execute(query, (most, max(newest, 0))).fetchall()
        return self._opened(reversed(found))

    def records_of(self, ids: Sequence[int]) -> list[Record]:
        """The records with these numbers, in this order; one that is gone is left out."""
        with self._errors():
            rows = (self._db.execute("SELECT id, at, sealed FROM records WHERE id = ?", (number,)).fetchone() for number in ids)
            found = [row for row in rows if row is not None]
        return self._opened(found)

    def count(self, usable: bool = False) -> int:
        """How many records there are; with `usable` only those that an upload may still use."""
        with self._errors():
            return self._db.execute("SELECT count(*) FROM records WHERE uses < ?", (self.retention.max_uses if usable else _EVER,)).fetchone()[0]

    def mark_used(self, ids: Sequence[int]) -> None:
        """Count one more use of each of these records, on disk before this returns: call it before an upload leaves."""
        with self._errors():
            self._db.execute("PRAGMA synchronous = FULL")
        try:
            with self._transaction():
                self._db.executemany("UPDATE records SET uses = uses + 1 WHERE id = ?", [(number,) for number in ids])
        finally:
            with self._errors():
                self._db.execute("PRAGMA synchronous = NORMAL")

    def forget(self, words: str) -> int:
        """Remove every record in which these words stand side by side, in whatever case and spacing. The number removed."""
        found = [record.id for record in self.records(self.count()) if _holds(record.text, words)]
        return self._remove("id = ?", [(number,) for number in found])

    def forget_since(self, at: float) -> int:
        """Remove every record of `at` (seconds) and later. The number removed."""
        return self._remove("at >= ?", [(at,)])

    def seal(self, data: bytes, purpose: str) -> bytes:
        """Seal other data learned from what was typed under the log's key: it can be read as long as the log can."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._box.encrypt(nonce, data, purpose.encode())

    def unseal(self, data: bytes, purpose: str) -> bytes:
        """What was sealed for this purpose. Raises TypingLogError if it was altered, or sealed for another or with another key."""
        try:
            return self._box.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], purpose.encode())
        except (InvalidTag, ValueError):
            raise TypingLogError(self.path, f"{purpose}: altered, or sealed with another key", "remove it: it is made again") from None

    def expire(self, now: float) -> int:
        """Remove records older than the retention's age, then the oldest ones over its bytes. The number removed."""
        over = "SELECT id FROM (SELECT id, sum(length(sealed)) OVER (ORDER BY at DESC, id DESC) AS kept FROM records) WHERE kept > ?"
        return self._remove("at < ?", [(now - self.retention.max_age_s,)]) + self._remove(f"id IN ({over})", [(self.retention.max_bytes,)])

    def wipe(self) -> None:
        """Remove every record, the log and its key. The log is closed."""
        self.close()
        wipe(self.path, self._key_store)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> "TypingLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _remove(self, where: str, values: Sequence[tuple]) -> int:
        with self._transaction():
            removed = sum(self._db.execute(f"DELETE FROM records WHERE {where}", each).rowcount for each in values)
        if removed:
            with self._errors():
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # old pages in the journal still hold what was removed
        return removed

    def _opened(self, rows: Iterable[tuple]) -> list[Record]:
        return [Record(number, self._open(sealed, number, at).decode("utf-8", "surrogatepass")) for number, at, sealed in rows]

    def _version(self) -> int:
        return self._db.execute("PRAGMA user_version").fetchone()[0]

    def _first_use(self) -> AESGCM:
        if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise TypingLogError(self.path, "expected a typing log, found another database", "give another path")
        self._db.execute("CREATE TABLE records (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, sealed BLOB NOT NULL)")
        self._db.execute(_USES)
        self._db.execute("CREATE INDEX records_by_time ON records (at)")
        self._db.execute("CREATE TABLE probe (sealed BLOB NOT NULL)")
        self._db.execute(f"PRAGMA user_version = {VERSION}")
        key = AESGCM.generate_key(bit_length=8 * KEY_BYTES)
        self._key_store.store(key)
        self._box = AESGCM(key)
        self._db.execute("INSERT INTO probe VALUES (?)", (self._seal(_PROBE, 0, 0.0),))
        return self._box

    def _unlock(self) -> AESGCM:
        if self._version() not in (1, VERSION):
            raise TypingLogError(self.path, f"expected format version {VERSION}, found {self._version()}", START_ANEW)
        key, where = self._key_store.load(), self._key_store.where
        if key is None:
            raise TypingLogError(where, "the key of this typing log is missing", f"put it back, or {START_ANEW}")
        if len(key) != KEY_BYTES:
            raise TypingLogError(where, f"expected a key of {KEY_BYTES} bytes, found {len(key)}", f"put the right key back, or {START_ANEW}")
        self._box = AESGCM(key)
        probe = self._db.execute("SELECT sealed FROM probe").fetchone()
        self._open(probe[0] if probe else b"", 0, 0.0)
        if self._version() == 1:
            self._db.execute(_USES)
            self._db.execute(f"PRAGMA user_version = {VERSION}")
        return self._box

    def _seal(self, text: bytes, number: int, at: float) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._box.encrypt(nonce, text, _identity(number, at))

    def _open(self, sealed: bytes, number: int, at: float) -> bytes:
        try:
            return self._box.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _identity(number, at))
        except (InvalidTag, ValueError, TypeError, struct.error):  # a damaged page gives values of any type
            what = f"record {number} was altered or sealed with another key" if number else "the key beside it belongs to another typing log"
            raise TypingLogError(self.path, what, f"put the right key back, or {START_ANEW}") from None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error, OverflowError, UnicodeDecodeError) as error:  # the last two from damaged pages
            reason = error.strerror if isinstance(error, OSError) else error
            raise TypingLogError(self.path, f"cannot be used as a typing log ({reason})", f"check the folder, or {START_ANEW}") from None


def wipe(path: Path, key_store: KeyStore | None = None) -> None:
    """Remove a typing log and its key, also one that cannot be opened any more. Nothing to remove is no error."""
    path = Path(path)
    (key_store or keystore.named(keystore.FILE, path)).remove()  # first: without it nothing below can be read, whatever happens next
    if path.exists():
        db = sqlite3.connect(path, timeout=30, isolation_level=None)
        with contextlib.closing(db), contextlib.suppress(sqlite3.Error):  # a damaged file cannot be emptied, only removed
            db.execute("PRAGMA secure_delete = ON")
            db.execute("DELETE FROM records")
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _holds(text: str, words: str) -> bool:
    """Whether whole words, at least one, stand in a text."""
    text, words = (" ".join(normalise(each).split()) for each in (text, words))
    return bool(words) and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def _identity(number: int, at: float) -> bytes:
    return struct.pack("<qd", number, at)
