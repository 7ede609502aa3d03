"""Scoring a bundle as shipped: its int8 graph as an engine for `model.evaluation`.

Loads no TensorFlow.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from device_runtime.bundle import Bundle
from device_runtime.interpreter import Arrays
from device_runtime.pieced import Places, complete_of
from device_runtime.predictor import Predictor
from device_runtime.reader import Personal, Reader, reader_of
from model.evaluation import Engine
from model.pieces import Decoder, Reads

ROWS = 64  # texts stepped side by side, at most
POSITIONS = 1 << 11  # of theirs together, each of which has a score a word, unless one has more


def bundle_engine(bundle: Bundle, personal: Personal | None = None) -> Engine | Decoder:
    """The bundle's `predict` graph, or a personal network in its place, one token at a time as on a
    phone, many texts side by side. One of pieces is decoded to words, none of them blocked.
    """
    if bundle.vocabulary.of_pieces:
        reads = _reads(reader_of(bundle, personal), bundle.vocabulary.first_inner)
        return Decoder(reads, bundle.vocabulary, blocked=getattr(bundle, "blocked", frozenset()))
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


def _reads(reader: Reader, first_inner: int) -> Reads:
    def step(tokens: np.ndarray, state: Arrays) -> Places:
        log_probs, after = reader.step(tokens.astype(np.int32), state)
        return Places(after, log_probs, complete_of(log_probs, first_inner))

    return Reads(reader.start, step)


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
