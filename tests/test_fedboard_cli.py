"""Bad input on the command line: one clear line, an exit code that is not 0, no half file."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from device_runtime import weights
from fedboard import cli, doctor
from fedboard.cli import app
from fedboard.pages import application, walk
from model import imported
from tests.test_imports import ROOMS, files, imports

ROOT = Path(__file__).parents[1]


def fedboard(*words: object, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "fedboard.cli", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


def refused(done: subprocess.CompletedProcess, *parts: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for part in parts:
        assert part in lines[0]


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_import_of_a_missing_an_empty_and_a_wordless_file(tmp_path):
    refused(fedboard("data", "import", "none.jsonl", "--out", "d", cwd=tmp_path), "none.jsonl")
    refused(
        fedboard("data", "import", jsonl(tmp_path / "empty.jsonl", []), "--out", "d", cwd=tmp_path),
        "empty.jsonl",
    )
    rows = [{"user": "a", "text": ""}, {"text": "no user"}]
    refused(
        fedboard(
            "data", "import", jsonl(tmp_path / "void.jsonl", rows), "--out", "d", cwd=tmp_path
        ),
        "void.jsonl",
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.jsonl", "void.jsonl"]


def test_import_of_too_few_users_to_split_says_how_many_there_are(tmp_path):
    rows = [{"user": "only me", "text": f"hello number {i} of many"} for i in range(50)]
    refused(
        fedboard("data", "import", jsonl(tmp_path / "one.jsonl", rows), "--out", "d", cwd=tmp_path),
        "1 user",
    )
    assert not (tmp_path / "d").exists()


def test_training_on_an_unknown_corpus_or_with_an_unknown_setting_writes_nothing(tmp_path):
    refused(fedboard("train", "--data", "nowhere", "--out", "runs/x", cwd=tmp_path), "nowhere")
    (tmp_path / "c.toml").write_text("[recipe]\nround = 3\n")
    refused(
        fedboard("train", "--config", "c.toml", "--out", "runs/x", cwd=tmp_path),
        "recipe.round",
        "unknown key",
    )
    refused(
        fedboard("train", "--size", "huge", "--out", "runs/x", cwd=tmp_path), "tiny, small, gboard"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", [["train"], ["demo", "--rounds", "1"]])
def test_a_folder_of_somebody_else_is_not_touched(tmp_path, corpus_file, command):
    imported.import_file(corpus_file, tmp_path / "chat")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    small = ["--min-examples", "20"] if command[0] == "demo" else []
    refused(
        fedboard(*command, *small, "--data", "chat", "--out", "photos", cwd=tmp_path),
        "photos",
        f"files that are not a {'run' if command[0] == 'train' else 'demo'} of Fedboard",
    )
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


@pytest.mark.tensorflow
def test_an_output_folder_that_cannot_be_written_is_named(tmp_path, corpus_file):
    (tmp_path / "file").write_text("in the way")
    imported.import_file(corpus_file, tmp_path / "chat")
    refused(
        fedboard("train", "--data", "chat", "--out", "file/run", cwd=tmp_path),
        "file/run",
        "cannot be written",
    )


def test_a_damaged_checkpoint_and_an_unknown_target_are_refused(tmp_path, corpus_file):
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 100)
    refused(fedboard("export", "x.safetensors", cwd=tmp_path), "x.safetensors")
    refused(
        fedboard("bundle", "build", "x.safetensors", "--for", "watch", cwd=tmp_path),
        "no class 'watch'",
        "high or low or middle",
    )
    imported.import_file(corpus_file, tmp_path / "chat")
    refused(fedboard("evaluate", "kn9", "--data", "chat", cwd=tmp_path), "kn9", "unigram")
    refused(fedboard("predict", "nothing", "hi", cwd=tmp_path), "nothing")
    refused(fedboard("report", "nothing", cwd=tmp_path), "nothing")
    refused(
        fedboard("device", "run", "nothing", "--server", "http://127.0.0.1:9", cwd=tmp_path),
        "nothing",
    )


def test_two_systems_of_any_kind_are_compared_by_user(
    tmp_path, corpus_file, tiny_checkpoint, tiny_vocabulary
):
    assert fedboard("data", "import", corpus_file, "--out", "chat", cwd=tmp_path).returncode == 0
    (tmp_path / "new.safetensors").write_bytes(weights.to_bytes(tiny_checkpoint))
    (tmp_path / "tokenizer.model").write_bytes(tiny_vocabulary.model)
    words = ["evaluate", "new.safetensors", "kn3", "--data", "chat", "--paired"]
    done = fedboard(*words, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    untrained, trigram = printed["systems"]
    assert (untrained["kind"], trigram["kind"]) == ("checkpoint", "baseline")
    assert untrained["summary"]["targets"] == trigram["summary"]["targets"]
    difference = printed["second_minus_first"]
    # all of them typed 20 words or more
    assert difference["users"] == untrained["summary"]["users"] == len(untrained["users"])
    for which in ("top1", "top3", "keystroke_saving"):
        assert difference[which]["change"] == pytest.approx(
            trigram["summary"][which] - untrained["summary"][which]
        )
    own = [trigram["users"][user] - share for user, share in untrained["users"].items()]
    assert difference["top1"]["by_user"][0] == pytest.approx(sum(own) / len(own))
    assert difference["top1"]["gained"] == sum(gain > 0.01 for gain in own) > 0
    shown = fedboard(*words, "--full", cwd=tmp_path).stdout
    points = 100 * difference["top1"]["change"]
    assert "Kneser-Ney 3-gram minus new.safetensors" in shown
    assert f"Kneser-Ney 3-gram is better by {points:.1f} points of top-1" in shown
    assert "OOV rate %" in shown
    assert "…" not in shown


def test_a_comparison_of_other_than_two_systems_is_refused(tmp_path):
    refused(
        fedboard("evaluate", "kn2", "--paired", cwd=tmp_path), "--paired", "two targets, found 1"
    )
    refused(
        fedboard("evaluate", "kn2", "kn3", "kn4", "--paired", cwd=tmp_path),
        "--paired",
        "two targets, found 3",
    )


def test_an_option_that_does_not_exist_is_a_usage_error(tmp_path):
    done = fedboard("train", "--roundz", "3", cwd=tmp_path)
    assert done.returncode == 2
    assert "--roundz" in done.stderr


COMMANDS = dict(walk(application()))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does_and_what_its_options_are(name):
    command = COMMANDS[name]
    assert command.help, f"{name} has no docstring"
    assert [each.name for each in command.params if each.name != "help" and not each.help] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name):
    done = CliRunner().invoke(app, [*name.split()[1:], "--help"])
    assert done.exit_code == 0
    assert "Usage" in done.output


def test_help_of_the_installed_program_is_that_of_the_application(tmp_path):
    done = fedboard("device", "log", "add", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Record what was typed, encrypted." in done.stdout


def make(tmp_path: Path, python: str) -> subprocess.CompletedProcess:
    """`make setup` of a fresh copy of the Makefile with another python3."""
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in ("pyproject.toml", "uv.lock"):
        (tmp_path / name).write_text("")
    fake = tmp_path / "fake-python"
    fake.write_text(python)
    fake.chmod(0o755)
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "UV_"))
    }
    return subprocess.run(
        ["make", "setup", f"PY={fake}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )


def test_make_with_another_python_says_which_is_needed(tmp_path):
    done = make(
        tmp_path,
        f'#!/bin/sh\nshift\nexec {sys.executable} -c "import sys; sys.version_info = (3, 10, 9); '
        "sys.version = '3.10.9 x'; $1\"\n",
    )
    assert done.returncode != 0
    assert "expected Python 3.11" in done.stderr
    assert "found 3.10.9" in done.stderr
    assert not (tmp_path / ".tools").exists()


def test_make_without_the_venv_module_says_what_to_install(tmp_path):
    done = make(
        tmp_path,
        f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"\n',
    )
    assert done.returncode != 0
    assert "python3-venv" in done.stderr
    assert not (tmp_path / ".tools").exists()


def test_where_training_cannot_be_its_package_is_not_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(doctor.platform, "machine", lambda: "aarch64")
    assert "install fedboard[simulation]" not in cli.lacking("tensorflow")
    assert cli.lacking("tensorflow").endswith("then `make setup PY=python3.11`")
    for package in ("polars", "chitchat_dataset", "google"):
        assert cli.lacking(package).endswith("install fedboard[data]")


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


INSTALLED = importlib.metadata.packages_distributions()


def spelled(distribution: str) -> str:
    return re.sub("[-_.]+", "_", distribution).lower()


def imported_as(distribution: str) -> set[str]:
    """The names a distribution is imported by; its own, where it is not installed."""
    return {
        name
        for name, brought_by in INSTALLED.items()
        if spelled(distribution) in map(spelled, brought_by)
    } or {spelled(distribution)}


ALWAYS = {name for each in PROJECT["dependencies"] for name in imported_as(Requirement(each).name)}


def extra_told(package: str) -> str:
    """The extra of which the command line says that it brings a package."""
    return re.fullmatch(r".*; install fedboard\[(.*)\]", cli.lacking(package))[1]


@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_whatever_an_extra_installs_is_said_to_come_with_it_or_with_another_that_brings_it(
    monkeypatch, extra
):
    monkeypatch.setattr(doctor, "training", lambda *_: doctor.Check("training", True, "here"))
    extras = {
        name: [Requirement(each) for each in requirements]
        for name, requirements in PROJECT["optional-dependencies"].items()
    }
    packages = {package for row in cli.EXTRAS.values() for package in row}
    for wanted in extras[extra]:
        if imported_as(wanted.name) <= ALWAYS:
            continue  # a narrower version of what is installed in any case
        names = imported_as(wanted.name) & packages
        assert names, f"{wanted.name} is not in the table"
        for told in map(extra_told, names):
            markers = [each.marker for each in extras[told] if each.name == wanted.name]
            assert markers, f"{told} does not bring {wanted.name}"
            # where only some Pythons get it by the extra that is told, no other gets it by this one
            assert None in markers or wanted.marker is not None, f"{wanted.name}: {told}"


def test_every_package_that_a_file_of_ours_imports_has_an_extra():
    imported = {
        module.partition(".")[0]
        for room in ROOMS
        for path in files(room)
        for module in imports(path)
    }
    known = {*ROOMS, *ALWAYS, *sys.stdlib_module_names}
    for extra in cli.EXTRAS.values():
        known |= set(extra)
    assert imported <= known


def test_each_package_stands_in_one_extra_and_an_unknown_one_in_none():
    packages = [package for extra in cli.EXTRAS.values() for package in extra]
    assert len(packages) == len(set(packages))
    assert cli.lacking("sun_spots").endswith(doctor.REINSTALL)


def test_a_command_whose_packages_are_not_installed_names_the_extra(tmp_path):
    code = (
        "import sys; sys.modules['fastapi'] = None; sys.argv = ['fedboard', 'serve', '--dir', "
        "'server']; import fedboard.cli; fedboard.cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (
        1,
        "fedboard: expected the package fastapi for this command, found none; install "
        "fedboard[server]\n",
    )


def test_a_second_ctrl_c_while_a_command_is_leaving_changes_nothing():
    script = """
import os, signal
from fedboard import cli, console

def interrupted(**_):
    raise KeyboardInterrupt

cli.app = interrupted
console.note = lambda *_: os.kill(os.getpid(), signal.SIGINT)
cli.main()
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 130
