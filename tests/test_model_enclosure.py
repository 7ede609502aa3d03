"""An enclosure: who reaches a program in it, how it ends, and what is so where none can be had.

The programs are real servers, the networks real namespaces. A machine that allows none is a user
namespace of ours whose own limit of further ones is 0.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import child_process, enclosure

ROOT = Path(__file__).parents[1]
needed = pytest.mark.skipif(bool(enclosure.obstacle()), reason=enclosure.obstacle())

# says what it is told in capitals, until its starter says that it may end
SERVER = f"""
import os, pathlib, socket, sys, threading
folder = pathlib.Path(sys.argv[1])
(folder / "pid").write_text(str(os.getpid()))
def answer(one):
    while piece := one.recv(1 << 16):
        one.sendall(piece.upper())
    one.shutdown(socket.SHUT_WR)
with socket.create_server(("", {enclosure.PORT})) as server:
    while True:
        threading.Thread(target=answer, args=(server.accept()[0],)).start()
"""
# a process without the right to make namespaces; with an address if one is named, and then alone
# with it. It does what its last argument says.
ELSEWHERE = """
import ctypes, fcntl, os, socket, struct, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from model import enclosure
address, code = sys.argv[2:]
if address:
    enclosure._enter()
    with socket.socket() as any_socket:
        inet = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
        fcntl.ioctl(any_socket, 0x8916, struct.pack("16s16s", b"lo:1", inet))
else:
    user = os.geteuid()
    assert ctypes.CDLL(None).unshare(enclosure._CLONE_NEWUSER) == 0
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
Path("/proc/sys/user/max_user_namespaces").write_text("0")
exec(code)
"""


def elsewhere(code: str, address: str = "") -> list[str]:
    """What the code says on a machine that allows no namespaces, with this address only."""
    command = [sys.executable, "-c", ELSEWHERE, str(ROOT), address, code]
    with tempfile.TemporaryFile() as said:
        subprocess.run(command, stdout=said, stderr=subprocess.STDOUT)
        said.seek(0)
        return said.read().decode().splitlines()


def until(condition, what: str):
    deadline = time.monotonic() + 30
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)
    return value


def lives(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class Enclosed:
    """A server in an enclosure, behind a Unix socket or an address and port."""

    def __init__(self, folder: Path, listener: socket.socket):
        self.folder, self.address, self._family = folder, listener.getsockname(), listener.family
        (folder / "said").mkdir()
        command = enclosure.command([sys.executable, "-c", SERVER, str(folder / "said")], listener)
        with listener:
            self.process = child_process.start(
                command, folder / "log", pass_fds=(listener.fileno(),)
            )

    def connected(self) -> socket.socket:
        """A connection to it, once it listens."""

        def one() -> socket.socket | None:
            connection = socket.socket(self._family)
            with contextlib.suppress(OSError):
                connection.connect(self.address)
                return connection
            connection.close()
            return None

        return until(one, "the server is reached")

    def pid(self) -> int:
        return int((self.folder / "said" / "pid").read_text())


@pytest.fixture
def enclosed(tmp_path):
    """A server in an enclosure behind a Unix socket."""
    (tmp_path / "door").mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "door" / "socket"))
    server = Enclosed(tmp_path, listener)
    yield server
    child_process.end(server.process)


@needed
def test_what_is_enclosed_is_reached_through_its_socket_and_at_no_address(enclosed):
    with enclosed.connected() as connection:
        connection.sendall(b"hello")
        connection.shutdown(socket.SHUT_WR)
        assert connection.makefile("rb").read() == b"HELLO"
    known = enclosure.addresses(
        Path("/proc/net/fib_trie").read_text(), Path("/proc/net/if_inet6").read_text()
    )
    assert len(known) > 1
    for address in known:
        if not address.is_link_local:
            with pytest.raises(OSError, match="refused"):
                socket.create_connection((str(address), enclosure.PORT), timeout=5)


@needed
def test_it_is_reached_at_the_one_address_that_was_asked_for(tmp_path):
    listener = socket.socket()
    listener.bind(("127.0.0.2", 0))
    server = Enclosed(tmp_path, listener)
    try:
        with server.connected() as connection:
            connection.sendall(b"hello")
            assert connection.recv(5) == b"HELLO"
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", server.address[1]), timeout=5)
    finally:
        child_process.end(server.process)


@needed
def test_megabytes_pass_in_both_directions_at_once_and_in_order(enclosed):
    sent = b"".join(b"%07x " % number for number in range(1 << 19))  # 4 MiB
    with enclosed.connected() as connection:
        reader = connection.makefile("rb")
        back = bytearray()
        for start in range(0, len(sent), 1 << 16):
            connection.sendall(sent[start : start + (1 << 16)])
            back += reader.read(1 << 16)
        connection.shutdown(socket.SHUT_WR)
        assert reader.read() == b""
    assert bytes(back) == sent.upper()


@needed
def test_connections_do_not_wait_for_one_another(enclosed):
    with enclosed.connected(), enclosed.connected() as second:  # the first says nothing
        second.sendall(b"hello")
        assert second.recv(5) == b"HELLO"


@needed
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_the_enclosure_ends_as_its_program_did(enclosed, number):
    with enclosed.connected() as connection:
        connection.sendall(b"hello")
        assert connection.recv(5) == b"HELLO"
        os.kill(enclosed.pid(), number)
        assert connection.recv(5) == b""
    assert enclosed.process.wait(30) == -number


@needed
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_program_does_not_outlive_its_enclosure(enclosed, number):
    enclosed.connected().close()
    os.kill(enclosed.process.pid, number)
    enclosed.process.wait(30)
    until(lambda: not lives(enclosed.pid()), "the program is gone")


STARTER = """
import socket, sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from model import child_process, enclosure
folder = Path(sys.argv[2])
listener = socket.socket(socket.AF_UNIX)
listener.bind(str(folder / "door" / "socket"))
command = enclosure.command([sys.executable, "-c", sys.argv[3], str(folder)], listener)
child_process.start(command, pass_fds=(listener.fileno(),))
for _ in range(300):  # as many as TensorFlow has: they do not end all at once
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
(folder / "threads").touch()
time.sleep(60)
"""


@needed
def test_a_starter_that_is_killed_leaves_neither_program_nor_folder(tmp_path):
    (tmp_path / "door").mkdir()
    starter = child_process.start([sys.executable, "-c", STARTER, str(ROOT), str(tmp_path), SERVER])
    pid = int(until(lambda: (p := tmp_path / "pid").exists() and p.read_text(), "it runs"))
    assert lives(pid)
    until((tmp_path / "threads").exists, "its threads run")
    starter.kill()
    until(lambda: not lives(pid), "the program is gone")
    until(lambda: not (tmp_path / "door").exists(), "the folder is gone")


@needed
def test_what_is_written_inside_belongs_to_the_user_outside(enclosed):
    enclosed.connected().close()
    assert (enclosed.folder / "said" / "pid").stat().st_uid == os.geteuid()


@needed
def test_where_no_namespace_can_be_had_it_is_said_why():
    assert elsewhere("print(enclosure.obstacle())") == ["unshare: No space left on device"]


RUN = """
from model import worker
try:
    with worker.running(1, tell=print, open_worker={}):
        print("runs")
