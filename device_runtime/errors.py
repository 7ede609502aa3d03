"""Errors a person reads: where, what was expected and found, what to do. One line each."""

from typing import Any

from device_runtime.shown import printable


class FedboardError(Exception):
    """Base of every error we raise on bad input. `str(error)` is one line: `where: problem;
    remedy`.

    What cannot be printed (line ends, a terminal's escape codes) is written as an escape: a file or
    server can put it into any of the three.
    """

    def __init__(self, where: object, problem: str, remedy: str):
        super().__init__(printable(f"{where}: {problem}; {remedy}"))

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process it goes as its line."""
        return _of_line, (type(self), str(self))


def _of_line(kind: type[FedboardError], line: str) -> FedboardError:
    error = kind.__new__(kind)
    error.args = (line,)
    return error


class ConfigError(FedboardError):
    """A table or message does not have the fields its dataclass has."""


class CorpusError(FedboardError):
    """A corpus cannot be read, is empty, or has too few users."""


class VocabularyError(FedboardError):
    """A tokenizer file is not one of ours or does not fit the model."""


class CheckpointError(FedboardError):
    """A checkpoint file is damaged, foreign, or of other shapes."""


class UpdateError(FedboardError):
    """An encoded update cannot be decoded or breaks the round's rules."""


class BundleError(FedboardError):
    """A bundle is incomplete, altered, signed by a stranger, or of an unknown version."""


class Unproven(BundleError):
    """What was said of a bundle does not show that its maker made it so; the bundle may be good."""


class TypingLogError(FedboardError):
    """A typing log cannot be opened with this key."""


class ServerError(FedboardError):
    """The server refused a request or cannot be reached."""


class Unanswered(ServerError):
    """No whole answer came: the request may have had its effect, or not."""


class RunError(FedboardError):
    """A run folder, port or tool this command needs is not usable."""
