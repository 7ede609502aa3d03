"""Columns: named arrays in one file: equal ones give equal bytes, and no file is trusted.

A file is numpy's .npz, stored and not deflated, so that its size says what it holds; pickles are
never read.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from device_runtime import durable
from device_runtime.errors import RunError

_FOREIGN = "expected columns as they are written here"
_MADE_ANEW = "make it anew, or give another one"
_HEADERS = 4096  # bytes that a column may take beside its numbers


def write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays to a file, whole or not at all. Raises OSError."""
    buffer = io.BytesIO()
    np.savez(buffer, **dict(arrays))
    durable.share(path, buffer.getvalue())


def read(path: Path, expected: Mapping[str, DTypeLike]) -> dict[str, NDArray[Any]]:
    """The arrays of a file, each of one dimension and of the type that is expected under its name.

    Raises RunError for a file that cannot be read, is damaged, or holds anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise RunError(path, f"{_FOREIGN}, found a deflated one", _MADE_ANEW)
            names = {entry.filename.removesuffix(".npy") for entry in archive.infolist()}
            if names != set(expected) or len(archive.infolist()) != len(names):
                raise RunError(
                    path,
                    f"expected the columns {', '.join(sorted(expected))}, found "
                    f"{', '.join(sorted(names)) or 'none'}",
                    _MADE_ANEW,
                )
            return {name: _column(archive, path, name, expected[name]) for name in expected}
    except OSError as error:
        raise RunError(
            path, f"cannot be read ({error.strerror or error})", "check the path"
        ) from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, RuntimeError) as error:
        raise RunError(path, f"is damaged or no file of columns ({error})", _MADE_ANEW) from None


def digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of names, types, shapes and numbers, in the order of the names."""
    whole = hashlib.sha256()
    for name in sorted(arrays):
        column = np.ascontiguousarray(arrays[name])
        whole.update(f"{name} {column.dtype.str} {column.shape}\n".encode())
        whole.update(column.tobytes())
    return whole.hexdigest()


def _column(archive: zipfile.ZipFile, path: Path, name: str, kind: DTypeLike) -> NDArray[Any]:
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"a header of version {version}")
        shape, _, found = np.lib.format.read_array_header_1_0(file)
        wanted = np.dtype(kind)
        if found != wanted or len(shape) != 1:
            raise RunError(
                path,
                f"expected {name} as a row of {wanted}, found {found} of {len(shape)} dimensions",
                _MADE_ANEW,
            )
        size = shape[0] * wanted.itemsize
        if not size <= entry.file_size <= size + _HEADERS:
            raise ValueError(f"{name} is cut off")
        data = file.read()  # checked by the archive's own sum
    if len(data) != size:
        raise ValueError(f"{name} is cut off")
    return np.frombuffer(data, wanted)
