"""The training stage as people run it: killed, resumed, interrupted, started from another run.

All processes are real.
"""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from device_runtime import accountant, weights
from device_runtime.accountant import Participation
from device_runtime.errors import RunError
from device_runtime.shown import rounded_up
from fedboard import spent
from fedboard.__main__ import program
from fedboard.run import Run, create, mark_of
from fleet import population
from fleet.population import PopulationSettings
from tests import forked

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
PLAIN = ("--config", "c.toml", "--data", "corpus")
ENCODED = (*PLAIN, "--bits", "8")
CENTRAL = (*PLAIN, "--central", "--init", "whole")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus_file):
    from model import imported

    path = tmp_path_factory.mktemp("train")
    imported.import_file(corpus_file, path / "corpus")
    (path / "c.toml").write_text(RECIPE)
    return path


def started(folder, *arguments: str, out: str, room: int | None = None) -> forked.Child:
    """`fedboard train` in a process of its own, its output in OUT.log."""
    log = folder / f"{out}.log"
    words = ["train", "--out", folder / out, *arguments]
    return forked.started(words, forked.Around(folder, log, log, room=room))


def trained(folder, *arguments: str, out: str) -> Run:
    assert started(folder, *arguments, out=out).wait(300) == 0, (folder / f"{out}.log").read_text()
    return Run(folder / out)


def wait_for(path, child: forked.Child) -> None:
    deadline = time.monotonic() + 200
    while not path.exists():
        assert child.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(folder) -> Run:
    """A run that starts as a person starts it. TFF must never be piped."""
    command = program("train", "--out", "whole", "--json", *ENCODED)
    with open(folder / "whole.log", "wb") as log:
        done = subprocess.run(command, cwd=folder, stdout=log, stderr=log)
    assert done.returncode == 0, (folder / "whole.log").read_text()
    return Run(folder / "whole")


@pytest.fixture(scope="module", autouse=True)
def deserted(folder, uninterrupted) -> forked.Child:
    """A training on a worker that nobody runs, over an earlier run. It waits half a minute for an
    answer: so it is begun first.
    """
    shutil.copytree(folder / "whole", folder / "deserted")
    elsewhere = ("--overwrite", "--workers", "127.0.0.1:9")
    return started(folder, *PLAIN, *elsewhere, out="deserted")


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
    arguments = ENCODED
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
    child = started(folder, *ENCODED, out="interrupted")
    wait_for(run.last, child)
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 130
    said = (folder / "interrupted.log").read_text()
    assert "finishing the round" in said
    (line,) = (line for line in said.splitlines() if line.startswith("stopped after round"))
    command = shlex.split(line.partition("to go on: fedboard ")[2])
    assert command == ["train", "--out", str(run.path), "--resume"]
    trained(folder, "--resume", out="interrupted")
    assert run.last.read_bytes() == uninterrupted.last.read_bytes()


def test_clients_are_drawn_as_a_populations_devices_are_ready_also_after_a_kill(folder):
    devices = population.make(PopulationSettings(devices=40), users=4, seed=2)
    population.save(devices, folder / "devices")
    arguments = (*PLAIN, "--population", folder / "devices", "--cohort", "2")
    whole = trained(folder, *arguments, out="there")
    child = started(folder, *arguments, out="there-killed")
    run = Run(folder / "there-killed")
    wait_for(run.checkpoints / "state" / "program_state_6", child)
    child.send_signal(signal.SIGKILL)
    child.wait(60)
    shutil.rmtree(folder / "devices")  # the run has its own copy
    trained(folder, "--resume", out="there-killed")
    assert run.last.read_bytes() == whole.last.read_bytes()
    said = (folder / "there.log").read_text()
    assert "clients are drawn as the devices of" in said


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
    central = trained(folder, *CENTRAL, out="central")
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
    child = started(folder, *CENTRAL, out="again")
    wait_for(again.checkpoints / "state" / "program_state_5", child)
    child.send_signal(signal.SIGKILL)
    child.wait()
    trained(folder, "--resume", out="again")
    assert again.last.read_bytes() == central.last.read_bytes()
    assert again.best.read_bytes() == central.best.read_bytes()
    assert rounds_of(again) == rounds_of(central)


