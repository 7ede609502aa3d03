"""Who asks whom, and when: signatures that are good at one server, for minutes, and once."""

import contextlib
import itertools
import sqlite3
import time
import zipfile
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from device_runtime import calls, config, signing, transport, wire
from device_runtime.causes import Cause
from device_runtime.errors import ServerError
from device_runtime.wire import VERSION, Abandon, Assignment, Enrolment, Server
from server import endpoint
from server.coordinator import open_folder
from server.replays import GOOD_S, KEPT_S, Replays
from server.requests import Nonce
from server.rounds import Rules
from server.settings import Limits
from server.tables import assignments, codes
from tests.test_server_endpoint import Device, problem, running
from tests.toy_server import READY, OneByOne, encoded, enrolled, key, new, reopened

GOLDEN = Path(__file__).parent / "golden"

RULES = Rules(report_goal=2, over_selection=1.5, rounds=2)
CHECK_IN = signing.Request("POST", "/v1/check-in", config.to_json(READY))


def told(url: str) -> Server:
    return config.from_json(Server, httpx.get(f"{url}/v1/server").content, "reply")


def sent(url: str, headers: dict[str, str]) -> httpx.Response:
    return httpx.post(url + CHECK_IN.path, content=CHECK_IN.body, headers=headers)


def test_a_server_keeps_its_name_over_restarts_and_one_begun_anew_has_another(tmp_path):
    first = new(tmp_path / "a", RULES)
    first.close()
    again, other = reopened(tmp_path / "a"), new(tmp_path / "b", RULES)
    assert again.server == first.server != other.server
    with running(other) as url:
        assert (told(url).server, told(url).version) == (other.server, VERSION)
        assert abs(told(url).time - time.time()) < 60
    again.close()


def test_a_request_signed_for_one_server_is_refused_by_another(tmp_path):
    with running(new(tmp_path / "a", RULES)) as here, running(new(tmp_path / "b", RULES)) as there:
        device = Device(here, 1)
        Device(there, 1)
        assert problem(sent(there, device.signed(CHECK_IN))) == (421, "wrong_server")
        assert sent(here, device.signed(CHECK_IN)).status_code == 200


def test_a_request_is_good_for_ten_minutes_of_the_server_s_clock(tmp_path):
    now = 10_000.0
    with running(new(tmp_path, RULES), clock=lambda: now) as url:
        device = Device(url, 1)
        server = told(url).server
        for signed_at, answer in (
            (now - GOOD_S - 1, (401, "wrong_time")),
            (now + GOOD_S + 1, (401, "wrong_time")),
            (now - GOOD_S, None),
            (now + GOOD_S, None),
        ):
            headers = signing.sign_request(device.key, device.name, CHECK_IN, server, signed_at)
            reply = sent(url, headers)
            if answer is None:
                assert reply.status_code == 200
            else:
                assert (problem(reply), reply.headers["fedboard-time"]) == (answer, "10000")


@pytest.mark.parametrize("wrong_by", [-(10**6), -700.0, 700.0, 10**8])
def test_a_phone_with_a_wrong_clock_works_after_one_more_try(tmp_path, wrong_by):
    with running(new(tmp_path, RULES)) as url, transport.http(url) as send:
        meter, statuses = calls.Signer(key(1), told(url).server, lambda: time.time() + wrong_by), []

        def counting(*request):
            reply = send(*request)
            statuses.append(reply.status)
            return reply

        calls.enrol(counting, meter)
        assert isinstance(calls.check_in(calls.signed(counting, meter), READY), Assignment)
        # the first answer tells the time, and it is remembered
        assert statuses == [401, 200, 200]
        assert abs(meter.ahead_s + wrong_by) < 60


def test_a_server_that_never_has_the_time_it_tells_is_asked_twice_and_no_more():
    asked = []
    refusal = config.to_json(wire.Problem(Cause.WRONG_TIME, "another"))

    def send(*request):
        asked.append(request)
        return transport.Reply(401, {"fedboard-time": "5"}, refusal)

    signer = calls.Signer(key(1), "ab" * 16)
    answer = calls.check_in(calls.signed(send, signer), READY)
    assert (answer.cause, len(asked)) == (Cause.WRONG_TIME, 2)


