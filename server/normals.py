"""Normals: a stream of bytes nobody can foresee -> independent standard normals.

AES-256 in counter mode under a key of one use, and Box and Muller's transform of 64-bit uniforms in
float64: no value is more likely than the density says by what could be seen in millions of them,
and the tails reach past nine standard deviations. Source: Box and Muller 1958.
"""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from device_runtime.masking import Random
from device_runtime.strategy import Draw

KEY_BYTES = 32
_PART = 16_384  # pairs made at once: they stay in a core's own cache
_PAIR_BYTES = 16  # of the stream
_WHOLE = 2.0**-64


def source(values: int, random: Random) -> Draw:
    """Draws of so many normals each, float64 [values], under keys of `random`: the system's, or a
    simulation's, which repeats.
    """
    return lambda: normals(values, random(KEY_BYTES))


def normals(values: int, key: bytes) -> NDArray[np.float64]:
    """Independent standard normals, float64 [values], of a key of KEY_BYTES that is used once."""
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    pairs = -(-values // 2)
    drawn = np.empty(2 * pairs)
    zeros, room = bytes(_PAIR_BYTES * _PART), bytearray(_PAIR_BYTES * _PART + 16)
    for start in range(0, pairs, _PART):
        count = min(_PART, pairs - start)
        stream.update_into(zeros[: _PAIR_BYTES * count], room)
        uniform = np.frombuffer(room, "<u8", 2 * count)
        drawn[2 * start : 2 * (start + count)] = box_muller(uniform[:count], uniform[count:])
    return drawn[:values]


def box_muller(radial: NDArray[np.uint64], angular: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Twice as many normals, float64 [2 n], as there are pairs of uniform 64-bit numbers: uint64
    [n] for how far from 0 and as many for which way.
    """
    # from half of 2^-64 on: 0 has no logarithm
    radius = np.sqrt(-2 * np.log((radial.astype(np.float64) + 0.5) * _WHOLE))
    angle = angular.astype(np.float64) * (2 * np.pi * _WHOLE)
    return np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))
