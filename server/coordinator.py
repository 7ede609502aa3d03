"""The coordinator: message and time -> reply. The only object that remembers; everything it remembers is in its store.

An update is checked, added to the round's sum and written to the ledger in one transaction before it is acknowledged. A round's end is one
transaction too: its checkpoint (already a blob), the fate of every assignment, the next round. Between two calls nothing exists in memory only.
"""

import logging
import re
import secrets
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np

from device_runtime import difference, quantize, signing, weights
from device_runtime.errors import CheckpointError, RunError, UpdateError
from device_runtime.weights import Checkpoint, Weights, digest
from device_runtime.wire import Abandon, Ack, Assignment, Cause, CheckIn, Enrolled, Enrolment, Plan, Reject, RoundReports
from server import aggregation
from server.aggregation import ServerStep
from server.blobs import Blobs
from server.eligibility import Policy, decide
from server.rounds import OPEN, Admitted, Dropped, Phase, Reported, RoundState, Rules, Tick, advance, is_over
from server.store import ASSIGNED, Rows, Status, Store, StoredAssignment, StoredCheckpoint
from server.task import Task, rotation_seed

log = logging.getLogger("fedboard.server")

NONCE_LIFE_S = 30 * 86_400.0  # how long a nonce is remembered; a request older than that can be replayed once
DIFFERENCES = 8  # newest checkpoints a newer one is also offered as a difference from
SMALLER = 0.75  # a difference is offered if it has at most this share of the checkpoint's bytes
ABANDON_CAUSES = (Cause.CONDITION_LOST, Cause.TRAINING_FAILED, Cause.TIMED_OUT, Cause.NOT_CHARGING, Cause.METERED_NETWORK, Cause.IN_USE)
STATUS = {
    Cause.MALFORMED: 400,
    Cause.UNKNOWN_DEVICE: 401,
    Cause.BAD_SIGNATURE: 401,
    Cause.UNKNOWN_BLOB: 404,
    Cause.UNKNOWN_ASSIGNMENT: 404,
    Cause.REPLAYED: 409,
    Cause.DIFFERENT_UPDATE: 409,
    Cause.ABANDONED: 410,
    Cause.TOO_LARGE: 413,
    Cause.NOT_AN_UPDATE: 422,
    Cause.WRONG_ROUND: 422,
    Cause.WRONG_SHAPES: 422,
    Cause.NORM_TOO_LARGE: 422,
}  # HTTP, for each cause a request can be refused for
_WHY = {
    Cause.NOT_AN_UPDATE: "the body is not an update in the encoding and bits of the plan",
    Cause.WRONG_ROUND: "the update was encoded for another round or rotation",
    Cause.WRONG_SHAPES: "the update belongs to a network of other shapes",
    Cause.NORM_TOO_LARGE: "the update is larger than the plan's clipping norm allows",
}
_HEX_16, _HEX_32, _HEX_64 = (re.compile(f"[0-9a-f]{{{length}}}") for length in (16, 32, 64))


class Refused(Exception):
    """A request that breaks a rule. The endpoint answers with a Problem; nothing has changed but the ledger."""

    def __init__(self, cause: Cause, detail: str):
        super().__init__(detail)
        self.cause, self.detail, self.status = cause, detail, STATUS[cause]


def open_folder(folder: Path) -> tuple[Store, Blobs]:
    """The database and the blobs of a server's folder, made on first use. Raises RunError if it cannot be used, or is used by another server."""
    blobs = Blobs(Path(folder) / "blobs")
    return Store(Path(folder) / "server.sqlite"), blobs


def create_task(
    store: Store,
    blobs: Blobs,
    checkpoint: Checkpoint,
    plan: Plan,
    rules: Rules,
    policy: Policy,
    step: ServerStep,
    now: float,
    seed: int | None = None,
) -> Task:
    """Keep a new task and open its first round, numbered one after the checkpoint's.

    Without a seed the rotations cannot be foretold; with one, the same updates make the same checkpoints.
    Raises RunError if the store already holds a task, CheckpointError for weights that do not fit float16, ConfigError for rules a sum cannot hold.
    """
    if has_task(store):
        raise RunError("task", "this folder already holds one", "start the server to go on with it, or give a new folder")
    values = checkpoint.weights
    if not aggregation.fits_float16(values):
        raise CheckpointError("checkpoint", "it has values too large for float16, as which it would travel", "train again with a smaller rate")
    dimension = sum(array.size for array in values.values())
    seed = secrets.randbits(63) if seed is None else seed
    task = Task(plan, rules, policy, step, checkpoint.tokenizer, weights.shapes_hash(values), dimension, seed)
    blobs.put(task.plan_bytes)
    stored = _put_checkpoint(blobs, checkpoint)
    with store.transaction(durable=True) as rows:
        rows.add_task(task)
        rows.add_checkpoint(stored)
        rows.open_round(checkpoint.round + 1, stored.sha, now)
    return task


