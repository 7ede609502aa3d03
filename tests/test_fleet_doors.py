from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from device_runtime.bundle import CHECKPOINT
from device_runtime.causes import Cause
from device_runtime.config import from_json
from device_runtime.errors import ServerError
from device_runtime.noise import Mechanism, Noise
from device_runtime.secagg_turn import Hear, Tell
from device_runtime.secagg_wire import Advertised, Roster
from device_runtime.signing import name_of, public_hex
from device_runtime.terms import Aggregation
from device_runtime.turn import Ask, Fetch, GiveBack, HandIn, Report, Upload
from device_runtime.weights import from_bytes
from device_runtime.wire import (
    Ack,
    Assignment,
    CheckIn,
    Conditions,
    Enrolment,
    Kind,
    Plan,
    Reject,
    Scores,
)
from fleet import pocket
from fleet.begin import begin, go_on
from fleet.bundles import TOKENIZER, made_up
from fleet.doors import Call, Http, Memory
from fleet.faults import Faults
from fleet.population import Lives, PopulationSettings
from fleet.saved import Saves
from fleet.servers import DATABASE, Servers
from fleet.settings import FleetSettings, Way
from server.eligibility import Policy
from server.requests import Nonce
from server.rounds import Rules
from server.task import Peers, TaskSettings

PLAIN = TaskSettings(
    Plan(batch_size=8, length=10, max_rows=64, bits=4),
    rules=Rules(
        report_goal=6, selection_s=600.0, reporting_s=900.0, check_ins_per_s=10.0, rounds=2
    ),
    policy=Policy(min_separation=1),
    seed=3,
    aggregation=Aggregation.PLAIN,
)
HELPED = replace(PLAIN, aggregation=Aggregation.HELPER, least_count=4)
# of six devices each has four neighbours, of whom two open a secret
AMONG_PEERS = replace(
    PLAIN, aggregation=Aggregation.SECAGG, least_count=4, secagg=Peers(0.0, 0.2, True)
)
NOISED = replace(
    HELPED,
    noise=Noise(
        Mechanism.GAUSSIAN, multiplier=1.0, epsilon=50.0, delta=1e-6, rounds=20, participations=9
    ),
)
SETTINGS = FleetSettings(
    seed=4,
    days=1,
    step_s=5,
    population=PopulationSettings(lives=Lives.ALWAYS, devices=24),
    task=PLAIN,
)


def lived(folder, task, way=Way.MEMORY):
    """A fleet that has had its rounds."""
    fleet = begin(replace(SETTINGS, task=task, way=way), folder)
    fleet.run(86_400)
    return fleet


def remains(fleet):
    """All that is left of a fleet's life, but for the order of bytes on the disk."""
    coordinator = fleet.servers.coordinator
    return {
        "rounds": coordinator.reports(fleet.now).rounds,
        "turns": np.concatenate(fleet.state.ended).tobytes(),
        "check-ins": fleet.state.check_ins,
        "checkpoint": coordinator.checkpoint(),
        "log": (coordinator.log_head(), coordinator.log_entries(0, 1000)),
        "random": fleet.servers.saved(),
    }


@pytest.mark.parametrize(
    "task", [PLAIN, HELPED, NOISED, AMONG_PEERS], ids=["plain", "helped", "noised", "among peers"]
)
def test_a_seed_gives_the_same_rounds_over_sockets_and_in_memory(tmp_path, task):
    in_memory = lived(tmp_path / "memory", task)
    over_sockets = lived(tmp_path / "http", task, Way.HTTP)
    assert remains(over_sockets) == remains(in_memory)
    assert committed(in_memory) == 2
    in_memory.close()
    over_sockets.close()


def test_what_goes_wrong_on_the_way_goes_wrong_alike_over_sockets_and_in_memory(tmp_path):
    wrong = Faults(
        skewed=0.5, replayed=0.2, resent=0.2, reordered=0.5, unheard=0.1, unasked=0.1, corrupted=0.2
    )
    in_memory, over_sockets = (
        begin(replace(SETTINGS, faults=wrong, way=way), tmp_path / way) for way in Way
    )
    for fleet in (in_memory, over_sockets):
        fleet.run(86_400)
    assert remains(over_sockets) == remains(in_memory)
    assert committed(in_memory) == 2
    in_memory.close()
    over_sockets.close()


