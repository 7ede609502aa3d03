"""Records: a table's rows, in CSV, JSON or Parquet -> the values of each that are asked for.

A row that cannot be read is one Damage and spreads to no other row. Where its end cannot be told,
reading stops with the line at which it begins.
"""

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, NamedTuple

from device_runtime.errors import CorpusError
from model.documents import Document, elements, ends_surely, is_ended
from model.sources import LONGEST, Source
from model.times import instant

if TYPE_CHECKING:
    import polars

BAD_ROW, NO_JSON = "bad row", "no JSON"
TAB = "\t"
CANDIDATES = (",", ";", TAB)  # that a delimiter is looked for among
# a column's, rather than what somebody said
_NAME = re.compile(r"[^\W\d][\w.:/()\[\]-]{0,30}(?: [\w.:/()\[\]-]{1,20}){0,2}")
_SAID = re.compile(r'"?sep=([^"\r\n])"?[\r\n]*', re.IGNORECASE)  # of a delimiter, by Excel
_ROWS = 1 << 16  # of Parquet that are held at a time
_EPOCH = date(1970, 1, 1)
_A_DAY = {"day": 1, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
_TOLD = 12  # names of columns that an error lists


class Record(NamedTuple):
    """A row as its file has it."""

    line: int  # where it begins, from 1; of Parquet the row
    user: object
    text: object
    time: object = None


class Damage(NamedTuple):
    """A row that cannot be read; `expected` and `found` hold nothing that was typed."""

    line: int
    reason: str
    expected: str
    found: str


@dataclass(frozen=True)
class Columns:
    """The columns that are read."""

    user: str = "user"
    text: str = "text"
    time: str | None = "timestamp"  # None: no column is the time
    time_required: bool = False  # whether a file without that column is refused

    @property
    def required(self) -> tuple[str, ...]:
        """The names a file cannot do without."""
        time = (self.time,) if self.time and self.time_required else ()
        return (self.user, self.text, *time)


def require(where: object, columns: Columns, present: Iterable[str], hint: str = "") -> None:
    """Raises CorpusError for a column that is not there, or for two of one name."""
    names = list(present)
    for name in names:
        if name and names.count(name) > 1:
            raise CorpusError(where, f"two columns are named {name!r}", "rename one of them")
    for name in columns.required:
        if name not in names:
            told = ", ".join(sorted(filter(None, names))[:_TOLD]) or "none"
            raise CorpusError(
                where,
                f"no column {name!r}, found {told}{hint}",
                "name your columns by --user, --text and --timestamp",
            )


# --- CSV ---


def csv_rows(
    source: Source, lines: Iterator[str], columns: Columns, delimiter: str | None = None
) -> Iterator[Record | Damage]:
    """The rows of CSV by RFC 4180, with any line ends; a quote within an unquoted field is text.

    Without a `delimiter` it is the one of comma, semicolon and tab under which the columns are
    there. Raises CorpusError for a header without them, and where a quote opens whose end cannot be
    told: one that takes in what looks like rows of this file is no message either.
    """
    taken = _Taken(source, lines)
    mark, names = _header(taken, columns, delimiter)
    if not names:
        return
    csv.field_size_limit(2 * LONGEST)  # `taken` stops before
    reader = csv.reader(taken, delimiter=mark, strict=True)
    width, people = len(names), set[str]()
    user, text = names.index(columns.user), names.index(columns.text)
    time = names.index(columns.time) if columns.time in names else None
    layout = _Layout(mark, width, user, time)
    while True:
        taken.begin()
        line = taken.number + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield _broken(taken, mark)
            continue
        regular = len(fields) == width
        if len(taken.row) > 1:
            told = regular and not any("\n" in fields[i] for i in (user, time) if i is not None)
            _require_one_row(taken, layout, people | {fields[user]} if told else None)
        if taken.swapped:
            fields = [field.replace("\0", "\r") for field in fields]
        if regular and [field.strip() for field in fields] == names:
            continue  # the header of a file that was put behind another
        if regular and not taken.nul:
            people.add(fields[user])
            at = None if time is None else fields[time]
            yield Record(line, fields[user], fields[text], at)
        elif regular:
            yield Damage(line, BAD_ROW, "text", "a NUL byte")
        elif len(fields) > 1 or "".join(fields).strip():  # not a blank line
            yield Damage(line, BAD_ROW, _fields(width), str(len(fields)))


@dataclass(frozen=True)
class _Layout:
    """Where a CSV file has what."""

    delimiter: str
    width: int  # fields a row
    user: int
    time: int | None


class _Taken:
    """Lines, of which those of the row in hand are remembered."""

    def __init__(self, source: Source, lines: Iterator[str]):
        self.source, self._lines = source, lines
        self.number = 0  # of the last line taken
        self.row: list[str] = []  # the lines of the row in hand
        self._characters = 0
        self._again: str | None = None
        self.nul = False  # whether the row holds a NUL byte
        # whether it holds carriage returns that end no line, which the module csv would not take
        # and which therefore are NUL here
        self.swapped = False

    def begin(self) -> None:
        """What is taken from here on is another row."""
        self.row, self._characters = [], 0
        self.nul = self.swapped = False

    def give_back(self) -> None:
        """The last line comes again."""
        self._again = self.row.pop()
        self.number -= 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line, self._again = self._again or next(self._lines), None
        self.number += 1
        if not self.row:  # the mark of a file that was put behind another
            line = line.removeprefix("\ufeff")
        if "\0" in line:
            self.nul = True
        elif "\r" in line and "\r" in (body := line.rstrip("\r\n")):
            self.swapped = True
            line = body.replace("\r", "\0") + line[len(body) :]
        self.row.append(line)
        self._characters += len(line)
        if self._characters > LONGEST:
            raise _endless(
                self.source,
                self.number - len(self.row) + 1,
                f"expected the row that begins here to end within {LONGEST:,} characters",
            )
        return line


def _fields(number: int) -> str:
    return f"{number} field{'s' * (number != 1)}"


def _endless(source: Source, line: int, problem: str) -> CorpusError:
    return CorpusError(
        f"{source.name}:{line}", problem, 'close the quote, or double it ("") within a message'
    )


def _header(taken: _Taken, columns: Columns, delimiter: str | None) -> tuple[str, list[str]]:
    """The delimiter and the names of the columns; none for a file without a line."""
    header = _first_row(taken)
    if said := _SAID.fullmatch(header):
        delimiter = delimiter or said[1]
        header = _first_row(taken)
    if not header:
        return "", []
    where = f"{taken.source.name}:{taken.number}"
    by_mark = {mark: _names(header, mark) for mark in (*CANDIDATES, "|", *(delimiter or ()))}
    fits = [mark for mark in by_mark if set(columns.required) <= set(by_mark[mark])]
    most = max(CANDIDATES, key=lambda mark: len(by_mark[mark]))
    mark = delimiter or next((mark for mark in fits if mark in CANDIDATES), most)
    names = by_mark[mark]
    hint = ""
    if fits and mark not in fits:
        hint = f"; it looks like {'a tab' if fits[0] == TAB else fits[0]} between columns"
    elif not all(map(_NAME.fullmatch, filter(None, names))):
        # the first message, perhaps, and that is not to be told
        raise CorpusError(
            where,
            f"expected the names of the columns in the first line, {columns.user!r} and "
            f"{columns.text!r} among them, found others",
            "put them there, or name yours by --user and --text",
        )
    require(where, columns, names, hint)
    return mark, names


def _first_row(taken: _Taken) -> str:
    """The next lines that are not blank, up to one where every quote is closed."""
    taken.begin()
    row = [next((line for line in taken if not line.isspace()), "")]
    quotes = row[0].count('"')
    while quotes % 2 and (line := next(taken, "")):
        row.append(line)
        quotes += line.count('"')
    return "".join(row)


def _names(header: str, mark: str) -> list[str]:
    try:
        names = next(csv.reader(io.StringIO(header, newline=""), delimiter=mark), [])
    except csv.Error:  # a carriage return within a line
        return []
    return [unicodedata.normalize("NFC", name).strip() for name in names]


def _broken(taken: _Taken, mark: str) -> Damage:
    """What became of a row with a quote in a wrong place; raises if its end cannot be told."""
    line = taken.number - len(taken.row) + 1
    last = next(taken, None)
    if last is not None:
        taken.give_back()
    if len(taken.row) > 1:
        raise _endless(
            taken.source,
            line + _opening(taken.row, mark),
            "expected the quote that opens here to close before a delimiter or a line's end, found "
            + ("more text after it" if last else "the end of the file or more text after it"),
        )
    return Damage(line, BAD_ROW, "a delimiter or a line's end after a closing quote", "otherwise")


def _opening(row: list[str], mark: str) -> int:
    """In which of these lines the quote opens that is closed wrongly or not at all, from 0."""
    opening, state = 0, "start"
    for number, line in enumerate(row):
        for character in line:
            if state == "quoted":
                state = "closing" if character == '"' else state
            elif state == "start" and character == '"':
                opening, state = number, "quoted"
            elif state == "closing" and character == '"':
                state = "quoted"
            elif character in (mark, "\r", "\n"):
                state = "start"
            elif state == "closing":
                return opening
            else:
                state = "unquoted"
    return opening


def _require_one_row(taken: _Taken, layout: _Layout, people: set[str] | None) -> None:
    """Raise if a quoted field took in lines that look like rows of this file.

    One with a time, of somebody of `people`, is enough, or any one if the row cannot be right
    (`people` is None): it has a wrong number of fields, or a person or a time of several lines.
    Otherwise all must look so: with a time, or of somebody of `people` where there is none.
    Somebody's name and a comma may begin a line of a message; a row has no space after it.
    """
    begin = taken.number - len(taken.row) + 1
    rows = {
        number: _like_row(line, layout, people)
        for number, line in enumerate(taken.row[1:], begin + 1)
        if not line.isspace()
    }
    surely = [number for number, likeness in rows.items() if likeness == 2]
    if not surely and rows and all(rows.values()):
        surely = list(rows)
    if surely:
        raise _endless(
            taken.source,
            begin + _opening(taken.row[: surely[0] - begin], layout.delimiter),
            f"a quote opens here that takes in line {surely[0]}, which looks like a row of its own",
        )


def _like_row(line: str, layout: _Layout, people: set[str] | None) -> int:
    """How much a line of a message looks like a row: 2 surely, 1 perhaps, 0 not at all."""
    if line.count(layout.delimiter) < layout.width - 1:
        return 0
    try:
        fields = next(csv.reader([line], delimiter=layout.delimiter), [])
    except csv.Error:  # a carriage return within it
        return 0
    if len(fields) != layout.width or any(field[:1] == " " for field in fields):
        return 0
    if people is None:
        return 2
    is_known = fields[layout.user] in people
    time = "" if layout.time is None else fields[layout.time].strip()
    if time:
        return 0 if not _is_time(time) else 2 if is_known else 1
    return int(is_known)


def _is_time(value: str) -> bool:
    try:
        instant(value)
    except (ValueError, OverflowError):
        return False
    return True


# --- JSON ---


class _Refused(ValueError):
    """JSON that has a meaning, but not one that a row may have."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise _Refused("a key twice")
    return values


_DECODE = json.JSONDecoder(object_pairs_hook=_unique).decode


def decoded(line: int, text: str) -> dict[str, object] | Damage:
    """A JSON object, or what is wrong with it. NaN is read, for pandas writes it for no value."""
    try:
        values = _DECODE(text)
    except _Refused as refused:
        return Damage(line, BAD_ROW, "each key once", str(refused))
    except RecursionError:
        return Damage(line, BAD_ROW, "a JSON object", "one nested too deeply")
    except ValueError:
        return Damage(line, BAD_ROW, "a JSON object", NO_JSON)
    if not isinstance(values, dict):
        return Damage(line, BAD_ROW, "a JSON object", f"a {type(values).__name__}")
    return values


def jsonl_rows(source: Source, lines: Iterator[str], columns: Columns) -> Iterator[Record | Damage]:
    """The rows of JSONL, one object a line; blank lines are none.

    Raises CorpusError, once all rows are read, for a column that none of them has.
    """
    numbered = ((n, line) for n, line in enumerate(lines, 1) if not line.isspace())
    return _objects(
        source, ((n, decoded(n, line.lstrip("\ufeff"))) for n, line in numbered), columns
    )


def array_rows(document: Document, columns: Columns) -> Iterator[Record | Damage]:
    """The rows of one list of objects, which is read one after the other.

    Raises CorpusError where a row's end cannot be told, and for a column that none of them has.
    """
    return _objects(document.source, _elements(document), columns)


def _elements(document: Document) -> Iterator[tuple[int, dict[str, object] | Damage]]:
    for line, text in elements(document):
        yield line, element(document, line, text)
    is_ended(document)


def element(document: Document, line: int, text: str) -> dict[str, object] | Damage:
    """An element as an object, or what is wrong in it. Raises CorpusError if it may have taken in
    others.
    """
    values = decoded(line, text)
    if isinstance(values, Damage) and values.found == NO_JSON and not ends_surely(text):
        raise CorpusError(
            f"{document.source.name}:{line}",
            "expected a JSON object, found one whose end cannot be told",
            "mend that line, or write one object a line",
        )
    return values


def _objects(
    source: Source, rows: Iterable[tuple[int, dict[str, object] | Damage]], columns: Columns
) -> Iterator[Record | Damage]:
    missing, present, read = set(columns.required), dict[str, None](), 0
    user, text, time = columns.user, columns.text, columns.time
    for line, values in rows:
        if isinstance(values, Damage):
            yield values
            continue
        read += 1
        if read == 1 and {type(values.get(user)), type(values.get(text))} in ({dict}, {list}):
            raise CorpusError(
                f"{source.name}:{line}",
                "expected an object a message, found one that holds whole columns",
                "write one object a message, as to_json(orient='records') of pandas does",
            )
        if missing:
            missing -= values.keys()
            present.update(dict.fromkeys(values))
        at = None if time is None else values.get(time)
        yield Record(line, values.get(user), values.get(text), at)
    if missing and read:
        require(source.name, columns, present)


# --- Parquet ---


def parquet_rows(source: Source, columns: Columns) -> Iterator[Record | Damage]:
    """The rows of a Parquet file, some at a time. Needs polars.

    Raises CorpusError for one that is damaged, or that lacks a column.
    """
    import polars

    try:
        table = polars.scan_parquet(source.path, glob=False)
        present = table.collect_schema().names()
        require(source.name, columns, present)
        wanted = [columns.user, columns.text]
        if columns.time in present:
            wanted.append(columns.time)
        count = table.select(polars.len()).collect().item()
        for first in range(0, count, _ROWS):
            rows = table.select(*dict.fromkeys(wanted)).slice(first, _ROWS).collect()
            series = [_listed(rows[name]) for name in wanted]
            for line, values in enumerate(zip(*series, strict=True), first + 1):
                yield Record(line, *values)
    except (polars.exceptions.PolarsError, OSError) as error:
        raise CorpusError(
            source.name,
            f"expected a Parquet file, found one that is damaged ({type(error).__name__})",
            "write it again, or give CSV or JSONL",
        ) from None


def _listed(series: "polars.Series") -> list[object]:
    """The values of a column; a date that Python has none for is infinite."""
    import polars

    values = series
    if isinstance(series.dtype, polars.Date | polars.Datetime):
        first, last = date(2, 1, 1), date(9998, 1, 1)  # a year apart, for time zones
        days = series.to_physical() // _A_DAY[getattr(series.dtype, "time_unit", "day")]
        outside = (days < (first - _EPOCH).days) | (days > (last - _EPOCH).days)
        values = series.set(outside, None)
        if outside.any():
            pairs = zip(values.to_list(), outside, strict=True)
            return [math.inf if lies_outside else value for value, lies_outside in pairs]
    return values.to_list()
