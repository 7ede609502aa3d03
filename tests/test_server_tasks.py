"""Several tasks side by side: training, evaluation and buffered ones.

Pause, rollback and enrolment codes; and that grouping changes nothing.
"""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import config, signing, weights
from device_runtime.causes import Cause
from device_runtime.errors import ConfigError, RunError
from device_runtime.noise import Mechanism, Noise
from device_runtime.terms import Aggregation
from device_runtime.weights import Checkpoint
from device_runtime.wire import (
    MOST_WORDS,
    Abandon,
    Ack,
    Assignment,
    Enrolment,
    Kind,
    Reject,
    Scores,
)
from server import operators
from server.coordinator import open_folder
from server.eligibility import Policy
from server.metrics import Metrics
from server.requests import Abandoning, CheckingIn, Nonce, Refused, Reporting
from server.rounds import Mode, Rules
from server.settings import ServerSettings
from server.step import ServerStep
from server.task import Peers, State, Task, TaskSettings, settings_of
from tests.toy_server import (
    PLAN,
    READY,
    TOKENIZER,
    WEIGHTS,
    OneByOne,
    by_arrival,
    check_in,
    created,
    delta,
    encoded,
    enrolled,
    key,
    new,
    stored,
)

RULES = by_arrival(Rules(report_goal=2, over_selection=1.5))
ONE = by_arrival(Rules(report_goal=1, over_selection=1.0))


@pytest.fixture
def coordinator(tmp_path):
    opened = new(tmp_path / "server", RULES)
    yield opened
    opened.close()


def add_task(
    coordinator: OneByOne,
    name: str,
    rules: Rules = RULES,
    population: str = "default",
    policy: Policy | None = None,
) -> None:
    start = Checkpoint(WEIGHTS, 0, "", TOKENIZER)
    created(
        coordinator,
        TaskSettings(
            PLAN,
            name=name,
            population=population,
            rules=by_arrival(rules),
            policy=policy or Policy(min_separation=1),
            seed=8,
        ),
        1.0,
        start,
    )


def add_evaluation(coordinator: OneByOne, rules: Rules = ONE, name: str = "scores") -> None:
    created(
        coordinator,
        TaskSettings(
            kind=Kind.EVALUATION,
            evaluates="default",
            name=name,
            rules=by_arrival(rules),
            policy=Policy(min_separation=1),
            seed=9,
        ),
        1.0,
    )


def test_every_setting_goes_from_the_file_by_the_message_to_the_row(coordinator, tmp_path):
    wanted = TaskSettings(
        replace(PLAN, learning_rate=0.25),
        "words",
        "de-ch",
        checkpoint=coordinator.checkpoint().sha,
        rules=Rules(7, 1.5, min_reports=2, retry_s=9.0),
        policy=Policy(min_examples=3, device_classes=("phone",)),
        step=ServerStep(0.5, 0.5, "fedavgm"),
        seed=12,
        aggregation=Aggregation.SECAGG,
        least_count=2,
        secagg=Peers(0.1),
        noise=Noise(Mechanism.GAUSSIAN, 2.0, 8.0, 1e-6, rounds=4, participations=2),
        compression=2,
        turn=3,
        require_audit=True,
    )
    assert [
        field.name
        for field in fields(TaskSettings)
        if getattr(wanted, field.name) == getattr(TaskSettings(), field.name)
    ] == ["kind", "evaluates", "helper", "is_beside", "table", "text_rules", "language"]
    # plan and start are not written down: they are the bundle's
    (tmp_path / "server.toml").write_text(config.to_toml(replace(wanted, plan=None, checkpoint="")))
    read = settings_of(config.from_toml(ServerSettings, tmp_path / "server.toml"))
    read = replace(read, plan=wanted.plan, checkpoint=wanted.checkpoint)
    sent = config.from_json(TaskSettings, config.to_json(read), "TaskSettings")
    operators.create(coordinator, sent, 1.0)
    kept = next(each.task for each in coordinator.tasks() if each.task.name == "words")
    assert settings_of(kept) == replace(wanted, checkpoint="")  # a start is none of a task's own


def scored(
    targets: int, top1: int, top3: int, loss: float, in_vocabulary: int | None = None
) -> bytes:
    return config.to_json(
        Scores(targets, top1, top3, targets if in_vocabulary is None else in_vocabulary, loss)
    )


