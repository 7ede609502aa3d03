"""Draws: random numbers by name: the same for the same numbers, whatever was drawn before.

A million devices have no generator each. What is random about device 7 on day 3 is a function of
the seed, 7, 3 and what it is for, over whole columns at once. Source of the mixing: Steele et al.
2014, "Fast splittable pseudorandom number generators" (SplitMix64).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def uniform(seed: int, *of: Any) -> NDArray[np.float64]:
    """Numbers in [0, 1), one for each row of the whole numbers `of`, which are broadcast together.

    >>> uniform(1, np.arange(3), 5).shape
    (3,)
    >>> float(uniform(1, 2, 5)) == float(uniform(1, np.arange(3), 5)[2])
    True
    """
    return (_mixed(seed, *of) >> np.uint64(11)) * 2.0**-53


def normal(seed: int, *of: Any) -> NDArray[np.float64]:
    """Standard normals, one for each row. Source: Box and Muller 1958."""
    first, second = uniform(seed, *of, 0), uniform(seed, *of, 1)
    return np.sqrt(-2.0 * np.log1p(-first)) * np.cos(2.0 * np.pi * second)


def whole(seed: int, *of: Any) -> int:
    """One whole number of 63 bits: a seed for what wants one of its own."""
    return int(_mixed(seed, *of) >> np.uint64(1))


def _mixed(seed: int, *of: Any) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        state = _scrambled(np.uint64(seed & 0xFFFFFFFFFFFFFFFF))
        for each in of:
            column = np.asarray(each).astype(np.int64).astype(np.uint64)
            state = _scrambled(state ^ _scrambled(column))
        return np.asarray(state, np.uint64)


def _scrambled(x: Any) -> Any:
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))
