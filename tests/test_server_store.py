"""The store: tables, transactions, a first version's database, and what an unusable one says."""

import contextlib
import sqlite3
import zipfile
from dataclasses import replace
from pathlib import Path

import alembic.autogenerate
import alembic.migration
import numpy as np
import pytest
import sqlalchemy as sa

from device_runtime import weights
from device_runtime.causes import Cause
from device_runtime.errors import RunError
from device_runtime.terms import Aggregation
from device_runtime.wire import Kind
from server.coordinator import open_folder
from server.eligibility import Policy
from server.ledger import Ledger
from server.requests import CheckingIn, Nonce, Reporting
from server.rounds import Phase, RoundState, Rules
from server.step import ServerStep
from server.store import (
    AssignmentStatus,
    Participation,
    Store,
    StoredAssignment,
    StoredCheckIn,
    StoredCheckpoint,
    StoredSum,
)
from server.tables import REVISION, metadata
from server.task import State, Task, terms
from tests.toy_server import (
    PLAN,
    SHAPES,
    TOKENIZER,
    OneByOne,
    certify,
    check_in,
    delta,
    encoded,
    enrolled,
    new,
    stored,
)

GOLDEN = Path(__file__).parent / "golden"
NETWORK = {"tokenizer": TOKENIZER, "shapes": SHAPES, "dimension": 50}
TASK = Task(plan=PLAN, rules=Rules(report_goal=2), seed=7, aggregation=Aggregation.PLAIN, **NETWORK)
BASE = StoredCheckpoint("c" * 64, 0, "h" * 64)
DEVICE = "d" * 16


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "server.sqlite")
    with opened.transaction() as rows:
        rows.enrol(DEVICE, "00" * 32, 0.0)
        rows.add_task(TASK, 0.0)
        rows.add_checkpoint("default", BASE)
        rows.open_round("default", RoundState(1), BASE, 0.0)
    yield opened
    opened.close()


def test_the_migrations_make_the_tables_the_code_uses(tmp_path):
    Store(tmp_path / "server.sqlite").close()
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'server.sqlite'}")
    with engine.connect() as connection:
        context = alembic.migration.MigrationContext.configure(
            connection, opts={"compare_type": True}
        )
        assert alembic.autogenerate.compare_metadata(context, metadata) == []
        assert context.get_current_revision() == REVISION
    engine.dispose()


def test_a_server_of_the_first_tables_goes_on_where_it_stood(tmp_path):
    """It was made by the server of that time: a round committed with two of three reports, and a
    second one with one report so far.
    """
    zipfile.ZipFile(GOLDEN / "server-0001.zip").extractall(tmp_path)
    coordinator = OneByOne(*open_folder(tmp_path))
    certify(coordinator, 8.0)
    coordinator.tick(8.0)
    first, second, third = coordinator.reports(8.0).rounds
    assert (first.phase, first.checked_in, first.refused, first.assigned, first.downloaded) == (
        "committed",
        4,
        {"round_full": 1},
        3,
        1,
    )
    assert (first.uploaded, first.counted, first.dropped, first.bytes_up) == (
        3,
        2,
        {"round_closed": 1},
        12_492,
    )
    assert (second.phase, second.checked_in, second.refused, second.dropped) == (
        "abandoned",  # what it had counted cannot be gone on with
        3,
        {"not_charging": 1},
        {"condition_lost": 1},
    )
    assert (second.counted, second.examples, second.base) == (1, 20, first.checkpoint)
    assert (third.round, third.base) == (3, first.checkpoint)
    now = 9.0
    for number, device in enumerate(enrolled(coordinator, 2)):
        work, now = coordinator.join(device, now)
        assert coordinator.update(device, work.assignment, encoded(work, number), now).counted
    done = coordinator.reports(now).rounds[2]
    assert (done.phase, done.counted, done.checkpoint) == (
        "committed",
        2,
        coordinator.checkpoint().sha,
    )
    with coordinator.store.reading() as rows:
        assert rows.participation("default") == (2, 2)
    moved = weights.flatten(stored(coordinator, done.checkpoint).weights) - weights.flatten(
        stored(coordinator, first.checkpoint).weights
    )
    np.testing.assert_allclose(moved, (delta(0) + delta(1)) / 2, atol=0.02)
    coordinator.close()


