"""How still the strip stands while a word is typed, and what that costs.

    python -m benchmarks.strip_stability [BUNDLE] --messages 300

Test users' messages are typed key by key. After each key of a word: has a word that still begins so
left its place? In three strips: the best word always in the centre; held steady, with the best word
marked wherever it stands, as the keyboard does; and held steady with the centre taken for the best.
What it costs: keys, where the user takes a word as soon as it stands anywhere in the strip, and
where only the one that Tab takes is looked at.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path

from device_runtime.errors import FedboardError
from device_runtime.predictor import Places, Predictor, Suggestion, best_place, steady
from device_runtime.text import is_word, plain, written
from fedboard import console
from fedboard.run import open_bundle
from model import corpora

CENTRED, STEADY, STEADY_CENTRE = "best in the centre", "steady, best marked", "steady, centre taken"
CENTRE = 1


@dataclass
class Tally:
    """What was counted at one setting. Keys are those within words."""

    keys: int = 0
    moved: int = 0  # keys after which a word that still fits stands elsewhere
    gone: int = 0  # or nowhere
    letters: int = 0  # of all words, and a space each
    with_strip: int = 0  # keys, where a word is taken from any place
    with_best: int = 0  # by Tab alone

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


def count(strips: Sequence[Places], word: str, tally: Tally) -> None:
    """Count the keys of one word: the strip before each key, and after it."""
    for typed, (before, after) in enumerate(pairwise(strips), 1):
        tally.keys += 1
        now = {each.token: place for place, each in enumerate(after) if each}
        still = [
            (place, each.token)
            for place, each in enumerate(before)
            if each and plain(each.token).startswith(plain(word[:typed]))
        ]
        if any(token not in now for _, token in still):
            tally.gone += 1
        elif any(now[token] != place for place, token in still):
            tally.moved += 1


def typed_keys(strips: Sequence[Places], word: str, taken: Callable[[Places], int | None]) -> int:
    """Keys for one word that is accepted as soon as it stands in the place that is `taken`."""
    for typed, strip in enumerate(strips):
        place = taken(strip)
        each = None if place is None else strip[place]
        if each and each.token == word:
            return typed + 1
    return len(word) + 1


def strips_of(kind: str, best: Sequence[list[Suggestion]]) -> list[Places]:
    """The strips of one word as it is typed, of one kind."""
    strips: list[Places] = []
    for now in best:
        before = strips[-1] if strips and kind != CENTRED else ()
        strips.append(steady(before, now))
    return strips


def measure(predictor: Predictor, messages: Sequence[str]) -> dict[str, Tally]:
    """One tally for each kind of strip."""
    tallies = {kind: Tally() for kind in (CENTRED, STEADY, STEADY_CENTRE)}
    for message in messages:
        for context, word in words(message):
            best = [predictor.suggest(context, word[:length]) for length in range(len(word))]
            for kind, tally in tallies.items():
                strips = strips_of(kind, best)
                count(strips, word, tally)
                tally.letters += len(word) + 1

                def anywhere(strip: Places, word: str = word) -> int | None:
                    tokens = [each.token if each else None for each in strip]
                    return tokens.index(word) if word in tokens else None

                tally.with_strip += typed_keys(strips, word, anywhere)
                taken = best_place if kind == STEADY else lambda strip: CENTRE
                tally.with_best += typed_keys(strips, word, taken)
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
        print(json.dumps({kind: asdict(tally) for kind, tally in tallies.items()}))
        return
    console.table(
        f"{tallies[STEADY].keys:,} keys within words of {asked.messages} messages",
        ["strip", "moved", "gone", "saved", "saved by Tab alone"],
        [
            [
                kind,
                f"{tally.moved / tally.keys:.1%}",
                f"{tally.gone / tally.keys:.1%}",
                f"{tally.saved(tally.with_strip):.2%}",
                f"{tally.saved(tally.with_best):.2%}",
            ]
            for kind, tally in tallies.items()
        ],
    )


if __name__ == "__main__":
    try:
        main()
    except FedboardError as error:
        sys.exit(str(error))
