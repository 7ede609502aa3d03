"""The vocabulary we write is one that SentencePiece reads."""

import math
from collections import Counter

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime.errors import VocabularyError
from device_runtime.text import BOS, CLASSES, EOS, FIRST_WORD, OOV, PAD, SPECIALS, is_word, tokenise
from model.vocabulary import ALPHABET, NEVER, alphabet_of, build, build_unigram

UTTERANCES = [("i", "see", "you", "."), ("you", "see", "<num>"), ("you", "!")]
TALK = [
    *UTTERANCES,
    ("i", "don't", "see", "the", "2day", "show"),
    ("you", "don't", "..."),
    ("2day", "you", "show"),
    ("show", "2day"),
] * 20
PIECES = build_unigram(TALK, size=len(ALPHABET) + 6)


def test_specials_and_classes_come_first_then_words_by_count_and_alphabet():
    vocabulary = build(UTTERANCES, size=10)
    assert vocabulary.tokens == [*SPECIALS, *CLASSES, "you", "see", "i"]


def test_the_size_counts_words_only_and_the_least_frequent_fall_out():
    vocabulary = build(UTTERANCES, size=2)
    assert len(vocabulary) == FIRST_WORD + 2
    assert vocabulary.ids(["you", "see", "i", "<num>"]) == [
        FIRST_WORD,
        FIRST_WORD + 1,
        OOV,
        4 + CLASSES.index("<num>"),
    ]


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


ASCII = st.characters(max_codepoint=0x7F)


@given(
    st.lists(
        st.sampled_from(
            ["see", "you", "i", "don't", "2day", "unheard", "?", "...", "<sym>", "<anon>"]
        )
    )
)
def test_plain_sentencepiece_encodes_tokenised_text_to_our_ids(tokens):
    vocabulary = build([*UTTERANCES, ("don't", "2day")], size=10)
    plain = sentencepiece.SentencePieceProcessor(model_proto=vocabulary.model)
    ours = vocabulary.ids(tokens)
    # SentencePiece joins unknown neighbours
    joined = [
        i for place, i in enumerate(ours) if not (i == OOV and place and ours[place - 1] == OOV)
    ]
    assert plain.encode(" ".join(tokens)) == joined


def test_plain_sentencepiece_knows_the_special_ids():
    plain = sentencepiece.SentencePieceProcessor(model_proto=build(UTTERANCES).model)
    assert (plain.pad_id(), plain.bos_id(), plain.eos_id(), plain.unk_id()) == (PAD, BOS, EOS, OOV)
    assert (
        plain.is_control(PAD)
        and plain.is_control(BOS)
        and plain.is_control(EOS)
        and plain.is_unknown(OOV)
    )
    assert plain.decode(plain.encode("i see you .")) == "i see you ."


@given(st.lists(st.text().map(tokenise), max_size=8))
def test_any_text_gives_a_vocabulary_or_a_clear_error(utterances):
    counts = Counter(token for tokens in utterances for token in tokens if is_word(token))
    if counts:
        assert set(build(utterances).tokens[FIRST_WORD:]) == set(counts)
    else:
        with pytest.raises(VocabularyError, match="the utterances have no word"):
            build(utterances)


def test_a_size_below_one_is_refused():
    with pytest.raises(VocabularyError, match="at least 1, found 0"):
        build(UTTERANCES, size=0)


# --- pieces
# ------------------------------------------------------------------------------------------------


@pytest.mark.tensorflow  # where models are trained: another SentencePiece has one piece fewer here
def test_pieces_that_start_words_come_before_inner_ones_and_the_alphabet_is_among_them():
    assert PIECES.tokens[:FIRST_WORD] == [*SPECIALS, *CLASSES]
    starts, inner = (
        PIECES.tokens[FIRST_WORD : PIECES.first_inner],
        PIECES.tokens[PIECES.first_inner :],
    )
    # frequent words are pieces, and a bare start lets any letter follow
    assert {"", "you", "see"} <= set(starts)
    assert set("abcdefghijklmnopqrstuvwxyz0123456789'") <= set(inner)
    assert len(starts) + len(inner) == len(ALPHABET) + 6


def test_a_small_corpus_gives_fewer_pieces_and_a_small_size_the_best_of_them():
    assert build_unigram(TALK, size=1000).model == PIECES.model  # these utterances have no more
    fewer = build_unigram(TALK, size=len(ALPHABET) + 2)
    assert len(fewer) == FIRST_WORD + len(ALPHABET) + 2
    assert set(fewer.tokens) < set(PIECES.tokens)


def test_an_apostrophe_or_digit_does_not_cut_a_frequent_word():
    assert len(PIECES.spelling("don't")) == len(PIECES.spelling("2day")) == 1


