"""Corpus directories: how a corpus of any size lies on disk, is written there and opened again.

    corpus.jsonl   a message a line: users in alphabetical order, each in time order
    users.jsonl    a user a line: id, split, bytes and messages in corpus.jsonl, words
    corpus.json    says that the directory is ours, and what the other two must be

Everything is cleaned, sorted and counted when it is written, with memory that does not grow with
the messages; whoever opens it reads one user at a time. Format 1 had no users.jsonl and is cleaned
in memory on opening. A corpus whose language was told is of format 3; it is format 2 otherwise.
"""

import hashlib
import itertools
import json
import math
import operator
import os
import weakref
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, overload

import numpy as np

from device_runtime import folder
from device_runtime.config import from_json, to_json
from device_runtime.errors import ConfigError, CorpusError
from device_runtime.text import is_word, tokenise
from model import scripts
from model.corpus import (
    IN_TRAIN,
    LONG,
    SPLITS,
    Corpus,
    LazyUsers,
    Noted,
    Utterance,
    prepare,
    require_users,
    split_of,
    unfit,
    utterance_of,
)
from model.sorting import Row, Sorter

FORMAT = "fedboard-corpus-2"
WITH_LANGUAGE = "fedboard-corpus-3"
EARLIER = "fedboard-corpus-1"
DATA, INDEX, MARKER = "corpus.jsonl", "users.jsonl", "corpus.json"
FILES = (DATA, INDEX, MARKER)  # all that is ever written into a corpus directory
AGAIN = "import the corpus again with `fedboard data import`"
MANY = 1_000_000  # messages from which scores are taken of a sample of the users
SAMPLE = 1000  # of them, in each split
LARGE = 4 << 20  # bytes of one user's messages from which they are read one by one
_NO_TIME = -math.inf  # sorts before every time
_NEW_WORDS = 1 << 17  # words that are remembered as they are before they are counted by hash


@dataclass(frozen=True)
class Manifest:
    """corpus.json: says that the directory is ours and what the other files must be."""

    format: str
    source: str  # what was imported, by name
    rows: int  # of the source
    kept: int  # messages in corpus.jsonl
    users: int
    words: int
    distinct_words: int
    digest: str  # SHA-256 of corpus.jsonl
    index: str  # SHA-256 of users.jsonl
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> rows of the source
    # reason -> the first places in the source, such as chat.csv:12
    places: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what else the import said, a sentence each
    # BCP 47 tags of what was typed, with "+" between them; of format 3 alone
    language: str = ""

    def encoded(self) -> bytes:
        """As corpus.json: without a language it is one of format 2, with no key unknown there."""
        table = dict(vars(self))
        if not self.language:
            del table["language"]
        return to_json(table)


@dataclass(frozen=True)
class _Earlier:
    """corpus.json of format 1."""

    format: str
    source: str
    rows: int
    kept: int
    users: int
    words: int
    dropped: dict[str, int]
    digest: str


@dataclass(frozen=True)
class _User:
    """A line of users.jsonl, written as a list."""

    name: str
    split: str
    bytes: int
    messages: int
    words: int


