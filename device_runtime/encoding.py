"""Encoding: a delta -> codes that add up as whole numbers, and a sum of codes -> their mean delta.

    clip -> permute by a stride -> rotate in blocks -> keep a part of each -> clip again
                                                                                  |
                                              codes <- round at random in one range

All of it is public and the same for every device and round of a task, so that the sum of codes is
the code of the sum. The stride spreads neighbours over all blocks, and the rotation every value
over its block: then one range of RANGE standard deviations fits all, and a part of each block is a
random projection of the delta, stretched to be as long as that was on average. What lies beyond the
range, or beyond the clipping norm once more, is cut off, which is the only bias in its space.
Sources: Suresh et al. 2017, arXiv:1611.00429 (rotation, stochastic k-level quantization); Kairouz
et al. 2021, arXiv:2102.06387 (conditional rounding); Chen et al. 2022, arXiv:2203.03761 (linear
compression before rounding, for noise).
"""

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime import quantize
from device_runtime.weights import Weights, flatten

RANGE = 3.0  # half the range of codes, in root mean squares of a delta of the clipping norm
SLACK = 1.01  # of the bound over what rounding can be expected to make of the norm
MOST_DRAWS = 16  # of the rounding, before the delta is made a little shorter
NARROW = 256  # squares of half steps of 8-bit codes whose sum float32 holds exactly
COMPRESSIONS = (1, 2, 4, 8, 16, 32, 64)  # what a rotated block can be cut by
CHUNK = 65_536  # values worked on at a time: they stay in a core's own cache


@dataclass(frozen=True)
class Encoding:
    """The public numbers of a task's encoding. Raises ValueError for a compression that cuts no
    block into whole parts.
    """

    dimension: int  # values of a delta
    bits: int  # of a code
    clipping_norm: float
    seed: int  # of the rotation
    # values of a rotated delta / values that travel: of each block the first ones, public and the
    # same in all rounds, so that noise finds the same basis
    compression: int = 1

    def __post_init__(self) -> None:
        if self.compression not in COMPRESSIONS:
            named = ", ".join(map(str, COMPRESSIONS))
            raise ValueError(f"compression: expected one of {named}, found {self.compression}")

    @property
    def largest(self) -> int:
        """The largest code."""
        return int(2**self.bits - 1)

    @property
    def values(self) -> int:
        """Codes of an update: of the dimension, padded to whole blocks, those that travel."""
        return quantize.padded(self.dimension) // self.compression

    @property
    def half(self) -> float:
        """Codes stand for values from minus this to this."""
        return RANGE * self.clipping_norm / math.sqrt(self.values)

    @property
    def step(self) -> float:
        """From the value of one code to that of the next."""
        return 2 * self.half / self.largest

    @property
    def bound(self) -> float:
        """Largest L2 norm of what an honest update's codes stand for / clipping norm: 1.03 at 4
        bits. What rounding adds to the square of a norm is at most a quarter step squared a value.

        >>> round(Encoding(4096, 4, 1.0, 0).bound, 3)
        1.03
        """
        return SLACK * math.sqrt(1 + (RANGE / self.largest) ** 2)

    @functools.cached_property
    def stride(self) -> int:
        """Value i * stride modulo the dimension comes to place i."""
        start = int(0.6180339887498949 * self.dimension)
        return next(a for a in range(max(1, start), self.dimension + 2) if _coprime(a, self))


def encode(delta: Weights, by: Encoding, rng: np.random.Generator) -> NDArray[Any]:
    """The codes of a delta: uint8 (over 8 bits uint16) [values], each at most `largest`.

    What they stand for has a norm of at most `bound` x the clipping norm, and is right on average
    but for what the range cuts off. Raises ValueError for a value that is not finite, or another
    number of them.
    """
    vector = flatten(quantize.clip(delta, by.clipping_norm))
    if len(vector) != by.dimension:
        raise ValueError(f"expected {by.dimension} values, found {len(vector)}")
    if not np.isfinite(vector).all():
        raise ValueError("the vector has values that are not finite")
    rotated = quantize.rotate(vector[_places(by.dimension, by.stride)], by.seed)
    return _rounded(_kept(rotated, by), by, rng)


def mean(
    total: NDArray[Any], count: int, by: Encoding, over: int | None = None
) -> NDArray[np.float64]:
    """The mean delta, float64 [dimension], of a sum of so many codes, integers [values]: the sum of
    what they stand for over `over`, by default over their count.
    """
    values = total.astype(np.float64) * by.step - count * by.half
    values /= count if over is None else over
    permuted = quantize.unrotate(_spread(values, by), by.seed, by.dimension)
    delta = np.empty_like(permuted)
    delta[_places(by.dimension, by.stride)] = permuted
    return delta


