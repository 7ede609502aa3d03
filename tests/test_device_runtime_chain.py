"""The chain: whose weights a device trains from, and what it keeps of signatures it was shown."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import chain, config, signing
from device_runtime.chain import (
    Certificate,
    Chain,
    Contradiction,
    Link,
    Seen,
    Verifier,
    remembered,
    why_untrusted,
)
from device_runtime.home import EVIDENCE, LINKS, DeviceConfig, Home
from device_runtime.wire import Assignment, Kind, Signed
from tests import toy_server
from tests.toy_server import OPERATOR, key

SERVER, TASK_ID, PLAN, CHECKPOINT = "5e" * 16, "7a" * 16, "b1" * 32, "c4" * 32
ROUND_KEY, STRANGER = key(1), key(2)
# rounds 5, 6 and 7, until second 1,000
CERTIFICATE = Certificate(
    signing.public_hex(ROUND_KEY),
    SERVER,
    "words",
    TASK_ID,
    "default",
    PLAN,
    "0f" * 32,
    first_round=5,
    rounds=3,
    expires_at=1000.0,
    terms=toy_server.terms_for(toy_server.PLAN, "e5" * 32, 50),
)
WORK = Assignment(
    "a1" * 16, 6, PLAN, CHECKPOINT, "e5" * 32, 60.0, task="words", server=SERVER, task_id=TASK_ID
)
BY = Verifier(frozenset({signing.public_hex(OPERATOR)}), "default", 999.0)


def signed(text: bytes, purpose: str, by=OPERATOR) -> Signed:
    return signing.sign_text(by, purpose, text)


def chained(
    work: Assignment = WORK,
    certificate: Certificate = CERTIFICATE,
    by=OPERATOR,
    link_by=ROUND_KEY,
    **of_link: object,
) -> Assignment:
    """Work with a certificate and a link of round 5, or as `of_link` says."""
    first = signed(config.to_json(certificate), chain.CERTIFICATE, by)
    link = Link(chain.name_of(first), 5, work.checkpoint)
    second = signed(config.to_json(replace(link, **of_link)), chain.LINK, link_by)
    return replace(work, certificate=first, link=second)


def reason(work: Assignment, by: Verifier = BY, seen=()) -> str:
    untrusted = why_untrusted(work, by, seen)
    return "" if untrusted is None else untrusted.reason


def shown(work: Assignment) -> Chain:
    return Chain(work.certificate, work.link)


def test_a_checkpoint_that_a_certified_key_signed_is_trusted():
    assert why_untrusted(chained(), BY) is None


def test_an_evaluation_shows_the_chain_of_the_task_it_scores():
    scoring = replace(WORK, kind=Kind.EVALUATION, task="scores", task_id="0a" * 16, round=900)
    assert why_untrusted(chained(scoring), BY) is None
    elsewhere = replace(scoring, server="9d" * 16)
    assert reason(chained(elsewhere)).startswith("certificate: expected server 9d9d")


def link_to(certificate: str) -> Signed:
    return signed(config.to_json(Link(certificate, 5, CHECKPOINT)), chain.LINK, ROUND_KEY)


def in_certificate(**changes: object) -> Assignment:
    return chained(certificate=replace(CERTIFICATE, **changes))


BAD = {
    "no certificate": (replace(chained(), certificate=None), "certificate: expected one with"),
    "no link": (replace(chained(), link=None), "certificate: expected one with a link, found none"),
    "a foreign key": (
        chained(by=STRANGER),
        "certificate: signed by 7422b9887598068e, which is not trusted",
    ),
    "signed by the round key itself": (chained(by=ROUND_KEY), "certificate: signed by "),
    "another server's": (in_certificate(server="9d" * 16), "certificate: expected server 5e5e"),
    "another task's name": (in_certificate(task="other"), "certificate: expected task words"),
    "another task's id": (in_certificate(task_id="0a" * 16), "certificate: expected task_id 7a7a"),
    "another population's": (
        in_certificate(population="de-ch"),
        "certificate: expected population default, found de-ch",
    ),
    "another plan": (in_certificate(plan="9d" * 32), "certificate: expected plan b1b1"),
    "expired": (in_certificate(expires_at=999.0), "certificate: expired at 999, and it is 999"),
    "past its rounds": (
        chained(replace(WORK, round=8), round=7),
        "certificate: expected rounds 5 to 7, found round 8",
    ),
    "before its rounds": (
        chained(replace(WORK, round=4), round=3),
        "link: expected rounds 5 to 7, found a checkpoint of round 3",
    ),
    "a later format": (
        in_certificate(format=4),
        "certificate: expected format 1 or 2 or 3, found 4",
    ),
    "a link of a foreign key": (chained(link_by=STRANGER), "link: expected one of round key"),
    "a link of the operator's key": (chained(link_by=OPERATOR), "link: expected one of round key"),
    "another checkpoint's link": (chained(checkpoint="d0" * 32), "link: expected checkpoint c4c4"),
    "another certificate's link": (
        replace(chained(), link=link_to("d0" * 32)),
        "link: expected certificate ",
    ),
    "a link too old": (chained(round=3), "link: expected rounds 5 to 7, found a checkpoint of"),
    "a link of this very round": (
        chained(round=6),
        "link: expected a checkpoint from before round 6, found one of round 6",
    ),
}


@pytest.mark.parametrize(("work", "said"), BAD.values(), ids=BAD)
def test_all_else_is_refused_by_name(work, said):
    assert reason(work).startswith(said)


def test_a_link_goes_with_no_other_certificate():
    """Not even of the same key: one that covers less would be gone round."""
    longer = chained(certificate=replace(CERTIFICATE, rounds=100))
    replayed = replace(chained(), certificate=longer.certificate)
    assert reason(replayed).startswith("link: expected certificate ")


def test_a_certificate_is_no_link_and_no_statement_on_a_release():
    text = config.to_json(CERTIFICATE)
    for purpose in (chain.LINK, "release"):
        wrong = replace(chained(), certificate=signed(text, purpose))
        assert reason(wrong).startswith("certificate: the signature is none of ")


@pytest.mark.parametrize("text", [b"{}", b"[1]", b"", b"null", b'{"round_key":1}'])
def test_what_is_signed_and_means_nothing_is_refused(text):
    certificate = signed(text, chain.CERTIFICATE)
    assert reason(replace(chained(), certificate=certificate)) == (
        "certificate: is none of this version"
    )
    link = signed(text, chain.LINK, ROUND_KEY)
    assert reason(replace(chained(), link=link)) == "link: is none of this version"


@given(
    st.sampled_from(["certificate", "link"]),
    st.sampled_from(["text", "signer", "signature"]),
    st.integers(0, 10_000),
    st.characters(min_codepoint=32, max_codepoint=126),
)
def test_whatever_character_of_a_chain_is_changed_it_is_trusted_no_more(part, field, at, character):
    work = chained()
    whole = getattr(work, part)
    value = getattr(whole, field)
    at %= len(value)
    changed = value[:at] + character + value[at + 1 :]
    untrusted = why_untrusted(replace(work, **{part: replace(whole, **{field: changed})}), BY)
    assert (untrusted is None) == (changed == value)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 10), st.integers(0, 10))
def test_work_is_trusted_only_within_the_rounds_of_its_certificate(at, made_in, first, rounds):
    certificate = replace(CERTIFICATE, first_round=first, rounds=rounds)
    work = chained(replace(WORK, round=at), certificate, round=made_in)
    covered = first <= at < first + rounds and first - 1 <= made_in < at
    assert (reason(work) == "") == covered


# two checkpoints of one round


def test_two_checkpoints_of_one_round_are_refused_and_the_first_stays_trusted():
    other = chained(replace(WORK, checkpoint="d0" * 32))
    untrusted = why_untrusted(other, BY, [shown(chained())])
    assert untrusted.contradicts == shown(chained())
    assert untrusted.reason.startswith("link: round 5 has two checkpoints, c4c4")
    assert why_untrusted(chained(), BY, [shown(chained())]) is None


def test_a_new_certificate_of_the_same_checkpoint_contradicts_nothing():
    again = chained(certificate=replace(CERTIFICATE, rounds=50))
    assert why_untrusted(again, BY, [shown(chained())]) is None


def test_the_same_round_of_another_task_contradicts_nothing():
    elsewhere = replace(WORK, task_id="0a" * 16, checkpoint="d0" * 32)
    other = chained(elsewhere, replace(CERTIFICATE, task_id="0a" * 16))
    assert why_untrusted(other, BY, [shown(chained())]) is None


def test_of_what_was_seen_the_newest_stays():
    seen = Seen()
    for round in range(100):
        seen = remembered(seen, shown(chained(round=round)))
    assert len(seen.chains) == chain.MOST_SEEN
    assert seen.chains[-1] == shown(chained(round=99))
    assert remembered(seen, shown(chained(round=98))) is seen


@pytest.fixture
def home(tmp_path) -> Home:
    return Home.create(tmp_path / "device", DeviceConfig((signing.public_hex(OPERATOR),)))


def test_what_a_device_has_seen_outlives_its_process(home):
    home.see(shown(chained()))
    assert Home.open(home.folder).seen().chains == (shown(chained()),)
    written = (home.folder / LINKS).stat().st_mtime_ns
    home.see(shown(chained()))
    assert (home.folder / LINKS).stat().st_mtime_ns == written  # nothing new, nothing written


@pytest.mark.parametrize("damage", [b"", b"{", b'{"chains":[{}]}', b"\xff"])
def test_a_damaged_file_of_links_is_begun_anew(home, damage):
    home.keep(LINKS, damage)
    assert home.seen() == Seen()
    home.see(shown(chained()))
    assert home.seen().chains == (shown(chained()),)


def test_evidence_is_kept_once_and_names_who_signed(home):
    other = shown(chained(replace(WORK, checkpoint="d0" * 32)))
    accused = Contradiction(shown(chained()), other, 7.0)
    home.accuse(accused)
    home.accuse(replace(accused, at=8.0))
    assert Home.open(home.folder).evidence() == (accused,)
    said = chain.described(accused)
    for name in ("round 5 of task words", "c4c4", "d0d0", signing.public_hex(OPERATOR)):
        assert name in said
    # whoever reads the file can verify it without this device
    kept = config.from_json(chain.Evidence, home.kept(EVIDENCE), EVIDENCE).contradictions[0]
    for each in (kept.before, kept.after):
        certificate = chain.read_certificate(each.certificate, BY.trusted)
        assert chain.read_link(each.link, certificate).round == 5


def test_of_many_contradictions_the_first_are_kept(home):
    for number in range(20):
        other = shown(chained(replace(WORK, checkpoint=f"{number:064x}")))
        home.accuse(Contradiction(shown(chained()), other, float(number)))
    assert [each.at for each in home.evidence()] == [float(at) for at in range(8)]


def test_wiping_a_device_whole_takes_what_it_has_seen_along(home):
    home.see(shown(chained()))
    home.accuse(Contradiction(shown(chained()), shown(chained()), 1.0))
    home.wipe(everything=True)
    assert not home.folder.exists()
