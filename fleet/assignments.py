"""Assignments: what became of each piece of work that the devices of a fleet were given, and why.

An assignment is what one device was to do in one round. It may take several turns: it is paused and
goes on, or its report is sent again. The one that counted tells its fate, or else the last one.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime.causes import Cause
from device_runtime.turn import Status
from fleet.turns import CAUSES, FAILED, STATUSES

# how far an assignment came
REACHED = ("assigned", "fetched", "trained", "uploaded", "counted")
# what became of it in the end
COUNTED, DROPPED_OUT, TURNED_AWAY = "counted", "dropped out", "turned away"
# why a device drops out: computation, network, conditions and time, as in Bonawitz et al. 2019
DROPS_OUT = frozenset(
    {
        Cause.NOT_CHARGING,
        Cause.METERED_NETWORK,
        Cause.IN_USE,
        Cause.CONDITION_LOST,
        Cause.TRAINING_FAILED,
        Cause.TIMED_OUT,
        Cause.LATE,
        Cause.TOO_SLOW,
        Cause.TOO_MANY_REQUESTS,
        Cause.UNAVAILABLE,
    }
)
NO_ANSWER, UNDER_WAY = "no_answer", "under_way"  # beside the causes


@dataclass(frozen=True)
class Assignments:
    """One row for each device and round, in the order in which they ended."""

    device: NDArray[np.int32]
    round: NDArray[np.int32]
    at: NDArray[np.float64]  # when it was given, seconds since the fleet began
    ended: NDArray[np.float64]
    reached: NDArray[np.int64]  # number in REACHED
    fate: NDArray[Any]  # COUNTED, DROPPED_OUT or TURNED_AWAY
    cause: NDArray[Any]  # name of a Cause, or NO_ANSWER; empty where it counted

    def __len__(self) -> int:
        return len(self.device)


def assignments(turns: NDArray) -> Assignments:
    """The assignments of turns, which are in the order in which they ended."""
    key = turns["device"].astype(np.int64) << 32 | turns["round"].astype(np.int64)
    order = np.lexsort((np.arange(len(turns)), is_any(turns["status"], Status.COUNTED), key))
    first = np.flatnonzero(np.diff(key[order], prepend=-1))  # of each assignment, in that order
    telling = order[np.append(first[1:], len(order))[: len(first)] - 1]
    at = np.minimum.reduceat(turns["assigned"][order], first) if len(first) else np.zeros(0)
    reached = np.maximum.reduceat(reached_by(turns)[order], first) if len(first) else telling
    by_end = np.argsort(telling)
    final = turns[telling[by_end]]
    fate, cause = fates_of(final)
    return Assignments(
        final["device"], final["round"], at[by_end], final["ended"], reached[by_end], fate, cause
    )


def reached_by(turns: NDArray) -> NDArray[np.int64]:
    """How far each turn came, as a number in REACHED."""
    status = turns["status"]
    left = is_any(status, Status.COUNTED, Status.NOT_COUNTED, Status.SENDING, Status.JOINED)
    trained = (left | (status == FAILED)) & (turns["trained"] > 0)
    answered = is_any(status, Status.NOT_COUNTED) & (turns["bytes_up"] > 0)
    reached = np.where(turns["fetched"] > 0, 1, 0)
    for number, came in ((2, trained), (3, answered), (4, is_any(status, Status.COUNTED))):
        reached = np.where(came, number, reached)
    return reached


def is_any(status: NDArray, *statuses: Status) -> NDArray[np.bool_]:
    """Which rows of a column of turns have one of these, [turns]."""
    return np.isin(status, [STATUSES.index(each) for each in statuses])


def fates_of(turns: NDArray) -> tuple[NDArray[Any], NDArray[Any]]:
    """What became of assignments whose last turns these are, and why."""
    names = np.array(["", *CAUSES], object)
    cause = names[turns["cause"]]
    status = turns["status"]
    is_counted = is_any(status, Status.COUNTED)
    cause = np.where((cause == "") & ~is_counted, NO_ANSWER, cause)
    cause[is_counted] = ""
    stopped = (status == FAILED) | is_any(status, Status.PAUSED, Status.SENDING, Status.JOINED)
    stopped |= np.isin(turns["cause"], [1 + CAUSES.index(each) for each in DROPS_OUT])
    fate = np.where(is_counted, COUNTED, np.where(stopped, DROPPED_OUT, TURNED_AWAY))
    return fate, cause


def sessions(turns: NDArray) -> list[tuple[str, int]]:
    """How many turns had a session of which shape, the most frequent first.

    As Bonawitz et al. 2019 write them, arXiv:1902.01046: `-` check-in, `v` checkpoint fetched, `[`
    training begun, `]` finished, `+` upload begun, `^` counted, `#` turned away, `!` interrupted,
    `*` error.
    """
    shapes: Counter[str] = Counter()
    reached = reached_by(turns)
    fate, _ = fates_of(turns)
    kinds, many = np.unique(
        np.stack(
            [reached, turns["fetched"] > 0, turns["trained"] > 0, turns["status"] == FAILED]
            + [fate == each for each in (COUNTED, DROPPED_OUT)]
        ).astype(np.int64),
        axis=1,
        return_counts=True,
    )
    for kind, count in zip(kinds.T.tolist(), many.tolist(), strict=True):
        shapes[_shape(*kind)] += count
    return most_first(shapes)


def _shape(
    reached: int, fetched: int, worked: int, failed: int, counted: int, dropped_out: int
) -> str:
    shape = "-" + ("v" if fetched or reached else "") + ("[" if worked or reached > 1 else "")
    if reached > 1:
        shape += "]+"
    if counted:
        return shape + "^"
    if failed:
        return shape + "*"
    return shape + ("!" if dropped_out else "#")


def most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Counts by name, the largest first, without those of nothing."""
    return sorted(
        ((name, count) for name, count in counts.items() if count),
        key=lambda each: (-each[1], each[0]),
    )
