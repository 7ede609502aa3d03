"""The accountant: what has happened -> rho and epsilon, held to others' programs and to hands."""

import json
import math
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import accounts
from device_runtime import accountant, strategy
from device_runtime.accountant import Account, Participation, account, next_sum
from device_runtime.noise import Mechanism, Noise

GOLDEN = json.loads((Path(__file__).parent / "golden" / "accounts.json").read_text())
RHOS = st.floats(1e-12, 1e4)
DELTAS = st.floats(-300, math.log10(0.5)).map(lambda power: min(0.5, 10**power))


def noise(mechanism: Mechanism = Mechanism.GAUSSIAN, multiplier: float = 2.0, **other) -> Noise:
    return Noise(mechanism, multiplier, 8.0, 1e-10, 2000, 2000, **other)


def test_four_parts_under_twice_the_noise_spend_a_half():
    # sensitivity 2, noise multiplier 2: (2 / 2) ** 2 / 2
    spent = account(noise(), Participation((12,), 3, 4))
    assert spent.rho == 0.5
    assert spent.epsilon == pytest.approx(6.55, abs=0.01)


def test_nothing_is_spent_before_the_first_sum_and_by_nobody():
    assert account(noise(), Participation()) == Account(0.0, 0.0, 1e-10)
    assert account(noise(), Participation((5,), None, 0)) == Account(0.0, 0.0, 1e-10)


def test_without_noise_one_sum_spends_everything():
    spent = account(noise(multiplier=0.0), Participation((1,), None, 1))
    assert (spent.rho, spent.epsilon) == (math.inf, math.inf)


@pytest.mark.parametrize("multiplier", [5e-324, 1e-200, 1e-150])
def test_with_next_to_no_noise_one_sum_spends_everything(multiplier):
    spent = account(noise(multiplier=multiplier), Participation((1,), None, 1))
    assert spent.epsilon == math.inf and spent.rho > 1e290


def test_the_budgets_of_the_field_are_these():
    # delta 1e-10: epsilon 1, 2, 4, 8
    found = [accountant.rho(epsilon, 1e-10) for epsilon in (1.0, 2.0, 4.0, 8.0)]
    assert found == pytest.approx([0.0145, 0.0546, 0.2016, 0.7188], abs=1.5e-4)
    rhos = (0.2, 0.25, 0.5, 0.81, 1.0, 2.0)
    exact = [round(accountant.epsilon(rho, 1e-10), 2) for rho in rhos]
    assert exact == [3.98, 4.49, 6.55, 8.55, 9.62, 14.27]


def test_jax_privacy_and_dp_accounting_say_the_same():
    assert GOLDEN["made_by"] == ["jax-privacy==2.0.0", "dp-accounting==0.6.0"]
    differs = accounts.differences(GOLDEN)
    assert differs["sensitivity"] < 1e-9
    assert differs["row_norm"] < 1e-9 and differs["prefix_rmse"] < 1e-9
    assert differs["epsilon"] < 1e-6
    assert differs["epsilon_rdp"] < 1e-3  # theirs is the best of some orders


@pytest.mark.parametrize("rho", [1e-6, 1e-3, 0.0145, 0.81, 30.0, 1e4])
@pytest.mark.parametrize("delta", [1e-12, 1e-10, 1e-6, 1e-3])
def test_the_installed_dp_accounting_finds_the_same_delta_at_our_epsilon(rho, delta):
    # it comes with TFF; without it the golden file has what a newer one says
    privacy_loss_mechanism = pytest.importorskip("dp_accounting.pld.privacy_loss_mechanism")
    epsilon = accountant.epsilon(rho, delta)
    loss = privacy_loss_mechanism.GaussianPrivacyLoss(1 / math.sqrt(2 * rho))
    low, high = (loss.get_delta_for_epsilon(epsilon * (1 + sign * 1e-6)) for sign in (-1, 1))
    if epsilon:
        assert high <= delta <= low
    else:
        assert loss.get_delta_for_epsilon(0.0) <= delta


@given(RHOS, DELTAS)
@settings(deadline=None)
def test_an_epsilon_is_a_number_and_grows_with_rho_and_certainty(rho, delta):
    epsilon = accountant.epsilon(rho, delta)
    assert 0 <= epsilon < math.inf
    slack = 1e-7 * epsilon + 1e-15
    assert accountant.epsilon(rho * 1.01, delta) >= epsilon - slack
    assert accountant.epsilon(rho, delta / 2 if delta > 2e-300 else delta) >= epsilon - slack
    assert accountant.epsilon_rdp(rho, delta) >= epsilon - slack


@given(st.floats(1e-3, 1e3), DELTAS)
@settings(deadline=None)
def test_the_rho_of_an_epsilon_spends_it_and_no_more(epsilon, delta):
    rho = accountant.rho(epsilon, delta)
    assert accountant.epsilon(rho, delta) <= epsilon * (1 + 1e-7)
    assert accountant.epsilon(rho * 1.001, delta) > epsilon * (1 - 1e-7)


@given(
    st.sampled_from(list(Mechanism)),
    st.lists(st.tuples(st.integers(1, 9) | st.none(), st.booleans()), min_size=1, max_size=12),
)
@settings(deadline=None)
def test_what_is_spent_never_falls(mechanism, steps):
    of = noise(mechanism)
    happened, spent = Participation(), 0.0
    for gap, begins_anew in steps:
        happened = next_sum(happened, gap, begins_anew)
        now = account(of, happened).rho
        assert now >= spent * (1 - 1e-12)
        spent = now


def test_the_next_sum_counts_one_more_of_who_is_in_most_and_the_shortest_gap():
    happened = next_sum(Participation(), None)
    assert happened == Participation((1,), None, 1)
    happened = next_sum(next_sum(happened, 5), 7)
    assert happened == Participation((3,), 5, 3)
    assert next_sum(happened, 3, begins_anew=True) == Participation((3, 1), 3, 4)


@pytest.mark.parametrize("mechanism", Mechanism)
def test_one_round_more_is_counted_in_a_moment(mechanism):
    of = noise(mechanism)
    if mechanism is Mechanism.BLT:
        of = noise(mechanism, decays=(1.0, 0.99, 0.8), scales=(0.01, 0.1, 0.3))
    account(of, Participation((1999,), 30, 66))
    started = time.process_time()
    account(of, Participation((2000,), 30, 66))
    assert time.process_time() - started < 0.05  # where nothing else runs a tenth of it


def test_an_account_of_a_task_that_began_anew_is_of_both_parts():
    spent = account(noise(Mechanism.TREE), Participation((2, 2), 2, 2))
    assert spent.rho == strategy.sensitivity(noise(Mechanism.TREE), (2, 2), 2, 2) ** 2 / 8 == 0.5
