"""The plots of a fleet's report: its tables -> inline SVG, in the page's own colours."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from device_runtime.shown import rounded_up
from fedboard.drawing import (
    BASELINE,
    BEFORE,
    INK,
    LOST,
    NETWORK,
    SOFT,
    figure_of,
    style,
    svg,
    whole_ticks,
)
from fedboard.readable import percent, size
from fleet.figures import Summary, Table, by_row

if TYPE_CHECKING:  # slow to import: only drawing pays for it
    from markupsafe import Markup

# what a fleet of phones was seen to do: Bonawitz et al. 2019, arXiv:1902.01046
DROP_OUT, SWING = (0.06, 0.10), 4.0
MOST_POINTS = 240  # of one plot: more rounds than these are drawn by stretches of time
LEAST_SHARE = 0.01  # of the devices: smaller groups are in the table alone
_DASHED, _DOTTED = (0, (4, 3)), (0, (1, 3))


def plots(told: Summary, tables: Mapping[str, Table]) -> dict[str, "Markup"]:
    """Every plot that the tables allow, by name, as inline SVG."""
    drawn: dict[str, Markup] = {}
    over = [
        place
        for place, phase in enumerate(tables["rounds"]["phase"])
        if phase in ("committed", "abandoned") and tables["rounds"]["selected"][place]
    ]
    with style():
        drawn["eligible"] = _eligible(tables["eligible"])
        if len(tables["eligible_by_hour_of_day"]["hour_of_day_utc"]) == 24:
            drawn["day"] = _day(tables["eligible_by_hour_of_day"], told.eligible_swing_ratio)
        if over:
            drawn["durations"] = _durations(_rows(tables["rounds"], over))
            drawn["cohorts"] = _cohorts(_rows(tables["rounds"], over))
        if told.assignments:
            drawn["drop_out"] = _drop_out(tables["drop_out_by_hour"], told.drop_out_share)
        if sum(tables["traffic"]["bytes_up"]) + sum(tables["traffic"]["bytes_down"]):
            drawn["bytes"] = _bytes(tables["traffic"], told)
        if told.updates_counted:
            drawn["participation"] = _participation(tables["participation"])
            drawn["never"] = _never(tables["bias"])
        if any(each is not None for each in tables["rounds"]["epsilon"]):
            drawn["epsilon"] = _epsilon(tables["rounds"], told.delta)
        if told.mode == "buffered" and tables["staleness"]["updates"]:
            drawn["staleness"] = _staleness(tables["staleness"])
        if any(who == "everybody" for who in tables["accuracy"]["messages_of"]):
            drawn["accuracy"] = _accuracy(tables["accuracy"])
    return drawn


def _rows(table: Table, places: Sequence[int]) -> dict[str, list[Any]]:
    return {name: [column[place] for place in places] for name, column in table.items()}


# who could


def _eligible(table: Table) -> "Markup":
    figure, axes = figure_of(230)
    days = (np.array(table["hour"]) + 0.5) / 24
    for name, colour, dashes, label in (
        ("charging", BASELINE, "-", "charging"),
        ("unmetered", BEFORE, "-", "on WiFi"),
        ("idle", SOFT, _DOTTED, "idle"),
    ):
        values = 100 * np.array(table[name])
        axes.plot(days, values, color=colour, linewidth=1.2, linestyle=dashes, label=label)
    share = 100 * np.array(table["all_three"])
    axes.fill_between(days, share, color=NETWORK, alpha=0.18, linewidth=0)
    axes.plot(days, share, color=NETWORK, label="all three", marker="o" if len(days) == 1 else "")
    axes.set(xlabel="virtual day", ylabel="devices, %", ylim=(0, 100), xlim=(0, max(days) + 0.02))
    axes.grid(axis="x", visible=False)
    _legend(figure, 4)
    return svg(
        figure,
        "eligible",
        "Share of devices that charge, are on WiFi, are idle, and are all three, by hour",
        f"All three hold on {share.mean():.1f} % of the devices on average, on {share.min():.1f} % "
        f"in the worst hour and {share.max():.1f} % in the best.",
    )


def _day(table: Table, swing: float | None) -> "Markup":
    figure, axes = figure_of(230)
    hours, share = np.array(table["hour_of_day_utc"]), 100 * np.array(table["all_three"])
    best, worst = int(share.argmax()), int(share.argmin())
    axes.bar(hours, share, 0.8, color=BEFORE, alpha=0.45, linewidth=0)
    axes.bar(hours[[best, worst]], share[[best, worst]], 0.8, color=NETWORK, linewidth=0)
    axes.axhline(
        share[best] / SWING,
        color=LOST,
        linewidth=1.2,
        linestyle=_DASHED,
        label=f"the best hour / {SWING:.0f}, as published",
    )
    for hour in (best, worst):
        axes.annotate(
            f"{share[hour]:.1f}",
            (hours[hour], share[hour]),
            (0, 2),
            textcoords="offset points",
            ha="center",
            color=INK,
            size=10.5,
        )
    axes.set(xlabel="hour of a weekday, UTC", ylabel="devices that may train, %")
    axes.set_xticks(range(0, 24, 4))
    axes.set_xlim(-0.7, 23.7)
    axes.margins(y=0.15)
    axes.grid(axis="x", visible=False)
    _legend(figure, 1)
    text = (
        f"From {share.min():.1f} % of the devices at {hours[worst]}:00 to {share.max():.1f} % at "
    )
    text += f"{hours[best]}:00"
    text += f": {swing:.1f} times as many" if swing else ""
    return svg(
        figure,
        "day",
        "Share of devices that may train, by hour of the day",
        f"{text}. Published: {SWING:.0f} times.",
    )


# rounds


def _durations(rounds: Table) -> "Markup":
    figure, axes = figure_of(230)
    days = np.array(rounds["opened_h"]) / 24
    minutes = np.array(rounds["duration_s"]) / 60
    committed = np.array(rounds["phase"]) == "committed"
    said = []
    for which, colour, label in (
        (committed, NETWORK, "committed"),
        (~committed, LOST, "abandoned"),
    ):
        if not which.any():
            continue
        said.append(f"{which.sum()} {label}, the median one took {np.median(minutes[which]):.1f}")
        if which.sum() > MOST_POINTS:
            middle, parts = _stretches(days[which], minutes[which])
            axes.fill_between(middle, parts[0], parts[2], color=colour, alpha=0.2, linewidth=0)
            axes.plot(middle, parts[1], color=colour, label=label)
        else:
            axes.scatter(days[which], minutes[which], s=14, color=colour, linewidths=0, label=label)
    axes.set(xlabel="virtual day", ylabel="minutes a round")
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(axis="x", visible=False)
    _legend(figure, 2)
    return svg(
        figure,
        "durations",
        "How long rounds took, in minutes",
        f"{' minutes; '.join(said)} minutes.",
    )


def _cohorts(rounds: Table) -> "Markup":
    figure, axes = figure_of(230)
    days = np.array(rounds["opened_h"]) / 24
    said = []
    for name, colour, label in (
        ("selected", BEFORE, "got work"),
        ("reported", BASELINE, "reported"),
        ("counted", NETWORK, "counted"),
    ):
        values = np.array(rounds[name], float)
        middle, parts = days, values
        if len(days) > MOST_POINTS:
            middle, quantiles = _stretches(days, values)
            parts = quantiles[1]
        axes.plot(middle, parts, color=colour, linewidth=1.6, marker=".", markersize=4, label=label)
        said.append(f"{values.mean():.1f} {label}")
    axes.plot(days, rounds["goal"], color=SOFT, linewidth=1, linestyle=_DOTTED, label="goal")
    axes.set(xlabel="virtual day", ylabel="devices a round")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(axis="x", visible=False)
    _legend(figure, 4)
    return svg(
        figure,
        "cohorts",
        "Devices that got work, reported and counted, by round",
        f"In the mean round {', '.join(said)}.",
    )


def _stretches(
    at: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentiles 10, 50 and 90 of values in stretches of time: the middles of those that have any,
    [stretches], and the percentiles, [3, stretches].
    """
    edges = np.linspace(0, max(at.max(), 1e-9), MOST_POINTS // 2 + 1)
    place = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, len(edges) - 2)
    used = np.unique(place)
    parts = np.array([np.percentile(values[place == each], (10, 50, 90)) for each in used]).T
    return (edges[used] + edges[used + 1]) / 2, parts


