"""Round keys: who signs a task's checkpoints, and when devices are given them."""

import json
import logging
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from device_runtime import chain, config, signing
from device_runtime.causes import Cause
from device_runtime.chain import Certificate, Link, Verifier, why_untrusted
from device_runtime.terms import Aggregation
from device_runtime.weights import Checkpoint
from device_runtime.wire import Assignment, Kind, Reject, Signed
from server import chain as chains
from server import operators, tasks
from server.coordinator import Coordinator, open_folder
from server.requests import Refused
from server.rounds import Rules
from server.slots import Folder
from server.task import TaskSettings
from tests.conftest import GOLDEN
from tests.test_server_coordinator import Crash, Fate, MortalStore
from tests.toy_server import (
    OPERATOR,
    PLAN,
    READY,
    TOKENIZER,
    WEIGHTS,
    OneByOne,
    by_arrival,
    certify,
    created,
    encoded,
    enrolled,
    key,
    new,
    reopened,
)

ONE = Rules(report_goal=1, over_selection=1.0)
START = Checkpoint(WEIGHTS, 0, "", TOKENIZER)
BY = Verifier(frozenset({signing.public_hex(OPERATOR)}), "default", 5.0)


def bare(folder: Path, rules: Rules = ONE, name: str = "default") -> OneByOne:
    """A server with a task that nobody has certified."""
    store, blobs = open_folder(folder)
    agreed = {"aggregation": Aggregation.PLAIN}
    settings = TaskSettings(PLAN, name=name, rules=by_arrival(rules), seed=7, **agreed)
    tasks.create(Coordinator(store, blobs), settings, 0.0, START)
    return OneByOne(store, blobs)


def asks(coordinator: OneByOne, number: int = 0, now: float = 1.0) -> Assignment | Cause:
    """What a device gets of it: work, or why none."""
    device = enrolled(coordinator, number + 1)[number]
    answer = coordinator.check_in(device, READY, now)
    return answer.cause if isinstance(answer, Reject) else answer


def reports(coordinator: OneByOne, number: int = 0, now: float = 1.0) -> Assignment:
    """A device does its work, which closes the round."""
    work = asks(coordinator, number, now)
    device = enrolled(coordinator, number + 1)[number]
    assert coordinator.update(device, work.assignment, encoded(work, number), now).counted
    return work


def link_of(work: Assignment) -> Link:
    return config.from_json(Link, work.link.text.encode(), "link")


def certificate_of(work: Assignment) -> Certificate:
    return config.from_json(Certificate, work.certificate.text.encode(), "certificate")


def shown(coordinator: Coordinator, now: float = 1.0, name: str = "default"):
    return operators.report(coordinator, name, now)


def refusal(ask) -> Refused:
    with pytest.raises(Refused) as refused:
        ask()
    return refused.value


def test_a_task_gives_no_work_before_it_is_certified_and_says_what_to_do(tmp_path, caplog):
    coordinator = bare(tmp_path)
    assert asks(coordinator) is Cause.UNCERTIFIED
    report = shown(coordinator)
    assert (report.signer, report.last_round) == ("", 0)
    assert "fedboard task certify default" in report.certify
    with caplog.at_level(logging.WARNING):
        coordinator.tick(2.0)
        coordinator.tick(100.0)
    assert [each.message for each in caplog.records] == [report.certify]  # once
    certify(coordinator, 100.0)
    assert shown(coordinator, 100.0).certify == ""
    (round,) = coordinator.reports(100.0).rounds
    assert round.refused == {"uncertified": 1}
    assert isinstance(asks(coordinator, 0, 1e6), Assignment)
    coordinator.close()


def test_work_of_a_certified_task_is_what_a_device_trusts(tmp_path):
    coordinator = bare(tmp_path)
    certify(coordinator, 0.0, rounds=10, expires_at=50.0)
    work = asks(coordinator)
    assert why_untrusted(work, BY) is None
    report = shown(coordinator)
    assert (report.signer, report.last_round, report.expires_at) == (
        signing.public_hex(OPERATOR),
        10,
        50.0,
    )
    again = asks(coordinator)  # work that it has already
    assert (again.link, again.certificate) == (work.link, work.certificate)
    coordinator.close()


