"""What a training saves of its rounds by TFF's program state, read again by this version."""

import asyncio
import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from device_runtime.errors import CheckpointError
from fedboard.run import Run
from fedboard.saved import ADDED, Best, Curves, States, best_of


def test_a_state_that_kept_no_account_is_refused_by_name(tmp_path):
    with asyncio.Runner() as loop:
        states = States(Run(tmp_path), loop.run)
        states.save([np.zeros(3, np.float32)], 5)
        with pytest.raises(CheckpointError, match="an earlier version that kept no account of its"):
            states.load([np.zeros(3, np.float32), np.zeros(4, np.float32)])


def test_a_damaged_saved_state_is_named_and_the_one_before_still_serves(tmp_path):
    folder = Run(tmp_path).state
    with asyncio.Runner() as loop:
        states = States(Run(tmp_path), loop.run)
        for number in (10, 20):
            states.save([np.full(1000, number, np.float32)], number)
        (damaged,) = (folder / "program_state_20").rglob("variables.data*")
        os.truncate(damaged, 100)
        with pytest.raises(
            CheckpointError,
            match=r"program_state_20: cannot be read .*remove it to go on from the one before",
        ):
            states.load([np.zeros(1000, np.float32)])
        shutil.rmtree(folder / "program_state_20")
        assert states.load([np.zeros(1000, np.float32)])[0][0] == 10


def test_a_state_of_an_earlier_version_is_read_without_what_it_did_not_hold(tmp_path):
    best = Best(0.25, "abc", 4, 2, 12)
    with asyncio.Runner() as loop:
        states = States(Run(tmp_path), loop.run)
        states.save([np.zeros(3, np.float32), *best.values()[:-ADDED]], 5)
        values, *kept = states.load([np.ones(3, np.float32), *Best().values()], ADDED)
        assert values.tolist() == [0, 0, 0]
        assert best_of(kept) == Best(0.25, "abc")
        states.save([np.zeros(3, np.float32), *best.values()], 6)
        _, *kept = states.load([np.ones(3, np.float32), *Best().values()], ADDED)
        assert best_of(kept) == best


def test_the_curves_of_an_earlier_version_go_on_with_the_columns_of_this_one(tmp_path):
    run = Run(tmp_path)
    golden = Run(Path(__file__).parent / "golden" / "run").metrics.read_text()
    run.metrics.write_text(golden + "4,4.")  # and half a line
    with asyncio.Runner() as loop:
        Curves(run, loop.run).release(4, {"loss": 4.0, "loss_p50": 3.9})
    with open(run.metrics, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["round"] for row in rows] == ["1", "2", "3", "4"]
    assert (rows[0]["loss"], rows[0]["top1"], rows[0]["loss_p50"]) == ("5.5", "0.05", "")
    assert (rows[3]["loss"], rows[3]["loss_p50"]) == ("4.0", "3.9")