def _drop_out(table: Table, share: float | None) -> "Markup":
    figure, axes = figure_of(230)
    hours = np.array(table["hour_of_day_utc"])
    many, lost = (np.array(table[name], float) for name in ("assignments", "dropped_out"))
    by_hour = np.divide(100 * lost, many, out=np.full(24, math.nan), where=many > 0)
    low, high = (100 * end for end in DROP_OUT)
    published = f"published: {low:.0f} to {high:.0f} %"
    axes.axhspan(low, high, color=BASELINE, alpha=0.22, linewidth=0, label=published)
    axes.bar(hours, by_hour, 0.8, color=LOST, alpha=0.55, linewidth=0)
    if share is not None:
        axes.axhline(100 * share, color=LOST, linewidth=1.6, label="of the whole run")
    axes.set(xlabel="hour of the day in which work was given, UTC", ylabel="dropped out, %")
    axes.set_xticks(range(0, 24, 4))
    axes.set_xlim(-0.7, 23.7)
    axes.set_ylim(0, max(1.3 * high, 1.1 * float(np.nanmax(by_hour, initial=0.0))))
    axes.grid(axis="x", visible=False)
    _legend(figure, 2)
    return svg(
        figure,
        "drop_out",
        "Share of devices with work that dropped out, by hour of the day",
        f"{percent(share)} % of all that got work; published: {low:.0f} to {high:.0f} %.",
    )


