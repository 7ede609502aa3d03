"""A device on its way to another release of a real server, by `fedboard device` and its daemon."""

import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from device_runtime import bundle, calls, upgrade
from device_runtime.daemon import Daemon
from device_runtime.errors import RunError, ServerError
from device_runtime.home import DeviceConfig, Home
from device_runtime.releases import WHOLE
from device_runtime.transport import Meter, Unreachable, http
from device_runtime.wire import DAY_S
from fedboard import devices, publishing
from fedboard.device_words import status, status_lines
from fedboard.operator import Operator
from server.coordinator import Coordinator, open_folder
from server.eligibility import Policy
from server.endpoint import Access
from server.rounds import Rules
from server.task import TaskSettings
from tests.test_device_runtime_drive import EASY
from tests.test_device_runtime_upgrade import Maker, other_weights
from tests.test_server_endpoint import TOKEN, running
from tests.toy_server import created

ABLE = "0\tbattery_charged_on\n0\twifi\n0\tscreen_off\n"


@pytest.fixture
def url(tmp_path, tiny_bundle):
    store, blobs = open_folder(tmp_path / "server")
    coordinator = Coordinator(store, blobs, np.random.default_rng(0))
    rules = Rules(report_goal=100, over_selection=1.0, selection_s=0.0)
    settings = TaskSettings(tiny_bundle.plan, rules=rules, policy=Policy(min_examples=5), seed=1)
    created(coordinator, settings, 0.0, tiny_bundle.checkpoint)
    with running(coordinator, access_=Access(TOKEN)) as address:
        yield address


@pytest.fixture
def publish(url, tiny_bundle, signing_key, trusted, tmp_path):
    """Publish a release to all, its files those of the tiny bundle but for one."""

    def publish(release: int, unpatched: bool = False, **changed: bytes) -> None:
        content = {**tiny_bundle.content, bundle.BLOCKED: f"word{release}\n".encode(), **changed}
        files = bundle.describe(content)
        path = tmp_path / f"release-{release}"
        manifest = replace(tiny_bundle.manifest, release=release, files=files)
        if unpatched:
            manifest = replace(manifest, constants=None, graph=None)
        if bundle.CHECKPOINT in changed:  # a task's, three rounds later
            manifest = replace(manifest, lineage=replace(manifest.lineage, round=3))
        bundle.write(path, manifest, content, signing_key)
        opened = bundle.open_verified(path, trusted)
        with http(url) as send:
            publishing.publish(Operator(send, TOKEN), opened, signing_key, WHOLE, "default")

    return publish


@pytest.fixture
def phone(url, tmp_path, tiny_bundle, trusted):
    (tmp_path / "able.tsv").write_text(ABLE)
    settings = DeviceConfig(
        tuple(trusted), None, url, str(tmp_path / "able.tsv"), limits=EASY, personal=False
    )
    devices.enrol(tmp_path / "phone", settings, tiny_bundle.path, url)
    home = Home.open(tmp_path / "phone")
    with home.typing_log() as log:
        log.append_many([(f"i will see you {i}", float(i)) for i in range(12)])
    return home


def fedboard(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "fedboard.cli", "device", *map(str, words)],
        capture_output=True,
        text=True,
    )


def said(home: Home) -> str:
    return "\n".join(status_lines(status(home, 0.0)))


def test_at_its_owner_s_word_a_device_goes_to_the_release_and_status_says_how_it_came(
    phone, publish
):
    assert devices.upgrade_now(phone.folder, None) == upgrade.Followed()
    assert devices.why_it_stays(phone.folder) == (
        "it goes on with release 0; no other is offered to it"
    )
    publish(1)
    done = fedboard("upgrade", phone.folder)
    assert done.returncode == 0, done.stderr
    assert "the index of releases: " in done.stdout
    assert "trying release 1" in done.stdout
    last = upgrade.remembered(phone).last
    came = f"release 1 instead of release 0, whole: {last.bytes_down:,} bytes"
    assert came in done.stdout
    assert phone.bundle().manifest.release == 1
    assert came in said(phone)
    assert devices.upgrade_now(phone.folder, None).upgraded is None


