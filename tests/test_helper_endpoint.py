"""The helper over HTTP: a real uvicorn on loopback, real tokens, SQLite and PostgreSQL."""

import concurrent.futures
import contextlib
import http.client
import io
import json
import logging
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from device_runtime import accountant, config
from device_runtime.accountant import Participation
from device_runtime.helper_wire import (
    AnswerTaken,
    HelperProblem,
    HelperReport,
    KeysAsked,
    Named,
    Refusal,
    Registered,
    SealKeys,
    most_bytes,
)
from device_runtime.terms import MOST_DEVICES
from helper import endpoint
from helper.desk import Desk
from helper.tables import FORMAT
from server import logs, noising
from server.connections import bind
from server.settings import Limits
from tests import postgres
from tests.toy_helper import (
    HELPER,
    LEAST,
    NOISE,
    NOISED,
    TASK_ID,
    TERMS,
    begun,
    expected,
    named,
    new,
    noise_in,
    noised,
    opened,
    registration,
    reports,
    seal_keys,
)

TOKEN = "a token of some length"
BEARER = {"authorization": f"Bearer {TOKEN}"}


@contextlib.contextmanager
def running(desk: Desk, limits: Limits | None = None):
    """A client of a uvicorn in this process, with the token."""
    sock = bind("127.0.0.1", 0)
    allowed = endpoint.Access(TOKEN, limits or Limits())
    server = endpoint.server(endpoint.app(desk, allowed, lambda: 1.0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        with httpx.Client(base_url=url, headers=BEARER, timeout=30.0) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        desk.close()


@pytest.fixture
def client(fast_folder):
    with running(new(fast_folder / "helper")) as client:
        yield client


def problem(reply: httpx.Response) -> tuple[int, str]:
    told = config.from_json(HelperProblem, reply.content, "reply")
    assert told.detail and reply.status_code == told.refusal.status
    return reply.status_code, told.refusal.value


def post(client: httpx.Client, path: str, message: object) -> httpx.Response:
    return client.post(path, content=config.to_json(message))


def two_rounds(client: httpx.Client) -> None:
    """All that a leader asks of a helper, in the order it does."""
    told = config.from_json(HelperReport, client.get("/v1/helper").content, "reply")
    assert (told.helper, told.least, told.answers) == (HELPER, LEAST, 0)
    done = post(client, "/v1/tasks", registration())
    assert config.from_json(Registered, done.content, "reply").terms == TERMS.name
    asked = post(client, "/v1/seal-keys", KeysAsked(TASK_ID, 1, 3))
    keys = seal_keys(config.from_json(SealKeys, asked.content, "reply"))
    first, second = reports(range(4), 1, keys), reports(range(3, 8), 2, keys)
    for sent, round in ((first, 1), (second[1:], 2)):
        mask = post(client, "/v1/answers", named(sent, round))
        assert mask.headers["content-type"] == "application/octet-stream"
        assert opened(mask.content, sent) == expected(sent)
        assert post(client, "/v1/answers", named(sent[::-1], round)).content == mask.content
        if round == 1:
            no = post(client, "/v1/answers", named(second, 2))
            assert problem(no) == (409, "too_soon")
    assert problem(post(client, "/v1/answers", named(second, 2))) == (409, "second_set")
    assert post(client, "/v1/answers/done", AnswerTaken(TASK_ID, 1)).status_code == 200
    assert problem(post(client, "/v1/answers", named(first, 1))) == (410, "unknown_round")
    told = config.from_json(HelperReport, client.get("/v1/helper").content, "reply")
    assert told.answers == 2
    assert told.refusals == {"too_soon": 1, "second_set": 1, "unknown_round": 1}


def test_a_leader_has_two_rounds_opened(client):
    two_rounds(client)


@pytest.fixture(scope="module")
def socket():
    with postgres.running() as folder:
        yield folder


def test_a_leader_has_two_rounds_opened_by_a_helper_on_postgresql(fast_folder, socket):
    database = postgres.new_database(socket, "helper")
    with running(new(fast_folder / "helper", database=database)) as client:
        two_rounds(client)
    # another process with the same folder and database goes on where it was
    again = new(fast_folder / "helper", database=database)
    assert again.report().answers == 2
    again.close()
    with sa.create_engine(database).connect() as connection:
        rows = connection.execute(sa.text("SELECT last_round FROM participations")).scalars().all()
    assert sorted(rows) == [1, 1, 1, 1, 2, 2, 2, 2]


def a_noised_round(client: httpx.Client, round: int) -> tuple[float, int]:
    """Deviation of the noise of one round, and of how many sums the leader is told."""
    assert post(client, "/v1/tasks", registration(NOISED)).status_code == 200
    asked = post(client, "/v1/seal-keys", KeysAsked(TASK_ID, round))
    sent = reports(
        range(4), round, seal_keys(config.from_json(SealKeys, asked.content, "reply")), NOISED
    )
    body = post(client, "/v1/answers", named(sent, round)).content
    assert post(client, "/v1/answers", named(sent, round)).content == body
    return float(noise_in(body, sent).std()), noised(body).sums


def test_a_leader_s_sums_carry_noise_whose_account_stays_with_a_helper_on_postgresql(
    fast_folder, socket
):
    database = postgres.new_database(socket, "noised")
    for round in (1, 2):  # each in a process of its own
        with running(new(fast_folder / "helper", database=database)) as client:
            deviation, sums = a_noised_round(client, round)
            assert (deviation, sums) == (pytest.approx(1.06 * NOISED.deviation, rel=0.1), round)
            lines = client.get("/metrics").text.splitlines()
    of = f'{{task="words",task_id="{TASK_ID[:8]}"}}'
    spent = accountant.account(NOISE, Participation((2,), 1, 2))
    for name, value in (
        ("rho", spent.rho),
        ("epsilon", spent.epsilon),
        ("epsilon_budget", 100.0),
        ("noised_sums", 2.0),
        ("noise_beginnings", 1.0),
    ):
        assert f"fedboard_helper_{name}{of} {value}" in lines
    sizes = [path.stat().st_size for path in (fast_folder / "helper" / "buffers").iterdir()]
    assert sizes == 2 * [noising.sealed_bytes(NOISED)]


def test_a_database_of_format_1_on_postgresql_goes_on_with_its_ledger(fast_folder, socket):
    database = postgres.new_database(socket, "first format")
    with running(new(fast_folder / "helper", database=database)) as client:
        two_rounds(client)
    engine = sa.create_engine(database)
    with engine.begin() as connection:  # what format 1 had
        connection.execute(sa.text("DROP TABLE noises"))
        connection.execute(sa.text("ALTER TABLE participations DROP COLUMN last_sum"))
        connection.execute(sa.text("UPDATE helpers SET format = 1"))
    again = new(fast_folder / "helper", database=database)
    assert again.report().answers == 2 and again.budgets() == []
    again.close()
    new(fast_folder / "helper", database=database).close()
    with engine.connect() as connection:
        query = "SELECT format, sum(last_sum) FROM helpers, participations GROUP BY format"
        assert tuple(connection.execute(sa.text(query)).one()) == (FORMAT, 0)


def test_anybody_may_ask_who_the_helper_is_and_nothing_else(client):
    stranger = httpx.Client(base_url=client.base_url)
    assert stranger.get("/v1/helper").status_code == 200
    assert stranger.get("/healthz").json() == {"status": "ok"}
    paths = ("/v1/tasks", "/v1/seal-keys", "/v1/answers", "/v1/answers/done")
    for path in paths:
        reply = stranger.post(path, content=b"{}")
        assert problem(reply) == (401, "unknown_leader")
        assert reply.headers["www-authenticate"].startswith("Bearer")
    # a browser sends a password by itself
    assert stranger.post(paths[0], content=b"{}", auth=("leader", TOKEN)).status_code == 401
    assert stranger.get("/metrics").status_code == 401
    wrong = {"authorization": "Bearer another token of some length"}
    assert stranger.post(paths[0], content=b"{}", headers=wrong).status_code == 401


def test_the_leader_and_its_owner_see_what_a_helper_did(client):
    two_rounds(client)
    lines = client.get("/metrics").text.splitlines()
    assert "fedboard_helper_answers_total 2.0" in lines
    assert "fedboard_helper_reports_total 8.0" in lines
    assert 'fedboard_helper_refusals_total{refusal="too_soon"} 1.0' in lines
    assert 'fedboard_helper_refusals_total{refusal="bad_seal"} 0.0' in lines
    assert "fedboard_helper_answer_seconds_count 7.0" in lines


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b"{" * 10_000,
        json.dumps({"task_id": TASK_ID, "round": -1, "reports": []}).encode(),
        json.dumps({"task_id": TASK_ID, "round": 1, "reports": [{}]}).encode(),
        json.dumps({"task_id": "\ud800", "round": 1}).encode(),
        json.dumps({"task_id": TASK_ID, "round": 1, "more": 1}).encode(),
    ],
)
def test_what_is_no_message_is_malformed(client, body):
    assert problem(client.post("/v1/answers", content=body)) == (400, "malformed")


