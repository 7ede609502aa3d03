"""Comparing releases on a server: who is asked, what is told when, and what stops a rollout."""

import contextlib
import json
import logging
import sqlite3
from dataclasses import replace

import pytest

from device_runtime import config
from device_runtime.causes import Cause
from device_runtime.wire import Assignment, Kind, Phase, Reject, ReleaseScores, Scores
from server import tasks
from server.eligibility import Policy
from server.release_scores import Figures
from server.requests import Refused
from server.rounds import Rules
from server.task import TaskSettings
from tests import toy_server
from tests.toy_releases import index_of, numbers, published
from tests.toy_server import READY, by_arrival, enrolled

RULES = Rules(report_goal=3, over_selection=1.0, min_reports=2, reporting_s=100.0)


def scores(right: int, words: int = 200) -> Scores:
    return Scores(words, right, right, words, 4.0 * words)


def body(release: int, right: int, before: int = 0, right_before: int = 0) -> bytes:
    old = scores(right_before) if before else None
    return config.to_json(ReleaseScores(release, scores(right), before, old))


def comparing(coordinator, rules: Rules = RULES, **settings) -> None:
    """A task of releases beside the training task, which is paused."""
    coordinator.pause("default")
    named = {"name": "compared", "kind": Kind.RELEASES, "evaluates": "default", "seed": 5}
    policy = Policy(min_separation=1)
    task = TaskSettings(**named | settings, rules=by_arrival(rules), policy=policy)
    tasks.create(coordinator, task, 0.5)


@pytest.fixture
def server(tmp_path):
    """A server with a task that compares releases 1, which all have, and 2, which 5 % may have."""
    coordinator = toy_server.new(tmp_path / "server", Rules(report_goal=2))
    comparing(coordinator)
    published(coordinator, 1, share=10_000)
    published(coordinator, 2)
    yield coordinator
    coordinator.close()


def round_of(coordinator, now: float, *bodies: bytes, end: float | None = None) -> list:
    """A round of as many devices as there are bodies, each with its report."""
    answers = []
    for device, each in zip(enrolled(coordinator, len(bodies)), bodies, strict=True):
        work = coordinator.check_in(device, READY, now)
        assert isinstance(work, Assignment), work
        try:
            answers.append(coordinator.scores(device, work.assignment, each, now))
        except Refused as refused:
            answers.append(refused)
    if end is not None:
        coordinator.tick(end)
    return answers


def told(coordinator):
    with coordinator.store.reading() as rows:
        return rows.release_scores.told("default")


def state_of(coordinator, release: int):
    with coordinator.store.reading() as rows:
        return rows.releases.one("default", release)


# who is asked


def test_nobody_is_asked_before_there_is_a_release(tmp_path):
    coordinator = toy_server.new(tmp_path / "server", Rules(report_goal=2))
    comparing(coordinator)
    (device,) = enrolled(coordinator, 1)
    answer = coordinator.check_in(device, READY, 1.0)
    assert isinstance(answer, Reject) and answer.cause is Cause.ROUND_FULL
    published(coordinator, 1)
    answer = coordinator.check_in(device, READY, 2.0)
    assert (answer.kind, answer.task) == (Kind.RELEASES, "compared")
    coordinator.close()


def test_whoever_compares_has_nothing_to_fetch_and_gets_no_difference(server):
    (device,) = enrolled(server, 1)
    work = server.check_in(device, replace(READY, holds="ab" * 32), 2.0)
    assert work.difference is None
    (report,) = server.reports(2.0, "compared").rounds
    assert (report.assigned, report.downloaded) == (1, 1)


def test_such_a_task_is_told_of_a_training_task_and_of_more_than_one_device(server):
    named = {"name": "other", "kind": Kind.RELEASES}
    with pytest.raises(config.ConfigError, match=r"task\.evaluates"):
        TaskSettings(**named)
    with pytest.raises(config.ConfigError, match=r"rules\.min_reports: expected at least 2"):
        TaskSettings(**named, evaluates="default", rules=Rules(report_goal=3, min_reports=1))
    with pytest.raises(config.ConfigError, match=r"rules\.min_reports: expected at least 2"):
        TaskSettings(**named, evaluates="default", rules=Rules(report_goal=2))


# what is told


