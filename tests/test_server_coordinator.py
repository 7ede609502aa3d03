"""The coordinator: whole rounds by plain calls, and what it remembers when it dies in one."""

import itertools
import shutil
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa

from device_runtime import chain, signing, update, weights
from device_runtime.causes import Cause
from device_runtime.errors import CheckpointError, RunError
from device_runtime.update import Form, header
from device_runtime.weights import Checkpoint
from device_runtime.wire import Abandon, Ack, Assignment, Enrolment, Reject
from server import operators
from server.blobs import Blobs
from server.coordinator import Coordinator, open_folder
from server.replays import KEPT_S
from server.requests import CheckingIn, Nonce, Refused
from server.rounds import Rules
from server.step import ServerStep
from server.store import Store
from server.tables import checkpoints, rounds
from server.task import TaskSettings
from tests.toy_server import (
    PLAN,
    READY,
    SHAPES,
    TOKENIZER,
    WEIGHTS,
    OneByOne,
    by_arrival,
    certify,
    check_in,
    created,
    delta,
    encoded,
    enrolled,
    key,
    new,
    reopened,
    stored,
)

RULES = by_arrival(Rules(report_goal=2, over_selection=1.5, rounds=2))  # a cohort of 3


@pytest.fixture
def coordinator(tmp_path):
    opened = new(tmp_path / "server", RULES)
    yield opened
    opened.close()


def assigned(coordinator: OneByOne, devices: list[str], now: float = 1.0) -> list[Assignment]:
    works = [coordinator.check_in(device, READY, now) for device in devices]
    assert all(isinstance(answer, Assignment) for answer in works), works
    return works


def causes(coordinator: OneByOne, *calls) -> list[Cause]:
    """The cause each call is refused for."""
    named = []
    for call in calls:
        with pytest.raises(Refused) as caught:
            call()
        named.append(caught.value.cause)
    return named


# one round


def test_a_round_turns_the_mean_of_the_updates_into_the_next_checkpoint(coordinator):
    devices = enrolled(coordinator, 2)
    works = assigned(coordinator, devices)
    answers = [
        coordinator.update(device, work.assignment, encoded(work, i), 2.0)
        for i, (device, work) in enumerate(zip(devices, works, strict=True))
    ]
    assert all(answer.counted for answer in answers)
    checkpoint = stored(coordinator, coordinator.checkpoint().sha)
    first = coordinator.reports(2.0).rounds[0]
    assert (checkpoint.round, checkpoint.tokenizer, first.phase, first.checkpoint) == (
        1,
        TOKENIZER,
        "committed",
        coordinator.checkpoint().sha,
    )
    moved = weights.flatten(checkpoint.weights) - weights.flatten(WEIGHTS)
    np.testing.assert_allclose(moved, (delta(0) + delta(1)) / 2, atol=0.02)  # 8 bits
    half = stored(coordinator, coordinator.checkpoint().half)
    assert half == replace(checkpoint, weights=half.weights)
    assert all(
        (half.weights[name] == array.astype(np.float16)).all()
        for name, array in checkpoint.weights.items()
    )


def test_all_devices_of_a_round_get_the_same_work_and_the_next_round_other_work(coordinator):
    devices = enrolled(coordinator, 2)
    first = assigned(coordinator, devices)
    assert replace(first[0], assignment="") == replace(first[1], assignment="")
    assert first[0].assignment != first[1].assignment
    for number, (device, work) in enumerate(zip(devices, first, strict=True)):
        coordinator.update(device, work.assignment, encoded(work, number), 2.0)
    later = assigned(coordinator, devices, 3.0)[0]
    assert (later.round, later.plan, later.shapes) == (2, first[0].plan, first[0].shapes)
    assert later.checkpoint != first[0].checkpoint
    assert chain.terms_of(later) == chain.terms_of(first[0])  # one basis for all rounds' sums


def test_a_refused_check_in_names_its_cause_and_a_retry_time_near_the_rule(tmp_path):
    coordinator = new(tmp_path, replace(RULES, retry_s=60.0))
    devices = enrolled(coordinator, 50)
    answers = [coordinator.check_in(device, check_in(charging=False), 1.0) for device in devices]
    assert {answer.cause for answer in answers} == {Cause.NOT_CHARGING}
    retries = [answer.retry_in_s for answer in answers]
    assert 48 <= min(retries) < max(retries) <= 72


