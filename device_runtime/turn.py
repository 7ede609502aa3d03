"""A device's turn with the server, as a generator of actions: what it does next, and why.

                refused                  lost or failed      no answer: kept
                   ^                            ^                   ^
    Enrol? --> Ask --> Fetch plan --> Gather --> Train --> Protect --> Note --> Upload --> Note
               |       Fetch or hold  rows of     |        KeepReport  "sending"     |     what
               |       the checkpoint the log     |                                  |     became
               |          |              |        +-- Evaluate --> Note --> Report --+     of it
            check in      +--------------+--> over a limit: Withhold until the day is over
               |
            Verify --> RecallReport --> one is kept of this very work --> Note --> Upload --> Note
               |
               +--> Fetch --> Mark --> Protect ... of a public list of words: which were typed
               |
               +--> RecallRuns --> Gather --> Compare --> Note --> Report --> Note
                    a comparison of releases: nothing is verified or fetched

`check_in` and `work` yield one action after the other; whoever drives them does each and sends
back what came of it. There is no socket, clock, file or thread here, so whoever keeps a device's
state can take a turn: `drive.py` does on a phone. Before an update leaves it is kept durably, and
then "sending" is noted: a ledger never says less than what left, and what leaves again is the same
bytes or none. The conditions are looked at before each transfer. A checkpoint that no key signed
which the device trusts, or whose update others would see than the maker of its bundle has named,
is given back before anything is fetched.

Work over a limit of the device's own is not done. Its server hears nothing of it before the
device's day is over, and then one cause for all limits: how little was typed is nobody's business.
A comparison of releases has no number that a server chooses, so it hears at once, by the same
cause, that there is none, and all day the same: a device that has nothing to say goes on training.
Source of the form: a state receives a message and returns the next (Bonawitz et al. 2019,
arXiv:1902.01046, section 2.2, names the phases).
"""

import contextlib
import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime import (
    agreement,
    difference,
    exposure,
    limits,
    log_wire,
    scores,
    secagg_turn,
    separation,
    spent,
    table,
    weights,
)
from device_runtime.causes import MEANING, Cause
from device_runtime.config import from_json, to_json
from device_runtime.encoding import Encoding
from device_runtime.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    ServerError,
    Unanswered,
)
from device_runtime.limits import Asked, Limits, Over
from device_runtime.spent import Part
from device_runtime.terms import Aggregation, Terms
from device_runtime.text import RULES
from device_runtime.weights import Checkpoint, Weights
from device_runtime.wire import (
    CERTIFIED,
    DAY_S,
    Ack,
    Assignment,
    CheckIn,
    Kind,
    Plan,
    Reject,
    ReleaseScores,
    Scores,
)


class Status(StrEnum):
    """What became of a turn, or of the work in it."""

    NOT_ASKED = "not_asked"  # the device keeps away from the server until its day is over
    COUNTED = "counted"
    REFUSED = "refused"  # no work at check-in
    ABANDONED = "abandoned"  # the device gave its assignment back
    JOINED = "joined"  # its keys of a round in which devices wait for one another have left
    PAUSED = "paused"  # a condition was lost: the work waits on the device for its next window
    NOT_COUNTED = "not_counted"  # the server did not take the report
    SENDING = "sending"  # the report may have left, and no answer came that says what became of it


SENT = (Status.COUNTED, Status.NOT_COUNTED, Status.SENDING)  # a report left, or may have


@dataclass(frozen=True)
class Outcome:
    """What came of one turn. Bytes are those of bodies, as sent and received; seconds are of the
    clock the turn was driven by.
    """

    status: Status
    cause: Cause | None = None  # None when it counted
    round: int | None = None  # None when refused
    retry_in_s: float = 0.0
    examples: int = 0  # rows trained on
    batches: int = 0
    loss_before: float | None = None  # nats a target, on those rows
    loss_after: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    kind: Kind = Kind.TRAINING  # of another `examples` are words scored, or counted
    # SHA-256 of the index of releases that the server named; empty where it named none, and on a
    # metered network
    releases: str = ""


@dataclass(frozen=True)
class Progress:
    """Where interrupted training stands: what it needs to go on as if nothing had happened."""

    weights: Weights
    batches: int  # done so far
    loss_before: float  # mean over the examples before the first batch, nats


@dataclass(frozen=True)
class FineTuned:
    """What local training made of the server's weights."""

    delta: Weights  # client minus server; all zero when stopped
    batches: int
    loss_before: float  # mean over the examples, nats; NaN if it was stopped before that was known
    loss_after: float
    stopped: Cause | None = None  # why it ended early, if it did
    progress: Progress | None = None  # where to go on, if a condition or the upload is lost


@dataclass(frozen=True)
class Work:
    """Which work it is, and on what."""

    assignment: str
    round: int
    until: float  # seconds of the device's clock: after it the round waits for nobody
    records: tuple[int, ...]  # messages trained on, by their numbers in the typing log
    rows: str  # SHA-256 of the rows they gave
    # names repeat; what an earlier version kept has none of these, and is begun anew
    server: str | None = None
    task_id: str = ""
    checkpoint: str = ""  # SHA-256 of what it began from
    plan: str = ""  # SHA-256
    terms: str = ""  # `Terms.name`: others would encode the same delta in another way


