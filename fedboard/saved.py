"""Saved: what training writes as it goes, so that it can go on after a kill or on a full disk."""

import contextlib
import csv
import io
import re
import shutil
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from device_runtime import durable
from device_runtime.errors import CheckpointError, FedboardError, RunError
from device_runtime.shown import command
from fedboard.run import DEMO, Run, mark_of

STATE = "program_state_"  # what TFF calls a saved state, before its round
LONGEST = 200  # characters of what an operating system or TensorFlow says


@dataclass(frozen=True)
class Best:
    """What the next look is compared and linked with."""

    top1: float = -1.0
    parent: str = ""  # digest of the checkpoint looked at last
    round: int = 0  # that of the best look; 0: not known
    since: int = 0  # looks after it, none of them better
    rounds: int = 0  # that the run was to have when they were counted

    def values(self) -> list:
        """As a saved state keeps it; what is behind the first two came with a later version."""
        return [
            np.float64(self.top1),
            self.parent,
            np.int64(self.round),
            np.int64(self.since),
            np.int64(self.rounds),
        ]

    def after(self, top1: float, number: int, parent: str) -> "Best":
        """What it is once a look has a top-1; only a better one is the best.

        >>> best = Best(0.2, "a", round=4, rounds=9)
        >>> best.after(0.2, 6, "b")
        Best(top1=0.2, parent='b', round=4, since=1, rounds=9)
        >>> best.after(0.3, 6, "b")
        Best(top1=0.3, parent='b', round=6, since=0, rounds=9)
        """
        if top1 > self.top1:
            return replace(self, top1=top1, parent=parent, round=number, since=0)
        return replace(self, parent=parent, since=self.since + 1)

    def over(self, rounds: int) -> "Best":
        """What it is in a run of so many rounds: a run that is given more starts to count anew."""
        return self if rounds == self.rounds else replace(self, since=0, rounds=rounds)

    def has_waited(self, patience: int) -> bool:
        """Whether so many looks in a row were not better; 0 never is enough."""
        return 0 < patience <= self.since


def best_of(values: list) -> Best:
    """The inverse of `Best.values`, or of its first two, which earlier versions saved."""
    top1, parent, *counts = values
    return Best(float(top1), parent.decode(), *(int(count) for count in counts))


ADDED = len(Best().values()) - 2  # values at the end that earlier versions did not save


def going_on(run: Run) -> str:
    """The command that goes on with a run, as it can be pasted into a shell; a demo begins anew.

    >>> going_on(Run(Path("my run")))
    "fedboard train --out 'my run' --resume"
    """
    mark = mark_of(run.path)
    if mark is not None and mark.kind == DEMO:
        return command("demo", "--out", run.path)
    return command("train", "--out", run.path, "--resume")


@contextlib.contextmanager
def writing(run: Run, where: Path) -> Iterator[None]:
    """In the block a file of the run is written.

    What stops that, be it the operating system or TensorFlow that says so, becomes a RunError with
    the command that goes on; what was half written is removed, to make room.
    """
    try:
        yield
    except FedboardError:
        raise
    except Exception as error:
        problem = _refusal(error)
        if problem is None:
            raise
        with contextlib.suppress(OSError):
            sweep(run)
        raise RunError(
            where, f"cannot be written ({problem})", f"make room, then: {going_on(run)}"
        ) from None


def _refusal(error: Exception) -> str | None:
    """Why a file could not be written, in the words of whoever refused; None if it was not that."""
    if isinstance(error, OSError):
        return error.strerror or str(error)[:LONGEST]
    # TensorFlow's errors have no base of their own that is worth loading it for
    if type(error).__module__.startswith("tensorflow.") and hasattr(error, "error_code"):
        said = str(getattr(error, "message", "")).strip().splitlines() or [type(error).__name__]
        return said[0].rpartition("; ")[2].partition(" [Op:")[0][:LONGEST]
    return None


def sweep(run: Run) -> None:
    """Remove what a killed training, or one without room, left half written. Raises OSError."""
    for leftover in run.state.glob(f"{STATE}*"):
        named = re.fullmatch(rf"{STATE}\d+(_temp\d+)?", leftover.name)
        if named is None or leftover.is_symlink() or not leftover.is_dir():
            continue  # not TFF's
        # of a run that was removed, only folders may be left
        if named[1] or not any(not path.is_dir() for path in leftover.rglob("*")):
            shutil.rmtree(leftover)
    for leftover in run.path.glob(f"{run.metrics.name}_temp[0-9]*"):
        leftover.unlink()


