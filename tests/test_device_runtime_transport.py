import contextlib
import itertools
import socket
import threading
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import transport
from device_runtime.calls import Signer, signed
from device_runtime.errors import ServerError
from device_runtime.transport import Interrupted, Meter, Reply, Unreachable, http, persistent

BLOB = bytes(range(256)) * 40  # 10,240 bytes


class Handler(BaseHTTPRequestHandler):
    """Sends BLOB, by Range too, and breaks off as the server's list of `cuts` says: so many bytes
    of the next reply, or None for all of it.
    """

    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.seen.append((self.command, dict(self.headers.items()), body))
        start = (
            int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
            if self.server.ranges
            else 0
        )
        cut = self.server.cuts.pop(0) if self.server.cuts else None
        if cut == "silent":
            self.close_connection = True
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(BLOB) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}")
        self.end_headers()
        self.wfile.write(BLOB[start:][:cut])
        self.close_connection = cut is not None

    do_GET = do_PUT = do_POST = answer

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def server(*cuts, ranges=True, port=0, handler=Handler):
    listening = ThreadingHTTPServer(("127.0.0.1", port), handler)
    listening.cuts, listening.ranges, listening.seen = list(cuts), ranges, []
    listening.url = f"http://127.0.0.1:{listening.server_address[1]}"
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield listening
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_request_and_its_reply_travel_as_they_are():
    with server() as listening, http(listening.url) as send:
        reply = send("PUT", "/v1/x", b"\x00\xff", {"fedboard-device": "abc"})
        assert (reply.status, reply.body) == (200, BLOB)
        assert reply.headers["content-length"] == str(len(BLOB))
        method, headers, body = listening.seen[0]
        assert (method, body, headers["fedboard-device"]) == ("PUT", b"\x00\xff", "abc")
        assert headers["accept-encoding"] == "identity"


def test_a_server_that_is_not_there_is_one_clear_line():
    port = free_port()
    with (
        http(f"http://127.0.0.1:{port}") as send,
        pytest.raises(
            Unreachable, match=rf"GET http://127\.0\.0\.1:{port}/v1/rounds: no connection"
        ),
    ):
        send("GET", "/v1/rounds", b"", {})


@pytest.mark.parametrize("url", ["nonsense", "ftp://host", "http://", "http://host:port", ""])
def test_what_is_no_address_is_refused_at_once(url):
    with pytest.raises(ServerError, match="address"), http(url):
        pass


def test_a_request_without_connection_is_repeated_after_each_pause_then_given_up():
    pauses = []
    with http(f"http://127.0.0.1:{free_port()}") as send:
        patient = persistent(send, pauses_s=(0.5, 1.0, 2.0), sleep=pauses.append)
        for method in ("GET", "PUT", "POST"):
            with pytest.raises(Unreachable):
                patient(method, "/v1/x", b"", {})
    assert pauses == [0.5, 1.0, 2.0] * 3


def test_a_request_waits_for_a_server_that_starts_late():
    port = free_port()
    with contextlib.ExitStack() as late, http(f"http://127.0.0.1:{port}") as send:
        reply = persistent(send, sleep=lambda _: late.enter_context(server(port=port)))(
            "POST", "/v1/x", b"", {}
        )
    assert reply.body == BLOB


def test_a_broken_download_goes_on_where_it_stopped():
    with server(1000, 500) as listening, http(listening.url) as send:
        meter = Meter(send)
        reply = persistent(meter, sleep=lambda _: None)("GET", "/v1/blobs/x", b"", {})
    assert (reply.status, reply.body) == (200, BLOB)
    assert [headers.get("range") for _, headers, _ in listening.seen] == [
        None,
        "bytes=1000-",
        "bytes=1500-",
    ]
    assert meter.down == len(BLOB)


def test_a_download_starts_over_where_ranges_are_not_known():
    with server(1000, ranges=False) as listening, http(listening.url) as send:
        meter = Meter(send)
        reply = persistent(meter, sleep=lambda _: None)("GET", "/v1/blobs/x", b"", {})
    assert reply.body == BLOB
    assert meter.down == 1000 + len(BLOB)


def test_a_download_that_always_breaks_is_given_up():
    with (
        server(*["silent"] * 9) as listening,
        http(listening.url) as send,
        pytest.raises(Interrupted, match="no whole reply came"),
    ):
        persistent(send, pauses_s=(0.0, 0.0), sleep=lambda _: None)("GET", "/v1/blobs/x", b"", {})
    assert len(listening.seen) == 3


def test_a_download_that_never_gets_any_further_is_given_up():
    with (
        server(*[1000] * 9, ranges=False) as listening,
        http(listening.url) as send,
        pytest.raises(Interrupted),
    ):
        persistent(send, pauses_s=(0.0, 0.0), sleep=lambda _: None)("GET", "/v1/blobs/x", b"", {})
    # the first piece starts the pauses anew, later ones bring nothing
    assert len(listening.seen) == 3


