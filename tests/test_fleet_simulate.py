import numpy as np
import pytest

from device_runtime.turn import Status
from fleet import turns
from fleet.begin import begin
from fleet.pocket import Holds
from tests.toy_fleet import SETTINGS


@pytest.fixture
def lived(tmp_path):
    fleet = begin(SETTINGS, tmp_path / "fleet")
    fleet.run(86_400)
    yield fleet
    fleet.servers.close()


def rounds_of(fleet):
    return fleet.servers.coordinator.reports(fleet.now).rounds


def ended(fleet):
    return np.concatenate(fleet.state.ended)


def test_a_fleet_commits_the_rounds_its_task_wants_and_then_is_over(lived):
    assert [each.phase for each in rounds_of(lived)].count("committed") == 3
    assert lived.state.over


def test_what_devices_count_is_what_the_server_counts(lived):
    counted = ended(lived)["status"] == turns.STATUSES.index(Status.COUNTED)
    assert counted.sum() == sum(each.counted for each in rounds_of(lived))


def test_equal_settings_give_equal_rounds_and_turns(lived, tmp_path):
    again = begin(SETTINGS, tmp_path / "again")
    again.run(86_400)
    assert rounds_of(again) == rounds_of(lived)
    assert ended(again).tobytes() == ended(lived).tobytes()
    again.servers.close()


def test_what_was_looked_up_of_conditions_is_known_until_they_are_lost():
    holds = Holds(since=10.0, all_until=20.0, wifi_until=30.0)
    assert [holds.until(now, all_needed=True) for now in (9.0, 10.0, 20.0)] == [None, 20.0, None]
    assert holds.until(25.0, all_needed=False) == 30.0
