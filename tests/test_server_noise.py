"""The noise that a server adds itself: how much, once a round, and what is kept of it."""

import contextlib
import dataclasses
import shutil
import sqlite3

import numpy as np
import pytest

from device_runtime import strategy, weights
from device_runtime.accountant import Participation
from device_runtime.errors import ConfigError, ServerError
from device_runtime.helper_wire import Noised, to_answer
from device_runtime.noise import Mechanism, Noise
from device_runtime.terms import Aggregation, Terms
from device_runtime.weights import Checkpoint
from fedboard.certificates import Consent, _require_agreed
from server import budget, mechanism, noising, operators
from server.coordinator import Coordinator, open_folder
from server.eligibility import Policy
from server.mechanism import beyond_reach, with_noise
from server.own_noise import LOST, NoNoise
from server.requests import Refused
from server.rounds import Mode, Rules
from server.sums import Sum
from server.task import TaskSettings, terms
from tests import postgres, toy_opening, toy_secagg_steps
from tests.test_server_budget import NOISE, noised, round_of, spending
from tests.toy_opening import sealed, way_to
from tests.toy_server import (
    PLAN,
    TOKENIZER,
    WEIGHTS,
    OneByOne,
    by_arrival,
    created,
    delta,
    enrolled,
    stored,
)

BLT = Noise(Mechanism.BLT, 0.5, 1e5, 1e-6, 100, 50, decays=(0.9,), scales=(0.4,))


def the_task(coordinator):
    return coordinator.tasks()[0].task


def moved(coordinator, before=0) -> np.ndarray:
    """What the newest checkpoint has moved by since the one of round `before`."""
    with coordinator.store.reading() as rows:
        old = rows.checkpoint_of_round("default", before)
    new = coordinator.checkpoint()
    return weights.flatten(stored(coordinator, new.sha).weights) - weights.flatten(
        stored(coordinator, old.sha).weights
    )


def reopened(folder) -> OneByOne:
    random = np.random.default_rng(5).bytes
    return OneByOne(*open_folder(folder), np.random.default_rng(0), random=random)


def slots(folder) -> list[str]:
    return sorted(each.name for each in (folder / "server.sqlite.keys").iterdir())


def test_the_mean_of_a_sum_is_off_by_the_noise_that_its_terms_say(tmp_path):
    coordinator = noised(tmp_path, dataclasses.replace(NOISE, multiplier=2.0))
    devices = enrolled(coordinator, 2)
    agreed = terms(the_task(coordinator))
    round_of(coordinator, devices, 1.0, 0, 1)
    off = moved(coordinator) - (delta(0) + delta(1)) / 2
    # 50 values of noise of 2 x clip on a sum that is divided by the report goal of 2
    expected = 2.0 * agreed.encoding.bound * agreed.clipping_norm / 2
    assert np.std(off) == pytest.approx(expected, rel=0.35)
    coordinator.close()


def test_noise_of_several_rounds_is_what_its_matrix_makes_of_independent_ones():
    agreed = Terms(Aggregation.PLAIN, 4, 1.0, 4096, "0" * 64, 1, 100, 1, 1, noise=BLT)
    random, buffers = np.random.default_rng(3).bytes, noising.begin(agreed)
    made = []
    for _ in range(6):
        drawn, buffers = noising.noise(agreed, buffers, random)
        assert drawn.dtype == np.int64
        made.append(drawn / agreed.deviation)
    column = strategy.coefficients(BLT, 6)
    for lag in range(3):  # C times the noise: independent, of stddev 1
        whitened = sum(column[k] * made[5 - lag - k] for k in range(6 - lag))
        assert np.std(whitened) == pytest.approx(1.0, rel=0.05)
    coded = np.array(made)
    assert np.std(coded[0]) == pytest.approx(1.0, rel=0.05)


def test_a_sum_whose_codes_stand_several_times_gets_noise_as_many_times_as_wide():
    agreed = Terms(Aggregation.PLAIN, 4, 1.0, 50, "0" * 64, 1, 100, 1, 1, noise=BLT)
    one, many = (
        noising.noise(agreed, noising.begin(agreed), np.random.default_rng(3).bytes, whole)[0]
        for whole in (1, 64)
    )
    assert np.abs(many - 64 * one).max() <= 32  # but for the rounding of one