def test_a_release_that_is_refused_is_said_with_its_reason_and_fails_the_command(phone, publish):
    publish(1, unpatched=True, **{bundle.PREDICT: phone.bundle().train_graph})
    done = fedboard("upgrade", phone.folder)
    assert done.returncode == 1
    assert "release 1 is refused: " in done.stdout
    assert "it goes on with release 0" in done.stdout
    assert "refused: release 1: release 1: expected probabilities" in said(phone)
    assert "; release 1 was refused: " in devices.why_it_stays(phone.folder)


def test_a_release_that_cannot_be_fetched_is_tried_again_and_status_says_when(phone):
    index = "ab" * 32
    with (
        devices.way(phone.folder, None) as send,
        pytest.raises(ServerError, match=f"/v1/releases/{index}: refused with 404"),
    ):
        upgrade.follow(phone, index, upgrade.Means(lambda: nullcontext(send), lambda: 0.0))
    assert f"no other release yet: GET /v1/releases/{index}: refused with 404" in said(phone)
    assert "it is tried again in 3600 s" in said(phone)


def test_without_enrolment_or_a_server_the_command_says_what_to_do(
    tmp_path, tiny_bundle, trusted, url
):
    home = Home.create(tmp_path / "new", DeviceConfig(tuple(trusted), str(tiny_bundle.path)))
    with pytest.raises(RunError, match=r"no server is named in its device.toml; pass --server"):
        devices.upgrade_now(home.folder, None)
    assert devices.upgrade_now(home.folder, url) == upgrade.Followed()
    assert (home.name, home.server_name) == (None, None)  # nobody has to be known for it


def test_asking_for_releases_alone_gets_no_work(phone, publish, url):
    publish(1)
    with http(url) as send:
        assert len(upgrade.ask(phone, send, 0.0)) == 64
        (report,) = calls.rounds(send).rounds
    assert (report.checked_in, report.assigned) == (0, 0)


def test_a_server_names_the_releases_of_a_population_to_anybody(publish, url):
    publish(1)
    with http(url) as send:
        assert len(calls.newest(send, "default")) == 64
        assert calls.newest(send, "another") == ""
        assert calls.newest(send, "%00") == ""
        assert send("GET", "/v1/newest", b"", {}).status == 200


NEVER_CHARGED = "0\tbattery_charged_off\n0\twifi\n0\tscreen_off\n"
METERED = "0\tbattery_charged_on\n0\t4g\n0\tscreen_off\n"


@pytest.mark.parametrize("trace", [NEVER_CHARGED, ABLE], ids=["never charged", "types nothing"])
def test_a_phone_that_never_takes_part_comes_to_the_release_by_itself(
    trace, tmp_path, tiny_bundle, trusted, publish, url
):
    (tmp_path / "trace.tsv").write_text(trace)
    settings = DeviceConfig(tuple(trusted), conditions=str(tmp_path / "trace.tsv"))
    home = Home.create(tmp_path / "quiet", settings, [], tiny_bundle.path)
    publish(1)
    now = [10.0 * DAY_S]
    with http(url) as send, http(url) as own:
        turns, fetched = Meter(send), Meter(own)
        daemon = Daemon(home, turns, lambda: now[0], sleep=lambda seconds: None)
        daemon.follow_releases(lambda: nullcontext(fetched))
        daemon.step()
        assert home.bundle().manifest.release == 1
        publish(2)
        for _ in range(3):  # it has asked today
            now[0] += 3600.0
            daemon.step()
        assert home.bundle().manifest.release == 1
        now[0] += DAY_S
        daemon.step()
        assert home.bundle().manifest.release == 2


