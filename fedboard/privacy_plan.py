"""The privacy plan: a population, rounds and an epsilon -> the noise, goal and separation for it.

    phones that can take part = report goal x separation: a phone is in no two of so many rounds
             |
    separation and rounds -> participations -> sensitivity -> multiplier -> noise on the mean
             |                                                                     |
    report goal, values, bits -> room in the modulus -> bytes of an upload    accuracy, measured

Noise is told in clipping norms. What a change would bring is computed, not guessed: each is planned
as a whole, for the same epsilon.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from device_runtime import accountant, quantize, strategy
from device_runtime.accountant import Participation
from device_runtime.errors import ConfigError
from device_runtime.noise import Mechanism, Noise
from device_runtime.terms import LEAST_COUNT, Aggregation, Terms

GOALS = (100, 200, 500, 1_000, 2_000, 5_000, 10_000)  # that are looked at
COMPRESSIONS = (1, 2, 4, 8, 16, 32, 64)
BITS = (2, 3, 4, 6, 8)
MOST_MULTIPLIER = 1e6  # that a task's noise may have
IDS = 10_013  # of a vocabulary of 10,000 words
TODAY_BITS = 4  # of the upload without noise that others are told beside
LITTLE = 1.5  # clips of noise on the mean, as in the rounds that Gboard has published
HONEST = 0.3  # clips that the mean of honest updates has


@dataclass(frozen=True)
class Question:
    """What a plan is for; None: the plan chooses."""

    population: int
    rounds: int
    epsilon: float
    delta: float
    values: int  # of the network
    eligible: float  # share of the population that can take part
    rounds_a_day: int  # of which a phone takes part in one at most
    report_goal: int | None = None
    separation: int | None = None
    bits: int | None = None
    compression: int | None = None
    mechanism: Mechanism | None = None

    @property
    def phones(self) -> int:
        """How many can take part."""
        return int(self.population * self.eligible)


@dataclass(frozen=True)
class Plan:
    """A guarantee, and what it costs."""

    noise: Noise
    separation: int
    report_goal: int
    bits: int
    compression: int
    values: int  # of the network
    rho: float
    epsilon: float

    @property
    def terms(self) -> Terms:
        """As a task would have it signed, with a helper; only its numbers are looked at."""
        return _terms(self.noise, self.report_goal, self.bits, self.compression, self.values)

    @property
    def upload_bytes(self) -> int:
        """Bytes of one masked update, with room for the noise."""
        return self.terms.layout.bytes

    @property
    def upload_ratio(self) -> float:
        """They / those of an upload of as many reports without noise."""
        plain = _terms(None, self.report_goal, TODAY_BITS, 1, self.values)
        return self.upload_bytes / plain.layout.bytes

    @property
    def gaussian_on_mean(self) -> float:
        """L2 norm of one independent Gaussian over the report goal, in what one device adds at
        most.
        """
        return gaussian_on_mean(
            self.noise.multiplier, self.values / self.compression, self.report_goal
        )

    @property
    def noise_on_mean(self) -> float:
        """L2 norm of the widest round's noise on the mean, in clips."""
        return self.terms.noise_norm / self.report_goal

    @property
    def noise_over_rounds(self) -> float:
        """The same of the noise in the mean of all rounds: what is left of it in the weights,
        beside what so many rounds add.
        """
        wide = strategy.prefix_rmse(self.noise, self.noise.rounds) / strategy.row_norm(self.noise)
        return self.noise_on_mean * wide / self.noise.rounds


@dataclass(frozen=True)
class Change:
    """What one change would bring, for the same epsilon."""

    what: str
    plan: Plan
    population: int  # that it takes
    ratio: float  # of the noise over the rounds to that of the plan


def gaussian_on_mean(multiplier: float, values: float, report_goal: int) -> float:
    """L2 norm of independent noise on a mean, in what one device adds at most.

    >>> round(gaussian_on_mean(8.0, 1_420_000, 100))  # a small fleet
    95
    >>> round(gaussian_on_mean(8.0, 1_420_000, 6_500), 1)  # Gboard's
    1.5
    """
    return multiplier * math.sqrt(values) / report_goal