def test_a_lost_reply_to_a_check_in_is_given_again_with_the_time_that_is_left(coordinator):
    device = enrolled(coordinator, 1)[0]
    first = coordinator.check_in(device, READY, 10.0)
    assert coordinator.check_in(device, READY, 25.0) == replace(
        first, deadline_s=first.deadline_s - 15
    )


def test_the_funnel_of_a_round_adds_up(coordinator):
    a, b, c, d, e = enrolled(coordinator, 5)
    assert coordinator.check_in(e, check_in(unmetered=None), 1.0).cause is Cause.METERED_NETWORK
    # and ready a little later
    assert coordinator.check_in(a, check_in(idle=False), 1.0).cause is Cause.IN_USE
    works = assigned(coordinator, [a, b, c])
    assert coordinator.check_in(d, READY, 1.0).cause is Cause.ROUND_FULL
    half = coordinator.blob(a, works[0].checkpoint, 1.0, signed_for=("default", 1))
    plan = coordinator.blob(b, works[1].plan, 1.0, signed_for=("default", 1))
    body = encoded(works[0], 0)
    coordinator.update(a, works[0].assignment, body, 2.0)
    coordinator.abandon(b, works[1].assignment, Abandon(Cause.CONDITION_LOST), 3.0)
    coordinator.update(c, works[2].assignment, encoded(works[2], 2), 4.0)
    report = coordinator.reports(9.0).rounds[0]
    assert (
        report.checked_in,
        report.assigned,
        report.downloaded,
        report.uploaded,
        report.counted,
    ) == (5, 3, 1, 2, 2)
    assert report.refused == {"metered_network": 1, "round_full": 1}
    assert report.dropped == {"condition_lost": 1}
    assert (report.bytes_up, report.bytes_down) == (2 * len(body), len(half) + len(plan))
    assert report.seconds == 4.0


def test_a_device_that_was_counted_waits_for_a_later_round(coordinator):
    device = enrolled(coordinator, 1)[0]
    work = assigned(coordinator, [device])[0]
    coordinator.update(device, work.assignment, encoded(work, 0), 2.0)
    assert coordinator.check_in(device, READY, 3.0).cause is Cause.REPORTED_RECENTLY


def test_a_device_that_gave_up_gets_no_second_assignment_in_the_round(coordinator):
    device = enrolled(coordinator, 1)[0]
    work = assigned(coordinator, [device])[0]
    for cause in (Cause.TRAINING_FAILED, Cause.IN_USE):
        assert not coordinator.abandon(device, work.assignment, Abandon(cause), 2.0).counted
    assert coordinator.reports(2.0).rounds[0].dropped == {"training_failed": 1}
    assert coordinator.check_in(device, READY, 3.0).cause is Cause.ALREADY_ASSIGNED
    assert causes(
        coordinator, lambda: coordinator.update(device, work.assignment, encoded(work, 0), 3.0)
    ) == [Cause.ABANDONED]


def test_a_late_report_is_told_that_the_round_is_closed_and_changes_nothing(coordinator):
    devices = enrolled(coordinator, 3)
    works = assigned(coordinator, devices)
    for number in (0, 1):
        coordinator.update(
            devices[number], works[number].assignment, encoded(works[number], number), 2.0
        )
    before = coordinator.checkpoint()
    answer = coordinator.update(devices[2], works[2].assignment, encoded(works[2], 2), 3.0)
    assert isinstance(answer, Reject)
    assert (answer.cause, coordinator.checkpoint()) == (Cause.SURPLUS, before)
    report = coordinator.reports(3.0).rounds[0]
    assert (report.counted, report.uploaded, report.dropped) == (2, 3, {"surplus": 1})


def test_devices_that_never_report_time_out_and_a_late_one_of_them_is_counted_as_late(tmp_path):
    coordinator = new(tmp_path, replace(RULES, reporting_s=100))
    devices = enrolled(coordinator, 3)
    works = assigned(coordinator, devices)
    coordinator.update(devices[0], works[0].assignment, encoded(works[0], 0), 2.0)
    coordinator.tick(101.0)
    report = coordinator.reports(101.0).rounds[0]
    assert (report.phase, report.counted, report.dropped) == ("committed", 1, {"timed_out": 2})
    assert (
        coordinator.update(devices[1], works[1].assignment, encoded(works[1], 1), 102.0).cause
        is Cause.LATE
    )
    assert coordinator.reports(102.0).rounds[0].dropped == {"late": 1, "timed_out": 1}
    coordinator.close()


