"""Shamir's secret sharing: a number -> shares of which any `threshold` give it back, fewer nothing.

The secret is the value at 0 of a polynomial over a prime field whose other coefficients are
random; a share is its value at a place of its holder. Wrong shares among more than the threshold
are found as errors of a Reed-Solomon code are.
Sources: Shamir 1979, "How to share a secret"; Gao 2003, "A new algorithm for decoding Reed-Solomon
codes".
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    above, below = 0, 1  # the sum of fractions so far
    for place, value in shares.items():
        numerator, denominator = value, 1
        for other in shares:
            if other != place:
                numerator = numerator * other % prime
                denominator = denominator * (other - place) % prime
        above = (above * denominator + numerator * below) % prime
        below = below * denominator % prime
    return above * pow(below, -1, prime) % prime


@dataclass(frozen=True)
class Corrected:
    """The secret of shares some of which were wrong."""

    secret: int
    wrong: frozenset[int]  # places


def corrected(shares: Mapping[int, int], threshold: int, prime: int = PRIME) -> Corrected | None:
    """The secret of more shares than the threshold, by place, and which of them are wrong.

    As many may be wrong as half of what is beyond the threshold; None if it is more than that.

    >>> corrected({1: 10, 2: 2, 3: 6, 4: 8}, 2, prime=11)  # 7 + 3 x, but for 3
    Corrected(secret=7, wrong=frozenset({3}))
    """
    # the polynomial through all points, and the one that is 0 at them: Newton's form
    through: list[int] = []
    vanishing = [1]
    for place, value in shares.items():
        missing = value - _at(place, through, prime)
        missing *= pow(_at(place, vanishing, prime), -1, prime)
        through = _plus(through, [missing * each % prime for each in vanishing], prime)
        vanishing = _plus([0, *vanishing], [-place * each % prime for each in vanishing], prime)
    # Euclid's algorithm, stopped half way: modulo vanishing, a remainder is its factor x through
    remainders = (vanishing, through)
    factors: tuple[list[int], list[int]] = ([], [1])
    while 2 * len(remainders[1]) > len(shares) + threshold + 1:
        quotient, remainder = _divided(*remainders, prime)
        remainders = (remainders[1], remainder)
        product = _times(quotient, [-each % prime for each in factors[1]], prime)
        factors = (factors[1], _plus(factors[0], product, prime))
    polynomial, left = _divided(remainders[1], factors[1], prime)
    if left or len(polynomial) > threshold:
        return None
    wrong = (at for at, value in shares.items() if _at(at, polynomial, prime) != value)
    return Corrected(_at(0, polynomial, prime), frozenset(wrong))


# polynomials are lists of coefficients, that of the constant first; the last of them is not 0


def _at(at: int, polynomial: Sequence[int], prime: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * at + coefficient) % prime
    return value


def _plus(left: Sequence[int], right: Sequence[int], prime: int) -> list[int]:
    total = [(a + b) % prime for a, b in itertools.zip_longest(left, right, fillvalue=0)]
    while total and not total[-1]:
        total.pop()
    return total


def _times(left: Sequence[int], right: Sequence[int], prime: int) -> list[int]:
    product = [0] * (len(left) + len(right) - 1)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            product[i + j] = (product[i + j] + a * b) % prime
    return product


def _divided(above: Sequence[int], below: Sequence[int], prime: int) -> tuple[list[int], list[int]]:
    """Quotient and remainder."""
    rest, inverse = list(above), pow(below[-1], -1, prime)
    quotient = [0] * max(0, len(above) - len(below) + 1)
    for shift in reversed(range(len(quotient))):
        factor = quotient[shift] = rest[shift + len(below) - 1] * inverse % prime
        for i, each in enumerate(below):
            rest[shift + i] = (rest[shift + i] - factor * each) % prime
    return quotient, _plus(rest, [], prime)
