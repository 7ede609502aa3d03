"""Sums: updates -> a running sum -> the mean delta, in fixed point.

    update -> check -> Checked -> weigh (mechanism.py) -> Weighted -> add_all -> Sum -> mean

An update moves a sum by at most its weight times the clipping norm, whatever its device sends: what
is over that norm after decoding is scaled back to it. The sum stays in the rotated domain, so the
rotation is undone once a round, and in fixed point (int64, weight * value * SCALE), so addition is
exact: neither the order in which devices report nor the replica that hears them can change a bit of
the result. One sum is kept, never a list of updates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from device_runtime import quantize
from device_runtime.causes import Cause
from device_runtime.update import Update
from device_runtime.wire import Plan

SCALE = 2**36  # fixed point: one unit is 2 ** -36 of a weighted value
EXACT = 2.0**53  # float64 holds every whole number below it
CHUNK = 16  # blocks worked on at a time: 65,536 values of 8 bytes stay in a core's own cache
_FLOAT32_SLACK = 1.001  # devices clip and rotate in float32
_FLOAT64_SLACK = 1 + 1e-12  # what scales an update is rounded too
_NARROW = 256  # squares of 8 bits whose sum float32 holds exactly


@dataclass(frozen=True)
class Sum:
    """What the updates of a round add up to."""

    total: NDArray[np.int64]  # [padded dimension], sum of weight * rotated value * SCALE
    weight: int = 0
    count: int = 0

    def to_bytes(self) -> memoryview:
        """All of it: int64, little-endian, the count and the weight before the total."""
        head = np.array([self.count, self.weight], np.int64)
        values: memoryview = np.concatenate([head, self.total]).astype("<i8", copy=False).data
        return values.cast("B")

    @classmethod
    def from_bytes(cls, data: bytes) -> "Sum":
        """What `to_bytes` made."""
        values = np.frombuffer(data, "<i8").astype(np.int64, copy=False)
        return cls(values[2:], int(values[1]), int(values[0]))


class Checked(NamedTuple):
    """An update that may be added to the sum of its round."""

    update: Update
    examples: int  # what it says it was trained on, at most the plan's rows
    scale: float  # at most 1: what brings its decoded values to the clipping norm


class Weighted(NamedTuple):
    """An update as it counts."""

    update: Update
    weight: int  # in what the mean is divided by
    share: float  # of its decoded values that moves the mean


def empty(dimension: int) -> Sum:
    """The sum of no update of so many values."""
    return Sum(np.zeros(quantize.padded(dimension), np.int64))


def largest_norm(plan: Plan, steps: float) -> float:
    """The L2 norm of a decoded update that an honest device cannot exceed. `steps` is the L2 norm
    of its blocks' steps.

    It clipped its delta to the plan's norm; rounding then moved each of the values of a block by at
    most one step of it.
    """
    return plan.clipping_norm * _FLOAT32_SLACK + steps * float(np.sqrt(quantize.BLOCK))


def largest_steps(plan: Plan, dimension: int) -> float:
    """The L2 norm of the blocks' steps that an honest device exceeds once in a thousand million
    updates.

    Random signs spread a block of norm c over its values: each is beyond c * sqrt(2 log(2 / p) /
    BLOCK) with a chance under p (Hoeffding). So a block's step is within a share of its norm, and
    all blocks' norms together are within the clipping norm.
    """
    values = quantize.padded(dimension)
    peak = (
        plan.clipping_norm
        * _FLOAT32_SLACK
        * np.sqrt(2 * np.log(2 * values / 1e-9) / quantize.BLOCK)
    )
    return float(2 * peak / (2**plan.bits - 1))


def capacity(plan: Plan) -> int:
    """The total weight one Sum can hold: no value of an update exceeds the clipping norm it is
    scaled to, so below this no int64 can overflow.

    Rounding `low` and `step` to whole units moves a value by at most 2 ** 15 of them, whatever its
    weight: half a unit for each of 2 ** 16 codes.
    """
    return int((2**63 - 1) / (SCALE * plan.clipping_norm * _FLOAT64_SLACK + 2**15 + 1))


def check(
    update: Update, round: int, seed: int, shapes: str, dimension: int, plan: Plan
) -> Checked | Cause:
    """How a decoded update may be added to the sum of `round`, whose rotation has `seed`; or why it
    must not.

    Rounding to few bits raises the norm of an honest update too, at one bit to several times the
    clip: it is scaled back. What no honest device sends is refused.
    """
    if (update.round, update.seed) != (round, seed):
        return Cause.WRONG_ROUND
    if (update.shapes, update.dimension) != (shapes, dimension):
        return Cause.WRONG_SHAPES
    if update.bits != plan.bits:
        return Cause.NOT_AN_UPDATE
    # without a bound on the steps a device could buy itself any norm with a coarse scale
    steps = float(np.linalg.norm(update.step.astype(np.float64)))
    norm = _norm(update)
    if steps > largest_steps(plan, dimension) or not norm <= largest_norm(plan, steps):
        return Cause.NORM_TOO_LARGE
    scale = plan.clipping_norm / max(norm, plan.clipping_norm)
    return Checked(update, min(update.examples, plan.max_rows), scale)


def add_all(sum: Sum, updates: Sequence[Weighted]) -> Sum:
    """The sum with checked updates in it. Only whole numbers are added: low and step of each block
    are rounded to units once, times their weight.

    So a value is off by less than half a unit, and half a unit for each code: at 8 bits under 2e-9
    of a value of weight 1, at 16 bits 5e-7. An update that is late, or was over the clipping norm
    (share under 1), moves the mean by its share, and still counts fully in what the mean is divided
    by.
    """
    total = sum.total.reshape(-1, quantize.BLOCK).copy()  # [blocks, BLOCK]
    # codes and steps of updates whose products add up exactly in float64, the most they can add up
    # to, and what they start from, by block
    together: list[tuple[NDArray[Any], NDArray[np.int64]]] = []
    reach, lows = np.zeros(len(total)), np.zeros(len(total), np.int64)
    for update, weight, share in updates:
        step = _units(update.step, weight * share)
        lows += _units(update.low, weight * share)
        mine = step * (2.0**update.bits - 1)
        if together and (reach + mine).max() >= EXACT:
            _add(total, together, np.zeros_like(lows), reach.max())
            together, reach = [], np.zeros(len(total))
        together.append((update.codes.reshape(total.shape), step))
        reach += mine
    _add(total, together, lows, reach.max(initial=0.0))
    more = [weight for _, weight, _ in updates]
    return Sum(
        total.reshape(-1), sum.weight + int(np.sum(more, dtype=np.int64)), sum.count + len(more)
    )


def total(sums: Sequence[Sum]) -> Sum:
    """What several replicas have counted of one round."""
    first, *others = sums
    for each in others:
        first = Sum(first.total + each.total, first.weight + each.weight, first.count + each.count)
    return first


def mean(sum: Sum, seed: int, dimension: int) -> NDArray[np.float64]:
    """The mean delta, float64 [dimension], rotated back. The sum must hold at least one update."""
    return quantize.unrotate(sum.total / (SCALE * sum.weight), seed, dimension)


def _units(values: NDArray[np.float32], weight: float) -> NDArray[np.int64]:
    """Values of blocks, times a weight, in units: int64 [blocks]."""
    units: NDArray[np.int64] = np.rint(values.astype(np.float64) * (weight * SCALE)).astype(
        np.int64
    )
    return units


def _add(
    total: NDArray[np.int64],
    updates: Sequence[tuple[NDArray[Any], NDArray[np.int64]]],
    low: NDArray[np.int64],
    reach: float,
) -> None:
    """Add code * step of every update, and low, to the total, in place. No product, nor a sum of
    them, is over `reach`.

    total is int64 [blocks, BLOCK], low int64 [blocks]; an update is its codes, [blocks, BLOCK], and
    its steps in units, int64 [blocks]. Float64 is faster and holds whole numbers up to EXACT; one
    update of a large weight can be beyond that alone.
    """
    kind: type[np.float64 | np.int64] = np.float64 if reach < EXACT else np.int64
    product, added = np.empty((2, CHUNK, quantize.BLOCK), kind)
    for start in range(0, len(total), CHUNK):
        part = slice(start, min(start + CHUNK, len(total)))
        product_now: NDArray[Any] = product[: part.stop - start]
        added_now: NDArray[Any] = added[: part.stop - start]
        added_now[:] = 0
        for codes, step in updates:
            np.copyto(product_now, codes[part], casting="unsafe")
            product_now *= step[part, None].astype(kind)
            added_now += product_now
        total[part] += added_now.astype(np.int64)
        total[part] += low[part, None]


def _norm(update: Update) -> float:
    """The L2 norm of the rotated vector an update stands for: of each block low^2 n + 2 low step
    (sum of codes) + step^2 (sum of their squares). No number where a scale is beyond all bounds.

    All sums are exact, so that no processor's order of adding can change a bit of what is scaled by
    the norm.
    """
    codes = update.codes.reshape(-1, quantize.BLOCK)
    low, step = update.low.astype(np.float64), update.step.astype(np.float64)
    first, second = np.empty((2, len(codes)))  # sums of the codes and of their squares, by block
    kind: type[np.float32 | np.float64] = np.float32 if update.bits <= 8 else np.float64
    scratch: NDArray[Any] = np.empty((CHUNK, quantize.BLOCK), kind)
    ones = np.ones((quantize.BLOCK, 1), kind)
    for start in range(0, len(codes), CHUNK):
        part = slice(start, min(start + CHUNK, len(codes)))
        values = scratch[: part.stop - start]
        np.copyto(values, codes[part], casting="unsafe")
        # row by row: over a whole chunk the library would start threads
        first[part] = np.matmul(values[:, None], ones)[:, 0, 0]
        narrow = values.reshape(-1, _NARROW)
        squares = np.einsum("ij,ij->i", narrow, narrow).reshape(len(values), -1)
        second[part] = squares.sum(axis=1, dtype=np.float64)
    # a hostile scale: infinite, or no number, and so not within any bound
    with np.errstate(over="ignore", invalid="ignore"):
        of_blocks = quantize.BLOCK * low**2 + 2 * low * step * first + step**2 * second
    if not np.isfinite(of_blocks).all():
        return math.nan
    return math.sqrt(max(0.0, math.fsum(of_blocks)))  # nearly nothing, rounded, may lie below it
