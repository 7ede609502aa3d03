"""Slots: small secrets that are written over where they lie, so that the one before is gone.

A blob is never changed and may be kept for ever; what is in a slot may not.
"""

import os
from pathlib import Path
from typing import Protocol

from device_runtime import durable
from device_runtime.errors import RunError

_FOLDER = 0o700  # only its owner lists it


class Slots(Protocol):
    """A place for small values by name, each always of one length. Raises RunError if the place
    cannot be used.
    """

    def put(self, name: str, data: bytes) -> None:
        """Write a value over the one of that name; it is on disk when this returns."""

    def get(self, name: str) -> bytes | None:
        """The value of that name; None if there is none."""

    def remove(self, name: str) -> None:
        """Write zeros over a value, and remove its name."""

    def names(self) -> list[str]:
        """All names."""


class Folder:
    """Slots as files of a folder, which is made when the first one is put."""

    def __init__(self, folder: Path, flushes: bool = True):
        """`flushes`: whether each is on disk at once, as it must be but in a simulation."""
        self._folder, self._flushes = Path(folder), flushes

    def put(self, name: str, data: bytes) -> None:
        """A file is not replaced by another: the old bytes would stay on the disk."""
        path = self._folder / name
        try:
            is_new = not path.exists()
            if is_new and not self._folder.is_dir():
                self._folder.mkdir(mode=_FOLDER, parents=True, exist_ok=True)
                self._flush(self._folder.parent)
            self._write(path, data, os.O_CREAT)
            if is_new:
                self._flush(self._folder)
        except OSError as error:
            raise self._unusable("written", error) from None

    def get(self, name: str) -> bytes | None:
        """What stands in the file of that name."""
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable("read", error) from None

    def remove(self, name: str) -> None:
        """The zeros are on disk before the name is gone."""
        path = self._folder / name
        try:
            self._write(path, bytes(path.stat().st_size), 0)
            path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unusable("removed", error) from None

    def names(self) -> list[str]:
        """None before the first one is put."""
        try:
            return sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unusable("read", error) from None

    def _flush(self, folder: Path) -> None:
        if self._flushes:
            durable.flush(folder)

    def _write(self, path: Path, data: bytes, how: int) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | how, durable.PRIVATE)
        try:
            written = 0
            while written < len(data):  # of a large value on a full disk a part may be taken
                written += os.pwrite(descriptor, memoryview(data)[written:], written)
            if self._flushes:
                os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def _unusable(self, how: str, error: OSError) -> RunError:
        return RunError(
            self._folder,
            f"its keys cannot be {how} ({error.strerror})",
            "see that it has room and may be written by the server alone",
        )
