"""Masking: what hides an update from whoever sums it, and what is sealed to whoever may lift it.

    seed, fresh for each encoding --> stream -> mask of all words -> added to the codes' words
      |
      +-- seal: X25519 with a key of one use, HKDF, AES-GCM -> only the helper reads it

The mask is uniform over the words, so the masked words are too, whatever the codes are. A seed is
used for one encoding only: two under one seed would give their difference. All randomness is an
argument. Sources: RFC 7748 (X25519), RFC 5869 (HKDF), NIST SP 800-38A and D (AES-CTR, AES-GCM).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from device_runtime import packing
from device_runtime.packing import Layout

SEED_BYTES = 32
SEAL_BYTES = 32 + SEED_BYTES + 16  # the sender's public key, the seed encrypted, its tag
_NONCE = bytes(12)  # the same always: the key is of one use
_PART = 16_384  # words whose mask is made at once: what is added up stays in the processor's cache
_ANYBODY = X25519PrivateKey.from_private_bytes(bytes(32))  # nobody's: it says what a key is

Random = Callable[[int], bytes]  # so many random bytes: os.urandom, or a simulation's


@dataclass(frozen=True)
class Bound:
    """What a seal is for, and for nothing else."""

    server: str  # random name of the leader's database
    task_id: str
    round: int  # that the device was assigned in
    terms: str  # all that the device agrees to: `Policy.name`, or `Terms.name` without a log
    device: str  # its public key, hexadecimal
    seal_key: str  # the helper's public key of the round, hexadecimal

    def message(self, purpose: str) -> bytes:
        """All of it as one text."""
        parts = (self.server, self.task_id, self.round, self.terms, self.device, self.seal_key)
        return "\n".join((f"fedboard-{purpose}-v1", *map(str, parts))).encode()

    def signed(self, seal: bytes) -> bytes:
        """What the device signs: its seal is of this round, and of no other."""
        return self.message("sealed") + b"\n" + seal


def mask(seed: bytes, by: Layout) -> NDArray[np.uint64]:
    """The mask of a seed, uniform over the words: uint64 [words]. AES-256 in counter mode."""
    return mask_sum((seed,), by)


def mask_sum(seeds: Iterable[bytes], by: Layout) -> NDArray[np.uint64]:
    """The sum of the masks of seeds, modulo the size of a word: uint64 [words]."""
    total = np.zeros(by.words, np.uint64)
    most = min(_PART, by.words)
    zeros = memoryview(bytes(most * by.size))
    room = bytearray(len(zeros) + 2 * 16)  # a cipher wants a block more than it fills
    # words of any size are read as the largest: what stands above them is another word's, and is
    # cut off at the end, for carries go upwards only
    words: NDArray[np.uint64] = np.ndarray((most,), "<u8", room, strides=(by.size,))
    for seed in seeds:
        stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
        for start in range(0, by.words, _PART):
            part = total[start : start + _PART]
            stream.update_into(zeros[: len(part) * by.size], room)
            part += words[: len(part)]
    return packing.add(total, np.zeros(1, np.uint64), by)


def masked(numbers: NDArray[Any], seed: bytes, by: Layout) -> NDArray[np.uint64]:
    """Numbers, whole and below the base, as masked words."""
    return packing.add(packing.pack(numbers, by), mask(seed, by), by)


def seal(seed: bytes, about: Bound, random: Random) -> bytes:
    """The seed for the holder of `about.seal_key` alone: SEAL_BYTES. Raises ValueError for a key
    that is none.
    """
    own = X25519PrivateKey.from_private_bytes(random(32))
    public = own.public_key().public_bytes_raw()
    shared = own.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(about.seal_key)))
    return public + AESGCM(_key(shared, public, about)).encrypt(_NONCE, seed, None)


def can_be_sealed_to(key: str) -> bool:
    """Whether a public key (hexadecimal) is one: with one of small order nobody shares a secret."""
    try:
        _ANYBODY.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(key)))
    except ValueError:
        return False
    return True


def open_seal(sealed: bytes, about: Bound, private: X25519PrivateKey) -> bytes | None:
    """The seed in a seal; None if it is damaged, or was made for another use or another key."""
    if len(sealed) != SEAL_BYTES:
        return None
    public = sealed[:32]
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(public))
        return AESGCM(_key(shared, public, about)).decrypt(_NONCE, sealed[32:], None)
    except (InvalidTag, ValueError):  # a key of small order gives no shared secret
        return None


def _key(shared: bytes, public: bytes, about: Bound) -> bytes:
    info = about.message("seal") + b"\n" + public
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(shared)
