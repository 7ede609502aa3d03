"""Spellings: which words of a corpus stay out of a vocabulary, since they are nobody's usual ones.

A word enters a vocabulary when several people used it. A stretched word gives way to the one it
stretches, and a misspelt one to the usual spelling: it stands in no dictionary of the language, is
one slip of a finger from a word that does, and that word is far more used. What many people write,
such as `dont`, is usual whatever a dictionary says. Names stand in no dictionary either: a slip
swaps two letters, doubles one or leaves one of two, forgets an apostrophe, or is within a long
word.
"""

import gzip
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources

from rapidfuzz import process
from rapidfuzz.distance import OSA

from device_runtime.text import is_letters, is_word, plain
from model.corpus import Users

SEVERAL = 3  # people who must have used a word
POPULATION = 30  # users from which on that is asked: a handful has few words in common
FAR_MORE = 4  # times as often as its misspelling a word is used
MANY = 0.02  # of the people: what so many write is no slip
_SLIP_FROM = 4  # letters of a misspelt word
_LONG = 7  # letters, from which on one within may be wrong
_HELD = re.compile(r"(.)\1{2,}")
RARE, STRETCHED, MISSPELT = "used by too few people", "stretched", "misspelt"


@dataclass(frozen=True)
class Uses:
    """How often a word was typed, and by how many people."""

    times: int
    people: int


@dataclass(frozen=True)
class LeftOut:
    """Why a word stays out, and what takes its place."""

    reason: str
    usual: str = ""  # none for a rare word


def uses_of(users: Users) -> dict[str, Uses]:
    """How often each word of a corpus was typed, and by how many of these users."""
    times: Counter[str] = Counter()
    people: Counter[str] = Counter()
    for utterances in users.values():
        own = Counter(token for each in utterances for token in each.tokens if is_word(token))
        times.update(own)
        people.update(own.keys())
    return {word: Uses(count, people[word]) for word, count in times.items()}


@dataclass(frozen=True)
class Summary:
    """What stayed out of a vocabulary: rare words are only counted, since they may be somebody's
    own.
    """

    rare: int = 0
    least_people: int = 1
    stretched: dict[str, str] = field(default_factory=dict)  # -> the usual word
    misspelt: dict[str, str] = field(default_factory=dict)


def summary(out: Mapping[str, LeftOut], users: int) -> Summary:
    """What is said of the words that stayed out of the vocabulary of so many users."""
    of = {
        reason: {word: each.usual for word, each in sorted(out.items()) if each.reason == reason}
        for reason in (RARE, STRETCHED, MISSPELT)
    }
    return Summary(len(of[RARE]), _least(users), of[STRETCHED], of[MISSPELT])


def _least(users: int) -> int:
    return SEVERAL if users >= POPULATION else 1


def left_out(uses: Mapping[str, Uses], users: int, language: str = "") -> dict[str, LeftOut]:
    """The words that stay out of the vocabulary of a corpus of so many users, and why. `language`
    is a BCP 47 tag, or several with a `+` between them; without dictionaries of all of them no word
    is taken for misspelt.
    """
    least = _least(users)
    known = dictionary(language)
    out: dict[str, LeftOut] = {}
    spelled = [word for word in uses if len(word) >= _SLIP_FROM - 1 and word in known]
    by_length: dict[int, list[str]] = {}
    for word in spelled:
        by_length.setdefault(len(word), []).append(word)
    for word, use in uses.items():
        if use.people < least:
            out[word] = LeftOut(RARE)
        elif usual := _unstretched(word, uses):
            out[word] = LeftOut(STRETCHED, usual)
        elif (
            known
            and word not in known
            and use.people < max(least + 1, MANY * users)
            and (usual := _usual(word, by_length, uses))
        ):
            out[word] = LeftOut(MISSPELT, usual)
    return out


@lru_cache(4)
def dictionary(language: str) -> Collection[str]:
    """Words that are spelled as usual in a language, or in each of several; empty where there is no
    dictionary of one of them, or none is installed.
    """
    words: set[str] = set()
    for tag in filter(None, language.split("+")):
        try:
            file = resources.files("spellchecker") / "resources" / f"{tag.split('-')[0]}.json.gz"
            words |= set(json.loads(gzip.decompress(file.read_bytes())))
        except (ModuleNotFoundError, OSError, ValueError):
            return frozenset()
    return frozenset(words)


def _unstretched(word: str, uses: Mapping[str, Uses]) -> str:
    """The word that a stretched one stretches: with held letters let go, once or twice, the more
    used of the two. A word that only the stretched forms are used of stretches none.
    """
    if not _HELD.search(word):
        return ""
    forms = {_HELD.sub(r"\1", word), _HELD.sub(r"\1\1", word)} & uses.keys()
    usual = max(forms, key=lambda form: (uses[form].times, form), default="")
    return usual if usual and uses[usual].times > uses[word].times else ""


def _usual(word: str, by_length: Mapping[int, Sequence[str]], uses: Mapping[str, Uses]) -> str:
    """The usual spelling of a misspelt word; "" where it is none."""
    if len(word) < _SLIP_FROM or not is_letters(word):
        return ""
    near: list[str] = []
    for length in (len(word) - 1, len(word), len(word) + 1):
        found = process.extract(
            word,
            by_length.get(length, ()),
            scorer=OSA.distance,
            score_cutoff=1,
            limit=None,
            processor=None,
        )
        near += [each[0] for each in found]
    near = [each for each in near if _is_slip(word, each)]
    # one that only lacks its apostrophe is that word
    near = [each for each in near if plain(each) == plain(word)] or near
    usual = max(near, key=lambda each: (uses[each].times, each), default="")
    return usual if usual and uses[usual].times >= FAR_MORE * uses[word].times else ""


def _is_slip(word: str, usual: str) -> bool:
    """Whether a word of letters may be the misspelling of one that is one edit away.

    >>> [_is_slip(*pair) for pair in (("becuase", "because"), ("writting", "writing"))]
    [True, True]
    >>> [_is_slip(*pair) for pair in (("thanos", "thanks"), ("iphones", "phones"))]
    [False, False]
    """
    if plain(word) == plain(usual):
        return word == plain(word)
    if word.replace("our", "or") == usual:  # as it is spelled elsewhere
        return False
    if sorted(word) == sorted(usual):
        return True
    if _undoubled(word) == _undoubled(usual):
        return len(word) > _SLIP_FROM
    return len(word) >= _LONG and (word[0], word[-1]) == (usual[0], usual[-1])


def _undoubled(word: str) -> str:
    return re.sub(r"(.)\1", r"\1", word)
