"""Durable: files and folders are written whole or not at all, and are then on disk."""

import contextlib
import fcntl
import os
import shutil
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


@contextlib.contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of the one at `path` when the block ends well: on
    disk, and whole or not at all. Otherwise the old one stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    old = path.with_name(f".{path.name}.old.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for each in (*temporary.rglob("*"), temporary):
            flush(each)
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(temporary, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
        flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


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
