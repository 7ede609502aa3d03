"""Parity: how far the exported graphs are from the network. `gate` says how far they may be."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from device_runtime.interpreter import Graph
from device_runtime.metrics import top_words
from device_runtime.text import FIRST_WORD
from device_runtime.weights import Weights
from device_runtime.wire import Plan
from model import network, training

ROWS = 64  # texts stepped side by side


@dataclass(frozen=True)
class Int8:
    """The int8 graph against the float network, over the words of real text."""

    positions: int  # targets that are words
    same_best: float  # share of them where both like the same word best
    nats: float  # mean loss of int8 minus that of float
    top1_lost: float  # points of top-1 recall
    top1_error: float  # its standard error, points


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


def int8_difference(predict: bytes, weights: Weights, rows: np.ndarray) -> Int8:
    """Score the words of rows (int32 [n, length + 1]) by the int8 graph and by the float network,
    ROWS at a time.
    """
    graph = Graph(predict)
    same, extra, lost = [], [], []
    for block in (rows[start : start + ROWS] for start in range(0, len(rows), ROWS)):
        states = network.forward(weights, block[:, :-1])
        state = graph.start(rows=len(block))
        for time in range(block.shape[1] - 1):
            results, state = graph.step("predict", state, token=block[:, time])
            words = np.flatnonzero(block[:, time + 1] >= FIRST_WORD)
            targets, places = block[words, time + 1], np.arange(len(words))
            exact = network.log_probs(weights, states[words, time])  # float32 [words, vocabulary]
            int8 = results["log_probs"][words]
            best, best_int8 = top_words(exact, 1)[:, 0], top_words(int8, 1)[:, 0]
            same.append(best == best_int8)
            lost.append((best == targets).astype(int) - (best_int8 == targets))
            extra.append(exact[places, targets] - int8[places, targets])
    all_same, all_lost = np.concatenate(same), np.concatenate(lost)
    count = max(len(all_lost), 1)
    return Int8(
        len(all_lost),
        float(all_same.sum() / count),
        float(np.concatenate(extra).sum() / count),
        100 * float(all_lost.sum() / count),
        100 * float(np.sqrt((np.square(all_lost).sum() + 1) / count / count)),
    )


@tf.function(reduce_retracing=True)
def _tape_step(
    weights: dict, rows: tf.Tensor, rate: tf.Tensor, length: int
) -> tuple[dict, tf.Tensor]:
    with tf.GradientTape() as tape:
        tape.watch(weights)
        loss, _ = training.loss_only(weights, rows, length)
    gradients = tape.gradient(loss, weights)
    return {name: weights[name] - rate * gradients[name] for name in weights}, loss
