"""A device's day as its owner lives it: real commands, a real server process, a real daemon."""

import json
import signal
import subprocess
import sys
import time

import pytest

from device_runtime.home import SCHEDULE, Home

ABLE = "0\tbattery_charged_on\n0\twifi\n0\tscreen_off\n"
TYPED = [f"i will see you at the okapi number {i}" for i in range(12)]
SECRETS = ("okapi", "number")


def fedboard(*words: object, typed: str = "", code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fedboard.cli", *map(str, words)],
        input=typed,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def world(tmp_path, tiny_bundle, trusted, signing_key):
    """A server that wants rounds of one report and is certified, and the words that enrol a device
    with it.
    """
    (tmp_path / "maker.pub").write_text(next(iter(trusted)))
    (tmp_path / "maker.key").write_text(signing_key.private_bytes_raw().hex())
    (tmp_path / "able.tsv").write_text(ABLE)
    (tmp_path / "server.toml").write_text(
        'aggregation = "plain"\n'
        "[rules]\nreport_goal = 1\nover_selection = 1.0\nselection_s = 0.0\nretry_s = 3600.0\n"
        "[policy]\nmin_examples = 5\n"
    )
    with open(tmp_path / "server.log", "w") as log:
        command = [
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
        command = [
            sys.executable,
            "-m",
            "fedboard.cli",
            *map(str, command),
            "--trust",
            str(tmp_path / "maker.pub"),
        ]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        address = tmp_path / "server" / "address"
        wait(address.is_file)
        url = address.read_text().strip()
        key = ("--key", tmp_path / "maker.key", "--aggregation", "plain")
        said = fedboard("task", "certify", "default", "--dir", tmp_path / "server", *key)
        assert "round key is certified" in said
        yield [
            "--server",
            url,
            "--bundle",
            tiny_bundle.path,
            "--trust",
            tmp_path / "maker.pub",
            "--conditions",
            tmp_path / "able.tsv",
        ]
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait(until, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_device_is_enrolled_types_trains_uploads_waits_and_leaks_nothing(world, tmp_path):
    home = tmp_path / "phone"
    assert "is enrolled at" in fedboard("device", "enrol", home, *world)
    # again: the same key, the same name
    assert "is enrolled at" in fedboard("device", "enrol", home, *world)
    assert "12 recorded" in fedboard("device", "log", "add", home, typed="\n".join(TYPED))
    config = home / "device.toml"
    own = config.read_text().replace("spread_s = 60.0", "spread_s = 0.0")
    for default, toy in (
        ("clipping_norm = 1.0", "clipping_norm = 5.0"),
        ("least_messages = 10", "least_messages = 5"),
        ("least_words = 100", "least_words = 20"),
    ):
        assert default in own
        own = own.replace(default, toy)
    config.write_text(own)
    with open(tmp_path / "device.log", "w") as log:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "fedboard.cli", "device", "run", home], stdout=log, stderr=log
        )
        try:
            wait(lambda: any(line.outcome == "counted" for line in Home.open(home).contributions()))
            wait((home / SCHEDULE).is_file)
            assert " runs this device" in fedboard("device", "run", home, "--once", code=1)
        finally:
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(timeout=30) == 0
    said = (tmp_path / "device.log").read_text()
    assert "counted in round 1: 16 examples" in said
    assert not any(secret in said + (tmp_path / "server.log").read_text() for secret in SECRETS)
    # a new process keeps to the server's window
    once = json.loads(fedboard("device", "run", home, "--once", "--json"))
    assert (once["status"], once["cause"]) == ("not_asked", "retry_window")
    assert 3600 * 0.8 - 60 < once["retry_in_s"] <= 3600 * 1.2 * 1.2
    assert "an update of 16 examples was counted" in fedboard("device", "ledger", home)
    status = fedboard("device", "status", home)
    assert "contributed 1 times" in status
    assert "may check in again in" in status
    for path in home.rglob("*"):
        if path.is_file():
            assert not any(secret.encode() in path.read_bytes() for secret in SECRETS), path


def test_a_server_that_cannot_be_reached_is_one_clear_line_and_the_device_stays_for_another_try(
    world, tmp_path
):
    home = tmp_path / "phone"
    wrong = ["--server", "http://127.0.0.1:9", *world[2:]]
    assert "no connection" in fedboard("device", "enrol", home, *wrong, code=1)
    assert home.is_dir()
    assert "belongs to http://127.0.0.1:9" in fedboard("device", "enrol", home, *world, code=1)


def test_a_new_device_needs_a_bundle_and_sources_of_conditions_that_exist(world, tmp_path):
    assert "no bundle to install" in fedboard(
        "device", "enrol", tmp_path / "phone", "--server", "http://127.0.0.1:9", code=1
    )
    assert not (tmp_path / "phone").exists()
    for more, said in (
        (["--conditions", tmp_path / "none.tsv"], "none.tsv: cannot be read"),
        (["--stated", "weather"], "expected some of charging, unmetered, idle"),
        (["--server", "nonsense"], "not the address of a server"),
        (["--key-store", "cloud"], "expected one of file, system"),
    ):
        assert said in fedboard("device", "enrol", tmp_path / "phone", *world, *more, code=1)
        assert not (tmp_path / "phone").exists()


def test_an_older_bundle_is_refused_and_the_device_goes_on_with_the_one_it_has(
    world, tmp_path, tiny_bundle, signing_key
):
    from dataclasses import replace

    from device_runtime import bundle

    home = tmp_path / "phone"
    fedboard("device", "enrol", home, *world)
    newer = tmp_path / "newer"
    bundle.write(newer, replace(tiny_bundle.manifest, release=7), tiny_bundle.content, signing_key)
    assert "uses release 7" in fedboard("device", "install", home, newer)
    assert "release" in fedboard("device", "install", home, tiny_bundle.path, code=1)
    assert Home.open(home).bundle().manifest.release == 7
