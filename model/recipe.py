"""Recipe: every number that decides a training run.

`config.toml` of a run holds one, a table per dataclass.
"""

import math
from dataclasses import dataclass, field

from device_runtime.errors import ConfigError
from device_runtime.optimizers import OPTIMIZERS
from device_runtime.wire import Plan

ALGORITHMS = tuple(OPTIMIZERS)
SAMPLINGS = ("shuffled", "uniform")
SCHEDULES = ("constant", "cosine", "inverse_sqrt", "step")
WEIGHTINGS = ("rows", "tokens", "capped", "uniform")
TOKENIZERS = ("words", "unigram")
MECHANISMS = ("none", "gaussian", "gaussian-adaptive", "tree")


@dataclass(frozen=True)
class Schedule:
    """A learning rate over the rounds, as a share of its full value."""

    kind: str = "cosine"
    warm_up: int = 0  # rounds in which it rises linearly from nothing, whatever the kind
    final: float = 0.05  # cosine: share in the last round
    every: int = 100  # step: rounds from one cut to the next; inverse_sqrt: rounds at the full rate
    factor: float = 0.5  # step: what a cut leaves

    def __post_init__(self):
        _one_of("kind", self.kind, SCHEDULES)
        _at_least("every", self.every, 1)
        _at_least("warm_up", self.warm_up, 0)

    def shares(self, rounds: int) -> list[float]:
        """The share in each round, the first at index 0."""
        return [
            self._share(done, rounds) * min(1.0, (done + 1) / (self.warm_up + 1))
            for done in range(rounds)
        ]

    def _share(self, done: int, rounds: int) -> float:
        if self.kind == "cosine":
            return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done / rounds))
        if self.kind == "inverse_sqrt":
            return math.sqrt(self.every / max(done + 1, self.every))
        if self.kind == "step":
            return self.factor ** (done // self.every)
        return 1.0


@dataclass(frozen=True)
class Server:
    """The server's step on the mean delta.

    FedOpt: Reddi et al. 2020, arXiv:2003.00295; FedAvgM: Hsu et al. 2019, arXiv:1909.06335.
    """

    algorithm: str = "fedadam"
    learning_rate: float = 0.03
    momentum: float = 0.9  # fedavgm's; beta 1 of fedadam and fedyogi
    beta_2: float = 0.99  # fedadam, fedyogi
    epsilon: float = 1e-5  # fedadam, fedyogi, fedadagrad
    # decay of the running mean of global weights that is evaluated and kept; 0 keeps the weights
    # themselves
    averaging: float = 0.0
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self):
        _one_of("algorithm", self.algorithm, ALGORITHMS)
        _share("averaging", self.averaging)
        _share("momentum", self.momentum)


@dataclass(frozen=True)
class Client:
    """What the plan leaves open about a client's local work.

    FedProx: Li et al. 2018, arXiv:1812.06127.
    """

    momentum: float = 0.0  # of local SGD
    proximal: float = 0.0  # pull towards the global weights; FedProx's mu
    dropout: float = 0.0  # share of the values that enter and leave the recurrent cell set to 0
    # which of a client's rows are used when the plan caps them: a new random choice each time, or
    # the `newest`
    rows: str = "sampled"
    max_tokens: int = 0  # cap on the targets of one participation; 0 is none
    # what a client counts by in the mean: rows as devices do, tokens, tokens `capped`, uniform
    weighting: str = "rows"
    weight_cap: float = 500.0  # capped: tokens a client counts by at most
    schedule: Schedule = field(default_factory=Schedule)  # of the plan's learning rate

    def __post_init__(self):
        _one_of("rows", self.rows, ("sampled", "newest"))
        _one_of("weighting", self.weighting, WEIGHTINGS)
        for name in ("momentum", "dropout"):
            _share(name, getattr(self, name))
        if self.proximal < 0:
            raise ConfigError("proximal", f"expected at least 0, found {self.proximal}", "raise it")
        if self.weight_cap <= 0:
            raise ConfigError(
                "weight_cap", f"expected more than 0, found {self.weight_cap}", "raise it"
            )


