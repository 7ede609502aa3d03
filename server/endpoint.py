"""HTTP in front of the coordinator. It checks sizes, signatures and tokens, turns bytes into
messages and back, and decides nothing else.

Messages are parsed by the table rules of `device_runtime.config`, so an unknown key or a wrong type
is refused here as everywhere. Bodies, keys, tokens and headers never reach a log line.
"""

import asyncio
import contextlib
import functools
import logging
import re
import socket
import time
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import prometheus_client
import uvicorn
from cachetools import LRUCache
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from device_runtime import config, secagg_wire, signing
from device_runtime.causes import Cause
from device_runtime.errors import FedboardError
from device_runtime.log_wire import MOST_ENTRIES, Entries, LogHead, Path
from device_runtime.shown import printable
from device_runtime.table import MOST_BYTES as MOST_LIST_BYTES
from device_runtime.weights import digest
from device_runtime.wire import (
    CERTIFIED,
    MOST_ROUNDS,
    ROUNDS,
    SENTENCE,
    VERSION,
    Abandon,
    Ack,
    Assignment,
    CheckIn,
    Enrolled,
    Enrolment,
    Kind,
    Named,
    Problem,
    Reject,
    ReleaseScores,
    RoundReports,
    Scores,
    Server,
    Signed,
)
from server import (
    access,
    bodies,
    connections,
    contract,
    dashboard,
    mechanism,
    memory,
    openapi,
    operators,
    others,
    overview,
    releases,
)
from server.access import Buckets, Proof
from server.connections import bind as bind
from server.coordinator import Coordinator
from server.groups import Groups
from server.judging import Judged
from server.metrics import Metrics
from server.replays import Replays
from server.requests import (
    Abandoning,
    Answer,
    CheckingIn,
    Fetching,
    Hearing,
    Looking,
    Nonce,
    Refused,
    Reporting,
    Telling,
)
from server.requests import Request as Asked
from server.settings import Limits, listed
from server.store import AssignmentStatus, Away, StoredAssignment, Unusable
from server.task import NAME

log = logging.getLogger("fedboard.server")

CHECK_IN = "/v1/check-in"
SECAGG = "/v1/assignments/{assignment}/secagg"
MESSAGE_BYTES = 16_384  # largest JSON body of a device
CHECKPOINT_BYTES = 256 << 20  # largest body of an operator
JUDGES = 2  # threads
AT_ONCE = 128  # check-ins that may keep the loop from all else
KEYS_KEPT = 100_000  # public keys in memory
OTHER_VERSION_S = 86_400  # until a device of another version asks again
PIECE_BYTES = 512 << 10  # of a blob in memory while it is sent
ROUNDS_A_TOKEN = 25  # that are read for what any other request costs a device
# what a path may name; anything else is the name of nothing
NAMES = {
    "assignment": (re.compile("[0-9a-f]{32}"), Cause.UNKNOWN_ASSIGNMENT),
    "sha256": (re.compile("[0-9a-f]{64}"), Cause.UNKNOWN_BLOB),
    "name": (NAME, Cause.UNKNOWN_TASK),
}
_NUMBER = re.compile("[0-9]{1,9}")
HELD = "fedboard.held"  # of an ASGI scope: what is counted until the request is over


@dataclass(frozen=True)
class Health:
    """The answer to whoever asks whether the server lives."""

    status: str = "ok"
    helper: str = ""  # whether the one that opens sums answers; empty: none is asked


@dataclass(frozen=True)
class Access:
    """Who is let in to what. The token is the operator's; nobody is one without it."""

    token: str = field(default="", repr=False)
    # pages and reports need no token: for a server that only this machine reaches
    open_to_readers: bool = True
    # what is open only because nobody but this machine should come: not to what a proxy passes on,
    # nor to a name that was made to lead here
    reads_only_here: bool = False
    enrols_only_here: bool = False
    limits: Limits = field(default_factory=Limits)
    behind_proxy: str = ""  # addresses of proxies, separated by commas
    origins: str = ""  # where a browser may write from beside this server itself


def serve(app: FastAPI, sock: socket.socket, **options: Any) -> None:
    """Answer on a bound socket until SIGINT or SIGTERM; requests under way are finished first.
    Options are uvicorn's, such as ssl_certfile.
    """
    memory.give_back_large_blocks()
    if isinstance(app, _Api):
        memory.look_for_garbage_rarely()
    server(app, **options).run(sockets=[sock])


def server(app: FastAPI, **options: Any) -> uvicorn.Server:
    """The same for a caller that ends it by `should_exit`. An app of ours has its connections
    limited.
    """
    service: _Service | None = getattr(app.state, "service", None)
    settings: dict[str, Any] = {**connections.SETTINGS, "lifespan": "on"}
    if service is None:
        return uvicorn.Server(uvicorn.Config(app, **{**settings, **options}))
    if proxies := service.allowed.behind_proxy:
        settings |= {"proxy_headers": True, "forwarded_allow_ips": proxies}
    config_ = uvicorn.Config(app, **{**settings, **options})
    return connections.Server(config_, service.connections, service.allowed.limits)


def app(
    coordinator: Coordinator,
    clock: Callable[[], float] = time.time,
    tick_s: float = 1.0,
    access_: Access | None = None,
) -> FastAPI:
    """The routes of `device_runtime.wire` and `server.contract`, with /healthz, /readyz, /metrics
    and the page at /.

    `clock` gives the seconds the coordinator is told.
    """
    return _Service(coordinator, clock, tick_s, access_ or Access()).app()


