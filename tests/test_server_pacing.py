"""Pace steering: a few devices meet, many are spread, and nobody stampedes after an outage."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import daemon
from device_runtime.causes import MEANING, Cause
from device_runtime.turn import Outcome, Status
from server import pacing
from server.pacing import retry_in_s, return_in_s
from server.rounds import Rules

RULES = Rules(retry_s=900.0)  # and four hours, a hundred check-ins a second
PASSING = [None, *(cause for cause in Cause if not MEANING[cause].lasts)]


@given(
    st.sampled_from([None, *Cause]), st.floats(0, 2e9), st.integers(1, 10**4), st.integers(0, 2**32)
)
def test_a_device_comes_back_within_a_fifth_of_the_time_the_rules_name(
    cause, now, population, seed
):
    seconds = retry_in_s(cause, RULES, population, now, np.random.default_rng(seed))
    base = 14_400 if cause and MEANING[cause].lasts else 900
    assert 0.8 * base - 0.001 <= seconds <= 1.2 * base


def test_what_will_not_pass_by_itself_waits_for_hours():
    rng = np.random.default_rng(0)
    assert 11_520 <= retry_in_s(Cause.WRONG_MODEL, RULES, 50, 0.0, rng) <= 17_280
    assert 720 <= retry_in_s(Cause.ROUND_FULL, RULES, 50, 0.0, rng) <= 1080
    assert 720 <= retry_in_s(None, RULES, 50, 0.0, rng) <= 1080


def test_fifty_devices_that_start_at_any_time_meet_within_a_minute_after_a_few_retries():
    rng = np.random.default_rng(1)
    times = rng.uniform(0, 900, 50)  # seconds of their first check-ins
    for _ in range(4):
        times = np.array([now + retry_in_s(Cause.ROUND_FULL, RULES, 50, now, rng) for now in times])
    phases = (times + 450) % 900
    assert phases.max() - phases.min() <= 60


def test_ten_million_devices_that_all_ask_at_once_come_back_no_faster_than_the_server_wants():
    rng = np.random.default_rng(2)
    share = 10_000  # of ten million: each of these stands for a thousand
    times = np.array(
        [retry_in_s(Cause.UNAVAILABLE, RULES, 10_000_000, 0.0, rng) for _ in range(share)]
    )
    assert times.min() >= 720
    # check-ins a second, over the busiest thousand seconds of a sample
    busiest = max(Counter((times // 1000).astype(int)).values()) * 1000 / 1000
    assert busiest <= 1.35 * RULES.check_ins_per_s
    # ten million at a hundred a second
    assert times.max() - times.min() == pytest.approx(100_000, rel=0.01)


def test_devices_that_were_together_once_are_not_together_again_when_they_are_many():
    rng = np.random.default_rng(3)
    times = np.array([retry_in_s(Cause.ROUND_FULL, RULES, 20_000, 0.0, rng) for _ in range(20_000)])
    seconds = Counter(times.astype(int))
    # spread over 720 to 1080 s: 56 a second and what chance adds
    assert max(seconds.values()) <= 1.8 * 20_000 / 360


@given(st.floats(0.1, 1e5), st.floats(0, 1), st.integers(1, 10**8), st.integers(0, 2**32))
def test_no_daemon_that_was_drawn_comes_when_the_time_to_claim_is_over(
    selection_s, share, population, seed
):
    rules, rng = Rules(selection_s=selection_s), np.random.default_rng(seed)
    asked_at = share * selection_s
    told = return_in_s(selection_s, rules, population, asked_at, rng)
    refused = Outcome(Status.REFUSED, Cause.SELECTING, retry_in_s=told)
    comes = asked_at + daemon.after(refused, asked_at, rng).wait_s
    assert selection_s <= comes
    # what a turn does before it asks takes some seconds
    assert comes + 10 <= selection_s + rules.claim


@given(
    st.sampled_from([None, *Cause]),
    st.floats(0, 7 * 86_400),
    st.floats(0, 7 * 86_400),
    st.integers(1, 10**10),
    st.integers(0, 2**32),
)
def test_no_device_is_told_to_wait_longer_than_it_would(cause, short, long, population, seed):
    rules = Rules(retry_s=short, permanent_retry_s=long, check_ins_per_s=0.001)
    seconds = retry_in_s(cause, rules, population, 1e9, np.random.default_rng(seed))
    assert seconds <= daemon.LONGEST_S


def test_the_server_counts_with_the_waits_that_devices_keep():
    assert (pacing.LEAST_S, pacing.JITTER) == (daemon.LEAST_S, daemon.JITTER)


@given(st.sampled_from(PASSING), st.floats(0, 2e9), st.integers(1, 15_000), st.integers(0, 2**32))
def test_whoever_comes_again_when_it_was_told_is_in_every_window(cause, now, population, seed):
    """Else a few that wait until one is open, or open one when the others have just been there,
    have more of the places than they are of the devices.
    """
    rules, rng = Rules(), np.random.default_rng(seed)
    told = retry_in_s(cause, rules, population, now, rng)
    refused = Outcome(Status.REFUSED, cause, retry_in_s=told)
    if cause is not Cause.OVER_LIMIT:  # a device that has refused its share rests for a day
        assert daemon.after(refused, now, rng).wait_s + 10 <= rules.selection_s
