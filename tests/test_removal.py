"""Removal is proved: no process offers a removed word, no file holds it, no update has it."""

import subprocess
import sys
import time

import pytest

from device_runtime import local, personal
from device_runtime.home import DeviceConfig, Home
from device_runtime.keyboard import Keyboard

OPEN = """
import sys
from device_runtime.home import Home
from device_runtime.keyboard import Keyboard
home = Home.open(sys.argv[1])
with Keyboard(home, home.bundle()) as keyboard:
    for line in sys.stdin:
        words = [each.token for each in keyboard.suggest(line.rstrip("\\n"), 9)]
        print(" ".join(words), flush=True)
"""
WORD, KNOWN = "zarnik", "dog"
MESSAGES = [f"i like {WORD} and my {KNOWN}", f"we can hear {WORD}", "they like it"] * 20


@pytest.fixture
def home(tmp_path, tiny_bundle, trusted):
    settings = DeviceConfig(tuple(trusted), str(tiny_bundle.path))
    typed = [(message, time.time() + place) for place, message in enumerate(MESSAGES)]
    return Home.create(tmp_path / "home", settings, typed)


@pytest.fixture
def other(home):
    """A keyboard that another process has open; asked with a text, it says what it offers."""
    process = subprocess.Popen(
        [sys.executable, "-c", OPEN, str(home.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def offers(typed: str) -> list[str]:
        process.stdin.write(typed + "\n")
        process.stdin.flush()
        return process.stdout.readline().split()

    yield offers
    process.stdin.close()
    assert process.wait(timeout=60) == 0


def trained_rows(home, bundle):
    """The rows that the next update of this device is trained on."""
    with home.typing_log() as log:
        records = log.records(100, usable=True, held=False)
    return local.rows_of(records, bundle.vocabulary, bundle.plan, 100)[1]


def holding(home, word: str) -> list[str]:
    """Files of a home in which a word stands as it is, in whatever case."""
    return [
        str(path.relative_to(home.folder))
        for path in home.folder.rglob("*")
        if path.is_file() and word.encode() in path.read_bytes().lower()
    ]


def test_a_forgotten_word_is_offered_by_nobody_held_by_no_file_and_in_no_update(
    home, other, tiny_bundle
):
    with Keyboard(home, tiny_bundle) as mine:
        assert WORD in [each.token for each in mine.suggest("zar")]
        assert WORD in other("zar")
        personal.update(home, tiny_bundle, time.time(), lambda: True)
        known = tiny_bundle.vocabulary.id(KNOWN)
        assert (trained_rows(home, tiny_bundle) == known).any()
        assert home.forget_word(WORD) == 40
        assert home.forget_word(KNOWN) == 20
        assert WORD not in [each.token for each in mine.suggest("zar")]
        assert WORD not in other("zar")
    # after every keyboard has written what it keeps
    assert holding(home, WORD) == []
    with home.typing_log() as log:
        assert not any(WORD in text or KNOWN in text for text, _ in log.dated())
    assert not (trained_rows(home, tiny_bundle) == known).any()


def test_a_wiped_device_offers_nothing_that_was_typed_and_types_on(home, other, tiny_bundle):
    with Keyboard(home, tiny_bundle) as mine:
        assert WORD in other("zar")
        home.wipe()
        assert WORD not in [each.token for each in mine.suggest("zar")]
        assert WORD not in other("zar")
        mine.send("hello again")
    assert holding(home, WORD) == []
    with home.typing_log() as log:
        assert log.read(9) == ["hello again"]


def test_a_barred_word_is_offered_by_nobody_and_comes_back_when_it_is_allowed(
    home, other, tiny_bundle
):
    with Keyboard(home, tiny_bundle) as mine:
        mine.never(WORD)
        assert WORD not in other("zar")
        mine.never("Dog")  # the network knows it too
        assert KNOWN not in other("my ")
        mine.allow(WORD)
        assert WORD in other("zar")
