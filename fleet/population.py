"""The population: who the devices are, as columns.

A device depends on the seed and its number alone: a larger population begins with the smaller one.

Sources. Bandwidths are those of 19 people's phones on their own WiFi (FLASH, Yang et al. 2021,
arXiv:2006.06983, `models/speed_distri.json` of its repository): medians of 4.3 MB/s down and 3.3
up, 2.4 to 17.3 and 0.4 to 6.6 from one to the other, and 15 to 100 % of it, one standard deviation,
from one transfer of a phone to its next. They belong to the line more than to the phone, so classes
differ less than people do. Batches: a stacked LSTM took 0.5 to 2.6 s on the phones of 2014 to 2019
of the same study; half the slowest is taken for a low phone of now, the fastest for a middle one,
and a high one lies half way, by its logarithm, between that and one core of a server, which
`docs/results.md` has. Zones: the share of people of the United States, or of the world's phones, by
offset from UTC, rounded; languages likewise.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from device_runtime import bounds, config, durable
from device_runtime.bounds import Each, Matches, Within
from device_runtime.errors import ConfigError, RunError
from device_runtime.folder import Kind
from fleet import columns as files
from fleet import draws

_TEXT = Matches(r"[ -~]+", 40)
_SPEED = Within(1.0, 1e12)
_SHARE = Within(0.0, 1.0)


@dataclass(frozen=True)
class DeviceClass:
    """Phones of one kind. Speeds are medians; single devices vary around them."""

    name: Annotated[str, _TEXT]
    share: Annotated[float, _SHARE]  # of the devices
    batch_s: Annotated[float, Within(1e-6, 1e6)]  # seconds for one batch of the plan
    down: Annotated[float, _SPEED]  # bytes a second
    up: Annotated[float, _SPEED]
    latency_s: Annotated[float, Within(0.0, 1e4)]
    memory_mb: Annotated[int, Within(1, 10**7)]
    storage_mb: Annotated[int, Within(0, 10**9)]  # free
    wifi: Annotated[float, _SHARE]  # of their owners have WiFi at home
    runtime: Annotated[str, _TEXT] = "2.14.0"  # version of its interpreter

    def __post_init__(self) -> None:
        bounds.check(self, "class")


@dataclass(frozen=True)
class Region:
    """People who live by one clock."""

    name: Annotated[str, _TEXT]
    zone_h: Annotated[float, Within(-14.0, 14.0)]  # local time minus UTC
    share: Annotated[float, _SHARE]  # of the devices
    languages: Annotated[dict[str, float], Each(_SHARE, 100, _TEXT)]  # shares of its devices

    def __post_init__(self) -> None:
        bounds.check(self, "region")


class Where(StrEnum):
    """Where the people of a population live."""

    US = "us"
    WORLD = "world"


class Lives(StrEnum):
    """What says when devices charge, are on WiFi and lie idle."""

    ALWAYS = "always"  # nothing: they always do
    DAYS = "days"  # made-up days of people
    TRACES = "traces"  # a recording, replayed


CLASSES = (
    DeviceClass("low", 0.3, 1.3, 3.6e6, 2.8e6, 0.12, 2048, 500, 0.84),
    DeviceClass("middle", 0.5, 0.5, 4.4e6, 3.4e6, 0.08, 4096, 4000, 0.94),
    DeviceClass("high", 0.2, 0.14, 5.6e6, 4.3e6, 0.05, 8192, 20_000, 0.98),
)
_US = {"en": 0.79, "es": 0.14, "zh": 0.01, "tl": 0.01, "vi": 0.01, "ar": 0.01, "fr": 0.03}
REGIONS = {
    Where.US: (
        Region("Pacific", -8.0, 0.17, _US),
        Region("Mountain", -7.0, 0.07, _US),
        Region("Central", -6.0, 0.29, _US),
        Region("Eastern", -5.0, 0.47, _US),
    ),
    Where.WORLD: (
        Region("Americas, west", -8.0, 0.03, {"en": 0.7, "es": 0.3}),
        Region("Americas, centre", -6.0, 0.07, {"en": 0.45, "es": 0.55}),
        Region("Americas, east", -5.0, 0.05, {"en": 0.6, "es": 0.4}),
        Region("Brazil", -3.0, 0.05, {"pt": 0.9, "es": 0.1}),
        Region("Europe, west", 0.0, 0.05, {"en": 0.6, "fr": 0.2, "pt": 0.2}),
        Region("Europe, centre", 1.0, 0.1, {"de": 0.3, "fr": 0.2, "it": 0.2, "es": 0.2, "pl": 0.1}),
        Region("Africa and Middle East", 2.0, 0.13, {"ar": 0.5, "fr": 0.2, "sw": 0.15, "ha": 0.15}),
        Region("Russia, west", 3.0, 0.04, {"ru": 1.0}),
        Region("India", 5.5, 0.17, {"hi": 0.5, "en": 0.2, "bn": 0.15, "ta": 0.15}),
        Region("Indochina", 7.0, 0.1, {"id": 0.55, "vi": 0.25, "th": 0.2}),
        Region("China", 8.0, 0.17, {"zh": 1.0}),
        Region("Japan and Korea", 9.0, 0.04, {"ja": 0.7, "ko": 0.3}),
    ),
}
# natural logarithm, one standard deviation, of what differs from one person's line to another's
_LINE, _DOWN, _UP = 0.35, 0.35, 0.5
_OWN_SPREAD = 0.37  # of one device's transfers, median, standard deviation over mean
_LEAST_SPREAD, _MOST_SPREAD = 0.15, 1.0
_NORMAL = NormalDist()
# what draws are for
(_KIND, _REGION, _BATCH, _OWN_DOWN, _OWN_UP, _LATENCY, _WHOSE, _TYPES) = range(8)
_SHARED_LINE, _VARIES, _LANGUAGE, _WIFI, _TRANSFER = range(8, 13)


@dataclass(frozen=True)
class PopulationSettings:
    """`[population]` of fleet.toml. Raises ConfigError for numbers out of range."""

    devices: Annotated[int, Within(1, 100_000_000)] = 1000
    where: Where = Where.US
    first_messages: Annotated[int, Within(0, 1_000_000)] = 60  # typed before the first day, median
    messages_a_day: Annotated[float, Within(0.0, 10_000.0)] = 20.0  # median
    # share of transfers that break off, beside those whose WiFi is left: networks do, and are back
    # in a minute or in hours
    breaks: Annotated[float, Within(0.0, 0.9)] = 0.03
    # a folder of `fedboard fleet population make`, whose first devices these are; empty: made here
    folder: str = ""
    lives: Lives = Lives.DAYS
    traces: str = ""  # the folder of `fedboard fleet population import` that is replayed
    repeat: bool = False  # replayed again from its beginning, once it is over

    def __post_init__(self) -> None:
        bounds.check(self, "population")
        if (self.lives is Lives.TRACES) != bool(self.traces):
            raise ConfigError(
                "population.traces",
                f"expected a folder where lives is {Lives.TRACES.value!r} and nowhere else, found "
                f"{self.traces!r} where it is {self.lives.value!r}",
                "correct one of the two",
            )


@dataclass(frozen=True)
class Population:
    """Columns, one row a device."""

    seed: int
    classes: tuple[DeviceClass, ...]
    regions: tuple[Region, ...]
    languages: tuple[str, ...]
    breaks: float  # share of transfers
    kind: NDArray[np.uint8]  # number of its class
    region: NDArray[np.uint8]
    language: NDArray[np.uint8]
    zone_h: NDArray[np.float32]  # local time minus UTC
    wifi: NDArray[np.uint8]  # 1: there is WiFi at home
    batch_s: NDArray[np.float32]
    down: NDArray[np.float32]  # bytes a second, mean of its transfers
    up: NDArray[np.float32]
    spread: NDArray[np.float32]  # of its transfers, standard deviation over mean
    latency_s: NDArray[np.float32]
    user: NDArray[np.int32]  # who types on it, by number in `Typed`
    first_messages: NDArray[np.int32]
    messages_a_day: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.kind)


def make(settings: PopulationSettings, users: int, seed: int) -> Population:
    """A population whose devices are typed on by so many users, some by several where they are more
    than those.
    """
    devices = np.arange(settings.devices)
    kind = _chosen([each.share for each in CLASSES], draws.uniform(seed, devices, _KIND))
    regions = REGIONS[settings.where]
    region = _chosen([each.share for each in regions], draws.uniform(seed, devices, _REGION))
    languages = tuple(sorted({name for each in regions for name in each.languages}))
    line = draws.normal(seed, devices, _SHARED_LINE)

    def around(name: str, spread: float, which: int, shared: float = 0.0) -> NDArray[np.float32]:
        median = np.array([getattr(each, name) for each in CLASSES])[kind]
        own = spread * draws.normal(seed, devices, which)
        return (median * np.exp(own + shared * line)).astype(np.float32)

    varies = _OWN_SPREAD * np.exp(0.5 * draws.normal(seed, devices, _VARIES))
    types = np.exp(draws.normal(seed, devices, _TYPES))
    another = (draws.uniform(seed, devices, _WHOSE) * users).astype(np.int64)
    zones = np.array([each.zone_h for each in regions], np.float32)
    homes = np.array([each.wifi for each in CLASSES])[kind]
    return Population(
        seed,
        CLASSES,
        regions,
        languages,
        settings.breaks,
        kind.astype(np.uint8),
        region.astype(np.uint8),
        _spoken(regions, languages, region, draws.uniform(seed, devices, _LANGUAGE)),
        zones[region],
        (draws.uniform(seed, devices, _WIFI) < homes).astype(np.uint8),
        around("batch_s", 0.25, _BATCH),
        around("down", _DOWN, _OWN_DOWN, _LINE),
        around("up", _UP, _OWN_UP, _LINE),
        np.clip(varies, _LEAST_SPREAD, _MOST_SPREAD).astype(np.float32),
        around("latency_s", 0.25, _LATENCY),
        np.where(devices < users, devices, another).astype(np.int32),
        np.round(settings.first_messages * types).astype(np.int32),
        (settings.messages_a_day * types).astype(np.float32),
    )


def first(population: Population, size: int) -> Population:
    """The first devices of a population."""
    shorter: dict[str, Any] = {name: column[:size] for name, column in columns(population).items()}
    return replace(population, **shorter)


def transfer(
    population: Population, device: int, number: int, up: float, down: float
) -> tuple[float, bool]:
    """Seconds that a transfer of so many bytes takes, and whether it breaks off then; `number`
    tells it from all others of this device.
    """
    drawn = draws.one(population.seed, device, number, _TRANSFER)
    breaks = drawn < population.breaks
    share = drawn / population.breaks if breaks else 1.0  # of it that is done when it breaks
    rest = 0.5 if breaks else (drawn - population.breaks) / (1.0 - population.breaks)
    # a lognormal of mean 1 and the device's own spread
    deviation = math.sqrt(math.log1p(float(population.spread[device]) ** 2))
    speed = math.exp(deviation * _NORMAL.inv_cdf(max(rest, 2.0**-53)) - deviation**2 / 2)
    moved = down / float(population.down[device]) + up / float(population.up[device])
    return share * (float(population.latency_s[device]) + moved / speed), breaks


def columns(population: Population) -> dict[str, NDArray]:
    """Its arrays by name."""
    named = {each.name: getattr(population, each.name) for each in fields(population)}
    return {name: value for name, value in named.items() if isinstance(value, np.ndarray)}


def digest(population: Population) -> str:
    """SHA-256 of all that devices of it do may depend on."""
    about = _about(population, "")
    return files.digest(
        columns(population) | {"": np.frombuffer(config.to_json(about), np.uint8)},
    )


# kept in a folder

ABOUT, COLUMNS = "population.toml", "columns.npz"
TYPES: dict[str, Any] = {  # of its columns
    "kind": np.uint8,
    "region": np.uint8,
    "language": np.uint8,
    "zone_h": np.float32,
    "wifi": np.uint8,
    "batch_s": np.float32,
    "down": np.float32,
    "up": np.float32,
    "spread": np.float32,
    "latency_s": np.float32,
    "user": np.int32,
    "first_messages": np.int32,
    "messages_a_day": np.float32,
}
_ROWS: Mapping[str, tuple[float, float]] = {  # least and most of a row
    "zone_h": (-14, 14),
    "wifi": (0, 1),
    "batch_s": (1e-6, 1e6),
    "down": (1, 1e12),
    "up": (1, 1e12),
    "spread": (0, 10),
    "latency_s": (0, 1e4),
    "user": (0, 2**31 - 1),
    "first_messages": (0, 2**31 - 1),
    "messages_a_day": (0, 1e7),
}


@dataclass(frozen=True)
class About:
    """population.toml: what its columns are numbers of."""

    seed: Annotated[int, Within(0, 2**62)]
    devices: Annotated[int, Within(1, 100_000_000)]
    columns: Annotated[str, Matches("[0-9a-f]{64}|", 64)]  # SHA-256, `columns.digest`
    breaks: Annotated[float, Within(0.0, 0.9)]
    languages: Annotated[tuple[str, ...], Each(_TEXT, 256)]
    classes: tuple[DeviceClass, ...] = field(default=())
    regions: tuple[Region, ...] = field(default=())

    def __post_init__(self) -> None:
        bounds.check(self, "population")


FOLDER = Kind(
    "a population",
    lambda folder: config.is_toml_of(About, folder / ABOUT),
    (ABOUT, COLUMNS),
    ABOUT,
    "pass --overwrite",
)


def save(population: Population, folder: Path) -> None:
    """Write a population to a folder. Raises RunError if it cannot be written."""
    arrays = columns(population)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.write(folder / COLUMNS, arrays)
        about = _about(population, files.digest(arrays))
        durable.share(folder / ABOUT, config.to_toml(about).encode())
    except OSError as error:
        raise RunError(
            folder, f"cannot be written ({error.strerror})", "choose a folder you may write to"
        ) from None


def load(folder: Path) -> Population:
    """The population of a folder, whole and as it was saved.

    Raises ConfigError or RunError, naming the file, for one that is damaged, altered or of another
    kind.
    """
    about = config.from_toml(About, folder / ABOUT)
    arrays = files.read(folder / COLUMNS, TYPES)
    numbered = {"kind": about.classes, "region": about.regions, "language": about.languages}
    most = {name: (0.0, len(of) - 1.0) for name, of in numbered.items()}
    for name, column in arrays.items():
        low, high = (most | dict(_ROWS))[name]
        inside = len(column) == about.devices and bool(((column >= low) & (column <= high)).all())
        if not inside:  # what is not a number is not inside
            raise RunError(
                folder / COLUMNS,
                f"expected {name} of {about.devices:,} devices from {low:g} to {high:g}, found "
                "others",
                "make the population anew",
            )
    if files.digest(arrays) != about.columns:
        raise RunError(
            folder / COLUMNS,
            f"its numbers are not those that {ABOUT} names",
            "make the population anew: one of the two was altered",
        )
    return Population(
        about.seed, about.classes, about.regions, about.languages, about.breaks, **arrays
    )


def _about(population: Population, of_columns: str) -> About:
    return About(
        population.seed,
        len(population),
        of_columns,
        population.breaks,
        population.languages,
        population.classes,
        population.regions,
    )


def _spoken(
    regions: tuple[Region, ...],
    languages: tuple[str, ...],
    region: NDArray[np.int64],
    drawn: NDArray[np.float64],
) -> NDArray[np.uint8]:
    spoken = np.zeros(len(region), np.uint8)
    for number, each in enumerate(regions):
        here = region == number
        names = np.array([languages.index(name) for name in each.languages], np.uint8)
        spoken[here] = names[_chosen(list(each.languages.values()), drawn[here])]
    return spoken


def _chosen(shares: list[float], drawn: NDArray[np.float64]) -> NDArray[np.int64]:
    ends = np.cumsum(shares) / sum(shares)
    return np.minimum(np.searchsorted(ends, drawn, side="right"), len(shares) - 1)
