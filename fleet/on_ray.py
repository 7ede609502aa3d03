"""On Ray: what devices train, computed by the machines of a Ray cluster.

Clock, coordinator and store stay here. The graph, and each checkpoint once, are put into the
cluster's object store; a job takes some rows there and brings back codes and weights. Jobs of a
process or machine that dies are computed again by others.
"""

import os
import secrets
import socket
from typing import Any

from device_runtime import interpreter
from device_runtime.errors import FedboardError, RunError
from device_runtime.turn import Trainer
from device_runtime.weights import Weights
from fleet.ahead import Ahead, Work
from fleet.engines import Job, Trained, compute

MOST_DEATHS = 3  # of processes, by one job
PATIENCE_S = 10.0  # with a head that does not answer
KEPT = 4  # checkpoints in the object store


class Ray:
    """Computes in the cluster at `address`, or without one in a cluster of this machine with so
    many processes.
    """

    def __init__(self, train: Trainer, graph: bytes, processes: int, address: str):
        """Raises RunError where Ray is not installed, or no cluster answers."""
        self._ray = _imported(local=not address)
        self._joined(address, processes)
        of = train, graph, str(interpreter.chosen()) if graph else ""
        self._of = self._ray.put(of)
        self._bases: dict[str, Any] = {}  # the last ones, by their SHA-256
        self._task = self._ray.remote(num_cpus=1, max_retries=MOST_DEATHS)(_compute)
        cores = int(self._ray.cluster_resources().get("CPU", 1))
        self._ahead = Ahead(self._hand, 2 * cores)

    def submit(self, job: Job, base: Weights) -> Work:
        """See Engine."""
        put = self._bases.get(job.checkpoint)
        if put is None:
            if len(self._bases) >= KEPT:  # jobs that need it name it themselves
                del self._bases[next(iter(self._bases))]
            put = self._bases[job.checkpoint] = self._ray.put(base)
        return self._ahead.add(job, base, put)

    def result(self, ticket: Work) -> Trained:
        """See Engine. Raises RunError for a job whose processes die again and again, or a cluster
        that is gone.
        """
        self._ahead.wanted(ticket)
        try:
            trained: Trained = self._ray.get(ticket.future)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, FedboardError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayError as error:
            problem = f"a job was lost again and again ({type(error).__name__})"
            raise RunError(
                "ray", problem, "look at `ray status`, then go on with --resume"
            ) from None
        self._ahead.done(ticket)
        return trained

    def close(self) -> None:
        """See Engine."""
        self._ray.shutdown()

    def _hand(self, work: Work) -> None:
        work.future = self._task.remote(self._of, work.base, work.job)

    def _joined(self, address: str, processes: int) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            if address:
                _require_answer(address)
                self._ray.init(address=address, **quiet)
            else:
                self._ray.init("local", num_cpus=processes, include_dashboard=False, **quiet)
        except (OSError, RuntimeError, ValueError, self._ray.exceptions.RayError) as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise _away(address, said[0]) from None


def _imported(local: bool) -> Any:
    """Ray, which tells nobody that it is used. A cluster of this machine is to be reached by
    nobody else: a new token, which Ray reads when it is imported.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if local and "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray
    except ImportError:
        raise RunError("ray", "is not installed", "install the `scale` extra") from None
    return ray


def require(address: str) -> None:
    """Raises RunError where Ray is not installed, or nobody listens at the address, if one is
    named.
    """
    _imported(local=not address)
    try:
        _require_answer(address)
    except OSError as error:
        raise _away(address, str(error)) from None


def _away(address: str, said: str) -> RunError:
    return RunError(
        "ray",
        f"no cluster at {address or 'this machine'} ({said})",
        "start one with `ray start --head`, and give what it prints as --address",
    )


def _require_answer(address: str) -> None:
    """Raises OSError where nobody listens: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S).close()


def _compute(of: tuple[Trainer, bytes, str], base: Weights, job: Job) -> Trained:
    """A job, in a process of the cluster. Raises RunError where that has another interpreter."""
    train, graph, runtime = of
    if runtime and (here := str(interpreter.chosen())) != runtime:
        raise RunError(
            f"ray node {os.uname().nodename}",
            f"expected {runtime}, as where the fleet's clock is, found {here}",
            "install the same on all machines: another one rounds in another way",
        )
    return compute(job, base, train, graph)
