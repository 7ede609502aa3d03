"""Helping: what a server asks of its helper, and when.

    a task is certified -> register -> seal keys of rounds to come -> assignments carry them
                           a server that was put back follows its helper's rounds
    the log has grown   -> its head is countersigned -> assignments carry that
    a round has enough  -> the counted reports are named -> the sum of their masks
    the round is closed -> the helper may forget that

What is asked may be asked again: a helper answers a round once, and then repeats its answer.
"""

import logging
import threading
from dataclasses import dataclass, field, replace

from device_runtime import config, log_wire, masking, packing, signing
from device_runtime.chain import name_of
from device_runtime.errors import ConfigError
from device_runtime.helper_wire import (
    MOST_ROUNDS_AHEAD,
    SEAL_KEY,
    AnswerTaken,
    HeadAsked,
    HeadSeen,
    HelperReport,
    KeysAsked,
    Named,
    Refusal,
    Registered,
    Registration,
    SealedReport,
    SealKey,
)
from device_runtime.shown import printable
from device_runtime.terms import Aggregation
from device_runtime.wire import SENTENCE, Phase, Signed
from server import chain
from server.contract import HelperHere
from server.helper_client import Away, Denied, Helper
from server.log import Log
from server.log_rows import StoredHead, StoredLog
from server.mechanism import layout_of
from server.opening import Frozen, Mask, Never, Opener, Waiting
from server.store import Rows, Store
from server.task import State, Task, is_masked, task_id, terms

log = logging.getLogger("fedboard.server")

AHEAD = 8  # rounds whose seal keys are fetched before they open
MOST_BEHIND = 100_000  # rounds that a server may be behind: a helper that speaks of more is wrong
LOOK_S = 10.0  # between two looks whether the helper is there
FORKED = (
    "its server's log contradicts what the helper has signed of it, so the server was put back "
    "from a backup; to begin another log"
)
# what its operator can mend, and what is over by itself: the round goes on waiting
_MENDED = (
    Refusal.UNKNOWN_LEADER,
    Refusal.UNKNOWN_TASK,
    Refusal.FOREIGN_POLICY,
    Refusal.MALFORMED,  # another version, another's address, or a limit of bodies
)
# it knows of other rounds than this server, or of none
_FORGOTTEN = (Refusal.UNKNOWN_TASK, Refusal.UNKNOWN_ROUND)


@dataclass
class Standing:
    """What is known of the helper just now."""

    report: HelperReport | None = None  # what it said of itself when it was heard last
    problem: str = ""  # why it gives nothing; empty if it does
    looked_at: float = -float("inf")


