"""Transport: one function, a request's bytes -> a reply's bytes. Over HTTP here; a fleet passes its
own, in memory.

Layers of the same shape stand on it: `Meter` counts bytes, `calls.signed` signs, `persistent`
repeats what broke. Repeating stands above signing, because the server takes each signature once.
"""

import contextlib
import os
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import httpx

from device_runtime.errors import ServerError, Unanswered

TIMEOUT_S = 30.0  # for a reply or its next piece; connecting has 5
MAX_REPLY_BYTES = 64 << 20  # more is no reply of ours
LOOPBACK = ("127.0.0.1", "localhost", "::1")
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


@contextlib.contextmanager
def http(url: str) -> Iterator[Send]:
    """The way to a server at `url`, over kept-open connections. Bodies travel as they are: no
    redirects, no content coding.

    Raises ServerError for anything that is no address. The function raises Unreachable without a
    connection, Interrupted when no whole reply comes.
    """
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ServerError(url, f"not an address ({error})", GIVE_ADDRESS) from None
    if address.scheme not in ("http", "https") or not address.host:
        raise ServerError(url, "not the address of a server", GIVE_ADDRESS)
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
        trust_env=address.host not in LOOPBACK,
    )

    def send(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        where, partial = f"{method} {url.rstrip('/')}{path}", None
        try:
            with client.stream(
                method, path, content=body, headers={"accept-encoding": "identity", **headers}
            ) as response:
                pieces, size = [], 0
                try:
                    for piece in response.iter_raw():
                        pieces.append(piece)
                        size += len(piece)
                        if size > MAX_REPLY_BYTES:
                            raise ServerError(
                                where,
                                f"expected at most {MAX_REPLY_BYTES} bytes, found more",
                                CHECK_ADDRESS,
                            )
                finally:
                    partial = Reply(response.status_code, dict(response.headers), b"".join(pieces))
                return partial
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise ServerError(
                    where,
                    f"its certificate is not trusted ({_reason(error)})",
                    "set SSL_CERT_FILE to that of its issuer",
                ) from None
            raise Unreachable(
                where, f"no connection ({str(error) or type(error).__name__})", CHECK_ADDRESS
            ) from None
        except (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError) as error:
            raise Interrupted(
                where,
                f"no whole reply came ({str(error) or type(error).__name__})",
                CHECK_ADDRESS,
                partial,
            ) from None
        except httpx.HTTPError as error:
            raise ServerError(where, f"cannot be reached ({error})", CHECK_ADDRESS) from None

    with client:
        yield send


def persistent(
    send: Send,
    pauses_s: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0),
    sleep: Callable[[float], object] = time.sleep,
) -> Send:
    """`send`, but a request that found no connection, or whose reply broke off, is repeated after
    each pause; then its error is raised.

    Only for requests that may be repeated, as all of `wire` may: the server answers the second as
    the first. A broken download goes on where it stopped (Range, RFC 9110 section 14); each piece
    that arrives starts the pauses anew.
    """

    def send_until_answered(
        method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> Reply:
        have = b""
        pauses = iter(pauses_s)
        while True:
            try:
                reply = send(
                    method,
                    path,
                    body,
                    {**headers, "range": f"bytes={len(have)}-"} if have else headers,
                )
                return (
                    Reply(200, reply.headers, have + reply.body)
                    if _continues(reply, have)
                    else reply
                )
            except (Unreachable, Interrupted) as error:
                partial = (
                    error.partial if isinstance(error, Interrupted) and method == "GET" else None
                )
                further = _extended(have, partial) if partial else have
                if len(further) > len(have):
                    have, pauses = further, iter(pauses_s)
                pause = next(pauses, None)
                if pause is None:
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