class Writer:
    """Fills an empty folder with a corpus: messages come in any order, and are cleaned.

        with Writer(folder) as writer:
            for user, text, time in messages:
                reason = writer.add(user, text, time)
            manifest = writer.finish("chat.csv", rows, dropped)

    The corpus is the one that `corpus.prepare` makes of the same messages. Without `finish`
    nothing of worth is left in the folder.
    """

    def __init__(self, folder: Path):
        """`folder` is there and empty. Making and publishing it is up to the caller."""
        self._folder = folder
        self._sorter = Sorter(folder / ".sorting")
        self._by_arrival = Sorter(folder / ".arrivals")
        self._splits: dict[str, str] = {}  # of each user with a message
        self._count = 0
        # 8 bytes of each message of train that is long enough to be recited
        self._recited = array("Q")
        self._words = _Distinct()
        self._in_runs = self._letters = 0  # letters in scripts without spaces, and all

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._sorter.remove()
        self._by_arrival.remove()

    def add(self, user: str, text: str, time: float | None) -> str:
        """Why cleaning leaves a message out, or "" if it is kept so far.

        user and text are Unicode that UTF-8 can carry, time is finite seconds since 1970 or None.
        Raises OSError if the disk is full.
        """
        tokens = tokenise(text)
        if reason := unfit(tokens):
            return reason
        split = self._splits.get(user)
        if split is None:
            split = self._splits[user] = split_of(user)
        mark = _mark(tokens) if len(tokens) >= LONG else 0
        if mark and split == "train":
            self._recited.append(mark)
        words = [token for token in tokens if is_word(token)]
        self._words.add(words)
        in_runs, every = scripts.letters(words)
        self._in_runs += in_runs
        self._letters += every
        line: dict[str, Any] = {"user": user, "text": text}
        if time is not None:
            line["timestamp"] = float(time)
        data = json.dumps(line).encode() + b"\n"
        when = _NO_TIME if time is None else time
        self._sorter.add((user, when, self._count, mark, len(words), data))
        self._count += 1
        return ""

    @property
    def share_spaceless(self) -> float:
        """Share of the letters added that are of scripts without spaces."""
        return self._in_runs / max(self._letters, 1)

    def finish(
        self,
        source: str,
        rows: int,
        dropped: Mapping[str, int],
        places: Mapping[str, Iterable[str]] | None = None,
        notes: Iterable[str] = (),
        progress: Callable[[int, int], None] | None = None,
        language: str = "",
    ) -> Manifest:
        """Sort what was added and write the three files: the manifest, as written.

        source names what was imported and rows says how many rows it had. dropped counts by reason
        the rows that were left out, those that `add` gave a reason for among them; those that turn
        out to stand in train are added here. places and notes are kept as they are. progress is
        called with (messages written or left out, all messages). Raises CorpusError if a split
        would be empty, OSError if the disk is full.
        """
        if self._recited:
            np.frombuffer(self._recited, np.uint64).sort()  # in place
        written = _Written(self._recited, self._splits, self._by_arrival)
        with open(self._folder / DATA, "wb") as data, open(self._folder / INDEX, "wb") as index:
            rows_in_order = _told(self._sorter.drain(), self._count, progress)
            written.write(rows_in_order, data, index)
        require_users(source, len(self._splits), written.users)
        manifest = Manifest(
            WITH_LANGUAGE if language else FORMAT,
            source,
            rows,
            written.messages,
            written.users.total(),
            written.words,
            len(self._words),
            written.data.hexdigest(),
            written.index.hexdigest(),
            dict(Counter(dropped) + Counter({IN_TRAIN: written.recitals})),
            {reason: tuple(where) for reason, where in (places or {}).items()},
            tuple(notes),
            language,
        )
        (self._folder / MARKER).write_bytes(manifest.encoded())
        return manifest


