"""Round keys: who signs a task's checkpoints, and whether devices may be given them.

    operator: round-key?  -> a new key, its private half in a slot       Proposal
    operator: certificate -> verified, kept, and the current checkpoint  signed at once
    a round closes        -> its checkpoint                              signed as it is kept
    whatever is signed    -> is entered in the log                       in the same transaction
    a device checks in    -> certificate, link and proof of what it gets, or no work: UNCERTIFIED

A task has two slots. The key of its newest certificate lies in one of them, and a new one is put in
the other: whenever a server is killed, the key that is in force is there. The private half is
never in the database, and written over when its successor is certified.
"""

import functools
import logging
import secrets
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import chain, config, signing
from device_runtime.causes import Cause
from device_runtime.chain import Certificate, Link
from device_runtime.masking import Random
from device_runtime.shown import command
from device_runtime.terms import Aggregation
from device_runtime.wire import CERTIFIED, DAY_S, Kind, Proof, Signed
from server.contract import RoundKey
from server.log import Log
from server.requests import Refused
from server.slots import Slots
from server.store import Rows, StoredCertificate, StoredCheckpoint
from server.task import State, Task, policy_hash, task_id, terms

log = logging.getLogger("fedboard.server")

ROUNDS_BEFORE, LIFE_BEFORE_S = 20, 7 * DAY_S  # its end: then it is said that it comes
SHARE_BEFORE = 0.1  # of its rounds and its life, if that is less
LAST_S = 253_402_300_799.0  # no date has a name after this second
AGAIN = "ask for a round key anew: fedboard task certify NAME"


@dataclass(frozen=True)
class Given:
    """The certificate and the link that go with a checkpoint, and how long they may."""

    certificate: Signed
    link: Signed
    end: int  # the first round of the task that is not covered any more
    expires_at: float
    # else devices cannot know who would see their updates, or what holds the server to that
    says_terms: bool
    log: Proof | None = None  # that the log holds policy and checkpoint; None while it does not

    def holds(self, round: int, now: float) -> bool:
        """Whether a device that gets it now, in this round of the task, will take it."""
        return self.says_terms and round < self.end and now < self.expires_at


@dataclass(frozen=True)
class Standing:
    """Who signed for the checkpoints of a training task, and for how long."""

    signer: str = ""  # public key that certified the round key, hexadecimal; empty without one
    last_round: int = 0
    expires_at: float = 0.0  # seconds since 1970
    to_do: str = ""  # what the operator must do about it, in a sentence; empty if nothing


class RoundKeys:
    """The private halves. Whoever uses it holds the coordinator's lock, or is in a transaction."""

    def __init__(self, slots: Slots, random: Random = secrets.token_bytes):
        self._slots, self._random = slots, random

    def propose(self, task: str, newest: str | None) -> str:
        """A new key beside that of the newest certificate, if there is one; its public half. One
        that was proposed before is written over. Raises RunError if it cannot be kept.
        """
        key = Ed25519PrivateKey.from_private_bytes(self._random(32))
        free = next(name for name in _slots_of(task) if self._public(name) != (newest or ""))
        self._slots.put(free, key.private_bytes_raw())
        return signing.public_hex(key)

    def of(self, task: str, public: str) -> Ed25519PrivateKey | None:
        """The private half of a key; None if it is not there."""
        for name in _slots_of(task):
            key = self._key(name)
            if key is not None and signing.public_hex(key) == public:
                return key
        return None

    def keep_only(self, task: str, public: str) -> None:
        """Write over the others of a task. Raises RunError if that cannot be done."""
        for name in _slots_of(task):
            if self._public(name) != public:
                self._slots.remove(name)

    def _public(self, name: str) -> str | None:
        key = self._key(name)
        return None if key is None else signing.public_hex(key)

    def _key(self, name: str) -> Ed25519PrivateKey | None:
        kept = self._slots.get(name)
        if kept is None or len(kept) != 32:
            return None
        return Ed25519PrivateKey.from_private_bytes(kept)


def _slots_of(task: str) -> tuple[str, str]:
    return f"round-key~{task}~0", f"round-key~{task}~1"


