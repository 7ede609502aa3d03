"""Blobs: immutable bytes named by their SHA-256, in a folder."""

import os
import re
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import LocalStore

from device_runtime.errors import RunError
from device_runtime.weights import digest

_NAME = re.compile(r"[0-9a-f]{64}")


class Blobs:
    """Whoever knows a blob's name knows its content, so a blob is never changed and may be cached for ever."""

    def __init__(self, folder: Path):
        """Raises RunError if the folder cannot be made."""
        self._folder = Path(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(folder, f"cannot be made ({error.strerror})", "give a folder that can be written") from None
        self._store = LocalStore(self._folder)

    def put(self, data: bytes) -> str:
        """Keep `data`, whole or not at all, on disk before this returns. Returns its name."""
        name = digest(data)
        try:
            obstore.put(self._store, name, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            if digest(self._bytes(name)) != name:  # a power cut can leave a name without its content
                obstore.put(self._store, name, data, mode="overwrite", use_multipart=False)
        for path in (self._folder / name, self._folder):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        return name

    def size(self, name: str) -> int | None:
        """Bytes of a blob, or None if there is none of that name."""
        if not _NAME.fullmatch(name):
            return None
        try:
            return obstore.head(self._store, name)["size"]
        except FileNotFoundError:
            return None

    def get(self, name: str) -> bytes:
        """A whole blob. Raises RunError if it is missing or its bytes are not those it was named by."""
        try:
            data = self._bytes(name)
        except FileNotFoundError:
            raise RunError(self._folder / name, "missing", "restore the server's folder from a backup") from None
        if digest(data) != name:
            raise RunError(self._folder / name, "damaged: its bytes do not match its name", "restore the server's folder from a backup")
        return data

    def part(self, name: str, start: int, end: int) -> bytes:
        """Bytes start up to end (not included) of a blob whose `size` is known."""
        return bytes(obstore.get_range(self._store, name, start=start, end=end)) if end > start else b""

    def _bytes(self, name: str) -> bytes:
        return bytes(obstore.get(self._store, name).bytes())
