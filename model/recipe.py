"""Recipe: every number that decides a training run, and its bounds.

`config.toml` of a run holds one, a table per dataclass. What is not within its bounds is refused
here, before anything is loaded that could train.
"""

import functools
import math
from dataclasses import dataclass, field, replace
from typing import Annotated

from device_runtime import bounds, limits, strategy
from device_runtime.bounds import Each, OneOf, Within
from device_runtime.errors import ConfigError
from device_runtime.limits import MOST_USES, Asked, Limits, OwnLimits
from device_runtime.noise import MOST_BUFFERS, MOST_STEPS, Mechanism, Noise
from device_runtime.optimizers import OPTIMIZERS
from device_runtime.terms import MOST_DEVICES
from device_runtime.wire import RATE, Kind, Plan
from model.network import SIZES

ALGORITHMS = tuple(OPTIMIZERS)
SAMPLINGS = ("shuffled", "uniform")
SCHEDULES = ("constant", "cosine", "inverse_sqrt", "step")
WEIGHTINGS = ("rows", "tokens", "capped", "uniform")
TOKENIZERS = ("words", "unigram")
ADAPTIVE = "gaussian-adaptive"  # the mechanism whose clipping norm follows the deltas
MECHANISMS = ("none", "gaussian", ADAPTIVE, "tree", "blt")
ROWS = ("sampled", "newest")
ROUNDS = 1_000_000  # of a run at most: a schedule is a table of them
LOOKS = 20  # at the weights of a central run on its way, evenly spaced
DECAY = Within(0.0, 0.999999)  # float32 still tells it from 1, which would keep everything
SHARE = Within(0.0, 1.0)
NORM = Within(1e-9, 1e12)  # of what is clipped to it
VOCABULARY = Within(1, 1_000_000)  # words or pieces beside special ids and classes
COHORT = Within(1, 100_000)  # clients a round
SEED = Within(0, 2**63 - 1)  # what TOML and an int64 hold


@dataclass(frozen=True)
class Schedule:
    """A learning rate over the rounds, as a share of its full value."""

    kind: Annotated[str, OneOf(SCHEDULES)] = "cosine"
    # rounds in which it rises linearly from nothing, whatever the kind
    warm_up: Annotated[int, Within(0, ROUNDS)] = 0
    final: Annotated[float, SHARE] = 0.05  # cosine: share in the last round
    # step: rounds from one cut to the next; inverse_sqrt: rounds at the full rate
    every: Annotated[int, Within(1, ROUNDS)] = 100
    factor: Annotated[float, Within(1e-6, 1.0)] = 0.5  # step: what a cut leaves

    def __post_init__(self):
        bounds.check(self, "schedule")

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

    algorithm: Annotated[str, OneOf(ALGORITHMS)] = "fedadam"
    learning_rate: Annotated[float, RATE] = 0.03
    momentum: Annotated[float, DECAY] = 0.9  # fedavgm's; beta 1 of fedadam and fedyogi
    beta_2: Annotated[float, DECAY] = 0.99  # fedadam, fedyogi
    epsilon: Annotated[float, Within(0.0, 1e6)] = 1e-5  # fedadam, fedyogi, fedadagrad
    # decay of the running mean of global weights that is evaluated and kept; 0 keeps the weights
    # themselves
    averaging: Annotated[float, DECAY] = 0.0
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self):
        bounds.check(self, "server")


@dataclass(frozen=True)
class Client:
    """What the plan leaves open about a client's local work.

    FedProx: Li et al. 2018, arXiv:1812.06127.
    """

    momentum: Annotated[float, DECAY] = 0.0  # of local SGD
    # pull towards the global weights; FedProx's mu
    proximal: Annotated[float, Within(0.0, 1e6)] = 0.0
    # share of the values that enter and leave the recurrent cell set to 0
    dropout: Annotated[float, DECAY] = 0.0
    # which of a client's rows are used when the plan caps them: a new random choice each time, or
    # the `newest`
    rows: Annotated[str, OneOf(ROWS)] = "sampled"
    # cap on the targets of one participation; 0 is none
    max_tokens: Annotated[int, Within(0, 1_000_000_000)] = 0
    # what a client counts by in a mean of updates that are not encoded: rows, tokens, tokens
    # `capped`, uniform; of encoded ones each counts once, as devices do
    weighting: Annotated[str, OneOf(WEIGHTINGS)] = "rows"
    # capped: tokens a client counts by at most
    weight_cap: Annotated[float, Within(1e-6, 1e9)] = 500.0
    schedule: Schedule = field(default_factory=Schedule)  # of the plan's learning rate

    def __post_init__(self):
        bounds.check(self, "client")


