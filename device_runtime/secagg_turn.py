"""A device's part in SecAgg+ within its turn: what it sends and waits for, as actions.

    prepare   keys -> roster -> shares -> inbox      nothing of an update has left yet
    mask      numbers -> the body of the report      sent as any report is
    reveal    announced -> consent -> consents -> revealed

Devices wait for one another, so whoever asks too early asks again, as long as its conditions hold.
A device that stops anywhere has dropped out: its secrets are in these states alone, and it never
makes others for the same work. There is no socket, clock or file here.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from device_runtime import packing, secagg, update
from device_runtime.causes import MEANING, Cause
from device_runtime.masking import Random
from device_runtime.secagg import Session, Sharing
from device_runtime.secagg_wire import Announced, Consents, Heard, Inbox, Roster, Sent
from device_runtime.terms import Terms
from device_runtime.update import Form, Header
from device_runtime.wire import Ack, Assignment, Reject

LEAST_WAIT_S = 1.0  # whatever a server asks for
LONGEST_WAIT_S = 300.0

T = TypeVar("T")


@dataclass(frozen=True)
class Own:
    """What a device signs with, and draws its secrets of."""

    key: Ed25519PrivateKey = field(repr=False)
    random: Random = field(repr=False)


@dataclass(frozen=True)
class Identify:
    """Whose keys are made for an assignment -> Own."""

    assignment: Assignment


@dataclass(frozen=True)
class Tell:
    """Send the message of a step -> Ack | Reject; `errors.Unanswered` is thrown if no answer
    comes.
    """

    assignment: Assignment
    message: Sent = field(repr=False)


@dataclass(frozen=True)
class Hear:
    """Ask for what a step begins with -> a message of that kind, or Reject while there is none."""

    assignment: Assignment
    kind: type[Heard]


@dataclass(frozen=True)
class Wait:
    """Let seconds pass, in which other devices may take their turns -> Cause | None: what forbids
    to go on after them.
    """

    seconds: float


class Gone(Exception):
    """The device has dropped out of the round."""

    def __init__(self, cause: Cause, detail: str = "", retry_in_s: float | None = None):
        """`retry_in_s` is what its server told it; None if that does not know yet."""
        super().__init__(detail or cause.value)
        self.cause, self.detail, self.retry_in_s = cause, detail, retry_in_s


@dataclass(frozen=True)
class Ready:
    """A device that may mask its numbers."""

    state: Sharing = field(repr=False)
    inbox: Inbox = field(repr=False)


Action = Identify | Tell | Hear | Wait
Steps = Generator[Any, Any, T]


def prepare(assignment: Assignment, terms: Terms) -> Steps[Ready]:
    """The steps before the report. Raises Gone."""
    own: Own = yield Identify(assignment)
    session = Session(assignment.server, assignment.task_id, assignment.round, terms)
    state, advertised = secagg.advertise(session, own.key, own.random)
    yield from _tell(assignment, advertised)
    roster: Roster = yield from _hear(assignment, Roster)
    sharing, shares = _taken(secagg.share(state, roster, own.random))
    yield from _tell(assignment, shares)
    return Ready(sharing, (yield from _hear(assignment, Inbox)))


def mask(ready: Ready, numbers: NDArray[Any], largest: int) -> tuple[secagg.Masked, bytes]:
    """The body of the report: whole numbers of at most `largest`, [n], under all masks. Raises
    Gone.
    """
    session = ready.state.before.session
    by = packing.layout(len(numbers), largest, session.terms.most)
    masked, words = _taken(secagg.mask(ready.state, ready.inbox, numbers.astype(np.uint64), by))
    about = Header(Form.WORDS, session.round, len(numbers), session.terms.name)
    return masked, update.of_words(words, about, by)


def reveal(assignment: Assignment, masked: secagg.Masked) -> Steps[None]:
    """The steps after the report, which take the masks off the sum. Raises Gone."""
    announced: Announced = yield from _hear(assignment, Announced)
    agreed, consent = _taken(secagg.agree(masked, announced))
    consents = Consents()
    if masked.session.terms.semi_malicious:
        yield from _tell(assignment, consent)
        consents = yield from _hear(assignment, Consents)
    yield from _tell(assignment, _taken(secagg.reveal(agreed, consents)))


def patiently(ask: Callable[[], Any]) -> Steps[Any]:
    """The answer to an action, which is done again while it is to be waited for. Raises Gone if a
    condition is lost meanwhile.
    """
    while True:
        answer = yield ask()
        if not isinstance(answer, Reject) or not _comes_again(answer.cause):
            return answer
        seconds = min(max(LEAST_WAIT_S, answer.retry_in_s), LONGEST_WAIT_S)
        require_allowed((yield Wait(seconds)))


def require_allowed(forbidden: Cause | None) -> None:
    """Raises Gone if something forbids to go on."""
    if forbidden is not None:
        raise Gone(Cause.TIMED_OUT if forbidden is Cause.TIMED_OUT else Cause.CONDITION_LOST)


def _comes_again(cause: Cause) -> bool:
    return cause is Cause.WAITING or MEANING[cause].keeps_work


def _tell(assignment: Assignment, message: Sent) -> Steps[None]:
    answer: Ack | Reject = yield from patiently(lambda: Tell(assignment, message))
    if isinstance(answer, Reject):
        raise Gone(answer.cause, retry_in_s=answer.retry_in_s)


def _hear(assignment: Assignment, kind: type[Heard]) -> Steps[Any]:
    answer = yield from patiently(lambda: Hear(assignment, kind))
    if isinstance(answer, Reject):
        raise Gone(answer.cause, retry_in_s=answer.retry_in_s)
    return answer


def _taken(result: T | secagg.Refused) -> T:
    """The next state, if what the server said can be true."""
    if isinstance(result, secagg.Refused):
        raise Gone(result.cause, f"{result.why.value}: {result.detail}")
    return result
