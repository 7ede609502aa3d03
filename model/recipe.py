"""Recipe: every number that decides a federated training run. `config.toml` of a run is one of these."""

from dataclasses import dataclass, field

from device_runtime.errors import ConfigError
from device_runtime.wire import Plan

ALGORITHMS = ("fedavg", "fedadam")
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class Recipe:
    size: str = "small"  # of the network: tiny, small, gboard
    vocabulary: int = 5000  # words beside special ids and classes
    rounds: int = 120
    cohort: int = 20  # clients a round
    algorithm: str = "fedadam"  # Reddi et al. 2020, arXiv:2003.00295
    server_learning_rate: float = 0.03
    schedule: str = "cosine"  # of both learning rates over the rounds, down to a twentieth
    seed: int = 0
    evaluate_every: int = 20  # rounds
    evaluate_users: int = 137  # validation users of a quick look, and
    evaluate_utterances: int = 10  # newest utterances of each
    plan: Plan = field(default_factory=lambda: Plan(learning_rate=0.5, max_rows=64))  # a client's local work

    def __post_init__(self):
        for name, choices in (("algorithm", ALGORITHMS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in choices:
                raise ConfigError(name, f"expected one of {', '.join(choices)}, found {getattr(self, name)!r}", "choose one of them")
        for name in ("vocabulary", "rounds", "cohort", "evaluate_every", "evaluate_users", "evaluate_utterances"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"expected at least 1, found {getattr(self, name)}", "raise it")
