"""The typing log: what was typed on this device, sealed record by record. Its text never leaves the device.

Each record is sealed with AES-256-GCM (NIST SP 800-38D) under a key in a file beside the log that only its owner can read. The number and the time
of a record are authenticated with it, so records cannot be altered, swapped or moved in time unnoticed.
"""

import contextlib
import os
import sqlite3
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from device_runtime.errors import TypingLogError

VERSION = 1
NONCE_BYTES = 12
KEY_BYTES = 32
START_ANEW = "wipe this typing log to start anew"
_PROBE = b"fedboard-typing-log-v1"  # sealed in every log: a wrong key shows when the log is opened, not at the first read


@dataclass(frozen=True)
class Retention:
    """What `TypingLog.expire` keeps."""

    max_age_s: float = 90 * 86_400.0
    max_bytes: int = 4 << 20  # of sealed records


class TypingLog:
    """Append, read and expire what was typed. Several processes may hold one log open; each write is whole or not at all."""

    def __init__(self, path: Path, retention: Retention = Retention()):
        """Open the log at `path`; log and key are made on first use. Raises TypingLogError for another file or a key that does not fit."""
        self.path = Path(path)
        self.retention = retention
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
        except TypingLogError:
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
                self._db.execute("INSERT INTO records VALUES (?, ?, ?)", (number, at, sealed))
        return len(typed)

    def read(self, newest: int) -> list[str]:
        """The text of the `newest` latest records, oldest of them first. Raises TypingLogError if one was altered or sealed with another key."""
        with self._errors():
            found = self._db.execute("SELECT id, at, sealed FROM records ORDER BY at DESC, id DESC LIMIT ?", (max(newest, 0),)).fetchall()
        return [self._open(sealed, number, at).decode("utf-8", "surrogatepass") for number, at, sealed in reversed(found)]

    def count(self) -> int:
        with self._errors():
            return self._db.execute("SELECT count(*) FROM records").fetchone()[0]

    def expire(self, now: float) -> int:
        """Remove records older than the retention's age, then the oldest ones over its bytes. The number removed."""
        over = "SELECT id FROM (SELECT id, sum(length(sealed)) OVER (ORDER BY at DESC, id DESC) AS kept FROM records) WHERE kept > ?"
        with self._transaction():
            removed = self._db.execute("DELETE FROM records WHERE at < ?", (now - self.retention.max_age_s,)).rowcount
            removed += self._db.execute(f"DELETE FROM records WHERE id IN ({over})", (self.retention.max_bytes,)).rowcount
        if removed:
            with self._errors():
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # old pages in the journal still hold what was removed
        return removed

    def wipe(self) -> None:
        """Remove every record, the log and its key. The log is closed."""
        self.close()
        wipe(self.path)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> "TypingLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _version(self) -> int:
        return self._db.execute("PRAGMA user_version").fetchone()[0]

    def _first_use(self) -> AESGCM:
        if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise TypingLogError(self.path, "expected a typing log, found another database", "give another path")
        self._db.execute("CREATE TABLE records (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, sealed BLOB NOT NULL)")
        self._db.execute("CREATE INDEX records_by_time ON records (at)")
        self._db.execute("CREATE TABLE probe (sealed BLOB NOT NULL)")
        self._db.execute(f"PRAGMA user_version = {VERSION}")
        path = key_path(self.path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            key = AESGCM.generate_key(bit_length=8 * KEY_BYTES)
            file.write(key)
            file.flush()
            os.fsync(file.fileno())  # records without their key are lost
        os.replace(temporary, path)
        self._box = AESGCM(key)
        self._db.execute("INSERT INTO probe VALUES (?)", (self._seal(_PROBE, 0, 0.0),))
        return self._box

    def _unlock(self) -> AESGCM:
        if self._version() != VERSION:
            raise TypingLogError(self.path, f"expected format version {VERSION}, found {self._version()}", START_ANEW)
        path = key_path(self.path)
        if not path.exists():
            raise TypingLogError(path, "the key of this typing log is missing", f"put it back, or {START_ANEW}")
        key = path.read_bytes()
        if len(key) != KEY_BYTES:
            raise TypingLogError(path, f"expected a key of {KEY_BYTES} bytes, found {len(key)}", f"put the right key back, or {START_ANEW}")
        self._box = AESGCM(key)
        probe = self._db.execute("SELECT sealed FROM probe").fetchone()
        self._open(probe[0] if probe else b"", 0, 0.0)
        return self._box

    def _seal(self, text: bytes, number: int, at: float) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._box.encrypt(nonce, text, _identity(number, at))

    def _open(self, sealed: bytes, number: int, at: float) -> bytes:
        try:
            return self._box.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _identity(number, at))
        except (InvalidTag, ValueError):
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
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise TypingLogError(self.path, f"cannot be used as a typing log ({reason})", f"check the folder, or {START_ANEW}") from None


def key_path(log: Path) -> Path:
    """Where the key of a typing log lies."""
    return Path(log).with_suffix(".key")


def wipe(path: Path) -> None:
    """Remove a typing log and its key, also one that cannot be opened any more. Nothing to remove is no error."""
    path = Path(path)
    key_path(path).unlink(missing_ok=True)  # first: without it nothing below can be read, whatever happens next
    if path.exists():
        db = sqlite3.connect(path, timeout=30, isolation_level=None)
        with contextlib.closing(db), contextlib.suppress(sqlite3.Error):  # a damaged file cannot be emptied, only removed
            db.execute("PRAGMA secure_delete = ON")
            db.execute("DELETE FROM records")
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _identity(number: int, at: float) -> bytes:
    return struct.pack("<qd", number, at)