def test_scores_of_pieces_are_smoothed_log_unigram_probabilities_of_the_targets():
    targets = Counter(i for tokens in TALK for i in PIECES.ids(tokens)) + Counter({EOS: len(TALK)})
    possible = [i for i in range(len(PIECES)) if i not in (PAD, BOS)]
    total = math.log(sum(targets.values()) + len(possible))
    assert [PIECES.log_unigram[i] for i in possible] == pytest.approx(
        [math.log(targets[i] + 1) - total for i in possible], abs=1e-5
    )
    assert PIECES.log_unigram[PAD] == PIECES.log_unigram[BOS] == NEVER


def test_the_same_utterances_in_any_order_give_the_same_pieces():
    assert build_unigram(reversed(TALK), size=len(ALPHABET) + 6).model == PIECES.model
    assert build_unigram(TALK, size=len(ALPHABET) + 4).hash != PIECES.hash


WORDS = ["see", "you", "don't", "2day", "aardvark", "rock'n'roll", "a", "z9"]


@given(st.lists(st.sampled_from([*WORDS, *CLASSES])))
def test_plain_sentencepiece_encodes_tokenised_text_to_our_pieces(tokens):
    plain = sentencepiece.SentencePieceProcessor(model_proto=PIECES.model)
    assert plain.encode(" ".join(tokens)) == PIECES.ids(tokens)
    assert plain.decode(PIECES.ids(tokens)) == " ".join(tokens)


def test_plain_sentencepiece_knows_the_special_ids_of_pieces():
    plain = sentencepiece.SentencePieceProcessor(model_proto=PIECES.model)
    assert (plain.pad_id(), plain.bos_id(), plain.eos_id(), plain.unk_id()) == (PAD, BOS, EOS, OOV)
    assert (
        plain.is_control(PAD)
        and plain.is_control(BOS)
        and plain.is_control(EOS)
        and plain.is_unknown(OOV)
    )


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text(ASCII, max_size=40).map(tokenise), max_size=8), st.integers(len(ALPHABET), 60)
)
def test_any_text_gives_pieces_that_spell_it_or_a_clear_error(utterances, size):
    tokens = [token for utterance in utterances for token in utterance]
    if any(map(is_word, tokens)):
        vocabulary = build_unigram(utterances, size)
        assert len(vocabulary) <= FIRST_WORD + size
        assert OOV not in vocabulary.ids(tokens)
    else:
        with pytest.raises(VocabularyError, match="the utterances have no word"):
            build_unigram(utterances, size)


def test_fewer_pieces_than_the_alphabet_are_refused():
    with pytest.raises(VocabularyError, match="at least 38 pieces, found 37"):
        build_unigram(TALK, size=37)


CHINESE = ["我想吃饭。", "我想吃面。", "你想吃饭吗？", "我们去吃饭吧。", "他们想去北京。"]
THAI = ["ฉันอยากกินข้าว", "คุณอยากกินข้าวไหม", "เราไปกินข้าวกัน"]
OTHERS = ["привет как дела", "नमस्ते आप कैसे हैं", "γεια σου", "Kraków jest piękny"]


@pytest.mark.parametrize("text", [*CHINESE, *THAI, *OTHERS, "東京へ行きます", "ສະບາຍດີ"])
def test_words_of_any_script_in_the_corpus_are_spelled(text):
    tokens = tokenise(text)
    vocabulary = build_unigram([tokens] * 3, 200)
    assert OOV not in vocabulary.ids(tokens)
    assert "".join(vocabulary.tokens[i] for i in vocabulary.ids(tokens)) == "".join(tokens)


def test_a_run_of_several_words_is_spelled_by_its_frequent_parts():
    vocabulary = build_unigram([tokenise(text) for text in CHINESE * 5], 200)
    assert [vocabulary.tokens[i] for i in vocabulary.spelling("他们想吃饭")][-1] == "想吃饭"
    assert len(vocabulary.spelling("他们想吃饭")) < 5


def test_a_character_too_rare_to_be_covered_is_unknown_and_costs_no_piece():
    common = [tokenise("我想吃饭")] * 3000
    alphabet = alphabet_of({"我想吃饭": 3000, "龘想": 1, "ñandú": 1})
    assert alphabet[: len(ALPHABET)] == ALPHABET
    assert sorted(alphabet[len(ALPHABET) :]) == sorted("我想吃饭")
    vocabulary = build_unigram([*common, tokenise("龘想"), tokenise("ñandú")], 200)
    assert not any(set(token) & set("龘ñ") for token in vocabulary.tokens)
    assert OOV in vocabulary.spelling("龘想")


def test_a_small_corpus_is_covered_to_its_last_character():
    assert set(alphabet_of({"我": 1, "龘": 1})) == {*ALPHABET, "我", "龘"}


def test_fewer_pieces_than_the_corpus_has_characters_are_refused():
    with pytest.raises(VocabularyError, match="at least 42 pieces, found 40"):
        build_unigram([tokenise("我想吃饭")], 40)
