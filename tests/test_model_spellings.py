"""Which words of a corpus stay out of a vocabulary, and how those that do not are written."""

import pytest

from device_runtime.text import tokenise
from model import forms, spellings
from model.corpus import Utterance
from model.spellings import MISSPELT, RARE, STRETCHED, Uses


def used(**times: int) -> dict[str, Uses]:
    """Words typed so often, each by five people."""
    return {word: Uses(count, 5) for word, count in times.items()}


def users(*messages: str) -> dict[str, list[Utterance]]:
    """A user a message."""
    return {
        f"user{i}": [Utterance(message, tuple(tokenise(message)))]
        for i, message in enumerate(messages)
    }


def test_uses_count_every_time_and_every_person_once():
    assert spellings.uses_of(users("so so good", "so?")) == {
        "so": Uses(3, 2),
        "good": Uses(1, 1),
    }


def test_a_word_enters_once_several_people_used_it_where_there_are_many():
    uses = {"chitchatter": Uses(90, 1), "hello": Uses(3, 3), "zarnik": Uses(9, 2)}
    left = spellings.left_out(uses, 933, "en")
    assert {word: each.reason for word, each in left.items()} == {
        "chitchatter": RARE,
        "zarnik": RARE,
    }
    assert spellings.left_out(uses, 29) == {}


def test_a_stretched_word_gives_way_to_the_more_used_word_it_stretches():
    left = spellings.left_out(used(so=90, soooo=9, good=50, god=20, goood=4, hmmm=8), 933)
    assert {word: (each.reason, each.usual) for word, each in left.items()} == {
        "soooo": (STRETCHED, "so"),
        "goood": (STRETCHED, "good"),
    }


@pytest.mark.parametrize(
    ("word", "usual"),
    [
        ("becuase", "because"),
        ("wierd", "weird"),
        ("seperate", "separate"),
        ("definately", "definitely"),
        ("writting", "writing"),
        ("roomate", "roommate"),
        ("taht", "that"),
        ("youve", "you've"),
        ("intersting", "interesting"),
    ],
)
def test_a_misspelt_word_gives_way_to_the_usual_spelling(word, usual):
    left = spellings.left_out({word: Uses(10, 5), usual: Uses(40, 30)}, 933, "en")
    assert left == {word: spellings.LeftOut(MISSPELT, usual)}
    assert spellings.left_out({word: Uses(10, 5), usual: Uses(39, 30)}, 933, "en") == {}


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("thanos", "thanks"),
        ("iphones", "phones"),
        ("pinterest", "interest"),
        ("favourite", "favorite"),
        ("cafe", "came"),
        ("hehe", "here"),
        ("xbox", "box"),
        ("lol", "lot"),
        ("zack", "back"),
    ],
)
def test_names_and_words_no_dictionary_has_stay(word, other):
    assert spellings.left_out({word: Uses(10, 5), other: Uses(900, 300)}, 933, "en") == {}


def test_what_many_people_write_is_usual_whatever_a_dictionary_says():
    uses = {"dont": Uses(90, 60), "don't": Uses(900, 500)}
    assert spellings.left_out(uses, 933, "en") == {}


def test_without_a_dictionary_of_each_language_nothing_is_misspelt():
    uses = {"becuase": Uses(10, 5), "because": Uses(400, 300)}
    assert spellings.left_out(uses, 933, "xx") == {}
    assert spellings.left_out(uses, 933, "en+xx") == {}
    assert spellings.left_out(uses, 933, "") == {}
    assert set(spellings.left_out(uses, 933, "en+de")) == {"becuase"}


def test_a_summary_counts_rare_words_and_names_the_others():
    uses = used(so=90, soooo=9) | {"zarnik": Uses(9, 2)}
    said = spellings.summary(spellings.left_out(uses, 933), 933)
    assert said == spellings.Summary(1, 3, {"soooo": "so"}, {})


def test_words_are_written_as_most_people_write_them_within_sentences():
    typed = users("in London i am", "see London", "in london", "Then we met", "and then Then")
    assert forms.usual_forms(typed, ["london", "then", "i"]) == {"london": "London"}


def test_a_form_with_capitals_that_is_one_persons_own_is_nobody_elses():
    assert forms.usual_forms(users("so Weird", "so weird", "a", "b"), ["weird"]) == {}
    assert forms.usual_forms(users("so Weird and Weird"), ["weird"]) == {}


def test_a_message_in_capitals_and_the_start_of_a_sentence_say_nothing():
    assert forms.usual_forms(users("SEE LONDON", "a LONDON. B", "London is"), ["see", "is"]) == {}
    assert forms.usual_forms(users("ok. London", "hm! London"), ["london"]) == {}


def test_english_writes_i_with_a_capital_wherever_it_stands():
    typed = users("and i think i'm ill")
    assert forms.usual_forms(typed, ["i", "i'm", "ill"], "en") == {"i": "I", "i'm": "I'm"}
    assert forms.usual_forms(typed, ["i", "i'm"], "pl") == {}


def test_a_word_whose_letters_are_compared_otherwise_is_written_as_it_is_typed():
    typed = users("τι κάνεις εσύ", "die breite Straße", "eine Straße", "so heißt es")
    words = ["κάνεισ", "strasse", "heisst"]
    assert forms.usual_forms(typed, words) == {
        "κάνεισ": "κάνεις",
        "strasse": "Straße",
        "heisst": "heißt",
    }
    assert forms.encoded({"b": "B", "a": "A"}) == b"A\nB\n"
