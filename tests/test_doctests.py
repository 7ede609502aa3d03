"""Every example in a docstring holds. Modules without one are not loaded; those that load
TensorFlow are in `test_doctests_tensorflow.py`.
"""

import pytest

from tests import shown_examples

MODULES = [
    name
    for name in shown_examples.modules_that_show()
    if name not in shown_examples.LOADING_TENSORFLOW
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name):
    results = shown_examples.tried(name)
    assert results.attempted > 0
    assert results.failed == 0


def test_the_modules_are_those_that_show_examples():
    assert {"device_runtime.interpreter", "fedboard.doctor", "benchmarks.recall_plot"} <= {*MODULES}
    assert "tests.test_doctests" not in MODULES


def test_an_example_of_a_property_is_one_however_far_it_is_indented():
    assert {"server.step", "device_runtime.optimizers"} <= {*MODULES}
    assert shown_examples.shows('    """\n        >>> 1\n        1\n        """\n')
    assert not shown_examples.shows("prompt = '>>> '\n")
