"""Stand-ins: the studies whose devices need not learn: how long rounds take, and what is wasted.

A study is a table of fleets that differ in one thing, and the figures that it is asked for. Each
fleet lives once for each seed, in a process of its own; `training` is a stand-in whose time and
bytes are those of a phone's.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fleet_studies import fleets
from device_runtime.terms import Aggregation
from device_runtime.wire import DAY_S
from fedboard import console
from fleet import population, tables
from fleet.assignments import COUNTED, TURNED_AWAY, assignments
from fleet.faults import Faults
from fleet.settings import FleetSettings
from server.rounds import Mode

Figures = Mapping[str, float]
SMALL = 412_437  # values of the network of size small with 5,000 words
SLOWER = 200.0  # times as slow, uplinks are: as those of a phone on an old mobile network


@dataclass(frozen=True)
class Size:
    """How large each fleet is."""

    devices: int = 1000
    days: float = 1.0
    seeds: int = 2

    def scaled(self, devices: float, days: float = 1.0, seeds: int | None = None) -> "Size":
        """A share of it, for a study that costs more."""
        return Size(
            max(1, round(self.devices * devices)),
            self.days * days,
            min(self.seeds, seeds or self.seeds),
        )


@dataclass(frozen=True)
class Case:
    """One of the fleets of a study."""

    name: str  # as its table says it
    settings: FleetSettings
    uplink: float = 1.0  # times as slow


@dataclass(frozen=True)
class Study:
    """What is asked, of which fleets."""

    what: str  # in which the cases differ: the label of an axis
    cases: Callable[[FleetSettings], Sequence[Case]]
    shown: tuple[tuple[str, str], ...]  # figures of its picture, and the labels of their axes
    size: Callable[[Size], Size] = lambda size: size


def over_selection(base: FleetSettings) -> list[Case]:
    """Devices selected / report goal."""
    return [
        Case(f"{share:.1f}", fleets.with_rules(base, over_selection=share))
        for share in (1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
    ]


def report_goal(base: FleetSettings) -> list[Case]:
    """Reports that commit a round."""
    return [Case(str(goal), fleets.with_rules(base, report_goal=goal)) for goal in (5, 10, 20, 40)]


def buffered(base: FleetSettings) -> list[Case]:
    """Rounds that wait for their own devices, and rounds that count whoever reports."""
    return [Case(str(mode), fleets.with_rules(base, mode=mode)) for mode in Mode]


def bits(base: FleetSettings) -> list[Case]:
    """Bits of a value, where uplinks are slow."""
    training = replace(base.training, values=SMALL)
    rules = replace(base.task.rules, report_goal=10)
    return [
        Case(
            str(each),
            replace(
                base,
                step_s=1.0,
                training=training,
                task=replace(base.task, plan=replace(base.task.plan, bits=each), rules=rules),
            ),
            SLOWER,
        )
        for each in (8, 4, 2)
    ]


def masks(base: FleetSettings) -> list[Case]:
    """Who opens a private sum, and the share of turns whose process dies."""
    rules = replace(base.task.rules, report_goal=20, min_reports=10)
    return [
        Case(
            f"{aggregation}, {100 * deaths:.0f} %",
            replace(
                base,
                task=replace(base.task, aggregation=aggregation, rules=rules, least_count=10),
                faults=Faults(deaths=deaths),
            ),
        )
        for aggregation in (Aggregation.HELPER, Aggregation.SECAGG)
        for deaths in (0.0, 0.1, 0.2, 0.3)
    ]


STUDIES = {
    "over-selection": Study(
        "devices selected / report goal",
        over_selection,
        (
            ("round_min", "median round, minutes"),
            ("closed", "rounds closed, %"),
            ("wasted", "updates made for nothing, %"),
        ),
    ),
    "report-goal": Study(
        "report goal",
        report_goal,
        (
            ("rounds_a_day", "rounds a day"),
            ("round_min", "median round, minutes"),
            ("wasted", "updates made for nothing, %"),
        ),
    ),
    "buffered": Study(
        "rounds",
        buffered,
        (
            ("updates_an_hour", "updates counted an hour"),
            ("hours_to_1000", "hours to 1,000 updates"),
            ("wasted", "updates made for nothing, %"),
            ("behind", "mean staleness, rounds"),
        ),
    ),
    "bits": Study(
        "bits of a value",
        bits,
        (
            ("megabytes", "an update, MB"),
            ("upload_s", "median upload, s"),
            ("round_min", "median round, minutes"),
            ("drop_out", "drop-out, %"),
        ),
        lambda size: size.scaled(0.8, 0.5, 2),
    ),
    "masks": Study(
        "opened by, turns that die",
        masks,
        (
            ("rounds_a_day", "rounds committed a day"),
            ("round_min", "median round, minutes"),
            ("kilobytes", "an update, kB"),
            ("drop_out", "drop-out, %"),
        ),
        lambda size: size.scaled(0.6, 0.5, 2),
    ),
}


def played(study: Study, whole: Size, out: Path, processes: int) -> list[dict[str, Any]]:
    """Let all fleets of a study live, each in a folder: a row of figures each, by case and seed."""
    size = study.size(whole)
    rows = []
    with ProcessPoolExecutor(processes, get_context("spawn"), fleets.alone) as executor:
        for seed in range(size.seeds):
            base = replace(
                fleets.COMMON,
                seed=seed,
                days=size.days,
                population=replace(fleets.COMMON.population, devices=size.devices),
            )
            for case in study.cases(base):
                folder = out / f"{case.name.replace(', ', '-').replace(' %', '')}-{seed}"
                future = executor.submit(one, case, folder)
                rows.append((case.name, seed, future))
        played = []
        with console.progress("fleets", len(rows)) as advance:
            for name, seed, future in rows:
                played.append({"case": name, "seed": seed, **future.result()})
                advance(len(played))
    return played


def one(case: Case, folder: Path) -> Figures:
    """Let one fleet live in a folder: its figures."""
    settings = case.settings
    if case.uplink != 1.0:
        settings = with_slow_uplinks(settings, case.uplink, folder.with_suffix(".population"))
    with fleets.lived(settings, folder) as fleet:
        return figures_of(fleets.what_became(fleet, folder))


def with_slow_uplinks(settings: FleetSettings, slower: float, folder: Path) -> FleetSettings:
    """The same fleet, whose devices send so many times as slowly; `folder` is for its columns."""
    people = population.make(settings.population, 1, settings.seed)
    slow = replace(people, up=people.up / np.float32(slower))
    population.save(slow, folder)
    return replace(settings, population=replace(settings.population, folder=str(folder)))


def figures_of(it: tables.Lived) -> Figures:
    """What a fleet is asked for. Shares are per cent; nan: there is nothing to tell it from."""
    told = tables.summary(it, tables.tables(it))
    given = assignments(it.turns)
    behind = tables.staleness(it, given)
    counted = it.turns[tables.is_any(it.turns["status"], tables.Status.COUNTED)]
    hours = it.seconds / 3600.0
    ends = np.sort(given.ended[given.fate == COUNTED])
    wasted = (given.fate == TURNED_AWAY) & (given.reached >= 2)
    updates = np.array(behind["updates"], float)
    sent = counted["bytes_up"].astype(float)
    figures = {
        "turns": len(it.turns),
        "rounds": told.rounds_committed,
        "rounds_a_day": told.rounds_committed / (it.seconds / DAY_S),
        "closed": _percent(told.rounds_closed_share),
        "round_min": (told.round_duration_median_s or np.nan) / 60.0,
        "drop_out": _percent(told.drop_out_share),
        "wasted": 100.0 * float(wasted.mean()) if len(given) else np.nan,
        "updates": told.updates_counted,
        "updates_an_hour": told.updates_counted / hours,
        "hours_to_1000": float(ends[999]) / 3600.0 if len(ends) > 999 else np.nan,
        "behind": float(updates @ np.array(behind["rounds_behind"]) / updates.sum())
        if updates.sum()
        else np.nan,
        "upload_s": float(np.median(counted["ended"] - counted["trained"]))
        if len(counted)
        else np.nan,
        "megabytes": float(sent.mean()) / 1e6 if len(sent) else np.nan,
        "kilobytes": float(sent.mean()) / 1e3 if len(sent) else np.nan,
    }
    return {name: float(value) for name, value in figures.items()}


def table(study: Study, rows: Sequence[Mapping[str, Any]]) -> str:
    """The figures of a study in Markdown: the mean over seeds, and the least and the most."""
    names = [name for name, _ in study.shown]
    lines = [
        " | ".join(["", study.what, *(label for _, label in study.shown), "turns", ""]).strip(),
        "|" + "---|" * (len(names) + 2),
    ]
    for case in dict.fromkeys(row["case"] for row in rows):
        of = [row for row in rows if row["case"] == case]
        cells = [case, *(span([row[name] for row in of]) for name in names)]
        lines.append(f"| {' | '.join(cells)} | {sum(row['turns'] for row in of):,.0f} |")
    return "\n".join(lines)


def span(values: Sequence[float]) -> str:
    """Values of several seeds as one cell.

    >>> span([1.0, 2.0, 3.0]), span([2.0]), span([float("nan")])
    ('2.0 (1.0 to 3.0)', '2.0', '-')
    """
    known = [value for value in values if value == value]
    if not known:
        return "-"
    mean, low, high = (
        f"{number:.2f}" if abs(number) < 1 else f"{number:.1f}"
        for number in (sum(known) / len(known), min(known), max(known))
    )
    return mean if low == high else f"{mean} ({low} to {high})"


def _percent(share: float | None) -> float:
    return np.nan if share is None else 100.0 * share
