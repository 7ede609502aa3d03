"""TFF's StackOverflow and Shakespeare as corpora: TFF's clients and splits, our rules for text.

A client is read when it is asked for.

The data are SQLite files that `tff.simulation.datasets` fetches and gives no hash of; one that
SQLite cannot read is refused.

| split | StackOverflow | Shakespeare |
|---|---|---|
| train | 342,477 users, before 2018 | the first part of what each of 715 characters says |
| validation | 38,758 held-out users, never in train | the later part, of a tenth of them (nwp-v2) |
| test | 204,088 users, since 2018 | the later part, of the others |

So only StackOverflow's validation users are strangers, as nwp-v2 wants them; elsewhere a user may
be one of train's, at a later time. Long utterances that occur verbatim in train stay in: finding
them would mean reading all of train.
"""

import hashlib
import json
import os
import socket
import sqlite3
import tempfile
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from device_runtime.errors import CorpusError
from model.corpus import SPLITS, Corpus, LazyUsers, Users, cleaned, only, split_of
from model.times import seconds

CACHE = "FEDBOARD_CACHE"  # environment variable: folder of TFF's files
URL = "https://storage.googleapis.com/tff-datasets-public/{}.sqlite.lzma"  # where TFF fetches them
REACH_S = 5.0  # for an answer from there
STALL_S = 60.0  # without a byte while fetching
KEEP = 32  # users remembered of each split: some MB
Rows = Iterable[tuple[str, float | None]]  # text and time


@dataclass(frozen=True)
class Source:
    """What differs between the two."""

    name: str
    splits: tuple[str, ...]  # as TFF's file calls them, in the order of TFF's load_data
    fields: tuple[str, ...]  # of a TFF example, all strings
    # those fields of one client, a list of bytes each -> utterances in the order of the examples
    rows: Callable[..., Rows]
    most: int | None  # see Corpus


def load(name: str, cache: str | Path | None = None) -> Corpus:
    """StackOverflow or Shakespeare; `cache` as in `corpora.load`.

    Imports TensorFlow and TFF, but not before it is clear that there are data.

    Raises CorpusError if the file is damaged, or is neither in the cache nor can be fetched.
    """
    source = SOURCES[name]
    path = Path(cache or os.environ.get(CACHE) or Path.home() / ".tff") / f"{name}.sqlite"
    here = path.exists()
    if here:
        _require_database(path, source)
    else:
        _require_network(path, source)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow_federated as tff

    load_data = getattr(tff.simulation.datasets, name).load_data
    if not here:
        _fetch(path, source, load_data)
    return corpus_of(source, load_data(str(path.parent)), path)


def corpus_of(source: Source, splits: Iterable, where: object) -> Corpus:
    """The corpus of TFF's ClientData objects, in the order of `source.splits`.

    `where` is what errors name.

    Raises CorpusError if a split has no user.
    """
    users_by_split: list[Users] = [users_of(data, source, where) for data in splits]
    if len(users_by_split) < len(SPLITS):
        users_by_split = [users_by_split[0], *_divided(users_by_split[1])]
    train, validation, test = users_by_split
    if empty := [
        split for split, users in zip(SPLITS, (train, validation, test), strict=True) if not users
    ]:
        raise CorpusError(
            where, f"no user falls into {' or '.join(empty)}", f"give all of TFF's {source.name}"
        )
    digest = hashlib.sha256(
        json.dumps([list(users) for users in (train, validation, test)]).encode()
    ).hexdigest()
    return Corpus(source.name, digest, train, validation, test, dropped=None, most=source.most)


