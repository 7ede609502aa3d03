"""The privacy curve: what a budget costs the network in accuracy, by training under each.

    python -m benchmarks.privacy_curve --out FOLDER [--search] [--commit HASH] [--plot FILE]

Rounds of a small cohort that stands for a large report goal, as published work does it: the noise
on the sum is scaled by cohort / report goal, so that on the mean it is as wide as in a fleet of so
many reports a round. What is spent is counted for that fleet by the participations of the simulated
clients; **none of it is a guarantee for the small cohort**. Noise is BLT's at delta 1e-10, updates
are encoded and clients keep to a device's own limits. `--search` trains short runs at epsilon 4 and
looks at validation users; the curve is of test users. What has been trained stays in FOLDER and is
not trained again. `--commit` writes the curve that `fedboard privacy plan` reads.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from device_runtime import accountant, config, durable, strategy
from device_runtime.encoding import Encoding
from device_runtime.errors import FedboardError
from device_runtime.metrics import Counts, recall
from device_runtime.noise import Mechanism, Noise
from device_runtime.wire import Plan
from fedboard import console, privacy_curve
from fedboard.run import Run, Settings
from model import cohorts, corpora, evaluation, measures
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
    turn: int = 0  # rounds after which another projection is drawn and noise begins anew; 0: never

    @property
    def name(self) -> str:
        """What its files are called."""
        told = asdict(self)
        if not self.turn:
            del told["turn"]
        said = [f"{name}{value}" for name, value in told.items()]
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
    blocks = [asked.planned] if not asked.turn else [asked.turn] * (asked.planned // asked.turn)
    if left := asked.planned - sum(blocks):
        blocks.append(left)
    return replace(sampler.happened, blocks=tuple(blocks))


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
        longest = happened.blocks[0]
        most = min(happened.participations, -(-longest // happened.separation))
        own = replace(unit, rounds=longest, participations=most)
        best = strategy.optimised(own, happened.separation)
        unit = replace(unit, decays=best.decays, scales=best.scales)
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
        asked.turn,
        int(asked.way.removeprefix("embedding")) if asked.way.startswith("embedding") else 1,
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
    spent = None if noise is None else accountant.account(noise, happened)
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


def ended(trainings: list[Asked], folder: Path) -> list[dict]:
    """What was written of those that have ended."""
    paths = [folder / f"{each.name}.json" for each in trainings]
    return [json.loads(path.read_text()) for path in paths if path.is_file()]


def rows(records: list[dict]) -> Iterator[list[str]]:
    """A line of the table for each training."""
    for record in records:
        asked, noise = Asked(**record["asked"]), record["noise"]
        summary = measures.summarise(scored(record), np.random.default_rng(0))
        told = [f"{asked.epsilon:g}" if noise else "no noise"]
        told += [f"{noise['multiplier']:.2f}" if noise else ""]
        told += [f"{record['noise_on_mean']:.2f}" if noise else "0"]
        told += [f"{asked.server} {asked.rate:g}, clip {asked.clip:g}", str(asked.rounds)]
        told.append(f"{record['loss']:.3f}")
        for which in ("top1", "top3"):
            low, high = getattr(summary, f"{which}_interval")
            told.append(f"{record[which]:.2%} ({low:.2%} to {high:.2%})")
        yield told


def write(records: list[dict], commit: str, path: Path) -> None:
    """The curve as `fedboard privacy plan` reads it."""
    points = []
    for record in sorted(records, key=lambda each: each["noise_on_mean"]):
        asked = Asked(**record["asked"])
        summary = measures.summarise(scored(record), np.random.default_rng(0))
        points.append(
            privacy_curve.Point(
                asked.epsilon or None,
                asked.report_goal,
                record["noise_on_mean"],
                record["top1"],
                summary.top1_interval,
                f"python -m benchmarks.privacy_curve --out FOLDER --epsilons {asked.epsilon:g}",
                commit,
            )
        )
    durable.share(path, config.to_json(privacy_curve.Curve(about(records), tuple(points))) + b"\n")


def about(records: list[dict]) -> str:
    """What was trained, and for whom its epsilon is none."""
    asked, record = Asked(**records[0]["asked"]), records[0]
    return (
        f"chitchat, size small, {asked.planned} rounds, {record['clients']} clients, each at least "
        f"{record['separation']} rounds apart; {asked.cohort} clients stand for "
        f"{asked.report_goal:,} reports a round, with the noise scaled by {asked.cohort} / "
        f"{asked.report_goal:,}: no guarantee for them"
    )


def plot(records: list[dict], path: Path) -> None:
    """Accuracy by epsilon, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), dpi=150, layout="constrained")
    noised = sorted(
        (each for each in records if each["noise"]), key=lambda each: each["asked"]["epsilon"]
    )
    epsilons = [each["asked"]["epsilon"] for each in noised]
    for which, label, colour in (("top1", "top-1", "#0b6e99"), ("top3", "top-3", "#2f9e8f")):
        ends = [
            getattr(measures.summarise(scored(each), np.random.default_rng(0)), f"{which}_interval")
            for each in noised
        ]
        low, high = np.array(ends).T
        axes.fill_between(epsilons, 100 * low, 100 * high, color=colour, alpha=0.15, linewidth=0)
        shares = [100 * each[which] for each in noised]
        axes.plot(epsilons, shares, color=colour, marker="o", label=label)
        for plain in (each for each in records if not each["noise"]):
            axes.axhline(100 * plain[which], color=colour, linewidth=1.2, linestyle="--")
            axes.annotate(
                f"{label} without noise: {100 * plain[which]:.1f} %",
                (0, 100 * plain[which]),
                (4, 3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                color=colour,
                size=9,
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(epsilons, [f"{each:g}" for each in epsilons])
    axes.set_xlabel(f"epsilon at delta {DELTA:g}, of a fleet of that many reports a round")
    axes.set_ylabel("recall on test users, %")
    axes.set_ylim(bottom=0)
    asked = Asked(**records[0]["asked"])
    axes.set_title(
        f"{asked.cohort} clients stand for {asked.report_goal:,} reports a round: noise scaled by "
        f"{asked.cohort} / {asked.report_goal:,}.\nNo guarantee for these {asked.cohort} clients.",
        size=10,
    )
    axes.legend(frameon=False, loc="lower right")
    axes.grid(axis="y", color="#e3e6ea")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})


def main() -> int:
    """Train what is missing, and print what the head of this file says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of what was trained")
    parser.add_argument("--epsilons", type=float, nargs="+", default=EPSILONS)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--search", action="store_true", help="short runs on validation users")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--commit", help="write the curve of this commit for `privacy plan`")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    trainings = [Asked(each, options.rounds, options.rounds) for each in options.epsilons]
    trainings = SEARCH if options.search else trainings
    missing = [each for each in trainings if not (options.out / f"{each.name}.json").is_file()]
    if missing and not options.table:
        corpus = corpora.load("chitchat")
        users = corpus.validation if options.search else corpus.test
        for asked in missing:
            train(asked, corpus, options.out, users)
    records = ended(trainings, options.out)
    heads = ["epsilon", "multiplier", "noise on the mean, clips", "server", "rounds"]
    heads += ["loss of the last 20 rounds", "top-1", "top-3"]
    console.table("a small cohort for a large report goal", heads, list(rows(records)))
    if records:
        console.say(about(records))
    if options.commit:
        place = Path(privacy_curve.__file__).with_name(privacy_curve.NAME)
        write(records, options.commit, place)
    if options.plot:
        plot(records, options.plot)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FedboardError as error:
        sys.exit(f"error: {error}")