def choose(question: Question) -> Plan:
    """The plan with the least noise over the rounds. Raises ConfigError if there are too few
    phones for any, or none has noise enough.
    """
    best = _least_noise(question, _pairs(question), [Mechanism.BLT])
    kinds = [question.mechanism] if question.mechanism else list(Mechanism)
    pair = (best.report_goal, best.separation)
    return _fitted(question, _least_noise(question, [pair], kinds))


def with_epsilon(plan: Plan, epsilon: float) -> Plan:
    """The plan with just the noise that another epsilon takes."""
    noise = plan.noise
    sensitivity = strategy.sensitivity(
        noise, (noise.rounds,), plan.separation, noise.participations
    )
    needed = sensitivity / math.sqrt(2 * accountant.rho(epsilon, noise.delta))
    digits = 3 - math.floor(math.log10(needed))
    multiplier = math.ceil(needed * (1 + 1e-9) * 10**digits) / 10**digits  # never too little
    if multiplier > MOST_MULTIPLIER:
        raise ConfigError(
            "--epsilon",
            f"expected one that takes a noise multiplier of at most {MOST_MULTIPLIER:,.0f}, found "
            f"{epsilon:g}, which takes {multiplier:.3g}",
            "raise it, or plan fewer rounds of one phone",
        )
    noise = replace(noise, multiplier=multiplier, epsilon=epsilon)
    happened = Participation((noise.rounds,), plan.separation, noise.participations)
    spent = accountant.account(noise, happened)
    return replace(plan, noise=noise, rho=spent.rho, epsilon=spent.epsilon)


def values_of(size: str) -> int:
    """Values of a network of that size. Raises ConfigError for one that is none.

    >>> values_of("gboard")
    1423511
    """
    from model.network import size_named

    named = size_named(size)
    d, h = named.embedding, named.units
    return IDS * d + d * h + 6 * h * d + 3 * h + IDS


def mechanisms(question: Question, plan: Plan) -> dict[str, float]:
    """The noise over the rounds of each mechanism that can be in the place of the plan's."""
    plans = {str(kind): _like(question, plan, mechanism=kind) for kind in Mechanism}
    return {kind: each.noise_over_rounds for kind, each in plans.items() if each}


