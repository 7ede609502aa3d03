"""The coordinator: requests and time -> answers. The only object that remembers; everything it
remembers is in its store.

    requests of many devices
        |  reports: judge (any thread): bytes -> mechanism.check -> update | scores | cause
        v
    +-- one group: one transaction ---------------------------------------------------------+
    |   Ledger: what these devices and the open rounds are, read at once                    |
    |       |                                                                               |
    |       v  each in its turn                                                             |
    |   CheckingIn -> eligibility.decide, rounds.chance  -> Assignment | Reject             |
    |   Fetching   -> bytes counted                                                         |
    |   Reporting  -> mechanism.weigh, rounds.advance    -> Ack | Reject | Refused          |
    |   Abandoning -> rounds.advance                     -> Ack                             |
    |       |                                                                               |
    |       v  all at once                                                                  |
    |   mechanism.add -> this replica's sum; the ledger's changes                           |
    +---------------------------------------------------------------------------------------+
        |  a round is over                                  or: frozen, its sum is masked
        v                                                          |
    closing: sums of all replicas -> checkpoint blobs;             v
    one transaction: round closed, next opened   <--  opening.py, without the lock: mask -> sum

Requests are answered in groups: each group is one transaction, so what an answer acknowledges is on
disk before the answer is given, and a hundred devices cost one wait for the disk. An update is
checked, added to the round's sum and written to the ledger in that transaction. The answers do not
depend on how requests are grouped. A round's end is a transaction of its own: its checkpoint
(already a blob) and the next round. Several replicas may share a PostgreSQL store: each has a sum
of its own in every round, and whoever sees the round's end first adds them up.
"""

import logging
import re
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from device_runtime import enrolments, scores, separation, signing
from device_runtime.causes import MEANING, Cause
from device_runtime.errors import FedboardError, RunError
from device_runtime.helper_wire import Noised, Registered
from device_runtime.log_wire import Entries, LogHead
from device_runtime.log_wire import Path as LogPath
from device_runtime.masking import Bound, Random
from device_runtime.terms import Aggregation
from device_runtime.update import Sealed
from device_runtime.weights import digest
from device_runtime.wire import (
    CERTIFIED,
    MOST_ROUNDS,
    OPEN,
    SENTENCE,
    Ack,
    Assignment,
    CheckIn,
    Enrolled,
    Enrolment,
    Kind,
    Phase,
    Reject,
    ReleaseScores,
    RoundReports,
    Scores,
)
from server import (
    budget,
    chain,
    closing,
    comparing,
    mechanism,
    pacing,
    release_scores,
    rounds,
    secagg_steps,
    slots,
    tallies,
)
from server.blobs import Blobs
from server.differences import NEWEST, Differences
from server.eligibility import decide, spends
from server.helper_client import Helper
from server.helping import Helping, asks_helper, first_to_open, seal_key_in
from server.judging import Judged, judge
from server.ledger import Ledger
from server.log import Log
from server.masks import At, Lost
from server.open_sums import OpenSums
from server.opening import Frozen, Mask, Never, Opener, Waiting, member_names, split
from server.own_noise import NoNoise, OwnNoise, adds_noise
from server.pacing import Told
from server.places import Chance
from server.records import changed
from server.replays import KEPT_S
from server.requests import (
    Abandoning,
    Answer,
    CheckingIn,
    Fetching,
    Hearing,
    Looking,
    Nonce,
    Refused,
    Reporting,
    Request,
    Telling,
)
from server.rounds import (
    Admitted,
    Asked,
    Dropped,
    Reported,
    RoundState,
    Rules,
    Tick,
    TurnedAway,
    advance,
    following,
    is_over,
)
from server.secagg_steps import Steps
from server.store import (
    AssignmentStatus,
    Rows,
    Store,
    StoredAssignment,
    StoredCheckpoint,
    StoredRound,
    StoredTask,
    Unusable,
)
from server.sums import Sum, Weighted
from server.task import State, Task, is_masked, round_rules, task_id, terms

log = logging.getLogger("fedboard.server")

FORGET_S = 60.0  # between two looks for what may be forgotten
POPULATION_S = 60.0  # how long the number of enrolled devices may be out of date
KEYS_KEPT = 1000  # seal keys of rounds, in memory
PROBE_S = 1.0  # how long the answer to whether the server is ready may be out of date
_HEX_16, _HEX_64 = re.compile("[0-9a-f]{16}"), re.compile("[0-9a-f]{64}")
_OF_STEPS = (Telling, Hearing)  # asked in a round whose devices open its sum
# updates of a group, or scores, by the round they count in
Counted = dict[At, list[Weighted | Scores | ReleaseScores]]


def open_folder(folder: Path, database: str = "", blobs: str = "") -> tuple[Store, Blobs]:
    """The database and the blobs of a server: in its folder, made on first use, or where their
    addresses say.

    Raises RunError if they cannot be used, or the folder is used by another server.
    """
    store = Store(database or Path(folder) / "server.sqlite")  # its lock comes before all else
    try:
        return store, Blobs(Path(folder) / "blobs") if not blobs else Blobs.open(blobs)
    except BaseException:
        store.close()
        raise


