"""Clip and rotation, the first steps of the encoding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import quantize


def vector(seed: int, size: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**53), size=st.integers(1, 9000))
def test_rotation_keeps_the_norm_and_can_be_undone(seed, size):
    exact = vector(3, size)
    rotated = quantize.rotate(exact, seed)
    assert np.linalg.norm(rotated) == pytest.approx(np.linalg.norm(exact), rel=1e-4)
    np.testing.assert_allclose(quantize.unrotate(rotated, seed, size), exact, atol=1e-4)


def test_rotating_a_sum_is_summing_what_was_rotated():
    a, b = vector(1, 5000), vector(2, 5000)
    np.testing.assert_allclose(
        quantize.rotate(a + b, 9), quantize.rotate(a, 9) + quantize.rotate(b, 9), atol=1e-4
    )


def test_clipping_by_hand():
    clipped = quantize.clip(
        {"a": np.array([3.0], np.float32), "b": np.array([4.0], np.float32)}, 1.0
    )
    assert (clipped["a"][0], clipped["b"][0]) == (pytest.approx(0.6), pytest.approx(0.8))
    small = {"a": np.array([0.3], np.float32)}
    assert quantize.clip(small, 1.0)["a"] == small["a"]


def test_the_transform_of_a_block_is_the_matrix_of_hadamard():
    """Entry (i, j) is +-1 / 64 by the bits that i and j have in common."""
    seed, size = 3, 2 * quantize.BLOCK
    signs = quantize.rotate(np.eye(1, size, 0, dtype=np.float32)[0], seed)[0] * 64
    one = np.zeros(size, np.float32)
    one[quantize.BLOCK + 2049] = signs
    rotated = quantize.rotate(one, seed)
    assert not rotated[: quantize.BLOCK].any()
    common = np.array([bin(row & 2049).count("1") for row in range(quantize.BLOCK)])
    expected = (1 - 2 * (common % 2)) / 64
    assert abs(rotated[quantize.BLOCK :] @ expected) == pytest.approx(1)