class States:
    """Saved program states, the last two, in TFF's own format.

    A state half written when the process was killed is not one.
    """

    def __init__(self, run: Run, wait: Callable[[Coroutine], Any]):
        """wait runs a coroutine to its end."""
        import tensorflow_federated as tff

        self._run, self._wait = run, wait
        with writing(run, run.state):
            sweep(run)
            self._manager = tff.program.FileProgramStateManager(
                run.state, STATE, keep_total=2, keep_first=False
            )

    def save(self, values: list, version: int) -> None:
        """Save a state that no state of its version is there of. Raises RunError without room."""
        from model.simulation import release_memory

        if version not in (self._wait(self._manager.get_versions()) or []):
            with writing(self._run, self._run.state):
                self._wait(self._manager.save(values, version))
            release_memory()

    def load(self, like: list, added: int = 0) -> list | None:
        """The newest state, or None; without its last `added` values if an earlier version saved
        it.

        Raises CheckpointError for one that is damaged or of another training.
        """
        versions = self._wait(self._manager.get_versions())
        if not versions:
            return None
        for shape in (like, like[: len(like) - added]):
            try:
                return self._wait(self._manager.load(versions[-1], shape))
            except Exception as error:  # TensorFlow's errors have no base of their own
                if shape is like and added and isinstance(error, ValueError):
                    continue
                saved = self._run.state / f"{STATE}{versions[-1]}"
                if isinstance(error, ValueError):  # it has other values than these
                    raise CheckpointError(
                        saved,
                        "is of another training, or of an earlier version that kept no account "
                        "of its noise",
                        "begin anew in another folder",
                    ) from error
                raise CheckpointError(
                    saved,
                    f"cannot be read ({type(error).__name__})",
                    "remove it to go on from the one before",
                ) from error
        return None


def versions_of(run: Run) -> list[int]:
    """The rounds of a run's saved states, in order; loads no TensorFlow."""
    numbers = (saved.name.removeprefix(STATE) for saved in run.state.glob(f"{STATE}*"))
    return sorted(int(number) for number in numbers if number.isdigit())


class Curves:
    """metrics.csv and TensorBoard, by TFF's own release managers.

    A round released again replaces what followed it.
    """

    def __init__(self, run: Run, wait: Callable[[Coroutine], Any]):
        """wait runs a coroutine to its end."""
        import tensorflow_federated as tff

        self._run, self._wait = run, wait
        with writing(run, run.metrics):
            mend(run.metrics)
            self._rows = tff.program.CSVFileReleaseManager(run.metrics, key_fieldname="round")
        with writing(run, run.tensorboard):
            self._board = tff.program.TensorBoardReleaseManager(run.tensorboard)

    def release(self, number: int, measured: dict[str, float]) -> None:
        """Add a round's numbers. Raises RunError without room."""
        with writing(self._run, self._run.metrics):
            self._wait(self._rows.release(measured, number))
        with writing(self._run, self._run.tensorboard):
            self._wait(self._board.release(measured, number))


def mend(path: Path) -> None:
    """Take from a metrics.csv what was half written when its writer was killed.

    A line without its end is one, and so is one without a number of the round; a file without a
    whole heading is removed. Raises RunError for a file that is no metrics.csv, OSError.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return
    whole = whole_lines(text)
    if not whole:
        return path.unlink()
    heading, *rows = csv.reader(io.StringIO(whole.decode(errors="replace"), newline=""))
    if "round" not in heading:
        raise RunError(path, "expected a column `round`, found none", "move it away")
    place = heading.index("round")
    kept = [row for row in rows if len(row) > place and row[place].isdigit()]
    if whole != text or len(kept) < len(rows):
        mended = io.StringIO(newline="")
        csv.writer(mended).writerows([heading, *kept])
        durable.share(path, mended.getvalue().encode())
    return None


def whole_lines(text: bytes) -> bytes:
    """A file's lines without the last one if it has no end.

    >>> whole_lines(b"round,loss\\r\\n1,5.5\\r\\n2,"), whole_lines(b"rou")
    (b'round,loss\\r\\n1,5.5\\r\\n', b'')
    """
    return text[: text.rfind(b"\n") + 1]
