"""HTTP in front of the coordinator. It checks sizes and signatures, turns bytes into messages and back, and decides nothing else.

Messages are parsed by the table rules of `device_runtime.config`, so an unknown key or a wrong type is refused here as everywhere.
Bodies, keys and headers never reach a log line.
"""

import asyncio
import base64
import binascii
import contextlib
import logging
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import prometheus_client
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from device_runtime import config, quantize, signing
from device_runtime.errors import ConfigError, RunError
from device_runtime.wire import Abandon, Ack, Assignment, Cause, CheckIn, Enrolled, Enrolment, Problem, Reject, RoundReports
from server.coordinator import ABANDON_CAUSES, Coordinator, Refused
from server.rounds import Phase

log = logging.getLogger("fedboard.server")
T = TypeVar("T")

MESSAGE_BYTES = 16_384  # largest JSON body
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True)
class Health:
    status: str = "ok"


def bind(host: str, port: int) -> socket.socket:
    """A socket for `serve`; port 0 takes a free one. Raises RunError if the port is taken or the host is not of this machine."""
    try:
        sock = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RunError(f"{host}:{port}", f"cannot be listened on ({reason})", "give another --port, or 0 for a free one") from None
    # asyncio does this only for sockets it made itself; without it every answer on a kept connection waits 40 ms for an acknowledgement
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def serve(app: FastAPI, sock: socket.socket) -> None:
    """Answer on a bound socket until SIGINT or SIGTERM; requests under way are finished first."""
    server(app).run(sockets=[sock])


def server(app: FastAPI) -> uvicorn.Server:
    """The same for a caller that ends it by `should_exit`."""
    return uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, server_header=False, lifespan="on", timeout_graceful_shutdown=10))


