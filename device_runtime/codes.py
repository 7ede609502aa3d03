"""Codes: a difference between two `predict.tflite` of one graph, which is all an upgrade carries.

Nothing is lost. Both sides know the old codes and both scales, so a new code is guessed from the
old one; what is packed is by how much the guess is wrong, mostly not at all.

    magic "FBCD", version uint16, SHA-256 of the old file, SHA-256 of the new one; then for each
    constant, in order of their names: how it is packed uint8, four bytes, length uint32, a stream;
    all little-endian

    int8     four bytes: the new scale, float32. The guess is old code * old scale / new scale in
             float64, rounded half to even, within 127. The stream has one byte a value: new code
             minus guess modulo 256, as int8, folded (0, -1, 1, -2, ... are 0, 1, 2, 3, ...)
    float32  four bytes: uint32, how far all differences are shifted to the right: values that
             float16 has end in zeros. Differences are of the bits read as whole numbers that rise
             with the value, modulo 2 ** 32, shifted and then folded. The stream has all of their
             lowest bytes, then the next ones up, four in all
"""

import lzma
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime import patch
from device_runtime.errors import BundleError
from device_runtime.patch import INT8, Constant, Constants
from device_runtime.weights import digest

MAGIC, VERSION = b"FBCD", 1
_HEAD = struct.Struct("<4sH32s32s")
_ENTRY = struct.Struct("<B4sI")
_SCALE, _SHIFT = struct.Struct("<f"), struct.Struct("<I")
LZMA, HUFFMAN = 0, 1  # how a stream is packed: raw LZMA2, or zlib, smaller where all is noise
# what is packed has no words, so no byte tells of the next; the dictionary bounds the memory
_FILTERS = [
    {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20, "lc": 0, "lp": 0, "pb": 0, "nice_len": 273}
]
FETCH_WHOLE = "fetch the whole predict.tflite"
OTHER_GRAPH = "publish the whole file"


def encode(old: bytes, new: bytes, constants: Constants) -> bytes:
    """What makes the file `new` of the file `old`, both of one graph with these constants. Raises
    BundleError if they are not.
    """
    before, after = (patch.graph_hash(file, constants) for file in (old, new))
    if before != after:
        raise BundleError("difference", "the two files are not of one graph", OTHER_GRAPH)
    parts = [_HEAD.pack(MAGIC, VERSION, bytes.fromhex(digest(old)), bytes.fromhex(digest(new)))]
    for _, constant in sorted(constants.items()):
        if constant.type == INT8:
            scale = patch.scale_of(new, constant)
            wrong = patch.codes_of(new, constant) - _guess(old, constant, scale)
            said, plain = _SCALE.pack(scale), _fold(wrong).tobytes()
        else:
            change = _ordered(_bits_of(new, constant)) - _ordered(_bits_of(old, constant))
            shift = _shared_zeros(change)
            folded = _fold(change.view(np.int32) >> shift)
            said, plain = _SHIFT.pack(shift), _planes(folded)
        method, stream = _pack(plain)
        parts += [_ENTRY.pack(method, said, len(stream)), stream]
    return b"".join(parts)


def apply(old: bytes, difference: bytes, constants: Constants, sha256: str) -> bytes:
    """The new file, whose SHA-256 is `sha256`, byte for byte. It takes a few times the file's size
    of memory, whatever the difference says.

    Raises BundleError for a damaged difference, or one that is of another file than `old` or makes
    another than that of `sha256`.
    """
    patch.require_fit(old, constants)
    if len(difference) < _HEAD.size:
        raise BundleError(
            "difference",
            f"expected at least {_HEAD.size} bytes, found {len(difference)}",
            FETCH_WHOLE,
        )
    magic, version, old_hash, new_hash = _HEAD.unpack_from(difference)
    if (magic, version) != (MAGIC, VERSION):
        raise BundleError(
            "difference",
            f"expected format {MAGIC!r} version {VERSION}, found {magic!r} version {version}",
            FETCH_WHOLE,
        )
    if digest(old) != old_hash.hex():
        raise BundleError(
            "difference", "made for another predict.tflite than the one held", FETCH_WHOLE
        )
    if new_hash.hex() != sha256:
        raise BundleError(
            "difference", "makes another predict.tflite than the manifest names", FETCH_WHOLE
        )
    new, at = bytearray(old), _HEAD.size
    for _, constant in sorted(constants.items()):
        if len(difference) < at + _ENTRY.size:
            raise _damaged("it ends early")
        method, said, size = _ENTRY.unpack_from(difference, at)
        at += _ENTRY.size
        plain = _unpack(difference[at : at + size], method, _plain_bytes(constant))
        at += size
        values = _new_codes(old, constant, said, plain)
        new[constant.offset : constant.offset + len(values)] = values
        for place in constant.scales:
            new[place : place + _SCALE.size] = said
    if at != len(difference):
        raise _damaged("it goes on after its end, or ends early")
    if digest(new) != sha256:
        raise _damaged("what it makes has another SHA-256 than it names")
    return bytes(new)


