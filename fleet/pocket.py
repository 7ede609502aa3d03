"""Pocket: what one simulated device keeps, in memory, and its turn under way.

A `Pocket` answers the questions that a turn asks of a device's home, and `InPocket` does a turn's
own actions with it by the code that phones run, but for what has no text here. A device that has
never had work has no pocket: it is a row of the fleet's columns.
"""

import functools
import weakref
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from device_runtime import difference, limits, scoring, turn
from device_runtime.bundle import CHECKPOINT, Bundle
from device_runtime.chain import Chain, Contradiction, Seen, remembered
from device_runtime.home import Contribution, DeviceConfig
from device_runtime.limits import MOST_USES, Limits
from device_runtime.local import (
    DeviceClock,
    Local,
    begun_from,
    is_half_done,
    is_of,
    rows_hash,
    targets,
)
from device_runtime.log_wire import Believed, Fork, SeenLogs
from device_runtime.secagg_turn import Hear, Identify, Own, Tell, Wait
from device_runtime.terms import Terms
from device_runtime.turn import (
    Action,
    Ask,
    Drop,
    Encode,
    Enrol,
    Evaluate,
    Fetch,
    Gather,
    Gathered,
    GatherHeld,
    GiveBack,
    HandIn,
    HeldBack,
    Keep,
    KeepReport,
    Outcome,
    Outgoing,
    Participant,
    Progress,
    Protect,
    Reading,
    RecallReport,
    Report,
    Train,
    Upload,
    Used,
    Work,
)
from device_runtime.weights import Checkpoint, digest, from_bytes
from device_runtime.wire import Assignment, CheckIn, Conditions
from fleet import availability, draws, servers
from fleet.availability import Availability
from fleet.engines import Trained
from fleet.faults import Luck
from fleet.population import Population
from fleet.settings import START
from fleet.typed import Typed

# what a turn waits for: an answer, a computation, or time
OUTSIDE = (Enrol, Ask, Fetch, Upload, Report, GiveBack, HandIn, Tell, Hear, Train, Wait)
_ITSELF = 100  # what draws are for


@dataclass(frozen=True)
class Shared:
    """What all devices of a fleet have in common."""

    seed: int
    population: Population
    availability: Availability
    typed: Typed
    bundle: Bundle  # that they have installed
    limits: Limits
    config: DeviceConfig  # but for the seed
    server: str  # random name of the server's database
    needed: int  # bits of the conditions that they wait for
    luck: Luck = field(default_factory=Luck)  # what goes wrong
    reading: Reading = field(default_factory=lambda: read_once())  # of the checkpoints they hold
    # one object for all who hold the same bytes, whatever they made them of
    same: Callable[[bytes], bytes] = field(default_factory=lambda: functools.lru_cache(8)(bytes))

    @property
    def vouched(self) -> int:
        """Bits that owners vouch for."""
        return availability.NEEDED & ~self.needed


def read_once(most: int = 8) -> Reading:
    """How checkpoints are read where many devices read the same bytes: what was made of the last
    ones is remembered, and shared.
    """

    @functools.lru_cache(most)
    def checkpoint(data: bytes, where: object) -> Checkpoint:
        read = from_bytes(data, where)
        for array in read.weights.values():
            array.flags.writeable = False
        return read

    return Reading(
        functools.lru_cache(4 * most)(digest),
        checkpoint,
        functools.lru_cache(most)(difference.apply),
    )


@dataclass(frozen=True)
class Seeded:
    """The randomness of a device's work: the same whenever it is done again."""

    seed: int

    def __call__(self, assignment: Assignment) -> np.random.Generator:
        """Of one assignment."""
        return np.random.default_rng([self.seed, assignment.round])


@dataclass
class Meter:
    """Bytes of bodies of one turn."""

    up: int = 0
    down: int = 0


