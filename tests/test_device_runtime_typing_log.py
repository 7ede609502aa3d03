import contextlib
import itertools
import os
import shutil
import signal
import sqlite3
import stat
import struct
import sys
import traceback
from collections.abc import Callable
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import ageing
from device_runtime.errors import TypingLogError
from device_runtime.keystore import key_path
from device_runtime.text import is_word, plain, tokenise
from device_runtime.typing_log import Retention, TypingLog, masked, wipe
from device_runtime.wire import DAY_S

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
            # two or three letters stand in any file by chance
            assert word.encode() not in files(path) or len(word) < 4
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


DAMAGES = [
    "sealed = zeroblob(40)",
    "sealed = x''",
    "sealed = 'text'",
    "sealed = 5",
    "at = at + 1",
    "at = 'text'",
    "at = x'00'",
    "id = id + 10",
]


@pytest.mark.parametrize("change", DAMAGES)
def test_an_altered_record_is_passed_over_and_counted_and_stops_nothing(path, change):
    with TypingLog(path) as log:
        log.append_many([("one", 1.0), (SECRET, 2.0), ("three", 3.0)])
        assert log.altered() == 0
        with sqlite3.connect(path) as db:
            db.execute(f"UPDATE records SET {change} WHERE id = 2")
        db.close()
    with TypingLog(path) as log:
        assert log.altered() == 1
        assert log.read(10) == ["one", "three"]
        assert [record.text for record in log.newest_first()] == ["three", "one"]
        assert [record.text for record in log.records_of([2, 3])] == ["three"]
        assert log.append("four", 4.0)
        assert log.mask("three") == 1
        assert log.forget("one") == 1
        assert log.expire(5.0) == 0
        assert log.read(10) == ["<#>", "four"]
        # it goes when its time has come
        assert log.expire(5.0 + 91 * DAY_S) == 3
        assert log.altered() == 0


def test_swapped_records_are_passed_over(path):
    with TypingLog(path) as log:
        log.append_many([("one", 1.0), ("two", 1.0), ("three", 1.0)])
        with sqlite3.connect(path) as db:
            (first,), (second,), _ = db.execute("SELECT sealed FROM records ORDER BY id").fetchall()
            db.execute(
                "UPDATE records SET sealed = CASE id WHEN 1 THEN ? ELSE ? END WHERE id < 3",
                (second, first),
            )
        db.close()
        assert log.read(3) == ["three"]
        assert log.altered() == 2


@pytest.mark.parametrize("number", ["'many'", "NULL", "-7", "9223372036854775807", "0"])
def test_a_log_whose_last_number_was_altered_goes_on_counting(path, number):
    with TypingLog(path) as log:
        log.append("one", 1.0)
    with sqlite3.connect(path) as db:
        db.execute(f"UPDATE sqlite_sequence SET seq = {number}")
    db.close()
    with TypingLog(path) as log:
        assert log.append("two", 2.0)
        assert log.read(10) == ["one", "two"]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE records SET at = CAST(x'ff' AS TEXT)",
        "DROP TABLE records",
    ],
)
def test_a_damaged_table_is_one_clear_line(path, damage):
    with TypingLog(path) as log:
        log.append(SECRET, 1.0)
    with sqlite3.connect(path) as db:
        db.execute(damage)
    db.close()
    with TypingLog(path) as log, pytest.raises(TypingLogError):
        log.read(1)
        log.append("more", 2.0)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM probe",
        "UPDATE probe SET sealed = 7",
        "DROP TABLE probe",
        "PRAGMA user_version = 1",
    ],
)
def test_a_damaged_log_is_refused_when_it_is_opened(path, damage):
    TypingLog(path).close()
    with sqlite3.connect(path) as db:
        db.execute(damage)
    db.close()
    with pytest.raises(TypingLogError):
        TypingLog(path)


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
    with pytest.raises(TypingLogError, match="expected format version 4, found 9"):
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


def test_a_record_keeps_its_number_and_shows_no_text(path):
    with TypingLog(path) as log:
        log.append_many([("one", 1.0), ("three", 3.0), ("two", 2.0)])
        assert [(record.id, record.text) for record in log.records(2)] == [(3, "two"), (2, "three")]
        assert repr(log.records(1)) == "[Record(id=2)]"
        # there is no record 9
        assert [record.text for record in log.records_of([2, 9, 1])] == ["three", "one"]
        assert log.records_of([]) == []


