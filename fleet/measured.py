"""Measured: how good a fleet's checkpoints are on messages that devices hold back from training.

Of a sample of all devices as time goes by; and at the end, of those that took part beside those
that never did, and whose users type on no other device that did.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from device_runtime import scoring, weights
from device_runtime.bundle import CHECKPOINT, TRAIN
from device_runtime.text import EOS
from device_runtime.wire import Phase
from fleet.assignments import assignments
from fleet.pocket import Shared
from fleet.settings import START
from fleet.tables import EVERYBODY, NEVER, TOOK_PART, Lived, Measured, counted_by_device

MOST_LOOKS = 12  # checkpoints
MOST_DEVICES, MOST_MESSAGES = 100, 20  # of each group, of each device


def measured(it: Lived, blob: Callable[[str], bytes]) -> tuple[Measured, ...]:
    """The scores of a fleet that trains for real, oldest first; none of a stand-in. `blob`: the
    bytes of a checkpoint by its SHA-256.
    """
    if not it.settings.training.bundle:
        return ()
    shared, graph = it.shared, it.shared.bundle.content[TRAIN]
    looks = [(0, 0.0, "")]
    for each in _evenly([each for each in it.rounds if each.phase is Phase.COMMITTED], MOST_LOOKS):
        looks.append((each.round, each.opened_at - START + each.seconds, each.checkpoint))
    devices = np.arange(len(shared.population))
    times = counted_by_device(it, assignments(it.turns))
    heard = np.isin(shared.population.user, shared.population.user[times > 0])
    rows = [(EVERYBODY, devices, look) for look in looks]
    rows += [(TOOK_PART, devices[times > 0], looks[-1]), (NEVER, devices[~heard], looks[-1])]
    scored = []
    for who, them, (round, at, sha) in rows:
        data = blob(sha) if sha else shared.bundle.content[CHECKPOINT]
        held = held_back(shared, them, it.seconds)
        messages = [words for device in held for words in device]
        scores = scoring.score(graph, weights.from_bytes(data).weights, messages)
        assert scores is not None  # nothing stops it
        scored.append(Measured(round, at, who, len(held), scores))
    return tuple(scored)


def held_back(shared: Shared, devices: NDArray[np.int64], at_s: float) -> list[list[list[int]]]:
    """The newest messages that a sample of devices hold back from training, as token ids; of those
    that have any, [devices][messages][words].
    """
    population, typed = shared.population, shared.typed
    who = _evenly(devices.tolist(), MOST_DEVICES)
    have = typed.arrived(
        population.user[who],
        population.first_messages[who],
        population.messages_a_day[who],
        at_s,
    )
    held = [
        typed.held(int(population.user[device]), int(count), frozenset(), MOST_MESSAGES)[1]
        for device, count in zip(who, have, strict=True)
    ]
    return [[[int(id) for id in row[1:] if id > EOS] for row in rows] for rows in held if len(rows)]


def _evenly(values: list, most: int) -> list:
    """So many of them at most, the last one among them."""
    places = np.linspace(len(values) - 1, 0, min(most, len(values))).astype(np.int64)[::-1]
    return [values[place] for place in np.unique(places)]