class _Written:
    """The data and the index on their way to disk, and what was counted of them."""

    def __init__(self, recited: Sequence[int], splits: Mapping[str, str], by_arrival: Sorter):
        """recited holds the marks of train in order."""
        self._recited, self._splits, self._by_arrival = recited, splits, by_arrival
        self.data, self.index = hashlib.sha256(), hashlib.sha256()
        self.messages = self.words = self.recitals = 0
        self.users: Counter[str] = Counter()  # of each split

    def write(self, rows: Iterable[Row], data: BinaryIO, index: BinaryIO) -> None:
        """Rows come in order: by user, then those without a time, then by time."""
        for name, own in itertools.groupby(rows, operator.itemgetter(0)):
            split = self._splits[name]
            size = messages = words = 0
            for number, line in self._in_order(own if split == "train" else self._new(own)):
                data.write(line)
                self.data.update(line)
                size, messages, words = size + len(line), messages + 1, words + number
            if messages:
                entry = json.dumps([name, split, size, messages, words]).encode() + b"\n"
                index.write(entry)
                self.index.update(entry)
                self.messages, self.words = self.messages + messages, self.words + words
                self.users[split] += 1

    def _new(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Those that do not stand in train word for word."""
        for row in rows:
            mark = row[3]
            place = bisect_left(self._recited, mark) if mark else len(self._recited)
            if place < len(self._recited) and self._recited[place] == mark:
                self.recitals += 1
            else:
                yield row

    def _in_order(self, rows: Iterable[Row]) -> Iterator[tuple[int, bytes]]:
        """Words and line of each: one user's, by time if each has one, else as they were given."""
        rows = iter(rows)
        first = next(rows, None)
        if first is None:
            return
        rows = itertools.chain([first], rows)
        if first[1] != _NO_TIME:
            for *_, words, line in rows:
                yield words, line
            return
        for _, _, arrival, _, words, line in rows:
            self._by_arrival.add((arrival, words, line))
        for _, words, line in self._by_arrival.drain():
            yield words, line


class _Distinct:
    """Counts distinct words with 8 bytes for each."""

    def __init__(self) -> None:
        self._new: set[str] = set()
        self._hashes = _NOTHING  # in order

    def add(self, words: Iterable[str]) -> None:
        self._new.update(words)
        if len(self._new) >= _NEW_WORDS:
            self._settle()

    def __len__(self) -> int:
        self._settle()
        return len(self._hashes)

    def _settle(self) -> None:
        hashes = np.fromiter((_mark([word]) for word in self._new), np.uint64, len(self._new))
        self._hashes = np.union1d(self._hashes, hashes)
        self._new.clear()


_NOTHING = np.zeros(0, np.uint64)


def _mark(tokens: Iterable[str]) -> int:
    """64 bits that stand for these tokens, never 0."""
    data = " ".join(tokens).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1


def _told(
    rows: Iterable[Row], number: int, progress: Callable[[int, int], None] | None
) -> Iterator[Row]:
    """The rows, of which progress is told now and then."""
    for done, row in enumerate(rows, 1):
        yield row
        if progress and (done % 1000 == 0 or done == number):
            progress(done, number)


def is_ours(path: Path) -> bool:
    """Whether a directory holds a corpus that was written here, in this format or an earlier."""
    try:
        return not isinstance(_manifest(path), str)
    except CorpusError:
        return False


# what data import writes; "a corpus" in its errors
FOLDER = folder.Kind("a corpus", is_ours, FILES, MARKER, error=CorpusError)


def open_directory(path: Path) -> Corpus:
    """The corpus in a directory that `Writer` filled, or an earlier version of Fedboard.

    Users are read when they are asked for. Raises CorpusError if the directory is not one, is of
    another format, or was altered.
    """
    path = Path(path)
    folder.settle(path, FOLDER)
    manifest = _manifest(path)
    if isinstance(manifest, str):
        raise CorpusError(
            path / MARKER,
            f"expected format {EARLIER}, {FORMAT} or {WITH_LANGUAGE}, found {manifest[:40]!r}",
            AGAIN,
        )
    if isinstance(manifest, _Earlier):
        return _open_earlier(path, manifest)
    data = _Data(path, manifest)
    splits = {split: LazyUsers(data.names(split), data.utterances) for split in SPLITS}
    require_users(path, manifest.users, {split: len(users) for split, users in splits.items()})
    train, validation, test = splits.values()
    return Corpus(
        path.name,
        manifest.digest,
        train,
        validation,
        test,
        manifest.dropped,
        SAMPLE if manifest.kept > MANY else None,
        data.noted(manifest),
        manifest.language,
    )


class _Data:
    """corpus.jsonl, held open, so that a later import in its place changes nothing here."""

    def __init__(self, path: Path, manifest: Manifest):
        """Raises CorpusError if one of the files is not the one of the manifest."""
        self._path = path / DATA
        users = list(_index(path / INDEX, manifest))
        self._places = {user.name: place for place, user in enumerate(users)}
        self._splits = [SPLITS.index(user.split) for user in users]
        self._sizes = array("Q", (user.bytes for user in users))
        self._ends = array("Q", itertools.accumulate(self._sizes))
        self._messages = array("Q", (user.messages for user in users))
        self._words = array("Q", (user.words for user in users))
        with _opened(self._path) as file:
            _require_digest(self._path, file, manifest.digest)
            if os.fstat(file.fileno()).st_size != (self._ends[-1] if users else 0):
                raise CorpusError(path / INDEX, f"does not fit {DATA}", AGAIN)
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)

    def names(self, split: str) -> list[str]:
        """The users of a split, in alphabetical order."""
        return list(self._of(split, self._places))

    def noted(self, manifest: Manifest) -> Noted:
        """What manifest and index say of the corpus."""
        words, messages = (
            {split: array("Q", self._of(split, numbers)) for split in SPLITS}
            for numbers in (self._words, self._messages)
        )
        distinct, places = manifest.distinct_words, manifest.places
        return Noted(manifest.rows, words, messages, distinct, places, manifest.notes)

    def _of(self, split: str, values: Iterable[Any]) -> Iterator[Any]:
        which = SPLITS.index(split)
        return (value for value, own in zip(values, self._splits, strict=True) if own == which)

    def utterances(self, name: str) -> Sequence[Utterance]:
        """A user's, in time order; read one by one if they are many.

        Raises CorpusError if they are no longer there.
        """
        place = self._places[name]
        size, end = self._sizes[place], self._ends[place]
        if size >= LARGE:
            messages = _Messages(self, end - size, end)
            self._require_all(len(messages), place)
            return messages
        lines = self.read(end - size, end).splitlines()
        self._require_all(len(lines), place)
        return [self.utterance(line) for line in lines]

    def read(self, start: int, end: int) -> bytes:
        """The bytes of the file from start to end. Raises CorpusError if it cannot be read."""
        try:
            return os.pread(self._file, end - start, start)
        except OSError as error:
            raise CorpusError(self._path, f"cannot be read ({error.strerror})", AGAIN) from None

    def utterance(self, line: bytes) -> Utterance:
        """The message of a line. Raises CorpusError if it holds none."""
        try:
            row = json.loads(line)
            return utterance_of(row["text"], tokenise(row["text"]), row.get("timestamp"))
        except (ValueError, KeyError, TypeError):
            raise self._altered() from None

    def _require_all(self, messages: int, place: int) -> None:
        if messages != self._messages[place]:
            raise self._altered()

    def _altered(self) -> CorpusError:
        remedy = "leave it alone, and begin again"
        return CorpusError(self._path, "was altered while it was open", remedy)