class _Service:
    """What the routes share."""

    def __init__(
        self, coordinator: Coordinator, clock: Callable[[], float], tick_s: float, allowed: Access
    ):
        self.coordinator, self.allowed = coordinator, allowed
        self.clock, self.tick_s = clock, tick_s
        self.started_at = clock()
        limits = allowed.limits
        self.connections = connections.of(limits, allowed.behind_proxy)
        self.metrics = Metrics(coordinator, clock, self.connections.ended)
        self.origins = listed(allowed.origins)
        self.groups: Groups[_Asking, Answer] = Groups(
            self.handle,
            most=AT_ONCE,
            fails_all=lambda error: isinstance(error, Away),
            at_once=self.handle_at_once,
        )
        # of devices that come for the first time, and of those that report: many at once
        self.key_reads: Groups[str, str | None] = Groups(
            coordinator.public_keys, wait_s=0.0, fails_all=lambda error: True
        )
        self.work_reads: Groups[tuple[str, str, Nonce], StoredAssignment | Refused] = Groups(
            coordinator.works_of, wait_s=0.0, fails_all=lambda error: True
        )
        self.others = others.Others(coordinator.open_sums, clock, tick_s)
        # hashing and adding up let go of the interpreter: other cores do them
        self.judges = ThreadPoolExecutor(JUDGES, "judge")
        self.of_devices = Buckets(limits.device_burst, limits.device_per_s)
        self.of_addresses = Buckets(limits.address_burst, limits.address_per_s)
        self.replays = Replays(coordinator.good_since(self.started_at))
        self.of_enrolments = Buckets(limits.enrolment_burst, limits.enrolment_per_s)
        # bytes of releases, which anybody may fetch
        self.of_releases = Buckets(limits.release_burst_bytes, limits.release_bytes_per_s)
        # bodies under way by device, up and down
        self.uploads: Counter[str] = Counter()
        self.downloads: Counter[str] = Counter()
        self.room = bodies.Room(limits.bodies_bytes)
        self.keys: LRUCache[str, bytes] = LRUCache(KEYS_KEPT)
        self.update_bytes: dict[str, int] = {}  # largest report by task
        self.answers_to_errors: tuple[
            tuple[type[Exception], Callable[[Request, Any], Awaitable[Response]]], ...
        ] = (
            (Refused, self.refuse),
            (HTTPException, self.refuse_route),
            (ClientDisconnect, self.forget),
            (Unusable, self.unavailable),
            (FedboardError, self.unavailable),
        )

    def app(self) -> FastAPI:
        @contextlib.asynccontextmanager
        async def ticking(_: FastAPI) -> AsyncIterator[None]:
            ticks = asyncio.create_task(self.tick_for_ever())
            self.others.start()
            # a server that was killed may have left some
            differences = asyncio.create_task(self.work_out(None))
            yield
            await run_in_threadpool(self.others.stop)
            ticks.cancel()
            differences.cancel()
            # a signal ends the process after this: nothing stays in the log
            with contextlib.suppress(Unusable, FedboardError):
                await run_in_threadpool(self.coordinator.tidy)

        api = _Api(title="Fedboard", version="2", lifespan=ticking, docs_url=None, redoc_url=None)
        api.observed = _Observed(super(_Api, api).__call__, self)
        api.router.route_class = _Route
        for kind, answer in self.answers_to_errors:
            api.add_exception_handler(kind, answer)
        for method, path, route, documented in (
            (
                "POST",
                "/v1/devices",
                self.enrol,
                _documented(
                    Enrolled,
                    400,
                    401,
                    403,
                    408,
                    413,
                    421,
                    426,
                    429,
                    503,
                    body=Enrolment,
                    is_signed=True,
                ),
            ),
            (
                "POST",
                CHECK_IN,
                self.check_in,
                _documented(Assignment | Reject, *SIGNED, 400, body=CheckIn, is_signed=True),
            ),
            (
                "GET",
                "/v1/blobs/{sha256}",
                self.blob,
                _documented(None, *SIGNED, 404, 416, parameter="sha256", is_signed=True),
            ),
            (
                "PUT",
                "/v1/assignments/{assignment}/update",
                self.update,
                _documented(
                    Ack | Reject,
                    *SIGNED,
                    400,
                    404,
                    410,
                    422,
                    body=bytes,
                    parameter="assignment",
                    is_signed=True,
                ),
            ),
            (
                "PUT",
                "/v1/assignments/{assignment}/scores",
                self.scores,
                _documented(
                    Ack | Reject,
                    *SIGNED,
                    400,
                    404,
                    410,
                    422,
                    body=Scores | ReleaseScores,
                    parameter="assignment",
                    is_signed=True,
                ),
            ),
            (
                "POST",
                "/v1/assignments/{assignment}/abandon",
                self.abandon,
                _documented(
                    Ack,
                    *SIGNED,
                    400,
                    404,
                    422,
                    body=Abandon,
                    parameter="assignment",
                    is_signed=True,
                ),
            ),
            *self.of_steps(),
            ("GET", "/v1/server", self.server, _documented(Server, 429)),
            ("GET", "/v1/newest", self.newest, _documented(Named, 429)),
            ("GET", "/v1/log/head", self.log_head, _documented(LogHead, 429)),
            ("GET", "/v1/log/entries", self.log_entries, _documented(Entries, 400, 429)),
            ("GET", "/v1/log/consistency", self.log_path, _documented(Path, 400, 404, 429)),
            (
                "GET",
                "/v1/rounds",
                self.rounds,
                _documented(RoundReports, *SIGNED, 400, 404, is_operators=True),
            ),
            (
                "PUT",
                "/v1/checkpoints",
                self.put_checkpoint,
                _operators(contract.Stored, 400, 413, body=bytes),
            ),
            (
                "PUT",
                "/v1/lists",
                self.put_list,
                _operators(contract.Stored, 400, 413, body=bytes),
            ),
            (
                "POST",
                "/v1/tasks",
                self.create_task,
                _operators(contract.TaskReport, 400, 404, 409, 413, body=contract.TaskSettings),
            ),
            ("GET", "/v1/helper", self.helper, _operators(contract.HelperHere)),
            ("GET", "/v1/tasks", self.tasks, _operators(contract.TaskReports)),
            (
                "GET",
                "/v1/tasks/{name}",
                self.task,
                _operators(contract.TaskReport, 404, parameter="name"),
            ),
            (
                "POST",
                "/v1/tasks/{name}/pause",
                self.pause,
                _operators(contract.TaskReport, 404, 409, parameter="name"),
            ),
            (
                "POST",
                "/v1/tasks/{name}/resume",
                self.resume,
                _operators(contract.TaskReport, 404, 409, parameter="name"),
            ),
            (
                "POST",
                "/v1/tasks/{name}/rollback",
                self.roll_back,
                _operators(
                    contract.TaskReport,
                    400,
                    404,
                    409,
                    413,
                    body=contract.Rollback,
                    parameter="name",
                ),
            ),
            (
                "POST",
                "/v1/tasks/{name}/round-key",
                self.round_key,
                _operators(contract.RoundKey, 404, 409, parameter="name"),
            ),
            (
                "POST",
                "/v1/tasks/{name}/certificate",
                self.certificate,
                _operators(contract.TaskReport, 400, 404, 409, 413, body=Signed, parameter="name"),
            ),
            (
                "GET",
                "/v1/tasks/{name}/checkpoints/{sha256}",
                self.checkpoint,
                _operators(None, 404, 416, parameter="name", second="sha256"),
            ),
            (
                "GET",
                "/v1/tasks/{name}/counts",
                self.counts,
                _operators(contract.CountsReport, 404, parameter="name"),
            ),
            (
                "POST",
                "/v1/codes",
                self.codes,
                _operators(contract.Codes, 400, 413, body=contract.NewCodes),
            ),
            (
                "PUT",
                "/v1/releases/blobs",
                self.put_release_file,
                _operators(contract.Stored, 400, 408, 413, body=bytes),
            ),
            (
                "POST",
                "/v1/releases",
                self.publish,
                _operators(
                    contract.ReleaseReport, 400, 404, 408, 409, 413, body=contract.Publication
                ),
            ),
            ("GET", "/v1/releases", self.published, _operators(contract.ReleaseReports)),
            (
                "GET",
                "/v1/releases/{sha256}",
                self.release_file,
                _documented(None, 404, 416, 429, 503, parameter="sha256"),
            ),
            ("GET", "/", self.page, {"response_class": HTMLResponse, "responses": _READING}),
            ("GET", "/healthz", self.healthz, _documented(Health)),
            ("GET", "/readyz", self.readyz, _documented(Health, 429, 503)),
            ("GET", "/metrics", self.metrics_text, {"response_class": Response, **_METRICS}),
        ):
            api.add_api_route(path, route, methods=[method], **documented)
        api.openapi = functools.partial(openapi.document, api)  # type: ignore[method-assign]
        api.state.service = self
        return api

    def of_steps(self) -> list[tuple[str, str, Any, dict[str, Any]]]:
        """The routes of SecAgg+: one for each of its messages."""
        problems = (*SIGNED, 400, 404, 410, 422)
        options: dict[str, Any] = {"parameter": "assignment", "is_signed": True}
        routes: list[tuple[str, str, Any, dict[str, Any]]] = []
        for name, sent in secagg_wire.SENT.items():
            documented = _documented(Ack | Reject, *problems, body=sent, **options)
            routes.append(
                ("PUT", f"{SECAGG}/{name}", functools.partial(self.tell, sent), documented)
            )
        for name, heard in secagg_wire.HEARD.items():
            documented = _documented(heard | Reject, *problems, **options)
            routes.append(
                ("GET", f"{SECAGG}/{name}", functools.partial(self.hear, heard), documented)
            )
        return routes

    # devices

    async def enrol(self, request: Request) -> Response:
        self.address_may(request)
        if self.allowed.enrols_only_here and not self.is_from_here(request):
            raise Refused(
                Cause.BAD_CODE,
                "without codes this server enrols devices of its own machine alone, at its address;"
                " [access] behind_proxy and origins name others",
            )
        if not self.is_this_machine(request):
            address = access.network_of(self.address(request))
            self.not_too_often(self.of_enrolments.wait_s(address, self.clock()))
        body = await self.body(request, MESSAGE_BYTES)
        enrolment = bodies.parsed(Enrolment, body)
        proof, key = self.claimed(request), bytes.fromhex(enrolment.public_key)
        named = (
            proof is not None
            and proof.device == signing.name_of(enrolment.public_key)
            and proof.body_digest == digest(body)
        )
        if (
            proof is None
            or not named
            or not access.is_signed(key, proof, request.method, bodies.path(request))
        ):
            raise Refused(Cause.BAD_SIGNATURE, "the enrolment is not signed with the key it names")
        return _json(await run_in_threadpool(self.coordinator.enrol, enrolment, self.clock()))

    async def check_in(self, request: Request) -> Response:
        signed = await self.signed(request, MESSAGE_BYTES, later=True)
        try:
            body = await self.signed_body(request, signed.proof, MESSAGE_BYTES)
            message = bodies.parsed(CheckIn, body)
        except Refused:
            if signed.key is None:  # a stranger is told that he is one, whatever else is wrong
                await self.key(signed.proof.device)
            raise
        answer = await self.answer(
            signed, CheckingIn(signed.proof.device, message, signed.proof.nonce)
        )
        if isinstance(answer, Assignment) and message.holds and message.holds != answer.checkpoint:
            answer = await run_in_threadpool(
                self.coordinator.with_difference, answer, message.holds
            )
        return _json(answer)

    async def blob(self, request: Request) -> Response:
        signed = await self.signed(request, 0)
        await self.signed_body(request, signed.proof, 0)
        name, proof = request.path_params["sha256"], signed.proof
        self.verify(signed)
        self.charge(signed)
        self.hold(request, self.downloads, proof.device)

        async def taken(size: int, complete: bool) -> None:
            makes = ""
            if complete:
                makes = await run_in_threadpool(self.coordinator.differences.makes, name)
            fetching = Fetching(
                proof.device, name, size, complete, makes, proof.nonce, proof.signed_for
            )
            await self.answer(signed, fetching)

        return await self.blob_answer(request, name, taken)

    async def update(self, request: Request) -> Response:
        return await self.report(request, Kind.TRAINING)

    async def scores(self, request: Request) -> Response:
        return await self.report(request, Kind.EVALUATION)

    async def report(self, request: Request, kind: Kind) -> Response:
        limit = await self.largest_update() if kind is Kind.TRAINING else MESSAGE_BYTES
        signed = await self.signed(request, limit)
        proof, limits = signed.proof, self.allowed.limits
        name = request.path_params["assignment"]
        # before a body this large is read
        self.verify(signed)
        self.charge(signed)
        self.hold(request, self.uploads, proof.device)
        work = await self.work_reads.answer((proof.device, name, proof.nonce))
        if isinstance(work, Refused):
            raise work
        if (work.task, work.round) != proof.signed_for:
            raise Refused(Cause.WRONG_ROUND)
        if connections.IN_SCOPE in request.scope:
            request.scope[connections.IN_SCOPE].vouch()
        asked = Reporting(
            proof.device, name, b"", kind, proof.nonce, proof.signed_for, proof.body_digest
        )
        if work.status is not AssignmentStatus.OPEN:
            # nobody will count it: its hash says whether it is the one that was counted
            size, hashed = await bodies.read_away(request, limit, limits)
            judged = Judged(hashed, hashed == proof.body_digest, *proof.signed_for, value=None)
            return _json(await self.answer(signed, replace(asked, size=size), judged))
        length = bodies.checked_length(request, limit)
        async with self.room.of(limit if length is None else length, limits.body_s) as coming:
            # the hash of a body this large is checked where it is judged, which needs it anyway
            body = await bodies.read_into(coming, self.room, request, limit, limits)
            asked = replace(asked, body=body)
            judged = await asyncio.get_running_loop().run_in_executor(
                self.judges, self.coordinator.judge, asked
            )
            return _json(await self.answer(signed, asked, judged, len(body)))

    async def abandon(self, request: Request) -> Response:
        signed = await self.signed(request, MESSAGE_BYTES)
        proof = signed.proof
        message = bodies.parsed(Abandon, await self.signed_body(request, proof, MESSAGE_BYTES))
        asked = Abandoning(
            proof.device,
            request.path_params["assignment"],
            message.cause,
            proof.nonce,
            proof.signed_for,
        )
        return _json(await self.answer(signed, asked))

    # steps in which devices wait for one another

    async def tell(self, kind: type[secagg_wire.Sent], request: Request) -> Response:
        """The message of a step."""
        signed = await self.signed(request, secagg_wire.MOST_BYTES)
        proof = signed.proof
        # before a body this large is read
        self.verify(signed)
        self.charge(signed)
        self.hold(request, self.uploads, proof.device)
        body = await self.signed_body(request, proof, secagg_wire.MOST_BYTES)
        message = await run_in_threadpool(bodies.parsed, kind, body)
        asked = Telling(
            proof.device,
            request.path_params["assignment"],
            message,
            proof.nonce,
            proof.signed_for,
        )
        return _json(await self.answer(signed, asked, size=len(body)))

    async def hear(self, kind: type[secagg_wire.Heard], request: Request) -> Response:
        """What a step begins with, once it has begun."""
        signed = await self.signed(request, 0)
        await self.signed_body(request, signed.proof, 0)
        proof, name = signed.proof, request.path_params["assignment"]
        asked = Hearing(proof.device, name, kind, proof.nonce, proof.signed_for)
        answer = await self.answer(signed, asked)
        return await run_in_threadpool(_json, answer)

    # reports and operators

    async def server(self, request: Request) -> Response:
        """Whom devices sign for; anybody may ask."""
        self.address_may(request)
        return _json(Server(self.coordinator.server, int(self.clock())))

    async def rounds(self, request: Request) -> Response:
        asked = request.query_params
        task, before = asked.get("task"), _number(asked, "before", None)
        most = min(_number(asked, "most", ROUNDS) or ROUNDS, MOST_ROUNDS)
        if "fedboard-signature" in bodies.headers(request):
            # a device may see what becomes of its rounds
            signed = await self.signed(request, 0)
            signed.cost = max(1.0, most / ROUNDS_A_TOKEN)
            await self.answer(signed, Looking(signed.proof.device, signed.proof.nonce))
        else:
            self.may_read(request)
        if task is not None and not NAME.fullmatch(task):
            raise Refused(Cause.UNKNOWN_TASK, "there is no task of that name")
        return _json(
            await run_in_threadpool(self.coordinator.reports, self.clock(), task, most, before)
        )

    async def put_checkpoint(self, request: Request) -> Response:
        self.may_act(request, "application/octet-stream")
        data = await self.body(request, CHECKPOINT_BYTES)
        return _json(
            await run_in_threadpool(operators.put_checkpoint, self.coordinator, bytes(data))
        )

    async def put_list(self, request: Request) -> Response:
        self.may_act(request, "application/octet-stream")
        data = await self.body(request, MOST_LIST_BYTES)
        return _json(await run_in_threadpool(operators.put_list, self.coordinator, bytes(data)))

    async def counts(self, request: Request) -> Response:
        self.may_read(request)
        name = request.path_params["name"]
        return _json(await run_in_threadpool(operators.counted, self.coordinator, name))

    async def create_task(self, request: Request) -> Response:
        self.may_act(request)
        new = bodies.parsed(contract.TaskSettings, await self.body(request, MESSAGE_BYTES))
        await run_in_threadpool(operators.create, self.coordinator, new, self.clock())
        self.update_bytes = {}
        return await self.changed(request, "created", new.name)

    async def helper(self, request: Request) -> Response:
        self.may_read(request)
        return _json(await run_in_threadpool(operators.helper, self.coordinator, self.clock()))

    async def tasks(self, request: Request) -> Response:
        self.may_read(request)
        return _json(await run_in_threadpool(operators.reports, self.coordinator, self.clock()))

    async def task(self, request: Request) -> Response:
        self.may_read(request)
        name = request.path_params["name"]
        report = await run_in_threadpool(operators.report, self.coordinator, name, self.clock())
        return _json(report)

    async def pause(self, request: Request) -> Response:
        self.may_act(request)
        await run_in_threadpool(self.coordinator.pause, request.path_params["name"])
        return await self.changed(request, "paused", request.path_params["name"])

    async def resume(self, request: Request) -> Response:
        self.may_act(request)
        await run_in_threadpool(self.coordinator.resume, request.path_params["name"])
        return await self.changed(request, "resumed", request.path_params["name"])

    async def roll_back(self, request: Request) -> Response:
        self.may_act(request)
        message = bodies.parsed(contract.Rollback, await self.body(request, MESSAGE_BYTES))
        await run_in_threadpool(
            operators.roll_back,
            self.coordinator,
            request.path_params["name"],
            message,
            self.clock(),
        )
        return await self.changed(request, "rolled back", request.path_params["name"])

    async def round_key(self, request: Request) -> Response:
        self.may_act(request)
        name = request.path_params["name"]
        return _json(await run_in_threadpool(operators.round_key, self.coordinator, name))

    async def certificate(self, request: Request) -> Response:
        self.may_act(request)
        message = bodies.parsed(Signed, await self.body(request, MESSAGE_BYTES))
        name = request.path_params["name"]
        await run_in_threadpool(operators.certify, self.coordinator, name, message, self.clock())
        self.others.hurry()  # its helper is told, and gives keys
        return await self.changed(request, "certified", name)

    async def changed(self, request: Request, what: str, task: str) -> Response:
        report = await run_in_threadpool(operators.report, self.coordinator, task, self.clock())
        log.info("task %s", what, extra={"task": task, "round": report.round})
        return _json(report)

    async def checkpoint(self, request: Request) -> Response:
        self.may_read(request)
        task, sha = request.path_params["name"], request.path_params["sha256"]
        if not await run_in_threadpool(self.coordinator.has_checkpoint, task, sha):
            raise Refused(Cause.UNKNOWN_BLOB, "the task has no such checkpoint")
        return await self.blob_answer(request, sha, None)

    async def codes(self, request: Request) -> Response:
        self.may_act(request)
        body = await self.body(request, MESSAGE_BYTES)
        message = bodies.parsed(contract.NewCodes, body or b"{}")
        codes = await run_in_threadpool(
            operators.make_codes, self.coordinator, message, self.clock()
        )
        log.info("enrolment codes made", extra={"count": len(codes.codes)})
        return _json(codes)

    # releases

    async def put_release_file(self, request: Request) -> Response:
        self.may_act(request, "application/octet-stream")
        data = await self.body(request, CHECKPOINT_BYTES)
        name = await run_in_threadpool(self.coordinator.blobs.put, bytes(data))
        return _json(contract.Stored(name))

    async def publish(self, request: Request) -> Response:
        self.may_act(request)
        body = await self.body(request, MESSAGE_BYTES)
        message = bodies.parsed(contract.Publication, body)
        release = await run_in_threadpool(releases.publish, self.coordinator, message, self.clock())
        await self.work_out(release.population)
        report = await run_in_threadpool(releases.report_of, self.coordinator, release)
        told = {"population": report.population, "release": report.release, "share": report.share}
        log.info("release %s", report.state, extra=told)
        return _json(report)

    async def work_out(self, population: str | None) -> None:
        """Work out the differences between releases that are missing. What fails leaves releases
        without some of them, which travel whole.
        """
        try:
            await run_in_threadpool(releases.work_out, self.coordinator, population)
        except (Unusable, FedboardError) as error:
            log.error("differences are missing", extra={"error": type(error).__name__})

    async def published(self, request: Request) -> Response:
        self.may_read(request)
        return _json(await run_in_threadpool(releases.reports, self.coordinator))

    async def newest(self, request: Request) -> Response:
        """To anybody, without a name: who never takes part has a strip too."""
        self.address_may(request)
        population = request.query_params.get("population", "default")
        return _json(Named(await run_in_threadpool(releases.named, self.coordinator, population)))

    async def log_head(self, request: Request) -> Response:
        """To anybody: a log that only its server reads keeps it from nothing."""
        self.address_may(request)
        return _json(await run_in_threadpool(self.coordinator.log_head))

    async def log_entries(self, request: Request) -> Response:
        self.address_may(request)
        first = _number(request.query_params, "first", 0) or 0
        asked = _number(request.query_params, "most", MOST_ENTRIES)
        most = min(MOST_ENTRIES if asked is None else asked, MOST_ENTRIES)
        return _json(await run_in_threadpool(self.coordinator.log_entries, first, most))

    async def log_path(self, request: Request) -> Response:
        self.address_may(request)
        first, second = (_number(request.query_params, each, 0) or 0 for each in _SIZES)
        return _json(await run_in_threadpool(self.coordinator.log_path, first, second))

    async def release_file(self, request: Request) -> Response:
        """To anybody, without a name: who runs which release is nobody's business."""
        self.address_may(request)
        name = request.path_params["sha256"]
        if not await run_in_threadpool(releases.served, self.coordinator, name):
            raise Refused(Cause.UNKNOWN_BLOB, "no release that is offered has such a file")

        async def taken(size: int, _: bool) -> None:
            if size and not self.coordinator.blobs.is_hot(name):
                # one byte of it has the whole blob read and hashed
                size = await run_in_threadpool(self.coordinator.blob_size, name)
            if not self.is_this_machine(request):
                address = access.network_of(self.address(request))
                self.not_too_often(self.of_releases.wait_s(address, self.clock(), size))

        return await self.blob_answer(request, name, taken, "public")

    async def healthz(self, _: Request) -> Response:
        helping = self.coordinator.helping
        if helping is None:
            return _json(Health())
        return _json(Health(helper="gives nothing" if helping.standing.problem else "answers"))

    async def readyz(self, request: Request) -> Response:
        """Ready while the store can be written."""
        self.address_may(request)
        try:
            await run_in_threadpool(self.coordinator.probe, self.clock())
        except (Unusable, FedboardError):
            return _problem(
                503,
                Cause.UNAVAILABLE,
                "the database or the blobs cannot be used",
                {"retry-after": "10"},
            )
        return _json(Health())

    async def metrics_text(self, request: Request) -> Response:
        self.may_read(request)
        text = await run_in_threadpool(self.metrics.text)
        return Response(text, headers={"content-type": prometheus_client.CONTENT_TYPE_LATEST})

    async def page(self, request: Request) -> Response:
        """The operator's page."""
        self.may_read(request)

        def render() -> dashboard.Page:
            return dashboard.page(
                overview.read(self.coordinator, self.clock(), self.started_at, self.metrics.refused)
            )

        page = await run_in_threadpool(render)
        headers = {
            "content-security-policy": page.policy,
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
            "referrer-policy": "no-referrer",
        }
        return HTMLResponse(page.html, headers=headers)

    # who may

    async def signed(self, request: Request, limit: int, later: bool = False) -> "_Signed":
        """A request with the proof it carries and the key of the device it names, before its body
        is read and its signature looked at. `later`: of a whole request of an unknown device, the
        key may be looked up with those of its group.
        """
        bodies.checked_length(request, limit)
        self.address_may(request)
        proof = self.claimed(request)
        device = bodies.headers(request).get("fedboard-device", "")
        key = self.keys.get(device)
        if key is None and not (later and proof is not None and bodies.is_whole(request)):
            key = await self.key(device)
        if proof is None:
            raise _bad_signature()
        return _Signed(request.method, bodies.path(request), proof, key, is_new=key is None)

    def claimed(self, request: Request) -> Proof | None:
        """What a request says of who signed it, when and for whom; None if it says no such thing.
        Refused if that is another server, another time or another version.
        """
        headers = bodies.headers(request)
        if access.is_of_version_2(headers):
            raise OtherVersion()
        proof = access.proof(headers)
        if proof is not None and proof.server != self.coordinator.server:
            raise Refused(Cause.WRONG_SERVER)
        if proof is not None and not self.replays.is_of_now(proof.nonce.time, now := self.clock()):
            raise WrongTime(now)
        return proof

    def verify(self, signed: "_Signed") -> None:
        """Refused unless the device signed the request, and this server has not just had it: all
        that a stranger can send is refused before anything is charged to the device.
        """
        proof = signed.proof
        if signed.key is None:
            raise _not_enrolled()
        if not access.is_signed(signed.key, proof, signed.method, signed.path):
            raise _bad_signature()
        if not self.replays.is_new(proof.device, proof.nonce, self.clock()):
            raise Refused(Cause.REPLAYED, "this request has been made before")
        signed.is_verified = True

    def handle(self, group: Sequence["_Asking"]) -> list[Answer]:
        """The answers to a group, in the coordinator's thread."""

        def ask(good: Sequence[_Asking], now: float) -> Sequence[Answer]:
            asked, judged = [each.asked for each in good], [each.judged for each in good]
            return self.coordinator.handle(asked, now, judged)

        return self.answered(group, ask)

    def handle_at_once(self, group: Sequence["_Asking"]) -> list[Answer]:
        """The answers to the first of a group, in the loop: of check-ins as far as they wait for
        nobody.
        """

        def ask(good: Sequence[_Asking], now: float) -> Sequence[Answer]:
            asked = [each.asked for each in good if isinstance(each.asked, CheckingIn)]
            return self.coordinator.handle_at_once(asked, now) if asked else []

        if not all(isinstance(each.asked, CheckingIn) for each in group):
            return []
        return self.answered(group, ask)

    def answered(
        self,
        group: Sequence["_Asking"],
        ask: Callable[[Sequence["_Asking"], float], Sequence[Answer]],
    ) -> list[Answer]:
        """The answers to the first of a group, as far as `ask` gives them: signatures are verified
        first, so that the loop can read on until then.
        """
        answers: list[Answer] = [None] * len(group)
        good, now = [], self.clock()
        self.look_up([each.signed for each in group if each.signed.key is None])
        for place, signed in enumerate(each.signed for each in group):
            try:
                if not signed.is_verified:
                    self.verify(signed)
                self.charge(signed)
                good.append(place)
            except Refused as refused:
                answers[place] = refused
        answered = ask([group[place] for place in good], now) if good else []
        for place, answer in zip(good, answered, strict=False):
            answers[place] = answer
        return answers if len(answered) == len(good) else answers[: good[len(answered)]]

    def look_up(self, signed: Sequence["_Signed"]) -> None:
        """The keys of devices that ask for the first time, of all at once."""
        if signed:
            public = self.coordinator.public_keys([each.proof.device for each in signed])
            for each, key in zip(signed, public, strict=True):
                each.key = None if key is None else bytes.fromhex(key)

    def charge(self, signed: "_Signed") -> None:
        """Let a verified request cost its device what it costs, once. Refused if the device asks
        too often.
        """
        # only what is verified: a stranger must not use up what a device may ask
        if not signed.is_charged:
            device = signed.proof.device
            self.not_too_often(self.of_devices.wait_s(device, self.clock(), signed.cost))
            signed.is_charged = True

    def hold(self, request: Request, held: Counter[str], device: str) -> None:
        """Let a device have one body more under way until this request is over. Refused if it has
        as many as it may.
        """
        most = self.allowed.limits.device_bodies
        if most and held[device] >= most:
            raise TooOften(1.0)
        held[device] += 1
        request.scope.setdefault(HELD, []).append((held, device))

    async def key(self, device: str) -> bytes:
        key = self.keys.get(device)
        if key is None:
            public = await self.key_reads.answer(device)
            if public is None:
                raise _not_enrolled()
            key = self.keys[device] = bytes.fromhex(public)
        return key

    def address(self, request: Request) -> str:
        return request.client.host if request.client else ""

    def is_this_machine(self, request: Request) -> bool:
        """Whether nobody but this machine can have sent it: behind a proxy anybody can, also if the
        operator has named none.
        """
        return (
            not self.allowed.behind_proxy
            and access.is_loopback(self.address(request))
            and not access.is_passed_on(bodies.headers(request))
        )

    def is_from_here(self, request: Request) -> bool:
        """Whether it comes from this machine, and from no page of elsewhere in its browser."""
        return self.is_this_machine(request) and access.names_this_machine(
            bodies.headers(request), self.origins
        )

    def address_may(self, request: Request) -> None:
        if not self.is_this_machine(request):
            address = access.network_of(self.address(request))
            self.not_too_often(self.of_addresses.wait_s(address, self.clock()))

    def not_too_often(self, wait_s: float) -> None:
        if wait_s:
            raise TooOften(wait_s)

    def may_act(self, request: Request, content: str = "application/json") -> None:
        """Refused unless the request carries the operator's token; one that writes also if a page
        of elsewhere sends it, or if its body is not of that content type.
        """
        self.address_may(request)
        headers, is_reading = bodies.headers(request), request.method in ("GET", "HEAD")
        if not is_reading and not access.is_ours(headers, self.origins):
            raise Refused(
                Cause.NOT_THE_OPERATOR,
                "a page of another origin may not write; [access] origins names those that may",
            )
        if not self.allowed.token or not access.is_token(headers, self.allowed.token, is_reading):
            raise Refused(
                Cause.NOT_THE_OPERATOR,
                "expected the operator's token, as a bearer"
                + (" or as a password" if is_reading else ""),
            )
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if not is_reading and has_body and kind != content:
            raise Refused(Cause.MALFORMED, f"content-type: expected {content}")

    def may_read(self, request: Request) -> None:
        allowed = self.allowed
        is_elsewhere = allowed.reads_only_here and not self.is_this_machine(request)
        if is_elsewhere or not allowed.open_to_readers:
            self.may_act(request)
            return
        self.address_may(request)
        # what is open to this machine is not open to a page of elsewhere in its browser
        if self.is_this_machine(request) and not self.is_from_here(request):
            raise Refused(
                Cause.NOT_THE_OPERATOR,
                "expected this machine's address as the host; [access] origins names others",
            )

    # bodies and answers

    async def body(self, request: Request, limit: int) -> bytes | bytearray:
        return await bodies.read(request, limit, self.allowed.limits)

    async def signed_body(self, request: Request, proof: Proof, limit: int) -> bytes | bytearray:
        body = await self.body(request, limit)
        if digest(body) != proof.body_digest:
            raise Refused(Cause.BAD_SIGNATURE, "the body is not the one that was signed")
        return body

    async def largest_update(self) -> int:
        if not self.update_bytes:
            tasks = await run_in_threadpool(self.coordinator.tasks)
            self.update_bytes = {
                stored.task.name: mechanism.largest_report(stored.task)
                for stored in tasks
                if stored.task.kind in CERTIFIED
            }
        return max(self.update_bytes.values(), default=MESSAGE_BYTES)

    async def answer(
        self, signed: "_Signed", asked: Asked, judged: Judged | None = None, size: int = 0
    ) -> Answer:
        answer = await self.groups.answer(_Asking(signed, asked, judged), size)
        if signed.is_new and signed.key is not None:
            self.keys[signed.proof.device] = signed.key
        if isinstance(answer, Refused):
            raise answer
        return answer

    async def blob_answer(
        self,
        request: Request,
        name: str,
        taken: Callable[[int, bool], Any] | None,
        whose: str = "private",
    ) -> Response:
        """A blob or a part of it, once `taken(bytes, whether the last is among them)` has let it
        go. RFC 9110, sections 13 and 14; `whose` cache may keep it, "private" or "public".
        """
        size = await run_in_threadpool(self.coordinator.blob_size, name)
        headers = {
            "etag": f'"{name}"',
            "cache-control": f"{whose}, max-age=31536000, immutable",
            "accept-ranges": "bytes",
        }

        async def let_go(count: int, complete: bool) -> None:
            if taken is not None:
                await taken(count, complete)

        if headers["etag"] in bodies.tags(request.headers.get("if-none-match", "")):
            await let_go(0, False)
            return Response(status_code=304, headers=headers)
        window = bodies.window(request.headers, headers["etag"], size)
        start, end = window or (0, size)
        if start >= end and size:
            await let_go(0, False)
            return _problem(
                416,
                Cause.MALFORMED,
                f"the blob has {size} bytes",
                {"content-range": f"bytes */{size}"},
            )
        await let_go(end - start, end == size)
        status = 200
        if window is not None:
            status, headers["content-range"] = 206, f"bytes {start}-{end - 1}/{size}"

        async def part(at: int) -> bytes | memoryview:
            until = min(end, at + PIECE_BYTES)
            return await run_in_threadpool(self.coordinator.blobs.part, name, at, until)

        if end - start <= PIECE_BYTES:
            return Response(await part(start), status, headers, "application/octet-stream")
        return _Pieces(
            await part(start),
            part,
            range(start, end, PIECE_BYTES)[1:],
            status,
            {**headers, "content-length": str(end - start)},
        )

    async def respond(
        self, request: Request, route: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """What a route answers, errors included."""
        try:
            return await route(request)
        except Exception as error:
            for kind, answer in self.answers_to_errors:
                if isinstance(error, kind):
                    return await answer(request, error)
            raise

    async def refuse(self, request: Request, refused: Any) -> Response:
        self.count(refused.cause)
        headers = {}
        if refused.cause is Cause.NOT_THE_OPERATOR and request.method != "GET":
            # a browser asks for no password that would not be taken
            headers["www-authenticate"] = 'Bearer realm="Fedboard operator"'
        if isinstance(refused, TooOften):
            headers["retry-after"] = str(max(1, round(refused.wait_s)))
        elif isinstance(refused, WrongTime):
            headers["fedboard-time"] = str(int(refused.now))
        elif isinstance(refused, OtherVersion):
            headers["retry-after"] = str(OTHER_VERSION_S)
        if refused.cause is Cause.UNAVAILABLE:
            headers["retry-after"] = "30"
        return _problem(refused.status, refused.cause, refused.detail, headers)

    async def refuse_route(self, _: Request, error: Any) -> Response:
        return _problem(error.status_code, Cause.MALFORMED, error.detail, error.headers)

    async def forget(self, _: Request, __: Any) -> Response:
        # nobody reads it: a phone that lost its network is no error
        return _problem(400, Cause.MALFORMED, "the connection ended inside the body")

    async def unavailable(self, _: Request, error: Any) -> Response:
        """The database or the blobs failed. Nothing was acknowledged, so the device asks again."""
        self.count(Cause.UNAVAILABLE)
        log.error("the store cannot be used", extra={"error": type(error).__name__})
        return _problem(
            503,
            Cause.UNAVAILABLE,
            "the server cannot keep anything just now; try again later",
            {"retry-after": "30"},
        )

    def count(self, cause: Cause) -> None:
        self.metrics.refused[cause.value] = self.metrics.refused.get(cause.value, 0) + 1

    async def tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.tick_s)
            try:
                await run_in_threadpool(self.coordinator.tick, self.clock())
            except Exception as error:
                # a full disk may have room again: the next tick tries the same
                log.exception("the rounds could not go on", extra={"error": type(error).__name__})


