"""Words as people write them: in which letters, with which capitals and spaces."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime.writing import (
    accept,
    joined,
    opens_sentence,
    shown,
    split,
    still_ours,
)
from fedboard.terminal_keyboard import BACKSPACE, TAB, Session, press, typeable


def play(*keys: str, start: str = "") -> str:
    """What stands there after some keys: `→word` takes a suggestion, `⌫` is Backspace."""
    session = Session(start)
    for key in keys:
        if key.startswith("→"):
            session = press(session, TAB, (key[1:],))
        else:
            session = press(session, BACKSPACE if key == "⌫" else key)
    return session.typed


@settings(deadline=None)  # the first text compiles the rules
@given(st.text(max_size=40))
def test_context_and_word_are_the_whole_text_and_the_word_has_no_space(typed):
    context, word = split(typed)
    assert context + word == typed
    assert not any(character.isspace() for character in word)


@pytest.mark.parametrize(
    ("typed", "begun"),
    [
        ("José est né à Besan", "Besan"),
        ("co´s zro", "zro"),
        ("увидимся завт", "завт"),
        ("θα σε δω αύρ", "αύρ"),
        ("أراك غد", "غد"),
        ("نراكَ", "نراكَ"),  # with points of vowels
        ("נתראה מח", "מח"),
        ("मैं हिन्दी", "हिन्दी"),  # its vowels are marks
        ("내일 만나", "만나"),
        ("می\u200cخ", "می\u200cخ"),  # with a joiner
        ("tôi không bi\u0323", "bi\u0323"),  # decomposed
        ("i don’", "don’"),
        ("i don´", "don´"),
        ("he said 'hel", "hel"),
        ("at 10a", "10a"),
    ],
)
def test_the_word_begun_has_the_letters_and_marks_of_its_script(typed, begun):
    assert split(typed)[1] == begun


@pytest.mark.parametrize(
    "typed",
    ["", "hi ", "hi :D", "xD", "<3", "ok 👩‍💻", "❤️", "👍🏽", "1️⃣", "what?", "(", "hi,"],
)
def test_after_a_space_a_sign_an_emoji_or_an_emoticon_no_word_is_begun(typed):
    assert split(typed) == (typed, "")


@pytest.mark.parametrize("whole", ["www.goo", "me@exam", "https://a.org/th", "3.5", "12:30"])
def test_no_word_completes_the_end_of_a_link_an_address_or_a_number(whole):
    assert split(f"see {whole}") == ("see ", whole)


@pytest.mark.parametrize(
    ("word", "usual", "begun", "expected"),
    [
        ("i", "I", "i", "I"),
        ("i'm", "I'm", "im", "I'm"),
        ("i'm", None, "I'", "I'm"),
        ("o'clock", None, "O'", "O'clock"),
        ("d'accord", None, "D'", "D'accord"),
        ("i'll", None, "I'L", "I'LL"),
        ("you", None, "YO", "YOU"),
        ("mcdonald's", "McDonald's", "mcd", "McDonald's"),
        ("mcdonald's", "McDonald's", "McD", "McDonald's"),
        ("mcdonald's", "McDonald's", "MCD", "MCDONALD'S"),
        ("iphone", "iPhone", "iPh", "iPhone"),
        ("usa", "USA", "us", "USA"),
        ("london", "London", "lon", "London"),
        ("tomorrow", None, "Tommor", "Tomorrow"),  # one slip
        ("the", None, "Hte", "The"),
        ("don't", None, "Dont", "Don't"),
        ("josé", "José", "jose", "José"),
        ("kraków", "Kraków", "KRAKO", "KRAKÓW"),
        ("straße", "straße", "STR", "STRASSE"),
        ("i̇zmir", "İzmir", "iz", "İzmir"),
        ("i̇zmir", "İzmir", "İZ", "İZMİR"),
        ("ǆep", None, "Ǆ", "ǅep"),
        ("λόγοσ", None, "λό", "λόγος"),
        ("λόγοσ", None, "ΛΟ", "ΛΟΓΟΣ"),
        ("москва", "Москва", "моск", "Москва"),
        ("привет", None, "ПР", "ПРИВЕТ"),
        ("سلام", None, "س", "سلام"),
        ("שלום", None, "של", "שלום"),
        ("नमस्ते", None, "नम", "नमस्ते"),
        ("안녕", None, "안ㄴ", "안녕"),
    ],
)
def test_a_word_is_shown_as_people_write_it_and_capitals_that_were_typed_stay(
    word, usual, begun, expected
):
    assert shown(word, usual, "so ", begun) == expected


def test_a_word_has_the_apostrophe_that_the_text_is_written_with():
    assert shown("don't", None, "i ", "don’") == "don’t"
    assert shown("don't", None, "i ", "don´") == "don´t"
    assert shown("don't", None, "he’s here and i ", "do") == "don’t"
    assert shown("don't", None, "he's here and i ", "do") == "don't"


@pytest.mark.parametrize(
    "context",
    [
        "",
        "Hi! ",
        "Really? ",
        "Well… ",
        "See you. ",
        "He left.) ",
        "I was at no. 5. ",
        "Nice. 😀 ",
        "😀 ",
        "dear all\n",
        "¿",
        "Hola. ¿",
        "“",
        '"',
        "So it is I. ",
        "Привет! ",
        "Τι κάνεις; ",
        "كيف حالك؟ ",
        "यह ठीक है। ",
        "안녕. ",
        "Բարեւ։ ",
    ],
)
def test_a_sentence_opens_at_the_start_in_a_new_line_and_behind_a_stop(context):
    assert opens_sentence(context)
    assert shown("see", None, context, "") == "See"
    assert shown("see", None, context, "", capitals=False) == "see"


@pytest.mark.parametrize(
    "context",
    ["so ", "hi, ", "e.g. ", "at 5 p.m. ", "z. B. ", "Mr. ", "т. е. ", "3.", "a.b", "Hola, ¿"],
)
def test_no_sentence_opens_after_a_word_a_comma_an_abbreviation_or_within_a_number(context):
    assert not opens_sentence(context)
    assert shown("see", None, context, "") == "see"


def test_a_word_that_begins_small_and_has_capitals_keeps_its_shape_at_the_start():
    assert shown("iphone", "iPhone", "", "") == "iPhone"


@given(st.text(max_size=30), st.text(min_size=1, max_size=8), st.text(max_size=8))
def test_any_text_and_word_can_be_shown_and_what_is_shown_is_what_is_typed(context, word, begun):
    context, begun = split(context + begun)
    form = shown(word, None, context, begun)
    assert form
    assert accept(context + begun, form).startswith(context)


def test_a_word_that_is_taken_replaces_the_letters_begun_and_a_space_follows():
    assert accept("i will s", "see") == "i will see "
    assert accept("", "Łódź") == "Łódź "
    assert accept("我们", "我们去") == "我们去"  # no space in this script
    assert accept("hi,", "you") == "hi, you "
    assert accept("(", "you") == "(you "
    assert accept('say "', "hi") == 'say "hi '
    assert accept("fun :D", "you") == "fun :D you "


@pytest.mark.parametrize(
    ("keys", "typed"),
    [
        (",i", "later, i"),
        (".", "later."),
        ("...i", "later... i"),
        ("?!", "later?!"),
        (")", "later)"),
        (": x", "later: x"),
        (";a", "later; a"),
        (":)", "later :)"),
        (":-)", "later :-)"),
        (";)", "later ;)"),
        (":D", "later :D"),
        (":Do", "later: Do"),
        (":ok", "later: ok"),
        ("'s", "later's"),
        ("'h", "later 'h"),
        ("😀", "later 😀"),
        ("2", "later 2"),
        ("%", "later%"),
        (" ?", "later ?"),
        ("!\n", "later! "),
        ("؟", "later؟"),
        ("।", "later।"),
        ("x", "later x"),
    ],
)
def test_the_space_of_a_word_gives_way_to_a_stop_and_stands_where_people_write_it(keys, typed):
    assert play("see you ", "→later", *keys) == f"see you {typed}"
    assert play("see you ", "→later", keys) == f"see you {typed}"  # pasted


def test_a_space_that_was_typed_stays():
    assert joined("plus tard ", "?", False) == "plus tard ?"
    assert play("later ", ")") == "later )"


def test_a_quote_that_closes_takes_the_space_and_one_that_opens_leaves_it():
    assert play('say "', "→hi", '"') == 'say "hi"'
    assert play("→say", '"', "h") == 'say "h'
    assert play("« ", "→oui", "»") == "« oui»"


def test_backspace_gives_back_what_stood_there_before_a_word_was_taken_and_only_once():
    assert play("see you lat", "→later", "⌫") == "see you lat"
    assert play("see you lat", "→later", "⌫", "⌫") == "see you la"
    assert play("lat", "→later", ".", "⌫") == "later"


def test_digits_are_digits():
    assert play("2", " eggs and 3 apples") == "2 eggs and 3 apples"
    assert play("call ", "1", "2", "3", "4") == "call 1234"


@given(st.text(max_size=20), st.lists(st.text(max_size=3), max_size=6))
def test_whatever_is_typed_no_letter_of_it_is_lost(start, keys):
    typed = play(start, "→later", *(key.replace("→", "").replace("⌫", "") for key in keys))
    bare = "".join(typed.split())
    for key in keys:
        for letter in typeable(key):
            assert letter.isspace() or letter in bare or letter in "→⌫"


@given(st.text(max_size=20), st.text(max_size=3))
def test_a_space_is_ours_only_behind_a_word_or_before_a_letter_that_may_follow(typed, sign):
    assert not still_ours(typed + " ", sign + " ")
