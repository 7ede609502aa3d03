"""Commands that train, each in a process forked from one that has loaded TensorFlow and TFF.

Loading them takes longer than the training of a toy network; so it is done once, as
`multiprocessing` does it with its fork server. A command here is a process like any other: it has
its own folder, output and signals. What is ours is not loaded before the fork.
"""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

FORKING = multiprocessing.get_context("forkserver")
# in the order in which a training loads them: after TensorFlow, SentencePiece finds functions of it
FORKING.set_forkserver_preload(["sentencepiece", "tensorflow_federated"])


@dataclass(frozen=True)
class Around:
    """What a command finds around it."""

    cwd: Path
    out: Path  # added to
    err: Path
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    room: int | None = None  # bytes that a file may have


class Child:
    """A command under way, used as a `subprocess.Popen`."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process
        process.start()
        self.pid: int = process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("fedboard", timeout)
        return code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def started(words: Sequence[object], around: Around) -> Child:
    """`fedboard WORDS` in a process and a session of its own."""
    return Child(FORKING.Process(target=_command, args=([*map(str, words)], around)))


def _command(words: list[str], around: Around) -> None:
    os.setsid()
    os.chdir(around.cwd)
    for number, path in ((1, around.out), (2, around.err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.environ.clear()
    os.environ.update(around.environment)
    if around.room is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (around.room, around.room))
    sys.argv = ["fedboard", *words]
    from fedboard import cli

    cli.main()
