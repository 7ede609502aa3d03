"""TFF's workers: on other ports as if on other machines, killed, started again, or gone for good.

All processes are real.

The clients of these tests say in a file that they started and then wait for a gate, another file,
so that a worker can be killed while it computes.
"""

import contextlib
import ipaddress
import os
import re
import signal
import socket
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import RunError
from model import child_process, enclosure, worker
from model.recipe import Client, Privacy, Recipe

CLIENTS = [1.0, 10.0, 100.0, 1000.0, 10000.0]  # 11111 is every client counted once
OBSTACLE = enclosure.obstacle()  # to a network of the worker's own; none as a rule
SERVE = """
import sys
from model import worker
where = worker.Served(int(sys.argv[1]), *sys.argv[2:], open_worker=True)
worker.serve(where, lambda event: print(event, flush=True))
assert "tensorflow" not in sys.modules
"""


def until(condition, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def workers_below(pid: int) -> list[int]:
    """Ids of TFF's worker processes that a process started, or one that it started."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # of a thread that has just ended
            children += map(int, (task / "children").read_text().split())
    below = [worker for child in children for worker in workers_below(child)]
    is_one = Path(f"/proc/{pid}/comm").read_text().strip() == "worker_binary"
    return [pid] * is_one + below


def port_of(pid: int) -> int:
    """What a worker process listens on, as its command line says."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    return int(command.partition("--port=")[2].partition("\0")[0])


def answers(address: str, port: int) -> bool:
    """Whether somebody accepts connections there."""
    try:
        with socket.create_connection((address, port), timeout=5):
            return True
    except OSError:
        return False


def addresses_of_this_machine() -> list[str]:
    """All that others may ask at, and its loopback."""
    routes = Path("/proc/net/fib_trie").read_text()
    of_ipv4 = set(re.findall(r"-- (\S+)\n +/32 host LOCAL", routes))
    lines = Path("/proc/net/if_inet6").read_text().splitlines()
    of_ipv6 = {ipaddress.IPv6Address(int(line.split()[0], 16)) for line in lines}
    return sorted(of_ipv4) + sorted(str(one) for one in of_ipv6 if not one.is_link_local)


def a_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Served:
    """A `serve` process, its port, what it said, and the worker it runs."""

    def __init__(self, folder: Path, *host: str):
        self.port = a_free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.output = folder / f"{self.port}.txt"
        self.process = child_process.start(
            [sys.executable, "-c", SERVE, str(self.port), *host], self.output
        )

    def events(self) -> list[str]:
        return self.output.read_text().splitlines()

    def listened(self, times: int = 1) -> "Served":
        until(
            lambda: sum(event.startswith("listening") for event in self.events()) >= times,
            "the worker listens",
        )
        return self

    def worker(self) -> int:
        """Its process id."""
        (worker,) = workers_below(self.process.pid)
        return worker


@pytest.fixture
def serve(tmp_path):
    """Starts workers as `fedboard worker` does; ends them after the test."""
    started = []

    def start(*host: str) -> Served:
        started.append(Served(tmp_path, *host))
        return started[-1]

    yield start
    for served in started:
        child_process.end(served.process)


class Gate:
    """A computation that ends when the gate is open: its clients' sum and mean."""

    def __init__(self, folder: Path):
        import tensorflow as tf
        import tensorflow_federated as tff

        started, self._open, self._folder = f"{folder}/started-", folder / "open", folder

        @tff.tensorflow.computation(np.float32)
        def pass_the_gate(number):
            with tf.control_dependencies(
                [tf.io.write_file(started + tf.strings.as_string(number), "")]
            ):
                looks = tf.while_loop(
                    lambda n: tf.size(tf.io.matching_files(str(self._open))) < 1,
                    lambda n: [n + 1],
                    [tf.constant(0)],
                )
            with tf.control_dependencies(looks):
                return tf.identity(number)

        @tff.federated_computation(tff.FederatedType(np.float32, tff.CLIENTS))
        def sum_and_mean(numbers):
            passed = tff.federated_map(pass_the_gate, numbers)
            return tff.federated_sum(passed), tff.federated_mean(passed, numbers)

        self.sum_and_mean = sum_and_mean

    def open(self) -> None:
        self._open.touch()

    def close(self) -> None:
        for path in self._folder.iterdir():
            path.unlink()

    def count(self) -> int:
        """How many clients have started."""
        return len(list(self._folder.glob("started-*")))


@pytest.fixture
def gate(tmp_path) -> Gate:
    folder = tmp_path / "gate"
    folder.mkdir()
    return Gate(folder)


@contextlib.contextmanager
def meanwhile(act):
    """Runs `act` beside the block; fails if it failed."""
    with ThreadPoolExecutor(1) as pool:
        acting = pool.submit(act)
        yield
        acting.result()


@pytest.mark.parametrize("address", ["10.0.0.2:9000", "worker-3.lan:1", "[::1]:65535"])
def test_an_address_is_a_host_and_a_port(address):
    assert worker.checked([f" {address} "]) == [address]


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.2",
        "host:",
        ":9000",
        "host:0",
        "host:65536",
        "http://host:1",
        "::1:9000",
        "a b:1",
        "",
    ],
)
def test_an_address_that_is_none_is_refused_by_name(address):
    with pytest.raises(RunError, match="expected host:port, found") as refused:
        worker.checked(["10.0.0.2:9000", address])
    assert f"found {address!r};" in str(refused.value)


