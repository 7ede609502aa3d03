"""Poisoning: how far lying devices move a task's rounds, under the bounds of today and of before.

    python -m benchmarks.poisoning [BUNDLE] --rounds 10 --plot docs/poisoning.png

Everything but the lie is real: train users' messages, the bundle's graph, the device's encoding,
the server's check, weight, sum and step. A liar sends the largest update that is let in and
declares the most examples, in every round:

    flip    what honest training gave it, times -1
    plant   what training on one planted sentence alone gave it (model replacement: Bagdasaryan et
            al. 2020, arXiv:1807.00459)
    write   the shortest change that makes the planted word likelier after its context: all of it in
            the word's own output weights, along the network's state there

The columns are paired: the same devices train in the same rounds on the same rows.
"""

import argparse
import functools
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from device_runtime import metrics, update, weights
from device_runtime.bundle import Bundle
from device_runtime.causes import Cause
from device_runtime.errors import FedboardError
from device_runtime.examples import rows
from device_runtime.finetune import finetune
from device_runtime.quantize import clip
from device_runtime.text import BOS, FIRST_WORD, OOV
from device_runtime.turn import Train
from device_runtime.update import Header
from device_runtime.weights import Weights
from fedboard import console
from fedboard.run import open_bundle
from model import corpora, network
from server import mechanism, step
from server.rounds import Rules
from server.task import SERVED_NORM, Task, TaskSettings, rotation_seed, task_of

PLANTED = "happy birthday to pizza"
COPIES = 64  # of the planted sentence
SHOWN = (1, 2, 3, 5, 10)  # rounds of the table
LARGEST = 2**32 - 1  # examples a header can declare
INK, SOFT = "#1f2328", "#59636e"
COLOURS = {"none": "#0b6e99", "flip": "#b35900", "plant": "#7a5cc2", "write": "#2f9e8f"}


@dataclass(frozen=True)
class Bounds:
    """What a task lets one device do."""

    clipping_norm: float = SERVED_NORM
    max_weight: int = Rules().max_weight

    @property
    def name(self) -> str:
        """As tables and pictures say it.

        >>> Bounds(10.0, 256).name
        'clip 10, weight 256'
        """
        return f"clip {self.clipping_norm:g}, weight {self.max_weight}"


BEFORE, TODAY = Bounds(10.0, 256), Bounds()


@dataclass(frozen=True)
class Attack:
    """How many devices of each round lie, and how."""

    kind: str = "none"  # flip, plant, write
    liars: int = 0

    @property
    def name(self) -> str:
        """As the table's first column says it.

        >>> Attack("flip", 2).name, Attack().name
        ('flip, 2', 'none')
        """
        return f"{self.kind}, {self.liars}" if self.liars else "none"


ATTACKS = (
    Attack(),
    Attack("flip", 1),
    Attack("flip", 2),
    Attack("plant", 1),
    Attack("plant", 2),
    Attack("write", 1),
    Attack("write", 2),
)


@dataclass(frozen=True)
class Look:
    """What a checkpoint is like after a round; round 0 is the start."""

    round: int
    top1: float  # per cent of the held-out words
    perplexity: float
    probability: float  # of the planted word after its context
    rank: int  # of it among all words


@dataclass(frozen=True)
class Ground:
    """What all columns have in common. `users` and `held_out` are token ids, message by message."""

    bundle: Bundle
    users: Sequence[Sequence[Sequence[int]]]  # who may train
    held_out: Sequence[Sequence[int]]
    planted: Sequence[int]  # the context, and last the word
    devices: int = 20  # a round
    seed: int = 0

    @functools.cached_property
    def start(self) -> Look:
        """Before any round."""
        return self.look(0, self.bundle.checkpoint.weights)

    def task(self, bounds: Bounds) -> Task:
        """The task a server would make of the bundle under some bounds."""
        plan = replace(self.bundle.plan, clipping_norm=bounds.clipping_norm)
        rules = Rules(report_goal=self.devices, max_weight=bounds.max_weight)
        values = self.bundle.checkpoint.weights
        return task_of(
            TaskSettings(plan, rules=rules, seed=self.seed),
            tokenizer=self.bundle.vocabulary.hash,
            shapes=weights.shapes_hash(values),
            dimension=sum(array.size for array in values.values()),
        )

    def look(self, round: int, values: Weights) -> Look:
        """How good these weights are, and what they say after the planted context."""
        right, loss, words, known = 0, 0.0, 0, 0
        for start in range(0, len(self.held_out), 64):
            chunk = rows(self.held_out[start : start + 64], self.bundle.plan.length)
            states, targets = network.forward(values, chunk[:, :-1]), chunk[:, 1:]
            is_word = (targets >= FIRST_WORD) | (targets == OOV)
            scores, wanted = network.log_probs(values, states[is_word]), targets[is_word]
            right += int((metrics.top_words(scores, 1)[:, 0] == wanted).sum())
            is_known = wanted != OOV
            loss -= float(scores[is_known, wanted[is_known]].sum(dtype=np.float64))
            words, known = words + len(wanted), known + int(is_known.sum())
        *context, word = self.planted
        last = network.forward(values, np.array([[BOS, *context]]))[:, -1]
        (after,) = network.log_probs(values, last)
        rank = 1 + int((after[FIRST_WORD:] > after[word]).sum())
        perplexity = float(np.exp(min(loss / known, 300.0)))
        return Look(round, 100 * right / words, perplexity, float(np.exp(after[word])), rank)


