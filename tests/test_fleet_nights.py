from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.causes import Cause
from device_runtime.conditions import trace_source
from device_runtime.errors import RunError
from device_runtime.wire import DAY_S, forbidden_by
from fleet.nights import Role, role_counts, roles, traces_from_roles


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
