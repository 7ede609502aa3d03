"""In a fleet that lives people's days as many devices drop out of rounds as phones were seen to."""

import numpy as np

from device_runtime.terms import Aggregation
from device_runtime.wire import Plan
from fleet import assignments
from fleet.begin import begin
from fleet.population import Lives, PopulationSettings
from fleet.settings import FleetSettings
from server.eligibility import Policy
from server.rounds import Rules
from server.task import TaskSettings

# turns as long as those of the preset gboard-small
TASK = TaskSettings(
    Plan(batch_size=8, length=10, max_rows=256),
    rules=Rules(report_goal=25, selection_s=300.0, check_ins_per_s=100.0, retry_s=200.0),
    policy=Policy(min_separation=1),
    seed=3,
    aggregation=Aggregation.PLAIN,
)
PEOPLE = PopulationSettings(devices=2500, lives=Lives.DAYS, first_messages=400)
SETTINGS = FleetSettings(seed=4, days=1, step_s=10, population=PEOPLE, task=TASK)


def test_six_to_ten_per_cent_of_the_devices_that_begin_a_turn_drop_out(tmp_path):
    fleet = begin(SETTINGS, tmp_path / "fleet")
    fleet.run(8 * 3600)
    fleet.servers.close()
    given = assignments.assignments(np.concatenate(fleet.state.ended))
    assert len(given) > 1000
    assert 0.06 <= (given.fate == assignments.DROPPED_OUT).mean() <= 0.1
