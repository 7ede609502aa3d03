"""N-gram baselines: the plain unigram, and Kneser-Ney of order 2 to 4.

Modified, interpolated and unpruned. They are trained centrally on what a fleet could not collect,
so they are an upper reference for what counting can do. An n-gram is one integer key, its ids as
digits of a number in base `vocabulary_size`; counting is sorting keys. Lower orders count the
distinct words before an n-gram; before one that starts with bos there is nothing, so it counts as
often as it occurs. Sources: Chen and Goodman 1998, TR-10-98; Heafield et al. 2013.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from device_runtime.text import BOS, EOS, PAD

ORDERS = (1, 2, 3, 4)
_FALLBACK = (0.5, 1.0, 1.5)  # discounts where a corpus is too small to estimate them


@dataclass(frozen=True)
class _Order:
    """The discounted probabilities after each context of one length.

    What is left over, `rest`, goes to the next shorter context.
    """

    contexts: np.ndarray  # int64 [contexts], keys in order
    start: np.ndarray  # int64 [contexts + 1], where each context's words begin
    words: np.ndarray  # int32 [n-grams]
    probabilities: np.ndarray  # float32 [n-grams]
    rest: np.ndarray  # float32 [contexts]


@dataclass(frozen=True)
class NGram:
    """A trained model; pad and bos have no probability, since they are never next."""

    order: int
    vocabulary_size: int
    unigram: np.ndarray  # float32 [vocabulary]
    longer: tuple[_Order, ...]  # orders 2 and up

    def contexts(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """The ids before each next id, for every position of sequences that start with bos.

        int64 [positions, order - 1], the latest id last, padded on the left with 0 where the
        sequence begins.
        """
        width = self.order - 1
        lengths = np.array([len(sequence) for sequence in sequences], np.int64)
        flat = np.array([i for sequence in sequences for i in sequence], np.int64)
        place = _places(lengths)
        back = np.arange(width - 1, -1, -1)
        before = flat[np.maximum(np.arange(len(flat))[:, None] - back, 0)]  # [positions, width]
        return np.where(back <= place[:, None], before, PAD)

    def log_probs(self, contexts: np.ndarray) -> np.ndarray:
        """Log-probabilities after contexts: int [n, order - 1] -> float32 [n, vocabulary].

        contexts are as `contexts` gives them; pad and bos have -inf.
        """
        n, width = contexts.shape
        hits = []
        share = np.ones(n, np.float32)  # what longer contexts leave over
        for length in range(width, 0, -1):
            order = self.longer[length - 1]
            if not len(order.contexts):  # no utterance was that long
                continue
            keys = _keys(contexts[:, width - length :].T, self.vocabulary_size)
            at = np.minimum(np.searchsorted(order.contexts, keys), len(order.contexts) - 1)
            rows = np.flatnonzero(order.contexts[at] == keys)
            at = at[rows]
            hits.append((order, rows, at, share[rows]))
            share[rows] *= order.rest[at]
        scores = np.outer(share, self.unigram)
        flat = scores.reshape(-1)
        for order, rows, at, shares in hits:
            sizes = order.start[at + 1] - order.start[at]
            entries = np.repeat(order.start[at], sizes) + _places(sizes)
            flat[np.repeat(rows * self.vocabulary_size, sizes) + order.words[entries]] += (
                np.repeat(shares, sizes) * order.probabilities[entries]
            )
        with np.errstate(divide="ignore"):  # pad and bos
            return np.log(scores, out=scores)


def train(sequences: Sequence[Sequence[int]], order: int, vocabulary_size: int) -> NGram:
    """Count id sequences (no bos, no eos) into a model of `order`, 1 to 4.

    Order 1 is the plain unigram, one added to each count.

    Raises ValueError for another order, no sequence, or a vocabulary too large for keys of 63 bits.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {ORDERS}, found {order}")
    if not len(sequences):
        raise ValueError("no sequence to train on")
    if vocabulary_size**order >= 2**63:
        raise ValueError(f"a vocabulary of {vocabulary_size} ids is too large for order {order}")
    lengths = np.array([len(sequence) + 2 for sequence in sequences], np.int64)
    marked = (i for sequence in sequences for i in (BOS, *sequence, EOS))
    flat = np.fromiter(marked, np.int32, lengths.sum())
    # ids from here to the end of the sequence
    left = np.repeat(lengths, lengths) - _places(lengths)
    counted = [_count(flat, left, length, vocabulary_size) for length in range(1, order + 1)]
    del flat, left
    if order == 1:
        return NGram(order, vocabulary_size, _plain(*counted[0], vocabulary_size), ())
    for k in range(order - 1):
        counted[k] = _distinct_before(counted[k + 1][0], *counted[k], k + 1, vocabulary_size)
    longer: list[_Order] = []
    while len(counted) > 1:  # the highest order takes most and goes first
        longer.insert(0, _discounted(*counted.pop(), vocabulary_size))
    unigram = _interpolated_unigram(*counted[0], vocabulary_size)
    return NGram(order, vocabulary_size, unigram, tuple(longer))