@dataclass
class _Signed:
    """A signed request on its way to the coordinator."""

    method: str
    path: str
    proof: Proof
    key: bytes | None  # None: looked up with those of its group, and unknown if it still is None
    is_new: bool = False  # its key is not among those in memory
    is_verified: bool = False
    is_charged: bool = False
    cost: float = 1.0  # beside any other request


@dataclass(frozen=True)
class _Asking:
    """What a signed request asks of the coordinator."""

    signed: _Signed
    asked: Asked
    judged: Judged | None = None  # of a report


class _Route(APIRoute):
    """A route whose function takes the request and gives the response: FastAPI documents it, and
    its parsing is left out.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        if not self.param_convertors:
            return self.endpoint

        async def route(request: Request) -> Response:
            for name, value in request.path_params.items():
                pattern, cause = NAMES[name]
                if not pattern.fullmatch(value):
                    raise Refused(cause, "there is nothing of that name")
            response: Response = await self.endpoint(request)
            return response

        return route


class _Pieces(Response):
    """A blob that is read as it is sent."""

    def __init__(
        self,
        first: bytes | memoryview,
        part: Callable[[int], Awaitable[bytes | memoryview]],
        rest: Sequence[int],
        status: int,
        headers: Mapping[str, str],
    ):
        super().__init__(b"", status, headers, "application/octet-stream")
        self._first, self._part, self._rest = first, part, rest

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it piece by piece, each once the peer has taken most of the one before."""
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        piece, over = self._first, scope.get(connections.IN_SCOPE)
        for at in self._rest:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            if over is not None and over.is_lost:
                return
            piece = await self._part(at)
        await send({"type": "http.response.body", "body": piece})