@dataclass(frozen=True)
class Label:
    """Which report it is, and of what."""

    assignment: str
    round: int
    server: str
    task_id: str
    terms: str  # what it is bound to: `log_wire.agreed`
    kind: Kind
    records: tuple[int, ...]  # messages it was learned from, by their numbers in the typing log
    examples: int  # of a training, its rows; of a list, words that were typed; else words scored
    scored: str = ""  # as in a Note
    seen_by: str = ""  # who can see it by itself: `exposure.in_short`
    noise: str = ""  # as in a Note


@dataclass(frozen=True)
class Outgoing:
    """A report that is whole: it leaves as it is, or not at all."""

    label: Label
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class Distrusted:
    """Why a device does not do what it was assigned: names and numbers alone."""

    cause: Cause
    reason: str


@dataclass(frozen=True)
class Gathered:
    """What there is to train on."""

    work: Work
    rows: NDArray[Any]  # int32 [rows, plan.length + 1]
    words: int  # target words in them
    start: Progress | None = None  # where half-done work goes on


@dataclass(frozen=True)
class HeldBack:
    """What there is to score."""

    records: tuple[int, ...]  # messages, by their numbers in the typing log
    messages: tuple[tuple[int, ...], ...] = field(repr=False)  # their token ids
    words: int  # target words in them


@dataclass(frozen=True)
class History:
    """What the ledger says that bears on an assignment."""

    last: int | None = None  # round of its task for which an update left, or may have
    today: int = 0  # updates, or scores, that left today or may have, whoever they were for
    again: bool = False  # one left for this very assignment, or may have
    # weights that were scored, by `weights.values_hash`, releases by their manifests' SHA-256, and
    # lists of words by theirs:
    # up to which message, by its number in the typing log, where that was noted
    scored: Mapping[str, int] = field(default_factory=dict)
    joined: bool = False  # keys for this very assignment left, or may have
    none_today: bool = False  # no releases were compared today, since that was over a limit
    # of all tasks, the updates that left or may have, but for this very assignment
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Runs:
    """The release that a device runs, and the one it ran before."""

    release: int
    manifest: str  # its SHA-256
    # 0 and empty: there is none, or it has another vocabulary
    before: int = 0
    before_manifest: str = ""


@dataclass(frozen=True)
class Signed:
    """The weights of the device's bundle."""

    weights: Weights = field(repr=False)
    round: int  # that made them
    age_s: float  # since the bundle came to this device
    rounding: float = 0.0  # L2 distance these may be from what was signed, where they are int8


@dataclass(frozen=True)
class Reading:
    """What is made of the bytes of checkpoints. Nothing else goes into it, so that devices which
    read the same bytes in one process may have it made once.
    """

    digest: Callable[[bytes], str] = weights.digest
    checkpoint: Callable[[bytes, object], Checkpoint] = weights.from_bytes
    apply: Callable[[bytes, bytes], bytes] = difference.apply


@dataclass(frozen=True)
class Participant:
    """What a device knows of itself when its turn begins."""

    check_in: CheckIn  # what it says of itself
    enrolled: bool
    shapes: str  # `weights.shapes_hash` of its network
    plan: Plan  # the one its graphs were made for: batch size and length are fixed in them
    randomness: Callable[[Assignment], np.random.Generator]  # the same whenever work is done again
    limits: Limits
    keeps_work: bool = True  # half-done work waits for the next window; else it is given back
    where: object = "bundle"  # of an error: the bundle it uses
    signed: str = ""  # SHA-256 of its bundle's checkpoint
    owes: Assignment | None = None  # refused on an earlier day: its server has not heard yet
    rests: Cause | None = None  # why it asks for no work today
    day_ends_in_s: float = DAY_S
    reading: Reading = Reading()


# actions, and what is sent back for each


@dataclass(frozen=True)
class Enrol:
    """Make the device's key known to the server -> None."""


@dataclass(frozen=True)
class Ask:
    """Check in -> Assignment | Reject."""

    message: CheckIn


@dataclass(frozen=True)
class Verify:
    """The terms of work whose checkpoint is signed for a key that this device trusts, and by which
    nobody sees its update but whom its bundle's maker has named -> Terms, or why not -> Distrusted.
    What was signed is remembered.
    """

    assignment: Assignment


@dataclass(frozen=True)
class Recall:
    """What the ledger says that bears on an assignment -> History."""

    assignment: Assignment


@dataclass(frozen=True)
class HandIn:
    """Give back what was withheld, whatever the answer, and forget it -> None;
    `errors.Unanswered` is thrown if none comes.
    """

    assignment: Assignment


@dataclass(frozen=True)
class Withhold:
    """Keep durably that an assignment is to be given back when the day is over -> None."""

    assignment: Assignment


@dataclass(frozen=True)
class AskSigned:
    """The weights of the bundle -> Signed."""


@dataclass(frozen=True)
class Fetch:
    """A blob, by its SHA-256 -> bytes."""

    assignment: Assignment
    sha256: str = field(repr=False)


