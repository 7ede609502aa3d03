"""The keyboard of a device, without a terminal."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import bundle, config, durable, personal
from device_runtime.bundle import BLOCKED, PREDICT, SIGNATURE, TOKENIZER
from device_runtime.errors import BundleError, ConfigError, RunError
from device_runtime.home import (
    BUNDLES,
    CONFIG,
    OWN_WORDS,
    PERSONAL,
    REMOVED,
    TYPING_LOG,
    DeviceConfig,
    Home,
)
from device_runtime.installed import POINTER
from device_runtime.keyboard import Keyboard, accept, home_of, newest, split
from device_runtime.keystore import key_path
from device_runtime.own_words import MOST_TOKENS, read_trust
from device_runtime.sensors import LAST_KEY
from device_runtime.weights import digest
from device_runtime.wire import DAY_S
from model import vocabulary
from tests.kill_points import every_kill_point


@pytest.fixture
def home(tmp_path, tiny_bundle, trusted) -> Home:
    settings = DeviceConfig(tuple(trusted), str(tiny_bundle.path))
    return Home.create(tmp_path / "phone", settings)


def recorded(home: Home) -> list[str]:
    with home.typing_log() as log:
        return log.read(log.count())


@settings(deadline=None)  # the first text compiles the rules
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


def test_the_strip_stands_still_while_a_word_is_typed_and_deleted(tiny_bundle):
    keyboard = Keyboard(None, tiny_bundle)
    for typed in ("i will ", "i will s", "i will se", "i will s", "i will ", "i will t"):
        before = keyboard.places(typed)
        again = keyboard.places(typed)
        assert before == again
        assert {each.token for each in again if each} == {
            each.token for each in keyboard.suggest(typed)
        }
    next_word, longer = keyboard.places("they "), keyboard.places("they w")
    for first, second in zip(next_word, longer, strict=True):
        if first and first.token.startswith("w"):
            assert second == first or second.token == first.token
    best = keyboard.suggest("i will ")[0]
    assert keyboard.places("i will ")[1] == best  # another word: the best in the centre


def test_a_sent_message_is_recorded_and_learned_and_a_private_one_is_neither(home, tiny_bundle):
    with Keyboard(home, tiny_bundle, now=lambda: 5.0) as keyboard:
        keyboard.type()
        for _ in range(2):
            keyboard.send("i will see okapi")
            keyboard.send("my secret quagga", private=True)
        assert [each.word for each in keyboard.suggest("the okap")] == ["okapi"]
        assert keyboard.suggest("quag") == []
    assert recorded(home) == ["i will see okapi"] * 2
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
        keyboard.send("the okapi")
    assert [each.word for each in Keyboard(home, tiny_bundle).suggest("the okap")] == ["okapi"]


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit(129), RuntimeError])
def test_a_session_that_breaks_off_keeps_its_trust(home, tiny_bundle, end):
    with pytest.raises(BaseException), Keyboard(home, tiny_bundle) as keyboard:  # noqa: B017
        keyboard.send("i will see you")
        raise end
    assert read_trust(home.kept(OWN_WORDS), OWN_WORDS).words == 4


def test_a_damaged_trust_is_learned_again(home, tiny_bundle):
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


# --- what takes the place of what it uses while it is open
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path, tiny_bundle, signing_key):
    """Other bundles of the same maker: files in the place of the tiny bundle's own."""

    def make(release: int, path: Path | None = None, **files: bytes) -> Path:
        path = path or tmp_path / f"release-{release}"
        named = {{"blocked": BLOCKED, "tokenizer": TOKENIZER}[name]: files[name] for name in files}
        content = {**tiny_bundle.content, **named}
        manifest = replace(
            tiny_bundle.manifest,
            release=release,
            files=bundle.describe(content),
            tokenizer=digest(content[TOKENIZER]),
        )
        bundle.write(path, manifest, content, signing_key)
        return path

    return make


@pytest.fixture
def phone(tmp_path, trusted, made) -> Home:
    """A device with a bundle installed in its home."""
    return Home.create(tmp_path / "phone", DeviceConfig(tuple(trusted)), bundle=made(1))


def words(keyboard: Keyboard, typed: str) -> list[str]:
    return [each.token for each in keyboard.suggest(typed)]


