"""Update encoding: clip -> rotate -> round at random to b bits -> pack, and back. One definition
for device, server and simulation.

Rotation is the randomised Walsh-Hadamard transform in blocks: random signs, then an orthonormal
Hadamard matrix. It spreads every value over its block, so one scale fits the block, and it is
linear, so the server sums rotated vectors and rotates back once a round. Each block has a scale of
its own: most of a delta lies in few blocks, and the others are spared its noise.

An update, little-endian: magic "FBUP", version uint16, bits uint16, round uint32, examples uint32,
dimension uint32, rotation seed uint64, shapes hash of 32 bytes; for each block low and step,
float32; then the codes of all blocks, `bits` each, most significant bit first, without gaps.
Sources: Suresh et al. 2017, arXiv:1611.00429 (rotation, stochastic k-level quantization); Alistarh
et al. 2017, arXiv:1610.02132 (a scale a bucket).
"""

import struct
from dataclasses import dataclass

import numpy as np

from device_runtime.errors import UpdateError
from device_runtime.weights import Weights

BLOCK = 4096  # values rotated together; the last block of a vector is padded with zeros
MAGIC, VERSION = b"FBUP", 2
_HEADER = struct.Struct(
    "<4sHHIIIQ32s"
)  # magic, version, bits, round, examples, dimension, seed, shapes hash
HEADER_BYTES = _HEADER.size
SCALE_BYTES = 8  # of one block
SEND_AGAIN = "encode the update again with this round's plan"


@dataclass(frozen=True)
class Update:
    """One encoded delta: in each block `low + step * codes` is its rotated vector, within one step
    of the exact one.
    """

    round: int
    seed: int  # of the round's rotation
    shapes: str  # `weights.shapes_hash` of what the delta belongs to
    bits: int
    examples: int  # the update counts by them, at least 1
    dimension: int  # values before padding
    low: np.ndarray  # float32 [blocks]
    step: np.ndarray  # float32 [blocks], at least 0
    codes: (
        np.ndarray
    )  # uint16 (of 1, 2, 4 and 8 bits uint8) [padded dimension], each under 2 ** bits


def clip(delta: Weights, clipping_norm: float) -> Weights:
    """Scale the delta down so that its L2 norm, all arrays together, is at most `clipping_norm`."""
    total = np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in delta.values()))
    factor = np.float32(min(1.0, clipping_norm / total)) if total > 0 else np.float32(1)
    return {name: array * factor for name, array in delta.items()}