def test_every_round_s_checkpoint_is_signed_and_names_the_one_before(tmp_path):
    coordinator = bare(tmp_path)
    certify(coordinator, 0.0)
    works = [reports(coordinator, number) for number in range(3)]
    assert [why_untrusted(work, BY) for work in works] == [None] * 3
    links = [link_of(work) for work in works]
    assert [link.round for link in links] == [0, 1, 2]
    assert [link.parent for link in links] == ["", works[0].checkpoint, works[1].checkpoint]
    assert len({work.certificate for work in works}) == 1
    coordinator.close()


def test_when_its_rounds_are_used_up_there_is_no_work_until_it_is_certified_again(tmp_path):
    coordinator = bare(tmp_path)
    certify(coordinator, 0.0, rounds=2)
    reports(coordinator, 0)
    assert shown(coordinator).certify == ""
    reports(coordinator, 1)
    assert asks(coordinator, 2) is Cause.UNCERTIFIED
    assert "certify again: fedboard task certify default" in shown(coordinator).certify
    certify(coordinator, 2.0, rounds=2)
    work = asks(coordinator, 3, 2.0)
    assert (work.round, certificate_of(work).first_round) == (3, 3)
    assert why_untrusted(work, BY) is None
    coordinator.close()


def test_when_its_time_is_over_there_is_no_work_not_even_what_was_given(tmp_path):
    coordinator = bare(tmp_path)
    certify(coordinator, 0.0, expires_at=10.0)
    work = asks(coordinator, 0, 9.0)
    assert isinstance(work, Assignment)
    assert asks(coordinator, 0, 10.0) is Cause.UNCERTIFIED
    # what was done until then counts; what comes of it is signed once there is a certificate
    device = enrolled(coordinator, 1)[0]
    assert coordinator.update(device, work.assignment, encoded(work, 0), 10.0).counted
    assert asks(coordinator, 1, 10.0) is Cause.UNCERTIFIED
    certify(coordinator, 11.0)
    work = asks(coordinator, 2, 11.0)
    assert (link_of(work).round, why_untrusted(work, BY)) == (1, None)
    coordinator.close()


@pytest.mark.parametrize(
    ("rounds", "life", "now", "said"),
    [
        (1000, 90.0, 1.0, ""),
        (1000, 90.0, 86.0, "its certificate ends in 4.0 days"),
        (1000, 90.0, 82.0, ""),
        (1000, 2.0, 1.0, ""),
        (1000, 2.0, 1.9, "its certificate ends in 0.1 days"),
        (1, 90.0, 1.0, ""),
        (10, 90.0, 1.0, ""),
    ],
)
def test_that_a_certificate_ends_is_said_before_it_does(tmp_path, rounds, life, now, said):
    day = 86_400.0
    coordinator = bare(tmp_path)
    certify(coordinator, 0.0, rounds=rounds, expires_at=life * day)
    assert shown(coordinator, now * day).certify.partition(";")[0] == said
    coordinator.close()


def test_that_few_rounds_are_left_is_said_while_there_are_some(tmp_path):
    coordinator = bare(tmp_path)
    certify(coordinator, 0.0, rounds=20)
    said = []
    for number in range(19):
        reports(coordinator, number)
        said.append(shown(coordinator).certify.partition(";")[0])
    assert said[16:] == ["", "its certificate ends in 2 rounds", "its certificate ends in 1 rounds"]
    coordinator.close()


# what is no certificate of this task