except worker.RunError as error:
    print(error)
"""


@needed
def test_a_worker_that_strangers_would_reach_is_refused_unless_that_was_allowed():
    (refused,) = elsewhere(RUN.format(False), "8.8.8.8")
    assert refused.startswith("TFF worker: can get no network of its own (unshare: No space left")
    assert "strangers would reach it at 8.8.8.8" in refused
    assert refused.endswith("or close this machine's ports to strangers and pass --open-worker")
    told, runs = elsewhere(RUN.format(True), "8.8.8.8")
    assert re.match(r"TFF's worker listens on port \d+ of 8\.8\.8\.8, as it can get no", told)
    assert runs == "runs"


@needed
def test_a_worker_that_neighbours_would_reach_is_told_of_in_one_line():
    code = "from model import worker\nworker._port_for_all(False, print)"
    (told,) = elsewhere(code, "10.1.2.3")
    assert re.match(r"TFF's worker listens on port \d+ of 10\.1\.2\.3, as it can get no", told)
    assert told.endswith("whoever reaches it runs any graph as this user")


@needed
def test_a_worker_that_nobody_would_reach_needs_no_word():
    code = "from model import worker\nassert worker._port_for_all(False, print)"
    assert elsewhere(code, "127.0.0.2") == []


@needed
def test_a_worker_for_other_machines_is_refused_where_it_could_not_keep_to_its_host():
    code = "from model import worker\nworker.serve(worker.Served(9000, '10.0.0.2'), print)"
    said = elsewhere(code)[-1]
    assert "--host 10.0.0.2: TFF's worker can get no network of its own here" in said
    assert "would listen on every interface" in said
    assert "--open-worker" in said


TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
           |-- 127.0.0.1
              /32 host LOCAL
     |-- 203.0.113.0
        /24 link UNICAST
     |-- 203.0.113.7
        /32 host LOCAL
     |-- 203.0.113.255
        /32 link BROADCAST
"""


def test_addresses_are_those_that_are_local_and_no_networks_or_broadcasts():
    ipv6 = "fe800000000000000000000000000001 02 40 20 80     eth0\n"
    known = enclosure.addresses(TRIE, ipv6)
    assert [str(one) for one in known] == ["127.0.0.1", "203.0.113.7", "fe80::1"]


@given(st.ip_addresses())
def test_every_address_is_this_machine_s_alone_a_neighbour_s_or_a_stranger_s(address):
    reach = enclosure.reach_at([address])
    assert len(reach.strangers) == address.is_global
    assert len(reach.neighbours) == (not address.is_global and not address.is_loopback)
