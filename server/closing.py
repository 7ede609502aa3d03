"""Closing: what the replicas have counted of a round -> the checkpoint the next one starts from.

sum of all replicas  ->  mechanism.finish  ->  mean delta
                                                       |
                                                       v
the round's base: exact weights, moments  ------->  step.apply -> do they fit float16?
                                                       |             no: abandon the round
                                                       v
                     blobs: weights as float32 (what the server goes on from) and as float16
                            (what devices get), moments
"""

import logging
from dataclasses import replace

import numpy as np

from device_runtime import weights
from device_runtime.weights import Checkpoint, Weights
from server import mechanism, step
from server.blobs import Blobs
from server.store import StoredCheckpoint
from server.sums import Sum
from server.task import Task

log = logging.getLogger("fedboard.server")


def next_checkpoint(
    task: Task, round: int, base: StoredCheckpoint, total: Sum, blobs: Blobs, now: float
) -> StoredCheckpoint | None:
    """The checkpoint of a committed round, kept as blobs; None if the step has led to weights that
    cannot travel. `total` is what all replicas have counted, opened if it was masked, with one
    update in it at least.

    The deltas are relative to the float16 copy the devices got; they are added to the exact one,
    which so never loses its low bits. Raises RunError if a blob cannot be read or kept.
    """
    delta = mechanism.of(task).finish(total, round)  # [dimension]
    before = weights.from_bytes(blobs.get(base.sha)).weights
    past = weights.from_bytes(blobs.get(base.moments)).weights if base.moments else None
    after, moments = step.apply(task.step, before, past, delta)
    if not fits_float16(after):
        log.warning(
            "round abandoned: its weights are too large for float16; lower the learning rate",
            extra={"task": task.name, "round": round},
        )
        return None
    checkpoint = Checkpoint(after, round, base.sha, task.tokenizer)
    return replace(keep(blobs, checkpoint, moments), parent=base.sha, made_at=now)


def keep(blobs: Blobs, checkpoint: Checkpoint, moments: Weights | None = None) -> StoredCheckpoint:
    """A checkpoint as blobs: exact, as it travels, and what the step remembers. Raises RunError if
    they cannot be kept.
    """
    moving = ""
    if moments is not None:
        moving = blobs.put(weights.to_bytes(replace(checkpoint, weights=moments)))
    half = blobs.put(weights.to_bytes(checkpoint, dtype=np.float16))
    return StoredCheckpoint(blobs.put(weights.to_bytes(checkpoint)), checkpoint.round, half, moving)


def fits_float16(values: Weights) -> bool:
    """Whether devices can be sent these weights: all finite as float16.

    >>> fits_float16({"w": np.array([65504.0])}), fits_float16({"w": np.array([65520.0])})
    (True, False)
    """
    return all(bool((np.abs(array) <= np.finfo(np.float16).max).all()) for array in values.values())