def test_a_release_is_told_of_once_enough_devices_are_in_it_and_the_others_wait(server):
    round_of(server, 2.0, body(1, 40), body(1, 50), body(2, 44))
    assert {pair: each.devices for pair, each in told(server).items()} == {(1, 0): 2}
    assert told(server)[1, 0].top1 == 90
    round_of(server, 3.0, body(2, 46), body(1, 60), body(2, 44, 1, 40))
    assert {pair: each.devices for pair, each in told(server).items()} == {(1, 0): 2, (2, 0): 2}
    assert told(server)[2, 0].top1 == 90
    # the third device of release 1 waits still, though its row is told of
    round_of(server, 4.0, body(1, 60), body(2, 46, 1, 40), body(2, 40))
    assert {pair: each.devices for pair, each in told(server).items()} == {
        (1, 0): 4,
        (2, 0): 2,
        (2, 1): 2,
    }
    assert (told(server)[2, 1].top1, told(server)[2, 1].before_top1) == (90, 80)


def test_no_report_of_a_round_tells_what_all_of_its_devices_scored(server):
    """Less what is told of releases it would be what the others scored."""
    round_of(server, 2.0, body(1, 40), body(1, 50), body(2, 44))
    (report, _) = server.reports(3.0, "compared").rounds
    assert (report.phase, report.counted, report.scores, report.spread) == (
        Phase.COMMITTED,
        3,
        None,
        (),
    )


def test_what_an_abandoned_round_has_counted_is_not_lost(server):
    round_of(server, 2.0, body(1, 40), end=200.0)
    (report, _) = server.reports(201.0, "compared").rounds
    assert (report.phase, told(server)) == (Phase.ABANDONED, {})
    round_of(server, 300.0, body(1, 50), body(2, 40), end=500.0)
    assert {pair: each.devices for pair, each in told(server).items()} == {(1, 0): 2}


def test_what_waits_outlives_a_restart_and_lies_in_the_database_sealed(server, tmp_path):
    round_of(server, 2.0, body(1, 40), body(1, 50), body(2, 44, 1, 123))
    server.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "server" / "server.sqlite")) as database:
        sums = database.execute("SELECT task, round, total, generation FROM sums").fetchall()
        (figures,) = database.execute("SELECT COUNT(*) FROM release_scores").fetchone()
    ((task, number, total, generation),) = sums
    assert (task, number, generation > 0, figures) == ("compared", 2, True, 1)
    for value in (2, 44, 123):  # no row of small whole numbers stands in it
        assert value.to_bytes(8, "little") not in bytes(total)
    again = toy_server.reopened(tmp_path / "server")
    round_of(again, 3.0, body(2, 46, 1, 77), body(1, 40), body(1, 40))
    assert told(again)[2, 1] == replace(
        told(again)[2, 1], devices=2, top1=90, before_top1=200, gain_squared=79**2 + 31**2
    )
    again.close()


def test_a_round_whose_keys_are_gone_ends_and_what_was_told_stays(server, tmp_path):
    round_of(server, 2.0, body(1, 40), body(1, 50), body(2, 44))
    server.close()
    for path in (tmp_path / "server" / "server.sqlite.keys").iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    again = toy_server.reopened(tmp_path / "server")
    again.tick(3.0)
    assert [each.phase for each in again.reports(4.0, "compared").rounds] == [
        Phase.COMMITTED,
        Phase.ABANDONED,
        Phase.SELECTING,
    ]
    assert told(again)[1, 0].devices == 2
    round_of(again, 5.0, body(2, 46), body(1, 40), body(1, 40))
    assert (2, 0) not in told(again)
    again.close()


@pytest.mark.parametrize(
    ("release", "before"), [(3, 0), (2, 3), (3, 1)], ids=["neither", "before", "running"]
)
def test_releases_that_were_never_published_are_not_counted(server, release, before):
    (answer,) = round_of(server, 2.0, body(release, 40, before, 40), end=200.0)
    assert answer.cause is Cause.NOT_SCORES
    assert server.reports(201.0, "compared").rounds[0].dropped == {"not_scores": 1}


def test_scores_of_a_checkpoint_are_none_of_a_release_and_the_other_way_round(server):
    (answer,) = round_of(server, 2.0, config.to_json(scores(40)))
    assert answer.cause is Cause.NOT_SCORES


