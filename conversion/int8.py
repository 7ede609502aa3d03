"""Int8: how far the graph that predicts is from the float network, over real text.

Loads no TensorFlow. `gate` says how far it may be.
"""

from dataclasses import dataclass

import numpy as np

from device_runtime.interpreter import Graph
from device_runtime.metrics import top_words
from device_runtime.text import FIRST_WORD
from device_runtime.weights import Weights
from model import network

ROWS = 64  # texts stepped side by side


@dataclass(frozen=True)
class Int8:
    """The int8 graph against the float network, over the words of real text."""

    positions: int  # targets that are words
    same_best: float  # share of them where both like the same word best
    nats: float  # mean loss of int8 minus that of float
    top1_lost: float  # points of top-1 recall
    top1_error: float  # its standard error, points


def difference(predict: bytes, weights: Weights, rows: np.ndarray) -> Int8:
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
