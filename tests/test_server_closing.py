"""Closing a round: from its sums to the checkpoint that devices get."""

import numpy as np
import pytest

from server import closing


@pytest.mark.parametrize(
    ("value", "fits"), [(65504.0, True), (-65520.0, False), (np.inf, False), (np.nan, False)]
)
def test_weights_that_float16_cannot_hold_are_recognised(value, fits):
    assert closing.fits_float16({"w": np.array([0, value], np.float32)}) is fits
