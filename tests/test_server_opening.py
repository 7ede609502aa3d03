"""A masked sum is opened once, by a helper, and only if it has enough reports.

A real coordinator, a real helper's desk, and a function between them.
"""

import re
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as trying
from hypothesis import strategies as st

from device_runtime import (
    chain,
    encoding,
    enrolments,
    masking,
    packing,
    protection,
    signing,
    update,
)
from device_runtime.causes import Cause
from device_runtime.config import from_json, to_json
from device_runtime.errors import ConfigError, RunError
from device_runtime.helper_wire import (
    SEAL_KEY,
    HelperProblem,
    KeysAsked,
    Refusal,
    Registered,
    SealKey,
    SealKeys,
)
from device_runtime.masking import Bound
from device_runtime.terms import Aggregation
from device_runtime.transport import Reply, Unreachable
from device_runtime.update import Form, Header
from device_runtime.wire import Abandon, Assignment, Enrolment, Signed
from helper.desk import Desk, places_in
from helper.store import Store
from helper.tasks import Rules as HelperRules
from server import dashboard, operators, overview
from server.helping import seal_key_in
from server.metrics import Metrics
from server.requests import Refused
from server.rounds import Mode, Rules
from server.task import Task, TaskSettings, for_bundle, openable
from tests import toy_opening
from tests.toy_helper import CERTIFIER, HELPER, IDENTITY, NOISE
from tests.toy_opening import THREE, codes, desk, joined, new, nowhere, opened, sealed, way_to
from tests.toy_server import READY, WEIGHTS, OneByOne, enrolled, key, stored

TWO = Rules(report_goal=2, over_selection=1.0)


@pytest.fixture
def helper(tmp_path):
    return desk(tmp_path / "helper")


@pytest.fixture
def coordinator(tmp_path, helper):
    server = new(tmp_path / "server", way_to(helper))
    yield server
    server.close()


def phases(coordinator: OneByOne) -> list[tuple[int, str, int]]:
    rounds = coordinator.reports(9.0).rounds
    return [(each.round, each.phase.value, each.counted) for each in rounds]


def sent(coordinator: OneByOne, devices: list[str], works: list[Assignment], now: float) -> None:
    """All of them report, and are counted."""
    for number, (device, work) in enumerate(zip(devices, works, strict=True)):
        assert coordinator.update(device, work.assignment, sealed(work, number), now).counted


def frozen(coordinator: OneByOne, count: int = 3) -> list[Assignment]:
    """The work of as many devices as a round waits for, once all of them have been counted."""
    devices = enrolled(coordinator, count)
    works = joined(coordinator, devices, 1.0)
    sent(coordinator, devices, works, 2.0)
    return works


def moved(coordinator: OneByOne) -> np.ndarray:
    """What the newest checkpoint is further than the first, as one vector."""
    after = stored(coordinator, coordinator.checkpoint().sha).weights
    return np.concatenate([(after[name] - WEIGHTS[name]).ravel() for name in sorted(after)])


def mean_of(works: list[Assignment], numbers: list[int]) -> np.ndarray:
    by = chain.terms_of(works[0]).encoding
    total = sum(codes(works[0], number).astype(np.int64) for number in numbers)
    return encoding.mean(total, len(numbers), by)


# from the last report to the next round


def test_a_round_waits_until_its_helper_has_opened_its_sum_and_then_goes_on(coordinator):
    works = frozen(coordinator)
    assert phases(coordinator) == [(1, "unmasking", 3)]
    assert coordinator.checkpoint().round == 0  # nothing has come of it yet
    fourth = enrolled(coordinator, 4)[3]
    assert coordinator.check_in(fourth, READY, 2.5).cause is Cause.ROUND_FULL
    coordinator.tick(3.0)
    assert phases(coordinator) == [(1, "unmasking", 3)]  # time alone opens nothing
    coordinator.open_sums(3.0)
    assert phases(coordinator) == [(1, "committed", 3), (2, "selecting", 0)]
    np.testing.assert_allclose(moved(coordinator), mean_of(works, [0, 1, 2]), atol=1e-6)
    (work,) = joined(coordinator, [fourth], 4.0)
    key_of_round = seal_key_in(work.seal_key, HELPER)
    assert (key_of_round.round, key_of_round.task_id) == (2, work.task_id)


