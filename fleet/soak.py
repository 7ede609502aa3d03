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
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

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
from server.task import Peers, TaskSettings

HOURS = 3  # that a fleet lives at most
MESSAGES = 300  # typed on a device before, median: some have too few
ROUNDS = 3  # committed, after which it is over
LIKELY = 0.5  # that a fleet has a fault at all
OFTEN = 0.1  # and how often that strikes at most, but for these
STRIKES = {
    "stragglers": 0.3,
    "liars": 0.3,
    "skewed": 0.5,
    "delays": 0.5,
    "reordered": 0.5,
    "server_deaths": 0.05,
    "helper_deaths": 0.05,
}
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

    def one_of(*choices: Any) -> Any:
        return choices[int(rng.integers(len(choices)))]

    plain, helper, secagg = Aggregation
    aggregation = one_of(plain, plain, plain, helper, helper, secagg)
    buffered = aggregation is not secagg and rng.random() < 0.3
    goal = int(rng.integers(4, 7) if aggregation is secagg else rng.integers(2, 6))
    rules = Rules(
        report_goal=goal,
        min_reports=one_of(None, goal),
        over_selection=float(rng.uniform(1.0, 2.0)),
        selection_s=one_of(0.0, 60.0, 300.0),
        reporting_s=300.0 if aggregation is secagg else one_of(300.0, 900.0),
        rounds=ROUNDS,
        retry_s=one_of(100.0, 300.0),
        permanent_retry_s=1200.0,
        mode=Mode.BUFFERED if buffered else Mode.SYNCHRONOUS,
        max_staleness=int(rng.integers(0, 4)),
    )
    noise = None
    if rng.random() < 0.4:
        epsilon, multiplier = one_of(15.0, 40.0, 1000.0), float(rng.uniform(0.5, 2.0))
        noise = Noise(one_of(*Mechanism), multiplier, epsilon, 1e-6, 20, 4)
    is_plain = noise is not None or rng.random() < 0.5
    task = TaskSettings(
        Plan(batch_size=8, length=10, max_rows=64, bits=one_of(2, 4, 8)),
        rules=rules,
        policy=Policy(min_separation=int(rng.integers(1, 4))),
        step=ServerStep() if is_plain else ServerStep(0.1, algorithm="fedadam"),
        seed=seed,
        aggregation=aggregation,
        least_count=2,
        secagg=Peers(0.0, 0.1, semi_malicious=bool(rng.random() < 0.5)),
        noise=noise,
        compression=one_of(1, 1, 4),
        turn=0 if buffered else one_of(0, 0, 2),
    )
    rates: dict[str, Any] = {
        each.name: float(rng.uniform(0, STRIKES.get(each.name, OFTEN)) * (rng.random() < LIKELY))
        for each in fields(Faults)
        if SHARE in getattr(each.type, "__metadata__", ())
    }
    return FleetSettings(
        seed=seed,
        days=HOURS / 24,
        step_s=one_of(10.0, 30.0),
        tick_s=300.0,
        population=PopulationSettings(
            lives=Lives.ALWAYS, devices=int(rng.integers(8, 31)), first_messages=MESSAGES
        ),
        training=Training(values=one_of(1, 50, 300)),
        task=task,
        faults=Faults(**rates),
    )


def one(seed: int) -> Result:
    """Let the fleet of a seed live."""
    return lived(settings(seed), f"python -m fleet.soak --first {seed} --seeds 1")


def lived(settings: FleetSettings, repeat: str) -> Result:
    """Let a fleet live, and watch it. `repeat` is the command that does so again."""
    watch, aggregation = Watch(repeat), settings.task.aggregation.value
    with tempfile.TemporaryDirectory(prefix="fedboard-soak-") as folder:
        try:
            fleet = begin(settings, Path(folder) / "fleet", watched=watch.at)
            try:
                watch.see(fleet)
                fleet.run(settings.days * 86_400.0, watch.look)
                watch.look_back()
                rounds = fleet.servers.coordinator.reports(fleet.now).rounds
            finally:
                watch.close()
                fleet.close()
        except Violated as violated:
            return Result(settings.seed, str(violated), aggregation=aggregation)
        except Exception:
            wrong = f"seed {settings.seed}: {traceback.format_exc()}\nto see it again: {repeat}"
            return Result(settings.seed, wrong, aggregation=aggregation)
    committed = sum(each.phase == "committed" for each in rounds)
    counted = sum(each.counted for each in rounds)
    return Result(settings.seed, "", committed, counted, watch.looks, aggregation)


def run(first: int, seeds: int, jobs: int) -> int:
    """Let many live, and say how they do: 0, or 1 if anything is wrong."""
    began, said = time.monotonic(), 0.0
    done: list[Result] = []
    numbers = range(first, first + seeds)
    with contextlib.ExitStack() as stack:
        results: Iterable[Result] = map(one, numbers)
        if jobs > 1 and seeds > 1:
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(jobs))
            results = pool.imap_unordered(one, numbers)
        for result in results:
            done.append(result)
            if result.wrong:
                print(f"wrong: {result.wrong}", flush=True)
            passed = time.monotonic() - began
            if passed - said >= SAYS_S or len(done) == seeds:
                said, wrong = passed, sum(bool(each.wrong) for each in done)
                of = f"{len(done):,} of {seeds:,} fleets in {passed:.0f} s"
                print(f"{of}, {wrong} wrong", flush=True)
    for kind in Aggregation:
        alike = [each for each in done if each.aggregation == kind]
        rounds, counted, looks = (
            sum(getattr(each, name) for each in alike) for name in ("committed", "counted", "looks")
        )
        print(
            f"{kind}: {len(alike):,} fleets, {rounds:,} rounds committed, {counted:,} reports "
            f"counted, {looks:,} times that something must hold"
        )
    return int(any(each.wrong for each in done))


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
