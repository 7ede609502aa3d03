"""Budget: what a task's sums have spent of its devices' privacy, and whether one more may be made.

    the ledger's rows -> Spending -> standing -> Standing    what every screen says
                            |
                            v
          worst of one more sum, under the task's rules -> why_over: the task ends

Sums count, not rounds: a round that was abandoned before its sum was opened added no noise and
spent nothing. Separation is a difference of numbers of sums: 1 of neighbours. A late report of a
buffered task weighs less than one that is not, so a device counts at most 1.
"""

import math
from dataclasses import dataclass, field, replace

from device_runtime import accountant
from device_runtime.accountant import Account, Participation
from device_runtime.helper_wire import Noised
from device_runtime.noise import Noise
from device_runtime.shown import rounded_up

SAME = 1e-6  # relative difference of two epsilons that are the same


@dataclass(frozen=True)
class Spending:
    """What a server has written down of a task with noise."""

    happened: Participation = field(default_factory=Participation)
    noised: Noised | None = None  # what its helper said when it was heard last
    over: str = ""  # why no further round starts, in a sentence; empty while one may
    drawn: int | None = None  # round whose noise is drawn and whose checkpoint is not on disk yet
    begins: bool = False  # that noise is the first after a beginning


@dataclass(frozen=True)
class Standing:
    """What has been spent, by whoever says more: this server's ledger or its helper's."""

    account: Account
    sums: int
    caveat: str = ""  # that they do not agree, in a sentence; empty if they do


def standing(noise: Noise, spending: Spending) -> Standing:
    """What a task has spent."""
    own, sums = accountant.account(noise, spending.happened), spending.happened.sums
    theirs = spending.noised
    if theirs is None or _agree(own, sums, theirs):
        return Standing(own, sums)
    caveat = (
        f"this server's ledger has {sums} sums and epsilon {rounded_up(own.epsilon)}, its "
        f"helper's {theirs.sums} and {rounded_up(theirs.epsilon)}: the larger is shown; was one of "
        "them put back from a backup?"
    )
    larger = max(own.epsilon, theirs.epsilon), max(own.rho, theirs.rho)
    return Standing(Account(larger[1], larger[0], noise.delta), max(sums, theirs.sums), caveat)


def recorded(
    happened: Participation, begins: bool, most: int, smallest: int | None
) -> Participation:
    """What has happened once one more sum is written down: of the devices in it, `most` is in how
    many sums the one is that is in most, and `smallest` the least from one of a device to its next.

    >>> recorded(Participation((2,), None, 1), False, 2, 2)
    Participation(blocks=(3,), separation=2, participations=2)
    """
    gaps = [each for each in (happened.separation, smallest) if each is not None]
    blocks = happened.blocks
    blocks = (*blocks, 1) if begins or not blocks else (*blocks[:-1], blocks[-1] + 1)
    return Participation(blocks, min(gaps, default=None), max(happened.participations, most))


def worst(
    noise: Noise,
    happened: Participation,
    separation: int,
    begins: bool = False,
    more: int = 1,
    turn: int = 0,
) -> Participation:
    """What will have happened after so many more sums at worst, where a device is in one at most
    that is `separation` or more after its last, and in no more than the noise allows. Where the
    noise begins anew every `turn` rounds, the sums after the next are told as if they went on and
    as if they began: which of them do is for the rounds to say that have no sum.

    >>> from device_runtime.noise import Mechanism
    >>> noise = Noise(Mechanism.GAUSSIAN, 1.0, 8.0, 1e-10, rounds=9, participations=2)
    >>> worst(noise, Participation((3,), None, 1), separation=3)
    Participation(blocks=(4,), separation=3, participations=2)
    """
    sums = happened.sums + more
    gap = separation if sums > separation else None
    blocks = happened.blocks
    if begins or not blocks or (turn and blocks[-1] >= turn):
        blocks = (*blocks, 0)
    last = blocks[-1] + more
    later: tuple[int, ...] = ()
    if turn:
        whole, rest = divmod(more - 1, turn)
        last, later = min(turn, last), (turn,) * whole + (rest,) * bool(rest)
    blocks = (*blocks[:-1], last, *later)
    gaps = [each for each in (happened.separation, gap) if each is not None]
    most = happened.participations + math.ceil(more / separation)
    return Participation(blocks, min(gaps, default=None), min(most, noise.participations))


def why_over(
    noise: Noise, spending: Spending, separation: int, begins: bool = False, turn: int = 0
) -> str:
    """Why no further sum may be made, in a sentence; empty if one may. `begins`: its noise does,
    anew.
    """
    spent = standing(noise, spending)
    if spent.sums >= noise.rounds:
        return f"all {noise.rounds:,} sums that its noise is for have been made"
    happened = worst(noise, spending.happened, separation, begins, turn=turn)
    after = accountant.account(noise, happened)
    if max(after.epsilon, spent.account.epsilon) <= noise.epsilon:
        return ""
    sums = f"{spent.sums:,} sum" + "s" * (spent.sums != 1)
    return (
        f"one more sum could pass the budget of epsilon {noise.epsilon:g} at delta "
        f"{noise.delta:g}: it could come to {rounded_up(after.epsilon)}, and "
        f"{rounded_up(spent.account.epsilon)} is spent after {sums}"
    )


def left(noise: Noise, spending: Spending, separation: int, turn: int = 0) -> int:
    """How many more sums there is room for at worst, in which the same devices are in as many as
    they may.
    """
    if why_over(noise, spending, separation, turn=turn):
        return 0
    low, high = 1, noise.rounds - spending.happened.sums
    while low < high:
        middle = (low + high + 1) // 2
        after = worst(noise, spending.happened, separation, more=middle, turn=turn)
        if accountant.account(noise, after).epsilon <= noise.epsilon:
            low = middle
        else:
            high = middle - 1
    return low


def described(noise: Noise) -> str:
    """What is added to each sum, and how much of it may be spent, in words.

    >>> from device_runtime.noise import Mechanism
    >>> described(Noise(Mechanism.BLT, 8.0, 6.5, 1e-10, rounds=2000, participations=6))
    'blt noise of multiplier 8, for epsilon 6.5 at delta 1e-10, 2,000 sums and 6 of one device'
    """
    return (
        f"{noise.mechanism} noise of multiplier {noise.multiplier:g}, for epsilon "
        f"{noise.epsilon:g} at delta {noise.delta:g}, {noise.rounds:,} sums and "
        f"{noise.participations:,} of one device"
    )


def _agree(own: Account, sums: int, theirs: Noised) -> bool:
    return sums == theirs.sums and math.isclose(own.epsilon, theirs.epsilon, rel_tol=SAME)


def after_sum(spending: Spending, happened: Participation, noised: Noised | None) -> Spending:
    """The same once a sum is written down."""
    return replace(
        spending,
        happened=happened,
        noised=noised or spending.noised,
        drawn=None,
        begins=False,
    )
