"""The training stage as people run it: killed, resumed, interrupted, started from another run.

All processes are real.
"""

import asyncio
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from device_runtime import weights
from device_runtime.errors import CheckpointError, RunError
from fedboard.run import Run, create

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
    from model import imported

    path = tmp_path_factory.mktemp("train")
    imported.import_file(corpus_file, path / "corpus")
    (path / "c.toml").write_text(RECIPE)
    return path


def started(folder, *arguments: str, out: str) -> subprocess.Popen:
    """`fedboard train` in a process of its own, its output in OUT.log: TFF must never be piped."""
    with open(folder / f"{out}.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "fedboard.cli", "train", "--out", str(folder / out), *arguments],
            cwd=folder,
            stdout=log,
            stderr=log,
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
    return trained(
        folder, "--config", "c.toml", "--data", "corpus", "--bits", "8", "--json", out="whole"
    )


def rounds_of(run: Run) -> list[dict]:
    with open(run.metrics, newline="") as file:
        return [
            {key: row[key] for key in ("round", "loss", "top1")} for row in csv.DictReader(file)
        ]


def test_a_run_ended_three_times_and_resumed_ends_with_the_same_bytes(folder, uninterrupted):
    """Killed before the first saved state, killed after a later one, and left by a second
    Ctrl-C.
    """
    run = Run(folder / "killed")
    state = run.checkpoints / "state"
    arguments = ["--config", "c.toml", "--data", "corpus", "--bits", "8"]
    for seen, signals in (
        (run.last, [signal.SIGKILL]),
        (state / "program_state_6", [signal.SIGKILL]),
        (state / "program_state_9", [signal.SIGINT] * 2),
    ):
        child = started(folder, *arguments, out="killed")
        wait_for(seen, child)
        for one in signals:
            child.send_signal(one)
            time.sleep(0.1)
        assert child.wait(60) in (-signal.SIGKILL, 130)
        arguments = ["--resume"]
    trained(folder, "--resume", out="killed")
    assert run.last.read_bytes() == uninterrupted.last.read_bytes()
    assert run.best.read_bytes() == uninterrupted.best.read_bytes()
    assert rounds_of(run) == rounds_of(uninterrupted)
    assert "going on after round" in (folder / "killed.log").read_text()


def test_ctrl_c_finishes_the_round_and_the_run_goes_on_from_it(folder, uninterrupted):
    run = Run(folder / "interrupted")
    child = started(
        folder, "--config", "c.toml", "--data", "corpus", "--bits", "8", out="interrupted"
    )
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
    assert all(
        event["targets"] > 0 and event["dropped"] == 0 and event["upload_bytes"] > 0
        for event in events
    )
    assert [event["round"] for event in events if "top1" in event] == [1, 4, 8, 12]


def test_bits_encode_the_updates_as_devices_do(uninterrupted):
    recipe = uninterrupted.settings().recipe
    assert (recipe.encoded, recipe.plan.bits) == (True, 8)


def test_central_training_starts_from_another_run_and_goes_on_after_a_kill(folder, uninterrupted):
    central = trained(
        folder,
        "--config",
        "c.toml",
        "--data",
        "corpus",
        "--central",
        "--init",
        "whole",
        out="central",
    )
    first, last = weights.read(uninterrupted.best), weights.read(central.best)
    assert last.tokenizer == first.tokenizer
    assert (central.path / "tokenizer.model").read_bytes() == (
        uninterrupted.path / "tokenizer.model"
    ).read_bytes()
    losses = [float(row["loss"]) for row in rounds_of(central)]
    # it started where the other run ended
    assert losses[0] < float(rounds_of(uninterrupted)[0]["loss"]) - 0.2
    assert losses[-1] < losses[0]

    again = Run(folder / "again")
    child = started(
        folder,
        "--config",
        "c.toml",
        "--data",
        "corpus",
        "--central",
        "--init",
        "whole",
        out="again",
    )
    wait_for(again.checkpoints / "state" / "program_state_5", child)
    child.send_signal(signal.SIGKILL)
    child.wait()
    trained(folder, "--resume", out="again")
    assert again.last.read_bytes() == central.last.read_bytes()
    assert again.best.read_bytes() == central.best.read_bytes()
    assert rounds_of(again) == rounds_of(central)


def test_a_network_of_pieces_trains_from_the_command_line(folder):
    arguments = [
        "--config",
        "c.toml",
        "--data",
        "corpus",
        "--tokenizer",
        "unigram",
        "--vocabulary",
        "60",
        "--rounds",
        "2",
    ]
    run = trained(folder, *arguments, out="pieces")
    assert [float(row["top1"]) >= 0 for row in rounds_of(run)] == [True, True]


def test_a_run_killed_before_its_first_weights_were_written_still_starts_from_another_run(
    folder, uninterrupted, tiny_corpus
):
    from fedboard import train as stage

    settings = replace(uninterrupted.settings(), init=str(uninterrupted.path))
    run = create(folder / "hardly", settings, replace=False)
    words, first = stage.beginning(run.settings(), run, tiny_corpus, resume=True)
    expected = weights.read(uninterrupted.best)
    assert words.hash == expected.tokenizer
    assert all((first.weights[name] == array).all() for name, array in expected.weights.items())


def test_a_damaged_saved_state_is_named_and_the_one_before_still_serves(tmp_path):
    from fedboard import train as stage

    with asyncio.Runner() as loop:
        states = stage._States(tmp_path, loop.run)
        for number in (10, 20):
            states.save([np.full(1000, number, np.float32)], number)
        (damaged,) = (tmp_path / "program_state_20").rglob("variables.data*")
        os.truncate(damaged, 100)
        with pytest.raises(
            CheckpointError,
            match=r"program_state_20: cannot be read .*remove it to go on from the one before",
        ):
            states.load([np.zeros(1000, np.float32)])
        shutil.rmtree(tmp_path / "program_state_20")
        assert states.load([np.zeros(1000, np.float32)])[0][0] == 10


def test_a_run_is_not_resumed_to_fewer_rounds_than_it_has_done(folder, uninterrupted):
    from fedboard import train as stage

    assert stage.resumed(uninterrupted.path, 20).recipe.rounds == 20
    with pytest.raises(RunError, match="expected 12 or more, which the run has done, found 11"):
        stage.resumed(uninterrupted.path, 11)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--resume", "--out", "nowhere"], "nowhere: holds no run to go on with"),
        (
            ["--resume", "--out", "whole", "--seed", "1"],
            "goes on with the run as it was, found --seed",
        ),
        (["--central", "--resume", "--out", "whole"], "found --central"),
        (["--central", "--bits", "4", "--out", "x"], "sends no updates"),
        (["--out", "x", "--init", "nowhere.safetensors"], "no such file or folder"),
        (["--out", "x", "--seed", "-1"], "seed: expected 0 to 9,223,372,036,854,775,807, found -1"),
        (
            [
                "--out",
                "whole",
                "--overwrite",
                "--data",
                "corpus",
                "--size",
                "tiny",
                "--cohort",
                "4",
                "--workers",
                "127.0.0.1:9",
            ],
            "127.0.0.1:9",
        ),
        (
            ["--out", "x", "--data", "corpus", "--cohort", "400", "--size", "tiny"],
            "need 400; the corpus has",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    folder, uninterrupted, arguments, says
):
    before = uninterrupted.config.read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "fedboard.cli", "train", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ,
    )
    assert done.returncode == 1
    assert says in done.stderr
    assert not (folder / "x").exists()
    assert uninterrupted.config.read_bytes() == before