def test_a_buffered_task_counts_each_device_at_most_once_and_divides_by_the_report_goal(tmp_path):
    rules = Rules(report_goal=2, over_selection=1.0, mode=Mode.BUFFERED, min_reports=2)
    quiet = dataclasses.replace(NOISE, multiplier=1e-3, epsilon=1e6)
    coordinator = noised(tmp_path, quiet, rules)
    assert mechanism.whole(the_task(coordinator)) == 64
    round_of(coordinator, enrolled(coordinator, 2), 1.0, 0, 1)
    np.testing.assert_allclose(moved(coordinator), (delta(0) + delta(1)) / 2, atol=0.02)
    assert spending(coordinator).happened == Participation((1,), None, 1)
    coordinator.close()


def test_a_sum_of_fewer_than_the_goal_is_divided_by_the_goal_all_the_same(tmp_path):
    quiet = dataclasses.replace(NOISE, multiplier=1e-3, epsilon=1e6)
    rules = Rules(report_goal=4, over_selection=1.0, min_reports=1)
    coordinator = noised(tmp_path, quiet, rules)
    round_of(coordinator, enrolled(coordinator, 1), 1.0, 0)
    coordinator.tick(1e6)
    np.testing.assert_allclose(moved(coordinator), delta(0) / 4, atol=0.02)
    coordinator.close()


# once a round


def fails_after_noise(coordinator, monkeypatch):
    """Let the round be closed no further than its blobs."""

    def broken(*_):
        raise OSError("no room")

    monkeypatch.setattr("server.closing.keep", broken)


def test_a_round_that_could_not_be_closed_goes_on_with_the_noise_that_was_drawn(
    tmp_path, monkeypatch
):
    coordinator = noised(tmp_path, BLT)
    devices = enrolled(coordinator, 2)
    with monkeypatch.context() as broken:
        fails_after_noise(coordinator, broken)
        round_of(coordinator, devices, 1.0, 0, 1)
    assert spending(coordinator).drawn == 1
    with pytest.raises(Refused, match="written down first"):
        coordinator.roll_back("default", 0, 1.5)
    coordinator.close()
    coordinator = reopened(tmp_path)
    coordinator.tick(2.0)
    first = coordinator.checkpoint().sha
    coordinator.close()
    # a server that nothing happened to, with the same randomness
    other = noised(tmp_path / "other", BLT)
    round_of(other, enrolled(other, 2), 1.0, 0, 1)
    assert other.checkpoint().sha == first
    other.close()


def test_what_was_drawn_for_a_round_is_gone_once_it_is_closed(tmp_path):
    coordinator = noised(tmp_path, BLT)
    devices = enrolled(coordinator, 2)
    round_of(coordinator, devices, 1.0, 0, 1)
    names = [each for each in slots(tmp_path) if each.startswith(("noise", "buffers"))]
    assert names == ["buffers~default~1"]
    round_of(coordinator, devices, 2.0, 0, 1)
    names = [each for each in slots(tmp_path) if each.startswith(("noise", "buffers"))]
    assert names == ["buffers~default~0"]
    with coordinator.store.reading() as rows:
        generation, buffers, noise = rows.spending.sealed("default")
    assert (generation, noise) == (2, None)
    assert spending(coordinator).drawn is None
    # 4,096 values of one buffer
    assert len(buffers) == pytest.approx(4 * 4096, abs=64)
    coordinator.close()


def test_a_lost_key_of_the_state_is_a_new_beginning_that_is_accounted(tmp_path):
    coordinator = noised(tmp_path, BLT)
    devices = enrolled(coordinator, 2)
    round_of(coordinator, devices, 1.0, 0, 1)
    round_of(coordinator, devices, 2.0, 0, 1)
    (tmp_path / "server.sqlite.keys" / "buffers~default~0").unlink()
    round_of(coordinator, devices, 3.0, 0, 1)
    assert spending(coordinator).happened == Participation((2, 1), 1, 3)
    report = operators.report(coordinator, "default", 3.0)
    assert (report.sums, report.beginnings) == (3, 2)
    coordinator.close()


