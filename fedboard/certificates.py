"""Certificates: what an operator signs of a server's round key, and what he refuses to sign."""

import time
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import config
from device_runtime.errors import RunError, ServerError
from device_runtime.terms import Aggregation, Terms
from device_runtime.weights import digest
from fedboard.operator import Operator
from server.contract import TaskReport
from server.task import TaskSettings, policy_hash

NOTHING = "nothing was certified"


@dataclass(frozen=True)
class Consent:
    """Whom an operator lets see the updates of a task's devices."""

    aggregation: Aggregation = Aggregation.HELPER
    helper: str = ""  # its public key, hexadecimal
    is_beside: bool = False  # he knows that it is in the server's hand
    # complete settings that were sent to make the task, if it was made just now
    asked: TaskSettings | None = None


def consent(operator: Operator, aggregation: Aggregation, helper: str, is_here: bool) -> Consent:
    """What an operator agrees to, who has named an aggregation and, or not, a helper's key.

    A server on this machine (`is_here`) is his own: he takes the helper that it asks. Any other may
    lie, so he names the key that the helper's owner has told him. Raises RunError for a helper that
    is not named, or is not the one that the server asks.
    """
    if aggregation is not Aggregation.HELPER:
        if helper:
            raise RunError(
                "--helper-key",
                f"expected none for aggregation {aggregation}, found {helper[:16]}",
                "remove it",
            )
        return Consent(aggregation)
    here = operator.helper()
    expected = helper or (here.helper if is_here else "")
    if not expected and is_here:
        raise RunError(
            "helper",
            f"expected one that the server asks, found none{here.problem and f' ({here.problem})'}",
            "start the server with its helper, or name --aggregation plain: then the server can "
            "read every update",
        )
    if not expected:
        raise RunError(
            "--helper-key",
            "expected the public key of the helper, which its owner knows: a server could name one "
            "of its own",
            "give it, or name --aggregation plain: then the server can read every update",
        )
    if here.helper != expected:
        raise RunError(
            "--helper-key",
            f"expected the helper that the server asks, {here.helper or 'none'}, found {expected}",
            "correct it, or have the server ask that helper",
        )
    return Consent(aggregation, expected, here.is_beside)


def certified(
    operator: Operator,
    name: str,
    key: Ed25519PrivateKey,
    rounds: int,
    life_s: float,
    given: Consent,
) -> tuple[TaskReport, Terms]:
    """A training task once its server has made a round key, and this process has certified it with
    the operator's `key` for so many rounds and seconds; and the terms that were signed.

    Raises ServerError for a proposal of another task, plan or policy, or with terms under which
    others would see updates than the operator has agreed to: nothing is certified then.
    """
    proposed = operator.round_key(name)
    asked, terms = given.asked, proposed.terms
    if asked is not None:
        expected = digest(config.to_json(asked.plan)), policy_hash(asked)
        if (proposed.plan, proposed.policy) != expected:
            raise ServerError(
                f"task {name}",
                "expected a round key for the plan and the policy that were sent, found others",
                f"{NOTHING}; find out who runs that server",
            )
    _require_agreed(name, given, terms)
    report = operator.certify(name, proposed.certified(key, rounds, time.time() + life_s))
    return report, terms


def _require_agreed(name: str, given: Consent, terms: Terms) -> None:
    expected: dict[str, tuple[object, object]] = {
        "aggregation": (given.aggregation, terms.aggregation),
        "helper": (given.helper or "none", terms.helper or "none"),
        "is_beside": (given.is_beside, terms.is_beside),
    }
    if given.asked is not None and given.asked.plan is not None:
        plan, rules = given.asked.plan, given.asked.rules
        expected |= {
            "bits": (plan.bits, terms.bits),
            "clipping_norm": (plan.clipping_norm, terms.clipping_norm),
            "most": (rules.report_goal, terms.most),
            "fewest": (rules.fewest, terms.fewest),
            "noise": (given.asked.noise, terms.noise),
            "compression": (given.asked.compression, terms.compression),
            "turn": (given.asked.turn, terms.turn),
        }
    for field, (wanted, actual) in expected.items():
        if wanted != actual:
            raise ServerError(
                f"task {name}",
                f"expected {field} {wanted}, found {actual}",
                f"{NOTHING}; if that is as it should be, name it: --aggregation {terms.aggregation}"
                + (f" --helper-key {terms.helper}" if terms.helper else ""),
            )
