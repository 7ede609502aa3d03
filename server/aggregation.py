"""Aggregation: a running sum of updates -> mean delta -> new weights.

The sum stays in the rotated domain, so the rotation is undone once a round, and in fixed point (int64, weight * value * 2 ** 32), so addition is
exact: the order in which devices report cannot change a bit of the result. One sum is kept, never a list of updates.
"""

from dataclasses import dataclass

import numpy as np

from device_runtime import quantize, weights
from device_runtime.errors import ConfigError
from device_runtime.weights import Weights
from device_runtime.wire import Cause, Plan

SCALE = 2**32  # fixed point: one unit is 2 ** -32 of a weighted value
_FLOAT32_SLACK = 1.001  # devices clip and rotate in float32


@dataclass(frozen=True)
class Sum:
    """What the updates of a round add up to."""

    total: np.ndarray  # int64 [padded dimension], sum of weight * rotated value * SCALE
    weight: int = 0
    count: int = 0


@dataclass(frozen=True)
class ServerStep:
    """How the mean delta moves the weights. FedAvg by default; with momentum FedAvgM (Hsu et al. 2019, arXiv:1909.06335)."""

    learning_rate: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.learning_rate < np.inf):
            raise ConfigError("step.learning_rate", f"expected a positive number, found {self.learning_rate}", "correct it")
        if not 0 <= self.momentum < 1:
            raise ConfigError("step.momentum", f"expected 0 up to 1, found {self.momentum}", "correct it")


def empty(dimension: int) -> Sum:
    return Sum(np.zeros(quantize.padded(dimension), np.int64))


def largest_norm(plan: Plan, steps: float) -> float:
    """The L2 norm of a decoded update that an honest device cannot exceed. `steps` is the L2 norm of its blocks' steps.

    It clipped its delta to the plan's norm; rounding then moved each of the values of a block by at most one step of it.
    """
    return plan.clipping_norm * _FLOAT32_SLACK + steps * float(np.sqrt(quantize.BLOCK))


def largest_steps(plan: Plan, dimension: int) -> float:
    """The L2 norm of the blocks' steps that an honest device exceeds once in a thousand million updates.

    Random signs spread a block of norm c over its values: each is beyond c * sqrt(2 log(2 / p) / BLOCK) with a chance under p (Hoeffding). So a
    block's step is within a share of its norm, and all blocks' norms together are within the clipping norm.
    """
    values = quantize.padded(dimension)
    peak = plan.clipping_norm * _FLOAT32_SLACK * np.sqrt(2 * np.log(2 * values / 1e-9) / quantize.BLOCK)
    return float(2 * peak / (2**plan.bits - 1))


def capacity(plan: Plan, dimension: int) -> int:
    """The total weight one Sum can hold: no value of a checked update exceeds its norm, so below this no int64 can overflow."""
    return int((2**63 - 1) / (SCALE * largest_norm(plan, largest_steps(plan, dimension))))


def check(update: quantize.Update, round: int, seed: int, shapes: str, dimension: int, plan: Plan) -> Cause | None:
    """Why a decoded update must not be added to the sum of `round`, whose rotation has `seed`; or None."""
    if (update.round, update.seed) != (round, seed):
        return Cause.WRONG_ROUND
    if (update.shapes, update.dimension) != (shapes, dimension):
        return Cause.WRONG_SHAPES
    if update.bits != plan.bits:
        return Cause.NOT_AN_UPDATE
    # without a bound on the steps a device could buy itself any norm with a coarse scale
    norm, steps = (float(np.linalg.norm(each)) for each in (quantize.values(update), update.step.astype(np.float64)))
    if steps > largest_steps(plan, dimension) or not norm <= largest_norm(plan, steps):
        return Cause.NORM_TOO_LARGE
    return None


def add(sum: Sum, update: quantize.Update, max_weight: int) -> Sum:
    """The sum with one checked update in it, counted by its examples but at most by `max_weight`."""
    weight = min(update.examples, max_weight)
    share = np.rint(quantize.values(update) * (weight * SCALE)).astype(np.int64)
    return Sum(np.add(sum.total, share, out=share), sum.weight + weight, sum.count + 1)


def mean(sum: Sum, seed: int, dimension: int) -> np.ndarray:
    """The mean delta, float64 [dimension], rotated back. The sum must hold at least one update."""
    return quantize.unrotate(sum.total / (SCALE * sum.weight), seed, dimension)


def apply(step: ServerStep, before: Weights, velocity: Weights | None, delta: np.ndarray) -> tuple[Weights, Weights | None]:
    """The next weights and velocity; velocity is None without momentum and before the first step."""
    change = weights.unflatten(delta, like=before)
    if step.momentum:
        if velocity is not None:
            change = {name: np.float32(step.momentum) * velocity[name] + change[name] for name in change}
        velocity = change
    return {name: before[name] + np.float32(step.learning_rate) * change[name] for name in before}, velocity


def fits_float16(values: Weights) -> bool:
    """Whether devices can be sent these weights: all finite as float16."""
    return all(bool((np.abs(array) <= np.finfo(np.float16).max).all()) for array in values.values())


def staleness_weight(staleness, exponent=0.5):
    return (1 + staleness) ** -exponent


def add_all(sum, updates):
    for u, w, f in updates:
        share = np.rint(quantize.values(u) * (w * f * SCALE)).astype(np.int64)
        sum = Sum(sum.total + share, sum.weight + w, sum.count + 1)
    return sum


def total(parts):
    return Sum(np.sum([p.total for p in parts], axis=0), __builtins__["sum"](p.weight for p in parts), __builtins__["sum"](p.count for p in parts))
