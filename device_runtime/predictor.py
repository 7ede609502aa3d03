"""Suggestions: a bundle and what was typed -> the likeliest words with probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime.bundle import Bundle
from device_runtime.completion import Fits, Index, fitting, with_slips
from device_runtime.interpreter import Arrays
from device_runtime.metrics import STRIP, top_words
from device_runtime.offensive import blocked_ids
from device_runtime.own_words import OwnWords
from device_runtime.pieced import Pieced
from device_runtime.reader import Personal, reader_of
from device_runtime.text import BOS, FIRST_WORD, OOV, Vocabulary, plain, tokenise
from device_runtime.writing import shown

_BEHIND = 0.1  # nats
KEPT = 32  # tokens whose states are kept: so far one can go back without starting anew


@dataclass(frozen=True)
class Suggestion:
    """One word of the strip."""

    word: str  # as it is shown, and typed when it is taken
    probability: float  # of this word next; with a prefix, among the words that fit it
    token: str = ""  # as it is compared


Places = tuple[Suggestion | None, ...]  # of a strip as it is shown, left to right; None: free
_FILLED = (1, 0, 2)  # places of an empty strip, in the order in which words come to them


def centred(best_first: Sequence[Any]) -> list[Any]:
    """A strip as it is shown, the best in the centre.

    >>> centred(["best", "second", "third"])
    ['second', 'best', 'third']
    """
    return [*best_first[1::2][::-1], *best_first[::2]]


def steady(before: Sequence[Suggestion | None], now: Sequence[Suggestion]) -> Places:
    """The places of a strip after one more key of a word, where `before` was what it showed, and
    `now` are the best words, best first. Words that still fit keep their places, and others come
    where one is free: so the best word may stand anywhere (`best_place`). Without a strip before it
    stands in the centre.

    >>> the, then, they = (Suggestion(word, 0.3, word) for word in ("the", "then", "they"))
    >>> [each and each.word for each in steady([they, the, then], [then, they])]
    ['they', None, 'then']
    """
    held = {each.token: place for place, each in enumerate(before) if each}
    places: list[Suggestion | None] = [None] * STRIP
    for each in now[:STRIP]:
        if each.token in held:
            places[held[each.token]] = each
    free = (place for place in _FILLED if places[place] is None)
    for each in now[:STRIP]:
        if each.token not in held:
            places[next(free)] = each
    return tuple(places)


@dataclass(frozen=True)
class Standing:
    """A strip as it stands, and the text it stands at."""

    context: str = ""
    begun: str = ""
    places: Places = ()

    def after(self, context: str, begun: str, now: Sequence[Suggestion]) -> "Standing":
        """The strip at another text, where `now` are the best words: steady, as long as it is the
        same word that is typed or deleted.
        """
        same = self.context == context and (
            begun.startswith(self.begun) or self.begun.startswith(begun)
        )
        return Standing(context, begun, steady(self.places if same else (), now))


def best_place(strip: Sequence[Suggestion | None]) -> int | None:
    """Where the likeliest word of a strip stands; None if there is no word."""
    there = [(each.probability, -place) for place, each in enumerate(strip) if each]
    return -max(there)[1] if there else None


@dataclass(frozen=True)
class _Read:
    """Where the network stands after a token."""

    token: int
    state: Arrays
    log_probs: NDArray[Any]  # float32 [vocabulary], of the next


class Predictor:
    """Remembers the states along the last context: a key within a word costs no step, a new word
    one, a deleted one none. One per thread.
    """

    def __init__(
        self,
        bundle: Bundle,
        personal: Personal | None = None,
        own: OwnWords | None = None,
        blocked: frozenset[str] = frozenset(),
        written: Mapping[str, str] | None = None,
        allowed: frozenset[str] = frozenset(),
        never: frozenset[str] = frozenset(),
        capitals: bool = True,
    ):
        """A `personal` network takes the place of the bundle's. The user's `own` words are mixed
        in while they are ahead of the network alone.

        `written` is how people write words, by token; without it, what the bundle says. Words that
        open a sentence get a capital, if `capitals`. Words of `blocked` and of the bundle's own
        list are not suggested; before these come the user's own lists, of words `never` to be
        suggested and of words that are `allowed`.

        The words of a bundle of pieces are joined from them; raises VocabularyError if `own` words
        are to be mixed in there.
        """
        self.vocabulary = bundle.vocabulary
        if own is not None:
            self.vocabulary.require_words("a mix of own words")
        self._reader = reader_of(bundle, personal)
        self.own = own
        self._capitals = capitals
        self._written = _usual(
            self.vocabulary, getattr(bundle, "written", {}) if written is None else written
        )
        self._blocked = frozenset(blocked | getattr(bundle, "blocked", frozenset()))
        self._barred = frozenset(map(plain, never))
        self.allow(allowed)
        # the new words that an index was made of, and it
        self._new: tuple[list[str], Index | None] = ([], None)
        self._before: list[int] = []  # tokens whose states were let go
        self._read: list[_Read] = []

    def allow(self, words: frozenset[str], never: frozenset[str] | None = None) -> None:
        """From now on these words, and no others, are suggested even where they are blocked; and
        those `never` to be are not, if given.
        """
        if never is not None:
            self._barred = frozenset(map(plain, never))
        self._rule = _Rule(self._blocked, self._barred, frozenset(map(plain, words)))
        self._never = self._rule.ids(self.vocabulary.tokens)
        # new words of whom were looked at, how many of them, and the ids of those blocked
        self._looked: tuple[OwnWords | None, int, list[int]] = (None, 0, [])
        self._pieced = (
            Pieced(self.vocabulary, self._place, self.step, self._rule.listed)
            if self.vocabulary.of_pieces
            else None
        )
        # of which context, and its scores
        self._mixed: tuple[object, NDArray[Any]] = (None, np.empty(0))

    def start(self, rows: int) -> Arrays:
        """The state before the first token, for `rows` texts at once."""
        return self._reader.start(rows)

    def step(self, tokens: NDArray[Any], state: Arrays) -> tuple[NDArray[Any], Arrays]:
        """One token further: int32 [rows] -> log-probabilities of the next, float32 [rows,
        vocabulary], and the state after it.
        """
        return self._reader.step(tokens, state)

    def suggest(self, context: str, prefix: str = "", k: int = STRIP) -> list[Suggestion]:
        """The k likeliest words after `context`, best first; with the letters of a `prefix`, those
        that complete it: that start so, or would if an accent, an apostrophe or a letter were
        right. Punctuation is never suggested. Within a run of a script without spaces they are
        what may stand in place of `prefix`.

        A known word that was typed fully keeps a place, and so does the one that is meant where its
        apostrophe or accents were left out.
        """
        if self._pieced:
            best = self._pieced.suggest(context, prefix, k)
            return [Suggestion(self._shown(word, context, prefix), p, word) for word, p in best]
        scores, words = self._scores(tokenise(context))
        if prefix:
            ids, shares = self._completing(prefix, scores, k)
        else:
            ids = top_words(scores[None], k)[0]
            ids = ids[np.isfinite(scores[ids])]
            shares = np.exp(scores[ids])
        return [
            Suggestion(self._shown(words[i], context, prefix), float(share), words[i])
            for i, share in zip(ids, shares, strict=True)
        ]

    def _completing(
        self, prefix: str, scores: NDArray[Any], k: int
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Ids of the k best completions, best first, and their shares of all that fit."""
        indexes = [_index_of(self.vocabulary)]
        if self.own and (new := self._index_of_new(self.own)):
            indexes.append(new)
        fits = fitting(indexes, prefix)
        complete = np.count_nonzero(np.isfinite(scores[fits.ids]))
        begun = len(fits.ids)
        if complete < STRIP:
            fits = with_slips(fits, indexes, prefix, at_the_end=not complete)
        likely = scores[fits.ids] + np.log(fits.weights)
        if complete and len(likely) > begun:
            # what begins so comes before what would but for a slip
            sure, slipped = likely[:begun], likely[begun:]
            slipped += min(0.0, sure[np.isfinite(sure)].min() - slipped.max() - _BEHIND)
        order = np.lexsort((fits.ids, -likely))  # ties go to the more frequent word
        order = order[np.isfinite(likely[order])]
        if not len(order):
            return fits.ids[order], likely[order]
        shares = np.exp(likely - likely[order].max())
        best = _with_places(order, fits, k)
        return fits.ids[best], shares[best] / shares.sum()

    def _index_of_new(self, own: OwnWords) -> Index | None:
        """Of the words that the vocabulary lacks."""
        known = len(self.vocabulary)
        words, index = self._new
        if own.words[known:] != words:
            words = own.words[known:]
            index = Index(words, known) if words else None
            self._new = words, index
        return index

    def _shown(self, token: str, context: str, prefix: str) -> str:
        usual = self._written.get(token)
        if self.own and (mine := self.own.written(token)) and (usual is None or mine != token):
            usual = mine  # who writes it small may wait for the keyboard to make it right
        return shown(token, usual, context, prefix, self._capitals)

    def typed(self, message: str, judged: bool = True) -> None:
        """Learn from a message that was sent: `learn` of its tokens, of whose words only those are
        learned that stand in it as words.
        """
        self.learn(tokenise(message), judged, message)

    def learn(self, tokens: Sequence[str], judged: bool = True, message: str | None = None) -> None:
        """The own words are judged on a message, then it is counted among them. Nothing without own
        words. Without the message itself all of its words of letters may be learned.

        Messages that are counted again, whose verdict was kept, need not be judged again: that
        saves their steps.
        """
        if self.own is None or not tokens:
            return
        if judged:
            ids = self.vocabulary.ids(tokens)
            self.own.hold_back(
                tokens, np.array([self._after([BOS, *ids[:place]]) for place in range(len(ids))])
            )
        if message is None:
            self.own.add(tokens)
        else:
            self.own.add_message(message, tokens)

    def _scores(self, tokens: list[str]) -> tuple[NDArray[Any], list[str]]:
        """Log-probabilities of all words after these tokens, those of blocked ones minus infinity;
        and the words of all ids.
        """
        words = self.own.words if self.own else self.vocabulary.tokens
        asked = (tokens, self.own, self.own.changes if self.own else 0)
        if self._mixed[0] != asked:
            scores = self._after([BOS, *self.vocabulary.ids(tokens)])
            if self.own:
                scores = (
                    self.own.mix(scores, tokens) if self.own.serves else self.own.extended(scores)
                )
            scores = scores.copy()
            scores[self._never] = -np.inf
            if self.own:
                scores[self._never_of(self.own)] = -np.inf
                scores[list(self.own.withheld)] = -np.inf
            self._mixed = asked, scores
        return self._mixed[1], words

    def _never_of(self, own: OwnWords) -> list[int]:
        """Ids of the user's new words that are blocked: each word is looked at once."""
        whose, looked, never = self._looked
        if whose is not own:
            looked, never = len(self.vocabulary), []
        if len(own.words) > looked:
            never = never + [looked + i for i in self._rule.ids(own.words[looked:])]
        self._looked = own, len(own.words), never
        return never

    def _place(self, ids: Sequence[int]) -> tuple[NDArray[Any], Arrays]:
        """Log-probabilities after a context, and the state there."""
        scores = self._after(list(ids))
        return scores, self._read[-1].state

    def _after(self, ids: list[int]) -> NDArray[Any]:
        """Log-probabilities after a context, float32 [vocabulary]; steps only over what the states
        kept do not cover.
        """
        gone = len(self._before)
        pairs = enumerate(zip((read.token for read in self._read), ids[gone:], strict=False))
        same = next(
            (i for i, (kept, token) in pairs if kept != token),
            min(len(self._read), len(ids) - gone),
        )
        if same <= 0 or ids[:gone] != self._before:
            gone = same = 0
            self._before = []
        del self._read[same:]
        for token in ids[gone + same :]:
            state = self._read[-1].state if self._read else self.start(1)
            log_probs, state = self.step(np.array([token], np.int32), state)
            self._read.append(_Read(token, state, log_probs[0]))
            if len(self._read) > KEPT:
                self._before.append(self._read.pop(0).token)
        return self._read[-1].log_probs


