"""A device killed at any step: its log, its bundle and its half-done turn are whole, and nothing is counted twice."""

import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from device_runtime import bundle, installed
from device_runtime.errors import TypingLogError
from device_runtime.home import UNFINISHED, DeviceConfig, Home
from device_runtime.participate import Status, take_turn
from device_runtime.transport import http
from device_runtime.typing_log import Retention, TypingLog, wipe
from server.aggregation import ServerStep
from server.coordinator import Coordinator, create_task, open_folder
from server.eligibility import Policy
from server.endpoint import app, bind
from server.endpoint import server as uvicorn_server
from server.rounds import Rules
from tests.kill_points import every_kill

OLD = ["hello there", "how are you"]


@pytest.fixture
def log(tmp_path):
    """Gives the log anew for every kill: two messages."""
    path = tmp_path / "phone" / "typing_log.sqlite"

    def prepare():
        shutil.rmtree(path.parent, ignore_errors=True)
        with TypingLog(path) as made:
            made.append_many([(text, float(i)) for i, text in enumerate(OLD)])

    prepare.path = path
    return prepare


def read(path) -> list[str]:
    with TypingLog(path) as log:
        return log.read(10)


def test_an_append_is_whole_or_not_at_all(log):
    found = set()

    def act():
        with TypingLog(log.path) as opened:
            opened.append_many([("a third", 3.0), ("a fourth", 4.0)])

    steps = every_kill(log, act, lambda: found.add(tuple(read(log.path))))
    assert steps > 5
    assert found == {tuple(OLD), (*OLD, "a third", "a fourth")}


def test_a_use_is_counted_for_all_messages_of_an_upload_or_for_none(log):
    found = set()

    def act():
        with TypingLog(log.path) as opened:
            opened.mark_used([1, 2])

    def check():
        with TypingLog(log.path, Retention(max_uses=1)) as opened:
            found.add(opened.count(usable=True))

    assert every_kill(log, act, check) > 5
    assert found == {2, 0}


def test_what_is_forgotten_is_gone_whole_or_still_there(log):
    found = set()

    def act():
        with TypingLog(log.path) as opened:
            assert opened.forget("hello THERE") == 1

    assert every_kill(log, act, lambda: found.add(tuple(read(log.path)))) > 5
    assert found == {tuple(OLD), (OLD[1],)}


def test_a_wipe_that_has_begun_leaves_nothing_readable_and_can_be_done_again(tmp_path, log):
    begun = 0

    def act():
        wipe(log.path)

    def check():
        nonlocal begun
        if not log.path.with_suffix(".key").exists():
            begun += 1
            if log.path.exists():
                with pytest.raises(TypingLogError, match="missing"):
                    TypingLog(log.path)
        else:
            assert read(log.path) == OLD
        wipe(log.path)
        assert list(log.path.parent.iterdir()) == []

    steps = every_kill(log, act, check)
    assert begun >= steps - 1  # the key goes in the first step


def test_a_log_of_version_1_is_made_anew_whole_or_stays(log):
    def prepare():
        log()
        with TypingLog(log.path) as opened:  # as the code of version 1 left it
            opened._db.execute("ALTER TABLE records DROP COLUMN uses")
            opened._db.execute("PRAGMA user_version = 1")

    assert every_kill(prepare, lambda: TypingLog(log.path).close(), lambda: read(log.path) == OLD or pytest.fail("lost")) > 3
    prepare()
    with TypingLog(log.path) as opened:
        assert opened.count(usable=True) == 2


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
