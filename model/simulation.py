"""Federated training in TFF: cohorts of clients -> rounds -> global weights.

One round is a process of four parts, named as in TFF's `learning/templates/composers.py`. Three are
TFF's own; the client's work is ours (`packed.py`, twin of the step devices run).

        global weights, round n
                  |
                  v
        +-------------------+   TFF's broadcast: every client of the
        |    distributor    |   cohort gets the same weights
        +-------------------+
           |      |      |
           v      v      v      `client_work`: SGD on the client's own rows,
        +-------------------+   received minus trained weights, and what
        |    client work    |   they weigh; a delta that is not finite
        +-------------------+   counts as nothing
           |      |      |
           v      v      v      `aggregators.py`: the weighted mean, plain,
        +-------------------+   of deltas encoded as devices encode them,
        |    aggregator     |   or with noise and without weights
        +-------------------+
                  |
                  v             the server's optimizer, which steps down
        +-------------------+   the mean as down a gradient, at the rate
        |     finalizer     |   of the round
        +-------------------+
                  |
                  v
        global weights, round n + 1

Around it, without TFF: `cohorts.py` draws who trains, `clients.py` makes their batches, and `State`
is all a round needs from the one before. With `device_limits` in the recipe both keep what a device
holds its server to: who typed too little never trains, and nobody too soon or too often.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow.python.eager import context

from device_runtime import accountant
from device_runtime.accountant import Account
from device_runtime.errors import CheckpointError
from device_runtime.optimizers import OPTIMIZERS
from device_runtime.weights import Weights
from model import aggregators, cohorts, memory, packed
from model.clients import batches, may_ever_train
from model.recipe import Recipe, Schedule, Server

# what a simulation sees of each client's training: of real devices a server sees sums alone
MEASURED = ("losses", "targets", "hits", "dropped")
# a run has diverged when the global weights' norm is this many times the first one's
EXPLODED = 100.0


@dataclass(frozen=True)
class State:
    """Everything a round needs from the one before.

    Saved whole, it lets a run go on as if nothing had happened.
    """

    round: int  # rounds done
    learning: Any  # TFF's LearningAlgorithmState
    sampler: cohorts.Sampler
    # running mean of the global weights, float32 arrays in the order of their names
    average: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Round:
    """What one round of training did."""

    number: int  # 1 is the first
    loss: float  # mean over the cohort's targets, while they trained
    clients: int
    dropped: int  # clients left out because their update was not finite
    targets: int
    step: float  # L2 norm of what the round changed in the global weights
    seconds: float
    weights: Weights  # global, after the round; their running mean if the recipe averages
    state: State
    # of encoded updates: share clipped, mean norm before that, bytes of one upload, open and masked
    encoding: dict[str, float]
    spread: dict[str, float]  # of the cohort's clients: see `spread_of`
    # what all rounds so far have spent of privacy; None where there is no noise. Of a cohort that
    # stands for a larger report goal: what a fleet of so many reports a round would have spent
    spent: Account | None = None

    @property
    def accounted(self) -> dict[str, float]:
        """What has been spent, and by which participation; empty without noise."""
        if self.spent is None:
            return {}
        happened = self.state.sampler.happened
        return {
            "rho": self.spent.rho,
            "epsilon": self.spent.epsilon,
            "separation": happened.separation or 0,
            "participations": happened.participations,
        }

    def measured(self) -> dict[str, float]:
        """What is worth a place in the curves of a run."""
        return {
            "loss": self.loss,
            **self.spread,
            "targets": self.targets,
            "dropped": self.dropped,
            "step": self.step,
            "seconds": self.seconds,
            **self.encoding,
            **self.accounted,
        }


class Training:
    """A learning process for one network and recipe, and the population it draws cohorts from."""

    def __init__(
        self,
        initial: Weights,
        population: Sequence[np.ndarray],
        recipe: Recipe,
        machines: int = 1,
        aggregator: tff.aggregators.WeightedAggregationFactory | None = None,
        present: cohorts.Present | None = None,
    ):
        """A population is int32 [rows, length + 1] of each client.

        machines: among how many workers the context splits a cohort. aggregator: another one than
        the recipe's. present: who of the population is there in a round; by default all are.
        """
        self._present = present
        self.rounds, self._machines = recipe.rounds, machines
        self._initial, self._population, self._recipe = initial, population, recipe
        self._limits = recipe.limits
        members = [
            i
            for i in range(len(population))
            if self._limits is None
            or may_ever_train(population[i], recipe.plan, recipe.client, self._limits)
        ]
        self._members = np.array(members, np.int64)  # of the population, who trains at all
        self._most_uses = recipe.participations
        self._names = sorted(initial)
        self._process = learning_process(initial, recipe, aggregator)
        self._limit = EXPLODED * _norm(initial.values())

    @property
    def members(self) -> list[int]:
        """Who of the population may train at all."""
        return self._members.tolist()

    @property
    def left_out(self) -> int:
        """Clients of the population who never train, as devices with so little typed do not."""
        return len(self._population) - len(self._members)

    def start(self) -> State:
        """Before the first round.

        Raises ConfigError if the population is too small for the cohort.
        """
        sampler = cohorts.start(
            len(self._members),
            self._recipe.cohort,
            self._recipe.separation,
            self._most_uses,
            accounted=self._recipe.noise is not None,
            timed=self._present is not None,
        )
        return State(
            0,
            self._process.initialize(),
            sampler,
            tuple(self._initial[name] for name in self._names),
        )

    def next(self, state: State) -> Round:
        """One round; the same state gives the same one, to the bit, unless privacy draws noise.

        Raises CheckpointError if the global weights diverge, or every client's do; the round and
        the norm are named.
        """
        recipe, started = self._recipe, time.monotonic()
        drawn, sampler = self._drawn(state)
        chosen = self._members[drawn]
        number = sampler.round
        rngs = [np.random.default_rng([recipe.seed, 2, number, int(i)]) for i in chosen]
        data = [  # of each client one element: all its batches
            [batches(self._population[i], recipe.plan, recipe.client, rng, self._limits)]
            for i, rng in zip(chosen, rngs, strict=True)
        ]
        result = self._process.next(state.learning, dealt(data, self._machines))
        before, after = (
            [np.asarray(array) for array in of.global_model_weights.trainable]
            for of in (state.learning, result.state)
        )
        # float64 [clients, 4]; in an order of its own, so that sums do not hang on who was first
        clients = np.sort(np.asarray(result.metrics["client_work"], np.float64), axis=0)
        losses, targets, _, dropped = clients.sum(axis=0)
        norm, dropped = _norm(after), int(dropped)
        if dropped == len(chosen):
            raise CheckpointError(
                f"round {number}",
                "training diverges: no client's update is finite, from global weights of norm "
                f"{_norm(before):.3g}",
                "lower the learning rates",
            )
        if not norm < self._limit:  # also true for nan
            raise CheckpointError(
                f"round {number}",
                f"training diverges: the norm of the global weights went from {_norm(before):.3g} "
                f"to {norm:.3g}",
                "lower the learning rates",
            )
        # early means forget the first weights quickly
        decay = min(recipe.server.averaging, number / (number + 9))
        average = tuple(
            np.float32(decay) * mean + np.float32(1 - decay) * array
            for mean, array in zip(state.average, after, strict=True)
        )
        weights = dict(zip(self._names, average if recipe.server.averaging else after, strict=True))
        return Round(
            number,
            float(losses / max(targets, 1.0)),
            len(chosen),
            dropped,
            int(targets),
            _norm(new - old for new, old in zip(after, before, strict=True)),
            time.monotonic() - started,
            weights,
            State(number, result.state, sampler, average),
            {name: float(value) for name, value in result.metrics["aggregator"].items()}
            if recipe.encoded
            else {},
            spread_of(np.asarray(result.metrics["client_work"], np.float64)),
            self._account(sampler),
        )

    def over_budget(self, state: State) -> Account | None:
        """What the next round would have spent with those before, where that passes the budget;
        None where it may begin.
        """
        budget = self._recipe.privacy.epsilon
        after = self._account(self._drawn(state)[1]) if budget else None
        return after if after is not None and after.epsilon > budget else None

    def _account(self, sampler: cohorts.Sampler) -> Account | None:
        noise = self._recipe.noise
        return None if noise is None else accountant.account(noise, sampler.happened)

    def _drawn(self, state: State) -> tuple[np.ndarray, cohorts.Sampler]:
        recipe = self._recipe
        return cohorts.draw(
            state.sampler,
            recipe.cohort,
            recipe.sampling,
            recipe.separation,
            recipe.seed,
            self._most_uses,
            self._there if self._present is not None else None,
        )

    def _there(self, moment: int) -> np.ndarray:
        assert self._present is not None
        return self._present(moment)[self._members]


def spread_of(clients: np.ndarray) -> dict[str, float]:
    """How a round's loss and top-1 lie over its clients: percentiles 10, 50 and 90 of each.

    clients is float [clients, 4], a row of MEASURED each. A client's loss is the mean over its
    targets, its top-1 the share of them that were the network's best guess while it trained (ends
    of messages and classes of words are targets too). Who was dropped, or has no target, is left
    out; without anybody the dict is empty.

    >>> spread = spread_of(np.array([[8.0, 4, 1, 0], [6, 2, 1, 0], [0, 0, 0, 1]]))
    >>> spread["loss_p50"], spread["train_top1"], spread["train_top1_p50"]
    (2.5, 0.3333333333333333, 0.375)
    """
    counted = clients[clients[:, 1] > 0]
    if not len(counted):
        return {}
    losses, targets, hits, _ = counted.T
    return {
        **percentiles("loss", losses / targets),
        "train_top1": float(np.sort(hits).sum() / targets.sum()),
        **percentiles("train_top1", hits / targets),
    }


def percentiles(name: str, values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """The 10th, 50th and 90th percentile of values, as name_p10, name_p50, name_p90.

    >>> percentiles("loss", [1.0, 2.0, 3.0])
    {'loss_p10': 1.2, 'loss_p50': 2.0, 'loss_p90': 2.8}
    """
    low, middle, high = np.percentile(values, [10, 50, 90]).tolist()
    return {f"{name}_p10": low, f"{name}_p50": middle, f"{name}_p90": high}


def dealt(data: list[list[np.ndarray]], machines: int) -> list[list[np.ndarray]]:
    """A cohort's data in the order in which they should be trained on.

    A long one begun last would keep the other cores waiting, so the longest come first; TFF splits
    the list where it stands, so each machine's share comes after the other, dealt like cards.

    >>> one, two, three, four = ([np.zeros(n)] for n in (1, 2, 3, 4))
    >>> [len(own[0]) for own in dealt([one, two, three, four], machines=2)]
    [4, 2, 3, 1]
    """
    longest_first = sorted(data, key=lambda own: -len(own[0]))
    return [one for machine in range(machines) for one in longest_first[machine::machines]]


def to_values(state: State) -> list:
    """A state as a flat list of arrays: what TFF's program state manager can keep.

    Dictionaries it cannot, with current typing_extensions.
    """
    return [
        np.int64(state.round),
        state.sampler.waiting,
        state.sampler.last,
        *([] if state.sampler.taken is None else [state.sampler.taken]),
        *([] if state.sampler.gap is None else [np.int64(state.sampler.gap)]),
        *([] if state.sampler.moment is None else [np.int64(state.sampler.moment)]),
        *state.average,
        *tf.nest.flatten(state.learning),
    ]


def from_values(values: list, like: State) -> State:
    """The inverse of `to_values`; `like` is any state of the same training, such as the first."""
    number, waiting, last, *rest = values
    taken = None if like.sampler.taken is None else rest.pop(0)
    gap = None if like.sampler.gap is None else int(rest.pop(0))
    moment = None if like.sampler.moment is None else int(rest.pop(0))
    size = len(like.average)
    return State(
        int(number),
        tf.nest.pack_sequence_as(like.learning, rest[size:]),
        cohorts.Sampler(int(number), waiting, last, taken, gap, moment),
        tuple(rest[:size]),
    )


def release_memory() -> None:
    """Give up what saving a state leaves behind.

    TensorFlow traces new functions for each state and keeps them ready to be called again, and
    glibc keeps what was freed.
    """
    # the public way, Keras's clear_session, also resets graphs that TFF is building
    context.context().clear_kernel_cache()
    memory.trim()


def train(initial: Weights, population: Sequence[np.ndarray], recipe: Recipe) -> Iterator[Round]:
    """The recipe's rounds from the first, on whatever context TFF has (`worker.running`)."""
    training = Training(initial, population, recipe)
    state = training.start()
    for _ in range(recipe.rounds):
        done = training.next(state)
        state = done.state
        yield done


