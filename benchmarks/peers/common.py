"""What every peer of the speed benchmark shares: its work, its marks of time, its result.

A peer is a process of its own in an environment of its own, so this file needs numpy and the
standard library only, and Linux's /proc.
"""

import argparse
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np

_TICKS, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Work:
    """What is to be trained: who takes part when with which rows, and the first weights."""

    cohort: int  # clients a round
    rounds: int
    batch_size: int
    learning_rate: float  # of local SGD; the server's is 1
    seed: int
    starts: np.ndarray  # int64 [rounds * cohort + 1], where each participation's rows begin
    # int32 [all participations' rows, length + 1]: inputs and targets shifted by one, padded with
    # 0; no row is empty
    rows: np.ndarray
    # the same for all clients, from whom our own simulation draws these cohorts itself
    population_starts: np.ndarray
    population_rows: np.ndarray
    # int32 [n, length + 1], rows of validation users, on which all are scored after training
    held_out: np.ndarray
    weights: dict[str, np.ndarray]  # of the CIFG network in `model/network.py`, matrices [out, in]

    def participation(self, i: int) -> np.ndarray:
        """The rows of one participation, int32 [rows, length + 1]; the first is 0."""
        return self.rows[self.starts[i] : self.starts[i + 1]]

    def round(self, number: int) -> list[np.ndarray]:
        """The rows of each client of a round; the first round is 0."""
        return [
            self.participation(i) for i in range(number * self.cohort, (number + 1) * self.cohort)
        ]

    def tokens(self, number: int) -> int:
        """Targets of a round: every real token after the first of a row."""
        return sum(int(np.count_nonzero(rows[:, 1:])) for rows in self.round(number))

    def population(self) -> list[np.ndarray]:
        """The rows of each client of the population, int32 [rows, length + 1]."""
        return np.split(self.population_rows, self.population_starts[1:-1])


def write(work: Work, path: Path) -> None:
    """The work as one .npz file."""
    fields = {name: value for name, value in vars(work).items() if name != "weights"}
    np.savez(path, **fields, **{f"weights/{name}": array for name, array in work.weights.items()})


def read(path: Path) -> Work:
    """What `write` wrote."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    weights = {
        name.removeprefix("weights/"): arrays.pop(name)
        for name in list(arrays)
        if name.startswith("weights/")
    }
    return Work(
        **{name: array if array.ndim else array.item() for name, array in arrays.items()},
        weights=weights,
    )


@dataclass
class Marks:
    """When rounds ended: monotonic seconds, which all processes share, and CPU seconds.

    Those are of this process and all below it.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def mark(self) -> None:
        """A round ends now."""
        self.seconds.append(time.monotonic())
        self.cpu_seconds.append(cpu_seconds(tree(os.getpid())))


def arguments(**flags: bool | int | str) -> argparse.Namespace:
    """WORK.npz RESULT.json and a peer's own options."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("result", type=Path)
    for name, default in flags.items():
        if isinstance(default, bool):
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()


def finish(
    path: Path,
    marks: Marks,
    packages: Iterable[str],
    weights: dict[str, np.ndarray] | None = None,
    held_out_loss: float | None = None,
) -> None:
    """Write the result: RESULT.json, and the trained weights beside it as RESULT.npz.

    A peer that scored them itself gives no weights but the loss.
    """
    if weights is not None:
        np.savez(path.with_suffix(".npz"), **weights)
    result = {
        **vars(marks),
        "packages": {name: version(name) for name in packages},
        "held_out_loss": held_out_loss,
    }
    path.write_text(json.dumps(result))


def tree(root: int) -> list[int]:
    """A process and its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    pids = [root]
    for pid in pids:
        pids += children.get(pid, [])
    return pids


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time so far, with that of children that have ended."""
    return sum(sum(map(int, stat[11:15])) for pid in pids if (stat := _stat(pid))) / _TICKS


def resident_mb(pids: Iterable[int]) -> float:
    """Resident memory now; pages that two processes share count twice."""
    return sum(int(stat[21]) for pid in pids if (stat := _stat(pid))) * _PAGE / 2**20


def _stat(pid: int) -> list[str] | None:
    """/proc/PID/stat from its field 3 on, the state, as in proc(5); None if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
