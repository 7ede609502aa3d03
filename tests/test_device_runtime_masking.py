"""Masking: what hides an update, what is sealed to whom, and that neither says too much."""

import hashlib
import hmac
from dataclasses import fields, replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import masking, packing
from device_runtime.masking import SEAL_BYTES, Bound
from device_runtime.packing import Layout

PRIVATE, OTHER = (X25519PrivateKey.from_private_bytes(bytes(range(n, n + 32))) for n in (0, 1))
PUBLIC = PRIVATE.public_key().public_bytes_raw().hex()
ABOUT = Bound("5e" * 16, "7a" * 16, 9, "1d" * 32, "de" * 32, PUBLIC)
SEED = bytes(range(100, 132))
# the seal of SEED about ABOUT, by the sender's key of bytes 1 to 32
SEAL = bytes.fromhex(
    "07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c"
    "0d08026b9719aa38e9f571fa0a09d550f92c54afad4144d98d81b8c3211ddf01"
    "751ec1d46bf10317c59c965f97998188"
)


def counting(count):
    return bytes(range(1, count + 1))


def layouts():
    return st.builds(packing.layout, st.integers(1, 300), st.integers(1, 255), st.integers(1, 1000))


def test_a_mask_is_the_stream_of_aes_256_in_counter_mode():
    """Of the key and counter of zeros: FIPS 197's cipher of sixteen zero bytes, dc95c078..."""
    words = masking.mask(bytes(32), packing.layout(12, 15, 108))
    assert words.tolist() == [0x898940A278C095DC, 0x8720849214A248AD]
    narrow = masking.mask(bytes(32), packing.layout(8, 15, 1092))  # words of 7 bytes
    assert narrow.tolist() == [0x8940A278C095DC, 0x849214A248AD89]


def test_a_seal_is_that_of_every_version():
    assert masking.seal(SEED, ABOUT, counting) == SEAL
    assert masking.open_seal(SEAL, ABOUT, PRIVATE) == SEED
    assert len(SEAL) == SEAL_BYTES == 80


def test_a_seal_is_what_the_standards_make_of_it():
    """X25519, HKDF-SHA256 by hand (RFC 5869, no salt, one block), AES-GCM with a nonce of zeros."""
    sender = X25519PrivateKey.from_private_bytes(counting(32))
    public = sender.public_key().public_bytes_raw()
    shared = sender.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(PUBLIC)))
    extracted = hmac.digest(bytes(32), shared, hashlib.sha256)
    lines = ("fedboard-seal-v1", "5e" * 16, "7a" * 16, "9", "1d" * 32, "de" * 32, PUBLIC)
    info = "\n".join(lines).encode() + b"\n" + public
    key = hmac.digest(extracted, info + b"\x01", hashlib.sha256)
    assert public + AESGCM(key).encrypt(bytes(12), SEED, None) == SEAL


@given(st.binary(min_size=32, max_size=32), layouts())
def test_a_mask_is_the_same_for_the_same_seed_and_below_the_word_s_size(seed, by):
    words = masking.mask(seed, by)
    assert words.shape == (by.words,)
    assert int(words.max()) < 256**by.size
    assert np.array_equal(words, masking.mask(seed, by))


@given(st.binary(min_size=32, max_size=32), st.lists(st.integers(0, 15), min_size=1, max_size=50))
def test_what_is_masked_is_the_numbers_once_the_mask_is_off(seed, numbers):
    by = packing.layout(len(numbers), 15, 108)
    words = masking.masked(np.array(numbers, np.uint8), seed, by)
    bare = packing.unpack(packing.subtract(words, masking.mask(seed, by), by), by)
    assert bare.tolist() == numbers


def test_masked_words_say_nothing_of_the_numbers():
    """The same share of ones at every bit, whether all numbers are the smallest or the largest:
    of 40,000 words within five standard errors of a half.
    """
    by = packing.layout(6 * 40_000, 15, 108)
    for numbers in (np.zeros(by.count, np.uint8), np.full(by.count, 15, np.uint8)):
        words = masking.masked(numbers, SEED, by)
        ones = np.unpackbits(words.view(np.uint8)).reshape(-1, 64).mean(axis=0)
        assert np.abs(ones - 0.5).max() < 5 * 0.5 / np.sqrt(40_000)


def test_the_masks_of_a_thousand_seeds_share_no_word():
    by = packing.layout(60, 15, 108)
    seeds = (number.to_bytes(32, "big") for number in range(1000))
    words = np.concatenate([masking.mask(seed, by) for seed in seeds])
    assert len(np.unique(words)) == 10_000


@given(st.integers(0, SEAL_BYTES * 8 - 1))
@settings(max_examples=200)
def test_a_seal_with_any_bit_changed_is_not_opened(bit):
    damaged = bytearray(SEAL)
    damaged[bit // 8] ^= 1 << bit % 8
    # the highest bit of an X25519 key is nobody's (RFC 7748): the key is bound as it was written
    assert masking.open_seal(bytes(damaged), ABOUT, PRIVATE) is None


@given(st.binary(max_size=100))
def test_no_bytes_are_a_seal_by_themselves(data):
    assert masking.open_seal(data, ABOUT, PRIVATE) is None


@pytest.mark.parametrize("field", [field.name for field in fields(Bound)])
def test_a_seal_is_opened_for_the_use_it_was_made_for_and_no_other(field):
    changed = 10 if field == "round" else "0" * len(getattr(ABOUT, field))
    assert masking.open_seal(SEAL, replace(ABOUT, **{field: changed}), PRIVATE) is None


def test_a_seal_is_opened_by_its_holder_alone():
    assert masking.open_seal(SEAL, ABOUT, OTHER) is None


@pytest.mark.parametrize("public", [bytes(32), bytes([1, *bytes(31)])])
def test_a_sender_s_key_of_small_order_is_a_seal_of_nobody(public):
    """Its shared secret would be zero, whatever the private key: RFC 7748, section 6.1."""
    assert masking.open_seal(public + SEAL[32:], ABOUT, PRIVATE) is None


@pytest.mark.parametrize("key", ["", "de" * 31, "00" * 32, "no key at all"])
def test_nothing_is_sealed_to_a_key_that_is_none(key):
    assert masking.can_be_sealed_to(PUBLIC) and not masking.can_be_sealed_to(key)
    with pytest.raises(ValueError):
        masking.seal(SEED, replace(ABOUT, seal_key=key), counting)


def test_two_seals_of_one_seed_are_two_ciphers():
    """Each has a key of one use: that its nonce is always the same gives nothing away."""
    randoms = (lambda count, n=n: bytes([n]) * count for n in (7, 8))
    one, two = (masking.seal(SEED, ABOUT, random) for random in randoms)
    assert one[:32] != two[:32] and one[32:] != two[32:]


def test_what_a_device_signs_is_no_message_of_another_kind():
    assert ABOUT.signed(SEAL).startswith(b"fedboard-sealed-v1\n")
    assert ABOUT.message("seal") != ABOUT.message("sealed")
    assert ABOUT.signed(SEAL).endswith(SEAL)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 8),
    words=st.integers(1, 40_000),
    seeds=st.lists(st.binary(min_size=32, max_size=32), max_size=4),
)
def test_masks_add_up_in_words_of_every_size_as_the_cipher_s_whole_stream_does(size, words, seeds):
    by = Layout(words, 256**size, 1, size)
    total = np.zeros(words, np.uint64)
    for seed in seeds:
        stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
        total = packing.add(total, packing.from_bytes(stream.update(bytes(by.bytes)), by), by)
    assert np.array_equal(masking.mask_sum(seeds, by), total)