def app(coordinator: Coordinator, clock: Callable[[], float] = time.time, tick_s: float = 1.0) -> FastAPI:
    """The routes of `device_runtime.wire`, with /healthz and /metrics. `clock` gives the seconds the coordinator is told."""
    refusals = prometheus_client.Counter("fedboard_refused_requests", "Requests answered with a Problem.", ["cause"], registry=None)
    registry = prometheus_client.CollectorRegistry()
    registry.register(refusals)
    registry.register(_Rounds(coordinator, clock))
    update_bytes = quantize.encoded_bytes(coordinator.task.dimension, coordinator.task.plan.bits)

    @contextlib.asynccontextmanager
    async def ticking(_: FastAPI) -> AsyncIterator[None]:
        ticks = asyncio.create_task(_tick_for_ever(coordinator, clock, tick_s))
        yield
        ticks.cancel()

    api = FastAPI(title="Fedboard", version="1", lifespan=ticking, docs_url=None, redoc_url=None)

    def refusal(refused: Refused) -> Response:
        refusals.labels(refused.cause.value).inc()
        return _problem(refused.status, refused.cause, refused.detail)

    @api.exception_handler(Refused)
    async def refuse(_: Request, refused: Refused) -> Response:
        return refusal(refused)

    @api.exception_handler(HTTPException)
    async def refuse_route(_: Request, error: HTTPException) -> Response:
        return _problem(error.status_code, Cause.MALFORMED, error.detail, error.headers)

    @api.exception_handler(ClientDisconnect)
    async def forget(_: Request, __: ClientDisconnect) -> Response:
        return _problem(400, Cause.MALFORMED, "the connection ended inside the body")  # nobody reads it: a phone that lost its network is no error

    async def signed(request: Request, limit: int, answer: Callable[[str, bytes, float], Response]) -> Response:
        """`answer(device, body, now)` once the signature holds, in a thread: the coordinator may wait for its lock or the disk."""
        body = await _body(request, limit)

        def work() -> Response:
            device, now = request.headers.get("fedboard-device", ""), clock()
            coordinator.authenticate(device, *_proof(request, body), now)
            return answer(device, body, now)

        return await run_in_threadpool(work)

    @api.post("/v1/devices", **_documented(Enrolled, 400, 413, body=Enrolment))
    async def enrol(request: Request) -> Response:
        enrolment = _parsed(Enrolment, await _body(request, MESSAGE_BYTES))
        return _json(await run_in_threadpool(coordinator.enrol, enrolment, clock()))

    @api.post("/v1/check-in", **_documented(Assignment | Reject, 400, 401, 409, 413, body=CheckIn, is_signed=True))
    async def check_in(request: Request) -> Response:
        def answer(device: str, body: bytes, now: float) -> Response:
            return _json(coordinator.check_in(device, _parsed(CheckIn, body), now))

        return await signed(request, MESSAGE_BYTES, answer)

    @api.get("/v1/blobs/{sha256}", **_documented(None, 401, 404, 409, 413, 416, parameter="sha256", is_signed=True))
    async def blob(request: Request) -> Response:
        name = request.path_params["sha256"]

        def answer(device: str, _: bytes, now: float) -> Response:
            size = coordinator.blob_size(name)
            headers = {"etag": f'"{name}"', "cache-control": "public, max-age=31536000, immutable", "accept-ranges": "bytes"}
            if headers["etag"] in _tags(request.headers.get("if-none-match", "")):
                return Response(status_code=304, headers=headers)
            window = _window(request, headers["etag"], size)
            if window is None:
                data = coordinator.blob(device, name, now)
                return Response(data, 200, headers, "application/octet-stream")
            start, end = window
            if start >= end:
                return _problem(416, Cause.MALFORMED, f"the blob has {size} bytes", {"content-range": f"bytes */{size}"})
            headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
            return Response(coordinator.blob(device, name, now, start, end), 206, headers, "application/octet-stream")

        return await signed(request, 0, answer)

    @api.put(
        "/v1/assignments/{assignment}/update",
        **_documented(Ack | Reject, 401, 404, 409, 410, 413, 422, body=bytes, parameter="assignment", is_signed=True),
    )
    async def update(request: Request) -> Response:
        def answer(device: str, body: bytes, now: float) -> Response:
            return _json(coordinator.update(device, request.path_params["assignment"], body, now))

        return await signed(request, update_bytes, answer)

    @api.post(
        "/v1/assignments/{assignment}/abandon", **_documented(Ack, 400, 401, 404, 409, 413, body=Abandon, parameter="assignment", is_signed=True)
    )
    async def abandon(request: Request) -> Response:
        def answer(device: str, body: bytes, now: float) -> Response:
            return _json(coordinator.abandon(device, request.path_params["assignment"], _parsed(Abandon, body), now))

        return await signed(request, MESSAGE_BYTES, answer)

    @api.get("/v1/rounds", **_documented(RoundReports))
    async def rounds() -> Response:
        return _json(await run_in_threadpool(coordinator.reports, clock()))

    @api.get("/healthz", **_documented(Health))
    async def healthz() -> Response:
        await run_in_threadpool(coordinator.tick, clock())  # a coordinator that cannot write is not healthy
        return _json(Health())

    @api.get("/metrics", response_class=Response, responses={200: {"content": {prometheus_client.CONTENT_TYPE_LATEST: {}}}})
    async def metrics() -> Response:
        text = await run_in_threadpool(prometheus_client.generate_latest, registry)
        return Response(text, headers={"content-type": prometheus_client.CONTENT_TYPE_LATEST})

    api.openapi = lambda: _openapi(api)  # type: ignore[method-assign]
    return api


