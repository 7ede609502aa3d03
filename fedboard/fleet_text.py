"""Typed text of a fleet: a corpus's train users -> what they type, as rows of token ids."""

from pathlib import Path

from device_runtime import examples
from device_runtime.bundle import Bundle
from device_runtime.errors import CorpusError
from fleet.typed import Typed
from model import corpora, corpus
from model.corpus import Corpus


def write(folder: Path, name: str, bundle: Bundle, most: int) -> Typed:
    """Write what at most so many train users of a corpus type to a new folder, for a fleet whose
    devices have this bundle. Raises CorpusError for a corpus that there is not.
    """
    typed = of_corpus(corpora.load(name), bundle, most)
    typed.save(folder)
    return typed


def of_corpus(text: Corpus, bundle: Bundle, most: int) -> Typed:
    """What the train users of a corpus type, oldest first, as a phone makes rows of it. Raises
    CorpusError where they have typed nothing.
    """
    vocabulary, length = bundle.vocabulary, bundle.plan.length
    users = [
        examples.rows((vocabulary.ids(each.tokens) for each in utterances), length)
        for utterances in corpus.sample(text.train, most).values()
    ]
    users = [rows for rows in users if len(rows)]
    if not users:
        raise CorpusError(text.name, "has no train user who typed anything", "name another one")
    return Typed.of(users)
