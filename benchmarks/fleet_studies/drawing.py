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
        panel.set_ylim(0, 1.15 * max([row[name] for row in rows if row[name] > 0], default=1.0))
        panel.set_title(label, fontsize=9, color=INK, loc="left")
        panel.set_xlabel(asked.what.rpartition(", ")[2], color=SOFT, fontsize=8)
    if len(groups) > 1:
        axes[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    figure.savefig(out)


def panels(count: int, width: float = 3.0) -> tuple["Figure", list["Axes"]]:
    """An empty picture of so many panels side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, count, figsize=(width * count, 2.7), dpi=150, layout="constrained", squeeze=False
    )
    for each in axes[0]:
        each.grid(axis="y", color=LINE)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=8, colors=SOFT)
    return figure, list(axes[0])


def rules(figures: Mapping[str, Any], out: Path) -> None:
    """Who never takes part under each rule, and how good the weights become for whom."""
    figure, axes = panels(3)
    bars, *curves = axes
    kinds = ("low", "middle", "high")
    for number, (rule, of) in enumerate(figures["rules"].items()):
        bias = of["bias"]
        never = [
            100 * share
            for by, value, share in zip(bias["by"], bias["value"], bias["never_share"], strict=True)
            if by == "class" and value in kinds
        ]
        never = [100 * of["dialect"]["never_share"], *never]
        at = [place + 0.4 * number - 0.2 for place in range(len(never))]
        bars.bar(at, never, 0.38, color=COLOURS[number], label=rule)
        for panel, who in zip(curves, ("dialect", "others"), strict=True):
            looks = [each for each in of["looks"] if each["who"] == who]
            panel.plot(
                [each["round"] for each in looks],
                [100 * each["top1"] / each["targets"] for each in looks],
                color=COLOURS[number],
                marker="o",
                markersize=3,
                linewidth=1.5,
                label=rule,
            )
    bars.set_xticks(range(1 + len(kinds)), ["no WiFi\nat home", *kinds])
    bars.set_title("never took part, %", fontsize=9, color=INK, loc="left")
    bars.set_xlabel("devices by class", color=SOFT, fontsize=8)
    bars.legend(frameon=False, fontsize=8, labelcolor=INK)
    titles = ("top-1 % of those without WiFi at home", "top-1 % of the others")
    for panel, title in zip(curves, titles, strict=True):
        panel.set_ylim(bottom=0)
        panel.set_title(title, fontsize=9, color=INK, loc="left")
        panel.set_xlabel(f"round of {figures['size']['goal']} updates", color=SOFT, fontsize=8)
    figure.savefig(out)


def attacks(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Top-1 of the last weights, by lie and limits."""
    figure, (axes,) = panels(1, 5.0)
    lies = list(dict.fromkeys(row["lie"] for row in rows))
    for number, norm in enumerate(dict.fromkeys(row["norm"] for row in rows)):
        own = [row["top1"] for row in rows if row["norm"] == norm]
        at = [place + 0.4 * number - 0.2 for place in range(len(lies))]
        axes.bar(at, own, 0.38, color=COLOURS[number], label=norm)
    before = rows[0]["top1_before"]
    axes.axhline(before, color=SOFT, linewidth=1, linestyle="--", label="before training")
    axes.set_xticks(range(len(lies)), [lie.replace("_", " ") for lie in lies])
    axes.set_title("top-1 % after training", fontsize=9, color=INK, loc="left")
    axes.set_xlabel("what a tenth of the devices send", color=SOFT, fontsize=8)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(out)