def proposal(rows: Rows, keys: RoundKeys, log_book: Log, server: str, task: Task) -> RoundKey:
    """A new round key of a task that trains or counts, and all that its certificate is to say of
    it, but for how long it holds.
    """
    base = rows.current(task.name)
    assert base is not None
    newest = rows.certificate(task.name)
    public = keys.propose(task.name, None if newest is None else newest.round_key)
    policy = log_book.policy(rows, task)
    return RoundKey(
        public,
        server,
        task.name,
        task_id(server, task.name),
        task.population,
        task.plan_hash,
        policy_hash(task),
        base.round + 1,
        terms(task),
        log_book.key(rows),
        policy.start,
        policy.version,
    )


def certify(
    rows: Rows, keys: RoundKeys, log_book: Log, server: str, task: Task, signed: Signed, now: float
) -> None:
    """Keep a certificate, sign the task's current checkpoint with the key that it certifies, and
    enter both in the log. The same one again changes nothing. Refused if it is not for this
    server's keys and task.
    """
    newest = rows.certificate(task.name)
    if newest is not None and newest.signed == signed:
        return
    certificate = chain.read_certificate(signed, frozenset({signed.signer}))
    if isinstance(certificate, str):
        raise Refused(Cause.MALFORMED, certificate)
    base, open_round = rows.current(task.name), rows.open_rounds().get(task.name)
    assert base is not None
    policy = log_book.policy(rows, task)
    expected = {
        "server": (server, certificate.server),
        "task": (task.name, certificate.task),
        "task_id": (task_id(server, task.name), certificate.task_id),
        "population": (task.population, certificate.population),
        "plan": (task.plan_hash, certificate.plan),
        "policy": (policy_hash(task), certificate.policy),
        "terms": (terms(task).name, certificate.terms.name if certificate.terms else "none"),
        "log_key": (log_book.key(rows), certificate.log_key or "none"),
        "start": (policy.start, certificate.start or "none"),
        "version": (policy.version, certificate.version),
    }
    for name, (wanted, actual) in expected.items():
        if wanted != actual:
            raise Refused(
                Cause.WRONG_STATE,
                f"certificate: expected {name} {wanted}, found {actual}; {AGAIN}",
            )
    key = keys.of(task.name, certificate.round_key)
    if key is None:
        raise Refused(Cause.WRONG_STATE, f"certificate: its round key is not here; {AGAIN}")
    rounds = {base.round} | ({open_round.state.round} if open_round else set())
    if not all(chain.covers(certificate, round) for round in rounds):
        raise Refused(
            Cause.WRONG_STATE,
            f"certificate: expected one for rounds {base.round + 1} to {max(rounds)} and more, "
            f"found {certificate.rounds} from round {certificate.first_round} on; {AGAIN}",
        )
    if certificate.expires_at <= now:
        raise Refused(Cause.WRONG_STATE, f"certificate: it has expired; {AGAIN}")
    number = 1 if newest is None else newest.number + 1
    kept = StoredCertificate(
        number,
        signed,
        certificate.round_key,
        certificate.first_round,
        certificate.rounds,
        certificate.expires_at,
        now,
    )
    rows.add_certificate(task.name, kept)
    rows.set_link(task.name, base.sha, number, _signed(rows, task.name, key, signed, base))
    log_book.enter_task(rows, task, base)


def sign(
    rows: Rows,
    keys: RoundKeys,
    task: str,
    checkpoint: StoredCheckpoint,
    round: int,
    now: float,
) -> None:
    """Sign a checkpoint that is kept and that `round` is to give to devices, with the key of the
    newest certificate, unless it has a link that holds. Without a certificate it stays unsigned,
    and devices do not get it.
    """
    kept = given(rows, task, checkpoint.sha)
    if kept is not None and kept.holds(round, now):
        return
    newest = rows.certificate(task)
    if newest is None or now >= newest.expires_at:
        return
    if not newest.first_round - 1 <= checkpoint.round < newest.end:
        return
    key = keys.of(task, newest.round_key)
    if key is None:
        log.error("the round key is missing: %s", AGAIN, extra={"task": task})
        return
    link = _signed(rows, task, key, newest.signed, checkpoint)
    rows.set_link(task, checkpoint.sha, newest.number, link)


def given(rows: Rows, task: str, sha: str) -> Given | None:
    """What goes with a checkpoint (by the SHA-256 of its float32 form) of a training task; None if
    it was never signed.
    """
    row = rows.link(task, sha)
    if row is None:
        return None
    link, certificate, end, expires_at = row
    signed = _of(certificate)
    return Given(signed, _of(link), end, expires_at, has_terms(signed))


