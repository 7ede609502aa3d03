"""Seal keys: to which key devices seal their seeds of a round, and what becomes of it.

The private half lies in a slot, which is written over when the key dies; the public half in the
database. A slot without a row was never given to anybody; a row without its slot is a key that is
lost, and no other is made in its place.
"""

import re
from collections.abc import Iterable

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from device_runtime.masking import Random
from server.slots import Slots

Of = tuple[str, int]  # a task's id and a round of it
_NAME = re.compile(r"([0-9a-f]{32})~(0|[1-9][0-9]{0,9})")


class Keys:
    """The private halves. Whoever uses it does so one call at a time."""

    def __init__(self, slots: Slots, random: Random):
        self._slots, self._random = slots, random

    def make(self, of: Of) -> str:
        """A new key, on disk when this returns; its public half, hexadecimal."""
        private = X25519PrivateKey.from_private_bytes(self._random(32))
        self._slots.put(name(of), private.private_bytes_raw())
        return _public(private)

    def private(self, of: Of, public: str) -> X25519PrivateKey | None:
        """The private half of a public one (hexadecimal); None if it is lost or damaged."""
        kept = self._slots.get(name(of))
        if kept is None or len(kept) != 32:
            return None
        private = X25519PrivateKey.from_private_bytes(kept)
        return private if _public(private) == public else None


def forget(slots: Slots, live: Iterable[Of]) -> None:
    """Write over and remove everything in slots named by `name`, but what is of these rounds."""
    names = {name(each) for each in live}
    for each in slots.names():
        if each not in names and _NAME.fullmatch(each):
            slots.remove(each)


def name(of: Of) -> str:
    """The slot of a round's key, or of its answer."""
    return f"{of[0]}~{of[1]}"


def _public(private: X25519PrivateKey) -> str:
    return private.public_key().public_bytes_raw().hex()
