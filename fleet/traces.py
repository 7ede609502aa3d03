"""Traces: recorded phones, replayed: when they charged, were on WiFi and lay idle.

A recording is a JSON file in the form of FLASH (Yang et al. 2021, arXiv:2006.06983),
`{device: {"messages": "time<TAB>state\\n..."}}`, or a folder with such lines in a .tsv file for
each device. Times are dates like `2020-01-29 00:03:34`, or seconds; states are those of
`device_runtime.conditions`. Lines of one second take effect in their order. What a line does not
say clearly is never guessed: it is left out and counted, and a signal that is not known does not
hold: before a device's first line, on an `unknown` network, and a day after its last line.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TextIO

import numpy as np
from numpy.typing import NDArray

from device_runtime import bounds, config, durable
from device_runtime.bounds import Matches, Within
from device_runtime.conditions import SIGNALS
from device_runtime.errors import RunError
from device_runtime.folder import Kind
from device_runtime.wire import DAY_S
from fleet import columns, draws
from fleet.availability import BITS, NEEDED, Devices, Times

_DAY = int(DAY_S)
GAP_S = _DAY  # without a line: what was known before is known no longer
MOST_DAYS = 366
MOST_BYTES = 1 << 26  # of one device's messages
_TRACE = 30  # what draws are for
_FORM = 'a JSON file {device: {"messages": "time<TAB>state\\n..."}} or a folder of .tsv files'
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Finding:
    """How many lines of a recording, and of how many devices, are of a kind."""

    lines: Annotated[int, Within(0, 2**53)] = 0
    devices: Annotated[int, Within(0, 2**53)] = 0

    def __post_init__(self) -> None:
        bounds.check(self, "finding")

    def plus(self, lines: int) -> "Finding":
        """With those of one more device."""
        return Finding(self.lines + lines, self.devices + 1) if lines else self


@dataclass(frozen=True)
class Quality:
    """What a recording is made of."""

    used: Finding = Finding()  # lines that tell a signal
    other: Finding = Finding()  # that tell none of ours: levels of the battery, a phone's start
    unknown_network: Finding = Finding()  # `unknown`: neither WiFi nor its absence
    same_second: Finding = Finding()  # as the line before
    out_of_order: Finding = Finding()  # earlier than the line before: sorted in
    gaps: Finding = Finding()  # a day and more without a line
    duplicates: Finding = Finding()  # left out: the line before, once more
    unknown_states: Finding = Finding()  # left out
    malformed: Finding = Finding()  # left out: no time, a tab and a state
    silent: Finding = Finding()  # devices without a line that can be used, which are never ready

    def plus(self, **lines: int) -> "Quality":
        """With the lines of one more device."""
        return replace(self, **{name: getattr(self, name).plus(n) for name, n in lines.items()})


@dataclass(frozen=True)
class Recording:
    """What phones were up to, phone after phone. Each begins at second 0 with what is known then:
    nothing, or what its first line says.
    """

    days: int  # how long it is: whole days, from midnight to midnight
    quality: Quality
    first: NDArray[np.int64]  # [devices + 1]: where one's changes begin, and the next one's
    second: NDArray[np.int64]  # [changes]: when, in seconds since the first midnight
    bits: NDArray[np.uint8]  # [changes]: the signals that hold from then on

    def __len__(self) -> int:
        return len(self.first) - 1


class Traces:
    """Devices that replay a recording, an `Availability`: each its own, and those that are more
    than were recorded one that is drawn. After the recording's end it begins again, or nothing
    holds any longer.
    """

    def __init__(self, recording: Recording, devices: int, seed: int, repeat: bool = False):
        self._recording, self._repeat = recording, repeat
        self._length = int(recording.days * DAY_S)
        numbers = np.arange(devices)
        drawn = draws.uniform(seed, _TRACE, numbers) * len(recording)
        self._trace = np.where(numbers < len(recording), numbers, drawn.astype(np.int64))
        self._next: dict[tuple[int, bool], NDArray[np.int64]] = {}

    def signals(self, devices: Devices, at: Times) -> NDArray[np.uint8]:
        """The bits that hold, [k]."""
        _, change, is_over = self._place(devices, at)
        return np.where(is_over, 0, self._recording.bits[change]).astype(np.uint8)

    def ready_at(self, devices: Devices, after: Times, needed: int = NEEDED) -> Times:
        """When all the `needed` bits hold next, at `after` or later, [k]; infinite: never again."""
        return self._first(devices, np.asarray(after, np.float64), needed, holds=True)

    def lost_at(self, devices: Devices, since: Times, needed: int = NEEDED) -> Times:
        """When one of the `needed` bits, which hold at `since`, is lost, later than that, [k];
        infinite: never.
        """
        lost = self._first(devices, np.asarray(since, np.float64), needed, holds=False)
        return lost if self._repeat or not needed else np.minimum(lost, self._length)

    def _first(self, devices: Devices, at: Times, needed: int, holds: bool) -> Times:
        """When it is first so that all needed bits hold, or that they do not."""
        trace, change, is_over = self._place(devices, at)
        changes, end = self._changes(needed, holds), self._recording.first[trace + 1]
        cycle = np.floor_divide(at, self._length) if self._repeat else np.zeros(len(at))
        now, later = changes[change], changes[self._recording.first[trace]]
        second = np.append(self._recording.second, 0)  # of none
        in_this, in_next = now < end, (later < end) & self._repeat
        first = np.where(
            in_this,
            np.maximum(second[np.where(in_this, now, -1)] + cycle * self._length, at),
            np.where(
                in_next,
                second[np.where(in_next, later, -1)] + (cycle + 1) * self._length,
                math.inf,
            ),
        )
        if not needed:
            return np.array(at) if holds else first
        return np.where(is_over, math.inf, first)

    def _place(
        self, devices: Devices, at: Times
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """The traces of devices, the change that came last, and whether their recording is over."""
        trace, at = self._trace[devices], np.asarray(at, np.float64)
        second = np.floor(at).astype(np.int64)
        second = second % self._length if self._repeat else np.minimum(second, self._length - 1)
        change = np.searchsorted(self._keys, trace * self._length + second, side="right") - 1
        return trace, change, (at >= self._length) & (not self._repeat)

    @cached_property
    def _keys(self) -> NDArray[np.int64]:
        """Of each change, its second, with those of all traces one after the other."""
        counts = np.diff(self._recording.first)
        return np.repeat(np.arange(len(counts)), counts) * self._length + self._recording.second

    def _changes(self, needed: int, holds: bool) -> NDArray[np.int64]:
        """Of each change, the first one at or after it, of whatever trace, at which all needed bits
        hold, or do not.
        """
        if (needed, holds) not in self._next:
            wanted = ((self._recording.bits & needed) == needed) == holds
            size = len(wanted)
            those = np.where(wanted, np.arange(size), size)
            self._next[needed, holds] = np.minimum.accumulate(those[::-1])[::-1]
        return self._next[needed, holds]


# reading a recording

# of each state the bits that it tells, and those of them that hold
_TOLD = {
    state: (
        sum(BITS[name] for name in told),
        sum(BITS[name] for name, holds in told.items() if holds),
    )
    for state, told in SIGNALS.items()
}


def read(path: Path) -> Recording:
    """The recording in a JSON file or a folder of .tsv files.

    Raises RunError, naming the file, for one that cannot be read, is of another form, or of whose
    lines fewer than half can be used.
    """
    try:
        entries = _files(path) if path.is_dir() else _entries(path)
        return _recorded(path, entries)
    except OSError as error:
        raise RunError(path, f"cannot be read ({error.strerror})", f"give {_FORM}") from None
    except UnicodeDecodeError:
        raise RunError(path, "is not text", f"give {_FORM}") from None


def _recorded(path: Path, entries: Iterator[tuple[str, str]]) -> Recording:
    quality, phones, are_dates = Quality(), [], None
    for _, messages in entries:
        phone, quality, are_dates = _phone(messages, quality, are_dates)
        phones.append(phone)
    bad = quality.malformed.lines + quality.unknown_states.lines
    good = quality.used.lines + quality.other.lines
    if not quality.used.lines or bad > good:
        raise RunError(
            path,
            f"expected lines of time<TAB>state, found {good:,} that are and {bad:,} that are not, "
            f"of {len(phones):,} devices",
            f"give {_FORM}",
        )
    begin = min(int(seconds[0]) for seconds, _ in phones if len(seconds)) // _DAY * _DAY
    last = max(int(seconds[-1]) for seconds, _ in phones if len(seconds))
    days = (last - begin) // _DAY + 1
    if days > MOST_DAYS:
        raise RunError(
            path,
            f"expected at most {MOST_DAYS} days, found times {days:,} days apart",
            "leave out the lines of another time",
        )
    changes = [_changes(phone, begin, days) for phone in phones]
    return Recording(
        days,
        quality,
        np.cumsum([0, *(len(seconds) for seconds, _ in changes)]).astype(np.int64),
        np.concatenate([seconds for seconds, _ in changes]),
        np.concatenate([bits for _, bits in changes]),
    )


# seconds, never less than the one before, and the bits that hold from then on
_Phone = tuple[NDArray[np.int64], NDArray[np.uint8]]


def _phone(
    messages: str, quality: Quality, are_dates: bool | None
) -> tuple[_Phone, Quality, bool | None]:
    """One device's lines in the order of their times, and what they are."""
    lines: list[tuple[int, str]] = []
    counts = dict.fromkeys(vars(quality), 0)
    before = None
    for line in messages.splitlines():
        if not line.strip("\0 \t"):
            continue
        written, tab, state = line.partition("\t")
        state = state.strip("\0 \t").lower()
        when, is_date = _time(written.strip())
        if not tab or when is None or are_dates not in (None, is_date):
            counts["malformed"] += 1
            continue
        are_dates = is_date
        if (when, state) == before:
            counts["duplicates"] += 1
            continue
        if state not in SIGNALS and not _is_level(state):
            counts["unknown_states"] += 1
            continue
        if before is not None:
            counts["same_second"] += when == before[0]
            counts["out_of_order"] += when < before[0]
            counts["gaps"] += when - before[0] >= GAP_S
        before = (when, state)
        lines.append(before)
        counts["used" if SIGNALS.get(state) else "other"] += 1
        counts["unknown_network"] += state == "unknown"
    lines.sort(key=lambda each: each[0])  # those of one second stay in their order
    seconds, bits, now = [second for second, _ in lines], list[int](), 0
    for i, (second, state) in enumerate(lines):
        if i and second - seconds[i - 1] > GAP_S:
            now = 0
        told, holds = _TOLD.get(state, (0, 0))
        now = now & ~told | holds
        bits.append(now)
    counts["silent"] = not counts["used"]
    phone = np.array(seconds, np.int64), np.array(bits, np.uint8)
    return phone, quality.plus(**counts), are_dates


