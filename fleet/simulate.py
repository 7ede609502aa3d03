"""The fleet: many devices and the real coordinator on a virtual clock.

      idle: a row of columns           at work: a turn, the one that phones run
    +-------------------------+  work  +-------------------------------------------+
    | asks when it may, all   | -----> | fetch .. train .. protect .. upload ..     |
    | of a step in one group  | <----- | each call comes at the end of its transfer |
    +-------------------------+  ends  +-------------------------------------------+
               |  a step's calls, by device         | jobs
               v                                    v
        door: memory | HTTP                    engine: here | pool | Ray
               |
               v
        coordinator, store, helper: the real ones, which are told the virtual time

Time goes in steps. Whatever devices ask within one step is answered at its end, in the order of
their numbers, so equal settings give equal bytes. How long a transfer or a training takes is the
device's own, known before it begins; a condition that is lost meanwhile cuts it short.
"""

import contextlib
import gc
import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime import chain, daemon, limits
from device_runtime.bundle import CHECKPOINT
from device_runtime.causes import MEANING, Cause
from device_runtime.errors import FedboardError, Unanswered
from device_runtime.home import done_on
from device_runtime.local import targets
from device_runtime.secagg_turn import Wait
from device_runtime.text import RULES
from device_runtime.turn import Action, Ask, Fetch, HandIn, Outcome, Status, Train, Upload
from device_runtime.weights import digest
from device_runtime.wire import DAY_S, Assignment, CheckIn, Kind, Reject
from fleet import availability, draws, turns
from fleet.doors import Call, Door
from fleet.engines import Engine, Job, Trained, asks_of
from fleet.pocket import Died, Holds, Pocket, Shared, Turn, participant
from fleet.population import transfer
from fleet.servers import Servers
from fleet.settings import START, FleetSettings

MESSAGE_BYTES = 1000  # of a request or an answer without a body
MOST_MESSAGES = 100_000  # check-ins that are kept, which many devices send alike
AT_ONCE = 8192  # devices that are looked up together
LOOK = 1 / 3  # of the time of a batch that its loss takes, without gradients
# for how long a network is gone whose transfer broke off, by its logarithm all alike
GONE_S, MOST_GONE_S = 60.0, 3 * 3600.0
_WAITS, _FIRST, _GONE = 1, 2, 3  # what draws are for
_NEVER = np.iinfo(np.int64).max


@dataclass
class State:
    """All that a fleet remembers but what its servers keep. Plain values: with them it goes on as
    if nothing had happened.
    """

    step: int = -1  # the last one that is over
    # by step: devices that ask then, and devices whose turn goes on then
    asking: dict[int, list[int]] = field(default_factory=dict)
    going_on: dict[int, list[int]] = field(default_factory=dict)
    asks: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))  # so far, by one
    pockets: dict[int, Pocket] = field(default_factory=dict)
    turns: dict[int, Turn] = field(default_factory=dict)  # under way
    cut: set[int] = field(default_factory=set)  # devices whose transfer under way breaks off
    # of each hour: check-ins by what came of them
    check_ins: dict[tuple[int, str], int] = field(default_factory=dict)
    ended: list[NDArray] = field(default_factory=list)  # turns, as rows, not yet written
    late: list[tuple[float, Call]] = field(default_factory=list)  # calls that come again, and when
    over: bool = False  # the server has no round left


class _Resting:
    """Devices of which nobody has asked yet when they are ready next."""

    def __init__(self) -> None:
        self.first, self.count = _NEVER, 0  # step before which none of them asks; devices
        self._parts: list[tuple[Any, Any, Any]] = []

    def add(self, devices: NDArray[np.int64], after_s: Any, least: int, step_s: float) -> None:
        """Devices, [k], that ask after so many seconds since the fleet began, [k], and not before
        the step `least`.
        """
        after = np.asarray(after_s, np.float64)
        self._parts.append((devices, after, np.full(len(devices), least)))
        first = math.floor(float(after.min()) / step_s)
        self.first, self.count = min(self.first, max(first, least)), self.count + len(devices)

    def taken(self) -> list[NDArray[Any]]:
        """All of them: devices, seconds, steps. From now on there are none."""
        columns = [np.concatenate(column) for column in zip(*self._parts, strict=True)]
        self.first, self.count = _NEVER, 0
        self._parts.clear()
        return columns


