"""Availability: when devices charge, are on unmetered WiFi and idle, asked for whole columns.

`days.py` makes it up by the hour of people's days, `traces.py` replays what was recorded. A signal
that is not known is not there: unknown is not eligible.
"""

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from device_runtime.wire import Conditions

CHARGING, UNMETERED, IDLE = 1, 2, 4  # bits of the signals that hold
NEEDED = CHARGING | UNMETERED | IDLE
BITS = {"charging": CHARGING, "unmetered": UNMETERED, "idle": IDLE}

Devices = NDArray[np.int64]  # by index, [k]
Times = NDArray[np.float64]  # seconds since the fleet began, [k]


class Availability(Protocol):
    """Answers depend on the device and the time alone, in whatever order they are asked."""

    def signals(self, devices: Devices, at: Times) -> NDArray[np.uint8]:
        """The bits that hold, [k]."""

    def ready_at(self, devices: Devices, after: Times, needed: int = NEEDED) -> Times:
        """When all the `needed` bits hold next, at `after` or later, [k]; infinite: never again."""

    def lost_at(self, devices: Devices, since: Times, needed: int = NEEDED) -> Times:
        """When one of the `needed` bits, which hold at `since`, is lost, later than that, [k];
        infinite: never.
        """


class Always:
    """Devices that are always ready: what is left without availability."""

    def signals(self, devices: Devices, at: Times) -> NDArray[np.uint8]:
        """All of them."""
        return np.full(len(devices), NEEDED, np.uint8)

    def ready_at(self, devices: Devices, after: Times, needed: int = NEEDED) -> Times:
        """At once."""
        return np.array(after, np.float64)

    def lost_at(self, devices: Devices, since: Times, needed: int = NEEDED) -> Times:
        """Never."""
        return np.full(len(devices), math.inf)


def conditions(bits: int, vouched: int = 0) -> Conditions:
    """What a device says of itself: the signals that hold, and those that its owner vouches for.

    >>> conditions(CHARGING | IDLE)
    Conditions(charging=True, unmetered=False, idle=True)
    """
    told: dict[str, Any] = {name: bool((bits | vouched) & bit) for name, bit in BITS.items()}
    return Conditions(**told)
