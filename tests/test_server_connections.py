"""Connections that say nothing, say it slowly or never come to an end keep nobody else out.

The bookkeeping with toy connections, the rest against a real uvicorn on loopback.
"""

import contextlib
import logging
import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import config, signing
from server import access, connections, endpoint
from server.connections import Connection, Connections
from server.rounds import Rules
from server.settings import Limits
from tests.test_server_doors import certificates  # noqa: F401, a fixture
from tests.test_server_endpoint import TOKEN, Device, running
from tests.toy_server import READY, new

ROOT = Path(__file__).parent.parent
RULES = Rules(report_goal=2, over_selection=1.5)


class Toy(Connection):
    """A connection that remembers its end."""

    def __init__(self, whose: str):
        super().__init__(whose, self.note)
        self.is_over = False

    def note(self) -> None:
        self.is_over = True


# who gives way


def test_the_oldest_that_waits_gives_way_and_one_that_is_answered_does_not():
    among = Connections(most=3, most_by_address=0)
    working, old, young, fourth = (Toy("10.0.0.1") for _ in range(4))
    assert all(among.admit(each) for each in (working, old, young))
    among.work(working)
    assert among.admit(fourth)
    assert [each.is_over for each in (working, old, young, fourth)] == [False, True, False, False]


def test_the_address_that_holds_most_gives_way_first():
    among = Connections(most=4, most_by_address=0)
    lone = Toy("10.0.0.1")
    crowd = [Toy("10.0.0.2") for _ in range(3)]
    assert among.admit(lone) and all(among.admit(each) for each in crowd)
    for _ in range(2):
        assert among.admit(Toy("10.0.0.3"))
    assert [each.is_over for each in (lone, *crowd)] == [False, True, True, False]


def test_nobody_is_let_in_where_all_are_being_answered():
    among = Connections(most=1, most_by_address=0)
    first = Toy("10.0.0.1")
    assert among.admit(first)
    among.work(first)
    assert not among.admit(Toy("10.0.0.2"))
    among.wait(first)
    assert among.admit(Toy("10.0.0.2"))
    assert (first.is_over, dict(among.ended)) == (True, {"server_full": 1, "gave_way": 1})


def test_one_address_has_its_share_and_this_machine_and_its_proxies_have_more():
    among = connections.of(Limits(connections_by_address=2, connections=100), "10.9.0.0/16")
    for whose, admitted in (("10.0.0.1", 2), ("127.0.0.1", 4), ("10.9.8.7", 4), ("", 2)):
        assert sum(among.admit(Toy(whose)) for _ in range(4)) == admitted, whose


@given(
    st.lists(
        st.tuples(st.sampled_from(["admit", "wait", "work", "leave"]), st.integers(0, 7)),
        max_size=80,
    )
)
def test_connections_never_pass_their_limits_and_who_is_answered_is_never_ended(steps):
    among = Connections(most=4, most_by_address=3)
    toys: list[Toy] = []
    working: set[Toy] = set()
    for what, which in steps:
        if what == "admit":
            toys.append(Toy(f"10.0.0.{which % 3}"))
            among.admit(toys[-1])
        elif toys:
            toy = toys[which % len(toys)]
            getattr(among, what)(toy)
            if what == "work" and toy in among.all:
                working.add(toy)
            else:
                working.discard(toy)
        assert len(among.all) <= 4
        for whose in {each.whose for each in toys}:
            assert sum(each.whose == whose for each in among.all) <= 3
        assert not any(each.is_over for each in working)
        assert not any(each.is_over for each in among.all)
    for each in list(among.all):
        among.leave(each)
    assert (among._waiting, dict(among._by_address)) == ({}, {})


@pytest.mark.parametrize(
    ("host", "whose"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("unknown", ""),
        ("", ""),
    ],
)
def test_whoever_has_one_address_of_a_network_has_all_of_it(host, whose):
    assert access.network_of(host) == whose


# real connections


