"""Short fleets in which everything goes wrong, and servers that are broken on purpose.

All that must hold does in the first, and each of the others is found out.
"""

from dataclasses import replace

import pytest

from device_runtime import separation
from device_runtime.causes import Cause
from device_runtime.local import Local
from device_runtime.noise import Mechanism, Noise
from device_runtime.terms import Aggregation
from device_runtime.wire import Ack, Plan, Reject
from fleet import soak
from fleet.faults import Faults
from fleet.population import PopulationSettings
from fleet.settings import FleetSettings
from server import closing, noising, rounds
from server.coordinator import Coordinator
from server.eligibility import Policy
from server.log import Log
from server.log_rows import LogRows
from server.rounds import Rules
from server.spending_rows import SpendingRows
from server.store import Rows
from server.task import Peers, TaskSettings

AGAIN = "python -m fleet.soak --first 4 --seeds 1"
RULES = Rules(report_goal=4, selection_s=60.0, reporting_s=900.0, retry_s=100.0, rounds=3)
TASK = TaskSettings(
    Plan(batch_size=8, length=10, max_rows=64, bits=4),
    rules=RULES,
    policy=Policy(min_separation=2),
    aggregation=Aggregation.PLAIN,
    least_count=4,
    secagg=Peers(0.0, 0.2, True),
    seed=3,
)
QUIET = FleetSettings(
    seed=4, days=0.2, step_s=10, population=PopulationSettings(devices=20), task=TASK
)
HELPED = replace(QUIET, task=replace(TASK, aggregation=Aggregation.HELPER))
AMONG_PEERS = replace(QUIET, task=replace(TASK, aggregation=Aggregation.SECAGG))
NOISE = Noise(Mechanism.GAUSSIAN, 1.0, 1000.0, 1e-6, rounds=20, participations=4)
NOISY = replace(QUIET, task=replace(TASK, noise=NOISE))
EVERY_KIND = pytest.mark.parametrize(
    "settings", [QUIET, HELPED, AMONG_PEERS], ids=["plain", "helper", "secagg"]
)


def found_in(settings):
    """What is wrong with a fleet, with the command that shows it."""
    wrong = soak.lived(settings, AGAIN).wrong
    assert wrong.endswith(AGAIN)
    return wrong


@pytest.mark.parametrize("seed", range(20))
def test_all_that_must_hold_does_whatever_goes_wrong(seed):
    assert soak.one(seed).wrong == ""


@EVERY_KIND
def test_a_quiet_fleet_has_its_rounds(settings):
    result = soak.lived(settings, AGAIN)
    assert (result.wrong, result.committed) == ("", 3)
    assert result.counted >= 6


def test_every_seed_is_a_fleet():
    kinds = {soak.settings(seed).task.aggregation for seed in range(1000)}
    assert kinds == set(Aggregation)


def test_the_same_seed_is_the_same_fleet():
    assert soak.settings(7) == soak.settings(7) != soak.settings(8)
    assert soak.one(7) == soak.one(7)


@EVERY_KIND
def test_an_update_that_is_added_twice_is_found(settings, monkeypatch):
    add = Coordinator._add

    def twice(self, rows, at, reports, ledger):
        total = add(self, rows, at, [*reports, reports[0]], ledger)
        return replace(total, count=total.count - 1)

    monkeypatch.setattr(Coordinator, "_add", twice)
    # what is masked comes to nonsense
    told = "comes to" if settings is QUIET else "has thrown away"
    assert told in found_in(settings)


@EVERY_KIND
def test_a_sum_that_is_off_by_one_is_found(settings, monkeypatch):
    right = closing.next_checkpoint

    def wrong(task, round, base, total, blobs, now):
        codes = total.total.copy()
        codes[0] += 1
        return right(task, round, base, replace(total, total=codes), blobs, now)

    monkeypatch.setattr(closing, "next_checkpoint", wrong)
    assert "and what it counted comes to" in found_in(settings)