def test_noise_begins_anew_with_each_basis_and_updates_are_read_in_that_of_their_round(tmp_path):
    noise = dataclasses.replace(BLT, multiplier=0.01)
    coordinator = noised(tmp_path, noise, turn=2)
    devices = enrolled(coordinator, 2)
    for round in range(1, 5):
        round_of(coordinator, devices, float(round), 0, 1)
        # in another basis this would be a sum of rotated values, which is near zero
        off = moved(coordinator, round - 1) - (delta(0) + delta(1)) / 2
        assert np.linalg.norm(off) < 0.2 * np.linalg.norm(delta(0) + delta(1))
    assert spending(coordinator).happened == Participation((1, 2, 1), 1, 4)  # 1; 2, 3; 4
    assert operators.report(coordinator, "default", 5.0).beginnings == 3
    coordinator.close()


def test_a_turn_that_is_none_names_terms_as_before_and_late_reports_have_no_turn():
    of = Aggregation.PLAIN, 8, 1.0, 50, "0" * 64, 1, 2, 1, 1
    plain, turned = Terms(*of), Terms(*of, turn=3)
    assert "turn" not in plain.told and plain.encoding_at(9) == plain.encoding
    assert turned.name != plain.name and turned.told["turn"] == 3
    seeds = [turned.encoding_at(round).seed for round in range(7)]
    assert [seeds.count(each) for each in dict.fromkeys(seeds)] == [3, 3, 1]
    assert turned.encoding_at(0) != turned.encoding  # the first basis is derived too
    with pytest.raises(ConfigError, match=r"terms\.turn.*reports of two bases do not add up"):
        Terms(*of, turn=3, max_staleness=1)
    with pytest.raises(ConfigError, match=r"task\.turn.*another basis"):
        TaskSettings(turn=3, rules=Rules(mode=Mode.BUFFERED), aggregation=Aggregation.PLAIN)


def test_lost_noise_is_never_drawn_again(tmp_path, monkeypatch):
    coordinator = noised(tmp_path, BLT)
    devices = enrolled(coordinator, 2)
    with monkeypatch.context() as broken:
        fails_after_noise(coordinator, broken)
        round_of(coordinator, devices, 1.0, 0, 1)
    (tmp_path / "server.sqlite.keys" / "noise~default~1").unlink()
    coordinator.tick(2.0)
    first, second = coordinator.reports(2.0).rounds
    assert (first.phase, first.reason) == ("abandoned", LOST)
    assert (second.phase, coordinator.checkpoint().round) == ("selecting", 0)
    assert first.rho == pytest.approx(1 / (2 * 0.5**2))  # what was drawn is spent
    assert spending(coordinator).happened == Participation((1,), None, 1)
    coordinator.close()


def test_a_database_that_was_put_back_makes_no_sum_on_an_account_that_lacks_some(tmp_path):
    coordinator = noised(tmp_path, BLT)
    devices = enrolled(coordinator, 2)
    round_of(coordinator, devices, 1.0, 0, 1)
    coordinator.close()
    backup = (tmp_path / "server.sqlite").read_bytes()
    coordinator = reopened(tmp_path)
    for now in (2.0, 3.0):
        round_of(coordinator, devices, now, 0, 1)
    assert spending(coordinator).happened.sums == 3
    coordinator.close()
    for left in tmp_path.glob("server.sqlite-*"):
        left.unlink()
    (tmp_path / "server.sqlite").write_bytes(backup)  # its keys are those of now
    coordinator = reopened(tmp_path)
    round_of(coordinator, devices, 4.0, 0, 1)
    assert coordinator.finished() and coordinator.checkpoint().round == 1
    said = operators.report(coordinator, "default", 4.0)
    assert "its account lacks at least 2 sums with noise" in said.over and said.over in said.privacy
    coordinator.close()


# beside a helper that adds it


def opened_round(coordinator, devices, now, *numbers) -> None:
    """A round of these of the devices, whose sum the helper opens."""
    works = toy_opening.joined(coordinator, [devices[number] for number in numbers], now)
    for number, work in zip(numbers, works, strict=True):
        body = sealed(work, number)
        assert coordinator.update(devices[number], work.assignment, body, now).counted
    coordinator.open_sums(now)


