"""The daemon: when a device that lives on its own asks the server, and how long it waits.

A turn is taken when the device may train and the server's retry window is open. The server is asked
nothing while a condition forbids training. Retry windows are kept across restarts, errors back off,
and every wait has jitter, so that a fleet that was switched on at once, or lost its server, does
not come back at once. Its log lines hold rounds, counts and causes; never text.
"""

import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from device_runtime import config, personal, upgrade
from device_runtime.bounds import Within
from device_runtime.causes import Cause
from device_runtime.drive import Turn
from device_runtime.errors import ConfigError, FedboardError
from device_runtime.home import SCHEDULE, Home
from device_runtime.local import DeviceClock
from device_runtime.transport import Send, persistent
from device_runtime.turn import Outcome, Status
from device_runtime.wire import DAY_S, TIME, forbidden_by

log = logging.getLogger("fedboard.device")
Connect = Callable[[], AbstractContextManager[Send]]  # a connection of its own to the server

LOOK_S = 60.0  # between two looks at conditions that forbid training
LEAST_S, MOST_S = 60.0, 4 * 3600.0  # of a wait; the longest after errors
LONGEST_S = 7 * DAY_S  # of a wait that a server asks for: no server silences a device for ever
PAUSE_S = 10.0  # before half-done work is gone on with
MORNING_S = 3600.0  # into which the first check-ins of a day are spread
JITTER = 0.2  # a wait is longer by up to this share, never shorter than the server asked


@dataclass(frozen=True)
class Schedule:
    """When the device may check in again."""

    asked_at: Annotated[float, TIME] = 0.0  # seconds of its clock
    wait_s: Annotated[float, Within(0.0, LONGEST_S * (1 + JITTER))] = 0.0
    # turns in a row that the server could not be asked
    errors: Annotated[int, Within(0, 10**6)] = 0

    def due_in(self, now: float) -> float:
        """Seconds from now; never more than the wait itself, should the clock have gone back."""
        return min(max(self.asked_at + self.wait_s - now, 0.0), self.wait_s)


@dataclass(frozen=True)
class NotAsked:
    """No turn was taken: the server was asked for nothing."""

    cause: str  # a condition, `retry_window`, or why the device rests until its day is over
    retry_in_s: float
    status: str = "not_asked"


def after(outcome: Outcome, now: float, rng: np.random.Generator) -> Schedule:
    """The schedule after a turn: the server's window, with jitter. Work that waits for a condition
    is gone on with as soon as it is back; a device that has done or refused its share waits for the
    next day.
    """
    share = float(rng.random())
    if outcome.status is Status.NOT_ASKED or outcome.cause is Cause.OVER_LIMIT:
        return Schedule(now, float(until_tomorrow(outcome.retry_in_s, share)))
    if outcome.status is Status.PAUSED:
        return Schedule(now, PAUSE_S * (1 + JITTER * share))
    return Schedule(now, float(polite(outcome.retry_in_s, share)))


def polite(retry_in_s: Any, share: Any) -> Any:
    """Seconds that a device waits which was told to come again in so many; `share`, in [0, 1), is
    the chance's. Numbers or columns of them.

    >>> round(float(polite(400.0, 0.5))), float(polite(0.0, 0.0))
    (440, 60.0)
    """
    return np.minimum(np.maximum(retry_in_s, LEAST_S), LONGEST_S) * (1 + JITTER * share)


def until_tomorrow(day_ends_in_s: Any, share: Any) -> Any:
    """The same of a device that does nothing more today: the day is over for all at once."""
    return np.minimum(np.maximum(day_ends_in_s, LEAST_S), LONGEST_S) + MORNING_S * share


def after_error(schedule: Schedule, now: float, rng: np.random.Generator) -> Schedule:
    """Twice the wait with every error in a row; the whole of it is drawn anew, so that devices
    spread.
    """
    errors = min(schedule.errors + 1, 10**6)
    return Schedule(now, backed_off(errors, float(rng.random())), errors)


