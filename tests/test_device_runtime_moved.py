"""What was learned moves to a new phone in one file, and nowhere else."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import moved, words
from device_runtime.errors import RunError
from device_runtime.home import DeviceConfig, Home
from device_runtime.moved import Learned, Message, Taken
from device_runtime.typing_log import TypingLog
from device_runtime.words import Lists

PASSPHRASE = "five green umbrellas"
LEARNED = Learned(
    (Message("meet Zarnik at noon", 5.0), Message("привет", 7.0)), Lists(("flumberwick",), ("Łuk",))
)


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """A guess costs little here."""
    monkeypatch.setattr(moved, "COST", 2)


def home(folder, *messages) -> Home:
    return Home.create(folder, DeviceConfig(trusted=()), messages)


def packed(learned=LEARNED, passphrase=PASSPHRASE) -> bytes:
    return moved.pack(learned, passphrase, b"s" * moved.SALT, b"n" * moved.NONCE)


def test_what_was_packed_is_unpacked_with_its_passphrase():
    assert moved.unpack(packed(), PASSPHRASE, "file") == LEARNED


def test_the_file_shows_nothing_of_what_it_holds():
    for text in (b"Zarnik", b"flumberwick", "привет".encode()):
        assert text not in packed()


@pytest.mark.parametrize("passphrase", ["five green umbrella", "Five green umbrellas", "x" * 99])
def test_another_passphrase_is_refused_and_not_quoted(passphrase):
    with pytest.raises(RunError, match="does not open with this passphrase") as error:
        moved.unpack(packed(), passphrase, "file")
    assert passphrase not in str(error.value)


def test_a_short_passphrase_is_refused():
    with pytest.raises(RunError, match="at least 8 letters"):
        packed(passphrase="seven77")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_changed_byte_is_noticed(data):
    file = bytearray(packed())
    at = data.draw(st.integers(0, len(file) - 1))
    file[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RunError):
        moved.unpack(bytes(file), PASSPHRASE, "file")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_other_files_are_one_clear_error(data):
    with pytest.raises(RunError):
        moved.unpack(data, PASSPHRASE, "file")
    with pytest.raises(RunError):
        moved.unpack(moved.HEADER + data, PASSPHRASE, "file")


def test_a_new_phone_has_the_messages_and_lists_of_the_old_one_once(tmp_path):
    old = home(tmp_path / "old", ("meet Zarnik", 5.0), ("see Zarnik", 6.0))
    words.keep(old, Lists(("flumberwick",), ("Łuk",)))
    new = home(tmp_path / "new", ("hello", 1.0))
    file = tmp_path / "moved"
    moved.export(old, file, PASSPHRASE)
    assert moved.take(new, file, PASSPHRASE) == Taken(2, 1, 1)
    assert moved.take(new, file, PASSPHRASE) == Taken(0, 0, 0)
    with new.typing_log() as log:
        assert log.read(9) == ["hello", "meet Zarnik", "see Zarnik"]
    assert words.read(new) == Lists(("flumberwick",), ("Łuk",))


def test_what_was_moved_contributes_to_no_update(tmp_path):
    old, new = home(tmp_path / "old", ("meet Zarnik", 5.0)), home(tmp_path / "new", ("hello", 1.0))
    moved.export(old, tmp_path / "moved", PASSPHRASE)
    moved.take(new, tmp_path / "moved", PASSPHRASE)
    with new.typing_log() as log:
        assert [record.text for record in log.records(9, usable=True)] == ["hello"]


def test_what_one_phone_bars_the_other_does_not_allow(tmp_path):
    old, new = home(tmp_path / "old"), home(tmp_path / "new")
    words.keep(old, Lists((), ("zarnik",)))
    words.keep(new, Lists(("Zarnik",), ()))
    moved.export(old, tmp_path / "moved", PASSPHRASE)
    moved.take(new, tmp_path / "moved", PASSPHRASE)
    assert words.read(new) == Lists(("Zarnik",), ())


def test_a_file_that_is_there_is_never_written_over(tmp_path):
    (tmp_path / "moved").write_text("mine")
    with pytest.raises(RunError, match="is there already"):
        moved.export(home(tmp_path / "old"), tmp_path / "moved", PASSPHRASE)
    assert (tmp_path / "moved").read_text() == "mine"


def test_the_file_is_for_its_owners_eyes(tmp_path):
    moved.export(home(tmp_path / "old"), tmp_path / "moved", PASSPHRASE)
    assert os.stat(tmp_path / "moved").st_mode & 0o777 == 0o600


def test_what_cannot_be_opened_changes_nothing(tmp_path):
    new = home(tmp_path / "new", ("hello", 1.0))
    (tmp_path / "moved").write_bytes(packed()[:-1])
    with pytest.raises(RunError):
        moved.take(new, tmp_path / "moved", PASSPHRASE)
    with new.typing_log() as log:
        assert log.read(9) == ["hello"]
    assert words.read(new) == Lists()


def test_a_disk_that_fills_up_leaves_messages_and_lists_as_they_were(tmp_path, monkeypatch):
    old, new = home(tmp_path / "old", ("meet Zarnik", 5.0)), home(tmp_path / "new", ("hello", 1.0))
    words.keep(old, Lists(("flumberwick",), ()))
    moved.export(old, tmp_path / "moved", PASSPHRASE)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TypingLog, "append_many", full)
    with pytest.raises(RunError, match="No space left"):
        moved.take(new, tmp_path / "moved", PASSPHRASE)
    assert words.read(new) == Lists()
    with new.typing_log() as log:
        assert log.read(9) == ["hello"]
    assert not [path for path in new.folder.iterdir() if path.name.endswith(".part")]
