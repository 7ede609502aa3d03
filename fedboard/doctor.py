"""The doctor: is this machine able to run Fedboard? Each check says what is there, what to do."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from device_runtime.errors import FedboardError
from fedboard.__main__ import ROOMS, ROOT, namesakes
from model import enclosure

REINSTALL = "run `make setup`"
OLDEST, NEWEST = (3, 11), (3, 14)
# beginnings of the versions that are right
PACKAGES = {
    "numpy": ("1.26.", "2."),
    "sentencepiece": ("0.2.",),
    "fastapi": ("",),
    "sqlalchemy": ("2.",),
    "matplotlib": ("",),
    "prompt_toolkit": ("3.",),
}
# built for NumPy 1, and for a protobuf that SentencePiece 0.2.0 is the last to write with
TRAINING = {
    "tensorflow": ("2.14.",),
    "tensorflow-federated": ("0.87.0",),
    "numpy": ("1.26.",),
    "sentencepiece": ("0.2.0",),
}
GIB = 1 << 30


@dataclass(frozen=True)
class Check:
    """One thing looked at: whether it is right, what is there, and what to do if it is wrong."""

    name: str
    ok: bool
    found: str
    remedy: str = ""
    needed: bool = True  # False: a note of what cannot be done here; all else can

    @property
    def failed(self) -> bool:
        """Whether it is wrong, and more than a note of what this machine cannot do."""
        return self.needed and not self.ok


def checks(deep: bool = False, runs: Path = Path("runs")) -> list[Check]:
    """Every check, cheap ones only unless `deep`, which imports TFF in a child process.

    Where training cannot be, one check says so and nothing of it is looked for.
    """
    version = sys.version_info[:2]
    trains = training(version, platform.machine())
    packages = {**PACKAGES, **TRAINING} if trains.ok else PACKAGES
    worker = [worker_binary(), enclosed(enclosure.obstacle())] if trains.ok else []
    return [
        python(version),
        trains,
        own_packages(ROOT, namesakes()),
        *(package(name, *versions) for name, versions in packages.items()),
        *worker,
        interpreter(),
        corpus(),
        memory(_available_memory()),
        disk(shutil.disk_usage(".").free),
        loopback(),
        writable(runs),
        leftovers(_worker_processes()),
        *(tool(name) for name in ("git", "make")),
        *([federated()] if deep and trains.ok else []),
    ]


def python(version: tuple[int, ...]) -> Check:
    """Whether anything of ours runs on this Python, given as (major, minor).

    >>> python((3, 10)).ok, python((3, 14)).ok
    (False, True)
    """
    remedy = "3.11 to 3.14 will do: run `make distclean`, then `make setup PY=python3.11`"
    return Check("Python", OLDEST <= version <= NEWEST, ".".join(map(str, version)), remedy)


def training(version: tuple[int, ...], machine: str) -> Check:
    """Whether models can be trained and exported here; everything else can in any case."""
    here = f"Python {'.'.join(map(str, version))} on {machine}"
    if version == (3, 11) and machine == "x86_64":
        return Check("training and export", True, f"possible with {here}")
    return Check(
        "training and export",
        False,
        f"not with {here}; device, server and keyboard run",
        "TensorFlow Federated has wheels for Python 3.11 on x86_64 only: there, run `make "
        "distclean`, then `make setup PY=python3.11`",
        needed=False,
    )


def own_packages(root: Path, others: list[str]) -> Check:
    """Whether our packages, all in one folder, are as they were installed; others are files that
    have their names and come earlier on the path. Commands pass over those.
    """
    altered = [
        name
        for name in ROOMS
        if not (root / name / "__init__.py").is_file()
        or (root / name / "__init__.py").stat().st_size  # ours are empty
    ]
    if altered:
        remedy = f"another package of that name was installed over ours: {REINSTALL}"
        return Check("own packages", False, f"altered: {', '.join(altered)}", remedy)
    state = f"ours; passed over: {', '.join(others)}" if others else "ours"
    return Check("own packages", True, state)


def package(name: str, *versions: str) -> Check:
    """Whether a package of one of these versions (by their beginnings) is installed; imports
    nothing.
    """
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "not installed", REINSTALL)
    expected = " or ".join(f"{beginning}*" for beginning in versions)
    return Check(name, version.startswith(versions), version, f"expected {expected}: {REINSTALL}")


def worker_binary(folder: Path | None = None) -> Check:
    """TFF's worker, beside the package."""
    if folder is None:
        try:
            distribution = importlib.metadata.distribution("tensorflow-federated")
        except importlib.metadata.PackageNotFoundError:  # a phone's environment
            return Check("TFF worker", False, "not installed", REINSTALL)
        folder = Path(str(distribution.locate_file("tensorflow_federated"))) / "data"
    path = folder / "worker_binary"
    ok = path.is_file() and os.access(path, os.X_OK)
    state = "executable" if ok else f"no executable worker_binary in {folder.name}/"
    return Check("TFF worker", ok, state, REINSTALL)


