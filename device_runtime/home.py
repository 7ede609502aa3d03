"""A device's home: the folder that holds all it knows, and the ledger of what it contributed.

    device.toml            who it trusts, which bundle it installed, where its conditions come from
    device.key             its private key: signs its requests
    typing_log.sqlite      what was typed, sealed; typing_log.key beside it
    own_words.json         how far the user's own words are trusted: numbers, no words
    ledger.sqlite          what it contributed, round by round; never any text
    device.name            the name the server enrolled it under
    checkpoint/            the last checkpoint it fetched, named by its SHA-256

All but the bundle is its own: removing the folder removes the device.
"""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, field, fields
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import config, signing
from device_runtime.bundle import Bundle, open_verified
from device_runtime.conditions import Source, trace_source, unknown
from device_runtime.errors import RunError
from device_runtime.typing_log import Retention, TypingLog
from device_runtime.typing_log import wipe as wipe_log
from device_runtime.weights import digest

CONFIG, KEY, NAME = "device.toml", "device.key", "device.name"
TYPING_LOG, LEDGER, CHECKPOINT = "typing_log.sqlite", "ledger.sqlite", "checkpoint"
OWN_WORDS = "own_words.json"
LEARNED = (OWN_WORDS,)  # files learned from what was typed


@dataclass(frozen=True)
class DeviceConfig:
    """device.toml. Paths that are not absolute start in the device's home."""

    bundle: str  # folder of the bundle it installed
    trusted: tuple[str, ...]  # public keys whose bundles it accepts, hexadecimal
    conditions: str | None = None  # trace of a simulated device; None: conditions are unknown, so it never trains
    seed: int | None = None  # of a simulated device's randomness; None: the operating system's
    typing_log: Retention = field(default_factory=Retention)


@dataclass(frozen=True)
class Contribution:
    """One line of the ledger: what a round took from this device, or why it took nothing."""

    round: int
    at: float  # seconds; when the turn began
    outcome: str
    cause: str  # empty when it counted
    examples: int
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class Home:
    folder: Path
    config: DeviceConfig
    key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def create(cls, folder: Path, settings: DeviceConfig, typed: Iterable[tuple[str, float]] = ()) -> "Home":
        """A new device in `folder`, with a fresh key and a typing log that holds `typed` (text and time in seconds). Whole or not at all.

        Raises RunError if the folder is there already or cannot be written.
        """
        folder, typed = Path(folder), list(typed)  # first: an error of whoever gives them is not one of the folder
        if folder.exists():
            raise RunError(folder, "expected no such folder, found one", "remove it or choose another folder")
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            temporary.mkdir(parents=True)
            (temporary / CONFIG).write_text(config.to_toml(settings))
            signing.load_or_create(temporary / KEY)
            with TypingLog(temporary / TYPING_LOG, settings.typing_log) as log:
                log.append_many(typed)
            os.replace(temporary, folder)
        except OSError as error:
            raise RunError(folder, f"cannot be written ({error.strerror})", "choose a folder you may write to") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> "Home":
        """The device that lives in `folder`. Raises ConfigError or RunError if there is none, naming the file."""
        folder = Path(folder)
        settings = config.from_toml(DeviceConfig, folder / CONFIG)
        return cls(folder, settings, signing.load_or_create(folder / KEY))

    def typing_log(self) -> TypingLog:
        """Its typing log, open: use it in a `with`."""
        return TypingLog(self.folder / TYPING_LOG, self.config.typing_log)

    def bundle(self) -> Bundle:
        """The installed bundle, verified. Raises BundleError."""
        return open_verified(self.folder / self.config.bundle, frozenset(self.config.trusted))

    @cached_property
    def conditions(self) -> Source:
        """Where its conditions come from. Raises ConfigError for a trace that cannot be read."""
        return unknown if self.config.conditions is None else trace_source(self.folder / self.config.conditions)

    def cached_checkpoint(self, sha256: str) -> bytes | None:
        """The checkpoint of that hash if it is the last one kept and still whole, else None."""
        path = self._cached(sha256)
        data = path.read_bytes() if path.is_file() else b""
        return data if digest(data) == sha256 else None

    def keep_checkpoint(self, sha256: str, data: bytes) -> None:
        """Keep this checkpoint, and only this one."""
        path = self._cached(sha256)
        path.parent.mkdir(exist_ok=True)
        _write(path, data)
        for other in path.parent.iterdir():
            if other != path:
                other.unlink(missing_ok=True)

    @property
    def name(self) -> str | None:
        """The name the server enrolled this device under, None before."""
        path = self.folder / NAME
        return path.read_text().strip() if path.is_file() else None

    def keep_name(self, name: str) -> None:
        _write(self.folder / NAME, f"{name}\n".encode())

    def keep(self, name: str, data: bytes) -> None:
        """Write a small file of its own, whole or not at all."""
        _write(self.folder / name, data)

    def wipe(self, everything: bool = False) -> None:
        """Remove what was typed and all that was learned from it; with `everything`, ledger, key and the folder itself too.

        May be done again after a crash: the key of the typing log goes first, and without it nothing typed can be read.
        """
        with self._removing():
            wipe_log(self.folder / TYPING_LOG)
            for name in LEARNED:
                (self.folder / name).unlink(missing_ok=True)
            if everything:
                for path in sorted(self.folder.iterdir(), key=lambda path: path.name == CONFIG):  # the config last: until then this is a home
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                self.folder.rmdir()

    def note(self, contribution: Contribution) -> None:
        """Write one line of the ledger, or write it anew: a round and the time of a turn name a line."""
        with self._ledger() as ledger:
            ledger.execute("INSERT OR REPLACE INTO contributions VALUES (?, ?, ?, ?, ?, ?, ?)", astuple(contribution))

    def contributions(self) -> list[Contribution]:
        """The whole ledger, oldest first."""
        with self._ledger() as ledger:
            rows = ledger.execute("SELECT * FROM contributions ORDER BY at, round").fetchall()
        return [Contribution(*row) for row in rows]

    @contextlib.contextmanager
    def _removing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                self.folder, f"cannot be wiped whole ({error.strerror})", "give yourself the right to write there, and wipe again"
            ) from None

    def _cached(self, sha256: str) -> Path:
        return self.folder / CHECKPOINT / f"{sha256}.safetensors"

    @contextlib.contextmanager
    def _ledger(self) -> Iterator[sqlite3.Connection]:
        columns = ", ".join(f"{column.name} {_SQL[column.type]} NOT NULL" for column in fields(Contribution))
        try:
            with contextlib.closing(sqlite3.connect(self.folder / LEDGER, timeout=30)) as ledger, ledger:
                ledger.execute(f"CREATE TABLE IF NOT EXISTS contributions ({columns}, PRIMARY KEY (round, at))")
                yield ledger
        except sqlite3.Error as error:
            raise RunError(self.folder / LEDGER, f"cannot be used as a ledger ({error})", "move the file away to start a new ledger") from None


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)


_SQL = {int: "INTEGER", float: "REAL", str: "TEXT"}
