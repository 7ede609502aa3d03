"""Spent: what a phone's own part in the sums of its tasks has cost of its owner's privacy.

By its own ledger, which is always careful: a report that may have been counted was, and its sums
followed one on another, since a round that was abandoned has no sum. What the whole task may spend
bounds each of its devices, so no phone has spent more. Updates that left without noise have no
bound: they are told apart, and are in no total.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from device_runtime import accountant, strategy
from device_runtime.accountant import Account
from device_runtime.noise import Noise


@dataclass(frozen=True)
class Part:
    """A device's updates of one task, with the noise that their sums have."""

    server: str  # random name of its database
    task: str
    task_id: str
    rounds: tuple[int, ...]  # that a report left for or may have, ascending
    noise: Noise | None = None  # None: there was none
    # of each report the least and the largest number that its sum can have among those of the task,
    # by the server's log: `numbers`; empty where the log says nothing of one of them
    sums: tuple[tuple[int, int], ...] = ()

    @property
    def separation(self) -> int | None:
        """From the round of one report to that of the next, the fewest, as a difference of their
        numbers. None before the second.

        >>> Part("", "t", "", (3, 10, 12)).separation
        2
        """
        pairs = zip(self.rounds, self.rounds[1:], strict=False)
        return min((later - earlier for earlier, later in pairs), default=None)

    @property
    def apart(self) -> int | None:
        """From the sum of one report to that of the next, the fewest they can be, by the server's
        log as far as its rounds allow; None where it says nothing, and before the second.

        >>> Part("", "t", "", (3, 10, 12), None, ((2, 2), (6, 7), (8, 8))).apart
        1
        >>> Part("", "t", "", (3, 10), None, ((2, 2), (900, 900))).apart  # of rounds that were not
        7
        """
        pairs = zip(self.sums, self.sums[1:], self.rounds, self.rounds[1:], strict=False)
        return min(
            (
                max(1, min(least - most, later - earlier))
                for (_, most), (least, _), earlier, later in pairs
            ),
            default=None,
        )


@dataclass(frozen=True)
class Spent:
    """What a part has spent at most, at the delta of its task."""

    part: Part
    account: Account
    # the same by what the server's log says of its sums; where it says nothing, as if each round
    # between had opened one, which the device cannot see
    if_apart: Account
    by_log: bool


def numbers(sums: int, made_in: int, round: int, staleness: int) -> tuple[int, int]:
    """The least and the largest number that the sum of a report can have: of one assigned in
    `round`, counted up to `staleness` rounds later, from a checkpoint made in round `made_in` after
    so many sums. A round opens one at most.

    >>> numbers(4, 9, 10, 0), numbers(4, 7, 10, 1)
    ((5, 5), (5, 8))
    """
    return sums + 1, max(sums + 1, sums + round - made_in + staleness)


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
    by_log = 0 < len(part.rounds) == len(part.sums)
    apart = part.apart if by_log else part.separation
    return Spent(part, _account(part, 1), _account(part, max(1, apart or 1)), by_log)


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
    """The parts after one more report, as far as rounds tell."""
    of = next.server, next.task_id, next.noise
    same = [part for part in parts if (part.server, part.task_id, part.noise) == of]
    others = [part for part in parts if part not in same]
    rounds = sorted([*next.rounds, *(round for part in same for round in part.rounds)])
    return *others, replace(next, rounds=tuple(rounds), sums=())


def _account(part: Part, separation: int) -> Account:
    """As if the task goes on to its last round, and its noise begins anew where that shows most: it
    shows no less of a report than fewer do.
    """
    noise = part.noise
    if noise is None or not is_added(noise):
        return Account(math.inf, math.inf, 0.0 if noise is None else noise.delta)
    changed = strategy.sensitivity_of_life(noise, separation, len(part.rounds))
    own = accountant.of_sensitivity(noise, changed)
    most = accountant.rho(noise.epsilon, noise.delta)
    return own if own.rho <= most else Account(most, noise.epsilon, noise.delta)