def test_an_abandoned_round_keeps_the_checkpoint_and_uses_up_its_number(tmp_path):
    coordinator = new(tmp_path, replace(RULES, reporting_s=100))
    before = coordinator.checkpoint()
    device = enrolled(coordinator, 1)[0]
    assigned(coordinator, [device])
    coordinator.tick(101.0)
    first, second = coordinator.reports(101.0).rounds
    assert (first.phase, first.checkpoint, second.round, second.phase) == (
        "abandoned",
        "",
        2,
        "selecting",
    )
    assert coordinator.checkpoint() == before
    assert assigned(coordinator, [device], 102.0)[0].round == 2
    coordinator.close()


def test_the_task_ends_after_its_rounds(coordinator):
    devices = enrolled(coordinator, 2)
    for _ in range(2):
        assert not coordinator.finished()
        for number, (device, work) in enumerate(
            zip(devices, assigned(coordinator, devices), strict=True)
        ):
            coordinator.update(device, work.assignment, encoded(work, number), 2.0)
    assert coordinator.finished()
    assert coordinator.check_in(devices[0], READY, 3.0).cause is Cause.NO_ROUND
    assert [report.phase for report in coordinator.reports(3.0).rounds] == ["committed"] * 2


def test_what_comes_after_the_task_has_ended_changes_nothing(tmp_path):
    coordinator = new(tmp_path, replace(RULES, rounds=1))
    devices = enrolled(coordinator, 3)
    works = assigned(coordinator, devices)
    for number in (0, 1):
        coordinator.update(
            devices[number], works[number].assignment, encoded(works[number], number), 2.0
        )
    before = coordinator.checkpoint()
    for opened in (coordinator, None):
        opened = opened or restarted(coordinator, tmp_path)
        assert opened.update(devices[0], works[0].assignment, encoded(works[0], 0), 3.0).counted
        assert (
            opened.update(devices[2], works[2].assignment, encoded(works[2], 2), 3.0).cause
            is Cause.SURPLUS
        )
        assert not opened.abandon(
            devices[2], works[2].assignment, Abandon(Cause.IN_USE), 3.0
        ).counted
        opened.tick(1e9)
        assert (opened.finished(), opened.checkpoint(), len(opened.reports(1e9).rounds)) == (
            True,
            before,
            1,
        )
    opened.close()


def test_rounds_are_numbered_from_the_checkpoint_the_task_began_with(tmp_path):
    store, blobs = open_folder(tmp_path)
    created(
        Coordinator(store, blobs),
        TaskSettings(PLAN, rules=RULES, seed=1),
        0.0,
        Checkpoint(WEIGHTS, 300, "", TOKENIZER),
    )
    coordinator = OneByOne(store, blobs)
    assert assigned(coordinator, enrolled(coordinator, 1))[0].round == 301
    coordinator.close()


def test_momentum_goes_on_after_a_restart(tmp_path):
    coordinator = new(tmp_path, RULES, step=ServerStep(momentum=0.9))
    devices = enrolled(coordinator, 2)
    for _ in range(2):
        before = stored(coordinator, coordinator.checkpoint().sha).weights
        for device, work in zip(devices, assigned(coordinator, devices), strict=True):
            coordinator.update(device, work.assignment, encoded(work, 1), 2.0)
        moved = weights.flatten(
            weights.subtract(stored(coordinator, coordinator.checkpoint().sha).weights, before)
        )
        coordinator.close()
        coordinator = reopened(tmp_path)
    # 0.9 * the first mean and the second, both delta(1)
    np.testing.assert_allclose(moved, 1.9 * delta(1), atol=0.04)
    coordinator.close()


def test_a_step_into_weights_that_cannot_travel_abandons_the_round(tmp_path):
    coordinator = new(tmp_path, RULES, step=ServerStep(learning_rate=1e6))
    devices = enrolled(coordinator, 2)
    for device, work in zip(devices, assigned(coordinator, devices), strict=True):
        assert coordinator.update(device, work.assignment, encoded(work, 1), 2.0).counted
    assert [report.phase for report in coordinator.reports(3.0).rounds] == [
        "abandoned",
        "selecting",
    ]
    coordinator.close()


# updates that must not count


