"""Scoring: how good a checkpoint or a release is on messages held back from federated training.
What an evaluation task reports, and one of releases.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime.metrics import STRIP, top_words
from device_runtime.reader import Reader
from device_runtime.text import FIRST_WORD, OOV
from device_runtime.weights import Weights
from device_runtime.wire import Scores


def words(ids: Iterable[int]) -> int:
    """How many token ids are target words: of the vocabulary or unknown, and no punctuation.

    >>> words([OOV, FIRST_WORD, FIRST_WORD - 1])
    2
    """
    return sum(target >= FIRST_WORD or target == OOV for target in ids)


def are_words(ids: NDArray[Any]) -> NDArray[np.bool_]:
    """Which token ids, of any shape, are target words."""
    return np.asarray((ids >= FIRST_WORD) | (ids == OOV))


def newest_within(messages: Sequence[Sequence[int]], most: int) -> int:
    """How many of the newest messages (token ids, oldest first) have no more than `most` target
    words together.

    >>> newest_within([[OOV] * 5, [OOV] * 2, [OOV] * 3], most=9)
    2
    """
    count = total = 0
    for ids in reversed(messages):
        total += words(ids)
        if total > most:
            break
        count += 1
    return count


def score(
    graph: bytes,
    weights: Weights,
    messages: Sequence[Sequence[int]],
    may_continue: Callable[[], bool] = lambda: True,
) -> Scores | None:
    """The sums over messages (token ids), word by word as they would be typed, by protocol nwp-v2;
    None if it had to stop. `graph` is the `train` one, which takes weights.

    `may_continue` is asked before every message.
    """
    return _score(Reader(graph, weights), messages, may_continue)


def score_release(
    graph: bytes,
    messages: Sequence[Sequence[int]],
    may_continue: Callable[[], bool] = lambda: True,
) -> Scores | None:
    """The same of a `predict` graph, which holds its weights."""
    return _score(Reader(graph), messages, may_continue)


def _score(
    reader: Reader,
    messages: Sequence[Sequence[int]],
    may_continue: Callable[[], bool],
) -> Scores | None:
    targets = top1 = top3 = known = 0
    loss = 0.0
    for ids in messages:
        if not may_continue():
            return None
        wanted = np.array(
            [place for place, target in enumerate(ids) if target >= FIRST_WORD or target == OOV],
            np.int64,
        )
        if not len(wanted):
            continue
        scores, words = reader.log_probs(ids)[wanted], np.array(ids)[wanted]
        best = top_words(scores, STRIP)
        hit = (best == words[:, None]) & (words != OOV)[:, None]
        in_vocabulary = np.flatnonzero(words != OOV)
        targets += len(words)
        top1 += int(hit[:, 0].sum())
        top3 += int(hit.any(axis=1).sum())
        known += len(in_vocabulary)
        loss -= float(scores[in_vocabulary, words[in_vocabulary]].sum(dtype=np.float64))
    return Scores(targets, top1, top3, known, max(0.0, loss))
