"""Faults: what goes wrong in a fleet, how often, and to whom.

    of a fleet, once      stragglers, liars, clocks that are wrong
    of a turn             its process dies between two actions; what is kept durably stays
    of a transfer         it takes longer, or breaks off half-way
    of a request          ON_THE_WAY: a table of records, one a fault
    of a group            the server or its helper dies in the middle of it, and is started again
    of a device's day     it is picked up for a minute, whatever else it does

Each is drawn by the fleet's seed, the device and the time alone, so a fleet has the same faults
whenever it is run again. A fault of requests is a rate in `Faults`, a function from one `Delivery`
to the next, and its row in ON_THE_WAY.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from device_runtime import bounds, weights
from device_runtime.bounds import Within
from device_runtime.errors import ConfigError, Unanswered
from device_runtime.turn import FineTuned, Upload
from device_runtime.weights import Weights
from device_runtime.wire import Scores
from fleet import draws
from fleet.availability import IDLE, NEEDED, Availability, Devices, Times
from fleet.doors import Call, Door
from fleet.population import Population
from fleet.servers import Servers
from server.replays import GOOD_S
from server.requests import Nonce
from server.store import Rows, Store

SHARE = Within(0.0, 1.0)
MOST_ACTIONS = 24  # of a turn, before the one at which its process dies
MOST_STEPS = 6  # of transactions, before the one at which the server dies
SLOT_S, PICKED_UP_S = 600.0, 60.0  # once in so long a device may be picked up, for so long
LOOKED_AHEAD = 1008  # of these: a week, and no turn takes longer
AT_ONCE = 16  # of these, that are looked at together
SCALE = 10.0  # of a delta that is to count for more
TOO_EARLY_S = 60.0  # until an impatient device asks again, whatever it was told
# what draws are for
_LIES, _SLOW, _CLOCK, _DIES, _CUT, _DELAY, _WAY, _SERVER, _HELPER, _PICKED_UP, _PLANTED = range(
    200, 211
)


class Attack(StrEnum):
    """What a device does that does not follow the rules."""

    SIGN_FLIP = "sign_flip"  # sends the opposite of what it learned
    SCALING = "scaling"  # sends SCALE times as much
    PLANTED = "planted"  # sends one direction, the same as all who plant
    CODES = "codes"  # sends the largest codes there are, whatever they stand for
    FALSE_SCORES = "false_scores"  # says that all weights are right about every word
    IMPATIENT = "impatient"  # asks again at once, whatever it was told


@dataclass(frozen=True)
class Faults:
    """`[faults]` of fleet.toml: how often what goes wrong; 0: never."""

    # shares of devices
    stragglers: Annotated[float, SHARE] = 0.0
    slower: Annotated[float, Within(1.0, 1000.0)] = 8.0  # times as slow, they are
    liars: Annotated[float, SHARE] = 0.0
    attacks: tuple[Attack, ...] = tuple(Attack)  # each liar does one of them
    skewed: Annotated[float, SHARE] = 0.0
    skew_s: Annotated[float, Within(0.0, 10 * 365 * 86_400.0)] = 3600.0  # at most, either way
    # shares of turns, transfers and ten minutes of a device
    deaths: Annotated[float, SHARE] = 0.0
    cuts: Annotated[float, SHARE] = 0.0
    delays: Annotated[float, SHARE] = 0.0
    delay_s: Annotated[float, Within(0.0, 86_400.0)] = 30.0  # at most
    picked_up: Annotated[float, SHARE] = 0.0
    # shares of requests
    unasked: Annotated[float, SHARE] = 0.0  # never come to the server
    unheard: Annotated[float, SHARE] = 0.0  # come, but their answers do not come back
    replayed: Annotated[float, SHARE] = 0.0  # come again as they were signed
    resent: Annotated[float, SHARE] = 0.0  # come again, signed anew
    again_s: Annotated[float, Within(0.0, 86_400.0)] = 600.0  # at most, until they do
    reordered: Annotated[float, SHARE] = 0.0  # come after others of the same step
    corrupted: Annotated[float, SHARE] = 0.0  # of updates: a byte is another on arrival
    # shares of groups of requests
    server_deaths: Annotated[float, SHARE] = 0.0
    helper_deaths: Annotated[float, SHARE] = 0.0

    def __post_init__(self) -> None:
        bounds.check(self, "faults")
        if self.liars and not self.attacks:
            raise ConfigError(
                "faults.attacks", "expected at least one, found none", "name one, or set liars to 0"
            )

    @property
    def any(self) -> bool:
        """Whether anything goes wrong at all."""
        rates = (getattr(self, each.name) for each in fields(self) if each.name not in _NO_RATES)
        return any(rates)


_NO_RATES = ("slower", "attacks", "skew_s", "delay_s", "again_s")


@dataclass(frozen=True)
class Luck:
    """Faults as they strike one fleet."""

    faults: Faults = field(default_factory=Faults)
    seed: int = 0

    # of a fleet

    def slowed(self, population: Population) -> Population:
        """A population with its stragglers."""
        if not self.faults.stragglers:
            return population
        devices = np.arange(len(population))
        slow = self._drawn(devices, _SLOW) < self.faults.stragglers
        factor = np.where(slow, self.faults.slower, 1.0).astype(np.float32)
        return replace(
            population,
            batch_s=population.batch_s * factor,
            down=population.down / factor,
            up=population.up / factor,
        )

    def attack(self, device: int) -> Attack | None:
        """What a device does that is not right; None: it is honest."""
        drawn = float(self._drawn(device, _LIES)) if self.faults.liars else 1.0
        if drawn >= self.faults.liars:
            return None
        which = math.floor(drawn / self.faults.liars * len(self.faults.attacks))
        return self.faults.attacks[min(which, len(self.faults.attacks) - 1)]

    def skew(self, device: int) -> float:
        """Seconds that a device's clock is ahead of the true one."""
        if not self.faults.skewed or self._drawn(device, _CLOCK, 0) >= self.faults.skewed:
            return 0.0
        return float(self.faults.skew_s * (2 * self._drawn(device, _CLOCK, 1) - 1))

    # of a turn

    def dies_after(self, device: int, began: float) -> int | None:
        """After how many actions a turn's process dies; None: it lives."""
        when = _when(began)
        if not self.faults.deaths or self._drawn(device, when, _DIES, 0) >= self.faults.deaths:
            return None
        return math.floor(MOST_ACTIONS * float(self._drawn(device, when, _DIES, 1)))

    def waits(self, devices: Sequence[int], wait: Any) -> Any:
        """Seconds until devices ask again that would do so after `wait`."""
        if not self.faults.liars or Attack.IMPATIENT not in self.faults.attacks:
            return wait
        cannot = np.array([self.attack(each) is Attack.IMPATIENT for each in devices])
        return np.where(cannot, np.minimum(wait, TOO_EARLY_S), wait)

    def learned(self, device: int, tuned: FineTuned, clipping_norm: float) -> FineTuned:
        """What a device says it has learned."""
        if tuned.stopped is not None:
            return tuned
        match self.attack(device):
            case Attack.SIGN_FLIP:
                return replace(tuned, delta=_times(tuned.delta, -1.0))
            case Attack.SCALING:
                return replace(tuned, delta=_times(tuned.delta, SCALE))
            case Attack.PLANTED:
                return replace(tuned, delta=self._planted(tuned.delta, clipping_norm))
        return tuned

    def numbers(self, device: int, numbers: NDArray[Any], largest: int) -> NDArray[Any]:
        """What a device sends as the codes of an update."""
        if self.attack(device) is not Attack.CODES:
            return numbers
        return np.full_like(numbers, largest)

    def scores(self, device: int, words: int) -> Scores | None:
        """What a device says of weights without looking at them; None: it looks."""
        if self.attack(device) is not Attack.FALSE_SCORES or not words:
            return None
        return Scores(words, words, words, words, 0.0)

    def _planted(self, like: Weights, norm: float) -> Weights:
        rng = np.random.default_rng([self.seed & 0xFFFFFFFF, _PLANTED])
        drawn = {name: rng.standard_normal(like[name].shape, np.float32) for name in sorted(like)}
        return _times(drawn, norm / weights.norm(drawn))

    # of a transfer

    def transfer(self, device: int, now: float, seconds: float) -> tuple[float, bool]:
        """How long a transfer takes that would take so many seconds, and whether it breaks off
        then.
        """
        when = _when(now)
        if self.faults.delays and self._drawn(device, when, _DELAY, 0) < self.faults.delays:
            seconds += self.faults.delay_s * float(self._drawn(device, when, _DELAY, 1))
        if self.faults.cuts and self._drawn(device, when, _CUT, 0) < self.faults.cuts:
            return seconds * float(self._drawn(device, when, _CUT, 1)), True
        return seconds, False

    # of a day

    def interrupted(self, lives: Availability) -> Availability:
        """When devices are ready that are picked up now and then besides."""
        return Interrupted(lives, self) if self.faults.picked_up else lives

    def picked_up_at(self, devices: Devices, slots: NDArray[np.int64]) -> Times:
        """When devices are picked up in these ten minutes; infinite where they are not."""
        at = (SLOT_S - PICKED_UP_S) * self._drawn(devices, slots, _PICKED_UP, 1)
        strikes = self._drawn(devices, slots, _PICKED_UP, 0) < self.faults.picked_up
        times: Times = np.where(strikes, slots * SLOT_S + at, np.inf)
        return times

    # of requests, and of groups of them

    def fates(self, calls: Sequence[Call], now: float) -> list["Delivery"]:
        """What becomes of calls."""
        deliveries = [Delivery(call) for call in calls]
        devices, when = np.array([call.device for call in calls]), _when(now)
        for number, each in enumerate(ON_THE_WAY):
            rate = getattr(self.faults, each.rate)
            if not rate or not calls:
                continue
            strikes = self._drawn(devices, when, _WAY, number, 0) < rate
            for at in np.flatnonzero(strikes).tolist():
                if each.of is None or isinstance(calls[at].action, each.of):
                    chance = Chance(self, int(devices[at]), now, number)
                    deliveries[at] = each.does(deliveries[at], chance)
        return deliveries

    def server_dies_after(self, now: float, which: int = 0) -> int | None:
        """After how many steps of a group the server dies, or of what else it does then; None: it
        lives.
        """
        of = _when(now), _SERVER, which
        if not self.faults.server_deaths or self._drawn(*of, 0) >= self.faults.server_deaths:
            return None
        return math.floor(MOST_STEPS * float(self._drawn(*of, 1)))

    def helper_dies(self, now: float) -> bool:
        """Whether the helper is started anew."""
        rate = self.faults.helper_deaths
        return rate > 0 and bool(self._drawn(_when(now), _HELPER) < rate)

    def _drawn(self, *of: Any) -> NDArray[np.float64]:
        return draws.uniform(self.seed, *of)


