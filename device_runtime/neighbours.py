"""Neighbours: how many each device of a round has, how many open a secret, and who they are.

Devices stand in a circle in an order that nobody chose, and each has the same number to either
side: a Harary graph. The smallest degree is taken at which, but for a chance of 2 ** -40, no device
has so many adversaries beside it that they open its secrets, nor do the honest ones fall apart into
groups; and at which, but for a chance of 2 ** -20, enough neighbours of each device stay.
Source: Bell et al. 2020, ePrint 2020/704.
"""

import functools
import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

SECURITY_BITS = 40  # an update may be seen with a chance of 2 ** -this
CORRECTNESS_BITS = 20  # a round with as many losses as foreseen may fail with this one
MOST_LOST = 0.9  # of all devices, by both kinds of loss together


class Impossible(StrEnum):
    """Why there is no such graph."""

    TOO_MANY_LOST = "adversaries and drop-outs leave too few honest devices"
    TOO_FEW_DEVICES = "so few devices cannot hide each other at these shares"
    TOO_MANY_NEIGHBOURS = "each device would need more neighbours than its messages have room for"


@dataclass(frozen=True)
class Losses:
    """What a round has to bear."""

    adversarial: float  # share of the devices that tell the server all they know
    drop_out: float  # share of the devices that vanish
    semi_malicious: bool  # the server may tell devices lies about each other


@dataclass(frozen=True)
class Graph:
    """How a round's devices hold each other's secrets."""

    devices: int
    degree: int  # neighbours of a device, half of them to either side
    threshold: int  # of them, shares that open a secret
    exposure: float  # largest chance that an update can be seen
    failure: float  # largest chance that the sum cannot be opened


@functools.lru_cache(maxsize=64)
def find(devices: int, losses: Losses, most: int | None = None) -> Graph | Impossible:
    """The graph of the smallest degree, of at most `most` neighbours.

    >>> graph = find(100, Losses(0.05, 0.10, True))
    >>> graph.degree, graph.threshold
    (26, 16)
    >>> find(100, Losses(0.5, 0.3, True)).name
    'TOO_MANY_LOST'
    """
    weight = 2 if losses.semi_malicious else 1
    if losses.adversarial + weight * losses.drop_out > MOST_LOST + 1e-9:
        return Impossible.TOO_MANY_LOST
    degree = 2
    while degree < devices - 1:
        if most is not None and degree > most:
            return Impossible.TOO_MANY_NEIGHBOURS
        slack = _slack(devices, degree, losses)
        if slack >= 0:
            return _graph(devices, degree, losses)
        # two neighbours more raise the share of those who stay by two at most, and the threshold
        # of the semi-malicious class by one at least: what lies between cannot do
        rise = 1 if losses.semi_malicious else 2
        degree += 2 * max(1, math.ceil(-slack / rise))
    return Impossible.TOO_FEW_DEVICES


def described(graph: Graph) -> str:
    """A graph in words, with how sure it is.

    >>> described(find(1_000, Losses(0.05, 0.10, True)))  # doctest: +NORMALIZE_WHITESPACE
    'of 1,000 devices each has 78 neighbours, 52 of whom can open its secrets: at these shares the
    chance of an exposed update is at most 7e-15, that of a lost sum at most 4e-07'
    """
    return (
        f"of {graph.devices:,} devices each has {graph.degree} neighbours, {graph.threshold} of "
        f"whom can open its secrets: at these shares the chance of an exposed update is "
        f"{_most(graph.exposure)}, that of a lost sum {_most(graph.failure)}"
    )


def around(place: int, devices: int, degree: int) -> tuple[int, ...]:
    """The neighbours of a place in the circle, ascending.

    >>> around(0, 10, 4)
    (1, 2, 8, 9)
    """
    half = degree // 2
    return tuple(
        sorted({(place + step) % devices for step in range(-half, half + 1)} - {place % devices})
    )


def _most(chance: float) -> str:
    return f"at most {chance:.0e}" if chance else "0"


def _slack(devices: int, degree: int, losses: Losses) -> float:
    """Neighbours that stay, at the least, beyond the threshold; minus one for a graph that falls
    apart.
    """
    if _falls_apart(devices, degree, losses) >= 2.0 ** -(SECURITY_BITS + 1):
        return -1
    stay = _chances(devices, _staying(devices, losses), degree)
    limit = 2.0**-CORRECTNESS_BITS / devices
    fewest = stay.first + int(np.argmax(np.cumsum(stay.of) >= limit))
    return fewest - _threshold(devices, degree, losses)


def _threshold(devices: int, degree: int, losses: Losses) -> int:
    """Smallest number of shares that adversaries beside a device do not have."""
    beside = _chances(devices, _adversaries(devices, losses), degree)
    limit = 2.0 ** -(SECURITY_BITS + 1) / devices
    tails = np.cumsum(beside.of[::-1])[::-1]  # of so many and more
    most = beside.first + int(np.flatnonzero(tails > limit)[-1])
    if losses.semi_malicious:
        # an honest neighbour gives a share of one secret and an adversary of both: the two kinds
        # cannot both come to the threshold while degree + most < 2 x threshold
        most = math.ceil((most + degree - 1.25) / 2)
    return max(most + 1, 2)


def _graph(devices: int, degree: int, losses: Losses) -> Graph:
    threshold = _threshold(devices, degree, losses)
    beside = _chances(devices, _adversaries(devices, losses), degree)
    stay = _chances(devices, _staying(devices, losses), degree)
    borne = 2 * threshold - degree - 1 if losses.semi_malicious else threshold - 1
    exposure = devices * beside.above(borne) + _falls_apart(devices, degree, losses)
    return Graph(devices, degree, threshold, exposure, devices * stay.below(threshold))


@dataclass(frozen=True)
class _Chances:
    first: int
    of: NDArray[np.float64]  # of first, first + 1, ...

    def above(self, value: int) -> float:
        return float(self.of[max(0, value + 1 - self.first) :].sum())

    def below(self, value: int) -> float:
        return float(self.of[: max(0, value - self.first)].sum())


def _chances(devices: int, marked: int, degree: int) -> _Chances:
    """How many of `degree` devices, drawn without putting back, are marked: hypergeometric."""
    first, last = max(0, degree + marked - devices), min(degree, marked)
    start = (
        _choices(marked, first)
        + _choices(devices - marked, degree - first)
        - _choices(devices, degree)
    )
    x = np.arange(first, last, dtype=np.float64)
    ratios = (marked - x) * (degree - x) / ((x + 1) * (devices - marked - degree + x + 1))
    return _Chances(first, np.exp(start + np.concatenate(([0.0], np.cumsum(np.log(ratios))))))


def _falls_apart(devices: int, degree: int, losses: Losses) -> float:
    """Chance that what is left of the circle is not connected: two runs of half a degree each would
    have to be lost whole.
    """
    lost = _adversaries(devices, losses) + math.floor((losses.drop_out + 1e-14) * devices)
    if degree > lost:
        return 0.0
    pairs = math.log(devices) + math.log(devices - degree - 1) - math.log(2)
    all_lost = _choices(lost, degree) - _choices(devices, degree)
    return math.exp(pairs + all_lost)


def _adversaries(devices: int, losses: Losses) -> int:
    return math.floor((losses.adversarial + 1e-14) * devices)


def _staying(devices: int, losses: Losses) -> int:
    return math.ceil((1 - losses.drop_out - 1e-14) * devices)


def _choices(of: int, taken: int) -> float:
    """Logarithm of the number of ways to take so many of so many."""
    return math.lgamma(of + 1) - math.lgamma(taken + 1) - math.lgamma(of - taken + 1)
