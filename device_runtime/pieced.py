"""Pieced: the likeliest words of a network of pieces, by a search over the paths that spell them.

A word's probability is that of its pieces, one after the other, times that of being complete: the
next piece starts a word, is a class or ends the utterance. What was typed before is complete, so a
first piece is taken among those that may follow a complete word. A word counts by its best
segmentation alone, which is all the network has seen.

The search goes on with the likeliest path first. No word is likelier than a path it goes through,
so the strip is exact once its words are likelier than every open path; the width only bounds what
one search may cost. A best segmentation is best in all its beginnings, so worse paths are dropped
at once.

Scripts without spaces are typed in runs of several words. There a suggestion goes on with the run:
what the next piece adds to what was typed, and nothing need end after it.
"""

import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime.metrics import STRIP
from device_runtime.offensive import is_blocked, stems
from device_runtime.text import (
    BOS,
    FIRST_WORD,
    Vocabulary,
    fold,
    normalise,
    plain,
    spaceless,
    tokenise,
    written,
)

WIDTH = 16  # paths followed for one list of words
PATHS = 1 << 13  # paths whose text is remembered
CHUNK = 1 << 23  # scores held at once: 32 MB
LOOKED = 16  # last letters of a run that may turn out to be part of a longer piece
PLACES = 6  # of them, where a longer piece may begin
TRIED = 64  # pieces tried for one list
_RUN = "\u5b57"  # a letter that a run may begin with
FAINT = 1e-3  # share below which a piece is no suggestion for a run
_LAST = "\U0010ffff"  # comes after every letter

_JOINERS = "\u200b\u200c\u200d"
_APART = ("THAI", "LAO", "KHMER", "MYANMAR", "TAI", "NEW", "BALINESE", "JAVANESE", "AHOM")

Words = list[tuple[str, float]]  # words and their log-probabilities, best first
Path = tuple[int, ...]  # ids of pieces
State = dict[str, NDArray[Any]]  # what a network remembers of some texts, a row each


@dataclass(frozen=True)
class Reading:
    """How a path reads."""

    text: str
    whole: bool  # whether it is a word, which has to end to be one
    run: bool = False  # whether it is of a script without spaces, where nothing has to end


@dataclass(frozen=True)
class Places:
    """Where the network stands at some places of some texts."""

    state: State  # of each array [places, width]
    scores: NDArray[Any]  # float32 [places, vocabulary], log-probabilities of the next piece
    complete: NDArray[Any]  # float [places], log-probability that no inner piece follows


Step = Callable[[NDArray[Any], State], Places]  # int [n] ids, states before -> the places after


def complete_of(log_probs: NDArray[Any], first_inner: int) -> NDArray[Any]:
    """Log-probability that no inner piece follows: float [n, vocabulary] -> [n]."""
    whole = np.exp(log_probs[:, :first_inner]).sum(axis=1)
    logs: NDArray[Any] = np.log(np.maximum(whole, np.finfo(np.float32).tiny))
    return logs


class Spelling:
    """The pieces of one vocabulary, and how paths of them read. Remembers paths.

    Of a vocabulary of words no path goes on.
    """

    def __init__(self, vocabulary: Vocabulary, paths: int = PATHS):
        """`paths` is how many are remembered."""
        self._vocabulary = vocabulary
        self.inner, self.size = vocabulary.first_inner, len(vocabulary)
        self.read = lru_cache(paths)(self._read)
        # without those that are a worse spelling of what they read
        starts = [i for i in range(FIRST_WORD, self.inner) if self._read((i,))]
        self.starting = _Index(starts, vocabulary.tokens, paths)
        inner = range(self.inner, self.size)
        self.going_on = _Index(inner, vocabulary.tokens, paths)
        in_runs = [
            i
            for i in inner
            if tokenise(_RUN + vocabulary.tokens[i]) == [_RUN + vocabulary.tokens[i]]
        ]
        self.in_runs = _Index(in_runs, vocabulary.tokens, paths)

    def _read(self, path: Path) -> Reading | None:
        """None if it is not the best segmentation of what it reads, or no part of a word."""
        text = self._text(path)
        if text and self._vocabulary.spelling(text) != path:
            return None
        whole = bool(text) and tokenise(text) == [text]
        if text and spaceless(text):
            return Reading(text, whole=False, run=True) if whole else None
        return Reading(text, whole)

    def _text(self, path: Path) -> str:
        return "".join(self._vocabulary.tokens[i] for i in path)


