"""What strangers or a failing disk put into our files is read whole or refused in one line.

Strangers write checkpoints and manifests, the disk holds the typing log.
"""

import json
import sqlite3
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from device_runtime import bundle, weights
from device_runtime.errors import BundleError, CheckpointError, TypingLogError
from device_runtime.shown import printable
from device_runtime.typing_log import TypingLog

META = {"fedboard": json.dumps({"round": 1, "parent": "", "tokenizer": ""})}
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def file(header, data: bytes = bytes(4)) -> bytes:
    """A safetensors file with this header: a table, or its bytes."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def manifest(data: bytes) -> bundle.Manifest:
    return bundle._manifest(data, Path("manifest.json"))


def refused(data: bytes) -> str:
    with pytest.raises(CheckpointError) as error:
        weights.from_bytes(data)
    return str(error.value)


def test_this_file_is_whole_so_that_the_others_are_refused_for_what_they_change():
    assert weights.from_bytes(file({"__metadata__": META, "a": ONE})).weights["a"].tolist() == [0]


@pytest.mark.parametrize(
    "kind", ["I8", "U8", "I32", "I64", "BOOL", "F64", "BF16", "F8_E4M3", "F8_E5M2", "C64", "F4"]
)
def test_arrays_of_other_types_are_refused(kind):
    bits = {"C64": 64, "F4": 4, "F64": 64, "I64": 64, "I32": 32, "BF16": 16}.get(kind, 8)
    refused(
        file(
            {"__metadata__": META, "a": {"dtype": kind, "shape": [8], "data_offsets": [0, bits]}},
            bytes(bits),
        )
    )


def test_an_array_of_whole_numbers_is_named():
    assert "a is of type int32, expected float32 or float16" in refused(
        file({"__metadata__": META, "a": {**ONE, "dtype": "I32"}})
    )


def test_a_nan_is_refused_by_a_name_that_can_be_printed():
    assert r"a\x1b[2J has values that are not finite" in refused(
        file({"__metadata__": META, "a\x1b[2J": ONE}, struct.pack("<f", np.nan))
    )


@pytest.mark.parametrize(
    "length",
    [0, 1, 100_000_001, 2**31, 2**32, 2**63, 2**64 - 1],
    ids=["0", "1", "over 100 MB", "2 GB", "4 GB", "2**63", "2**64 - 1"],
)
def test_a_header_that_says_it_is_huge_is_refused_before_anything_of_its_size_is_made(length):
    refused(struct.pack("<Q", length) + b"{}")


@pytest.mark.parametrize(
    "shape", [[0, 2**62], [2**32, 2**32], [2**64], [-1], [1] * 100, [1.0], "1", None]
)
def test_impossible_shapes_are_refused(shape):
    refused(file({"__metadata__": META, "a": {**ONE, "shape": shape}}))


@pytest.mark.parametrize(
    "header",
    [
        {"__metadata__": META, "a": ONE, "b": ONE},
        {"__metadata__": META, "a": {**ONE, "data_offsets": [4, 8]}},
        {"__metadata__": META, "a": {**ONE, "data_offsets": [4, 0]}},
        {"__metadata__": META},
        {"a": ONE},
        {"__metadata__": {"other": "x"}, "a": ONE},
    ],
)
def test_arrays_that_overlap_or_leave_gaps_and_files_of_other_origin_are_refused(header):
    refused(file(header))


def test_a_name_that_is_there_twice_is_refused():
    one, meta = json.dumps(ONE), json.dumps(META)
    refused(file(f'{{"__metadata__":{meta},"a":{one},"a":{one}}}'.encode()))
    refused(
        file(
            {
                "__metadata__": {"fedboard": '{"round":1,"round":2,"parent":"","tokenizer":""}'},
                "a": ONE,
            }
        )
    )


@pytest.mark.parametrize(
    "meta",
    [
        "",
        "null",
        "[]",
        "7",
        "{}",
        "[" * 100_000,
        '{"a":' * 100_000,
        *(
            json.dumps({"round": 1, "parent": "", "tokenizer": "", **change})
            for change in (
                {"round": -1},
                {"round": 2**32},
                {"round": 1.5},
                {"round": "1"},
                {"round": True},
                {"parent": None},
                {"tokenizer": 3},
            )
        ),
        '{"round":Infinity,"parent":"","tokenizer":""}',
        '{"round":' + "9" * 5000 + ',"parent":"","tokenizer":""}',
    ],
)
def test_metadata_that_is_not_ours_is_refused(meta):
    refused(file({"__metadata__": {"fedboard": meta}, "a": ONE}))


def test_deep_json_is_refused_by_both_readers():
    for deep in (b"[" * 100_000, b'{"a":' * 100_000, b'{"__metadata__":' + b"[" * 100_000):
        refused(file(deep))
        with pytest.raises(BundleError):
            manifest(deep)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)
TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I32"]) | JSON,
        "shape": st.lists(st.integers(-1, 2**64), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(0, 64), min_size=2, max_size=2) | JSON,
    }
)


@settings(max_examples=150, deadline=None)
@given(
    arrays=st.dictionaries(st.text(max_size=4), TENSOR | JSON, max_size=3),
    meta=st.just(META["fedboard"]) | st.text(),
    data=st.binary(max_size=64),
)
def test_any_header_gives_finite_float32_arrays_or_a_checkpoint_error(arrays, meta, data):
    try:
        read_back = weights.from_bytes(file({"__metadata__": {"fedboard": meta}, **arrays}, data))
    except CheckpointError as error:
        assert str(error) == printable(str(error))
    else:
        assert all(
            array.dtype == np.float32 and np.isfinite(array).all()
            for array in read_back.weights.values()
        )


MANIFEST = {
    "network": "tiny",
    "embedding": 16,
    "units": 24,
    "vocabulary": 38,
    "tokenizer": "0" * 64,
    "shapes": "0" * 64,
    "format": bundle.FORMAT,
    "lineage": {"corpus": "tiny", "round": 1, "checkpoint": "0" * 64},
    "files": {name: {"bytes": 1, "sha256": "0" * 64} for name in bundle.FILES},
}


def test_this_manifest_is_whole_so_that_the_others_are_refused_for_what_they_change():
    assert manifest(json.dumps(MANIFEST).encode()).network == "tiny"


PLACES = [
    *((name,) for name in MANIFEST),
    ("files", bundle.PLAN),
    ("lineage", "round"),
    ("minimum_runtime",),
    ("gate",),
    ("odd",),
]


@settings(max_examples=300, deadline=None)
@given(where=st.sampled_from(PLACES), value=JSON)
@example(where=("minimum_runtime",), value="9" * 5000)
def test_any_value_in_a_manifest_gives_a_manifest_or_a_bundle_error(where, value):
    changed = json.loads(json.dumps(MANIFEST))
    table = changed
    for name in where[:-1]:
        table = table[name]
    table[where[-1]] = value
    try:
        read_back = manifest(json.dumps(changed).encode())
    except BundleError as error:
        assert str(error) == printable(str(error))
    else:
        assert (type(read_back.release), type(read_back.lineage.round), read_back.format) == (
            int,
            int,
            bundle.FORMAT,
        )


@settings(max_examples=200, deadline=None)
@given(data=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_not_a_manifest(data):
    with pytest.raises(BundleError):
        manifest(data)


@pytest.fixture
def log_file(tmp_path):
    """A typing log of one message, closed."""
    with TypingLog(tmp_path / "log.sqlite") as log:
        log.append("i will see you", 1.0)
    return tmp_path / "log.sqlite"


def test_a_typing_log_whose_tables_are_described_in_what_is_no_text_is_refused(log_file):
    # SQLite's own message quotes it
    log_file.write_bytes(log_file.read_bytes().replace(b"CREATE TABLE", b"CRE\xffTE TABLE"))
    with pytest.raises(TypingLogError, match="damaged"), TypingLog(log_file) as log:
        log.read(1)


@pytest.mark.parametrize("value", ["text", 5, 1.5, b"", b"short"])
def test_a_record_of_another_type_is_passed_over_and_counted(log_file, value):
    with sqlite3.connect(log_file) as db:
        db.execute("UPDATE records SET sealed = ?", (value,))
    db.close()
    with TypingLog(log_file) as log:
        assert log.read(1) == []
        assert log.altered() == log.count()
