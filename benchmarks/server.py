"""The server's benchmarks over loopback, one server process each.

Signed check-ins (the first ask of a device, its second, and one that is refused) beside a bare
FastAPI endpoint, counted updates beside reading and discarding the same bodies, downloads beside a
file response, a thousand devices at once, and memory over ten thousand updates.

.venv/bin/python -m benchmarks.server [--updates 10000] [--devices 1000] [--connections 64,256]
"""

import argparse
import asyncio
import contextlib
import functools
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import chain, config, quantize, signing, update
from device_runtime.causes import Cause
from device_runtime.terms import Aggregation
from device_runtime.weights import Checkpoint, digest
from device_runtime.wire import DAY_S, Assignment, CheckIn, Conditions, Plan
from server import operators, tasks
from server.coordinator import Coordinator, open_folder
from server.requests import CheckingIn
from server.rounds import Rules
from server.task import TaskSettings, assignment_name, terms

T = TypeVar("T")
DOWNLOADING = 32  # connections
SMALL = 16_384  # bytes of a body that go out with its head
ROOT = Path(__file__).parents[1]
TOKENIZER = "70" * 32
READY = CheckIn(Conditions(True, True, True), examples=50, tokenizer=TOKENIZER)
PARAMETERS = 1_421_766  # of the size gboard
WINDOW_S = 20.0  # in which the devices of the crowd ask


Sent = tuple[bytes, bytes]  # head and body of a request


@functools.lru_cache(maxsize=64)
def _digest(body: bytes) -> str:
    return digest(body)  # of one body for all devices: the load is not what is measured


