"""The import: a person's own files -> a corpus directory, and a report of what was left out."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from device_runtime.errors import CorpusError
from device_runtime.folder import replaced
from model import directory, fields, scripts
from model.fields import Left
from model.formats import FORMATS, Choice, Note, records, suffix
from model.records import Columns, Damage, Record
from model.sources import Source, listed, require_encoding

MOST_DAMAGED = 0.01  # share of the rows that may be damaged without a word from the person
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|"}
_PLACES = 3  # of one kind of damage that a report names
_KINDS = 20  # of damage that a report tells apart
# language, script, region and variants, as BCP 47 has them
_TAG = re.compile(
    "[a-z]{2,3}(-[a-z]{4})?(-([a-z]{2}|[0-9]{3}))?(-([a-z0-9]{5,8}|[0-9][a-z0-9]{3}))*",
    re.IGNORECASE | re.ASCII,
)
_TAGS = 64  # characters of them all
_AFTER = 1 << 20  # bytes between two words on the progress


@dataclass(frozen=True)
class Reading:
    """How a person's files are to be read."""

    user: str = "user"  # names of columns
    text: str = "text"
    timestamp: str | None = None  # None: `timestamp`, where there is one
    timestamp_format: str | None = None  # strptime's; None: ISO 8601 and epochs
    no_timestamp: bool = False  # leave times out
    delimiter: str | None = None  # of CSV; None: as the header has it
    encoding: str | None = None  # None: UTF-8, or what the file's mark says
    format: str | None = None  # one of `formats.FORMATS`; None: as name and content say
    allow_damage: bool = False  # of more than MOST_DAMAGED of the rows
    language: str = ""  # of the messages: a BCP 47 tag, or several with a `+` between them

    def choice(self) -> Choice:
        """What the readers of files need to know. Raises CorpusError for what cannot be meant."""
        require_encoding(self.encoding)
        if self.format is not None and self.format not in FORMATS:
            raise CorpusError(
                "--format", f"expected one of {', '.join(FORMATS)}, found another", "name one"
            )
        mark = DELIMITERS.get(self.delimiter or "", self.delimiter)
        if mark is not None and (len(mark) != 1 or mark in '"\r\n' or mark.isalnum()):
            raise CorpusError(
                "--delimiter",
                f"expected one character, or {', '.join(DELIMITERS)}, found otherwise",
                "name what stands between two columns",
            )
        if self.no_timestamp and (self.timestamp or self.timestamp_format):
            raise CorpusError(
                "--no-timestamp", "expected no other option on times, found one", "leave one out"
            )
        if self.user == self.text or self.timestamp in (self.user, self.text):
            raise CorpusError(
                "--user, --text, --timestamp",
                "expected three columns, found one twice",
                "name each",
            )
        if self.timestamp_format is not None:
            _require_pattern(self.timestamp_format)
        time = None if self.no_timestamp else self.timestamp or "timestamp"
        columns = Columns(self.user, self.text, time, time_required=self.timestamp is not None)
        return Choice(columns, mark, self.encoding, self.format)


@dataclass(frozen=True)
class Dropped:
    """The rows left out for one reason."""

    reason: str
    rows: int
    damage: bool  # could not be read, rather than left out by name or by cleaning
    expected: str  # of damage; holds nothing that was typed, nor does `found`
    found: str
    # the first ones, as file:line; of Parquet the row; none of what is known of all rows only
    places: tuple[str, ...]


@dataclass(frozen=True)
class ImportReport:
    """What `import_file` kept and left out."""

    rows: int
    kept: int
    users: int
    words: int
    dropped: tuple[Dropped, ...]  # most frequent first
    notes: tuple[str, ...]  # sentences on how the files were read
    digest: str  # SHA-256 of corpus.jsonl


def sources(paths: str | Path | list[str | Path] | list[Path]) -> list[Source]:
    """The files that are read for these paths. Raises CorpusError as `sources.listed` does."""
    return listed([paths] if isinstance(paths, str | Path) else paths, suffix)


