"""Sensors: where a real device's conditions come from. Each of the three signals is read by itself,
and None means it cannot be known.

    charging     Linux: sysfs, at every call; Termux: termux-battery-status
    unmetered    Linux: NetworkManager by busctl, else by nmcli; Termux: termux-wifi-connectioninfo
    idle         no key of this keyboard lately; on Linux logind must say so too

A command that is missing, fails, hangs or prints what we do not know makes its signal None: reading
never raises. Nothing a command prints (a network's name, an address) leaves this file.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from device_runtime.conditions import Source
from device_runtime.errors import ConfigError
from device_runtime.wire import Conditions

T = TypeVar("T")
# a command and its seconds -> what it printed, None if it went wrong
Run = Callable[[Sequence[str], float], bytes | None]

# an empty file in the device's home: its time of change is the time of the last key
LAST_KEY = "last_key"
POWER = Path("/sys/class/power_supply")
SIGNALS = tuple(column.name for column in fields(Conditions))
KINDS = ("linux", "termux")

BUSCTL = ("busctl", "--system", "--json=short", "get-property")
NETWORK = (
    *BUSCTL,
    "org.freedesktop.NetworkManager",
    "/org/freedesktop/NetworkManager",
    "org.freedesktop.NetworkManager",
    "Metered",
    "State",
)
LOGIND = (
    *BUSCTL,
    "org.freedesktop.login1",
    "/org/freedesktop/login1",
    "org.freedesktop.login1.Manager",
    "IdleHint",
    "IdleSinceHint",
)
NMCLI = ("nmcli", "-t", "-f", "GENERAL.METERED,IP4.GATEWAY,IP6.GATEWAY", "device", "show")
# a command that hangs is given up; an answer serves the batches that follow too, for asking takes
# long beside one: longest of Termux's commands, which ask an app
BUS_TIMEOUT_S, BUS_REMEMBERED_S = 1.0, 2.0
TERMUX_TIMEOUT_S, TERMUX_REMEMBERED_S = 5.0, 10.0


def output(command: Sequence[str], timeout_s: float) -> bytes | None:
    """What a command prints, or None if it is missing, fails, or takes longer than `timeout_s`:
    then it ends with all it started.
    """
    try:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        ) as process:
            try:
                printed, _ = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                # the whole group: Termux's commands are scripts that start another
                os.killpg(process.pid, signal.SIGKILL)
                return None
            return printed if process.returncode == 0 else None
    except (OSError, subprocess.SubprocessError):
        return None


def linux(
    power: Path = POWER,
    idle_s: float = 300.0,
    last_key: Callable[[], float | None] = lambda: None,
    run: Run = output,
    clock: Callable[[], float] = time.monotonic,
) -> Source:
    """The source of a Linux machine: sysfs, NetworkManager, logind, and `last_key()` in seconds of
    time.time() (None: never).
    """

    def network(now: float) -> bool | None:
        said = run(NETWORK, BUS_TIMEOUT_S)
        return nmcli_unmetered(run(NMCLI, BUS_TIMEOUT_S)) if said is None else bus_unmetered(said)

    unmetered = remembered(network, BUS_REMEMBERED_S, clock)
    logind = remembered(
        lambda now: logind_idle_since(run(LOGIND, BUS_TIMEOUT_S)), BUS_REMEMBERED_S, clock
    )

    def idle(now: float) -> bool | None:
        if unused(last_key(), now, idle_s) is False:
            return False
        since = logind(now)  # remembered; how long ago that is, is counted anew
        return None if since is None else now - since >= idle_s

    return lambda now: Conditions(charging(power), unmetered(now), idle(now))


def termux(
    idle_s: float = 900.0,
    last_key: Callable[[], float | None] = lambda: None,
    run: Run = output,
    clock: Callable[[], float] = time.monotonic,
) -> Source:
    """The source of an Android phone with Termux:API. Termux knows no screen: idle is only that no
    key was pressed for `idle_s`.
    """
    battery = remembered(
        lambda now: battery_charging(run(["termux-battery-status"], TERMUX_TIMEOUT_S)),
        TERMUX_REMEMBERED_S,
        clock,
    )
    wifi = remembered(
        lambda now: wifi_unmetered(run(["termux-wifi-connectioninfo"], TERMUX_TIMEOUT_S)),
        TERMUX_REMEMBERED_S,
        clock,
    )
    return lambda now: Conditions(battery(now), wifi(now), unused(last_key(), now, idle_s))


def named(kind: str, home: Path, stated_signals: Sequence[str] = ()) -> Source:
    """The source a device's config names: `linux` or `termux`, with the keys noted in `home`.
    Raises ConfigError for any other name.
    """
    if kind not in KINDS:
        raise ConfigError(
            "conditions",
            f"expected {' or '.join(KINDS)}, found {kind!r}",
            "name the system this device runs on",
        )
    make = linux if kind == "linux" else termux
    return stated(make(last_key=lambda: last_key_at(home)), stated_signals)


def stated(source: Source, names: Sequence[str]) -> Source:
    """`source`, and True for a signal of `names` where the source says None: the owner's word. A
    False stays False.

    Raises ConfigError for a name that is no signal.
    """
    for name in names:
        if name not in SIGNALS:
            raise ConfigError(
                "stated",
                f"expected some of {', '.join(SIGNALS)}, found {name!r}",
                "state only signals this device cannot read",
            )

    def told(now: float) -> Conditions:
        conditions = source(now)
        return replace(
            conditions, **{name: True for name in names if getattr(conditions, name) is None}
        )

    return told


def remembered(
    ask: Callable[[float], T], for_s: float, clock: Callable[[], float] = time.monotonic
) -> Callable[[float], T]:
    """`ask`, but asked again only `for_s` seconds after it last answered, whatever it answered; in
    between that answer stands.
    """
    last: list[tuple[float, T]] = []  # when it answered, what it answered

    def answer(now: float) -> T:
        if not last or not 0 <= clock() - last[0][0] < for_s:
            told = ask(now)
            last[:] = [(clock(), told)]  # after asking: a slow answer is not old at once
        return last[0][1]

    return answer


def note_key(home: Path, now: float) -> None:
    """Note that a key was pressed at `now` (seconds of time.time()), at most once a second: one
    empty file, its time of change.

    A home that cannot be written is left as it is: typing goes on.
    """
    last = last_key_at(home)
    if last is not None and 0 <= now - last < 1:
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(Path(home) / LAST_KEY, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.utime(descriptor, (now, now))
        finally:
            os.close(descriptor)


def last_key_at(home: Path) -> float | None:
    """When the last key was noted in `home`, in seconds; None if none ever was."""
    try:
        return (Path(home) / LAST_KEY).stat().st_mtime
    except OSError:
        return None


def unused(last_key: float | None, now: float, idle_s: float) -> bool | None:
    """Whether no key was pressed for `idle_s`; None if none ever was.

    A key noted in the future (the clock went back) counts as pressed just now, until the clock has
    passed it or the next key is noted.
    """
    return None if last_key is None else now - last_key >= idle_s


def charging(power: Path = POWER) -> bool | None:
    """Whether this machine draws on an outlet, from sysfs; None if it has no supply that could
    tell. Takes microseconds.

    A discharging battery is False even with a charger online: a weak charger does not stop it from
    emptying. Supplies of scope Device (a mouse, a headset) are not this machine's. Without a
    battery, a port that brings no power says nothing: a desktop has such ports. Source: the
    kernel's Documentation/ABI/testing/sysfs-class-power; the rules of systemd's on_ac_power.
    """
    try:
        supplies = [
            supply for supply in Path(power).iterdir() if _read(supply / "scope") != "Device"
        ]
    except OSError:
        return None
    kinds = [(supply, _read(supply / "type") or "") for supply in supplies]
    batteries = [
        _read(supply / "status")
        for supply, kind in kinds
        if kind in ("Battery", "UPS") and _read(supply / "present") != "0"
    ]
    online = [
        _read(supply / "online")
        for supply, kind in kinds
        if kind in ("Mains", "Wireless", "BrickID") or kind.startswith("USB")
    ]
    if "Discharging" in batteries:
        return False
    # 2: online at a voltage that can be set
    if "1" in online or "2" in online or "Charging" in batteries:
        return True
    return False if batteries and "0" in online else None


def bus_unmetered(said: bytes | None) -> bool | None:
    """NetworkManager's Metered and State by busctl, one JSON object a line. A guess counts; a
    network that is not connected does not.

    Source: NMMetered (0 unknown, 1 yes, 2 no, 3 guessed yes, 4 guessed no) and NMState (50 to 70:
    connected) of NetworkManager's D-Bus API.
    """
    values = _properties(said, ("u", "u"))
    if values is None:
        return None
    metered, state = values
    if metered in (1, 3):
        return False
    return True if metered in (2, 4) and 50 <= state <= 70 else None


def nmcli_unmetered(said: bytes | None) -> bool | None:
    """The same from `nmcli -t device show`, a block of `field:value` lines per device: those with a
    gateway carry the traffic, and all count.
    """
    told = []
    for block in _text(said).split("\n\n"):
        lines = dict(line.partition(":")[::2] for line in block.splitlines())
        if lines.get("IP4.GATEWAY") or lines.get("IP6.GATEWAY"):
            told.append(
                {"yes": False, "yes (guessed)": False, "no": True, "no (guessed)": True}.get(
                    lines.get("GENERAL.METERED", "")
                )
            )
    if False in told:
        return False
    return True if told and None not in told else None


def logind_idle_since(said: bytes | None) -> float | None:
    """Since when every session is idle, in seconds (CLOCK_REALTIME); infinity while one is not;
    None if logind does not say.

    Source: IdleHint and IdleSinceHint (microseconds) of org.freedesktop.login1(5), by busctl.
    """
    values = _properties(said, ("b", "t"))
    if values is None:
        return None
    idle, since_us = values
    return since_us / 1e6 if idle else float("inf")


def battery_charging(said: bytes | None) -> bool | None:
    """From termux-battery-status: `plugged` names the outlet, and a battery that discharges all the
    same is not charging.
    """
    told = _object(said)
    plugged, status = told.get("plugged"), told.get("status")
    if plugged == "UNPLUGGED" or status == "DISCHARGING":
        return False
    return (
        True
        if plugged in ("PLUGGED_AC", "PLUGGED_USB", "PLUGGED_WIRELESS", "PLUGGED_DOCK")
        else None
    )


def wifi_unmetered(said: bytes | None) -> bool | None:
    """From termux-wifi-connectioninfo: on WiFi with an address. Android does not tell Termux
    whether that WiFi is metered.
    """
    told = _object(said)
    state, address = told.get("supplicant_state"), told.get("ip")
    if not isinstance(state, str):
        return None
    return state == "COMPLETED" and isinstance(address, str) and bool(address)


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("ascii", "replace").strip()
    except (OSError, ValueError):  # unplugged meanwhile, or a driver that does not answer
        return None


def _text(said: bytes | None) -> str:
    return (said or b"").decode("utf-8", "replace")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _object(said: bytes | None) -> dict[str, Any]:
    value = _json(_text(said))
    return value if isinstance(value, dict) else {}


def _properties(said: bytes | None, types: Sequence[str]) -> list[Any] | None:
    """The data of busctl's lines {"type":"u","data":4}, if they are of these D-Bus types."""
    values = [_json(line) for line in _text(said).splitlines()]
    if len(values) != len(types):
        return None
    for value, kind in zip(values, types, strict=True):
        if not isinstance(value, dict) or value.get("type") != kind:
            return None
        data = value.get("data")
        if type(data) is not (bool if kind == "b" else int) or not 0 <= data < 2**64:
            return None
    return [value["data"] for value in values]
