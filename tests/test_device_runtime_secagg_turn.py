"""Turns of devices that open their sum together: real turns, a real server, real training.

Time is the server's and stands still, but for what devices wait.
"""

import itertools
import threading
from dataclasses import replace

import numpy as np
import pytest

from device_runtime import drive
from device_runtime.causes import Cause
from device_runtime.drive import Turn
from device_runtime.home import UNFINISHED, DeviceConfig, Home
from device_runtime.limits import OwnLimits
from device_runtime.local import simulated
from device_runtime.transport import http
from device_runtime.turn import Status
from device_runtime.wire import Kind, Phase
from server import endpoint
from server.coordinator import Coordinator, open_folder
from server.eligibility import Policy
from server.rounds import Rules
from server.task import TaskSettings
from tests.toy_secagg_steps import settings
from tests.toy_server import created

DEVICES = 12
ABLE = "0\tbattery_charged_on\n0\twifi\n0\tscreen_off\n"
# it trains for twelve minutes, looks at its loss included, and then waits for others
UNPLUGGED = ABLE + "730\tbattery_charged_off\n"
EASY = OwnLimits(
    clipping_norm=5.0,
    least_messages=5,
    least_words=20,
    least_score_words=20,
    updates_a_day=50,
    min_separation=1,
)


class Server:
    """A server in this process, whose time goes on when `sleep` is called."""

    def __init__(self, coordinator: Coordinator, way, url: str):
        self.coordinator, self.way, self.url, self.at = coordinator, way, url, [1.0]
        self.sent: list[tuple[str, str]] = []
        self.task = "default"

    def send(self, method, path, body, headers):
        self.sent.append((method, path.rpartition("/")[2]))
        return self.way(method, path, body, headers)

    def sleep(self, seconds: float) -> None:
        self.at[0] += seconds
        self.coordinator.tick(self.at[0])
        self.coordinator.open_sums(self.at[0])

    def until_closed(self) -> None:
        while self.report().phase not in (Phase.COMMITTED, Phase.ABANDONED):
            self.sleep(30.0)

    def report(self):
        return self.coordinator.reports(self.at[0], self.task).rounds[0]


