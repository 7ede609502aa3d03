"""The work of the speed benchmark: the built-in corpus -> who trains when on which rows.

Cohorts and batches come from the project's own pure functions, so the project's simulation and
every peer do the same sums.
"""

import numpy as np

from benchmarks.peers.common import Work
from device_runtime import examples
from device_runtime.wire import Plan
from model import cohorts, corpora, corpus, network, vocabulary
from model.clients import batches
from model.recipe import Client, Recipe, Schedule, Server

VOCABULARY = 10_000  # words, beside 13 special ids and classes
SIZE = "gboard"
HELD_OUT_USERS, HELD_OUT_ROWS = 50, 10  # rows of each


def recipe(cohort: int, rounds: int, seed: int) -> Recipe:
    """Plain FedAvg, clients counted by their rows: what all peers do by default."""
    constant = Schedule("constant")
    return Recipe(
        size=SIZE,
        vocabulary=VOCABULARY,
        rounds=rounds,
        cohort=cohort,
        seed=seed,
        plan=Plan(batch_size=8, length=20, epochs=1, learning_rate=0.5, max_rows=64),
        client=Client(rows="newest", weighting="rows", schedule=constant),
        server=Server("fedavg", learning_rate=1.0, schedule=constant),
    )


def build(cohort: int, rounds: int, seed: int = 0) -> Work:
    """The work of so many rounds. The same numbers give the same work."""
    numbers = recipe(cohort, rounds, seed)
    chitchat = corpora.load("chitchat")
    words = vocabulary.build(corpus.token_lists(chitchat.train), VOCABULARY)

    def rows(users: corpus.Users, most: int) -> list[np.ndarray]:
        own_rows = (
            examples.rows(
                (words.ids(utterance.tokens) for utterance in utterances), numbers.plan.length
            )
            for utterances in users.values()
        )
        return [one[-most:] for one in own_rows if len(one)]

    population = rows(chitchat.train, numbers.plan.max_rows)
    participations, sampler = [], cohorts.start(len(population), cohort)
    for number in range(1, rounds + 1):
        chosen, sampler = cohorts.draw(
            sampler, cohort, numbers.sampling, numbers.min_separation, seed
        )
        for i in chosen:
            drawn = batches(
                population[i],
                numbers.plan,
                numbers.client,
                np.random.default_rng([seed, 2, number, int(i)]),
            )
            flat = drawn.reshape(-1, drawn.shape[-1])
            # the last batch is filled with empty rows, which are nobody's work
            participations.append(flat[flat[:, 0] != 0])
    held_out = np.concatenate(
        rows(dict(list(chitchat.validation.items())[:HELD_OUT_USERS]), HELD_OUT_ROWS)
    )
    weights = network.initial_weights(
        network.size_named(SIZE), words, np.random.default_rng([seed, 0])
    )
    starts, rows_of_all = _stacked(participations)
    population_starts, population_rows = _stacked(population)
    return Work(
        cohort,
        rounds,
        numbers.plan.batch_size,
        numbers.plan.learning_rate,
        seed,
        starts,
        rows_of_all,
        population_starts,
        population_rows,
        held_out,
        weights,
    )


def _stacked(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.cumsum([0, *map(len, parts)]), np.concatenate(parts)
