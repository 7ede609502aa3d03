"""Presence: the devices of a population -> which clients of a corpus are there, moment by moment.

A client is there while a device that its user types on charges, is on unmetered WiFi and idle, by
the same days as in a fleet. Cohorts that are drawn so have in them whom real rounds can have.
"""

from pathlib import Path

import numpy as np

from device_runtime.errors import RunError
from fleet import population
from fleet.availability import NEEDED
from fleet.days import Days
from fleet.population import Population

MOMENT_S = 600.0  # from one moment to the next, of the fleet's time
FOLDER = "population"  # of a run: the one it was trained with


class Presence:
    """Called with a moment: who of the clients is there, bool [clients]."""

    def __init__(self, devices: Population, clients: int):
        """Raises RunError for devices that other users type on."""
        if int(devices.user.max()) >= clients:
            raise RunError(
                "--population",
                f"expected devices that the corpus's {clients:,} train users type on, found user "
                f"{int(devices.user.max()):,}",
                f"make it with --users {clients}",
            )
        self.devices, self._clients = devices, clients
        self._days, self._all = Days(devices), np.arange(len(devices))

    @property
    def missing(self) -> int:
        """Clients without a device, who are never there."""
        return self._clients - len(np.unique(self.devices.user))

    def __call__(self, moment: int) -> np.ndarray:
        """Who is there."""
        at = np.full(len(self._all), moment * MOMENT_S)
        ready = self._days.signals(self._all, at) == NEEDED
        there = np.zeros(self._clients, bool)
        there[self.devices.user[ready]] = True
        return there


def of_run(run: Path, named: str, clients: int) -> Presence | None:
    """Who is there in the rounds of a run; None if all always are. `named` is the folder of the
    population it is to be trained with: a run that was begun has its own copy.

    Raises ConfigError or RunError for a folder that holds no population.
    """
    if not named:
        return None
    own = run / FOLDER
    kept = own if own.is_dir() else Path(named)
    return Presence(population.load(kept), clients)


def keep(presence: Presence, run: Path) -> None:
    """Copy a population to a run, unless it has it."""
    if not (run / FOLDER).is_dir():
        population.save(presence.devices, run / FOLDER)
