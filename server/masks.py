"""Masks: each state of an open round's sum is stored under a key of its own.

The key is kept apart from the database, replaced by each group, and gone when the round ends.

A database keeps old versions of what it stores: in its log, in free pages, in dead rows, in
archives. The difference of two stored sums would be what came between them, and the first is one
device's. So each state is encrypted with a key of its own, and of the keys only the newest stays.

    slot, by generation      | even  | odd        the row of the sum
    before a transaction     | key 2 | key 3      2: sealed by key 2
    after it                 | key 2 | key 3      3: sealed by key 3
    at once                  | key 4 | key 3      3

A key is on disk before the transaction that stores what it seals. The key of the state before is
written over as soon as that has ended, by the key the next state will need. So whenever a server
is killed, the row's generation names a key that lies in its slot. A key seals once: after a
transaction that failed, and may have left pages behind, the next one has a fresh key.
"""

import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

from device_runtime.errors import RunError
from device_runtime.weights import digest
from server.slots import Slots

At = tuple[str, int]  # a task and a round of it
PLAIN = 0  # generation of a sum that an older version stored as it is
_KEY = 32  # bytes
_TAG = 16  # bytes of AES-GCM after what it encrypts
_SPARE = 64  # bytes beside the sum in the room for it: the tag, and what a cipher asks for
_NONCE = bytes(12)  # the same always: no key seals twice
_TRIAL = "room"  # a slot of no round
_NAME = re.compile(r"([a-z0-9._-]{1,64})~([0-9]{1,18})~([0-9A-Za-z._-]{0,32})~[01]")


class Lost(RunError):
    """The key of a stored sum is missing or damaged: nobody can read the sum any more."""

    def __init__(self, at: At):
        """at: the task and round whose sum it is."""
        self.at = at
        task, number = at
        super().__init__(
            f"task {task}",
            f"the key of what round {number} has counted is missing or damaged",
            "nothing can bring it back; the round ends without a checkpoint and the next one opens",
        )


@dataclass
class _Keys:
    """Of the sum of one round: the generation that is stored, and the next key if it is on disk."""

    stored: int = PLAIN
    next: bytes | None = None


class Masks:
    """The keys of one replica's sums. Whoever uses it does so one call at a time."""

    def __init__(self, slots: Slots, replica: str):
        """`replica` is the name under which the sums are stored."""
        self._slots, self._replica = slots, replica
        self._keys: dict[At, _Keys] = {}
        self._room = bytearray()  # of the sum that was sealed last

    def seal(self, at: At, *plain: bytes | memoryview) -> tuple[int, memoryview]:
        """What to store of a round's new sum, in a transaction that begins after this replica's
        stored sum was `unseal`ed or is known not to be there: its generation and its bytes, which
        stay as they are until the next one is sealed. The sum may come in several parts.

        Raises RunError if its key cannot be kept.
        """
        keys = self._keys.setdefault(at, _Keys())
        if keys.next is None:
            self._prepare(at, keys)
        key, keys.next = keys.next, None
        generation = keys.stored + 1
        assert key is not None
        return generation, self._sealed(key, plain, self._about(at, generation))

    def stored(self, at: At) -> None:
        """The transaction that stores what was sealed last has ended: its key is the newest, and
        the one before is written over. Raises RunError if that cannot be done now; sealing does it
        then.
        """
        keys = self._keys[at]
        keys.stored += 1
        self._prepare(at, keys)

    def doubt(self) -> None:
        """Nobody knows whether a transaction held: what is stored must be read again."""
        self._keys.clear()

    def unseal(
        self, at: At, replica: str, generation: int, body: bytes | memoryview
    ) -> bytes | memoryview:
        """A stored sum of any replica. Raises Lost if its key does not open it, RunError if the
        keys cannot be asked for.
        """
        if generation == PLAIN:
            return body
        kept = self._slots.get(_name(at, replica, generation))
        key = None if kept is None else _key(kept, generation)
        if key is None:
            raise Lost(at)
        try:
            return AESGCM(key).decrypt(_NONCE, body, self._about(at, generation, replica))
        except InvalidTag:
            raise Lost(at) from None

    def goes_on(self, at: At, generation: int) -> None:
        """This replica's sum of a round is stored with that generation, and has been read."""
        self._keys[at] = _Keys(generation)

    def renew(self, at: At) -> None:
        """Write a fresh key over the one of the state before the stored one, which a killed server
        may have left.
        """
        self._prepare(at, self._keys[at])

    def end(self, at: At) -> None:
        """A round has ended: every replica's keys of its sums are written over and removed."""
        self._keys.pop(at, None)
        self._remove(name for name in self._slots.names() if _at(name) == at)

    def ends(self, still_open: Iterable[At]) -> list[At]:
        """The rounds this replica has keys of in memory that are not among those still open:
        another replica has ended them.
        """
        return sorted(self._keys.keys() - set(still_open))

    def begun(self) -> set[At]:
        """The rounds whose keys lie in the slots."""
        return {at for name in self._slots.names() if (at := _at(name)) is not None}

    def require_room(self) -> None:
        """Raises RunError if no key could be kept."""
        self._slots.put(_TRIAL, bytes(1))
        self._slots.remove(_TRIAL)

    def _sealed(self, key: bytes, plain: Sequence[bytes | memoryview], about: bytes) -> memoryview:
        """What AESGCM makes of the parts, where the sum before was: memory that the kernel has to
        give first takes longer than the encryption.
        """
        size = sum(map(len, plain))
        if len(self._room) < size + _SPARE or len(self._room) > 2 * (size + _SPARE):
            self._room = bytearray(size + _SPARE)
        room, end = memoryview(self._room), 0
        encryptor = Cipher(AES(key), GCM(_NONCE)).encryptor()
        encryptor.authenticate_additional_data(about)
        for part in plain:
            end += encryptor.update_into(part, room[end:])
        encryptor.finalize()
        room[end : end + _TAG] = encryptor.tag
        return room[: end + _TAG]

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            self._slots.remove(name)

    def _prepare(self, at: At, keys: _Keys) -> None:
        key, generation = secrets.token_bytes(_KEY), keys.stored + 1
        self._slots.put(_name(at, self._replica, generation), _record(key, generation))
        keys.next = key

    def _about(self, at: At, generation: int, replica: str | None = None) -> bytes:
        mine = self._replica if replica is None else replica
        return f"fedboard-sum-v1 {at[0]} {at[1]} {mine} {generation}".encode()


def _name(at: At, replica: str, generation: int) -> str:
    return f"{at[0]}~{at[1]}~{replica}~{generation % 2}"


def _at(name: str) -> At | None:
    """The round of a slot's name; None for a file that is none of ours."""
    parts = _NAME.fullmatch(name)
    return None if parts is None else (parts[1], int(parts[2]))


def _record(key: bytes, generation: int) -> bytes:
    """A key as it lies in its slot: a half-written one is known by its end."""
    record = generation.to_bytes(8, "little") + key
    return record + bytes.fromhex(digest(record))


def _key(record: bytes, generation: int) -> bytes | None:
    """The key in a slot, if it is whole and of this generation."""
    key = record[8 : 8 + _KEY]
    return key if len(key) == _KEY and record == _record(key, generation) else None
