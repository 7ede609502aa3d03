"""Calls: every request a device makes of the server, one function each. A refusal is a value; an
answer that is not ours is a ServerError.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime.causes import MEANING, Cause
from device_runtime.config import MOST_BYTES, from_json, read_json, to_json
from device_runtime.errors import ConfigError, ServerError
from device_runtime.log_wire import MOST_ENTRIES, Entries, LogHead
from device_runtime.secagg_wire import HEARD, SENT, Heard, Sent
from device_runtime.secagg_wire import MOST_BYTES as STEP_BYTES
from device_runtime.signing import Request, name_of, public_hex, sign_request
from device_runtime.transport import AT_MOST, CHECK_ADDRESS, MAX_REPLY_BYTES, Reply, Send
from device_runtime.weights import digest
from device_runtime.wire import (
    MOST_ROUNDS,
    MOST_SIGNED,
    VERSION,
    Abandon,
    Ack,
    Assignment,
    CheckIn,
    Enrolled,
    Enrolment,
    Named,
    Problem,
    Reject,
    ReleaseScores,
    RoundReports,
    Scores,
    Server,
    Signed,
)

T = TypeVar("T")
H = TypeVar("H", bound=Heard)
JSON = {"content-type": "application/json"}
BINARY = {"content-type": "application/octet-stream"}
PROBLEM_BYTES = 4096  # of a refusal in words: it may be larger than what was asked for
MOST_ENTRIES_BYTES = MOST_ENTRIES * 2 * MOST_SIGNED  # of one answer: quotes are escaped
OTHER_VERSION = "use a device and a server of one release"


@dataclass
class Signer:
    """Who signs, for which server, by which clock. `ahead_s` is how far the server's clock is ahead
    of that one, as the server has told.
    """

    key: Ed25519PrivateKey = field(repr=False)
    server: str
    now: Callable[[], float] = time.time
    ahead_s: float = 0.0

    @property
    def device(self) -> str:
        """The name of the device that holds the key."""
        return name_of(public_hex(self.key))

    def headers(self, request: Request) -> dict[str, str]:
        """The proof of one request, made anew at every call."""
        return sign_request(
            self.key, self.device, request, self.server, max(0.0, self.now() + self.ahead_s)
        )


def signed(send: Send, signer: Signer, task: str = "", round: int = 0) -> Send:
    """`send` with every request signed, each time anew: a signature is taken once. `task` and
    `round` are those of the assignment it is about.

    A server whose clock is another says its own time: the request is signed once more for that,
    and so are those after it.
    """

    def send_signed(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        request = Request(method, path, body, task, round)
        reply = send(method, path, body, {**headers, **signer.headers(request)})
        told = _time_told(reply)
        if told is None:
            return reply
        signer.ahead_s = told - signer.now()
        return send(method, path, body, {**headers, **signer.headers(request)})

    return send_signed


def server(send: Send) -> Server:
    """Whom requests are to be signed for. Raises ServerError for a server of another version."""
    where = "GET /v1/server"
    reply = send("GET", "/v1/server", b"", {})
    if reply.status == 404:
        raise ServerError(
            where, f"expected version {VERSION} of the protocol, found an older one", OTHER_VERSION
        )
    told = _ours(Server, where, reply)
    if told.version != VERSION:
        raise ServerError(
            where,
            f"expected version {VERSION} of the protocol, found {told.version}",
            OTHER_VERSION,
        )
    return told


def meet(send: Send, key: Ed25519PrivateKey, now: Callable[[], float] = time.time) -> Signer:
    """A signer for the server that answers here, by its clock."""
    told = server(send)
    return Signer(key, told.server, now, told.time - now())


def enrol(
    send: Send, signer: Signer, code: str = "", certificate: Signed | None = None
) -> Enrolled:
    """Make the key known to the server, with a code if it asks for one and a certificate if the
    device has one. The same key always gets the same name.
    """
    message = Enrolment(public_hex(signer.key), code, certificate)
    reply = signed(send, signer)("POST", "/v1/devices", to_json(message), JSON)
    return _ours(Enrolled, "POST /v1/devices", reply)


def check_in(send: Send, message: CheckIn) -> Assignment | Reject:
    """Ask for work."""
    return _ours_or_refusal(
        Assignment, "POST /v1/check-in", send("POST", "/v1/check-in", to_json(message), JSON)
    )


def fetch(send: Send, sha256: str, most: int = MAX_REPLY_BYTES) -> bytes:
    """The blob of that hash, of at most so many bytes. Raises ServerError if the server lacks it or
    sends other bytes.
    """
    return _by_hash(send, f"/v1/blobs/{sha256}", sha256, most)


def newest(send: Send, population: str) -> str:
    """SHA-256 of the index of a population's releases, empty if it has none. To be sent unsigned,
    as `fetch_release`.
    """
    reply = send("GET", f"/v1/newest?population={population}", b"", {})
    return _ours(Named, "GET /v1/newest", reply).releases


def fetch_release(send: Send, sha256: str, most: int = MAX_REPLY_BYTES) -> bytes:
    """The same of what belongs to a release. To be sent unsigned, and over a connection of its own:
    nobody need know who runs which.
    """
    return _by_hash(send, f"/v1/releases/{sha256}", sha256, most)


def log_head(send: Send) -> LogHead:
    """The newest heads of the server's log. To be sent unsigned, as `fetch_release`."""
    return _ours(LogHead, "GET /v1/log/head", send("GET", "/v1/log/head", b"", {}))


