"""Next-word accuracy of any system on held-out users. Protocol nwp-v1, steps 6 to 10 (base
protocol: no history).

A system is an engine: it reads sequences of ids and gives, for every position, the
log-probabilities of the next id. A network of pieces is a decoder instead, which gives whole words.
Contexts never cross utterances. All sums are kept per user, so intervals and comparisons are over
users.
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
from device_runtime.metrics import (
    MACRO_TARGETS,
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
from device_runtime.text import BOS, FIRST_WORD, OOV, SPECIALS, Vocabulary, is_word
from device_runtime.weights import Weights
from model.corpus import Users, Utterance
from model.network import forward, log_probs
from model.ngram import NGram
from model.pieces import Decoder

LAST = 200  # utterances scored of each user
PERSONAL = 40  # utterances of a user of the personal protocol
BLOCK = 4096  # utterances given to an engine at once
CHUNK = 1 << 23  # log-probabilities held at once by our engines: 32 MB
BATCH = 128  # sequences of like length the network reads side by side


class Engine(Protocol):
    def __call__(self, sequences: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        """Sequences of ids, bos first -> the log-probabilities after each id, all sequences in
        order, as float32 chunks [positions, vocabulary].
        """
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
    open_vocabulary: bool = False  # every word can be spelled


@dataclass(frozen=True)
class Summary:
    """An evaluation in the numbers people compare; shares are 0..1, intervals 95 % over users,
    `macro` is mean, p10, p50, p90 over users.
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


@dataclass(frozen=True)
class Gain:
    """What one measure gains from one system to another, as a difference of shares, -1..1. Users
    with fewer than MACRO_TARGETS targets count in the first two numbers only.
    """

    change: float  # over all targets
    interval: tuple[float, float]  # 95 % over users, the same ones drawn for both systems
    gained: int  # users, by more than a point
    lost: int  # likewise
    same: int  # users within a point
    by_user: (
        tuple[float, float, float, float] | None
    )  # mean, p10, p50, p90 of the users' own differences; None without such users


@dataclass(frozen=True)
class Comparison:
    """One system minus another on the same users and targets."""

    users: int  # with MACRO_TARGETS targets or more
    top1: Gain
    top3: Gain
    keystroke_saving: Gain


# --- engines
# ------------------------------------------------------------------------------------------------


def engine_of(weights: Weights, vocabulary: Vocabulary) -> Engine | Decoder:
    """The network as whatever its vocabulary asks for."""
    return Decoder(weights, vocabulary) if vocabulary.of_pieces else network_engine(weights)


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
        states[(starts[rows, None] + np.arange(inputs.shape[1]))[within]] = forward(
            weights, inputs
        )[within]
    return states


