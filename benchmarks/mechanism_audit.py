"""Mechanism audit: what a thousand canaries can show of the noise, beside what is claimed of it.

    python -m benchmarks.mechanism_audit [--claims 2 4] [--plot FILE]

Each claim with the noise that it takes, and with a tenth of it, which the bound must find out.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from device_runtime.noise import Mechanism
from fedboard import console
from fedboard.mechanism_audit import CONFIDENCE, Result, Setting, audit

CUTS = (1.0, 0.1)
KEPT, BROKEN, INK = "#0b7a75", "#b3261e", "#1f2328"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="lower bounds on epsilon beside claims of it")
    parser.add_argument("--claims", type=float, nargs="+", default=[2.0, 4.0])
    parser.add_argument("--canaries", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path, help="bounds and claims, as a picture")
    asked = parser.parse_args()
    results, table = [], []
    for mechanism in (Mechanism.BLT, Mechanism.TREE, Mechanism.GAUSSIAN):
        for claim in asked.claims:
            for cut in CUTS:
                since = time.monotonic()
                of = Setting(claim, mechanism, cut=cut, canaries=asked.canaries)
                result = audit(of, np.random.default_rng(asked.seed))
                results.append((f"{mechanism}, claim {claim:g}", result))
                table.append([str(mechanism), *_row(result), f"{time.monotonic() - since:.1f}"])
    console.table(
        f"{asked.canaries:,} canaries, bounds with {CONFIDENCE:.0%}, of which they can show at "
        f"most {results[0][1].most:.2f}",
        ["mechanism", "claim", "noise", "bound", "right", "estimate", "of the last model", "s"],
        table,
    )
    if asked.plot:
        draw(results, asked.plot)


def _row(result: Result) -> list[str]:
    best = max(result.surest, result.all, key=lambda each: each.bound)
    verdict = " refuted" if result.is_refuted else ""
    return [
        f"{result.claim:g}",
        f"{result.multiplier * result.cut:.2f} ({result.cut:g})",
        f"{result.bound:.2f}{verdict}",
        f"{best.right} of {best.guesses}",
        f"{result.estimate:.2f}",
        f"{result.last:.2f}",
    ]


def draw(results: list[tuple[str, Result]], out: Path) -> None:
    """A bar for what each audit has shown, and a mark where the claim lies."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [f"{name}, noise {result.cut:g}" for name, result in results][::-1]
    shown = [result for _, result in results][::-1]
    figure, axis = pyplot.subplots(figsize=(7.2, 2.8), dpi=150, layout="constrained")
    colours = [BROKEN if each.is_refuted else KEPT for each in shown]
    axis.barh(names, [each.bound for each in shown], color=colours, height=0.62)
    axis.plot([each.claim for each in shown], names, "|", color=INK, markersize=14, label="claim")
    axis.axvline(shown[0].most, color=INK, linewidth=0.8, linestyle=":", label="most to be shown")
    axis.set_xlabel("epsilon that the canaries show, at least", color=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    figure.savefig(out)


if __name__ == "__main__":
    main()