def cause_of(call) -> Cause:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value.cause


def a_round(
    coordinator: OneByOne, devices: list[str], now: float = 2.0, task: str = "default"
) -> list[Assignment]:
    """The devices of one round of training, from check-in to counted update."""
    works = [coordinator.check_in(device, READY, now) for device in devices]
    assert [work.task for work in works] == [task] * len(devices)
    for number, (device, work) in enumerate(zip(devices, works, strict=True)):
        assert coordinator.update(device, work.assignment, encoded(work, number), now).counted
    return works


# side by side


def test_devices_go_to_the_task_that_has_the_smallest_share_of_those_it_wants(coordinator):
    # a cohort of 6; the first task has one of 3
    add_task(coordinator, "other", Rules(report_goal=4, over_selection=1.5))
    works = [coordinator.check_in(device, READY, 2.0) for device in enrolled(coordinator, 9)]
    # a third of each
    assert sorted(work.task for work in works[:3]) == [
        "default",
        "other",
        "other",
    ]
    assert [sum(work.task == name for work in works) for name in ("default", "other")] == [3, 6]
    assert coordinator.check_in(enrolled(coordinator, 10)[9], READY, 2.0).cause is Cause.ROUND_FULL


def test_a_device_works_for_one_task_at_a_time_and_for_both_in_the_end(coordinator):
    add_task(coordinator, "other")
    (device,) = enrolled(coordinator, 1)
    first = coordinator.check_in(device, READY, 2.0)
    assert coordinator.check_in(device, READY, 2.0) == first
    coordinator.update(device, first.assignment, encoded(first, 0), 2.0)
    assert {first.task, coordinator.check_in(device, READY, 2.0).task} == {"default", "other"}


def test_a_device_works_for_the_tasks_of_its_population_only(coordinator):
    add_task(coordinator, "swiss", population="de-ch")
    a, b = enrolled(coordinator, 2)
    assert coordinator.check_in(a, check_in(population="de-ch"), 2.0).task == "swiss"
    assert coordinator.check_in(b, READY, 2.0).task == "default"
    assert coordinator.check_in(b, check_in(population="nowhere"), 2.0).cause is Cause.NO_ROUND


def test_the_updates_of_two_tasks_do_not_mix(coordinator):
    add_task(coordinator, "other", RULES)
    devices = enrolled(coordinator, 4)
    works = [coordinator.check_in(device, READY, 2.0) for device in devices]
    for number, (device, work) in enumerate(zip(devices, works, strict=True)):
        coordinator.update(device, work.assignment, encoded(work, number), 2.0)
    for name in ("default", "other"):
        mine = [number for number, work in enumerate(works) if work.task == name]
        moved = weights.flatten(
            stored(coordinator, coordinator.checkpoint(name).sha).weights
        ) - weights.flatten(WEIGHTS)
        np.testing.assert_allclose(moved, sum(delta(number) for number in mine) / 2, atol=0.02)


def test_a_request_signed_for_another_task_or_round_is_refused_and_the_assignment_stays_open(
    coordinator,
):
    (device,) = enrolled(coordinator, 1)
    work = coordinator.check_in(device, READY, 2.0)
    body = encoded(work, 0)
    for signed_for in (("other", 1), ("default", 2), ("", 0)):
        asked = [
            Reporting(device, work.assignment, body, signed_for=signed_for),
            Abandoning(device, work.assignment, Cause.IN_USE, signed_for=signed_for),
        ]
        assert [answer.cause for answer in coordinator.handle(asked, 2.0)] == [
            Cause.WRONG_ROUND
        ] * 2
    assert coordinator.handle(
        [Reporting(device, work.assignment, body, signed_for=("default", 1))], 2.0
    )[0].counted


