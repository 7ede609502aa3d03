"""An update as bytes: what is written is read, the bytes stay, and strangers' are refused."""

import contextlib
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import encoding, packing, update
from device_runtime.errors import UpdateError
from device_runtime.terms import Terms
from device_runtime.update import HEADER_BYTES, Form, Header, Sealed
from device_runtime.wire import Plan
from tests.toy_server import SHAPES, terms_for

GOLDEN = Path(__file__).parent / "golden"
TERMS = "ab" * 32


def codes(bits: int, count: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(0, 2**bits, count)
    return drawn.astype(np.uint8 if bits <= 8 else np.uint16)


def of(bits: int, dimension: int) -> Terms:
    return terms_for(Plan(bits=bits, clipping_norm=1.0), SHAPES, dimension)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 16), st.integers(0, 5000), st.integers(0, 2**32 - 1), st.integers(0, 99))
def test_codes_and_header_come_back_as_they_were(bits, count, round, seed):
    about, sent = Header(Form.CODES, round, count, TERMS), codes(bits, count, seed)
    data = update.of_codes(sent, about, bits)
    assert update.header(data) == about
    assert len(data) == HEADER_BYTES + (count * bits + 7) // 8
    assert update.codes(bytearray(data), bits).tolist() == sent.tolist()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 500), st.integers(2, 1000), st.integers(0, 99))
def test_masked_words_and_the_seal_come_back_as_they_were(bits, count, most, seed):
    by = packing.layout(count, 2**bits - 1, most)
    rng = np.random.default_rng(seed)
    words = packing.from_bytes(rng.bytes(by.bytes), by)
    seal, signature = rng.bytes(update.SEAL_BYTES), rng.bytes(update.SIGNATURE_BYTES)
    about = Header(Form.SEALED, 7, count, TERMS)
    data = update.of_sealed(Sealed(seal, signature, words), about, by)
    again = update.sealed(data, by)
    assert update.header(data) == about
    assert len(data) == update.sealed_bytes(by)
    assert (again.seal, again.signature) == (seal, signature)
    assert (again.words == words).all()
    alone = update.of_words(words, replace(about, form=Form.WORDS), by)
    assert (update.words(alone, by) == words).all()
    for read, other in ((update.words, data), (update.sealed, alone)):
        with pytest.raises(UpdateError, match="expected"):
            read(other, by)
    with pytest.raises(UpdateError, match=r"expected .* bytes, found"):
        update.sealed(data[:-1], by)
    with pytest.raises(UpdateError, match=f"expected {count} numbers, found {count + 1}"):
        update.words(update.of_words(words, Header(Form.WORDS, 7, count + 1, TERMS), by), by)


def test_of_a_delta_travel_its_codes_by_the_terms():
    terms, delta = of(4, 50), {"a": np.linspace(-0.1, 0.1, 50, dtype=np.float32)}
    data = update.of_delta(delta, 3, terms, np.random.default_rng(1))
    sent = encoding.encode(delta, terms.encoding, np.random.default_rng(1))
    assert update.header(data) == Header(Form.CODES, 3, 4096, terms.name)
    assert (update.codes(data, 4) == sent).all()
    assert len(data) == update.encoded_bytes(50, 4) == 48 + 2048


@pytest.mark.parametrize("bits", [1, 4, 8, 11, 16])
def test_the_bytes_of_an_update_stay_what_they_were(bits):
    """To make a golden file anew after a change of format: write what this test encodes."""
    drawn = np.random.default_rng(11).standard_normal(5000) * np.linspace(1, 0.01, 5000)
    delta = {"a": (drawn / np.linalg.norm(drawn)).astype(np.float32)}
    data = update.of_delta(delta, 3, of(bits, 5000), np.random.default_rng(4))
    assert data == (GOLDEN / f"update-{bits}.bin").read_bytes()


def test_the_terms_of_the_golden_updates_have_the_name_they_had():
    """Devices, servers and helpers of all versions call the same terms alike."""
    assert update.header((GOLDEN / "update-8.bin").read_bytes()).terms == of(8, 5000).name


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.integers(0, HEADER_BYTES - 1), st.integers(0, 255))
def test_bytes_of_strangers_are_refused_by_name(data, at, byte):
    right = bytearray(update.of_codes(codes(1, 40), Header(Form.CODES, 1, 40, TERMS), 1))
    for damaged in (data, bytes(right[:-1]), bytes(right[:at])):
        with pytest.raises(UpdateError):
            update.codes(damaged, 1)
    right[at] = byte
    with contextlib.suppress(UpdateError):
        assert len(update.codes(bytes(right), 1)) in range(33, 41)


def test_a_header_that_promises_more_numbers_than_follow_allocates_nothing():
    data = bytearray(update.of_codes(codes(16, 3), Header(Form.CODES, 1, 3, TERMS), 16))
    struct.pack_into("<I", data, 12, 2**32 - 1)
    tracemalloc.start()
    with pytest.raises(UpdateError, match="bytes, found"):
        update.codes(bytes(data), 16)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@pytest.mark.parametrize("version", [1, 2])
def test_an_update_of_an_earlier_version_is_refused_by_its_version(version):
    data = bytearray(update.of_codes(codes(8, 3), Header(Form.CODES, 1, 3, TERMS), 8))
    data[4] = version
    with pytest.raises(UpdateError, match=f"version 3, found .* version {version}"):
        update.header(data)


@pytest.mark.parametrize(("at", "byte", "says"), [(6, 3, "found 3 and 0"), (7, 1, "found 0 and 1")])
def test_a_form_that_there_is_not_is_refused(at, byte, says):
    data = bytearray(update.of_codes(codes(8, 3), Header(Form.CODES, 1, 3, TERMS), 8))
    data[at] = byte
    with pytest.raises(UpdateError, match=says):
        update.header(data)


def test_an_update_of_gboard_s_size_is_under_1_45_megabytes():
    assert update.encoded_bytes(1_423_511, 8) == 48 + 348 * 4096
    assert update.encoded_bytes(1_423_511, 4) == 48 + 348 * 2048


def test_masked_updates_of_gboard_s_size_are_within_what_was_promised_beside_8_bits():
    """1.35 times an 8-bit update of format 2 at a hundred devices of 4 bits, 1.75 at a thousand;
    seal and signature at most 200 bytes.
    """
    before = 60 + 348 * 8 + 348 * 4096
    for most, times in ((100, 1.35), (1000, 1.75)):
        by = packing.layout(348 * 4096, 15, most)
        assert update.sealed_bytes(by) <= times * before
    assert update.SEAL_BYTES + update.SIGNATURE_BYTES <= 200
