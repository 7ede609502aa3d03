"""Bodies: what a request carries, how fast, and which part of a blob it asks for. A body is refused
before it is read where its length is told, and while it is read where it is not.
"""

import asyncio
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from device_runtime import config
from device_runtime.causes import Cause
from device_runtime.errors import ConfigError
from server.connections import IN_SCOPE
from server.requests import Refused
from server.settings import Limits

T = TypeVar("T")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(eq=False)
class Coming:
    """A body on its way into memory."""

    room: int  # bytes it has in the room: what it told, or what has come
    buffer: bytearray = field(default_factory=bytearray)  # of the length that was told
    size: int = 0  # bytes that have come
    deadline: asyncio.Timeout | None = None  # while it is read
    gave_way: bool = False


class Room:
    """Bytes of bodies in memory at once.

    A crowd is read in turn: whoever finds no room for what he tells waits in a line. What somebody
    only says he will send keeps others out for as long as the room moves: where no body has come
    whole or been answered for `patience_s`, what has not come of those that are read counts no
    more, and the line moves on. Where there is no more room for what comes, the body that has been
    coming longest gives way. Most bodies have one length, so their memory is used again.
    """

    def __init__(self, most: int, patience_s: float = 1.0):
        self._left = self._most = most  # of what has come
        self._told = 0  # bytes that all bodies under way have in the room
        self._patience_s = patience_s
        self._line: dict[Coming, asyncio.Future[None]] = {}  # the first first
        self._moves = 0  # bodies that have come whole, or gone
        self._reading: dict[Coming, None] = {}  # the oldest first
        self._spare: list[bytearray] = []

    @contextlib.asynccontextmanager
    async def of(self, size: int, at_most_s: float) -> AsyncIterator[Coming]:
        """A place for a body of so many bytes; none has come yet. Refused (UNAVAILABLE) if all room
        is taken, for as long, by bodies that have come whole.
        """
        body = Coming(size)
        try:
            await self._in_turn(body, at_most_s)
            # its memory is there already
            if self._spare and len(self._spare[-1]) == size:
                body.buffer = self._spare.pop()
            yield body
            # answered: nobody looks at it any more
            if self._spare and len(self._spare[-1]) != len(body.buffer):
                self._spare.clear()
            if len(body.buffer) == size:
                self._spare.append(body.buffer)
        finally:
            self._leave(body)
            self._moved()

    def take(self, body: Coming, more: int) -> None:
        """So many bytes more have come. Refused (UNAVAILABLE) if no other body can give way."""
        if body.gave_way:
            raise _no_room()
        body.size += more
        self._left -= more
        if body.size > body.room:
            self._has(body, body.size)
        while self._left < 0:
            oldest = next((each for each in self._reading if each is not body), None)
            if oldest is None:
                if body.size == self._most - self._left:
                    return  # a body larger than the room has it alone
                raise _no_room()
            self._leave(oldest)
            oldest.gave_way = True
            if oldest.deadline is not None:
                oldest.deadline.reschedule(asyncio.get_running_loop().time())

    def whole(self, body: Coming) -> None:
        """All of it has come: it gives way to none."""
        self._reading.pop(body, None)
        self._has(body, body.size)
        self._moved()

    async def _in_turn(self, body: Coming, at_most_s: float) -> None:
        """Wait until there is room for a body, or others have kept it waiting for long enough."""
        turn = asyncio.get_running_loop().create_future()
        self._line[body] = turn
        self._let_in()
        loop = asyncio.get_running_loop()
        by = loop.time() + at_most_s
        while not turn.done():
            moves, wait_s = self._moves, min(self._patience_s, by - loop.time())
            await asyncio.wait([turn], timeout=max(0.0, wait_s))
            is_late = loop.time() >= by
            if turn.done() or (moves != self._moves and not is_late):
                continue
            for each in self._reading:
                self._has(each, each.size)
            self._let_in()
            if not turn.done() and self._reading and (is_late or body is next(iter(self._line))):
                self._enter(body)
            elif not turn.done() and is_late:
                raise _no_room()

    def _let_in(self) -> None:
        while self._line:
            first = next(iter(self._line))
            if self._told and self._told + first.room > self._most:
                return
            self._enter(first)

    def _enter(self, body: Coming) -> None:
        turn = self._line.pop(body)
        self._told += body.room
        self._reading[body] = None
        if not turn.done():
            turn.set_result(None)

    def _has(self, body: Coming, room: int) -> None:
        self._told += room - body.room
        body.room = room

    def _moved(self) -> None:
        self._moves += 1
        self._let_in()

    def _leave(self, body: Coming) -> None:
        """It is no more in the room, nor in the line."""
        self._reading.pop(body, None)
        if self._line.pop(body, None) is None and not body.gave_way:
            self._has(body, 0)
            self._left += body.size