def import_file(
    paths: str | Path | list[str | Path] | list[Path],
    out: str | Path,
    reading: Reading = Reading(),
    progress: Callable[[int], None] = lambda read: None,
    sorting: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Read files, folders of parts or standard input (`-`) into the directory `out`, all or none.

    What cannot be used is counted by reason; memory does not grow with the rows read. `progress` is
    told, now and then, how many bytes of the files were read, and then `sorting` how many messages
    of all were put in order. Raises CorpusError for files that
    cannot be read, a missing column, too much damage, nothing left, too few users to split, or an
    `out` that is not ours or holds one of the files.
    """
    out = Path(out)
    choice = reading.choice()
    language = tags(reading.language)
    files = sources(paths)
    _require_apart(files, out)
    with replaced(out, directory.FOLDER) as staging, directory.Writer(staging) as writer:
        told = replace(reading, language=language)
        return _copy(files, choice, told, writer, (progress, sorting))


@dataclass
class _Tally:
    """Counts rows, and what became of those that were not kept."""

    rows: int = 0
    damaged: int = 0
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    places: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)

    def drop(self, source: Source, left: Left | Damage) -> None:
        """Count a row that is left out."""
        key = (left.reason, "", "")
        if isinstance(left, Damage):
            self.damaged += 1
            key = (left.reason, left.expected, left.found)
            if key not in self.counts and len(self.counts) >= _KINDS:
                key = (left.reason, left.expected, "otherwise")
        self.counts[key] += 1
        places = self.places.setdefault(key, [])
        if len(places) < _PLACES:
            places.append(f"{source.name}:{left.line}")

    def dropped(self) -> tuple[Dropped, ...]:
        """Most frequent first."""
        return tuple(
            Dropped(reason, number, bool(expected), expected, told, tuple(self.places[key]))
            for key, number in self.counts.most_common()
            for reason, expected, told in (key,)
        )

    def by_reason(self) -> dict[str, int]:
        """Reason -> rows."""
        reasons: Counter[str] = Counter()
        for (reason, _, _), number in self.counts.items():
            reasons[reason] += number
        return dict(reasons)

    def places_by_reason(self) -> dict[str, list[str]]:
        """Reason -> where the first ones are."""
        reasons: dict[str, list[str]] = {}
        for (reason, _, _), places in self.places.items():
            reasons.setdefault(reason, []).extend(places)
        return {reason: places[:_PLACES] for reason, places in reasons.items()}


def _copy(
    files: list[Source],
    choice: Choice,
    reading: Reading,
    writer: directory.Writer,
    told: tuple[Callable[[int], None], Callable[[int, int], None] | None],
) -> ImportReport:
    """Give the usable rows to `writer`, count the others, and have it finish; `told` is told how
    far reading is, and how far sorting.
    """
    tally, reader = _Tally(), fields.Reader(reading.timestamp_format)
    notes: dict[str, None] = {}
    for source, record in _all(files, choice, told[0]):
        if isinstance(record, Note):
            notes[f"{source.name}: {record.text}"] = None
            continue
        tally.rows += 1
        message = reader.message(record) if isinstance(record, Record) else record
        if isinstance(message, Damage | Left):
            tally.drop(source, message)
        elif reason := writer.add(*message):
            tally.drop(source, Left(record.line, reason))
    where = ", ".join(source.name for source in files[:_PLACES]) + ", ..." * (len(files) > _PLACES)
    _require_enough(where, tally, reading)
    said = (*notes, *_on_times(reader), *_on_headers(reader), *_on_scripts(writer))
    dropped = tally.by_reason()
    manifest = writer.finish(
        where, tally.rows, dropped, tally.places_by_reason(), said, told[1], reading.language
    )
    late = [
        Dropped(reason, rows - dropped.get(reason, 0), False, "", "", ())
        for reason, rows in manifest.dropped.items()
        if rows > dropped.get(reason, 0)  # known of all rows only
    ]
    return ImportReport(
        tally.rows,
        manifest.kept,
        manifest.users,
        manifest.words,
        (*tally.dropped(), *late),
        said,
        manifest.digest,
    )


def _all(
    files: list[Source], choice: Choice, progress: Callable[[int], None]
) -> Iterator[tuple[Source, Record | Damage | Left | Note]]:
    """The records of every file, one file after the other."""
    done = told = 0

    def read(more: int) -> None:
        nonlocal done, told
        done += more
        if done - told >= _AFTER:
            told = done
            progress(done)

    for source in files:
        for record in records(source, choice, read):
            yield source, record
    progress(done)


def _require_enough(where: str, tally: _Tally, reading: Reading) -> None:
    """Raises CorpusError for no rows, none kept, or more damage than is allowed."""
    if tally.rows == 0:
        raise CorpusError(where, "the file has no rows", "give a file with one message a row")
    kept = tally.rows - tally.counts.total()
    told = "; ".join(
        f"{drop.reason} {drop.rows} (first in {drop.places[0]}"
        + (f": expected {drop.expected}, found {drop.found})" if drop.damage else ")")
        for drop in tally.dropped()
        if drop.damage or not kept
    )
    if not kept:
        raise CorpusError(
            where,
            f"none of {tally.rows} rows can be used: {told}",
            _remedy(tally),
        )
    if tally.damaged > MOST_DAMAGED * tally.rows and not reading.allow_damage:
        raise CorpusError(
            where,
            f"expected at most one row in a hundred to be damaged, found {tally.damaged} of "
            f"{tally.rows}: {told}",
            f"{_remedy(tally)}, or leave them out with --allow-damage",
        )


def _remedy(tally: _Tally) -> str:
    """What to do about what was dropped most often."""
    (reason, _, _), _ = tally.counts.most_common(1)[0]
    if reason == fields.BAD_TIME:
        return "name their --timestamp-format, or read none with --no-timestamp"
    return "mend them" if tally.damaged else "give rows with a user and a text of words"


def _on_times(reader: fields.Reader) -> Iterator[str]:
    for unit, rows in reader.times.most_common():
        if unit and unit != "dates":
            yield f"{rows:,} times read as {unit}"
    without = reader.times[""]
    if without and without < reader.times.total():
        yield f"messages without a time: {without:,}"


def tags(language: str) -> str:
    """A language as BCP 47 writes it, or several with "+" between them, each once; empty stays so.
    Raises CorpusError for what has another shape.

    >>> tags("EN"), tags("zh-hant-tw + de")
    ('en', 'zh-Hant-TW+de')
    """
    if not language.strip():
        return ""
    parts = [part.strip() for part in language.split("+")]
    if len(language) > _TAGS or not all(_TAG.fullmatch(part) for part in parts):
        raise CorpusError(
            "--language",
            "expected tags such as en, pt-BR or zh-Hant, at most 64 characters, found another",
            "name the language by its tag; several as en+de",
        )
    return "+".join(dict.fromkeys(map(_as_usual, parts)))


def _as_usual(tag: str) -> str:
    first, *rest = tag.lower().split("-")
    cased = (
        part.upper() if len(part) == 2 else part.title() if len(part) == 4 else part
        for part in rest
    )
    return "-".join([first, *cased])


def _on_headers(reader: fields.Reader) -> Iterator[str]:
    if reader.headers:
        yield f"messages that mail headers were cut off: {reader.headers:,}"


def _on_scripts(writer: directory.Writer) -> Iterator[str]:
    if said := scripts.advice(writer.share_spaceless):
        yield said


def _require_pattern(pattern: str) -> None:
    try:
        datetime.strptime(datetime(2021, 3, 1).strftime(pattern), pattern)
    except ValueError:
        raise CorpusError(
            "--timestamp-format",
            "expected a format of strptime's, found another",
            "give one such as '%d.%m.%Y %H:%M'",
        ) from None


def _require_apart(files: list[Source], out: Path) -> None:
    """Raises CorpusError if a file to read lies in the folder to write."""
    folder = out.resolve()
    for source in files:
        if source.regular and source.path.resolve().is_relative_to(folder):
            raise CorpusError(
                source.name,
                "is to be read, but lies in the folder to be written",
                "choose another --out, nothing there was touched",
            )