def test_a_release_that_is_installed_while_one_types_is_used_at_the_next_key(phone, made):
    with Keyboard(phone, phone.bundle()) as keyboard:
        before = words(keyboard, "i will ")
        phone.install(made(2, blocked=before[0].encode()))
        after = words(keyboard, "i will ")
        assert before[0] not in after
        assert after[:2] == before[1:]
        assert keyboard.suggest("i will see my ") == Keyboard(phone, phone.bundle()).suggest(
            "i will see my "
        )


def test_own_words_carry_over_to_another_vocabulary(phone, made, tiny_vocabulary):
    made_up = [a + b for a in "abcde" for b in "vwxyz"]
    # as many ids, so that the graph stays
    others = [vocabulary.build([["grazes", "grazes", *made_up]], size) for size in range(20, 28)]
    other = next(each for each in others if len(each) == len(tiny_vocabulary))
    with Keyboard(phone, phone.bundle()) as keyboard:
        for _ in range(3):
            keyboard.send("the quagga sees the okapi")
        phone.install(made(2, tokenizer=other.model))
        assert words(keyboard, "quag") == ["quagga"]  # of neither vocabulary
        assert words(keyboard, "tomo") == []  # of the old one, and never typed
        assert words(keyboard, "gra") == ["grazes"]  # of the new one
    with Keyboard(phone, phone.bundle()) as anew:
        assert words(anew, "quag") == ["quagga"]


@pytest.mark.parametrize("damage", ["pointer", "bundle", "gone", "other maker"])
def test_what_cannot_be_used_leaves_the_strip_as_it_is_until_it_can(
    phone, made, damage, tmp_path, tiny_bundle
):
    pointer = phone.folder / BUNDLES / POINTER
    with Keyboard(phone, phone.bundle()) as keyboard:
        before = words(keyboard, "i will ")
        phone.install(made(2, blocked=before[0].encode()))
        whole = pointer.read_bytes()
        folder = phone.bundle().path
        graph = (folder / PREDICT).read_bytes()
        if damage == "pointer":
            pointer.write_bytes(b"{")
            (folder / PREDICT).unlink()
        elif damage == "bundle":
            (folder / PREDICT).write_bytes(graph[:-1] + bytes([graph[-1] ^ 1]))
        elif damage == "gone":
            pointer.unlink()
        else:
            signature = (folder / SIGNATURE).read_bytes()
            (folder / SIGNATURE).write_bytes(b"0" * 64 + signature[64:])
        assert words(keyboard, "i will ") == before
        (folder / PREDICT).write_bytes(graph)
        if damage == "other maker":
            (folder / SIGNATURE).write_bytes(signature)
        durable.write(pointer, whole)
        assert before[0] not in words(keyboard, "i will ")


def test_a_bundle_used_in_place_is_followed_too(tmp_path, trusted, made):
    path = made(1)
    opened = bundle.open_verified(path, trusted)
    home = Home.create(tmp_path / "phone", DeviceConfig(tuple(trusted), str(path)))
    with Keyboard(home, opened) as own, Keyboard(None, opened) as bare:
        before = words(bare, "i will ")
        made(2, path, blocked=before[0].encode())
        assert before[0] not in words(bare, "i will ")
        assert before[0] not in words(own, "i will ")


def test_a_bundle_chosen_by_hand_stays_whatever_is_installed(phone, made, trusted):
    chosen = bundle.open_verified(made(3, blocked=b"tomorrow"), trusted)
    with Keyboard(phone, chosen) as keyboard:
        before = words(keyboard, "i will ")
        phone.install(made(2, blocked=before[0].encode()))
        assert words(keyboard, "i will ") == before


def test_a_release_that_came_before_the_keyboard_was_ready_is_used_at_the_first_key(phone, made):
    opened = phone.bundle()
    best = words(Keyboard(None, opened), "i will ")[0]
    phone.install(made(2, blocked=best.encode()))
    with Keyboard(phone, opened) as keyboard:
        assert best not in words(keyboard, "i will ")