def test_server_and_helper_have_one_account_through_a_lost_round_and_a_lost_state(tmp_path):
    noise = dataclasses.replace(BLT, multiplier=4.0)
    desk = toy_opening.desk(tmp_path / "helper")
    rules = Rules(report_goal=2, over_selection=1.0, min_reports=2)
    coordinator = toy_opening.new(tmp_path / "server", way_to(desk), rules, noise=noise)
    devices = enrolled(coordinator, 4)
    opened_round(coordinator, devices, 1.0, 0, 1)
    (work,) = toy_opening.joined(coordinator, devices[2:3], 2.0)
    coordinator.update(devices[2], work.assignment, sealed(work, 2), 2.0)
    coordinator.tick(1e6)  # too few: nothing is opened, and nothing spent
    coordinator.open_sums(1e6)
    opened_round(coordinator, devices, 1e6 + 1, 0, 1)
    kept = spending(coordinator)
    assert kept.happened == Participation((2,), 1, 2)
    assert (kept.noised.began, kept.noised.sums) == ((1,), 2)
    for slot in (tmp_path / "helper" / "noise").iterdir():
        slot.unlink()
    opened_round(coordinator, devices, 1e6 + 2, 2, 3)
    kept = spending(coordinator)
    assert kept.happened == Participation((2, 1), 1, 2)
    assert kept.noised.began == (1, 4)
    account = budget.standing(noise, kept)
    assert account.caveat == ""
    assert kept.noised.epsilon == pytest.approx(account.account.epsilon, rel=1e-9)
    assert kept.noised.epsilon == coordinator.reports(1e6 + 3).rounds[3].epsilon
    said = operators.report(coordinator, "default", 1e6 + 3).privacy
    assert "opened by a helper, which added blt noise of multiplier 4 to each before" in said
    coordinator.close()


def test_a_sum_to_which_its_helper_has_added_no_noise_is_not_used(tmp_path):
    desk = toy_opening.desk(tmp_path / "helper")

    def quiet(method, path, body, headers):
        reply = way_to(desk)(method, path, body, headers)
        if path != "/v1/answers":
            return reply
        _, _, words = reply.body.partition(b"\n")
        return dataclasses.replace(reply, body=to_answer(Noised(), words))

    rules = Rules(report_goal=2, over_selection=1.0, min_reports=2)
    coordinator = toy_opening.new(tmp_path / "server", quiet, rules, noise=BLT)
    opened_round(coordinator, enrolled(coordinator, 2), 1.0, 0, 1)
    first = coordinator.reports(1.0).rounds[0]
    assert (first.phase, first.reason) == (
        "abandoned",
        "its helper has added no noise to the sum",
    )
    coordinator.close()


def test_a_helper_that_has_no_budget_left_ends_the_task_and_says_so(tmp_path):
    desk = toy_opening.desk(tmp_path / "helper")
    rules = Rules(report_goal=2, over_selection=1.0, min_reports=2)
    noise = dataclasses.replace(BLT, rounds=2)
    coordinator = toy_opening.new(tmp_path / "server", way_to(desk), rules, noise=noise)
    devices = enrolled(coordinator, 2)
    opened_round(coordinator, devices, 1.0, 0, 1)
    coordinator.close()
    backup = tmp_path / "backup"
    shutil.copytree(tmp_path / "server", backup)
    for folder in (tmp_path / "server", backup):
        if folder is backup:  # whose log it would tell from the one that went on
            with contextlib.closing(sqlite3.connect(desk._store.folder / "helper.sqlite")) as heads:
                heads.execute("DELETE FROM heads")
                heads.commit()
        coordinator = toy_opening.opened(folder, way_to(desk))
        coordinator.open_sums(2.0)
        opened_round(coordinator, devices, 2.0, 0, 1)
        if folder is backup:
            last = coordinator.reports(2.0).rounds[-1]
            assert "over_budget" in spending(coordinator).over
            assert (last.phase, last.reason) == ("abandoned", spending(coordinator).over)
        assert coordinator.finished()
        coordinator.close()


# devices that open their sum themselves, and a server that adds the noise


