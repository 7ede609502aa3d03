"""The floor: how fast one core multiplies float32 matrices, GFLOP per CPU second.

A square product, and the three of one softmax step.
"""

import json
import time

import numpy as np

from benchmarks.peers import common

SIDE, WARM_UP_S, MEASURED_S = 512, 0.3, 1.5


def speed(products: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """GFLOP per CPU second of the best of many runs of the products, one after the other.

    The best is what the core can do when nobody disturbs it.
    """
    best, started = float("inf"), time.process_time()
    while (spent := time.process_time() - started) < WARM_UP_S + MEASURED_S:
        before = time.process_time()
        for left, right in products:
            left @ right
        if spent > WARM_UP_S:
            best = min(best, time.process_time() - before)
    return (
        sum(2 * left.shape[0] * left.shape[1] * right.shape[1] for left, right in products)
        / best
        / 1e9
    )


def main() -> None:
    """Do the work, and write when rounds ended and what came out."""
    asked = common.arguments()
    work, rng = common.read(asked.work), np.random.default_rng(0)
    table = work.weights["embedding"]
    # tokens of a mean batch
    real = round(np.count_nonzero(work.rows[:, 1:]) / len(work.rows) * work.batch_size)
    hidden = rng.random((real, table.shape[1]), np.float32)
    scores = rng.random((real, len(table)), np.float32)
    square = rng.random((SIDE, SIDE), np.float32)
    # logits, gradients of the hidden states and of the table
    softmax = [(hidden, table.T), (scores, table), (scores.T, hidden)]
    asked.result.write_text(
        json.dumps(
            {"square": speed([(square, square)]), "softmax": speed(softmax), "softmax_rows": real}
        )
    )


if __name__ == "__main__":
    main()
