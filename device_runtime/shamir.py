"""Shamir's secret sharing: a number -> shares of which any `threshold` give it back, fewer nothing.

The secret is the value at 0 of a polynomial over a prime field whose other coefficients are
random; a share is its value at a place of its holder. Source: Shamir 1979, "How to share a secret".
"""

from collections.abc import Mapping, Sequence

PRIME = 2**256 + 297  # the first above any secret of 32 bytes
SECRET_BYTES = 32
_COEFFICIENT_BYTES = 64  # reduced modulo the prime, each is as good as uniform: within 2 ** -255


def coefficients(random: bytes) -> tuple[int, ...]:
    """The random coefficients of a polynomial, 64 bytes of randomness each."""
    return tuple(
        int.from_bytes(random[start : start + _COEFFICIENT_BYTES], "little") % PRIME
        for start in range(0, len(random), _COEFFICIENT_BYTES)
    )


def randomness(threshold: int) -> int:
    """Bytes of randomness that `coefficients` takes for a threshold."""
    return _COEFFICIENT_BYTES * (threshold - 1)


def share(secret: int, random: Sequence[int], at: int, prime: int = PRIME) -> int:
    """The share of the holder at place `at`, 1 or more: the polynomial's value there.

    `random` holds threshold - 1 coefficients.

    >>> [share(7, (3,), at, prime=11) for at in (1, 2, 3)]  # 7 + 3 x
    [10, 2, 5]
    """
    value = 0
    for coefficient in reversed(random):
        value = (value + coefficient) * at % prime
    return (value + secret) % prime


def secret(shares: Mapping[int, int], prime: int = PRIME) -> int:
    """The secret of as many shares, by place, as the threshold says: with a wrong one among them,
    another number.

    >>> secret({1: 10, 3: 5}, prime=11)
    7
    """
    return value_at(0, shares, prime)


def value_at(at: int, shares: Mapping[int, int], prime: int = PRIME) -> int:
    """What the polynomial through these shares has at a place: the share that one expects there."""
    above, below = 0, 1  # the sum of fractions so far
    for place, value in shares.items():
        numerator, denominator = value, 1
        for other in shares:
            if other != place:
                numerator = numerator * (at - other) % prime
                denominator = denominator * (place - other) % prime
        above = (above * denominator + numerator * below) % prime
        below = below * denominator % prime
    return above * pow(below, -1, prime) % prime
