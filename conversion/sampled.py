"""Sampled: text that a network says by itself, to measure on where no text of people is at hand."""

import numpy as np

from device_runtime.text import BOS, EOS, FIRST_WORD, PAD
from device_runtime.weights import Weights
from model import network


def rows(weights: Weights, count: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Rows as of examples, int32 [count, length + 1]: each token drawn as likely as the network
    takes it, after bos, up to eos or the row's end. Punctuation, unknown words and words are drawn
    alike; nothing is said without a word.
    """
    drawn = np.full((count, length + 1), PAD, np.int32)
    drawn[:, 0] = BOS
    hidden, cell = network.start(weights, count)
    for time in range(length):
        hidden, cell = network.step(weights, drawn[:, time], hidden, cell)
        scores = network.log_probs(weights, hidden)  # [count, vocabulary]
        scores[:, [PAD, BOS]] = -np.inf
        if time == 0:
            scores[:, :FIRST_WORD] = -np.inf
        shares = np.cumsum(np.exp(scores), axis=1)
        draws = rng.random((count, 1)) * shares[:, -1:]
        tokens = (shares <= draws).sum(axis=1)
        ended = np.isin(drawn[:, time], (EOS, PAD))
        drawn[:, time + 1] = np.where(ended, PAD, tokens)
    return drawn
