"""Next-word accuracy of any system on held-out users. Protocol nwp-v1, steps 6 to 10 (base protocol: no history).

A system is an engine: it reads sequences of ids and gives, for every position, the log-probabilities of the next id. Contexts never cross
utterances. All sums are kept per user, so intervals and comparisons are over users.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from device_runtime.errors import RunError
from device_runtime.metrics import STRIP, Counts, interval, keystroke_saving, keystrokes, macro, oov_rate, perplexity, recall, top_words
from device_runtime.text import BOS, FIRST_WORD, OOV, SPECIALS, Vocabulary, is_word
from device_runtime.weights import Weights
from model.corpus import Users
from model.network import forward, log_probs
from model.ngram import NGram

LAST = 200  # utterances scored of each user
BLOCK = 4096  # utterances given to an engine at once
CHUNK = 1 << 23  # log-probabilities held at once by our engines: 32 MB
BATCH = 128  # sequences of like length the network reads side by side


class Engine(Protocol):
    def __call__(self, sequences: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        """Sequences of ids, bos first -> the log-probabilities after each id, all sequences in order, as float32 chunks [positions, vocabulary]."""
        ...


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


@dataclass(frozen=True)
class Summary:
    """An evaluation in the numbers people compare; shares are 0..1, intervals 95 % over users, `macro` is mean, p10, p50, p90 over users."""

    users: int
    targets: int
    top1: float
    top1_interval: tuple[float, float]
    top3: float
    top3_interval: tuple[float, float]
    perplexity: float  # in-vocabulary word targets; compare only at equal vocabulary
    keystroke_saving: float
    oov_rate: float
    in_vocabulary_top1: float
    in_vocabulary_top3: float
    first_word_top1: float
    with_punctuation_top1: float  # classes count as targets and compete for the first place
    with_punctuation_top3: float
    macro_top1: tuple[float, float, float, float]
    macro_top3: tuple[float, float, float, float]


# --- engines -----------------------------------------------------------------------------------------------------------------------------


def network_engine(weights: Weights) -> Engine:
    """The network in numpy. Rows of like length go together, so padding costs little."""

    def score(sequences: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        states = _hidden(weights, sequences)
        for start, end in _chunks(len(states), len(weights["output_bias"])):
            yield log_probs(weights, states[start:end])

    return score


def ngram_engine(ngram: NGram) -> Engine:
    """An n-gram model, trained on id sequences of the same vocabulary."""

    def score(sequences: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        contexts = ngram.contexts(sequences)
        for start, end in _chunks(len(contexts), ngram.vocabulary_size):
            yield ngram.log_probs(contexts[start:end])

    return score


def _hidden(weights: Weights, sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """Hidden states of all positions, float32 [positions, embedding], in order."""
    lengths = np.array([len(sequence) for sequence in sequences])
    starts = np.cumsum(lengths) - lengths
    states = np.empty((lengths.sum(), weights["embedding"].shape[1]), np.float32)
    order = np.argsort(lengths, kind="stable")
    for rows in (order[start : start + BATCH] for start in range(0, len(order), BATCH)):
        inputs = np.zeros((len(rows), lengths[rows[-1]]), np.int32)
        for row, i in enumerate(rows):
            inputs[row, : lengths[i]] = sequences[i]
        within = np.arange(inputs.shape[1]) < lengths[rows, None]  # [rows, time]
        states[(starts[rows, None] + np.arange(inputs.shape[1]))[within]] = forward(weights, inputs)[within]
    return states


def _chunks(positions: int, vocabulary_size: int) -> Iterator[tuple[int, int]]:
    size = max(CHUNK // vocabulary_size, 1)
    return ((start, min(start + size, positions)) for start in range(0, positions, size))


# --- scoring -----------------------------------------------------------------------------------------------------------------------------


def evaluate(
    engine: Engine,
    users: Users,
    vocabulary: Vocabulary,
    last: int = LAST,
    max_users: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_prediction: Callable[[Prediction], None] | None = None,
) -> Evaluation:
    """Score an engine on the last `last` utterances of each user (of the first `max_users`, for a quick look).

    progress is called with (positions done, all positions); on_prediction once for each word target, users and utterances in order.
    Raises ValueError if the engine's vocabulary or number of positions is not that of the corpus.
    """
    chosen = dict(islice(users.items(), max_users))
    scored = [(i, utterance.tokens) for i, utterances in enumerate(chosen.values()) for utterance in utterances[-last:]]
    everything = sum(len(tokens) for _, tokens in scored)
    names = list(chosen)
    sums = np.zeros((len(names), len(_FIELDS)))
    done = 0
    for first in range(0, len(scored), BLOCK):
        targets = _targets(scored[first : first + BLOCK], vocabulary)
        start = 0
        for chunk in engine(targets.sequences):
            end = start + len(chunk)
            if chunk.shape[1] != len(vocabulary) or end > len(targets.ids):
                raise ValueError(f"expected up to {len(targets.ids) - start} positions of {len(vocabulary)} ids, the engine gave {chunk.shape}")
            marks, best = _marks(chunk, targets, start, vocabulary)
            for column, values in enumerate(marks):
                sums[:, column] += np.bincount(targets.user[start:end], values, len(names))
            if on_prediction:
                for prediction in _predictions(marks, best, targets, start, names, vocabulary):
                    on_prediction(prediction)
            start = end
            if progress:
                progress(done + start, everything)
        if start != len(targets.ids):
            raise ValueError(f"expected {len(targets.ids)} positions, the engine gave {start}")
        done += start
    counts = {name: _counts(row) for name, row in zip(names, sums, strict=True)}
    return Evaluation(counts, sum(counts.values(), Counts()))


_FIELDS = [field.name for field in fields(Counts)]


@dataclass(frozen=True)
class _Targets:
    """Every token of a block of utterances, one after the other, and the sequences an engine reads to predict them."""

    sequences: list[list[int]]
    tokens: list[str]
    ids: np.ndarray  # int [n]
    user: np.ndarray  # int [n], index of the user
    place: np.ndarray  # int [n], tokens before it in its utterance
    is_word: np.ndarray  # bool [n]


def _targets(block: list[tuple[int, tuple[str, ...]]], vocabulary: Vocabulary) -> _Targets:
    ids = [vocabulary.ids(tokens) for _, tokens in block]
    lengths = [len(tokens) for _, tokens in block]
    tokens = [token for _, tokens in block for token in tokens]
    return _Targets(
        sequences=[[BOS, *own[:-1]] for own in ids],
        tokens=tokens,
        ids=np.array([i for own in ids for i in own], np.int64),
        user=np.repeat([user for user, _ in block], lengths),
        place=np.concatenate([np.arange(length) for length in lengths]),
        is_word=np.array([is_word(token) for token in tokens]),
    )


def _marks(scores: np.ndarray, targets: _Targets, start: int, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """What each position adds to the sums, float64 [fields of Counts, n], and the strip's words there, int [n, 3]."""
    here = slice(start, start + len(scores))
    ids, word, words = targets.ids[here], targets.is_word[here], targets.tokens[here]
    known, first = word & (ids != OOV), targets.place[here] == 0
    rows = np.arange(len(ids))
    own = scores[rows, ids]
    best = top_words(scores)
    hits = best == ids[:, None]
    shown = hits.any(axis=1)
    keys = keystrokes(scores, words, np.where(word, ids, OOV), shown, vocabulary)
    # with punctuation: how many words and classes come before the target; three or more words ahead are a miss whatever their number
    words_ahead = np.where(word, np.where(shown, hits.argmax(axis=1), STRIP), (scores[rows[:, None], best] > own[:, None]).sum(axis=1))
    ahead = words_ahead + (scores[:, len(SPECIALS) : FIRST_WORD] > own[:, None]).sum(axis=1)
    scorable = ids != OOV
    marks = {
        "targets": word,
        "top1": hits[:, 0],
        "top3": shown,
        "in_vocabulary": known,
        "nll": np.where(known, -own, 0),
        "letters": np.where(word, [len(token) + 1 for token in words], 0),
        "keys": np.where(word, keys, 0),
        "first": word & first,
        "first_top1": hits[:, 0] & first,
        "tokens": np.ones(len(ids)),
        "tokens_top1": scorable & (ahead < 1),
        "tokens_top3": scorable & (ahead < STRIP),
    }
    return np.array([marks[name] for name in _FIELDS], np.float64), best


