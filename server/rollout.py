"""Rollout: does a release do worse than the others? By figures alone; reads no clock and no store.

    figures told of a release -> judge -> waits | fine | worse, and why in words

The gain is in words that are right, of all words, as a share: sum of gains / sum of words over
devices. Its standard error is that of a ratio of sums over devices (Cochran 1977, Sampling
Techniques, section 6.4, for few devices of very many):

    se ** 2 = n / (n - 1) * sum((gain - ratio * words) ** 2) / sum(words) ** 2

A release that was scored beside an earlier one on the same words is judged by those pairs alone:
there the difference between devices falls out. Without enough pairs its share of right words is
compared with that of the next lower release, on other devices, whose errors add up.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from server.release_scores import Figures, Pair, against_earlier, of_release

# standard errors below nothing that a gain must be for a release to be worse; more of few devices
ERRORS = 2.0
LEAST_DEVICES = 2  # fewer have no standard error


class Standing(StrEnum):
    """How a release does beside the others."""

    WAITS = "waits"  # too few devices, or nothing to compare it with
    FINE = "fine"
    WORSE = "worse"


@dataclass(frozen=True)
class Ratio:
    """A share of words, and its standard error, as far as so many devices know it."""

    share: float
    error: float
    devices: float = math.inf

    def __sub__(self, other: "Ratio") -> "Ratio":
        """The difference of two that are of different devices: no surer than the fewer."""
        fewer = min(self.devices, other.devices)
        return Ratio(self.share - other.share, math.hypot(self.error, other.error), fewer)

    @property
    def reach(self) -> float:
        """How far to each side of the share the truth may be."""
        return errors_of(self.devices) * self.error


@dataclass(frozen=True)
class Verdict:
    """How a release does, and by what."""

    standing: Standing
    why: str  # in words
    gain: Ratio | None = None  # as a share of all words
    paired: bool = False  # on the very same words
    beside: int = 0  # the release it is compared with, unpaired


def errors_of(devices: float) -> float:
    """How many standard errors that few devices tell are as much as ERRORS that are known:
    Student's quantile, by its expansion in 1 / (devices - 1) (Abramowitz and Stegun 1964, 26.7.5).

    >>> [round(errors_of(devices), 2) for devices in (3, 10, 50, math.inf)]
    [4.37, 2.32, 2.05, 2.0]
    """
    z, free = ERRORS, max(1.0, devices - 1)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / free + second / free**2 + third / free**3


def ratio(value: int, words: int, value_squared: int, value_words: int, squares: Figures) -> Ratio:
    """Sum of a value over sum of words, by the sums over the devices of `squares`.

    >>> two = Figures(devices=2, words_squared=100**2 + 100**2)  # they gained 3 and 1 of 100 words
    >>> gained = ratio(4, 200, 3**2 + 1**2, 3 * 100 + 1 * 100, two)
    >>> round(gained.share, 6), round(gained.error, 6)
    (0.02, 0.01)
    """
    devices, share = squares.devices, value / words
    rest = value_squared - 2 * share * value_words + share**2 * squares.words_squared
    error = math.sqrt(max(0.0, rest) * devices / (devices - 1)) / words if devices > 1 else math.inf
    return Ratio(share, error, devices)


def right(figures: Figures) -> Ratio:
    """The share of words that were right."""
    squared, words = figures.top1_squared, figures.top1_words
    return ratio(figures.top1, figures.targets, squared, words, figures)


def gain(pairs: Figures) -> Ratio:
    """What a release has gained over the one before, on the same words."""
    value = pairs.top1 - pairs.before_top1
    return ratio(value, pairs.targets, pairs.gain_squared, pairs.gain_words, pairs)


def judge(told: Mapping[Pair, Figures], release: int, fewest: int) -> Verdict:
    """How a release does by what is told of all releases of its population; no verdict on fewer
    than `fewest` devices.
    """
    least = max(LEAST_DEVICES, fewest)
    pairs = against_earlier(told, release)
    if pairs.devices >= least:
        figures, measured = f"{pairs.devices:,} devices on the same words", gain(pairs)
        return _verdict(measured, f"the release before, {figures}", paired=True)
    mine = of_release(told, release)
    if mine.devices < least:
        return Verdict(Standing.WAITS, f"waits until {least:,} devices have scored it")
    others = {of for of, _ in told if of < release and of_release(told, of).devices >= least}
    if not others:
        nothing = f"no earlier release to compare it with has been scored by {least:,} devices"
        return Verdict(Standing.WAITS, nothing)
    beside = max(others)
    figures = (
        f"{mine.devices:,} and {of_release(told, beside).devices:,} devices on their own words"
    )
    difference = right(mine) - right(of_release(told, beside))
    return _verdict(difference, f"release {beside}, {figures}", beside=beside)


def _verdict(measured: Ratio, of: str, paired: bool = False, beside: int = 0) -> Verdict:
    worse = measured.share + measured.reach < 0
    points, error = 100 * measured.share, 100 * measured.reach
    words = f"{points:+.2f} points of top-1 (+/- {error:.2f}) beside {of}"
    if worse:
        return Verdict(Standing.WORSE, f"worse: {words}", measured, paired, beside)
    return Verdict(Standing.FINE, f"not worse: {words}", measured, paired, beside)
