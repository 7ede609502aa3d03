"""The helper answers each round once, to a set that is as its terms say, and says no by name."""

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_runtime import enrolments, scores, signing
from device_runtime.errors import RunError
from device_runtime.helper_wire import (
    MOST_ROUNDS_AHEAD,
    AnswerTaken,
    HelperProblem,
    KeysAsked,
    Named,
)
from device_runtime.terms import Aggregation
from device_runtime.wire import Kind
from tests.conftest import GOLDEN
from tests.toy_helper import (
    CERTIFIER,
    OPERATOR,
    RULES,
    TASK_ID,
    TERMS,
    Report,
    begun,
    bound,
    expected,
    key,
    keys_of,
    named,
    new,
    opened,
    registration,
    report,
    reports,
)

EXAMPLES = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DONE = AnswerTaken(TASK_ID, 1)


@pytest.fixture
def desk(fast_folder):
    return begun(fast_folder / "helper")


@pytest.fixture
def five(desk):
    """A desk, the reports of five devices, and the answer to them."""
    sent = reports(range(5), 1, keys_of(desk, 1))
    return desk, sent, answered(desk, sent)


@pytest.fixture
def three(desk):
    """A desk, the reports of three devices, and the key they sealed to."""
    keys = keys_of(desk, 1)
    return desk, reports(range(3), 1, keys), keys[1]


def refusal(answer: object) -> str:
    assert isinstance(answer, HelperProblem), answer
    return answer.refusal.value


def answered(desk, of: list[Report], round: int = 1, terms=TERMS) -> bytes:
    body = desk.answer(named(of, round), 1.0)
    assert isinstance(body, bytes), body
    assert opened(body, of, terms) == expected(of)
    return body


def names(of: list[Report]) -> tuple[str, ...]:
    return tuple(sorted(signing.name_of(each.sealed.public_key) for each in of))


# the sum


@pytest.mark.parametrize("counted", [3, 5, 8])
def test_the_sum_of_the_counted_reports_opens_whatever_became_of_the_others(desk, counted):
    keys = keys_of(desk, 1)
    sent = reports(range(8), 1, keys)
    answered(desk, sent[:counted])


@EXAMPLES
@given(st.permutations(range(5)))
def test_the_same_set_gets_the_same_bytes_in_any_order(five, order):
    desk, sent, first = five
    assert answered(desk, [sent[place] for place in order]) == first


# once


def test_no_other_set_of_an_answered_round_is_opened(desk):
    sent = reports(range(6), 1, keys_of(desk, 1))
    body = answered(desk, sent[:4])
    for other in (sent[:3], sent[:5], sent[1:5], sent[3:]):
        assert refusal(desk.answer(named(other, 1), 2.0)) == "second_set"
    assert desk.answer(named(sent[:4], 1), 3.0) == body


def test_a_helper_that_starts_again_knows_all_it_knew(fast_folder):
    desk = begun(fast_folder / "helper")
    keys = keys_of(desk, 1, 3)
    sent = reports(range(4), 1, keys)
    body = answered(desk, sent)
    desk.close()
    desk = new(fast_folder / "helper")
    assert desk.answer(named(sent, 1), 2.0) == body
    assert refusal(desk.answer(named(sent[:3], 1), 2.0)) == "second_set"
    assert keys_of(desk, 2, 2) == {2: keys[2], 3: keys[3]}
    assert desk.report().answers == 1
    answered(desk, reports(range(4), 3, keys), 3)


def test_an_answer_that_the_leader_has_taken_is_forgotten(fast_folder, desk):
    sent = reports(range(3), 1, keys_of(desk, 1))
    body = answered(desk, sent)
    kept = fast_folder / "helper" / "answers"
    assert [path.read_bytes() for path in kept.iterdir()] == [body]
    assert desk.taken(DONE) == desk.taken(DONE)
    assert list(kept.iterdir()) == []
    assert refusal(desk.answer(named(sent, 1), 2.0)) == "unknown_round"
    assert refusal(desk.answer(named(sent[:2], 1), 2.0)) == "second_set"