def test_a_message_that_contributed_as_often_as_it_may_is_kept_and_no_longer_usable(path):
    with TypingLog(path, Retention(max_uses=2)) as log:
        log.append_many([("one", 1.0), ("two", 2.0)])
        log.mark_used([1, 2, 2, 9])  # a number given twice is one use, and one that is gone none
        assert log.count(usable=True) == 2
        log.mark_used([1])
        assert [record.text for record in log.records(10, usable=True)] == ["two"]
        assert (log.count(), log.count(usable=True), log.used_up()) == (2, 1, 1)
        assert log.read(10) == ["one", "two"]


def test_the_newest_usable_records_are_looked_for_beyond_those_used_up(path):
    with TypingLog(path, Retention(max_uses=1)) as log:
        log.append_many([("one", 1.0), ("two", 2.0), ("three", 3.0)])
        log.mark_used([3])
        assert [record.text for record in log.records(2, usable=True)] == ["one", "two"]


def test_uses_survive_closing_the_log_and_the_cap_may_change(path):
    with TypingLog(path, Retention(max_uses=1)) as log:
        log.append("one", 1.0)
        log.mark_used([1])
    with TypingLog(path, Retention(max_uses=2)) as log:
        assert log.used_up() == 0
        log.mark_used([1])
        assert log.used_up() == 1


def test_a_use_reaches_the_disk_before_it_counts_as_marked(path):
    said = []
    with TypingLog(path) as log:
        log.append("one", 1.0)
        log._db.set_trace_callback(said.append)
        log.mark_used([1])
        log._db.set_trace_callback(None)
    assert said == [
        "PRAGMA synchronous = FULL",
        "BEGIN IMMEDIATE",
        "UPDATE records SET uses = uses + 1 WHERE id = 1",
        "COMMIT",
        "PRAGMA synchronous = NORMAL",
    ]


@pytest.mark.parametrize(
    ("typed", "words", "held"),
    [
        ("Meet me behind the OLD mill!", "old mill", True),
        ("the old, old mill", "Old  Mill", True),
        ("the old\nmill", "old mill", True),
        ("the old-mill", "old mill", True),
        ("the mill is old", "old mill", False),
        ("the goldmill", "old mill", False),
        ("older mills", "old mill", False),
        ("call 555-1234 now", "555 1234", True),
        ("call 555-1235 now", "555-1234", False),
        ("write to ann@example.org", "ann@example.org", True),
        ("I can\u2019t say", "can't", True),
        ("\uff2f\uff2c\uff24 mill", "old", True),  # full-width letters
        ("İstanbul is cold", "istanbul", True),
        ("ISTANBUL is cold", "İstanbul", True),
        ("Hauptstraße 5", "HAUPTSTRASSE", True),
        ("hauptstrasse 5", "Hauptstraße 5", True),
        ("José est né à Besançon", "jose", True),
        ("jose est ne", "José est né", True),
        ("Łukasz", "LUKASZ", True),
        ("à l\u2019hôpital", "hopital", True),
        ("Mr O'Brien", "brien", True),
        ("Mr OBrien", "o'brien", True),
        ("i dont know", "don\u00b4t", True),
        ("it is cafe\u0301", "café", True),
        ("ΛΟΓΟΣ", "λόγος", True),
        ("ёлка", "Елка", True),
        ("iPhoneを買った", "iphone", True),
        ("हिन्दी में", "हिन्दी", True),
        ("x\u200cy", "xy", True),
        # in other scripts anywhere: some write no space between words
        ("встретимся у мельницы", "мельниц", True),
        ("so :-) funny", ":-)", True),
        ("anything", "", False),
        ("anything", "  ", False),
    ],
)
def test_which_messages_hold_the_words_to_forget(path, typed, words, held):
    with TypingLog(path) as log:
        log.append(typed, 1.0)
        assert log.forget(words) == int(held)
        assert log.read(1) == ([] if held else [typed])