def _no_room() -> Refused:
    return Refused(Cause.UNAVAILABLE, "too many bodies at once")


async def read(request: Request, limit: int, limits: Limits) -> bytes | bytearray:
    """A small body; refused as soon as it is known to be longer than `limit` bytes, coded, or too
    slow.
    """
    body = bytearray()
    await receive(request, limit, limits, body.extend)
    return body


async def read_into(
    body: Coming, room: Room, request: Request, limit: int, limits: Limits
) -> bytearray:
    """A large body, into its place; refused as by `read`, or if it had to give way."""

    def take(piece: bytes) -> None:
        size = body.size
        room.take(body, len(piece))
        body.buffer[size : body.size] = piece

    try:
        await receive(request, limit, limits, take, body)
    except Refused:
        if body.gave_way:
            raise _no_room() from None
        raise
    room.whole(body)
    return body.buffer if len(body.buffer) == body.size else body.buffer[: body.size]


async def read_away(request: Request, limit: int, limits: Limits) -> tuple[int, str]:
    """The length and the SHA-256 of a body that nobody will look at; refused as by `read`."""
    hashed, size = hashlib.sha256(), 0

    def take(piece: bytes) -> None:
        nonlocal size
        size += len(piece)
        hashed.update(piece)

    await receive(request, limit, limits, take)
    return size, hashed.hexdigest()


async def receive(
    request: Request,
    limit: int,
    limits: Limits,
    take: Callable[[bytes], object],
    body: Coming | None = None,
) -> None:
    """Give a body to `take`, piece by piece. The least speed holds at every piece: whoever is late
    with one is refused before the next.
    """
    checked_length(request, limit)
    if headers(request).get("content-encoding", "identity").lower() != "identity":
        raise Refused(Cause.MALFORMED, "content-encoding: expected a body as it is")
    if is_whole(request):  # nobody is waited for
        piece = await _whole(request)
        if len(piece) > limit:
            raise too_large(limit)
        take(piece)
        return
    by, size = asyncio.get_running_loop().time() + limits.body_s, 0
    try:
        async with asyncio.timeout_at(by) as deadline:
            if body is not None:
                body.deadline = deadline

            def taken(piece: bytes) -> None:
                nonlocal size
                size += len(piece)
                if size > limit:
                    raise too_large(limit)
                take(piece)
                if size and not (body is not None and body.gave_way):
                    deadline.reschedule(by + size / limits.least_bytes_per_s)

            await _pour(request, taken)
    except TimeoutError:
        raise Refused(Cause.TOO_SLOW, "the body did not come in time") from None


async def _pour(request: Request, take: Callable[[bytes], object]) -> None:
    """Give each piece of a body to `take`. What has not come yet comes straight from a connection
    of ours: it is not collected, and nobody is woken, for each piece.
    """
    piece, is_more = await _next(request)
    take(piece)
    over = request.scope.get(IN_SCOPE)
    if is_more and over is not None and over.is_reading(request.scope):
        await over.pour(take)
        return
    while is_more:
        piece, is_more = await _next(request)
        take(piece)