@given(st.text())
def test_any_text_is_an_address_or_refused_by_name(text):
    try:
        (address,) = worker.checked([text])
    except RunError as refused:
        assert repr(text.strip()) in str(refused)
    else:
        assert address == text.strip()
        assert 0 < int(address.rpartition(":")[2]) < 65536


def test_no_address_and_an_address_named_twice_are_refused():
    with pytest.raises(RunError, match="found nothing"):
        worker.checked([])
    with pytest.raises(RunError, match="a:1 is named twice"):
        worker.checked(["a:1", "b:2", " a:1"])


def test_silent_are_a_port_where_nobody_listens_and_one_where_somebody_else_does(serve):
    with socket.create_server(
        ("127.0.0.1", 0)
    ) as somebody_else:  # as the near end of a tunnel: it accepts and never speaks
        nobody, dumb = f"127.0.0.1:{a_free_port()}", f"127.0.0.1:{somebody_else.getsockname()[1]}"
        served = serve().listened()
        assert worker.silent([nobody, served.address, dumb], 2.0) == [nobody, dumb]


def test_workers_that_do_not_answer_are_named_before_anything_is_computed():
    one, other = (f"127.0.0.1:{a_free_port()}" for _ in range(2))
    with (
        pytest.raises(RunError, match=f"worker {one}, {other}: does not answer within 0.5 s"),
        worker.remote([one, other], patience_s=0.5),
    ):
        pass


def test_a_worker_that_is_started_late_is_waited_for(serve):
    served = serve()  # not listening yet
    assert worker.silent([served.address], 60.0) == []


def test_a_served_worker_that_is_killed_is_started_again_on_its_port_and_ends_when_asked(serve):
    served = serve().listened()
    first = served.worker()
    os.kill(first, signal.SIGKILL)
    served.listened(times=2)
    second = served.worker()
    assert second != first
    assert worker.silent([served.address], 30.0) == []
    served.process.terminate()
    assert served.process.wait(30) == 0
    assert not is_alive(second)
    place = f"port {served.port} of every interface" if OBSTACLE else served.address
    again = f"the worker ended by SIGKILL; starting it again on {place}"
    listening = f"listening on {place}, 1 client at once"
    warned = [event for event in served.events() if event.startswith("whoever reaches it")]
    assert len(warned) == bool(OBSTACLE)  # on loopback nobody but this machine's users does
    expected = [listening, *warned, again, listening, "ended"]
    assert served.events() == expected


@pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE)
def test_a_served_worker_is_reached_at_its_host_and_nowhere_else(serve):
    served = serve("127.0.0.2").listened()
    until(lambda: len(served.events()) > 0, "it says so")
    reached = [one for one in addresses_of_this_machine() if answers(one, served.port)]
    assert reached == []
    assert worker.silent([f"127.0.0.2:{served.port}"], 30.0) == []


def test_a_worker_on_an_address_that_others_reach_says_what_they_can_do(serve):
    others = [one for one in addresses_of_this_machine() if one not in ("127.0.0.1", "::1")]
    if not others:
        pytest.skip("this machine has loopback only")
    served = serve(others[0]).listened()
    until(lambda: len(served.events()) > 1, "it says so")
    assert served.events()[1].startswith("whoever reaches it runs any graph as this user")


@pytest.mark.parametrize("host", ["no such host", "203.0.113.9", "a" * 300])
def test_a_host_that_is_not_this_machine_s_is_refused(host):
    with pytest.raises(RunError, match="--host an address of this machine"):
        worker._listener(worker.Served(9000, host))


def test_a_served_worker_does_not_outlive_a_server_that_is_killed(serve):
    served = serve().listened()
    left = served.worker()
    served.process.kill()
    until(lambda: not is_alive(left), "the worker is gone")


def test_a_port_that_is_taken_is_refused(serve):
    served = serve().listened()  # two workers on one port would share its connections
    with pytest.raises(RunError, match=f"port {served.port}.*: cannot be listened on"):
        worker.serve(worker.Served(served.port, open_worker=True), print)


def test_two_remote_workers_work_at_once_and_compute_what_one_local_worker_does(serve, gate):
    gate.open()
    with worker.running(1) as local:
        expected = local.call(lambda: gate.sum_and_mean(CLIENTS))
    assert expected[0] == 11111
    gate.close()

    def open_when_two_clients_are_at_it():  # a worker trains one at a time here
        try:
            until(lambda: gate.count() == 2, "a client of each worker started")
        finally:
            gate.open()

    with (
        worker.remote([serve().address, serve().address]) as workers,
        meanwhile(open_when_two_clients_are_at_it),
    ):
        assert workers.call(lambda: gate.sum_and_mean(CLIENTS), 120) == pytest.approx(
            expected, rel=1e-6
        )


def test_more_workers_than_clients_count_every_client_once(serve, gate):
    gate.open()
    with worker.remote([serve().address, serve().address]) as workers:
        assert workers.call(lambda: gate.sum_and_mean([7.0])) == (7.0, 7.0)


def test_a_remote_worker_that_is_killed_at_work_and_started_again_changes_nothing(serve, gate):
    served = [serve().listened(), serve().listened()]

    def kill_one():
        try:
            until(lambda: gate.count() == 2, "a client of each worker started")
            os.kill(served[0].worker(), signal.SIGKILL)
            served[0].listened(times=2)
        finally:
            gate.open()

    with worker.remote([one.address for one in served]) as workers, meanwhile(kill_one):
        total, mean = workers.call(lambda: gate.sum_and_mean(CLIENTS), 120)
    assert total == 11111
    assert mean == pytest.approx(101010101 / 11111, rel=1e-6)  # weighted by themselves


PRIVATE = {"privacy": Privacy("tree", 0.1), "client": Client(weighting="uniform")}


@pytest.mark.parametrize("how", [{"encoded": True}, PRIVATE], ids=["encoded", "private"])
def test_rounds_split_over_two_workers_are_those_of_one_machine_to_rounding(
    serve, tiny_checkpoint, tiny_rows, tiny_plan, how
):
    """One of the two is killed between the rounds."""
    from model import simulation

    recipe = Recipe("tiny", vocabulary=40, rounds=2, cohort=3, plan=tiny_plan, **how)
    population = [tiny_rows[i : i + 8] for i in range(0, 48, 8)]
    with worker.running(2):
        *_, expected = simulation.train(tiny_checkpoint.weights, population, recipe)
    served = [serve().listened(), serve().listened()]
    with worker.remote([one.address for one in served]):
        rounds = simulation.train(tiny_checkpoint.weights, population, recipe)
        next(rounds)
        os.kill(served[0].worker(), signal.SIGKILL)
        round = next(rounds)
    for name, array in expected.weights.items():
        np.testing.assert_allclose(round.weights[name], array, atol=1e-5)


