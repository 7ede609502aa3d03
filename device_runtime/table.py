"""A table: small counts of public things, to which each device adds 0 or 1, a bounded number of 1s.

    what a device knows -> 0 or 1 an entry -> at_most -> summed as updates are -> beyond_reach

What an entry stands for is public and the same for all: a word of a list, or later what a hash
names. The bound on the ones bounds the L2 norm of what one device adds, by which noise is measured.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from device_runtime import bounds
from device_runtime.bounds import Matches, Within

MOST_ENTRIES = 200_000
MOST_BYTES = 4 << 20  # of the file that says what they stand for
LARGEST = 1  # that one device adds to an entry
NEVER_AGAIN = 1_000_000  # rounds between two reports of a device: it is in one sum


@dataclass(frozen=True)
class Table:
    """The public numbers of a table. Raises ConfigError for a value out of its bounds."""

    # SHA-256 of what its entries stand for: of a list of words its file
    entries: Annotated[str, Matches("[0-9a-f]{64}", 64)]
    most_ones: Annotated[int, Within(1, MOST_ENTRIES)]  # that one device adds
    # devices that must have added to an entry before it is told. What is masked cannot be looked
    # at: a device that breaks the rules adds what it wants
    least_people: Annotated[int, Within(1, 1_000_000_000)]

    def __post_init__(self) -> None:
        bounds.check(self, "table")

    @property
    def norm(self) -> float:
        """Largest L2 norm of what one device adds.

        >>> Table("0" * 64, most_ones=9, least_people=3).norm
        3.0
        """
        return math.sqrt(self.most_ones)


def at_most(marks: NDArray[Any], most: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Marks, 0 or 1, [entries], of which at most so many are 1: where they are more, each is as
    likely to stay as any other, wherever it stands.

    >>> int(at_most(np.array([1, 0, 1, 1]), 2, np.random.default_rng(0)).sum())
    2
    """
    ones = np.flatnonzero(marks)
    kept = np.zeros(len(marks), np.uint8)
    kept[ones if len(ones) <= most else rng.choice(ones, most, replace=False)] = 1
    return kept


def beyond_reach(total: NDArray[Any], devices: int, most_ones: int, room: int = 0) -> str:
    """Why so many honest devices cannot have added up to a table, in a sentence; empty if they can
    have. total is of whole numbers, [entries], and may carry noise of up to `room` to either side.

    >>> beyond_reach(np.array([2, 3]), 2, 2), beyond_reach(np.array([2, 2]), 2, 1)
    ('an entry counts 3, and 2 devices reach 2', 'all entries count 4, and 2 devices reach 2')
    """
    highest, lowest = int(total.max(initial=0)), int(total.min(initial=0))
    if highest > devices * LARGEST + room:
        return f"an entry counts {highest}, and {devices} devices reach {devices * LARGEST + room}"
    if lowest < -room:
        return f"an entry counts {lowest}, and noise reaches {-room}"
    if not room and int(total.sum()) > devices * most_ones:
        all_ = int(total.sum())
        return f"all entries count {all_}, and {devices} devices reach {devices * most_ones}"
    return ""
