"""Strategy: the matrix C behind correlated noise: what a round gets, and what one device shows.

    a sum of every round, x [rounds]  ->  C x + z, each z an independent Gaussian  ->  x + C^-1 z

C is lower triangular and non-negative. Its columns say how much a device's part in a round shows
(`sensitivity`), the rows of its inverse how wide a round's noise is (`row_norm`). Where the state
behind the noise was lost it begins anew: then C has a block for each beginning, and their noises
have nothing in common.
Sources: McMahan et al. 2024, arXiv:2408.08868, algorithms 2 and 3 (BLT); Choquette-Choo et al.
2023, arXiv:2306.08153 (separation); Kairouz et al. 2021, arXiv:2103.00039 and Honaker 2015 (tree).
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from device_runtime.noise import Mechanism, Noise

Draw = Callable[[], NDArray[np.float32]]  # independent standard normals, float32 [values]


@dataclass(frozen=True)
class Buffers:
    """What the noise of the next round needs of those before. Who sees it can take noise off."""

    step: int  # sums of this block so far
    arrays: NDArray[np.float32]  # [buffers, values]


def begin(noise: Noise, values: int) -> Buffers:
    """Before the first sum."""
    return Buffers(0, np.zeros((len(noise.decays), values), np.float32))


def advance(noise: Noise, buffers: Buffers, draw: Draw) -> tuple[NDArray[np.float32], Buffers]:
    """The noise of the next sum, float32 [values], in units of one independent Gaussian's stddev;
    and what the one after it needs.
    """
    if noise.mechanism is Mechanism.TREE:
        raise NotImplementedError
    made = draw()
    scales = np.asarray(noise.scales, np.float32)
    decays = np.asarray(noise.decays, np.float32)
    if len(scales):
        made = made - scales @ buffers.arrays
    after = decays[:, None] * buffers.arrays + made
    return made, Buffers(buffers.step + 1, after)


def coefficients(noise: Noise, rounds: int) -> NDArray[np.float64]:
    """The first column of C: [rounds].

    >>> coefficients(Noise(Mechanism.GAUSSIAN, 1.0, 8.0, 1e-10, 9, 1), 3).tolist()
    [1.0, 0.0, 0.0]
    """
    column = np.zeros(rounds)
    column[0] = 1.0
    for decay, scale in zip(noise.decays, noise.scales, strict=True):
        column[1:] += scale * decay ** np.arange(rounds - 1)
    return column


def inverse(noise: Noise, rounds: int) -> NDArray[np.float64]:
    """The first column of the inverse of C: [rounds]."""
    column, state = np.zeros(rounds), np.zeros(len(noise.decays))
    scales, decays = np.array(noise.scales), np.array(noise.decays)
    for step in range(rounds):
        column[step] = (step == 0) - float(scales @ state) if len(scales) else float(step == 0)
        state = decays * state + column[step]
    return column


def sensitivity(noise: Noise, blocks: Sequence[int], separation: int, participations: int) -> float:
    """The most that one device can change of C x, in L2 norm, when each of its updates has a norm
    of at most 1.

    blocks: sums of each beginning; separation: sums from one of a device to its next at least, as a
    difference of their numbers; participations: sums that a device is in at most.
    """
    return math.sqrt(_squared(noise, tuple(blocks), max(1, separation), participations))


@functools.lru_cache(maxsize=4096)
def _squared(noise: Noise, blocks: tuple[int, ...], separation: int, most: int) -> float:
    # the best way to spread the participations over the blocks; that two of different blocks must
    # be apart too is left out, which can only raise it
    best = np.zeros(1)  # by participations so far
    for rounds in blocks:
        own = _of_block(noise, rounds, separation, most)
        joined = np.zeros(min(most, len(best) + len(own) - 2) + 1)
        for before, value in enumerate(best):
            for count, more in enumerate(own[: len(joined) - before]):
                joined[before + count] = max(joined[before + count], value + more)
        best = joined
    return float(best.max())


@functools.lru_cache(maxsize=4096)
def _of_block(noise: Noise, rounds: int, separation: int, most: int) -> tuple[float, ...]:
    """The largest squared norm with 0, 1, 2, ... participations."""
    column, total = coefficients(noise, rounds) if rounds else np.zeros(0), np.zeros(rounds)
    squares = [0.0]
    for start in range(0, rounds, separation):
        if len(squares) > most:
            break
        total[start:] += column[: rounds - start]
        squares.append(float(total @ total))
    return tuple(squares)


@functools.lru_cache(maxsize=256)
def row_norm(noise: Noise) -> float:
    """The stddev of the widest noise of a round / that of one independent Gaussian."""
    return float(np.linalg.norm(inverse(noise, noise.rounds)))


def prefix_rmse(noise: Noise, rounds: int) -> float:
    """Root mean square, over the rounds, of the stddev of the noise in the sum of all rounds so
    far, in units of one independent Gaussian's.
    """
    sums = np.cumsum(inverse(noise, rounds))  # the first column of A C^-1
    return math.sqrt(float(np.mean(np.cumsum(sums**2))))
