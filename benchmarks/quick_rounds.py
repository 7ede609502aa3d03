"""Quick rounds: the rounds of `model.simulation` in this process, without TFF, for long studies.

Cohorts, batches, local training, encoding, noise and the mean are the simulation's own functions,
and so are all their random numbers; only what carries them is another: one graph a client, one a
sum, and the server's step in numpy. `python -m benchmarks.quick_rounds` compares the two.
"""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from device_runtime import encoding, quantize
from device_runtime.weights import Weights
from model import aggregators, cohorts, packed
from model.clients import batches, may_ever_train
from model.recipe import Recipe


@dataclass(frozen=True)
class Done:
    """What a round did."""

    number: int
    loss: float
    clipped: float  # share of the clients
    norm: float  # of a delta before clipping, on average
    weights: Weights
    sampler: cohorts.Sampler


class Rounds:
    """Encoded rounds of a recipe, from the first on. `frozen` names arrays that clients train but
    that do not travel: they stay as they are; `turn`: rounds after which signs of the rotation are
    drawn anew, and noise begins anew; 0: never. `share`: of the embedding one in so many values
    travels, of a projection of its own that is the same in all rounds, and all of the rest.
    """

    def __init__(
        self,
        initial: Weights,
        population: Sequence[np.ndarray],
        recipe: Recipe,
        frozen: frozenset[str] = frozenset(),
        turn: int = 0,
        share: int = 1,
    ):
        """As `model.simulation.Training`."""
        self._recipe, self._population, self._turn = recipe, population, turn
        self._names = sorted(initial)
        self._travel = [name for name in self._names if name not in frozen]
        if share > 1:
            self._travel.sort(key=lambda name: name != "embedding")  # it stands first
        self.weights = dict(initial)
        held_to = recipe.limits
        self.members = [
            i
            for i in range(len(population))
            if held_to is None or may_ever_train(population[i], recipe.plan, recipe.client, held_to)
        ]
        self.sampler = cohorts.start(
            len(self.members),
            recipe.cohort,
            recipe.separation,
            recipe.participations,
            accounted=recipe.noise is not None,
        )
        plan, server = recipe.plan, recipe.server
        sizes = [initial[name].size for name in self._travel]
        self._sizes = sizes
        self._part = None
        travelling = sum(sizes)
        if share > 1:
            self._part = encoding.Encoding(sizes[0], 1, 1e12, recipe.seed + 1, share)
            travelling += self._part.values - sizes[0]
        self.by = encoding.Encoding(
            travelling, plan.bits, plan.clipping_norm, recipe.seed, recipe.compression
        )
        self._signs = aggregators.signs(self.by)
        self._rates = np.float32(plan.learning_rate) * np.array(
            recipe.client.schedule.shares(recipe.rounds), np.float32
        )
        self._steps = np.float32(server.learning_rate) * np.array(
            server.schedule.shares(recipe.rounds), np.float32
        )
        noise = recipe.noise
        self._buffers = (
            np.zeros((0, 0), np.float32)
            if noise is None
            else aggregators.buffers(noise, self.by.values)
        )
        self._first = [np.zeros(sum(sizes), np.float32) for _ in range(2)]
        self._client = tf.function(self._trained, reduce_retracing=True)
        self._sum = tf.function(self._summed)
        self._threads = ThreadPoolExecutor(2)

    def _trained(self, weights, steps, rate, done, signs):
        recipe = self._recipe
        start = dict(zip(self._names, weights, strict=True))
        seed = tf.stack([done, tf.reduce_sum(steps)])
        after, losses, targets, _ = packed.train(start, steps, rate, recipe.client, seed)
        delta = [start[name] - after[name] for name in self._travel]
        parts = [tf.reshape(array, [-1]) for array in delta]
        if self._part is not None:
            parts[0] = _projected(parts[0], self._part)
        vector = tf.concat(parts, axis=0)
        clipped, norm = aggregators.clip(vector, recipe.plan.clipping_norm)
        draw = aggregators.rounding_seed(recipe.seed, done + 1, vector)
        codes = aggregators.encode(clipped, signs, self.by, draw)
        return codes, losses, targets, norm

    def _summed(self, total, count, done, buffers, signs):
        recipe = self._recipe
        noise, over, after = recipe.noise, count, buffers
        if noise is not None:
            draw = aggregators.normals(recipe.seed, done, self.by.values)
            made, after = aggregators.noised(noise, done, buffers, draw)
            scale = recipe.cohort / (recipe.privacy.report_goal or recipe.cohort)
            deviation = aggregators.deviation_of(noise, self.by) * scale
            total += aggregators.whole_codes(made, deviation, tf.int64)
            over = tf.constant(recipe.cohort)
        return aggregators.mean(total, count, signs, self.by, over), after

    def next(self) -> Done:
        """One round."""
        recipe = self._recipe
        drawn, self.sampler = cohorts.draw(
            self.sampler,
            recipe.cohort,
            recipe.sampling,
            recipe.separation,
            recipe.seed,
            recipe.participations,
        )
        number = self.sampler.round
        done = tf.constant(number - 1)
        if self._turn and (number - 1) % self._turn == 0:
            self._signs = _signs(self.by, number)
            self._buffers = np.zeros_like(self._buffers)
        signs = tf.constant(self._signs)
        weights = [tf.constant(self.weights[name]) for name in self._names]
        rate = tf.constant(self._rates[number - 1])

        def train(i: int):
            rng = np.random.default_rng([recipe.seed, 2, number, int(i)])
            data = batches(self._population[i], recipe.plan, recipe.client, rng, recipe.limits)
            if not len(data):
                return None
            trained = self._client(weights, tf.constant(data), rate, done, signs)
            return [np.asarray(each) for each in trained]

        results = [
            each
            for each in self._threads.map(train, [self.members[i] for i in drawn])
            if each is not None
        ]
        total = np.sum([codes for codes, *_ in results], axis=0, dtype=np.int64)
        mean, self._buffers = self._sum(
            tf.constant(total), tf.constant(len(results)), done, tf.constant(self._buffers), signs
        )
        self._buffers = np.asarray(self._buffers)
        mean = np.asarray(mean)
        if self._part is not None:
            own = _back(mean[: self._part.values], self._part)
            mean = np.concatenate([own, mean[self._part.values :]])
        change = self._step(mean, number)
        parts = np.split(change, np.cumsum(self._sizes)[:-1])
        self.weights |= {
            name: self.weights[name] - part.reshape(self.weights[name].shape)
            for name, part in zip(self._travel, parts, strict=True)
        }
        losses, targets, norms = (
            np.array([float(each[place]) for each in results]) for place in (1, 2, 3)
        )
        clipped = float(np.mean(norms > recipe.plan.clipping_norm))
        loss = float(losses.sum() / max(targets.sum(), 1.0))
        return Done(number, loss, clipped, float(norms.mean()), self.weights, self.sampler)

    def _step(self, mean: np.ndarray, number: int) -> np.ndarray:
        """What the server's optimizer takes off the weights, as TFF's: float32 [dimension]."""
        server, rate = self._recipe.server, self._steps[number - 1]
        if server.algorithm == "fedavgm":
            self._first[0] = np.float32(server.momentum) * self._first[0] + mean
            return rate * self._first[0]
        assert server.algorithm == "fedadam"
        one, two = np.float32(server.momentum), np.float32(server.beta_2)
        self._first[0] = one * self._first[0] + (1 - one) * mean
        self._first[1] = two * self._first[1] + (1 - two) * mean * mean
        unbiased = rate * np.sqrt(1 - two**number) / (1 - one**number)
        return unbiased * self._first[0] / (np.sqrt(self._first[1]) + np.float32(server.epsilon))


