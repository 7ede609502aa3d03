"""Minimum separation: how many rounds lie between two reports of one device. One definition for
server, device and simulation.
"""

from typing import overload

import numpy as np
from numpy.typing import NDArray


@overload
def may_join(round: int, last: int | None, min_separation: int) -> bool: ...


@overload
def may_join(round: int, last: NDArray[np.int32], min_separation: int) -> NDArray[np.bool_]: ...


def may_join(
    round: int, last: int | NDArray[np.int32] | None, min_separation: int
) -> bool | NDArray[np.bool_]:
    """Whether a device that reported in round `last` of a task (None: in none) may report in
    `round`: at the earliest `min_separation` rounds on. Of an array of last rounds, int32 [n],
    whether each of those devices may: bool [n].

    >>> may_join(7, 5, 2), may_join(7, None, 2), may_join(7, np.array([5, 6], np.int32), 2).tolist()
    (True, True, [True, False])
    """
    return last is None or round - last >= min_separation
