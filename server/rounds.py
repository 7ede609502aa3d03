"""The round state machine: what an event makes of a round. Reads no clock and no store.

A synchronous round gives the places of its cohort to those who ask in a window (`places.py`), then
waits for their reports. It commits at the report goal; it also commits with fewer, but at least the
minimum, when nobody is left to wait for or the reporting window is over. Else it is abandoned. A
buffered round has a window whenever fewer than a cohort are at work, counts whoever reports, and
commits at the report goal; who is still at work then reports into a later round. A round for which
only devices come that were counted too few rounds ago ends with what it has: the next one is a
round further. Who a device is, and that it reports once, is the ledger's affair: a round only
counts. Where the sum is masked, a round that has enough waits in UNMASKING until it is opened, or
never can be.
Sources: Bonawitz et al. 2019, arXiv:1902.01046 (selection, reporting, over-selection); Nguyen et
al. 2022, arXiv:2106.06639 (FedBuff).
"""

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated

from device_runtime import bounds
from device_runtime.bounds import Within
from device_runtime.causes import Cause
from device_runtime.errors import ConfigError
from device_runtime.wire import DAY_S, OPEN, Phase
from server import places
from server.places import Places
from server.records import changed

DEVICES = Within(1, 100_000)  # of a round
ROUNDS = Within(0, 1_000_000)
WAIT_S = Within(0.0, 30 * DAY_S)  # for devices of a round
RETRY_S = Within(0.0, 7 * DAY_S)  # no device waits longer, whatever it is told


class Mode(StrEnum):
    """Whether a round waits for its own devices, or for whoever reports."""

    SYNCHRONOUS = "synchronous"
    BUFFERED = "buffered"


