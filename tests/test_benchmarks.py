"""The sums of the benchmarks: what a token costs, how memory grows, how runs become a row."""

import math
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from benchmarks import (
    device,
    device_process,
    large_corpus,
    simulation_memory,
    simulation_speed,
    upgrade_bytes,
)
from benchmarks.peers import common
from benchmarks.simulation_speed import Run
from device_runtime import patch
from device_runtime.interpreter import installed
from device_runtime.patch import Constant
from model import imported


def run(seconds=(1.0, 2.0), tokens=(100, 100), first_s=5.0, peak_mb=300.0) -> Run:
    return Run(seconds, seconds, tokens, first_s, peak_mb, 5.5, {})


def toy_work() -> common.Work:
    """Two rounds of two clients with 1, 2, 1 and 1 rows."""
    rows = np.array([[1, 5, 2], [1, 6, 2], [1, 7, 0], [1, 8, 2], [1, 9, 0]], np.int32)
    return common.Work(
        2,
        2,
        8,
        0.5,
        0,
        np.array([0, 1, 3, 4, 5]),
        rows,
        np.array([0, 2, 5]),
        rows,
        rows[:1],
        {"bias": np.ones(3, np.float32)},
    )


def test_a_token_costs_six_operations_for_each_weight_of_a_matrix_and_none_for_a_bias():
    weights = {
        "embedding": np.zeros((5, 2)),
        "projection": np.zeros((2, 3)),
        "output_bias": np.zeros(5),
    }
    assert simulation_speed.flop_per_token(weights) == 6 * (5 * 2 + 2 * 3)


def test_memory_that_grows_two_megabytes_a_look_grows_four_a_hundred_rounds():
    rounds = [50, 100, 150, 200, 250]
    # before round 100 anything may happen
    assert simulation_memory.slope(rounds, [900.0, 500.0, 300.0, 302.0, 304.0]) == pytest.approx(
        4.0
    )


def test_memory_seen_once_after_settling_has_no_slope():
    assert math.isnan(simulation_memory.slope([50, 100, 150], [1.0, 1.0, 1.0]))


def test_memory_of_a_run_that_ends_early_is_not_reported(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"round": 1}\n{"round": 2}\n')
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.exit(3)"])
    with pytest.raises(RuntimeError, match="training ended with 3 after round 2"):
        list(simulation_memory.looks(process, tmp_path / "events.jsonl", 5, 20))


def test_a_peer_is_compared_with_ours_round_by_round():
    ours, peer = (
        run(seconds=(1.0, 2.0, 4.0), tokens=(100,) * 3),
        run(seconds=(2.0, 6.0, 16.0), tokens=(100,) * 3),
    )
    row = simulation_speed.row("peer", [peer], [ours], floor=50.0)
    assert row.ours_over == pytest.approx(3.0)  # 2, 3 and 4 times as fast
    assert row.per_cpu_s == pytest.approx(100 / 6)
    assert row.per_cpu_s_range == (pytest.approx(100 / 16), pytest.approx(50.0))
    assert row.of_floor == pytest.approx(1 / 3)


def test_a_peer_without_ours_has_no_ratio_and_the_table_leaves_it_out():
    row = simulation_speed.row("peer", [run(peak_mb=300.0), run(peak_mb=400.0)], [], floor=100.0)
    assert row.ours_over is None
    assert row.peak_mb == 400.0
    assert " x" not in simulation_speed.show([row])


def test_work_comes_back_from_its_file_as_it_went_in(tmp_path):
    common.write(toy_work(), tmp_path / "work.npz")
    back = common.read(tmp_path / "work.npz")
    assert (back.cohort, back.rounds, back.learning_rate) == (2, 2, 0.5)
    np.testing.assert_array_equal(back.weights["bias"], np.ones(3))
    np.testing.assert_array_equal(back.rows, toy_work().rows)


def test_a_round_has_the_rows_of_its_own_clients_and_their_targets():
    work = toy_work()
    assert [len(rows) for number in range(2) for rows in work.round(number)] == [1, 2, 1, 1]
    assert [work.tokens(number) for number in range(2)] == [2 + 3, 2 + 1]
    assert [len(rows) for rows in work.population()] == [2, 3]


