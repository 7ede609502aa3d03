"""Evaluations: is one checkpoint better than another, by what devices' own messages said of each?

Two rounds of an evaluation task have other devices in them, so nothing is paired: what makes some
devices easier than others is in the standard error. A pair that the same devices scored is worth
more, and is told of releases only.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from device_runtime.scores import BINS
from device_runtime.wire import Kind, Phase, RoundReport

SURE = 2.0  # standard errors between chance and worse


@dataclass(frozen=True)
class Standing:
    """How one checkpoint did on the held-back messages of all devices that scored it."""

    devices: int  # each as often as it took part
    targets: int  # words
    top1: float  # share of them, 0 to 1
    error: float  # its standard error


@dataclass(frozen=True)
class Gain:
    """What top-1 gains from one checkpoint to another, as a difference of shares."""

    change: float
    error: float  # standard error
    old: Standing
    new: Standing

    @property
    def worse(self) -> bool:
        """Whether the loss is more than chance explains."""
        return self.change + SURE * self.error < 0


def standing(reports: Iterable[RoundReport], checkpoint: str) -> Standing | None:
    """What committed rounds of evaluations say of a checkpoint, by its SHA-256 (float32); None if
    fewer than two devices scored it.

    The error is that of the mean of the devices' shares, whose spread is known to a bin: the
    variance between devices, plus that of an even spread within a bin, over the devices. It is at
    least what the words alone would give, were each of them a toss of its own.
    """
    scored = [
        report
        for report in reports
        if report.kind is Kind.EVALUATION
        and report.phase is Phase.COMMITTED
        and report.base == checkpoint
        and report.scores is not None
        and report.scores.targets
        and len(report.spread) == BINS
    ]
    rows = np.array([report.spread for report in scored], np.int64).reshape(-1, BINS)
    spread: NDArray[np.int64] = rows.sum(axis=0)
    devices = int(spread.sum())
    if devices < 2:
        return None
    targets = sum(report.scores.targets for report in scored if report.scores)
    top1 = sum(report.scores.top1 for report in scored if report.scores) / targets
    middles = (np.arange(BINS) + 0.5) / BINS
    mean = float(spread @ middles) / devices
    between = float(spread @ np.square(middles - mean)) / (devices - 1)
    within = 1 / BINS**2 / 12
    error = math.sqrt(max((between + within) / devices, top1 * (1 - top1) / targets))
    return Standing(devices, targets, top1, error)


def gain(reports: Iterable[RoundReport], old: str, new: str) -> Gain | None:
    """New minus old, two checkpoints by their SHA-256; None unless rounds have scored both."""
    reports = list(reports)
    before, after = standing(reports, old), standing(reports, new)
    if before is None or after is None:
        return None
    return Gain(after.top1 - before.top1, math.hypot(before.error, after.error), before, after)
