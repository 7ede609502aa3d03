"""The mechanism of a task: how updates become a sum, and a sum becomes a mean.

    a report's bytes -> check -> update -> weigh -> add -> sum     one of each replica, in the store
                          |                          ^      |
                          v                          |      v
                        Cause                      empty   total -> finish -> mean delta -> step
                                                              |       ^
                                           of masked updates: +-> opened

A mechanism is a record of functions, as fedjax's `federated_algorithm` is one of `init` and
`apply`. Whoever judges reports, answers them or closes rounds goes through `of(task)` alone, so
another mechanism is another function beside `plain` and `masked`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime import encoding, packing, scores, table, update
from device_runtime.bundle import NO_PRIVACY
from device_runtime.causes import Cause
from device_runtime.encoding import Encoding
from device_runtime.errors import UpdateError
from device_runtime.packing import Layout
from device_runtime.shown import rounded_up
from device_runtime.terms import Aggregation, Terms
from device_runtime.update import Sealed
from device_runtime.wire import Kind
from server import budget, sums
from server.budget import Spending
from server.sums import Checked, Sum, Weighted
from server.task import Task, is_masked, terms

WHOLE = 64  # of a buffered task: how often the codes of an update are added that is not late
FLOAT64_SLACK = 1e-9  # of a norm of float64
NOISE_SPREAD = 8.0  # standard deviations of the norm of noise: more is expected of none
NOTHING_CLAIMED = "no privacy guarantee (epsilon) is claimed and no budget is kept"


@dataclass(frozen=True)
class Exposure:
    """How often the devices of a task have been counted: what an accountant of privacy needs."""

    rounds: int  # committed
    most: int  # rounds of the device that was counted most often
    smallest_separation: int | None  # rounds between two of one device; None before the second
    spending: Spending = field(default_factory=Spending)  # of sums with noise


@dataclass(frozen=True)
class Spent:
    """What a task has spent of its devices' privacy."""

    protection: str  # what hides the updates, in the words of a bundle's lineage
    epsilon: float = math.inf  # inf: nothing is claimed
    rho: float = math.inf  # of zero-concentrated differential privacy
    delta: float = 0.0
    budget: float | None = None  # epsilon that it may come to at delta; None: there is none
    sums: int = 0  # with noise, made so far
    beginnings: int = 0  # of the noise: each further one is of a basis, or a state that was lost
    left: int = 0  # more sums that the budget has room for at worst
    details: str = ""  # who was in those sums, and what is wrong, in a sentence
    over: str = ""  # why no further round starts, in a sentence; empty while one may

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
        if self.budget is not None:
            spent = f"epsilon {rounded_up(self.epsilon)} of {self.budget:g} at delta {self.delta:g}"
            made = f"{self.sums:,} sum" + "s" * (self.sums != 1)
            said = f"{self.protection}; {spent} (rho {self.rho:.4g}) is spent after {made}"
            return "; ".join(filter(None, (said, self.details)))
        if self.claimed:
            return f"{self.protection}; epsilon {rounded_up(self.epsilon)}"
        return f"{self.protection}; {NOTHING_CLAIMED}"


@dataclass(frozen=True)
class Mechanism:
    """What happens to updates between a report and the server's step.

    `check` reads a report's bytes for a round: an update that may count, or why it must not.
    `weigh` says how such an update counts when it comes so many rounds late. `empty`, `add` and
    `total` keep the sums of one round, which stay exact: neither the order of reports nor the
    replica that hears them changes a bit. `finish` makes the mean delta of a round, float64
    [dimension], of a sum with at least one update in it, which has been `opened` if updates are
    masked. `spent` is the one place that says what the task has spent of privacy.
    """

    check: Callable[[bytes | bytearray, int], Checked | Sealed | Cause]
    weigh: Callable[[Any, int], Weighted]  # of what `check` gives
    empty: Callable[[], Sum]
    add: Callable[[Sum, Sequence[Weighted]], Sum]
    total: Callable[[Sequence[Sum]], Sum]
    finish: Callable[[Sum, int], NDArray[np.float64]]
    spent: Callable[[Exposure], Spent]


def plain(task: Task) -> Mechanism:
    """Each update is seen by the server, refused if it is longer than an honest one can be, and
    added up; every device counts 1, a late one of a buffered task less. Nothing is hidden from the
    server; where the task has noise, the server adds it to the sum.
    """
    by = terms(task).encoding
    times = whole(task)

    def check(body: bytes | bytearray, round: int) -> Checked | Cause:
        try:
            about = update.header(body)
            if (cause := _why_not(about, round, terms(task), by.values)) is not None:
                return cause
            codes = update.codes(body, by.bits)
        except UpdateError:
            return Cause.NOT_AN_UPDATE
        if not encoding.is_within(encoding.norm(codes, by), by):
            return Cause.NORM_TOO_LARGE
        return Checked(codes)

    def weigh(checked: Checked, behind: int) -> Weighted:
        share = staleness_share(behind, task.rules.staleness_exponent)
        return Weighted(checked.codes, max(1, round(times * share)))

    def finish(sum: Sum, round: int) -> NDArray[np.float64]:
        # late or not, each counts fully in what the mean is divided by
        agreed = terms(task)
        now = agreed.encoding_at(round)
        if agreed.noise is not None:
            return encoding.mean(sum.total, sum.weight, now, times * agreed.most)
        return encoding.mean(sum.total, sum.weight, now) * (sum.weight / (times * sum.count))

    return Mechanism(
        check=check,
        weigh=weigh,
        empty=functools.partial(sums.empty, by.values),
        add=functools.partial(sums.add_all, largest=by.largest),
        total=functools.partial(sums.total, largest=by.largest),
        finish=finish,
        spent=functools.partial(_spent, task),
    )


