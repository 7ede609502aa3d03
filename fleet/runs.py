"""Runs: the folder of one fleet: what stands where, whose it is, and which code wrote it.

RUN/fleet.json       says that a folder is a fleet's, and by which code it was begun
RUN/fleet.toml       the settings: enough to do it again
RUN/server/          what the servers keep: databases, keys, blobs
RUN/devices.bin      the names of the devices
RUN/state/           where it goes on after a kill, while it is not over; `saved.py`
RUN/typed/           what is typed on them, where training is real
RUN/turns.bin        a row of each turn that has ended; `turns.py`
RUN/tables/          what became of it
RUN/summary.json     the figures; comes last
RUN/report.html
"""

import hashlib
import platform
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from device_runtime import config, durable, folder
from device_runtime.errors import ConfigError, RunError
from device_runtime.shown import command
from device_runtime.wire import RoundReport
from fleet.begin import NAMES, TYPED
from fleet.computing import FOLDER as COMPUTING
from fleet.figures import FOLDER as TABLES
from fleet.figures import SUMMARY
from fleet.saved import FOLDER, SERVER, TURNS
from fleet.settings import FleetSettings
from fleet.turns import TURN

FORMAT = "fedboard-fleet-1"
MARK, SETTINGS, REPORT = "fleet.json", "fleet.toml", "report.html"
ROUNDS = f"{TABLES}/rounds.jsonl"
PRESETS = Path(__file__).with_name("presets")
_ROOMS = ("device_runtime", "server", "helper", "fleet")  # whose code decides what happens


@dataclass(frozen=True)
class Mark:
    """fleet.json."""

    format: str = FORMAT
    # that it was begun with, by name: other versions may come to other bytes
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """Paths of one fleet."""

    path: Path

    @property
    def settings(self) -> FleetSettings:
        """Its fleet.toml. Raises ConfigError for one that is none."""
        return config.from_toml(FleetSettings, self.path / SETTINGS)

    @property
    def versions(self) -> dict[str, str]:
        """What it was begun with. Raises RunError for a folder that is no fleet's."""
        return require(self.path).versions

    @property
    def is_over(self) -> bool:
        """Whether it has lived all its days."""
        return (self.path / SUMMARY).is_file()

    def turns(self) -> NDArray:
        """The turns that have ended, as far as they are written down: rows of TURN, [turns]."""
        path = self.path / TURNS
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise RunError(path, f"cannot be read ({error.strerror})", "check it") from None
        return np.frombuffer(data[: len(data) // TURN.itemsize * TURN.itemsize], TURN)

    def rounds(self) -> list[RoundReport]:
        """All rounds of a run that is over, oldest first. Raises RunError where they are gone."""
        path = self.path / ROUNDS
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise RunError(path, f"cannot be read ({error.strerror})", "begin anew") from None
        return [config.from_json(RoundReport, line, str(path)) for line in lines]


def require(path: Path) -> Mark:
    """What a fleet's folder says of it. Raises RunError for any other folder."""
    mark = mark_of(path)
    if mark is None:
        raise RunError(path, "is no fleet's run", "name a folder of `fedboard fleet simulate`")
    return mark


def not_over(path: Path) -> RunError:
    """The fleet in a folder has not lived all its days."""
    go_on = command("fleet", "simulate", "--out", path, "--resume")
    return RunError(path, "is not over", f"let it go on first: {go_on}")


def mark_of(path: Path) -> Mark | None:
    """What a folder says of the fleet in it; None if it is no fleet's."""
    try:
        mark = config.from_json(Mark, (Path(path) / MARK).read_bytes(), str(path))
    except (OSError, ConfigError):
        return None
    return mark if mark.format == FORMAT else None


KIND = folder.Kind(
    "a fleet",
    lambda path: mark_of(path) is not None,
    (
        *(MARK, SETTINGS, SUMMARY, REPORT, TURNS, NAMES),
        *(f"{name}/**" for name in (SERVER, FOLDER, TYPED, COMPUTING, TABLES)),
    ),
    MARK,
    "choose another folder, pass --resume to go on with it, or --overwrite",
)


def create(path: Path, settings: FleetSettings) -> Run:
    """An empty run with its settings, in the place of an earlier one. The caller holds the folder
    (`folder.writing`). Raises RunError if it cannot be written.
    """
    run = Run(Path(path))
    try:
        if not (run.path / MARK).exists():  # never without one: it stays known as ours
            durable.share(run.path / MARK, config.to_json(Mark()))
        folder.clear(run.path, KIND, keep=(MARK,))
        durable.share(run.path / MARK, config.to_json(Mark(versions=versions())))
        durable.share(run.path / SETTINGS, config.to_toml(settings).encode())
    except OSError as error:
        raise folder.cannot_write(KIND, error.filename or run.path, error) from None
    return run


def preset(name: str | None) -> FleetSettings:
    """The settings of a preset. Raises ConfigError for a name of none."""
    known = presets()
    if name not in known:
        found = "none" if name is None else repr(name[:40])
        raise ConfigError(
            "preset", f"expected one of {', '.join(known)}, found {found}", "correct it"
        )
    return config.from_toml(FleetSettings, PRESETS / f"{name}.toml")


def presets() -> tuple[str, ...]:
    """The names of all presets."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.toml")))


def versions() -> dict[str, str]:
    """What a fleet's bytes may depend on beside its settings."""
    root, code = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for room in _ROOMS for path in (root / room).rglob("*.py")):
        code.update(path.relative_to(root).as_posix().encode() + b"\n")
        code.update(hashlib.sha256(path.read_bytes()).digest())
    return {
        "code": code.hexdigest()[:12],
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """In which versions two differ, in words.

    >>> differences({"numpy": "1.26.4", "code": "a"}, {"numpy": "2.1.0", "code": "a"})
    ['numpy 1.26.4, now 2.1.0']
    """
    names = sorted({*before, *after})
    return [
        f"{name} {before.get(name, 'unknown')}, now {after.get(name, 'unknown')}"
        for name in names
        if before.get(name) != after.get(name)
    ]