async def _next(request: Request) -> tuple[bytes, bool]:
    """What has come of a body, and whether more will. Raises ClientDisconnect."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect()
    return message.get("body", b""), message.get("more_body", False)


def is_whole(request: Request) -> bool:
    """Whether all of a request is here, and reading its body waits for nobody."""
    over = request.scope.get(IN_SCOPE)
    return over is not None and over.is_whole


async def _whole(request: Request) -> bytes:
    """A body that is here: in one piece, as a rule."""
    body, is_more = await _next(request)
    while is_more:
        piece, is_more = await _next(request)
        body += piece
    return body


def parsed(kind: type[T], body: bytes | bytearray) -> T:
    """A message out of a JSON body. Refused (MALFORMED) if it is not one, or not of characters that
    can be kept.
    """
    try:
        if not _is_text(body):
            raise Refused(Cause.MALFORMED, f"{kind.__name__}: expected characters of Unicode")
        return config.from_json(kind, body, kind.__name__)
    except ConfigError as error:
        raise Refused(Cause.MALFORMED, str(error)) from None
    except (ValueError, ArithmeticError, RecursionError):  # of values no type rules out
        raise Refused(Cause.MALFORMED, f"{kind.__name__}: expected one JSON object") from None


def _is_text(body: bytes | bytearray) -> bool:
    """Whether all characters of a JSON body, as they are or escaped, can be written again."""
    if b"\\u" not in body and body.isascii():
        return True
    try:
        text = body.decode()
        if "\\u" in text:  # half of a pair has no bytes; what a pair stands for has
            json.dumps(json.loads(text), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def headers(request: Request) -> dict[str, str]:
    """The headers by name; Starlette's own look through all of them at every question."""
    by_name: dict[str, str] | None = request.scope.get("fedboard.headers")
    if by_name is None:
        by_name = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in request.scope["headers"]
        }
        request.scope["fedboard.headers"] = by_name
    return by_name


def checked_length(request: Request, limit: int) -> int | None:
    """Bytes of the body by its header, or None if that does not say. Refused if it is no number, or
    more than `limit`.
    """
    text = headers(request).get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise Refused(Cause.MALFORMED, "content-length: expected a number")
    if int(text) > limit:
        raise too_large(limit)
    return int(text)


def too_large(limit: int) -> Refused:
    """What a body of more than `limit` bytes is refused with."""
    return Refused(Cause.TOO_LARGE, f"expected a body of at most {limit} bytes")


def path(request: Request) -> str:
    """As sent, with its query: an escaped path must not pass for the plain one, nor one question
    for another.
    """
    raw: bytes = request.scope["raw_path"]
    query: bytes = request.scope["query_string"]
    return (raw + b"?" + query if query else raw).decode("ascii", "replace")


def tags(header: str) -> Sequence[str]:
    """The entity tags of an `if-none-match`.

    >>> tags('"ab", W/"cd"')
    ['"ab"', '"cd"']
    """
    return [tag.strip().removeprefix("W/") for tag in header.split(",")]


def window(headers: Mapping[str, str], tag: str, size: int) -> tuple[int, int] | None:
    """The bytes of a blob of `size` that a request asks for, start and end (not included), or None
    for all. Empty if they lie outside. Source: RFC 9110, section 14.

    >>> window({"range": "bytes=2-5"}, '"tag"', 10), window({"range": "bytes=-3"}, '"tag"', 10)
    ((2, 6), (7, 10))
    """
    asked = _RANGE.fullmatch(headers.get("range", ""))
    if asked is None or asked.groups() == ("", "") or headers.get("if-range", tag) != tag:
        # several ranges, other units and a blob that changed: the whole blob is a right answer
        return None
    first, last = asked.groups()
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1) if last else size
