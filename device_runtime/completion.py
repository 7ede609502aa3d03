"""Completion: which words the letters typed so far may become, and how much each is forgiven.

Words that begin so come as they are. Words that begin so but for an accent or an apostrophe that
was left out are offered beside them, and words one slip of a finger away (Damerau 1964) where
little else fits. Hangul is compared letter by letter, so that a syllable being typed completes.
"""

import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import OSA

from device_runtime.text import fold, plain

# what a word's probability is multiplied by
LEFT_OUT = 0.2  # an accent or an apostrophe is missing
OTHER = 0.02  # another accent or apostrophe was typed
SLIP = 0.02  # one letter is wrong, missing or too many
SWAP = 0.06  # two letters are swapped
LAST = 0.2  # beside: it is the last letter typed, of which little is known yet
SLIP_FROM = 3  # letters typed: of fewer, everything is one slip from something
LONGEST = 20  # letters typed: in longer words no slip is looked for
_LAST_FROM = 4  # letters typed from which the last one may be the slip

_END = "\U0010ffff"
_HEADS = 32  # lists of beginnings that are remembered

# Hangul: final consonants and double vowels as the letters they are typed with
_INITIALS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
_VOWELS = "ㅏ ㅐ ㅑ ㅒ ㅓ ㅔ ㅕ ㅖ ㅗ ㅗㅏ ㅗㅐ ㅗㅣ ㅛ ㅜ ㅜㅓ ㅜㅔ ㅜㅣ ㅠ ㅡ ㅡㅣ ㅣ"
_FINALS = (
    "ㄱ ㄲ ㄱㅅ ㄴ ㄴㅈ ㄴㅎ ㄷ ㄹ ㄹㄱ ㄹㅁ ㄹㅂ ㄹㅅ ㄹㅌ "
    "ㄹㅍ ㄹㅎ ㅁ ㅂ ㅂㅅ ㅅ ㅆ ㅇ ㅈ ㅊ ㅋ ㅌ ㅍ ㅎ"
)
_JAMO = (
    {0x1100 + at: letter for at, letter in enumerate(_INITIALS)}
    | {0x1161 + at: typed for at, typed in enumerate(_VOWELS.split())}
    | {0x11A8 + at: typed for at, typed in enumerate(_FINALS.split())}
)
# the same as letters of their own, as they stand before they become a syllable
_JAMO |= {
    code: _JAMO[ord(part)]
    for code in range(0x3131, 0x3164)
    if (part := unicodedata.normalize("NFKD", chr(code))) and ord(part) in _JAMO
}
_TYPED = [typed for typed in _FINALS.split() if len(typed) == 2]
_JAMO |= {
    ord(double): typed for double, typed in zip("ㄳㄵㄶㄺㄻㄼㄽㄾㄿㅀㅄ", _TYPED, strict=True)
}


def letters(word: str) -> str:
    """A folded word as the letters it is typed with: a letter first, then its accents.

    >>> letters("é") == "e\\u0301", letters("안녕").startswith(letters("안ㄴ"))
    (True, True)
    """
    if word.isascii():
        return word
    return unicodedata.normalize("NFD", word).translate(_JAMO)


