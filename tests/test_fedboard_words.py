"""`fedboard words`: what was learned on a device is seen, forgotten, barred and moved."""

import json

import pytest
from typer.testing import CliRunner

from device_runtime import moved
from device_runtime.home import DeviceConfig, Home
from fedboard.cli import app

MESSAGES = [("meet Zarnik today", 1.0), ("i saw Zarnik", 2.0), ("and once Flumberwick", 3.0)]


@pytest.fixture
def home(tmp_path, tiny_bundle, trusted):
    settings = DeviceConfig(tuple(trusted), str(tiny_bundle.path))
    return Home.create(tmp_path / "home", settings, MESSAGES)


def said(*words: object, typed: str | None = None) -> dict:
    done = CliRunner().invoke(app, ["words", *map(str, words), "--json"], input=typed)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout[done.stdout.index("{") :])


def test_the_list_shows_own_words_as_they_are_written_and_only_learned_ones(home):
    words = said("list", home.folder)["words"]
    assert {"word": "Zarnik", "typed": 2} in words
    assert "Flumberwick" not in [each["word"] for each in words]


def test_a_forgotten_word_is_blanked_out_and_its_messages_stay(home):
    assert said("forget", home.folder, "zarnik", "--yes") == {"messages": 2}
    with home.typing_log() as log:
        assert len(log.read(9)) == 3
        assert not any("arnik" in message for message in log.read(9))
    assert said("list", home.folder)["words"] == []


def test_a_word_is_asked_for_so_that_it_stays_out_of_the_history(home):
    assert said("never", home.folder, typed="Zarnik\n")["never"] == ["Zarnik"]


def test_lists_are_kept_and_a_word_can_be_taken_off_them(home):
    said("never", home.folder, "zarnik")
    assert said("list", home.folder)["words"] == []
    assert said("allow", home.folder, "flumberwick")["allow"] == ["flumberwick"]
    words = [each["word"] for each in said("list", home.folder)["words"]]
    assert words == ["Flumberwick"] or words == ["flumberwick"]
    assert said("never", home.folder, "zarnik", "--remove")["never"] == []


def test_what_is_no_word_is_one_clear_error(home):
    done = CliRunner().invoke(app, ["words", "never", str(home.folder), "two words"])
    assert done.exit_code != 0
    assert "expected one word" in str(done.exception)


def test_words_move_to_another_phone(home, tmp_path, tiny_bundle, trusted, monkeypatch):
    monkeypatch.setattr(moved, "COST", 2)
    said("never", home.folder, "flumberwick")
    (tmp_path / "secret").write_text("five green umbrellas\n")
    file, secret = tmp_path / "moved", ("--passphrase-file", tmp_path / "secret")
    assert said("export", home.folder, file, *secret)["messages"] == 3
    settings = DeviceConfig(tuple(trusted), str(tiny_bundle.path))
    new = Home.create(tmp_path / "new", settings)
    taken = said("import", new.folder, file, *secret)
    assert taken == {"messages": 3, "never": 1, "allow": 0}
    assert said("list", new.folder) == said("list", home.folder)
