"""Participation: one turn of a device with the server, from check-in to counted update, and the
days of several devices in one process.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import numpy as np

from device_runtime import (
    calls,
    difference,
    examples,
    quantize,
    scoring,
    separation,
    text,
    unfinished,
    weights,
)
from device_runtime.bundle import CHECKPOINT, Bundle, runtime_version
from device_runtime.causes import MEANING, Cause
from device_runtime.config import from_json
from device_runtime.errors import BundleError, CheckpointError, ConfigError, ServerError
from device_runtime.finetune import FineTuned, Progress, finetune
from device_runtime.home import UNFINISHED, Contribution, Home
from device_runtime.transport import Interrupted, Meter, Send, Unreachable, persistent
from device_runtime.typing_log import Record, TypingLog
from device_runtime.unfinished import Unfinished, Work
from device_runtime.weights import Checkpoint, Weights
from device_runtime.wire import (
    Ack,
    Assignment,
    CheckIn,
    Enrolled,
    Kind,
    Plan,
    Reject,
    RoundReport,
    forbidden_by,
)

DAY_S = 86_400.0
BATCH_S = 60.0  # virtual seconds between two looks at the conditions of a simulated device
OPEN = ("selecting", "reporting")  # phases of a round that still waits for someone


Trainer = Callable[..., FineTuned]  # the signature of `finetune.finetune`


class Status(StrEnum):
    """How a turn ended."""

    COUNTED = "counted"
    REFUSED = "refused"  # no work at check-in
    ABANDONED = "abandoned"  # the device gave its assignment back
    PAUSED = "paused"  # a condition was lost: the work waits on the device for its next window
    NOT_COUNTED = "not_counted"  # the server did not take the update


@dataclass(frozen=True)
class Outcome:
    """What came of one turn. Bytes are those of bodies, as sent and received; seconds are of the
    clock the turn was given.
    """

    status: Status
    cause: Cause | None = None  # None when it counted
    round: int | None = None  # None when refused
    retry_in_s: float = 0.0
    examples: int = 0  # rows trained on: the weight of the update
    batches: int = 0
    loss_before: float | None = None  # nats a target, on those rows
    loss_after: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    kind: Kind = Kind.TRAINING  # of an evaluation `examples` are words scored


class Turn:
    """One device's turn: check in, then do the work it was assigned. `now` is its clock; conditions
    are read at its times.

    `may_go_on` is asked with the conditions before every batch: a process that must end says no.
    """

    def __init__(
        self,
        home: Home,
        send: Send,
        now: Callable[[], float],
        train: Trainer = finetune,
        sleep: Callable[[float], None] = time.sleep,
        may_go_on: Callable[[], bool] = lambda: True,
    ):
        self.home = home
        self._now = now
        self._train = train
        self._may_go_on = may_go_on
        self._meter = Meter(send)
        self._sleep = sleep
        self._began = now()

    def check_in(self) -> Outcome | None:
        """Report the conditions, whatever they are, and ask for work: the outcome if refused, None
        if there is work to do.
        """
        bundle = self.home.bundle()
        with self.home.typing_log() as log:
            log.expire(self._began)
            waiting = log.count(usable=True)
        held = self.home.held_checkpoint() or bundle.manifest.files[CHECKPOINT].sha256
        settings, manifest = self.home.config, bundle.manifest
        message = CheckIn(
            self.home.conditions(self._began),
            waiting,
            manifest.tokenizer,
            holds=held,
            population=settings.population,
            runtime=runtime_version(),
            release=manifest.release,
            device_class=settings.device_class,
        )
        name = self.home.name or self._enrol().device
        answer = calls.check_in(self._line(name), message)
        if (
            isinstance(answer, Reject) and answer.cause is Cause.UNKNOWN_DEVICE
        ):  # a server that began anew knows nobody
            name = self._enrol().device
            answer = calls.check_in(self._line(name), message)
        if isinstance(answer, Reject):
            if not MEANING[
                answer.cause
            ].keeps_work:  # the round that half-done work was for stands no more
                self.home.drop(UNFINISHED)
            return self._outcome(Status.REFUSED, answer.cause, answer.retry_in_s)
        self._assignment, self._send = answer, self._line(name, answer)
        return None

    def work(self) -> Outcome:
        """Fetch, fine-tune, encode and hand in what `check_in` was assigned; give it back if a
        condition is lost or training fails.

        An evaluation is scored and handed in. A round too near the last this device sent an update
        for is given back: the server should know better.
        """
        assignment, bundle = self._assignment, self.home.bundle()
        last = (
            self.home.last_sent(assignment.task, but=assignment.assignment)
            if assignment.kind is Kind.TRAINING
            else None
        )
        if not separation.may_join(assignment.round, last, max(1, assignment.min_separation)):
            return self._give_back(Cause.REPORTED_RECENTLY)
        plan, checkpoint = self._plan(assignment), self._checkpoint(assignment, bundle)
        if not _fits(assignment, plan, checkpoint, bundle):
            self._give_back(Cause.TRAINING_FAILED)
            raise BundleError(
                bundle.path,
                "the work this server assigns does not fit its graphs",
                "install the bundle the server was started with",
            )
        if assignment.kind is Kind.EVALUATION:
            return self._score(bundle, plan, checkpoint)
        with self.home.typing_log() as log:
            work, rows, start = self._resumed(log, bundle.vocabulary, plan) or self._begun(
                log, bundle.vocabulary, plan
            )
        if not len(rows):  # what is waiting holds no token
            return self._give_back(Cause.TRAINING_FAILED)
        rng = self._rng()
        tuned = self._train(
            bundle.train_graph, checkpoint.weights, rows, plan, rng, self._may_train, start
        )
        if tuned.stopped is Cause.TRAINING_FAILED:
            return self._give_back(tuned.stopped, len(rows), tuned)
        if tuned.stopped is not None or not self._may_train():  # an upload needs the conditions too
            return self._interrupted(work, len(rows), tuned)
        update = encode(tuned.delta, assignment, plan, len(rows), rng)
        with self.home.typing_log() as log:
            log.mark_used(work.records)
        self._note(
            "sending", "", len(rows)
        )  # before the update leaves: the ledger never says less than what left
        try:
            answer = calls.upload(self._send, assignment.assignment, update)
        except (Unreachable, Interrupted):
            self._keep(work, tuned)
            raise
        self.home.drop(UNFINISHED)
        if isinstance(answer, Ack) and answer.counted:
            return self._outcome(Status.COUNTED, None, answer.retry_in_s, len(rows), tuned)
        cause = answer.cause if isinstance(answer, Reject) else Cause.ROUND_CLOSED
        return self._outcome(Status.NOT_COUNTED, cause, answer.retry_in_s, len(rows), tuned)

    def _score(self, bundle: Bundle, plan: Plan, checkpoint: Checkpoint) -> Outcome:
        """Score the assigned checkpoint on the newest messages held back from training. Nothing is
        kept of it when a condition is lost.
        """
        with self.home.typing_log() as log:
            held = scoring.held_back(log.records(scoring.ONE_IN * plan.max_rows), log.count())[
                -plan.max_rows :
            ]
        messages = [
            bundle.vocabulary.ids(text.tokenise(record.text))[: plan.length] for record in held
        ]
        scores = scoring.score(bundle.train_graph, checkpoint.weights, messages, self._may_train)
        if scores is None:
            return self._give_back(Cause.CONDITION_LOST)
        if not scores.targets:
            return self._give_back(Cause.TOO_FEW_EXAMPLES)
        self._note("sending", "", scores.targets)
        answer = calls.report_scores(self._send, self._assignment.assignment, scores)
        counted = isinstance(answer, Ack) and answer.counted
        cause = (
            None if counted else answer.cause if isinstance(answer, Reject) else Cause.ROUND_CLOSED
        )
        return self._outcome(
            Status.COUNTED if counted else Status.NOT_COUNTED,
            cause,
            answer.retry_in_s,
            scores.targets,
        )

    def _begun(
        self, log: TypingLog, vocabulary: text.Vocabulary, plan: Plan
    ) -> tuple[Work, np.ndarray, Progress | None]:
        """New work on the newest messages that may still be used."""
        self.home.drop(UNFINISHED)
        messages = scoring.trained_on(log.records(2 * plan.max_rows, usable=True), log.count())
        used, rows = rows_of(
            messages[-plan.max_rows :], vocabulary, plan
        )  # a message fills at least one row
        until = self._began + self._assignment.deadline_s
        return (
            Work(self._assignment.assignment, self._assignment.round, until, used, _hash(rows)),
            rows,
            None,
        )

    def _resumed(
        self, log: TypingLog, vocabulary: text.Vocabulary, plan: Plan
    ) -> tuple[Work, np.ndarray, Progress] | None:
        """The half-done work of this very assignment, if all its messages are still there; else
        None.
        """
        data = self.home.kept(UNFINISHED)
        found = None if data is None else unfinished.unseal(data, log)
        if found is None or found.work.assignment != self._assignment.assignment:
            return None
        _, rows = rows_of(log.records_of(found.work.records), vocabulary, plan)
        return (found.work, rows, found.progress) if _hash(rows) == found.work.rows else None

    def _interrupted(self, work: Work, rows: int, tuned: FineTuned) -> Outcome:
        """A condition was lost: the work is kept for the next window, or given back by a device
        that keeps none.
        """
        if not self.home.config.keeps_work:
            return self._give_back(Cause.CONDITION_LOST, rows, tuned)
        self._keep(work, tuned)
        cause = forbidden_by(self.home.conditions(self._now())) or Cause.CONDITION_LOST
        return self._outcome(Status.PAUSED, cause, 0.0, rows, tuned)

    def _keep(self, work: Work, tuned: FineTuned) -> None:
        if tuned.progress is not None:
            with self.home.typing_log() as log:
                self.home.keep(UNFINISHED, unfinished.seal(Unfinished(work, tuned.progress), log))

    def _rng(self) -> np.random.Generator:
        """The randomness of this assignment: the same whenever the work is done again, and nobody
        else's to foretell.
        """
        if self.home.config.seed is not None:
            return np.random.default_rng([self.home.config.seed, self._assignment.round])
        secret = weights.digest(
            self.home.key.private_bytes_raw() + self._assignment.assignment.encode()
        )
        return np.random.default_rng(int(secret, 16))

    def _may_train(self) -> bool:
        return self._may_go_on() and forbidden_by(self.home.conditions(self._now())) is None

    def _enrol(self) -> Enrolled:
        enrolled = calls.enrol(persistent(self._meter, sleep=self._sleep), self.home.key)
        self.home.keep_name(enrolled.device)
        return enrolled

    def _line(self, name: str, about: Assignment | None = None) -> Send:
        """The way to the server, signed; `about` an assignment, for its task and round."""
        named = ("", 0) if about is None else (about.task, about.round)
        return persistent(calls.signed(self._meter, self.home.key, name, *named), sleep=self._sleep)

    def _plan(self, assignment: Assignment) -> Plan:
        try:
            return from_json(Plan, calls.fetch(self._send, assignment.plan), "plan")
        except ConfigError as error:
            raise ServerError(
                "plan", f"cannot be read ({error})", "start the server with a plan of this version"
            ) from None

    def _checkpoint(self, assignment: Assignment, bundle: Bundle) -> Checkpoint:
        """The assigned checkpoint: kept, in the bundle, made of the one it holds and a difference,
        or fetched whole.
        """
        held = self.home.checkpoint() or bundle.content[CHECKPOINT]
        if weights.digest(held) == assignment.checkpoint:
            return weights.from_bytes(held, "assigned checkpoint")
        data = None
        if assignment.difference is not None:
            with contextlib.suppress(CheckpointError):  # of another checkpoint than it holds by now
                data = difference.apply(held, calls.fetch(self._send, assignment.difference))
        if data is None or weights.digest(data) != assignment.checkpoint:
            data = calls.fetch(self._send, assignment.checkpoint)
        self.home.keep_checkpoint(assignment.checkpoint, data)
        return weights.from_bytes(data, "assigned checkpoint")

    def _give_back(self, cause: Cause, rows: int = 0, tuned: FineTuned | None = None) -> Outcome:
        answer = calls.abandon(self._send, self._assignment.assignment, cause)
        return self._outcome(Status.ABANDONED, cause, answer.retry_in_s, rows, tuned)

    def _outcome(
        self,
        status: Status,
        cause: Cause | None,
        retry_in_s: float,
        rows: int = 0,
        tuned: FineTuned | None = None,
    ) -> Outcome:
        if status is not Status.REFUSED:
            self._note(status, cause or "", rows)
        return Outcome(
            status,
            cause,
            None if status is Status.REFUSED else self._assignment.round,
            retry_in_s,
            rows,
            tuned.batches if tuned else 0,
            _finite(tuned.loss_before) if tuned else None,
            _finite(tuned.loss_after) if tuned else None,
            self._meter.up,
            self._meter.down,
            self._now() - self._began,
            Kind.TRAINING if status is Status.REFUSED else self._assignment.kind,
        )

    def _note(self, outcome: str, cause: str, rows: int) -> None:
        work, meter = self._assignment, self._meter
        line = Contribution(
            work.round,
            self._began,
            outcome,
            cause,
            rows,
            meter.up,
            meter.down,
            work.task,
            work.kind.value,
            work.assignment,
        )
        self.home.note(line)


def take_turn(
    home: Home,
    send: Send,
    now: Callable[[], float],
    train: Trainer = finetune,
    sleep: Callable[[float], None] = time.sleep,
) -> Outcome:
    """One whole turn. Raises ServerError, BundleError or TypingLogError when it cannot be taken."""
    turn = Turn(home, send, now, train, sleep)
    return turn.check_in() or turn.work()


def run(
    homes: Sequence[Home],
    send: Send,
    rounds: int,
    on_outcome: Callable[[Home, Outcome], None] = lambda home, outcome: None,
    train: Trainer = finetune,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Turns of several devices in one process until `rounds` rounds were seen, or the server has
    none left. The number of rounds seen.

    In each round every device checks in before the first one works: a round does not end while one
    of them still waits for its turn. A simulated device lives through one night of its trace a
    round; between two rounds all wait until the server's newest round is another.
    """
    seen = 0
    while seen < rounds:
        first, newest = _first_and_newest(send, sleep)
        outcomes, working = [], []
        for home in homes:
            turn = Turn(home, send, clock(home, DAY_S * (newest.round - first.round)), train, sleep)
            refused = turn.check_in()
            if refused is None:
                working.append(turn)
            else:
                outcomes.append(refused)
                on_outcome(home, refused)
        for turn in working:
            outcomes.append(turn.work())
            on_outcome(turn.home, outcomes[-1])
        if any(outcome.cause is Cause.NO_ROUND for outcome in outcomes):
            break
        seen += 1
        if seen < rounds:
            retry_s = min(
                (outcome.retry_in_s for outcome in outcomes if outcome.retry_in_s > 0), default=1.0
            )
            _wait(send, newest, retry_s, sleep)
    return seen


