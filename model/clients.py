"""Clients: users' utterances -> the batches one participation trains on.

Read one client at a time, when it is drawn.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from device_runtime import limits
from device_runtime.examples import messages, rows, words
from device_runtime.limits import Asked, Limits, Over
from device_runtime.text import PAD, Vocabulary
from device_runtime.wire import Kind, Plan
from model.corpus import Utterance
from model.recipe import Client

# clients whose rows are kept in memory, the last ones drawn: making them again is cheap
KEPT = 256
KEPT_ROWS = 1 << 18  # of all of them together
MOST_ROWS = 1 << 17  # of one client: of a longer history, the newest
_BLOCK = 4096  # utterances whose rows are made at once


class Clients(Sequence):
    """Every user's rows, int32 [rows, length + 1], oldest first, made when asked for."""

    def __init__(
        self, users: Mapping[str, Sequence[Utterance]], vocabulary: Vocabulary, length: int
    ):
        self._users, self._names = users, list(users)
        self._vocabulary, self._length = vocabulary, length
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()  # the last one drawn last
        self._held = 0  # their rows

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> np.ndarray:  # type: ignore[override]
        name = self._names[i]
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        own = self._kept[name] = self._rows(self._users[name])
        self._held += len(own)
        while len(self._kept) > KEPT or (self._held > KEPT_ROWS and len(self._kept) > 1):
            self._held -= len(self._kept.popitem(last=False)[1])
        return own

    def _rows(self, utterances: Sequence[Utterance]) -> np.ndarray:
        """At most MOST_ROWS; an utterance has one or more."""
        blocks = [
            rows(
                (self._vocabulary.ids(said.tokens) for said in utterances[start : start + _BLOCK]),
                self._length,
            )
            for start in range(max(0, len(utterances) - MOST_ROWS), len(utterances), _BLOCK)
        ]
        return np.concatenate(blocks)[-MOST_ROWS:] if blocks else rows([], self._length)


def why_left_out(examples: np.ndarray, chosen: np.ndarray, held_to: Limits) -> Over | None:
    """The limit of a device that an update of the chosen rows would break, or None.

    examples is int32 [rows, length + 1], chosen which of them, of any integer type.
    """
    asked = Asked(
        Kind.TRAINING,
        messages=len(np.unique(messages(examples)[chosen])),
        words=words(examples[chosen]),
    )
    return limits.why_refused(held_to, asked)


def may_ever_train(examples: np.ndarray, plan: Plan, client: Client, held_to: Limits) -> bool:
    """Whether an update can ever be made of a client's rows, int32 [rows, length + 1]."""
    newest = np.arange(len(examples))[::-1]
    usable = newest if client.rows == "sampled" else newest[: plan.max_rows]
    return why_left_out(examples, usable, held_to) is None


def batches(
    examples: np.ndarray,
    plan: Plan,
    client: Client,
    rng: np.random.Generator,
    held_to: Limits | None = None,
) -> np.ndarray:
    """What one participation trains on: int32 [steps, batch_size, length + 1].

    examples is int32 [rows, length + 1]. Every epoch comes in a new random order. The plan's
    max_rows and the client's max_tokens cap it. Rows of a batch are sorted, longest first, and the
    last batch of an epoch is filled with empty rows: neither changes the mean gradient, and packed
    training needs both. No rows give no steps, nor do rows of which a device that is held to limits
    makes no update.
    """
    chosen = (
        rng.permutation(len(examples))
        if client.rows == "sampled"
        else np.arange(len(examples))[::-1]
    )
    chosen = chosen[: plan.max_rows]
    lengths = (examples[:, 1:] != PAD).sum(axis=1)
    if client.max_tokens:
        fit = np.searchsorted(np.cumsum(lengths[chosen]), client.max_tokens, side="right")
        chosen = chosen[: max(1, fit)]
    if held_to is not None and why_left_out(examples, chosen, held_to):
        chosen = chosen[:0]
    steps = -(-len(chosen) // plan.batch_size)
    epochs = []
    for _ in range(plan.epochs):
        order = np.full(steps * plan.batch_size, -1)
        order[: len(chosen)] = rng.permutation(chosen)
        order = order.reshape(steps, plan.batch_size)
        longest_first = np.argsort(-np.where(order < 0, 0, lengths[order]), axis=1, kind="stable")
        order = np.take_along_axis(order, longest_first, axis=1)
        epochs.append(np.where(order[..., None] < 0, PAD, examples[order]).astype(np.int32))
    return np.concatenate(epochs)
