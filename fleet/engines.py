"""Engines: who computes what devices train. Whoever does, the same job gives the same bits.

    at the start of training            at its virtual end
    submit(job) -> ticket   ...........  result(ticket) -> Trained

How long training takes is the device's own, and known before; so a fleet goes on with other devices
until the virtual end, and only then waits for what was computed meanwhile.
"""

import functools
import itertools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from device_runtime import encoding, weights
from device_runtime.causes import Cause
from device_runtime.encoding import Encoding
from device_runtime.finetune import finetune
from device_runtime.interpreter import Graph
from device_runtime.turn import FineTuned, Progress, Train, Trainer
from device_runtime.weights import Weights
from device_runtime.wire import Plan


@dataclass(frozen=True)
class Job:
    """One device's training: plain values, which travel to another process as they are."""

    checkpoint: str  # SHA-256 of the weights, by which whoever computes may keep them
    rows: NDArray[Any] = field(repr=False)  # int32 [rows, plan.length + 1]
    plan: Plan
    random: Mapping[str, Any] = field(repr=False)  # state of the bit generator of its randomness
    asks: int | None = None  # times that it may go on, asked before each batch; None: always
    start: Progress | None = None
    # how its delta becomes codes, which then stand in its place; None: the delta is wanted
    by: Encoding | None = None
    ends: float = 0.0  # virtual: when its result is asked for


@dataclass(frozen=True)
class Trained:
    """What came of a job, and the state of its randomness after it."""

    tuned: FineTuned
    random: Mapping[str, Any] = field(repr=False)
    codes: NDArray[Any] | None = field(default=None, repr=False)  # of a delta that is left out


class Engine(Protocol):
    """Computes jobs."""

    def submit(self, job: Job, base: Weights) -> Any:
        """Take a job and the weights of its checkpoint; a ticket for its result."""

    def result(self, ticket: Any) -> Trained:
        """What came of it, waited for if need be."""

    def close(self) -> None:
        """End whatever computes."""


class Here:
    """Computes in this process, when the result is asked for."""

    def __init__(self, train: Trainer, graph: bytes = b""):
        self._train, self._graph = train, graph

    def submit(self, job: Job, base: Weights) -> Any:
        """See Engine."""
        return job, base

    def result(self, ticket: Any) -> Trained:
        """See Engine."""
        job, base = ticket
        return compute(job, base, self._train, self._graph)

    def close(self) -> None:
        """Nothing is left behind."""


def compute(job: Job, base: Weights, train: Trainer, graph: bytes) -> Trained:
    """Do a job: the same bits wherever it is done."""
    rng = generator(job.random)
    asked = itertools.count(1)

    def may_continue() -> bool:
        return job.asks is None or next(asked) <= job.asks

    tuned = train(graph, Train(base, job.rows, job.plan, rng, job.start), may_continue)
    if job.by is None or tuned.stopped is not None:
        return Trained(tuned, rng.bit_generator.state)
    codes = encoding.encode(tuned.delta, job.by, rng)
    return Trained(replace(tuned, delta={}), rng.bit_generator.state, codes)


def fine_tune(graph: bytes, action: Train, may_continue: Callable[[], bool]) -> FineTuned:
    """Training as phones do it, with a graph that is opened once."""
    return finetune(_opened(graph, threading.get_ident()), action, may_continue)


@functools.lru_cache(1)
def _opened(graph: bytes, thread: int) -> Graph:
    """The graph of a file, for one thread."""
    return Graph(graph)


def generator(state: Mapping[str, Any]) -> np.random.Generator:
    """A generator that goes on from a state."""
    bits = np.random.PCG64()
    bits.state = state  # type: ignore[assignment]
    return np.random.Generator(bits)


def stand_in(graph: bytes, action: Train, may_continue: Callable[[], bool]) -> FineTuned:
    """A stand-in for training, for populations too large to train: a random delta of a tenth of the
    clipping norm. It learns nothing.
    """
    zero = {name: np.zeros_like(array) for name, array in action.weights.items()}
    done = 0 if action.start is None else action.start.batches
    for _ in range(done, action.plan.epochs * -(-len(action.rows) // action.plan.batch_size)):
        if not may_continue():
            kept = Progress(action.weights, done, 0.0)
            return FineTuned(zero, done, 0.0, 0.0, Cause.CONDITION_LOST, kept)
        done += 1
    delta = {
        name: action.rng.standard_normal(array.shape, np.float32)
        for name, array in sorted(action.weights.items())
    }
    factor = np.float32(0.1 * action.plan.clipping_norm / weights.norm(delta))
    scaled = {name: factor * array for name, array in delta.items()}
    return FineTuned(scaled, done, 0.0, 0.0)


def asks_of(rows: int, plan: Plan, done: int = 0) -> int:
    """How often `finetune` asks whether it may go on: before each batch, and each of the loss
    before and after.
    """
    looks = min(-(-rows // plan.batch_size), 8)
    each = plan.epochs * -(-rows // plan.batch_size)
    return (looks if not done else 0) + max(0, each - done) + looks
