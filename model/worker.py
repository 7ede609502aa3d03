"""TFF's worker processes, here or on other machines: started, watched, waited for and ended by us.

TFF's own local context starts the same binary but leaves it running when Python exits. A
computation whose worker dies is retried by TFF until a worker answers on the same port again, for
ever; so whoever started it starts it again there, and the computation completes as if nothing had
happened. What cannot be mended ends in a RunError: a worker of ours that keeps dying, or a round
that misses its deadline. TFF and gRPC are imported by the functions that compute; `serve` needs
neither.

The worker asks for no password and would listen on every interface, so it runs in an enclosure
(`model/enclosure.py`). Where none can be had, it is said what follows, or asked whether it may be.
"""

import asyncio
import contextlib
import functools
import importlib.util
import ipaddress
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from device_runtime.errors import RunError
from model import child_process, enclosure, memory

_Result = TypeVar("_Result")
_ADDRESS = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
_SOCKET = "socket"  # in a folder of its own
# of a socket: a longer one is no address, source unix(7); gRPC reads others as parts of a URI
_PATH = re.compile(r"[A-Za-z0-9_./-]{1,107}")
_START_S = 30.0
_PROBE_S = 3.0
_ADDRESSES = "as --host an address of this machine: `ip address` lists them"
# before a worker is started again, so that one that cannot live does not keep a core busy
_PAUSE_S = 1.0
_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # workers are on this machine or on a network of ours
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),  # gRPC's own two minutes would outlast most deadlines
    # A host that lost its power closes no connection. Pings more often than every five minutes are
    # refused by the worker, as by any gRPC server.
    ("grpc.keepalive_time_ms", 320_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


@contextlib.contextmanager
def running(
    threads: int,
    log: Path | None = None,
    restarts: int = 3,
    open_worker: bool = False,
    tell: Callable[[str], None] = _tell,
) -> Iterator["LocalWorker"]:
    """A worker of this machine that TFF computations run on inside the `with` block.

    It trains up to `threads` clients at once. It is started again when it dies, at most `restarts`
    times; after that every computation, also one that is waiting, raises RunError, as does a worker
    that does not start. Only this process reaches it, where an enclosure can be had. Elsewhere it
    listens on every interface, of which `tell` is told in a line; raises RunError if strangers
    could then reach it at a public address of this machine, unless open_worker says that they may.
    """
    worker = LocalWorker(threads, log, restarts, _port_for_all(open_worker, tell))
    try:
        worker.await_start()
        worker.become_default()
        yield worker
    finally:
        worker.close()


@contextlib.contextmanager
def remote(addresses: list[str], patience_s: float = _START_S) -> Iterator["Workers"]:
    """Workers of other machines that TFF computations run on inside the `with` block.

    Each is a `serve` at a `host:port`, and the clients are split over them. A computation must end
    in aggregations that merge, as sums and means do. Its result is that of one worker up to the
    rounding of sums. Raises RunError for an address that is none, and for workers that do not
    answer within `patience_s` seconds.
    """
    addresses = checked(addresses)
    if missing := silent(addresses, patience_s):
        raise RunError(
            f"worker {', '.join(missing)}",
            f"does not answer within {patience_s:g} s",
            f"start it with {_commands(missing)}, and let this machine through its firewall",
        )
    workers = Workers(addresses)
    try:
        workers.become_default()
        yield workers
    finally:
        workers.close()


def checked(addresses: list[str]) -> list[str]:
    """The addresses without surrounding blanks, each `host:port` or `[IPv6]:port`.

    Raises RunError for none, a wrong or a repeated one.
    """
    stripped = [address.strip() for address in addresses]
    wrong = [
        address
        for address in stripped
        if not (match := _ADDRESS.fullmatch(address)) or not 0 < int(match[2]) < 65536
    ]
    if wrong or not stripped:
        problem = f"expected host:port, found {', '.join(map(repr, wrong)) or 'nothing'}"
        raise RunError("--workers", problem, "write them like 10.0.0.2:9000,10.0.0.3:9000")
    if repeated := sorted({address for address in stripped if stripped.count(address) > 1}):
        raise RunError(
            "--workers", f"{', '.join(repeated)} is named twice", "name each worker once"
        )
    return stripped


def silent(
    addresses: list[str], patience_s: float, given_up: Callable[[], object] = lambda: None
) -> list[str]:
    """Those where no worker answers within `patience_s` seconds; all are asked at once.

    They are given up early when `given_up` returns something true. To answer is to speak HTTP/2:
    the near end of an SSH tunnel accepts connections also when nobody is at the far end.
    """
    import grpc

    # a pool of its own: otherwise gRPC would show a connection that is already open, and perhaps
    # dead
    channels = [
        grpc.insecure_channel(address, [*_CHANNEL, ("grpc.use_local_subchannel_pool", 1)])
        for address in addresses
    ]
    until = time.monotonic() + patience_s
    asked = [grpc.channel_ready_future(channel) for channel in channels]
    missing = [
        address
        for address, answer in zip(addresses, asked, strict=True)
        if not _in_time(answer, until, given_up)
    ]
    for channel in channels:
        channel.close()
    return missing


class Workers:
    """Where computations run: connections to workers, and why none can be finished any more."""

    def __init__(self, addresses: list[str]):
        import grpc

        self.addresses = addresses
        self.failure: RunError | None = None
        self._lock = threading.Lock()
        self._channels = [grpc.insecure_channel(address, _CHANNEL) for address in addresses]

    def call(
        self, compute: Callable[[], _Result], seconds: float | None = None, what: str = "round"
    ) -> _Result:
        """What `compute` returns; it calls TFF.

        After `seconds`, if given, it is stopped and the connections are closed for good.

        Raises RunError, headed by `what`, that names the workers that do not answer; and whatever
        `compute` raises for reasons of its own.
        """
        if seconds is None:
            return compute()
        finished = threading.Event()
        timer = threading.Timer(seconds, self._stop, (what, seconds, finished))
        timer.daemon = True
        timer.start()
        try:
            return compute()
        finally:
            with self._lock:
                finished.set()
            timer.cancel()

    def become_default(self) -> None:
        """Computations called from this thread run here from now on: TFF has a context a thread."""
        import tensorflow_federated as tff

        compiled = functools.cache(tff.backends.native.desugar_and_transform_to_native)
        compiling = threading.Lock()

        def compile_once(computation: object) -> object:
            with compiling:  # once for all workers, not once for each
                return compiled(computation)

        parts = {
            "compiler_fn": compile_once,
            "transform_args": tff.tensorflow.transform_args,
            "transform_result": tff.tensorflow.transform_result,
        }
        executors = map(self._executor_of, self.addresses, self._channels)
        factories = [
            tff.framework.ResourceManagingExecutorFactory(executor) for executor in executors
        ]
        if len(factories) == 1:
            context = tff.framework.SyncExecutionContext(factories[0], **parts)
        else:
            contexts = [
                _on_a_loop_of_its_own(tff.framework.AsyncExecutionContext(factory, **parts))
                for factory in factories
            ]
            context = tff.backends.native.create_mergeable_comp_execution_context(contexts)
        workers = self

        class UntilFailure(tff.framework.SyncContext):
            def invoke(self, computation: object, argument: object) -> object:
                if workers.failure:
                    raise workers.failure
                try:
                    return context.invoke(computation, argument)
                except Exception as error:  # a closed connection shows in many ways
                    if workers.failure and error is not workers.failure:
                        raise workers.failure from error
                    raise

        tff.framework.set_default_context(UntilFailure())

    def close(self) -> None:
        """Compute nothing any more, and leave the workers alone."""
        self._fail(RunError("TFF worker", "was ended", "compute inside the `with` block"))
        self._disconnect()

    def _executor_of(self, address: str, channel) -> Callable:
        import tensorflow_federated as tff

        from model.executor import Executor

        stub = tff.framework.RemoteExecutorGrpcStub(channel)

        def executor(cardinalities: dict) -> Executor:
            # TFF asks here before it tries again. Waiting for the worker here spares its own waits,
            # which grow to half a minute, and an error that is not gRPC's ends the computation.
            while silent([address], _START_S, lambda: self.failure) and not self.failure:
                pass
            if self.failure:
                raise self.failure
            cardinalities.setdefault(tff.CLIENTS, 0)
            remote_executor = Executor(stub)
            remote_executor.set_cardinalities(cardinalities)
            return remote_executor

        return executor

    def _stop(self, what: str, seconds: float, finished: threading.Event) -> None:
        missing = silent(self.addresses, _PROBE_S)
        with self._lock:
            if finished.is_set():
                return
            self.failure = self.failure or self._overdue(what, seconds, missing)
        self._disconnect()

    def _overdue(self, what: str, seconds: float, missing: list[str]) -> RunError:
        if missing:
            remedy = f"start it again with {_commands(missing)}, then go on with --resume"
            return RunError(
                what, f"no answer from worker {', '.join(missing)} within {seconds:g} s", remedy
            )
        return RunError(
            what,
            f"not done within {seconds:g} s, though every worker answers",
            "raise --round-deadline, then go on with --resume",
        )

    def _fail(self, reason: RunError) -> None:
        with self._lock:
            self.failure = self.failure or reason

    def _disconnect(self) -> None:
        for channel in self._channels:
            channel.close()  # ends the calls that are under way


class LocalWorker(Workers):
    """A worker process of ours, the way to it, and the thread that starts it again if it dies.

    port is where it listens on every interface; 0: in an enclosure, behind a Unix socket.
    """

    def __init__(self, threads: int, log: Path | None, restarts: int, port: int = 0):
        self._port = port
        self._folder = None if port else _private_folder()
        place = f"127.0.0.1:{port}" if port else f"unix:{self._folder}/{_SOCKET}"
        super().__init__([place])
        self._threads, self._log, self._restarts = threads, log, restarts
        self._closing = threading.Event()
        self.process = self._start()
        self._watch = threading.Thread(target=self._keep_alive, daemon=True)
        self._watch.start()

    def await_start(self) -> None:
        """Wait until the worker answers. Raises RunError if it does not."""
        if silent(self.addresses, _START_S, lambda: self.failure):
            raise self.failure or RunError(
                "TFF worker", f"does not answer within {_START_S:g} s", "run `fedboard doctor`"
            )

    def close(self) -> None:
        """Compute nothing any more, and end the worker."""
        self._closing.set()
        self._watch.join()
        child_process.end(self.process)
        super().close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> subprocess.Popen:
        if not self._folder:
            return _start(self._threads, self._log, self._port)
        self._folder.mkdir(mode=0o700, exist_ok=True)  # a worker asked to end removed it
        if self._folder.lstat().st_uid != os.geteuid():
            raise RunError(self._folder, "is another user's, expected ours", "train again")
        path = self._folder / _SOCKET
        path.unlink(missing_ok=True)  # of the worker that died
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        return _start(self._threads, self._log, listener)

    def _keep_alive(self) -> None:
        deaths = 0
        while not self._closing.wait(0.2):
            if self.process.poll() is None:
                continue
            deaths += 1
            if deaths > self._restarts:
                last = (
                    f"{', the last time' if deaths > 1 else ''} {_ending(self.process.returncode)}"
                )
                log = f"see {self._log}, " if self._log else ""
                remedy = (
                    f"{log}free some memory or train fewer clients at once, then go on with "
                    "--resume; `fedboard doctor` checks the machine"
                )
                self._fail(
                    RunError("TFF worker", f"ended {deaths} time{'s' * (deaths > 1)}{last}", remedy)
                )
                return
            try:
                self.process = self._start()
            except (OSError, RunError) as error:
                reason = f"cannot be started again ({error})"
                self._fail(RunError("TFF worker", reason, "go on with --resume"))
                return

    def _overdue(self, what: str, seconds: float, missing: list[str]) -> RunError:
        state = (
            "the TFF worker of this machine does not answer" if missing else "the worker answers"
        )
        return RunError(
            what,
            f"not done within {seconds:g} s, {state}",
            "raise --round-deadline, then go on with --resume",
        )


@dataclass(frozen=True)
class Served:
    """Where a worker for other machines listens, and what it may use."""

    port: int
    host: str = "127.0.0.1"  # the one address of this machine at which it is reached
    threads: int = 1  # clients it trains at once
    open_worker: bool = False  # listen on every interface where no enclosure can be had

    def __str__(self) -> str:
        """As it is named after `--workers`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def serve(where: Served, on_event: Callable[[str], None], log: Path | None = None) -> None:
    """Run a worker in the foreground, for training on another machine.

    It ends on SIGTERM or Ctrl-C. A worker that dies is started again at the same place. on_event is
    told in a line what happens; the worker's own output goes to `log`, or nowhere. Call it from the
    main thread. Raises RunError if the port is taken, the worker does not start, or it would listen
    on more than its host without having been told that it may. Whoever reaches the port may run any
    graph on this machine: see docs/scale-out.md.
    """
    enclosed = _is_enclosed(where)
    place = str(where) if enclosed else f"port {where.port} of every interface"
    with _listener(where if enclosed else Served(where.port, "")) as tried:
        to_others = not ipaddress.ip_address(tried.getsockname()[0]).is_loopback
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    listened = False
    try:
        while True:
            process = _start(where.threads, log, _listener(where) if enclosed else where.port)
            try:
                if _listens(process, where):
                    clients = f"{where.threads} client{'s' * (where.threads != 1)} at once"
                    on_event(f"listening on {place}, {clients}")
                    if to_others and not listened:
                        on_event(
                            "whoever reaches it runs any graph as this user: docs/scale-out.md "
                            "says how to keep strangers out"
                        )
                    listened = True
                elif not listened:
                    problem = f"{_ending(child_process.end(process))} before it listened on {place}"
                    raise RunError("TFF worker", problem, "run `fedboard doctor`")
                process.wait()
            finally:
                ended = _ending(child_process.end(process))
            on_event(f"the worker ended {ended}; starting it again on {place}")
            time.sleep(_PAUSE_S)
    except KeyboardInterrupt:
        on_event("ended")
    finally:
        signal.signal(signal.SIGTERM, before)


def _start(threads: int, log: Path | None, where: int | socket.socket) -> subprocess.Popen:
    """A worker on a port of every interface, or in an enclosure behind a socket that it takes."""
    # finds it without importing it, which takes long
    spec = importlib.util.find_spec("tensorflow_federated")
    if spec is None or not spec.submodule_search_locations:
        raise RunError(
            "TFF worker", "TensorFlow Federated is not installed", "install the `simulation` extra"
        )
    binary = Path(spec.submodule_search_locations[0]) / "data" / "worker_binary"
    port = where if isinstance(where, int) else enclosure.PORT
    command = [str(binary), f"--port={port}", f"--max_concurrent_computation_calls={threads}"]
    environment = {
        **memory.WORKER,
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": str(threads),
    }
    if isinstance(where, int):
        return child_process.start(command, log, environment)
    with where:
        behind = enclosure.command(command, where)
        return child_process.start(behind, log, environment, (where.fileno(),))


def _private_folder() -> Path:
    """A new folder that nobody else may enter, for a socket: among the temporary files, or, where
    its path could not be a socket's, among the system's. Raises RunError if none can be made.
    """
    where = None if _PATH.fullmatch(f"{tempfile.gettempdir()}/{'x' * 32}/{_SOCKET}") else "/tmp"
    try:
        return Path(tempfile.mkdtemp(prefix="fedboard-worker-", dir=where))
    except OSError as error:
        raise RunError(
            "TFF worker",
            f"no folder can be made for its socket ({error.strerror or error})",
            "set TMPDIR to a folder that can be written",
        ) from None


def _port_for_all(open_worker: bool, tell: Callable[[str], None]) -> int:
    """The port of every interface that a worker of this process has to listen on, or 0: none.

    Raises RunError where strangers would reach it and nobody said that they may.
    """
    if not (obstacle := enclosure.obstacle()):
        return 0
    reach = enclosure.reach()
    if reach.strangers and not open_worker:
        raise RunError(
            "TFF worker",
            f"can get no network of its own ({obstacle}), and strangers would reach it at "
            f"{', '.join(reach.strangers)} and run any graph as this user",
            "allow it namespaces as docs/scale-out.md says; or close this machine's ports to "
            "strangers and pass --open-worker",
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if everywhere := [*reach.strangers, *reach.neighbours]:
        tell(
            f"TFF's worker listens on port {port} of {', '.join(everywhere)}, as it can get no "
            f"network of its own ({obstacle}): whoever reaches it runs any graph as this user"
        )
    return port


def _is_enclosed(where: Served) -> bool:
    """Whether the worker will be in an enclosure. Raises RunError where it is to be and cannot."""
    obstacle = enclosure.obstacle()
    if obstacle and not where.open_worker:
        raise RunError(
            f"--host {where.host}",
            f"TFF's worker can get no network of its own here ({obstacle}), and would listen on "
            "every interface",
            "allow it namespaces as docs/scale-out.md says; or close the port to strangers and "
            "pass --open-worker",
        )
    return not obstacle


def _listener(where: Served) -> socket.socket:
    """A socket bound there, and nobody else's. Raises RunError if it cannot be.

    The worker itself would share its port with another one, as gRPC asks for SO_REUSEPORT, and
    connections would go to either.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            where.host or None, where.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, OverflowError, UnicodeError) as error:
        raise RunError(f"--host {where.host}", f"is no address ({error})", _ADDRESSES) from None
    # a worker that ended a minute ago is no obstacle
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise RunError(
            f"port {where.port}" + f" of {where.host}" * bool(where.host),
            f"cannot be listened on ({error.strerror or error})",
            f"choose another --port, or {_ADDRESSES}",
        ) from None
    return listener


