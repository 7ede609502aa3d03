"""Leak: a word that one alone typed is read out of a bare mean, and out of none with noise."""

import numpy as np
import pytest

from benchmarks import leak
from benchmarks.leak import Person
from device_runtime.encoding import Encoding
from device_runtime.text import FIRST_WORD

WORDS = 500
SHAPES = {"embedding": (FIRST_WORD + WORDS, 4), "output_bias": (FIRST_WORD + WORDS,)}
DIMENSION = 5 * (FIRST_WORD + WORDS)


def person(*words):
    """Who typed these words learnt them: their rows and their biases moved, and nothing else."""
    ids = np.array(words) + FIRST_WORD
    delta = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    for array in delta.values():
        array[ids] = 0.1
    return Person(delta, np.sort(ids))


def test_noise_has_the_deviation_of_its_multiplier_in_codes():
    """Step and half range of 4 bits: 3 x norm x sqrt(1 / values) / 7.5 a code."""
    by = Encoding(40_000, 4, 0.5, 1)
    drawn = leak.noise(8.0, by, np.random.default_rng(0))
    assert drawn.dtype == np.int64 and len(drawn) == by.values
    assert drawn.std() == pytest.approx(8 * by.bound * 7.5 / 3 * np.sqrt(by.values), rel=0.02)
    assert not leak.noise(0.0, by, np.random.default_rng(0)).any()


def test_words_of_one_alone_are_read_out_of_the_bare_mean_and_not_out_of_a_noised_one():
    everybody = [person(3, 10, 20), person(3, 30, 40), person(3, 50, 60)]
    means = list(leak.means(everybody, DIMENSION, 0))
    assert [mean.multiplier for mean in means] == [0.0, *leak.MULTIPLIERS]
    alone = np.array([10, 20, 30, 40, 50, 60]) + FIRST_WORD
    right = []
    for mean in means:
        assert mean.alone.tolist() == alone.tolist()
        every = leak.read(mean.delta, Person({}, mean.words), SHAPES)
        right.append(every.right)
    assert right[0] == 7  # all different words
    assert right[-1] <= 3