def masked(task: Task) -> Mechanism:
    """Nobody sees an update before it is in a sum, nor can look at it: each is words under a mask,
    added modulo their size, and counts 1 however late it is. Noise is a helper's, in the mask, or
    added once the devices have opened the sum.
    """
    agreed, by = terms(task), layout_of(task)
    is_sealed = agreed.aggregation is Aggregation.HELPER

    def check(body: bytes | bytearray, round: int) -> Sealed | Cause:
        try:
            about = update.header(body)
            if (cause := _why_not(about, round, agreed, by.count)) is not None:
                return cause
            return (
                update.sealed(body, by) if is_sealed else Sealed(b"", b"", update.words(body, by))
            )
        except UpdateError:
            return Cause.NOT_AN_UPDATE

    def added(words: Sequence[NDArray[np.uint64]], count: int) -> Sum:
        total = np.zeros(by.words, np.uint64)
        for each in words:
            total = packing.add(total, each, by)
        return Sum(total.view(np.int64), count, count)

    def add(sum: Sum, updates: Sequence[Weighted]) -> Sum:
        words = [sum.total.view(np.uint64), *(each.codes for each in updates)]
        return added(words, sum.count + len(updates))

    def total(sums: Sequence[Sum]) -> Sum:
        words = [each.total.view(np.uint64) for each in sums]
        return added(words, int(np.sum([each.count for each in sums], dtype=np.int64)))

    return Mechanism(
        check=check,
        weigh=lambda sealed, behind: Weighted(sealed.words),
        empty=functools.partial(added, (), 0),
        add=add,
        total=total,
        finish=lambda sum, round: mean_of(sum, agreed, round),
        spent=functools.partial(_spent, task),
    )


def counting(task: Task) -> Mechanism:
    """Each device's marks in a table are seen by the server, refused if they are more than one may
    have, and added up. It has no mean: what it counts is `tallies`.
    """
    agreed = terms(task)
    assert agreed.table is not None
    most = agreed.table.most_ones

    def check(body: bytes | bytearray, round: int) -> Checked | Cause:
        try:
            about = update.header(body)
            if (cause := _why_not(about, round, agreed, agreed.values)) is not None:
                return cause
            marks = update.codes(body, agreed.bits)
        except UpdateError:
            return Cause.NOT_AN_UPDATE
        return Checked(marks) if int(marks.sum()) <= most else Cause.NORM_TOO_LARGE

    return Mechanism(
        check=check,
        weigh=lambda checked, behind: Weighted(checked.codes),
        empty=functools.partial(sums.empty, agreed.values),
        add=functools.partial(sums.add_all, largest=agreed.largest),
        total=functools.partial(sums.total, largest=agreed.largest),
        finish=lambda sum, round: sum.total.astype(np.float64),
        spent=functools.partial(_spent, task),
    )


@functools.lru_cache(maxsize=64)
def of(task: Task) -> Mechanism:
    """The mechanism a task counts by."""
    if is_masked(task):
        return masked(task)
    return plain(task) if task.table is None else counting(task)


@functools.lru_cache(maxsize=64)
def layout_of(task: Task) -> Layout:
    """How a report's numbers lie in masked words."""
    if task.kind is Kind.EVALUATION:
        return scores.layout(terms(task).most)
    return terms(task).layout


def opened(task: Task, parts: Sequence[Sum], mask: NDArray[np.uint64]) -> Sum | str:
    """The sum of what devices encoded, of the replicas' masked sums of a round and the sum of their
    masks; or why it is of no use, in a sentence: no honest devices could have sent that.
    """
    total, by = of(task).total(parts), layout_of(task)
    words = packing.subtract(total.total.view(np.uint64), mask, by)
    numbers = packing.unpack(words, by).astype(np.int64)
    if task.kind is Kind.EVALUATION:
        reason = scores.beyond_reach(numbers, total.count)
    elif task.table is not None:
        numbers -= terms(task).room
        most, room = task.table.most_ones, terms(task).room
        reason = table.beyond_reach(numbers, total.count, most, room)
    else:
        numbers -= terms(task).room
        agreed = terms(task)
        noise_norm = agreed.noise_norm / total.count if agreed.room else 0.0
        reason = beyond_reach(numbers, total.count, agreed.encoding, agreed.room, noise_norm)
    if reason:
        return f"it is beyond what honest devices could reach: {reason}"
    return Sum(numbers, total.count, total.count)


