"""Which words of a message may become words of the strip, and after how many messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import learnable, text

COMMON = ["the", "because", "friend", "cat", "dog", "separate"]


@pytest.mark.parametrize(
    "message",
    [
        "my wifi is Qx7vantib9rr2",
        "DE89 3704 0044 0532 0130 00",
        "P@ssw0rd! hunter2 tr0ub4dor&3",
        "me@zarnik.example zarnik.example/x www.zarnik.org",
        "@zarnik #zarnik $zarnik ~zarnik /home/zarnik C:\\zarnik zarnik_vub zarnik=vub",
        "zarnik.txt report-zarnik9",
        "correct-horse-battery-zarnik",
        "password: zarnik",
        "the wifi code is zarnik",
        "passwort ist zarnik",
        "aBcDeFgHzarnik",
        "zarnik%20vub q+zarnik",
        "password for netflix is zarnik",
        "pw zarnik",
        "mot de passe est zarnik",
        "mój PIN to zarnik",
        "sk-live-zarnik",
        "iban GB WEST zarnik",
        "use ZARNIKVUB now",
    ],
)
def test_codes_passwords_addresses_and_names_of_files_are_no_words_to_learn(message):
    learned = learnable.words(message)
    assert not {word for word in learned if "zarnik" in word or "vant" in word}
    assert not {word for word in learned if not text.is_letters(word)}


@pytest.mark.parametrize(
    ("message", "word", "written"),
    [
        ("meet Zarnik!", "zarnik", "Zarnik"),
        ("(zarnik) said", "zarnik", "zarnik"),
        ("yes,zarnik", "zarnik", "zarnik"),
        ("zarnik...really", "zarnik", "zarnik"),
        ("zarnik-ish and/or", "zarnik", "zarnik"),
        ("zarnik's dog", "zarnik's", "zarnik's"),
        ("“Łukasz” przyszedł", "łukasz", "Łukasz"),
        ("Привет, Зарник", "зарник", "Зарник"),
        ("مرحبا زرنیک،", "زرنیک", "زرنیک"),
        ("नमस्ते ज़र्निक।", text.fold("ज़र्निक"), text.normalise("ज़र्निक")),
        ("*zarnik* _zarnik_", "zarnik", "zarnik"),
    ],
)
def test_words_that_stand_as_words_are_learned_as_they_are_written(message, word, written):
    assert learnable.words(message)[word] == written


def test_letters_that_are_hexadecimal_digits_are_no_word():
    assert learnable.words("deadbeef cafebabe facade") == {"facade": "facade"}


def test_a_word_is_offered_from_the_second_message_and_a_slip_of_a_common_one_from_the_sixth():
    assert learnable.needed("zarnik", COMMON) == 2
    for slip in ("teh", "becuase", "freind", "seperate", "thee"):
        assert learnable.needed(slip, COMMON) == 6
    assert learnable.needed("cats", COMMON) == 2
    assert learnable.needed("dag", COMMON, as_name=True) == 2
    assert learnable.needed("soooo", COMMON) is None


def test_a_capital_within_a_sentence_makes_a_name_and_one_at_its_start_does_not():
    assert learnable.stands_as_name("Then Zarnik came. Later he left") == {"zarnik"}
    assert learnable.stands_as_name("I SAW ZARNIK") == frozenset()
    assert learnable.stands_as_name("i saw ZARNIK") == frozenset()


@given(st.text())
def test_what_is_learned_of_any_text_is_words_of_letters(message):
    for token, written in learnable.words(message).items():
        assert text.is_letters(token)
        assert text.tokenise(written) == [token]