def test_a_remote_worker_that_stays_away_ends_the_round_at_its_deadline_by_name(serve, gate):
    here, away = serve().listened(), serve().listened()
    with worker.remote([here.address, away.address]) as workers:
        child_process.end(away.process)
        with pytest.raises(RunError) as missed:
            workers.call(lambda: gate.sum_and_mean(CLIENTS), 1.0, "round 7")
        with pytest.raises(RunError, match="round 7"):  # and those that follow
            workers.call(lambda: gate.sum_and_mean(CLIENTS), 1.0, "round 8")
    expected = (
        f"round 7: no answer from worker {away.address} within 1 s; start it again with `fedboard "
        f"worker --host 127.0.0.1 --port {away.port}` on 127.0.0.1,"
    )
    assert str(missed.value) == f"{expected} then go on with --resume"


def test_workers_that_answer_but_are_too_slow_are_told_from_workers_that_are_gone(serve, gate):
    with (
        worker.remote([serve().address]) as workers,
        pytest.raises(RunError, match="not done within 1 s, though every worker answers"),
    ):
        workers.call(lambda: gate.sum_and_mean(CLIENTS), 1.0)


@pytest.mark.parametrize(
    ("who", "number"),
    [
        ("worker", signal.SIGKILL),
        ("whoever started it", signal.SIGKILL),
        ("whoever started it", signal.SIGTERM),
    ],
)
def test_a_local_worker_that_dies_at_work_is_started_again(gate, who, number):
    with worker.running(1) as running:

        def kill():
            try:
                until(lambda: gate.count() == 1, "a client started")
                (process,) = workers_below(os.getpid())
                os.kill(process if who == "worker" else running.process.pid, number)
            finally:
                gate.open()

        with meanwhile(kill):
            assert gate.sum_and_mean(CLIENTS)[0] == 11111


def test_a_local_worker_that_dies_too_often_ends_the_computation_and_leaves_no_process(gate):
    processes = []
    with worker.running(1, restarts=1) as running:

        def kill_all():
            while not running.failure:
                if running.process not in processes:
                    processes.append(running.process)
                    running.process.kill()
                time.sleep(0.02)

        with (
            meanwhile(kill_all),
            pytest.raises(
                RunError, match=r"TFF worker: ended 2 times, the last time by SIGKILL; .* --resume"
            ),
        ):
            gate.sum_and_mean(CLIENTS)
    assert len(processes) == 2
    assert not any(is_alive(process.pid) for process in processes)


def test_a_local_worker_ends_with_its_block_and_nothing_is_computed_after_it(gate):
    gate.open()
    with worker.running(1) as running:
        gate.sum_and_mean(CLIENTS)
    assert running.process.poll() is not None
    with pytest.raises(RunError, match="compute inside"):
        gate.sum_and_mean(CLIENTS)


@pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE)
def test_a_local_worker_is_reached_at_no_address_of_this_machine():
    with worker.running(1):
        (process,) = workers_below(os.getpid())
        reached = [
            address for address in addresses_of_this_machine() if answers(address, port_of(process))
        ]
    assert reached == []


@pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE)
@pytest.mark.parametrize("name", ["long" * 25, "a%20b"])
def test_a_worker_starts_wherever_temporary_files_lie(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    with worker.running(1) as local:
        folder = Path(local.addresses[0].removeprefix("unix:")).parent
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


def test_an_error_of_the_computation_itself_passes_through(gate):
    with worker.running(1) as running, pytest.raises(TypeError):
        running.call(lambda: gate.sum_and_mean(["no number"]), 60)
