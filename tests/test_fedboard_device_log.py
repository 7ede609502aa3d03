"""`fedboard device log forget`: some of what was typed goes, and none of it is shown."""

import json
import subprocess
import sys
import time

import pytest

from device_runtime.home import DeviceConfig, Home


def forget(*words: object, typed: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fedboard.cli", "device", "log", "forget", *map(str, words)]
    return subprocess.run(command, input=typed, capture_output=True, text=True)


@pytest.fixture
def home(tmp_path):
    now = time.time()
    typed = [
        ("the blue okapi", now - 7200.0),
        ("hello", now - 7100.0),
        ("Blue, OKAPI!", now - 60.0),
        ("bye", now - 50.0),
    ]
    return Home.create(tmp_path / "phone", DeviceConfig((), "bundle"), typed)


def left(home):
    with home.typing_log() as log:
        return log.read(10)


def test_messages_with_the_words_go_after_asking_and_are_never_shown(home):
    refused = forget(home.folder, "blue okapi", typed="n\n")
    assert refused.returncode != 0 and len(left(home)) == 4
    done = forget(home.folder, "blue okapi", typed="y\n")
    assert done.stdout.strip() == "2 removed; 2 messages in the log"
    assert left(home) == ["hello", "bye"]
    assert not any(
        "okapi" in said for said in (refused.stdout, refused.stderr, done.stdout, done.stderr)
    )


def test_what_was_learned_from_the_log_goes_with_a_message_and_stays_without(home):
    home.keep("own_words.json", b"{}")
    assert forget(home.folder, "zebra", "--yes").stdout.startswith("0 removed")
    assert home.kept("own_words.json") == b"{}"
    forget(home.folder, "okapi", "--yes")
    assert home.kept("own_words.json") is None


def test_the_words_may_be_asked_for_so_that_no_history_keeps_them(home):
    done = forget(home.folder, "--yes", "--json", typed="blue okapi\n")
    assert json.loads(done.stdout) == {"removed": 2, "messages": 2}


def test_the_last_hour_goes(home):
    assert (
        forget(home.folder, "--last-hours", 1, "--yes").stdout
        == "2 removed; 2 messages in the log\n"
    )
    assert left(home) == ["the blue okapi", "hello"]


def test_words_and_hours_together_are_refused(home):
    refused = forget(home.folder, "okapi", "--last-hours", 1, "--yes")
    assert refused.returncode == 1 and "leave out one of them" in refused.stderr
    assert len(left(home)) == 4
