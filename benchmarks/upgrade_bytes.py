"""What an upgrade costs: the bytes of the int8 difference between releases some rounds apart.

Rounds of devices go on from a bundle: real fine-tuning of train users by its own graph, and
FedAvg. Beside the difference stand the entropy of what it packs, the float16 difference of the
same two checkpoints, and what a patch takes of time and memory:

python -m benchmarks.upgrade_bytes [BUNDLE] --rounds 40

With noise, as a server of differential privacy adds it: an independent Gaussian on every value of
the mean delta of each round, of stddev multiplier * clip / goal, on its way through the server's
step. `--noise MULTIPLIER,CLIP,GOAL` may stand several times. A training from nothing, whose weights
move most, is measured at the same distances with

python -m benchmarks.upgrade_bytes --training configs/gboard.toml --training-rounds 100
"""

import argparse
import os
import sys
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from device_runtime import codes, difference, patch, weights
from device_runtime.bundle import Bundle
from device_runtime.config import from_toml
from device_runtime.errors import FedboardError
from device_runtime.examples import rows
from device_runtime.finetune import finetune
from device_runtime.turn import Train
from device_runtime.weights import Checkpoint, Weights
from fedboard import console
from fedboard.run import Run, Settings, open_bundle
from model import corpora, worker
from model.clients import Clients
from server.step import ServerStep, apply

ROWS = 64  # of one client
APART = 20  # rounds between two releases
BAR = 500_000  # bytes, without noise
# what a hundred, a thousand or ten thousand devices a round would carry of one and the same noise
NOISE = ("1,0.5,100", "1,0.5,1000", "1,0.5,10000")


@dataclass(frozen=True)
class Noise:
    """Of one server: the style's words."""

    multiplier: float = 0.0
    clip: float = 0.0
    goal: int = 1

    @property
    def stddev(self) -> float:
        """Of each value of a round's mean delta."""
        return self.multiplier * self.clip / self.goal

    def __str__(self) -> str:
        """
        >>> str(Noise()), str(Noise(1.0, 0.5, 100))
        ('none', 'multiplier 1, clip 0.5, goal 100')
        """
        if not self.stddev:
            return "none"
        return f"multiplier {self.multiplier:g}, clip {self.clip:g}, goal {self.goal}"


@dataclass(frozen=True)
class Upgrade:
    """Bytes of what travels between two releases."""

    codes: int
    floor: int  # the entropy of how wrong the guesses of codes are, each array by itself
    checkpoint: int  # the difference of both float16 checkpoints


def noise_of(text: str) -> Noise:
    """MULTIPLIER,CLIP,GOAL.

    >>> noise_of("1,0.5,100").stddev
    0.005
    """
    multiplier, clip, goal = text.split(",")
    return Noise(float(multiplier), float(clip), int(goal))


def deltas(bundle: Bundle, rounds: int, clients: int) -> Iterator[np.ndarray]:
    """The mean delta of each round, float64 [dimension], of devices that count alike."""
    rng, exact, plan = np.random.default_rng(0), bundle.weights, bundle.plan
    users = [own for own in corpora.load("chitchat").train.values() if len(own) >= 20]
    for _ in range(rounds):
        received = weights.as_sent(exact)
        total = np.zeros(sum(array.size for array in received.values()))
        for user in rng.choice(len(users), clients, replace=False):
            own = rows(
                (bundle.vocabulary.ids(utterance.tokens) for utterance in users[user]), plan.length
            )[-ROWS:]
            delta = finetune(bundle.train_graph, Train(received, own, plan, rng)).delta
            total = total + weights.flatten(delta).astype(np.float64)
        exact, _ = apply(ServerStep(), exact, None, total / clients)
        yield total / clients


def checkpoints(first: Weights, moves: list[np.ndarray], noise: Noise) -> list[Weights]:
    """The weights after every APART rounds of these mean deltas, `first` included."""
    rng, exact, kept = np.random.default_rng(1), first, [first]
    for number, move in enumerate(moves, start=1):
        noised = move + noise.stddev * rng.normal(size=move.shape) if noise.stddev else move
        exact, _ = apply(ServerStep(), exact, None, noised)
        if number % APART == 0:
            kept.append(exact)
    return kept


