"""The endpoint: a real uvicorn on loopback, real signatures, and a server killed mid-round."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from device_runtime import config, signing, weights, wire
from device_runtime.causes import Cause
from device_runtime.errors import RunError
from device_runtime.update import encoded_bytes
from device_runtime.wire import (
    Abandon,
    Ack,
    Assignment,
    Enrolled,
    Enrolment,
    Plan,
    Problem,
    Reject,
    RoundReports,
    Server,
)
from server import contract, endpoint
from server.coordinator import Coordinator
from server.rounds import Rules
from tests.toy_server import DIMENSION, PLAN, READY, check_in, encoded, enrolled, key, new

ROOT = Path(__file__).parent.parent
TOKEN = "a token of some length"
RULES = Rules(report_goal=2, over_selection=1.5, rounds=2)


class Device:
    """A device's side of HTTP: signs what it sends."""

    def __init__(self, url: str, number: int):
        self.http, self.key = httpx.Client(base_url=url), key(number)
        told = config.from_json(Server, self.http.get("/v1/server").content, "reply")
        self.server, self.ahead_s = told.server, told.time - time.time()
        self.name = signing.name_of(signing.public_hex(self.key))
        self.work = Assignment("", 0, "", "", "", 0.0, task="")  # what it signs its requests for
        reply = self.send(
            "POST", "/v1/devices", config.to_json(Enrolment(signing.public_hex(self.key)))
        )
        assert config.from_json(Enrolled, reply.content, "reply").device == self.name

    def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> httpx.Response:
        request = signing.Request(method, path, body, self.work.task, self.work.round)
        reply = self.http.request(
            method, path, content=body, headers={**self.signed(request), **headers}
        )
        if "fedboard-time" not in reply.headers:
            return reply
        self.ahead_s = int(reply.headers["fedboard-time"]) - time.time()
        return self.http.request(
            method, path, content=body, headers={**self.signed(request), **headers}
        )

    def signed(self, request: signing.Request) -> dict[str, str]:
        """A request's proof, for this server and by its clock."""
        now = time.time() + self.ahead_s
        return signing.sign_request(self.key, self.name, request, self.server, now)

    def check_in(self, message=READY) -> Assignment | Reject:
        reply = self.send("POST", "/v1/check-in", config.to_json(message)).json()
        if "cause" in reply:
            return Reject(**reply)
        self.work = config.from_table(Assignment, reply, "assignment")
        return self.work

    def upload(self, work: Assignment, number: int) -> Ack | Reject:
        self.work = work
        reply = self.send(
            "PUT", f"/v1/assignments/{work.assignment}/update", encoded(work, number)
        ).json()
        return Reject(**reply) if "cause" in reply else Ack(**reply)


@contextlib.contextmanager
def running(coordinator: Coordinator, tls: dict[str, str] | None = None, **options: object):
    """The URL of a uvicorn in this process."""
    sock = endpoint.bind("127.0.0.1", 0)
    server = endpoint.server(endpoint.app(coordinator, **options), **(tls or {}))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        coordinator.close()


@pytest.fixture
def url(tmp_path):
    with running(new(tmp_path / "server", RULES)) as address:
        yield address


def problem(reply: httpx.Response) -> tuple[int, str]:
    refusal = config.from_json(Problem, reply.content, "reply")
    assert refusal.detail
    return reply.status_code, refusal.cause.value


# a round