def test_a_task_kept_before_settings_were_one_record_goes_on_where_it_stood(tmp_path):
    """It was made by the server of that time: a round committed with two of three reports, a second
    one with one of its two, and an evaluation nobody has joined.
    """
    zipfile.ZipFile(GOLDEN / "server-0002.zip").extractall(tmp_path)
    coordinator = OneByOne(*open_folder(tmp_path))
    certify(coordinator, 7.0, "letters")
    letters, scores = (kept.task for kept in coordinator.tasks())
    assert (letters.name, letters.seed, letters.plan, letters.checkpoint) == (
        "letters",
        7,
        PLAN,
        "",
    )
    assert letters.rules == Rules(2, 1.5, selection_s=500.0, retry_s=900.0)
    assert letters.policy == Policy(min_examples=5, min_separation=1, device_classes=("", "phone"))
    assert letters.step == ServerStep(0.5, 0.5, "fedavgm")
    assert (letters.tokenizer, letters.shapes, letters.dimension) == (TOKENIZER, SHAPES, 50)
    assert (scores.kind, scores.evaluates, scores.seed) == (Kind.EVALUATION, "letters", 9)
    coordinator.tick(7.0)
    first, second, _ = coordinator.reports(7.0, "letters").rounds
    assert (first.counted, first.dropped, second.counted) == (2, {"surplus": 1}, 1)
    assert second.phase == "abandoned"  # what it had counted cannot be gone on with
    now = 8.0
    for number, device in enumerate(enrolled(coordinator, 2)):
        work, now = coordinator.join(device, now)
        assert coordinator.update(device, work.assignment, encoded(work, number), now).counted
    after, before = (
        weights.flatten(stored(coordinator, sha).weights)
        for sha in (coordinator.checkpoint("letters").sha, first.checkpoint)
    )
    velocity = 0.5 * (delta(0) + delta(1)) / 2 + (delta(0) + delta(1)) / 2
    np.testing.assert_allclose(after - before, 0.5 * velocity, atol=0.02)
    coordinator.close()


def test_a_transaction_that_raises_leaves_nothing(store):
    with pytest.raises(ZeroDivisionError), store.transaction() as rows:
        rows.save_assignments([StoredAssignment("a" * 32, "default", 1, DEVICE, 0.0)])
        rows.save_sum("default", 1, StoredSum("", 1, b"sealed"))
        raise ZeroDivisionError
    with store.reading() as rows:
        assert (rows.assignments(["a" * 32]), rows.sums("default", 1)) == ({}, [])


def test_an_assignment_needs_an_enrolled_device(store):
    with pytest.raises(sa.exc.IntegrityError), store.transaction() as rows:
        rows.save_assignments([StoredAssignment("a" * 32, "default", 1, "e" * 16, 0.0)])


def test_a_round_comes_back_as_it_was_with_the_sums_of_all_replicas(store):
    state = RoundState(1, Phase.REPORTING, 3, 1, 1, 3.0, 4.0)
    sealed = bytes(range(256))
    with store.transaction() as rows:
        (opened,) = rows.open_rounds().values()
        rows.save_rounds([replace(opened, state=state)])
        for replica, generation in (("", 1), ("b", 1), ("", 2)):
            rows.save_sum("default", 1, StoredSum(replica, generation, sealed))
    with store.reading() as rows:
        assert rows.open_rounds()["default"].state == state
        first, second = rows.sums("default", 1)
        assert (first, second) == (StoredSum("", 2, sealed), StoredSum("b", 1, sealed))
        assert rows.sums("default", 1, "b") == [second]


def test_a_closed_round_keeps_its_funnel_and_lets_go_of_sums_and_of_who_checked_in(store):
    with store.transaction() as rows:
        rows.note_check_ins({(DEVICE, "default"): StoredCheckIn("in_use")})
        rows.add_outcomes({("default", 1, "refused", "in_use"): 1})
        rows.save_sum("default", 1, StoredSum("", 1, b"sealed"))
        rows.save_assignments([StoredAssignment("a" * 32, "default", 1, DEVICE, 0.0)])
        rows.close_round("default", RoundState(1, Phase.ABANDONED, 1), None, Cause.TIMED_OUT, 9.0)
        assert (rows.sums("default", 1), rows.check_ins_of([DEVICE]), rows.open_rounds()) == (
            [],
            {},
            {},
        )
        (report,) = rows.reports(TASK, 20.0)
        assert (report.phase, report.refused, report.dropped, report.seconds) == (
            "abandoned",
            {"in_use": 1},
            {"timed_out": 1},
            9.0,
        )
        assert rows.assignments(["a" * 32])["a" * 32].status is AssignmentStatus.CLOSED


def test_a_round_that_is_over_and_not_closed_yet_still_shows_as_reporting(store):
    with store.transaction() as rows:
        (opened,) = rows.open_rounds().values()
        rows.save_rounds([replace(opened, state=RoundState(1, Phase.COMMITTED, 2, 2))])
        assert (rows.reports(TASK, 1.0)[0].phase, rows.committed("default")) == ("reporting", 0)


def test_a_nonce_is_new_once_for_each_device_and_forgotten_after_its_time(store):
    with store.transaction() as rows:
        rows.enrol("e" * 16, "11" * 32, 0.0)
        rows.note_nonces([(DEVICE, Nonce("x", 5)), (DEVICE, Nonce("y", 5))])
        assert rows.seen([(DEVICE, "x"), (DEVICE, "z"), ("e" * 16, "x")]) == {(DEVICE, "x")}
        rows.forget_nonces(6.1)
        assert rows.seen([(DEVICE, "x")]) == set()