def _changes(phone: _Phone, begin: int, days: int) -> _Phone:
    """When signals change, in seconds since a recording's first midnight."""
    second, bits = phone
    second = second - begin
    # a day after its last line, and before a gap, nothing is known any longer
    fades = second + GAP_S
    is_last = fades < np.append(second[1:], fades[-1:] + 1)
    second = np.concatenate([[0], second, fades[is_last]])
    bits = np.concatenate([[0], bits, np.zeros(is_last.sum(), np.uint8)]).astype(np.uint8)
    order = np.argsort(second, kind="stable")
    order = order[second[order] < days * DAY_S]
    second, bits = second[order], bits[order]
    ends = np.append(second[1:] != second[:-1], True)  # the last line of a second is what holds
    second, bits = second[ends], bits[ends]
    changes = np.append(True, bits[1:] != bits[:-1])
    return second[changes].astype(np.int64), bits[changes]


def _time(written: str) -> tuple[int | None, bool]:
    """Whole seconds since 1970, or since whenever a trace has it, and whether it was a date."""
    try:
        if written[4:5] == "-":
            since = datetime.fromisoformat(written[:19]) - datetime(1970, 1, 1)
            return since.days * _DAY + since.seconds, True
        value = float(written)
    except (ValueError, TypeError):
        return None, False
    return (math.floor(value) if abs(value) < 2**40 else None), False


