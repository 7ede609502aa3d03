"""The whole path, tiny, as a person runs it: `fedboard demo`, then each product of it used.

All processes are real.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from device_runtime import config, interpreter
from device_runtime.wire import RoundReports
from tests import forked

TINY = ["--size", "tiny", "--vocabulary", "40", "--rounds", "3", "--cohort", "4"]
TINY += ["--device-rounds", "2", "--devices", "6", "--processes", "2", "--min-examples", "20"]


def fedboard(*words: object, cwd: Path, stdin: str | None = None) -> subprocess.CompletedProcess:
    """Run a command; its output goes through files, as TFF's worker must never hold a pipe."""
    with open(cwd / "out.txt", "w+") as out, open(cwd / "err.txt", "w+") as err:
        command = [sys.executable, "-m", "fedboard.cli", *map(str, words)]
        done = subprocess.run(
            command,
            cwd=cwd,
            stdout=out,
            stderr=err,
            input=stdin,
            text=True,
            timeout=280,
            env=environment(),
        )
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, done.returncode, out.read(), err.read())


def environment() -> dict[str, str]:
    """That of a user who has chosen no interpreter."""
    kept = {name: value for name, value in os.environ.items() if name != interpreter.CHOICE}
    return {**kept, "COLUMNS": "160"}


def trains(*words: object, cwd: Path) -> subprocess.CompletedProcess:
    """The same for a command that trains, once one has been started as a person starts it."""
    out, err = cwd / "trains.out", cwd / "trains.err"
    for file in (out, err):
        file.unlink(missing_ok=True)
    code = forked.started(words, forked.Around(cwd, out, err, environment())).wait(280)
    return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())


def processes_of(folder: Path) -> list[str]:
    """Command lines of running processes that work in this folder."""
    result = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").resolve() == folder.resolve():
                    result.append((entry / "cmdline").read_bytes().decode(errors="replace"))
            except OSError:
                continue
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory, corpus_file):
    """A working folder with an imported corpus and one finished demo."""
    folder = tmp_path_factory.mktemp("path")
    assert fedboard("data", "import", corpus_file, "--out", "chat", cwd=folder).returncode == 0
    done = fedboard("demo", "--data", "chat", *TINY, cwd=folder)
    assert done.returncode == 0, done.stderr + done.stdout
    (folder / "demo.txt").write_text(done.stdout)
    return folder


def test_demo_prints_the_table_the_report_and_what_to_try_next(place):
    text = (place / "demo.txt").read_text()
    for words in (
        "unigram",
        "Kneser-Ney 4-gram",
        "network, after device rounds",
        "int8 file as shipped",
        "runs/demo/report.html",
        "Try next",
    ):
        assert words in text
    assert text.count("fedboard ") >= 3


def test_every_device_is_counted_or_refused_for_its_cause(place):
    reports = config.from_json(
        RoundReports, (place / "runs/demo/rounds.json").read_bytes(), "rounds"
    ).rounds
    assert [r.phase for r in reports] == ["committed", "committed"]
    for r in reports:
        assert r.checked_in == 6
        assert r.refused == {"not_charging": 1, "metered_network": 1, "in_use": 1}
        assert (r.assigned, r.counted, r.dropped) == (3, 2, {"condition_lost": 1})


def test_the_device_rounds_run_on_each_interpreter_there_is_and_the_report_says_on_which(place):
    summary = json.loads((place / "runs/demo/summary.json").read_text())
    assert [*summary["interpreters"]] == [str(runtime) for runtime in interpreter.installed()]
    assert sum(summary["interpreters"].values()) == 6
    page = (place / "runs/demo/report.html").read_text()
    assert all(name in page for name in summary["interpreters"])


def test_a_device_goes_to_the_release_of_what_was_learnt_by_a_difference(place):
    summary = json.loads((place / "runs/demo/summary.json").read_text())
    upgrade, text = summary["upgrade"], (place / "demo.txt").read_text()
    assert (upgrade["before"], upgrade["release"], upgrade["how"]) == (1, 2, "difference")
    assert 0 < upgrade["bytes_down"] < upgrade["bundle_bytes"] / 2
    assert f"went there from release 1 by {upgrade['bytes_down']:,} bytes" in text
    shown = fedboard("bundle", "show", "runs/demo/bundle", cwd=place).stdout
    assert "release 2 of network" in shown
    assert "learnt by task default: 2 rounds, 4 updates counted in them" in " ".join(shown.split())
    assert "The way back to the phones" in (place / "runs/demo/report.html").read_text()


