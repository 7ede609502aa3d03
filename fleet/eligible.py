"""Eligible: how many devices are ready by the hour, and how many of those at work would drop out.

Worked out of an availability alone: no server is asked, and no turn is taken.
"""

import math

import numpy as np
from numpy.typing import NDArray

from device_runtime.wire import DAY_S
from fleet.availability import BITS, NEEDED, Availability, Devices
from fleet.population import Population

HOUR_S = 3600.0
TRANSFERS = 3  # of a turn: plan, checkpoint, update
# bytes of a turn: the float16 checkpoint of the network of Hard et al. 2018, and 8 bits a value
DOWN, UP = 2.8e6, 1.4e6
BATCHES = 32  # 256 rows, 8 at once
IN_TIME = 0.15  # of those whose transfer breaks off, that are back before the round is over
_LOOKS = 16 / 3  # batches that the losses before and after take, without gradients


def by_hour(
    lives: Availability, devices: Devices, day: int = 1, looks: int = 4
) -> dict[str, NDArray[np.float64]]:
    """Share of devices with each signal, and with `all` of them, in each hour of a day of the
    fleet, [24] each; `looks` moments of an hour are looked at. Day 1 is a Tuesday.
    """
    shares = {name: np.zeros(24) for name in (*BITS, "all")}
    for hour in range(24):
        for at in _moments(day, hour, looks):
            bits = lives.signals(devices, np.full(len(devices), at))
            for name, bit in (*BITS.items(), ("all", NEEDED)):
                shares[name][hour] += ((bits & bit) == bit).mean() / looks
    return shares


def swing(shares: NDArray[np.float64]) -> float:
    """How many times the least of the hours the greatest has; infinite where the least has none."""
    return math.inf if not shares.min() else float(shares.max() / shares.min())


def drop_out(
    lives: Availability,
    devices: Devices,
    seconds: NDArray[np.float64],
    breaks: float = 0.0,
    day: int = 1,
    looks: int = 4,
) -> NDArray[np.float64]:
    """Share of the devices that are ready in each hour and would not end a turn of so many seconds,
    [k], begun then: a signal is lost, or one of its transfers breaks off and the network is not
    back in time, [24]; not a number where none is ready.
    """
    stays = (1 - breaks * (1 - IN_TIME)) ** TRANSFERS
    shares = np.full(24, math.nan)
    for hour in range(24):
        ready = lost = 0
        for at in _moments(day, hour, looks):
            since = np.full(len(devices), at)
            is_ready = lives.signals(devices, since) == NEEDED
            until = lives.lost_at(devices[is_ready], since[is_ready])
            ready += int(is_ready.sum())
            lost += int((until < at + seconds[is_ready]).sum())
        if ready:
            shares[hour] = 1 - (1 - lost / ready) * stays
    return shares


def turn_s(population: Population, batches: int = BATCHES) -> NDArray[np.float64]:
    """Seconds that a turn of so many batches takes each device, [devices]."""
    moved = DOWN / population.down + UP / population.up + TRANSFERS * population.latency_s
    return np.asarray((batches + _LOOKS) * population.batch_s + moved, np.float64)


def _moments(day: int, hour: int, looks: int) -> list[float]:
    return [day * DAY_S + (hour + (look + 0.5) / looks) * HOUR_S for look in range(looks)]