@dataclass(frozen=True)
class _Rule:
    """Which words are not suggested."""

    blocked: frozenset[str]
    never: frozenset[str]  # by the user, as `plain` words
    allowed: frozenset[str]  # by the user, as `plain` words

    @property
    def listed(self) -> frozenset[str]:
        """All words whose kind must not be suggested."""
        return self.never | {word for word in self.blocked if plain(word) not in self.allowed}

    def ids(self, words: Sequence[str]) -> list[int]:
        """Of those of some words that must not be suggested."""
        barred = {
            i for i in blocked_ids(words, self.blocked) if plain(words[i]) not in self.allowed
        }
        if self.never:
            barred |= {i for i, word in enumerate(words) if plain(word) in self.never}
        return sorted(barred)


def _with_places(order: NDArray[Any], fits: Fits, k: int) -> NDArray[Any]:
    """The k best of an order of words, in which the best of those typed fully and the best of their
    twins have a place, though not the first one.
    """
    best = order[:k]
    if k < STRIP:
        return best
    kept = []
    for ids in (fits.whole, fits.twins):
        among = order[np.isin(fits.ids[order], ids)][:1]
        kept += among.tolist()
    missing = [at for at in kept if at not in best]
    if not missing:
        return best
    free = [at for at in best.tolist() if at not in kept]
    chosen = {*free[: k - len(kept)], *kept}
    return np.array([at for at in order.tolist() if at in chosen], np.int64)


@lru_cache(4)
def _index_of(vocabulary: Vocabulary) -> Index:
    return Index(vocabulary.tokens[FIRST_WORD:], FIRST_WORD)


def _usual(vocabulary: Vocabulary, written: Mapping[str, str]) -> Mapping[str, str]:
    """How people write words; English has a capital I though nobody says so."""
    if vocabulary.id("i'm") == OOV:
        return written
    english = {word: f"I{word[1:]}" for word in ("i", "i'm", "i'll", "i've", "i'd")}
    return {**english, **written}
