"""Local fine-tuning: checkpoint and examples -> delta, by the `train` signature of the bundle's graph. Nothing is kept in the graph."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from device_runtime.examples import batches
from device_runtime.interpreter import Graph
from device_runtime.weights import Weights, subtract
from device_runtime.wire import Cause, Plan


@dataclass(frozen=True)
class FineTuned:
    """What local training made of the server's weights."""

    delta: Weights  # client minus server; all zero when stopped
    batches: int
    loss_before: float  # mean over the examples, nats
    loss_after: float
    stopped: Cause | None = None  # why it ended early, if it did


def finetune(
    graph: bytes, weights: Weights, examples: np.ndarray, plan: Plan, rng: np.random.Generator, may_continue: Callable[[], bool] = lambda: True
) -> FineTuned:
    """Local SGD by the plan on rows (int32 [n, plan.length + 1]).

    `may_continue` is asked before every batch: work stops within one batch of a condition being lost. A loss that is not finite, or one that
    ends higher than twice where it began, stops the work too: such a delta is never sent.
    """
    train = Graph(graph)
    before = _loss(train, weights, examples, plan)
    local, done = weights, 0
    stopped = None if np.isfinite(before) else Cause.TRAINING_FAILED
    if stopped is None:
        for batch in batches(examples, plan.batch_size, plan.epochs, rng):
            if not may_continue():
                stopped = Cause.CONDITION_LOST
                break
            result = train.run("train", rows=batch, learning_rate=np.float32(plan.learning_rate), **local)
            if not np.isfinite(result["loss"]):
                stopped = Cause.TRAINING_FAILED
                break
            local = {name: result[name] for name in weights}
            done += 1
    after = before if stopped else _loss(train, local, examples, plan)
    delta = subtract(local, weights)
    if stopped is None and not (after < 2 * before and all(np.isfinite(array).all() for array in delta.values())):
        stopped = Cause.TRAINING_FAILED
    if stopped is not None:
        delta = {name: np.zeros_like(array) for name, array in weights.items()}
    return FineTuned(delta, done, before, after, stopped)


def _loss(graph: Graph, weights: Weights, examples: np.ndarray, plan: Plan, most: int = 8) -> float:
    """Mean loss over at most `most` batches of the examples, taken in order."""
    total = count = 0.0
    for start in range(0, min(len(examples), most * plan.batch_size), plan.batch_size):
        batch = np.zeros((plan.batch_size, plan.length + 1), np.int32)
        chosen = examples[start : start + plan.batch_size]
        batch[: len(chosen)] = chosen
        result = graph.run("evaluate", rows=batch, **weights)
        total += float(result["loss"]) * float(result["targets"])
        count += float(result["targets"])
    return total / max(count, 1.0)
