"""Unfinished work: a half-done epoch kept for the next window.

It was learned from typed text, so it is sealed under the typing log's key. The messages themselves
are not kept, only their numbers in the typing log: one that was forgotten meanwhile takes the work
with it.
"""

from dataclasses import dataclass

from device_runtime import config, weights
from device_runtime.errors import CheckpointError, ConfigError, TypingLogError
from device_runtime.turn import Progress, Work
from device_runtime.typing_log import TypingLog
from device_runtime.weights import Checkpoint

PURPOSE = "unfinished work"


@dataclass(frozen=True)
class Unfinished:
    """Half-done work: what it is, and how far it has come."""

    work: Work
    progress: Progress


@dataclass(frozen=True)
class _Head:
    """The first line of the file, before the weights: all the rest."""

    work: Work
    batches: int
    loss_before: float


def seal(unfinished: Unfinished, log: TypingLog) -> bytes:
    """As a file of the device."""
    progress = unfinished.progress
    head = config.to_json(_Head(unfinished.work, progress.batches, progress.loss_before))
    return log.seal(
        head + b"\n" + weights.to_bytes(Checkpoint(progress.weights, unfinished.work.round)),
        PURPOSE,
    )


def unseal(data: bytes, log: TypingLog) -> Unfinished | None:
    """What `seal` wrote; None for anything else: then the work begins anew."""
    try:
        line, _, arrays = log.unseal(data, PURPOSE).partition(b"\n")
        head = config.from_json(_Head, line, PURPOSE)
        return Unfinished(
            head.work,
            Progress(weights.from_bytes(arrays, PURPOSE).weights, head.batches, head.loss_before),
        )
    except (TypingLogError, ConfigError, CheckpointError):
        return None
