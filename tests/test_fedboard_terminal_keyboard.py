import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wcwidth import wcswidth

from device_runtime.home import Home
from fedboard.terminal_keyboard import (
    BACKSPACE,
    CHOICES,
    CLEAR,
    DELETE,
    END,
    ENTER,
    FORGET,
    HELP,
    HOME,
    INCOGNITO,
    LEAVE,
    LEFT,
    RIGHT,
    TAB,
    WORD_BACK,
    WORD_LEFT,
    WORD_RIGHT,
    Session,
    press,
    recent,
    screen,
    typeable,
)

STRIP = ("it", "you", "the")


def typed(*pressed: str, strip: tuple[str, ...] = STRIP, session: Session = Session()) -> Session:
    for key in pressed:
        session = press(session, key, strip)
    return session


def test_tab_accepts_the_best_in_the_centre_and_alt_with_a_digit_what_stands_there():
    assert typed(TAB).typed == "you "
    assert [typed(choice).typed for choice in CHOICES] == ["it ", "you ", "the "]


def test_digits_are_digits():
    assert typed(*"2 eggs and 3 apples").typed == "2 eggs and 3 apples"
    assert typed(*"call 1234").typed == "call 1234"


def test_an_accepted_word_costs_the_letters_typed_and_one_key():
    session = typed("y", "o", TAB)
    assert session.typed == "you "
    assert session.keys == 3
    assert session.saved == pytest.approx(1 - 3 / 4)


def test_a_word_typed_in_full_saves_nothing():
    assert typed(*"cat ").saved == 0


def test_a_capital_is_kept():
    assert typed("Y", TAB).typed == "You "
    assert typed("Y", "O", TAB).typed == "YOU "


@pytest.mark.parametrize("sign", [*".,?!;:)]}", "\u2026"])
def test_a_sign_that_belongs_to_the_word_before_takes_the_place_of_its_space(sign):
    assert typed(TAB, sign).typed == f"you{sign}"
    assert typed("a", " ", sign).typed == f"a {sign}"


def test_a_word_after_such_a_sign_is_kept_apart():
    assert typed(TAB, ",", "i").typed == "you, i"
    assert typed(TAB, ".", ".", "i").typed == "you.. i"
    assert typed(TAB, ",", " ", "i").typed == "you, i"


def test_other_signs_keep_the_space():
    assert typed(TAB, "(").typed == "you ("
    assert typed(TAB, "\U0001f600").typed == "you \U0001f600"


def test_taking_back_costs_a_key():
    assert typed("a", "b", BACKSPACE).typed == "a"
    assert typed("a", "b", BACKSPACE).keys == 3
    assert typed(*"see you", WORD_BACK).typed == "see "
    assert typed(*"see you", CLEAR).typed == ""
    assert typed(BACKSPACE, CLEAR, WORD_BACK, DELETE, LEFT, RIGHT) == Session()


def test_backspace_right_after_a_word_was_taken_gives_back_what_was_typed():
    assert typed("y", TAB, BACKSPACE).typed == "y"
    assert typed("y", TAB, "x", BACKSPACE).typed == "you "
    assert typed("y", TAB, BACKSPACE, BACKSPACE).typed == ""


@pytest.mark.parametrize(
    "sign",
    [
        "\U0001f44d\U0001f3fd",  # a skin tone
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",  # a family
        "\U0001f1e9\U0001f1ea",  # a flag
        "e\u0301",
        "\u0928\u093f",
        "1\ufe0f\u20e3",
    ],
)
def test_one_sign_is_one_sign_to_every_key(sign):
    assert typed("a", sign, BACKSPACE).typed == "a"
    assert typed("a", sign, LEFT).after == sign
    assert typed("a", sign, LEFT, DELETE) == replace(typed("a", sign, LEFT, DELETE), typed="a")
    assert typed("a", sign, LEFT, RIGHT).typed == "a" + sign


def test_a_word_that_ends_in_signs_is_taken_back_sign_by_sign():
    assert typed(*"hello!", WORD_BACK).typed == "hello"
    assert typed(*"hello!", WORD_BACK, WORD_BACK).typed == ""
    assert typed(*"hi \U0001f600 ", WORD_BACK).typed == "hi "


