"""The accountant: participation that really happened -> what has been spent of privacy.

The whole of a task's sums is one Gaussian mechanism: its sensitivity, with the separation and the
participations that were, over the noise multiplier. From that follow rho (zero-concentrated DP) and
epsilon at a delta, exactly. A device that is absent adds zeros; the number of devices is public.
Sources: Bun and Steinke 2016, arXiv:1605.02065; Balle and Wang 2018, arXiv:1805.06530, theorem 8.
"""

import math
from dataclasses import dataclass, replace

from device_runtime import strategy
from device_runtime.noise import Noise

MOST_EPSILON = 1e6  # more is told as that


@dataclass(frozen=True)
class Participation:
    """What has happened in a task, as its ledger has it."""

    blocks: tuple[int, ...] = ()  # sums released since each beginning of the noise
    # sums from one of a device to its next, the fewest of any device, as a difference of their
    # numbers; None before the first device was in two
    separation: int | None = None
    participations: int = 0  # sums of the device that was in most

    @property
    def sums(self) -> int:
        """Sums released."""
        return sum(self.blocks)


@dataclass(frozen=True)
class Account:
    """What has been spent of the devices' privacy."""

    rho: float  # of zero-concentrated differential privacy
    epsilon: float  # at `delta`
    delta: float


def account(noise: Noise, happened: Participation) -> Account:
    """What so many sums have spent."""
    if not happened.sums or not happened.participations:
        return Account(0.0, 0.0, noise.delta)
    changed = strategy.sensitivity(
        noise,
        happened.blocks,
        happened.separation or happened.sums,
        happened.participations,
    )
    return of_sensitivity(noise, changed)


def of_sensitivity(noise: Noise, changed: float) -> Account:
    """What sums have spent in which one device can change so much, in L2 norm, in clips."""
    mu = changed / noise.multiplier if noise.multiplier else math.inf
    rho = mu * mu / 2  # a product: a power that is too large for a float is an error
    return Account(rho, epsilon(rho, noise.delta), noise.delta)


def epsilon(rho: float, delta: float) -> float:
    """Epsilon of a Gaussian mechanism of rho zCDP at a delta, exactly.

    >>> round(epsilon(0.81, 1e-10), 2)
    8.55
    """
    if rho <= 0:
        return 0.0
    mu = math.sqrt(2 * rho)
    low, high = 0.0, 1.0
    if _delta(0.0, mu) <= delta:
        return 0.0
    while _delta(high, mu) > delta:
        high *= 2
        if high > MOST_EPSILON:
            return math.inf
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _delta(middle, mu) > delta else (low, middle)
    return high


def epsilon_rdp(rho: float, delta: float) -> float:
    """Epsilon of rho zCDP at a delta by the conversion of Renyi differential privacy, the best of
    all orders: what older accounts of the same mechanisms show, and never less than `epsilon`.
    Canonne et al. 2020, arXiv:2004.00010, proposition 12.

    >>> round(epsilon_rdp(79 / 98, 1e-10), 2)
    8.9
    """
    if rho <= 0:
        return 0.0

    def at(log_order: float) -> float:
        above = math.exp(log_order)  # the order - 1
        order = 1 + above
        return rho * order - math.log1p(1 / above) - (math.log(delta) + math.log(order)) / above

    low, high = -40.0, 80.0
    for _ in range(200):  # it falls and then rises
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if at(left) <= at(right) else (left, high)
    return max(0.0, at((low + high) / 2))


def rho(epsilon_: float, delta: float) -> float:
    """The most rho with which a Gaussian mechanism has that epsilon at a delta."""
    low, high = 0.0, 1.0  # of mu, its sensitivity / stddev
    while _delta(epsilon_, high) <= delta:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _delta(epsilon_, middle) <= delta else (low, middle)
    return low**2 / 2


def next_sum(happened: Participation, gap: int | None, begins_anew: bool = False) -> Participation:
    """What will have happened after one more sum, in which the device that was in most is again,
    and one that was in the sum `gap` before; None: nobody was in any.
    """
    blocks = happened.blocks or (0,)
    blocks = (*happened.blocks, 1) if begins_anew else (*blocks[:-1], blocks[-1] + 1)
    gaps = [each for each in (happened.separation, gap) if each is not None]
    return replace(
        happened,
        blocks=blocks,
        separation=min(gaps, default=None),
        participations=happened.participations + 1,
    )


def _delta(epsilon_: float, mu: float) -> float:
    """Delta of a Gaussian mechanism of sensitivity / stddev mu. Balle and Wang 2018, theorem 8."""
    first = _log_cdf(mu / 2 - epsilon_ / mu)
    second = epsilon_ + _log_cdf(-mu / 2 - epsilon_ / mu)
    return -math.exp(first) * math.expm1(second - first) if second < first else 0.0


def _log_cdf(x: float) -> float:
    """Logarithm of the standard normal's distribution function."""
    if x > -37:
        return math.log(math.erfc(-x / math.sqrt(2)) / 2)
    square = x * x  # an asymptotic series: erfc is about to underflow
    small = 1 / square
    series = 1 - small * (1 - 3 * small * (1 - 5 * small * (1 - 7 * small)))
    return -square / 2 - math.log(-x * math.sqrt(2 * math.pi)) + math.log(series)
