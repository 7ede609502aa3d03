from dataclasses import replace

import numpy as np
import pytest

from device_runtime import weights
from device_runtime.causes import Cause
from device_runtime.finetune import finetune
from device_runtime.turn import Train


@pytest.fixture
def tune(tiny_bundle, tiny_checkpoint, tiny_rows, tiny_plan):
    def run(may_continue=lambda: True, values=None, start=None, **plan):
        rng = np.random.default_rng(5)
        values = values or tiny_checkpoint.weights
        action = Train(values, tiny_rows[:16], replace(tiny_plan, **plan), rng, start)
        return finetune(tiny_bundle.train_graph, action, may_continue)

    return run


def test_training_lowers_the_loss_on_what_was_typed_and_moves_every_array(tune):
    tuned = tune(epochs=5)
    assert tuned.stopped is None
    assert tuned.batches == 5 * 16 / 4
    assert tuned.loss_after < tuned.loss_before - 0.1
    assert all(np.abs(array).max() > 0 for array in tuned.delta.values())


def test_the_same_seed_gives_the_same_delta_to_the_bit(tune):
    first, second = tune(), tune()
    assert (weights.flatten(first.delta) == weights.flatten(second.delta)).all()


def looks(count: int):
    """A condition that holds for so many looks."""
    return iter([True] * count + [False]).__next__


LOSS = 16 // 4  # batches, and looks, of the loss before the first batch


def test_work_stops_before_the_batch_in_which_a_condition_is_lost_and_sends_nothing(tune):
    tuned = tune(looks(LOSS + 2))  # a further look would raise StopIteration
    assert (tuned.stopped, tuned.batches) == (Cause.CONDITION_LOST, 2)
    assert weights.norm(tuned.delta) == 0


@pytest.mark.parametrize("held", range(LOSS + 2 * 4 + LOSS))
def test_work_interrupted_anywhere_and_gone_on_with_ends_with_the_same_bits(tune, held):
    whole = tune(epochs=2)
    first = tune(looks(held), epochs=2)
    assert first.stopped is Cause.CONDITION_LOST
    assert first.batches == min(max(held - LOSS, 0), 8)
    then = tune(start=first.progress, epochs=2)
    assert (then.stopped, then.batches, then.loss_before, then.loss_after) == (
        None,
        8,
        whole.loss_before,
        whole.loss_after,
    )
    assert (weights.flatten(then.delta) == weights.flatten(whole.delta)).all()


def test_work_may_be_interrupted_again_and_again(tune):
    progress = None
    for _ in range(8):
        progress = tune(looks(1 if progress else LOSS + 1), start=progress, epochs=2).progress
    assert progress.batches == 8
    assert (
        weights.flatten(tune(start=progress, epochs=2).delta)
        == weights.flatten(tune(epochs=2).delta)
    ).all()


@pytest.mark.parametrize("rate", [1e4, 1e6])
def test_training_that_diverges_is_given_up_and_sends_nothing(tune, rate):
    tuned = tune(learning_rate=rate)
    assert tuned.stopped is Cause.TRAINING_FAILED
    assert weights.norm(tuned.delta) == 0


def test_weights_that_are_not_finite_are_not_trained(tune, tiny_checkpoint):
    spoiled = {
        **tiny_checkpoint.weights,
        "cell_bias": np.full_like(tiny_checkpoint.weights["cell_bias"], np.nan),
    }
    assert tune(values=spoiled).stopped is Cause.TRAINING_FAILED
