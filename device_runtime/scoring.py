"""Scoring: how good a checkpoint is on messages this device holds back from federated training.
What an evaluation task reports.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime.interpreter import Graph
from device_runtime.metrics import STRIP, top_words
from device_runtime.text import BOS, FIRST_WORD, OOV
from device_runtime.typing_log import Record
from device_runtime.weights import Weights
from device_runtime.wire import MOST_WORDS as MOST_WORDS
from device_runtime.wire import Scores

# messages: that one is held back, by its number in the typing log, which it keeps for life
ONE_IN = 10
LEAST = 40  # messages of a device that holds any back: one with fewer needs them all


def held_back(records: Sequence[Record], messages: int) -> list[Record]:
    """Those of some records that a device with so many messages keeps out of training."""
    return [record for record in records if _is_held(record, messages)]


def trained_on(records: Sequence[Record], messages: int) -> list[Record]:
    """The others."""
    return [record for record in records if not _is_held(record, messages)]


def score(
    graph: bytes,
    weights: Weights,
    messages: Sequence[Sequence[int]],
    may_continue: Callable[[], bool] = lambda: True,
) -> Scores | None:
    """The sums over messages (token ids), word by word as they would be typed, by protocol nwp-v1;
    None if it had to stop.

    `may_continue` is asked before every message.
    """
    step = Graph(graph)
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
        scores, words = log_probs(step, weights, ids)[wanted], np.array(ids)[wanted]
        best = top_words(scores, STRIP)
        hit = (best == words[:, None]) & (words != OOV)[:, None]
        in_vocabulary = np.flatnonzero(words != OOV)
        targets += len(words)
        top1 += int(hit[:, 0].sum())
        top3 += int(hit.any(axis=1).sum())
        known += len(in_vocabulary)
        loss -= float(scores[in_vocabulary, words[in_vocabulary]].sum(dtype=np.float64))
    return Scores(targets, top1, top3, known, max(0.0, loss))


def log_probs(graph: Graph, weights: Weights, ids: Sequence[int]) -> NDArray[Any]:
    """Before each of the ids, float32 [ids, vocabulary]."""
    state, rows = graph.start("step"), []
    for token in [BOS, *ids[:-1]]:
        results, state = graph.step("step", state, token=np.array([token], np.int32), **weights)
        rows.append(results["log_probs"][0])
    return np.array(rows)


def _is_held(record: Record, messages: int) -> bool:
    return messages >= LEAST and record.id % ONE_IN == 0
