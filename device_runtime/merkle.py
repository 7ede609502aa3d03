"""Merkle: a list of leaves that only grows -> its root, and short proofs of what is in it.

                 root of 5            the roots of ranges of leaves: [0, 4) is whole, [4, 5) too
               /          \\
          [0, 4)          [4, 5)      a proof is the roots of a few ranges: of the siblings on the
         /      \\            |        way up from a leaf, or of the ranges that were there before
      [0, 2)   [2, 4)     leaf 4

Leaves and nodes are hashed with different first bytes, so that none can stand for the other. Whole
ranges never change, so whoever keeps their roots makes any proof of a few of them. Source: RFC 6962
and RFC 9162, sections 2.1.1 to 2.1.5; hashes are 32 bytes of SHA-256.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HASH_BYTES = 32
MOST_LEAVES = 2**48
MOST_PATH = 64  # hashes of a proof
EMPTY = hashlib.sha256(b"").digest()  # the root of no leaves

Range = tuple[int, int]  # leaves from the first number up to, not with, the second
Place = tuple[int, int]  # of a whole range of 2**level leaves: its level, and which one it is


def leaf(data: bytes) -> bytes:
    """The hash of one entry's bytes."""
    return hashlib.sha256(b"\0" + data).digest()


def node(left: bytes, right: bytes) -> bytes:
    """The hash of two neighbouring ranges."""
    return hashlib.sha256(b"\1" + left + right).digest()


@dataclass(frozen=True)
class Frontier:
    """All that appending needs of what is there: the roots of its largest whole ranges."""

    size: int = 0
    roots: tuple[bytes, ...] = ()  # largest range first: one for each bit of the size

    @property
    def root(self) -> bytes:
        """Of all leaves."""
        return joined(self.roots) if self.roots else EMPTY

    def append(self, hashed: bytes) -> tuple["Frontier", dict[Place, bytes]]:
        """With one more leaf, by its hash; and the roots of the ranges that are whole by now."""
        place, roots = (0, self.size), list(self.roots)
        whole = {place: hashed}
        while place[1] % 2:
            hashed = node(roots.pop(), hashed)
            place = place[0] + 1, place[1] // 2
            whole[place] = hashed
        return Frontier(self.size + 1, (*roots, hashed)), whole


def joined(roots: Sequence[bytes]) -> bytes:
    """The root of neighbouring whole ranges, largest first, at least one."""
    *others, last = roots
    for each in reversed(others):
        last = node(each, last)
    return last


def whole(of: Range) -> list[Place]:
    """The whole ranges that a range of a proof is made of, largest first.

    >>> whole((0, 7)), whole((4, 6))
    ([(2, 0), (1, 2), (0, 6)], [(1, 2)])
    """
    start, end = of
    places = []
    while start < end:
        level = (end - start).bit_length() - 1
        places.append((level, start >> level))
        start += 1 << level
    return places


def root_of(of: Range, roots: Mapping[Place, bytes]) -> bytes:
    """The root of a range, by those of the whole ranges it is made of; of no leaves, EMPTY."""
    places = whole(of)
    return joined([roots[place] for place in places]) if places else EMPTY


def inclusion(index: int, size: int) -> list[Range]:
    """The ranges whose roots prove that the leaf `index` is among the first `size`, from the leaf
    upwards.

    >>> inclusion(4, 5), inclusion(1, 5)
    ([(0, 4)], [(0, 1), (2, 4), (4, 5)])
    """
    path: list[Range] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _half(end - start)
        if index < middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start = middle
    return path[::-1]


def consistency(old: int, new: int) -> list[Range]:
    """The ranges whose roots prove that the first `old` leaves are the first of `new`, 0 to `new`.

    >>> consistency(3, 5), consistency(4, 5), consistency(5, 5)
    ([(2, 3), (3, 4), (0, 2), (4, 5)], [(4, 5)], [])
    """
    if old in (0, new):
        return []
    path: list[Range] = []
    start, end = 0, new
    while end != old:
        middle = start + _half(end - start)
        if old <= middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start = middle
    if start:
        path.append((start, end))
    return path[::-1]


def includes(root: bytes, size: int, index: int, hashed: bytes, path: Sequence[bytes]) -> bool:
    """Whether a path proves that the leaf of this hash is the one numbered `index` of `size`."""
    if not (0 <= index < size <= MOST_LEAVES and len(path) <= MOST_PATH):
        return False
    place, last, value = index, size - 1, hashed
    for each in path:
        if last == 0:
            return False
        if place % 2 or place == last:
            value = node(each, value)
            while place and not place % 2:
                place, last = place >> 1, last >> 1
        else:
            value = node(value, each)
        place, last = place >> 1, last >> 1
    return last == 0 and value == root


def extends(old: tuple[int, bytes], new: tuple[int, bytes], path: Sequence[bytes]) -> bool:
    """Whether a path proves that a log of one size and root is the beginning of a longer one, or
    the same. Everything begins with nothing.
    """
    (before, old_root), (after, new_root) = old, new
    if not (0 <= before <= after <= MOST_LEAVES and len(path) <= MOST_PATH):
        return False
    if before in (0, after):
        same = old_root == (EMPTY if before == 0 else new_root)
        return same and not path and (after > 0 or new_root == EMPTY)
    steps = list(path)
    if before & (before - 1) == 0:  # the old log is one whole range of the new
        steps.insert(0, old_root)
    if not steps:
        return False
    place, last = before - 1, after - 1
    while place % 2:
        place, last = place >> 1, last >> 1
    first = second = steps[0]
    for each in steps[1:]:
        if last == 0:
            return False
        if place % 2 or place == last:
            first, second = node(each, first), node(each, second)
            while place and not place % 2:
                place, last = place >> 1, last >> 1
        else:
            second = node(second, each)
        place, last = place >> 1, last >> 1
    return last == 0 and (first, second) == (old_root, new_root)


def _half(leaves: int) -> int:
    """The largest power of two below a number of leaves of at least two."""
    return 1 << ((leaves - 1).bit_length() - 1)