def test_an_answer_whose_taking_was_never_heard_is_forgotten_with_a_later_round(fast_folder, desk):
    keys, kept = keys_of(desk, 1, 3), fast_folder / "helper" / "answers"
    answered(desk, reports(range(3), 1, keys))
    answered(desk, reports(range(3), 3, keys), 3)
    assert len(list(kept.iterdir())) == 2
    desk.taken(AnswerTaken(TASK_ID, 3))
    assert list(kept.iterdir()) == []


def test_what_was_sealed_for_a_round_that_came_to_nothing_is_never_opened(fast_folder, desk):
    keys = keys_of(desk, 1, 2)
    sent = reports(range(3), 1, keys)
    desk.taken(AnswerTaken(TASK_ID, 1))
    slots = fast_folder / "helper" / "keys"
    assert [path.name for path in slots.iterdir()] == [f"{TASK_ID}~2"]
    assert refusal(desk.answer(named(sent, 1), 2.0)) == "unknown_round"
    desk.taken(AnswerTaken(TASK_ID, 10**9))  # no further than there are keys
    assert list(slots.iterdir()) == []
    answered(desk, reports(range(3), 3, keys_of(desk, 3)), 3)


def test_rounds_are_answered_in_their_order(desk):
    keys = keys_of(desk, 1, 3)
    answered(desk, reports(range(3), 3, keys), 3)
    assert refusal(desk.answer(named(reports(range(4, 8), 2, keys), 2), 2.0)) == "unknown_round"


# what is refused, and binds nobody


def twice(sent: list[Report]) -> list[Report]:
    return [*sent, sent[0]]


def unsigned(sent: list[Report]) -> list[Report]:
    sealed = replace(sent[0].sealed, signature=sent[1].sealed.signature)
    return [replace(sent[0], sealed=sealed), *sent[1:]]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda sent: [], "too_few"),
        (lambda sent: sent[:2], "too_few"),
        (twice, "named_before"),
        (unsigned, "bad_signature"),
    ],
)
def test_a_set_that_is_refused_binds_nobody(desk, spoil, why):
    sent = reports(range(4), 1, keys_of(desk, 1))
    assert refusal(desk.answer(named(spoil(sent), 1), 1.0)) == why
    answered(desk, sent)
    assert desk.report().refusals == {why: 1}


def test_a_set_larger_than_its_codes_have_room_for_is_refused(desk):
    sent = reports(range(9), 1, keys_of(desk, 1))
    assert refusal(desk.answer(named(sent, 1), 1.0)) == "too_many"
    answered(desk, sent[:8])


@pytest.mark.parametrize("what", ["server", "task_id", "round", "terms", "device"])
def test_a_seal_that_was_made_for_something_else_is_named(desk, what):
    other = {"server": "0" * 32, "task_id": "0" * 32, "round": 2, "terms": "0" * 64}
    value = {**other, "device": signing.public_hex(key(1))}[what]
    keys = keys_of(desk, 1)
    sent = reports(range(4), 1, keys)
    sealed_for = replace(bound(0, 1, keys[1]), **{what: value})
    spoiled = [report(0, 1, keys[1], sealed_for=sealed_for), *sent[1:]]
    no = desk.answer(named(spoiled, 1), 1.0)
    assert (refusal(no), no.devices) == ("bad_seal", names(sent[:1]))
    answered(desk, sent)


