"""Bodies: what a request carries, and which part of a blob it asks for. A body is refused before it
is read where its length is told, and while it is read where it is not.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TypeVar

from starlette.requests import Request

from device_runtime import config
from device_runtime.causes import Cause
from device_runtime.errors import ConfigError
from server.requests import Refused
from server.settings import Limits

T = TypeVar("T")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class Room:
    """Bytes of bodies in memory at once: who finds none waits, and is asked to come back if that
    takes too long. Most bodies have one length, so their memory is used again.
    """

    def __init__(self, most: int):
        self._left = self._most = most
        self._freed = asyncio.Condition()
        self._spare: list[bytearray] = []

    @contextlib.asynccontextmanager
    async def of(self, size: int, at_most_s: float) -> AsyncIterator[bytearray]:
        """Memory for a body of so many bytes, once there is room. Refused (UNAVAILABLE) if there is
        none in time.
        """
        size = min(size, self._most)
        try:
            async with asyncio.timeout(at_most_s), self._freed:
                await self._freed.wait_for(lambda: self._left >= size)
                self._left -= size
        except TimeoutError:
            raise Refused(Cause.UNAVAILABLE, "too many bodies at once") from None
        fits = self._spare and len(self._spare[-1]) == size
        buffer = self._spare.pop() if fits else bytearray(size)
        try:
            yield buffer
            # answered: nobody looks at it any more
            if not self._spare or len(self._spare[-1]) == size:
                self._spare.append(buffer)
            else:
                self._spare = [buffer]
        finally:
            self._left += size
            async with self._freed:
                self._freed.notify_all()


async def read(
    request: Request, limit: int, limits: Limits, into: bytearray | None = None
) -> bytes | bytearray:
    """The body, in `into` if it has its length; refused as soon as it is known to be longer than
    `limit` bytes, coded, or too slow.
    """
    length = checked_length(request, limit)
    if headers(request).get("content-encoding", "identity").lower() != "identity":
        raise Refused(Cause.MALFORMED, "content-encoding: expected a body as it is")
    # one piece of memory if its length is told
    fits = into is not None and len(into) == length
    body = into if into is not None and fits else bytearray(length or 0)
    size = 0
    try:
        async with asyncio.timeout(limits.body_s + limit / limits.least_bytes_per_s):
            async for piece in request.stream():
                size += len(piece)
                if size > limit:
                    raise too_large(limit)
                body[size - len(piece) : size] = piece
    except TimeoutError:
        raise Refused(Cause.TOO_SLOW, "the body did not come in time") from None
    return body if size == len(body) else body[:size]


def parsed(kind: type[T], body: bytes | bytearray) -> T:
    """A message out of a JSON body. Refused (MALFORMED) if it is not one."""
    try:
        return config.from_json(kind, body, kind.__name__)
    except ConfigError as error:
        raise Refused(Cause.MALFORMED, str(error)) from None


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
    """As sent, without the query: an escaped path must not pass for the plain one."""
    raw: bytes = request.scope["raw_path"]
    return raw.decode("ascii", "replace")


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