def test_a_fleet_over_sockets_goes_on_from_a_save_as_one_in_memory_lives(tmp_path):
    in_memory = lived(tmp_path / "memory", HELPED)
    over_sockets, run = replace(SETTINGS, task=HELPED, way=Way.HTTP), tmp_path / "http"
    fleet = begin(over_sockets, run)
    fleet.run(86_400, lambda: not fleet.state.turns)  # until one is at work
    Saves(run).save(fleet.state, fleet.servers)
    fleet.close()
    again = go_on(over_sockets, run, Saves(run))
    again.run(86_400)
    assert remains(again) == remains(in_memory)
    in_memory.close()
    again.close()


def test_a_budget_is_spent_sum_by_sum(tmp_path):
    fleet = lived(tmp_path / "fleet", NOISED)
    spent = [each.epsilon for each in rounds_of(fleet) if each.phase == "committed"]
    assert 0 < spent[0] < spent[1] < NOISED.noise.epsilon
    fleet.close()


KEY_OF = partial(pocket.key_of, 4)


class Both:
    """One server in memory and one over sockets, which are asked the same."""

    def __init__(self, folder, task):
        bundle = made_up(task.plan, 50)
        self.servers, self.doors = [], []
        for name, door in (("memory", self._memory), ("http", Http)):
            servers = Servers(folder / name, 4)
            servers.coordinator.enrol_all([Enrolment(public_hex(KEY_OF(n))) for n in range(4)], 0)
            servers.begin(task, from_bytes(bundle.content[CHECKPOINT]), 0.0)
            self.servers.append(servers)
            self.doors.append(door(partial(getattr, servers, "coordinator"), KEY_OF))

    def _memory(self, coordinator, key_of):
        return Memory(coordinator, lambda number: name_of(public_hex(key_of(number))))

    def hear(self, now, *calls):
        """What devices hear, which is the same through both."""
        in_memory, over_sockets = (
            list(map(plainly, door.answers([Call(*call) for call in calls], now)))
            for door in self.doors
        )
        assert over_sockets == in_memory
        return in_memory

    def work(self, number, now=0.0):
        """A device's work."""
        (answer,) = self.hear(now, (number, Ask(READY)))
        assert isinstance(answer, Assignment), answer
        return answer

    def close(self):
        for each in (*self.doors, *self.servers):
            each.close()


def plainly(answer):
    return str(answer) if isinstance(answer, ServerError) else answer


ANYBODY = replace(PLAIN, rules=Rules(report_goal=2, over_selection=1.0, selection_s=0.0))
READY = CheckIn(Conditions(True, True, True), 20, TOKENIZER)


@pytest.fixture
def both(tmp_path):
    it = Both(tmp_path, ANYBODY)
    yield it
    it.close()


def test_work_is_refused_alike(both):
    both.work(0)
    both.work(1)
    in_use = replace(READY, conditions=Conditions(True, True, False))
    heard = both.hear(1.0, (2, Ask(READY)), (3, Ask(in_use)), (2, Ask(READY)), (9, Ask(READY)))
    full, used, early, stranger = heard
    assert (full.cause, used.cause) == (Cause.ROUND_FULL, Cause.IN_USE)
    assert (early.cause, early.retry_in_s) == (Cause.TOO_EARLY, full.retry_in_s)
    assert stranger == Reject(Cause.UNKNOWN_DEVICE, 0.0)


def test_what_is_there_is_fetched_alike_and_what_is_not_refused_alike(both):
    work = both.work(0)
    plan, nothing, stranger = both.hear(
        1.0, (0, Fetch(work, work.plan)), (0, Fetch(work, "0" * 64)), (9, Fetch(work, work.plan))
    )
    assert from_json(Plan, plan, "plan") == ANYBODY.plan
    assert "404 unknown_blob" in nothing
    assert "401 unknown_device" in stranger


