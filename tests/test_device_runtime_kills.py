"""A device killed at any step of an install, upgrade or turn has a whole bundle, and counts once.

The log has its own kills.
"""

import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from device_runtime import bundle, calls, codes, installed, personal
from device_runtime.drive import Turn
from device_runtime.home import BUNDLES, FETCHED, UNFINISHED, DeviceConfig, Home
from device_runtime.local import simulated
from device_runtime.terms import Aggregation
from device_runtime.transport import http
from device_runtime.turn import Status
from device_runtime.upgrade import Means, follow, remembered
from device_runtime.weights import digest
from device_runtime.wire import DAY_S
from fedboard.certificates import Consent, certified
from fedboard.operator import connect
from tests.kill_points import every_kill_point
from tests.suite import strides
from tests.test_device_runtime_drive import EASY
from tests.test_device_runtime_personal import HABIT, likelier, release
from tests.test_device_runtime_upgrade import Maker, other_weights, with_difference

PLAINLY = Consent(Aggregation.PLAIN)


def test_power_lost_at_any_step_of_an_install_leaves_one_whole_bundle(
    tmp_path, fast_folder, tiny_bundle, signing_key, trusted
):
    newer, result = tmp_path / "newer", set()
    bundle.write(newer, replace(tiny_bundle.manifest, release=7), tiny_bundle.content, signing_key)
    script = f"""
from pathlib import Path
from device_runtime import installed

def work(folder):
    installed.install(folder, Path({str(newer)!r}), frozenset({set(trusted)!r}))
"""

    def prepare(folder):
        installed.install(folder, tiny_bundle.path, trusted)

    def check(folder):
        now = installed.current(folder, trusted)
        assert now.problem is None
        result.add(now.bundle.manifest.release)
        installed.install(folder, newer, trusted)
        assert installed.current(folder, trusted).bundle.manifest.release == 7
        # the two bundles and the pointer: nothing is left over
        assert len(list(folder.iterdir())) == 3

    assert every_kill_point(script, fast_folder / "bundles", prepare, check) > 20
    assert result == {0, 7}


UPGRADE = """
import os
from pathlib import Path
from device_runtime.home import Home
from device_runtime.upgrade import Means, follow
from tests.test_device_runtime_upgrade import Blobs

blobs = Blobs()
for path in Path({blobs!r}).iterdir():
    blobs.put(path.read_bytes())

def work(folder, say=lambda line: None):
    means = Means(blobs.connect, lambda: 5.0, sleep=lambda seconds: None, say=say)
    follow(Home.open(folder / "phone"), {index!r}, means)
"""


@pytest.fixture
def releases_of(tmp_path, tiny_bundle, signing_key, trusted):
    """A maker of releases, a phone that runs release 0, and the script that follows an index."""
    maker = Maker(tiny_bundle, signing_key, tmp_path)
    settings = DeviceConfig(tuple(trusted))
    phone = Home.create(tmp_path / "phone", settings, [("i see you", 1.0)], tiny_bundle.path)

    def script(index: str) -> str:
        (tmp_path / "blobs").mkdir(exist_ok=True)
        for sha, data in maker.blobs.blobs.items():
            (tmp_path / "blobs" / sha).write_bytes(data)
        return UPGRADE.format(blobs=str(tmp_path / "blobs"), index=index)

    return maker, phone, script


def is_settled(home: Home, release: int) -> None:
    """One whole bundle runs, the one before and the pointer lie beside it, and no part of another
    is left.
    """
    now = home.installed()
    assert (now.problem, now.bundle.manifest.release) == (None, release)
    assert not (home.folder / FETCHED).exists()
    assert [path.name for path in home.folder.rglob(".*")] == []
    folders = [path for path in (home.folder / BUNDLES).iterdir() if path.is_dir()]
    assert len(folders) == 1 + (home.bundle_before() is not None)


@pytest.mark.parametrize("way", ["up", "back"])
def test_a_device_killed_at_any_step_of_an_upgrade_runs_one_whole_bundle_and_comes_there_next(
    releases_of, fast_folder, way
):
    maker, phone, script = releases_of
    files = {**other_weights(maker, 1), bundle.BLOCKED: b"dog\n"}
    made = maker.make(1, changed=files)
    maker.names[0] = digest(maker.first.encoded)
    old, new = maker.first.predict_graph, made.predict_graph
    difference = codes.encode(old, new, made.manifest.constants)
    means = Means(maker.blobs.connect, lambda: 9.0, sleep=lambda seconds: None)
    index, target, seen = maker.index(with_difference(maker, 1, difference)), 1, set()
    if way == "back":
        follow(phone, index, means)
        index, target = maker.index(maker.states(1, serial=2, withdrawn=True)), 0

    def prepare(folder):
        shutil.copytree(phone.folder, folder / "phone")

    def check(folder):
        home = Home.open(folder / "phone")
        now = home.installed()
        assert now.problem is None
        seen.add(now.bundle.manifest.release)
        follow(home, index, means)
        is_settled(home, target)
        assert remembered(home).refused == ()
        assert home.bundle().is_lean == (target == 1)
        assert home.checkpoint() == maker.first.content[bundle.CHECKPOINT]

    steps = every_kill_point(script(index), fast_folder / "kills", prepare, check)
    assert steps > 20
    assert seen == {0, 1}