def _count(
    flat: np.ndarray, left: np.ndarray, length: int, base: int
) -> tuple[np.ndarray, np.ndarray]:
    """Every n-gram of `length` ids within a sequence: its key, in order, and its count."""
    begins = np.flatnonzero(left >= length)
    # a column at a time: all of them together would be most of what this takes
    return np.unique(_keys((flat[begins + i] for i in range(length)), base), return_counts=True)


def _distinct_before(
    longer: np.ndarray, keys: np.ndarray, counts: np.ndarray, length: int, base: int
) -> tuple[np.ndarray, np.ndarray]:
    """Keys of `length` ids with the number of distinct ids before each.

    Those that start with bos keep their counts.
    """
    endings, before = np.unique(longer % base**length, return_counts=True)
    adjusted = np.where(keys // base ** (length - 1) == BOS, counts, 0)
    adjusted[np.searchsorted(keys, endings)] = before
    return keys, adjusted


def _plain(keys: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    smoothed = np.ones(size)
    smoothed[keys] += counts
    smoothed[[PAD, BOS]] = 0
    return (smoothed / smoothed.sum()).astype(np.float32)


def _interpolated_unigram(keys: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    """Discounted shares of the distinct words before each id, and the rest spread evenly over all
    ids that can be next.
    """
    possible = keys != BOS
    keys, counts = keys[possible], counts[possible]
    given_up = discounts(counts)
    unigram = np.full(size, given_up.sum() / (size - 2))
    unigram[keys] += counts - given_up
    unigram[[PAD, BOS]] = 0
    return (unigram / counts.sum()).astype(np.float32)


def _discounted(keys: np.ndarray, counts: np.ndarray, base: int) -> _Order:
    contexts, start = _runs(keys // base)
    sizes = np.diff(start, append=len(keys))
    totals = np.add.reduceat(counts, start)
    given_up = discounts(counts)
    return _Order(
        contexts=contexts,
        start=np.append(start, len(keys)),
        words=(keys % base).astype(np.int32),
        probabilities=((counts - given_up) / np.repeat(totals, sizes)).astype(np.float32),
        rest=(np.add.reduceat(given_up, start) / totals).astype(np.float32),
    )


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each of these values, which are in order, once, and where it begins."""
    start = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    return values[start], start


def discounts(counts: np.ndarray) -> np.ndarray:
    """What each count gives up, by how many n-grams occur once, twice, three and four times.

    Source: Chen and Goodman 1998, equation 26.
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == i)) for i in (1, 2, 3, 4))
    by_count = np.array(_FALLBACK)
    if n1 and n2 and n3 and n4:
        y = n1 / (n1 + 2 * n2)
        estimated = np.array([1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
        if (estimated > 0).all():
            by_count = estimated
    return by_count[np.minimum(counts, 3) - 1]


def _keys(columns: Iterable[np.ndarray], base: int) -> np.ndarray:
    """Ids as digits, the first the most significant: int64 [n]. There is one column or more."""
    rest = iter(columns)
    key = next(rest).astype(np.int64)
    for column in rest:
        key *= base
        key += column
    return key


def _places(sizes: np.ndarray) -> np.ndarray:
    """0, 1, ... within each of consecutive groups of these sizes."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