def test_a_helper_that_is_away_costs_time_and_no_report(tmp_path, helper):
    ways = [way_to(helper)]
    coordinator = new(tmp_path / "server", lambda *request: ways[0](*request))
    works = frozen(coordinator)
    ways[0] = nowhere
    for now in (3.0, 4.0):
        coordinator.open_sums(now)
        assert phases(coordinator) == [(1, "unmasking", 3)]
    shown = operators.report(coordinator, "default", 4.0)
    assert "round 1 waits for its sum to be opened: helper: gives no answer" in shown.waits
    assert "no connection" in operators.helper(coordinator, 4.0).problem
    ways[0] = way_to(helper)
    coordinator.open_sums(5.0)
    np.testing.assert_allclose(moved(coordinator), mean_of(works, [0, 1, 2]), atol=1e-6)
    assert operators.report(coordinator, "default", 5.0).waits == ""
    coordinator.close()


def test_no_device_gets_work_that_nobody_could_open(tmp_path, helper):
    ways = [way_to(helper)]
    coordinator = opened(tmp_path / "server", lambda *request: ways[0](*request))
    toy_opening.begun(coordinator, THREE)
    device = enrolled(coordinator, 1)[0]
    ways[0] = nowhere
    coordinator.open_sums(1.0)
    assert coordinator.check_in(device, READY, 1.0).cause is Cause.NO_HELPER
    report = operators.report(coordinator, "default", 1.0)
    assert report.waits.startswith("its helper gives nothing: helper: gives no answer")
    ways[0] = way_to(helper)
    coordinator.open_sums(2.0)
    assert isinstance(coordinator.check_in(device, READY, 2.0), Assignment)
    coordinator.close()


def test_a_key_that_nothing_can_be_sealed_to_is_given_to_nobody(tmp_path, helper):
    def send(method, path, body, headers):
        if path != "/v1/seal-keys":
            return way_to(helper)(method, path, body, headers)
        asked = from_json(KeysAsked, body, "body")
        with helper._store.reading() as rows:
            terms = rows.task(asked.task_id).task.terms.name
        key = SealKey("00" * 32, asked.task_id, 1, terms)  # of small order
        return Reply(200, {}, to_json(SealKeys((helper_signed(key),))))

    coordinator = new(tmp_path / "server", send)
    device = enrolled(coordinator, 1)[0]
    assert coordinator.check_in(device, READY, 1.0).cause is Cause.NO_HELPER
    coordinator.close()


def helper_signed(key: SealKey) -> Signed:
    return signing.sign_text(IDENTITY, SEAL_KEY, to_json(key))


def test_who_comes_after_enough_others_is_told_so_and_stays_sealed(tmp_path, helper):
    rules = Rules(report_goal=2, over_selection=2.0)
    coordinator = new(tmp_path / "server", way_to(helper), rules)
    devices = enrolled(coordinator, 4)
    works = joined(coordinator, devices, 1.0)
    sent(coordinator, devices[:2], works[:2], 2.0)
    late = coordinator.update(devices[2], works[2].assignment, sealed(works[2], 2), 2.5)
    assert late.cause is Cause.SURPLUS
    coordinator.open_sums(3.0)
    late = coordinator.update(devices[3], works[3].assignment, sealed(works[3], 3), 3.5)
    assert late.cause is Cause.SURPLUS
    np.testing.assert_allclose(moved(coordinator), mean_of(works, [0, 1]), atol=1e-6)
    assert coordinator.reports(4.0).rounds[0].dropped == {"surplus": 2}
    coordinator.close()


