"""Buffers: what the noise of a task's next sum needs of those before, sealed as it lies on disk.

The sealed buffers lie in the database, in the row that says what was spent; their key in a slot
beside it. Both are of one sum: the next one has a key of its own, and the old one is written over.
So a copy of the database alone, or an old one of the key, opens nothing. No seed is kept: what was
drawn is in the buffers only.
"""

from device_runtime.masking import Random
from device_runtime.strategy import Buffers
from device_runtime.terms import Terms
from helper import keys
from server import noising
from server.slots import Slots

NONE = 0  # generation of a task that needs no buffers any more


class Sealing:
    """The keys of tasks' buffers. Whoever uses it does so one call at a time."""

    def __init__(self, slots: Slots, random: Random):
        self._slots, self._random = slots, random

    def sealed(self, buffers: Buffers, task_id: str, generation: int) -> bytes:
        """Buffers under a new key, which is on disk when this returns. Their generation is one that
        the database does not have yet.
        """
        key = self._random(noising.KEY_BYTES)
        self._slots.put(keys.name((task_id, generation)), key)
        return noising.sealed(buffers, key, _about(task_id, generation))

    def opened(self, data: bytes, task_id: str, generation: int, terms: Terms) -> Buffers | None:
        """What `sealed` made; None if that or its key is lost or damaged."""
        if generation == NONE:
            return None
        key = self._slots.get(keys.name((task_id, generation)))
        return noising.opened(data, key, _about(task_id, generation), terms)


def _about(task_id: str, generation: int) -> str:
    return f"fedboard-noise-v1 {task_id} {generation}"