def _chunks(positions: int, vocabulary_size: int) -> Iterator[tuple[int, int]]:
    size = max(CHUNK // vocabulary_size, 1)
    return ((start, min(start + size, positions)) for start in range(0, positions, size))


# --- scoring
# ------------------------------------------------------------------------------------------------


def evaluate(
    engine: Engine | Decoder,
    users: Users,
    vocabulary: Vocabulary,
    last: int = LAST,
    max_users: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_prediction: Callable[[Prediction], None] | None = None,
    blocked: Sequence[int] = (),
    personal: bool = False,
) -> Evaluation:
    """Score an engine or decoder on the last `last` utterances of each user (of the first
    `max_users`, for a quick look), as `scored_of` says.

    progress is called with (positions done, all positions); on_prediction once for each word
    target, users and utterances in order; blocked are ids that are never suggested. Raises
    ValueError if the engine's vocabulary or number of positions is not that of the corpus, or a
    vocabulary of pieces comes without a decoder.
    """
    if vocabulary.of_pieces and not isinstance(engine, Decoder):
        raise ValueError("a vocabulary of pieces is scored by a decoder, which gives whole words")
    names, scored = [], []  # users are read one at a time and not kept
    for name, own in islice(users.items(), max_users):
        if newest := scored_of(own, personal, last):
            scored += [(len(names), utterance.tokens) for utterance in own[-newest:]]
            names.append(name)
    everything = sum(len(tokens) for _, tokens in scored)
    tally = Tally(names, vocabulary.of_pieces)
    done = 0
    for first in range(0, len(scored), BLOCK):
        targets = targets_of(scored[first : first + BLOCK])
        start = 0
        for found in (
            _decoded(engine, targets)
            if isinstance(engine, Decoder)
            else _said(engine, targets, vocabulary, blocked)
        ):
            tally.add(found, targets, start, on_prediction)
            start += len(found.own)
            if progress:
                progress(done + start, everything)
        done += start
    return tally.evaluation()


def scored_of(utterances: Sequence[Utterance], personal: bool = False, last: int = LAST) -> int:
    """How many of a user's last utterances are scored; the earlier ones are history.

    In the base protocol at most `last`; in the personal one also at most half, and none of a user
    with fewer than PERSONAL.
    """
    if personal:
        return min(last, len(utterances) // 2) if len(utterances) >= PERSONAL else 0
    return min(last, len(utterances))


class Tally:
    """Adds up what a system says at its targets, user by user."""

    def __init__(self, names: list[str], open_vocabulary: bool = False):
        self._names = names
        self._open_vocabulary = open_vocabulary
        self._sums = np.zeros((len(names), len(FIELDS)))

    def add(
        self,
        found: "Said",
        targets: "Targets",
        start: int,
        on_prediction: Callable[[Prediction], None] | None = None,
    ) -> None:
        """Count what was said at the targets from `start` on."""
        marks = marks_of(found, targets, start)
        user = targets.user[start : start + len(found.own)]
        for column, values in enumerate(marks):
            self._sums[:, column] += np.bincount(user, values, len(self._names))
        if on_prediction:
            for prediction in _predictions(marks, found, targets, start, self._names):
                on_prediction(prediction)

    def evaluation(self) -> Evaluation:
        counts = {name: counts_of(row) for name, row in zip(self._names, self._sums, strict=True)}
        return Evaluation(counts, sum(counts.values(), Counts()), self._open_vocabulary)


FIELDS = [field.name for field in fields(Counts)]


@dataclass(frozen=True)
class Targets:
    """Every token of a block of utterances, one after the other."""

    utterances: list[tuple[str, ...]]
    tokens: list[str]
    user: np.ndarray  # int [n], index of the user
    place: np.ndarray  # int [n], tokens before it in its utterance
    is_word: np.ndarray  # bool [n]


@dataclass(frozen=True)
class Said:
    """What a system says at some positions, and how the targets stand there."""

    strip: list[tuple[str, ...]]  # the three likeliest words, best first
    known: np.ndarray  # bool [n], whether the target is in the vocabulary, as an id or spelled
    own: np.ndarray  # float [n], log-probability of the target, if known
    hits: np.ndarray  # bool [n, 3], which word of the strip is the target
    words_ahead: (
        np.ndarray
    )  # int [n], words of the strip likelier than the target, if that is a class
    classes_ahead: np.ndarray  # int [n], classes likelier than the target
    keys: np.ndarray  # int [n], keystrokes for the target, if a word


def targets_of(block: list[tuple[int, tuple[str, ...]]]) -> Targets:
    utterances = [utterance for _, utterance in block]
    lengths = [len(utterance) for utterance in utterances]
    tokens = [token for utterance in utterances for token in utterance]
    return Targets(
        utterances,
        tokens,
        user=np.repeat([user for user, _ in block], lengths),
        place=np.concatenate([np.arange(length) for length in lengths]),
        is_word=np.array([is_word(token) for token in tokens]),
    )


def _said(
    engine: Engine, targets: Targets, vocabulary: Vocabulary, blocked: Sequence[int]
) -> Iterator[Said]:
    """What an engine says. Raises ValueError if its vocabulary or number of positions is
    another.
    """
    spelled = [vocabulary.ids(utterance) for utterance in targets.utterances]
    every = np.array([i for own in spelled for i in own], np.int64)
    start = 0
    for scores in engine([[BOS, *own[:-1]] for own in spelled]):
        end = start + len(scores)
        if scores.shape[1] != len(vocabulary) or end > len(every):
            raise ValueError(
                f"expected up to {len(every) - start} positions of {len(vocabulary)} ids, the "
                f"engine gave {scores.shape}"
            )
        here = slice(start, end)
        yield said(
            scores,
            every[here],
            targets.tokens[here],
            targets.is_word[here],
            vocabulary.tokens,
            vocabulary.alphabetical,
            blocked,
        )
        start = end
    if start != len(every):
        raise ValueError(f"expected {len(every)} positions, the engine gave {start}")


def said(
    scores: np.ndarray,
    ids: np.ndarray,
    tokens: Sequence[str],
    word: np.ndarray,
    words: Sequence[str],
    alphabetical: tuple[list[str], list[int]],
    blocked: Sequence[int] = (),
) -> Said:
    """What log-probabilities (float [n, words]) say about n targets: their ids (OOV if unknown),
    tokens, and which of them are words.

    words and alphabetical are those of all ids; blocked are ids that are never suggested.
    """
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
        strip=[tuple(words[i] for i in row) for row in best.tolist()],
        known=ids != OOV,
        own=own,
        hits=hits,
        words_ahead=(scores[rows[:, None], best] > own[:, None]).sum(axis=1),
        classes_ahead=(scores[:, len(SPECIALS) : FIRST_WORD] > own[:, None]).sum(axis=1),
        keys=keystrokes(scores, tokens, offered, hits.any(axis=1), alphabetical),
    )


def _decoded(decoder: Decoder, targets: Targets) -> Iterator[Said]:
    """What a decoder says."""
    start = 0
    for offers in decoder.offers(targets.utterances):
        tokens = targets.tokens[start : start + len(offers.own)]
        strip = [tuple(word for word, _ in words) for words in offers.strip]
        yield Said(
            strip=strip,
            known=offers.known,
            own=offers.own,
            hits=np.array(
                [
                    [words[i : i + 1] == (token,) for i in range(STRIP)]
                    for token, words in zip(tokens, strip, strict=True)
                ]
            ),
            words_ahead=np.array(
                [
                    sum(score > own for _, score in words)
                    for words, own in zip(offers.strip, offers.own, strict=True)
                ]
            ),
            classes_ahead=(offers.classes > offers.own[:, None]).sum(axis=1),
            keys=offers.keys,
        )
        start += len(tokens)


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
        "letters": np.where(word, [len(token) + 1 for token in words], 0),
        "keys": np.where(word, said.keys, 0),
        "first": word & first,
        "first_top1": said.hits[:, 0] & first,
        "tokens": np.ones(len(word)),
        "tokens_top1": said.known & (ahead < 1),
        "tokens_top3": said.known & (ahead < STRIP),
    }
    return np.array([marks[name] for name in FIELDS], np.float64)


