"""What is right passes, and each way of being wrong is told in a sentence."""

from dataclasses import replace

import numpy as np
import pytest

from device_runtime import merkle
from device_runtime.accountant import Participation, account
from device_runtime.causes import Cause
from device_runtime.errors import Unanswered
from device_runtime.log_wire import Head
from device_runtime.merkle import Frontier
from device_runtime.noise import Mechanism, Noise
from device_runtime.wire import Ack, Reject
from fleet import invariants as it
from fleet.invariants import Round, Told, Work
from server.rounds import Mode, Rules

NOW = 1000.0
TOLD = Told("ada", "work", "name", Ack(True))
WORK = Work("work", 3, "ada", NOW, "counted", "name", 3)
ROUND = Round(3, "committed", "base", "made", 1, NOW, None, NOW)
OPEN = replace(ROUND, phase="reporting", made=None, closed_at=None)
NOISE = Noise(Mechanism.GAUSSIAN, 1.0, 10.0, 1e-6, rounds=3, participations=2)


def test_what_is_acknowledged_is_counted_and_what_is_counted_is_acknowledged():
    closed = replace(TOLD, answer=Reject(Cause.ROUND_CLOSED, 0.0))
    lost = replace(TOLD, answer=Unanswered("server", "gives no answer", "wait"))
    again = replace(TOLD, answer=Reject(Cause.REPLAYED, 0.0))
    assert it.acknowledged(TOLD, WORK) == ""
    assert it.acknowledged(lost, WORK) == ""
    assert it.acknowledged(again, WORK) == ""
    assert "was acknowledged" in it.acknowledged(TOLD, replace(WORK, status="open"))
    assert "was acknowledged" in it.acknowledged(TOLD, replace(WORK, update_hash="other"))
    assert "was acknowledged" in it.acknowledged(TOLD, None)
    assert "is counted, and its device was told" in it.acknowledged(closed, WORK)


def test_a_round_counts_each_device_once_by_a_report_of_its_own():
    came = {"work": {"name": "ada"}}
    other = replace(WORK, assignment="other")
    assert it.counted_once(ROUND, [WORK], came, {}) == ""
    assert "a device twice" in it.counted_once(ROUND, [WORK, other], came, {})
    assert "says that it has 1 reports" in it.counted_once(ROUND, [], came, {})
    assert "no device has sent" in it.counted_once(ROUND, [WORK], {"work": {"name": "bob"}}, {})
    assert "no device has sent" in it.counted_once(ROUND, [WORK], {}, {})
    assert "rounds 2 and 3" in it.counted_once(ROUND, [WORK], came, {"work": 2})


def test_nobody_is_counted_who_was_not_ready_or_comes_too_soon():
    assert it.eligible(WORK, True, [1], min_separation=2) == ""
    assert it.eligible(WORK, None, [], min_separation=2) == ""
    assert "did not hold" in it.eligible(WORK, False, [], min_separation=2)
    assert "expected 2 rounds" in it.eligible(WORK, True, [2], min_separation=2)


def test_a_round_makes_what_it_counted_out_of_what_was_there():
    abandoned = replace(ROUND, phase="abandoned", made=None)
    assert it.exact(ROUND, "made") == ""
    assert "comes to" in it.exact(ROUND, "other")
    assert it.follows(ROUND, "base") == it.follows(abandoned, "base") == ""
    assert "began with" in it.follows(ROUND, "other")
    assert "its checkpoint is None" in it.follows(replace(ROUND, made=None), "base")
    assert "its checkpoint is made" in it.follows(replace(abandoned, made="made"), "base")


def test_nothing_that_honest_devices_sent_is_thrown_away():
    lied = replace(ROUND, reason="it is beyond what honest devices could reach")
    lost = replace(ROUND, reason="what it counted cannot be read: its key is lost")
    assert it.opened(ROUND, True) == it.opened(lied, False) == ""
    assert "has thrown away" in it.opened(lied, True)
    assert "has thrown away" in it.opened(lost, False)


def test_a_mean_carries_noise_of_its_own():
    rng = np.random.default_rng(1)
    first, second = rng.standard_normal((2, 200))
    assert it.noised(2, second, 1.0, {1: first}) == ""
    assert "has noise of 0" in it.noised(2, np.zeros(200), 1.0, {})
    assert "expected about 100" in it.noised(2, second, 100.0, {})
    assert "rounds 1 and 2 have the same noise" in it.noised(2, first + 1e-7, 1.0, {1: first})