def test_a_body_larger_than_any_set_can_be_is_not_read(client):
    for path, most in (("answers", endpoint.MOST_BYTES), ("tasks", endpoint.MESSAGE_BYTES)):
        connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port)
        headers = {**BEARER, "content-length": str(most + 1)}
        connection.request("POST", f"/v1/{path}", headers=headers)
        reply = connection.getresponse()
        assert (reply.status, json.load(reply)["refusal"]) == (413, "malformed")
        connection.close()


def test_a_set_of_the_most_devices_is_read(fast_folder):
    """Longer than any other message."""
    count = 2_000
    most = replace(TERMS, most=MOST_DEVICES)
    with running(begun(fast_folder / "helper", most)) as client:
        sealed = reports([0], 1, {1: "ab" * 32}, most)[0].sealed
        longest = replace(sealed, round=2**31, enrolment="0" * 128)
        body = config.to_json(Named(TASK_ID, 1, (longest,) * count))
        assert config.MOST_BYTES < len(body) < most_bytes(count)
        assert problem(client.post("/v1/answers", content=body)) == (410, "unknown_round")


def test_other_paths_and_methods_are_refused_in_the_same_words(client):
    for reply, status in ((client.get("/v1/tasks"), 405), (client.get("/v2"), 404)):
        assert reply.status_code == status
        assert config.from_json(HelperProblem, reply.content, "reply").refusal is Refusal.MALFORMED