def rows_of(
    records: Sequence[Record], vocabulary: text.Vocabulary, plan: Plan
) -> tuple[tuple[int, ...], np.ndarray]:
    """The newest rows of messages, at most `plan.max_rows`: int32 [rows, length + 1], and the
    numbers of the messages they come from.
    """
    ids = [vocabulary.ids(text.tokenise(record.text)) for record in records]
    each = [
        (record.id, examples.rows([own], plan.length))
        for record, own in zip(records, ids, strict=True)
        if own
    ]
    first, count = len(each), 0
    while first > 0 and count < plan.max_rows:
        first -= 1
        count += len(each[first][1])
    chosen = each[first:]
    rows = np.concatenate([examples.rows([], plan.length), *(own for _, own in chosen)])
    return tuple(number for number, _ in chosen), rows[-plan.max_rows :]


def encode(
    delta: Weights, assignment: Assignment, plan: Plan, rows: int, rng: np.random.Generator
) -> bytes:
    """The update of an assignment: the delta clipped, rotated and quantized as its round asks, with
    the rows it was trained on as its weight.
    """
    vector = weights.flatten(quantize.clip(delta, plan.clipping_norm))
    return quantize.encode(
        vector, assignment.round, assignment.rotation_seed, assignment.shapes, plan.bits, rows, rng
    )


