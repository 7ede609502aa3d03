"""Scores of releases: what devices say of the release they run, as rows that add up in any order.

    a device's ReleaseScores -> to_rows -> merge -> split -> rows of enough devices: told for good
                                             ^        |
                 what the round before kept -+        +-> the others: kept for the next round

A row is of one pair: the release that a device runs, and the one that it ran before (0: none that
could be scored). Each report is in one row and no other, so what is told of one row says nothing of
another. A row is told once it has `fewest` devices in it, and then begins anew: what is told only
ever grows by so many at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from device_runtime.scores import BINS, bin_of
from device_runtime.wire import ReleaseScores, Scores
from server.sums import Sum

LOSS_UNITS = 2**20  # of one nat: a sum of whole units does not depend on the order
LEAST_ROWS = 64  # of a sum as it is stored: how many of them are in use nobody sees
Table = NDArray[np.int64]  # [rows, WIDTH]; a row of release 0 is of nobody


@dataclass(frozen=True)
class Figures:
    """What the devices of one pair of releases add up to. The last five are of the pair, and 0
    where there is no release before.
    """

    devices: int = 0
    targets: int = 0  # words
    top1: int = 0  # words that the release had right
    top3: int = 0
    in_vocabulary: int = 0
    loss: int = 0  # in LOSS_UNITS
    # sums over devices, for the standard error of shares: words ** 2, top1 ** 2, top1 * words
    words_squared: int = 0
    top1_squared: int = 0
    top1_words: int = 0
    before_top1: int = 0  # words that the release before had right, of the very same
    before_top3: int = 0
    before_loss: int = 0
    # sums over devices of gain ** 2 and gain * words, where gain = top1 - before_top1 of a device
    gain_squared: int = 0
    gain_words: int = 0
    spread: tuple[int, ...] = (0,) * BINS  # devices by the share of their words that were right

    def __add__(self, other: "Figures") -> "Figures":
        """Those of both together."""
        return _figures(np.add(_values(self), _values(other)).tolist())


NUMBERS = tuple(each.name for each in fields(Figures) if each.name != "spread")
WIDTH = 2 + len(NUMBERS) + BINS
Pair = tuple[int, int]  # release, and the one before or 0


def empty() -> Table:
    """The rows of no device."""
    return np.zeros((LEAST_ROWS, WIDTH), np.int64)


def to_rows(report: ReleaseScores) -> Table:
    """The rows of one device, one of them in use. Its scores are such as `judging` lets count."""
    new, old = report.scores, report.before_scores
    squares = new.targets**2, new.top1**2, new.top1 * new.targets
    pair = (0,) * 5
    if old is not None:
        gain = new.top1 - old.top1
        pair = (old.top1, old.top3, loss_units(old), gain**2, gain * new.targets)
    numbers = (1, *astuple(new)[:-1], loss_units(new), *squares, *pair)
    spread = np.zeros(BINS, np.int64)
    spread[bin_of(new)] = 1
    rows = empty()
    rows[0] = (report.release, report.before, *numbers, *spread)
    return rows


def loss_units(scores: Scores) -> int:
    """A loss as rows add it up."""
    return round(scores.loss * LOSS_UNITS)


def merge(several: Iterable[Table]) -> Table:
    """What rows of several devices, groups or replicas add up to: the same in any order. At least
    LEAST_ROWS of them, and then a power of two.
    """
    together = np.concatenate([empty(), *(each.reshape(-1, WIDTH) for each in several)])
    together = together[together[:, 0] > 0]
    pairs, where = np.unique(together[:, :2], axis=0, return_inverse=True)
    rows = np.zeros((_padded(len(pairs)), WIDTH), np.int64)
    rows[: len(pairs), :2] = pairs
    np.add.at(rows[:, 2:], where.reshape(-1), together[:, 2:])
    return rows


def split(rows: Table, fewest: int) -> tuple[dict[Pair, Figures], Table]:
    """What may be told of merged rows, by pair, and the rows that wait for more devices.

    >>> one = to_rows(ReleaseScores(7, Scores(10, 2, 3, 9, 30.0)))
    >>> told, waiting = split(merge([one, one]), fewest=2)
    >>> told[7, 0].devices, told[7, 0].targets, int(waiting.sum())
    (2, 20, 0)
    """
    many = rows[:, 2] >= fewest
    told = {
        (release, before): _figures(values)
        for release, before, *values in rows[many & (rows[:, 0] > 0)].tolist()
    }
    return told, merge([rows[~many]])


def from_flat(values: NDArray[np.int64]) -> Table:
    """The rows in a sum, whose total is int64 [rows * WIDTH]."""
    return values.reshape(-1, WIDTH)


def to_sum(rows: Table, count: int = 0) -> Sum:
    """Rows as a sum holds them; `count`: devices of the round itself."""
    return Sum(rows.reshape(-1), count=count)


def added(total: Sum | None, reports: Sequence[ReleaseScores]) -> Sum:
    """A sum with the reports of devices in it; None is that of nobody."""
    before = [] if total is None else [from_flat(total.total)]
    count = 0 if total is None else total.count
    return to_sum(merge([*before, *map(to_rows, reports)]), count + len(reports))


def of_release(told: Mapping[Pair, Figures], release: int) -> Figures:
    """All that is told of how a release does, whatever ran before it."""
    return sum((each for (of, _), each in told.items() if of == release), Figures())


def against_earlier(told: Mapping[Pair, Figures], release: int) -> Figures:
    """What is told of how a release does on words that an earlier one was scored on too."""
    pairs = (each for (of, before), each in told.items() if of == release and 0 < before < release)
    return sum(pairs, Figures())


def _padded(rows: int) -> int:
    return max(LEAST_ROWS, 1 << (rows - 1).bit_length()) if rows else LEAST_ROWS


def _values(figures: Figures) -> list[int]:
    return [*(getattr(figures, name) for name in NUMBERS), *figures.spread]


def _figures(values: Sequence[int]) -> Figures:
    numbers, spread = values[: len(NUMBERS)], values[len(NUMBERS) :]
    return Figures(**dict(zip(NUMBERS, numbers, strict=True)), spread=tuple(spread))
