"""Beside Presage: keys saved, words right, time and memory of two keyboards at the same words.

    python -m benchmarks.keyboards --users 40 --messages 8
    python -m benchmarks.keyboards --starts

The newest messages of test users are typed word by word. A word costs the letters typed until it
stands in a strip of three, and one; a word that never does costs its letters and one. Every system
learns each message of the user after it was typed, and forgets it with the next user. Each runs in
a process of its own that answers lines. Presage keeps its defaults but for the strip of three and
that it learns; so it does not offer again what was passed over within a word. Linux only.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.strip_stability import words
from device_runtime.errors import FedboardError
from device_runtime.metrics import Counts, interval, keystroke_saving, recall
from device_runtime.own_words import OwnWords
from device_runtime.predictor import Predictor
from device_runtime.text import fold
from fedboard import console
from fedboard.run import REFERENCE, open_bundle
from model import corpora

LAST = 200  # of the base protocol: of each user's newest messages
HEADER = Path("/usr/include/presage.h")
DATABASES = Path("/usr/share/presage")
INSTALL = (
    "presage: expected its tools and headers, found none; "
    "apt-get install -y presage libpresage-dev libpresage-data, and a C++ compiler"
)
STARTS = (
    "", "i", "i will", "i am", "i have", "i don't", "i want to", "how", "how are", "see",
    "see you", "what do", "what do you", "thank", "thank you", "where are", "let me", "can you",
    "do you", "are you", "it is", "that is", "we are", "have a", "good", "looking forward", "on my",
    "i'm", "nice to", "happy",
)  # fmt: skip
# answers a line "S context <tab> begun" by microseconds and words, and takes "L message" in
PROGRAM = r"""
#include <presage.h>
#include <chrono>
#include <iostream>
#include <string>
struct Text : PresageCallback {
  std::string past;
  std::string get_past_stream() const { return past; }
  std::string get_future_stream() const { return ""; }
};
int main(int argc, char** argv) {
  Text text;
  Presage presage(&text);
  presage.config("Presage.Selector.SUGGESTIONS", "3");
  presage.config("Presage.Predictors.UserSmoothedNgramPredictor.LEARN", "true");
  if (argc > 1)
    presage.config("Presage.Predictors.DefaultSmoothedNgramPredictor.DBFILENAME", argv[1]);
  // it is told what was sent, and is not to count it a second time
  presage.config("Presage.ContextTracker.ONLINE_LEARNING", "false");
  std::string line;
  while (std::getline(std::cin, line)) {
    std::string rest = line.substr(1);
    if (line[0] == 'L') { presage.learn(rest); std::cout << "0" << std::endl; continue; }
    size_t tab = rest.find('\t');
    text.past = rest.substr(0, tab) + rest.substr(tab + 1);
    auto start = std::chrono::steady_clock::now();
    auto found = presage.predict();
    auto end = std::chrono::steady_clock::now();
    std::cout << std::chrono::duration_cast<std::chrono::microseconds>(end - start).count();
    for (auto& word : found) std::cout << '\t' << word;
    std::cout << std::endl;
  }
}
"""


@dataclass
class Measured:
    """What one system did: counts of each user, milliseconds of each strip, and its size."""

    disk: float  # megabytes
    users: list[Counts] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    memory: float = 0.0  # megabytes, the peak of any of its processes


class Keyboard:
    """A process that answers lines; close it after use."""

    def __init__(self, command: Sequence[str], home: Path):
        home.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, "HOME": str(home)},
        )

    def _ask(self, line: str) -> list[str]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise FedboardError("keyboard", "its process ended", "run it alone to see why")
        return answer.rstrip("\n").split("\t")

    def strip(self, context: str, begun: str) -> tuple[float, list[str]]:
        """Milliseconds that it took, and up to three words as they are compared, best first."""
        took, *found = self._ask(f"S{_flat(context)}\t{begun}")
        return int(took) / 1000, [fold(word.strip()) for word in found]

    def learn(self, message: str) -> None:
        """Learn a message that was sent."""
        self._ask(f"L{_flat(message)}")

    def close(self) -> float:
        """End the process. Its peak of memory in megabytes."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _flat(text: str) -> str:
    return text.replace("\t", " ").replace("\n", " ").replace("\r", " ")


def count(word: str, strip: Callable[[str], list[str]]) -> Counts:
    """The counts of one word, whose strip after each of its beginnings `strip` gives.

    >>> count("you", lambda begun: ["you"] if begun else ["the"]).keys
    2
    """
    keys, first = len(word) + 1, []
    for typed in range(len(word)):
        shown = strip(word[:typed])
        if not typed:
            first = shown
        if word in shown:
            keys = typed + 1
            break
    return Counts(
        targets=1, top1=word in first[:1], top3=word in first, letters=len(word) + 1, keys=keys
    )


def type_all(
    users: Sequence[Sequence[str]], command: Sequence[str], home: Path, measured: Measured
) -> None:
    """Type each user's messages into a new process, and add to what was measured."""
    for place, messages in enumerate(users):
        keyboard, total = Keyboard(command, home / str(place)), Counts()
        for message in messages:
            for context, word in words(message):

                def strip(
                    begun: str, context: str = context, keyboard: Keyboard = keyboard
                ) -> list[str]:
                    took, found = keyboard.strip(context, begun)
                    measured.times.append(took)
                    return found[:3]

                total += count(word, strip)
            keyboard.learn(message)
        measured.users.append(total)
        measured.memory = max(measured.memory, keyboard.close())


