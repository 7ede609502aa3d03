"""Ahead: which jobs are handed to whoever computes before their results are asked for.

    waiting, soonest end first  -->  handed out  -->  computed, until it is asked for
                                     \\____ as many as have room in memory ____/

At the virtual end of a training its result should be there; what ends later can wait.
"""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from device_runtime.weights import Weights
from fleet.engines import Job

ROOM = 1 << 27  # bytes of results that may wait to be asked for


@dataclass
class Work:
    """One job on its way."""

    number: int
    job: Job
    base: Any = field(repr=False)  # its weights, as whoever computes finds them
    size: int  # bytes of its result, about
    future: Any = None  # of its result, once it was handed out


class Ahead:
    """The jobs of one engine. `hand` hands one out; `least` are handed out whatever room there
    is.
    """

    def __init__(self, hand: Callable[[Work], None], least: int):
        self._hand, self._least = hand, least
        self._numbers = itertools.count()
        self._waiting: list[tuple[float, int, Work]] = []  # a heap
        self._handed: dict[int, Work] = {}

    def add(self, job: Job, weights: Weights, base: Any) -> Work:
        """Take a job."""
        size = 2 * sum(array.nbytes for array in weights.values())
        work = Work(next(self._numbers), job, base, size)
        heapq.heappush(self._waiting, (job.ends, work.number, work))
        self._fill()
        return work

    def wanted(self, work: Work) -> None:
        """Hand a job out whose result is asked for now, if that was not done before."""
        if work.number in self._handed:
            return
        self._waiting.remove((work.job.ends, work.number, work))
        heapq.heapify(self._waiting)
        self._take(work)

    def done(self, work: Work) -> None:
        """Its result was fetched: there is room for another."""
        del self._handed[work.number]
        self._fill()

    def handed(self) -> list[Work]:
        """All that was handed out and not yet fetched."""
        return list(self._handed.values())

    def _fill(self) -> None:
        room = ROOM - sum(work.size for work in self._handed.values())
        while self._waiting:
            size = self._waiting[0][2].size
            if len(self._handed) >= self._least and size > room:
                break
            self._take(heapq.heappop(self._waiting)[2])
            room -= size

    def _take(self, work: Work) -> None:
        self._handed[work.number] = work
        self._hand(work)
