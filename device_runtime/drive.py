"""Drive: a turn on this device, with its home, way to the server, interpreter and clock.

The actions come from `turn.py`; each is done here in one place. A simulated device takes the same
turns: its clock stands still but for the time that training takes (`DeviceClock`).
"""

import heapq
import itertools
import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from device_runtime import (
    agreement,
    calls,
    chain,
    counts,
    examples,
    limits,
    log_wire,
    outgoing,
    patch,
    protection,
    scoring,
    spent,
    text,
    turn,
    unfinished,
    weights,
)
from device_runtime.bundle import CHECKPOINT, Bundle, runtime_version
from device_runtime.causes import Cause
from device_runtime.errors import ConfigError, ServerError, Unanswered
from device_runtime.finetune import finetune
from device_runtime.home import (
    OUTGOING,
    UNFINISHED,
    WITHHELD,
    Contribution,
    Home,
    done_on,
    history,
)
from device_runtime.limits import Limits
from device_runtime.log_wire import Believed, Fork
from device_runtime.masking import Random
from device_runtime.secagg_turn import Hear, Identify, Own, Tell, Wait
from device_runtime.table import MOST_BYTES
from device_runtime.terms import Terms
from device_runtime.transport import MESSAGE_BYTES, Meter, Send, persistent
from device_runtime.turn import (
    Action,
    Ask,
    AskSigned,
    CheckConditions,
    Compare,
    Distrusted,
    Drop,
    Enrol,
    Evaluate,
    Fetch,
    Gather,
    Gathered,
    GatherHeld,
    GiveBack,
    HandIn,
    Held,
    HeldBack,
    Hold,
    Keep,
    KeepReport,
    Mark,
    Marked,
    Note,
    Outcome,
    Outgoing,
    Participant,
    Protect,
    Recall,
    RecallReport,
    RecallRuns,
    Report,
    Runs,
    Signed,
    Train,
    Trainer,
    Upload,
    Used,
    Verify,
    Withhold,
    Work,
)
from device_runtime.typing_log import HELD_ONE_IN, Record, TypingLog
from device_runtime.unfinished import Unfinished
from device_runtime.upgrade import has_upgraded
from device_runtime.wire import (
    DAY_S,
    MOST_WORDS,
    UNDER_WAY,
    Assignment,
    CheckIn,
    Kind,
    Plan,
    Reject,
    ReleaseScores,
    RoundReport,
    Scores,
    forbidden_by,
)

BATCH_S = 60.0  # what a batch takes on the clock of a simulated device

# a device that hears this comes again in the same turn, so often at most: a window has four ends
COME_AGAIN = (Cause.SELECTING, Cause.TOO_EARLY, Cause.NO_HELPER)
MOST_ASKS = 8

T = TypeVar("T")


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


