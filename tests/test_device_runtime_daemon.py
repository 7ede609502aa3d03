"""The daemon's politeness, by numbers.

Its life with a real server is in test_fedboard_device_day.py.
"""

import itertools
import logging
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import config, daemon
from device_runtime.causes import Cause
from device_runtime.daemon import Daemon, NotAsked, Schedule, after, after_error, read_schedule
from device_runtime.errors import RunError, ServerError
from device_runtime.home import CONFIG, SCHEDULE, DeviceConfig, Home
from device_runtime.turn import Outcome, Status
from fedboard import devices

ABLE = "0\tbattery_charged_on\n0\twifi\n0\tscreen_off\n"


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Clock:
    def __init__(self, at: float = 0.0):
        self.at = at

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def home(tmp_path, tiny_bundle, trusted):
    def make(trace: str = ABLE) -> Home:
        (tmp_path / "trace.tsv").write_text(trace)
        settings = DeviceConfig(
            tuple(trusted),
            bundle=str(tiny_bundle.path),
            conditions=str(tmp_path / "trace.tsv"),
            seed=1,
        )
        return Home.create(tmp_path / "device", settings, [("hello there", 1.0)])

    return make


def nobody(method, path, body, headers):
    raise ServerError(path, "no server", "start it")


def never(method, path, body, headers):
    raise AssertionError("the server was asked")


@given(st.floats(0, 1e6), st.integers(0, 99))
def test_a_device_never_comes_back_before_the_server_asked_nor_more_than_a_fifth_later(asked, seed):
    planned = after(Outcome(Status.COUNTED, retry_in_s=asked), 100.0, rng(seed))
    kept = min(max(asked, 60.0), 7 * 86_400.0)  # a minute to a week, whatever it asks for
    assert kept <= planned.wait_s <= kept * 1.2
    assert planned.errors == 0


@pytest.mark.parametrize(
    "kept",
    [
        b'{"asked_at": 0.0, "wait_s": 1e12}',
        b'{"asked_at": NaN, "wait_s": 60.0}',
        b'{"asked_at": 0.0, "wait_s": -5.0}',
        b'{"asked_at": 0.0, "wait_s": 60.0, "errors": -1}',
        b'{"asked_at": 1e300, "wait_s": 60.0}',
    ],
)
def test_a_schedule_no_daemon_writes_silences_no_device(home, kept):
    device = home()
    device.keep(SCHEDULE, kept)
    assert read_schedule(device) == Schedule()


@given(st.sampled_from(Cause), st.sampled_from(Status), st.floats(0, 1e300), st.integers(0, 9))
def test_whatever_a_server_answers_a_wait_is_a_minute_to_a_week(cause, status, asked, seed):
    planned = after(Outcome(status, cause, retry_in_s=asked), 100.0, rng(seed))
    least = daemon.PAUSE_S if status is Status.PAUSED else daemon.LEAST_S
    assert least <= planned.wait_s <= daemon.LONGEST_S * (1 + daemon.JITTER)


def test_half_done_work_is_gone_on_with_soon():
    assert (
        after(Outcome(Status.PAUSED, Cause.NOT_CHARGING), 0.0, rng()).wait_s <= daemon.PAUSE_S * 1.2
    )


def test_waits_double_with_every_error_up_to_four_hours_and_a_success_forgets_them():
    schedule, waits = Schedule(), []
    for _ in range(12):
        schedule = after_error(schedule, 0.0, rng())
        waits.append(schedule.wait_s)
    assert 60 <= waits[0] <= 120
    assert 120 <= waits[1] <= 240
    assert 7200 <= waits[-1] <= 14_400
    assert after(Outcome(Status.COUNTED), 0.0, rng()).errors == 0


def test_a_thousand_devices_that_lost_their_server_do_not_come_back_at_once():
    lost = Schedule(errors=5)
    times = [after_error(lost, 0.0, rng(seed)).wait_s for seed in range(1000)]
    busiest = max(np.histogram(times, bins=np.arange(0, 14_401, 60))[0])
    assert busiest < 60  # a minute of the 32 sees a thirty-second of them, 31, give or take


def test_a_clock_that_went_back_lengthens_no_wait():
    planned = Schedule(asked_at=1e9, wait_s=600.0)
    assert planned.due_in(1e9 + 100) == 500
    assert planned.due_in(0.0) == 600
    assert planned.due_in(2e9) == 0


