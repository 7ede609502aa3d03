"""Completion: which words the letters typed so far may become."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import OSA

from device_runtime.completion import LEFT_OUT, SLIP, SWAP, Index, fitting, letters, with_slips
from device_runtime.text import fold, plain

FIRST = 100
WORDS = [
    *("kraków", "józef", "łukasz", "straße", "việt", "besançon", "étude", "garçon", "año"),
    *("привет", "ёлка", "йогурт", "καλημέρα", "λόγος", "مرحبا", "كِتاب", "שלום", "नमस्ते", "हिन्दी"),
    *(
        "안녕하세요",
        "과일",
        "먹어",
        "없어",
        "don't",
        "dont",
        "i'm",
        "im",
        "he'll",
        "hello",
        "the",
        "then",
    ),
]


@pytest.fixture(scope="module")
def index() -> Index:
    return Index([fold(word) for word in WORDS], FIRST)


def words(ids) -> set[str]:
    return {WORDS[i - FIRST] for i in ids.tolist()}


@pytest.mark.parametrize(
    ("begun", "word"),
    [
        ("krakó", "kraków"),
        ("Łuk", "łukasz"),
        ("stra", "straße"),
        ("STRASS", "straße"),
        ("e", "étude"),  # its accent comes after it
        ("прив", "привет"),
        ("ПРИ", "привет"),
        ("ё", "ёлка"),
        ("καλημέ", "καλημέρα"),
        ("ΛΌΓΟΣ", "λόγος"),
        ("λόγος", "λόγος"),
        ("مر", "مرحبا"),
        ("של", "שלום"),
        ("नम", "नमस्ते"),
        ("नमस्", "नमस्ते"),
        ("हिन्", "हिन्दी"),
        ("안", "안녕하세요"),
        ("안ㄴ", "안녕하세요"),
        ("안녀", "안녕하세요"),
        ("ㄱ", "과일"),
        ("고", "과일"),  # a double vowel half typed
        ("먹", "먹어"),
        ("업", "없어"),  # a double final half typed
        ("don’", "don't"),
        ("don´", "don't"),
    ],
)
def test_a_word_completes_the_letters_it_begins_with_in_every_script(index, begun, word):
    fits = fitting([index], begun)
    at = words(fits.ids)
    assert word in at
    assert fits.weights[[WORDS[i - FIRST] for i in fits.ids].index(word)] == 1


@pytest.mark.parametrize(
    ("begun", "word"),
    [
        ("krakow", "kraków"),
        ("lukas", "łukasz"),
        ("viet", "việt"),
        ("besanco", "besançon"),
        ("елк", "ёлка"),
        ("καλημερ", "καλημέρα"),
        ("كتا", "كِتاب"),
        ("dont", "don't"),
        ("hell", "he'll"),
    ],
)
def test_accents_points_and_apostrophes_may_be_left_out(index, begun, word):
    fits = fitting([index], begun)
    weights = dict(zip([WORDS[i - FIRST] for i in fits.ids], fits.weights, strict=True))
    assert weights.get(word) == LEFT_OUT


def test_a_word_that_is_meant_but_for_its_apostrophe_is_told_from_the_one_that_was_typed(index):
    fits = fitting([index], "Dont")
    assert (words(fits.whole), words(fits.twins)) == ({"dont"}, {"don't"})
    assert words(fitting([index], "im").twins) == {"i'm"}
    assert words(fitting([index], "don'").ids) == {"don't"}  # the apostrophe is meant
    assert words(fitting([index], "th'").ids) == set()


@pytest.mark.parametrize(
    ("begun", "word", "weight"),
    [
        ("teh", "the", SWAP),
        ("hte", "the", SWAP),
        ("halo", "hello", None),  # two slips
        ("helo", "hello", SLIP),
        ("jozzef", "józef", SLIP),
        ("провет", "привет", SLIP),
        ("καλμέ", "καλημέρα", SLIP),
        ("مرجبا", "مرحبا", SLIP),
        ("שלןם", "שלום", SLIP),
        ("नमसते", "नमस्ते", SLIP),
    ],
)
def test_one_slip_of_the_finger_is_forgiven(index, begun, word, weight):
    fits = with_slips(fitting([index], begun), [index], begun)
    weights = dict(zip([WORDS[i - FIRST] for i in fits.ids], fits.weights, strict=True))
    assert weights.get(word) == weight


@given(
    st.lists(st.text("abcdé'", min_size=1, max_size=6), min_size=1, max_size=12, unique=True),
    st.text("abcd", min_size=3, max_size=6),
)
def test_every_word_found_by_a_slip_begins_one_slip_from_the_letters(listed, begun):
    index = Index([fold(word) for word in listed])
    exact = set(fitting([index], begun).ids.tolist())
    fits = with_slips(fitting([index], begun), [index], begun)
    assert len(set(fits.ids.tolist())) == len(fits.ids)
    for i in set(fits.ids.tolist()) - exact:
        bare = letters(plain(listed[i]))
        heads = (bare[:length] for length in range(len(begun) - 1, len(begun) + 2))
        assert min(OSA.distance(begun, head) for head in heads) == 1


@given(
    st.lists(st.text("abé'́", min_size=1, max_size=6), max_size=12, unique=True),
    st.text("abé'", min_size=1, max_size=4),
)
def test_exact_fits_are_all_words_whose_letters_begin_so(listed, begun):
    folded = sorted({fold(word) for word in listed})
    fits = fitting([Index(folded)], begun)
    exact = {folded[i] for i, weight in zip(fits.ids, fits.weights, strict=True) if weight == 1}
    assert exact == {word for word in folded if letters(word).startswith(letters(fold(begun)))}


def test_words_of_two_indexes_are_found_side_by_side(index):
    more = Index(["thesis"], FIRST + len(WORDS))
    assert len(fitting([index, more], "the").ids) == 3
    assert fitting([index, more], "thes").ids.tolist() == [FIRST + len(WORDS)]
    assert fitting([Index([])], "the").ids.tolist() == []
