"""What a device downloads: the whole checkpoint, or its difference from one some rounds older.

Real rounds of fine-tuning on train users.

python benchmarks/download_size.py [BUNDLE] --rounds 10
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from device_runtime import difference, weights
from device_runtime.errors import FedboardError
from device_runtime.examples import rows
from device_runtime.finetune import finetune
from device_runtime.turn import Train
from device_runtime.weights import Checkpoint
from fedboard import console
from fedboard.run import open_bundle
from model import corpora
from server.step import ServerStep, apply

ROWS = 64  # of one client


def main() -> None:
    """Measure, and print what the head of this file says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path, help="by default the reference bundle")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--clients", type=int, default=20, help="of a round")
    parser.add_argument(
        "--momentum", type=float, default=0.0, help="of the server's step (FedAvgM)"
    )
    asked = parser.parse_args()
    bundle, rng = open_bundle(asked.bundle, None), np.random.default_rng(0)
    users = [own for own in corpora.load("chitchat").train.values() if len(own) >= 20]
    plan, exact, velocity = bundle.plan, bundle.checkpoint.weights, None
    travelled = [weights.to_bytes(bundle.checkpoint, np.float16)]
    with console.progress("rounds", asked.rounds) as advance:
        for number in range(asked.rounds):
            received, weight = weights.from_bytes(travelled[-1]).weights, 0
            total = np.zeros(sum(array.size for array in received.values()))
            for user in rng.choice(len(users), asked.clients, replace=False):
                own = rows(
                    (bundle.vocabulary.ids(utterance.tokens) for utterance in users[user]),
                    plan.length,
                )[-ROWS:]
                total = total + len(own) * weights.flatten(
                    finetune(bundle.train_graph, Train(received, own, plan, rng)).delta
                ).astype(np.float64)
                weight += len(own)
            exact, velocity = apply(
                ServerStep(1.0, asked.momentum), exact, velocity, total / weight
            )
            after = Checkpoint(
                exact,
                bundle.checkpoint.round + number + 1,
                weights.digest(travelled[-1]),
                bundle.checkpoint.tokenizer,
            )
            travelled.append(weights.to_bytes(after, np.float16))
            advance(number + 1, "")
    print(f"whole checkpoint: {len(travelled[-1]):,} bytes as float16")
    print(f"{'rounds apart':>12} {'bytes':>10} {'of the whole':>12} {'encode s':>8} {'apply s':>8}")
    for apart in (each for each in (1, 2, 5, 10, 20) if each < len(travelled)):
        old, new = travelled[-1 - apart], travelled[-1]
        began = time.perf_counter()
        encoded = difference.encode(old, new)
        between = time.perf_counter()
        assert difference.apply(old, encoded) == new
        print(
            f"{apart:>12} {len(encoded):>10,} {len(encoded) / len(new):>12.1%} "
            f"{between - began:>8.2f} {time.perf_counter() - between:>8.2f}"
        )


if __name__ == "__main__":
    try:
        main()
    except FedboardError as error:
        sys.exit(str(error))
