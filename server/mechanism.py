"""The mechanism of a task: how updates become a sum, and a sum becomes a mean.

    a report's bytes -> check -> update -> weigh -> add -> sum     one of each replica, in the store
                          |                          ^      |
                          v                          |      v
                        Cause                      empty   total -> finish -> mean delta -> step

A mechanism is a record of functions, as fedjax's `federated_algorithm` is one of `init` and
`apply`. Whoever judges reports, answers them or closes rounds goes through `of(task)` alone, so
another mechanism is another function beside `plain`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from device_runtime.bundle import NO_PRIVACY
from device_runtime.causes import Cause
from device_runtime.errors import ConfigError, UpdateError
from device_runtime.update import decode
from server import sums
from server.sums import Checked, Sum, Weighted
from server.task import Task, rotation_seed

NOTHING_CLAIMED = "no privacy guarantee (epsilon) is claimed and no budget is kept"


@dataclass(frozen=True)
class Exposure:
    """How often the devices of a task have been counted: what an accountant of privacy needs."""

    rounds: int  # committed
    most: int  # rounds of the device that was counted most often
    smallest_separation: int | None  # rounds between two of one device; None before the second


@dataclass(frozen=True)
class Spent:
    """What a task has spent of its devices' privacy."""

    protection: str  # what hides the updates, in the words of a bundle's lineage
    epsilon: float = math.inf  # inf: nothing is claimed

    @property
    def claimed(self) -> bool:
        """Whether there is a guarantee to state."""
        return math.isfinite(self.epsilon)

    @property
    def sentence(self) -> str:
        """The whole of it, as pages and reports say it.

        >>> Spent("noise on every sum", 1.5).sentence
        'noise on every sum; epsilon 1.50'
        """
        if self.claimed:
            return f"{self.protection}; epsilon {self.epsilon:.2f}"
        return f"{self.protection}; {NOTHING_CLAIMED}"


@dataclass(frozen=True)
class Mechanism:
    """What happens to updates between a report and the server's step.

    `check` reads a report's bytes for a round: an update that may count, or why it must not.
    `weigh` says how such an update counts when it comes so many rounds late. `empty`, `add` and
    `total` keep the sums of one round, which stay exact: neither the order of reports nor the
    replica that hears them changes a bit. `finish` makes the mean delta of a round, float64
    [dimension], of a sum with at least one update in it. `capacity` is the total weight a sum can
    hold. `spent` is the one place that says what the task has spent of privacy.
    """

    check: Callable[[bytes | bytearray, int], Checked | Cause]
    weigh: Callable[[Checked, int], Weighted]
    empty: Callable[[], Sum]
    add: Callable[[Sum, Sequence[Weighted]], Sum]
    total: Callable[[Sequence[Sum]], Sum]
    finish: Callable[[Sum, int], NDArray[np.float64]]
    capacity: int
    spent: Callable[[Exposure], Spent]


def plain(task: Task) -> Mechanism:
    """Each update is seen by the server, scaled back to the clipping norm and added up; the mean is
    by the examples, of which one device has at most the plan's rows and the rules' largest weight.
    Nothing is hidden from the server and no noise is added.
    """

    def check(body: bytes | bytearray, round: int) -> Checked | Cause:
        try:
            update = decode(body)
        except UpdateError:
            return Cause.NOT_AN_UPDATE
        seed = rotation_seed(task, round)
        return sums.check(update, round, seed, task.shapes, task.dimension, task.plan)

    def weigh(checked: Checked, behind: int) -> Weighted:
        share = checked.scale * staleness_share(behind, task.rules.staleness_exponent)
        return Weighted(checked.update, min(checked.examples, task.rules.max_weight), share)

    def finish(sum: Sum, round: int) -> NDArray[np.float64]:
        return sums.mean(sum, rotation_seed(task, round), task.dimension)

    return Mechanism(
        check=check,
        weigh=weigh,
        empty=functools.partial(sums.empty, task.dimension),
        add=sums.add_all,
        total=sums.total,
        finish=finish,
        capacity=sums.capacity(task.plan),
        spent=lambda _: Spent(NO_PRIVACY),
    )


@functools.lru_cache(maxsize=64)
def of(task: Task) -> Mechanism:
    """The mechanism a task counts by."""
    return plain(task)


def require_room(task: Task) -> None:
    """Raises ConfigError for rules under which a round's sum could overflow."""
    most, rules = of(task).capacity, task.rules
    heaviest = min(rules.max_weight, task.plan.max_rows)
    if rules.report_goal * heaviest > most:
        raise ConfigError(
            "rules.max_weight",
            f"report goal {rules.report_goal} x largest weight {heaviest} is more than the "
            f"{most} one sum can hold",
            "lower either, or the clipping norm",
        )


def staleness_share(behind: int, exponent: float = 0.5) -> float:
    """The share of a delta that moves the mean when it comes so many rounds late. Source: Nguyen et
    al. 2022, arXiv:2106.06639.

    >>> [staleness_share(behind) for behind in (0, 3)]
    [1.0, 0.5]
    """
    return float((1.0 + behind) ** -exponent)