def test_an_answer_that_was_lost_on_its_way_is_given_again_and_counts_once(tmp_path, helper):
    lost = []

    def send(method, path, body, headers):
        reply = way_to(helper)(method, path, body, headers)
        if path == "/v1/answers" and not lost:
            lost.append(reply)
            raise Unreachable(path, "the connection broke", "try again")
        return reply

    coordinator = new(tmp_path / "server", send)
    works = frozen(coordinator)
    coordinator.open_sums(3.0)
    assert phases(coordinator) == [(1, "unmasking", 3)]
    coordinator.close()
    coordinator = opened(tmp_path / "server", send)  # killed meanwhile
    coordinator.open_sums(4.0)
    assert phases(coordinator)[0] == (1, "committed", 3)
    np.testing.assert_allclose(moved(coordinator), mean_of(works, [0, 1, 2]), atol=1e-6)
    assert helper.report().answers == 1
    coordinator.close()


def test_a_helper_forgets_answers_and_keys_of_rounds_that_are_over_though_it_was_not_told(
    tmp_path, helper
):
    def deaf(method, path, body, headers):
        return (nowhere if path.endswith("done") else way_to(helper))(method, path, body, headers)

    coordinator = new(tmp_path / "server", deaf)
    frozen(coordinator)
    coordinator.open_sums(3.0)
    (work,) = joined(coordinator, enrolled(coordinator, 4)[3:], 4.0)
    kept = {each: tmp_path / "helper" / each for each in ("answers", "keys")}
    assert len(list(kept["answers"].iterdir())) == 1
    assert (kept["keys"] / f"{work.task_id}~2").exists()
    coordinator.roll_back("default", 0, 5.0)  # nothing comes of round 2
    coordinator.close()
    coordinator = opened(tmp_path / "server", way_to(helper))
    coordinator.open_sums(6.0)
    assert list(kept["answers"].iterdir()) == []
    assert not (kept["keys"] / f"{work.task_id}~2").exists()
    assert (kept["keys"] / f"{work.task_id}~3").exists()
    coordinator.close()


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, {}, b"<html>this is somebody else</html>"),
        Reply(200, {}, b""),
        Reply(502, {}, b"<html>"),
        Reply(404, {}, to_json(HelperProblem(Refusal.MALFORMED, "Not Found"))),
        Reply(413, {}, to_json(HelperProblem(Refusal.MALFORMED, "too large"))),
    ],
)
def test_what_is_no_answer_of_a_helper_costs_time_and_no_report(tmp_path, helper, reply):
    wrong = [False]

    def send(method, path, body, headers):
        is_wrong = wrong[0] and path == "/v1/answers"
        return reply if is_wrong else way_to(helper)(method, path, body, headers)

    coordinator = new(tmp_path / "server", send)
    frozen(coordinator)
    wrong[0] = True
    coordinator.open_sums(3.0)
    assert phases(coordinator) == [(1, "unmasking", 3)]
    assert "round 1 waits" in operators.report(coordinator, "default", 3.0).waits
    wrong[0] = False
    coordinator.open_sums(4.0)
    assert phases(coordinator)[0] == (1, "committed", 3)
    coordinator.close()


def test_a_helper_that_speaks_of_rounds_nobody_can_have_had_moves_no_round(tmp_path, helper):
    def send(method, path, body, headers):
        if path == "/v1/tasks":
            return Reply(200, {}, to_json(Registered("", opens_from=2**31)))
        return way_to(helper)(method, path, body, headers)

    coordinator = new(tmp_path / "server", send)
    assert phases(coordinator) == [(1, "selecting", 0)]
    problem = operators.helper(coordinator, 1.0).problem
    assert "opens sums from round 2,147,483,648 on" in problem
    coordinator.close()


def test_a_round_whose_helper_says_no_is_abandoned_with_its_reason(coordinator):
    devices = enrolled(coordinator, 3)
    works = joined(coordinator, devices, 1.0)
    sent(coordinator, devices[:2], works[:2], 2.0)
    # signed as it should be, and made for another key: only the helper can tell
    body = unopenable(works[2], 2)
    assert coordinator.update(devices[2], works[2].assignment, body, 2.0).counted
    coordinator.open_sums(3.0)
    assert phases(coordinator) == [(1, "abandoned", 3), (2, "selecting", 0)]
    assert coordinator.checkpoint().round == 0
    report = operators.report(coordinator, "default", 3.0)
    assert report.waits.startswith("round 1 was abandoned: the helper gives no mask: bad_seal")
    assert "bad_seal" in coordinator.reports(3.0).rounds[0].reason
    # whoever did that does it once
    assert coordinator.check_in(devices[2], READY, 4.0).cause is Cause.BARRED
    assert isinstance(coordinator.check_in(devices[1], READY, 4.0), Assignment)


