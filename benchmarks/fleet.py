"""Fleet: what a call of a simulated device costs, from ten thousand devices to a million.

    python -m benchmarks.fleet [--devices 10000,100000,1000000] [--days 7] [--folder FOLDER]

Each fleet lives in a process of its own, in memory and through the real store, with people's days
and a stand-in for training. A device asks, and once it has work fetches a plan and a checkpoint and
hands an update in: each of these is an event. Devices ask seldom where they are many, so that the
server hears of about ten a second whatever their number; steps are as long, and rounds as large, as
give each fleet the same number of calls a step and of turns a call. What grows with the fleet is
what a call costs beside that. `--days` cuts the weeks short.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_runtime.terms import Aggregation
from device_runtime.wire import DAY_S, Phase, Plan
from fleet.begin import begin
from fleet.doors import Call, Door
from fleet.population import PopulationSettings
from fleet.settings import FleetSettings
from fleet.simulate import Fleet
from server.eligibility import Policy
from server.rounds import Rules
from server.task import TaskSettings

SIZES = 10_000, 100_000, 1_000_000
TICK_S = 300.0  # the server looks at the clock


@dataclass(frozen=True)
class Size:
    """How a fleet of so many devices, or more, is run."""

    devices: int
    days: float
    step_s: float
    selection_s: float
    report_goal: int


RUNS = (
    Size(1, 0.25, 60.0, 300.0, 80),
    Size(50_000, 0.7, 40.0, 120.0, 80),
    Size(500_000, 7.0, 20.0, 60.0, 85),
)


@dataclass(frozen=True)
class Cost:
    """What one fleet did, and what that took."""

    devices: int
    check_ins: int
    turns: int
    calls: int  # check-ins, and what turns ask
    rounds: int  # that are over
    committed: int
    begin_s: float  # until the first day begins
    wall_s: float  # of its days
    cpu_s: float
    server_s: float  # of `cpu_s`: the server answers
    peak_mb: float

    @property
    def event_us(self) -> float:
        """Microseconds of one core for a call, all included."""
        return 1e6 * self.cpu_s / max(1, self.calls)

    @property
    def ratio(self) -> float:
        """The whole / what the server's answers alone take."""
        return self.cpu_s / max(1e-9, self.server_s)


class Clocked:
    """A door that counts calls, and the seconds that their answers take."""

    def __init__(self, door: Door):
        self._door, self.calls, self.seconds = door, 0, 0.0

    def answers(self, calls: Sequence[Call], now: float) -> list[Any]:
        """See Door."""
        began = time.process_time()
        answers = self._door.answers(calls, now)
        self.calls, self.seconds = (
            self.calls + len(calls),
            self.seconds + time.process_time() - began,
        )
        return answers

    def close(self) -> None:
        """See Door."""
        self._door.close()


def settings_of(devices: int, days: float) -> FleetSettings:
    """A fleet of so many devices, that lives so many days at most."""
    size = next(each for each in reversed(RUNS) if each.devices <= devices)
    rules = Rules(
        size.report_goal,
        over_selection=1.3,
        selection_s=size.selection_s,
        check_ins_per_s=10.0,
    )
    return FleetSettings(
        seed=1,
        days=min(days, size.days),
        step_s=size.step_s,
        tick_s=TICK_S,
        population=PopulationSettings(devices=devices),
        task=TaskSettings(
            Plan(batch_size=8, length=10, max_rows=64),
            rules=rules,
            policy=Policy(min_separation=2),
            seed=1,
            aggregation=Aggregation.PLAIN,
        ),
    )


def cost_of(settings: FleetSettings, folder: Path) -> Cost:
    """Let a fleet live in a folder that is empty, and measure it."""
    doors: list[Clocked] = []

    def watched(door: Door) -> Door:
        doors.append(Clocked(door))
        return doors[-1]

    began = time.perf_counter()
    fleet = begin(settings, folder, watched=watched)
    lived, cpu = time.perf_counter(), time.process_time()
    fleet.run(settings.days * DAY_S)
    cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - lived
    phases = _phases(fleet)
    fleet.close()
    return Cost(
        settings.population.devices,
        sum(fleet.state.check_ins.values()),
        len(fleet.state.ended),
        doors[0].calls,
        len(phases),
        phases.count(Phase.COMMITTED),
        lived - began,
        wall_s,
        cpu_s,
        doors[0].seconds,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    )


def _phases(fleet: Fleet) -> list[Phase]:
    """Of all rounds that are over."""
    phases: list[Phase] = []
    before: int | None = None
    while rounds := fleet.servers.coordinator.reports(fleet.now, before=before).rounds:
        before = rounds[0].round
        over = Phase.COMMITTED, Phase.ABANDONED
        phases += [each.phase for each in rounds if each.phase in over]
    return phases


def table(costs: Sequence[Cost]) -> str:
    """Costs as a table of Markdown."""
    lines = [
        "| devices | check-ins | turns | rounds | closed | wall s | us a call | / server alone | "
        "peak MB | begin s |",
        "|" + "---:|" * 10,
    ]
    for each in costs:
        closed = each.committed / max(1, each.rounds)
        lines.append(
            f"| {each.devices:,} | {each.check_ins:,} | {each.turns:,} | {each.rounds:,} | "
            f"{closed:.1%} | {each.wall_s:,.0f} | {each.event_us:.0f} | {each.ratio:.2f} | "
            f"{each.peak_mb:,.0f} | {each.begin_s:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", default=",".join(map(str, SIZES)))
    parser.add_argument("--days", type=float, default=7.0)
    parser.add_argument("--folder", type=Path, default=None)
    args = parser.parse_args()
    costs = []
    # a process of its own each: the peak of memory is one fleet's
    alone = multiprocessing.get_context("spawn")
    for devices in map(int, args.devices.split(",")):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder, alone.Pool(1) as pool:
            given = settings_of(devices, args.days), Path(folder) / "fleet"
            costs.append(pool.apply(cost_of, given))
        print(table(costs[-1:]), flush=True)
    print(table(costs))


if __name__ == "__main__":
    main()
