import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import patch
from device_runtime.errors import BundleError, ConfigError
from device_runtime.patch import Constant

# bytes 0-3: the graph; 4-7: a scale; 8-10: codes; 11: the graph; 12-19: two floats; 20: the graph
TOY = {
    "kernel": Constant("int8", 8, 3, 4, factor=2.0),
    "bias": Constant("float32", 12, 2),
}
SHAPES = {"kernel": (3, 1), "bias": (2,)}
FILE = b"TFL3" + b"ssss" + b"ccc" + b"|" + b"f" * 8 + b"!"


def weights(kernel=(1.0, -0.5, 0.25), bias=(1.5, -2.0)):
    return {
        "kernel": np.array(kernel, np.float32).reshape(3, 1),
        "bias": np.array(bias, np.float32),
    }


def test_a_file_of_new_weights_has_their_codes_scales_and_floats_and_else_the_same_bytes():
    file = patch.predict(FILE, TOY, weights())
    # 2 * [1, -0.5, 0.25] in steps of 2 / 127: 127, -63.5 and 31.75, halves away from zero
    assert np.frombuffer(file, np.int8, 3, 8).tolist() == [127, -64, 32]
    assert np.frombuffer(file, "<f4", 1, 4)[0] == np.float32(2 / 127)
    assert np.frombuffer(file, "<f4", 2, 12).tolist() == [1.5, -2.0]
    assert (file[:4], file[11:12], file[20:]) == (b"TFL3", b"|", b"!")


def test_weights_come_out_of_a_file_as_its_codes_stand_for_them():
    out = patch.weights_in(patch.predict(FILE, TOY, weights()), TOY, SHAPES)
    assert out["bias"].tolist() == [1.5, -2.0]
    assert out["kernel"].shape == (3, 1)
    np.testing.assert_allclose(out["kernel"][:, 0], [1.0, -64 / 127, 32 / 127], rtol=1e-6)
    assert {array.dtype for array in out.values()} == {np.dtype("float32")}


def test_an_array_of_zeros_has_zeros_as_codes_and_the_smallest_scale():
    file = patch.predict(FILE, TOY, weights(kernel=(0, 0, 0)))
    assert file[8:11] == bytes(3)
    assert np.frombuffer(file, "<f4", 1, 4)[0] == np.float32(0.5e-6 / 127)
    assert patch.weights_in(file, TOY, SHAPES)["kernel"].tolist() == [[0], [0], [0]]


def test_a_scale_that_stands_in_several_places_is_written_into_each():
    twice = {"bias": TOY["bias"], "kernel": Constant("int8", 8, 3, 0, scale_copies=(4,))}
    file = patch.predict(FILE, twice, weights())
    assert file[0:4] == file[4:8] == np.float32(1 / 127).tobytes()
    with pytest.raises(BundleError, match="scale at byte 0: is not one positive number"):
        patch.weights_in(file[:4] + np.float32(1).tobytes() + file[8:], twice, SHAPES)


@given(
    st.lists(st.floats(-(2.0**15), 2.0**15, width=16), min_size=3, max_size=3),
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2),
)
def test_patching_what_came_out_again_changes_nothing_and_is_within_half_a_step(kernel, bias):
    arrays = weights(kernel, bias)
    file = patch.predict(FILE, TOY, arrays)
    out = patch.weights_in(file, TOY, SHAPES)
    step = max(np.abs(arrays["kernel"]).max(), 0.25e-6) / 127
    assert np.abs(out["kernel"] - arrays["kernel"]).max() <= step * 0.5001
    np.testing.assert_array_equal(out["bias"], arrays["bias"])
    again = patch.predict(file, TOY, out)
    assert again[8:11] == file[8:11]


