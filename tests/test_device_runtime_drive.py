"""A device's turn against the real coordinator behind the real app.

The bundle and tflite-runtime are real too.
"""

import contextlib
import gc
import itertools
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from device_runtime import bundle, config, drive, signing, weights
from device_runtime.causes import Cause
from device_runtime.daemon import Schedule, read_schedule
from device_runtime.drive import Turn
from device_runtime.errors import BundleError
from device_runtime.finetune import finetune
from device_runtime.home import CONFIG, LEARNED, UNFINISHED, DeviceConfig, Home
from device_runtime.interpreter import Graph
from device_runtime.keyboard import Keyboard
from device_runtime.limits import OwnLimits
from device_runtime.local import DeviceClock, simulated
from device_runtime.transport import Interrupted, Reply, Unreachable
from device_runtime.turn import Status
from device_runtime.typing_log import Retention
from device_runtime.wire import Phase, RoundReport, RoundReports
from fleet.doors import asgi
from server.coordinator import Coordinator, open_folder
from server.eligibility import Policy
from server.endpoint import app
from server.rounds import Rules
from server.step import ServerStep
from server.task import TaskSettings
from tests.toy_server import OPERATOR, certify, created

GOLDEN = Path(__file__).parent / "golden"
ABLE = "0\tbattery_charged_on\n0\twifi\n0\tscreen_off\n"
SECRET = "i will see zebracorn"
# an owner of a toy: its plan has room for eight messages, and each of its rounds is another's
EASY = OwnLimits(
    clipping_norm=5.0,
    least_messages=5,
    least_words=20,
    least_score_words=10,
    updates_a_day=50,
    min_separation=1,
)


@pytest.fixture
def server(tmp_path, tiny_bundle):
    """The way to a server that wants one round of one report; `sent` keeps every body it was
    sent.
    """
    store, blobs = open_folder(tmp_path / "server")
    rules = Rules(report_goal=1, over_selection=1.0, rounds=1, retry_s=10.0, selection_s=0.0)
    created(
        Coordinator(store, blobs),
        TaskSettings(tiny_bundle.plan, rules=rules, policy=Policy(min_examples=5), seed=1),
        0.0,
        tiny_bundle.checkpoint,
    )
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

    def make(trace: str | None = ABLE, messages: int = 20, **settings) -> Home:
        number = next(numbers)
        if trace is not None:
            (tmp_path / f"{number}.tsv").write_text(trace)
        conditions = None if trace is None else str(tmp_path / f"{number}.tsv")
        settings = {
            "bundle": str(tiny_bundle.path),
            "conditions": conditions,
            "seed": number,
            "limits": EASY,
            **settings,
        }
        typed = [(f"{SECRET} number {i}", float(i)) for i in range(messages)]
        return Home.create(
            tmp_path / f"device-{number}", DeviceConfig(tuple(trusted), **settings), typed
        )

    return make


def turn(home, send, at=0.0, train=finetune):
    return Turn(home, send, simulated(at), train, sleep=lambda s: None).whole()


def test_a_whole_turn_counts_and_moves_the_global_weights_towards_the_device(
    server, device, tiny_bundle
):
    home = device()
    outcome = turn(home, server)
    assert (outcome.status, outcome.cause, outcome.examples) == (Status.COUNTED, None, 16)
    assert outcome.loss_after < outcome.loss_before
    (report,) = server.coordinator.reports(0.0).rounds
    assert (report.phase, report.counted) == ("committed", 1)
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


def test_a_device_that_keeps_no_work_gives_its_work_back_and_uploads_nothing(server, device):
    outcome = turn(device(ABLE + "90\tbattery_charged_off\n", keeps_work=False), server)
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


def downloads(send) -> list[str]:
    return [path for method, path, _, _ in send.sent if method == "GET" and "/blobs/" in path]


@pytest.mark.parametrize("way", ["/v1/blobs/", "/update"])
def test_a_transfer_that_broke_is_not_tried_again_where_a_condition_was_lost(server, device, way):
    """A network often breaks off because it is another by then."""
    at, tried = [0.0], []

    def breaking(method, path, body, headers):
        if way in path:
            tried.append(path)
            at[0] = 100.0
            raise Interrupted(path, "the connection broke", "try again")
        return server(method, path, body, headers)

    home = device(ABLE + "50\t4g\n")
    with pytest.raises(Interrupted):
        Turn(home, breaking, DeviceClock(lambda: at[0]), sleep=lambda s: None).whole()
    assert len(tried) == 1


