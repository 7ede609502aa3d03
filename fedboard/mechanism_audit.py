"""The audit of the mechanism: canary devices in or out by coin -> what of them shows in the means.

    canaries + other devices -> codes -> sums of the rounds -> noise of a helper -> means
                                                                                      |
    claim of the accountant  >=  lower bound  <-  guesses of the coins  <-  scores  <-+

All between the codes and the means is what a task runs. Every canary takes the part that shows
most: in the first sum, then in as many more as a device may be in, each the separation after the
one before. The attack knows what each canary sent, undoes the correlation of the noise and of the
canaries, and guesses the coins it is surest of; how many, follows from the claim. The bound holds
with a chance of CONFIDENCE if the mechanism keeps its claim; the estimate beside it is none.
Sources: Steinke et al. 2023, arXiv:2305.08846, theorem 5.2 (bound); Andrew et al. 2023,
arXiv:2302.03098 (estimate).
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime import accountant, encoding, packing, strategy
from device_runtime.accountant import Participation
from device_runtime.errors import RunError
from device_runtime.noise import Mechanism, Noise
from device_runtime.strategy import Buffers
from device_runtime.terms import Aggregation
from device_runtime.wire import Plan
from server import mechanism, noising
from server.rounds import Rules
from server.sums import Sum
from server.task import Task, TaskSettings, task_of, terms

CONFIDENCE = 0.95  # of the lower bound
CLIP = 1.0
BITS = 4
DELTA = 1e-5  # a smaller one changes nothing that a thousand coins can show
HARDLY = 10  # times less than claimed is hardly any noise
SHARED = 0.3  # of the other devices' deltas: what they have in common / their norm


@dataclass(frozen=True)
class Setting:
    """What is audited."""

    claim: float  # epsilon at `delta`, of the whole task
    mechanism: Mechanism = Mechanism.BLT
    delta: float = DELTA
    cut: float = 1.0  # noise that is added / noise that the claim takes: 1 keeps the claim
    canaries: int = 1000
    others: int = 20  # devices beside them, in every sum
    rounds: int = 12  # sums
    separation: int = 4  # sums from one of a device to its next, as a difference of their numbers
    participations: int = 3  # sums of one device
    dimension: int = 16_384
    compression: int = 1
    decays: tuple[float, ...] = (0.95, 0.6)  # of a BLT
    scales: tuple[float, ...] = (0.15, 0.3)


@dataclass(frozen=True)
class Guessed:
    """Some of the coins, guessed."""

    guesses: int
    right: int
    bound: float  # epsilon is at least this, with the confidence it was asked for


@dataclass(frozen=True)
class Result:
    """What an audit has found."""

    claim: float  # epsilon at delta, by the accountant
    delta: float
    multiplier: float  # that the claim takes
    cut: float  # noise added / noise of that multiplier
    canaries: int
    surest: Guessed  # as many guesses as the claim makes best
    all: Guessed  # a guess of every coin: shows most where there is hardly any noise
    most: float  # the largest bound that so many coins can show
    estimate: float  # of epsilon, by the scores of canaries in and out: no bound
    last: float  # the same by the cosines of the whole change of the model alone

    @property
    def bound(self) -> float:
        """Epsilon is at least this, with CONFIDENCE."""
        return max(self.surest.bound, self.all.bound)

    @property
    def is_refuted(self) -> bool:
        """Whether the claim cannot be right."""
        return self.bound > self.claim


def audit(of: Setting, rng: np.random.Generator) -> Result:
    """Play a task with canaries in it, and attack what it has published.

    Raises RunError for a part that canaries cannot take.
    """
    ran = Participation((of.rounds,), of.separation, of.participations)
    if (of.participations - 1) * of.separation >= of.rounds:
        raise RunError(
            "the audit",
            f"expected sums for {of.participations} participations {of.separation} apart, found "
            f"{of.rounds}",
            "have more rounds",
        )
    noise = _noise(of, ran)
    playing = _task(replace(noise, multiplier=noise.multiplier * of.cut), of)
    sent = _canaries(of, playing, rng)
    coins = rng.random(of.canaries) < 0.5
    means = _played(of, playing, sent, coins, rng)
    by = terms(playing).encoding
    # what each canary's codes stand for, as it is seen in a mean that is not divided
    seen = np.stack([encoding.mean(codes, 1, by) for codes in sent]).astype(np.float32)
    sums = means * terms(playing).most
    scores = _scores(of, sums, seen, noise)
    bared = _scores(of, sums, seen, replace(noise, multiplier=noise.multiplier / HARDLY))
    mu = math.sqrt(2 * accountant.rho(of.claim, of.delta))
    count = best_guesses(of.canaries, mu, of.delta)
    share = (1 - CONFIDENCE) / 2  # two numbers of guesses, each wrong as rarely as half of it
    surest = _guessed(scores, coins, count, of.delta, share)
    every = _guessed(bared, coins, of.canaries, of.delta, share)
    final = means.sum(0)
    cosines = seen @ final / (np.linalg.norm(seen, axis=1) * np.linalg.norm(final))
    return Result(
        of.claim,
        of.delta,
        noise.multiplier,
        of.cut,
        of.canaries,
        surest,
        every,
        lower_bound(of.canaries, of.canaries, of.canaries, of.delta, share),
        estimate(scores[~coins], scores[coins], of.delta),
        estimate(cosines[~coins], cosines[coins], of.delta),
    )


def lower_bound(coins: int, guesses: int, right: int, delta: float, chance: float) -> float:
    """The largest epsilon with which so many right guesses of so many coins are less likely than
    `chance`: with a larger one they may be luck. Source: Steinke et al. 2023, theorem 5.2.

    >>> round(lower_bound(1000, 1000, 1000, 0.0, 0.05), 1)  # all that a thousand coins can show
    5.8
    """
    if not guesses or _chance(coins, guesses, right, 0.0, delta) > chance:
        return 0.0
    low, high = 0.0, 1.0
    while _chance(coins, guesses, right, high, delta) <= chance:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        likely = _chance(coins, guesses, right, middle, delta) > chance
        low, high = (low, middle) if likely else (middle, high)
    return low


def _chance(coins: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The most likely that any guesser of an (epsilon, delta) mechanism is right so often."""
    # luck[k]: the chance of k right guesses of coins that are each betrayed as epsilon allows
    k = np.arange(guesses + 1)
    logs = -_log_factorials(guesses)[k] - _log_factorials(guesses)[guesses - k]
    logs += _log_factorials(guesses)[guesses] - k * math.log1p(math.exp(-epsilon))
    logs -= (guesses - k) * (epsilon + math.log1p(math.exp(-epsilon)))
    luck = np.exp(logs)
    some = float(luck[right:].sum())
    just_missed = np.cumsum(luck[:right][::-1])  # by up to 1, 2, 3, ...
    worst = float(np.max(just_missed / np.arange(1, right + 1), initial=0.0))
    return min(1.0, some + 2 * coins * delta * worst)


