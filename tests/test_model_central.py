"""Central training: the same network, all text in one place."""

from dataclasses import replace

import numpy as np
import pytest

from device_runtime.errors import CheckpointError, CorpusError
from model.recipe import Central, Recipe


@pytest.fixture(scope="module")
def recipe(tiny_plan) -> Recipe:
    return Recipe(
        "tiny",
        vocabulary=40,
        plan=tiny_plan,
        central=Central(passes=4.0, batch_size=8, learning_rate=0.02),
    )


def looks(initial, population, recipe, state=None) -> list:
    from model import central

    training, result = central.Training(initial, population, recipe), []
    state = state or training.start()
    while state.round < central.LOOKS:
        result.append(training.next(state))
        state = result[-1].state
    return result


def test_it_lowers_the_loss_and_a_state_saved_and_loaded_goes_on_to_the_same_bits(
    recipe, tiny_checkpoint, tiny_rows
):
    from model import central

    population = [tiny_rows[i : i + 12] for i in range(0, 240, 12)]
    every = looks(tiny_checkpoint.weights, population, recipe)
    assert every[-1].loss < every[0].loss - 0.3
    values = [np.array(value) for value in central.to_values(every[10].state)]
    state = central.from_values(
        values, central.Training(tiny_checkpoint.weights, population, recipe).start()
    )
    last = looks(tiny_checkpoint.weights, population, recipe, state)[-1]
    assert last.number == central.LOOKS
    assert all((last.weights[name] == array).all() for name, array in every[-1].weights.items())


def test_every_row_is_seen_once_a_pass(tiny_rows):
    from model import central

    order = central._batches(tiny_rows[:64], 8, np.random.default_rng(0))
    first = np.concatenate([next(order) for _ in range(8)])
    assert sorted(first) == list(range(64))


def test_a_corpus_smaller_than_a_batch_trains_in_one_batch(recipe, tiny_checkpoint, tiny_rows):
    every = looks(tiny_checkpoint.weights, [tiny_rows[:3]], recipe)
    assert every[0].targets == np.count_nonzero(tiny_rows[:3, 1:])
    assert every[-1].loss < every[0].loss


def test_no_row_at_all_is_refused(recipe, tiny_checkpoint, tiny_rows):
    from model import central

    with pytest.raises(CorpusError, match="at least one utterance"):
        central.Training(tiny_checkpoint.weights, [tiny_rows[:0]], recipe)


def test_weights_that_are_not_finite_any_more_stop_it(recipe, tiny_checkpoint, tiny_rows):
    with pytest.raises(CheckpointError, match="the weights are not finite any more"):
        looks(
            tiny_checkpoint.weights,
            [tiny_rows[:64]],
            replace(recipe, central=replace(recipe.central, learning_rate=1e38)),
        )
