"""Transport: one function, a request's bytes -> a reply's bytes. Over HTTP here; a fleet passes its
own, in memory.

Layers of the same shape stand on it: `Meter` counts bytes, `calls.signed` signs, `persistent`
repeats what broke. Repeating stands above signing, because the server takes each signature once.

No reply is larger than its request allows (`AT_MOST`), slower than LEAST_BYTES_PER_S, or longer
under way than WHOLE_S, however many pieces it comes in: a server holds no device.
"""

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx

from device_runtime.addresses import is_loopback
from device_runtime.config import MOST_BYTES
from device_runtime.errors import ServerError, Unanswered

TIMEOUT_S = 30.0  # for a reply or its next piece; connecting has 5
LEAST_BYTES_PER_S = 1000  # of a body, once TIMEOUT_S have passed
WHOLE_S = 3600.0  # for all of a reply, and all its pieces
# a header for the layers here, which is not sent: the most bytes that the reply may have
AT_MOST = "fedboard-at-most"
MESSAGE_BYTES = MOST_BYTES  # of a reply whose request says nothing of it
MAX_REPLY_BYTES = 64 << 20  # more is no reply of ours, whatever a request says
MOST_SAID = 200  # characters of an error that tells what a server sent
GIVE_ADDRESS = "give one like http://127.0.0.1:8000"
CHECK_ADDRESS = "check the address and that `fedboard serve` is running there"


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)  # names in lower case
    body: bytes = field(default=b"", repr=False)


Send = Callable[[str, str, bytes, Mapping[str, str]], Reply]  # method, path, body, headers


class Unreachable(Unanswered):
    """No connection: nothing was sent."""


class Interrupted(Unanswered):
    """The connection broke, or what answers does not speak HTTP. The request may have had its
    effect; `partial` is what came of the reply.
    """

    def __init__(self, where: object, problem: str, remedy: str, partial: Reply | None = None):
        super().__init__(where, problem, remedy)
        self.partial = partial


def most_bytes(headers: Mapping[str, str]) -> int:
    """How large the reply to a request with these headers may be."""
    return min(int(headers.get(AT_MOST, MESSAGE_BYTES)), MAX_REPLY_BYTES)


