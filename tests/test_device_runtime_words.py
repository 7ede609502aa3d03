"""The user's own lists: words never to offer, and words always allowed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import words
from device_runtime.errors import ConfigError
from device_runtime.home import DeviceConfig, Home
from device_runtime.words import Lists

WORD = st.sampled_from(["zarnik", "Don't", "Kraków", "krakow", "привет", "dont"])


@pytest.fixture
def home(tmp_path):
    return Home.create(tmp_path / "home", DeviceConfig(trusted=()))


def test_a_word_on_the_list_is_barred_however_it_is_spelled():
    lists = words.with_never(Lists(), "Don't")
    assert lists.barred("don't") and lists.barred("dont")
    assert not lists.barred("do")
    assert words.with_never(Lists(), "krakow").barred("kraków")


def test_to_allow_a_word_takes_it_off_the_other_list_and_the_other_way_round():
    never = words.with_never(Lists(), "zarnik")
    assert words.with_allowed(never, "Zarnik") == Lists(allow=("Zarnik",))
    assert words.with_never(words.with_allowed(never, "Zarnik"), "zarnik") == never


@given(st.lists(st.tuples(st.sampled_from(["never", "allow", "without"]), WORD)))
def test_no_word_is_on_both_lists_or_twice_on_one(steps):
    lists = Lists()
    change = {"never": words.with_never, "allow": words.with_allowed, "without": words.without}
    for step, word in steps:
        lists = change[step](lists, word)
    plain = [words.text.plain(word) for word in (*lists.never, *lists.allow)]
    assert len(plain) == len(set(plain))


def test_lists_are_kept_sealed_and_read_again(home):
    assert words.read(home) == Lists()
    lists = Lists(never=("flumberwick",), allow=("Łukasz",))
    words.keep(home, lists)
    assert words.read(home) == lists
    assert not any(
        b"flumberwick" in path.read_bytes() for path in home.folder.rglob("*") if path.is_file()
    )


def test_damaged_lists_are_one_clear_error_and_stay_where_they_are(home):
    home.keep(words.FILE, b"damaged")
    with pytest.raises(ConfigError, match=r"cannot be opened.*move it out of the folder"):
        words.read(home)
    assert home.kept(words.FILE) == b"damaged"


@pytest.mark.parametrize("given_word", ["", "two words", ":)", "4711", "a@b.example", "."])
def test_what_is_no_word_is_refused_and_not_quoted(given_word):
    with pytest.raises(ConfigError, match="expected one word") as error:
        words.require_word(given_word)
    assert not given_word.strip() or given_word not in str(error.value)


def test_a_word_is_taken_as_it_is_written():
    assert words.require_word(" Kraków ") == "Kraków"
