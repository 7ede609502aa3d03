"""How many devices are ready by the hour, and how many of those at work drop out."""

import math

import numpy as np
import pytest

from fleet import eligible, population
from fleet.availability import CHARGING, NEEDED, Always
from fleet.days import Days
from fleet.population import PopulationSettings

HOUR_S = 3600.0
PEOPLE = population.make(PopulationSettings(devices=3000), 1, seed=9)


class Mornings:
    """Device k is ready from 6 to 7 and charges from 7 to 8, of every day."""

    def signals(self, devices, at):
        hour = (at // HOUR_S) % 24
        return np.select([hour == 6, hour == 7], [NEEDED, CHARGING], 0).astype(np.uint8)

    def lost_at(self, devices, since, needed=NEEDED):
        return since // HOUR_S * HOUR_S + HOUR_S


def test_shares_are_those_of_each_hour():
    shares = eligible.by_hour(Mornings(), np.arange(4))
    assert np.flatnonzero(shares["charging"]).tolist() == [6, 7]
    assert shares["unmetered"].tolist() == shares["idle"].tolist() == shares["all"].tolist()
    assert np.flatnonzero(shares["all"]).tolist() == [6]


def test_whoever_is_ready_for_less_time_than_a_turn_takes_drops_out():
    # looked at a quarter past and a quarter to the hour
    seconds = np.array([14.0, 16.0, 44.0, 46.0]) * 60
    dropped = eligible.drop_out(Mornings(), np.arange(4), seconds, looks=2)
    assert dropped[6] == pytest.approx(4 / 8)
    assert np.isnan(np.delete(dropped, 6)).all()


def test_each_of_three_transfers_may_break_off_and_most_networks_are_not_back_in_time():
    dropped = eligible.drop_out(Always(), np.arange(4), np.ones(4), breaks=0.2)
    assert dropped == pytest.approx(np.full(24, 1 - (1 - 0.2 * 0.85) ** 3))


def test_where_the_worst_hour_has_nobody_there_is_no_swing():
    assert eligible.swing(np.array([0.5, 0.1])) == 5
    assert math.isinf(eligible.swing(np.array([0.5, 0.0])))


def test_a_turn_is_longer_on_a_slower_phone():
    seconds = eligible.turn_s(PEOPLE)
    low, middle, high = (np.median(seconds[PEOPLE.kind == number]) for number in range(3))
    assert low > middle > high > 5
    assert eligible.turn_s(PEOPLE, batches=64) == pytest.approx(
        seconds + 32 * PEOPLE.batch_s, rel=1e-4
    )


def test_six_to_ten_per_cent_of_those_that_begin_a_turn_are_estimated_to_drop_out():
    seconds = eligible.turn_s(PEOPLE)
    dropped = eligible.drop_out(
        Days(PEOPLE), np.arange(len(PEOPLE)), seconds, PEOPLE.breaks, looks=1
    )
    assert 0.06 <= dropped.mean() <= 0.1
    assert dropped[18] > dropped[9]  # by day more than at night
