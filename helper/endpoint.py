"""HTTP in front of the desk: it checks tokens and sizes, and turns bytes into messages and back.

It decides nothing else. The routes are those of `device_runtime.helper_wire`, with /healthz, and
/metrics for whoever has the token. Bodies, keys and tokens never reach a log line.
"""

import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import prometheus_client
import uvicorn
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from device_runtime import config, helper_wire
from device_runtime.errors import ConfigError, FedboardError
from device_runtime.helper_wire import (
    AnswerTaken,
    HeadAsked,
    HelperProblem,
    KeysAsked,
    Named,
    Refusal,
    Registration,
)
from device_runtime.shown import printable
from device_runtime.terms import MOST_DEVICES
from device_runtime.wire import SENTENCE
from helper.desk import Desk
from helper.store import Unusable
from server import access, bodies, connections, memory
from server.access import Buckets
from server.requests import Refused
from server.settings import Limits

log = logging.getLogger("fedboard.server.helper")

MESSAGE_BYTES = 65_536  # largest body but that of a Named
MOST_BYTES = helper_wire.most_bytes(MOST_DEVICES)  # of that
RETRY_S = 10  # until a leader asks again that was refused in passing
_SECONDS = (0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

T = TypeVar("T")
Answer = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Access:
    """Who is let in to what. The token is the leader's; nobody is one without it."""

    token: str = field(repr=False)
    limits: Limits = field(default_factory=Limits)


def app(desk: Desk, allowed: Access, clock: Callable[[], float] = time.time) -> Starlette:
    """The routes of one helper. `clock` gives the seconds the desk is told."""
    service = _Service(desk, allowed, clock)
    routes = (
        ("GET", "/v1/helper", service.report),
        ("POST", "/v1/tasks", service.register),
        ("POST", "/v1/seal-keys", service.seal_keys),
        ("POST", "/v1/answers", service.answer),
        ("POST", "/v1/answers/done", service.taken),
        ("POST", "/v1/heads", service.countersign),
        ("GET", "/healthz", service.healthz),
        ("GET", "/metrics", service.metrics),
    )
    api = Starlette(
        routes=[Route(path, route, methods=[method]) for method, path, route in routes],
        exception_handlers={
            _No: service.refuse,
            Refused: service.refuse_body,
            HTTPException: service.refuse_route,
            ClientDisconnect: service.forget,
            Unusable: service.unavailable,
            FedboardError: service.unavailable,
        },
    )
    api.state.service = service
    return api


def server(api: Starlette, **options: Any) -> uvicorn.Server:
    """What answers for an app of ours, for a caller that ends it by `should_exit`. Options are
    uvicorn's, such as ssl_certfile.
    """
    limits = api.state.service.allowed.limits
    settings = uvicorn.Config(api, **{**connections.SETTINGS, "lifespan": "off", **options})
    return connections.Server(settings, connections.of(limits), limits)


def serve(api: Starlette, sock: socket.socket, **options: Any) -> None:
    """Answer on a bound socket until SIGINT or SIGTERM; requests under way are finished first."""
    memory.give_back_large_blocks()
    server(api, **options).run(sockets=[sock])


class _No(Exception):
    def __init__(self, problem: HelperProblem, status: int | None = None):
        super().__init__(problem.refusal)
        self.problem, self.status = problem, status or problem.refusal.status


class _Service:
    """What the routes share."""

    def __init__(self, desk: Desk, allowed: Access, clock: Callable[[], float]):
        self.desk, self.allowed, self.clock = desk, allowed, clock
        self.of_addresses = Buckets(allowed.limits.address_burst, allowed.limits.address_per_s)
        self.room = bodies.Room(allowed.limits.bodies_bytes)
        self.registry = prometheus_client.CollectorRegistry()
        self.seconds = prometheus_client.Histogram(
            "fedboard_helper_answer_seconds",
            "Time to find the mask of a sum, or why there is none.",
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.registry.register(_Counts(desk))

    # the contract

    async def report(self, request: Request) -> Response:
        """Whom devices seal to; anybody may ask."""
        self.address_may(request)
        return _json(await run_in_threadpool(self.desk.report))

    async def register(self, request: Request) -> Response:
        asked = await self.asked(request, Registration)
        done = await run_in_threadpool(self.desk.register, asked, self.clock())
        return self.told(done, asked.task, 0, "a task was registered")

    async def seal_keys(self, request: Request) -> Response:
        asked = await self.asked(request, KeysAsked)
        return self.told(await run_in_threadpool(self.desk.seal_keys, asked), "", asked.first, "")

    async def answer(self, request: Request) -> Response:
        asked = await self.asked(request, Named, MOST_BYTES)
        task = await run_in_threadpool(self.desk.task_name, asked.task_id)
        began = time.perf_counter()
        body = await run_in_threadpool(self.desk.answer, asked, self.clock())
        self.seconds.observe(time.perf_counter() - began)
        if isinstance(body, HelperProblem):
            return self.told(body, task, asked.round, "")
        told = {"task": task, "round": asked.round, "count": len(asked.reports)}
        log.info("a round was answered", extra=told)
        return Response(body, media_type="application/octet-stream")

    async def taken(self, request: Request) -> Response:
        asked = await self.asked(request, AnswerTaken)
        return self.told(await run_in_threadpool(self.desk.taken, asked), "", asked.round, "")

    async def countersign(self, request: Request) -> Response:
        asked = await self.asked(request, HeadAsked)
        done = await run_in_threadpool(self.desk.countersign, asked)
        if isinstance(done, HelperProblem):
            why = {"error": done.refusal.value}
            log.error("a head of a leader's log was not signed", extra=why)
            raise _No(done)
        return _json(done)

    # beside it

    async def healthz(self, request: Request) -> Response:
        """Whether anything can be kept."""
        self.address_may(request)
        await run_in_threadpool(self.desk.require_usable)
        return _json({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        self.may_act(request)
        text = await run_in_threadpool(prometheus_client.generate_latest, self.registry)
        return Response(text, headers={"content-type": prometheus_client.CONTENT_TYPE_LATEST})

    # who may

    def address_may(self, request: Request) -> None:
        host = request.client.host if request.client else ""
        if access.is_loopback(host):
            return
        wait_s = self.of_addresses.wait_s(access.network_of(host), self.clock())
        if wait_s:
            raise _No(HelperProblem(Refusal.UNAVAILABLE, "too many requests"), 429)

    def may_act(self, request: Request) -> None:
        """Refused unless the request carries the leader's token."""
        self.address_may(request)
        if not access.is_token(bodies.headers(request), self.allowed.token, is_reading=False):
            self.desk.refused(Refusal.UNKNOWN_LEADER)
            raise _No(
                HelperProblem(
                    Refusal.UNKNOWN_LEADER, "expected the token of this helper, as a bearer"
                )
            )

    async def asked(self, request: Request, kind: type[T], limit: int = MESSAGE_BYTES) -> T:
        """The message in a request's body, once it is known who sends it."""
        self.may_act(request)
        limits, length = self.allowed.limits, bodies.checked_length(request, limit)
        async with self.room.of(limit if length is None else length, limits.body_s) as coming:
            body = await bodies.read_into(coming, self.room, request, limit, limits)
            try:
                return await run_in_threadpool(config.from_json, kind, body, kind.__name__, limit)
            except ConfigError as error:
                self.desk.refused(Refusal.MALFORMED)
                raise _No(HelperProblem(Refusal.MALFORMED, str(error))) from None

    # answers

    def told(self, answer: Any, task: str, round: int, event: str) -> Response:
        """What the desk says, and a line of log."""
        told: dict[str, object] = {"round": round} | ({"task": task} if task else {})
        if isinstance(answer, HelperProblem):
            why = {"error": answer.refusal.value, "count": len(answer.devices)}
            log.warning("a leader was refused", extra=told | why)
            raise _No(answer)
        if event:
            log.info(event, extra=told)
        return _json(answer)

    async def refuse(self, _: Request, no: Any) -> Response:
        return _problem(no.problem, no.status)

    async def refuse_body(self, _: Request, refused: Any) -> Response:
        passing = refused.status in (408, 503)
        refusal = Refusal.UNAVAILABLE if passing else Refusal.MALFORMED
        self.desk.refused(refusal)
        return _problem(HelperProblem(refusal, refused.detail), refused.status)

    async def refuse_route(self, _: Request, error: Any) -> Response:
        problem = HelperProblem(Refusal.MALFORMED, error.detail)
        return _problem(problem, error.status_code, error.headers)

    async def forget(self, _: Request, __: Any) -> Response:
        problem = HelperProblem(Refusal.MALFORMED, "the connection ended inside the body")
        return _problem(problem, 400)

    async def unavailable(self, _: Request, error: Any) -> Response:
        """The database or the keys failed: nothing was answered, so the leader asks again."""
        self.desk.refused(Refusal.UNAVAILABLE)
        log.error("nothing can be kept", extra={"error": type(error).__name__})
        problem = HelperProblem(
            Refusal.UNAVAILABLE, "the helper can keep nothing just now; try again later"
        )
        return _problem(problem, 503)


class _Counts:
    """What the desk counts, for Prometheus."""

    def __init__(self, desk: Desk):
        self._desk = desk

    def collect(self) -> Iterable[Any]:
        answered, reports = self._desk.counts()
        yield CounterMetricFamily("fedboard_helper_answers", "Rounds answered.", value=answered)
        yield CounterMetricFamily(
            "fedboard_helper_reports", "Reports whose masks were summed.", value=reports
        )
        refused = CounterMetricFamily(
            "fedboard_helper_refusals", "Requests refused, by why.", labels=["refusal"]
        )
        for refusal in Refusal:
            refused.add_metric([refusal.value], self._desk.refusals[refusal.value])
        yield refused
        yield from _budgets(self._desk)


def _budgets(desk: Desk) -> Iterable[Any]:
    """What tasks whose sums carry noise have spent."""
    told = {
        "rho": "Zero-concentrated differential privacy that the sums of a task have spent.",
        "epsilon": "Epsilon that the sums of a task have spent, at its delta.",
        "epsilon_budget": "Epsilon that the sums of a task may spend, at its delta.",
        "noised_sums": "Sums of a task that carry noise.",
        "noise_beginnings": "Times that the noise of a task began, its first with them.",
    }
    families = {
        name: GaugeMetricFamily(f"fedboard_helper_{name}", about, labels=["task", "task_id"])
        for name, about in told.items()
    }
    for task, spent in desk.budgets():
        assert task.noise is not None
        values = (
            spent.rho,
            spent.epsilon,
            task.noise.epsilon,
            spent.happened.sums,
            len(spent.began),
        )
        for family, value in zip(families.values(), values, strict=True):
            family.add_metric([task.task, task.task_id[:8]], value)
    yield from families.values()


def _json(message: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(config.to_json(message), status, headers, "application/json")


def _problem(
    problem: HelperProblem, status: int, headers: Mapping[str, str] | None = None
) -> Response:
    headers = dict(headers or {})
    if status == 401:
        headers["www-authenticate"] = 'Bearer realm="Fedboard helper"'
    if problem.refusal.is_passing:
        headers["retry-after"] = str(RETRY_S)
    # what was sent may be repeated in it
    told = problem.detail.encode("ascii", "backslashreplace").decode()[: SENTENCE.most]
    return _json(replace(problem, detail=printable(told)), status, headers)
