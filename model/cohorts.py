"""Cohorts: which clients train in a round.

Pure functions of a seed and a small state that is saved with the run.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from device_runtime import separation
from device_runtime.accountant import Participation
from device_runtime.errors import ConfigError

NEVER = -(1 << 30)  # the last round of a client that has not trained yet


@dataclass(frozen=True)
class Sampler:
    """What must be remembered between two rounds."""

    round: int  # rounds drawn so far
    # int32 [n], clients still to train in this pass, in order; empty for uniform sampling
    waiting: np.ndarray
    last: np.ndarray  # int32 [population], the round each client trained in last
    # int32 [population], rounds each client trained in; None where nobody counts them
    taken: np.ndarray | None = None
    # rounds from one participation of a client to its next, the fewest of any, as a difference of
    # their numbers; 0 before the first client trained twice; None where nobody accounts for it
    gap: int | None = None
    # where somebody says who is there: the moment at which the last cohort was drawn, counted from
    # 0 on; -1 before the first; None where all are always there
    moment: int | None = None

    @property
    def happened(self) -> Participation:
        """What an accountant of the run's privacy takes. Each round is a sum that is released."""
        most = 0 if self.taken is None else int(self.taken.max(initial=0))
        return Participation((self.round,) if self.round else (), self.gap or None, most)


Present = Callable[[int], np.ndarray]  # a moment -> who is there, bool [population]
MOST_MOMENTS = 5000  # that a round waits for more clients


def start(
    population: int,
    cohort: int,
    min_separation: int = 1,
    most_uses: int | None = None,
    accounted: bool = False,
    timed: bool = False,
) -> Sampler:
    """Before the first round: nobody has trained yet. most_uses is None, or in how many rounds a
    client may train; accounted: whether the sampler remembers what an accountant needs; timed:
    whether somebody says who is there.

    Raises ConfigError if the population cannot fill every cohort with clients that are far enough
    from their last round.
    """
    if population < cohort * min_separation:
        raise ConfigError(
            "cohort",
            f"{cohort} clients a round, each {min_separation} rounds apart, need "
            f"{cohort * min_separation}; the corpus has {population} train users",
            "lower --cohort or min_separation",
        )
    taken = None if most_uses is None and not accounted else np.zeros(population, np.int32)
    nobody, never = np.zeros(0, np.int32), np.full(population, NEVER, np.int32)
    return Sampler(0, nobody, never, taken, 0 if accounted else None, -1 if timed else None)


def draw(
    sampler: Sampler,
    cohort: int,
    sampling: str,
    min_separation: int,
    seed: int,
    most_uses: int | None = None,
    present: Present | None = None,
) -> tuple[np.ndarray, Sampler]:
    """The next round's clients, int32 [cohort], all different, and the sampler after it.

    A client that trained in round r may train again in round r + min_separation at the earliest,
    the definition of matrix mechanisms (Choquette-Choo et al. 2023, arXiv:2306.08153). `shuffled`
    goes through random orders of all clients. `uniform` draws from all clients that are far enough
    from their last round. `present` leaves only those who are there: a round for which too few are
    waits until enough are. Raises ConfigError if too few have trained in fewer than most_uses
    rounds, where that is a limit, and if a round waits for ever.
    """
    number = sampler.round + 1
    rng = np.random.default_rng([seed, 1, number])
    ready = separation.may_join(number, sampler.last, min_separation)  # bool [population]
    if sampler.taken is not None and most_uses is not None:
        ready = ready & (sampler.taken < most_uses)
        if ready.sum() < cohort:
            raise ConfigError(
                f"round {number}",
                f"expected {cohort} clients, found {ready.sum()} that trained in fewer than "
                f"{most_uses} rounds, the most of one client",
                "lower --rounds or --cohort, or give a larger corpus",
            )
    moment = sampler.moment
    if present is not None:
        there, moment = _enough(present, sampler, ready, cohort)
        ready = ready & there
    waiting = sampler.waiting
    if sampling == "uniform":
        chosen = rng.choice(np.flatnonzero(ready), cohort, replace=False)
    else:
        chosen = waiting[ready[waiting]][:cohort]
        waiting = waiting[~np.isin(waiting, chosen)]
        if len(chosen) < cohort:  # a new pass, behind those who are left over from this one
            fresh = rng.permutation(len(sampler.last)).astype(np.int32)
            eligible = fresh[ready[fresh] & ~np.isin(fresh, np.concatenate([chosen, waiting]))]
            more = eligible[: cohort - len(chosen)]
            # each at most once
            rest = fresh[~np.isin(fresh, np.concatenate([more, waiting]))]
            waiting = np.concatenate([waiting, rest])
            chosen = np.concatenate([chosen, more])
    gap = sampler.gap
    if gap is not None:
        before = sampler.last[chosen]
        gaps = number - before[before != NEVER]
        gap = int(min([*gaps, *([gap] if gap else [])], default=0))
    last = sampler.last.copy()
    last[chosen] = number
    taken = None if sampler.taken is None else sampler.taken.copy()
    if taken is not None:
        taken[chosen] += 1
    after = Sampler(number, waiting.astype(np.int32), last, taken, gap, moment)
    return chosen.astype(np.int32), after


def _enough(
    present: Present, sampler: Sampler, ready: np.ndarray, cohort: int
) -> tuple[np.ndarray, int]:
    """Who is there, bool [population], at the first moment after the last round's at which a cohort
    of those who are ready is; and that moment.
    """
    most, before = 0, -1 if sampler.moment is None else sampler.moment
    for moment in range(before + 1, before + 1 + MOST_MOMENTS):
        there = present(moment)
        able = int((ready & there).sum())
        if able >= cohort:
            return there, moment
        most = max(most, able)
    raise ConfigError(
        f"round {sampler.round + 1}",
        f"expected {cohort} clients that are there at once, found {most} at most",
        "lower --cohort, or give a larger population or one that is there more often",
    )
