"""The population: who the devices are, as columns.

A device depends on the seed and its number alone: a larger population begins with the smaller one.
"""

from dataclasses import dataclass, fields
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from device_runtime import bounds
from device_runtime.bounds import Within
from fleet import draws


@dataclass(frozen=True)
class DeviceClass:
    """Phones of one kind. Speeds are medians; single devices vary around them."""

    name: str
    share: float  # of the devices
    batch_s: float  # seconds for one batch of the plan
    down: float  # bytes a second
    up: float
    latency_s: float
    memory_mb: int
    storage_mb: int  # free
    runtime: str = "2.14.0"  # version of its interpreter


CLASSES = (
    DeviceClass("low", 0.3, 1.2, 2.4e6, 1.5e6, 0.12, 2048, 500),
    DeviceClass("middle", 0.5, 0.4, 4.3e6, 3.3e6, 0.08, 4096, 4000),
    DeviceClass("high", 0.2, 0.15, 9e6, 5e6, 0.05, 8192, 20_000),
)
# offset from UTC in hours: share of devices
ZONES = {-8: 0.2, -7: 0.1, -6: 0.3, -5: 0.4}


@dataclass(frozen=True)
class PopulationSettings:
    """`[population]` of fleet.toml."""

    devices: Annotated[int, Within(1, 100_000_000)] = 1000
    first_messages: Annotated[int, Within(0, 1_000_000)] = 60  # typed before the first day, median
    messages_a_day: Annotated[float, Within(0.0, 10_000.0)] = 20.0  # median

    def __post_init__(self) -> None:
        bounds.check(self, "population")


@dataclass(frozen=True)
class Population:
    """Columns, one row a device."""

    seed: int
    classes: tuple[DeviceClass, ...]
    kind: NDArray[np.uint8]  # number of its class
    zone_h: NDArray[np.float32]  # local time minus UTC
    batch_s: NDArray[np.float32]
    down: NDArray[np.float32]  # bytes a second
    up: NDArray[np.float32]
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
    kind = _chosen([each.share for each in CLASSES], draws.uniform(seed, devices, 0))

    def around(name: str, spread: float, which: int) -> NDArray[np.float32]:
        median = np.array([getattr(each, name) for each in CLASSES])[kind]
        varied = median * np.exp(spread * draws.normal(seed, devices, which))
        return varied.astype(np.float32)

    zones = np.array(list(ZONES), np.float32)
    spread = np.exp(draws.normal(seed, devices, 7))
    whose = draws.uniform(seed, devices, 6)
    return Population(
        seed,
        CLASSES,
        kind.astype(np.uint8),
        zones[_chosen(list(ZONES.values()), draws.uniform(seed, devices, 1))],
        around("batch_s", 0.25, 2),
        around("down", 0.5, 3),
        around("up", 0.5, 4),
        around("latency_s", 0.25, 5),
        (whose * users).astype(np.int32) if settings.devices > users else devices.astype(np.int32),
        np.round(settings.first_messages * spread).astype(np.int32),
        (settings.messages_a_day * spread).astype(np.float32),
    )


def columns(population: Population) -> dict[str, NDArray]:
    """Its arrays by name."""
    named = {each.name: getattr(population, each.name) for each in fields(population)}
    return {name: value for name, value in named.items() if isinstance(value, np.ndarray)}


def _chosen(shares: list[float], drawn: NDArray[np.float64]) -> NDArray[np.int64]:
    ends = np.cumsum(shares) / sum(shares)
    return np.minimum(np.searchsorted(ends, drawn, side="right"), len(shares) - 1)
