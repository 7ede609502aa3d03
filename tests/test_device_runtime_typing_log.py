import os
import sqlite3
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime.errors import TypingLogError
from device_runtime.keystore import key_path
from device_runtime.typing_log import Retention, TypingLog, wipe

SECRET = "meet me behind the old mill"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "typing_log.sqlite"


def files(path):
    """Every byte the log keeps on disk, its key aside."""
    return b"".join(file.read_bytes() for file in path.parent.iterdir() if file != key_path(path))


def test_the_newest_records_come_back_oldest_first(path):
    with TypingLog(path) as log:
        log.append("one", 1.0)
        log.append("three", 3.0)
        log.append("two", 2.0)  # typed before, recorded later
        assert log.read(2) == ["two", "three"]
        assert log.read(10) == ["one", "two", "three"]
        assert log.count() == 3


def test_records_survive_closing_the_log(path):
    with TypingLog(path) as log:
        log.append_many([("one", 1.0), ("two", 2.0)])
    with TypingLog(path) as log:
        assert log.read(10) == ["one", "two"]


@given(texts=st.lists(st.text(st.characters(exclude_categories=[])).filter(str.strip), max_size=5))
@settings(max_examples=25, deadline=None)
def test_any_text_comes_back_as_it_was_typed(tmp_path_factory, texts):
    with TypingLog(tmp_path_factory.mktemp("log") / "typing_log.sqlite") as log:
        assert log.append_many([(text, float(at)) for at, text in enumerate(texts)]) == len(texts)
        assert log.read(len(texts)) == texts


def test_private_and_blank_text_is_never_recorded(path):
    with TypingLog(path) as log:
        assert not log.append(SECRET, 1.0, private=True)
        assert not log.append("  \n", 1.0)
        assert log.count() == 0
        assert log.append("hello", 1.0)


def test_typed_text_is_in_no_file_even_while_the_log_is_open(path):
    with TypingLog(path) as log:
        log.append(SECRET, 1.0)
        assert (path.parent / "typing_log.sqlite-wal").exists()
        for word in SECRET.split():
            assert word.encode() not in files(path) or len(word) < 4  # two or three letters stand in any file by chance
    assert SECRET.encode() not in files(path)


def test_log_and_key_are_readable_by_their_owner_only(path):
    with TypingLog(path) as log:
        log.append("hello", 1.0)
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
    assert key_path(path).stat().st_size == 32


def test_nothing_of_a_batch_is_recorded_when_one_record_fails(path):
    def typed():
        yield "one", 1.0
        raise InterruptedError

    with TypingLog(path) as log:
        with pytest.raises(InterruptedError):
            log.append_many(typed())
        assert log.count() == 0
        log.append("two", 2.0)
        assert log.read(1) == ["two"]


def test_two_open_logs_see_each_others_records(path):
    with TypingLog(path) as keyboard, TypingLog(path) as trainer:
        keyboard.append("one", 1.0)
        trainer.append("two", 2.0)
        assert keyboard.read(10) == trainer.read(10) == ["one", "two"]


@pytest.mark.parametrize("change", ["sealed = zeroblob(40)", "at = at + 1", "id = id + 10", "sealed = x''"])
def test_an_altered_record_is_refused_by_number_without_its_text(path, change):
    with TypingLog(path) as log:
        log.append(SECRET, 1.0)
        with sqlite3.connect(path) as db:
            db.execute(f"UPDATE records SET {change}")
        db.close()
        with pytest.raises(TypingLogError, match=r"record 1?1 was altered") as refused:
            log.read(1)
    assert "mill" not in repr(refused.value) and "mill" not in str(refused.value)


def test_swapped_records_are_refused(path):
    with TypingLog(path) as log:
        log.append_many([("one", 1.0), ("two", 1.0)])
        with sqlite3.connect(path) as db:
            (first,), (second,) = db.execute("SELECT sealed FROM records ORDER BY id").fetchall()
            db.execute("UPDATE records SET sealed = CASE id WHEN 1 THEN ? ELSE ? END", (second, first))
        db.close()
        with pytest.raises(TypingLogError, match="altered"):
            log.read(2)


def test_another_key_is_refused_when_the_log_is_opened(path):
    with TypingLog(path) as log:
        log.append(SECRET, 1.0)
    key_path(path).write_bytes(os.urandom(32))
    with pytest.raises(TypingLogError, match="belongs to another typing log"):
        TypingLog(path)
    key_path(path).write_bytes(b"short")
    with pytest.raises(TypingLogError, match="expected a key of 32 bytes, found 5"):
        TypingLog(path)
    key_path(path).unlink()
    with pytest.raises(TypingLogError, match="missing"):
        TypingLog(path)


def test_a_file_that_is_no_typing_log_is_refused_and_left_alone(path):
    path.write_bytes(b"something else entirely, and long enough to have a header " * 20)
    before = path.read_bytes()
    with pytest.raises(TypingLogError, match="not a database"):
        TypingLog(path)
    assert path.read_bytes() == before
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE songs (title)")
    db.close()
    with pytest.raises(TypingLogError, match="another database"):
        TypingLog(path)


def test_a_log_of_a_later_version_is_refused(path):
    TypingLog(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(TypingLogError, match="expected format version 2, found 9"):
        TypingLog(path)


def test_records_expire_by_age(path):
    with TypingLog(path, Retention(max_age_s=10.0)) as log:
        log.append_many([("old", 0.0), ("just old enough to stay", 5.0), ("new", 14.0)])
        assert log.expire(now=15.0) == 1
        assert log.read(10) == ["just old enough to stay", "new"]
        assert log.expire(now=15.0) == 0


def test_the_oldest_records_expire_when_there_are_too_many_bytes(path):
    record = 12 + 3 + 16  # nonce, "abc", tag
    with TypingLog(path, Retention(max_bytes=2 * record)) as log:
        log.append_many([("abc", 1.0), ("abd", 2.0), ("abe", 3.0)])
        assert log.expire(now=3.0) == 1
        assert log.read(10) == ["abd", "abe"]


def test_what_expired_leaves_no_bytes_behind(path):
    with TypingLog(path, Retention(max_age_s=10.0)) as log:
        log.append(SECRET, 0.0)
        with sqlite3.connect(path) as db:
            (sealed,) = db.execute("SELECT sealed FROM records").fetchone()
        db.close()
        assert sealed in files(path)
        log.expire(now=100.0)
        assert sealed not in files(path)


def test_wipe_leaves_nothing_and_the_log_can_be_used_anew(path):
    log = TypingLog(path)
    log.append(SECRET, 1.0)
    old_key = key_path(path).read_bytes()
    log.wipe()
    assert list(path.parent.iterdir()) == []
    with TypingLog(path) as log:
        assert log.count() == 0
        assert key_path(path).read_bytes() != old_key


def test_a_log_that_cannot_be_opened_can_be_wiped(path):
    path.write_bytes(b"damaged" * 100)
    wipe(path)
    wipe(path)  # nothing to remove is no error
    assert list(path.parent.iterdir()) == []


def test_a_log_in_an_unusable_place_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TypingLogError, match="cannot be used as a typing log"):
        TypingLog(tmp_path / "file" / "typing_log.sqlite")


def test_nothing_typed_shows_in_the_text_of_the_log_object(path):
    with TypingLog(path) as log:
        log.append(SECRET, 1.0)
        assert "mill" not in repr(log) + str(vars(log))
        assert key_path(path).read_bytes().hex() not in repr(log) + str(vars(log))
