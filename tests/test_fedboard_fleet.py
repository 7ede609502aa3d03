import json
import os
import random
import signal
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest

from device_runtime.config import to_toml
from fedboard.__main__ import program
from fleet import runs
from fleet.population import PopulationSettings
from fleet.settings import FleetSettings
from fleet.turns import TURN
from tests.test_fleet_saved import TASK

MORE = replace(TASK, rules=replace(TASK.rules, rounds=0))
SETTINGS = FleetSettings(seed=4, days=0.3, step_s=1, population=PopulationSettings(40), task=MORE)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    path = tmp_path_factory.mktemp("settings") / "fleet.toml"
    path.write_text(to_toml(SETTINGS))
    return path


def fleet(*words):
    command = program("fleet", *words)
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    done = fleet("simulate", "--config", settings, "--out", run, "--json")
    assert done.returncode == 0, done.stderr
    return run, json.loads(done.stdout)


def began(*words):
    return subprocess.Popen(
        program("fleet", *words), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )


def step_of(run):
    """The newest step that a run has saved; -2 before there is one."""
    steps = [-2]
    for manifest in run.glob("state/*/saved.json"):
        steps.append(json.loads(manifest.read_bytes())["step"])
    return max(steps)


def wait_for_a_save(process, run, after):
    while process.poll() is None and step_of(run) <= after:
        time.sleep(0.02)


def bytes_of(run):
    names = ("turns.bin", "tables/rounds.jsonl", "summary.json")
    return {name: (run / name).read_bytes() for name in names} | {
        "blobs": sorted(os.listdir(run / "server/blobs"))
    }


def test_a_run_says_what_came_of_it_and_is_written_down(whole):
    run, summary = whole
    assert summary["devices"] == 40
    assert summary == json.loads((run / "summary.json").read_bytes())
    assert not (run / "state").exists()


def test_a_fleet_that_is_killed_again_and_again_ends_with_the_same_bytes(whole, settings, tmp_path):
    run = tmp_path / "run"
    words = ("simulate", "--config", settings, "--out", run)
    kills, after, chance = 0, -2, random.Random(1)
    while True:
        process = began(*words)
        wait_for_a_save(process, run, after)
        if process.poll() is not None:
            break
        time.sleep(chance.uniform(0.0, 1.5))  # somewhere before the next save, or in it
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills, after = kills + 1, step_of(run)
        words = ("simulate", "--out", run, "--resume")
    assert process.returncode == 0
    assert kills > 1
    assert bytes_of(run) == bytes_of(whole[0])


def test_ctrl_c_saves_and_says_how_to_go_on(whole, settings, tmp_path):
    run = tmp_path / "a run"
    command = program("fleet", "simulate", "--config", settings, "--out", run)
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wait_for_a_save(process, run, -2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert f"fedboard fleet simulate --out '{run}' --resume" in said.decode()
    assert fleet("simulate", "--out", run, "--resume").returncode == 0
    assert bytes_of(run) == bytes_of(whole[0])


def test_a_replay_is_identical(whole):
    done = fleet("replay", whole[0], "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["identical"]
    assert said["turns"] == whole[1]["turns"]


def test_a_replay_says_which_rounds_differ(whole, tmp_path):
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", whole[0], run], check=True)
    rounds = (run / "tables/rounds.jsonl").read_text()
    (run / "tables/rounds.jsonl").write_text(rounds.replace('"counted":5', '"counted":6', 1))
    done = fleet("replay", run)
    assert done.returncode == 1
    assert "counted 6, now 5" in done.stdout


@pytest.mark.parametrize("name", runs.presets())
def test_every_preset_is_read(name):
    assert runs.preset(name).task.rules.report_goal > 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("simulate",), "expected --preset or --config, one of the two"),
        (("simulate", "--preset", "huge"), "expected one of flaky, gboard-1m, gboard-small, tiny"),
        (("simulate", "--preset", "tiny", "--engine", "gpu"), "expected one of here, pool, ray"),
        (("simulate", "--preset", "tiny", "--data", "chitchat"), "expected --bundle with --data"),
        (("simulate", "--preset", "tiny", "--trust", "key.pub"), "expected --bundle with --trust"),
        (("simulate", "--out", "nowhere", "--resume"), "is no fleet's run"),
        (("replay", "."), "is no fleet's run"),
        (("show", "."), "is no fleet's run"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words, expected, tmp_path):
    done = subprocess.run(program("fleet", *words), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_round_can_be_followed_device_by_device(whole):
    run, _ = whole
    rows = np.frombuffer((run / "turns.bin").read_bytes(), TURN)
    done = fleet("show", run, "--round", 1, "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)["turns"]
    assert shown["device"] == rows["device"][rows["round"] == 1].tolist()
    assert set(shown["class"]) <= {"low", "middle", "high"}
    said = fleet("show", run, "--round", 1).stdout
    assert "round 1: " in said


def test_a_round_that_was_not_is_said(whole):
    done = fleet("show", whole[0], "--round", 100_000)
    assert done.returncode == 1
    assert "expected a round of the fleet" in done.stderr


def test_a_folder_of_somebody_else_is_left_alone(settings, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = fleet("simulate", "--config", settings, "--out", tmp_path)
    assert done.returncode == 1
    assert "holds files that are not a fleet" in done.stderr
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_settings_that_cannot_be_lived_by_leave_nothing_behind(tmp_path):
    (tmp_path / "fleet.toml").write_text('[population]\nfolder = "nowhere"\n')
    out = tmp_path / "run"
    words = ("fleet", "simulate", "--config", tmp_path / "fleet.toml", "--out", out)
    done = subprocess.run(program(*map(str, words)), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("ConfigError: fleet.toml: expected training.bundle")
    assert not out.exists()


def test_the_report_of_a_fleet_can_be_written_again(whole):
    run, _ = whole
    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    done = subprocess.run(program("report", str(run)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (run / "report.html").read_bytes() == before
