"""Doors: how the calls of a fleet's devices reach the coordinator, and what comes back.

A call is an action of a turn that asks the server. `Memory` hands them over as values, a whole
group in one transaction. `Http` sends each as a request that its device signs, over a socket, to
the server's own endpoint. A device hears the same through both. A call that gets no answer is an
error of `device_runtime.errors`, to be thrown into the turn.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import calls as requests_of
from device_runtime.calls import Signer
from device_runtime.causes import Cause
from device_runtime.config import to_json
from device_runtime.errors import FedboardError, ServerError, Unanswered
from device_runtime.secagg_turn import Hear, Tell
from device_runtime.signing import Claim, headers_of
from device_runtime.transport import Reply, Send, http, persistent
from device_runtime.turn import Action, Ask, Fetch, GiveBack, HandIn, Report, Upload
from device_runtime.weights import digest
from device_runtime.wire import CERTIFIED, Assignment, Kind, Reject
from server import mechanism
from server.coordinator import Coordinator
from server.requests import (
    Abandoning,
    Answer,
    CheckingIn,
    Fetching,
    Hearing,
    Nonce,
    Refused,
    Reporting,
    Request,
    Telling,
)
from server.settings import Limits
from server.store import Unusable
from server.task import Task, opens_itself

UNAVAILABLE_S = 30.0  # what the endpoint tells a device to wait where the server cannot be used
KEEPS_NOTHING = "the server cannot keep anything just now; try again later"  # and says
UNLIMITED = Limits(device_burst=0, address_burst=0, enrolment_burst=0, device_bodies=0)


@dataclass(frozen=True)
class Call:
    """What one device asks."""

    device: int  # by number
    action: Action
    # of an update: its bytes as they arrive, if those are not the ones that were signed
    body: bytes | None = None
    nonce: Nonce | None = None  # of one that comes more than once as it was signed


class Door(Protocol):
    """A way to the coordinator."""

    def answers(self, calls: Sequence[Call], now: float) -> list[Any]:
        """What each call gets, in order: what is sent to the turn, or an error that is thrown into
        it. All are asked at `now`, one after the other.
        """

    def close(self) -> None:
        """Let go of it."""


class Memory:
    """As values, in this process."""

    def __init__(self, coordinator: Callable[[], Coordinator], name_of: Callable[[int], str]):
        """`coordinator`: the one that runs just now; `name_of`: the name of a device."""
        self._coordinator, self._name_of = coordinator, name_of
        self._blobs: dict[str, bytes] = {}  # the last ones fetched: all devices hold the same bytes
        self._tasks: dict[str, Task] = {}

    def answers(self, calls: Sequence[Call], now: float) -> list[Any]:
        """See Door."""
        coordinator = self._coordinator()
        bodies = [self._blob(call.action, coordinator) for call in calls]
        early = [
            self._refused(call, body, coordinator) for call, body in zip(calls, bodies, strict=True)
        ]
        places = [place for place, answer in enumerate(early) if answer is None]
        requests = [self._request(calls[place], bodies[place], coordinator) for place in places]
        answers: list[Answer] = list(early)
        given = self._given(requests, coordinator, now)
        for place, answer in zip(places, given, strict=True):
            answers[place] = answer
        return [
            heard(call, body, answer, coordinator)
            for call, body, answer in zip(calls, bodies, answers, strict=True)
        ]

    def close(self) -> None:
        """See Door."""

    def _given(
        self, requests: Sequence[Request], coordinator: Coordinator, now: float
    ) -> list[Answer]:
        """The answers to requests, a group at a time. What fails is asked again by itself."""
        answers: list[Answer] = []
        alone = False
        while len(answers) < len(requests):
            rest = requests[len(answers) :]
            group = rest[:1] if alone else rest[: self._together(rest)]
            try:
                given = coordinator.handle(group, now)
                alone = len(given) < len(group)
                answers += given
            except (Unusable, FedboardError):
                if len(group) == 1:
                    answers.append(Refused(Cause.UNAVAILABLE, KEEPS_NOTHING))
                alone = True
        return answers

    def _together(self, requests: Sequence[Request]) -> int:
        """How many of the first requests are one group: a step of SecAgg+ ends between two, so
        each of those stands alone.
        """
        for place, each in enumerate(requests):
            about = getattr(each, "signed_for", None)
            task = None if about is None else self._task(about[0])
            if task is not None and opens_itself(task):
                return max(1, place)
        return len(requests)

    def _task(self, name: str) -> Task | None:
        if name not in self._tasks:
            self._tasks = {each.task.name: each.task for each in self._coordinator().tasks()}
        return self._tasks.get(name)

    def _blob(self, action: Action, coordinator: Coordinator) -> bytes | None:
        """What is fetched; None if there is no such blob."""
        if not isinstance(action, Fetch):
            return None
        name = action.sha256
        if name not in self._blobs and coordinator.blobs.size(name) is not None:
            if len(self._blobs) >= 8:
                del self._blobs[next(iter(self._blobs))]
            self._blobs[name] = coordinator.blobs.get(name)
        return self._blobs.get(name)

    def _refused(self, call: Call, body: bytes | None, coordinator: Coordinator) -> Refused | None:
        """What the endpoint refuses by itself."""
        action = call.action
        if isinstance(action, Fetch) and body is None:
            return Refused(Cause.UNKNOWN_BLOB, "there is no blob of that SHA-256")
        if isinstance(action, Upload):
            self._task(action.assignment.task)
            reports = [each for each in self._tasks.values() if each.kind in CERTIFIED]
            if len(action.update) > max(map(mechanism.largest_report, reports)):
                return Refused(Cause.TOO_LARGE)
        return None

    def _request(self, call: Call, body: bytes | None, coordinator: Coordinator) -> Request:
        device, nonce = self._name_of(call.device), call.nonce
        match call.action:
            case Ask(message):
                return CheckingIn(device, message, nonce)
            case Fetch(about, sha256):
                makes = coordinator.differences.makes(sha256)
                size = len(body or b"")
                of = about.task, about.round
                return Fetching(device, sha256, size, True, makes, nonce, of)
            case Upload(about, update):
                of = about.task, about.round
                arrived = update if call.body is None else call.body
                signed = None if call.body is None else digest(update)
                work, kind = about.assignment, Kind.TRAINING
                return Reporting(device, work, arrived, kind, nonce, of, signed)
            case Report(about, scores):
                of = about.task, about.round
                said = to_json(scores)
                return Reporting(device, about.assignment, said, Kind.EVALUATION, nonce, of)
            case GiveBack(about, cause):
                of = about.task, about.round
                return Abandoning(device, about.assignment, cause, nonce, of)
            case HandIn(about):
                of = about.task, about.round
                return Abandoning(device, about.assignment, Cause.OVER_LIMIT, nonce, of)
            case Tell(about, message):
                of = about.task, about.round
                return Telling(device, about.assignment, message, nonce, of)
            case Hear(about, kind):
                of = about.task, about.round
                return Hearing(device, about.assignment, kind, nonce, of)
        raise NotImplementedError(type(call.action).__name__)


def heard(call: Call, body: bytes | None, answer: Answer, coordinator: Coordinator) -> Any:
    """What a device makes of an answer, as `calls` and the endpoint have it."""
    action = call.action
    if isinstance(action, HandIn):
        return None
    if isinstance(action, Fetch):
        return _unfetched(action, answer) if isinstance(answer, Refused) else body
    if isinstance(answer, Refused):
        wait = UNAVAILABLE_S if answer.cause is Cause.UNAVAILABLE else 0.0
        return Reject(answer.cause, wait)
    if isinstance(action, Ask) and isinstance(answer, Assignment):
        holds = action.message.holds
        if holds and holds != answer.checkpoint:
            return coordinator.with_difference(answer, holds)
    return answer


def _unfetched(action: Fetch, refused: Refused) -> ServerError:
    return ServerError(
        f"GET /v1/blobs/{action.sha256}",
        f"refused with {refused.status} {refused.cause}: {refused.detail}",
        "see that cause on the server's page",
    )


class Http:
    """As requests that each device signs, one after the other, over a socket."""

    def __init__(
        self,
        coordinator: Callable[[], Coordinator],
        key_of: Callable[[int], Ed25519PrivateKey],
        skew_of: Callable[[int], float] = lambda device: 0.0,
    ):
        """`coordinator`: the one that runs just now; `key_of`: the key of a device; `skew_of`:
        seconds that its clock is ahead.
        """
        self._coordinator, self._key_of, self._skew_of = coordinator, key_of, skew_of
        self._now = 0.0
        self._signers: dict[int, Signer] = {}
        self._way: Send | None = None
        self._behind: Coordinator | None = None  # the endpoint that it leads to
        self._open = contextlib.ExitStack()

    def enrol(self, devices: Iterable[int], now: float) -> list[str]:
        """Make devices known to the server: their names."""
        self._now = now
        way = self._line()
        return [requests_of.enrol(way, self._signer(device)).device for device in devices]

    def answers(self, calls: Sequence[Call], now: float) -> list[Any]:
        """See Door."""
        self._now = now
        return [self._answer(call) for call in calls]

    def close(self) -> None:
        """See Door."""
        self._open.close()
        self._behind = self._way = None

    def _line(self) -> Send:
        """The way to the coordinator that runs just now."""
        coordinator = self._coordinator()
        if self._way is None or self._behind is not coordinator:
            self.close()
            url = self._open.enter_context(listening(coordinator, lambda: self._now))
            self._way, self._behind = self._open.enter_context(http(url)), coordinator
        return self._way

    def _signer(self, device: int) -> Signer:
        if device not in self._signers:
            server, clock = self._coordinator().server, partial(self._time_on, device)
            self._signers[device] = Signer(self._key_of(device), server, clock)
        return self._signers[device]

    def _time_on(self, device: int) -> float:
        return self._now + self._skew_of(device)

    def _signed(self, call: Call) -> Send:
        """The way to the server, signed by the device of a call for what that is about."""
        line, signer = self._line(), self._signer(call.device)
        about = getattr(call.action, "assignment", None)
        of = ("", 0) if about is None else (about.task, about.round)
        if call.body is not None:
            line = _altered(line, call.body)
        if call.nonce is not None:
            return _as_it_was(line, signer, call.nonce, *of)
        return persistent(requests_of.signed(line, signer, *of))

    def _answer(self, call: Call) -> Any:
        try:
            return self._asked(call)
        except FedboardError as error:
            is_told = isinstance(call.action, HandIn) and not isinstance(error, Unanswered)
            return None if is_told else error

    def _asked(self, call: Call) -> Any:
        """As `drive` does it."""
        action, way = call.action, self._signed(call)
        match action:
            case Ask(message):
                return requests_of.check_in(way, message)
            case Fetch(_, sha256):
                return requests_of.fetch(way, sha256)
            case Upload(about, update):
                return requests_of.upload(way, about.assignment, update)
            case Report(about, scores):
                return requests_of.report_scores(way, about.assignment, scores)
            case GiveBack(about, cause):
                return requests_of.abandon(way, about.assignment, cause)
            case HandIn(about):
                requests_of.abandon(way, about.assignment, Cause.OVER_LIMIT)
                return None
            case Tell(about, message):
                return requests_of.tell(way, about.assignment, message)
            case Hear(about, kind):
                return requests_of.hear(way, about.assignment, kind)
        raise NotImplementedError(type(action).__name__)


def _altered(send: Send, arrives: bytes) -> Send:
    """A way on which the body becomes another."""

    def send_altered(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        return send(method, path, arrives, headers)

    return send_altered


def _as_it_was(send: Send, signer: Signer, nonce: Nonce, task: str, round: int) -> Send:
    """A way on which a request is what it is each time it comes, and not signed anew."""

    def send_signed(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        claim = Claim(digest(body), task, round, nonce.text, signer.server, nonce.time)
        proof = headers_of(signer.key, signer.device, method, path, claim)
        return send(method, path, body, {**headers, **proof})

    return send_signed


@contextlib.contextmanager
def listening(coordinator: Coordinator, clock: Callable[[], float]) -> Iterator[str]:
    """The address of a coordinator's endpoint, in a thread of this process. It does what it is
    asked and nothing else: no time passes by itself, and nobody asks too often.
    """
    from server import endpoint  # which takes longer to load than all else

    app = endpoint.app(coordinator, clock, access_=endpoint.Access(limits=UNLIMITED))
    sock = endpoint.bind("127.0.0.1", 0)
    server = endpoint.server(app, lifespan="off")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        sock.close()


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
