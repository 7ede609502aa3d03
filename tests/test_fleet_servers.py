import copy
from dataclasses import replace

import numpy as np
import pytest

from device_runtime.terms import Aggregation
from device_runtime.wire import Plan
from fleet.begin import begin, door_of
from fleet.engines import Here, stand_in
from fleet.population import Lives, PopulationSettings
from fleet.saved import SERVER
from fleet.servers import Servers, Stream, put_back
from fleet.settings import FleetSettings
from fleet.simulate import Fleet
from server.eligibility import Policy
from server.rounds import Rules
from server.task import Peers, TaskSettings

PLAIN = TaskSettings(
    Plan(batch_size=8, length=10, max_rows=64, bits=4),
    rules=Rules(
        report_goal=6, selection_s=600.0, reporting_s=900.0, check_ins_per_s=10.0, rounds=2
    ),
    policy=Policy(min_separation=1),
    aggregation=Aggregation.PLAIN,
)
HELPED = replace(PLAIN, aggregation=Aggregation.HELPER, least_count=4)
AMONG_PEERS = replace(
    PLAIN, aggregation=Aggregation.SECAGG, least_count=4, secagg=Peers(0.0, 0.2, True)
)
KINDS = pytest.mark.parametrize(
    "task", [PLAIN, HELPED, AMONG_PEERS], ids=["plain", "helped", "among peers"]
)
DAY_S = 86_400


def settings(task):
    return FleetSettings(
        seed=4,
        days=1,
        step_s=5,
        population=PopulationSettings(lives=Lives.ALWAYS, devices=24),
        task=task,
    )


def remains(fleet):
    coordinator = fleet.servers.coordinator
    return (
        coordinator.reports(fleet.now).rounds,
        np.concatenate(fleet.state.ended).tobytes(),
        coordinator.checkpoint(),
        coordinator.log_head(),
        fleet.servers.saved(),
    )


def until(fleet, is_so):
    """Let time pass until something is so, and no longer."""
    fleet.run(DAY_S, may_go_on=lambda: not is_so())
    assert is_so()


@KINDS
def test_servers_that_are_killed_at_every_step_of_a_round_go_on_as_if_they_were_not(tmp_path, task):
    alive = begin(settings(task), tmp_path / "alive")
    alive.run(DAY_S)
    killed = begin(settings(task), tmp_path / "killed")

    def kill():
        if killed.state.turns:
            killed.servers.restart()
            killed.servers.restart_helper()
        return True

    killed.run(DAY_S, kill)
    assert remains(killed) == remains(alive)
    alive.close()
    killed.close()


@KINDS
def test_servers_go_on_from_a_copy_as_they_went_on_before(tmp_path, task):
    folder = tmp_path / "fleet"
    fleet = begin(settings(task), folder)
    until(fleet, lambda: len(fleet.state.ended) >= 5 and not fleet.state.turns)
    fleet.servers.copy_to(tmp_path / "copied")
    drawn, state = fleet.servers.saved(), copy.deepcopy(fleet.state)
    fleet.run(DAY_S)
    first = remains(fleet)
    fleet.close()

    put_back(tmp_path / "copied", folder / SERVER)
    servers = Servers(folder / SERVER, 4, fleet.servers.least, drawn)
    door = door_of(settings(task), servers, folder)
    again = Fleet(settings(task), fleet.shared, servers, door, Here(stand_in), state)
    again.run(DAY_S)
    assert remains(again) == first
    again.close()


def test_a_stream_goes_on_where_it_was_left():
    whole = Stream("secret")(100)
    begun = Stream("secret")
    assert begun(7) + Stream("secret", begun.drawn)(93) == whole
