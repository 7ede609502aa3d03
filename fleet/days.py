"""Days: when people's phones charge, are on their own WiFi and lie idle, by the hour of their days.

      wakes      leaves            comes back       plugs in  sleeps               wakes
    ----|-----------|------------------|----------------|-------|------------------->|
    charges until   tops up, or not,   tops up          charges, if it does tonight
    shortly after   or at a desk all day
         WiFi at home: away from it, and of some WiFi at work; now and then it is gone
    in use now and then, by the hour                            in use seldom

A person's day goes from waking to waking. All that happens in it is drawn from the seed, the device
and the day's number, so any moment can be asked for and none is stored; what the three signals have
in common (waking, sleeping, leaving, coming back) is drawn once for all of them. Weekends are other
days. Some people live by another clock than their zone's. Changes come at whole seconds, and
answers are exact to them.

The numbers are chosen, not measured: so that in a population of the United States four times as
many devices are ready at the best hour of a weekday as at the worst, as Bonawitz et al. 2019,
arXiv:1902.01046, section 9, saw in theirs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from device_runtime.wire import DAY_S
from fleet import draws
from fleet.availability import CHARGING, IDLE, NEEDED, UNMETERED, Devices, Times
from fleet.population import Population

HOUR_S = 3600.0
AHEAD = (1, 3, 12, 84)  # days looked at together, until one of them has what is looked for
HORIZON = sum(AHEAD)  # days after which "never" is said
AT_ONCE = 4096  # devices whose days lie in a processor's cache together
# hours of the day
WAKES, SLEEPS = 7.0, 23.0
EARLIEST, LATEST = 4.0, 12.0  # anybody wakes
SOONEST, LAST = 20.5, 27.5  # anybody sleeps
LONGER, LATER = 1.3, 0.8  # on weekends, and on the evenings before them
# shares of people
OTHER_CLOCK, AT_A_DESK, WORK, WIFI_AT_WORK = 0.12, 0.3, 0.6, 0.5
SLOTS, ASLEEP = 64, 2  # a phone is used at most once in each, awake and asleep
# how likely it is used in each: mornings, days and evenings differ
USED = np.array([*[0.7] * 8, *[0.6] * 36, *[0.8] * 20, *[0.1] * ASLEEP])
LEAST_USE_S, MOST_USE_S = 30.0, 1000.0
# what draws are for: of a person, and of a person's day
_HABIT, _LIFE = 20, 21
(_SLEEP, _NIGHT, _UNPLUG, _PLUG, _TOP, _TOP_AT, _TOP_FOR, _AGAIN, _AGAIN_AT, _AGAIN_FOR) = range(10)
(_OUT, _LEAVES, _BACK, _EVENING, _EVENING_AT, _EVENING_FOR) = range(10, 16)
(_GONE, _GONE_AT, _GONE_FOR, _DRAWN) = range(16, 20)
_OF_DAY = draws.names(np.arange(_DRAWN))[:, None]
_OF_NIGHT, _OF_WAKING = _OF_DAY[_NIGHT], draws.names([_DRAWN])
_OF_SLOT = draws.names(_DRAWN + 1 + np.arange(SLOTS + ASLEEP))
# what forbids work: which rows are of what
_NOT_CHARGING, _AWAY, _OBSTACLES = (0, 1, 2), (3, 4, 5, 6), 7


@dataclass(frozen=True)
class _Habits:
    """What people do day after day: columns, one row a device."""

    device: NDArray[np.int64]
    offset_s: NDArray[np.float64]  # by which clock they live: local time minus UTC
    wakes_h: NDArray[np.float64]
    sleeps_h: NDArray[np.float64]
    charges: NDArray[np.float64]  # how likely, each night
    tops_up: NDArray[np.float64]  # how likely, in each half of a day
    top_up_s: NDArray[np.float64]  # for how long, about
    works: NDArray[np.bool_]  # leaves for work on most weekdays
    work_wifi: NDArray[np.bool_]
    wifi: NDArray[np.bool_]  # at home
    uses: NDArray[np.float64]  # how much, 1: as most do


@dataclass(frozen=True)
class _Day:
    """One day of each of some devices, [k]: from waking to waking, in seconds of their clocks, and
    what keeps them from training in it, [obstacles, k]: from `starts` to before `ends`.
    """

    drawn: NDArray[np.uint64]  # of this day: `draws.further` goes on
    uses: NDArray[np.float64]
    begin: Times
    sleep: Times
    end: Times
    awake_s: NDArray[np.float64]  # of a slot
    asleep_s: NDArray[np.float64]
    starts: NDArray[np.float64]
    ends: NDArray[np.float64]


# a day, since when, which bits -> when something happens, infinite: not on this day
Event = Callable[[_Day, Times, int], Times]
T = TypeVar("T")


class Days:
    """The days of a population's people: an `Availability`."""

    def __init__(self, population: Population):
        self._seed = population.seed
        self._habits = _habits(population)

    def signals(self, devices: Devices, at: Times) -> NDArray[np.uint8]:
        """The bits that hold, [k]."""
        bits = np.empty(len(devices), np.uint8)
        for part in _parts(len(devices)):
            people, local = self._people(devices[part], at[part])
            day = self._day(people, self._number(people, local))
            holds = (day.starts <= local) & (local < day.ends)
            used, unused = _use(day, _slot(day, local))
            bits[part] = np.where(holds[_NOT_CHARGING, :].any(0), 0, CHARGING)
            bits[part] += np.where(holds[_AWAY, :].any(0), 0, UNMETERED).astype(np.uint8)
            bits[part] += np.where((used <= local) & (local < unused), 0, IDLE).astype(np.uint8)
        return bits

    def ready_at(self, devices: Devices, after: Times, needed: int = NEEDED) -> Times:
        """When all the `needed` bits hold next, at `after` or later, [k]; infinite: not within
        `HORIZON` days.
        """
        ready = np.empty(len(devices))
        for part in _parts(len(devices)):
            people, local = self._people(devices[part], after[part])
            ready[part] = self._first(people, local, _freed, needed)
            # what was ready at once was so at that very moment, to the last bit
            ready[part] = np.where(ready[part] == local, after[part], ready[part] - people.offset_s)
        return ready

    def lost_at(self, devices: Devices, since: Times, needed: int = NEEDED) -> Times:
        """When one of the `needed` bits, which hold at `since`, is lost, later than that, [k];
        infinite: not within `HORIZON` days.
        """
        lost = np.empty(len(devices))
        for part in _parts(len(devices)):
            people, local = self._people(devices[part], since[part])
            lost[part] = self._first(people, local, _obstructed, needed) - people.offset_s
        return lost

    def _first(self, people: _Habits, local: Times, event: Event, needed: int) -> Times:
        """When something happens first, day after day, in seconds of the devices' clocks."""
        first = np.full(len(local), math.inf)
        rows = np.arange(len(local))
        if needed & UNMETERED and event is _freed:  # most of those it would never happen to
            rows = np.flatnonzero(people.wifi | (people.works & people.work_wifi))
            people, local = _only(people, rows), local[rows]
        number = self._number(people, local)
        for ahead in AHEAD:
            many = np.repeat(np.arange(len(rows)), ahead)
            days = (number[:, None] + np.arange(ahead)).ravel()
            day = self._day(_only(people, many) if ahead > 1 else people, days)
            since = local if ahead == 1 else day.begin
            comes = event(day, since, needed).reshape(len(rows), ahead)
            at = comes.min(1)  # of the first of these days that has one
            first[rows] = at
            left = np.flatnonzero(np.isinf(at))
            if not len(left):
                break
            rows, people, number = rows[left], _only(people, left), number[left] + ahead
        return first

    def _people(self, devices: Devices, at: Times) -> tuple[_Habits, Times]:
        people = _only(self._habits, np.asarray(devices, np.int64))
        return people, np.asarray(at, np.float64) + people.offset_s

    def _number(self, people: _Habits, local: Times) -> NDArray[np.int64]:
        """Of the days that moments of people's clocks lie in; 0 begins on the fleet's Monday."""
        today = np.floor_divide(local, DAY_S).astype(np.int64)
        begun = draws.state(self._seed, _LIFE, people.device, today)
        return today - (local < _wakes(people, today, begun))

    def _day(self, people: _Habits, number: NDArray[np.int64]) -> _Day:
        """One day of each."""
        around = number + np.arange(-1, 2)[:, None]  # the day before, this one, the day after
        begun = draws.state(self._seed, _LIFE, people.device, around)
        begin, end = _wakes(people, around[1:], begun[1:])
        drawn = draws.further(begun[1], _OF_DAY)
        weekday = number % 7
        hours = people.sleeps_h + LATER * ((weekday == 4) | (weekday == 5)) + 2 * drawn[_SLEEP] - 1
        sleep = np.floor(DAY_S * number + HOUR_S * np.clip(hours, SOONEST, LAST))
        starts, ends = np.empty((2, _OBSTACLES, len(number)))
        last_night = draws.further(begun[0], _OF_NIGHT) < people.charges
        _charging(people, last_night, (begin, sleep, end), drawn, starts, ends)
        _wifi(people, weekday, (begin, sleep, end), drawn, starts, ends)
        return _Day(
            begun[1],
            people.uses,
            begin,
            sleep,
            end,
            np.floor_divide(sleep - begin, SLOTS),
            np.floor_divide(end - sleep, ASLEEP),
            np.maximum(np.floor(starts), begin),
            np.minimum(np.floor(ends), end),
        )


