"""Saved: a fleet on disk in the middle of its days, from where it goes on as if never stopped.

    state/0/  state/1/      written in turn, so that one of them is always whole
        saved.json          comes last: what the others hash to
        state.bin           `State`, the turns under way as what was sent into them
        server/             the server's files, but for blobs: those never change

A save is made between two steps. Blobs and rows of turns that came after it are made again, the
same ones. What is read may come from anybody: nothing but values of our own types is made of it.
"""

import hashlib
import importlib
import io
import os
import pickle
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from device_runtime import config, durable, errors
from device_runtime.errors import ConfigError, FedboardError, RunError
from fleet.pocket import KeptTurn, Shared, Turn
from fleet.servers import BLOBS, Drawn, Servers
from fleet.simulate import State

FORMAT = "fedboard-fleet-state-1"
FOLDER, SERVER = "state", "server"  # of a run
MANIFEST, VALUES, TURNS = "saved.json", "state.bin", "turns.bin"
_PLACES = ("0", "1")
_COPIED = 1 << 20  # bytes at once
_PASSING = (".lock", "-wal", "-shm")  # how names of files end that are of one process


@dataclass(frozen=True)
class Manifest:
    """saved.json: what a save holds."""

    format: str
    number: int  # of the save: the largest is the newest
    step: int  # of the fleet, the last one that is over
    turns_bytes: int  # of the run's turns.bin
    files: dict[str, str]  # SHA-256 by path from the save's folder


class Saves:
    """The saves of one run."""

    def __init__(self, run: Path):
        self._run, self._number = run, 0

    def save(self, state: State, servers: Servers) -> None:
        """Write the rows of turns that have ended, and all that the fleet goes on from. Raises
        RunError where that cannot be written.
        """
        try:
            self._save(state, servers)
        except OSError as error:
            raise RunError(
                error.filename or self._run,
                f"cannot be written ({error.strerror})",
                "make room, then go on with --resume",
            ) from None

    def _save(self, state: State, servers: Servers) -> None:
        run, number = self._run, self._number + 1
        place = run / FOLDER / _PLACES[number % 2]
        (place / MANIFEST).unlink(missing_ok=True)  # first: the rest is no save without it
        shutil.rmtree(place, ignore_errors=True)
        os.makedirs(place)
        turns_bytes = _write_turns(run / TURNS, state)
        servers.copy_to(place / SERVER)
        hashes = {
            f"{SERVER}/{name}": _hash(place / SERVER / name) for name in _files(place / SERVER)
        }
        with (place / VALUES).open("wb") as file:
            write(file, state, servers.saved())
        hashes[VALUES] = _hash(place / VALUES)
        manifest = Manifest(FORMAT, number, state.step, turns_bytes, hashes)
        durable.write(place / MANIFEST, config.to_json(manifest), durable.SHARED)
        self._number = number

    def put_back(self) -> Path | None:
        """Make the run's files what they were at the newest save that is whole; the values of that
        save. None if none was ever finished. Raises RunError where none is whole any more, or the
        files that it needs are gone.
        """
        newest = _newest(self._run)
        if newest is None:
            states = self._run / FOLDER
            if any((states / name / MANIFEST).exists() for name in _PLACES):
                found = "expected a save that is whole and of this version, found none"
                raise RunError(states, found, "begin anew in another folder: nothing was changed")
            return None
        place, manifest = newest
        run, turns = self._run, self._run / TURNS
        if not turns.is_file() or turns.stat().st_size < manifest.turns_bytes:
            expected = f"expected {manifest.turns_bytes:,} bytes or more"
            raise RunError(turns, expected, "begin anew in another folder")
        os.truncate(turns, manifest.turns_bytes)
        for name in _files(run / SERVER, is_passing=True):
            (run / SERVER / name).unlink()
        for name in manifest.files:
            if name.startswith(f"{SERVER}/"):
                _copied(place / name, run / name)
        self._number = manifest.number
        return place / VALUES


def write(file: BinaryIO, state: State, drawn: Drawn) -> None:
    """Write a state, and where the randomness of its servers stands."""
    _Writer(file, protocol=5).dump((state, drawn))


def read(data: bytes, shared: Shared, where: object) -> tuple[State, Drawn]:
    """What `write` has written, of a fleet whose devices have this in common. Raises RunError for
    what is damaged, or holds what no state does.
    """
    try:
        state, drawn = _Reader(io.BytesIO(data), shared).load()
        if not isinstance(state, State) or not isinstance(drawn, Drawn):
            raise pickle.UnpicklingError("holds no state")
        kept: dict[int, Any] = state.turns
        for device, turn in kept.items():
            kept[device] = Turn.again(turn, state.pockets[device])
    except Exception as error:  # whatever is wrong with it
        raise _unreadable(where, error) from None
    return state, drawn


def _unreadable(where: object, error: Exception) -> RunError:
    found = str(error) if isinstance(error, pickle.UnpicklingError) else type(error).__name__
    return RunError(where, f"cannot be read ({found})", "begin anew in another folder")


def _newest(run: Path) -> tuple[Path, Manifest] | None:
    """The newest save that is whole, and where."""
    whole = []
    for name in _PLACES:
        place = run / FOLDER / name
        try:
            data = (place / MANIFEST).read_bytes()
            manifest = config.from_json(Manifest, data, str(place), most_bytes=1 << 30)
        except (OSError, ConfigError):
            continue
        if manifest.format == FORMAT:
            whole.append((manifest.number, place, manifest))
    for _, place, manifest in sorted(whole, key=lambda each: -each[0]):
        if all(_is_whole(place, name, hashed) for name, hashed in manifest.files.items()):
            return place, manifest
    return None


