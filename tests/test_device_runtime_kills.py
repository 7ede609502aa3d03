"""A device killed at any step of an install or a turn: its bundle is whole, and nothing is counted twice. The log has its own kills."""

import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from device_runtime import bundle, installed
from device_runtime.home import UNFINISHED, DeviceConfig, Home
from device_runtime.participate import Status, take_turn
from device_runtime.transport import http
from device_runtime.typing_log import Retention
from server.aggregation import ServerStep
from server.coordinator import Coordinator, create_task, open_folder
from server.eligibility import Policy
from server.endpoint import app, bind
from server.endpoint import server as uvicorn_server
from server.rounds import Rules
from tests.kill_points import every_kill


def test_power_lost_at_any_step_of_an_install_leaves_one_whole_bundle(tmp_path, tiny_bundle, signing_key, trusted):
    folder, newer = tmp_path / "bundles", tmp_path / "newer"
    bundle.write(newer, replace(tiny_bundle.manifest, release=7), tiny_bundle.content, signing_key)
    found = set()

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        installed.install(folder, tiny_bundle.path, trusted)

    def check():
        now = installed.current(folder, trusted)
        assert now.problem is None
        found.add(now.bundle.manifest.release)
        installed.install(folder, newer, trusted)
        assert installed.current(folder, trusted).bundle.manifest.release == 7
        assert len(list(folder.iterdir())) == 3  # the two bundles and the pointer: nothing is left over

    assert every_kill(prepare, lambda: installed.install(folder, newer, trusted), check) > 10
    assert found == {0, 7}


@pytest.fixture
def url(tmp_path, tiny_bundle):
    """A real server, in a thread, that wants rounds of one report."""
    store, blobs = open_folder(tmp_path / "server")
    rules = Rules(report_goal=1, over_selection=1.0, retry_s=1.0)
    create_task(store, blobs, tiny_bundle.checkpoint, tiny_bundle.plan, rules, Policy(min_examples=5), ServerStep(), time.time(), seed=1)
    coordinator = Coordinator(store, blobs, np.random.default_rng(0))
    with bind("127.0.0.1", 0) as sock:
        running = uvicorn_server(app(coordinator))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]})
        thread.start()
        yield f"http://127.0.0.1:{sock.getsockname()[1]}", coordinator
        running.should_exit = True
        thread.join()
    coordinator.close()


def test_a_device_killed_at_any_step_of_a_turn_takes_it_again_and_counts_once_a_round(url, tmp_path, tiny_bundle, trusted):
    address, coordinator = url
    (tmp_path / "able.tsv").write_text("0\tbattery_charged_on\n0\twifi\n0\tscreen_off\n")
    kept = Retention(max_uses=1000)
    settings = DeviceConfig(tuple(trusted), str(tiny_bundle.path), address, str(tmp_path / "able.tsv"), typing_log=kept)
    home = Home.create(tmp_path / "phone", settings, [(f"i will see you {i}", 0.0 + i) for i in range(12)])

    def turn():
        with http(address) as send:
            return take_turn(Home.open(home.folder), send, lambda: 10.0)

    def check():
        assert turn().status is Status.COUNTED
        assert home.kept(UNFINISHED) is None

    steps = every_kill(lambda: None, turn, check)
    assert steps > 20
    reports = coordinator.reports(time.time()).rounds
    assert {report.counted for report in reports if report.phase == "committed"} == {1}
    committed = sum(report.phase == "committed" for report in reports)
    assert steps + 1 <= committed <= 2 * (steps + 1)  # each check counted one, and so did the acts that got as far as the upload
    with home.typing_log() as log:
        assert log.count() == 12
    assert [path.name for path in home.folder.rglob(".*")] == []  # what a killed process was writing is written over
