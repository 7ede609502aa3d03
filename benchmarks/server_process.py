"""One server of a benchmark, in a process of its own: Fedboard's, or what it is compared with.
Prints its port, then serves until it is ended.

python -m benchmarks.server_process KIND FOLDER, KIND one of fedboard, bare
"""

import sys
from pathlib import Path

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.responses import FileResponse

from device_runtime.causes import Cause
from server import endpoint, logs
from server.coordinator import Coordinator, open_folder
from server.settings import Limits


class Signals(BaseModel):
    """The conditions of a check-in."""

    charging: bool | None = None
    unmetered: bool | None = None
    idle: bool | None = None


class Message(BaseModel):
    """The fields of a check-in, as FastAPI's users write them."""

    conditions: Signals
    examples: int
    tokenizer: str
    version: int
    holds: str
    population: str
    runtime: str
    device_class: str


class Refusal(BaseModel):
    """The one answer of the bare check-in."""

    cause: str
    retry_in_s: float


def bare(folder: Path) -> FastAPI:
    """An endpoint that parses a check-in and answers, one that reads a body and throws it away, and
    a file.
    """
    api = FastAPI()

    @api.post("/v1/check-in")
    async def check_in(message: Message) -> Refusal:
        return Refusal(cause=Cause.ROUND_FULL, retry_in_s=900.0)

    @api.put("/v1/assignments/{assignment}/update")
    async def update(assignment: str, request: Request) -> dict[str, int]:
        size = 0
        async for piece in request.stream():
            size += len(piece)
        return {"bytes": size}

    @api.get("/v1/blobs/{sha256}")
    async def blob(sha256: str) -> FileResponse:
        return FileResponse(folder / "blobs" / sha256)

    return api


def main(kind: str, folder: Path) -> None:
    """Serve one of the two, and print the port."""
    sock = endpoint.bind("127.0.0.1", 0)
    print(sock.getsockname()[1], flush=True)
    if kind == "bare":
        endpoint.serve(bare(folder), sock)
    else:
        logs.begin()
        unlimited = endpoint.Access(limits=Limits(device_burst=0, address_burst=0))
        endpoint.serve(endpoint.app(Coordinator(*open_folder(folder)), access_=unlimited), sock)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
