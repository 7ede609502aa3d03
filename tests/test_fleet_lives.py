"""Which devices a fleet has, and what says when they are ready, by its settings."""

import numpy as np
import pytest

from device_runtime.errors import ConfigError, RunError
from fleet import lives, population, traces
from fleet.availability import Always
from fleet.days import Days
from fleet.population import Lives, PopulationSettings
from fleet.traces import Traces


def made(devices=9, users=4):
    return population.make(PopulationSettings(devices=devices), users, seed=2)


def test_a_fleet_s_devices_are_always_ready_or_live_people_s_days():
    for way, kind in ((Lives.ALWAYS, Always), (Lives.DAYS, Days)):
        assert type(lives.of(PopulationSettings(lives=way), made(), 1)) is kind


def test_a_fleet_replays_the_recording_that_it_names(tmp_path):
    (tmp_path / "a.tsv").write_text("5\twifi\n")
    traces.save(traces.read(tmp_path), tmp_path / "kept")
    settings = PopulationSettings(lives=Lives.TRACES, traces=str(tmp_path / "kept"), repeat=True)
    replayed = lives.of(settings, made(), 1)
    assert isinstance(replayed, Traces)
    # a day was recorded
    assert replayed.signals(np.array([8, 8]), np.array([4.0, 86_406.0])).tolist() == [0, 2]


@pytest.mark.parametrize("told", [{"lives": Lives.TRACES}, {"traces": "folder"}])
def test_a_recording_is_named_where_one_is_replayed_and_nowhere_else(told):
    with pytest.raises(ConfigError, match=r"population\.traces: expected a folder"):
        PopulationSettings(**told)


def test_a_fleet_has_the_first_devices_of_a_population_that_is_kept(tmp_path):
    population.save(made(), tmp_path)
    settings = PopulationSettings(devices=5, folder=str(tmp_path))
    devices = lives.people(settings, 4, seed=77)
    assert len(devices) == 5
    assert devices.down.tolist() == made().down[:5].tolist()


def test_more_devices_than_are_kept_or_users_that_are_not_there_are_refused(tmp_path):
    population.save(made(), tmp_path)
    with pytest.raises(RunError, match="expected 10 devices or more, found 9"):
        lives.people(PopulationSettings(devices=10, folder=str(tmp_path)), 4, seed=1)
    with pytest.raises(RunError, match="make the population with --users 2"):
        lives.people(PopulationSettings(devices=9, folder=str(tmp_path)), 2, seed=1)
