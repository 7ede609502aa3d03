"""Tallies: what the rounds of a task that counts have opened, and what is told of it.

    a round's opened sum -> tally   -> a row, in the round's last transaction
    all rows of a task   -> counted -> told: words of enough people

Rounds have different people in them, as each is in one for good, so their counts add up. Noise is
in a sum before it comes here, independent in each.
"""

import math
import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from device_runtime import accountant, counts
from device_runtime.accountant import Account, Participation
from device_runtime.counts import Counted
from device_runtime.errors import RunError
from device_runtime.wire import MOST
from server.store import StoredTally
from server.sums import Sum
from server.task import Task, terms


def tally(total: Sum) -> StoredTally:
    """What is kept of a round's opened sum."""
    return StoredTally(total.count, zlib.compress(total.total.astype("<i8").tobytes()))


def counted(task: Task, tallies: Iterable[StoredTally]) -> Counted:
    """What all rounds say together."""
    agreed = terms(task)
    parts = [Counted(_values(each.body), each.people, agreed.deviation) for each in tallies]
    total = counts.added(parts)
    return total if parts else Counted(np.zeros(task.dimension, np.int64), 0)


def spent(task: Task) -> Account | None:
    """What one person who took part has spent, in all: each is in one sum. None without noise, by
    which nothing is claimed.
    """
    noise = terms(task).noise
    if noise is None:
        return None
    once = accountant.account(noise, Participation((1,), None, 1))
    return once if math.isfinite(once.epsilon) else None


def told(words: tuple[str, ...], task: Task, total: Counted) -> list[tuple[str, int]]:
    """The words that are told, with their counts, the most frequent first."""
    assert task.table is not None
    return counts.told(words, total, min(task.table.least_people, MOST))


def _values(body: bytes) -> NDArray[np.int64]:
    try:
        return np.frombuffer(zlib.decompress(body), "<i8").astype(np.int64)
    except (zlib.error, ValueError):
        raise RunError(
            "tallies", "a round's counts cannot be read", "restore the database from a backup"
        ) from None
