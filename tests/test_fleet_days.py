"""A population's days: what is said of a moment and what is said of the next one agree."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet import days, eligible, population
from fleet.availability import CHARGING, IDLE, NEEDED, UNMETERED
from fleet.days import Days
from fleet.population import PopulationSettings, Where

DAY_S = 86_400
PEOPLE = population.make(PopulationSettings(devices=3000), 1, seed=5)
DAYS = Days(PEOPLE)
ALL = np.arange(len(PEOPLE))

moments = st.floats(0, 40 * DAY_S, allow_nan=False)
people = st.integers(0, len(PEOPLE) - 1)
bits = st.sampled_from([CHARGING, UNMETERED, IDLE, CHARGING | IDLE, UNMETERED | IDLE, NEEDED])


def holds(device, at, needed, lives=DAYS):
    at = np.asarray(at, float)
    told = lives.signals(np.full(at.shape, device), at)
    return (told & needed) == needed


def between(start, end):
    """Whole seconds and halves of them, from `start` to before `end`, but for some of very many,
    and both ends to a microsecond.
    """
    end = min(end, start + 3 * DAY_S)
    wholes = np.arange(math.ceil(start), math.ceil(end), max(1, int((end - start) // 20_000)))
    near = np.concatenate([[start], wholes, wholes + 0.5, [end - 1e-6]])
    return near[(near >= start) & (near < end)]


@given(people, moments, bits)
@settings(deadline=None)
def test_a_device_is_ready_at_the_first_moment_at_which_its_signals_hold(device, after, needed):
    ready = float(DAYS.ready_at(np.array([device]), np.array([after]), needed)[0])
    assert ready >= after
    assert not holds(device, between(after, ready), needed).any()
    assert math.isinf(ready) or holds(device, [ready], needed).all()


@given(people, moments, bits)
@settings(deadline=None)
def test_what_is_ready_is_lost_at_the_first_moment_at_which_its_signals_do_not_hold(
    device, after, needed
):
    ready = DAYS.ready_at(np.array([device]), np.array([after]), needed)
    if math.isinf(ready[0]):
        return
    lost = float(DAYS.lost_at(np.array([device]), ready, needed)[0])
    assert lost > ready[0]
    assert holds(device, between(ready[0], lost), needed).all()
    assert math.isinf(lost) or not holds(device, [lost], needed).any()


@given(st.lists(st.tuples(people, moments), min_size=2, max_size=40), bits)
@settings(deadline=None)
def test_an_answer_does_not_depend_on_who_else_is_asked_about(asked, needed):
    devices, at = np.array([each[0] for each in asked]), np.array([each[1] for each in asked])
    for question in (DAYS.ready_at, DAYS.lost_at):
        alone = [question(devices[[i]], at[[i]], needed)[0] for i in range(len(asked))]
        assert question(devices, at, needed).tolist() == alone


def test_a_group_larger_than_what_is_worked_through_at_once_gets_the_same_answers(monkeypatch):
    at = np.linspace(0, 5 * DAY_S, len(ALL))
    whole = DAYS.signals(ALL, at), DAYS.ready_at(ALL, at), DAYS.lost_at(ALL, at)
    monkeypatch.setattr(days, "AT_ONCE", 7)
    parts = DAYS.signals(ALL, at), DAYS.ready_at(ALL, at), DAYS.lost_at(ALL, at)
    assert all(np.array_equal(*each) for each in zip(whole, parts, strict=True))


def test_changes_come_at_whole_seconds():
    ready = DAYS.ready_at(ALL, np.full(len(ALL), 50_000.25))
    waited = ready[(ready > 50_000.25) & np.isfinite(ready)]
    assert len(waited) and (waited == np.floor(waited)).all()


def test_four_times_as_many_devices_are_ready_at_the_best_hour_of_a_weekday_as_at_the_worst():
    assert eligible.swing(eligible.by_hour(DAYS, ALL)["all"]) == pytest.approx(4.0, rel=0.1)


def test_the_devices_of_the_world_are_ready_at_all_hours_alike_more_than_those_of_one_country():
    world = population.make(PopulationSettings(devices=3000, where=Where.WORLD), 1, seed=5)
    shares = eligible.by_hour(Days(world), ALL, looks=1)["all"]
    assert eligible.swing(shares) < 2.5


def test_more_devices_charge_asleep_than_awake_and_more_lie_idle():
    # in the night and in the afternoon of the east and the centre
    at_3, at_15 = (np.full(len(ALL), DAY_S + hour * 3600.0) for hour in (9, 21))
    for bit in (CHARGING, UNMETERED, IDLE):
        asleep, awake = (((DAYS.signals(ALL, at) & bit) > 0).mean() for at in (at_3, at_15))
        assert asleep > awake


def test_more_devices_are_ready_in_the_middle_of_a_weekend_day_than_of_a_weekday():
    tuesday, saturday = (np.full(len(ALL), day * DAY_S + 18 * 3600.0) for day in (1, 5))
    at_home = [(DAYS.signals(ALL, at) & UNMETERED > 0).mean() for at in (tuesday, saturday)]
    assert at_home[1] > at_home[0] + 0.05


def test_whoever_has_wifi_neither_at_home_nor_at_work_is_never_ready():
    never = np.isinf(DAYS.ready_at(ALL, np.zeros(len(ALL))))
    assert 0 < never.mean() < 0.1
    assert not PEOPLE.wifi[never].any()


def test_of_nobody_nothing_is_said():
    nobody, never = np.array([], int), np.array([])
    assert not len(DAYS.signals(nobody, never))
    assert not len(DAYS.ready_at(nobody, never)) and not len(DAYS.lost_at(nobody, never))


def test_what_asks_for_no_signal_is_ready_at_once_and_never_lost():
    devices, at = np.arange(5), np.arange(5) * 1000.5
    assert DAYS.ready_at(devices, at, needed=0).tolist() == at.tolist()
    assert np.isinf(DAYS.lost_at(devices, at, needed=0)).all()
