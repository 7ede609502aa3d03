"""A folder that a command writes: whose it is, who writes it now, and how it is replaced.

A folder is ours when its marker parses as ours. Of what is in one, only files that its kind names
are ever removed or replaced; all else stays. The folder itself is never moved, so that it may be a
mount point, the current folder, or reached through a link. Beside its files there may be

    .fedboard.lock     while a command writes it: that command's process number
    .fedboard.new/     what the command has written so far; whoever comes next removes it
    .fedboard.ready/   all the command wrote, on its way to its place; whoever comes next goes on

so that a command that is killed anywhere leaves all of the old files or all of the new ones.
"""

import contextlib
import fnmatch
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from device_runtime import durable
from device_runtime.errors import FedboardError, RunError

LOCK, NEW, READY = ".fedboard.lock", ".fedboard.new", ".fedboard.ready"
ORDER = ".fedboard.order"  # in `ready`: what to move and what to remove, as JSON
OURS = (LOCK, NEW, READY)
# what a file system or a desktop puts into a folder by itself
NOBODYS = ("lost+found", ".DS_Store")


@dataclass(frozen=True)
class Kind:
    """What a folder is, and what commands write in it."""

    name: str  # with its article, in errors: "a run"
    # whether a folder's marker is there and parses as ours; reads at most that marker
    is_ours: Callable[[Path], bool]
    # every file that a command writes there, by its path from the folder: parts may hold `*`, and
    # a last part `**` is all below
    holds: tuple[str, ...]
    marker: str  # the file that comes last when a folder is new
    remedy: str = "choose another folder"  # where an earlier one must not be replaced
    error: type[FedboardError] = RunError
    # a second look at a file that `holds` names, where people choose names too
    wrote: Callable[[Path], bool] | None = None


class InUse(RunError):
    """Another process writes this folder now."""


def require_free(path: Path, kind: Kind, replace: bool = True) -> None:
    """Raise the kind's error if its commands may not write to this folder.

    They may to one that is not there, is empty, or is of the kind; to that last one only if
    `replace`. Writes nothing.
    """
    path = Path(path)
    other = "choose another folder; nothing there was touched"
    try:
        if not path.is_dir():
            if path.exists():
                raise kind.error(path, "is a file, expected a folder", other)
            if path.is_symlink():
                raise kind.error(path, "is a link to nothing", "make its folder")
            return
        if kind.is_ours(path) or kind.is_ours(path / READY):
            if not replace:
                raise kind.error(
                    path,
                    f"holds {_earlier(kind.name)} already",
                    kind.remedy,
                )
        elif not is_empty(path):
            raise kind.error(path, f"holds files that are not {kind.name} of Fedboard's", other)
    except OSError as error:
        raise kind.error(path, f"cannot be read ({error.strerror})", other) from None


def is_empty(path: Path) -> bool:
    """Whether nothing is in a folder but what a killed command of ours, or the system, left."""
    return all(entry.name in (*OURS, *NOBODYS) for entry in Path(path).iterdir())


@contextlib.contextmanager
def writing(path: Path, kind: Kind) -> Iterator[Path]:
    """The folder, made if needed, while no other process writes it; what a killed one left half
    written is put right first. A process may hold one folder several times.

    If the block fails, folders that were made for it and are empty are removed again. Raises the
    kind's error for a folder that is not its own (`require_free`) or cannot be written, and InUse
    with the number of the process that writes it.
    """
    path = Path(path)
    require_free(path, kind)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_made(path))
            stack.enter_context(_alone(path))
            require_free(path, kind)  # again: now nobody else can change it
            _settle(path, kind)
        except OSError as error:
            raise cannot_write(kind, error.filename or path, error) from None
        yield path


@contextlib.contextmanager
def replaced(path: Path, kind: Kind) -> Iterator[Path]:
    """An empty folder to fill, whose files take the place of the kind's at `path` when the block
    ends well: on disk, and all or none. Otherwise nothing changes.

    It lies in `path`, and only its owner may look into it. Raises as `writing` does; an operating
    system's refusal inside the block becomes the kind's error.
    """
    with writing(path, kind) as folder:
        require_no_links(folder, kind)
        new = folder / NEW
        try:
            new.mkdir(mode=0o700)
            yield new
            files = sorted(_files(new), key=lambda name: name == kind.marker)
            _require_room(folder, files, kind)
            old = [name for name in owned(folder, kind) if name not in files]
            (new / ORDER).write_text(json.dumps({"move": files, "remove": old}))
            for each in (*new.rglob("*"), new):
                durable.flush(each)
            os.rename(new, folder / READY)
            durable.flush(folder)
            _settle(folder, kind)
        except OSError as error:
            raise cannot_write(kind, error.filename or path, error) from None
        finally:
            shutil.rmtree(new, ignore_errors=True)


