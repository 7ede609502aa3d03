"""Training with all text in one place: the ceiling of what federated rounds can reach.

Same network, same loss, Adam, TensorFlow alone.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from device_runtime.errors import CheckpointError, CorpusError
from device_runtime.weights import Weights
from model import packed
from model.recipe import LOOKS, Recipe

# batches whose rows are sorted by length together, so that a batch holds rows of like length
BUCKET = 32


@dataclass(frozen=True)
class State:
    """Everything the way to the next look needs from the one before."""

    round: int  # looks done
    weights: dict[str, tf.Tensor]  # packed
    optimizer: Any  # TFF's state of Adam


@dataclass(frozen=True)
class Look:
    """What training did since the look before, and where it stands."""

    number: int  # 1 is the first, LOOKS the last
    loss: float  # mean since the look before
    targets: int
    seconds: float
    weights: Weights
    state: State

    def measured(self) -> dict[str, float]:
        """What is worth a place in the curves of a run."""
        return {"loss": self.loss, "targets": self.targets, "seconds": self.seconds}


class Training:
    """Passes over all rows in random order, with Adam, a cosine schedule and dropout."""

    rounds = LOOKS

    def __init__(self, initial: Weights, population: Sequence[np.ndarray], recipe: Recipe):
        """Raises CorpusError if there is no row to train on."""
        self._recipe = recipe
        self._rows = np.concatenate([population[i] for i in range(len(population))])
        if not len(self._rows):
            raise CorpusError(
                "train users", "expected at least one utterance", "import a larger corpus"
            )
        self._steps = max(
            LOOKS, int(recipe.central.passes * len(self._rows) / recipe.central.batch_size)
        )
        self._start = packed.pack({name: tf.constant(array) for name, array in initial.items()})
        self._optimizer = tff.learning.optimizers.build_adam(
            1.0, beta_1=0.9, beta_2=0.999, epsilon=1e-7
        )
        self._step = tf.function(self._one_step, reduce_retracing=True)

    def start(self) -> State:
        """Before the first step."""
        return State(
            0,
            self._start,
            self._optimizer.initialize(
                {name: tf.TensorSpec(array.shape) for name, array in self._start.items()}
            ),
        )

    def next(self, state: State) -> Look:
        """All steps up to the next look. The same state gives the same look, to the bit.

        Raises CheckpointError if the weights stop being finite.
        """
        how, began = self._recipe.central, time.monotonic()
        number, first, last = (
            state.round + 1,
            *(round(self._steps * looks / LOOKS) for looks in (state.round, state.round + 1)),
        )
        now, adam, losses, targets = state.weights, state.optimizer, 0.0, 0.0
        order = _batches(self._rows, how.batch_size, np.random.default_rng([self._recipe.seed, 1]))
        for done, chosen in enumerate(islice(order, first, last), first + 1):
            warm = min(1.0, done / max(1, self._steps // 50))
            rate = (
                how.learning_rate
                * warm
                * (how.final + (1 - how.final) * 0.5 * (1 + np.cos(np.pi * done / self._steps)))
            )
            seed = tf.constant([self._recipe.seed, done])
            now, adam, loss, count = self._step(
                now, adam, tf.constant(self._rows[chosen]), tf.constant(rate, tf.float32), seed
            )
            losses, targets = losses + float(loss), targets + float(count)
        weights = {name: array.numpy() for name, array in packed.unpack(now).items()}
        if not all(np.isfinite(array).all() for array in weights.values()):
            raise CheckpointError(
                f"step {last}", "the weights are not finite any more", "lower central.learning_rate"
            )
        return Look(
            number,
            losses / max(targets, 1),
            int(targets),
            time.monotonic() - began,
            weights,
            State(number, now, adam),
        )

    def _one_step(self, now, state, rows, rate, seed):
        how = self._recipe.central
        names = sorted(now)
        loss, count, _, gradients = packed.changes(now, rows, 1.0, how.dropout, seed)
        norm = tf.linalg.global_norm([gradients[name] for name in names])
        clipped = {
            name: gradients[name] * tf.minimum(1.0, how.clipping_norm / tf.maximum(norm, 1e-12))
            for name in names
        }
        state, after = self._optimizer.next(
            {**state, tff.learning.optimizers.LEARNING_RATE_KEY: rate}, now, clipped
        )
        return after, state, loss * count, count


def to_values(state: State) -> list:
    """A state as a flat list of arrays: what TFF's program state manager can keep."""
    return [np.int64(state.round), *tf.nest.flatten((state.weights, state.optimizer))]


def from_values(values: list, like: State) -> State:
    """The inverse of `to_values`; `like` is any state of the same training, such as the first."""
    number, *rest = values
    return State(
        int(number),
        *tf.nest.pack_sequence_as(
            (like.weights, like.optimizer), [tf.constant(value) for value in rest]
        ),
    )


def _batches(rows: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless batches, each the numbers of `size` rows, or of all if there are fewer: int [size].

    The longest come first; rows of like length are together, everything else is at random.
    """
    lengths, size = (rows != 0).sum(axis=1), min(size, len(rows))
    while True:
        order = rng.permutation(len(rows))
        batches = []
        for start in range(0, len(order), size * BUCKET):
            group = order[start : start + size * BUCKET]
            group = group[np.argsort(-lengths[group], kind="stable")]
            batches += [group[i : i + size] for i in range(0, len(group) - size + 1, size)]
        for i in rng.permutation(len(batches)):
            yield batches[i]
