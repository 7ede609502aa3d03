"""Poisoning: how far lying devices move a task's rounds, where updates are seen and under masks.

    python -m benchmarks.poisoning [BUNDLE] --rounds 10 --plot docs/poisoning.png

Everything but the lie is real: train users' messages, the bundle's graph, the device's encoding,
the server's check, sum and step. A liar sends the largest update that its encoding lets through, in
every round:

    flip    what honest training gave it, times -1
    plant   what training on one planted sentence alone gave it (model replacement: Bagdasaryan et
            al. 2020, arXiv:1807.00459)
    write   the shortest change that makes the planted word likelier after its context: all of it in
            the word's own output weights, along the network's state there

Under masks nobody sees the codes of one update, so a liar may break the encoder:

    break   any number where a code should be: the sum is beyond what honest devices can reach, and
            the round is refused whole
    swap    numbers that take the mean to `write`'s, as long as it can be without being refused

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

from device_runtime import encoding, metrics, packing, weights
from device_runtime.bundle import Bundle
from device_runtime.encoding import Encoding
from device_runtime.errors import FedboardError
from device_runtime.examples import rows
from device_runtime.finetune import finetune
from device_runtime.terms import Aggregation
from device_runtime.text import BOS, FIRST_WORD, OOV
from device_runtime.turn import Train
from device_runtime.weights import Weights
from fedboard import console
from fedboard.run import open_bundle
from model import corpora, network
from server import mechanism, step
from server.rounds import Rules
from server.task import (
    MASKED_BITS,
    PLAIN_BITS,
    SERVED_NORM,
    Task,
    TaskSettings,
    encoding_of,
    task_of,
)

PLANTED = "happy birthday to pizza"
COPIES = 64  # of the planted sentence
SHOWN = (1, 2, 3, 5, 10)  # rounds of the table
SWAPPED = 0.9  # of the clipping norm: the others add the rest of what is let through
HEADROOM = 0.75  # of what a sum of codes can be
INK, SOFT = "#1f2328", "#59636e"
COLOURS = {
    "none": "#0b6e99",
    "flip": "#b35900",
    "plant": "#7a5cc2",
    "write": "#2f9e8f",
    "break": "#9a9a9a",
    "swap": "#c92a2a",
}


@dataclass(frozen=True)
class Bounds:
    """What a task lets one device do."""

    clipping_norm: float = SERVED_NORM
    masked: bool = False  # updates are summed unseen; else the server sees each

    @property
    def bits(self) -> int:
        """Of a code, as a server chooses them."""
        return MASKED_BITS if self.masked else PLAIN_BITS

    @property
    def name(self) -> str:
        """As tables and pictures say it.

        >>> Bounds(10.0).name, Bounds(masked=True).name
        ('clip 10, plain', 'clip 0.5, masked')
        """
        return f"clip {self.clipping_norm:g}, {'masked' if self.masked else 'plain'}"


WIDE, PLAIN, MASKED = Bounds(10.0), Bounds(), Bounds(masked=True)


@dataclass(frozen=True)
class Attack:
    """How many devices of each round lie, and how."""

    kind: str = "none"  # flip, plant, write, break, swap
    liars: int = 0

    @property
    def needs_masks(self) -> bool:
        """Whether it is seen where updates are."""
        return self.kind in ("break", "swap")

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
    Attack("break", 1),
    Attack("swap", 1),
)


@dataclass(frozen=True)
class Look:
    """What a checkpoint is like after a round; round 0 is the start."""

    round: int
    top1: float  # per cent of the held-out words
    perplexity: float
    probability: float  # of the planted word after its context
    rank: int  # of it among all words
    refused: str = ""  # why the round before it was refused whole; empty if it was not


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
        plan = replace(self.bundle.plan, clipping_norm=bounds.clipping_norm, bits=bounds.bits)
        rules = Rules(report_goal=self.devices)
        values = self.bundle.checkpoint.weights
        return task_of(
            # a mask that is taken off again changes no sum: none is put on here
            TaskSettings(plan, rules=rules, seed=self.seed, aggregation=Aggregation.PLAIN),
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
    by, exact, moments = encoding_of(task), ground.bundle.checkpoint.weights, None
    yield ground.start
    for number in range(1, rounds + 1):
        drawn = np.random.default_rng([ground.seed, number])
        users = drawn.choice(len(ground.users), ground.devices, replace=False)
        received = {name: np.float32(np.float16(array)) for name, array in exact.items()}
        total = np.zeros(by.values, np.int64)
        for place, user in enumerate(users):
            rng = np.random.default_rng([ground.seed, number, place])
            own = rows(ground.users[user], task.plan.length)[-task.plan.max_rows :]
            lies = place < attack.liars
            total += sent(ground, task, Device(received, own, rng), attack.kind if lies else "none")
        why = mechanism.beyond_reach(total, ground.devices, by) if bounds.masked else ""
        if not why:
            mean = encoding.mean(total, ground.devices, by)
            exact, moments = step.apply(task.step, exact, moments, mean)
        yield replace(ground.look(number, exact), refused=why)


@dataclass(frozen=True)
class Device:
    """One that is asked for an update."""

    received: Weights
    own: NDArray[np.int32]  # its rows, [rows, length + 1]
    rng: np.random.Generator


def sent(ground: Ground, task: Task, device: Device, kind: str) -> NDArray[np.int64]:
    """The codes that come of a device, honest or lying: [values]. Those that the server sees are
    checked by it. Raises AssertionError for a lie that it refuses.
    """
    by = encoding_of(task)
    asked = ground, device.received, device.own, device.rng
    if kind == "break":  # any number that a digit of its words has room for
        base = packing.layout(by.values, by.largest, ground.devices).base
        return device.rng.integers(0, base, by.values)
    if kind == "none":
        delta = trained(*asked)
    else:
        delta = LIES[kind](*asked)
        larger = task.plan.clipping_norm / weights.norm(delta)
        delta = {name: array * larger for name, array in delta.items()}
    if kind == "swap":
        return swapped(delta, by, ground.devices)
    codes = encoding.encode(delta, by, device.rng)
    if not encoding.is_within(encoding.norm(codes, by), by):
        raise AssertionError(f"{kind}: a server that sees it would refuse it")
    return codes.astype(np.int64)


def swapped(delta: Weights, by: Encoding, devices: int) -> NDArray[np.int64]:
    """Numbers of one device that take the mean of so many nearly to a delta of the clipping norm,
    whatever the others send: theirs is much shorter.
    """
    codes = encoding.encode(delta, by, np.random.default_rng(0)).astype(np.float64)
    alone = codes * by.step - by.half
    wanted = alone * (SWAPPED * by.clipping_norm * devices / np.linalg.norm(alone))
    # the others' numbers come on top, and no sum may be over what so many honest ones reach
    most = HEADROOM * devices * by.half
    return np.rint((np.clip(wanted, -most, most) + by.half) / by.step).astype(np.int64)


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


LIES = {"flip": flipped, "plant": planting, "write": writing, "swap": writing}


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
    """`CLIP,plain` or `CLIP,masked`. Raises ValueError for anything else.

    >>> bounded("0.5,masked")
    Bounds(clipping_norm=0.5, masked=True)
    """
    norm, how = text.split(",")
    return Bounds(float(norm), ("plain", "masked").index(how) == 1)


def main() -> None:
    """Measure, and print what the head of this file says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path, help="by default the reference bundle")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--words", type=int, default=5_000, help="held out, to score on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bounds", type=bounded, action="append", help="CLIP,plain or CLIP,masked")
    parser.add_argument("--attacks", default="flip,plant,write,break,swap", help="those to make")
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
    played = [
        (each, attack)
        for each, attack in itertools.product(asked.bounds or [PLAIN, MASKED], ATTACKS)
        if attack.kind in kinds and (each.masked or not attack.needs_masks)
    ]
    columns: dict[tuple[Bounds, Attack], list[Look]] = {}
    with console.progress("rounds", len(played) * asked.rounds) as advance:
        for each, attack in played:
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
            refusals = [look.refused for look in columns[each, attack] if look.refused]
            refused = f", {len(refusals)} rounds refused: {refusals[0]}" if refusals else ""
            print(
                f"{each.name}: {attack.name}: at most {points:.2f} points of top-1 lost"
                f"{planted}{refused}"
            )
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
            "linestyle": "-" if bounds.masked else "--",
            "linewidth": 0.8 + 0.8 * attack.liars,
            "label": f"{attack.name} ({bounds.name})",
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