def test_phones_that_were_switched_on_at_once_do_not_ask_for_releases_at_once(
    tmp_path, tiny_bundle, trusted
):
    (tmp_path / "trace.tsv").write_text(NEVER_CHARGED)
    settings = DeviceConfig(tuple(trusted), conditions=str(tmp_path / "trace.tsv"), spread_s=3600.0)
    home = Home.create(tmp_path / "quiet", settings, [], tiny_bundle.path)

    def minutes_asked(seed: int) -> list[int]:
        """When a phone asks in six hours, of a server that is away."""
        asked, now = [], [0.0]

        @contextmanager
        def connect():
            asked.append(int(now[0] // 60))
            raise Unreachable("server", "no connection", "wait")
            yield

        rng = np.random.default_rng(seed)
        daemon = Daemon(home, None, lambda: 10 * DAY_S + now[0], rng=rng)
        daemon.follow_releases(connect)
        daemon.spread()
        for minute in range(360):
            now[0] = 60.0 * minute
            daemon.step()
        return asked

    first, other = minutes_asked(1), minutes_asked(2)
    assert 2 <= len(first) <= 4
    assert 0 < first[0] < 60
    assert set(first).isdisjoint(other)


def test_on_a_metered_network_nobody_asks_for_releases(
    tmp_path, tiny_bundle, trusted, publish, url
):
    (tmp_path / "trace.tsv").write_text(METERED)
    settings = DeviceConfig(tuple(trusted), conditions=str(tmp_path / "trace.tsv"))
    home = Home.create(tmp_path / "metered", settings, [], tiny_bundle.path)
    publish(1)
    with http(url) as send:
        asked = Meter(send)
        daemon = Daemon(home, asked, lambda: DAY_S)
        daemon.follow_releases(lambda: nullcontext(asked))
        daemon.step()
    assert (asked.down, home.bundle().manifest.release) == (0, 0)


def test_after_its_turn_a_daemon_goes_to_the_release_over_a_connection_of_its_own(
    phone, publish, url
):
    publish(1)
    with http(url) as send, http(url) as own:
        turns, fetched = Meter(send), Meter(own)
        daemon = Daemon(phone, turns, lambda: 86_400.0)
        daemon.follow_releases(lambda: nullcontext(fetched))
        outcome = daemon.once()
    assert outcome.status == "counted"
    assert phone.bundle().manifest.release == 1
    assert upgrade.remembered(phone).last.bytes_down == fetched.down > 0
    assert outcome.bytes_down <= turns.down


def goes_to_what_is_published(phone: Home, other: Path, url: str) -> upgrade.Upgraded:
    """By an index that another device heard of: this one has not asked its server for anything."""
    with http(url) as send:
        index = upgrade.ask(Home.open(other), send, 0.0)
    return upgrade.follow(phone, index, upgrade.Means(partial(http, url))).upgraded


def test_a_phone_without_the_release_s_checkpoint_trains_on_and_tells_nobody_what_it_runs(
    phone, publish, url, tiny_bundle, signing_key, tmp_path
):
    other = tmp_path / "other"
    devices.enrol(other, phone.config, tiny_bundle.path, url)
    old = tiny_bundle.manifest.files[bundle.CHECKPOINT].sha256
    phone.age_of(old, 0.0)
    publish(1)
    goes_to_what_is_published(phone, other, url)
    publish(2, **other_weights(Maker(tiny_bundle, signing_key, tmp_path), 1))
    done = goes_to_what_is_published(phone, other, url)
    assert (done.release, done.how, phone.bundle().is_lean) == (2, upgrade.DIFFERENCE, True)
    asked = []

    def send(method, path, body, headers):
        asked.append((path, body))
        return way(method, path, body, headers)

    with http(url) as way:
        outcome = Daemon(phone, send, lambda: 86_400.0).turn()
    # its work was within the reach of the weights that its codes stand for
    assert (outcome.status, outcome.cause, outcome.round) == ("counted", None, 1)
    said = b"".join(body for _, body in asked)
    assert f'"holds":"{old}"'.encode() in said
    assert phone.bundle().manifest.files[bundle.CHECKPOINT].sha256.encode() not in said
    assert not any(path.startswith("/v1/releases") for path, _ in asked)


def test_rounds_of_several_devices_bring_the_release_to_those_that_use_a_bundle_in_place(
    publish, url, tmp_path, tiny_bundle, trusted
):
    publish(1)
    (tmp_path / "able.tsv").write_text(ABLE)
    settings = DeviceConfig(
        tuple(trusted), str(tiny_bundle.path), conditions=str(tmp_path / "able.tsv"), limits=EASY
    )
    typed = [(f"i will see you {i}", float(i)) for i in range(12)]
    homes = [Home.create(tmp_path / f"phone-{n}", settings, typed) for n in range(2)]
    with http(url) as send:
        folders = [home.folder for home in homes]
        devices.run(folders, send, 1, None, partial(http, url))
    assert [home.bundle().manifest.release for home in homes] == [1, 1]