def test_the_checkpoint_of_the_bundle_is_not_fetched_again(server, device):
    assert turn(device(), server).status is Status.COUNTED
    assert len(downloads(server)) == 1  # the plan


def test_a_damaged_kept_checkpoint_is_not_used(server, device):
    home = device()
    home.keep_checkpoint("ab" * 32, b"damaged")
    assert home.checkpoint() is None
    assert turn(home, server).status is Status.COUNTED


def test_a_newer_checkpoint_travels_as_a_difference_from_the_one_the_device_holds(
    tmp_path, device, tiny_bundle
):
    store, blobs = open_folder(tmp_path / "server")
    rules = Rules(report_goal=1, over_selection=1.0, rounds=3, selection_s=0.0)
    created(
        Coordinator(store, blobs),
        TaskSettings(
            tiny_bundle.plan,
            rules=rules,
            policy=Policy(min_examples=5),
            step=ServerStep(0.01),
            seed=1,
        ),
        0.0,
        tiny_bundle.checkpoint,
    )
    coordinator, sizes = Coordinator(store, blobs, np.random.default_rng(0)), []
    first, second = device(), device()
    with asgi(app(coordinator, itertools.count(1.0).__next__)) as way:

        def send(method, path, body, headers):
            reply = way(method, path, body, headers)
            if method == "GET" and "/blobs/" in path:
                sizes.append(len(reply.body))
            return reply

        assert turn(first, send).status is Status.COUNTED
        del sizes[:]
        assert turn(second, send).status is Status.COUNTED
    whole = len(weights.to_bytes(tiny_bundle.checkpoint, np.float16))
    assert len(sizes) == 2  # plan and difference
    assert sizes[1] <= 0.75 * whole
    # the first had it in its bundle
    assert [report.downloaded for report in coordinator.reports(0.0).rounds][:2] == [1, 1]
    coordinator.close()


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


# --- work that is interrupted
# ------------------------------------------------------------------------------------------------

# a look each minute: after the loss and two batches
UNPLUGGED = ABLE + "420\tbattery_charged_off\n"
PLUGGED = UNPLUGGED + "1000\tbattery_charged_on\n"


def uploads(send) -> list[bytes]:
    return [body for method, _, body, _ in send.sent if method == "PUT"]


class Trained:
    """`finetune`, and how many batches it did in each call."""

    def __init__(self):
        self.batches = []

    def __call__(self, graph, action, may_continue):
        tuned = finetune(graph, action, may_continue)
        self.batches.append(tuned.batches - (action.start.batches if action.start else 0))
        return tuned


def test_half_done_work_waits_for_the_next_window_and_is_gone_on_with(server, device):
    home, train = device(PLUGGED), Trained()
    first = turn(home, server, train=train)
    assert (first.status, first.cause) == (Status.PAUSED, Cause.NOT_CHARGING)
    assert 0 < first.batches < 4
    assert uploads(server) == []
    # still unplugged: the work goes on waiting
    assert turn(home, server, 500.0, train).cause is Cause.NOT_CHARGING
    assert turn(home, server, 1000.0, train).status is Status.COUNTED
    assert train.batches == [first.batches, 4 - first.batches]  # 16 rows in batches of 4
    assert home.kept(UNFINISHED) is None
    assert [line.outcome for line in home.contributions()] == ["paused", "counted"]