@pytest.mark.parametrize(
    ("typed", "word", "left"),
    [
        ("see flumberwick, Flumberwick!", "FLUMBERWICK", "see <#>, <#>!"),
        ("Flumberwick\u2019s dog", "flumberwick", "<#> dog"),
        ("Łukasz i lukasz", "łukasz", "<#> i <#>"),
        ("İzmir", "izmir", "<#>"),
        ("don\u00b4t and dont", "don't", "<#> and <#>"),
        ("see flumberwick.com or a@flumberwick.org now", "flumberwick", "see <#> or <#> now"),
        ("my Qx7vantib9rr2", "qx7vantib9rr2", "my <#>"),
        ("flumberwicks and unflumberwick", "flumberwick", "flumberwicks and unflumberwick"),
        ("this is his", "hi", "this is his"),
        ("new-york", "york", "new-<#>"),
        ("я вижу кварц, КВАРЦ", "кварц", "я вижу <#>, <#>"),
        ("кварцы", "кварц", "кварцы"),
        ("<#> again", "again", "<#> <#>"),
        ("  kept   as it\u2019s ", "other", "  kept   as it\u2019s "),
        ("anything", ":-)", "anything"),
        ("anything", "", "anything"),
    ],
)
def test_a_word_is_masked_wherever_it_stands_as_a_word(typed, word, left):
    assert masked(typed, word) == left
    assert masked(left, word) == left  # once is enough


@given(st.text(max_size=40), st.text(max_size=8))
@settings(max_examples=200, deadline=None)
def test_after_masking_no_token_is_the_word(typed, word):
    left = masked(typed, word)
    wanted = plain(word)
    if any(map(str.isalpha, wanted)):
        assert wanted not in [plain(token) for token in tokenise(left) if is_word(token)]


def test_a_masked_word_is_in_no_record_and_no_old_page_and_uses_are_kept(path):
    with TypingLog(path, Retention(max_uses=1)) as log:
        log.append_many([(f"number {i}", float(i)) for i in range(9)])
        log.append_many([("the Flumberwick", 9.0), (SECRET, 10.0), ("a flumberwick", 11.0)])
        log.mark_used([12])
        before = (log.count(), log.used_up(), len(log.records(20, held=True)))
        with sqlite3.connect(path) as db:
            sealed = [
                row[0] for row in db.execute("SELECT sealed FROM records WHERE id IN (10,12)")
            ]
        db.close()
        assert all(record in files(path) for record in sealed)
        assert log.mask("flumberwick") == 2
        assert not any(record in files(path) for record in sealed)
        assert (log.count(), log.used_up(), len(log.records(20, held=True))) == before
        assert log.read(3) == ["the <#>", SECRET, "a <#>"]
        assert log.mask("flumberwick") == 0


# --- how long what was typed is kept, whatever the clock shows
# ------------------------------------------------------------------------------------------------

NOW = 1_800_000_000.0  # of a clock that is right
YEAR = 365 * DAY_S


def test_a_stamp_in_the_future_counts_as_of_when_it_was_first_looked_at(path):
    with TypingLog(path) as log:
        log.append_many([("ahead", NOW + 10 * YEAR), ("right", NOW)])
        assert log.expire(NOW) == 0
        assert log.expire(NOW + 89 * DAY_S) == 0
        assert log.read(10) == ["ahead", "right"]
        assert log.expire(NOW + 91 * DAY_S) == 2


def test_a_clock_that_was_years_ahead_keeps_nothing_for_ever(path):
    with TypingLog(path) as log:
        log.expire(NOW + 10 * YEAR)
        log.append("ahead", NOW + 10 * YEAR)
        assert log.expire(NOW) == 0  # put right
        log.append("right", NOW)
        assert log.expire(NOW + 89 * DAY_S) == 0
        assert log.expire(NOW + 91 * DAY_S) == 2


def test_a_clock_that_begins_in_1970_at_every_start_lets_nothing_go_early(path):
    with TypingLog(path) as log:
        log.append("before", NOW)
        log.expire(NOW)
        for day in range(1, 80):
            assert log.expire(5.0) == 0
            log.append(f"day {day}", 6.0)
            assert log.expire(NOW + day * DAY_S) == 0
        assert log.count() == 80
        # the first day's counts from the last look before it, when "before" was recorded
        assert log.expire(NOW + 91 * DAY_S) == 2
        assert log.expire(NOW + 171 * DAY_S) == 78


def test_what_is_recorded_long_after_the_last_look_at_the_clock_counts_from_then(path):
    with TypingLog(path) as log:
        log.append("old", NOW)
        log.expire(NOW)
        log.append("new", NOW + 100 * DAY_S)
        assert log.expire(NOW + 100 * DAY_S) == 1
        assert log.expire(NOW + 189 * DAY_S) == 0
        assert log.read(10) == ["new"]


