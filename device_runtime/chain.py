"""The chain: whose weights a device trains from.

The operator's key, which never comes to the server, certifies a round key for one task, policy,
number of rounds and time. The server signs each checkpoint with it, and a device trains from
nothing else. That names who made a checkpoint; it stops no server that has the round key.
"""

from dataclasses import dataclass
from typing import Annotated

from device_runtime import bounds
from device_runtime.bounds import Within
from device_runtime.wire import HASH, HASH_OR_NONE, NAME, ROUND, TASK, TIME

FORMAT = 1
CERTIFICATE, LINK = "certificate", "link"  # purposes of the signatures


@dataclass(frozen=True)
class Certificate:
    """Whom the operator lets sign what."""

    round_key: Annotated[str, HASH]  # Ed25519 public key, hexadecimal
    server: Annotated[str, NAME]  # random name of the server's database
    task: Annotated[str, TASK]
    task_id: Annotated[str, NAME]
    population: Annotated[str, TASK]
    plan: Annotated[str, HASH]  # SHA-256 of plan.json
    policy: Annotated[str, HASH]  # SHA-256 of all that the operator has decided of the task
    first_round: Annotated[int, ROUND]
    rounds: Annotated[int, ROUND]  # from the first on
    expires_at: Annotated[float, TIME]  # seconds since 1970
    format: Annotated[int, Within(1, 1000)] = FORMAT

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of its bounds."""
        bounds.check(self, "certificate")


@dataclass(frozen=True)
class Link:
    """A checkpoint of the task, as devices get it."""

    certificate: Annotated[str, HASH]  # SHA-256 of the certificate's text
    round: Annotated[int, ROUND]  # that made it
    checkpoint: Annotated[str, HASH]  # SHA-256 of the float16 file
    parent: Annotated[str, HASH_OR_NONE] = ""  # the same of the checkpoint the round started from

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of its bounds."""
        bounds.check(self, "link")
