"""Devices that open their sums together, in toys: the states are real and nothing is trained.

Time is a list of one number: it goes on when all devices wait.
"""

import functools
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from device_runtime import chain, encoding, protection, scores
from device_runtime.secagg_turn import (
    Gone,
    Identify,
    Own,
    Tell,
    Wait,
    mask,
    patiently,
    prepare,
    reveal,
)
from device_runtime.terms import Aggregation
from device_runtime.weights import Checkpoint
from device_runtime.wire import Ack, Assignment, Kind, Reject, Scores
from server.blobs import Blobs
from server.coordinator import Coordinator, open_folder
from server.eligibility import Policy
from server.requests import Abandoning, CheckingIn, Hearing, Refused, Reporting, Request, Telling
from server.rounds import Rules
from server.step import ServerStep
from server.store import Store
from server.task import Peers, TaskSettings
from tests import toy_server
from tests.toy_server import OneByOne, by_arrival, created

DEVICES = 8
RULES = Rules(report_goal=DEVICES, over_selection=1.0, min_reports=4, reporting_s=600.0)
# of 8 devices each has 6 neighbours, of whom 4 open a secret
LIES = Peers(adversarial=0.0, drop_out=0.25, semi_malicious=True)
# the same, but 4 neighbours and 2 of them
TRUTH = replace(LIES, semi_malicious=False)


@dataclass(frozen=True)
class Report:
    """Hand in the masked words -> Ack | Reject."""

    body: bytes = field(repr=False)


def settings(rules: Rules = RULES, peers: Peers = LIES, **more: Any) -> TaskSettings:
    return TaskSettings(
        replace(toy_server.PLAN, bits=4),
        rules=by_arrival(rules),
        policy=Policy(min_separation=1),
        step=ServerStep(),
        seed=7,
        aggregation=Aggregation.SECAGG,
        least_count=4,
        secagg=peers,
        **more,
    )


def new(folder: Path, rules: Rules = RULES, peers: Peers = LIES) -> OneByOne:
    """A coordinator with a task whose devices open its sums, at second 0."""
    for name, data in _begun(rules, peers).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return toy_server.reopened(folder)


