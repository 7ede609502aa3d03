"""Rollout: when a release does worse, by numbers worked out by hand and by a simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.wire import ReleaseScores, Scores
from server.release_scores import merge, split, to_rows
from server.rollout import Standing, gain, judge, ratio, right


def scores(words: int, right: int) -> Scores:
    return Scores(words, right, words, words, 0.0)


def report(words: int, new: int, old: int | None = None, release=8, before=7) -> ReleaseScores:
    if old is None:
        return ReleaseScores(release, scores(words, new))
    return ReleaseScores(release, scores(words, new), before, scores(words, old))


def told(*reports: ReleaseScores):
    return split(merge(map(to_rows, reports)), 1)[0]


def test_the_gain_and_its_error_are_those_of_a_ratio_over_devices_worked_out_by_hand():
    # 3 of 100 words more, 1 of 300 fewer: 2 of 400, half a point; the rests are 2.5 and -2.5
    pairs = told(report(100, 20, 17), report(300, 59, 60))[8, 7]
    measured = gain(pairs)
    assert measured.share == pytest.approx(0.005)
    assert measured.error == pytest.approx(math.sqrt(2 * (2.5**2 + 2.5**2)) / 400)


def test_the_share_of_right_words_has_its_error_too():
    alone = told(report(100, 20), report(100, 10))[8, 0]
    assert right(alone).share == pytest.approx(0.15)
    assert right(alone).error == pytest.approx(math.sqrt(2 * (5**2 + 5**2)) / 200)


def test_one_device_has_no_error_that_anybody_knows():
    alone = told(report(100, 20))[8, 0]
    assert right(alone).error == math.inf
    assert ratio(20, 100, 400, 2000, replace(alone, devices=2)).error < math.inf


def test_the_error_of_a_gain_is_how_far_it_is_off_in_a_thousand_fleets():
    rng, gains, errors = np.random.default_rng(0), [], []
    for _ in range(1000):
        words = rng.integers(200, 401, size=30)
        pace = rng.normal(0.01, 0.03, size=30)  # what each device gains, as a share
        new = rng.binomial(words, 0.2 + pace.clip(-0.1, 0.1))
        old = rng.binomial(words, 0.2)
        figures = told(
            *(report(int(w), int(n), int(o)) for w, n, o in zip(words, new, old, strict=True))
        )
        measured = gain(figures[8, 7])
        gains.append(measured.share)
        errors.append(measured.error)
    assert np.mean(gains) == pytest.approx(0.01, abs=0.001)
    assert np.mean(errors) == pytest.approx(np.std(gains), rel=0.1)


# verdicts


@pytest.mark.parametrize(
    ("olds", "standing"),
    [
        ((30, 29, 31, 30), Standing.WORSE),  # 9 to 11 words of 100 lost, everywhere
        ((20, 21, 19, 20), Standing.FINE),
        ((10, 11, 9, 10), Standing.FINE),
        ((60, 0, 22, 2), Standing.FINE),  # a loss that could as well be none
    ],
)
def test_a_release_is_worse_when_its_gain_is_two_errors_below_nothing(olds, standing):
    verdict = judge(told(*(report(100, 20, old) for old in olds)), 8, fewest=4)
    assert (verdict.standing, verdict.paired) == (standing, True)


def test_a_verdict_says_how_it_was_come_to():
    reports = [report(100, 20, old) for old in (30, 29, 31, 30)]
    assert judge(told(*reports), 8, 4).why == (
        "worse: -10.00 points of top-1 (+/- 1.34) beside the release before, 4 devices on the same "
        "words"
    )
    alone = [report(100, 20)] * 5
    assert judge(told(*alone), 8, 5).why == (
        "no earlier release to compare it with has been scored by 5 devices"
    )
    assert judge(told(*reports), 9, 5).why == "waits until 5 devices have scored it"


def test_without_enough_pairs_two_releases_are_compared_on_their_own_devices():
    eight = [report(100, right) for right in (10, 11, 9, 10)]
    seven = [report(100, right, release=7) for right in (20, 21, 19, 20)]
    six = [report(100, right, release=6) for right in (9, 9, 9, 9)]
    few = [report(100, 0, 30)]  # one pair is not enough to judge by
    verdict = judge(told(*eight, *seven, *six, *few), 8, fewest=4)
    assert (verdict.standing, verdict.paired, verdict.beside) == (Standing.WORSE, False, 7)
    assert "beside release 7, 5 and 4 devices on their own words" in verdict.why
    assert judge(told(*eight, *six), 8, 4).standing is Standing.FINE
    # errors add up: one of two releases is of devices that differ
    apart = [report(100, right, release=7) for right in (0, 50, 0, 50)]
    assert judge(told(*eight, *apart), 8, 4).standing is Standing.FINE


def test_nothing_is_said_of_a_release_of_too_few_devices():
    pairs = [report(100, 0, 30)] * 3
    assert judge(told(*pairs), 8, fewest=4).standing is Standing.WAITS
    assert judge(told(*pairs[:1]), 8, fewest=1).standing is Standing.WAITS
    assert judge({}, 8, fewest=4).standing is Standing.WAITS


@pytest.mark.parametrize("devices", [2, 3, 5, 20])
def test_a_release_as_good_as_the_one_before_is_worse_in_one_look_of_twenty_at_most(devices):
    """However few devices are looked at: they know little of their own error."""
    rng, stopped = np.random.default_rng(2), 0
    for _ in range(1000):
        words = rng.integers(200, 401, size=devices)
        new, old = (rng.binomial(words, 0.2) for _ in range(2))
        reports = [report(int(w), int(n), int(o)) for w, n, o in zip(words, new, old, strict=True)]
        stopped += judge(told(*reports), 8, devices).standing is Standing.WORSE
    assert stopped < 50


@given(st.lists(st.integers(200, 400), min_size=1, max_size=60), st.integers(1, 400))
def test_one_lying_device_never_makes_a_good_release_worse(honest, words):
    """It moves the gain by its lie, and the error by more than half of that. Honest devices have
    200 words at least.
    """
    reports = [report(each, each // 2, each // 2) for each in honest]
    verdict = judge(told(*reports, report(words, 0, words)), 8, fewest=2)
    assert verdict.gain.share < 0
    assert verdict.standing is Standing.FINE


def test_four_lying_devices_of_fifty_can_and_three_cannot():
    honest, lie = [report(300, 60, 60)] * 46, report(400, 0, 400)
    assert judge(told(*honest, *[lie] * 3), 8, 40).standing is Standing.FINE
    assert judge(told(*honest, *[lie] * 4), 8, 40).standing is Standing.WORSE


def test_a_release_is_not_judged_by_those_who_came_down_to_it():
    down = [report(100, 20, old, before=9) for old in (30, 29, 31, 30)]
    assert judge(told(*down), 8, fewest=4).standing is Standing.WAITS
