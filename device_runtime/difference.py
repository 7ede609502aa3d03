"""A difference between checkpoints: what travels to a device that holds an older one.

Nothing is lost. Values near each other have neighbouring bit patterns, so float16 bits are read as
whole numbers that rise with the value, subtracted, folded so that small differences of either sign
are small, and cut into bit planes' bytes, which are entropy-coded apart: most changes fit the lower
byte. How far a value moves in these numbers follows from its size, which both sides know, so values
of one exponent stand together.

    magic "FBDF", version uint16, SHA-256 of the old file, SHA-256 of the new one,
    length of the first zlib stream uint32, of the second uint32, all little-endian;
    then three zlib streams: the header of the new file, the lower bytes, the upper bytes
"""

import struct
import zlib
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from device_runtime.errors import CheckpointError
from device_runtime.weights import digest

MAGIC, VERSION = b"FBDF", 1
_HEAD = struct.Struct("<4sH32s32sII")
HEAD_BYTES = _HEAD.size
FETCH_WHOLE = "fetch the whole checkpoint"
MOST_HEADER = 1 << 16  # bytes of a safetensors header of ours


def encode(old: bytes, new: bytes) -> bytes:
    """What makes the file `new` of the file `old`, both float16 checkpoints of one network. Raises
    CheckpointError if they are not.
    """
    before, after = _values(old, "old checkpoint"), _values(new, "new checkpoint")
    if len(before) != len(after):
        raise CheckpointError(
            "difference",
            f"one checkpoint has {len(before)} values, the other {len(after)}",
            FETCH_WHOLE,
        )
    folded = _fold(_ordered(after) - _ordered(before))[_by_exponent(before)]
    start = len(new) - 2 * len(after)
    header, low, high = (
        _pack(part)
        for part in (
            new[:start],
            (folded & 255).astype(np.uint8).tobytes(),
            (folded >> 8).astype(np.uint8).tobytes(),
        )
    )
    head = _HEAD.pack(
        MAGIC,
        VERSION,
        bytes.fromhex(digest(old)),
        bytes.fromhex(digest(new)),
        len(header),
        len(low),
    )
    return head + header + low + high


def apply(old: bytes, difference: bytes) -> bytes:
    """The new checkpoint, byte for byte. Raises CheckpointError for a damaged difference, or one
    from another checkpoint than `old`.
    """
    if len(difference) < _HEAD.size:
        raise CheckpointError(
            "difference",
            f"expected at least {_HEAD.size} bytes, found {len(difference)}",
            FETCH_WHOLE,
        )
    magic, version, old_hash, new_hash, header_bytes, low_bytes = _HEAD.unpack_from(difference)
    if (magic, version) != (MAGIC, VERSION):
        raise CheckpointError(
            "difference",
            f"expected format {MAGIC!r} version {VERSION}, found {magic!r} version {version}",
            FETCH_WHOLE,
        )
    if digest(old) != old_hash.hex():
        raise CheckpointError(
            "difference", "made for another checkpoint than the one held", FETCH_WHOLE
        )
    before = _values(old, "old checkpoint")
    at = _HEAD.size + header_bytes
    header = _unpack(difference[_HEAD.size : at], MOST_HEADER)
    low = _unpack(difference[at : at + low_bytes], len(before), exactly=True)
    high = _unpack(difference[at + low_bytes :], len(before), exactly=True)
    folded = np.empty(len(before), np.uint16)
    folded[_by_exponent(before)] = (
        np.frombuffer(low, np.uint8).astype(np.uint16)
        | np.frombuffer(high, np.uint8).astype(np.uint16) << 8
    )
    new = header + _bits(_ordered(before) + _unfold(folded)).tobytes()
    if digest(new) != new_hash.hex():
        raise CheckpointError(
            "difference", "damaged: what it makes has another SHA-256 than it names", FETCH_WHOLE
        )
    return new


def makes(start: bytes) -> str:
    """The SHA-256 of the file that a difference makes, hexadecimal, by its first HEAD_BYTES; empty
    for bytes that are not the start of a difference.
    """
    if len(start) < HEAD_BYTES:
        return ""
    magic, version, _, new_hash, _, _ = _HEAD.unpack_from(start)
    return new_hash.hex() if (magic, version) == (MAGIC, VERSION) else ""


def _values(file: bytes, where: str) -> NDArray[Any]:
    """The bits of all values in order of the file: uint16 [n]."""
    try:
        arrays = safetensors.numpy.load(file)
        size = 8 + int.from_bytes(file[:8], "little")
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(
            where, f"not a checkpoint ({type(error).__name__})", FETCH_WHOLE
        ) from None
    if any(array.dtype != np.float16 for array in arrays.values()):
        raise CheckpointError(where, "expected float16, as checkpoints travel", FETCH_WHOLE)
    return np.frombuffer(file[size:], "<u2")


def _ordered(bits: NDArray[Any]) -> NDArray[Any]:
    """Bits of float16 as whole numbers that rise with the value: uint16 [n], wrapping."""
    return np.where(bits >> 15, ~bits, bits | 0x8000)


def _bits(ordered: NDArray[Any]) -> NDArray[Any]:
    return np.where(ordered >> 15, ordered & 0x7FFF, ~ordered).astype("<u2")


def _by_exponent(bits: NDArray[Any]) -> NDArray[Any]:
    """The order in which changes travel: by the exponent of the old value, smallest first, then as
    in the file. int64 [n].
    """
    return np.argsort(bits >> 10 & 31, kind="stable")


def _fold(change: NDArray[Any]) -> NDArray[Any]:
    """0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4, ...: uint16 [n]."""
    return change << 1 ^ np.where(change >> 15, 0xFFFF, 0).astype(np.uint16)


def _unfold(folded: NDArray[Any]) -> NDArray[Any]:
    return folded >> 1 ^ np.where(folded & 1, 0xFFFF, 0).astype(np.uint16)


def _pack(data: bytes) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_DEFAULT_STRATEGY)
    return coder.compress(data) + coder.flush()


def _unpack(packed: bytes, most: int, exactly: bool = False) -> bytes:
    """At most `most` bytes, whatever the stream would give: no small stream fills the memory."""
    decoder = zlib.decompressobj()
    try:
        data = decoder.decompress(packed, most + 1)
    except zlib.error:
        raise CheckpointError("difference", "damaged: cannot be unpacked", FETCH_WHOLE) from None
    if (
        len(data) > most
        or not decoder.eof
        or decoder.unused_data
        or (exactly and len(data) != most)
    ):
        raise CheckpointError(
            "difference", "damaged: of another length than the checkpoint", FETCH_WHOLE
        )
    return data