def clear(folder: Path, kind: Kind, keep: tuple[str, ...] = ()) -> None:
    """Remove the kind's files, the marker last, and the folders that are then empty; nothing else,
    and none to `keep`. To be called while `writing` it. Raises OSError.
    """
    names = [name for name in owned(folder, kind) if name not in keep]
    _remove(folder, sorted(names, key=lambda name: name == kind.marker))
    for place, _, _ in os.walk(folder, topdown=False):  # what was empty before, as TensorFlow makes
        name = Path(place).relative_to(folder).as_posix()
        if _reaches(name, kind.holds):
            with contextlib.suppress(OSError):
                os.rmdir(place)


def require_no_links(folder: Path, kind: Kind) -> None:
    """Raise the kind's error for a link in the place of one of its files or folders: no command of
    ours made it, and what it leads to may be somebody else's.
    """
    for name in _files(folder):
        if (folder / name).is_symlink() and _reaches(name, kind.holds):
            raise kind.error(
                folder / name,
                "is a link, which no command of ours makes",
                "remove the link, or choose another folder",
            )


def owned(folder: Path, kind: Kind) -> list[str]:
    """The files in a folder that its kind names, by their path from there, and what a killed
    process left of them. Follows no link.
    """
    names = [
        name
        for name in _files(folder)
        if _named(name, kind.holds) and not (folder / name).is_symlink()
    ]
    return [name for name in names if kind.wrote is None or kind.wrote(folder / name)]


def settle(path: Path, kind: Kind) -> None:
    """Before a folder is read: finish what a killed command had ready for it, and remove what one
    left half written. Waits for a command that is moving its files now.

    Raises the kind's error where what is ready is not what a command of ours left.

    Where neither can be done, because the folder is read-only, only files on their way are an
    error: RunError.
    """
    path = Path(path)
    try:
        if not any((path / name).exists() for name in OURS):
            return
        with _alone(path, wait=(path / READY).exists()):
            _settle(path, kind)
    except InUse:
        return  # whoever writes it sees to that
    except OSError as error:
        if (path / READY).exists():
            raise RunError(
                path,
                "a command was killed while it replaced this folder, and that cannot be finished "
                f"({error.strerror})",
                "read it once from where you may write",
            ) from None


def _require_room(folder: Path, names: list[str], kind: Kind) -> None:
    """Raise the kind's error if somebody's folder stands where a file of ours goes, or the
    reverse.
    """
    for name in names:
        place = folder / name
        parents = [each for each in place.parents if folder in each.parents]
        blocked = [each for each in parents if each.exists() and not each.is_dir()]
        if blocked:
            raise kind.error(blocked[0], "is a file, expected a folder", "move it away")
        if place.is_dir():
            raise kind.error(place, "is a folder, expected a file", "move it away")


def cannot_write(kind: Kind, where: object, error: OSError) -> FedboardError:
    """The kind's error for what the operating system refused."""
    return kind.error(
        where,
        f"cannot be written ({error.strerror or 'it is a link'})",
        "make room, or choose another folder",
    )