def test_the_cursor_moves_and_typing_goes_on_where_it_is():
    session = typed(*"see you", WORD_LEFT, "n", "o", "w", " ")
    assert (session.typed, session.after) == ("see now ", "you")
    assert typed("x", session=typed(HOME[0], session=session)).typed == "x"
    assert typed(END[0], session=session).typed == "see now you"
    assert typed(*"a b", HOME[0], WORD_RIGHT).typed == "a"
    assert typed(*"a b", HOME[0], ENTER).sent == "a b"


@pytest.mark.parametrize("sign", ["\u200c", "\u200d", "\u00a0", "\u202f", "\u3000", "\u0301"])
def test_joiners_and_spaces_of_every_kind_are_typed_as_they_are(sign):
    assert typed("a", sign, "b").typed == f"a{sign}b"


def test_controls_are_not_typed_and_the_lines_of_a_paste_become_one():
    assert typed("two\r\nlines\x07\x1b[A").typed == "two lines[A"


def test_a_word_of_the_strip_is_forgotten_only_once_that_was_confirmed():
    asked = typed(FORGET)
    assert asked.asked == "you"
    assert typed("f", session=asked).forgotten == "you"
    assert typed("n", session=asked).barred == "you"
    kept = typed("x", session=asked)
    assert (kept.forgotten, kept.barred, kept.typed, kept.asked) == (None, None, "", None)


def test_one_key_always_leaves():
    for key in LEAVE:
        assert typed("a", key).left
        assert typed(FORGET, key).left


def test_enter_sends_the_message_and_an_empty_one_is_none():
    session = typed(*"hi", ENTER)
    assert (session.sent, session.recorded, session.messages, session.typed) == ("hi", True, 1, "")
    assert typed(ENTER).sent is None
    assert typed(" ", ENTER) == Session()


@pytest.mark.parametrize(
    "pressed",
    [(INCOGNITO, "a"), ("a", INCOGNITO), ("a", INCOGNITO, INCOGNITO), (INCOGNITO, "a", INCOGNITO)],
    ids=["before", "after", "for a moment", "off again"],
)
def test_a_message_during_which_incognito_was_on_is_never_recorded(pressed):
    assert not typed(*pressed, ENTER).recorded


def test_the_next_message_is_recorded_again():
    session = typed("a", INCOGNITO, INCOGNITO, ENTER)
    assert typed("b", ENTER, session=session).recorded
    assert typed(INCOGNITO, INCOGNITO, "a", ENTER).recorded
    assert not typed("b", ENTER, session=typed(INCOGNITO, "a", ENTER)).recorded


def test_a_long_text_is_read_from_where_few_letters_later_it_is_read_too():
    words = "word " * 2000
    assert recent("short") == "short"
    starts = {len(words) + n - len(recent(words + "x" * n)) for n in range(200)}
    assert len(starts) == 1
    assert len(recent(words)) < 3000
    assert recent(words).startswith("word ")


@given(
    st.lists(
        st.sampled_from(
            [*"ab 12.", TAB, ENTER, BACKSPACE, CLEAR, WORD_BACK, INCOGNITO, LEFT, RIGHT, DELETE]
        ),
        max_size=40,
    )
)
def test_keys_never_cost_less_than_nothing_and_text_stays_typeable(pressed):
    session = typed(*pressed)
    assert session.keys >= 0
    assert typeable(session.typed + session.after) == session.typed + session.after


@given(st.text(max_size=60), st.text(max_size=20), st.integers(10, 120))
def test_no_line_is_wider_than_the_terminal(text, after, width):
    session = Session(typed=typeable(text), after=typeable(after))
    for line in screen(session, STRIP, width, "nothing is recorded: the disk is full"):
        assert wcswidth(line.text) <= width


@pytest.mark.parametrize("width", [10, 30, 47, 80, 200])
def test_help_that_does_not_fit_is_left_out_whole(width):
    [*_, said] = screen(Session(), STRIP, width)
    parts = said.text.split(" \u00b7 ")
    assert parts[0] == "0 keys, 0% saved"[: len(parts[0])]
    assert list(HELP)[: len(parts) - 1] == parts[1:]


def test_the_strip_shows_the_best_in_bold_at_the_centre():
    runs = screen(Session(), STRIP, 80)[0].runs
    assert [text.strip() for style, text in runs if style == "bold"] == ["2 you"]


