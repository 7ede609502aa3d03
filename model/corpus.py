"""Corpora: what people typed, cleaned and split by user. Protocol nwp-v1, steps 2 to 4.

`load` reads the built-in corpus or a directory that `import_file` wrote; both end in the same
preparation, so they are scored alike. TFF's own corpora, in `tff_corpora.py`, keep the rules for
text and bring their own splits; their users are read when they are asked for.
"""

import csv
import hashlib
import importlib.util
import itertools
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from device_runtime.config import from_json, to_json
from device_runtime.errors import ConfigError, CorpusError
from device_runtime.text import is_word, tokenise

SPLITS = ("train", "validation", "test")
TFF_CORPORA = ("stackoverflow", "shakespeare")
EXTENSIONS = (".jsonl", ".csv", ".parquet")
FORMAT = "fedboard-corpus-1"
LONG = 8  # tokens from which an utterance seen in train would be recited rather than predicted
NO_WORD, MASHING, IN_TRAIN = "no word", "mashing", "verbatim in train"
BAD_ROW, NO_USER, NO_TEXT, BAD_TIMESTAMP = "bad row", "no user", "no text", "unreadable timestamp"
_MILLISECONDS = 1e11  # a larger epoch is in milliseconds: in seconds it would be the year 5138
_EMPTY = (None, "")


@dataclass(frozen=True, slots=True)
class Utterance:
    """One message: what was typed, its tokens, and when (seconds since 1970; None if unknown)."""

    text: str
    tokens: tuple[str, ...]
    time: float | None = None


Users = Mapping[
    str, Sequence[Utterance]
]  # user -> utterances in time order; users in alphabetical order


class LazyUsers(Mapping[str, Sequence[Utterance]]):
    """Users whose names are known and whose utterances are read each time they are asked for; the
    last `keep` users read are remembered.

    `len`, `in` and iteration over names read nothing. `items` and `values` read one user after the
    other, so a loop over all holds one at a time. Cleaning happens on reading: unlike in a dict, a
    user can turn out to have no utterance left.
    """

    def __init__(
        self, names: Iterable[str], read: Callable[[str], Sequence[Utterance]], keep: int = 0
    ):
        """read is given one of the names; what it raises reaches whoever asked."""
        self._names = dict.fromkeys(names)
        self._read = lru_cache(keep)(read)

    def __getitem__(self, name: str) -> Sequence[Utterance]:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # Mapping's own would read the user


@dataclass(frozen=True)
class Corpus:
    """A cleaned corpus, split by user. `digest` is the SHA-256 of the file it was read from; TFF's
    file is too large: of the users' names.
    """

    name: str
    digest: str
    train: Users
    validation: Users
    test: Users
    dropped: dict[str, int] | None = field(
        default_factory=dict
    )  # reason -> utterances left out by cleaning; None: cleaned on reading, not counted
    most: int | None = (
        # users of a split that vocabulary, statistics and scores are taken from, by `sample`; None:
        # all
        None
    )

    def split(self, name: str) -> Users:
        """Raises CorpusError for a name that is not a split."""
        if name not in SPLITS:
            raise CorpusError(
                self.name,
                f"expected a split, one of {', '.join(SPLITS)}, found {name!r}",
                "name one of them",
            )
        return getattr(self, name)


@dataclass(frozen=True)
class Size:
    users: int
    utterances: int
    words: int


@dataclass(frozen=True)
class Stats:
    """What `fedboard data stats` prints. Of a corpus with a `most`, everything but `users` is about
    that many users of each split.
    """

    name: str
    users: dict[str, int]  # of each split, read or not
    most: int | None  # users of a split that were read at most; None: all
    total: Size
    train: Size
    validation: Size
    test: Size
    median_words: float  # per user
    median_utterances: float
    distinct_words: int
    largest_ten: float  # share of all words that the ten users with most words typed, 0..1
    dropped: dict[str, int] | None  # None: not counted


@dataclass(frozen=True)
class Dropped:
    reason: str
    rows: int
    first_line: int  # in the imported file, from 1; for Parquet the row


@dataclass(frozen=True)
class ImportReport:
    """What `import_file` kept and left out."""

    rows: int
    kept: int
    users: int
    words: int
    dropped: tuple[Dropped, ...]  # most frequent reason first
    digest: str  # SHA-256 of corpus.jsonl


@dataclass(frozen=True)
class _Manifest:
    """corpus.json: says that the directory is ours and what corpus.jsonl must be."""

    format: str
    source: str  # name of the imported file
    rows: int
    kept: int
    users: int
    words: int
    dropped: dict[str, int]
    digest: str


# --- reading
# ------------------------------------------------------------------------------------------------


