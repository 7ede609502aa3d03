"""Draws: random numbers by name: the same for the same numbers, whatever was drawn before.

A million devices have no generator each. What is random about device 7 on day 3 is a function of
the seed, 7, 3 and what it is for, over whole columns at once. Source of the mixing: Steele et al.
2014, "Fast splittable pseudorandom number generators" (SplitMix64).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_WHOLE = (1 << 64) - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def uniform(seed: int, *of: Any) -> NDArray[np.float64]:
    """Numbers in [0, 1), one for each row of the whole numbers `of`, which are broadcast together.

    >>> uniform(1, np.arange(3), 5).shape
    (3,)
    >>> float(uniform(1, 2, 5)) == float(uniform(1, np.arange(3), 5)[2])
    True
    """
    return share(state(seed, *of))


def state(seed: int, *of: Any) -> NDArray[np.uint64]:
    """What is common to draws `of` which begin alike: `further` goes on from there."""
    mixed: Any = np.array(_scrambled_one(seed & _WHOLE), np.uint64)
    for each in of:
        mixed = _scrambled(mixed ^ _scrambled(_column(each)))
    return np.asarray(mixed, np.uint64)


def names(numbers: Any) -> NDArray[np.uint64]:
    """What `further` and `halves` are given for whole numbers, made once for many calls."""
    return _scrambled(_column(numbers))


def further(begun: NDArray[np.uint64], named: NDArray[np.uint64]) -> NDArray[np.float64]:
    """What `uniform` draws for the numbers that `begun` is of, and one number more.

    >>> float(further(state(1, 2), names(5))) == float(uniform(1, 2, 5))
    True
    """
    return share(_scrambled(begun ^ named))


def halves(begun: NDArray[np.uint64], named: NDArray[np.uint64]) -> tuple[Any, Any]:
    """Two numbers in [0, 1) in place of one, of 32 bits each."""
    mixed = _scrambled(begun ^ named)
    return (mixed >> np.uint64(32)) * 2.0**-32, (mixed & np.uint64(0xFFFFFFFF)) * 2.0**-32


def share(mixed: NDArray[np.uint64]) -> NDArray[np.float64]:
    """A number in [0, 1) of 64 bits."""
    return (mixed >> np.uint64(11)) * 2.0**-53


def one(seed: int, *of: int) -> float:
    """The number that `uniform` draws for one row, for who needs no column of them.

    >>> one(1, 2, 5) == float(uniform(1, 2, 5))
    True
    """
    mixed = _scrambled_one(seed & _WHOLE)
    for each in of:
        mixed = _scrambled_one(mixed ^ _scrambled_one(each & _WHOLE))
    return (mixed >> 11) * 2.0**-53


def normal(seed: int, *of: Any) -> NDArray[np.float64]:
    """Standard normals, one for each row. Source: Box and Muller 1958."""
    first, second = uniform(seed, *of, 0), uniform(seed, *of, 1)
    return np.sqrt(-2.0 * np.log1p(-first)) * np.cos(2.0 * np.pi * second)


def whole(seed: int, *of: Any) -> int:
    """One whole number of 63 bits: a seed for what wants one of its own."""
    return int(state(seed, *of) >> np.uint64(1))


def _column(numbers: Any) -> NDArray[np.uint64]:
    return np.asarray(numbers).astype(np.int64).view(np.uint64)


def _scrambled(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    if x.ndim == 0:
        return np.array(_scrambled_one(int(x)), np.uint64)
    x = x + np.uint64(_GOLDEN)
    x ^= x >> np.uint64(30)
    x *= np.uint64(_FIRST)
    x ^= x >> np.uint64(27)
    x *= np.uint64(_SECOND)
    x ^= x >> np.uint64(31)
    return x


def _scrambled_one(x: int) -> int:
    x = (x + _GOLDEN) & _WHOLE
    x = ((x ^ (x >> 30)) * _FIRST) & _WHOLE
    x = ((x ^ (x >> 27)) * _SECOND) & _WHOLE
    return x ^ (x >> 31)