def _freed(day: _Day, since: Times, needed: int) -> Times:
    """The first moment of a day, at `since` or later, at which nothing that matters forbids work;
    infinite where the day has none.
    """
    freed = since.copy()
    rows = np.arange(len(since))
    now, day = since, _of(day, needed)
    while len(rows):
        holds = (day.starts <= now) & (now < day.ends)
        later = np.where(holds, day.ends, now).max(0, initial=-math.inf)
        later = np.maximum(later, now)
        if needed & IDLE:
            used, unused = _use(day, _slot(day, later))
            later = np.where((used <= later) & (later < unused), unused, later)
        is_over = later >= day.end
        freed[rows] = np.where(is_over, math.inf, later)
        moved = np.flatnonzero((later > now) & ~is_over)
        rows, now, day = rows[moved], later[moved], _only(day, moved)
    return freed


def _obstructed(day: _Day, since: Times, needed: int) -> Times:
    """The first moment of a day, later than `since` or at its very beginning, at which something
    that matters begins to forbid work; infinite where the day has none.
    """
    of = _of(day, needed)
    starts, ends = of.starts, of.ends
    if needed & IDLE:
        used, unused = _use(day, np.arange(SLOTS + ASLEEP)[:, None])
        starts, ends = np.concatenate([starts, used]), np.concatenate([ends, unused])
    comes = ((starts > since) | ((starts == since) & (since == day.begin))) & (starts < ends)
    return np.where(comes, starts, math.inf).min(0, initial=math.inf)


