"""Sums: updates -> a running sum, in whole numbers.

    update -> check (mechanism.py) -> weigh -> Weighted -> add_all -> Sum -> finish (mechanism.py)

What is added are the codes themselves (`encoding.py`), so neither the order in which devices report
nor the replica that hears them can change a bit of the result, and what they stand for is worked
out once a round. A sum has as many bytes a number as its weight needs, and more as it grows: it
cannot wrap. One sum is kept, never a list of updates.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from device_runtime.errors import RunError

_HEAD = struct.Struct("<8sqq")  # magic with the kind of number, count, weight
_MAGIC = b"FBSUM3"
_KINDS = (np.dtype("<u2"), np.dtype("<u4"), np.dtype("<i8"))  # narrowest first
_SHORT = 8  # codes that short numbers must have room for to be worth a sum of their own
_BEFORE = 16  # bytes of count and weight in format 2, which had no magic


@dataclass(frozen=True)
class Sum:
    """What the reports of a round add up to."""

    # whole numbers: of updates unsigned [values], in as few bytes as the weight needs; of scores
    # int64
    total: NDArray[Any]
    weight: int = 0  # codes added, each as often as its update counts
    count: int = 0  # reports

    def parts(self) -> tuple[bytes, memoryview]:
        """All of it, little-endian: which kind of number, the count and the weight; and the
        total, where it lies.
        """
        kind = next(at for at, each in enumerate(_KINDS) if each == self.total.dtype)
        head = _HEAD.pack(_MAGIC + bytes((kind, 0)), self.count, self.weight)
        return head, self.total.astype(_KINDS[kind], copy=False).data.cast("B")

    def to_bytes(self) -> bytes:
        """The same as one."""
        return b"".join(self.parts())

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> "Sum":
        """What `to_bytes` made, or format 2 of scores: int64, the count and the weight first.
        Raises RunError for a later format.
        """
        if data[: len(_MAGIC)] != _MAGIC:
            count, weight = np.frombuffer(data[:_BEFORE], "<i8")
            total = np.frombuffer(data, "<i8", offset=_BEFORE)
            return cls(total.astype(np.int64, copy=False), int(weight), int(count))
        magic, count, weight = _HEAD.unpack_from(data)
        if magic[6] >= len(_KINDS):
            raise RunError(
                "the sum of a round",
                f"expected numbers of kind 0 to {len(_KINDS) - 1}, found {magic[6]}",
                "use the version that wrote it",
            )
        total = np.frombuffer(data, _KINDS[magic[6]], offset=_HEAD.size)
        return cls(total.astype(total.dtype.newbyteorder("="), copy=False), weight, count)


class Checked(NamedTuple):
    """An update that may be added to the sum of its round."""

    codes: NDArray[Any]  # unsigned integers [values]


class Weighted(NamedTuple):
    """An update as it counts."""

    codes: NDArray[Any]  # unsigned integers [values]
    weight: int = 1  # how often its codes are added


def empty(values: int) -> Sum:
    """The sum of no update of so many codes."""
    return Sum(np.zeros(values, _KINDS[0]))


def add_all(sum: Sum, updates: Sequence[Weighted], largest: int) -> Sum:
    """The sum with these updates in it, none of whose codes is over `largest`."""
    weight = sum.weight + int(np.sum([each.weight for each in updates], dtype=np.int64))
    total = sum.total.astype(_kind_for(weight, largest, sum.total.dtype))  # a copy
    narrow, most = total, max(1, weight)
    short = int(np.iinfo(_KINDS[0]).max) // largest
    if total.dtype.itemsize > _KINDS[0].itemsize and short >= _SHORT and len(updates) > 1:
        # short numbers are added several times as fast: first a part in them, then its sum
        narrow, most = np.zeros_like(total, _KINDS[0]), short
    left = most
    for codes, times in updates:
        if times > most:
            total += codes.astype(total.dtype) * total.dtype.type(times)
            continue
        if times > left:
            total += narrow
            narrow[:], left = 0, most
        narrow += codes if times == 1 else codes.astype(narrow.dtype) * narrow.dtype.type(times)
        left -= times
    if narrow is not total:
        total += narrow
    return Sum(total, weight, sum.count + len(updates))


def total(sums: Sequence[Sum], largest: int) -> Sum:
    """What several replicas have counted of one round, of codes up to `largest`."""
    weight = int(np.sum([each.weight for each in sums], dtype=np.int64))
    added = np.zeros(len(sums[0].total), _kind_for(weight, largest, _KINDS[0]))
    for each in sums:
        added += each.total
    return Sum(added, weight, int(np.sum([each.count for each in sums], dtype=np.int64)))


def _kind_for(weight: int, largest: int, least: "np.dtype[Any]") -> "np.dtype[Any]":
    """The narrowest numbers, but no narrower than `least`, that codes of such a weight cannot
    overflow. Raises ValueError where none is wide enough.
    """
    for kind in _KINDS:
        if kind.itemsize >= least.itemsize and weight * largest <= np.iinfo(kind).max:
            return kind.newbyteorder("=")
    raise ValueError(f"a sum has no room for {weight:,} times {largest:,}")
