"""Tasks: of which tasks a helper opens sums, by what their makers have signed."""

from dataclasses import dataclass, replace

from device_runtime import chain, scores
from device_runtime.helper_wire import HelperProblem, Refusal, Registration
from device_runtime.packing import Layout
from device_runtime.terms import LEAST_COUNT, Aggregation, Terms
from device_runtime.wire import Kind


@dataclass(frozen=True)
class Rules:
    """What a helper goes by, whoever asks."""

    helper: str  # its own identity: Ed25519 public key, hexadecimal
    least: int = LEAST_COUNT  # devices of the smallest sum it opens
    trusted: frozenset[str] = frozenset()  # makers whose tasks it serves; empty: any maker's
    enrolment_key: str = ""  # whose devices alone count; empty: all do


@dataclass(frozen=True)
class Task:
    """A task as a helper knows it."""

    task_id: str
    task: str
    server: str  # random name of the leader's database
    kind: Kind
    terms: Terms

    @property
    def separation(self) -> int:
        """Rounds from one report of a device to its next at least. The terms' is that of training;
        in an evaluation nothing is learnt from a device, and it reports once a round.
        """
        return max(1, self.terms.min_separation) if self.kind is Kind.TRAINING else 1

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
    if now >= certificate.expires_at:
        return _foreign(
            f"certificate: expired at {certificate.expires_at:.0f}, and it is {now:.0f} here, in "
            "seconds since 1970"
        )
    is_its_own = registration.task_id == certificate.task_id
    if registration.kind is Kind.TRAINING:
        if not is_its_own or registration.task != certificate.task:
            return _foreign(
                f"certificate: expected one of task {registration.task} "
                f"({registration.task_id[:8]}), found one of {certificate.task} "
                f"({certificate.task_id[:8]})"
            )
    elif registration.kind is Kind.RELEASES or is_its_own:
        return _foreign(
            "kind: expected a training task, or an evaluation with a name of its own, found "
            f"{registration.kind}"
        )
    task = Task(
        registration.task_id, registration.task, certificate.server, registration.kind, terms
    )
    if before is not None and task != replace(before, task=task.task):
        return _foreign(
            f"task {task.task_id[:8]}: expected the server, kind and terms it began with, found "
            "others; a task with other terms is another task"
        )
    return task


def _foreign(detail: str) -> HelperProblem:
    return HelperProblem(Refusal.FOREIGN_POLICY, detail)
