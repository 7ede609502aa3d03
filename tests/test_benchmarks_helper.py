"""The benchmark of a helper opens a round as it would a real one."""

import pytest

from benchmarks.helper import NOISES, measured, noise_measured


def test_a_round_s_cost_is_that_of_one_mask_a_device():
    cost = measured(3, 50)
    # 4,096 values of 3 devices: ten digits of base 46 a word of seven bytes
    assert (cost.devices, round(1e6 * cost.megabytes)) == (3, 410 * 7)
    assert cost.masks_s > 0 and 0 < cost.floor_s < cost.seconds < 60


@pytest.mark.parametrize("noise", NOISES, ids=lambda each: each.mechanism.value)
def test_a_sum_s_noise_costs_what_its_parts_do(noise):
    cost = noise_measured(noise, 50, 2)
    assert cost.megabytes == pytest.approx((4 * 4096 * len(noise.decays) + 44) / 1e6)
    assert 0 < cost.floor_s < cost.drawn_s < cost.computed_s < 1
    assert 0 < cost.slot_s < 10 and 0 < cost.row_s < 10 and 0 < cost.answer_s < 10
