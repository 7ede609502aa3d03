"""A task: what the server wants done with a model. Fixed when it is created, kept with its
rounds.
"""

import functools
import hashlib
import re
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Annotated, Any

from device_runtime import bounds, config, limits, neighbours, strategy
from device_runtime.bounds import Within
from device_runtime.bundle import Manifest
from device_runtime.encoding import Encoding
from device_runtime.errors import ConfigError
from device_runtime.limits import OwnLimits
from device_runtime.neighbours import Impossible, Losses
from device_runtime.noise import Mechanism, Noise
from device_runtime.secagg_wire import MOST_NEIGHBOURS
from device_runtime.table import LARGEST, NEVER_AGAIN, Table
from device_runtime.terms import LEAST_COUNT, Aggregation, Terms
from device_runtime.weights import digest
from device_runtime.wire import CERTIFIED, HASH_OR_NONE, TEXT_RULES, WORD, Kind, Plan
from server.eligibility import Policy
from server.rounds import DEVICES, Rules, whole_cohort
from server.step import ServerStep

# clipping norm of a task that names none: about the median of what honest devices send, so that it
# shortens few of theirs by much, and a word that two of twenty plant stays out of sight
SERVED_NORM = 0.5
FEWEST_COMPARED = 2  # devices in what is told of a release
# of a code, where a task names no number: masked words have room for the sum of all codes
MASKED_BITS, PLAIN_BITS = 4, 8
_FIXED = ("batch_size", "length")  # of a plan: the sizes of the bundle's graph
_AT_MOST = ("epochs", "learning_rate", "max_rows", "clipping_norm", "bits")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class State(StrEnum):
    """What a task is doing."""

    RUNNING = "running"
    PAUSED = "paused"  # by the operator: admits nobody, still counts who is at work
    FINISHED = "finished"  # it has all the rounds it wanted


@dataclass(frozen=True)
class Peers:
    """What an operator takes to be true of the devices whose shares open a sum of SecAgg+."""

    adversarial: Annotated[float, Within(0.0, 1.0)] = 0.05  # share that may be the server's own
    drop_out: Annotated[float, Within(0.0, 1.0)] = 0.1  # share that may vanish after it sent keys
    semi_malicious: bool = True  # the server may lie to devices about each other