class Index:
    """Words that may be completed, by the letters they begin with."""

    def __init__(self, words: Sequence[str], first: int = 0):
        """`words` are folded; the first one has the id `first`."""
        exact, forgiving = [], []
        for i, word in enumerate(words, first):
            key = letters(word)
            bare = letters(plain(word))
            exact.append((word if key == word else key, i))
            forgiving.append((word if bare == word else bare, i))
        self._exact, self._ids = _sorted(exact)
        self._plain, self._plain_ids = _sorted(forgiving)
        self._cut = np.array(self._plain or [""], f"U{LONGEST + 1}")[: len(self._plain)]
        self._heads = lru_cache(_HEADS)(self._beginnings)

    def beginning(self, key: str) -> NDArray[Any]:
        """Ids of the words whose letters begin so, whole ones among them."""
        return self._ids[bisect_left(self._exact, key) : bisect_left(self._exact, key + _END)]

    def whole(self, key: str) -> NDArray[Any]:
        """Ids of the words that have these letters and no more."""
        return self._ids[bisect_left(self._exact, key) : bisect_left(self._exact, key + "\0")]

    def beginning_plainly(self, bare: str) -> NDArray[Any]:
        """Ids of the words that begin so without their accents and apostrophes."""
        return self._plain_ids[
            bisect_left(self._plain, bare) : bisect_left(self._plain, bare + _END)
        ]

    def whole_plainly(self, bare: str) -> NDArray[Any]:
        """Ids of the words that are this without their accents and apostrophes."""
        return self._plain_ids[
            bisect_left(self._plain, bare) : bisect_left(self._plain, bare + "\0")
        ]

    def slips(self, bare: str) -> dict[int, float]:
        """What the probability of each word is multiplied by that begins with these letters but for
        one slip of the finger. The first letter is right, or swapped with the second.
        """
        forgiven: dict[int, float] = {}
        if not SLIP_FROM <= len(bare) <= LONGEST:
            return forgiven
        for length in (len(bare) - 1, len(bare), len(bare) + 1):
            heads, spans = self._heads(bare[0], length)
            if not heads:
                continue
            distances = process.cdist(
                [bare], heads, scorer=OSA.distance, score_cutoff=1, dtype=np.uint8
            )[0]
            for at in np.flatnonzero(distances == 1).tolist():
                at_the_end = heads[at][: len(bare) - 1] == bare[:-1] and length <= len(bare)
                if at_the_end and length < len(bare) < _LAST_FROM:
                    continue
                swapped = length == len(bare) and sorted(heads[at]) == sorted(bare)
                weight = SWAP if swapped else SLIP * LAST if at_the_end else SLIP
                for i in self._plain_ids[slice(*spans[at])].tolist():
                    forgiven[i] = max(weight, forgiven.get(i, 0.0))
        if bare[0] != bare[1]:
            for i in self.beginning_plainly(bare[1] + bare[0] + bare[2:]).tolist():
                forgiven[i] = SWAP
        return forgiven

    def _beginnings(self, first: str, length: int) -> tuple[list[str], list[list[int]]]:
        """The different beginnings of this length of words with this first letter, and where the
        words of each stand.
        """
        low, high = bisect_left(self._plain, first), bisect_left(self._plain, first + _END)
        heads = self._cut[low:high].astype(f"U{length}")
        starts = np.flatnonzero(np.r_[True, heads[1:] != heads[:-1]][: len(heads)])
        spans = np.stack([starts, np.r_[starts[1:], len(heads)][: len(starts)]], axis=1) + low
        kept = np.char.str_len(heads[starts]) == length
        return heads[starts[kept]].tolist(), spans[kept].tolist()


@dataclass(frozen=True)
class Fits:
    """Words that fit the letters begun."""

    ids: NDArray[Any]  # int64 [n], each once
    weights: NDArray[Any]  # float64 [n], what their probabilities are multiplied by
    whole: NDArray[Any]  # int64, of the words that are typed fully
    twins: NDArray[Any]  # int64, of those that are but for an accent or apostrophe left out


def fitting(indexes: Sequence[Index], begun: str) -> Fits:
    """The words that begin with the letters begun, or would with what hurried people leave out."""
    key, bare = letters(fold(begun)), letters(plain(begun))
    exact = _joined(index.beginning(key) for index in indexes)
    whole = _joined(index.whole(key) for index in indexes)
    left_out = key == bare
    if not left_out and (len(exact) or key.endswith("'")):  # the accent or the apostrophe is meant
        return Fits(exact, np.ones(len(exact)), whole, _NONE)
    forgiven = _joined(index.beginning_plainly(bare) for index in indexes)
    forgiven = _without(forgiven, exact)
    twins = _joined(index.whole_plainly(bare) for index in indexes)
    weights = np.ones(len(exact) + len(forgiven))
    weights[len(exact) :] = LEFT_OUT if left_out else OTHER
    return Fits(
        np.concatenate([exact, forgiven]),
        weights,
        whole,
        _without(twins, whole),
    )


def with_slips(fits: Fits, indexes: Sequence[Index], begun: str, at_the_end: bool = True) -> Fits:
    """And the words that would fit but for one slip of the finger, which may be `at_the_end`; none
    for fewer letters begun than `SLIP_FROM`.
    """
    if fold(begun).endswith("'"):
        return fits
    bare = letters(plain(begun))
    least = 0.0 if at_the_end else SLIP
    forgiven = {
        i: weight for index in indexes for i, weight in index.slips(bare).items() if weight >= least
    }
    for i in fits.ids.tolist():
        forgiven.pop(i, None)
    return replace(
        fits,
        ids=np.concatenate([fits.ids, np.array(list(forgiven), np.int64)]),
        weights=np.concatenate([fits.weights, list(forgiven.values())]),
    )


_NONE = np.empty(0, np.int64)


def _without(ids: NDArray[Any], known: NDArray[Any]) -> NDArray[Any]:
    """The ids that are not known, each of which is among them."""
    return _NONE if len(ids) == len(known) else np.setdiff1d(ids, known, assume_unique=True)


def _joined(parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([_NONE, *parts])


def _sorted(pairs: list[tuple[str, int]]) -> tuple[list[str], NDArray[Any]]:
    pairs.sort()
    return [key for key, _ in pairs], np.array([i for _, i in pairs], np.int64)
