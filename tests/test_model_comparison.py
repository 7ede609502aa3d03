"""Two systems compared user by user, in numbers small enough to work by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime.metrics import Counts
from model.comparison import compare, difference
from model.measures import Evaluation, summarise


def test_two_systems_are_compared_by_user():
    def evaluation(*top1):
        counts = {f"user{i}": Counts(targets=10, top1=hits) for i, hits in enumerate(top1)}
        return Evaluation(counts, sum(counts.values(), Counts()))

    rng = np.random.default_rng(0)
    gain, low, high = difference(evaluation(9, 1, 5), evaluation(8, 0, 4), "top1", rng)
    # users differ much, systems always by one
    assert (gain, low, high) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1))
    gain, low, high = difference(
        evaluation(*range(10)), evaluation(*reversed(range(10))), "top1", rng
    )
    assert gain == 0 and low < 0 < high
    with pytest.raises(ValueError, match="same users and targets"):
        difference(evaluation(1), evaluation(1, 2), "top1", rng)


def of_users(**users: Counts) -> Evaluation:
    return Evaluation(users, sum(users.values(), Counts()))


def test_a_comparison_counts_users_who_gain_and_lose_more_than_a_point():
    left = of_users(
        ann=Counts(targets=100, top1=13, top3=30, letters=500, keys=250),
        bob=Counts(targets=100, top1=11, top3=30, letters=400, keys=204),
        cid=Counts(targets=50, top1=10, top3=20, letters=100, keys=80),
        dan=Counts(targets=19, top1=19, top3=19, letters=50, keys=50),
    )
    right = of_users(
        ann=Counts(targets=100, top1=10, top3=30, letters=500, keys=300),
        bob=Counts(targets=100, top1=10, top3=30, letters=400, keys=200),
        cid=Counts(targets=50, top1=15, top3=20, letters=100, keys=70),
        dan=Counts(targets=19, letters=50, keys=50),
    )
    comparison = compare(left, right, np.random.default_rng(0))
    # dan has too few targets to count as a user, not too few to count in the sums
    assert comparison.users == 3
    assert comparison.top1.change == (3 + 1 - 5 + 19) / 269
    # bob's gain is one point, not more
    assert (comparison.top1.gained, comparison.top1.lost, comparison.top1.same) == (1, 1, 1)
    # of -0.10, 0.01, 0.03
    assert comparison.top1.by_user == pytest.approx((-0.02, -0.078, 0.01, 0.026))
    assert comparison.top3.change == 19 / 269
    assert (comparison.top3.gained, comparison.top3.lost, comparison.top3.same) == (0, 0, 3)
    assert comparison.keystroke_saving.change == (50 - 4 - 10) / 1050
    assert (
        comparison.keystroke_saving.gained,
        comparison.keystroke_saving.lost,
        comparison.keystroke_saving.same,
    ) == (1, 1, 1)
    # of -0.10, -0.01, 0.10
    assert comparison.keystroke_saving.by_user == pytest.approx((-0.01 / 3, -0.082, -0.01, 0.078))


def test_users_who_spare_alike_leave_no_doubt_about_keystrokes():
    left = of_users(
        ann=Counts(targets=20, letters=100, keys=40), bob=Counts(targets=20, letters=200, keys=180)
    )
    right = of_users(
        ann=Counts(targets=20, letters=100, keys=50), bob=Counts(targets=20, letters=200, keys=200)
    )
    comparison = compare(left, right, np.random.default_rng(0)).keystroke_saving
    assert (comparison.change, *comparison.interval) == pytest.approx((0.1, 0.1, 0.1))


def test_without_a_user_of_enough_targets_there_is_a_change_but_no_spread():
    comparison = compare(
        of_users(ann=Counts(targets=4, top1=1, letters=9)),
        of_users(ann=Counts(targets=4, letters=9)),
        np.random.default_rng(0),
    )
    assert (comparison.users, comparison.top1.change, comparison.top1.by_user) == (0, 0.25, None)


def test_systems_that_read_other_words_are_not_compared():
    with pytest.raises(ValueError, match="same users and targets"):
        compare(
            of_users(ann=Counts(targets=4, letters=9)),
            of_users(ann=Counts(targets=4, letters=10)),
            np.random.default_rng(0),
        )


@st.composite
def two_evaluations(draw) -> tuple[Evaluation, Evaluation]:
    sides: tuple[dict, dict] = ({}, {})
    for user in range(draw(st.integers(1, 6))):
        targets = draw(st.integers(1, 60))
        for side in sides:
            top3 = draw(st.integers(0, targets))
            side[f"user{user}"] = Counts(
                targets=targets,
                top1=draw(st.integers(0, top3)),
                top3=top3,
                letters=5 * targets,
                keys=draw(st.integers(targets, 5 * targets)),
            )
    return of_users(**sides[0]), of_users(**sides[1])


@settings(max_examples=30, deadline=None)
@given(two_evaluations())
def test_a_comparison_is_the_difference_of_two_summaries_and_its_mirror_image_the_other_way_round(
    both,
):
    left, right = both
    there, back = (
        compare(left, right, np.random.default_rng(0)),
        compare(right, left, np.random.default_rng(0)),
    )
    summaries = [summarise(each, np.random.default_rng(0)) for each in both]
    for which in ("top1", "top3", "keystroke_saving"):
        gain, loss = getattr(there, which), getattr(back, which)
        first, second = (getattr(summary, which) for summary in summaries)
        assert gain.change == pytest.approx(first - second)
        assert (gain.gained, gain.lost, gain.same) == (loss.lost, loss.gained, loss.same)
        assert gain.gained + gain.lost + gain.same == there.users
        assert (gain.change, *gain.interval) == pytest.approx(
            (-loss.change, -loss.interval[1], -loss.interval[0])
        )