def test_an_interruption_does_not_change_a_byte_of_the_upload(
    server, device, tmp_path, tiny_bundle
):
    home, twin = device(PLUGGED), device(seed=0)
    assert turn(home, server).status is Status.PAUSED
    assert turn(home, server, 1000.0).status is Status.COUNTED
    store, blobs = open_folder(tmp_path / "other")
    rules = Rules(report_goal=1, over_selection=1.0, rounds=1, selection_s=0.0)
    created(
        Coordinator(store, blobs),
        TaskSettings(tiny_bundle.plan, rules=rules, policy=Policy(min_examples=5), seed=1),
        0.0,
        tiny_bundle.checkpoint,
    )
    coordinator, alone = Coordinator(store, blobs, np.random.default_rng(0)), []
    with asgi(app(coordinator, itertools.count(1.0).__next__)) as way:

        def send(method, path, body, headers):
            if method == "PUT":
                alone.append(body)
            return way(method, path, body, headers)

        assert turn(twin, send).status is Status.COUNTED
    coordinator.close()
    assert uploads(server) == alone


def test_a_process_that_must_end_keeps_its_work_within_one_batch(server, device):
    home, looks = device(), iter([True] * 7)
    ended = Turn(
        home, server, simulated(0.0), sleep=lambda s: None, may_go_on=lambda: next(looks, False)
    )
    assert ended.check_in() is None
    outcome = ended.work()
    # one look was before the plan was fetched, four were for the loss before
    assert (outcome.status, outcome.cause, outcome.batches) == (
        Status.PAUSED,
        Cause.CONDITION_LOST,
        2,
    )
    assert turn(home, server, 1000.0).status is Status.COUNTED


def test_interrupted_work_frees_its_interpreter_and_leaves_no_temporary_file(server, device):
    home = device(UNPLUGGED)
    gc.collect()
    before = sum(type(each) is Graph for each in gc.get_objects())
    assert turn(home, server).status is Status.PAUSED
    gc.collect()
    assert sum(type(each) is Graph for each in gc.get_objects()) == before
    assert [path.name for path in home.folder.rglob(".*")] == []


def test_half_done_work_lies_sealed(server, device, tiny_checkpoint):
    home = device(UNPLUGGED)
    turn(home, server)
    kept = home.kept(UNFINISHED)
    assert len(kept) > 4 * sum(array.size for array in tiny_checkpoint.weights.values())
    for word in (b"embedding", b"assignment", b"loss_before", SECRET.encode()):
        assert word not in kept


def test_half_done_work_is_thrown_away_when_its_round_stands_no_more(server, device):
    home, train = device(PLUGGED), Trained()
    first = turn(home, server, train=train)
    server.coordinator.tick(10_000.0)  # past the deadline of the round
    then = turn(home, server, 1000.0, train)
    assert (then.status, then.round) == (Status.COUNTED, first.round + 1)
    assert train.batches[1] == 4


def test_half_done_work_is_thrown_away_when_the_server_has_no_work_left(server, device):
    home = device(PLUGGED)
    turn(home, server)
    server.coordinator.tick(10_000.0)
    assert turn(device(), server).status is Status.COUNTED
    assert turn(home, server, 1000.0).cause is Cause.NO_ROUND
    assert home.kept(UNFINISHED) is None


def test_a_message_forgotten_meanwhile_takes_the_half_done_work_with_it(server, device):
    home, train = device(PLUGGED), Trained()
    turn(home, server, train=train)
    with home.typing_log() as log:
        log.forget("number 18")
    assert turn(home, server, 1000.0, train).status is Status.COUNTED
    assert train.batches[1] == 4  # from the start, on the messages before it


def test_damaged_half_done_work_is_begun_anew(server, device):
    home, train = device(PLUGGED), Trained()
    turn(home, server, train=train)
    home.keep(UNFINISHED, home.kept(UNFINISHED)[:-1])
    assert turn(home, server, 1000.0, train).status is Status.COUNTED
    assert train.batches[1] == 4


def test_an_update_that_found_no_network_is_kept_and_sent_later_without_training_again(
    server, device
):
    home, train, bodies = device(), Trained(), []

    def offline(method, path, body, headers):
        if method == "PUT":
            bodies.append(body)
            raise Unreachable(path, "no connection", "try again")
        return server(method, path, body, headers)

    with pytest.raises(Unreachable):
        turn(home, offline, train=train)
    assert turn(home, server, 1000.0, train).status is Status.COUNTED
    assert train.batches == [4]
    # every try, now and later, is of the same bytes
    assert {*bodies, *uploads(server)} == {bodies[0]}


class Died(Exception):
    pass


