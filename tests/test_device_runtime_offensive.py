"""Which words a list of blocked ones means."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import offensive

BLOCKED = Path(__file__).parents[1] / "conversion" / "blocked.txt"
LISTED = offensive.stems(BLOCKED.read_text().split())


@pytest.mark.parametrize(
    "word",
    [
        "fuck",
        "fucking",
        "fuuucking",
        "fuckkk",
        "fuuckkk",
        "assho1e",
        "f'uck",
        "fuckin",
        "fuckers",
        "fück",
        "f4g",
        "sh1t",
        "5h1t",
        "shiiit",
        "shitty",
        "shitting",
        "bitches",
        "b1tch",
        "biiiitch",
        "assholes",
        "a55hole",
        "cunts",
        "Fuck",
        "FUCK",
    ],
)
def test_spelling_stretching_and_inflection_hide_no_listed_word(word):
    assert offensive.is_blocked(word, LISTED)


@pytest.mark.parametrize(
    "word",
    [
        *("hello", "class", "classic", "assess", "assets", "pass", "glass", "cocktail"),
        *("cockpit", "peacock", "dickens", "scunthorpe", "shitake", "shift", "sheet"),
        *("luck", "duck", "truck", "count", "country", "title", "titan", "analyse"),
        *("therapist", "grape", "drape", "cumin", "spicy", "tardy", "hellish", "shell"),
        *("cocky", "cocked", "booby", "rapper", "rapped", "crape", "retarding", "who're"),
        *("shiite", "rapeseed", "poorness", "bonner", "spicer", "cummings", "bookkeeper"),
        *("as", "assume", "2day", "b4", "10am", "1990s", "witch", "beach", "batch"),
    ],
)
def test_words_that_look_so_by_chance_stay(word):
    assert not offensive.is_blocked(word, LISTED)


def test_a_word_with_an_apostrophe_is_blocked_with_and_without_it():
    listed = offensive.stems(["don't"])
    assert offensive.is_blocked("dont", listed)
    assert offensive.is_blocked("don't", listed)
    assert not offensive.is_blocked("do", listed)


def test_a_word_that_its_apostrophe_keeps_apart_from_another_stays():
    listed = offensive.stems(["hell", "wont", "id", "whore"])
    for word in ("he'll", "he’ll", "won't", "i'd", "who're"):
        assert not offensive.is_blocked(word, listed)
    assert offensive.is_blocked("hell", listed)
    assert not offensive.is_blocked("its", offensive.stems(["it's"]))
    assert offensive.is_blocked("it’s", offensive.stems(["it's"]))


def test_words_of_other_scripts_are_blocked_without_their_accents():
    listed = offensive.stems(["ёлка", "Straße"])
    assert offensive.is_blocked("елка", listed)
    assert offensive.is_blocked("strasse", listed)
    assert not offensive.is_blocked("палка", listed)


def test_ids_of_blocked_words_are_found_in_a_vocabulary():
    assert offensive.blocked_ids(["<pad>", "cat", "cats", "dog", "caat", "caaat"], {"cat"}) == [
        1,
        2,
        5,
    ]
    assert offensive.blocked_ids(["cat"], set()) == []


@given(st.text(max_size=20), st.lists(st.text(min_size=1, max_size=8), max_size=4))
def test_any_word_and_any_list_can_be_compared(word, listed):
    stems = offensive.stems(listed)
    assert offensive.is_blocked(word, stems) in (True, False)
    assert all(offensive.is_blocked(stem, stems) for stem in stems)
