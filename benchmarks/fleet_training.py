"""What real training costs a fleet: turns a second, how busy the cores are, and whether it grows.

python -m benchmarks.fleet_training
python -m benchmarks.fleet_training --size tiny --words 2000 --devices 200 --processes 1
"""

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import bundle, config, interpreter, signing, weights
from device_runtime.terms import Aggregation
from device_runtime.weights import Checkpoint
from device_runtime.wire import Plan
from fedboard import fleet_text
from fedboard.fleet_run import UPDATE_BYTES
from fleet import begin, pool, turns
from fleet.population import PopulationSettings
from fleet.settings import Computing, FleetSettings, Training
from fleet.simulate import Fleet
from model import corpora, corpus, network, vocabulary
from model.network import SIZES
from server import memory
from server.eligibility import Policy
from server.rounds import Rules
from server.task import TaskSettings

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
EVERY = 100  # turns from one look to the next
SETTLED = 3  # looks after which memory should stay


@dataclass(frozen=True)
class Look:
    """What the processes have used so far."""

    turns: int
    seconds: float
    here_s: float  # CPU of the process that has the clock and the server
    there_s: float  # of those that train
    here_mb: float  # resident
    there_mb: float


def made(folder: Path, size: str, words: int, plan: Plan) -> None:
    """Sign a bundle that has learned nothing, with the vocabulary of the built-in corpus."""
    from conversion import export  # which loads TensorFlow

    text = vocabulary.build(corpus.token_lists(corpora.load("chitchat").train), words)
    first = network.initial_weights(SIZES[size], text, np.random.default_rng(0))
    half = weights.to_bytes(Checkpoint(first, tokenizer=text.hash), np.float16)
    content = {
        bundle.TRAIN: export.train_graph(first, plan),
        bundle.PREDICT: b"",
        bundle.TOKENIZER: text.model,
        bundle.CHECKPOINT: half,
        bundle.PLAN: config.to_json(plan),
        bundle.CARD: b"",
    }
    manifest = bundle.Manifest(
        network=size,
        embedding=SIZES[size].embedding,
        units=SIZES[size].units,
        vocabulary=len(text),
        tokenizer=text.hash,
        shapes=weights.shapes_hash(first),
        lineage=bundle.Lineage("chitchat", 0, weights.digest(half)),
        files=bundle.describe(content),
    )
    bundle.write(folder, manifest, content, KEY)


def settings(asked: argparse.Namespace, where: Path) -> FleetSettings:
    """A fleet whose devices train as often as they may."""
    return FleetSettings(
        seed=0,
        days=30,
        step_s=5,
        population=PopulationSettings(devices=asked.devices),
        training=Training(
            str(where),
            (signing.public_hex(KEY),),
            computing=Computing.POOL,
            processes=asked.processes,
        ),
        task=TaskSettings(
            rules=Rules(
                report_goal=asked.goal,
                selection_s=300.0,
                check_ins_per_s=10.0,
                rounds=asked.rounds,
            ),
            policy=Policy(min_separation=1),
            aggregation=Aggregation.PLAIN,
        ),
    )


def look(fleet: Fleet, since: float) -> Look:
    """Read what the processes have used."""
    here = psutil.Process()
    trains = [each for each in here.children() if "spawn_main" in " ".join(each.cmdline())]
    of = [each.cpu_times() for each in trains]
    return Look(
        sum(len(rows) for rows in fleet.state.ended),
        time.perf_counter() - since,
        sum(here.cpu_times()[:2]),
        sum(each.user + each.system for each in of),
        here.memory_info().rss / 1e6,
        sum(each.memory_info().rss for each in trains) / 1e6,
    )


def lived(fleet: Fleet, virtual_s: float) -> list[Look]:
    """Let a fleet live, and look at it every so many turns."""
    since = time.perf_counter()
    looks = [look(fleet, since)]

    def goes_on() -> bool:
        if sum(len(rows) for rows in fleet.state.ended) >= looks[-1].turns + EVERY:
            looks.append(look(fleet, since))
        return True

    fleet.run(virtual_s, goes_on)
    return [*looks, look(fleet, since)]


def slope(looks: list[Look], name: str) -> float:
    """MB a thousand turns, after the first looks. Nan for fewer than two."""
    late = looks[SETTLED:]
    if len(late) < 2:
        return float("nan")
    line = np.polyfit([each.turns for each in late], [getattr(each, name) for each in late], 1)
    return float(1000 * line[0])


def told(looks: list[Look], processes: int) -> None:
    """Print what was seen between the first look with a turn and the last."""
    first, last = looks[1], looks[-1]
    turns_, seconds = last.turns - first.turns, last.seconds - first.seconds
    here, there = last.here_s - first.here_s, last.there_s - first.there_s
    print(f"{turns_} turns in {seconds:.1f} s: {turns_ / seconds:.1f} a second")
    print(
        f"CPU a turn: {1000 * here / turns_:.1f} ms clock and server, "
        f"{1000 * there / turns_:.1f} ms training"
    )
    share = (here + there) / (seconds * min(processes, pool.cores()))
    print(f"cores busy with it: {100 * share:.0f} % of {pool.cores()}")
    for name, words in (("here_mb", "clock and server"), ("there_mb", "training")):
        print(
            f"memory, {words}: {getattr(last, name):.0f} MB, "
            f"{slope(looks, name):+.1f} MB a thousand turns"
        )


def main() -> None:
    """Measure once, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--words", type=int, default=5000)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--goal", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--processes", type=int, default=pool.cores())
    asked = parser.parse_args()
    plan = Plan(batch_size=8, length=10, max_rows=asked.rows, learning_rate=0.5)
    with tempfile.TemporaryDirectory() as name:
        where, folder = Path(name) / "bundle", Path(name) / "fleet"
        # in a process of its own: this one stays small
        if os.fork() == 0:
            made(where, asked.size, asked.words, plan)
            os._exit(0)
        os.wait()
        folder.mkdir()
        opened = bundle.open_verified(where, frozenset({signing.public_hex(KEY)}))
        fleet_text.write(folder / begin.TYPED, "chitchat", opened, 10_000)
        fleet = begin.begin(settings(asked, where), folder)
        print(
            f"{asked.size}, {sum(a.size for a in opened.weights.values()):,} values, "
            f"{interpreter.chosen()}, {asked.processes} processes that train"
        )
        memory.give_back_large_blocks(UPDATE_BYTES)
        looks = lived(fleet, 30 * 86_400)
        told(looks, asked.processes)
        ended = np.concatenate(fleet.state.ended)
        counted = ended[ended["status"] == turns.STATUSES.index(turns.Status.COUNTED)]
        print(f"rows of a counted turn: {counted['examples'].mean():.1f}")
        fleet.close()


if __name__ == "__main__":
    main()
