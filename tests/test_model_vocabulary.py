"""The vocabulary we write is one that SentencePiece reads."""

import math
from collections import Counter

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import VocabularyError
from device_runtime.text import BOS, CLASSES, EOS, FIRST_WORD, OOV, PAD, SPECIALS, tokenise
from model.vocabulary import NEVER, build

UTTERANCES = [("i", "see", "you", "."), ("you", "see", "<num>"), ("you", "!")]


def test_specials_and_classes_come_first_then_words_by_count_and_alphabet():
    vocabulary = build(UTTERANCES, size=10)
    assert vocabulary.tokens == [*SPECIALS, *CLASSES, "you", "see", "i"]


def test_the_size_counts_words_only_and_the_least_frequent_fall_out():
    vocabulary = build(UTTERANCES, size=2)
    assert len(vocabulary) == FIRST_WORD + 2
    assert vocabulary.ids(["you", "see", "i", "<num>"]) == [FIRST_WORD, FIRST_WORD + 1, OOV, 4 + CLASSES.index("<num>")]


def test_scores_are_smoothed_log_unigram_probabilities_of_the_targets():
    vocabulary = build(UTTERANCES, size=2)
    # 9 tokens and 3 ends of utterances, one added for each of 9 classes, 2 words, eos and oov
    assert vocabulary.log_unigram[vocabulary.id("you")] == pytest.approx(math.log(4 / 25))
    assert vocabulary.log_unigram[EOS] == pytest.approx(math.log(4 / 25))
    assert vocabulary.log_unigram[OOV] == pytest.approx(math.log(2 / 25))
    assert vocabulary.log_unigram[vocabulary.id("<url>")] == pytest.approx(math.log(1 / 25))
    assert vocabulary.log_unigram[PAD] == vocabulary.log_unigram[BOS] == NEVER
    possible = [score for i, score in enumerate(vocabulary.log_unigram) if i not in (PAD, BOS)]
    assert sum(map(math.exp, possible)) == pytest.approx(1)


def test_the_same_utterances_in_any_order_give_the_same_bytes():
    assert build(UTTERANCES, size=3).model == build(reversed(UTTERANCES), size=3).model
    assert build(UTTERANCES, size=3).hash != build(UTTERANCES, size=2).hash


@given(st.lists(st.sampled_from(["see", "you", "i", "don't", "2day", "unheard", "?", "...", "<sym>", "<anon>"])))
def test_plain_sentencepiece_encodes_tokenised_text_to_our_ids(tokens):
    vocabulary = build([*UTTERANCES, ("don't", "2day")], size=10)
    plain = sentencepiece.SentencePieceProcessor(model_proto=vocabulary.model)
    ours = vocabulary.ids(tokens)
    joined = [i for place, i in enumerate(ours) if not (i == OOV and place and ours[place - 1] == OOV)]  # SentencePiece joins unknown neighbours
    assert plain.encode(" ".join(tokens)) == joined


def test_plain_sentencepiece_knows_the_special_ids():
    plain = sentencepiece.SentencePieceProcessor(model_proto=build(UTTERANCES).model)
    assert (plain.pad_id(), plain.bos_id(), plain.eos_id(), plain.unk_id()) == (PAD, BOS, EOS, OOV)
    assert plain.is_control(PAD) and plain.is_control(BOS) and plain.is_control(EOS) and plain.is_unknown(OOV)
    assert plain.decode(plain.encode("i see you .")) == "i see you ."


@given(st.lists(st.text().map(tokenise), max_size=8))
def test_any_text_gives_a_vocabulary_or_a_clear_error(utterances):
    counts = Counter(token for tokens in utterances for token in tokens if token[0].isalnum())
    if counts:
        assert set(build(utterances).tokens[FIRST_WORD:]) == set(counts)
    else:
        with pytest.raises(VocabularyError, match="the utterances have no word"):
            build(utterances)


def test_a_size_below_one_is_refused():
    with pytest.raises(VocabularyError, match="at least 1, found 0"):
        build(UTTERANCES, size=0)