def users_of(data, source: Source, where: object, keep: int = KEEP) -> LazyUsers:
    """The clients of a tff.simulation.datasets.ClientData.

    Asking for one raises CorpusError if its examples cannot be read.
    """
    import tensorflow as tf

    dataset = data.serializable_dataset_fn

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def examples(client: tf.Tensor) -> list[tf.Tensor]:
        """The fields of all examples, string [examples] each.

        Traced once: a pipeline built for each client anew would leak memory with each.
        """
        fields = dataset(client).map(lambda example: tuple(example[name] for name in source.fields))
        return fields.batch(1 << 31).get_single_element()

    def read(client: str):
        try:
            columns = examples(tf.constant(client))
        except tf.errors.OpError as error:
            raise CorpusError(
                where,
                f"the examples of client {client!r} cannot be read ({type(error).__name__})",
                _AGAIN,
            ) from None
        return cleaned(source.rows(*(column.numpy().tolist() for column in columns)))

    return LazyUsers(sorted(data.client_ids), read, keep)


def _divided(later: Users) -> tuple[Users, Users]:
    """Validation and test users, where TFF has only one split beside train."""
    validation = {name for name in later if split_of(name) == "validation"}
    return only(later, (name for name in later if name in validation)), only(
        later, (name for name in later if name not in validation)
    )


def _posts(tokens: list[bytes], dates: list[bytes]) -> Iterator[tuple[str, float | None]]:
    """StackOverflow: an example is a sentence, its date that of the post."""
    for text, day in zip(tokens, dates, strict=True):
        yield text.decode(errors="replace"), _time(day)


def _lines(snippets: list[bytes]) -> Iterator[tuple[str, float | None]]:
    """Shakespeare: an example is what a character says at a time, in lines."""
    for snippet in snippets:
        for line in snippet.decode(errors="replace").splitlines():
            yield line, None


def _time(day: bytes) -> float | None:
    try:
        return seconds(day.decode().removesuffix(" UTC"))
    except (ValueError, OverflowError):
        return None


SOURCES = {
    "stackoverflow": Source(
        "stackoverflow",
        ("train", "heldout", "test"),
        ("tokens", "creation_date"),
        _posts,
        most=1000,
    ),
    "shakespeare": Source("shakespeare", ("train", "test"), ("snippets",), _lines, most=None),
}

# --- the file
# ------------------------------------------------------------------------------------------------

_AGAIN = "delete the file, and it is fetched again"


def _require_database(path: Path, source: Source) -> None:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            present = {
                split
                for (split,) in database.execute("SELECT DISTINCT split_name FROM client_metadata")
            }
            database.execute(
                "SELECT split_name, client_id, serialized_example_proto FROM examples LIMIT 1"
            ).fetchall()
    except sqlite3.Error as error:
        raise CorpusError(path, f"not TFF's {source.name} ({error})", _AGAIN) from None
    if missing := [split for split in source.splits if split not in present]:
        raise CorpusError(
            path, f"not TFF's {source.name}: it has no client of {' or '.join(missing)}", _AGAIN
        )


def _require_network(path: Path, source: Source) -> None:
    url = URL.format(source.name)
    with _fetching(path, source):
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACH_S).close()


def _fetch(path: Path, source: Source, load_data: Callable[[str], object]) -> None:
    """Let TFF fetch the file, and put it in place when it is whole.

    TFF itself would take the half of an interrupted download for the file.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_S)  # TFF gives none
    try:
        with _fetching(path, source):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
                load_data(folder)
                os.replace(Path(folder) / path.name, path)
    finally:
        socket.setdefaulttimeout(timeout)


@contextmanager
def _fetching(path: Path, source: Source) -> Iterator[None]:
    """Whatever goes wrong in the block is told as one CorpusError with the ways out."""
    try:
        yield
    # TFF lets through what urllib, lzma, sqlite3 and TensorFlow raise, and an error of its own
    except Exception as error:
        why = str(getattr(error, "reason", error)).splitlines() or [type(error).__name__]
        url = URL.format(source.name)
        raise CorpusError(
            source.name,
            f"{path} is not there, and cannot be fetched from {url} ({why[0][:200]})",
            f"put it there (`curl -L {url} | xz -dc > {path}` where there is a network), name its "
            f"folder by {CACHE}, or use `chitchat`",
        ) from None