@dataclass(frozen=True)
class Privacy:
    """Central differential privacy by `tff.aggregators`.

    The standard deviation of the noise on the sum is noise_multiplier x clipping_norm.
    """

    mechanism: str = "none"
    noise_multiplier: float = 0.0
    clipping_norm: float = 1.0

    def __post_init__(self):
        _one_of("mechanism", self.mechanism, MECHANISMS)
        if self.noise_multiplier < 0 or self.clipping_norm <= 0:
            raise ConfigError(
                "privacy", "expected noise_multiplier >= 0 and clipping_norm > 0", "correct them"
            )


@dataclass(frozen=True)
class Central:
    """Training the same network with all text in one place: the ceiling of what federated rounds
    can reach. Adam with a cosine schedule.
    """

    passes: float = 7.0  # over the train users' rows
    batch_size: int = 64  # rows of a step
    learning_rate: float = 0.002
    final: float = 0.02  # share of the rate at the end
    dropout: float = 0.2
    clipping_norm: float = 1.0  # of a step's gradient

    def __post_init__(self):
        _share("dropout", self.dropout)
        _at_least("batch_size", self.batch_size, 1)
        if self.passes <= 0:
            raise ConfigError("passes", f"expected more than 0, found {self.passes}", "raise it")


@dataclass(frozen=True)
class Recipe:
    """One training run, but for its corpus and where it starts. Raises ConfigError for nonsense."""

    size: str = "small"  # of the network: tiny, small, gboard
    tokenizer: str = "words"  # or SentencePiece `unigram` pieces
    vocabulary: int = 5000  # words or pieces beside special ids and classes
    rounds: int = 120
    cohort: int = 20  # clients a round
    sampling: str = "shuffled"  # passes in which everybody trains once; or uniform
    min_separation: int = 1  # rounds from one participation of a client to its next, at least
    seed: int = 0
    evaluate_every: int = 20  # rounds
    evaluate_users: int = 137  # validation users of a quick look, and
    evaluate_utterances: int = 10  # newest utterances of each
    save_every: int = 10  # rounds between two saved program states, from which --resume goes on
    # whether updates go through the device's encoding: clipped, rotated, rounded to the plan's bits
    encoded: bool = False
    # a client's local work, as a device gets it
    plan: Plan = field(default_factory=lambda: Plan(learning_rate=0.5, max_rows=64))
    client: Client = field(default_factory=Client)
    server: Server = field(default_factory=Server)
    privacy: Privacy = field(default_factory=Privacy)
    central: Central = field(default_factory=Central)

    def __post_init__(self):
        _one_of("tokenizer", self.tokenizer, TOKENIZERS)
        _one_of("sampling", self.sampling, SAMPLINGS)
        for name in (
            "vocabulary",
            "rounds",
            "cohort",
            "min_separation",
            "evaluate_every",
            "evaluate_users",
            "evaluate_utterances",
            "save_every",
        ):
            _at_least(name, getattr(self, name), 1)
        _at_least("seed", self.seed, 0)
        if self.server.algorithm == "fedprox" and self.client.proximal == 0:
            raise ConfigError(
                "client.proximal", "fedprox needs a pull above 0", "set it, such as 0.01"
            )
        if self.encoded and self.privacy.mechanism != "none":
            # rounding can raise a norm over the clip the noise is measured by; the guarantee would
            # be another one than stated
            raise ConfigError(
                "encoded",
                f"has no privacy guarantee, found mechanism {self.privacy.mechanism!r}",
                "choose one of them",
            )
        if self.privacy.mechanism != "none" and self.client.weighting != "uniform":
            raise ConfigError(
                "client.weighting",
                f"privacy counts every client once, found {self.client.weighting!r}",
                "set it to `uniform`",
            )


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(
            name, f"expected one of {', '.join(choices)}, found {value!r}", "choose one of them"
        )


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(name, f"expected at least {least}, found {value}", "raise it")


def _share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(name, f"expected 0 or more and less than 1, found {value}", "correct it")
