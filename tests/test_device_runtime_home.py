import sqlite3
import stat
from dataclasses import replace

import pytest

from device_runtime.errors import RunError
from device_runtime.home import Contribution, DeviceConfig, Home, Withheld, history
from device_runtime.signing import public_hex
from device_runtime.weights import digest
from device_runtime.wire import Assignment, Conditions, Kind

SETTINGS = DeviceConfig(bundle="bundle", trusted=("ab" * 32,), conditions="trace.tsv", seed=7)
WORK = Assignment("0a" * 16, 7, "0b" * 32, "0c" * 32, "0d" * 32, 60.0)


def test_a_home_opens_as_it_was_created(tmp_path):
    created = Home.create(
        tmp_path / "phone", SETTINGS, [("hello there", 1.0), ("how are you", 2.0)]
    )
    opened = Home.open(tmp_path / "phone")
    assert opened.config == SETTINGS
    assert public_hex(opened.key) == public_hex(created.key)
    with opened.typing_log() as log:
        assert log.read(10) == ["hello there", "how are you"]
    assert stat.S_IMODE((tmp_path / "phone" / "device.key").stat().st_mode) == 0o600


def test_a_home_is_created_whole_or_not_at_all(tmp_path):
    def typed():
        yield "hello", 1.0
        raise InterruptedError

    with pytest.raises(InterruptedError):
        Home.create(tmp_path / "phone", SETTINGS, typed())
    assert list(tmp_path.iterdir()) == []


def test_a_home_is_not_created_over_another(tmp_path):
    Home.create(tmp_path / "phone", SETTINGS)
    with pytest.raises(RunError, match="holds an earlier device already"):
        Home.create(tmp_path / "phone", SETTINGS)


def test_a_folder_that_is_no_home_is_named(tmp_path):
    with pytest.raises(RunError, match=r"found no device\.toml in it"):
        Home.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_key_never_shows_in_the_text_of_a_home(tmp_path):
    home = Home.create(tmp_path / "phone", SETTINGS)
    assert home.key.private_bytes_raw().hex() not in repr(home)


def test_the_trace_is_found_from_the_home_and_without_one_conditions_are_unknown(tmp_path):
    home = Home.create(tmp_path / "phone", SETTINGS)
    (tmp_path / "phone" / "trace.tsv").write_text("0\twifi\n")
    assert home.conditions(1.0) == Conditions(unmetered=True)
    plain = Home.create(tmp_path / "other", DeviceConfig((), "bundle"))
    assert plain.conditions(1.0) == Conditions()


def test_only_the_last_checkpoint_is_kept(tmp_path):
    home = Home.create(tmp_path / "phone", SETTINGS)
    first, second = b"first", b"second"
    assert home.held_checkpoint() is None
    home.keep_checkpoint(digest(first), first)
    assert (home.checkpoint(), home.held_checkpoint()) == (first, digest(first))
    home.keep_checkpoint(digest(second), second)
    assert home.checkpoint() == second
    assert len(list((tmp_path / "phone" / "checkpoint").iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"secon", b"altered"])
def test_a_damaged_checkpoint_counts_as_none(tmp_path, damage):
    home = Home.create(tmp_path / "phone", SETTINGS)
    home.keep_checkpoint(digest(b"second"), b"second")
    next((tmp_path / "phone" / "checkpoint").iterdir()).write_bytes(damage)
    assert home.checkpoint() is None


def test_the_ledger_keeps_one_line_a_turn(tmp_path):
    home = Home.create(tmp_path / "phone", SETTINGS)
    assert home.contributions() == []
    sending = Contribution(1, 0.0, "sending", "", 9, 100, 200)
    counted = Contribution(1, 0.0, "counted", "", 9, 150, 200)
    lost = Contribution(2, 86_400.0, "abandoned", "condition_lost", 9, 100, 200)
    for line in (sending, counted, lost):
        home.note(line)
    assert Home.open(tmp_path / "phone").contributions() == [counted, lost]