def test_a_personal_network_is_used_at_the_next_key_and_the_mix_has_to_win_beside_it_anew(phone):
    with Keyboard(phone, phone.bundle()) as keyboard:
        for _ in range(60):
            keyboard.send("you can hear her tomorrow")
        alone = keyboard.suggest("you can ", k=40)
        verdict = personal.update(phone, phone.bundle(), 1000.0, lambda: True)
        assert verdict.serves
        assert keyboard.suggest("you can ", k=40) != alone
        keyboard.send("you can hear her tomorrow")  # and now they are learned beside it
    assert read_trust(phone.kept(OWN_WORDS), OWN_WORDS).network == verdict.weights
    with Keyboard(phone, phone.bundle()) as keyboard:
        with_it = keyboard.suggest("you can ", k=40)
        phone.keep(PERSONAL, config.to_json(replace(verdict, weights="")))
        assert keyboard.suggest("you can ", k=40) != with_it
    # nobody has judged them beside everybody's network: the next keyboard does
    trust = read_trust(phone.kept(OWN_WORDS), OWN_WORDS)
    assert (trust.words, trust.network) == (0, "")
    with Keyboard(phone, phone.bundle()):
        pass
    assert read_trust(phone.kept(OWN_WORDS), OWN_WORDS).words == 61 * 5


# --- what is removed elsewhere is gone here
# ------------------------------------------------------------------------------------------------

REMOVALS = {
    "forget": lambda home: home.forget("flumberwick"),
    "forget since": lambda home: home.forget_since(0.0),
    "forget word": lambda home: home.forget_word("Flumberwick"),
    "wipe": lambda home: home.wipe(),
    "wipe everything": lambda home: home.wipe(everything=True),
}


def elsewhere(home: Home, remove: Callable[[Home], object]) -> None:
    """In another process."""
    child = os.fork()
    if not child:
        status = 1
        try:
            remove(Home.open(home.folder))
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def typed_on(home: Home, bundle, now: Callable[[], float] = time.time) -> Keyboard:
    keyboard = Keyboard(home, bundle, now)
    for _ in range(3):
        keyboard.send("see the flumberwick")
    assert words(keyboard, "flum") == ["flumberwick"]
    return keyboard


@pytest.mark.parametrize("name", REMOVALS)
def test_what_another_process_removes_is_gone_at_the_next_key_and_stays_gone(
    home, tiny_bundle, name
):
    keyboard = typed_on(home, tiny_bundle)
    elsewhere(home, REMOVALS[name])
    assert words(keyboard, "flum") == []
    keyboard.close()
    assert not (home.folder / OWN_WORDS).exists()
    assert words(keyboard, "flum") == []


@pytest.mark.parametrize("name", REMOVALS)
def test_a_keyboard_that_leaves_after_a_removal_writes_nothing_of_before_it_back(
    home, tiny_bundle, name
):
    keyboard = typed_on(home, tiny_bundle)
    elsewhere(home, REMOVALS[name])
    keyboard.close()  # without another key
    assert not (home.folder / OWN_WORDS).exists()


def test_after_a_wipe_a_keyboard_records_and_learns_anew(home, tiny_bundle):
    with typed_on(home, tiny_bundle) as keyboard:
        elsewhere(home, REMOVALS["wipe"])
        for _ in range(2):
            keyboard.send("the quagga sees me")
        assert words(keyboard, "quag") == ["quagga"]
        assert words(keyboard, "flum") == []
    assert recorded(home) == ["the quagga sees me"] * 2
    assert keyboard.notice() is None
    assert home.kept(OWN_WORDS) is not None


def test_after_a_wipe_of_everything_nothing_is_recorded_and_that_is_said_once(home, tiny_bundle):
    with typed_on(home, tiny_bundle) as keyboard:
        elsewhere(home, REMOVALS["wipe everything"])
        for _ in range(2):
            keyboard.type()
            keyboard.send("the quagga sees me")
            assert len(words(keyboard, "i will ")) == 3
        said = keyboard.notice()
        assert said.startswith("nothing is recorded any more") and str(home.folder) in said
        assert keyboard.notice() is None
        assert words(keyboard, "quag") == []
    assert not home.folder.exists()


def test_after_a_wipe_of_everything_a_file_of_somebody_elses_stays_alone(home, tiny_bundle):
    (home.folder / "letter.txt").write_text("mine")
    with typed_on(home, tiny_bundle) as keyboard:
        elsewhere(home, REMOVALS["wipe everything"])
        keyboard.type()
        keyboard.send("the quagga sees me")
    assert [path.name for path in home.folder.iterdir()] == ["letter.txt"]