def upgrade(template: bytes, constants: patch.Constants, old: Weights, new: Weights) -> Upgrade:
    """What it takes from one release to the other."""
    before, after = (
        patch.predict(template, constants, weights.as_sent(each)) for each in (old, new)
    )
    change = codes.encode(before, after, constants)
    assert codes.apply(before, change, constants, weights.digest(after)) == after
    travelled = [weights.to_bytes(Checkpoint(each), np.float16) for each in (old, new)]
    return Upgrade(
        len(change),
        sum(entropy(before, after, each) for each in constants.values()),
        len(difference.encode(*travelled)),
    )


def entropy(before: bytes, after: bytes, constant: patch.Constant) -> int:
    """Bytes that the best code of single values takes for a constant's wrong guesses, if it knows
    how often each occurs; of an int8 one.
    """
    if constant.type != patch.INT8:
        return 0
    ratio = float(patch.scale_of(before, constant)) / float(patch.scale_of(after, constant))
    guess = np.rint(patch.codes_of(before, constant) * ratio)
    _, counts = np.unique(patch.codes_of(after, constant) - guess, return_counts=True)
    return int(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def show(name: str, measured: Upgrade) -> None:
    """One line of the table."""
    bar = "" if measured.codes <= BAR else f"  above {BAR:,}"
    print(
        f"{name:<62} {measured.codes:>10,} {measured.floor:>10,} {measured.checkpoint:>10,}{bar}",
        flush=True,
    )


def patch_costs(bundle: Bundle, constants: patch.Constants) -> str:
    """Milliseconds, median of nine, and bytes beside the two files, of one patch."""
    arrays, seconds = weights.as_sent(bundle.weights), []
    for _ in range(9):
        began = time.perf_counter()
        patch.predict(bundle.predict_graph, constants, arrays)
        seconds.append(time.perf_counter() - began)
    tracemalloc.start()
    patch.predict(bundle.predict_graph, constants, arrays)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return f"a patch: {1000 * np.median(seconds):.1f} ms, {most / 1e6:.1f} MB at most"


def training(config: Path, rounds: int) -> Iterator[tuple[int, Weights]]:
    """The number and weights of every APART-th round of a training from nothing."""
    from fedboard.train import beginning
    from model import simulation

    settings = from_toml(Settings, config)
    settings = replace(settings, recipe=replace(settings.recipe, rounds=rounds))
    users = corpora.load(settings.data)
    words, first = beginning(settings, Run(Path()), users, False)
    with worker.running(len(os.sched_getaffinity(0))):
        for done in simulation.train(
            first.weights, Clients(users.train, words, settings.recipe.plan.length), settings.recipe
        ):
            if done.number % APART == 0:
                yield done.number, done.weights


def main() -> None:
    """Measure, and print what the head of this file says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path, help="by default the reference bundle")
    parser.add_argument("--rounds", type=int, default=2 * APART, help="0: none")
    parser.add_argument("--clients", type=int, default=20, help="of a round")
    parser.add_argument("--noise", action="append", help="MULTIPLIER,CLIP,GOAL")
    parser.add_argument("--training", type=Path, help="TOML file of a training from nothing")
    parser.add_argument("--training-rounds", type=int, default=5 * APART)
    asked = parser.parse_args()
    bundle = open_bundle(asked.bundle, None)
    constants = bundle.manifest.constants
    if constants is None:
        sys.exit(f"{bundle.path}: a bundle of format 2; export it again")
    template = bundle.predict_graph
    whole = sum(map(len, bundle.content.values())) + len(bundle.encoded) + len(bundle.signature)
    print(f"whole bundle {whole:,} bytes, predict.tflite {len(template):,}")
    print(patch_costs(bundle, constants))
    print(f"{'rounds, noise':<62} {'int8':>10} {'entropy':>10} {'float16':>10}")
    if asked.rounds:
        with console.progress("rounds", asked.rounds) as advance:
            moves = []
            for move in deltas(bundle, asked.rounds, asked.clients):
                moves.append(move)
                advance(len(moves), "")
        for noise in (Noise(), *map(noise_of, asked.noise or NOISE)):
            kept = checkpoints(bundle.weights, moves, noise)
            for at, (old, new) in enumerate(pairwise(kept)):
                name = f"device rounds {APART * at} to {APART * (at + 1)}, noise: {noise}"
                show(name, upgrade(template, constants, old, new))
    if asked.training:
        before: Weights | None = None
        for number, after in training(asked.training, asked.training_rounds):
            if before is not None:
                name = f"training from nothing, rounds {number - APART} to {number}"
                show(name, upgrade(template, constants, before, after))
            before = after


if __name__ == "__main__":
    try:
        main()
    except FedboardError as error:
        sys.exit(str(error))
