"""Counts: which words of a public list were typed on a device, and what their sums say of a list.

    a list's file -> read_list -> words --+-> marks -> table.at_most -> summed with others'
              a device's own messages ----+                                   |
    words at least K people typed <- told <- counts, with noise or without <--+

A device answers whether a listed word was typed at all, never how often, and nothing of a word that
no list has. Whoever makes the list chooses the questions: a list of one word asks for that word. It
stands in the signed terms, and what is answered is a sum.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime import text
from device_runtime.errors import ConfigError
from device_runtime.table import MOST_BYTES, MOST_ENTRIES

LONGEST = 64  # characters of a word
# standard deviations of noise that a count must be above the least: of as many words as a list has,
# about six that too few people typed come over it by chance
SURE = 4.0


@dataclass(frozen=True)
class Counted:
    """What has been counted so far."""

    counts: NDArray[np.int64]  # people who typed each word, with noise on it or not, [words]
    people: int  # who were in the sums
    deviation: float = 0.0  # standard deviation of the noise on each count


def to_list(words: Iterable[str]) -> bytes:
    """The file of a list: its words, one a line, each once, in alphabetical order. Raises
    ConfigError for what is no word by the text rules.

    >>> to_list(["you", "are", "are"])
    b'are\\nyou\\n'
    """
    data = "".join(f"{word}\n" for word in sorted(set(words))).encode()
    read_list(data)
    return data


def read_list(data: bytes, where: str = "list") -> tuple[str, ...]:
    """The words of a list's file. Raises ConfigError for a file that is too long, and for any other
    than `to_list` makes: a list has one file and so one hash.
    """
    remedy = "make it with `fedboard data words`, or put its words in order, each once a line"
    if len(data) > MOST_BYTES:
        raise ConfigError(
            where, f"expected at most {MOST_BYTES:,} bytes, found {len(data):,}", remedy
        )
    try:
        *words, rest = data.decode().split("\n")
    except UnicodeDecodeError:
        raise ConfigError(where, "expected text in UTF-8, found other bytes", remedy) from None
    if not 1 <= len(words) <= MOST_ENTRIES:
        raise ConfigError(
            where, f"expected 1 to {MOST_ENTRIES:,} words, found {len(words):,}", remedy
        )
    before = ""
    for number, word in enumerate((*words, rest), 1):
        if number > len(words):
            if word:
                raise ConfigError(where, "expected a line break after the last word", remedy)
        elif len(word) > LONGEST or text.tokenise(word) != [word] or not text.is_word(word):
            raise ConfigError(
                where, f"line {number}: expected a word, found {word[:LONGEST]!r}", remedy
            )
        elif word <= before:
            found = f"found {word!r} after {before!r}"
            raise ConfigError(
                where, f"line {number}: expected words in order, each once, {found}", remedy
            )
        before = word
    return tuple(words)


def marks(messages: Iterable[str], words: Sequence[str]) -> NDArray[np.uint8]:
    """1 for each word that stands in one of the messages, else 0: uint8 [words].

    >>> marks(["How are you?", "I am here"], ["am", "are", "was"]).tolist()
    [1, 1, 0]
    """
    typed = {token for message in messages for token in text.tokenise(message)}
    return np.fromiter((word in typed for word in words), np.uint8, len(words))


def least(least_people: int, deviation: float) -> float:
    """The count from which on a word is told: the least number of people, and with noise so much
    more that few words of fewer people come over it by chance.

    >>> least(20, 0.0), least(20, 5.0)
    (20.0, 40.0)
    """
    return least_people + SURE * deviation


def told(words: Sequence[str], counted: Counted, least_people: int) -> list[tuple[str, int]]:
    """The words that at least so many people typed, with their counts, the most frequent first.

    >>> told(["a", "b", "c"], Counted(np.array([5, 2, 7]), people=9), least_people=5)
    [('c', 7), ('a', 5)]
    """
    over = np.flatnonzero(counted.counts >= least(least_people, counted.deviation))
    pairs = [(words[at], int(counted.counts[at])) for at in over]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def added(parts: Iterable[Counted]) -> Counted:
    """What several sums of different people say together: their noise is independent."""
    total, people, variance = None, 0, 0.0
    for each in parts:
        total = each.counts if total is None else total + each.counts
        people, variance = people + each.people, variance + each.deviation**2
    empty: NDArray[Any] = np.zeros(0, np.int64)
    return Counted(empty if total is None else total, people, variance**0.5)
