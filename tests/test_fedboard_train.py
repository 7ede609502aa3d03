"""The training stage as people run it: real processes, killed and resumed, interrupted, started from another run."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from device_runtime import weights
from fedboard.run import Run

RECIPE = """
[recipe]
size = "tiny"
vocabulary = 40
rounds = 12
cohort = 4
evaluate_every = 4
save_every = 3
[recipe.plan]
batch_size = 4
length = 6
learning_rate = 0.3
[recipe.server]
learning_rate = 0.02
averaging = 0.5
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus_file):
    from model import corpus

    path = tmp_path_factory.mktemp("train")
    corpus.import_file(corpus_file, path / "corpus")
    (path / "c.toml").write_text(RECIPE)
    return path


def started(folder, *arguments: str, out: str) -> subprocess.Popen:
    """`fedboard train` in a process of its own, its output in OUT.log: TFF must never be piped."""
    with open(folder / f"{out}.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "fedboard.cli", "train", "--out", str(folder / out), *arguments], cwd=folder, stdout=log, stderr=log
        )


def trained(folder, *arguments: str, out: str) -> Run:
    assert started(folder, *arguments, out=out).wait(300) == 0, (folder / f"{out}.log").read_text()
    return Run(folder / out)


def wait_for(path, child: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while not path.exists():
        assert child.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(folder) -> Run:
    return trained(folder, "--config", "c.toml", "--data", "corpus", "--json", out="whole")


def rounds_of(run: Run) -> list[dict]:
    with open(run.metrics, newline="") as file:
        return [{key: row[key] for key in ("round", "loss", "top1")} for row in csv.DictReader(file)]


def test_a_run_killed_twice_and_resumed_ends_with_the_same_bytes(folder, uninterrupted):
    run = Run(folder / "killed")
    child = started(folder, "--config", "c.toml", "--data", "corpus", out="killed")
    wait_for(run.checkpoints / "state" / "program_state_3", child)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child = started(folder, "--resume", out="killed")
    wait_for(run.checkpoints / "state" / "program_state_9", child)
    child.send_signal(signal.SIGKILL)
    child.wait()
    trained(folder, "--resume", out="killed")
    assert run.last.read_bytes() == uninterrupted.last.read_bytes()
    assert run.best.read_bytes() == uninterrupted.best.read_bytes()
    assert rounds_of(run) == rounds_of(uninterrupted)
    assert "going on after round" in (folder / "killed.log").read_text()


def test_ctrl_c_finishes_the_round_and_the_run_goes_on_from_it(folder, uninterrupted):
    run = Run(folder / "interrupted")
    child = started(folder, "--config", "c.toml", "--data", "corpus", out="interrupted")
    wait_for(run.last, child)
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 130
    said = (folder / "interrupted.log").read_text()
    assert "finishing the round" in said
    assert "--resume` goes on" in said
    trained(folder, "--resume", out="interrupted")
    assert run.last.read_bytes() == uninterrupted.last.read_bytes()


def test_json_gives_one_event_a_round(folder, uninterrupted):
    events = [json.loads(line) for line in (folder / "whole.log").read_text().splitlines()]
    assert [event["round"] for event in events] == list(range(1, 13))
    assert all(event["targets"] > 0 and event["dropped"] == 0 for event in events)
    assert [event["round"] for event in events if "top1" in event] == [1, 4, 8, 12]


def test_central_training_and_a_start_from_another_run(folder, uninterrupted):
    central = trained(folder, "--config", "c.toml", "--data", "corpus", "--central", "--init", "whole", out="central")
    first, last = weights.read(uninterrupted.best), weights.read(central.best)
    assert last.tokenizer == first.tokenizer
    assert (central.path / "tokenizer.model").read_bytes() == (uninterrupted.path / "tokenizer.model").read_bytes()
    losses = [float(row["loss"]) for row in rounds_of(central)]
    assert losses[0] < float(rounds_of(uninterrupted)[0]["loss"]) - 0.2  # it started where the other run ended
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--resume", "--out", "nowhere"], "nowhere: holds no run to go on with"),
        (["--resume", "--out", "whole", "--seed", "1"], "goes on with the run as it was, found --seed"),
        (["--central", "--resume", "--out", "whole"], "trains in one go"),
        (["--out", "x", "--init", "nowhere.safetensors"], "no such file or folder"),
        (["--out", "x", "--data", "corpus", "--cohort", "400", "--size", "tiny"], "need 400; the corpus has"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(folder, uninterrupted, arguments, says):
    before = uninterrupted.config.read_bytes()
    done = subprocess.run([sys.executable, "-m", "fedboard.cli", "train", *arguments], capture_output=True, text=True, cwd=folder, env=os.environ)
    assert done.returncode == 1
    assert says in done.stderr
    assert not (folder / "x").exists()
    assert uninterrupted.config.read_bytes() == before