class Terminal:
    """A real pseudo-terminal with `fedboard keyboard` in it."""

    def __init__(self, *words: object):
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        command = [sys.executable, "-m", "fedboard.cli", "keyboard", *map(str, words)]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        self.seen = ""

    def until(self, pattern: str) -> str:
        """What was shown up to now, once it matches."""
        end = time.monotonic() + 60
        while not re.search(pattern, self.seen):
            assert time.monotonic() < end, self.seen
            if select.select([self.master], [], [], 0.2)[0]:
                with_data = os.read(self.master, 65536)
                self.seen += with_data.decode("utf-8", "replace")
        return self.seen

    def press(self, text: str) -> None:
        self.seen = ""
        data = text.encode()
        while data:  # a terminal takes some thousand bytes at once
            readable, writable, _ = select.select([self.master], [self.master], [], 30)
            if readable:
                self.seen += os.read(self.master, 65536).decode("utf-8", "replace")
            if writable:
                data = data[os.write(self.master, data[:1024]) :]

    def ended(self) -> int:
        """The exit code, once it has left; what it showed meanwhile is read."""
        end = time.monotonic() + 60
        while self.process.poll() is None:
            assert time.monotonic() < end, self.seen
            if select.select([self.master], [], [], 0.2)[0]:
                self.seen += os.read(self.master, 65536).decode("utf-8", "replace")
        while select.select([self.master], [], [], 0)[0]:
            self.seen += os.read(self.master, 65536).decode("utf-8", "replace")
        return self.process.returncode

    def close(self) -> int:
        if self.process.poll() is None:
            self.process.kill()
        code = self.process.wait()
        os.close(self.master)
        os.close(self.slave)
        return code


@pytest.fixture
def terminal(tiny_bundle, trusted, tmp_path):
    key = tmp_path / "maker.pub"
    key.write_text(next(iter(trusted)) + "\n")
    opened = []

    def start(*words: object) -> Terminal:
        opened.append(
            Terminal(tiny_bundle.path, "--trust", key, "--home", tmp_path / "home", *words)
        )
        opened[-1].until("keys, ")
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def test_what_is_sent_in_a_terminal_is_recorded_but_not_what_is_sent_incognito(terminal, tmp_path):
    keyboard = terminal()
    keyboard.press("i will s")
    keyboard.until(r"i will s")
    keyboard.press("\t\r")  # the completion stands in the centre
    keyboard.until("  i will see")
    keyboard.press("2 eggs\x1b[D\x1b[Fx\x7f")
    keyboard.press("\x15\x10my secret\r")
    keyboard.until("incognito")
    keyboard.press("\x04")
    assert keyboard.ended() == 0
    assert "2 messages" in keyboard.seen
    assert termios.tcgetattr(keyboard.slave) == keyboard.before
    with Home.open(tmp_path / "home").typing_log() as log:
        assert log.read(10) == ["i will see"]


@pytest.mark.parametrize(
    "begun", ["\x1b[200~a paste that never ends", "\x1b[", "\x1b", "\x1bO", "é"]
)
def test_ctrl_c_leaves_within_whatever_was_begun(terminal, begun):
    keyboard = terminal()
    keyboard.press(begun)
    time.sleep(0.3)
    keyboard.press("\x03")
    assert keyboard.ended() == 0
    assert termios.tcgetattr(keyboard.slave) == keyboard.before


def test_keys_stay_alive_after_a_paste_of_twelve_thousand_words(terminal, tmp_path):
    keyboard = terminal()
    keyboard.press("\x1b[200~" + "you see my dog\n" * 3000 + "\x1b[201~ abc")
    keyboard.until("abc")
    keyboard.press("\r")
    keyboard.until("keys, ")
    keyboard.press("\x03")
    assert keyboard.ended() == 0
    with Home.open(tmp_path / "home").typing_log() as log:
        [message] = log.read(10)
    assert message == "you see my dog " * 3000 + " abc"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_given_back_after_a_signal(terminal, number):
    keyboard = terminal("--incognito")
    keyboard.press("half a mess")
    keyboard.until("mess")
    assert termios.tcgetattr(keyboard.slave) != keyboard.before
    keyboard.process.send_signal(number)
    assert keyboard.ended() == 128 + number
    assert termios.tcgetattr(keyboard.slave) == keyboard.before


def test_without_a_terminal_there_is_one_clear_line(tiny_bundle, trusted, tmp_path):
    key = tmp_path / "maker.pub"
    key.write_text(next(iter(trusted)))
    command = [
        sys.executable,
        "-m",
        "fedboard.cli",
        "keyboard",
        str(tiny_bundle.path),
        "--trust",
        str(key),
        "--no-log",
    ]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert "expected a terminal" in done.stderr