def test_the_hash_of_a_graph_is_the_same_whatever_its_weights_and_another_for_another_graph():
    once = patch.predict(FILE, TOY, weights())
    again = patch.predict(FILE, TOY, weights(kernel=(3, 2, 1), bias=(0, 0)))
    zeroed = b"TFL3" + bytes(7) + b"|" + bytes(8) + b"!"
    assert patch.graph_hash(once, TOY) == hashlib.sha256(zeroed).hexdigest()
    assert patch.graph_hash(again, TOY) == patch.graph_hash(once, TOY)
    assert patch.graph_hash(once[:11] + b"/" + once[12:], TOY) != patch.graph_hash(once, TOY)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bias": Constant("float32", 14, 2)}, "bias: expected within the 21 bytes .* byte 22"),
        ({"bias": Constant("float32", 2**31 - 1, 1)}, "bias: expected within the 21 bytes"),
        ({"bias": Constant("float32", 10, 2)}, "bias: shares bytes of the file with kernel"),
        ({"bias": Constant("int8", 12, 2, 4)}, "kernel: shares bytes of the file with bias"),
        ({"bias": Constant("int8", 12, 2, 13)}, "bias: shares bytes of the file with bias"),
        ({"bias": Constant("int8", 12, 2, 0, scale_copies=(19,))}, "found up to byte 23"),
    ],
)
def test_constants_that_do_not_fit_the_file_are_refused_by_name(change, said):
    constants = {**TOY, **change}
    for use in (
        lambda: patch.predict(FILE, constants, weights()),
        lambda: patch.graph_hash(FILE, constants),
        lambda: patch.weights_in(FILE, constants, SHAPES),
    ):
        with pytest.raises(BundleError, match=said):
            use()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kernel": np.ones(2)}, "kernel: expected 3 values, found 2 values"),
        ({"gate": np.ones(3)}, "gate: expected no such array, found 3 values"),
        ({"bias": np.array([1, np.nan])}, "bias: its values are not finite"),
        ({"kernel": np.array([1, 2, np.inf])}, "kernel: its values are not finite"),
        ({"kernel": np.array([1, 2, 3e38], np.float32)}, "kernel: its values are not finite"),
    ],
)
def test_weights_that_do_not_fit_the_constants_are_refused_by_name(change, said):
    with pytest.raises(BundleError, match=said):
        patch.predict(FILE, TOY, {**weights(), **change})


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"kernel": (3, 1)}, "bias: expected 2 values, found no such array"),
        ({**SHAPES, "kernel": (2, 2)}, "kernel: expected 3 values, found 4 values"),
    ],
)
def test_shapes_of_another_network_are_refused(shapes, said):
    with pytest.raises(BundleError, match=said):
        patch.weights_in(patch.predict(FILE, TOY, weights()), TOY, shapes)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_file_whose_scale_is_no_positive_number_is_refused(scale):
    file = bytearray(patch.predict(FILE, TOY, weights()))
    file[4:8] = np.float32(scale).tobytes()
    with pytest.raises(BundleError, match="scale at byte 4: is not one positive number"):
        patch.weights_in(bytes(file), TOY, SHAPES)


def test_how_far_a_file_s_weights_can_be_is_half_a_step_for_each_of_their_codes():
    file = patch.predict(FILE, TOY, weights())
    # three codes, each within half of 2 / 127, of arrays of which 2 times is quantised
    assert patch.rounding(file, TOY) == pytest.approx(np.sqrt(3) * (2 / 127) / 2 / 2)


@pytest.mark.parametrize(("field", "value"), [("offset", -1), ("factor", 0.0), ("type", "int4")])
def test_a_constant_out_of_bounds_cannot_be_written_down(field, value):
    with pytest.raises(ConfigError, match=f"constant.{field}"):
        Constant(**{"type": "int8", "offset": 1, "values": 1, field: value})


def test_a_patch_takes_few_bytes_more_than_the_file_it_makes():
    """Of the size that `gboard` has."""
    values = 960_384
    constants = {"embedding": Constant("int8", 4, values, 0)}
    arrays = {"embedding": np.random.default_rng(0).normal(size=values).astype(np.float32)}
    template = bytes(4 + values)
    tracemalloc.start()
    patch.predict(template, constants, arrays)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 8_000_000
