"""Whether memory grows with the corpus: a large file is imported, counted, scored and trained on.

Peak resident MB and seconds of each command, a process each, beside the same on chitchat. The file
is made here: words as often as in chitchat and a tail of rare ones, users of very unequal size,
times in no order.

python benchmarks/large_corpus.py --folder /tmp/large
python benchmarks/large_corpus.py --folder /tmp/large --rows 100000 --only import,stats
"""

import argparse
import csv
import itertools
import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.peers.common import resident_mb, tree
from device_runtime.text import is_word
from fedboard.__main__ import program
from fedboard.readable import duration
from model import corpora, corpus

ROWS = 4_000_000
USERS = 40_000
BLOCK = 10_000  # rows made at once
WORDS = 88  # of the mean message: four million of them are about 2 GB
RARE = 0.003  # share of words that are misspelled, or names, or of another language
RARE_WORDS = 3_000_000
AGAIN = 0.01  # share of messages that somebody has sent before, word for word
YEAR = 31_557_600
STEPS = ("import", "stats", "evaluate", "kn3", "train")


@dataclass(frozen=True)
class Cost:
    """What one command took."""

    step: str
    corpus: str
    peak_mb: float  # most that the process and its children held at once
    seconds: float
    code: int  # exit code, 0 if all went well


def counted() -> Counter[str]:
    """How often each word is typed in chitchat."""
    tokens = itertools.chain.from_iterable(corpus.token_lists(corpora.load("chitchat").train))
    return Counter(token for token in tokens if is_word(token))


def messages(
    counts: Counter[str], rows: int, users: int, words: int, seed: int
) -> Iterator[tuple[str, str, float]]:
    """User, text and time of each of so many messages, `words` long in the mean, each as often as
    it was counted.
    """
    rng = np.random.default_rng(seed)
    known = np.array(list(counts), object)
    shares = np.cumsum(np.fromiter(counts.values(), float)) / counts.total()
    sizes = 1 / (np.arange(users) + 10.0) ** 0.9
    sizes = np.cumsum(rng.permutation(sizes)) / sizes.sum()
    spread = 0.8  # of the logarithm of a message's length
    for start in range(0, rows, BLOCK):
        here = min(BLOCK, rows - start)
        lengths = rng.lognormal(np.log(words) - spread**2 / 2, spread, here).astype(int) + 1
        drawn = known[np.searchsorted(shares[:-1], rng.random(lengths.sum()))]
        rare = np.flatnonzero(rng.random(len(drawn)) < RARE)
        drawn[rare] = [f"zq{n:x}" for n in rng.integers(0, RARE_WORDS, len(rare))]
        who = np.searchsorted(sizes[:-1], rng.random(here))
        times = rng.random(here) * YEAR + 1.6e9
        ends = np.cumsum(lengths)
        texts = [
            " ".join(drawn[end - length : end]) + "."
            for end, length in zip(ends, lengths, strict=True)
        ]
        again = rng.random(here) < AGAIN
        for i in range(here):
            text = texts[int(i * 0.9)] if again[i] else texts[i]
            yield f"person{who[i]}", text, round(times[i])


def make(path: Path, rows: int, users: int, words: int, seed: int) -> None:
    """Write a CSV file of messages. Its memory does not grow with the rows."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "text", "timestamp"])
        writer.writerows(messages(counted(), rows, users, words, seed))


def measured(step: str, name: str, command: Sequence[str], log: Path) -> Cost:
    """Run a command to its end and look at its memory, and its children's, all the while."""
    started, peak = time.monotonic(), 0.0
    with open(log, "wb") as output:
        process = subprocess.Popen(
            program(*command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            peak = max(peak, resident_mb(tree(process.pid)))
            time.sleep(0.05)
    return Cost(step, name, peak, time.monotonic() - started, process.returncode)


def commands(data: str, folder: Path, asked: argparse.Namespace) -> dict[str, list[str]]:
    """By step, what is run on a corpus."""
    users = ["--users", str(asked.score_users)]
    run = folder / f"run-{Path(data).name}"
    training = ["--size", "tiny", "--vocabulary", "2000", "--cohort", "8"]
    return {
        "stats": ["data", "stats", data, "--json"],
        "evaluate": [
            *("evaluate", asked.bundle, "--trust", asked.trust),
            *("--data", data, *users, "--json"),
        ],
        "kn3": ["evaluate", "kn3", "--data", data, *users, "--json"],
        "train": [
            *("train", "--data", data, "--out", str(run), "--overwrite"),
            *("--rounds", str(asked.rounds), *training),
        ],
    }


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the file is made")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--words", type=int, default=WORDS, help="of the mean message")
    parser.add_argument("--score-users", type=int, default=100, help="users scored of a split")
    parser.add_argument("--rounds", type=int, default=5, help="of training")
    parser.add_argument("--bundle", default="bundles/reference")
    parser.add_argument("--trust", default="bundles/reference.pub", help="its maker's key")
    parser.add_argument("--beside", default="chitchat", help="corpus to compare with")
    parser.add_argument("--only", default=",".join(STEPS), help="steps to measure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every figure here")
    asked = parser.parse_args(argv)
    if unknown := set(asked.only.split(",")) - set(STEPS):
        parser.error(f"--only: expected some of {', '.join(STEPS)}, found {len(unknown)} other")
    return asked


def show(costs: Sequence[Cost]) -> str:
    """A table, a row each."""
    rows = [f"{'step':<10}{'corpus':<12}{'peak MB':>9}{'time':>14}"]
    for cost in costs:
        failed = f"  exit {cost.code}" if cost.code else ""
        rows.append(
            f"{cost.step:<10}{cost.corpus:<12}{cost.peak_mb:>9.0f}{duration(cost.seconds):>14}{failed}"
        )
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> list[Cost]:
    """Measure, and print what the head of this file says."""
    asked = arguments(argv)
    steps = asked.only.split(",")
    folder = asked.folder
    folder.mkdir(parents=True, exist_ok=True)
    source, data = folder / f"messages-{asked.rows}-{asked.seed}.csv", folder / "large"
    if not source.is_file():
        part = source.with_suffix(".part")
        make(part, asked.rows, asked.users, asked.words, asked.seed)
        os.replace(part, source)
    print(f"{source}: {asked.rows:,} rows, {source.stat().st_size / 1e9:.2f} GB", flush=True)
    costs = []
    if "import" in steps:
        shutil.rmtree(data, ignore_errors=True)
        command = ["data", "import", str(source), "--out", str(data)]
        costs.append(measured("import", "large", command, folder / "import.log"))
        print(show(costs[-1:]), flush=True)
    for step in steps:
        for name, where in (("large", str(data)), (asked.beside, asked.beside)):
            if command := commands(where, folder, asked).get(step, []):
                log = folder / f"{step}-{Path(name).name}.log"
                costs.append(measured(step, Path(name).name, command, log))
                print(show(costs[-1:]).splitlines()[-1], flush=True)
    print(show(costs))
    if asked.json:
        asked.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=1))
    return costs


if __name__ == "__main__":
    main()
