"""Training with all text in one place: the ceiling of what federated rounds can reach. Same network, same loss, Adam, TensorFlow alone."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from device_runtime.errors import CheckpointError
from device_runtime.weights import Weights
from model import packed
from model.recipe import Recipe

LOOKS = 20  # looks at the weights on the way, evenly spaced
BUCKET = 32  # batches whose rows are sorted by length together, so that a batch holds rows of like length


@dataclass(frozen=True)
class Look:
    number: int  # 1 to LOOKS
    loss: float  # mean since the look before
    targets: int
    seconds: float
    weights: Weights


def train(initial: Weights, population: Sequence[np.ndarray], recipe: Recipe) -> Iterator[Look]:
    """`recipe.central.passes` over all rows in random order, with Adam, a cosine schedule and dropout.

    Raises CheckpointError if the weights stop being finite.
    """
    how = recipe.central
    everything = np.concatenate([population[i] for i in range(len(population))])
    rng = np.random.default_rng([recipe.seed, 1])
    steps = max(LOOKS, int(how.passes * len(everything) / how.batch_size))
    start = packed.pack({name: tf.constant(array) for name, array in initial.items()})
    names = sorted(start)
    optimizer = tff.learning.optimizers.build_adam(1.0, beta_1=0.9, beta_2=0.99, epsilon=1e-7)
    state = optimizer.initialize({name: tf.TensorSpec(array.shape) for name, array in start.items()})

    @tf.function(reduce_retracing=True)
    def step(now, state, rows, rate, seed):
        loss, count, gradients = packed.changes(now, rows, 1.0, how.dropout, seed)
        norm = tf.linalg.global_norm([gradients[name] for name in names])
        clipped = {name: gradients[name] * tf.minimum(1.0, how.clipping_norm / tf.maximum(norm, 1e-12)) for name in names}
        state, after = optimizer.next({**state, tff.learning.optimizers.LEARNING_RATE_KEY: rate}, now, clipped)
        return after, state, loss * count, count

    now, losses, targets, began, number = start, 0.0, 0.0, time.monotonic(), 0
    for done, rows in zip(range(1, steps + 1), _batches(everything, how.batch_size, rng), strict=False):
        warm = min(1.0, done / max(1, steps // 50))
        rate = how.learning_rate * warm * (how.final + (1 - how.final) * 0.5 * (1 + np.cos(np.pi * done / steps)))
        now, state, loss, count = step(now, state, tf.constant(rows), tf.constant(rate, tf.float32), tf.constant([recipe.seed, done]))
        losses, targets = losses + float(loss), targets + float(count)
        if done == round(steps * (number + 1) / LOOKS):
            number += 1
            weights = {name: array.numpy() for name, array in packed.unpack(now).items()}
            if not all(np.isfinite(array).all() for array in weights.values()):
                raise CheckpointError(f"step {done}", "the weights are not finite any more", "lower central.learning_rate")
            yield Look(number, losses / max(targets, 1), int(targets), time.monotonic() - began, weights)
            losses, targets, began = 0.0, 0.0, time.monotonic()


def _batches(rows: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless batches, int32 [size, length + 1], longest row first; rows of like length together, everything else at random."""
    lengths = (rows != 0).sum(axis=1)
    while True:
        order = rng.permutation(len(rows))
        batches = []
        for start in range(0, len(order), size * BUCKET):
            group = order[start : start + size * BUCKET]
            group = group[np.argsort(-lengths[group], kind="stable")]
            batches += [group[i : i + size] for i in range(0, len(group) - size + 1, size)]
        for i in rng.permutation(len(batches)):
            yield rows[batches[i]]