def _charging(
    people: _Habits,
    last_night: NDArray[np.bool_],
    hours: tuple[Times, Times, Times],
    drawn: NDArray[np.float64],
    starts: NDArray[np.float64],
    ends: NDArray[np.float64],
) -> None:
    """When they do not charge: until the first top-up, until the second, until the night."""
    begin, sleep, end = hours
    unplug = begin + last_night * drawn[_UNPLUG] * 0.75 * HOUR_S
    tonight = drawn[_NIGHT] < people.charges
    plug = np.where(tonight, sleep - drawn[_PLUG] * 1.5 * HOUR_S, end)
    middle = (begin + sleep) / 2
    starts[0] = unplug
    tops_up = drawn[_TOP] < people.tops_up
    at = unplug + 0.75 * drawn[_TOP_AT] * (middle - unplug)
    until = np.minimum(at + people.top_up_s * (0.5 + drawn[_TOP_FOR]), plug)
    ends[0] = np.where(tops_up, at, middle)
    starts[1] = np.where(tops_up, until, middle)
    again = drawn[_AGAIN] < people.tops_up
    soonest = np.maximum(middle, starts[1])
    at = soonest + 0.75 * drawn[_AGAIN_AT] * (plug - soonest)
    until = np.minimum(at + people.top_up_s * (0.5 + drawn[_AGAIN_FOR]), plug)
    ends[1] = np.where(again, at, plug)
    starts[2] = np.where(again, until, plug)
    ends[2] = plug


def _slot(day: _Day, local: Times) -> NDArray[np.int64]:
    """The slot of a day that moments lie in; at its end, the last one."""
    awake = np.minimum(np.floor_divide(local - day.begin, day.awake_s), SLOTS - 1)
    asleep = np.minimum(np.floor_divide(local - day.sleep, day.asleep_s), ASLEEP - 1)
    return np.where(local < day.sleep, awake, SLOTS + asleep).astype(np.int64)


def _use(day: _Day, slot: NDArray[np.int64]) -> tuple[Times, Times]:
    """From when to when a device is used in a slot of its day; empty where it is not."""
    is_asleep = slot >= SLOTS
    length = np.where(is_asleep, day.asleep_s, day.awake_s)
    begin = np.where(
        is_asleep, day.sleep + (slot - SLOTS) * day.asleep_s, day.begin + slot * day.awake_s
    )
    likely = np.minimum(USED[slot] * day.uses, 0.98)
    does, how_long = draws.halves(day.drawn, _OF_SLOT[slot])
    start = begin + np.floor(does / likely * length)
    use = np.floor(LEAST_USE_S + (MOST_USE_S - LEAST_USE_S) * how_long**3)
    end = np.minimum(start + use, begin + length)
    return start, np.where(does < likely, end, start)


