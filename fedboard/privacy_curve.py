"""The privacy curve: noise on the mean of a round -> the accuracy that was measured under it.

`privacy_curve.json` has `about`, a sentence on what was trained, and `points`, each with

    epsilon         at delta 1e-10; null: without noise
    report_goal     that the noise was made for, whatever cohort stood for it
    noise_on_mean   L2 norm of a round's noise on the mean, of the widest round, in clipping norms
    top1, interval  share of test words guessed right, and where it lies with 95 %
    command, commit  which measured it, on what
"""

import functools
import math
from dataclasses import dataclass
from importlib import resources

from device_runtime import config

NAME = "privacy_curve.json"


@dataclass(frozen=True)
class Point:
    """One training, measured."""

    epsilon: float | None
    report_goal: int
    noise_on_mean: float
    top1: float
    interval: tuple[float, ...]
    command: str
    commit: str


@dataclass(frozen=True)
class Curve:
    """All of them, and what they are of."""

    about: str = ""
    points: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Expected:
    """What the curve says of some noise."""

    top1: float | None  # None: the curve does not reach so far
    said: str  # in a sentence


@functools.cache
def measured() -> Curve:
    """The curve of this version."""
    data = resources.files("fedboard").joinpath(NAME).read_bytes()
    return config.from_json(Curve, data, NAME)


def expected(curve: Curve, noise_on_mean: float) -> Expected:
    """The accuracy under so much noise on the mean: between two points on a straight line over the
    logarithm of the noise, and nothing beyond them.
    """
    points = sorted(curve.points, key=lambda each: each.noise_on_mean)
    if not points:
        return Expected(None, "no curve of accuracy has been measured for this version")
    most, least = points[-1].noise_on_mean, points[0].noise_on_mean
    if noise_on_mean > most:
        return Expected(
            None,
            f"beyond what was measured: noise of {noise_on_mean:.3g} clips on the mean, the curve "
            f"ends at {most:.3g} with top-1 {100 * points[-1].top1:.1f} %",
        )
    if noise_on_mean < least:
        return Expected(
            None,
            f"less noise than was measured: {noise_on_mean:.3g} clips on the mean, the curve "
            f"begins at {least:.3g} with top-1 {100 * points[0].top1:.1f} %",
        )
    above = next(i for i, each in enumerate(points) if each.noise_on_mean >= noise_on_mean)
    right = points[above]
    left = points[max(0, above - 1)]
    share = _between(noise_on_mean, left.noise_on_mean, right.noise_on_mean)
    top1 = left.top1 + share * (right.top1 - left.top1)
    plain = points[0]
    lost = "" if plain.noise_on_mean else f", of {100 * plain.top1:.1f} % without noise"
    return Expected(top1, f"top-1 {100 * top1:.1f} %{lost} ({curve.about})")


def _between(value: float, low: float, high: float) -> float:
    """Where a value lies between two, 0 to 1: by its logarithm where there is one."""
    if high <= low:
        return 1.0
    if low <= 0:
        return (value - low) / (high - low)
    return math.log(value / low) / math.log(high / low)
