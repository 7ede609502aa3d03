"""Comparing: what a round has counted of releases -> what is told of them, and what that stops.

    sums of all replicas -> merge -> split -> rows of enough devices: told for good
                                      |                                |
                                      v                                v
              the others: the next round's first sum    rollout.judge each staged release
                                                                       |
                                                                       v
                                                              worse: releases.stop

All of it in the transaction that closes the round, so that no device is told of twice or never.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from device_runtime.releases import WHOLE
from server import release_scores, rollout
from server.release_scores import Figures, Pair
from server.rollout import Standing, Verdict
from server.store import Rows
from server.sums import Sum
from server.task import Task


@dataclass(frozen=True)
class Closed:
    """What the end of a round has brought about."""

    waiting: Sum  # of releases that too few devices have scored, for the next round
    stopped: Mapping[int, Verdict]  # releases that are not named any more


def close(rows: Rows, task: Task, parts: Sequence[Sum], now: float) -> Closed:
    """Tell what the replicas' sums of a round of a task have enough devices of, and stop staged
    releases that do worse. Part of the transaction that closes the round.
    """
    merged = release_scores.merge(release_scores.from_flat(part.total) for part in parts)
    told, waiting = release_scores.split(merged, task.rules.fewest)
    stopped = {}
    if told:
        rows.release_scores.add(task.population, told)
        all_told = rows.release_scores.told(task.population)
        stopped = _stop(rows, task, all_told, now)
    return Closed(release_scores.to_sum(waiting), stopped)


def _stop(rows: Rows, task: Task, told: Mapping[Pair, Figures], now: float) -> dict[int, Verdict]:
    from server import releases  # which needs the coordinator, and that needs this

    stopped = {}
    for each in rows.releases.all(task.population):
        if each.is_offered and each.statement.share < WHOLE:
            verdict = rollout.judge(told, each.release, task.rules.fewest)
            if verdict.standing is Standing.WORSE:
                releases.stop(rows, task.population, each.release, verdict.why, now)
                stopped[each.release] = verdict
    return stopped