@dataclass(frozen=True)
class Privacy:
    """Central differential privacy: noise on each sum, and the budget that bounds what is spent.

    Each independent Gaussian has the standard deviation noise_multiplier x clipping norm (x the
    rounding bound of encoded updates): `device_runtime.noise`.
    """

    mechanism: Annotated[str, OneOf(MECHANISMS)] = "none"
    noise_multiplier: Annotated[float, Within(0.0, 1e6)] = 0.0
    # of deltas that are not encoded; those that are have the plan's
    clipping_norm: Annotated[float, NORM] = 1.0
    delta: Annotated[float, Within(1e-300, 0.5)] = 1e-10
    # the budget at delta: a round that would pass it is not begun; 0: none
    epsilon: Annotated[float, Within(0.0, 1e6)] = 0.0
    # rounds a client trains in at most; 0: as many as it is drawn in
    participations: Annotated[int, Within(0, MOST_STEPS)] = 0
    # reports of a sum that the cohort stands for: the noise is scaled by cohort / report_goal, and
    # what is spent is what a fleet of so many reports a round would spend; 0: the cohort
    report_goal: Annotated[int, Within(0, MOST_DEVICES)] = 0
    # of a tree: rounds after which it begins anew; 0: never
    restart: Annotated[int, Within(0, MOST_STEPS)] = 0
    # of a BLT, as of `Noise`; none: chosen for the rounds, the separation and the participations
    decays: Annotated[tuple[float, ...], Each(SHARE, MOST_BUFFERS)] = ()
    scales: Annotated[tuple[float, ...], Each(SHARE, MOST_BUFFERS)] = ()

    def __post_init__(self):
        bounds.check(self, "privacy")


@dataclass(frozen=True)
class Central:
    """Training the same network with all text in one place: the ceiling of what federated rounds
    can reach. Adam with a cosine schedule.
    """

    passes: Annotated[float, Within(1e-6, 1e4)] = 7.0  # over the train users' rows
    batch_size: Annotated[int, Within(1, 65_536)] = 64  # rows of a step
    learning_rate: Annotated[float, RATE] = 0.002
    final: Annotated[float, SHARE] = 0.02  # share of the rate at the end
    dropout: Annotated[float, DECAY] = 0.2
    clipping_norm: Annotated[float, NORM] = 1.0  # of a step's gradient

    def __post_init__(self):
        bounds.check(self, "central")