@dataclass
class Helping:
    """One server's dealings with its helper. One thread at a time prepares and opens."""

    store: Store
    server: str  # random name of the database
    helper: Helper
    log: Log
    standing: Standing = field(default_factory=Standing)

    def __post_init__(self) -> None:
        self._registered: dict[str, str] = {}  # by task: the certificate that the helper has
        self._shown_log = 0  # number of the log that it was shown since this process began
        self._ended: dict[str, int] = {}  # by task: the round up to which the helper may forget
        self._keyed_before: dict[str, int] = {}  # by task: the first round without a key there
        self._lock = threading.Lock()
        self._is_troubled = False  # since the last call of `prepare` ended

    @property
    def opener(self) -> Opener:
        """How sums are opened by this helper."""
        return Opener(freeze=lambda rows, frozen, now: None, ask=self.ask, ended=self.ended)

    @property
    def here(self) -> HelperHere:
        """What an operator is told of the helper, as it was seen last."""
        report, problem = self.standing.report, printable(self.standing.problem)
        of = ("", 0, "") if report is None else (report.helper, report.least, report.enrolment_key)
        told = problem.encode("ascii", "backslashreplace").decode()[: SENTENCE.most]
        return HelperHere(of[0], self.helper.is_beside, of[1], told, of[2])

    def look(self, now: float) -> Standing:
        """See whether the helper is there, unless that has been seen a moment ago."""
        with self._lock:
            if not self.standing.looked_at <= now < self.standing.looked_at + LOOK_S:
                try:
                    self.standing = Standing(self.helper.report(), "", now)
                except (Away, Denied) as error:
                    self.standing = Standing(self.standing.report, str(error), now)
        return self.standing

    def register(self, now: float) -> list[tuple[Task, Registered]]:
        """Let the helper know the tasks that it has not heard of since this process began, or has
        refused something of; where each of them stands there: to be followed before anything else.
        """
        with self.store.reading() as rows:
            wanted = _wanted(rows, self.server, now)
        heard = []
        for each in wanted:
            task, named = each.task, name_of(each.certificate)
            if self._registered.get(task.name) == named:
                continue
            id = task_id(self.server, task.name)
            about = Registration(each.certificate, task.name, id, task.kind)
            try:
                there = self.helper.register(about)
                if there.opens_from - each.at >= MOST_BEHIND:  # no way leads back from there
                    found = f"says that it opens sums from round {there.opens_from:,} on"
                    raise Away("helper", found, "see that it is the right one")
            except (Away, Denied) as error:
                self._trouble(error, task.name, now)
                continue
            self._registered[task.name] = named
            self._keyed_before[task.name] = there.keyed_before
            heard.append((task, there))
        return heard

    def countersign(self, now: float) -> None:
        """Have the helper sign the newest head of the log: devices of its tasks get no work under
        another. A log that it says is a fork is over. One that was signed is shown once more when
        this process begins: either of the two may have been put back from a backup meanwhile.
        """
        with self.store.reading() as rows:
            kept = rows.log.current()
            if kept is None or not self._registered:  # it knows nobody's log key
                return
            head = self.log.to_countersign(rows, is_again=self._shown_log != kept.number)
            if head is None:
                return
            before = rows.log.head(kept.number, is_countersigned=True)
            signed_before = 0 if before is None else before.size
        try:
            answer = self._shown(head, signed_before)
            if answer.signature is None:  # it has signed another than this server knows of
                answer = self._shown(head, answer.size)
        except Away as error:
            self._trouble(error, "", now)
            return
        except Denied as error:
            if error.problem.refusal is Refusal.FORK:
                self._forked(kept, head)
            self._trouble(error, "", now)
            return
        by = answer.signature
        if by is None or not log_wire.countersigned(head.head, by.signer, by.signature):
            log.error("what the helper gives for the log's head is no signature of it")
            return
        self._shown_log = kept.number
        with self.store.transaction(durable=True) as rows:
            rows.log.countersign(kept.number, head.size, by)

    def _shown(self, head: StoredHead, seen: int) -> HeadSeen:
        with self.store.reading() as rows:
            path = self.log.path_to(rows, seen, head)
        return self.helper.countersign(HeadAsked(head.head, seen, path or ""))

    def _forked(self, kept: StoredLog, head: StoredHead) -> None:
        with self.store.transaction(durable=True) as rows:
            newest = rows.log.head(kept.number)
            if newest is None or newest.size == head.size:  # else another replica was faster
                self.log.end(rows, kept.number, FORKED)

    def prepare(self, now: float) -> None:
        """Fetch the seal keys that are missing: of each registered task's open round and some to
        come. What cannot be had now is asked for again. The helper may forget rounds that are
        over, whatever came of them.
        """
        with self.store.reading() as rows:
            wanted = _wanted(rows, self.server, now)
        for each in wanted:
            if self._registered.get(each.task.name) != name_of(each.certificate):
                continue
            try:
                if each.rounds:
                    self._fetch_keys(each)
                self._end(each)
            except (Away, Denied) as error:
                self._trouble(error, each.task.name, now)
        if self.standing.problem and not self._is_troubled:  # what was wrong may be over
            self.standing = replace(self.standing, looked_at=-float("inf"))
        self._is_troubled = False

    def ask(self, frozen: Frozen, now: float) -> Mask | Waiting | Never:
        """The sum of the masks of a frozen round's reports."""
        by = layout_of(frozen.task)
        with self.store.reading() as rows:
            named = _named(rows, self.server, frozen)
        if len(named.reports) != frozen.count:
            return Never(
                f"expected {frozen.count} seals in the database, found {len(named.reports)}"
            )
        try:
            noised, raw = self.helper.answer(named, by.bytes)
        except Away as error:
            self._trouble(error, frozen.task.name, now)
            return Waiting(str(error))
        except Denied as error:
            return self._denied(error, frozen, now)
        return Mask(packing.from_bytes(raw, by), noised)

    def ended(self, frozen: Frozen) -> None:
        """The helper may forget what it answered."""
        named = task_id(self.server, frozen.task.name)
        try:
            self.helper.taken(AnswerTaken(named, frozen.round))
            self._ended[frozen.task.name] = frozen.round
        except (Away, Denied) as error:  # it keeps some bytes until it is told again
            log.warning("the helper keeps an answer", extra={"error": type(error).__name__})

    def _end(self, wanted: "_Wanted") -> None:
        name, over = wanted.task.name, wanted.at - 1
        if self._ended.get(name) != over:
            self.helper.taken(AnswerTaken(task_id(self.server, name), over))
            self._ended[name] = over

    def _fetch_keys(self, wanted: "_Wanted") -> None:
        task, id = wanted.task, task_id(self.server, wanted.task.name)
        end, at = wanted.first + wanted.rounds, self._keyed_before[task.name]
        while at and end > at + MOST_ROUNDS_AHEAD:  # a helper that was put back: it comes along
            self.helper.seal_keys(KeysAsked(id, at, MOST_ROUNDS_AHEAD))
            at += MOST_ROUNDS_AHEAD
        signed = self.helper.seal_keys(KeysAsked(id, wanted.first, wanted.rounds))
        self._keyed_before[task.name] = max(at, end)
        asked = range(wanted.first, end)
        keys = {
            key.round: each
            for each in signed
            if (key := seal_key_in(each, wanted.helper)) is not None
            and (key.task_id, key.terms) == (id, wanted.terms)
            and key.round in asked
        }
        with self.store.transaction(durable=True) as rows:
            rows.seals.put_keys(task.name, keys)
            rows.seals.forget_keys(task.name, wanted.oldest)
        if len(keys) < wanted.rounds:
            log.error(
                "seal keys are missing, or not signed by the task's helper",
                extra={"task": task.name, "round": wanted.first},
            )

    def _denied(self, error: Denied, frozen: Frozen, now: float) -> Waiting | Never:
        refusal = error.problem.refusal
        if refusal in _MENDED or refusal.is_passing:
            self._trouble(error, frozen.task.name, now)
            return Waiting(str(error))
        self._registered.pop(frozen.task.name, None)  # it may know other rounds than this server
        named = error.problem.devices if refusal is Refusal.BAD_SEAL else ()
        if 2 * len(named) >= frozen.count:  # that is not of their making
            named = ()
        over = refusal is Refusal.OVER_BUDGET
        return Never(f"the helper gives no mask: {refusal}: {error.problem.detail}", named, over)

    def _trouble(self, error: Away | Denied, task: str, now: float) -> None:
        if isinstance(error, Denied) and error.problem.refusal in _FORGOTTEN:
            self._registered.pop(task, None)
        self._is_troubled = True
        if self.standing.problem != str(error):  # it is said once
            log.warning("the helper gives nothing: %s", error, extra={"task": task})
        self.standing = Standing(self.standing.report, str(error), now)