def test_a_damaged_ledger_is_one_clear_line(tmp_path):
    home = Home.create(tmp_path / "phone", SETTINGS)
    (tmp_path / "phone" / "ledger.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(RunError, match=r"ledger\.sqlite: cannot be used as a ledger"):
        home.contributions()


def test_the_ledger_has_no_column_for_text(tmp_path):
    home = Home.create(tmp_path / "phone", SETTINGS, [("a secret sentence", 1.0)])
    home.note(Contribution(1, 0.0, "counted", "", 9, 150, 200))
    with sqlite3.connect(tmp_path / "phone" / "ledger.sqlite") as db:
        columns = {row[1] for row in db.execute("PRAGMA table_info(contributions)")}
    db.close()
    assert columns == {
        "round",
        "at",
        "outcome",
        "cause",
        "examples",
        "bytes_up",
        "bytes_down",
        "task",
        "kind",
        "assignment",
        "server",
        "task_id",
        "scored",
        "detail",  # which limit, and numbers
        "up_to",  # the number of a message
        "seen_by",  # who could see it, in words of ours
        "noise",  # of the sum, from the terms
        *("log", "policy_entry", "checkpoint_entry"),  # numbers of entries of a public log
        "first_sum",
        "last_sum",
    }


def test_a_ledger_from_before_there_were_tasks_goes_on(tmp_path):
    home = Home.create(tmp_path / "phone", SETTINGS)
    with sqlite3.connect(tmp_path / "phone" / "ledger.sqlite") as db:
        columns = (
            "round INTEGER NOT NULL, at REAL NOT NULL, outcome TEXT NOT NULL, cause TEXT NOT "
            "NULL, examples INTEGER NOT NULL"
        )
        db.execute(
            f"CREATE TABLE contributions ({columns}, bytes_up INTEGER NOT NULL, bytes_down "
            "INTEGER NOT NULL, PRIMARY KEY (round, at))"
        )
        db.execute("INSERT INTO contributions VALUES (4, 9.5, 'counted', '', 30, 1500, 200)")
    db.close()
    home.note(Contribution(6, 99.0, "sending", "", 9, 150, 200, "default", "training", "a1"))
    assert home.contributions()[0] == Contribution(
        4, 9.5, "counted", "", 30, 1500, 200, "default", "training", ""
    )
    lines = home.contributions()
    assert [
        history(lines, replace(WORK, **named), 100.0).last
        for named in ({"assignment": "a1"}, {"assignment": "a2"}, {"task": "other"})
    ] == [4, 6, None]


# --- what the ledger says that bears on an assignment
# ------------------------------------------------------------------------------------------------


def test_rounds_are_told_apart_by_server_and_task_and_not_by_the_task_s_name_alone():
    lines = [
        Contribution(500, 0.0, "counted", "", 9, 1, 1, server="s1", task_id="t1"),
        Contribution(12, 0.0, "counted", "", 9, 1, 1, server="s2", task_id="t2"),
        Contribution(9, 0.0, "abandoned", "in_use", 9, 1, 1, server="s3", task_id="t3"),
    ]
    assert [
        history(lines, replace(WORK, round=13, server=server, task_id=task), 0.0).last
        for server, task in (("s2", "t2"), ("s2", "t1"), ("", ""), ("s3", "t3"))
    ] == [12, None, None, None]


def test_a_task_far_behind_where_it_was_has_begun_anew_and_one_a_little_behind_lies():
    lines = [Contribution(500, 0.0, "counted", "", 9, 1, 1, server="s", task_id="t")]
    of = replace(WORK, server="s", task_id="t")
    assert history(lines, replace(of, round=300), 0.0).last == 500
    assert history(lines, replace(of, round=299), 0.0).last is None
    assert history(lines, replace(of, round=501), 0.0).last == 500


def test_what_left_on_a_day_is_counted_over_all_servers_and_tasks_and_what_failed_with_it():
    def line(at, outcome="counted", cause="", kind="training", server="s"):
        return Contribution(1, at, outcome, cause, 9, 1, 1, kind=kind, server=server)

    lines = [
        line(10.0),
        line(20.0, server="other"),
        line(30.0, "sending"),
        line(40.0, "not_counted", "late"),
        line(50.0, "abandoned", "training_failed"),
        line(60.0, "abandoned", "condition_lost"),
        line(70.0, "paused", "in_use"),
        line(80.0, kind="evaluation"),
    ]
    assert history(lines, WORK, 86_399.0).today == 5
    assert history(lines, replace(WORK, kind=Kind.EVALUATION), 100.0).today == 1
    assert history(lines, WORK, 86_400.0).today == 0
    # the clock went back: what it says is tomorrow's is today's, unless the clock was far off
    assert history(lines, WORK, -3 * 86_400.0).today == 5
    assert history(lines, WORK, -365 * 86_400.0).today == 0


def test_what_is_withheld_is_kept_until_it_was_handed_in(tmp_path):
    home = Home.create(tmp_path / "phone", SETTINGS)
    assert home.withheld() is None
    home.withhold(WORK, 5.0)
    assert Home.open(home.folder).withheld() == Withheld(WORK, 5.0)
    home.keep("withheld.json", b"{")
    assert home.withheld() is None


def test_a_bundle_is_as_old_as_the_first_time_it_was_looked_at(tmp_path):
    home = Home.create(tmp_path / "phone", SETTINGS)
    assert [home.age_of("a1", now) for now in (100.0, 160.0)] == [0.0, 60.0]
    assert home.age_of("b2", 200.0) == 0.0  # another bundle
    assert home.age_of("b2", 100.0) == 0.0  # the clock went back
    assert home.age_of("b2", 110.0) == 10.0


def test_the_enrolled_name_is_remembered(tmp_path):
    home = Home.create(tmp_path / "phone", SETTINGS)
    assert home.name is None
    home.keep_name("abc123")
    assert Home.open(tmp_path / "phone").name == "abc123"
