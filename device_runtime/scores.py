"""Scores: what devices say in an evaluation as one vector of whole numbers, and what is read of it.

    a device's Scores -> to_vector -> add -> from_vector -> sums, for the mean of all words,
                                                            and spread, for the median of devices

A vector is int64 [LENGTH]: the SUMS, then how many devices have each share of their words right, in
BINS of equal width. It only ever has vectors added to it, so it travels as an update does: where
the terms say so it is masked, and a server sees nothing but sums. A device has at most MOST_WORDS
words in the sums and is one in the spread: a false score in the open moves the mean by its share of
the words, and the median by one device. Of one that is masked nothing is known but the sum: it can
move both to whatever `beyond_reach` lets pass.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime import packing
from device_runtime.packing import Layout
from device_runtime.wire import MOST_WORDS, Scores

SUMS = ("targets", "top1", "top3", "in_vocabulary", "loss")  # the loss in LOSS_UNITS
LOSS_UNITS = 2**30  # of one nat: a sum of whole units does not depend on the order
BINS = 20  # of the share of right words: 5 % each, the last with 100 % in it
LENGTH = len(SUMS) + BINS
NATS_A_TARGET = 100.0  # more is no loss of a target word: its probability would be under e ** -100
MOST_LOSS = round(NATS_A_TARGET * MOST_WORDS) * LOSS_UNITS  # the largest number of a vector
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
    targets; of a loss no more counts than a word can have.
    """
    vector = empty()
    loss = min(scores.loss, NATS_A_TARGET * scores.in_vocabulary)
    vector[: len(SUMS)] = (*astuple(scores)[:-1], loss_units(loss))
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


def layout(most: int) -> Layout:
    """How the vectors of so many devices at most lie in words that add up.

    >>> layout(100_000).bytes  # of the most devices that a task may have
    200
    """
    return packing.layout(LENGTH, MOST_LOSS, most)


def beyond_reach(total: NDArray[Any], count: int) -> str:
    """Why honest devices, so many, cannot have added up to a vector, in a sentence; empty if they
    can have. total is of whole numbers, [LENGTH].

    Every device is in one bin of the spread, and has no more of each sum than its cap.

    >>> beyond_reach(to_vector(Scores(8, 2, 4, 8, 1.5)), 2)
    'the spread holds 1 devices, and 2 have reported'
    """
    targets, top1, top3, known, loss = map(int, total[: len(SUMS)])
    spread = sum(map(int, total[len(SUMS) :]))  # of any size: these may be no honest numbers
    if spread != count:
        return f"the spread holds {spread} devices, and {count} have reported"
    if not count <= targets <= count * MOST_WORDS:
        return f"the words are {targets}, and {count} devices reach {count * MOST_WORDS}"
    if not top1 <= top3 <= known <= targets:
        return f"of {targets} words {known} are known, {top3} in the strip and {top1} at its head"
    if loss > round(NATS_A_TARGET * known) * LOSS_UNITS:
        return f"{known} words cannot have a loss of {loss / LOSS_UNITS:.3g} nats"
    return ""


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
