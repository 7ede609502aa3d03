"""Traces: what typed text, updates and keys look like in bytes, and where such bytes stand.

Every form of every mark is looked for in one pass, wherever it begins. What is shorter than HEAD
bytes would be found by chance and is no form.
"""

import base64
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

HEAD = 8  # bytes of a form that are looked for first
WINDOWS = 32  # parts of a delta that are looked for
VALUES = 6  # of each, one after the other
PACKED = (b"\x1f\x8b\x08", b"\x78\x01", b"\x78\x9c", b"\x78\xda")  # how gzip and zlib begin
FIRST_PACKED = 1 << 10  # bytes of a stream that are looked at first
MOST_UNPACKED = 1 << 24  # bytes of one stream


@dataclass(frozen=True)
class Mark:
    """Something that must not be seen."""

    what: str  # such as "words of device 3"
    forms: Mapping[str, tuple[bytes, ...]]  # what it looks like, by the name of the form


@dataclass(frozen=True)
class Seen:
    """Bytes that were sent or written."""

    where: str
    data: bytes


@dataclass(frozen=True)
class Find:
    """A mark that was seen."""

    where: str
    what: str
    form: str


def of_text(what: str, text: str) -> Mark:
    """A typed text, at least HEAD characters."""
    plain = text.encode()
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in text)
    # base64 of three bytes is four letters: whatever stands before, one of these is inside
    shifted = [base64.b64encode(b" " * before + plain) for before in range(3)]
    inner = [each[4 if before else 0 : -4] for before, each in enumerate(shifted)]
    safe = [base64.urlsafe_b64encode(b" " * before + plain) for before in range(3)]
    inner += [each[4 if before else 0 : -4] for before, each in enumerate(safe)]
    forms = {
        "UTF-8": (plain,),
        "UTF-16": (text.encode("utf-16-le"), text.encode("utf-16-be")),
        "escaped": (escaped.encode(), escaped.upper().replace("\\U", "\\u").encode()),
        "per cent": (
            quote(text, safe="").encode(),
            quote(text, safe="").replace("%20", "+").encode(),
        ),
        "hexadecimal": (plain.hex().encode(), plain.hex().upper().encode()),
        "base64": tuple(inner),
    }
    return Mark(what, _long(forms))


def of_ids(what: str, ids: Sequence[int]) -> Mark:
    """Token ids that were typed one after the other, at least HEAD of them."""
    numbers = np.array(ids)
    wide = [f"{order}{kind}" for kind in ("u2", "i4", "i8", "f4", "f8") for order in "<>"]
    forms = {
        "bytes": (numbers.astype(np.uint8).tobytes(),) if numbers.max() < 256 else (),
        "16 to 64 bits": tuple(numbers.astype(kind).tobytes() for kind in wide),
        "varints": (b"".join(map(_varint, ids)),),
        "text": tuple(mark.join(map(str, ids)).encode() for mark in (",", ", ", " ", "\n", ";")),
    }
    return Mark(what, _long(forms))


def of_values(what: str, delta: NDArray[np.float32], rng: np.random.Generator) -> Mark:
    """Values of a delta, from places drawn at random where it is not zero."""
    starts = np.flatnonzero(
        np.lib.stride_tricks.sliding_window_view(delta != 0, VALUES).all(axis=1)
    )
    chosen = rng.choice(starts, min(WINDOWS, len(starts)), replace=False)
    parts = [delta[start : start + VALUES] for start in chosen]
    kinds = {"float16": "f2", "float32": "f4", "float64": "f8"}
    forms = {
        name: tuple(part.astype(order + kind).tobytes() for part in parts for order in "<>")
        for name, kind in kinds.items()
    }
    return Mark(what, _long(forms))


def of_secret(what: str, secret: bytes) -> Mark:
    """A key or a token, as its bytes are kept."""
    forms = {
        "bytes": (secret,),
        "hexadecimal": (secret.hex().encode(), secret.hex().upper().encode()),
        "base64": (base64.b64encode(secret)[:-4], base64.urlsafe_b64encode(secret)[:-4]),
    }
    return Mark(what, _long(forms))