def unopenable(work: Assignment, number: int) -> bytes:
    terms, numbers = chain.terms_of(work), codes(work, number)
    by = packing.layout(len(numbers), terms.encoding.largest, terms.most)
    bound = bound_of(work, number)
    stranger = replace(bound, seal_key=X25519)
    seal = masking.seal(bytes(32), stranger, lambda count: bytes([9]) * count)
    signature = key(number).sign(bound.signed(seal))
    words = masking.masked(numbers, bytes(32), by)
    about = Header(Form.SEALED, work.round, by.count, terms.name)
    return update.of_sealed(update.Sealed(seal, signature, words), about, by)


X25519 = "09" + "00" * 31  # the curve's base point: a key whose private half is nobody's here


def bound_of(work: Assignment, number: int) -> Bound:
    about = protection.addressed(work, chain.terms_of(work))
    return protection.bound_of(about, signing.public_hex(key(number)))


def test_a_mean_that_honest_devices_cannot_make_is_refused_whole(coordinator):
    devices = enrolled(coordinator, 3)
    works = joined(coordinator, devices, 1.0)
    for number, (device, work) in enumerate(zip(devices, works, strict=True)):
        numbers = np.full_like(codes(work, number), 15)  # each is a code, and together too long
        body = sealed(work, number, numbers)
        assert coordinator.update(device, work.assignment, body, 2.0).counted
    coordinator.open_sums(3.0)
    assert phases(coordinator) == [(1, "abandoned", 3), (2, "selecting", 0)]
    reason = coordinator.reports(3.0).rounds[0].reason
    assert reason.startswith("it is beyond what honest devices could reach: the mean has a norm")


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda work, body: body[:-1], Cause.NOT_AN_UPDATE),
        (lambda work, body: body + b"\0", Cause.NOT_AN_UPDATE),
        (lambda work, body: in_the_open(work), Cause.NOT_AN_UPDATE),
        (lambda work, body: sealed(work, 1), Cause.BAD_SEAL),  # of another device
        (lambda work, body: flipped(body, update.HEADER_BYTES + 3), Cause.BAD_SEAL),
        (lambda work, body: flipped(body, update.HEADER_BYTES + 90), Cause.BAD_SEAL),
        (lambda work, body: flipped(body, 8), Cause.WRONG_ROUND),
        (lambda work, body: flipped(body, 20), Cause.WRONG_TERMS),
    ],
)
def test_a_report_that_could_not_be_opened_with_the_others_is_refused_by_name(
    coordinator, spoil, cause
):
    device = enrolled(coordinator, 1)[0]
    (work,) = joined(coordinator, [device], 1.0)
    with pytest.raises(Refused) as refused:
        coordinator.update(device, work.assignment, spoil(work, sealed(work, 0)), 2.0)
    assert refused.value.cause is cause
    assert coordinator.reports(3.0).rounds[0].dropped == {cause.value: 1}


def in_the_open(work: Assignment) -> bytes:
    terms, numbers = chain.terms_of(work), codes(work, 0)
    return update.of_codes(numbers, Header(Form.CODES, work.round, len(numbers), terms.name), 4)


def flipped(body: bytes, place: int) -> bytes:
    return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]


def test_an_operator_who_goes_back_leaves_a_sum_that_waits_unopened(coordinator):
    frozen(coordinator)
    coordinator.roll_back("default", 0, 3.0)
    coordinator.open_sums(4.0)
    assert phases(coordinator) == [(1, "abandoned", 3), (2, "selecting", 0)]
    with coordinator.store.reading() as rows:
        assert rows.seals.of("default", 1) == []


