"""What only an operator may ask, answered: tasks, checkpoints and enrolment codes.

Tasks are made, shown, paused and rolled back. The messages are those of `server.contract`.
"""

import re

from device_runtime import counts as lists
from device_runtime import weights
from device_runtime.causes import Cause
from device_runtime.errors import CheckpointError, ConfigError, RunError
from device_runtime.terms import who_sees, why_exposed
from device_runtime.wire import CERTIFIED, Kind, Phase, Signed
from server import chain, mechanism, standings, tallies, tasks
from server.contract import (
    Codes,
    CountsReport,
    HelperHere,
    NewCodes,
    Rollback,
    RoundKey,
    Stored,
    TaskReport,
    TaskReports,
    TaskSettings,
)
from server.coordinator import Coordinator
from server.helping import asks_helper
from server.overview import counts, exposure, waits
from server.requests import Refused
from server.store import Rows, StoredTask
from server.task import Task, terms, why_devices_refuse

_ROUND, _SHA = re.compile(r"[0-9]{1,9}"), re.compile(r"[0-9a-f]{64}")


def create(coordinator: Coordinator, settings: TaskSettings, now: float) -> None:
    """Make a task. Refused with a named cause, and nothing is made, if the message does not hold
    together.
    """
    if settings.kind is Kind.TRAINING and coordinator.blobs.size(settings.checkpoint) is None:
        raise Refused(Cause.UNKNOWN_BLOB, "checkpoint: there is none of that SHA-256; put it first")
    if settings.table is not None and coordinator.blobs.size(settings.table.entries) is None:
        raise Refused(Cause.UNKNOWN_BLOB, "list: there is none of that SHA-256; put it first")
    try:
        tasks.create(coordinator, settings, now)
    except (ConfigError, CheckpointError) as error:
        raise Refused(Cause.MALFORMED, str(error)) from None
    except RunError as error:
        raise Refused(Cause.WRONG_STATE, str(error)) from None


def helper(coordinator: Coordinator, now: float) -> HelperHere:
    """The helper that this server asks, and how it stands."""
    if coordinator.helping is None:
        return HelperHere()
    coordinator.helping.look(now)
    return coordinator.helping.here


def put_checkpoint(coordinator: Coordinator, data: bytes) -> Stored:
    """Keep a checkpoint a task may start from. Refused if it is not one."""
    try:
        weights.from_bytes(data, "checkpoint")
    except CheckpointError as error:
        raise Refused(Cause.MALFORMED, str(error)) from None
    return Stored(coordinator.blobs.put(data))


def put_list(coordinator: Coordinator, data: bytes) -> Stored:
    """Keep the file of a list whose words a task may count. Refused if it is not one."""
    try:
        lists.read_list(data)
    except ConfigError as error:
        raise Refused(Cause.MALFORMED, str(error)) from None
    return Stored(coordinator.blobs.put(data))


def counted(coordinator: Coordinator, name: str) -> CountsReport:
    """What a task has counted so far. Refused for a task that does not count."""
    with coordinator.store.reading() as rows:
        task = next((each.task for each in rows.tasks() if each.task.name == name), None)
        if task is None or task.table is None:
            raise Refused(Cause.UNKNOWN_TASK, "there is no task of that name that counts")
        kept = rows.tallies(name)
    words = lists.read_list(coordinator.blobs.get(task.table.entries))
    total, spent = tallies.counted(task, kept), tallies.spent(task)
    return CountsReport(
        name,
        task.table.entries,
        len(words),
        total.people,
        len(kept),
        task.table.least_people,
        total.deviation,
        lists.least(task.table.least_people, total.deviation),
        None if spent is None or not kept else spent.epsilon,
        None if spent is None or not kept else spent.delta,
        dict(tallies.told(words, task, total)),
    )


def roll_back(coordinator: Coordinator, task: str, message: Rollback, now: float) -> None:
    """Go on from an earlier checkpoint, named by its SHA-256 or the round that made it. Refused as
    the coordinator refuses it.
    """
    is_round = _ROUND.fullmatch(message.to) is not None
    if not is_round and not _SHA.fullmatch(message.to):
        raise Refused(Cause.UNKNOWN_BLOB, "the task has no such checkpoint")
    coordinator.roll_back(task, int(message.to) if is_round else message.to, now)


