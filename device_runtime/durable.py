"""Durable: files are written whole or not at all, and are then on disk; locks of processes."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

PRIVATE = 0o600  # only its owner reads it
SHARED = 0o666  # less what the umask takes away


def write(path: Path, data: bytes, mode: int = PRIVATE) -> None:
    """Write a file that only one process writes, in place of any other of its name. Raises OSError,
    and leaves the old one, if it cannot be written.

    What a killed process left half written is written over by the next.
    """
    with _replacing(Path(path), Path(path).with_name(f".{Path(path).name}"), mode) as file:
        file.write(data)


def share(path: Path, data: bytes, mode: int = SHARED) -> None:
    """`write` for a file that several processes may write at once: the last one's stays."""
    with replacing(path, mode) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path, mode: int = SHARED) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of any other of its name when the block ends well.
    Otherwise the old one stays. Several processes may do so at once.
    """
    path = Path(path)
    with _replacing(path, path.with_name(f".{path.name}.{os.getpid()}.part"), mode) as file:
        yield file


@contextlib.contextmanager
def _replacing(path: Path, temporary: Path, mode: int) -> Iterator[BinaryIO]:
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Locked(BlockingIOError):
    """Another process holds a lock; as text, that process."""

    def __init__(self, process: int | None):
        """process is its number, None if that is not known."""
        self.process = process
        super().__init__("another process" if process is None else f"process {process}")


def lock(path: Path, wait: bool = False) -> TextIO:
    """The file, made if needed, that no other process can lock before this one closes it or ends,
    however it ends. It holds this process's number. `wait`: until another gives it up.

    Raises Locked if another holds it, and OSError.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, PRIVATE)
        file = os.fdopen(descriptor, "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_still(path, descriptor):  # whoever held it may have removed it
                file.truncate(0)
                file.write(f"{os.getpid()}\n")
                file.flush()
                return file
        except BlockingIOError:
            number = file.read(20).strip()
            file.close()
            raise Locked(int(number) if number.isdecimal() else None) from None
        except BaseException:
            file.close()
            raise
        file.close()


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
