"""Clip and rotation: what is done to a delta before it is rounded (`encoding.py`). One definition
for device, server and simulation.

Rotation is the randomised Walsh-Hadamard transform in blocks: random signs, then an orthonormal
Hadamard matrix. It spreads every value over its block, and it is linear, so sums of rotated vectors
are rotated back once a round.
Source: Suresh et al. 2017, arXiv:1611.00429.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime.weights import Weights

BLOCK = 4096  # values rotated together; the last block of a vector is padded with zeros
_SIDE = 64  # a block is a square of rows
_CHUNK = 16  # blocks worked on at a time: they stay in a core's own cache


def clip(delta: Weights, clipping_norm: float) -> Weights:
    """Scale the delta down so that its L2 norm, all arrays together, is at most `clipping_norm`."""
    total = np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in delta.values()))
    factor = np.float32(min(1.0, clipping_norm / total)) if total > 0 else np.float32(1)
    return {name: array * factor for name, array in delta.items()}


def padded(dimension: int) -> int:
    """Values after padding to whole blocks."""
    return -(-dimension // BLOCK) * BLOCK


def rotate(vector: NDArray[Any], seed: int) -> NDArray[Any]:
    """Randomised Hadamard rotation, float32 [n] -> float32 [padded(n)]. Keeps the L2 norm."""
    blocks = np.zeros(padded(len(vector)), np.float32)
    blocks[: len(vector)] = vector
    return _hadamard(blocks * _signs(seed, len(blocks)))


def unrotate(vector: NDArray[Any], seed: int, dimension: int) -> NDArray[Any]:
    """The inverse of `rotate`: float [padded(dimension)] -> float [dimension], in the vector's own
    precision.
    """
    values: NDArray[Any] = _hadamard(vector) * _signs(seed, len(vector))
    return values[:dimension]


def _signs(seed: int, count: int) -> NDArray[Any]:
    bits = np.random.Generator(np.random.Philox(key=seed)).integers(0, 2, count, np.int8)
    return (1 - 2 * bits).astype(np.float32)


def _hadamard(vector: NDArray[Any]) -> NDArray[Any]:
    """Orthonormal Walsh-Hadamard transform of each block; its own inverse. log2(BLOCK) passes of
    additions, in one order, so that every processor rounds alike.

    Neighbours are transformed as rows of the transposed block: whole rows are added at once.
    """
    blocks = vector.reshape(-1, _SIDE, _SIDE)
    rotated = np.empty_like(blocks)
    for start in range(0, len(blocks), _CHUNK):
        part = slice(start, start + _CHUNK)
        columns = blocks[part].transpose(0, 2, 1).copy()
        done, other = _passes(columns, np.empty_like(columns))
        other[:] = done.transpose(0, 2, 1)
        done, _ = _passes(other, done)
        np.divide(done, np.sqrt(BLOCK).astype(vector.dtype), out=rotated[part])
    return rotated.reshape(-1)


def _passes(values: NDArray[Any], other: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The transform over the rows of each square, and an array that is free: both are written."""
    half = 1
    while half < _SIDE:
        pairs = values.reshape(len(values), -1, 2, half * _SIDE)
        sums = other.reshape(pairs.shape)
        np.add(pairs[:, :, 0], pairs[:, :, 1], out=sums[:, :, 0])
        np.subtract(pairs[:, :, 0], pairs[:, :, 1], out=sums[:, :, 1])
        values, other = other, values
        half *= 2
    return values, other
