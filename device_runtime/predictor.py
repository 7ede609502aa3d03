"""Suggestions: a bundle and what was typed -> the likeliest words with probabilities."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime.bundle import Bundle
from device_runtime.interpreter import Arrays
from device_runtime.metrics import STRIP, top_words
from device_runtime.offensive import blocked_ids
from device_runtime.own_words import OwnWords
from device_runtime.pieced import Pieced
from device_runtime.reader import Personal, reader_of
from device_runtime.text import BOS, fold, tokenise

KEPT = 32  # tokens whose states are kept: so far one can go back without starting anew


@dataclass(frozen=True)
class Suggestion:
    """One word of the strip."""

    word: str
    probability: float  # of this word next; with a prefix, among the words that start so


def centred(best_first: Sequence[Any]) -> list[Any]:
    """A strip as it is shown, the best in the centre.

    >>> centred(["best", "second", "third"])
    ['second', 'best', 'third']
    """
    return [*best_first[1::2][::-1], *best_first[::2]]


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
    ):
        """A `personal` network takes the place of the bundle's. The user's `own` words are mixed
        in while they are ahead of the network alone. Words of `blocked` and of the bundle's own
        list are never suggested.

        The words of a bundle of pieces are joined from them; raises VocabularyError if `own` words
        are to be mixed in there.
        """
        self.vocabulary = bundle.vocabulary
        if own is not None:
            self.vocabulary.require_words("a mix of own words")
        self._reader = reader_of(bundle, personal)
        self.own = own
        self._blocked = frozenset(blocked | getattr(bundle, "blocked", frozenset()))
        self._never = blocked_ids(self.vocabulary.tokens, self._blocked)
        # new words of whom were looked at, how many of them, and the ids of those blocked
        self._looked: tuple[OwnWords | None, int, list[int]] = (None, 0, [])
        self._pieced = (
            Pieced(self.vocabulary, self._place, self.step, self._blocked)
            if self.vocabulary.of_pieces
            else None
        )
        # of which context, and its scores
        self._mixed: tuple[object, NDArray[Any]] = (None, np.empty(0))
        self._before: list[int] = []  # tokens whose states were let go
        self._read: list[_Read] = []

    def start(self, rows: int) -> Arrays:
        """The state before the first token, for `rows` texts at once."""
        return self._reader.start(rows)

    def step(self, tokens: NDArray[Any], state: Arrays) -> tuple[NDArray[Any], Arrays]:
        """One token further: int32 [rows] -> log-probabilities of the next, float32 [rows,
        vocabulary], and the state after it.
        """
        return self._reader.step(tokens, state)

    def suggest(self, context: str, prefix: str = "", k: int = STRIP) -> list[Suggestion]:
        """The k likeliest words after `context`, best first; only those that start with `prefix`,
        if given. Punctuation is never suggested. Within a run of a script without spaces they are
        what may stand in place of `prefix`.
        """
        if self._pieced:
            best = self._pieced.suggest(context, prefix, k)
            return [Suggestion(word, probability) for word, probability in best]
        scores, words = self._scores(tokenise(context))
        if not prefix:
            return [
                Suggestion(words[i], float(np.exp(scores[i])))
                for i in top_words(scores[None], k)[0]
                if np.isfinite(scores[i])
            ]
        prefix = fold(prefix)
        alphabet, ids = self.own.alphabetical if self.own else self.vocabulary.alphabetical
        candidates = np.array(
            ids[bisect_left(alphabet, prefix) : bisect_left(alphabet, prefix + "\uffff")], np.int64
        )
        likely = scores[candidates]
        total = np.exp(likely).sum()
        order = np.lexsort((candidates, -likely))[:k]  # ties go to the more frequent word
        return [
            Suggestion(words[candidates[i]], float(np.exp(likely[i]) / total))
            for i in order
            if np.isfinite(likely[i])
        ]

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
            never = never + [looked + i for i in blocked_ids(own.words[looked:], self._blocked)]
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
