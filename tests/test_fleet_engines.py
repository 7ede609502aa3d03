import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from device_runtime import local, weights
from device_runtime.errors import BundleError, ConfigError, RunError
from device_runtime.home import DeviceConfig, Home
from fedboard import fleet_text
from fleet import begin, turns
from fleet.engines import stand_in
from fleet.faults import Attack, Faults
from fleet.pool import Pool
from fleet.settings import Computing, Training
from fleet.typed import Typed
from tests.toy_engines import BASE, dies, job, refuses, same
from tests.toy_fleet import RULES, learning, lived

ROOT = Path(__file__).parents[1]


@pytest.fixture
def settings(tiny_bundle, trusted):
    return learning(tiny_bundle, trusted)


def test_devices_of_a_signed_bundle_learn_what_is_typed_on_them(
    settings, tmp_path, tiny_bundle, tiny_corpus
):
    checkpoint, ended = lived(settings, tmp_path / "fleet", tiny_bundle, tiny_corpus)
    assert checkpoint.round == 2
    counted = ended[ended["status"] == turns.STATUSES.index(turns.Status.COUNTED)]
    assert (counted["loss_after"] < counted["loss_before"]).all()
    assert weights.norm(weights.subtract(checkpoint.weights, tiny_bundle.weights)) > 0.1


def test_devices_that_send_the_opposite_of_what_they_learned_move_the_weights_back(
    settings, tmp_path, tiny_bundle, tiny_corpus
):
    once = replace(settings, task=replace(settings.task, rules=replace(RULES, rounds=1)))
    honest, _ = lived(once, tmp_path / "honest", tiny_bundle, tiny_corpus)
    lying = replace(once, faults=Faults(liars=1.0, attacks=(Attack.SIGN_FLIP,)))
    false, _ = lived(lying, tmp_path / "lying", tiny_bundle, tiny_corpus)
    there, back = (
        weights.flatten(weights.subtract(each.weights, tiny_bundle.weights))
        for each in (honest, false)
    )
    assert there @ back < -0.9 * np.linalg.norm(there) * np.linalg.norm(back)


def test_a_bundle_that_no_trusted_key_signed_is_refused(settings, tmp_path):
    strange = replace(settings, training=replace(settings.training, trusted=("0" * 64,)))
    with pytest.raises(BundleError, match="signed"):
        begin.begin(strange, tmp_path / "fleet")


def test_training_that_is_not_real_needs_a_plan(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"task\.plan"):
        begin.begin(replace(settings, training=Training()), tmp_path / "fleet")


# processes


def test_a_fleet_has_the_same_bytes_in_a_pool(settings, tmp_path, tiny_bundle, tiny_corpus):
    here = lived(settings, tmp_path / "here", tiny_bundle, tiny_corpus)
    training = replace(settings.training, computing=Computing.POOL, processes=2)
    there = lived(
        replace(settings, training=training), tmp_path / "there", tiny_bundle, tiny_corpus
    )
    assert weights.to_bytes(here[0]) == weights.to_bytes(there[0])
    assert here[1].tobytes() == there[1].tobytes()


@pytest.fixture
def pool(tmp_path):
    """One that trains nothing, in two processes."""
    pool = Pool(stand_in, b"", 2, tmp_path / "pool")
    yield pool
    pool.close()


def test_results_are_those_of_their_jobs_in_whatever_order_they_are_asked_for(pool):
    tickets = [pool.submit(job(number, ends=-number), BASE) for number in range(9)]
    for number in (4, 0, 8, 1, 2, 7, 6, 5, 3):
        assert same(pool.result(tickets[number]), number)


def computing(pid):
    """The processes of a pool of this one."""
    every = psutil.Process(pid).children()
    return [each for each in every if "spawn_main" in " ".join(each.cmdline())]


