"""Strategy: what a round gets of noise, and what one device shows, held to matrices written out."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import strategy, toeplitz, tree
from device_runtime.errors import ConfigError
from device_runtime.noise import Mechanism, Noise

VALUES = 4


def gaussian(rounds: int = 12) -> Noise:
    return Noise(Mechanism.GAUSSIAN, 1.0, 8.0, 1e-10, rounds, 6)


def of_tree(rounds: int = 12, restart: int = 0) -> Noise:
    return Noise(Mechanism.TREE, 1.0, 8.0, 1e-10, rounds, 6, restart)


def blt(decays: tuple[float, ...], scales: tuple[float, ...], rounds: int = 12) -> Noise:
    return Noise(Mechanism.BLT, 1.0, 8.0, 1e-10, rounds, 6, 0, decays, scales)


HALVES = blt((0.5,), (0.5,))  # C's first column: 1, 1/2, 1/4, 1/8, ...


@st.composite
def some_blt(draw: st.DrawFn) -> Noise:
    count = draw(st.integers(0, 3))
    unit = st.floats(0.0, 1.0)
    decays = draw(st.lists(unit | st.just(1.0), min_size=count, max_size=count))
    scales = draw(st.lists(unit, min_size=count, max_size=count))
    over = max(1.0, 1.000001 * sum(scales))
    return blt(tuple(decays), tuple(scale / over for scale in scales))


def some_noise() -> st.SearchStrategy[Noise]:
    return st.one_of(
        st.just(gaussian()), st.integers(0, 5).map(lambda each: of_tree(12, each)), some_blt()
    )


def some_blocks(most: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(1, most), min_size=1, max_size=4).filter(
        lambda blocks: sum(blocks) <= most
    )


def nodes(sums: int) -> np.ndarray:
    """The tree's matrix, a row a node: which sums are below each that is complete."""
    rows = [
        [place // size == node for place in range(sums)]
        for size in (1, 2, 4, 8)
        for node in range(sums // size)
    ]
    return np.array(rows, float)


def matrix(noise: Noise, blocks: list[int]) -> np.ndarray:
    """C, written out: [rows, sums]."""
    total, parts, at = sum(blocks), [], 0
    for block in blocks:
        if noise.mechanism is Mechanism.TREE:
            size = noise.restart or block
            pieces = [min(size, block - start) for start in range(0, block, size)]
        else:
            pieces = [block]
        for piece in pieces:
            if noise.mechanism is Mechanism.TREE:
                own = nodes(piece)
            else:
                column = strategy.coefficients(noise, piece)
                own = np.array(
                    [[column[i - j] if i >= j else 0.0 for j in range(piece)] for i in range(piece)]
                )
            wide = np.zeros((len(own), total))
            wide[:, at : at + piece] = own
            parts.append(wide)
            at += piece
    return np.concatenate(parts)


def by_all_patterns(rows: np.ndarray, separation: int, most: int) -> float:
    """The largest norm of every way to take part."""
    places = range(rows.shape[1])
    return max(
        float(np.linalg.norm(rows[:, list(pattern)].sum(axis=1)))
        for count in range(1, most + 1)
        for pattern in itertools.combinations(places, count)
        if all(b - a >= separation for a, b in itertools.pairwise(pattern))
    )


@given(some_noise(), some_blocks(12), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_no_way_to_take_part_shows_more_than_the_sensitivity(noise, blocks, separation, most):
    worst = by_all_patterns(matrix(noise, blocks), separation, most)
    found = strategy.sensitivity(noise, blocks, separation, most)
    assert found >= worst * (1 - 1e-12)
    if len(blocks) == 1 or noise.mechanism is Mechanism.TREE:
        assert found == pytest.approx(worst, rel=1e-12)


@given(some_noise(), st.integers(1, 60), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_the_sensitivity_grows_with_rounds_participations_and_nearness(noise, sums, apart, most):
    found = strategy.sensitivity(noise, [sums], apart, most) * (1 - 1e-12)
    assert strategy.sensitivity(noise, [sums + 1], apart, most) >= found
    assert strategy.sensitivity(noise, [sums], apart, most + 1) >= found
    assert strategy.sensitivity(noise, [sums], max(1, apart - 1), most) >= found
    assert strategy.sensitivity(noise, [sums, 1], apart, most) >= found


def test_one_sum_shows_one_update_and_k_independent_ones_the_root_of_k():
    assert strategy.sensitivity(gaussian(), [1], 1, 6) == 1.0
    assert strategy.sensitivity(gaussian(), [12], 3, 4) == 2.0
    assert strategy.sensitivity(gaussian(), [12], 6, 4) == math.sqrt(2)  # there is room for two


def test_two_parts_of_a_blt_overlap_by_what_the_first_still_shows():
    # columns 1, 1/2, 1/4, 1/8 and, two sums later, 1, 1/2: together 1, 1/2, 5/4, 5/8
    assert strategy.sensitivity(HALVES, [4], 2, 2) ** 2 == pytest.approx(
        1 + 1 / 4 + 25 / 16 + 25 / 64
    )


def test_a_lost_state_cuts_what_one_part_shows_in_the_sums_after_it():
    # 1, 1/2 and then nothing more; the second part as much
    assert strategy.sensitivity(HALVES, [2, 2], 2, 2) ** 2 == pytest.approx(2 * (1 + 1 / 4))


def test_a_tree_of_four_shows_two_parts_in_eight_squares():
    assert tree.squared([4], 2, 2) == 2 + 2 + 4  # leaves, one pair each, the root twice
    assert tree.squared([4], 1, 4) == 4 + 2 * 4 + 16
    assert tree.squared([3], 1, 3) == 3 + 4  # the root is not complete, and was not drawn
    assert tree.squared([2, 2], 2, 2) == 2 + 2  # two trees have no root in common


@given(some_blocks(24), st.integers(1, 6), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_beyond_the_ways_that_are_counted_a_tree_s_bound_is_never_too_low(blocks, apart, most):
    most = min(most, -(-sum(blocks) // apart))
    assert tree.bound(blocks, apart, most) >= tree.squared(blocks, apart, most)


@given(some_noise(), some_blocks(12), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_no_beginnings_show_more_than_is_said_of_a_whole_life(noise, blocks, apart, most):
    told = strategy.sensitivity_of_life(noise, apart, most)
    assert told >= strategy.sensitivity(noise, blocks, apart, most) * (1 - 1e-12)


def test_a_tree_that_begins_anew_in_the_middle_shows_more_than_one_that_does_not():
    assert strategy.sensitivity(of_tree(4, 3), [4], 1, 3) ** 2 == pytest.approx(3 + 2**2)
    assert strategy.sensitivity(of_tree(4, 3), [2, 2], 1, 3) ** 2 == pytest.approx(3 + 2**2 + 1)
    assert strategy.sensitivity_of_life(of_tree(4, 3), 1, 3) ** 2 == pytest.approx(3 + 2**2 + 1)


def test_the_first_launch_at_google_is_found_again():
    # 2,000 sums, 314 apart, at most 6 of a device, noise multiplier 7: zCDP 0.81
    squared = strategy.sensitivity(of_tree(2000), [2000], 314, 6) ** 2
    assert squared == pytest.approx(79)
    assert round(squared / 7**2 / 2, 2) == 0.81
    # as federated-compute counts, by the separation alone
    assert round(strategy.sensitivity(of_tree(2000), [2000], 314, 7) ** 2 / 98, 3) == 0.888


def test_what_each_mechanism_needs_of_noise_is_what_was_published():
    def cost(noise: Noise, separation: int, most: int) -> float:
        rounds = noise.rounds
        return strategy.sensitivity(noise, [rounds], separation, most) * strategy.prefix_rmse(
            noise, rounds
        )

    assert cost(of_tree(2000), 314, 7) == pytest.approx(16.47, abs=0.005)
    assert cost(of_tree(2048), 342, 6) == pytest.approx(19.29, abs=0.006)
    # 43.98 of devices that come back after 30 sums exactly: a little more of others
    assert 43.98 < cost(of_tree(600), 30, 20) < 44.1
    assert cost(gaussian(2000), 314, 6) == pytest.approx(77.5, abs=0.05)


def needed(noise: Noise, separation: int) -> float:
    """Sensitivity x RMSE of the prefix sums of all its rounds."""
    rounds = noise.rounds
    changed = strategy.sensitivity(noise, [rounds], separation, noise.participations)
    return changed * strategy.prefix_rmse(noise, rounds)


@pytest.mark.parametrize(
    ("rounds", "separation", "most", "published"),
    [(2000, 314, 6, 9.71), (2048, 342, 6, 9.63), (600, 30, 20, 19.97)],
)
def test_the_blt_that_is_found_needs_no_more_noise_than_jax_privacy_s(
    rounds, separation, most, published
):
    noise = Noise(Mechanism.BLT, 1.0, 8.0, 1e-10, rounds, most)
    found = strategy.optimised(noise, separation)
    assert needed(found, separation) <= published
    assert strategy.optimised(noise, separation) == found
    column = strategy.coefficients(found, rounds)
    assert (column >= 0).all() and (np.diff(column) <= 0).all()


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_the_blt_that_is_found_is_never_worse_than_independent_noise(rounds, separation, most):
    noise = Noise(Mechanism.BLT, 1.0, 8.0, 1e-10, rounds, most)
    found = strategy.optimised(noise, separation)
    assert needed(found, separation) <= needed(noise, separation) * (1 + 1e-9)


@given(some_blt(), st.integers(1, 5000))
@settings(max_examples=30, deadline=None)
def test_of_many_rounds_some_say_as_much_as_all(noise, rounds):
    buffers = np.array(noise.decays), np.array(noise.scales)
    exact = toeplitz.prefix_variance(*buffers, rounds)
    assert toeplitz.sampled_variance(*buffers, rounds) == pytest.approx(exact, rel=1e-4)


def test_only_a_blt_has_buffers_to_choose():
    assert strategy.optimised(of_tree(), 3) == of_tree()
    assert strategy.optimised(gaussian(), 3) == gaussian()


def streamed(noise: Noise, sums: int) -> np.ndarray:
    """The noise of each sum by what was drawn: [sums, draws], each draw a column of its own."""
    width = 64
    buffers, drawn, rows = strategy.begin(noise, width), itertools.count(), []

    def draw() -> np.ndarray:
        unit = np.zeros(width, np.float32)
        unit[next(drawn)] = 1.0
        return unit

    for _ in range(sums):
        made, buffers = strategy.advance(noise, buffers, draw)
        assert made.dtype == buffers.arrays.dtype == np.float32
        rows.append(made)
    return np.array(rows, float)


@given(some_noise(), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_what_is_streamed_is_as_wide_as_was_said_before(noise, sums):
    rows = streamed(noise, sums)
    prefix = np.cumsum(rows, axis=0)
    rmse = math.sqrt((prefix**2).sum() / sums)
    assert strategy.prefix_rmse(noise, sums) == pytest.approx(rmse, rel=1e-5)
    norms = np.linalg.norm(rows, axis=1)
    assert norms.max() <= strategy.row_norm(noise) * (1 + 1e-6)
    if sums == noise.rounds:
        assert norms.max() == pytest.approx(strategy.row_norm(noise), rel=1e-5)


@given(some_blt(), st.integers(1, 30))
@settings(deadline=None)
def test_a_blt_s_noise_times_c_is_independent_again(noise, sums):
    column, undone = strategy.coefficients(noise, sums), strategy.inverse(noise, sums)
    assert np.convolve(column, undone)[:sums] == pytest.approx([1] + [0] * (sums - 1), abs=1e-9)


def test_the_estimate_of_two_sums_weighs_their_node_twice_as_much_as_its_children():
    # of variance 1 the node, of variance 2 its children's sum
    first, second = streamed(of_tree(2), 2)
    assert first[:3].tolist() == [1, 0, 0]
    assert (first + second)[:3] == pytest.approx([1 / 3, 1 / 3, 2 / 3])


def test_a_tree_that_begins_anew_forgets_all_but_the_sum_it_has_reached():
    rows = streamed(of_tree(4, restart=2), 4)
    assert rows[2:, 3:6].tolist() == rows[:2, :3].tolist()
    assert not rows[2:, :3].any()


def test_what_was_kept_of_a_round_is_not_touched_by_the_next():
    for noise in (of_tree(), HALVES):
        buffers = strategy.begin(noise, VALUES)
        for step in range(4):
            before = buffers.arrays.copy()
            _, after = strategy.advance(noise, buffers, lambda: np.ones(VALUES, np.float32))
            assert (buffers.arrays == before).all() and after.step == step + 1
            buffers = after


def test_a_matrix_whose_columns_rise_is_refused():
    with pytest.raises(ConfigError, match=r"noise\.scales: expected at most 1 together"):
        blt((0.9, 0.5), (0.7, 0.4))
    assert strategy.coefficients(blt((0.9, 0.5), (0.6, 0.4)), 2).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("column", [strategy.coefficients, strategy.inverse])
def test_a_tree_has_no_column_that_all_its_rounds_share(column):
    with pytest.raises(ValueError, match="no column in common"):
        column(of_tree(), 3)