def find(seen: Iterable[Seen], marks: Sequence[Mark]) -> list[Find]:
    """All marks in all that was seen, each named once for each place and form; also in what was
    packed.
    """
    forms = [
        (mark.what, name, form)
        for mark in marks
        for name, each in mark.forms.items()
        for form in each
    ]
    by_head: dict[int, list[tuple[str, str, bytes]]] = {}
    for what, name, form in forms:
        head = int.from_bytes(form[:HEAD], "little")
        by_head.setdefault(head, []).append((what, name, form))
    heads = np.array(sorted(by_head), np.uint64)
    finds: dict[Find, None] = {}
    for each in seen:
        for part in (each, *unpacked(each)):
            for start, head in _places(part.data, heads):
                for what, name, form in by_head[head]:
                    if part.data.startswith(form, start):
                        finds[Find(part.where, what, name)] = None
    return list(finds)


def unpacked(seen: Seen) -> Iterator[Seen]:
    """What streams of zlib and gzip hold that begin anywhere in it."""
    whole = memoryview(seen.data)
    for magic in PACKED:
        start = seen.data.find(magic)
        while start >= 0:
            stream = zlib.decompressobj(wbits=47)  # either
            try:
                # what only looks like a stream ends soon
                text = stream.decompress(whole[start : start + FIRST_PACKED])
                if not stream.eof:
                    text += stream.decompress(whole[start + FIRST_PACKED :], MOST_UNPACKED)
            except zlib.error:
                text = b""
            if len(text) >= HEAD:
                yield Seen(f"{seen.where}, unpacked", text)
            start = seen.data.find(magic, start + 1)


def correlations(data: NDArray[np.float64], patterns: Sequence[NDArray[np.float64]]) -> list[float]:
    """Of patterns of one length the largest correlation of each with a part of `data` of that
    length, wherever it begins. 0 for data that is shorter.
    """
    size = len(patterns[0])
    if len(data) < size:
        return [0.0] * len(patterns)
    length = 1 << (len(data) + size - 1).bit_length()
    level = data - data.mean()
    spectrum = np.fft.rfft(level, length)
    sums, squares = (np.concatenate([[0.0], np.cumsum(each)]) for each in (level, level * level))
    sums, squares = (each[size:] - each[:-size] for each in (sums, squares))
    spread = squares - sums * sums / size
    is_varied = spread > size * 1e-3  # a part that hardly changes says nothing
    scale = np.sqrt(np.where(is_varied, spread, 1.0))
    largest = []
    for pattern in patterns:
        own = pattern - pattern.mean()
        products = np.fft.irfft(spectrum * np.conj(np.fft.rfft(own, length)), length)
        shares = np.abs(products[: len(spread)]) / (scale * np.linalg.norm(own))
        largest.append(float(shares[is_varied].max(initial=0.0)))
    return largest


def numbers(data: bytes) -> Iterator[NDArray[np.float64]]:
    """Bytes as the small numbers that they can hold: bytes, halves of bytes in either order."""
    each = np.frombuffer(data, np.uint8)
    yield each.astype(np.float64)
    halves = each >> 4, each & 15
    for order in (halves, halves[::-1]):
        yield np.stack(order, axis=1).reshape(-1).astype(np.float64)


def _places(data: bytes, heads: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Where a head begins, and which."""
    is_near = np.zeros(1 << 16, bool)
    is_near[(heads & np.uint64(0xFFFF)).astype(np.int64)] = True
    for offset in range(min(HEAD, max(0, len(data) - HEAD + 1))):
        count = (len(data) - offset) // HEAD
        words = np.frombuffer(data, "<u8", count, offset)
        near = np.flatnonzero(is_near[words.astype(np.uint16)])
        if not len(near):
            continue
        for at in near[np.isin(words[near], heads)]:
            yield offset + HEAD * int(at), int(words[at])


def _long(forms: Mapping[str, Sequence[bytes]]) -> dict[str, tuple[bytes, ...]]:
    return {
        name: kept
        for name, each in forms.items()
        if (kept := tuple(form for form in each if len(form) >= HEAD))
    }


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 127:
        parts.append(128 | number & 127)
        number >>= 7
    return bytes([*parts, number])
