"""Recorded traces: what is read of them, what is said of them, and how they are replayed."""

import contextlib
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.conditions import SIGNALS, parse
from device_runtime.errors import FedboardError, RunError
from device_runtime.wire import DAY_S
from fleet import columns, traces
from fleet.availability import BITS, CHARGING, IDLE, NEEDED, UNMETERED
from fleet.traces import Finding, Traces

NIGHT = (
    "2020-01-28 22:00:00\tbattery_charged_on\n2020-01-28 22:10:00\tWiFi\n"
    "2020-01-28 22:30:00\tscreen_off\n2020-01-28 22:40:00\t85%\n"
    "2020-01-29 06:30:00\tscreen_on\n"
)


def recording(tmp_path, phones):
    """What is read of a file in FLASH's form, of these lines of phones."""
    path = tmp_path / "recording.json"
    named = {f"phone {i}": {"messages": text, "model": "x"} for i, text in enumerate(phones)}
    path.write_text(json.dumps(named))
    return traces.read(path)


def replayed(tmp_path, *phones, devices=None, repeat=False):
    read = recording(tmp_path, phones)
    return Traces(read, devices or len(phones), seed=1, repeat=repeat)


def at(*times):
    return np.array(times, float)


def asked(lives, question, time, device=0, needed=NEEDED):
    return float(getattr(lives, question)(np.array([device]), at(time), needed)[0])


H = 3600.0


def test_a_phone_is_ready_from_the_line_of_its_last_signal_to_the_one_that_ends_it(
    tmp_path,
):
    lives = replayed(tmp_path, NIGHT)
    assert asked(lives, "ready_at", 0) == 22.5 * H
    assert asked(lives, "lost_at", 23 * H) == 30.5 * H
    assert asked(lives, "ready_at", 31 * H) == math.inf


def test_before_its_first_line_nothing_is_known_of_a_phone(tmp_path):
    lives = replayed(tmp_path, NIGHT)
    bits = lives.signals(np.zeros(3, int), at(0, 22 * H, 22.2 * H))
    assert bits.tolist() == [0, CHARGING, CHARGING | UNMETERED]


def test_an_unknown_network_is_neither_wifi_nor_its_absence(tmp_path):
    lines = ["0\tbattery_charged_on", "0\tscreen_off", "0\twifi", "100\tUnknown", "200\twifi"]
    lives = replayed(tmp_path, "\n".join(lines))
    assert lives.signals(np.zeros(3, int), at(99, 100, 200)).tolist() == [7, 5, 7]
    assert recording(tmp_path, ["\n".join(lines)]).quality.unknown_network == Finding(1, 1)


def test_events_of_one_second_take_effect_in_their_order(tmp_path):
    off_last = "5\tscreen_on\n5\tscreen_off\n"
    on_last = "5\tscreen_off\n5\tscreen_on\n"
    lives = replayed(tmp_path, off_last, on_last)
    assert lives.signals(np.array([0, 1]), at(5, 5)).tolist() == [IDLE, 0]


def test_what_is_wrong_with_lines_is_counted_and_the_rest_is_used(tmp_path):
    lines = [
        "10\twifi",
        "10\twifi",
        "10\tscreen_off",
        "20\tbattery_charged_on",
        "15\tscreen_on",
        "nonsense",
        "30\tflying",
        "2020-01-29 00:00:00\twifi",
        "40\t17.5%",
        f"{40 + 2 * DAY_S:.0f}\tscreen_off",
        f"{41 + 2 * DAY_S:.0f}\twifi",
        f"{42 + 2 * DAY_S:.0f}\tunknown",
    ]
    quality = recording(tmp_path, ["\n".join(lines), "", "1\twifi"]).quality
    assert quality.used == Finding(8, 2)
    assert quality.other == Finding(1, 1)
    assert quality.duplicates == quality.unknown_states == quality.out_of_order == Finding(1, 1)
    assert quality.malformed == Finding(2, 1)
    assert quality.same_second == quality.gaps == quality.unknown_network == Finding(1, 1)
    assert quality.silent == Finding(1, 1)


