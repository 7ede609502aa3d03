"""Pace steering: when a device that got no work checks in again. Reads no clock and no store.

A small population meets: within the 20 % that a retry may be off, devices are drawn towards common
instants, so that enough are there at once to fill a round. A large one is spread: its devices come
back over a time long enough for all of them at the rate the server wants, also when all ask at once
after an outage. Source: Bonawitz et al. 2019, arXiv:1902.01046, section 2.3 (pace steering).
"""

import math
from typing import NamedTuple

import numpy as np

from device_runtime.causes import MEANING, Cause
from server.rounds import RETRY_S, Rules

JITTER = 0.2  # share of the retry time it may be off; a device adds as much of its own
LEAST_S = 60.0  # no device waits less
SCATTER = 0.02  # share of it by which devices that meet are scattered
EARLY_S = 2.0  # a device that comes so much before the time it was told is in time
# an ask so soon after the answer to the last one is that ask again: the answer was lost
REPEATED_S = 10.0
SKEW_S = 60.0  # clocks of servers that share a database may differ by so much
FORGET_S = 3600.0  # what a device was told is forgotten so long after its time has come


class Told(NamedTuple):
    """When a device was told to come again, and when it was told that. Seconds of one clock."""

    at: float
    due: float


def too_early(told: Told | None, now: float) -> bool:
    """Whether a device comes before its time. What was told by a clock that was ahead counts for
    nothing.
    """
    return told is not None and told.at <= now + SKEW_S and now < told.due - EARLY_S


def is_repeated(told: Told, now: float) -> bool:
    """Whether an ask that is too early is the last one again."""
    return now <= told.at + REPEATED_S


def return_in_s(
    until: float, rules: Rules, population: int, now: float, rng: np.random.Generator
) -> float:
    """Seconds until a device with a ticket comes back: after `until`, when it hears more. A large
    population is spread over a quarter of the time it may come in.
    """
    spread = min(rules.claim / 4, max(1.0, population / rules.check_ins_per_s))
    seconds = max(0.0, until - now) + _between(0.0, spread, rng)
    return math.ceil(1000 * seconds) / 1000


def retry_in_s(
    cause: Cause | None, rules: Rules, population: int, now: float, rng: np.random.Generator
) -> float:
    """Seconds until a device of a population of so many checks in again. `cause` is what it was
    refused for, None if it was counted.

    Within 20 % of the rules' time, unless the population is too large to come at `check_ins_per_s`
    in that: then it starts there and lasts longer.
    """
    base = rules.permanent_retry_s if cause and MEANING[cause].lasts else rules.retry_s
    low, high = (1 - JITTER) * base, (1 + JITTER) * base
    if population <= rules.check_ins_per_s * 2 * SCATTER * base:
        meeting = round((now + base) / base) * base - now if base else 0.0
        seconds = meeting + base * _between(-SCATTER, SCATTER, rng)
        seconds = min(max(seconds, low), high, RETRY_S.high)
    else:
        last = max(high, low + population / rules.check_ins_per_s)
        seconds = _between(low, min(last, RETRY_S.high), rng)  # no device waits longer
    return math.floor(1000 * seconds) / 1000


def _between(low: float, high: float, rng: np.random.Generator) -> float:
    """What `rng.uniform` gives, to the bit, in a quarter of its time."""
    return low + (high - low) * rng.random()