@pytest.fixture
def server(tmp_path, tiny_bundle):
    store, blobs = open_folder(tmp_path / "server")
    rules = Rules(
        report_goal=DEVICES, over_selection=1.0, min_reports=6, reporting_s=3600.0, rounds=1
    )
    task = replace(settings(rules), plan=tiny_bundle.plan, policy=Policy(min_examples=5))
    created(Coordinator(store, blobs), task, 0.0, tiny_bundle.checkpoint)
    coordinator = Coordinator(store, blobs, np.random.default_rng(0))
    sock = endpoint.bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    with http(url) as way:
        it = Server(coordinator, way, url)
        app = endpoint.app(coordinator, clock=lambda: it.at[0], tick_s=1e6)
        uvicorn = endpoint.server(app)
        thread = threading.Thread(target=uvicorn.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            yield it
        finally:
            uvicorn.should_exit = True
            thread.join()
            coordinator.close()


@pytest.fixture
def device(tmp_path, tiny_bundle, trusted):
    """Makes a device whose conditions follow a trace."""
    numbers = itertools.count()

    def make(trace: str = ABLE, messages: int = 20) -> Home:
        number = next(numbers)
        (tmp_path / f"{number}.tsv").write_text(trace)
        config = DeviceConfig(
            tuple(trusted),
            bundle=str(tiny_bundle.path),
            conditions=str(tmp_path / f"{number}.tsv"),
            seed=number,
            limits=EASY,
        )
        typed = [(f"i will see number {number} {i}", float(i)) for i in range(messages)]
        return Home.create(tmp_path / f"device-{number}", config, typed)

    return make


def run(homes, server) -> dict[str, object]:
    """What becomes of each device's turn in one round."""
    outcomes = {}
    drive.run(
        homes,
        server.send,
        1,
        lambda home, outcome: outcomes.update({home.folder.name: outcome}),
        sleep=server.sleep,
    )
    server.until_closed()
    return outcomes


def test_twelve_phones_open_the_sum_of_their_updates_together(server, device):
    homes = [device() for _ in range(DEVICES)]
    outcomes = run(homes, server)
    assert {each.status for each in outcomes.values()} == {Status.COUNTED}
    report = server.report()
    assert (report.phase, report.counted, report.reason) == (Phase.COMMITTED, DEVICES, "")
    assert report.checkpoint != ""
    assert server.sent.count(("PUT", "revealed")) == DEVICES
    assert {line.outcome for home in homes for line in home.contributions()} == {"counted"}


def test_twelve_phones_open_the_sum_of_their_scores_together(server, device):
    rules = Rules(report_goal=DEVICES, over_selection=1.0, reporting_s=3600.0, rounds=1)
    task = TaskSettings(name="scores", kind=Kind.EVALUATION, evaluates="default", rules=rules)
    server.task = created(server.coordinator, task, 0.5).name
    server.coordinator.pause("default")
    homes = [device(messages=60) for _ in range(DEVICES)]  # six of them are held back
    outcomes = run(homes, server)
    assert {each.status for each in outcomes.values()} == {Status.COUNTED}
    report = server.report()
    assert (report.phase, report.counted, report.reason) == (Phase.COMMITTED, DEVICES, "")
    assert report.scores.targets == sum(each.examples for each in outcomes.values())
    assert sum(report.spread) == DEVICES
    assert ("PUT", "scores") not in server.sent  # which would be in the open
    lines = [line for home in homes for line in home.contributions()]
    assert {(line.outcome, line.kind) for line in lines} == {("counted", "evaluation")}
    assert all(line.scored for line in lines)


def test_a_phone_that_is_unplugged_while_it_waits_is_out_and_the_others_go_on(server, device):
    homes = [device(UNPLUGGED), *(device() for _ in range(DEVICES - 1))]
    outcomes = run(homes, server)
    lost = outcomes.pop(homes[0].folder.name)
    assert (lost.status, lost.cause) == (Status.ABANDONED, Cause.CONDITION_LOST)
    assert {each.status for each in outcomes.values()} == {Status.COUNTED}
    report = server.report()
    assert (report.phase, report.counted) == (Phase.COMMITTED, DEVICES - 1)
    assert report.dropped == {"condition_lost": 1}
    assert homes[0].kept(UNFINISHED) is None


def test_a_phone_that_is_picked_up_as_the_last_shares_come_sends_no_update(server, device):
    homes = [device() for _ in range(DEVICES)]
    busy, in_hand, send = homes[0], [], server.send
    stands = busy.conditions
    vars(busy)["conditions"] = lambda now: replace(stands(now), idle=not in_hand)

    def picking_up(method, path, body, headers):
        reply = send(method, path, body, headers)
        if path.endswith("inbox") and b"boxes" in reply.body and busy.name in headers.values():
            in_hand.append(path)
        return reply

    server.send = picking_up
    outcomes = run(homes, server)
    lost = outcomes.pop(busy.folder.name)
    assert (lost.status, lost.cause) == (Status.ABANDONED, Cause.CONDITION_LOST)
    assert {each.status for each in outcomes.values()} == {Status.COUNTED}


def test_a_phone_that_dies_after_its_first_message_makes_no_other_keys_for_the_work(server, device):
    home = device()
    first = Turn(home, server.send, simulated(0.0), sleep=server.sleep)
    assert first.check_in() is None
    next(first.working())  # it waits for the others, and dies
    assert server.sent.count(("PUT", "keys")) == 1
    assert [line.outcome for line in home.contributions()] == ["joined"]
    again = Turn(Home.open(home.folder), server.send, simulated(1000.0), sleep=server.sleep)
    assert again.check_in() is None
    outcome = again.work()
    assert (outcome.status, outcome.cause) == (Status.ABANDONED, Cause.CONDITION_LOST)
    assert server.sent.count(("PUT", "keys")) == 1
    assert server.report().dropped == {"condition_lost": 1}
