"""Noise: which numbers a task's noise may have."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import config
from device_runtime.errors import ConfigError
from device_runtime.noise import MOST_BUFFERS, Mechanism, Noise

BLT = Noise(Mechanism.BLT, 8.0, 8.0, 1e-10, 2000, 6, 0, (1.0, 0.5), (0.1, 0.3))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"multiplier": -1.0}, "noise.multiplier: expected 0 to 1e.06, found -1"),
        ({"multiplier": math.nan}, "noise.multiplier: expected"),
        ({"epsilon": math.inf}, "noise.epsilon: expected"),
        ({"delta": 0.0}, "noise.delta: expected"),
        ({"rounds": 0}, "noise.rounds: expected 1 to 100,000, found 0"),
        ({"participations": 0}, "noise.participations: expected"),
        ({"decays": (1.1, 0.5)}, "noise.decays: expected at most 8 values, each 0 to 1"),
        ({"decays": (0.5,)}, "noise.decays: expected a decay and a scale for each buffer"),
        ({"scales": (0.8, 0.3)}, r"noise\.scales: expected at most 1 together.*found 1.1"),
        ({"mechanism": Mechanism.TREE}, "noise.decays: expected a decay and a scale .* of a BLT"),
        ({"restart": 4}, "noise.restart: expected 0 for blt, found 4"),
        ({"decays": (0.5,) * 9, "scales": (0.1,) * 9}, "at most 8 values"),
    ],
)
def test_noise_that_no_account_is_of_is_refused_by_name(values, says):
    with pytest.raises(ConfigError, match=says):
        Noise(**(vars(BLT) | values))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1 / MOST_BUFFERS)), max_size=MOST_BUFFERS))
def test_noise_is_read_back_as_it_was_written(buffers):
    decays, scales = (tuple(each[i] for each in buffers) for i in (0, 1))
    noise = Noise(Mechanism.BLT, 8.0, 8.0, 1e-10, 2000, 6, 0, decays, scales)
    assert config.from_json(Noise, config.to_json(noise), "noise") == noise
