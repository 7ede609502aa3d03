import base64
import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import calls
from device_runtime.causes import Cause
from device_runtime.config import from_json, to_json
from device_runtime.errors import ConfigError, ServerError
from device_runtime.signing import Claim, public_hex, request_message, verified
from device_runtime.transport import Reply
from device_runtime.weights import digest
from device_runtime.wire import (
    Ack,
    Assignment,
    CheckIn,
    Conditions,
    Enrolled,
    Enrolment,
    Plan,
    Problem,
    Reject,
    RoundReport,
    RoundReports,
    Scores,
    Server,
)

CHECK_IN = CheckIn(Conditions(True, True, True), examples=3, tokenizer="ab" * 32)
ASSIGNMENT = Assignment("a1" * 16, 1, "c" * 64, "d" * 64, "e" * 64, deadline_s=60.0)


def answering(status, body):
    """A server with one answer for everything."""
    return lambda *request: Reply(status, {}, body)


@pytest.mark.parametrize("answer", [ASSIGNMENT, Reject(Cause.ROUND_FULL, 30.0)])
def test_a_check_in_gives_an_assignment_or_a_reject(answer):
    assert calls.check_in(answering(200, to_json(answer)), CHECK_IN) == answer


@pytest.mark.parametrize("answer", [Ack(True, 9.0), Reject(Cause.ROUND_CLOSED, 30.0)])
def test_an_upload_gives_an_ack_or_a_reject(answer):
    assert calls.upload(answering(200, to_json(answer)), "a1", b"update") == answer


def test_a_refused_request_gives_its_cause():
    refused = answering(422, to_json(Problem(Cause.WRONG_ROUND, "expected round 3, found 2")))
    assert calls.upload(refused, "a1", b"update") == Reject(Cause.WRONG_ROUND, 0.0)
    assert calls.abandon(refused, "a1", Cause.CONDITION_LOST) == Reject(Cause.WRONG_ROUND, 0.0)


def test_each_call_goes_to_its_route():
    routes = []

    def send(method, path, body, headers):
        routes.append(f"{method} {path}")
        body = {
            "/v1/devices": to_json(Enrolled("d1" * 8)),
            "/v1/check-in": to_json(ASSIGNMENT),
            "/v1/rounds": to_json(RoundReports()),
            "/v1/server": to_json(Server("ab" * 16, 1)),
        }
        return Reply(200, {}, body.get(path, to_json(Ack(True))))

    calls.enrol(send, calls.meet(send, Ed25519PrivateKey.generate()))
    calls.check_in(send, CHECK_IN)
    calls.upload(send, "a1", b"")
    calls.abandon(send, "a1", Cause.CONDITION_LOST)
    calls.rounds(send)
    assert routes == [
        "GET /v1/server",
        "POST /v1/devices",
        "POST /v1/check-in",
        "PUT /v1/assignments/a1/update",
        "POST /v1/assignments/a1/abandon",
        "GET /v1/rounds",
    ]


def test_a_blob_is_taken_only_if_it_has_the_hash_it_was_asked_for():
    assert calls.fetch(answering(200, b"plan"), digest(b"plan")) == b"plan"
    with pytest.raises(ServerError, match="have another SHA-256"):
        calls.fetch(answering(200, b"plam"), digest(b"plan"))
    with pytest.raises(ServerError, match="refused with 404 unknown_blob: never seen"):
        calls.fetch(
            answering(404, to_json(Problem(Cause.UNKNOWN_BLOB, "never seen"))), digest(b"plan")
        )


def test_round_reports_come_back_whole():
    reports = RoundReports(
        (RoundReport(1, "committed", 3, refused={"in_use": 2}), RoundReport(2, "selecting", 3))
    )
    assert calls.rounds(answering(200, to_json(reports))) == reports


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>"), (200, b"[]"), (200, b"{}"), (500, b""), (404, b"not here"), (302, b"")],
)
def test_an_answer_that_is_not_ours_is_one_clear_line(status, body):
    with pytest.raises(
        ServerError, match=r"POST /v1/check-in: (the answer is not one of ours|expected status)"
    ):
        calls.check_in(answering(status, body), CHECK_IN)


MESSAGES = (Assignment, Reject, Ack, Problem, Enrolled, RoundReports, RoundReport, Plan, Server)
NAMES = sorted({name for kind in MESSAGES for name in kind.__dataclass_fields__})
HOSTILE = (
    st.sampled_from([-1, 2**40, 2**70, 10**400, 1e300, 5e-324, True, None, "", [], {}])
    | st.sampled_from(
        ["a\nb", "\x00", "é", "../../x", "?task=x", "a" * 70_000, "ab" * 32, "ab" * 16]
    )
    | st.sampled_from([*Cause, "selecting", "training", "default"])
    | st.integers()
    | st.floats(0, 1e6)
    | st.text(max_size=9)
)
VALUES = st.recursive(
    HOSTILE,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=9)
    ),
    max_leaves=12,
)
# texts that are no JSON, or not one message
TEXTS = st.sampled_from(
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"cause": "in_use", "retry_in_s": NaN}',
        b'{"cause": "in_use", "retry_in_s": 1e999}',
        b'{"cause": "in_use", "retry_in_s": Infinity}',
        b'{"cause": "in_use", "retry_in_s": %s}' % (b"9" * 400),
        b'{"cause": "in_use", "retry_in_s": %s}' % (b"9" * 9000),
        b'{"cause": "in_use", "cause": "selecting", "retry_in_s": 5}',
        b'{"cause": "\\ud800", "retry_in_s": 5}',
        b'{"counted": true, "\xed\xa0\x80": 1}',
        b"\xff\xfe{\x00}\x00",
    ]
)


