"""Making tasks: an operator's settings -> a task in the store, with its first round open.

TOML or message -> TaskSettings -> create -> Task, a row of the database
                                     ^
             training: a checkpoint -+- one that scores: the training task it belongs to
                                     +- one that counts: the file of a public list
"""

import secrets
from dataclasses import replace

from device_runtime import counts, limits, weights
from device_runtime.errors import CheckpointError, ConfigError, RunError
from device_runtime.terms import Aggregation
from device_runtime.weights import Checkpoint
from device_runtime.wire import CERTIFIED, Kind
from server import budget, closing
from server.blobs import Blobs
from server.budget import Spending
from server.coordinator import Coordinator
from server.pacing import JITTER, LEAST_S
from server.rounds import RETRY_S, RoundState, Rules
from server.store import Rows, Store, StoredCheckpoint
from server.task import (
    Task,
    TaskSettings,
    agreeing,
    for_list,
    is_masked,
    openable,
    round_rules,
    task_of,
    terms,
    with_strategy,
)


def create(
    coordinator: Coordinator, settings: TaskSettings, now: float, start: Checkpoint | None = None
) -> Task:
    """Keep a new task and open its first round. Nothing is written if this raises, but blobs.

    A training task starts from the checkpoint `start`, or from the blob its settings name, and its
    first round is numbered one after the checkpoint's. An evaluation task scores the newest
    checkpoints of the training task it names, on its devices' held-back messages; a task of
    releases has those devices compare the releases that they run. A task that counts asks devices
    which words of a list they typed, whose file is the blob that its table names. Without a seed
    the rotations cannot be foretold; with one, the same updates make the same checkpoints.

    A task that aggregates by a helper has the one that this server asks, and needs it there.

    Raises ConfigError for settings that do not hold together or under which no device could ever
    work, a budget without room for one sum, or a sum that could overflow, CheckpointError for
    weights that do not fit float16, and RunError if there is a task of that name, no training task
    to evaluate, or a blob or the store cannot be used.
    """
    _require_workable(settings)
    settings = with_strategy(settings)
    _require_budget(settings)
    if settings.seed is None:
        settings = replace(settings, seed=secrets.randbits(63))
    if settings.kind in CERTIFIED:
        settings = _helped(coordinator, openable(settings), now)
    store, blobs = coordinator.store, coordinator.blobs
    with coordinator.locked():
        if settings.kind is Kind.COUNTS:
            task, first = _counting(blobs, settings, now)
            state = RoundState(1)
        elif settings.kind is not Kind.TRAINING:
            task, first = _evaluating(store, settings)
            state = RoundState(1)
        else:
            if start is None:
                start = weights.from_bytes(blobs.get(settings.checkpoint), "checkpoint")
            task, first = _training(blobs, settings, start, now)
            state = RoundState(start.round + 1)
        blobs.put(task.plan_bytes)
        with store.transaction(durable=True) as rows:
            _require_new(rows, task.name)
            rows.add_task(task, now)
            if task.noise is not None:
                rows.spending.begin(task.name)
            if task.kind in CERTIFIED:
                rows.add_checkpoint(task.name, first)
            rows.open_round(task.name, state, first, now)
    return task


def _require_workable(settings: TaskSettings) -> None:
    """Raises ConfigError for a number that is one, and under which no device would ever work."""
    rules, told = settings.rules, limits.COARSE[-1]
    if settings.policy.min_examples > told:
        raise ConfigError(
            "policy.min_examples",
            f"expected at most {told}, found {settings.policy.min_examples:,}",
            "lower it: no check-in tells of more",
        )
    if rules.reporting_s < 1:
        raise ConfigError(
            "rules.reporting_s",
            f"expected at least a second, found {rules.reporting_s:g}",
            "raise it to the time that training and an upload take",
        )
    if not rules.selection_s:
        return
    if rules.selection_s + rules.claim / 4 > RETRY_S.high:
        raise ConfigError(
            "rules.selection_s",
            f"expected a window and a quarter of its claim_s within {RETRY_S.high:,.0f} s, found "
            f"{rules.selection_s:,.0f} s",
            "lower it: no device waits longer",
        )
    # a device waits up to a fifth longer than it is told, and no less than a minute
    latest = max(JITTER * rules.selection_s, (1 + JITTER) * LEAST_S - rules.selection_s)
    if rules.claim < latest:
        raise ConfigError(
            "rules.claim_s",
            f"expected at least {latest:,.0f} s after such a window, found {rules.claim:g}",
            "raise it: those who were drawn would come too late",
        )


def _require_budget(settings: TaskSettings) -> None:
    """Raises ConfigError for a budget that no sum would stay within, and for rounds and devices
    that the noise is not for.
    """
    noise, separation = settings.noise, settings.policy.min_separation
    if noise is None:
        return
    if why := budget.why_over(noise, Spending(), separation, turn=settings.turn):
        raise ConfigError(
            "noise.epsilon",
            f"expected a budget with room for one sum, found {noise.epsilon:g}: {why}",
            "raise it, or the multiplier: fedboard privacy plan",
        )
    if settings.rules.rounds > noise.rounds:
        raise ConfigError(
            "noise.rounds",
            f"expected at least the {settings.rules.rounds:,} rounds that the task wants, found "
            f"{noise.rounds:,}",
            "raise it, or lower rules.rounds",
        )


