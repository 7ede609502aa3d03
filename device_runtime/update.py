"""An update: the bytes a device uploads, and what they stand for. Format 2, little-endian:

    magic "FBUP", version uint16, bits uint16, round uint32, examples uint32, dimension uint32,
    rotation seed uint64, shapes hash of 32 bytes;
    for each block low and step, float32;
    the codes of all blocks, `bits` each, most significant bit first, without gaps

How values become codes is `quantize.py`'s.
"""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime import weights
from device_runtime.errors import UpdateError
from device_runtime.quantize import BLOCK, clip, padded, quantize, rotate
from device_runtime.weights import Weights
from device_runtime.wire import Assignment, Plan

MAGIC, VERSION = b"FBUP", 2
# magic, version, bits, round, examples, dimension, seed, shapes hash
_HEADER = struct.Struct("<4sHHIIIQ32s")
HEADER_BYTES = _HEADER.size
SCALE_BYTES = 8  # of one block
SEND_AGAIN = "encode the update again with this round's plan"


@dataclass(frozen=True)
class Header:
    """What a delta travels with: the round it answers, and how it is to be read and weighed."""

    round: int
    seed: int  # of the round's rotation
    shapes: str  # `weights.shapes_hash` of what the delta belongs to
    bits: int  # of a code, 1 to 16
    examples: int  # the update counts by them, at least 1


@dataclass(frozen=True)
class Update(Header):
    """One encoded delta: in each block `low + step * codes` is its rotated vector, within one step
    of the exact one.
    """

    dimension: int  # values before padding
    low: NDArray[Any]  # float32 [blocks]
    step: NDArray[Any]  # float32 [blocks], at least 0
    # uint16 (of 1, 2, 4 and 8 bits uint8) [padded dimension], each under 2 ** bits
    codes: NDArray[Any]


def of_delta(
    delta: Weights, assignment: Assignment, plan: Plan, rows: int, rng: np.random.Generator
) -> bytes:
    """The update of an assignment: the delta clipped, rotated and quantized as its round asks, with
    the rows it was trained on as its weight.
    """
    vector = weights.flatten(clip(delta, plan.clipping_norm))
    of_round = assignment.round, assignment.rotation_seed, assignment.shapes
    return encode(vector, Header(*of_round, plan.bits, examples=rows), rng)


def encode(vector: NDArray[Any], about: Header, rng: np.random.Generator) -> bytes:
    """A clipped delta as the bytes a device uploads: header, scales, then codes of `about.bits`.

    `vector` is float32 [dimension], the delta's arrays one after the other; it is padded to whole
    blocks, and each block has a low and a step. Raises ValueError for examples under 1, bits
    outside 1..16 or a value that is not finite.
    """
    if about.examples < 1:
        raise ValueError(
            f"an update counts by its examples: expected at least 1, found {about.examples}"
        )
    blocks = rotate(vector, about.seed).reshape(-1, BLOCK)  # [blocks, BLOCK]
    codes, low, step = quantize(blocks, about.bits, rng)
    sizes = about.bits, about.round, about.examples, len(vector)
    header = _HEADER.pack(MAGIC, VERSION, *sizes, about.seed, bytes.fromhex(about.shapes))
    scales: bytes = np.stack([low, step], axis=1).astype("<f4").tobytes()
    return bytes(header) + scales + pack(codes.reshape(-1), about.bits)


def decode(data: bytes | bytearray) -> Update:
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
    # a block of 4096 codes is whole bytes at any width
    return HEADER_BYTES + blocks * (SCALE_BYTES + BLOCK * bits // 8)


def dequantize(update: Update) -> NDArray[Any]:
    """The rotated vector an update stands for, float64 [padded dimension]."""
    codes = update.codes.reshape(len(update.low), BLOCK)
    low, step = update.low.astype(np.float64), update.step.astype(np.float64)
    values: NDArray[Any] = low[:, None] + step[:, None] * codes  # [blocks, BLOCK]
    return values.reshape(-1)


def pack(codes: NDArray[Any], bits: int) -> bytes:
    """Codes, unsigned integers [n] each under 2 ** bits, as `bits` bits each: most significant bit
    first, without gaps, the last byte filled with zeros.

    >>> pack(np.array([1, 2, 3], np.uint8), bits=2).hex()  # 01 10 11 00
    '6c'
    """
    if bits in (8, 16):
        return codes.astype(">u2" if bits == 16 else np.uint8).tobytes()
    wide = np.unpackbits(codes.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)  # [n, 16]
    return np.packbits(wide[:, 16 - bits :].reshape(-1)).tobytes()


def unpack(data: bytes | memoryview, bits: int, count: int) -> NDArray[Any]:
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