def test_a_retry_window_is_kept_across_a_restart_and_a_damaged_file_is_a_new_device(home):
    device, clock = home(), Clock(1000.0)
    device.keep(SCHEDULE, b'{"asked_at": 900.0, "wait_s": 3600.0, "errors": 2}')
    assert Daemon(device, never, clock, rng=rng()).schedule.due_in(1000.0) == 3500
    assert Daemon(device, never, clock, rng=rng()).step() <= daemon.LOOK_S
    device.keep(SCHEDULE, b"\xff")
    assert read_schedule(device) == Schedule()


def test_the_first_check_in_of_a_process_comes_somewhere_in_its_first_minute(home):
    device = home()
    dues = []
    for seed in range(50):
        resident = Daemon(device, never, Clock(5.0), rng=rng(seed))
        resident.spread()
        dues.append(resident.schedule.due_in(5.0))
    assert 0 <= min(dues) < 10 < 50 < max(dues) <= 60
    device.keep(SCHEDULE, b'{"asked_at": 0.0, "wait_s": 3600.0}')
    resident = Daemon(device, never, Clock(5.0), rng=rng())
    resident.spread()
    assert resident.schedule.due_in(5.0) == 3595


def test_the_server_is_not_asked_while_a_condition_forbids_training_and_the_reason_is_said_once(
    home, caplog
):
    device = home(ABLE.replace("wifi", "4g"))
    resident = Daemon(device, never, Clock(1.0), rng=rng())
    with caplog.at_level(logging.INFO):
        waits = [resident.step() for _ in range(3)]
    assert all(daemon.LOOK_S <= wait <= daemon.LOOK_S * 1.2 for wait in waits)
    assert [record.message for record in caplog.records] == ["not training: metered_network"]
    assert resident.once() == NotAsked("metered_network", daemon.LOOK_S)


def test_a_condition_lost_while_the_own_weights_train_leaves_the_server_unasked(home):
    device = home(ABLE + "1030\t4g\n")
    with device.typing_log() as log:
        log.append_many([("they will see the new house and my dog", float(i)) for i in range(60)])
    ticks = itertools.count(1000.0)  # a second whenever somebody looks
    resident = Daemon(device, never, lambda: next(ticks), rng=rng())
    assert daemon.LOOK_S <= resident.step() <= daemon.LOOK_S * 1.2
    assert next(ticks) > 1030.0
    device = Home.open(device.folder)
    ticks = itertools.count(1000.0)
    assert Daemon(device, never, lambda: next(ticks), rng=rng()).once() == NotAsked(
        "metered_network", daemon.LOOK_S
    )


def test_a_server_that_is_away_is_waited_for_and_the_wait_is_on_disk(home, caplog):
    device, clock = home(), Clock(1.0)
    resident = Daemon(device, nobody, clock, rng=rng(), sleep=lambda s: None)
    assert 60 <= resident.step() <= 120
    assert read_schedule(device).errors == 1
    clock.at += 1000.0
    assert 120 <= resident.step() <= 240


def test_a_fault_of_ours_ends_no_device_and_its_text_reaches_no_log(home, caplog):
    def broken(method, path, body, headers):
        raise KeyError("what was typed")

    device, clock = home(), Clock(1.0)
    resident = Daemon(device, broken, clock, rng=rng(), sleep=lambda s: None)
    with caplog.at_level(logging.INFO):
        assert 60 <= resident.step() <= 120
    assert read_schedule(device) == resident.schedule
    assert "KeyError" in caplog.text
    assert "typed" not in caplog.text
    clock.at += 1000.0
    with pytest.raises(KeyError):
        resident.once()
    assert read_schedule(device).errors == 2


def test_a_full_disk_ends_no_device(home, caplog):
    device = home()
    resident = Daemon(device, nobody, Clock(1.0), rng=rng(), sleep=lambda s: None)
    (device.folder / f".{SCHEDULE}").mkdir()  # where a new one would be written
    assert 60 <= resident.step() <= 120
    assert "cannot be written" in caplog.text


def test_one_process_at_a_time_runs_a_device(home):
    device = home()
    with (
        device.alone(),
        pytest.raises(Exception, match=r"process \d+ runs this device"),
        Home.open(device.folder).alone(),
    ):
        pass
    with device.alone():
        pass


def test_a_device_that_a_daemon_runs_takes_no_rounds_beside_it(home):
    device = home()
    settings = replace(device.config, server="http://127.0.0.1:9")
    (device.folder / CONFIG).write_text(config.to_toml(settings))
    with device.alone(), pytest.raises(RunError, match=r"process \d+ runs this device"):
        devices.run([device.folder], never, 1, None)
