import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.causes import Cause
from device_runtime.conditions import SIGNALS, parse, trace_source, unknown
from device_runtime.errors import ConfigError
from device_runtime.wire import Conditions, forbidden_by

TRACE = (
    "10\tbattery_charged_on\n20\twifi\n30\tscreen_off\n"
    "40\tbattery_charged_off\n50\t4g\n60\tscreen_on\n"
)


def test_a_trace_is_replayed_signal_by_signal():
    source = parse(TRACE)
    assert source(35) == Conditions(charging=True, unmetered=True, idle=True)
    assert source(45) == Conditions(charging=False, unmetered=True, idle=True)
    assert source(1e9) == Conditions(charging=False, unmetered=False, idle=False)


def test_a_signal_is_unknown_before_its_first_line_and_unknown_forbids():
    source = parse(TRACE)
    assert source(0) == Conditions(None, None, None)
    assert source(25) == Conditions(True, True, None)
    assert forbidden_by(source(0)) is Cause.NOT_CHARGING
    assert forbidden_by(source(15)) is Cause.METERED_NETWORK
    assert forbidden_by(source(25)) is Cause.IN_USE
    assert forbidden_by(source(30)) is None


def test_a_line_holds_from_its_own_second_on():
    source = parse(TRACE)
    assert source(39.9).charging is True
    assert source(40).charging is False


def test_lock_and_unlock_tell_whether_the_device_is_in_use():
    source = parse("1\tscreen_on\n2\tlock\n3\tunlock\n4\tscreen_lock\n5\tscreen_unlock\n")
    assert [source(t).idle for t in (1, 2, 3, 4, 5)] == [False, True, False, True, False]


def test_networks_other_than_wifi_are_metered_and_an_unknown_one_is_unknown():
    source = parse("1\t2G\n2\t3g\n3\t5G\n4\tnone\n5\tWIFI\n6\tUnknown\n")
    assert [source(t).unmetered for t in (1, 2, 3, 4, 5, 6)] == [
        False,
        False,
        False,
        False,
        True,
        None,
    ]


def test_states_that_tell_no_signal_of_ours_change_nothing():
    assert parse("1\twifi\n2\tbattery_low\n3\tphone_on\n")(9) == Conditions(None, True, None)


@pytest.mark.parametrize("line", ["2\tsolar", "2 wifi", "wifi\t2", "nan\twifi", "\twifi", "2\t"])
def test_a_bad_line_is_named_by_its_number(line):
    with pytest.raises(ConfigError, match="trace, line 3: expected time<TAB>state"):
        parse(f"1\twifi\n\n{line}\n")


def test_a_trace_that_goes_back_in_time_is_refused():
    with pytest.raises(ConfigError, match="line 2: time 4 comes after 5"):
        parse("5\twifi\n4\t4g\n")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.tsv: cannot be read"):
        trace_source(tmp_path / "none.tsv")
    (tmp_path / "binary.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not text"):
        trace_source(tmp_path / "binary.tsv")
    (tmp_path / "good.tsv").write_text(TRACE)
    assert trace_source(tmp_path / "good.tsv")(30) == Conditions(True, True, True)


def test_without_a_trace_everything_is_unknown():
    assert unknown(1.0) == Conditions()


@given(
    st.lists(st.tuples(st.integers(0, 100), st.sampled_from(sorted(SIGNALS))), max_size=30),
    st.integers(0, 100),
)
def test_the_conditions_are_those_of_the_last_lines_so_far(lines, now):
    lines.sort(key=lambda line: line[0])
    told = {"charging": None, "unmetered": None, "idle": None}
    for time, state in lines:
        if time <= now:
            told |= SIGNALS[state]
    assert parse("".join(f"{time}\t{state}\n" for time, state in lines))(now) == Conditions(**told)


@given(st.text())
def test_any_text_is_a_trace_or_a_named_error(text):
    try:
        parse(text)
    except ConfigError as error:
        assert "trace, line" in str(error)
