"""Spent: a phone's own part, by its ledger alone, is never told as less than it was."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import accountant, config, spent
from device_runtime.accountant import Participation
from device_runtime.home import Contribution, parts
from device_runtime.noise import Mechanism, Noise
from device_runtime.spent import Part

GAUSSIAN = Noise(Mechanism.GAUSSIAN, 2.0, 1e3, 1e-10, 100, 6)
BLT = Noise(Mechanism.BLT, 4.0, 1e3, 1e-10, 12, 6, decays=(0.9, 0.5), scales=(0.3, 0.2))
NAMED = "5e" * 16, "night", "7a" * 16


def part(*rounds, noise=GAUSSIAN, named=NAMED):
    return Part(*named, rounds, noise)


def line(round, name, outcome="counted", noise=GAUSSIAN, **named):
    text = "" if noise is None else config.to_json(noise).decode()
    of = {"server": NAMED[0], "task": NAMED[1], "task_id": NAMED[2], "assignment": name}
    return Contribution(round, 1.0, outcome, "", 9, 1, 1, noise=text, **{**of, **named})


def test_independent_noise_by_hand():
    """Three updates of multiplier 2: rho 3 / (2 x 4), however far apart."""
    assert spent.of(part(3, 10, 12)).account.rho == pytest.approx(0.375)
    assert spent.of(part(3, 10, 12)).if_apart.rho == pytest.approx(0.375)
    assert part(3, 10, 12).separation == 2
    assert part(3).separation is None


def test_sums_of_correlated_noise_are_taken_to_follow_one_on_another():
    near, far = spent.of(part(1, 2, noise=BLT)), spent.of(part(1, 9, noise=BLT))
    assert near.account == far.account == near.if_apart
    assert far.if_apart.rho < far.account.rho


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(1, 12), min_size=1, max_size=6), st.sets(st.integers(1, 12)))
def test_no_part_is_told_less_than_the_sums_it_was_in_really_show(rounds, abandoned):
    """Rounds that were abandoned have no sum, so the device's sums were nearer than its rounds."""
    own = sorted(rounds)
    sums = [r for r in range(1, 13) if r in rounds or r not in abandoned]
    numbers = [sums.index(r) for r in own]
    apart = min((b - a for a, b in itertools.pairwise(numbers)), default=None)
    happened = Participation((len(sums),), apart, len(own))
    truth = accountant.account(BLT, happened)
    assert spent.of(part(*own, noise=BLT)).account.rho >= truth.rho * (1 - 1e-12)


def test_a_part_in_a_tree_is_told_as_if_its_state_was_lost_where_that_shows_most():
    """Of four sums the first two and the last two have a tree each: the device is in three."""
    tree = Noise(Mechanism.TREE, 4.0, 1e3, 1e-10, 4, 3, restart=3)
    truth = accountant.account(tree, Participation((2, 2), 1, 3))
    assert truth.rho == pytest.approx(8 / (2 * 4**2))
    assert spent.of(part(1, 2, 3, noise=tree)).account.rho >= truth.rho


def test_no_phone_has_spent_more_than_its_whole_task_may():
    narrow = Noise(Mechanism.GAUSSIAN, 0.5, 2.0, 1e-10, 100, 6)
    told = spent.of(part(1, 2, 3, noise=narrow)).account
    assert (told.epsilon, told.delta) == (2.0, 1e-10)
    assert told.rho == pytest.approx(accountant.rho(2.0, 1e-10))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_sums_are_no_nearer_than_the_log_of_any_task_lets_them_be(data):
    """Of twelve rounds some open a sum, and some of these commit; the device is in some sums."""
    opened = data.draw(st.sets(st.integers(1, 12), min_size=1))
    committed = data.draw(st.sets(st.sampled_from(sorted(opened))))
    own = sorted(data.draw(st.sets(st.sampled_from(sorted(opened)), min_size=1)))
    number = {round: 1 + sum(other < round for other in opened) for round in opened}
    sums = []
    for round in own:
        made_in = max((each for each in committed if each < round), default=0)
        sums.append(spent.numbers(number.get(made_in, 0), made_in, round, 0))
        assert sums[-1][0] <= number[round] <= sums[-1][1]
    named = Part(*NAMED, tuple(own), BLT, tuple(sums))
    told, true = spent.of(named), [number[round] for round in own]
    assert told.by_log
    happened = Participation(
        (len(opened),),
        min((later - earlier for earlier, later in itertools.pairwise(true)), default=None),
        len(own),
    )
    truth = accountant.account(BLT, happened).rho
    assert told.account.rho >= told.if_apart.rho >= truth * (1 - 1e-12)