def test_a_network_of_pieces_trains_from_the_command_line(folder):
    pieces = ["--tokenizer", "unigram", "--vocabulary", "60", "--rounds", "2"]
    run = trained(folder, *PLAIN, *pieces, out="pieces")
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


PRIVATE = """
encoded = true
min_separation = 2
compression = 4
[recipe.client]
weighting = "uniform"
[recipe.privacy]
mechanism = "blt"
noise_multiplier = 40.0
epsilon = 0.2
report_goal = 4000
decays = [0.9]
scales = [0.4]
[recipe.plan]
"""


def test_a_private_run_tells_what_it_spent_goes_on_with_its_account_and_ends_before_its_budget(
    folder,
):
    """Killed on the way. Whose guarantee it is stands in the log and in the lineage."""
    (folder / "p.toml").write_text(RECIPE.replace("[recipe.plan]\n", PRIVATE, 1))
    run = Run(folder / "private")
    child = started(folder, "--config", "p.toml", "--data", "corpus", out="private")
    wait_for(run.state / "program_state_3", child)
    child.kill()
    child.wait()
    trained(folder, "--resume", out="private")
    with open(run.metrics, newline="") as file:
        rows = list(csv.DictReader(file))
    noise, last = run.settings().recipe.noise, rows[-1]
    happened = Participation(
        (len(rows),), int(float(last["separation"])) or None, int(float(last["participations"]))
    )
    account = accountant.account(noise, happened)
    assert float(last["rho"]) == account.rho
    assert float(last["epsilon"]) == account.epsilon <= 0.2
    assert len(rows) < 12
    said = (folder / "private.log").read_text()
    assert f"ended before round {len(rows) + 1}, which would spend epsilon" in said
    assert "4 clients stand for 4,000 reports a round" in said
    lineage = spent.privacy_of(run.settings(), spent.of(run))
    assert f"epsilon {rounded_up(account.epsilon)} at delta 1e-10" in lineage
    assert "this is no guarantee for them" in lineage


def test_a_run_is_not_resumed_to_fewer_rounds_than_it_has_done(folder, uninterrupted):
    from fedboard import train as stage

    assert stage.resumed(uninterrupted.path, 20).recipe.rounds == 20
    with pytest.raises(RunError, match="expected 12 or more, which the run has done, found 11"):
        stage.resumed(uninterrupted.path, 11)


STILL = """
[recipe]
size = "tiny"
vocabulary = 40
rounds = 12
cohort = 2
evaluate_every = 1
save_every = 1
patience = 3
[recipe.plan]
batch_size = 4
length = 6
[recipe.server]
learning_rate = 1e-30
"""


def test_patience_ends_a_run_that_gets_no_better_and_says_which_round_was_best(folder):
    """Its weights stay as they are, so no look is better than the first: of three more it is tired.
    Killed on the way, it stops at the same round; and it goes on only if it is given more.
    """
    (folder / "still.toml").write_text(STILL)
    run = Run(folder / "still")
    child = started(folder, "--config", "still.toml", "--data", "corpus", out="still")
    wait_for(run.state / "program_state_2", child)
    child.kill()
    child.wait()
    trained(folder, "--resume", out="still")
    said = (folder / "still.log").read_text()
    assert "; stopped after round 4: no better for 3 looks; raise --patience or --rounds" in said
    assert "best round 1: validation top-1" in said
    assert [row["round"] for row in rounds_of(run)] == ["1", "2", "3", "4"]
    assert weights.read(run.best).round == 1

    before = run.metrics.read_bytes()
    trained(folder, "--resume", out="still")
    assert (folder / "still.log").read_text().count("; stopped after round 4:") == 2
    assert run.metrics.read_bytes() == before

    trained(folder, "--resume", "--patience", "4", out="still")
    assert [row["round"] for row in rounds_of(run)][-1] == "5"
    trained(folder, "--resume", "--rounds", "13", out="still")  # four more looks
    assert [row["round"] for row in rounds_of(run)][-1] == "9"


