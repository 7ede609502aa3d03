"""Encodings: what the ways in which updates may travel cost a training in accuracy.

    python -m benchmarks.encodings --out FOLDER [--sizes small gboard] [--servers fedavgm fedadam]

200 rounds of 20 clients each on the built-in corpus, once for every size of network, server's
optimizer and way of travelling, with the same cohorts, rows and first weights; then the top-1 and
top-3 of the last weights on test users, and the difference from updates that travel as they are,
paired by user. Every client counts once, but for `by rows`. What has been trained stays in FOLDER
and is not trained again: a run that was killed begins anew, those before it do not.
"""

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from device_runtime import durable, weights
from device_runtime.errors import FedboardError
from device_runtime.metrics import Counts, recall
from device_runtime.wire import Plan
from fedboard import console
from fedboard.run import Run, Settings
from model import comparison, corpora, evaluation, worker
from model.clients import Clients
from model.corpus import Corpus
from model.measures import Evaluation
from model.recipe import Client, Recipe, Server

SERVERS = {
    "fedavgm": Server("fedavgm", 1.0, 0.9),  # as in configs/four-bits.toml
    "fedadam": Server("fedadam", 0.01),  # as in configs/gboard.toml
}
VOCABULARY = {"tiny": 2000, "small": 5000, "gboard": 10_000}


@dataclass(frozen=True)
class Way:
    """How a round's updates travel."""

    title: str
    bits: int = 0  # of an encoded value; 0: float32
    shared: bool = True  # one range of codes for all (format 3), or one a block (format 2)
    clipped: bool = True  # to the plan's norm, as all that is encoded
    weighting: str = "uniform"


WAYS = {
    "plain": Way("as they are", clipped=False),
    "8": Way("format 3, 8 bits", 8),
    "4": Way("format 3, 4 bits", 4),
    "blocks-8": Way("format 2, 8 bits", 8, shared=False),
    "blocks-4": Way("format 2, 4 bits", 4, shared=False),
    "rows": Way("as they are, by rows", clipped=False, weighting="rows"),
    "clipped": Way("clipped only"),
}


@dataclass(frozen=True)
class Asked:
    """One training."""

    size: str
    server: str
    way: str
    rounds: int
    seed: int
    clip: float
    rate: float  # the server's; 0: that of SERVERS

    @property
    def name(self) -> str:
        """What its files are called."""
        rate = f"-rate{self.rate:g}" if self.rate else ""
        another = WAYS[self.way].clipped and self.clip != Plan().clipping_norm
        norm = f"-clip{self.clip:g}" if another else ""
        return f"{self.size}-{self.server}-{self.way}-{self.rounds}-{self.seed}{norm}{rate}"

    @property
    def title(self) -> str:
        """How its updates travel, as the table says it."""
        way = WAYS[self.way]
        return way.title + (f", clip {self.clip:g}" if way.clipped else "")

    @property
    def recipe(self) -> Recipe:
        """All its numbers."""
        way, server = WAYS[self.way], SERVERS[self.server]
        return Recipe(
            size=self.size,
            vocabulary=VOCABULARY[self.size],
            rounds=self.rounds,
            cohort=20,
            seed=self.seed,
            encoded=bool(way.bits) and way.shared,
            plan=Plan(learning_rate=0.5, max_rows=64, bits=way.bits or 8, clipping_norm=self.clip),
            client=Client(weighting=way.weighting),
            server=replace(server, learning_rate=self.rate or server.learning_rate),
        )