@dataclass(frozen=True)
class Held:
    """The checkpoint the device holds -> bytes."""


@dataclass(frozen=True)
class Hold:
    """Keep this checkpoint in place of the one held -> None."""

    sha256: str
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Gather:
    """Rows of the newest messages, or those of half-done work of this assignment -> Gathered."""

    assignment: Assignment
    plan: Plan
    most: int  # rows


@dataclass(frozen=True)
class GatherHeld:
    """The newest messages held back from training, as many as are scored -> HeldBack."""

    plan: Plan
    after: int = 0  # none of those up to this one, by its number in the typing log


@dataclass(frozen=True)
class Marked:
    """Which entries of a table this device's own messages hold."""

    records: tuple[int, ...]  # messages that were looked at, by their numbers in the typing log
    numbers: NDArray[Any] = field(repr=False)  # 0 or 1, [entries]


@dataclass(frozen=True)
class Mark:
    """Which entries of a table, of what this file says they stand for, its messages hold -> Marked,
    or why the file is none -> Distrusted.
    """

    terms: Terms
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Train:
    """Local fine-tuning -> FineTuned."""

    weights: Weights = field(repr=False)
    rows: NDArray[Any] = field(repr=False)  # int32 [rows, plan.length + 1]
    plan: Plan
    rng: np.random.Generator
    start: Progress | None = None  # where half-done work goes on


@dataclass(frozen=True)
class Encode:
    """The codes of a delta -> uint8 (over 8 bits uint16) [values]."""

    delta: Weights = field(repr=False)
    by: Encoding
    rng: np.random.Generator


# a bundle's train graph, what to train, and whether it may go on, asked before each batch
Trainer = Callable[[bytes, Train, Callable[[], bool]], FineTuned]


@dataclass(frozen=True)
class Evaluate:
    """Score weights on messages held back from training -> Scores, None if it had to stop."""

    weights: Weights = field(repr=False)
    messages: tuple[tuple[int, ...], ...] = field(repr=False)  # token ids


@dataclass(frozen=True)
class RecallRuns:
    """Which releases this device has -> Runs."""


@dataclass(frozen=True)
class Compare:
    """Score the release that runs, and the one before if that too, each with its own file, on
    messages held back from training -> ReleaseScores, None if it had to stop.
    """

    runs: Runs
    messages: tuple[tuple[int, ...], ...] = field(repr=False)  # token ids


@dataclass(frozen=True)
class CheckConditions:
    """What forbids work now -> Cause | None: a condition, or TIMED_OUT past the deadline."""


@dataclass(frozen=True)
class Used:
    """Count one use of each of these messages -> None."""

    records: tuple[int, ...]


@dataclass(frozen=True)
class Note:
    """Write the ledger's line of this turn, or write it anew, durably -> None."""

    assignment: Assignment
    status: Status
    cause: Cause | None = None
    examples: int = 0
    detail: str = ""  # of a refusal: the limit, and what was asked
    # of scores: the weights, by `weights.values_hash`; of releases the SHA-256 of their manifests,
    # with a space between two
    scored: str = ""
    up_to: int = 0  # of scores of releases: the newest message in them, by its number
    seen_by: str = ""  # of what left: who can see it by itself
    noise: str = ""  # of an update that left: the noise of its sum, a `noise.Noise` as JSON


@dataclass(frozen=True)
class RecallReport:
    """The report of this very work that is kept, while all its messages are there -> Outgoing;
    None if there is none. That of any other work is thrown away.
    """

    assignment: Assignment
    terms: Terms


@dataclass(frozen=True)
class Protect:
    """A report's numbers as they travel, to be read by whom the terms name alone -> bytes. A mask
    is never used twice: the same numbers give other bytes each time.
    """

    assignment: Assignment
    terms: Terms
    numbers: NDArray[Any] = field(repr=False)  # whole, 0 to `largest`
    largest: int


@dataclass(frozen=True)
class KeepReport:
    """Keep a report durably, in place of any other -> None."""

    report: Outgoing


@dataclass(frozen=True)
class Upload:
    """Hand in an update -> Ack | Reject; `errors.Unanswered` is thrown if no answer comes."""

    assignment: Assignment
    update: bytes = field(repr=False)


@dataclass(frozen=True)
class Report:
    """Hand in the scores of an evaluation, or of releases -> Ack | Reject."""

    assignment: Assignment
    scores: Scores | ReleaseScores


@dataclass(frozen=True)
class GiveBack:
    """Give the assignment back -> Ack | Reject."""

    assignment: Assignment
    cause: Cause


@dataclass(frozen=True)
class Keep:
    """Keep half-done work for the next window -> None."""

    work: Work
    progress: Progress


@dataclass(frozen=True)
class Drop:
    """Throw half-done work away, and the report that is kept -> None."""


