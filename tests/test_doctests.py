"""Every example in a docstring holds. Modules without one are not loaded, so that TensorFlow is not
loaded either.
"""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("device_runtime", "model", "server", "conversion", "fleet", "fedboard", "tests")
PROMPT = "\n    >>> "
LOADING_TENSORFLOW = {"model.aggregators", "model.simulation", "conversion.package"}


def modules_with_examples() -> list[str]:
    """The dotted names of the files of ours in which some docstring shows one."""
    paths = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    shown = [path for path in paths if PROMPT in path.read_text()]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in shown]


def marked(name: str) -> object:
    """The name as a parameter, with the mark of what the module loads."""
    return pytest.param(name, marks=[pytest.mark.tensorflow] * (name in LOADING_TENSORFLOW))


@pytest.mark.parametrize("name", map(marked, modules_with_examples()))
def test_the_examples_of_a_module_hold(name):
    results = doctest.testmod(importlib.import_module(name), raise_on_error=False)
    assert results.attempted > 0
    assert results.failed == 0


def test_the_modules_are_those_that_show_examples():
    names = modules_with_examples()
    assert {"device_runtime.interpreter", "device_runtime.predictor", "fedboard.doctor"} <= {*names}
    assert "tests.test_doctests" not in names