@dataclass(frozen=True)
class Holds:
    """Since when and until when conditions are known to hold, in seconds since 1970."""

    since: float = 0.0
    all_until: float = 0.0  # one of all those that are needed is lost
    wifi_until: float = 0.0  # WiFi is, if it is needed

    def until(self, now: float, all_needed: bool) -> float | None:
        """When all that are needed, or WiFi alone, hold no more; None where that is not known."""
        until = self.all_until if all_needed else self.wifi_until
        return until if self.since <= now < until else None


@dataclass
class Pocket:
    """What one device keeps. What stands here outlives its process."""

    number: int
    shared: Shared = field(repr=False)
    held: bytes | None = field(default=None, repr=False)  # the checkpoint it fetched last
    lines: list[Contribution] = field(default_factory=list)
    uses: dict[int, int] = field(default_factory=dict)  # by message, as far as there were any
    withheld: tuple[Assignment, float] | None = None  # and when
    half_done: tuple[Work, Progress] | None = field(default=None, repr=False)
    report: Outgoing | None = field(default=None, repr=False)
    chains: Seen = field(default_factory=Seen)
    log: SeenLogs = field(default_factory=SeenLogs)
    installed_at: float | None = None  # since when it has the weights of its bundle
    errors: int = 0  # in a row
    holds: Holds = Holds()  # looked up when it was given work

    @property
    def key(self) -> Ed25519PrivateKey:
        """Its private key."""
        return key_of(self.shared.seed, self.number)

    @property
    def config(self) -> DeviceConfig:
        """Its settings."""
        return replace(self.shared.config, seed=self.seed)

    @property
    def seed(self) -> int:
        """Of its randomness."""
        return draws.whole(self.shared.seed, self.number, _ITSELF)

    simulated = True

    def conditions(self, now: float) -> Conditions:
        """How it stands, at a time since 1970."""
        if self.holds.until(now, all_needed=True) is not None:
            return availability.conditions(self.shared.needed, self.shared.vouched)
        at = np.array([now - START])
        bits = self.shared.availability.signals(np.array([self.number]), at)[0]
        return availability.conditions(int(bits), self.shared.vouched)

    def contributions(self) -> list[Contribution]:
        """The lines of its ledger."""
        return self.lines

    def note(self, line: Contribution) -> None:
        """Write a line, or write it anew."""
        if self.lines and _same(self.lines[-1], line):
            self.lines[-1] = line
        else:
            self.lines.append(line)

    def withhold(self, assignment: Assignment, at: float) -> None:
        """Keep that an assignment is given back when the day is over."""
        self.withheld = assignment, at

    def age_of(self, checkpoint: str, now: float) -> float:
        """Seconds since it has its bundle."""
        if self.installed_at is None:
            self.installed_at = START
        return now - self.installed_at

    def checkpoint(self) -> bytes | None:
        """The one it fetched last."""
        return self.held

    def keep_checkpoint(self, sha256: str, data: bytes) -> None:
        """In the place of the one before."""
        self.held = self.shared.same(data)

    def seen(self) -> Seen:
        """Whose keys signed the checkpoints it was given."""
        return self.chains

    def see(self, shown: Chain) -> None:
        """Remember who signed a checkpoint."""
        self.chains = remembered(self.chains, shown)

    def logs(self) -> SeenLogs:
        """How far its server's log was."""
        return self.log

    def see_log(self, seen: SeenLogs) -> None:
        """Remember how far it is."""
        self.log = seen

    def accuse(self, contradiction: Contradiction) -> None:
        """A server of ours contradicts itself."""
        raise AssertionError(f"device {self.number}: {contradiction}")

    def accuse_log(self, fork: Fork) -> None:
        """A log of ours has forked."""
        raise AssertionError(f"device {self.number}: {fork}")

    def keep_terms(self, task: str, terms: Terms) -> None:
        """Nobody asks for them."""

    @property
    def used_up(self) -> frozenset[int]:
        """Messages that have contributed as often as they may."""
        return frozenset(number for number, uses in self.uses.items() if uses >= MOST_USES)

    @property
    def user(self) -> int:
        """Who types on it."""
        return int(self.shared.population.user[self.number])

    def have(self, now: float) -> int:
        """Messages it has at a time since 1970."""
        who, population = self.number, self.shared.population
        first, a_day = population.first_messages[who], population.messages_a_day[who]
        return int(self.shared.typed.arrived(self.user, first, a_day, now - START))