@dataclass(frozen=True)
class Recipe:
    """One training run, but for its corpus and where it starts. Raises ConfigError for nonsense."""

    size: Annotated[str, OneOf(tuple(SIZES))] = "small"  # of the network
    # words, or SentencePiece `unigram` pieces
    tokenizer: Annotated[str, OneOf(TOKENIZERS)] = "words"
    # words or pieces beside special ids and classes
    vocabulary: Annotated[int, VOCABULARY] = 5000
    # people who must have typed a word of the vocabulary: those of a corpus are then counted by
    # person; 0: by use
    least_people: Annotated[int, Within(0, 1_000_000_000)] = 0
    rounds: Annotated[int, Within(1, ROUNDS)] = 120
    cohort: Annotated[int, COHORT] = 20  # clients a round
    # passes in which everybody trains once; or uniform
    sampling: Annotated[str, OneOf(SAMPLINGS)] = "shuffled"
    # rounds from one participation of a client to its next, at least
    min_separation: Annotated[int, Within(1, ROUNDS)] = 1
    seed: Annotated[int, SEED] = 0
    evaluate_every: Annotated[int, Within(1, ROUNDS)] = 20  # rounds from one look to the next
    # validation users of a look, and
    evaluate_users: Annotated[int, Within(1, 1_000_000)] = 137
    # newest utterances of each
    evaluate_utterances: Annotated[int, Within(1, 1_000_000)] = 10
    # looks at validation users in a row without a better top-1 after which training ends; 0: never
    patience: Annotated[int, Within(0, ROUNDS)] = 0
    # rounds between two saved program states, from which --resume goes on
    save_every: Annotated[int, Within(1, ROUNDS)] = 10
    # whether updates go through the device's encoding: clipped, rotated, rounded to the plan's
    # bits, each counted once
    encoded: bool = False
    # values of a delta / values of it that travel, where it is encoded
    compression: Annotated[int, Within(1, 64)] = 1
    # whether clients refuse what devices refuse by their own limits: see `limits`
    device_limits: bool = False
    # a client's local work, as a device gets it
    plan: Plan = field(default_factory=lambda: Plan(learning_rate=0.5, max_rows=64))
    client: Client = field(default_factory=Client)
    server: Server = field(default_factory=Server)
    privacy: Privacy = field(default_factory=Privacy)
    central: Central = field(default_factory=Central)

    def __post_init__(self):
        bounds.check(self)
        if self.server.algorithm == "fedprox" and self.client.proximal == 0:
            raise ConfigError(
                "client.proximal", "fedprox needs a pull above 0", "set it, such as 0.01"
            )
        self._require_limits()
        self._require_noise()
        if self.encoded and self.client.weighting not in ("rows", "uniform"):
            raise ConfigError(
                "client.weighting",
                f"encoded updates count once each, found {self.client.weighting!r}",
                "set it to `uniform`",
            )
        if self.privacy.mechanism != "none" and self.client.weighting != "uniform":
            raise ConfigError(
                "client.weighting",
                f"privacy counts every client once, found {self.client.weighting!r}",
                "set it to `uniform`",
            )

    @property
    def limits(self) -> Limits | None:
        """What a client refuses: what a device does whose bundle has this plan and whose owner set
        nothing. None without `device_limits`: a client refuses nothing.

        Of a device's limits that of updates a day is not kept: simulated rounds take no time.
        """
        return limits.of(self.plan, OwnLimits()) if self.device_limits else None

    @property
    def separation(self) -> int:
        """Rounds from one participation of a client to its next, at least."""
        held_to = self.limits
        return held_to.separation(self.min_separation) if held_to else self.min_separation

    @property
    def participations(self) -> int | None:
        """Rounds that a client trains in at most; None: as many as it is drawn in."""
        ceilings = [MOST_USES] if self.device_limits else []
        ceilings += [self.privacy.participations] if self.privacy.participations else []
        return min(ceilings, default=None)

    @property
    def noise(self) -> Noise | None:
        """What a sum gets added, as a task's terms have it; None where there is no noise.

        That of an adaptive norm is accounted as independent noise of the noise multiplier, which
        the deltas and the count of the clipped ones spend together.
        """
        return _noise(self)

    def _require_noise(self) -> None:
        """Raises ConfigError for privacy whose numbers do not go together."""
        of = self.privacy
        if self.compression & (self.compression - 1):
            raise ConfigError(
                "compression", f"expected a power of 2, found {self.compression}", "correct it"
            )
        if self.compression > 1 and not self.encoded:
            raise ConfigError(
                "compression",
                f"only what is encoded is compressed, found {self.compression} and `encoded` off",
                "set it, or compression to 1",
            )
        if of.mechanism == "none":
            return
        if self.rounds > MOST_STEPS:
            raise ConfigError(
                "rounds",
                f"expected at most {MOST_STEPS:,} with privacy, found {self.rounds:,}",
                "lower it",
            )
        if 0 < of.report_goal < self.cohort:
            raise ConfigError(
                "privacy.report_goal",
                f"expected 0, or at least the {self.cohort} clients that stand for it, found "
                f"{of.report_goal}",
                "raise it, or lower --cohort",
            )
        if of.mechanism == ADAPTIVE:
            if self.encoded:
                raise ConfigError(
                    "privacy.mechanism",
                    f"encoded updates have a fixed clipping norm, found {ADAPTIVE}",
                    "use `blt`, `tree` or `gaussian`",
                )
            if of.report_goal:
                raise ConfigError(
                    "privacy.report_goal",
                    f"expected 0 for {ADAPTIVE}, whose norm follows the clients there are, found "
                    f"{of.report_goal}",
                    "remove it",
                )
            require_adaptable(of.noise_multiplier, self.cohort)
        Noise(  # what does not go together, such as decays without scales
            Mechanism.GAUSSIAN if of.mechanism == ADAPTIVE else Mechanism(of.mechanism),
            *(of.noise_multiplier, of.epsilon, of.delta, self.rounds, self.rounds),
            *(of.restart, of.decays, of.scales),
        )

    def _require_limits(self) -> None:
        held_to = self.limits
        if held_to is None:
            return
        clipped = self.privacy.mechanism not in ("none", ADAPTIVE)
        if not (self.encoded or clipped):
            raise ConfigError(
                "device_limits",
                "no device sends an update that is not clipped, found `encoded` off",
                "set it, or a mechanism of privacy with a fixed clipping norm",
            )
        norm = self.plan.clipping_norm if self.encoded else self.privacy.clipping_norm
        asked = Asked(Kind.TRAINING, plan=replace(self.plan, clipping_norm=norm))
        over = limits.why_refused(held_to, asked)
        if over is None:
            # of so many rows, each perhaps a message of its own
            most = Asked(Kind.TRAINING, messages=self.plan.max_rows)
            over = limits.why_refused(held_to, most)
        if over is not None:
            raise ConfigError("device_limits", f"no device does this work: {over}", "change it")


@functools.lru_cache(maxsize=64)
def _noise(recipe: Recipe) -> Noise | None:
    of = recipe.privacy
    if of.mechanism == "none":
        return None
    most = -(-recipe.rounds // recipe.separation)
    noise = Noise(
        Mechanism.GAUSSIAN if of.mechanism == ADAPTIVE else Mechanism(of.mechanism),
        of.noise_multiplier,
        of.epsilon,
        of.delta,
        recipe.rounds,
        min(most, recipe.participations or most),
        of.restart,
        of.decays,
        of.scales,
    )
    if noise.mechanism is Mechanism.BLT and not of.decays:
        return strategy.optimised(noise, recipe.separation)
    return noise


def require_adaptable(noise_multiplier: float, clients: int) -> None:
    """Raises ConfigError for noise under which a round of so many clients cannot adapt its norm.

    The noise on the count of clipped clients is clients / 20, and half of that is what the deltas'
    can make up for.
    """
    if noise_multiplier >= clients / 10:
        raise ConfigError(
            "privacy.noise_multiplier",
            f"an adaptive norm needs less than a tenth of the {clients} clients of a round, found "
            f"{noise_multiplier}",
            "lower it, take more clients, or use the mechanism `gaussian`",
        )
