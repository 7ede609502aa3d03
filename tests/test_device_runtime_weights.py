import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import weights
from device_runtime.errors import CheckpointError

TWO = {"b": np.array([[1.0, 2.0]], np.float32), "a": np.array([3.0], np.float32)}


def test_a_checkpoint_survives_its_file_and_equal_ones_have_equal_bytes():
    data = weights.to_bytes(weights.Checkpoint(TWO, 7, "parent", "words"))
    read = weights.from_bytes(data)
    assert (read.round, read.parent, read.tokenizer) == (7, "parent", "words")
    assert all((read.weights[name] == TWO[name]).all() for name in TWO)
    assert (
        weights.to_bytes(weights.Checkpoint(dict(reversed(TWO.items())), 7, "parent", "words"))
        == data
    )


def test_float16_halves_the_file_and_comes_back_as_float32():
    large = weights.Checkpoint({"a": np.full(10_000, 0.1, np.float32)})
    whole, half = weights.to_bytes(large), weights.to_bytes(large, np.float16)
    assert len(whole) - len(half) == 20_000
    assert weights.from_bytes(half).weights["a"].dtype == np.float32


def test_flatten_goes_by_name_and_unflatten_undoes_it():
    assert weights.flatten(TWO).tolist() == [3, 1, 2]
    again = weights.unflatten(weights.flatten(TWO), TWO)
    assert all((again[name] == TWO[name]).all() for name in TWO)
    assert weights.norm(TWO) == pytest.approx(np.sqrt(14))


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300))
def test_bytes_of_strangers_are_a_checkpoint_error(data):
    with pytest.raises(CheckpointError):
        weights.from_bytes(data)


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, 200), at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_damaged_file_never_does_worse_than_a_checkpoint_error(cut, at, byte):
    data = bytearray(weights.to_bytes(weights.Checkpoint(TWO)))
    with pytest.raises(CheckpointError):
        weights.from_bytes(bytes(data[: min(cut, len(data) - 1)]))
    data[at % len(data)] = byte
    with contextlib.suppress(CheckpointError):
        weights.from_bytes(bytes(data))


def test_values_that_are_not_finite_are_refused_by_name():
    with pytest.raises(CheckpointError, match="a has values that are not finite"):
        weights.from_bytes(
            weights.to_bytes(weights.Checkpoint({"a": np.array([np.inf], np.float32)}))
        )


def test_other_shapes_have_another_hash():
    assert weights.shapes_hash(TWO) == weights.shapes_hash(dict(reversed(TWO.items())))
    assert weights.shapes_hash(TWO) != weights.shapes_hash({**TWO, "b": np.zeros(2)})


def test_the_shapes_of_a_file_are_read_without_its_arrays():
    for dtype in (np.float32, np.float16):
        assert weights.shapes_in(
            weights.to_bytes(weights.Checkpoint(TWO), dtype)
        ) == weights.shapes_hash(TWO)


@settings(max_examples=100, deadline=None)
@given(
    header=st.binary(max_size=60)
    | st.sampled_from([b"[]", b'{"a": 1}', b'{"a": {}}', b"[" * 99_999])
)
def test_a_header_of_strangers_is_a_checkpoint_error(header):
    with contextlib.suppress(CheckpointError):
        weights.shapes_in(len(header).to_bytes(8, "little") + header)


def test_a_vector_of_another_length_is_not_cut_to_fit():
    vector = weights.flatten(TWO)
    assert weights.shapes_hash(weights.unflatten(vector, TWO)) == weights.shapes_hash(TWO)
    for other in (np.append(vector, 1.0), vector[:-1]):
        with pytest.raises(ValueError, match=f"expected {len(vector)} values"):
            weights.unflatten(other, TWO)