def enclosed(obstacle: str) -> Check:
    """Whether TFF's worker gets a network of its own, or what is in the way of it."""
    if not obstacle:
        return Check("worker's own network", True, "can be had: no other user reaches the worker")
    return Check(
        "worker's own network",
        False,
        f"cannot be had ({obstacle}): while it trains, whoever reaches this machine's ports may "
        "run any graph as this user",
        "allow this user namespaces, as docs/scale-out.md says, or close the ports to strangers",
        needed=False,
    )


def interpreter() -> Check:
    """Which interpreter graphs run on, with which NumPy, and which others are installed."""
    from device_runtime.interpreter import chosen, installed, load

    try:
        runtime = chosen()
        load(runtime)
    except FedboardError as error:
        found, _, remedy = str(error).removeprefix("interpreter: ").rpartition("; ")
        return Check("TFLite interpreter", False, found, remedy)
    others = "".join(f"; also {other}" for other in installed() if other != runtime)
    numpy = importlib.metadata.version("numpy")
    return Check("TFLite interpreter", True, f"{runtime} with NumPy {numpy}{others}")


def corpus() -> Check:
    """The corpus of the demo, as a file; it is not read."""
    spec = importlib.util.find_spec("chitchat_dataset")
    ok = (
        spec is not None
        and spec.origin is not None
        and (Path(spec.origin).parent / "dataset.json").is_file()
    )
    return Check("chitchat corpus", ok, "readable" if ok else "not installed", REINSTALL)


def memory(available: int) -> Check:
    """Whether so many bytes are enough for the demo."""
    state = f"{available / GIB:.1f} GiB"
    remedy = "the demo needs 3 GiB: close other programs"
    return Check("free memory", available >= 3 * GIB, state, remedy)


def disk(free: int) -> Check:
    """Whether so many bytes are enough for a run."""
    state = f"{free / GIB:.1f} GiB"
    return Check("free disk", free >= GIB, state, "a run needs up to 1 GiB: make room")


def loopback(host: str = "127.0.0.1") -> Check:
    """Whether a program may listen on this machine's own address."""
    try:
        with socket.socket() as probe:
            probe.bind((host, 0))
    except OSError as error:
        return Check("loopback port", False, str(error), "allow programs to listen on 127.0.0.1")
    return Check("loopback port", True, "can be bound")


def writable(folder: Path) -> Check:
    """Whether a folder can be written, or made where it will be."""
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
    """Whether TFF's workers outlived their programs, by their process ids."""
    numbers = ", ".join(map(str, processes))
    return Check(
        "left-over workers",
        not processes,
        numbers or "none",
        f"if no training is running, end them: kill {numbers.replace(',', '')}",
    )


def tool(name: str) -> Check:
    """Whether a program is on the path."""
    ok = shutil.which(name) is not None
    return Check(name, ok, "found" if ok else "not found", f"install {name}")


def federated() -> Check:
    """TFF imported, and one computation run in its worker, in a process of its own."""
    code = (
        "import fedboard.__main__; from model import worker; import tensorflow_federated as tff\n"
        "with worker.running(1): "
        "print(tff.tensorflow.computation(lambda: 6 * 7)())"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
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
    workers = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "comm").read_text().strip()
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                mine = folder.stat().st_uid == os.getuid()
            except OSError:
                continue  # it ended meanwhile
            if mine and parent == 1 and command == "worker_binary":
                workers.append(int(folder.name))
    return sorted(workers)
