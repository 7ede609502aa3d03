"""A device whose server means it ill: a real daemon, a real HTTP server, any answer."""

import itertools
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from device_runtime import chain, config, signing, transport, wire
from device_runtime.daemon import LEAST_S, LONGEST_S, Daemon, read_schedule
from device_runtime.home import DeviceConfig, Home
from device_runtime.limits import OwnLimits
from device_runtime.weights import digest
from tests import toy_server

ABLE = "0\tbattery_charged_on\n0\twifi\n0\tscreen_off\n"
SERVER = wire.Server("5e" * 16, 0)


@contextmanager
def hostile(answers):
    """The URL of a server that gives `answers(path)` to every path it is asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status, body = answers(self.path)
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def home(tmp_path, tiny_bundle, trusted) -> Home:
    (tmp_path / "trace.tsv").write_text(ABLE)
    settings = DeviceConfig(
        tuple(trusted),
        bundle=str(tiny_bundle.path),
        conditions=str(tmp_path / "trace.tsv"),
        seed=1,
        personal=False,
        limits=OwnLimits(least_messages=1, least_words=1, least_score_words=1),
    )
    typed = [("they will see the new house and my dog", float(i)) for i in range(60)]
    return Home.create(tmp_path / "device", settings, typed)


def assignment(**changes: object) -> bytes:
    table = {
        "assignment": "a1" * 16,
        "round": 1,
        "plan": digest(PLAN),
        "checkpoint": "d" * 64,
        "shapes": "e" * 64,
        "deadline_s": 60.0,
        "server": SERVER.server,
        "task_id": "7a" * 16,
    }
    return json.dumps(table | changes).encode()


def chained(sign=toy_server.chained, **changes: object) -> bytes:
    """The same with a chain that the device trusts, or as `sign` makes it."""
    return config.to_json(sign(config.from_json(wire.Assignment, assignment(**changes), "work")))


def with_(text: bytes, **of: bytes) -> bytes:
    """An assignment with a value that json.dumps does not write."""
    ((name, value),) = of.items()
    return text.replace(b'"%s": 5' % name.encode(), b'"%s": %s' % (name.encode(), value))


PLAN = config.to_json(wire.Plan())
CHECK_IN_ANSWERS = {
    "a round before the first": assignment(round=-1),
    "a round beyond all": assignment(round=2**40),
    "a deadline of 400 digits": with_(assignment(deadline_s=5), deadline_s=b"9" * 400),
    "a deadline of 9000 digits": with_(assignment(deadline_s=5), deadline_s=b"9" * 9000),
    "a deadline that is no number": with_(assignment(deadline_s=5), deadline_s=b"NaN"),
    "a task of other letters": assignment(task="grüße"),
    "an assignment of two lines": assignment(assignment="a\nb"),
    "an assignment of half a character": assignment(assignment="\ud800"),
    "an assignment of a megabyte": assignment(assignment="a" * 2**20),
    "a plan of two lines": assignment(plan="c" * 63 + "\n"),
    "much of nothing": b"[" * 200_000,
    "no time to wait": b'{"cause": "in_use", "retry_in_s": NaN}',
    "a wait for ever": b'{"cause": "in_use", "retry_in_s": Infinity}',
    "a wait of 30,000 years": b'{"cause": "in_use", "retry_in_s": 1e12}',
    "a wait beyond all": b'{"cause": "in_use", "retry_in_s": 1e300}',
    "a wait of 400 digits": b'{"cause": "in_use", "retry_in_s": %s}' % (b"9" * 400),
    "a limit that is not the server's": b'{"cause": "over_limit", "retry_in_s": 1e12}',
    "a limit and no wait": b'{"cause": "over_limit", "retry_in_s": 0}',
    "a wait that is over": b'{"cause": "in_use", "retry_in_s": -5}',
    "another server": assignment(server="0f" * 16),
}


def plan(name: str, value: bytes) -> bytes:
    """The plan with a value that json.dumps does not write."""
    text, count = re.subn(
        rb'"%s":[^,}]+' % name.encode(), b'"%s":%s' % (name.encode(), value), PLAN
    )
    assert count == 1
    return text


PLANS = {
    "rows beyond all": plan("max_rows", b"10000000000000000000"),
    "a norm that is no number": plan("clipping_norm", b"NaN"),
    "a rate of 400 digits": plan("learning_rate", b"9" * 400),
    "epochs without end": plan("epochs", b"1000000000"),
    "a plan deeper than the sea": b"[" * 200_000,
}


def live(home: Home, answers) -> Daemon:
    """A daemon that has taken one step against such a server."""
    told = {
        "/v1/server": config.to_json(SERVER),
        "/v1/devices": config.to_json(wire.Enrolled(name_of(home))),
    }

    asked = set()

    def answer(path: str):
        asked.add(path)
        return (200, told[path]) if path in told else answers(path)

    with hostile(answer) as url, transport.http(url) as send:
        daemon = Daemon(
            home, send, lambda: 1000.0, rng=np.random.default_rng(0), sleep=lambda _: None
        )
        wait = daemon.step()
    assert 0 < wait <= LONGEST_S * 1.2
    assert "/v1/check-in" in asked
    return daemon


def name_of(home: Home) -> str:
    return signing.name_of(signing.public_hex(home.key))


@pytest.mark.parametrize("answer", CHECK_IN_ANSWERS.values(), ids=CHECK_IN_ANSWERS)
def test_a_device_survives_any_answer_to_its_check_in_and_keeps_its_wait(home, answer):
    daemon = live(home, lambda path: (200, answer))
    kept = read_schedule(home)
    assert kept == daemon.schedule
    assert kept.asked_at == 1000.0
    assert LEAST_S <= kept.wait_s <= LONGEST_S * 1.2


@pytest.mark.parametrize("text", PLANS.values(), ids=PLANS)
def test_a_device_survives_any_plan_and_keeps_its_wait(home, text):
    work = chained(plan=digest(text))
    daemon = live(home, lambda path: (200, text if "blobs" in path else work))
    assert read_schedule(home) == daemon.schedule
    assert daemon.schedule.errors == 1
    assert LEAST_S <= daemon.schedule.wait_s <= 4 * 3600


@pytest.mark.parametrize("status", [100 + 99, 204, 302, 404, 421, 426, 500, 503])
def test_a_device_survives_any_status(home, status):
    problem = config.to_json({"cause": "wrong_server", "detail": "x"})
    for body in (b"", b"\xff", problem):
        daemon = live(home, lambda path, body=body: (status, body))
        assert read_schedule(home) == daemon.schedule
        home.drop("schedule.json")


def expired(work: wire.Assignment) -> wire.Assignment:
    return forged(work, expires_at=999.0)


def forged(
    work: wire.Assignment, by=toy_server.OPERATOR, rounds: int = 9, expires_at=1e11, **changes
) -> wire.Assignment:
    """The work with a certificate that says something else, and a link that belongs to it."""
    good = config.from_json(
        chain.Certificate, toy_server.chained(work).certificate.text.encode(), "certificate"
    )
    said = replace(good, rounds=rounds, expires_at=expires_at, **changes)
    certificate = signing.sign_text(by, chain.CERTIFICATE, config.to_json(said))
    link = chain.Link(chain.name_of(certificate), 0, work.checkpoint)
    return replace(
        work,
        certificate=certificate,
        link=signing.sign_text(toy_server.key(1), chain.LINK, config.to_json(link)),
    )


def replayed(work: wire.Assignment) -> wire.Assignment:
    """A checkpoint of the server's own beside the link of a good one."""
    return replace(toy_server.chained(work), checkpoint="d1" * 32)


