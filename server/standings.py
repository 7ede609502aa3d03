"""Standings: how each release stands beside the others, by what is told of their scores.

An operator's page, his lists and his reports say the same of a release, and say it from here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from device_runtime.scores import quartiles
from device_runtime.wire import Kind
from server import release_scores, rollout
from server.contract import ReleaseState, release_command
from server.release_rows import StoredRelease
from server.release_scores import Figures, Pair
from server.rollout import LEAST_DEVICES, Ratio, Standing, Verdict
from server.store import Rows, StoredTask
from server.task import State


@dataclass(frozen=True)
class ReleaseStanding:
    """A release, what is told of it, and what follows."""

    population: str
    release: int
    state: ReleaseState
    share: int  # of the devices, in hundredths of a per cent
    published_at: float
    lineage: str  # where its model comes from, in words
    figures: Figures  # of all who run it
    verdict: Verdict
    compared: bool  # by a task that has not ended
    asked: bool = True  # its population is: by any task
    stopped: str = ""  # why

    @property
    def right(self) -> Ratio | None:
        """Its share of right words."""
        return rollout.right(self.figures) if self.figures.targets else None

    @property
    def top3(self) -> float | None:
        """Share of words that were among its first three."""
        return self.figures.top3 / self.figures.targets if self.figures.targets else None

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Of its devices' shares of right words; nan without a device."""
        return quartiles(self.figures.spread)

    @property
    def sentence(self) -> str:
        """How it does, and what to do about it."""
        withdraw = release_command("withdraw", self.release, self.population)
        if self.state is ReleaseState.WITHDRAWN:
            return "withdrawn: whoever runs it goes to another"
        if self.state is ReleaseState.STOPPED:
            return (
                f"stopped: {self.stopped}; it is named no more, and devices that run it stay until "
                f"you withdraw it: {withdraw}"
            )
        if self.verdict.standing is Standing.WORSE:
            return f"{self.verdict.why}; withdraw it: {withdraw}"
        if not self.asked:
            return (
                f"no task is of population {self.population}: its devices hear of it, but if the "
                f"name is mistaken there are none; withdraw it then: {withdraw}"
            )
        if not self.compared and self.verdict.standing is Standing.WAITS:
            return (
                "nobody compares it with the others: fedboard task create NAME "
                "--compares-releases TASK"
            )
        return self.verdict.why


def read(rows: Rows, population: str | None = None) -> tuple[ReleaseStanding, ...]:
    """The releases of a population, or of all, by population and newest first."""
    tasks = rows.tasks()
    told: dict[str, Mapping[Pair, Figures]] = {}
    standings = []
    for each in rows.releases.all(population):
        if each.population not in told:
            told[each.population] = rows.release_scores.told(each.population)
        standings.append(_standing(each, told[each.population], tasks))
    return tuple(standings)


def one(rows: Rows, release: StoredRelease) -> ReleaseStanding:
    """One of them."""
    return _standing(release, rows.release_scores.told(release.population), rows.tasks())


def stopped_sentence(rows: Rows, population: str) -> str:
    """Which releases were stopped, and why; empty if none was."""
    stopped = (each for each in read(rows, population) if each.state is ReleaseState.STOPPED)
    return "; ".join(f"release {each.release}, {each.sentence}" for each in stopped)


def _standing(
    release: StoredRelease, told: Mapping[Pair, Figures], tasks: Sequence[StoredTask]
) -> ReleaseStanding:
    comparing = [
        each
        for each in tasks
        if each.task.kind is Kind.RELEASES and each.task.population == release.population
    ]
    fewest = max((each.task.rules.fewest for each in comparing), default=LEAST_DEVICES)
    state = ReleaseState.OFFERED
    if release.statement.withdrawn:
        state = ReleaseState.WITHDRAWN
    elif release.stopped:
        state = ReleaseState.STOPPED
    return ReleaseStanding(
        release.population,
        release.release,
        state,
        release.statement.share,
        release.published_at,
        _lineage(release),
        release_scores.of_release(told, release.release),
        rollout.judge(told, release.release, fewest),
        any(each.state is not State.FINISHED for each in comparing),
        any(each.task.population == release.population for each in tasks),
        release.stopped,
    )


def _lineage(release: StoredRelease) -> str:
    """The task or the corpus, the round, how many updates went into it, and what hid them."""
    lineage = release.manifest.lineage
    where = f"task {lineage.task}" if lineage.task else lineage.corpus
    words = f"{where}, round {lineage.round}"
    if lineage.participants is not None:
        words += f", {lineage.participants:,} updates"
    return f"{words}; {lineage.privacy}"
