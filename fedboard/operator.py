"""The operator's calls of a running server, one function each, by `server.contract`'s messages."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from device_runtime.calls import BINARY, JSON
from device_runtime.config import from_json, to_json
from device_runtime.errors import ConfigError, RunError, ServerError
from device_runtime.shown import command
from device_runtime.transport import Reply, http
from device_runtime.wire import Problem, RoundReports
from server.contract import (
    ADDRESS,
    TOKEN,
    TOKEN_FILE,
    Codes,
    NewCodes,
    Rollback,
    Stored,
    TaskReport,
    TaskReports,
    TaskSettings,
)

T = TypeVar("T")


class Operator:
    """One server, and the token that lets this process act on it."""

    def __init__(self, send, token: str):
        self._send, self._token = send, token

    def put_checkpoint(self, data: bytes) -> str:
        """Keep a float32 checkpoint on the server. Its SHA-256."""
        return self._call(Stored, "PUT", "/v1/checkpoints", data, BINARY).sha256

    def create(self, settings: TaskSettings) -> TaskReport:
        """Make a task."""
        return self._call(TaskReport, "POST", "/v1/tasks", to_json(settings))

    def tasks(self) -> tuple[TaskReport, ...]:
        """Every task, oldest first."""
        return self._call(TaskReports, "GET", "/v1/tasks").tasks

    def task(self, name: str) -> TaskReport:
        """A task and where it stands."""
        return self._call(TaskReport, "GET", f"/v1/tasks/{name}")

    def rounds(self, name: str, most: int) -> RoundReports:
        """The funnel of the newest rounds of a task, oldest first."""
        return self._call(RoundReports, "GET", f"/v1/rounds?task={name}&most={most}")

    def pause(self, name: str) -> TaskReport:
        """Admit nobody any more."""
        return self._call(TaskReport, "POST", f"/v1/tasks/{name}/pause")

    def resume(self, name: str) -> TaskReport:
        """Admit devices again."""
        return self._call(TaskReport, "POST", f"/v1/tasks/{name}/resume")

    def roll_back(self, name: str, to: str) -> TaskReport:
        """Go on from an earlier checkpoint, by its SHA-256 or round."""
        return self._call(TaskReport, "POST", f"/v1/tasks/{name}/rollback", to_json(Rollback(to)))

    def codes(self, count: int, life_s: float) -> Codes:
        """New enrolment codes."""
        return self._call(Codes, "POST", "/v1/codes", to_json(NewCodes(count, life_s)))

    def _call(
        self,
        kind: type[T],
        method: str,
        path: str,
        body: bytes = b"",
        content: Mapping[str, str] = JSON,
    ) -> T:
        headers = {"authorization": f"Bearer {self._token}", **(content if body else {})}
        reply: Reply = self._send(method, path, body, headers)
        try:
            if reply.status == 200:
                return from_json(kind, reply.body, kind.__name__)
            problem = from_json(Problem, reply.body, "Problem")
        except ConfigError as error:
            raise ServerError(
                f"{method} {path}",
                f"the answer with status {reply.status} is not one of ours ({error})",
                "check --server",
            ) from None
        raise ServerError(
            f"{method} {path}",
            f"refused: {problem.cause}: {problem.detail}",
            "see `fedboard task list`, or the token given",
        )


@contextmanager
def connect(
    folder: Path | None,
    server: str | None,
    token_file: Path | None = None,
    insecure: bool = False,
) -> Iterator[Operator]:
    """The server whose folder or address is given, with its token. Raises RunError if the folder's
    server does not run or the token is missing, ServerError for another machine's address without
    TLS unless `insecure`: the token would travel for all to read.
    """
    if (folder is None) == (server is None):
        raise RunError(
            "--dir, --server", "expected one of them", "give the server's folder, or its address"
        )
    if folder is not None:
        server = _line(
            folder / ADDRESS, f"start the server first: {command('serve', '--dir', folder)}"
        )
        token_file = token_file or folder / TOKEN_FILE
    token = os.environ.get(TOKEN) or (
        _line(token_file, "give the file with the operator's token") if token_file else ""
    )
    if not token:
        raise RunError(
            "--token-file",
            "the operator's token is needed, found none",
            f"give its file, or set {TOKEN}",
        )
    # a folder's server is on this machine, whatever address it listens at
    with http(str(server), insecure or folder is not None) as send:
        yield Operator(send, token)


def _line(path: Path, remedy: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(
            path, f"cannot be read ({getattr(error, 'strerror', None) or error})", remedy
        ) from None