# traffic, privacy, staleness, accuracy


def _bytes(table: Table, told: Summary) -> "Markup":
    figure, axes = figure_of(230)
    days = (np.array(table["hour"]) + 0.5) / 24
    for name, colour, label in (
        ("bytes_up", NETWORK, "up (updates)"),
        ("bytes_down", BEFORE, "down (checkpoints)"),
    ):
        megabytes = np.array(table[name], float) / 1e6
        axes.fill_between(days, megabytes, step="mid", color=colour, alpha=0.25, linewidth=0)
        axes.step(days, megabytes, where="mid", color=colour, linewidth=1.4, label=label)
    axes.set(xlabel="virtual day", ylabel="MB an hour")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(axis="x", visible=False)
    _legend(figure, 2)
    return svg(
        figure,
        "bytes",
        "Bytes up and down by hour",
        f"All together: {size(told.bytes_up)} up, {size(told.bytes_down)} down.",
    )


def _epsilon(rounds: Table, delta: float | None) -> "Markup":
    figure, axes = figure_of(230)
    points = [
        ((opened + seconds / 3600) / 24, epsilon)
        for opened, seconds, epsilon in zip(
            rounds["opened_h"], rounds["duration_s"], rounds["epsilon"], strict=True
        )
        if epsilon is not None
    ]
    days, spent = zip(*points, strict=True)
    axes.step(days, spent, where="post", color=NETWORK, marker="o" if len(days) == 1 else "")
    of = f" at delta {delta:g}" if delta else ""
    axes.set(xlabel="virtual day", ylabel=f"epsilon{of}")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(axis="x", visible=False)
    text = f"After {days[-1]:.1f} days: epsilon {rounded_up(spent[-1])}{of}."
    return svg(figure, "epsilon", "Privacy spent over virtual days", text)


