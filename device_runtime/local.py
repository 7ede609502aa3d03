"""Local: what a turn asks of the device itself, done with its home: no request leaves here.

`drive.py` does the rest of a turn's actions over a network, a simulated fleet as values: both do
these alike.
"""

import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from device_runtime import (
    agreement,
    chain,
    counts,
    encoding,
    examples,
    limits,
    log_wire,
    outgoing,
    patch,
    protection,
    scoring,
    spent,
    text,
    unfinished,
    weights,
)
from device_runtime.bundle import CHECKPOINT, Bundle
from device_runtime.causes import Cause
from device_runtime.errors import ConfigError, ServerError
from device_runtime.finetune import finetune
from device_runtime.home import (
    OUTGOING,
    UNFINISHED,
    Contribution,
    Home,
    history,
)
from device_runtime.limits import Limits
from device_runtime.log_wire import Believed, Fork
from device_runtime.masking import Random
from device_runtime.secagg_turn import Identify, Own
from device_runtime.terms import Aggregation, Terms
from device_runtime.turn import (
    Action,
    AskSigned,
    CheckConditions,
    Compare,
    Distrusted,
    Drop,
    Encode,
    Evaluate,
    Gather,
    Gathered,
    GatherHeld,
    Held,
    HeldBack,
    Hold,
    Keep,
    KeepReport,
    Mark,
    Marked,
    Note,
    Outgoing,
    Protect,
    Recall,
    RecallReport,
    RecallRuns,
    Runs,
    Signed,
    Train,
    Trainer,
    Used,
    Verify,
    Withhold,
    Work,
)
from device_runtime.typing_log import HELD_ONE_IN, Record, TypingLog
from device_runtime.unfinished import Unfinished
from device_runtime.wire import (
    MOST_WORDS,
    Assignment,
    Plan,
    ReleaseScores,
    Scores,
    forbidden_by,
)

BATCH_S = 60.0  # what a batch takes on the clock of a simulated device


class Counted(Protocol):
    """Bytes of bodies so far."""

    up: int
    down: int


@dataclass(frozen=True)
class DeviceClock:
    """Seconds, and who makes them pass while a device trains: nobody, on a real one."""

    now: Callable[[], float] = time.time
    worked: Callable[[], None] = lambda: None  # told before each batch is begun
    waited: Callable[[float], None] = lambda seconds: None  # told what it has slept for others
    # seconds since 1970 that requests are dated by: a simulated device asks a real server
    dated: Callable[[], float] = time.time


def simulated(start: float = 0.0, batch_s: float = BATCH_S) -> DeviceClock:
    """A clock that stands at `start`, and moves on by `batch_s` for each batch, and by what the
    device waits for others.

    >>> clock = simulated(5.0, batch_s=60.0)
    >>> clock.worked()
    >>> clock.now(), clock.now()
    (65.0, 65.0)
    """
    at = [start]

    def worked() -> None:
        at[0] += batch_s

    def waited(seconds: float) -> None:
        at[0] += seconds

    return DeviceClock(lambda: at[0], worked, waited)


def clock_of(home: Home, night: float = 0.0) -> DeviceClock:
    """The clock a device lives by: the real one, or that of its trace from `night` on, in
    seconds.
    """
    return simulated(night) if home.simulated else DeviceClock()