def padded(dimension: int) -> int:
    """Values after padding to whole blocks."""
    return -(-dimension // BLOCK) * BLOCK


def rotate(vector: np.ndarray, seed: int) -> np.ndarray:
    """Randomised Hadamard rotation, float32 [n] -> float32 [padded(n)]. Keeps the L2 norm."""
    blocks = np.zeros(padded(len(vector)), np.float32)
    blocks[: len(vector)] = vector
    return _hadamard(blocks * _signs(seed, len(blocks)))


def unrotate(vector: np.ndarray, seed: int, dimension: int) -> np.ndarray:
    """The inverse of `rotate`: float [padded(dimension)] -> float [dimension], in the vector's own
    precision.
    """
    return (_hadamard(vector) * _signs(seed, len(vector)))[:dimension]


def quantize(
    blocks: np.ndarray, bits: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
    codes = np.floor(
        position + rng.random(blocks.shape)
    )  # up with probability equal to the fraction
    codes[step == 0] = 0
    return np.clip(codes, 0, 2**bits - 1).astype(np.uint16), low, step


def values(update: Update) -> np.ndarray:
    """The rotated vector an update stands for, float64 [padded dimension]."""
    codes = update.codes.reshape(len(update.low), BLOCK)
    return (
        update.low.astype(np.float64)[:, None] + update.step.astype(np.float64)[:, None] * codes
    ).reshape(-1)


def encode(
    vector: np.ndarray,
    round: int,
    seed: int,
    shapes: str,
    bits: int,
    examples: int,
    rng: np.random.Generator,
) -> bytes:
    """A clipped delta (flat float32 vector) as the bytes a device uploads: header, scales, then
    codes packed at `bits` each.

    Raises ValueError for examples under 1, bits outside 1..16 or a value that is not finite.
    """
    if examples < 1:
        raise ValueError(f"an update counts by its examples: expected at least 1, found {examples}")
    codes, low, step = quantize(rotate(vector, seed).reshape(-1, BLOCK), bits, rng)
    header = _HEADER.pack(
        MAGIC, VERSION, bits, round, examples, len(vector), seed, bytes.fromhex(shapes)
    )
    return (
        header
        + np.stack([low, step], axis=1).astype("<f4").tobytes()
        + pack(codes.reshape(-1), bits)
    )


def decode(data: bytes) -> Update:
    """Read what `encode` wrote. Raises UpdateError for anything else; nothing is allocated before
    the lengths agree.
    """
    if len(data) < HEADER_BYTES:
        raise UpdateError(
            "update",
            f"expected a header of {HEADER_BYTES} bytes, found {len(data)} bytes",
            SEND_AGAIN,
        )
    magic, version, bits, round, examples, dimension, seed, shapes = _HEADER.unpack_from(data)
    if (magic, version) != (MAGIC, VERSION):
        raise UpdateError(
            "update",
            f"expected format {MAGIC!r} version {VERSION}, found {magic!r} version {version}",
            SEND_AGAIN,
        )
    if not 1 <= bits <= 16:
        raise UpdateError("update", f"expected 1 to 16 bits, found {bits}", SEND_AGAIN)
    if len(data) != encoded_bytes(dimension, bits):
        raise UpdateError(
            "update",
            f"expected {encoded_bytes(dimension, bits)} bytes, found {len(data)}",
            SEND_AGAIN,
        )
    if examples < 1:
        raise UpdateError("update", "expected at least 1 example, found 0", SEND_AGAIN)
    blocks = padded(dimension) // BLOCK
    low, step = (
        np.frombuffer(data, "<f4", 2 * blocks, HEADER_BYTES).reshape(blocks, 2).T.astype(np.float32)
    )
    if not (np.isfinite(low).all() and np.isfinite(step).all() and (step >= 0).all()):
        raise UpdateError("update", "a scale is not finite, or negative", SEND_AGAIN)
    codes = unpack(memoryview(data)[HEADER_BYTES + SCALE_BYTES * blocks :], bits, padded(dimension))
    return Update(round, seed, shapes.hex(), bits, examples, dimension, low, step, codes)


def encoded_bytes(dimension: int, bits: int) -> int:
    """Bytes of an encoded update of `dimension` values: what one device uploads."""
    blocks = padded(dimension) // BLOCK
    return HEADER_BYTES + blocks * (
        SCALE_BYTES + BLOCK * bits // 8
    )  # a block of 4096 codes is whole bytes at any width


def pack(codes: np.ndarray, bits: int) -> bytes:
    """Codes of `bits` bits each, most significant bit first, without gaps."""
    if bits in (8, 16):
        return codes.astype(">u2" if bits == 16 else np.uint8).tobytes()
    wide = np.unpackbits(codes.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)  # [n, 16]
    return np.packbits(wide[:, 16 - bits :].reshape(-1)).tobytes()


def unpack(data: bytes | memoryview, bits: int, count: int) -> np.ndarray:
    """The inverse of `pack`: uint16 [count]; of 1, 2, 4 and 8 bits uint8, of 8 the bytes as they
    came.
    """
    raw = np.frombuffer(data, np.uint8)
    if bits == 8:
        return raw
    if 8 % bits == 0:  # no code lies across two bytes
        codes = np.empty((len(raw), 8 // bits), np.uint8)
        for place in range(8 // bits):
            codes[:, place] = raw >> (8 - bits * (place + 1)) & (2**bits - 1)
        return codes.reshape(-1)[:count]
    if bits == 16:
        return raw.view(">u2").astype(np.uint16)
    narrow = np.unpackbits(raw, count=count * bits).reshape(count, bits)
    wide = np.zeros((count, 16), np.uint8)
    wide[:, 16 - bits :] = narrow
    return np.packbits(wide, axis=1).view(">u2").reshape(count).astype(np.uint16)


def _signs(seed: int, count: int) -> np.ndarray:
    bits = np.random.Generator(np.random.Philox(key=seed)).integers(0, 2, count, np.int8)
    return (1 - 2 * bits).astype(np.float32)


def _hadamard(vector: np.ndarray) -> np.ndarray:
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
    return (blocks / np.sqrt(BLOCK).astype(vector.dtype)).reshape(-1)
