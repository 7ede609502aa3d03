"""Parity: how far the train graph is from TensorFlow's own gradients. `gate` says how far it may
be.
"""

import numpy as np
import tensorflow as tf

from device_runtime.interpreter import Graph
from device_runtime.weights import Weights
from device_runtime.wire import Plan
from model import training


def training_difference(
    train: bytes, weights: Weights, batches: list[np.ndarray], plan: Plan
) -> tuple[float, float]:
    """Largest difference of weights and of losses (nats) between the graph's hand-written gradients
    and `tf.GradientTape`, step by step over batches (int32 [plan.batch_size, plan.length + 1]).
    """
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


@tf.function(reduce_retracing=True)
def _tape_step(
    weights: dict, rows: tf.Tensor, rate: tf.Tensor, length: int
) -> tuple[dict, tf.Tensor]:
    with tf.GradientTape() as tape:
        tape.watch(weights)
        loss, _ = training.loss_only(weights, rows, length)
    gradients = tape.gradient(loss, weights)
    return {name: weights[name] - rate * gradients[name] for name in weights}, loss
