"""Cohorts: who trains in which round."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.accountant import Participation
from device_runtime.errors import ConfigError
from model import cohorts


def drawn(
    population: int,
    cohort: int,
    sampling: str = "shuffled",
    min_separation: int = 1,
    seed: int = 0,
    rounds: int = 12,
) -> list[list[int]]:
    sampler, result = cohorts.start(population, cohort, min_separation), []
    for _ in range(rounds):
        chosen, sampler = cohorts.draw(sampler, cohort, sampling, min_separation, seed)
        result.append(chosen.tolist())
    return result


def test_shuffled_cohorts_are_passes_in_which_nobody_trains_twice():
    result = drawn(10, 5)
    for i in range(0, 12, 2):
        assert sorted(result[i] + result[i + 1]) == list(range(10))


def test_a_cohort_that_does_not_divide_the_population_crosses_passes():
    result = drawn(7, 3, rounds=70)
    assert all(len(set(cohort)) == 3 for cohort in result)
    counts = np.bincount(np.concatenate(result))
    assert counts.max() - counts.min() <= 2


@pytest.mark.parametrize("sampling", ["shuffled", "uniform"])
def test_nobody_trains_in_more_rounds_than_a_message_may_be_used_in(sampling):
    sampler, taken = cohorts.start(3, 1, 1, most_uses=2), []
    for _ in range(6):
        chosen, sampler = cohorts.draw(sampler, 1, sampling, 1, 0, most_uses=2)
        taken += chosen.tolist()
    assert sorted(taken) == [0, 0, 1, 1, 2, 2]
    assert sampler.taken.tolist() == [2, 2, 2]
    with pytest.raises(ConfigError, match="round 7: expected 1 clients, found 0 that trained in"):
        cohorts.draw(sampler, 1, sampling, 1, 0, most_uses=2)


@given(
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(0, 9),
    st.sampled_from(["shuffled", "uniform"]),
    st.integers(0, 2**31 - 1),
)
def test_no_client_trains_again_before_the_minimum_separation(
    cohort, separation, spare, sampling, seed
):
    result = drawn(cohort * separation + spare, cohort, sampling, separation, seed)
    last: dict[int, int] = {}
    for number, chosen in enumerate(result):
        assert len(set(chosen)) == cohort
        for client in chosen:
            assert number - last.get(client, -100) >= separation
            last[client] = number


def test_uniform_cohorts_reach_every_client_alike():
    counts = np.bincount(np.concatenate(drawn(10, 5, "uniform", rounds=2000)))
    assert counts.sum() == 10_000
    assert np.abs(counts - 1000).max() < 130  # 4 standard deviations of a binomial


def test_a_sampler_goes_on_from_its_state_and_a_seed_repeats_it():
    sampler = cohorts.start(20, 4)
    for _ in range(3):
        _, sampler = cohorts.draw(sampler, 4, "shuffled", 1, 5)
    again = cohorts.Sampler(sampler.round, sampler.waiting.copy(), sampler.last.copy())
    assert cohorts.draw(again, 4, "shuffled", 1, 5)[0].tolist() == drawn(20, 4, seed=5)[3]
    assert drawn(20, 4, seed=5) != drawn(20, 4, seed=6)


def test_drawing_leaves_the_state_it_was_given_alone():
    sampler = cohorts.start(6, 2)
    cohorts.draw(sampler, 2, "shuffled", 1, 0)
    assert sampler.round == 0
    assert (sampler.last == cohorts.NEVER).all()


def test_a_population_that_cannot_keep_the_separation_is_refused():
    with pytest.raises(ConfigError, match="need 12; the corpus has 11"):
        cohorts.start(11, 4, 3)


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 5),
    st.sampled_from(["shuffled", "uniform"]),
    st.integers(0, 2**31 - 1),
)
def test_an_account_is_told_the_smallest_gap_and_the_most_rounds_there_were(
    cohort, separation, spare, sampling, seed
):
    population = cohort * separation + spare
    sampler, rounds = cohorts.start(population, cohort, separation, accounted=True), []
    assert sampler.happened == Participation()
    for number in range(1, 10):
        chosen, sampler = cohorts.draw(sampler, cohort, sampling, separation, seed)
        rounds += [(int(client), number) for client in chosen]
        own = [[at for who, at in rounds if who == client] for client in range(population)]
        gaps = [b - a for each in own for a, b in itertools.pairwise(each)]
        assert sampler.happened == Participation(
            (number,), min(gaps, default=None), max(map(len, own))
        )


def test_nobody_counts_participations_that_nothing_depends_on():
    sampler = cohorts.start(6, 2)
    _, after = cohorts.draw(sampler, 2, "shuffled", 1, 0)
    assert after.taken is None
    assert after.gap is None


@pytest.mark.parametrize("sampling", ["shuffled", "uniform"])
def test_only_clients_that_are_there_are_drawn_and_a_round_waits_for_enough_of_them(sampling):
    asked = []

    def present(moment: int) -> np.ndarray:
        """One more client at each moment, those of even number first."""
        asked.append(moment)
        there = np.zeros(8, bool)
        there[[0, 2, 4, 6, 1, 3, 5, 7][: 2 + moment]] = True
        return there

    sampler = cohorts.start(8, 3, timed=True)
    chosen, sampler = cohorts.draw(sampler, 3, sampling, 1, 0, present=present)
    assert (sorted(chosen.tolist()), asked, sampler.moment) == ([0, 2, 4], [0, 1], 1)
    chosen, sampler = cohorts.draw(sampler, 3, sampling, 2, 0, present=present)
    assert sorted(chosen.tolist()) == [1, 3, 6]  # the others have just trained
    assert (asked, sampler.moment) == ([0, 1, 2, 3, 4], 4)


def test_a_round_that_waits_for_ever_says_how_many_were_there_at_most():
    sampler = cohorts.start(8, 3, timed=True)
    there = np.arange(8) < 2
    with pytest.raises(ConfigError, match="round 1: expected 3 clients that are there at once, fo"):
        cohorts.draw(sampler, 3, "uniform", 1, 0, present=lambda moment: there)
