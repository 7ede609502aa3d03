"""Checkpoints travel down as differences from what a device holds, where that is smaller."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from device_runtime import difference
from device_runtime.weights import digest
from server.blobs import Blobs
from server.differences import NEWEST, SMALLER
from server.rounds import Rules
from tests import toy_server
from tests.toy_server import READY, OneByOne, encoded, enrolled, new, reopened

LARGE = {"embedding": np.random.default_rng(0).normal(0, 0.1, (400, 16)).astype(np.float32)}
RULES = Rules(report_goal=1, over_selection=1.0)


def large(folder):
    coordinator = new(folder, RULES, values=LARGE)
    return coordinator, enrolled(coordinator, 12)


def commit(coordinator, device: str, now: float) -> str:
    """One round: a small step of every weight. The checkpoint the device had for it."""
    work = coordinator.check_in(device, READY, now)
    vector = (
        np.random.default_rng(int(now)).normal(0, 1e-4, LARGE["embedding"].size).astype(np.float32)
    )
    body = encoded(work, 1, vector)
    assert coordinator.update(device, work.assignment, body, now).counted
    return work.checkpoint


def test_a_device_that_holds_an_older_checkpoint_is_offered_the_difference(tmp_path):
    coordinator, devices = large(tmp_path)
    held = commit(coordinator, devices[0], 1.0)
    work = coordinator.check_in(devices[1], replace(READY, holds=held), 2.0)
    old, change = (
        coordinator.blob(devices[1], name, 3.0, signed_for=("default", 2))
        for name in (held, work.difference)
    )
    assert digest(difference.apply(old, change)) == work.checkpoint
    assert len(change) <= SMALLER * len(old)
    assert coordinator.reports(4.0).rounds[1].downloaded == 1
    coordinator.close()


def test_whoever_holds_nothing_the_newest_or_a_stranger_s_checkpoint_is_offered_none(tmp_path):
    coordinator, devices = large(tmp_path)
    commit(coordinator, devices[0], 1.0)
    newest = coordinator.checkpoint().half
    for held in ("", newest, "ab" * 32, "no hash at all", "\x00" * 64):
        assert coordinator.check_in(devices[1], replace(READY, holds=held), 2.0).difference is None
    coordinator.close()


def test_a_device_that_holds_the_round_s_checkpoint_counts_as_having_downloaded_it(tmp_path):
    coordinator, devices = large(tmp_path)
    coordinator.check_in(devices[0], replace(READY, holds=coordinator.checkpoint().half), 1.0)
    report = coordinator.reports(1.0).rounds[0]
    assert (report.assigned, report.downloaded, report.bytes_down) == (1, 1, 0)
    coordinator.close()


def test_a_checkpoint_of_long_ago_is_sent_whole(tmp_path):
    coordinator, devices = large(tmp_path)
    held = commit(coordinator, devices[0], 1.0)
    for number in range(1, NEWEST):
        commit(coordinator, devices[number], 1.0 + number)
    assert coordinator.check_in(devices[9], replace(READY, holds=held), 50.0).difference is None
    coordinator.close()


def test_a_difference_that_saves_little_is_not_offered(tmp_path):
    coordinator, devices = large(tmp_path)
    work = coordinator.check_in(devices[0], READY, 1.0)
    # every weight becomes another
    vector = np.random.default_rng(1).normal(0, 0.01, LARGE["embedding"].size).astype(np.float32)
    body = encoded(work, 1, vector)
    assert coordinator.update(devices[0], work.assignment, body, 1.0).counted
    change = coordinator.check_in(devices[1], replace(READY, holds=work.checkpoint), 2.0).difference
    whole = len(coordinator.blob(devices[1], work.checkpoint, 2.0))
    assert change is None or len(coordinator.blob(devices[1], change, 2.0)) <= SMALLER * whole
    coordinator.close()


def test_after_a_restart_the_same_difference_is_offered(tmp_path):
    coordinator, devices = large(tmp_path)
    held = commit(coordinator, devices[0], 1.0)
    before = coordinator.check_in(devices[1], replace(READY, holds=held), 2.0)
    coordinator.close()
    coordinator = reopened(tmp_path)
    assert (
        coordinator.check_in(devices[1], replace(READY, holds=held), 3.0).difference
        == before.difference
    )
    coordinator.close()


def test_the_download_of_a_difference_counts_also_where_another_process_worked_it_out(tmp_path):
    coordinator = new(tmp_path, replace(RULES, over_selection=2.0), values=LARGE)
    devices = enrolled(coordinator, 4)
    held = commit(coordinator, devices[0], 1.0)
    works = [
        coordinator.check_in(device, replace(READY, holds=held), 2.0) for device in devices[1:3]
    ]
    replica = OneByOne(coordinator.store, Blobs(tmp_path / "blobs"), replica="another")
    replica.blob(devices[1], works[0].difference, 3.0, signed_for=("default", 2))
    assert replica.reports(3.0).rounds[1].downloaded == 1
    coordinator.close()
    coordinator = reopened(tmp_path)
    coordinator.blob(devices[2], works[1].difference, 4.0, signed_for=("default", 2))
    assert coordinator.reports(4.0).rounds[1].downloaded == 2
    coordinator.blob(devices[2], held, 5.0, signed_for=("default", 2))  # an older one is not it
    assert coordinator.reports(5.0).rounds[1].downloaded == 2
    coordinator.close()


def test_the_toy_s_own_rounds_still_take_whole_checkpoints(tmp_path):
    coordinator = new(tmp_path, RULES)
    device = enrolled(coordinator, 1)[0]
    work = coordinator.check_in(device, READY, 1.0)
    assert coordinator.update(device, work.assignment, encoded(work, 1), 1.0).counted
    assert toy_server.stored(coordinator, coordinator.checkpoint().half).round == 1
    coordinator.close()


def test_of_many_devices_that_hold_the_same_one_works_the_difference_out(tmp_path, monkeypatch):
    coordinator, devices = large(tmp_path)
    held = commit(coordinator, devices[0], 1.0)
    work = coordinator.check_in(devices[1], READY, 2.0)
    calls, encode = [], difference.encode
    monkeypatch.setattr(difference, "encode", lambda old, new: calls.append(1) or encode(old, new))
    with ThreadPoolExecutor(8) as pool:
        names = set(
            pool.map(lambda _: coordinator.with_difference(work, held).difference, range(8))
        )
    assert (len(names), len(calls)) == (1, 1)
    coordinator.close()