class Local:
    """One turn's part that is the device's own: its home, its clock and what was shown to it.

    `home` answers as `Home` does; `meter` counts the bytes that leave and come. `may_go_on` is
    asked with the conditions before every batch.
    """

    def __init__(
        self,
        home: Any,
        clock: DeviceClock,
        meter: Counted,
        train: Trainer = finetune,
        may_go_on: Callable[[], bool] = lambda: True,
    ):
        self.home, self.clock, self.meter = home, clock, meter
        self._train, self._may_go_on = train, may_go_on
        self.began = clock.now()
        self.until = math.inf  # seconds of the clock: after it nobody waits for the work
        self.entry: Believed | None = None  # where what it agrees to stands in its server's log

    def do(self, action: Action, bundle: Bundle) -> Any:
        """Do an action that asks nobody else. Raises NotImplementedError for any other."""
        match action:
            case Verify(assignment):
                return self._verified(assignment, bundle)
            case Recall(assignment):
                return history(self.home.contributions(), assignment, self.began)
            case Withhold(assignment):
                return self.home.withhold(assignment, self.began)
            case AskSigned():
                age = self.home.age_of(bundle.manifest.files[CHECKPOINT].sha256, self.began)
                made_by = bundle.manifest.lineage.round
                return Signed(bundle.weights, made_by, age, rounding(bundle))
            case Held():
                return self.home.checkpoint() or bundle.content.get(CHECKPOINT, b"")
            case Hold(sha256, data):
                return self.home.keep_checkpoint(sha256, data)
            case Gather(assignment, plan, most):
                return gather(self.home, bundle, assignment, plan, most, self.until)
            case GatherHeld(plan, after):
                return gather_held(self.home, bundle, plan, after)
            case Mark(terms, data):
                return mark(self.home, terms, data)
            case Train():
                return self._train(bundle.train_graph, action, self._may_train)
            case Encode(delta, by, rng):
                return encoding.encode(delta, by, rng)
            case Evaluate(values, messages):
                may_score = self._each(bundle.plan.batch_size)
                return scoring.score(bundle.train_graph, values, messages, may_score)
            case RecallRuns():
                return runs(bundle, self.home.before(bundle))
            case Compare(running, messages):
                before = self.home.before(bundle) if running.before else None
                if runs(bundle, before) != running:
                    return None  # another bundle has been installed meanwhile
                return compare(bundle, before, messages, self._each(bundle.plan.batch_size))
            case CheckConditions():
                return self.forbidden()
            case Used(records):
                with self.home.typing_log() as log:
                    return log.mark_used(records)
            case Note():
                return self._note(action)
            case RecallReport(assignment, terms):
                return kept_report(self.home, assignment, terms)
            case Protect(assignment, terms, numbers, largest):
                return self._protected(assignment, terms, numbers, largest)
            case KeepReport(report):
                with self.home.typing_log() as log:
                    return self.home.keep(OUTGOING, outgoing.seal(report, log))
            case Identify(assignment):
                return Own(self.home.key, self._secrets(assignment))
            case Keep(work, progress):
                with self.home.typing_log() as log:
                    sealed = unfinished.seal(Unfinished(work, progress), log)
                    return self.home.keep(UNFINISHED, sealed)
            case Drop():
                return self.home.drop(UNFINISHED, OUTGOING)
        raise NotImplementedError(type(action).__name__)

    def allowed(self) -> bool:
        """Whether work may go on now."""
        return self.forbidden() is None

    def forbidden(self) -> Cause | None:
        """What forbids work now, if anything does."""
        if self.clock.now() >= self.until:
            return Cause.TIMED_OUT
        if (cause := forbidden_by(self.home.conditions(self.clock.now()))) is not None:
            return cause
        return None if self._may_go_on() else Cause.CONDITION_LOST

    def randomness(self, assignment: Assignment) -> np.random.Generator:
        """The randomness of an assignment: the same whenever the work is done again, and nobody
        else's to foretell.
        """
        if self.home.config.seed is not None:
            return np.random.default_rng([self.home.config.seed, assignment.round])
        secret = self.home.key.private_bytes_raw() + assignment.assignment.encode()
        return np.random.default_rng(int(weights.digest(secret), 16))

    def _verified(self, assignment: Assignment, bundle: Bundle) -> Terms | Distrusted:
        """The work's terms, or why it is not trusted. Who signed the checkpoint is remembered
        before it is fetched; what contradicts that is kept as evidence.
        """
        settings, now = self.home.config, self.clock.dated()
        by = chain.Verifier(frozenset(settings.trusted), settings.population, now)
        untrusted = chain.why_untrusted(assignment, by, self.home.seen().chains)
        certificate, link = assignment.certificate, assignment.link
        if certificate is not None and link is not None:
            shown = chain.Chain(certificate, link)
            if untrusted is None:
                self.home.see(shown)
            elif untrusted.contradicts is not None:
                self.home.accuse(chain.Contradiction(untrusted.contradicts, shown, now))
        if untrusted is not None:
            return Distrusted(Cause.UNCERTIFIED, untrusted.reason)
        terms = chain.terms_of(assignment)
        distrusted = _why_exposed(assignment, terms, bundle) or self._believed(assignment, now)
        if distrusted is None:
            self.home.keep_terms(assignment.task, terms)
        return distrusted or terms

    def _believed(self, assignment: Assignment, now: float) -> Distrusted | None:
        """Why the log of the work's server is not believed. What it was shown of it is remembered
        before anything is fetched; what contradicts that is kept as evidence.
        """
        certificate = chain.certificate_of(assignment)
        answer = log_wire.believe(assignment, certificate, self.home.logs())
        if isinstance(answer, Believed):
            self.home.see_log(answer.seen)
            self.entry = answer
            return None
        if answer.before is not None and answer.after is not None:
            self.home.accuse_log(Fork(answer.before, answer.after, now))
        cause = Cause.INCONSISTENT if certificate.log_key else Cause.UNCERTIFIED
        return Distrusted(cause, answer.reason)

    def _protected(
        self, assignment: Assignment, terms: Terms, numbers: NDArray[Any], largest: int
    ) -> bytes:
        about = protection.addressed(assignment, terms)
        if isinstance(about, str):
            raise ServerError("seal key", about, "tell its operator")  # it was right a moment ago
        if terms.aggregation is Aggregation.PLAIN:
            return protection.open_report(numbers, largest, about)
        # of a simulated device other numbers have another seed, though the assignment is the same
        random = self._secrets(assignment, weights.digest(np.ascontiguousarray(numbers).tobytes()))
        return protection.protected(numbers, largest, about, self.home.key, random)

    def _may_train(self) -> bool:
        """Asked before each batch."""
        self.clock.worked()
        return self.allowed()

    def _each(self, messages: int) -> Callable[[], bool]:
        """Asked before each message: so many are a batch on the clock."""
        asked = itertools.count()

        def may_score() -> bool:
            return self._may_train() if next(asked) % messages == 0 else self.allowed()

        return may_score

    def _secrets(self, assignment: Assignment, of: str = "") -> Random:
        """Where secrets of an assignment, and of something in it, come from: the system, or a
        simulated device's seed.
        """
        seed = self.home.config.seed
        if seed is None or not self.home.simulated:
            return os.urandom
        return protection.repeating(f"{seed} {assignment.assignment} {of}".encode())

    def _note(self, note: Note) -> None:
        about, meter = note.assignment, self.meter
        line = Contribution(
            about.round,
            self.began,
            note.status,
            note.cause or "",
            note.examples,
            meter.up,
            meter.down,
            about.task,
            about.kind.value,
            about.assignment,
            about.server,
            about.task_id,
            note.scored,
            note.detail,
            note.up_to,
            note.seen_by,
            note.noise,
            *self._entered(about),
            *(self._sums(about) if note.noise else (0, 0)),
        )
        self.home.note(line)

    def _entered(self, about: Assignment) -> tuple[str, int, int]:
        """Which entries of which log are about a turn's work: nothing before that was verified."""
        entry = self.entry
        if entry is None or about.log is None:
            return "", 0, 0
        return entry.log, entry.policy, entry.checkpoint

    def _sums(self, about: Assignment) -> tuple[int, int]:
        """Which sums of its task an update can be in, by the log; 0 before that was verified."""
        if self.entry is None or about.log is None:
            return 0, 0
        entry = log_wire.read(about.log.round)
        if not isinstance(entry, log_wire.RoundEntry):
            return 0, 0
        staleness = chain.terms_of(about).max_staleness
        return spent.numbers(entry.sums, entry.round, about.round, staleness)


