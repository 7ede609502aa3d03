"""What only an operator may ask: tasks made, shown, paused and rolled back, checkpoints, and
enrolment codes. Messages and their meaning.

    PUT  /v1/checkpoints                        a float32 checkpoint    -> Stored
    POST /v1/tasks                              NewTask                 -> TaskReport
    GET  /v1/tasks                                                      -> TaskReports
    GET  /v1/tasks/{name}                                               -> TaskReport
    POST /v1/tasks/{name}/pause | resume                                -> TaskReport
    POST /v1/tasks/{name}/rollback              Rollback                -> TaskReport
    GET  /v1/tasks/{name}/checkpoints/{sha256}                          -> bytes
    POST /v1/codes                              NewCodes                -> Codes
All need the operator's token; reading does not on a server that only this machine can reach.
"""

import re
from dataclasses import dataclass, field

from device_runtime import weights
from device_runtime.causes import Cause
from device_runtime.errors import CheckpointError, ConfigError, RunError
from device_runtime.wire import DAY_S, Kind, Plan
from server.coordinator import Coordinator, create_evaluation, create_task
from server.eligibility import Policy
from server.requests import Refused
from server.rounds import Rules
from server.step import ServerStep
from server.store import StoredTask
from server.task import State

MOST_CODES = 10_000  # at once
_ROUND = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Stored:
    sha256: str


@dataclass(frozen=True)
class NewTask:
    """A training task starts from a checkpoint that was put before; an evaluation task names the
    training task it evaluates.
    """

    plan: Plan | None = None  # of an evaluation task: by default that of the training task
    name: str = "default"
    population: str = "default"
    kind: Kind = Kind.TRAINING
    checkpoint: str = ""
    evaluates: str = ""
    rules: Rules = field(default_factory=Rules)
    policy: Policy = field(default_factory=Policy)
    step: ServerStep = field(default_factory=ServerStep)
    seed: int | None = None


@dataclass(frozen=True)
class Rollback:
    to: str  # SHA-256 of a checkpoint of the task, or the round that made it


@dataclass(frozen=True)
class NewCodes:
    count: int = 1
    life_s: float = 7 * DAY_S


@dataclass(frozen=True)
class Codes:
    codes: tuple[str, ...]
    expires_at: float


@dataclass(frozen=True)
class TaskReport:
    """A task and where it stands."""

    name: str
    population: str
    kind: Kind
    state: State
    created_at: float
    round: int  # the newest
    phase: str
    counted: int  # reports of the newest round
    goal: int
    committed: int  # rounds
    checkpoint: str  # SHA-256 of the current one (float32); of an evaluation the one being scored
    checkpoint_round: int
    evaluates: str = ""


@dataclass(frozen=True)
class TaskReports:
    tasks: tuple[TaskReport, ...] = ()


def create(coordinator: Coordinator, new: NewTask, now: float) -> StoredTask:
    """Make a task. Refused with a named cause, and nothing is made, if the message does not hold
    together.
    """
    try:
        with coordinator.locked():
            if new.kind is Kind.EVALUATION:
                create_evaluation(
                    coordinator.store,
                    coordinator.blobs,
                    new.evaluates,
                    new.plan,
                    new.rules,
                    new.policy,
                    now,
                    new.name,
                    new.seed,
                )
            else:
                if new.plan is None:
                    raise Refused(Cause.MALFORMED, "plan: expected for a training task")
                if new.evaluates:
                    raise Refused(
                        Cause.MALFORMED, "evaluates: expected for an evaluation task only"
                    )
                if coordinator.blobs.size(new.checkpoint) is None:
                    raise Refused(
                        Cause.UNKNOWN_BLOB,
                        "checkpoint: there is none of that SHA-256; put it first",
                    )
                checkpoint = weights.from_bytes(coordinator.blobs.get(new.checkpoint), "checkpoint")
                state = coordinator.store, coordinator.blobs
                create_task(
                    *state,
                    checkpoint,
                    new.plan,
                    new.rules,
                    new.policy,
                    new.step,
                    now,
                    new.seed,
                    new.name,
                    new.population,
                )
    except (ConfigError, CheckpointError) as error:
        raise Refused(Cause.MALFORMED, str(error)) from None
    except RunError as error:
        raise Refused(Cause.WRONG_STATE, str(error)) from None
    return next(stored for stored in coordinator.tasks() if stored.task.name == new.name)


def put_checkpoint(coordinator: Coordinator, data: bytes) -> Stored:
    """Keep a checkpoint a task may start from. Refused if it is not one."""
    try:
        weights.from_bytes(data, "checkpoint")
    except CheckpointError as error:
        raise Refused(Cause.MALFORMED, str(error)) from None
    return Stored(coordinator.blobs.put(data))


def roll_back(coordinator: Coordinator, task: str, message: Rollback, now: float) -> None:
    coordinator.roll_back(
        task, int(message.to) if _ROUND.fullmatch(message.to) else message.to, now
    )


def make_codes(coordinator: Coordinator, message: NewCodes, now: float) -> Codes:
    if not 1 <= message.count <= MOST_CODES:
        raise Refused(Cause.MALFORMED, f"count: expected 1 to {MOST_CODES}")
    if not 0 < message.life_s <= 366 * DAY_S:
        raise Refused(Cause.MALFORMED, "life_s: expected more than 0 and at most a year")
    return Codes(
        tuple(coordinator.create_codes(message.count, message.life_s, now)), now + message.life_s
    )


def reports(coordinator: Coordinator) -> TaskReports:
    """Every task, oldest first."""
    with coordinator.store.reading() as rows:
        return TaskReports(tuple(_report(rows, stored) for stored in rows.tasks()))


def report(coordinator: Coordinator, name: str) -> TaskReport:
    """Refused if there is no task of that name."""
    found = next((each for each in reports(coordinator).tasks if each.name == name), None)
    if found is None:
        raise Refused(Cause.UNKNOWN_TASK, "there is no task of that name")
    return found


def _report(rows, stored: StoredTask) -> TaskReport:
    task = stored.task
    newest = rows.reports(task, 0.0, most=1)[0]
    current = rows.current(task.name) if task.kind is Kind.TRAINING else None
    return TaskReport(
        task.name,
        task.population,
        task.kind,
        stored.state,
        stored.created_at,
        newest.round,
        newest.phase,
        newest.counted,
        task.rules.report_goal,
        rows.committed(task.name),
        current.sha if current else newest.base,
        current.round if current else newest.base_round,
        task.evaluates,
    )
