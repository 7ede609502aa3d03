from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.causes import Cause
from device_runtime.conditions import parse, trace_source
from device_runtime.errors import RunError
from device_runtime.wire import forbidden_by
from fleet.population import DAY_S, Role, population, role_counts, roles, trace, traces_from_roles


def test_the_same_seed_gives_the_same_population_and_a_larger_one_begins_with_it():
    assert population(5, seed=1) == population(5, seed=1) == population(9, seed=1)[:5]
    assert population(5, seed=1) != population(5, seed=2)


def test_a_trace_is_repeatable_and_its_signals_are_known_from_the_start():
    for device in population(20, seed=3):
        text = trace(device, days=2, seed=3)
        assert text == trace(device, days=2, seed=3)
        at_start = parse(text)(0.0)
        assert None not in (at_start.charging, at_start.unmetered, at_start.idle)
        assert float(text.splitlines()[-1].split("\t")[0]) <= 2 * DAY_S


def test_the_three_signals_are_separate_processes():
    longer, shorter = (trace(population(1, seed=5)[0], days, seed=5) for days in (3, 2))
    assert longer.startswith(shorter[:50])
    states = {line.split("\t")[1] for line in longer.splitlines()}
    assert {"battery_charged_on", "battery_charged_off", "screen_on", "screen_off"} <= states
    assert states & {"wifi", "4g"}


def test_devices_train_at_night_in_their_own_time_zone():
    eligible = {hour: [] for hour in range(24)}
    for device in population(60, seed=1):
        source = parse(trace(device, days=3, seed=1))
        for time in np.arange(0, 3 * DAY_S, 1800):
            eligible[int(time / 3600 + device.zone_h) % 24].append(
                forbidden_by(source(time)) is None
            )
    share = {hour: float(np.mean(seen)) for hour, seen in eligible.items()}
    assert min(share[hour] for hour in (1, 2, 3, 4)) > 0.6
    assert max(share[hour] for hour in (10, 12, 15, 18)) < 0.1


def test_twenty_devices_are_dealt_three_of_each_obstacle_one_unplugged_and_ten_that_finish():
    assert role_counts(20) == {
        Role.NOT_CHARGING: 3,
        Role.METERED_NETWORK: 3,
        Role.IN_USE: 3,
        Role.UNPLUGGED: 1,
        Role.FINISHES: 10,
    }


@given(st.integers(5, 200), st.integers(1, 5), st.integers(0, 99))
def test_every_round_has_the_same_number_of_each_role_and_someone_who_finishes(size, rounds, seed):
    counts = role_counts(size)
    assert counts[Role.FINISHES] >= 1
    for dealt in roles(size, rounds, seed):
        assert Counter(dealt) == counts


def test_roles_change_from_round_to_round_and_repeat_with_the_seed():
    first, second = roles(20, 2, seed=1)
    assert first != second
    assert roles(20, 2, seed=1) == [first, second]


def test_too_few_devices_are_refused():
    with pytest.raises(ValueError, match="expected at least 5 devices, found 4"):
        role_counts(4)


def test_at_the_start_of_night_k_the_role_of_round_k_holds(tmp_path):
    dealt = roles(10, 4, seed=2)
    sources = [trace_source(path) for path in traces_from_roles(dealt, tmp_path)]
    expected = {
        Role.FINISHES: None,
        Role.NOT_CHARGING: Cause.NOT_CHARGING,
        Role.METERED_NETWORK: Cause.METERED_NETWORK,
        Role.IN_USE: Cause.IN_USE,
        Role.UNPLUGGED: None,
    }
    for night, round_roles in enumerate(dealt):
        for source, role in zip(sources, round_roles, strict=True):
            assert forbidden_by(source(night * DAY_S)) is expected[role]


def test_the_unplugged_device_loses_charging_ninety_seconds_into_the_round(tmp_path):
    dealt = roles(5, 1, seed=0)
    source = trace_source(traces_from_roles(dealt, tmp_path)[dealt[0].index(Role.UNPLUGGED)])
    assert source(89.0).charging is True
    assert source(90.0).charging is False


def test_a_file_of_somebody_s_is_not_taken_for_an_earlier_trace(tmp_path):
    dealt = roles(5, 2, 0)
    (tmp_path / "device-003.tsv").write_text("my\tdata\n")
    with pytest.raises(RunError, match="something else than a trace"):
        traces_from_roles(dealt, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["device-003.tsv"]
    (tmp_path / "device-003.tsv").unlink()
    assert traces_from_roles(dealt, tmp_path) == traces_from_roles(dealt, tmp_path)
