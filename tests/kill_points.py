"""Kill a piece of work at its first step, its second, and so on, and look at what it leaves.

This goes on until the work finishes.

A step is what the work does to its folder: open a file for writing, flush one, rename, remove, make
or remove a folder, change a mode, connect to SQLite, or one SQL statement that writes. The process
kills itself with SIGKILL as the step begins. A loss of power takes more than the process: with
`unsynced_lost`, half of every file that was written and not flushed with `os.fsync` is cut off, as
a disk may do. (What SQLite writes is its own affair: its files are left alone. Names are never
lost: a folder that was not flushed does not show.)

The work is a script with a function `work(folder)`. It is read once, in a process of its own that
forks for every try: its imports cost once.
"""

import json
import os
import shutil
import signal
import sqlite3
import sqlite3.dbapi2
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Try:
    """How one try ended ("killed", "finished", or "failed" if the work raised), at which step."""

    how: str
    step: str


class Stage:
    """The process that reads scripts and forks for every try. A context manager, which ends it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def work(self, script: str, folder: Path, n: int, unsynced_lost: bool = True) -> Try:
        """Run the script's work(folder), killed at its n-th step. AssertionError if it raises."""
        order = {
            "script": script,
            "folder": str(folder.resolve()),
            "n": n,
            "unsynced_lost": unsynced_lost,
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        ended = Try(**json.loads(line)) if line else Try("failed", "")
        assert ended.how != "failed", (
            f"at step {n} the work failed; its own words are on standard error"
        )
        return ended


def every_kill_point(
    script: str,
    folder: Path,
    prepare: Callable[[Path], None],
    check: Callable[[Path], None],
    unsynced_lost: bool = True,
    most: int = 2000,
    stride: int = 1,
) -> int:
    """Make `folder` anew with `prepare`, run the script's work(folder) in a child killed at step n,
    and `check(folder)`; for n = 1, 1 + stride, 1 + 2 stride, ...

    Ends after the first child that finishes, which is checked too. The number of times it
    was killed. AssertionError if the work raises, or if a check does, naming the step.
    """
    with Stage() as stage:
        for kills, n in enumerate(range(1, most, stride)):
            _anew(folder, prepare)
            ended = stage.work(script, folder, n, unsynced_lost)
            try:
                check(folder)
            except Exception as error:
                raise AssertionError(f"killed at step {n}, {ended.step}: {error}") from error
            if ended.how == "finished":
                return kills
    raise AssertionError(f"the work did not finish in {most} steps")


def killed_in_turn(
    script: str,
    folder: Path,
    prepare: Callable[[Path], None],
    check: Callable[[Path], None],
    tries: Iterable[Sequence[int]],
) -> int:
    """Make `folder` anew for each try, run the work killed at the try's first step, again on what
    that left, killed at the second, and so on, and `check(folder)`.

    How often the work was killed; a try ends where the work finishes. AssertionError as above.
    """
    kills = 0
    with Stage() as stage:
        for steps in tries:
            _anew(folder, prepare)
            for n in steps:
                if stage.work(script, folder, n).how == "finished":
                    break
                kills += 1
            try:
                check(folder)
            except Exception as error:
                raise AssertionError(f"killed at steps {list(steps)}: {error}") from error
    return kills


def _anew(folder: Path, prepare: Callable[[Path], None]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    prepare(folder)


# What follows runs in the stage, and in the children it forks.

# audit event -> which of its arguments are paths, each with the argument that holds its folder's
# descriptor
STEPS = {
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
    "os.remove": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.chmod": ((0, 2),),
    "os.truncate": ((0, None),),
    "sqlite3.connect": ((0, None),),
}
READING = ("SELECT", "PRAGMA", "--")  # what changes nothing
# the work may name steps that Python does not see: sys.audit(SAID, "what is about to happen")
SAID = "kill_points.step"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Killer:
    """Counts the steps of this process, and kills it at the n-th."""

    def __init__(self, folder: str, n: int, unsynced_lost: bool, report: int):
        self.folder, self.left, self.unsynced_lost = folder, n, unsynced_lost
        self.report = report  # descriptor that is told which step it was
        self.unsynced: set[str] = set()
        self.busy = False
        os.fsync = self._flushing(os.fsync)
        os.fdatasync = self._flushing(os.fdatasync)
        # SQLAlchemy knows it by the second name
        sqlite3.connect = sqlite3.dbapi2.connect = self._traced(sqlite3.connect)
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple) -> None:
        if self.busy:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING and (path := self.inside(path)):
                self.step(f"open {path}")
                self.unsynced.add(path)
        elif event == SAID:
            self.step(arguments[0])
        elif event in STEPS:
            paths = [
                self.inside(arguments[i], -1 if j is None else arguments[j])
                for i, j in STEPS[event]
            ]
            if any(paths):
                self.step(f"{event} {' '.join(filter(None, paths))}")
                if event == "os.rename":
                    self.renamed(*paths)

    def inside(self, path: object, descriptor: int = -1) -> str | None:
        """The path, if it is in the folder."""
        if not isinstance(path, str | bytes | os.PathLike):
            return None
        start = os.readlink(f"/proc/self/fd/{descriptor}") if descriptor >= 0 else os.getcwd()
        resolved = os.path.normpath(os.path.join(start, os.fsdecode(path)))
        return resolved if resolved.startswith(self.folder + "/") else None

    def renamed(self, old: str | None, new: str | None) -> None:
        """Files that were not flushed are not flushed by another name."""
        for path in [
            path
            for path in self.unsynced
            if old and new and (path == old or path.startswith(old + "/"))
        ]:
            self.unsynced.discard(path)
            self.unsynced.add(new + path.removeprefix(old))

    def _flushing(self, flush: Callable[[int], None]) -> Callable[[int], None]:
        def flush_and_note(file) -> None:
            number = file if isinstance(file, int) else file.fileno()
            path = os.readlink(f"/proc/self/fd/{number}")
            if path.startswith(self.folder):
                self.step(f"flush {path}")
            flush(number)
            self.unsynced.discard(path)

        return flush_and_note

    def _traced(
        self, connect: Callable[..., sqlite3.Connection]
    ) -> Callable[..., sqlite3.Connection]:
        def connect_and_trace(database, *arguments, **options) -> sqlite3.Connection:
            connection = connect(database, *arguments, **options)
            if self.inside(database):
                connection.set_trace_callback(
                    lambda statement: (
                        statement.startswith(READING)
                        or self.step(f"SQL {statement.split(' ', 1)[0]}")
                    )
                )
            return connection

        return connect_and_trace

    def step(self, what: str) -> None:
        self.left -= 1
        if self.left:
            return
        self.busy = True
        for path in self.unsynced if self.unsynced_lost else ():
            if os.path.isfile(path) and not _is_of_sqlite(path):
                os.truncate(path, os.path.getsize(path) // 2)
        os.write(self.report, what.encode())
        os.kill(os.getpid(), signal.SIGKILL)


def _is_of_sqlite(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(16) == b"SQLite format 3\0" or path.endswith(("-wal", "-shm", "-journal"))


def _stage() -> None:
    scripts: dict[str, dict] = {}
    sys.path.insert(0, str(ROOT))
    for line in sys.stdin:
        told = json.loads(line)
        if told["script"] not in scripts:
            scripts[told["script"]] = {}
            exec(compile(told["script"], "work", "exec"), scripts[told["script"]])
        here, there = os.pipe()
        child = os.fork()
        if not child:
            os.close(here)
            _child(scripts[told["script"]]["work"], told, there)
        os.close(there)
        _, status = os.waitpid(child, 0)
        with os.fdopen(here) as said:
            step = said.read()
        how = "killed" if os.WIFSIGNALED(status) else "failed" if status else "finished"
        print(json.dumps({"how": how, "step": step}), flush=True)


def _child(work: Callable[[Path], None], told: dict, report: int) -> None:
    status = 1
    try:
        os.dup2(2, 1)  # the stage's own standard output is for its answers
        killer = Killer(told["folder"], told["n"], told["unsynced_lost"], report)
        work(Path(told["folder"]))
        killer.busy = True
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


if __name__ == "__main__":
    _stage()
