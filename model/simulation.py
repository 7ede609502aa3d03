"""Federated training in TFF: clients' rows, cohorts and rounds -> checkpoints. The local step is `training.py`'s, the one devices run."""

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from device_runtime.errors import CheckpointError
from device_runtime.examples import rows
from device_runtime.text import Vocabulary
from device_runtime.weights import Weights
from device_runtime.wire import Plan
from model import training
from model.corpus import Users
from model.recipe import Recipe

FINAL_SHARE = 0.05  # of the learning rates at the end of a cosine schedule


@dataclass(frozen=True)
class Round:
    """What one round of training did."""

    number: int  # 1 is the first
    loss: float  # mean over the cohort's targets, while they trained
    clients: int
    targets: int
    seconds: float
    weights: Weights  # of the global model after it


def clients(users: Users, vocabulary: Vocabulary, plan: Plan) -> list[np.ndarray]:
    """Each user's newest rows, int32 [at most plan.max_rows, plan.length + 1]."""
    return [rows((vocabulary.ids(utterance.tokens) for utterance in utterances), plan.length)[-plan.max_rows :] for utterances in users.values()]


def cohorts(population: int, size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Endless cohorts in shuffled passes: nobody trains twice before everybody trained once."""
    waiting: list[int] = []
    while True:
        while len(waiting) < size:
            waiting += [int(i) for i in rng.permutation(population) if i not in waiting[-size:] or population <= size]
        yield waiting[:size]
        waiting = waiting[size:]


def functional_model(initial: Weights, plan: Plan) -> tff.learning.models.FunctionalModel:
    """The network as TFF wants it: plain functions of tensors. An example is one row, so clients weigh by their rows."""
    names = sorted(initial)

    @tf.function
    def predict_on_batch(model_weights, x, training=True):
        @tf.custom_gradient
        def loss_of(*arrays: tf.Tensor):
            found = training_step(dict(zip(names, arrays, strict=True)), x)
            loss, targets, gradients = found
            return (loss, targets), lambda d_loss, _: [d_loss * gradients[name] for name in names]

        loss, targets = loss_of(*model_weights[0])
        return tf.zeros([tf.shape(x)[0]]), loss, targets

    def training_step(weights: training.Tensors, x: tf.Tensor) -> tuple:
        return training.loss_and_gradients(weights, x, plan.length, compact=True)

    def loss_fn(output, label, sample_weight=None):
        return output[1]

    @tf.function
    def start_metrics():
        return OrderedDict(loss=tf.zeros([]), targets=tf.zeros([]))

    @tf.function
    def update_metrics(state, labels, batch_output, sample_weight=None):
        _, loss, targets = batch_output.predictions
        return OrderedDict(loss=state["loss"] + loss * targets, targets=state["targets"] + targets)

    @tf.function
    def finish_metrics(state):
        return OrderedDict(loss=tf.math.divide_no_nan(state["loss"], state["targets"]), targets=state["targets"])

    spec = tf.TensorSpec([None, plan.length + 1], tf.int32)
    return tff.learning.models.FunctionalModel(
        initial_weights=(tuple(initial[name] for name in names), ()),
        predict_on_batch_fn=predict_on_batch,
        loss_fn=loss_fn,
        metrics_fns=(start_metrics, update_metrics, finish_metrics),
        input_spec=(spec, spec),
    )


def learning_process(initial: Weights, recipe: Recipe) -> tff.learning.templates.LearningProcess:
    """FedAvg or FedAdam by TFF's own builder, both learning rates on the recipe's schedule."""

    def at(rate: float) -> Callable[[tf.Tensor], tf.Tensor]:
        def rate_at(round_number: tf.Tensor) -> tf.Tensor:
            done = tf.minimum(tf.cast(round_number, tf.float32) / recipe.rounds, 1.0)
            share = FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + tf.cos(np.pi * done)) if recipe.schedule == "cosine" else tf.ones([])
            return tf.cast(rate * share, tf.float32)

        return rate_at

    optimizers = tff.learning.optimizers
    server = (
        optimizers.build_adam(recipe.server_learning_rate, beta_1=0.9, beta_2=0.99, epsilon=1e-5)
        if recipe.algorithm == "fedadam"
        else optimizers.build_sgdm(recipe.server_learning_rate)
    )
    return tff.learning.algorithms.build_weighted_fed_avg_with_optimizer_schedule(
        functional_model(initial, recipe.plan),
        client_learning_rate_fn=at(recipe.plan.learning_rate),
        client_optimizer_fn=optimizers.build_sgdm,
        server_optimizer_fn=optimizers.schedule_learning_rate(server, at(recipe.server_learning_rate)),
    )


def train(initial: Weights, population: list[np.ndarray], recipe: Recipe) -> Iterator[Round]:
    """Federated rounds on clients' rows, one `Round` each; runs on whatever context TFF has (`worker.running`).

    Raises CheckpointError if the global weights stop being finite.
    """
    process = learning_process(initial, recipe)
    state = process.initialize()
    rng = np.random.default_rng([recipe.seed, 1])
    names = sorted(initial)
    for number, cohort in zip(range(1, recipe.rounds + 1), cohorts(len(population), recipe.cohort, rng), strict=False):
        started = time.monotonic()
        result = process.next(state, [_dataset(population[i], recipe.plan, rng) for i in cohort])
        state = result.state
        arrays = process.get_model_weights(state).trainable
        weights = {name: np.asarray(array) for name, array in zip(names, arrays, strict=True)}
        if not all(np.isfinite(array).all() for array in weights.values()):
            raise CheckpointError(f"round {number}", "the global weights are not finite any more", "lower the learning rates")
        measured = result.metrics["client_work"]["train"]
        yield Round(number, float(measured["loss"]), len(cohort), int(measured["targets"]), time.monotonic() - started, weights)


def _dataset(examples: np.ndarray, plan: Plan, rng: np.random.Generator) -> tf.data.Dataset:
    shuffled = np.concatenate([examples[rng.permutation(len(examples))] for _ in range(plan.epochs)])
    return tf.data.Dataset.from_tensor_slices((shuffled, shuffled)).batch(plan.batch_size)