def test_how_many_devices_were_in_the_last_sum_too_is_counted(coordinator):
    devices = enrolled(coordinator, 4)
    for number, who in ((1, [0, 1, 2]), (2, [1, 2, 3])):
        works = joined(coordinator, [devices[each] for each in who], 10.0 * number)
        for each, work in zip(who, works, strict=True):
            body = sealed(work, each)
            assert coordinator.update(devices[each], work.assignment, body, 10.0 * number + 1)
        coordinator.open_sums(10.0 * number + 2)
    assert [each.overlap for each in coordinator.reports(99.0).rounds] == [0, 2, 0]
    with coordinator.store.reading() as rows:
        assert len(rows.seals.last("default")) == 3 * 16  # hashes of the last sum's devices alone


@given(
    st.lists(
        st.sampled_from(["stays away", "joins", "gives back", "sends"]), min_size=6, max_size=6
    )
)
@trying(max_examples=8, deadline=None)
def test_whoever_is_lost_at_any_step_the_sum_is_that_of_those_who_were_counted(fates):
    with tempfile.TemporaryDirectory() as folder:
        rules = Rules(report_goal=6, over_selection=1.0, min_reports=2, reporting_s=100.0)
        coordinator = new(Path(folder) / "server", way_to(desk(Path(folder) / "helper")), rules)
        devices, works, counted = enrolled(coordinator, 6), {}, []
        for number, fate in enumerate(fates):
            if fate != "stays away":
                works[number] = joined(coordinator, [devices[number]], 1.0)[0]
        for number, work in works.items():
            if fates[number] == "gives back":
                coordinator.abandon(
                    devices[number], work.assignment, Abandon(Cause.CONDITION_LOST), 2.0
                )
            elif fates[number] == "sends":
                counted.append(number)
                body = sealed(work, number)
                assert coordinator.update(devices[number], work.assignment, body, 2.0).counted
        coordinator.tick(500.0)
        coordinator.open_sums(501.0)
        if len(counted) < 2:
            assert coordinator.checkpoint().round == 0
        else:
            wanted = mean_of(list(works.values()), counted)
            np.testing.assert_allclose(moved(coordinator), wanted, atol=1e-6)
        coordinator.close()


def test_only_devices_that_somebody_has_certified_count_where_a_helper_asks_for_that(tmp_path):
    strict = desk(tmp_path / "helper", enrolment_key=signing.public_hex(CERTIFIER))
    coordinator = new(tmp_path / "server", way_to(strict), THREE)

    def round_of_three(now: float) -> None:
        devices = enrolled(coordinator, 3)
        sent(coordinator, devices, joined(coordinator, devices, now), now + 1)
        coordinator.open_sums(now + 2)

    round_of_three(1.0)
    assert "not_enrolled" in coordinator.reports(9.0).rounds[0].reason
    other = enrolments.certificate(signing.public_hex(key(1)), CERTIFIER)
    with pytest.raises(Refused, match="expected one of device key"):
        coordinator.enrol(Enrolment(signing.public_hex(key(0)), certificate=other), 5.0)
    for number in range(3):
        public = signing.public_hex(key(number))
        shown = enrolments.certificate(public, CERTIFIER)
        coordinator.enrol(Enrolment(public, certificate=shown), 5.0)
    round_of_three(10.0)
    assert phases(coordinator)[1] == (2, "committed", 3)
    coordinator.close()


def test_a_sum_that_would_pass_the_helper_s_budget_ends_its_round_with_the_helper_s_reason(
    tmp_path, helper
):
    """The helper's ledger may know more than the server's: that of a server that was put back."""
    said = HelperProblem(Refusal.OVER_BUDGET, "all 50 sums of the task have been given")
    asked, way = [], way_to(helper)

    def send(method, path, body, headers) -> Reply:
        if path == "/v1/answers":
            asked.append(body)
            return Reply(said.refusal.status, {}, to_json(said))
        return way(method, path, body, headers)

    coordinator = new(tmp_path / "server", send, THREE, noise=NOISE)
    devices = enrolled(coordinator, 3)
    sent(coordinator, devices, joined(coordinator, devices, 1.0), 2.0)
    coordinator.open_sums(3.0)
    (report,) = coordinator.reports(9.0).rounds[:1]
    assert report.reason.endswith(f"over_budget: {said.detail}")
    assert phases(coordinator)[0][1] == "abandoned"
    coordinator.open_sums(30.0)
    assert len(asked) == 1  # and is not asked again
    coordinator.close()


