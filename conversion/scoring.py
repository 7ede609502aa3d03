"""Scoring a bundle as shipped: its int8 graph as an engine for `model.evaluation`.

Loads no TensorFlow.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from device_runtime.bundle import Bundle
from device_runtime.predictor import Predictor
from device_runtime.reader import Personal
from model.evaluation import Engine

ROWS = 64  # texts stepped side by side, at most
POSITIONS = 1 << 11  # of theirs together, each of which has a score a word, unless one has more


def bundle_engine(bundle: Bundle, personal: Personal | None = None) -> Engine:
    """The bundle's `predict` graph, or a personal network in its place, one token at a time as on a
    phone, many texts side by side.
    """
    predictor = Predictor(bundle, personal)

    def score(sequences: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        start = 0
        while start < len(sequences):
            beside = sequences[start : start + ROWS]
            ends = np.cumsum([len(sequence) for sequence in beside])
            beside = beside[: max(1, int(np.searchsorted(ends, POSITIONS, side="right")))]
            yield _score(predictor, beside)
            start += len(beside)

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
