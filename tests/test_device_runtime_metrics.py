"""Counts, suggestions and keystrokes, with numbers that can be checked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.metrics import (
    STRIP,
    Counts,
    interval,
    keystroke_saving,
    keystrokes,
    macro,
    oov_rate,
    perplexity,
    recall,
    top_words,
)
from device_runtime.text import FIRST_WORD, OOV
from model.vocabulary import build

# alphabetical, so ids follow this order at equal counts
WORDS = ("a", "i", "in", "is", "it", "item", "items", "to", "too", "tool")
VOCABULARY = build([WORDS], size=20)


def scores(**by_word: float) -> np.ndarray:
    """One row of log-probabilities: -9 for everything that is not named."""
    row = np.full((1, len(VOCABULARY)), -9.0, np.float32)
    for word, score in by_word.items():
        row[0, VOCABULARY.id(word)] = score
    return row


def keys(word: str, row: np.ndarray) -> int:
    ids = np.array(VOCABULARY.ids([word]))
    return int(
        keystrokes(row, [word], ids, (top_words(row) == ids).any(axis=1), VOCABULARY.alphabetical)[
            0
        ]
    )


def test_suggestions_skip_specials_and_classes_however_likely():
    row = scores(to=-1, it=-2, a=-3)
    row[0, :FIRST_WORD] = 0
    assert [VOCABULARY.tokens[i] for i in top_words(row)[0]] == ["to", "it", "a"]


def test_equal_scores_go_to_the_more_frequent_word_and_the_input_stays_as_it_was():
    row = scores()
    before = row.copy()
    assert top_words(row)[0].tolist() == [FIRST_WORD, FIRST_WORD + 1, FIRST_WORD + 2]
    assert np.array_equal(row, before)


def test_a_vocabulary_of_two_words_gives_two_suggestions():
    small = build([["yes", "no"]], size=5)
    assert top_words(np.zeros((4, len(small)))).shape == (4, 2)


def test_a_word_on_the_strip_costs_one_key():
    assert keys("items", scores(items=-1, to=-2, a=-3)) == 1


def test_letters_are_typed_until_three_completions_hold_the_word():
    row = scores(to=-1, too=-1, tool=-1, i=-2, it=-3, item=-4, items=-5)
    assert keys("item", row) == 2  # "i": i, it, item
    assert keys("items", row) == 3  # "it": it, item, items


def test_a_word_the_strip_never_shows_costs_its_letters_and_a_space():
    # "it" leaves it, item and items
    assert keys("items", scores(i=-1, it=-1, item=-1, **{"is": -1})) == 3
    assert keys("i", scores(to=-1, too=-1, tool=-1)) == 2
    assert keys("unheard", scores()) == 8


def by_the_definition(word: str, row: np.ndarray) -> int:
    """Sort all completions at every prefix, as a person would."""
    ranked = sorted(WORDS, key=lambda w: (-row[0, VOCABULARY.id(w)], VOCABULARY.id(w)))
    for typed in range(len(word)):
        if word in [w for w in ranked if w.startswith(word[:typed])][:STRIP]:
            return typed + 1
    return len(word) + 1


@given(
    st.lists(st.sampled_from([-1.0, -2.0, -3.0, -4.0]), min_size=len(WORDS), max_size=len(WORDS))
)
def test_keystrokes_of_a_batch_are_those_of_the_definition(values):
    row = scores(**dict(zip(WORDS, values, strict=True)))
    ids = np.array(VOCABULARY.ids(WORDS))
    batch = np.repeat(row, len(WORDS), axis=0)
    shown = (top_words(batch) == ids[:, None]).any(axis=1)
    assert keystrokes(batch, WORDS, ids, shown, VOCABULARY.alphabetical).tolist() == [
        by_the_definition(word, row) for word in WORDS
    ]


def test_an_unknown_word_is_not_counted_as_in_the_vocabulary():
    assert VOCABULARY.id("unheard") == OOV
    assert oov_rate(Counts(targets=4, in_vocabulary=3)) == 0.25


def test_counts_add_up_and_are_divided_once():
    total = Counts(
        targets=3, top1=1, top3=2, in_vocabulary=2, nll=math.log(4), letters=10, keys=4
    ) + Counts(targets=1, top1=1, top3=1)
    assert recall(total, "top1") == 0.5
    assert recall(total, "top3") == 0.75
    assert perplexity(total) == pytest.approx(2)
    assert keystroke_saving(total) == pytest.approx(0.6)


def test_nothing_scored_divides_by_nothing():
    assert (recall(Counts(), "top1"), keystroke_saving(Counts()), oov_rate(Counts())) == (0, 0, 0)
    assert math.isnan(perplexity(Counts()))
    assert all(math.isnan(value) for value in macro([Counts(targets=19, top1=19)], "top1"))


def test_macro_is_over_users_with_twenty_targets():
    users = [Counts(targets=20, top1=2), Counts(targets=200, top1=60), Counts(targets=19, top1=19)]
    mean, p10, p50, p90 = macro(users, "top1")
    assert (mean, p50) == (pytest.approx(0.2), pytest.approx(0.2))
    assert (p10, p90) == (pytest.approx(0.12), pytest.approx(0.28))


def test_the_interval_of_equal_users_has_no_width_and_of_unequal_ones_holds_the_mean():
    def top1(counts):
        return recall(counts, "top1")

    assert interval([Counts(targets=10, top1=3)] * 5, top1, np.random.default_rng(0)) == (
        pytest.approx(0.3),
        pytest.approx(0.3),
    )
    users = [Counts(targets=10, top1=hits) for hits in range(10)]
    low, high = interval(users, top1, np.random.default_rng(0))
    assert 0.2 < low < 0.45 < high < 0.7