@dataclass(frozen=True)
class TaskSettings:
    """What an operator decides of a task. One record all the way: server.toml, the message that
    makes a task, `tasks.create`, and the row of the database are this and what each adds to it.

    Raises ConfigError for a name that cannot be one, and for words that do not go together.
    """

    plan: Plan | None = None  # by default the bundle's, or that of the task it evaluates
    name: str = "default"
    population: str = "default"  # devices it is for: those that check in with this name
    kind: Kind = Kind.TRAINING
    checkpoint: str = ""  # SHA-256 of the kept checkpoint that a training task starts from
    # the training task whose newest checkpoint an evaluation task scores, or whose devices compare
    # the releases that they run
    evaluates: str = ""
    rules: Rules = field(default_factory=Rules)
    policy: Policy = field(default_factory=Policy)
    step: ServerStep = field(default_factory=ServerStep)
    # of everything random in a result; None: the system's randomness
    seed: Annotated[int | None, Within(0, 2**63 - 1)] = None
    # who can see a single update; "plain", by which the server sees each, is never a default
    aggregation: Aggregation = Aggregation.HELPER
    # public key of the helper, hexadecimal; by default of the one that the server asks
    helper: Annotated[str, HASH_OR_NONE] = ""
    is_beside: bool = False  # whoever runs the server runs the helper too
    # reports of the smallest masked sum that is opened
    least_count: Annotated[int, DEVICES] = LEAST_COUNT
    secagg: Peers = field(default_factory=Peers)
    # what is added to each sum of updates, and the budget it keeps; None: nothing is, and nothing
    # is claimed
    noise: Noise | None = None
    # values of a delta / values that travel
    compression: Annotated[int, Within(1, 64)] = 1
    # rounds that share one basis of what travels, whose noise begins anew with the next; 0: all
    turn: Annotated[int, Within(0, 2**31)] = 0
    # no release of this task is published whose lineage names no audit
    require_audit: bool = False
    # of a task that counts: of what, and how
    table: Table | None = None
    # those that the vocabulary was made by, which a device must know; a bundle says them
    text_rules: Annotated[int, TEXT_RULES] = 1
    # of the messages it learns from, as the bundle says; empty: nobody said
    language: Annotated[str, WORD] = ""

    def __post_init__(self) -> None:
        bounds.check(self, "task")
        for label in ("name", "population"):
            if not NAME.fullmatch(getattr(self, label)):
                raise ConfigError(
                    f"task.{label}",
                    "expected a-z, 0-9, '.', '_' and '-', at most 64, found "
                    f"{getattr(self, label)[:80]!r}",
                    "choose another",
                )
        # names of nothing: not every database can be asked for them
        if self.evaluates and not NAME.fullmatch(self.evaluates):
            raise ConfigError(
                "task.evaluates",
                f"expected the name of a training task, found {self.evaluates[:80]!r}",
                "see `fedboard task list`",
            )
        scores = self.kind not in CERTIFIED
        if (self.kind is Kind.COUNTS) != (self.table is not None):
            raise ConfigError(
                "task.table",
                f"expected for a task of kind counts and no other, found "
                f"{'none' if self.table is None else 'one'} for one of kind {self.kind}",
                "make it with `fedboard task count-words NAME`",
            )
        if self.kind is Kind.COUNTS and (self.checkpoint or self.rules.buffered):
            raise ConfigError(
                "task.checkpoint, rules.mode",
                "expected none, and synchronous, for a task of kind counts",
                "remove them: it has no weights, and each device is in one sum",
            )
        if scores != bool(self.evaluates):
            raise ConfigError(
                "task.evaluates",
                "expected for a task that scores and no other, found "
                f"{self.evaluates!r} for one of kind {self.kind}",
                "name a training task",
            )
        if scores and self.checkpoint:
            raise ConfigError(
                "task.checkpoint",
                f"expected none for a task of kind {self.kind}, found {self.checkpoint[:80]!r}",
                "remove it: what is scored is the newest, or what devices run",
            )
        if scores and self.rules.buffered:
            raise ConfigError(
                "rules.mode",
                f"expected synchronous for a task of kind {self.kind}, found buffered",
                "remove it",
            )
        if self.aggregation is not Aggregation.HELPER and (self.helper or self.is_beside):
            raise ConfigError(
                "task.helper",
                f"expected none for aggregation {self.aggregation}, found {self.helper[:16]!r}",
                "remove it, or have the task aggregate by the helper",
            )
        if self.aggregation is Aggregation.SECAGG and self.rules.buffered:
            raise ConfigError(
                "rules.mode",
                "expected synchronous for aggregation secagg, found buffered: the devices of a "
                "round open its sum together",
                "remove it, or have the task aggregate by a helper",
            )
        if self.turn and self.rules.buffered:
            raise ConfigError(
                "task.turn",
                f"expected 0 where rounds are buffered, found {self.turn}: late reports are of "
                "another basis, and do not add up",
                "remove it, or rules.mode",
            )
        if scores and (self.noise is not None or self.compression != 1 or self.turn):
            raise ConfigError(
                "task.noise",
                f"expected none, no compression and no turn, for a task of kind {self.kind}",
                "remove it: noise is added to sums of updates",
            )
        if opens_itself(self):
            require_graph(round_rules(self).report_goal, self.secagg)
        if self.kind is Kind.RELEASES and self.rules.fewest < FEWEST_COMPARED:
            raise ConfigError(
                "rules.min_reports",
                f"expected at least {FEWEST_COMPARED} devices, found {self.rules.fewest}",
                "raise it: what fewer say of a release would be told of them",
            )


@dataclass(frozen=True, kw_only=True)
class Task(TaskSettings):
    """A task as it is kept: its settings, complete, and what its checkpoints have in common."""

    plan: Plan
    seed: int
    tokenizer: str  # SHA-256 of the vocabulary
    shapes: str  # `weights.shapes_hash` of the network
    dimension: int  # values of the network
    # of a task that scores: those of the training task it belongs to; read there, never kept
    agreed: Terms | None = None

    @property
    def body(self) -> bytes:
        """The row of the database, as JSON. What it started from stands in a table of its own."""
        kept = [each.name for each in fields(self) if each.name not in ("checkpoint", "agreed")]
        return config.to_json({name: getattr(self, name) for name in kept})

    @property
    def plan_bytes(self) -> bytes:
        """The plan as devices fetch it."""
        return config.to_json(self.plan)

    @property
    def plan_hash(self) -> str:
        """The name of its blob."""
        return _hash_of(self.plan)


def settings_of(record: TaskSettings) -> TaskSettings:
    """The settings alone of a record that holds more: of a server.toml, or of a task."""
    return TaskSettings(**_settings(record))