def ticking(start: float, step_s: float = BATCH_S) -> Callable[[], float]:
    """A clock that shows `start` and goes on by `step_s` each time it is read."""
    return partial(next, itertools.count(start, step_s))


def clock(home: Home, night: float = 0.0) -> Callable[[], float]:
    """The clock a device lives by: the real one, or that of its trace from `night` on, in
    seconds.
    """
    return ticking(night) if home.simulated else time.time


def _hash(rows: np.ndarray) -> str:
    return weights.digest(rows.tobytes())


def _finite(loss: float) -> float | None:
    return loss if np.isfinite(loss) else None


def _first_and_newest(
    send: Send, sleep: Callable[[float], None]
) -> tuple[RoundReport, RoundReport]:
    reports = calls.rounds(persistent(send, sleep=sleep)).rounds
    if not reports:
        raise ServerError(
            "GET /v1/rounds",
            "expected at least one round, found none",
            "start the server with a task",
        )
    return reports[0], reports[-1]


def _wait(send: Send, seen: RoundReport, retry_s: float, sleep: Callable[[float], None]) -> None:
    """Until the server's newest round is another than `seen`, or closed."""
    newest = seen
    while newest.round == seen.round and newest.phase in OPEN:
        sleep(retry_s)
        _, newest = _first_and_newest(send, sleep)


def _fits(assignment: Assignment, plan: Plan, checkpoint: Checkpoint, bundle: Bundle) -> bool:
    """Whether the assigned work can be done with the installed graph and encoded as asked."""
    shapes = weights.shapes_hash(checkpoint.weights)
    return (
        shapes == assignment.shapes == bundle.manifest.shapes
        and (plan.batch_size, plan.length) == (bundle.plan.batch_size, bundle.plan.length)
        and 1 <= plan.bits <= 16
        and min(plan.epochs, plan.max_rows, plan.learning_rate, plan.clipping_norm) > 0
    )
