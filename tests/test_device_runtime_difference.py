import contextlib
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import difference, weights
from device_runtime.errors import CheckpointError
from device_runtime.weights import Checkpoint


def file(values, round: int = 1, dtype: type = np.float16) -> bytes:
    return weights.to_bytes(
        Checkpoint({"a": np.array(values, np.float32)}, round, "ab" * 32, "cd" * 32), dtype
    )


OLD, NEW = file([0.5, -1.0, 0.0, 3.0]), file([0.5005, -1.001, -0.0, 3.0], round=2)


def test_the_new_checkpoint_comes_back_byte_for_byte():
    assert difference.apply(OLD, difference.encode(OLD, NEW)) == NEW


finite = st.lists(
    st.integers(0, 2**16 - 1).filter(lambda bits: bits & 0x7C00 != 0x7C00), min_size=1, max_size=60
)


@settings(max_examples=150, deadline=None)
@given(finite, st.data())
def test_any_finite_values_survive_with_their_signs_and_zeros(bits, data):
    other = data.draw(st.permutations(bits))
    old, new = (file(np.array(each, np.uint16).view(np.float16)) for each in (bits, other))
    assert difference.apply(old, difference.encode(old, new)) == new


def test_neighbours_differ_by_one_even_across_zero():
    values = np.array([-6e-8, -0.0, 0.0, 6e-8, 1.0, 1.001], np.float16).view(np.uint16)
    steps = np.diff(difference._ordered(values).astype(int))
    assert steps[:3].tolist() == [1, 1, 1]
    assert steps[4] == 1


def test_small_changes_cost_less_than_half():
    rng = np.random.default_rng(0)
    before = rng.normal(0, 0.2, 20_000)
    old, new = file(before), file(before + rng.normal(0, 1e-4, 20_000))
    assert len(difference.encode(old, new)) < len(new) / 2


def test_changes_travel_by_the_exponent_of_the_old_value_then_as_in_the_file():
    old, new = (
        file([1.0, 0.25, -0.25, 1.5]),
        file([1.0 + 2**-10, 0.25, -0.25 - 2**-12, 1.5 + 2**-9]),
    )
    encoded, head = difference.encode(old, new), difference._HEAD
    header, low = head.unpack_from(encoded)[4:]
    start = head.size + header
    # 0.25 stays, -0.25 one down, 1.0 one up, 1.5 two up
    assert list(zlib.decompress(encoded[start : start + low])) == [0, 1, 2, 4]


def test_a_difference_from_another_checkpoint_is_refused_by_name():
    with pytest.raises(CheckpointError, match="another checkpoint than the one held"):
        difference.apply(NEW, difference.encode(OLD, NEW))


def test_checkpoints_of_other_shapes_or_precision_have_no_difference():
    with pytest.raises(CheckpointError, match="4 values, the other 2"):
        difference.encode(OLD, file([1.0, 2.0]))
    with pytest.raises(CheckpointError, match="expected float16"):
        difference.encode(OLD, file([0.0] * 4, dtype=np.float32))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        difference.encode(b"nothing", NEW)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_difference_is_a_checkpoint_error_or_harmless(data):
    right = difference.encode(OLD, NEW)
    at = data.draw(st.integers(0, len(right) - 1))
    cut, flipped = right[:at], bytearray(right)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    for damaged in (cut, bytes(flipped), data.draw(st.binary(max_size=120)), right + b"x"):
        with contextlib.suppress(CheckpointError):
            assert difference.apply(OLD, damaged) == NEW


def test_a_stream_that_would_fill_the_memory_is_stopped():
    right = difference.encode(OLD, NEW)
    head = difference._HEAD
    fields = list(head.unpack_from(right))
    bomb = zlib.compress(bytes(100_000_000), 9)
    fields[4:] = [len(bomb), 0]
    with pytest.raises(CheckpointError, match="of another length"):
        difference.apply(OLD, head.pack(*fields) + bomb)


def test_a_difference_of_another_version_is_refused_by_its_version():
    encoded = bytearray(difference.encode(OLD, NEW))
    encoded[4] = 9
    with pytest.raises(CheckpointError, match=r"version 1, found .* version 9"):
        difference.apply(OLD, bytes(encoded))


def test_the_golden_difference_can_still_be_applied():
    assert (
        difference.apply(OLD, (Path(__file__).parent / "golden" / "difference.bin").read_bytes())
        == NEW
    )
