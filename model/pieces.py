"""Pieces: how well a network of pieces offers whole words, scores and types them.

The likeliest next words by beam search (`device_runtime.pieced`), the probability of the word
typed, keystrokes with the strip. The probabilities of an utterance's tokens multiply to that of its
pieces.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

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
    alike,
    follow,
)
from device_runtime.text import BOS, FIRST_WORD, OOV, SPECIALS, Vocabulary, is_word, spaceless
from device_runtime.weights import Weights
from model.network import start, step

CHUNK = 1 << 23  # scores held at once: 32 MB
PATHS = 1 << 18  # paths whose text is remembered


@dataclass(frozen=True)
class Part:
    """What of an utterance is offered and typed as one."""

    text: str
    path: Path
    of_run: bool = False  # of a script without spaces, where nothing has to end
    within: bool = False  # goes on with a run


@dataclass(frozen=True)
class Offers:
    """What is known before each part of some utterances, and how the part stands to it."""

    known: np.ndarray  # bool [n], whether it can be spelled
    own: np.ndarray  # float64 [n], its log-probability
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
        """Score each part of these utterances (tokens), as `parts` has them, after the parts before
        it.

        All parts in order, in chunks of whole utterances.
        """
        size = CHUNK // len(self._vocabulary)
        block: list[list[Part]] = []
        positions = 0
        for utterance in utterances:
            parts = self.parts(utterance)
            more = 1 + sum(len(part.path) for part in parts)
            if block and positions + more > size:
                yield self._offers(block)
                block, positions = [], 0
            block.append(parts)
            positions += more
        if block:
            yield self._offers(block)

    def parts(self, tokens: Sequence[str]) -> list[Part]:
        """What of an utterance is offered and typed as one: its tokens, but the pieces of a run of
        a script without spaces, where a token is several words.
        """
        parts = []
        for token in tokens:
            path = self._vocabulary.spelling(token)
            if not spaceless(token) or OOV in path:
                parts.append(Part(token, path))
                continue
            # what only says that a run starts has no letter
            heads = 1 + (self._vocabulary.tokens[path[0]] == "")
            opening = "".join(self._vocabulary.tokens[i] for i in path[:heads])
            parts.append(Part(opening, path[:heads], of_run=True))
            parts += [
                Part(self._vocabulary.tokens[i], (i,), of_run=True, within=True)
                for i in path[heads:]
            ]
        return parts

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

    def _offers(self, block: list[list[Part]]) -> Offers:
        parts = [part for utterance in block for part in utterance]
        places = _places(
            self._reads,
            [[BOS, *(i for part in utterance for i in part.path)] for utterance in block],
        )
        lengths = np.array([len(part.path) for part in parts], np.int64)
        # of each part
        utterance = np.repeat(np.arange(len(block)), [len(own) for own in block])
        before = np.cumsum(lengths) - lengths  # pieces before each part
        first = before + utterance  # its place: every utterance has one more, after its last piece
        ids = np.array([i for part in parts for i in part.path], np.int64)
        each = places.scores[np.arange(len(ids)) + np.repeat(utterance, lengths), ids]
        word = np.array([is_word(part.text) for part in parts], bool)
        ends = word & ~np.array([part.of_run for part in parts], bool)
        within = np.array([part.within for part in parts], bool)
        # what may stand there at all: what goes on with a run, or what follows a whole word
        begins = np.where(within, 0, places.complete[first])
        own = np.add.reduceat(each, before, dtype=np.float64) if len(ids) else np.zeros(0)
        own += np.where(ends, places.complete[first + lengths], 0) - begins
        strips = [Search(int(place), STRIP, self._width, refused=self._refused) for place in first]
        self._run([strips[row] for row in np.flatnonzero(~within)], places)
        for row in np.flatnonzero(within):
            strips[row].words = self._going_on(places.scores[first[row]], parts[row])
        known = np.array([OOV not in part.path for part in parts], bool)
        classes = places.scores[first, len(SPECIALS) : FIRST_WORD] - begins[:, None]
        keys = np.where(word, self._keys(parts, own, known & word, strips, places), 0)
        return Offers(known, own, classes, [search.words for search in strips], keys)

    def _going_on(self, scores: np.ndarray, part: Part, prefix: str = "") -> Words:
        """The likeliest pieces that go on with a run and begin so, of a place's scores."""
        ids = self._spelling.in_runs.fitting(prefix)
        texts = self._vocabulary.tokens
        best = ids[np.argsort(-scores[ids], kind="stable")]
        fit = ((texts[i], float(scores[i])) for i in best if texts[i].startswith(prefix))
        return list(islice((each for each in fit if alike(part.text, each[0])), STRIP))

    def _keys(
        self,
        parts: list[Part],
        own: np.ndarray,
        wanted: np.ndarray,
        strips: list[Search],
        places: Places,
    ) -> np.ndarray:
        """Keystrokes of each part, as `device_runtime.metrics.keystrokes` counts them: a letter at
        a time until fewer than three words are ahead. No space follows a part of a run.
        """
        keys = np.array([len(part.text) + (not part.of_run) for part in parts])
        shown = np.array(
            [
                any(part.text == offered for offered, _ in search.words)
                for part, search in zip(parts, strips, strict=True)
            ],
            bool,
        )
        keys[shown & wanted] = 1
        waiting = {int(row): strips[row] for row in np.flatnonzero(wanted & ~shown)}
        typed = 0
        while waiting:
            typed += 1
            longer = {
                row: search for row, search in waiting.items() if typed < len(parts[row].text)
            }
            waiting = {
                row: search.narrowed(
                    parts[row].text[:typed], own[row], parts[row].text, self._width
                )
                for row, search in longer.items()
            }
            self._run([s for row, s in waiting.items() if not parts[row].within], places)
            for row, search in waiting.items():
                if parts[row].within:
                    search.words = [
                        (text, score)
                        for text, score in self._going_on(
                            places.scores[search.place], parts[row], parts[row].text[:typed]
                        )
                        if score > own[row]
                    ]
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