def backed_off(errors: int, share: float) -> float:
    """Seconds that a device waits after so many errors in a row."""
    longest = min(LEAST_S * 2.0 ** min(errors, 16), MOST_S)
    return longest / 2 * (1 + share)


def read_schedule(home: Home) -> Schedule:
    """The one kept; a damaged file lets the device check in, as a new one would."""
    data = home.kept(SCHEDULE)
    try:
        return Schedule() if data is None else config.from_json(Schedule, data, SCHEDULE)
    except ConfigError:
        return Schedule()


class Daemon:
    """Remembers the schedule and what was said last. `step` does what can be done now and gives the
    seconds until there may be more.
    """

    def __init__(
        self,
        home: Home,
        send: Send,
        now: Callable[[], float] = time.time,
        may_go_on: Callable[[], bool] = lambda: True,
        rng: np.random.Generator | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ):
        self.home, self._send, self._now, self._may_go_on, self._sleep = (
            home,
            send,
            now,
            may_go_on,
            sleep,
        )
        self._rng = np.random.default_rng() if rng is None else rng
        self._said = ""
        self.schedule = read_schedule(home)
        self._connect: Connect | None = None
        self._hears_at = -math.inf  # of its clock: not before it are releases asked for

    def follow_releases(self, connect: Connect) -> None:
        """From now on, after a turn, go to the release that the server named there, by a connection
        of its own.
        """
        self._connect = connect

    def spread(self) -> None:
        """Put the first check-in of this process somewhere in `spread_s`, but not before the retry
        window kept is open; and so where it first asks for releases.
        """
        self._hears_at = self._now() + float(self._rng.uniform(0, self.home.config.spread_s))
        due = max(
            self.schedule.due_in(self._now()),
            float(self._rng.uniform(0, self.home.config.spread_s)),
        )
        self.schedule = Schedule(self._now(), due, self.schedule.errors)

    def step(self) -> float:
        """Do what is due and allowed. An error, whatever it is, is said in one line and waited out:
        a server comes back, a bundle is installed anew.
        """
        due = self.schedule.due_in(self._now())
        try:
            cause = self.forbidden()
            if cause is None and due <= 0:
                # once a window: it reads the bundle and the whole log to see whether enough was
                # typed
                self.personalise()
                cause = self.forbidden()  # that took its time
            if cause is not None:
                self._say(f"not training: {cause}")
                self.hear()
                return LOOK_S * (1 + float(self._rng.uniform(0, JITTER)))
            if due > 0:
                self._say("may train, and waits for its retry window")
                self.hear()
                return min(due, LOOK_S)
            outcome = self.turn()
        except FedboardError as error:
            self._plan(after_error(self.schedule, self._now(), self._rng))
            self._said = ""
            log.warning("%s; again in %.0f s", error, self.schedule.wait_s)
        except Exception as error:
            # a fault of ours must not end the device, or let it ask again at once; its text could
            # hold what was typed
            self._plan(after_error(self.schedule, self._now(), self._rng))
            self._said = ""
            log.error("failed with %s; again in %.0f s", _kind(error), self.schedule.wait_s)
        else:
            self._plan(after(outcome, self._now(), self._rng))
            self._tell(outcome)
            self.upgrade(outcome)
        return self.schedule.due_in(self._now())

    def once(self) -> Outcome | NotAsked:
        """One turn if it is due and allowed, or why there was none. Errors are raised."""
        due, cause = self.schedule.due_in(self._now()), self.forbidden()
        if cause is not None:
            self.hear()
            return NotAsked(cause, LOOK_S)
        if due > 0:
            self.hear()
            return NotAsked("retry_window", due)
        try:
            self.personalise()
            cause = self.forbidden()  # that took its time
            if cause is not None:
                return NotAsked(cause, LOOK_S)
            outcome = self.turn()
        except Exception:
            self._plan(after_error(self.schedule, self._now(), self._rng))
            raise
        self._plan(after(outcome, self._now(), self._rng))
        self.upgrade(outcome)
        if outcome.status is Status.NOT_ASKED and outcome.cause is not None:
            return NotAsked(outcome.cause.value, outcome.retry_in_s)
        return outcome

    def forbidden(self) -> str | None:
        """The first condition that forbids training now."""
        cause = forbidden_by(self.home.conditions(self._now()))
        return None if cause is None else cause.value

    def turn(self) -> Outcome:
        """One turn, whatever the schedule says. Raises ServerError, BundleError or
        TypingLogError.
        """
        clock = DeviceClock(self._now)
        turn = Turn(self.home, self._send, clock, sleep=self._sleep, may_go_on=self._may_go_on)
        return turn.whole()

    def personalise(self) -> personal.Verdict | None:
        """Train or judge the personal weights if enough was typed since, and the owner wants
        any.
        """
        if not self.home.config.personal:
            return None
        verdict = personal.update(self.home, self.home.bundle(), self._now(), self._may_train)
        if verdict is not None:
            became = (
                "served"
                if verdict.serves
                else "rolled back"
                if verdict.rolled_back
                else "not served"
            )
            log.info(
                "personal weights %s: %+.1f nats on %d held-back words",
                became,
                verdict.judged.nats,
                verdict.judged.words,
            )
        return verdict

    def upgrade(self, outcome: Outcome) -> None:
        """Go to the release that was named in a turn, on an unmetered network. The turn stands
        whatever becomes of it.
        """
        if outcome.status is Status.NOT_ASKED:
            return self.hear()
        if self._connect is not None:
            means = upgrade.Means(self._connect, self._now, self._may_fetch, self._sleep)
            followed = upgrade.after(outcome, self.home, means)
            if followed is not None and followed.upgraded is not None:
                self._judge_personal()

    def hear(self) -> None:
        """Ask for releases without taking a turn, once a day and on an unmetered network: who types
        too little to take part has a strip too.
        """
        now = self._now()
        if self._connect is None or self._hears_at > now or not self._may_fetch():
            return
        self._hears_at = now + LOOK_S  # not at every look
        if not upgrade.hears(self.home, now):
            return
        try:
            with self._connect() as send:
                index = upgrade.ask(self.home, persistent(send, sleep=self._sleep), now)
        except Exception as error:  # a server that is away, or a fault of ours: no harm to turns
            self._hears_at = now + float(self._rng.uniform(MOST_S / 2, MOST_S))
            log.warning("nothing heard of releases (%s)", _kind(error))
            return
        self.upgrade(Outcome(Status.REFUSED, releases=index))

    def _judge_personal(self) -> None:
        """What was served of the user's own waits no longer than it must beside another release; in
        the next window at the latest.
        """
        try:
            self.personalise()
        except Exception as error:  # its text may be anything
            log.warning("personal weights are not judged yet (%s)", _kind(error))

    def _may_fetch(self) -> bool:
        return self._may_go_on() and self.home.conditions(self._now()).unmetered is True

    def _may_train(self) -> bool:
        return self._may_go_on() and self.forbidden() is None

    def _plan(self, schedule: Schedule) -> None:
        self.schedule = schedule
        try:
            self.home.keep(SCHEDULE, config.to_json(schedule))
        except OSError as error:  # a full disk: it is kept in memory
            log.warning("the schedule cannot be written (%s)", _kind(error))

    def _tell(self, outcome: Outcome) -> None:
        self._said = ""
        round_ = "" if outcome.round is None else f" in round {outcome.round}"
        cause = "" if outcome.cause is None else f" ({outcome.cause.value})"
        loss = (
            ""
            if outcome.loss_after is None
            else f", loss {outcome.loss_before:.2f} to {outcome.loss_after:.2f}"
        )
        log.info(
            "%s%s%s: %d examples, %d batches%s, %d bytes up, %d down; again in %.0f s",
            outcome.status.value,
            round_,
            cause,
            outcome.examples,
            outcome.batches,
            loss,
            outcome.bytes_up,
            outcome.bytes_down,
            self.schedule.wait_s,
        )

    def _say(self, line: str) -> None:
        """A line of the log, unless it is the last one again."""
        if line != self._said:
            log.info(line)
        self._said = line


def _kind(error: Exception) -> str:
    return type(error).__name__