def refused_bodies(work: Assignment) -> dict[Cause, list[bytes]]:
    good = encoded(work, 0)
    about, codes = header(good), update.codes(good, PLAN.bits)
    return {
        Cause.NOT_AN_UPDATE: [
            b"",
            good[:-1],
            good + b"\0",
            b"not an update",
            update.of_codes(codes & 15, about, 4),  # of fewer bits
            update.of_codes(codes, replace(about, form=Form.WORDS), 8),
            update.of_codes(codes[:-1], replace(about, numbers=len(codes) - 1), 8),
        ],
        Cause.WRONG_ROUND: [update.of_codes(codes, replace(about, round=9), 8)],
        Cause.WRONG_TERMS: [update.of_codes(codes, replace(about, terms="0" * 64), 8)],
        Cause.NORM_TOO_LARGE: [update.of_codes(np.full_like(codes, 255), about, 8)],
    }


def test_an_update_that_breaks_a_rule_is_named_counted_and_leaves_the_sum_as_it_was_to_the_bit(
    tmp_path,
):
    coordinator = new(tmp_path, Rules(report_goal=2, over_selection=20, rounds=2))
    honest, *others = enrolled(coordinator, 20)
    work = assigned(coordinator, [honest])[0]
    coordinator.update(honest, work.assignment, encoded(work, 0), 2.0)

    def on_disk() -> bytes:
        with coordinator.store.reading() as rows:
            return rows.sums("default", 1)[0].body

    before, devices, expected = on_disk(), iter(others), {}
    for cause, bodies in refused_bodies(work).items():
        for body in bodies:
            device = next(devices)
            mine = assigned(coordinator, [device])[0].assignment

            def send(device=device, mine=mine, body=body) -> None:
                coordinator.update(device, mine, body, 2.0)

            assert causes(coordinator, send, send) == [cause] * 2
            expected[cause.value] = expected.get(cause.value, 0) + 1
            assert on_disk() == before
    report = coordinator.reports(3.0).rounds[0]
    assert report.dropped == dict(sorted(expected.items()))
    assert report.counted == 1
    coordinator.close()


def test_after_a_refused_update_no_other_is_taken(coordinator):
    device = enrolled(coordinator, 1)[0]
    work = assigned(coordinator, [device])[0]
    named = causes(
        coordinator,
        lambda: coordinator.update(device, work.assignment, b"rubbish", 2.0),
        lambda: coordinator.update(device, work.assignment, encoded(work, 0), 2.0),
    )
    assert named == [Cause.NOT_AN_UPDATE, Cause.DIFFERENT_UPDATE]


def test_the_same_update_twice_counts_once_and_another_one_is_refused(coordinator):
    devices = enrolled(coordinator, 2)
    works = assigned(coordinator, devices)

    def send(body: bytes) -> Ack | Reject:
        return coordinator.update(devices[0], works[0].assignment, body, 2.0)

    assert [send(encoded(works[0], 0)).counted for _ in range(3)] == [True] * 3
    assert causes(coordinator, lambda: send(encoded(works[0], 1))) == [Cause.DIFFERENT_UPDATE]
    assert coordinator.abandon(
        devices[0], works[0].assignment, Abandon(Cause.TIMED_OUT), 2.0
    ).counted
    report = coordinator.reports(3.0).rounds[0]
    assert (report.counted, report.phase) == (1, "selecting")
    coordinator.update(devices[1], works[1].assignment, encoded(works[1], 1), 3.0)
    assert send(encoded(works[0], 0)).counted  # also when the round is over
    assert coordinator.reports(3.0).rounds[0].counted == 2


def test_somebody_elses_assignment_is_unknown_and_stays_open(coordinator):
    owner, thief = enrolled(coordinator, 2)
    work = assigned(coordinator, [owner])[0]
    assert (
        causes(
            coordinator,
            lambda: coordinator.update(thief, work.assignment, encoded(work, 1), 2.0),
            lambda: coordinator.abandon(thief, work.assignment, Abandon(Cause.IN_USE), 2.0),
            lambda: coordinator.update(owner, "0" * 32, encoded(work, 1), 2.0),
            lambda: coordinator.update(owner, "'; --", encoded(work, 1), 2.0),
        )
        == [Cause.UNKNOWN_ASSIGNMENT] * 4
    )
    assert coordinator.update(owner, work.assignment, encoded(work, 0), 2.0).counted


