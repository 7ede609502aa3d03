from dataclasses import replace

import numpy as np
import pytest

from device_runtime.errors import RunError
from fedboard import presence
from fedboard.presence import MOMENT_S, Presence
from fleet import population
from fleet.availability import NEEDED
from fleet.days import Days
from fleet.population import PopulationSettings

DEVICES = population.make(PopulationSettings(devices=60), users=25, seed=3)


def test_a_client_is_there_while_a_device_of_its_user_is_ready():
    there = Presence(DEVICES, 25)
    for moment in (0, 31, 144):
        at = np.full(60, moment * MOMENT_S)
        ready = Days(DEVICES).signals(np.arange(60), at) == NEEDED
        assert there(moment).tolist() == [
            bool(ready[DEVICES.user == user].any()) for user in range(25)
        ]


def test_clients_without_a_device_are_never_there():
    some = replace(DEVICES, user=np.zeros(60, np.int32))
    there = Presence(some, 3)
    assert there.missing == 2
    assert not any(there(moment)[1:].any() for moment in range(0, 144, 12))


def test_devices_of_other_users_are_refused():
    with pytest.raises(RunError, match="that the corpus's 7 train users type on, found user"):
        Presence(DEVICES, 7)


def test_a_run_keeps_the_population_it_was_begun_with(tmp_path):
    population.save(DEVICES, tmp_path / "named")
    begun = presence.of_run(tmp_path / "run", str(tmp_path / "named"), 25)
    presence.keep(begun, tmp_path / "run")
    population.save(replace(DEVICES, seed=4), tmp_path / "named")
    again = presence.of_run(tmp_path / "run", str(tmp_path / "named"), 25)
    assert again.devices.seed == 3
    assert presence.of_run(tmp_path / "run", "", 25) is None
