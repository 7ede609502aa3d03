"""Doors: how the calls of a fleet's devices reach the coordinator, and what comes back.

A call is an action of a turn that asks the server. `Memory` hands them over as values, a whole
group in one transaction; what a device hears is what it would hear over HTTP. A call that gets no
answer is an error of `device_runtime.errors`, to be thrown into the turn.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from device_runtime.causes import Cause
from device_runtime.config import to_json
from device_runtime.errors import FedboardError, ServerError
from device_runtime.secagg_turn import Hear, Tell
from device_runtime.transport import Reply, Send
from device_runtime.turn import Action, Ask, Fetch, GiveBack, HandIn, Report, Upload
from device_runtime.wire import Assignment, Kind, Reject
from server.coordinator import Coordinator
from server.requests import (
    Abandoning,
    Answer,
    CheckingIn,
    Fetching,
    Hearing,
    Refused,
    Reporting,
    Request,
    Telling,
)

UNAVAILABLE_S = 30.0  # what the endpoint tells a device to wait where the server cannot be used


@dataclass(frozen=True)
class Call:
    """What one device asks."""

    device: int  # by number
    action: Action


class Door(Protocol):
    """A way to the coordinator."""

    def answers(self, calls: Sequence[Call], now: float) -> list[Any]:
        """What each call gets, in order: what is sent to the turn, or an error that is thrown into
        it. All are asked at `now`, one after the other.
        """


class Memory:
    """As values, in this process."""

    def __init__(self, coordinator: Callable[[], Coordinator], name_of: Callable[[int], str]):
        """`coordinator`: the one that runs just now; `name_of`: the name of a device."""
        self._coordinator, self._name_of = coordinator, name_of
        self._blobs: dict[str, bytes] = {}  # the last ones fetched: all devices hold the same bytes

    def answers(self, calls: Sequence[Call], now: float) -> list[Any]:
        """See Door."""
        requests: list[Request] = []
        bodies: list[Any] = []
        coordinator = self._coordinator()
        for call in calls:
            body = self._blob(call.action.sha256) if isinstance(call.action, Fetch) else None
            bodies.append(body)
            requests.append(self._request(call, body, coordinator))
        answers = coordinator.handle(requests, now)
        if len(answers) < len(requests):  # it has failed between: they come again
            away: list[Any] = [ServerError("server", "gives no answer", "wait")] * (
                len(requests) - len(answers)
            )
            answers = answers + away
        return [
            self._heard(call, body, answer, coordinator)
            for call, body, answer in zip(calls, bodies, answers, strict=True)
        ]

    def _blob(self, sha256: str) -> bytes:
        if sha256 not in self._blobs:
            if len(self._blobs) >= 8:
                del self._blobs[next(iter(self._blobs))]
            self._blobs[sha256] = self._coordinator().blobs.get(sha256)
        return self._blobs[sha256]

    def _request(self, call: Call, body: bytes | None, coordinator: Coordinator) -> Request:
        device = self._name_of(call.device)
        match call.action:
            case Ask(message):
                return CheckingIn(device, message)
            case Fetch(about, sha256):
                makes = coordinator.differences.makes(sha256)
                size = len(body or b"")
                return Fetching(device, sha256, size, True, makes, None, (about.task, about.round))
            case Upload(about, update):
                of = about.task, about.round
                return Reporting(device, about.assignment, update, Kind.TRAINING, None, of)
            case Report(about, scores):
                of = about.task, about.round
                said = to_json(scores)
                return Reporting(device, about.assignment, said, Kind.EVALUATION, None, of)
            case GiveBack(about, cause):
                of = about.task, about.round
                return Abandoning(device, about.assignment, cause, None, of)
            case HandIn(about):
                of = about.task, about.round
                return Abandoning(device, about.assignment, Cause.OVER_LIMIT, None, of)
            case Tell(about, message):
                return Telling(device, about.assignment, message, None, (about.task, about.round))
            case Hear(about, kind):
                return Hearing(device, about.assignment, kind, None, (about.task, about.round))
        raise NotImplementedError(type(call.action).__name__)

    def _heard(self, call: Call, body: Any, answer: Any, coordinator: Coordinator) -> Any:
        return heard(call, body, answer, coordinator)


def heard(call: Call, body: Any, answer: Answer | FedboardError, coordinator: Coordinator) -> Any:
    """What a device makes of an answer, as `calls` and the endpoint have it."""
    if isinstance(answer, FedboardError):
        return answer
    if isinstance(call.action, HandIn):
        return None
    if isinstance(answer, Refused):
        if isinstance(call.action, Fetch):
            return ServerError("blob", f"refused with {answer.cause}: {answer.detail}", "wait")
        wait = UNAVAILABLE_S if answer.cause is Cause.UNAVAILABLE else 0.0
        return Reject(answer.cause, wait)
    if isinstance(call.action, Fetch):
        return body
    if isinstance(call.action, Ask) and isinstance(answer, Assignment):
        holds = call.action.message.holds
        if holds and holds != answer.checkpoint:
            return coordinator.with_difference(answer, holds)
    return answer


@contextlib.contextmanager
def asgi(app: Any) -> Iterator[Send]:
    """The way to a web application in this process: no socket, one request at a time. Its
    background tasks do not run.
    """
    with asyncio.Runner() as loop:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")

        def send(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
            response = loop.run(client.request(method, path, content=body, headers=dict(headers)))
            return Reply(response.status_code, dict(response.headers), response.content)

        try:
            yield send
        finally:
            loop.run(client.aclose())