def limits_of(home: Home, bundle: Bundle) -> Limits:
    """What holds on a device with this bundle, whatever a server asks for."""
    return limits.of(bundle.plan, home.config.limits, bundle.manifest.server_factor)


def rounding(bundle: Bundle) -> float:
    """How far a bundle's weights can be from those its maker signed: they are where it has their
    checkpoint.
    """
    if not bundle.is_lean or bundle.manifest.constants is None:
        return 0.0
    return patch.rounding(bundle.predict_graph, bundle.manifest.constants)


def _why_exposed(assignment: Assignment, terms: Terms, bundle: Bundle) -> Distrusted | None:
    """Why an update would be seen by others than the bundle's maker has named."""
    reason = agreement.why_another_kind(terms, assignment) or agreement.why_another_network(
        terms, assignment.shapes
    )
    if reason:
        return Distrusted(Cause.UNCERTIFIED, reason)
    about = protection.addressed(assignment, terms)
    reason = agreement.why_exposed(terms, bundle.manifest.pins) or (
        about if isinstance(about, str) else ""
    )
    return Distrusted(Cause.EXPOSED, reason) if reason else None


def kept_report(home: Home, assignment: Assignment, terms: Terms) -> Outgoing | None:
    """The report of this very work that is kept, while its messages are all there. That of any
    other is thrown away.
    """
    data = home.kept(OUTGOING)
    if data is None:
        return None
    with home.typing_log() as log:
        report = outgoing.unseal(data, log)
    if report is not None and is_of(report, assignment, terms):
        return report
    home.drop(OUTGOING)
    return None


