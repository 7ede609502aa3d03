"""Connections: who may hold one, how long its peer may take, and who gives way to others.

    accept -> admitted?  no: closed at once
        |        all taken: one that waits for its peer gives way
        v
    TLS if there is any -> head of a request -> whole request -> answer -> head of the next ...
        within header_s     within header_s,                      read within what
                            of at most header_bytes               Limits gives a body

A connection *waits* while its peer owes it the rest of a request, and *works* while we owe the peer
an answer. Only those that wait are given up for others, so strangers who say nothing keep nobody
out; of these the oldest of the address that holds most, so one address keeps no other out.
"""

import asyncio
import ipaddress
import logging
import re
import resource
import socket
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import httptools
import uvicorn
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from device_runtime.errors import RunError
from server.access import is_loopback, network_of
from server.settings import Limits, listed

log = logging.getLogger("fedboard.server")

SPARE_DESCRIPTORS = 192  # for the database, blobs, logs and threads
MOST = 16_384  # connections, where the system sets no limit
PIPELINED = 8  # requests a peer may send before it has the answer to the first
LOOK_S = 0.5  # between two looks at who is late
# of uvicorn: nothing of a request goes into its log or is believed of a proxy
SETTINGS = {
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "timeout_graceful_shutdown": 10,
    "proxy_headers": False,
    "ws": "none",
}
_NO_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # characters of no header's value
Headers = Sequence[tuple[bytes, bytes]]
IN_SCOPE = "fedboard.connection"  # of an ASGI scope: the Protocol that the request came over