def test_a_policy_of_participations_and_separation_is_kept_by_the_ledger(tmp_path):
    coordinator = new(tmp_path, ONE, policy=Policy(min_separation=2, max_participations=2))
    a, b = enrolled(coordinator, 2)
    seen = []
    for _ in range(6):
        answer = coordinator.check_in(a, READY, 2.0)
        seen.append(answer.round if isinstance(answer, Assignment) else answer.cause)
        device, work = (
            (a, answer)
            if isinstance(answer, Assignment)
            else (b, coordinator.check_in(b, READY, 2.0))
        )
        if isinstance(work, Assignment):
            coordinator.update(device, work.assignment, encoded(work, 0), 2.0)
    assert seen == [
        1,
        Cause.REPORTED_RECENTLY,
        3,
        Cause.PARTICIPATED_ENOUGH,
        Cause.PARTICIPATED_ENOUGH,
        Cause.PARTICIPATED_ENOUGH,
    ]
    coordinator.close()


# evaluation


def test_an_evaluation_scores_the_newest_checkpoint_once_and_its_sums_stand_beside_the_training(
    coordinator,
):
    devices = enrolled(coordinator, 3)
    a_round(coordinator, devices[:2])
    add_evaluation(coordinator, Rules(report_goal=2, over_selection=1.0))
    checkpoint = coordinator.checkpoint()
    works = [coordinator.check_in(device, READY, 3.0) for device in devices[:2]]
    assert {work.kind for work in works} == {Kind.TRAINING, Kind.EVALUATION}
    (work,) = [work for work in works if work.kind is Kind.EVALUATION]
    owner = devices[works.index(work)]
    assert (work.checkpoint, work.round) == (checkpoint.half, 1)
    assert coordinator.scores(owner, work.assignment, scored(100, 20, 33, 480.5), 3.0).counted
    other = coordinator.check_in(devices[2], check_in(), 3.0)
    while other.kind is not Kind.EVALUATION:  # the training task may want it first
        coordinator.abandon(devices[2], other.assignment, Abandon(Cause.IN_USE), 3.0)
        other = coordinator.check_in(devices[2], READY, 3.0)
    assert coordinator.scores(devices[2], other.assignment, scored(50, 5, 10, 250.25), 3.0).counted
    (report, _) = coordinator.reports(4.0, "scores").rounds
    assert (report.phase, report.base, report.base_round, report.checkpoint) == (
        "committed",
        checkpoint.sha,
        1,
        "",
    )
    assert report.scores == Scores(150, 25, 43, 150, 730.75)
    # of two devices one had 20 % of its words right, the other 10 %
    assert report.spread == (0, 0, 1, 0, 1, *[0] * 15)
    figures = Metrics(coordinator, lambda: 4.0).text().decode()
    # of 150 words 25 are right; of two devices the median lies where the first one's bin ends
    for of, share in (("words", 25 / 150), ("median", 0.15), ("upper_quartile", 0.225)):
        line = f'fedboard_evaluation_top1{{of="{of}",task="scores"}} '
        assert float(figures.partition(line)[2].split()[0]) == pytest.approx(share)


def test_a_checkpoint_that_has_been_scored_is_not_scored_again(tmp_path):
    coordinator = new(tmp_path, RULES, policy=Policy(min_examples=500))  # nobody trains
    created(
        coordinator,
        TaskSettings(kind=Kind.EVALUATION, evaluates="default", name="scores", rules=ONE),
        1.0,
    )
    a, b = enrolled(coordinator, 2)
    work = coordinator.check_in(a, READY, 2.0)
    assert work.kind is Kind.EVALUATION
    coordinator.scores(a, work.assignment, scored(10, 1, 2, 50.0), 2.0)
    assert coordinator.check_in(b, READY, 3.0).cause in (Cause.ROUND_FULL, Cause.TOO_FEW_EXAMPLES)
    assert len(coordinator.reports(3.0, "scores").rounds) == 2
    coordinator.close()


NONSENSE = [
    b"",
    b"{}",
    scored(0, 0, 0, 0.0),
    scored(10, 5, 4, 20.0),
    scored(10, 11, 11, 20.0),
    scored(10, -1, 2, 20.0),
    scored(10, 1, 2, -0.5),
    scored(10, 1, 2, 1e9),
    scored(10, 1, 2, 20.0, in_vocabulary=11),
    scored(10, 1, 2, 20.0, in_vocabulary=1),
    scored(MOST_WORDS + 1, 0, 0, 0.0),
    scored(2**70, 1, 1, 1.0),
    json.dumps(
        {"targets": 10, "top1": 1, "top3": 2, "in_vocabulary": 10, "loss": float("nan")}
    ).encode(),
    json.dumps(
        {"targets": 10, "top1": 1, "top3": 2, "in_vocabulary": 10, "loss": 1.0, "typed": "hello"}
    ).encode(),
]


