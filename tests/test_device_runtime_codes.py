import hashlib
import lzma
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import codes, patch
from device_runtime.errors import BundleError
from device_runtime.patch import Constant
from device_runtime.weights import as_sent, digest

GOLDEN = Path(__file__).parent / "golden"
# bytes 0-3 and 26: the graph; 4-7: a scale, and 8-11 once more; 12-17: codes; 18-25: two floats
TOY = {
    "kernel": Constant("int8", 12, 6, 4, scale_copies=(8,)),
    "bias": Constant("float32", 18, 2),
}
FILE = b"TFL3" + bytes(22) + b"!"
ENTRIES = 70  # where they begin


def file_of(kernel, bias=(1.5, -2.0)):
    return patch.predict(
        FILE, TOY, {"kernel": np.array(kernel, np.float32), "bias": np.array(bias, np.float32)}
    )


OLD = file_of([127, 10, -10, 5, 0, 1])  # codes as they are, its scale is 1
NEW = file_of([127, 11, -10, 3, 0, 1], (1.5, -2.001953125))
DIFFERENCE = codes.encode(OLD, NEW, TOY)


def entries(difference):
    """Method, four bytes and unpacked stream of each constant, in order of their names."""
    at, parts = ENTRIES, []
    while at < len(difference):
        method, said, size = struct.unpack_from("<B4sI", difference, at)
        stream = difference[at + 9 : at + 9 + size]
        parts.append((said, codes._unpack(stream, method, 8 if not parts else 6)))
        at += 9 + size
    return parts


def test_a_difference_says_by_how_much_each_guess_is_wrong():
    assert DIFFERENCE[:6] == b"FBCD\x01\x00"
    assert DIFFERENCE[6:38].hex() == digest(OLD)
    assert DIFFERENCE[38:70].hex() == digest(NEW)
    (shift, bias), (scale, kernel) = entries(DIFFERENCE)
    # +1 and -2, folded
    assert (scale, list(kernel)) == (np.float32(1).tobytes(), [0, 2, 0, 3, 0, 0])
    # -2.001953125 is one step of float16 below -2: bit 13 of float32, so a step of 1 downwards
    assert (struct.unpack("<I", shift), bias[:2], bias[2:]) == ((13,), b"\x00\x01", bytes(6))


def test_codes_that_only_the_scale_moved_are_guessed():
    """The largest doubles, so that the others' codes halve: guessed, but for what rounding does."""
    difference = codes.encode(OLD, file_of([254, 10, -10, 6, 0, 0]), TOY)
    (_, bias), (scale, kernel) = entries(difference)
    assert (struct.unpack("<f", scale), bias) == ((2.0,), bytes(8))
    # guesses: 63.5 -> 64 where 127 is due, 5, -5, 2.5 -> 2 where 3 is due, 0, 0.5 -> 0
    assert list(kernel) == [126, 0, 0, 2, 0, 0]


def test_a_difference_makes_the_new_file_of_the_old_one():
    assert codes.apply(OLD, DIFFERENCE, TOY, digest(NEW)) == NEW
    assert codes.apply(OLD, codes.encode(OLD, OLD, TOY), TOY, digest(OLD)) == OLD


floats = st.lists(
    st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2
)
halves = st.lists(st.floats(-65504, 65504, width=16), min_size=6, max_size=6)


@given(halves, halves, floats, floats)
def test_any_two_files_of_one_graph_are_made_of_each_other(kernel, other, bias, other_bias):
    old, new = file_of(kernel, bias), file_of(other, other_bias)
    assert codes.apply(old, codes.encode(old, new, TOY), TOY, digest(new)) == new


@given(st.binary(min_size=14, max_size=14), st.binary(min_size=14, max_size=14))
def test_any_codes_and_any_bits_of_floats_are_kept(before, after):
    """Also those that no converter writes: -128, and what is not a number."""
    old, new = (each[:12] + data + each[26:] for each, data in ((OLD, before), (NEW, after)))
    assert codes.apply(old, codes.encode(old, new, TOY), TOY, digest(new)) == new


def test_files_of_two_graphs_have_no_difference():
    with pytest.raises(BundleError, match="the two files are not of one graph"):
        codes.encode(OLD, NEW[:-1] + b"?", TOY)
    with pytest.raises(BundleError, match="expected within the"):
        codes.encode(OLD, NEW[:12], TOY)