def version_2(headers: dict[str, str]) -> dict[str, str]:
    """As a device of the version before sends them."""
    return {
        name: value
        for name, value in headers.items()
        if name not in ("fedboard-server", "fedboard-time")
    }


def test_a_device_of_the_version_before_hears_that_it_needs_an_update(tmp_path):
    with running(new(tmp_path, RULES)) as url:
        device = Device(url, 1)
        reply = sent(url, version_2(device.signed(CHECK_IN)))
        assert (problem(reply), reply.headers["retry-after"]) == (
            (426, "unsupported_version"),
            "86400",
        )
        with transport.http(url) as send:
            # its own code: every 4xx with a Problem is a refusal, with the time to wait
            answer = calls.check_in(
                lambda method, path, body, headers: send(
                    method, path, body, version_2({**headers, **device.signed(CHECK_IN)})
                ),
                READY,
            )
        assert (answer.cause, answer.retry_in_s) == (Cause.UNSUPPORTED_VERSION, 86_400.0)
        body = config.to_json(Enrolment(signing.public_hex(key(2))))
        request = signing.Request("POST", "/v1/devices", body)
        reply = httpx.post(
            f"{url}/v1/devices", content=body, headers=version_2(device.signed(request))
        )
        assert problem(reply) == (426, "unsupported_version")


def test_a_server_of_another_version_is_one_clear_line():
    for reply in (
        transport.Reply(404, {}, config.to_json(wire.Problem(Cause.MALFORMED, "Not Found"))),
        transport.Reply(200, {}, config.to_json(Server("ab" * 16, 1, VERSION + 1))),
    ):
        with pytest.raises(ServerError, match=f"expected version {VERSION} of the protocol, found"):
            calls.server(lambda *_, reply=reply: reply)


def test_replays_by_a_stranger_use_up_nothing_of_the_device_s(tmp_path):
    limits = Limits(device_burst=3, device_per_s=0.001)
    access = endpoint.Access("a token of some length", limits=limits)
    with running(new(tmp_path, RULES), access_=access) as url:
        device = Device(url, 1)
        copied = device.signed(CHECK_IN)
        assert sent(url, copied).status_code == 200
        for _ in range(20):
            assert problem(sent(url, copied)) == (409, "replayed")
        own = [sent(url, device.signed(CHECK_IN)).status_code for _ in range(3)]
        assert own == [200, 200, 429]


def test_rounds_are_asked_for_once_with_one_signature(tmp_path):
    access = endpoint.Access("a token of some length", open_to_readers=False)
    with running(new(tmp_path, RULES), access_=access) as url:
        device = Device(url, 1)
        headers = device.signed(signing.Request("GET", "/v1/rounds"))
        assert httpx.get(f"{url}/v1/rounds", headers=headers).status_code == 200
        assert problem(httpx.get(f"{url}/v1/rounds", headers=headers)) == (409, "replayed")


def test_a_clock_that_jumps_ahead_and_back_makes_no_old_request_good_again(tmp_path):
    now = 1e6
    with running(new(tmp_path, RULES), clock=lambda: now, tick_s=0.01) as url:
        device = Device(url, 1)
        server = told(url).server
        old = signing.sign_request(device.key, device.name, CHECK_IN, server, now)
        assert sent(url, old).status_code == 200
        now = 1e6 + 31 * 86_400
        fresh = signing.sign_request(device.key, device.name, CHECK_IN, server, now)
        assert sent(url, fresh).status_code == 200
        now = 1e6 + 60
        assert sent(url, old).status_code in (401, 409)
        # who has the right time is served
        fresh = signing.sign_request(device.key, device.name, CHECK_IN, server, now)
        assert sent(url, fresh).status_code == 200


