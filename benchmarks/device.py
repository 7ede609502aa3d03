"""The device's benchmarks: what suggesting, training, sizes and int8 cost, beside their bars.

.venv/bin/python -m benchmarks.device
"""

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path

from device_runtime import bundle, interpreter
from device_runtime.errors import FedboardError
from device_runtime.own_words import MOST_TOKENS
from device_runtime.update import encoded_bytes
from fedboard.run import REFERENCE, open_bundle, trusted_keys
from model import corpora, corpus

ROOT = Path(__file__).parents[1]
SCALED = 8  # bytes of a block's own scale, where codes need not add up
MULTIPLIERS = (1, 4, 8)  # of noise
COMPRESSIONS = (1, 2, 4, 8)
TYPED = 5  # newest messages of a user that are typed key by key; the earlier ones are history
# what is typed on: each beside another one, whose cost it should not be over
KINDS: dict[str, tuple[dict[str, object], str]] = {
    "network": ({}, ""),
    "own words": ({"own": True}, ""),
    "an open keyboard": ({"keyboard": True}, "own words"),
    "personal float weights": ({"personal": "float"}, "network"),
    "personal int8 file": ({"personal": "int8"}, "network"),
    "both": ({"own": True, "personal": "int8"}, "own words"),
}


@dataclass(frozen=True)
class Figure:
    """One row of the table."""

    name: str
    value: float
    unit: str
    bar: float | None = None  # at most
    of_floor: float | None = None  # how many times the floor
    note: str = ""

    @property
    def verdict(self) -> str:
        """`met` or `MISSED`, by the bar; empty where there is none."""
        return "" if self.bar is None else "met" if self.value <= self.bar else "MISSED"


@dataclass(frozen=True)
class Bench:
    """What is measured, and where."""

    folder: Path
    trusted: tuple[str, ...]
    bundle: bundle.Bundle
    users: corpus.Users
    core: int
    people: int  # users who type
    repeats: int
    litert: str  # folder with ai-edge-litert; empty: it is not measured
    data: str
    trust: tuple[str, ...]  # files

    def measure(self, name: str, **task: object) -> dict:
        """Run one measurement of `device_process.py` on one core, with one thread, on the slower of
        the interpreters unless the environment names one. Raises RuntimeError with what it said if
        it fails.
        """
        task = {
            "bundle": str(self.folder),
            "trusted": self.trusted,
            "repeats": self.repeats,
            **task,
        }
        slower = interpreter.installed()[-1].name
        one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [
                "taskset",
                "-c",
                str(self.core),
                sys.executable,
                "-m",
                "benchmarks.device_process",
                name,
            ],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={interpreter.CHOICE: slower, **os.environ, **one_thread},
        )
        if done.returncode:
            raise RuntimeError(
                f"measuring `{name}` ended with {done.returncode}: {done.stderr.strip()[-500:]}"
            )
        return json.loads(done.stdout.splitlines()[-1])

    def messages(self) -> Iterator[str]:
        """Every message of the bench's users, user by user."""
        return (utterance.text for utterance in chain.from_iterable(self.users.values()))


def typing(bench: Bench) -> Iterator[Figure]:
    """Every suggestion while test users type their newest messages."""
    chosen = [utterances for utterances in bench.users.values() if len(utterances) > TYPED][
        : bench.people
    ]
    users = [
        {
            "earlier": [each.text for each in own[:-TYPED]],
            "typed": [each.text for each in own[-TYPED:]],
        }
        for own in chosen
    ]
    plain = {"own": False, "personal": "", "keyboard": False}
    seen: dict[str, dict] = {}
    for kind, (settings, beside) in KINDS.items():
        if settings.get("personal") == "int8" and bench.bundle.manifest.constants is None:
            continue
        measured = seen[kind] = bench.measure("typing", users=users, **{**plain, **settings})
        cpu, wall, floor = (
            measured["suggestion"]["cpu_ms"],
            measured["suggestion"]["wall_ms"],
            measured["floor_ms"],
        )
        note = (
            f"{measured['keys']:,} keys; wall {wall['p99']:.2f}, longest {cpu['most']:.1f} (wall "
            f"{wall['most']:.1f}); median {cpu['p50']:.3f}"
        )
        if beside:
            theirs = seen[beside]["suggestion"]["cpu_ms"]
            note += (
                f"; {beside} times {cpu['p99'] / theirs['p99']:.2f} (median "
                f"{cpu['p50'] / theirs['p50']:.2f})"
            )
        yield Figure(
            f"suggestion, {kind}: p99", cpu["p99"], "ms CPU", 5.0, cpu["p99"] / floor, note
        )
        new = measured["new_word"]["cpu_ms"]
        read = (
            f"floor {floor:.3f} ms = {measured['bytes_read'] / 1e6:.2f} MB of weights at "
            f"{measured['read_gb_s']:.1f} GB/s"
        )
        note = f"{read}; first after opening {measured['first_ms']:.1f} (wall)"
        yield Figure(
            "  of a new word: median", new["p50"], "ms CPU", None, new["p50"] / floor, note
        )
        sent = measured["sent"]["cpu_ms"]
        yield Figure(
            "  a message sent: p99",
            sent["p99"],
            "ms CPU",
            None,
            None,
            f"median {sent['p50']:.2f}; the strip does not wait for it",
        )


