"""Device classes: what a bundle may take of the phones it is for.

A class is named by what its phones have in common, never by a model. Time is measured where the
bundle is packaged: such a phone is held to be `slower` times as slow, which is ours to guess and
yours to measure.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

from conversion.costs import Costs
from device_runtime import bounds, config
from device_runtime.bounds import Each, Matches, Within
from device_runtime.bundle import PREDICT, File
from device_runtime.errors import ConfigError

SUGGESTION_MS = 20.0  # in which a keyboard has to answer a key: Hard et al. 2018, arXiv:1811.03604
LEAST, MOST = 1e-6, 1e9
NAME = Matches("[a-z0-9][a-z0-9._-]{0,63}", 64)  # of a class
REMEDY = {
    "ram_mb": "export with a smaller --batch-size or --length, or train a smaller network",
    "bundle_bytes": "train a smaller network or a smaller vocabulary",
    "predict_bytes": "train a smaller network or a smaller vocabulary",
    "suggestion_ms": "train a smaller network, or package on a machine that is not busy",
    "train_step_ms": "export with a smaller --batch-size or --length",
}


@dataclass(frozen=True)
class Budget:
    """What a bundle may take at most of a device of one class."""

    ram_mb: Annotated[float, Within(LEAST, MOST)]  # peak of a process that suggests and trains
    bundle_bytes: Annotated[int, Within(1, 2**40)]  # of all files that the manifest lists
    predict_bytes: Annotated[int, Within(1, 2**40)]  # of predict.tflite, which a strip maps
    suggestion_ms: Annotated[float, Within(LEAST, MOST)]  # 99th percentile, on the device
    train_step_ms: Annotated[float, Within(LEAST, MOST)]  # median, on the device
    # how many times as long its core takes as that of the machine that packages
    slower: Annotated[float, Within(0.01, 1000.0)] = 1.0

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of its bounds."""
        bounds.check(self, "device class")

    @property
    def manifest(self) -> dict[str, float]:
        """What was kept, for the figures that are signed: the limits, since the same inputs must
        give the same bytes.
        """
        return {f"class_{each.name}_at_most": float(getattr(self, each.name)) for each in LIMITS}


LIMITS = tuple(each for each in fields(Budget) if each.name != "slower")


def _defaults() -> dict[str, Budget]:
    """Memory: an Android Go phone has 1 to 2 GB, and its guidelines want 50 MB of an app in front
    (developer.android.com, "Optimize for devices running Android (Go edition)"), beside which
    Python and our packages alone take some 60. The other classes may take a share of 4 and 8 GB.
    """
    return {
        "low": Budget(112.0, 5_000_000, 1_500_000, SUGGESTION_MS, 1000.0, 8.0),
        "middle": Budget(160.0, 5_000_000, 1_500_000, SUGGESTION_MS, 500.0, 3.0),
        "high": Budget(320.0, 20_000_000, 6_000_000, SUGGESTION_MS, 250.0, 1.0),
    }


@dataclass(frozen=True)
class Classes:
    """The classes by name, as configs/device-classes.toml has them."""

    classes: Annotated[dict[str, Budget], Each(None, 100, NAME)] = field(default_factory=_defaults)

    def __post_init__(self) -> None:
        """Raises ConfigError for a name no device could tell."""
        bounds.check(self)


def named(name: str, path: Path | None = None) -> Budget:
    """The budget of a class, of those in a TOML file or of our own.

    Raises ConfigError for a file that cannot be read and for a class that is not there.
    """
    classes = (config.from_toml(Classes, path) if path else Classes()).classes
    if name not in classes:
        raise ConfigError(
            path or "device classes",
            f"no class {name!r}, expected {' or '.join(sorted(classes))}",
            "name one of them, or give a file with --classes",
        )
    return classes[name]


@dataclass(frozen=True)
class Class:
    """A class that a bundle is made for."""

    name: str
    budget: Budget


def problems(budget: Budget, costs: Costs, files: dict[str, File]) -> list[str]:
    """Which limits a bundle of these files breaks, in words, each with what to do; empty if it
    keeps them all. A figure that is not a number breaks its limit.
    """
    figures = {
        "ram_mb": costs.ram_mb,
        "bundle_bytes": sum(file.bytes for file in files.values()),
        "predict_bytes": files[PREDICT].bytes,
        "suggestion_ms": costs.suggestion_ms * budget.slower,
        "train_step_ms": costs.train_step_ms * budget.slower,
    }
    return [
        f"{name}: expected at most {getattr(budget, name):,}, found {figure:,.6g}: {REMEDY[name]}"
        for name, figure in figures.items()
        if not figure <= getattr(budget, name)
    ]
