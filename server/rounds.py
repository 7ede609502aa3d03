"""The round state machine: what an event makes of a round. Reads no clock and no store.

A synchronous round admits devices until its cohort is full or the selection window is over, then
waits for their reports. It commits at the report goal; it also commits with fewer, but at least the
minimum, when nobody is left to wait for or the reporting window is over. Else it is abandoned. A
buffered round admits a device whenever fewer than a cohort are at work, counts whoever reports, and
commits at the report goal; who is still at work then reports into a later round. Who a device is,
and that it reports once, is the ledger's affair: a round only counts. Sources: Bonawitz et al.
2019, arXiv:1902.01046 (selection, reporting, over-selection); Nguyen et al. 2022, arXiv:2106.06639
(FedBuff).
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from device_runtime.errors import ConfigError
from device_runtime.wire import OPEN, Phase


class Mode(StrEnum):
    """Whether a round waits for its own devices, or for whoever reports."""

    SYNCHRONOUS = "synchronous"
    BUFFERED = "buffered"


@dataclass(frozen=True)
class Rules:
    """When a task's rounds admit, wait and end. Raises ConfigError for numbers out of range."""

    report_goal: int = 100  # counted reports that commit a round
    # cohort / report goal; of a buffered task: devices at work at once / report goal
    over_selection: float = 1.3
    # fewest that commit at the end of a window; by default half the goal, at least 1
    min_reports: int | None = None
    selection_s: float = 600.0  # from the first admission: a round nobody has joined waits
    reporting_s: float = 3600.0  # from an admission: what every device is promised
    rounds: int = 0  # committed rounds the task wants; 0 = no end
    # until a device checks in again that may be of use soon, give or take 20 %
    retry_s: float = 900.0
    # the same for one that will not be before something on it changes
    permanent_retry_s: float = 14_400.0
    # a population too large to come at this rate in the time above is given more time
    check_ins_per_s: float = 100.0
    max_weight: int = 256  # examples one device counts for at most
    mode: Mode = Mode.SYNCHRONOUS
    max_staleness: int = 20  # rounds a report to a buffered task may be behind
    # a report s rounds behind moves the mean by (1 + s) ** -exponent of its delta
    staleness_exponent: float = 0.5

    def __post_init__(self) -> None:
        for field, value, least in (
            ("report_goal", self.report_goal, 1),
            ("over_selection", self.over_selection, 1),
            ("min_reports", self.min_reports, 1),
            ("selection_s", self.selection_s, 0),
            ("reporting_s", self.reporting_s, 0),
            ("rounds", self.rounds, 0),
            ("retry_s", self.retry_s, 0),
            ("permanent_retry_s", self.permanent_retry_s, 0),
            ("check_ins_per_s", self.check_ins_per_s, 0.001),
            ("max_weight", self.max_weight, 1),
            ("max_staleness", self.max_staleness, 0),
            ("staleness_exponent", self.staleness_exponent, 0),
        ):
            if value is not None and not (value >= least and math.isfinite(value)):
                raise ConfigError(
                    f"rules.{field}", f"expected at least {least}, found {value}", "correct it"
                )
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
    def buffered(self) -> bool:
        """Whether late reports count in a later round."""
        return self.mode is Mode.BUFFERED


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

    @property
    def staying(self) -> int:
        """Devices that have not dropped out."""
        return self.admitted - self.dropped

    @property
    def waiting(self) -> int:
        """Devices at work: staying, and not heard of yet."""
        return self.staying - self.reported


@dataclass(frozen=True)
class Admitted:
    """A device that is not in the round asks to join."""

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


Event = Admitted | Reported | Dropped | Tick


def advance(state: RoundState, event: Event, rules: Rules) -> RoundState:
    """The state after `event`. Late and surplus events leave it as it is; only the passing of time
    shows.
    """
    state = _settle(state, event.at, rules)
    if isinstance(event, Admitted) and _has_room(state, rules):
        first = event.at if state.first_admitted is None else state.first_admitted
        state = replace(
            state, admitted=state.admitted + 1, first_admitted=first, last_admitted=event.at
        )
    elif isinstance(event, Reported) and state.phase in OPEN and state.waiting:
        state = replace(state, reported=state.reported + 1)
    elif isinstance(event, Dropped) and state.phase in OPEN and state.waiting:
        state = replace(state, dropped=state.dropped + 1)
    return _settle(state, event.at, rules)


def following(state: RoundState, rules: Rules) -> RoundState:
    """The round after one that is over. A buffered task takes those still at work along."""
    if rules.buffered:
        return RoundState(
            state.round + 1,
            admitted=state.waiting,
            first_admitted=state.first_admitted,
            last_admitted=state.last_admitted,
        )
    return RoundState(state.round + 1)


def is_over(state: RoundState, now: float, rules: Rules) -> bool:
    """Whether the reporting window of the device admitted last has passed."""
    return state.last_admitted is not None and now >= state.last_admitted + rules.reporting_s


def _has_room(state: RoundState, rules: Rules) -> bool:
    return state.phase is Phase.SELECTING and (not rules.buffered or state.waiting < rules.cohort)


def _settle(state: RoundState, now: float, rules: Rules) -> RoundState:
    if state.phase not in OPEN:
        return state
    if state.reported >= rules.report_goal:
        return replace(state, phase=Phase.COMMITTED)
    if rules.buffered:
        # it waits for its goal as long as that takes; devices that take too long are dropped one by
        # one
        return state
    if state.phase is Phase.SELECTING:
        window_over = (
            state.first_admitted is not None and now >= state.first_admitted + rules.selection_s
        )
        # who drops out is not replaced: over-selection allows for them
        if state.admitted < rules.cohort and not window_over:
            return state
        state = replace(state, phase=Phase.REPORTING)
    if state.staying < rules.fewest:
        return replace(state, phase=Phase.ABANDONED)  # no report to come can help it
    if state.waiting and not is_over(state, now, rules):
        return state
    return replace(
        state, phase=Phase.COMMITTED if state.reported >= rules.fewest else Phase.ABANDONED
    )