@pytest.mark.parametrize("body", NONSENSE)
def test_scores_nobody_could_have_are_refused_and_change_nothing(coordinator, body):
    coordinator.pause("default")
    add_evaluation(coordinator)
    (device,) = enrolled(coordinator, 1)
    work = coordinator.check_in(device, READY, 2.0)
    assert (
        cause_of(lambda: coordinator.scores(device, work.assignment, body, 2.0)) is Cause.NOT_SCORES
    )
    report = coordinator.reports(3.0, "scores").rounds[0]
    assert (report.scores, report.counted, report.dropped) == (None, 0, {"not_scores": 1})


def test_a_report_of_the_other_kind_is_refused(coordinator):
    devices = enrolled(coordinator, 2)
    work = coordinator.check_in(devices[0], READY, 2.0)
    assert (
        cause_of(
            lambda: coordinator.scores(devices[0], work.assignment, scored(10, 1, 2, 9.0), 2.0)
        )
        is Cause.NOT_SCORES
    )
    coordinator.pause("default")
    add_evaluation(coordinator)
    work = coordinator.check_in(devices[1], READY, 2.0)
    assert (
        cause_of(lambda: coordinator.update(devices[1], work.assignment, b"FBUP", 2.0))
        is Cause.NOT_AN_UPDATE
    )


def test_an_evaluation_needs_a_training_task(coordinator):
    with pytest.raises(RunError, match="nothing"):
        created(
            coordinator,
            TaskSettings(kind=Kind.EVALUATION, evaluates="nothing", name="scores", rules=ONE),
            1.0,
        )


# buffered


# four at work at once
BUFFERED = Rules(
    report_goal=2, over_selection=2.0, mode=Mode.BUFFERED, reporting_s=100, max_staleness=1
)


def test_a_buffered_task_counts_whoever_reports_and_weighs_late_ones_less(tmp_path):
    coordinator = new(tmp_path, BUFFERED)
    devices = enrolled(coordinator, 4)
    works = [coordinator.check_in(device, READY, 1.0) for device in devices]
    for number in (0, 1):
        coordinator.update(
            devices[number], works[number].assignment, encoded(works[number], number), 2.0
        )
    first = stored(coordinator, coordinator.checkpoint().sha).weights
    for number in (2, 3):  # a round behind: each counts for 1 / sqrt(2)
        assert coordinator.update(
            devices[number], works[number].assignment, encoded(works[number], number), 3.0
        ).counted
    moved = weights.flatten(
        stored(coordinator, coordinator.checkpoint().sha).weights
    ) - weights.flatten(first)
    np.testing.assert_allclose(moved, (delta(2) + delta(3)) / 2 / np.sqrt(2), atol=0.02)
    assert [(report.phase, report.counted) for report in coordinator.reports(4.0).rounds] == [
        ("committed", 2),
        ("committed", 2),
        ("selecting", 0),
    ]
    coordinator.close()


def test_a_report_too_many_rounds_behind_is_told_so_and_counted_as_stale(tmp_path):
    coordinator = new(tmp_path, replace(BUFFERED, report_goal=1, over_selection=4.0))
    devices = enrolled(coordinator, 4)
    works = [coordinator.check_in(device, READY, 1.0) for device in devices]
    answers = [
        coordinator.update(device, work.assignment, encoded(work, 0), 2.0)
        for device, work in zip(devices, works, strict=True)
    ]
    assert [getattr(answer, "cause", "counted") for answer in answers] == [
        "counted",
        "counted",
        Cause.STALE,
        Cause.STALE,
    ]
    assert (
        coordinator.update(devices[3], works[3].assignment, encoded(works[3], 0), 3.0).cause
        is Cause.STALE
    )
    assert coordinator.reports(3.0).rounds[0].dropped == {"stale": 2}
    coordinator.close()


def test_a_device_whose_reply_was_lost_gets_the_checkpoint_of_its_own_round_again(tmp_path):
    coordinator = new(tmp_path, BUFFERED)
    devices = enrolled(coordinator, 3)
    works = [coordinator.check_in(device, READY, 1.0) for device in devices]
    for number in (0, 1):
        coordinator.update(
            devices[number], works[number].assignment, encoded(works[number], number), 2.0
        )
    again = coordinator.check_in(devices[2], READY, 3.0)
    assert (again.assignment, again.round, again.checkpoint) == (
        works[2].assignment,
        1,
        works[2].checkpoint,
    )
    coordinator.close()