def ground(bundle: Bundle, words: int, seed: int = 0) -> Ground:
    """The built-in corpus as token ids: train users with 20 messages, and so many held-out words of
    test users, a few messages of each.
    """
    chat, ids = corpora.load("chitchat"), bundle.vocabulary.ids
    users = [[ids(said.tokens) for said in own] for own in chat.train.values() if len(own) >= 20]
    held_out: list[list[int]] = []
    for own in chat.test.values():
        if sum(map(len, held_out)) >= words:
            break
        held_out += [list(ids(said.tokens)) for said in own[-20:]]
    return Ground(bundle, users, held_out, ids(PLANTED.split()), seed=seed)


def play(ground: Ground, bounds: Bounds, attack: Attack, rounds: int) -> Iterator[Look]:
    """The start, and what each round leaves."""
    task = ground.task(bounds)
    by, exact, moments = mechanism.of(task), ground.bundle.checkpoint.weights, None
    yield ground.start
    for number in range(1, rounds + 1):
        drawn = np.random.default_rng([ground.seed, number])
        users = drawn.choice(len(ground.users), ground.devices, replace=False)
        received = {name: np.float32(np.float16(array)) for name, array in exact.items()}
        total = by.empty()
        for place, user in enumerate(users):
            rng = np.random.default_rng([ground.seed, number, place])
            own = rows(ground.users[user], task.plan.length)[-task.plan.max_rows :]
            if place < attack.liars:
                delta = LIES[attack.kind](ground, received, own, rng)
                larger = task.plan.clipping_norm / weights.norm(delta)
                delta = {name: array * larger for name, array in delta.items()}
                examples = LARGEST
            else:
                delta, examples = trained(ground, received, own, rng), len(own)
            clipped = weights.flatten(clip(delta, task.plan.clipping_norm))
            seed, bits = rotation_seed(task, number), task.plan.bits
            about = Header(number, seed, task.shapes, bits, examples)
            checked = by.check(update.encode(clipped, about, rng), number)
            if isinstance(checked, Cause):
                raise AssertionError(f"round {number}, device {place}: refused for {checked}")
            total = by.add(total, [by.weigh(checked, 0)])
        mean = by.finish(total, number)
        exact, moments = step.apply(task.step, exact, moments, mean)
        yield ground.look(number, exact)


def trained(
    ground: Ground, received: Weights, own: NDArray[np.int32], rng: np.random.Generator
) -> Weights:
    """What an honest device learns of its rows, int32 [rows, length + 1]."""
    return finetune(ground.bundle.train_graph, Train(received, own, ground.bundle.plan, rng)).delta


def flipped(
    ground: Ground, received: Weights, own: NDArray[np.int32], rng: np.random.Generator
) -> Weights:
    """Its opposite."""
    return {name: -array for name, array in trained(ground, received, own, rng).items()}


def planting(
    ground: Ground, received: Weights, own: NDArray[np.int32], rng: np.random.Generator
) -> Weights:
    """What the planted sentence alone teaches."""
    return trained(ground, received, rows([ground.planted] * COPIES, own.shape[1] - 1), rng)


def writing(
    ground: Ground, received: Weights, own: NDArray[np.int32], rng: np.random.Generator
) -> Weights:
    """The gradient of the planted word's score after its context, by its output weights alone."""
    *context, word = ground.planted
    delta = {name: np.zeros_like(array) for name, array in received.items()}
    delta["embedding"][word] = network.forward(received, np.array([[BOS, *context]]))[0, -1]
    delta["output_bias"][word] = 1
    return delta


LIES = {"flip": flipped, "plant": planting, "write": writing}


def norms(ground: Ground, devices: int = 200) -> NDArray[np.float64]:
    """L2 norms of what honest devices learn of their rows, unclipped: [devices]."""
    rng, received = np.random.default_rng(ground.seed), ground.bundle.checkpoint.weights
    users = rng.choice(len(ground.users), devices, replace=False)
    length, most = ground.bundle.plan.length, ground.bundle.plan.max_rows
    return np.array(
        [
            weights.norm(trained(ground, received, rows(ground.users[user], length)[-most:], rng))
            for user in users
        ]
    )


