"""Poisoning: what lying devices can do to a round under the bounds of a task that names none."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import poisoning
from benchmarks.poisoning import BEFORE, TODAY, Attack, Bounds, Ground, Look
from device_runtime.update import Header, encode
from device_runtime.wire import Plan
from server import mechanism
from server.rounds import Rules
from server.task import SERVED_NORM, TaskSettings, for_bundle, rotation_seed, task_of
from tests.toy_server import SHAPES, TOKENIZER

DIMENSION, HONEST, LIARS = 5000, 18, 2
HONEST_NORM, ROWS = 0.36, 40  # of a device that trains at a bundle's rate, and how many it has
SIGNED = Plan(learning_rate=0.1, clipping_norm=10.0)  # as bundles were signed before
LARGEST = 2**32 - 1  # examples a header can declare


def kept(settings: TaskSettings, bits: int) -> float:
    """The share of the honest mean that is left, along its own direction, when two of twenty send
    its opposite as large as they are let, and declare the most examples.
    """
    plan = replace(settings.plan, bits=bits)
    task = task_of(replace(settings, plan=plan, seed=7), TOKENIZER, SHAPES, DIMENSION)
    by, seed, rng = mechanism.of(task), rotation_seed(task, 1), np.random.default_rng(0)
    direction = rng.normal(size=DIMENSION).astype(np.float32)
    direction /= np.linalg.norm(direction)
    total = by.empty()
    for place in range(HONEST + LIARS):
        norm, rows = (HONEST_NORM, ROWS) if place < HONEST else (-plan.clipping_norm, LARGEST)
        body = encode(direction * np.float32(norm), Header(1, seed, SHAPES, bits, rows), rng)
        total = by.add(total, [by.weigh(by.check(body, 1), 0)])
    return float(by.finish(total, 1) @ direction) / HONEST_NORM


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_two_flipped_updates_of_twenty_leave_most_of_a_round_s_progress(bits):
    # (18 x 32 x 0.36 - 2 x 32 x 0.5) / (20 x 32 x 0.36) = 0.76; at few bits rounding takes honest
    # norms over the clip, and all count alike: (18 - 2) / 20 of what is left of them
    assert kept(for_bundle(TaskSettings(), SIGNED), bits) > (0.7 if bits == 8 else 0.3)


def test_under_the_bounds_of_before_they_turned_the_round_around():
    before = TaskSettings(SIGNED, rules=Rules(max_weight=256))
    # (18 x 40 x 0.36 - 2 x 256 x 10) / ((18 x 40 + 2 x 256) x 0.36)
    assert kept(before, 8) == pytest.approx(-10.96, abs=0.1)


def test_the_benchmark_plays_real_rounds_in_which_today_s_bounds_lose_less(tiny_bundle):
    ids = tiny_bundle.vocabulary.ids
    said = [ids(words.split()) for words in ("the cat sat", "a cat ate the fish", "the fish sat")]
    ground = Ground(tiny_bundle, [said * 4] * 6, said, ids(["the", "cat", "fish"]), devices=5)
    moved = {}
    for bounds in (BEFORE, TODAY):
        start, after = poisoning.play(ground, bounds, Attack("write", 1), 1)
        moved[bounds] = abs(np.log(after.probability / start.probability))
    assert moved[TODAY] < moved[BEFORE] / 5


def test_the_table_has_a_row_a_column_and_what_an_attack_costs_is_beside_none():
    start, after = Look(0, 18.0, 150.0, 0.0001, 700), Look(1, 17.25, 2e6, 0.5, 1)
    columns = {
        (TODAY, Attack()): [start, replace(start, round=1)],
        (TODAY, Attack("plant", 2)): [start, after],
    }
    assert poisoning.lost(columns, TODAY, Attack("plant", 2)) == 0.75
    (*_, last) = poisoning.table(columns).splitlines()
    assert last.endswith("| plant, 2 | 18.0 / 150; 0.0001, 700 | 17.2 / 2e+06; 0.5000, 1 |")
    assert Bounds(SERVED_NORM, Rules().max_weight) == TODAY
