"""A toy task for the server's tests.

Fifty weights, tiny rules, and devices that make updates without training.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import chain, config, log_wire, merkle, signing, update, weights
from device_runtime.causes import Cause
from device_runtime.log_wire import Head, RoundEntry
from device_runtime.terms import Aggregation, Terms
from device_runtime.weights import Checkpoint
from device_runtime.wire import (
    VERSION,
    Abandon,
    Ack,
    Assignment,
    CheckIn,
    Conditions,
    Enrolment,
    Kind,
    Plan,
    Proof,
    Reject,
    Signed,
)
from server import operators, tasks
from server.contract import RoundKey
from server.coordinator import Coordinator, open_folder
from server.eligibility import Policy
from server.requests import Abandoning, Answer, CheckingIn, Fetching, Refused, Reporting, Request
from server.rounds import Rules
from server.step import ServerStep
from server.task import Task, TaskSettings

TOKENIZER = "70" * 32
WEIGHTS = {
    "embedding": np.linspace(-1, 1, 30, dtype=np.float32).reshape(10, 3),
    "units": np.full((4, 5), 0.5, np.float32),
}
SHAPES = weights.shapes_hash(WEIGHTS)
DIMENSION = 50
# who certifies round keys; the tiny bundle is signed with it
OPERATOR = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
HELPER = Ed25519PrivateKey.from_private_bytes((70).to_bytes(32, "big"))  # of masked toy terms
PLAN = Plan(clipping_norm=1.0, bits=8)
READY = CheckIn(
    Conditions(charging=True, unmetered=True, idle=True), examples=20, tokenizer=TOKENIZER
)


class OneByOne(Coordinator):
    """A coordinator that is asked one thing at a time. What it refuses is raised."""

    def ask(self, request: Request, now: float) -> Answer:
        (answer,) = self.handle([request], now)
        if isinstance(answer, Refused):
            raise answer
        return answer

    def check_in(self, device: str, message: CheckIn, now: float) -> Assignment | Reject:
        """As the endpoint answers it: with the difference from what the device holds."""
        answer = self.ask(CheckingIn(device, message), now)
        if isinstance(answer, Assignment):
            return self.with_difference(answer, message.holds)
        return answer

    def join(
        self, device: str, now: float, message: CheckIn = READY
    ) -> tuple[Assignment | Reject, float]:
        """The answer to a device that asks at `now` and then whenever it is told to, and when it
        hears it: the first that is more than that it has a ticket.
        """
        while True:
            answer = self.check_in(device, message, now)
            if not isinstance(answer, Reject) or answer.cause is not Cause.SELECTING:
                return answer, now
            now += answer.retry_in_s

    def update(self, device: str, assignment: str, body: bytes, now: float) -> Ack | Reject:
        return self.ask(Reporting(device, assignment, body), now)

    def scores(self, device: str, assignment: str, body: bytes, now: float) -> Ack | Reject:
        return self.ask(Reporting(device, assignment, body, Kind.EVALUATION), now)

    def abandon(self, device: str, assignment: str, message: Abandon, now: float) -> Ack:
        return self.ask(Abandoning(device, assignment, message.cause), now)

    def blob(
        self,
        device: str,
        name: str,
        now: float,
        start: int = 0,
        end: int | None = None,
        signed_for: tuple[str, int] | None = None,
    ) -> bytes:
        """A blob, or its bytes from `start` up to `end` (not included)."""
        size = self.blob_size(name)
        end = size if end is None else min(end, size)
        data = self.blobs.part(name, start, end)
        makes = self.differences.makes(name)
        self.ask(Fetching(device, name, len(data), end == size, makes, None, signed_for), now)
        return bytes(data)


def new(
    folder: Path,
    rules: Rules,
    plan: Plan = PLAN,
    policy: Policy | None = None,
    step: ServerStep | None = None,
    values: weights.Weights = WEIGHTS,
) -> OneByOne:
    """A coordinator with a new task, at second 0. Its rules are `by_arrival`: most tests are
    about what follows once a device has its place.
    """
    store, blobs = open_folder(folder)
    created(
        Coordinator(store, blobs),
        TaskSettings(
            plan,
            rules=by_arrival(rules),
            policy=policy or Policy(min_separation=1),
            step=step or ServerStep(),
            seed=7,
        ),
        0.0,
        Checkpoint(values, 0, "", TOKENIZER),
    )
    return OneByOne(store, blobs, np.random.default_rng(0))


def created(
    coordinator: Coordinator, settings: TaskSettings, now: float, start: Checkpoint | None = None
) -> Task:
    """A new task whose round key the operator has certified, for as long as any test lasts. Where
    nobody is named who opens sums, the server sees each update.
    """
    if settings.aggregation is Aggregation.HELPER and not settings.helper:
        settings = replace(settings, aggregation=Aggregation.PLAIN)
    task = tasks.create(coordinator, settings, now, start)
    if task.kind is Kind.TRAINING:
        certify(coordinator, now, task.name)
    return task


def certify(
    coordinator: Coordinator,
    now: float,
    name: str = "default",
    rounds: int = 100_000,
    expires_at: float = 1e11,
) -> Signed:
    """What `fedboard task certify` does, without a socket between; the certificate."""
    proposed = operators.round_key(coordinator, name)
    signed = proposed.certified(OPERATOR, rounds, expires_at)
    operators.certify(coordinator, name, signed, now)
    return signed


def chained(
    work: Assignment,
    made_in: int | None = None,
    signer: Ed25519PrivateKey = OPERATOR,
    terms: Terms | None = None,
) -> Assignment:
    """The work with a chain as a server would sign it that has a certified round key: its
    checkpoint as that of the round before, or of `made_in`; by default with terms of the toy task.
    """
    proposed = RoundKey(
        signing.public_hex(key(1)),
        work.server,
        work.task,
        work.task_id,
        "default",
        work.plan,
        "0f" * 32,
        1,
        terms or terms_for(PLAN, work.shapes, DIMENSION),
        signing.public_hex(log_key(work)),
        work.plan,
        VERSION,
    )
    certificate = proposed.certified(signer, 100_000, 1e11)
    made_in = work.round - 1 if made_in is None else made_in
    link = chain.Link(chain.name_of(certificate), made_in, work.checkpoint)
    signed = signing.sign_text(key(1), chain.LINK, config.to_json(link))
    work = replace(work, certificate=certificate, link=signed)
    return replace(work, log=proof_for(work, made_in))


def log_key(work: Assignment) -> Ed25519PrivateKey:
    """Of a log that holds nothing but what is said of this work: another work has another."""
    said = f"{work.server} {work.task_id} {work.round} {work.checkpoint}"
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(weights.digest(said.encode())))


def proof_for(work: Assignment, made_in: int) -> Proof | None:
    """That such a log has the policy and the checkpoint of a work, as HELPER countersigns it."""
    certificate = chain.certificate_of(work)
    policy = log_wire.policy_of(certificate)
    if policy is None:
        return None
    entry = RoundEntry(certificate.task_id, made_in, 3, 1, 0.0, work.checkpoint)
    leaves = [merkle.leaf(log_wire.body(each)) for each in (policy, entry)]
    head = Head(certificate.server, 2, merkle.node(*leaves).hex())
    signed = signing.sign_text(log_key(work), log_wire.HEAD, config.to_json(head))
    body = log_wire.body(entry).decode()
    seen = ""
    if policy.terms.helper == signing.public_hex(HELPER):
        seen = signing.sign_text(HELPER, log_wire.SEEN, config.to_json(head)).signature
    return Proof(signed, 0, leaves[1].hex(), 1, leaves[0].hex(), body, seen)


def certifying(terms: Terms) -> Signed:
    """A certificate of some task with these terms."""
    name, hashed = "0a" * 16, "0f" * 32
    of = signing.public_hex(key(1)), name, "default", name, "default", hashed, hashed, 1
    return RoundKey(*of, terms, hashed, hashed, 1).certified(OPERATOR, 100_000, 1e11)


def terms_for(plan: Plan, shapes: str, dimension: int) -> Terms:
    """Plain terms of a task with this plan and network."""
    of = plan.bits, plan.clipping_norm, dimension, shapes
    return Terms(Aggregation.PLAIN, *of, rotation_seed=5, most=100, fewest=1, min_separation=1)


def by_arrival(rules: Rules) -> Rules:
    """Rules whose places go by arrival, and that let nobody wait, as far as they do not say
    otherwise.
    """
    none = {"selection_s": 0.0, "retry_s": 0.0, "permanent_retry_s": 0.0}
    usual = Rules()
    left = {name for name in none if getattr(rules, name) == getattr(usual, name)}
    return replace(rules, **{name: none[name] for name in left})


def reopened(folder: Path) -> OneByOne:
    return OneByOne(*open_folder(folder), np.random.default_rng(0))


def key(number: int) -> Ed25519PrivateKey:
    """The same key for the same number."""
    return Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))


def enrolled(coordinator: Coordinator, count: int) -> list[str]:
    """Names of `count` devices."""
    return [
        coordinator.enrol(Enrolment(signing.public_hex(key(number))), 0.0).device
        for number in range(count)
    ]


def delta(number: int, dimension: int = DIMENSION) -> np.ndarray:
    """What device `number` would have learnt, within the clipping norm."""
    vector = np.random.default_rng(number).normal(0, 1, dimension).astype(np.float32)
    return vector * np.float32(0.5 / np.linalg.norm(vector))


def encoded(assignment: Assignment, number: int, vector: np.ndarray | None = None) -> bytes:
    """The update of device `number`, its own delta or another: the same bytes for the same
    round.
    """
    rng = np.random.default_rng([number, assignment.round])
    terms = chain.terms_of(assignment)
    learnt = delta(number, terms.dimension) if vector is None else vector
    return update.of_delta({"all": learnt}, assignment.round, terms, rng)


def stored(coordinator: Coordinator, sha: str) -> Checkpoint:
    """A checkpoint out of the coordinator's blobs."""
    device = enrolled(coordinator, 1)[0]
    return weights.from_bytes(coordinator.blob(device, sha, 0.0))


def check_in(**changes: object) -> CheckIn:
    """READY with some fields changed; conditions by their names."""
    conditions = {
        name: changes.pop(name) for name in ("charging", "unmetered", "idle") if name in changes
    }
    return replace(READY, conditions=replace(READY.conditions, **conditions), **changes)