def test_no_request_looks_through_a_table_that_grows_with_devices_requests_or_rounds(tmp_path):
    rules = Rules(report_goal=4, over_selection=1.0, selection_s=0, reporting_s=1e6)
    coordinator = new(tmp_path, rules)
    names, plans = enrolled(coordinator, 4), set()

    @sa.event.listens_for(coordinator.store._engine, "before_cursor_execute")
    def explain(connection, _cursor, statement, parameters, _context, many):
        if statement.startswith(("SELECT", "INSERT", "UPDATE", "DELETE")):
            first = parameters[0] if many else parameters
            driver = connection.connection.driver_connection
            steps = driver.execute(f"EXPLAIN QUERY PLAN {statement}", first).fetchall()
            plans.update((step[3], statement) for step in steps)

    def nonce(number: int) -> Nonce:
        return Nonce(f"{number:032x}", 0)

    coordinator.public_keys(names)
    works = coordinator.handle(
        [CheckingIn(name, check_in(), nonce(at)) for at, name in enumerate(names)], 1.0
    )[:3]
    for at, (name, work) in enumerate(zip(names, works, strict=False)):
        coordinator.work_of(name, work.assignment, nonce(10 + at))
        report = Reporting(name, work.assignment, encoded(work, at), nonce=nonce(10 + at))
        coordinator.handle([report], 2.0 + at)
    coordinator.close()
    scanned = {step for step, _ in plans if step.startswith("SCAN")}
    small = {"tasks", "json_each", "servers", "logs"}
    assert {step.split()[1] for step in scanned} <= small, scanned
    assert any("nonces" in statement for _, statement in plans)


def test_a_list_of_names_is_one_parameter_however_many_they_are(store):
    names = [f"{number:016x}" for number in range(2000)]
    with store.transaction() as rows:
        for name in names[::2]:
            rows.enrol(name, "00" * 32, 5.0)
        assert rows.public_keys([*names, "'; --", "\u2603"]).keys() == set(names[::2])
        assert rows.public_keys([]) == {}
        assert rows.public_key(names[1]) is None


def test_a_check_in_is_remembered_by_its_first_refusal_until_it_is_assigned(store):
    def told(*outcomes: str) -> dict[str, int]:
        with store.transaction() as rows:
            ledger = Ledger(rows, 1.0, [DEVICE])
            for outcome in outcomes:
                ledger.note_check_in(DEVICE, "default", outcome)
            ledger.write()
            return rows.reports(TASK, 0.0)[0].refused

    assert told("in_use", "not_charging") == {"in_use": 1}
    assert told("assigned") == {}
    assert told("round_full") == {}


def test_participations_keep_the_count_and_the_smallest_separation(store):
    for number, expected in (
        (1, Participation(1, 1)),
        (6, Participation(6, 2, 5)),
        (8, Participation(8, 3, 2)),
        (20, Participation(20, 4, 2)),
    ):
        with store.transaction() as rows:
            (opened,) = rows.open_rounds().values()
            if number > 1:
                rows.close_round("default", opened.state, None, Cause.SURPLUS, 0.0)
                rows.open_round("default", RoundState(number), BASE, 0.0)
            ledger = Ledger(rows, 1.0, [DEVICE])
            ledger.participated(DEVICE, "default")
            ledger.write()
            assert rows.participations([DEVICE]) == {(DEVICE, "default"): expected}
    with store.reading() as rows:
        assert rows.participation("default") == (4, 2)


def test_tasks_come_back_oldest_first_with_their_state(store):
    scored = Task(
        plan=PLAN, seed=1, name="scores", kind=Kind.EVALUATION, evaluates="default", **NETWORK
    )
    with store.transaction() as rows:
        rows.add_task(scored, 5.0)
        rows.set_state("default", State.PAUSED)
    with store.reading() as rows:
        assert [(each.task, each.state, each.created_at) for each in rows.tasks()] == [
            (TASK, State.PAUSED, 0.0),
            (replace(scored, agreed=terms(TASK)), State.RUNNING, 5.0),
        ]


def test_one_server_uses_a_folder_at_a_time(store, tmp_path):
    with pytest.raises(RunError, match="another server"):
        Store(tmp_path / "server.sqlite")
    store.close()
    Store(tmp_path / "server.sqlite").close()


def test_a_file_that_is_no_database_is_one_clear_line(tmp_path):
    (tmp_path / "server.sqlite").write_bytes(b"this is a letter, not a database" * 100)
    with pytest.raises(RunError, match="not a database"):
        Store(tmp_path / "server.sqlite")


def test_a_database_of_another_program_is_left_alone(tmp_path):
    path = tmp_path / "server.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE mine (a)")
    before = path.read_bytes()
    with pytest.raises(RunError, match="another program"):
        Store(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["server.sqlite"]


def test_a_database_of_a_newer_version_is_left_alone(tmp_path):
    Store(tmp_path / "server.sqlite").close()
    with sqlite3.connect(tmp_path / "server.sqlite") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(RunError, match="9999"):
        Store(tmp_path / "server.sqlite")


def test_a_database_error_does_not_show_what_was_written(store):
    with pytest.raises(sa.exc.IntegrityError) as caught, store.transaction() as rows:
        rows.save_assignments([StoredAssignment("a" * 32, "default", 1, "feedfacefeedface", 0.0)])
    assert "feedface" not in str(caught.value)
