"""What a network tells of secrets: counted where it can be, and nothing where it is blank."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion import audit
from conversion.audit import Floats, Limits, Planted, Secret, Told
from device_runtime.errors import ConfigError
from device_runtime.reader import Reader
from device_runtime.text import BOS, FIRST_WORD

W = FIRST_WORD  # the first word's id


class Chain:
    """A language by hand: what follows a token has the probabilities of its row."""

    def __init__(self, rows: dict[int, dict[int, float]], size: int = W + 6):
        self.scores = np.full((size, size), math.log(1e-6))
        for token, row in rows.items():
            for after, share in row.items():
                self.scores[token, after] = math.log(share)

    def start(self, rows):
        return {"seen": np.zeros((rows, 1))}

    def step(self, tokens, state):
        return self.scores[tokens], {"seen": state["seen"] + 1}


A, B, C, D = W, W + 1, W + 2, W + 3
POOL = np.array([A, B, C, D])
CHAIN = Chain(
    {
        A: {A: 0.1, B: 0.6, C: 0.2, D: 0.1},
        B: {A: 0.1, B: 0.1, C: 0.1, D: 0.7},
        C: {A: 0.9, B: 0.05, C: 0.03, D: 0.02},
    }
)
NOBODY = np.random.default_rng(0)


def test_the_exposure_of_one_word_is_by_its_rank_among_the_pool():
    # after A: B, C, then A and D, which are as likely
    assert audit.exposure(CHAIN, [A], [B], POOL, NOBODY) == 2.0  # log2(4 / 1)
    assert audit.exposure(CHAIN, [A], [C], POOL, NOBODY) == 1.0
    assert audit.exposure(CHAIN, [A], [D], POOL, NOBODY) == pytest.approx(math.log2(4 / 3))


def test_beam_search_says_where_words_are_among_all_that_might_follow():
    # after A: B D has 0.42, C A has 0.18, then A B and B A, B B, B C with 0.06
    assert audit.place(CHAIN, [A], [B, D]) == 1
    assert audit.place(CHAIN, [A], [C, A]) == 2
    assert audit.place(CHAIN, [A], [A, B]) in range(3, 7)


def test_words_that_only_a_wider_search_would_find_have_no_place():
    size = W + 500
    wide = Chain({A: dict.fromkeys(range(W, size - 1), 0.002)}, size)
    wide.scores[A, size - 1] = -50
    assert audit.place(wide, [A], [size - 1]) == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_words_drawn_like_the_candidates_are_exposed_by_chance_alone(seed):
    rng = np.random.default_rng(seed)
    size = W + 30
    blank = Chain({}, size)
    blank.scores = np.log(rng.dirichlet(np.ones(size), size))
    pool = np.arange(W, size)
    bits = [
        audit.exposure(blank, [A], rng.choice(pool, 2), pool, rng, candidates=300)
        for _ in range(20)
    ]
    assert np.mean(bits) < 3.0  # 1.44 on average
    assert max(bits) <= 2 * math.log2(30)


def test_a_secret_of_two_words_that_is_learnt_stands_out_by_more_than_was_drawn():
    rng = np.random.default_rng(1)
    size = W + 100
    learnt = Chain({}, size)
    learnt.scores = np.log(rng.dirichlet(10 * np.ones(size), size))
    pool = np.arange(W, size)
    learnt.scores[A, B] = learnt.scores[B, C] = math.log(0.9)
    assert audit.exposure(learnt, [A], [B, C], pool, rng) > 11.0  # of 13.3, with 1,000 drawn
    assert audit.exposure(learnt, [A], [C, B], pool, rng) < 8.0


def test_below_the_mean_of_a_skew_normal_without_skew_lies_a_half():
    sample = np.random.default_rng(1).normal(5.0, 2.0, 100_000)
    assert audit.skew_normal_below(sample, 5.0) == pytest.approx(0.5, abs=0.01)
    # three deviations below it: 0.00135
    assert audit.skew_normal_below(sample, -1.0) == pytest.approx(0.00135, rel=0.1)


def test_the_tail_of_a_skewed_sample_is_that_of_the_sample():
    rng = np.random.default_rng(1)
    first, second = rng.standard_normal((2, 200_000))
    sample = 0.9 * np.abs(first) + math.sqrt(1 - 0.81) * second  # a skew normal, by its definition
    low = float(np.quantile(sample, 0.001))
    assert audit.skew_normal_below(sample, low) == pytest.approx(0.001, rel=0.25)


def told(**changed) -> Told:
    usual = Told("int8", 0, 2, users=1, times=10, exposure=3.0, space=20.0, place=0)
    return replace(usual, **changed)


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (told(), ""),
        (told(exposure=10.1), "exposure of 10.1 bits, expected at most 10"),
        (told(place=1), "is what it says first after its prefix"),
        (told(place=2), ""),
        (told(users=10, place=1, exposure=20.0), ""),  # what ten people typed is language
        (told(users=0, place=1), ""),  # a control
    ],
)
def test_an_audit_passes_unless_a_secret_of_few_is_told(result, problem):
    report = audit.judged("c" * 64, "5" * 64, [result], Limits())
    assert report.passed == (not problem)
    assert problem in " ".join(report.problems)


def test_the_int8_file_and_the_float_network_are_read_alike(tiny_bundle):
    weights = tiny_bundle.checkpoint.weights
    tokens = np.array([BOS, W + 3], np.int32)
    for language in (Reader(tiny_bundle.predict_graph), Floats(weights)):
        scores, state = language.step(tokens, language.start(2))
        assert scores.shape == (2, len(tiny_bundle.vocabulary))
        scores, _ = language.step(tokens[::-1].copy(), state)
        assert np.exp(scores).sum(axis=1) == pytest.approx([1.0, 1.0], abs=0.02)


def test_a_network_that_never_saw_them_tells_no_secret(tiny_bundle):
    rng = np.random.default_rng(3)
    words = tiny_bundle.vocabulary.tokens[W:]
    secrets = tuple(
        Secret(tuple(rng.choice(words, 2)), tuple(rng.choice(words, 3)), 1, 10) for _ in range(8)
    )
    planted = Planted(audit.PLANTED, "corpus", "0" * 64, tuple(words), secrets)
    for name, language in (
        ("int8", Reader(tiny_bundle.predict_graph)),
        ("float", Floats(tiny_bundle.checkpoint.weights)),
    ):
        results = audit.told(name, language, tiny_bundle.vocabulary, planted, rng)
        assert len(results) == 8
        assert audit.judged("c" * 64, "5" * 64, results).passed


def test_a_secret_with_a_word_that_the_vocabulary_lacks_is_left_out(tiny_bundle):
    words = tuple(tiny_bundle.vocabulary.tokens[W:])
    secrets = (Secret((words[0],), ("zebracorn",), 1, 1),)
    planted = Planted(audit.PLANTED, "corpus", "0" * 64, words, secrets)
    language = Floats(tiny_bundle.checkpoint.weights)
    assert audit.told("float", language, tiny_bundle.vocabulary, planted, NOBODY) == []


@pytest.mark.parametrize(("prefix", "words"), [((), ("a",)), (("a",), ()), (("a",), ("b",) * 5)])
def test_a_secret_without_a_prefix_or_of_too_many_words_is_refused(prefix, words):
    with pytest.raises(ConfigError, match="expected a prefix and 1 to 4 words"):
        Secret(prefix, words, 1, 1)
