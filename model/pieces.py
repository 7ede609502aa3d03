"""Pieces: how well a network of pieces offers whole words, scores and types them.

The likeliest next words by beam search (`device_runtime.pieced`), the probability of the word
typed, keystrokes with the strip. The probabilities of an utterance's tokens multiply to that of its
pieces.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from device_runtime.metrics import STRIP
from device_runtime.pieced import (
    WIDTH,
    Path,
    Places,
    Refusal,
    Search,
    Spelling,
    State,
    Step,
    Words,
    follow,
)
from device_runtime.text import BOS, FIRST_WORD, OOV, SPECIALS, Vocabulary, is_word
from device_runtime.weights import Weights
from model.network import start, step

CHUNK = 1 << 23  # scores held at once: 32 MB
PATHS = 1 << 18  # paths whose text is remembered


@dataclass(frozen=True)
class Offers:
    """What is known before each token of some utterances, and how the token stands to it."""

    known: np.ndarray  # bool [n], whether the token can be spelled
    own: np.ndarray  # float64 [n], log-probability of the token
    classes: np.ndarray  # float32 [n, classes], log-probabilities
    strip: list[Words]  # the likeliest words
    keys: np.ndarray  # int [n], keystrokes for the word with the strip; 0 for a class


@dataclass(frozen=True)
class Reads:
    """How a network of pieces is read."""

    start: Callable[[int], State]  # the state before the first token, for so many texts
    step: Step


class Decoder:
    """A network of pieces and its vocabulary. Remembers how paths read."""

    def __init__(
        self,
        network: Weights | Reads,
        vocabulary: Vocabulary,
        width: int = WIDTH,
        blocked: frozenset[str] = frozenset(),
    ):
        """`network` are float weights, or what reads with others. `width` is how many paths one
        search may follow: the more, the surer. Words of `blocked` are never offered.

        Also decodes a vocabulary of words, where no path goes on.
        """
        self._vocabulary, self._width = vocabulary, width
        self._spelling = Spelling(vocabulary, PATHS)
        self._refused = Refusal(blocked) if blocked else None
        self._reads = network if isinstance(network, Reads) else reads_of(network, vocabulary)

    def offers(self, utterances: Sequence[Sequence[str]]) -> Iterator[Offers]:
        """Score each token after the tokens before it in its utterance.

        All tokens in order, in chunks of whole utterances.
        """
        size = CHUNK // len(self._vocabulary)
        block: list[tuple[Sequence[str], list[Path]]] = []
        positions = 0
        for utterance in utterances:
            spelled = [self._vocabulary.spelling(token) for token in utterance]
            more = 1 + sum(map(len, spelled))
            if block and positions + more > size:
                yield self._offers(block)
                block, positions = [], 0
            block.append((utterance, spelled))
            positions += more
        if block:
            yield self._offers(block)

    def best(
        self, contexts: Sequence[Sequence[str]], prefixes: Sequence[str] = (), k: int = STRIP
    ) -> list[Words]:
        """The k likeliest words after each context (tokens), best first; with prefixes, one each,
        among the words that start so.
        """
        sequences = [[BOS, *self._vocabulary.ids(tokens)] for tokens in contexts]
        places = _places(self._reads, sequences)
        last = np.cumsum([len(sequence) for sequence in sequences]) - 1
        prefixes = prefixes or [""] * len(contexts)
        searches = [
            Search(int(place), k, self._width, prefix, refused=self._refused)
            for place, prefix in zip(last, prefixes, strict=True)
        ]
        self._run(searches, places)
        return [search.words for search in searches]

    def _offers(self, block: list[tuple[Sequence[str], list[Path]]]) -> Offers:
        tokens = [token for utterance, _ in block for token in utterance]
        spelled = [pieces for _, own in block for pieces in own]
        places = _places(
            self._reads,
            [[BOS, *(i for pieces in own for i in pieces)] for _, own in block],
        )
        lengths = np.array([len(pieces) for pieces in spelled], np.int64)
        # of each token
        utterance = np.repeat(np.arange(len(block)), [len(own) for _, own in block])
        before = np.cumsum(lengths) - lengths  # pieces before each token
        first = before + utterance  # its place: every utterance has one more, after its last piece
        ids = np.array([i for pieces in spelled for i in pieces], np.int64)
        each = places.scores[np.arange(len(ids)) + np.repeat(utterance, lengths), ids]
        word = np.array([is_word(token) for token in tokens], bool)
        own = np.add.reduceat(each, before, dtype=np.float64) if len(ids) else np.zeros(0)
        own += np.where(word, places.complete[first + lengths], 0) - places.complete[first]
        strips = [Search(int(place), STRIP, self._width, refused=self._refused) for place in first]
        self._run(strips, places)
        known = np.array([OOV not in pieces for pieces in spelled], bool)
        classes = places.scores[first, len(SPECIALS) : FIRST_WORD] - places.complete[first, None]
        keys = np.where(word, self._keys(tokens, own, known & word, strips, places), 0)
        return Offers(known, own, classes, [search.words for search in strips], keys)

    def _keys(
        self,
        words: list[str],
        own: np.ndarray,
        wanted: np.ndarray,
        strips: list[Search],
        places: Places,
    ) -> np.ndarray:
        """Keystrokes of each word, as `device_runtime.metrics.keystrokes` counts them: a letter at
        a time until fewer than three words are ahead.
        """
        keys = np.array([len(word) + 1 for word in words])
        shown = np.array(
            [
                any(word == offered for offered, _ in search.words)
                for word, search in zip(words, strips, strict=True)
            ],
            bool,
        )
        keys[shown & wanted] = 1
        waiting = {int(row): strips[row] for row in np.flatnonzero(wanted & ~shown)}
        typed = 0
        while waiting:
            typed += 1
            longer = {row: search for row, search in waiting.items() if typed < len(words[row])}
            waiting = {
                row: search.narrowed(words[row][:typed], own[row], words[row], self._width)
                for row, search in longer.items()
            }
            self._run(list(waiting.values()), places)
            for row in [row for row, search in waiting.items() if len(search.words) < STRIP]:
                keys[row] = typed + 1
                del waiting[row]
        return keys

    def _run(self, searches: list[Search], places: Places) -> None:
        follow(searches, places, self._spelling, self._reads.step, CHUNK)


def reads_of(weights: Weights, vocabulary: Vocabulary) -> Reads:
    """The network of float weights, in numpy."""

    def begin(rows: int) -> State:
        hidden, cell = start(weights, rows)
        return {"hidden": hidden, "cell": cell}

    def further(tokens: np.ndarray, state: State) -> Places:
        hidden, cell = step(weights, tokens, state["hidden"], state["cell"])
        scores, complete = _scores(weights, vocabulary.first_inner, hidden)
        return Places({"hidden": hidden, "cell": cell}, scores, complete)

    return Reads(begin, further)


def _places(reads: Reads, sequences: Sequence[Sequence[int]]) -> Places:
    """Every place in some sequences, all sequences in order."""
    lengths = np.array([len(sequence) for sequence in sequences])
    starts = np.cumsum(lengths) - lengths
    longest_first = np.argsort(-lengths, kind="stable")
    state = reads.start(len(sequences))
    every = int(lengths.sum())
    at: Places | None = None
    for time in range(lengths.max()):
        active = longest_first[: np.count_nonzero(lengths > time)]
        tokens = np.array([sequences[i][time] for i in active])
        now = reads.step(tokens, {name: array[: len(active)] for name, array in state.items()})
        state = now.state
        if at is None:
            at = Places(
                {name: np.empty((every, *a.shape[1:]), a.dtype) for name, a in state.items()},
                np.empty((every, now.scores.shape[1]), now.scores.dtype),
                np.empty(every, now.complete.dtype),
            )
        rows = starts[active] + time
        at.scores[rows], at.complete[rows] = now.scores, now.complete
        for name, array in state.items():
            at.state[name][rows] = array
    assert at is not None  # every sequence begins with bos
    return at


def _scores(
    weights: Weights, first_inner: int, hidden: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the next piece, float32 [n, vocabulary], and of its not being an inner
    one, [n]. One exponential serves both.
    """
    logits: np.ndarray = hidden @ weights["embedding"].T
    logits += weights["output_bias"]
    logits -= logits.max(axis=1, keepdims=True)
    exponentials = np.exp(logits)
    whole = exponentials[:, :first_inner].sum(axis=1)
    total = whole + exponentials[:, first_inner:].sum(axis=1)
    logits -= np.log(total)[:, None]
    return logits, np.log(np.maximum(whole, np.finfo(np.float32).tiny) / total)