def test_a_round_whose_helper_adds_noise_is_committed_with_it(tmp_path, helper):
    coordinator = new(tmp_path / "server", way_to(helper), THREE, noise=NOISE)
    devices = enrolled(coordinator, 3)
    works = joined(coordinator, devices, 1.0)
    sent(coordinator, devices, works, 2.0)
    coordinator.open_sums(3.0)
    assert phases(coordinator)[0] == (1, "committed", 3)
    agreed = chain.terms_of(works[0])
    one = NOISE.multiplier * agreed.encoding.bound * agreed.clipping_norm / agreed.most
    # of 50 values: right within a half
    assert (moved(coordinator) - mean_of(works, [0, 1, 2])).std() == pytest.approx(one, rel=0.5)
    ((_, spent),) = helper.budgets()
    assert spent.told.sums == 1
    coordinator.close()


# buffered rounds


def test_a_late_report_of_a_buffered_task_weighs_as_much_as_any_and_is_opened_with_its_own_key(
    tmp_path, helper
):
    rules = replace(TWO, over_selection=2.0, mode=Mode.BUFFERED)
    coordinator = new(tmp_path / "server", way_to(helper), rules)
    devices = enrolled(coordinator, 5)
    works = joined(coordinator, devices[:3], 1.0)
    sent(coordinator, devices[:2], works[:2], 2.0)
    # nothing joins a sum that is being opened: the same bytes are sent again
    slow = devices[2], works[2].assignment, sealed(works[2], 2)
    with pytest.raises(Refused) as refused:
        coordinator.update(*slow, 2.5)
    assert (refused.value.cause, refused.value.status) == (Cause.UNAVAILABLE, 503)
    coordinator.open_sums(3.0)
    first = moved(coordinator)
    assert coordinator.update(*slow, 4.0).counted
    works += joined(coordinator, devices[3:4], 5.0)
    assert works[3].round == 2
    body = sealed(works[3], 3)
    assert coordinator.update(devices[3], works[3].assignment, body, 6.0).counted
    coordinator.open_sums(7.0)
    assert phases(coordinator)[:2] == [(1, "committed", 2), (2, "committed", 2)]
    by = chain.terms_of(works[0]).encoding
    total = codes(works[2], 2).astype(np.int64) + codes(works[3], 3)
    np.testing.assert_allclose(moved(coordinator) - first, encoding.mean(total, 2, by), atol=1e-6)
    coordinator.close()


# what a task must say


def test_a_task_s_rounds_end_with_no_fewer_than_are_opened():
    with pytest.raises(ConfigError, match=r"report_goal: expected at least the least_count of 100"):
        openable(TaskSettings(rules=Rules(report_goal=99)))
    assert openable(TaskSettings()).rules.fewest == 100
    assert openable(TaskSettings(rules=Rules(report_goal=300))).rules.fewest == 150
    plain = TaskSettings(rules=Rules(report_goal=2), aggregation=Aggregation.PLAIN)
    assert openable(plain) == plain


def test_codes_are_of_as_many_bits_as_their_sum_has_room_for():
    signed = replace(toy_opening.PLAN, bits=8)
    assert for_bundle(TaskSettings(), signed).plan.bits == 4
    assert for_bundle(TaskSettings(aggregation=Aggregation.PLAIN), signed).plan.bits == 8
    assert for_bundle(TaskSettings(), replace(signed, bits=2)).plan.bits == 2


def test_a_task_without_a_helper_that_is_there_is_not_made(tmp_path, helper):
    none = OneByOne(*toy_opening.open_folder(tmp_path / "none"))
    with pytest.raises(ConfigError, match="expected a helper that this server asks, found none"):
        toy_opening.begun(none, THREE)
    away = opened(tmp_path / "away", nowhere)
    with pytest.raises(RunError, match="gives no answer"):
        toy_opening.begun(away, THREE)
    there = opened(tmp_path / "there", way_to(helper))
    with pytest.raises(ConfigError, match=r"task.helper: expected the helper that this server"):
        toy_opening.begun(there, THREE, helper="ab" * 32)
    with pytest.raises(ConfigError, match="expected at least the 2 that the helper insists on"):
        toy_opening.begun(there, THREE, least_count=1)
    for coordinator in (none, away, there):
        assert coordinator.tasks() == []
        coordinator.close()


