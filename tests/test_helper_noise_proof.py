"""A hundred sums with the helper's noise, undone to weights, are as far off as the mechanism says.

The helper answers real sealed reports; what is looked at is what a leader has: mean deltas.
"""

import math
from dataclasses import replace

import numpy as np
import pytest

from device_runtime import packing, strategy
from device_runtime.helper_wire import AnswerTaken, KeysAsked, from_answer
from device_runtime.noise import Mechanism, Noise
from server import mechanism
from server.sums import Sum
from tests.toy_helper import (
    NOISED,
    TASK_ID,
    layout,
    named,
    new,
    registration,
    reports,
    seal_keys,
)

SUMS = 100
BLT = Noise(
    Mechanism.BLT,
    multiplier=3.0,
    epsilon=1e6,
    delta=1e-6,
    rounds=SUMS,
    participations=SUMS,
    decays=(0.98, 0.7),
    scales=(0.15, 0.3),
)
NOISES = {
    "blt": BLT,
    "gaussian": replace(BLT, mechanism=Mechanism.GAUSSIAN, decays=(), scales=()),
    "tree": replace(BLT, mechanism=Mechanism.TREE, decays=(), scales=(), restart=70),
}
WIDE = 16_384  # values of the network: as many as show a spread within a per cent


@pytest.fixture(scope="module", params=NOISES)
def proof(request, tmp_path_factory):
    """A task's terms, and the noise in the mean delta of each sum: [sums, values]."""
    terms = replace(NOISED, noise=NOISES[request.param], dimension=WIDE)
    folder = tmp_path_factory.mktemp(request.param) / "helper"
    desk = new(folder, random=np.random.default_rng([5, len(request.param)]).bytes)
    desk.register(registration(terms), 0.0)
    noises = []
    for round in range(1, SUMS + 1):
        keys = seal_keys(desk.seal_keys(KeysAsked(TASK_ID, round)))
        sent = reports(range(3), round, keys, terms)
        body = desk.answer(named(sent, round), 1.0)
        noises.append(mean_delta(body, sent, terms) - honest(sent, terms))
        desk.taken(AnswerTaken(TASK_ID, round))
    desk.close()
    return terms, np.array(noises)


def mean_delta(body: bytes, sent, terms) -> np.ndarray:
    """What the leader makes of an answer: words - masks -> sum of codes -> mean delta."""
    by = layout(terms)
    masks = packing.from_bytes(from_answer(body, by.bytes)[1], by)
    total = np.zeros(by.words, np.uint64)
    for each in sent:
        total = packing.add(total, each.words, by)
    numbers = packing.unpack(packing.subtract(total, masks, by), by).astype(np.int64)
    return mechanism.mean_of(Sum(numbers - terms.room, len(sent), len(sent)), terms, 0)


def honest(sent, terms) -> np.ndarray:
    """The mean delta without noise."""
    total = sum(each.numbers.astype(np.int64) for each in sent)
    return mechanism.mean_of(Sum(total, len(sent), len(sent)), terms, 0)


def one(terms) -> float:
    """Deviation of one independent Gaussian in a mean delta."""
    by = terms.encoding
    return terms.noise.multiplier * by.bound * by.clipping_norm / terms.most


def test_the_noise_of_all_prefixes_is_as_wide_as_the_mechanism_says_within_two_per_cent(
    proof, record_property
):
    terms, noises = proof
    prefixes = np.cumsum(noises, axis=0)
    expected = strategy.prefix_rmse(terms.noise, SUMS) * one(terms)
    measured = math.sqrt(np.mean(prefixes**2))
    record_property("did", f"measured / expected {measured / expected:.4f}")
    assert measured == pytest.approx(expected, rel=0.02)


def together(terms) -> np.ndarray:
    """How the noises of two sums go together, by the mechanism: [sums, sums], 1 for one Gaussian.
    What each of them is made of is seen when the Gaussians drawn are those of an axis each.
    """
    axes = iter(np.eye(2 * SUMS))
    buffers, rows = strategy.begin(terms.noise, 2 * SUMS), []
    for _ in range(SUMS):
        row, buffers = strategy.advance(terms.noise, buffers, lambda: next(axes))
        rows.append(row)
    return np.array(rows) @ np.array(rows).T


def test_neighbouring_sums_share_noise_as_the_inverse_of_the_matrix_says(proof):
    terms, noises = proof
    expected, measured = together(terms), noises @ noises.T / WIDE / one(terms) ** 2
    if terms.noise.mechanism is not Mechanism.TREE:
        column = strategy.inverse(terms.noise, SUMS)
        assert expected[1, 0] == pytest.approx(column[0] * column[1], abs=1e-6)
    assert np.abs(measured - expected).max() < 5.5 * expected.max() * math.sqrt(2 / WIDE)
    for apart in (0, 1, 2, 5, 40):  # on average over all such neighbours
        of_all = np.mean(np.diagonal(measured - expected, apart))
        assert abs(of_all) < 5 * expected.max() * math.sqrt(2 / WIDE / (SUMS - apart))


def drawn(terms, noises) -> np.ndarray:
    """What is new in the noise of each sum, [sums, values], of deviation 1."""
    return np.linalg.solve(np.linalg.cholesky(together(terms)), noises) / one(terms)


def test_what_was_drawn_for_them_is_normal_to_four_deviations_with_mean_zero(proof):
    values = drawn(*proof).reshape(-1)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((values**power).mean() - moment) < 4 * math.sqrt(spread / values.size)
    for sigma in (1, 2, 3, 4):
        expected = values.size * math.erfc(sigma / math.sqrt(2))
        assert abs((np.abs(values) > sigma).sum() - expected) < 4 * math.sqrt(expected)


def test_no_sum_s_draw_has_anything_to_do_with_another_s(proof):
    rows = drawn(*proof)
    shared = rows @ rows.T / WIDE - np.eye(SUMS)
    assert np.abs(shared).max() < 5.5 * math.sqrt(2 / WIDE)
