"""The operator's calls of a running server, one function each, by `server.contract`'s messages."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from device_runtime.calls import BINARY, JSON, all_rounds
from device_runtime.causes import Cause
from device_runtime.config import from_json, to_json
from device_runtime.errors import ConfigError, RunError, ServerError
from device_runtime.shown import command
from device_runtime.transport import AT_MOST, MAX_REPLY_BYTES, Reply, http
from device_runtime.weights import digest
from device_runtime.wire import Kind, Problem, RoundReport, RoundReports, Signed
from server.contract import (
    ADDRESS,
    TOKEN,
    TOKEN_FILE,
    Codes,
    CountsReport,
    HelperHere,
    NewCodes,
    Publication,
    ReleaseReport,
    ReleaseReports,
    Rollback,
    RoundKey,
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

    def put_list(self, data: bytes) -> str:
        """Keep a list of words on the server. Its SHA-256."""
        return self._call(Stored, "PUT", "/v1/lists", data, BINARY).sha256

    def counts(self, name: str) -> CountsReport:
        """What a task that counts has counted so far."""
        return self._call(CountsReport, "GET", f"/v1/tasks/{name}/counts")

    def create(self, settings: TaskSettings) -> TaskReport:
        """Make a task."""
        return self._call(TaskReport, "POST", "/v1/tasks", to_json(settings))

    def helper(self) -> HelperHere:
        """The helper that the server asks, and how it stands."""
        return self._call(HelperHere, "GET", "/v1/helper")

    def tasks(self) -> tuple[TaskReport, ...]:
        """Every task, oldest first."""
        return self._call(TaskReports, "GET", "/v1/tasks").tasks

    def task(self, name: str) -> TaskReport:
        """A task and where it stands."""
        return self._call(TaskReport, "GET", f"/v1/tasks/{name}")

    def rounds(self, name: str, most: int) -> RoundReports:
        """The funnel of the newest rounds of a task, oldest first."""
        return self._call(RoundReports, "GET", f"/v1/rounds?task={name}&most={most}")

    def all_rounds(self, name: str) -> tuple[RoundReport, ...]:
        """The funnel of every round of a task, oldest first."""
        headers = {"authorization": f"Bearer {self._token}"}

        def send(method: str, path: str, body: bytes, _: Mapping[str, str]) -> Reply:
            reply: Reply = self._send(method, path, body, headers)
            return reply

        return all_rounds(send, name).rounds

    def pause(self, name: str) -> TaskReport:
        """Admit nobody any more."""
        return self._call(TaskReport, "POST", f"/v1/tasks/{name}/pause")

    def resume(self, name: str) -> TaskReport:
        """Admit devices again."""
        return self._call(TaskReport, "POST", f"/v1/tasks/{name}/resume")

    def roll_back(self, name: str, to: str) -> TaskReport:
        """Go on from an earlier checkpoint, by its SHA-256 or round."""
        return self._call(TaskReport, "POST", f"/v1/tasks/{name}/rollback", to_json(Rollback(to)))

    def round_key(self, name: str) -> RoundKey:
        """A new key that the server would sign a task's checkpoints with. Raises ServerError for
        one of another task.
        """
        path = f"/v1/tasks/{name}/round-key"
        proposed = self._call(RoundKey, "POST", path)
        if proposed.task != name:
            raise ServerError(
                f"POST {path}",
                f"expected a round key for task {name}, found one for {proposed.task}",
                "check --server: nothing was certified",
            )
        return proposed

    def certify(self, name: str, certificate: Signed) -> TaskReport:
        """Hand in the certificate of a round key."""
        return self._call(TaskReport, "POST", f"/v1/tasks/{name}/certificate", to_json(certificate))

    def codes(self, count: int, life_s: float) -> Codes:
        """New enrolment codes."""
        return self._call(Codes, "POST", "/v1/codes", to_json(NewCodes(count, life_s)))

    def checkpoint(self, name: str, sha: str) -> bytes:
        """A float32 checkpoint of a task, by its SHA-256."""
        return self.blob(f"/v1/tasks/{name}/checkpoints/{sha}", sha)

    def checkpoint_of(self, name: str, round: int | None = None) -> tuple[int, str]:
        """The round that made a checkpoint of a training task and the checkpoint's SHA-256; by
        default of the current one. Raises RunError if the round has made none.
        """
        task = self.task(name)
        if task.kind is not Kind.TRAINING:
            raise RunError(
                f"task {name}",
                f"expected a training task, found one of {task.kind}",
                f"fetch the checkpoint of {task.evaluates or 'another'}",
            )
        if round is None or round == task.checkpoint_round:
            return task.checkpoint_round, task.checkpoint
        # the checkpoint that a task starts from is the base of its first round alone
        query = f"/v1/rounds?task={name}&most=2&before={round + 2}"
        for report in self._call(RoundReports, "GET", query).rounds:
            if report.round == round and report.checkpoint:
                return round, report.checkpoint
            if report.base_round == round:
                return round, report.base
        raise RunError(
            f"task {name}",
            f"round {round} has made no checkpoint",
            f"see `fedboard task show {name}`",
        )

    def put_release_file(self, data: bytes) -> str:
        """Keep a file of a bundle on the server. Its SHA-256."""
        return self._call(Stored, "PUT", "/v1/releases/blobs", data, BINARY).sha256

    def publish(self, publication: Publication) -> ReleaseReport:
        """Say something of a release whose files the server has."""
        return self._call(ReleaseReport, "POST", "/v1/releases", to_json(publication))

    def releases(self) -> tuple[ReleaseReport, ...]:
        """Every release, by population, newest first."""
        return self._call(ReleaseReports, "GET", "/v1/releases").releases

    def release_file(self, sha: str) -> bytes:
        """A file of a release that is offered, by its SHA-256."""
        return self.blob(f"/v1/releases/{sha}", sha)

    def blob(self, path: str, sha: str) -> bytes:
        """The bytes at a path. Raises ServerError if they are not those of that SHA-256."""
        headers = {"authorization": f"Bearer {self._token}", AT_MOST: str(MAX_REPLY_BYTES)}
        reply: Reply = self._send("GET", path, b"", headers)
        if reply.status != 200:
            raise self._refused("GET", path, reply)
        if digest(reply.body) != sha:
            raise ServerError(
                f"GET {path}", "expected bytes of that SHA-256, found others", "check --server"
            )
        return reply.body

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
        if reply.status != 200:
            raise self._refused(method, path, reply)
        try:
            return from_json(kind, reply.body, kind.__name__)
        except ConfigError as error:
            raise _not_ours(method, path, reply, error) from None

    def _refused(self, method: str, path: str, reply: Reply) -> ServerError:
        try:
            problem = from_json(Problem, reply.body, "Problem")
        except ConfigError as error:
            return _not_ours(method, path, reply, error)
        what = "release" if path.startswith("/v1/releases") else "task"
        remedies = {
            Cause.MALFORMED: "ask again, with that corrected",
            Cause.NOT_THE_OPERATOR: "check the token given",
        }
        return ServerError(
            f"{method} {path}",
            f"refused: {problem.cause}: {problem.detail}",
            remedies.get(problem.cause, f"see `fedboard {what} list`"),
        )


def _not_ours(method: str, path: str, reply: Reply, error: ConfigError) -> ServerError:
    return ServerError(
        f"{method} {path}",
        f"the answer with status {reply.status} is not one of ours ({error})",
        "check --server",
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
