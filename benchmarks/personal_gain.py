"""What the user's own weights are worth: everybody's network beside each user's fine-tuned one.

They are kept as float weights, and as the int8 file that the bundle's becomes by them; started
from the bundle's checkpoint, and from what the codes of its int8 file stand for. Each is gated as
on a phone, beside everybody's of the same kind, and scored by the personal protocol.

python benchmarks/personal_gain.py [BUNDLE] --split test
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from conversion.scoring import bundle_engine
from device_runtime import patch, personal
from device_runtime.bundle import Bundle
from device_runtime.errors import FedboardError
from device_runtime.metrics import Counts
from device_runtime.reader import Personal, reader_of
from device_runtime.weights import Weights
from device_runtime.wire import Plan
from fedboard import console
from fedboard.run import open_bundle
from model import comparison, corpora, corpus, evaluation, measures


@dataclass
class Way:
    """One way to keep a user's own weights, and what came of it."""

    name: str
    bundle: Bundle  # without constants: its users' weights are kept as float ones
    start: Weights
    # by user
    alone: dict[str, Counts] = field(default_factory=dict)
    gated: dict[str, Counts] = field(default_factory=dict)
    always: dict[str, Counts] = field(default_factory=dict)
    served: int = 0
    behind: int = 0  # served while behind on their own held-back messages


def ways(bundle: Bundle) -> list[Way]:
    """Float weights, and int8 files where the bundle has constants."""
    constants, checkpoint = bundle.manifest.constants, bundle.checkpoint.weights
    plain = replace(bundle, manifest=replace(bundle.manifest, constants=None))
    kept_float = Way("float", plain, checkpoint)
    if constants is None:
        return [kept_float]
    shapes = {name: array.shape for name, array in checkpoint.items()}
    codes = patch.weights_in(bundle.predict_graph, constants, shapes)
    return [kept_float, Way("int8", bundle, checkpoint), Way("int8, from codes", bundle, codes)]


def main() -> None:
    """Measure, and print what the head of this file says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path, help="by default the reference bundle")
    parser.add_argument("--trust", type=Path, action="append", help="public key of its maker")
    parser.add_argument("--data", default="chitchat")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--users", type=int, help="only so many")
    parser.add_argument("--epochs", type=int, default=personal.EPOCHS)
    parser.add_argument("--rate", type=float, default=personal.RATE)
    asked = parser.parse_args()
    bundle = open_bundle(asked.bundle, asked.trust)
    users = {
        name: own
        for name, own in corpora.load(asked.data).split(asked.split).items()
        if evaluation.scored_of(own, personal=True)
    }
    users = dict(list(users.items())[: asked.users])
    every = ways(bundle)
    plan = personal.own_plan(bundle.plan, asked.epochs, asked.rate)
    with console.progress("users", len(users)) as advance:
        for number, (name, own) in enumerate(users.items()):
            for way in every:
                live(way, name, own, plan, np.random.default_rng(number))
            advance(number + 1, f"{every[-1].served} served")
    for way in every:
        show(way, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    for way in every[1:]:
        change = comparison.compare(result(way.gated), result(every[0].gated), rng).top1
        print(f"gated, {way.name} minus {every[0].name}: {asdict(change)}")


def live(
    way: Way, name: str, own: Sequence[corpus.Utterance], plan: Plan, rng: np.random.Generator
) -> None:
    """Train on what one user typed before what is scored, judge, and score."""
    bundle, known = way.bundle, way.bundle.vocabulary
    history = own[: -evaluation.scored_of(own, personal=True)]
    messages = [known.ids(utterance.tokens) for utterance in history]
    to_train, held = personal.split(messages)
    tuned = personal.train(bundle.train_graph, way.start, to_train, plan, rng)
    network = None if tuned is None else personal.shipped(bundle, tuned)
    way.alone[name] = way.always[name] = way.gated[name] = score(bundle, None, name, own)
    if network is None:
        return
    way.always[name] = score(bundle, network, name, own)
    judged = personal.judge(personal.rival(bundle), reader_of(bundle, network), held)
    if judged is not None and judged.ahead:
        way.gated[name] = way.always[name]
        way.served += 1
        way.behind += judged.nats <= 0


def score(
    bundle: Bundle, network: Personal | None, name: str, own: Sequence[corpus.Utterance]
) -> Counts:
    """What one user's scored messages count, with everybody's network or another one."""
    engine = bundle_engine(bundle, network)
    if bundle.manifest.constants is None:  # the same numbers as the float graph, and sooner
        weights = bundle.checkpoint.weights if network is None else network
        engine = evaluation.network_engine(weights)
    scope = evaluation.Scope(personal=True, blocked=bundle.blocked)
    return evaluation.evaluate(engine, {name: own}, bundle.vocabulary, scope).users[name]


def result(counts: dict[str, Counts]) -> measures.Evaluation:
    """Counts by user, and all together."""
    return measures.Evaluation(counts, sum(counts.values(), Counts()))


def show(way: Way, rng: np.random.Generator) -> None:
    """What one way is worth."""
    alone = result(way.alone)
    print(
        f"{way.name}: served to {way.served} of {len(way.alone)} users, to {way.behind} of them "
        "while behind on their own held-back messages"
    )
    for title in ("alone", "gated", "always"):
        counts = result(getattr(way, title))
        summary = measures.summarise(counts, rng)
        print(
            f"  {title:<8} top-1 {summary.top1:.2%}  top-3 {summary.top3:.2%}  "
            f"ppl {summary.perplexity:.1f}  keys saved {summary.keystroke_saving:.2%}"
        )
        if title != "alone":
            print(f"    {asdict(comparison.compare(counts, alone, rng).top1)}")


if __name__ == "__main__":
    try:
        main()
    except FedboardError as error:
        sys.exit(str(error))
