import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.home import Home
from fedboard.terminal_keyboard import (
    BACKSPACE,
    CLEAR,
    ENTER,
    INCOGNITO,
    LEAVE,
    LITERAL,
    TAB,
    WORD_BACK,
    Session,
    keys,
    press,
    screen,
)

STRIP = ("it", "you", "the")


def typed(*pressed: str, strip: tuple[str, ...] = STRIP, session: Session = Session()) -> Session:
    for key in pressed:
        session = press(session, key, strip)
    return session


def test_tab_accepts_the_best_in_the_centre_and_digits_what_stands_there():
    assert typed(TAB).typed == "you "
    assert [typed(digit).typed for digit in "123"] == ["it ", "you ", "the "]


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


def test_a_stop_after_an_accepted_word_takes_the_place_of_its_space():
    assert typed(TAB, ".").typed == "you."
    assert typed("a", " ", ".").typed == "a ."


def test_a_digit_is_typed_after_ctrl_v_or_where_nothing_stands():
    assert typed(LITERAL, "2").typed == "2"
    assert typed("4").typed == "4"
    assert typed("2", strip=("it",)).typed == "2"


def test_taking_back_costs_a_key():
    assert typed("a", "b", BACKSPACE).typed == "a"
    assert typed("a", "b", BACKSPACE).keys == 3
    assert typed(*"see you", WORD_BACK).typed == "see "
    assert typed(*"see you", CLEAR).typed == ""
    assert typed(BACKSPACE, CLEAR, WORD_BACK) == Session()


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


def test_arrows_and_other_sequences_type_nothing_and_pasted_text_is_one_key():
    assert keys("a\x1b[A\x1bOPb") == (["a", "b"], "")
    assert keys("\x1b[200~two\nlines\x1b[201~!") == (["two lines", "!"], "")
    assert keys("\x1b[200~not yet") == ([], "\x1b[200~not yet")


@given(st.text(), st.integers(0, 30))
def test_any_bytes_cut_anywhere_give_the_same_keys(text, at):
    first, rest = keys(text[:at])
    second, _ = keys(rest + text[at:])
    assert first + second == keys(text)[0]


@given(
    st.lists(
        st.sampled_from([*"ab 12.", TAB, ENTER, BACKSPACE, CLEAR, WORD_BACK, INCOGNITO, LITERAL]),
        max_size=40,
    )
)
def test_keys_never_cost_less_than_nothing_and_text_stays_printable(pressed):
    session = typed(*pressed)
    assert session.keys >= 0
    assert session.typed == "" or session.typed.isprintable()


@given(st.text(max_size=60), st.integers(1, 120))
def test_no_line_is_wider_than_the_terminal(text, width):
    from rich.cells import cell_len

    session = typed(*text)
    lines = screen(session, STRIP, width)
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    assert len(plain) == 3
    if width >= 10:
        assert all(cell_len(line) <= width for line in plain)


def test_the_strip_shows_the_best_in_bold_at_the_centre():
    assert "\x1b[1m2 you" in screen(Session(), STRIP, 80)[0]


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
        os.write(self.master, text.encode())

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
    keyboard.until(r"2 see")  # the completion stands in the centre
    keyboard.press(TAB)
    keyboard.until("i will see ")
    keyboard.press(ENTER)
    keyboard.until("  i will see")
    keyboard.press(INCOGNITO + "my secret" + ENTER)
    keyboard.until("incognito")
    keyboard.press(LEAVE[1])
    assert keyboard.process.wait(timeout=30) == 0
    keyboard.until(r"2 messages, .* keys pressed")
    assert termios.tcgetattr(keyboard.slave) == keyboard.before
    with Home.open(tmp_path / "home").typing_log() as log:
        assert log.read(10) == ["i will see"]


def test_the_terminal_is_given_back_after_sigterm(terminal):
    keyboard = terminal("--incognito")
    keyboard.press("half a mess")
    keyboard.until("mess")
    assert termios.tcgetattr(keyboard.slave) != keyboard.before
    keyboard.process.send_signal(signal.SIGTERM)
    assert keyboard.process.wait(timeout=30) == 128 + signal.SIGTERM
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
