"""Attacks: what a tenth of devices that lie do to a fleet's training, with the limits and without.

    limits     a task's clipping norm as servers choose it, half of what honest devices send at most
    no limits  one so wide that no honest device comes near it, on devices that allow it

All else is real: messages of a corpus, the bundle's graph, the encoding, the server's checks. Every
fleet has the same devices, and the same of them lie. Source of the lies: `fleet/faults.py`.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fleet_studies import fleets, rules, words
from device_runtime import bundle, weights
from device_runtime.limits import OwnLimits
from device_runtime.wire import Phase
from fedboard import console
from fleet.faults import Attack, Faults
from fleet.population import PopulationSettings
from fleet.settings import FleetSettings, Training
from fleet.simulate import Fleet
from fleet.typed import Typed
from server.task import SERVED_NORM

LIARS = 0.1  # of the devices
NORMS = {"limits": SERVED_NORM, "no limits": 10.0}
LIES: Mapping[str, tuple[Attack, ...]] = {"none": ()} | {
    str(each): (each,) for each in (Attack.SIGN_FLIP, Attack.SCALING, Attack.PLANTED, Attack.CODES)
}


@dataclass(frozen=True)
class Size:
    """How large the fleets are."""

    devices: int = 1000
    rounds: int = 40
    goal: int = 20
    days: float = 2.0  # at most: where a lie has spoilt the weights, no round commits any more
    scored: int = 200  # devices


def settings(size: Size, training: Training, lie: str, norm: str, seed: int) -> FleetSettings:
    """The fleet of one lie under one clipping norm."""
    whole = rules.Size(size.devices, size.rounds, size.goal, size.days)
    of = rules.settings(whole, training, "strict", seed)
    opened = bundle.open_verified(Path(training.bundle), frozenset(training.trusted))
    plan = replace(opened.plan, clipping_norm=NORMS[norm])
    return replace(
        of,
        task=replace(of.task, plan=plan),
        limits=OwnLimits(clipping_norm=max(1.0, NORMS[norm]), least_messages=5, least_words=60),
        population=PopulationSettings(devices=size.devices),
        faults=Faults(liars=LIARS if LIES[lie] else 0.0, attacks=LIES[lie] or tuple(Attack)),
    )


def played(
    size: Size, training: Training, seed: int, out: Path, processes: int
) -> list[dict[str, Any]]:
    """Let the fleet of each lie and norm live in a folder: a row of figures each."""
    asked = [(lie, norm) for lie in LIES for norm in NORMS]
    rows = []
    with (
        ProcessPoolExecutor(processes, get_context("spawn"), fleets.alone) as executor,
        console.progress("fleets", len(asked)) as advance,
    ):
        futures = [
            executor.submit(
                one,
                settings(size, training, lie, norm, seed),
                size,
                out / f"{lie}-{norm}".replace(" ", "-"),
            )
            for lie, norm in asked
        ]
        for (lie, norm), future in zip(asked, futures, strict=True):
            rows.append({"lie": lie, "norm": norm, "seed": seed, **future.result()})
            advance(len(rows))
    return rows


def one(of: FleetSettings, size: Size, folder: Path) -> dict[str, Any]:
    """Let one of them live in a folder: its figures."""
    opened = bundle.open_verified(Path(of.training.bundle), frozenset(of.training.trusted))
    nobody = np.zeros(size.devices, bool)

    def typed() -> Typed:
        return words.typed(opened, of.training.corpus, nobody, of.seed)

    with fleets.lived(of, folder, typed) as fleet:
        return figures_of(fleet, size, folder)


def figures_of(fleet: Fleet, size: Size, folder: Path) -> dict[str, Any]:
    """What became of one fleet; `top1` is that of its last checkpoint, in per cent."""
    it = fleets.what_became(fleet, folder)
    committed = [each for each in it.rounds if each.phase is Phase.COMMITTED]
    start = fleet.shared.bundle.weights
    blobs = fleet.servers.coordinator.blobs
    last = weights.from_bytes(blobs.get(committed[-1].checkpoint)).weights if committed else start
    devices = np.arange(size.devices)[: size.scored]
    before, after = (words.scores(each, fleet.shared.typed, devices) for each in (start, last))
    return {
        "turns": len(it.turns),
        "rounds": len(committed),
        "counted": sum(each.counted for each in committed),
        "refused": sum(sum(each.dropped.values()) for each in it.rounds),
        "moved": float(weights.norm(weights.subtract(last, start))),
        "top1_before": 100.0 * before.top1 / before.targets,
        "top1": 100.0 * after.top1 / after.targets,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The figures in Markdown."""
    lines = [
        "| 10 % of devices send | limits | rounds | updates counted | top-1 %, before and after |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['lie']} | {row['norm']} | {row['rounds']} | {row['counted']:,} "
        f"| {row['top1_before']:.1f}, {row['top1']:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)
