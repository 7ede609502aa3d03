"""The report's plots: material -> inline SVG, without a script and in the page's own colours."""

import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from device_runtime.shown import rounded_up
from device_runtime.wire import RoundReport
from fedboard import score, spent
from fedboard.drawing import (
    BASELINE,
    BEFORE,
    INK,
    NETWORK,
    SOFT,
    figure_of,
    style,
    svg,
    whole_ticks,
)
from fedboard.readable import percent, size
from fedboard.report_material import Material, Pair, RoundMetrics, best_look
from model.recipe import Recipe

if TYPE_CHECKING:  # slow to import: only drawing pays for it
    from markupsafe import Markup


def plots(material: Material, compared: Pair | None) -> dict[str, "Markup"]:
    """Every plot the material allows, by name, as inline SVG."""
    drawn = {}
    with style():
        if material.metrics:
            drawn["loss"] = _loss(material.metrics)
        if any(row.train_top1 is not None for row in material.metrics):
            drawn["clients"] = _clients(material.metrics)
        if any(row.top1 is not None for row in material.metrics):
            drawn["recall"] = _recall(material.metrics)
        if material.settings and any(row.epsilon is not None for row in material.metrics):
            drawn["spent"] = _spent(material.metrics, material.settings.recipe)
        if material.systems:
            drawn["top1"], drawn["top3"] = (
                _systems(material.systems, which) for which in ("top1", "top3")
            )
        if material.rounds:
            drawn["bytes"] = _bytes_by_round(material.rounds)
        if compared:
            drawn["users"] = _histogram(compared, material.systems)
            if compared.rival:
                drawn["scatter"] = _scatter(compared, material.systems)
    return drawn


