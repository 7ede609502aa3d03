"""Buffers: what the noise of a task's next sum needs of those before, sealed as it lies on disk.

    slot of the key, by generation  |  2        the row that says what was spent
    sealed, in one of two slots     |  2        2
    before a transaction            |  2, 3     2    a new key, what it seals in the other slot
    after it                        |  3        3    the key before is written over

So whenever a helper is killed, the row names a key and what it opens; a copy of the database, or of
what is sealed, opens nothing, and an old one of the key nothing of now. No seed is kept: what was
drawn is in the buffers only. They lie beside the database, which keeps old versions of its rows.
"""

from collections.abc import Iterable

from device_runtime.masking import Random
from device_runtime.strategy import Buffers
from device_runtime.terms import Terms
from helper import keys
from server import noising
from server.slots import Slots

NONE = 0  # generation of a task that needs no buffers


class Kept:
    """All tasks' buffers. Whoever uses it does so one call at a time."""

    def __init__(self, keys_of: Slots, sealed: Slots, random: Random):
        self._keys, self._sealed, self._random = keys_of, sealed, random

    def put(self, buffers: Buffers, task_id: str, generation: int) -> None:
        """Keep what comes after the stored generation: it is on disk when this returns."""
        key = self._random(noising.KEY_BYTES)
        sealed = noising.sealed(buffers, key, _about(task_id, generation))
        self._keys.put(keys.name((task_id, generation)), key)
        self._sealed.put(_slot(task_id, generation), sealed)

    def get(self, task_id: str, generation: int, terms: Terms) -> Buffers | None:
        """The buffers of a generation; None if they or their key are lost or damaged."""
        key = self._keys.get(keys.name((task_id, generation)))
        sealed = self._sealed.get(_slot(task_id, generation))
        if sealed is None:
            return None
        return noising.opened(sealed, key, _about(task_id, generation), terms)

    def forget(self, needed: Iterable[tuple[str, int]]) -> None:
        """Write over every key but those of these tasks and generations, and what is sealed of
        other tasks.
        """
        needed = set(needed)
        keys.forget(self._keys, needed)
        keys.forget(self._sealed, {(task_id, half) for task_id, _ in needed for half in (0, 1)})


def _slot(task_id: str, generation: int) -> str:
    return keys.name((task_id, generation % 2))


def _about(task_id: str, generation: int) -> str:
    return f"fedboard-noise-v1 {task_id} {generation}"