def test_a_word_is_forgotten_in_place_and_its_messages_stay(home, tiny_bundle):
    with typed_on(home, tiny_bundle) as keyboard:
        keyboard.send("the quagga")
        keyboard.send("a Quagga")
        assert keyboard.forget("quagga") == 2
        assert words(keyboard, "quag") == []
        assert words(keyboard, "flum") == ["flumberwick"]
        assert recorded(home)[-2:] == ["the <#>", "a <#>"]
        assert keyboard.forget("quagga") == 0
    assert words(Keyboard(home, tiny_bundle), "quag") == []


def test_a_removal_that_was_killed_is_followed_within_a_second_though_nobody_ends_it(
    home, tiny_bundle
):
    clock = [5.0]
    keyboard = typed_on(home, tiny_bundle, lambda: clock[0])
    home.keep(REMOVED, b"1\n")  # it began
    assert words(keyboard, "flum") == ["flumberwick"]
    with home.typing_log() as log:
        log.mask("flumberwick")  # and was killed
    clock[0] += 1.5
    assert words(keyboard, "flum") == []
    keyboard.close()
    assert home.kept(OWN_WORDS) is None


def test_a_personal_network_goes_with_what_was_typed(phone):
    with Keyboard(phone, phone.bundle()) as keyboard:
        before = keyboard.suggest("you can ", k=40)
        for _ in range(60):
            keyboard.send("you can hear her tomorrow")
        assert personal.update(phone, phone.bundle(), 1000.0, lambda: True).serves
        assert keyboard.suggest("you can ", k=40) != before
        elsewhere(phone, REMOVALS["wipe everything"])
        assert keyboard.suggest("you can ", k=40) == before


def test_killed_at_any_step_a_word_that_is_forgotten_is_wholly_there_or_wholly_gone(
    fast_folder, tiny_bundle, trusted
):
    """Whatever is left of a killed one, what was learned goes first, and doing it again ends it."""
    settings = DeviceConfig(tuple(trusted), str(tiny_bundle.path))
    script = """
from device_runtime.home import Home

def work(folder):
    Home.open(folder / "phone").forget_word("flumberwick")
"""
    typed = [("see the flumberwick", 1.0), ("Flumberwick sees you", 2.0), ("see you", 3.0)]
    gone = ["see the <#>", "<#> sees you", "see you"]
    learned, outcomes = (OWN_WORDS, "unfinished", "sealed_update", "personal.sealed"), set()

    def prepare(folder):
        home = Home.create(folder / "phone", settings, typed)
        for name in learned:
            home.keep(name, b"learned")

    def check(folder):
        home = Home.open(folder / "phone")
        there = recorded(home)
        outcomes.add(there == gone)
        assert there in ([text for text, _ in typed], gone)
        if there == gone:
            assert not any(home.kept(name) for name in learned)
        home.forget_word("flumberwick")
        assert recorded(home) == gone and home.removals() % 2 == 0

    assert every_kill_point(script, fast_folder / "work", prepare, check) > 10
    assert outcomes == {True, False}


# --- the user's own lists
# ------------------------------------------------------------------------------------------------


def test_a_word_never_to_be_offered_is_not_from_any_list_here_and_elsewhere(home, tiny_bundle):
    with Keyboard(home, tiny_bundle) as keyboard, Keyboard(home, tiny_bundle) as other:
        best = words(keyboard, "i will ")
        keyboard.never(best[0].upper())
        for each in (keyboard, other, Keyboard(home, tiny_bundle)):
            assert best[0] not in words(each, "i will ")
            assert words(each, "i will ")[:2] == best[1:]
        other.allow(best[0])
        assert words(keyboard, "i will ") == best


def test_an_allowed_word_is_offered_though_it_is_blocked_or_was_never_sent(phone, made):
    phone.install(made(2, blocked=b"tomorrow"))
    with Keyboard(phone, phone.bundle()) as keyboard:
        assert words(keyboard, "tomo") == []
        keyboard.allow("tomorrow")
        keyboard.allow("okapi")
        assert words(keyboard, "tomo") == ["tomorrow"]
        assert words(keyboard, "oka") == ["okapi"]
    with Keyboard(phone, phone.bundle()) as anew:
        assert words(anew, "tomo") == ["tomorrow"]
        assert words(anew, "oka") == ["okapi"]
        anew.forget("okapi")
        assert words(anew, "oka") == []


