"""TFF's worker process, started, watched and ended by us.

TFF's own local context starts the same binary but leaves it running when Python exits. A computation whose worker dies is retried by TFF until a
worker answers on the same port again, so the watch starts a new one there; the computation then completes as if nothing had happened.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grpc
import tensorflow_federated as tff

from device_runtime.errors import RunError
from model import child_process

_BINARY = Path(tff.__file__).parent / "data" / "worker_binary"
_UNLIMITED = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
_START_S = 30.0


@contextlib.contextmanager
def running(threads: int, log: Path | None = None, restarts: int = 3) -> Iterator["Worker"]:
    """A worker that TFF computations run on inside the `with` block, training up to `threads` clients at once.

    Raises RunError if it does not start. The binary listens without encryption or a password on a port of every interface, as TFF's own
    context does; keep the machine behind a firewall while it trains.
    """
    worker = Worker(threads, log, restarts)
    try:
        worker.await_ready()
        tff.framework.set_default_context(worker.context())
        yield worker
    finally:
        worker.close()


class Worker:
    """The process, its port, and the thread that starts it again if it dies."""

    def __init__(self, threads: int, log: Path | None, restarts: int):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._threads, self._log, self._restarts = threads, log, restarts
        self._closing = threading.Event()
        self.process = self._start()
        self._channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", _UNLIMITED)
        self._watch = threading.Thread(target=self._keep_alive, daemon=True)
        self._watch.start()

    def context(self) -> "tff.framework.SyncExecutionContext":
        stub = tff.framework.RemoteExecutorGrpcStub(self._channel)

        def executor(cardinalities: dict) -> tff.framework.RemoteExecutor:
            cardinalities.setdefault(tff.CLIENTS, 0)
            remote = tff.framework.RemoteExecutor(stub)
            remote.set_cardinalities(cardinalities)
            return remote

        return tff.framework.SyncExecutionContext(
            executor_fn=tff.framework.ResourceManagingExecutorFactory(executor),
            compiler_fn=tff.backends.native.desugar_and_transform_to_native,
            transform_args=tff.tensorflow.transform_args,
            transform_result=tff.tensorflow.transform_result,
        )

    def await_ready(self) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket() as probe:
                probe.settimeout(0.2)
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RunError("TFF worker", f"did not start within {_START_S:.0f} s (exit code {self.process.poll()})", "run `fedboard doctor`")

    def close(self) -> None:
        self._closing.set()
        self._watch.join()
        child_process.end(self.process)
        self._channel.close()

    def _start(self):
        command = [str(_BINARY), f"--port={self.port}", f"--max_concurrent_computation_calls={self._threads}"]
        return child_process.start(command, self._log, {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": str(self._threads)})

    def _keep_alive(self) -> None:
        while not self._closing.wait(0.5):
            if self.process.poll() is not None and self._restarts > 0:
                self._restarts -= 1
                self.process = self._start()