def test_a_device_cannot_name_any_cause_it_likes_when_it_gives_up(coordinator):
    device = enrolled(coordinator, 1)[0]
    work = assigned(coordinator, [device])[0]
    assert causes(
        coordinator,
        lambda: coordinator.abandon(device, work.assignment, Abandon(Cause.NORM_TOO_LARGE), 2.0),
    ) == [Cause.MALFORMED]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_the_order_of_reports_cannot_change_a_bit_of_the_checkpoint(tmp_path, order):
    def result(sequence) -> str:
        coordinator = new(tmp_path / "".join(map(str, sequence)), Rules(report_goal=4))
        devices = enrolled(coordinator, 4)
        works = assigned(coordinator, devices)
        for number in sequence:
            coordinator.update(
                devices[number],
                works[number].assignment,
                encoded(works[number], number),
                2.0,
            )
        coordinator.close()
        return coordinator.checkpoint().sha

    assert result(order) == result((1, 0, 2, 3))


# devices


def test_the_same_key_always_gets_the_same_name(coordinator):
    public = signing.public_hex(key(3))
    first = coordinator.enrol(Enrolment(public), 0.0)
    assert first == coordinator.enrol(Enrolment(public), 9.0)
    assert first.device == weights.digest(bytes.fromhex(public))[:16]
    assert (
        causes(
            coordinator,
            *(
                lambda text=text: coordinator.enrol(Enrolment(text), 0.0)
                for text in ("", "zz" * 32, public.upper())
            ),
        )
        == [Cause.MALFORMED] * 3
    )


def test_a_nonce_is_good_for_one_request_of_its_device(coordinator):
    device, other = enrolled(coordinator, 2)
    nonce = Nonce("ab" * 16, 1)
    asked = [CheckingIn(each, READY, nonce) for each in (device, device, other)]
    first, again, others = coordinator.handle(asked, 1.0)
    assert (type(first), again.cause, type(others)) == (Assignment, Cause.REPLAYED, Assignment)
    coordinator.tick(1 + KEPT_S)  # as long as such a signature is good anywhere
    (later,) = coordinator.handle(asked[:1], 1 + KEPT_S)
    assert later.cause is Cause.REPLAYED


def test_nonces_are_forgotten_after_minutes_though_no_round_closes(coordinator):
    (device,) = enrolled(coordinator, 1)
    coordinator.handle([CheckingIn(device, READY, Nonce("ab" * 16, 1))], 1.0)
    for now in (10.0, KEPT_S, KEPT_S + 61, KEPT_S + 122):
        coordinator.tick(now)
    with coordinator.store.reading() as rows:
        assert rows.seen([(device, "ab" * 16)]) == set()
        assert [each.state.round for each in rows.open_rounds().values()] == [1]


def test_work_needs_an_enrolled_device(coordinator):
    assert causes(coordinator, lambda: coordinator.check_in("0" * 16, READY, 0.0)) == [
        Cause.UNKNOWN_DEVICE
    ]


def test_an_unknown_blob_is_refused(coordinator):
    device = enrolled(coordinator, 1)[0]
    assert causes(coordinator, lambda: coordinator.blob(device, "0" * 64, 0.0)) == [
        Cause.UNKNOWN_BLOB
    ]


def test_a_download_in_parts_is_complete_with_its_last_byte(coordinator):
    device = enrolled(coordinator, 1)[0]
    work = assigned(coordinator, [device])[0]
    size = coordinator.blob_size(work.checkpoint)
    first = coordinator.blob(device, work.checkpoint, 1.0, 0, 100, ("default", 1))
    assert coordinator.reports(1.0).rounds[0].downloaded == 0
    rest = coordinator.blob(device, work.checkpoint, 1.0, 100, None, ("default", 1))
    assert weights.digest(first + rest) == work.checkpoint
    report = coordinator.reports(1.0).rounds[0]
    assert (report.downloaded, report.bytes_down) == (1, size)


# tasks


def test_a_task_has_a_name_of_its_own_and_a_server_without_tasks_has_no_work(coordinator, tmp_path):
    with pytest.raises(RunError, match="one of that name already"):
        created(
            coordinator, TaskSettings(PLAN, rules=RULES), 0.0, Checkpoint(WEIGHTS, 0, "", TOKENIZER)
        )
    store, blobs = open_folder(tmp_path / "empty")
    coordinator = OneByOne(store, blobs)
    assert coordinator.check_in(enrolled(coordinator, 1)[0], READY, 1.0).cause is Cause.NO_ROUND
    coordinator.close()


