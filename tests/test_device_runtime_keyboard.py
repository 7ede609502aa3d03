"""The keyboard of a device, without a terminal."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import bundle, config, durable, personal
from device_runtime.bundle import BLOCKED, PREDICT, SIGNATURE, TOKENIZER
from device_runtime.home import BUNDLES, OWN_WORDS, PERSONAL, DeviceConfig, Home
from device_runtime.installed import POINTER
from device_runtime.keyboard import Keyboard, accept, home_of, split
from device_runtime.own_words import read_trust
from device_runtime.sensors import LAST_KEY
from device_runtime.weights import digest
from model import vocabulary


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