def _staleness(table: Table) -> "Markup":
    figure, axes = figure_of(230)
    behind, many = np.array(table["rounds_behind"]), np.array(table["updates"], float)
    axes.bar(behind, 100 * many / many.sum(), 0.8, color=NETWORK, linewidth=0)
    axes.set(xlabel="rounds behind", ylabel="counted updates, %")
    whole_ticks(axes.xaxis)
    axes.grid(axis="x", visible=False)
    mean = float((behind * many).sum() / many.sum())
    return svg(
        figure,
        "staleness",
        "Counted updates by how many rounds they were behind",
        f"{mean:.2f} rounds on average, {behind[many > 0].max()} at most; "
        f"{100 * many[0] / many.sum():.1f} % were of the round that counted them.",
    )


def _accuracy(table: Table) -> "Markup":
    figure, axes = figure_of(230)
    rows = [
        (hours, 100 * top1, 100 * top3)
        for hours, who, top1, top3 in zip(
            table["made_at_h"], table["messages_of"], table["top1"], table["top3"], strict=True
        )
        if who == "everybody" and top1 is not None
    ]
    hours, top1, top3 = (np.array(column) for column in zip(*rows, strict=True))
    for values, label, colour in ((top3, "top-3", BEFORE), (top1, "top-1", NETWORK)):
        axes.plot(hours, values, color=colour, marker="o", markersize=3.5)
        axes.annotate(
            f"{label} {values[-1]:.1f}",
            (hours[-1], values[-1]),
            (0, 8),
            textcoords="offset points",
            ha="right",
            color=colour,
            weight="bold",
        )
    axes.set(xlabel="virtual hours", ylabel="recall, %")
    axes.set_ylim(bottom=0)
    axes.margins(y=0.15)
    axes.grid(axis="x", visible=False)
    return svg(
        figure,
        "accuracy",
        "Recall on messages held back from training, over virtual hours",
        f"top-1 goes from {top1[0]:.1f} to {top1[-1]:.1f} % in {hours[-1]:.1f} hours.",
    )


# who takes part


def _participation(table: Table) -> "Markup":
    figure, axes = figure_of(230)
    times, share = np.array(table["times_counted"]), 100 * np.array(table["share"])
    axes.bar(times, share, 0.8, color=[LOST if each == 0 else NETWORK for each in times])
    axes.set(xlabel="updates of a device that counted", ylabel="devices, %")
    whole_ticks(axes.xaxis)
    axes.grid(axis="x", visible=False)
    most = int(times.max())
    return svg(
        figure,
        "participation",
        "Devices by how often they counted",
        f"{100 * _share_of_none(table):.1f} % never did; the most heard counted {most} times.",
    )


def _share_of_none(table: Table) -> float:
    return sum(
        share
        for times, share in zip(table["times_counted"], table["share"], strict=True)
        if times == 0
    )


def _never(bias: Table) -> "Markup":
    rows = [
        (f"{row['by']}: {row['value']}", 100 * row["never_share"])
        for row in by_row(bias)
        if row["by"] != "all" and row["share_of_devices"] >= LEAST_SHARE
    ]
    whole = 100 * bias["never_share"][0]
    figure, axes = figure_of(60 + 19 * len(rows))
    places = np.arange(len(rows))[::-1]
    shares = np.array([share for _, share in rows])
    axes.barh(places, shares, 0.72, color=LOST, alpha=0.6, linewidth=0)
    axes.axvline(whole, color=INK, linewidth=1, linestyle=_DASHED)
    for place, share in zip(places, shares, strict=True):
        axes.annotate(
            f"{share:.1f}",
            (share, place),
            (3, 0),
            textcoords="offset points",
            va="center",
            size=10.5,
            color=INK,
        )
    axes.set_yticks(places, [name for name, _ in rows], color=INK, size=10.5)
    axes.set(xlabel=f"never took part, % (all devices: {whole:.1f})")
    axes.margins(x=0.15)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    return svg(
        figure,
        "never",
        "Share of devices that never took part, by class, time zone and language",
        "; ".join(f"{name}: {share:.1f} %" for name, share in rows),
    )


def _legend(figure: Any, columns: int) -> None:
    figure.legend(
        loc="outside upper left",
        ncols=columns,
        fontsize=10.5,
        handlelength=1,
        columnspacing=1.2,
        labelcolor=SOFT,
    )
