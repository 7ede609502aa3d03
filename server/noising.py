"""Noising: what a sum of codes gets added, in whole codes, and how the state behind it is kept.

    buffers of the rounds before + fresh normals -> strategy.advance -> x deviation -> whole codes
            ^                                            |
            +---- sealed, under a key of one round ------+

Rounding the noise and adding it to whole codes is rounding the noised sum: what is done with the
sum afterwards spends nothing. Whoever can read the buffers can take noise off sums: they are kept
under a key that lies elsewhere and is replaced with them. For a helper, or a server that is trusted
with the sum.
"""

import struct

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM
from numpy.typing import NDArray

from device_runtime import strategy
from device_runtime.masking import Random
from device_runtime.strategy import Buffers
from device_runtime.terms import Terms
from server import normals

KEY_BYTES = 32
_HEAD = struct.Struct("<4sQQQ")  # magic, step, buffers, values
_MAGIC = b"FBN1"
_NONCE = bytes(12)  # the same always: a key is used once
_TAG_BYTES = 16


def begin(terms: Terms) -> Buffers:
    """Before the first sum of a task, or after what was kept of it is lost."""
    assert terms.noise is not None
    return strategy.begin(terms.noise, terms.values)


def noise(
    terms: Terms, buffers: Buffers, random: Random, whole: int = 1
) -> tuple[NDArray[np.int64], Buffers]:
    """What is added to the next sum of codes, int64 [values], and what the one after needs. In the
    sum each code stands `whole` times.
    """
    assert terms.noise is not None
    draw = normals.source(terms.values, random)
    made, after = strategy.advance(terms.noise, buffers, draw)
    return np.rint(made * (whole * terms.deviation)).astype(np.int64), after


def sealed(buffers: Buffers, key: bytes, about: str) -> bytes:
    """Buffers as they are kept: only who has the key, and says what they are for, reads them."""
    arrays = np.ascontiguousarray(buffers.arrays, "<f4")
    encryptor = Cipher(AES(key), GCM(_NONCE)).encryptor()
    encryptor.authenticate_additional_data(about.encode())
    head = encryptor.update(_HEAD.pack(_MAGIC, buffers.step, *arrays.shape))
    # one after the other: they take megabytes
    return b"".join((head, encryptor.update(_flat(arrays)), encryptor.finalize(), encryptor.tag))


def opened(data: bytes, key: bytes | None, about: str, terms: Terms) -> Buffers | None:
    """What `sealed` made; None if it cannot be read, or is of another network or mechanism."""
    if key is None or len(key) != KEY_BYTES:
        return None
    try:
        text = AESGCM(key).decrypt(_NONCE, data, about.encode())
    except InvalidTag:
        return None
    if len(text) < _HEAD.size:
        return None
    magic, step, count, values = _HEAD.unpack_from(text)
    size = _HEAD.size + 4 * count * values
    if magic != _MAGIC or len(text) != size or (count, values) != _shape(terms):
        return None
    arrays = np.frombuffer(text, "<f4", offset=_HEAD.size).reshape(count, values)
    return Buffers(step, arrays.astype(np.float32, copy=False))


def sealed_bytes(terms: Terms) -> int:
    """How much `sealed` makes of a task's buffers."""
    count, values = _shape(terms)
    return _HEAD.size + 4 * count * values + _TAG_BYTES


def _shape(terms: Terms) -> tuple[int, int]:
    assert terms.noise is not None
    return len(strategy.begin(terms.noise, 0).arrays), terms.values


def _flat(arrays: NDArray[np.float32]) -> memoryview:
    return arrays.reshape(-1).view(np.uint8).data