def counts_of(row: np.ndarray) -> Counts:
    return Counts(
        *(
            float(value) if name == "nll" else int(value)
            for name, value in zip(FIELDS, row, strict=True)
        )
    )  # type: ignore[arg-type]


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


@contextmanager
def predictions_file(path: Path) -> Iterator[Callable[[Prediction], None]]:
    """A function that writes one JSON line per prediction; the file appears when the block ends
    well. Raises RunError if it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "w") as file:
            yield lambda prediction: print(json.dumps(asdict(prediction)), file=file)
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(
            path, f"cannot be written ({error.strerror})", "choose another file"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


# --- reading the result
# ------------------------------------------------------------------------------------------------


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


def compare(left: Evaluation, right: Evaluation, rng: np.random.Generator) -> Comparison:
    """Left minus right in the three measures people compare; rng draws the bootstrap.

    Raises ValueError if they did not score the same targets.
    """
    gains = {
        which: _gain(left, right, which, rng) for which in ("top1", "top3", "keystroke_saving")
    }
    return Comparison(
        users=sum(counts.targets >= MACRO_TARGETS for counts in left.users.values()), **gains
    )


def _gain(left: Evaluation, right: Evaluation, which: str, rng: np.random.Generator) -> Gain:
    change, low, high = difference(left, right, which, rng)
    gains, wholes = _gains(left, right, which)
    enough = np.array([counts.targets >= MACRO_TARGETS for counts in left.users.values()])
    gains, wholes = gains[enough], wholes[enough]
    # in whole numbers: a share of 0.01 is not exact
    gained, lost = (int(np.count_nonzero(100 * way > wholes)) for way in (gains, -gains))
    own = gains / wholes
    by_user = (
        tuple(map(float, (own.mean(), *np.percentile(own, [10, 50, 90])))) if len(own) else None
    )
    return Gain(change, (low, high), gained, lost, len(own) - gained - lost, by_user)  # type: ignore[arg-type]


def difference(
    left: Evaluation, right: Evaluation, which: str, rng: np.random.Generator, draws: int = 1000
) -> tuple[float, float, float]:
    """Recall (`top1` or `top3`) or `keystroke_saving` of left minus right over all targets, and its
    95 % interval: the same users are drawn for both.

    Raises ValueError if they did not score the same targets.
    """
    gains, wholes = _gains(left, right, which)
    drawn = rng.multinomial(
        len(gains), np.full(len(gains), 1 / len(gains)), draws
    )  # [draws, users]
    low, high = np.percentile((drawn @ gains) / (drawn @ wholes), [2.5, 97.5])
    return float(gains.sum() / wholes.sum()), float(low), float(high)


def _gains(left: Evaluation, right: Evaluation, which: str) -> tuple[np.ndarray, np.ndarray]:
    """Of each user: hits (or spared keys) left has more than right, and the targets (or letters)
    they are a share of; int [users] both.
    """
    scored = [
        {user: (counts.targets, counts.letters) for user, counts in each.users.items()}
        for each in (left, right)
    ]
    if scored[0] != scored[1]:
        raise ValueError("two evaluations are compared on the same users and targets only")
    pairs = [(counts, right.users[user]) for user, counts in left.users.items()]
    if which == "keystroke_saving":
        return np.array([other.keys - own.keys for own, other in pairs]), np.array(
            [own.letters for own, _ in pairs]
        )
    return np.array(
        [getattr(own, which) - getattr(other, which) for own, other in pairs]
    ), np.array([own.targets for own, _ in pairs])
