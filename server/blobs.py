"""Blobs: immutable bytes named by their SHA-256, in a folder or in an S3-compatible store. Those
asked for often are kept in memory.
"""

import contextlib
import os
import re
import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from cachetools import LRUCache
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from device_runtime import durable
from device_runtime.errors import RunError
from device_runtime.weights import digest
from server import disk, slots
from server.slots import Slots

if TYPE_CHECKING:  # they are no more than types
    from obstore.store import ClientConfig, RetryConfig

HOT_BYTES = 64 << 20  # of blobs in memory: every device of a round fetches the same checkpoint
PATIENCE = timedelta(seconds=10)  # with a store that does not answer
_NAME = re.compile(r"[0-9a-f]{64}")
_SLOTS = "keys"  # the part of a store that is not immutable


class Blobs:
    """Whoever knows a blob's name knows its content, so a blob is never changed and may be cached
    for ever. Thread-safe.
    """

    def __init__(self, folder: Path, hot_bytes: int = HOT_BYTES, flushes: bool = True):
        """`flushes`: whether each is on disk at once, as it must be but in a simulation. Raises
        RunError if the folder cannot be made.
        """
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                folder, f"cannot be made ({error.strerror})", "give a folder that can be written"
            ) from None
        self._set(str(folder), LocalStore(Path(folder)), Path(folder), hot_bytes)
        self._flushes = flushes

    @classmethod
    def open(cls, address: str, hot_bytes: int = HOT_BYTES) -> "Blobs":
        """Blobs at an address such as s3://bucket/prefix; keys, region and endpoint come from the
        AWS_ variables of the environment.

        Raises RunError if there is no such bucket, or it cannot be reached or written with those
        keys.
        """
        if not address.startswith("s3://"):
            raise RunError(
                address,
                "expected an address such as s3://bucket/prefix",
                "correct it, or leave it out to use the server's folder",
            )
        # without keys the store would ask the machine's cloud for some, and wait for an answer
        # where there is none
        if not any(
            os.environ.get(name)
            for name in (
                "AWS_ACCESS_KEY_ID",
                "AWS_METADATA_ENDPOINT",
                "AWS_WEB_IDENTITY_TOKEN_FILE",
            )
        ):
            raise RunError(
                address,
                "its keys are needed, found none",
                "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION",
            )
        blobs = cls.__new__(cls)
        retry: RetryConfig = {"max_retries": 2, "retry_timeout": PATIENCE}
        # not read by the store once it is given options of its client
        plain = os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true"
        try:
            options: ClientConfig = {
                "timeout": PATIENCE,
                "connect_timeout": timedelta(seconds=3),
                "allow_http": plain,
            }
            store = from_url(address, client_options=options, retry_config=retry)
        except (BaseError, ValueError) as error:
            raise RunError(
                address,
                f"cannot be used ({_reason(error)})",
                "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION",
            ) from None
        blobs._set(address, store, None, hot_bytes)
        blobs.put(b"fedboard")  # now rather than at the end of a round
        return blobs

    def _set(self, where: str, store: ObjectStore, folder: Path | None, hot_bytes: int) -> None:
        self._where, self._store, self._folder = where, store, folder
        self._hot: LRUCache[str, bytes] = LRUCache(hot_bytes, getsizeof=len)
        self._flushes = True
        self._lock = threading.Lock()

    def put(self, data: bytes) -> str:
        """Keep `data`, whole or not at all, on disk before this returns. Returns its name. Raises
        RunError if it cannot be kept.
        """
        name = digest(data)
        try:
            try:
                obstore.put(self._store, name, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                # a power cut can leave a name without its content
                if digest(self._bytes(name)) != name:
                    obstore.put(self._store, name, data, mode="overwrite", use_multipart=False)
            if self._folder is not None and self._flushes:
                durable.flush(self._folder / name)
                durable.flush(self._folder)
        except (BaseError, OSError) as error:
            raise RunError(
                self._where,
                f"cannot keep a blob ({_reason(error)})",
                "see that it is there, has room and may be written",
            ) from None
        return name

    def size(self, name: str) -> int | None:
        """Bytes of a blob, or None if there is none of that name. Raises RunError if the store does
        not answer.
        """
        if not _NAME.fullmatch(name):
            return None
        if (hot := self._warm(name)) is not None:
            return len(hot)
        try:
            return obstore.head(self._store, name)["size"]
        except FileNotFoundError:
            return None
        except BaseError as error:
            raise RunError(
                self._where,
                f"cannot be read ({_reason(error)})",
                "see that it is there and may be read",
            ) from None

    def get(self, name: str) -> bytes:
        """A whole blob. Raises RunError if it is missing, or its bytes are not those it was named
        by.
        """
        if (hot := self._warm(name)) is not None:
            return hot
        try:
            data = self._bytes(name)
        except FileNotFoundError:
            raise RunError(
                f"{self._where}/{name}", "missing", "restore the blobs from a backup"
            ) from None
        except BaseError as error:
            raise RunError(
                self._where,
                f"cannot be read ({_reason(error)})",
                "see that it is there and may be read",
            ) from None
        if digest(data) != name:
            raise RunError(
                f"{self._where}/{name}",
                "damaged: its bytes do not match its name",
                "restore the blobs from a backup",
            )
        with self._lock, contextlib.suppress(ValueError):  # one larger than all that is kept
            self._hot[name] = data
        return data

    def is_hot(self, name: str) -> bool:
        """Whether a blob is in memory: else a part of it takes reading all of it."""
        return self._warm(name) is not None

    def part(self, name: str, start: int, end: int) -> bytes | memoryview:
        """Bytes start up to end (not included) of a blob whose `size` is known. Raises as `get`:
        what is damaged is not passed on.
        """
        data = self.get(name)
        return data if (start, end) == (0, len(data)) else memoryview(data)[start:end]

    def slots(self, owner: str) -> Slots:
        """The part of the place whose small values are written over, beside the blobs: those of one
        owner.
        """
        if self._folder is not None:
            return slots.Folder(self._folder / _SLOTS / owner)
        return _Objects(self._where, self._store, f"{_SLOTS}/{owner}")

    def require_room(self) -> None:
        """Raises RunError if no blob could be written."""
        if self._folder is not None:
            disk.require_room(self._folder)
        else:
            self.slots("room").put("room", bytes(1))

    def _warm(self, name: str) -> bytes | None:
        with self._lock:
            return self._hot.get(name)

    def _bytes(self, name: str) -> bytes:
        return bytes(obstore.get(self._store, name).bytes())


class _Objects:
    """Slots as objects of an S3-compatible store. A bucket that keeps versions keeps old values."""

    def __init__(self, where: str, store: ObjectStore, prefix: str):
        self._where, self._store, self._prefix = where, store, prefix

    def put(self, name: str, data: bytes) -> None:
        try:
            obstore.put(self._store, f"{self._prefix}/{name}", data, use_multipart=False)
        except BaseError as error:
            raise self._unusable("written", error) from None

    def get(self, name: str) -> bytes | None:
        try:
            return bytes(obstore.get(self._store, f"{self._prefix}/{name}").bytes())
        except FileNotFoundError:
            return None
        except BaseError as error:
            raise self._unusable("read", error) from None

    def remove(self, name: str) -> None:
        """An object that is put again is a new one: what there is to remove is its name."""
        try:
            obstore.delete(self._store, f"{self._prefix}/{name}")
        except FileNotFoundError:
            return
        except BaseError as error:
            raise self._unusable("removed", error) from None

    def names(self) -> list[str]:
        try:
            listed = obstore.list(self._store, prefix=f"{self._prefix}/").collect()
        except BaseError as error:
            raise self._unusable("read", error) from None
        return sorted(each["path"].rpartition("/")[2] for each in listed)

    def _unusable(self, how: str, error: BaseError) -> RunError:
        return RunError(
            self._where,
            f"its keys cannot be {how} ({_reason(error)})",
            "see that it is there, has room and may be written",
        )


def _reason(error: Exception) -> str:
    """What a store says of itself, without what it was asked with: the kind of error, and its first
    words if those are of the system.
    """
    return (
        error.strerror or type(error).__name__
        if isinstance(error, OSError)
        else type(error).__name__
    )