def test_what_is_spent_never_falls_nor_passes_the_budget_nor_is_told_too_low():
    happened = Participation((2,), 1, 2)
    spent = account(NOISE, happened)
    told = [(spent.rho / 2, spent.epsilon / 2), (spent.rho, spent.epsilon)]
    assert it.budgeted(NOISE, told, happened, [1, 2]) == ""
    assert "has fallen" in it.budgeted(NOISE, told[::-1], happened, [1, 2])
    assert "of a budget" in it.budgeted(replace(NOISE, epsilon=0.1), told, happened, [1, 2])
    assert "was spent" in it.budgeted(NOISE, told[:1], happened, [1])
    assert "numbers its sums [1, 1]" in it.budgeted(NOISE, told, happened, [1, 1])
    often = replace(happened, participations=3)
    assert "a device is in 3" in it.budgeted(NOISE, told, often, [1, 2])


@pytest.mark.parametrize("phase", ["selecting", "reporting"])
def test_a_round_ends_when_its_window_is_over(phase):
    waits = replace(OPEN, phase=phase)
    assert it.moves(waits, [], Rules(), 60.0, NOW + 69, slack=10.0) == ""
    assert "should have ended" in it.moves(waits, [], Rules(), 60.0, NOW + 71, slack=10.0)


def test_a_sum_is_opened_and_a_window_closed_in_time():
    frozen, late = replace(OPEN, phase="unmasking"), NOW + 71 + it.UNMASKING_S
    assert it.moves(frozen, [], Rules(), 60.0, NOW + 71, slack=10.0) == ""
    assert "to be opened" in it.moves(frozen, [], Rules(), 60.0, late, slack=10.0)
    asking = replace(OPEN, phase="selecting", last_admitted=None, places='{"until": 1000.0}')
    assert it.moves(asking, [], Rules(), 60.0, NOW + 9, slack=10.0) == ""
    assert "a window was over" in it.moves(asking, [], Rules(), 60.0, NOW + 11, slack=10.0)


def test_a_buffered_round_waits_for_as_long_as_it_likes_but_for_no_device_too_long():
    rules, works = Rules(mode=Mode.BUFFERED), [replace(WORK, status="open")]
    assert it.moves(OPEN, [], rules, 60.0, NOW + 1e6, slack=10.0) == ""
    assert it.moves(OPEN, works, rules, 60.0, NOW + 69, slack=10.0) == ""
    assert "for device ada" in it.moves(OPEN, works, rules, 60.0, NOW + 71, slack=10.0)


def test_one_sum_is_kept_of_an_open_round_and_nothing_of_others():
    assert it.one_sum([("task", 3, 100)], [3], [("task", 3)], most_bytes=100) == ""
    twice = [("task", 3, 100)] * 2
    assert "2 sums of 1 rounds" in it.one_sum(twice, [], [("task", 3)], most_bytes=100)
    assert "rounds that are over" in it.one_sum([("task", 2, 9)], [], [("task", 3)], 100)
    assert "seals are kept" in it.one_sum([], [2], [("task", 3)], 100)
    assert "101 bytes" in it.one_sum([("task", 3, 101)], [], [("task", 3)], most_bytes=100)


def test_no_file_of_a_server_holds_an_update():
    body = bytes(range(200))
    assert it.keeps_none([body[:120], b"else"], {"name": body}) == ""
    assert "holds the update" in it.keeps_none([b"else", b"before" + body], {"name": body})


def test_a_log_grows_and_never_forks():
    def head_of(entries):
        frontier, roots = Frontier(), {}
        for each in entries:
            frontier, whole = frontier.append(merkle.leaf(each.encode()))
            roots |= whole
        return Head("0" * 32, frontier.size, frontier.root.hex()), roots

    before, _ = head_of(["a", "b", "c"])
    after, roots = head_of(["a", "b", "c", "d", "e"])
    other, others = head_of(["a", "x", "c", "d", "e"])

    def path(of):
        return [merkle.root_of(each, of) for each in merkle.consistency(3, 5)]

    assert it.grows(None, before, []) == it.grows(before, after, path(roots)) == ""
    assert "has forked" in it.grows(before, other, path(others))
    assert "has forked" in it.grows(after, before, [])
    assert it.is_root_of(after, ["a", "b", "c", "d", "e", "later"]) == ""
    assert "are not those" in it.is_root_of(after, ["a", "x", "c", "d", "e"])
    assert "are not those" in it.is_root_of(after, ["a", "b"])
