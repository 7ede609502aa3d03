"""The population: who the devices are, and traces of when each is charging, on WiFi and idle.

A trace is what `device_runtime.conditions` replays: lines of `time<TAB>state`, here in whole
seconds after midnight UTC of the first day. Either the three signals follow a day's course in the
device's own time zone, each on its own, or a role says which of them holds in each round.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from device_runtime import durable
from device_runtime.conditions import trace_source
from device_runtime.errors import ConfigError, RunError
from device_runtime.wire import DAY_S

HOUR_S = 3600.0

# class: share of devices, seconds for one batch of the default plan, megabits a second (median;
# devices vary around it)
CLASSES = {"low": (0.3, 1.2, 8.0), "middle": (0.5, 0.4, 25.0), "high": (0.2, 0.15, 80.0)}
# offset from UTC in hours: share of devices, three regions with their neighbours
ZONES = {-8: 0.1, -6: 0.1, -5: 0.2, 0: 0.1, 1: 0.2, 2: 0.05, 5: 0.05, 7: 0.05, 8: 0.1, 9: 0.05}


@dataclass(frozen=True)
class Device:
    """One phone and the habits of its owner."""

    index: int
    kind: str  # of CLASSES
    zone_h: int  # local time minus UTC
    batch_s: float  # seconds for one batch
    down_mbps: float
    up_mbps: float
    plugs_in_h: float  # local hour, usually; over 24 is after midnight
    unplugs_h: float
    leaves_home_h: float
    returns_home_h: float
    has_wifi: bool  # at home
    uses_per_hour: float  # by day


def population(size: int, seed: int) -> list[Device]:
    """`size` devices. A device depends on the seed and its index only: a larger population begins
    with the smaller one.
    """
    return [_device(index, np.random.default_rng([seed, index])) for index in range(size)]


def trace(device: Device, days: int, seed: int) -> str:
    """The device's trace over `days` days: charging, WiFi and screen, three processes with their
    own randomness. In order of time.
    """
    changes = []
    for which, process in enumerate((_charging, _wifi, _screen)):
        signal = _changes(
            device, *process(device, days, np.random.default_rng([seed, device.index, which]))
        )
        at_start = max(i for i, (time, _) in enumerate(signal) if time <= 0)
        changes += [
            (0.0, signal[at_start][1]),
            *(change for change in signal[at_start + 1 :] if change[0] < days * DAY_S),
        ]
    return "".join(f"{time:.0f}\t{state}\n" for time, state in sorted(changes))


class Role(StrEnum):
    """What a device of the demo is up to in one round."""

    FINISHES = "finishes"
    NOT_CHARGING = "not_charging"
    METERED_NETWORK = "metered_network"
    IN_USE = "in_use"
    UNPLUGGED = "unplugged"  # while it trains


UNPLUGGED_AFTER_S = 90  # of a round
_STATES = {  # of one role at the start of a round
    Role.FINISHES: ("battery_charged_on", "wifi", "screen_off"),
    Role.NOT_CHARGING: ("battery_charged_off", "wifi", "screen_off"),
    Role.METERED_NETWORK: ("battery_charged_on", "4g", "screen_off"),
    Role.IN_USE: ("battery_charged_on", "wifi", "screen_on"),
    Role.UNPLUGGED: ("battery_charged_on", "wifi", "screen_off"),
}


def role_counts(size: int) -> dict[Role, int]:
    """How many of `size` devices have each role: about 15 % for each thing that forbids training,
    one is unplugged, the rest finish.

    Raises ValueError for fewer than 5 devices: nobody would be left to finish.
    """
    if size < 5:
        raise ValueError(f"expected at least 5 devices, found {size}")
    each = max(1, round(0.15 * size))
    return {
        Role.NOT_CHARGING: each,
        Role.METERED_NETWORK: each,
        Role.IN_USE: each,
        Role.UNPLUGGED: 1,
        Role.FINISHES: size - 3 * each - 1,
    }


def roles(size: int, rounds: int, seed: int) -> list[list[Role]]:
    """The role of each device in each round, [rounds][size]: the same number of devices in every
    round, others each time.
    """
    dealt = [role for role, count in role_counts(size).items() for _ in range(count)]
    return [
        [dealt[i] for i in np.random.default_rng([seed, round]).permutation(size)]
        for round in range(rounds)
    ]


def traces_from_roles(dealt: Sequence[Sequence[Role]], folder: Path) -> list[Path]:
    """Write one trace a device in which the role of round k holds from k days on. The paths, in
    order of devices.

    Raises RunError if the folder cannot be written, or something else than a trace is in the place
    of one.
    """
    folder = Path(folder)
    paths = [folder / f"device-{index:03d}.tsv" for index in range(len(dealt[0]))]
    for path in paths:
        if path.exists() and not _is_trace(path):
            raise RunError(path, "holds something else than a trace", "choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index, path in enumerate(paths):
            trace = _from_roles([round[index] for round in dealt])
            durable.share(path, trace.encode())
    except OSError as error:
        raise RunError(
            folder, f"cannot be written ({error.strerror})", "choose a folder you may write to"
        ) from None
    return paths


def _is_trace(path: Path) -> bool:
    try:
        trace_source(path)
    except ConfigError:
        return False
    return True


def _from_roles(nights: Iterable[Role]) -> str:
    lines = []
    for night, role in enumerate(nights):
        start = int(night * DAY_S)
        lines += [f"{start}\t{state}\n" for state in _STATES[role]]
        if role is Role.UNPLUGGED:
            lines.append(f"{start + UNPLUGGED_AFTER_S}\tbattery_charged_off\n")
    return "".join(lines)


def _device(index: int, rng: np.random.Generator) -> Device:
    kind = str(rng.choice(list(CLASSES), p=[share for share, _, _ in CLASSES.values()]))
    _, batch_s, mbps = CLASSES[kind]
    zone_h = int(rng.choice(list(ZONES), p=list(ZONES.values())))
    down_mbps = mbps * rng.lognormal(0.0, 0.5)
    return Device(
        index,
        kind,
        zone_h,
        batch_s * rng.lognormal(0.0, 0.25),
        down_mbps,
        down_mbps * rng.uniform(0.2, 0.6),
        plugs_in_h=rng.normal(22.8, 1.2),
        unplugs_h=rng.normal(7.2, 0.8),
        leaves_home_h=rng.normal(8.5, 0.8),
        returns_home_h=rng.normal(18.0, 1.5),
        has_wifi=bool(rng.random() < 0.9),
        uses_per_hour=rng.gamma(4.0, 1.0),
    )


Span = tuple[float, float, str]  # from, to (local hours after the first local midnight), state


def _charging(device: Device, days: int, rng: np.random.Generator) -> tuple[str, list[Span]]:
    """Most nights on the charger, now and then an hour or two by day."""
    spans = []
    for midnight in _midnights(days):
        if rng.random() < 0.9:
            start, end = (
                device.plugs_in_h + rng.normal(0, 0.7),
                24 + device.unplugs_h + rng.normal(0, 0.4),
            )
            spans.append((midnight + start, midnight + end, "battery_charged_on"))
        if rng.random() < 0.3:
            start = rng.uniform(10, 17)
            spans.append(
                (midnight + start, midnight + start + rng.uniform(0.5, 2), "battery_charged_on")
            )
    return "battery_charged_off", spans


def _wifi(device: Device, days: int, rng: np.random.Generator) -> tuple[str, list[Span]]:
    """WiFi at home; a mobile network elsewhere, most days; no network for a few minutes now and
    then.
    """
    spans = []
    for midnight in _midnights(days):
        if rng.random() < 0.75:
            start, end = (
                device.leaves_home_h + rng.normal(0, 0.5),
                device.returns_home_h + rng.normal(0, 1.0),
            )
            spans.append((midnight + start, midnight + end, "4g"))
        if rng.random() < 0.4:
            start = rng.uniform(0, 6)
            spans.append((midnight + start, midnight + start + rng.uniform(0.02, 0.2), "none"))
    return "wifi" if device.has_wifi else "4g", spans


def _screen(device: Device, days: int, rng: np.random.Generator) -> tuple[str, list[Span]]:
    """Uses of a few minutes at random times, twenty times rarer at night than by day."""
    spans = []
    for midnight in _midnights(days):
        for hour in range(24):
            starts = (
                midnight
                + hour
                + rng.random(rng.poisson(device.uses_per_hour * (1.0 if 7 <= hour < 23 else 0.05)))
            )
            spans += [
                (start, start + minutes / 60, "screen_on")
                for start, minutes in zip(starts, rng.exponential(3.0, len(starts)), strict=True)
            ]
    return "screen_off", spans


def _midnights(days: int) -> range:
    """Local midnights in hours: two days more at the start and one at the end, so that no time zone
    and no night is cut off.
    """
    return range(-48, 24 * (days + 1), 24)


def _changes(device: Device, usual: str, spans: list[Span]) -> list[tuple[float, str]]:
    """Spans in local hours as changes in UTC seconds; outside of them the usual state holds. A span
    ends when the next begins.
    """
    spans = sorted(span for span in spans if span[1] > span[0])
    changes = [(-math.inf, usual)]
    for (start, end, state), following in zip(
        spans, [*(span[0] for span in spans[1:]), math.inf], strict=True
    ):
        changes.append((HOUR_S * (start - device.zone_h), state))
        if end < following:
            changes.append((HOUR_S * (end - device.zone_h), usual))
    return changes