def _places(by: encoding.Encoding) -> np.ndarray:
    return np.arange(by.dimension) * by.stride % by.dimension


def _projected(values: tf.Tensor, by: encoding.Encoding) -> tf.Tensor:
    """The part of these values that travels, as `encoding` takes it before rounding."""
    padded = tf.pad(
        tf.gather(values, _places(by)), [[0, quantize.padded(by.dimension) - by.dimension]]
    )
    rotated = aggregators.hadamard(padded * tf.constant(aggregators.signs(by), tf.float32))
    return aggregators.kept(rotated, by)


def _back(values: np.ndarray, by: encoding.Encoding) -> np.ndarray:
    """That part where it was: float32 [dimension]."""
    spread = aggregators.spread(tf.constant(values), by).numpy()
    vector = np.empty(by.dimension, np.float32)
    vector[_places(by)] = quantize.unrotate(spread, by.seed, by.dimension)
    return vector


def _signs(by: encoding.Encoding, number: int) -> np.ndarray:
    rng = np.random.default_rng([by.seed, 3, number])
    return (1 - 2 * rng.integers(0, 2, quantize.padded(by.dimension))).astype(np.int8)


def main() -> int:
    """Print the loss, the norms and the weights' distance of both, round by round."""
    from pathlib import Path

    from benchmarks.privacy_curve import Asked, prepared
    from fedboard import console
    from model import corpora, simulation, worker

    recipe, _, first, population, _ = prepared(
        Asked(4.0, compression=4), corpora.load("chitchat"), Path(".")
    )
    quick = Rounds(first.weights, population, recipe)
    with worker.running(2):
        training = simulation.Training(first.weights, population, recipe)
        state = training.start()
        for _ in range(4):
            theirs = training.next(state)
            state, ours = theirs.state, quick.next()
            apart = max(
                float(np.abs(ours.weights[name] - theirs.weights[name]).max())
                for name in first.weights
            )
            norm = theirs.encoding["norm"]
            console.say(
                f"round {ours.number}: loss {theirs.loss:.5f} and {ours.loss:.5f}, norm {norm:.5f} "
                f"and {ours.norm:.5f}, weights at most {apart:.2g} apart"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
