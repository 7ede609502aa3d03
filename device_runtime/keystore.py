"""Where the key of a typing log lies: in a file beside it that only its owner can read, or in the system's keystore.

The system's keystore is whatever `keyring` finds: Secret Service or KWallet on a Linux desktop. There is no falling back from it to a file.
"""

import contextlib
import os
import stat
from pathlib import Path
from typing import Protocol

from device_runtime.errors import ConfigError, RunError

FILE, SYSTEM = "file", "system"
SERVICE = "fedboard typing log"
INSTALL = 'install `fedboard[keystore]` and log in to a desktop with a keystore, or use key_store = "file"'


class KeyStore(Protocol):
    """One key."""

    where: str  # for errors

    def load(self) -> bytes | None:
        """The key, None if there is none. Raises RunError if the store cannot be used or is open to others."""
        ...

    def store(self, key: bytes) -> None:
        """Keep the key, whole, before this returns."""
        ...

    def remove(self) -> None:
        """Forget the key. None to forget is no error."""
        ...


def named(name: str, log: Path) -> KeyStore:
    """The key store of the typing log at `log`. Raises ConfigError for an unknown name."""
    if name == FILE:
        return FileStore(Path(log).with_suffix(".key"))
    if name == SYSTEM:
        return SystemStore(log)
    raise ConfigError("key_store", f"expected {FILE} or {SYSTEM}, found {name!r}", "name one of them")


class FileStore:
    """A file of mode 0600."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.where = str(path)

    def load(self) -> bytes | None:
        try:
            with open(self.path, "rb") as file:
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                    raise RunError(self.path, "others than its owner can read this key", f"chmod 600 {self.path}")
                return file.read()
        except FileNotFoundError:
            return None

    def store(self, key: bytes) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())  # records without their key are lost
        os.replace(temporary, self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


class SystemStore:
    """An entry of the system's keystore, named by the log's path."""

    def __init__(self, log: Path):
        self._entry = str(Path(log).absolute())
        self.where = "the system's keystore"

    def load(self) -> bytes | None:
        with self._errors():
            found = self._keyring().get_password(SERVICE, self._entry)
            return None if found is None else bytes.fromhex(found)

    def store(self, key: bytes) -> None:
        with self._errors():
            self._keyring().set_password(SERVICE, self._entry, key.hex())

    def remove(self) -> None:
        with self._errors():
            keyring = self._keyring()
            if keyring.get_password(SERVICE, self._entry) is not None:
                keyring.delete_password(SERVICE, self._entry)

    def _keyring(self):
        try:
            import keyring
            from keyring.backends import fail, null
        except ImportError:
            raise RunError(self.where, "cannot be used: the library keyring is not installed", INSTALL) from None
        backend = keyring.get_keyring()
        usable = [each for each in getattr(backend, "backends", [backend]) if not isinstance(each, fail.Keyring | null.Keyring)]
        if not usable:
            raise RunError(self.where, "there is none on this machine", INSTALL)
        return keyring

    @contextlib.contextmanager
    def _errors(self):
        try:
            yield
        except (RunError, ImportError):
            raise
        except Exception as error:  # each backend has errors of its own
            raise RunError(self.where, f"cannot be used ({type(error).__name__})", INSTALL) from None
