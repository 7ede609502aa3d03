"""Whatever stands in a command's way is one line: its streams, its disk, its path, its machine."""

import errno
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from device_runtime.errors import RunError
from fedboard import __main__ as program
from fedboard import bundle_commands, doctor, failures, terminal_keyboard
from fedboard.pages import application, walk

ROOT = Path(__file__).parents[1]
PYTHON = shlex.quote(sys.executable)
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(line: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a line of bash in which `fedboard` is the program."""
    return subprocess.run(
        ["bash", "-c", f'fedboard() {{ {PYTHON} -m fedboard.cli "$@"; }}; {line}'],
        cwd=cwd,
        capture_output=True,
        env={**os.environ, **environment},
        timeout=120,
    )


def one_line(done: subprocess.CompletedProcess, *parts: str) -> None:
    said = done.stderr.decode()
    assert done.returncode in (1, 2), said
    assert len(said.splitlines()) == 1, said
    for part in parts:
        assert part in said


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, corpus_file) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    done = shell(f"fedboard data import {shlex.quote(corpus_file)} --out chat", folder)
    assert done.returncode == 0, done.stderr
    return folder / "chat"


@pytest.fixture
def chat(tmp_path, corpus) -> Path:
    """A folder that holds the corpus `chat`."""
    shutil.copytree(corpus, tmp_path / "chat")
    return tmp_path


@pytest.mark.parametrize("words", ["data stats chat", "data stats chat --json", "--help"])
def test_a_full_disk_behind_standard_output_is_one_line(chat, words):
    one_line(shell(f"fedboard {words} > /dev/full", chat), "standard output", "No space left")


@pytest.mark.parametrize("words", ["data stats chat", "data stats chat --json", "train --help"])
def test_a_reader_that_is_gone_is_one_line(chat, words):
    done = shell(f"set -o pipefail; fedboard {words} | true", chat)
    one_line(done, "standard output", "Broken pipe")


def test_a_closed_standard_output_is_said_before_anything_is_done(chat):
    done = shell("fedboard data import chat/corpus.jsonl --out again >&-", chat)
    one_line(done, "standard output", "is closed")
    assert not (chat / "again").exists()


def test_without_a_standard_error_results_come_and_failures_keep_their_code(chat):
    done = shell("fedboard data stats chat --json 2>&-", chat)
    assert done.returncode == 0
    assert json.loads(done.stdout)["name"]
    for nowhere in ("2>&-", "2>/dev/full"):
        done = shell(f"fedboard data stats nothing {nowhere}", chat)
        assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


def test_a_closed_standard_input_is_an_empty_one(chat, tiny_bundle):
    trust = tmp_key(chat, tiny_bundle)
    done = shell(f"fedboard predict {tiny_bundle.path} --trust {trust} <&-", chat)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.splitlines()) == 1


def tmp_key(folder: Path, bundle) -> Path:
    path = folder / "maker.pub"
    path.write_text(bundle.signature.decode().split("\n")[0] + "\n")
    return path


@pytest.mark.parametrize("environment", [ASCII, {"PYTHONIOENCODING": "ascii"}], ids=str)
def test_a_terminal_that_knows_ascii_only_is_written_readably(chat, environment):
    (chat / "chat").rename(chat / "café ±")
    for words in ("data stats 'café ±'", "--help", "data stats --help"):
        done = shell(f"fedboard {words}", chat, **environment)
        assert (done.returncode, done.stderr) == (0, b""), done.stderr
        assert done.stdout.decode("ascii")
    done = shell("fedboard data stats 'café ±' --json", chat, **environment)
    assert json.loads(done.stdout)["name"]
    one_line(shell("fedboard bundle show 'né'", chat, **environment), "BundleError")


@pytest.mark.parametrize(
    "environment",
    [
        {"COLUMNS": "20"},
        {"COLUMNS": "1"},
        {"COLUMNS": "0"},
        {"COLUMNS": "9" * 12, "TERMINAL_WIDTH": "wide"},
    ],
    ids=str,
)
def test_a_terminal_of_any_width_gets_every_number_whole(chat, environment):
    numbers = json.loads(shell("fedboard data stats chat --json", chat).stdout)["total"]
    for terminal in ({}, {"TERM": "dumb", "NO_COLOR": "1"}):
        done = shell("fedboard data stats chat", chat, **environment, **terminal)
        assert done.returncode == 0
        for number in numbers.values():
            assert f"{number:,}" in done.stdout.decode()
        assert "…" not in done.stdout.decode()
        assert shell("fedboard train --help", chat, **environment, **terminal).returncode == 0


def test_a_name_in_bytes_that_are_no_text_is_spelled(chat):
    one_line(shell("fedboard data stats $'caf\\xe9\\e[31m'", chat), "caf\\xe9\\x1b[31m")


NAMES = ["my run", "it's", "[/x]", ":warning:", "-dash", "$HOME;ls", "tab\tin", "a\x1b[31mb"]


@pytest.mark.parametrize("name", NAMES)
def test_the_next_line_can_be_pasted_whatever_the_path_is_called(chat, name):
    file = shlex.quote(f"./{name}.jsonl")
    (chat / f"./{name}.jsonl").parent.mkdir(exist_ok=True)
    done = shell(f"cp chat/corpus.jsonl {file}; fedboard data stats {file}", chat)
    pasted = re.search("fedboard data import .*? --out", done.stderr.decode())[0]
    done = shell(f"{pasted} pasted", chat)
    assert done.returncode == 0, done.stderr
    assert (chat / "pasted").is_dir()


def test_a_folder_that_is_gone_or_read_by_nobody_is_one_line(tmp_path, chat):
    gone = shell("mkdir gone; cd gone; rmdir ../gone; fedboard doctor", chat)
    one_line(gone, "the folder this was started in", "is gone")
    one_line(shell("fedboard data import chat/corpus.jsonl --out ''", chat))
    long = "a" * 300
    for words in (
        f"report {long}",
        f"bundle show {long}",
        f"evaluate {long}",
        f"task list --dir {long}",
    ):
        one_line(shell(f"fedboard {words}", chat), "too long")


def test_a_home_that_nobody_has_is_one_line(monkeypatch):
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(terminal_keyboard.Path, "home", nobody)
    with pytest.raises(RunError, match="--home FOLDER"):
        terminal_keyboard.default_home()


@pytest.fixture
def namesakes(tmp_path) -> Path:
    """A folder in which somebody has files with the names of our packages."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in program.ROOMS:
        if name != "fedboard":
            (folder / f"{name}.py").write_text("raise SystemExit('not ours')\n")
    return folder


def test_every_command_runs_beside_another_program_s_model_py(namesakes):
    script = (
        "import sys; from typer.testing import CliRunner; from fedboard.cli import app\n"
        "for name in sys.argv[1:]:\n"
        "    done = CliRunner().invoke(app, [*name.split()[1:], '--help'])\n"
        "    assert done.exit_code == 0, (name, done.exception)\n"
        "import model.corpora, server.contract, conversion.scoring, fleet.population"
    )
    names = [name for name, _ in walk(application())]
    done = subprocess.run(
        [sys.executable, "-c", script, *names],
        cwd=namesakes,
        env={**os.environ, "PYTHONPATH": f"{namesakes}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_corpora_devices_and_children_are_ours_beside_another_program_s_model_py(chat, namesakes):
    path = f"{namesakes}{os.pathsep}{ROOT}"
    for words in ("data stats chat --json", "evaluate unigram --data chat --json"):
        done = shell(f"fedboard {words}", chat, PYTHONPATH=path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)
    code = (
        "import fedboard.__main__ as p; from model import child_process as c; from pathlib import "
        "Path; l = Path('log'); c.start(p.program('data', 'stats', 'chat', '--json'), l).wait(); "
        "print(l.read_text())"
    )
    done = shell(f"cd .; {PYTHON} -c {shlex.quote(code)}", chat, PYTHONPATH=path)
    assert json.loads(done.stdout)["name"], done.stderr


@pytest.mark.parametrize("name", ["polars", "numpy", "sqlite3"])
def test_another_program_s_file_with_the_name_of_a_package_we_need_is_named(chat, name):
    (chat / f"{name}.py").write_text("")
    for words in ("data import chat/corpus.jsonl --out again", "evaluate kn2 --data chat"):
        done = shell(f"fedboard {words}", chat, PYTHONPATH=f"{chat}{os.pathsep}{ROOT}")
        if done.returncode:
            one_line(done, f"{name}.py: stands in the way of the package {name}")


def test_another_program_s_file_that_keeps_the_program_from_starting_is_named(tmp_path):
    (tmp_path / "rich.py").write_text("")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    done = shell(f"{PYTHON} -P -m fedboard --help", tmp_path, PYTHONPATH=path)
    one_line(done, "rich.py: stands in the way of the package rich")


def test_the_doctor_names_the_files_that_have_the_names_of_our_packages(namesakes):
    others = program.namesakes([str(namesakes), str(ROOT)])
    assert others == [str(namesakes / f"{name}.py") for name in program.ROOMS[:-1]]
    check = doctor.own_packages(ROOT, others)
    assert check.ok
    assert str(namesakes / "model.py") in check.found
    assert doctor.own_packages(ROOT, []).found == "ours"


def test_the_doctor_sees_a_package_installed_over_ours(tmp_path):
    for name in program.ROOMS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    assert doctor.own_packages(tmp_path, []).ok
    (tmp_path / "model" / "__init__.py").write_text("theirs = True\n")
    check = doctor.own_packages(tmp_path, [])
    assert not check.ok
    assert check.found == "altered: model"


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "r/x"), ("r/x", "No space", "make room")),
        (OSError(errno.EROFS, "Read-only file system", "r/x"), ("r/x", "a place you may write")),
        (OSError(errno.EACCES, "Permission denied", b"r/\xff"), ("r/\\xff", "permissions")),
        (OSError(errno.EMFILE, "Too many open files"), ("Too many open files", "ulimit -n")),
        (OSError("no number"), ("no number",)),
        (FileExistsError(17, "File exists", "a", None, "b"), ("a -> b",)),
        (sqlite3.OperationalError("disk is full of secret"), ("a database", "its disk full")),
        (MemoryError(), ("memory", "close other programs")),
        (RecursionError("deep"), ("nested too deeply",)),
        (UnicodeDecodeError("utf-8", b"secret\xff", 6, 7, "bad"), ("expected utf-8 text", "at 6")),
        (UnicodeEncodeError("utf-8", "secret\udcff", 6, 7, "bad"), ("utf-8 cannot spell",)),
        (ValueError("embedded null byte"), ("null byte",)),
        (
            Exception("r/x; No space left on device"),
            ("r/x: the system said: No space", "make room"),
        ),
        (Exception("Permission denied (os error 13)"), ("Permission denied", "permissions")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_system_refuses_is_said_with_what_to_do(error, parts):
    line = failures.line(error)
    assert "\n" not in line
    assert "secret" not in line
    for part in parts:
        assert part in line


def test_a_fault_of_ours_is_one_line_and_repeats_nothing_that_was_typed(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    typed = " ".join(["a", "secret"])
    try:
        bundle_commands._bytes(typed)
    except ValueError as error:
        line = failures.line(error)
    assert re.fullmatch(
        r"ValueError: fedboard/bundle_commands.py, line \d+: .*; report it with .*", line
    )
    (kept,) = tmp_path.iterdir()
    assert "test_a_fault_of_ours" in kept.read_text()
    assert "a secret" not in kept.read_text() + line
    assert kept.stat().st_mode & 0o077 == 0
