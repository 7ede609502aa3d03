"""Durable: a file is written whole or not at all, and is on disk when the call returns."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

PRIVATE = 0o600  # only its owner reads it
SHARED = 0o666  # less what the umask takes away


def write(path: Path, data: bytes, mode: int = PRIVATE) -> None:
    """Write a file in place of any other of its name. Raises OSError, and leaves the old one, if it
    cannot be written.
    """
    with replacing(path, mode) as file:
        file.write(data)


def share(path: Path, data: bytes) -> None:
    """`write` for a file that others than its owner may read."""
    write(path, data, SHARED)


@contextlib.contextmanager
def replacing(path: Path, mode: int = PRIVATE) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of any other of its name when the block ends well.
    Otherwise the old one stays.
    """
    path = Path(path)
    # always the same name: what a killed process left is written over
    temporary = path.with_name(f".{path.name}")
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


def lock(path: Path) -> TextIO:
    """The file, made if needed, that no other process can lock before this one closes it or ends,
    however it ends. Raises BlockingIOError if another holds it.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE)
    file = os.fdopen(descriptor, "a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file
