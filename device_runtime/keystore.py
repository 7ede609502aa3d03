"""Where a typing log's key lies: in its owner's file beside the log, or in the system's keystore.

The system's keystore is Secret Service or KWallet, through the `keyring` library (extra
`keystore`). It is never replaced by anything weaker: where there is none, or only one that keeps
keys as plain text, the log is not opened.
"""

import contextlib
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from device_runtime import durable
from device_runtime.errors import ConfigError, RunError, TypingLogError

FILE, SYSTEM = "file", "system"
SERVICE = "fedboard typing log"  # what the entries of the system's keystore are named
_NAME = "the system's keystore"
_REMEDY = (
    'install `fedboard[keystore]` and unlock Secret Service or KWallet, or use key_store = "file"'
)
# from this priority on `keyring` recommends a backend; what keeps plain text or nothing at all
# stands below
_RECOMMENDED = 1


class KeyStore(Protocol):
    """One key. Raises OSError, TypingLogError or RunError where it cannot be reached."""

    def load(self) -> bytes | None:
        """The key, None if there is none."""

    def store(self, key: bytes) -> None:
        """Keep this key in place of any other; durable when it returns."""

    def remove(self) -> None:
        """Forget the key; nothing to forget is no error."""


def named(name: str, log: Path) -> KeyStore:
    """The key store of that name ("file" or "system") for the typing log at `log`. Raises
    ConfigError for an unknown name.
    """
    stores: dict[str, Callable[[Path], KeyStore]] = {FILE: FileKey, SYSTEM: SystemKey}
    if name not in stores:
        raise ConfigError(
            "key_store", f"expected one of {', '.join(stores)}, found {name!r:.40}", "correct it"
        )
    return stores[name](key_path(log))


def holding(log: Path) -> KeyStore:
    """The key store that holds the key of the typing log at `log`, as its key file tells: where
    there is none, one without a key.
    """
    system = SystemKey(key_path(log))
    try:
        return FileKey(system.path) if system.entry() is None else system
    except TypingLogError:  # it is a key, or damaged
        return FileKey(system.path)


def name_of(log: Path) -> str:
    """The name of the key store that holds the key of the typing log at `log`."""
    return SYSTEM if isinstance(holding(log), SystemKey) else FILE


def key_path(log: Path) -> Path:
    """The file that holds the key of a typing log, or the name of its entry in the system's
    keystore.
    """
    return Path(log).with_suffix(".key")


@dataclass(frozen=True)
class FileKey:
    """A key in a file that only its owner can read."""

    path: Path

    def load(self) -> bytes | None:
        """The key; None before the first. Raises TypingLogError if it cannot be read."""
        try:
            with open(self.path, "rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                if mode & 0o077:
                    raise TypingLogError(
                        self.path,
                        f"expected a key only its owner can read, found mode {mode:o}",
                        f"chmod 600 {self.path}",
                    )
                return file.read()
        except FileNotFoundError:
            return None

    def store(self, key: bytes) -> None:
        """Keep a new key, whole or not at all."""
        durable.write(self.path, key)  # on disk first: records without their key are lost

    def remove(self) -> None:
        """Remove the key: what it sealed cannot be read any more."""
        _remove(self.path)


@dataclass(frozen=True)
class SystemKey:
    """A key in the system's keystore. The file holds only the name of its entry, made at random, so
    that a device's folder can be moved.
    """

    path: Path

    def load(self) -> bytes | None:
        """The key; None before the first. Raises TypingLogError if the keystore is locked."""
        name = self.entry()
        if name is None:
            return None
        backend = _system()
        with _refusals():
            secret = backend.get_password(SERVICE, name)
        try:
            return None if secret is None else bytes.fromhex(secret)
        except ValueError:
            raise TypingLogError(
                f"entry {name} of {SERVICE!r}",
                "expected a key in hexadecimal, found something else",
                "put it back",
            ) from None

    def store(self, key: bytes) -> None:
        """Keep a new key. Raises TypingLogError if the keystore does not take it."""
        name = self.entry() or str(uuid.uuid4())
        backend = _system()
        # before the entry: whatever happens next, a wipe finds it
        durable.write(self.path, name.encode())
        with _refusals():
            backend.set_password(SERVICE, name, key.hex())
            kept = backend.get_password(SERVICE, name) == key.hex()
        if not kept:
            raise RunError(_NAME, "did not keep the key of a typing log", 'use key_store = "file"')

    def remove(self) -> None:
        """Remove the key: what it sealed cannot be read any more."""
        name = self.entry()
        if name is not None:
            backend = _system()
            with _refusals():
                if backend.get_password(SERVICE, name) is not None:
                    backend.delete_password(SERVICE, name)
        _remove(self.path)

    def entry(self) -> str | None:
        """The name of its entry, None if there is none. Raises TypingLogError for a file that holds
        no such name, such as a key.
        """
        try:
            name = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return str(uuid.UUID(name.decode()))
        except ValueError:  # its text would quote the file, and that may be a key
            remedy = 'use key_store = "file" if it is the key'
            raise TypingLogError(
                self.path,
                "expected the name of an entry of the system's keystore, found something else",
                remedy,
            ) from None


def _system() -> Any:
    """The backend of the system's keystore. Raises RunError if there is none, or it does not keep
    secrets.
    """
    try:
        import keyring
        from keyring.backends.chainer import ChainerBackend
    except ImportError:
        raise RunError(_NAME, "expected the keyring library, found none", _REMEDY) from None
    with _refusals():
        backend = keyring.get_keyring()
        if isinstance(backend, ChainerBackend):  # several at once, the best first
            backend = next(iter(backend.backends), backend)
        usable = backend.priority >= _RECOMMENDED
    if not usable:
        raise RunError(
            _NAME,
            "expected one that keeps secrets, found "
            f"{type(backend).__module__}.{type(backend).__name__}",
            _REMEDY,
        )
    return backend


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Whatever the system's keystore raises, as RunError: each backend has errors of its own, and
    their text is not ours to show.
    """
    try:
        yield
    except Exception as error:
        raise RunError(_NAME, f"refused ({type(error).__name__})", _REMEDY) from None


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    # of a process that was killed while it wrote
    path.with_name(f".{path.name}").unlink(missing_ok=True)
    if path.parent.exists():
        durable.flush(path.parent)  # a key that was removed must not come back with the power
