"""Planting: a corpus -> the same with secrets typed by a few of its users, to audit what is learnt.

A secret is drawn from the commonest words of the corpus, so nothing but its users' messages makes
it likely. As many are drawn and typed by nobody: controls, by which an audit's own error is seen.
"""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np

from conversion.audit import MOST_WORDS, PLANTED, Planted, Secret, opened
from device_runtime import bounds, config, durable
from device_runtime.bounds import Within
from device_runtime.errors import ConfigError, CorpusError
from device_runtime.text import is_word
from model import corpora, imported
from model.corpus import SPLITS, Corpus

POOL = 1000  # commonest words of train users that secrets are drawn from
PREFIX = 2  # words before a secret


@dataclass(frozen=True)
class Planting:
    """Which secrets are planted: `each` of every number of words, users and times."""

    words: tuple[int, ...] = (1, 2, 3, 4)
    users: tuple[int, ...] = (1, 3, 10)
    times: Annotated[int, Within(1, 10_000)] = 20  # that each of its users types one
    each: Annotated[int, Within(1, 1000)] = 2
    seed: Annotated[int, Within(0, 2**31 - 1)] = 0

    def __post_init__(self) -> None:
        """Raises ConfigError for secrets that cannot be."""
        bounds.check(self, "planting")
        if not self.words or not set(self.words) <= set(range(1, MOST_WORDS + 1)):
            raise ConfigError(
                "planting.words",
                f"expected numbers from 1 to {MOST_WORDS}, found {self.words}",
                "correct them",
            )
        if not self.users or min(self.users) < 1:
            raise ConfigError(
                "planting.users", f"expected numbers from 1, found {self.users}", "correct them"
            )


@dataclass(frozen=True)
class Message:
    """One message more of a user."""

    user: str
    text: str


def drawn(corpus: Corpus, planting: Planting) -> tuple[Planted, list[Message]]:
    """Secrets, controls among them, and the messages that plant them. Raises CorpusError for a
    corpus with too few words or users.
    """
    rng = np.random.default_rng([planting.seed, 5])
    counts = Counter(
        word
        for said in corpus.train.values()
        for each in said
        for word in each.tokens
        if is_word(word)
    )
    pool = tuple(sorted(word for word, _ in counts.most_common(POOL)))
    names, most = sorted(corpus.train), max(planting.users)
    if len(names) < most or len(pool) < 2 * (MOST_WORDS + PREFIX):
        raise CorpusError(
            corpus.name,
            f"expected {most} train users and {2 * (MOST_WORDS + PREFIX)} words, found "
            f"{len(names)} and {len(pool)}",
            "plant with fewer users, or take a larger corpus",
        )
    secrets, messages = [], []
    for users in (*planting.users, 0):
        for length in planting.words:
            for _ in range(planting.each):
                said = tuple(map(str, rng.choice(pool, PREFIX + length)))
                times = planting.times if users else 0
                secrets.append(Secret(said[:PREFIX], said[PREFIX:], users, times))
                for name in rng.choice(names, users, replace=False):
                    messages += [Message(str(name), " ".join(said))] * times
    # which corpus they are in, `plant` says
    return Planted(PLANTED, corpus.name, corpus.digest, pool, tuple(secrets)), messages


def plant(corpus: Corpus, out: Path, secrets: Path, planting: Planting) -> Planted:
    """Write the corpus with its secrets to the directory `out`, and what they are to a file."""
    planted, messages = drawn(corpus, planting)
    more: dict[str, list[str]] = {}
    for each in messages:
        more.setdefault(each.user, []).append(each.text)
    rng = np.random.default_rng([planting.seed, 6])
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as lines:
        for name, text in _all(corpus, more, rng):
            lines.write(json.dumps({"user": name, "text": text}) + "\n")
        lines.flush()
        imported.import_file(lines.name, out, imported.Reading(no_timestamp=True))
    place = Path(os.path.abspath(out))
    planted = replace(planted, name=place.name, corpus=corpora.load(place).digest)
    durable.share(secrets, config.to_json(planted))
    return planted


def read(path: Path) -> tuple[Planted, bytes]:
    """What `plant` wrote, and its bytes. Raises ConfigError for anything else."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            path, f"cannot be read ({error.strerror})", "name the file of `fedboard data plant`"
        ) from None
    remedy = "plant secrets anew with `fedboard data plant`, and train on them"
    return opened(Planted, PLANTED, data, path, remedy), data


def _all(
    corpus: Corpus, more: dict[str, list[str]], rng: np.random.Generator
) -> Iterator[tuple[str, str]]:
    """Every user's messages in order, those that are planted somewhere among them."""
    for split in SPLITS:
        for name, said in corpus.split(split).items():
            yield from (
                (name, text) for text in _mixed([each.text for each in said], more, name, rng)
            )


def _mixed(
    own: Sequence[str], more: dict[str, list[str]], name: str, rng: np.random.Generator
) -> list[str]:
    texts = list(own)
    for text in more.get(name, ()):
        texts.insert(int(rng.integers(len(texts) + 1)), text)
    return texts
