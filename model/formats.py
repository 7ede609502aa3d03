"""Formats: what a file holds, by its name and its first characters -> how its records are read.

A table in CSV, JSON or Parquet, or a chat of WhatsApp's or Telegram's.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from device_runtime.errors import CorpusError
from model import chats
from model.documents import Document
from model.fields import Left
from model.records import (
    Columns,
    Damage,
    Record,
    array_rows,
    csv_rows,
    decoded,
    jsonl_rows,
    parquet_rows,
)
from model.sources import HEAD, LONGEST, Progress, Source, content, lines, peeked, text_blocks

FORMATS = ("csv", "json", "parquet", "whatsapp", "telegram")
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "txt",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
}
_PACKED = (".gz", ".zst", ".zstd")
_PARQUET = b"PAR1"
_OF_TELEGRAM = re.compile(r'"(?:messages|chats)"\s*:\s*[\[{]')


class Note(NamedTuple):
    """A sentence on how a file was read."""

    text: str


@dataclass(frozen=True)
class Choice:
    """How files are read, as far as a person said so; None: the files say it themselves."""

    columns: Columns = field(default_factory=Columns)
    delimiter: str | None = None
    encoding: str | None = None
    format: str | None = None  # one of FORMATS


Records = Iterator[Record | Damage | Left | Note]


def suffix(path: Path) -> str:
    """What a file's name says of its format; "" if nothing.

    >>> suffix(Path("a.jsonl.zst")), suffix(Path("_chat.txt")), suffix(Path("a.pdf"))
    ('json', 'txt', '')
    """
    names = [part.lower() for part in path.suffixes]
    if names and names[-1] in _PACKED:
        names.pop()
    return _SUFFIXES.get(names[-1], "") if names else ""


def records(source: Source, choice: Choice, progress: Progress) -> Records:
    """What is in a file, one record after the other. `progress` is told of the bytes read.

    Raises CorpusError for a file that is not what its name says, and as the readers do.
    """
    head, blocks = peeked(content(source, progress), len(_PARQUET))
    named = choice.format or suffix(source.path)
    if head.startswith(_PARQUET):
        if choice.format not in (None, "parquet"):
            raise _another(source, choice.format or "", "Parquet")
        return _parquet(source, choice, progress)
    if named == "parquet":
        raise _another(source, "a Parquet file", "an empty file" if not head else "other content")
    return _texts(source, choice, text_blocks(source, blocks, choice.encoding))


def _another(source: Source, expected: str, what: str) -> CorpusError:
    return CorpusError(
        source.name, f"expected {expected}, found {what}", "rename it, or name its --format"
    )


def _parquet(source: Source, choice: Choice, progress: Progress) -> Records:
    if not source.regular or not _begins(source.path, _PARQUET):
        raise CorpusError(
            source.name,
            "expected Parquet in a file of its own, found it in a pipe or packed once more",
            "unpack it into a file",
        )
    yield from parquet_rows(source, choice.columns)
    progress(source.size)


def _begins(path: Path, head: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(head)) == head


def _texts(source: Source, choice: Choice, blocks: Iterator[str]) -> Records:
    head, blocks = _head(blocks)
    if not head.strip():
        return iter(())
    kind = choice.format or _kind(source, choice, head)
    readers: dict[str, Callable[[], Records]] = {
        "csv": lambda: csv_rows(source, lines(source, blocks), choice.columns, choice.delimiter),
        "json": lambda: _json(source, choice, head, blocks),
        "telegram": lambda: chats.telegram(Document(source, blocks)),
        "whatsapp": lambda: _whatsapp(source, choice, blocks),
    }
    return readers[kind]()


def _head(blocks: Iterator[str]) -> tuple[str, Iterator[str]]:
    head = ""
    while len(head) < HEAD and (block := next(blocks, "")):
        head += block

    def again() -> Iterator[str]:
        yield head
        yield from blocks

    return head, again()


def _kind(source: Source, choice: Choice, head: str) -> str:
    """The format of a text by its name, by what it begins with where that says nothing."""
    named, begins = suffix(source.path), head.lstrip()[:1]
    first = head.lstrip().splitlines()[0]
    if chats.is_whatsapp(head):
        looks = "whatsapp"
    elif begins in "[{" and (len(first) < 2 or not isinstance(decoded(1, first), Damage)):
        looks = "json"
    else:
        looks = "json" if begins == "{" else "csv"
    if named == "txt":
        if looks == "csv" and all(name in first for name in choice.columns.required):
            return looks  # a table under another name
        if looks != "whatsapp":
            raise _another(source, "a chat that WhatsApp exported", "other text")
        return looks
    if named == "csv" and looks != "csv":
        raise _another(source, "CSV", {"json": "JSON", "whatsapp": "a chat of WhatsApp's"}[looks])
    return named or looks


def _json(source: Source, choice: Choice, head: str, blocks: Iterator[str]) -> Records:
    """JSONL, one list, or one object that must be Telegram's."""
    start = head.lstrip()
    if re.match(r"\[\s*(?:[{\]]|$)", start):
        return array_rows(Document(source, blocks), choice.columns)
    if not _is_one_object(start):
        return jsonl_rows(source, lines(source, blocks), choice.columns)
    if _OF_TELEGRAM.search(head):
        return chats.telegram(Document(source, blocks))
    raise CorpusError(
        f"{source.name}:1",
        "expected one JSON object a line, or one list of them, found an object over several lines",
        "write each on a line of its own (jq -c)",
    )


def _is_one_object(start: str) -> bool:
    """Whether a text that begins so is one object rather than one a line."""
    if not start.startswith("{"):
        return False
    first, end, rest = start.partition("\n")
    if not end and len(start) >= HEAD:  # a line longer than what is looked at
        return bool(_OF_TELEGRAM.search(start))
    values = decoded(1, first)
    if not isinstance(values, Damage):
        return not rest.strip() and any(
            isinstance(values.get(key), list | dict) for key in ("messages", "chats")
        )
    return not rest.lstrip().startswith("{") and first.rstrip().endswith(("{", "[", ","))


def _whatsapp(source: Source, choice: Choice, blocks: Iterator[str]) -> Records:
    """A chat, read twice: its dates first."""
    if source.regular:
        twice = text_blocks(source, content(source, lambda read: None), choice.encoding)
    else:
        whole = "".join(_bounded(source, blocks))
        blocks, twice = iter((whole,)), iter((whole,))
    order = chats.date_order(lines(source, twice))
    yield Note(order.known)
    yield from chats.whatsapp(source, lines(source, blocks), order)


def _bounded(source: Source, blocks: Iterator[str]) -> Iterator[str]:
    characters = 0
    for block in blocks:
        characters += len(block)
        if characters > LONGEST:
            raise CorpusError(
                source.name,
                f"expected at most {LONGEST:,} characters of a chat in a pipe, found more",
                "give the file itself",
            )
        yield block
