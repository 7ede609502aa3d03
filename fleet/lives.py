"""Lives: settings -> the devices of a fleet and what says when they are ready."""

from pathlib import Path

from device_runtime.errors import RunError
from fleet import population, traces
from fleet.availability import Always, Availability
from fleet.days import Days
from fleet.population import Lives, Population, PopulationSettings
from fleet.traces import Traces


def people(settings: PopulationSettings, users: int, seed: int) -> Population:
    """The devices, on which so many users type: those of the settings' folder, or new ones.

    Raises ConfigError or RunError for a folder that holds no population, fewer devices, or such
    that other users type on.
    """
    if not settings.folder:
        return population.make(settings, users, seed)
    kept = population.load(Path(settings.folder))
    if len(kept) < settings.devices:
        raise RunError(
            settings.folder,
            f"expected {settings.devices:,} devices or more, found {len(kept):,}",
            "make a larger population, or set population.devices lower",
        )
    some = population.first(kept, settings.devices)
    if int(some.user.max()) >= users:
        raise RunError(
            settings.folder,
            f"expected devices that {users:,} users type on, found user {some.user.max():,}",
            f"make the population with --users {users}",
        )
    return some


def of(settings: PopulationSettings, devices: Population, seed: int) -> Availability:
    """What says when devices are ready. Raises ConfigError or RunError for a folder without a
    recording.
    """
    if settings.lives is Lives.TRACES:
        recording = traces.load(Path(settings.traces))
        return Traces(recording, len(devices), seed, settings.repeat)
    return Days(devices) if settings.lives is Lives.DAYS else Always()