def learning_process(
    initial: Weights,
    recipe: Recipe,
    aggregator: tff.aggregators.WeightedAggregationFactory | None = None,
) -> tff.learning.templates.LearningProcess:
    """The four boxes at the head of this file, put together; by the recipe's aggregator, unless
    another one is asked for.
    """
    names = sorted(initial)

    @tff.tensorflow.computation
    def first_weights():
        return tff.learning.models.ModelWeights(
            tuple(tf.constant(initial[name]) for name in names), ()
        )

    weights_type = first_weights.type_signature.result
    aggregator = aggregator or _aggregator(recipe)
    server = recipe.server
    scheduled = tff.learning.optimizers.schedule_learning_rate(
        optimizer(server), _rate(server.learning_rate, server.schedule, recipe.rounds)
    )
    return tff.learning.templates.compose_learning_process(
        first_weights,
        tff.learning.templates.build_broadcast_process(weights_type),
        client_work(weights_type, names, recipe),
        aggregator.create(weights_type.trainable, tff.TensorType(np.float32)),
        tff.learning.templates.build_apply_optimizer_finalizer(scheduled, weights_type),
    )


def client_work(
    weights_type: tff.Type, names: Sequence[str], recipe: Recipe
) -> tff.learning.templates.ClientWorkProcess:
    """A client trains on its batches and returns received minus trained weights.

    The server steps down that slope. An update that is not finite counts as nothing and is reported
    as dropped. Client data is a sequence of one element, all its batches: int32 [steps, batch,
    length + 1].
    """
    plan, client = recipe.plan, recipe.client
    data_type = tff.SequenceType(tff.TensorType(np.int32, [None, plan.batch_size, plan.length + 1]))
    rate_at = _rate(plan.learning_rate, client.schedule, recipe.rounds)

    @tff.tensorflow.computation(np.int32, weights_type, data_type)
    def train_client(done, received, data):
        steps = data.get_single_element()
        start = dict(zip(names, received.trainable, strict=True))
        # of dropout: no two clients or rounds draw alike, a repeated round does
        seed = tf.stack([done, tf.reduce_sum(steps)])
        after, losses, targets, hits = packed.train(start, steps, rate_at(done), client, seed)
        delta = tuple(start[name] - after[name] for name in names)
        # a finite norm: no weighted sum overflows
        norm = tf.linalg.global_norm(delta)
        finite = tf.math.is_finite(norm) & tf.math.is_finite(losses)
        delta = tuple(tf.where(finite, array, tf.zeros_like(array)) for array in delta)
        kept = tf.cast(finite, tf.float32)
        rows = tf.reduce_sum(tf.cast(tf.not_equal(steps[:, :, 0], 0), tf.float32)) / plan.epochs
        weight = {
            "rows": rows,
            "tokens": targets / plan.epochs,
            "capped": tf.minimum(targets / plan.epochs, client.weight_cap),
            "uniform": tf.cast(rows > 0, tf.float32),
        }[client.weighting]
        losses = tf.where(finite, losses, 0.0)
        return (
            tff.learning.templates.ClientResult(delta, weight * kept),
            tf.stack([losses, targets * kept, hits * kept, 1.0 - kept])[None],  # [1, 4]
        )

    each_type = tff.TensorType(np.float32, [None, len(MEASURED)])

    @tff.tensorflow.computation
    def nobody():
        return tf.zeros([0, len(MEASURED)])

    @tff.tensorflow.computation(each_type, each_type)
    def together(some, others):
        return tf.concat([some, others], axis=0)

    @tff.tensorflow.computation(each_type)
    def all_of_them(every):
        return every

    @tff.tensorflow.computation(np.int32)
    def one_more(done):
        return done + 1

    @tff.federated_computation
    def initialize():
        return tff.federated_value(0, tff.SERVER)

    @tff.federated_computation(
        tff.FederatedType(np.int32, tff.SERVER),
        tff.FederatedType(weights_type, tff.CLIENTS),
        tff.FederatedType(data_type, tff.CLIENTS),
    )
    def next_fn(done, weights, data):
        result, measured = tff.federated_map(
            train_client, (tff.federated_broadcast(done), weights, data)
        )
        every = tff.federated_aggregate(measured, nobody(), together, together, all_of_them)
        return tff.templates.MeasuredProcessOutput(tff.federated_map(one_more, done), result, every)

    return tff.learning.templates.ClientWorkProcess(initialize, next_fn)


