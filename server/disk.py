"""Disk: is there room to write, is the database still the file that was opened, who holds it?"""

import fcntl
import os
from pathlib import Path
from typing import IO

from device_runtime import durable
from device_runtime.errors import RunError

ROOM_BYTES = 16 << 20  # least free space of a server that is ready


def require_room(folder: Path) -> None:
    """Raises RunError if nothing can be written in a folder, or its disk is about to be full."""
    trial = folder / ".room"
    try:
        trial.write_bytes(b"room")
        trial.unlink(missing_ok=True)
        disk = os.statvfs(folder)
    except OSError as error:
        raise RunError(
            folder,
            f"cannot be written ({error.strerror})",
            "see that it is there, has room and may be written",
        ) from None
    free = disk.f_bavail * disk.f_frsize
    if free < ROOM_BYTES:
        raise RunError(
            folder,
            f"expected {ROOM_BYTES >> 20} MB free, found {free >> 20}",
            "make room on its disk",
        )


class Held:
    """A file of this process alone until `close`, and the same file for as long.

    It is locked by a file beside it, which says who holds it, and by itself: whoever removes the
    first does not let another process in.
    """

    def __init__(self, path: Path):
        """The file is made if it is not there. Raises RunError if another process holds it, or it
        cannot be made.
        """
        self._path = path
        self._files: list[IO[str]] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files.append(durable.lock(path.with_name(f"{path.name}.lock")))
            # only now: closing a second descriptor of a database would let go of SQLite's locks
            self._files.append(_locked(path))
        except durable.Locked as held:
            self.close()
            raise RunError(
                path.parent,
                f"another server is using this folder ({held})",
                "stop that server or give another folder",
            ) from None
        except OSError as error:
            self.close()
            raise RunError(
                path.parent,
                f"cannot be written ({error.strerror})",
                "give a folder that can be written",
            ) from None

    def require_same(self) -> None:
        """Raises RunError if another file stands under the name, or none: what is written to the
        one that is open would be gone with this process.
        """
        try:
            is_same = os.path.samestat(os.stat(self._path), os.fstat(self._files[-1].fileno()))
        except OSError:
            is_same = False
        if not is_same:
            raise RunError(
                self._path,
                "the database was removed or replaced while the server is running",
                "stop the server, restore the database from a backup, start it again",
            )

    def close(self) -> None:
        """Let go of the file."""
        for file in reversed(self._files):
            file.close()


def _locked(path: Path) -> IO[str]:
    """The file itself, locked and not written. Raises Locked if another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, durable.SHARED)
    file = os.fdopen(descriptor, "r+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise durable.Locked(None) from None
    except BaseException:
        file.close()
        raise
    return file
