"""Local fine-tuning: checkpoint and rows -> delta, by the bundle's train graph.

Nothing is kept in the graph.
"""

import itertools
from collections.abc import Callable

import numpy as np

from device_runtime.causes import Cause
from device_runtime.examples import batches
from device_runtime.interpreter import Graph
from device_runtime.turn import FineTuned, Progress, Train
from device_runtime.weights import Weights, subtract


def finetune(
    graph: bytes | Graph, action: Train, may_continue: Callable[[], bool] = lambda: True
) -> FineTuned:
    """Local SGD by the plan on the action's rows. `graph` is the file, or opened already.

    `may_continue` is asked before every batch, those of the loss before and after included: work
    stops within one batch of a condition being lost. Given the progress it left, the same rows and
    an equal rng, a later call ends with the same bits. A loss that is not finite, or one that ends
    higher than twice where it began, stops the work too: such a delta is never sent.
    """
    train = graph if isinstance(graph, Graph) else Graph(graph)
    weights, plan, start = action.weights, action.plan, action.start
    before = start.loss_before if start else _loss(train, action, weights, may_continue)
    if before is None:
        return _stopped(Cause.CONDITION_LOST, weights)
    if not np.isfinite(before):
        return _stopped(Cause.TRAINING_FAILED, weights, before=before)
    local, done = (start.weights, start.batches) if start else (weights, 0)
    rate, lost = np.array(plan.learning_rate, np.float32), False
    every = batches(action.rows, plan.batch_size, plan.epochs, action.rng)
    for batch in itertools.islice(every, done, None):
        lost = not may_continue()
        if lost:
            break
        result = train.run("train", rows=batch, learning_rate=rate, **local)
        if not np.isfinite(result["loss"]):
            return _stopped(Cause.TRAINING_FAILED, weights, done, before)
        local = {name: result[name] for name in weights}
        done += 1
    after = None if lost else _loss(train, action, local, may_continue)
    if after is None:
        return _stopped(Cause.CONDITION_LOST, weights, done, before, Progress(local, done, before))
    delta = subtract(local, weights)
    if not (after < 2 * before and all(np.isfinite(array).all() for array in delta.values())):
        return _stopped(Cause.TRAINING_FAILED, weights, done, before)
    return FineTuned(delta, done, before, after, progress=Progress(local, done, before))


def _stopped(
    cause: Cause,
    weights: Weights,
    done: int = 0,
    before: float = float("nan"),
    progress: Progress | None = None,
) -> FineTuned:
    zero = {name: np.zeros_like(array) for name, array in weights.items()}
    return FineTuned(zero, done, before, before, cause, progress)


def _loss(
    graph: Graph, action: Train, weights: Weights, may_continue: Callable[[], bool], most: int = 8
) -> float | None:
    """Mean loss over at most `most` batches of the action's rows, taken in order; None if a
    condition was lost meanwhile.
    """
    rows, plan, total, count = action.rows, action.plan, 0.0, 0.0
    for start in range(0, min(len(rows), most * plan.batch_size), plan.batch_size):
        if not may_continue():
            return None
        batch = np.zeros((plan.batch_size, plan.length + 1), np.int32)
        chosen = rows[start : start + plan.batch_size]
        batch[: len(chosen)] = chosen
        result = graph.run("evaluate", rows=batch, **weights)
        total += float(result["loss"]) * float(result["targets"])
        count += float(result["targets"])
    return total / max(count, 1.0)
