"""Floods: what honest devices get of a server while strangers do their worst to it.

One server process a flood, over loopback. Honest devices check in and upload all the time, each
request over a connection of its own with a deadline; strangers hold silent connections, send half
of a head, a head without end, garbage, or bodies that do not come.

.venv/bin/python -m benchmarks.flood [--seconds 15] [--only silent,bodies] [--descriptors 1024]
"""

import argparse
import asyncio
import contextlib
import os
import resource
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.server import READY, Device, assigned, new, running
from device_runtime import chain, config, update
from device_runtime.wire import Assignment, Plan
from server.coordinator import open_folder
from server.rounds import Rules

PARAMETERS = 1_421_766  # of the size gboard
HONEST = 8  # workers that check in, and as many that upload
PATIENCE_S = 30.0  # of one honest request
RULES = Rules(report_goal=100_000, over_selection=1.0, selection_s=0.0, reporting_s=1e6)


@dataclass
class Seen:
    """What honest requests of one kind met with."""

    served_s: list[float] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)  # answers that are not 200, and none

    def __str__(self) -> str:
        if not self.served_s:
            return f"0 served; {dict(self.others)}"
        times = sorted(self.served_s)
        worst = times[int(0.99 * (len(times) - 1))]
        return (
            f"{len(times)} served, p50 {1000 * statistics.median(times):.0f} ms, "
            f"p99 {1000 * worst:.0f} ms; others {dict(self.others)}"
        )


@dataclass(frozen=True)
class Target:
    """A server, its work for strangers who are enrolled, and an update's bytes."""

    port: int
    device: Device
    work: Assignment
    body: bytes


async def ask(port: int, request: bytes) -> int:
    """The status of an answer to a request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        await writer.drain()
        return int((await reader.readline()).split(b" ")[1])
    finally:
        writer.close()


async def honest(port: int, requests: Iterator[bytes], seen: Seen, end: float) -> None:
    """One request after the other until the end."""
    for request in requests:
        began = time.perf_counter()
        if began > end:
            return
        try:
            status = str(await asyncio.wait_for(ask(port, request), PATIENCE_S))
        except TimeoutError:
            status = "none in time"
        except (OSError, IndexError, ValueError):
            status = "no connection"
            await asyncio.sleep(0.05)
        if status == "200":
            seen.served_s.append(time.perf_counter() - began)
        else:
            seen.others[status] += 1


async def held(target: Target, say: bytes, count: int, end: float) -> None:
    """So many connections that say no more than that; one that is ended is opened again."""

    async def one() -> None:
        while time.perf_counter() < end:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
                writer.write(say)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, end - time.perf_counter())):
                        while await reader.read(4096):
                            pass
                writer.close()
            await asyncio.sleep(0.1)

    await asyncio.gather(*(one() for _ in range(count)))


async def silent(target: Target, end: float) -> None:
    """A thousand connections that say nothing."""
    await held(target, b"", 1000, end)


async def half_heads(target: Target, end: float) -> None:
    """A thousand connections that send half of a head."""
    await held(target, b"POST /v1/check-in HTTP/1.1\r\nhost: x\r\nx: ", 1000, end)


async def endless_heads(target: Target, end: float) -> None:
    """Four connections whose heads have no end."""

    async def one() -> None:
        while time.perf_counter() < end:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", target.port)
                writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: ")
                while time.perf_counter() < end:
                    writer.write(b"a" * 65_536)
                    await writer.drain()
                    await asyncio.sleep(0.01)
                writer.close()
            await asyncio.sleep(0.05)

    await asyncio.gather(*(one() for _ in range(4)))


async def garbage(target: Target, end: float) -> None:
    """Sixteen connections at a time that send bytes which are no request."""

    async def one() -> None:
        while time.perf_counter() < end:
            with contextlib.suppress(OSError, IndexError, ValueError, TimeoutError):
                await asyncio.wait_for(ask(target.port, os.urandom(64) + b"\r\n\r\n"), 1.0)

    await asyncio.gather(*(one() for _ in range(16)))


async def bodies(target: Target, end: float) -> None:
    """190 connections with one signed head of one enrolled device, and one byte of its body."""
    path = f"/v1/assignments/{target.work.assignment}/update"
    request = target.device.request("PUT", path, target.body, target.work.task, target.work.round)
    head = request[: len(request) - len(target.body) + 1]
    await held(target, head, 190, end)


FLOODS: dict[str, Callable[[Target, float], Coroutine[Any, Any, None]] | None] = {
    "nothing": None,
    "silent": silent,
    "half-heads": half_heads,
    "endless-heads": endless_heads,
    "garbage": garbage,
    "bodies": bodies,
}


async def beside(
    flood: str,
    target: Target,
    devices: list[Device],
    works: list[Assignment],
    seconds: float,
) -> None:
    """Honest requests beside a flood, printed. The first of the devices have work."""
    check_ins, uploads = Seen(), Seen()
    end = time.perf_counter() + seconds
    strangers = FLOODS[flood]
    under_way = None if strangers is None else asyncio.create_task(strangers(target, end))
    await asyncio.sleep(2.0 if strangers else 0.0)  # they are there first
    members, pairs = iter(devices[len(works) :]), zip(devices, works, strict=False)
    message = config.to_json(READY)

    def asking() -> Iterator[bytes]:
        for device in members:
            yield device.request("POST", "/v1/check-in", message)

    def uploading() -> Iterator[bytes]:
        for device, work in pairs:
            path = f"/v1/assignments/{work.assignment}/update"
            yield device.request("PUT", path, target.body, work.task, work.round)

    await asyncio.gather(
        *(honest(target.port, asking(), check_ins, end) for _ in range(HONEST)),
        *(honest(target.port, uploading(), uploads, end) for _ in range(HONEST)),
    )
    if under_way is not None:
        under_way.cancel()
        await asyncio.gather(under_way, return_exceptions=True)
    print(f"{flood}: check-ins {check_ins}", flush=True)
    print(f"{flood}: uploads   {uploads}", flush=True)


def main() -> None:
    """Run the floods that were asked for, and print what honest devices met with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--only", default=",".join(FLOODS))
    parser.add_argument("--devices", type=int, default=2000)
    parser.add_argument("--descriptors", type=int, default=0, help="of the server; 0 = as now")
    asked = parser.parse_args()
    for flood in asked.only.split(","):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            plan = Plan(clipping_norm=1.0, bits=8)
            coordinator, devices = new(folder, RULES, plan, asked.devices, PARAMETERS)
            works = assigned(coordinator, devices[: asked.devices // 2])
            coordinator.close()
            first = works[0]
            delta = np.random.default_rng(0).standard_normal(PARAMETERS).astype(np.float32)
            delta *= np.float32(0.5 / np.linalg.norm(delta))
            terms, rng = chain.terms_of(first), np.random.default_rng(0)
            body = update.of_delta({"all": delta}, first.round, terms, rng)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            if asked.descriptors:  # the server has it of us, and keeps it
                resource.setrlimit(resource.RLIMIT_NOFILE, (asked.descriptors, hard))
            with running("fedboard", folder) as server:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                target = Target(server.port, devices[0], first, body)
                before = server.memory_mb()
                asyncio.run(beside(flood, target, devices[1:], works[1:], asked.seconds))
                print(
                    f"{flood}: server {before:.0f} MB before, {server.memory_mb():.0f} MB after, "
                    f"{server.cpu_s():.1f} CPU s",
                    flush=True,
                )
            open_folder(folder)[0].close()  # it is whole


if __name__ == "__main__":
    main()