def _listens(process: subprocess.Popen, where: Served) -> bool:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((where.host, where.port), 0.2):
            return True
        time.sleep(0.05)
    return False


def _in_time(answer, until: float, given_up: Callable[[], object]) -> bool:
    import grpc

    try:
        while not given_up():
            with contextlib.suppress(grpc.FutureTimeoutError):
                answer.result(min(0.2, until - time.monotonic()))
                return True
            if time.monotonic() >= until:
                return False
        return False
    finally:
        answer.cancel()


def _on_a_loop_of_its_own(context):
    """A TFF context that leaves other contexts time.

    Its executor blocks the event loop it runs on, so workers that share one would take turns.
    """
    import tensorflow_federated as tff

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    class Apart(tff.framework.AsyncContext):
        async def invoke(self, computation: object, argument: object) -> object:
            try:
                return await asyncio.wrap_future(
                    asyncio.run_coroutine_threadsafe(context.invoke(computation, argument), loop)
                )
            except Exception:
                # TFF raises what the first worker raised; asyncio would print what the others did
                asyncio.get_running_loop().set_exception_handler(lambda *_: None)
                raise

    return Apart()


def _commands(addresses: list[str]) -> str:
    """`fedboard worker --host 10.0.0.2 --port 9000` on 10.0.0.2, and so on."""
    return ", ".join(
        f"`fedboard worker --host {host.strip('[]')} --port {port}` on {host}"
        for host, _, port in (address.rpartition(":") for address in addresses)
    )


def _ending(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
