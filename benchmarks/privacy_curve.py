"""The privacy curve: what a budget costs the network in accuracy, by training under each.

    python -m benchmarks.privacy_curve --out FOLDER [--epsilons 4 8] [--search]

Rounds of a small cohort that stands for a large report goal, as published work does it: the noise
on the sum is scaled by cohort / report goal, so that on the mean it is as wide as in a fleet of so
many reports a round. What is spent is counted for that fleet by the participations of the simulated
clients; **none of it is a guarantee for the small cohort**. Noise is BLT's at delta 1e-10, updates
are encoded and clients keep to a device's own limits. `--search` trains short runs at epsilon 4 and
looks at validation users; the curve is of test users. What has been trained stays in FOLDER and is
not trained again.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from device_runtime import accountant, durable, strategy
from device_runtime.encoding import Encoding
from device_runtime.errors import FedboardError
from device_runtime.metrics import Counts, recall
from device_runtime.noise import Mechanism, Noise
from device_runtime.wire import Plan
from fedboard import console
from fedboard.run import Run, Settings
from model import cohorts, corpora, evaluation
from model.clients import Clients, may_ever_train
from model.corpus import Corpus, Users
from model.measures import Evaluation
from model.recipe import Client, Privacy, Recipe, Schedule, Server

DELTA = 1e-10
FROZEN = frozenset({"embedding"})  # of a part of the network that does not travel
EPSILONS = (0.0, 4.0, 1.0, 16.0, 2.0, 8.0)  # 0: no noise; in the order of their worth


@dataclass(frozen=True)
class Asked:
    """One training."""

    epsilon: float  # 0: no noise
    rounds: int = 300
    # of which the noise is measured: a short run of the search has that of the whole one
    planned: int = 300
    cohort: int = 20
    report_goal: int = 10_000
    clip: float = 0.3
    server: str = "fedadam"
    rate: float = 0.02
    schedule: str = "constant"  # of the clients' rate: one that falls leaves deltas under the clip
    rows: int = 32
    bits: int = 4
    compression: int = 1
    mechanism: str = "blt"
    seed: int = 0
    way: str = ""  # how updates travel where a recipe does not say it

    @property
    def name(self) -> str:
        """What its files are called."""
        said = [f"{name}{value}" for name, value in asdict(self).items()]
        return "-".join(said)

    def recipe(self, noise: Noise | None) -> Recipe:
        """All its numbers, with this noise."""
        momentum = {"fedavgm": 0.9, "fedadam": 0.9}[self.server]
        return Recipe(
            size="small",
            vocabulary=5000,
            rounds=self.planned,
            cohort=self.cohort,
            seed=self.seed,
            encoded=True,
            compression=self.compression,
            device_limits=True,
            plan=Plan(
                learning_rate=0.5, max_rows=self.rows, bits=self.bits, clipping_norm=self.clip
            ),
            client=Client(weighting="uniform", schedule=Schedule(self.schedule)),
            server=Server(self.server, self.rate, momentum),
            privacy=Privacy()
            if noise is None
            else Privacy(
                noise.mechanism.value,
                noise.multiplier,
                delta=noise.delta,
                epsilon=noise.epsilon,
                participations=noise.participations,
                report_goal=self.report_goal,
                decays=noise.decays,
                scales=noise.scales,
            ),
        )


def participation(asked: Asked, members: int) -> accountant.Participation:
    """How so many clients will have taken part after all planned rounds: cohorts are drawn as in
    the run.
    """
    recipe = asked.recipe(None)
    least = max(recipe.separation, separation_of(asked, members))
    sampler = cohorts.start(members, asked.cohort, least, accounted=True)
    for _ in range(asked.planned):
        _, sampler = cohorts.draw(sampler, asked.cohort, recipe.sampling, least, asked.seed)
    return sampler.happened


def separation_of(asked: Asked, members: int) -> int:
    """The longest separation that so many clients allow."""
    return members // asked.cohort


def noise_of(asked: Asked, happened: accountant.Participation) -> Noise | None:
    """The noise with which so much participation spends the epsilon."""
    if not asked.epsilon:
        return None
    unit = Noise(
        Mechanism(asked.mechanism),
        1.0,
        asked.epsilon,
        DELTA,
        asked.planned,
        happened.participations,
    )
    if asked.mechanism == "blt":
        unit = strategy.optimised(unit, happened.separation)
    sensitivity = strategy.sensitivity(
        unit, happened.blocks, happened.separation, happened.participations
    )
    spends = math.sqrt(2 * accountant.rho(asked.epsilon, DELTA))
    return replace(unit, multiplier=sensitivity / spends * (1 + 1e-9))


def prepared(asked: Asked, corpus: Corpus, folder: Path):
    """Recipe, vocabulary, first weights, clients and how these will have taken part."""
    from fedboard.train import beginning

    plain = asked.recipe(None)
    words, first = beginning(Settings(recipe=plain), Run(folder), corpus, False)
    population = Clients(corpus.train, words, plain.plan.length)
    members = sum(
        may_ever_train(population[i], plain.plan, plain.client, plain.limits)
        for i in range(len(population))
    )
    happened = participation(asked, members)
    recipe = replace(
        asked.recipe(noise_of(asked, happened)), min_separation=separation_of(asked, members)
    )
    return recipe, words, first, population, happened


def train(asked: Asked, corpus: Corpus, folder: Path, users: Users) -> None:
    """Train, and evaluate on `users`; writes NAME.json into the folder."""
    from benchmarks.quick_rounds import Rounds

    recipe, words, first, population, happened = prepared(asked, corpus, folder)
    training = Rounds(
        first.weights,
        population,
        recipe,
        FROZEN if asked.way == "frozen" else frozenset(),
        asked.way == "fresh",
    )
    started, losses, clipped, norms = time.monotonic(), [], [], []
    while len(losses) < asked.rounds:
        done = training.next()
        losses.append(done.loss)
        clipped.append(done.clipped)
        norms.append(done.norm)
        if done.number % 10 == 0:
            console.note(
                f"  {asked.name}: round {done.number}, loss {np.mean(losses[-10:]):.3f}, clipped "
                f"{np.mean(clipped[-10:]):.0%}, norm {np.mean(norms[-10:]):.2f}, "
                f"{time.monotonic() - started:.0f} s"
            )
    scored = evaluation.evaluate(
        evaluation.engine_of(done.weights, words), users, words, evaluation.Scope()
    )
    noise = recipe.noise
    spent = None if noise is None else accountant.account(noise, done.sampler.happened)
    record = {
        "asked": asdict(asked),
        "noise": None if noise is None else asdict(noise),
        "clients": len(training.members),
        "left_out": len(population) - len(training.members),
        "separation": happened.separation,
        "participations": happened.participations,
        "spent": None if spent is None else asdict(spent),
        "values": training.by.dimension,
        "travel": training.by.values,
        "noise_on_mean": noise_on_mean(asked, noise, training.by),
        "loss": float(np.mean(losses[-20:])),
        "losses": losses,
        "clipped": float(np.mean(clipped)),
        "norms": norms,
        "seconds": time.monotonic() - started,
        "top1": recall(scored.total, "top1"),
        "top3": recall(scored.total, "top3"),
        "users": {user: asdict(counts) for user, counts in scored.users.items()},
    }
    durable.share(folder / f"{asked.name}.json", json.dumps(record).encode())


def noise_on_mean(asked: Asked, noise: Noise | None, by: Encoding) -> float:
    """L2 norm of a round's noise on the mean, in clipping norms: that of the widest round."""
    if noise is None:
        return 0.0
    wide = strategy.row_norm(noise) * noise.multiplier * by.bound * math.sqrt(by.values)
    return wide / asked.report_goal