@given(cuts=st.lists(st.integers(0, 40), max_size=12))
def test_however_a_download_breaks_the_bytes_are_those_of_the_blob(cuts):
    blob, cuts = bytes(range(100)), iter(cuts)

    def send(method, path, body, headers):
        start = int(headers.get("range", "bytes=0-")[6:-1])
        reply = (
            Reply(206, {"content-range": f"bytes {start}-99/100"}, blob[start:])
            if start
            else Reply(200, {}, blob)
        )
        cut = next(cuts, None)
        if cut is not None and cut < len(reply.body):
            raise Interrupted(
                "GET", "broke", "try again", Reply(reply.status, reply.headers, reply.body[:cut])
            )
        return reply

    reply = persistent(send, pauses_s=(0.0,) * 12, sleep=lambda _: None)("GET", "/", b"", {})
    assert (reply.status, reply.body) == (200, blob)


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_a_lost_reply_is_asked_for_again_with_the_same_bytes(method):
    with server("silent") as listening, http(listening.url) as send:
        meter = Meter(send)
        assert persistent(meter, sleep=lambda _: None)(method, "/v1/x", b"update", {}).status == 200
    assert [body for _, _, body in listening.seen] == [b"update", b"update"]
    assert meter.up == 2 * len(b"update")


def test_every_attempt_is_signed_anew():
    key = Ed25519PrivateKey.generate()
    with server("silent", "silent") as listening, http(listening.url) as send:
        signer = Signer(key, "ab" * 16)
        persistent(signed(send, signer), sleep=lambda _: None)("PUT", "/v1/x", b"update", {})
    assert len({headers["fedboard-nonce"] for _, headers, _ in listening.seen}) == 3
    assert {headers["fedboard-device"] for _, headers, _ in listening.seen} == {signer.device}


def test_an_endless_reply_is_cut_off(monkeypatch):
    monkeypatch.setattr(transport, "MAX_REPLY_BYTES", 5000)
    with (
        server() as listening,
        http(listening.url) as send,
        pytest.raises(ServerError, match="expected at most 5000 bytes, found more"),
    ):
        send("GET", "/v1/x", b"", {})


def test_what_does_not_speak_http_is_one_clear_line():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet():
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail server ready\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        with (
            http(f"http://127.0.0.1:{listening.getsockname()[1]}") as send,
            pytest.raises(ServerError, match="no whole reply came"),
        ):
            send("GET", "/v1/rounds", b"", {})
        thread.join()


def test_no_body_shows_in_the_text_of_a_reply():
    assert "secret" not in repr(Reply(200, {}, b"secret"))


# what a server may not do to a device