def bind(host: str, port: int) -> socket.socket:
    """A socket for `serve`; port 0 takes a free one. Raises RunError if the port is taken or the
    host is not of this machine.
    """
    try:
        sock = socket.create_server(
            (host, port), backlog=2048, family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RunError(
            f"{host}:{port}",
            f"cannot be listened on ({reason})",
            "give another --port, or 0 for a free one",
        ) from None
    # asyncio does this only for sockets it made itself; without it every answer on a kept
    # connection waits for an acknowledgement
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


@dataclass(eq=False)
class Connection:
    """One connection's place among all. `end` ends it at once."""

    whose: str  # the address or network of its peer
    end: Callable[[], object]
    look: Callable[[float], None] = lambda now: None  # ends it if its peer is late


class Connections:
    """All connections of one server, at most `most`, and at most `most_by_address` of one address;
    0 = no such limit. `is_shared` tells addresses whose connections are many peers': they count
    among all only.
    """

    def __init__(
        self, most: int, most_by_address: int, is_shared: Callable[[str], bool] = is_loopback
    ):
        self._most, self._most_by_address, self._is_shared = most, most_by_address, is_shared
        self.all: set[Connection] = set()
        self.ended: Counter[str] = Counter()  # by why
        self._by_address: Counter[str] = Counter()
        # by address, the one that has waited longest first
        self._waiting: dict[str, dict[Connection, None]] = {}

    def admit(self, connection: Connection) -> bool:
        """Whether there is a place for it, if need be by ending another; it waits from now on."""
        whose = connection.whose
        if (
            self._most_by_address
            and self._by_address[whose] >= self._most_by_address
            and not self._is_shared(whose)
        ):
            return self._refuse("address_full")
        if self._most and len(self.all) >= self._most:
            if not self._waiting:
                return self._refuse("server_full")
            crowd = max(self._waiting, key=lambda each: len(self._waiting[each]))
            oldest = next(iter(self._waiting[crowd]))
            self.leave(oldest)
            self.ended["gave_way"] += 1
            oldest.end()
        self.all.add(connection)
        self._by_address[whose] += 1
        self.wait(connection)
        return True

    def wait(self, connection: Connection) -> None:
        """Its peer owes the rest of a request, or the next one."""
        if connection in self.all:
            self._waiting.setdefault(connection.whose, {})[connection] = None

    def work(self, connection: Connection) -> None:
        """We owe its peer an answer, or know who it is."""
        waiting = self._waiting.get(connection.whose)
        if waiting is not None and connection in waiting:
            del waiting[connection]
            if not waiting:
                del self._waiting[connection.whose]

    def leave(self, connection: Connection) -> None:
        """It is no more."""
        if connection not in self.all:
            return
        self.work(connection)
        self.all.discard(connection)
        self._by_address[connection.whose] -= 1
        if not self._by_address[connection.whose]:
            del self._by_address[connection.whose]

    def look(self, now: float) -> None:
        """End those whose peers are late."""
        for each in list(self.all):
            each.look(now)

    def _refuse(self, why: str) -> bool:
        self.ended[why] += 1
        return False


def of(limits: Limits, proxies: str = "") -> Connections:
    """The connections of a server with these limits, behind these proxies."""
    trusted = [ipaddress.ip_network(each, strict=False) for each in listed(proxies)]

    def is_shared(whose: str) -> bool:
        if is_loopback(whose):
            return True
        try:
            address = ipaddress.ip_network(whose, strict=False)
        except ValueError:
            return False
        return any(
            address.version == network.version
            and (address.subnet_of(network) or network.subnet_of(address))  # type: ignore[arg-type]
            for network in trusted
        )

    return Connections(limits.connections or fitting(), limits.connections_by_address, is_shared)


def fitting() -> int:
    """As many as this process may have descriptors for, with some to spare."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return MOST
    return min(MOST, max(most - SPARE_DESCRIPTORS, most // 4, 1))


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 as uvicorn speaks it, with a peer that may be slow, endless or silent."""

    def __init__(
        self, connection: Connection, connections: Connections, limits: Limits, **uvicorns: Any
    ):
        super().__init__(**uvicorns)
        self._connection, self._among, self._limits = connection, connections, limits
        # since when the peer owes a head, or the rest of a body that was refused
        self._owed_since: float | None = self.loop.time()
        self._taken_by: float | None = None  # when the peer must have taken what is written
        self._size = 0  # bytes of the request that are no body
        self.is_lost = False
        self.is_whole = True  # the last request that began has come to its end
        self._pour: Callable[[bytes], object] | None = None  # takes the body that is coming
        self._poured: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; from now on it can be ended."""
        super().connection_made(cast(asyncio.Transport, _Sink(cast(asyncio.Transport, transport))))
        self._connection.end, self._connection.look = self.transport.abort, self._look

    def connection_lost(self, exc: Exception | None) -> None:
        """Make place for another."""
        self.is_lost = True
        self._end_pouring(ClientDisconnect())
        self._among.leave(self._connection)
        super().connection_lost(exc)

    def reply(self, scope: Any, status: int, headers: Headers, body: bytes) -> bool:
        """Answer a whole request in one write, as two messages of ASGI would. False, and nothing
        is written, where that is not all there is to do.
        """
        cycle = self.cycle
        if (
            cycle is None
            or cycle.scope is not scope
            or cycle.response_started
            or cycle.disconnected
            or not (self.is_whole and cycle.keep_alive)
            or self.flow.write_paused
            or scope["method"] == "HEAD"
        ):
            return False
        lines = [STATUS_LINE[status]]
        for name, value in (*self.server_state.default_headers, *headers):
            if _NO_VALUE.search(value):
                return False
            lines += (name, b": ", value, b"\r\n")
        cycle.response_started = cycle.response_complete = True
        self.transport.write(b"".join((*lines, b"\r\n", body)))
        cycle.message_event.set()
        cycle.on_response()
        return True

    def is_reading(self, scope: Any) -> bool:
        """Whether the rest of this request's body is what comes next."""
        return not self.is_whole and self.cycle is not None and self.cycle.scope is scope

    async def pour(self, take: Callable[[bytes], object]) -> None:
        """Give what is still to come of the body to `take`, piece by piece, until it is whole.
        Raises what `take` raises, and ClientDisconnect if the peer goes.
        """
        self._pour, self._poured = take, self.loop.create_future()
        self.flow.resume_reading()
        try:
            await self._poured
        finally:
            self._pour = self._poured = None

    def _end_pouring(self, error: Exception | None) -> None:
        self._pour = None
        if self._poured is not None and not self._poured.done():
            if error is None:
                self._poured.set_result(None)
            else:
                self._poured.set_exception(error)

    def vouch(self) -> None:
        """Its peer is known: it gives way to nobody before it is answered."""
        self._among.work(self._connection)

    def data_received(self, data: bytes) -> None:
        """Read on, as far as a head may go."""
        self._unset_keepalive_if_required()
        self._size += len(data)
        if self._owed_since is None and self.is_whole and self._is_answered():
            self._owed_since = self.loop.time()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self.cycle is not None:  # answered in the protocol it came in
                self.cycle.keep_alive = False
        except httptools.HttpParserError as error:
            too_large = isinstance(error.__context__, _TooLarge)
            self._refuse(431 if too_large else 400, "head_too_large" if too_large else "malformed")
            return
        if self._size > self._limits.header_bytes:
            self._refuse(431, "head_too_large")

    def on_message_begin(self) -> None:
        """A request begins."""
        self.is_whole = False
        if self._owed_since is None:
            self._owed_since = self.loop.time()
        super().on_message_begin()
        cast(dict[str, Any], self.scope)[IN_SCOPE] = self

    def on_headers_complete(self) -> None:
        """Its head is whole: let the application have it."""
        if self._size > self._limits.header_bytes:  # what came with it may be its body
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self._limits.header_bytes:
                raise _TooLarge
        if len(self.pipeline) >= PIPELINED:
            raise ValueError("too many requests at once")
        self._owed_since = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Bytes of its body."""
        self._size -= len(body)
        if self._pour is None:
            super().on_body(body)
            return
        try:
            self._pour(body)
        except Exception as error:  # of whoever reads the request, not of the parser
            self._end_pouring(error)

    def on_message_complete(self) -> None:
        """All of it is here."""
        self.is_whole, self._size = True, 0
        self._end_pouring(None)
        if self._is_answered():
            self._owed_since = None
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            self._among.work(self._connection)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """It is answered; what is left of its body is thrown away, for as long as a head may
        take.
        """
        self._taken_by = None
        if not self.is_whole:
            self._owed_since = self.loop.time()
        self._among.wait(self._connection)
        super().on_response_complete()

    def resume_writing(self) -> None:
        """The peer has taken most of what was written."""
        self._taken_by = None
        super().resume_writing()

    def _is_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _look(self, now: float) -> None:
        """End the connection if its peer is late with its head, or with taking its answer."""
        left = self.transport.get_write_buffer_size()
        if not left:
            self._taken_by = None
        elif self._taken_by is None:
            limits = self._limits
            self._taken_by = now + limits.body_s + left / limits.least_bytes_per_s
        elif now > self._taken_by:
            self._end("answer_not_read")
            return
        if self._owed_since is not None and now > self._owed_since + self._limits.header_s:
            self._end("head_too_slow")

    def _end(self, why: str) -> None:
        self._among.ended[why] += 1
        self.transport.abort()

    def _refuse(self, status: int, why: str) -> None:
        self._among.ended[why] += 1
        log.warning("a connection was refused", extra={"error": why})
        if not self._is_answered():
            # the peer is waiting for another answer
            self.transport.abort()
            return
        self.transport.write(
            STATUS_LINE[status] + b"content-length: 0\r\nconnection: close\r\n\r\n"
        )
        self.transport.close()


class _TooLarge(Exception):
    pass


class _Sink:
    """A transport that takes an answer for a peer who has just gone as it takes any other: whoever
    writes it cannot know yet, and that is no error of the server's.
    """

    def __init__(self, transport: asyncio.Transport):
        self._transport = transport

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Server(uvicorn.Server):
    """uvicorn, but connections are accepted here, one by one: who has no place is not let in, and
    nobody is forgotten during TLS' handshake.
    """

    def __init__(self, config: uvicorn.Config, connections: Connections, limits: Limits):
        super().__init__(config)
        self._connections, self._limits = connections, limits
        self._beginning: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on the sockets."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(3)
        listening: Any = _Listening(sockets or (), self._accepted, self._look)
        self.servers = [listening]
        self.started = True

    def _look(self) -> None:
        self._connections.look(asyncio.get_running_loop().time())

    def _accepted(self, sock: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        connection = Connection(network_of(host), lambda: None)
        if not self._connections.admit(connection):
            sock.close()
            return
        sock.setblocking(False)
        protocols: list[Protocol] = []  # one, as soon as there is one
        task = asyncio.get_running_loop().create_task(self._begin(sock, connection, protocols))
        # until there is a transport
        connection.end = task.cancel
        self._beginning.add(task)

        def begun(task: asyncio.Task[None]) -> None:
            self._beginning.discard(task)
            if task.cancelled() or task.exception() is not None:
                # a peer that gave way, does not speak TLS, hangs up or takes too long
                self._connections.ended["no_handshake"] += not task.cancelled()
                self._connections.leave(connection)
                self.server_state.connections.difference_update(protocols)
                sock.close()

        task.add_done_callback(begun)

    async def _begin(
        self, sock: socket.socket, connection: Connection, protocols: list[Protocol]
    ) -> None:
        def protocol() -> Protocol:
            protocols.append(
                Protocol(
                    connection,
                    self._connections,
                    self._limits,
                    config=self.config,
                    server_state=self.server_state,
                    app_state=self.lifespan.state,
                )
            )
            return protocols[0]

        context = self.config.ssl
        await asyncio.get_running_loop().connect_accepted_socket(
            protocol,
            sock,
            ssl=context,
            ssl_handshake_timeout=None if context is None else self._limits.header_s,
        )


class _Listening:
    """Accepts from sockets until it is closed, as an `asyncio.Server` does."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        accepted: Callable[[socket.socket, Any], None],
        look: Callable[[], None],
    ):
        self._loop, self._sockets = asyncio.get_running_loop(), sockets
        self._accepted, self._is_open = accepted, True
        self._looking = self._loop.create_task(self._look_for_ever(look))
        for sock in sockets:
            sock.setblocking(False)
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    def _accept(self, sock: socket.socket) -> None:
        for _ in range(32):  # then others have their turn
            try:
                self._accepted(*sock.accept())
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # no descriptors: they come back as connections end
                log.error("no connection can be accepted", extra={"error": str(error.errno)})
                self._loop.remove_reader(sock.fileno())
                self._loop.call_later(0.1, self._again, sock)
                return

    def _again(self, sock: socket.socket) -> None:
        if self._is_open:
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    async def _look_for_ever(self, look: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            look()

    def close(self) -> None:
        """Accept nobody any more."""
        self._is_open = False
        self._looking.cancel()
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())

    async def wait_closed(self) -> None:
        """There is nothing to wait for."""
