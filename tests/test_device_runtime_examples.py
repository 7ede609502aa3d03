"""Rows and batches that a train step reads."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.examples import batches, rows
from device_runtime.text import BOS, EOS, PAD

IDS = st.lists(st.lists(st.integers(3, 20), max_size=12), max_size=6)


def test_a_row_starts_with_bos_ends_with_eos_and_is_padded():
    assert rows([[7], [8, 9]], 4).tolist() == [[BOS, 7, EOS, PAD, PAD], [BOS, 8, 9, EOS, PAD]]


def test_a_long_utterance_goes_on_in_the_next_row_with_the_last_token_seen():
    assert rows([[4, 5, 6, 7]], 3).tolist() == [[BOS, 4, 5, 6], [6, 7, EOS, PAD]]


def test_an_empty_typing_log_gives_no_row_and_no_batch():
    empty = rows([], 5)
    assert empty.shape == (0, 6)
    assert list(batches(empty, 2, 3, np.random.default_rng(0))) == []


@given(IDS, st.integers(1, 8))
def test_every_token_is_a_target_once(utterances, length):
    targets = rows(utterances, length)[:, 1:]
    assert targets[targets != PAD].tolist() == [
        i for utterance in utterances for i in [*utterance, EOS]
    ]


@given(IDS, st.integers(1, 8), st.integers(1, 5), st.integers(1, 3))
def test_each_epoch_holds_every_row_once_and_fills_the_last_batch_with_empty_rows(
    utterances, length, size, epochs
):
    examples = rows(utterances, length)
    drawn = list(batches(examples, size, epochs, np.random.default_rng(1)))
    assert all(batch.shape == (size, length + 1) and batch.dtype == np.int32 for batch in drawn)
    seen = [row.tolist() for batch in drawn for row in batch if row.any()]
    assert sorted(seen) == sorted(examples.tolist() * epochs)


def test_the_same_seed_gives_the_same_batches():
    examples = rows([[i] for i in range(4, 30)], 3)
    first, again = (list(batches(examples, 4, 2, np.random.default_rng(5))) for _ in range(2))
    assert all(np.array_equal(left, right) for left, right in zip(first, again, strict=True))
