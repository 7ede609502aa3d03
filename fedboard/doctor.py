"""The doctor: is this machine able to run Fedboard? Each check says what it found and what to
do.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REINSTALL = "run `make setup`"
PACKAGES = {
    "tensorflow": "2.14.",
    "tensorflow-federated": "0.87.0",
    "tflite-runtime": "2.14.0",
    "numpy": "1.26.",
    "sentencepiece": "0.2.",
    "fastapi": "",
    "sqlalchemy": "2.",
    "matplotlib": "",
}
GIB = 1 << 30


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    found: str
    remedy: str = ""


def checks(deep: bool = False, runs: Path = Path("runs")) -> list[Check]:
    """Every check, cheap ones only unless `deep`, which imports TFF in a child process."""
    found = [
        python(sys.version_info[:2]),
        *(package(name, version) for name, version in PACKAGES.items()),
    ]
    found += [
        worker_binary(),
        interpreter(),
        corpus(),
        memory(_available_memory()),
        disk(shutil.disk_usage(".").free),
        loopback(),
    ]
    found += [
        writable(runs),
        leftovers(_worker_processes()),
        *(tool(name) for name in ("git", "make")),
    ]
    return [*found, federated()] if deep else found


def python(version: tuple[int, ...]) -> Check:
    remedy = (
        "TensorFlow Federated has wheels for Python 3.11 only: run `make distclean`, then `make "
        "setup PY=python3.11`"
    )
    return Check("Python", version == (3, 11), ".".join(map(str, version)), remedy)


def package(name: str, version: str) -> Check:
    """Whether a package of that version (by its beginning) is installed; imports nothing."""
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "not installed", REINSTALL)
    return Check(name, found.startswith(version), found, f"expected {version}*: {REINSTALL}")


def worker_binary(folder: Path | None = None) -> Check:
    """TFF's worker, beside the package."""
    if folder is None:
        try:
            folder = (
                Path(
                    importlib.metadata.distribution("tensorflow-federated").locate_file(
                        "tensorflow_federated"
                    )
                )
                / "data"
            )
        except importlib.metadata.PackageNotFoundError:  # a phone's environment
            return Check("TFF worker", False, "not installed", REINSTALL)
    path = Path(folder) / "worker_binary"
    ok = path.is_file() and os.access(path, os.X_OK)
    return Check(
        "TFF worker",
        ok,
        "executable" if ok else f"no executable worker_binary in {folder.name}/",
        REINSTALL,
    )


def interpreter() -> Check:
    try:
        from device_runtime.interpreter import Interpreter
    except ImportError as error:
        return Check("TFLite interpreter", False, str(error), REINSTALL)
    return Check("TFLite interpreter", True, Interpreter.__module__)


def corpus() -> Check:
    found = importlib.util.find_spec("chitchat_dataset")
    ok = (
        found is not None
        and found.origin is not None
        and (Path(found.origin).parent / "dataset.json").is_file()
    )
    return Check("chitchat corpus", ok, "readable" if ok else "not installed", REINSTALL)


def memory(available: int) -> Check:
    return Check(
        "free memory",
        available >= 3 * GIB,
        f"{available / GIB:.1f} GiB",
        "the demo needs 3 GiB: close other programs",
    )


def disk(free: int) -> Check:
    return Check(
        "free disk", free >= GIB, f"{free / GIB:.1f} GiB", "a run needs up to 1 GiB: make room"
    )


def loopback(host: str = "127.0.0.1") -> Check:
    try:
        with socket.socket() as probe:
            probe.bind((host, 0))
    except OSError as error:
        return Check("loopback port", False, str(error), "allow programs to listen on 127.0.0.1")
    return Check("loopback port", True, "can be bound")


def writable(folder: Path) -> Check:
    nearest = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
    )
    ok = nearest.is_dir() and os.access(nearest, os.W_OK)
    return Check(
        f"{folder.name}/ folder",
        ok,
        "writable" if ok else "cannot be written",
        "pass --out with a folder you may write to",
    )


def leftovers(processes: list[int]) -> Check:
    numbers = ", ".join(map(str, processes))
    return Check(
        "left-over workers",
        not processes,
        numbers or "none",
        f"if no training is running, end them: kill {numbers.replace(',', '')}",
    )


def tool(name: str) -> Check:
    return Check(
        name,
        shutil.which(name) is not None,
        "found" if shutil.which(name) else "not found",
        f"install {name}",
    )


def federated() -> Check:
    """TFF imported, and one computation run in its worker, in a process of its own."""
    code = (
        "from model import worker; import tensorflow_federated as tff\nwith worker.running(1): "
        "print(tff.tensorflow.computation(lambda: 6 * 7)())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=300,
    )
    ok = done.stdout.strip().endswith("42")
    return Check(
        "TFF computation",
        ok,
        "runs" if ok else f"failed with exit code {done.returncode}",
        REINSTALL,
    )


def _available_memory() -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def _worker_processes() -> list[int]:
    """Ids of this user's worker_binary processes that no process of ours started (their parent is
    gone).
    """
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "comm").read_text().strip()
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                mine = folder.stat().st_uid == os.getuid()
            except OSError:
                continue  # it ended meanwhile
            if mine and parent == 1 and command == "worker_binary":
                found.append(int(folder.name))
    return sorted(found)
