"""Watch: looks at a fleet from outside, step by step, and asks what must hold.

    devices --> faults --> Watch --> door --> coordinator
                             |                    |
          what came, and what was said      its database, its blobs, its log
                             +---------+----------+
                                       v
                          invariants.py: "", or what is wrong

It remembers by itself what came, and reads the rest with SQL of its own: nothing that the server
works out is taken for true.
"""

import contextlib
import itertools
import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime import config, encoding, log_wire, update, weights
from device_runtime.accountant import Participation
from device_runtime.errors import FedboardError
from device_runtime.noise import Noise
from device_runtime.signing import name_of, public_hex
from device_runtime.terms import Aggregation
from device_runtime.turn import Upload
from device_runtime.weights import digest
from device_runtime.wire import Signed
from fleet.doors import Call, Door
from fleet.engines import Trained, generator
from fleet.invariants import (
    Base,
    Round,
    Told,
    Work,
    acknowledged,
    budgeted,
    counted_once,
    eligible,
    exact,
    follows,
    grows,
    is_root_of,
    keeps_none,
    made_of,
    moves,
    noised,
    one_sum,
    opened,
)
from fleet.pocket import Turn, key_of
from fleet.servers import DATABASE
from fleet.settings import START
from fleet.simulate import Fleet
from server.secagg_steps import promised_s
from server.task import round_rules, terms

SLACK_TICKS = 3  # looks at the clock, in which what is due must have happened
SUM_BYTES = 256  # of what is stored of a sum, beside its numbers
LOG_ENTRIES = 10_000  # that are read at most
_WORK = "assignment, round, device, admitted_at, status, update_hash, counted_in"
_ROUND = "round, phase, base, made, reported, last_admitted, places, closed_at, reason"


class Violated(FedboardError):
    """An invariant does not hold."""


