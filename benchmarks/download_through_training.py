"""What a device downloads early, midway and late in a training.

The difference from the checkpoint of some rounds before, of the whole one's size:

python benchmarks/download_through_training.py configs/four-bits.toml --bits 4 > sizes.txt
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from device_runtime import difference, weights
from device_runtime.config import from_toml
from device_runtime.errors import FedboardError
from device_runtime.weights import Checkpoint, Weights
from fedboard.run import Run, Settings
from model import corpora, worker
from model.clients import Clients

APART = (1, 2, 5, 20)
ENDS = (21, 110, 200)  # rounds whose checkpoint is fetched


def main() -> None:
    """Measure, and print what the head of this file says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--bits", type=int, help="encode updates as devices do")
    parser.add_argument(
        "--grids",
        type=int,
        nargs="*",
        default=[4096, 1024],
        help="also: weights rounded to multiples of one in so many",
    )
    parser.add_argument("--stop", type=int, default=ENDS[-1], help="after this round")
    asked = parser.parse_args()
    settings = from_toml(Settings, asked.config)
    if asked.bits:
        recipe = settings.recipe
        settings = replace(
            settings,
            recipe=replace(recipe, encoded=True, plan=replace(recipe.plan, bits=asked.bits)),
        )
    from fedboard.train import beginning
    from model import simulation

    users = corpora.load(settings.data)
    words, first = beginning(settings, Run(Path()), users, False)
    wanted = {end - apart for end in ENDS for apart in (0, *APART)}
    kept: dict[int, Weights] = {}
    with worker.running(len(os.sched_getaffinity(0))):
        for done in simulation.train(
            first.weights, Clients(users.train, words, settings.recipe.plan.length), settings.recipe
        ):
            if done.number in wanted:
                kept[done.number] = done.weights
            if done.number in ENDS:
                show(done.number, kept, asked.grids)
            if done.number >= asked.stop:
                break


def show(end: int, kept: dict[int, Weights], grids: list[int]) -> None:
    """Print a line for each distance to the round at the end, exact and on each grid."""
    for apart in APART:
        shares = []
        for grid in (0, *grids):
            old, new = (travelling(kept[number], number, grid) for number in (end - apart, end))
            encoded = difference.encode(old, new)
            assert difference.apply(old, encoded) == new
            shares.append(
                f"{'on a grid of 1/' + format(grid) if grid else 'exact'} {len(encoded):,} "
                f"({len(encoded) / len(new):.1%})"
            )
        print(f"round {end - apart} -> {end}, {apart} apart: {', '.join(shares)}", flush=True)


def travelling(exact: Weights, number: int, grid: int) -> bytes:
    """The file a device gets, as float16; with a grid, weights are rounded to its multiples."""
    rounded = exact
    if grid:  # + 0.0: no negative zeros
        rounded = {name: np.rint(array * grid) / grid + 0.0 for name, array in exact.items()}
    return weights.to_bytes(Checkpoint(rounded, number), np.float16)


if __name__ == "__main__":
    try:
        main()
    except FedboardError as error:
        sys.exit(str(error))
