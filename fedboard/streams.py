"""The standard streams: what cannot be written to them is one error, never a traceback."""

import codecs
import io
import os
import sys

from device_runtime.errors import RunError
from device_runtime.shown import printable

READABLE = "fedboard-readable"  # how a character is written that the terminal's set does not have
_LIKE = {
    "…": "...",
    "·": "-",
    "•": "*",
    "–": "-",
    "—": "-",
    "−": "-",
    "±": "+/-",
    "×": "x",
    "→": "->",
    "│": "|",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
}


class StreamError(RunError):
    """Standard output is closed, full, or nobody reads it any more."""


def begin() -> None:
    """Make the standard streams of this process safe to write to. Once, before all else.

    A stream that is closed is opened on nothing, so that no file of ours gets its number and is
    written into by what means the stream. Raises StreamError if standard output was closed.
    """
    output = sys.stdout
    for number, mode in enumerate("rww"):
        _open_on_nothing(number, mode)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if output is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stdout, sys.stderr = _guarded(sys.stdout, "standard output"), _guarded(sys.stderr, "")
    if output is None:
        raise StreamError("standard output", "is closed", "send it somewhere, such as > /dev/null")


def end() -> None:
    """Write what still waits. Raises StreamError as a write does."""
    if sys.stdout is not None:
        sys.stdout.flush()


def encoded(text: str) -> bytes:
    """As standard output writes it, for who writes to a terminal without it."""
    return text.encode(getattr(sys.stdout, "encoding", None) or "utf-8", READABLE)


class _Writer(io.FileIO):
    """A descriptor that is written to until that fails; from then on, nothing is."""

    def __init__(self, number: int, name: str):
        super().__init__(number, "w", closefd=False)
        self.stream = name

    def write(self, data) -> int:
        """As FileIO. Raises StreamError once, if the stream has a name."""
        try:
            return super().write(data)
        except OSError as error:
            # what is still buffered would be tried again, at the latest when the interpreter ends
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())
            os.close(nothing)
            if not self.stream:
                return len(data)
            raise StreamError(
                self.stream,
                f"cannot be written ({error.strerror})",
                "read it to its end, or send it to a file with room",
            ) from None


def _open_on_nothing(number: int, mode: str) -> None:
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
        os.set_inheritable(number, True)


def _guarded(stream, name: str):
    """The stream, its writes guarded; one that is no descriptor's, as in a test, as it is."""
    try:
        number = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Writer(number, name)),
        encoding=stream.encoding,
        errors=READABLE,
        line_buffering=not name or stream.line_buffering or stream.write_through,
    )


def _readable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_LIKE.get(c) or _escape(c) for c in missing), error.end


def _escape(character: str) -> str:
    escaped = printable(character)
    return escaped if escaped.isascii() else escaped.encode("unicode_escape").decode()


codecs.register_error(READABLE, _readable)
