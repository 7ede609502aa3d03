"""An update: the bytes a device uploads, and what they stand for. Format 3, little-endian:

    magic "FBUP", version uint16, form uint8, 0 uint8, round uint32, numbers uint32,
    SHA-256 of the task's terms of 32 bytes;
    form 0, codes:  of each number its bits, most significant bit first, without gaps
    form 1, sealed: seal of 80 bytes, the device's signature of it of 64, masked words
    form 2, words:  masked words

How a delta becomes codes is `encoding.py`'s, how numbers lie in words `packing.py`'s, and what a
seal is `masking.py`'s. Bits and range of the numbers stand in the terms.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime import encoding, packing
from device_runtime.errors import UpdateError
from device_runtime.helper_wire import SEAL_BYTES, SIGNATURE_BYTES
from device_runtime.packing import Layout
from device_runtime.quantize import padded
from device_runtime.terms import Terms
from device_runtime.weights import Weights

MAGIC, VERSION = b"FBUP", 3
# magic, version, form, 0, round, numbers, terms
_HEADER = struct.Struct("<4sHBBII32s")
HEADER_BYTES = _HEADER.size
SEND_AGAIN = "encode the update again with this round's work"


class Form(IntEnum):
    """What follows the header."""

    CODES = 0  # anybody can read them
    SEALED = 1  # masked words, and the seed of their mask sealed to the helper
    WORDS = 2  # masked words, whose masks the devices of the round take off


@dataclass(frozen=True)
class Header:
    """What the numbers are for."""

    form: Form
    round: int  # that the device was assigned in
    numbers: int
    terms: str  # `Terms.name` of the task


@dataclass(frozen=True)
class Sealed:
    """What a sealed update holds."""

    seal: bytes  # `masking.seal`
    signature: bytes  # the device's, of `masking.Bound.signed(seal)`
    words: NDArray[np.uint64]  # masked


def of_delta(delta: Weights, round: int, by: Terms, rng: np.random.Generator) -> bytes:
    """The update that anybody can read: a delta clipped, rotated and rounded as the terms say.
    Raises ValueError for a value that is not finite, or another number of them.
    """
    codes = encoding.encode(delta, by.encoding_at(round), rng)
    return of_codes(codes, Header(Form.CODES, round, len(codes), by.name), by.bits)


def of_codes(codes: NDArray[Any], about: Header, bits: int) -> bytes:
    """Numbers, unsigned integers under 2 ** bits, [about.numbers], as they are."""
    return _head(about) + pack(codes, bits)


def of_words(words: NDArray[np.uint64], about: Header, by: Layout) -> bytes:
    """Masked words."""
    return _head(about) + packing.to_bytes(words, by)


def of_sealed(sealed: Sealed, about: Header, by: Layout) -> bytes:
    """Masked words and the sealed seed of their mask."""
    return b"".join(
        (_head(about), sealed.seal, sealed.signature, packing.to_bytes(sealed.words, by))
    )


def header(data: bytes | bytearray) -> Header:
    """What an update says of itself. Raises UpdateError for anything else."""
    if len(data) < HEADER_BYTES:
        raise UpdateError(
            "update",
            f"expected a header of {HEADER_BYTES} bytes, found {len(data)} bytes",
            SEND_AGAIN,
        )
    magic, version, form, zero, round, numbers, terms = _HEADER.unpack_from(data)
    if (magic, version) != (MAGIC, VERSION):
        raise UpdateError(
            "update",
            f"expected format {MAGIC!r} version {VERSION}, found {magic!r} version {version}",
            SEND_AGAIN,
        )
    if form not in tuple(Form) or zero != 0:
        raise UpdateError("update", f"expected form 0 to 2, found {form} and {zero}", SEND_AGAIN)
    return Header(Form(form), round, numbers, terms.hex())


def codes(data: bytes | bytearray, bits: int) -> NDArray[Any]:
    """The numbers of an update in the form of codes: what `unpack` gives, each under 2 ** bits.

    Raises UpdateError for another form or length; nothing is allocated before the lengths agree.
    """
    about = _of_form(data, Form.CODES, _bytes_of(header(data).numbers, bits))
    return unpack(memoryview(data)[HEADER_BYTES:], bits, about.numbers)


def words(data: bytes | bytearray, by: Layout) -> NDArray[np.uint64]:
    """The masked words of an update in that form. Raises UpdateError for another form or length,
    or other numbers than the layout's.
    """
    _require_numbers(_of_form(data, Form.WORDS, by.bytes), by)
    return packing.from_bytes(memoryview(data)[HEADER_BYTES:], by)


def sealed(data: bytes | bytearray, by: Layout) -> Sealed:
    """What a sealed update holds; whether the signature is its device's is for others to say.
    Raises UpdateError for another form or length, or other numbers than the layout's.
    """
    _require_numbers(_of_form(data, Form.SEALED, SEAL_BYTES + SIGNATURE_BYTES + by.bytes), by)
    start = HEADER_BYTES + SEAL_BYTES
    ends = start + SIGNATURE_BYTES
    return Sealed(
        bytes(data[HEADER_BYTES:start]),
        bytes(data[start:ends]),
        packing.from_bytes(memoryview(data)[ends:], by),
    )


def encoded_bytes(dimension: int, bits: int) -> int:
    """Bytes of an update of `dimension` values as codes: what one device uploads in the open."""
    return HEADER_BYTES + _bytes_of(padded(dimension), bits)


def code_bytes(numbers: int, bits: int) -> int:
    """Bytes of a report of so many numbers that anybody can read."""
    return HEADER_BYTES + _bytes_of(numbers, bits)


def sealed_bytes(by: Layout) -> int:
    """Bytes of a sealed update: what one device uploads to a server with a helper."""
    return HEADER_BYTES + SEAL_BYTES + SIGNATURE_BYTES + by.bytes


def pack(codes: NDArray[Any], bits: int) -> bytes:
    """Codes, unsigned integers [n] each under 2 ** bits, as `bits` bits each: most significant bit
    first, without gaps, the last byte filled with zeros.

    >>> pack(np.array([1, 2, 3], np.uint8), bits=2).hex()  # 01 10 11 00
    '6c'
    """
    if bits in (8, 16):
        return codes.astype(">u2" if bits == 16 else np.uint8).tobytes()
    if bits == 4 and len(codes) % 2 == 0:  # two a byte, and no bit moves across one
        small = codes.astype(np.uint8, copy=False)
        return (small[::2] << 4 | small[1::2]).tobytes()
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


def _head(about: Header) -> bytes:
    of = about.form, 0, about.round, about.numbers
    return _HEADER.pack(MAGIC, VERSION, *of, bytes.fromhex(about.terms))


def _bytes_of(numbers: int, bits: int) -> int:
    return -(-numbers * bits // 8)


def _of_form(data: bytes | bytearray, form: Form, size: int) -> Header:
    """The header of an update in this form with so many bytes after it. Raises UpdateError."""
    about = header(data)
    if about.form is not form:
        raise UpdateError(
            "update", f"expected {form.name.lower()}, found {about.form.name.lower()}", SEND_AGAIN
        )
    if len(data) != HEADER_BYTES + size:
        raise UpdateError(
            "update", f"expected {HEADER_BYTES + size} bytes, found {len(data)}", SEND_AGAIN
        )
    return about


def _require_numbers(about: Header, by: Layout) -> None:
    if about.numbers != by.count:
        raise UpdateError(
            "update", f"expected {by.count} numbers, found {about.numbers}", SEND_AGAIN
        )
