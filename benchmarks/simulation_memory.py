"""Whether federated simulation keeps its memory: resident MB of Python and of TFF's worker over many rounds, and the slope of each.

python benchmarks/simulation_memory.py --rounds 1000 --json memory.json
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.peers.common import resident_mb
from device_runtime import examples
from device_runtime.wire import Plan
from model import corpus, network, vocabulary
from model.recipe import Recipe

SETTLED = 100  # rounds after which memory should stay: caches and allocators have filled by then
WORDS = 500


def slope(rounds: Sequence[int], megabytes: Sequence[float], after: int = SETTLED) -> float:
    """Least-squares MB per 100 rounds, over the looks after the given round; nan for fewer than two."""
    kept = [(number, found) for number, found in zip(rounds, megabytes, strict=True) if number > after]
    if len(kept) < 2:
        return float("nan")
    return float(np.polyfit(*zip(*kept, strict=True), 1)[0] * 100)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--every", type=int, default=50, help="rounds between two looks")
    parser.add_argument("--cohort", type=int, default=8, help="clients a round")
    parser.add_argument("--threads", type=int, default=1, help="clients that train at once")
    parser.add_argument("--json", type=Path, help="write every look here")
    return parser.parse_args()


def main() -> None:
    found = arguments()
    recipe = Recipe(size="tiny", vocabulary=WORDS, rounds=found.rounds, cohort=found.cohort, plan=Plan(learning_rate=0.1, max_rows=16))
    users = corpus.load("chitchat").train
    words = vocabulary.build(corpus.token_lists(users), WORDS)
    made = (examples.rows((words.ids(utterance.tokens) for utterance in utterances), recipe.plan.length) for utterances in users.values())
    population = [rows for rows in made if len(rows)]
    initial = network.initial_weights(network.size_named(recipe.size), words, np.random.default_rng(0))

    from model import simulation, worker  # TensorFlow and TFF: some twenty seconds

    looks: dict[str, list[float]] = {"round": [], "seconds": [], "python": [], "worker": []}
    print(f"{'round':>6}  {'seconds':>7}  {'Python MB':>9}  {'worker MB':>9}", flush=True)
    started = time.monotonic()
    with worker.running(found.threads) as running:
        for done in simulation.train(initial, population, recipe):
            if done.number % found.every == 0:
                row = (done.number, time.monotonic() - started, resident_mb([os.getpid()]), resident_mb([running.process.pid]))
                for values, value in zip(looks.values(), row, strict=True):
                    values.append(value)
                print("{:>6}  {:>7.0f}  {:>9.1f}  {:>9.1f}".format(*row), flush=True)
    slopes = {process: slope(looks["round"], looks[process]) for process in ("python", "worker")}
    print(f"MB per 100 rounds after round {SETTLED}: Python {slopes['python']:+.2f}, worker {slopes['worker']:+.2f}")
    if found.json:
        settings = {"rounds": found.rounds, "cohort": found.cohort, "threads": found.threads, "size": recipe.size, "vocabulary": len(words)}
        found.json.write_text(json.dumps({"settings": settings, "looks": looks, "mb_per_100_rounds": slopes}, indent=1))


if __name__ == "__main__":
    main()