def test_while_nothing_can_be_kept_the_leader_asks_again(fast_folder):
    folder = fast_folder / "helper"
    with running(begun(folder)) as client:
        keys = seal_keys(
            config.from_json(
                SealKeys, post(client, "/v1/seal-keys", KeysAsked(TASK_ID, 1)).content, "reply"
            )
        )
        sent = reports(range(3), 1, keys)
        # a disk that is full, or a folder that is away
        place = folder / "answers"
        place.write_text("in the way")
        reply = post(client, "/v1/answers", named(sent, 1))
        assert problem(reply) == (503, "unavailable")
        assert reply.headers["retry-after"]
        place.unlink()
        mask = post(client, "/v1/answers", named(sent, 1))
        assert opened(mask.content, sent) == expected(sent)


def test_a_helper_whose_database_was_removed_answers_nothing(fast_folder):
    folder = fast_folder / "helper"
    with running(begun(folder)) as client:
        (folder / "helper.sqlite").unlink()
        reply = post(client, "/v1/seal-keys", KeysAsked(TASK_ID, 1))
        assert problem(reply) == (503, "unavailable")
        assert problem(client.get("/healthz")) == (503, "unavailable")


def test_of_two_sets_that_come_at_once_one_is_answered(fast_folder):
    """And whoever asks for that one again gets the same bytes."""
    with running(begun(fast_folder / "helper")) as client:
        asked = post(client, "/v1/seal-keys", KeysAsked(TASK_ID, 1))
        sent = reports(range(8), 1, seal_keys(config.from_json(SealKeys, asked.content, "reply")))
        sets = [sent[start : start + 4] for start in (0, 1, 2, 3, 0, 1, 2, 3)]
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            replies = list(
                threads.map(lambda each: post(client, "/v1/answers", named(each, 1)), sets)
            )
    given = [(n % 4, reply) for n, reply in enumerate(replies) if reply.status_code == 200]
    assert len(given) == 2 and len({number for number, _ in given}) == 1
    assert given[0][1].content == given[1][1].content
    refused = [problem(reply) for reply in replies if reply.status_code != 200]
    assert refused == [(409, "second_set")] * 6


def test_nothing_that_a_leader_sends_reaches_the_log(fast_folder):
    stream = io.StringIO()
    logger = logging.getLogger("fedboard.server")
    before = logger.handlers
    logs.begin(stream, logging.DEBUG)
    try:
        with running(new(fast_folder / "helper")) as client:
            two_rounds(client)
            client.post("/v1/answers", content=b'{"task_id": "secret words"}')
    finally:
        logger.handlers = before
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    events = [(line["event"], line.get("round"), line.get("count")) for line in lines]
    assert ("a round was answered", 1, 4) in events
    assert ("a leader was refused", 2, 1) in events
    text = stream.getvalue()
    sent = reports(range(4), 1, {1: "ab" * 32})
    for secret in (TOKEN, "secret", *(each.sealed.public_key for each in sent)):
        assert secret not in text


def test_the_helper_loads_nothing_of_what_runs_rounds():
    code = (
        "import sys, helper.endpoint\n"
        "loaded = {'server.coordinator', 'server.store', 'server.endpoint', 'tensorflow', "
        "'fastapi'} & set(sys.modules)\nassert not loaded, loaded"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
