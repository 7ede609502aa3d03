"""A device's turn against the real coordinator behind the real app, with the real bundle and tflite-runtime."""

import contextlib
import itertools

import numpy as np
import pytest

from device_runtime import weights
from device_runtime.home import DeviceConfig, Home
from device_runtime.participate import Status, take_turn, ticking
from device_runtime.transport import Interrupted
from device_runtime.wire import Cause
from fleet.simulate import asgi
from server.aggregation import ServerStep
from server.coordinator import Coordinator, create_task, open_folder
from server.eligibility import Policy
from server.endpoint import app
from server.rounds import Rules

ABLE = "0\tbattery_charged_on\n0\twifi\n0\tscreen_off\n"
SECRET = "i will see zebracorn"


@pytest.fixture
def server(tmp_path, tiny_bundle):
    """The way to a server that wants one round of one report; `sent` keeps every body it was sent."""
    store, blobs = open_folder(tmp_path / "server")
    rules = Rules(report_goal=1, over_selection=1.0, rounds=1, retry_s=10.0)
    create_task(store, blobs, tiny_bundle.checkpoint, tiny_bundle.plan, rules, Policy(min_examples=5), ServerStep(), 0.0, seed=1)
    coordinator = Coordinator(store, blobs, np.random.default_rng(0))
    sent = []
    with asgi(app(coordinator, itertools.count(1.0).__next__)) as way:

        def send(method, path, body, headers):
            sent.append((method, path, body, dict(headers)))
            return way(method, path, body, headers)

        send.coordinator, send.sent = coordinator, sent
        yield send
    coordinator.close()


@pytest.fixture
def device(tmp_path, tiny_bundle, trusted):
    """Makes a device whose conditions follow a trace."""
    numbers = itertools.count()

    def make(trace: str | None = ABLE, messages: int = 20) -> Home:
        number = next(numbers)
        if trace is not None:
            (tmp_path / f"{number}.tsv").write_text(trace)
        settings = DeviceConfig(str(tiny_bundle.path), tuple(trusted), None if trace is None else str(tmp_path / f"{number}.tsv"), seed=number)
        return Home.create(tmp_path / f"device-{number}", settings, [(f"{SECRET} number {i}", float(i)) for i in range(messages)])

    return make


def turn(home, send):
    return take_turn(home, send, ticking(0.0), sleep=lambda s: None)


def test_a_whole_turn_counts_and_moves_the_global_weights_towards_the_device(server, device, tiny_bundle):
    home = device()
    outcome = turn(home, server)
    assert (outcome.status, outcome.cause, outcome.examples) == (Status.COUNTED, None, 16)
    assert outcome.loss_after < outcome.loss_before
    (report,) = server.coordinator.reports(0.0).rounds
    assert (report.phase, report.counted, report.examples) == ("committed", 1, 16)
    assert report.checkpoint != ""
    (line,) = home.contributions()
    assert (line.outcome, line.round, line.examples) == ("counted", outcome.round, 16)


@pytest.mark.parametrize(
    ("trace", "cause"),
    [
        (ABLE.replace("charged_on", "charged_off"), Cause.NOT_CHARGING),
        (ABLE.replace("wifi", "4g"), Cause.METERED_NETWORK),
        (ABLE.replace("screen_off", "screen_on"), Cause.IN_USE),
        (None, Cause.NOT_CHARGING),
    ],
    ids=["unplugged", "metered", "in use", "unknown"],
)
def test_a_device_that_may_not_train_is_refused_for_its_cause(server, device, trace, cause):
    outcome = turn(device(trace), server)
    assert (outcome.status, outcome.cause) == (Status.REFUSED, cause)
    assert outcome.retry_in_s > 0
    assert server.coordinator.reports(0.0).rounds[0].refused == {str(cause): 1}


def test_too_few_messages_are_refused(server, device):
    assert turn(device(messages=4), server).cause is Cause.TOO_FEW_EXAMPLES


def test_a_device_unplugged_while_it_trains_gives_its_work_back_and_uploads_nothing(server, device):
    outcome = turn(device(ABLE + "90\tbattery_charged_off\n"), server)
    assert (outcome.status, outcome.cause) == (Status.ABANDONED, Cause.CONDITION_LOST)
    assert not any(method == "PUT" for method, *_ in server.sent)
    assert server.coordinator.reports(0.0).rounds[0].dropped == {"condition_lost": 1}


def test_a_lost_reply_to_the_upload_is_asked_for_again_and_counts_once(server, device):
    lost = iter([True])

    def unlucky(method, path, body, headers):
        reply = server(method, path, body, headers)
        if method == "PUT" and next(lost, False):
            raise Interrupted(path, "the reply was lost", "try again")
        return reply

    assert turn(device(), unlucky).status is Status.COUNTED
    assert server.coordinator.reports(0.0).rounds[0].counted == 1


def test_a_damaged_cached_checkpoint_is_fetched_again(server, device, tiny_bundle):
    home = device()
    name = weights.digest(weights.to_bytes(tiny_bundle.checkpoint, np.float16))
    home.keep_checkpoint(name, b"damaged")
    assert home.cached_checkpoint(name) is None
    assert turn(home, server).status is Status.COUNTED


def test_nothing_typed_is_in_any_request_nor_in_any_file_of_the_device(server, device):
    home = device()
    turn(home, server)
    words = [word.encode() for word in ("zebracorn", "number")]
    for method, path, body, headers in server.sent:
        everything = body + path.encode() + repr(headers).encode() + method.encode()
        assert not any(word in everything for word in words)
    for path in home.folder.rglob("*"):
        with contextlib.suppress(IsADirectoryError):
            assert not any(word in path.read_bytes() for word in words), path