def test_the_jobs_of_a_process_that_dies_are_computed_again(pool):
    first = [pool.submit(job(number), BASE) for number in range(3)]
    assert same(pool.result(first[0]), 0)
    more = [pool.submit(job(number), BASE) for number in range(3, 6)]
    for process in computing(os.getpid()):
        process.kill()
    for number, ticket in enumerate([*first[1:], *more], 1):
        assert same(pool.result(ticket), number)


def test_a_job_that_kills_whoever_computes_it_is_given_up(tmp_path):
    pool = Pool(dies, b"", 1, tmp_path / "pool")
    ticket = pool.submit(job(0), BASE)
    with pytest.raises(RunError, match="times in a row a process died"):
        pool.result(ticket)
    pool.close()


def test_what_is_wrong_in_another_process_is_said_here(tmp_path):
    pool = Pool(refuses, b"", 1, tmp_path / "pool")
    ticket = pool.submit(job(0), BASE)
    with pytest.raises(RunError, match="interpreter: there is none; install one"):
        pool.result(ticket)
    pool.close()


OWNER = """
import sys, time
from pathlib import Path
from fleet.pool import Pool
from fleet.engines import stand_in
from tests.toy_engines import BASE, job
if __name__ == "__main__":
    pool = Pool(stand_in, b"", 2, Path(sys.argv[1]))
    for ticket in [pool.submit(job(number), BASE) for number in range(8)]:
        pool.result(ticket)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("last", [signal.SIGKILL, signal.SIGINT])
def test_no_process_of_a_pool_outlives_the_one_that_made_it(last, tmp_path):
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    with subprocess.Popen(
        [sys.executable, script, tmp_path / "pool"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    ) as owner:
        assert owner.stdout.readline() == "ready\n"
        processes = computing(owner.pid)
        assert processes
        os.killpg(owner.pid, last) if last is signal.SIGINT else owner.kill()
        _, said = owner.communicate(timeout=30)
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []
    assert said.count("Traceback") == (1 if last is signal.SIGINT else 0)  # its own


# what is typed


def test_a_user_types_on_a_device_of_a_fleet_the_rows_that_a_phone_makes_of_it(
    tmp_path, tiny_bundle, tiny_corpus, trusted
):
    typed = fleet_text.of_corpus(tiny_corpus, tiny_bundle, 1000)
    name = list(tiny_corpus.train)[3]
    messages = [(each.text, float(i)) for i, each in enumerate(tiny_corpus.train[name])]
    config = DeviceConfig(bundle=str(tiny_bundle.path), trusted=tuple(trusted))
    home = Home.create(tmp_path / "phone", config, messages)
    with home.typing_log() as log:
        used, rows = local.newest_rows(log, tiny_bundle.vocabulary, tiny_bundle.plan, 16)
    records, same = typed.newest(3, len(messages), frozenset(), 16)
    assert (records, same.tolist()) == (used, rows.tolist())


def test_what_was_typed_is_the_same_when_it_is_read_from_the_disk(
    tmp_path, tiny_bundle, tiny_corpus
):
    typed = fleet_text.of_corpus(tiny_corpus, tiny_bundle, 5)
    typed.save(tmp_path / "typed")
    again = Typed.load(tmp_path / "typed")
    assert again.digest == typed.digest
    assert again.newest(2, 9, frozenset({3}), 4)[0] == typed.newest(2, 9, frozenset({3}), 4)[0]


def cut(folder):
    (folder / "rows.npy").write_bytes((folder / "rows.npy").read_bytes()[:-8])


def shortened(folder):
    np.save(folder / "message.npy", np.load(folder / "message.npy")[:-1])


@pytest.mark.parametrize("spoil", [cut, shortened])
def test_what_was_typed_and_has_been_spoiled_is_refused(spoil, tmp_path, tiny_bundle, tiny_corpus):
    fleet_text.of_corpus(tiny_corpus, tiny_bundle, 5).save(tmp_path / "typed")
    spoil(tmp_path / "typed")
    with pytest.raises(RunError, match="begin the fleet anew"):
        Typed.load(tmp_path / "typed")
