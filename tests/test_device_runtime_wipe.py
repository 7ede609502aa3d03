"""What a wipe promises: the next upload holds nothing of what was typed before it."""

import itertools
from dataclasses import replace

import numpy as np

from device_runtime.drive import Turn
from device_runtime.home import DeviceConfig, Home
from device_runtime.local import simulated
from device_runtime.turn import Status
from fleet.doors import asgi
from server.coordinator import Coordinator, open_folder
from server.eligibility import Policy
from server.endpoint import app
from server.rounds import Rules
from server.task import TaskSettings
from tests.test_device_runtime_drive import EASY
from tests.toy_server import created

ABLE = "0\tbattery_charged_on\n0\twifi\n0\tscreen_off\n"
SECRETS = [(f"they said my dog will call {i}", float(i)) for i in range(6)]
LATER = [(f"i will see you tomorrow {i}", 100.0 + i) for i in range(6)]


def uploads(tmp_path, tiny_bundle, trusted, lives) -> list[bytes]:
    """The bodies of the updates that devices of equal seeds send in one round, one life each: what
    they do before their turn.
    """
    store, blobs = open_folder(tmp_path / "server")
    rules = Rules(
        report_goal=len(lives), over_selection=1.0, rounds=1, retry_s=10.0, selection_s=0.0
    )
    created(
        Coordinator(store, blobs),
        TaskSettings(tiny_bundle.plan, rules=rules, policy=Policy(min_examples=0), seed=1),
        0.0,
        tiny_bundle.checkpoint,
    )
    coordinator = Coordinator(store, blobs, np.random.default_rng(0))
    (tmp_path / "able.tsv").write_text(ABLE)
    sent = []
    with asgi(app(coordinator, itertools.count(1.0).__next__)) as way:

        def send(method, path, body, headers):
            if method == "PUT":
                sent.append(body)
            return way(method, path, body, headers)

        for number, live in enumerate(lives):
            settings = DeviceConfig(
                tuple(trusted), str(tiny_bundle.path), conditions=str(tmp_path / "able.tsv"), seed=7
            )
            settings = replace(settings, limits=EASY)
            home = Home.create(tmp_path / f"device-{number}", settings)
            live(home)
            assert (
                Turn(home, send, simulated(200.0), sleep=lambda s: None).whole().status
                is Status.COUNTED
            )
    coordinator.close()
    return sent


def type_in(home, messages):
    with home.typing_log() as log:
        log.append_many(messages)


def test_after_a_wipe_the_upload_is_byte_for_byte_that_of_a_device_which_never_knew(
    tmp_path, tiny_bundle, trusted
):
    def knew(home):
        type_in(home, SECRETS)
        home.wipe()
        type_in(home, LATER)

    never, wiped = uploads(
        tmp_path, tiny_bundle, trusted, [lambda home: type_in(home, LATER), knew]
    )
    assert wiped == never


def test_without_a_wipe_the_upload_is_another_so_that_the_test_above_can_fail(
    tmp_path, tiny_bundle, trusted
):
    both, later = uploads(
        tmp_path,
        tiny_bundle,
        trusted,
        [lambda home: type_in(home, SECRETS + LATER), lambda home: type_in(home, LATER)],
    )
    assert both != later