def round_key(coordinator: Coordinator, task: str) -> RoundKey:
    """A new round key of a task that trains or counts, for its operator to certify. The one that is
    certified now stays in force until then.
    """
    with coordinator.locked(), coordinator.store.transaction(durable=True) as rows:
        return chain.proposal(
            rows,
            coordinator.round_keys,
            coordinator.log,
            coordinator.server,
            _certified(rows, task),
        )


def certify(coordinator: Coordinator, task: str, signed: Signed, now: float) -> None:
    """Keep the certificate of a round key, and sign the task's checkpoint with it. Refused if it is
    not for this server, its key and this task.
    """
    with coordinator.locked():
        with coordinator.store.transaction(durable=True) as rows:
            named = _certified(rows, task)
            chain.certify(
                rows,
                coordinator.round_keys,
                coordinator.log,
                coordinator.server,
                named,
                signed,
                now,
            )
            newest = rows.certificate(task)
        # only now: a killed server goes on with the key whose certificate it has kept
        if newest is not None:
            coordinator.round_keys.keep_only(task, newest.round_key)


def _certified(rows: Rows, name: str) -> Task:
    named = next((each.task for each in rows.tasks() if each.task.name == name), None)
    if named is None:
        raise Refused(Cause.UNKNOWN_TASK, "there is no task of that name")
    if named.kind not in CERTIFIED:
        raise Refused(
            Cause.WRONG_STATE,
            "only tasks that train or count have something of their own to sign, found one of "
            f"{named.kind}",
        )
    return named


def make_codes(coordinator: Coordinator, message: NewCodes, now: float) -> Codes:
    """New enrolment codes, as many as the message asks for."""
    return Codes(
        tuple(coordinator.create_codes(message.count, message.life_s, now)), now + message.life_s
    )


def reports(coordinator: Coordinator, now: float) -> TaskReports:
    """Every task, oldest first."""
    with coordinator.store.reading() as rows:
        stored = rows.tasks()
        return TaskReports(tuple(_report(rows, each, coordinator, now) for each in stored))


def report(coordinator: Coordinator, name: str, now: float) -> TaskReport:
    """Refused if there is no task of that name."""
    named = [each for each in reports(coordinator, now).tasks if each.name == name]
    if not named:
        raise Refused(Cause.UNKNOWN_TASK, "there is no task of that name")
    return named[0]


def _report(rows: Rows, stored: StoredTask, coordinator: Coordinator, now: float) -> TaskReport:
    task = stored.task
    helping = coordinator.helping if asks_helper(task) else None
    certified = chain.standing(rows, task, stored.state, now)
    *_, newest = reports = rows.reports(task, 0.0, most=2)
    agreed = terms(task)
    current, privacy, account = None, "", {}
    if task.kind is Kind.TRAINING:
        current = rows.current(task.name)
    if task.kind in (Kind.TRAINING, Kind.COUNTS):
        spent = mechanism.of(task).spent(exposure(rows, task.name))
        privacy = spent.sentence
        if spent.budget is not None:
            names = ("rho", "epsilon", "delta", "budget", "sums", "beginnings", "left", "over")
            account = {name: getattr(spent, name) for name in names}
    return TaskReport(
        task.name,
        task.population,
        task.kind,
        stored.state,
        stored.created_at,
        newest.round,
        Phase(newest.phase),
        newest.counted,
        task.rules.report_goal,
        rows.committed(task.name),
        current.sha if current else newest.base,
        current.round if current else newest.base_round,
        task.evaluates,
        privacy,
        why_devices_refuse(task),
        certified.signer,
        certified.last_round,
        certified.expires_at,
        certified.to_do,
        standings.stopped_sentence(rows, task.population) if task.kind is Kind.RELEASES else "",
        aggregation=agreed.aggregation,
        seen=who_sees(agreed) if task.kind is not Kind.RELEASES else "",
        exposed=why_exposed(agreed) if task.kind is not Kind.RELEASES else "",
        waits=waits(coordinator, task, reports),
        counts="" if helping is None else counts(helping.here),
        **account,
    )
