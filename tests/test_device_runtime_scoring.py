"""Scoring and separation: what an evaluation reports, and how near two reports may be.

Also which messages are held back for it.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import local, scores, scoring, signing, text
from device_runtime.causes import Cause
from device_runtime.errors import Unanswered
from device_runtime.finetune import finetune
from device_runtime.home import LOGS
from device_runtime.reader import Reader
from device_runtime.separation import may_join
from device_runtime.turn import Status
from device_runtime.wire import Assignment, Kind
from server.rounds import Rules
from server.task import TaskSettings
from tests.test_device_runtime_drive import ABLE, EASY, device, server, turn  # noqa: F401
from tests.test_device_runtime_masked import leader, lost, phone  # noqa: F401
from tests.test_device_runtime_masked import turn as masked_turn
from tests.toy_leader import seed_and_codes
from tests.toy_server import chained, created

LOST_LATER = "0\tbattery_charged_on\n0\twifi\n0\tscreen_off\n90\tbattery_charged_off\n"


# which messages


def test_one_message_in_ten_is_held_back_for_good_from_the_first_on_and_none_is_both(device):  # noqa: F811
    with device(messages=39).typing_log() as log:
        held, trained = log.records(99, held=True), log.records(99, held=False)
        assert [record.id for record in held] == [10, 20, 30]
        assert sorted(record.id for record in (*held, *trained)) == list(range(1, 40))
        # what is typed later changes nothing
        log.append_many([("hello", 100.0)] * 11)
        assert log.records(99, held=True)[:3] == held
        assert log.records_of([9, 10, 11]) == log.records_of([9, 11])


@given(st.lists(st.lists(st.integers(0, 20), max_size=9), max_size=9), st.integers(0, 40))
def test_the_newest_messages_are_chosen_whole_and_as_many_as_there_is_room_for(messages, most):
    count = scoring.newest_within(messages, most)
    sizes = [scoring.words(ids) for ids in messages]
    assert sum(sizes[len(sizes) - count :]) <= most
    assert count == len(sizes) or sum(sizes[len(sizes) - count - 1 :]) > most


# the sums


def test_scores_are_those_of_the_words_as_they_would_be_typed(tiny_bundle):
    vocabulary, values = tiny_bundle.vocabulary, tiny_bundle.checkpoint.weights
    ids = vocabulary.ids(text.tokenise("i will see my dog unheardofword"))
    scores = scoring.score(tiny_bundle.train_graph, values, [ids])
    table = Reader(tiny_bundle.train_graph, values).log_probs(ids)
    words = [(place, word) for place, word in enumerate(ids) if word >= text.FIRST_WORD]
    assert (scores.targets, scores.in_vocabulary) == (6, 5)
    assert scores.loss == pytest.approx(
        -sum(float(table[place, word]) for place, word in words), rel=1e-5
    )
    best = [
        np.argsort(-table[place, text.FIRST_WORD :], kind="stable")[:3] + text.FIRST_WORD
        for place, _ in words
    ]
    assert scores.top1 == sum(top[0] == word for top, (_, word) in zip(best, words, strict=True))
    assert scores.top3 == sum(word in top for top, (_, word) in zip(best, words, strict=True))
    assert scoring.score(tiny_bundle.train_graph, values, [ids, ids]).targets == 12
    assert scoring.score(tiny_bundle.train_graph, values, []) == scoring.Scores(0, 0, 0, 0, 0.0)
    assert scoring.score(tiny_bundle.train_graph, values, [ids], may_continue=lambda: False) is None


# a turn


def evaluating(server) -> None:  # noqa: F811
    coordinator = server.coordinator
    coordinator.pause("default")
    created(
        coordinator,
        TaskSettings(
            kind=Kind.EVALUATION,
            evaluates="default",
            name="scores",
            rules=Rules(report_goal=1, over_selection=1.0, selection_s=0.0),
        ),
        1.0,
    )


def test_an_evaluation_sends_sums_of_held_back_messages_only(server, device):  # noqa: F811
    evaluating(server)
    home = device(messages=50)
    outcome = turn(home, server)
    assert (outcome.status, outcome.kind, outcome.cause) == (Status.COUNTED, Kind.EVALUATION, None)
    (report, _) = server.coordinator.reports(0.0, "scores").rounds
    assert (report.phase, report.scores.targets, outcome.examples) == (
        "committed",
        outcome.examples,
        outcome.examples,
    )
    assert (
        report.scores.top1
        <= report.scores.top3
        <= report.scores.in_vocabulary
        <= report.scores.targets
    )
    bodies = [body for _, path, body, _ in server.sent if "/scores" in path]
    assert len(bodies) == 1 and b"zebracorn" not in b"".join(body for _, _, body, _ in server.sent)
    (line,) = home.contributions()
    assert (line.kind, line.task, line.outcome) == ("evaluation", "scores", "counted")
    used = uses(home)
    assert {number for number, times in used.items() if times} == {10, 20, 30, 40, 50}
    assert outcome.examples == 25  # five words, five times: a number is none


def test_a_device_with_too_little_held_back_scores_nothing_and_its_server_hears_nothing_that_day(
    server,  # noqa: F811
    device,  # noqa: F811
):
    evaluating(server)
    home = device(messages=50, limits=replace(EASY, least_score_words=26))
    outcome = turn(home, server)
    assert (outcome.status, outcome.cause) == (Status.ABANDONED, Cause.OVER_LIMIT)
    assert not any("/assignments/" in path for _, path, _, _ in server.sent)
    (line,) = home.contributions()
    assert line.detail == "least_score_words: expected at least 26, found 25"


def test_a_score_has_no_more_than_four_hundred_words_of_the_newest_messages(server, device):  # noqa: F811
    evaluating(server)
    home = device(messages=900)  # 90 are held back, of 5 words each
    assert turn(home, server).examples == 400
    assert [number for number, times in uses(home).items() if times] == list(range(110, 901, 10))


def test_two_scores_differ_by_whole_groups_of_messages_and_never_by_one(device, tiny_bundle):  # noqa: F811
    """Weights that are others by a hair score alike: the difference is what was typed between."""
    home = device(messages=119)  # its owner sends nothing of fewer than five messages

    def scored():
        return local.gather_held(home, tiny_bundle, tiny_bundle.plan).records

    assert scored() == tuple(range(10, 101, 10))
    with home.typing_log() as log:
        log.append_many([("they do not know you", 200.0)] * 30)
        assert len(log.records(99, held=True)) == 14
    assert scored() == tuple(range(10, 101, 10))
    with home.typing_log() as log:
        log.append_many([("what they said", 10.0)])  # by a clock that went back
        assert scored() == tuple(range(10, 151, 10))
        assert log.forget("number 19") == 1  # the twentieth: its whole group goes
    assert scored() == tuple(range(60, 151, 10))


def uses(home) -> dict[int, int]:
    with home.typing_log() as log:
        return dict(log._rows("SELECT id, uses FROM records ORDER BY id", ()))


def test_an_evaluation_stops_when_a_condition_is_lost(server, device):  # noqa: F811
    evaluating(server)
    outcome = turn(device(LOST_LATER, messages=60), server)
    assert (outcome.status, outcome.cause) == (Status.ABANDONED, Cause.CONDITION_LOST)
    assert [path for _, path, _, _ in server.sent if "/scores" in path] == []


def test_training_never_sees_what_is_held_back(server, device):  # noqa: F811
    home, seen = device(messages=50), []

    def train(graph, action, may_continue):
        seen.append(len(action.rows))
        return finetune(graph, action, may_continue)

    assert turn(home, server, train=train).status is Status.COUNTED
    used = {number for number, times in uses(home).items() if times}
    assert used and not any(number % 10 == 0 for number in used)


# separation, on the device


def test_a_server_that_asks_too_soon_gets_nothing_from_the_device(server, device):  # noqa: F811
    home = device()
    assert turn(home, server).status is Status.COUNTED
    asked = []

    def eager(method, path, body, headers):
        """The server, but it hands out round 2 at once and says that three rounds must lie
        between.
        """
        from device_runtime.config import from_json, to_json
        from device_runtime.transport import Reply

        reply = server(method, path, body, headers)
        if path == "/v1/check-in":
            work = from_json(Assignment, first, "work")
            return Reply(
                200, {}, to_json(replace(work, assignment="f" * 32, round=2, min_separation=3))
            )
        asked.append(path)
        return (
            Reply(200, {}, b'{"counted": false, "retry_in_s": 60.0}')
            if path.endswith("/abandon")
            else reply
        )

    from tests.toy_server import (
        READY,
    )

    first = _assignment_of(server, home, READY)
    home.drop(LOGS)  # the toy log of that assignment is another one
    outcome = turn(home, eager)
    assert (outcome.status, outcome.cause) == (Status.ABANDONED, Cause.REPORTED_RECENTLY)
    assert not any(path.endswith("/update") for path in asked)


def _assignment_of(server, home, _) -> bytes:  # noqa: F811
    from device_runtime.config import to_json

    with server.coordinator.store.reading() as rows:
        task = rows.tasks()[0].task
        half = rows.checkpoints("default", 1)[0].half
    of = Assignment("f" * 32, 2, task.plan_hash, half, task.shapes, 600.0)
    line = home.contributions()[0]
    return to_json(chained(replace(of, server=line.server, task_id=line.task_id), 1))


# separation, the definition


@pytest.mark.parametrize(
    ("round", "last", "apart", "may"),
    [(8, 5, 3, True), (7, 5, 3, False), (5, 5, 1, False), (6, 5, 1, True), (1, None, 9, True)],
)
def test_a_device_may_join_as_soon_as_so_many_rounds_lie_between(round, last, apart, may):
    assert may_join(round, last, apart) is may
    if last is not None:  # the simulation asks for all its clients at once
        assert may_join(round, np.array([last, -100], np.int32), apart).tolist() == [may, True]


# where updates are masked


def scoring_for(leader, phone, tiny_bundle):  # noqa: F811
    """A device with scores for a task whose updates are masked, and the vector of them."""
    work = leader.work
    leader.work = lambda: replace(work(), kind=Kind.EVALUATION)
    home = phone()
    with home.typing_log() as log:
        log.append_many([("i will see you", float(second)) for second in range(100, 300)])
    held = local.gather_held(home, tiny_bundle, tiny_bundle.plan)
    scored = scoring.score(tiny_bundle.train_graph, tiny_bundle.checkpoint.weights, held.messages)
    return home, scores.to_vector(scored).tolist()


def opened(body, leader, home):  # noqa: F811
    _, numbers = seed_and_codes(
        body, leader, signing.public_hex(home.key), scores.layout(leader.terms.most)
    )
    return numbers


def test_masked_scores_are_an_update_s_message_and_hold_the_vector_that_adds_up(
    leader,  # noqa: F811
    phone,  # noqa: F811
    tiny_bundle,
):
    home, vector = scoring_for(leader, phone, tiny_bundle)
    assert masked_turn(home, leader).status is Status.COUNTED
    (body,) = leader.bodies()
    assert len(body) == 48 + 80 + 64 + scores.layout(leader.terms.most).bytes
    assert opened(body, leader, home) == vector
    assert vector[0] >= 50 and sum(vector[5:]) == 1
    (line,) = home.contributions()
    assert (line.outcome, line.kind, line.examples) == ("counted", "evaluation", vector[0])
    assert line.seen_by == f"the server and helper {leader.terms.helper[:16]} together"


def test_masked_scores_that_nobody_answered_are_sent_again_to_the_byte_and_no_others_are_made(
    leader,  # noqa: F811
    phone,  # noqa: F811
    tiny_bundle,
):
    home, _ = scoring_for(leader, phone, tiny_bundle)
    with pytest.raises(Unanswered):
        masked_turn(home, lost(leader))
    with home.typing_log() as log:
        log.append_many([("what they said", 1000.0)] * 20)
    assert masked_turn(home, leader, 60.0).status is Status.COUNTED
    assert len(leader.bodies()) > 1 and len({*leader.bodies()}) == 1
    leader.name = "a6" * 16  # other work on the same weights
    outcome = masked_turn(home, leader, 120.0)
    assert (outcome.status, outcome.cause) == (Status.ABANDONED, Cause.OVER_LIMIT)
    assert len({*leader.bodies()}) == 1