def first_to_open(there: Registered, round: int, is_given: bool) -> int:
    """The round that a task goes on with whose open round is `round`: that or, if the helper will
    not open its sum, a later one. `is_given`: devices may have sealed to its key.

    >>> first_to_open(Registered(opens_from=14, keyed_before=20), 2, True)
    14
    >>> first_to_open(Registered(opens_from=0, keyed_before=5), 8, True)
    9
    """
    is_lost = is_given and there.keyed_before <= round
    return max(there.opens_from, round + is_lost)


def seal_key_in(signed: Signed, helper: str) -> SealKey | None:
    """What a helper (its public key) signed; None if it did not, or nothing can be sealed to it."""
    text = signing.text_of(signed, SEAL_KEY, frozenset({helper}))
    if text is None:
        return None
    try:
        key = config.from_json(SealKey, text, "seal-key")
    except ConfigError:
        return None
    return key if masking.can_be_sealed_to(key.key) else None


@dataclass(frozen=True)
class _Wanted:
    """Seal keys that a task lacks."""

    task: Task
    certificate: Signed
    helper: str
    terms: str
    at: int  # the open round
    first: int
    rounds: int  # from the first on; 0: none is missing
    oldest: int  # round whose key may still be needed


def _wanted(rows: Rows, server: str, now: float) -> list[_Wanted]:
    stored, open_rounds = rows.tasks(), rows.open_rounds()
    named = {each.task.name: each.task for each in stored}
    wanted = []
    for each in stored:
        task = each.task
        if each.state is State.FINISHED or not asks_helper(task) or task.name not in open_rounds:
            continue
        is_opening = open_rounds[task.name].state.phase is Phase.UNMASKING
        if each.state is State.PAUSED and not is_opening:  # it admits nobody
            continue
        certified = named.get(task.evaluates, task)
        newest = rows.certificate(certified.name)
        if newest is None or now >= newest.expires_at or not chain.has_terms(newest.signed):
            continue
        agreed, at = terms(certified), open_rounds[task.name].state.round
        have = rows.seals.key_rounds(task.name)
        missing = [round for round in range(at, at + AHEAD) if round not in have]
        first = min(missing, default=0)
        rounds = at + AHEAD - first if missing else 0
        oldest = at - agreed.max_staleness
        agreement = newest.signed, agreed.helper, agreed.name
        wanted.append(_Wanted(task, *agreement, at, first, rounds, oldest))
    return wanted


def asks_helper(task: Task) -> bool:
    """Whether a task's reports are sealed to a helper."""
    return is_masked(task) and task.aggregation is Aggregation.HELPER


def _named(rows: Rows, server: str, frozen: Frozen) -> Named:
    kept = rows.seals.of(frozen.task.name, frozen.round)
    return Named(
        task_id(server, frozen.task.name),
        frozen.round,
        tuple(
            SealedReport(
                each.public_key,
                each.assigned,
                each.seal.hex(),
                each.signature.hex(),
                each.enrolment,
            )
            for each in kept
        ),
    )