def test_a_task_that_cannot_travel_is_refused_before_anything_is_written(
    tmp_path,
):
    store, blobs = open_folder(tmp_path)
    with pytest.raises(CheckpointError, match="float16"):
        created(
            Coordinator(store, blobs),
            TaskSettings(PLAN, rules=RULES),
            0.0,
            Checkpoint({"w": np.full(4, 1e6, np.float32)}),
        )
    assert list((tmp_path / "blobs").iterdir()) == []
    store.close()


def test_without_a_seed_two_tasks_rotate_differently(tmp_path):
    seeds = set()
    for name in ("a", "b"):
        store, blobs = open_folder(tmp_path / name)
        created(
            Coordinator(store, blobs),
            TaskSettings(PLAN, rules=RULES),
            0.0,
            Checkpoint(WEIGHTS, 0, "", TOKENIZER),
        )
        coordinator = OneByOne(store, blobs)
        (work,) = assigned(coordinator, enrolled(coordinator, 1))
        seeds.add(chain.terms_of(work).rotation_seed)
        coordinator.close()
    assert len(seeds) == 2


# restarts and crashes


def played(folder, restart_before: int = -1) -> str:
    """Two rounds of two devices in `folder`, restarted before one of their eight calls; the last
    checkpoint.
    """
    coordinator, call = new(folder, RULES), itertools.count()
    devices = enrolled(coordinator, 2)
    for _ in range(2):
        works = []
        for device in devices:
            coordinator = (
                restarted(coordinator, folder) if next(call) == restart_before else coordinator
            )
            works += assigned(coordinator, [device])
        for number, (device, work) in enumerate(zip(devices, works, strict=True)):
            coordinator = (
                restarted(coordinator, folder) if next(call) == restart_before else coordinator
            )
            assert coordinator.update(device, work.assignment, encoded(work, number), 2.0).counted
    coordinator.close()
    assert coordinator.finished()
    return coordinator.checkpoint().sha


def restarted(coordinator: OneByOne, folder) -> OneByOne:
    coordinator.close()
    return reopened(folder)


def test_a_restart_between_or_inside_rounds_does_not_change_the_result(tmp_path):
    results = {played(tmp_path / str(call), restart_before=call) for call in range(-1, 8)}
    assert len(results) == 1


class Crash(BaseException):
    """Stands for the end of the process."""


class Fate:
    """Ends the process at its `last` step."""

    def __init__(self, last: int):
        self.left = last

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Crash


class MortalStore(Store):
    def __init__(self, database, fate: Fate):
        self.fate = fate
        super().__init__(database)

    @contextmanager
    def transaction(self, durable: bool = False, **options: bool):
        with super().transaction(durable, **options) as rows:
            yield rows
            self.fate.step()  # before it is on disk
        self.fate.step()  # on disk, but nobody has heard of it


class MortalBlobs(Blobs):
    def __init__(self, folder, fate: Fate):
        self.fate = fate
        super().__init__(folder)

    def put(self, data: bytes) -> str:
        self.fate.step()
        name = super().put(data)
        self.fate.step()
        return name


def survives(folder, dies_at: int) -> tuple[str, bool]:
    """A round of two devices that repeat what was not answered; the server dies once. Its last
    checkpoint, and whether it did die.
    """
    fate = Fate(dies_at)
    coordinator = None

    def persistently(call):
        nonlocal coordinator
        while True:
            try:
                if coordinator is None:
                    store = MortalStore(folder / "server.sqlite", fate)
                    coordinator = OneByOne(
                        store, MortalBlobs(folder / "blobs", fate), np.random.default_rng(0)
                    )
                return call(coordinator)
            except Crash:
                (store if coordinator is None else coordinator).close()
                coordinator = None

    devices = persistently(lambda server: enrolled(server, 2))
    for index, device in enumerate(devices):

        def turn(server: OneByOne, index=index, device=device) -> None:
            work = server.check_in(device, READY, 1.0)
            if isinstance(work, Assignment) and work.round == 1:
                assert server.update(device, work.assignment, encoded(work, index), 1.0).counted

        persistently(turn)
    persistently(lambda server: server.tick(1.0))
    reports = persistently(lambda server: server.reports(1.0).rounds)
    sha = coordinator.checkpoint().sha
    coordinator.close()
    assert [(report.phase, report.counted) for report in reports] == [
        ("committed", 2),
        ("selecting", 0),
    ]
    return sha, fate.left <= 0


