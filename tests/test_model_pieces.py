"""Whole words from networks of pieces, small enough to list every word."""

import itertools
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from device_runtime.pieced import Places, complete_of
from device_runtime.text import BOS, CLASSES, EOS, FIRST_WORD, Vocabulary, tokenise
from model.corpus import Utterance
from model.evaluation import engine_of, evaluate, network_engine
from model.measures import predictions_file
from model.network import NetworkSize, forward, initial_weights, log_probs
from model.pieces import Decoder, Reads
from model.vocabulary import build, build_unigram
from tests.four_languages import SENTENCES

# of "a b ab bc ." fifty times, by SentencePiece 0.2.0: another version may train others
PIECES = Vocabulary.read(Path(__file__).parent / "golden" / "letters.model")
START = {PIECES.tokens[i]: i for i in range(FIRST_WORD, PIECES.first_inner)}
INNER = {PIECES.tokens[i]: i for i in range(PIECES.first_inner, len(PIECES))}
LETTERS, LONGEST = "abc", 6
WORDS = [
    "".join(letters)
    for length in range(1, LONGEST + 1)
    for letters in itertools.product(LETTERS, repeat=length)
]
SURE = 1000  # paths: more than any search here needs
SEEDS = (2, 4, 5, 7, 12, 15)  # of networks whose likeliest words are short


def always(**probabilities: float) -> dict[str, np.ndarray]:
    """A network that gives the next piece these probabilities whatever came before: `a_` starts a
    word, `_a` goes on with one.
    """
    weights = initial_weights(NetworkSize(1, 1), PIECES, np.random.default_rng(0))
    weights["projection"][:] = 0
    weights["output_bias"][:] = -40
    for name, probability in probabilities.items():
        place = {"eos": EOS, "stop": PIECES.id(".")}.get(name) or (
            INNER[name[1:]] if name.startswith("_") else START[name[:-1]]
        )
        weights["output_bias"][place] = math.log(probability)
    return weights


def drawn(seed: int) -> dict[str, np.ndarray]:
    """A random network whose words are made of a, b and c, and in which much depends on what came
    before.
    """
    weights = initial_weights(NetworkSize(4, 6), PIECES, np.random.default_rng(seed))
    weights["embedding"] *= 4
    weights["projection"] *= 3
    weights["output_bias"][:] = [-60 if set(token) - set(LETTERS) else 0 for token in PIECES.tokens]
    weights["output_bias"][:FIRST_WORD] = -2  # words are rather spelled on than ended
    return weights


def log_probability(weights: dict[str, np.ndarray], context: list[str], word: str) -> float:
    return log_probabilities(weights, context, [word])[0][word]


