"""Kneser-Ney on counts small enough to work out on paper."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from device_runtime.text import BOS, EOS, OOV, PAD
from model.ngram import discounts, train

A, B, C, SIZE = 4, 5, 6, 7
TOY = [[A, B], [A, B], [A, C]]
SEQUENCES = st.lists(
    st.lists(st.integers(OOV, SIZE - 1), min_size=1, max_size=8), min_size=1, max_size=12
)


def probabilities(sequences, order, context):
    ngram = train(sequences, order, SIZE)
    return np.exp(ngram.log_probs(ngram.contexts([context])))[-1]


def test_the_unigram_is_the_share_of_each_id_with_one_added():
    shares = probabilities(TOY, 1, [BOS, A])
    # 9 targets (a 3, b 2, c 1, eos 3) and one for each of the five ids that can be next
    assert shares[[A, B, C, EOS, OOV]] == pytest.approx(np.array([4, 3, 2, 4, 1]) / 14)


def test_the_bigram_is_the_one_worked_out_by_hand():
    shares = probabilities(TOY, 2, [BOS, A])
    # too few counts to estimate discounts, so 0.5, 1 and 1.5 are given up. Distinct words before: a
    # 1, b 1, c 1, eos 2, together 5; (0.5 + 0.5 + 0.5 + 1) / 5 = 0.5 is spread over five ids
    unigram = {A: 0.1 + 0.1, B: 0.1 + 0.1, C: 0.1 + 0.1, EOS: 0.1 + 0.2, OOV: 0.1}
    # after a: b twice, c once; (1 + 0.5) / 3 is left for the unigram
    expected = {A: 0, B: (2 - 1) / 3, C: (1 - 0.5) / 3, EOS: 0, OOV: 0}
    for i, share in unigram.items():
        assert shares[i] == pytest.approx(expected[i] + 0.5 * share)


def test_an_unseen_context_falls_back_to_the_next_shorter_one():
    assert probabilities(TOY, 3, [BOS, C, A]) == pytest.approx(probabilities(TOY, 3, [BOS, OOV, A]))
    assert probabilities(TOY, 4, [BOS, B, B]) == pytest.approx(
        probabilities(TOY, 4, [BOS, C, A, B, B])
    )


def test_n_grams_at_the_start_count_occurrences_and_others_the_distinct_ids_before():
    # "a" opens all three utterances; in the trigram's middle order it still counts three, so a
    # gives up 1.5 of 3
    start = probabilities(TOY, 3, [BOS])
    unigram = 0.2
    assert start[A] == pytest.approx(1.5 / 3 + 0.5 * unigram)


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, st.integers(1, 4), st.lists(st.integers(OOV, SIZE - 1), max_size=5))
def test_probabilities_sum_to_one_after_any_context(sequences, order, context):
    shares = probabilities(sequences, order, [BOS, *context])
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    assert shares[PAD] == shares[BOS] == 0
    assert (np.delete(shares, [PAD, BOS]) > 0).all()


def by_the_definition(sequences, order, context, target):
    """Modified interpolated Kneser-Ney written as the recursion it is, with fixed discounts."""
    texts = [(BOS, *sequence, EOS) for sequence in sequences]
    raw = [
        Counter(text[i : i + n] for text in texts for i in range(len(text) - n + 1))
        for n in range(order + 1)
    ]

    def count(gram):
        if len(gram) == order or gram[0] == BOS:
            return raw[len(gram)][gram]
        return sum(longer[1:] == gram for longer in raw[len(gram) + 1])

    by_context = defaultdict(list)
    for n in range(1, order + 1):
        for gram in raw[n]:
            if gram != (BOS,):
                by_context[gram[:-1]].append(gram)

    def given_up(c):
        return (0.0, 0.5, 1.0, 1.5)[min(c, 3)]

    def probability(history):
        shorter = probability(history[1:]) if history else 1 / (SIZE - 2)
        followers = [count(gram) for gram in by_context[history]]
        if not followers:
            return shorter
        own = count((*history, target))
        return (own - given_up(own) + sum(map(given_up, followers)) * shorter) / sum(followers)

    return probability(tuple(context[max(len(context) - order + 1, 0) :]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([A, B]), min_size=1, max_size=5), min_size=1, max_size=3),
    st.integers(2, 4),
    st.data(),
)
def test_sorted_keys_give_what_the_recursion_gives(sequences, order, data):
    # three utterances of two words: only an n-gram of full order can count four, and where none
    # does the discounts are the fixed ones
    texts = [(BOS, *sequence, EOS) for sequence in sequences]
    assume(
        max(Counter(text[i : i + order] for text in texts for i in range(len(text))).values()) < 4
    )
    context = [BOS, *data.draw(st.sampled_from(sequences))]
    shares = probabilities(sequences, order, context)
    for target in (A, B, EOS, OOV):
        assert math.isclose(
            shares[target], by_the_definition(sequences, order, context, target), rel_tol=1e-4
        )


def test_discounts_are_estimated_from_the_counts_of_counts():
    # n1 = 4, n2 = 2, n3 = 1, n4 = 1, so y = 4 / 8: 1 - 2 y 2 / 4, 2 - 3 y 1 / 2 and 3 - 4 y 1 / 1
    assert discounts(np.array([1, 1, 1, 1, 2, 2, 3, 4])).tolist() == pytest.approx(
        [0.5] * 4 + [1.25] * 2 + [1.0] * 2
    )


def test_contexts_end_with_the_latest_id_and_never_cross_utterances():
    ngram = train(TOY, 3, SIZE)
    assert ngram.contexts([[BOS, A, B], [BOS, C]]).tolist() == [
        [PAD, BOS],
        [BOS, A],
        [A, B],
        [PAD, BOS],
        [BOS, C],
    ]


def test_many_contexts_at_once_score_as_one_by_one():
    ngram = train(TOY, 4, SIZE)
    contexts = ngram.contexts([[BOS, A, B], [BOS, C, A, A], [BOS, OOV]])
    alone = np.concatenate([ngram.log_probs(contexts[i : i + 1]) for i in range(len(contexts))])
    assert np.array_equal(ngram.log_probs(contexts), alone)


@pytest.mark.parametrize(
    ("sequences", "order", "size", "message"),
    [
        (TOY, 5, SIZE, "order must be"),
        ([], 2, SIZE, "no sequence"),
        (TOY, 4, 60_000, "too large for order 4"),
    ],
)
def test_what_cannot_be_counted_is_refused(sequences, order, size, message):
    with pytest.raises(ValueError, match=message):
        train(sequences, order, size)