def _is_level(state: str) -> bool:
    """Whether a state is how full a battery is, `85%` or `85.0%`."""
    return state.endswith("%") and state[:-1].replace(".", "", 1).isdigit()


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    paths = sorted(folder.glob("*.tsv"))
    if not paths:
        raise RunError(folder, "expected .tsv files, found none", f"give {_FORM}")
    for path in paths:
        if path.stat().st_size > MOST_BYTES:
            raise RunError(path, f"is longer than {MOST_BYTES:,} bytes", "give one device a file")
        yield path.stem, path.read_text(encoding="utf-8")


def _entries(path: Path) -> Iterator[tuple[str, str]]:
    """Devices and their messages, one after the other: a file need not fit into memory."""
    with open(path, encoding="utf-8-sig") as file:
        text = _Text(file)
        try:
            seen: set[str] = set()
            text.take("{")
            while text.next() != "}":
                name = text.value('"')
                text.take(":")
                record = text.value("{")
                messages = record.get("messages")
                if name in seen or not isinstance(messages, str):
                    problem = "is there twice" if name in seen else "has no text `messages`"
                    raise RunError(path, f"device {name[:40]!r} {problem}", f"give {_FORM}")
                seen.add(name)
                yield name, messages
                if text.next() != "}":
                    text.take(",")
            text.take("}")
            if text.next():
                raise ValueError("something follows its end")
        except (ValueError, RecursionError) as error:
            if isinstance(error, UnicodeDecodeError):
                raise
            raise RunError(path, f"is no recording ({error})", f"give {_FORM}") from None


