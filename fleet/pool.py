"""Pool: what devices train, computed by processes of this machine, as many as it has cores.

A process that dies has its jobs computed again by others. None outlives this process, however that
ends, and Ctrl-C in a terminal reaches this process alone.
"""

import contextlib
import functools
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from pathlib import Path

from device_runtime import weights
from device_runtime.errors import RunError
from device_runtime.turn import Trainer
from device_runtime.weights import Checkpoint, Weights
from fleet.ahead import Ahead, Work
from fleet.engines import Job, Trained, compute

MOST_DEATHS = 3  # of processes, before one more result
# a process computes on one core
ALONE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Pool:
    """Computes in processes that it starts. `folder` is its own: the weights that they read lie
    there while a job needs them.
    """

    def __init__(self, train: Trainer, graph: bytes, processes: int, folder: Path):
        self._of, self._processes = (train, graph), processes
        self._folder = folder
        self._needed: Counter[Path] = Counter()  # jobs that need a file
        self._ahead = Ahead(self._hand, 2 * processes)
        self._deaths = 0
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():
            left.unlink()
        self._executor = self._started()

    def submit(self, job: Job, base: Weights) -> Work:
        """See Engine."""
        file = self._folder / f"{job.checkpoint}.safetensors"
        if not self._needed[file]:
            file.write_bytes(weights.to_bytes(Checkpoint(base)))
        self._needed[file] += 1
        return self._ahead.add(job, base, file)

    def result(self, ticket: Work) -> Trained:
        """See Engine. Raises RunError if process after process dies."""
        self._ahead.wanted(ticket)
        while True:
            try:
                trained: Trained = ticket.future.result()
                break
            except BrokenProcessPool:
                self._again()
        self._deaths = 0
        self._needed[ticket.base] -= 1
        if not self._needed[ticket.base]:
            ticket.base.unlink()
        self._ahead.done(ticket)
        return trained

    def close(self) -> None:
        """See Engine."""
        self._executor.shutdown(cancel_futures=True)
        shutil.rmtree(self._folder)

    def _hand(self, work: Work) -> None:
        with only_here():
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
        for work in self._ahead.handed():
            if work.future.exception() is not None:
                self._hand(work)

    def _started(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._processes, get_context("spawn"), _begin, self._of)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def only_here() -> Iterator[None]:
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
    end_with_parent()


def end_with_parent() -> None:
    """Have this process end when the one that started it does."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
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