def test_lines_out_of_order_are_sorted_in(tmp_path):
    lives = replayed(tmp_path, "20\tscreen_on\n10\tscreen_off\n")
    assert lives.signals(np.zeros(2, int), at(10, 20)).tolist() == [IDLE, 0]


def test_a_day_after_the_last_line_nothing_is_known_any_longer(tmp_path):
    lives = replayed(tmp_path, "0\twifi\n", f"{3 * DAY_S:.0f}\twifi\n")
    bits = lives.signals(np.zeros(2, int), at(DAY_S - 1, DAY_S))
    assert bits.tolist() == [UNMETERED, 0]


def test_what_was_known_before_a_gap_is_not_known_after_it(tmp_path):
    lives = replayed(tmp_path, f"0\twifi\n{2 * DAY_S:.0f}\tscreen_off\n")
    assert lives.signals(np.array([0]), at(2 * DAY_S)).tolist() == [IDLE]


def test_a_recording_is_replayed_once_or_again_and_again(tmp_path):
    once = replayed(tmp_path, NIGHT)
    again = replayed(tmp_path, NIGHT, repeat=True)
    assert asked(once, "ready_at", 50 * H) == math.inf
    # two days were recorded
    assert asked(again, "ready_at", 50 * H) == 48 * H + 22.5 * H
    assert asked(again, "lost_at", 48 * H + 23 * H) == 48 * H + 30.5 * H


def test_with_the_end_of_what_is_replayed_once_everything_is_lost(tmp_path):
    lives = replayed(tmp_path, "70000\twifi\n")
    assert asked(lives, "lost_at", 80_000, needed=UNMETERED) == DAY_S
    assert lives.signals(np.array([0]), at(DAY_S)).tolist() == [0]


def test_devices_replay_their_own_traces_and_those_that_are_more_one_that_is_drawn(tmp_path):
    lives = replayed(tmp_path, "1\twifi\n", "1\tscreen_off\n", devices=200)
    bits = lives.signals(np.arange(200), np.full(200, 2.0))
    assert bits[:2].tolist() == [UNMETERED, IDLE]
    assert 60 < (bits[2:] == IDLE).sum() < 140


def test_a_folder_of_files_says_the_same_as_one_file(tmp_path):
    folder = tmp_path / "phones"
    folder.mkdir()
    (folder / "a.tsv").write_text(NIGHT)
    (folder / "b.tsv").write_text("")
    read, same = traces.read(folder), recording(tmp_path, [NIGHT, ""])
    assert read.quality == same.quality
    assert all(np.array_equal(getattr(read, name), getattr(same, name)) for name in traces.TYPES)


def lines(days):
    """A phone's lines within so many days, in their order."""
    line = st.tuples(st.integers(0, days * 86_400 - 1), st.sampled_from(sorted(SIGNALS)))
    return st.lists(line, min_size=1, max_size=20).map(
        lambda chosen: [(0, "screen_on"), *sorted(chosen, key=lambda each: each[0])]
    )