def test_a_device_that_died_before_its_upload_left_makes_the_same_bytes_again(server, device):
    home, bodies = device(seed=None), []

    def dying(method, path, body, headers):
        if method == "PUT":
            bodies.append(body)
            raise Died
        return server(method, path, body, headers)

    with pytest.raises(Died):
        turn(home, dying)
    assert turn(home, server, 60.0).status is Status.COUNTED
    assert uploads(server) == bodies


def test_a_device_that_died_before_it_heard_of_its_upload_counts_once_and_its_ledger_says_so(
    server, device
):
    home = device()

    def dying(method, path, body, headers):
        reply = server(method, path, body, headers)
        if method == "PUT":
            raise Died
        return reply

    with pytest.raises(Died):
        turn(home, dying)
    assert [line.outcome for line in home.contributions()] == ["sending"]
    # the only round has committed, with this update; the answer that was not heard let it wait
    assert turn(home, server, 60.0).cause is Cause.TOO_EARLY
    assert server.coordinator.reports(0.0).rounds[0].counted == len(uploads(server)) == 1


def test_a_bundle_installed_between_check_in_and_work_has_the_work_given_back_if_it_does_not_fit(
    server, device, tmp_path, tiny_bundle, signing_key
):
    """The graphs of the new one are made for longer rows."""
    home = device(bundle=None)
    home.install(tiny_bundle.path)
    longer = config.to_json(replace(tiny_bundle.plan, length=tiny_bundle.plan.length + 1))
    content = {**tiny_bundle.content, bundle.PLAN: longer}
    manifest = replace(tiny_bundle.manifest, files=bundle.describe(content), release=9)
    bundle.write(tmp_path / "newer", manifest, content, signing_key)
    taken = Turn(home, server, simulated(0.0), sleep=lambda s: None)
    assert taken.check_in() is None
    home.install(tmp_path / "newer")
    with pytest.raises(BundleError, match="does not fit its graphs"):
        taken.work()
    (line,) = home.contributions()
    assert (line.outcome, line.cause) == ("abandoned", "training_failed")


# --- how often a message may be used
# ------------------------------------------------------------------------------------------------


def test_a_message_is_used_up_after_as_many_uploads_as_it_may_contribute_to(server, device):
    home = device(typing_log=Retention(max_uses=1))
    assert turn(home, server).status is Status.COUNTED
    with home.typing_log() as log:
        # the upload took 16 rows, two of each message; the tenth and twentieth are held back
        assert (log.count(), log.count(usable=True)) == (20, 12)
        assert [record.text for record in log.records(3, usable=True, held=False)] == [
            f"{SECRET} number {i}" for i in (7, 8, 10)
        ]
        assert [record.id for record in log.records(9, usable=True, held=True)] == [10, 20]


def test_work_given_back_uses_nothing_up(server, device):
    home = device(UNPLUGGED, keeps_work=False, typing_log=Retention(max_uses=1))
    assert turn(home, server).status is Status.ABANDONED
    with home.typing_log() as log:
        assert log.count(usable=True) == 20


def test_a_wipe_takes_half_done_work_with_it(server, device):
    home = device(UNPLUGGED)
    turn(home, server)
    home.wipe()
    assert [name for name in LEARNED if (home.folder / name).exists()] == []


# --- what an earlier version left
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["home.zip", "home-2.zip"])
def test_a_home_of_an_earlier_version_opens_and_its_half_done_work_is_begun_anew(tmp_path, name):
    """golden/home.zip and home-2.zip: a device that was counted in one round and unplugged in the
    next, and its server, as the version wrote them whose turn was one class, and the one that did
    not know yet from which weights half-done work began.
    """
    home = golden_home(tmp_path, name)
    train = Trained()
    assert [(line.round, line.outcome) for line in home.contributions()] == [
        (1, "counted"),
        (2, "paused"),
    ]
    line = home.contributions()[0]
    assert (line.server, line.task_id, line.scored, line.detail) == ("", "", "", "")
    assert read_schedule(home) == Schedule(1000.0, 600.0, 1)
    with Keyboard(home, home.bundle()) as keyboard:
        assert len(keyboard.suggest("i will ")) == 3
    coordinator = Coordinator(*open_folder(tmp_path / "server"), np.random.default_rng(0))
    certify(coordinator, 100.0)
    # the round that its half-done work was for counted updates of another format: it is over
    with asgi(app(coordinator, itertools.count(100.0).__next__)) as way:
        assert turn(home, way, 2000.0, train).cause is Cause.SELECTING
    with asgi(app(coordinator, itertools.count(800.0).__next__)) as way:
        outcome = turn(home, way, 2700.0, train)
    assert (outcome.status, outcome.round) == (Status.COUNTED, 3)
    assert home.server_name == coordinator.server  # it knew its name there, and not whose
    assert train.batches == [4]
    assert [report.counted for report in coordinator.reports(900.0).rounds][:3] == [1, 0, 1]
    coordinator.close()