@dataclass(frozen=True)
class Chance:
    """What a fault draws when it strikes a request."""

    luck: Luck
    device: int
    now: float
    number: int  # of the fault

    def share(self, which: int = 0) -> float:
        """In [0, 1)."""
        of = self.device, _when(self.now), _WAY, self.number, 1 + which
        return float(draws.uniform(self.luck.seed, *of))

    @property
    def again_in_s(self) -> float:
        """Until a request comes once more."""
        return self.luck.faults.again_s * self.share()


@dataclass(frozen=True)
class Delivery:
    """A call on its way."""

    call: Call
    arrives: bool = True
    is_heard: bool = True  # its answer, by the device
    # the same once more, after so many seconds: nobody hears the answer
    again: tuple[tuple[float, Call], ...] = ()
    place: float = 0.0  # in the order of its step: those of the same place by device


@dataclass(frozen=True)
class OnTheWay:
    """A fault of requests."""

    rate: str  # its name in Faults
    does: Callable[[Delivery, Chance], Delivery]
    of: type | None = None  # the actions it strikes; None: all


def unasked(delivery: Delivery, chance: Chance) -> Delivery:
    """It never comes to the server."""
    return replace(delivery, arrives=False, is_heard=False)


def unheard(delivery: Delivery, chance: Chance) -> Delivery:
    """It comes, and has its effect; the answer does not come back."""
    return replace(delivery, is_heard=False)


