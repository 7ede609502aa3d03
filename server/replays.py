"""Replays: which signed requests are of now, and which of them have been seen a moment ago.

What the database holds of nonces decides in the end. What is held here, in memory and for minutes,
says it before anything is charged to the device: a stranger who sends a request again uses up
nothing of whom he copied.
"""

from server.requests import Nonce

GOOD_S = 600.0  # a request is good so long before and after the time it was signed at
KEPT_S = 2 * GOOD_S  # a nonce is remembered: by then its request is good no more
# a clock set back by more may have forgotten nonces of requests that are good again by it
SET_BACK_S = 300.0
MOST = 500_000  # nonces in one generation


class Replays:
    """Remembers nonces in two generations, and the clock."""

    def __init__(self, since: float = float("-inf"), most: int = MOST):
        """No request that was signed before `since` is good: of those, nonces are forgotten."""
        self._most, self._since = most, since
        self._new: dict[tuple[str, str], object] = {}
        self._old: dict[tuple[str, str], object] = {}
        self._began = self._latest = float("-inf")

    def is_of_now(self, time: float, now: float) -> bool:
        """Whether a request signed at `time` is good at `now`, both in seconds since 1970. One from
        before the clock was set back is not.
        """
        if now < self._latest - SET_BACK_S:
            self._since = now
        self._latest = now
        return abs(now - time) <= GOOD_S and time >= self._since - 1  # whole seconds were signed

    def is_new(self, device: str, nonce: Nonce, now: float) -> bool:
        """Note a nonce whose signature was found good; False if it was noted before."""
        if not self._began <= now < self._began + KEPT_S or len(self._new) >= self._most:
            self._old, self._new, self._began = self._new, {}, now
        key, mine = (device, nonce.text), object()
        # in one step: two threads may ask
        return key not in self._old and self._new.setdefault(key, mine) is mine