def test_a_home_of_an_earlier_version_holds_back_nothing_that_it_has_trained_on(tmp_path):
    """Of its 21 messages it had trained on the newest 8 there were then, 13 to 20."""
    with golden_home(tmp_path, "home-2.zip").typing_log() as log:
        assert [record.id for record in log.records(99, held=True)] == [10]
        assert 20 in [record.id for record in log.records(99, held=False)]
        assert log.append_many([("hello", float(i)) for i in range(100, 110)]) == 10
        assert [record.id for record in log.records(99, held=True)] == [10, 30]


def golden_home(folder: Path, name: str) -> Home:
    """A device that an earlier version left, charging, its owner's limits those of `EASY`."""
    with zipfile.ZipFile(GOLDEN / name) as archive:
        archive.extractall(folder)
    for key in ("device.key", "typing_log.key"):
        (folder / "home" / key).chmod(0o600)
    (folder / "home" / "trace.tsv").write_text(ABLE)
    home = Home.open(folder / "home")
    assert home.config.limits == OwnLimits()
    # who certifies its server's key: the maker of its bundle has kept his for himself
    trusted = (*home.config.trusted, signing.public_hex(OPERATOR))
    settings = replace(home.config, limits=EASY, trusted=trusted)
    (home.folder / CONFIG).write_text(config.to_toml(settings))
    return Home.open(home.folder)


def test_simulated_devices_ask_come_again_when_they_were_told_and_all_have_a_place(
    tmp_path, device, tiny_bundle
):
    store, blobs = open_folder(tmp_path / "server")
    rules = Rules(report_goal=3, over_selection=1.0, rounds=1, selection_s=60.0)
    created(
        Coordinator(store, blobs),
        TaskSettings(tiny_bundle.plan, rules=rules, policy=Policy(min_examples=5), seed=1),
        0.0,
        tiny_bundle.checkpoint,
    )
    coordinator, at, slept, outcomes = Coordinator(store, blobs), [1e6], [], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        at[0] += seconds

    with asgi(app(coordinator, lambda: at[0])) as send:
        homes = [device(), device(), device("0\twifi\n0\tscreen_off\n"), device()]
        seen = drive.run(
            homes, send, 1, lambda home, outcome: outcomes.append(outcome), sleep=sleep
        )
    assert seen == 1
    assert sorted((each.status, each.cause) for each in outcomes if each.cause) == [
        (Status.REFUSED, Cause.NOT_CHARGING)
    ]
    assert [each.status for each in outcomes].count(Status.COUNTED) == 3
    assert 60 <= sum(slept) <= 90
    (report,) = coordinator.reports(at[0]).rounds
    assert (report.checked_in, report.assigned, report.counted) == (4, 3, 3)
    coordinator.close()


def test_devices_wait_for_the_next_round_while_the_sum_of_the_last_is_still_masked():
    phases = [Phase.REPORTING, Phase.UNMASKING, Phase.UNMASKING, Phase.COMMITTED]
    heard = iter(phases)

    def send(method: str, path: str, body: bytes, headers) -> Reply:
        report = RoundReport(4, next(heard), goal=3)
        return Reply(200, {}, config.to_json(RoundReports((report,), first=4)))

    slept: list[float] = []
    drive._wait(send, RoundReport(4, Phase.REPORTING, goal=3), 0.5, slept.append)
    assert slept == [0.5] * len(phases)
