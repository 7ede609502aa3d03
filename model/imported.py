"""A user's own file as a corpus: JSONL, CSV or Parquet -> a directory of `directory.py`."""

import csv
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_runtime.errors import CorpusError
from model import directory
from model.times import seconds

EXTENSIONS = (".jsonl", ".csv", ".parquet")
BAD_ROW, NO_USER, NO_TEXT, BAD_TIMESTAMP = "bad row", "no user", "no text", "unreadable timestamp"
_EMPTY = (None, "")


# line number and values by column; None is a row that cannot be parsed
Row = tuple[int, dict[str, Any] | None]


@dataclass(frozen=True)
class Dropped:
    """The rows left out for one reason."""

    reason: str
    rows: int
    # in the imported file, from 1; for Parquet the row; 0 for what is known of all rows only
    first_line: int


@dataclass(frozen=True)
class ImportReport:
    """What `import_file` kept and left out."""

    rows: int
    kept: int
    users: int
    words: int
    dropped: tuple[Dropped, ...]  # most frequent reason first
    digest: str  # SHA-256 of corpus.jsonl


def import_file(
    path: str | Path,
    out: str | Path,
    user: str = "user",
    text: str = "text",
    timestamp: str | None = None,
) -> ImportReport:
    """Read JSONL, CSV or Parquet and write the directory `out`, whole or not at all.

    user, text and timestamp name the columns; without `timestamp` a column of that name is used if
    there is one. Timestamps are ISO 8601 (UTC where no offset is given) or an epoch in seconds or
    milliseconds. Rows that cannot be used are counted by reason; JSONL and CSV are streamed. Raises
    CorpusError for a file that cannot be read, a missing column, nothing left, too few users to
    split, or an `out` that is not ours.
    """
    path, out = Path(path), Path(out)
    if path.suffix.lower() not in EXTENSIONS:
        raise CorpusError(
            path,
            f"unknown extension {path.suffix!r}, expected one of {', '.join(EXTENSIONS)}",
            "convert or rename the file",
        )
    _require_ours(out)
    read = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[path.suffix.lower()]
    columns = {"user": user, "text": text, "timestamp": timestamp or "timestamp"}
    required = [user, text, *([timestamp] if timestamp else [])]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise CorpusError(
            out, f"cannot be written ({error.strerror})", "choose a folder you may write to"
        ) from None
    try:
        with directory.Writer(temporary) as writer:
            report = _copy(read(path, required, columns), path, required, columns, writer)
        _publish(temporary, out)
    except OSError as error:
        raise CorpusError(
            error.filename or out,
            f"cannot be read or written ({error.strerror})",
            "check the path and the free space",
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already if it was published
    return report


def _copy(
    rows: Iterable[Row],
    path: Path,
    required: list[str],
    columns: dict[str, str],
    writer: directory.Writer,
) -> ImportReport:
    """Give the usable rows to `writer` and count the others by reason."""
    count = kept = 0
    first_line: dict[str, int] = {}
    dropped: Counter[str] = Counter()
    columns_seen: set[str] = set()
    for line_number, values in rows:
        count += 1
        columns_seen.update(values or ())
        if reason := _add(values, columns, writer):
            dropped[reason] += 1
            first_line.setdefault(reason, line_number)
        else:
            kept += 1
    if count == 0:
        raise CorpusError(path, "the file has no rows", "give a file with one message a row")
    if count > dropped[BAD_ROW]:
        _require_columns(path, required, columns_seen)
    if not kept:
        causes = ", ".join(
            f"{reason} {number} (first in line {first_line[reason]})"
            for reason, number in dropped.most_common()
        )
        raise CorpusError(
            path,
            f"none of {count} rows can be used: {causes}",
            "give rows with a user and a text of words",
        )
    places = {reason: (f"{path.name}:{line}",) for reason, line in first_line.items()}
    manifest = writer.finish(path.name, count, dropped, places)
    drops = tuple(
        Dropped(reason, number, first_line.get(reason, 0))
        for reason, number in Counter(manifest.dropped).most_common()
    )
    return ImportReport(
        count, manifest.kept, manifest.users, manifest.words, drops, manifest.digest
    )


def _add(values: dict[str, Any] | None, columns: dict[str, str], writer: directory.Writer) -> str:
    """Why a row is left out, or "" if `writer` has it."""
    if values is None:
        return BAD_ROW
    user, text, timestamp = (values.get(columns[key]) for key in ("user", "text", "timestamp"))
    if isinstance(user, int) and not isinstance(user, bool):
        user = str(user)
    if not isinstance(user, str) or not user.strip():
        return NO_USER
    if not isinstance(text, str) or not text.strip():
        return NO_TEXT
    if not (_is_unicode(user) and _is_unicode(text)):
        return BAD_ROW
    try:
        time = None if timestamp in _EMPTY else seconds(timestamp)
    except (ValueError, OverflowError):
        return BAD_TIMESTAMP
    return writer.add(user.strip(), text, time)


def _is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can carry and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _jsonl(path: Path, required: list[str], columns: dict[str, str]) -> Iterator[Row]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                values = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
            except (ValueError, RecursionError):
                values = None
            yield number, values if isinstance(values, dict) else None


def _csv(path: Path, required: list[str], columns: dict[str, str]) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            try:
                header = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise CorpusError(
                    f"{path}:1",
                    f"not a CSV header ({error})",
                    "give a first line with the names of the columns",
                ) from None
            _require_columns(path, required, header)
            while True:
                try:
                    fields = next(reader)
                except StopIteration:
                    return
                except csv.Error:
                    yield reader.line_num, None
                    continue
                if fields:
                    yield (
                        reader.line_num,
                        dict(zip(header, fields, strict=True))
                        if len(fields) == len(header)
                        else None,
                    )
        except UnicodeDecodeError:
            raise CorpusError(
                f"{path}:{reader.line_num + 1}", "not UTF-8 text", "save the file as UTF-8"
            ) from None


def _parquet(path: Path, required: list[str], columns: dict[str, str]) -> Iterator[Row]:
    try:
        import polars
    except ImportError:
        raise CorpusError(
            path, "reading Parquet needs polars", "install the extra `data`, or give JSONL or CSV"
        ) from None
    try:
        present = list(polars.read_parquet_schema(path))
        _require_columns(path, required, present)
        table = polars.read_parquet(
            path, columns=[name for name in dict.fromkeys(columns.values()) if name in present]
        )
    except (polars.exceptions.PolarsError, OSError) as error:
        raise CorpusError(
            path,
            f"not a readable Parquet file ({type(error).__name__})",
            "write it again, or give JSONL or CSV",
        ) from None
    yield from enumerate(table.iter_rows(named=True), 1)


def _require_columns(path: Path, required: Iterable[str], present: Iterable[str]) -> None:
    present = list(present)
    for name in required:
        if name not in present:
            raise CorpusError(
                path,
                f"no column {name!r}, found {', '.join(sorted(present)[:12]) or 'none'}",
                "name your columns by options",
            )


def _require_ours(out: Path) -> None:
    if out.is_dir() and (not any(out.iterdir()) or directory.is_ours(out)):
        return
    if out.exists():
        raise CorpusError(
            out,
            "exists and is not a corpus directory",
            "choose another --out, nothing there was touched",
        )


def _publish(temporary: Path, out: Path) -> None:
    """Put the finished directory in place of an older one of ours."""
    temporary.chmod(0o755)  # mkdtemp makes it private
    if out.is_dir() and any(out.iterdir()):
        old = temporary.with_name(temporary.name + ".old")
        os.replace(out, old)
        try:
            os.replace(temporary, out)
        except OSError:
            os.replace(old, out)
            raise
        shutil.rmtree(old)
    else:
        os.replace(temporary, out)