def in_language_of(settings: TaskSettings, manifest: Manifest) -> TaskSettings:
    """Settings with the text rules and the language of the bundle that its devices run."""
    return replace(settings, text_rules=manifest.text_rules, language=manifest.language or "")


def for_bundle(settings: TaskSettings, signed: Plan) -> TaskSettings:
    """Settings with the plan that the devices of a bundle work by, whose own plan is `signed`, and
    `openable`.

    Where the settings name none it is that one, but for the clipping norm, which is at most
    SERVED_NORM: what a lying device can move a round by is for the server to say, not for whoever
    made the bundle; and for the bits of a code, which are what the aggregation has room for. Raises
    ConfigError for a plan of the settings that no device with the bundle would follow.
    """
    settings = with_strategy(openable(settings))
    if settings.plan is None:
        norm = min(signed.clipping_norm, SERVED_NORM)
        is_plain = settings.aggregation is Aggregation.PLAIN
        bits = min(signed.bits, PLAIN_BITS if is_plain else MASKED_BITS)
        return replace(settings, plan=replace(signed, clipping_norm=norm, bits=bits))
    for name in _FIXED + _AT_MOST:
        asked, limit = getattr(settings.plan, name), getattr(signed, name)
        if asked > limit or (name in _FIXED and asked != limit):
            at_most = "" if name in _FIXED else "at most "
            raise ConfigError(
                f"plan.{name}",
                f"expected {at_most}the {limit:g} of the bundle's signed plan, which devices keep "
                f"to, found {asked:g}",
                "correct it, or sign a bundle with that plan",
            )
    uses, least = limits.Limits(signed).rows(settings.plan), limits.OwnLimits().least_messages
    if uses < least:
        raise ConfigError(
            "plan.max_rows",
            f"expected enough for {least} messages, found {settings.plan.max_rows}, of which a "
            f"device uses {uses}",
            "raise it: no device makes an update of fewer",
        )
    return settings


def with_strategy(settings: TaskSettings) -> TaskSettings:
    """Settings whose noise is told to the last number: where it is a BLT without any buffers, those
    that serve so many rounds and such a separation best.
    """
    noise = settings.noise
    if noise is None or noise.mechanism is not Mechanism.BLT or noise.decays:
        return settings
    return replace(
        settings, noise=strategy.optimised(noise, settings.policy.min_separation, settings.turn)
    )


def for_list(settings: TaskSettings, table: Table) -> TaskSettings:
    """Settings of a task that counts by a table, and `openable`: a device is in one of its sums,
    once and for all.
    """
    of_device = Plan(bits=LARGEST.bit_length(), clipping_norm=table.norm)
    once = replace(settings.policy, min_separation=NEVER_AGAIN, max_participations=1)
    return openable(
        replace(settings, kind=Kind.COUNTS, table=table, plan=of_device, policy=once, evaluates="")
    )


def openable(settings: TaskSettings) -> TaskSettings:
    """Settings whose rounds end with no fewer reports than a masked sum is opened of. Raises
    ConfigError for a report goal below that.
    """
    least, rules = settings.least_count, settings.rules
    if settings.aggregation is Aggregation.PLAIN:
        return settings
    if rules.report_goal < least:
        raise ConfigError(
            "rules.report_goal",
            f"expected at least the least_count of {least}, of which a masked sum is opened, found "
            f"{rules.report_goal}",
            "raise it, or lower least_count: a device hides among fewer then",
        )
    return replace(settings, rules=replace(rules, min_reports=max(rules.fewest, least)))


def is_masked(task: TaskSettings) -> bool:
    """Whether the reports of a task are masked, and their sum must be opened. Who compares releases
    says which one it runs, so those reports are seen one by one.
    """
    return task.kind is not Kind.RELEASES and task.aggregation is not Aggregation.PLAIN


def opens_itself(task: TaskSettings) -> bool:
    """Whether the devices of a round open its sum together."""
    return is_masked(task) and task.aggregation is Aggregation.SECAGG


def round_rules(task: TaskSettings) -> Rules:
    """The rules that rounds go by: where devices wait for one another all of them are counted, as
    one that is left out is one more whose secrets the others must open.
    """
    return _of_cohort(task.rules) if opens_itself(task) else task.rules


_of_cohort = functools.lru_cache(maxsize=64)(whole_cohort)


def require_graph(devices: int, peers: Peers) -> None:
    """Raises ConfigError if so many devices cannot hold each other's secrets."""
    graph = neighbours.find(devices, Losses(**vars(peers)), MOST_NEIGHBOURS)
    if isinstance(graph, Impossible):
        raise ConfigError(
            "task.secagg",
            f"expected shares that rounds of {devices:,} devices can bear, found adversarial "
            f"{peers.adversarial:g} and drop_out {peers.drop_out:g}: {graph.value}",
            "lower them, or have another number of devices in a round",
        )


