"""A toy server whose sums a helper opens.

The real coordinator and the real desk, with a function between them instead of a socket, and
devices that mask without training.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from device_runtime import chain, encoding, protection
from device_runtime.config import from_json, to_json
from device_runtime.helper_wire import (
    AnswerTaken,
    HeadAsked,
    HelperProblem,
    KeysAsked,
    Named,
    Registration,
)
from device_runtime.transport import Reply, Send, Unreachable
from device_runtime.weights import Checkpoint
from device_runtime.wire import Assignment, Plan
from helper.desk import Desk, places_in
from helper.store import Store
from helper.tasks import Rules as HelperRules
from server.coordinator import Coordinator, open_folder
from server.eligibility import Policy
from server.helper_client import Helper
from server.rounds import Rules
from server.task import Task, TaskSettings
from tests.toy_helper import HELPER, IDENTITY
from tests.toy_server import (
    READY,
    TOKENIZER,
    WEIGHTS,
    OneByOne,
    by_arrival,
    created,
    delta,
    key,
)

PLAN = Plan(clipping_norm=1.0, bits=4)
THREE = Rules(report_goal=3, over_selection=1.0)


def desk(folder: Path, least: int = 2, enrolment_key: str = "") -> Desk:
    """A helper in a folder, or what goes on with the one that was there."""
    folder.mkdir(exist_ok=True)
    rules = HelperRules(HELPER, least, enrolment_key=enrolment_key)
    random = np.random.default_rng().bytes
    return Desk(Store(folder / "helper.sqlite", HELPER), places_in(folder), IDENTITY, rules, random)


def way_to(asked: Desk) -> Send:
    """What leads to a desk as HTTP does, without a socket."""

    def send(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        answer: object
        match path:
            case "/v1/helper":
                answer = asked.report()
            case "/v1/tasks":
                answer = asked.register(from_json(Registration, body, "body"), 1.0)
            case "/v1/seal-keys":
                answer = asked.seal_keys(from_json(KeysAsked, body, "body"))
            case "/v1/answers":
                answer = asked.answer(from_json(Named, body, "body"), 1.0)
            case "/v1/heads":
                answer = asked.countersign(from_json(HeadAsked, body, "body"))
            case _:
                answer = asked.taken(from_json(AnswerTaken, body, "body"))
        if isinstance(answer, bytes):
            return Reply(200, {}, answer)
        status = answer.refusal.status if isinstance(answer, HelperProblem) else 200
        return Reply(status, {}, to_json(answer))

    return send


def nowhere(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
    """The way to a helper that is away."""
    raise Unreachable(f"{method} {path}", "no connection", "start it")


def opened(folder: Path, send: Send, is_beside: bool = False) -> OneByOne:
    """A server that asks the helper at the end of that way; it goes on with what is in its
    folder.
    """
    helper = Helper(send, "token", is_beside)
    return OneByOne(*open_folder(folder), np.random.default_rng(0), helper=helper)


def settings(rules: Rules, **others: object) -> TaskSettings:
    """Those of a toy task whose sums the toy helper opens."""
    named: dict[str, object] = {"helper": HELPER, "least_count": 2, "seed": 7}
    policy = Policy(min_separation=1)
    return TaskSettings(PLAN, rules=by_arrival(rules), policy=policy, **(named | others))


def begun(coordinator: Coordinator, rules: Rules, **others: object) -> Task:
    """A new toy task of a server, certified, at second 0."""
    start = Checkpoint(WEIGHTS, 0, "", TOKENIZER)
    return created(coordinator, settings(rules, **others), 0.0, start)


def new(folder: Path, send: Send, rules: Rules = THREE, **others: object) -> OneByOne:
    """A server with such a task, whose helper has given keys."""
    coordinator = opened(folder, send)
    begun(coordinator, rules, **others)
    coordinator.open_sums(0.0)
    return coordinator


def codes(work: Assignment, number: int) -> np.ndarray:
    """What device `number` would have sent in the open."""
    by = chain.terms_of(work).encoding
    learnt = {"all": delta(number, by.dimension)}
    return encoding.encode(learnt, by, np.random.default_rng([number, work.round]))


def sealed(work: Assignment, number: int, numbers: np.ndarray | None = None) -> bytes:
    """The masked report of device `number`: the same bytes for the same round and key."""
    terms = chain.terms_of(work)
    about = protection.addressed(work, terms)
    assert isinstance(about, protection.Addressed)
    numbers = codes(work, number) if numbers is None else numbers
    random = protection.repeating(f"{number} {work.round} {about.seal_key}".encode())
    return protection.protected(numbers, terms.encoding.largest, about, key(number), random)


def joined(coordinator: OneByOne, devices: list[str], now: float) -> list[Assignment]:
    """The work of devices that all get some."""
    works = [coordinator.check_in(device, READY, now) for device in devices]
    assert all(isinstance(work, Assignment) for work in works), works
    return works
