import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.clock import Clock


def test_events_run_in_order_of_time_and_see_their_own_time():
    clock, seen = Clock(), []
    for time in (30.0, 10.0, 20.0):
        clock.at(time, lambda: seen.append(clock.now()))
    clock.run_until(25.0)
    assert seen == [10.0, 20.0]
    assert clock.now() == 25.0
    clock.run_until(30.0)
    assert seen == [10.0, 20.0, 30.0]


def test_events_of_one_instant_run_in_the_order_they_were_planned():
    clock, seen = Clock(), []
    for name in "abc":
        clock.at(5.0, lambda name=name: seen.append(name))
    clock.run_until(5.0)
    assert seen == ["a", "b", "c"]


def test_an_event_may_plan_others_in_the_same_run():
    clock, seen = Clock(), []

    def tick():
        seen.append(clock.now())
        clock.at(clock.now() + 1, tick)

    clock.at(1.0, tick)
    clock.run_until(3.5)
    assert seen == [1.0, 2.0, 3.0]


def test_the_clock_stops_as_soon_as_the_work_is_done():
    clock, seen = Clock(), []
    for time in (1.0, 2.0, 3.0):
        clock.at(time, lambda: seen.append(clock.now()))
    clock.run_until(10.0, done=lambda: len(seen) == 2)
    assert clock.now() == 2.0


@pytest.mark.parametrize("time", [9.0, float("nan"), float("inf")])
def test_nothing_is_planned_for_the_past_or_for_never(time):
    with pytest.raises(ValueError, match="it is 10"):
        Clock(10.0).at(time, lambda: None)


@given(st.lists(st.floats(0, 100)), st.floats(0, 100))
def test_exactly_the_events_up_to_the_end_run_and_time_never_goes_back(times, end):
    clock, seen = Clock(), []
    for time in times:
        clock.at(time, lambda: seen.append(clock.now()))
    clock.run_until(end)
    assert seen == sorted(time for time in times if time <= end)
    assert clock.now() == end