Action = (
    Enrol
    | Ask
    | Verify
    | Recall
    | HandIn
    | Withhold
    | AskSigned
    | Fetch
    | Held
    | Hold
    | Gather
    | GatherHeld
    | Mark
    | Train
    | Encode
    | Evaluate
    | RecallRuns
    | Compare
    | CheckConditions
    | Used
    | Note
    | RecallReport
    | Protect
    | KeepReport
    | Upload
    | Report
    | GiveBack
    | Keep
    | Drop
    | secagg_turn.Action
)
Checking = Generator[Action, Any, Assignment | Outcome]
Working = Generator[Action, Any, Outcome]


def check_in(device: Participant) -> Checking:
    """Ask for work, whatever the conditions are: an Assignment, or the Outcome if refused.

    What was withheld is given back first. A device that can do no work today does not ask.
    """
    if not device.enrolled:
        yield Enrol()
    if device.owes is not None:
        yield HandIn(device.owes)
    if device.rests is not None:
        return Outcome(Status.NOT_ASKED, device.rests, retry_in_s=device.day_ends_in_s)
    answer: Assignment | Reject = yield Ask(device.check_in)
    if isinstance(answer, Reject) and answer.cause in (Cause.UNKNOWN_DEVICE, Cause.WRONG_SERVER):
        yield Enrol()  # a server that began anew knows nobody, and has another name
        answer = yield Ask(device.check_in)
    if isinstance(answer, Assignment):
        return answer
    if not MEANING[answer.cause].keeps_work:  # the round of half-done work stands no more
        yield Drop()
    return Outcome(Status.REFUSED, answer.cause, retry_in_s=answer.retry_in_s)


class _Ends(Exception):
    """The work is over before anything of it could be sent."""

    def __init__(self, outcome: Outcome):
        super().__init__()
        self.outcome = outcome


def work(device: Participant, assignment: Assignment) -> Working:
    """Fetch, fine-tune, encode and hand in what `check_in` was assigned; give it back if a
    condition is lost or training fails. An evaluation is scored and handed in.

    A round too near the last this device sent an update for is given back: the server should know
    better. What is over a limit of the device's own is withheld. Raises ServerError for a plan that
    cannot be read, BundleError for work that does not fit the device's graphs, and whatever is
    thrown in for an action.
    """
    try:
        return (yield from _work(device, assignment))
    except _Ends as end:
        return end.outcome


def _work(device: Participant, assignment: Assignment) -> Working:
    kind = assignment.kind
    if assignment.rules > RULES:
        reason = f"of text rules {assignment.rules}, and this device follows {RULES}: update it"
        yield from _refused(assignment, Distrusted(Cause.OUTDATED_RULES, reason))
    if kind is Kind.RELEASES:  # those are of no checkpoint but the device's own
        past: History = yield Recall(assignment)
        return (yield from _compare(device, assignment, past))
    terms = yield from _verified(assignment)
    past = yield Recall(assignment)
    apart = device.limits.separation(max(assignment.min_separation, terms.min_separation))
    if kind in CERTIFIED and not separation.may_join(assignment.round, past.last, apart):
        return (yield from _give_back(assignment, Cause.REPORTED_RECENTLY))
    if past.joined:  # it has forgotten its secrets, and makes no others for the same work
        return (yield from _give_back(assignment, Cause.CONDITION_LOST))
    kept: Outgoing | None = yield RecallReport(assignment, terms)
    if kept is not None:
        return (yield from _sent_kept(device, assignment, kept, past))
    is_open = kind is Kind.EVALUATION and terms.aggregation is Aggregation.PLAIN
    if kind is Kind.TRAINING and _is_worn_out(assignment, terms, past):
        return (yield from _give_back(assignment, Cause.PARTICIPATED_ENOUGH))
    if past.again and not is_open:  # what may have left is not there, and none is made in its place
        return (yield from _give_back(assignment, Cause.REPORTED_RECENTLY))
    if kind is Kind.COUNTS:
        return (yield from _count(device, assignment, terms, past))
    # the updates of a day are counted later: one may be of work that was begun before
    today = past.today if kind is Kind.EVALUATION else 0
    asked = Asked(kind, today, terms=terms, epsilon=_epsilon(device, assignment, terms, past))
    yield from _within(device, assignment, asked)
    plan = yield from _plan(device, assignment)
    yield from _agreed(assignment, agreement.why_another_plan(terms, plan))
    yield from _within(device, assignment, Asked(kind, plan=plan))
    checkpoint = yield from _checkpoint(device, assignment)
    if not _fits(device, assignment, plan, checkpoint):
        yield from _give_back(assignment, Cause.TRAINING_FAILED)
        raise BundleError(
            device.where,
            "the work this server assigns does not fit its graphs",
            "install the bundle the server was started with",
        )
    values = sum(array.size for array in checkpoint.weights.values())
    yield from _agreed(assignment, agreement.why_another_dimension(terms, values))
    if assignment.checkpoint != device.signed:
        yield from _within(device, assignment, (yield from _moved(device, kind, checkpoint, terms)))
    order = _Order(assignment, plan, terms)
    does = _evaluate if kind is Kind.EVALUATION else _train
    return (yield from does(device, order, checkpoint, past))


