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
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from device_runtime import toeplitz, tree
from device_runtime.noise import Mechanism, Noise
from device_runtime.toeplitz import Pattern

Draw = Callable[[], NDArray[np.float64]]  # independent standard normals, float64 [values]


@dataclass(frozen=True)
class Buffers:
    """What the noise of the next round needs of those before. Who sees it can take noise off."""

    step: int  # sums of this block so far
    arrays: NDArray[np.float32]  # [buffers, values]


def begin(noise: Noise, values: int) -> Buffers:
    """Before the first sum."""
    count = len(noise.decays)
    if noise.mechanism is Mechanism.TREE:  # of each height, the tree that is not part of a higher
        count = _of_tree(noise).bit_length()
    return Buffers(0, np.zeros((count, values), np.float32))


def advance(noise: Noise, buffers: Buffers, draw: Draw) -> tuple[NDArray[np.float64], Buffers]:
    """The noise of the next sum, float64 [values], in units of one independent Gaussian's stddev;
    and what the one after it needs.

    The noise stays in float64: in float32 it would have so few values that a sum of a million
    shows, in all of them together, which numbers it can have been made of.
    """
    if noise.mechanism is Mechanism.TREE:
        return _advance_tree(noise, buffers, draw)
    made: NDArray[np.float64] = draw()
    scales = np.asarray(noise.scales, np.float32)
    decays = np.asarray(noise.decays, np.float32)
    if len(scales):
        made = made - scales @ buffers.arrays
    after = decays[:, None] * buffers.arrays  # float32: what is lost stays lost alike
    after += made.astype(np.float32)
    return made, Buffers(buffers.step + 1, after)


def _advance_tree(
    noise: Noise, buffers: Buffers, draw: Draw
) -> tuple[NDArray[np.float64], Buffers]:
    """The same of a tree: what the estimate of the sum so far gains. A node's Gaussian is drawn
    when its last sum is there, so that nothing is told of a node that is not complete.
    """
    if buffers.step >= _of_tree(noise):
        buffers = begin(noise, buffers.arrays.shape[1])
    estimate, height = draw(), 0
    while (buffers.step >> height) & 1:
        height += 1
        own = variance(height)  # weights by variance: the node's, its two children's
        estimate = own * draw() + (1 - own) * (buffers.arrays[height - 1] + estimate)
    arrays = buffers.arrays.copy()
    arrays[:height], arrays[height] = 0.0, estimate
    made: NDArray[np.float64] = estimate - buffers.arrays[:height].sum(axis=0)
    return made, Buffers(buffers.step + 1, arrays)


def variance(height: int) -> float:
    """Of Honaker's estimate of the sum over a complete tree, from its nodes and no others.

    >>> variance(0), round(variance(1), 3)  # one node; a node and its two children
    (1.0, 0.667)
    """
    return 1 / (2 - 0.5**height)


def _gain(height: int) -> float:
    """Variance of what the estimate gains by the sum that completes a tree of that height."""
    left = [variance(each) for each in range(height)]  # of the trees that it is made of
    weights, own = [0.0] * height, [1.0]  # in the estimate: theirs, of the nodes that it completes
    for each in range(height):
        share = variance(each + 1)
        own = [(1 - share) * weight for weight in own] + [share]
        weights = [(1 - share) * weight for weight in weights]
        weights[each] = 1 - share
    return sum(weight**2 for weight in own) + sum(
        (weight - 1) ** 2 * spread for weight, spread in zip(weights, left, strict=True)
    )


def _prefix_variances(noise: Noise, rounds: int) -> NDArray[np.float64]:
    """Of the noise in the sum of all rounds so far: [rounds]."""
    size = _of_tree(noise)
    whole, sums = np.divmod(np.arange(1, rounds + 1), size)
    bits = [variance(height) * ((sums >> height) & 1) for height in range(size.bit_length())]
    ended = sum(variance(height) for height in range(size.bit_length()) if size >> height & 1)
    of_now: NDArray[np.float64] = np.sum(bits, axis=0)
    return whole * ended + of_now


def _of_tree(noise: Noise) -> int:
    """Sums of a tree, or forest, before another begins."""
    return min(noise.restart or noise.rounds, noise.rounds)


def coefficients(noise: Noise, rounds: int) -> NDArray[np.float64]:
    """The first column of C, of a mechanism that has the same in each round: [rounds]. Raises
    ValueError for a tree.

    >>> coefficients(Noise(Mechanism.GAUSSIAN, 1.0, 8.0, 1e-10, 9, 1), 3).tolist()
    [1.0, 0.0, 0.0]
    """
    return toeplitz.column(*_buffers(noise), rounds)


