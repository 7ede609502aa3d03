"""Evaluations of two checkpoints, compared by what devices reported of each."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.scores import BINS, add, from_vector, to_vector
from device_runtime.wire import Kind, Phase, RoundReport, Scores
from server.evaluations import gain, standing

OLD, NEW = "0" * 64, "1" * 64


def evaluated(checkpoint: str, *devices: tuple[int, int], round: int = 1) -> RoundReport:
    """A round in which each device told (right words, words) of a checkpoint."""
    total = from_vector(
        add(to_vector(Scores(words, right, right, words, 0.0)) for right, words in devices)
    )
    return RoundReport(
        round,
        Phase.COMMITTED,
        len(devices),
        kind=Kind.EVALUATION,
        base=checkpoint,
        scores=total.scores,
        spread=total.spread,
    )


def test_a_standing_by_hand():
    """Two devices of 10 % right, two of 30 %: in the bins whose middles are 12.5 and 32.5 %."""
    report = evaluated(NEW, *[(10, 100)] * 2, *[(30, 100)] * 2)
    scored = standing([report], NEW)
    assert (scored.devices, scored.targets, scored.top1) == (4, 400, 0.2)
    between, within = 4 * 0.1**2 / 3, 0.05**2 / 12
    assert scored.error == pytest.approx(math.sqrt((between + within) / 4))


def test_the_error_is_never_below_that_of_the_words_alone():
    """Four devices of four words each are all a quarter right: between them there is no spread."""
    scored = standing([evaluated(NEW, *[(1, 4)] * 4)], NEW)
    assert scored.error == pytest.approx(math.sqrt(0.25 * 0.75 / 16))


def test_rounds_that_scored_the_same_checkpoint_add_up():
    rounds = [evaluated(NEW, (10, 100), (20, 100)), evaluated(NEW, (30, 100), round=2)]
    assert (standing(rounds, NEW).devices, standing(rounds, NEW).targets) == (3, 300)
    assert standing(rounds, NEW).top1 == pytest.approx(0.2)


def test_a_checkpoint_that_does_worse_by_more_than_two_standard_errors_is_worse():
    good, bad = [(20, 100)] * 50, [(10, 100)] * 50
    assert gain([evaluated(OLD, *good), evaluated(NEW, *bad)], OLD, NEW).worse
    assert not gain([evaluated(OLD, *bad), evaluated(NEW, *good)], OLD, NEW).worse
    change = gain([evaluated(OLD, *good), evaluated(NEW, *bad)], OLD, NEW)
    assert change.change == pytest.approx(-0.1)


def test_a_loss_within_chance_is_not_worse():
    """Ten devices between 0 and 45 %: their mean is known to 5 points, and 5 are lost."""
    wide = [(5 * i, 100) for i in range(10)]
    shifted = [(max(0, 5 * i - 5), 100) for i in range(10)]
    change = gain([evaluated(OLD, *wide), evaluated(NEW, *shifted)], OLD, NEW)
    assert change.change < 0
    assert not change.worse


@pytest.mark.parametrize(
    "missing",
    [
        evaluated(OLD, (10, 100), (10, 100)),
        evaluated(NEW, (10, 100)),
        replace(evaluated(NEW, (10, 100), (10, 100)), phase=Phase.ABANDONED),
        replace(evaluated(NEW, (10, 100), (10, 100)), kind=Kind.TRAINING),
        replace(evaluated(NEW, (10, 100), (10, 100)), scores=None),
    ],
    ids=["the other", "one device", "abandoned", "training", "no scores"],
)
def test_nothing_is_said_of_a_checkpoint_that_no_round_has_scored(missing):
    assert gain([evaluated(OLD, (10, 100), (10, 100)), missing], OLD, NEW) is None


@given(st.lists(st.tuples(st.integers(0, 50), st.just(50)), min_size=2, max_size=30))
def test_a_checkpoint_gains_nothing_on_itself(devices):
    change = gain([evaluated(NEW, *devices)], NEW, NEW)
    assert change.change == 0
    assert change.error > 0 or sum(right for right, _ in devices) in (0, 50 * len(devices))
    assert not change.worse


def test_the_bins_are_those_that_scores_are_added_in():
    assert len(evaluated(NEW, (10, 100), (10, 100)).spread) == BINS