def _is_worn_out(assignment: Assignment, terms: Terms, past: History) -> bool:
    """Whether the device may have been in as many sums of the task as its noise is meant for."""
    if terms.noise is None:
        return False
    before = spent.taken(past.parts, assignment.server, assignment.task_id)
    return before >= terms.noise.participations


def _epsilon(
    device: Participant, assignment: Assignment, terms: Terms, past: History
) -> float | None:
    """What the device will have spent over all tasks once this update has left; None where its
    owner has set no limit to that.
    """
    own = device.limits.own
    if own.epsilon is None or assignment.kind not in CERTIFIED:
        return None
    if not spent.is_added(terms.noise):
        return math.inf
    of = assignment.server, assignment.task, assignment.task_id
    after = spent.with_next(past.parts, Part(*of, (assignment.round,), terms.noise))
    account = spent.total(after, own.delta)
    return None if account is None else account.epsilon


@dataclass(frozen=True)
class _Order:
    """What is asked for, and how what comes of it is added up."""

    assignment: Assignment
    plan: Plan
    terms: Terms


@dataclass(frozen=True)
class _Vector:
    """Small whole numbers that are added up, and what is to be known of them."""

    label: Label
    numbers: NDArray[Any]  # [n]
    largest: int  # that one of them may be


def _train(device: Participant, order: _Order, checkpoint: Checkpoint, past: History) -> Working:
    assignment, plan, terms = order.assignment, order.plan, order.terms
    gathered: Gathered = yield Gather(assignment, plan, device.limits.rows(plan))
    rows, begun = len(gathered.rows), gathered.start is not None
    asked = Asked(
        Kind.TRAINING,
        0 if begun else past.today,
        messages=len(gathered.work.records),
        words=gathered.words,
    )
    yield from _within(device, assignment, asked)
    rng = device.randomness(assignment)
    tuned: FineTuned = yield Train(checkpoint.weights, gathered.rows, plan, rng, gathered.start)
    if tuned.stopped is Cause.TRAINING_FAILED:
        # first, since it tells of what was typed: so much of it a day, whatever is answered
        yield Note(assignment, Status.ABANDONED, tuned.stopped, rows)
        return (yield from _give_back(assignment, tuned.stopped, rows, tuned))
    forbidden: Cause | None = yield CheckConditions()  # an upload needs the conditions too
    if forbidden is Cause.TIMED_OUT:
        yield Drop()
        return (yield from _give_back(assignment, forbidden, rows, tuned))
    if tuned.stopped is not None or forbidden is not None:
        if not device.keeps_work:
            return (yield from _give_back(assignment, Cause.CONDITION_LOST, rows, tuned))
        yield from _keep(gathered.work, tuned)
        cause = forbidden or Cause.CONDITION_LOST
        return (yield from _end(assignment, Status.PAUSED, cause, 0.0, rows, tuned))
    codes: NDArray[Any] = yield Encode(tuned.delta, terms.encoding_at(assignment.round), rng)
    label = _label(assignment, terms, gathered.work.records, rows)
    vector = _Vector(label, codes, terms.encoding.largest)
    return (yield from _added_up(order, vector, past, tuned))


def _added_up(
    order: _Order, vector: _Vector, past: History, tuned: FineTuned | None = None
) -> Working:
    """Hand in numbers as the terms have it."""
    if order.terms.aggregation is Aggregation.SECAGG:
        return (yield from _among_peers(order, vector, tuned))
    report = yield from _kept(order, vector)
    return (yield from _sent(order.assignment, report, past, tuned))


def _label(
    assignment: Assignment, terms: Terms, records: tuple[int, ...], examples: int, scored: str = ""
) -> Label:
    return Label(
        assignment.assignment,
        assignment.round,
        assignment.server,
        assignment.task_id,
        log_wire.agreed(assignment, terms),
        assignment.kind,
        records,
        examples,
        scored,
        exposure.in_short(terms),
        _noise_of(assignment, terms),
    )


def _noise_of(assignment: Assignment, terms: Terms) -> str:
    """The noise of the sum that a report is for: there is none on scores."""
    if terms.noise is None or assignment.kind not in CERTIFIED:
        return ""
    return to_json(terms.noise).decode()


def _kept(order: _Order, vector: _Vector) -> Generator[Action, Any, Outgoing]:
    """The report of a vector, protected and on disk."""
    numbers = vector.numbers, vector.largest
    body: bytes = yield Protect(order.assignment, order.terms, *numbers)
    report = Outgoing(vector.label, body)
    yield KeepReport(report)
    return report


def _sent(
    assignment: Assignment, report: Outgoing, past: History, tuned: FineTuned | None = None
) -> Working:
    """Hand in a report that is kept, and throw it away once it is answered."""
    label = report.label
    if not past.again:
        yield Used(label.records)
    sending = Note(
        assignment,
        Status.SENDING,
        examples=label.examples,
        scored=label.scored,
        seen_by=label.seen_by,
        noise=label.noise,
    )
    yield sending
    answer: Ack | Reject = yield Upload(assignment, report.body)
    if isinstance(answer, Reject) and MEANING[answer.cause].keeps_work:
        # it may have been counted: the ledger goes on saying "sending", and the same is sent again
        return _outcome(replace(sending, cause=answer.cause), answer.retry_in_s, tuned)
    outcome = yield from _answered(sending, answer, tuned)
    yield Drop()  # last: a device that dies before hears once more what became of it
    return outcome