def needs(task: Task) -> bool:
    """Whether a task's work is signed: scores of releases need no signature, all else does."""
    return task.kind is not Kind.RELEASES


def for_work(rows: Rows, task: Task, base: str, round: int, now: float) -> Given | None:
    """What goes with work of a round whose checkpoint is `base`, as devices will take it; None if
    they would not. Evaluations show what their training task's devices are shown.
    """
    kept = given(rows, task.evaluates or task.name, base)
    at = round if task.kind in CERTIFIED else 0  # an evaluation's rounds have other numbers
    return kept if kept is not None and kept.holds(at, now) else None


def standing(rows: Rows, task: Task, state: State, now: float) -> Standing:
    """What an operator is shown of a task's certificate."""
    newest, to_do = rows.certificate(task.name), what_to_do(rows, task, state, now)
    if newest is None:
        return Standing(to_do=to_do)
    return Standing(newest.signed.signer, newest.end - 1, min(LAST_S, newest.expires_at), to_do)


def what_to_do(rows: Rows, task: Task, state: State, now: float) -> str:
    """What an operator must do about the certificate of a task that trains or counts, and by when,
    in a sentence; empty if nothing.
    """
    round = rows.open_rounds().get(task.name)
    if task.kind not in CERTIFIED or state is State.FINISHED or round is None:
        return ""
    by_name = () if task.aggregation is Aggregation.HELPER else ("--aggregation", task.aggregation)
    again = command("task", "certify", task.name, *by_name)
    newest, kept = rows.certificate(task.name), given(rows, task.name, round.base)
    if newest is None:
        return f"devices get no work of it: no certificate of its round key; certify it: {again}"
    if not has_terms(newest.signed):
        return (
            "devices get no work of it: its certificate is of an earlier version and does not say "
            "who sees their updates, or whose log holds the server to it; certify again: "
            f"{again}"
        )
    current = rows.log.current()
    if current is None or current.over or log_key_of(newest.signed) != current.key:
        why = "it has no log" if current is None else current.over or "its server's log is another"
        return f"devices get no work of it: {why}; certify again: {again}"
    if kept is None or not kept.holds(round.state.round, now):
        return (
            f"devices get no work of it: its certificate covers it no more; certify again: {again}"
        )
    left, life = newest.end - round.state.round, newest.expires_at - newest.made_at
    if left <= min(ROUNDS_BEFORE, SHARE_BEFORE * newest.rounds):
        return f"its certificate ends in {left} rounds; certify again: {again}"
    seconds = newest.expires_at - now
    if seconds <= min(LIFE_BEFORE_S, SHARE_BEFORE * life):
        return f"its certificate ends in {seconds / DAY_S:.1f} days; certify again: {again}"
    return ""


def _signed(
    rows: Rows,
    task: str,
    key: Ed25519PrivateKey,
    certificate: Signed,
    checkpoint: StoredCheckpoint,
) -> Signed:
    parent = rows.checkpoint(task, checkpoint.parent) if checkpoint.parent else None
    link = Link(
        chain.name_of(certificate),
        checkpoint.round,
        checkpoint.half,
        "" if parent is None else parent.half,
    )
    return signing.sign_text(key, chain.LINK, config.to_json(link))


def has_terms(certificate: Signed) -> bool:
    """Whether a certificate says how updates are added up, as one of format 1 does not, and whose
    log has it, as one of format 2 does not.
    """
    read = _certificate(certificate.text)
    return read.terms is not None and bool(read.log_key)


def half_in(link: Signed) -> str:
    """SHA-256 of the checkpoint that a link of this server is of."""
    return _link(link.text).checkpoint


@functools.lru_cache(maxsize=256)
def _link(text: str) -> Link:
    return config.from_json(Link, text.encode(), "link")


def log_key_of(certificate: Signed) -> str:
    """The log's key in a certificate; empty in one of an earlier format."""
    return _certificate(certificate.text).log_key


@functools.lru_cache(maxsize=256)
def _certificate(text: str) -> Certificate:
    return config.from_json(Certificate, text.encode(), "certificate")


@functools.lru_cache(maxsize=256)
def _of(text: str) -> Signed:
    return config.from_json(Signed, text.encode(), "signed")
