"""Rules: whom the conditions of training keep out, and what a looser rule gains them.

    strict         devices wait until they charge, are on unmetered WiFi and idle
    any-network    they do not wait for WiFi: their owners let them train by mobile data

Everything of a device's turn is real: messages of a corpus, the bundle's graph, the encoding. In
each fleet as many updates are counted. Who has no WiFi at home speaks a dialect (`words.py`).
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.fleet_studies import fleets, words
from device_runtime import bundle, weights
from device_runtime.limits import OwnLimits
from device_runtime.wire import DAY_S, Phase
from fleet import population, tables
from fleet.assignments import assignments
from fleet.population import Population, PopulationSettings
from fleet.settings import FleetSettings, Training
from fleet.simulate import Fleet
from fleet.typed import Typed
from server.rounds import Rules
from server.step import ServerStep

RULES: dict[str, tuple[str, ...]] = {"strict": (), "any-network": ("unmetered",)}
SCORED = 400  # devices of a group whose messages are scored, at most
LOOKS = 10  # checkpoints that are scored


@dataclass(frozen=True)
class Size:
    """How large the fleets are."""

    devices: int = 10_000
    rounds: int = 500
    goal: int = 100
    days: float = 60.0  # at most


def settings(size: Size, training: Training, rule: str, seed: int) -> FleetSettings:
    """The fleet of one rule."""
    task = replace(
        fleets.COMMON.task,
        plan=None,
        rules=Rules(
            report_goal=size.goal,
            rounds=size.rounds,
            selection_s=300.0,
            reporting_s=1200.0,
            retry_s=200.0,
        ),
        step=ServerStep(algorithm="fedavgm"),
    )
    return replace(
        fleets.COMMON,
        seed=seed,
        step_s=10.0,
        days=size.days,
        vouched=RULES[rule],
        population=PopulationSettings(devices=size.devices),
        training=training,
        task=task,
        # rows of ten words are few messages
        limits=OwnLimits(least_messages=5, least_words=60),
    )


def played(size: Size, training: Training, seed: int, out: Path) -> dict[str, Any]:
    """Let the fleets of all rules live in a folder, each in a process of its own: all figures of
    the study.
    """
    with ProcessPoolExecutor(len(RULES), get_context("spawn"), fleets.alone) as processes:
        futures = {
            rule: processes.submit(one, settings(size, training, rule, seed), out / rule)
            for rule in RULES
        }
        of_rules = {rule: future.result() for rule, future in futures.items()}
    return {"size": asdict(size), "seed": seed, "rules": of_rules}


def one(of: FleetSettings, folder: Path) -> dict[str, Any]:
    """Let one of them live in a folder: its figures."""
    training, devices = of.training, of.population.devices
    installed = bundle.open_verified(Path(training.bundle), frozenset(training.trusted))
    people = population.make(of.population, devices, of.seed)

    def typed() -> Typed:
        return words.typed(installed, training.corpus, people.wifi == 0, of.seed)

    def show(fleet: Fleet) -> None:
        at_work, days = len(fleet.state.turns), fleet.state.step * of.step_s / DAY_S
        print(f"{folder.name}: day {1 + days:.2f}, {at_work} at work", flush=True)

    with fleets.lived(of, folder, typed, show) as fleet:
        return figures_of(fleet, folder)


def figures_of(fleet: Fleet, folder: Path) -> dict[str, Any]:
    """What became of one fleet."""
    it = fleets.what_became(fleet, folder)
    given = assignments(it.turns)
    times = tables.counted_by_device(it, given)
    people = it.shared.population
    committed = [each for each in it.rounds if each.phase is Phase.COMMITTED]
    speaks = people.wifi == 0
    return {
        "days": it.seconds / DAY_S,
        "check_ins": sum(it.check_ins.values()),
        "turns": len(it.turns),
        "turns_that_trained": int((it.turns["batches"] > 0).sum()),
        "updates_counted": int(times.sum()),
        "rounds_committed": len(committed),
        "drop_out": float((given.fate == tables.DROPPED_OUT).mean()),
        "never_share": float((times == 0).mean()),
        "dialect": {
            "devices": int(speaks.sum()),
            "never_share": float((times[speaks] == 0).mean()),
            "share_of_updates": float(times[speaks].sum() / max(1, times.sum())),
        },
        "bias": tables.bias(people, times),
        "why_never": tables.why_never(it, given, times),
        "looks": list(looks(fleet, [each.checkpoint for each in committed], times)),
    }


def looks(fleet: Fleet, made: list[str], times: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    """How good checkpoints are, by whose messages: the first, the last and some between."""
    blobs = fleet.servers.coordinator.blobs
    start = fleet.shared.bundle.weights
    numbers = np.unique(np.linspace(0, len(made), LOOKS + 1).astype(int))
    for number in numbers.tolist():
        values = weights.from_bytes(blobs.get(made[number - 1])).weights if number else start
        for who, devices in groups(fleet.shared.population, times):
            sums = words.scores(values, fleet.shared.typed, devices)
            yield {"round": number, "who": who, "devices": len(devices), **asdict(sums)}


def groups(people: Population, times: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Whose messages are scored: at most SCORED devices each."""
    speaks, never = people.wifi == 0, times == 0
    for who, has in (
        ("dialect", speaks),
        ("others", ~speaks),
        ("took part", ~never),
        ("never took part", never),
        ("others who took part", ~speaks & ~never),
        ("others who never did", ~speaks & never),
    ):
        devices = np.flatnonzero(has)
        if len(devices):
            yield (
                who,
                devices[np.linspace(0, len(devices) - 1, SCORED).astype(int)]
                if len(devices) > SCORED
                else devices,
            )


def table(figures: dict[str, Any]) -> str:
    """The figures of both rules in Markdown."""
    lines = [
        "| rule | turns | that trained | updates | days | never took part | of those without WiFi "
        "at home | their share of updates | top-1 %, theirs | the others' |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for rule, of in figures["rules"].items():
        last = {each["who"]: each for each in of["looks"]}
        top1 = [100 * last[who]["top1"] / last[who]["targets"] for who in ("dialect", "others")]
        dialect = of["dialect"]
        lines.append(
            f"| {rule} | {of['turns']:,} | {of['turns_that_trained']:,} "
            f"| {of['updates_counted']:,} | {of['days']:.1f} "
            f"| {100 * of['never_share']:.1f} % | {100 * dialect['never_share']:.1f} % "
            f"| {100 * dialect['share_of_updates']:.1f} % | {top1[0]:.1f} | {top1[1]:.1f} |"
        )
    return "\n".join(lines)
