import base64
import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import calls
from device_runtime.causes import Cause
from device_runtime.config import to_json
from device_runtime.errors import ServerError
from device_runtime.signing import Claim, public_hex, request_message, verified
from device_runtime.transport import Reply
from device_runtime.weights import digest
from device_runtime.wire import (
    Ack,
    Assignment,
    CheckIn,
    Conditions,
    Enrolled,
    Problem,
    Reject,
    RoundReport,
    RoundReports,
    Server,
)

CHECK_IN = CheckIn(Conditions(True, True, True), examples=3, tokenizer="ab" * 32)
ASSIGNMENT = Assignment("a1", 1, "c" * 64, "d" * 64, "e" * 64, rotation_seed=5, deadline_s=60.0)


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
            "/v1/devices": to_json(Enrolled("d1")),
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


@given(
    status=st.sampled_from([200, 204, 400, 404, 500]),
    body=st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(lambda value: json.dumps(value).encode()),
)
def test_whatever_a_server_answers_it_is_a_message_or_a_server_error(status, body):
    send = answering(status, body)
    for call in (
        lambda: calls.check_in(send, CHECK_IN),
        lambda: calls.upload(send, "a1", b""),
        lambda: calls.abandon(send, "a1", Cause.CONDITION_LOST),
        lambda: calls.rounds(send),
        lambda: calls.fetch(send, digest(b"")),
    ):
        try:
            call()
        except ServerError as error:
            assert "\n" not in str(error)


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
