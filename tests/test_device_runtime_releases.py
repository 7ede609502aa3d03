"""Which release a device chooses, by what its maker signed: pure, toy numbers."""

import json
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import config, releases, signing
from device_runtime.errors import ConfigError
from device_runtime.releases import (
    WHOLE,
    Choice,
    Device,
    Installed,
    Newest,
    Offer,
    Statement,
    choose,
    is_offered,
    learned,
    statements_in,
)
from device_runtime.weights import digest


def sha(release: int) -> str:
    return digest(f"manifest of {release}".encode())


def said(release: int, share: int = WHOLE, serial: int = 1, withdrawn: bool = False) -> Statement:
    return Statement(release, sha(release), "default", share, serial, withdrawn)


def runs(release: int, *statements: Statement, before: int | None = None, **changes) -> Device:
    last_good = None if before is None else Installed(before, sha(before))
    known = learned({}, statements)
    return Device(Installed(release, sha(release)), last_good, release, known, **changes)


def goes_to(device: Device, secret: bytes = b"secret") -> int | None:
    choice = choose(device, device.known, secret)
    return None if choice is None else choice.release


FIELDS = st.sampled_from(
    ("offers", "statement", "text", "signer", "signature", "differences", "sha256", "bytes")
)
secrets = st.binary(min_size=32, max_size=32)
statements = st.builds(
    said, st.integers(1, 6), st.integers(0, WHOLE), st.integers(1, 5), st.booleans()
)


def test_the_highest_release_that_is_offered_is_chosen():
    assert goes_to(runs(3, said(2), said(4), said(6), said(5))) == 6
    assert goes_to(runs(6, said(2), said(4), said(6), said(5))) is None
    assert goes_to(runs(3)) is None


def test_a_release_offered_to_nobody_or_refused_before_is_passed_over():
    assert goes_to(runs(3, said(4), said(5, share=0))) == 4
    assert goes_to(runs(3, said(4), said(5), refused=frozenset({sha(5)}))) == 4


def test_only_what_the_server_names_now_is_gone_to():
    device = runs(3, said(4), said(5))
    assert choose(device, [sha(4)], b"") == Choice(4, sha(4), False)


def test_a_withdrawn_release_is_left_for_the_highest_offered_though_it_is_lower():
    withdrawn = said(5, serial=2, withdrawn=True)
    assert goes_to(runs(5, withdrawn, said(2), said(4))) == 4
    assert goes_to(runs(5, withdrawn, said(2), said(6))) == 6


def test_the_last_good_one_is_gone_back_to_even_if_nobody_ever_published_it():
    withdrawn = said(5, serial=2, withdrawn=True)
    assert goes_to(runs(5, withdrawn, before=0)) == 0
    assert goes_to(runs(5, withdrawn, said(4, share=0), before=4)) == 4
    assert goes_to(runs(5, withdrawn, said(3), before=2)) == 3


def test_a_last_good_one_that_was_withdrawn_too_is_none():
    both = said(5, serial=2, withdrawn=True), said(4, serial=2, withdrawn=True)
    assert goes_to(runs(5, *both, before=4)) is None
    assert goes_to(runs(5, *both, said(2), before=4)) == 2


def test_while_the_newest_is_damaged_nothing_lower_than_it_ever_ran_is_chosen():
    device = replace(runs(3, said(4), said(5)), highest=5)
    assert goes_to(device) == 5  # once more: it mends it
    assert goes_to(replace(device, known=learned({}, [said(4)]))) is None


@given(secrets, st.integers(1, 50), st.integers(0, WHOLE), st.integers(0, WHOLE))
def test_whoever_was_in_a_share_is_in_every_larger_one(secret, release, share, other):
    smaller, larger = sorted((share, other))
    if is_offered(said(release, smaller), secret):
        assert is_offered(said(release, larger), secret)
    assert not is_offered(said(release, 0), secret)
    assert is_offered(said(release, WHOLE), secret)


def test_a_share_of_ten_thousand_secrets_is_that_share_and_that_of_another_release_another():
    secrets = [np.random.default_rng(number).bytes(32) for number in range(10_000)]
    first, second = (
        np.array([is_offered(said(release, share=500), secret) for secret in secrets])
        for release in (7, 8)
    )
    # 500 of 10,000, give or take five times the square root of 475; of both 25, if independent
    assert abs(first.sum() - 500) < 109
    assert abs(second.sum() - 500) < 109
    assert (first & second).sum() < 50


