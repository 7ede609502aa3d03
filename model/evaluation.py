"""Next-word accuracy of any system on held-out users. Protocol nwp-v2, steps 6 to 10.

A system is an engine: it reads sequences of ids and gives, for every position, the
log-probabilities of the next id. A network of pieces is a decoder instead, which gives whole words.
Contexts never cross utterances (the base protocol: no history).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np

from device_runtime.metrics import STRIP
from device_runtime.offensive import blocked_ids
from device_runtime.text import BOS, Vocabulary
from device_runtime.weights import Weights
from model.corpus import Users, Utterance
from model.measures import Evaluation, Lexicon, Prediction, Said, Tally, Targets, said, targets_of
from model.network import forward, log_probs
from model.ngram import NGram
from model.pieces import Decoder

LAST = 200  # utterances scored of each user
PERSONAL = 40  # utterances of a user of the personal protocol
BLOCK = 4096  # utterances given to an engine at once, at most
TOKENS = 1 << 17  # of them together, unless one alone has more
CHUNK = 1 << 23  # log-probabilities held at once by our engines: 32 MB
BATCH = 128  # sequences of like length the network reads side by side, at most
STEPS = 1 << 15  # their positions together, padding included


class Engine(Protocol):
    """A system that scores ids: a network, an n-gram model, a bundle."""

    def __call__(self, sequences: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        """Sequences of ids, bos first -> the log-probabilities after each id, all sequences in
        order, as float32 chunks [positions, vocabulary].
        """
        ...


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
    for rows in _batches(order, lengths):
        inputs = np.zeros((len(rows), lengths[rows[-1]]), np.int32)
        for row, i in enumerate(rows):
            inputs[row, : lengths[i]] = sequences[i]
        within = np.arange(inputs.shape[1]) < lengths[rows, None]  # [rows, time]
        states[(starts[rows, None] + np.arange(inputs.shape[1]))[within]] = forward(
            weights, inputs
        )[within]
    return states


def _batches(order: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Sequences to read side by side; `order` names them, shortest first."""
    start = 0
    while start < len(order):
        rows = order[start : start + BATCH]
        places = lengths[rows] * np.arange(1, len(rows) + 1)
        rows = rows[: max(1, int(np.searchsorted(places, STEPS, side="right")))]
        yield rows
        start += len(rows)


def _chunks(positions: int, vocabulary_size: int) -> Iterator[tuple[int, int]]:
    size = max(CHUNK // vocabulary_size, 1)
    return ((start, min(start + size, positions)) for start in range(0, positions, size))


@dataclass(frozen=True)
class Scope:
    """What of a corpus is scored, and what is never suggested."""

    last: int = LAST  # newest utterances of each user, at most
    max_users: int | None = None  # the first ones only, for a quick look
    personal: bool = False  # by the personal protocol: the newer half of users who typed enough
    blocked: frozenset[str] = frozenset()  # words that are never suggested


BASE = Scope()


def evaluate(
    engine: Engine | Decoder,
    users: Users,
    vocabulary: Vocabulary,
    scope: Scope = BASE,
    progress: Callable[[int, int], None] | None = None,
    on_prediction: Callable[[Prediction], object] | None = None,
) -> Evaluation:
    """Score a system on each user's newest utterances, by the base protocol unless scope differs.

    progress is called with (positions done, all positions); on_prediction once for each word
    target, users and utterances in order. Raises ValueError if the engine's vocabulary or number of
    positions is not that of the corpus, or a vocabulary of pieces comes without a decoder.
    """
    if vocabulary.of_pieces and not isinstance(engine, Decoder):
        raise ValueError("a vocabulary of pieces is scored by a decoder, which gives whole words")
    # users are read one at a time, once to count and once to score, and are not kept
    newest_of: dict[str, int] = {}
    everything = 0
    for name, own in islice(users.items(), scope.max_users):
        if newest := scored_of(own, scope.personal, scope.last):
            newest_of[name] = newest
            everything += sum(len(utterance.tokens) for utterance in own[-newest:])
    names = list(newest_of)
    tally = Tally(names, vocabulary.of_pieces)
    blocked = blocked_ids(vocabulary.tokens, scope.blocked)
    done = 0
    for block in _blocks(users, newest_of):
        targets = targets_of(block, engine.parts if isinstance(engine, Decoder) else None)
        start = 0
        for answers in (
            _decoded(engine, targets)
            if isinstance(engine, Decoder)
            else _said(engine, targets, vocabulary, blocked)
        ):
            tally.add(answers, targets, start, on_prediction)
            start += len(answers.own)
            if progress:
                progress(min(done + start, everything), everything)
        done += start
    return tally.evaluation()


def _blocks(
    users: Users, newest_of: Mapping[str, int]
) -> Iterator[list[tuple[int, Sequence[str]]]]:
    """The newest utterances of each user, so many: the place of the user, and tokens."""
    block: list[tuple[int, Sequence[str]]] = []
    size = 0
    for user, (name, newest) in enumerate(newest_of.items()):
        for utterance in users[name][-newest:]:
            if len(block) == BLOCK or (block and size + len(utterance.tokens) > TOKENS):
                yield block
                block, size = [], 0
            block.append((user, utterance.tokens))
            size += len(utterance.tokens)
    if block:
        yield block


def scored_of(utterances: Sequence[Utterance], personal: bool = False, last: int = LAST) -> int:
    """How many of a user's last utterances are scored; the earlier ones are history.

    In the base protocol at most `last`; in the personal one also at most half, and none of a user
    with fewer than PERSONAL.
    """
    if personal:
        return min(last, len(utterances) // 2) if len(utterances) >= PERSONAL else 0
    return min(last, len(utterances))


def _said(
    engine: Engine, targets: Targets, vocabulary: Vocabulary, blocked: Sequence[int]
) -> Iterator[Said]:
    """What an engine says.

    Raises ValueError if its vocabulary or number of positions is another.
    """
    spelled = [vocabulary.ids(utterance) for utterance in targets.utterances]
    lexicon = Lexicon(vocabulary.tokens, vocabulary.alphabetical, blocked)
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
        yield said(scores, every[here], targets.tokens[here], targets.is_word[here], lexicon)
        start = end
    if start != len(every):
        raise ValueError(f"expected {len(every)} positions, the engine gave {start}")


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
