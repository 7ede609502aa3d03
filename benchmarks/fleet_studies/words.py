"""Words of a study: what is typed on the devices of a fleet that trains, and how well weights do.

Each device has a stretch of what one user of a corpus types. On some devices it is in a dialect:
the same messages with common words exchanged in pairs, the most frequent with the next, and so on.
That people of one kind use other words is made up here, so that what a rule does to them shows.
"""

import numpy as np
from numpy.typing import NDArray

from device_runtime import metrics
from device_runtime.bundle import Bundle
from device_runtime.scoring import are_words
from device_runtime.text import FIRST_WORD
from device_runtime.weights import Weights
from device_runtime.wire import Scores
from fedboard import fleet_text
from fleet.typed import Typed
from model import corpora, network

LEAST, STRETCH = 60, 100  # messages of a user, and of a device
EXCHANGED = 200  # words that the dialect takes for each other
SCORED = 40  # rows of a device, at most
AT_ONCE = 64  # rows
_ALL = 10**9


def typed(bundle: Bundle, corpus: str, speaks: NDArray[np.bool_], seed: int) -> Typed:
    """What is typed on devices; `speaks`: which of them speak the dialect, [devices]."""
    return dealt(fleet_text.of_corpus(corpora.load(corpus), bundle, _ALL), speaks, seed)


def dealt(text: Typed, speaks: NDArray[np.bool_], seed: int) -> Typed:
    """What the users of a corpus have typed, dealt out to devices."""
    who = np.flatnonzero(text.messages >= LEAST)
    rng = np.random.default_rng(seed)
    devices = []
    for speaking in speaks.tolist():
        user = int(rng.choice(who))
        first = int(rng.integers(max(1, text.messages[user] - STRETCH + 1)))
        own = slice(text.first_row[user], text.first_row[user + 1])
        number = text.message[own]
        rows = text.rows[own][(number > first) & (number <= first + STRETCH)]
        devices.append(in_dialect(rows) if speaking else rows)
    return Typed.of(devices)


def in_dialect(rows: NDArray[np.int32]) -> NDArray[np.int32]:
    """The same rows with common words exchanged; any shape.

    >>> in_dialect(np.array([1, FIRST_WORD, FIRST_WORD + 1, FIRST_WORD + EXCHANGED])).tolist() == [
    ...     1, FIRST_WORD + 1, FIRST_WORD, FIRST_WORD + EXCHANGED]
    True
    """
    number = rows - FIRST_WORD
    common = (number >= 0) & (number < EXCHANGED)
    return np.where(common, FIRST_WORD + (number ^ 1), rows).astype(np.int32)


def scores(weights: Weights, typed: Typed, users: NDArray[np.int64]) -> Scores:
    """How well weights predict what users have typed that is held back from training."""
    rows = np.concatenate(
        [typed.held(int(user), int(typed.messages[user]), frozenset(), SCORED)[1] for user in users]
    )
    right, right_of_3, loss, words, known = 0, 0, 0.0, 0, 0
    for start in range(0, len(rows), AT_ONCE):
        chunk = rows[start : start + AT_ONCE]
        targets = chunk[:, 1:]
        is_word = are_words(targets)
        states, wanted = network.forward(weights, chunk[:, :-1])[is_word], targets[is_word]
        said = network.log_probs(weights, states)
        best = metrics.top_words(said, 3)
        right += int((best[:, 0] == wanted).sum())
        right_of_3 += int((best == wanted[:, None]).sum())
        is_known = wanted >= FIRST_WORD
        loss -= float(said[is_known, wanted[is_known]].sum(dtype=np.float64))
        words, known = words + len(wanted), known + int(is_known.sum())
    return Scores(words, right, right_of_3, known, loss)