def has_task(store: Store) -> bool:
    with store.transaction() as rows:
        return rows.task() is not None


class Coordinator:
    """Goes on with the task in `store`, where it stood. `now` is in seconds, of one clock that does not run backwards. Thread-safe."""

    def __init__(self, store: Store, blobs: Blobs, rng: np.random.Generator | None = None):
        """`rng` spreads the retry times. Raises RunError if there is no task yet."""
        self._store, self._blobs = store, blobs
        self._rng = np.random.default_rng() if rng is None else rng
        self._lock = threading.Lock()
        self._working_out = threading.Lock()  # of a difference; taken before `_lock`
        with store.transaction() as rows:
            task = rows.task()
            if task is None:
                raise RunError("task", "this folder holds none", "create one first")
            self.task = task
            self._checkpoint = rows.newest_checkpoint()
            self._round = rows.newest_round()
            self._sum = rows.sum(self._round.round) or aggregation.empty(task.dimension)
        self._differences: dict[str, str | None] = {}  # checkpoint held -> the blob that makes the newest of it, None if it is not worth it
        self.finished = self._round.phase not in OPEN  # whether the task has all the rounds it wants

    @property
    def checkpoint(self) -> StoredCheckpoint:
        """The newest one."""
        return self._checkpoint

    def enrol(self, enrolment: Enrolment, now: float) -> Enrolled:
        """Give a public key its name; the same key gets the same name. Refused if it is not a key."""
        key = enrolment.public_key
        if not _HEX_64.fullmatch(key):
            raise Refused(Cause.MALFORMED, "public_key: expected 32 bytes in lower-case hexadecimal")
        device = digest(bytes.fromhex(key))[:16]
        with self._lock, self._store.transaction(durable=True) as rows:
            rows.enrol(device, key, now)
        return Enrolled(device)

    def authenticate(self, device: str, nonce: str, signature: bytes, message: bytes, now: float) -> None:
        """Refused unless `device` is enrolled, signed `message` (`signing.request_message`) and never used the nonce before."""
        with self._lock, self._store.transaction() as rows:
            known = rows.device(device) if _HEX_16.fullmatch(device) else None
            if known is None:
                raise Refused(Cause.UNKNOWN_DEVICE, "the device is not enrolled")
            if not _HEX_32.fullmatch(nonce) or not signing.verified(known.public_key, message, signature):
                raise Refused(Cause.BAD_SIGNATURE, "the signature does not fit the device, the request or the nonce")
            if not rows.note_nonce(device, nonce, now):
                raise Refused(Cause.REPLAYED, "this request has been made before")

    def check_in(self, device: str, check_in: CheckIn, now: float) -> Assignment | Reject:
        """Work for a device that may join the round, at once. A device that has open work gets the same again: its reply was lost."""
        answer = self._checked_in(device, check_in, now)
        if isinstance(answer, Assignment) and check_in.holds != answer.checkpoint:
            return replace(answer, difference=self._difference(check_in.holds, answer.checkpoint))
        return answer

    def _checked_in(self, device: str, check_in: CheckIn, now: float) -> Assignment | Reject:
        with self._lock:
            self._tick(now)
            state = self._round
            with self._store.transaction() as rows:
                known = rows.device(device)
                if known is None:
                    raise Refused(Cause.UNKNOWN_DEVICE, "the device is not enrolled")
                if self.finished:
                    return Reject(Cause.NO_ROUND, self._retry())
                cause = decide(check_in, known.last_counted, state.round, self.task.tokenizer, self.task.policy)
                if cause is None and device in state.waiting:
                    assigned = rows.assignment_of(device, state.round)
                    assert assigned is not None  # admitted and assigned are one transaction
                    return self._assignment(assigned.assignment, assigned.admitted_at, now)
                if cause is None and device in state.admitted:
                    cause = Cause.ALREADY_ASSIGNED
                if cause is None and state.phase is not Phase.SELECTING:
                    cause = Cause.ROUND_FULL
                if cause is not None:
                    rows.note_check_in(state.round, device, cause.value)
                    return Reject(cause, self._retry())
                name = secrets.token_hex(16)
                state = advance(state, Admitted(device, now), self.task.rules)
                rows.note_check_in(state.round, device, ASSIGNED)
                rows.assign(name, state.round, device, now, holds=check_in.holds == self._checkpoint.half)
                rows.save_round(state)
            self._round = state
            return self._assignment(name, now, now)

    def update(self, device: str, assignment: str, body: bytes, now: float) -> Ack | Reject:
        """Count an encoded update. The Ack means that it is on disk in the round's sum; the same body again gets the same Ack.

        A report after the round's end is rejected (ROUND_CLOSED). Refused: UNKNOWN_ASSIGNMENT also for somebody else's, DIFFERENT_UPDATE for
        a second body, ABANDONED, and whatever `aggregation.check` finds; such an update ends the assignment.
        """
        found = self._owned(device, assignment)
        judged = self._judge(body, found) if found.status is Status.OPEN else None  # most of the work, outside the lock
        name = digest(body)
        with self._lock:
            self._tick(now)
            state, total, answer = self._round, self._sum, None
            with self._store.transaction(durable=True) as rows:
                found = rows.assignment(assignment) or found
                rows.note_upload(assignment, len(body))
                if found.status is not Status.OPEN:
                    answer = self._again(found, name, rows)
                elif isinstance(judged, quantize.Update):
                    total = aggregation.add(total, judged, self.task.rules.max_weight)
                    state = advance(state, Reported(device, now), self.task.rules)
                    rows.settle(assignment, Status.COUNTED, update_hash=name, examples=judged.examples)
                    rows.note_counted(device, state.round)
                    rows.save_sum(state.round, total)
                    answer = Ack(True, self._retry())
                else:
                    assert isinstance(judged, Cause)  # an assignment that is open now was open before
                    state = advance(state, Dropped(device, now), self.task.rules)
                    rows.settle(assignment, Status.REFUSED, judged, name)
                    answer = _refusal(judged)
                rows.save_round(state)
            self._round, self._sum = state, total
            self._end_if_over(now)
        if isinstance(answer, Refused):
            raise answer
        return answer

    def abandon(self, device: str, assignment: str, abandon: Abandon, now: float) -> Ack:
        """Note that no update will come. An update that already counts stays counted."""
        if abandon.cause not in ABANDON_CAUSES:
            raise Refused(Cause.MALFORMED, f"cause: expected one of {', '.join(ABANDON_CAUSES)}")
        self._owned(device, assignment)
        with self._lock:
            self._tick(now)
            with self._store.transaction() as rows:
                found = rows.assignment(assignment)
                assert found is not None  # assignments are never deleted
                if found.status is not Status.OPEN:
                    return Ack(found.status is Status.COUNTED, self._retry())
                state = advance(self._round, Dropped(device, now), self.task.rules)
                rows.settle(assignment, Status.ABANDONED, abandon.cause)
                rows.save_round(state)
            self._round = state
            self._end_if_over(now)
            return Ack(False, self._retry())

    def blob_size(self, name: str) -> int:
        """Bytes of a blob. Refused if there is none."""
        size = self._blobs.size(name)
        if size is None:
            raise Refused(Cause.UNKNOWN_BLOB, "there is no blob of that SHA-256")
        return size

    def blob(self, device: str, name: str, now: float, start: int = 0, end: int | None = None) -> bytes:
        """A blob, or its bytes from `start` up to `end` (not included), counted in the device's round. Refused if there is none."""
        size = self.blob_size(name)
        end = size if end is None else min(end, size)
        data = self._blobs.part(name, start, end)
        with self._lock:
            self._tick(now)
            given = self._checkpoint.half if name in self._differences.values() else name
            with self._store.transaction() as rows:
                rows.note_download(device, given, len(data), complete=end == size)
        return data

    def reports(self, now: float) -> RoundReports:
        """The funnel of every round so far, oldest first."""
        with self._lock:
            self._tick(now)
            with self._store.transaction() as rows:
                return RoundReports(rows.reports(self.task.rules.report_goal, now))

    def tick(self, now: float) -> None:
        """Let time pass: a window may be over."""
        with self._lock:
            self._tick(now)

    def close(self) -> None:
        """Close the store. Nothing is lost without it."""
        with self._lock:
            self._store.close()

    def _owned(self, device: str, assignment: str) -> StoredAssignment:
        with self._lock, self._store.transaction() as rows:
            found = rows.assignment(assignment) if _HEX_32.fullmatch(assignment) else None
        if found is None or found.device != device:
            raise Refused(Cause.UNKNOWN_ASSIGNMENT, "this device has no such assignment")
        return found

    def _judge(self, body: bytes, found: StoredAssignment) -> quantize.Update | Cause:
        try:
            update = quantize.decode(body)
        except UpdateError:
            return Cause.NOT_AN_UPDATE
        task, seed = self.task, rotation_seed(self.task, found.round)
        return aggregation.check(update, found.round, seed, task.shapes, task.dimension, task.plan) or update

    def _again(self, found: StoredAssignment, name: str, rows: Rows) -> Ack | Reject | Refused:
        """The answer to an update for an assignment that is no longer open."""
        if found.status is Status.ABANDONED:
            return Refused(Cause.ABANDONED, "the device has abandoned this assignment")
        if found.status is Status.CLOSED:
            rows.settle(found.assignment, Status.CLOSED, Cause.ROUND_CLOSED, name)
            return Reject(Cause.ROUND_CLOSED, self._retry())
        if found.update_hash != name:
            return Refused(Cause.DIFFERENT_UPDATE, "this assignment has another update already")
        return Ack(True, self._retry()) if found.cause is None else _refusal(found.cause)

    def _assignment(self, name: str, admitted_at: float, now: float) -> Assignment:
        return Assignment(
            assignment=name,
            round=self._round.round,
            plan=self.task.plan_hash,
            checkpoint=self._checkpoint.half,
            shapes=self.task.shapes,
            rotation_seed=rotation_seed(self.task, self._round.round),
            deadline_s=max(0.0, admitted_at + self.task.rules.reporting_s - now),
        )

    def _difference(self, held: str, wanted: str) -> str | None:
        """The blob that makes the checkpoint `wanted` of the one a device holds; None if it is not one of the newest, or saves too little.

        Worked out once a pair, without keeping others from the round: of many devices that hold the same, one does and the others wait for it.
        """
        with self._working_out:
            return self._worked_out(held, wanted)

    def _worked_out(self, held: str, wanted: str) -> str | None:
        with self._lock, self._store.transaction() as rows:
            if wanted != self._checkpoint.half or held not in rows.newest_halves(DIFFERENCES):
                return None
            if held in self._differences:
                return self._differences[held]
        old, new = self._blobs.get(held), self._blobs.get(wanted)
        found = difference.encode(old, new)
        name = self._blobs.put(found) if len(found) <= SMALLER * len(new) else None
        with self._lock:
            if wanted == self._checkpoint.half:
                self._differences[held] = name
        return name

    def _retry(self) -> float:
        return round(self.task.rules.retry_s * float(self._rng.uniform(0.8, 1.2)), 3)

    def _tick(self, now: float) -> None:
        if self.finished:
            return
        state = advance(self._round, Tick(now), self.task.rules)
        if state != self._round:
            with self._store.transaction() as rows:
                rows.save_round(state)
            self._round = state
        self._end_if_over(now)

    def _end_if_over(self, now: float) -> None:
        """End a round that has committed or was abandoned, and open the next. Tried again at the next call if it fails."""
        state, rules = self._round, self.task.rules
        if self.finished or state.phase in OPEN:
            return
        made = self._make_checkpoint() if state.phase is Phase.COMMITTED else None
        if made is None:
            state = replace(state, phase=Phase.ABANDONED)
        base = made or self._checkpoint
        with self._store.transaction(durable=True) as rows:
            if made is not None:
                rows.add_checkpoint(made)
            late = Cause.TIMED_OUT if is_over(state, now, rules) else Cause.ROUND_CLOSED
            rows.close_round(state, None if made is None else made.sha, late, now)
            rows.forget_nonces(now - NONCE_LIFE_S)
            finished = 0 < rules.rounds <= rows.committed()
            if not finished:
                rows.open_round(state.round + 1, base.sha, now)
        log.info("round %d %s: %d of %d reports counted", state.round, state.phase, len(state.reported), len(state.admitted))
        if base.half != self._checkpoint.half:
            self._differences = {}
        self._checkpoint, self._sum, self.finished = base, aggregation.empty(self.task.dimension), finished
        if not finished:
            self._round = RoundState(state.round + 1)

    def _make_checkpoint(self) -> StoredCheckpoint | None:
        """The round's checkpoint, kept as blobs; None if the step has led to weights that cannot travel.

        The deltas are relative to the float16 copy the devices got; they are added to the exact one, which so never loses its low bits.
        """
        before, number = self._checkpoint, self._round.round
        velocity = weights.from_bytes(self._blobs.get(before.velocity)).weights if before.velocity else None
        delta = aggregation.mean(self._sum, rotation_seed(self.task, number), self.task.dimension)
        after, velocity = aggregation.apply(self.task.step, weights.from_bytes(self._blobs.get(before.sha)).weights, velocity, delta)
        if not aggregation.fits_float16(after):
            log.warning("round %d abandoned: its weights are too large for float16; lower the learning rate", number)
            return None
        return _put_checkpoint(self._blobs, Checkpoint(after, number, before.sha, self.task.tokenizer), velocity)


def _put_checkpoint(blobs: Blobs, checkpoint: Checkpoint, velocity: Weights | None = None) -> StoredCheckpoint:
    moving = "" if velocity is None else blobs.put(weights.to_bytes(replace(checkpoint, weights=velocity)))
    half = blobs.put(weights.to_bytes(checkpoint, dtype=np.float16))
    return StoredCheckpoint(blobs.put(weights.to_bytes(checkpoint)), checkpoint.round, half, moving)


def _refusal(cause: Cause) -> Refused:
    return Refused(cause, _WHY[cause])