def changes(question: Question, plan: Plan) -> list[Change]:
    """What would help, what helps most first; nothing that is no change, or that no task can be."""
    goal, separation, rounds = plan.report_goal, plan.separation, plan.noise.rounds
    found: list[tuple[str, dict[str, Any]]] = [
        ("twice the phones, for twice the report goal", {"report_goal": 2 * goal}),
        ("twice the rounds", {"rounds": 2 * rounds}),
        (
            "half the values travel, if as much is learned of them",
            {"compression": 2 * plan.compression},
        ),
        ("twice the epsilon", {"epsilon": 2 * question.epsilon}),
    ]
    if rounds > 1:
        found.append(("half the rounds", {"rounds": rounds // 2}))
    if separation > 1:
        found.append(
            (
                "the same phones: twice the report goal, half the separation",
                {"report_goal": 2 * goal, "separation": separation // 2},
            )
        )
    if separation < rounds:
        apart = min(rounds, 2 * separation)
        found.append(("twice the phones, for twice the separation", {"separation": apart}))
        if goal > 1:
            found.append(
                (
                    "the same phones: half the report goal, twice the separation",
                    {"report_goal": goal // 2, "separation": apart},
                )
            )
    made = []
    for what, values in found:
        if values.get("compression", 1) > COMPRESSIONS[-1]:
            continue
        other = _like(question, plan, **values)
        if other is None:
            continue
        ratio = other.noise_over_rounds / plan.noise_over_rounds
        needs = math.ceil(other.report_goal * other.separation / question.eligible)
        made.append(Change(what, other, needs, ratio))
    return sorted(made, key=lambda each: each.ratio)


def assumptions(question: Question, plan: Plan) -> list[str]:
    """What the guarantee and its figures rest on, in sentences."""
    said = [
        f"{question.eligible:.0%} of {question.population:,} phones can take part: "
        f"{question.phones:,}; {plan.report_goal:,} a round leave room for a separation of "
        f"{question.phones // plan.report_goal:,} rounds",
        f"a phone is in at most {plan.noise.participations:,} of {plan.noise.rounds:,} rounds, "
        f"{plan.separation:,} apart as a difference of round numbers ({plan.separation - 1:,} "
        "rounds in between); the server gives it no place before",
        "a phone that is absent adds zeros, and how many are in a round is public",
        "one of server and helper is honest; the helper adds the noise",
    ]
    if plan.report_goal < LEAST_COUNT:
        said.append(
            f"server and helper open sums of as few as {plan.report_goal:,} phones, fewer than the "
            f"{LEAST_COUNT:,} that they ask for by default: fedboard helper --least "
            f"{plan.report_goal}"
        )
    if plan.compression > 1:
        said.append(
            f"one of {plan.compression} values travels, the same in all rounds: what that costs "
            "beside the noise is not in the accuracy above"
        )
    if plan.separation < min(question.rounds_a_day, plan.noise.rounds):
        said.append(
            f"a phone is wanted more often than once in {question.rounds_a_day} rounds, which is "
            "once a day: expect rounds that wait for phones"
        )
    return said


def advice(question: Question, plan: Plan) -> str:
    """How the noise compares to what is learned, and how many phones it takes."""
    noise = plan.noise_on_mean
    said = (
        f"noise on the mean of a round: {noise:.3g} clips, beside an honest mean of about "
        f"{HONEST:g}"
    )
    if noise <= LITTLE:
        return said
    goal = math.ceil(plan.report_goal * noise / LITTLE)
    people = math.ceil(goal * plan.separation / question.eligible)
    return (
        f"{said}; {LITTLE:g} clips, as in rounds that were published of Gboard, take {goal:,} "
        f"phones a round and {people:,} in the population at this separation"
    )


def table(question: Question, plan: Plan, expected: float | None) -> dict[str, Any]:
    """The plan and all it says, for a program."""
    return {
        "mechanism": str(plan.noise.mechanism),
        "noise_multiplier": plan.noise.multiplier,
        "rounds": plan.noise.rounds,
        "report_goal": plan.report_goal,
        "min_separation": plan.separation,
        "rounds_between": plan.separation - 1,
        "max_participations": plan.noise.participations,
        "bits": plan.bits,
        "compression": plan.compression,
        "values": plan.values,
        "decays": plan.noise.decays,
        "scales": plan.noise.scales,
        "rho": plan.rho,
        "epsilon": plan.epsilon,
        "delta": plan.noise.delta,
        "population": question.population,
        "phones": question.phones,
        "upload_bytes": plan.upload_bytes,
        "upload_ratio": plan.upload_ratio,
        "gaussian_on_mean": plan.gaussian_on_mean,
        "noise_on_mean": plan.noise_on_mean,
        "noise_over_rounds": plan.noise_over_rounds,
        "expected_top1": expected,
        "mechanisms": mechanisms(question, plan),
        "changes": [
            {
                "change": each.what,
                "noise": each.ratio,
                "noise_on_mean": each.plan.noise_on_mean,
                "population": each.population,
                "upload_bytes": each.plan.upload_bytes,
            }
            for each in changes(question, plan)
        ],
        "assumptions": assumptions(question, plan),
    }


def settings(plan: Plan) -> list[str]:
    """The plan as a task's settings have it: lines of TOML."""
    noise = plan.noise
    few = min(LEAST_COUNT, plan.report_goal)
    lines = [
        f"compression = {plan.compression}",
        *([f"least_count = {few}"] if few < LEAST_COUNT else []),
        "[rules]",
        f"report_goal = {plan.report_goal}",
        f"rounds = {noise.rounds}",
        "[policy]",
        f"min_separation = {plan.separation}",
        "[noise]",
        f'mechanism = "{noise.mechanism}"',
        f"multiplier = {noise.multiplier!r}",
        f"epsilon = {noise.epsilon!r}",
        f"delta = {noise.delta!r}",
        f"rounds = {noise.rounds}",
        f"participations = {noise.participations}",
    ]
    if noise.decays:
        lines += [f"decays = {list(noise.decays)}", f"scales = {list(noise.scales)}"]
    return lines


def _pairs(question: Question) -> list[tuple[int, int]]:
    """Report goals and separations that there are phones enough for."""
    phones, rounds = question.phones, question.rounds
    goal, separation = question.report_goal, question.separation
    if goal is None:
        apart = separation or min(question.rounds_a_day, rounds)
        few = min(LEAST_COUNT, max(1, phones // (separation or 1)))
        goals = [each for each in GOALS if each * apart <= phones] or [few]
    else:
        goals = [goal]
    pairs = [(each, separation or min(rounds, phones // each)) for each in goals]
    pairs = [(each, apart) for each, apart in pairs if apart and each * apart <= phones]
    if not pairs:
        wanted = (goal or 1) * (separation or 1)
        raise ConfigError(
            "--population",
            f"expected phones for a report goal x separation of {wanted:,}, found {phones:,} of "
            f"{question.population:,} that can take part",
            "lower the report goal or the separation",
        )
    return pairs


def _least_noise(
    question: Question, pairs: Sequence[tuple[int, int]], kinds: Sequence[Mechanism]
) -> Plan:
    """The plan with the least noise over the rounds of all that can be. Raises ConfigError if none
    can.
    """
    tried = [(goal, separation, kind) for goal, separation in pairs for kind in kinds]
    plans = [plan for each in tried if (plan := _possible(question, *each))]
    if not plans:
        return _planned(question, *tried[0])  # raises what is wrong with it
    return min(plans, key=lambda each: each.noise_over_rounds)


def _possible(question: Question, goal: int, separation: int, mechanism: Mechanism) -> Plan | None:
    """The plan with these numbers; None where they are beyond what a task's noise may be."""
    try:
        return _planned(question, goal, separation, mechanism)
    except ConfigError:
        return None


def _planned(question: Question, goal: int, separation: int, mechanism: Mechanism) -> Plan:
    """The plan with these numbers: as many participations as the separation has room for, and just
    the noise that the epsilon takes.
    """
    rounds = question.rounds
    most = math.ceil(rounds / separation)
    noise = Noise(mechanism, 1.0, question.epsilon, question.delta, rounds, most)
    noise = strategy.optimised(noise, separation)
    bits, compression = question.bits or TODAY_BITS, question.compression or 1
    unit = Plan(noise, separation, goal, bits, compression, question.values, 0.0, 0.0)
    return with_epsilon(unit, question.epsilon)


def _fitted(question: Question, plan: Plan) -> Plan:
    """The plan with the least compression whose upload is no larger than one without noise, and the
    bits that then need the least noise; if there is none, the smallest upload.
    """
    bits = [question.bits] if question.bits else BITS
    factors: Sequence[int] = [question.compression] if question.compression else COMPRESSIONS
    factors = [each for each in factors if each <= quantize.BLOCK]
    plans = [replace(plan, bits=b, compression=c) for c in factors for b in bits]
    fits = [each for each in plans if each.upload_ratio <= 1]
    if not fits:
        return min(plans, key=lambda each: each.upload_bytes)
    least = min(each.compression for each in fits)
    return min(
        (each for each in fits if each.compression == least), key=lambda each: each.noise_on_mean
    )


def _like(question: Question, plan: Plan, **other: Any) -> Plan | None:
    """The plan with one thing changed, for the same epsilon; None if no task can be so."""
    values: dict[str, Any] = {
        "report_goal": plan.report_goal,
        "separation": plan.separation,
        "bits": plan.bits,
        "compression": plan.compression,
        "mechanism": plan.noise.mechanism,
    }
    asked = replace(question, **{**values, **other})
    assert asked.report_goal and asked.separation and asked.mechanism
    return _possible(asked, asked.report_goal, asked.separation, asked.mechanism)


def _terms(
    noise: Noise | None, report_goal: int, bits: int, compression: int, values: int
) -> Terms:
    return Terms(
        Aggregation.HELPER,
        bits,
        1.0,
        values,
        "0" * 64,
        0,
        report_goal,
        report_goal,
        1,
        helper="0" * 64,
        noise=noise,
        compression=compression,
    )