def _counts(row: np.ndarray) -> Counts:
    return Counts(*(float(value) if name == "nll" else int(value) for name, value in zip(_FIELDS, row, strict=True)))  # type: ignore[arg-type]


def _predictions(
    marks: np.ndarray, best: np.ndarray, targets: _Targets, start: int, names: list[str], vocabulary: Vocabulary
) -> Iterator[Prediction]:
    mark = dict(zip(_FIELDS, marks, strict=True))
    for row in np.flatnonzero(mark["targets"]):
        i = start + row
        known = bool(mark["in_vocabulary"][row])
        yield Prediction(
            user=names[targets.user[i]],
            context=tuple(targets.tokens[i - targets.place[i] : i]),
            target=targets.tokens[i],
            top3=tuple(vocabulary.tokens[word] for word in best[row]),
            keys=int(mark["keys"][row]),
            logp=float(-mark["nll"][row]) if known else None,
            in_vocab=known,
        )


@contextmanager
def predictions_file(path: Path) -> Iterator[Callable[[Prediction], None]]:
    """A function that writes one JSON line per prediction; the file appears when the block ends well. Raises RunError if it cannot be written."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "w") as file:
            yield lambda prediction: print(json.dumps(asdict(prediction)), file=file)
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(path, f"cannot be written ({error.strerror})", "choose another file") from None
    finally:
        temporary.unlink(missing_ok=True)


# --- reading the result ------------------------------------------------------------------------------------------------------------------


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
    )


def difference(left: Evaluation, right: Evaluation, which: str, rng: np.random.Generator, draws: int = 1000) -> tuple[float, float, float]:
    """Recall (`top1` or `top3`) of left minus right over all targets, and its 95 % interval: the same users are drawn for both.

    Raises ValueError if they did not score the same targets.
    """
    if {user: counts.targets for user, counts in left.users.items()} != {user: counts.targets for user, counts in right.users.items()}:
        raise ValueError("two evaluations are compared on the same users and targets only")
    targets = np.array([counts.targets for counts in left.users.values()])
    gains = np.array([getattr(left.users[user], which) - getattr(right.users[user], which) for user in left.users])
    drawn = rng.multinomial(len(targets), np.full(len(targets), 1 / len(targets)), draws)  # [draws, users]
    low, high = np.percentile((drawn @ gains) / (drawn @ targets), [2.5, 97.5])
    return float(gains.sum() / targets.sum()), float(low), float(high)
