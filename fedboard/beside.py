"""The helper beside a server: a process of its own, which is started again whenever it ends.

It lies in a folder of the server's and listens on this machine alone, so whoever runs the server
runs it too and could read every update. It shows the way that a helper of another party takes: the
server asks it over HTTP, with its token, and has no other way in.
"""

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from device_runtime.errors import RunError
from device_runtime.helper_wire import TOKEN_FILE
from fedboard.__main__ import program
from model import child_process
from server.contract import ADDRESS

FOLDER = "helper"  # in the server's
LOG = "helper.log"
START_S = 60.0  # for it to listen
AGAIN_S = 1.0  # from its end to the next start
LEAST = 1  # each task says itself how many reports its sums must have


class Beside:
    """One helper, from `running` on."""

    def __init__(self, folder: Path):
        """folder: the server's."""
        self.folder = Path(folder) / FOLDER
        self._child: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()
        # a child ends with the thread that started it
        self._thread = threading.Thread(target=self._run, name="helper", daemon=True)

    def address(self) -> str:
        """Where it listens just now. Raises RunError if it does not."""
        try:
            return (self.folder / ADDRESS).read_text().strip()
        except OSError:
            raise RunError(self.folder, "the helper does not listen", "see its log") from None

    def token(self) -> str:
        """What lets its server ask it, unless the environment says so."""
        return (self.folder / TOKEN_FILE).read_text().strip()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """It runs while the block does. Raises RunError if it does not start."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        (self.folder / ADDRESS).unlink(missing_ok=True)  # of one that was killed
        self._thread.start()
        try:
            self._await()
            yield
        finally:
            self._over.set()
            if self._child is not None:
                child_process.end(self._child)
            self._thread.join()

    def _await(self) -> None:
        deadline = time.monotonic() + START_S
        while not (self.folder / ADDRESS).is_file():
            ended = self._child is not None and self._child.poll() is not None
            if ended or time.monotonic() > deadline:
                said = (self.folder / LOG).read_text(errors="replace").strip().splitlines()
                raise RunError(
                    self.folder,
                    f"the helper did not start: {said[-1].strip() if said else 'it said nothing'}",
                    f"see {LOG} there, or ask another one: --helper URL",
                )
            time.sleep(0.02)

    def _run(self) -> None:
        while not self._over.is_set():
            words = program("helper", "--dir", self.folder, "--port", "0", "--least", LEAST)
            self._child = child_process.start(words, self.folder / LOG)
            if self._over.is_set():  # ended meanwhile
                child_process.end(self._child)
            self._child.wait()
            self._over.wait(AGAIN_S)
