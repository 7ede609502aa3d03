"""The server's step beside TFF's: the same mean deltas lead to the same weights, round after
round.
"""

import numpy as np
import pytest

from server import aggregation
from server.aggregation import ServerStep
from tests.toy_server import DIMENSION, WEIGHTS

STEPS = {
    "fedavg": ServerStep(0.7),
    "fedavgm": ServerStep(0.5, 0.9, "fedavgm"),
    "fedadam": ServerStep(0.01, 0.9, "fedadam", beta_2=0.99, epsilon=1e-5),
    "fedyogi": ServerStep(0.02, 0.8, "fedyogi", beta_2=0.95, epsilon=1e-3),
}


def by_tff(step: ServerStep, deltas: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The weights after each round, by the optimizers TFF's server steps use: the mean delta is
    their gradient, turned round.
    """
    import tensorflow as tf
    import tensorflow_federated as tff

    from device_runtime import weights

    build = tff.learning.optimizers
    optimizer = {
        "fedavg": lambda: build.build_sgdm(step.learning_rate),
        "fedavgm": lambda: build.build_sgdm(step.learning_rate, momentum=step.beta_1),
        "fedadam": lambda: build.build_adam(
            step.learning_rate, step.beta_1, step.beta_2, step.epsilon
        ),
        "fedyogi": lambda: build.build_yogi(
            step.learning_rate, step.beta_1, step.beta_2, step.epsilon
        ),
    }[step.algorithm]()
    state = optimizer.initialize(
        {name: tf.TensorSpec(array.shape, array.dtype) for name, array in WEIGHTS.items()}
    )
    now, found = {name: tf.constant(array) for name, array in WEIGHTS.items()}, []
    for delta in deltas:
        gradient = {
            name: tf.constant(-array)
            for name, array in weights.unflatten(delta, like=WEIGHTS).items()
        }
        state, now = optimizer.next(state, now, gradient)
        found.append({name: array.numpy() for name, array in now.items()})
    return found


@pytest.mark.parametrize("name", STEPS)
def test_ten_rounds_lead_to_the_same_weights_as_tff(name):
    rng = np.random.default_rng(5)
    deltas = [rng.standard_normal(DIMENSION) * 10.0 ** rng.integers(-4, 1) for _ in range(10)]
    now, moments, expected = WEIGHTS, None, by_tff(STEPS[name], deltas)
    for delta, theirs in zip(deltas, expected, strict=True):
        now, moments = aggregation.apply(STEPS[name], now, moments, delta)
        for weight, array in now.items():
            np.testing.assert_allclose(array, theirs[weight], rtol=2e-6, atol=2e-6)
            assert array.dtype == np.float32
