"""The keyboard of a device, without a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import bundle
from device_runtime.home import OWN_WORDS, DeviceConfig, Home
from device_runtime.keyboard import Keyboard, accept, home_of, split
from device_runtime.sensors import LAST_KEY


@pytest.fixture
def home(tmp_path, tiny_bundle, trusted) -> Home:
    settings = DeviceConfig(tuple(trusted), str(tiny_bundle.path))
    return Home.create(tmp_path / "phone", settings)


def recorded(home: Home) -> list[str]:
    with home.typing_log() as log:
        return log.read(log.count())


@given(st.text(max_size=30))
def test_context_and_word_are_the_whole_text_and_the_word_has_no_space(typed):
    context, word = split(typed)
    assert context + word == typed
    assert not any(character.isspace() for character in word)


def test_a_suggestion_keeps_the_capitals_of_the_word_it_completes():
    assert [accept(typed, "see") for typed in ("i will s", "S", "SE", "")] == [
        "i will see ",
        "See ",
        "SEE ",
        "see ",
    ]


def test_what_is_suggested_follows_what_was_typed_and_completes_the_word_begun(tiny_bundle):
    keyboard = Keyboard(None, tiny_bundle)
    assert len(keyboard.suggest("i will ")) == 3
    assert all(each.word.startswith("s") for each in keyboard.suggest("i will s"))
    assert keyboard.suggest("i will zzz") == []


def test_a_sent_message_is_recorded_and_learned_and_a_private_one_is_neither(home, tiny_bundle):
    with Keyboard(home, tiny_bundle, now=lambda: 5.0) as keyboard:
        keyboard.type()
        keyboard.send("i will see okapi")
        keyboard.send("my secret quagga", private=True)
        assert [each.word for each in keyboard.suggest("okap")] == ["okapi"]
        assert keyboard.suggest("quag") == []
    assert recorded(home) == ["i will see okapi"]
    assert (home.folder / LAST_KEY).exists()
    assert home.kept(OWN_WORDS) is not None


def test_a_keyboard_without_a_home_records_nothing(tiny_bundle, tmp_path):
    with Keyboard(None, tiny_bundle) as keyboard:
        keyboard.type()
        keyboard.send("i will see okapi")
        assert keyboard.suggest("okap") == []
    assert list(tmp_path.iterdir()) == []


def test_a_keyboard_opened_again_knows_the_words_of_its_log(home, tiny_bundle):
    with Keyboard(home, tiny_bundle) as keyboard:
        keyboard.send("see you at the okapi")
    assert [each.word for each in Keyboard(home, tiny_bundle).suggest("okap")] == ["okapi"]


def test_a_session_that_breaks_off_keeps_no_trust_and_a_damaged_one_is_learned_again(
    home, tiny_bundle
):
    with pytest.raises(KeyboardInterrupt), Keyboard(home, tiny_bundle) as keyboard:
        keyboard.send("i will see you")
        raise KeyboardInterrupt
    assert home.kept(OWN_WORDS) is None
    home.keep(OWN_WORDS, b"{damaged")
    with Keyboard(home, tiny_bundle):
        pass
    assert home.kept(OWN_WORDS) != b"{damaged"


def test_a_home_is_made_on_first_use_from_a_folder_or_a_zip(tmp_path, tiny_bundle, trusted):
    bundle.write_zip(tiny_bundle, tmp_path / "bundle.zip")
    zipped = bundle.open_verified(tmp_path / "bundle.zip", trusted)
    for name, opened in (("folder", tiny_bundle), ("zip", zipped)):
        home = home_of(tmp_path / name, opened)
        assert home.config.trusted == tuple(trusted)
        assert home.bundle().manifest == tiny_bundle.manifest
        assert home_of(tmp_path / name, opened).folder == home.folder  # the same again
