import pytest

from device_runtime.terms import Aggregation
from device_runtime.wire import Plan
from fleet.begin import begin, go_on
from fleet.population import Lives, PopulationSettings
from fleet.saved import TURNS, Saves
from fleet.settings import FleetSettings
from server.eligibility import Policy
from server.rounds import Rules
from server.task import TaskSettings

LIFE_S = 20_000.0
TASK = TaskSettings(
    Plan(batch_size=8, length=10, max_rows=64),
    rules=Rules(report_goal=5, selection_s=300.0, check_ins_per_s=10.0, rounds=6),
    policy=Policy(min_separation=1),
    seed=3,
    aggregation=Aggregation.PLAIN,
)
SETTINGS = FleetSettings(
    seed=4,
    days=1,
    step_s=1,
    population=PopulationSettings(lives=Lives.ALWAYS, devices=40),
    task=TASK,
)


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
    fleet.servers.close()


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
    fleet.servers.close()
    again = go_on(SETTINGS, tmp_path, Saves(tmp_path))
    assert len(again.state.turns) == under_way
    again.run(LIFE_S)
    rounds, turns, state = whole
    assert rounds_of(again) == rounds
    assert ended(tmp_path, again) == turns
    assert again.state.check_ins == state.check_ins
    again.servers.close()