@EXAMPLES
@given(st.integers(0, 639))
def test_a_seal_with_any_bit_changed_opens_nothing(three, bit):
    desk, sent, seal_key = three
    seal = bytearray.fromhex(sent[0].sealed.seal)
    seal[bit // 8] ^= 1 << bit % 8
    damaged = replace(sent[0].sealed, seal=seal.hex())
    spoiled = [replace(sent[0], sealed=damaged), *sent[1:]]
    assert refusal(desk.answer(named(spoiled, 1), 1.0)) == "bad_signature"
    message = bound(0, 1, seal_key).signed(bytes(seal))
    signed = replace(damaged, signature=key(0).sign(message).hex())
    no = desk.answer(named([replace(sent[0], sealed=signed), *sent[1:]], 1), 1.0)
    assert (refusal(no), no.devices) == ("bad_seal", names(sent[:1]))


def test_what_nobody_has_registered_or_keyed_is_unknown(desk):
    sent = reports(range(3), 1, keys_of(desk, 1))
    assert refusal(desk.answer(named(sent, 2), 1.0)) == "unknown_round"
    other = Named("0" * 32, 1, named(sent, 1).reports)
    assert refusal(desk.answer(other, 1.0)) == "unknown_task"
    assert refusal(desk.seal_keys(KeysAsked("0" * 32, 1))) == "unknown_task"
    assert refusal(desk.taken(AnswerTaken("0" * 32, 1))) == "unknown_task"
    answered(desk, sent)


# the ledger


def test_a_device_that_was_counted_too_few_rounds_ago_is_named(desk):
    keys = keys_of(desk, 1, 3)
    answered(desk, reports(range(4), 1, keys))
    soon = reports(range(3, 7), 2, keys)
    no = desk.answer(named(soon, 2), 2.0)
    assert (refusal(no), no.devices) == ("too_soon", names(soon[:1]))
    answered(desk, soon[1:], 2)
    answered(desk, reports(range(4), 3, keys), 3)
    with desk._store.reading() as rows:
        counted = rows.counted(TASK_ID)
    by_number = [counted[signing.public_hex(key(number))] for number in range(7)]
    assert by_number == [2, 2, 2, 2, 1, 1, 1]


LATE = replace(TERMS, max_staleness=2, min_separation=1)


def test_late_reports_are_opened_while_their_round_s_key_lives(fast_folder):
    desk = begun(fast_folder / "helper", LATE)
    keys = keys_of(desk, 1, 4)
    sent = {number: reports([number], 1, keys, LATE)[0] for number in range(6)}
    answered(desk, [sent[0], *reports(range(10, 12), 1, keys, LATE)], 1, LATE)
    answered(desk, [sent[1], *reports(range(12, 14), 2, keys, LATE)], 2, LATE)
    # in the answer of round 1 already, though it comes as one of round 3
    again = [sent[0], *reports(range(14, 16), 3, keys, LATE)]
    no = desk.answer(named(again, 3), 3.0)
    assert (refusal(no), no.devices) == ("named_before", names(again[:1]))
    answered(desk, [sent[2], *reports(range(14, 16), 3, keys, LATE)], 3, LATE)
    too_late = [sent[3], *reports(range(16, 18), 4, keys, LATE)]
    assert refusal(desk.answer(named(too_late, 4), 4.0)) == "unknown_round"
    answered(desk, reports(range(16, 19), 4, keys, LATE), 4, LATE)


def test_a_report_of_a_round_to_come_is_in_no_sum(fast_folder):
    desk = begun(fast_folder / "helper", LATE)
    keys = keys_of(desk, 1, 2)
    early = [*reports(range(2), 1, keys, LATE), *reports([2], 2, keys, LATE)]
    assert refusal(desk.answer(named(early, 1), 1.0)) == "unknown_round"


def test_only_certified_devices_count_where_a_key_says_which_they_are(fast_folder):
    certifier = signing.public_hex(CERTIFIER)
    desk = begun(fast_folder / "helper", rules=replace(RULES, enrolment_key=certifier))
    sent = reports(range(5), 1, keys_of(desk, 1))

    def certified(of: Report, by) -> Report:
        signature = enrolments.certificate(of.sealed.public_key, by).signature
        return replace(of, sealed=replace(of.sealed, enrolment=signature))

    def those(count: int, by=CERTIFIER) -> list[Report]:
        return [certified(each, by) for each in sent[:count]] + sent[count:]

    for few in (sent, those(2), those(5, OPERATOR)):
        assert refusal(desk.answer(named(few, 1), 1.0)) == "not_enrolled"
    answered(desk, those(3))  # two more are in the sum, and count for nothing in the least
    assert desk.report().enrolment_key == certifier


# keys


def test_a_key_is_the_same_whenever_it_is_asked_for(desk):
    keys = keys_of(desk, 1, 4)
    assert len(set(keys.values())) == 4
    assert keys_of(desk, 3, 2) == {3: keys[3], 4: keys[4]}


def test_the_key_of_a_round_dies_with_its_answer(fast_folder, desk):
    keys, slots = keys_of(desk, 1, 3), fast_folder / "helper" / "keys"
    private = slots / f"{TASK_ID}~2"
    assert len(private.read_bytes()) == 32
    with open(private, "rb") as held:  # as whoever keeps the file's blocks reads it
        answered(desk, reports(range(3), 2, keys), 2)
        assert held.read() == bytes(32)
    assert sorted(path.name for path in slots.iterdir()) == [f"{TASK_ID}~3"]
    # that of round 1 too, which nobody has answered: a later one has been
    for first in (1, 2):
        assert refusal(desk.seal_keys(KeysAsked(TASK_ID, first, 2))) == "unknown_round"
    assert keys_of(desk, 3) == {3: keys[3]}


def test_keys_are_made_for_so_many_rounds_to_come_and_no_further(desk):
    keys_of(desk, 1, MOST_ROUNDS_AHEAD)
    too_far = KeysAsked(TASK_ID, MOST_ROUNDS_AHEAD + 2, MOST_ROUNDS_AHEAD)
    assert refusal(desk.seal_keys(too_far)) == "unknown_round"
    # a leader whose rounds come to nothing goes on: keys that nobody can be working for end
    keys_of(desk, MOST_ROUNDS_AHEAD + 1, MOST_ROUNDS_AHEAD)
    assert refusal(desk.seal_keys(KeysAsked(TASK_ID, MOST_ROUNDS_AHEAD))) == "unknown_round"


@pytest.mark.parametrize("damage", [bytes(32), b"short", None])
def test_a_key_that_is_lost_is_not_replaced_by_another(fast_folder, desk, damage):
    keys = keys_of(desk, 1, 2)
    path = fast_folder / "helper" / "keys" / f"{TASK_ID}~1"
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    assert refusal(desk.seal_keys(KeysAsked(TASK_ID, 1, 2))) == "unknown_round"
    sent = reports(range(3), 1, keys)
    assert refusal(desk.answer(named(sent, 1), 1.0)) == "unknown_round"
    answered(desk, reports(range(3), 2, keys), 2)


# whose tasks

FOREIGN = {
    "another helper": {"terms": replace(TERMS, helper="0" * 64)},
    "plain": {"terms": replace(TERMS, aggregation=Aggregation.PLAIN, helper="")},
    "of format 1": {"terms": None},
    "sums of few": {"terms": replace(TERMS, fewest=2)},
    "expired": {"expires_at": 5.0},
    "another task": {"task": "other"},
    "another task's id": {"task_id": "0" * 32},
    "an untrusted maker": {"by": key(77)},
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_task_that_its_maker_has_not_signed_for_this_helper_is_not_served(fast_folder, what):
    trusted = frozenset({signing.public_hex(OPERATOR)})
    desk = new(fast_folder / "helper", replace(RULES, trusted=trusted))
    foreign = registration(**{"terms": TERMS, **FOREIGN[what]})
    assert refusal(desk.register(foreign, 6.0)) == "foreign_policy"
    assert refusal(desk.seal_keys(KeysAsked(TASK_ID, 1))) == "unknown_task"


def test_a_certificate_that_was_changed_is_nobody_s(fast_folder):
    desk, signed = new(fast_folder / "helper"), registration()
    text = signed.certificate.text.replace('"fewest":3', '"fewest":9')
    altered = replace(signed, certificate=replace(signed.certificate, text=text))
    assert refusal(desk.register(altered, 0.0)) == "foreign_policy"


def test_the_terms_of_a_task_never_change_and_its_certificate_may(desk):
    assert desk.register(registration(first_round=500, expires_at=2e9), 1.0).terms == TERMS.name
    for terms in (replace(TERMS, fewest=4), replace(TERMS, min_separation=1)):
        assert refusal(desk.register(registration(terms), 1.0)) == "foreign_policy"
    assert refusal(desk.register(registration(server="0" * 32), 1.0)) == "foreign_policy"
    sent = reports(range(3), 1, keys_of(desk, 1))
    answered(desk, sent)


def test_an_evaluation_shows_the_certificate_of_what_it_scores(desk):
    asked = replace(registration(), task="accuracy", task_id="e0" * 16, kind=Kind.EVALUATION)
    assert desk.register(asked, 0.0).terms == TERMS.name
    with desk._store.reading() as rows:
        task = rows.task("e0" * 16).task
    assert (task.layout, task.separation) == (scores.layout(TERMS.most), 1)
    for bad in (replace(asked, task_id=TASK_ID), replace(asked, kind=Kind.RELEASES)):
        assert refusal(desk.register(bad, 0.0)) == "foreign_policy"


# what is on disk


def test_no_seed_is_anywhere_on_disk(fast_folder):
    desk = begun(fast_folder / "helper")
    keys = keys_of(desk, 1, 2)
    sent = reports(range(8), 1, keys)
    answered(desk, sent)
    refusal(desk.answer(named(unsigned(reports(range(8), 2, keys)), 2), 1.0))
    desk.close()
    files = [path for path in (fast_folder / "helper").rglob("*") if path.is_file()]
    everything = b"".join(path.read_bytes() for path in files)
    assert len(files) >= 3 and len(everything) > 10_000
    for each in sent:
        for part in (each.seed, each.seed.hex().encode(), bytes.fromhex(each.sealed.seal)[32:64]):
            assert part not in everything


def test_the_database_of_another_helper_or_program_is_not_used(fast_folder):
    begun(fast_folder / "helper").close()
    other = replace(RULES, helper="0" * 64)
    with pytest.raises(RunError, match="expected the database of helper 0000"):
        new(fast_folder / "helper", other)
    (fast_folder / "else").mkdir()
    with sqlite3.connect(fast_folder / "else" / "helper.sqlite") as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    before = (fast_folder / "else" / "helper.sqlite").read_bytes()
    with pytest.raises(RunError, match="another program"):
        new(fast_folder / "else")
    assert (fast_folder / "else" / "helper.sqlite").read_bytes() == before
    with pytest.raises(RunError, match="expected an address"):
        new(fast_folder / "third", database="no address")


def test_two_helpers_do_not_share_a_folder(fast_folder):
    desk = begun(fast_folder / "helper")
    with pytest.raises(RunError, match="another server is using this folder"):
        new(fast_folder / "helper")
    desk.close()
    new(fast_folder / "helper").close()


def test_a_database_of_a_format_to_come_is_left_as_it_is(fast_folder):
    begun(fast_folder / "helper").close()
    with sqlite3.connect(fast_folder / "helper" / "helper.sqlite") as connection:
        connection.execute("UPDATE helpers SET format = 3")
    connection.close()
    before = (fast_folder / "helper" / "helper.sqlite").read_bytes()
    with pytest.raises(RunError, match=r"in a format up to 2, found that of .* in format 3"):
        new(fast_folder / "helper")
    assert (fast_folder / "helper" / "helper.sqlite").read_bytes() == before


def columns(database: Path) -> dict[str, set[str]]:
    """Of each table of an SQLite file."""
    engine = sa.create_engine(f"sqlite:///{database}")
    inspector = sa.inspect(engine)
    named_ = {
        table: {column["name"] for column in inspector.get_columns(table)}
        for table in inspector.get_table_names()
    }
    engine.dispose()
    return named_


def test_a_database_of_format_1_gets_the_tables_of_a_new_one(fast_folder):
    old = fast_folder / "old"
    shutil.unpack_archive(GOLDEN / "helper-1.zip", old)
    assert "noises" not in columns(old / "helper.sqlite")
    new(old).close()
    new(fast_folder / "new").close()
    assert columns(old / "helper.sqlite") == columns(fast_folder / "new" / "helper.sqlite")
    new(old).close()  # and once is enough


def test_a_folder_that_version_1_wrote_goes_on(fast_folder):
    """golden/helper-1.zip: of the toy task with keys of rounds 1 and 2, after round 1 was answered
    to devices 0 to 3 and before its leader had the answer.
    """
    folder = fast_folder / "helper"
    shutil.unpack_archive(GOLDEN / "helper-1.zip", folder)
    (answer,) = (folder / "answers").iterdir()
    body = answer.read_bytes()
    desk = new(folder)
    assert desk.report().answers == 1
    sent = reports(range(4), 1, {1: (folder / "seal-key-1").read_text()})
    assert desk.answer(named(sent, 1), 2.0) == body
    assert opened(body, sent) == expected(sent)
    soon = reports(range(4), 2, keys_of(desk, 2))
    assert refusal(desk.answer(named(soon, 2), 2.0)) == "too_soon"
    answered(desk, reports(range(4, 8), 2, keys_of(desk, 2)), 2)
