"""Recall on validation users by round, of several runs in one picture.

python benchmarks/recall_plot.py runs/s1 runs/s2 --level "all text in one place=21.7" --out
docs/recall.png
"""

import argparse
import sys
from pathlib import Path

from device_runtime.errors import FedboardError
from fedboard import report_material
from fedboard.run import Run

INK, SOFT, SEEDS, LEVEL = "#1f2328", "#59636e", ("#0b6e99", "#2f9e8f", "#7a5cc2"), "#b35900"


def level(text: str) -> tuple[str, float]:
    """`NAME=PERCENT` as its two parts. Raises ValueError for anything else.

    >>> level("all text=21.0")
    ('all text', 21.0)
    """
    name, _, share = text.rpartition("=")
    return name, float(share)


def main() -> None:
    """Measure, and print what the head of this file says."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of `fedboard train`")
    parser.add_argument(
        "--level", action="append", type=level, default=[], help="a line across, NAME=PERCENT"
    )
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    asked = parser.parse_args()
    figure, axes = pyplot.subplots(figsize=(8, 3.6), dpi=150, layout="constrained")
    for i, path in enumerate(asked.runs):
        run = report_material.read(Run(path))
        looks = [row for row in run.metrics if row.top1 is not None]
        label = f"federated, seed {run.settings.recipe.seed}" if run.settings else path.name
        axes.plot(
            [row.round for row in looks],
            [100 * row.top1 for row in looks if row.top1 is not None],
            color=SEEDS[i % len(SEEDS)],
            marker="o",
            markersize=4,
            linewidth=1.6,
            label=label,
        )
    for name, share in asked.level:
        axes.axhline(share, color=LEVEL, linewidth=1.4, linestyle="--")
        axes.annotate(
            f"{name}: {share:.1f} %",
            (1, share),
            (0, 4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            color=LEVEL,
        )
    axes.set_xlabel("round of 20 clients", color=SOFT)
    axes.set_ylabel("top-1 on validation users, %", color=SOFT)
    axes.set_ylim(bottom=10, top=max([share for _, share in asked.level] or [20]) + 1.2)
    axes.legend(frameon=False, loc="lower right", labelcolor=INK)
    axes.grid(axis="y", color="#e3e6ea")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(asked.out)


if __name__ == "__main__":
    try:
        main()
    except FedboardError as error:
        sys.exit(str(error))
