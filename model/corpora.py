"""The corpora by name: the built-in one, a directory of the user's own, TFF's two."""

import hashlib
import importlib.util
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from device_runtime.errors import CorpusError
from device_runtime.shown import command
from model import directory, tff_corpora
from model.corpus import Corpus, prepare

TFF_CORPORA = tuple(tff_corpora.SOURCES)


def load(name: str | Path, cache: str | Path | None = None) -> Corpus:
    """The corpus `chitchat`, a directory of `data import`, or TFF's `stackoverflow`, `shakespeare`.

    TFF's are fetched once into the folder `cache`: by default $FEDBOARD_CACHE, or ~/.tff as in TFF
    itself. They cost the import of TFF. Raises CorpusError for another name, an altered
    directory or file, too few users to fill every split, or no network where one is needed.
    """
    if str(name) == "chitchat":
        return _chitchat()
    if str(name) in TFF_CORPORA:
        return tff_corpora.load(str(name), cache)
    path = Path(name)
    if path.is_file():
        raise CorpusError(
            path,
            "is a file, expected `chitchat` or a corpus directory",
            f"run `{command('data', 'import', path, '--out', 'DIR')}` first",
        )
    if not path.is_dir():
        raise CorpusError(
            path,
            "no such corpus, expected `chitchat` or a directory",
            "make one with `fedboard data import FILE --out DIR`",
        )
    return directory.open_directory(path)


def _chitchat() -> Corpus:
    spec = importlib.util.find_spec("chitchat_dataset")
    if spec is None or spec.origin is None:
        raise CorpusError(
            "chitchat",
            "the package chitchat-dataset is not installed",
            "install the extra `data`, or import your own corpus",
        )
    # read directly: importing the package brings nothing but this path
    path = Path(spec.origin).with_name("dataset.json")
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
    corpus = prepare("chitchat", hashlib.sha256(data).hexdigest(), rows)
    return replace(corpus, language="en")