def test_a_certificate_of_something_else_is_refused_by_name_and_changes_nothing(tmp_path):
    coordinator = bare(tmp_path)
    proposed = operators.round_key(coordinator, "default")
    wrong = {
        "server": "0a" * 16,
        "task": "other",
        "task_id": "0a" * 16,
        "population": "de-ch",
        "plan": "0a" * 32,
        "policy": "0a" * 32,
        "round_key": "0a" * 32,
        "first_round": 9,
    }
    for name, value in wrong.items():
        signed = replace(proposed, **{name: value}).certified(OPERATOR, 10, 1e9)
        refused = refusal(lambda each=signed: operators.certify(coordinator, "default", each, 1.0))
        assert refused.cause is Cause.WRONG_STATE
        assert "fedboard task certify" in refused.detail
    for rounds, expires_at in ((0, 1e9), (10, 1.0)):
        signed = proposed.certified(OPERATOR, rounds, expires_at)
        refused = refusal(lambda each=signed: operators.certify(coordinator, "default", each, 1.0))
        assert refused.cause is Cause.WRONG_STATE
    good = proposed.certified(OPERATOR, 10, 1e9)
    for bad in (
        replace(good, signature="0" * 128),
        replace(good, signer=signing.public_hex(key(3))),
        signing.sign_text(OPERATOR, chain.LINK, good.text.encode()),
        signing.sign_text(OPERATOR, chain.CERTIFICATE, b"{}"),
    ):
        refused = refusal(lambda each=bad: operators.certify(coordinator, "default", each, 1.0))
        assert refused.cause is Cause.MALFORMED
    assert asks(coordinator) is Cause.UNCERTIFIED
    operators.certify(coordinator, "default", good, 1.0)
    operators.certify(coordinator, "default", good, 1.0)  # its answer was lost
    assert isinstance(asks(coordinator, 0, 1e6), Assignment)
    coordinator.close()


def test_only_a_training_task_has_a_round_key(tmp_path):
    coordinator = new(tmp_path, ONE)
    settings = TaskSettings(kind=Kind.EVALUATION, evaluates="default", name="scores", rules=ONE)
    created(coordinator, settings, 1.0)
    assert refusal(lambda: operators.round_key(coordinator, "scores")).cause is Cause.WRONG_STATE
    assert refusal(lambda: operators.round_key(coordinator, "none")).cause is Cause.UNKNOWN_TASK
    coordinator.close()


def test_what_is_certified_is_what_the_operator_decided(tmp_path):
    """The same settings have the same policy, whoever draws the seed; any other has another."""
    coordinator = bare(tmp_path)
    proposed = operators.round_key(coordinator, "default")
    plain = {"aggregation": Aggregation.PLAIN}
    asked = TaskSettings(PLAN, rules=by_arrival(ONE), checkpoint="ab" * 32, **plain)
    from server.task import policy_hash

    assert policy_hash(asked) == proposed.policy
    assert policy_hash(replace(asked, rules=ONE)) != proposed.policy
    coordinator.close()


# the private half


def keys_in(folder: Path) -> dict[str, bytes]:
    files = (folder / "server.sqlite.keys").glob("round-key*")
    return {path.name: path.read_bytes() for path in files}


def test_the_private_half_lies_in_its_slot_alone_and_is_gone_once_its_successor_is_certified(
    tmp_path,
):
    coordinator = new(tmp_path, ONE)
    (first,) = keys_in(tmp_path).values()
    proposed = operators.round_key(coordinator, "default")
    assert set(keys_in(tmp_path).values()) > {first}  # in force until then
    reports(coordinator, 0)
    operators.certify(coordinator, "default", proposed.certified(OPERATOR, 9, 1e9), 1.0)
    (second,) = keys_in(tmp_path).values()
    assert first != second
    work = reports(coordinator, 1)
    assert certificate_of(work).round_key == proposed.round_key
    coordinator.tidy()
    files = [
        path for path in tmp_path.rglob("*") if path.is_file() and "round-key" not in path.name
    ]
    for secret in (first, second):
        found = [path for path in files if secret in path.read_bytes()]
        assert found + [path for path in files if secret.hex().encode() in path.read_bytes()] == []
    coordinator.close()


def test_asking_for_keys_and_certifying_none_leaves_the_one_in_force(tmp_path):
    coordinator = new(tmp_path, ONE)
    for _ in range(5):
        operators.round_key(coordinator, "default")
    assert len(keys_in(tmp_path)) == 2
    for number in range(2):
        assert why_untrusted(reports(coordinator, number), BY) is None
    coordinator.close()
    coordinator = reopened(tmp_path)
    assert why_untrusted(reports(coordinator, 2), BY) is None
    coordinator.close()


def test_a_certificate_of_a_key_that_was_replaced_meanwhile_is_refused(tmp_path):
    coordinator = bare(tmp_path)
    early = operators.round_key(coordinator, "default").certified(OPERATOR, 9, 1e9)
    operators.round_key(coordinator, "default")
    refused = refusal(lambda: operators.certify(coordinator, "default", early, 1.0))
    assert "its round key is not here" in refused.detail
    coordinator.close()


