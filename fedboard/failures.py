"""What a command that failed says: one line and an exit code, whatever was raised."""

import errno
import importlib.metadata
import os
import re
import sys
import sysconfig
import tempfile
import traceback
from pathlib import Path

from device_runtime.errors import FedboardError, RunError
from fedboard.__main__ import ROOMS, ROOT

TRACEBACK = "FEDBOARD_TRACEBACK"  # environment: print the whole traceback of a fault of ours
_LONG = re.compile(r"(?<![\w.])\d+\.\d{12,}")  # a number that is long to write out
_MAKE_ROOM = "make room there, or choose another place"
_ELSEWHERE = "choose a place you may write to, or change its permissions"
_REMEDIES = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EFBIG: _MAKE_ROOM,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.EROFS: _ELSEWHERE,
    errno.EMFILE: "let this program open more files: ulimit -n",
    errno.ENFILE: "close other programs: the machine has too many files open",
    errno.ENOMEM: "close other programs",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check that the path is right",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "name a folder",
    errno.ELOOP: "check where its links lead",
    errno.EIO: "check the disk",
}
# what a library's error of its own says of a disk, in the system's words
_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EMFILE, errno.EIO)


def line(error: Exception) -> str:
    """What is said of an exception that ended a command, without line ends or typed text.

    A fault of our own, which is any exception not expected here, is named by its place; the calls
    that led to it go to a file of their own.
    """
    known = _known(error) or _shadowed()
    return f"{_kind(known)}: {known}" if known else _fault(error)


def _kind(error: FedboardError) -> str:
    """What people know an error as: a finer kind is for whoever catches it."""
    kinds = [each for each in type(error).__mro__ if FedboardError in each.__bases__]
    return (kinds[0] if kinds else type(error)).__name__


def stranger() -> tuple[str, str] | None:
    """A package that this process has from elsewhere than where it is installed, and its file, if
    there is one: somebody's file of that name comes earlier on the path.
    """
    paths = sysconfig.get_paths()
    homes = [ROOT, *(Path(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib"))]
    installed = {*importlib.metadata.packages_distributions(), *sys.stdlib_module_names}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name not in installed or not file:
            continue
        if not any(Path(file).is_relative_to(home) for home in homes):
            return name, file
    return None


def usage(error: Exception) -> str:
    """What is said of words that are no command; error is the parser's."""
    context = getattr(error, "ctx", None)
    name = context.command_path if context is not None else "fedboard"
    message = str(error.format_message() if hasattr(error, "format_message") else error)
    if message.startswith("Got unexpected extra"):  # which may be what somebody typed
        message = "found more words than it takes; quote a text of several words"
    message = _LONG.sub(lambda number: f"{float(number[0]):g}", message)
    return f"{name}: {' '.join(message.split()).rstrip('.')}; see {name} --help"


def _known(error: Exception) -> FedboardError | None:
    if isinstance(error, FedboardError):
        return error
    if isinstance(error, OSError):
        return _system(error)
    if type(error).__module__ == "sqlite3":
        reason = getattr(error, "sqlite_errorname", type(error).__name__)
        return RunError(
            "a database", f"cannot be used ({reason})", f"is its disk full? {_ELSEWHERE}"
        )
    if isinstance(error, MemoryError):
        return RunError("memory", "there is not enough", "close other programs, or ask for less")
    if isinstance(error, RecursionError):
        return RunError("a file", "is nested too deeply to be read", "give one written by Fedboard")
    if isinstance(error, UnicodeDecodeError):
        problem = f"expected {error.encoding} text, found other bytes at {error.start}"
        return RunError("what was read", problem, "save it as UTF-8")
    if isinstance(error, UnicodeEncodeError):
        problem = f"holds what {error.encoding} cannot spell"
        return RunError("a name or text", problem, "use a name that is UTF-8 text")
    if isinstance(error, ValueError) and "null byte" in str(error):
        return RunError("a path", "holds a null byte", "check the path")
    number = next((number for number in _OF_A_DISK if os.strerror(number) in str(error)), None)
    if number is None:
        return None
    path, is_tensorflow_s, _ = str(error).partition(f"; {os.strerror(number)}")
    return _system(OSError(number, os.strerror(number), path if is_tensorflow_s else None))


def _shadowed() -> FedboardError | None:
    other = stranger()
    if other is None:
        return None
    name, file = other
    problem = f"stands in the way of the package {name}"
    return RunError(file, problem, "rename it, or take its folder off PYTHONPATH")


def _system(error: OSError) -> RunError:
    reason = error.strerror or str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0, "see what the system says")
    if error.filename is None and error.errno == errno.ENOENT and _is_nowhere():
        return RunError("the folder this was started in", "is gone", "go to one that exists")
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if _is_path(name)]
    return RunError(" -> ".join(names) or "fedboard", f"the system said: {reason}", remedy)


def _is_path(name: object) -> bool:
    return isinstance(name, str | bytes | os.PathLike)


def _is_nowhere() -> bool:
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def _fault(error: Exception) -> str:
    """One line; the calls go to a file. Neither holds the exception's own words, which may be what
    somebody typed.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f"{path.relative_to(ROOT)}, line {frame.lineno}"
        for frame in frames
        if any((path := Path(frame.filename)).is_relative_to(ROOT / room) for room in ROOMS)
    ]
    place = ours[-1] if ours else "a library"
    said = f"{type(error).__name__}: {place}: this is a fault of Fedboard"
    try:
        descriptor, kept = tempfile.mkstemp(prefix="fedboard-", suffix=".txt")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines([*traceback.format_list(frames), type(error).__name__, "\n"])
    except OSError:
        return f"{said}; set {TRACEBACK}=1 to see more"
    return f"{said}; report it with {kept}, or set {TRACEBACK}=1 to see all of it"
