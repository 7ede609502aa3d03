"""The next-word network in plain numpy: what it is, its first weights, and its forward pass.

`training.py` is its twin in TensorFlow.

CIFG-LSTM of Hard et al. 2018 (arXiv:1811.03604): one layer whose input and forget gates are
coupled, a recurrent projection to the embedding's width, and one embedding table for input and
output. Matrices are stored [out, in], as TFLite's fully connected operation wants them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from device_runtime.errors import CheckpointError, ConfigError
from device_runtime.text import Vocabulary
from device_runtime.weights import Weights


@dataclass(frozen=True)
class NetworkSize:
    """How large the network is; the vocabulary comes from elsewhere."""

    embedding: int = 96  # also the output projection: both ends share one table
    units: int = 670  # CIFG-LSTM cells


SIZES = {"tiny": NetworkSize(16, 24), "small": NetworkSize(64, 192), "gboard": NetworkSize(96, 670)}


def size_named(name: str) -> NetworkSize:
    """The size of that name. Raises ConfigError for one that is none."""
    if name not in SIZES:
        raise ConfigError(
            "network size",
            f"expected one of {', '.join(SIZES)}, found {name!r}",
            "choose one of them",
        )
    return SIZES[name]


def size_of(weights: Weights) -> NetworkSize:
    """The size weights belong to. Raises CheckpointError if they are not this network's."""
    try:
        (_, embedding), (_, units) = weights["embedding"].shape, weights["projection"].shape
    except (KeyError, ValueError):
        raise CheckpointError(
            "weights",
            f"expected the network's arrays, found {', '.join(weights)}",
            "use a next-word checkpoint",
        ) from None
    return NetworkSize(embedding, units)


def initial_weights(size: NetworkSize, vocabulary: Vocabulary, rng: np.random.Generator) -> Weights:
    """First weights: the output bias starts at log unigram probabilities, the rest is random.

    Such a bias saves most of the early rounds.
    """
    v, d, h = len(vocabulary), size.embedding, size.units

    def uniform(*shape: int) -> np.ndarray:
        bound = np.sqrt(3 / shape[1])  # variance 1 / inputs
        return rng.uniform(-bound, bound, shape).astype(np.float32)

    cell_bias = np.zeros(3 * h, np.float32)
    cell_bias[:h] = -1  # the input gate starts half closed, so the cell remembers
    return {
        "cell_bias": cell_bias,
        "embedding": 0.5 * uniform(v, d),
        "input_kernel": uniform(3 * h, d),
        "output_bias": np.array(vocabulary.log_unigram, np.float32),
        "projection": uniform(d, h),
        "recurrent_kernel": uniform(3 * h, d),
    }


def parameters(weights: Weights) -> int:
    """How many values all arrays have together."""
    return sum(array.size for array in weights.values())


def forward(weights: Weights, inputs: np.ndarray) -> np.ndarray:
    """Hidden states after each token: int [rows, time] -> float32 [rows, time, embedding]."""
    hidden, cell = start(weights, len(inputs))
    states = np.empty((*inputs.shape, hidden.shape[1]), np.float32)
    for time in range(inputs.shape[1]):
        hidden, cell = step(weights, inputs[:, time], hidden, cell)
        states[:, time] = hidden
    return states


def start(weights: Weights, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Hidden, float32 [rows, embedding], and cell, float32 [rows, units], of no token yet."""
    size = size_of(weights)
    return np.zeros((rows, size.embedding), np.float32), np.zeros((rows, size.units), np.float32)


def step(
    weights: Weights, tokens: np.ndarray, hidden: np.ndarray, cell: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One token further, int [rows]: hidden and cell after it."""
    x = weights["embedding"][tokens] * np.float32(np.sqrt(hidden.shape[1]))
    gates = (
        x @ weights["input_kernel"].T
        + hidden @ weights["recurrent_kernel"].T
        + weights["cell_bias"]
    )
    i, o, g = np.split(gates, 3, axis=1)
    cell = cell + _sigmoid(i) * (np.tanh(g) - cell)
    return (_sigmoid(o) * np.tanh(cell)) @ weights["projection"].T, cell


def log_probs(weights: Weights, hidden: np.ndarray) -> np.ndarray:
    """Log-probabilities of the next token: float32 [n, embedding] -> float32 [n, vocabulary]."""
    logits: np.ndarray = hidden @ weights["embedding"].T + weights["output_bias"]
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def mean_loss(weights: Weights, rows: np.ndarray) -> float:
    """Mean cross-entropy, in nats, of the targets of rows, int [n, length + 1], without padding."""
    total, count = 0.0, 0
    for chunk in _chunks(rows, 64):
        targets = chunk[:, 1:]
        scores = log_probs(weights, forward(weights, chunk[:, :-1])[targets != 0])
        total -= float(scores[np.arange(len(scores)), targets[targets != 0]].sum(dtype=np.float64))
        count += len(scores)
    return total / max(count, 1)


def _chunks(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