def _wakes(people: _Habits, number: NDArray[np.int64], begun: NDArray[np.uint64]) -> Times:
    """When people wake on a day, in whole seconds."""
    noise = 2 * draws.further(begun, _OF_WAKING) - 1
    hours = people.wakes_h + LONGER * (number % 7 >= 5) + noise
    return np.floor(DAY_S * number + HOUR_S * np.clip(hours, EARLIEST, LATEST))


def _wifi(
    people: _Habits,
    weekday: NDArray[np.int64],
    hours: tuple[Times, Times, Times],
    drawn: NDArray[np.float64],
    starts: NDArray[np.float64],
    ends: NDArray[np.float64],
) -> None:
    """When they have none that is unmetered: out and on the way, in the evening, and when it is
    gone for no reason of theirs.
    """
    begin, sleep, end = hours
    at_work = people.works & (weekday < 5)
    is_out = drawn[_OUT] < np.where(at_work, 0.88, 0.5)
    leaves = begin + HOUR_S * np.where(
        at_work, 0.7 + 1.3 * drawn[_LEAVES], 1.5 + 6 * drawn[_LEAVES]
    )
    for_h = np.where(at_work, 8 + 2.5 * drawn[_BACK], 1 + 4 * drawn[_BACK])
    back = np.minimum(leaves + HOUR_S * for_h, sleep)
    has_wifi = at_work & people.work_wifi & is_out
    way = np.where(has_wifi, HOUR_S * (0.2 + 0.8 * drawn[_LEAVES]), back - leaves)
    # without WiFi at home there is at most that of work
    starts[3] = np.where(people.wifi, leaves, begin)
    ends[3] = np.where(is_out, leaves + way, leaves)
    ends[3] = np.where(people.wifi | has_wifi, ends[3], end)
    starts[4] = back - way
    ends[4] = np.where(people.wifi, np.where(is_out, back, starts[4]), end)
    starts[5] = sleep - HOUR_S * (2 + 3 * drawn[_EVENING_AT])
    evening = drawn[_EVENING] < 0.2
    ends[5] = starts[5] + evening * HOUR_S * (0.5 + 1.5 * drawn[_EVENING_FOR])
    starts[6] = begin + drawn[_GONE_AT] * (end - begin)
    ends[6] = starts[6] + (drawn[_GONE] < 0.35) * (60 + 1200 * drawn[_GONE_FOR] ** 2)


def _habits(population: Population) -> _Habits:
    devices = np.arange(len(population))

    def drawn(which: int) -> NDArray[np.float64]:
        return draws.uniform(population.seed, _HABIT, devices, which)

    def around(which: int) -> NDArray[np.float64]:
        return draws.normal(population.seed, _HABIT, devices, which)

    # whoever lives by another clock is 4 to 14 hours away, to half an hour
    other = np.round(2 * (4 + 10 * drawn(0))) / 2 * (drawn(1) < OTHER_CLOCK)
    at_a_desk = drawn(2) < AT_A_DESK
    return _Habits(
        devices,
        np.round(HOUR_S * (population.zone_h.astype(np.float64) - other)),
        WAKES + 0.8 * around(3),
        SLEEPS + 0.9 * around(4),
        1 - 0.75 * drawn(5) ** 2,
        np.where(at_a_desk, 0.85, 0.53),
        HOUR_S * np.where(at_a_desk, 6.0, 0.6 + 2 * drawn(6)),
        drawn(7) < WORK,
        drawn(8) < WIFI_AT_WORK,
        population.wifi.astype(bool),
        np.exp(0.25 * around(9)),
    )


def _only(columns: T, rows: NDArray[np.int64]) -> T:
    """Some rows of a record of columns, which come last in each."""
    return type(columns)(*(column[..., rows] for column in vars(columns).values()))


def _of(day: _Day, needed: int) -> _Day:
    """A day with those obstacles alone that matter to some bits; use is none of them."""
    rows = [
        *(_NOT_CHARGING if needed & CHARGING else ()),
        *(_AWAY if needed & UNMETERED else ()),
    ]
    return (
        day
        if len(rows) == _OBSTACLES
        else replace(day, starts=day.starts[rows], ends=day.ends[rows])
    )


def _parts(size: int) -> list[slice]:
    return [slice(first, first + AT_ONCE) for first in range(0, size, AT_ONCE)]