def limited(**limits: float) -> endpoint.Access:
    return endpoint.Access(TOKEN, limits=Limits(**limits))


@contextlib.contextmanager
def strangers(url: str, count: int, say: bytes = b""):
    """So many connections that say no more than that."""
    host, port = url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(count):
            with contextlib.suppress(ConnectionError):
                sock = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
                opened.append(sock)
                sock.sendall(say)
        yield opened


def answers(sock: socket.socket) -> bytes:
    """All that comes until the connection is ended."""
    answer = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65_536):
            answer += piece
    return answer


@pytest.mark.parametrize("say", [b"", b"POST /v1/check-in HTTP/1.1\r\nhost: x\r\nx: ", b"\r\n"])
def test_strangers_who_say_too_little_keep_no_device_out(tmp_path, say):
    with running(new(tmp_path, RULES), access_=limited(connections=20)) as url:
        device = Device(url, 1)
        for _ in range(3):
            with strangers(url, 60, say):
                device.http.close()
                device.http = httpx.Client(base_url=url)
                assert device.check_in().round == 1
                assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_server_with_few_descriptors_answers_beside_more_strangers_than_it_has(tmp_path):
    new(tmp_path / "server", RULES).close()
    script = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
from server import endpoint
from server.coordinator import Coordinator, open_folder
sock = endpoint.bind("127.0.0.1", 0)
print(sock.getsockname()[1], flush=True)
endpoint.serve(endpoint.app(Coordinator(*open_folder(Path(sys.argv[1])))), sock)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "server")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
            device = Device(url, 1)
            with strangers(url, 400):
                device.http.close()
                device.http = httpx.Client(base_url=url)
                assert device.check_in().round == 1
                work = device.work
                assert device.upload(work, 1).counted
                assert httpx.get(f"{url}/readyz").status_code == 200
        finally:
            process.terminate()


@pytest.mark.parametrize(
    "say",
    [
        b"",
        b"GET /healthz HT",
        b"GET /healthz HTTP/1.1\r\nhost: x\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /healthz HTTP/1.1\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n",
    ],
)
def test_who_does_not_come_to_the_end_of_a_head_is_let_go_of(tmp_path, say):
    with (
        running(new(tmp_path, RULES), access_=limited(header_s=1)) as url,
        strangers(url, 1, say) as (sock,),
    ):
        answer = answers(sock)
        assert answer.count(b"200 OK") == (1 if b"\r\n\r\n" in say else 0)


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /healthz HTTP/1.1\r\nhost: x\r\nendless: ",
        b"GET /",
        b"GET /healthz HTTP/1.1\r\nendless",
        b"PUT /v1/checkpoints HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\nend: ",
        b"PUT /v1/checkpoints HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1; ",
    ],
)
def test_what_has_no_end_is_not_read_on(tmp_path, begin):
    with (
        running(new(tmp_path, RULES), access_=limited(header_s=60)) as url,
        strangers(url, 1, begin) as (sock,),
    ):
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 8 << 20:  # more than any buffer on the way
                sock.sendall(b"a" * 65_536)
                sent += 65_536
        assert sent < 8 << 20
        assert b"200 OK" not in answers(sock)


def test_a_head_that_is_too_large_is_told_so_and_one_that_is_not_is_answered(tmp_path):
    with running(new(tmp_path, RULES), access_=limited(header_bytes=2000)) as url:
        for size, status in ((1000, b"200"), (3000, b"431"), (300_000, b"431")):
            request = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx: %s\r\n\r\n"
            with strangers(url, 1) as (sock,):
                with contextlib.suppress(ConnectionError):
                    sock.sendall(request % (b"a" * size))
                assert answers(sock).split(b" ")[1] == status
        # a body that comes with its head is no head
        device = Device(url, 1)
        body = config.to_json(READY)
        signed = device.signed(signing.Request("POST", "/v1/check-in", body + b" " * 3000))
        lines = [f"{name}: {value}" for name, value in signed.items()]
        head = "\r\n".join(["POST /v1/check-in HTTP/1.1", "host: x", *lines])
        padded = body + b" " * 3000
        whole = f"{head}\r\ncontent-length: {len(padded)}\r\nconnection: close\r\n\r\n".encode()
        with strangers(url, 1, whole + padded) as (sock,):
            assert answers(sock).split(b" ")[1] == b"200"


