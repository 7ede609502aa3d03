"""Metrics of next-word prediction: (sum, count) pairs per user, divided once by the reader.
Protocol nwp-v2, steps 7 to 10.

A target counts when it is a word; an unknown word counts as a miss. Suggestions are the likeliest
words: classes and special ids are skipped.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime.text import FIRST_WORD, OOV

STRIP = 3  # suggestions shown
MACRO_TARGETS = 20  # a user with fewer targets is left out of the mean over users


@dataclass(frozen=True)
class Counts:
    """Sums over word targets of one user (or of all). Divide to read: `top1 / targets` is top-1
    recall.
    """

    targets: int = 0
    top1: int = 0
    top3: int = 0
    in_vocabulary: int = 0
    nll: float = 0.0  # nats, over in-vocabulary targets
    letters: int = 0  # keystrokes without suggestions: letters and one space a word
    keys: int = 0  # keystrokes with the strip
    first: int = 0  # targets that open an utterance
    first_top1: int = 0
    tokens: int = 0  # targets that are words or classes, where classes compete too
    tokens_top1: int = 0
    tokens_top3: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            *(getattr(self, field.name) + getattr(other, field.name) for field in fields(self))
        )


def top_words(log_probs: NDArray[Any], k: int = STRIP) -> NDArray[Any]:
    """Ids of the k likeliest words, best first: float [n, vocabulary] -> int [n, k]. Ties go to the
    more frequent word.

    A vocabulary of fewer than k words gives as many columns as it has words.
    """
    scores = np.array(log_probs[:, FIRST_WORD:])
    k = min(k, scores.shape[1])
    best = np.empty((len(scores), k), np.int64)
    rows = np.arange(len(scores))
    for rank in range(k):  # k passes of argmax beat a partial sort at k = 3
        best[:, rank] = scores.argmax(axis=1)
        scores[rows, best[:, rank]] = -np.inf
    return best + FIRST_WORD


def keystrokes(
    log_probs: NDArray[Any],
    words: Sequence[str],
    ids: NDArray[Any],
    shown: NDArray[Any],
    alphabetical: tuple[list[str], list[int]],
) -> NDArray[Any]:
    """Keystrokes for one word after each context: letters typed until the strip shows it and one to
    accept; all letters and a space if it never does.

    log_probs is float [n, vocabulary]; words, ids (OOV if unknown) and shown (whether the strip
    offers the word before its first letter) have n. alphabetical are all words that may be offered
    and their ids, as `Vocabulary.alphabetical` gives them. Completions are the three likeliest
    words with the typed prefix; ties go to the more frequent word.
    """
    keys = np.where(shown, 1, [len(word) + 1 for word in words])
    own = log_probs[np.arange(len(ids)), ids]
    alphabet, order = alphabetical[0], np.array(alphabetical[1])
    waiting = np.flatnonzero(~shown & (ids != OOV)).tolist()
    typed = 0
    while waiting:
        typed += 1
        with_prefix: dict[str, list[int]] = defaultdict(list)
        for row in waiting:
            if typed < len(words[row]):
                with_prefix[words[row][:typed]].append(row)
        waiting = []
        for prefix, group in with_prefix.items():
            candidates = order[
                bisect_left(alphabet, prefix) : bisect_left(alphabet, prefix + "\uffff")
            ]
            rows = np.array(group)
            # [rows, candidates]
            scores, mine = (log_probs[rows[:, None], candidates], own[rows, None])
            ahead = (scores > mine) | ((scores == mine) & (candidates < ids[rows, None]))
            offered = np.count_nonzero(ahead, axis=1) < STRIP
            keys[rows[offered]] = typed + 1
            waiting += rows[~offered].tolist()
    return keys


def recall(counts: Counts, which: str) -> float:
    """top1 or top3 recall, 0..1; 0 without targets."""
    return getattr(counts, which) / counts.targets if counts.targets else 0.0


def perplexity(counts: Counts) -> float:
    """e to the mean loss of in-vocabulary word targets. Compare only at equal vocabulary."""
    return (
        float(np.exp(counts.nll / counts.in_vocabulary)) if counts.in_vocabulary else float("nan")
    )


def keystroke_saving(counts: Counts) -> float:
    """1 - keystrokes with the strip / keystrokes without."""
    return 1 - counts.keys / counts.letters if counts.letters else 0.0


def oov_rate(counts: Counts) -> float:
    """Share of targets outside the vocabulary."""
    return 1 - counts.in_vocabulary / counts.targets if counts.targets else 0.0


def macro(users: list[Counts], which: str) -> tuple[float, float, float, float]:
    """Mean, 10th, 50th and 90th percentile of a recall over users with enough targets; nan without
    any.
    """
    recalls = [recall(counts, which) for counts in users if counts.targets >= MACRO_TARGETS]
    if not recalls:
        return (float("nan"),) * 4
    low, middle, high = np.percentile(recalls, [10, 50, 90])
    return float(np.mean(recalls)), float(low), float(middle), float(high)


def interval(
    users: list[Counts],
    statistic: Callable[[Counts], float],
    rng: np.random.Generator,
    draws: int = 1000,
) -> tuple[float, float]:
    """95 % bootstrap interval over users of a statistic that is a ratio of sums, such as top-1
    recall of all targets.
    """
    table = np.array(
        [[getattr(counts, field.name) for field in fields(Counts)] for counts in users], np.float64
    )
    # [draws, fields]
    sums = rng.multinomial(len(users), np.full(len(users), 1 / len(users)), draws) @ table
    values = [statistic(Counts(*row)) for row in sums]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