@dataclass(frozen=True)
class Device:
    """A device of the load: its key and its name."""

    key: Ed25519PrivateKey
    name: str
    server: str  # it signs for

    def request(self, method: str, path: str, body: bytes, task: str = "", round: int = 0) -> bytes:
        """A signed request as bytes of HTTP/1.1."""
        return b"".join(self.sent(method, path, body, task, round))

    def sent(self, method: str, path: str, body: bytes, task: str = "", round: int = 0) -> Sent:
        """The same, head and body."""
        claim = signing.Claim(
            _digest(body), task, round, os.urandom(16).hex(), self.server, int(time.time())
        )
        signed = signing.headers_of(self.key, self.name, method, path, claim)
        lines = [
            f"{method} {path} HTTP/1.1",
            "host: bench",
            f"content-length: {len(body)}",
            "content-type: application/json",
            *(f"{name}: {value}" for name, value in signed.items()),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n", body


class Connection(asyncio.Protocol):
    """Sends requests one after the other; each when the answer to the one before is whole."""

    def __init__(self, requests: Iterator[Sent], done: asyncio.Future):
        self.requests, self.done = requests, done
        self.statuses: dict[int, int] = {}
        self.latencies: list[float] = []
        self.received = 0
        self._buffer = bytearray()
        self._left = 0

    def connection_made(self, transport) -> None:
        """Be ready."""
        self.transport = transport

    def next(self) -> None:
        """Send the next request; after the last one, be done."""
        request = next(self.requests, None)
        if request is None:
            self.transport.close()
            if not self.done.done():
                self.done.set_result(None)
            return
        self._sent = time.perf_counter()
        head, body = request
        self.transport.write(head if len(body) > SMALL else head + body)
        if len(body) > SMALL:
            self.transport.write(body)

    def data_received(self, data: bytes) -> None:
        """Take in an answer, and send the next request after its end."""
        self.received += len(data)
        if self._left:
            self._left -= len(data)
            if self._left <= 0:
                self._answered()
            return
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end]).lower()
        length = (
            int(head.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
            if b"content-length: " in head
            else 0
        )
        self._status = int(head[9:12])
        self._left = length - (len(self._buffer) - end - 4)
        self._buffer.clear()
        if self._left <= 0:
            self._answered()

    def _answered(self) -> None:
        self._left = 0
        self.statuses[self._status] = self.statuses.get(self._status, 0) + 1
        self.latencies.append(time.perf_counter() - self._sent)
        self.next()

    def connection_lost(self, error) -> None:
        """Be done, with an error if an answer is missing."""
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server closed the connection"))


@dataclass(frozen=True)
class Load:
    """What a load of requests met with."""

    per_s: float
    statuses: dict[int, int]
    p99_ms: float
    received: int
    cpu_s: float  # of the server


async def _load(port: int, connections: Sequence[Iterator[Sent]]) -> tuple[list[Connection], float]:
    loop = asyncio.get_running_loop()
    opened = []
    for requests in connections:
        done = loop.create_future()
        make = functools.partial(Connection, requests, done)
        _, protocol = await loop.create_connection(make, "127.0.0.1", port)
        opened.append(protocol)
    began = time.perf_counter()  # all are open: what is measured are requests
    for protocol in opened:
        protocol.next()
    await asyncio.gather(*(protocol.done for protocol in opened))
    return opened, time.perf_counter() - began


def _run(load: Coroutine[Any, Any, T]) -> T:
    """The result of a load, on the quickest loop: it shares the machine with the server."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(load)


def load(server: "Server", requests: Sequence[Sent], connections: int) -> Load:
    """All requests, over so many connections: whoever is free takes the next."""
    return load_lazily(server, iter(requests), len(requests), connections)


def _load_next(server: "Server", batches: list[list[Sent]], connections: int) -> Load:
    return load(server, batches.pop(), connections)


def load_lazily(server: "Server", requests: Iterator[Sent], count: int, connections: int) -> Load:
    """As `load`, but requests are signed as they are sent: ten thousand bodies do not fit into
    memory.
    """
    before = server.cpu_s()
    opened, seconds = _run(_load(server.port, [iter(requests)] * connections))
    latencies = sorted(itertools.chain.from_iterable(protocol.latencies for protocol in opened))
    received = sum(protocol.received for protocol in opened)
    return Load(
        count / seconds,
        _statuses(opened),
        1000 * latencies[int(0.99 * (len(latencies) - 1))],
        received,
        server.cpu_s() - before,
    )


def _statuses(opened: Sequence[Connection]) -> dict[int, int]:
    """Answers by status."""
    counts: dict[int, int] = {}
    for protocol in opened:
        for status, count in protocol.statuses.items():
            counts[status] = counts.get(status, 0) + count
    return counts


class Server:
    """A server process under load."""

    def __init__(self, process: subprocess.Popen, port: int):
        self.process, self.port = process, port

    def cpu_s(self) -> float:
        """Seconds of processor time it has used."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def memory_mb(self) -> float:
        """Memory it holds now."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20


@contextlib.contextmanager
def running(kind: str, folder: Path) -> Iterator[Server]:
    """A server of benchmarks/server_process.py until the block ends."""
    command = [sys.executable, "-m", "benchmarks.server_process", kind, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = process.stdout.readline() if process.stdout else ""
            yield Server(process, int(said))
        finally:
            process.terminate()
            process.wait()


def population(coordinator: Coordinator, count: int) -> list[Device]:
    """So many enrolled devices."""
    devices = []
    with coordinator.store.transaction() as rows:
        for number in range(count):
            key = Ed25519PrivateKey.from_private_bytes((number + 1).to_bytes(32, "big"))
            public = signing.public_hex(key)
            rows.enrol(signing.name_of(public), public, 0.0)
            devices.append(Device(key, signing.name_of(public), coordinator.server))
    return devices


def new(
    folder: Path, rules: Rules, plan: Plan, devices: int, parameters: int = 50
) -> tuple[Coordinator, list[Device]]:
    """A coordinator with a training task, and its devices."""
    store, blobs = open_folder(folder)
    weights = {"weights": np.zeros(parameters, np.float32)}
    tasks.create(
        Coordinator(store, blobs),
        TaskSettings(plan, rules=rules, seed=1, aggregation=Aggregation.PLAIN),
        time.time(),
        Checkpoint(weights, 0, "", TOKENIZER),
    )
    coordinator = Coordinator(store, blobs)
    proposed = operators.round_key(coordinator, "default")
    certificate = proposed.certified(Ed25519PrivateKey.generate(), 100_000, time.time() + DAY_S)
    operators.certify(coordinator, "default", certificate, time.time())
    return coordinator, population(coordinator, devices)


def asked(coordinator: Coordinator, devices: Sequence[Device], now: float) -> None:
    """Let every device have a ticket since `now`. Raises SystemExit if one of them gets none."""
    for start in range(0, len(devices), 256):
        asking = [CheckingIn(each.name, READY) for each in devices[start : start + 256]]
        causes = {getattr(answer, "cause", None) for answer in coordinator.handle(asking, now)}
        if causes != {Cause.SELECTING}:
            raise SystemExit(f"expected a ticket for every device, found {causes}")


def assigned(coordinator: Coordinator, devices: Sequence[Device]) -> list[Assignment]:
    """Work for every device. Raises SystemExit if one of them gets none."""
    answers = coordinator.handle([CheckingIn(each.name, READY) for each in devices], time.time())
    works = [answer for answer in answers if isinstance(answer, Assignment)]
    if len(works) < len(devices):
        raise SystemExit(f"expected {len(devices)} assignments, found {len(works)}")
    return works


def ratio(
    name: str,
    ours: Callable[[], Load],
    theirs: Callable[[], Load],
    unit: str,
    bar: float,
    repeats: int,
) -> None:
    """The two side by side, several times, alternating; the median of the ratios."""
    pairs = []
    for _ in range(repeats):
        theirs_now, ours_now = theirs(), ours()
        for each in (ours_now, theirs_now):
            if set(each.statuses) - {200}:
                raise SystemExit(f"{name}: expected answers 200, found {each.statuses}")
        pairs.append((ours_now, theirs_now))
        print(
            f"  ours {ours_now.per_s:8.0f} {unit}, p99 {ours_now.p99_ms:6.1f} ms, server "
            f"{ours_now.cpu_s:5.2f} CPU s;"
            f" bare {theirs_now.per_s:8.0f} {unit}, p99 {theirs_now.p99_ms:6.1f} ms, server "
            f"{theirs_now.cpu_s:5.2f} CPU s",
            flush=True,
        )
    median = statistics.median(ours_now.per_s / theirs_now.per_s for ours_now, theirs_now in pairs)
    verdict = "met" if median >= bar else "MISSED"
    print(f"{name}: {median:.2f} of the bare rate (bar {bar}): {verdict}", flush=True)


def _batched(devices: Sequence[Device], count: int) -> list[Sequence[Device]]:
    return [devices[start : start + count] for start in range(0, len(devices), count)]


# what check-ins are measured for: the rules, and whether the devices have asked before
ASKS = {
    "check-ins, a ticket": (
        Rules(report_goal=10**5, over_selection=1.0, selection_s=1e5, reporting_s=1e6),
        False,
    ),
    "check-ins, back and assigned": (
        Rules(
            report_goal=10**5,
            over_selection=1.0,
            selection_s=50,
            claim_s=1e6,
            reporting_s=1e6,
            min_reports=1,  # its window draws however many there are
        ),
        True,
    ),
    "check-ins, round full": (
        Rules(report_goal=1, over_selection=1.0, selection_s=0, reporting_s=1e6, min_reports=1),
        False,
    ),
}


def check_ins(folder: Path, count: int, repeats: int, connections: int) -> None:
    """Check-ins a second: the first ask of a device, its second, and one for which no place is
    left. No device asks twice: it would come before its time.
    """

    def body(device: Device) -> bytes:
        """No two devices say the same for long: nothing is answered out of a cache of messages."""
        return config.to_json(replace(READY, examples=50 + int(device.name[:3], 16)))

    for number, (name, (rules, before)) in enumerate(ASKS.items()):
        place = folder / str(number)
        coordinator, devices = new(place, rules, Plan(clipping_norm=1.0), count * (repeats + 1) + 1)
        if before:
            asked(coordinator, devices, time.time() - 100)
        else:  # fills a round of one
            coordinator.handle([CheckingIn(devices[0].name, READY)], time.time())
        coordinator.close()
        with running("fedboard", place) as ours, running("bare", place) as theirs:
            once = [device.sent("POST", "/v1/check-in", body(device)) for device in devices[:count]]
            load(theirs, once[:200], connections)
            batches = [
                [device.sent("POST", "/v1/check-in", body(device)) for device in each]
                for each in _batched(devices[1:], count)
            ]
            load(ours, batches.pop(), connections)
            ratio(
                name,
                functools.partial(_load_next, ours, batches, connections),
                functools.partial(load, theirs, once, connections),
                "a second",
                0.5,
                repeats,
            )


def updates(folder: Path, count: int, repeats: int, connections: int) -> None:
    """Updates counted a second, and the memory that takes."""
    rules = Rules(report_goal=10**5, over_selection=1.0, selection_s=0, reporting_s=1e6)
    plan = Plan(clipping_norm=1.0, bits=8)
    each = count // repeats
    coordinator, devices = new(folder, rules, plan, each * repeats, PARAMETERS)
    works = assigned(coordinator, devices)
    coordinator.close()
    first = works[0]
    rng = np.random.default_rng(0)
    delta = rng.standard_normal(PARAMETERS).astype(np.float32)
    delta *= np.float32(0.5 / np.linalg.norm(delta))
    body = update.of_delta({"all": delta}, first.round, chain.terms_of(first), rng)
    print(f"  an update has {len(body):,} bytes")
    with running("fedboard", folder) as ours, running("bare", folder) as theirs:
        pairs = iter(zip(devices, works, strict=True))

        def signed() -> Iterator[Sent]:
            for device, work in itertools.islice(pairs, each):
                yield device.sent(
                    "PUT", f"/v1/assignments/{work.assignment}/update", body, work.task, work.round
                )

        memory = [ours.memory_mb()]

        def count_ours() -> Load:
            under_load = load_lazily(ours, signed(), each, connections)
            memory.append(ours.memory_mb())
            return under_load

        discarded = devices[0].sent("PUT", f"/v1/assignments/{first.assignment}/update", body)
        ratio(
            "counted updates",
            count_ours,
            lambda: load_lazily(theirs, itertools.repeat(discarded, each), each, connections),
            "a second",
            0.35,
            repeats,
        )
        slope = (
            (memory[-1] - memory[1]) / (each * (repeats - 1)) * 1000
            if repeats > 1
            else float("nan")
        )
        print(
            f"memory of the server: {memory[0]:.0f} MB before, "
            f"{', '.join(f'{mb:.0f}' for mb in memory[1:])} MB after each {each:,} updates"
            f" ({slope:+.1f} MB per 1,000); one accumulator has "
            f"{4 * quantize.padded(PARAMETERS) / 2**20:.0f} MB"
        )


def downloads(folder: Path, count: int, repeats: int, connections: int) -> None:
    """Checkpoints sent a second."""
    coordinator, devices = new(
        folder, Rules(), Plan(clipping_norm=1.0), count * (repeats + 1), PARAMETERS
    )
    half = coordinator.checkpoint().half
    coordinator.close()
    path, taken = f"/v1/blobs/{half}", iter(devices)
    with running("fedboard", folder) as ours, running("bare", folder) as theirs:
        plain = devices[0].sent("GET", path, b"")
        load(
            ours,
            [device.sent("GET", path, b"") for device in itertools.islice(taken, count)],
            connections,
        )
        ratio(
            "downloads of a checkpoint beside FileResponse",
            lambda: load(
                ours,
                [device.sent("GET", path, b"") for device in itertools.islice(taken, count)],
                connections,
            ),
            lambda: load(theirs, [plain] * count, connections),
            "a second",
            1.0,
            repeats,
        )


def crowd(folder: Path, devices: int) -> None:
    """So many devices at once, each over a connection of its own: they ask, come back at the end of
    the window, fetch the checkpoint and hand in an update.
    """
    rules = Rules(
        report_goal=devices,
        over_selection=1.0,
        selection_s=WINDOW_S,
        claim_s=600,
        reporting_s=1e6,
        check_ins_per_s=1e6,
    )
    coordinator, members = new(folder, rules, Plan(clipping_norm=1.0), devices, PARAMETERS)
    task, half = coordinator.tasks()[0].task, coordinator.checkpoint().half
    coordinator.close()
    rng = np.random.default_rng(0)
    delta = rng.standard_normal(PARAMETERS).astype(np.float32) * np.float32(
        0.5 / np.sqrt(PARAMETERS)
    )
    body = update.of_delta({"all": delta}, 1, terms(task), rng)
    message = config.to_json(replace(READY, holds=half))
    with running("fedboard", folder) as server:

        def ask(device: Device) -> Iterator[Sent]:
            yield device.sent("POST", "/v1/check-in", message)

        def day(device: Device) -> Iterator[Sent]:
            work = assignment_name(task, 1, device.name)
            yield device.sent("POST", "/v1/check-in", message)
            yield device.sent("GET", f"/v1/blobs/{half}", b"", task.name, 1)
            yield device.sent("PUT", f"/v1/assignments/{work}/update", body, task.name, 1)

        began, statuses = time.monotonic(), {}
        for what, lives in (("ask", ask), ("come back, fetch and report", day)):
            opened, seconds = _run(_load(server.port, [lives(each) for each in members]))
            statuses = _statuses(opened)
            latencies = sorted(itertools.chain(*(each.latencies for each in opened)))
            print(
                f"{devices:,} devices at once {what}: answers {statuses} in {seconds:.1f} s, p99 "
                f"{latencies[int(0.99 * (len(latencies) - 1))]:.2f} s, server at "
                f"{server.memory_mb():.0f} MB",
                flush=True,
            )
            if lives is ask:  # until the last of them was told to come
                time.sleep(max(0.0, began + seconds + WINDOW_S + 2 - time.monotonic()))
    reopened = Coordinator(*open_folder(folder))
    report = reopened.reports(time.time()).rounds[0]
    print(f"  round {report.round}: {report.phase}, {report.counted:,} of {report.goal:,} counted")
    reopened.close()
    if set(statuses) != {200} or report.counted != devices:
        raise SystemExit("expected every answer 200 and every update counted")


def main() -> None:
    """Run the loads that were asked for, and print what they met with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check-ins", type=int, default=4000)
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--downloads", type=int, default=500)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--connections", default="64,256", help="of check-ins and updates, one run for each number"
    )
    parser.add_argument("--only", default="check-ins,updates,downloads,crowd")
    asked = parser.parse_args()
    only = asked.only.split(",")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for number in map(int, asked.connections.split(",")):
            if "check-ins" in only:
                print(f"{number} connections:", flush=True)
                check_ins(folder / f"check-ins-{number}", asked.check_ins, asked.repeats, number)
            if "updates" in only:
                print(f"{number} connections:", flush=True)
                updates(folder / f"updates-{number}", asked.updates, asked.repeats, number)
        if "downloads" in only:
            downloads(folder / "downloads", asked.downloads, asked.repeats, DOWNLOADING)
        if "crowd" in only:
            crowd(folder / "crowd", asked.devices)


if __name__ == "__main__":
    main()