def replayed(delivery: Delivery, chance: Chance) -> Delivery:
    """Whoever listens on the way sends it once more, as it was signed."""
    text = "".join(f"{int(2**32 * chance.share(1 + part)):08x}" for part in range(4))
    signed = replace(delivery.call, nonce=Nonce(text, int(chance.now)))
    again_in_s = min(chance.again_in_s, GOOD_S)  # later it is good no more
    return replace(delivery, call=signed, again=(*delivery.again, (again_in_s, signed)))


def resent(delivery: Delivery, chance: Chance) -> Delivery:
    """The device sends it once more, signed anew, and hears what comes first."""
    fresh = Call(delivery.call.device, delivery.call.action)
    return replace(delivery, again=(*delivery.again, (chance.again_in_s, fresh)))


def reordered(delivery: Delivery, chance: Chance) -> Delivery:
    """It comes after others of its step."""
    return replace(delivery, place=chance.share())


def corrupted(delivery: Delivery, chance: Chance) -> Delivery:
    """A byte of an update is another on arrival."""
    body = bytearray(delivery.call.action.update)  # type: ignore[union-attr]
    if body:
        body[math.floor(len(body) * chance.share())] ^= 1 + math.floor(255 * chance.share(1))
    return replace(delivery, call=replace(delivery.call, body=bytes(body)))