def _helped(coordinator: Coordinator, settings: TaskSettings, now: float) -> TaskSettings:
    """Settings with the key of the helper that this server asks. Raises ConfigError for another's,
    and RunError if it is not there.
    """
    if settings.aggregation is not Aggregation.HELPER:
        return settings
    if coordinator.helping is None:
        raise ConfigError(
            "task.aggregation",
            "expected a helper that this server asks, found none",
            "start the server with one, or ask by name for another aggregation: with plain, the "
            "server can read every update",
        )
    standing = coordinator.helping.look(now)
    if standing.report is None:
        raise RunError("helper", standing.problem, "a task cannot begin before it is there")
    report = standing.report
    if settings.helper not in ("", report.helper):
        raise ConfigError(
            "task.helper",
            f"expected the helper that this server asks, {report.helper}, found {settings.helper}",
            "correct the key, or have the server ask that one",
        )
    if settings.rules.fewest < report.least:
        raise ConfigError(
            "task.least_count",
            f"expected at least the {report.least} that the helper insists on, found "
            f"{settings.least_count}",
            "raise it and the report goal, or have the helper's owner lower its own",
        )
    is_beside = coordinator.helping.helper.is_beside
    return replace(settings, helper=report.helper, is_beside=is_beside)


def _training(
    blobs: Blobs, settings: TaskSettings, start: Checkpoint, now: float
) -> tuple[Task, StoredCheckpoint]:
    if settings.plan is None:
        raise ConfigError("plan", "expected for a training task", "give one")
    if not closing.fits_float16(start.weights):
        raise CheckpointError(
            "checkpoint",
            "it has values too large for float16, as which it would travel",
            "train again with a smaller rate",
        )
    task = task_of(
        settings,
        tokenizer=start.tokenizer,
        shapes=weights.shapes_hash(start.weights),
        dimension=sum(array.size for array in start.weights.values()),
    )
    return task, replace(closing.keep(blobs, start), made_at=now)


def _counting(blobs: Blobs, settings: TaskSettings, now: float) -> tuple[Task, StoredCheckpoint]:
    """A task that counts; what its devices fetch is the list."""
    assert settings.table is not None
    name = settings.table.entries
    words = counts.read_list(blobs.get(name))
    task = task_of(for_list(settings, settings.table), "", shapes=name, dimension=len(words))
    terms(task)  # which do not hold together for every noise
    return task, StoredCheckpoint(name, 0, name, made_at=now)


def _evaluating(store: Store, settings: TaskSettings) -> tuple[Task, StoredCheckpoint]:
    with store.reading() as rows:
        named = [each.task for each in rows.tasks() if each.task.name == settings.evaluates]
        newest = rows.current(settings.evaluates)
    if not named or named[0].kind is not Kind.TRAINING or newest is None:
        raise RunError(
            f"task {settings.evaluates}",
            "expected a training task to evaluate, found none of that name",
            "see `fedboard task list`",
        )
    trained = named[0]
    settings = replace(
        settings,
        plan=settings.plan or trained.plan,
        population=trained.population,
        text_rules=trained.text_rules,
        language=trained.language,
        # who sees what was agreed for the training task
        **{name: getattr(trained, name) for name in ("aggregation", "helper", "is_beside")},
        least_count=trained.least_count,
        secagg=trained.secagg,
    )
    task = task_of(
        settings,
        tokenizer=trained.tokenizer,
        shapes=trained.shapes,
        dimension=trained.dimension,
    )
    task = agreeing(task, trained)
    return _opened_alike(task, trained) if is_masked(task) else task, newest


def _opened_alike(task: Task, trained: Task) -> Task:
    """An evaluation whose sums have room under the terms of its training task, and are opened of no
    fewer reports; where the settings name no goal it is the training task's. Raises ConfigError for
    a goal that does not fit.
    """
    agreed, rules = terms(task), task.rules
    if rules.report_goal == Rules().report_goal:
        of = trained.rules
        rules = replace(rules, report_goal=of.report_goal, over_selection=of.over_selection)
        task = replace(task, rules=rules)
    if not agreed.fewest <= rules.report_goal or round_rules(task).report_goal > agreed.most:
        raise ConfigError(
            "rules.report_goal",
            f"expected that of {task.evaluates}, whose terms allow sums of {agreed.fewest} to "
            f"{agreed.most} devices, found {rules.report_goal}",
            "correct it: scores are added up and opened as its updates are",
        )
    return replace(task, rules=replace(rules, min_reports=max(rules.fewest, agreed.fewest)))


def _require_new(rows: Rows, name: str) -> None:
    if any(stored.task.name == name for stored in rows.tasks()):
        raise RunError(
            f"task {name}",
            "there is one of that name already",
            "choose another name, or go on with that one",
        )
