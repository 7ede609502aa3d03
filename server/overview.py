"""What the operator's page shows of a server, as plain values read in one go."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from device_runtime.causes import Step, had_no_place
from device_runtime.scores import quartiles
from device_runtime.terms import who_sees, why_exposed
from device_runtime.wire import FUNNEL, UNDER_WAY, Kind, Phase, RoundReport, lost
from server import chain, mechanism, standings
from server.chain import Standing
from server.contract import HelperHere
from server.coordinator import Coordinator
from server.helping import asks_helper
from server.mechanism import Exposure, Spent
from server.places import Places
from server.rounds import Mode
from server.standings import ReleaseStanding
from server.store import Rows, StoredTask
from server.task import State, Task, is_masked, terms

STEPS = (FUNNEL[0], "eligible", *FUNNEL[1:])  # of the funnel, with what no report holds
ROUNDS = 200  # of a task, newest
CHECKPOINTS = 20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a task, by its SHA-256."""

    sha: str
    round: int
    parent: str
    made_at: float
    current: bool


@dataclass(frozen=True)
class Score:
    """One evaluation, at the round of the training task that made the checkpoint."""

    round: int
    top1: float  # per cent of all words
    top3: float
    loss: float  # nats a word of the vocabulary
    words: int
    # top-1 of the devices, per cent: lower quartile, median, upper quartile; nan where an older
    # version has not counted them
    quartiles: tuple[float, float, float]
    devices: int


@dataclass(frozen=True)
class TaskView:
    """A task as its section of the page shows it."""

    name: str
    population: str
    kind: Kind
    state: State
    evaluates: str
    algorithm: str
    mode: Mode
    goal: int
    cohort: int
    fewest: int
    reports: tuple[RoundReport, ...]  # oldest first
    checkpoints: tuple[Checkpoint, ...]  # newest first
    scores: tuple[Score, ...]  # of the tasks that evaluate this one
    exposure: Exposure
    spent: Spent
    places: Places = field(default_factory=Places)  # of the round under way
    certified: Standing = field(default_factory=Standing)  # who signed for its checkpoints
    masked: bool = False  # its reports are, and their sums must be opened
    seen: str = ""  # who can see a device's report, in a sentence
    exposed: str = ""  # what of that is bad, in a sentence; empty if nothing
    waits: str = ""  # as the function of that name says it

    @property
    def live(self) -> RoundReport | None:
        """The round under way."""
        newest = self.reports[-1] if self.reports else None
        return newest if newest is not None and newest.phase in UNDER_WAY else None

    @property
    def outcomes(self) -> Counter[Phase]:
        """Rounds by phase."""
        return Counter(report.phase for report in self.reports)

    def causes(self, step: Step) -> list[tuple[str, int]]:
        """Devices `refused` or `dropped` in the rounds shown, by cause, the most frequent first."""
        return lost(self.reports, step)


@dataclass(frozen=True)
class Overview:
    """All that the page shows."""

    now: float
    started_at: float
    database: str
    devices: int
    refused_requests: tuple[tuple[str, int], ...]
    tasks: tuple[TaskView, ...]
    releases: tuple[ReleaseStanding, ...] = ()  # by population, newest first
    helper: HelperHere | None = None  # that it asks; None: nobody


def read(
    coordinator: Coordinator, now: float, started_at: float, refused: dict[str, int]
) -> Overview:
    """Everything at one moment: one transaction of reading."""
    with coordinator.store.reading() as rows:
        stored = rows.tasks()
        reports = {each.task.name: rows.reports(each.task, now, ROUNDS) for each in stored}
        tasks = tuple(
            replace(
                _task(rows, each, stored, reports, now),
                waits=waits(coordinator, each.task, reports[each.task.name]),
            )
            for each in stored
        )
        return Overview(
            now,
            started_at,
            coordinator.store.name,
            rows.count_devices(),
            tuple(sorted(refused.items())),
            tasks,
            standings.read(rows),
            None if coordinator.helping is None else coordinator.helping.here,
        )


def eligible(assigned: int, refused: Mapping[str, int]) -> int:
    """Devices that might have joined a round: those assigned, and of those refused at check-in, by
    cause, the ones there was no place for.

    >>> eligible(6, {"not_charging": 3, "round_full": 1})
    7
    """
    return assigned + sum(count for cause, count in refused.items() if had_no_place(cause))


