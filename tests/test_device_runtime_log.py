"""The log as a device sees it: what it believes, what it refuses, and what it keeps of that."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import config, log_wire, merkle, signing
from device_runtime.chain import Certificate
from device_runtime.errors import ConfigError
from device_runtime.log_wire import (
    Begun,
    Believed,
    Disbelieved,
    Fork,
    Forks,
    Head,
    ReleaseEntry,
    RoundEntry,
    SeenLogs,
    accused,
    believe,
)
from device_runtime.terms import Aggregation, Terms
from device_runtime.wire import VERSION, Assignment, Proof


def key(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


LOG_KEY, HELPER, STRANGER = key(1), key(2), key(3)
SERVER, TASK_ID, NEWEST, OLD = "5e" * 16, "7a" * 16, "c4" * 32, "c3" * 32
TERMS = Terms(
    Aggregation.HELPER, 4, 1.0, 50, "0f" * 32, 5, 100, 50, 3, helper=signing.public_hex(HELPER)
)
CERTIFICATE = Certificate(
    "01" * 32,
    SERVER,
    "words",
    TASK_ID,
    "default",
    "ab" * 32,
    "cd" * 32,
    1,
    100,
    1e10,
    TERMS,
    signing.public_hex(LOG_KEY),
    OLD,
    VERSION,
)
POLICY = log_wire.policy_of(CERTIFICATE)
ENTRIES = (
    POLICY,
    RoundEntry(TASK_ID, 0, 0, 0, 0.0, OLD),
    ReleaseEntry("default", 3, "ee" * 32, "ef" * 32, 500, False),
    RoundEntry(TASK_ID, 1, 100, 1, 0.25, NEWEST, OLD),
    ReleaseEntry("default", 3, "ee" * 32, "ea" * 32, 10_000, False),
)
OTHERS = (*ENTRIES[:2], ReleaseEntry("default", 4, "ee" * 32, "ef" * 32, 500, True), *ENTRIES[3:])


def hashes(entries):
    return [merkle.leaf(log_wire.body(each)) for each in entries]


def path(entries, ranges):
    """The roots of ranges, by brute force."""

    def root(start, end):
        frontier = merkle.Frontier()
        for each in hashes(entries)[start:end]:
            frontier, _ = frontier.append(each)
        return frontier.root

    return log_wire.to_path([root(*each) for each in ranges])


def head(entries, by=LOG_KEY, log=SERVER):
    frontier = merkle.Frontier()
    for each in hashes(entries):
        frontier, _ = frontier.append(each)
    said = config.to_json(Head(log, frontier.size, frontier.root.hex()))
    return signing.sign_text(by, log_wire.HEAD, said)


def proof(entries=ENTRIES, seen=0, by=LOG_KEY, helper=HELPER, log=SERVER, at=3):
    signed = head(entries, by, log)
    size = len(entries)
    seal = signing.sign_text(helper, log_wire.SEEN, signed.text.encode()).signature
    return Proof(
        signed,
        0,
        path(entries, merkle.inclusion(0, size)),
        at,
        path(entries, merkle.inclusion(at, size)),
        log_wire.body(entries[at]).decode(),
        seal,
        path(entries, merkle.consistency(seen, size)) if seen <= size else "",
    )


def work(shown=None, **changes):
    work = Assignment("0a" * 16, 2, "ab" * 32, NEWEST, "0f" * 32, 60.0, server=SERVER)
    return replace(work, log=proof() if shown is None else shown, **changes)


def told(answer):
    assert isinstance(answer, Disbelieved), answer
    return answer.reason


def seen_after(entries, seen=SeenLogs()):
    answer = believe(work(proof(entries)), CERTIFICATE, seen)
    assert isinstance(answer, Believed)
    return answer.seen


def test_a_log_that_holds_policy_and_checkpoint_is_believed_and_kept():
    answer = believe(work(), CERTIFICATE, SeenLogs())
    assert (answer.log, answer.policy, answer.checkpoint) == (SERVER, 0, 3)
    assert answer.seen.size(SERVER) == 5
    assert answer.seen.policies[0].policy == POLICY.name
    assert answer.seen.size("00" * 16) == 0


def test_a_longer_log_is_believed_if_it_begins_with_what_was_seen():
    seen = seen_after(ENTRIES[:4])
    assert seen.size(SERVER) == 4
    answer = believe(work(proof(seen=4)), CERTIFICATE, seen)
    assert answer.seen.size(SERVER) == 5
    assert len(answer.seen.heads) == 1


def test_an_older_head_of_the_same_log_is_believed_and_the_newer_kept():
    seen = seen_after(ENTRIES)
    shown = replace(proof(ENTRIES[:4]), consistency=path(ENTRIES, merkle.consistency(4, 5)))
    assert believe(work(shown), CERTIFICATE, seen).seen.size(SERVER) == 5


def test_a_fork_is_refused_with_both_heads_as_evidence():
    seen = seen_after(ENTRIES[:4])
    answer = believe(work(proof(OTHERS, seen=4)), CERTIFICATE, seen)
    assert told(answer).startswith("log 5e5e5e5e: expected one that agrees with the 4 entries seen")
    assert (answer.before.says.size, answer.after.says.size) == (4, 5)
    fork = Fork(answer.before, answer.after, 9.0)
    assert log_wire.described(fork).startswith("log 5e5e5e5e: key ")
    once = accused(Forks(), fork)
    assert accused(once, replace(fork, at=10.0)) is once


def test_a_log_that_got_shorter_is_refused():
    seen = seen_after(ENTRIES)
    answer = believe(work(proof(OTHERS[:4])), CERTIFICATE, seen)
    assert "no proof that they do" in told(answer)


def test_another_log_of_the_same_size_is_refused():
    seen = seen_after(ENTRIES)
    assert "expected one that agrees" in told(believe(work(proof(OTHERS)), CERTIFICATE, seen))


REFUSED = {
    "no proof at all": (replace(work(), log=None), "log: expected a proof of policy and checkpoi"),
    "a head of a stranger": (work(proof(by=STRANGER)), "head: the signature is none of log key "),
    "a head of another server": (work(proof(log="5d" * 16)), "head: expected one of log 5e5e5e5e,"),
    "a head that no helper signed": (
        work(replace(proof(), countersignature="")),
        "head: expected the signature of helper",
    ),
    "a head that another helper signed": (
        work(proof(helper=STRANGER)),
        "head: expected the signature of helper",
    ),
    "the entry of another checkpoint": (
        work(proof(at=1)),
        f"log: expected the entry of checkpoint {NEWEST[:16]}, found another",
    ),
    "an entry that is no round's": (work(proof(at=2)), "log: expected the entry of checkpoint"),
    "a checkpoint that is not entered": (
        work(replace(proof(), checkpoint_path="00" * 96)),
        f"log: checkpoint {NEWEST[:16]} is not in it",
    ),
    "a policy that is not entered": (
        work(replace(proof(), policy=1)),
        f"log: policy {POLICY.name[:16]} of task 7a7a7a7a is not in it",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_in_the_log_is_refused(name):
    assignment, reason = REFUSED[name]
    assert told(believe(assignment, CERTIFICATE, SeenLogs())).startswith(reason)


def test_a_policy_that_changes_under_a_device_is_refused_and_named():
    seen = seen_after(ENTRIES)
    other = replace(CERTIFICATE, plan="ac" * 32)
    assert told(believe(work(), other, seen)).startswith(f"policy: expected {POLICY.name[:16]}, ")


@pytest.mark.parametrize(
    "change",
    [
        {"plan": "ac" * 32},
        {"version": VERSION + 1},
        {"start": "c5" * 32},
        {"population": "other"},
        {"terms": replace(TERMS, min_separation=4)},
        {"terms": replace(TERMS, helper=signing.public_hex(STRANGER))},
        {"terms": replace(TERMS, clipping_norm=2.0)},
    ],
)
def test_whatever_a_device_agrees_to_is_in_the_policys_name(change):
    assert log_wire.policy_of(replace(CERTIFICATE, **change)).name != POLICY.name


def test_a_task_that_is_certified_again_keeps_its_policy():
    again = replace(CERTIFICATE, round_key="09" * 32, first_round=50, expires_at=2e10)
    assert log_wire.policy_of(again).name == POLICY.name


def test_a_certificate_of_format_2_has_no_log_and_is_named():
    old = replace(CERTIFICATE, log_key="", start="", version=0, format=2)
    assert log_wire.policy_of(old) is None
    assert told(believe(work(), old, SeenLogs())) == (
        "certificate: expected the key of the server's log, found none; certify the task again"
    )


def test_without_a_helper_the_servers_signature_is_enough_and_the_sentence_says_so():
    plain = replace(TERMS, aggregation=Aggregation.PLAIN, helper="")
    certificate = replace(CERTIFICATE, terms=plain)
    entries = (log_wire.policy_of(certificate), *ENTRIES[1:])
    shown = replace(proof(entries), countersignature="")
    assert isinstance(believe(work(shown), certificate, SeenLogs()), Believed)
    assert log_wire.sentence(plain).endswith("another log is not excluded")
    assert "cannot be rewritten: helper" in log_wire.sentence(TERMS)


def test_a_log_that_begins_anew_needs_a_certificate_of_its_makers():
    seen = seen_after(ENTRIES)
    entries = (POLICY, *ENTRIES[3:])
    shown = proof(entries, by=STRANGER, at=1)
    assert told(believe(work(shown), CERTIFICATE, seen)).startswith("head: the signature is none")
    certificate = replace(CERTIFICATE, log_key=signing.public_hex(STRANGER))
    after = believe(work(shown), certificate, seen).seen
    assert [each.says.size for each in after.heads] == [5, 3]
    assert after.size(SERVER) == 3


@pytest.mark.parametrize("entry", [*ENTRIES, Begun("0a" * 32, 7, "0b" * 32)])
def test_an_entry_is_read_as_it_was_written(entry):
    assert log_wire.read(log_wire.body(entry)) == entry


@pytest.mark.parametrize("text", ["{}", "[]", "1", '{"entry":"other"}', '{"entry":"round"}', "{"])
def test_what_is_no_entry_is_named(text):
    with pytest.raises(ConfigError):
        log_wire.read(text)


def test_the_policy_of_terms_without_noise_says_nothing_of_noise():
    assert b"noise" not in log_wire.body(POLICY)
    assert b"compression" not in log_wire.body(POLICY)
