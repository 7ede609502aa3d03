"""A task: what the server wants done with a model. Fixed when it is created, kept with the rounds."""

import hashlib
from dataclasses import dataclass

from device_runtime import config
from device_runtime.errors import ConfigError
from device_runtime.weights import digest
from device_runtime.wire import Plan
from server import aggregation
from server.aggregation import ServerStep
from server.eligibility import Policy
from server.rounds import Rules


@dataclass(frozen=True)
class Task:
    plan: Plan
    rules: Rules
    policy: Policy
    step: ServerStep
    tokenizer: str  # SHA-256 of the vocabulary
    shapes: str  # `weights.shapes_hash` of the network
    dimension: int  # values of the network
    seed: int  # of everything random in a result

    def __post_init__(self) -> None:
        most = aggregation.capacity(self.plan, self.dimension)
        if self.rules.report_goal * self.rules.max_weight > most:
            found = f"report goal {self.rules.report_goal} x largest weight {self.rules.max_weight}"
            raise ConfigError("rules.max_weight", f"{found} is more than the {most} one sum can hold", "lower either, or the clipping norm")

    @property
    def plan_bytes(self) -> bytes:
        return config.to_json(self.plan)

    @property
    def plan_hash(self) -> str:
        return digest(self.plan_bytes)


def rotation_seed(task: Task, round: int) -> int:
    """Seed of a round's rotation: the same for all its devices, another in every round. 53 bits: any JSON reader keeps them."""
    named = f"fedboard-rotation-v1 {task.seed} {round}".encode()
    return int.from_bytes(hashlib.sha256(named).digest()[:8]) >> 11
