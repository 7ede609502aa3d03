"""Own noise: what a server that is trusted with a sum adds to it, drawn once a round.

    sealed buffers -> noising.noise -> sealed buffers and sealed noise    one transaction, on disk
                                           |                              before any checkpoint is
                                           v
    a killed server finds it again: the same noise, the same checkpoint, to the byte
                                           |
                                           v
    the round is closed and accounted      -> the key of its noise is written over

Where nobody else adds it: to plain sums, and to those that devices open themselves. Both are sealed
under keys that lie in slots, outside of the database. Buffers that cannot be read any more are a
new beginning, which the account knows of; noise that cannot be read is never drawn again. How many
sums there have been is in a slot too: a database that was put back beside it knows of fewer, and
its account is of no use any more.
"""

import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from device_runtime.masking import Random
from device_runtime.terms import Aggregation
from server import budget, mechanism, noising
from server.slots import Slots
from server.store import Rows, Store
from server.task import Task, terms

_NONCE = bytes(12)  # the same always: a key is used once
LOST = "the key of the noise that was drawn for it is missing or damaged"


@dataclass(frozen=True)
class NoNoise:
    """A sum gets no noise, and must not be published."""

    reason: str  # in a sentence; empty: another replica has closed the round
    is_over: bool = False  # with it the task could spend more than its budget


class OwnNoise:
    """The noise of one server's tasks. Whoever uses it holds the coordinator's lock."""

    def __init__(self, store: Store, slots: Slots, server: str, random: Random):
        """`server` is the random name of the database."""
        self._store, self._slots = store, slots
        self._server, self._random = server, random

    def of(self, task: Task, round: int) -> NDArray[np.int64] | NoNoise:
        """What is added to the sum of an open round, [values]: whenever it is asked for, the same.
        It is on disk, and the budget has room for it. Raises RunError if a key cannot be kept.
        """
        assert task.noise is not None
        agreed = terms(task)
        with self._store.transaction(durable=True, forgets=True) as rows:
            still_open = rows.open_rounds().get(task.name)
            if still_open is None or still_open.state.round != round:
                return NoNoise("")
            kept = rows.spending.of(task.name)
            missing = self._sums(task) - kept.happened.sums - (kept.drawn == round)
            if missing > 0:
                return NoNoise(_put_back(missing), is_over=True)
            generation, sealed, noise = rows.spending.sealed(task.name)
            if kept.drawn == round and noise is not None:
                before = self._unsealed(task, generation, noise)
                self._count(task, kept.happened.sums + 1)
                return NoNoise(LOST) if before is None else before
            key = self._key("buffers", task, generation)
            buffers = None
            if sealed is not None:
                about = self._about_buffers(task, generation, round)
                buffers = noising.opened(sealed, key, about, agreed)
            begins = buffers is None  # they are lost, or of another basis
            why = budget.why_over(task.noise, kept, agreed.min_separation, begins, agreed.turn)
            if why:
                return NoNoise(why, is_over=True)
            drawn, after = noising.noise(
                agreed, buffers or noising.begin(agreed), self._random, mechanism.whole(task)
            )
            generation += 1
            key = self._new_key("buffers", task, generation)
            about = self._about_buffers(task, generation, round)
            rows.spending.draw(
                task.name,
                round,
                generation,
                noising.sealed(after, key, about),
                self._sealed(task, generation, drawn),
                begins,
            )
        self._count(task, kept.happened.sums + 1)
        return drawn

    def ended(self, task: Task) -> None:
        """The round whose noise was drawn last is closed: let go of that, and of what the noise
        before it was made of. Raises RunError if that cannot be done now.
        """
        with self._store.transaction() as rows:
            self._forget(rows, task)

    def begin(self) -> None:
        """After a start: let go of what a killed server has left of rounds that are closed."""
        with self._store.reading() as rows:
            noised = [each.task for each in rows.tasks() if adds_noise(each.task)]
        for task in noised:
            self.ended(task)

    def _forget(self, rows: Rows, task: Task) -> None:
        if rows.spending.of(task.name).drawn is not None:
            return
        generation, sealed, _ = rows.spending.sealed(task.name)
        if sealed is not None:
            for parity in (0, 1):
                self._slots.remove(_slot("noise", task, parity))
            self._slots.remove(_slot("buffers", task, generation + 1))

    def _sealed(self, task: Task, generation: int, noise: NDArray[np.int64]) -> bytes:
        key = self._new_key("noise", task, generation)
        about = self._about("noise", task, generation).encode()
        return AESGCM(key).encrypt(_NONCE, noise.astype("<i8").tobytes(), about)

    def _unsealed(self, task: Task, generation: int, body: bytes) -> NDArray[np.int64] | None:
        key = self._key("noise", task, generation)
        if key is None or len(key) != noising.KEY_BYTES:
            return None
        about = self._about("noise", task, generation).encode()
        try:
            text = AESGCM(key).decrypt(_NONCE, body, about)
        except InvalidTag:
            return None
        values: NDArray[Any] = np.frombuffer(text, "<i8")
        return values.astype(np.int64)

    def _sums(self, task: Task) -> int:
        """How many sums of a task there have been at least, whatever the database says."""
        text = (self._slots.get(_slot("sums", task, 0)) or b"").decode(errors="replace")
        server, _, count = text.partition(" ")
        return int(count) if server == self._server and count.isdecimal() else 0

    def _count(self, task: Task, sums: int) -> None:
        self._slots.put(_slot("sums", task, 0), f"{self._server} {sums}".encode())

    def _key(self, of: str, task: Task, generation: int) -> bytes | None:
        return self._slots.get(_slot(of, task, generation))

    def _new_key(self, of: str, task: Task, generation: int) -> bytes:
        key = secrets.token_bytes(noising.KEY_BYTES)
        self._slots.put(_slot(of, task, generation), key)
        return key

    def _about_buffers(self, task: Task, generation: int, round: int) -> str:
        basis = f" {terms(task).basis(round)}" if task.turn else ""
        return self._about("buffers", task, generation) + basis

    def _about(self, of: str, task: Task, generation: int) -> str:
        return f"fedboard-{of}-v1 {self._server} {task.name} {generation}"


def adds_noise(task: Task) -> bool:
    """Whether the server itself adds the noise of a task."""
    return task.noise is not None and task.aggregation is not Aggregation.HELPER


def _put_back(missing: int) -> str:
    return (
        f"the database was put back from a backup: its account lacks at least {missing:,} sum"
        + "s" * (missing != 1)
        + " with noise that were made since, so more is spent than it says; make another task"
    )


def _slot(of: str, task: Task, generation: int) -> str:
    return f"{of}~{task.name}~{generation % 2}"
