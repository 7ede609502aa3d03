"""The helper that kills at every step finds what is not safe, and lets pass what is."""

import sqlite3

import pytest

from tests.kill_points import every_kill_point, killed_in_turn

OLD, NEW = "old " * 1000, "new " * 1000


def old(folder):
    (folder / "file").write_text(OLD)


def is_old_or_new(folder):
    assert (folder / "file").read_text() in (OLD, NEW)


def script(*lines) -> str:
    return "\n".join(
        [
            "import os, sqlite3",
            "def work(folder):",
            f"    new, file, aside = {NEW!r}, folder / 'file', folder / 'aside'",
            *(f"    {line}" for line in lines),
        ]
    )


def test_writing_over_a_file_is_found_to_be_unsafe(tmp_path):
    with pytest.raises(AssertionError, match=r"killed at step 2, os\.mkdir"):
        every_kill_point(
            script("file.write_text(new)", "aside.mkdir()"), tmp_path / "f", old, is_old_or_new
        )


def test_a_rename_without_a_flush_is_safe_for_a_killed_process_and_not_for_lost_power(tmp_path):
    rename = script("aside.write_text(new)", "os.replace(aside, file)", "os.mkdir(aside)")
    assert every_kill_point(rename, tmp_path / "f", old, is_old_or_new, unsynced_lost=False) == 3
    with pytest.raises(AssertionError, match="killed at step 3"):
        every_kill_point(rename, tmp_path / "f", old, is_old_or_new)


def test_a_flush_before_the_rename_is_safe(tmp_path):
    flushed = script(
        "with open(aside, 'w') as f: f.write(new); f.flush(); os.fsync(f.fileno())",
        "os.replace(aside, file)",
        "os.mkdir(aside)",
    )
    # open, flush, rename, mkdir
    assert every_kill_point(flushed, tmp_path / "f", old, is_old_or_new) == 4


def test_every_sql_statement_is_a_step_and_a_transaction_is_whole_or_nothing(tmp_path):
    def two_rows(folder):
        with sqlite3.connect(folder / "db") as db:
            db.execute("CREATE TABLE t (x)")
        db.close()

    def both_or_none(folder):
        db = sqlite3.connect(folder / "db")
        assert db.execute("SELECT count(*) FROM t").fetchone()[0] in (0, 2)
        db.close()

    connect, insert = (
        "db = sqlite3.connect(folder / 'db', isolation_level=None)",
        "db.execute('INSERT INTO t VALUES (1)')",
    )
    whole = script(connect, "db.execute('BEGIN')", insert, insert, "db.execute('COMMIT')")
    assert every_kill_point(whole, tmp_path / "f", two_rows, both_or_none) == 5
    with pytest.raises(AssertionError, match="SQL INSERT"):
        every_kill_point(script(connect, insert, insert), tmp_path / "f", two_rows, both_or_none)


def test_work_that_fails_by_itself_is_an_error(tmp_path):
    with pytest.raises(AssertionError, match="at step 1 the work failed"):
        every_kill_point(script("raise ValueError"), tmp_path / "f", old, is_old_or_new)


def test_work_is_killed_again_on_what_the_first_kill_left(tmp_path):
    """It appends a letter, which a loss of power at its second step takes away again."""
    letter = script("with open(file, 'a') as f: f.write('x')", "aside.mkdir(exist_ok=True)")
    lengths = []

    def note(folder):
        lengths.append(len((folder / "file").read_text()))

    def empty(folder):
        (folder / "file").write_text("")

    # finished; killed, then finished; killed twice
    assert killed_in_turn(letter, tmp_path / "f", empty, note, [(9,), (2, 9), (2, 2)]) == 3
    assert lengths == [1, 1, 0]
