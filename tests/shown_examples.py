"""Where docstrings show examples, read without importing anything, and whether they hold."""

import doctest
import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = (
    "device_runtime",
    "model",
    "server",
    "conversion",
    "fleet",
    "fedboard",
    "benchmarks",
    "tests",
)
PROMPT = re.compile(r"^\s*>>> ", re.MULTILINE)
# importing them loads TensorFlow, which `tests/suite.py` gives to one worker
LOADING_TENSORFLOW = ("model.simulation",)


def shows(text: str) -> bool:
    """Whether some docstring of a module shows an example, however far it is indented."""
    return PROMPT.search(text) is not None


def modules_that_show() -> list[str]:
    """The dotted names of the files of ours with an example."""
    paths = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    shown = [path for path in paths if shows(path.read_text())]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in shown]


def tried(name: str) -> doctest.TestResults:
    """How many examples of a module were tried and how many failed."""
    return doctest.testmod(importlib.import_module(name), raise_on_error=False)