def test_a_round_says_how_loss_and_top_1_are_spread_and_a_look_how_users_top_1_is(uninterrupted):
    with open(uninterrupted.metrics, newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        low, middle, high = (float(row[f"loss_p{percent}"]) for percent in (10, 50, 90))
        assert low <= middle <= high
        assert low <= float(row["loss"]) <= high
        assert 0 <= float(row["train_top1_p10"]) <= float(row["train_top1_p90"]) <= 1
    looks = [row for row in rows if row["top1"]]
    assert [row["round"] for row in looks] == ["1", "4", "8", "12"]
    assert all(float(row["top1_p10"]) <= float(row["top1_p90"]) for row in looks)


def test_a_run_is_resumed_from_any_folder_on_its_own_corpus_and_on_no_other(
    folder, uninterrupted, tmp_path
):
    from model import corpora, imported

    mark = mark_of(uninterrupted.path)
    assert mark.corpus.name == "corpus"
    assert mark.corpus.path == str(folder / "corpus")
    run = Run(folder / "anywhere")
    child = started(folder, *ENCODED, out="anywhere")
    wait_for(run.state / "program_state_3", child)
    child.kill()
    child.wait()

    os.rename(folder / "corpus", tmp_path / "moved")
    try:
        refused = started(folder, "--resume", out="anywhere")
        assert refused.wait(100) == 1
        said = (folder / "anywhere.log").read_text()
        assert f"digest {mark.corpus.digest[:12]}, expected at {folder / 'corpus'}" in said

        other = tmp_path / "other.csv"
        other.write_text("user,text\n" + "".join(f"user{i},we will see them\n" for i in range(40)))
        imported.import_file(other, folder / "corpus")
        digest = corpora.load(folder / "corpus").digest
        refused = started(folder, "--resume", out="anywhere")
        assert refused.wait(100) == 1
        said = (folder / "anywhere.log").read_text()
        assert f"found digest {digest[:12]} at {folder / 'corpus'}" in said
    finally:
        shutil.rmtree(folder / "corpus", ignore_errors=True)
        shutil.copytree(tmp_path / "moved", folder / "corpus")
    trained(folder, "--resume", "--data", str(tmp_path / "moved"), out="anywhere")
    assert run.last.read_bytes() == uninterrupted.last.read_bytes()
    assert mark_of(run.path).corpus.path == str(tmp_path / "moved")

    (run.path / "run.json").unlink()  # as earlier versions left a run
    trained(folder, "--resume", out="anywhere")
    assert "does not hold the digest of its corpus" in (folder / "anywhere.log").read_text()
    assert mark_of(run.path).corpus == mark.corpus


def test_a_run_without_room_ends_in_one_line_and_goes_on_when_there_is_some(folder, uninterrupted):
    """Room is taken from the files of one process, as a full disk would from all: enough for
    weights, and not for a saved state.
    """
    name = "full"
    code = started(folder, *ENCODED, out=name, room=60_000).wait(300)
    said = (folder / f"{name}.log").read_text()
    assert code == 1, said
    assert "Traceback" not in said
    (line,) = (line for line in said.splitlines() if line.startswith("RunError"))
    assert "cannot be written (File too large); make room, then: fedboard train" in line
    assert not list((folder / name).rglob("*_temp*"))
    trained(folder, "--resume", out=name)
    assert Run(folder / name).last.read_bytes() == uninterrupted.last.read_bytes()


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
        (["--out", "x", *PLAIN, "--init", "nowhere.safetensors"], "no such file or folder"),
        (["--out", "x", "--seed", "-1"], "seed: expected 0 to 9,223,372,036,854,775,807, found -1"),
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


def test_a_worker_that_does_not_answer_is_named_before_anything_is_written(
    folder, uninterrupted, deserted
):
    assert deserted.wait(60) == 1
    assert "127.0.0.1:9" in (folder / "deserted.log").read_text()
    assert Run(folder / "deserted").config.read_bytes() == uninterrupted.config.read_bytes()