def test_without_its_key_a_round_is_closed_unsigned_and_the_operator_hears_of_it(tmp_path, caplog):
    """As after a backup was put back, which has no keys."""
    coordinator = new(tmp_path, ONE)
    (path,) = (tmp_path / "server.sqlite.keys").glob("round-key*")
    path.unlink()
    reports(coordinator, 0)
    assert "the round key is missing" in caplog.text
    assert asks(coordinator, 1) is Cause.UNCERTIFIED
    certify(coordinator, 2.0)
    work = asks(coordinator, 2, 2.0)
    assert (link_of(work).round, why_untrusted(work, BY)) == (1, None)
    coordinator.close()


# going back, and scoring


def test_a_task_that_went_back_is_signed_on_as_far_as_its_certificate_says(tmp_path):
    coordinator = new(tmp_path, ONE)
    works = [reports(coordinator, number) for number in range(2)]
    coordinator.roll_back("default", 1, 3.0)
    back = asks(coordinator, 2, 3.0)
    assert (back.round, back.link) == (4, works[1].link)  # the one it had
    assert why_untrusted(back, BY) is None
    coordinator.close()


def test_a_task_that_went_back_behind_its_certificate_is_certified_again(tmp_path):
    coordinator = bare(tmp_path)
    certify(coordinator, 0.0, rounds=1)
    reports(coordinator, 0)
    certify(coordinator, 1.0, rounds=50)  # from round 2 on
    reports(coordinator, 1)
    coordinator.roll_back("default", 0, 3.0)
    assert asks(coordinator, 2, 3.0) is Cause.UNCERTIFIED
    assert "certify again" in shown(coordinator, 3.0).certify
    certify(coordinator, 3.0)
    work = asks(coordinator, 3, 3.0)
    assert (work.round, link_of(work).round, why_untrusted(work, BY)) == (4, 0, None)
    coordinator.close()


def test_a_checkpoint_whose_own_certificate_ran_out_is_signed_anew_when_a_task_goes_back_to_it(
    tmp_path,
):
    coordinator = bare(tmp_path)
    certify(coordinator, 0.0, expires_at=10.0)
    reports(coordinator, 0, 1.0)
    certify(coordinator, 2.0)  # from round 2 on: checkpoint 1 is its first
    reports(coordinator, 1, 2.0)
    coordinator.roll_back("default", 1, 20.0)
    work = asks(coordinator, 2, 20.0)
    assert (link_of(work).round, why_untrusted(work, replace(BY, now=20.0))) == (1, None)
    coordinator.close()


def test_an_evaluation_shows_its_training_task_s_chain_also_when_that_is_finished(tmp_path):
    coordinator = bare(tmp_path, replace(ONE, rounds=1))
    settings = TaskSettings(kind=Kind.EVALUATION, evaluates="default", name="scores", rules=ONE)
    created(coordinator, replace(settings, rules=by_arrival(ONE)), 1.0)
    coordinator.pause("scores")
    assert asks(coordinator) is Cause.UNCERTIFIED
    certify(coordinator, 1.0)
    work = asks(coordinator, 0, 1e6)
    device = enrolled(coordinator, 1)[0]
    assert coordinator.update(device, work.assignment, encoded(work, 0), 1e6).counted
    coordinator.resume("scores")
    assert coordinator.finished()
    scoring = asks(coordinator, 1, 1e6)
    assert (scoring.task, link_of(scoring).round) == ("scores", 1)
    assert certificate_of(scoring).task == "default"
    assert why_untrusted(scoring, replace(BY, now=1e6)) is None
    coordinator.close()


def test_an_evaluation_of_a_finished_task_can_be_certified_again(tmp_path):
    coordinator = bare(tmp_path, replace(ONE, rounds=1))
    certify(coordinator, 0.0, expires_at=10.0)
    reports(coordinator, 0)
    settings = TaskSettings(kind=Kind.EVALUATION, evaluates="default", name="scores")
    created(coordinator, replace(settings, rules=by_arrival(ONE)), 1.0)
    assert isinstance(asks(coordinator, 1, 11.0), Cause)
    assert coordinator.reports(11.0, "scores").rounds[0].refused == {"uncertified": 1}
    certify(coordinator, 12.0)
    assert asks(coordinator, 2, 12.0).task == "scores"
    coordinator.close()