def test_reports_are_refused_alike(both):
    work = both.work(0)
    other = both.work(1)
    elsewhere, later = replace(work, assignment="0" * 32), replace(work, round=work.round + 1)
    causes = [
        answer.cause
        for answer in both.hear(
            2.0,
            (0, Upload(elsewhere, b"words")),
            (0, Upload(other, b"words")),
            (0, Upload(later, b"words")),
            (0, Upload(work, bytes(100_000))),
            (0, Report(replace(work, kind=Kind.EVALUATION), Scores(1, 2, 2, 1, 0.0))),
            (1, Upload(other, b"words")),
            (1, Upload(other, b"other words")),
        )
    ]
    assert causes == [
        Cause.UNKNOWN_ASSIGNMENT,
        Cause.UNKNOWN_ASSIGNMENT,
        Cause.WRONG_ROUND,
        Cause.TOO_LARGE,
        Cause.NOT_SCORES,
        Cause.NOT_AN_UPDATE,
        Cause.DIFFERENT_UPDATE,
    ]


def test_a_request_that_comes_again_as_it_was_signed_is_refused_alike(both):
    nonce = Nonce("0" * 32, 1)
    first, again = both.hear(1.0, (0, Ask(READY), None, nonce), (0, Ask(READY), None, nonce))
    assert isinstance(first, Assignment)
    assert again == Reject(Cause.REPLAYED, 0.0)


def test_a_report_that_is_another_on_arrival_is_refused_alike(both):
    work = both.work(0)
    altered, whole = both.hear(1.0, (0, Upload(work, b"words"), b"sword"), (0, Upload(work, b"w")))
    assert (altered.cause, whole.cause) == (Cause.BAD_SIGNATURE, Cause.NOT_AN_UPDATE)


def test_a_device_whose_clock_is_wrong_is_heard(both):
    ahead = Http(lambda: both.servers[1].coordinator, KEY_OF, lambda device: 1e6)
    (answer,) = ahead.answers([Call(0, Ask(READY))], 1.0)
    assert isinstance(answer, Assignment)
    ahead.close()


def test_work_is_given_back_alike(both):
    work, other = both.work(0), both.work(1)
    foreign, given, again, late, handed_in = both.hear(
        2.0,
        (0, GiveBack(work, Cause.ROUND_FULL)),
        (0, GiveBack(work, Cause.CONDITION_LOST)),
        (0, GiveBack(work, Cause.CONDITION_LOST)),
        (0, Upload(work, b"words")),
        (1, HandIn(other)),
    )
    assert foreign == Reject(Cause.MALFORMED, 0.0)
    assert isinstance(given, Ack) and isinstance(again, Ack)
    assert late == Reject(Cause.ABANDONED, 0.0)
    assert handed_in is None


def test_a_report_that_comes_late_hears_the_same(both):
    work = both.work(0)
    for servers in both.servers:
        servers.tick(1e6)
    (answer,) = both.hear(1e6, (0, Upload(work, b"words")))
    assert (answer.cause, answer.retry_in_s > 0) == (Cause.LATE, True)


def test_a_task_without_steps_refuses_them_alike(both):
    work = both.work(0)
    told = Advertised(*("0" * 64 for _ in range(3)), "0" * 128)
    assert both.hear(1.0, (0, Tell(work, told)), (0, Hear(work, Roster))) == [
        Reject(Cause.MALFORMED, 0.0),
        Reject(Cause.MALFORMED, 0.0),
    ]


def test_a_server_that_can_keep_nothing_says_so_alike(both):
    work = both.work(0)
    for servers in both.servers:
        (servers.folder / DATABASE).rename(servers.folder / "elsewhere")
    asked, fetched = both.hear(1.0, (1, Ask(READY)), (0, Fetch(work, work.plan)))
    assert asked == Reject(Cause.UNAVAILABLE, 30.0)
    assert "503 unavailable" in fetched


def committed(fleet):
    return [each.phase for each in rounds_of(fleet)].count("committed")


def rounds_of(fleet):
    return fleet.servers.coordinator.reports(fleet.now).rounds
