"""Quantization: clip -> rotate -> round at random to b bits. One definition for device, server and
simulation; `update.py` packs the result.

Rotation is the randomised Walsh-Hadamard transform in blocks: random signs, then an orthonormal
Hadamard matrix. It spreads every value over its block, so one scale fits the block, and it is
linear, so the server sums rotated vectors and rotates back once a round. Each block has a scale of
its own: most of a delta lies in few blocks, and the others are spared its noise.
Sources: Suresh et al. 2017, arXiv:1611.00429 (rotation, stochastic k-level quantization); Alistarh
et al. 2017, arXiv:1610.02132 (a scale a bucket).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime.weights import Weights

BLOCK = 4096  # values rotated together; the last block of a vector is padded with zeros


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


def quantize(
    blocks: NDArray[Any], bits: int, rng: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Round each value at random to one of the 2 ** bits evenly spaced values of its block, without
    bias.

    blocks is float32 [blocks, n] and finite. Returns codes (uint16 [blocks, n]), low and step
    (float32 [blocks]): low + step * codes is within one step of the exact value, its expectation is
    that value, and its variance at most step ** 2 / 4. A constant block has step 0. Raises
    ValueError for bits outside 1..16 or a value that is not finite.
    """
    if not 1 <= bits <= 16:
        raise ValueError(f"bits must be 1 to 16, found {bits}")
    if not np.isfinite(blocks).all():
        raise ValueError("the vector has values that are not finite")
    low, high = blocks.min(axis=1), blocks.max(axis=1)
    step = ((high.astype(np.float64) - low) / (2**bits - 1)).astype(np.float32)
    divisor = np.where(step > 0, step, 1).astype(np.float64)
    position = (blocks.astype(np.float64) - low[:, None]) / divisor[:, None]
    # up with probability equal to the fraction
    codes = np.floor(position + rng.random(blocks.shape))
    codes[step == 0] = 0
    return np.clip(codes, 0, 2**bits - 1).astype(np.uint16), low, step


def _signs(seed: int, count: int) -> NDArray[Any]:
    bits = np.random.Generator(np.random.Philox(key=seed)).integers(0, 2, count, np.int8)
    return (1 - 2 * bits).astype(np.float32)


def _hadamard(vector: NDArray[Any]) -> NDArray[Any]:
    """Orthonormal Walsh-Hadamard transform of each block; its own inverse. log2(BLOCK) passes of
    additions.
    """
    blocks = vector.reshape(-1, BLOCK)
    half = 1
    while half < BLOCK:
        pairs = blocks.reshape(len(blocks), -1, 2, half)
        blocks = np.stack(
            [pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2
        ).reshape(-1, BLOCK)
        half *= 2
    rotated: NDArray[Any] = blocks / np.sqrt(BLOCK).astype(vector.dtype)
    return rotated.reshape(-1)