def test_a_buffered_task_lets_go_of_a_device_that_takes_too_long_and_admits_another(tmp_path):
    coordinator = new(tmp_path, replace(BUFFERED, over_selection=1.0))  # two at work at once
    a, b, c = enrolled(coordinator, 3)
    works = [coordinator.check_in(device, READY, at) for device, at in ((a, 1.0), (b, 50.0))]
    assert coordinator.check_in(c, READY, 100.0).cause is Cause.ROUND_FULL
    assert isinstance(coordinator.check_in(c, READY, 101.0), Assignment)
    assert (
        coordinator.update(a, works[0].assignment, encoded(works[0], 0), 102.0).cause is Cause.LATE
    )
    assert coordinator.reports(102.0).rounds[0].dropped == {"late": 1}
    coordinator.close()


# operators


def test_a_paused_task_admits_nobody_and_still_counts_those_at_work(coordinator):
    a, b, c = enrolled(coordinator, 3)
    works = [coordinator.check_in(device, READY, 1.0) for device in (a, b)]
    coordinator.pause("default")
    assert coordinator.check_in(c, READY, 3.0).cause is Cause.TASK_PAUSED
    assert coordinator.check_in(b, READY, 3.0).assignment == works[1].assignment
    for number, (device, work) in enumerate(zip((a, b), works, strict=True)):
        assert coordinator.update(device, work.assignment, encoded(work, number), 3.0).counted
    assert coordinator.reports(4.0).rounds[0].phase == "committed"
    assert coordinator.check_in(c, READY, 4.0).cause is Cause.TASK_PAUSED
    coordinator.resume("default")
    assert isinstance(coordinator.check_in(c, READY, 5.0), Assignment)


def test_states_that_do_not_fit_are_refused_by_name(coordinator):
    assert cause_of(lambda: coordinator.resume("default")) is Cause.WRONG_STATE
    coordinator.pause("default")
    assert cause_of(lambda: coordinator.pause("default")) is Cause.WRONG_STATE
    for call in (coordinator.pause, coordinator.resume):
        assert cause_of(lambda call=call: call("nothing")) is Cause.UNKNOWN_TASK
    assert cause_of(lambda: coordinator.roll_back("default", 77, 1.0)) is Cause.UNKNOWN_BLOB
    assert cause_of(lambda: coordinator.roll_back("nothing", 0, 1.0)) is Cause.UNKNOWN_TASK
    assert [stored.state for stored in coordinator.tasks()] == [State.PAUSED]


def test_a_rollback_ends_the_round_and_goes_on_from_the_earlier_checkpoint(coordinator):
    devices = enrolled(coordinator, 2)
    a_round(coordinator, devices)
    first = coordinator.checkpoint()
    a_round(coordinator, devices, 3.0)
    second = coordinator.checkpoint()
    open_work = coordinator.check_in(devices[0], READY, 4.0)
    coordinator.update(devices[0], open_work.assignment, encoded(open_work, 0), 4.0)
    late = coordinator.check_in(devices[1], READY, 4.0)
    assert coordinator.roll_back("default", first.sha, 5.0) == first
    assert (coordinator.checkpoint(), coordinator.roll_back("default", 1, 5.0)) == (first, first)
    assert (
        coordinator.update(devices[1], late.assignment, encoded(late, 1), 6.0).cause
        is Cause.ROUND_CLOSED
    )
    works = a_round(coordinator, devices, 7.0)
    assert (works[0].checkpoint, works[0].round) == (first.half, 5)
    checkpoint = stored(coordinator, coordinator.checkpoint().sha)
    assert (checkpoint.parent, checkpoint.round) == (first.sha, 5)
    phases = [report.phase for report in coordinator.reports(8.0).rounds]
    assert phases == ["committed", "committed", "abandoned", "abandoned", "committed", "selecting"]
    with coordinator.store.reading() as rows:
        assert rows.checkpoint("default", second.sha) == second  # nothing is lost