def test_no_process_is_left_after_the_demo(place):
    assert processes_of(place) == []


def test_report_stands_by_itself(place):
    page = (place / "runs/demo/report.html").read_text()
    assert "<svg" in page
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_a_second_demo_replaces_the_first_and_the_same_seed_repeats_it(place):
    first = {
        name: (place / "runs/demo" / name).read_bytes()
        for name in (
            "checkpoints/best.safetensors",
            "checkpoints/after.safetensors",
            "bundle/predict.tflite",
        )
    }
    (place / "runs/demo/bundle/predict.tflite").unlink()  # as an interrupted demo might leave it
    done = trains("demo", "--data", "chat", *TINY, cwd=place)
    assert done.returncode == 0, done.stderr
    assert {name: (place / "runs/demo" / name).read_bytes() for name in first} == first
    assert fedboard("bundle", "verify", "runs/demo/bundle", cwd=place).returncode == 0


def test_predict_suggests_completes_and_reads_lines(place):
    three = fedboard("predict", "runs/demo/bundle", "i will see you", "--json", cwd=place)
    strip = json.loads(three.stdout)
    assert len(strip) == 3
    assert strip[0]["probability"] >= strip[1]["probability"] > 0
    words = [
        s["word"]
        for s in json.loads(
            fedboard(
                "predict", "runs/demo/bundle", "see her", "--prefix", "to", "--json", cwd=place
            ).stdout
        )
    ]
    assert words == ["tomorrow", "to"] or words == ["to", "tomorrow"]
    lines = fedboard(
        "predict", "runs/demo/bundle", cwd=place, stdin="we like \n1\n"
    ).stdout.splitlines()
    assert lines[1].startswith("we like |")
    first = lines[1].split("1 ")[1].split()[0]
    assert lines[2].startswith(f"we like {first} |")


def test_evaluate_writes_one_line_for_each_target_and_sums_agree(place):
    done = fedboard(
        "evaluate",
        "runs/demo/bundle",
        "--data",
        "chat",
        "--predictions",
        "p.jsonl",
        "--json",
        cwd=place,
    )
    summary = json.loads(done.stdout)["summary"]
    lines = [json.loads(line) for line in (place / "p.jsonl").read_text().splitlines()]
    assert len(lines) == summary["targets"]
    assert sum(line["target"] == line["top3"][0] for line in lines) / len(lines) == pytest.approx(
        summary["top1"]
    )


def test_a_tampered_a_truncated_and_a_foreign_bundle_are_refused_in_one_line(place, tmp_path):
    import shutil

    for change in ("flip", "cut", "foreign"):
        copy = tmp_path / change
        shutil.copytree(place / "runs/demo/bundle", copy)
        graph = copy / "predict.tflite"
        data = graph.read_bytes()
        if change == "flip":
            graph.write_bytes(data[:999] + bytes([data[999] ^ 1]) + data[1000:])
        elif change == "cut":
            graph.write_bytes(data[: len(data) // 2])
        else:
            lines = (copy / "manifest.sig").read_text().splitlines()
            (copy / "manifest.sig").write_text(f"{'0' * 64}\n{lines[1]}\n")
        done = fedboard("predict", copy, "hello", cwd=place)
        assert done.returncode == 1
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stderr.startswith("BundleError")


def test_a_taken_port_is_one_clear_line(place):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = fedboard(
            "serve", "--dir", "srv", "--bundle", "runs/demo/bundle", "--port", port, cwd=place
        )
    assert done.returncode == 1
    assert done.stderr.startswith("RunError: 127.0.0.1:")
    assert not (place / "srv").exists()


def test_ctrl_c_while_training_ends_every_process_and_the_next_run_starts_cleanly(place):
    toy = ["--data", "chat", "--size", "tiny", "--vocabulary", "40", "--cohort", "4"]
    train, log = ["train", "--out", "runs/cut", *toy, "--rounds"], place / "train.txt"
    child = forked.started([*train, 5000], forked.Around(place, log, log, environment()))
    try:
        deadline = time.monotonic() + 120
        while not log.exists() or "1: validation" not in log.read_text():
            assert child.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        os.killpg(child.pid, signal.SIGINT)
        assert child.wait(60) == 130
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    assert processes_of(place) == []
    again = fedboard(*train, 1, cwd=place)
    assert again.returncode == 1
    assert "holds an earlier run" in again.stderr
    assert trains(*train, 1, "--overwrite", cwd=place).returncode == 0
