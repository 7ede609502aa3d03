"""The benchmark of a helper opens a round as it would a real one."""

from benchmarks.helper import measured


def test_a_round_s_cost_is_that_of_one_mask_a_device():
    cost = measured(3, 50)
    # 4,096 values of 3 devices: ten digits of base 46 a word of seven bytes
    assert (cost.devices, round(1e6 * cost.megabytes)) == (3, 410 * 7)
    assert cost.masks_s > 0 and 0 < cost.floor_s < cost.seconds < 60
