"""A network reads the same text alike, however it is kept."""

import numpy as np
import pytest

from device_runtime import personal
from device_runtime.reader import Reader, reader_of
from device_runtime.text import BOS
from model import network

TEXTS = ([5, 9, 20, 7], [30, 6], [12])


@pytest.fixture(params=["predict", "train", "personal float", "personal int8"])
def reader(request, tiny_bundle) -> Reader:
    weights = tiny_bundle.weights
    return {
        "predict": lambda: reader_of(tiny_bundle),
        "train": lambda: Reader(tiny_bundle.train_graph, weights),
        "personal float": lambda: reader_of(tiny_bundle, weights),
        "personal int8": lambda: reader_of(tiny_bundle, personal.shipped(tiny_bundle, weights)),
    }[request.param]()


def test_it_says_before_each_token_what_the_network_in_numpy_says(reader, tiny_bundle):
    for ids in TEXTS:
        before = np.array([[BOS, *ids[:-1]]], np.int32)
        hidden = network.forward(tiny_bundle.weights, before)[0]
        exact = network.log_probs(tiny_bundle.weights, hidden)
        assert reader.log_probs(ids) == pytest.approx(exact, abs=0.1)


def test_texts_side_by_side_are_read_as_each_alone(reader):
    state, alone = reader.start(2), [reader.log_probs(ids) for ids in TEXTS[:2]]
    for place, tokens in enumerate([[BOS, BOS], [5, 30]]):
        log_probs, state = reader.step(np.array(tokens, np.int32), state)
        for row in (0, 1):
            assert log_probs[row] == pytest.approx(alone[row][place], abs=1e-5)