@given(
    status=st.sampled_from([200, 204, 400, 401, 404, 421, 426, 500, 503]),
    headers=st.dictionaries(
        st.sampled_from(["retry-after", "fedboard-time", "content-range"]),
        st.sampled_from(["5", "-1", "9" * 30, "nan", "1e9", "\u0665", ""]),
    ),
    body=st.binary(max_size=60) | TEXTS | VALUES.map(lambda value: json.dumps(value).encode()),
)
def test_whatever_a_server_answers_it_is_a_message_or_a_server_error(status, headers, body):
    def send(*_):
        return Reply(status, headers, body)

    signer = calls.Signer(Ed25519PrivateKey.generate(), "ab" * 16)
    signed = calls.signed(send, signer)
    for call in (
        lambda: calls.check_in(signed, CHECK_IN),
        lambda: calls.upload(signed, "a1", b""),
        lambda: calls.report_scores(signed, "a1", Scores(1, 1, 1, 1, 1.0)),
        lambda: calls.abandon(signed, "a1", Cause.CONDITION_LOST),
        lambda: calls.enrol(signed, signer),
        lambda: calls.server(send),
        lambda: calls.rounds(send),
        lambda: calls.fetch(send, digest(b"")),
    ):
        try:
            answer = call()
        except ServerError as error:
            assert "\n" not in str(error)
            continue
        if isinstance(answer, Reject | Ack):
            assert 0 <= answer.retry_in_s <= 1e12
        if isinstance(answer, Assignment):
            assert 0 <= answer.round <= 2**31
            assert 0 <= answer.deadline_s < float("inf")


@given(VALUES)
def test_a_plan_is_read_whole_or_refused(value):
    try:
        plan = from_json(Plan, json.dumps(value).encode(), "plan")
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert plan == Plan(**value)


WHOLE = {
    Assignment: ASSIGNMENT,
    Reject: Reject(Cause.IN_USE, 5.0),
    Ack: Ack(True, 5.0),
    Problem: Problem(Cause.MALFORMED, "why"),
    Enrolled: Enrolled("d1" * 8),
    RoundReport: RoundReport(1, "selecting", 3, scores=Scores(1, 1, 1, 1, 0.5)),
    Plan: Plan(),
    Server: Server("ab" * 16, 5),
    CheckIn: CHECK_IN,
    Enrolment: Enrolment("ab" * 32, "code"),
    Scores: Scores(1, 1, 1, 1, 0.5),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_every_number_and_text_of_every_message_has_bounds(kind):
    table = json.loads(to_json(WHOLE[kind]))
    assert from_json(kind, to_json(table), "x") == WHOLE[kind]
    for name, value in table.items():
        beyond = {
            str: ["x" * 2000, "\n", "\x00", "\u00e9"],
            int: [-(10**30), 10**30],
            float: [-1e300, 1e300],
        }.get(type(value), [])
        for hostile in beyond:
            with pytest.raises(ConfigError, match=name):
                from_json(kind, to_json({**table, name: hostile}), "x")


def test_a_signature_binds_method_path_and_all_that_the_headers_say():
    key, seen = Ed25519PrivateKey.generate(), []
    send = calls.signed(
        lambda *request: seen.append(request) or Reply(200),
        calls.Signer(key, "5e" * 16, lambda: 1000.9, ahead_s=5.0),
        "default",
        7,
    )
    send("PUT", "/v1/x", b"body", {"content-type": "text/plain"})
    _, _, _, headers = seen[0]
    signature, hashed = base64.b64decode(headers["fedboard-signature"]), digest(b"body")
    assert [headers[f"fedboard-{name}"] for name in ("task", "round", "server", "time")] == [
        "default",
        "7",
        "5e" * 16,
        "1005",
    ]
    assert headers["content-type"] == "text/plain"
    assert (
        headers["content-digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(hashed)).decode()}:"
    )
    claim = Claim(hashed, "default", 7, headers["fedboard-nonce"], "5e" * 16, 1005)
    others = Claim(digest(b"bodi"), "other", 8, "0" * 32, "5f" * 16, 1006)
    assert verified(public_hex(key), request_message("PUT", "/v1/x", claim), signature)
    changed = [replace(claim, **{name: getattr(others, name)}) for name in vars(claim)]
    for message in (
        request_message("POST", "/v1/x", claim),
        request_message("PUT", "/v1/y", claim),
        *(request_message("PUT", "/v1/x", each) for each in changed),
    ):
        assert not verified(public_hex(key), message, signature)


@pytest.mark.parametrize(
    ("status", "cause"), [(429, Cause.TOO_MANY_REQUESTS), (503, Cause.UNAVAILABLE)]
)
def test_a_server_that_wants_to_be_left_alone_says_for_how_long(status, cause):
    problem = to_json(Problem(cause, "later"))
    for said, seconds in (("17", 17.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0), ("-3", 0.0)):
        send = lambda *_, said=said: Reply(status, {"retry-after": said}, problem)  # noqa: E731
        assert calls.upload(send, "a1", b"update") == Reject(cause, seconds)
