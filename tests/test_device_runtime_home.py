import sqlite3
import stat

import pytest

from device_runtime.errors import RunError
from device_runtime.home import Contribution, DeviceConfig, Home
from device_runtime.signing import public_hex
from device_runtime.weights import digest
from device_runtime.wire import Conditions

SETTINGS = DeviceConfig(bundle="bundle", trusted=("ab" * 32,), conditions="trace.tsv", seed=7)


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
    assert (
        home.last_sent("default", but="a1"),
        home.last_sent("default", but=""),
        home.last_sent("other", but=""),
    ) == (4, 6, None)


def test_the_enrolled_name_is_remembered(tmp_path):
    home = Home.create(tmp_path / "phone", SETTINGS)
    assert home.name is None
    home.keep_name("abc123")
    assert Home.open(tmp_path / "phone").name == "abc123"
