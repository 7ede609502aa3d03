"""Documents: one JSON value that is too large to hold, read member by member.

What a member's text is follows from its brackets and quotes alone, so that one that is wrong inside
spoils no other.
"""

import json
import re
from collections.abc import Iterator

from device_runtime.errors import CorpusError
from model.sources import LONGEST, Source, line_ends

_BLANK = re.compile(r"[ \t\r\n]*")
_STRING = r'"[^"\\\r\n]*(?:\\.[^"\\\r\n]*)*"'
# a quote that no other closes on its line is told by itself
_TOKEN = re.compile(_STRING + r'|[{}\[\]]|"')
_SCALAR = re.compile(r"[^,\]} \t\r\n]+")


class Document:
    """The text of one JSON value and how far it is read."""

    def __init__(self, source: Source, blocks: Iterator[str]):
        self.source, self.line = source, 1  # the line that comes next
        self._blocks, self._text, self._at = blocks, "", 0

    def peek(self) -> str:
        """The next character that is not blank; "" at the end."""
        while True:
            end = _BLANK.match(self._text, self._at).end()  # type: ignore[union-attr]
            self._pass(end)
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self, *expected: str) -> str:
        """That character, which must be one of these. Raises CorpusError if it is not."""
        character = self.peek()
        if character not in expected or not character:
            raise self.error(f"expected {' or '.join(expected)}, found {_told(character)}")
        self._pass(self._at + 1)
        return character

    def value(self) -> str:
        """The text of the next value, whole. Raises CorpusError if its end cannot be told."""
        first = self.peek()
        if first in ("", ",", ":", "]", "}"):
            raise self.error(f"expected a value, found {_told(first)}")
        end = self._end() if first in '{["' else self._scalar_end()
        text = self._text[self._at : end]
        self._pass(end)
        return text

    def error(self, problem: str) -> CorpusError:
        """At the line that comes next."""
        return CorpusError(
            f"{self.source.name}:{self.line}", problem, "mend that line, or write one object a line"
        )

    def _pass(self, to: int) -> None:
        self.line += line_ends(self._text[self._at : to])
        self._at = to

    def _more(self) -> bool:
        block = next(self._blocks, "")
        if len(self._text) - self._at > LONGEST:
            raise self.error(
                f"expected the value that begins here to end within {LONGEST:,} characters"
            )
        self._text, self._at = self._text[self._at :] + block, 0
        return bool(block)

    def _end(self) -> int:
        """Where the list, object or text that begins here ends."""
        depth, at = 0, self._at
        while True:
            for token in _TOKEN.finditer(self._text, at):
                kind = token.group()[0] if len(token.group()) == 1 else ""
                if kind == '"':
                    break
                depth += (kind in ("{", "[")) - (kind in ("}", "]")) if kind else 0
                if depth <= 0:
                    return token.end()
                at = token.end()
            else:
                token = None
            if token and re.search(r"[\r\n]", self._text[token.end() :]):
                raise self.error(
                    "expected a closing quote before the line's end, found none in "
                    "the value that begins here"
                )
            offset = (token.start() if token else len(self._text)) - self._at
            if not self._more():
                raise self.error(
                    "expected the end of the value that begins here, found the end of the file"
                )
            at = self._at + offset

    def _scalar_end(self) -> int:
        while True:
            end = _SCALAR.match(self._text, self._at).end()  # type: ignore[union-attr]
            offset = end - self._at
            if end < len(self._text) or not self._more():
                return self._at + offset


def _told(character: str) -> str:
    if not character:
        return "the end of the file"
    return character if character in '[]{},:"' else "other text"


def places(document: Document) -> Iterator[int]:
    """The line of each element of the list that comes next; whoever asks reads it. The end of the
    file is not looked for. Raises CorpusError where it is no list.
    """
    document.take("[")
    if document.peek() == "]":
        document.take("]")
        return
    more = True
    while more:
        document.peek()
        yield document.line
        more = document.take(",", "]") == ","


def elements(document: Document) -> Iterator[tuple[int, str]]:
    """The line and text of each element of the list that comes next, as `places`. Raises
    CorpusError where an element's end cannot be told, too.
    """
    for line in places(document):
        yield line, document.value()


def members(document: Document) -> Iterator[str]:
    """The keys of the object that comes next; whoever asks reads each one's value."""
    document.take("{")
    if document.peek() == "}":
        document.take("}")
        return
    more = True
    while more:
        if document.peek() != '"':
            raise document.error("expected a key in quotes, found none")
        try:
            key = json.loads(document.value())
        except ValueError:
            raise document.error("expected a key, found a broken one") from None
        document.take(":")
        yield key
        more = document.take(",", "}") == ","


def is_ended(document: Document) -> None:
    """Raises CorpusError if anything follows."""
    if document.peek():
        raise document.error("expected the end of the file, found more")


def ends_surely(text: str) -> bool:
    """Whether a value that is wrong inside ends where its brackets say: no text in it takes in a
    bracket, as one does whose quote is missing.

    >>> ends_surely('{"a": 1,}'), ends_surely('{"a": "hi},{"b": "yo"}')
    (True, False)
    """
    return not any(
        set(token.group()) & set("{}[]") and len(token.group()) > 1
        for token in _TOKEN.finditer(text)
    )
