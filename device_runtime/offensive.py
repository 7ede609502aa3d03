"""Offensive: which words a list of blocked ones means, however they are spelled, stretched or bent.

A list names stems. A word is meant when it is a stem once accents, apostrophes and digits that
stand for letters are read as people read them, once letters that are held down are let go, and once
an ending is taken off. Words that only look so by chance stay: what is compared is whole words,
never parts of them.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from device_runtime import text

# digits that stand for letters; a 1 for either of two
_LOOKS = tuple(str.maketrans("0134578", letters) for letters in ("oieastb", "oleastb"))
_HELD = re.compile(r"(.)\1{2,}")
_TWICE = re.compile(r"(.)\1+")
ENDINGS = ("s", "es", "ed", "er", "ers", "ing", "ings", "in", "y")
_SHORT = 3  # letters of a stem to which only a plural is added: longer endings make other words
# words by themselves that are a stem and an ending by chance
_INNOCENT = frozenset(
    [
        *("cumin", "cocker", "spicy", "spices", "spiced", "tardy", "fagin", "peer", "peers"),
        *("cooner", "dicky", "prickly", "hells", "slaver", "slavers", "slaving", "skanky"),
        *("shittim", "titer", "homer", "homers", "bonding", "raper", "rapes"),
        *("cocky", "cocked", "cocking", "crape", "crapes", "crapy", "cummings", "dicker"),
        *("dickers", "booby", "retarder", "retarders", "retarding", "spicer", "spicers", "spicing"),
    ]
)
# without their apostrophe they are another word
_APART = frozenset(
    [
        *("he'll", "she'll", "we'll", "i'll", "he'd", "she'd", "we'd", "i'd", "we're", "who're"),
        *("it's", "let's", "can't", "won't"),
    ]
)


def stems(blocked: Iterable[str]) -> frozenset[str]:
    """A list as it is compared: words without accents and apostrophes."""
    return frozenset(plain for plain in map(_plain, blocked) if plain)


@lru_cache(1 << 16)
def is_blocked(token: str, stems: frozenset[str]) -> bool:
    """Whether a token is meant by a list, as `stems` gives it.

    >>> listed = stems(["fuck", "don't"])
    >>> [is_blocked(word, listed) for word in ("fuuucking", "fück", "fucker", "dont", "luck")]
    [True, True, True, True, False]
    """
    return any(
        each in stems or (each not in _INNOCENT and any(base in stems for base in _bases(each)))
        for each in _readings(_plain(token))
    )


def blocked_ids(words: Sequence[str], blocked: Collection[str]) -> list[int]:
    """Ids of the words that must not be suggested, by a list as people write it."""
    if not blocked:
        return []
    listed = _stems(frozenset(blocked))
    return [i for i, word in enumerate(words) if is_blocked(word, listed)]


@lru_cache(64)
def _stems(blocked: frozenset[str]) -> frozenset[str]:
    return stems(blocked)


def _plain(word: str) -> str:
    """A word without accents and apostrophes, but for one that would become another word.

    >>> _plain("Don’t"), _plain("he'll")
    ('dont', "he'll")
    """
    folded = text.fold(word)
    return folded if folded in _APART else text.plain(word)


def _readings(plain: str) -> Iterable[str]:
    """A word as it may be read: as it stands, with digits as letters, with held letters let go."""
    readings = {plain}
    if not plain.isalpha() and not plain.isdigit():
        readings |= {plain.translate(looks) for looks in _LOOKS}
    for each in tuple(readings):
        if _HELD.search(each):  # who held one key may have held others
            readings |= {_HELD.sub(r"\1", each), _HELD.sub(r"\1\1", each)}
            readings.add(_TWICE.sub(r"\1", each))
    return readings


def _bases(word: str) -> Iterable[str]:
    """What a word may be an inflection of."""
    for ending in ENDINGS:
        base = word.removesuffix(ending)
        if (
            base == word
            or len(base) < _SHORT
            or (len(base) == _SHORT and ending not in ("s", "es"))
        ):
            continue
        yield base
        if ending[0] in "eiy":
            yield base + "e"  # a dropped e
            if len(base) > _SHORT and base[-1] == base[-2]:
                yield base[:-1]  # a doubled letter
