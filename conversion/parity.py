"""Parity: the exported graphs compute what the network computes. Measured before a bundle is signed; a bundle that fails is not written."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from device_runtime.interpreter import Graph
from device_runtime.metrics import top_words
from device_runtime.weights import Weights
from device_runtime.wire import Plan
from model import network, training

WEIGHTS_TOLERANCE = 1e-4  # largest difference of a weight after the steps
LOSS_TOLERANCE = 1e-4  # nats
INT8_AGREEMENT = 0.9  # least share of contexts whose best word int8 keeps


@dataclass(frozen=True)
class Parity:
    """Differences between `train.tflite` and TensorFlow, and between `predict.tflite` (int8) and the float network."""

    steps: int
    weights: float  # largest absolute difference of any weight after `steps` SGD steps
    loss: float  # largest absolute difference of the loss in any of them
    int8_top1: float  # share of contexts with the same best word
    int8_nats: float  # mean loss of int8 minus that of float, on the targets

    @property
    def problems(self) -> list[str]:
        """What is out of bounds, in words; empty if the graphs may be shipped."""
        found = []
        if not self.weights <= WEIGHTS_TOLERANCE:
            found.append(f"weights differ by {self.weights:.1e} after {self.steps} steps, expected at most {WEIGHTS_TOLERANCE:.0e}")
        if not self.loss <= LOSS_TOLERANCE:
            found.append(f"losses differ by {self.loss:.1e} nats, expected at most {LOSS_TOLERANCE:.0e}")
        if not self.int8_top1 >= INT8_AGREEMENT:
            found.append(f"int8 keeps the best word in {self.int8_top1:.1%} of contexts, expected at least {INT8_AGREEMENT:.0%}")
        return found


def measure(train: bytes, predict: bytes, weights: Weights, batches: list[np.ndarray], plan: Plan) -> Parity:
    """Train on these batches (int32 [plan.batch_size, plan.length + 1]) in both worlds, one step each, and score their contexts in both."""
    weights_apart, loss_apart = training_difference(train, weights, batches, plan)
    agreement, nats = int8_difference(predict, weights, np.concatenate(batches))
    return Parity(len(batches), weights_apart, loss_apart, agreement, nats)


def training_difference(train: bytes, weights: Weights, batches: list[np.ndarray], plan: Plan) -> tuple[float, float]:
    """Largest difference of weights and of losses between the graph's hand-written gradients and `tf.GradientTape`, step by step."""
    graph, rate = Graph(train), np.float32(plan.learning_rate)
    ours = weights
    theirs = {name: tf.constant(array) for name, array in weights.items()}
    apart = 0.0
    for batch in batches:
        result = graph.run("train", rows=batch, learning_rate=rate, **ours)
        ours = {name: result[name] for name in weights}
        theirs, loss = _tape_step(theirs, tf.constant(batch), tf.constant(rate), plan.length)
        apart = max(apart, abs(float(result["loss"]) - float(loss)))
    return max(float(np.abs(ours[name] - theirs[name].numpy()).max()) for name in weights), apart


def int8_difference(predict: bytes, weights: Weights, rows: np.ndarray) -> tuple[float, float]:
    """Share of contexts in which the int8 graph and the float network like the same word best, and int8's extra loss in nats."""
    graph = Graph(predict)
    states = network.forward(weights, rows[:, :-1])
    state = {"hidden": np.zeros_like(states[:, 0]), "cell": np.zeros((len(rows), network.size_of(weights).units), np.float32)}
    same = extra = count = 0.0
    for time in range(rows.shape[1] - 1):
        result = graph.run("predict", token=rows[:, time], **state)
        state = {"hidden": result["hidden"], "cell": result["cell"]}
        real = np.flatnonzero(rows[:, time + 1])
        exact, found, targets = network.log_probs(weights, states[real, time]), result["log_probs"][real], rows[real, time + 1]
        same += float((top_words(exact, 1) == top_words(found, 1)).sum())
        extra += float((exact[np.arange(len(real)), targets] - found[np.arange(len(real)), targets]).sum())
        count += len(real)
    return same / max(count, 1), extra / max(count, 1)


@tf.function(reduce_retracing=True)
def _tape_step(weights: dict, rows: tf.Tensor, rate: tf.Tensor, length: int) -> tuple[dict, tf.Tensor]:
    with tf.GradientTape() as tape:
        tape.watch(weights)
        loss, _ = training.loss_only(weights, rows, length)
    gradients = tape.gradient(loss, weights)
    return {name: weights[name] - rate * gradients[name] for name in weights}, loss
