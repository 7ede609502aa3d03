"""Scores: the reports of an evaluation as one vector of whole numbers, and what is read out of it.

    a device's Scores -> to_vector -> add -> from_vector -> sums, for the mean of all words,
                                                            and spread, for the median of devices

A vector is int64 [LENGTH]: the SUMS, then how many devices have each share of their words right, in
BINS of equal width. It only ever has vectors added to it, so a mechanism that sees nothing but sums
can carry it. A device has at most MOST_WORDS words in the sums and is one in the spread: a false
score moves the mean by its share of the words, and the median by one device.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from device_runtime.wire import Scores

SUMS = ("targets", "top1", "top3", "in_vocabulary", "loss")  # the loss in LOSS_UNITS
LOSS_UNITS = 2**30  # of one nat: a sum of whole units does not depend on the order
BINS = 20  # of the share of right words: 5 % each, the last with 100 % in it
LENGTH = len(SUMS) + BINS
Vector = NDArray[np.int64]


@dataclass(frozen=True)
class Total:
    """What the scores of a round's devices add up to."""

    scores: Scores  # sums over the words of all devices
    spread: tuple[int, ...]  # devices by the share of their words that were right, [BINS]


def empty() -> Vector:
    """The vector of no device."""
    return np.zeros(LENGTH, np.int64)


def to_vector(scores: Scores) -> Vector:
    """The vector of one device. Its scores have at least one target and no more right words than
    targets.
    """
    vector = empty()
    vector[: len(SUMS)] = (*astuple(scores)[:-1], loss_units(scores.loss))
    vector[len(SUMS) + bin_of(scores)] = 1
    return vector


def add(vectors: Iterable[Vector]) -> Vector:
    """What several vectors add up to."""
    total: Vector = np.sum([empty(), *vectors], axis=0, dtype=np.int64)
    return total


def from_vector(vector: Vector) -> Total:
    """The sums and the spread of a vector.

    >>> from_vector(add(map(to_vector, [Scores(8, 2, 4, 8, 1.5), Scores(2, 2, 2, 2, 0.5)]))).scores
    Scores(targets=10, top1=4, top3=6, in_vocabulary=10, loss=2.0)
    """
    targets, top1, top3, known, loss, *spread = map(int, vector)
    return Total(Scores(targets, top1, top3, known, loss / LOSS_UNITS), tuple(spread))


def loss_units(nats: float) -> int:
    """A loss as vectors add it up."""
    return round(nats * LOSS_UNITS)


def quartiles(spread: Sequence[int]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile of the devices' shares of right words,
    0 to 1, each right to the width of a bin; nan without a device.

    >>> quartiles([0, 0, 4, *[0] * 17])  # four devices between 10 and 15 %
    (0.1125, 0.125, 0.1375)
    """
    return _quantile(spread, 0.25), _quantile(spread, 0.5), _quantile(spread, 0.75)


def bin_of(scores: Scores) -> int:
    """Which of the BINS a device with these scores is in."""
    return min(BINS - 1, BINS * scores.top1 // scores.targets)


def _quantile(spread: Sequence[int], share: float) -> float:
    """As if the devices of a bin were spread evenly over it."""
    wanted, below = share * sum(spread), 0
    for place, devices in enumerate(spread):
        if devices and below + devices >= wanted:
            return (place + (wanted - below) / devices) / BINS
        below += devices
    return math.nan