def predicting(bench: Bench) -> Iterator[Figure]:
    """Memory of a process that only predicts."""
    typed = list(islice(bench.messages(), 50))
    history, tokens = [], 0
    for utterance in chain.from_iterable(bench.users.values()):
        history.append(utterance.text)
        tokens += len(utterance.tokens)
        if tokens > MOST_TOKENS:
            break
    for name, own in (
        ("predicting", False),
        (f"predicting, {min(tokens, MOST_TOKENS):,} own tokens", True),
    ):
        measured = bench.measure("predicting", messages=typed, own=own, history=history)
        yield Figure(
            f"memory, {name}: peak",
            measured["peak_mb"],
            "MB",
            70.0,
            None,
            f"{measured['now_mb']:.1f} at the end",
        )


def finetuning(bench: Bench) -> Iterator[Figure]:
    """Memory of the work of one turn, from typing log to encoded update."""
    measured = bench.measure(
        "finetuning", messages=list(islice(bench.messages(), 2 * bench.bundle.plan.max_rows))
    )
    before, after = measured["loss"]
    note = (
        f"{measured['rows']} rows, {measured['batches']} batches, loss {before:.2f} to "
        f"{after:.2f}; {measured['before_mb']:.1f} before training"
    )
    yield Figure("memory, a whole turn: peak", measured["peak_mb"], "MB", 180.0, None, note)
    yield Figure(
        "  its training",
        measured["train_cpu_s"],
        "s CPU",
        None,
        None,
        f"encoding {measured['encode_cpu_s']:.2f}",
    )


def masking(bench: Bench) -> Iterator[Figure]:
    """What hiding an update from whoever sums it costs a device, and its bytes: without noise, and
    with room for that of a helper.
    """
    cases = [(1, 0, 1), *itertools.product((100, 1000), (0, *MULTIPLIERS), COMPRESSIONS)]
    measured = bench.measure("masking", cases=cases)["cases"]
    by_case = dict(zip(cases, measured, strict=True))
    in_the_open = by_case[1, 0, 1]
    plain, size = (
        in_the_open["cpu_ms"]["p50"],
        in_the_open["bytes"] + SCALED * in_the_open["blocks"],
    )
    note = f"{plain:.1f} ms CPU; with a scale a block {size / 1e6:.3f} MB, which masked ones are "
    note += "compared with"
    yield Figure("update in the open, 8 bits", in_the_open["bytes"] / 1e6, "MB", note=note)
    for most, ratio in ((100, 1.35), (1000, 1.75)):
        hidden = by_case[most, 0, 1]
        cpu, beside = hidden["cpu_ms"]["p50"], hidden["bytes"] - hidden["words"]
        name = f"update masked, 4 bits, {most:,} devices named"
        note = f"{hidden['bytes'] / 1e6:.3f} MB; header, seal and signature {beside} bytes"
        yield Figure(f"{name}: bytes", hidden["bytes"] / size, "x", ratio, None, note)
        note = f"packed, masked, sealed, signed and on disk; p99 {hidden['cpu_ms']['p99']:.1f}"
        yield Figure("  beyond encoding", cpu, "ms CPU", 20.0, None, note)
    alone = by_case[100, 0, 1]["bytes"]
    for (most, multiplier, compression), hidden in by_case.items():
        if most == 1 or (multiplier, compression) == (0, 1):
            continue
        noise = f"noise x {multiplier}" if multiplier else "no noise"
        name = f"  {most:,} devices, {noise}, compressed {compression}"
        note = f"{hidden['bytes'] / 1e6:.3f} MB, {hidden['bits']:.1f} bits a value; "
        note += f"{hidden['bytes'] / alone:.2f} x masked without noise at 100; encoding "
        note += f"{hidden['encode_cpu_ms']:.1f} and hiding {hidden['cpu_ms']['p50']:.1f} ms CPU"
        yield Figure(name, hidden["bytes"] / size, "x", note=note)


def _litert() -> str:
    """The folder in which ai-edge-litert is installed; empty without it."""
    spec = importlib.util.find_spec("ai_edge_litert")
    return "" if spec is None or spec.origin is None else str(Path(spec.origin).parents[1])


def step(bench: Bench) -> Iterator[Figure]:
    """A train step against its matrix products alone."""
    for engine, most, folder in (
        ("tflite-runtime", 3.0, None),
        ("ai-edge-litert", 2.0, bench.litert),
    ):
        absent = engine not in {runtime.name for runtime in interpreter.installed()}
        if folder == "" or (folder is None and absent):
            continue
        measured = bench.measure("step", litert=folder)
        cpu, wall = measured["train"]["cpu_ms"], measured["train"]["wall_ms"]
        floor = (
            f"floor {measured['floor_ms']:.1f} ms = {measured['flop'] / 1e9:.2f} GFLOP at "
            f"{measured['gflop_s']:.0f} GFLOP/s"
        )
        note = (
            f"{cpu['p50']:.1f} ms CPU (wall {wall['p50']:.1f}); {floor}; "
            f"{measured['over_products']:.2f} times numpy's products in its shapes"
        )
        yield Figure(
            f"train step, {engine}: times the floor",
            measured["over_floor"],
            "x",
            most,
            measured["over_floor"],
            note,
        )


