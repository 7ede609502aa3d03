"""Whether federated training keeps its memory over many rounds.

Resident MB of `fedboard train` and of its TFF worker, and the slope of each.

python benchmarks/simulation_memory.py --rounds 1000 --json memory.json
python benchmarks/simulation_memory.py --rounds 300 --size gboard
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.peers.common import resident_mb, tree
from device_runtime import config
from device_runtime.wire import Plan
from fedboard.run import Settings
from model import child_process
from model.recipe import Recipe

SETTLED = 100  # rounds after which memory should stay: caches and allocators have filled by then
WORDS = {"tiny": 500, "small": 2_000, "gboard": 10_000}


def slope(rounds: Sequence[int], megabytes: Sequence[float], after: int = SETTLED) -> float:
    """Least-squares MB per 100 rounds, over the looks after the given round.

    Nan for fewer than two.
    """
    kept = [(number, mb) for number, mb in zip(rounds, megabytes, strict=True) if number > after]
    if len(kept) < 2:
        return float("nan")
    numbers, least = zip(*kept, strict=True)
    return float(np.polyfit(numbers, least, 1)[0] * 100)


def looks(
    process: subprocess.Popen, events: Path, every: int, rounds: int
) -> Iterator[tuple[int, float, float]]:
    """Round, MB of Python, MB of the worker, every so many rounds of a run.

    events is the file the run writes an event a round to. The last round is left out, after which
    both processes may be gone. MB are the least seen since the look before: what stays between
    rounds, without what a round takes and gives back. Raises RuntimeError if the run ends early.
    """
    for number in range(every, rounds, every):
        least = (math.inf, math.inf)
        while (done := events.read_bytes().count(b'{"round"')) < number:
            if process.poll() is not None:
                raise RuntimeError(f"training ended with {process.returncode} after round {done}")
            if done > number - every:  # this stretch has begun
                # the last one: between us and the worker stands what keeps strangers from it
                now = (resident_mb([process.pid]), resident_mb(tree(process.pid)[1:][-1:]))
                least = (min(least[0], now[0]), min(least[1], now[1]))
            time.sleep(0.02)
        yield number, *least


def arguments() -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument(
        "--size",
        choices=sorted(WORDS),
        default="tiny",
        help="network; what a round leaves behind may depend on it",
    )
    parser.add_argument("--every", type=int, default=25, help="rounds between two looks")
    parser.add_argument("--cohort", type=int, default=8, help="clients a round")
    parser.add_argument("--json", type=Path, help="write every look here")
    return parser.parse_args()


def main() -> None:
    """Measure, and print what the head of this file says."""
    asked = arguments()
    plan = Plan(learning_rate=0.1, max_rows=16)
    recipe = Recipe(
        size=asked.size,
        vocabulary=WORDS[asked.size],
        rounds=asked.rounds,
        cohort=asked.cohort,
        evaluate_every=100,
        plan=plan,
    )
    seen: list[tuple[int, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        settings, events = Path(folder) / "settings.toml", Path(folder) / "events.jsonl"
        settings.write_text(config.to_toml(Settings(recipe=recipe)))
        command = [
            sys.executable,
            "-m",
            "fedboard.cli",
            "train",
            "--config",
            str(settings),
            "--out",
            str(Path(folder) / "run"),
            "--json",
        ]
        print(f"{'round':>6}  {'Python MB':>9}  {'worker MB':>9}", flush=True)
        process = child_process.start(command, events)
        try:
            for row in looks(process, events, asked.every, asked.rounds):
                seen.append(row)
                print("{:>6}  {:>9.1f}  {:>9.1f}".format(*row), flush=True)
        finally:
            child_process.end(process)
    rounds, python, worker = (list(column) for column in zip(*seen, strict=True))
    slopes = {"python": slope(rounds, python), "worker": slope(rounds, worker)}
    print(
        f"MB per 100 rounds after round {SETTLED}: Python {slopes['python']:+.2f}, worker "
        f"{slopes['worker']:+.2f}"
    )
    if asked.json:
        ran = {
            "rounds": asked.rounds,
            "cohort": asked.cohort,
            "size": recipe.size,
            "vocabulary": recipe.vocabulary,
        }
        asked.json.write_text(
            json.dumps({"settings": ran, "looks": seen, "mb_per_100_rounds": slopes}, indent=1)
        )


if __name__ == "__main__":
    main()
