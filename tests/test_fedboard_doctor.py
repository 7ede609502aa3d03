import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from device_runtime.interpreter import CHOICE, installed
from fedboard import doctor
from fedboard.cli import app


def test_this_machine_can_run_the_project():
    checks = doctor.checks()
    names = {check.name for check in checks}
    assert {"Python", "tensorflow", "TFF worker", "TFLite interpreter", "chitchat corpus"} <= names
    chance = ("free memory", "free disk", "left-over workers", "worker's own network")
    assert [check for check in checks if not check.ok and check.name not in chance] == []


def test_what_is_wrong_has_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    bad = [
        doctor.python((3, 10)),
        doctor.python((3, 15)),
        doctor.training((3, 12), "x86_64"),
        doctor.training((3, 11), "aarch64"),
        doctor.package("no-such-package", "1."),
        doctor.package("numpy", "9."),
        doctor.worker_binary(tmp_path),
        doctor.enclosed("unshare: Operation not permitted"),
        doctor.memory(doctor.GIB),
        doctor.disk(10),
        doctor.loopback("203.0.113.1"),
        doctor.writable(tmp_path / "file" / "runs")
        if (tmp_path / "file").is_dir()
        else doctor.writable(tmp_path / "file"),
        doctor.leftovers([12, 34]),
        doctor.tool("no-such-tool"),
    ]
    assert [check.name for check in bad if check.ok] == []
    assert all(check.remedy for check in bad)
    assert "kill 12 34" in doctor.leftovers([12, 34]).remedy


def test_this_python_runs_it_and_a_newer_one_runs_all_but_training():
    assert doctor.python(sys.version_info[:2]).ok
    assert doctor.python((3, 14)).ok
    said = doctor.training((3, 14), "x86_64")
    assert said.found == "not with Python 3.14 on x86_64; device, server and keyboard run"
    assert "make setup PY=python3.11" in said.remedy


def test_where_training_cannot_be_nothing_of_it_is_missed(monkeypatch):
    monkeypatch.setattr(doctor.platform, "machine", lambda: "aarch64")
    names = [check.name for check in doctor.checks()]
    assert "training and export" in names
    assert not {"tensorflow", "tensorflow-federated", "TFF worker"} & set(names)


def test_a_worker_that_gets_no_network_of_its_own_is_a_note_that_says_why():
    check = doctor.enclosed("unshare: Operation not permitted")
    assert not check.failed
    assert check.found.startswith("cannot be had (unshare: Operation not permitted): while it")
    assert "docs/scale-out.md" in check.remedy
    assert doctor.enclosed("").ok


@pytest.mark.parametrize(
    ("checks", "code", "said"),
    [
        ([doctor.training((3, 11), "x86_64")], 0, "ok   training and export: possible"),
        ([doctor.training((3, 14), "x86_64")], 0, "note training and export: not with Python 3.14"),
        ([doctor.training((3, 11), "aarch64")], 0, "note training and export: not with Python"),
        ([doctor.training((3, 14), "x86_64"), doctor.disk(10)], 1, "BAD  free disk"),
    ],
    ids=["all", "newer", "arm", "wrong"],
)
def test_a_machine_that_cannot_train_and_is_right_for_all_else_passes(
    monkeypatch, checks, code, said
):
    monkeypatch.setattr(doctor, "checks", lambda deep: checks)
    done = CliRunner().invoke(app, ["doctor"])
    assert (done.exit_code, said in done.output) == (code, True), done.output


def test_the_interpreter_is_said_with_its_version_and_that_of_numpy(monkeypatch):
    for runtime in installed():
        monkeypatch.setenv(CHOICE, runtime.name)
        check = doctor.interpreter()
        assert check.ok
        assert check.found.startswith(f"{runtime} with NumPy {np.__version__}")
    monkeypatch.setenv(CHOICE, "another")
    check = doctor.interpreter()
    assert not check.ok
    assert check.found.startswith("expected another, found ")
    assert check.remedy == "name ai-edge-litert or tflite-runtime, or unset FEDBOARD_INTERPRETER"


def test_where_there_is_no_interpreter_the_extra_that_brings_one_is_named(monkeypatch):
    monkeypatch.delenv(CHOICE, raising=False)
    monkeypatch.setattr("device_runtime.interpreter.installed", list)
    check = doctor.interpreter()
    assert check.found == "expected ai-edge-litert or tflite-runtime, found none"
    assert check.remedy == "install one: pip install 'fedboard[device]'"


def test_a_package_may_have_any_of_the_versions_named():
    assert doctor.package("numpy", "0.", np.__version__[:2]).ok
    assert doctor.package("numpy", "0.", "9.").remedy == "expected 0.* or 9.*: run `make setup`"
