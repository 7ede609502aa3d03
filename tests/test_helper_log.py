"""What a helper signs of its leader's log: consistent extensions, and never two heads that fork."""

from dataclasses import replace

import pytest

from device_runtime import config, log_wire, merkle, signing
from device_runtime.helper_wire import HeadAsked, HeadSeen, HelperProblem, Refusal
from device_runtime.log_wire import Head
from tests.toy_helper import HELPER, SERVER, TASK_ID, new, registration
from tests.toy_server import key

LOG_KEY, STRANGER = key(9100), key(9101)
ENTRIES = [merkle.leaf(bytes([number])) for number in range(20)]
FORKED = [*ENTRIES[:5], *(merkle.leaf(b"another") for _ in range(15))]


def registered(folder):
    desk = new(folder)
    log_key = signing.public_hex(LOG_KEY)
    asked = registration(log_key=log_key, start="5a" * 32, version=6)
    assert not isinstance(desk.register(asked, 0.0), HelperProblem)
    return desk


def root(entries):
    frontier = merkle.Frontier()
    for each in entries:
        frontier, _ = frontier.append(each)
    return frontier.root


def path(entries, old):
    ranges = merkle.consistency(old, len(entries))
    return log_wire.to_path([root(entries[start:end]) for start, end in ranges])


def asked(size, seen=0, entries=ENTRIES, by=LOG_KEY, server=SERVER):
    said = Head(server, size, root(entries[:size]).hex())
    signed = signing.sign_text(by, log_wire.HEAD, config.to_json(said))
    return HeadAsked(signed, seen, path(entries[:size], seen) if 0 < seen <= size else "")


def signs(answer, message):
    assert isinstance(answer, HeadSeen), answer
    assert answer.signature is not None
    return log_wire.countersigned(message.head, HELPER, answer.signature.signature)


@pytest.fixture
def desk(fast_folder):
    desk = registered(fast_folder / "helper")
    yield desk
    desk.close()


def test_a_helper_signs_what_extends_what_it_has_signed(desk):
    for seen, size in ((0, 3), (3, 4), (4, 11), (11, 20)):
        message = asked(size, seen)
        assert signs(desk.countersign(message), message)


def test_the_same_head_gets_the_same_signature(desk):
    once = desk.countersign(asked(3))
    assert desk.countersign(asked(3)) == desk.countersign(asked(3, seen=2)) == once


def test_a_proof_from_another_size_is_told_which_one_the_helper_has_signed(desk):
    desk.countersign(asked(3))
    assert desk.countersign(asked(9, seen=2)) == HeadSeen(3)
    assert desk.countersign(asked(9)) == HeadSeen(3)
    assert signs(desk.countersign(asked(9, seen=3)), asked(9))


@pytest.mark.parametrize(
    "message",
    [
        asked(9, entries=FORKED),  # the same size
        asked(4),  # smaller
        asked(12, seen=9, entries=FORKED),
        replace(asked(12, seen=9), consistency=""),
    ],
)
def test_a_fork_is_refused_and_changes_nothing(desk, message):
    desk.countersign(asked(9))
    answer = desk.countersign(message)
    assert answer.refusal is Refusal.FORK
    assert answer.detail.startswith("head: expected one that extends the 9 entries that were sign")
    assert desk.refusals[Refusal.FORK] == 1
    assert signs(desk.countersign(asked(12, seen=9)), asked(12))


def test_a_helper_remembers_what_it_has_signed_when_it_is_started_again(fast_folder):
    desk = registered(fast_folder / "helper")
    desk.countersign(asked(9))
    desk.close()
    again = new(fast_folder / "helper")
    assert again.countersign(asked(9, entries=FORKED)).refusal is Refusal.FORK
    assert signs(again.countersign(asked(10, seen=9)), asked(10))
    again.close()


def test_a_log_that_no_certificate_of_its_tasks_names_is_not_signed(desk):
    assert desk.countersign(asked(3, by=STRANGER)).refusal is Refusal.FOREIGN_POLICY
    assert desk.countersign(asked(3, server="5d" * 16)).refusal is Refusal.FOREIGN_POLICY


def test_a_log_that_was_followed_by_another_is_signed_no_more(desk):
    again = asked(5, by=STRANGER, entries=FORKED)
    newer = registration(log_key=signing.public_hex(STRANGER), start="5a" * 32, version=6)
    older = registration(log_key=signing.public_hex(LOG_KEY), start="5a" * 32, version=6)
    desk.countersign(asked(3))
    desk.register(newer, 0.0)
    assert signs(desk.countersign(again), again)
    desk.register(older, 0.0)  # its certificate has not expired
    answer = desk.countersign(asked(4, seen=3))
    assert answer.refusal is Refusal.FORK
    assert "was followed by that of key" in answer.detail
    desk.register(newer, 0.0)
    after = asked(6, seen=5, by=STRANGER, entries=FORKED)
    assert signs(desk.countersign(after), after)


def test_a_head_that_its_log_has_not_signed_is_none(desk):
    message = asked(3)
    forged = replace(message.head, signature="00" * 64)
    assert desk.countersign(replace(message, head=forged)).refusal is Refusal.MALFORMED


def test_a_task_keeps_the_policy_that_it_was_registered_with(desk):
    log_key = signing.public_hex(LOG_KEY)
    other = registration(log_key=log_key, start="5b" * 32, version=6)
    answer = desk.register(other, 0.0)
    assert answer.refusal is Refusal.FOREIGN_POLICY
    assert answer.detail.startswith(f"task {TASK_ID[:8]}: expected the server, kind, terms and pol")


def test_a_task_of_an_earlier_version_may_tell_its_policy_once(fast_folder):
    desk = new(fast_folder / "helper")
    assert not isinstance(desk.register(registration(), 0.0), HelperProblem)
    with_log = registration(log_key=signing.public_hex(LOG_KEY), start="5a" * 32, version=6)
    assert not isinstance(desk.register(with_log, 0.0), HelperProblem)
    assert signs(desk.countersign(asked(3)), asked(3))
    desk.close()
