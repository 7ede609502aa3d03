"""Virtual time: an event queue. Whoever takes `clock.now` instead of `time.time` runs on it
unchanged.
"""

import heapq
import itertools
import math
from collections.abc import Callable

Callback = Callable[[], None]


class Clock:
    """Seconds that pass only when there is something to do. Events of one instant run in the order
    they were planned.
    """

    def __init__(self, start: float = 0.0):
        self._now = start
        self._planned: list[tuple[float, int, Callback]] = []
        self._order = itertools.count()

    def now(self) -> float:
        """Seconds, of the event under way."""
        return self._now

    def at(self, time: float, callback: Callback) -> None:
        """Plan `callback` for `time`. Raises ValueError for a time that has passed or is not
        finite.
        """
        if not (math.isfinite(time) and time >= self._now):
            raise ValueError(f"planned for {time}, but it is {self._now} already")
        heapq.heappush(self._planned, (time, next(self._order), callback))

    def run_until(self, end: float, done: Callable[[], bool] = lambda: False) -> None:
        """Run what is planned up to and including `end`, also what is planned meanwhile, and stop
        there, or earlier as soon as `done()`.
        """
        while not done():
            if not self._planned or self._planned[0][0] > end:
                self._now = max(self._now, end)
                return
            self._now, _, callback = heapq.heappop(self._planned)
            callback()
