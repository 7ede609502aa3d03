"""Numbers that no command can use: refused in one line, with TensorFlow out of reach."""

import pytest
import typer

from device_runtime.errors import ConfigError
from fedboard.cli import app
from fedboard.demo import Demo
from fedboard.train import How

HUGE = "9" * 31


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("train --out x --rounds 0", "rounds: expected 1 to 1,000,000, found 0"),
        (f"train --out x --rounds {HUGE}", "rounds: expected 1 to 1,000,000, found a number"),
        ("train --out x --cohort -5", "cohort: expected 1 to 100,000, found -5"),
        ("train --out x --vocabulary 0", "vocabulary: expected 1 to 1,000,000, found 0"),
        ("train --out x --seed -1", "seed: expected 0 to 9,223"),
        ("train --out x --patience -1", "patience: expected 0 to 1,000,000, found -1"),
        ("train --out x --size huge", "size: expected one of tiny, small, gboard, found 'huge'"),
        ("train --out x --tokenizer bpe", "tokenizer: expected one of words, unigram"),
        ("export x --learning-rate nan", "learning_rate: expected 1e-09 to 100, found nan"),
        ("export x --learning-rate -0.5", "learning_rate: expected 1e-09 to 100, found -0.5"),
        ("export x --learning-rate 0", "learning_rate: expected 1e-09 to 100, found 0"),
        ("export x --clipping-norm inf", r"clipping_norm: expected 1e-09 to 1e\+06, found inf"),
        ("export x --bits 17", "bits: expected 1 to 16, found 17"),
        (f"export x --release {HUGE}", "release: expected 0 to 2,147,483,647, found a number"),
        ("evaluate kn2 --vocabulary 0", "--vocabulary: expected 1 to 1,000,000, found 0"),
        ("evaluate kn2 --vocabulary -5", "--vocabulary: expected 1 to 1,000,000, found -5"),
        ("demo --out x --size huge", "size: expected one of tiny, small, gboard, found 'huge'"),
    ],
)
def test_a_number_no_command_can_use_is_refused_before_anything_is_loaded_or_written(
    arguments, says, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=says) as refused:
        app(arguments.split(), standalone_mode=False)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        "train --out x --round-deadline nan",
        "train --out x --round-deadline -1",
        "train --out x --round-deadline inf",
        "train --out x --bits 0",
        "demo --out x --vocabulary 0",
        "demo --out x --min-examples -1",
        f"demo --out x --devices {HUGE}",
        "demo --out x --rounds 0",
        "demo --out x --seed -1",
    ],
)
def test_so_is_one_that_an_option_refuses_by_itself(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((typer.BadParameter, ConfigError)):
        app(arguments.split(), standalone_mode=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("deadline", [float("nan"), float("inf"), -1.0, 0.0])
def test_a_training_holds_its_deadline_itself(deadline):
    with pytest.raises(ConfigError, match=r"--round-deadline: expected 0\.001 to"):
        How(deadline_s=deadline)


@pytest.mark.parametrize("numbers", [{"devices": 4}, {"processes": 0}, {"min_examples": -1}])
def test_so_does_a_demo(numbers):
    with pytest.raises(ConfigError, match="expected"):
        Demo(**numbers)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("[recipe.client]\nweight_cap = inf", "client.weight_cap: expected .*, found inf"),
        ("[recipe.server]\nlearning_rate = -0.5", "server.learning_rate: .*, found -0.5"),
        ("[recipe.plan]\nlearning_rate = 0.0", "plan.learning_rate: .*, found 0;"),
        ("[recipe.central]\npasses = nan", "central.passes: .*, found nan"),
        ("[recipe]\nrounds = true", "rounds: expected int, found bool True"),
        (f"[recipe]\nseed = {HUGE}", "seed: expected .*, found a number of more than 30 digits"),
        (f"[recipe]\nseed = {'9' * 5000}", r"own\.toml: not TOML"),
        ("[recipe.server.schedule]\nfinal = 1e400", "schedule.final: expected 0 to 1, found inf"),
    ],
)
def test_a_file_with_a_number_no_training_can_use_is_refused_as_well(
    table, says, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").write_text(table)
    with pytest.raises(ConfigError, match=says):
        app(["train", "--out", "x", "--config", "own.toml"], standalone_mode=False)
    assert [path.name for path in tmp_path.iterdir()] == ["own.toml"]
