"""What people and files say is printed as it is, harmless, and read by a shell as it is."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from device_runtime.shown import command, printable, rounded_up

PLAIN = st.text(st.characters(categories=("L", "M", "N", "P", "S", "Zs")))


@given(PLAIN)
@example("[/x] exp [final] :warning: [link=http://x] 'a' \"b\" \\n")
@example("می\u200cخواهم \U0001f468\u200d\U0001f469\u200d\U0001f467")
def test_what_a_person_reads_is_printed_as_it_is(text):
    assert printable(text) == text


@given(st.text())
def test_whatever_is_printed_is_one_line_that_moves_no_cursor_and_turns_no_direction(text):
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not set(shown) & {"\x1b", "\x07", "\x08", "\x9b", "\u202e", "\u2066", "\u200f", "\ufeff"}
    assert printable(shown) == shown
    shown.encode()  # no half characters


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("one\ntwo\t", "one\\ntwo\\t"),
        ("exe\u202egpj", "exe\\u202egpj"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
    ],
)
def test_a_control_code_a_turned_direction_and_a_byte_that_is_no_text_are_spelled(text, shown):
    assert printable(text) == shown


@given(st.lists(PLAIN))
@example(["it's", 'say "x"', "[/x]", "$HOME", "a;b", "*", "", "-rf"])
def test_a_printed_command_is_split_into_its_words(words):
    assert shlex.split(command(*words)) == ["fedboard", *words]


@given(st.text().filter(lambda text: text and "\0" not in text))
@example("-dash")
@example("a\nb\t'c'\\d")
@example(os.fsdecode(b"caf\xe9 \x1b[31m"))
@settings(max_examples=20, deadline=None)
def test_a_shell_reads_a_path_of_any_bytes_back_and_never_as_an_option(name):
    path = Path(name)
    line = command(path).replace("fedboard", "printf %s", 1)
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError:
        return  # half a character: no file has such a name
    done = subprocess.run(["bash", "-c", line], capture_output=True)
    assert done.stdout in (raw, b"./" + raw)
    assert not done.stdout.startswith(b"-")


@given(st.floats(1e-300, 1e6))
def test_an_epsilon_is_never_read_as_less_than_it_is_and_hardly_as_more(epsilon):
    read = float(rounded_up(epsilon))
    assert epsilon <= read <= epsilon + min(0.011, 0.011 * epsilon)


def test_no_epsilon_and_one_without_bound_are_read_as_that():
    assert (rounded_up(0.0), rounded_up(float("inf"))) == ("0.00", "inf")
