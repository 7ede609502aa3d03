"""The budget of a task with noise: what its sums have spent, and that none starts beyond it."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import accountant, strategy
from device_runtime.accountant import Participation
from device_runtime.causes import Cause
from device_runtime.errors import ConfigError, RunError
from device_runtime.helper_wire import Noised
from device_runtime.noise import Mechanism, Noise
from device_runtime.shown import rounded_up
from device_runtime.terms import Aggregation
from device_runtime.weights import Checkpoint
from device_runtime.wire import Assignment, Kind
from fedboard.task_commands import noise_of
from server import budget, dashboard, logs, operators, overview
from server.budget import Spending
from server.contract import Rollback
from server.coordinator import open_folder
from server.eligibility import Policy
from server.metrics import Metrics
from server.requests import Refused
from server.rounds import Rules
from server.task import State, TaskSettings
from tests.toy_server import (
    PLAN,
    READY,
    TOKENIZER,
    WEIGHTS,
    OneByOne,
    by_arrival,
    created,
    encoded,
    enrolled,
)

# independent noise: rho of k sums of one device is k / (2 * 4 ** 2), whatever the separation
NOISE = Noise(Mechanism.GAUSSIAN, 4.0, 50.0, 1e-6, rounds=100, participations=3)
PAIR = Rules(report_goal=2, over_selection=1.0, min_reports=2)


def noised(folder, noise=NOISE, rules=PAIR, policy=None, **others) -> OneByOne:
    """A server with a toy task to whose sums it adds noise, at second 0."""
    store, blobs = open_folder(folder)
    coordinator = OneByOne(
        store, blobs, np.random.default_rng(0), random=np.random.default_rng(5).bytes
    )
    created(
        coordinator,
        TaskSettings(
            PLAN,
            rules=by_arrival(rules),
            policy=policy or Policy(min_separation=1),
            aggregation=Aggregation.PLAIN,
            noise=noise,
            seed=7,
            **others,
        ),
        0.0,
        Checkpoint(WEIGHTS, 0, "", TOKENIZER),
    )
    return coordinator


def round_of(coordinator, devices, now, *numbers) -> None:
    """A round in which these of the devices are counted."""
    for number in numbers:
        work = coordinator.check_in(devices[number], READY, now)
        assert isinstance(work, Assignment), work
        body = encoded(work, number)
        assert coordinator.update(devices[number], work.assignment, body, now).counted


def abandoned(coordinator, devices, now, number) -> None:
    """A round that ends without a sum, though it had counted one."""
    round_of(coordinator, devices, now, number)
    coordinator.tick(now + 1e6)
    assert coordinator.reports(now).rounds[-2].phase == "abandoned"


def spending(coordinator, task="default") -> Spending:
    with coordinator.store.reading() as rows:
        return rows.spending.of(task)


def members(coordinator, task="default") -> dict[int, list[str]]:
    with coordinator.store.reading() as rows:
        return rows.spending.members(task)


def brute(in_sums: list[set[str]]) -> Participation:
    """What a ledger of all sums says, looked through from end to end."""
    numbers: dict[str, list[int]] = {}
    for number, devices in enumerate(in_sums, 1):
        for device in devices:
            numbers.setdefault(device, []).append(number)
    gaps = [b - a for each in numbers.values() for a, b in itertools.pairwise(each)]
    most = max(map(len, numbers.values()), default=0)
    return Participation((len(in_sums),) if in_sums else (), min(gaps, default=None), most)


# the ledger


def test_a_sum_is_written_down_with_who_was_in_it_and_what_is_spent(tmp_path):
    coordinator = noised(tmp_path)
    devices = enrolled(coordinator, 3)
    round_of(coordinator, devices, 1.0, 0, 1)
    round_of(coordinator, devices, 2.0, 1, 2)
    assert members(coordinator) == {1: sorted(devices[:2]), 2: sorted(devices[1:])}
    assert spending(coordinator).happened == Participation((2,), 1, 2)
    first, second, _ = coordinator.reports(3.0).rounds
    assert (first.rho, second.rho) == (pytest.approx(1 / 32), pytest.approx(2 / 32))
    assert second.epsilon == pytest.approx(accountant.epsilon(2 / 32, 1e-6))
    coordinator.close()


def test_a_round_without_a_sum_spends_nothing_and_is_no_step_between_two(tmp_path):
    coordinator = noised(tmp_path)
    devices = enrolled(coordinator, 3)
    round_of(coordinator, devices, 1.0, 0, 1)
    abandoned(coordinator, devices, 2.0, 2)
    assert spending(coordinator).happened == Participation((1,), None, 1)
    later = 2.0 + 2e6
    round_of(coordinator, devices, later, 0, 2)
    assert spending(coordinator).happened == Participation((2,), 1, 2)
    assert list(members(coordinator)) == [1, 3]
    assert coordinator.reports(later).rounds[1].epsilon is None
    coordinator.close()


def test_a_task_without_noise_has_no_ledger_of_sums(tmp_path):
    coordinator = noised(tmp_path, noise=None)
    devices = enrolled(coordinator, 2)
    round_of(coordinator, devices, 1.0, 0, 1)
    assert members(coordinator) == {}
    assert coordinator.reports(1.0).rounds[0].rho is None
    assert "no privacy guarantee" in operators.report(coordinator, "default", 1.0).privacy
    coordinator.close()


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 4), min_size=2, max_size=2), max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_the_ledger_says_what_looking_through_all_sums_would(tmp_path_factory, sums, lost):
    coordinator = noised(
        tmp_path_factory.mktemp("ledger"),
        replace(NOISE, participations=100, epsilon=1e5),
    )
    devices, now = enrolled(coordinator, 6), 1.0
    for chosen, is_lost in zip(sums, lost, strict=False):
        if is_lost:
            abandoned(coordinator, devices, now, 5)
            now += 2e6
        round_of(coordinator, devices, now, *sorted(chosen))
        now += 1.0
    expected = brute([{devices[number] for number in chosen} for chosen in sums])
    assert spending(coordinator).happened == expected
    coordinator.close()


# who may be in a sum


def test_a_device_that_was_in_as_many_sums_as_the_noise_allows_gets_no_more_work(tmp_path):
    coordinator = noised(tmp_path, replace(NOISE, participations=2))
    devices = enrolled(coordinator, 3)
    round_of(coordinator, devices, 1.0, 0, 1)
    round_of(coordinator, devices, 2.0, 0, 2)
    assert coordinator.check_in(devices[0], READY, 3.0).cause is Cause.PARTICIPATED_ENOUGH
    round_of(coordinator, devices, 3.0, 1, 2)
    assert spending(coordinator).happened.participations == 2
    coordinator.close()


def test_rounds_without_a_sum_bring_no_two_sums_of_a_device_nearer(tmp_path):
    coordinator = noised(tmp_path, policy=Policy(min_separation=2))
    devices = enrolled(coordinator, 5)
    round_of(coordinator, devices, 1.0, 0, 1)
    abandoned(coordinator, devices, 2.0, 2)
    later = 2e6 + 2.0  # round 3: two rounds on, and the very next sum
    assert coordinator.check_in(devices[0], READY, later).cause is Cause.REPORTED_RECENTLY
    round_of(coordinator, devices, later, 3, 4)
    round_of(coordinator, devices, later + 1, 0, 1)
    assert spending(coordinator).happened == Participation((3,), 2, 2)
    coordinator.close()


# no sum beyond the budget


def test_a_round_that_could_pass_the_budget_does_not_start(tmp_path):
    two = accountant.epsilon(2 / 32, 1e-6)
    coordinator = noised(tmp_path, replace(NOISE, epsilon=two * 1.001))
    devices = enrolled(coordinator, 4)
    for now in (1.0, 2.0):
        round_of(coordinator, devices, now, 0, 1)
    assert coordinator.finished()
    said = spending(coordinator).over
    assert said.startswith("one more sum could pass the budget of epsilon")
    report = operators.report(coordinator, "default", 3.0)
    assert (report.state, report.over) == (State.FINISHED, said)
    assert coordinator.check_in(devices[2], READY, 3.0).cause is Cause.NO_ROUND
    with pytest.raises(Refused):
        coordinator.resume("default")
    with pytest.raises(Refused):
        operators.roll_back(coordinator, "default", Rollback("0"), 3.0)
    assert [each.phase for each in coordinator.reports(3.0).rounds] == ["committed"] * 2
    coordinator.close()


def test_no_more_sums_are_made_than_the_noise_is_for(tmp_path):
    coordinator = noised(tmp_path, replace(NOISE, rounds=1))
    devices = enrolled(coordinator, 2)
    round_of(coordinator, devices, 1.0, 0, 1)
    assert coordinator.finished()
    assert spending(coordinator).over == "all 1 sums that its noise is for have been made"
    coordinator.close()


def test_going_back_to_an_earlier_checkpoint_gives_nothing_back(tmp_path):
    coordinator = noised(tmp_path, replace(NOISE, rounds=2))
    devices = enrolled(coordinator, 2)
    round_of(coordinator, devices, 1.0, 0, 1)
    coordinator.roll_back("default", 0, 2.0)
    assert spending(coordinator).happened.sums == 1
    coordinator.pause("default")
    coordinator.resume("default")
    round_of(coordinator, devices, 3.0, 0, 1)
    assert spending(coordinator).happened == Participation((2,), 1, 2)
    assert coordinator.finished()
    coordinator.close()


def test_a_budget_with_no_room_for_one_round_makes_no_task(tmp_path):
    for noise in (replace(NOISE, epsilon=0.1), replace(NOISE, multiplier=0.0)):
        with pytest.raises(ConfigError, match=r"noise\.epsilon"):
            noised(tmp_path / f"{noise.multiplier:g}", noise)


def test_what_is_left_is_told_at_worst():
    two = accountant.epsilon(2 / 32, 1e-6) * 1.001
    noise = replace(NOISE, epsilon=two)
    assert budget.left(noise, Spending(), separation=5) == 10  # a device is in sums 1 and 6
    assert budget.left(noise, Spending(Participation((4,), None, 1)), separation=5) == 6
    assert budget.left(replace(noise, rounds=7), Spending(), separation=5) == 7


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 11), min_size=1), st.integers(1, 5), st.integers(1, 4))
def test_where_the_noise_turns_the_account_is_that_of_blocks_and_never_more_than_foreseen(
    rounds, turn, separation
):
    """A device in every `separation`th sum, of the rounds that had one: C is block by block."""
    noise = replace(NOISE, mechanism=Mechanism.BLT, decays=(0.9,), scales=(0.4,), epsilon=1e5)
    noise = replace(noise, participations=12)
    happened, last, numbers = Participation(), -1, sorted(rounds)
    for number, round in enumerate(numbers, 1):
        begins = last >= 0 and round // turn != last // turn
        foreseen = budget.worst(noise, happened, separation, begins, turn=turn)
        gap = separation if number > separation else None
        happened = budget.recorded(happened, begins, -(-number // separation), gap)
        assert foreseen.blocks == happened.blocks and max(foreseen.blocks) <= turn
        spent = accountant.account(noise, happened)
        assert spent.rho <= accountant.account(noise, foreseen).rho + 1e-12
        last = round
    column = strategy.coefficients(noise, len(numbers))
    c = np.zeros((len(numbers), len(numbers)))
    for j, first in enumerate(numbers):
        for i in range(j, len(numbers)):
            if numbers[i] // turn == first // turn:
                c[i, j] = column[i - j]
    shown = max(
        float(np.sum(c[:, start::separation].sum(axis=1) ** 2)) for start in range(separation)
    )
    least, spent = shown / noise.multiplier**2 / 2, accountant.account(noise, happened).rho
    assert spent >= least - 1e-12  # and exact where no basis has two sums of a device
    if separation == 1:
        assert spent == pytest.approx(least)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 4))
def test_what_happens_is_never_more_than_the_worst_that_was_foreseen(data, separation, most):
    noise = replace(NOISE, mechanism=Mechanism.BLT, decays=(0.9,), scales=(0.4,), epsilon=1e5)
    noise = replace(noise, participations=most)
    sums: list[set[int]] = []
    happened = Participation()
    for number in range(1, data.draw(st.integers(1, 9)) + 1):
        able = [
            device
            for device in range(5)
            if sum(device in each for each in sums) < most
            and not any(device in each for each in sums[max(0, number - separation) :])
        ]
        chosen = set(data.draw(st.lists(st.sampled_from(able)))) if able else set()
        foreseen = accountant.account(noise, budget.worst(noise, happened, separation))
        sums.append(chosen)
        happened = replace(brute([set(map(str, each)) for each in sums]), blocks=(number,))
        assert accountant.account(noise, happened).epsilon <= foreseen.epsilon + 1e-9


# what everybody is told


def test_the_page_the_metrics_and_the_report_say_what_is_spent(tmp_path):
    coordinator = noised(tmp_path)
    devices = enrolled(coordinator, 3)
    round_of(coordinator, devices, 1.0, 0, 1)
    round_of(coordinator, devices, 2.0, 1, 2)
    spent = accountant.epsilon(2 / 32, 1e-6)
    report = operators.report(coordinator, "default", 3.0)
    assert (report.epsilon, report.delta, report.budget) == (pytest.approx(spent), 1e-6, 50.0)
    assert report.rho == pytest.approx(2 / 32)
    assert (report.sums, report.beginnings, report.over) == (2, 1, "")
    said = f"epsilon {rounded_up(spent)} of 50 at delta 1e-06 (rho 0.0625) is spent after 2 sums"
    assert report.privacy == (
        "the server, which could read each update, added gaussian noise of multiplier 4 to each "
        f"sum; {said}; the device in most of them was in 2, and from one of a device to its next "
        "the least was 1 (a difference of numbers of sums: 1 of neighbours)"
    )
    page = dashboard.page(overview.read(coordinator, 3.0, 0.0, {})).html
    assert said in page
    assert "epsilon spent" in page
    assert f"{report.left} more sums within the budget" in page
    assert "no noise was added" not in page
    text = Metrics(coordinator, lambda: 3.0).text().decode()
    assert f'fedboard_privacy_epsilon{{task="default"}} {report.epsilon}' in text
    assert f'fedboard_privacy_rho{{task="default"}} {report.rho}' in text
    assert 'fedboard_privacy_sums{task="default"} 2.0' in text
    assert 'fedboard_privacy_budget_epsilon{task="default"} 50.0' in text
    coordinator.close()


def test_a_closed_round_is_logged_with_what_was_spent(tmp_path, caplog):
    coordinator = noised(tmp_path, replace(NOISE, rounds=1))
    with caplog.at_level("INFO", "fedboard.server"):
        round_of(coordinator, enrolled(coordinator, 2), 1.0, 0, 1)
    (line,) = [each for each in caplog.records if each.message == "round closed"]
    written = json.loads(logs.Lines().format(line))
    assert (written["rho"], written["sums"]) == (1 / 32, 1)
    assert rounded_up(written["epsilon"]) == "1.07"
    assert written["over"] == "all 1 sums that its noise is for have been made"
    coordinator.close()


def test_the_numbers_of_a_noise_are_given_together_or_change_those_of_a_file():
    numbers = {"multiplier": 8.0, "epsilon": 6.0, "rounds": 20, "participations": 2}
    assert noise_of(None, {"mechanism": None, "delta": None}) is None
    given_ = noise_of(None, numbers)
    assert given_ == Noise(Mechanism.BLT, 8.0, 6.0, 1e-10, rounds=20, participations=2)
    with pytest.raises(RunError, match="--noise-rounds"):
        noise_of(None, {"multiplier": 8.0, "epsilon": 6.0})
    chosen = replace(given_, decays=(0.9,), scales=(0.4,))
    assert noise_of(chosen, {"epsilon": 4.0}) == replace(chosen, epsilon=4.0)
    assert noise_of(chosen, {"rounds": 30}) == replace(given_, rounds=30)
    with pytest.raises(ConfigError, match=r"noise\.mechanism"):
        noise_of(chosen, {"mechanism": "laplace"})


def test_a_task_that_scores_adds_no_noise():
    with pytest.raises(ConfigError, match=r"task\.noise"):
        TaskSettings(kind=Kind.EVALUATION, evaluates="words", noise=NOISE)


# beside a helper's own account


def test_the_larger_of_two_accounts_is_shown_where_they_do_not_agree():
    happened = Participation((2,), 1, 2)
    own = accountant.account(NOISE, happened)
    agreed = Noised((1,), 2, own.rho, own.epsilon)
    assert budget.standing(NOISE, Spending(happened, agreed)).caveat == ""
    ahead = budget.standing(NOISE, Spending(happened, Noised((1,), 9, 0.5, 7.0)))
    assert (ahead.sums, ahead.account.epsilon, ahead.account.rho) == (9, 7.0, 0.5)
    assert "put back from a backup" in ahead.caveat
    behind = budget.standing(NOISE, Spending(happened, Noised((1,), 1, 0.01, 0.1)))
    assert (behind.sums, behind.account) == (2, own)


def test_a_helper_that_has_spent_more_than_the_budget_ends_the_task():
    noise = replace(NOISE, epsilon=5.0)
    spent = Spending(Participation((1,), None, 1), Noised((1,), 3, 0.5, 5.5))
    assert "5.50 is spent after 3 sums" in budget.why_over(noise, spent, 1)


def test_an_account_without_a_bound_is_over_any_budget():
    spent = Spending(Participation((1,), None, 1))
    assert math.isinf(accountant.account(replace(NOISE, multiplier=0.0), spent.happened).epsilon)
    assert budget.why_over(replace(NOISE, multiplier=0.0), spent, 1)