def test_reports_of_before_the_log_are_told_by_their_rounds():
    lines = [line(3, "a"), replace(line(10, "b"), first_sum=7, last_sum=7)]
    (part_,) = parts(lines)
    assert part_.sums == () and not spent.of(part_).by_log
    (part_,) = parts([replace(line(3, "a"), first_sum=2, last_sum=3), lines[1]])
    assert part_.sums == ((2, 3), (7, 7)) and part_.apart == 4


def test_without_noise_nothing_is_bounded():
    for noise in (None, Noise(Mechanism.GAUSSIAN, 0.0, 8.0, 1e-10, 100, 6)):
        assert not spent.is_added(noise)
        assert spent.of(part(3, noise=noise)).account.epsilon == math.inf
        assert spent.total([part(3, noise=noise)]) is None


def test_tasks_compose_by_their_rho_at_the_smallest_delta():
    other = Noise(Mechanism.GAUSSIAN, 1.0, 1e3, 1e-6, 100, 6)
    named = (NAMED[0], "day", "8b" * 16)
    together = spent.total([part(3, 10), part(4, noise=other, named=named), part(5, noise=None)])
    assert together.rho == pytest.approx(0.25 + 0.5)
    assert together.delta == 1e-10
    assert together.epsilon == accountant.epsilon(together.rho, 1e-10)
    assert spent.total([part(3)], 1e-6).delta == 1e-6


def test_a_budget_at_another_delta_is_the_same_rho():
    assert spent.budget(GAUSSIAN, 1e-10) == 1e3
    small = Noise(Mechanism.GAUSSIAN, 2.0, 8.0, 1e-10, 100, 6)
    at = spent.budget(small, 1e-6)
    assert at < 8.0
    assert accountant.rho(at, 1e-6) == pytest.approx(accountant.rho(8.0, 1e-10), rel=1e-9)


def test_one_more_update_joins_those_of_its_task_and_noise():
    before = (part(3), part(4, noise=None))
    assert spent.with_next(before, part(9)) == (part(4, noise=None), part(3, 9))
    assert spent.with_next(before, part(9, noise=BLT)) == (*before, part(9, noise=BLT))
    assert spent.taken(before, NAMED[0], NAMED[2]) == 2
    assert spent.taken(before, NAMED[0], "8b" * 16) == 0


def test_an_update_counts_once_and_what_may_have_left_counts():
    lines = [
        line(3, "a"),
        line(5, "b", "sending"),
        line(6, "b", "counted"),  # the same work, sent once more
        line(9, "c", "not_counted"),  # or so the server says
        line(10, "d", "abandoned"),
        line(11, "e", kind="evaluation", noise=None),
        line(12, "f", noise=None),
        line(13, "g", noise=None, task_id="8b" * 16),
    ]
    assert parts(lines) == (
        part(3, 6, 9),
        part(12, noise=None),
        part(13, noise=None, named=(*NAMED[:2], "8b" * 16)),
    )


def test_noise_that_cannot_be_read_bounds_nothing():
    damaged = Contribution(3, 1.0, "counted", "", 9, 1, 1, "night", noise='{"mechanism": "magic"}')
    assert parts([damaged]) == (Part("", "night", "", (3,), None),)


def test_a_log_that_tells_of_more_sums_than_rounds_makes_no_part_cheaper():
    rounds, far = (3, 10), ((3, 3), (2**40, 2**40))
    told = spent.of(Part(*NAMED, rounds, BLT, far))
    assert told.if_apart == spent.of(Part(*NAMED, rounds, BLT)).if_apart
    assert told.if_apart.rho > spent.of(Part(*NAMED, (3, 12), BLT)).if_apart.rho