def is_of(report: Outgoing, assignment: Assignment, terms: Terms) -> bool:
    """Whether a report is of this very work."""
    label = report.label
    of = label.assignment, label.round, label.server, label.task_id, label.terms, label.kind
    named = assignment.assignment, assignment.round, assignment.server, assignment.task_id
    return of == (*named, log_wire.agreed(assignment, terms), assignment.kind)


def gather(
    home: Home, bundle: Bundle, assignment: Assignment, plan: Plan, most: int, until: float
) -> Gathered:
    """What there is to train on: half-done work of this very assignment if all its messages are
    still there, else the newest messages that may still be used, `most` rows of them. `until` is
    when the work must be over, in seconds of the device's clock.
    """
    with home.typing_log() as log:
        half_done = _half_done(home, log, bundle.vocabulary, assignment, plan, most)
        if half_done is not None:
            return half_done
        home.drop(UNFINISHED)
        used, rows = newest_rows(log, bundle.vocabulary, plan, most)
        work = Work(
            assignment.assignment,
            assignment.round,
            until,
            used,
            rows_hash(rows),
            *begun_from(assignment),
        )
        return Gathered(work, rows, targets(rows))


def mark(home: Home, terms: Terms, data: bytes) -> Marked | Distrusted:
    """Which words of a list were typed on this device: in all messages that may still be used, held
    back from training or not.
    """
    try:
        words = counts.read_list(data)
    except ConfigError as error:
        return Distrusted(Cause.UNCERTIFIED, str(error))
    reason = agreement.why_another_dimension(terms, len(words))
    if reason:
        return Distrusted(Cause.UNCERTIFIED, reason)
    with home.typing_log() as log:
        records = log.records(log.count(), usable=True)
    numbers = counts.marks((record.text for record in records), words)
    return Marked(tuple(record.id for record in records), numbers)


def newest_rows(
    log: TypingLog, vocabulary: text.Vocabulary, plan: Plan, most: int
) -> tuple[tuple[int, ...], NDArray[Any]]:
    """As `rows_of`, of the newest messages that may still be used and are not held back."""
    # a message fills at least one row
    return rows_of(log.records(most, usable=True, held=False), vocabulary, plan, most)


def runs(bundle: Bundle, before: Bundle | None) -> Runs:
    """Which releases can be scored on the same words: one of another vocabulary has others."""
    mine = Runs(bundle.manifest.release, weights.digest(bundle.encoded))
    if before is None or before.manifest.tokenizer != bundle.manifest.tokenizer:
        return mine
    if before.manifest.release == mine.release:  # a server knows releases by their numbers
        return mine
    old = before.manifest.release
    return replace(mine, before=old, before_manifest=weights.digest(before.encoded))


def compare(
    bundle: Bundle,
    before: Bundle | None,
    messages: Sequence[Sequence[int]],
    may_continue: Callable[[], bool] = lambda: True,
) -> ReleaseScores | None:
    """The scores of a bundle's int8 file, as the strip shows it without own words or personal
    weights, and of the one before if there is one; None if it had to stop.
    """
    both: list[Scores] = []
    for each in (bundle, before):
        if each is not None:
            scored = scoring.score_release(each.predict_graph, messages, may_continue)
            if scored is None:
                return None
            both.append(scored)
    if before is None:
        return ReleaseScores(bundle.manifest.release, both[0])
    return ReleaseScores(bundle.manifest.release, both[0], before.manifest.release, both[1])