@contextlib.contextmanager
def dripping(head: bytes, drops: bytes, most: int = 100_000):
    """The URL of a server that sends `head` at once, then one of `drops` after the other, until
    nobody listens.
    """
    listening, over = socket.create_server(("127.0.0.1", 0)), threading.Event()
    listening.settimeout(0.05)

    def drip(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65_536)
            connection.sendall(head)
            for place in range(most):
                if over.wait(0.001):
                    return
                connection.sendall(drops[place % max(1, len(drops)) :][:1])

    def accept() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listening.accept()
                connection.settimeout(5)
                threading.Thread(target=drip, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        over.set()
        thread.join()
        listening.close()


def seconds(step: float):
    """A clock that moves on by `step` whenever it is read."""
    ticks = itertools.count()
    return lambda: step * next(ticks)


def test_a_reply_that_drips_is_ended_and_not_gone_on_with():
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n"
    with dripping(head, b"x") as url, http(url, now=seconds(1.0)) as send:
        with pytest.raises(ServerError, match="expected 1000 bytes a second") as refused:
            persistent(send, sleep=lambda _: None)("GET", "/v1/blobs/x", b"", {})
        assert not isinstance(refused.value, Interrupted)


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nx-slow: "])
def test_headers_that_drip_are_ended(monkeypatch, head):
    with dripping(head, b"a") as url, http(url) as send:
        monkeypatch.setattr(transport, "TIMEOUT_S", 0.05)
        with pytest.raises(Interrupted, match="no whole reply came"):
            send("GET", "/v1/x", b"", {})


@pytest.mark.parametrize("head", [b"1;", b"0\r\nx: "], ids=["of a chunk's head", "of a trailer"])
def test_a_reply_whose_pieces_never_become_whole_is_ended(monkeypatch, head):
    """No piece comes at which the clock could be looked at, and each read brings something."""
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    with dripping(chunked + head, b"a") as url, http(url) as send:
        monkeypatch.setattr(transport, "TIMEOUT_S", 0.05)
        with pytest.raises(ServerError, match="expected 1000 bytes a second") as refused:
            persistent(send, sleep=lambda _: None)("GET", "/v1/blobs/x", b"", {})
        assert not isinstance(refused.value, Interrupted)


def test_a_reply_in_crumbs_takes_no_more_memory_than_its_bytes():
    """Each crumb of one byte, kept as it came, would take fifty."""
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    crumbs = b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n"
    with dripping(head + crumbs, b"") as url, http(url) as send:
        tracemalloc.start()
        try:
            reply = send("GET", "/v1/x", b"", {})
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert reply.body == b"x" * 50_000
    assert peak < 1_000_000


class Baker(Handler):
    """The same with many cookies."""

    def end_headers(self):
        for number in range(50):
            self.send_header("set-cookie", f"c{number}={'v' * 1000}; Path=/")
        super().end_headers()


def test_a_device_takes_no_cookies():
    """Thousands would fill it, and by one it would be known again."""
    with server(handler=Baker) as listening, http(listening.url) as send:
        for _ in range(2):
            assert send("GET", "/v1/x", b"", {}).status == 200
    assert ["cookie" in {name.lower() for name in headers} for _, headers, _ in listening.seen] == [
        False,
        False,
    ]


def test_what_a_server_sent_is_not_repeated_at_length():
    with (
        dripping(b"HTTP/1.1 200 OK\r\n" + b"\xff" * 60_000 + b"\r\n\r\n", b"a") as url,
        http(url) as send,
        pytest.raises(ServerError, match="no whole reply came") as refused,
    ):
        send("GET", "/v1/x", b"", {})
    assert len(str(refused.value)) < 500


def test_headers_without_end_are_cut_off():
    with (
        dripping(b"HTTP/1.1 200 OK\r\nx-long: " + b"a" * 200_000, b"a") as url,
        http(url) as send,
        pytest.raises(ServerError, match="no whole reply came"),
    ):
        send("GET", "/v1/x", b"", {})


def test_a_reply_is_as_large_as_its_request_allows():
    with server() as listening, http(listening.url) as send:
        assert send("GET", "/v1/x", b"", {transport.AT_MOST: str(len(BLOB))}).body == BLOB
        with pytest.raises(ServerError, match="expected at most 10239 bytes, found more"):
            send("GET", "/v1/x", b"", {transport.AT_MOST: str(len(BLOB) - 1)})
        # the limit is the device's own affair
        assert all(transport.AT_MOST not in headers for _, headers, _ in listening.seen)


def test_a_message_has_a_megabyte_at_most_whoever_sends_it():
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 2000000\r\n\r\n" + b"x" * 1_500_000
    with (
        dripping(head, b"x") as url,
        http(url) as send,
        pytest.raises(ServerError, match="expected at most 1048576 bytes"),
    ):
        send("POST", "/v1/check-in", b"", {})


@pytest.mark.parametrize("pieces", [[4000] * 50, [9000, 2000]])
def test_all_pieces_of_a_download_are_no_larger_than_one_reply_may_be(pieces):
    """Each piece breaks off and goes on where the last one stopped, for ever."""
    sizes, asked = iter(pieces), []

    def send(method, path, body, headers):
        start = int(headers.get("range", "bytes=0-")[6:-1])
        asked.append(start)
        reply = Reply(
            206 if start else 200, {"content-range": f"bytes {start}-"}, b"x" * next(sizes)
        )
        if len(asked) < len(pieces):
            raise Interrupted("GET", "broke", "try again", reply)
        return reply

    limited = {transport.AT_MOST: "10000"}
    with pytest.raises(ServerError, match="expected at most 10000 bytes") as refused:
        persistent(send, sleep=lambda _: None)("GET", "/v1/blobs/x", b"", limited)
    assert not isinstance(refused.value, Interrupted)
    assert len(asked) <= 3


def test_a_download_in_crumbs_ends_within_an_hour():
    def send(method, path, body, headers):
        start = int(headers.get("range", "bytes=0-")[6:-1])
        reply = Reply(206 if start else 200, {"content-range": f"bytes {start}-"}, b"x")
        raise Interrupted("GET", "broke", "try again", reply)

    with pytest.raises(ServerError, match="within an hour"):
        persistent(send, sleep=lambda _: None, now=seconds(10.0))("GET", "/v1/blobs/x", b"", {})


@pytest.mark.parametrize(
    ("url", "needs_it"),
    [
        ("http://127.0.0.1:8000", False),
        ("http://127.9.9.9:8000", False),
        ("http://localhost:8000", False),
        ("http://LOCALHOST:8000", False),
        ("http://[::1]:8000", False),
        ("http://[::ffff:127.0.0.1]:8000", False),
        ("https://fedboard.example", False),
        ("http://fedboard.example", True),
        ("http://10.0.0.1:8000", True),
        ("http://[fe80::1]:8000", True),
        ("http://localhost.example:8000", True),
        ("http://127.0.0.1.example:8000", True),
        ("http://127.0.0.1@fedboard.example", True),
        ("http://0.0.0.0:8000", True),
        ("http://2130706433:8000", True),
    ],
)
def test_another_machine_needs_tls_or_an_owner_who_says_so(url, needs_it):
    if not needs_it:
        with http(url):
            return
    with pytest.raises(ServerError, match=r"expected https://.*pass --insecure"), http(url):
        pass
    with http(url, insecure=True):
        pass