def norm(codes: NDArray[Any], by: Encoding) -> float:
    """The L2 norm of what an update's codes, each at most `largest`, stand for, as they travel:
    stretched where they are compressed. It is what noise is measured by.

    Code c stands for (2 c - largest) half steps; the squares of these are added as whole numbers,
    so device and server get the same to the bit.
    """
    squares = _squares if by.bits <= 8 and len(codes) % NARROW == 0 else _counted_squares
    return math.sqrt(squares(codes, by.largest)) * (by.step / 2)


def _squares(codes: NDArray[Any], largest: int) -> int:
    """The sum of (2 c - largest) ** 2 over codes of up to 8 bits, whole rows of NARROW: no partial
    sum of a row is rounded, so it is the same on every machine.
    """
    total, scratch = 0.0, np.empty(min(len(codes), CHUNK), np.float32)
    for start in range(0, len(codes), CHUNK):
        part = codes[start : start + CHUNK]
        steps = scratch[: len(part)]
        np.copyto(steps, part, casting="unsafe")
        steps -= np.float32(largest / 2)
        rows = steps.reshape(-1, NARROW)
        total += float(np.einsum("ij,ij->i", rows, rows).sum(dtype=np.float64))
    return int(4 * total)


def _counted_squares(codes: NDArray[Any], largest: int) -> int:
    """The same of codes of any width and number."""
    counts = np.bincount(codes, minlength=largest + 1)
    half_steps = 2 * np.arange(largest + 1, dtype=np.int64) - largest
    return int(counts @ half_steps**2)


def is_within(norm: float, by: Encoding) -> bool:
    """Whether an update of a device that keeps to the encoding can stand for such a norm."""
    return norm <= by.bound * by.clipping_norm


def norm_of_sum(total: NDArray[Any], count: int, by: Encoding) -> float:
    """The L2 norm of what the mean of `count` updates' summed codes stands for. That of honest
    updates is at most the largest of their own.
    """
    return float(np.linalg.norm(total.astype(np.float64) * (by.step / count) - by.half))


def _kept(rotated: NDArray[Any], by: Encoding) -> NDArray[Any]:
    """The values that travel, [values], of all those of a rotated delta: as many of each block,
    stretched to what the norm was on average, and again within the clipping norm.
    """
    if by.compression == 1:
        return rotated
    blocks = rotated.reshape(-1, quantize.BLOCK)[:, : quantize.BLOCK // by.compression]
    kept = blocks.reshape(-1) * np.float32(math.sqrt(by.compression))
    return quantize.clip({"kept": kept}, by.clipping_norm)["kept"]


def _spread(values: NDArray[np.float64], by: Encoding) -> NDArray[np.float64]:
    """Values that travelled, [values], where they were among all those of a rotated delta, as long
    as the delta's part in their space.
    """
    if by.compression == 1:
        return values
    size = quantize.BLOCK // by.compression
    blocks = np.zeros((len(values) // size, quantize.BLOCK))
    blocks[:, :size] = values.reshape(-1, size) / math.sqrt(by.compression)
    return blocks.reshape(-1)


def _rounded(rotated: NDArray[Any], by: Encoding, rng: np.random.Generator) -> NDArray[Any]:
    """Codes by random rounding, drawn again until their norm is within the bound; after MOST_DRAWS
    of a delta that is a little shorter each time. Of a delta of zeros any draw is within it.
    """
    for draw in itertools.count():
        shorter = 0.9 ** max(0, draw - MOST_DRAWS + 1) if draw < 2 * MOST_DRAWS else 0.0
        codes = _drawn(rotated, shorter, by, rng)
        if is_within(norm(codes, by), by):
            return codes
    raise AssertionError("a delta of zeros is within the bound")


def _drawn(
    rotated: NDArray[Any], shorter: float, by: Encoding, rng: np.random.Generator
) -> NDArray[Any]:
    """The codes of one draw: each value goes up with probability equal to its fraction."""
    kind = np.uint8 if by.bits <= 8 else np.uint16
    codes = np.empty(len(rotated), kind)
    middle, factor = np.float32(by.largest / 2), np.float32(shorter / by.step)
    for start in range(0, len(rotated), CHUNK):
        part = slice(start, start + CHUNK)
        position = rotated[part] * factor + middle
        np.clip(position, 0, by.largest, out=position)  # the only bias
        below = np.floor(position)
        position -= below
        codes[part] = below + (rng.random(len(position), np.float32) < position)
    return codes


@functools.lru_cache(maxsize=4)
def _places(dimension: int, stride: int) -> NDArray[np.int64]:
    places: NDArray[np.int64] = np.arange(dimension, dtype=np.int64) * stride % dimension
    return places


def _coprime(stride: int, by: Encoding) -> bool:
    return math.gcd(stride, by.dimension) == 1