def test_what_was_recorded_before_the_clock_was_set_counts_from_when_it_was(path):
    with TypingLog(path, Retention(max_age_s=10 * DAY_S)) as log:
        log.append("before the first look", 5.0)
        log.expire(NOW)
        assert log.expire(NOW + 9 * DAY_S) == 0
        assert log.expire(NOW + 11 * DAY_S) == 1


def test_a_phone_that_was_first_used_before_its_clock_was_set_loses_nothing_early(path):
    with TypingLog(path, Retention(max_age_s=10 * DAY_S)) as log:
        log.expire(5.0)
        log.append("unset", 6.0)
        assert log.expire(NOW) == 0
        log.append("set", NOW)
        assert log.expire(NOW + 9 * DAY_S) == 0
        assert log.expire(NOW + 11 * DAY_S) == 2


def test_the_newest_are_kept_when_there_are_too_many_bytes_whatever_their_stamps(path):
    record = 12 + 3 + 16
    with TypingLog(path, Retention(max_bytes=2 * record)) as log:
        log.append_many([("abc", NOW + YEAR), ("abd", NOW + YEAR)])
        log.expire(NOW)
        log.append_many([("abe", NOW + 1), ("abf", NOW + 2)])
        assert log.expire(NOW + 3) == 2
        assert log.read(10) == ["abe", "abf"]


def test_the_clock_is_looked_at_once_an_hour_while_one_types(path):
    with TypingLog(path, Retention(max_age_s=10.0)) as log:
        log.append("one", NOW)
        assert log.retain(NOW) == 0
        assert log.retain(NOW + 3599.0) == 0
        assert log.retain(NOW + 3600.0) == 1
        log.append("two", NOW + 3601.0)
        assert log.retain(NOW + 3601.0) == 0
        assert log.retain(NOW - 1.0) == 0  # the clock went back
        assert log.retain(NOW + 7300.0) == 1


@pytest.mark.parametrize(
    "damage", ["own = 'x'", "looks = '[]'", "looks = '{'", "looks = x'ff'", "own = 9e999"]
)
def test_a_damaged_age_begins_anew(path, damage):
    with TypingLog(path) as log:
        log.append("one", NOW)
        log.expire(NOW)
    with sqlite3.connect(path) as db:
        db.execute(f"UPDATE age SET {damage}")
    db.close()
    with TypingLog(path) as log:
        assert log.append("two", NOW + 1)
        assert log.expire(NOW + 2) == 0
        assert log.expire(NOW + 91 * DAY_S) == 2


@given(st.lists(st.floats(0, 1e10), min_size=1, max_size=40))
def test_a_log_never_gets_younger_and_never_older_than_its_clock_went_on(clock):
    age = ageing.begun(clock[0])
    for now in clock[1:]:
        after = ageing.looked(age, now)
        assert after.own >= age.own
        assert list(after.looks) == sorted(after.looks, reverse=True) and after.looks[-1] == now
        age = after
    assert age.own <= clock[0] + sum(max(b - a, 0.0) for a, b in pairwise(clock)) + 1.0


def test_a_log_that_was_moved_away_can_be_read_again_with_its_key(path, tmp_path):
    with TypingLog(path) as log:
        log.append("one", 1.0)
    (away := tmp_path / "away").mkdir()
    path.rename(away / path.name)
    with TypingLog(path) as log:  # its key stayed here
        log.append("two", 2.0)
    shutil.copy2(key_path(path), key_path(away / path.name))
    with TypingLog(away / path.name) as log:
        assert log.read(10) == ["one"]


def test_no_error_advises_to_destroy_what_was_typed(path):
    with TypingLog(path) as log:
        log.append("one", 1.0)
    key = key_path(path).read_bytes()
    said = []
    for damage in (os.urandom(32), b"short", None):
        key_path(path).unlink() if damage is None else key_path(path).write_bytes(damage)
        with pytest.raises(TypingLogError) as refused:
            TypingLog(path)
        said.append(str(refused.value))
    key_path(path).write_bytes(key)
    key_path(path).chmod(0o600)
    path.write_bytes(b"something else entirely, and long enough to have a header " * 20)
    with pytest.raises(TypingLogError) as refused:
        TypingLog(path)
    said.append(str(refused.value))
    assert not any(word in each for each in said for word in ("wipe", "remove", "delete"))
    assert all("move typing_log.* away" in each and "kept" in each for each in said)