def test_two_rounds_over_http_from_enrolment_to_a_new_checkpoint(url):
    a, b, c, d = (Device(url, number) for number in range(4))
    assert d.check_in(check_in(charging=False)).cause == Cause.NOT_CHARGING
    works = [device.check_in() for device in (a, b, c)]
    assert d.check_in().cause == Cause.ROUND_FULL
    plan = a.send("GET", f"/v1/blobs/{works[0].plan}").content
    assert config.from_json(Plan, plan, "plan") == PLAN
    first = a.send("GET", f"/v1/blobs/{works[0].checkpoint}").content
    assert weights.digest(first) == works[0].checkpoint
    assert weights.shapes_hash(weights.from_bytes(first).weights) == works[0].shapes
    assert a.upload(works[0], 0).counted
    assert b.upload(works[1], 1).counted
    assert c.upload(works[2], 2).cause == Cause.SURPLUS
    for number, device in enumerate((a, b)):
        assert device.upload(device.check_in(), number).counted
    assert a.check_in().cause == Cause.NO_ROUND
    reports = config.from_json(RoundReports, httpx.get(f"{url}/v1/rounds").content, "reply").rounds
    assert [(report.round, report.phase, report.counted) for report in reports] == [
        (1, "committed", 2),
        (2, "committed", 2),
    ]
    assert (
        reports[0].checked_in,
        reports[0].assigned,
        reports[0].downloaded,
        reports[0].uploaded,
    ) == (4, 3, 1, 3)
    assert (reports[0].refused, reports[0].dropped) == ({"not_charging": 1}, {"surplus": 1})
    assert reports[0].bytes_up == 3 * len(encoded(works[0], 0))
    assert reports[0].bytes_down == len(plan) + len(first)
    checkpoint = weights.from_bytes(a.send("GET", f"/v1/blobs/{reports[1].checkpoint}").content)
    assert (checkpoint.round, checkpoint.parent) == (2, reports[0].checkpoint)


def test_the_round_goes_on_by_itself_when_a_window_is_over(tmp_path):
    now = 0.0
    with running(
        new(tmp_path, Rules(report_goal=4, selection_s=10, reporting_s=20)),
        clock=lambda: now,
        tick_s=0.01,
    ) as url:
        Device(url, 1).check_in()
        now = 21.0
        for _ in range(500):
            phases = [
                line
                for line in httpx.get(f"{url}/metrics").text.splitlines()
                if line.startswith('fedboard_rounds{phase="abandoned",task="default"}')
            ]
            if phases == ['fedboard_rounds{phase="abandoned",task="default"} 1.0']:
                break
            time.sleep(0.01)
        else:
            pytest.fail("the round is still open")


# bad requests


def test_a_request_must_be_signed_by_an_enrolled_device_and_is_good_once(url):
    device, body = Device(url, 1), config.to_json(READY)
    signed = device.signed(signing.Request("POST", "/v1/check-in", body))

    def send(content: bytes = body, **changed: str) -> httpx.Response:
        return device.http.post("/v1/check-in", content=content, headers={**signed, **changed})

    unsigned = device.http.post("/v1/check-in", content=body)
    assert (problem(unsigned), unsigned.headers["www-authenticate"]) == (
        (401, "unknown_device"),
        "Fedboard-Signature",
    )
    assert problem(send(**{"fedboard-signature": ""})) == (401, "bad_signature")
    assert problem(send(**{"fedboard-device": "0" * 16})) == (401, "unknown_device")
    assert problem(send(**{"fedboard-signature": "not base64!"})) == (401, "bad_signature")
    assert problem(send(**{"fedboard-nonce": "00" * 16})) == (401, "bad_signature")
    assert problem(send(body.replace(b"20", b"99"))) == (401, "bad_signature")
    assert problem(send(**{"fedboard-device": Device(url, 2).name})) == (401, "bad_signature")
    assert send().status_code == 200
    assert problem(send()) == (409, "replayed")


MALFORMED = (
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b'{"conditions": {}, "examples": 20, "tokenizer": "t", "typed_text": "hello"}',
    b'{"conditions": {}, "examples": "20", "tokenizer": "t"}',
    b'{"conditions": {"charging": 1}, "examples": 20, "tokenizer": "t"}',
    b'{"conditions": {}, "tokenizer": "t"}',
    b"[" * 5000,
)


def test_a_malformed_message_is_refused(url):
    device = Device(url, 1)
    for body in MALFORMED:
        assert problem(device.send("POST", "/v1/check-in", body)) == (400, "malformed")
        assert problem(device.http.post("/v1/devices", content=body)) == (400, "malformed")