def _loss(metrics: tuple[RoundMetrics, ...]) -> "Markup":
    figure, axes = figure_of(230)
    rounds, losses = [row.round for row in metrics], np.array([row.loss for row in metrics])
    window = max(1, len(losses) // 20)
    spread = _band(axes, metrics, "loss", BEFORE)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(rounds, losses, color=BEFORE, linewidth=1, alpha=0.7 if window > 1 else 1)
    axes.plot(rounds[window - 1 :], smooth, color=NETWORK, marker="o" if len(rounds) == 1 else "")
    axes.set(xlabel="round", ylabel="loss, nats a token")
    whole_ticks(axes.xaxis)
    axes.grid(axis="x", visible=False)
    text = f"From {losses[0]:.2f} in round {rounds[0]} to {losses[-1]:.2f} in round {rounds[-1]}."
    if spread:
        low, middle, high = spread[-1][1:]
        text += (
            f" In the last round the median client has {middle:.2f}, eight of ten lie between "
            f"{low:.2f} and {high:.2f}."
        )
    return svg(figure, "loss", "Training loss by round, and its spread over clients", text)


def _clients(metrics: tuple[RoundMetrics, ...]) -> "Markup":
    figure, axes = figure_of(230)
    spread = _band(axes, metrics, "train_top1", BEFORE, 100.0)
    own = [(row.round, 100 * row.train_top1) for row in metrics if row.train_top1 is not None]
    axes.plot(*zip(*own, strict=True), color=NETWORK, marker="o" if len(own) == 1 else "")
    axes.set(xlabel="round", ylabel="top-1 while training, %")
    axes.set_ylim(bottom=0)
    whole_ticks(axes.xaxis)
    axes.grid(axis="x", visible=False)
    text = f"All clients of round {own[-1][0]} together: {own[-1][1]:.1f} %."
    if spread:
        low, middle, high = spread[-1][1:]
        text += (
            f" The median client has {middle:.1f} %, eight of ten lie between {low:.1f} and "
            f"{high:.1f} %."
        )
    return svg(figure, "clients", "Top-1 of the clients that train, by round", text)


def _band(
    axes: Any, metrics: tuple[RoundMetrics, ...], name: str, colour: str, scale: float = 1.0
) -> list[tuple[float, ...]]:
    """Draw percentiles 10 to 90 of a number, and a thin line at the median, by round.

    Returns (round, p10, p50, p90), scaled, of each round that has them.
    """
    spread = [
        (row.round, *(scale * value for value in values))
        for row in metrics
        if None not in (values := [getattr(row, f"{name}_p{part}") for part in (10, 50, 90)])
    ]
    if spread:
        rounds, low, middle, high = zip(*spread, strict=True)
        axes.fill_between(rounds, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(rounds, middle, color=colour, linewidth=1, linestyle=(0, (4, 3)))
    return spread


def _recall(metrics: tuple[RoundMetrics, ...]) -> "Markup":
    figure, axes = figure_of(230)
    said = []
    spread = _band(axes, metrics, "top1", NETWORK, 100.0)
    for which, label, colour in (("top3", "top-3", BEFORE), ("top1", "top-1", NETWORK)):
        points = [
            (row.round, 100 * getattr(row, which))
            for row in metrics
            if getattr(row, which) is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3.5)
            axes.annotate(
                f"{label} {points[-1][1]:.1f}",
                points[-1],
                (0, 8),
                textcoords="offset points",
                ha="right",
                color=colour,
                weight="bold",
            )
            said.append(f"{label} ends at {points[-1][1]:.1f} % in round {points[-1][0]}")
    if spread:
        number, low, middle, high = spread[-1]
        said.append(
            f"in round {number} the median user has {middle:.1f} % top-1, eight of ten lie between "
            f"{low:.1f} and {high:.1f} %"
        )
    best = best_look(metrics)
    if best is not None:
        axes.axvline(best.round, color=SOFT, linewidth=1, linestyle=(0, (1, 3)))
        said.append(f"top-1 is best in round {best.round}")
    axes.set(xlabel="round", ylabel="recall, %")
    axes.set_ylim(bottom=0)
    axes.margins(y=0.15)
    whole_ticks(axes.xaxis)
    axes.grid(axis="x", visible=False)
    return svg(figure, "recall", "Recall on validation users by round", "; ".join(said))


def _spent(metrics: tuple[RoundMetrics, ...], recipe: Recipe) -> "Markup":
    figure, axes = figure_of(230)
    points = [(row.round, row.epsilon) for row in metrics if row.epsilon is not None]
    axes.plot(*zip(*points, strict=True), color=NETWORK, marker="o" if len(points) == 1 else "")
    number, epsilon = points[-1]
    text = f"After round {number}: epsilon {rounded_up(epsilon)} at delta {recipe.privacy.delta:g}."
    if recipe.privacy.epsilon:
        axes.axhline(recipe.privacy.epsilon, color=SOFT, linewidth=1, linestyle=(0, (1, 3)))
        text += f" The budget is {recipe.privacy.epsilon:g}."
    goal = spent.stands_for(recipe)
    whose = ""
    if goal:
        whose = f"of a fleet of {goal:,} reports a round"
        axes.set_title(f"{whose}, not of these {recipe.cohort:,} clients", size=10, color=SOFT)
        text += (
            f" It is that {whose}: {recipe.cohort:,} clients stood for it, with the noise scaled "
            f"by {recipe.cohort:,} / {goal:,}."
        )
    axes.set(xlabel="round", ylabel=f"epsilon at delta {recipe.privacy.delta:g}")
    axes.set_ylim(bottom=0)
    whole_ticks(axes.xaxis)
    axes.grid(axis="x", visible=False)
    return svg(figure, "spent", "Privacy spent by round", text)


def _systems(systems: dict[str, score.Scored], which: str) -> "Markup":
    label = which.replace("top", "top-")
    figure, axes = figure_of(52 + 30 * len(systems))
    for place, (stem, scored) in enumerate(reversed(systems.items())):
        value = 100 * getattr(scored.summary, which)
        low, high = (100 * end for end in getattr(scored.summary, f"{which}_interval"))
        colour = _colour(stem, scored)
        axes.plot(
            [low, high],
            [place, place],
            color=colour,
            linewidth=3,
            solid_capstyle="round",
            alpha=0.45,
        )
        axes.plot([value], [place], color=colour, marker="o", markersize=7)
        axes.annotate(
            f"{value:.1f}",
            (value, place),
            (0, 7),
            textcoords="offset points",
            ha="center",
            color=colour,
            weight="bold",
            size=10.5,
        )
    axes.set_yticks(
        range(len(systems)),
        [_wrapped(scored.name) for scored in reversed(systems.values())],
        color=INK,
        size=10.5,
    )
    axes.set_ylim(-0.6, len(systems) - 0.3)
    axes.set(xlabel=f"{label} recall, %, and 95 % interval")
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    said = "; ".join(
        f"{scored.name}: {percent(getattr(scored.summary, which))} %" for scored in systems.values()
    )
    return svg(figure, f"systems-{which}", f"{label} recall of every system", said)


def _bytes_by_round(rounds: tuple[RoundReport, ...]) -> "Markup":
    figure, axes = figure_of(230)
    numbers = np.array([round.round for round in rounds], float)
    up, down = (
        np.array([getattr(round, way) for round in rounds], float) / 1e6
        for way in ("bytes_up", "bytes_down")
    )
    axes.bar(numbers - 0.2, up, 0.38, color=NETWORK, label="up (updates)")
    axes.bar(numbers + 0.2, down, 0.38, color=BEFORE, label="down (checkpoints, plans)")
    axes.set(xlabel="round", ylabel="MB on the socket")
    whole_ticks(axes.xaxis)
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside upper left", ncols=2, fontsize=10.5, handlelength=1, labelcolor=SOFT)
    text = f"All rounds together: {size(1e6 * up.sum())} up, {size(1e6 * down.sum())} down."
    return svg(figure, "bytes", "Bytes up and down by round", text)


def _histogram(compared: Pair, systems: dict[str, score.Scored]) -> "Markup":
    figure, axes = figure_of(270)
    shares = 100 * np.array(compared.users)  # [users, 2]: rival, network
    edges = np.histogram_bin_edges(shares[np.isfinite(shares)], bins=16)
    if compared.rival:
        rival = systems[compared.rival]
        axes.hist(
            shares[:, 0],
            edges,
            histtype="stepfilled",
            color=_colour(compared.rival, rival),
            alpha=0.35,
            label=rival.name,
        )
    colour = NETWORK if compared.rival else _colour(compared.network, systems[compared.network])
    axes.hist(
        shares[:, 1],
        edges,
        histtype="step",
        color=colour,
        linewidth=2.2,
        label=systems[compared.network].name,
    )
    axes.set(xlabel="top-1 recall of a user, %", ylabel="users")
    whole_ticks(axes.yaxis)
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside upper left", fontsize=10.5, handlelength=1.2, labelcolor=SOFT)
    median = float(np.median(shares[:, 1]))
    return svg(
        figure,
        "users",
        "Test users by top-1 recall",
        f"{len(shares)} users; the median user has {median:.1f} % with the network.",
    )


def _scatter(compared: Pair, systems: dict[str, score.Scored]) -> "Markup":
    figure, axes = figure_of(330)
    shares = 100 * np.array(compared.users)
    low, high = math.floor(shares.min()) - 1, math.ceil(shares.max()) + 1
    axes.plot([low, high], [low, high], color=SOFT, linewidth=1, linestyle=(0, (4, 4)))
    above = shares[:, 1] > shares[:, 0]
    axes.scatter(*shares[above].T, s=26, color=NETWORK, alpha=0.65, linewidths=0)
    axes.scatter(
        *shares[~above].T,
        s=26,
        color=_colour(compared.rival, systems[compared.rival]),
        alpha=0.65,
        linewidths=0,
    )
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set_xlabel(f"{systems[compared.rival].name}, top-1 %")
    axes.set_ylabel(f"{systems[compared.network].name}, top-1 %")
    axes.annotate(
        "network better",
        (0.04, 0.95),
        xycoords="axes fraction",
        va="top",
        color=NETWORK,
        weight="bold",
        size=10.5,
    )
    text = (
        f"Each dot is a test user. The network is better for {compared.better} of {len(shares)}, "
        f"worse for {compared.worse}."
    )
    return svg(figure, "scatter", "Top-1 recall of each user under both systems", text)


def _colour(stem: str, scored: score.Scored) -> str:
    if scored.kind == "baseline":
        return BASELINE
    return BEFORE if stem == "before" else NETWORK


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 17)[:3]) or "?"