def train(asked: Asked, corpus: Corpus, folder: Path) -> None:
    """Train and evaluate on test users; writes NAME.safetensors and NAME.json into the folder."""
    import tensorflow_federated as tff

    from benchmarks import block_scales
    from fedboard.train import beginning
    from model import simulation

    recipe, way = asked.recipe, WAYS[asked.way]
    words, first = beginning(Settings(recipe=recipe), Run(folder), corpus, False)
    aggregator = None
    if way.bits and not way.shared:
        aggregator = block_scales.BlockScales(recipe.plan.clipping_norm, way.bits, recipe.seed)
    elif way.clipped and not way.bits:
        aggregator = tff.aggregators.clipping_factory(
            recipe.plan.clipping_norm, tff.aggregators.MeanFactory()
        )
    population = Clients(corpus.train, words, recipe.plan.length)
    training = simulation.Training(first.weights, population, recipe, 1, aggregator)
    state, started, losses, clipped = training.start(), time.monotonic(), [], []
    while state.round < recipe.rounds:
        done = training.next(state)
        state = done.state
        losses.append(done.loss)
        clipped.append(done.encoding.get("clipped", 0.0))
        gc.collect()  # what TFF leaves behind in cycles
        if state.round % 25 == 0:
            console.note(
                f"  {asked.name}: round {state.round}, loss {done.loss:.2f}, clipped "
                f"{np.mean(clipped[-25:]):.0%}, {time.monotonic() - started:.0f} s"
            )
    durable.share(
        folder / f"{asked.name}.safetensors",
        weights.to_bytes(weights.Checkpoint(done.weights, done.number, "", words.hash)),
    )
    scored = evaluation.evaluate(
        evaluation.engine_of(done.weights, words), corpus.test, words, evaluation.Scope()
    )
    record = {
        "loss": float(np.mean(losses[-20:])),
        "clipped": float(np.mean(clipped)),
        "users": {user: asdict(counts) for user, counts in scored.users.items()},
    }
    durable.share(folder / f"{asked.name}.json", json.dumps(record).encode())


def scored(path: Path) -> tuple[Evaluation, dict]:
    """What `train` has written of a training."""
    record = json.loads(path.read_text())
    users = {user: Counts(**counts) for user, counts in record["users"].items()}
    return Evaluation(users, sum(users.values(), Counts())), record


def rows(trainings: list[Asked], folder: Path) -> Iterator[list[str]]:
    """A line of the table for each training that has ended."""
    for asked in trainings:
        path = folder / f"{asked.name}.json"
        beside = folder / f"{replace(asked, way='plain').name}.json"
        if not path.is_file():
            continue
        own, record = scored(path)
        told = [f"{asked.size}, {asked.server}", asked.title, f"{record['loss']:.3f}"]
        told += [f"{recall(own.total, which):.2%}" for which in ("top1", "top3")]
        if asked.way != "plain" and beside.is_file():
            plain, _ = scored(beside)
            gains = comparison.compare(own, plain, np.random.default_rng(0))
            for gain in (gains.top1, gains.top3):
                low, high = gain.interval
                told.append(f"{100 * gain.change:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})")
        yield told


def main() -> int:
    """Train what is missing, and print what the head of this file says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of what was trained")
    parser.add_argument("--sizes", nargs="+", default=["small"], choices=VOCABULARY)
    parser.add_argument("--servers", nargs="+", default=list(SERVERS), choices=SERVERS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--clip", type=float, default=Plan().clipping_norm)
    parser.add_argument("--rate", type=float, default=0.0, help="of the server's step")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    trainings = [
        Asked(size, server, way, options.rounds, seed, options.clip, options.rate)
        for size in options.sizes
        for seed in options.seeds
        for server in options.servers
        for way in options.ways
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    missing = [each for each in trainings if not (options.out / f"{each.name}.json").is_file()]
    if missing and not options.table:
        corpus = corpora.load("chitchat")
        with worker.running(len(os.sched_getaffinity(0))):
            for asked in missing:
                train(asked, corpus, options.out)
    heads = ["training", "updates travel", "loss of the last 20 rounds", "top-1", "top-3"]
    heads += ["top-1, points", "top-3, points"]
    console.table("paired with updates as they are", heads, list(rows(trainings, options.out)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FedboardError as error:
        sys.exit(f"error: {error}")