def altered(place, data):
    return DIFFERENCE[:place] + data + DIFFERENCE[place + len(data) :]


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (b"FBCD", "expected at least 70 bytes, found 4"),
        (altered(0, b"FBDF"), "found b'FBDF' version 1"),
        (altered(4, b"\x02"), "found b'FBCD' version 2"),
        (altered(6, b"\x00\x00\x00"), "made for another predict.tflite than the one held"),
        (altered(38, b"\x00\x00\x00"), "makes another predict.tflite than the manifest names"),
        (altered(ENTRIES, b"\x02"), "packed in a way 2 that is none"),
        (altered(ENTRIES + 1, b"\x20"), "shifted further than they are long"),
        (altered(ENTRIES + 5, b"\xff\xff\xff\xff"), "cannot be unpacked|of another length"),
        (altered(ENTRIES + 9, b"\xff\xff"), "cannot be unpacked"),
        (DIFFERENCE + b"!", "goes on after its end"),
        (DIFFERENCE[:ENTRIES], "it ends early"),
        (DIFFERENCE[:-1], "of another length|ends early"),
    ],
)
def test_a_damaged_difference_is_refused_by_name(difference, said):
    with pytest.raises(BundleError, match=said):
        codes.apply(OLD, difference, TOY, digest(NEW))


def test_a_difference_from_or_to_another_file_is_refused():
    with pytest.raises(BundleError, match=r"made for another predict.tflite than the one held"):
        codes.apply(NEW, DIFFERENCE, TOY, digest(NEW))
    with pytest.raises(BundleError, match=r"makes another predict.tflite than the manifest names"):
        codes.apply(OLD, DIFFERENCE, TOY, digest(OLD))


@settings(max_examples=300)
@given(st.integers(ENTRIES, len(DIFFERENCE) - 1), st.binary(min_size=1, max_size=12))
def test_whatever_is_altered_makes_the_new_file_or_is_refused(place, data):
    try:
        file = codes.apply(OLD, altered(place, data)[: len(DIFFERENCE)], TOY, digest(NEW))
    except BundleError:
        return
    assert file == NEW


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_that_is_no_positive_number_is_refused(scale):
    at = DIFFERENCE.rindex(np.float32(1).tobytes())
    with pytest.raises(BundleError, match="a scale is not a positive number"):
        codes.apply(OLD, altered(at, np.float32(scale).tobytes()), TOY, digest(NEW))


def test_a_stream_that_unpacks_to_far_more_takes_no_memory():
    bomb = lzma.compress(bytes(1 << 27), lzma.FORMAT_RAW, filters=codes._FILTERS)
    method_and_shift = struct.pack("<B4sI", codes.LZMA, bytes(4), len(bomb))
    difference = DIFFERENCE[:ENTRIES] + method_and_shift + bomb
    tracemalloc.start()
    with pytest.raises(BundleError, match="of another length than the file's constants"):
        codes.apply(OLD, difference, TOY, digest(NEW))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2_000_000  # the dictionary of LZMA


def drawn(seed):
    rng = np.random.default_rng(seed)
    return {"kernel": rng.normal(size=20_000), "bias": rng.normal(size=1000)}


@pytest.mark.parametrize(("moved", "method"), [(0.0001, codes.LZMA), (0.3, codes.HUFFMAN)])
def test_small_changes_are_packed_well_and_large_ones_as_well_as_can_be(moved, method):
    """Beside the entropy of what is packed, and the whole constants."""
    constants = {
        "kernel": Constant("int8", 4, 20_000, 0),
        "bias": Constant("float32", 20_004, 1000),
    }
    template, first = bytes(24_004), drawn(0)
    second = {name: first[name] + moved * array for name, array in drawn(1).items()}
    old, new = (patch.predict(template, constants, as_sent(each)) for each in (first, second))
    difference = codes.encode(old, new, constants)
    assert codes.apply(old, difference, constants, digest(new)) == new
    one, other = (patch.codes_of(file, constants["kernel"]) for file in (old, new))
    _, counts = np.unique(other.astype(int) - one, return_counts=True)
    entropy = -(counts * np.log2(counts / counts.sum())).sum() / 8
    at = difference.rindex(struct.pack("<f", patch.scale_of(new, constants["kernel"])))
    assert difference[at - 1] == method
    assert len(difference) - at < 1.15 * entropy + 200
    assert len(difference) < 22_000


def test_a_difference_of_version_1_is_still_read():
    """codes.bin: OLD to NEW of this file, as they were made when there was only version 1."""
    stored = (GOLDEN / "codes.bin").read_bytes()
    assert hashlib.sha256(OLD).hexdigest() == stored[6:38].hex()
    assert codes.apply(OLD, stored, TOY, digest(NEW)) == NEW
