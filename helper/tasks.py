"""Tasks: of which tasks a helper opens sums, by what their makers have signed."""

import functools
import math
from dataclasses import dataclass, replace

import numpy as np

from device_runtime import chain, config, log_wire, scores
from device_runtime.chain import Certificate
from device_runtime.helper_wire import HelperProblem, Refusal, Registration
from device_runtime.noise import Noise
from device_runtime.packing import Layout
from device_runtime.terms import LEAST_COUNT, Aggregation, Terms
from device_runtime.wire import CERTIFIED, Kind, Signed
from server import noising

MOST_DELTA = 1e-5  # of a budget that is held to a largest epsilon
MOST_STATE_BYTES = 1 << 29  # that a database takes in one row


@dataclass(frozen=True)
class Rules:
    """What a helper goes by, whoever asks."""

    helper: str  # its own identity: Ed25519 public key, hexadecimal
    least: int = LEAST_COUNT  # devices of the smallest sum it opens
    trusted: frozenset[str] = frozenset()  # makers whose tasks it serves; empty: any maker's
    enrolment_key: str = ""  # whose devices alone count; empty: all do
    max_epsilon: float = math.inf  # the largest budget of a task, at MOST_DELTA or less
    requires_noise: bool = False  # it serves no task without


@dataclass(frozen=True)
class Task:
    """A task as a helper knows it."""

    task_id: str
    task: str
    server: str  # random name of the leader's database
    kind: Kind
    terms: Terms
    policy: str = ""  # `log_wire.Policy.name`; empty where its leader keeps no log

    @property
    def separation(self) -> int:
        """Rounds from one report of a device to its next at least. The terms' is that of the task
        they were signed for; in an evaluation nothing is learnt from a device, and it reports once
        a round.
        """
        return max(1, self.terms.min_separation) if self.kind in CERTIFIED else 1

    @property
    def noise(self) -> Noise | None:
        """What its sums carry: those of an evaluation, nothing."""
        return self.terms.noise if self.kind in CERTIFIED else None

    @property
    def layout(self) -> Layout:
        """How the numbers of its reports lie in words."""
        if self.kind is Kind.EVALUATION:
            return scores.layout(self.terms.most)
        return self.terms.layout


def admitted(
    registration: Registration, rules: Rules, now: float, before: Task | None
) -> Task | HelperProblem:
    """The task of a registration, or why the helper does not serve it. `before` is what it knows
    by that name already: terms never change.
    """
    signed = registration.certificate
    certificate = chain.read_certificate(signed, rules.trusted or frozenset({signed.signer}))
    if isinstance(certificate, str):
        return _foreign(certificate)
    terms = certificate.terms
    if terms is None or terms.aggregation is not Aggregation.HELPER:
        aggregation = "nothing" if terms is None else terms.aggregation.value
        return _foreign(f"certificate: expected aggregation by a helper, found {aggregation}")
    if terms.helper != rules.helper:
        return _foreign(
            f"certificate: expected helper {rules.helper[:16]}, found {terms.helper[:16]}"
        )
    if terms.fewest < rules.least:
        return _foreign(
            f"certificate: expected sums of at least {rules.least} devices, found {terms.fewest}"
        )
    if reason := _why_not_by(terms, rules):
        return _foreign(f"certificate: {reason}")
    if now >= certificate.expires_at:
        return _foreign(
            f"certificate: expired at {certificate.expires_at:.0f}, and it is {now:.0f} here, in "
            "seconds since 1970"
        )
    is_its_own = registration.task_id == certificate.task_id
    if (registration.kind is Kind.COUNTS) != (terms.table is not None):
        expected = "a table" if registration.kind is Kind.COUNTS else "no table"
        return _foreign(f"certificate: expected terms of {expected} for {registration.kind}")
    if registration.kind in CERTIFIED:
        if not is_its_own or registration.task != certificate.task:
            return _foreign(
                f"certificate: expected one of task {registration.task} "
                f"({registration.task_id[:8]}), found one of {certificate.task} "
                f"({certificate.task_id[:8]})"
            )
    elif registration.kind is Kind.RELEASES or is_its_own:
        return _foreign(
            "kind: expected a task that trains or counts, or an evaluation with a name of its own, "
            "found "
            f"{registration.kind}"
        )
    policy = log_wire.policy_of(certificate)
    if registration.kind not in CERTIFIED and terms.noise is not None and policy is None:
        # seals are bound to terms alone then, and those of two tasks can be the same
        return _foreign(
            "certificate: expected one that names a log, as scores of a task with noise are opened "
            "without, found none"
        )
    task = Task(
        registration.task_id,
        registration.task,
        certificate.server,
        registration.kind,
        terms,
        "" if policy is None else policy.name,
    )
    # one of an earlier version has told no policy so far
    agreed = before and replace(before, task=task.task, policy=before.policy or task.policy)
    if agreed is not None and task != agreed:
        return _foreign(
            f"task {task.task_id[:8]}: expected the server, kind, terms and policy it began with, "
            "found others; a task with other terms is another task"
        )
    return task


def _why_not_by(terms: Terms, rules: Rules) -> str:
    """Why sums are not opened with the noise that terms have, or without; empty if they are."""
    noise = terms.noise
    if noise is None:
        return "expected noise in every sum, found none" if rules.requires_noise else ""
    if not math.isinf(rules.max_epsilon):
        if noise.epsilon > rules.max_epsilon:
            return f"expected an epsilon of at most {rules.max_epsilon:g}, found {noise.epsilon:g}"
        if noise.delta > MOST_DELTA:
            return f"expected a delta of at most {MOST_DELTA:g}, found {noise.delta:g}"
    try:
        with np.errstate(all="ignore"):
            has_room, size = bool(terms.layout), noising.sealed_bytes(terms)
    except (ValueError, OverflowError):
        has_room, size = False, 0
    if not has_room:
        return f"noise of {terms.deviation:.3g} codes has no room in masked words"
    if size > MOST_STATE_BYTES:
        return (
            f"expected buffers of noise of at most {MOST_STATE_BYTES >> 20} MB, found "
            f"{size >> 20} MB"
        )
    return ""


@functools.lru_cache(maxsize=256)
def policy_in(signed: str) -> str:
    """The name of the policy in a certificate that was admitted, signed, as JSON; empty if there
    is none.
    """
    text = config.from_json(Signed, signed.encode(), "certificate").text
    policy = log_wire.policy_of(config.from_json(Certificate, text.encode(), "certificate"))
    return "" if policy is None else policy.name


def _foreign(detail: str) -> HelperProblem:
    return HelperProblem(Refusal.FOREIGN_POLICY, detail)
