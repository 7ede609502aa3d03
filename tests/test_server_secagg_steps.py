"""Rounds whose devices open their sums together, step by step, at the coordinator."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_runtime import chain, encoding, weights
from device_runtime.causes import Cause
from device_runtime.errors import ConfigError
from device_runtime.secagg_wire import (
    Advertised,
    Announced,
    Consent,
    Inbox,
    Neighbour,
    Revealed,
    Roster,
    Shares,
    to_bits,
)
from device_runtime.wire import Ack, Assignment, Kind, Phase, Reject, Scores
from server import tasks
from server.eligibility import Policy
from server.requests import Hearing, Refused, Reporting, Telling
from server.rounds import Mode
from server.task import TaskSettings
from tests import toy_server
from tests.toy_secagg_steps import (
    DEVICES,
    LIES,
    RULES,
    TRUTH,
    Member,
    Report,
    assigned,
    codes,
    new,
    play,
)


def mean_of(members) -> np.ndarray:
    """What the round must have come to: the mean of what these devices encoded."""
    by = chain.terms_of(members[0].work).encoding
    total = sum(codes(each.number, by).astype(np.int64) for each in members)
    return encoding.mean(total, len(members), by)


def moved(coordinator, report) -> np.ndarray:
    """How far a round has moved the weights."""
    after = toy_server.stored(coordinator, report.checkpoint).weights
    before = toy_server.stored(coordinator, report.base).weights
    return weights.flatten(weights.subtract(after, before))


@pytest.mark.parametrize("peers", [LIES, TRUTH], ids=["the server may lie", "it tells no lies"])
def test_a_round_of_all_its_devices_comes_to_the_mean_of_what_they_encoded(tmp_path, peers):
    coordinator = new(tmp_path, peers=peers)
    members = assigned(coordinator)
    play(coordinator, members, [1.0])
    report = coordinator.reports(0.0).rounds[0]
    assert (report.phase, report.counted, report.reason) == (Phase.COMMITTED, DEVICES, "")
    np.testing.assert_allclose(moved(coordinator, report), mean_of(members), atol=1e-6)
    assert all(each.is_done for each in members)


@pytest.mark.parametrize("step", [Advertised, Shares, Report, Consent, Revealed])
def test_devices_that_leave_before_a_step_are_left_out_of_the_sum_or_made_good(tmp_path, step):
    coordinator = new(tmp_path)
    members = assigned(coordinator)
    for each in members[:2]:
        each.leaves = step
    play(coordinator, members, [1.0])
    report = coordinator.reports(0.0).rounds[0]
    counted = members if step in (Consent, Revealed) else members[2:]
    assert (report.phase, report.reason) == (Phase.COMMITTED, "")
    assert report.counted == len(counted)
    assert report.dropped == ({} if counted is members else {"timed_out": 2})
    np.testing.assert_allclose(moved(coordinator, report), mean_of(counted), atol=1e-6)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (Advertised, "after the step of keys 3 devices are left, which are too few"),
        (Shares, "after the step of shares 3 devices are left, which are too few"),
        (Report, "after the step of masked 3 devices are left, which are too few"),
    ],
)
def test_a_round_that_is_left_by_too_many_is_abandoned_and_says_at_which_step(
    tmp_path, step, reason
):
    coordinator = new(tmp_path)
    members = assigned(coordinator)
    for each in members[:5]:
        each.leaves = step
    play(coordinator, members, [1.0])
    report = coordinator.reports(0.0).rounds[0]
    assert (report.phase, report.reason, report.checkpoint) == (Phase.ABANDONED, reason, "")
    assert report.dropped == {"timed_out": 5, **({"round_closed": 3} if step is not Report else {})}


@pytest.mark.parametrize("step", [Consent, Revealed])
def test_a_sum_whose_secrets_too_few_devices_can_open_is_never_opened(tmp_path, step):
    coordinator = new(tmp_path)
    members = assigned(coordinator)
    for each in members[:5]:  # four neighbours of each must stay
        each.leaves = step
    play(coordinator, members, [1.0])
    report = coordinator.reports(0.0).rounds[0]
    assert (report.phase, report.counted, report.checkpoint) == (Phase.ABANDONED, DEVICES, "")
    assert "too few" in report.reason


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    leaves=st.lists(
        st.sampled_from((None, None, Advertised, Shares, Report, Consent, Revealed)),
        min_size=DEVICES,
        max_size=DEVICES,
    )
)
def test_whoever_leaves_when_the_sum_is_exact_or_never_opened(tmp_path_factory, leaves):
    coordinator = new(tmp_path_factory.mktemp("server"))
    members = assigned(coordinator)
    for each, step in zip(members, leaves, strict=True):
        each.leaves = step
    play(coordinator, members, [1.0])
    report = coordinator.reports(0.0).rounds[0]
    if report.phase is Phase.ABANDONED:
        assert report.reason and not report.checkpoint
    else:
        counted = [each for each in members if any(isinstance(m, bytes) for m in each.sent)]
        np.testing.assert_allclose(moved(coordinator, report), mean_of(counted), atol=1e-6)
    coordinator.close()


def test_a_cohort_that_is_drawn_is_whole_before_its_keys_are_closed(tmp_path):
    coordinator = new(tmp_path, replace(RULES, selection_s=60.0, claim_s=30.0))
    devices = toy_server.enrolled(coordinator, DEVICES + 2)
    for device in devices:
        assert coordinator.check_in(device, toy_server.READY, 1.0).cause is Cause.SELECTING
    members = []
    for number, device in enumerate(devices):
        work = coordinator.check_in(device, toy_server.READY, 75.0)
        if isinstance(work, Assignment):
            assert work.deadline_s == 600.0 + 30.0  # it may have to wait for who comes last
            members.append(Member(device, number, work))
            members[-1].go_on(talk(coordinator, 75.0), 75.0)
    assert len(members) == DEVICES
    play(coordinator, members, [80.0])
    report = coordinator.reports(0.0).rounds[0]
    assert (report.phase, report.counted) == (Phase.COMMITTED, DEVICES)
    np.testing.assert_allclose(moved(coordinator, report), mean_of(members), atol=1e-6)


def test_a_step_waits_for_no_one_longer_than_its_share_of_the_reporting_window(tmp_path):
    coordinator = new(tmp_path)
    members = assigned(coordinator)
    members[0].leaves = Advertised
    at = [1.0]
    play(coordinator, members, at)
    assert 361.0 <= at[0] < 361.0 + 200.0  # six tenths of ten minutes, and the rest soon after


def talk(coordinator, now=2.0):
    """Who asks, and hears at once."""
    return lambda request: coordinator.handle([request], now)[0]


def begun(coordinator, count=DEVICES):
    """Devices that have sent their keys, and what each of them sent."""
    members = assigned(coordinator, count)
    for each in members:
        each.go_on(talk(coordinator), 1.0)
    return members


def test_keys_may_be_sent_again_but_no_others_and_nobody_else_s(tmp_path):
    coordinator = new(tmp_path)
    members = begun(coordinator, 3)
    ask = talk(coordinator)
    first, second = members[0], members[1]
    (keys,), (others,) = first.sent, second.sent
    assert ask(Telling(first.device, first.work.assignment, keys)) == Ack(True)
    answer = ask(Telling(first.device, first.work.assignment, others))
    assert (type(answer), answer.cause) == (Refused, Cause.DIFFERENT_UPDATE)
    assert coordinator.reports(2.0).rounds[0].dropped == {}


@pytest.mark.parametrize(
    ("change", "distrust"),
    [
        ({"public_key": "0f" * 32}, "bad_signature"),
        ({"signature": "0f" * 64}, "bad_signature"),
        ({"mask_key": "of another"}, "replayed_key"),
        ({"box_key": "of another"}, "replayed_key"),
    ],
)
def test_keys_that_are_not_the_device_s_or_have_been_sent_are_refused_by_name(
    tmp_path, change, distrust
):
    coordinator = new(tmp_path)
    members = assigned(coordinator)
    ((name, value),) = change.items()

    def spoiled(message):
        if isinstance(message, Advertised):
            theirs = getattr(members[0].sent[0], name)
            return replace(message, **{name: theirs if value == "of another" else value})
        return message

    members[1].spoils = spoiled
    play(coordinator, members, [1.0])
    (refused,) = members[1].refused
    assert (refused.cause, refused.status) == (Cause.BAD_SHARES, 422)
    assert distrust in refused.detail
    report = coordinator.reports(0.0).rounds[0]
    assert (report.phase, report.counted) == (Phase.COMMITTED, DEVICES - 1)
    assert report.dropped == {"bad_shares": 1}


def test_shares_for_others_than_the_neighbours_are_refused_by_name(tmp_path):
    coordinator = new(tmp_path)
    members = assigned(coordinator)
    members[0].spoils = lambda each: (
        replace(each, boxes=each.boxes[1:]) if isinstance(each, Shares) else each
    )
    play(coordinator, members, [1.0])
    (refused,) = members[0].refused
    assert refused.cause is Cause.BAD_SHARES and "foreign_shares" in refused.detail
    assert coordinator.reports(0.0).rounds[0].counted == DEVICES - 1


def test_wrong_shares_of_one_device_do_not_spoil_the_sum(tmp_path):
    coordinator = new(tmp_path)
    members = assigned(coordinator)

    def wrong(message):
        if not isinstance(message, Revealed):
            return message
        return replace(message, seeds=tuple(replace(s, share="07" * 33) for s in message.seeds))

    members[0].spoils = wrong
    play(coordinator, members, [1.0])
    report = coordinator.reports(0.0).rounds[0]
    assert members[0].refused or report.phase is Phase.COMMITTED
    np.testing.assert_allclose(moved(coordinator, report), mean_of(members), atol=1e-6)


def forged(roster: Roster) -> Roster:
    """A neighbour more than there is, in the place of one that is."""
    first, *others = roster.neighbours
    return replace(roster, neighbours=(*others, Neighbour(7 - roster.place, first.keys)))


LIES_TOLD = {
    "neighbours": (Roster, forged),
    "shared": (Inbox, lambda inbox: replace(inbox, shared=to_bits(range(4), DEVICES))),
    "masked": (Announced, lambda told: Announced(to_bits(range(3), DEVICES))),
}


@pytest.mark.parametrize("lie", LIES_TOLD)
def test_a_device_that_is_lied_to_sends_nothing_more_and_says_so(tmp_path, lie):
    coordinator = new(tmp_path)
    members = assigned(coordinator)
    kind, told = LIES_TOLD[lie]

    def lied(request, answer):
        is_to_first = isinstance(request, Hearing) and request.device == members[0].device
        return told(answer) if is_to_first and isinstance(answer, kind) else answer

    play(coordinator, members, [1.0], lied)
    gone = members[0].gone
    assert gone is not None and gone.cause in (Cause.INCONSISTENT, Cause.TIMED_OUT)
    assert not any(isinstance(each, Revealed) for each in members[0].sent)
    report = coordinator.reports(0.0).rounds[0]
    assert report.phase is Phase.COMMITTED
    counted = members if lie == "masked" else members[1:]
    np.testing.assert_allclose(moved(coordinator, report), mean_of(counted), atol=1e-6)


def test_who_asks_too_early_hears_when_to_ask_again_and_who_sends_too_early_is_refused(tmp_path):
    coordinator = new(tmp_path)
    members = begun(coordinator, 3)
    ask, first = talk(coordinator), members[0]
    answer = ask(Hearing(first.device, first.work.assignment, Roster))
    assert (answer.cause, 4.0 <= answer.retry_in_s <= 6.0) == (Cause.WAITING, True)
    shares = Shares("0f" * 32, ())
    early = ask(Telling(first.device, first.work.assignment, shares))
    assert early.cause is Cause.MALFORMED and "step of keys, not of shares" in early.detail
    words = ask(Reporting(first.device, first.work.assignment, b"FBUP"))
    assert words.cause is Cause.MALFORMED and "not of masked" in words.detail
    assert coordinator.reports(2.0).rounds[0].dropped == {}


def test_a_device_that_comes_when_its_step_is_over_is_told_that_it_is_late(tmp_path):
    coordinator = new(tmp_path)
    members = assigned(coordinator)
    members[0].leaves = Advertised
    play(coordinator, members, [1.0])
    request = Hearing(members[0].device, members[0].work.assignment, Roster)
    (answer,) = coordinator.handle([request], 900.0)
    assert answer == Reject(Cause.LATE, 0.0)


def test_nothing_that_devices_sent_is_kept_once_the_round_is_over(tmp_path):
    coordinator = new(tmp_path)
    members = assigned(coordinator)
    play(coordinator, members, [1.0])
    with coordinator.store.reading() as rows:
        assert rows.secagg.peers("default", 1) == []
        assert rows.secagg.boxes("default", 1, 0) == []
        counts = rows.secagg.counts("default", 1, 1)
    assert counts == {1: {"keys": 8, "shares": 8, "consents": 8, "unmasked": 8}}


@pytest.mark.parametrize(
    ("rules", "peers", "reason"),
    [
        (replace(RULES, mode=Mode.BUFFERED), LIES, "expected synchronous for aggregation secagg"),
        (RULES, replace(LIES, drop_out=0.4), "expected shares that rounds of 8 devices can bear"),
    ],
    ids=["buffered", "too many lost"],
)
def test_a_task_whose_devices_could_never_open_a_sum_is_refused_with_what_to_do(
    tmp_path, rules, peers, reason
):
    with pytest.raises(ConfigError, match=reason):
        new(tmp_path, rules, peers)


def test_nobody_sends_or_hears_anything_for_the_work_of_another(tmp_path):
    coordinator = new(tmp_path)
    first, second = begun(coordinator, 2)
    ask = talk(coordinator)
    for request in (
        Telling(second.device, first.work.assignment, first.sent[0]),
        Hearing(second.device, first.work.assignment, Roster),
    ):
        answer = ask(request)
        assert (type(answer), answer.cause) == (Refused, Cause.UNKNOWN_ASSIGNMENT)


def test_a_device_of_a_task_that_another_opens_has_no_steps(tmp_path):
    coordinator = toy_server.new(tmp_path, RULES)
    (device,) = toy_server.enrolled(coordinator, 1)
    work = coordinator.check_in(device, toy_server.READY, 1.0)
    (answer,) = coordinator.handle([Hearing(device, work.assignment, Roster)], 2.0)
    assert answer.cause is Cause.MALFORMED and "do not open its sums" in answer.detail


def test_scores_of_an_evaluation_are_opened_by_its_devices_as_updates_are(tmp_path):
    coordinator = new(tmp_path)
    rules = toy_server.by_arrival(RULES)
    task = TaskSettings(name="scores", kind=Kind.EVALUATION, evaluates="default", rules=rules)
    tasks.create(coordinator, replace(task, policy=Policy(min_separation=1)), 0.5)
    coordinator.pause("default")
    members = assigned(coordinator)
    members[7].leaves = Report
    play(coordinator, members, [1.0])
    report = coordinator.reports(900.0, "scores").rounds[0]
    assert (report.phase, report.counted, report.reason) == (Phase.COMMITTED, DEVICES - 1, "")
    # devices 0 to 6 had 0 to 6 of 50 words right
    assert report.scores == Scores(350, 21, 42, 280, 721.0)
    assert sum(report.spread) == DEVICES - 1