def test_a_server_begun_again_when_its_clock_is_right_takes_no_request_it_has_forgotten(tmp_path):
    now = [1e6]
    with running(new(tmp_path, RULES), clock=lambda: now[0], tick_s=0.01) as url:
        device = Device(url, 1)
        old = signing.sign_request(device.key, device.name, CHECK_IN, device.server, now[0])
        assert sent(url, old).status_code == 200
    ahead = reopened(tmp_path)
    ahead.tick(1e6 + 31 * 86_400)
    ahead.close()
    for later in (60, 120):  # and also after another start
        now[0] = 1e6 + later
        with running(reopened(tmp_path), clock=lambda: now[0], tick_s=0.01) as url:
            assert problem(sent(url, old)) == (401, "wrong_time")
            fresh = signing.sign_request(device.key, device.name, CHECK_IN, device.server, now[0])
            assert sent(url, fresh).status_code == 200


def test_replays_are_remembered_as_long_as_their_requests_are_good():
    seen, nonce = Replays(most=2), Nonce("ab" * 16, 0)
    assert seen.is_new("device", nonce, 0.0)
    assert not seen.is_new("device", nonce, KEPT_S - 1)
    assert seen.is_new("other", nonce, KEPT_S - 1)
    assert not seen.is_new("device", nonce, KEPT_S + 1)  # though another generation has begun
    # bounded: two generations of two, and the database decides
    assert sum(seen.is_new(f"d{k}", nonce, KEPT_S + 2) for k in range(9)) == 9
    assert len(seen._new) + len(seen._old) <= 4


# what is forgotten


def times_of_work(coordinator) -> dict[str, list[float]]:
    """When work was given, by what became of it."""
    columns = assignments.c
    with coordinator.store.reading() as rows:
        query = sa.select(columns.status, columns.admitted_at).order_by(columns.admitted_at)
        kept: dict[str, list[float]] = {}
        for status, at in rows._connection.execute(query):
            kept.setdefault(status, []).append(at)
    return kept


def test_when_a_device_was_given_work_is_forgotten_with_the_work(tmp_path):
    rules = Rules(report_goal=2, over_selection=2.0, selection_s=0.0, reporting_s=900.0)
    coordinator = new(tmp_path, rules)
    devices = enrolled(coordinator, 4)
    works = [coordinator.check_in(device, READY, 100.0) for device in devices]
    assert times_of_work(coordinator) == {"open": [100.0] * 4}
    coordinator.update(devices[0], works[0].assignment, encoded(works[0], 0), 200.0)
    coordinator.abandon(devices[1], works[1].assignment, Abandon(Cause.CONDITION_LOST), 200.0)
    kept = times_of_work(coordinator)
    assert (kept["counted"], kept["abandoned"], kept["open"]) == ([0.0], [0.0], [100.0] * 2)
    coordinator.update(devices[2], works[2].assignment, encoded(works[2], 2), 300.0)
    # the round is over: the fourth is waited for no more
    assert times_of_work(coordinator) == {"counted": [0.0] * 2, "abandoned": [0.0], "closed": [0.0]}
    # a report that comes late still hears of it
    assert coordinator.update(devices[3], works[3].assignment, encoded(works[3], 3), 310.0)
    assert times_of_work(coordinator)["closed"] == [0.0]
    coordinator.close()


def test_a_code_is_forgotten_with_the_device_it_let_in_when_it_expires(tmp_path):
    new(tmp_path, RULES).close()
    coordinator = OneByOne(*open_folder(tmp_path), codes_needed=True)
    (code,) = coordinator.create_codes(1, 1000.0, 0.0)
    public = signing.public_hex(key(1))
    coordinator.enrol(Enrolment(public, code), 10.0)
    for now, left in ((1000.0, 1), (1000.0 + KEPT_S + 1, 0)):
        coordinator.tick(now)
        with coordinator.store.reading() as rows:
            query = sa.select(sa.func.count()).select_from(codes)
            assert rows._connection.execute(query).scalar_one() == left
    coordinator.close()


