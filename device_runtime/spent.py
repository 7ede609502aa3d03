"""Spent: what a phone's own part in the sums of its tasks has cost of its owner's privacy.

By its own ledger, which is always careful: a report that may have been counted was, and its sums
followed one on another, since a round that was abandoned has no sum. What the whole task may spend
bounds each of its devices, so no phone has spent more. Updates that left without noise have no
bound: they are told apart, and are in no total.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from device_runtime import accountant
from device_runtime.accountant import Account, Participation
from device_runtime.noise import Noise


@dataclass(frozen=True)
class Part:
    """A device's updates of one task, with the noise that their sums have."""

    server: str  # random name of its database
    task: str
    task_id: str
    rounds: tuple[int, ...]  # that a report left for or may have, ascending
    noise: Noise | None = None  # None: there was none

    @property
    def separation(self) -> int | None:
        """From the round of one report to that of the next, the fewest, as a difference of their
        numbers. None before the second.

        >>> Part("", "t", "", (3, 10, 12)).separation
        2
        """
        pairs = zip(self.rounds, self.rounds[1:], strict=False)
        return min((later - earlier for earlier, later in pairs), default=None)


@dataclass(frozen=True)
class Spent:
    """What a part has spent at most, at the delta of its task."""

    part: Part
    account: Account
    # the same had each round between opened a sum: the device cannot see whether it did
    if_apart: Account


def is_added(noise: Noise | None) -> bool:
    """Whether there is any noise."""
    return noise is not None and noise.multiplier > 0


def budget(noise: Noise, delta: float) -> float:
    """Epsilon at a delta that a task may spend which says it at its own delta."""
    if delta == noise.delta:
        return noise.epsilon
    return accountant.epsilon(accountant.rho(noise.epsilon, noise.delta), delta)


def of(part: Part) -> Spent:
    """What a part has spent; infinity where no noise was added."""
    return Spent(part, _account(part, 1), _account(part, max(1, part.separation or 1)))


def total(parts: Iterable[Part], delta: float | None = None) -> Account | None:
    """What parts with noise have spent together, at a delta, by default the smallest of their
    tasks; None where no part has any.
    """
    noised = [part for part in parts if is_added(part.noise)]
    if not noised:
        return None
    at = min(part.noise.delta for part in noised if part.noise) if delta is None else delta
    rho = sum(of(part).account.rho for part in noised)
    return Account(rho, accountant.epsilon(rho, at), at)


def taken(parts: Sequence[Part], server: str, task_id: str) -> int:
    """In how many sums of a task a device may have been."""
    return sum(
        len(part.rounds) for part in parts if (part.server, part.task_id) == (server, task_id)
    )


def with_next(parts: Sequence[Part], next: Part) -> tuple[Part, ...]:
    """The parts after one more report."""
    of = next.server, next.task_id, next.noise
    same = [part for part in parts if (part.server, part.task_id, part.noise) == of]
    others = [part for part in parts if part not in same]
    rounds = sorted([*next.rounds, *(round for part in same for round in part.rounds)])
    return *others, Part(next.server, next.task, next.task_id, tuple(rounds), next.noise)


def _account(part: Part, separation: int) -> Account:
    """As if the task goes on to its last round: that shows no less of a report than fewer do."""
    noise = part.noise
    if noise is None or not is_added(noise):
        return Account(math.inf, math.inf, 0.0 if noise is None else noise.delta)
    whole_life = Participation((noise.rounds,), separation, len(part.rounds))
    own = accountant.account(noise, whole_life)
    most = accountant.rho(noise.epsilon, noise.delta)
    return own if own.rho <= most else Account(most, noise.epsilon, noise.delta)
