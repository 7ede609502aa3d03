"""Fleets of a study: each lives in a folder of its own, and goes on there after any kill."""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import connection, parent_process
from pathlib import Path

from device_runtime import config, durable
from device_runtime.terms import Aggregation
from device_runtime.wire import DAY_S, Plan
from fleet import begin, tables
from fleet.population import PopulationSettings
from fleet.runs import Run
from fleet.saved import Saves
from fleet.settings import FleetSettings, Training
from fleet.simulate import Fleet
from fleet.tables import Lived
from fleet.typed import Typed
from server.eligibility import Policy
from server.rounds import Rules
from server.task import TaskSettings

SETTINGS = "fleet.toml"
EVERY_S = 30.0  # between two saves, at least
SHARE = 0.05  # of the time that saving may take
SHOWN_S = 60.0  # between two looks at how far it is

# what the fleets of the studies have in common: turns as long as those of `gboard-small`
COMMON = FleetSettings(
    step_s=5.0,
    population=PopulationSettings(devices=1000),
    task=TaskSettings(
        plan=Plan(length=20, max_rows=256),
        rules=Rules(report_goal=10, selection_s=300.0, reporting_s=1200.0, retry_s=200.0),
        policy=Policy(min_separation=2),
        aggregation=Aggregation.PLAIN,
    ),
    training=Training(values=1000),
)


def with_rules(settings: FleetSettings, **changed: object) -> FleetSettings:
    """A fleet with other rules of its rounds."""
    rules = replace(settings.task.rules, **changed)  # type: ignore[arg-type]
    return replace(settings, task=replace(settings.task, rules=rules))


@contextlib.contextmanager
def lived(
    settings: FleetSettings,
    folder: Path,
    typed: Callable[[], Typed] | None = None,
    show: Callable[[Fleet], None] = lambda fleet: None,
) -> Iterator[Fleet]:
    """A fleet that has lived all its days in a folder. `typed`: what is typed on its devices, if it
    is not as the settings say. It is saved now and then: whoever asks again for the same one goes
    on where it was, or has it at once. `show` is told now and then how far it is.
    """
    saves = Saves(folder)
    fleet = begin.go_on(settings, folder, saves) if _is_begun(settings, folder) else None
    if fleet is None:
        if (folder / SETTINGS).exists():  # other settings, or killed before its first save
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        if typed is not None:
            typed().save(folder / begin.TYPED)
        durable.share(folder / SETTINGS, config.to_toml(settings).encode())
        fleet = begin.begin(settings, folder)
    with contextlib.closing(fleet):
        saved_at = shown_at = time.monotonic()

        def goes_on() -> bool:
            nonlocal saved_at, shown_at
            now = time.monotonic()
            if now > shown_at + SHOWN_S:
                shown_at = now
                show(fleet)
            if now > saved_at + EVERY_S:
                saves.save(fleet.state, fleet.servers)
                ended = time.monotonic()
                saved_at = ended + (ended - now) / SHARE
            return True

        fleet.run(settings.days * DAY_S, goes_on)
        saves.save(fleet.state, fleet.servers)
        yield fleet


def what_became(fleet: Fleet, folder: Path) -> Lived:
    """What a fleet has lived through in its folder."""
    return tables.lived(fleet, Run(folder).turns())


def alone() -> None:
    """In a process that computes on one core, and ends with the one that has started it."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _is_begun(settings: FleetSettings, folder: Path) -> bool:
    path = folder / SETTINGS
    return path.is_file() and config.from_toml(FleetSettings, path) == settings
