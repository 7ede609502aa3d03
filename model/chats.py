"""Chats as messengers export them: WhatsApp's `_chat.txt` and Telegram's `result.json` -> records.

What the messenger wrote itself (who joined, what was left out) is told by name and is no message.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from device_runtime.errors import CorpusError
from model.documents import Document, elements, is_ended, members, places
from model.fields import BOT, DELETED, FORWARDED, GONE, MEDIA, SYSTEM, Left, is_bot
from model.records import BAD_ROW, Damage, Record, element
from model.sources import LONGEST, Source

# --- WhatsApp ---

_SPACE = "[ \u00a0\u202f]"
_DATE = r"(\d{1,4})[./-](\d{1,2})[./-](\d{1,4})\.?"
_TIME = rf"(\d{{1,2}})[:.](\d{{2}})(?:[:.](\d{{2}}))?(?:{_SPACE}?([ap])\.?{_SPACE}?m\.?)?"
_BETWEEN = rf",?{_SPACE}(?:(?:um|à|at|klo|kl\.?){_SPACE})?"
_IOS = re.compile(
    rf"[\u200e\u200f]?\[{_DATE}{_BETWEEN}{_TIME}\]{_SPACE}?(.*)", re.IGNORECASE | re.DOTALL
)
_ANDROID = re.compile(
    rf"[\u200e\u200f]?{_DATE}{_BETWEEN}{_TIME}{_SPACE}-{_SPACE}(.*)", re.IGNORECASE | re.DOTALL
)
_BEGINS = "[\u200e\u200f0123456789"  # an opening
_QUOTATION = re.compile(r'"[^"]*"|«[^»]*»|„[^“”]*[“”]|“[^”]*”')
_MARKS = str.maketrans("", "", "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# what it writes itself it marks so, on an iPhone
_OWN = "\u200e"
_EDITED = re.compile(
    r"(?:\u200e<[^<>\n]{3,60}>"
    r"|<(?:This message was edited|Diese Nachricht wurde bearbeitet\.?|Se editó este mensaje\.?"
    r"|Ce message a été modifié\.?|Questo messaggio è stato modificato\.?|Mensagem editada"
    r"|Esta mensagem foi editada|Dit bericht is bewerkt|इस मैसेज को एडिट किया गया)>)$"
)
_OMITTED = re.compile(
    r"<[^<>\n]{3,60}>|(?:image|video|audio|sticker|GIF|document|Contact card|video note) omitted"
    r"|null",
    re.IGNORECASE,
)
_ATTACHED = re.compile(  # a message may follow on the next lines
    r"(?:IMG|VID|AUD|PTT|STK|DOC|PHOTO)-[^\n]+ \([^()\n]+\)(?:\n|$)"
    r"|[^\n]+ \((?:file attached|Datei angehängt|archivo adjunto|fichier joint|file allegato"
    r"|(?:arquivo|ficheiro) anexado|bestand bijgevoegd|फ़ाइल अटैच है)\)(?:\n|$)"
    r"|<attached: [^<>\n]+>(?:\n|$)",
    re.IGNORECASE,
)
# of an iPhone's: a message may stand before it, or the document's name and how long it is
_ATTACHMENT = re.compile(r"\u200e<[^<>\n:]+: ?[^<>\n]+>(?:\n|$)")
_PAGES = " • \u200e"
_DELETED = re.compile(
    r"(?:This message was deleted|You deleted this message|Message deleted"
    r"|This message was deleted by admin .*|Diese Nachricht wurde gelöscht"
    r"|Du hast diese Nachricht gelöscht|Se eliminó este mensaje|Eliminaste este mensaje"
    r"|Ce message a été supprimé|Vous avez supprimé ce message"
    r"|Questo messaggio è stato eliminato|Hai eliminato questo messaggio"
    r"|Mensagem apagada|(?:Esta|Essa) mensagem foi apagada|(?:Você )?apagou esta mensagem"
    r"|Dit bericht is verwijderd|U hebt dit bericht verwijderd"
    r"|यह मैसेज डिलीट (?:कर दिया गया|किया गया(?: था)?)|आपने यह मैसेज डिलीट (?:कर दिया|किया))[.।]?",
    re.IGNORECASE,
)
# what it writes under a name without marking it; nobody else writes just that
_SAYS = re.compile(
    r"Messages (?:and calls|to this (?:chat|group)(?: and calls)?) are (?:now )?(?:secured with )?"
    r"end-to-end encrypted.*|Missed (?:group )?(?:voice|video) call\b(?: at [\d: apm.]+)?"
    r"|Waiting for this message\. This may take a while\.?",
    re.DOTALL,
)
_DOES = re.compile(  # in what would be the name: such a line has no name
    r" (?:changed (?:the|this|their|to)|created group|added|removed|left|joined using"
    r"|turned (?:on|off)|is now an admin|pinned a message|security code with) ?"
)


@dataclass(frozen=True)
class Order:
    """In which order the numbers of a date stand, and how that is known."""

    format: str  # of "day", "month", "year": "dmy", "mdy" or "ymd"
    known: str  # a sentence for the report


class _Opening(NamedTuple):
    """The first line of a message."""

    numbers: tuple[int, int, int]  # of the date, as they stand
    clock: tuple[int, int, int]
    rest: str


def is_whatsapp(head: str) -> bool:
    """Whether a text begins as an exported chat does."""
    return any(_opening(line) for line in head.lstrip("\ufeff\r\n ").splitlines()[:1])


def _opening(line: str) -> _Opening | None:
    match = _IOS.match(line) or _ANDROID.match(line)
    if not match:
        return None
    first, second, third, hour, minute, second_of, half, rest = match.groups()
    hours = int(hour)
    if half:
        hours = hours % 12 + 12 * (half.lower() == "p")
    return _Opening(
        (int(first), int(second), int(third)), (hours, int(minute), int(second_of or 0)), rest
    )


def date_order(lines: Iterable[str]) -> Order:
    """What the dates of a chat say about their order: a number above 12 is no month.

    A chat is in the order of time, which tells where no day is above 12. Else the day is first.
    """
    candidates = {"dmy": True, "mdy": True}
    before: dict[str, tuple[int, ...]] = {}
    in_time = {"dmy": True, "mdy": True}
    for line in lines:
        opening = _opening(line) if line[:1] in _BEGINS else None
        if opening is None:
            continue
        first, second, third = opening.numbers
        if first > 31:
            return Order("ymd", "dates read as year, month, day")
        candidates["mdy"] &= first <= 12
        candidates["dmy"] &= second <= 12
        for order, day in (("dmy", (third, second, first)), ("mdy", (third, first, second))):
            in_time[order] &= before.get(order, day) <= day
            before[order] = day
    told = {"dmy": "day, month, year", "mdy": "month, day, year"}
    for table, why in ((candidates, "no month is above 12"), (in_time, "so they are in order")):
        left = [order for order in table if table[order]]
        if len(left) == 1:
            return Order(left[0], f"dates read as {told[left[0]]}: {why}")
    return Order("dmy", "dates read as day, month, year: they would fit either order")


def whatsapp(
    source: Source, lines: Iterator[str], order: Order
) -> Iterator[Record | Left | Damage]:
    """The messages of a chat: a line that does not begin with a date goes on with the one before.

    Times are as they stand, in UTC. Raises CorpusError for a message without an end.
    """
    begin, opening, body = 0, None, list[str]()
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r\n")
        following = _opening(line) if line[:1] in _BEGINS else None
        if following is None:
            body.append(line)
            if len(body) > LONGEST // 16:
                raise CorpusError(
                    f"{source.name}:{begin}",
                    f"expected the next message within {LONGEST // 16:,} lines, found none",
                    "export the chat again",
                )
            continue
        if opening is not None:
            yield _said(begin, opening, body, order)
        elif any(map(str.strip, body)):
            yield Damage(1, BAD_ROW, "a date and a time", "other text")
        begin, opening, body = number, following, []
    if opening is not None:
        yield _said(begin, opening, body, order)


def _said(line: int, opening: _Opening, body: list[str], order: Order) -> Record | Left | Damage:
    name, colon, first = opening.rest.partition(": ")
    if not colon and opening.rest.endswith(":"):
        name, colon = opening.rest[:-1], ":"  # a text that begins on the next line
    if not colon or _DOES.search(name) or _SAYS.match(name) or _opens_quotation(name):
        return Left(line, SYSTEM)
    whole = _ATTACHMENT.sub("", "\n".join([first, *body])).rstrip()
    own = whole.startswith(_OWN) and whole[1:2] != "@"  # somebody is called by name
    text = _EDITED.sub("", whole).translate(_MARKS).strip()
    if _DELETED.fullmatch(text):
        return Left(line, DELETED)
    if _PAGES in whole:
        return Left(line, MEDIA)
    if caption := _ATTACHED.match(text):
        text, own = text[caption.end() :].strip(), False
    if not text or _OMITTED.fullmatch(text):
        return Left(line, MEDIA)
    if own or _SAYS.fullmatch(text):
        return Left(line, SYSTEM)
    try:
        return Record(line, name.translate(_MARKS).strip(), text, _moment(opening, order.format))
    except ValueError:
        return Damage(line, "unreadable timestamp", f"a date as {order.format}", "another")


def _opens_quotation(name: str) -> bool:
    """Whether a quotation begins in what would be a name and ends behind it.

    >>> _opens_quotation('Ann named the group "a'), _opens_quotation('Bob "Bo" Lee')
    (True, False)
    """
    return bool(re.search(r'\s["«„“]', _QUOTATION.sub("", name)))


def _moment(opening: _Opening, order: str) -> datetime:
    numbers = dict(zip(order, opening.numbers, strict=True))
    year = numbers["y"] + 2000 * (numbers["y"] < 100)
    return datetime(year, numbers["m"], numbers["d"], *opening.clock, tzinfo=UTC)


# --- Telegram ---


def telegram(document: Document) -> Iterator[Record | Left | Damage]:
    """The messages of one chat, or of all chats of a full export.

    Raises CorpusError for a JSON object that is no export of Telegram's.
    """
    yield from _chat(document)
    is_ended(document)


def _chat(document: Document) -> Iterator[Record | Left | Damage]:
    """The messages in the object that comes next, wherever in it they are."""
    for key in members(document):
        follows = document.peek()
        if key == "messages" and follows == "[":
            for line, text in elements(document):
                yield _message(line, element(document, line, text), document)
        elif key in ("chats", "left_chats") and follows == "{":
            yield from _chat(document)
        elif key == "list" and follows == "[":
            for _ in places(document):
                yield from _chat(document)
        else:
            document.value()


def _message(
    line: int, values: dict[str, object] | Damage, document: Document
) -> Record | Left | Damage:
    if isinstance(values, Damage):
        return values
    kind = values.get("type")
    if kind not in ("message", "service", "unsupported"):
        raise CorpusError(
            f"{document.source.name}:{line}",
            "expected a message of Telegram's export, found another object",
            "give the list itself as JSON, or one object a line",
        )
    if kind != "message":
        return Left(line, SYSTEM)
    name = values.get("from")
    if values.get("via_bot") or (isinstance(name, str) and is_bot(name)):
        return Left(line, BOT)
    if name == "Deleted Account":
        return Left(line, GONE)
    text = values.get("text")
    if "forwarded_from" in values or "saved_from" in values:
        return Left(line, FORWARDED)  # somebody else typed it
    if not text and {
        "media_type",
        "file",
        "photo",
        "poll",
        "location_information",
        "contact_information",
    } & set(values):
        return Left(line, MEDIA)
    user = values.get("from_id") or name
    time = values.get("date_unixtime") or values.get("date")
    return Record(line, user, text, time)