def test_a_wipe_takes_the_lists_and_forgetting_messages_does_not(home, tiny_bundle):
    with typed_on(home, tiny_bundle) as keyboard:
        best = words(keyboard, "i will ")[0]
        keyboard.never(best)
        home.forget("flumberwick")
        assert best not in words(keyboard, "i will ")
        home.wipe()
        assert best in words(keyboard, "i will ")


def test_what_is_no_word_joins_no_list(home, tiny_bundle):
    with Keyboard(home, tiny_bundle) as keyboard:
        for text in ("", "two words", "12", ":-)"):
            with pytest.raises(ConfigError):
                keyboard.never(text)


# --- storage never stops typing
# ------------------------------------------------------------------------------------------------


def no_key(home: Home) -> None:
    key_path(home.folder / TYPING_LOG).unlink()


def another_key(home: Home) -> None:
    key_path(home.folder / TYPING_LOG).write_bytes(os.urandom(32))


def damaged(home: Home) -> None:
    (home.folder / TYPING_LOG).write_bytes(b"no database at all, but long enough for one " * 40)


def foreign(home: Home) -> None:
    (home.folder / TYPING_LOG).unlink()
    with contextlib.closing(sqlite3.connect(home.folder / TYPING_LOG)) as db:
        db.execute("CREATE TABLE songs (title)")


def a_folder(home: Home) -> None:
    (home.folder / TYPING_LOG).unlink()
    (home.folder / TYPING_LOG).mkdir()


TROUBLES = [no_key, another_key, damaged, foreign, a_folder]


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("when", ["before", "while"])
def test_a_keyboard_types_on_whatever_is_wrong_with_its_log_and_says_so_once(
    home, tiny_bundle, trouble, when
):
    if when == "before":
        trouble(home)
    with Keyboard(home, tiny_bundle) as keyboard:
        if when == "while":
            keyboard.send("hello")
            trouble(home)
        for _ in range(3):
            keyboard.type()
            keyboard.send("i will see you")
            assert len(words(keyboard, "i will ")) == 3
        said = keyboard.notice()
        assert said.startswith("nothing is recorded: ")
        assert not any(word in said for word in ("wipe", "delete", "remove", "see you"))
        assert keyboard.notice() is None


def test_what_could_not_be_recorded_is_once_the_log_takes_it_again(home, tiny_bundle):
    key = key_path(home.folder / TYPING_LOG)
    with Keyboard(home, tiny_bundle) as keyboard:
        keyboard.send("one")
        kept = key.rename(home.folder / "kept")
        keyboard.send("two")
        assert "key" in keyboard.notice()
        kept.rename(key)
        keyboard.send("three")
        assert recorded(home) == ["one", "two", "three"]
        key.rename(kept)
        keyboard.send("four")
        kept.rename(key)
    assert recorded(home) == ["one", "two", "three", "four"]


def test_a_locked_log_is_waited_for_no_longer_than_anybody_waits_for_a_key(home, tiny_bundle):
    locked = sqlite3.connect(home.folder / TYPING_LOG)
    with contextlib.closing(locked) as db, Keyboard(home, tiny_bundle) as keyboard:
        db.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        keyboard.send("i will see you")
        assert time.monotonic() - begun < 10.0
        assert "wait for the process" in keyboard.notice()
        db.rollback()
    assert recorded(home) == ["i will see you"]  # when it was left


def test_an_altered_record_is_passed_over(home, tiny_bundle):
    typed_on(home, tiny_bundle).close()
    with contextlib.closing(sqlite3.connect(home.folder / TYPING_LOG)) as db, db:
        db.execute("UPDATE records SET sealed = zeroblob(40) WHERE id = 2")
    with Keyboard(home, tiny_bundle) as keyboard:
        assert words(keyboard, "flum") == ["flumberwick"]
        assert keyboard.notice() is None