def test_what_was_forgotten_leaves_no_bytes_behind(path):
    with TypingLog(path) as log:
        log.append_many([("hello", 0.0), (SECRET, 1.0), ("goodbye", 2.0), (SECRET.upper(), 3.0)])
        with sqlite3.connect(path) as db:
            sealed = [row[0] for row in db.execute("SELECT sealed FROM records WHERE id IN (2, 4)")]
        db.close()
        assert all(record in files(path) for record in sealed)
        assert log.forget("old mill") == 2
        assert not any(record in files(path) for record in sealed)
        assert log.read(10) == ["hello", "goodbye"]
        assert log.forget("old mill") == 0


def test_the_last_hour_can_be_forgotten(path):
    with TypingLog(path) as log:
        log.append_many([("before", 1.0), ("then", 2.0), ("after", 3.0)])
        assert log.forget_since(2.0) == 2
        assert log.read(10) == ["before"]


def test_other_data_is_sealed_for_its_purpose_and_ends_with_the_log(path):
    with TypingLog(path) as log:
        sealed = log.seal(SECRET.encode(), "personal weights")
        assert b"mill" not in sealed
        # a nonce of its own each time
        assert log.seal(SECRET.encode(), "personal weights") != sealed
    with TypingLog(path) as log:
        assert log.unseal(sealed, "personal weights") == SECRET.encode()
        altered = sealed[:-1] + bytes([sealed[-1] ^ 1])
        for data, purpose in [
            (sealed, "half-done training"),
            (altered, "personal weights"),
            (b"", "personal weights"),
            (b"short", ""),
        ]:
            with pytest.raises(TypingLogError, match="altered"):
                log.unseal(data, purpose)
        log.wipe()
    with TypingLog(path) as log, pytest.raises(TypingLogError, match="another key"):
        log.unseal(sealed, "personal weights")


def test_a_record_is_no_sealed_data_and_sealed_data_no_record(path):
    with TypingLog(path) as log:
        log.append(SECRET, 1.0)
        with sqlite3.connect(path) as db:
            (record,) = db.execute("SELECT sealed FROM records").fetchone()
            db.execute("UPDATE records SET sealed = ?", (log.seal(b"hello", ""),))
        db.close()
        with pytest.raises(TypingLogError):
            log.unseal(record, "")
        assert log.read(1) == [] and log.altered() == 1


def write_version_1(path, typed):
    """A log as version 1 wrote it, statement by statement."""
    box = AESGCM(key := AESGCM.generate_key(256))
    key_path(path).write_bytes(key)
    key_path(path).chmod(0o600)

    def seal(text, number, at):
        nonce = os.urandom(12)
        return nonce + box.encrypt(nonce, text, struct.pack("<qd", number, at))

    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(
            "CREATE TABLE records (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, sealed "
            "BLOB NOT NULL)"
        )
        db.execute("CREATE INDEX records_by_time ON records (at)")
        db.execute("CREATE TABLE probe (sealed BLOB NOT NULL)")
        db.execute("PRAGMA user_version = 1")
        db.execute("INSERT INTO probe VALUES (?)", (seal(b"fedboard-typing-log-v1", 0, 0.0),))
        for number, (text, at) in enumerate(typed, start=1):
            db.execute(
                "INSERT INTO records VALUES (?, ?, ?)",
                (number, at, seal(text.encode(), number, at)),
            )


def test_a_log_of_version_1_is_brought_up_to_date_and_loses_nothing(path):
    write_version_1(path, [("one", 1.0), ("two", 2.0)])
    for _ in range(2):  # the second time it is one of version 2
        with TypingLog(path, Retention(max_uses=1)) as log:
            assert log.read(10) == ["one", "two"]
            assert log.used_up() == 0
    with TypingLog(path, Retention(max_uses=1)) as log:
        assert log.append("three", 3.0)
        log.mark_used([1])
        assert [record.text for record in log.records(10, usable=True)] == ["two", "three"]


def test_a_log_of_version_1_whose_key_does_not_fit_is_left_as_it_is(path):
    write_version_1(path, [("one", 1.0)])
    key = key_path(path).read_bytes()
    key_path(path).write_bytes(os.urandom(32))
    with pytest.raises(TypingLogError, match="another typing log"):
        TypingLog(path)
    key_path(path).write_bytes(key)
    with TypingLog(path) as log:
        assert log.read(10) == ["one"]


