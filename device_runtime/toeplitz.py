"""Toeplitz: a matrix C with one column for all rounds: its inverse, its sensitivity, the best one.

    1                          below the diagonal, by how far below: the sum over buffers of
    s     1                    scale x decay ** (distance - 1)
    s d   s    1
    s d2  s d  s    1          of one buffer of scale s and decay d

Sources: McMahan et al. 2024, arXiv:2408.08868, algorithms 2 and 3, and section 4 for what is least;
Kalinin and Lampert 2024, arXiv:2405.13763, theorem 2 (the sensitivity of falling columns).
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

MOST_BUFFERS = 3  # of one that is looked for
GAIN = 1.005  # how much less noise another buffer must need
_DENSE = 2048  # rounds that are all looked at
_STEP = 1e-6  # to where a slope is measured
_SETTLED = 1e-5  # of the logarithm of the noise needed


@dataclass(frozen=True)
class Pattern:
    """How a device may take part, and in how many rounds."""

    rounds: int
    separation: int  # as a difference of numbers of rounds
    participations: int


def column(decays: Vector, scales: Vector, rounds: int) -> Vector:
    """The first column of C: [rounds]."""
    powers = decays[:, None] ** np.arange(max(0, rounds - 1))
    return np.concatenate(([1.0], scales @ powers))[:rounds]


def inverse(decays: Vector, scales: Vector, rounds: int) -> Vector:
    """The first column of the inverse of C: [rounds]."""
    states = _states(np.diag(decays) - scales, np.ones(len(scales)), max(0, rounds - 1))
    return np.concatenate(([1.0], -scales @ states))[:rounds]


def squares(decays: Vector, scales: Vector, by: Pattern) -> Vector:
    """The largest squared norm of a sum of 0, 1, 2, ... columns: [participations + 1]. Of columns
    that are non-negative and fall it is that of those which begin as early as they may.
    """
    if not by.rounds:
        return np.zeros(1)
    count = min(by.participations, -(-by.rounds // by.separation))
    left = by.rounds - by.separation * np.arange(count)  # from each participation to the end
    pairs = np.multiply.outer(decays, decays)  # [buffers, buffers]
    # of each buffer what the participations before have in the round of this one: [count, buffers]
    earlier = _series(decays**by.separation, np.arange(count)[:, None])
    before = scales * decays ** (by.separation - 1) * earlier
    series = _series(pairs, left[:, None, None] - 1)  # [count, buffers, buffers]
    own = 1 + np.einsum("i,cij,j->c", scales, series, scales)
    shared = before.sum(axis=1) + np.einsum("ci,i,cij,j->c", before, decays, series, scales)
    return np.concatenate(([0.0], np.cumsum(own + 2 * shared)))


def _states(step: NDArray[Any], first: Vector, count: int) -> NDArray[Any]:
    """So many states, each the one before it times a matrix: [len(first), count]."""
    states = first[:, None]
    while states.shape[1] < count:
        states, step = np.hstack((states, step @ states)), step @ step
    return states[:, :count]


def prefix_variance(decays: Vector, scales: Vector, rounds: int) -> float:
    """The mean over the rounds of the variance of the noise in the sum of all rounds so far."""
    sums = np.cumsum(inverse(decays, scales, rounds))  # the first column of A C^-1
    return float(np.arange(rounds, 0, -1) @ sums**2) / rounds


def sampled_variance(decays: Vector, scales: Vector, rounds: int) -> float:
    """About the same, of many rounds: of every one up to _DENSE, then of fewer and fewer."""
    size, ones = len(scales), np.ones(len(scales))
    # the state and the sum of those before it, from one round to the next
    step = np.block(
        [
            [np.diag(decays) - scales, np.zeros((size, size))],
            [np.eye(size), np.eye(size)],
        ]
    )
    state, at, stride, total = np.concatenate((ones, 0 * ones)), 0, 1, 0.0
    while at < rounds:
        states = _states(step, state, _DENSE + 1)
        places = at + stride * np.arange(_DENSE)
        sums = 1 - scales @ states[size:, :-1]  # the first column of A C^-1, there
        width = np.clip(rounds - places, 0, stride)
        total += float(width * np.maximum(0, rounds - places - (width - 1) / 2) @ sums**2)
        state, at = states[:, -1], at + _DENSE * stride
        stride, step = 2 * stride, step @ step
    return total / rounds


@functools.lru_cache(maxsize=64)
def best(by: Pattern) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Decays and scales that need the least noise, sensitivity x root mean square of the noise in
    the prefix sums, with as few buffers as do nearly as well. The same always.
    """

    variance = prefix_variance if by.rounds <= _DENSE else sampled_variance

    def needed(point: Vector) -> float:
        decays, scales = _of(point)
        most = squares(decays, scales, by)[-1]
        return (math.log(most) + math.log(variance(decays, scales, by.rounds))) / 2

    buffers, least = np.empty(0), needed(np.empty(0))
    for count in range(1, MOST_BUFFERS + 1):
        gaps = (1 / max(4, by.rounds)) ** (np.arange(count, 0, -1) / (count + 1))  # decays to 1
        begun = np.concatenate((np.log(1 / gaps - 1), np.full(count, math.log(0.3 / count))))
        point, value = _descended(needed, begun)
        if value > least - math.log(GAIN):
            break
        buffers, least = point, value
    decays, scales = _of(buffers)
    order = np.argsort(-decays, kind="stable")
    # so few digits that their sum, too, stays at most 1
    down = np.floor(scales[order] * 1e9) / 1e9
    return tuple(np.round(decays[order], 9).tolist()), tuple(down.tolist())


def _of(point: Vector) -> tuple[Vector, Vector]:
    """Decays, from 0 to 1, and scales, at most 1 together, of a point without bounds."""
    count = len(point) // 2
    decays, scales = 1 / (1 + np.exp(-point[:count])), np.exp(point[count:])
    return decays, scales / max(1.0, scales.sum())


def _descended(cost: Callable[[Vector], float], point: Vector) -> tuple[Vector, float]:
    """Where a cost is least around a point, by BFGS, and what it is there."""
    value, slope = cost(point), _slope(cost, point)
    curve: Any = np.eye(len(point))  # the inverse of the Hessian, as far as it is known
    for _ in range(100):
        way = -curve @ slope
        if way @ slope >= 0:
            curve, way = np.eye(len(point)), -slope
        way = way / max(1.0, np.abs(way).max() / 2)  # beyond that an estimate is worth little
        length = 1.0
        while (lower := cost(point + length * way)) > value + 1e-4 * length * (way @ slope):
            length /= 2
            if length < 1e-6:
                return point, value
        step, before = length * way, slope
        point, gained, value = point + step, value - lower, lower
        if gained < _SETTLED:
            break
        slope = _slope(cost, point)
        turned = slope - before
        if (along := step @ turned) > 0:
            rest = np.eye(len(point)) - np.outer(step, turned) / along
            curve = rest @ curve @ rest.T + np.outer(step, step) / along
    return point, value


def _slope(cost: Callable[[Vector], float], point: Vector) -> Vector:
    here = cost(point)
    return np.array([cost(point + _STEP * axis) - here for axis in np.eye(len(point))]) / _STEP


def _series(ratio: NDArray[Any], terms: NDArray[Any]) -> NDArray[Any]:
    """The sum of so many powers of a ratio from 0 to 1, from the zeroth on."""
    with np.errstate(divide="ignore", invalid="ignore"):
        of = np.expm1(terms * np.log(ratio)) / (ratio - 1)
    of = np.where(ratio == 1, terms, of)
    return np.where(ratio == 0, np.minimum(terms, 1), of)