def log_probabilities(
    weights: dict[str, np.ndarray], context: list[str], words: list[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Of whole words after a context: each one's pieces, then that it is complete, given that the
    context is. And of the pieces alone.
    """
    before, whole, begun = [BOS, *PIECES.ids(context)], {}, {}
    for length in {len(PIECES.spelling(word)) for word in words}:
        alike = [word for word in words if len(PIECES.spelling(word)) == length]
        ids = np.array([[*before, *PIECES.spelling(word)] for word in alike])
        # [words, places, pieces]
        scores = np.array(
            [log_probs(weights, states) for states in forward(weights, ids)], np.float64
        )
        complete = np.log(np.exp(scores[:, :, : PIECES.first_inner]).sum(axis=2))
        places = np.arange(len(before), ids.shape[1])
        pieces = (
            scores[np.arange(len(ids))[:, None], places - 1, ids[:, places]].sum(axis=1)
            - complete[:, len(before) - 1]
        )
        begun |= dict(zip(alike, pieces.tolist(), strict=True))
        whole |= dict(zip(alike, (pieces + complete[:, -1]).tolist(), strict=True))
    return whole, begun


def listed(
    weights: dict[str, np.ndarray], context: list[str], prefix: str = ""
) -> list[tuple[str, float]]:
    """The three likeliest words by scoring every word of up to LONGEST letters."""
    whole, begun = log_probabilities(
        weights, context, [word for word in WORDS if word.startswith(prefix)]
    )
    best = sorted(whole.items(), key=lambda spelling: -spelling[1])[:3]
    # so that no longer word is likelier
    assert max(score for word, score in begun.items() if len(word) == LONGEST) < best[-1][1]
    return best


def test_the_toy_has_pieces_that_start_words_and_pieces_within_them():
    assert {"a", "b"} <= START.keys() and {"a", "b", "c"} <= INNER.keys()
    assert PIECES.spelling("acc") == (START["a"], INNER["c"], INNER["c"])


def test_a_word_is_as_likely_as_its_pieces_and_its_end():
    # a word is complete with probability 0.8, which a first piece is divided by: a 0.5 / 0.8 * 0.8,
    # ac 0.5 / 0.8 * 0.2 * 0.8, b 0.2, bc 0.04
    decoder = Decoder(always(a_=0.5, b_=0.2, _c=0.2, eos=0.1), PIECES)
    (words,) = decoder.best([[]])
    assert [(word, pytest.approx(math.exp(score))) for word, score in words] == [
        ("a", 0.5),
        ("b", 0.2),
        ("ac", 0.1),
    ]
    (words,) = decoder.best([["b"]], ["ac"])
    assert [(word, pytest.approx(math.exp(score))) for word, score in words] == [
        ("ac", 0.1),
        ("acc", 0.02),
        ("accc", 0.004),
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_beam_finds_the_words_that_scoring_every_word_finds(seed):
    weights = drawn(seed)
    contexts = [[], ["ab", "."], ["ccb", "a", "bc"]]
    prefixes = ["", "a", "b", "cc", "abc"]
    asked = list(itertools.product(contexts, prefixes))
    result = Decoder(weights, PIECES, width=SURE).best(
        [context for context, _ in asked], [prefix for _, prefix in asked]
    )
    for (context, prefix), words in zip(asked, result, strict=True):
        expected = listed(weights, context, prefix)
        assert [word for word, _ in words] == [word for word, _ in expected]
        assert [score for _, score in words] == pytest.approx(
            [score for _, score in expected], abs=1e-4
        )


def test_a_word_may_be_likelier_than_the_shorter_one_its_pieces_go_through():
    prefixes = ["", "a", "b", "cc"]
    result = [
        words
        for seed in SEEDS
        for words in Decoder(drawn(seed), PIECES).best(
            [["ccb", "a", "bc"]] * len(prefixes), prefixes
        )
    ]
    pairs = [
        (better, worse)
        for words in result
        for (better, _), (worse, _) in itertools.combinations(words, 2)
    ]
    assert any(better.startswith(worse) for better, worse in pairs)


def test_a_narrow_beam_finds_less_but_never_another_probability():
    weights = drawn(4)
    for width in (1, 2, 4, 8):
        (words,) = Decoder(weights, PIECES, width=width).best([["ab"]])
        assert len(words) <= width
        assert [score for _, score in words] == pytest.approx(
            [log_probability(weights, ["ab"], word) for word, _ in words], abs=1e-4
        )


def test_probabilities_of_an_utterances_tokens_multiply_to_that_of_its_pieces():
    weights, tokens = drawn(2), ["abc", "a", ".", "ccab", ".", "b"]
    (offers,) = Decoder(weights, PIECES).offers([tokens])
    pieces = [BOS, *PIECES.ids(tokens)]
    scores = log_probs(weights, forward(weights, np.array([pieces]))[0])
    complete = np.log(np.exp(scores[:, : PIECES.first_inner]).sum(axis=1))
    # a class needs no end, but what follows it is taken among what may: that much is lost after
    # each
    after_classes = sum(complete[i] for i, piece in enumerate(pieces) if piece == PIECES.id("."))
    expected = (
        scores[np.arange(len(pieces) - 1), pieces[1:]].sum()
        + complete[-1]
        - complete[0]
        - after_classes
    )
    assert offers.own.sum() == pytest.approx(expected, abs=1e-4)
    assert offers.own[0] == pytest.approx(log_probability(weights, [], "abc"), abs=1e-4)
    assert offers.own[3] == pytest.approx(log_probability(weights, tokens[:3], "ccab"), abs=1e-4)
    assert offers.classes[2, CLASSES.index(".")] == pytest.approx(offers.own[2], abs=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_keystrokes_are_the_letters_typed_until_the_three_completions_have_the_word(seed):
    weights, utterances = drawn(seed), [["ab", "cba", ".", "a", "bbcc"], ["c"], ["acab", "abc"]]
    decoder = Decoder(weights, PIECES, width=SURE)
    (offers,) = decoder.offers(utterances)
    expected = []
    for tokens in utterances:
        for place, word in enumerate(tokens):
            shown = [
                any(word == result for result, _ in listed(weights, tokens[:place], word[:typed]))
                for typed in range(len(word))
                if word != "."
            ]
            expected.append(
                0 if word == "." else shown.index(True) + 1 if True in shown else len(word) + 1
            )
    assert offers.keys.tolist() == expected
    assert [tuple(word for word, _ in words) for words in offers.strip] == [
        tuple(word for word, _ in listed(weights, tokens[:place]))
        for tokens in utterances
        for place in range(len(tokens))
    ]


def test_utterances_of_all_lengths_are_scored_as_one_by_one(monkeypatch):
    # some utterances in a chunk, the longest alone
    monkeypatch.setattr("model.pieces.CHUNK", 40 * len(PIECES))
    weights, rng = drawn(2), np.random.default_rng(0)
    utterances = [
        [WORDS[i] for i in rng.integers(len(WORDS), size=size)] for size in (1, 5, 2, 30, 1, 3)
    ]
    together = list(Decoder(weights, PIECES).offers(utterances))
    alone = [
        offers for tokens in utterances for offers in Decoder(weights, PIECES).offers([tokens])
    ]
    assert 1 < len(together) < len(utterances)
    for name in ("own", "keys", "known"):
        assert np.allclose(
            *(
                np.concatenate([getattr(offers, name) for offers in each])
                for each in (together, alone)
            ),
            atol=1e-4,
        )
    assert [[word for word, _ in words] for offers in together for words in offers.strip] == [
        [word for word, _ in words] for offers in alone for words in offers.strip
    ]


# --- by the protocol
# ------------------------------------------------------------------------------------------------


def users(**texts: list[str]) -> dict[str, list[Utterance]]:
    return {
        user: [Utterance(text, tuple(tokenise(text))) for text in own]
        for user, own in texts.items()
    }


def test_a_word_never_seen_whole_counts_if_it_is_spelled_right():
    weights = always(a_=0.5, b_=0.2, _c=0.2, eos=0.05, stop=0.05)
    total = evaluate(Decoder(weights, PIECES), users(ann=["a ac. acc zebra"]), PIECES).total
    # the strip is always a, b, ac; acc comes after "ac" only, with "acc" the first completion of a,
    # ac... : a b ac | a ac acc | ac acc accc
    assert (total.targets, total.top1, total.top3, total.in_vocabulary) == (4, 1, 2, 4)
    assert (total.first, total.first_top1) == (1, 1)
    assert total.keys == 1 + 1 + 2 + 6
    assert total.letters == 2 + 3 + 4 + 6
    assert total.nll == pytest.approx(
        -math.log(0.5 * 0.1 * 0.02) - log_probability(weights, [], "zebra")
    )
    # with punctuation: a 0.5, b 0.2, ac 0.1, stop 0.05 / 0.8
    assert (total.tokens, total.tokens_top1, total.tokens_top3) == (5, 1, 2)


def test_a_class_competes_with_whole_words():
    weights = always(a_=0.3, b_=0.1, _c=0.2, eos=0.1, stop=0.3)
    total = evaluate(Decoder(weights, PIECES), users(ann=["a. b. ac"]), PIECES).total
    # stop 0.3 / 0.8, a 0.3, b 0.1, ac 0.06
    assert (total.tokens, total.tokens_top1, total.tokens_top3) == (5, 2, 4)
    assert (total.targets, total.top1, total.top3) == (3, 1, 3)


def test_predictions_of_pieces_are_whole_words_with_their_log_probability(tmp_path):
    weights, path = always(a_=0.5, b_=0.2, _c=0.2, eos=0.1), tmp_path / "predictions.jsonl"
    with predictions_file(path) as write:
        evaluate(Decoder(weights, PIECES), users(ann=["b acc"]), PIECES, on_prediction=write)
    _, line = map(json.loads, path.read_text().splitlines())
    assert line.pop("logp") == pytest.approx(math.log(0.02))
    assert line == {
        "user": "ann",
        "context": ["b"],
        "target": "acc",
        "top3": ["a", "b", "ac"],
        "keys": 2,
        "in_vocab": True,
    }


def test_a_vocabulary_of_words_is_scored_alike_by_engine_and_decoder():
    vocabulary = build([["the", "the", "cat", "sat", "dog", ".", "don't", "then"]] * 3, size=6)
    people = users(
        ann=["the cat sat. aardvark then", "dog"], bob=["don't the cat", "then aardvark"]
    )
    for seed in range(5):
        weights = initial_weights(NetworkSize(4, 6), vocabulary, np.random.default_rng(seed))
        by_engine, by_decoder = (
            evaluate(system, people, vocabulary)
            for system in (network_engine(weights), Decoder(weights, vocabulary, width=SURE))
        )
        assert asdict(by_decoder) == {
            "users": {
                user: pytest.approx(asdict(counts)) for user, counts in by_engine.users.items()
            },
            "total": pytest.approx(asdict(by_engine.total)),
            "open_vocabulary": False,
        }


def test_the_vocabulary_decides_how_a_network_is_scored():
    weights = always(a_=0.5, eos=0.5)
    assert isinstance(engine_of(weights, PIECES), Decoder)
    assert evaluate(engine_of(weights, PIECES), users(ann=["a"]), PIECES).open_vocabulary
    assert not isinstance(engine_of(weights, build([["a"]])), Decoder)
    with pytest.raises(ValueError, match="scored by a decoder"):
        evaluate(network_engine(weights), users(ann=["a"]), PIECES)


def followed(vocabulary: Vocabulary, utterances: list[list[str]]) -> Reads:
    """A network that knows what followed each piece in some utterances, and nothing else."""
    counts = np.full((len(vocabulary), len(vocabulary)), 1e-4)
    for tokens in utterances:
        ids = [BOS, *vocabulary.ids(tokens), EOS]
        np.add.at(counts, (ids[:-1], ids[1:]), 1)
    logs = np.log(counts / counts.sum(axis=1, keepdims=True))

    def step(tokens: np.ndarray, state: dict[str, np.ndarray]) -> Places:
        return Places(state, logs[tokens], complete_of(logs[tokens], vocabulary.first_inner))

    return Reads(lambda rows: {"nothing": np.zeros((rows, 1))}, step)


def test_the_pieces_of_a_run_are_targets_and_no_space_is_counted_after_them():
    tokens = [tokenise(text) for text in SENTENCES]
    vocabulary = build_unigram(tokens, 260)
    decoder = Decoder(followed(vocabulary, tokens), vocabulary)
    parts = decoder.parts(tokenise("我们今天想吃饭, ok"))
    assert "".join(part.text for part in parts) == "我们今天想吃饭,ok"
    assert [part.within for part in parts[:-2]] == [False, *[True] * (len(parts) - 3)]
    assert [part.of_run for part in parts[-2:]] == [False, False]
    assert all(part.text for part in parts)

    users = {"ann": tuple(Utterance(text, tuple(tokenise(text))) for text in SENTENCES[:450:9])}
    total = evaluate(decoder, users, vocabulary).total
    targets = [part for u in users["ann"] for part in decoder.parts(u.tokens) if part.of_run]
    assert total.targets == total.in_vocabulary == len(targets)
    assert total.letters == sum(len(part.text) for part in targets)
    assert 0 < total.top1 <= total.top3 <= total.targets
    assert total.keys < total.letters


def test_a_run_with_an_unknown_letter_is_one_target_that_is_missed():
    tokens = [tokenise(text) for text in SENTENCES]
    vocabulary = build_unigram(tokens, 260)
    decoder = Decoder(followed(vocabulary, tokens), vocabulary)
    users = {"ann": (Utterance("我龘想", ("我龘想",)),)}
    total = evaluate(decoder, users, vocabulary).total
    assert (total.targets, total.in_vocabulary, total.top3) == (1, 0, 0)
    assert total.keys == total.letters