def test_a_code_lets_in_one_device_once_and_the_same_device_again(tmp_path):
    folder = tmp_path / "server"
    new(folder, RULES).close()
    coordinator = OneByOne(*open_folder(folder), codes_needed=True)
    first, second = coordinator.create_codes(2, life_s=100.0, now=0.0)
    keys = [signing.public_hex(key(number)) for number in range(3)]
    assert cause_of(lambda: coordinator.enrol(Enrolment(keys[0]), 1.0)) is Cause.BAD_CODE
    assert cause_of(lambda: coordinator.enrol(Enrolment(keys[0], "0" * 32), 1.0)) is Cause.BAD_CODE
    name = coordinator.enrol(Enrolment(keys[0], first), 1.0)
    assert coordinator.enrol(Enrolment(keys[0], first), 1.0) == name  # its answer was lost
    assert coordinator.enrol(Enrolment(keys[0]), 1.0) == name
    assert cause_of(lambda: coordinator.enrol(Enrolment(keys[1], first), 1.0)) is Cause.BAD_CODE
    assert cause_of(lambda: coordinator.enrol(Enrolment(keys[1], second), 100.1)) is Cause.BAD_CODE
    assert coordinator.enrol(Enrolment(keys[2], second), 100.0).device == signing.name_of(keys[2])
    coordinator.close()
    held = b"".join(path.read_bytes() for path in folder.glob("server.sqlite*") if path.is_file())
    assert [code for code in (first, second) if code.encode() in held] == []


# groups


def played(folder, group: int) -> tuple[list[str], list[str]]:
    """Two rounds of seven devices with all that can happen, `group` requests at once; the kinds of
    the answers and the checkpoints.
    """
    # a cohort of 6
    coordinator = new(folder, Rules(report_goal=3, over_selection=2.0, reporting_s=50))
    devices, kinds, shas = enrolled(coordinator, 7), [], []
    for now in (1.0, 2.0):
        asked = [CheckingIn(device, READY, Nonce(f"{now}{device}", int(now))) for device in devices]
        works = {}
        for chunk in _batched(asked, group):
            for request, answer in zip(chunk, coordinator.handle(chunk, now), strict=True):
                kinds.append(type(answer).__name__)
                if isinstance(answer, Assignment):
                    works[request.device] = answer
        asked = [
            Reporting(device, work.assignment, encoded(work, number))
            for number, (device, work) in enumerate(works.items())
        ]
        asked.insert(
            1,
            Abandoning(devices[4], works[devices[4]].assignment, Cause.IN_USE)
            if devices[4] in works
            else asked[0],
        )
        asked.insert(2, asked[0])  # the same again
        # one that breaks the rules
        asked.insert(3, replace(asked[3], body=b"FBUP" + asked[3].body[4:-1]))
        for chunk in _batched(asked, group):
            kinds += [
                getattr(answer, "cause", None) or f"{answer.counted}"
                for answer in coordinator.handle(chunk, now)
            ]
        coordinator.tick(now)
        shas.append(coordinator.checkpoint().sha)
    reports = [
        replace(report, seconds=0.0, opened_at=0.0) for report in coordinator.reports(3.0).rounds
    ]
    coordinator.close()
    return kinds, [*shas, *map(str, reports)]


def _batched(requests: list, size: int) -> list[list]:
    return [requests[start : start + size] for start in range(0, len(requests), size)]