@functools.lru_cache(maxsize=16)
def _log_factorials(most: int) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 1)))])


@functools.lru_cache(maxsize=64)
def best_guesses(coins: int, mu: float, delta: float) -> int:
    """How many coins to guess, the surest first, to show most of a Gaussian mechanism of
    sensitivity / stddev mu: known before anything is seen.
    """
    best = 0.0, coins
    for distance in np.linspace(0.0, 4.0, 81):  # of a score from the middle, in stddevs
        right, wrong = (_above(distance + sign * mu / 2) for sign in (-1, 1))
        guesses = round(coins * (right + wrong))
        if guesses:
            hits = round(guesses * right / (right + wrong))
            best = max(best, (lower_bound(coins, guesses, hits, delta, 0.025), guesses))
    return best[1]


def _above(deviations: float) -> float:
    """The share of a standard normal that lies so far above its mean."""
    return math.erfc(deviations / math.sqrt(2)) / 2


def estimate(out: NDArray[Any], into: NDArray[Any], delta: float) -> float:
    """An estimate of epsilon at a delta, from the scores of canaries that were out and in: that of
    two normals as far apart as they are and as wide as both, which is what noise makes of them.
    Source: Andrew et al. 2023, who let the widths differ: that few scores tell them badly.
    """
    width = math.sqrt((float(out.var(ddof=1)) + float(into.var(ddof=1))) / 2)
    apart = float(into.mean()) - float(out.mean())
    return accountant.epsilon((apart / max(width, 1e-12)) ** 2 / 2, delta)


def _noise(of: Setting, ran: Participation) -> Noise:
    """Noise whose account is the claim."""
    is_blt = of.mechanism is Mechanism.BLT
    noise = Noise(
        of.mechanism,
        1.0,
        of.claim,
        of.delta,
        of.rounds,
        of.participations,
        decays=of.decays if is_blt else (),
        scales=of.scales if is_blt else (),
    )
    changed = strategy.sensitivity(noise, ran.blocks, of.separation, of.participations)
    return replace(noise, multiplier=changed / math.sqrt(2 * accountant.rho(of.claim, of.delta)))


def _task(noise: Noise, of: Setting) -> Task:
    settings = TaskSettings(
        Plan(clipping_norm=CLIP, bits=BITS),
        rules=Rules(report_goal=of.canaries + of.others),
        seed=1,
        aggregation=Aggregation.HELPER,
        helper="0" * 64,
        noise=noise,
        compression=of.compression,
    )
    return task_of(settings, "0" * 64, "0" * 64, of.dimension)