def test_a_database_of_the_version_before_gets_a_name_and_forgets_who_asked_when(tmp_path):
    zipfile.ZipFile(GOLDEN / "server-0002.zip").extractall(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "server.sqlite")) as before:
        query = "SELECT count(*) FROM assignments WHERE status != 'open' AND admitted_at > 0"
        assert before.execute(query).fetchone() != (0,)
    coordinator = reopened(tmp_path)
    assert len(coordinator.server) == 32
    kept = times_of_work(coordinator)
    assert set(itertools.chain(*(at for status, at in kept.items() if status != "open"))) == {0.0}
    coordinator.close()
    again = reopened(tmp_path)
    assert again.server == coordinator.server
    again.close()


def test_tasks_of_one_name_on_two_servers_have_two_ids_and_each_keeps_its_own(tmp_path):
    ids = {}
    for name in ("a", "b"):
        coordinator = new(tmp_path / name, Rules(report_goal=1, selection_s=0.0))
        for _ in range(2):
            device = enrolled(coordinator, 1)[0]
            work = coordinator.check_in(device, READY, 1.0)
            assert (work.server, len(work.task_id)) == (coordinator.server, 32)
            ids.setdefault(name, set()).add(work.task_id)
            coordinator.close()
            coordinator = reopened(tmp_path / name)
        coordinator.close()
    assert [len(each) for each in ids.values()] == [1, 1]
    assert ids["a"] != ids["b"]


# bodies that are no messages


CHECK_IN_TEXT = CHECK_IN.body.decode()


@pytest.mark.parametrize(
    "body",
    [
        CHECK_IN_TEXT.replace('"examples":20', '"examples":%s' % ("9" * 400)),
        CHECK_IN_TEXT.replace('"examples":20', '"examples":1e3'),
        CHECK_IN_TEXT.replace('"examples":20', '"examples":NaN'),
        CHECK_IN_TEXT.replace('"examples":20', '"examples":-1'),
        CHECK_IN_TEXT.replace('"examples":20', '"examples":20,"examples":20'),
        CHECK_IN_TEXT.replace('"population":"default"', '"population":"\\ud800"'),
        CHECK_IN_TEXT.replace('"population":"default"', '"population":"a\\u0000b"'),
        CHECK_IN_TEXT.replace('"population":"default"', '"population":"%s"' % ("a" * 65)),
        CHECK_IN_TEXT.replace('"holds":""', '"holds":"../../etc/passwd"'),
        CHECK_IN_TEXT.replace('"device_class":""', '"device_class":"%s"' % ("é" * 9)),
        CHECK_IN_TEXT.replace('"runtime":""', '"%s":1' % ("k" * 9000)),
        "[" * 16_000,
    ],
)
def test_a_check_in_beyond_its_bounds_is_malformed_and_its_answer_is_a_message(tmp_path, body):
    assert body != CHECK_IN_TEXT
    with running(new(tmp_path, RULES)) as url:
        device = Device(url, 1)
        reply = device.send("POST", "/v1/check-in", body.encode("utf-8", "surrogatepass"))
        assert problem(reply) == (400, "malformed")  # read as a device reads it


@pytest.mark.parametrize("code", ['"\\ud800"', '"\\u0000"', '"%s"' % ("x" * 65), "5", '"é"'])
def test_a_code_no_operator_gave_out_is_malformed(tmp_path, code):
    new(tmp_path, RULES).close()
    with running(OneByOne(*open_folder(tmp_path), codes_needed=True)) as url:
        server, secret = told(url).server, key(1)
        public = signing.public_hex(secret)
        body = f'{{"public_key":"{public}","code":{code}}}'.encode()
        request = signing.Request("POST", "/v1/devices", body)
        name = signing.name_of(public)
        headers = signing.sign_request(secret, name, request, server, time.time())
        reply = httpx.post(f"{url}/v1/devices", content=body, headers=headers)
        assert problem(reply) == (400, "malformed")