def _sent_kept(
    device: Participant, assignment: Assignment, report: Outgoing, past: History
) -> Working:
    """The same of a report of an earlier turn, if the conditions allow it: nothing is fetched or
    trained again.
    """
    forbidden: Cause | None = yield CheckConditions()
    if forbidden is None:
        return (yield from _sent(assignment, report, past))
    if device.keeps_work and forbidden is not Cause.TIMED_OUT:
        return (yield from _end(assignment, Status.PAUSED, forbidden, 0.0, 0, None))
    yield Drop()
    is_late = forbidden is Cause.TIMED_OUT
    return (yield from _give_back(assignment, forbidden if is_late else Cause.CONDITION_LOST))


def _among_peers(order: _Order, vector: _Vector, tuned: FineTuned | None) -> Working:
    """Hand in a vector that the devices of a round hide together, and stay until its sum has been
    opened. From its first message on the work is done once: nothing of it is kept.
    """
    assignment, label = order.assignment, vector.label
    joined = Note(
        assignment,
        Status.JOINED,
        examples=label.examples,
        seen_by=label.seen_by,
        noise=label.noise,
    )
    yield joined
    yield Drop()
    try:
        ready = yield from secagg_turn.prepare(assignment, order.terms)
        secagg_turn.require_allowed((yield CheckConditions()))  # hours may have passed
        masked, body = secagg_turn.mask(ready, vector.numbers, vector.largest)
    except secagg_turn.Gone as gone:
        return (yield from _gone(assignment, gone, label.examples, tuned))
    yield Used(label.records)
    sending = replace(joined, status=Status.SENDING, scored=label.scored)
    yield sending
    try:
        answer = yield from secagg_turn.patiently(lambda: Upload(assignment, body))
    except secagg_turn.Gone as gone:  # it may have been counted: the ledger says "sending"
        return _outcome(replace(sending, cause=gone.cause), 0.0, tuned)
    outcome = yield from _answered(sending, answer, tuned)
    if outcome.status is Status.COUNTED:
        # who is lost from here on is made good by the others
        with contextlib.suppress(secagg_turn.Gone, Unanswered):
            yield from secagg_turn.reveal(assignment, masked)
    return outcome


def _gone(
    assignment: Assignment, gone: secagg_turn.Gone, examples: int, tuned: FineTuned | None
) -> Working:
    """Out of a round: its server is told, unless it said so itself."""
    note = Note(assignment, Status.ABANDONED, gone.cause, examples, detail=gone.detail)
    yield note  # first: the ledger says so whatever the server answers
    retry_in_s = gone.retry_in_s
    if retry_in_s is None:
        answer: Ack | Reject = yield GiveBack(assignment, gone.cause)
        retry_in_s = answer.retry_in_s
    return _outcome(note, retry_in_s, tuned)


def _evaluate(device: Participant, order: _Order, checkpoint: Checkpoint, past: History) -> Working:
    """Nothing is kept of it when a condition is lost. Scores that may have left are not made again:
    between two of the same weights lies what was typed meanwhile. Where updates are masked, so are
    scores.
    """
    assignment, terms = order.assignment, order.terms
    name = weights.values_hash(checkpoint.weights)
    held: HeldBack = yield GatherHeld(order.plan)
    before = past.today, name in past.scored
    asked = Asked(Kind.EVALUATION, *before, words=held.words, terms=terms)
    yield from _within(device, assignment, asked)
    scored: Scores | None = yield Evaluate(checkpoint.weights, held.messages)
    forbidden: Cause | None = yield CheckConditions()
    if forbidden is Cause.TIMED_OUT:
        return (yield from _give_back(assignment, forbidden))
    if scored is None or forbidden is not None:
        return (yield from _give_back(assignment, Cause.CONDITION_LOST))
    words = scored.targets
    if terms.aggregation is not Aggregation.PLAIN:
        label = _label(assignment, terms, held.records, words, name)
        vector = _Vector(label, scores.to_vector(scored), scores.MOST_LOSS)
        return (yield from _added_up(order, vector, past))
    yield Used(held.records)
    sending = Note(assignment, Status.SENDING, examples=words, scored=name, seen_by=exposure.SERVER)
    yield sending
    answer: Ack | Reject = yield Report(assignment, scored)
    return (yield from _answered(sending, answer))


