"""Readers: text goes through a network token by token, by its int8 file or by float weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime.bundle import Bundle
from device_runtime.interpreter import Arrays, Graph
from device_runtime.text import BOS
from device_runtime.weights import Weights

# a user's own network: a `predict.tflite`, or float weights for the training graph
Personal = bytes | Weights
PREDICT, STEP = "predict", "step"  # signatures


class Reader:
    """A network that reads. One per thread."""

    def __init__(self, graph: bytes, weights: Weights | None = None):
        """`graph` is a verified `predict.tflite`; or a `train.tflite`, which is read with float
        `weights`.
        """
        self._graph, self._weights = Graph(graph), weights
        self._signature = PREDICT if weights is None else STEP

    def start(self, rows: int) -> Arrays:
        """The state before the first token, for `rows` texts at once."""
        return self._graph.start(self._signature, rows)

    def step(self, tokens: NDArray[Any], state: Arrays) -> tuple[NDArray[Any], Arrays]:
        """One token further: int32 [rows] -> log-probabilities of the next, float32 [rows,
        vocabulary], and the state after it.
        """
        if self._weights is None:
            results, after = self._graph.step(self._signature, state, token=tokens)
            return results["log_probs"], after
        rows = []  # this signature takes one text
        for i in range(len(tokens)):
            before = {name: array[i : i + 1] for name, array in state.items()}
            token = tokens[i : i + 1]
            rows.append(self._graph.step(self._signature, before, token=token, **self._weights))
        log_probs = np.concatenate([results["log_probs"] for results, _ in rows])
        return log_probs, {
            name: np.concatenate([after[name] for _, after in rows]) for name in state
        }

    def log_probs(self, ids: Sequence[int]) -> NDArray[Any]:
        """Before each token of one text, float32 [ids, vocabulary]."""
        state, rows = self.start(1), []
        for token in [BOS, *ids[:-1]]:
            log_probs, state = self.step(np.array([token], np.int32), state)
            rows.append(log_probs[0])
        return np.array(rows)


def reader_of(bundle: Bundle, personal: Personal | None = None) -> Reader:
    """What reads with a bundle's network, or with a personal one in its place."""
    if isinstance(personal, dict):
        return Reader(bundle.train_graph, personal)
    return Reader(bundle.predict_graph if personal is None else personal)