def optimizer(server: Server) -> tff.learning.optimizers.Optimizer:
    """TFF's optimizer of a recipe's server, by the table of `device_runtime.optimizers`."""
    named = OPTIMIZERS[server.algorithm]
    numbers = {name: getattr(server, name) for name in named.takes}
    if "beta_2" in numbers:
        numbers["beta_1"] = numbers.pop("momentum")
    return getattr(tff.learning.optimizers, named.builder)(server.learning_rate, **numbers)


def _aggregator(recipe: Recipe) -> tff.aggregators.WeightedAggregationFactory:
    of = recipe.privacy
    aggregator, weighs = aggregators.build(
        aggregators.Averaging(
            encoded=recipe.encoded,
            bits=recipe.plan.bits,
            clipping_norm=recipe.plan.clipping_norm if recipe.encoded else of.clipping_norm,
            mechanism=of.mechanism,
            noise=recipe.noise,
            noise_multiplier=of.noise_multiplier,
            clients_per_round=recipe.cohort,
            seed=recipe.seed,
            compression=recipe.compression,
            report_goal=of.report_goal,
        )
    )
    return aggregator if weighs else tff.aggregators.as_weighted_aggregator(aggregator)


def _rate(full: float, schedule: Schedule, rounds: int):
    """The rate of a round, given how many are done: one table, looked up."""
    table = np.float32(full) * np.array(schedule.shares(rounds), np.float32)
    return lambda done: tf.gather(
        tf.constant(table), tf.minimum(tf.cast(done, tf.int32), rounds - 1)
    )


def _norm(arrays) -> float:
    return float(np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in arrays)))
