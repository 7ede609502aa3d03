"""Packing: small whole numbers -> words that add up, and a sum of words -> the sums of the numbers.

A word of some bytes holds several digits of one base. As long as no digit's sum reaches the base,
adding words modulo their size adds all digits and carries nothing; and a mask that is uniform over
all words hides every digit of a word perfectly.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORD_BYTES = 8  # of the largest word


@dataclass(frozen=True)
class Layout:
    """How numbers lie in words: `base ** digits` is at most 256 ** size."""

    count: int  # numbers
    base: int  # the sums of a number stay below it
    digits: int  # of a word
    size: int  # bytes of a word

    @property
    def words(self) -> int:
        """Words that hold all numbers."""
        return -(-self.count // self.digits)

    @property
    def bytes(self) -> int:
        """Bytes of all words as they travel."""
        return self.words * self.size


def layout(count: int, largest: int, most: int, room: int = 0) -> Layout:
    """The layout that takes the least room of those in which `most` times `count` numbers up to
    `largest` add up, with a whole number between -room and room. Raises ValueError if even one a
    word has no room.

    >>> layout(1_425_408, 15, 108)  # 4 bits of 108 devices: six digits of base 1621
    Layout(count=1425408, base=1621, digits=6, size=8)
    >>> layout(1_425_408, 15, 1092)  # of 1092: fields of 14 bits
    Layout(count=1425408, base=16381, digits=4, size=7)
    """
    base = largest * most + 1 + 2 * room
    fits = [
        (size / digits, -size, Layout(count, base, digits, size))
        for size in range(1, WORD_BYTES + 1)
        if (digits := _digits(base, size))
    ]
    if not fits:
        raise ValueError(f"{most:,} numbers up to {largest:,} have no room in a word")
    return min(fits, key=lambda each: each[:2])[2]


def pack(numbers: NDArray[Any], by: Layout) -> NDArray[np.uint64]:
    """Numbers, whole and below the base, [count], as words, uint64 [words]. Digit j of a word is a
    number j * words further on.
    """
    digits = np.zeros((by.digits, by.words), np.uint64)
    digits.reshape(-1)[: by.count] = numbers
    words = np.zeros(by.words, np.uint64)
    for digit in digits[::-1]:
        words *= np.uint64(by.base)
        words += digit
    return words


def pack_noise(noise: NDArray[np.int64], room: int, by: Layout) -> NDArray[np.uint64]:
    """Whole numbers of either sign, int64 [count], as words that are added to those of a sum:
    `room` is added to each, so that the sum stays above 0, and taken off by whoever unpacks it.
    """
    return add(pack((noise + room).view(np.uint64), by), np.zeros(1, np.uint64), by)


def unpack(words: NDArray[np.uint64], by: Layout) -> NDArray[np.uint64]:
    """The numbers of words, or the sums of the numbers of a sum of words: uint64 [count]. A digit
    that no honest sum has comes out as it is; what is left over is in the last one.
    """
    digits = np.empty((by.digits, by.words), np.uint64)
    left = words.copy()
    for digit in digits[:-1]:
        left, digit[:] = np.divmod(left, np.uint64(by.base))
    digits[-1] = left
    return digits.reshape(-1)[: by.count]


def add(left: NDArray[np.uint64], right: NDArray[np.uint64], by: Layout) -> NDArray[np.uint64]:
    """The sum of words modulo their size."""
    return (left + right) & _whole(by)


def subtract(left: NDArray[np.uint64], right: NDArray[np.uint64], by: Layout) -> NDArray[np.uint64]:
    """The difference of words modulo their size."""
    return (left - right) & _whole(by)


def to_bytes(words: NDArray[np.uint64], by: Layout) -> bytes:
    """Words as they travel: little-endian, `size` bytes each."""
    raw = words.astype("<u8", copy=False).view(np.uint8).reshape(-1, WORD_BYTES)
    return raw[:, : by.size].tobytes()


def from_bytes(data: bytes | memoryview, by: Layout) -> NDArray[np.uint64]:
    """What `to_bytes` made. Raises ValueError for another length."""
    raw = np.frombuffer(data, np.uint8)
    if len(raw) != by.bytes:
        raise ValueError(f"expected {by.bytes} bytes of words, found {len(raw)}")
    if by.size == WORD_BYTES:
        return raw.view("<u8").astype(np.uint64, copy=False)
    wide = np.zeros((by.words, WORD_BYTES), np.uint8)
    wide[:, : by.size] = raw.reshape(-1, by.size)
    return wide.reshape(-1).view("<u8").astype(np.uint64, copy=False)


def _digits(base: int, size: int) -> int:
    """How many digits of a base a word of so many bytes has room for."""
    digits = 0
    while base ** (digits + 1) <= 256**size:
        digits += 1
    return digits


def _whole(by: Layout) -> np.uint64:
    return np.uint64(256**by.size - 1)