@dataclass(frozen=True)
class Rules:
    """When a task's rounds admit, wait and end. Raises ConfigError for numbers out of range."""

    report_goal: Annotated[int, DEVICES] = 100  # counted reports that commit a round
    # cohort / report goal; of a buffered task: devices at work at once / report goal
    over_selection: Annotated[float, Within(1.0, 100.0)] = 1.3
    # fewest that commit at the end of a window; by default half the goal, at least 1
    min_reports: Annotated[int | None, DEVICES] = None
    # from the first device that asks to the draw of the cohort from all who did; 0: no draw, places
    # go by arrival, which a device that asks often has the most of
    selection_s: Annotated[float, WAIT_S] = 600.0
    # for those drawn to come back, before others are drawn in their place; by default half of
    # selection_s and a minute and a half
    claim_s: Annotated[float | None, WAIT_S] = None
    # from an admission: what every device is promised
    reporting_s: Annotated[float, WAIT_S] = 3600.0
    rounds: Annotated[int, ROUNDS] = 0  # committed rounds the task wants; 0 = no end
    # until a device checks in again that may be of use soon, give or take 20 %, to which it adds as
    # much of its own: under 0.69 selection_s all are in every window, and nobody gains by knowing
    # when the others come
    retry_s: Annotated[float, RETRY_S] = 400.0
    # the same for one that will not be before something on it changes
    permanent_retry_s: Annotated[float, RETRY_S] = 14_400.0
    # a population too large to come at this rate in the time above is given more time
    check_ins_per_s: Annotated[float, Within(0.001, 1e6)] = 100.0
    mode: Mode = Mode.SYNCHRONOUS
    # rounds a report to a buffered task may be behind
    max_staleness: Annotated[int, ROUNDS] = 20
    # a report s rounds behind moves the mean by (1 + s) ** -exponent of its delta
    staleness_exponent: Annotated[float, Within(0.0, 100.0)] = 0.5

    def __post_init__(self) -> None:
        bounds.check(self, "rules")
        if self.min_reports is not None and self.min_reports > self.report_goal:
            raise ConfigError(
                "rules.min_reports",
                f"expected at most the report goal {self.report_goal}, found {self.min_reports}",
                "lower it",
            )

    @property
    def cohort(self) -> int:
        """Devices a round works with: more than the goal, because some will drop out."""
        return math.ceil(self.report_goal * self.over_selection)

    @property
    def fewest(self) -> int:
        """Reports with which a round commits at the end of a window."""
        return max(1, self.report_goal // 2) if self.min_reports is None else self.min_reports

    @property
    def claim(self) -> float:
        """Seconds to come back in: a device waits up to a fifth longer than it was told, or than a
        minute if that is more.
        """
        return 90.0 + self.selection_s / 2 if self.claim_s is None else self.claim_s

    @property
    def patience(self) -> float:
        """Seconds that an empty round waits for a device other than those counted too few rounds
        ago: all who were told to come again have come by then.
        """
        return (self.selection_s or self.reporting_s) + 2 * self.retry_s

    @property
    def buffered(self) -> bool:
        """Whether late reports count in a later round."""
        return self.mode is Mode.BUFFERED


def whole_cohort(rules: Rules) -> Rules:
    """Rules of a round that has room for its whole cohort, and so waits for all of it."""
    return replace(rules, report_goal=rules.cohort, over_selection=1.0, min_reports=rules.fewest)


@dataclass(frozen=True)
class RoundState:
    """One attempt at a round: how many devices are where. Times are in seconds of whatever clock
    the events carry.
    """

    round: int
    phase: Phase = Phase.SELECTING
    admitted: int = 0  # in a buffered task also those still at work from earlier rounds
    reported: int = 0
    dropped: int = 0
    first_admitted: float | None = None
    last_admitted: float | None = None
    places: Places = field(default_factory=Places)

    @property
    def staying(self) -> int:
        """Devices that have not dropped out."""
        return self.admitted - self.dropped

    @property
    def waiting(self) -> int:
        """Devices at work: staying, and not heard of yet."""
        return self.staying - self.reported


@dataclass(frozen=True)
class Asked:
    """A device that is not in the round asks for a place, which it has no ticket for."""

    at: float = 0.0


@dataclass(frozen=True)
class Withdrawn:
    """A device has lost its ticket."""

    at: float = 0.0


@dataclass(frozen=True)
class TurnedAway:
    """A device may not join for no other reason than that it was counted too few rounds ago."""

    at: float = 0.0


@dataclass(frozen=True)
class Admitted:
    """A device that is not in the round, and whose turn it is, joins."""

    at: float = 0.0


@dataclass(frozen=True)
class Reported:
    """An update that follows the rules has arrived from a device the round waits for."""

    at: float = 0.0


@dataclass(frozen=True)
class Dropped:
    """A device the round waits for gave up, or its update broke the rules."""

    at: float = 0.0


@dataclass(frozen=True)
class Tick:
    """Time has passed."""

    at: float


Event = Asked | Withdrawn | TurnedAway | Admitted | Reported | Dropped | Tick


def advance(state: RoundState, event: Event, rules: Rules) -> RoundState:
    """The state after `event`. Late and surplus events leave it as it is; only the passing of time
    shows. A time that has not come yet is of a clock that was ahead, and is taken as now.
    """
    return happened(_settle(_not_after(state, event.at, rules), event.at, rules), event, rules)


def happened(state: RoundState, event: Event, rules: Rules) -> RoundState:
    """The same of a state that `advance` gave for another event of the very same time."""
    room = has_room(state, rules)
    match event:
        case Asked(at) if room and rules.selection_s:
            state = changed(state, places=_asked(state.places, at, rules))
        case Withdrawn() if state.places.asking and state.places.asked:
            state = changed(state, places=changed(state.places, asked=state.places.asked - 1))
        case TurnedAway(at) if room and state.places.until is None and not state.waiting:
            if state.places.turned_away_at is None:
                state = changed(state, places=changed(state.places, turned_away_at=at))
        case Admitted(at) if room and not state.places.asking:
            state = _admitted(state, at)
        case Reported() if state.phase in OPEN and state.waiting:
            state = changed(state, reported=state.reported + 1)
        case Dropped() if state.phase in OPEN and state.waiting:
            state = changed(state, dropped=state.dropped + 1)
    return _settle(state, event.at, rules)


def chance(state: RoundState, ticket: places.Ticket | None, rules: Rules) -> places.Chance | Cause:
    """What a device that may join the round can do now, or why nothing."""
    kept = state.places
    if kept.until is not None and state.phase is Phase.SELECTING:
        return places.chance(kept, ticket)
    if has_room(state, rules):
        return places.Chance.ASKS if rules.selection_s else places.Chance.COMES_IN
    mine = not rules.buffered and ticket is not None and ticket.window == kept.window
    return Cause.NOT_DRAWN if mine else Cause.ROUND_FULL


def following(state: RoundState, rules: Rules) -> RoundState:
    """The round after one that is over. A buffered task takes those still at work along."""
    if rules.buffered:
        return RoundState(
            state.round + 1,
            admitted=state.waiting,
            first_admitted=state.first_admitted,
            last_admitted=state.last_admitted,
            places=changed(state.places, turned_away_at=None),
        )
    return RoundState(state.round + 1)


def frozen(state: RoundState) -> RoundState:
    """The state of a round whose sum is masked: one that has enough is committed only once that
    sum has been opened.
    """
    return changed(state, phase=Phase.UNMASKING) if state.phase is Phase.COMMITTED else state


def is_over(state: RoundState, now: float, rules: Rules) -> bool:
    """Whether the reporting window of the device admitted last has passed."""
    return state.last_admitted is not None and now >= state.last_admitted + rules.reporting_s


def has_room(state: RoundState, rules: Rules) -> bool:
    """Whether the round has a place that nobody has taken."""
    if state.phase is not Phase.SELECTING or (rules.buffered and state.waiting >= rules.cohort):
        return False
    return not state.places.claiming or state.places.taken < state.places.seats


def _asked(kept: Places, at: float, rules: Rules) -> Places:
    if kept.until is None:
        kept = places.open_window(kept, at + rules.selection_s)
    return changed(kept, asked=kept.asked + 1) if kept.asking or kept.spare else kept


def _admitted(state: RoundState, at: float) -> RoundState:
    kept = state.places
    if kept.claiming:
        kept = changed(kept, taken=kept.taken + 1)
    if kept.turned_away_at is not None:
        kept = changed(kept, turned_away_at=None)
    first = at if state.first_admitted is None else state.first_admitted
    return changed(
        state, admitted=state.admitted + 1, first_admitted=first, last_admitted=at, places=kept
    )


def _not_after(state: RoundState, now: float, rules: Rules) -> RoundState:
    """The state without times that no event up to now can have had."""
    kept = state.places
    latest = now + (rules.claim if kept.claims else rules.selection_s)
    if (kept.until or latest) > latest or (kept.turned_away_at or now) > now:
        until = None if kept.until is None else min(kept.until, latest)
        away = _earlier(kept.turned_away_at, now)
        state = changed(state, places=changed(kept, until=until, turned_away_at=away))
    if (state.last_admitted or now) > now:
        first, last = _earlier(state.first_admitted, now), _earlier(state.last_admitted, now)
        state = changed(state, first_admitted=first, last_admitted=last)
    return state


def _earlier(at: float | None, now: float) -> float | None:
    return None if at is None else min(at, now)


def _windowed(state: RoundState, now: float, rules: Rules) -> RoundState:
    """Let a window end, or the time to claim."""
    kept = state.places
    if kept.until is None:
        return state
    if kept.asking and now < kept.until:
        return state
    too_few = kept.asking and state.staying + kept.asked < rules.fewest
    if too_few and not rules.buffered:
        return changed(state, places=places.shut(kept))  # nobody is to work for nothing
    joined = state.waiting if rules.buffered else state.admitted
    after = places.settle(kept, now, rules.cohort - joined, rules.claim)
    return state if after is kept else changed(state, places=after)


def _settle(state: RoundState, now: float, rules: Rules) -> RoundState:
    if state.phase not in OPEN:
        return state
    if state.reported >= rules.report_goal:
        return changed(state, phase=Phase.COMMITTED)
    state = _windowed(state, now, rules)
    kept = state.places
    turned_away_at = kept.turned_away_at if kept.until is None and not state.waiting else None
    if turned_away_at is not None and now >= turned_away_at + rules.patience:
        return _ended(state, rules)
    if rules.buffered:
        # it waits for its goal as long as that takes; devices that take too long are dropped one by
        # one
        return state
    if state.phase is Phase.SELECTING:
        # who drops out is not replaced: over-selection allows for them
        if state.admitted < rules.cohort and not _selected(state, now, rules):
            return state
        state = changed(state, phase=Phase.REPORTING)
    if state.staying < rules.fewest:
        return changed(state, phase=Phase.ABANDONED)  # no report to come can help it
    if state.waiting and not is_over(state, now, rules):
        return state
    return _ended(state, rules)


def _selected(state: RoundState, now: float, rules: Rules) -> bool:
    """Whether a synchronous round has all the devices it will get."""
    if state.places.until is not None:
        return False
    if state.places.window:
        return True  # its window is over
    if not rules.selection_s:
        return is_over(state, now, rules)
    # whom an older version admitted by arrival
    return state.first_admitted is not None and now >= state.first_admitted + rules.selection_s


def _ended(state: RoundState, rules: Rules) -> RoundState:
    enough = state.reported >= rules.fewest
    return changed(state, phase=Phase.COMMITTED if enough else Phase.ABANDONED)
