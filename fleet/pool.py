"""Pool: what devices train, computed by processes of this machine, as many as it has cores.

    waiting, soonest end first  -->  handed to the pool  -->  computed, until it is asked for
                                     \\_______ as many as have room in memory _______/

A process that dies has its jobs computed again by others. None outlives this process, however that
ends, and Ctrl-C in a terminal reaches this process alone.
"""

import contextlib
import functools
import heapq
import itertools
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, parent_process
from pathlib import Path

from device_runtime import weights
from device_runtime.errors import RunError
from device_runtime.turn import Trainer
from device_runtime.weights import Checkpoint, Weights
from fleet.engines import Job, Trained, compute

ROOM = 1 << 28  # bytes of results that may wait to be asked for
MOST_DEATHS = 3  # of processes, before one more result
# a process computes on one core
ALONE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass
class _Work:
    """One job on its way."""

    number: int
    job: Job
    base: Path  # file of the weights of its checkpoint
    size: int  # bytes of its result, about
    future: Future[Trained] | None = field(default=None, repr=False)  # once it was handed out


class Pool:
    """Computes in processes that it starts. `folder` is its own: the weights that they read lie
    there while a job needs them.
    """

    def __init__(self, train: Trainer, graph: bytes, processes: int, folder: Path):
        self._of, self._processes = (train, graph), processes
        self._folder = folder
        self._numbers = itertools.count()
        self._waiting: list[tuple[float, int, _Work]] = []  # a heap
        self._handed: dict[int, _Work] = {}
        self._needed: Counter[Path] = Counter()  # jobs that need a file
        self._deaths = 0
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():
            left.unlink()
        self._executor = self._started()

    def submit(self, job: Job, base: Weights) -> _Work:
        """See Engine."""
        file = self._folder / f"{job.checkpoint}.safetensors"
        if not self._needed[file]:
            file.write_bytes(weights.to_bytes(Checkpoint(base)))
        self._needed[file] += 1
        values = sum(array.nbytes for array in base.values())
        work = _Work(next(self._numbers), job, file, 2 * values)
        heapq.heappush(self._waiting, (job.ends, work.number, work))
        self._hand_out()
        return work

    def result(self, ticket: _Work) -> Trained:
        """See Engine. Raises RunError if process after process dies."""
        if ticket.future is None:
            self._waiting.remove((ticket.job.ends, ticket.number, ticket))
            heapq.heapify(self._waiting)
            self._hand(ticket)
        while True:
            assert ticket.future is not None
            try:
                trained = ticket.future.result()
                break
            except BrokenProcessPool:
                self._again()
        self._deaths = 0
        del self._handed[ticket.number]
        self._needed[ticket.base] -= 1
        if not self._needed[ticket.base]:
            ticket.base.unlink()
        self._hand_out()
        return trained

    def close(self) -> None:
        """See Engine."""
        self._executor.shutdown(cancel_futures=True)
        shutil.rmtree(self._folder)

    def _hand_out(self) -> None:
        """Hand out what waits, as far as there is room for what will come of it."""
        room = ROOM - sum(work.size for work in self._handed.values())
        while self._waiting and (
            len(self._handed) < 2 * self._processes or room > self._waiting[0][2].size
        ):
            _, _, work = heapq.heappop(self._waiting)
            self._hand(work)
            room -= work.size

    def _hand(self, work: _Work) -> None:
        self._handed[work.number] = work
        with _only_here():
            try:
                work.future = self._executor.submit(_compute, work.job, work.base)
            except BrokenProcessPool as error:
                work.future = Future()
                work.future.set_exception(error)

    def _again(self) -> None:
        """Begin with other processes, and with all that was lost with those that died."""
        self._deaths += 1
        if self._deaths > MOST_DEATHS:
            raise RunError(
                "pool",
                f"{self._deaths} times in a row a process died that trains",
                "give the machine more memory, or ask for fewer processes",
            )
        self._executor.shutdown()
        self._executor = self._started()
        for work in list(self._handed.values()):
            if work.future is None or work.future.exception() is not None:
                self._hand(work)

    def _started(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._processes, get_context("spawn"), _begin, self._of)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def _only_here() -> Iterator[None]:
    """In the block a process that is started computes on one core, and never hears of Ctrl-C."""
    before = {name: os.environ.get(name) for name in ALONE}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.update(ALONE)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# in a process of the pool

_of: tuple[Trainer, bytes]  # how it trains, and by which graph


def _begin(train: Trainer, graph: bytes) -> None:
    global _of
    _of = train, graph
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _compute(job: Job, base: Path) -> Trained:
    train, graph = _of
    return compute(job, _read(base), train, graph)


@functools.lru_cache(4)
def _read(path: Path) -> Weights:
    return weights.read(path).weights
