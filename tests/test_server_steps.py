"""The server's step, by hand and beside TFF's: equal deltas, equal weights, round after round."""

import numpy as np
import pytest

from device_runtime import weights
from device_runtime.errors import ConfigError
from device_runtime.optimizers import OPTIMIZERS
from server import step
from server.step import ALGORITHMS, RULES, ServerStep
from tests.toy_server import DIMENSION, WEIGHTS

STEPS = {
    "fedavg": ServerStep(0.7),
    "fedavgm": ServerStep(0.5, 0.9, "fedavgm"),
    "fedadam": ServerStep(0.01, 0.9, "fedadam", beta_2=0.99, epsilon=1e-5),
    "fedyogi": ServerStep(0.02, 0.8, "fedyogi", beta_2=0.95, epsilon=1e-3),
}


def by_tff(settings: ServerStep, deltas: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The weights after each round, by the optimizers simulated training uses: the mean delta is
    their gradient, turned round.
    """
    import tensorflow as tf

    from model import simulation
    from model.recipe import Server

    optimizer = simulation.optimizer(
        Server(
            settings.algorithm,
            settings.learning_rate,
            settings.beta_1,
            settings.beta_2,
            settings.epsilon,
        )
    )
    state = optimizer.initialize(
        {name: tf.TensorSpec(array.shape, array.dtype) for name, array in WEIGHTS.items()}
    )
    now, after = {name: tf.constant(array) for name, array in WEIGHTS.items()}, []
    for delta in deltas:
        gradient = {
            name: tf.constant(-array)
            for name, array in weights.unflatten(delta, like=WEIGHTS).items()
        }
        state, now = optimizer.next(state, now, gradient)
        after.append({name: array.numpy() for name, array in now.items()})
    return after


@pytest.mark.parametrize("name", STEPS)
def test_ten_rounds_lead_to_the_same_weights_as_tff(name):
    rng = np.random.default_rng(5)
    deltas = [rng.standard_normal(DIMENSION) * 10.0 ** rng.integers(-4, 1) for _ in range(10)]
    now, moments, expected = WEIGHTS, None, by_tff(STEPS[name], deltas)
    for delta, theirs in zip(deltas, expected, strict=True):
        now, moments = step.apply(STEPS[name], now, moments, delta)
        for weight, array in now.items():
            np.testing.assert_allclose(array, theirs[weight], rtol=2e-6, atol=2e-6)
            assert array.dtype == np.float32


def test_a_server_has_a_rule_for_each_optimizer_it_may_use_and_a_step_of_each_can_be_set():
    assert set(RULES) == set(ALGORITHMS) < set(OPTIMIZERS)
    assert {ServerStep(algorithm=name).algorithm for name in ALGORITHMS} == set(ALGORITHMS)
    assert [ServerStep(algorithm=name).beta_1 for name in ("fedavg", "fedyogi")] == [0.0, 0.9]


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - set(ALGORITHMS)))
def test_an_optimizer_only_a_simulation_has_is_refused(name):
    with pytest.raises(ConfigError, match="fedavg, fedavgm, fedadam, fedyogi, found"):
        ServerStep(algorithm=name)


def test_fedavg_adds_the_mean_delta():
    change = np.arange(DIMENSION, dtype=np.float64)
    after, velocity = step.apply(ServerStep(), WEIGHTS, None, change)
    assert velocity is None
    np.testing.assert_array_equal(
        after["embedding"], WEIGHTS["embedding"] + np.arange(30, dtype=np.float32).reshape(10, 3)
    )
    np.testing.assert_array_equal(
        after["units"], WEIGHTS["units"] + np.arange(30, 50, dtype=np.float32).reshape(4, 5)
    )
    assert all(array.dtype == np.float32 for array in after.values())


def test_fedavgm_goes_on_in_the_direction_of_the_steps_before():
    settings = ServerStep(learning_rate=0.5, momentum=0.5)
    first, velocity = step.apply(settings, WEIGHTS, None, np.full(DIMENSION, 1.0))
    np.testing.assert_allclose(first["units"] - WEIGHTS["units"], 0.5)  # 0.5 * 1
    second, velocity = step.apply(settings, first, velocity, np.full(DIMENSION, 1.0))
    np.testing.assert_allclose(second["units"] - first["units"], 0.75)  # 0.5 * (0.5 * 1 + 1)
    np.testing.assert_allclose(velocity["momentum/units"], 1.5)


def test_momentum_kept_by_an_older_server_goes_on():
    settings, older = (
        ServerStep(learning_rate=0.5, momentum=0.5),
        {name: np.ones_like(array) for name, array in WEIGHTS.items()},
    )
    after, moments = step.apply(settings, WEIGHTS, older, np.full(DIMENSION, 1.0))
    np.testing.assert_allclose(moments["momentum/units"], 1.5)
    np.testing.assert_allclose(after["units"] - WEIGHTS["units"], 0.75)


def test_the_first_step_of_fedadam_goes_by_its_rate_whatever_the_size_of_the_delta():
    settings = ServerStep(learning_rate=0.25, algorithm="fedadam", epsilon=1e-12)
    after, moments = step.apply(settings, WEIGHTS, None, np.linspace(-1, 3, DIMENSION) + 0.01)
    # bias is corrected
    np.testing.assert_allclose(
        np.abs(weights.flatten(after) - weights.flatten(WEIGHTS)), 0.25, rtol=1e-4
    )
    assert moments["steps"].tolist() == [1.0]


@pytest.mark.parametrize(
    "changed",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("inf")},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"algorithm": "sgd"},
        {"beta_2": 1.0},
        {"epsilon": 0.0},
    ],
)
def test_a_step_that_cannot_converge_is_refused(changed):
    with pytest.raises(ConfigError):
        ServerStep(**changed)