def test_what_does_not_exist_is_named(url):
    owner, thief = Device(url, 1), Device(url, 2)
    work = owner.check_in()
    path, body = f"/v1/assignments/{work.assignment}", encoded(work, 1)
    assert problem(owner.send("GET", f"/v1/blobs/{'0' * 64}")) == (404, "unknown_blob")
    assert problem(owner.send("PUT", f"/v1/assignments/{'0' * 32}/update", body)) == (
        404,
        "unknown_assignment",
    )
    assert problem(thief.send("PUT", f"{path}/update", body)) == (404, "unknown_assignment")
    assert problem(
        thief.send("POST", f"{path}/abandon", config.to_json(Abandon(Cause.IN_USE)))
    ) == (404, "unknown_assignment")
    assert problem(owner.http.get("/nothing")) == (404, "malformed")
    wrong = owner.http.delete("/v1/check-in")
    assert (problem(wrong), wrong.headers["allow"]) == ((405, "malformed"), "POST")


def test_an_update_that_breaks_a_rule_is_a_named_problem(url):
    a, b, c = (Device(url, number) for number in range(3))
    works = [device.check_in() for device in (a, b, c)]
    paths = [f"/v1/assignments/{work.assignment}" for work in works]
    assert problem(a.send("PUT", f"{paths[0]}/update", b"FBUP")) == (422, "not_an_update")
    assert problem(a.send("PUT", f"{paths[0]}/update", encoded(works[0], 0))) == (
        409,
        "different_update",
    )
    assert (
        b.send("POST", f"{paths[1]}/abandon", config.to_json(Abandon(Cause.CONDITION_LOST))).json()[
            "counted"
        ]
        is False
    )
    assert problem(b.send("PUT", f"{paths[1]}/update", encoded(works[1], 0))) == (410, "abandoned")
    metrics = httpx.get(f"{url}/metrics").text
    assert 'fedboard_refused_requests_total{cause="not_an_update"} 1.0' in metrics
    assert (
        'fedboard_devices_lost_total{cause="condition_lost",step="dropped",task="default"} 1.0'
        in metrics
    )


