import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from device_runtime.errors import RunError
from device_runtime.terms import Aggregation
from fleet.begin import begin, go_on
from fleet.faults import Faults
from fleet.saved import TURNS, Saves, read
from fleet.servers import Drawn
from tests import toy_fleet

LIFE_S = 20_000.0
TASK = replace(toy_fleet.TASK, rules=replace(toy_fleet.TASK.rules, rounds=6))
SETTINGS = replace(toy_fleet.SETTINGS, step_s=1, task=TASK)


def rounds_of(fleet):
    return fleet.servers.coordinator.reports(fleet.now).rounds


def ended(run, fleet):
    Saves(run).save(fleet.state, fleet.servers)
    return (run / TURNS).read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole")
    fleet = begin(SETTINGS, run)
    fleet.run(LIFE_S)
    yield rounds_of(fleet), ended(run, fleet), fleet.state
    fleet.close()


def steps_to(count):
    left = iter(range(count))
    return lambda: next(left, None) is not None


@pytest.mark.parametrize("steps", [1, 7, 40, 90, 133, 200])
def test_a_fleet_goes_on_from_a_save_as_if_it_had_never_stopped(whole, tmp_path, steps):
    fleet = begin(SETTINGS, tmp_path)
    fleet.run(LIFE_S, steps_to(steps))
    under_way = len(fleet.state.turns)
    Saves(tmp_path).save(fleet.state, fleet.servers)
    fleet.run(LIFE_S, steps_to(60))  # what comes after it is lost
    fleet.close()
    again = go_on(SETTINGS, tmp_path, Saves(tmp_path))
    assert len(again.state.turns) == under_way
    again.run(LIFE_S)
    rounds, turns, state = whole
    assert rounds_of(again) == rounds
    assert ended(tmp_path, again) == turns
    assert again.state.check_ins == state.check_ins
    again.close()


HELPED = replace(
    TASK,
    plan=replace(TASK.plan, bits=4),
    rules=replace(TASK.rules, rounds=3),
    aggregation=Aggregation.HELPER,
    least_count=5,
)
PEERS = replace(HELPED, aggregation=Aggregation.SECAGG)
WRONG = Faults(
    stragglers=0.2,
    liars=0.1,
    skewed=0.2,
    skew_s=60.0,
    deaths=0.1,
    cuts=0.1,
    delays=0.2,
    picked_up=0.1,
    unheard=0.05,
    replayed=0.1,
    resent=0.1,
    reordered=0.1,
    corrupted=0.05,
    server_deaths=0.05,
    helper_deaths=0.05,
)


@pytest.mark.parametrize(
    ("task", "faults"),
    [(HELPED, Faults()), (PEERS, Faults()), (HELPED, WRONG)],
    ids=["helped", "among peers", "all goes wrong"],
)
def test_whatever_its_devices_are_at_it_goes_on(tmp_path, task, faults):
    """It is saved and put back every few steps, wherever its turns are."""
    of = replace(SETTINGS, task=task, faults=faults)
    fleet = begin(of, tmp_path / "whole")
    fleet.run(LIFE_S)
    rounds, turns = rounds_of(fleet), ended(tmp_path / "whole", fleet)
    fleet.close()
    run, saves, steps = tmp_path / "stopped", Saves(tmp_path / "stopped"), 40
    fleet = begin(of, run)
    while True:
        fleet.run(LIFE_S, steps_to(steps))
        saves.save(fleet.state, fleet.servers)
        if fleet.state.over or fleet.state.step == LIFE_S:
            break
        fleet.close()
        steps = 17 if fleet.state.turns else 29
        fleet = go_on(of, run, saves)
    assert rounds_of(fleet) == rounds
    assert (run / TURNS).read_bytes() == turns
    assert len(turns) > 0
    fleet.close()


def test_the_save_before_is_taken_where_the_newest_is_damaged(tmp_path):
    fleet, saves = begin(SETTINGS, tmp_path), Saves(tmp_path)
    fleet.run(LIFE_S, steps_to(20))
    saves.save(fleet.state, fleet.servers)
    first = fleet.state.step
    fleet.run(LIFE_S, steps_to(20))
    saves.save(fleet.state, fleet.servers)
    fleet.close()
    newest = max(tmp_path.glob("state/*"), key=lambda place: numbered(place))
    values = newest / "state.bin"
    values.write_bytes(values.read_bytes()[:-1])
    again = go_on(SETTINGS, tmp_path, Saves(tmp_path))
    assert again.state.step == first
    again.close()


def test_a_fleet_whose_saves_are_all_damaged_is_not_begun_anew(tmp_path):
    fleet, saves = begin(SETTINGS, tmp_path), Saves(tmp_path)
    fleet.run(LIFE_S, steps_to(20))
    saves.save(fleet.state, fleet.servers)
    fleet.close()
    (tmp_path / "state" / "1" / "state.bin").write_bytes(b"")
    with pytest.raises(RunError, match="state: expected a save that is whole"):
        go_on(SETTINGS, tmp_path, Saves(tmp_path))


def numbered(place):
    return json.loads((place / "saved.json").read_bytes())["number"]


class Foreign:
    def __reduce__(self):
        return os.system, ("touch owned",)


VALUES = {"a call": Foreign(), "a class": (Foreign, Drawn(0, 0, {})), "a path": Path("x")}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_nothing_but_values_of_a_state_is_made_of_a_file(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="cannot be read"):
        read(pickle.dumps(value), None, "state.bin")
    assert not (tmp_path / "owned").exists()