class TooOften(Refused):
    """A device or an address has asked more often than it may."""

    def __init__(self, wait_s: float):
        super().__init__(Cause.TOO_MANY_REQUESTS, f"ask again in {max(1, round(wait_s))} s")
        self.wait_s = wait_s


class WrongTime(Refused):
    """A request was signed at another time than the server's clock shows."""

    def __init__(self, now: float):
        super().__init__(Cause.WRONG_TIME, f"expected a request signed at about {int(now)}")
        self.now = now


class OtherVersion(Refused):
    """A device speaks a version of the protocol that named neither server nor time."""

    def __init__(self) -> None:
        super().__init__(
            Cause.UNSUPPORTED_VERSION,
            f"expected version {VERSION} of the protocol; update the device's software",
        )


class _Api(FastAPI):
    """FastAPI, but its layers are inside of what is observed: they add most to what is short."""

    observed: "_Observed"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.observed(scope, receive, send)


class _Observed:
    """Times every request, and answers the most frequent one itself. ASGI: bodies stream."""

    def __init__(self, app: Any, service: _Service):
        self._app, self._service, self._metrics = app, service, service.metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def observing(message: Mapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        often = scope["path"] == CHECK_IN and scope["method"] == "POST"
        try:
            if often:
                request = Request(scope, receive, send)
                response = await self._service.respond(request, self._service.check_in)
                status, over = response.status_code, scope.get(connections.IN_SCOPE)
                if over is None or not over.reply(
                    scope, status, response.raw_headers, response.body
                ):
                    await response(scope, receive, send)
            else:
                await self._app(scope, receive, observing)
        finally:
            for held, device in scope.get(HELD, ()):
                held[device] -= 1
                if not held[device]:
                    del held[device]
            seconds, route = time.perf_counter() - began, scope.get("route")
            # parameters by name: the log holds no device's work
            path = CHECK_IN if often else getattr(route, "path", "other")
            self._metrics.answered(path, status, seconds)
            level = logging.ERROR if status >= 500 else logging.DEBUG
            if log.isEnabledFor(level):
                told = {
                    "method": scope["method"],
                    "route": path,
                    "status": status,
                    "ms": round(1000 * seconds, 1),
                }
                log.log(level, "request", extra=told)


# requests


def _bad_signature() -> Refused:
    return Refused(
        Cause.BAD_SIGNATURE,
        "the signature does not fit the device, the request, its body or what its headers say",
    )


def _not_enrolled() -> Refused:
    return Refused(Cause.UNKNOWN_DEVICE, "the device is not enrolled")


_SIZES = "first", "second"


def _number(asked: Mapping[str, str], name: str, default: int | None) -> int | None:
    """A number of a query. Refused (MALFORMED) if it is none."""
    text = asked.get(name)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text):
        raise Refused(Cause.MALFORMED, f"{name}: expected a whole number")
    return int(text)