def _count(device: Participant, assignment: Assignment, terms: Terms, past: History) -> Working:
    """Which words of a public list were typed, once a list whoever asks. That this list has been
    answered, or as many as the owner allows, is told at once, and all that is told: the device goes
    on training.
    """
    assert terms.table is not None
    name, lists = terms.table.entries, len(past.scored)
    asked = Asked(
        Kind.COUNTS,
        lists,
        name in past.scored,
        terms=terms,
        epsilon=_epsilon(device, assignment, terms, past),
    )
    over = limits.why_refused(device.limits, asked)
    if over is not None:
        yield from _refused(assignment, Distrusted(Cause.OVER_LIMIT, str(over)))
    data = yield from _fetch(device, assignment, assignment.checkpoint)
    marked: Marked | Distrusted = yield Mark(terms, data)
    if isinstance(marked, Distrusted):
        yield from _refused(assignment, marked)
        raise AssertionError("what is refused has ended")
    asked = Asked(Kind.COUNTS, messages=len(marked.records))
    yield from _within(device, assignment, asked)
    forbidden: Cause | None = yield CheckConditions()
    if forbidden is not None:
        is_late = forbidden is Cause.TIMED_OUT
        return (yield from _give_back(assignment, forbidden if is_late else Cause.CONDITION_LOST))
    ones = table.at_most(marked.numbers, terms.table.most_ones, device.randomness(assignment))
    label = _label(assignment, terms, marked.records, int(ones.sum()), name)
    order = _Order(assignment, device.plan, terms)
    return (yield from _added_up(order, _Vector(label, ones, table.LARGEST), past))


def _compare(device: Participant, assignment: Assignment, past: History) -> Working:
    """What the release that runs says of messages, and the one before of the very same, which tells
    as much as two evaluations and counts as two. No release is scored twice, but as the one before
    of another: then of messages alone that were not there the first time.
    """
    if past.none_today:
        return (yield from _give_back(assignment, Cause.OVER_LIMIT))
    runs: Runs = yield RecallRuns()
    held: HeldBack = yield GatherHeld(device.plan, past.scored.get(runs.before_manifest, 0))
    if runs.before and not _may_compare(device, past, runs, held):
        runs = Runs(runs.release, runs.manifest)
        held = yield GatherHeld(device.plan)
    if not _may_compare(device, past, runs, held):
        return (yield from _give_back(assignment, Cause.OVER_LIMIT))
    scores: ReleaseScores | None = yield Compare(runs, held.messages)
    forbidden: Cause | None = yield CheckConditions()
    if forbidden is Cause.TIMED_OUT:
        return (yield from _give_back(assignment, forbidden))
    if scores is None or forbidden is not None:
        return (yield from _give_back(assignment, Cause.CONDITION_LOST))
    for _ in _names(runs):  # each score is a use
        yield Used(held.records)
    names, words = " ".join(_names(runs)), scores.scores.targets
    sending = Note(
        assignment,
        Status.SENDING,
        examples=words,
        scored=names,
        up_to=max(held.records),
        seen_by=exposure.SERVER,
    )
    yield sending
    answer: Ack | Reject = yield Report(assignment, scores)
    return (yield from _answered(sending, answer))


def _may_compare(device: Participant, past: History, runs: Runs, held: HeldBack) -> bool:
    asked = Asked(
        Kind.RELEASES,
        past.today + len(_names(runs)) - 1,
        scored_before=runs.manifest in past.scored,
        words=held.words,
    )
    return limits.why_refused(device.limits, asked) is None


def _names(runs: Runs) -> list[str]:
    return [name for name in (runs.manifest, runs.before_manifest) if name]


def _verified(assignment: Assignment) -> Generator[Action, Any, Terms]:
    """Ends the work if its checkpoint is not to be trusted: nothing of it is fetched."""
    terms: Terms | Distrusted = yield Verify(assignment)
    if isinstance(terms, Terms):
        return terms
    yield from _refused(assignment, terms)
    raise AssertionError("what is refused has ended")


def _agreed(assignment: Assignment, reason: str) -> Generator[Action, Any, None]:
    """Ends the work if its terms do not agree with the rest of it, for this reason."""
    if reason:
        yield from _refused(assignment, Distrusted(Cause.UNCERTIFIED, reason))


def _refused(assignment: Assignment, why: Distrusted) -> Generator[Action, Any, None]:
    note = Note(assignment, Status.ABANDONED, why.cause, detail=why.reason)
    yield note  # first: the ledger says so whatever the server answers
    answer: Ack | Reject = yield GiveBack(assignment, why.cause)
    raise _Ends(_outcome(note, answer.retry_in_s, None))


def _within(
    device: Participant, assignment: Assignment, asked: Asked
) -> Generator[Action, Any, None]:
    """Ends the work if it is over a limit."""
    over = limits.why_refused(device.limits, asked)
    if over is not None:
        yield from _withhold(device, assignment, over)


def _withhold(
    device: Participant, assignment: Assignment, over: Over
) -> Generator[Action, Any, None]:
    yield Withhold(assignment)
    cause, until = Cause.OVER_LIMIT, device.day_ends_in_s
    yield Note(assignment, Status.ABANDONED, cause, detail=str(over))
    ended = Outcome(Status.ABANDONED, cause, assignment.round, until, kind=assignment.kind)
    raise _Ends(ended)


def _moved(
    device: Participant, kind: Kind, checkpoint: Checkpoint, terms: Terms
) -> Generator[Action, Any, Asked]:
    """How far weights are from the bundle's, and may be."""
    signed: Signed = yield AskSigned()
    values = sum(array.size for array in signed.weights.values())
    rounds = limits.rounds_since(checkpoint.round - signed.round, signed.age_s)
    moved = weights.norm(weights.subtract(checkpoint.weights, signed.weights))
    noise = terms.noise_norm / terms.most
    reach = device.limits.reach(rounds, values, weights.norm(signed.weights), noise)
    return Asked(kind, moved=moved, reach=reach + signed.rounding)


