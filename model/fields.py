"""Fields: what a record's values mean -> who said what and when, or why it is left out.

One person has one name in every format: 1, 1.0 and "1" are one, and so are a name's composed and
decomposed spellings. Deleted accounts, bots and what a platform wrote are left out by name.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

from model.records import BAD_ROW, Damage, Record
from model.times import instant, shape

NO_USER, NO_TEXT, BAD_TIME = "no user", "no text", "unreadable timestamp"
SYSTEM, MEDIA, DELETED = "system line", "media without text", "deleted message"
FORWARDED = "forwarded message"
BOT, GONE = "bot", "deleted account"
_EXPECTED_TIME = "ISO 8601 or an epoch"
_PEOPLE = 1 << 16  # names that are remembered
_LOST = "a float that has lost digits of an id"
_EXACT = 2**53  # from here on a float has lost digits of an id

_NOBODY = frozenset(("NULL", "null", "NaN", "nan", "None", "<NA>", "N/A", "\\N"))
_GONE = re.compile(
    r"\[(?:deleted|removed)\]|deleted account|deleted user(?:#\d+)?|\[deleted user\]", re.IGNORECASE
)
# who is called a bot by a platform's own rule; Talbot and Abbot are people
_BOT = re.compile(r"(?:.*(?:[a-z0-9]B|[_\-. ][Bb])ot|.*\[bot\]|.*[_\-. ]BOT)")
_BOTS = frozenset(
    ("automoderator", "slackbot", "uslackbot", "remindmebot", "usercommentbot", "sneakpeekbot")
)
_AROUND = " \t\r\n\u200e\ufeff"
# as spreadsheets show a long number and Python a large float: 1.23457E+18
_ROUNDED = re.compile(r"-?\d(?:\.\d+)?[eE]\+\d+", re.ASCII)
_WHOLE = re.compile(r"-?(?:0|[1-9]\d*)\.0+", re.ASCII)
_BESIDE = "\ufeff\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

_PLATFORMS = re.compile(
    r"(?P<deleted>\[(?:deleted|removed|message deleted)\]|\[ removed by (?:reddit|moderator) \]"
    r"|(?:this message was deleted|you deleted this message)\.?)$"
    r"|(?P<media><media omitted>|(?:image|video|audio|sticker|gif|document) omitted)$"
    r"|(?P<system>messages (?:and calls are|to this (?:chat|group)(?: and calls)? are(?: now)?) "
    r"(?:secured with )?end-to-end encrypt"
    r"|<@[UW][A-Z0-9]+(?:\|[^>\n]*)?> has (?:joined|left) the (?:channel|group)\.?$)",
    re.IGNORECASE,
)
_REASONS = {"deleted": DELETED, "media": MEDIA, "system": SYSTEM}

# RFC 5322, RFC 5536 (Usenet), and what mail programs write above a mail they quote
_HEADER = (
    r"(?:date|from|to|cc|bcc|subject|sender|sent|references|received|importance|priority"
    r"|organi[sz]ation|lines|path|newsgroups|xref|distribution|keywords|summary|expires"
    r"|errors-to|precedence|originator|[a-z]+(?:-[a-z0-9_]+)+)"
)
_HEADERS = re.compile(
    r"\s*(?:From \S+ [^\n]*\d\d:\d\d[^\n]*\n)?"  # of a mailbox file
    rf"(?:{_HEADER}[ \t]*:[^\n]*(?:\n[ \t]+\S[^\n]*)*(?:\n|$)){{2,}}\s*",
    re.IGNORECASE,
)
# every mail has one of these; a list of things to do, whose words may have hyphens, has none
_SURELY = re.compile(r"^(?:date|from|subject|sent|message-id)[ \t]*:", re.IGNORECASE | re.MULTILINE)
_MAY_BE_HEADERS = re.compile(r"\s*[A-Za-z][A-Za-z.-]*[ \t]*:|\s*From \S")


class Left(NamedTuple):
    """What is left out by name: no damage."""

    line: int
    reason: str


class Message(NamedTuple):
    """Who said what and when: seconds since 1970, None if unknown."""

    user: str
    text: str
    time: float | None


@dataclass
class Reader:
    """Reads records one after the other, and counts how."""

    pattern: str | None = None  # of times, strptime's
    times: Counter[str] = field(default_factory=Counter)  # how they were read -> rows
    headers: int = 0  # messages that mail headers were cut off

    def message(self, record: Record) -> Message | Left | Damage:
        """What a record says. A value of another kind than its field is damage."""
        line = record.line
        try:
            user, reason = person(record.user)
        except (TypeError, ValueError) as error:
            return Damage(line, BAD_ROW, "a name or number as user", str(error))
        if reason:
            return Left(line, reason)
        text = joined(record.text)
        if text is None:
            return Damage(line, BAD_ROW, "text or a list of runs", shape(record.text))
        if not (_is_unicode(user) and _is_unicode(text)):
            return Damage(line, BAD_ROW, "Unicode text", "half a surrogate pair")
        if headers := _headers(text):
            self.headers += 1
            text = text[headers:]
        if reason := left_out(text):
            return Left(line, reason)
        try:
            time, read_as = instant(record.time, self.pattern)
        except (ValueError, OverflowError):
            expected = "the format given" if self.pattern else _EXPECTED_TIME
            return Damage(line, BAD_TIME, expected, shape(record.time))
        self.times[read_as] += 1
        return Message(user, text, time)


@lru_cache(_PEOPLE, typed=True)
def _known(value: str | int | float | Decimal | None) -> tuple[str, str]:
    if isinstance(value, str):
        name = unicodedata.normalize("NFC", value).strip().strip(_BESIDE).strip()
        name = name.split(".")[0] if _WHOLE.fullmatch(name) else name
        name = "0" if name == "-0" else name
        if _ROUNDED.fullmatch(name):
            raise ValueError(_LOST)
    else:
        name = _number(value)
    if not name or name in _NOBODY:
        return "", NO_USER
    if _GONE.fullmatch(name):
        return name, GONE
    return name, BOT if is_bot(name) else ""


def person(value: object) -> tuple[str, str]:
    """The one name of a person, and why their messages are left out, or "".

    Raises ValueError, TypeError for a value that is neither text nor a number.

    >>> person(1.0), person(" 1 "), person("1.00"), person("007"), person(True)
    (('1', ''), ('1', ''), ('1', ''), ('007', ''), ('', 'no user'))
    >>> person("[deleted]"), person("Helper_bot"), person("Talbot")
    (('[deleted]', 'deleted account'), ('Helper_bot', 'bot'), ('Talbot', ''))
    """
    if value is None or isinstance(value, bool):
        return "", NO_USER
    if isinstance(value, str):
        return _known(value)
    if isinstance(value, bytes):
        try:
            return _known(value.decode())
        except UnicodeDecodeError:
            raise ValueError("bytes that are not UTF-8") from None
    if not isinstance(value, str | int | float | Decimal):
        item = getattr(value, "item", None)  # of numpy
        value = item() if item else value
        if not isinstance(value, str | int | float | Decimal):
            raise TypeError(f"a {type(value).__name__}")
    return _known(value)


def is_bot(name: str) -> bool:
    """Whether a platform calls its bots so."""
    return bool(_BOT.fullmatch(name)) or name.lower() in _BOTS


def _number(value: int | float | Decimal | None) -> str:
    if value is None or (not isinstance(value, int) and math.isnan(value)):
        return ""
    if not isinstance(value, int) and not math.isfinite(value):
        raise ValueError("an infinite number")
    if isinstance(value, float) and abs(value) >= _EXACT:
        raise ValueError(_LOST)
    if not -(10**100) < value < 10**100:
        raise ValueError("a number of more than 100 digits")
    whole = int(value)
    if whole == value:
        return str(whole)
    return str(value.normalize()) if isinstance(value, Decimal) else str(value)


def joined(value: object) -> str | None:
    """Text, or the runs of one put together; "" for no value, None for what is no text.

    >>> joined(["hello ", {"type": "bold", "text": "you"}])
    'hello you'
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        runs = [run.get("text") if isinstance(run, Mapping) else run for run in value]
        texts = [run for run in runs if isinstance(run, str)]
        return "".join(texts) if len(texts) == len(runs) else None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return "" if value is None or isinstance(value, int | float) else None


def _headers(text: str) -> int:
    """How many characters of mail headers a text begins with."""
    match = _HEADERS.match(text) if _MAY_BE_HEADERS.match(text) else None
    return match.end() if match and _SURELY.search(match.group()) else 0


def left_out(text: str) -> str:
    """Why a text is nobody's typing, or "": it stands for a deleted one or for media, or the
    platform wrote it.
    """
    stripped = text.strip(_AROUND)
    if not stripped:
        return NO_TEXT
    match = _PLATFORMS.match(stripped)
    return _REASONS[match.lastgroup or ""] if match else ""


def _is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can carry and UTF-8 cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
