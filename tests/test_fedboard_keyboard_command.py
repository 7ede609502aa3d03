"""`fedboard keyboard` and `fedboard predict` as commands: what they refuse, and what they take."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from device_runtime import bundle, interpreter
from device_runtime.home import Home
from device_runtime.shown import printable
from fedboard import cli
from fedboard.cli import app

WAIT_S = 60.0


@pytest.fixture
def trust(trusted, tmp_path):
    """Words of a command line that trust the maker of the tiny bundle."""
    key = tmp_path / "maker.pub"
    key.write_text(next(iter(trusted)) + "\n")
    return ["--trust", str(key)]


@pytest.fixture
def packed(tiny_bundle, tmp_path) -> Path:
    """The tiny bundle as one file."""
    bundle.write_zip(tiny_bundle, tmp_path / "bundle.zip")
    return tmp_path / "bundle.zip"


class Typist:
    """`fedboard keyboard` in a terminal of its own, whose window can be closed."""

    def __init__(self, *words: object):
        self.master, slave = pty.openpty()
        command = [sys.executable, "-m", "fedboard.cli", "keyboard", *map(str, words)]
        # its session leader: closing the window hangs it up
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command], stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        self.open = True

    def until(self, pattern: str) -> str:
        """What was shown since now, once it matches."""
        seen, end = "", time.monotonic() + WAIT_S
        while not re.search(pattern, seen):
            assert time.monotonic() < end, seen
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    seen += os.read(self.master, 65536).decode("utf-8", "replace")
                except OSError:  # it ended
                    assert re.search(pattern, seen), seen
        return seen

    def press(self, text: str) -> None:
        os.write(self.master, text.encode())

    def close_window(self) -> None:
        if self.open:
            os.close(self.master)
            self.open = False


@contextmanager
def typing(*words: object) -> Iterator[Typist]:
    typist = Typist(*words)
    try:
        typist.until("keys, ")
        yield typist
    finally:
        typist.close_window()
        if typist.process.poll() is None:
            typist.process.terminate()
        typist.process.wait(timeout=WAIT_S)


@pytest.mark.parametrize("is_empty", [True, False], ids=["an empty folder", "none"])
def test_a_zip_and_a_home_that_is_not_there_yet_are_enough(packed, trust, tmp_path, is_empty):
    home = tmp_path / "home"
    if is_empty:
        home.mkdir()
    with typing(packed, *trust, "--home", home) as typist:
        typist.press("i will see you\r")
        typist.until("i will see you")
        typist.press("\x04")
        typist.until(r"1 messages, ")
        assert typist.process.wait(timeout=WAIT_S) == 0
    with Home.open(home).typing_log() as log:
        assert log.read(9) == ["i will see you"]
    with typing("--home", home) as typist:  # which knows its bundle by now
        typist.press("\x04")
        typist.until("0 messages, ")


def test_a_newer_bundle_installed_on_the_home_a_keyboard_made_is_the_one_it_uses(
    tiny_bundle, signing_key, packed, trust, tmp_path
):
    home, newer = tmp_path / "home", tmp_path / "newer"
    manifest = replace(tiny_bundle.manifest, release=tiny_bundle.manifest.release + 1)
    bundle.write(newer, manifest, tiny_bundle.content, signing_key)
    with typing(packed, *trust, "--home", home) as typist:
        typist.press("\x04")
        typist.until("0 messages, ")
    done = CliRunner().invoke(app, ["device", "install", str(home), str(newer)])
    assert done.exit_code == 0, done.output
    assert Home.open(home).bundle().manifest.release == manifest.release
    with typing("--home", home) as typist:
        typist.press("\x04")
        typist.until("0 messages, ")


def test_closing_the_window_keeps_the_trust_and_what_was_sent(packed, trust, tmp_path):
    home = tmp_path / "home"
    with typing(packed, *trust, "--home", home) as typist:
        typist.press("i will see you\r")
        typist.until("i will see you")
        time.sleep(0.5)
        typist.close_window()
        assert typist.process.wait(timeout=WAIT_S) in (129, -signal.SIGHUP)
    kept = Home.open(home)
    assert kept.kept("own_words.json") is not None
    with kept.typing_log() as log:
        assert log.read(9) == ["i will see you"]


def test_where_no_home_can_be_made_typing_goes_on_and_it_is_said(packed, trust, monkeypatch):
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    with typing(packed, *trust) as typist:
        typist.press("i will see you\r")
        typist.until("i will see you")
        typist.press("\x04")
        typist.until(r"1 messages, ")


@pytest.mark.parametrize("lost", ["settings", "bundle"])
def test_a_home_whose_settings_or_bundle_are_lost_is_typed_on_with_the_reference_bundle(
    packed, trust, tmp_path, lost
):
    home = tmp_path / "home"
    with typing(packed, *trust, "--home", home) as typist:
        typist.press("i will see you\r")
        typist.until("i will see you")
        typist.press("\x04")
        typist.until("1 messages, ")
    if lost == "settings":
        (home / "device.toml").write_text("")
    else:
        packed.unlink()
    with typing("--home", home) as typist:
        typist.press("they like it\r")
        typist.until("they like it")
        typist.press("\x04")
        typist.until("1 messages, ")
    with Home.as_it_is(home).typing_log() as log:
        assert log.read(9) == ["i will see you", "they like it"]


def test_a_folder_of_somebody_else_s_is_refused_and_left_as_it_is(packed, trust, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "letter.txt").write_text("dear")
    typist = Typist(packed, *trust, "--home", tmp_path / "theirs")
    typist.until("RunError: .*theirs")
    assert typist.process.wait(timeout=WAIT_S) == 1
    typist.close_window()
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["letter.txt"]


def command(*words: object, **packages: None) -> subprocess.CompletedProcess[str]:
    """A command where some packages cannot be imported, and no terminal is."""
    code = (
        f"import sys; sys.modules |= dict.fromkeys({list(packages)}); "
        f"sys.argv = ['fedboard', *{list(map(str, words))}]; import fedboard.cli; "
        "fedboard.cli.main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("package", cli.EXTRAS["keyboard"])
def test_without_what_draws_it_the_extra_is_named_and_nothing_is_made(tmp_path, package):
    done = command("keyboard", "--home", tmp_path / "home", **{package: None})
    assert done.returncode == 1
    assert done.stderr == (
        f"fedboard: expected the package {package} for this command, found none; install "
        "fedboard[keyboard]\n"
    )
    assert not (tmp_path / "home").exists()


def test_without_a_terminal_nothing_is_made(packed, trust, tmp_path):
    done = command("keyboard", packed, *trust, "--home", tmp_path / "home")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("RunError: fedboard keyboard: expected a terminal; ")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("words", [["predict", "hi"], ["keyboard"]], ids=["predict", "keyboard"])
def test_without_an_interpreter_the_device_s_extra_is_named(
    packed, trust, tmp_path, monkeypatch, words
):
    monkeypatch.delenv(interpreter.CHOICE, raising=False)
    monkeypatch.setattr(interpreter, "installed", list)
    monkeypatch.setattr("fedboard.terminal_keyboard.require_terminal", lambda: None)
    monkeypatch.chdir(tmp_path)
    name, *rest = words
    done = CliRunner().invoke(app, [name, str(packed), *rest, *trust])
    assert done.exit_code == 1
    assert "pip install 'fedboard[device]'" in str(done.exception)


def conversed(packed, trust, text: str) -> list[str]:
    """What `fedboard predict` prints for these lines, without the first strip."""
    done = CliRunner().invoke(app, ["predict", str(packed), *trust], input=text.encode())
    assert done.exit_code == 0, done.output
    return done.output.splitlines()[1:]


LINES = ["hello [/] world", "[/", "[bold]x", ":smile: ", "\\[/]", "2 eggs", "call 1234", "{x}"]


@pytest.mark.parametrize("line", [*LINES, "\x1b[31mred", "\u202etext", "12", "2 ", "4", "١"])
def test_a_line_is_echoed_as_it_was_typed(packed, trust, line):
    (said,) = conversed(packed, trust, line + "\n")
    assert said.startswith(printable(line) + "|  ")


@given(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=40))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_line_at_all_is_echoed(packed, trust, line):
    (said,) = conversed(packed, trust, f"{line}x\n")
    assert said.startswith(printable(f"{line}x") + "|  ")


def test_a_digit_alone_on_a_line_takes_a_word_and_with_a_space_behind_it_is_text(packed, trust):
    said = conversed(packed, trust, "i will s\n1\n2 \n")
    assert [line.partition("|")[0] for line in said] == ["i will s", "i will see ", "2 "]
