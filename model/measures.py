"""What is measured: one system's answers at every target -> sums per user -> the numbers compared.

Protocol nwp-v2, steps 7 to 10. All sums are kept per user, so intervals are over users.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

import numpy as np

from device_runtime import durable
from device_runtime.errors import RunError
from device_runtime.metrics import (
    STRIP,
    Counts,
    interval,
    keystroke_saving,
    keystrokes,
    macro,
    oov_rate,
    perplexity,
    recall,
    top_words,
)
from device_runtime.text import FIRST_WORD, OOV, SPECIALS, is_word


@dataclass(frozen=True)
class Prediction:
    """One word target, as `--predictions` writes it."""

    user: str
    context: tuple[str, ...]  # tokens typed before, in this utterance
    target: str
    top3: tuple[str, ...]  # best first
    keys: int  # keystrokes spent with the strip
    logp: float | None  # nats; None for a word outside the vocabulary
    in_vocab: bool


@dataclass(frozen=True)
class Evaluation:
    """Sums per user and over all of them."""

    users: dict[str, Counts]
    total: Counts
    open_vocabulary: bool = False  # every word can be spelled


@dataclass(frozen=True)
class Summary:
    """An evaluation in the numbers people compare.

    Shares are 0..1, intervals 95 % over users, `macro` is mean, p10, p50, p90 over users.
    """

    users: int
    targets: int
    top1: float
    top1_interval: tuple[float, float]
    top3: float
    top3_interval: tuple[float, float]
    # in-vocabulary word targets, which are all of an open vocabulary; compare only at equal
    # vocabulary
    perplexity: float
    keystroke_saving: float
    oov_rate: float
    in_vocabulary_top1: float
    in_vocabulary_top3: float
    first_word_top1: float
    with_punctuation_top1: float  # classes count as targets and compete for the first place
    with_punctuation_top3: float
    macro_top1: tuple[float, float, float, float]
    macro_top3: tuple[float, float, float, float]
    open_vocabulary: bool = False  # words are spelled in pieces: none is unknown because it is rare


FIELDS = [field.name for field in fields(Counts)]


class Part(Protocol):
    """What of an utterance is a target."""

    @property
    def text(self) -> str: ...

    @property
    def of_run(self) -> bool: ...


@dataclass(frozen=True)
class Targets:
    """Every token of a block of utterances, one after the other."""

    utterances: list[Sequence[str]]
    tokens: list[str]
    user: np.ndarray  # int [n], index of the user
    place: np.ndarray  # int [n], tokens before it in its utterance
    is_word: np.ndarray  # bool [n]
    of_run: np.ndarray  # bool [n], parts of runs, which no space follows


@dataclass(frozen=True)
class Lexicon:
    """What a system can say, by id, and what it never suggests."""

    words: Sequence[str]
    alphabetical: tuple[list[str], list[int]]  # the words sorted, and their ids
    blocked: Sequence[int] = ()


@dataclass(frozen=True)
class Said:
    """What a system says at some positions, and how the targets stand there."""

    strip: list[tuple[str, ...]]  # the three likeliest words, best first
    known: np.ndarray  # bool [n], whether the target is in the vocabulary, as an id or spelled
    own: np.ndarray  # float [n], log-probability of the target, if known
    hits: np.ndarray  # bool [n, 3], which word of the strip is the target
    # int [n], words of the strip likelier than the target, if that is a class
    words_ahead: np.ndarray
    classes_ahead: np.ndarray  # int [n], classes likelier than the target
    keys: np.ndarray  # int [n], keystrokes for the target, if a word


def targets_of(
    block: Sequence[tuple[int, Sequence[str]]],
    parts: Callable[[Sequence[str]], Sequence[Part]] | None = None,
) -> Targets:
    """The targets of a block of utterances: the index of the user who typed it, and its tokens.

    With `parts`, what that makes of each utterance: a part of a run of a script without spaces is a
    target too.
    """
    utterances = [utterance for _, utterance in block]
    split = [
        [(part.text, part.of_run) for part in parts(utterance)]
        if parts
        else [(token, False) for token in utterance]
        for utterance in utterances
    ]
    lengths = [len(each) for each in split]
    tokens = [token for each in split for token, _ in each]
    return Targets(
        utterances,
        tokens,
        user=np.repeat([user for user, _ in block], lengths),
        place=np.concatenate([np.arange(length) for length in lengths]),
        is_word=np.array([is_word(token) for token in tokens]),
        of_run=np.array([of_run for each in split for _, of_run in each], bool),
    )


def said(
    scores: np.ndarray,
    ids: np.ndarray,
    tokens: Sequence[str],
    word: np.ndarray,
    lexicon: Lexicon,
) -> Said:
    """What log-probabilities, float [n, words of the lexicon], say about n targets.

    ids are int [n], those of the targets (OOV if unknown), tokens their text, word bool [n] which
    of them are words.
    """
    blocked = lexicon.blocked
    rows = np.arange(len(ids))
    own = scores[rows, ids]
    if len(blocked):
        scores = scores.copy()
        scores[:, blocked] = -np.inf
    best = top_words(scores)
    hits = best == ids[:, None]
    if len(blocked):
        hits &= scores[rows[:, None], best] > -np.inf
    offered = np.where(word & ~np.isin(ids, blocked), ids, OOV)  # a blocked word is typed in full
    return Said(
        strip=[tuple(lexicon.words[i] for i in row) for row in best.tolist()],
        known=ids != OOV,
        own=own,
        hits=hits,
        words_ahead=(scores[rows[:, None], best] > own[:, None]).sum(axis=1),
        classes_ahead=(scores[:, len(SPECIALS) : FIRST_WORD] > own[:, None]).sum(axis=1),
        keys=keystrokes(scores, tokens, offered, hits.any(axis=1), lexicon.alphabetical),
    )


def marks_of(said: Said, targets: Targets, start: int) -> np.ndarray:
    """What each position adds to the sums, float64 [fields of Counts, n]."""
    here = slice(start, start + len(said.own))
    word, words = targets.is_word[here], targets.tokens[here]
    known, first = word & said.known, targets.place[here] == 0
    shown = said.hits.any(axis=1)
    # with punctuation: how many words and classes come before the target; three or more words ahead
    # are a miss whatever their number
    words_ahead = np.where(word, np.where(shown, said.hits.argmax(axis=1), STRIP), said.words_ahead)
    ahead = words_ahead + said.classes_ahead
    marks = {
        "targets": word,
        "top1": said.hits[:, 0],
        "top3": shown,
        "in_vocabulary": known,
        "nll": np.where(known, -said.own, 0),
        "letters": np.where(word, [len(token) + 1 for token in words] - targets.of_run[here], 0),
        "keys": np.where(word, said.keys, 0),
        "first": word & first,
        "first_top1": said.hits[:, 0] & first,
        "tokens": np.ones(len(word)),
        "tokens_top1": said.known & (ahead < 1),
        "tokens_top3": said.known & (ahead < STRIP),
    }
    return np.array([marks[name] for name in FIELDS], np.float64)


def counts_of(row: np.ndarray) -> Counts:
    """The sums of one user; row is float64 [fields of Counts]. Whole numbers but for the nats."""
    sums = dict(zip(FIELDS, row.tolist(), strict=True))
    nats = sums.pop("nll")
    return Counts(nll=nats, **{name: int(value) for name, value in sums.items()})


def _predictions(
    marks: np.ndarray, said: Said, targets: Targets, start: int, names: list[str]
) -> Iterator[Prediction]:
    mark = dict(zip(FIELDS, marks, strict=True))
    for row in np.flatnonzero(mark["targets"]):
        i = start + row
        known = bool(mark["in_vocabulary"][row])
        yield Prediction(
            user=names[targets.user[i]],
            context=tuple(targets.tokens[i - targets.place[i] : i]),
            target=targets.tokens[i],
            top3=said.strip[row],
            keys=int(mark["keys"][row]),
            logp=float(-mark["nll"][row]) if known else None,
            in_vocab=known,
        )


class Tally:
    """Adds up what a system says at its targets, user by user."""

    def __init__(self, names: list[str], open_vocabulary: bool = False):
        self._names = names
        self._open_vocabulary = open_vocabulary
        self._sums = np.zeros((len(names), len(FIELDS)))

    def add(
        self,
        said: Said,
        targets: Targets,
        start: int,
        on_prediction: Callable[[Prediction], object] | None = None,
    ) -> None:
        """Count what was said at the targets from `start` on."""
        marks = marks_of(said, targets, start)
        user = targets.user[start : start + len(said.own)]
        for column, values in enumerate(marks):
            self._sums[:, column] += np.bincount(user, values, len(self._names))
        if on_prediction:
            for prediction in _predictions(marks, said, targets, start, self._names):
                on_prediction(prediction)

    def evaluation(self) -> Evaluation:
        """The sums so far."""
        counts = {name: counts_of(row) for name, row in zip(self._names, self._sums, strict=True)}
        return Evaluation(counts, sum(counts.values(), Counts()), self._open_vocabulary)


def summarise(evaluation: Evaluation, rng: np.random.Generator) -> Summary:
    """The headline numbers; rng draws the bootstrap."""
    users, total = list(evaluation.users.values()), evaluation.total

    def share(part: str, whole: str) -> float:
        return getattr(total, part) / getattr(total, whole) if getattr(total, whole) else 0.0

    return Summary(
        users=len(users),
        targets=total.targets,
        top1=recall(total, "top1"),
        top1_interval=interval(users, lambda counts: recall(counts, "top1"), rng),
        top3=recall(total, "top3"),
        top3_interval=interval(users, lambda counts: recall(counts, "top3"), rng),
        perplexity=perplexity(total),
        keystroke_saving=keystroke_saving(total),
        oov_rate=oov_rate(total),
        in_vocabulary_top1=share("top1", "in_vocabulary"),
        in_vocabulary_top3=share("top3", "in_vocabulary"),
        first_word_top1=share("first_top1", "first"),
        with_punctuation_top1=share("tokens_top1", "tokens"),
        with_punctuation_top3=share("tokens_top3", "tokens"),
        macro_top1=macro(users, "top1"),
        macro_top3=macro(users, "top3"),
        open_vocabulary=evaluation.open_vocabulary,
    )


def are_predictions(path: Path) -> bool:
    """Whether every line of a file is a prediction as `predictions_file` writes it."""
    names = {field.name for field in fields(Prediction)}
    try:
        with open(path, "rb") as lines:
            return all(set(json.loads(line)) == names for line in lines)
    except (ValueError, TypeError, RecursionError):
        return False


@contextmanager
def predictions_file(path: Path) -> Iterator[Callable[[Prediction], object]]:
    """A function that writes one JSON line per prediction.

    The file appears, in a folder made if needed, when the block ends well. Raises RunError if
    it cannot be written.
    """
    try:
        place = Path(os.path.realpath(path))  # a link stays, and what it leads to is written
        place.parent.mkdir(parents=True, exist_ok=True)
        with durable.replacing(place) as file:
            yield lambda prediction: file.write(json.dumps(asdict(prediction)).encode() + b"\n")
    except OSError as error:
        raise RunError(
            path, f"cannot be written ({error.strerror})", "choose another file"
        ) from None