def _is_whole(place: Path, name: str, hashed: str) -> bool:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return False
    try:
        return _hash(place / name) == hashed
    except OSError:
        return False


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_turns(path: Path, state: State) -> int:
    """Add the turns that have ended, which the state then knows no more; the file's size."""
    with path.open("ab") as file:
        for rows in state.ended:
            file.write(rows.tobytes())
        state.ended = []
        return file.tell()


def _files(folder: Path, is_passing: bool = False) -> list[str]:
    """The files of a server by their path from its folder, but for blobs; with those of one process
    alone if `is_passing`.
    """
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != BLOBS)
        here = Path(place).relative_to(folder)
        names += [(here / name).as_posix() for name in sorted(files)]
    return [name for name in names if is_passing or not name.endswith(_PASSING)]


def _copied(path: Path, to: Path) -> str:
    """Copy a file; the SHA-256 of what was in it."""
    hashed = hashlib.sha256()
    to.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as source, to.open("wb") as target:
        while part := source.read(_COPIED):
            hashed.update(part)
            target.write(part)
    shutil.copymode(path, to)
    return hashed.hexdigest()


# what a state is made of: by module, records and names of enumerations
_TYPES: dict[str, tuple[str, ...]] = {
    "device_runtime.causes": ("Cause", "Step"),
    "device_runtime.chain": ("Certificate", "Chain", "Link", "Seen"),
    "device_runtime.encoding": ("Encoding",),
    "device_runtime.home": ("Contribution",),
    "device_runtime.log_wire": ("Believed", "Head", "KeptHead", "KnownPolicy", "SeenLogs"),
    "device_runtime.noise": ("Noise", "Mechanism"),
    "device_runtime.secagg_wire": (
        "Advertised",
        "Announced",
        "Box",
        "Consent",
        "Consents",
        "Inbox",
        "Neighbour",
        "NeighbourConsent",
        "Revealed",
        "Roster",
        "Share",
        "Shares",
    ),
    "device_runtime.spent": ("Part",),
    "device_runtime.table": ("Table",),
    "device_runtime.terms": ("Aggregation", "Terms"),
    "device_runtime.secagg_turn": ("Hear", "Tell"),
    "device_runtime.turn": (
        "Ask",
        "Distrusted",
        "Fetch",
        "FineTuned",
        "Gathered",
        "GiveBack",
        "HandIn",
        "HeldBack",
        "History",
        "Label",
        "Outgoing",
        "Progress",
        "Report",
        "Signed",
        "Status",
        "Upload",
        "Work",
    ),
    "device_runtime.wire": (
        "Ack",
        "Assignment",
        "CheckIn",
        "Conditions",
        "Kind",
        "Plan",
        "Proof",
        "Reject",
        "ReleaseScores",
        "Scores",
        "Signed",
    ),
    "fleet.doors": ("Call",),
    "fleet.engines": ("Trained",),
    "fleet.pocket": ("Holds", "KeptTurn", "Pocket"),
    "fleet.servers": ("Drawn",),
    "fleet.simulate": ("State",),
    "server.requests": ("Nonce",),
}


_ERRORS = tuple(
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, FedboardError)
)


class _Writer(pickle.Pickler):
    """Writes what is no record of ours, and no plain value, as a call of a function of ours."""

    dispatch_table = {  # noqa: RUF012  nobody writes to it
        Shared: lambda shared: (_shared, ()),
        Turn: lambda turn: (KeptTurn, _values_of(turn.kept())),
        np.ndarray: lambda array: (_array, (array.dtype.str, array.shape, array.tobytes())),
        **dict.fromkeys(
            (np.bool_, np.int32, np.int64, np.float32, np.float64),
            lambda number: (_number, (number.dtype.str, number.tobytes())),
        ),
        **dict.fromkeys(_ERRORS, lambda error: (_error, (type(error).__name__, str(error)))),
    }


class _Reader(pickle.Unpickler):
    """Makes nothing but what `_Writer` writes."""

    def __init__(self, file: io.BytesIO, shared: Shared):
        super().__init__(file)
        self._shared = shared

    def find_class(self, module: str, name: str) -> Any:
        """A record or a function of ours by its name. Raises UnpicklingError for any other."""
        if module == __name__ and name == _shared.__name__:
            return lambda: self._shared
        if module == __name__ and name in _MAKERS:
            return _MAKERS[name]
        if name in _TYPES.get(module, ()):
            return getattr(importlib.import_module(module), name)
        raise pickle.UnpicklingError(f"holds a {name}, which no state does")


def _values_of(record: Any) -> tuple[Any, ...]:
    return tuple(getattr(record, each.name) for each in fields(record))


def _shared() -> Any:
    """What all devices have in common stands in no save."""


def _array(kind: str, shape: tuple[int, ...], data: bytes) -> NDArray[Any]:
    return np.frombuffer(data, np.dtype(kind)).reshape(shape).copy()


def _number(kind: str, data: bytes) -> Any:
    return np.frombuffer(data, np.dtype(kind))[0]


def _error(kind: str, text: str) -> FedboardError:
    (known,) = (each for each in _ERRORS if each.__name__ == kind)
    error = known.__new__(known)
    error.args = (text,)
    return error


_MAKERS = {each.__name__: each for each in (_array, _number, _error)}
