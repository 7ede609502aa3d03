"""Groups: requests that arrive while the disk is busy are answered together. One worker thread; as
many requests as come in one transaction. What fails for a group is asked one by one: a request that
cannot be answered fails alone.

A transaction costs as much as many requests in it. So under load a group waits for company while
others come; a request that comes alone does not. What waits for nobody may be answered in the loop
itself: two threads that hand the interpreter to and fro cost more than the answers.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

WAITS = 16  # for company, while it comes
Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(frozen=True)
class _Failed:
    error: Exception


class Groups(Generic[Q, A]):
    """`handle` answers a list of requests at once, or the first of them if it failed after those. A
    group is what came while the one before it was under way, at most `most` and `most_bytes`.

    `fails_all` tells errors that no request has brought about: nobody is asked again after one.
    `at_once` answers the first requests of a group, in the loop, as far as it waits for nobody.
    """

    def __init__(
        self,
        handle: Callable[[Sequence[Q]], Sequence[A]],
        most: int = 256,
        most_bytes: int = 128 << 20,
        wait_s: float = 0.0005,
        fails_all: Callable[[Exception], bool] = lambda error: False,
        at_once: Callable[[Sequence[Q]], Sequence[A]] | None = None,
    ):
        self._fails_all, self._at_once = fails_all, at_once
        self._handle, self._most, self._most_bytes, self._wait_s = handle, most, most_bytes, wait_s
        self._together = 1.0  # requests of the last groups, about
        self._last = 1  # of the last one
        self._waiting: list[tuple[Q, int, asyncio.Future[A]]] = []
        self._draining: asyncio.Task[None] | None = None
        self._worker = ThreadPoolExecutor(1, "coordinator")

    async def answer(self, request: Q, size: int = 0) -> A:
        """The answer to one request, of so many bytes. Raises what `handle` raised for it."""
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, size, future))
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                if self._together > 1.5:
                    await self._company()
                group = self._next()
                self._together = 0.7 * self._together + 0.3 * len(group)
                requests, self._last = [request for request, _, _ in group], len(group)
                answers = self._answered_at_once(requests)
                if len(answers) < len(requests):
                    answers += await loop.run_in_executor(
                        self._worker, self._answers, requests[len(answers) :]
                    )
                else:
                    await asyncio.sleep(0)  # the loop has its turn between two groups
                for (_, _, future), answer in zip(group, answers, strict=True):
                    if future.done():  # a device that hung up is not waited for
                        continue
                    if isinstance(answer, _Failed):
                        future.set_exception(answer.error)
                    else:
                        future.set_result(answer)
        finally:
            self._draining = None

    async def _company(self) -> None:
        """Wait while others come, up to a whole group or as many as the last one had, and for no
        longer than WAITS times.
        """
        for _ in range(WAITS if self._wait_s else 0):
            waiting = len(self._waiting)
            if waiting >= self._most or waiting >= self._last > 1:
                return
            await asyncio.sleep(self._wait_s)
            if len(self._waiting) == waiting:
                return

    def _answered_at_once(self, requests: Sequence[Q]) -> "list[A | _Failed]":
        """Answers to the first of the requests, here: none if anything goes wrong with that."""
        if self._at_once is None:
            return []
        with contextlib.suppress(Exception):  # whatever it is, the worker meets with it again
            return list(self._at_once(requests))
        return []

    def _answers(self, requests: Sequence[Q]) -> "list[A | _Failed]":
        """The answer to each request; together if that can be, otherwise one by one."""
        answers: list[A | _Failed] = []
        together = len(requests)
        while len(answers) < len(requests):
            asked = requests[len(answers) :][:together]
            try:
                answers += self._handle(asked)
            except Exception as error:
                if self._fails_all(error):
                    return answers + [_Failed(error)] * (len(requests) - len(answers))
                if len(asked) == 1:
                    answers.append(_Failed(error))
            together = 1
        return answers

    def _next(self) -> list[tuple[Q, int, "asyncio.Future[A]"]]:
        count, size = 0, 0
        while (
            count < len(self._waiting)
            and count < self._most
            and (not count or size + self._waiting[count][1] <= self._most_bytes)
        ):
            size += self._waiting[count][1]
            count += 1
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        return group