async def _tick_for_ever(coordinator: Coordinator, clock: Callable[[], float], every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        try:
            await run_in_threadpool(coordinator.tick, clock())
        except Exception:  # a full disk may have room again: the next tick tries the same
            log.exception("the round could not go on")


# requests


async def _body(request: Request, limit: int) -> bytes:
    """The body, refused as soon as it is known to be longer than `limit` bytes."""
    too_large = Refused(Cause.TOO_LARGE, f"expected a body of at most {limit} bytes")
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_large
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise too_large
    return bytes(body)


def _parsed(kind: type[T], body: bytes) -> T:
    try:
        return config.from_json(kind, body, kind.__name__)
    except ConfigError as error:
        raise Refused(Cause.MALFORMED, str(error)) from None


def _proof(request: Request, body: bytes) -> tuple[str, bytes, bytes]:
    """Nonce, signature and the message it should sign. Refused if the signature is missing or not base64."""
    nonce = request.headers.get("fedboard-nonce", "")
    try:
        signature = base64.b64decode(request.headers.get("fedboard-signature", ""), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(Cause.BAD_SIGNATURE, "fedboard-signature: expected base64") from None
    path = request.scope["raw_path"].decode("ascii", "replace")  # as sent: an escaped path must not pass for the plain one
    return nonce, signature, signing.request_message(request.method, path, body, nonce)


def _tags(header: str) -> Iterable[str]:
    return [tag.strip().removeprefix("W/") for tag in header.split(",")]


def _window(request: Request, tag: str, size: int) -> tuple[int, int] | None:
    """The bytes a request asks for, start and end (not included), or None for all. Empty if they lie outside. RFC 9110, section 14."""
    found = _RANGE.fullmatch(request.headers.get("range", ""))
    if found is None or found.groups() == ("", "") or request.headers.get("if-range", tag) != tag:
        return None  # several ranges, other units and a blob that changed: the whole blob is a right answer
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1) if last else size


# answers


def _json(message: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(config.to_json(message), status, headers, "application/json")


def _problem(status: int, cause: Cause, detail: str, headers: Any = None) -> Response:
    if status == 401:
        headers = {"www-authenticate": "Fedboard-Signature"}
    return _json(Problem(cause, detail), status, headers)


class _Rounds:
    """Numbers of /metrics that the store keeps: they survive a restart."""

    def __init__(self, coordinator: Coordinator, clock: Callable[[], float]):
        self._coordinator, self._clock = coordinator, clock

    def collect(self) -> Iterable[Any]:
        reports = self._coordinator.reports(self._clock()).rounds
        phases = GaugeMetricFamily("fedboard_rounds", "Rounds by phase.", labels=["phase"])
        for phase in Phase:
            phases.add_metric([phase.value], sum(report.phase == phase for report in reports))
        yield phases
        funnel = CounterMetricFamily("fedboard_devices", "Devices and rounds by the step of the funnel they reached.", labels=["step"])
        for step in ("checked_in", "assigned", "downloaded", "uploaded", "counted"):
            funnel.add_metric([step], sum(getattr(report, step) for report in reports))
        yield funnel
        lost = CounterMetricFamily("fedboard_devices_lost", "Devices and rounds refused or dropped, by cause.", labels=["step", "cause"])
        for step in ("refused", "dropped"):
            for cause in sorted({cause for report in reports for cause in getattr(report, step)}):
                lost.add_metric([step, cause], sum(getattr(report, step).get(cause, 0) for report in reports))
        yield lost
        body = CounterMetricFamily("fedboard_body_bytes", "Bytes of updates (up) and blobs (down).", labels=["direction"])
        body.add_metric(["up"], sum(report.bytes_up for report in reports))
        body.add_metric(["down"], sum(report.bytes_down for report in reports))
        yield body
        yield CounterMetricFamily("fedboard_examples", "Examples of the counted updates.", value=sum(report.examples for report in reports))


# the OpenAPI document

_SHARED = "#/components/schemas/{model}"
_REQUESTS = (Enrolment, CheckIn, Abandon)
_SIGNATURE = ("fedboard-device", "fedboard-nonce", "fedboard-signature")


def _documented(answer: Any, *problems: int, body: Any = None, parameter: str | None = None, is_signed: bool = False) -> dict[str, Any]:
    """What one route takes and answers, for `api.get` and its like. The answer None stands for a blob."""
    responses: dict[int | str, Any] = {status: {"model": Problem} for status in problems}
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    if answer is None:
        responses |= {200: {"content": binary}, 206: {"content": binary, "description": "The bytes asked for"}}
        responses |= {304: {"description": "The device has it already"}}
    else:
        responses[200] = {"model": answer}
    extra: dict[str, Any] = {}
    if body is bytes:
        extra["requestBody"] = {"required": True, "content": binary}
    elif body is not None:
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": {"$ref": _SHARED.format(model=body.__name__)}}}}
    if parameter is not None:
        extra["parameters"] = [{"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}]
    if is_signed:
        extra["security"] = [{name: [] for name in _SIGNATURE}]
    return {"response_class": Response, "responses": responses, "openapi_extra": extra}


def _openapi(api: FastAPI) -> dict[str, Any]:
    if api.openapi_schema is None:
        document = get_openapi(title=api.title, version=api.version, routes=api.routes)
        _, shared = TypeAdapter.json_schemas([(kind, "validation", TypeAdapter(kind)) for kind in _REQUESTS], ref_template=_SHARED)
        for name, schema in shared["$defs"].items():
            if "properties" in schema:
                schema["additionalProperties"] = False
            document["components"]["schemas"].setdefault(name, schema)
        document["components"]["schemas"]["Enrolment"]["properties"]["public_key"]["pattern"] = "^[0-9a-f]{64}$"
        document["components"]["schemas"]["Abandon"]["properties"]["cause"] = {"enum": [cause.value for cause in ABANDON_CAUSES]}
        document["components"]["securitySchemes"] = {name: {"type": "apiKey", "in": "header", "name": name} for name in _SIGNATURE}
        api.openapi_schema = document
    return api.openapi_schema
