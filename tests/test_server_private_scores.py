"""Scores of an evaluation are masked and opened as its task's updates are, or sent in the open."""

import numpy as np
import pytest

from device_runtime import chain, protection, scores
from device_runtime.causes import Cause
from device_runtime.config import to_json
from device_runtime.errors import ConfigError
from device_runtime.terms import Aggregation
from device_runtime.wire import Assignment, Kind, Phase, RoundReport, Scores
from server import tasks
from server.eligibility import Policy
from server.requests import Refused
from server.rounds import Rules
from server.task import TaskSettings
from tests.toy_opening import THREE, desk, joined, new, way_to
from tests.toy_server import OneByOne, by_arrival, enrolled, key

OF_DEVICES = [
    Scores(100, 20, 33, 90, 480.5),
    Scores(50, 5, 10, 50, 250.25),
    Scores(400, 100, 200, 300, 2000.0),
]


@pytest.fixture
def coordinator(tmp_path):
    server = new(tmp_path / "server", way_to(desk(tmp_path / "helper")))
    yield server
    server.close()


def evaluation(rules: Rules = THREE) -> TaskSettings:
    return TaskSettings(
        name="scores",
        kind=Kind.EVALUATION,
        evaluates="default",
        rules=by_arrival(rules),
        policy=Policy(min_separation=1),
    )


def begun(coordinator: OneByOne) -> list[tuple[str, Assignment]]:
    """Three devices that are to score."""
    tasks.create(coordinator, evaluation(), 0.5)
    coordinator.pause("default")
    coordinator.open_sums(0.5)
    devices = enrolled(coordinator, 3)
    works = joined(coordinator, devices, 1.0)
    assert {work.kind for work in works} == {Kind.EVALUATION}
    return list(zip(devices, works, strict=True))


def masked(work: Assignment, number: int, vector: np.ndarray) -> bytes:
    about = protection.addressed(work, chain.terms_of(work))
    assert isinstance(about, protection.Addressed)
    random = np.random.default_rng(number).bytes
    return protection.protected(vector, scores.MOST_LOSS, about, key(number), random)


def reported(coordinator: OneByOne, vectors: list[np.ndarray]) -> RoundReport:
    """The round in which three devices have sent these, once its sum was to be opened."""
    for number, (device, work) in enumerate(begun(coordinator)):
        body = masked(work, number, vectors[number])
        assert coordinator.update(device, work.assignment, body, 2.0).counted
    assert coordinator.reports(2.5, "scores").rounds[0].phase is Phase.UNMASKING
    coordinator.open_sums(3.0)
    return coordinator.reports(4.0, "scores").rounds[0]


def test_masked_scores_add_up_to_what_open_ones_add_up_to(coordinator):
    report = reported(coordinator, [scores.to_vector(each) for each in OF_DEVICES])
    assert report.phase is Phase.COMMITTED
    assert report.scores == Scores(550, 125, 243, 440, 2730.75)
    # 20, 10 and 25 % of their words right
    assert report.spread == (0, 0, 1, 0, 1, 1, *[0] * 14)


def test_a_device_that_counts_twice_in_the_spread_spoils_the_round_and_is_named(coordinator):
    vectors = [scores.to_vector(each) for each in OF_DEVICES]
    vectors[1][-1] = 1
    report = reported(coordinator, vectors)
    assert (report.phase, report.scores) == (Phase.ABANDONED, None)
    assert "honest devices could reach: the spread holds 4 devices, and 3" in report.reason


def test_what_a_masked_task_is_told_in_the_open_is_refused(coordinator):
    device, work = begun(coordinator)[0]
    with pytest.raises(Refused) as refused:
        coordinator.scores(device, work.assignment, to_json(OF_DEVICES[0]), 2.0)
    assert refused.value.cause is Cause.NOT_SCORES


def test_masked_words_of_another_number_are_no_scores(coordinator):
    device, work = begun(coordinator)[0]
    body = masked(work, 0, np.zeros(scores.LENGTH + 1, np.int64))
    with pytest.raises(Refused) as refused:
        coordinator.update(device, work.assignment, body, 2.0)
    assert refused.value.cause is Cause.NOT_AN_UPDATE


@pytest.mark.parametrize("goal", [2, 4])
def test_an_evaluation_is_of_no_more_devices_than_its_terms_have_room_for_and_of_no_fewer(
    tmp_path, goal
):
    coordinator = new(tmp_path / "server", way_to(desk(tmp_path / "helper")), THREE, least_count=3)
    with pytest.raises(ConfigError, match=rf"sums of 3 to 3 devices, found {goal}"):
        tasks.create(coordinator, evaluation(Rules(report_goal=goal, over_selection=1.0)), 0.5)
    assert [each.task.name for each in coordinator.tasks()] == ["default"]
    coordinator.close()


def test_an_evaluation_that_names_no_goal_has_that_of_the_task_it_scores(coordinator):
    task = tasks.create(coordinator, evaluation(Rules()), 0.5)
    assert (task.rules.report_goal, task.rules.over_selection, task.rules.fewest) == (3, 1.0, 2)


def test_scores_of_a_plain_task_are_seen_one_by_one(tmp_path):
    coordinator = new(
        tmp_path / "server",
        way_to(desk(tmp_path / "helper")),
        helper="",
        aggregation=Aggregation.PLAIN,
    )
    works = begun(coordinator)
    assert chain.terms_of(works[0][1]).aggregation is Aggregation.PLAIN
    for (device, work), each in zip(works, OF_DEVICES, strict=True):
        assert coordinator.scores(device, work.assignment, to_json(each), 2.0).counted
    report = coordinator.reports(4.0, "scores").rounds[0]
    assert report.scores == Scores(550, 125, 243, 440, 2730.75)
    coordinator.close()