@contextlib.contextmanager
def http(
    url: str, insecure: bool = False, now: Callable[[], float] = time.monotonic
) -> Iterator[Send]:
    """The way to a server at `url`, over kept-open connections. Bodies travel as they are: no
    redirects, no content coding.

    Raises ServerError for anything that is no address, and for another machine's without TLS unless
    `insecure`: who is on the way reads along, and the operator's token is his. The function raises
    Unreachable without a connection, Interrupted when no whole reply comes, and ServerError for a
    reply that is too large or too slow by the clock `now`.
    """
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ServerError(url, f"not an address ({error})", GIVE_ADDRESS) from None
    if address.scheme not in ("http", "https") or not address.host:
        raise ServerError(url, "not the address of a server", GIVE_ADDRESS)
    if address.scheme == "http" and not insecure and not is_loopback(address.host):
        raise ServerError(
            url,
            "expected https:// for another machine, found http://, which anybody on the way can "
            "read and change",
            "give its https:// address, or pass --insecure",
        )
    try:
        trusted = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or None)
    except OSError as error:
        raise ServerError(
            "SSL_CERT_FILE",
            f"cannot be read ({error.strerror})",
            "name a file of certificates, PEM",
        ) from None
    # a proxy from the environment cannot lead to this very machine
    client = httpx.Client(
        base_url=address,
        timeout=httpx.Timeout(TIMEOUT_S, connect=5.0),
        verify=trusted,
        trust_env=not is_loopback(address.host),
        # a server could fill a device with them, and know it again by them
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )
    streams = _Streams()

    def send(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        where, partial = f"{method} {url.rstrip('/')}{path}", None
        most, began = most_bytes(headers), now()
        sending_s = len(body) / LEAST_BYTES_PER_S
        sent = {name: value for name, value in headers.items() if name != AT_MOST}
        try:
            with (
                streams.ended_after(TIMEOUT_S * 2 + sending_s) as end_after,
                client.stream(
                    method,
                    path,
                    content=body,
                    headers={"accept-encoding": "identity", **sent},
                    extensions={"trace": streams.note},
                ) as response,
            ):
                received = bytearray()  # a list of crumbs takes a hundred times as much
                try:
                    for piece in response.iter_raw():
                        received += piece
                        if len(received) > most:
                            raise _too_large(where, most)
                        allowed = min(TIMEOUT_S + len(received) / LEAST_BYTES_PER_S, WHOLE_S)
                        if now() - began > allowed + sending_s:
                            raise _too_slow(where)
                        # a chunk's head that drips makes no piece at which the clock is looked at
                        end_after(TIMEOUT_S + allowed + sending_s)
                finally:
                    partial = Reply(response.status_code, dict(response.headers), bytes(received))
                return partial
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise ServerError(
                    where,
                    f"its certificate is not trusted ({_reason(error)})",
                    "set SSL_CERT_FILE to that of its issuer",
                ) from None
            raise Unreachable(where, f"no connection ({_said(error)})", CHECK_ADDRESS) from None
        except (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError) as error:
            if partial is not None and streams.were_ended:
                raise _too_slow(where) from None
            raise Interrupted(
                where,
                f"no whole reply came ({_said(error)})",
                CHECK_ADDRESS,
                partial,
            ) from None
        except httpx.HTTPError as error:
            raise ServerError(where, f"cannot be reached ({_said(error)})", CHECK_ADDRESS) from None

    with client:
        yield send


class _Streams:
    """The sockets of a client's connections, to end those on which no reply comes in time: a read
    has a time limit, and a server that sends a header's bytes one by one keeps every one of them.
    """

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self.were_ended = False  # in the request made last

    def note(self, event: str, info: Mapping[str, Any]) -> None:
        """What httpx tells of a request under way: keep the socket of a new connection."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._sockets = [each for each in self._sockets if each.fileno() >= 0]
            self._sockets.append(info["return_value"].get_extra_info("socket"))

    @contextlib.contextmanager
    def ended_after(self, seconds: float) -> Iterator[Callable[[float], None]]:
        """While this lasts, end all connections after so many seconds, or after those told to what
        this gives; both from the beginning.
        """
        began, allowed, is_over = time.monotonic(), [seconds], threading.Event()
        self.were_ended = False

        def allow(more: float) -> None:
            allowed[0] = more

        def watch() -> None:
            while (left := began + allowed[0] - time.monotonic()) > 0:
                if is_over.wait(left):
                    return
            self.were_ended = True
            self._end()

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield allow
        finally:
            is_over.set()

    def _end(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):  # closed already
                each.shutdown(socket.SHUT_RDWR)


def _too_slow(where: str) -> ServerError:
    return ServerError(
        where,
        f"expected {LEAST_BYTES_PER_S} bytes a second, found fewer",
        "try again over a faster network",
    )


def _too_large(where: str, most: int) -> ServerError:
    return ServerError(where, f"expected at most {most} bytes, found more", CHECK_ADDRESS)


def persistent(
    send: Send,
    pauses_s: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0),
    sleep: Callable[[float], object] = time.sleep,
    now: Callable[[], float] = time.monotonic,
    may_repeat: Callable[[], bool] = lambda: True,
) -> Send:
    """`send`, but a request that found no connection, or whose reply broke off, is repeated after
    each pause, as long as it may be; then its error is raised.

    Only for requests that may be repeated, as all of `wire` may: the server answers the second as
    the first. A broken download goes on where it stopped (Range, RFC 9110 section 14); each piece
    that arrives starts the pauses anew. All pieces together are no larger than one reply may be,
    and come within WHOLE_S of the clock `now`; else ServerError is raised.
    """

    def send_until_answered(
        method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> Reply:
        have, where = b"", f"{method} {path}"
        pauses, most, began = iter(pauses_s), most_bytes(headers), now()
        while True:
            if now() - began > WHOLE_S:
                raise ServerError(where, "expected the reply within an hour", CHECK_ADDRESS)
            try:
                reply = send(
                    method,
                    path,
                    body,
                    {**headers, "range": f"bytes={len(have)}-"} if have else headers,
                )
                if not _continues(reply, have):
                    return reply
                if len(have) + len(reply.body) > most:
                    raise _too_large(where, most)
                return Reply(200, reply.headers, have + reply.body)
            except (Unreachable, Interrupted) as error:
                partial = (
                    error.partial if isinstance(error, Interrupted) and method == "GET" else None
                )
                further = _extended(have, partial) if partial else have
                if len(further) > most:
                    raise _too_large(where, most) from None
                if len(further) > len(have):
                    have, pauses = further, iter(pauses_s)
                pause = next(pauses, None)
                if pause is None or not may_repeat():
                    raise
            sleep(pause)

    return send_until_answered


class Meter:
    """A Send that counts the bytes of the bodies it carries, those of broken and repeated requests
    included.
    """

    def __init__(self, send: Send):
        self._send = send
        self.up = 0
        self.down = 0

    def __call__(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        try:
            reply = self._send(method, path, body, headers)
        except Interrupted as error:
            self.up += len(body)
            self.down += len(error.partial.body) if error.partial else 0
            raise
        self.up += len(body)
        self.down += len(reply.body)
        return reply


def _said(error: Exception) -> str:
    """What an error of HTTP says. It can repeat what a server sent, as long as that was."""
    return str(error)[:MOST_SAID] or type(error).__name__


def _reason(error: Exception) -> str:
    return (
        str(error).partition("certificate verify failed: ")[2].partition(" (_ssl")[0]
        or "not verified"
    )


def _extended(have: bytes, partial: Reply) -> bytes:
    if _continues(partial, have):
        return have + partial.body
    return partial.body if partial.status == 200 else have  # a server without ranges starts over


def _continues(reply: Reply, have: bytes) -> bool:
    """Whether a reply is the rest of a download of which we `have` the start."""
    return (
        bool(have)
        and reply.status == 206
        and reply.headers.get("content-range", "").startswith(f"bytes {len(have)}-")
    )
