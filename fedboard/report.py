"""The report: a run's folder -> one self-contained page, without scripts or outside resources.

A part of the folder that is missing leaves its section out. The same files give the same bytes.
"""

from pathlib import Path

from device_runtime import causes, config
from device_runtime.causes import Step
from device_runtime.wire import FUNNEL, RoundReport, lost
from fedboard import page
from fedboard.page import Bar, bars
from fedboard.report_material import (
    NETWORKS,
    Material,
    Totals,
    best_look,
    pair,
    read,
    stopped,
)
from fedboard.report_plots import plots
from fedboard.run import Run

# by step of the funnel: those it is short of, where devices fall out before it
LOST_BEFORE = {"assigned": Step.REFUSED, "counted": Step.DROPPED}


def build(run: Run) -> Path:
    """Write `run.report` from what the run's folder holds; returns its path.

    Raises RunError for a folder without any part of a run, and for a damaged part, naming the file.
    """
    material = read(run)
    page.write(run.report, lambda: render(run.path.resolve().name, material))
    return run.report


def funnel(rounds: tuple[RoundReport, ...]) -> list[Bar]:
    """All rounds together: those left after each step, and between the steps the lost ones.

    Each cause has its bar before the step where they fell out, the most frequent first.
    """

    rows: list[tuple[str, int, bool]] = []
    for step in FUNNEL:
        fallen = lost(rounds, LOST_BEFORE[step]) if step in LOST_BEFORE else []
        rows += [(cause, count, True) for cause, count in fallen]
        rows.append((step, sum(getattr(round, step) for round in rounds), False))
    longest = max(count for _, count, _ in rows)
    return [
        Bar(causes.label(name), count, count / longest if longest > 0 else 0.0, is_lost)
        for name, count, is_lost in rows
    ]


def strip(words: tuple[tuple[str, float], ...]) -> list[tuple[str, float, bool]]:
    """Three suggestions as the keyboard shows them, the best in the centre.

    Each is its word, its probability and whether it is the best.

    >>> strip((("you", 0.5), ("it", 0.2), ("me", 0.1)))
    [('it', 0.2, False), ('you', 0.5, True), ('me', 0.1, False)]
    """
    best_first = [(word, probability, i == 0) for i, (word, probability) in enumerate(words[:3])]
    return [*best_first[1:2], *best_first[:1], *best_first[2:]]


def render(name: str, material: Material) -> str:
    """The page of a run of that name."""
    systems, totals = material.systems, material.totals or Totals()
    baselines = [scored for scored in systems.values() if scored.kind == "baseline"]
    headline = next((stem for stem in NETWORKS if stem in systems), None)
    compared = pair(systems)
    return page.render(
        "report.html.j2",
        {"strip3": strip},
        name=name,
        settings=material.settings,
        recipe=config.to_toml(material.settings.recipe) if material.settings else "",
        metrics=material.metrics,
        looks=[row for row in material.metrics if row.top1 is not None],
        best=best_look(material.metrics),
        stopped=stopped(material.metrics, material.settings),
        corpus=material.corpus,
        systems=systems,
        headline=systems[headline] if headline else None,
        best_baseline=max(baselines, key=lambda scored: scored.summary.top1, default=None),
        best_top1=max((scored.summary.top1 for scored in systems.values()), default=0.0),
        rounds=material.rounds,
        funnel=funnel(material.rounds) if material.rounds else [],
        pair=compared,
        examples=material.examples,
        totals=totals,
        privacy=material.privacy,
        device_limits=material.device_limits,
        time=bars(totals.seconds),
        memory=bars(totals.memory_mb),
        sizes=bars({name: float(count) for name, count in totals.sizes.items()}),
        plots=plots(material, compared),
    )
