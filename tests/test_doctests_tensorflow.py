"""Every example in the docstring of a module that loads TensorFlow holds, too."""

import pytest

from tests import shown_examples


@pytest.mark.parametrize("name", shown_examples.LOADING_TENSORFLOW)
def test_the_examples_of_a_module_hold(name):
    results = shown_examples.tried(name)
    assert results.attempted > 0
    assert results.failed == 0