def pieces(size: int):
    for _ in range(size // 1000):
        yield b"x" * 1000


def test_a_body_that_is_too_large_is_refused_before_it_is_read(url):
    device = Device(url, 1)
    work = device.check_in()
    path = f"/v1/assignments/{work.assignment}/update"
    for size in (encoded_bytes(DIMENSION, PLAN.bits) + 1, 200_000, 20_000_000):
        assert problem(device.send("PUT", path, b"x" * size)) == (413, "too_large")
    signed = device.signed(signing.Request("PUT", path, b"", "default", 1))
    # chunked: its length is not told
    assert problem(device.http.put(path, content=pieces(200_000), headers=signed)) == (
        413,
        "too_large",
    )
    # nobody's body is not even read
    assert problem(device.http.put(path, content=pieces(200_000))) == (
        401,
        "unknown_device",
    )
    assert problem(device.http.post("/v1/devices", content=b"x" * 20_000)) == (413, "too_large")
    assert device.upload(work, 1).counted


# blobs


def test_a_blob_can_be_cached_for_ever_and_fetched_in_parts(url):
    device = Device(url, 1)
    sha = device.check_in().checkpoint
    path = f"/v1/blobs/{sha}"
    whole = device.send("GET", path)
    assert (whole.status_code, whole.headers["etag"], whole.headers["accept-ranges"]) == (
        200,
        f'"{sha}"',
        "bytes",
    )
    assert "immutable" in whole.headers["cache-control"]
    size = len(whole.content)
    for asked, start, end in (
        ("bytes=0-9", 0, 10),
        ("bytes=10-", 10, size),
        ("bytes=-5", size - 5, size),
        (f"bytes=5-{size * 9}", 5, size),
    ):
        part = device.send("GET", path, range=asked)
        assert (part.status_code, part.headers["content-range"]) == (
            206,
            f"bytes {start}-{end - 1}/{size}",
        )
        assert part.content == whole.content[start:end]
    for nonsense in ("bytes=9-3", "bytes=-", "lines=1-2", "bytes=0-1,4-5", "bytes=x"):
        assert device.send("GET", path, range=nonsense).content == whole.content
    outside = device.send("GET", path, range=f"bytes={size}-")
    assert (problem(outside), outside.headers["content-range"]) == (
        (416, "malformed"),
        f"bytes */{size}",
    )
    assert (
        device.send("GET", path, range="bytes=5-", **{"if-range": f'"{sha}"'}).content
        == whole.content[5:]
    )
    assert (
        device.send("GET", path, range="bytes=5-", **{"if-range": '"another"'}).content
        == whole.content
    )
    same = device.send("GET", path, **{"if-none-match": f'"other", W/"{sha}"'})
    assert (same.status_code, same.content) == (304, b"")


# the server as a whole


def test_a_taken_port_is_one_clear_line():
    with (
        endpoint.bind("127.0.0.1", 0) as sock,
        pytest.raises(RunError, match="cannot be listened on"),
    ):
        endpoint.bind("127.0.0.1", sock.getsockname()[1])


def test_a_request_that_waits_for_the_coordinator_does_not_hold_up_the_others(tmp_path):
    coordinator = new(tmp_path, RULES)
    with running(coordinator) as url:
        device, replies = Device(url, 1), []
        waiting = threading.Thread(target=lambda: replies.append(device.check_in()))
        with coordinator._lock:
            waiting.start()
            assert httpx.get(f"{url}/openapi.json").status_code == 200
            assert replies == []
        waiting.join()
    assert isinstance(replies[0], Assignment)


def test_no_log_line_shows_a_body_a_key_or_a_header(tmp_path, caplog):
    caplog.set_level("DEBUG")
    with running(new(tmp_path, RULES), tick_s=0.01) as url:
        device = Device(url, 1)
        work = device.check_in()
        body = config.to_json(check_in(tokenizer="a tokenizer nobody has"))
        headers = device.signed(signing.Request("POST", "/v1/check-in", body))
        for content in (body, body, b"a body that is not JSON"):
            device.http.post("/v1/check-in", content=content, headers=headers)
        device.upload(work, 1)
    ours = "\n".join(
        record.getMessage()
        for record in caplog.records
        if not record.name.startswith(("httpx", "httpcore"))
    )
    secrets = [
        *headers.values(),
        signing.public_hex(device.key),
        "tokenizer nobody has",
        "not JSON",
        work.assignment,
    ]
    assert [secret for secret in secrets if len(secret) > 8 and secret in ours] == []


SERVER = """
import sys
from pathlib import Path
from server import contract, endpoint
from server.rounds import Rules
from tests.toy_server import new, reopened
folder = Path(sys.argv[1])
rules = Rules(report_goal=3, over_selection=1.0, rounds=1)
coordinator = reopened(folder) if (folder / "server.sqlite").exists() else new(folder, rules)
sock = endpoint.bind("127.0.0.1", 0)
print(sock.getsockname()[1], flush=True)
endpoint.serve(endpoint.app(coordinator), sock)
"""


@contextlib.contextmanager
def process(folder: Path):
    """A server process and its URL; killed at the latest at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            yield child, f"http://127.0.0.1:{child.stdout.readline().strip()}"
        finally:
            child.kill()


def upload_into_the_void(device: Device, work: Assignment) -> None:
    with contextlib.suppress(httpx.TransportError):
        device.upload(work, 1)


def test_a_server_killed_after_it_acknowledged_updates_goes_on_with_them(tmp_path):
    with process(tmp_path / "killed") as (child, url):
        devices = [Device(url, number) for number in range(3)]
        works = [device.check_in() for device in devices]
        assert devices[0].upload(works[0], 0).counted
        under_way = threading.Thread(target=upload_into_the_void, args=(devices[1], works[1]))
        under_way.start()
        child.send_signal(signal.SIGKILL)
        child.wait()
        under_way.join()
    with process(tmp_path / "killed") as (child, url):
        again = [Device(url, number) for number in range(3)]
        report = httpx.get(f"{url}/v1/rounds").json()["rounds"][0]
        assert (report["assigned"], report["phase"]) == (3, "reporting")
        # whether the update under way made it is open, the acknowledged one must
        assert report["counted"] in (
            1,
            2,
        )
        assert again[0].upload(works[0], 0).counted
        assert again[1].upload(works[1], 1).counted
        assert again[2].check_in().assignment == works[2].assignment
        assert again[2].upload(works[2], 2).counted
        report = httpx.get(f"{url}/v1/rounds").json()["rounds"][0]
        assert (report["counted"], report["examples"], report["phase"]) == (3, 0, "committed")
        child.send_signal(signal.SIGTERM)
        # uvicorn finishes its requests, then ends as the signal asks
        assert child.wait() == -signal.SIGTERM
    undisturbed = new(tmp_path / "undisturbed", Rules(report_goal=3, over_selection=1.0, rounds=1))
    names = enrolled(undisturbed, 3)
    works = [undisturbed.check_in(name, READY, 1.0) for name in names]
    for number in (2, 0, 1):
        undisturbed.update(
            names[number], works[number].assignment, encoded(works[number], number), 1.0
        )
    undisturbed.close()
    assert report["checkpoint"] == undisturbed.checkpoint().sha


# the OpenAPI document


class Signed(requests.auth.AuthBase):
    def __init__(self, number: int, name: str, server: str):
        self.key, self.name, self.server = key(number), name, server

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        body = request.body.encode() if isinstance(request.body, str) else request.body or b""
        path = request.path_url
        asked = signing.Request(request.method, path, body)
        request.headers.update(
            signing.sign_request(self.key, self.name, asked, self.server, time.time())
        )
        return request


class Bearing(requests.auth.AuthBase):
    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["authorization"] = f"Bearer {TOKEN}"
        return request


TAKE_NOTHING = (
    "GET /",
    "GET /v1/tasks",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
    "GET /v1/rounds",
    "GET /v1/server",
    "GET /v1/newest",
    "GET /v1/log/head",
    "GET /v1/log/entries",
    "GET /v1/log/consistency",
    "GET /v1/releases",
    "GET /v1/releases/{sha256}",
)
# a file of a format; rules that must fit each other; a schema takes 14.0 for a whole number
BEYOND_A_SCHEMA = (
    "PUT /v1/checkpoints",
    "PUT /v1/lists",
    "POST /v1/tasks",
    "POST /v1/codes",
    "POST /v1/check-in",
    "POST /v1/releases",
)
SIGNED = ("/v1/devices", "/v1/check-in", "/v1/blobs/", "/v1/assignments/")


def test_every_answer_to_any_request_is_one_the_document_lists(tmp_path):
    with running(
        new(tmp_path, RULES), access_=endpoint.Access(TOKEN, open_to_readers=False)
    ) as url:
        document = schemathesis.openapi.from_url(f"{url}/openapi.json")
        enrolled_device = Device(url, 1)
        device = Signed(1, enrolled_device.name, enrolled_device.server)
        seen = set()
        for operation in document.get_all_operations():
            for mode in schemathesis.GenerationMode:
                label = operation.ok().label
                seen.add(label)
                if mode is schemathesis.GenerationMode.NEGATIVE and label in TAKE_NOTHING:
                    continue  # they take nothing that could be wrong

                @settings(
                    max_examples=8,
                    deadline=None,
                    derandomize=True,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                )
                @given(operation.ok().as_strategy(generation_mode=mode))
                def answers(case):
                    auth = device if case.operation.path.startswith(SIGNED) else Bearing()
                    spoilt = {
                        where.value
                        for where, part in case.meta.components.items()
                        if part.mode is schemathesis.GenerationMode.NEGATIVE
                    }
                    beyond = (
                        [positive_data_acceptance]
                        if case.operation.label in BEYOND_A_SCHEMA
                        else []
                    )
                    # a signature would mend a missing header
                    case.call_and_validate(
                        auth=None if "header" in spoilt else auth, excluded_checks=beyond
                    )

                answers()
    routes = spoken_of()
    assert seen == routes


def spoken_of() -> set[str]:
    """Every route the device's and the operator's modules speak of, and the four of the service
    itself.
    """
    spoken = (
        (wire.__doc__ + contract.__doc__)
        .replace("?task=NAME&before=N&most=M", "")
        .replace("?population=NAME", "")
        .replace("?first=N&most=M", "")
        .replace("?first=N&second=M", "")
        .replace("{id}", "{assignment}")
        .splitlines()
    )
    routes = {
        " ".join(line.split()[:2])
        for line in spoken
        if line.split()[:1] in (["GET"], ["PUT"], ["POST"])
    }
    routes |= {
        "GET /",
        "POST /v1/tasks/{name}/resume",
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
    }
    return routes
