"""Who is let in: codes, tokens, limits, TLS, and bodies that are not what they should be.

They are slow, cut, coded or not what was signed. A real uvicorn on loopback.
"""

import datetime
import logging
import socket
import time

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import calls, config, signing, transport
from device_runtime.errors import ConfigError, RunError, ServerError
from device_runtime.wire import CheckIn, Enrolment, Kind
from server import access, contract, endpoint
from server.access import Buckets
from server.coordinator import open_folder
from server.rounds import Rules
from server.settings import Limits
from tests.test_server_endpoint import TOKEN, Device, problem, running
from tests.toy_server import PLAN, READY, TOKENIZER, WEIGHTS, OneByOne, encoded, key, new

RULES = Rules(report_goal=2, over_selection=1.5)
OPERATOR = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
PUTS = {**OPERATOR, "content-type": "application/octet-stream"}
CLOSED = endpoint.Access(TOKEN, open_to_readers=False)


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
        contract.TaskSettings(PLAN, "second", checkpoint=put["sha256"], rules=RULES),
    ).json()
    assert (report["name"], report["state"], report["round"], report["checkpoint_round"]) == (
        "second",
        "running",
        31,
        30,
    )
    assert problem(
        ask("POST", "/v1/tasks", contract.TaskSettings(PLAN, "second", checkpoint=put["sha256"]))
    ) == (409, "wrong_state")
    assert problem(
        ask("POST", "/v1/tasks", contract.TaskSettings(PLAN, "third", checkpoint="0" * 64))
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