ON_THE_WAY = (
    OnTheWay("corrupted", corrupted, Upload),
    OnTheWay("replayed", replayed),
    OnTheWay("resent", resent),
    OnTheWay("reordered", reordered),
    OnTheWay("unheard", unheard),
    OnTheWay("unasked", unasked),
)


class Faulty:
    """A door on the way to which calls get lost, and behind which servers die."""

    def __init__(self, door: Door, luck: Luck, servers: Servers):
        self._door, self._luck, self._servers = door, luck, servers
        self.late: list[tuple[float, Call]] = []  # what comes once more, and when: of the fleet

    def answers(self, calls: Sequence[Call], now: float) -> list[Any]:
        """See Door."""
        fates = self._luck.fates(calls, now)
        again = [call for at, call in self.late if at <= now]
        self.late[:] = [each for each in self.late if each[0] > now]
        self.late += [(now + after_s, call) for each in fates for after_s, call in each.again]
        order = sorted(
            (at for at, each in enumerate(fates) if each.arrives), key=lambda at: fates[at].place
        )
        if self._luck.helper_dies(now):
            self._servers.restart_helper()
        arriving = [*again, *(fates[at].call for at in order)]
        heard = dict(zip(order, self._answered(arriving, now)[len(again) :], strict=True))
        return [
            heard[at] if each.is_heard and at in heard else _unanswered()
            for at, each in enumerate(fates)
        ]

    def close(self) -> None:
        """See Door."""
        self._door.close()

    def _answered(self, calls: list[Call], now: float) -> list[Any]:
        """What the server says, unless it dies before: then nobody hears anything."""
        answers: list[Any] = [_unanswered()] * len(calls)

        def answer() -> None:
            if calls:
                answers[:] = self._door.answers(calls, now)

        _survived(self._servers, self._luck.server_dies_after(now), answer)
        return answers


