"""Tree: how much of all nodes of binary trees over sums one device can change.

    sums        0   1   2   3   4   5   6
    height 0    .   .   .   .   .   .   .     a node holds what all sums below it hold, and a
    height 1    +---+   +---+   +---+         Gaussian; none is drawn before its last sum is there
    height 2    +-----------+

A device that is in sums so far apart and so many changes each node by how many of them are below
it. The most that the squares add up to is found tree by tree, from small ones to large, over every
way to spread its sums; of ways that nothing tells apart but how good they are the best is kept.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_COUNTED = 128  # sums of one device, and beginnings, up to which every way is looked at
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Ways:
    """The ways to spread one number of sums over a tree, each int64 [ways].

    Its first sum at a place f up to `first`, the earliest place of its last one is the larger of
    `last` and f + (sums - 1) x separation.
    """

    value: NDArray[np.int64]  # the squares of all nodes
    first: NDArray[np.int64]
    last: NDArray[np.int64]


def squared(blocks: Sequence[int], separation: int, most: int) -> int:
    """The largest sum of the squares of all nodes, over forests of so many sums, one after the
    other. Exact for a device that can be in up to MOST_COUNTED sums and as many forests; beyond
    that what no way can exceed.

    >>> squared([4], 2, 2)  # the first and the third: of 3 heights each two, but the highest's 2^2
    8
    """
    most = min(most, -(-sum(blocks) // separation))
    if most > MOST_COUNTED or len(blocks) > MOST_COUNTED:
        return bound(blocks, separation, most)
    ends = _after(tuple(blocks), separation, most)
    return max(int(values.max()) for values, _ in ends.values())


def bound(blocks: Sequence[int], separation: int, most: int) -> int:
    """What the squares never exceed: each height by itself as full as its nodes can be."""
    total = 0
    for height in range(max(blocks, default=0).bit_length()):
        size = 1 << height
        fits = -(-size // separation)  # sums below one node
        nodes, rest = divmod(min(most, fits * sum(each // size for each in blocks)), fits)
        total += nodes * fits**2 + rest**2
    return total


Ends = dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]]


@functools.lru_cache(maxsize=1024)
def _after(blocks: tuple[int, ...], separation: int, most: int) -> Ends:
    """After forests of so many sums: by a device's sums so far the best squares, and for how many
    sums it must still stay away.
    """
    if not blocks:
        none = np.zeros(1, np.int64)
        return {0: (none, none)}
    *before, last = blocks
    if not last:
        return _after(tuple(before), separation, most)
    size = last & -last  # the last of a forest's trees is its smallest
    return _with_tree(
        _after((*before, last - size), separation, most), size.bit_length() - 1, separation, most
    )


def _with_tree(ends: Ends, height: int, separation: int, most: int) -> Ends:
    """After one tree more."""
    size = 1 << height
    found: dict[int, list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = {}
    for before, (value, away) in ends.items():
        found.setdefault(before, []).append((value, np.maximum(0, away - size)))
        for count, ways in _ways(height, separation, most).items():
            if before + count > most:
                continue
            fits = away[:, None] <= ways.first
            last = np.maximum(ways.last, away[:, None] + (count - 1) * separation)
            found.setdefault(before + count, []).append(
                (
                    (value[:, None] + ways.value)[fits],
                    np.maximum(0, last + separation - size)[fits],
                )
            )
    joined: Ends = {}
    for count, parts in found.items():
        value, away = (np.concatenate(each) for each in zip(*parts, strict=True))
        if len(value):
            order = np.lexsort((away, -value))
            value, away = value[order], away[order]
            least = np.minimum.accumulate(np.concatenate(([_NEVER], away)))[:-1]
            joined[count] = value[away < least], away[away < least]
    return joined


@functools.lru_cache(maxsize=1024)
def _ways(height: int, separation: int, most: int) -> dict[int, Ways]:
    """The ways over one complete tree, by the number of sums, at most `most`."""
    if most < 1:
        return {}
    size = 1 << height
    if size <= separation:  # one sum at most, anywhere
        return {1: Ways(*(np.array([each]) for each in (height + 1, size - 1, 0)))}
    half, children = size // 2, _ways(height - 1, separation, most)
    found: dict[int, list[Ways]] = {}
    for left, one in children.items():
        found.setdefault(left, []).extend(
            (
                Ways(one.value + left**2, one.first, one.last),
                Ways(one.value + left**2, half + one.first, half + one.last),
            )
        )
        for right, other in children.items():
            if left + right <= most:
                found.setdefault(left + right, []).append(
                    _joined(one, left, other, right, half, separation)
                )
    best = {count: _best(parts, size, separation) for count, parts in found.items()}
    return {count: ways for count, ways in best.items() if ways is not None}


def _joined(one: Ways, left: int, other: Ways, right: int, half: int, separation: int) -> Ways:
    """One way in the left child and another in the right one, where they are far enough apart."""
    reach = one.last[:, None] + separation - half  # from where the right one may begin
    fits = reach <= other.first
    first = np.minimum(one.first[:, None], half + other.first - left * separation)
    last = half + np.maximum(other.last, np.maximum(0, reach) + (right - 1) * separation)
    value = one.value[:, None] + other.value + (left + right) ** 2
    return Ways(value[fits], first[fits], last[fits])


def _best(parts: Sequence[Ways], size: int, separation: int) -> Ways | None:
    """Those ways than which no other is as good in all respects; None of none. How far a way is
    from either end says nothing any more where it is more than the separation.
    """
    value, first, last = (
        np.concatenate([getattr(each, name) for each in parts])
        for name in ("value", "first", "last")
    )
    first, last = np.minimum(first, separation - 1), np.maximum(last, size - separation)
    earliest = np.full(separation + 1, _NEVER)  # of `last`, where `first` is at least so late
    kept = []
    for each in np.unique(value)[::-1]:
        here = earliest.copy()
        of = value == each
        np.minimum.at(here, first[of], last[of])
        here = np.minimum.accumulate(here[::-1])[::-1]
        places = np.flatnonzero((here[:-1] < earliest[:-1]) & (here[:-1] < here[1:]))
        kept.append((np.full(len(places), each), places, here[places]))
        earliest = here
    return Ways(*(np.concatenate(each) for each in zip(*kept, strict=True))) if kept else None
