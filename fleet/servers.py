"""Servers: the coordinator of a fleet on a virtual clock, with its store and whoever opens sums.

It is the real one. Its name, its keys and what is random in it come of the fleet's seed, so that
the same fleet has the same rounds, to the byte; and nothing waits for the disk, since a simulation
begins anew where a machine loses its power.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from device_runtime import signing
from device_runtime.weights import Checkpoint, digest
from server import operators, slots, tasks
from server.blobs import Blobs
from server.coordinator import Coordinator
from server.store import Store
from server.task import TaskSettings

DATABASE, KEYS, BLOBS = "server.sqlite", "server.sqlite.keys", "blobs"
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


def key(seed: int, name: str) -> Ed25519PrivateKey:
    """The same key for the same seed and name."""
    hashed = digest(f"fedboard-fleet {seed} {name}".encode())
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(hashed))


@dataclass
class Servers:
    """What answers the devices of a fleet."""

    folder: Path
    seed: int

    def __post_init__(self) -> None:
        self.random = Stream(f"fedboard-fleet {self.seed} server")
        self.rng = np.random.default_rng([self.seed, 1])
        self.coordinator = self._opened()

    @property
    def operator(self) -> Ed25519PrivateKey:
        """Who certifies round keys: the maker of what devices have installed."""
        return key(self.seed, "operator")

    @property
    def trusted(self) -> frozenset[str]:
        """Whom devices trust."""
        return frozenset({signing.public_hex(self.operator)})

    def begin(self, settings: TaskSettings, start: Checkpoint, now: float) -> None:
        """Make the fleet's task, and certify it."""
        tasks.create(self.coordinator, settings, now, start)
        proposed = operators.round_key(self.coordinator, settings.name)
        signed = proposed.certified(self.operator, ROUNDS, EXPIRES_AT)
        operators.certify(self.coordinator, settings.name, signed, now)

    def tick(self, now: float) -> None:
        """Let time pass."""
        self.coordinator.tick(now)

    def open_sums(self, now: float) -> None:
        """Fetch what masked rounds need."""
        self.coordinator.open_sums(now)

    def restart(self) -> None:
        """Kill the server, and start it again from what it has kept."""
        self.coordinator.store.close()
        self.coordinator = self._opened()

    def close(self) -> None:
        """End it."""
        self.coordinator.close()

    def _opened(self) -> Coordinator:
        name = digest(f"fedboard-fleet {self.seed}".encode())[:32]
        store = Store(self.folder / DATABASE, simulated=name)
        keys = slots.Folder(self.folder / KEYS, flushes=False)
        blobs = Blobs(self.folder / BLOBS)
        return Coordinator(store, blobs, self.rng, random=self.random, keys=keys)