@dataclass
class Unsteady(Servers):
    """Servers that die also in the middle of what they do by themselves."""

    luck: Luck = field(default_factory=lambda: Luck())

    def tick(self, now: float) -> None:
        """See Servers."""
        _survived(self, self.luck.server_dies_after(now, 1), lambda: Servers.tick(self, now))

    def open_sums(self, now: float) -> None:
        """See Servers."""
        _survived(self, self.luck.server_dies_after(now, 2), lambda: Servers.open_sums(self, now))


class Killed(BaseException):
    """A process that is simulated dies here: nothing is tidied up."""


def _survived(servers: Servers, dies_after: int | None, does: Callable[[], None]) -> None:
    """Have a server do something, and start it again if it dies meanwhile, or is to."""
    if dies_after is None:
        does()
        return
    with contextlib.suppress(Killed), mortal(servers.coordinator.store, dies_after):
        does()
    servers.restart()


@contextlib.contextmanager
def mortal(store: Store, steps: int) -> Iterator[None]:
    """The process that uses a store dies after so many steps of its transactions, if there are as
    many: before one is held, or once it is and before anybody hears of it.
    """
    transaction, left = store.transaction, [steps]

    def step() -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1

    @contextlib.contextmanager
    def dying(*of: Any, **options: Any) -> Iterator[Rows]:
        with transaction(*of, **options) as rows:
            yield rows
            step()
        step()

    store.transaction = dying  # type: ignore[method-assign]
    try:
        yield
    finally:
        del store.transaction


class Interrupted:
    """An availability, and devices that are picked up for a minute now and then besides."""

    def __init__(self, lives: Availability, luck: Luck):
        self._lives, self._luck = lives, luck

    def signals(self, devices: Devices, at: Times) -> NDArray[np.uint8]:
        """See Availability."""
        bits = self._lives.signals(devices, at)
        return np.where(np.isinf(self._until(devices, at)), bits, bits & ~np.uint8(IDLE))

    def ready_at(self, devices: Devices, after: Times, needed: int = NEEDED) -> Times:
        """See Availability."""
        at = self._lives.ready_at(devices, np.array(after, np.float64), needed)
        if not needed & IDLE:
            return at
        while True:
            until = self._until(devices, at)
            late = np.isfinite(until)
            if not late.any():
                return at
            at = at.copy()
            at[late] = self._lives.ready_at(devices[late], until[late], needed)

    def lost_at(self, devices: Devices, since: Times, needed: int = NEEDED) -> Times:
        """See Availability."""
        lost = self._lives.lost_at(devices, since, needed)
        if not needed & IDLE:
            return lost
        first = np.floor(np.asarray(since) / SLOT_S).astype(np.int64)
        struck = np.full(len(devices), np.inf)
        looking = np.arange(len(devices))
        for start in range(0, LOOKED_AHEAD, AT_ONCE):
            slots = first[looking, None] + np.arange(start, start + AT_ONCE)
            at = self._luck.picked_up_at(devices[looking, None], slots)  # [devices, slots]
            struck[looking] = np.where(at > since[looking, None], at, np.inf).min(axis=1)
            ends = (slots[:, -1] + 1) * SLOT_S
            looking = looking[np.isinf(struck[looking]) & (ends < lost[looking])]
            if not len(looking):
                break
        return np.minimum(lost, struck)

    def _until(self, devices: Devices, at: Times) -> Times:
        """When devices are put down again that are picked up at these times; infinite: they are
        not.
        """
        finite = np.isfinite(at)
        slots = np.floor(np.where(finite, at, 0.0) / SLOT_S).astype(np.int64)
        since = self._luck.picked_up_at(devices, slots)
        is_in_hand = finite & (since <= at) & (at < since + PICKED_UP_S)
        return np.where(is_in_hand, since + PICKED_UP_S, np.inf)


def _unanswered() -> Unanswered:
    return Unanswered("server", "gives no answer", "wait")


def _times(delta: Weights, factor: float) -> Weights:
    return {name: np.float32(factor) * array for name, array in delta.items()}


def _when(time: float) -> int:
    """A time as draws are named by it."""
    return round(1000 * time)