# servers that die, and versions before


class MortalKeys(Folder):
    def __init__(self, folder: Path, fate: Fate):
        super().__init__(folder)
        self.fate = fate

    def put(self, name: str, data: bytes) -> None:
        self.fate.step()
        super().put(name, data)
        self.fate.step()

    def remove(self, name: str) -> None:
        self.fate.step()
        super().remove(name)
        self.fate.step()


def test_killed_between_key_certificate_and_link_a_task_goes_on_with_the_one_before(tmp_path):
    """Certified anew, and killed at each step: it has the old certificate or the new one, its key
    is there, and the current checkpoint has a link of it.
    """
    went_on = set()
    for dies_at in range(1, 100):
        folder, fate = tmp_path / str(dies_at), Fate(dies_at)
        coordinator = new(folder, ONE)
        before = asks(coordinator).certificate
        coordinator.close()
        store, blobs = MortalStore(folder / "server.sqlite", fate), open_blobs(folder)
        mortal = OneByOne(store, blobs)
        mortal.round_keys = chains.RoundKeys(MortalKeys(folder / "server.sqlite.keys", fate))
        died = False
        try:
            certify(mortal, 1.0)
        except Crash:
            died = True
        store.close()
        coordinator = reopened(folder)
        for number in range(2):
            work = reports(coordinator, number, 2.0)
            assert why_untrusted(work, BY) is None
        went_on.add(work.certificate == before)
        certify(coordinator, 3.0)  # and asked again, it is certified
        assert len(keys_in(folder)) == 1
        assert why_untrusted(asks(coordinator, 2, 3.0), BY) is None
        coordinator.close()
        if not died:
            break
    assert went_on == {True, False}
    assert dies_at > 6


def open_blobs(folder: Path):
    from server.blobs import Blobs

    return Blobs(folder / "blobs")


def test_a_server_of_the_version_before_waits_uncertified_says_so_and_then_goes_on(tmp_path):
    """It was made by the server of that time: a round committed, a second one with one of its two
    reports, and an evaluation nobody has joined.
    """
    zipfile.ZipFile(GOLDEN / "server-0003.zip").extractall(tmp_path)
    coordinator = OneByOne(*open_folder(tmp_path))
    coordinator.tick(10.0)
    first, second, third = coordinator.reports(10.0).rounds
    assert (first.phase, first.counted, second.phase, second.counted) == (
        "committed",
        2,
        "abandoned",  # what it had counted cannot be gone on with
        1,
    )
    assert third.phase == "selecting"
    assert asks(coordinator, 1, 11.0) is Cause.UNCERTIFIED
    assert "fedboard task certify default" in shown(coordinator, 11.0).certify
    certify(coordinator, 11.0)
    works = {}
    for number in (1, 3):
        work = asks(coordinator, number, 12.0)
        works[work.task] = number, work
        assert why_untrusted(work, replace(BY, now=12.0)) is None
        assert link_of(work).round == 1
    number, work = works["default"]
    assert work.round == 3
    device = enrolled(coordinator, number + 1)[number]
    assert coordinator.update(device, work.assignment, encoded(work, number), 12.0).counted
    assert coordinator.reports(12.0).rounds[2].counted == 1
    assert works["scores"][1].checkpoint == work.checkpoint
    coordinator.close()


def test_a_certificate_is_text_that_any_ed25519_library_verifies(tmp_path):
    """A reader in another language needs no canonical JSON: the text is signed as it stands."""
    coordinator = new(tmp_path, ONE)
    work = asks(coordinator)
    for signed, purpose in ((work.certificate, "certificate"), (work.link, "link")):
        message = f"fedboard-{purpose}-v1\n{signed.text}".encode()
        OPERATOR.public_key()  # the library's own, without a line of ours
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signed.signer))
        public.verify(bytes.fromhex(signed.signature), message)
        assert json.loads(signed.text)
    assert isinstance(work.link, Signed)
    coordinator.close()