def gather_held(home: Home, bundle: Bundle, plan: Plan, after: int = 0) -> HeldBack:
    """What there is to score: the newest messages held back from training that may still be used,
    each cut to the plan's length, in whole groups of as many as an update has at least, and as many
    groups as have no more than MOST_WORDS target words together. How many they are is not the
    server's to say. None of those up to number `after`.
    """
    with home.typing_log() as log:
        records = log.records(MOST_WORDS, usable=True, held=True)
    records = [record for record in records if record.id > after]
    vocabulary, groups = bundle.vocabulary, []
    for group in whole_groups(records, home.config.limits.least_messages):
        ids = (vocabulary.ids(text.tokenise(record.text)) for record in group)
        groups.append(
            [(each.id, tuple(own[: plan.length])) for each, own in zip(group, ids, strict=True)]
        )
    words = [[word for _, message in group for word in message] for group in groups]
    first = len(groups) - scoring.newest_within(words, MOST_WORDS)
    chosen = [each for group in groups[first:] for each in group]
    numbers, messages = (
        (tuple(column) for column in zip(*chosen, strict=True)) if chosen else ((), ())
    )
    return HeldBack(numbers, messages, sum(map(scoring.words, messages)))


def whole_groups(records: Sequence[Record], size: int) -> list[list[Record]]:
    """Held-back messages in groups of `size` by their numbers, oldest first. A group that lacks one
    (not typed yet, forgotten, used up) is left out whole: the difference of two scores is never
    one message's.
    """
    groups: dict[int, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.id):
        groups.setdefault((record.id // HELD_ONE_IN - 1) // size, []).append(record)
    return [group for group in groups.values() if len(group) == size]


def targets(rows: NDArray[Any]) -> int:
    """How many target words there are in rows, int32 [rows, length + 1]."""
    return int(scoring.are_words(rows[:, 1:]).sum())


def rows_of(
    records: Sequence[Record], vocabulary: text.Vocabulary, plan: Plan, most: int
) -> tuple[tuple[int, ...], NDArray[Any]]:
    """The newest rows of messages, at most `most`: the numbers of the messages they come from, and
    int32 [rows, plan.length + 1].
    """
    ids = [vocabulary.ids(text.tokenise(record.text)) for record in records]
    each = [
        (record.id, examples.rows([own], plan.length))
        for record, own in zip(records, ids, strict=True)
        if own
    ]
    first, count = len(each), 0
    while first > 0 and count < most:
        first -= 1
        count += len(each[first][1])
    chosen = each[first:]
    rows = np.concatenate([examples.rows([], plan.length), *(own for _, own in chosen)])
    return tuple(number for number, _ in chosen), rows[-most:]


def _half_done(
    home: Home,
    log: TypingLog,
    vocabulary: text.Vocabulary,
    assignment: Assignment,
    plan: Plan,
    most: int,
) -> Gathered | None:
    """The half-done work of this very assignment, if all its messages are still there. A name alone
    does not make it the same: servers and their tasks begin anew.
    """
    sealed = home.kept(UNFINISHED)
    kept = None if sealed is None else unfinished.unseal(sealed, log)
    if kept is None:
        return None
    work = kept.work
    if not is_half_done(work, assignment):
        return None
    _, rows = rows_of(log.records_of(work.records), vocabulary, plan, most)
    if rows_hash(rows) != work.rows:
        return None
    return Gathered(work, rows, targets(rows), kept.progress)


def is_half_done(work: Work, assignment: Assignment) -> bool:
    """Whether half-done work is of this very assignment."""
    base = work.server, work.task_id, work.checkpoint, work.plan, work.terms
    of = work.assignment, work.round, *base
    return of == (assignment.assignment, assignment.round, *begun_from(assignment))


def begun_from(assignment: Assignment) -> tuple[str, str, str, str, str]:
    """Whose work it is, from what it begins, and how it is encoded."""
    of = assignment.server, assignment.task_id, assignment.checkpoint, assignment.plan
    return *of, chain.terms_of(assignment).name


def rows_hash(rows: NDArray[Any]) -> str:
    """What half-done work knows its rows by."""
    return weights.digest(rows.tobytes())
