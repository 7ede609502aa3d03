"""The store: tables, transactions, and what an unusable database is told as."""

import sqlite3

import alembic.autogenerate
import alembic.migration
import numpy as np
import pytest
import sqlalchemy as sa

from device_runtime.errors import RunError
from device_runtime.wire import Cause
from server.aggregation import Sum
from server.rounds import Phase, RoundState
from server.store import Status, Store, StoredCheckpoint, metadata


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "server.sqlite")
    with opened.transaction() as rows:
        rows.enrol("d" * 16, "00" * 32, 0.0)
        rows.add_checkpoint(StoredCheckpoint("c" * 64, 0, "h" * 64))
        rows.open_round(1, "c" * 64, 0.0)
    yield opened
    opened.close()


def test_the_migrations_make_the_tables_the_code_uses(tmp_path):
    Store(tmp_path / "server.sqlite").close()
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'server.sqlite'}")
    with engine.connect() as connection:
        context = alembic.migration.MigrationContext.configure(connection, opts={"compare_type": True})
        assert alembic.autogenerate.compare_metadata(context, metadata) == []
        assert context.get_current_revision() == "0001"
    engine.dispose()


def test_a_transaction_that_raises_leaves_nothing(store):
    with pytest.raises(ZeroDivisionError), store.transaction() as rows:
        rows.assign("a" * 32, 1, "d" * 16, 0.0)
        rows.save_sum(1, Sum(np.ones(8, np.int64), 1, 1))
        raise ZeroDivisionError
    with store.transaction() as rows:
        assert (rows.assignment("a" * 32), rows.sum(1)) == (None, None)


def test_an_assignment_needs_an_enrolled_device_and_happens_once_a_round(store):
    with pytest.raises(sa.exc.IntegrityError), store.transaction() as rows:
        rows.assign("a" * 32, 1, "e" * 16, 0.0)
    with pytest.raises(sa.exc.IntegrityError), store.transaction() as rows:
        rows.assign("a" * 32, 1, "d" * 16, 0.0)
        rows.assign("b" * 32, 1, "d" * 16, 0.0)


def test_a_round_comes_back_with_its_devices_and_its_sum(store):
    state = RoundState(1, Phase.REPORTING, frozenset({"d" * 16}), frozenset({"d" * 16}), frozenset(), 3.0, 4.0)
    total = Sum(np.array([-(2**62), 0, 2**62], np.int64), 5, 1)
    with store.transaction() as rows:
        rows.assign("a" * 32, 1, "d" * 16, 3.0)
        rows.settle("a" * 32, Status.COUNTED, update_hash="f" * 64, examples=5)
        rows.save_round(state)
        rows.save_sum(1, total)
    with store.transaction() as rows:
        assert rows.newest_round() == state
        found = rows.sum(1)
    assert (found.total.tolist(), found.weight, found.count) == (total.total.tolist(), 5, 1)


def test_the_end_of_a_round_is_not_written_before_its_checkpoint(store):
    with store.transaction() as rows:
        rows.save_round(RoundState(1, Phase.COMMITTED))
        assert rows.newest_round().phase is Phase.SELECTING
        rows.close_round(RoundState(1, Phase.COMMITTED), "c" * 64, Cause.ROUND_CLOSED, 9.0)
        assert rows.newest_round().phase is Phase.COMMITTED


def test_a_nonce_is_new_once(store):
    with store.transaction() as rows:
        assert [rows.note_nonce("d" * 16, nonce, 5.0) for nonce in ("x", "y", "x")] == [True, True, False]
        rows.forget_nonces(5.1)
        assert rows.note_nonce("d" * 16, "x", 6.0)


def test_a_check_in_is_remembered_by_its_first_refusal_until_it_is_assigned(store):
    def outcome() -> dict[str, int]:
        report = rows.reports(1, 0.0)[0]
        return {"checked_in": report.checked_in, **report.refused}

    with store.transaction() as rows:
        rows.note_check_in(1, "d" * 16, "in_use")
        rows.note_check_in(1, "d" * 16, "not_charging")
        assert outcome() == {"checked_in": 1, "in_use": 1}
        rows.note_check_in(1, "d" * 16, "assigned")
        assert outcome() == {"checked_in": 1}
        rows.note_check_in(1, "d" * 16, "round_full")
        assert outcome() == {"checked_in": 1}


def test_one_server_uses_a_folder_at_a_time(store, tmp_path):
    with pytest.raises(RunError, match="another server"):
        Store(tmp_path / "server.sqlite")
    store.close()
    Store(tmp_path / "server.sqlite").close()


def test_a_file_that_is_no_database_is_one_clear_line(tmp_path):
    (tmp_path / "server.sqlite").write_bytes(b"this is a letter, not a database" * 100)
    with pytest.raises(RunError, match="not a database"):
        Store(tmp_path / "server.sqlite")


def test_a_database_of_a_newer_version_is_left_alone(tmp_path):
    Store(tmp_path / "server.sqlite").close()
    with sqlite3.connect(tmp_path / "server.sqlite") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(RunError, match="9999"):
        Store(tmp_path / "server.sqlite")


def test_a_database_error_does_not_show_what_was_written(store):
    with pytest.raises(sa.exc.IntegrityError) as caught, store.transaction() as rows:
        rows.assign("a" * 32, 1, "feedfacefeedface", 0.0)
    assert "feedface" not in str(caught.value)