def test_how_requests_are_grouped_changes_no_answer_and_no_bit_of_a_checkpoint(tmp_path):
    alone = played(tmp_path / "alone", 1)
    assert {"Reject", "surplus", "not_an_update", "True", "False"} <= set(alone[0])
    assert [played(tmp_path / str(group), group) for group in (2, 3, 7, 100)] == [alone] * 4


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["in", "up", "bad", "drop", "tick"]), st.integers(0, 5)),
        max_size=40,
    ),
    st.sampled_from(Mode),
)
def test_whatever_devices_do_the_ledger_and_the_rounds_agree(tmp_path_factory, history, mode):
    rules = Rules(report_goal=2, over_selection=1.5, selection_s=30, reporting_s=60, mode=mode)
    coordinator = new(tmp_path_factory.mktemp("server"), rules, policy=Policy(min_separation=2))
    devices, works = enrolled(coordinator, 6), {}
    for step, (what, who) in enumerate(history):
        now, device = 10.0 * step, devices[who]
        work = works.get(who)
        if what == "in":
            answer = coordinator.check_in(device, READY, now)
            if isinstance(answer, Assignment):
                works[who] = answer
        elif what == "tick":
            coordinator.tick(now)
        elif work is not None:
            if what == "up":
                assert isinstance(
                    coordinator.handle(
                        [Reporting(device, work.assignment, encoded(work, who))], now
                    )[0],
                    Ack | Reject | Refused,
                )
            elif what == "bad":
                coordinator.handle([Reporting(device, work.assignment, b"FBUP")], now)
            else:
                coordinator.handle([Abandoning(device, work.assignment, Cause.IN_USE)], now)
    reports = coordinator.reports(1e4).rounds
    with coordinator.store.reading() as rows:
        kept = rows.assignments([work.assignment for work in works.values()])
        took_part = rows.participations(devices).values()
        (open_round,) = rows.open_rounds().values()
        kept_sums = coordinator._sums.of_all(rows, ("default", open_round.state.round))
    assert sum(report.counted for report in reports) == sum(each.counted for each in took_part)
    assert all(
        each.smallest_separation is None or each.smallest_separation >= 2 for each in took_part
    )
    assert sum(each.count for each in kept_sums) == open_round.state.reported
    assert 0 <= open_round.state.waiting <= rules.cohort
    assert all(
        count > 0
        for report in reports
        for count in (*report.refused.values(), *report.dropped.values())
    )
    for report in reports:
        assert report.counted <= report.uploaded or mode is Mode.BUFFERED
        assert report.phase != "committed" or report.counted >= 1
    assert len(kept) == len({work.assignment for work in works.values()})
    coordinator.close()


def test_a_task_s_row_has_what_was_decided_of_it_and_no_more(tmp_path):
    """What is kept of a task is what its operator has decided, and what its checkpoints share."""
    coordinator = new(tmp_path, Rules())
    with coordinator.store.reading() as rows:
        (stored,) = rows.tasks()
    fields = "plan rules policy step tokenizer shapes dimension seed name population kind evaluates"
    seen_by = "aggregation helper is_beside least_count secagg noise compression"
    others = "require_audit table turn text_rules language"
    assert sorted(json.loads(stored.task.body)) == sorted(f"{fields} {seen_by} {others}".split())
    assert config.from_json(Task, stored.task.body, "task") == stored.task
    coordinator.close()


def test_an_evaluation_names_no_checkpoint_to_start_from():
    with pytest.raises(
        ConfigError, match=r"task\.checkpoint: expected none for a task of kind evaluation"
    ):
        TaskSettings(kind=Kind.EVALUATION, evaluates="words", checkpoint="ab" * 32)


@pytest.mark.parametrize(
    ("rules", "policy", "says"),
    [
        ({}, {"min_examples": 501}, r"policy\.min_examples: expected at most 500, found 501"),
        ({"reporting_s": 0.0}, {}, r"rules.reporting_s: expected at least a second, found 0"),
        ({"selection_s": 6e5}, {}, "rules.selection_s: expected a window and a quarter of its"),
        ({"claim_s": 0.0}, {}, "rules.claim_s: expected at least 120 s after such a window"),
        ({"claim_s": 119.0}, {}, "rules.claim_s: expected at least 120 s"),
        # of ten seconds: who was told to come after it waits for a minute all the same
        ({"selection_s": 10.0, "claim_s": 60.0}, {}, "rules.claim_s: expected at least 62 s"),
    ],
)
def test_a_task_whose_numbers_leave_no_device_a_chance_is_not_made(
    coordinator, rules, policy, says
):
    start = Checkpoint(WEIGHTS, 0, "", TOKENIZER)
    impossible = TaskSettings(PLAN, name="never", rules=Rules(**rules), policy=Policy(**policy))
    with pytest.raises(ConfigError, match=says):
        created(coordinator, impossible, 1.0, start)
    assert [each.task.name for each in coordinator.tasks()] == ["default"]


def test_a_class_of_devices_that_no_device_could_name_is_none():
    for name in ("a" * 65, "\xe9", "a\n"):
        with pytest.raises(ConfigError, match="device_classes"):
            Policy(device_classes=(name,))
