"""What the user's own weights are worth: everybody's network beside each user's fine-tuned one.

They are gated as on a phone, and scored by the personal protocol.

python benchmarks/personal_gain.py [BUNDLE] --split test
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from device_runtime import personal
from device_runtime.errors import FedboardError
from device_runtime.metrics import Counts
from device_runtime.reader import Reader
from fedboard import console
from fedboard.run import open_bundle
from model import comparison, corpora, evaluation, measures


def main() -> None:
    """Measure, and print what the head of this file says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path, help="by default the reference bundle")
    parser.add_argument("--data", default="chitchat")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--users", type=int, help="only so many")
    parser.add_argument("--epochs", type=int, default=personal.EPOCHS)
    parser.add_argument("--rate", type=float, default=personal.RATE)
    asked = parser.parse_args()
    bundle = open_bundle(asked.bundle, None)
    everybodys, known = bundle.checkpoint.weights, bundle.vocabulary
    users = {
        name: own
        for name, own in corpora.load(asked.data).split(asked.split).items()
        if evaluation.scored_of(own, personal=True)
    }
    users = dict(list(users.items())[: asked.users])
    alone, gated, always = {}, {}, {}
    served = harmed = 0
    with console.progress("users", len(users)) as advance:
        for number, (name, own) in enumerate(users.items()):

            def score(weights, name=name, own=own):
                return evaluation.evaluate(
                    evaluation.engine_of(weights, known),
                    {name: own},
                    known,
                    evaluation.Scope(personal=True, blocked=bundle.blocked),
                ).users[name]

            history = own[: -evaluation.scored_of(own, personal=True)]
            messages = [known.ids(utterance.tokens) for utterance in history]
            to_train, held = personal.split(messages)
            graph, rng = bundle.train_graph, np.random.default_rng(number)
            plan = personal.own_plan(bundle.plan, asked.epochs, asked.rate)
            tuned = personal.train(graph, everybodys, to_train, plan, rng)
            judged = None
            if tuned is not None:
                ours = Reader(graph, tuned)
                judged = personal.judge(Reader(graph, everybodys), ours, held)
            ahead = judged is not None and judged.ahead
            alone[name] = score(everybodys)
            always[name] = alone[name] if tuned is None else score(tuned)
            gated[name] = always[name] if ahead else alone[name]
            served += ahead
            harmed += judged is not None and judged.ahead and judged.nats <= 0
            advance(number + 1, f"{served} served")
    results = [
        measures.Evaluation(counts, sum(counts.values(), Counts()))
        for counts in (alone, gated, always)
    ]
    rng = np.random.default_rng(0)
    for title, result in zip(("everybody's", "own, gated", "own, always"), results, strict=True):
        summary = measures.summarise(result, rng)
        print(
            f"{title:<12} top-1 {summary.top1:.2%}  top-3 {summary.top3:.2%}  "
            f"ppl {summary.perplexity:.1f}  keys saved {summary.keystroke_saving:.2%}"
        )
    for title, result in zip(("gated", "always"), results[1:], strict=True):
        print(title, asdict(comparison.compare(result, results[0], rng).top1))
    print(
        f"served to {served} of {len(users)} users, to {harmed} of them while behind on their own "
        "held-back messages"
    )


if __name__ == "__main__":
    try:
        main()
    except FedboardError as error:
        sys.exit(str(error))
