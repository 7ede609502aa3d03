"""The helper that a server asks: every call of it, one function each, by `helper_wire`'s messages.

A helper that gives no answer of its own is `Away`, whatever the reason: the same call may be made
again. One that says no is `Denied`, by a `helper_wire.HelperProblem`.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from device_runtime.config import from_json, to_json
from device_runtime.errors import ConfigError, FedboardError, RunError, ServerError
from device_runtime.helper_wire import (
    AnswerTaken,
    HeadAsked,
    HeadSeen,
    HelperProblem,
    HelperReport,
    KeysAsked,
    Named,
    Noised,
    Registered,
    Registration,
    SealKeys,
    from_answer,
)
from device_runtime.transport import AT_MOST, MAX_REPLY_BYTES, Reply, Send, http
from device_runtime.wire import Signed

T = TypeVar("T")
JSON, BINARY = "application/json", "application/octet-stream"
PROBLEM_BYTES = 4 << 20  # of a refusal: it may name every device


class Away(FedboardError):
    """No answer of a helper came."""


class Denied(FedboardError):
    """The helper says no."""

    def __init__(self, problem: HelperProblem):
        """problem: what it said."""
        self.problem = problem
        super().__init__("helper", f"{problem.refusal}: {problem.detail}", "see docs/helper.md")


@dataclass(frozen=True)
class Helper:
    """A way to one helper, and the token that lets this server ask it."""

    send: Send
    token: str = field(repr=False)
    is_beside: bool = False  # whoever runs this server runs it too

    def report(self) -> HelperReport:
        """What it says of itself."""
        return self._call(HelperReport, "GET", "/v1/helper")

    def register(self, registration: Registration) -> Registered:
        """Let it know a task, or its newest certificate."""
        return self._call(Registered, "POST", "/v1/tasks", to_json(registration))

    def seal_keys(self, asked: KeysAsked) -> tuple[Signed, ...]:
        """A `SealKey` of each round that is asked for, as it says."""
        return self._call(SealKeys, "POST", "/v1/seal-keys", to_json(asked)).keys

    def answer(self, named: Named, size: int) -> tuple[Noised, bytes]:
        """What the helper has of the noise, and the sum of the masks of reports, so many bytes:
        other ones are no answer of a helper.
        """
        reply = self._reply("POST", "/v1/answers", to_json(named), size + PROBLEM_BYTES)
        try:
            return from_answer(reply.body, size)
        except ConfigError:
            found = f"expected a mask of {size} bytes, found {len(reply.body)}"
            raise Away("helper", found, "check its address and version") from None

    def taken(self, round: AnswerTaken) -> None:
        """Let it forget an answer."""
        self._call(Registered, "POST", "/v1/answers/done", to_json(round))

    def countersign(self, asked: HeadAsked) -> HeadSeen:
        """Its signature of a head of this server's log, or how much of that it has seen."""
        return self._call(HeadSeen, "POST", "/v1/heads", to_json(asked))

    def _call(self, kind: type[T], method: str, path: str, body: bytes = b"") -> T:
        reply = self._reply(method, path, body)
        try:
            return from_json(kind, reply.body, kind.__name__)
        except ConfigError as error:
            raise _no_helper(f"{method} {path}", reply, error) from None

    def _reply(self, method: str, path: str, body: bytes, most: int = PROBLEM_BYTES) -> Reply:
        headers: Mapping[str, str] = {
            "authorization": f"Bearer {self.token}",
            AT_MOST: str(min(most, MAX_REPLY_BYTES)),
            "accept": f"{JSON}, {BINARY}",
            **({"content-type": JSON} if body else {}),
        }
        try:
            reply: Reply = self.send(method, path, body, headers)
        except (ServerError, RunError) as error:
            raise Away("helper", f"gives no answer ({error})", "see that it runs") from None
        if reply.status == 200:
            return reply
        try:
            problem = from_json(HelperProblem, reply.body, "HelperProblem")
        except ConfigError as error:
            raise _no_helper(f"{method} {path}", reply, error) from None
        raise Denied(problem)


def over_http(address: Callable[[], str], insecure: bool = False) -> Send:
    """A way to a helper whose address is asked for at each call: one that has been started again
    may have another.
    """

    def send(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        with contextlib.ExitStack() as open_until_answered:
            way = open_until_answered.enter_context(http(address(), insecure))
            return way(method, path, body, headers)

    return send


def _no_helper(where: str, reply: Reply, error: ConfigError) -> Away:
    return Away(
        "helper",
        f"{where}: the answer with status {reply.status} is none of a helper's ({error})",
        "check its address",
    )