def killed_at(step: int, operate: Callable[[], object]) -> bool:
    """Run `operate` in a child process that is killed before its `step`-th SQL statement or file
    operation: False if it had fewer and finished.
    """
    child = os.fork()
    if child == 0:
        left = step

        def count(*_):
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

        def connect(*values, plain=sqlite3.connect, **options):
            db = plain(*values, **options)
            db.set_trace_callback(count)  # statements raise no audit event
            return db

        sqlite3.connect = connect
        sys.addaudithook(
            lambda event, _: (
                count() if event in ("open", "sqlite3.connect") or event.startswith("os.") else None
            )
        )
        try:
            operate()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


TYPED = [("zero", 0.0), ("one", 1.0), (SECRET, 2.0)]
KEPT = Retention(max_age_s=10.0, max_uses=1)


def write_log(path):
    with TypingLog(path, KEPT) as log:
        log.append_many(TYPED)


def using(operate):
    def opened(path):
        with TypingLog(path, KEPT) as log:
            operate(log)

    return opened


def held(path):
    """What a log holds, and what of it is usable."""
    with TypingLog(path, KEPT) as log:
        return log.read(10), [record.id for record in log.records(10, usable=True)]


OPERATIONS = {
    "first use": (lambda path: None, write_log),
    "append": (write_log, using(lambda log: log.append_many([("more", 3.0), ("and more", 4.0)]))),
    "mark used": (write_log, using(lambda log: log.mark_used([1, 3]))),
    "expire": (write_log, using(lambda log: log.expire(now=11.5))),
    "forget": (write_log, using(lambda log: log.forget("old mill"))),
    "mask": (write_log, using(lambda log: log.mask("mill"))),
    "forget since": (write_log, using(lambda log: log.forget_since(1.0))),
    "migrate": (lambda path: write_version_1(path, TYPED), using(lambda log: None)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_any_step_an_operation_is_done_whole_or_not_at_all(tmp_path, name):
    before, operate = OPERATIONS[name]
    (start := tmp_path / "start").mkdir()
    before(start / "log.sqlite")
    shutil.copytree(start, tmp_path / "unharmed")
    old = held(tmp_path / "unharmed" / "log.sqlite")
    operate(tmp_path / "unharmed" / "log.sqlite")
    new = held(tmp_path / "unharmed" / "log.sqlite")
    outcomes = []
    for step in itertools.count(1):
        shutil.copytree(start, folder := tmp_path / str(step))
        killed = killed_at(step, lambda: operate(folder / "log.sqlite"))
        outcomes.append(held(folder / "log.sqlite"))
        assert outcomes[-1] in (old, new)
        wipe(folder / "log.sqlite")
        assert list(folder.iterdir()) == []
        if not killed:
            break
    assert step > 8
    assert (outcomes[0], outcomes[-1]) == (old, new)
    # once done it is not undone
    assert outcomes == sorted(outcomes, key=lambda state: state == new)


def test_killed_at_any_step_a_wipe_that_began_leaves_nothing_to_read(tmp_path):
    (start := tmp_path / "start").mkdir()
    write_log(start / "log.sqlite")
    key = key_path(start / "log.sqlite").read_bytes()
    began = []
    for step in itertools.count(1):
        shutil.copytree(start, folder := tmp_path / str(step))
        path = folder / "log.sqlite"
        killed = killed_at(step, lambda: wipe(path))  # noqa: B023
        began.append(
            any(
                not (folder / file.name).exists()
                or (folder / file.name).read_bytes() != file.read_bytes()
                for file in start.iterdir()
            )
        )
        if began[-1]:
            assert not any(key in file.read_bytes() for file in folder.iterdir())
            if path.exists() and path.stat().st_size:
                with pytest.raises(TypingLogError, match="key of this typing log is missing"):
                    TypingLog(path)
        wipe(path)
        assert list(folder.iterdir()) == []
        if not killed:
            break
    assert began == sorted(began) and began.count(True) > 5


def test_a_journal_cut_off_anywhere_holds_the_last_operation_whole_or_not_at_all(tmp_path):
    """As after a power loss: the operations were in the write-ahead log only, and its end did not
    reach the disk.
    """
    (start := tmp_path / "start").mkdir()
    with TypingLog(start / "log.sqlite", KEPT) as log:
        log.append("one", 1.0)
        log.append_many([("two", 2.0), ("three", 3.0)])
        log.mark_used([2])
        shutil.copytree(start, tmp_path / "cut")
    cut, states = (
        tmp_path / "cut" / "log.sqlite",
        [
            ([], []),
            (["one"], [1]),
            (["one", "two", "three"], [1, 2, 3]),
            (["one", "two", "three"], [1, 3]),
        ],
    )
    journal = (tmp_path / "cut" / "log.sqlite-wal").read_bytes()
    outcomes = []
    for length in [*range(0, len(journal), len(journal) // 60), len(journal)]:
        shutil.copytree(tmp_path / "cut", folder := tmp_path / str(length))
        with open(folder / f"{cut.name}-wal", "r+b") as file:
            file.truncate(length)
        outcomes.append(states.index(held(folder / cut.name)))
    assert outcomes == sorted(outcomes) and set(outcomes) == {0, 1, 2, 3}


@pytest.fixture(scope="module")
def whole_log(tmp_path_factory):
    """The files of a log, some of its records in the journal only."""
    folder = tmp_path_factory.mktemp("whole")
    path = folder / "log.sqlite"
    with TypingLog(path) as log:
        log.append_many([(f"number {i}", float(i)) for i in range(200)])  # several pages
    with TypingLog(path) as log:
        log.append_many(TYPED)
        log.mark_used([1])
        return {
            file.name: file.read_bytes()
            for file in folder.iterdir()
            if not file.name.endswith("-shm")
        }


@st.composite
def damages(draw):
    """(file, place from 0 to 1, what is written there; None: it is cut off there)."""
    name = draw(st.sampled_from(["log.sqlite", "log.sqlite", "log.sqlite-wal", "log.key"]))
    return (
        name,
        draw(st.one_of(st.just(0.0), st.floats(0, 1), st.floats(0, 0.01))),
        draw(st.none() | st.binary(min_size=1, max_size=200)),
    )


def test_a_log_whose_damage_sqlite_cannot_even_name_is_still_wiped(tmp_path):
    """SQLite quotes the damaged schema in its message, which is no text any more."""
    path = tmp_path / "log.sqlite"
    with TypingLog(path) as log:
        log.append("see you tomorrow", 1.0)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"CREATE TABLE records", b"CREATE T\x80BLE records"))
    assert path.read_bytes() != whole
    wipe(path)
    assert list(tmp_path.iterdir()) == []


@given(damage=st.lists(damages(), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_a_damaged_log_gives_what_was_typed_or_one_error(whole_log, tmp_path_factory, damage):
    folder = tmp_path_factory.mktemp("damaged")
    damaged = dict(whole_log)
    for name, place, data in damage:
        whole = damaged[name]
        at = int(place * len(whole))
        damaged[name] = whole[:at] if data is None else whole[:at] + data + whole[at + len(data) :]
    for name, data in damaged.items():
        (folder / name).write_bytes(data)
    (folder / "log.key").chmod(0o600)
    typed = {f"number {i}" for i in range(200)} | {text for text, _ in TYPED}
    with contextlib.suppress(TypingLogError), TypingLog(folder / "log.sqlite") as log:
        for use in (
            lambda: log.read(1000),
            lambda: [record.text for record in log.records(1000, usable=True)],
            lambda: [record.text for record in log.records_of([1, 201])],
            lambda: log.count(usable=True) and log.used_up() and [],
            lambda: log.mark_used([1, 2]) or [],
            lambda: log.append("number 1", 5.0) and [],
            lambda: log.forget("number 3") and [],
            lambda: log.expire(90 * 86_400.0 + 3.0) and [],
        ):
            with contextlib.suppress(TypingLogError):
                assert set(use() or []) <= typed
    wipe(folder / "log.sqlite")
    assert list(folder.iterdir()) == []


@given(key=st.binary(max_size=64))
@settings(max_examples=25, deadline=None)
def test_no_other_key_opens_a_log(whole_log, tmp_path_factory, key):
    folder = tmp_path_factory.mktemp("key")
    for name, data in (whole_log | {"log.key": key}).items():
        (folder / name).write_bytes(data)
    (folder / "log.key").chmod(0o600)
    with pytest.raises(
        TypingLogError, match=r"expected a key of 32 bytes|belongs to another typing log"
    ):
        TypingLog(folder / "log.sqlite")