class _Index:
    """Pieces by the letters they begin with."""

    def __init__(self, ids: Iterable[int], tokens: Sequence[str], remembered: int):
        self._id_of = {tokens[i]: i for i in ids}
        self._sorted = sorted(self._id_of)
        self._ids = np.array([self._id_of[text] for text in self._sorted], np.int64)
        self.of_nothing = self._id_of.get("")  # the piece that only says that a word starts
        self.fitting = lru_cache(remembered)(self._fitting)

    def longer(self, begun: str) -> NDArray[Any]:
        """Ids of pieces that begin with these letters and have more."""
        low, high = bisect_left(self._sorted, begun), bisect_left(self._sorted, begun + _LAST)
        return self._ids[low + (self._sorted[low : low + 1] == [begun]) : high]

    def _fitting(self, rest: str) -> NDArray[Any]:
        """Ids of pieces that agree with the letters a word must go on with: one begins with the
        other.
        """
        low, high = bisect_left(self._sorted, rest), bisect_left(self._sorted, rest + _LAST)
        shorter = (rest[:end] for end in range(len(rest)))
        at_once = [self._id_of[text] for text in shorter if text in self._id_of]
        ids: NDArray[Any] = np.concatenate(
            [np.sort(self._ids[low:high]), np.array(at_once, np.int64)]
        )
        return ids


@dataclass(slots=True)
class Search:
    """One list of words in the making."""

    place: int  # where it starts
    k: int
    left: int  # paths it may still follow
    prefix: str = ""
    # words must be likelier than this; if it is set, any k such words are enough
    floor: float = -np.inf
    but: str = ""  # a word left out
    refused: Callable[[str], bool] | None = None  # words that are never offered
    words: Words = field(default_factory=list)
    # heap of minus the log-probability, the path, the state before its last piece
    open: list[tuple[float, Path, int]] = field(default_factory=list)
    seen: float = 0.0  # probability of all words that were met

    @property
    def limit(self) -> float:
        """A path must be likelier than this to matter."""
        if len(self.words) < self.k:
            return self.floor
        return self.words[-1][1] if self.floor == -np.inf else np.inf

    @property
    def total(self) -> float:
        """Probability that the text goes on with the prefix, as far as it was looked at."""
        return self.seen + sum(float(np.exp(-cost)) for cost, *_ in self.open)

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
        if not word.startswith(self.prefix):
            return
        self.seen += float(np.exp(score))
        if score <= self.limit or word == self.but or (self.refused and self.refused(word)):
            return
        before = next((known for known in self.words if known[0] == word), None)
        if before and before[1] >= score:
            return
        others = [known for known in self.words if known is not before]
        self.words = sorted([*others, (word, score)], key=lambda offer: -offer[1])[: self.k]

    def narrowed(self, prefix: str, floor: float, but: str, width: int) -> "Search":
        """A search for words ahead of one: longer prefix, and what was found already."""
        words = [
            (word, score) for word, score in self.words if score > floor and word.startswith(prefix)
        ]
        return Search(self.place, self.k, width, prefix, floor, but, self.refused, words)