@given(
    secrets,
    st.integers(0, 6),
    st.lists(statements, max_size=8),
    st.none() | st.integers(0, 6),
    st.integers(0, 6),
)
def test_a_device_never_goes_down_but_from_a_release_that_was_withdrawn(
    secret, release, heard, before, highest
):
    device = replace(runs(release, *heard, before=before), highest=max(highest, release))
    choice = choose(device, device.known, secret)
    own = device.known.get(sha(release))
    if choice is None:
        return
    of_target = device.known.get(choice.manifest)
    assert choice.manifest != sha(release)
    assert of_target is None or not of_target.withdrawn
    if not (own and own.withdrawn):
        assert choice.release > release
        assert choice.release >= device.highest
        assert is_offered(of_target, secret)


@given(st.lists(statements, max_size=12), st.randoms())
def test_what_is_known_depends_on_no_order_and_a_serial_never_goes_back(heard, random):
    known: dict[str, Statement] = {}
    for each in heard:
        after = learned(known, [each])
        assert all(after[name].serial >= known[name].serial for name in known)
        known = after
    for each in heard:
        assert known[each.manifest].serial >= each.serial
    again = list(heard)
    random.shuffle(again)
    serials = {name: (each.serial, each.withdrawn) for name, each in learned({}, again).items()}
    assert serials == {name: (each.serial, each.withdrawn) for name, each in known.items()}


# --- the index
# ------------------------------------------------------------------------------------------------


def offer(statement: Statement, key: Ed25519PrivateKey, purpose: str = releases.PURPOSE) -> Offer:
    return Offer(signing.sign_text(key, purpose, config.to_json(statement)))


def test_of_two_statements_of_one_serial_the_most_careful_counts_whichever_came_first():
    few, all_of_them = (Statement(1, "ab" * 32, "default", share, 2) for share in (5, WHOLE))
    back = Statement(1, "ab" * 32, "default", WHOLE, 2, withdrawn=True)
    for heard in ((few, all_of_them), (all_of_them, few)):
        assert learned({}, heard) == {few.manifest: few}
        assert learned({}, (back, *heard)) == learned({}, (*heard, back)) == {few.manifest: back}


def test_what_the_maker_signed_for_this_population_is_in_an_index(signing_key, trusted):
    index = config.to_json(Newest((offer(said(2), signing_key), offer(said(1), signing_key))))
    read = statements_in(index, trusted, "default")
    assert [named.statement for named in read.named] == [said(2), said(1)]
    assert read.left_out == ()


def test_a_damaged_or_foreign_statement_is_left_out_and_named(signing_key, trusted):
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(32))
    good = offer(said(1), signing_key)
    lied = replace(good.statement, text=good.statement.text.replace('"share":10000', '"share":1'))
    offers = (
        offer(said(2), stranger),
        Offer(lied),
        offer(replace(said(3), population="other"), signing_key),
        offer(replace(said(4), format=2), signing_key),
        offer(said(5), signing_key, "link"),
        good,
    )
    table = json.loads(config.to_json(Newest(offers)))
    table["offers"].append({"statement": 7})
    read = statements_in(json.dumps(table).encode(), trusted, "default")
    assert [named.statement for named in read.named] == [said(1)]
    assert len(read.left_out) == 6
    assert "offers[0]: expected a statement of a maker this device trusts" in read.left_out[0]
    assert "for `default`, found format 1 for `other`" in read.left_out[2]
    assert "expected a statement of format 1 for `default`, found format 2" in read.left_out[3]


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"offers": 3}', b"\xff", b'{"offers": [%s{}]}' % (b"{}," * 9)]
)
def test_bytes_that_are_no_index_are_refused(data, trusted):
    with pytest.raises(ConfigError, match="index of releases"):
        statements_in(data, trusted, "default")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=20,
)


@given(st.binary(max_size=200) | st.dictionaries(FIELDS, JSON).map(json.dumps).map(str.encode))
def test_whatever_an_index_holds_it_is_read_or_refused_by_name(data):
    try:
        read = statements_in(data, frozenset({"ab" * 32}), "default")
    except ConfigError as error:
        assert "index of releases" in str(error)
    else:
        assert read.named == ()  # nobody signed it