@dataclass
class Watch:
    """Looks at what comes to a server, what it says and what it keeps. `repeat` is the command that
    shows the same again.
    """

    repeat: str
    looks: int = 0  # invariants asked so far
    # by assignment: names of the bodies that came, and who sent each
    _came: dict[str, dict[str, str]] = field(default_factory=dict)
    _codes: dict[tuple[str, str], NDArray[Any]] = field(default_factory=dict)  # in each body
    _newest: dict[str, NDArray[Any]] = field(default_factory=dict)  # by assignment: what is masked
    _bodies: dict[str, bytes] = field(default_factory=dict)
    # by assignment: whether the conditions of its device held when it began, and when it sent
    _ready: dict[str, bool] = field(default_factory=dict)
    _told: list[Told] = field(default_factory=list)  # since the last step
    _counted: dict[str, int] = field(default_factory=dict)  # by assignment: the round
    _rounds: dict[str, list[int]] = field(default_factory=dict)  # that counted a device
    _sums: dict[str, list[int]] = field(default_factory=dict)  # with noise, that a device is in
    _blocks: Counter[int] = field(default_factory=Counter)  # sums with noise, by basis
    _noise: dict[int, NDArray[Any]] = field(default_factory=dict)  # on the mean of a round
    _head: log_wire.Head | None = None
    _signed_head: list[str] = field(default_factory=list)  # as it is kept
    _base: str = ""  # checkpoint that the next round begins with
    _over: int = -1  # the newest round that is

    def at(self, door: Door) -> Door:
        """Watch a door: what `begin` is to be given."""
        self._door = door
        return self

    def see(self, fleet: Fleet) -> None:
        """Watch a fleet that has begun."""
        self._fleet = fleet
        fleet.on_trained = self._trained
        seed, devices = fleet.shared.seed, range(len(fleet.shared.population))
        self._names = [name_of(public_hex(key_of(seed, each))) for each in devices]
        address = f"file:{fleet.servers.folder / DATABASE}?mode=ro"
        self._database = sqlite3.connect(address, uri=True, isolation_level=None)
        (stored,) = fleet.servers.coordinator.tasks()
        self._task = stored.task

    def answers(self, calls: Sequence[Call], now: float) -> list[Any]:
        """See Door."""
        answers: list[Any] = [None] * len(calls)
        for call in calls:
            if isinstance(call.action, Upload):
                self._arrives(call, call.action)
        try:
            answers = self._door.answers(calls, now)
        finally:  # also of a server that dies meanwhile
            for call, answer in zip(calls, answers, strict=True):
                if isinstance(call.action, Upload):
                    of = self._names[call.device], call.action.assignment.assignment
                    self._told.append(Told(*of, digest(_body(call, call.action)), answer))
        return answers

    def close(self) -> None:
        """Let go of the door and of the database."""
        self._door.close()
        self._database.close()

    def look(self) -> bool:
        """Ask all invariants after a step; always true, so that the fleet goes on. Raises
        Violated.
        """
        told, self._told = self._told, []
        works = self._works([each.assignment for each in told])
        for report in told:
            self._require(acknowledged(report, works.get(report.assignment)))
        query = f"SELECT {_ROUND} FROM rounds WHERE round > ? ORDER BY round"
        rounds = [Round(*row) for row in self._database.execute(query, (self._over,))]
        for it in rounds:
            if it.closed_at is not None:
                self._look_at(it)
                self._over = it.number
        self._look_at_open([it for it in rounds if it.closed_at is None], self._fleet.now)
        self._look_at_log()
        return True

    def look_back(self) -> None:
        """Ask what is only asked once a fleet is over. Raises Violated."""
        if self._head is not None:
            log = self._fleet.servers.coordinator.log_entries(0, LOG_ENTRIES)
            self._require(is_root_of(self._head, log.entries))
        beside = self._fleet.servers.folder.glob(f"{DATABASE}*")
        files = [each.read_bytes() for each in sorted(beside) if each.is_file()]
        self._require(keeps_none(files, self._bodies))

    def _look_at(self, it: Round) -> None:
        """A round that has just ended."""
        task = self._task
        counted = self._counted_in(it.number)
        self._require(counted_once(it, counted, self._came, self._counted))
        for each in counted:
            mine = self._rounds.setdefault(each.device, [])
            was_ready, apart = self._ready.get(each.assignment), task.policy.min_separation
            self._require(eligible(each, was_ready, mine, apart))
            mine.append(it.number)
            self._counted[each.assignment] = it.number
        self._require(opened(it, not self._fleet.settings.faults.liars))
        self._require(follows(it, self._base or it.base))
        self._base = it.made or it.base
        if it.made is not None:
            self._look_at_sum(it, it.made, counted)
        if task.noise is not None:
            self._look_at_budget(task.noise, it, counted)

    def _look_at_sum(self, it: Round, made: str, counted: Sequence[Work]) -> None:
        task, agreed = self._task, terms(self._task)
        codes = [self._codes[each.assignment, each.update_hash or ""] for each in counted]
        behind = [it.number - each.round for each in counted]
        without = made_of(task, it, self._read_base(it.base), codes, behind)
        if task.noise is None:
            self._require(exact(it, digest(weights.to_bytes(without))))
            return
        after = self._read_base(made).weights
        noise = weights.flatten(weights.subtract(after, without.weights))
        # what is left out of a block stays zero, and what travels is shorter by as much
        of_mean = agreed.deviation * agreed.encoding.step / agreed.most / agreed.compression
        expected = of_mean * task.step.learning_rate
        self._require(noised(it.number, noise, expected, self._noise))
        self._noise[it.number] = noise

    def _look_at_budget(self, noise: Noise, it: Round, counted: Sequence[Work]) -> None:
        members = self._column("SELECT device FROM members WHERE round = ?", it.number)
        if members and sorted(members) != sorted(each.device for each in counted):
            self._require(f"the members of the sum of round {it.number} are not its reports")
        if members:
            self._blocks[terms(self._task).basis(it.number)] += 1
        number = sum(self._blocks.values())
        for each in members:
            self._sums.setdefault(each, []).append(number)
        of_each = list(self._sums.values())
        gaps = [after - before for each in of_each for before, after in itertools.pairwise(each)]
        most = max(map(len, of_each), default=0)
        blocks = tuple(self._blocks.values())
        happened = Participation(blocks, min(gaps, default=None), most)
        query = "SELECT rho, epsilon FROM rounds WHERE rho IS NOT NULL ORDER BY round"
        spent = [(rho, epsilon) for rho, epsilon in self._database.execute(query)]
        entries = self._column("SELECT body FROM log_entries ORDER BY log, number")
        logged = [entry for text in entries if (entry := json.loads(text))["entry"] == "round"]
        numbers = [each["sums"] for each in logged if each["rho"]]
        self._require(budgeted(noise, spent, happened, numbers))

    def _look_at_open(self, rounds: Sequence[Round], now: float) -> None:
        settings, task = self._fleet.settings, self._task
        slack = SLACK_TICKS * settings.tick_s + 2 * settings.step_s
        query = f"SELECT {_WORK} FROM assignments WHERE status = 'open'"
        works = [Work(*row) for row in self._database.execute(query)]
        rules, promised = round_rules(task), promised_s(task)
        for it in rounds:
            self._require(moves(it, works, rules, promised, now, slack))
        sums = self._database.execute("SELECT task, round, length(total) FROM sums").fetchall()
        seals = self._column("SELECT DISTINCT round FROM seals")
        still_open = [(task.name, it.number) for it in rounds]
        most = SUM_BYTES + 8 * terms(task).values
        self._require(one_sum(sums, seals, still_open, most))

    def _look_at_log(self) -> None:
        coordinator = self._fleet.servers.coordinator
        newest = self._column("SELECT head FROM log_heads ORDER BY log DESC, size DESC LIMIT 1")
        if newest == self._signed_head or not newest:
            return
        self._signed_head = newest
        signed = config.from_json(Signed, newest[0].encode(), "signed")
        head = config.from_json(log_wire.Head, signed.text.encode(), "head")
        path: list[bytes] = []
        if self._head is not None and head.size >= self._head.size:
            path = log_wire.from_path(coordinator.log_path(self._head.size, head.size).path)
        self._require(grows(self._head, head, path))
        self._head = head

    # what comes

    def _arrives(self, call: Call, upload: Upload) -> None:
        body, work = _body(call, upload), upload.assignment.assignment
        if call.body is None:  # as it was signed
            name = digest(body)
            self._came.setdefault(work, {})[name] = self._names[call.device]
            self._bodies[name] = body
            codes = self._codes_in(body, work)
            if codes is not None:
                self._codes.setdefault((work, name), codes)
        turn = self._fleet.state.turns.get(call.device)
        if turn is not None and turn.action is upload:
            lives, needed = self._fleet.shared.availability, self._fleet.shared.needed
            at = np.array([turn.began, turn.now]) - START
            bits = lives.signals(np.full(2, call.device), at)
            self._ready[work] = bool(((bits & needed) == needed).all())

    def _codes_in(self, body: bytes, work: str) -> NDArray[Any] | None:
        """The codes of an update: those in the open are read, of those that are masked its device
        was heard.
        """
        agreed = terms(self._task)
        if agreed.aggregation is not Aggregation.PLAIN:
            return self._newest.get(work)
        with contextlib.suppress(FedboardError):
            return update.codes(body, agreed.bits)
        return None

    def _trained(self, turn: Turn, trained: Trained) -> None:
        agreed, about = terms(self._task), turn.assignment
        if agreed.aggregation is Aggregation.PLAIN or trained.tuned.stopped is not None:
            return
        codes = trained.codes
        if codes is None:
            by = agreed.encoding_at(about.round)
            codes = encoding.encode(trained.tuned.delta, by, generator(trained.random))
        if agreed.aggregation is Aggregation.HELPER:
            luck = self._fleet.shared.luck
            codes = luck.numbers(turn.pocket.number, codes, agreed.encoding.largest)
        self._newest[about.assignment] = codes

    def _require(self, wrong: str) -> None:
        self.looks += 1
        if wrong:
            where = f"seed {self._fleet.settings.seed}, step {self._fleet.state.step}"
            raise Violated(where, wrong, self.repeat)

    # what the server keeps

    def _read_base(self, sha: str) -> Base:
        blobs = self._fleet.servers.coordinator.blobs
        (moments,) = self._column("SELECT moments FROM checkpoints WHERE sha = ?", sha)
        past = weights.from_bytes(blobs.get(moments)).weights if moments else None
        return Base(weights.from_bytes(blobs.get(sha)).weights, past)

    def _works(self, assignments: Sequence[str]) -> dict[str, Work]:
        if not assignments:
            return {}
        marks = ", ".join("?" * len(assignments))
        query = f"SELECT {_WORK} FROM assignments WHERE assignment IN ({marks})"
        return {row[0]: Work(*row) for row in self._database.execute(query, list(assignments))}

    def _counted_in(self, number: int) -> list[Work]:
        query = f"SELECT {_WORK} FROM assignments WHERE counted_in = ? ORDER BY assignment"
        return [Work(*row) for row in self._database.execute(query, (number,))]

    def _column(self, query: str, *values: Any) -> list[Any]:
        return [row[0] for row in self._database.execute(query, values)]


def _body(call: Call, upload: Upload) -> bytes:
    return upload.update if call.body is None else call.body