def test_a_crash_at_any_write_loses_nothing_acknowledged_and_counts_nothing_twice(tmp_path):
    new(tmp_path / "template", RULES).close()
    results = set()
    for dies_at in itertools.count(1):
        shutil.copytree(tmp_path / "template", tmp_path / str(dies_at))
        sha, died = survives(tmp_path / str(dies_at), dies_at)
        results.add(sha)
        if not died:
            break
    assert dies_at > 16
    assert len(results) == 1  # the last run is one without a crash


@pytest.mark.parametrize("was_kept", [True, False])
def test_a_commit_nobody_knows_the_fate_of_loses_no_update_of_a_server_that_goes_on(
    tmp_path, monkeypatch, was_kept
):
    coordinator = new(tmp_path, Rules(report_goal=3, over_selection=1.0))
    devices = enrolled(coordinator, 3)
    works = assigned(coordinator, devices)
    coordinator.update(devices[0], works[0].assignment, encoded(works[0], 0), 2.0)
    transaction = coordinator.store.transaction

    @contextmanager
    def breaking(durable: bool = False, **options: bool):
        with transaction(durable, **options) as rows:
            yield rows
            if not was_kept:
                raise Crash
        raise Crash

    monkeypatch.setattr(coordinator.store, "transaction", breaking)
    with pytest.raises(Crash):
        coordinator.update(devices[1], works[1].assignment, encoded(works[1], 1), 2.0)
    monkeypatch.setattr(coordinator.store, "transaction", transaction)
    for number in (1, 2):  # the device that got no answer asks again
        assert coordinator.update(
            devices[number], works[number].assignment, encoded(works[number], number), 3.0
        ).counted
    moved = weights.flatten(
        stored(coordinator, coordinator.checkpoint().sha).weights
    ) - weights.flatten(WEIGHTS)
    np.testing.assert_allclose(moved, (delta(0) + delta(1) + delta(2)) / 3, atol=0.02)
    coordinator.close()


def test_a_crash_while_a_task_is_made_leaves_no_half_of_it(tmp_path):
    for dies_at in itertools.count(1):
        folder, fate = tmp_path / str(dies_at), Fate(dies_at)
        task = TaskSettings(PLAN, rules=RULES, seed=7), 0.0, Checkpoint(WEIGHTS, 0, "", TOKENIZER)
        store, blobs = (
            MortalStore(folder / "server.sqlite", fate),
            MortalBlobs(folder / "blobs", fate),
        )
        try:
            created(Coordinator(store, blobs), *task)
        except Crash:
            assert fate.left == 0
        store.close()
        store, blobs = open_folder(folder)
        if not Coordinator(store, blobs).tasks():
            created(Coordinator(store, blobs), *task)
        coordinator = OneByOne(store, blobs)
        if not operators.report(coordinator, "default", 0.0).signer:
            certify(coordinator, 0.0)
        assert assigned(coordinator, enrolled(coordinator, 1))[0].shapes == SHAPES
        coordinator.close()
        if fate.left > 0:
            break
    assert dies_at > 8


@pytest.mark.parametrize(
    ("goal", "spoiled", "said"),
    [
        (2, sa.delete(checkpoints), "the checkpoint round 1 starts from is not in the database"),
        (3, sa.update(rounds).values(admitted=1), "round 1 does not wait for"),
    ],
    ids=["no checkpoint", "no place"],
)
def test_a_database_that_contradicts_itself_is_said_and_not_counted_on(
    tmp_path, goal, spoiled, said
):
    coordinator = new(tmp_path, Rules(report_goal=goal, over_selection=1.0))
    a, b = enrolled(coordinator, 2)
    works = assigned(coordinator, [a, b])
    coordinator.update(a, works[0].assignment, encoded(works[0], 0), 2.0)
    with coordinator.store.transaction() as rows:
        rows._connection.execute(spoiled)
    with pytest.raises(RunError, match=said):
        coordinator.update(b, works[1].assignment, encoded(works[1], 1), 2.0)
        coordinator.tick(3.0)  # what the end of a round meets is no matter of the last report
    coordinator.close()