def scored(record: dict) -> Evaluation:
    """What `train` has written of a training's users."""
    users = {user: Counts(**counts) for user, counts in record["users"].items()}
    return Evaluation(users, sum(users.values(), Counts()))


SEARCH = [
    Asked(4.0, rounds=60, rate=0.01),
    Asked(4.0, rounds=60, server="fedavgm", rate=1.0),
    Asked(4.0, rounds=60, rate=0.01, clip=0.6),
    Asked(4.0, rounds=60, rate=0.02),
]


def main() -> int:
    """Train what is missing, and print what the head of this file says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of what was trained")
    parser.add_argument("--epsilons", type=float, nargs="+", default=EPSILONS)
    parser.add_argument("--search", action="store_true", help="short runs on validation users")
    parser.add_argument("--clip", type=float, default=0.3)
    parser.add_argument("--server", default="fedadam")
    parser.add_argument("--rate", type=float, default=0.02)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = {"clip": options.clip, "server": options.server, "rate": options.rate}
    trainings = SEARCH if options.search else [Asked(each, **chosen) for each in options.epsilons]
    missing = [each for each in trainings if not (options.out / f"{each.name}.json").is_file()]
    if missing:
        corpus = corpora.load("chitchat")
        users = corpus.validation if options.search else corpus.test
        for asked in missing:
            train(asked, corpus, options.out, users)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FedboardError as error:
        sys.exit(f"error: {error}")