class Coordinator:
    """Goes on with the tasks in `store`, where they stood. `now` is in seconds, of one clock that
    does not run backwards. Thread-safe.
    """

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        rng: np.random.Generator | None = None,
        replica: str | None = None,
        codes_needed: bool = False,
        helper: Helper | None = None,
        random: Random = secrets.token_bytes,
        keys: slots.Slots | None = None,
    ):
        """`rng` spreads the retry times; `replica` names this server among those that share the
        store. `codes_needed`: to enrol. `helper`: who takes the masks off sums, if anybody does.
        `random`: of its keys, and of the noise that it adds itself. `keys`: where those lie, by
        default beside the store.
        """
        self.store, self.blobs = store, blobs
        if replica is None:
            replica = secrets.token_hex(8) if store.shared else ""
        self.replica = replica
        self.codes_needed = codes_needed
        self._rng = np.random.default_rng() if rng is None else rng
        self._lock = threading.Lock()
        self.differences = Differences(blobs)
        self._tasks: dict[str, Task] = {}
        self._policies: dict[str, str] = {}  # by training task: `log_wire.Policy.name`
        self._seal_keys: dict[At, str] = {}  # public halves, of rounds of late
        self._probed_at = -np.inf
        self._probe_failed: Exception | None = None
        self._population_at = -np.inf
        self._forgot_at = -np.inf
        with store.reading() as rows:
            self.server = rows.server()  # random; replicas share it
            self._population = max(1, rows.count_devices())
        if keys is None:
            beside = store.beside
            keys = blobs.slots(self.server) if beside is None else slots.Folder(beside)
        self._sums, self._has_begun = OpenSums(keys, replica), False
        self.round_keys = chain.RoundKeys(keys, random)
        self._noise = OwnNoise(store, keys, self.server, random)
        self.log = Log(keys, self.server, random)
        self._to_do: dict[str, str] = {}  # by task: what its operator was told of its certificate
        self.helping = None if helper is None else Helping(store, self.server, helper, self.log)
        # how masked sums are opened, by the aggregation of their tasks
        self.openers: dict[Aggregation, Opener] = {}
        if self.helping is not None:
            self.openers[Aggregation.HELPER] = self.helping.opener
        self.steps = Steps(store, self.server, self._rng, lambda: random(32).hex())
        self.openers[Aggregation.SECAGG] = self.steps.opener
        self.waits: dict[str, str] = {}  # by task: what its frozen round waits for
        self.turns = 0  # rounds that were frozen or closed since this process began
        self._opening = threading.Lock()  # one thread opens sums

    # what devices ask

    def enrol(self, enrolment: Enrolment, now: float) -> Enrolled:
        """Give a public key its name; the same key gets the same name, and a certificate that it
        did not have before. Refused if it is not a key, its certificate is another's, or its code
        does not let it in.
        """
        (answer,) = self.enrol_all([enrolment], now)
        if isinstance(answer, Refused):
            raise answer
        return answer

    def enrol_all(self, enrolments_: Sequence[Enrolment], now: float) -> list[Enrolled | Refused]:
        """The same for each of several keys, in one transaction; what is refused is not raised."""
        with self._lock, self.store.transaction(durable=True) as rows:
            names = [signing.name_of(each.public_key) for each in enrolments_ if _is_key(each)]
            known = set(rows.public_keys(names))
            return [self._enrolled(rows, each, known, now) for each in enrolments_]

    def _enrolled(
        self, rows: Rows, enrolment: Enrolment, known: set[str], now: float
    ) -> Enrolled | Refused:
        key, certificate = enrolment.public_key, enrolment.certificate
        if not _is_key(enrolment):
            expected = "public_key: expected 32 bytes in lower-case hexadecimal"
            return Refused(Cause.MALFORMED, expected)
        device = signing.name_of(key)
        if certificate is not None and (why := enrolments.why_not(certificate, key)):
            return Refused(Cause.MALFORMED, why)
        if device not in known:
            try:
                self._use_code(rows, enrolment.code, device, key, now)
            except Refused as refused:
                return refused
            known.add(device)
        if certificate is not None:
            rows.certify_device(device, certificate.signature)
        return Enrolled(device)

    def good_since(self, now: float) -> float:
        """Since when a request must have been signed to be good: who has made it before is known
        since then.
        """
        with self.store.reading() as rows:
            return rows.good_since(now)

    def public_key(self, device: str) -> str | None:
        """The key of an enrolled device, hexadecimal."""
        return self.public_keys([device])[0]

    def public_keys(self, devices: Sequence[str]) -> list[str | None]:
        """The key of each of the devices; None for one that is not enrolled."""
        names = {device for device in devices if _HEX_16.fullmatch(device)}
        with self.store.reading() as rows:
            kept = rows.public_keys(names) if names else {}
        return [kept.get(device) for device in devices]

    def work_of(self, device: str, assignment: str, nonce: Nonce) -> StoredAssignment:
        """What a device has that name of an assignment for, before its report is read. Refused if
        it has no such assignment, or has made this request before.
        """
        (work,) = self.works_of([(device, assignment, nonce)])
        if isinstance(work, Refused):
            raise work
        return work

    def works_of(self, asked: Sequence[tuple[str, str, Nonce]]) -> list[StoredAssignment | Refused]:
        """The same for each of several devices, assignments and nonces; what is refused is not
        raised.
        """
        with self.store.reading() as rows:
            works = rows.assignments({assignment for _, assignment, _ in asked})
            seen = rows.seen({(device, nonce.text) for device, _, nonce in asked})
        answers: list[StoredAssignment | Refused] = []
        for device, assignment, nonce in asked:
            work = works.get(assignment)
            if work is not None and (device, nonce.text) in seen:
                answers.append(Refused(Cause.REPLAYED, "this request has been made before"))
            elif work is None or work.device != device:
                detail = "this device has no such assignment"
                answers.append(Refused(Cause.UNKNOWN_ASSIGNMENT, detail))
            else:
                answers.append(work)
        return answers

    def judge(self, report: Reporting) -> Judged:
        """What can be said of a report before its turn: most of the work. Any thread may do it,
        while others are answered.
        """
        hashed = digest(report.body)
        if report.signed_for is not None:
            name, number = report.signed_for
        else:
            with self.store.reading() as rows:
                work = rows.assignments([report.assignment]).get(report.assignment)
            name, number = ("", 0) if work is None else (work.task, work.round)
        task, genuine = self._task(name), report.body_digest in (None, hashed)
        value = None
        if task is not None and genuine:
            bound = None
            if asks_helper(task):
                with self.store.reading() as rows:
                    bound = self._bound(rows, task, number, report.device)
            value = judge(report.body, report.kind, task, number, bound)
        return Judged(hashed, genuine, name, number, value)

    def _bound(self, rows: Rows, task: Task, round: int, device: str) -> Bound | None:
        """What the seal of a device's report is for; None if there can be none."""
        if not asks_helper(task):
            return None
        agreed, at = terms(task), (task.name, round)
        if at not in self._seal_keys:
            signed = rows.seals.key(task.name, round)
            key = None if signed is None else seal_key_in(signed, agreed.helper)
            if key is None:
                return None
            if len(self._seal_keys) >= KEYS_KEPT:
                self._seal_keys = {}
            self._seal_keys[at] = key.key
        public = rows.public_key(device)
        if public is None:
            return None
        named = task_id(self.server, task.name)
        policy = self._policy(rows, task)
        return Bound(self.server, named, round, policy, public, self._seal_keys[at])

    def _policy(self, rows: Rows, task: Task) -> str:
        """The name of what devices agree to that work for a task. It never changes."""
        name = task.evaluates or task.name
        training = self._task(name)
        if name not in self._policies and training is not None:
            self._policies[name] = self.log.policy(rows, training).name
        return self._policies.get(name, "")

    def handle(
        self,
        requests: Sequence[Request],
        now: float,
        judged: Sequence[Judged | None] | None = None,
    ) -> list[Answer]:
        """The answer to each request, as if they had come one after the other. What an answer
        acknowledges is on disk when this returns. What fails after the first of them are answered
        is not raised: the answers are fewer than the requests.

        `judged` has what `judge` said of each report; by default it is asked here.
        """
        if judged is None:
            judged = [
                self.judge(each) if isinstance(each, Reporting) else None for each in requests
            ]
        answers: list[Answer] = []
        with self._lock:
            while True:
                try:
                    answers += self._group(requests[len(answers) :], judged[len(answers) :], now)
                except Exception:
                    if not answers:
                        raise
                    return answers  # they are on disk: only the others are asked again
                if len(answers) == len(requests):
                    return answers

    def handle_at_once(self, requests: Sequence[CheckingIn], now: float) -> list[Answer]:
        """The answers to the first of some check-ins, as `handle` gives them: to as many as can be
        answered without waiting for another thread, another process or the end of a round. To none,
        and nothing has changed, where time alone has something to change, or the store is asked
        over a network.
        """
        if self.store.shared or not self._has_begun or not self._lock.acquire(blocking=False):
            return []
        try:
            return self._answers(requests, [None] * len(requests), now, at_once=True)
        finally:
            self._lock.release()

    def blob_size(self, name: str) -> int:
        """Bytes of a blob. Refused if there is none."""
        size = self.blobs.size(name)
        if size is None:
            raise Refused(Cause.UNKNOWN_BLOB, "there is no blob of that SHA-256")
        return size

    def with_difference(self, answer: Assignment, holds: str) -> Assignment:
        """An assignment with the difference from the checkpoint a device holds, if there is one
        that is worth it.

        Worked out once a pair, without keeping others from the round: of many devices that hold the
        same, one does and the others wait for it.
        """
        if not _HEX_64.fullmatch(holds) or holds == answer.checkpoint:
            return answer
        if answer.kind in (Kind.RELEASES, Kind.COUNTS):
            return answer  # it fetches no checkpoint
        return replace(
            answer,
            difference=self.differences.between(
                holds, answer.checkpoint, lambda: self._newest(answer.task)
            ),
        )

    def _newest(self, task: str) -> list[str]:
        """The newest float16 checkpoints of a task, of an evaluation those of the task it
        evaluates.
        """
        with self.store.reading() as rows:
            evaluates = next(
                (stored.task.evaluates for stored in rows.tasks() if stored.task.name == task), ""
            )
            return [each.half for each in rows.checkpoints(evaluates or task, NEWEST)]

    # what anybody asks of the log

    def log_head(self) -> LogHead:
        """The newest heads."""
        with self.store.reading() as rows:
            return self.log.head(rows)

    def log_entries(self, first: int, most: int) -> Entries:
        """At most so many entries from a number on."""
        with self.store.reading() as rows:
            return self.log.entries(rows, first, most)

    def log_path(self, first: int, second: int) -> LogPath:
        """That the log of one size begins with that of another. Refused if it has no such size."""
        with self.store.reading() as rows:
            path = self.log.consistency(rows, first, second)
        if path is None:
            raise Refused(Cause.UNKNOWN_BLOB, "the log has no such sizes: expected first <= second")
        return path

    # time

    def tick(self, now: float) -> None:
        """Let time pass: a window may be over."""
        with self._lock:
            self._begin(now)
            with self.store.reading() as rows:
                is_due = self._is_due(rows, now)
            if is_due:
                self._group([], [], now)
            self.store.write_back()
            if self.store.shared:
                with self.store.reading() as rows:
                    self._sums.keep_only(_rounds(rows.open_rounds()))
            if now >= self._population_at + POPULATION_S:
                with self.store.reading() as rows:
                    self._population, self._population_at = rows.count_devices(), now
            if not self._forgot_at <= now < self._forgot_at + FORGET_S:
                with self.store.transaction(forgets=True) as rows:
                    rows.set_good_since(max(rows.good_since(now), now - KEPT_S))
                    rows.forget_nonces(now - KEPT_S)
                    rows.forget_due(now - pacing.FORGET_S)
                    rows.forget_codes(now - KEPT_S)
                # a quiet server closes no round for days: its log would say who asked when
                self.store.tidy()
                self._forgot_at = now
                self._remind(now)

    def _remind(self, now: float) -> None:
        """Say once in the log what must be done about certificates."""
        with self.store.reading() as rows:
            to_do = {
                stored.task.name: chain.what_to_do(rows, stored.task, stored.state, now)
                for stored in rows.tasks()
            }
        for task, sentence in to_do.items():
            if sentence and sentence != self._to_do.get(task):
                log.warning("%s", sentence, extra={"task": task})
        self._to_do = to_do

    def probe(self, now: float) -> None:
        """Write to the store, beside the blobs and among the keys, at most once in PROBE_S. Raises
        what they raise if they cannot be used.
        """
        with self._lock:
            if not 0 <= now - self._probed_at < PROBE_S:
                self._probed_at, self._probe_failed = now, None
                try:
                    self.store.beat(now)
                    self.blobs.require_room()
                    self._sums.require_room()
                except (Unusable, FedboardError) as error:
                    self._probe_failed = error
            if self._probe_failed is not None:
                raise self._probe_failed.with_traceback(None)

    def tidy(self) -> None:
        """Leave nothing in the store's log."""
        with self._lock:
            self.store.tidy()

    def close(self) -> None:
        """Close the store, and leave nothing in its log. No answer is lost without it."""
        with self._lock:
            self.store.close()

    # what operators ask

    def tasks(self) -> list[StoredTask]:
        """Oldest first."""
        with self.store.reading() as rows:
            return rows.tasks()

    def reports(
        self,
        now: float,
        task: str | None = None,
        most: int = MOST_ROUNDS,
        before: int | None = None,
    ) -> RoundReports:
        """The funnel of the newest rounds of a task (by default of the oldest one), or of the
        newest before a round, oldest first; at most MOST_ROUNDS. Refused if there is none of that
        name.
        """
        with self.store.reading() as rows:
            named = [stored.task for stored in rows.tasks() if task in (None, stored.task.name)]
            if not named:
                if task is None:
                    return RoundReports()
                raise Refused(Cause.UNKNOWN_TASK, "there is no task of that name")
            return RoundReports(
                rows.reports(named[0], now, min(most, MOST_ROUNDS), before),
                rows.first_round(named[0].name),
            )

    def checkpoint(self, task: str = "default") -> StoredCheckpoint:
        """What a training task goes on from. Refused if there is no such task."""
        with self.store.reading() as rows:
            current = rows.current(task)
        if current is None:
            raise Refused(Cause.UNKNOWN_TASK, "there is no training task of that name")
        return current

    def has_checkpoint(self, task: str, sha: str) -> bool:
        """Whether a task has a checkpoint of that SHA-256 (of its float32 form)."""
        with self.store.reading() as rows:
            return rows.checkpoint(task, sha) is not None

    def finished(self, task: str = "default") -> bool:
        """Whether the task has all the rounds it wants."""
        return any(
            stored.task.name == task and stored.state is State.FINISHED for stored in self.tasks()
        )

    def pause(self, task: str) -> None:
        """Admit nobody any more; whoever is at work may still report. Refused unless the task is
        running.
        """
        self._set_state(task, State.RUNNING, State.PAUSED)

    def resume(self, task: str) -> None:
        """Admit devices again. Refused unless the task is paused."""
        self._set_state(task, State.PAUSED, State.RUNNING)

    def roll_back(self, task: str, to: str | int, now: float) -> StoredCheckpoint:
        """Go on from an earlier checkpoint (its SHA-256 or round): the open round ends without one,
        the next starts from there.

        Refused for a task or checkpoint that is not there, and for a finished task.
        """
        with self._lock:
            with self.store.transaction(durable=True) as rows:
                stored = self._stored(rows, task)
                if stored.task.kind is not Kind.TRAINING or stored.state is State.FINISHED:
                    raise Refused(
                        Cause.WRONG_STATE, "only a training task that is not finished can go back"
                    )
                if isinstance(to, int):
                    earlier = rows.checkpoint_of_round(task, to)
                else:
                    earlier = rows.checkpoint(task, to)
                if earlier is None:
                    raise Refused(Cause.UNKNOWN_BLOB, "the task has no such checkpoint")
                if self._is_spending(rows, stored.task):
                    raise Refused(
                        Cause.WRONG_STATE,
                        "the sum of its open round is being opened: what that spends is written "
                        "down first; ask again once the round is closed",
                    )
                state = replace(rows.open_rounds()[task].state, phase=Phase.ABANDONED)
                rows.close_round(task, state, None, Cause.ROUND_CLOSED, now, all_rounds=True)
                chain.sign(rows, self.round_keys, task, earlier, state.round + 1, now)
                self.log.enter_checkpoint(rows, stored.task, earlier)
                rows.open_round(task, RoundState(state.round + 1), earlier, now)
            self._sums.ended((task, state.round))
            self.store.tidy()
        return earlier

    def _is_spending(self, rows: Rows, task: Task) -> bool:
        """Whether the noise of a task's open round may be drawn, and its sum is not written down
        yet.
        """
        if task.noise is None:
            return False
        phase = rows.open_rounds()[task.name].state.phase
        return phase not in OPEN or rows.spending.of(task.name).drawn is not None

    def create_codes(self, count: int, life_s: float, now: float) -> list[str]:
        """New enrolment codes, each good for one device. Only their hashes are kept."""
        codes = [secrets.token_hex(16) for _ in range(count)]
        with self._lock, self.store.transaction(durable=True) as rows:
            rows.add_codes([digest(code.encode()) for code in codes], now + life_s)
        return codes

    def locked(self) -> threading.Lock:
        """Held while the store is written: for what is created beside the coordinator's own
        work.
        """
        return self._lock

    # one group

    def _group(
        self, requests: Sequence[Request], judged: Sequence[Judged | None], now: float
    ) -> list[Answer]:
        """Answers to the first of the requests, at most until a round is over; such a round is
        closed, and the next opened, before this returns. If that fails, what is answered stands:
        the next group, or time, does it. None at all if a round's sum could not be read: that
        round is closed.
        """
        self._begin(now)
        try:
            return self._answers(requests, judged, now)
        except Lost as lost:
            self._give_up(lost, now)
            return []

    def _answers(
        self,
        requests: Sequence[Request],
        judged: Sequence[Judged | None],
        now: float,
        at_once: bool = False,
    ) -> list[Answer]:
        nonces = [(each.device, each.nonce) for each in requests if each.nonce is not None]
        devices = [each.device for each in requests if _HEX_16.fullmatch(each.device)]
        of_work = Reporting | Abandoning | Telling | Hearing
        names = [each.assignment for each in requests if isinstance(each, of_work)]
        # what one device hears of a step, all others must hear too
        acknowledging = any(isinstance(each, Reporting | Telling | Hearing) for each in requests)
        answers: list[Answer] = []
        counted: Counted = {}
        with (
            self._doubting_sums(),
            self.store.transaction(durable=acknowledging, at_once=at_once) as rows,
        ):
            if at_once and self._is_due(rows, now):
                return []
            ledger = Ledger(rows, now, devices, names, nonces)
            self._drop_overdue(rows, ledger)
            self.steps.settle(rows, ledger)
            if not ledger.over and not ledger.frozen:
                for request, opinion in zip(requests, judged, strict=True):
                    answer = self._answer(request, opinion, ledger, rows, counted)
                    if not isinstance(request, _OF_STEPS):  # nothing about check-ins
                        ledger.tell_when(request.device, answer)
                    answers.append(answer)
                    if ledger.over or ledger.frozen:
                        break
            for at, reports in counted.items():
                self._sums.save(rows, at, self._add(rows, at, reports, ledger))
            ledger.write()
            for name in ledger.frozen:
                self._freeze(rows, ledger.tasks[name].task, ledger.rounds[name], now)
        self._sums.stored()
        for each in () if at_once else ledger.over:
            try:
                self._end(ledger.tasks[each.task].task, each, now)
            except Exception:
                if not answers:
                    raise
                log.exception("a round could not be closed", extra={"task": each.task})
        return answers

    @contextmanager
    def _doubting_sums(self) -> Iterator[None]:
        """If a transaction fails, nobody knows whether it held: sums are read again from the store,
        which does.
        """
        try:
            yield
        except BaseException:
            self._sums.doubted()
            raise

    def _begin(self, now: float) -> None:
        """Before the first group: what a server that was killed has left."""
        if not self._has_begun:
            for lost in self._sums.begin(self.store):
                self._give_up(lost, now)
            self._noise.begin()
            self._has_begun = True

    def _give_up(self, lost: Lost, now: float) -> None:
        """Abandon the round whose sum cannot be read any more."""
        log.error("%s", lost)
        task, number = lost.at
        with self.store.reading() as rows:
            stored, round = self._stored(rows, task), rows.open_rounds().get(task)
        if round is not None and round.state.round == number:
            state = replace(round.state, phase=Phase.ABANDONED)
            self._end(stored.task, replace(round, state=state), now)

    def _answer(
        self,
        request: Request,
        judged: Judged | None,
        ledger: Ledger,
        rows: Rows,
        counted: Counted,
    ) -> Answer:
        if not ledger.is_enrolled(request.device):
            return Refused(Cause.UNKNOWN_DEVICE, "the device is not enrolled")
        if judged is not None and not judged.genuine:
            return Refused(Cause.BAD_SIGNATURE, "the body is not the one that was signed")
        if request.nonce is not None and not ledger.is_new(request.device, request.nonce):
            return Refused(Cause.REPLAYED, "this request has been made before")
        if isinstance(request, CheckingIn):
            answer = self._checked_in(request, ledger, rows)
            index = ledger.index(request.check_in.population)
            return changed(answer, releases=index) if index else answer
        if isinstance(request, Looking):
            return None
        if isinstance(request, Fetching):
            self._fetched(request, ledger)
            return None
        work = ledger.assignments.get(request.assignment)
        if work is None or work.device != request.device:
            return Refused(Cause.UNKNOWN_ASSIGNMENT, "this device has no such assignment")
        if request.signed_for is not None and request.signed_for != (work.task, work.round):
            return Refused(Cause.WRONG_ROUND)
        if isinstance(request, Abandoning):
            return self._abandoned(request, work, ledger)
        if isinstance(request, _OF_STEPS):
            return self.steps.answer(request, work, ledger, rows)
        return self._reported(request, work, judged, ledger, rows, counted)

    def _checked_in(self, request: CheckingIn, ledger: Ledger, rows: Rows) -> Assignment | Reject:
        """Open work again, whenever it is asked for; else, in its time, a place, a ticket for one,
        or why not.
        """
        device, check_in, now = request.device, request.check_in, ledger.now
        asked = [
            stored
            for stored in ledger.tasks.values()
            if stored.task.population == check_in.population
        ]
        for stored in asked:
            work = self._open_work(stored.task, device, check_in, ledger)
            if work is not None:
                answer = self._assignment(stored.task, work, check_in.log_size, ledger, rows)
                if answer.log is not None or not chain.needs(stored.task):
                    return answer
        told = ledger.told(device)
        if told is not None and pacing.too_early(told, now):
            return self._too_early(device, told, [stored.task.name for stored in asked], ledger)
        causes: list[tuple[Task, Cause]] = []
        chances: dict[Chance, list[Task]] = {}
        for stored in asked:
            chance = self._chance(stored, device, check_in, ledger, rows)
            if isinstance(chance, Chance):
                chances.setdefault(chance, []).append(stored.task)
            else:
                causes.append((stored.task, chance))
        if able := chances.get(Chance.COMES_IN):
            task = self._neediest(able, ledger)
            self._give_newest(task, ledger, rows)
            if ledger.ticket(device, task.name) is None:
                ledger.tell(task.name, Asked(now))  # one who comes late, and takes a spare place
            round = ledger.rounds[task.name]
            ledger.tell(task.name, Admitted(now))
            return self._assignment(
                task,
                ledger.assign(device, task.name, holds=_has_all(task, round, check_in)),
                check_in.log_size,
                ledger,
                rows,
            )
        if waits := chances.get(Chance.WAITS):
            return self._selecting(waits[0], ledger)
        if able := chances.get(Chance.ASKS):
            task = self._neediest(able, ledger)
            ledger.ask(device, task.name)
            return self._selecting(task, ledger)
        for task, cause in causes:
            if task.name in ledger.rounds:
                ledger.note_check_in(device, task.name, cause.value)
        if not causes:
            return Reject(Cause.NO_ROUND, self._retry(Cause.NO_ROUND, Rules(), now))
        task, cause = next(
            ((task, cause) for task, cause in causes if not MEANING[cause].lasts), causes[0]
        )
        return Reject(cause, self._retry(cause, task.rules, now))

    def _open_work(
        self, task: Task, device: str, check_in: CheckIn, ledger: Ledger
    ) -> StoredAssignment | None:
        """The work that a device has been given already, if it may go on with it."""
        if task.name not in ledger.rounds:
            return None
        work = ledger.work(device, task.name)
        if work is None or work.status is not AssignmentStatus.OPEN:
            return None
        return work if self._decide(task, device, check_in, ledger) is None else None

    def _decide(self, task: Task, device: str, check_in: CheckIn, ledger: Ledger) -> Cause | None:
        number = ledger.rounds[task.name].state.round
        history = ledger.history(device, task.name)
        of = task.tokenizer, task.policy, ledger.now, task.text_rules
        cause = decide(check_in, history, number, *of)
        return cause or self._spends(task, device, ledger)

    def _spends(self, task: Task, device: str, ledger: Ledger) -> Cause | None:
        """Why a device must not be in the next sum of a task with noise."""
        if task.noise is None:
            return None
        history, number = ledger.history(device, task.name), ledger.next_sum(task.name)
        most, apart = task.noise.participations, task.policy.min_separation
        return spends(history, number, most, apart)

    def _chance(
        self, stored: StoredTask, device: str, check_in: CheckIn, ledger: Ledger, rows: Rows
    ) -> Chance | Cause:
        """What a task has for a device without open work, or why nothing."""
        task = stored.task
        if stored.state is State.FINISHED or task.name not in ledger.rounds:
            return Cause.NO_ROUND
        round, had = ledger.rounds[task.name], ledger.work(device, task.name)
        cause = self._decide(task, device, check_in, ledger)
        if cause is None and had is not None:
            is_open = had.status is AssignmentStatus.OPEN  # and was not given: it is not signed for
            return Cause.UNCERTIFIED if is_open else Cause.ALREADY_ASSIGNED
        if cause is None and stored.state is State.PAUSED:
            return Cause.TASK_PAUSED
        if cause not in (None, Cause.REPORTED_RECENTLY):
            return cause
        base = round.base
        if task.kind is Kind.EVALUATION and round.state.admitted == 0:
            newest = rows.current(task.evaluates)
            if newest is not None and newest.sha == rows.last_base(task.name):
                return cause or Cause.ROUND_FULL  # that checkpoint has been scored
            base = base if newest is None else newest.sha
        if task.kind is Kind.RELEASES and not ledger.published(task.population):
            return cause or Cause.ROUND_FULL  # there is nothing to compare
        if chain.needs(task):
            given = self._proof(task, round.state.round, base, ledger, rows)
            if given is None or (given.log is None and not asks_helper(task)):
                return Cause.UNCERTIFIED
            if given.log is None:  # its helper has not signed so far
                return cause or Cause.NO_HELPER
        if asks_helper(task) and ledger.seal_key(task.name, round.state.round) is None:
            return cause or Cause.NO_HELPER
        if cause is not None:
            if stored.state is State.RUNNING:
                ledger.tell(task.name, TurnedAway(ledger.now))
            return cause
        return rounds.chance(round.state, ledger.ticket(device, task.name), task.rules)

    def _neediest(self, tasks: Sequence[Task], ledger: Ledger) -> Task:
        """The task that has the smallest share of the devices it wants."""

        def share(task: Task) -> float:
            state = ledger.rounds[task.name].state
            return (state.admitted + state.places.asked) / task.rules.cohort

        return min(tasks, key=share)

    def _selecting(self, task: Task, ledger: Ledger) -> Reject:
        """To one who has a ticket: when it hears more."""
        until = ledger.rounds[task.name].state.places.until
        wait = pacing.return_in_s(
            ledger.now if until is None else until,
            task.rules,
            self._population,
            ledger.now,
            self._rng,
        )
        return Reject(Cause.SELECTING, wait)

    def _too_early(self, device: str, told: Told, tasks: Sequence[str], ledger: Ledger) -> Reject:
        """A device that comes before its time has no ticket, unless it asks again what was not
        answered.
        """
        wait = told.due - ledger.now
        open_tasks = [name for name in tasks if name in ledger.rounds]
        repeated = pacing.is_repeated(told, ledger.now)
        if repeated and any(ledger.ticket(device, name) for name in open_tasks):
            return Reject(Cause.SELECTING, wait)
        if not repeated:
            for name in open_tasks:
                ledger.withdraw(device, name)
        return Reject(Cause.TOO_EARLY, wait)

    def _give_newest(self, task: Task, ledger: Ledger, rows: Rows) -> None:
        """Let an evaluation that nobody has joined yet score the newest checkpoint."""
        round = ledger.rounds[task.name]
        if task.kind is Kind.EVALUATION and round.state.admitted == 0:
            newest = rows.current(task.evaluates)
            if newest is not None:
                ledger.save(
                    replace(round, base=newest.sha, base_round=newest.round, half=newest.half)
                )

    def _reported(
        self,
        request: Reporting,
        work: StoredAssignment,
        judged: Judged | None,
        ledger: Ledger,
        rows: Rows,
        counted: Counted,
    ) -> Answer:
        task, now = ledger.tasks[work.task].task, ledger.now
        name = digest(request.body) if judged is None else judged.name
        size = len(request.body) if request.size is None else request.size
        ledger.count(work, bytes_up=size, uploaded=int(not work.uploaded))
        work = changed(work, uploaded=True)
        if work.status is not AssignmentStatus.OPEN:
            return self._again(work, name, task, ledger)
        round = ledger.rounds[task.name].state
        if round.phase is Phase.UNMASKING:  # nothing joins a sum that is being opened
            if task.rules.buffered:
                return Refused(Cause.UNAVAILABLE, "the round's sum is being opened; send it again")
            ledger.settle(
                work, status=AssignmentStatus.CLOSED, cause=Cause.SURPLUS, update_hash=name
            )
            return Reject(Cause.SURPLUS, self._retry(Cause.SURPLUS, task.rules, now))
        if (out_of_turn := self.steps.why_not_masked(work, task, rows)) is not None:
            return out_of_turn
        value = None
        if judged is not None and (judged.task, judged.round) == (work.task, work.round):
            value = judged.value
        if value is None:  # not judged, as part of other work, or before it was assigned
            bound = self._bound(rows, task, work.round, work.device)
            value = judge(request.body, request.kind, task, work.round, bound)
        if isinstance(value, ReleaseScores):
            released = ledger.published(task.population)
            if not {value.release, value.before or value.release} <= released:
                value = Cause.NOT_SCORES
        if isinstance(value, Cause):
            ledger.settle(work, status=AssignmentStatus.REFUSED, cause=value, update_hash=name)
            ledger.tell(task.name, Dropped(now))
            return Refused(value)
        if round.round - work.round > task.rules.max_staleness:
            ledger.settle(work, status=AssignmentStatus.CLOSED, cause=Cause.STALE, update_hash=name)
            ledger.tell(task.name, Dropped(now))
            return Reject(Cause.STALE, self._retry(Cause.STALE, task.rules, now))
        participation = ledger.history(work.device, task.name)
        too_soon = self._spends(task, work.device, ledger)
        if not separation.may_join(
            round.round, participation.last_counted, task.policy.min_separation
        ):
            too_soon = Cause.REPORTED_RECENTLY
        if too_soon is not None:
            # only in a buffered task: the device has been counted in this very round by an older
            # assignment
            ledger.settle(work, status=AssignmentStatus.CLOSED, cause=too_soon, update_hash=name)
            ledger.tell(task.name, Dropped(now))
            return Reject(too_soon, self._retry(too_soon, task.rules, now))
        ledger.participated(work.device, task.name)
        ledger.settle(
            work, status=AssignmentStatus.COUNTED, update_hash=name, counted_in=round.round
        )
        if isinstance(value, Scores | ReleaseScores):
            counted.setdefault((task.name, round.round), []).append(value)
        else:
            if isinstance(value, Sealed) and value.seal:
                ledger.keep_seal(work, value)
            weighted = mechanism.of(task).weigh(value, round.round - work.round)
            counted.setdefault((task.name, round.round), []).append(weighted)
        if not ledger.tell(task.name, Reported(now)):
            raise RunError(
                f"task {task.name}",
                f"round {round.round} does not wait for {work.assignment}, which is open",
                "restore the database from a backup",
            )
        return Ack(True, self._retry(None, task.rules, now))

    def _again(self, work: StoredAssignment, name: str, task: Task, ledger: Ledger) -> Answer:
        """The answer to a report for an assignment that is no longer open."""
        if work.status is AssignmentStatus.CLOSED:
            cause = MEANING[work.cause].told_late if work.cause else Cause.ROUND_CLOSED
            ledger.settle(
                ledger.assignments[work.assignment], uploaded=True, cause=cause, update_hash=name
            )
            return Reject(cause, self._retry(cause, task.rules, ledger.now))
        ledger.settle(ledger.assignments[work.assignment], uploaded=True)
        if work.status is AssignmentStatus.ABANDONED:
            return Refused(Cause.ABANDONED, "the device has abandoned this assignment")
        if work.update_hash != name:
            return Refused(Cause.DIFFERENT_UPDATE, "this assignment has another report already")
        return (
            Ack(True, self._retry(None, task.rules, ledger.now))
            if work.cause is None
            else Refused(work.cause)
        )

    def _abandoned(self, request: Abandoning, work: StoredAssignment, ledger: Ledger) -> Answer:
        if not MEANING[request.cause].gives_back:
            expected = ", ".join(cause for cause in Cause if MEANING[cause].gives_back)
            return Refused(Cause.MALFORMED, f"cause: expected one of {expected}")
        retry = self._retry(request.cause, ledger.tasks[work.task].task.rules, ledger.now)
        if work.status is not AssignmentStatus.OPEN:
            return Ack(work.status is AssignmentStatus.COUNTED, retry)
        ledger.settle(work, status=AssignmentStatus.ABANDONED, cause=request.cause)
        ledger.tell(work.task, Dropped(ledger.now))
        return Ack(False, retry)

    def _fetched(self, request: Fetching, ledger: Ledger) -> None:
        """Count bytes in the round they are for, and the first time all of its checkpoint went to
        the device.
        """
        task, number = request.signed_for or ("", 0)
        mine = [each for each in ledger.works(request.device, task) if each.round == number]
        # of a buffered round it may have had several: it fetches for the one that is open
        mine.sort(key=lambda each: each.status is not AssignmentStatus.OPEN)
        for work in mine[:1]:
            ledger.count(work, bytes_down=request.size)
            round = ledger.rounds.get(work.task)
            wanted = round.half if round is not None and round.state.round == work.round else None
            has_all = request.complete and wanted in (request.blob, request.makes)
            if wanted is not None and has_all and not work.downloaded:
                ledger.count(work, downloaded=1)
                ledger.settle(work, downloaded=True)

    def _drop_overdue(self, rows: Rows, ledger: Ledger) -> None:
        """A buffered round never ends for want of a device: one that takes too long is dropped by
        itself.
        """
        for name, round in list(ledger.rounds.items()):
            rules = ledger.tasks[name].task.rules
            if rules.buffered and round.state.phase in OPEN and round.state.waiting:
                for work in rows.overdue(name, ledger.now - rules.reporting_s):
                    ledger.settle(
                        ledger.assignments.get(work.assignment, work),
                        status=AssignmentStatus.CLOSED,
                        cause=Cause.TIMED_OUT,
                    )
                    ledger.tell(name, Dropped(ledger.now))

    def _assignment(
        self, task: Task, work: StoredAssignment, seen: int, ledger: Ledger, rows: Rows
    ) -> Assignment:
        """The message of work; `seen`: entries of the log that the device has seen."""
        round, proof = ledger.rounds[task.name], None
        base, half = round.base, round.half
        if work.round != round.state.round:
            base, half = rows.given_by(task.name, work.round)
        if chain.needs(task):
            proof = self._proof(task, work.round, base, ledger, rows)
        shown = None if proof is None else proof.log
        return Assignment(
            assignment=work.assignment,
            round=work.round,
            plan=task.plan_hash,
            checkpoint=half,
            shapes=task.shapes,
            deadline_s=max(0.0, work.admitted_at + secagg_steps.promised_s(task) - ledger.now),
            task=task.name,
            kind=task.kind,
            min_separation=task.policy.min_separation,
            server=self.server,
            task_id=task_id(self.server, task.name),
            certificate=None if proof is None else proof.certificate,
            link=None if proof is None else proof.link,
            seal_key=ledger.seal_key(task.name, work.round) if asks_helper(task) else None,
            log=None if shown is None else self.log.seen_from(rows, shown, seen),
            rules=task.text_rules,
        )

    def _proof(
        self, task: Task, number: int, base: str, ledger: Ledger, rows: Rows
    ) -> chain.Given | None:
        """Who signed the checkpoint `base`, which a round gives to its devices, and where it stands
        in the log; None if they would not take it. Each is read once a group.
        """
        at = task.name, number, base
        if at not in ledger.proofs:
            given = chain.for_work(rows, task, base, number, ledger.now)
            if given is not None:
                shown = self.log.proof(rows, task, chain.half_in(given.link))
                given = replace(given, log=shown)
            ledger.proofs[at] = given
        return ledger.proofs[at]

    def _retry(self, cause: Cause | None, rules: Rules, now: float) -> float:
        return pacing.retry_in_s(cause, rules, self._population, now, self._rng)

    # updates

    def _task(self, name: str) -> Task | None:
        """A task by its name. Tasks do not change, so each is read once."""
        if name not in self._tasks:
            self._tasks = {stored.task.name: stored.task for stored in self.tasks()}
        return self._tasks.get(name)

    def _add(
        self,
        rows: Rows,
        at: At,
        reports: list[Weighted | Scores | ReleaseScores],
        ledger: Ledger,
    ) -> Sum:
        """This replica's sum of a round with these reports in it: all of the task's kind."""
        task, total = ledger.tasks[at[0]].task, self._sums.of(rows, at)
        by = mechanism.of(task)
        if task.kind is Kind.RELEASES:
            of_devices = [each for each in reports if isinstance(each, ReleaseScores)]
            return release_scores.added(total, of_devices)
        if task.kind is Kind.EVALUATION and not is_masked(task):
            vectors = [scores.to_vector(each) for each in reports if isinstance(each, Scores)]
            before = Sum(scores.empty()) if total is None else total
            return Sum(scores.add([before.total, *vectors]), count=before.count + len(vectors))
        return by.add(total or by.empty(), [each for each in reports if isinstance(each, Weighted)])

    # the end of a round

    def _is_due(self, rows: Rows, now: float) -> bool:
        """Whether time alone changes something."""
        tasks = {stored.task.name: stored.task for stored in rows.tasks()}
        for name, round in rows.open_rounds().items():
            rules = round_rules(tasks[name])
            if self.steps.is_due(rows, tasks[name], round.state, now):
                return True
            if round.state.phase is Phase.UNMASKING:
                continue
            if (
                round.state.phase not in OPEN
                or advance(round.state, Tick(now), rules) != round.state
            ):
                return True
            if (
                rules.buffered
                and round.state.waiting
                and rows.overdue(name, now - rules.reporting_s)
            ):
                return True
        return False

    def _end(self, task: Task, round: StoredRound, now: float) -> None:
        """Close a round that has committed or was abandoned, and open the next. If this fails, or
        the process dies, the next group does it.
        """
        trains, after, parts = task.kind is Kind.TRAINING, None, None
        compares = task.kind is Kind.RELEASES  # what it counted outlasts a round that is abandoned
        if compares or round.state.phase is Phase.COMMITTED:
            parts = self._parts(task.name, round.state.round)
        if parts and task.kind in CERTIFIED:
            total = mechanism.of(task).total(parts)
            if adds_noise(task):
                noise = self._noise.of(task, round.state.round)
                if isinstance(noise, NoNoise):
                    self._close(task, round, _without(noise), now)
                    return
                total = mechanism.with_noise(total, noise)
            parts = [total]
            after = self._next_checkpoint(task, round, total, now) if trains else None
        self._close(task, round, _End(parts, after), now)

    def _close(self, task: Task, round: StoredRound, end: "_End", now: float) -> None:
        """Close a round with what it has come to, and open the next; nothing if it is closed."""
        state, rules = round.state, task.rules
        about = {"task": task.name, "round": state.round}
        trains, compares = task.kind is Kind.TRAINING, task.kind is Kind.RELEASES
        after, parts = end.after, end.parts
        if after is None if trains else parts is None:
            state = replace(state, phase=Phase.ABANDONED)
        with self._doubting_sums(), self.store.transaction(durable=True) as rows:
            still_open = rows.open_rounds().get(task.name)
            if still_open is None or still_open.state.round != state.round:
                return  # another replica has closed it
            if parts is None and round.state.phase is Phase.COMMITTED and not end.reason:
                log.error("round abandoned: what it counted cannot be read", extra=about)
            if after is not None:
                rows.add_checkpoint(task.name, after)
                chain.sign(rows, self.round_keys, task.name, after, state.round + 1, now)
            elif parts and not trains and not compares:
                self._keep(rows, task, state, parts)
            closed = comparing.close(rows, task, parts, now) if compares and parts else None
            if still_open.state.phase is Phase.UNMASKING:
                self._say(rows, task, state, end.reason)
                rows.bar(task.name, end.barred)
            elif end.reason:
                rows.say_of_round(task.name, state.round, end.reason[: SENTENCE.most])
            over = self._account(rows, task, state, end)
            committed = rows.committed(task.name) + (state.phase is Phase.COMMITTED)
            finished = 0 < rules.rounds <= committed or bool(over)
            ends = Cause.ROUND_CLOSED if state.phase is Phase.ABANDONED else Cause.SURPLUS
            late = Cause.TIMED_OUT if not rules.buffered and is_over(state, now, rules) else ends
            rows.close_round(
                task.name,
                state,
                None if after is None else after.sha,
                None if rules.buffered and not finished else late,
                now,
                all_rounds=finished,
            )
            if after is not None:
                self.log.enter_checkpoint(rows, task, after, state.reported)
            else:
                self.log.enter_lost_sum(rows, task, state.round, state.reported)
            if finished:
                rows.set_state(task.name, State.FINISHED)
            else:
                base = after or StoredCheckpoint(round.base, round.base_round, round.half)
                rows.open_round(task.name, following(state, rules), base, now)
                if closed is not None:
                    self._sums.save(rows, (task.name, state.round + 1), closed.waiting)
                if rules.buffered and state.places.until is not None:
                    rows.carry_tickets(task.name, state.round, state.round + 1)
        self.turns += 1
        self._sums.stored()
        self._sums.ended((task.name, state.round))
        self.store.tidy()
        told = {"phase": str(state.phase), "counted": state.reported}
        if end.reason:
            told |= {"reason": end.reason}
        log.info("round closed", extra=about | told | self._spent(task, over))
        if adds_noise(task):
            try:
                self._noise.ended(task)
            except FedboardError as error:  # the next start does it
                log.warning("a key was not removed", extra={"error": type(error).__name__})
        for release, verdict in (closed.stopped if closed else {}).items():
            where = {"population": task.population, "release": release}
            log.warning("release stopped: %s", verdict.why, extra=about | where)

    def _account(self, rows: Rows, task: Task, state: RoundState, end: "_End") -> str:
        """Write down whose reports were in a sum with noise, if one was made, and what has been
        spent by now; why no further round may start, in a sentence, empty if one may.
        """
        if task.noise is None:
            return ""
        kept = rows.spending.of(task.name)
        is_drawn = kept.drawn == state.round
        if is_drawn or end.noised is not None:
            begins = kept.begins if is_drawn else state.round in (end.noised or Noised()).began
            oldest = state.round - terms(task).max_staleness
            kept = rows.spending.record(task.name, state.round, oldest, begins, end.noised)
            rows.spending.note(task.name, state.round, budget.standing(task.noise, kept).account)
        over = end.reason if end.is_over else ""
        agreed, last = terms(task), rows.spending.last_round(task.name)
        begins = agreed.basis(state.round + 1) != agreed.basis(max(last, 0))
        over = over or budget.why_over(task.noise, kept, agreed.min_separation, begins, agreed.turn)
        if over:
            rows.spending.set_over(task.name, over)
        return over

    def _spent(self, task: Task, over: str) -> dict[str, object]:
        """What a line of the log says of a task with noise."""
        if task.noise is None:
            return {}
        with self.store.reading() as rows:
            spent = budget.standing(task.noise, rows.spending.of(task.name))
        told = {"rho": spent.account.rho, "epsilon": spent.account.epsilon, "sums": spent.sums}
        return told | ({"over": over} if over else {})

    def _keep(self, rows: Rows, task: Task, state: RoundState, parts: Sequence[Sum]) -> None:
        """Keep what a round has counted, of scores or of words."""
        if task.kind is Kind.COUNTS:
            rows.add_tally(task.name, state.round, tallies.tally(parts[0]))
        else:
            rows.add_scores(task.name, state.round, scores.add(each.total for each in parts))

    def _say(self, rows: Rows, task: Task, state: RoundState, reason: str) -> None:
        """Keep why a masked round was abandoned; of one that is committed, how many of its devices
        were in the last sum too: what they sent twice could be told by the difference.
        """
        if state.phase is Phase.ABANDONED:
            rows.say_of_round(task.name, state.round, reason[: SENTENCE.most])
            return
        oldest = state.round - terms(task).max_staleness
        members = member_names(task, rows.counted_in(task.name, state.round, oldest))
        last = rows.seals.last(task.name)
        rows.say_of_round(task.name, state.round, overlap=len(members & split(last)))
        rows.seals.set_last(task.name, b"".join(sorted(members)))

    # sums that are masked

    def _freeze(self, rows: Rows, task: Task, round: StoredRound, now: float) -> None:
        """No report joins a round whose sum is to be opened, and nobody works for it any more."""
        self.turns += 1
        state, rules = round.state, task.rules
        if not rules.buffered:
            late = is_over(state, now, rules)
            rows.close_work(task.name, state.round, Cause.TIMED_OUT if late else Cause.SURPLUS)
        opener = self.openers.get(task.aggregation)
        if opener is not None:
            opener.freeze(rows, Frozen(task, state.round, state.reported), now)

    def open_sums(self, now: float) -> None:
        """Fetch what masked rounds need of others, and close the rounds whose masks have come.
        Devices are answered meanwhile. One thread does it; any other returns at once.
        """
        if not self._opening.acquire(blocking=False):
            return
        try:
            with self._lock:
                self._begin(now)
            with self.store.reading() as rows:
                stored, open_rounds = rows.tasks(), rows.open_rounds()
            failed: Exception | None = None
            for task in (each.task for each in stored if each.task.name in open_rounds):
                if open_rounds[task.name].state.phase is not Phase.UNMASKING:
                    self.waits.pop(task.name, None)
                    continue
                try:
                    self._open(task, open_rounds[task.name], now)
                except Exception as error:  # the others are opened all the same
                    failed = error
            if self.helping is not None:
                for task, there in self.helping.register(now):
                    self._follow(task, there, now)
                self.helping.countersign(now)
                self.helping.prepare(now)
                self.helping.look(now)
            if failed is not None:
                raise failed
        finally:
            self._opening.release()

    def _follow(self, task: Task, there: Registered, now: float) -> None:
        """Go on with a round whose sum the helper will open, and with no key that it has not: one
        of the two may have been put back from a backup. A sum that is frozen has been asked for.
        """
        name = task.name
        with self._lock:
            with self.store.transaction(durable=True) as rows:
                round = rows.open_rounds().get(name)
                if round is None:
                    return
                if advance(round.state, Tick(now), round_rules(task)).phase not in OPEN:
                    return  # time is about to freeze it again, which a power cut has undone
                number, kept = round.state.round, rows.seals.key_rounds(name)
                is_given = number in kept and round.state.admitted > 0
                first = first_to_open(there, number, is_given)
                if any(each >= max(first, there.keyed_before) for each in kept):
                    rows.seals.drop_keys(name, max(first, there.keyed_before))
                    self._seal_keys = {}
                if first == number:
                    return
                base = rows.checkpoint(task.evaluates or name, round.base)
                state = replace(round.state, phase=Phase.ABANDONED)
                rows.close_round(name, state, None, Cause.ROUND_CLOSED, now, all_rounds=True)
                rows.say_of_round(name, number, _behind(first))
                if base is not None and task.kind in CERTIFIED:
                    chain.sign(rows, self.round_keys, name, base, first, now)
                    self.log.enter_checkpoint(rows, task, base)
                given = StoredCheckpoint(round.base, round.base_round, round.half)
                rows.open_round(name, RoundState(first), given, now)
            self._sums.ended((name, number))
            self.store.tidy()
        about = {"task": name, "round": number}
        log.warning("a round was left out: %s", _behind(first), extra=about)

    def _open(self, task: Task, round: StoredRound, now: float) -> None:
        frozen = Frozen(task, round.state.round, round.state.reported)
        opener = self.openers.get(task.aggregation)
        if opener is None:
            self.waits[task.name] = (
                f"this server has nobody to open sums: it asks no {task.aggregation}"
            )
            return
        answer = opener.ask(frozen, now)
        if isinstance(answer, Waiting):
            self.waits[task.name] = answer.why
            return
        self.waits.pop(task.name, None)
        if isinstance(answer, Never):
            end = _End(reason=answer.reason, barred=answer.devices, is_over=answer.is_over)
        else:
            end = self._opened(task, round, answer, now)
        phase = Phase.ABANDONED if end.reason else Phase.COMMITTED
        with self._lock:
            self._close(task, replace(round, state=replace(round.state, phase=phase)), end, now)
        opener.ended(frozen)

    def _opened(self, task: Task, round: StoredRound, mask: Mask, now: float) -> "_End":
        """What a frozen round comes to, now that its mask is known. The noise of a helper is in
        it, whatever follows.
        """
        noised = mask.noised if mask.noised.sums else None
        if task.noise is not None and not adds_noise(task) and noised is None:
            return _End(reason="its helper has added no noise to the sum")
        with self._lock:
            parts = self._parts(task.name, round.state.round)
        if not parts:
            return _End(reason="what it counted cannot be read: its key is lost", noised=noised)
        opened = mechanism.opened(task, parts, mask.words)
        if isinstance(opened, str):
            return _End(reason=opened, noised=noised)
        if task.kind not in CERTIFIED:
            return _End([opened])
        if adds_noise(task):
            with self._lock:
                noise = self._noise.of(task, round.state.round)
            if isinstance(noise, NoNoise):
                return _without(noise)
            opened = mechanism.with_noise(opened, noise)
        if task.kind is Kind.COUNTS:
            return _End([opened], noised=noised)
        after = self._next_checkpoint(task, round, opened, now)
        if after is None:
            reason = "its weights are too large for float16: lower the learning rate"
            return _End(reason=reason, noised=noised)
        return _End([opened], after, noised=noised)

    def _parts(self, task: str, number: int) -> list[Sum] | None:
        """What all replicas have counted of a round; None if one of the sums cannot be read any
        more.
        """
        with self.store.reading() as rows:
            try:
                return self._sums.of_all(rows, (task, number))
            except Lost:  # or another replica has just closed the round
                return None

    def _next_checkpoint(
        self, task: Task, round: StoredRound, total: Sum, now: float
    ) -> StoredCheckpoint | None:
        """The round's checkpoint of what all replicas have counted; None if its weights cannot
        travel.
        """
        number = round.state.round
        with self.store.reading() as rows:
            base = rows.checkpoint(task.name, round.base)
        if base is None:
            raise RunError(
                f"task {task.name}",
                f"the checkpoint round {number} starts from is not in the database",
                "restore the database from a backup",
            )
        return closing.next_checkpoint(task, number, base, total, self.blobs, now)

    # operators

    def _set_state(self, task: str, before: State, after: State) -> None:
        with self._lock, self.store.transaction(durable=True) as rows:
            state = self._stored(rows, task).state
            if state is not before:
                raise Refused(Cause.WRONG_STATE, f"expected a {before} task, found a {state} one")
            rows.set_state(task, after)

    def _stored(self, rows: Rows, task: str) -> StoredTask:
        named = next((stored for stored in rows.tasks() if stored.task.name == task), None)
        if named is None:
            raise Refused(Cause.UNKNOWN_TASK, "there is no task of that name")
        return named

    def _use_code(self, rows: Rows, code: str, device: str, key: str, now: float) -> None:
        """Enrol a new device, by its code where one is needed. A code lets in one device, again and
        again if its answer was lost.
        """
        hashed = digest(code.encode())
        if self.codes_needed:
            kept = rows.code(hashed)
            if kept is None or kept.expires_at < now or kept.device not in (None, device):
                raise Refused(
                    Cause.BAD_CODE,
                    "an enrolment code is needed that has not been used and has not expired",
                )
        rows.enrol(device, key, now)
        if self.codes_needed:
            rows.use_code(hashed, device)
        self._population += 1


