"""Times: what is read, by which unit, and what stands for none."""

import contextlib
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.times import Instant, instant, seconds, shape


@pytest.mark.parametrize(
    "timestamp",
    [
        0.5,
        500,
        "0.5",
        "1970-01-01T00:00:00.5Z",
        "1970-01-01 01:00:00.500+01:00",
        " 1970-01-01T00:00:00.500 ",
        datetime(1970, 1, 1, 0, 0, 0, 500_000),
        datetime(1970, 1, 1, 0, 0, 0, 500_000, UTC),
        datetime(1970, 1, 1, 2, 0, 0, 500_000, timezone(timedelta(hours=2))),
    ],
)
def test_a_time_is_iso_or_an_epoch(timestamp):
    assert seconds(timestamp) == (500 if timestamp == 500 else 0.5)


def test_an_epoch_of_thirteen_digits_is_in_milliseconds():
    assert (
        seconds(1_577_836_800_000)
        == seconds("1577836800")
        == seconds(date(2020, 1, 1))
        == 1_577_836_800
    )


@given(st.one_of(st.text(), st.booleans(), st.floats(), st.integers(), st.lists(st.integers())))
def test_any_other_time_is_a_value_error(timestamp):
    with contextlib.suppress(ValueError, OverflowError):
        assert abs(seconds(timestamp)) >= 0


@pytest.mark.parametrize(
    ("value", "unit"),
    [
        (1614592800, "seconds"),
        ("1614592800.0", "seconds"),
        (1614592800000, "milliseconds"),
        ("1614592800000000", "microseconds"),
        (1614592800000000000, "nanoseconds"),
        ("1.6145928e9", "seconds"),
        ("2021-03-01 10:00:00 UTC", "dates"),
        ("2021-03-01T10:00:00.000000000Z", "dates"),
        ("2021-03-01 11:00:00 +0100", "dates"),
        ("Mon, 1 Mar 2021 11:00:00 +0100", "dates"),
        ("Mon Mar 01 10:00:00 +0000 2021", "dates"),
    ],
)
def test_the_same_moment_is_read_in_every_unit_and_the_unit_is_said(value, unit):
    assert instant(value) == Instant(1_614_592_800.0, unit)


@pytest.mark.parametrize("value", [20210301, "20210301", "2021-03-01", date(2021, 3, 1)])
def test_eight_digits_that_are_a_day_are_that_day(value):
    assert instant(value) == Instant(1_614_556_800.0, "dates")


@pytest.mark.parametrize(
    "value",
    [None, "", "  ", "NaT", "NULL", "null", "None", "NaN", "N/A", "\\N", "-", float("nan")],
)
def test_what_stands_for_no_time_is_no_time(value):
    assert instant(value) == Instant(None, "")
    with pytest.raises(ValueError):
        seconds(value)


@pytest.mark.parametrize(
    "value", ["soon", True, [1], "31.12.2023", float("inf"), "1e300", 10**30, "99999999999-01-01"]
)
def test_what_is_no_time_is_refused(value):
    with pytest.raises((ValueError, OverflowError)):
        instant(value)


def test_a_format_reads_what_nothing_else_would():
    assert instant("03/01/2021 10", "%m/%d/%Y %H").seconds == 1_614_592_800
    assert instant(2021, "%Y").seconds == instant("2021-01-01").seconds
    with pytest.raises(ValueError):
        instant("2021-03-01", "%d.%m.%Y")


@given(st.text())
def test_a_shape_holds_no_letter_of_the_text(text):
    assert shape(text) == "text" or not set(shape(text)) & set("bcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize(
    "value", ["20210301100000", 20210301100000, "202103011000", 202103011000, "20210301100000.0"]
)
def test_digits_that_are_a_day_and_a_time_are_that_moment(value):
    assert instant(value) == (1614592800.0, "dates")


@pytest.mark.parametrize(
    "value",
    [
        "Mar 1, 2021, 10:00:00 PM",
        "1 Mar 2021 10:00 p.m.",
        "Mon Mar 01 2021 22:00:00 GMT+0100 (CET)",
    ],
)
def test_no_half_of_the_day_and_no_offset_is_overlooked(value):
    with pytest.raises(ValueError):
        instant(value)