class Fleet:
    """One fleet. `run` lets time pass."""

    def __init__(
        self,
        settings: FleetSettings,
        shared: Shared,
        servers: Servers,
        door: Door,
        engine: Engine,
        state: State | None = None,
    ):
        self.settings, self.shared, self.servers = settings, shared, servers
        self._door, self._engine = door, engine
        self._signed = digest(shared.bundle.content[CHECKPOINT])
        self._tickets: dict[int, Any] = {}  # of what is computed just now, by device
        self._messages: dict[tuple[Any, ...], CheckIn] = {}  # alike for most devices
        self._state = State() if state is None else state
        self._resting = _Resting()
        self._gone: dict[int, float] = {}  # seconds, of devices whose network breaks off just now
        if state is None:
            self._begin()
        self._known = {*self._state.asking, *self._state.going_on}
        self._steps = sorted(self._known)  # a heap
        self._ticks_in = self._tick_after(self._state.step)
        # told of each training that is over
        self.on_trained: Callable[[Turn, Trained], None] = lambda turn, trained: None
        for turn in self.state.turns.values():
            if isinstance(turn.action, Train):  # it is computed anew
                self._train(turn, turn.action, turn.now)

    @property
    def state(self) -> State:
        """All that it remembers."""
        self._look_ahead()
        return self._state

    @property
    def now(self) -> float:
        """Seconds since 1970, of the last step that is over."""
        return START + max(0, self._state.step) * self.settings.step_s

    def run(self, until_s: float, may_go_on: Callable[[], bool] = lambda: True) -> None:
        """Let time pass up to so many seconds since the fleet began, or until its server has no
        round left. `may_go_on` is asked after each step.
        """
        last = math.floor(until_s / self.settings.step_s)
        with _seldom_collected():
            while not self._state.over and may_go_on():
                step = self._next()
                if step > last:
                    self._state.step = last
                    break
                self._take(step)

    def close(self) -> None:
        """End what computes, the way to the servers, and the servers."""
        self._engine.close()
        self._door.close()
        self.servers.close()

    # time

    def _next(self) -> int:
        """The next step in which something happens."""
        first = min(self._steps[0] if self._steps else _NEVER, self._ticks_in)
        if self._resting.first > first and self._resting.count < AT_ONCE:
            return first
        self._look_ahead()
        return min(self._steps[0] if self._steps else _NEVER, self._ticks_in)

    def _tick_after(self, step: int) -> int:
        """The first step after another in which the server looks at the clock: it does so at the
        same times whenever the fleet goes on.
        """
        every, long = self.settings.tick_s, self.settings.step_s
        ticks = math.floor(step * long / every + 1e-9) + 1
        return max(step + 1, math.ceil(ticks * every / long - 1e-9))

    def _take(self, step: int) -> None:
        """Let one step happen."""
        settings, state = self.settings, self._state
        now = START + step * settings.step_s
        if self._steps and self._steps[0] == step:
            heapq.heappop(self._steps)
            self._known.discard(step)
        if step == self._ticks_in:
            self.servers.tick(now)
            self._ticks_in = self._tick_after(step)
        calls = self._resumed(state.going_on.pop(step, []), step, now)
        calls += self._asked(state.asking.pop(step, []), step, now)
        if calls:
            answers = self._door.answers(calls, now)
            self._hear(calls, answers, step, now)
        self.servers.open_sums(now)
        state.step = step

    def _plan(self, of: dict[int, list[int]], step: int, device: int) -> None:
        of.setdefault(step, []).append(device)
        if step not in self._known:
            self._known.add(step)
            heapq.heappush(self._steps, step)

    def _step_at(self, time: float, after: int) -> int:
        """The first step at or after a time since 1970, and after another step."""
        return max(after + 1, math.ceil((time - START) / self.settings.step_s - 1e-9))

    # devices that are idle

    def _begin(self) -> None:
        """All devices ask first somewhere in the first day, once they are ready."""
        size = len(self.shared.population)
        self._state.asks = np.zeros(size, np.int32)
        devices = np.arange(size)
        spread = min(DAY_S, self.settings.days * DAY_S)
        first = spread * draws.uniform(self.shared.seed, devices, _FIRST)
        self._come_back(devices, first, -1)

    def _come_back(self, devices: NDArray[np.int64], after_s: Any, step: int) -> None:
        """Let devices ask as soon as they are ready, after so many seconds since the fleet
        began.
        """
        self._resting.add(devices, after_s, step + 1, self.settings.step_s)

    def _look_ahead(self) -> None:
        """Find out when the devices that rest are ready: of many at once, that takes less time."""
        if not self._resting.count:
            return
        devices, after_s, least = self._resting.taken()
        ready = self.shared.availability.ready_at(devices, after_s, self.shared.needed)
        finite = np.isfinite(ready)
        steps = np.ceil(ready[finite] / self.settings.step_s - 1e-9).astype(np.int64)
        steps = np.maximum(steps, least[finite])
        asking = self._state.asking
        for device, at in zip(devices[finite].tolist(), steps.tolist(), strict=True):
            if at in asking:
                asking[at].append(device)
            else:
                self._plan(asking, at, device)

    def _asked(self, devices: list[int], step: int, now: float) -> list[Call]:
        """The check-ins of a step: of those that are ready, and have something to train on."""
        if not devices:
            return []
        who = np.array(sorted(devices))
        at = np.full(len(who), now - START)
        bits = self.shared.availability.signals(who, at)
        ready = (bits & self.shared.needed) == self.shared.needed
        if not ready.all():
            self._come_back(who[~ready], at[~ready], step)
            who = who[ready]
        population, own = self.shared.population, self.shared.limits
        users = population.user[who]
        have = self.shared.typed.arrived(
            users, population.first_messages[who], population.messages_a_day[who], now - START
        )
        messages, words = self.shared.typed.trainable(users, have, own.most.max_rows)
        enough = (messages >= own.own.least_messages) & (words >= own.own.least_words)
        told = _coarse(have)
        calls: list[Call] = []
        rest: list[int] = []
        columns = who, population.kind[who], told, enough, messages, words
        for device, kind, waiting, is_enough, of, words_of in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            pocket = self._state.pockets.get(device)
            if pocket is not None:
                calls += self._owed(pocket, now)
                is_enough = self._why_not_asked(pocket, of, words_of, now) is None
            if is_enough:
                calls.append(Call(device, Ask(self._message(kind, waiting, pocket))))
            else:
                rest.append(device)
        if rest:
            self._rest(np.array(rest), step, now)
        return calls

    def _owed(self, pocket: Pocket, now: float) -> list[Call]:
        if pocket.withheld is None or limits.same_day(pocket.withheld[1], now):
            return []
        assignment, _ = pocket.withheld
        pocket.withheld = None
        return [Call(pocket.number, HandIn(assignment))]

    def _why_not_asked(self, pocket: Pocket, messages: int, words: int, now: float) -> Cause | None:
        """`messages` and `words`: of the newest rows, had it used up none."""
        own = self.shared.limits
        if used_up := pocket.used_up:
            records, rows = self.shared.typed.newest(
                pocket.user, pocket.have(now), used_up, own.most.max_rows
            )
            messages, words = len(records), targets(rows)
        today = limits.Today(
            _done_on(pocket, now),
            messages,
            words,
            owes=pocket.withheld is not None,
            half_done=pocket.half_done is not None or pocket.report is not None,
        )
        return limits.why_not_asked(own, today)

    def _rest(self, devices: NDArray[np.int64], step: int, now: float) -> None:
        """Let devices do nothing more today."""
        share = draws.uniform(self.shared.seed, devices, self._state.asks[devices], _WAITS)
        self._state.asks[devices] += 1
        wait = daemon.until_tomorrow(limits.day_ends_in(now), share)
        self._come_back(devices, now - START + wait, step)

    def _message(self, number: int, waiting: int, pocket: Pocket | None) -> CheckIn:
        """What a device of a class says of itself when it asks."""
        holds, size = self._signed, 0
        if pocket is not None:
            holds = holds if pocket.held is None else self.shared.reading.digest(pocket.held)
            size = pocket.log.size(self.shared.server)
        told = waiting, number, holds, size
        message = self._messages.get(told)
        if message is None:
            if len(self._messages) >= MOST_MESSAGES:
                self._messages.clear()
            kind = self.shared.population.classes[number]
            message = CheckIn(
                availability.conditions(availability.NEEDED),
                waiting,
                self.shared.bundle.manifest.tokenizer,
                holds=holds,
                population=self.settings.task.population,
                runtime=kind.runtime,
                device_class=kind.name,
                log_size=size,
                rules=RULES,
            )
            self._messages[told] = message
        return message

    # what comes back

    def _hear(self, calls: list[Call], answers: list[Any], step: int, now: float) -> None:
        """Go on with the turns that have got an answer, begin those that have got work, and let the
        others come again.
        """
        hour = int((now - START) // 3600)
        counts = self._state.check_ins
        refused: list[int] = []
        waits: list[float] = []
        worked = [
            call.device
            for call, answer in zip(calls, answers, strict=True)
            if isinstance(answer, Assignment)
        ]
        if worked:
            self._look_on(worked, now)
        for call, answer in zip(calls, answers, strict=True):
            if not isinstance(call.action, Ask):
                if not isinstance(call.action, HandIn):
                    self._go_on(call.device, answer, step, now)
                continue
            if isinstance(answer, Assignment):
                counts[hour, "assigned"] = counts.get((hour, "assigned"), 0) + 1
                self._work(call, answer, step, now)
                continue
            if isinstance(answer, Reject):
                counts[hour, answer.cause] = counts.get((hour, answer.cause), 0) + 1
                if answer.cause is Cause.NO_ROUND:
                    self._state.over = True
                pocket = self._state.pockets.get(call.device)
                if pocket is not None and not MEANING[answer.cause].keeps_work:
                    pocket.half_done = pocket.report = None
                refused.append(call.device)
                waits.append(answer.retry_in_s)
            else:
                self._failed(call.device, step, now)
        if refused:
            devices = np.array(refused)
            share = draws.uniform(self.shared.seed, devices, self._state.asks[devices], _WAITS)
            self._state.asks[devices] += 1
            wait = self.shared.luck.waits(refused, daemon.polite(np.array(waits), share))
            self._come_back(devices, now - START + wait, step)

    def _work(self, call: Call, assignment: Assignment, step: int, now: float) -> None:
        """Begin a turn."""
        pocket = self._state.pockets[call.device]
        assert isinstance(call.action, Ask)
        device = participant(pocket, call.action.message, now)
        turn = self._state.turns[call.device] = Turn(pocket, assignment, device, now)
        turn.times["assigned"] = now
        self._wait_for(turn, turn.begin, step, now)

    def _look_on(self, devices: list[int], now: float) -> None:
        """Find out for how long the conditions of devices that have got work hold."""
        who, at = np.array(devices), np.full(len(devices), now - START)
        lives, needed = self.shared.availability, self.shared.needed
        ready = (lives.signals(who, at) & needed) == needed
        until = [
            (START + lives.lost_at(who, at, bits)).tolist() if bits else [math.inf] * len(who)
            for bits in (needed, availability.UNMETERED & needed)
        ]
        for device, is_ready, *lost in zip(devices, ready.tolist(), *until, strict=True):
            pocket = self._state.pockets.get(device)
            if pocket is None:
                pocket = self._state.pockets[device] = Pocket(device, self.shared)
            pocket.holds = Holds(now, *lost) if is_ready else Holds()

    def _go_on(self, device: int, value: Any, step: int, now: float) -> None:
        turn = self._state.turns[device]
        if isinstance(turn.action, Fetch) and isinstance(value, bytes):
            turn.meter.down += len(value)
            turn.times["fetched"] = now
        if isinstance(turn.action, Upload):
            turn.meter.up += len(turn.action.update)
        self._wait_for(turn, lambda: turn.go_on(value, now), step, now)

    def _wait_for(
        self, turn: Turn, begin: Callable[[], Action | Outcome], step: int, now: float
    ) -> None:
        """Go on with a turn, and plan when it has what it waits for next."""
        device = turn.pocket.number
        try:
            action = begin()
        except (FedboardError, Died):
            self._end(turn, None, now)
            self._failed(device, step, now)
            return
        if isinstance(action, Outcome):
            self._end(turn, action, now)
            self._come_again(turn.pocket, action, step, now)
            return
        if isinstance(action, Train):
            ends = self._train(turn, action, now)
        elif isinstance(action, Wait):
            ends = now + action.seconds
        else:
            ends = self._transfer(device, action, now)
        self._plan(self._state.going_on, self._step_at(ends, step), device)

    def _resumed(self, devices: list[int], step: int, now: float) -> list[Call]:
        """The calls of turns that go on in this step: some have computed or waited meanwhile."""
        calls = []
        for device in sorted(devices):
            turn = self._state.turns[device]
            if isinstance(turn.action, Train):
                trained = self._trained(turn)
                turn.times["trained"] = now
                self._go_on(device, trained, step, now)
            elif isinstance(turn.action, Wait):
                turn.now = now
                self._go_on(device, turn.local.forbidden(), step, now)
            elif device in self._state.cut:
                self._state.cut.remove(device)
                self._gone[device] = self._gone_s(device, step)
                self._go_on(device, Unanswered("server", "the network is gone", "wait"), step, now)
                del self._gone[device]
            else:
                assert turn.action is not None
                calls.append(Call(device, turn.action))
        return calls

    def _end(self, turn: Turn, outcome: Outcome | None, now: float) -> None:
        device = turn.pocket.number
        del self._state.turns[device]
        row = turns.row(device, turn.assignment.round, turn.times, now, outcome)
        self._state.ended.append(row)

    def _come_again(self, pocket: Pocket, outcome: Outcome, step: int, now: float) -> None:
        """When a device asks again after a turn, as `daemon.after` has it."""
        pocket.errors = 0
        share = self._share(pocket.number)
        if outcome.status is Status.NOT_ASKED or outcome.cause is Cause.OVER_LIMIT:
            wait = float(daemon.until_tomorrow(outcome.retry_in_s, share))
        elif outcome.status is Status.PAUSED:
            wait = daemon.PAUSE_S * (1 + daemon.JITTER * share)
        else:
            wait = float(daemon.polite(outcome.retry_in_s, share))
        self._come_back(np.array([pocket.number]), np.array([now - START + wait]), step)

    def _failed(self, device: int, step: int, now: float) -> None:
        """The server could not be asked, or an error ended a turn."""
        errors, pocket = 1, self._state.pockets.get(device)
        if pocket is not None:
            errors = pocket.errors = pocket.errors + 1
        wait = daemon.backed_off(errors, self._share(device))
        wait = max(wait, self._gone.get(device, 0.0))
        self._come_back(np.array([device]), np.array([now - START + wait]), step)

    def _share(self, device: int) -> float:
        count = int(self._state.asks[device])
        self._state.asks[device] += 1
        return draws.one(self.shared.seed, device, count, _WAITS)

    # what takes time

    def _lost_at(self, device: int, now: float, needed: int) -> float:
        """When a condition is lost, in seconds since 1970."""
        known = self._state.pockets[device].holds.until(now, needed == self.shared.needed)
        if known is not None:
            return known
        since = np.array([now - START])
        return START + float(self.shared.availability.lost_at(np.array([device]), since, needed)[0])

    def _transfer(self, device: int, action: Action, now: float) -> float:
        """When a call has got its answer, or is cut off because the WiFi is gone."""
        up = down = MESSAGE_BYTES
        if isinstance(action, Fetch):
            down = self.servers.coordinator.blob_size(action.sha256)
        if isinstance(action, Upload):
            up = len(action.update)
        step = round((now - START) / self.settings.step_s)  # a device begins one transfer in it
        seconds, breaks = transfer(self.shared.population, device, step, up, down)
        seconds, is_cut = self.shared.luck.transfer(device, now, seconds)
        ends = now + seconds
        if isinstance(action, Fetch | Upload):
            wifi = availability.UNMETERED & self.shared.needed
            lost = self._lost_at(device, now, wifi) if wifi else math.inf
            if breaks or lost < ends:
                self._state.cut.add(device)
            ends = min(ends, lost)
        if is_cut:
            self._state.cut.add(device)
        return ends

    def _gone_s(self, device: int, step: int) -> float:
        """Seconds for which a network that broke off in a step is gone."""
        return GONE_S * (MOST_GONE_S / GONE_S) ** draws.one(self.shared.seed, device, step, _GONE)

    def _train(self, turn: Turn, action: Train, now: float) -> float:
        """Begin to compute a training, and when it ends: with its last batch, or before the one
        that a lost condition or the deadline forbids.
        """
        device, plan, rows = turn.pocket.number, action.plan, len(action.rows)
        batch_s = float(self.shared.population.batch_s[device])
        done = 0 if action.start is None else action.start.batches
        takes = _seconds_of_asks(rows, plan.batch_size, plan.epochs, done, batch_s)
        asked = now + np.concatenate([[0.0], np.cumsum(takes)])  # the last one is the end
        ends = min(self._lost_at(device, now, self.shared.needed), turn.local.until)
        allowed = int(np.searchsorted(asked[:-1], ends, side="left"))
        assert asks_of(rows, plan, done) == len(takes)
        # of a device that lies the delta is wanted, which it changes
        is_honest = self.shared.luck.attack(device) is None
        by = chain.terms_of(turn.assignment).encoding_at(turn.assignment.round)
        job = Job(
            turn.assignment.checkpoint,
            action.rows,
            plan,
            action.rng.bit_generator.state,
            None if allowed == len(takes) else allowed,
            action.start,
            by if is_honest else None,
            float(asked[allowed]),
        )
        self._tickets[device] = self._engine.submit(job, action.weights)
        return float(asked[allowed])

    def _trained(self, turn: Turn) -> Trained:
        device = turn.pocket.number
        trained = self._engine.result(self._tickets.pop(device))
        assert isinstance(turn.action, Train)
        norm = turn.action.plan.clipping_norm
        trained = replace(trained, tuned=self.shared.luck.learned(device, trained.tuned, norm))
        self.on_trained(turn, trained)
        return trained


@contextlib.contextmanager
def _seldom_collected() -> Iterator[None]:
    """Let Python look for cycles seldom: what a fleet remembers, and forgets, has none."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _seconds_of_asks(
    rows: int, batch: int, epochs: int, done: int, batch_s: float
) -> NDArray[np.float64]:
    """Seconds that follow each time that training asks whether it may go on, as `engines.asks_of`
    counts them.
    """
    looks = min(-(-rows // batch), 8)
    each = max(0, epochs * -(-rows // batch) - done)
    before = [LOOK * batch_s] * (0 if done else looks)
    return np.array([*before, *[batch_s] * each, *[LOOK * batch_s] * looks])


def _coarse(messages: NDArray[np.int64]) -> NDArray[np.int64]:
    """`limits.coarse` of a column."""
    return np.array(limits.COARSE)[np.searchsorted(limits.COARSE, messages, side="right") - 1]


def _done_on(pocket: Pocket, now: float) -> int:
    return done_on([line for line in pocket.lines if line.kind == Kind.TRAINING], now)
