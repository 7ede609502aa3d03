"""Whole words from a network of pieces: how they are offered, scored and typed.

The likeliest next words by beam search, the probability of the word typed, keystrokes with the
strip. A word's probability is that of its pieces, one after the other, times that of being
complete: the next piece starts a word, is a class or ends the utterance. What was typed before is
complete, so a first piece is taken among those that may follow a complete word; the probabilities
of an utterance's tokens then multiply to that of its pieces. A word counts by its best segmentation
alone, which is all the network has seen.

The beam goes on with the likeliest path first. No word is likelier than a path it goes through, so
the strip is exact once its words are likelier than every open path; the width only bounds what one
search may cost. A best segmentation is best in all its beginnings, so worse paths are dropped at
once.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heappop, heappush

import numpy as np

from device_runtime.metrics import STRIP
from device_runtime.text import BOS, FIRST_WORD, OOV, SPECIALS, Vocabulary, is_word, tokenise
from device_runtime.weights import Weights
from model.network import start, step

WIDTH = 16  # paths followed for one list of words
CHUNK = 1 << 23  # scores held at once: 32 MB
PATHS = 1 << 18  # paths whose text is remembered

Words = list[tuple[str, float]]  # words and their log-probabilities, best first
Path = tuple[int, ...]  # ids of pieces


@dataclass(frozen=True)
class Offers:
    """What is known before each token of some utterances, and how the token stands to it."""

    known: np.ndarray  # bool [n], whether the token can be spelled
    own: np.ndarray  # float64 [n], log-probability of the token
    classes: np.ndarray  # float32 [n, classes], log-probabilities
    strip: list[Words]  # the likeliest words
    keys: np.ndarray  # int [n], keystrokes for the word with the strip; 0 for a class


class Decoder:
    """A network of pieces and its vocabulary. Remembers how paths read."""

    def __init__(self, weights: Weights, vocabulary: Vocabulary, width: int = WIDTH):
        """`width` is how many paths one search may follow: the more, the surer.

        Also decodes a vocabulary of words, where no path goes on.
        """
        self._weights, self._vocabulary, self._width = weights, vocabulary, width
        self._read_path = lru_cache(PATHS)(self._text)
        self._inner = vocabulary.first_inner
        # without those that are a worse spelling of what they read
        starts = [i for i in range(FIRST_WORD, self._inner) if self._read_path((i,))]
        self._fitting = (
            _Index(starts, vocabulary.tokens).fitting,
            _Index(range(self._inner, len(vocabulary)), vocabulary.tokens).fitting,
        )

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
        places = _Places(self._weights, self._inner, sequences)
        last = np.cumsum([len(sequence) for sequence in sequences]) - 1
        prefixes = prefixes or [""] * len(contexts)
        searches = [
            _Search(int(place), k, self._width, prefix)
            for place, prefix in zip(last, prefixes, strict=True)
        ]
        self._run(searches, places)
        return [search.words for search in searches]

    def _offers(self, block: list[tuple[Sequence[str], list[Path]]]) -> Offers:
        tokens = [token for utterance, _ in block for token in utterance]
        spelled = [pieces for _, own in block for pieces in own]
        places = _Places(
            self._weights,
            self._inner,
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
        strips = [_Search(int(place), STRIP, self._width) for place in first]
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
        strips: list["_Search"],
        places: "_Places",
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

    def _run(self, searches: list["_Search"], places: "_Places") -> None:
        """Find the words of all searches side by side, so that every step of the network serves
        many of them.
        """
        hidden, cell = places.hidden, places.cell
        for search in searches:
            self._open(
                search,
                (),
                -places.complete[search.place],
                places.scores[search.place],
                search.place,
            )
        while searches:
            steps = [(search, *path) for search in searches for path in search.likeliest()]
            searches = list({id(search): search for search, *_ in steps}.values())
            kept: list[np.ndarray] = []  # of the states reached, those some path goes on from
            base = len(hidden)
            reached = ([hidden], [cell])
            for some in _chunks(steps, CHUNK // len(self._vocabulary)):
                states = [state for *_, state in some]
                after = step(
                    self._weights,
                    np.array([path[-1] for _, _, path, _ in some]),
                    hidden[states],
                    cell[states],
                )
                scores, complete = _scores(self._weights, self._inner, after[0])
                bounds = np.array([-cost for _, cost, _, _ in some])
                for (search, _, path, _), score in zip(
                    some, (bounds + complete).tolist(), strict=True
                ):
                    text, whole = self._read_path(path)  # type: ignore[misc]
                    if whole:
                        search.find(text, score)
                if self._inner == len(self._vocabulary):
                    continue
                further = bounds + scores[:, self._inner :].max(axis=1) > [
                    search.limit for search, *_ in some
                ]
                for row in np.flatnonzero(further):
                    search, _, path, _ = some[row]
                    if self._open(search, path, bounds[row], scores[row], base + len(kept)):
                        kept.append(row)
                        for array, arrays in zip(after, reached, strict=True):
                            arrays.append(array[row : row + 1])
            if kept:
                hidden, cell = (np.concatenate(arrays) for arrays in reached)

    def _open(
        self, search: "_Search", path: Path, bound: float, scores: np.ndarray, state: int
    ) -> bool:
        """Open the likeliest paths one piece longer than `path`, whose log-probability is `bound`.

        Returns whether there is any.
        """
        text = self._read_path(path)[0] if path else ""  # type: ignore[index]
        ids = self._fitting[bool(path)](search.prefix[len(text) :])
        extended = bound + scores[ids]  # log-probabilities of the longer paths
        good = np.flatnonzero(extended > search.limit)
        if len(good) > search.left:
            good = good[np.argpartition(-extended[good], search.left)[: search.left]]
        opened = False
        for i in good:
            longer = (*path, int(ids[i]))
            if self._read_path(longer):
                heappush(search.open, (-float(extended[i]), longer, state))
                opened = True
        return opened

    def _text(self, path: Path) -> tuple[str, bool] | None:
        """How a path reads, and whether that is a word; None if it is not the best segmentation of
        what it reads.
        """
        text = "".join(self._vocabulary.tokens[i] for i in path)
        if text and self._vocabulary.spelling(text) != path:
            return None
        return text, bool(text) and tokenise(text) == [text]


class _Index:
    """Pieces by the letters they begin with."""

    def __init__(self, ids: Iterable[int], tokens: Sequence[str]):
        self._ids = {tokens[i]: i for i in ids}
        self._beginning: dict[str, list[int]] = defaultdict(list)
        for token, i in self._ids.items():
            for end in range(len(token) + 1):
                self._beginning[token[:end]].append(i)
        self.fitting = lru_cache(PATHS)(self._fitting)

    def _fitting(self, rest: str) -> np.ndarray:
        """Ids of pieces that agree with the letters a word must go on with: one begins with the
        other.
        """
        shorter = (rest[:end] for end in range(len(rest)))
        return np.array(
            [
                *self._beginning.get(rest, ()),
                *(self._ids[text] for text in shorter if text in self._ids),
            ],
            np.int64,
        )


@dataclass(slots=True)
class _Search:
    """One list of words in the making."""

    place: int
    k: int
    left: int  # paths it may still follow
    prefix: str = ""
    # words must be likelier than this; if it is set, any k such words are enough
    floor: float = -np.inf
    but: str = ""  # a word left out
    words: Words = field(default_factory=list)
    # heap of minus the log-probability, the path, the state before its last piece
    open: list[tuple[float, Path, int]] = field(default_factory=list)

    @property
    def limit(self) -> float:
        """A path must be likelier than this to matter."""
        if len(self.words) < self.k:
            return self.floor
        return self.words[-1][1] if self.floor == -np.inf else np.inf

    def likeliest(self) -> list[tuple[float, Path, int]]:
        """The next paths to follow: as many as words are missing, at least one."""
        paths: list[tuple[float, Path, int]] = []
        while (
            self.left
            and self.open
            and len(paths) < max(self.k - len(self.words), 1)
            and -self.open[0][0] > self.limit
        ):
            paths.append(heappop(self.open))
            self.left -= 1
        return paths

    def find(self, word: str, score: float) -> None:
        """Take a word into the list, if it is likely enough and wanted."""
        if (
            score > self.limit
            and word != self.but
            and word.startswith(self.prefix)
            and all(word != known for known, _ in self.words)
        ):
            self.words = sorted([*self.words, (word, score)], key=lambda offer: -offer[1])[: self.k]

    def narrowed(self, prefix: str, floor: float, but: str, width: int) -> "_Search":
        """A search for words ahead of one: longer prefix, and what was found already."""
        words = [
            (word, score) for word, score in self.words if score > floor and word.startswith(prefix)
        ]
        return _Search(self.place, self.k, width, prefix, floor, but, words)


class _Places:
    """Every place in some sequences: the network's state there, log-probabilities of the next
    piece, and that of no inner piece following.
    """

    def __init__(self, weights: Weights, first_inner: int, sequences: Sequence[Sequence[int]]):
        lengths = np.array([len(sequence) for sequence in sequences])
        starts = np.cumsum(lengths) - lengths
        longest_first = np.argsort(-lengths, kind="stable")
        hidden, cell = start(weights, len(sequences))
        self.hidden = np.empty((lengths.sum(), hidden.shape[1]), np.float32)  # [places, embedding]
        self.cell = np.empty((lengths.sum(), cell.shape[1]), np.float32)  # [places, units]
        for time in range(lengths.max()):
            active = longest_first[: np.count_nonzero(lengths > time)]
            tokens = np.array([sequences[i][time] for i in active])
            hidden, cell = step(weights, tokens, hidden[: len(active)], cell[: len(active)])
            self.hidden[starts[active] + time], self.cell[starts[active] + time] = hidden, cell
        # [places, vocabulary], [places]
        self.scores, self.complete = _scores(weights, first_inner, self.hidden)


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


def _chunks(items: list, size: int) -> Iterator[list]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