def test_the_same_report_again_is_answered_the_same_and_counts_once(server):
    (device,) = enrolled(server, 1)
    work = server.check_in(device, READY, 2.0)
    first = server.scores(device, work.assignment, body(1, 40), 2.0)
    again = server.scores(device, work.assignment, body(1, 40), 2.5)
    assert (first.counted, again.counted) == (True, True)
    assert server.reports(3.0, "compared").rounds[0].counted == 1


# what stops a rollout


WORSE = [body(2, 30, 1, 60), body(2, 32, 1, 60), body(2, 28, 1, 60)]
BETTER = [body(2, 60, 1, 30), body(2, 62, 1, 30), body(2, 58, 1, 30)]


def test_a_staged_release_that_does_worse_is_stopped_named_no_more_and_said_why(server, caplog):
    assert numbers(index_of(server)) == [2, 1]
    with caplog.at_level(logging.WARNING):
        round_of(server, 2.0, *WORSE)
    assert numbers(index_of(server)) == [1]
    release = state_of(server, 2)
    assert (release.is_offered, release.stopped_at) == (False, 2.0)
    # 30 of 200 words lost, give or take 4.37 errors: the rests are 0, 2 and -2
    assert release.stopped == (
        "worse: -15.00 points of top-1 (+/- 2.52) beside the release before, 3 devices on the same "
        "words"
    )
    (record,) = [each for each in caplog.records if "release stopped" in each.message]
    assert (record.release, record.population, record.task) == (2, "default", "compared")


def test_a_staged_release_that_does_better_goes_on(server):
    round_of(server, 2.0, *BETTER)
    assert numbers(index_of(server)) == [2, 1]
    assert state_of(server, 2).is_offered


def test_two_bad_devices_wait_for_a_third_if_so_many_are_asked_for(tmp_path):
    coordinator = toy_server.new(tmp_path / "server", Rules(report_goal=2))
    comparing(coordinator, replace(RULES, min_reports=3))
    published(coordinator, 1, share=10_000)
    published(coordinator, 2)
    round_of(coordinator, 2.0, *WORSE[:2], body(1, 40))
    assert state_of(coordinator, 2).is_offered and told(coordinator) == {}
    round_of(coordinator, 3.0, WORSE[2], body(1, 40), body(1, 40))
    assert not state_of(coordinator, 2).is_offered
    coordinator.close()


def test_a_release_that_all_devices_may_have_is_not_stopped_by_the_server(server):
    """There is none to go to: its maker withdraws it."""
    published(server, 3, share=10_000)
    round_of(server, 2.0, *(body(3, right, 1, 60) for right in (30, 32, 28)))
    assert state_of(server, 3).is_offered
    assert told(server)[3, 1] == replace(told(server)[3, 1], devices=3, top1=90, before_top1=180)


def test_what_was_stopped_stays_so_whatever_is_told_of_it_later(server):
    round_of(server, 2.0, *WORSE)
    why = state_of(server, 2).stopped
    round_of(server, 3.0, *BETTER)
    assert state_of(server, 2).stopped == why


def test_the_figures_of_a_release_are_those_of_all_rounds(server):
    for now in (2.0, 3.0):
        round_of(server, now, *BETTER)
    figures = told(server)[2, 1]
    assert (figures.devices, figures.targets, sum(figures.spread)) == (6, 1200, 6)
    assert figures == Figures(
        **{
            name: 2 * value
            for name, value in {
                "devices": 3,
                "targets": 600,
                "top1": 180,
                "top3": 180,
                "in_vocabulary": 600,
                "loss": 2400 * 2**20,
                "words_squared": 3 * 200**2,
                "top1_squared": 60**2 + 62**2 + 58**2,
                "top1_words": 180 * 200,
                "before_top1": 90,
                "before_top3": 90,
                "before_loss": 2400 * 2**20,
                "gain_squared": 30**2 + 32**2 + 28**2,
                "gain_words": 90 * 200,
            }.items()
        },
        spread=(0, 0, 0, 0, 0, 2, 4, *[0] * 13),  # 29 %, and twice 30 and 31 %
    )
    assert json.loads(json.dumps(figures.spread)) == list(figures.spread)