class _Messages(Sequence[Utterance]):
    """The messages of a user who wrote very many: each is read when it is asked for."""

    def __init__(self, data: _Data, start: int, end: int):
        """They stand in the data's file from start to end."""
        self._data = data
        self._ends = array("Q", [start])
        for place in range(start, end, LARGE):
            block = np.frombuffer(data.read(place, min(place + LARGE, end)), np.uint8)
            ends = np.flatnonzero(block == ord("\n")).astype(np.uint64) + np.uint64(place + 1)
            self._ends.frombytes(ends.tobytes())

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, i: int) -> Utterance: ...
    @overload
    def __getitem__(self, i: slice) -> list[Utterance]: ...
    def __getitem__(self, i: int | slice) -> Utterance | list[Utterance]:
        if isinstance(i, slice):
            return [self[place] for place in range(*i.indices(len(self)))]
        place = range(len(self))[i]
        return self._data.utterance(self._data.read(self._ends[place], self._ends[place + 1]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return NotImplemented
        return all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]


def _index(path: Path, manifest: Manifest) -> Iterator[_User]:
    """Every user, in alphabetical order. Raises CorpusError if it is not the manifest's."""
    with _opened(path) as file:
        _require_digest(path, file, manifest.index)
        before, users, messages, words = "", 0, 0, 0
        for line in file:
            try:
                user = _User(*json.loads(line))
                fits = user.name > before and user.split in SPLITS and user.bytes > 0
                messages, words = messages + user.messages, words + user.words
            except (ValueError, TypeError, RecursionError):
                fits = False
            if not fits:
                raise CorpusError(path, "is not a list of users", AGAIN)
            before, users = user.name, users + 1
            yield user
        if (users, messages, words) != (manifest.users, manifest.kept, manifest.words):
            raise CorpusError(path, f"does not fit {MARKER}", AGAIN)


def _opened(path: Path) -> BufferedReader:
    try:
        return open(path, "rb")
    except OSError as error:
        raise CorpusError(path, f"cannot be read ({error.strerror})", AGAIN) from None


def _require_digest(path: Path, file: BufferedReader, digest: str) -> None:
    """Read a file to its end and back to its start. Raises CorpusError if it is another."""
    try:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
    except OSError as error:
        raise CorpusError(path, f"cannot be read ({error.strerror})", AGAIN) from None
    if actual != digest:
        raise CorpusError(
            path, f"its SHA-256 is not the one in {MARKER}: the file was altered", AGAIN
        )


def _manifest(path: Path) -> Manifest | _Earlier | str:
    """corpus.json, or the name of another format. Raises CorpusError if it is not one of ours."""
    try:
        data = (path / MARKER).read_bytes()
        format = json.loads(data)["format"]
        kinds = {FORMAT: Manifest, WITH_LANGUAGE: Manifest, EARLIER: _Earlier}
        if isinstance(format, str) and format not in kinds:
            return format
        return from_json(kinds[format], data, str(path / MARKER))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError):
        raise CorpusError(
            path,
            f"not a corpus directory (no {MARKER} of ours)",
            "give one written by `fedboard data import`",
        ) from None


def _open_earlier(path: Path, manifest: _Earlier) -> Corpus:
    """A directory of format 1, whose messages stand as they were imported."""
    with _opened(path / DATA) as file:
        _require_digest(path / DATA, file, manifest.digest)
        # ours by its hash, so every line has these keys
        rows = map(json.loads, file)
        corpus = prepare(
            path.name,
            manifest.digest,
            ((row["user"], row["text"], row.get("timestamp")) for row in rows),
        )
    return replace(corpus, dropped=dict(Counter(manifest.dropped) + Counter(corpus.dropped)))
