"""Certificates: what an operator signs of a server's round key, and what he refuses to sign."""

import time

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import config
from device_runtime.errors import ServerError
from device_runtime.weights import digest
from fedboard.operator import Operator
from server.contract import TaskReport
from server.task import TaskSettings, policy_hash


def certified(
    operator: Operator,
    name: str,
    key: Ed25519PrivateKey,
    rounds: int,
    life_s: float,
    asked: TaskSettings | None = None,
) -> TaskReport:
    """A training task once its server has made a round key, and this process has certified it with
    the operator's `key` for so many rounds and seconds.

    `asked` are the complete settings that were sent to make the task, if it was made just now.
    Raises ServerError for a proposal of another task, plan or policy: nothing is certified then.
    """
    proposed = operator.round_key(name)
    if asked is not None:
        expected = digest(config.to_json(asked.plan)), policy_hash(asked)
        if (proposed.plan, proposed.policy) != expected:
            raise ServerError(
                f"task {name}",
                "expected a round key for the plan and the policy that were sent, found others",
                "nothing was certified; find out who runs that server",
            )
    return operator.certify(name, proposed.certified(key, rounds, time.time() + life_s))
