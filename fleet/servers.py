"""Servers: the coordinator of a fleet on a virtual clock, with its store and whoever opens sums.

It is the real one, and so is the helper that it asks. Their names, keys and what is random in them
come of the fleet's seed, so that the same fleet has the same rounds, to the byte; and nothing waits
for the disk, since a simulation begins anew where a machine loses its power.
"""

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from device_runtime import signing
from device_runtime.masking import Random
from device_runtime.transport import Reply, Send
from device_runtime.weights import Checkpoint, digest
from fleet.doors import asgi
from helper import endpoint
from helper.desk import Desk, places_in
from helper.store import Store as HelperStore
from helper.tasks import Rules
from server import operators, slots, tasks
from server.blobs import Blobs
from server.coordinator import Coordinator
from server.helper_client import Helper
from server.store import Store
from server.task import TaskSettings, is_masked

DATABASE, KEYS, BLOBS = "server.sqlite", "server.sqlite.keys", "blobs"
HELPER, HELPER_DATABASE = "helper", "helper.sqlite"
TOKEN = "fleet"  # of the helper, which nobody else can ask
ROUNDS = 100_000  # that a certificate covers
EXPIRES_AT = 1e11


class Stream:
    """Random bytes of a simulation: the same ones, in the same order, of the same secret, from
    where they were left.
    """

    def __init__(self, secret: str, drawn: int = 0):
        self._key = bytes.fromhex(digest(secret.encode()))
        self.drawn = drawn  # bytes so far

    def __call__(self, count: int) -> bytes:
        """The next bytes."""
        first, skipped = divmod(self.drawn, 16)
        at = first.to_bytes(16, "big")
        stream = Cipher(algorithms.AES(self._key), modes.CTR(at)).encryptor()
        self.drawn += count
        return stream.update(bytes(skipped + count))[skipped:]


@dataclass(frozen=True)
class Drawn:
    """How far what is random in servers is: with it and their files they go on. Plain values."""

    server: int  # bytes
    helper: int
    rng: dict[str, Any]  # state of the coordinator's generator


def key(seed: int, name: str) -> Ed25519PrivateKey:
    """The same key for the same seed and name."""
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(_hashed(seed, name)))


class OwnHelper:
    """The helper of a fleet: a desk behind its endpoint, asked without a socket."""

    def __init__(
        self,
        folder: Path,
        identity: Ed25519PrivateKey,
        rules: Rules,
        random: Random,
        clock: Callable[[], float],
    ):
        store = HelperStore(folder / HELPER_DATABASE, rules.helper, simulated=True)
        self.desk = Desk(store, places_in(folder, flushes=False), identity, rules, random)
        self._way = contextlib.ExitStack()
        app = endpoint.app(self.desk, endpoint.Access(TOKEN), clock)
        self.send: Send = self._way.enter_context(asgi(app))

    def close(self) -> None:
        """End it."""
        self._way.close()
        self.desk.close()