def test_an_update_that_is_left_out_is_found(monkeypatch):
    add = Coordinator._add
    monkeypatch.setattr(
        Coordinator,
        "_add",
        lambda self, rows, at, reports, ledger: add(self, rows, at, reports[1:], ledger),
    )
    assert found_in(QUIET)


def test_an_acknowledgement_that_is_lost_is_found(monkeypatch):
    reported = Coordinator._reported

    def forgetful(self, *of):
        answer = reported(self, *of)
        return Reject(Cause.ROUND_CLOSED, 60.0) if isinstance(answer, Ack) else answer

    monkeypatch.setattr(Coordinator, "_reported", forgetful)
    assert "is counted, and its device was told" in found_in(QUIET)


def test_an_acknowledgement_of_what_is_not_counted_is_found(monkeypatch):
    monkeypatch.setattr(Coordinator, "_reported", lambda *of: Ack(True, 60.0))
    assert "was acknowledged" in found_in(QUIET)


def test_a_device_that_is_counted_too_soon_is_found(monkeypatch):
    monkeypatch.setattr(separation, "may_join", lambda *of: True)
    few = replace(QUIET, population=PopulationSettings(devices=5))
    assert "expected 2 rounds between the two" in found_in(few)


def test_a_device_that_is_not_ready_is_found(monkeypatch):
    monkeypatch.setattr(Local, "forbidden", lambda self: None)
    monkeypatch.setattr(
        "fleet.simulate.Fleet._lost_at", lambda self, device, now, needed: float("inf")
    )
    assert "whose conditions did not hold" in found_in(
        replace(QUIET, faults=Faults(picked_up=1.0, stragglers=1.0, slower=50.0))
    )


def test_noise_that_is_used_twice_is_found(monkeypatch):
    draw, drawn = noising.noise, []

    def repeated(*of):
        drawn.append(draw(*of))
        return drawn[0]

    monkeypatch.setattr(noising, "noise", repeated)
    assert "have the same noise" in found_in(NOISY)


def test_noise_that_is_left_out_is_found(monkeypatch):
    draw = noising.noise

    def none(*of):
        noise, after = draw(*of)
        return 0 * noise, after

    monkeypatch.setattr(noising, "noise", none)
    assert "has noise of 0" in found_in(NOISY)


def test_a_budget_that_is_told_too_low_is_found(monkeypatch):
    note = SpendingRows.note
    monkeypatch.setattr(
        SpendingRows,
        "note",
        lambda self, task, round, account: note(
            self, task, round, replace(account, rho=account.rho / 2)
        ),
    )
    assert "was spent" in found_in(NOISY)


def test_a_round_that_is_stuck_is_found(monkeypatch):
    monkeypatch.setattr(rounds, "is_over", lambda *of: False)
    stops = replace(QUIET, faults=Faults(deaths=1.0))
    assert "and should have ended" in found_in(stops)


def test_a_log_that_forks_is_found(monkeypatch):
    right = LogRows.frontier

    def other(self, log):
        frontier = right(self, log)
        return replace(frontier, roots=tuple(bytes(32) for _ in frontier.roots))

    monkeypatch.setattr(LogRows, "frontier", other)
    assert "the log has forked" in found_in(QUIET)


def test_a_log_whose_entries_are_changed_is_found(monkeypatch):
    append = Log._append

    def rewriting(self, rows, at, entries):
        append(self, rows, at, entries)
        rows._connection.exec_driver_sql("UPDATE log_entries SET body = '{}' WHERE number = 0")

    monkeypatch.setattr(Log, "_append", rewriting)
    assert "are not those that its head was signed for" in found_in(QUIET)


def test_a_sum_that_outlives_its_round_is_found(monkeypatch):
    close = Rows.close_round

    def keeping(self, task, state, *of, **options):
        kept = self._connection.exec_driver_sql("SELECT * FROM sums").fetchall()
        close(self, task, state, *of, **options)
        for row in kept:
            marks = ", ".join("?" * len(row))
            self._connection.exec_driver_sql(f"INSERT INTO sums VALUES ({marks})", tuple(row))

    monkeypatch.setattr(Rows, "close_round", keeping)
    assert "sums are kept of rounds that are over" in found_in(QUIET)