def load(name: str | Path, cache: str | Path | None = None) -> Corpus:
    """The corpus `chitchat` (1,315 people, 258k chat messages), a directory written by
    `import_file`, or TFF's `stackoverflow` or `shakespeare`.

    TFF's are fetched once into the folder `cache`: by default $FEDBOARD_CACHE, or ~/.tff as in TFF
    itself. They cost the import of TFF (20 s). Raises CorpusError for another name, an altered
    directory or file, too few users to fill every split, or no network where one is needed.
    """
    if str(name) == "chitchat":
        return _chitchat()
    if str(name) in TFF_CORPORA:
        from model import tff_corpora

        return tff_corpora.load(str(name), cache)
    path = Path(name)
    if path.is_file():
        raise CorpusError(
            path,
            "is a file, expected `chitchat` or a corpus directory",
            f"run `fedboard data import {path} --out DIR` first",
        )
    if not path.is_dir():
        raise CorpusError(
            path,
            "no such corpus, expected `chitchat` or a directory",
            "make one with `fedboard data import FILE --out DIR`",
        )
    return _directory(path)


def prepare(name: str, digest: str, rows: Iterable[tuple[str, str, float | None]]) -> Corpus:
    """Rows (user, text, time) cleaned and split by user.

    A user's utterances are in time order, equal times in the order given; without a time for every
    utterance the order given stands. Raises CorpusError if a split would be empty.
    """
    dropped: Counter[str] = Counter()
    splits: dict[str, dict[str, list[Utterance]]] = {split: defaultdict(list) for split in SPLITS}
    home: dict[str, dict[str, list[Utterance]]] = {}
    for user, text, time in rows:
        tokens = tokenise(text)
        if reason := unfit(tokens):
            dropped[reason] += 1
            continue
        if user not in home:
            home[user] = splits[split_of(user)]
        home[user][user].append(_utterance(text, tokens, time))
    recited = {
        utterance.tokens
        for utterances in splits["train"].values()
        for utterance in utterances
        if len(utterance.tokens) >= LONG
    }
    for split in SPLITS[1:]:
        for user, utterances in list(splits[split].items()):
            kept = [utterance for utterance in utterances if utterance.tokens not in recited]
            dropped[IN_TRAIN] += len(utterances) - len(kept)
            splits[split][user] = kept
            if not kept:
                del splits[split][user]
    _require_users(name, len(home), {split: len(users) for split, users in splits.items()})
    ordered = {
        split: {user: _in_time_order(users[user]) for user in sorted(users)}
        for split, users in splits.items()
    }
    return Corpus(
        name, digest, ordered["train"], ordered["validation"], ordered["test"], dict(dropped)
    )


def cleaned(rows: Iterable[tuple[str, float | None]]) -> tuple[Utterance, ...]:
    """One user's rows (text, time) without those that are `unfit`, in time order as in
    `prepare`.
    """
    tokenised = ((text, tokenise(text), time) for text, time in rows)
    return tuple(
        _in_time_order(
            [
                _utterance(text, tokens, time)
                for text, tokens, time in tokenised
                if not unfit(tokens)
            ]
        )
    )


def _utterance(text: str, tokens: list[str], time: float | None) -> Utterance:
    return Utterance(
        text, tuple(map(sys.intern, tokens)), time
    )  # one object a word: chitchat takes 240 MB, not 380


def unfit(tokens: list[str]) -> str:
    """Why cleaning leaves an utterance out, or "" if it stays. Source: protocol nwp-v1, step 3."""
    if not any(map(is_word, tokens)):
        return NO_WORD
    if len(tokens) >= 6 and len(set(tokens)) < 0.34 * len(tokens):
        return MASHING
    return ""


def split_of(user: str) -> str:
    """The split a user belongs to, the same in every corpus and on every machine. Source: protocol
    nwp-v1, step 4.
    """
    slot = int(hashlib.sha256(f"nwp-v1:{user}".encode()).hexdigest()[:8], 16) % 100
    return "test" if slot < 20 else "validation" if slot < 30 else "train"