class Turn:
    """One turn of this device. `may_go_on` is asked with the conditions before every batch: a
    process that must end says no. `train` has the signature of `finetune.finetune`.
    """

    def __init__(
        self,
        home: Home,
        send: Send,
        clock: DeviceClock,
        train: Trainer = finetune,
        sleep: Callable[[float], object] = time.sleep,
        may_go_on: Callable[[], bool] = lambda: True,
    ):
        self.home = home
        self._clock, self._train, self._may_go_on = clock, train, may_go_on
        self._meter = Meter(send)
        self._sleep = sleep
        self._signer = calls.Signer(home.key, home.server_name or "", clock.dated)
        self._began = clock.now()
        self._entry: Believed | None = None  # where what it agrees to stands in its server's log
        self._until = math.inf  # seconds of the clock: after it nobody waits for the work
        self._assigned: tuple[Participant, Assignment] | None = None
        self._releases = ""  # the index of releases that the server named

    def check_in(self) -> Outcome | None:
        """Ask for work: the outcome if refused, None if there is work to do."""
        bundle = self.home.bundle()
        device = self._describe(bundle)
        answer = self._passing(self._drive(turn.check_in(device), bundle))
        if isinstance(answer, Outcome):
            return self._metered(answer)
        self._assigned = device, answer
        return None

    def work(self) -> Outcome:
        """Do what `check_in` was assigned. Raises RuntimeError if that was nothing."""
        return self._passing(self.working())

    def working(self) -> Generator[float, None, Outcome]:
        """The same for one who lets time pass for several devices: yields the seconds that have to
        go by before it goes on, for work in which devices wait for one another.
        """
        if self._assigned is None:
            raise RuntimeError("there is no work before a check-in has got some")
        device, assignment = self._assigned
        bundle = self.home.bundle()  # which may be another by now
        device = replace(
            device,
            shapes=bundle.manifest.shapes,
            plan=bundle.plan,
            where=bundle.path,
            limits=limits_of(self.home, bundle),
            signed=bundle.manifest.files[CHECKPOINT].sha256,
        )
        self._until = self._began + device.limits.seconds(assignment.deadline_s)
        outcome = yield from self._drive(turn.work(device, assignment), bundle)
        return self._metered(outcome)

    def whole(self) -> Outcome:
        """Check in, and work if there is work. Raises ServerError, BundleError or TypingLogError
        when the turn cannot be taken.
        """
        return self.check_in() or self.work()

    def _describe(self, bundle: Bundle) -> Participant:
        """What the device says of itself, after its log let go of what is too old."""
        settings, manifest, now = self.home.config, bundle.manifest, self._began
        own, signed = limits_of(self.home, bundle), manifest.files[CHECKPOINT].sha256
        with self.home.typing_log() as log:
            log.expire(now)
            waiting = log.count(usable=True)
            messages, rows = newest_rows(log, bundle.vocabulary, own.most, own.most.max_rows)
        withheld = self.home.withheld()
        is_early = withheld is not None and limits.same_day(withheld.at, now)
        lines = [line for line in self.home.contributions() if line.kind == Kind.TRAINING]
        today = limits.Today(
            done_on(lines, now),
            len(messages),
            targets(rows),
            owes=is_early,
            half_done=any(self.home.kept(name) is not None for name in (UNFINISHED, OUTGOING)),
        )
        self.home.age_of(signed, now)  # from now on it counts
        message = CheckIn(
            self.home.conditions(now),
            limits.coarse(waiting),
            manifest.tokenizer,
            # after an upgrade it would tell the release
            holds=self.home.held_checkpoint() or ("" if has_upgraded(self.home) else signed),
            population=settings.population,
            runtime=runtime_version(),
            device_class=settings.device_class,
            log_size=self.home.logs().size(self.home.server_name or ""),
        )
        return Participant(
            message,
            enrolled=None not in (self.home.name, self.home.server_name),
            shapes=manifest.shapes,
            plan=bundle.plan,
            randomness=self._randomness,
            limits=own,
            keeps_work=settings.keeps_work,
            where=bundle.path,
            signed=signed,
            owes=None if withheld is None or is_early else withheld.assignment,
            rests=limits.why_not_asked(own, today),
            day_ends_in_s=limits.day_ends_in(now),
        )

    def _passing(self, turn: Generator[float, None, T]) -> T:
        """What a turn comes to, letting pass the time that it asks for."""
        try:
            while True:
                self._sleep(next(turn))
        except StopIteration as end:
            value: T = end.value
            return value

    def _drive(
        self, actions: Generator[Action, Any, T], bundle: Bundle
    ) -> Generator[float, None, T]:
        """Do action after action. That no answer came is told to the turn; other errors end it."""
        try:
            action = next(actions)
            while True:
                try:
                    if isinstance(action, Wait):
                        yield action.seconds
                        self._clock.waited(action.seconds)
                        result = self._forbidden()
                    else:
                        result = self._do(action, bundle)
                except Unanswered as error:
                    action = actions.throw(error)
                else:
                    action = actions.send(result)
        except StopIteration as end:
            value: T = end.value
            return value

    def _do(self, action: Action, bundle: Bundle) -> Any:
        match action:
            case Enrol():
                way = self._persistent(self._meter)
                self._signer = calls.meet(way, self.home.key, self._clock.dated)
                enrolled = calls.enrol(way, self._signer, certificate=self.home.certificate)
                return self.home.keep_enrolment(enrolled.device, self._signer.server)
            case Ask(message):
                return self._of_my_server(calls.check_in(self._line(), message))
            case Verify(assignment):
                return self._verified(assignment, bundle)
            case Recall(assignment):
                return history(self.home.contributions(), assignment, self._began)
            case HandIn(assignment):
                return self._hand_in(assignment)
            case Withhold(assignment):
                return self.home.withhold(assignment, self._began)
            case AskSigned():
                age = self.home.age_of(bundle.manifest.files[CHECKPOINT].sha256, self._began)
                made_by = bundle.manifest.lineage.round
                return Signed(bundle.weights, made_by, age, _rounding(bundle))
            case Fetch(assignment, sha256):
                way = self._line(assignment, self._allowed)
                return calls.fetch(way, sha256, _most_bytes(assignment, sha256, bundle))
            case Held():
                return self.home.checkpoint() or bundle.content.get(CHECKPOINT, b"")
            case Hold(sha256, data):
                return self.home.keep_checkpoint(sha256, data)
            case Gather(assignment, plan, most):
                return gather(self.home, bundle, assignment, plan, most, self._until)
            case GatherHeld(plan, after):
                return gather_held(self.home, bundle, plan, after)
            case Mark(terms, data):
                return mark(self.home, terms, data)
            case Train():
                return self._train(bundle.train_graph, action, self._may_train)
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
                return self._forbidden()
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
            case Upload(assignment, encoded):
                way = self._line(assignment, self._allowed)
                return calls.upload(way, assignment.assignment, encoded)
            case Report(assignment, scores):
                way = self._line(assignment, self._allowed)
                return calls.report_scores(way, assignment.assignment, scores)
            case Identify(assignment):
                return Own(self.home.key, self._secrets(assignment))
            case Tell(assignment, message):
                way = self._line(assignment, self._allowed)
                return calls.tell(way, assignment.assignment, message)
            case Hear(assignment, kind):
                way = self._line(assignment, self._allowed)
                return calls.hear(way, assignment.assignment, kind)
            case GiveBack(assignment, cause):
                return calls.abandon(self._line(assignment), assignment.assignment, cause)
            case Keep(work, progress):
                with self.home.typing_log() as log:
                    sealed = unfinished.seal(Unfinished(work, progress), log)
                    return self.home.keep(UNFINISHED, sealed)
            case Drop():
                return self.home.drop(UNFINISHED, OUTGOING)

    def _verified(self, assignment: Assignment, bundle: Bundle) -> Terms | Distrusted:
        """The work's terms, or why it is not trusted. Who signed the checkpoint is remembered
        before it is fetched; what contradicts that is kept as evidence.
        """
        settings, now = self.home.config, self._clock.dated()
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
            self._entry = answer
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
        # of a simulated device other numbers have another seed, though the assignment is the same
        random = self._secrets(assignment, weights.digest(np.ascontiguousarray(numbers).tobytes()))
        return protection.protected(numbers, largest, about, self.home.key, random)

    def _hand_in(self, assignment: Assignment) -> None:
        """Whatever the server says to it, it was told: that it did not hear it is an error."""
        try:
            calls.abandon(self._line(assignment), assignment.assignment, Cause.OVER_LIMIT)
        except Unanswered:
            raise
        except ServerError:
            pass
        self.home.drop(WITHHELD)

    def _may_train(self) -> bool:
        """Asked before each batch."""
        self._clock.worked()
        return self._allowed()

    def _each(self, messages: int) -> Callable[[], bool]:
        """Asked before each message: so many are a batch on the clock."""
        asked = itertools.count()

        def may_score() -> bool:
            return self._may_train() if next(asked) % messages == 0 else self._allowed()

        return may_score

    def _forbidden(self) -> Cause | None:
        if self._clock.now() >= self._until:
            return Cause.TIMED_OUT
        if (cause := forbidden_by(self.home.conditions(self._clock.now()))) is not None:
            return cause
        return None if self._may_go_on() else Cause.CONDITION_LOST

    def _randomness(self, assignment: Assignment) -> np.random.Generator:
        """The randomness of an assignment: the same whenever the work is done again, and nobody
        else's to foretell.
        """
        if self.home.config.seed is not None:
            return np.random.default_rng([self.home.config.seed, assignment.round])
        secret = self.home.key.private_bytes_raw() + assignment.assignment.encode()
        return np.random.default_rng(int(weights.digest(secret), 16))

    def _secrets(self, assignment: Assignment, of: str = "") -> Random:
        """Where secrets of an assignment, and of something in it, come from: the system, or a
        simulated device's seed.
        """
        seed = self.home.config.seed
        if seed is None or not self.home.simulated:
            return os.urandom
        return protection.repeating(f"{seed} {assignment.assignment} {of}".encode())

    def _allowed(self) -> bool:
        return self._forbidden() is None

    def _persistent(self, send: Send, may_repeat: Callable[[], bool] = lambda: True) -> Send:
        return persistent(send, sleep=self._sleep, may_repeat=may_repeat)

    def _line(
        self, about: Assignment | None = None, may_repeat: Callable[[], bool] = lambda: True
    ) -> Send:
        """The way to the server, signed; `about` an assignment, for its task and round. What broke
        off is tried again only while it may be: the network can be another by then.
        """
        named = ("", 0) if about is None else (about.task, about.round)
        return self._persistent(calls.signed(self._meter, self._signer, *named), may_repeat)

    def _of_my_server(self, answer: Assignment | Reject) -> Assignment | Reject:
        """Raises ServerError for work of another server than the requests are signed for: what it
        says of itself is what the ledger is kept by.
        """
        self._releases = answer.releases or self._releases
        if isinstance(answer, Assignment) and answer.server != self._signer.server:
            raise ServerError(
                "POST /v1/check-in",
                f"expected work of server {self._signer.server}, found {answer.server or 'none'}",
                "tell its operator",
            )
        return answer

    def _note(self, note: Note) -> None:
        about, meter = note.assignment, self._meter
        line = Contribution(
            about.round,
            self._began,
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
        entry = self._entry
        if entry is None or about.log is None:
            return "", 0, 0
        return entry.log, entry.policy, entry.checkpoint

    def _sums(self, about: Assignment) -> tuple[int, int]:
        """Which sums of its task an update can be in, by the log; 0 before that was verified."""
        if self._entry is None or about.log is None:
            return 0, 0
        entry = log_wire.read(about.log.round)
        if not isinstance(entry, log_wire.RoundEntry):
            return 0, 0
        staleness = chain.terms_of(about).max_staleness
        return spent.numbers(entry.sums, entry.round, about.round, staleness)

    def _metered(self, outcome: Outcome) -> Outcome:
        seconds = self._clock.now() - self._began
        is_unmetered = self.home.conditions(self._clock.now()).unmetered is True
        return replace(
            outcome,
            bytes_up=self._meter.up,
            bytes_down=self._meter.down,
            seconds=seconds,
            releases=self._releases if is_unmetered else "",
        )


def limits_of(home: Home, bundle: Bundle) -> Limits:
    """What holds on a device with this bundle, whatever a server asks for."""
    return limits.of(bundle.plan, home.config.limits, bundle.manifest.server_factor)


def _rounding(bundle: Bundle) -> float:
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


def _most_bytes(assignment: Assignment, sha256: str, bundle: Bundle) -> int:
    """The most bytes of a blob: a plan is a message, and a checkpoint has the size of the bundle's,
    more or less.
    """
    if sha256 == assignment.plan:
        return MESSAGE_BYTES
    if assignment.kind is Kind.COUNTS:
        return MOST_BYTES
    return 2 * bundle.manifest.files[CHECKPOINT].bytes


def kept_report(home: Home, assignment: Assignment, terms: Terms) -> Outgoing | None:
    """The report of this very work that is kept, while its messages are all there. That of any
    other is thrown away.
    """
    data = home.kept(OUTGOING)
    if data is None:
        return None
    with home.typing_log() as log:
        report = outgoing.unseal(data, log)
    if report is not None:
        label = report.label
        of = label.assignment, label.round, label.server, label.task_id, label.terms, label.kind
        named = assignment.assignment, assignment.round, assignment.server, assignment.task_id
        if of == (*named, log_wire.agreed(assignment, terms), assignment.kind):
            return report
    home.drop(OUTGOING)
    return None


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
            _hash(rows),
            *_base(assignment),
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
    return scoring.words(rows[:, 1:].ravel().tolist())


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


def run(
    homes: Sequence[Home],
    send: Send,
    rounds: int,
    on_outcome: Callable[[Home, Outcome], None] = lambda home, outcome: None,
    train: Trainer = finetune,
    sleep: Callable[[float], object] = time.sleep,
) -> int:
    """Turns of several devices in one process until `rounds` rounds were seen, or the server has
    none left. The number of rounds seen.

    In each round every device checks in before the first one works: a round does not end while one
    of them still waits for its turn. Devices that are to come again before they hear whether there
    is work do so when they were told. A simulated device lives through one night of its trace a
    round; between two rounds all wait until the server's newest round is another.
    """
    seen = 0
    while seen < rounds:
        first, newest = _first_and_newest(send, sleep)
        taken = [
            Turn(home, send, clock_of(home, DAY_S * (newest.round - first)), train, sleep)
            for home in homes
        ]
        refused = _check_in(taken, sleep)
        outcomes = [outcome for outcome in refused if outcome is not None]
        for each, outcome in zip(taken, refused, strict=True):
            if outcome is not None:
                on_outcome(each.home, outcome)
        working = [each for each, outcome in zip(taken, refused, strict=True) if outcome is None]
        for each, outcome in _work(working, sleep):
            outcomes.append(outcome)
            on_outcome(each.home, outcome)
        if any(outcome.cause is Cause.NO_ROUND for outcome in outcomes):
            break
        seen += 1
        if seen < rounds:
            named = (
                outcome.retry_in_s
                for outcome in outcomes
                # a night of a simulated device lasts a round, and its day no longer
                if outcome.retry_in_s > 0
                and outcome.status is not turn.Status.NOT_ASKED
                and outcome.cause is not Cause.OVER_LIMIT
            )
            _wait(send, newest, min(named, default=1.0), sleep)
    return seen


def _check_in(turns: Sequence[Turn], sleep: Callable[[float], object]) -> list[Outcome | None]:
    """What each turn hears, None if there is work: those told to come again before that do, when
    they were told.
    """
    answers: list[Outcome | None] = [None] * len(turns)
    asks = [0] * len(turns)
    slept, due = 0.0, [(0.0, number) for number in range(len(turns))]
    while due:
        at, number = heapq.heappop(due)
        if at > slept:
            sleep(at - slept)
            slept = at
        outcome = answers[number] = turns[number].check_in()
        asks[number] += 1
        if outcome is not None and outcome.cause in COME_AGAIN and asks[number] < MOST_ASKS:
            heapq.heappush(due, (slept + outcome.retry_in_s, number))
    return answers


def _work(
    turns: Sequence[Turn], sleep: Callable[[float], object]
) -> Iterator[tuple[Turn, Outcome]]:
    """What comes of each turn, as it ends: one after the other, and where devices wait for one
    another each goes on when it said, between the others.
    """
    works = [each.working() for each in turns]
    slept, due = 0.0, [(0.0, number) for number in range(len(turns))]
    while due:
        at, number = heapq.heappop(due)
        if at > slept:
            sleep(at - slept)
            slept = at
        try:
            seconds = next(works[number])
        except StopIteration as end:
            yield turns[number], end.value
        else:
            heapq.heappush(due, (slept + seconds, number))


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
    base = work.server, work.task_id, work.checkpoint, work.plan, work.terms
    of = work.assignment, work.round, *base
    if of != (assignment.assignment, assignment.round, *_base(assignment)):
        return None
    _, rows = rows_of(log.records_of(work.records), vocabulary, plan, most)
    if _hash(rows) != work.rows:
        return None
    return Gathered(work, rows, targets(rows), kept.progress)


def _base(assignment: Assignment) -> tuple[str, str, str, str, str]:
    """Whose work it is, from what it begins, and how it is encoded."""
    of = assignment.server, assignment.task_id, assignment.checkpoint, assignment.plan
    return *of, chain.terms_of(assignment).name


def _hash(rows: NDArray[Any]) -> str:
    return weights.digest(rows.tobytes())


def _first_and_newest(send: Send, sleep: Callable[[float], object]) -> tuple[int, RoundReport]:
    """The number of the task's first round, and its newest round."""
    reports = calls.rounds(persistent(send, sleep=sleep), most=1)
    if not reports.rounds:
        raise ServerError(
            "GET /v1/rounds",
            "expected at least one round, found none",
            "start the server with a task",
        )
    return reports.first, reports.rounds[-1]


def _wait(send: Send, seen: RoundReport, retry_s: float, sleep: Callable[[float], object]) -> None:
    """Until the server's newest round is another than `seen`, or closed."""
    newest = seen
    while newest.round == seen.round and newest.phase in UNDER_WAY:
        sleep(retry_s)
        _, newest = _first_and_newest(send, sleep)
