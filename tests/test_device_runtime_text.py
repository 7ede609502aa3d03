"""Text rules of protocol nwp-v1 and the vocabulary file a device reads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import VocabularyError
from device_runtime.text import (
    BOS,
    CLASSES,
    FIRST_WORD,
    OOV,
    Vocabulary,
    is_word,
    normalise,
    tokenise,
)
from model.vocabulary import build, build_unigram

PIECES = build_unigram([["the", "cat", "catalogue", "don't", "."]] * 20, size=44)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("See U 2day, don't be late!!", ["see", "u", "2day", ",", "don't", "be", "late", "!"]),
        ("really?!? yes!?", ["really", "?", "yes", "?"]),
        ("wait.. what..., ok.,", ["wait", "...", "what", "...", ",", "ok", "."]),
        ("it costs 3.50 or 1,000", ["it", "costs", "<num>", "or", "<num>"]),
        ("ring <NAME> at <###>", ["ring", "<anon>", "at", "<anon>"]),
        ("see https://a.example/b?c=1 now", ["see", "<url>", "now"]),
        ("www.example.org or me.too@example.co.uk", ["<url>", "or", "<url>"]),
        ("lol :-) \U0001f600\U0001f600 <3", ["lol", "<sym>", "<sym>", "<sym>", "<num>"]),
        ("rock'n'roll 'quoted'", ["rock'n'roll", "<sym>", "quoted", "<sym>"]),
        ("", []),
        (" \n\t", []),
    ],
)
def test_an_utterance_becomes_words_and_classes(text, tokens):
    assert tokenise(text) == tokens


def test_curly_apostrophes_backticks_and_wide_letters_are_made_plain():
    assert normalise("Don\u2019t DON`T \uff4f\uff4b") == "don't don't ok"


@given(st.text())
def test_any_text_gives_words_and_known_classes_only(text):
    for token in tokenise(text):
        assert is_word(token) != (token in CLASSES)


@given(st.text())
def test_a_word_is_read_again_as_itself(text):
    for token in filter(is_word, tokenise(text)):
        assert tokenise(token) == [token]


def test_unknown_words_are_oov_and_a_context_starts_with_bos():
    vocabulary = build([["hello", "you", "."], ["hello"]], size=10)
    assert vocabulary.tokens[FIRST_WORD:] == ["hello", "you"]
    assert vocabulary.encode("Hello there.") == [BOS, FIRST_WORD, OOV, vocabulary.id(".")]


def test_a_typed_special_token_is_never_a_special_id():
    vocabulary = build([["s", "pad", "unk"]], size=10)
    for text in ("<s>", "</s>", "<pad>", "<unk>"):
        assert min(vocabulary.encode(text)[1:]) >= OOV


def test_words_with_one_prefix_stand_side_by_side():
    words, ids = build([["the", "the", "to", "a", "they"]], size=10).alphabetical
    assert words == ["a", "the", "they", "to"]
    assert ids == [FIRST_WORD + 1, FIRST_WORD, FIRST_WORD + 2, FIRST_WORD + 3]


def test_a_file_that_is_no_vocabulary_is_refused_by_name(tmp_path):
    path = tmp_path / "tokenizer.model"
    with pytest.raises(VocabularyError, match=r"tokenizer\.model: cannot be read"):
        Vocabulary.read(path)
    path.write_bytes(b"not a model")
    with pytest.raises(VocabularyError, match=r"tokenizer\.model: not a SentencePiece model"):
        Vocabulary.read(path)


def test_a_truncated_vocabulary_is_refused():
    model = build([["hello", "you"]], size=10).model
    for length in range(0, len(model), 7):
        try:
            read = Vocabulary(model[:length])
        except VocabularyError:
            continue
        pytest.fail(f"{length} of {len(model)} bytes gave a vocabulary of {len(read)}")


def test_a_vocabulary_with_other_pieces_first_is_refused():
    model = build([["hello"]], size=10).model
    with pytest.raises(VocabularyError, match="expected the pieces <pad> <s>"):
        Vocabulary(model.replace(b"<pad>", b"<pat>"))


def test_a_vocabulary_file_says_by_itself_whether_it_holds_words_or_pieces(tmp_path):
    path = tmp_path / "tokenizer.model"
    for built, of_pieces in ((build([["the", "cat"]]), False), (PIECES, True)):
        path.write_bytes(built.model)
        read = Vocabulary.read(path)
        assert (read.of_pieces, read.tokens, read.hash) == (of_pieces, built.tokens, built.hash)


@given(st.text().map(tokenise))
def test_a_word_of_pieces_starts_once_goes_on_and_reads_as_it_was_written(tokens):
    for token in tokens:
        first, *rest = PIECES.spelling(token)
        assert "".join(PIECES.tokens[i] for i in (first, *rest)) == token
        assert (
            (FIRST_WORD <= first < PIECES.first_inner)
            if is_word(token)
            else (first < FIRST_WORD and not rest)
        )
        assert all(i >= PIECES.first_inner for i in rest)
    assert PIECES.ids(tokens) == [i for token in tokens for i in PIECES.spelling(token)]


def test_a_token_of_several_pieces_has_no_id_of_its_own():
    assert PIECES.id(".") == PIECES.spelling(".")[0]
    assert PIECES.id("cats") == OOV
    assert PIECES.encode("Cats.") == [BOS, *PIECES.spelling("cats"), PIECES.id(".")]


def test_a_typed_special_token_is_spelled_and_never_a_special_id():
    for text in ("<s>", "</s>", "<pad>", "<unk>", "s", "pad"):
        assert min(PIECES.encode(text)[1:]) > OOV


def test_whoever_needs_whole_words_refuses_pieces_and_says_what_to_do():
    build([["the"]]).require_words("the strip")
    with pytest.raises(
        VocabularyError,
        match=r"model: holds pieces of words, but the strip needs whole words; "
        r'train with tokenizer = "words"',
    ):
        PIECES.require_words("the strip")
    with pytest.raises(VocabularyError, match="needs whole words"):
        PIECES.alphabetical  # noqa: B018


def test_a_vocabulary_that_mixes_starts_and_inner_pieces_is_refused():
    # the file holds each piece as a length and its text: the first inner piece becomes the start of
    # a word, the last start an inner one
    last_start = ("\u2581" + PIECES.tokens[PIECES.first_inner - 1]).encode()
    swapped = PIECES.model.replace(
        bytes([len(last_start)]) + last_start, bytes([len(last_start)]) + b"_" * len(last_start)
    )
    assert Vocabulary(swapped).first_inner == PIECES.first_inner - 1
    first_start = ("\u2581" + PIECES.tokens[FIRST_WORD]).encode()
    mixed = PIECES.model.replace(
        bytes([len(first_start)]) + first_start, bytes([len(first_start)]) + b"_" * len(first_start)
    )
    with pytest.raises(
        VocabularyError, match="before those that go on within one, found them mixed"
    ):
        Vocabulary(mixed)
