"""Normals: a stream of bytes nobody can foresee -> independent standard normals.

AES-256 in counter mode under a key of one use, and Box and Muller's transform of 64-bit uniforms in
float64, whose tails reach past nine standard deviations. Source: Box and Muller 1958.
"""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from device_runtime.masking import Random
from device_runtime.strategy import Draw

KEY_BYTES = 32
_PART = 16_384  # pairs made at once: they stay in a core's own cache
_WHOLE = 2.0**-64


def source(values: int, random: Random) -> Draw:
    """Draws of so many normals each, float32 [values], under keys of `random`: the system's, or a
    simulation's, which repeats.
    """
    return lambda: normals(values, random(KEY_BYTES))


def normals(values: int, key: bytes) -> NDArray[np.float32]:
    """Independent standard normals, float32 [values], of a key of KEY_BYTES that is used once."""
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    pairs = -(-values // 2)
    drawn = np.empty(2 * pairs, np.float32)
    zeros = bytes(16 * _PART)
    for start in range(0, pairs, _PART):
        count = min(_PART, pairs - start)
        raw = np.frombuffer(stream.update(zeros[: 16 * count]), np.uint64).astype(np.float64)
        # never 0, whose logarithm is none
        radius = np.sqrt(-2 * np.log((raw[:count] + 0.5) * _WHOLE))
        angle = raw[count:] * (2 * np.pi * _WHOLE)
        part = drawn[2 * start : 2 * (start + count)]
        part[:count] = radius * np.cos(angle)
        part[count:] = radius * np.sin(angle)
    return drawn[:values]
