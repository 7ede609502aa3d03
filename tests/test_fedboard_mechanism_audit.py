"""The audit of the mechanism: a bound that holds, and one that a mechanism without noise breaks."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import accountant, strategy
from device_runtime.errors import RunError
from device_runtime.noise import Mechanism, Noise
from fedboard import mechanism_audit
from fedboard.mechanism_audit import Setting, audit, best_guesses, estimate, lower_bound

SMALL = Setting(2.0, Mechanism.GAUSSIAN, canaries=200, others=5, rounds=5, separation=2)
SMALL = replace(SMALL, dimension=4096)
BLT = Noise(Mechanism.BLT, 1.0, 8.0, 1e-5, 4, 1, decays=(0.5,), scales=(0.5,))


def chance(coins: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Theorem 5.2 of Steinke et al., as it stands there."""
    share = math.exp(epsilon) / (math.exp(epsilon) + 1)
    luck = [
        math.comb(guesses, k) * share**k * (1 - share) ** (guesses - k) for k in range(guesses + 1)
    ]
    worst = max(
        (2 / i * sum(luck[max(0, right - i) : right]) for i in range(1, coins + 1)), default=0.0
    )
    return min(1.0, sum(luck[right:]) + coins * delta * worst)


def test_ten_right_guesses_of_ten_show_an_epsilon_of_one():
    # by luck with a chance of 0.05: each right with 0.05 ** (1 / 10) = 0.741, and ln(0.741 / 0.259)
    assert lower_bound(1000, 10, 10, 0.0, 0.05) == pytest.approx(1.0520, abs=1e-3)


def test_no_guess_and_guesses_that_are_half_right_show_nothing():
    assert lower_bound(1000, 0, 0, 0.0, 0.05) == 0.0
    assert lower_bound(1000, 100, 50, 1e-5, 0.05) == 0.0


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))),
    st.floats(0.0, 4.0),
    st.sampled_from([0.0, 1e-5, 1e-3]),
)
def test_the_chance_of_luck_is_that_of_the_theorem(counts, epsilon, delta):
    guesses, right = counts
    assert mechanism_audit._chance(60, guesses, right, epsilon, delta) == pytest.approx(
        chance(60, guesses, right, epsilon, delta), abs=1e-9
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 60), st.floats(0.1, 3.0), st.floats(0.01, 0.2))
def test_a_bound_is_above_the_truth_no_more_often_than_it_says(guesses, epsilon, share):
    """Coins betrayed by randomised response, of which epsilon is known."""
    truth = 1 / (1 + math.exp(-epsilon))
    luck = [
        math.comb(guesses, k) * truth**k * (1 - truth) ** (guesses - k) for k in range(guesses + 1)
    ]
    too_high = [lower_bound(guesses, guesses, k, 0.0, share) > epsilon for k in range(guesses + 1)]
    assert sum(np.array(luck)[too_high]) <= share


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 150), st.integers(0, 149), st.floats(0.0, 1e-4))
def test_a_delta_never_raises_a_bound_and_one_more_right_guess_never_lowers_it(guesses, k, delta):
    right = min(k, guesses - 1)
    bound = lower_bound(1000, guesses, right, delta, 0.05)
    assert bound <= lower_bound(1000, guesses, right, 0.0, 0.05) + 1e-9
    assert bound <= lower_bound(1000, guesses, right + 1, delta, 0.05) + 1e-9


def test_fewer_coins_are_guessed_where_a_claim_leaves_them_in_doubt():
    assert best_guesses(1000, 0.5, 1e-5) < best_guesses(1000, 6.0, 1e-5) <= 1000


def test_the_correlation_of_a_blt_is_that_of_the_inverse_of_its_matrix():
    column = strategy.inverse(BLT, 4)
    matrix = np.array([[column[i - j] if j <= i else 0.0 for j in range(4)] for i in range(4)])
    assert mechanism_audit.correlation(BLT, 4) == pytest.approx(matrix @ matrix.T, abs=1e-6)


def test_independent_noise_has_no_correlation():
    noise = Noise(Mechanism.GAUSSIAN, 1.0, 8.0, 1e-5, 3, 1)
    assert np.array_equal(mechanism_audit.correlation(noise, 3), np.eye(3))


def test_the_estimate_of_two_normals_a_deviation_apart_is_what_the_accountant_says_of_them():
    rng = np.random.default_rng(0)
    into, out = rng.normal(1.0, 1.0, 200_000), rng.normal(0.0, 1.0, 200_000)
    assert estimate(out, into, 1e-5) == pytest.approx(accountant.epsilon(0.5, 1e-5), rel=0.02)


@pytest.mark.parametrize("kind", list(Mechanism))
def test_the_multiplier_of_an_audit_is_the_one_whose_account_is_the_claim(kind):
    of = replace(SMALL, mechanism=kind)
    ran = accountant.Participation((of.rounds,), of.separation, of.participations)
    noise = mechanism_audit._noise(of, ran)
    assert accountant.account(noise, ran).epsilon == pytest.approx(of.claim, rel=1e-6)


@pytest.mark.parametrize("kind", list(Mechanism))
def test_the_bound_of_a_mechanism_that_adds_its_noise_is_below_the_claim(kind):
    result = audit(replace(SMALL, mechanism=kind), np.random.default_rng(1))
    assert not result.is_refuted
    assert result.bound <= 2.0 < result.most


@pytest.mark.parametrize("kind", list(Mechanism))
def test_the_bound_exceeds_the_claim_with_a_tenth_of_the_noise(kind):
    result = audit(replace(SMALL, mechanism=kind, cut=0.1), np.random.default_rng(1))
    assert result.is_refuted and result.estimate > 2.0


def test_an_audit_of_updates_of_which_half_travels_finds_the_same():
    half = replace(SMALL, compression=2, dimension=8192)
    assert not audit(half, np.random.default_rng(1)).is_refuted
    assert audit(replace(half, cut=0.1), np.random.default_rng(1)).is_refuted


def test_canaries_that_cannot_take_their_part_are_refused():
    with pytest.raises(RunError, match="expected sums for 3 participations 2 apart, found 4"):
        audit(replace(SMALL, rounds=4), np.random.default_rng(1))
