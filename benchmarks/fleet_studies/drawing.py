"""Drawing: the figures of a study -> its picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.fleet_studies.standins import Study

if TYPE_CHECKING:  # slow to import: only drawing pays for it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, LINE = "#1f2328", "#59636e", "#e3e6ea"
COLOURS = ("#0b6e99", "#b35900", "#7a5cc2", "#2f9e8f")


def study(asked: Study, rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """A panel for each figure: means over seeds, and bars from the least to the most."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    groups = list(dict.fromkeys(case.rpartition(", ")[0] for case in cases))
    places = list(dict.fromkeys(case.rpartition(", ")[2] for case in cases))
    figure, axes = panels(len(asked.shown))
    for panel, (name, label) in zip(axes, asked.shown, strict=True):
        for number, group in enumerate(groups):
            own = [case for case in cases if case.rpartition(", ")[0] == group]
            at = [places.index(case.rpartition(", ")[2]) for case in own]
            values = [[row[name] for row in rows if row["case"] == case] for case in own]
            means = [sum(each) / len(each) for each in values]
            below = [mean - min(each) for mean, each in zip(means, values, strict=True)]
            above = [max(each) - mean for mean, each in zip(means, values, strict=True)]
            panel.errorbar(
                at,
                means,
                yerr=(below, above),
                color=COLOURS[number],
                marker="o",
                markersize=4,
                capsize=3,
                linewidth=1.5,
                label=group,
            )
        panel.set_xticks(range(len(places)), places)
        panel.set_xlim(-0.4, len(places) - 0.6)
        panel.set_ylim(bottom=0)
        panel.set_title(label, fontsize=9, color=INK, loc="left")
        panel.set_xlabel(asked.what.rpartition(", ")[2], color=SOFT, fontsize=8)
    if len(groups) > 1:
        axes[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    figure.savefig(out)


def panels(count: int) -> tuple["Figure", list["Axes"]]:
    """An empty picture of so many panels side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, count, figsize=(3.0 * count, 2.7), dpi=150, layout="constrained", squeeze=False
    )
    for each in axes[0]:
        each.grid(axis="y", color=LINE)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=8, colors=SOFT)
    return figure, list(axes[0])