def log_entries(send: Send, first: int) -> tuple[str, ...]:
    """Some entries of the server's log from a number on; none if there are no more."""
    where = "GET /v1/log/entries"
    headers = {AT_MOST: str(MOST_ENTRIES_BYTES)}
    reply = send("GET", f"/v1/log/entries?first={first}", b"", headers)
    return _ours(Entries, where, reply, most_bytes=MOST_ENTRIES_BYTES).entries


def _by_hash(send: Send, path: str, sha256: str, most: int) -> bytes:
    where = f"GET {path}"
    reply = send("GET", path, b"", {AT_MOST: str(max(most, PROBLEM_BYTES))})
    if reply.status != 200:
        raise _unexpected(where, reply)
    if digest(reply.body) != sha256:
        raise ServerError(
            where,
            f"the {len(reply.body)} bytes it sent have another SHA-256",
            "fetch them again, or look at the server's blobs",
        )
    return reply.body


def upload(send: Send, assignment: str, update: bytes) -> Ack | Reject:
    """Hand in the encoded update of an assignment. The same bytes may be handed in again."""
    path = f"/v1/assignments/{assignment}/update"
    return _ours_or_refusal(Ack, "PUT update", send("PUT", path, update, BINARY))


def report_scores(send: Send, assignment: str, scores: Scores | ReleaseScores) -> Ack | Reject:
    """Hand in the scores of an evaluation or of releases. The same may be handed in again."""
    return _ours_or_refusal(
        Ack,
        "PUT scores",
        send("PUT", f"/v1/assignments/{assignment}/scores", to_json(scores), JSON),
    )


def abandon(send: Send, assignment: str, cause: Cause) -> Ack | Reject:
    """Give an assignment back, saying why."""
    path = f"/v1/assignments/{assignment}/abandon"
    return _ours_or_refusal(Ack, "POST abandon", send("POST", path, to_json(Abandon(cause)), JSON))


def tell(send: Send, assignment: str, message: Sent) -> Ack | Reject:
    """Send the message of a step of SecAgg+. The same may be sent again."""
    (name,) = (name for name, kind in SENT.items() if isinstance(message, kind))
    path = f"/v1/assignments/{assignment}/secagg/{name}"
    return _ours_or_refusal(Ack, f"PUT {name}", send("PUT", path, to_json(message), JSON))