def inverse(noise: Noise, rounds: int) -> NDArray[np.float64]:
    """The first column of the inverse of C: [rounds]. Raises ValueError for a tree."""
    return toeplitz.inverse(*_buffers(noise), rounds)


def _buffers(noise: Noise) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Decays and scales; of independent noise there are none."""
    if noise.mechanism is Mechanism.TREE:
        raise ValueError("the rounds of a tree have no column in common")
    return np.array(noise.decays), np.array(noise.scales)


def within(noise: Noise, turn: int) -> Noise:
    """The same as it is between two beginnings, where it begins anew every so many rounds; 0: it
    never does. A beginning makes no row of the inverse of C longer.
    """
    return replace(noise, rounds=turn) if 0 < turn < noise.rounds else noise


def optimised(noise: Noise, separation: int, turn: int = 0) -> Noise:
    """The same of a BLT with the decays and scales that need the least noise for its rounds and
    participations, those between two beginnings where it has a `turn`; another mechanism has none
    to choose.

    >>> best = optimised(Noise(Mechanism.BLT, 1.0, 8.0, 1e-10, 9, 3), 3)
    >>> [round(each, 2) for each in best.decays], [round(each, 2) for each in best.scales]
    ([0.34], [0.56])
    """
    if noise.mechanism is not Mechanism.BLT:
        return noise
    rounds, separation = within(noise, turn).rounds, max(1, separation)
    most = min(noise.participations, -(-rounds // separation))
    decays, scales = toeplitz.best(Pattern(rounds, separation, most))
    return replace(noise, decays=decays, scales=scales)


def sensitivity(noise: Noise, blocks: Sequence[int], separation: int, participations: int) -> float:
    """The most that one device can change of C x, in L2 norm, when each of its updates has a norm
    of at most 1.

    blocks: sums of each beginning; separation: sums from one of a device to its next at least, as a
    difference of their numbers; participations: sums that a device is in at most.
    """
    separation = max(1, separation)
    # of a device that is always in a sum as soon as it may be
    most = min(participations, -(-sum(blocks) // separation))
    if noise.mechanism is Mechanism.TREE:
        return math.sqrt(tree.squared(_forests(noise, blocks), separation, most))
    return math.sqrt(_squared(noise, tuple(blocks), separation, most))


def sensitivity_of_life(noise: Noise, separation: int, participations: int) -> float:
    """The same of all sums that a task can have, wherever its noise may begin anew: what a device
    can say that is not told where it did.
    """
    if noise.mechanism is Mechanism.TREE:  # a beginning moves the nodes, and can fill more of them
        largest, separation = _of_tree(noise), max(1, separation)
        most = min(participations, -(-noise.rounds // separation))
        return math.sqrt(tree.bound([largest] * most, separation, most))
    return sensitivity(noise, (noise.rounds,), separation, participations)  # it only cuts columns


def _forests(noise: Noise, blocks: Sequence[int]) -> list[int]:
    """Sums of each tree or forest, where one begins also when `restart` sums are full."""
    size = _of_tree(noise)
    forests = []
    for rounds in blocks:
        whole, rest = divmod(rounds, size)
        forests += [size] * whole + [rest] * bool(rest)
    return forests


@functools.lru_cache(maxsize=4096)
def _squared(noise: Noise, blocks: tuple[int, ...], separation: int, most: int) -> float:
    # the best way to spread the participations over the blocks; that two of different blocks must
    # be apart too is left out, which can only raise it
    best = np.zeros(1)  # by participations so far
    alike = {
        rounds: toeplitz.squares(*_buffers(noise), Pattern(rounds, separation, most))
        for rounds in set(blocks)
    }
    for own in map(alike.__getitem__, blocks):
        joined = np.zeros(min(most, len(best) + len(own) - 2) + 1)
        for count, more in enumerate(own[: len(joined)]):
            part = best[: len(joined) - count] + more
            joined[count : count + len(part)] = np.maximum(joined[count : count + len(part)], part)
        best = joined
    return float(best.max())


@functools.lru_cache(maxsize=256)
def row_norm(noise: Noise) -> float:
    """The stddev of the widest noise of a round / that of one independent Gaussian."""
    if noise.mechanism is Mechanism.TREE:
        return max(math.sqrt(_gain(height)) for height in range(_of_tree(noise).bit_length()))
    return float(np.linalg.norm(inverse(noise, noise.rounds)))


def prefix_rmse(noise: Noise, rounds: int) -> float:
    """Root mean square, over the rounds, of the stddev of the noise in the sum of all rounds so
    far, in units of one independent Gaussian's.
    """
    if noise.mechanism is Mechanism.TREE:
        return math.sqrt(float(np.mean(_prefix_variances(noise, rounds))))
    return math.sqrt(toeplitz.prefix_variance(*_buffers(noise), rounds))
