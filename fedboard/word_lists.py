"""Word lists: what a task has counted as a file, a public list out of a corpus, and noise for one.

corpus -> people_of -> public list -> a task counts -> counts.tsv -> vocabulary of a training
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from device_runtime import accountant, bounds, config, text
from device_runtime.accountant import Participation
from device_runtime.bounds import Within
from device_runtime.errors import ConfigError, RunError
from device_runtime.noise import MOST_STEPS, Mechanism, Noise
from device_runtime.shown import rounded_up
from device_runtime.wire import HASH, TASK

if TYPE_CHECKING:  # whoever trains needs no operator's contract
    from fedboard.run import Run, Settings
    from server.contract import CountsReport

MARK = "# fedboard counts "  # how the file of a task's counts begins
_REMEDY = "give the file that `fedboard task counts NAME --out FILE` writes"
_SLACK = 1.0001  # of a budget over what one sum spends: an account is right to many digits


@dataclass(frozen=True)
class About:
    """What the file of a task's counts says of them."""

    task: Annotated[str, TASK]
    words: Annotated[str, HASH]  # SHA-256 of the public list
    people: Annotated[int, Within(0, 10**12)]  # who were in the sums
    least_people: Annotated[int, Within(1, 10**9)]
    deviation: Annotated[float, Within(0.0, 1e12)]  # of the noise on each count
    told_from: Annotated[float, Within(0.0, 1e12)]
    epsilon: float | None = None  # spent by one who took part, at `delta`
    delta: float | None = None

    def __post_init__(self) -> None:
        bounds.check(self, "counts")


@dataclass(frozen=True)
class WordCounts:
    """Words that enough people typed, the most frequent first, and what is known of the counts."""

    about: About
    counts: tuple[tuple[str, int], ...]

    def least(self, people: int) -> "WordCounts":
        """Those of at least so many people. Raises RunError for fewer than were counted with."""
        if people < self.about.least_people:
            raise RunError(
                "--least-people",
                f"expected at least the {self.about.least_people:,} of the counts, found {people}",
                "raise it: words of fewer people are not told",
            )
        over = people + (self.about.told_from - self.about.least_people)
        about = replace(self.about, least_people=people, told_from=over)
        return WordCounts(about, tuple(each for each in self.counts if each[1] >= over))


def to_tsv(report: "CountsReport") -> bytes:
    """A task's counts as a file: one line about them, then a word and its count a line."""
    names = About.__dataclass_fields__
    about = {name: value for name, value in asdict(report).items() if name in names}
    lines = [
        MARK + json.dumps(about),
        *(f"{word}\t{count}" for word, count in report.counts.items()),
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def read_tsv(path: Path) -> WordCounts:
    """What `to_tsv` wrote. Raises RunError for a file that is missing, or anything else."""
    try:
        head, *lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RunError(path, f"cannot be read ({error.strerror})", _REMEDY) from None
    except (UnicodeDecodeError, ValueError):
        raise RunError(path, "holds no counts", _REMEDY) from None
    if not head.startswith(MARK):
        raise RunError(path, f"expected a first line {MARK.strip()!r}, found another", _REMEDY)
    try:
        about = config.from_json(About, head.removeprefix(MARK).encode(), "counts")
    except ConfigError as error:
        raise RunError(path, str(error), _REMEDY) from None
    counts: list[tuple[str, int]] = []
    for number, line in enumerate(lines, 2):
        word, _, count = line.partition("\t")
        if text.tokenise(word) != [word] or not text.is_word(word) or not count.isdecimal():
            raise RunError(
                path, f"line {number}: expected a word, a tab and a count, found {line!r}", _REMEDY
            )
        counts.append((word, int(count)))
    if len({word for word, _ in counts}) < len(counts):
        raise RunError(path, "a word stands there twice", _REMEDY)
    return WordCounts(about, tuple(counts))


def is_tsv(path: Path) -> bool:
    """Whether a file holds counts: a result may be written over it."""
    with Path(path).open("rb") as file:
        return file.read(len(MARK)) == MARK.encode()


def people_of(users: Any) -> Counter[str]:
    """How many users typed each word, of a corpus' users: a word counts once a person."""
    people: Counter[str] = Counter()
    for utterances in users.values():
        tokens = {token for each in utterances for token in each.tokens}
        people.update(filter(text.is_word, tokens))
    return people


def noise_once(multiplier: float, delta: float, sums: int) -> Noise | None:
    """The noise of a task that counts, with the budget that each person spends in its one sum; None
    for a multiplier of 0. Raises ConfigError for numbers out of their bounds.
    """
    if not multiplier:
        return None
    noise = Noise(Mechanism.GAUSSIAN, multiplier, 1e6, delta, sums or MOST_STEPS, 1)
    spent = accountant.account(noise, Participation((1,), None, 1)).epsilon
    return Noise(Mechanism.GAUSSIAN, multiplier, min(1e6, spent * _SLACK), delta, noise.rounds, 1)


def described(about: About) -> str:
    """Where a vocabulary's words come from, in the words of a bundle's lineage.

    >>> described(About("words", "0" * 64, 200, 20, 4.0, 36.0, 1.5, 1e-6))
    'words of a public list that at least 20 people typed, by private sums with noise (epsilon \
1.50 at delta 1e-06 of each who took part)'
    """
    noise = "without noise"
    if about.deviation and about.epsilon is not None:
        spent = f"epsilon {rounded_up(about.epsilon)} at delta {about.delta:g}"
        noise = f"with noise ({spent} of each who took part)"
    return (
        f"words of a public list that at least {about.least_people:,} people typed, by private "
        f"sums {noise}"
    )


def of_run(run: "Run", settings: "Settings") -> str | None:
    """Where the words of a run's vocabulary come from, in the words of a bundle's lineage; None for
    those its corpus uses most, and where it has the vocabulary of another run.
    """
    least = settings.recipe.least_people
    if settings.init:
        return None
    if settings.words:
        counted = read_tsv(run.counts)
        return described((counted.least(least) if least else counted).about)
    return f"words of its corpus that at least {least:,} people typed" if least else None