def _plain_bytes(constant: Constant) -> int:
    """Of the stream of a constant, unpacked."""
    return constant.values * (1 if constant.type == INT8 else 4)


def _new_codes(old: bytes, constant: Constant, said: bytes, plain: bytes) -> bytes:
    """A constant's new bytes of what its entry says."""
    if constant.type == INT8:
        scale = np.float32(_SCALE.unpack(said)[0])
        if not 0 < scale < np.inf:
            raise _damaged("a scale is not a positive number")
        wrong = _unfold(np.frombuffer(plain, np.uint8)).view(np.int8)
        return (_guess(old, constant, scale) + wrong).tobytes()
    (shift,) = _SHIFT.unpack(said)
    if shift > 31:
        raise _damaged("differences are shifted further than they are long")
    planes = np.frombuffer(plain, np.uint8).reshape(4, -1).astype(np.uint32)
    folded = planes[0] | planes[1] << 8 | planes[2] << 16 | planes[3] << 24
    change = _unfold(folded) << np.uint32(shift)
    return _bits(_ordered(_bits_of(old, constant)) + change).astype("<u4").tobytes()


def _guess(old: bytes, constant: Constant, scale: np.float32) -> NDArray[np.int8]:
    """The new codes if no weight changed: those of what the old codes stand for, int8 [values]."""
    ratio = float(patch.scale_of(old, constant)) / float(scale)
    codes, guess = patch.codes_of(old, constant), np.empty(constant.values, np.int8)
    for start in range(0, constant.values, patch.CHUNK):
        part = np.rint(codes[start : start + patch.CHUNK] * ratio)
        guess[start : start + patch.CHUNK] = np.clip(part, -patch.LARGEST, patch.LARGEST)
    return guess


def _bits_of(file: bytes, constant: Constant) -> NDArray[np.uint32]:
    """The bits of a float32 constant: uint32 [values]."""
    bits = np.frombuffer(file, "<u4", constant.values, constant.offset)
    return bits.astype(np.uint32, copy=False)


def _ordered(bits: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Bits of float32 as whole numbers that rise with the value: uint32 [n]."""
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _bits(ordered: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return np.where(ordered >> 31, ordered & np.uint32((1 << 31) - 1), ~ordered)


def _shared_zeros(change: NDArray[np.uint32]) -> int:
    """How many bits at the end are zero in all of them; none where all are zero."""
    bits = int(np.bitwise_or.reduce(change, initial=0))
    return (bits & -bits).bit_length() - 1 if bits else 0


def _fold(change: NDArray[Any]) -> NDArray[Any]:
    """0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4, ...: signed integers as unsigned ones, [n]."""
    last = 8 * change.dtype.itemsize - 1
    folded: NDArray[Any] = change << 1 ^ change >> last
    return folded.view(f"u{change.dtype.itemsize}")


def _unfold(folded: NDArray[Any]) -> NDArray[Any]:
    signs = (0 - (folded & 1)).astype(folded.dtype)  # all bits set where it was negative
    change: NDArray[Any] = folded >> 1 ^ signs
    return change


def _planes(folded: NDArray[np.uint32]) -> bytes:
    return b"".join((folded >> up & 255).astype(np.uint8).tobytes() for up in (0, 8, 16, 24))


def _pack(plain: bytes) -> tuple[int, bytes]:
    """The shorter of both ways."""
    huffman = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    packed = {
        LZMA: lzma.compress(plain, lzma.FORMAT_RAW, filters=_FILTERS),
        HUFFMAN: huffman.compress(plain) + huffman.flush(),
    }
    method = min(packed, key=lambda each: len(packed[each]))
    return method, packed[method]


def _unpack(stream: bytes, method: int, size: int) -> bytes:
    """Exactly `size` bytes, and never more in memory: no small stream fills it."""
    decoder: Any
    if method == LZMA:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
    elif method == HUFFMAN:
        decoder = zlib.decompressobj()
    else:
        raise _damaged(f"packed in a way {method} that is none")
    try:
        plain: bytes = decoder.decompress(stream, size + 1)
    except (zlib.error, lzma.LZMAError, EOFError):
        raise _damaged("cannot be unpacked") from None
    if len(plain) != size or not decoder.eof or decoder.unused_data:
        raise _damaged("of another length than the file's constants")
    return plain


def _damaged(why: str) -> BundleError:
    return BundleError("difference", f"damaged: {why}", FETCH_WHOLE)