def follow(
    searches: Sequence[Search],
    places: Places,
    spelling: Spelling,
    step: Step,
    chunk: int = CHUNK,
) -> None:
    """Find the words of all searches side by side, so that every step of the network serves many of
    them. `chunk` is how many scores may be held at once.
    """
    states = places.state
    for search in searches:
        before = -float(places.complete[search.place])
        _open(search, (), before, places.scores[search.place], search.place, spelling)
    while searches:
        steps = [(search, *path) for search in searches for path in search.likeliest()]
        searches = list({id(search): search for search, *_ in steps}.values())
        kept: list[int] = []  # of the states reached, those some path goes on from
        base = len(next(iter(states.values())))
        reached = {name: [array] for name, array in states.items()}
        size = max(chunk // spelling.size, 1)
        for some in (steps[first : first + size] for first in range(0, len(steps), size)):
            rows = [state for *_, state in some]
            after = step(
                np.array([path[-1] for _, _, path, _ in some]),
                {name: array[rows] for name, array in states.items()},
            )
            bounds = np.array([-cost for _, cost, _, _ in some])
            for (search, _, path, _), score in zip(
                some, (bounds + after.complete).tolist(), strict=True
            ):
                reading = spelling.read(path)
                if reading and reading.whole:
                    search.find(reading.text, score)
            if spelling.inner == spelling.size:
                continue
            further = bounds + after.scores[:, spelling.inner :].max(axis=1) > [
                search.limit for search, *_ in some
            ]
            for row in np.flatnonzero(further):
                search, _, path, _ = some[row]
                at = base + len(kept)
                if _open(search, path, bounds[row], after.scores[row], at, spelling):
                    kept.append(row)
                    for name, array in after.state.items():
                        reached[name].append(array[row : row + 1])
        if kept:
            states = {name: np.concatenate(arrays) for name, arrays in reached.items()}


def _open(
    search: Search,
    path: Path,
    bound: float,
    scores: NDArray[Any],
    state: int,
    spelling: Spelling,
) -> bool:
    """Open the likeliest paths one piece longer than `path`, whose log-probability is `bound`; a
    run that goes on is found at once.

    Returns whether there is any.
    """
    known = spelling.read(path) if path else None
    text = known.text if known else ""
    index = spelling.going_on if path else spelling.starting
    ids = index.fitting(search.prefix[len(text) :])
    extended = bound + scores[ids]  # log-probabilities of the longer paths
    good = np.flatnonzero(extended > search.limit)
    if len(good) > search.left:
        good = good[np.argpartition(-extended[good], search.left)[: search.left]]
    opened = False
    for i in good:
        longer = (*path, int(ids[i]))
        reading = spelling.read(longer)
        if reading is None:
            continue
        if reading.run and len(reading.text) > len(search.prefix):
            search.find(reading.text, float(extended[i]))
        else:
            heappush(search.open, (-float(extended[i]), longer, state))
            opened = True
    return opened


class Refusal:
    """Which words are never offered, by a list as people write it. In scripts without spaces a
    listed word is refused wherever it would come to stand in a run.
    """

    def __init__(self, blocked: frozenset[str]):
        self._stems = stems(blocked)
        self._in_runs = tuple(word for word in self._stems if spaceless(word))
        self._longest = max(map(len, self._in_runs), default=1)

    def __call__(self, word: str) -> bool:
        return self.of_run("", word) if spaceless(word) else is_blocked(word, self._stems)

    def of_run(self, run: str, more: str) -> bool:
        """Whether a run that goes on so holds a listed word that it did not hold before."""
        if not self._in_runs:
            return False
        text = plain(run[max(len(run) - self._longest + 1, 0) :] + more)
        return any(word in text for word in self._in_runs)


class Pieced:
    """What a device's strip offers by a network of pieces."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        at: Callable[[Sequence[int]], tuple[NDArray[Any], State]],
        step: Callable[[NDArray[Any], State], tuple[NDArray[Any], State]],
        blocked: frozenset[str] = frozenset(),
        width: int = WIDTH,
    ):
        """`at` says where the network stands after some ids: log-probabilities of the next, float32
        [vocabulary], and its state, of one text. `step` goes on from several states, as
        `Reader.step` does. `blocked` are words that are never offered, as a list names them.
        """
        self._vocabulary, self._at, self._width = vocabulary, at, width
        self._spelling = Spelling(vocabulary)
        self._refused = Refusal(blocked)

        def further(tokens: NDArray[Any], state: State) -> Places:
            log_probs, after = step(tokens.astype(np.int32), state)
            return Places(after, log_probs, complete_of(log_probs, vocabulary.first_inner))

        self._step = further

    def suggest(self, context: str, prefix: str = "", k: int = STRIP) -> Words:
        """The k likeliest words after `context` that begin with `prefix`, best first, with their
        probabilities: of this word next; with letters typed, among what goes on with them.

        Within a run of a script without spaces they are what stands in place of `prefix` when the
        run goes on: `prefix` and what the next piece adds.
        """
        run = self._run(context + prefix)
        if run:
            return [(prefix + more, share) for more, share in self._going_on(*run, k)]
        prefix = fold(prefix)
        search = Search(0, k, self._width, prefix, refused=self._refused)
        self._find(search, self._vocabulary.ids(tokenise(context)))
        total = search.total if prefix else 1.0
        return [(word, float(np.exp(score)) / total) for word, score in search.words]

    def _run(self, typed: str) -> tuple[list[str], str] | None:
        """The tokens before a run at the end of a text, and the run; None where there is none."""
        pairs = written(typed)
        if not pairs or not spaceless(pairs[-1][0]) or not normalise(typed).endswith(pairs[-1][1]):
            return None
        return [token for token, _ in pairs[:-1]], pairs[-1][0]

    def _going_on(self, before: list[str], run: str, k: int) -> Words:
        """What one piece may add to a run, with probabilities among all that may be added.

        The piece may begin anywhere in what was typed: its letters so far are spelled otherwise
        until it is whole.
        """
        places, ids, of, logs = self._candidates([BOS, *self._vocabulary.ids(before)], run)
        likely = np.exp(logs - logs.max()) if len(logs) else logs
        shares = likely / likely.sum()
        offers: Words = []
        for at in np.argsort(-logs, kind="stable")[:TRIED]:
            if shares[at] < FAINT:
                break
            spelled, typed = places[of[at]]
            more, whole = self._vocabulary.tokens[ids[at]][typed:], (*spelled, int(ids[at]))
            if (
                all(more != known for known, _ in offers)
                and self._vocabulary.spelling(run + more) == whole
                and alike(run[-1], more)
                and tokenise(run + more) == [run + more]
                and not self._refused.of_run(run, more)
            ):
                offers.append((more, float(shares[at])))
                if len(offers) == k:
                    break
        return offers

    def _candidates(
        self, before: list[int], run: str
    ) -> tuple[list[tuple[Path, int]], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Every piece that may go on with a run.

        The places where they may begin, each as the pieces before it and how many letters of those
        that begin there are typed; then of each piece its id, its place and its log-probability but
        for what all have in common, [pieces].
        """
        starting, going_on = self._spelling.starting, self._spelling.in_runs
        # the pieces before, how many letters are typed, those that may follow
        tried: list[tuple[Path, int, NDArray[Any]]] = []
        for begin in range(len(run), max(len(run) - LOOKED, 0) - 1, -1):
            begun = run[begin:]
            if begin == 0:
                tried.append(((), len(begun), starting.longer(begun)))
                if starting.of_nothing is not None:
                    tried.append(((starting.of_nothing,), len(begun), going_on.longer(begun)))
            else:
                spelled = self._vocabulary.spelling(run[:begin])
                tried.append((spelled, len(begun), going_on.longer(begun)))
        # the earliest first, so that the network steps on from one to the next
        tried = [each for each in tried if len(each[2])][:PLACES][::-1]
        together = list(zip(*(spelled for spelled, *_ in tried), strict=False))
        common = next((i for i, each in enumerate(together) if len(set(each)) > 1), len(together))
        known: dict[Path, NDArray[Any]] = {}

        def after(path: Path) -> NDArray[Any]:
            if path not in known:
                known[path] = self._at([*before, *path])[0]
            return known[path]

        logs = [np.empty(0, np.float32)]
        for spelled, _, longer in tried:
            so_far = sum(
                float(after(spelled[:end])[spelled[end]]) for end in range(common, len(spelled))
            )
            logs.append(after(spelled)[longer] + so_far)
        return (
            [(spelled, typed) for spelled, typed, _ in tried],
            np.concatenate([np.empty(0, np.int64), *(longer for *_, longer in tried)]),
            np.repeat(np.arange(len(tried)), [len(longer) for *_, longer in tried]),
            np.concatenate(logs),
        )

    def _find(self, search: Search, ids: Sequence[int]) -> None:
        log_probs, state = self._at([BOS, *ids])
        scores = log_probs[None]
        places = Places(state, scores, complete_of(scores, self._vocabulary.first_inner))
        follow([search], places, self._spelling, self._step)


def alike(last: str, more: str) -> bool:
    """Whether letters may go on with a run that ends in `last`: those of one script, where Chinese
    and Japanese count as one.
    """
    return len({_script(letter) for letter in last + more if letter not in _JOINERS}) <= 1


def _script(letter: str) -> str:
    first = unicodedata.name(letter, "").split(" ")[0]
    return first if first in _APART else "CJK"
