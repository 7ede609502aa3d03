"""Opening: a masked sum -> the sum of what its devices encoded, once, or why it never will be.

    a round has enough: UNMASKING, frozen -> its open work is closed      one transaction
        |                                    freeze: what the way of opening must keep
        v
    ask, again with every tick  ->  Waiting                               without any lock
        |                           Never: the round is abandoned, by this name
        v
      Mask: the sum of the masks of exactly the counted reports
        |
        v
    opened: words - mask -> unpack -> could honest devices have sent that?
        |
        v
    closing, as for any sum; then `ended`

How a sum is opened is an `Opener`, a record of functions, one for each way: a helper is asked
(`helping.py`), or the devices' own shares are put together. Whoever runs rounds goes through it
alone, so another way is another record. A round waits in UNMASKING as long as its opener says
Waiting: a helper that is away costs time and no report.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from device_runtime.helper_wire import Noised
from server.store import Rows
from server.task import Task

NAME_BYTES = 16  # of a device in a sum, hashed


@dataclass(frozen=True)
class Frozen:
    """A round whose reports are all in. What stands here is durable and does not change."""

    task: Task
    round: int
    count: int  # reports in its sum


@dataclass(frozen=True)
class Mask:
    """What is to be taken off a sum."""

    # the masks of all its reports, added, less the noise of a helper: `packing.Layout.words`
    words: NDArray[np.uint64]
    noised: Noised = field(default_factory=Noised)  # what a helper has spent


@dataclass(frozen=True)
class Waiting:
    """There is no mask yet: it is asked for again with the next tick."""

    why: str  # for the operator, in a few words


@dataclass(frozen=True)
class Never:
    """There will be no mask: the round is abandoned."""

    reason: str  # for the operator, in a sentence
    # who alone brought that about, by their names: they get no more of the task's work
    devices: tuple[str, ...] = ()
    # with this sum the task would have spent more than its budget: it ends
    is_over: bool = False


@dataclass(frozen=True)
class Opener:
    """How sums of one aggregation are opened.

    `freeze` keeps, in the transaction in which a round has got enough, whatever `ask` will need and
    nobody else keeps. `ask` is called without any lock, by one thread at a time, until it says
    something else than Waiting; after a crash it is called again and must give the same mask, or
    none; it never raises for what another party does. `ended` is called once a round is closed on
    disk, and again after a crash or never: what was kept for `ask` may go.
    """

    freeze: Callable[[Rows, Frozen, float], None]
    ask: Callable[[Frozen, float], Mask | Waiting | Never]
    ended: Callable[[Frozen], None]


def member_names(task: Task, devices: Iterable[str]) -> set[bytes]:
    """Devices of a sum by names that say nothing to whoever does not know the task's seed."""
    about = f"fedboard-members-v1 {task.seed} {task.name}"
    return {hashlib.sha256(f"{about} {each}".encode()).digest()[:NAME_BYTES] for each in devices}


def split(names: bytes) -> set[bytes]:
    """Such names that were written one after the other."""
    return {names[at : at + NAME_BYTES] for at in range(0, len(names), NAME_BYTES)}
