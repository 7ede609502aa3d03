from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.causes import Cause
from device_runtime.errors import ConfigError, Unanswered
from device_runtime.turn import FineTuned, GiveBack, Upload
from device_runtime.wire import Ack, Assignment
from fleet import population
from fleet.availability import IDLE, NEEDED, Always
from fleet.begin import begin
from fleet.doors import Call
from fleet.faults import Attack, Faults, Faulty, Killed, Luck, mortal
from fleet.population import Lives, PopulationSettings
from server.store import Store
from tests.test_fleet_simulate import SETTINGS, ended, rounds_of

WORK = Assignment("a1" * 16, 1, "c" * 64, "d" * 64, "e" * 64, deadline_s=60.0)
UPLOAD = Call(3, Upload(WORK, b"sixteen bytes!!!"))
EVERYTHING = Faults(
    **{name: 0.3 for name in ("stragglers", "liars", "skewed", "delays", "reordered")},
    **{name: 0.05 for name in ("deaths", "cuts", "picked_up", "unasked", "unheard", "replayed")},
    **{name: 0.05 for name in ("resent", "corrupted", "server_deaths")},
)


class Counting:
    """A door that says how much has come to it."""

    def __init__(self):
        self.came = []

    def answers(self, calls, now):
        self.came += calls
        return [Ack(True, 1.0) for _ in calls]

    def close(self):
        """Nothing is held."""


def after(faults, *calls, times=(0.0,)):
    """What comes through a door with these faults, and what is heard of it."""
    door = Counting()
    faulty = Faulty(door, Luck(faults, seed=1), servers=None)  # none of them dies
    heard = [answer for now in times for answer in faulty.answers(calls if not now else (), now)]
    return door.came, heard


def test_without_faults_all_comes_and_is_heard():
    came, heard = after(Faults(), UPLOAD)
    assert (came, heard) == ([UPLOAD], [Ack(True, 1.0)])


def test_a_request_that_is_unasked_never_comes():
    came, heard = after(Faults(unasked=1.0), UPLOAD)
    assert came == []
    assert isinstance(heard[0], Unanswered)


def test_a_request_that_is_unheard_comes():
    came, heard = after(Faults(unheard=1.0), UPLOAD)
    assert came == [UPLOAD]
    assert isinstance(heard[0], Unanswered)


def test_a_request_that_is_sent_again_comes_later_and_nobody_hears_the_second_answer():
    came, heard = after(Faults(resent=1.0, again_s=100.0), UPLOAD, times=(0.0, 100.0))
    assert (came, heard) == ([UPLOAD, UPLOAD], [Ack(True, 1.0)])


def test_a_request_that_is_replayed_is_the_same_to_the_nonce():
    came, _ = after(Faults(replayed=1.0, again_s=100.0), UPLOAD, times=(0.0, 100.0))
    assert came[0] == came[1]
    assert came[0].nonce is not None


def test_requests_of_one_step_come_in_another_order_and_each_hears_its_own_answer():
    calls = [Call(number, GiveBack(WORK, Cause.TIMED_OUT)) for number in range(20)]
    came, heard = after(Faults(reordered=0.5), *calls)
    assert came != calls
    assert sorted(came, key=lambda call: call.device) == calls
    assert len(heard) == 20


def test_one_byte_of_a_corrupted_update_is_another_and_nothing_else_is_corrupted():
    (came,), _ = after(Faults(corrupted=1.0), UPLOAD)
    assert came.action == UPLOAD.action
    assert sum(a != b for a, b in zip(came.body, UPLOAD.action.update, strict=True)) == 1
    gives_back = Call(3, GiveBack(WORK, Cause.TIMED_OUT))
    assert after(Faults(corrupted=1.0), gives_back)[0] == [gives_back]


def test_liars_are_as_many_as_asked_for_and_do_all_there_is_to_do():
    luck = Luck(Faults(liars=0.3), seed=2)
    attacks = [luck.attack(device) for device in range(2000)]
    assert set(attacks) == {None, *Attack}
    assert sum(attack is not None for attack in attacks) == pytest.approx(600, abs=80)


@pytest.mark.parametrize(
    ("attack", "says"),
    [(Attack.SIGN_FLIP, -1.0), (Attack.SCALING, 10.0), (Attack.IMPATIENT, 1.0)],
)
def test_what_a_liar_says_it_has_learned(attack, says):
    tuned = FineTuned({"w": np.ones(3, np.float32)}, 1, 0.0, 0.0)
    luck = Luck(Faults(liars=1.0, attacks=(attack,)))
    assert luck.learned(5, tuned, 1.0).delta["w"].tolist() == [says] * 3


