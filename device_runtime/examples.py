"""Examples: utterances -> rows of token ids that a train step reads.

A row holds `length + 1` ids: its first `length` are the inputs, the same shifted by one are the
targets, and padding (0) is masked out. An utterance longer than one row continues in the next,
which starts with the last token already seen.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from device_runtime.text import BOS, EOS, FIRST_WORD, OOV, PAD


def rows(utterances: Iterable[Sequence[int]], length: int) -> NDArray[np.int32]:
    """Token ids of utterances (no bos, no eos) as int32 [rows, length + 1], padded with 0.

    >>> rows([[7, 8, 9]], 2).tolist()
    [[1, 7, 8], [8, 9, 2]]
    """
    pieces = []
    for utterance in utterances:
        sequence = [BOS, *utterance, EOS]
        pieces += [
            sequence[start : start + length + 1] for start in range(0, len(sequence) - 1, length)
        ]
    padded = np.full((len(pieces), length + 1), PAD, np.int32)
    for row, ids in zip(padded, pieces, strict=True):
        row[: len(ids)] = ids
    return padded


def words(rows: NDArray[np.int32]) -> int:
    """How many target words rows hold: of the vocabulary or unknown, no padding or punctuation.

    >>> words(np.array([[BOS, OOV, FIRST_WORD], [FIRST_WORD, EOS, PAD]]))
    2
    """
    targets = rows[:, 1:]
    return int(np.count_nonzero((targets >= FIRST_WORD) | (targets == OOV)))


def messages(rows: NDArray[np.int32]) -> NDArray[np.int64]:
    """Which message each row belongs to, int64 [rows], of rows in the order of `rows`.

    >>> messages(np.array([[BOS, 9], [9, EOS], [BOS, 8]])).tolist()
    [1, 1, 2]
    """
    return np.cumsum(rows[:, 0] == BOS)


def batches(
    examples: NDArray[np.int32], size: int, epochs: int, rng: np.random.Generator
) -> Iterable[NDArray[np.int32]]:
    """Shuffled batches of exactly `size` rows, int32 [size, length + 1]; the last of an epoch is
    filled with empty rows.
    """
    for _ in range(epochs):
        order = rng.permutation(len(examples))
        for start in range(0, len(order), size):
            batch = np.full((size, examples.shape[1]), PAD, np.int32)
            chosen = examples[order[start : start + size]]
            batch[: len(chosen)] = chosen
            yield batch