@functools.cache
def _begun(rules: Rules, peers: Peers) -> dict[str, bytes]:
    """The files of a server with such a task, by their names: made once."""
    with tempfile.TemporaryDirectory() as folder:
        store, blobs = open_folder(Path(folder))
        create(store, blobs, rules, peers)
        store.close()
        files = (path for path in Path(folder).rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def create(store: Store, blobs: Blobs, rules: Rules = RULES, peers: Peers = LIES) -> None:
    start = Checkpoint(toy_server.WEIGHTS, 0, "", toy_server.TOKENIZER)
    created(Coordinator(store, blobs), settings(rules, peers), 0.0, start)


def codes(number: int, by: encoding.Encoding) -> np.ndarray:
    """What device `number` has encoded."""
    vector = toy_server.delta(number, by.dimension)
    delta = {"embedding": vector[:30].reshape(10, 3), "units": vector[30:].reshape(4, 5)}
    return encoding.encode(delta, by, np.random.default_rng(number))


def life(work: Assignment, numbers: np.ndarray, largest: int) -> Generator[Any, Any, bool]:
    """All that a device does once it has trained, or scored; whether it was counted."""
    ready = yield from prepare(work, chain.terms_of(work))
    masked, body = mask(ready, numbers, largest)
    answer = yield from patiently(lambda: Report(body))
    if isinstance(answer, Ack):
        yield from reveal(work, masked)
    return isinstance(answer, Ack)


def vector(work: Assignment, number: int) -> tuple[np.ndarray, int]:
    """What device `number` hands in, and the largest that a number of it may be."""
    if work.kind is Kind.EVALUATION:
        told = Scores(50, number, 2 * number, 40, 100.0 + number)
        return scores.to_vector(told), scores.MOST_LOSS
    by = chain.terms_of(work).encoding
    return codes(number, by), by.largest


class Member:
    """A device in a round, which may leave before it does something."""

    def __init__(self, device: str, number: int, work: Assignment, leaves: Any = None):
        """`leaves`: before it sends a message of this kind, or reports. `spoils` says what it
        sends in the place of a message.
        """
        self.device, self.number, self.work, self.leaves = device, number, work, leaves
        self.actions = life(work, *vector(work, number))
        self.sent: list[Any] = []
        self.refused: list[Refused] = []
        self.spoils: Callable[[Any], Any] = lambda message: message
        self.gone: Gone | None = None
        self.has_left = self.is_done = False
        self.due = 0.0
        self._request: Request | None = None

    @property
    def is_over(self) -> bool:
        return self._request is None and (self.has_left or self.is_done or self.gone is not None)

    def go_on(self, ask: Callable[[Request], Any], now: float) -> None:
        """Do what it can do now, though it wanted to wait."""
        self.due = now
        while (request := self.wants(now)) is not None:
            self.hears(ask(request), now)

    def wants(self, now: float) -> Request | None:
        """What it asks now; None if it waits, or is over."""
        if self._request is None and not self.is_over and self.due <= now:
            self._step(None, now)
        return self._request

    def hears(self, answer: Any, now: float) -> None:
        """Go on with an answer."""
        self._request = None
        if isinstance(answer, Refused):
            self.refused.append(answer)
            answer = Reject(answer.cause, 0.0)
        if self.gone is None:
            self._step(answer, now)

    def _step(self, answer: Any, now: float) -> None:
        try:
            action = self.actions.send(answer)
            while isinstance(action, Identify):
                secret = f"{self.number} {self.work.assignment}".encode()
                own = Own(toy_server.key(self.number), protection.repeating(secret))
                action = self.actions.send(own)
            if isinstance(action, Wait):
                self.due = now + action.seconds
            elif self._is_leaving(action):
                self.has_left = True
            else:
                self._request = self._asked(action)
        except StopIteration:
            self.is_done = True
        except Gone as gone:
            self.gone = gone
            if gone.retry_in_s is None:
                self._request = Abandoning(self.device, self.work.assignment, gone.cause)

    def _is_leaving(self, action: Any) -> bool:
        kind = type(action.message) if isinstance(action, Tell) else type(action)
        return self.leaves is not None and kind is self.leaves

    def _asked(self, action: Any) -> Request:
        name = self.work.assignment
        match action:
            case Tell(_, message):
                self.sent.append(self.spoils(message))
                return Telling(self.device, name, self.sent[-1])
            case Report(body):
                self.sent.append(body)
                return Reporting(self.device, name, body)
        return Hearing(self.device, name, action.kind)


def assigned(coordinator: Coordinator, count: int = DEVICES, now: float = 1.0) -> list[Member]:
    """So many devices with their work."""
    members = []
    for number, device in enumerate(toy_server.enrolled(coordinator, count)):
        check_in = toy_server.READY
        (work,) = coordinator.handle([CheckingIn(device, check_in)], now)
        assert isinstance(work, Assignment), work
        members.append(Member(device, number, work))
    return members


Lie = Callable[[Request, Any], Any]  # a request and its true answer -> what is answered


def play(
    coordinator: Coordinator,
    members: list[Member],
    at: list[float],
    lie: Lie = lambda request, answer: answer,
) -> None:
    """Let the devices and time go on until the round is over. What they ask at one time they ask
    together.
    """
    number, task = members[0].work.round, members[0].work.task
    while coordinator.reports(at[0], task).rounds[-1].round == number:
        _talk(coordinator, members, at[0], lie)
        coordinator.tick(at[0])
        coordinator.open_sums(at[0])
        at[0] += 15.0
        assert at[0] < 10_000.0
    _talk(coordinator, members, at[0], lie)  # what they hear afterwards


def _talk(coordinator: Coordinator, members: list[Member], now: float, lie: Lie) -> None:
    while asking := [(each, asks) for each in members if (asks := each.wants(now)) is not None]:
        answers = coordinator.handle([asks for _, asks in asking], now)
        for (each, asks), answer in zip(asking, answers, strict=True):
            each.hears(lie(asks, answer), now)