def sample(users: Iterator[Sequence[str]], most: int, each: int) -> list[list[str]]:
    """Of the first users the first messages among their newest LAST."""
    return [list(own[-LAST:][:each]) for own in islice(users, most)]


def serve(bundle: Path | None) -> None:
    """Answer lines as our keyboard."""
    opened = open_bundle(bundle, None)
    predictor = Predictor(opened, own=OwnWords(opened.vocabulary))
    for line in sys.stdin:
        kind, rest = line[0], line[1:].rstrip("\n")
        if kind == "L":
            predictor.typed(rest)
            print(0, flush=True)
            continue
        context, _, begun = rest.partition("\t")
        start = time.perf_counter()
        found = predictor.suggest(context, begun)
        took = int((time.perf_counter() - start) * 1e6)
        print("\t".join([str(took), *(each.token for each in found)]), flush=True)


def presage_ready() -> bool:
    """Whether Presage's tools, headers and a compiler are here."""
    return HEADER.exists() and bool(shutil.which("text2ngram")) and bool(shutil.which("g++"))


def _megabytes(paths: Iterator[Path]) -> float:
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def systems(
    folder: Path, bundle: Path | None, train: Iterator[str]
) -> dict[str, tuple[list[str], float]]:
    """The command and the megabytes on disk of each system, by name; builds what Presage needs."""
    program, text, database = folder / "lines", folder / "train.txt", folder / "train.db"
    (folder / "lines.cpp").write_text(PROGRAM)
    subprocess.run(
        ["g++", "-O2", "-w", "-o", program, folder / "lines.cpp", "-lpresage"], check=True
    )
    text.write_text("\n".join(train))
    for length in "123":
        subprocess.run(
            ["text2ngram", "-n", length, "-l", "-f", "sqlite", "-o", database, text],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    ours = [sys.executable, "-m", "benchmarks.keyboards", "--serve"]
    return {
        "Fedboard": (
            [*ours, *([str(bundle)] if bundle else [])],
            _megabytes((bundle or REFERENCE).rglob("*")),
        ),
        "Presage, its English": ([str(program)], _megabytes(DATABASES.glob("*_en.db"))),
        "Presage, our train users": ([str(program), str(database)], database.stat().st_size / 1e6),
    }


def show(all_measured: dict[str, Measured]) -> None:
    """Print the table, and the paired differences from the first system."""
    statistics = (
        keystroke_saving,
        lambda counts: recall(counts, "top1"),
        lambda counts: recall(counts, "top3"),
    )
    rows, first = [], next(iter(all_measured.values()))
    for name, each in all_measured.items():
        cells = []
        for statistic in statistics:
            low, high = interval(each.users, statistic, np.random.default_rng(1))
            value = statistic(sum(each.users, Counts()))
            cells.append(f"{value:.1%}\n{low:.1%}..{high:.1%}")
        p50, p99 = np.percentile(each.times, [50, 99])
        cells += [f"{p50:.1f}", f"{p99:.1f}", f"{each.memory:.0f}", f"{each.disk:.1f}"]
        rows.append([name, *cells])
    targets = sum(first.users, Counts()).targets
    heads = ["system", "saved", "first", "of three", "p50 ms", "p99 ms", "MB", "disk MB"]
    console.table(f"{targets:,} words of {len(first.users)} users", heads, rows)
    rows = [
        [name, *(difference(first.users, each.users, statistic) for statistic in statistics)]
        for name, each in list(all_measured.items())[1:]
    ]
    console.table("Fedboard less the other, paired by user", ["system", *heads[1:4]], rows)


def difference(
    ours: Sequence[Counts], theirs: Sequence[Counts], statistic: Callable[[Counts], float]
) -> str:
    """Difference of a statistic in points, and its 95 % interval by bootstrap over the users."""
    rng = np.random.default_rng(1)
    drawn = [
        statistic(sum((ours[i] for i in who), Counts()))
        - statistic(sum((theirs[i] for i in who), Counts()))
        for who in rng.integers(0, len(ours), (1000, len(ours)))
    ]
    low, high = np.percentile(drawn, [2.5, 97.5]) * 100
    value = statistic(sum(ours, Counts())) - statistic(sum(theirs, Counts()))
    return f"{value * 100:+.1f}\n{low:+.1f}..{high:+.1f}"


def main() -> None:
    """Read the command line, type, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="by default the reference bundle")
    parser.add_argument("--users", type=int, default=40)
    parser.add_argument("--messages", type=int, default=8, help="of each user")
    parser.add_argument("--starts", action="store_true", help="strips of sentence starts, no more")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.bundle)
        return
    if asked.starts:
        predictor = Predictor(open_bundle(asked.bundle, None))
        for start in STARTS:
            found = predictor.suggest(f"{start} " if start else "")
            print(f"| {start} | {' | '.join(each.word for each in found)} |")
        return
    if asked.users < 1 or asked.messages < 1:
        parser.error("--users and --messages: expected 1 or more")
    if not presage_ready():
        print(INSTALL, file=sys.stderr)
        sys.exit(2)
    corpus = corpora.load("chitchat")
    users = sample(
        ([each.text for each in own] for own in corpus.test.values()), asked.users, asked.messages
    )
    train = (each.text for own in corpus.train.values() for each in own)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {}
        for place, (system, (command, disk)) in enumerate(
            systems(folder, asked.bundle, train).items()
        ):
            found[system] = Measured(disk)
            type_all(users, command, folder / f"home-{place}", found[system])
    show(found)


if __name__ == "__main__":
    try:
        main()
    except FedboardError as error:
        sys.exit(str(error))