def _sums(of: Setting) -> NDArray[np.float64]:
    """In which sums a canary is: [rounds], 0 or 1."""
    taken = np.zeros(of.rounds)
    taken[: of.separation * of.participations : of.separation] = 1.0
    return taken


def _canaries(of: Setting, task: Task, rng: np.random.Generator) -> list[NDArray[Any]]:
    """The codes of canaries, each in a direction of its own; a canary sends the same every time."""
    return [
        encoding.encode({"all": _direction(of.dimension, rng)}, terms(task).encoding, rng)
        for _ in range(of.canaries)
    ]


def _direction(dimension: int, rng: np.random.Generator) -> NDArray[Any]:
    """A delta of the clipping norm."""
    drawn = rng.standard_normal(dimension, np.float32)
    return drawn * np.float32(CLIP / np.linalg.norm(drawn))


def _played(
    of: Setting,
    task: Task,
    sent: list[NDArray[Any]],
    coins: NDArray[np.bool_],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """The means that a task publishes, [rounds, dimension]."""
    agreed, by = terms(task), terms(task).layout
    buffers: Buffers = noising.begin(agreed)
    common, means = _direction(of.dimension, rng), np.zeros((of.rounds, of.dimension))
    canaries = np.sum([each for each, is_in in zip(sent, coins, strict=True) if is_in], 0, np.int64)
    for round, is_canaries in enumerate(_sums(of)):
        total, count = np.zeros(agreed.encoding.values, np.int64), of.others
        if is_canaries:
            total, count = total + canaries, count + int(coins.sum())
        for _ in range(of.others):
            own = SHARED * common + math.sqrt(1 - SHARED**2) * _direction(of.dimension, rng)
            total += encoding.encode({"all": own}, agreed.encoding, rng)
        made, buffers = noising.noise(agreed, buffers, rng.bytes)
        # as a helper gives it: with the noise off the masks, so that it stays in the sum
        mask = packing.subtract(
            np.zeros(by.words, np.uint64), packing.pack_noise(made, agreed.room, by), by
        )
        words = packing.pack(total, by).view(np.int64)
        opened = mechanism.opened(task, [Sum(words, count, count)], mask)
        if isinstance(opened, str):
            raise RunError("the audit", f"a sum was refused: {opened}", "report it as a defect")
        means[round] = mechanism.mean_of(opened, agreed, round)
    return means


def _scores(
    of: Setting, sums: NDArray[np.float64], seen: NDArray[np.float32], noise: Noise
) -> NDArray[np.float64]:
    """Of each canary how far it seems to be in, 0 out and 1 in: the best linear estimate if the
    noise is this.
    """
    agreed = terms(_task(noise, of))
    by, taken = agreed.encoding, _sums(of)
    # what is in a sum beside the canaries, as variances and covariances of one value
    own = of.others * (CLIP**2 / by.values + by.step**2 / 6)
    common = (of.others * SHARED * CLIP) ** 2 / by.values
    beside = (agreed.deviation * by.step) ** 2 * correlation(noise, of.rounds)
    beside += own * np.eye(of.rounds) + common
    weights = np.linalg.solve(beside, taken)
    shown = float(weights @ taken)
    filtered = (weights / shown) @ sums
    gram = (seen @ seen.T).astype(np.float64)
    # of a coin, which is 0 or 1, the variance is a quarter
    width = 4 / (shown * by.compression)
    apart = seen @ filtered.astype(np.float32) - gram.sum(1) / 2
    weighed: NDArray[np.float64] = np.linalg.solve(gram + width * np.eye(len(seen)), apart)
    return 0.5 + weighed * float(1 + width / np.mean(np.diag(gram)))


def correlation(noise: Noise, rounds: int) -> NDArray[np.float64]:
    """How the noises of the rounds belong together: their covariances, in units of one independent
    Gaussian's variance, [rounds, rounds], read off what `strategy.advance` makes of units.
    """
    most = 3 * rounds  # draws: a tree has fewer than two nodes a round
    units = iter(np.eye(most, dtype=np.float32))
    buffers, rows = strategy.begin(noise, most), []
    for _ in range(rounds):
        row, buffers = strategy.advance(noise, buffers, lambda: next(units))
        rows.append(row.astype(np.float64))
    made = np.stack(rows)
    return made @ made.T


def _guessed(
    scores: NDArray[np.float64], coins: NDArray[np.bool_], count: int, delta: float, chance: float
) -> Guessed:
    surest = np.argsort(-np.abs(scores - 0.5), kind="stable")[:count]
    right = int(np.sum((scores[surest] > 0.5) == coins[surest]))
    return Guessed(count, right, lower_bound(len(scores), count, right, delta, chance))
