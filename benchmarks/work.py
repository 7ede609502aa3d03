"""The work of the speed benchmark: the built-in corpus -> which clients train in which round, on
which rows, in which order.

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
    numbers = recipe(cohort, rounds, seed)
    found = corpora.load("chitchat")
    words = vocabulary.build(corpus.token_lists(found.train), VOCABULARY)

    def rows(users: corpus.Users, most: int) -> list[np.ndarray]:
        made = (
            examples.rows(
                (words.ids(utterance.tokens) for utterance in utterances), numbers.plan.length
            )
            for utterances in users.values()
        )
        return [one[-most:] for one in made if len(one)]

    population = rows(found.train, numbers.plan.max_rows)
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
            participations.append(
                flat[flat[:, 0] != 0]
            )  # the last batch is filled with empty rows, which are nobody's work
    held_out = np.concatenate(
        rows(dict(list(found.validation.items())[:HELD_OUT_USERS]), HELD_OUT_ROWS)
    )
    weights = network.initial_weights(
        network.size_named(SIZE), words, np.random.default_rng([seed, 0])
    )
    return Work(
        *(cohort, rounds, numbers.plan.batch_size, numbers.plan.learning_rate, seed),
        *(*_stacked(participations), *_stacked(population), held_out, weights),
    )


def _stacked(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.cumsum([0, *map(len, parts)]), np.concatenate(parts)
