"""Text rules of protocol nwp-v2 and the vocabulary file a device reads."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import text as text_rules
from device_runtime.errors import VocabularyError
from device_runtime.text import (
    BOS,
    CLASSES,
    FIRST_WORD,
    OOV,
    PARTS,
    Vocabulary,
    is_word,
    normalise,
    plain,
    spaceless,
    tokenise,
    written,
)
from model.vocabulary import build, build_unigram

RULES_FILE = Path(text_rules.__file__).with_name("text_rules.json")

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
        ("lol :-) \U0001f600\U0001f600 <3", ["lol", "<emoticon>", "<emoji>", "<emoticon>"]),
        ("rock'n'roll 'quoted'", ["rock'n'roll", "<sym>", "quoted", "<sym>"]),
        ("", []),
        (" \n\t", []),
    ],
)
def test_an_utterance_becomes_words_and_classes(text, tokens):
    assert tokenise(text) == tokens


def test_curly_apostrophes_backticks_and_wide_letters_are_made_plain_and_capitals_stay():
    assert normalise("Don\u2019t DON`T \uff4f\uff4b") == "Don't DON'T ok"
    assert tokenise("Don\u2019t DON`T \uff4f\uff4b") == ["don't", "don't", "ok"]


@settings(deadline=None)  # the first text of its kind has the patterns compiled
@given(st.text())
def test_any_text_gives_words_and_known_classes_only(text):
    for token in tokenise(text):
        assert is_word(token) != (token in (*CLASSES, *PARTS))


@given(st.text("abXxDdTcomw .,?!'"))
def test_plain_text_is_read_sooner_to_the_same_tokens(text):
    assert tokenise(text) == [token for token, _ in written(text)]


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


@given(st.text(st.characters(max_codepoint=0x7F)).map(tokenise))
def test_a_word_of_pieces_starts_once_goes_on_and_reads_as_it_was_written(tokens):
    for token in tokens:
        first, *rest = PIECES.spelling(token)
        assert "".join(PIECES.tokens[i] for i in (first, *rest)) == PARTS.get(token, token)
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


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Łukasz w Krakowie, żółć", ["łukasz", "w", "krakowie", ",", "żółć"]),
        ("José est né à Besançon", ["josé", "est", "né", "à", "besançon"]),
        ("Die Straße heißt so", ["die", "strasse", "heisst", "so"]),
        ("Tôi nói tiếng Việt", ["tôi", "nói", "tiếng", "việt"]),
        ("Привет, как дела?", ["привет", ",", "как", "дела", "?"]),
        ("Об'єкт п\u02bcять", ["об'єкт", "п'ять"]),
        ("Τι κάνεις;", ["τι", "κάνεισ", "<sym>"]),
        ("كيف حالك؟", ["كيف", "حالك", "?"]),
        ("می\u200cخواهم بروم", ["می\u200cخواهم", "بروم"]),
        ("מה שלומך? צה״ל", ["מה", "שלומך", "?", "צה״ל"]),
        ("आप कैसे हैं। क्षेत्र", ["आप", "कैसे", "हैं", ".", "क्षेत्र"]),
        ("안녕하세요, 저는", ["안녕하세요", ",", "저는"]),
        ("我今天去iPhone商店。", ["我今天去", "iphone", "商店", "."]),
        ("สวัสดีครับ", ["สวัสดีครับ"]),
    ],
)
def test_words_of_every_script_are_words(text, tokens):
    assert tokenise(text) == tokens


@pytest.mark.parametrize("mark", "'\u2018\u2019\u201b\u02bc`\u00b4\u2032\uff07")
def test_every_apostrophe_makes_one_word(mark):
    assert tokenise(f"I don{mark}t") == ["i", "don't"]


def test_composed_and_decomposed_letters_are_one_word():
    assert tokenise("cafe\u0301") == tokenise("caf\u00e9") == ["caf\u00e9"]


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        (":D =) ;-) :'( <3 xD ^_^ T_T \\o/", ["<emoticon>"] * 9),
        (
            "\U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
            ["<emoji>"] * 3,
        ),
        ("\U0001f1e9\U0001f1ea 1\ufe0f\u20e3", ["<emoji>"] * 2),
        ("Qx7vantib9rr2 DE89370400440532013000", ["<code>"] * 2),
        ("4711 12:30 1,000.50 ٣٫٥", ["<num>"] * 4),
        ("example.com me@example.org HTTPS://a.b/c", ["<url>"] * 3),
    ],
)
def test_signs_that_are_no_words_have_classes_of_their_own(text, classes):
    assert tokenise(text) == classes


def test_what_people_write_with_a_digit_is_a_word():
    words = ["2day", "b4", "gr8", "10am", "1990s", "covid19", "h2o", "mp3"]
    assert tokenise(" ".join(words)) == words


def test_a_word_is_compared_folded_and_kept_as_it_was_written():
    assert written("I'm in Kraków, ok") == [
        ("i'm", "I'm"),
        ("in", "in"),
        ("kraków", "Kraków"),
        (",", ","),
        ("ok", "ok"),
    ]


@pytest.mark.parametrize(
    ("word", "hurried"),
    [("Kraków", "krakow"), ("don't", "dont"), ("Łukasz", "lukasz"), ("İstanbul", "istanbul"),
     ("Straße", "strasse"), ("Ёлка", "елка"), ("мой", "мои"), ("مُحَمَّد", "محمد"), ("हिन्दी", "हिन्दी"),
     ("안녕", "안녕"), ("cœur", "coeur")],
)  # fmt: skip
def test_what_hurried_people_leave_out_is_left_out_of_the_plain_form(word, hurried):
    assert plain(word) == hurried
    assert plain(hurried) == hurried


def test_scripts_without_spaces_are_known():
    assert spaceless("我今天") and spaceless("สวัสดี") and spaceless("です")
    assert not any(map(spaceless, ["hello", "안녕", "привет", "हिन्दी"]))


def test_the_rules_name_the_characters_of_this_python_where_its_unicode_is_theirs():
    rules = json.loads(RULES_FILE.read_text("ascii"))
    if unicodedata.unidata_version != rules["unicode"]:
        pytest.skip("another version of Unicode")
    spans = " ".join(rules["sets"]["letters"] + rules["sets"]["spaceless"]).split()
    ends = [[int(end, 16) for end in span.split("-")] for span in spans]
    letters = {code for span in ends for code in range(span[0], span[-1] + 1)} - {0x3007}
    assert letters == {
        code for code in range(0x110000) if unicodedata.category(chr(code)).startswith("L")
    }