@dataclass
class Servers:
    """What answers the devices of a fleet. In a folder with what others have kept it goes on where
    they were, once it is told what they had drawn.
    """

    folder: Path
    seed: int
    least: int = 0  # devices of the smallest sum that the helper opens; 0: there is none
    drawn: Drawn | None = None  # what they go on with

    def __post_init__(self) -> None:
        drawn = self.drawn or Drawn(0, 0, {})
        self.random = Stream(f"fedboard-fleet {self.seed} server", drawn.server)
        self.helper_random = Stream(f"fedboard-fleet {self.seed} helper", drawn.helper)
        self.rng = np.random.default_rng([self.seed, 1])
        if drawn.rng:
            self.rng.bit_generator.state = drawn.rng
        self._now = 0.0
        self.helper = self._helper_opened() if self.least else None
        self.coordinator = self._opened()

    @property
    def operator(self) -> Ed25519PrivateKey:
        """Who certifies round keys: the maker of what devices have installed."""
        return key(self.seed, "operator")

    @property
    def trusted(self) -> frozenset[str]:
        """Whom devices trust."""
        return frozenset({signing.public_hex(self.operator)})

    def begin(self, settings: TaskSettings, start: Checkpoint | None, now: float) -> None:
        """Make a task, certify it if it trains, and have the helper know of it. `start` is where a
        training task begins.
        """
        if settings.seed is None:
            named = _hashed(self.seed, f"task {settings.name}")
            settings = replace(settings, seed=int(named[:12], 16))
        self._now = now
        tasks.create(self.coordinator, settings, now, start)
        if start is not None:
            proposed = operators.round_key(self.coordinator, settings.name)
            signed = proposed.certified(self.operator, ROUNDS, EXPIRES_AT)
            operators.certify(self.coordinator, settings.name, signed, now)
        self._look_at_tasks()
        self._fetch(now)

    def tick(self, now: float) -> None:
        """Let time pass."""
        self.coordinator.tick(now)
        self._fetch(now)

    def open_sums(self, now: float) -> None:
        """Fetch what masked rounds need, if there can be something new."""
        if self.coordinator.turns != self._turns or self.coordinator.waits:
            self._fetch(now)

    def go_on(self, drawn: Drawn) -> None:
        """Let what is random be as far as it was."""
        self.random.drawn, self.helper_random.drawn = drawn.server, drawn.helper
        self.rng.bit_generator.state = drawn.rng

    def restart(self) -> None:
        """Kill the server, and start it again from what it has kept."""
        self.coordinator.store.close()
        self.coordinator = self._opened()

    def restart_helper(self) -> None:
        """The same of the helper, if there is one."""
        if self.helper is not None:
            self.helper.close()
            self.helper = self._helper_opened()

    def saved(self) -> Drawn:
        """How far what is random in them is."""
        rng: Any = self.rng.bit_generator.state
        return Drawn(self.random.drawn, self.helper_random.drawn, rng)

    def copy_to(self, folder: Path) -> None:
        """Copy all that they keep to a folder, but for blobs: those never change. `put_back` brings
        it back.
        """
        folder.mkdir(parents=True, exist_ok=True)
        _copy(self.folder, folder)

    def close(self) -> None:
        """End them."""
        self.coordinator.close()
        if self.helper is not None:
            self.helper.close()

    def _fetch(self, now: float) -> None:
        if self._is_masked:
            self._now = now
            self.coordinator.open_sums(now)
        self._turns = self.coordinator.turns

    def _opened(self) -> Coordinator:
        store = Store(self.folder / DATABASE, simulated=_hashed(self.seed)[:32])
        keys = slots.Folder(self.folder / KEYS, flushes=False)
        blobs = Blobs(self.folder / BLOBS, flushes=False)
        helper = None if self.helper is None else Helper(self._ask_helper, TOKEN)
        self.coordinator = Coordinator(
            store, blobs, self.rng, random=self.random, keys=keys, helper=helper
        )
        self._look_at_tasks()
        return self.coordinator

    def _look_at_tasks(self) -> None:
        self._is_masked = any(is_masked(each.task) for each in self.coordinator.tasks())
        self._turns = -1  # of the coordinator, when it fetched last

    def _helper_opened(self) -> OwnHelper:
        identity = key(self.seed, "helper")
        rules = Rules(signing.public_hex(identity), self.least, self.trusted)
        folder = self.folder / HELPER
        folder.mkdir(parents=True, exist_ok=True)
        return OwnHelper(folder, identity, rules, self.helper_random, lambda: self._now)

    def _ask_helper(self, method: str, path: str, body: bytes, headers: Any) -> Reply:
        assert self.helper is not None
        return self.helper.send(method, path, body, headers)


def put_back(copied: Path, folder: Path) -> None:
    """Let the folder of servers, which nobody has open, be as it was when it was copied; blobs that
    have come since stay.
    """
    for name in (KEYS, HELPER):
        shutil.rmtree(folder / name, ignore_errors=True)
    for database in (folder / DATABASE, folder / HELPER / HELPER_DATABASE):
        for ending in ("", "-wal", "-shm"):
            database.with_name(database.name + ending).unlink(missing_ok=True)
    _copy(copied, folder)


def _copy(source: Path, to: Path) -> None:
    for name in (DATABASE, f"{HELPER}/{HELPER_DATABASE}"):
        if (source / name).exists():
            (to / name).parent.mkdir(exist_ok=True)
            _copy_database(source / name, to / name)
    for path in (source / KEYS, *sorted((source / HELPER).glob("*/"))):
        if path.is_dir():
            shutil.copytree(path, to / path.relative_to(source))


def _copy_database(source: Path, to: Path) -> None:
    """Also one that is open: SQLite's own copy, with what its log holds."""
    with (
        contextlib.closing(sqlite3.connect(source)) as reading,
        contextlib.closing(sqlite3.connect(to)) as writing,
    ):
        writing.execute("PRAGMA synchronous = OFF")
        reading.backup(writing)


def _hashed(seed: int, name: str = "") -> str:
    return digest(f"fedboard-fleet {seed} {name}".strip().encode())
