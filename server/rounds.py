"""The round state machine: what an event makes of a round. Reads no clock and no store.

A round admits devices until its cohort is full or the selection window is over, then waits for their reports. It commits at the report goal;
it also commits with fewer, but at least the minimum, when nobody is left to wait for or the reporting window is over. Else it is abandoned.
Source: Bonawitz et al. 2019, arXiv:1902.01046 (selection, reporting, over-selection, pace steering).
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from device_runtime.errors import ConfigError


class Phase(StrEnum):
    SELECTING = "selecting"
    REPORTING = "reporting"
    COMMITTED = "committed"
    ABANDONED = "abandoned"


OPEN = (Phase.SELECTING, Phase.REPORTING)


@dataclass(frozen=True)
class Rules:
    report_goal: int = 100  # counted reports that commit a round
    over_selection: float = 1.3  # cohort / report goal
    min_reports: int | None = None  # fewest that commit at the end of a window; by default half the goal, at least 1
    selection_s: float = 600.0  # from the first admission: a round nobody has joined waits
    reporting_s: float = 3600.0  # from an admission: what every device is promised
    rounds: int = 0  # committed rounds the task wants; 0 = no end
    retry_s: float = 60.0  # until a device checks in again, give or take 20 %
    max_weight: int = 256  # examples one device counts for at most

    def __post_init__(self) -> None:
        for field, value, least in (
            ("report_goal", self.report_goal, 1),
            ("over_selection", self.over_selection, 1),
            ("min_reports", self.min_reports, 1),
            ("selection_s", self.selection_s, 0),
            ("reporting_s", self.reporting_s, 0),
            ("rounds", self.rounds, 0),
            ("retry_s", self.retry_s, 0),
            ("max_weight", self.max_weight, 1),
        ):
            if value is not None and not (value >= least and math.isfinite(value)):
                raise ConfigError(f"rules.{field}", f"expected at least {least}, found {value}", "correct it")
        if self.min_reports is not None and self.min_reports > self.report_goal:
            raise ConfigError("rules.min_reports", f"expected at most the report goal {self.report_goal}, found {self.min_reports}", "lower it")

    @property
    def cohort(self) -> int:
        """Devices a round works with: more than the goal, because some will drop out."""
        return math.ceil(self.report_goal * self.over_selection)

    @property
    def fewest(self) -> int:
        return max(1, self.report_goal // 2) if self.min_reports is None else self.min_reports


@dataclass(frozen=True)
class RoundState:
    """One attempt at a round. Times are in seconds of whatever clock the events carry."""

    round: int
    phase: Phase = Phase.SELECTING
    admitted: frozenset[str] = frozenset()
    reported: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()
    first_admitted: float | None = None
    last_admitted: float | None = None

    @property
    def staying(self) -> frozenset[str]:
        return self.admitted - self.dropped

    @property
    def waiting(self) -> frozenset[str]:
        return self.staying - self.reported


@dataclass(frozen=True)
class Admitted:
    client: str
    at: float = 0.0


@dataclass(frozen=True)
class Reported:
    """An update that follows the rules has arrived."""

    client: str
    at: float = 0.0


@dataclass(frozen=True)
class Dropped:
    """The device gave up, or its update broke the rules."""

    client: str
    at: float = 0.0


@dataclass(frozen=True)
class Tick:
    at: float


Event = Admitted | Reported | Dropped | Tick


def advance(state: RoundState, event: Event, rules: Rules) -> RoundState:
    """The state after `event`. Late, surplus and foreign events leave it as it is; only the passing of time shows."""
    state = _settle(state, event.at, rules)
    if isinstance(event, Admitted) and state.phase is Phase.SELECTING and event.client not in state.admitted:
        first = event.at if state.first_admitted is None else state.first_admitted
        state = replace(state, admitted=state.admitted | {event.client}, first_admitted=first, last_admitted=event.at)
    elif isinstance(event, Reported) and state.phase in OPEN and event.client in state.waiting:
        state = replace(state, reported=state.reported | {event.client})
    elif isinstance(event, Dropped) and state.phase in OPEN and event.client in state.waiting:
        state = replace(state, dropped=state.dropped | {event.client})
    return _settle(state, event.at, rules)


def is_over(state: RoundState, now: float, rules: Rules) -> bool:
    """Whether the reporting window of the device admitted last has passed."""
    return state.last_admitted is not None and now >= state.last_admitted + rules.reporting_s


def _settle(state: RoundState, now: float, rules: Rules) -> RoundState:
    if state.phase not in OPEN:
        return state
    if len(state.reported) >= rules.report_goal:
        return replace(state, phase=Phase.COMMITTED)
    if state.phase is Phase.SELECTING:
        window_over = state.first_admitted is not None and now >= state.first_admitted + rules.selection_s
        if len(state.admitted) < rules.cohort and not window_over:  # who drops out is not replaced: over-selection allows for them
            return state
        state = replace(state, phase=Phase.REPORTING)
    if len(state.staying) < rules.fewest:
        return replace(state, phase=Phase.ABANDONED)  # no report to come can help it
    if state.waiting and not is_over(state, now, rules):
        return state
    return replace(state, phase=Phase.COMMITTED if len(state.reported) >= rules.fewest else Phase.ABANDONED)
