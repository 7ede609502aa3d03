"""Times as people's files hold them: any value -> seconds since 1970, and how it was read.

A number says by its size what it counts: from 1973 on, seconds, milliseconds, microseconds and
nanoseconds do not overlap.
"""

import email.utils
import math
import re
from datetime import UTC, date, datetime
from typing import NamedTuple

# what stands in a column of times where there is none
NO_TIME = frozenset(
    ("", "-", "nat", "null", "none", "nan", "n/a", "na", "<na>", "\\n", "nil", "undefined")
)
# the largest of its kind is the year 5138, the smallest of the next is March 1973
_UNITS = ((1e11, 1, "seconds"), (1e14, 1e3, "milliseconds"), (1e17, 1e6, "microseconds"))
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d{1,3})?|[+-]?\.\d+", re.ASCII)
# a day, or a day with its minute or second: no epoch of the years of chats has these digits
_COMPACT_DATE = re.compile(r"((?:199|20\d)\d{5}(?:\d{4}(?:\d\d)?)?)(?:\.0+)?", re.ASCII)
_COMPACT = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}  # by the number of digits
# of what else Python takes for the date of a mail it would overlook one of these, and be hours off
_OVERLOOKED = re.compile(r"\d\s*[ap]\.?\s?m\b|(?:GMT|UTC)[+-]", re.IGNORECASE)
_ZONE = re.compile(r"\s*(?:UTC|GMT)$", re.IGNORECASE)
_LETTERS, _DIGITS = re.compile(r"[^\W\d_]+"), re.compile(r"\d")
_SHAPE = 24  # characters of a value's shape that an error shows


class Instant(NamedTuple):
    """When something was, and how its value was read."""

    seconds: float | None  # since 1970; None: the value stands for no time
    read_as: str  # "seconds", ..., "dates"; "" where there is no time


_NONE = Instant(None, "")


def instant(value: object, pattern: str | None = None) -> Instant:
    """ISO 8601 text, the date of a mail, an epoch, or a date; UTC where no offset stands.

    With a `pattern`, which is strptime's, text is read by nothing else. Raises ValueError or
    OverflowError for what is no time.

    >>> instant("1970-01-01T01:00:00+01:00").seconds, instant("2021-03-01 10:00:00 UTC").seconds
    (0.0, 1614592800.0)
    >>> instant(1577836800000), instant("NaT")
    (Instant(seconds=1577836800.0, read_as='milliseconds'), Instant(seconds=None, read_as=''))
    >>> instant("31.12.2023 10:15", "%d.%m.%Y %H:%M").read_as
    'the format given'
    """
    if value is None:
        return _NONE
    if isinstance(value, str):
        return _text(value.strip(), pattern)
    if isinstance(value, datetime):
        return Instant(_since_1970(value), "dates")
    if isinstance(value, date):
        return Instant(_since_1970(datetime(value.year, value.month, value.day)), "dates")
    if isinstance(value, float) and math.isnan(value):
        return _NONE
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise ValueError("not a time")
    if pattern is not None:
        return _text(str(value), pattern)
    return _compact_date(str(value)) or _epoch(float(value))


def seconds(value: object) -> float:
    """The seconds of an `instant`. Raises ValueError or OverflowError, also where there is none."""
    since = instant(value).seconds
    if since is None:
        raise ValueError("no time")
    return since


def shape(value: object) -> str:
    """What a value that is no time looks like, without what it says: it may be typed text.

    >>> shape("31.12.2023 10:15 Uhr"), shape(["a"])
    ('99.99.9999 99:99 a', 'a list')
    """
    if not isinstance(value, str):
        return f"a {type(value).__name__}"
    blank = _DIGITS.sub("9", _LETTERS.sub("a", value.strip()))
    return blank if len(blank) <= _SHAPE and "9" in blank else "text"


def _text(text: str, pattern: str | None) -> Instant:
    if text.lower() in NO_TIME or text.startswith("0000-00-00"):
        return _NONE
    if pattern is not None:
        return Instant(_since_1970(datetime.strptime(text, pattern)), "the format given")
    if _NUMBER.fullmatch(text):
        return _compact_date(text) or _epoch(float(text))
    text = _ZONE.sub("Z", text) if text[:1].isdigit() else text
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        if _OVERLOOKED.search(text):
            raise ValueError("not a time") from None
        try:  # as mail, Twitter and C's ctime write it
            moment = email.utils.parsedate_to_datetime(text)
        except (IndexError, TypeError):
            raise ValueError("not a time") from None
    return Instant(_since_1970(moment), "dates")


def _compact_date(text: str) -> Instant | None:
    """20210301 is a day of that year rather than one in August 1970, and so with a time of day."""
    digits = _COMPACT_DATE.fullmatch(text)
    if not digits:
        return None
    try:
        moment = datetime.strptime(digits[1], _COMPACT[len(digits[1])])
        return Instant(_since_1970(moment), "dates")
    except ValueError:
        return None


def _epoch(number: float) -> Instant:
    if not math.isfinite(number) or abs(number) >= 1e20:
        raise ValueError("not a time")
    for below, a_second, unit in _UNITS:
        if abs(number) < below:
            return Instant(number / a_second, unit)
    return Instant(number / 1e9, "nanoseconds")


def _since_1970(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