def table(columns: dict[tuple[Bounds, Attack], list[Look]]) -> str:
    """Top-1, perplexity and, of planting, P and rank of the planted word, as Markdown."""
    shown = [look.round for look in next(iter(columns.values())) if look.round in (0, *SHOWN)]
    heads = ["start" if not round else f"round {round}" for round in shown]
    lines = [f"| bounds | liars of 20 | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for (bounds, attack), looks in columns.items():
        cells = [_cell(look, attack) for look in looks if look.round in shown]
        lines.append(f"| {bounds.name} | {attack.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(look: Look, attack: Attack) -> str:
    perplexity = f"{look.perplexity:,.0f}" if look.perplexity < 1e6 else f"{look.perplexity:.0e}"
    planted = f"; {look.probability:.4f}, {look.rank}" if attack.kind != "flip" else ""
    return f"{look.top1:.1f} / {perplexity}{planted}"


def lost(columns: dict[tuple[Bounds, Attack], list[Look]], bounds: Bounds, attack: Attack) -> float:
    """The most points of top-1 that an attack costs at any round, beside no attack."""
    pairs = zip(columns[bounds, attack], columns[bounds, Attack()], strict=True)
    return max(honest.top1 - look.top1 for look, honest in pairs)


def bounded(text: str) -> Bounds:
    """`CLIP,WEIGHT`. Raises ValueError for anything else.

    >>> bounded("0.5,64")
    Bounds(clipping_norm=0.5, max_weight=64)
    """
    norm, weight = text.split(",")
    return Bounds(float(norm), int(weight))


def main() -> None:
    """Measure, and print what the head of this file says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path, help="by default the reference bundle")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--words", type=int, default=5_000, help="held out, to score on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--bounds", type=bounded, action="append", help="CLIP,WEIGHT instead of before and today"
    )
    parser.add_argument("--attacks", default="flip,plant,write", help="those to make")
    parser.add_argument("--norms", action="store_true", help="only those of honest devices")
    parser.add_argument("--out", type=Path, help="JSON file to write every figure to")
    parser.add_argument("--plot", type=Path, help="picture to write")
    asked = parser.parse_args()
    common = ground(open_bundle(asked.bundle, None), asked.words, asked.seed)
    if asked.norms:
        at = [5, 25, 50, 75, 95, 100]
        figures = np.percentile(norms(common), at)
        print(", ".join(f"{share} %: {norm:.2f}" for share, norm in zip(at, figures, strict=True)))
        return
    kinds = ("none", *asked.attacks.split(","))
    bounds, attacks = asked.bounds or [BEFORE, TODAY], [a for a in ATTACKS if a.kind in kinds]
    columns: dict[tuple[Bounds, Attack], list[Look]] = {}
    with console.progress("rounds", len(bounds) * len(attacks) * asked.rounds) as advance:
        for each, attack in itertools.product(bounds, attacks):
            looks = columns[each, attack] = []
            for look in play(common, each, attack, asked.rounds):
                looks.append(look)
                advance(sum(len(done) - 1 for done in columns.values()))
    print(table(columns))
    for each, attack in columns:
        if attack.liars:
            best = min(look.rank for look in columns[each, attack][1:])
            planted = "" if attack.kind == "flip" else f", best rank {best}"
            points = lost(columns, each, attack)
            print(f"{each.name}: {attack.name}: at most {points:.2f} points of top-1 lost{planted}")
    if asked.out:
        figures = [
            {"bounds": asdict(each), "attack": asdict(attack), "rounds": [*map(asdict, looks)]}
            for (each, attack), looks in columns.items()
        ]
        asked.out.write_text(json.dumps(figures, indent=1) + "\n")
    if asked.plot:
        draw(columns, asked.plot)


def draw(columns: dict[tuple[Bounds, Attack], list[Look]], out: Path) -> None:
    """Top-1 by round on the left, the planted word's probability on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), dpi=150, layout="constrained")
    for (bounds, attack), looks in columns.items():
        style = {
            "color": COLOURS[attack.kind],
            "linestyle": "--" if bounds == BEFORE else "-",
            "linewidth": 0.8 + 0.8 * attack.liars,
            "label": f"{attack.name} ({'before' if bounds == BEFORE else 'today'})",
        }
        at = [look.round for look in looks]
        axes[0].plot(at, [look.top1 for look in looks], **style)
        if attack.kind != "flip":
            axes[1].plot(at, [look.probability for look in looks], **style)
    axes[0].set_ylabel("top-1 on held-out words, %", color=SOFT)
    axes[1].set_ylabel("probability of the planted word", color=SOFT)
    axes[1].set_yscale("log")
    for each in axes:
        each.set_xlabel("round of 20 devices", color=SOFT)
        each.grid(axis="y", color="#e3e6ea")
        each.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside right center",
        frameon=False,
        fontsize=7,
        labelcolor=INK,
    )
    figure.savefig(out)


if __name__ == "__main__":
    try:
        main()
    except FedboardError as error:
        sys.exit(str(error))
