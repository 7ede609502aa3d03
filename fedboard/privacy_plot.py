"""The plan's plot: epsilon against noise on the mean, for several report goals, as one SVG."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from device_runtime.errors import ConfigError
from fedboard import drawing, privacy_plan
from fedboard.privacy_plan import LITTLE, Plan, Question

EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
COLOURS = ("#7aa6d8", "#3b6ea5", "#1f3d5c", "#b3622e", "#7d3c98")
_TITLE = "noise on the mean of a round, by epsilon"


def svg(question: Question, plan: Plan) -> str:
    """A line for the plan's report goal, for others of the same population, and for the same goal
    in ten times the population.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "fedboard",
        "text.parse_math": False,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for colour, (label, plans) in zip(COLOURS, lines(question, plan), strict=False):
            noise = [each.noise_on_mean for each in plans]
            epsilons = [each.noise.epsilon for each in plans]
            axes.plot(epsilons, noise, color=colour, marker="o", markersize=4, label=label)
        axes.axhline(LITTLE, color="#888888", linewidth=1, linestyle=(0, (4, 4)))
        axes.annotate(
            f"{LITTLE:g} clips, as in published rounds",
            (EPSILONS[0], LITTLE),
            (0, 4),
            textcoords="offset points",
            color="#666666",
            size=9,
        )
        axes.set(xscale="log", yscale="log", ylabel="L2 norm, in clips")
        axes.set_xlabel(f"epsilon at delta {question.delta:g}, {question.rounds:,} rounds")
        axes.set_xticks(EPSILONS, [f"{each:g}" for each in EPSILONS])
        axes.minorticks_off()
        axes.set_title(_TITLE, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
        return drawing.whole(figure)


def is_plot(path: Path) -> bool:
    """Whether a file is a drawing of `svg`. Raises OSError."""
    return drawing.is_titled(path, _TITLE)


def lines(question: Question, plan: Plan) -> list[tuple[str, list[Plan]]]:
    """What is drawn: a label, and a plan for each epsilon that a noise within the bounds gives."""
    goal, phones = plan.report_goal, question.phones
    more = replace(question, population=10 * question.population)
    wanted = [(each, question) for each in (goal // 10, goal, 4 * goal) if 0 < each <= phones]
    wanted.append((goal, more))
    drawn = []
    for each, asked in wanted:
        separation = min(asked.rounds, asked.phones // each)
        fixed = replace(
            asked,
            report_goal=each,
            separation=separation,
            bits=plan.bits,
            compression=plan.compression,
            mechanism=plan.noise.mechanism,
        )
        label = f"{each:,} of {asked.population:,} phones, separation {separation:,}"
        unit = privacy_plan.choose(fixed)
        plans = []
        for epsilon in EPSILONS:
            with contextlib.suppress(ConfigError):  # it would take more noise than there can be
                plans.append(privacy_plan.with_epsilon(unit, epsilon))
        drawn.append((label, plans))
    return drawn