def _settle(folder: Path, kind: Kind) -> None:
    """Go on where a killed command stopped. The caller holds the lock."""
    if (folder / NEW).exists():
        shutil.rmtree(folder / NEW)
    ready = folder / READY
    if not ready.exists():
        return
    if (ready / ORDER).exists():
        move, remove = _order(folder, kind)
        _remove(folder, remove)
        for name in move:
            if (ready / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(ready / name, folder / name)
        for place in sorted({(folder / name).parent for name in move}):
            durable.flush(place)
    shutil.rmtree(ready)
    durable.flush(folder)


def _order(folder: Path, kind: Kind) -> tuple[list[str], list[str]]:
    """What to move from `ready` and what to remove. Raises the kind's error for an order that no
    command of ours wrote: a folder may come from anywhere.
    """
    where = folder / READY / ORDER
    try:
        order = json.loads(where.read_text())
        parts = order["move"], order["remove"]
        if all(_is_file_of(kind, folder, name) for names in parts for name in names):
            return parts
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    problem = f"was not written by a command of ours that writes {kind.name}"
    raise kind.error(where, problem, f"look at what is in {READY}, and move that away")


def _is_file_of(kind: Kind, folder: Path, name: str) -> bool:
    """Whether a name is that of a file of the kind which lies in the folder, behind no link."""
    if Path(name).is_absolute() or ".." in Path(name).parts or not _named(name, kind.holds):
        return False
    return (folder / name).parent.resolve().is_relative_to(folder.resolve())


def _remove(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
    parents = {parent for name in names for parent in (folder / name).parents}
    inside = [parent for parent in parents if folder in parent.parents]
    for parent in sorted(inside, key=lambda parent: -len(parent.parts)):
        with contextlib.suppress(OSError):  # something of somebody else's is in it
            parent.rmdir()


def _files(folder: Path) -> list[str]:
    """Every file below, but for those that tell who writes it."""
    names = []
    for place, folders, files in os.walk(folder):
        here = Path(place).relative_to(folder)
        if here == Path():
            folders[:] = [name for name in folders if name not in OURS]
            files = [name for name in files if name not in OURS]
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        names += [(here / name).as_posix() for name in (*files, *links)]
    return sorted(names)


def _named(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path is one of these, or what `durable` was killed over while it wrote one.

    >>> _named("a/b.txt", ("a/*.txt",)), _named("a/.b.txt.12.part", ("a/*.txt",))
    (True, True)
    >>> _named("b/c/d", ("b/**",)), _named("b/c", ("b/*/**",)), _named("a/c/b.txt", ("a/*.txt",))
    (True, False, False)
    """
    *place, last = name.split("/")
    if any(part in OURS for part in (*place, last)):  # of a folder of ours inside
        return True
    names = [name]
    if last.startswith("."):
        whole, _, number = last[1:].removesuffix(".part").rpartition(".")
        partial = whole if last.endswith(".part") and number.isdigit() else last[1:]
        names.append("/".join((*place, partial)))
    return any(
        _matches(each.split("/"), pattern.split("/")) for each in names for pattern in patterns
    )


def _reaches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path is a file of one of these patterns, or a folder on the way to one.

    >>> _reaches("a", ("a/b.txt",)), _reaches("a/b.txt", ("a/b.txt",)), _reaches("b", ("a/b",))
    (True, True, False)
    """
    parts = name.split("/")
    starts = ("/".join(pattern.split("/")[: len(parts)]) for pattern in patterns)
    return _named(name, (*starts, *patterns))


def _matches(parts: list[str], pattern: list[str]) -> bool:
    if pattern[-1] == "**" and len(parts) >= len(pattern):
        parts, pattern = parts[: len(pattern) - 1], pattern[:-1]
    return len(parts) == len(pattern) and all(map(fnmatch.fnmatchcase, parts, pattern))


@contextlib.contextmanager
def _made(path: Path) -> Iterator[None]:
    """The folder, there; what was made for it is removed again if the block fails and it is
    empty.
    """
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for each in missing:
            with contextlib.suppress(OSError):
                each.rmdir()
        raise


# folders this process holds, by device and inode: how often
_HELD: dict[tuple[int, int], int] = {}


@contextlib.contextmanager
def _alone(path: Path, wait: bool = False) -> Iterator[None]:
    status = path.stat()
    place = status.st_dev, status.st_ino
    if place not in _HELD:
        try:
            lock = durable.lock(path / LOCK, wait)
        except durable.Locked as held:
            raise InUse(
                path, f"is being written by {held}", "wait for that, or choose another folder"
            ) from None
    else:
        lock = None
    _HELD[place] = _HELD.get(place, 0) + 1
    try:
        yield
    finally:
        _HELD[place] -= 1
        if lock is not None:
            del _HELD[place]
            with contextlib.suppress(OSError):
                (path / LOCK).unlink()
            lock.close()


def _earlier(name: str) -> str:
    """With `earlier` after its article.

    >>> _earlier("a run"), _earlier("an export")
    ('an earlier run', 'an earlier export')
    """
    return f"an earlier {name.partition(' ')[2]}"
