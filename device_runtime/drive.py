"""Drive: a turn on this device, with its home, way to the server, interpreter and clock.

The actions come from `turn.py`; each is done here in one place. A simulated device takes the same
turns: its clock stands still but for the time that training takes (`DeviceClock`).
"""

import heapq
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from device_runtime import (
    calls,
    limits,
    turn,
)
from device_runtime.bundle import CHECKPOINT, Bundle, runtime_version
from device_runtime.causes import Cause
from device_runtime.errors import ServerError, Unanswered
from device_runtime.finetune import finetune
from device_runtime.home import (
    OUTGOING,
    UNFINISHED,
    WITHHELD,
    Home,
    done_on,
)
from device_runtime.local import DeviceClock, Local, clock_of, limits_of, newest_rows, targets
from device_runtime.secagg_turn import Hear, Tell, Wait
from device_runtime.table import MOST_BYTES
from device_runtime.text import RULES
from device_runtime.transport import MESSAGE_BYTES, Meter, Send, persistent
from device_runtime.turn import (
    Action,
    Ask,
    Enrol,
    Fetch,
    GiveBack,
    HandIn,
    Outcome,
    Participant,
    Report,
    Trainer,
    Upload,
)
from device_runtime.upgrade import has_upgraded
from device_runtime.wire import (
    DAY_S,
    UNDER_WAY,
    Assignment,
    CheckIn,
    Kind,
    Reject,
    RoundReport,
)

# a device that hears this comes again in the same turn, so often at most: a window has four ends
COME_AGAIN = (Cause.SELECTING, Cause.TOO_EARLY, Cause.NO_HELPER)
MOST_ASKS = 8

T = TypeVar("T")


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
        self._clock, self._meter = clock, Meter(send)
        self._local = Local(home, clock, self._meter, train, may_go_on)
        self._sleep = sleep
        self._signer = calls.Signer(home.key, home.server_name or "", clock.dated)
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
        self._local.until = self._local.began + device.limits.seconds(assignment.deadline_s)
        outcome = yield from self._drive(turn.work(device, assignment), bundle)
        return self._metered(outcome)

    def whole(self) -> Outcome:
        """Check in, and work if there is work. Raises ServerError, BundleError or TypingLogError
        when the turn cannot be taken.
        """
        return self.check_in() or self.work()

    def _describe(self, bundle: Bundle) -> Participant:
        """What the device says of itself, after its log let go of what is too old."""
        settings, manifest, now = self.home.config, bundle.manifest, self._local.began
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
            rules=RULES,
        )
        return Participant(
            message,
            enrolled=None not in (self.home.name, self.home.server_name),
            shapes=manifest.shapes,
            plan=bundle.plan,
            randomness=self._local.randomness,
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
                        result = self._local.forbidden()
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
            case HandIn(assignment):
                return self._hand_in(assignment)
            case Fetch(assignment, sha256):
                way = self._line(assignment, self._local.allowed)
                return calls.fetch(way, sha256, _most_bytes(assignment, sha256, bundle))
            case Upload(assignment, encoded):
                way = self._line(assignment, self._local.allowed)
                return calls.upload(way, assignment.assignment, encoded)
            case Report(assignment, scores):
                way = self._line(assignment, self._local.allowed)
                return calls.report_scores(way, assignment.assignment, scores)
            case Tell(assignment, message):
                way = self._line(assignment, self._local.allowed)
                return calls.tell(way, assignment.assignment, message)
            case Hear(assignment, kind):
                way = self._line(assignment, self._local.allowed)
                return calls.hear(way, assignment.assignment, kind)
            case GiveBack(assignment, cause):
                return calls.abandon(self._line(assignment), assignment.assignment, cause)
            case _:
                return self._local.do(action, bundle)

    def _hand_in(self, assignment: Assignment) -> None:
        """Whatever the server says to it, it was told: that it did not hear it is an error."""
        try:
            calls.abandon(self._line(assignment), assignment.assignment, Cause.OVER_LIMIT)
        except Unanswered:
            raise
        except ServerError:
            pass
        self.home.drop(WITHHELD)

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

    def _metered(self, outcome: Outcome) -> Outcome:
        seconds = self._clock.now() - self._local.began
        is_unmetered = self.home.conditions(self._clock.now()).unmetered is True
        return replace(
            outcome,
            bytes_up=self._meter.up,
            bytes_down=self._meter.down,
            seconds=seconds,
            releases=self._releases if is_unmetered else "",
        )


def _most_bytes(assignment: Assignment, sha256: str, bundle: Bundle) -> int:
    """The most bytes of a blob: a plan is a message, and a checkpoint has the size of the bundle's,
    more or less.
    """
    if sha256 == assignment.plan:
        return MESSAGE_BYTES
    if assignment.kind is Kind.COUNTS:
        return MOST_BYTES
    return 2 * bundle.manifest.files[CHECKPOINT].bytes


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
