"""Ageing: how much time has passed on a device whose clock may be wrong.

What was typed is kept for so many days. Neither the times it was stamped with nor the device's
clock can be trusted for that: a clock may have been years ahead when a message was recorded, and
one without a battery begins in 1970 whenever it is switched on. So a typing log has an age of its
own, which only grows. At every look at the device's clock it grows by what has passed since the
last look that showed no later time; a clock that went back makes nothing older, and when it is put
right what was lost is made up for. A record counts from the age the log had when it was recorded,
or first looked at: a stamp in the future counts as of then, and so does one of a time before there
was any Fedboard.
"""

import math
from dataclasses import dataclass

MOST_LOOKS = 16  # kept: a clock goes back more seldom than that
# seconds: in 2023. A clock that shows less has not been set yet: how much has passed when it is,
# nobody knows
NO_CLOCK_BEFORE = 1_700_000_000.0


@dataclass(frozen=True)
class Age:
    """How old a log is, in seconds; begins with the clock's time at the first look."""

    own: float
    looks: tuple[float, ...]  # seconds of the device's clock: the last, and later ones before it


def begun(now: float, latest_stamp: float | None = None) -> Age:
    """At the first look. A stamp later than `now` is a look too: one of the two is wrong."""
    later = latest_stamp is not None and math.isfinite(latest_stamp) and latest_stamp > now
    return Age(now, (latest_stamp, now) if later and latest_stamp is not None else (now,))


def looked(age: Age, now: float) -> Age:
    """At another look: `own` never falls. A clock that shows no number changes nothing.

    >>> looked(Age(100.0, (100.0,)), 130.0)  # all is well
    Age(own=130.0, looks=(130.0,))
    >>> looked(Age(100.0, (100.0,)), 5.0)  # the clock went back,
    Age(own=100.0, looks=(100.0, 5.0))
    >>> looked(Age(100.0, (100.0, 5.0)), 7.0)  # goes on from there
    Age(own=102.0, looks=(100.0, 7.0))
    >>> looked(Age(102.0, (100.0, 7.0)), 130.0)  # and is put right
    Age(own=132.0, looks=(130.0,))
    """
    if not math.isfinite(now):
        return age
    was_set = [look for look in age.looks if now < NO_CLOCK_BEFORE or look >= NO_CLOCK_BEFORE]
    passed = [look for look in was_set if look <= now]
    later = tuple(look for look in age.looks if look > now)
    own = age.own + (now - max(passed) if passed else 0.0)
    return Age(own, (*later[-(MOST_LOOKS - 1) :], now))


def at(age: Age, stamp: float) -> float:
    """The age at a time of the device's clock that is now: a while after the last look."""
    return age.own + max(0.0, stamp - age.looks[-1])
