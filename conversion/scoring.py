"""Scoring a bundle as shipped: its int8 graph as an engine for `model.evaluation`.

Loads no TensorFlow.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from device_runtime.bundle import Bundle
from device_runtime.predictor import Predictor
from model.evaluation import Engine

ROWS = 64  # texts stepped side by side


def bundle_engine(bundle: Bundle) -> Engine:
    """The bundle's `predict` graph, one token at a time as on a phone, many texts side by side."""
    predictor = Predictor(bundle)

    def score(sequences: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        for start in range(0, len(sequences), ROWS):
            yield _score(predictor, sequences[start : start + ROWS])

    return score


def _score(predictor: Predictor, sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """Log-probabilities after each id, all sequences in order: float32 [positions, vocabulary]."""
    lengths = np.array([len(sequence) for sequence in sequences])
    starts = np.cumsum(lengths) - lengths
    longest_first = np.argsort(-lengths, kind="stable")
    scores = np.empty((lengths.sum(), len(predictor.vocabulary)), np.float32)
    state = predictor.start(len(sequences))
    for time in range(lengths.max()):
        active = longest_first[: np.count_nonzero(lengths > time)]
        tokens = np.array([sequences[i][time] for i in active], np.int32)
        scores[starts[active] + time], state = predictor.step(
            tokens, {name: array[: len(active)] for name, array in state.items()}
        )
    return scores