def sizes(bench: Bench) -> Iterator[Figure]:
    """Bytes a device stores, receives and sends."""
    files = bench.bundle.manifest.files
    yield Figure("predict.tflite", files[bundle.PREDICT].bytes / 1e6, "MB", 1.5)
    values = sum(array.size for array in bench.bundle.checkpoint.weights.values())
    yield Figure(
        "checkpoint, float16",
        files[bundle.CHECKPOINT].bytes / 1e6,
        "MB",
        None,
        None,
        f"{values:,} values",
    )
    yield Figure(
        "graph and checkpoint",
        (files[bundle.PREDICT].bytes + files[bundle.CHECKPOINT].bytes) / 1e6,
        "MB",
        4.5,
    )
    yield Figure("upload, 8 bits", encoded_bytes(values, 8) / 1e6, "MB", 1.45)
    yield Figure("upload, 4 bits", encoded_bytes(values, 4) / 1e6, "MB")


def int8(bench: Bench) -> Iterator[Figure]:
    """Top-1 of the shipped int8 graph and of the float checkpoint on all test positions, paired by
    user: `fedboard evaluate`.
    """
    with tempfile.TemporaryDirectory() as folder:
        # a tokenizer belongs to a bare checkpoint's run, not to a bundle's
        tokenizer = Path(folder) / bundle.TOKENIZER
        tokenizer.write_bytes(bench.bundle.content[bundle.TOKENIZER])
        targets = [str(bench.folder / bundle.CHECKPOINT), str(bench.folder)]
        options = [
            "--paired",
            "--json",
            "--data",
            bench.data,
            "--tokenizer",
            str(tokenizer),
            *chain(*(("--trust", key) for key in bench.trust)),
        ]
        command = [sys.executable, "-m", "fedboard.cli", "evaluate", *targets, *options]
        done = subprocess.run(
            ["taskset", "-c", str(bench.core), *command], capture_output=True, text=True, cwd=ROOT
        )
    if done.returncode:
        raise RuntimeError(
            f"`fedboard evaluate` ended with {done.returncode}: {done.stderr.strip()[-500:]}"
        )
    measured = json.loads(done.stdout)
    change, words = (
        measured["second_minus_first"]["top1"],
        measured["systems"][0]["summary"]["targets"],
    )
    low, high = (100 * value for value in change["interval"])
    note = f"{words:,} words; int8 minus float {low:+.3f} to {high:+.3f} (95 %, by user)"
    yield Figure("int8: top-1 lost", -100 * change["change"], "points", 0.2, None, note)


# in the order of the table
PARTS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    part.__name__: part for part in (typing, predicting, finetuning, masking, step, sizes, int8)
}


def show(figures: Sequence[Figure]) -> str:
    """The table, as text."""
    rows = [("figure", "value", "", "bar", "", "of floor", "")]
    for row in figures:
        bar, floor = (
            "" if row.bar is None else f"{row.bar:g}",
            "" if row.of_floor is None else f"{row.of_floor:.1f} x",
        )
        rows.append((row.name, f"{row.value:.3f}", row.unit, bar, row.verdict, floor, row.note))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = (1, 3, 5)  # columns aligned to the right
    aligned = [
        [
            cell.rjust(w) if i in numbers else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def main(arguments: Sequence[str] | None = None) -> list[Figure]:
    """Measure the parts asked for and print them as one table, or as JSON: the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--bundle",
        type=Path,
        default=REFERENCE,
        help="a signed bundle; by default the repository's",
    )
    parser.add_argument(
        "--trust", type=Path, action="append", help="public key of the bundle's maker"
    )
    parser.add_argument("--data", default="chitchat")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--people", type=int, default=40, help="test users who type")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument(
        "--litert",
        default=_litert(),
        help="folder with ai-edge-litert; by default where it is installed",
    )
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    opened = open_bundle(asked.bundle, asked.trust)
    trust = asked.trust or ([REFERENCE.with_suffix(".pub")] if asked.bundle == REFERENCE else [])
    bench = Bench(
        asked.bundle.resolve(),
        tuple(trusted_keys(trust)),
        opened,
        corpora.load(asked.data).test,
        asked.core,
        asked.people,
        asked.repeats,
        str(asked.litert),
        asked.data,
        tuple(str(path.resolve()) for path in trust),
    )
    figures = []
    for name in asked.only.split(","):
        print(f"measuring {name}", file=sys.stderr, flush=True)
        figures += PARTS[name](bench)
    print(
        json.dumps([asdict(row) | {"verdict": row.verdict} for row in figures])
        if asked.json
        else show(figures),
        flush=True,
    )
    return figures


if __name__ == "__main__":
    try:
        main()
    except (FedboardError, RuntimeError) as error:
        sys.exit(str(error))
