"""The TFLite interpreter behind one class: which one runs, and how its functions are called.

ai-edge-litert, the faster one, wherever it is installed; tflite-runtime otherwise. The environment
variable FEDBOARD_INTERPRETER, or an argument, names another.

A truncated graph crashes tflite-runtime, so only bytes whose SHA-256 was checked may come here
(`bundle.py` does that). An interpreter is not safe to share: one per thread, and any other is
turned away.
"""

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from device_runtime import versions
from device_runtime.errors import RunError

CHOICE = "FEDBOARD_INTERPRETER"
STDERR = 2
TFLITE_ENDS = (3, 12)  # tflite-runtime has no wheels from this Python on
_FIRST_RUN = threading.Lock()  # standard error is the whole process's
# what LiteRT writes at the first run of a process, where no setting of it can be reached
ANNOUNCEMENT = b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n"
# `device` brings an interpreter on every Python, `litert` one that works with every NumPy
INSTALL = "install one: pip install 'fedboard[device]'"
INSTALL_LITERT = "install the one that can: pip install 'fedboard[litert]'"

Arrays = dict[str, NDArray[Any]]
Opener = Callable[..., Any]  # a class `Interpreter`; neither package has types


def _litert() -> Opener:
    from ai_edge_litert import interpreter

    opener: Opener = interpreter.Interpreter
    return opener


def _tflite() -> Opener:
    from tflite_runtime import interpreter

    opener: Opener = interpreter.Interpreter
    return opener


LOADERS = {versions.LITERT: _litert, "tflite-runtime": _tflite}  # by distribution, preferred first


@dataclass(frozen=True)
class Runtime:
    """An installed interpreter: the distribution it comes from, and its version."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def installed() -> list[Runtime]:
    """The interpreters of this environment, preferred first. Loads none of them.

    >>> all(runtime.name in LOADERS for runtime in installed())
    True
    """
    runtimes = []
    for name in LOADERS:
        try:
            runtimes.append(Runtime(name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return runtimes


def chosen(name: str | None = None, runtimes: Sequence[Runtime] | None = None) -> Runtime:
    """The interpreter that graphs run on: the named one, else the environment's choice, else the
    first of `runtimes`, by default those installed. Loads none of them.

    Raises RunError if it is not among them.

    >>> chosen("tflite-runtime", [Runtime("tflite-runtime", "2.14.0")]).version
    '2.14.0'
    """
    name = name or os.environ.get(CHOICE)
    runtimes = installed() if runtimes is None else runtimes
    for runtime in runtimes:
        if not name or name == runtime.name:
            return runtime
    have = ", ".join(map(str, runtimes)) or "none"
    raise RunError(
        "interpreter",
        f"expected {name or ' or '.join(LOADERS)}, found {have}",
        _remedy(name, sys.version_info[:2]),
    )


def _remedy(name: str | None, python: tuple[int, int]) -> str:
    """What to do where the interpreter named, or any, is missing on this Python."""
    if not name:
        return INSTALL
    if name == versions.LITERT:
        return f"install it: pip install 'fedboard[litert]', or unset {CHOICE}"
    if name in LOADERS and python < TFLITE_ENDS:
        return f"install it: pip install 'fedboard[device]', or unset {CHOICE}"
    return f"name {' or '.join(LOADERS)}, or unset {CHOICE}"


@functools.cache
def load(runtime: Runtime) -> Opener:
    """The class `Interpreter` of an installed one. Raises RunError if it cannot be imported, as
    tflite-runtime cannot with NumPy 2.
    """
    try:
        return LOADERS[runtime.name]()
    except (ImportError, AttributeError) as error:
        problem = f"{runtime} cannot be imported with NumPy {np.__version__} ({error})"
        raise RunError("interpreter", problem, INSTALL_LITERT) from None


@contextlib.contextmanager
def _without(line: bytes) -> Iterator[None]:
    """In the block, what a library writes to standard error is held back, and given out after it
    but for one line.
    """
    try:
        stderr = os.dup(STDERR)
        held = os.fdopen(os.memfd_create("standard error"), "w+b")
    except (AttributeError, OSError):  # no such files here, or no standard error
        yield
        return
    with held:
        os.dup2(held.fileno(), STDERR)
        try:
            yield
        finally:
            os.dup2(stderr, STDERR)
            os.close(stderr)
            held.seek(0)
            with contextlib.suppress(OSError):  # nobody reads it any more
                os.write(STDERR, held.read().replace(line, b""))


class Graph:
    """Named pure functions of one TFLite file."""

    _has_run: ClassVar[bool] = False  # any graph of this process, on LiteRT

    def __init__(self, verified: bytes, threads: int = 1, interpreter: str | None = None):
        """Open the bytes of a file whose hash was checked. `interpreter` is a name in LOADERS.

        Raises RunError if there is no such interpreter.
        """
        self.runtime = chosen(interpreter)
        self._thread = threading.get_ident()
        self._interpreter = load(self.runtime)(model_content=verified, num_threads=threads)
        self.signatures: dict[str, dict[str, list[str]]] = self._interpreter.get_signature_list()
        self._runners = {
            name: self._interpreter.get_signature_runner(name) for name in self.signatures
        }

    def run(self, signature: str, **inputs: NDArray[Any] | np.generic) -> Arrays:
        """Call one signature. The results are copies, so the next call cannot change them.

        Inputs may have more rows than the file declares where nothing in it fixes their number, as
        in `predict`. Raises RuntimeError in any other thread.
        """
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                "a graph belongs to the thread it was made in: two at once crash the process"
            )
        runner = self._runners[signature]
        results: Arrays
        if self._announced():
            results = runner(**inputs)
        else:
            with _FIRST_RUN, _without(ANNOUNCEMENT):
                results = runner(**inputs)
                Graph._has_run = True
        return results

    def _announced(self) -> bool:
        """Whether nothing need be held back any more: LiteRT writes its line once a process."""
        return Graph._has_run or self.runtime.name != versions.LITERT

    def start(self, signature: str = "predict", rows: int = 1) -> Arrays:
        """The state before the first token, of `rows` texts: zeros, [rows, width], float32.

        The state is what the signature takes and gives back.
        """
        details = self._runners[signature].get_input_details()
        return {
            name: np.zeros((rows, *details[name]["shape"][1:]), details[name]["dtype"])
            for name in self._state(signature)
        }

    def step(
        self, signature: str, state: Arrays, **inputs: NDArray[Any] | np.generic
    ) -> tuple[Arrays, Arrays]:
        """Call one signature on a state, and keep the state after it apart from the other results.

        Raises RuntimeError in any other thread.
        """
        results = self.run(signature, **inputs, **state)
        return results, {name: results.pop(name) for name in self._state(signature)}

    def _state(self, signature: str) -> list[str]:
        ends = self.signatures[signature]
        return sorted(set(ends["inputs"]) & set(ends["outputs"]))
