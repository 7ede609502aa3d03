import contextlib
import json

import numpy as np
import pytest

from device_runtime.causes import Cause
from device_runtime.turn import FineTuned, Train
from device_runtime.weights import Checkpoint, digest
from device_runtime.wire import Plan
from fleet.clock import Clock
from fleet.population import population
from fleet.simulate import LocalTraining, asgi, simulate, stand_in
from server.coordinator import Coordinator, open_folder
from server.eligibility import Policy
from server.endpoint import app
from server.rounds import Rules
from server.task import TaskSettings
from tests.toy_server import created

TOKENIZER = digest(b"toy vocabulary")
PLAN = Plan(batch_size=4, length=2, max_rows=16, clipping_norm=1.0)
RULES = Rules(
    report_goal=3,
    over_selection=1.5,
    selection_s=7200.0,
    reporting_s=3600.0,
    rounds=2,
    retry_s=1800.0,
)
ROWS = np.ones((10, 3), np.int32)


@contextlib.contextmanager
def server(folder, rules=RULES):
    """A real coordinator on a fresh virtual clock, and the way to it."""
    clock = Clock()
    store, blobs = open_folder(folder)
    weights = {"a": np.zeros((3, 4), np.float32), "b": np.ones(5, np.float32)}
    created(
        Coordinator(store, blobs),
        TaskSettings(PLAN, rules=rules, policy=Policy(min_examples=5), seed=1),
        clock.now(),
        Checkpoint(weights, tokenizer=TOKENIZER),
    )
    coordinator = Coordinator(store, blobs, np.random.default_rng(1))
    with asgi(app(coordinator, clock.now)) as send:
        yield send, clock
    coordinator.close()


def a_fleet(folder, size=12, rules=RULES, train=stand_in, days=2, seed=4):
    with server(folder, rules) as (send, clock):
        training = LocalTraining(lambda device: ROWS, TOKENIZER, train)
        return simulate(send, clock, population(size, seed), training, days, seed)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return a_fleet(tmp_path_factory.mktemp("server"))


def test_a_fleet_commits_the_rounds_the_task_wants(result):
    assert [report.phase for report in result.reports.rounds] == ["committed", "committed"]
    assert all(report.counted >= 2 for report in result.reports.rounds)
    assert 0 < result.seconds < 2 * 86_400


def test_what_devices_count_is_what_the_server_counts(result):
    assert sum(result.counted) == sum(report.counted for report in result.reports.rounds)
    assert len(result.counted) == len(result.check_ins) == 12


def test_the_same_seed_gives_the_same_result_and_another_seed_another(result, tmp_path):
    assert a_fleet(tmp_path / "again") == result
    assert a_fleet(tmp_path / "other", seed=5) != result


def test_in_a_day_of_their_lives_devices_come_no_earlier_than_they_are_told(tmp_path):
    with server(tmp_path, Rules(report_goal=100, retry_s=3600.0)) as (send, clock):
        due, gaps, causes = {}, [], set()

        def noted(method, path, body, headers):
            reply = send(method, path, body, headers)
            device = headers.get("fedboard-device")
            if path == "/v1/check-in":
                gaps.append(clock.now() - due.get(device, clock.now()))
                causes.add(json.loads(reply.body).get("cause"))
            due[device] = clock.now() + json.loads(reply.body).get("retry_in_s", 0.0)
            return reply

        training = LocalTraining(lambda device: ROWS, TOKENIZER, stand_in)
        simulate(noted, clock, population(4, 1), training, days=1, seed=1)
    assert len(gaps) > 40
    assert min(gaps) >= -1e-6
    assert {Cause.NOT_CHARGING, Cause.METERED_NETWORK, Cause.SELECTING} <= causes
    assert Cause.TOO_EARLY not in causes


def test_a_device_whose_training_fails_gives_its_work_back(tmp_path):
    def failing(graph, action, may_continue):
        return FineTuned({}, 0, float("nan"), float("nan"), Cause.TRAINING_FAILED)

    result = a_fleet(
        tmp_path,
        size=6,
        rules=Rules(report_goal=100, min_reports=1, retry_s=7200.0),
        train=failing,
        days=1,
    )
    assert sum(result.counted) == 0
    assert any(Cause.TRAINING_FAILED in report.dropped for report in result.reports.rounds)


def test_the_stand_in_moves_every_weight_a_little_within_the_clipping_norm():
    weights = {"a": np.zeros((3, 4), np.float32), "b": np.ones(5, np.float32)}
    tuned = stand_in(b"", Train(weights, ROWS, PLAN, np.random.default_rng(0)), lambda: True)
    total = np.sqrt(sum(np.square(array).sum() for array in tuned.delta.values()))
    assert total == pytest.approx(0.1 * PLAN.clipping_norm, rel=1e-5)
    assert {name: array.shape for name, array in tuned.delta.items()} == {"a": (3, 4), "b": (5,)}
    assert tuned.batches == 3  # 10 rows in batches of 4