def encoding_of(task: Task) -> Encoding:
    """How a delta of a training task becomes codes."""
    return terms(task).encoding


@functools.lru_cache(maxsize=64)
def terms(task: Task) -> Terms:
    """How a task's updates are encoded and added up, and who can see them: what its certificate
    says, and devices keep it to. A task that scores has those of its training task.
    """
    if task.agreed is not None:
        return task.agreed
    rules = task.rules
    return Terms(
        task.aggregation,
        task.plan.bits,
        task.plan.clipping_norm,
        task.dimension,
        task.shapes,
        rotation_seed(task),
        most=round_rules(task).report_goal,
        fewest=rules.fewest,
        min_separation=task.policy.min_separation,
        max_staleness=rules.max_staleness if rules.buffered else 0,
        helper=task.helper,
        is_beside=task.is_beside,
        **vars(task.secagg),
        noise=task.noise,
        compression=task.compression,
        turn=task.turn,
        table=task.table,
    )


@functools.lru_cache(maxsize=64)
def agreeing(task: Task, trained: Task | None) -> Task:
    """A task that scores, with the terms of the training task that it belongs to."""
    return task if trained is None else replace(task, agreed=terms(trained))


def task_of(settings: TaskSettings, tokenizer: str, shapes: str, dimension: int) -> Task:
    """The task of complete settings: those with a plan and a seed."""
    complete = _settings(settings) | {"checkpoint": ""}  # a start is none of a task's settings
    return Task(**complete, tokenizer=tokenizer, shapes=shapes, dimension=dimension)


def _settings(record: TaskSettings) -> dict[str, Any]:
    return {each.name: getattr(record, each.name) for each in fields(TaskSettings)}


@functools.lru_cache(maxsize=64)
def _hash_of(plan: Plan) -> str:
    return digest(config.to_json(plan))


def why_devices_refuse(task: Task) -> str:
    """Why devices refuse every work of a task unless their owners have raised a limit, and what to
    do about it, in a sentence; empty if they do not. A task of an earlier version can be so, as
    what is asked of devices is fixed with it.
    """
    asked, most = task.plan.clipping_norm, OwnLimits().clipping_norm
    if task.kind is not Kind.TRAINING or asked <= most:
        return ""
    return (
        f"devices refuse its work: expected a clipping norm of at most {most:g}, which is their "
        f"usual limit, found {asked:g}; pause it, and begin another, which gets a norm that they "
        "accept: fedboard task create NAME --bundle BUNDLE"
    )


def policy_hash(settings: TaskSettings) -> str:
    """SHA-256 of all that an operator has decided of a task: of a task the same as of the complete
    settings that it was made from. Seeds are secret, and a start is none of its settings.
    """
    table = _settings(settings) | {"checkpoint": "", "seed": None}
    if settings.noise is None and settings.compression == 1:  # as a version hashed it without them
        del table["noise"], table["compression"]
    if not settings.turn:
        del table["turn"]
    if settings.table is None:
        del table["table"]
    if not settings.require_audit:
        del table["require_audit"]
    if settings.text_rules == 1:
        del table["text_rules"]
    if not settings.language:
        del table["language"]
    return digest(config.to_json(table))


def rotation_seed(task: Task) -> int:
    """Seed of a task's rotation: the same in all its rounds, so that their sums have one basis. 53
    bits: any JSON reader keeps them.
    """
    named = f"fedboard-rotation-v2 {task.seed}".encode()
    return int.from_bytes(hashlib.sha256(named).digest()[:8]) >> 11


@functools.lru_cache(maxsize=256)
def task_id(server: str, task: str) -> str:
    """What a device knows a task by, 32 hexadecimal digits: names are taken once in a database, and
    the name of the database's server is random, so a task begun anew elsewhere has another.
    """
    return digest(f"fedboard-task-v1 {server} {task}".encode())[:32]


def assignment_name(task: Task, round: int, device: str, attempt: int = 0) -> str:
    """The name of a device's work in a round, 32 hexadecimal digits: known beforehand to whoever
    knows the task's seed, so a server that died gives the same again. `attempt`: works of the round
    that the device has had before.
    """
    again = f" {attempt}" if attempt else ""
    named = f"fedboard-assignment-v1 {task.seed} {task.name} {round} {device}{again}"
    return digest(named.encode())[:32]
