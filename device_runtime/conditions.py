"""Conditions: is this device charging, on an unmetered network, idle? A source answers for a time;
what it does not know is None.

A simulated device replays a trace: lines of `time<TAB>state`, times in seconds and never
decreasing. Each state tells one of the three signals; a signal is unknown before its first line,
and unknown is not eligible.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from device_runtime.errors import ConfigError
from device_runtime.wire import Conditions

Source = Callable[[float], Conditions]  # seconds -> the conditions then

# the state names of recorded phone traces (Yang et al. 2021, arXiv:2006.06983), and the signal each
# of them tells
SIGNALS: dict[str, dict[str, bool | None]] = {
    "battery_charged_on": {"charging": True},
    "battery_charged_off": {"charging": False},
    "wifi": {"unmetered": True},
    "5g": {"unmetered": False},
    "4g": {"unmetered": False},
    "3g": {"unmetered": False},
    "2g": {"unmetered": False},
    "none": {"unmetered": False},
    "unknown": {"unmetered": None},
    "screen_on": {"idle": False},
    "screen_unlock": {"idle": False},
    "unlock": {"idle": False},
    "screen_off": {"idle": True},
    "screen_lock": {"idle": True},
    "lock": {"idle": True},
    "battery_low": {},  # recorded traces have these four too: they tell none of our signals
    "battery_okay": {},
    "phone_on": {},
    "phone_off": {},
}


def unknown(now: float) -> Conditions:
    """The source of a device that can tell nothing: never eligible."""
    return Conditions()


def parse(text: str, where: object = "trace") -> Source:
    """The source that replays a trace. Raises ConfigError naming the first line that is not
    `time<TAB>state`, or goes back in time.
    """
    times, states = [-math.inf], [Conditions()]
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        time, tab, state = line.partition("\t")
        told = SIGNALS.get(state.strip().lower())
        seconds = _seconds(time)
        if not tab or seconds is None or told is None:
            raise ConfigError(
                f"{where}, line {number}",
                f"expected time<TAB>state, found {line[:40]!r}",
                f"give seconds, a tab and one of {', '.join(SIGNALS)}",
            )
        if seconds < times[-1]:
            raise ConfigError(
                f"{where}, line {number}",
                f"time {seconds:g} comes after {times[-1]:g}",
                "sort the lines by time",
            )
        times.append(seconds)
        states.append(replace(states[-1], **told))
    return lambda now: states[bisect_right(times, now) - 1]


def trace_source(path: Path) -> Source:
    """The source that replays the trace in a file. Raises ConfigError if it cannot be read or
    parsed.
    """
    try:
        return parse(Path(path).read_text(), path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(
            path, f"cannot be read ({reason})", "give a trace: lines of time<TAB>state"
        ) from None


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
