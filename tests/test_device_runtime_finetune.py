import itertools
from dataclasses import replace

import numpy as np
import pytest

from device_runtime import weights
from device_runtime.finetune import finetune
from device_runtime.wire import Cause


@pytest.fixture
def tune(tiny_bundle, tiny_checkpoint, tiny_rows, tiny_plan):
    def run(may_continue=lambda: True, values=None, **plan):
        rng = np.random.default_rng(5)
        return finetune(tiny_bundle.train_graph, values or tiny_checkpoint.weights, tiny_rows[:16], replace(tiny_plan, **plan), rng, may_continue)

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


def test_work_stops_before_the_batch_in_which_a_condition_is_lost_and_sends_nothing(tune):
    looks = itertools.chain([True, True], itertools.repeat(False))
    tuned = tune(lambda: next(looks))
    assert (tuned.stopped, tuned.batches) == (Cause.CONDITION_LOST, 2)
    assert weights.norm(tuned.delta) == 0


@pytest.mark.parametrize("rate", [1e6, float("nan"), float("inf")])
def test_training_that_diverges_is_given_up_and_sends_nothing(tune, rate):
    tuned = tune(learning_rate=rate)
    assert tuned.stopped is Cause.TRAINING_FAILED
    assert weights.norm(tuned.delta) == 0


def test_weights_that_are_not_finite_are_not_trained(tune, tiny_checkpoint):
    spoiled = {**tiny_checkpoint.weights, "cell_bias": np.full_like(tiny_checkpoint.weights["cell_bias"], np.nan)}
    assert tune(values=spoiled).stopped is Cause.TRAINING_FAILED
