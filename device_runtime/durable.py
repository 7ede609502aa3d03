"""Durable: a file is written whole or not at all, and is on disk when the call returns."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

PRIVATE = 0o600  # only its owner reads it


def write(path: Path, data: bytes, mode: int = PRIVATE) -> None:
    """Write a file in place of any other of its name. Raises OSError, and leaves the old one, if it
    cannot be written.
    """
    path = Path(path)
    # always the same name: what a killed process left is written over
    temporary = path.with_name(f".{path.name}")
    try:
        with os.fdopen(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb"
        ) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
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


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """While this lasts no other process holds the lock on the file, which is made if needed. It
    ends with the process, however that ends. Raises BlockingIOError if another holds it.
    """
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
