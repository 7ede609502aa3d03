"""What a scan looks for is found in every form, wherever it begins, also where it was packed."""

import base64
import gzip
import json
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import traces
from benchmarks.traces import Seen
from device_runtime import update

WORD = "zebracorn walks"
IDS = [300, 17, 9000, 45, 12, 8, 7, 99]


def forms(data: bytes, *marks) -> set[str]:
    return {each.form for each in traces.find([Seen("there", data)], marks)}


@pytest.mark.parametrize(
    ("form", "data"),
    [
        ("UTF-8", WORD.encode()),
        ("UTF-16", WORD.encode("utf-16-le")),
        ("UTF-16", WORD.encode("utf-16-be")),
        ("escaped", "".join(f"\\u{ord(each):04x}" for each in WORD).encode()),
        ("per cent", b"zebracorn%20walks"),
        ("per cent", b"?q=zebracorn+walks"),
        ("hexadecimal", WORD.encode().hex().encode()),
    ],
)
def test_a_word_is_found_in_every_form(form, data):
    assert form in forms(b"what\x00" + data + b"ever", traces.of_text("it", WORD))


@pytest.mark.parametrize("before", range(6))
def test_a_word_is_found_in_base64_whatever_stands_before_it(before):
    text = b"123456"[:before] + WORD.encode() + b" and more"
    assert forms(base64.b64encode(text), traces.of_text("it", WORD)) == {"base64"}


def test_a_word_with_letters_that_json_escapes_is_found():
    assert forms(json.dumps("äöüäöüäöüß").encode(), traces.of_text("it", "äöüäöüäöüß"))


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
def test_a_word_is_found_in_what_was_packed(pack):
    text = pack(b"this and " + WORD.encode() + b" and that")
    finds = traces.find([Seen("there", b"head" + text + b"tail")], [traces.of_text("it", WORD)])
    assert [(each.where, each.form) for each in finds] == [("there, unpacked", "UTF-8")]


@pytest.mark.parametrize("kind", ["<u2", ">u2", "<i4", ">i4", "<i8", "<f4"])
def test_ids_are_found_in_every_width(kind):
    data = b"odd" + np.array([1, *IDS, 2]).astype(kind).tobytes()
    assert forms(data, traces.of_ids("them", IDS)) == {"16 to 64 bits"}


def test_ids_are_found_as_a_list_of_json():
    assert forms(json.dumps({"ids": IDS}).encode(), traces.of_ids("them", IDS)) == {"text"}


def test_ids_are_found_as_varints():
    # 300 is 0xac 0x02; what is below 128 stands for itself
    data = bytes([0xAC, 2, 17, 0xA8, 0x46, 45, 12, 8, 7, 99])
    assert forms(data, traces.of_ids("them", IDS)) == {"varints"}


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_values_of_a_delta_are_found(kind):
    delta = np.random.default_rng(1).standard_normal(500).astype(np.float32)
    delta[100:200] = 0  # rows that training has left alone
    mark = traces.of_values("it", delta, np.random.default_rng(2))
    assert forms(b"x" + delta.astype(kind).tobytes(), mark) == {kind}
    assert not forms((delta + 1).astype(kind).tobytes(), mark)


def test_a_key_is_found_as_it_is_kept():
    key = np.random.default_rng(1).bytes(32)
    mark = traces.of_secret("it", key)
    assert forms(key, mark) == {"bytes"}
    assert forms(key.hex().encode(), mark) == {"hexadecimal"}
    assert forms(base64.b64encode(key), mark) == {"base64"}


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=40), st.binary(min_size=8, max_size=40))
def test_all_that_is_there_is_found_and_nothing_else(before, after, secret):
    mark = traces.Mark("it", {"bytes": (secret,)})
    assert forms(before + secret + after, mark) == {"bytes"}
    assert bool(forms(before + after, mark)) == (secret in before + after)


def test_what_is_too_short_to_be_no_chance_is_no_form():
    assert traces.of_text("it", "abc").forms.keys() == {"escaped"}  # the others have up to 6 bytes


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_found_by_their_correlation_wherever_they_begin(bits):
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 2**bits, 4096).astype(np.uint8)
    data = rng.bytes(777) + update.pack(codes, bits) + rng.bytes(100)
    pattern, other = (each.astype(float) for each in (codes, rng.permutation(codes)))
    views = [traces.correlations(each, [pattern, other]) for each in traces.numbers(data)]
    assert max(own for own, _ in views) > 0.99
    assert max(stranger for _, stranger in views) < 0.1