def test_a_release_that_ends_the_process_twice_while_it_is_tried_is_refused_by_name(releases_of):
    maker, phone, script = releases_of
    maker.make(1, changed={bundle.BLOCKED: b"dog\n"})
    index = maker.index(maker.states(1))
    dies = (
        script(index)
        + f"""
def die(line):
    if line.startswith("trying"):
        os.kill(os.getpid(), 9)

work(Path({str(phone.folder.parent)!r}), die)
"""
    )
    for deaths in (1, 2):
        assert subprocess.run([sys.executable, "-c", dies]).returncode == -9
        assert (phone.installed().problem, remembered(phone).deaths) == (None, deaths)
        assert phone.bundle().manifest.release == 0
    assert subprocess.run([sys.executable, "-c", dies]).returncode == 0
    is_settled(phone, 0)
    (refused,) = remembered(phone).refused
    assert refused.why.startswith("release 1: the device died 2 times while it was tried")


@pytest.fixture
def address(tmp_path, tiny_bundle, trusted, signing_key):
    """A real server in a process of its own: a thread here might hold a lock while the kills fork.
    It wants rounds of one report.
    """
    (tmp_path / "maker.pub").write_text(next(iter(trusted)))
    (tmp_path / "server.toml").write_text(
        'aggregation = "plain"\n'
        "[rules]\nreport_goal = 1\nover_selection = 1.0\nselection_s = 0.0\nretry_s = 0.0\n"
        "[policy]\nmin_examples = 5\nmin_separation = 1\n"
    )
    words = [
        "serve",
        "--dir",
        tmp_path / "server",
        "--bundle",
        tiny_bundle.path,
        "--config",
        tmp_path / "server.toml",
        "--port",
        0,
    ]
    with open(tmp_path / "server.log", "w") as log:
        command = [
            sys.executable,
            "-m",
            "fedboard.cli",
            *map(str, words),
            "--trust",
            str(tmp_path / "maker.pub"),
        ]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "server" / "address").is_file():
            assert time.monotonic() < end and server.poll() is None, (
                tmp_path / "server.log"
            ).read_text()
            time.sleep(0.05)
        with connect(tmp_path / "server", None) as operator:
            certified(operator, "default", signing_key, 100_000, DAY_S, PLAINLY)
        yield (tmp_path / "server" / "address").read_text().strip()
    finally:
        server.terminate()
        server.wait(timeout=30)


@strides(5)
def test_a_device_killed_at_any_step_of_a_turn_takes_it_again_and_counts_once_a_round(
    address, tmp_path, fast_folder, tiny_bundle, trusted, stride, record_property
):
    (tmp_path / "able.tsv").write_text("0\tbattery_charged_on\n0\twifi\n0\tscreen_off\n")
    settings = DeviceConfig(
        tuple(trusted), str(tiny_bundle.path), address, str(tmp_path / "able.tsv"), limits=EASY
    )
    script = f"""
from device_runtime.home import Home
from device_runtime.drive import Turn
from device_runtime.local import simulated
from device_runtime.transport import http

def work(folder):
    with http({address!r}) as send:
        Turn(Home.open(folder / "phone"), send, simulated(86_000.0, batch_s=0.0)).whole()
"""

    def prepare(folder):
        Home.create(
            folder / "phone", settings, [(f"i will see you {i}", float(i)) for i in range(12)]
        ).age_of(tiny_bundle.manifest.files[bundle.CHECKPOINT].sha256, 0.0)

    def check(folder):
        home = Home.open(folder / "phone")
        with http(address) as send:
            assert (
                Turn(home, send, simulated(86_010.0, batch_s=0.0)).whole().status is Status.COUNTED
            )
        with home.typing_log() as log:
            assert log.count() == 12
        assert home.kept(UNFINISHED) is None
        # what a killed process was writing is written over
        assert [path.name for path in home.folder.rglob(".*")] == []

    kills = every_kill_point(script, fast_folder / "device", prepare, check, stride=stride)
    record_property("did", f"killed at each of {kills} steps")
    assert kills > 20 / stride
    with http(address) as send:
        reports = calls.all_rounds(send).rounds
    committed = [report for report in reports if report.phase == "committed"]
    assert {report.counted for report in committed} == {1}
    # each check counted one, and so did each turn that got as far as the upload
    assert kills + 1 <= len(committed) <= 2 * (kills + 1)


def test_personal_weights_killed_at_any_step_of_a_new_judgement_are_whole_and_judged_or_not_served(
    fast_folder, tiny_bundle, trusted, signing_key
):
    """On a release that knows the user's habit what was served is thrown away and trained anew."""
    newer = fast_folder / "newer"
    better = release(tiny_bundle, likelier(tiny_bundle, *HABIT[0].split(), by=4.0))
    bundle.write(newer, better.manifest, better.content, signing_key)
    settings = DeviceConfig(tuple(trusted), str(newer), seed=1)
    first = Home.create(fast_folder / "first", settings, [(HABIT[0], float(i)) for i in range(60)])
    assert personal.update(first, tiny_bundle, 1.0, lambda: True).serves
    names, before = set(), personal.verdict(first)
    script = """
from device_runtime import personal
from device_runtime.home import Home

def work(folder):
    home = Home.open(folder / "phone")
    personal.update(home, home.bundle(), 2.0, lambda: True)
"""

    def prepare(folder):
        shutil.copytree(first.folder, folder / "phone")

    def check(folder):
        home = Home.open(folder / "phone")
        served, last = personal.served(home, home.bundle()), personal.verdict(home)
        names.add(served.name)
        assert served.name in ("", last.weights)
        assert served.name == "" or personal.is_of(last, home.bundle())
        personal.update(home, home.bundle(), 3.0, lambda: True)
        settled = personal.verdict(home)
        assert settled != before and personal.is_of(settled, home.bundle())
        assert (personal.served(home, home.bundle()).name != "") == settled.serves
        assert personal.served(home, tiny_bundle).name == ""

    assert every_kill_point(script, fast_folder / "work", prepare, check) > 5
    assert "" in names and len(names) > 1