def _fetch(
    device: Participant, assignment: Assignment, sha256: str
) -> Generator[Action, Any, bytes]:
    """A blob, unless a condition is lost: half-done work goes on waiting, if there is any."""
    forbidden: Cause | None = yield CheckConditions()
    if forbidden is Cause.TIMED_OUT:
        raise _Ends((yield from _give_back(assignment, forbidden)))
    if forbidden is not None:
        if device.keeps_work and assignment.kind is Kind.TRAINING:
            paused = yield from _end(assignment, Status.PAUSED, forbidden, 0.0, 0, None)
            raise _Ends(paused)
        raise _Ends((yield from _give_back(assignment, Cause.CONDITION_LOST)))
    data: bytes = yield Fetch(assignment, sha256)
    return data


def _plan(device: Participant, assignment: Assignment) -> Generator[Action, Any, Plan]:
    """The assigned plan. One that cannot be read, or that no device can work by, is given back."""
    data = yield from _fetch(device, assignment, assignment.plan)
    try:
        return from_json(Plan, data, "plan")
    except ConfigError as error:
        yield from _give_back(assignment, Cause.TRAINING_FAILED)
        raise ServerError(
            "plan", f"cannot be read ({error})", "start the server with a plan of this version"
        ) from None


def _checkpoint(device: Participant, assignment: Assignment) -> Generator[Action, Any, Checkpoint]:
    """The assigned checkpoint: the one held, made of it and a difference, or fetched whole. One
    that cannot be read, or has values that are not finite, is over every limit.
    """
    read = device.reading
    held: bytes = yield Held()
    if read.digest(held) == assignment.checkpoint:
        return read.checkpoint(held, "assigned checkpoint")
    data = None
    if assignment.difference is not None:
        changes = yield from _fetch(device, assignment, assignment.difference)
        with contextlib.suppress(CheckpointError):  # of another checkpoint than it holds by now
            data = read.apply(held, changes)
    if data is None or read.digest(data) != assignment.checkpoint:
        data = yield from _fetch(device, assignment, assignment.checkpoint)
    try:
        checkpoint = read.checkpoint(data, "assigned checkpoint")
    except CheckpointError as error:
        over = Over("weights", "those of a checkpoint", str(error))
    else:
        yield Hold(assignment.checkpoint, data)
        return checkpoint
    yield from _withhold(device, assignment, over)
    raise AssertionError("what is withheld has ended")


def _keep(work: Work, tuned: FineTuned) -> Generator[Action, Any, None]:
    if tuned.progress is not None:
        yield Keep(work, tuned.progress)


def _give_back(
    assignment: Assignment, cause: Cause, rows: int = 0, tuned: FineTuned | None = None
) -> Working:
    answer: Ack | Reject = yield GiveBack(assignment, cause)
    return (yield from _end(assignment, Status.ABANDONED, cause, answer.retry_in_s, rows, tuned))


def _answered(sending: Note, answer: Ack | Reject, tuned: FineTuned | None = None) -> Working:
    if isinstance(answer, Ack) and answer.counted:
        status, cause = Status.COUNTED, None
    else:
        status = Status.NOT_COUNTED
        cause = answer.cause if isinstance(answer, Reject) else Cause.ROUND_CLOSED
    noted = replace(sending, status=status, cause=cause)
    return (yield from _noted(noted, answer.retry_in_s, tuned))


def _end(
    assignment: Assignment,
    status: Status,
    cause: Cause | None,
    retry_in_s: float,
    examples: int,
    tuned: FineTuned | None,
) -> Working:
    noted = Note(assignment, status, cause, examples)
    return (yield from _noted(noted, retry_in_s, tuned))


def _noted(note: Note, retry_in_s: float, tuned: FineTuned | None) -> Working:
    yield note
    return _outcome(note, retry_in_s, tuned)


def _outcome(note: Note, retry_in_s: float, tuned: FineTuned | None) -> Outcome:
    status, cause, examples, assignment = note.status, note.cause, note.examples, note.assignment
    return Outcome(
        status,
        cause,
        assignment.round,
        retry_in_s,
        examples,
        batches=tuned.batches if tuned else 0,
        loss_before=_finite(tuned.loss_before) if tuned else None,
        loss_after=_finite(tuned.loss_after) if tuned else None,
        kind=assignment.kind,
    )


def _fits(device: Participant, assignment: Assignment, plan: Plan, checkpoint: Checkpoint) -> bool:
    """Whether the assigned work can be done with the installed graph and encoded as asked."""
    shapes = weights.shapes_hash(checkpoint.weights)
    fixed = device.plan.batch_size, device.plan.length
    return shapes == assignment.shapes == device.shapes and (plan.batch_size, plan.length) == fixed


def _finite(loss: float) -> float | None:
    return loss if np.isfinite(loss) else None