def test_what_a_process_costs_includes_its_children():
    busy = (
        "import time; kept = bytearray(30_000_000)\nwhile time.process_time() < 0.2: "
        "pass\nprint('spent', flush=True); input()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        child.stdout.readline()
        assert child.pid in common.tree(os.getpid())
        assert common.cpu_seconds([child.pid]) >= 0.15
        assert common.resident_mb([child.pid]) > 28
        assert common.cpu_seconds(common.tree(os.getpid())) > common.cpu_seconds([os.getpid()])
    finally:
        child.communicate(b"\n")
    assert common.resident_mb([child.pid]) == 0


def test_the_strip_is_asked_for_before_each_key_with_the_letters_typed_so_far():
    assert device_process.keys("i'm ok") == [
        ("", ""),
        ("", "i"),
        ("", "i'"),
        ("", "i'm"),
        ("i'm ", ""),
        ("i'm ", "o"),
    ]


def test_a_step_costs_six_operations_for_each_weight_of_a_matrix_at_each_place():
    weights = {
        "embedding": np.zeros((5, 2)),
        "projection": np.zeros((2, 3)),
        "output_bias": np.zeros(5),
    }
    assert device_process.step_flop(weights, batch=4, length=6) == 6 * (5 * 2 + 2 * 3) * 4 * 6


def test_the_products_of_a_step_have_the_operations_that_are_counted(monkeypatch):
    class Counted(np.ndarray):
        done = 0

        def __matmul__(self, other):
            Counted.done += 2 * self.shape[0] * self.shape[1] * other.shape[1]
            return np.asarray(self) @ np.asarray(other)

    shapes = {
        "embedding": (7, 2),
        "input_kernel": (9, 2),
        "recurrent_kernel": (9, 2),
        "projection": (2, 3),
    }
    weights = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    random = np.random.default_rng
    monkeypatch.setattr(
        np.random,
        "default_rng",
        lambda seed: type(
            "R", (), {"random": lambda _, *asked: random(seed).random(*asked).view(Counted)}
        )(),
    )
    device_process.products(weights, batch=4, length=6)()
    assert Counted.done == device_process.step_flop(weights, batch=4, length=6)


@pytest.mark.process
def test_the_devices_benchmarks_run_from_end_to_end(tiny_bundle, trusted, corpus_file, tmp_path):
    key, data = tmp_path / "maker.pub", tmp_path / "data"
    key.write_text(next(iter(trusted)))
    imported.import_file(corpus_file, data)
    options = [
        "--bundle",
        str(tiny_bundle.path),
        "--trust",
        str(key),
        "--data",
        str(data),
        "--people",
        "1",
        "--repeats",
        "2",
    ]
    figures = device.main([*options, "--only", "typing,predicting,finetuning,masking,step,sizes"])
    assert all(figure.value > 0 for figure in figures)
    assert {
        "memory, predicting: peak",
        *(f"train step, {runtime.name}: times the floor" for runtime in installed()),
        "upload, 8 bits",
    } <= {figure.name for figure in figures}


def test_a_figure_above_its_bar_is_called_missed():
    assert device.Figure("memory", 71.0, "MB", 70.0).verdict == "MISSED"
    assert device.Figure("memory", 70.0, "MB", 70.0).verdict == "met"
    assert "MISSED" in device.show([device.Figure("memory", 71.0, "MB", 70.0)])


def test_a_large_file_is_the_same_each_time_and_its_users_are_of_unequal_size():
    def messages(seed: int) -> list[tuple[str, str, float]]:
        counts = Counter({"we": 5, "see": 3, "it": 2})
        return list(large_corpus.messages(counts, rows=300, users=40, words=5, seed=seed))

    rows = messages(seed=1)
    assert rows == messages(seed=1)
    assert rows != messages(seed=2)
    sizes = Counter(user for user, _, _ in rows).most_common()
    assert sizes[0][1] > 5 * sizes[-1][1]
    assert 3 < np.mean([len(text.split()) for _, text, _ in rows]) < 7


@pytest.mark.process
def test_the_benchmark_of_a_large_corpus_runs_from_end_to_end(tiny_bundle, trusted, tmp_path):
    key = tmp_path / "maker.pub"
    key.write_text(next(iter(trusted)))
    options = ["--folder", str(tmp_path), "--rows", "400", "--users", "30", "--words", "6"]
    options += ["--bundle", str(tiny_bundle.path), "--trust", str(key), "--score-users", "2"]
    options += ["--beside", str(tmp_path / "large")]
    costs = large_corpus.main([*options, "--only", "import,stats,evaluate"])
    steps = ["import", "stats", "stats", "evaluate", "evaluate"]
    assert [(cost.step, cost.code) for cost in costs] == [(step, 0) for step in steps]
    assert all(cost.peak_mb > 20 for cost in costs)


def test_noise_of_a_round_adds_up_over_the_rounds_of_an_upgrade():
    first = {"embedding": np.zeros((40, 50), np.float32)}
    moves = [np.full(2000, 0.5)] * 40
    quiet = upgrade_bytes.checkpoints(first, moves, upgrade_bytes.Noise())
    assert [float(each["embedding"].mean()) for each in quiet] == [0, 10, 20]
    noise = upgrade_bytes.Noise(2.0, 0.5, 10)  # 0.1 of a mean
    noised = upgrade_bytes.checkpoints(first, moves, noise)
    apart = noised[1]["embedding"] - quiet[1]["embedding"]
    assert float(apart.std()) == pytest.approx(0.1 * np.sqrt(20), rel=0.05)


def test_the_least_bytes_of_codes_half_of_which_are_one_off_are_a_bit_each():
    constant = Constant("int8", 4, 64, 0)
    array = np.arange(-32, 32) / 32
    array[0] = -127 / 64  # a step is 1 / 64
    moved = array + np.where(np.arange(64) % 2, 1 / 64, 0)
    before, after = (
        patch.predict(bytes(68), {"a": constant}, {"a": each.astype(np.float32)})
        for each in (array, moved)
    )
    assert upgrade_bytes.entropy(before, after, constant) == 8
    assert upgrade_bytes.entropy(before, before, constant) == 0
