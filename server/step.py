"""The server's step: weights, the mean delta and what earlier steps left -> the next weights.

    mean delta -> RULES[algorithm] -> change of each weight -> weights of the next checkpoint
                    ^        |
                    +-moments-+   kept beside the checkpoint

An optimizer is its line in `device_runtime.optimizers` and its rule here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from device_runtime import bounds, weights
from device_runtime.bounds import OneOf, Within
from device_runtime.optimizers import OPTIMIZERS
from device_runtime.weights import Weights
from device_runtime.wire import RATE

ALGORITHMS = tuple(name for name, optimizer in OPTIMIZERS.items() if optimizer.served)
DECAY = Within(0.0, 0.999999)  # float32 still tells it from 1, which would keep everything
Floats = NDArray[np.float32]
_FIRST_VARIANCE = np.float32(1e-6)  # of FedYogi, as in TFF


@dataclass(frozen=True)
class ServerStep:
    """How the mean delta moves the weights; the names are those of `fedboard train`.

    fedavg adds it, with momentum it is FedAvgM (Hsu et al. 2019, arXiv:1909.06335); fedadam and
    fedyogi are those of Reddi et al. 2020, arXiv:2003.00295, with bias correction as TFF does them.
    Every number is TFF's on the same inputs, to float32 rounding. Raises ConfigError for a name
    without a rule and for numbers with which no step can converge.
    """

    learning_rate: Annotated[float, RATE] = 1.0
    # beta 1 of fedadam and fedyogi; by default 0 for fedavg and 0.9 for the others
    momentum: Annotated[float | None, DECAY] = None
    algorithm: Annotated[str, OneOf(ALGORITHMS)] = "fedavg"
    beta_2: Annotated[float, DECAY] = 0.99  # fedadam, fedyogi
    epsilon: Annotated[float, Within(1e-30, 1e6)] = 1e-5  # fedadam, fedyogi

    def __post_init__(self) -> None:
        bounds.check(self, "step")

    @property
    def beta_1(self) -> float:
        """The momentum, or the algorithm's own where none is named.

        >>> ServerStep().beta_1, ServerStep(algorithm="fedavgm").beta_1
        (0.0, 0.9)
        """
        if self.momentum is not None:
            return self.momentum
        return OPTIMIZERS[self.algorithm].momentum


def apply(
    step: ServerStep, before: Weights, moments: Weights | None, delta: NDArray[np.floating[Any]]
) -> tuple[Weights, Weights | None]:
    """The next weights, and what the step has to remember: None where it remembers nothing.

    `delta` is the mean delta, float [dimension], the arrays of `before` one after the other.
    Moments are arrays by name: `momentum/<weight>`, `variance/<weight>`, and how many `steps` have
    been made; None before the first step. All results are float32, as in TFF.
    """
    change, kept = RULES[step.algorithm](step, moments or {}, weights.unflatten(delta, like=before))
    return {name: before[name] + change[name] for name in before}, kept or None


def _heavy_ball(step: ServerStep, past: Weights, delta: Weights) -> tuple[Weights, Weights]:
    """FedAvg, and with momentum FedAvgM."""
    rate, beta_1 = np.float32(step.learning_rate), np.float32(step.beta_1)
    if not beta_1:
        return {name: rate * array for name, array in delta.items()}, {}
    # an older folder's moments lie under the weights' own names
    velocity = {
        name: beta_1 * past.get(f"momentum/{name}", past.get(name, np.float32(0))) + array
        for name, array in delta.items()
    }
    return (
        {name: rate * array for name, array in velocity.items()},
        {f"momentum/{name}": array for name, array in velocity.items()},
    )


def _adam(step: ServerStep, past: Weights, delta: Weights) -> tuple[Weights, Weights]:
    """FedAdam: the variance is a running mean of squares, from nothing."""
    beta_2 = np.float32(step.beta_2)

    def vary(variance: Floats, square: Floats) -> Floats:
        return variance + (square - variance) * (1 - beta_2)

    return _adaptive(step, past, delta, np.float32(0), vary)


def _yogi(step: ServerStep, past: Weights, delta: Weights) -> tuple[Weights, Weights]:
    """FedYogi: the variance moves towards the square by a share of the square, whatever lies
    between them.
    """
    beta_2 = np.float32(step.beta_2)

    def vary(variance: Floats, square: Floats) -> Floats:
        after: Floats = variance + (1 - beta_2) * np.sign(square - variance) * square
        return after

    return _adaptive(step, past, delta, _FIRST_VARIANCE, vary)


def _adaptive(
    step: ServerStep,
    past: Weights,
    delta: Weights,
    first_variance: np.float32,
    vary: Callable[[Floats, Floats], Floats],
) -> tuple[Weights, Weights]:
    """The momentum over the root of the variance, the bias of both towards their start corrected.
    `vary` gives the next variance from the last one and the squares of the delta.
    """
    beta_1, beta_2 = np.float32(step.beta_1), np.float32(step.beta_2)
    steps = past.get("steps", np.zeros(1, np.float32)) + np.float32(1)
    rate = (
        np.float32(step.learning_rate) * np.sqrt(1 - beta_2 ** steps[0]) / (1 - beta_1 ** steps[0])
    )
    change: Weights = {}
    kept: Weights = {"steps": steps}
    for name, array in delta.items():
        momentum = past.get(f"momentum/{name}", np.zeros_like(array))
        variance = past.get(f"variance/{name}", np.full_like(array, first_variance))
        momentum = momentum + (array - momentum) * (1 - beta_1)
        variance = vary(variance, np.square(array))
        change[name] = rate * momentum / (np.sqrt(variance) + np.float32(step.epsilon))
        kept |= {f"momentum/{name}": momentum, f"variance/{name}": variance}
    return change, kept


# what a step makes of what it remembers and the mean delta: the change of each weight, and what it
# remembers next
RULES: dict[str, Callable[[ServerStep, Weights, Weights], tuple[Weights, Weights]]] = {
    "fedavg": _heavy_ball,
    "fedavgm": _heavy_ball,
    "fedadam": _adam,
    "fedyogi": _yogi,
}