@pytest.mark.parametrize("settings", [b"", b"trusted = 5", b"\xff\xfe", b"trusted = ["])
def test_a_device_of_damaged_settings_is_typed_on_and_can_be_wiped(home, tiny_bundle, settings):
    typed_on(home, tiny_bundle).close()
    (home.folder / CONFIG).write_bytes(settings)
    with Keyboard(home_of(home.folder, tiny_bundle), tiny_bundle) as keyboard:
        assert words(keyboard, "flum") == ["flumberwick"]
        keyboard.send("i will see you")
        assert CONFIG in keyboard.notice()
    assert len(recorded(home)) == 4
    assert Home.as_it_is(home.folder).forget("flumberwick") == 3
    assert recorded(home) == ["i will see you"]
    Home.as_it_is(home.folder).wipe()
    assert not (home.folder / TYPING_LOG).exists()
    Home.as_it_is(home.folder).wipe(everything=True)
    assert not home.folder.exists()


def test_where_no_device_can_be_made_one_types_without(tmp_path, tiny_bundle):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "phone"
    with Keyboard(home_of(folder, tiny_bundle), tiny_bundle) as keyboard:
        keyboard.type()
        keyboard.send("i will see you")
        assert len(words(keyboard, "i will ")) == 3
        assert keyboard.notice().startswith("nothing is recorded: ")
        assert keyboard.notice() is None
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("what", ["a file", "somebody's folder"])
def test_what_is_somebody_elses_is_no_home(tmp_path, tiny_bundle, what):
    place = tmp_path / "place"
    if what == "a file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "letter.txt").write_text("mine")
    with pytest.raises(RunError):
        home_of(place, tiny_bundle)


def test_an_empty_folder_becomes_a_home(tmp_path, tiny_bundle):
    (tmp_path / "empty").mkdir()
    assert home_of(tmp_path / "empty", tiny_bundle).problem is None


# --- what is kept, and how long
# ------------------------------------------------------------------------------------------------


def test_a_phone_that_never_trains_keeps_nothing_longer_than_its_owner_was_told(home, tiny_bundle):
    now = [1_800_000_000.0]
    with Keyboard(home, tiny_bundle, lambda: now[0]) as keyboard:
        keyboard.send("the first day")
    for _ in range(95):
        now[0] += DAY_S
        with Keyboard(home, tiny_bundle, lambda: now[0]) as keyboard:
            keyboard.send("another day")
    assert "the first day" not in recorded(home)
    assert len(recorded(home)) in (90, 91)


def test_a_keyboard_that_is_never_left_keeps_to_it_too(home, tiny_bundle):
    now = [1_800_000_000.0]
    with Keyboard(home, tiny_bundle, lambda: now[0]) as keyboard:
        keyboard.send("the first day")
        now[0] += 91 * DAY_S
        keyboard.send("much later")
        assert recorded(home) == ["much later"]


def test_of_a_long_log_only_what_can_count_is_read(home):
    with home.typing_log() as log:
        log.append_many([("one two " * 20, float(i)) for i in range(1500)])
        messages = newest(log)
    assert sum(len(tokens) for _, tokens in messages) == MOST_TOKENS
    assert len(messages) == MOST_TOKENS // 40


# --- a bundle that is installed in a home which uses one in place
# ------------------------------------------------------------------------------------------------


def test_a_bundle_installed_by_its_owner_is_used_where_another_was_used_in_place(
    tmp_path, trusted, made
):
    path = made(3)
    opened = bundle.open_verified(path, trusted)
    home = home_of(tmp_path / "phone", opened)
    with Keyboard(home, opened) as keyboard:
        before = words(keyboard, "i will ")
        home.install(made(3, tmp_path / "same release", blocked=before[0].encode()))
        assert before[0] not in words(keyboard, "i will ")
    with Keyboard(home_of(home.folder, opened), opened) as anew:  # as `fedboard keyboard BUNDLE`
        assert before[0] not in words(anew, "i will ")


def test_an_older_release_than_the_one_used_in_place_is_refused_by_name(tmp_path, trusted, made):
    opened = bundle.open_verified(made(3), trusted)
    home = home_of(tmp_path / "phone", opened)
    with pytest.raises(BundleError, match="release 2 is older than release 3, which this device"):
        home.install(made(2))
    assert home.bundle().encoded == opened.encoded
    assert not (home.folder / BUNDLES / POINTER).exists()
