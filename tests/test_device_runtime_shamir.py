"""Shamir's secret sharing: enough shares give the secret, fewer nothing, wrong ones are noticed."""

from collections import Counter
from itertools import combinations, product
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import shamir
from device_runtime.shamir import PRIME, Corrected

SECRETS = st.integers(0, 2**256 - 1)


def shares_of(secret: int, threshold: int, places, seed: int = 0) -> dict[int, int]:
    random = Random(seed).randbytes(shamir.randomness(threshold))
    coefficients = shamir.coefficients(random)
    return {at: shamir.share(secret, coefficients, at) for at in places}


def test_the_prime_is_one_and_the_first_above_every_secret():
    def may_be_prime(number: int) -> bool:  # Fermat's test, to a few bases
        return all(pow(base, number - 1, number) == 1 for base in (2, 3, 5, 7, 11))

    assert [each for each in range(2**256, PRIME + 1) if may_be_prime(each)] == [PRIME]


@settings(max_examples=40, deadline=None)
@given(secret=SECRETS, seed=st.integers(0, 2**32), data=st.data())
def test_any_threshold_of_the_shares_give_the_secret_back(secret, seed, data):
    threshold = data.draw(st.integers(2, 12))
    places = data.draw(
        st.lists(st.integers(1, 100_000), min_size=threshold, max_size=20, unique=True)
    )
    shares = shares_of(secret, threshold, places, seed)
    some = data.draw(st.permutations(places))[:threshold]
    assert shamir.secret({at: shares[at] for at in some}) == secret


def test_fewer_than_the_threshold_say_nothing():
    """Over the field of 7 all can be counted: of every secret, two shares of threshold 3 are each
    pair of numbers for as many polynomials.
    """
    for secret, places in product(range(7), combinations(range(1, 7), 2)):
        pairs = Counter(
            tuple(shamir.share(secret, coefficients, at, prime=7) for at in places)
            for coefficients in product(range(7), repeat=2)
        )
        assert len(pairs) == 49
        assert set(pairs.values()) == {1}


def test_coefficients_come_from_the_whole_field():
    largest = (2**512 - 1).to_bytes(64, "little")
    assert shamir.coefficients(bytes(64) + largest) == (0, (2**512 - 1) % PRIME)
    assert shamir.randomness(3) == 128


@settings(max_examples=30, deadline=None)
@given(secret=SECRETS, wrong=st.integers(1, PRIME - 1), at=st.integers(1, 5))
def test_a_wrong_share_gives_another_secret(secret, wrong, at):
    shares = shares_of(secret, 5, range(1, 6))
    shares[at] = (shares[at] + wrong) % PRIME
    assert shamir.secret(shares) != secret


@settings(max_examples=40, deadline=None)
@given(secret=SECRETS, seed=st.integers(0, 2**32), data=st.data())
def test_half_of_the_shares_beyond_the_threshold_may_be_wrong(secret, seed, data):
    threshold, more = data.draw(st.integers(1, 8)), data.draw(st.integers(0, 8))
    places = data.draw(st.permutations(range(1, 30)))[: threshold + more]
    shares = shares_of(secret, threshold, places, seed)
    liars = frozenset(places[: data.draw(st.integers(0, more // 2))])
    for at in liars:
        shares[at] = (shares[at] + data.draw(st.integers(1, PRIME - 1))) % PRIME
    assert shamir.corrected(shares, threshold) == Corrected(secret, liars)


def test_with_more_wrong_shares_than_that_there_is_no_secret():
    shares = shares_of(12, 4, range(1, 9))
    for at in (1, 2, 5):
        shares[at] = at
    assert shamir.corrected(shares, 4) is None


def test_a_threshold_of_seventy_eight_neighbours_is_shared_and_put_together():
    shares = shares_of(2**256 - 1, 52, range(1, 79))
    assert max(shares.values()) < PRIME
    assert shamir.secret(dict(list(shares.items())[26:])) == 2**256 - 1