def _same(before: Contribution, line: Contribution) -> bool:
    """Whether two lines are the same one: a round and the time of a turn name it."""
    return (before.round, before.at) == (line.round, line.at)


def key_of(seed: int, number: int) -> Ed25519PrivateKey:
    """The private key of a device."""
    return servers.key(seed, f"device {number}")


class InPocket(Local):
    """A turn's own actions, done with a pocket."""

    home: Pocket
    codes: NDArray[Any] | None = None  # of what it has trained, where whoever did has encoded it

    def do(self, action: Action, bundle: Bundle) -> Any:
        """As `Local.do`, but for what a phone does with text."""
        pocket = self.home
        match action:
            case Gather(assignment, plan, most):
                return self._gathered(assignment, plan.length, most)
            case GatherHeld(plan):
                return self._held_back(plan.length)
            case Encode() if self.codes is not None:
                return self.codes
            case Used(records):
                for number in records:
                    pocket.uses[number] = pocket.uses.get(number, 0) + 1
                return None
            case RecallReport(assignment, terms):
                if pocket.report is not None and not is_of(pocket.report, assignment, terms):
                    pocket.report = None
                return pocket.report
            case KeepReport(report):
                pocket.report = report
                return None
            case Keep(work, progress):
                pocket.half_done = work, progress
                return None
            case Drop():
                pocket.half_done = pocket.report = None
                return None
            case Protect(assignment, terms, numbers, largest):
                numbers = pocket.shared.luck.numbers(pocket.number, numbers, largest)
                return super().do(replace(action, numbers=numbers), bundle)
            case Evaluate(_, messages):
                words = sum(map(scoring.words, messages))
                said = pocket.shared.luck.scores(pocket.number, words)
                return super().do(action, bundle) if said is None else said
        return super().do(action, bundle)

    def _gathered(self, assignment: Assignment, length: int, most: int) -> Gathered:
        pocket = self.home
        typed, user = pocket.shared.typed, pocket.user
        if pocket.half_done is not None and is_half_done(pocket.half_done[0], assignment):
            work, progress = pocket.half_done
            rows = typed.rows_of(user, work.records, most)
            return Gathered(work, rows, targets(rows), progress)
        pocket.half_done = None
        used, rows = typed.newest(user, pocket.have(self.began), pocket.used_up, most)
        work = Work(
            assignment.assignment,
            assignment.round,
            self.until,
            used,
            rows_hash(rows),
            *begun_from(assignment),
        )
        return Gathered(work, rows, targets(rows))

    def _held_back(self, length: int) -> HeldBack:
        pocket = self.home
        have = pocket.have(self.began)
        records, rows = pocket.shared.typed.held(pocket.user, have, pocket.used_up, 200)
        messages = tuple(tuple(int(id) for id in row[1:] if id > 2) for row in rows)
        return HeldBack(records, messages, targets(rows))


class Died(Exception):
    """The process that took a turn is gone."""


@dataclass(frozen=True)
class KeptTurn:
    """A turn under way as plain values, of which `Turn.again` makes the same turn."""

    message: CheckIn  # that it began with
    assignment: Assignment
    began: float
    now: float
    values: list[Any] = field(repr=False)
    times: dict[str, float]
    up: int
    down: int
    entry: Believed | None