def test_noise_is_added_to_a_sum_that_its_devices_have_opened(tmp_path):
    store, blobs = open_folder(tmp_path)
    noise = dataclasses.replace(BLT, multiplier=2.0)
    start = Checkpoint(WEIGHTS, 0, "", TOKENIZER)
    created(Coordinator(store, blobs), toy_secagg_steps.settings(noise=noise), 0.0, start)
    store.close()
    coordinator = reopened(tmp_path)
    task, now = the_task(coordinator), [1.0]
    members = toy_secagg_steps.assigned(coordinator)
    toy_secagg_steps.play(coordinator, members, now)
    first = coordinator.reports(now[0]).rounds[0]
    assert (first.phase, first.counted) == ("committed", 8)
    off = moved(coordinator) - np.mean([delta(number) for number in range(8)], axis=0)
    agreed = terms(task)
    expected = 2.0 * agreed.encoding.bound * agreed.clipping_norm / 8
    assert np.std(off) == pytest.approx(expected, rel=0.35)
    assert spending(coordinator).happened == Participation((1,), None, 1)
    said = operators.report(coordinator, "default", now[0]).privacy
    assert "opened by the devices; the server, which is trusted with the sum, added blt" in said
    coordinator.close()


# what is too far off to be noise


@pytest.mark.parametrize("compression", [1, 64])
def test_noise_alone_is_never_beyond_reach_and_what_moves_the_mean_further_is(compression):
    wide = dataclasses.replace(BLT, mechanism=Mechanism.GAUSSIAN, decays=(), scales=())
    agreed = Terms(
        Aggregation.HELPER,
        *(4, 1.0, 50, "0" * 64, 1, 10, 2, 1),
        helper="ab" * 32,
        noise=wide,
        compression=compression,
    )
    by, count = agreed.encoding, 5
    middle = np.full(by.values, count * by.largest // 2, np.int64)
    for seed in range(50):
        drawn, _ = noising.noise(agreed, noising.begin(agreed), np.random.default_rng(seed).bytes)
        noise_norm = agreed.noise_norm / count
        assert not beyond_reach(middle + drawn, count, by, agreed.room, noise_norm)
    far = middle + round(5 * agreed.deviation)
    assert "norm" in beyond_reach(far, count, by, agreed.room, agreed.noise_norm / count)


def test_noise_is_added_to_sums_of_any_width_without_wrapping():
    noise = np.array([-5, 70_000], np.int64)
    after = with_noise(Sum(np.array([3, 65_535], np.uint16), 2, 2), noise)
    assert (after.total.tolist(), after.weight, after.count) == ([-2, 135_535], 2, 2)


# several replicas


def test_replicas_that_see_the_end_of_a_round_add_the_same_noise(tmp_path):
    with postgres.running() as socket:
        address = postgres.new_database(socket, "noise")
        place = tmp_path / "server"
        first, second = (
            OneByOne(*open_folder(place, address), np.random.default_rng(0), replica=name)
            for name in ("one", "two")
        )
        settings = TaskSettings(
            PLAN,
            rules=by_arrival(Rules(report_goal=3, over_selection=1.0, min_reports=3)),
            policy=Policy(min_separation=1),
            aggregation=Aggregation.PLAIN,
            noise=BLT,
            seed=7,
        )
        created(first, settings, 0.0, Checkpoint(WEIGHTS, 0, "", TOKENIZER))
        task, devices = the_task(first), enrolled(first, 3)
        round_of(first, devices, 1.0, 0)
        round_of(second, devices, 1.0, 1)
        drawn = first._noise.of(task, 1)
        assert np.array_equal(second._noise.of(task, 1), drawn)
        round_of(second, devices, 2.0, 2)
        assert second.checkpoint().round == 1
        assert spending(first).happened == Participation((1,), None, 1)
        assert first._noise.of(task, 1) == NoNoise("")  # it has been closed
        assert isinstance(first._noise.of(task, 2), np.ndarray)
        first.close()
        second.close()


# what an operator signs


def test_nothing_is_signed_with_another_noise_than_was_asked_for():
    asked = TaskSettings(PLAN, aggregation=Aggregation.PLAIN, noise=BLT)
    agreed = Terms(Aggregation.PLAIN, 8, 1.0, 50, "0" * 64, 1, 100, 50, 1, noise=BLT)
    given = Consent(Aggregation.PLAIN, asked=asked)
    _require_agreed("words", given, agreed)
    for other in (None, dataclasses.replace(BLT, epsilon=1e6)):
        with pytest.raises(ServerError, match="expected noise"):
            _require_agreed("words", given, dataclasses.replace(agreed, noise=other))
    with pytest.raises(ServerError, match="expected compression 1, found 4"):
        _require_agreed("words", given, dataclasses.replace(agreed, compression=4))