def written(lines):
    return "".join(f"{time}\t{state}\n" for time, state in lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("traces")


@given(lines(days=1), st.integers(0, 86_399))
def test_a_replayed_device_has_the_conditions_that_a_phone_with_this_trace_has(folder, phone, now):
    told = parse(written(phone))(now)
    bits = replayed(folder, written(phone)).signals(np.array([0]), at(now))
    assert bits.tolist() == [sum(bit for name, bit in BITS.items() if getattr(told, name))]


@given(
    st.lists(lines(days=3), min_size=1, max_size=3),
    st.integers(0, 2),
    st.floats(0, 20 * 86_400, allow_nan=False),
    st.sampled_from([CHARGING, IDLE, CHARGING | UNMETERED, NEEDED]),
    st.booleans(),
)
def test_what_is_ready_and_what_is_lost_agree_with_the_signals(
    folder, phones, device, after, needed, repeat
):
    lives = replayed(folder, *map(written, phones), devices=3, repeat=repeat)
    of_day = {float(time) % DAY_S for phone in phones for time, _ in phone}

    def holds(*times):
        told = lives.signals(np.full(len(times), device), at(*times))
        return ((told & needed) == needed).tolist()

    def moments(start, end):
        """A few between, and all at which something may change."""
        end = min(end, start + 8 * DAY_S)
        days = range(int(start // DAY_S), int(end // DAY_S) + 1)
        seconds = [time + day * DAY_S for time in of_day for day in days]
        return [time for time in [start, *seconds, end - 1e-6] if start <= time < end]

    ready = asked(lives, "ready_at", after, device, needed)
    assert ready >= after
    assert not any(holds(*moments(after, ready)))
    if math.isinf(ready):
        return
    assert holds(ready) == [True]
    lost = asked(lives, "lost_at", ready, device, needed)
    assert lost > ready
    assert all(holds(*moments(ready, lost)))
    assert math.isinf(lost) or holds(lost) == [False]


def test_a_recording_that_was_saved_is_read_as_it_was(tmp_path):
    read = recording(tmp_path, [NIGHT, ""])
    traces.save(read, tmp_path / "kept")
    loaded = traces.load(tmp_path / "kept")
    assert (loaded.days, loaded.quality) == (read.days, read.quality)
    assert all(np.array_equal(getattr(loaded, name), getattr(read, name)) for name in traces.TYPES)


@pytest.mark.parametrize(
    "changed",
    [
        {"bits": np.array([0, 9], np.uint8)},
        {"second": np.array([0, -5], np.int64)},
        {"first": np.array([0, 1, 2], np.int64)},
        {"first": np.array([0, 3], np.int64)},
    ],
)
def test_columns_that_are_no_recording_are_refused(tmp_path, changed):
    read = recording(tmp_path, ["5\twifi"])
    arrays = {name: getattr(read, name) for name in traces.TYPES} | changed
    traces.save(read, tmp_path)
    columns.write(tmp_path / traces.COLUMNS, arrays)
    about = (tmp_path / traces.ABOUT).read_text()
    honest = columns.digest({name: getattr(read, name) for name in traces.TYPES})
    (tmp_path / traces.ABOUT).write_text(about.replace(honest, columns.digest(arrays)))
    with pytest.raises(RunError, match=r"holds no recording that traces\.toml names"):
        traces.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no recording (expected {"),
        ("[]", "is no recording (expected {"),
        ('{"a": {"messages": 3}}', "has no text `messages`"),
        ('{"a": {"messages": "1\\twifi"}, "a": {"messages": "1\\twifi"}}', "is there twice"),
        ('{"a": {"messages": "1\\twifi"}} more', "something follows its end"),
        ('{"a": {"messages": "1\\twifi"}', "expected ,"),
        ('{"a": {"messages": "hello"}}', "found 0 that are and 1 that are not, of 1 devices"),
        ("{}", "found 0 that are and 0 that are not, of 0 devices"),
        ('{"a": {"messages": "0\\twifi\\n99999999\\twifi"}}', "expected at most 366 days"),
    ],
)
def test_what_is_no_recording_is_refused_in_one_line(tmp_path, text, says):
    path = tmp_path / "recording.json"
    path.write_text(text)
    with pytest.raises(RunError) as refused:
        traces.read(path)
    assert says in str(refused.value)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(RunError, match="cannot be read"):
        traces.read(tmp_path / "nothing.json")
    (tmp_path / "bytes.json").write_bytes(b'{"\xff": {}}')
    with pytest.raises(RunError, match="is not text"):
        traces.read(tmp_path / "bytes.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"expected \.tsv files, found none"):
        traces.read(tmp_path / "empty")


@given(st.text(alphabet='{}":,\\ tn01wifi\tmesags', max_size=200))
def test_any_text_is_read_or_refused(folder, text):
    path = folder / "any.json"
    path.write_text('{"a": {"messages": "' + text)
    with contextlib.suppress(FedboardError):
        assert len(traces.read(path)) >= 1


def test_a_long_file_is_read_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "_CHUNK", 7)
    lives = replayed(tmp_path, NIGHT, NIGHT)
    assert asked(lives, "ready_at", 0, device=1) == 22.5 * H