def hear(send: Send, assignment: str, kind: type[H]) -> H | Reject:
    """Ask for what a step of SecAgg+ begins with; Reject while there is no such thing."""
    (name,) = (name for name, each in HEARD.items() if each is kind)
    path = f"/v1/assignments/{assignment}/secagg/{name}"
    reply = send("GET", path, b"", {AT_MOST: str(STEP_BYTES)})
    return _ours_or_refusal(kind, f"GET {name}", reply)


def rounds(
    send: Send, task: str | None = None, before: int | None = None, most: int | None = None
) -> RoundReports:
    """What became of the newest rounds of a task (by default of the server's oldest), or of the
    newest before a round, oldest first: at most as many as the server tells at once. Other machines
    must sign it.
    """
    asked = {"task": task, "before": before, "most": most}
    query = "&".join(f"{name}={value}" for name, value in asked.items() if value is not None)
    path = f"/v1/rounds?{query}" if query else "/v1/rounds"
    return _ours(RoundReports, "GET /v1/rounds", send("GET", path, b"", {}))


def all_rounds(send: Send, task: str | None = None) -> RoundReports:
    """What became of every round of a task so far, oldest first, asked page by page. Raises
    ServerError for pages that do not come to the first round.
    """
    page = rounds(send, task, most=MOST_ROUNDS)
    pages = [page.rounds]
    while page.rounds and page.first < page.rounds[0].round:
        before = page.rounds[0].round
        page = rounds(send, task, before, MOST_ROUNDS)
        if not page.rounds or page.rounds[-1].round >= before:
            raise ServerError(
                "GET /v1/rounds",
                f"expected rounds before round {before}, found none of them",
                CHECK_ADDRESS,
            )
        pages.append(page.rounds)
    return RoundReports(tuple(each for page in reversed(pages) for each in page), page.first)


def _ours_or_refusal(kind: type[T], where: str, reply: Reply) -> T | Reject:
    if 400 <= reply.status < 500 or (reply.status == 503 and _has_cause(reply.body)):
        return Reject(_ours(Problem, where, reply, reply.status).cause, _retry_after(reply))
    if reply.status == 200 and _has_cause(reply.body):
        return _ours(Reject, where, reply)
    return _ours(kind, where, reply)


def _ours(
    kind: type[T], where: str, reply: Reply, status: int = 200, most_bytes: int = MOST_BYTES
) -> T:
    if reply.status != status:
        raise _unexpected(where, reply)
    try:
        return from_json(kind, reply.body, kind.__name__, most_bytes)
    except ConfigError as error:
        raise ServerError(
            where, f"the answer is not one of ours ({error})", CHECK_ADDRESS
        ) from None


def _retry_after(reply: Reply) -> float:
    """Seconds the server wants to be left alone. RFC 9110, section 10.2.3; a date is taken for
    none.
    """
    seconds = reply.headers.get("retry-after", "")
    return float(seconds) if seconds.isascii() and seconds.isdigit() and len(seconds) < 7 else 0.0


def _time_told(reply: Reply) -> int | None:
    """The time a server says it has, if it refused a request for its time."""
    seconds = reply.headers.get("fedboard-time", "")
    wrong = reply.status == MEANING[Cause.WRONG_TIME].status
    is_time = seconds.isascii() and seconds.isdigit() and len(seconds) < 12
    return int(seconds) if wrong and is_time else None


def _has_cause(body: bytes) -> bool:
    try:
        table = read_json(body, "answer")
    except ConfigError:
        return False
    return isinstance(table, dict) and "cause" in table


def _unexpected(where: str, reply: Reply) -> ServerError:
    try:
        problem = from_json(Problem, reply.body, "Problem")
    except ConfigError:
        return ServerError(where, f"expected status 200, found {reply.status}", CHECK_ADDRESS)
    remedy = (
        "ask its operator for a code"
        if problem.cause is Cause.BAD_CODE
        else "see that cause on the server's page"
    )
    return ServerError(
        where, f"refused with {reply.status} {problem.cause}: {problem.detail}", remedy
    )