UNTRUSTED = {
    "no certificate": lambda work: work,
    "a certificate and no link": lambda work: replace(toy_server.chained(work), link=None),
    "a certificate of a foreign key": lambda work: forged(work, toy_server.key(7)),
    "an expired certificate": expired,
    "another task's certificate": lambda work: forged(work, task_id="0a" * 16),
    "another plan's certificate": lambda work: forged(work, plan="0a" * 32),
    "another population's certificate": lambda work: forged(work, population="de-ch"),
    "the link of another checkpoint": replayed,
    "a certificate past its rounds": lambda work: forged(work, rounds=0),
}


# an evaluation scores the checkpoints of another task, which is certified by itself, round by round
OF_ANOTHER = (
    "another task's certificate",
    "another plan's certificate",
    "a certificate past its rounds",
)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind in (wire.Kind.TRAINING, wire.Kind.EVALUATION)
        for name in UNTRUSTED
        if kind is wire.Kind.TRAINING or name not in OF_ANOTHER
    ],
)
def test_of_a_checkpoint_no_trusted_key_signed_nothing_is_fetched_trained_or_sent(home, kind, name):
    paths = []

    def answer(path: str):
        paths.append(path)
        if path.endswith("/abandon"):
            return 200, config.to_json(wire.Ack(False, 60.0))
        return 200, chained(lambda work: UNTRUSTED[name](replace(work, kind=kind)))

    live(home, answer)
    assert [path.rpartition("/")[2] for path in paths] == ["check-in", "abandon"]
    (line,) = home.contributions()
    assert (line.outcome, line.cause) == ("abandoned", "uncertified")
    assert line.detail.startswith(("certificate: expected", "certificate: ", "link: expected"))
    assert line.detail.isascii() and len(line.detail) < 200
    assert home.held_checkpoint() is None


def test_a_server_that_signs_two_checkpoints_for_one_round_is_caught_with_both_signatures(home):
    """It has a round key: what it signs is trusted, until it contradicts itself."""
    checkpoints, fetched = iter(["d1" * 32, "d2" * 32, "d1" * 32, "d2" * 32]), []

    def answer(path: str):
        if path.endswith("/check-in"):
            return 200, chained(checkpoint=next(checkpoints), plan=digest(PLAN))
        if path.endswith("/abandon"):
            return 200, config.to_json(wire.Ack(False, 60.0))
        fetched.append(path)
        return 404, b""

    for turn, caught in enumerate((0, 1, 1, 1)):
        fetched.clear()
        live(home, answer)
        assert len(home.evidence()) == caught
        assert (fetched == []) == bool(turn % 2)  # the first of them is still trusted
        home.drop("schedule.json")
    (contradiction,) = home.evidence()
    said = chain.described(contradiction)
    assert "d1d1d1d1" in said and "d2d2d2d2" in said
    assert signing.public_hex(toy_server.OPERATOR) in said


def test_a_server_that_gives_out_another_s_work_is_refused_by_name(home, caplog):
    live(home, lambda path: (200, assignment(server="0f" * 16)))
    assert "server" in caplog.text
    assert "0f0f" in caplog.text


def test_a_server_that_always_says_it_is_another_is_asked_a_few_times_a_turn(home):
    asked = itertools.count()
    problem = config.to_json(wire.Problem("wrong_server", "x"))

    def answer(path: str):
        next(asked)
        return 421, problem

    daemon = live(home, answer)
    assert next(asked) <= 4
    assert daemon.schedule.wait_s >= LEAST_S