# answers


def _json(message: Any, status: int = 200, headers: Any = None) -> Response:
    if isinstance(message, Assignment) and message.rules == 1:  # as earlier devices read it
        message = {name: value for name, value in vars(message).items() if name != "rules"}
    return Response(config.to_json(message), status, headers, "application/json")


def _problem(status: int, cause: Cause, detail: str, headers: Any = None) -> Response:
    if status == 401 and "www-authenticate" not in (headers or {}):
        scheme = (
            'Basic realm="Fedboard operator"'
            if cause is Cause.NOT_THE_OPERATOR
            else "Fedboard-Signature"
        )
        headers = {**(headers or {}), "www-authenticate": scheme}
    # what was sent may be repeated in it, and a device takes no more than this
    told = detail.encode("ascii", "backslashreplace").decode()[: SENTENCE.most]
    return _json(Problem(cause, printable(told)), status, headers)


SIGNED = (401, 408, 409, 413, 421, 426, 429, 503)  # any signed request may be answered so
_READING = {401: {"model": Problem}, 429: {"model": Problem}, 503: {"model": Problem}}
_METRICS = {
    "responses": {200: {"content": {prometheus_client.CONTENT_TYPE_LATEST: {}}}, **_READING}
}
_documented = openapi.documented


def _operators(answer: Any, *problems: int, **options: Any) -> dict[str, Any]:
    return _documented(answer, 401, 429, 503, *problems, is_operators=True, **options)
