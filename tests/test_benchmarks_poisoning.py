"""Poisoning: what lying devices can do to a round under the bounds of a task that names none."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import poisoning
from benchmarks.poisoning import MASKED, PLAIN, WIDE, Attack, Bounds, Ground, Look
from device_runtime import encoding
from device_runtime.terms import Aggregation
from device_runtime.wire import Plan
from server.mechanism import beyond_reach
from server.task import SERVED_NORM, TaskSettings, encoding_of, for_bundle, task_of
from tests.toy_server import SHAPES, TOKENIZER

DIMENSION, HONEST, LIARS = 5000, 18, 2
HONEST_NORM = 0.36  # of a device that trains at a bundle's rate
SIGNED = Plan(learning_rate=0.1, clipping_norm=10.0)  # as bundles are signed
SEEN = TaskSettings(aggregation=Aggregation.PLAIN)


def kept(settings: TaskSettings, bits: int) -> float:
    """The share of the honest mean that is left, along its own direction, when two of twenty send
    its opposite as large as they are let.
    """
    plan = replace(settings.plan, bits=bits)
    by = encoding_of(task_of(replace(settings, plan=plan, seed=7), TOKENIZER, SHAPES, DIMENSION))
    rng = np.random.default_rng(0)
    direction = rng.normal(size=DIMENSION).astype(np.float32)
    direction /= np.linalg.norm(direction)
    total = np.zeros(by.values, np.int64)
    for place in range(HONEST + LIARS):
        norm = HONEST_NORM if place < HONEST else -100.0
        codes = encoding.encode({"all": direction * np.float32(norm)}, by, rng)
        assert encoding.is_within(encoding.norm(codes, by), by)
        total += codes
    return float(encoding.mean(total, HONEST + LIARS, by) @ direction) / HONEST_NORM


@pytest.mark.parametrize("bits", [4, 8])
def test_two_flipped_updates_of_twenty_leave_most_of_a_round_s_progress(bits):
    # (18 x 0.36 - 2 x 0.5) / (20 x 0.36)
    assert kept(for_bundle(SEEN, SIGNED), bits) == pytest.approx(0.76, abs=0.02)


def test_under_the_norm_that_bundles_are_signed_with_they_turn_the_round_around():
    # (18 x 0.36 - 2 x 10) / (20 x 0.36)
    assert kept(replace(SEEN, plan=SIGNED), 8) == pytest.approx(-1.88, abs=0.15)


@pytest.fixture
def ground(tiny_bundle):
    ids = tiny_bundle.vocabulary.ids
    said = [ids(words.split()) for words in ("the cat sat", "a cat ate the fish", "the fish sat")]
    return Ground(tiny_bundle, [said * 4] * 6, said, ids(["the", "cat", "fish"]), devices=5)


def moved(ground: Ground, bounds: Bounds, attack: Attack) -> float:
    start, after = poisoning.play(ground, bounds, attack, 1)
    return abs(np.log(after.probability / start.probability))


def test_the_benchmark_plays_real_rounds_in_which_a_smaller_norm_loses_less(ground):
    write = Attack("write", 1)
    assert moved(ground, PLAIN, write) < moved(ground, WIDE, write) / 5


def test_under_masks_one_device_has_the_mean_to_itself_as_long_as_it_is_within_reach(ground):
    wide = replace(MASKED, clipping_norm=10.0)  # the others' deltas are short beside it
    assert moved(ground, wide, Attack("swap", 1)) > 3 * moved(ground, wide, Attack("write", 1))


def test_a_round_in_which_a_device_sends_any_numbers_is_refused_whole(ground):
    start, after = poisoning.play(ground, MASKED, Attack("break", 1), 1)
    assert "and 5 devices reach 75" in after.refused
    assert replace(after, round=0, refused="") == start


def test_what_takes_the_mean_is_just_within_the_reach_of_honest_devices():
    task = task_of(
        replace(for_bundle(SEEN, replace(SIGNED, bits=4)), seed=7), TOKENIZER, SHAPES, DIMENSION
    )
    by, rng = encoding_of(task), np.random.default_rng(0)
    drawn = rng.normal(size=(20, DIMENSION)).astype(np.float32)
    each = [{"all": row * np.float32(0.3 / np.linalg.norm(row))} for row in drawn]
    honest = sum(encoding.encode(delta, by, rng).astype(np.int64) for delta in each[1:])
    target = {"all": drawn[0]}
    total = honest + poisoning.swapped(target, by, 20)
    assert beyond_reach(total, 20, by) == ""
    mean = encoding.mean(total, 20, by)
    cosine = mean @ drawn[0] / np.linalg.norm(mean) / np.linalg.norm(drawn[0])
    assert (cosine > 0.9, np.linalg.norm(mean) > 0.85 * SERVED_NORM) == (True, True)


def test_the_table_has_a_row_a_column_and_what_an_attack_costs_is_beside_none():
    start, after = Look(0, 18.0, 150.0, 0.0001, 700), Look(1, 17.25, 2e6, 0.5, 1)
    columns = {
        (PLAIN, Attack()): [start, replace(start, round=1)],
        (PLAIN, Attack("plant", 2)): [start, after],
    }
    assert poisoning.lost(columns, PLAIN, Attack("plant", 2)) == 0.75
    (*_, last) = poisoning.table(columns).splitlines()
    assert last.endswith("| plant, 2 | 18.0 / 150; 0.0001, 700 | 17.2 / 2e+06; 0.5000, 1 |")
    assert Bounds(SERVED_NORM) == PLAIN
