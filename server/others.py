"""Others: a thread beside the answers to devices: what a server asks of others, and waits for."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("fedboard.server")

LEAVE_S = 5.0  # for a call under way, when the server ends; what it would have brought comes again


class Others:
    """Calls `work` with the time of `clock`, again and again, `pause_s` after it has ended."""

    def __init__(self, work: Callable[[float], None], clock: Callable[[], float], pause_s: float):
        self._work, self._clock, self._pause_s = work, clock, pause_s
        self._hurried, self._over = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="others", daemon=True)

    def start(self) -> None:
        """Begin. Once."""
        self._thread.start()

    def hurry(self) -> None:
        """There is something to do now."""
        self._hurried.set()

    def stop(self) -> None:
        """End, after what is under way if that does not take long."""
        self._over = True
        self.hurry()
        if self._thread.is_alive():
            self._thread.join(LEAVE_S)

    def _run(self) -> None:
        while not self._over:
            try:
                self._work(self._clock())
            except Exception as error:
                if not self._over:  # the next time tries the same
                    log.exception("sums could not be opened", extra={"error": type(error).__name__})
            self._hurried.wait(self._pause_s)
            self._hurried.clear()
