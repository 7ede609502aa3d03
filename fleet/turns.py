"""Turns: what became of each turn of a fleet, a row of fixed size each, as they ended."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from device_runtime.causes import Cause
from device_runtime.turn import Outcome, Status
from fleet.settings import START

STATUSES, CAUSES = tuple(Status), tuple(Cause)
FAILED = 255  # the status of a turn that an error ended

# times are seconds since the fleet began; 0 where it did not come so far
TURN = np.dtype(
    [
        ("device", "<i4"),
        ("round", "<i4"),
        ("status", "u1"),  # number in STATUSES, or FAILED
        ("cause", "u1"),  # one more than its number in CAUSES; 0: none
        ("assigned", "<f8"),
        ("fetched", "<f8"),  # the checkpoint
        ("trained", "<f8"),
        ("ended", "<f8"),
        ("examples", "<i4"),
        ("batches", "<i4"),
        ("bytes_up", "<i8"),
        ("bytes_down", "<i8"),
        ("loss_before", "<f4"),
        ("loss_after", "<f4"),
    ]
)


def row(
    device: int, round: int, times: Mapping[str, float], ended: float, outcome: Outcome | None
) -> NDArray:
    """One turn as a row, [1]; `times` and `ended` are since 1970. No outcome: an error ended it."""
    it = np.zeros(1, TURN)
    it["device"], it["round"], it["ended"] = device, round, ended - START
    for name, time in times.items():
        it[name] = time - START
    if outcome is None:
        it["status"] = FAILED
        return it
    it["status"] = STATUSES.index(outcome.status)
    it["cause"] = 0 if outcome.cause is None else 1 + CAUSES.index(outcome.cause)
    for name in ("examples", "batches", "bytes_up", "bytes_down"):
        it[name] = getattr(outcome, name)
    for name in ("loss_before", "loss_after"):
        value = getattr(outcome, name)
        it[name] = np.nan if value is None else value
    return it