def largest_report(task: Task) -> int:
    """Bytes of the report of a task that trains or counts."""
    agreed, by = terms(task), layout_of(task)
    if agreed.aggregation is Aggregation.PLAIN:
        if agreed.table is not None:
            return update.code_bytes(agreed.values, agreed.bits)
        return update.encoded_bytes(task.dimension, agreed.bits)
    return update.sealed_bytes(by)


def _why_not(about: update.Header, round: int, agreed: Terms, numbers: int) -> Cause | None:
    if about.round != round:
        return Cause.WRONG_ROUND
    if about.terms != agreed.name:
        return Cause.WRONG_TERMS
    return None if about.numbers == numbers else Cause.NOT_AN_UPDATE


def _spent(task: Task, exposure: Exposure) -> Spent:
    """What a task has spent, by who was in its sums with noise."""
    noise, spending, agreed = task.noise, exposure.spending, terms(task)
    protection = _protection(agreed, adds_noise=noise is not None)
    if noise is None:
        return Spent(protection)
    standing, happened = budget.standing(noise, spending), spending.happened
    apart = "no device was in two"
    if happened.separation is not None:
        apart = (
            f"from one of a device to its next the least was {happened.separation} (a difference "
            "of numbers of sums: 1 of neighbours)"
        )
    of_one = f"the device in most of them was in {happened.participations}, and {apart}"
    account = standing.account
    return Spent(
        protection,
        account.epsilon,
        account.rho,
        account.delta,
        noise.epsilon,
        standing.sums,
        max(len(happened.blocks), len(spending.noised.began) if spending.noised else 0),
        0 if spending.over else budget.left(noise, spending, agreed.min_separation, agreed.turn),
        "; ".join(filter(None, (of_one if happened.sums else "", standing.caveat, spending.over))),
        spending.over,
    )


def _protection(agreed: Terms, adds_noise: bool) -> str:
    """What hides updates, in the words of a bundle's lineage."""
    if agreed.aggregation is Aggregation.PLAIN:
        if not adds_noise:
            return NO_PRIVACY
        return f"the server, which could read each update, added {_noise(agreed)} to each sum"
    by = "a helper" if agreed.aggregation is Aggregation.HELPER else "the devices"
    sums = f"updates were seen in sums of at least {agreed.fewest}, opened by {by}"
    if not adds_noise:
        return f"{sums}; no noise was added"
    if agreed.aggregation is Aggregation.HELPER:
        return f"{sums}, which added {_noise(agreed)} to each before the server saw it"
    return f"{sums}; the server, which is trusted with the sum, added {_noise(agreed)} to each"


def _noise(agreed: Terms) -> str:
    assert agreed.noise is not None
    anew = f", anew every {agreed.turn:,} rounds," if agreed.turn else ""
    return f"{agreed.noise.mechanism} noise of multiplier {agreed.noise.multiplier:g}{anew}"


def whole(task: Task) -> int:
    """How often the codes of an update stand in a sum that is not late: one that is counts less, so
    noise is as many times as wide.
    """
    return WHOLE if task.rules.buffered and task.aggregation is Aggregation.PLAIN else 1


def with_noise(sum: Sum, noise: NDArray[np.int64]) -> Sum:
    """A sum of codes and what is added to it, both [values]."""
    return replace(sum, total=sum.total.astype(np.int64) + noise)


def mean_of(sum: Sum, agreed: Terms, round: int) -> NDArray[np.float64]:
    """The mean delta of a round's sum of codes, float64 [dimension]. One that carries noise is
    divided by the report goal, whatever its count: a device then counts the same in every round.
    """
    over = sum.count if agreed.noise is None else agreed.most
    return encoding.mean(sum.total, sum.count, agreed.encoding_at(round), over)


def beyond_reach(
    total: NDArray[Any], count: int, by: Encoding, room: int = 0, noise_norm: float = 0.0
) -> str:
    """Why honest devices cannot have made the sum of so many updates' codes, integers [values], in
    a sentence; empty if they can have. The sum may carry noise of up to `room` codes a value, whose
    norm, on the mean, is about `noise_norm`.

    Codes that were masked cannot be looked at one update at a time, so one device can put any
    numbers in: what is far off is seen in the sum, which is then of no use.
    """
    most = int(total.max(initial=0))
    if most > count * by.largest + room or int(total.min(initial=0)) < -room:
        return f"a sum of codes is {most}, and {count} devices reach {count * by.largest + room}"
    norm, reach = encoding.norm_of_sum(total, count, by), by.bound * by.clipping_norm
    reach += (1 + NOISE_SPREAD / math.sqrt(2 * by.values)) * noise_norm
    if norm > reach * (1 + FLOAT64_SLACK):
        return f"the mean has a norm of {norm:.3g}, and honest devices reach {reach:.3g}"
    return ""


def staleness_share(behind: int, exponent: float = 0.5) -> float:
    """The share of a delta that moves the mean when it comes so many rounds late. Source: Nguyen et
    al. 2022, arXiv:2106.06639.

    >>> [staleness_share(behind) for behind in (0, 3)]
    [1.0, 0.5]
    """
    return float((1.0 + behind) ** -exponent)