class _Text:
    """JSON that is read piece by piece."""

    def __init__(self, file: TextIO):
        self._file, self._left, self._decoder = file, "", json.JSONDecoder()

    def next(self) -> str:
        """The next character that is no space; empty at the end."""
        self._left = self._left.lstrip(" \t\r\n")
        while not self._left:
            more = self._file.read(_CHUNK)
            if not more:
                return ""
            self._left = more.lstrip(" \t\r\n")
        return self._left[0]

    def take(self, character: str) -> None:
        """Pass over a character. Raises ValueError if another one is there."""
        if self.next() != character:
            raise ValueError(f"expected {character}, found {self.next()[:1]!r}")
        self._left = self._left[1:]

    def value(self, begins: str) -> Any:
        """A value that begins with a quotation mark or a brace. Raises ValueError."""
        if self.next() != begins:
            raise ValueError(f"expected {begins}, found {self.next()[:1]!r}")
        while True:
            try:
                value, end = self._decoder.raw_decode(self._left)
                self._left = self._left[end:]
                return value
            except ValueError:
                more = self._file.read(max(_CHUNK, len(self._left)))
                if not more or len(self._left) > MOST_BYTES:
                    raise
                self._left += more


# kept in a folder

ABOUT, COLUMNS = "traces.toml", "columns.npz"
TYPES: dict[str, Any] = {"first": np.int64, "second": np.int64, "bits": np.uint8}


@dataclass(frozen=True)
class About:
    """traces.toml: what its columns are numbers of."""

    devices: Annotated[int, Within(1, 100_000_000)]
    days: Annotated[int, Within(1, MOST_DAYS)]
    columns: Annotated[str, Matches("[0-9a-f]{64}", 64)]  # SHA-256, `columns.digest`
    quality: Quality = Quality()

    def __post_init__(self) -> None:
        bounds.check(self, "traces")


FOLDER = Kind(
    "a recording of phones",
    lambda folder: config.is_toml_of(About, folder / ABOUT),
    (ABOUT, COLUMNS),
    ABOUT,
    "pass --overwrite",
)


def save(recording: Recording, folder: Path) -> None:
    """Write a recording to a folder. Raises RunError if it cannot be written."""
    arrays = {name: getattr(recording, name) for name in TYPES}
    about = About(len(recording), recording.days, columns.digest(arrays), recording.quality)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        columns.write(folder / COLUMNS, arrays)
        durable.share(folder / ABOUT, config.to_toml(about).encode())
    except OSError as error:
        raise RunError(
            folder, f"cannot be written ({error.strerror})", "choose a folder you may write to"
        ) from None


def load(folder: Path) -> Recording:
    """The recording of a folder, whole and as it was saved.

    Raises ConfigError or RunError, naming the file, for one that is damaged or altered.
    """
    about = config.from_toml(About, folder / ABOUT)
    arrays = columns.read(folder / COLUMNS, TYPES)
    if columns.digest(arrays) != about.columns or not _is_sound(about, **arrays):
        raise RunError(
            folder / COLUMNS,
            f"holds no recording that {ABOUT} names",
            "import the recording again: one of the two was altered",
        )
    return Recording(about.days, about.quality, **arrays)


def _is_sound(about: About, first: NDArray[Any], second: NDArray[Any], bits: NDArray[Any]) -> bool:
    """Whether each device's changes begin at 0 and go on in time."""
    if len(first) != about.devices + 1 or len(second) != len(bits):
        return False
    if first[0] != 0 or first[-1] != len(second) or (np.diff(first) < 1).any():
        return False
    goes_on = np.diff(second) > 0
    goes_on[first[1:-1] - 1] = True
    return bool(
        (second[first[:-1]] == 0).all()
        and goes_on.all()
        and second.max() < about.days * DAY_S
        and bits.max() <= NEEDED
    )