def waiting(reports: Sequence[RoundReport], why: str) -> str:
    """What the newest of a task's rounds waits for if its sum is being opened, or else why the last
    one that was closed came to nothing, in a sentence; empty if there is nothing to say.

    >>> waiting([RoundReport(3, Phase.UNMASKING, 2)], "the helper is away")
    'round 3 waits for its sum to be opened: the helper is away'
    """
    if not reports:
        return ""
    newest = reports[-1]
    if newest.phase is Phase.UNMASKING:
        return f"round {newest.round} waits for its sum to be opened: {why or 'it is asked for'}"
    last = next((each for each in reports[::-1] if each.phase not in UNDER_WAY), None)
    if last is None or not last.reason:
        return ""
    return f"round {last.round} was abandoned: {last.reason}"


def waits(coordinator: Coordinator, task: Task, reports: Sequence[RoundReport]) -> str:
    """Why nothing comes of a task just now, in a sentence: `waiting`, and its helper's problem."""
    here = None if coordinator.helping is None else coordinator.helping.here
    said = waiting(reports, coordinator.waits.get(task.name, ""))
    is_opening = bool(reports) and reports[-1].phase is Phase.UNMASKING  # it has been said then
    if here is None or is_opening or not here.problem or not asks_helper(task):
        return said
    return "; ".join(filter(None, (f"its helper gives nothing: {here.problem}", said)))


def counts(here: HelperHere | None) -> str:
    """Whom a helper takes for a device, in a sentence; empty if that is not known.

    >>> counts(HelperHere("ab" * 32, enrolment_key="cd" * 32))
    'only devices certified by cdcdcdcdcdcdcdcd count towards the least of a sum'
    """
    if here is None or not here.helper:
        return ""
    if here.enrolment_key:
        named = here.enrolment_key[:16]
        return f"only devices certified by {named} count towards the least of a sum"
    return (
        "its helper counts any key as a device: whoever runs the server could invent some to fill "
        "a sum around a single one, unless the helper has an --enrolment-key"
    )


def exposure(rows: Rows, task: str) -> Exposure:
    """How often the devices of a task have been counted so far."""
    return Exposure(rows.committed(task), *rows.participation(task), rows.spending.of(task))


def _task(
    rows: Rows,
    stored: StoredTask,
    others: list[StoredTask],
    reports: dict[str, tuple[RoundReport, ...]],
    now: float,
) -> TaskView:
    task, rules = stored.task, stored.task.rules
    current = rows.current(task.name) if task.kind is Kind.TRAINING else None
    kept = rows.checkpoints(task.name, CHECKPOINTS)
    exposed = exposure(rows, task.name)
    evaluations = [
        report
        for other in others
        if other.task.evaluates == task.name
        for report in reports[other.task.name]
    ]
    return TaskView(
        task.name,
        task.population,
        task.kind,
        stored.state,
        task.evaluates,
        task.step.algorithm,
        rules.mode,
        rules.report_goal,
        rules.cohort,
        rules.fewest,
        reports[task.name],
        tuple(
            Checkpoint(
                each.sha,
                each.round,
                each.parent,
                each.made_at,
                current is not None and each.sha == current.sha,
            )
            for each in kept
        ),
        tuple(sorted(filter(None, map(score, evaluations)), key=lambda score: score.round)),
        exposed,
        mechanism.of(task).spent(exposed),
        rows.open_places().get(task.name, Places()),
        chain.standing(rows, task, stored.state, now),
        masked=is_masked(task),
        seen=who_sees(terms(task)) if task.kind is not Kind.RELEASES else "",
        exposed=why_exposed(terms(task)) if task.kind is not Kind.RELEASES else "",
    )


def score(report: RoundReport) -> Score | None:
    """What an evaluation has measured; None before it has."""
    scores = report.scores
    if scores is None or report.phase is not Phase.COMMITTED:
        return None
    loss = scores.loss / scores.in_vocabulary if scores.in_vocabulary else float("nan")
    lower, median, upper = quartiles(report.spread)
    return Score(
        report.base_round,
        100 * scores.top1 / scores.targets,
        100 * scores.top3 / scores.targets,
        loss,
        scores.targets,
        (100 * lower, 100 * median, 100 * upper),
        report.counted,
    )