def test_a_server_that_runs_its_helper_says_so_in_what_is_signed(tmp_path, helper):
    coordinator = opened(tmp_path / "server", way_to(helper), is_beside=True)
    task = toy_opening.begun(coordinator, THREE)
    assert isinstance(task, Task) and task.is_beside
    report = operators.report(coordinator, "default", 1.0)
    assert report.seen.startswith("whoever runs the server also runs its helper")
    assert report.exposed == (
        "server and helper are in one hand; a sum is opened of only 2 devices: expected at least "
        "100"
    )
    coordinator.close()


def test_the_page_says_what_a_round_waits_for_and_who_sees_what(tmp_path, helper):
    ways = [way_to(helper)]
    coordinator = new(tmp_path / "server", lambda *request: ways[0](*request))
    frozen(coordinator)
    ways[0] = nowhere
    coordinator.open_sums(30.0)
    page = dashboard.page(overview.read(coordinator, 31.0, 0.0, {})).html
    text = " ".join(re.sub("<[^>]*>", " ", page).split())
    assert "Round 1: unmasking" in text
    assert "Round 1 waits for its sum to be opened: helper: gives no answer" in text
    assert "A sum is opened of only 2 devices: expected at least 100." in text
    assert "can see the update of a device together, neither of them alone" in text
    assert HELPER in text
    invented = "ts helper counts any key as a device: whoever runs the server could invent some"
    assert "I" + invented in text
    assert "i" + invented in operators.report(coordinator, "default", 31.0).counts
    figures = prometheus(coordinator)
    assert figures["fedboard_helper_up"] == 0.0
    assert figures['fedboard_rounds{phase="unmasking",task="default"}'] == 1.0
    ways[0] = way_to(helper)
    coordinator.open_sums(60.0)
    page = dashboard.page(overview.read(coordinator, 61.0, 0.0, {})).html
    assert "waits for its sum" not in page and "It answers." in page
    assert prometheus(coordinator)["fedboard_helper_up"] == 1.0
    coordinator.close()


def test_whom_a_helper_takes_for_a_device_is_told_where_somebody_certifies_them(tmp_path):
    certifier = signing.public_hex(CERTIFIER)
    helper = desk(tmp_path / "helper", enrolment_key=certifier)
    coordinator = new(tmp_path / "server", way_to(helper))
    said = f"only devices certified by {certifier[:16]} count towards the least of a sum"
    assert operators.report(coordinator, "default", 1.0).counts == said
    assert f"O{said[1:]}." in dashboard.page(overview.read(coordinator, 1.0, 0.0, {})).html
    coordinator.close()


def test_a_paused_task_whose_helper_is_gone_for_good_is_no_problem_of_others(tmp_path, helper):
    other = Desk(
        Store(tmp_path / "other.sqlite", HELPER[::-1]),
        places_in(tmp_path),
        key(9002),
        HelperRules(HELPER[::-1], 2),
        np.random.default_rng().bytes,
    )
    new(tmp_path / "server", way_to(helper)).close()
    coordinator = opened(tmp_path / "server", way_to(other))  # with another key
    coordinator.open_sums(20.0)
    said = f"foreign_policy: certificate: expected helper {HELPER[::-1][:16]}, found {HELPER[:16]}"
    assert said in operators.report(coordinator, "default", 20.0).waits
    coordinator.pause("default")
    for now in (40.0, 60.0):
        coordinator.open_sums(now)
    assert operators.report(coordinator, "default", 60.0).waits == ""
    coordinator.close()


def prometheus(coordinator: OneByOne) -> dict[str, float]:
    lines = Metrics(coordinator, lambda: 31.0).text().decode().splitlines()
    shown = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in shown}
