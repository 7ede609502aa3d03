"""How still the strip stands while a word is typed, and what that costs.

    python -m benchmarks.strip_stability [BUNDLE] --messages 300

Test users' messages are typed key by key. After each key of a word: has a word that still fits left
its place? Both as the words come, the likeliest first, and held steady, at several settings of how
much likelier a word must be to take the best place. What it costs: keys, where the user takes a
word as soon as it stands anywhere in the strip, and where only the best place is looked at.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from device_runtime.errors import FedboardError
from device_runtime.metrics import STRIP
from device_runtime.predictor import AHEAD, Predictor, Suggestion, steady
from device_runtime.text import is_word, written
from fedboard import console
from fedboard.run import open_bundle
from model import corpora

RATIOS = (1.0, 2.0, 3.0, 5.0, 10.0, float("inf"))
CANDIDATES = 50  # of a key: a word that is none of them does not fit any more


@dataclass
class Tally:
    """What was counted at one setting. Keys are those within words."""

    keys: int = 0
    moved: int = 0  # keys after which a word that still fits stands elsewhere
    gone: int = 0  # or nowhere
    letters: int = 0  # of all words, and a space each
    with_strip: int = 0  # keys, where a word is taken from any place
    with_best: int = 0  # from the best place alone

    def unsteady(self) -> float:
        """Share of keys after which a word that still fits has moved or gone."""
        return (self.moved + self.gone) / self.keys if self.keys else 0.0

    def saved(self, keys: int) -> float:
        """1 - keys / letters."""
        return 1 - keys / self.letters if self.letters else 0.0


def words(message: str) -> Iterator[tuple[str, str]]:
    """What stands before each word of a message, and the word as it is compared.

    >>> list(words("Hi, you"))
    [('', 'hi'), ('Hi, ', 'you')]
    """
    at = 0
    for token, stands in written(message):
        at = message.find(stands, at)
        if at < 0:
            return  # it was normalised: the rest is left out
        if is_word(token):
            yield message[:at], token
        at += len(stands)


def count(strips: Sequence[list[Suggestion]], fitting: Sequence[set[str]], tally: Tally) -> None:
    """Count the keys of one word: the strip before each key, and after it what fits."""
    for before, after, fits in zip(strips, strips[1:], fitting[1:], strict=False):
        tally.keys += 1
        places = {each.token: place for place, each in enumerate(after)}
        still = [(place, each.token) for place, each in enumerate(before) if each.token in fits]
        if any(token not in places for _, token in still):
            tally.gone += 1
        elif any(places[token] != place for place, token in still):
            tally.moved += 1


def typed_keys(strips: Sequence[list[Suggestion]], word: str, places: int) -> int:
    """Keys for one word that is taken as soon as it stands in one of the first places."""
    for typed, strip in enumerate(strips):
        if word in [each.token for each in strip[:places]]:
            return typed + 1
    return len(word) + 1


def measure(predictor: Predictor, messages: Sequence[str]) -> dict[float, Tally]:
    """One tally for each of `RATIOS`; 1 is the likeliest first, whatever stood there."""
    tallies = {ratio: Tally() for ratio in RATIOS}
    for message in messages:
        for context, word in words(message):
            found = [
                predictor.suggest(context, word[:length], CANDIDATES) for length in range(len(word))
            ]
            fitting = [{each.token for each in candidates} for candidates in found]
            best = [predictor.suggest(context, word[:length]) for length in range(len(word))]
            for ratio, tally in tallies.items():
                strips: list[list[Suggestion]] = []
                for now in best:
                    held = ratio > 1 and strips
                    strips.append(steady(strips[-1], now, ratio) if held else now)
                count(strips, fitting, tally)
                tally.letters += len(word) + 1
                tally.with_strip += typed_keys(strips, word, STRIP)
                tally.with_best += typed_keys(strips, word, 1)
    return tallies


def main() -> None:
    """Read the command line, type, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="by default the reference bundle")
    parser.add_argument("--messages", type=int, default=300)
    parser.add_argument("--data", default="chitchat")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    users = corpora.load(asked.data).test
    own = max(1, asked.messages // max(1, len(users)) + 1)
    typed = [each.text for each_user in users.values() for each in each_user[-own:]]
    tallies = measure(
        Predictor(open_bundle(asked.bundle, None)), list(islice(typed, asked.messages))
    )
    if asked.json:
        print(json.dumps({str(ratio): asdict(tally) for ratio, tally in tallies.items()}))
        return
    console.table(
        f"strips after {tallies[1.0].keys:,} keys within words, {asked.messages} messages",
        ["best place is taken by", "moved or gone", "saved", "saved by the best place"],
        [
            [
                "the likeliest"
                if ratio == 1
                else f"{ratio:g} times as likely"
                if ratio < float("inf")
                else "none that comes later",
                f"{tally.unsteady():.1%}",
                f"{tally.saved(tally.with_strip):.2%}",
                f"{tally.saved(tally.with_best):.2%}",
            ]
            for ratio, tally in tallies.items()
        ],
    )
    console.say(f"a keyboard holds its strip at {AHEAD:g} times")


if __name__ == "__main__":
    try:
        main()
    except FedboardError as error:
        sys.exit(str(error))