def sample(users: Users, most: int | None) -> Users:
    """At most `most` of these users, evenly spaced in the order of their names, so the same ones
    each time; None: all. Reads nothing.
    """
    if most is None or len(users) <= most:
        return users
    names = list(users)
    return only(users, (names[i * len(names) // most] for i in range(most)))


def only(users: Users, names: Iterable[str]) -> Users:
    """The users of these names, read from `users` when they are asked for."""
    return LazyUsers(names, users.__getitem__)


def token_lists(users: Users, most: int | None = None) -> Iterator[tuple[str, ...]]:
    """The tokens of every utterance of these users (of a `sample` of at most `most`), one user
    after the other.
    """
    return (
        utterance.tokens for utterances in sample(users, most).values() for utterance in utterances
    )


def stats(corpus: Corpus) -> Stats:
    """Users, utterances and words by split, and how unevenly they are spread; of at most
    `corpus.most` users of each split.

    Raises CorpusError if cleaning leaves no utterance of them.
    """
    words: Counter[str] = Counter()
    counts: dict[str, list[tuple[int, int]]] = {}  # split -> words and utterances of each user
    for split in SPLITS:
        counts[split] = []
        for utterances in sample(corpus.split(split), corpus.most).values():
            if utterances:
                own = Counter(
                    token
                    for utterance in utterances
                    for token in utterance.tokens
                    if is_word(token)
                )
                counts[split].append((own.total(), len(utterances)))
                words.update(own)
    everyone = sorted(itertools.chain.from_iterable(counts.values()), reverse=True)
    if not everyone:
        raise CorpusError(
            corpus.name,
            "no utterance is left after cleaning",
            "give rows with a user and a text of words",
        )
    sizes = {
        split: Size(len(own), sum(n for _, n in own), sum(n for n, _ in own))
        for split, own in counts.items()
    }
    total = Size(
        *(
            sum(getattr(size, name) for size in sizes.values())
            for name in ("users", "utterances", "words")
        )
    )
    return Stats(
        corpus.name,
        {split: len(corpus.split(split)) for split in SPLITS},
        corpus.most,
        total,
        **sizes,
        median_words=statistics.median(n for n, _ in everyone),
        median_utterances=statistics.median(n for _, n in everyone),
        distinct_words=len(words),
        largest_ten=sum(n for n, _ in everyone[:10]) / total.words,
        dropped=corpus.dropped,
    )


def _chitchat() -> Corpus:
    spec = importlib.util.find_spec("chitchat_dataset")
    if spec is None or spec.origin is None:
        raise CorpusError(
            "chitchat",
            "the package chitchat-dataset is not installed",
            "install the extra `simulation`, or import your own corpus",
        )
    path = Path(spec.origin).with_name(
        "dataset.json"
    )  # read directly: importing the package brings nothing but this path
    try:
        data = path.read_bytes()
        conversations = json.loads(data)
        rows = [
            (
                message["sender"],
                message["text"],
                datetime.fromisoformat(message["timestamp"]).timestamp(),
            )
            for conversation in conversations.values()
            for turn in conversation["messages"]
            for message in turn
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorpusError(
            "chitchat",
            f"its dataset.json cannot be read ({type(error).__name__})",
            "reinstall chitchat-dataset 0.9.0",
        ) from None
    return prepare("chitchat", hashlib.sha256(data).hexdigest(), rows)


def _directory(path: Path) -> Corpus:
    again = "import the corpus again with `fedboard data import`"
    manifest = _manifest(path)
    if manifest is None:
        raise CorpusError(
            path,
            "not a corpus directory (no corpus.json of ours)",
            "give one written by `fedboard data import`",
        )
    if manifest.format != FORMAT:
        raise CorpusError(
            path / "corpus.json", f"expected format {FORMAT}, found {manifest.format[:40]!r}", again
        )
    try:
        data = (path / "corpus.jsonl").read_bytes()
    except OSError as error:
        raise CorpusError(
            path / "corpus.jsonl", f"cannot be read ({error.strerror})", again
        ) from None
    if hashlib.sha256(data).hexdigest() != manifest.digest:
        raise CorpusError(
            path / "corpus.jsonl",
            "its SHA-256 is not the one in corpus.json: the file was altered",
            again,
        )
    rows = (
        json.loads(line) for line in data.splitlines()
    )  # ours by its hash, so every line has these keys
    corpus = prepare(
        path.name,
        manifest.digest,
        ((row["user"], row["text"], row.get("timestamp")) for row in rows),
    )
    return replace(corpus, dropped=dict(Counter(manifest.dropped) + Counter(corpus.dropped)))


def _manifest(path: Path) -> _Manifest | None:
    try:
        return from_json(_Manifest, (path / "corpus.json").read_bytes(), str(path / "corpus.json"))
    except (OSError, ConfigError):
        return None


def _in_time_order(utterances: list[Utterance]) -> list[Utterance]:
    if any(utterance.time is None for utterance in utterances):
        return utterances
    return sorted(utterances, key=lambda utterance: utterance.time)  # type: ignore[arg-type,return-value]


def _require_users(where: object, users: int, by_split: dict[str, int]) -> None:
    empty = [split for split in SPLITS if not by_split.get(split)]
    if users == 0:
        raise CorpusError(
            where,
            "no utterance is left after cleaning",
            "give rows with a user and a text of words",
        )
    if empty:
        raise CorpusError(
            where,
            f"{users} user{'s' * (users > 1)}, none of whom falls into {' or '.join(empty)}",
            "give at least 3 users, better 50: the user's id decides on the split (70 % train, 10 "
            "% validation, 20 % test)",
        )


# --- importing
# ------------------------------------------------------------------------------------------------


def import_file(
    path: str | Path,
    out: str | Path,
    user: str = "user",
    text: str = "text",
    timestamp: str | None = None,
) -> ImportReport:
    """Read JSONL, CSV or Parquet and write the directory `out`: corpus.jsonl and corpus.json, whole
    or not at all.

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
        with open(temporary / "corpus.jsonl", "wb") as file:
            report = _copy(read(path, required, columns), path, required, columns, file)
        dropped = {drop.reason: drop.rows for drop in report.dropped}
        manifest = _Manifest(
            FORMAT,
            path.name,
            report.rows,
            report.kept,
            report.users,
            report.words,
            dropped,
            report.digest,
        )
        (temporary / "corpus.json").write_bytes(to_json(manifest))
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


Row = tuple[
    int, dict[str, Any] | None
]  # line number and values by column; None is a row that cannot be parsed


def _copy(
    rows: Iterable[Row], path: Path, required: list[str], columns: dict[str, str], file: BinaryIO
) -> ImportReport:
    """Write the usable rows to `file` as lines of user, text and timestamp; count the others by
    reason.
    """
    count = kept = words = 0
    first_line: dict[str, int] = {}
    dropped: Counter[str] = Counter()
    users: set[str] = set()
    columns_seen: set[str] = set()
    digest = hashlib.sha256()
    for line_number, values in rows:
        count += 1
        columns_seen.update(values or ())
        reason, row, tokens = _usable(values, columns)
        if reason:
            dropped[reason] += 1
            first_line.setdefault(reason, line_number)
            continue
        line = json.dumps(row, ensure_ascii=True).encode() + b"\n"
        digest.update(line)
        file.write(line)
        kept += 1
        words += sum(map(is_word, tokens))
        users.add(row["user"])
    if count == 0:
        raise CorpusError(path, "the file has no rows", "give a file with one message a row")
    if count > dropped[BAD_ROW]:
        _require_columns(path, required, columns_seen)
    found = tuple(
        Dropped(reason, number, first_line[reason]) for reason, number in dropped.most_common()
    )
    if not kept:
        causes = ", ".join(
            f"{drop.reason} {drop.rows} (first in line {drop.first_line})" for drop in found
        )
        raise CorpusError(
            path,
            f"none of {count} rows can be used: {causes}",
            "give rows with a user and a text of words",
        )
    _require_users(path, len(users), Counter(map(split_of, users)))
    return ImportReport(count, kept, len(users), words, found, digest.hexdigest())


def _usable(
    values: dict[str, Any] | None, columns: dict[str, str]
) -> tuple[str, dict[str, Any], list[str]]:
    """(reason to drop the row or "", the row as it is written, its tokens)."""
    if values is None:
        return BAD_ROW, {}, []
    user, text, timestamp = (values.get(columns[key]) for key in ("user", "text", "timestamp"))
    if isinstance(user, int) and not isinstance(user, bool):
        user = str(user)
    if not isinstance(user, str) or not user.strip():
        return NO_USER, {}, []
    if not isinstance(text, str) or not text.strip():
        return NO_TEXT, {}, []
    if not (_is_unicode(user) and _is_unicode(text)):
        return BAD_ROW, {}, []
    row: dict[str, Any] = {"user": user.strip(), "text": text}
    if timestamp not in _EMPTY:
        try:
            row["timestamp"] = seconds(timestamp)
        except (ValueError, OverflowError):
            return BAD_TIMESTAMP, {}, []
    tokens = tokenise(text)
    return unfit(tokens), row, tokens


def _is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can carry and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def seconds(timestamp: object) -> float:
    """ISO 8601 text, an epoch in seconds or milliseconds, or a date, as seconds since 1970.

    Raises ValueError or OverflowError for anything else.
    """
    if isinstance(timestamp, str):
        text = timestamp.strip()
        try:
            timestamp = float(text)
        except ValueError:
            timestamp = datetime.fromisoformat(text)
    if isinstance(timestamp, datetime):
        return (timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=UTC)).timestamp()
    if isinstance(timestamp, date):
        return datetime(timestamp.year, timestamp.month, timestamp.day, tzinfo=UTC).timestamp()
    if (
        not isinstance(timestamp, int | float)
        or isinstance(timestamp, bool)
        or not math.isfinite(timestamp)
    ):
        raise ValueError(f"not a time: {timestamp!r}"[:60])
    return float(timestamp / 1000 if abs(timestamp) > _MILLISECONDS else timestamp)


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
    if out.is_dir() and (not any(out.iterdir()) or _manifest(out)):
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
