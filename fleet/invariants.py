"""Invariants: what must hold after every step of a fleet, whatever goes wrong in it.

    of a report      acknowledged
    of a round       counted_once   eligible   follows   exact   opened   noised
                     budgeted
    of open rounds   moves   one_sum
    of the log       grows   is_root_of
    of the files     keeps_none

An invariant is a function of plain values, which `watch.py` has seen: what is wrong, in a sentence,
or "" if nothing is. `made_of` works out once more what a round comes to.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime import accountant, log_wire, merkle
from device_runtime.accountant import Participation
from device_runtime.causes import MEANING, Cause
from device_runtime.errors import FedboardError
from device_runtime.merkle import Frontier
from device_runtime.noise import Noise
from device_runtime.terms import Aggregation
from device_runtime.weights import Checkpoint, Weights
from device_runtime.wire import OPEN, Ack, Phase, Reject
from fleet.settings import START
from server import mechanism, step
from server.requests import Refused
from server.rounds import Rules
from server.sums import Sum
from server.task import Task, terms

UNMASKING_S = 3600.0  # in which a sum must be opened whose helper lives
SLICE = 48  # bytes of an update that are looked for where none may be
LEAST_NOISE, MOST_NOISE = 0.3, 3.0  # root mean square of the noise on a mean / what is expected
BEYOND, LOST = "beyond what honest devices", "cannot be read"  # in reasons of the server's
FEWEST = 50  # values of a network whose noise can be told from other noise
SAME = 0.2  # distance of two sums' noise / its norm, under which it is the same noise
_NOT_TAKEN = (Cause.REPLAYED, Cause.BAD_SIGNATURE)  # of a request that is not the device's own


@dataclass(frozen=True)
class Told:
    """A report that came to the server, and what that said of it."""

    device: str
    assignment: str
    name: str  # SHA-256 of the body
    answer: Any  # None: the server died before


@dataclass(frozen=True)
class Work:
    """What the database says of an assignment."""

    assignment: str
    round: int
    device: str
    admitted_at: float
    status: str
    update_hash: str | None
    counted_in: int | None


@dataclass(frozen=True)
class Round:
    """What the database says of a round."""

    number: int
    phase: str
    base: str
    made: str | None
    reported: int
    last_admitted: float | None
    places: str | None  # JSON
    closed_at: float | None
    reason: str = ""  # why it was abandoned, if it was


@dataclass(frozen=True)
class Base:
    """What a round goes on from."""

    weights: Weights
    moments: Weights | None  # what earlier steps left, if they did


# the invariants: what was seen -> what is wrong, in a sentence; empty if nothing is


def acknowledged(told: Told, work: Work | None) -> str:
    """A report that the server says is counted is, and one that is counted is said to be."""
    is_counted = work is not None and work.status == "counted" and work.update_hash == told.name
    says = isinstance(told.answer, Ack) and told.answer.counted
    about = f"the report {told.name[:8]} for assignment {told.assignment[:8]}"
    if says and not is_counted:
        return f"{about} was acknowledged, and is {work.status if work else 'of no work'}"
    cause = told.answer.cause if isinstance(told.answer, Refused | Reject) else None
    is_silent = told.answer is None or isinstance(told.answer, FedboardError)
    passes = cause is not None and (MEANING[cause].keeps_work or cause in _NOT_TAKEN)
    if is_counted and not says and not is_silent and not passes:
        return f"{about} is counted, and its device was told {told.answer}"
    return ""


def counted_once(
    it: Round,
    counted: Sequence[Work],
    came: Mapping[str, Mapping[str, str]],
    before: Mapping[str, int],
) -> str:
    """A round counts each device once, by a report that came from it, in one round only. `came`: by
    assignment, names of bodies and who sent them; `before`: by assignment, the round that counted
    it.
    """
    devices = [each.device for each in counted]
    if len(set(devices)) < len(devices):
        return f"round {it.number} has counted a device twice"
    if len(counted) != it.reported:
        return (
            f"round {it.number} says that it has {it.reported} reports, and "
            f"{len(counted)} are counted in it"
        )
    for each in counted:
        if came.get(each.assignment, {}).get(each.update_hash or "") != each.device:
            return f"round {it.number} has counted a report that no device has sent"
        if each.assignment in before:
            return f"rounds {before[each.assignment]} and {it.number} have counted one report"
    return ""


def eligible(work: Work, was_ready: bool | None, rounds: Sequence[int], min_separation: int) -> str:
    """Who is counted was ready when it began and when it sent, and was counted long enough ago:
    `rounds` are those that have counted it, oldest first. `was_ready`: None where nobody looked.
    """
    number = work.counted_in
    if was_ready is False:
        return f"round {number} has counted device {work.device}, whose conditions did not hold"
    if rounds and number is not None and number - rounds[-1] < min_separation:
        return (
            f"round {number} has counted device {work.device}, which round {rounds[-1]} had "
            f"counted: expected {min_separation} rounds between the two"
        )
    return ""


def exact(it: Round, expected: str) -> str:
    """The checkpoint of a round is what the counted codes alone come to, to the bit."""
    if it.made == expected:
        return ""
    return (
        f"round {it.number} has made checkpoint {str(it.made)[:8]}, and what it counted "
        f"comes to {expected[:8]}"
    )


def opened(it: Round, is_honest: bool) -> str:
    """What a round has counted is thrown away only where a device has lied, or too few have stayed
    to open it.
    """
    of_lies = BEYOND in it.reason
    if LOST in it.reason or (of_lies and is_honest):
        return f"round {it.number} has thrown away what honest devices sent: {it.reason}"
    return ""


def follows(it: Round, base: str) -> str:
    """A round begins with what the one before it has left; one that is abandoned leaves that."""
    if it.base != base:
        return f"round {it.number} began with {it.base[:8]}, and {base[:8]} was there"
    if (it.phase == Phase.COMMITTED) != (it.made is not None):
        return f"round {it.number} is {it.phase}, and its checkpoint is {it.made}"
    return ""


def noised(
    number: int, noise: NDArray[Any], expected: float, earlier: Mapping[int, NDArray[Any]]
) -> str:
    """The mean of a round carries noise of about the `expected` root mean square, in the mean's own
    units, and none that an earlier round has carried. Of a few values nothing can be said.
    """
    if len(noise) < FEWEST:
        return ""
    size = float(np.sqrt(np.mean(np.square(noise))))
    if not LEAST_NOISE * expected <= size <= MOST_NOISE * expected:
        return f"the mean of round {number} has noise of {size:.3g}, expected about {expected:.3g}"
    for other, kept in earlier.items():
        if np.linalg.norm(noise - kept) < SAME * np.linalg.norm(kept):
            return f"rounds {other} and {number} have the same noise"
    return ""


def budgeted(
    noise: Noise,
    spent: Sequence[tuple[float, float]],
    happened: Participation,
    numbers: Sequence[int],
) -> str:
    """Rho and epsilon of a task's sums, oldest first, never fall or pass the budget, and say what
    has `happened`. `numbers`: those of its sums by the log, each once.
    """
    if any(after < before for before, after in itertools.pairwise(spent)):
        return f"what was spent has fallen: {spent}"
    if spent and spent[-1][1] > noise.epsilon:
        return f"epsilon {spent[-1][1]:.4g} is spent, of a budget of {noise.epsilon:g}"
    if happened.participations > noise.participations or happened.sums > noise.rounds:
        return (
            f"{happened.sums} sums were made and a device is in {happened.participations}, of "
            f"{noise.rounds} and {noise.participations}"
        )
    account = accountant.account(noise, happened)
    if spent and spent[-1][0] < account.rho * (1 - 1e-9):
        return f"rho {spent[-1][0]:.4g} is written down, and {account.rho:.4g} was spent"
    if list(numbers) != sorted(set(numbers)):
        return f"the log numbers its sums {list(numbers)}"
    return ""


def moves(
    it: Round, works: Sequence[Work], rules: Rules, promised: float, now: float, slack: float
) -> str:
    """No round waits for longer than its rules have it."""
    about = f"round {it.number}, at {now - START:.0f} s, still waits"
    for each in works:
        if rules.buffered and now > each.admitted_at + promised + slack:
            return f"{about} for device {each.device}, admitted at {each.admitted_at - START:.0f} s"
    if it.last_admitted is not None and not rules.buffered:
        last = it.last_admitted + promised + slack
        if Phase(it.phase) in OPEN and now > last:
            return f"{about}, and should have ended at {last - START:.0f} s"
        if it.phase == Phase.UNMASKING and now > last + UNMASKING_S:
            return f"{about} for its sum to be opened"
    until = None if it.places is None else json.loads(it.places)["until"]
    if until is not None and Phase(it.phase) is Phase.SELECTING and now > until + slack:
        return f"{about}, though a window was over at {until - START:.0f} s"
    return ""


def one_sum(
    sums: Sequence[tuple[str, int, int]],
    seals: Sequence[int],
    open_rounds: Sequence[tuple[str, int]],
    most_bytes: int,
) -> str:
    """The database holds one sum of each open round at most, no larger than a sum is, and no seals
    of rounds that are over. `sums`: task, round and bytes of each row.
    """
    of = [(task, number) for task, number, _ in sums]
    if len(set(of)) < len(of):
        return f"there are {len(of)} sums of {len(set(of))} rounds"
    if over := set(of) - set(open_rounds):
        return f"sums are kept of rounds that are over: {sorted(over)}"
    if old := set(seals) - {number for _, number in open_rounds}:
        return f"seals are kept of rounds that are over: {sorted(old)}"
    largest = max((size for *_, size in sums), default=0)
    return f"a sum has {largest} bytes, expected at most {most_bytes}" * (largest > most_bytes)


def keeps_none(files: Sequence[bytes], bodies: Mapping[str, bytes]) -> str:
    """No file of the server holds an update."""
    for name, body in bodies.items():
        middle = len(body) // 2
        part = body[middle : middle + SLICE]
        if len(set(part)) > SLICE // 4 and any(part in each for each in files):
            return f"a file of the server holds the update {name[:8]}"
    return ""


def grows(before: log_wire.Head | None, after: log_wire.Head, path: Sequence[bytes]) -> str:
    """A head of the log extends the one before it."""
    if before is None:
        return ""
    old, new = ((each.size, bytes.fromhex(each.root)) for each in (before, after))
    if before.log == after.log and merkle.extends(old, new, path):
        return ""
    return f"the log has forked: its head of {after.size} entries is not that of {before.size} more"


def is_root_of(head: log_wire.Head, entries: Sequence[str]) -> str:
    """The entries of the log are those that its head was signed for."""
    frontier = Frontier()
    for each in entries[: head.size]:
        frontier, _ = frontier.append(merkle.leaf(each.encode()))
    if (frontier.size, frontier.root.hex()) == (head.size, head.root):
        return ""
    return f"the log's {head.size} entries are not those that its head was signed for"


def made_of(
    task: Task, it: Round, base: Base, codes: Sequence[NDArray[Any]], behind: Sequence[int]
) -> Checkpoint:
    """What a round comes to by the codes that it counted, each so many rounds late, without
    noise.
    """
    by = mechanism.of(task)
    total = np.zeros(terms(task).values, np.int64)
    most = 0
    for each, late in zip(codes, behind, strict=True):
        times = 1
        if terms(task).aggregation is Aggregation.PLAIN:
            share = mechanism.staleness_share(late, task.rules.staleness_exponent)
            times = max(1, round(mechanism.whole(task) * share))
        total += times * each.astype(np.int64)
        most += times
    delta = by.finish(Sum(total, most, len(codes)), it.number)
    after, _ = step.apply(task.step, base.weights, base.moments, delta)
    return Checkpoint(after, it.number, it.base, task.tokenizer)
