"""Nights: what each device of a demo is up to, night after night, as traces that it replays."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path

import numpy as np

from device_runtime import durable
from device_runtime.conditions import trace_source
from device_runtime.errors import ConfigError, RunError
from device_runtime.wire import DAY_S


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