def test_who_sends_many_requests_without_reading_answers_is_let_go_of(tmp_path):
    with (
        running(new(tmp_path, RULES)) as url,
        strangers(url, 1, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" * 1000) as (sock,),
    ):
        assert answers(sock).count(b"200 OK") < 100
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_garbage_is_refused_and_an_upgrade_is_not_made(tmp_path):
    with running(new(tmp_path, RULES)) as url:
        hello = b"\x16\x03\x01\x02\x00\x01\x00"  # of TLS
        for garbage in (hello, os.urandom(300), b"CONNECT a:1 HTTP/1.1\r\n\r\n"):
            with strangers(url, 1, garbage + b"\r\n\r\n") as (sock,):
                assert b"200 OK" not in answers(sock)
        wanted = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
        with strangers(url, 1, b"GET /healthz HTTP/1.1\r\nhost: x\r\n%s\r\n" % wanted) as (sock,):
            assert b"200 OK" in answers(sock)
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_garbage_behind_a_request_that_is_being_answered_is_no_error_of_the_server(tmp_path):
    errors: list[str] = []
    told = logging.Handler(logging.ERROR)
    told.emit = lambda record: errors.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(told)
    with running(new(tmp_path, RULES)) as url:
        page = b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
        for _ in range(5):
            with strangers(url, 1, page + b"\0\r\n\r\n") as (sock,):
                assert b"200 OK" not in answers(sock)
        assert httpx.get(url).status_code == 200
    logger.removeHandler(told)
    assert errors == []


def test_who_asks_for_a_checkpoint_and_does_not_read_it_is_let_go_of(tmp_path):
    large = {"weights": np.zeros(8 << 20, np.float32)}
    limits = {"body_s": 1, "least_bytes_per_s": 1e9}
    with running(new(tmp_path, RULES, values=large), access_=limited(**limits)) as url:
        device = Device(url, 1)
        work = device.check_in()
        path = f"/v1/blobs/{work.checkpoint}"
        signed = device.signed(signing.Request("GET", path, b"", work.task, work.round))
        lines = "".join(f"{name}: {value}\r\n" for name, value in signed.items())
        host, port = url.removeprefix("http://").split(":")
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(20)
            sock.connect((host, int(port)))
            sock.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n{lines}\r\n".encode())
            metrics = ""
            while 'why="answer_not_read"' not in metrics:
                metrics = httpx.get(f"{url}/metrics").text
                time.sleep(0.05)
            assert 0 < len(answers(sock)) < 16 << 20
        # who reads gets it whole, piece by piece
        reply = device.send("GET", path)
        assert (reply.status_code, len(reply.content)) == (
            200,
            int(reply.headers["content-length"]),
        )
        assert len(reply.content) > 16 << 20


def test_strangers_who_say_nothing_of_tls_keep_no_device_out(tmp_path, certificates, monkeypatch):  # noqa: F811
    options = {
        "ssl_certfile": str(certificates / "server.pem"),
        "ssl_keyfile": str(certificates / "server.key"),
    }
    trusted = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    with running(
        new(tmp_path / "server", RULES), tls=options, access_=limited(connections=10, header_s=1)
    ) as url:
        secure = url.replace("http://", "https://")
        with strangers(url, 30) as silent:
            assert httpx.get(f"{secure}/healthz", verify=trusted).status_code == 200
            for sock in silent:
                assert answers(sock) == b""
        with strangers(url, 1, b"GET / HTTP/1.1\r\n\r\n") as (plain,):
            assert b"200 OK" not in answers(plain)
        assert httpx.get(f"{secure}/healthz", verify=trusted).status_code == 200