@dataclass(frozen=True)
class _End:
    """What a round has come to."""

    # what its replicas have counted, or the one sum that was opened; None where that cannot be read
    parts: Sequence[Sum] | None = None
    after: StoredCheckpoint | None = None  # of a training task that goes on from another one
    reason: str = ""  # why nothing came of a masked sum
    barred: tuple[str, ...] = ()  # devices that get no more work, since that is their doing
    noised: Noised | None = None  # what a helper says of the noise that it has added to the sum
    is_over: bool = False  # that there is no budget for one more sum is why nothing came of it


def _without(noise: NoNoise) -> _End:
    return _End(reason=noise.reason, is_over=noise.is_over)


def _behind(first: int) -> str:
    """Why a task goes on with round `first`."""
    return (
        f"the helper opens sums from round {first} on: it has opened a later one than this server "
        "knows of, or lost its keys; was one of them put back from a backup?"
    )


def _is_key(enrolment: Enrolment) -> bool:
    return _HEX_64.fullmatch(enrolment.public_key) is not None


def _has_all(task: Task, round: StoredRound, check_in: CheckIn) -> bool:
    """Whether a device has what its work needs: releases are compared by those that run them."""
    return task.kind is Kind.RELEASES or check_in.holds == round.half


def _rounds(open_rounds: Mapping[str, StoredRound]) -> set[At]:
    return {(task, round.state.round) for task, round in open_rounds.items()}
