"""Protection: what a report's bytes say to whom, and what they are bound to."""

from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import config, masking, packing, protection, signing, update
from device_runtime.helper_wire import SEAL_KEY, SealKey
from device_runtime.protection import Addressed, addressed, layout, protected, repeating
from device_runtime.terms import Aggregation, Terms
from device_runtime.update import HEADER_BYTES, Form, Header
from device_runtime.wire import Assignment
from tests.toy_server import key

HELPER, STRANGER = key(70), key(71)
ROUND_KEY = X25519PrivateKey.from_private_bytes(bytes(range(32)))
SEAL_KEY_HEX = ROUND_KEY.public_key().public_bytes_raw().hex()
TERMS = Terms(
    Aggregation.HELPER,
    4,
    0.5,
    50,
    "5a" * 32,
    7,
    most=108,
    fewest=3,
    min_separation=1,
    helper=signing.public_hex(HELPER),
)
PLAIN = replace(TERMS, aggregation=Aggregation.PLAIN, bits=8, helper="")
ABOUT = Addressed(TERMS, "5e" * 16, "7a" * 16, 9, SEAL_KEY_HEX)
NUMBERS = np.arange(16, dtype=np.uint8)
WORK = Assignment(
    "a5" * 16,
    9,
    *("ab" * 32,) * 3,
    deadline_s=60.0,
    server=ABOUT.server,
    task_id=ABOUT.task_id,
)


def seal_key(signer=HELPER, purpose=SEAL_KEY, **changed):
    """The helper's signed key of round 9, with some of it changed."""
    about = {"key": SEAL_KEY_HEX, "task_id": WORK.task_id, "round": 9, "terms": TERMS.name}
    return signing.sign_text(signer, purpose, config.to_json(SealKey(**{**about, **changed})))


def opened(body, about=ABOUT, device=None):
    """What the holder of the round's private key and the words gets out of a body."""
    by = layout(len(NUMBERS), 15, about.terms)
    sealed = update.sealed(body, by)
    bound = protection.bound_of(about, signing.public_hex(device or key(1)))
    seed = masking.open_seal(sealed.seal, bound, ROUND_KEY)
    return seed, sealed, by


def test_the_helper_s_key_and_the_words_together_give_the_numbers_and_neither_does_alone():
    body = protected(NUMBERS, 15, ABOUT, key(1), repeating(b"a"))
    assert update.header(body) == Header(Form.SEALED, 9, 16, TERMS.name)
    seed, sealed, by = opened(body)
    numbers = packing.unpack(packing.subtract(sealed.words, masking.mask(seed, by), by), by)
    assert numbers.tolist() == list(range(16))
    assert not np.array_equal(packing.unpack(sealed.words, by), NUMBERS)
    assert seed not in body


def test_the_device_signs_its_seal_for_this_round_and_no_other():
    body = protected(NUMBERS, 15, ABOUT, key(1), repeating(b"a"))
    _, sealed, _ = opened(body)
    device = signing.public_hex(key(1))
    for other in (
        {},
        {"round": 10},
        {"server": "6e" * 16},
        {"task_id": "8a" * 16},
        {"seal_key": "1f" * 32},
        {"terms": replace(TERMS, fewest=4)},
    ):
        about = replace(ABOUT, **other)
        bound = protection.bound_of(about, device)
        is_this = not other
        assert signing.verified(device, bound.signed(sealed.seal), sealed.signature) is is_this
        assert (masking.open_seal(sealed.seal, bound, ROUND_KEY) is not None) is is_this


def test_seal_and_signature_take_at_most_two_hundred_bytes():
    body = protected(NUMBERS, 15, ABOUT, key(1), repeating(b"a"))
    by = layout(16, 15, TERMS)
    assert len(body) == update.sealed_bytes(by)
    assert len(body) - by.bytes == HEADER_BYTES + 80 + 64 <= 200


@given(st.lists(st.integers(0, 15), min_size=1, max_size=40), st.integers(1, 9))
@settings(max_examples=50)
def test_masked_reports_add_up_to_the_sum_of_their_numbers(numbers, devices):
    numbers = np.array(numbers, np.uint8)
    by = layout(len(numbers), 15, TERMS)
    total, masks = np.zeros(by.words, np.uint64), np.zeros(by.words, np.uint64)
    for device in range(1, devices + 1):
        own = (numbers + device) % 16
        body = protected(own, 15, ABOUT, key(device), repeating(b"%d" % device))
        bound = protection.bound_of(ABOUT, signing.public_hex(key(device)))
        sealed = update.sealed(body, by)
        seed = masking.open_seal(sealed.seal, bound, ROUND_KEY)
        total = packing.add(total, sealed.words, by)
        masks = packing.add(masks, masking.mask(seed, by), by)
    expected = sum((numbers + device) % 16 for device in range(1, devices + 1))
    opened = packing.unpack(packing.subtract(total, masks, by), by)
    assert opened.tolist() == expected.tolist()


def test_every_report_has_a_seed_of_its_own_though_the_numbers_are_the_same():
    random = repeating(b"a")
    bodies = [protected(NUMBERS, 15, ABOUT, key(1), random) for _ in range(20)]
    seeds = {opened(body)[0] for body in bodies}
    assert len(seeds) == 20


def test_the_same_randomness_gives_the_same_bytes():
    one, two = (protected(NUMBERS, 15, ABOUT, key(1), repeating(b"a")) for _ in range(2))
    assert one == two
    assert one != protected(NUMBERS, 15, ABOUT, key(1), repeating(b"b"))


def test_plain_numbers_travel_as_they_are_since_signed_terms_say_so():
    about = replace(ABOUT, terms=PLAIN, seal_key="")
    body = protected(NUMBERS, 255, about, key(1), repeating(b"a"))
    assert update.header(body) == Header(Form.CODES, 9, 16, PLAIN.name)
    assert update.codes(body, 8).tolist() == list(range(16))


def test_numbers_out_of_range_and_aggregation_by_devices_are_errors_here():
    with pytest.raises(ValueError, match="expected whole numbers of 0 to 14, found 0 to 15"):
        protected(NUMBERS, 14, ABOUT, key(1), repeating(b"a"))
    shared = replace(TERMS, aggregation=Aggregation.SECAGG, helper="")
    with pytest.raises(ValueError, match="expected plain or helper, found secagg"):
        protected(NUMBERS, 15, replace(ABOUT, terms=shared), key(1), repeating(b"a"))


# --- the helper's key of the round
# ------------------------------------------------------------------------------------------------


def test_a_report_is_addressed_to_the_key_that_the_helper_signed_for_this_round():
    assert addressed(replace(WORK, seal_key=seal_key()), TERMS) == ABOUT
    assert addressed(WORK, PLAIN) == replace(ABOUT, terms=PLAIN, seal_key="")


@pytest.mark.parametrize(
    ("signed", "problem"),
    [
        (None, "seal key: expected one of helper "),
        (seal_key(STRANGER), "found one by "),
        (replace(seal_key(STRANGER), signer=TERMS.helper), "found one by "),
        (seal_key(purpose="link"), "found one by "),
        (seal_key(round=8), "seal key: expected round 9, found 8"),
        (seal_key(task_id="8a" * 16), "seal key: expected task_id 7a7a"),
        (seal_key(terms="1f" * 32), "seal key: expected terms "),
        (signing.sign_text(HELPER, SEAL_KEY, b"{}"), "seal key: is none of this version"),
    ],
)
def test_a_key_that_the_helper_did_not_sign_for_this_round_is_refused_by_name(signed, problem):
    assert problem in addressed(replace(WORK, seal_key=signed), TERMS)
