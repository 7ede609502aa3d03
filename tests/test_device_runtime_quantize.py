import contextlib
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import quantize
from device_runtime.errors import UpdateError
from device_runtime.update import (
    HEADER_BYTES,
    SCALE_BYTES,
    Header,
    decode,
    dequantize,
    encode,
    encoded_bytes,
)

SHAPES = "ab" * 32


def vector(seed: int, size: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def test_rounding_to_two_values_by_hand():
    codes, low, step = quantize.quantize(
        np.array([[-1, 3], [0, 8]], np.float32), 1, np.random.default_rng(0)
    )
    assert (codes.tolist(), low.tolist(), step.tolist()) == (
        [[0, 1], [0, 1]],
        [-1.0, 0.0],
        [4.0, 8.0],
    )


def test_a_constant_vector_has_step_zero_and_survives():
    data = encode(np.zeros(5, np.float32), Header(1, 2, SHAPES, 8, 1), np.random.default_rng(0))
    update = decode(data)
    assert update.step.tolist() == [0]
    assert (dequantize(update) == 0).all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    size=st.integers(1, 9000),
    bits=st.integers(1, 16),
    scale=st.floats(1e-6, 1e3),
)
def test_what_is_decoded_lies_within_one_step_and_every_field_survives(seed, size, bits, scale):
    exact = vector(seed, size, scale)
    data = encode(exact, Header(7, seed, SHAPES, bits, 21), np.random.default_rng(seed))
    update = decode(data)
    assert (
        update.round,
        update.seed,
        update.shapes,
        update.bits,
        update.dimension,
        update.examples,
    ) == (7, seed, SHAPES, bits, size, 21)
    assert len(data) == encoded_bytes(size, bits)
    rotated = quantize.rotate(exact, seed)
    error = np.abs(dequantize(update) - rotated).reshape(-1, quantize.BLOCK).max(axis=1)
    assert (error <= update.step * (1 + 1e-4) + 1e-6 * scale).all()


@pytest.mark.parametrize("bits", range(1, 17))
def test_random_rounding_is_unbiased_in_every_block_at_every_width(bits):
    """4,000 draws of a value have a mean within 5 deviations of it; the deviation of one is at most
    half a step of its block.
    """
    exact, draws = np.stack([vector(1, 20), vector(2, 20, 0.01)]), 4000
    many = np.repeat(exact, draws, axis=0)  # [blocks * draws, 20]
    codes, low, step = quantize.quantize(many, bits, np.random.default_rng(bits))
    mean = (
        (low.astype(np.float64)[:, None] + step.astype(np.float64)[:, None] * codes)
        .reshape(2, draws, 20)
        .mean(axis=1)
    )
    # a step travels as float32
    allowed = 5 * step[::draws] / 2 / np.sqrt(draws) + 1e-6 * np.abs(exact).max(axis=1)
    assert (np.abs(mean - exact).max(axis=1) <= allowed).all()


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


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200), at=st.integers(0, 59), byte=st.integers(0, 255))
def test_bytes_of_strangers_are_refused_by_name(data, at, byte):
    right = bytearray(encode(vector(0, 3), Header(1, 2, SHAPES, 1, 1), np.random.default_rng(0)))
    for damaged in (data, bytes(right[:-1]), bytes(right[: at % HEADER_BYTES])):
        with pytest.raises(UpdateError):
            decode(damaged)
    right[at % HEADER_BYTES] = byte
    with contextlib.suppress(UpdateError):
        assert len(decode(bytes(right)).codes) == quantize.BLOCK


@pytest.mark.parametrize("bits", [0, 17])
def test_bits_outside_one_to_sixteen_are_refused(bits):
    with pytest.raises(ValueError, match="1 to 16"):
        quantize.quantize(np.zeros((1, 2), np.float32), bits, np.random.default_rng(0))


def test_a_value_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        quantize.quantize(np.array([[np.nan]], np.float32), 8, np.random.default_rng(0))


GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("bits", [1, 4, 8, 11, 16])
def test_the_bytes_of_an_update_stay_what_they_were(bits):
    """To make a golden file anew after a change of format: write what this test encodes."""
    exact = vector(11, 5000) * np.linspace(1, 0.01, 5000, dtype=np.float32)
    data = encode(exact, Header(3, 2**52 + 5, SHAPES, bits, 21), np.random.default_rng(4))
    assert data == (GOLDEN / f"update-{bits}.bin").read_bytes()
    update = decode(data)
    assert (update.round, update.seed, update.examples, update.dimension) == (
        3,
        2**52 + 5,
        21,
        5000,
    )
    damaged = quantize.unrotate(dequantize(update), update.seed, 5000)
    assert np.linalg.norm(damaged - exact) <= np.sqrt(
        quantize.BLOCK * np.square(update.step, dtype=np.float64).sum()
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), bits=st.integers(1, 16))
def test_the_expected_error_is_at_most_half_a_step_a_value(seed, bits):
    """Variance of rounding up or down with probability f: f (1 - f) of a step, at most a
    quarter.
    """
    exact = vector(seed, 9000)
    exact[quantize.BLOCK :] *= 1e-3  # two blocks of little
    update = decode(encode(exact, Header(1, seed, SHAPES, bits, 1), np.random.default_rng(seed)))
    error = (
        np.square(dequantize(update) - quantize.rotate(exact, seed))
        .reshape(-1, quantize.BLOCK)
        .mean(axis=1)
    )
    assert (error <= 0.3 * np.square(update.step, dtype=np.float64) + 1e-12).all()
    # a block of little is spared the noise of a large one
    assert update.step[1:].max() < 0.01 * update.step[0]


@pytest.mark.parametrize(
    ("at", "value"), [(0, np.nan), (0, -np.inf), (4, np.inf), (4, np.nan), (4, -1e-30)]
)
@pytest.mark.parametrize("block", [0, 1])
def test_a_scale_of_any_block_that_is_not_finite_or_negative_is_refused(block, at, value):
    data = bytearray(encode(vector(0, 5000), Header(1, 2, SHAPES, 4, 1), np.random.default_rng(0)))
    struct.pack_into("<f", data, HEADER_BYTES + block * SCALE_BYTES + at, value)
    with pytest.raises(UpdateError, match="a scale is not finite, or negative"):
        decode(bytes(data))


def test_a_header_that_promises_more_values_than_follow_allocates_nothing():
    data = bytearray(encode(vector(0, 3), Header(1, 2, SHAPES, 16, 1), np.random.default_rng(0)))
    # the dimension: four thousand million values, eight gigabytes of codes
    struct.pack_into("<I", data, 16, 2**32 - 1)
    tracemalloc.start()
    with pytest.raises(UpdateError, match="bytes, found"):
        decode(bytes(data))
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_an_update_of_version_1_is_refused_by_its_version():
    data = bytearray(encode(vector(0, 3), Header(1, 2, SHAPES, 8, 1), np.random.default_rng(0)))
    data[4] = 1
    with pytest.raises(UpdateError, match=r"version 2, found .* version 1"):
        decode(bytes(data))


def test_an_update_of_gboard_s_size_is_under_1_45_megabytes():
    assert encoded_bytes(1_423_511, 8) == 60 + 348 * 8 + 348 * 4096
    assert encoded_bytes(1_423_511, 8) < 1_450_000
