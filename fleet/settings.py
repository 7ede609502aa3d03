"""fleet.toml: what a fleet is made of, and how it is run."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

from device_runtime import bounds
from device_runtime.bounds import Each, Within
from device_runtime.errors import ConfigError
from device_runtime.limits import OwnLimits
from device_runtime.wire import WORD
from fleet.availability import BITS
from fleet.faults import Faults
from fleet.population import PopulationSettings
from server.task import TaskSettings

# a Monday: the first day of a fleet, in seconds since 1970
START = 1_704_067_200.0


class Way(StrEnum):
    """How devices reach the coordinator."""

    MEMORY = "memory"  # requests as values, in groups
    HTTP = "http"  # signed requests to a server on this machine


class Computing(StrEnum):
    """Who computes what devices train."""

    HERE = "here"  # this process
    POOL = "pool"  # processes of this machine
    RAY = "ray"  # those of a Ray cluster


@dataclass(frozen=True)
class Training:
    """`[training]`: what a device's training is."""

    # a signed bundle, folder or zip, whose graph trains; empty: a stand-in, which learns nothing,
    # with a network of so many values
    bundle: str = ""
    trusted: tuple[str, ...] = ()  # public keys, hexadecimal, of which one has signed the bundle
    corpus: str = "chitchat"  # whose train users type on the devices, at most so many of them
    users: Annotated[int, Within(1, 10_000_000)] = 10_000
    values: Annotated[int, Within(1, 10_000_000)] = 200
    computing: Computing = Computing.HERE
    processes: Annotated[int, Within(0, 1024)] = 0  # 0: as many as there are cores
    address: str = ""  # of a Ray cluster; empty: one of this machine

    def __post_init__(self) -> None:
        bounds.check(self, "training")


@dataclass(frozen=True)
class FleetSettings:
    """All that decides what happens in a fleet. Equal settings give equal bytes."""

    seed: Annotated[int, Within(0, 2**62)] = 0
    days: Annotated[float, Within(0.001, 3660.0)] = 1.0
    # virtual time goes in steps of this: what devices ask within one is answered in one group
    step_s: Annotated[float, Within(0.001, 3600.0)] = 1.0
    tick_s: Annotated[float, Within(0.1, 86_400.0)] = 60.0  # the server looks at the clock
    way: Way = Way.MEMORY
    # conditions that no device waits for: their owners vouch for them
    vouched: Annotated[tuple[str, ...], Each(WORD, 3)] = ()
    population: PopulationSettings = field(default_factory=PopulationSettings)
    training: Training = field(default_factory=Training)
    task: TaskSettings = field(default_factory=TaskSettings)
    limits: OwnLimits = field(default_factory=OwnLimits)  # of every device
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        """Raises ConfigError for a number out of range, or a word that is no condition."""
        bounds.check(self, "fleet")
        for name in self.vouched:
            if name not in BITS:
                raise ConfigError(
                    "fleet.vouched",
                    f"expected {', '.join(BITS)}, found {name!r}",
                    "correct it, or leave it out",
                )

    @property
    def needed(self) -> int:
        """Bits of the conditions that devices wait for."""
        return sum(bit for name, bit in BITS.items() if name not in self.vouched)
