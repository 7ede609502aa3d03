"""A fleet: many devices against a real coordinator under a virtual clock. Days pass in seconds; the
funnel, the rounds and the bytes are real.

Each device checks in when its retry window says so, downloads and uploads at its own bandwidth,
trains at its own speed, and gives its work back when its trace says that it was unplugged, left its
WiFi or was picked up. The server's side is the real one: routes, signatures, store and sums. The
device's is shorter than a phone's turn: it keeps no half-done work and takes no evaluation.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import calls, chain, conditions, config, update, weights
from device_runtime.causes import Cause
from device_runtime.transport import Reply, Send
from device_runtime.turn import FineTuned, Train, Trainer
from device_runtime.update import encoded_bytes
from device_runtime.weights import Checkpoint
from device_runtime.wire import Ack, Assignment, CheckIn, Plan, RoundReports, forbidden_by
from fleet.clock import Clock
from fleet.population import DAY_S, Device, trace

SPREAD_S = 3600.0  # into which all first check-ins fall
LEAST_RETRY_S = 1.0  # a server that names no retry time is asked again after this


@dataclass(frozen=True)
class LocalTraining:
    """What the devices train on, and how."""

    rows: Callable[[Device], np.ndarray]  # a device's examples, int32 [n, length + 1]
    tokenizer: str  # hash of their vocabulary
    train: Trainer  # `finetune` is what a phone has
    graph: bytes = b""  # what `train` is handed: a bundle's train graph


@dataclass(frozen=True)
class Result:
    """What came of a simulation. Equal inputs give equal results."""

    reports: RoundReports
    seconds: float  # virtual, until the end or until the server had no round left
    check_ins: tuple[int, ...]  # of each device, by index
    counted: tuple[int, ...]  # updates of each device that counted


@contextlib.contextmanager
def asgi(app: Any) -> Iterator[Send]:
    """The way to a web application in this process: no socket, one request at a time. Its
    background tasks do not run.
    """
    with asyncio.Runner() as loop:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")

        def send(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
            response = loop.run(client.request(method, path, content=body, headers=dict(headers)))
            return Reply(response.status_code, dict(response.headers), response.content)

        try:
            yield send
        finally:
            loop.run(client.aclose())


def stand_in(graph: bytes, action: Train, may_continue: Callable[[], bool]) -> FineTuned:
    """A stand-in for training, for populations too large to train: a random delta of a tenth of the
    clipping norm. It learns nothing.
    """
    delta = {
        name: action.rng.standard_normal(array.shape, np.float32)
        for name, array in sorted(action.weights.items())
    }
    factor = np.float32(0.1 * action.plan.clipping_norm / weights.norm(delta))
    scaled = {name: factor * array for name, array in delta.items()}
    return FineTuned(scaled, _batches(action.rows, action.plan), 0.0, 0.0)


def simulate(
    send: Send,
    clock: Clock,
    devices: Sequence[Device],
    training: LocalTraining,
    days: int,
    seed: int,
) -> Result:
    """Let `days` pass for the devices and the server behind `send`, which must run on the same
    clock. Ends early when it has no round left.
    """
    fleet = _Fleet(send, clock, training, seed)
    start, phones = clock.now(), []
    for device in devices:
        phone = _Phone(device, conditions.parse(trace(device, days, seed)), fleet)
        phones.append(phone)
        # 0 to 2 are its trace's
        first = np.random.default_rng([seed, device.index, 3]).uniform(0, SPREAD_S)
        clock.at(start + first, phone.check_in)
    clock.run_until(start + days * DAY_S, done=lambda: fleet.over)
    return Result(
        calls.all_rounds(send),
        clock.now() - start,
        tuple(phone.check_ins for phone in phones),
        tuple(phone.counted for phone in phones),
    )


class _Fleet:
    """What all devices of a simulation share."""

    def __init__(self, send: Send, clock: Clock, training: LocalTraining, seed: int):
        self.send, self.clock, self.training, self.seed = send, clock, training, seed
        self.over = False
        self._newest = ("", Checkpoint({}))

    def checkpoint(self, sha256: str, data: bytes) -> Checkpoint:
        """The parsed checkpoint: one copy for all devices that train from it."""
        if self._newest[0] != sha256:
            self._newest = (sha256, weights.from_bytes(data))
        return self._newest[1]


class _Phone:
    """One device: each of its methods is an event on the clock and plans the next one."""

    def __init__(self, device: Device, source: conditions.Source, fleet: _Fleet):
        self.device, self._source, self._fleet = device, source, fleet
        self.check_ins = self.counted = 0
        self._key = Ed25519PrivateKey.from_private_bytes(
            hashlib.sha256(f"fedboard-fleet {fleet.seed} {device.index}".encode()).digest()
        )
        self._signer = calls.meet(fleet.send, self._key, fleet.clock.now)
        calls.enrol(fleet.send, self._signer)
        # about an assignment, once it has one
        self._send = calls.signed(fleet.send, self._signer)

    def check_in(self) -> None:
        """Ask for work, and plan what follows from the answer."""
        now, rows = self._fleet.clock.now(), self._fleet.training.rows(self.device)
        self._send = calls.signed(self._fleet.send, self._signer)
        answer = calls.check_in(
            self._send,
            CheckIn(
                self._source(now),
                len(rows),
                self._fleet.training.tokenizer,
                device_class=self.device.kind,
            ),
        )
        self.check_ins += 1
        if isinstance(answer, Assignment):
            self._start(answer, rows)
        elif answer.cause is Cause.NO_ROUND:
            self._fleet.over = True
        else:
            self._come_back(answer.retry_in_s)

    def _start(self, assignment: Assignment, rows: np.ndarray) -> None:
        now, device = self._fleet.clock.now(), self.device
        self._send = calls.signed(self._fleet.send, self._signer, assignment.task, assignment.round)
        plan = config.from_json(Plan, calls.fetch(self._send, assignment.plan), "plan")
        data = calls.fetch(self._send, assignment.checkpoint)
        checkpoint = self._fleet.checkpoint(assignment.checkpoint, data)
        rows = rows[-plan.max_rows :]
        training = now + _seconds(len(data), device.down_mbps)
        ends = [training + device.batch_s * batch for batch in range(_batches(rows, plan) + 1)]
        dimension = sum(array.size for array in checkpoint.weights.values())
        ends.append(ends[-1] + _seconds(encoded_bytes(dimension, plan.bits), device.up_mbps))
        lost = next((time for time in ends if forbidden_by(self._source(time)) is not None), None)
        if lost is None:
            self._fleet.clock.at(ends[-1], lambda: self._report(assignment, plan, checkpoint, rows))
        else:
            self._fleet.clock.at(lost, lambda: self._abandon(assignment, Cause.CONDITION_LOST))

    def _report(
        self, assignment: Assignment, plan: Plan, checkpoint: Checkpoint, rows: np.ndarray
    ) -> None:
        rng = np.random.default_rng([self._fleet.seed, self.device.index, assignment.round])
        action = Train(checkpoint.weights, rows, plan, rng)
        training = self._fleet.training
        tuned = training.train(training.graph, action, lambda: True)
        if tuned.stopped is not None:
            self._abandon(assignment, tuned.stopped)
            return
        answer = calls.upload(
            self._send,
            assignment.assignment,
            update.of_delta(tuned.delta, assignment.round, chain.terms_of(assignment), rng),
        )
        self.counted += isinstance(answer, Ack) and answer.counted
        self._come_back(answer.retry_in_s)

    def _abandon(self, assignment: Assignment, cause: Cause) -> None:
        self._come_back(calls.abandon(self._send, assignment.assignment, cause).retry_in_s)

    def _come_back(self, retry_in_s: float) -> None:
        self._fleet.clock.at(
            self._fleet.clock.now() + max(LEAST_RETRY_S, retry_in_s), self.check_in
        )


def _batches(rows: np.ndarray, plan: Plan) -> int:
    return plan.epochs * -(-len(rows) // plan.batch_size)


def _seconds(size: int, mbps: float) -> float:
    """Seconds to move `size` bytes."""
    return 8 * size / (1e6 * mbps)
