import numpy as np
import pytest

from device_runtime.bundle import TOKENIZER, Bundle
from device_runtime.errors import VocabularyError
from device_runtime.predictor import Predictor
from device_runtime.text import is_word
from model import network
from model.vocabulary import build_unigram


@pytest.fixture(scope="module")
def predictor(tiny_bundle):
    return Predictor(tiny_bundle)


def test_three_words_best_first_and_never_punctuation(predictor):
    strip = predictor.suggest("i will see")
    assert len({s.word for s in strip}) == 3
    assert all(is_word(s.word) for s in strip)
    assert [s.probability for s in strip] == sorted((s.probability for s in strip), reverse=True)


def test_probabilities_are_those_of_the_network(predictor, tiny_bundle, tiny_checkpoint):
    ids = np.array([tiny_bundle.vocabulary.encode("i will see")])
    exact = np.exp(network.log_probs(tiny_checkpoint.weights, network.forward(tiny_checkpoint.weights, ids)[0])[-1])
    for suggestion in predictor.suggest("i will see"):
        assert suggestion.probability == pytest.approx(exact[tiny_bundle.vocabulary.id(suggestion.word)], rel=0.1)


def test_a_prefix_gives_the_words_that_start_so_and_their_shares_sum_to_one(predictor):
    strip = predictor.suggest("they said", "TO")
    assert {s.word for s in strip} == {"to", "tomorrow"}
    assert sum(s.probability for s in strip) == pytest.approx(1)
    assert predictor.suggest("they said", "xq") == []


def test_typing_on_gives_what_starting_anew_gives(predictor, tiny_bundle):
    for context in ("", "i", "i will", "i will see", "you like", "i will see qwertz my"):
        assert predictor.suggest(context) == Predictor(tiny_bundle).suggest(context)


def test_a_bundle_of_pieces_is_refused_before_its_graph_is_opened(tiny_bundle):
    pieces = build_unigram([["the", "cat"]], size=40)
    bundle = Bundle(tiny_bundle.path, tiny_bundle.manifest, {TOKENIZER: pieces.model})  # no graph
    with pytest.raises(VocabularyError, match="the strip of a device needs whole words"):
        Predictor(bundle)
