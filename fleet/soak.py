"""The soak: many short fleets, each made up from its seed, in which everything goes wrong.

    seed -> settings: how many devices, which rules, who adds up, which faults and how often
         -> a fleet that lives some hours, watched: fleet/invariants.py
         -> nothing, or what is wrong and the command that shows it again

The same seed is the same fleet. `make fleet-soak SEEDS=1000` runs many, on all cores.
"""

import argparse
import contextlib
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from device_runtime.noise import Mechanism, Noise
from device_runtime.terms import Aggregation
from device_runtime.wire import Plan
from fleet.begin import begin
from fleet.faults import SHARE, Faults
from fleet.population import Lives, PopulationSettings
from fleet.settings import FleetSettings, Training
from fleet.watch import Violated, Watch
from server.eligibility import Policy
from server.rounds import Mode, Rules
from server.step import ServerStep
from server.task import TaskSettings

HOURS = 6  # that a fleet lives at most
ROUNDS = 4  # committed, after which it is over
OFTEN = 0.25  # the most often that a fault of these fleets strikes
RARELY = {"stragglers": 0.3, "liars": 0.3, "skewed": 0.5, "delays": 0.5, "reordered": 0.5}
SAYS = "Let many short fleets live, made up from their seeds, in which everything goes wrong."
SAYS_S = 5.0  # between two lines of progress


@dataclass(frozen=True)
class Result:
    """What came of one seed."""

    seed: int
    wrong: str  # and how to see it again; empty if nothing is
    committed: int = 0
    counted: int = 0
    looks: int = 0  # invariants asked
    aggregation: str = ""


def settings(seed: int) -> FleetSettings:
    """The fleet of a seed."""
    rng = np.random.default_rng(seed)

    def one_of(*choices: object) -> object:
        return choices[int(rng.integers(len(choices)))]

    aggregation = one_of(Aggregation.PLAIN, Aggregation.PLAIN, Aggregation.SECAGG)
    buffered = aggregation is not Aggregation.SECAGG and rng.random() < 0.3
    goal = int(rng.integers(2, 6)) if aggregation is Aggregation.PLAIN else int(rng.integers(4, 7))
    rules = Rules(
        report_goal=goal,
        over_selection=float(rng.uniform(1.0, 2.0)),
        selection_s=float(one_of(0.0, 60.0, 300.0)),
        reporting_s=float(one_of(300.0, 900.0, 1800.0)),
        rounds=ROUNDS,
        retry_s=float(one_of(60.0, 200.0)),
        permanent_retry_s=600.0,
        check_ins_per_s=100.0,
        mode=Mode.BUFFERED if buffered else Mode.SYNCHRONOUS,
        max_staleness=int(rng.integers(0, 4)),
    )
    noise = None
    if rng.random() < 0.4:
        kind = one_of(Mechanism.GAUSSIAN, Mechanism.TREE, Mechanism.BLT)
        separation, epsilon = int(rng.integers(1, 4)), float(one_of(3.0, 30.0, 1000.0))
        noise = Noise(kind, float(rng.uniform(0.5, 2.0)), epsilon, 1e-6, 20, 4)
    else:
        separation = int(rng.integers(1, 4))
    step = ServerStep() if noise or rng.random() < 0.5 else ServerStep(0.1, algorithm="fedadam")
    task = TaskSettings(
        Plan(batch_size=8, length=10, max_rows=64, bits=int(one_of(2, 4, 8))),
        rules=rules,
        policy=Policy(min_separation=separation),
        step=step,
        seed=seed,
        aggregation=aggregation,
        least_count=2,
        noise=noise,
        compression=int(one_of(1, 1, 4)),
        turn=int(one_of(0, 0, 2)) if not buffered else 0,
    )
    rates = {
        each.name: float(rng.random() * RARELY.get(each.name, OFTEN) * (rng.random() < 0.7))
        for each in fields(Faults)
        if SHARE in getattr(each.type, "__metadata__", ())
    }
    return FleetSettings(
        seed=seed,
        days=HOURS / 24,
        step_s=float(one_of(5.0, 20.0)),
        tick_s=120.0,
        population=PopulationSettings(lives=Lives.ALWAYS, devices=int(rng.integers(8, 61))),
        training=Training(values=int(one_of(1, 50, 300))),
        task=task,
        faults=Faults(**rates),
    )


def one(seed: int) -> Result:
    """Let the fleet of a seed live."""
    repeat = f"python -m fleet.soak --first {seed} --seeds 1"
    watch = Watch(repeat)
    aggregation = ""
    with tempfile.TemporaryDirectory(prefix="fedboard-soak-") as folder:
        try:
            made = settings(seed)
            aggregation = made.task.aggregation.value
            fleet = begin(made, Path(folder) / "fleet", watched=watch.at)
            try:
                watch.see(fleet)
                fleet.run(made.days * 86_400.0, watch.look)
                watch.look_back()
                rounds = fleet.servers.coordinator.reports(fleet.now).rounds
            finally:
                watch.close()
                fleet.servers.close()
        except Violated as violated:
            return Result(seed, str(violated), aggregation=aggregation)
        except Exception:
            wrong = f"seed {seed}: {traceback.format_exc()}\nto see it again: {repeat}"
            return Result(seed, wrong, aggregation=aggregation)
    committed = sum(each.phase == "committed" for each in rounds)
    counted = sum(each.counted for each in rounds)
    return Result(seed, "", committed, counted, watch.looks, aggregation)


def run(first: int, seeds: int, jobs: int) -> int:
    """Let many live, and say how they do: 0, or 1 if anything is wrong."""
    began, said = time.monotonic(), 0.0
    wrong: list[Result] = []
    kinds: Counter[str] = Counter()
    total: Counter[str] = Counter()
    numbers = range(first, first + seeds)
    with contextlib.ExitStack() as stack:
        results = map(one, numbers)
        if jobs > 1 and seeds > 1:
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(jobs))
            results = pool.imap_unordered(one, numbers)
        for done, result in enumerate(results, 1):
            kinds[result.aggregation] += 1
            total.update(committed=result.committed, counted=result.counted, looks=result.looks)
            if result.wrong:
                wrong.append(result)
                print(f"wrong: {result.wrong}", flush=True)
            passed = time.monotonic() - began
            if passed - said >= SAYS_S or done == seeds:
                said = passed
                of = f"{done:,} of {seeds:,} fleets in {passed:.0f} s"
                print(f"{of}, {len(wrong)} wrong", flush=True)
    by = ", ".join(f"{count:,} {name}" for name, count in sorted(kinds.items()))
    print(
        f"{by}: {total['committed']:,} rounds committed, {total['counted']:,} reports counted, "
        f"{total['looks']:,} invariants held"
    )
    return 1 if wrong else 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser("python -m fleet.soak", description=SAYS)
    parser.add_argument("--seeds", type=int, default=1000, help="fleets to let live (1000)")
    parser.add_argument("--first", type=int, default=0, help="seed of the first (0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    asked = parser.parse_args()
    return run(asked.first, asked.seeds, asked.jobs)


if __name__ == "__main__":
    sys.exit(main())