def test_all_who_plant_send_one_direction_of_the_clipping_norm():
    tuned = FineTuned({"w": np.ones(3, np.float32)}, 1, 0.0, 0.0)
    luck = Luck(Faults(liars=1.0, attacks=(Attack.PLANTED,)))
    first, second = (luck.learned(device, tuned, 2.0).delta["w"] for device in (1, 2))
    assert np.array_equal(first, second)
    assert np.linalg.norm(first) == pytest.approx(2.0)


def test_an_impatient_device_comes_too_early_and_the_others_when_they_were_told():
    waits = np.array([10.0, 400.0])
    liars = Luck(Faults(liars=1.0, attacks=(Attack.IMPATIENT,)))
    assert liars.waits([1, 2], waits).tolist() == [10.0, 60.0]
    assert Luck().waits([1, 2], waits).tolist() == [10.0, 400.0]


def test_false_scores_are_of_all_words():
    luck = Luck(Faults(liars=1.0, attacks=(Attack.FALSE_SCORES,)))
    assert luck.scores(1, words=7).top1 == 7
    assert Luck().scores(1, words=7) is None


def test_stragglers_are_slower_in_all_they_do_and_the_others_as_they_were():
    before = population.make(PopulationSettings(devices=400), 1, seed=3)
    slow = Luck(Faults(stragglers=0.25, slower=4.0)).slowed(before)
    factors = slow.batch_s / before.batch_s
    assert sorted(set(np.round(factors, 4).tolist())) == [1.0, 4.0]
    assert np.mean(factors > 1) == pytest.approx(0.25, abs=0.08)
    assert np.allclose(before.down / slow.down, factors)


@given(st.integers(0, 2**40), st.floats(0, 1e7), st.floats(0.0, 1.0))
def test_a_device_is_ready_and_loses_it_when_its_signals_say_so(seed, since, rate):
    lives = Luck(Faults(picked_up=max(rate, 1e-3)), seed).interrupted(Always())
    device = np.array([7])

    def idle(at):
        return bool(lives.signals(device, np.array([at]))[0] & IDLE)

    (ready,) = lives.ready_at(device, np.array([since]))
    assert ready == since or not idle(since)
    assert idle(ready)
    (lost,) = lives.lost_at(device, np.array([ready]))
    assert lost > ready
    if np.isfinite(lost):
        assert not idle(lost)
        assert idle(ready + (lost - ready) * 0.999)
    assert lives.lost_at(device, np.array([ready]), NEEDED & ~IDLE)[0] == np.inf


def test_a_server_that_dies_before_its_transaction_ends_has_kept_nothing(tmp_path):
    store = Store(tmp_path / "server.sqlite")
    for steps, is_kept in ((0, False), (1, True)):
        with pytest.raises(Killed), mortal(store, steps), store.transaction() as rows:
            rows.enrol(f"{steps:016x}", "key", 1.0)
        with store.reading() as rows:
            assert (rows.public_key(f"{steps:016x}") is not None) == is_kept
    with mortal(store, 2), store.transaction() as rows:
        rows.enrol("f" * 16, "key", 1.0)
    store.close()


def test_equal_settings_have_equal_faults(tmp_path):
    lives = []
    for name in ("first", "second"):
        fleet = begin(replace(SETTINGS, faults=EVERYTHING), tmp_path / name)
        fleet.run(20_000)
        lives.append((ended(fleet).tobytes(), rounds_of(fleet)))
        fleet.close()
    assert lives[0] == lives[1]


def test_a_device_whose_process_dies_has_what_it_kept_and_comes_again(tmp_path):
    people = PopulationSettings(lives=Lives.ALWAYS, devices=20, first_messages=1000)
    rules = replace(SETTINGS.task.rules, rounds=8)
    task = replace(SETTINGS.task, rules=rules)
    deaths = replace(SETTINGS, population=people, task=task, faults=Faults(deaths=0.6))
    fleet = begin(deaths, tmp_path / "fleet")
    fleet.run(40_000)
    failed = {row["device"] for row in ended(fleet) if row["status"] == 255}
    counted = {row["device"] for row in ended(fleet) if row["status"] == 1}
    assert failed & counted
    assert all(fleet.state.pockets[device].held for device in counted)
    fleet.close()


def test_rates_are_shares_and_liars_must_do_something():
    assert not Faults(again_s=5.0).any
    assert Faults(cuts=0.1).any
    with pytest.raises(ConfigError, match=r"faults.cuts: expected 0 to 1"):
        Faults(cuts=1.5)
    with pytest.raises(ConfigError, match=r"faults.attacks: expected at least one"):
        Faults(liars=0.1, attacks=())