@dataclass
class Turn:
    """A turn under way, as far as somebody else has to do something for it."""

    pocket: Pocket
    assignment: Assignment
    device: Participant
    began: float  # seconds since 1970
    now: float = 0.0
    # all that was sent into it so far, in order: with that it comes to where it is again
    values: list[Any] = field(default_factory=list, repr=False)
    times: dict[str, float] = field(default_factory=dict)  # when what was done, since 1970

    def __post_init__(self) -> None:
        self.now = self.now or self.began
        self.meter = Meter()
        luck, device = self.pocket.shared.luck, self.pocket.number
        skew = luck.skew(device)
        own = weakref.proxy(self)  # a turn that is over is forgotten at once
        clock = DeviceClock(lambda: own.now, dated=lambda: own.now + skew)
        self._dies_after = luck.dies_after(device, self.began)
        self.local = InPocket(self.pocket, clock, self.meter)
        self.local.began = self.began
        self.local.until = self.began + self.device.limits.seconds(self.assignment.deadline_s)
        self._actions: Generator[Action, Any, Outcome] = turn.work(self.device, self.assignment)
        self.action: Action | None = None

    def begin(self) -> Action | Outcome:
        """What it waits for first, or what came of it."""
        return self._on(lambda: next(self._actions))

    def go_on(self, value: Any, now: float) -> Action | Outcome:
        """The same once there is what it has waited for, of a training a `Trained`: an error is
        thrown into it. Raises what it raises, or Died.
        """
        self.now = now
        return self._on(lambda: self._sent(value))

    def kept(self) -> KeptTurn:
        """All that it takes to make it again."""
        return KeptTurn(
            self.device.check_in,
            self.assignment,
            self.began,
            self.now,
            self.values,
            self.times,
            self.meter.up,
            self.meter.down,
            self.local.entry,
        )

    @classmethod
    def again(cls, kept: KeptTurn, pocket: Pocket) -> "Turn":
        """The turn that was kept, where it was. Nothing is done to its pocket: it hears once more
        what it has heard.
        """
        device = participant(pocket, kept.message, kept.began)
        turn = cls(pocket, kept.assignment, device, kept.began, kept.now, times=kept.times)
        turn.meter.up, turn.meter.down = kept.up, kept.down
        turn.local.entry = kept.entry
        turn.action = next(turn._actions)
        for value in kept.values:
            if isinstance(turn.action, Identify):
                value = turn.local.do(turn.action, pocket.shared.bundle)
            turn.action = turn._sent(value)
        return turn

    def _on(self, step: Any) -> Action | Outcome:
        try:
            self.action = step()
            while not isinstance(self.action, OUTSIDE):
                done = self.local.do(self.action, self.pocket.shared.bundle)
                self.action = self._sent(done)
        except StopIteration as end:
            outcome: Outcome = end.value
            seconds = self.now - self.began
            return replace(
                outcome, bytes_up=self.meter.up, bytes_down=self.meter.down, seconds=seconds
            )
        assert self.action is not None
        return self.action

    def _sent(self, value: Any) -> Action:
        if len(self.values) == self._dies_after:
            raise Died
        # secrets are drawn anew, and are the same
        self.values.append(None if isinstance(value, Own) else value)
        if isinstance(value, Trained):
            assert isinstance(self.action, Train)
            self.action.rng.bit_generator.state = value.random
            self.local.codes = value.codes
            value = value.tuned
        if isinstance(value, Exception):
            return self._actions.throw(value)
        return self._actions.send(value)


def participant(pocket: Pocket, message: Any, now: float) -> Participant:
    """What a device knows of itself when its turn begins."""
    shared = pocket.shared
    manifest = shared.bundle.manifest
    return Participant(
        message,
        enrolled=True,
        shapes=manifest.shapes,
        plan=shared.bundle.plan,
        randomness=Seeded(pocket.seed),
        limits=shared.limits,
        keeps_work=shared.config.keeps_work,
        signed=digest(shared.bundle.content[CHECKPOINT]),
        day_ends_in_s=limits.day_ends_in(now),
        reading=shared.reading,
    )
