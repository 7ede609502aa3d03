"""How fast federated simulation is, against peers that do the same work.

In real tokens per CPU second on one core, and how far from the core's floor:

    python benchmarks/simulation_speed.py --cohort 8 --rounds 4 --core 1 --json result.json

Every peer is a process of its own, one after the other, pinned to one core. README.md beside this
file says what is measured and how.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import environments, work
from benchmarks.peers import common
from model import network

SAMPLE_S = 0.25  # between two looks at the memory of a peer
AGREE = 0.005  # nats by which held-out losses of one network may differ before the table says so
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)
ONE_THREAD = dict.fromkeys(_THREADS, "1")
CPU_ONLY = {
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "-1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Peer:
    """A simulator, and how its process is run."""

    title: str
    module: str  # in benchmarks/peers
    options: tuple[str, ...] = ()
    environment: str = ""  # one of environments.PACKAGES; empty is ours
    same_network: bool = True  # as all others: then its held-out loss must be theirs


PEERS = {
    "ours": Peer("Fedboard", "ours"),
    "tff": Peer("TFF, Keras model", "tff_plain"),
    "pfl": Peer("pfl", "pfl", (), "pfl"),
    "pfl-shortcuts": Peer("pfl, shortcuts", "pfl", ("--shortcuts",), "pfl"),
    "pfl-lstm": Peer(
        "pfl, shortcuts, LSTM", "pfl", ("--shortcuts", "--lstm"), "pfl", same_network=False
    ),
    "fedjax": Peer("FedJAX", "fedjax", (), "fedjax"),
}


@dataclass(frozen=True)
class Run:
    """One process: its measured rounds, the first left out."""

    seconds: tuple[float, ...]  # of each round
    cpu_seconds: tuple[float, ...]
    tokens: tuple[int, ...]
    first_s: float  # from the start of the process to the end of the first round
    peak_mb: float
    held_out_loss: float  # after the last round
    packages: dict[str, str]


@dataclass(frozen=True)
class Row:
    """A peer over all its runs: medians of single rounds, (least, greatest) beside them."""

    title: str
    per_cpu_s: float  # real tokens
    per_cpu_s_range: tuple[float, float]
    per_s: float
    per_s_range: tuple[float, float]
    ours_over: float | None  # how many times as fast ours is per CPU second, in the same rounds
    of_floor: float  # share of the tokens per CPU second that matrix products alone would allow
    first_s: float
    peak_mb: float
    held_out_loss: float
    packages: dict[str, str]


def flop_per_token(weights: dict[str, np.ndarray]) -> int:
    """FLOP of training on one real token: 6 for each weight of a matrix, forward 2, backward 4.

    Reading the embedding is no product, scoring is.
    """
    return 6 * sum(array.size for array in weights.values() if array.ndim == 2)


def row(title: str, runs: Sequence[Run], ours: Sequence[Run], floor: float) -> Row:
    """Summarise a peer. floor is in tokens per CPU second; runs and ours have the same rounds."""

    def rates(of: Sequence[Run], clock: str) -> list[float]:
        return [
            tokens / seconds
            for run in of
            for tokens, seconds in zip(run.tokens, getattr(run, clock), strict=True)
        ]

    per_cpu_s, per_s, our_rates = (
        rates(runs, "cpu_seconds"),
        rates(runs, "seconds"),
        rates(ours, "cpu_seconds"),
    )
    middle = statistics.median(per_cpu_s)
    return Row(
        title=title,
        per_cpu_s=middle,
        per_cpu_s_range=(min(per_cpu_s), max(per_cpu_s)),
        per_s=statistics.median(per_s),
        per_s_range=(min(per_s), max(per_s)),
        ours_over=statistics.median(
            our / peer for our, peer in zip(our_rates, per_cpu_s, strict=True)
        )
        if ours
        else None,
        of_floor=middle / floor,
        first_s=statistics.median(run.first_s for run in runs),
        peak_mb=max(run.peak_mb for run in runs),
        held_out_loss=runs[0].held_out_loss,
        packages=runs[0].packages,
    )


class PeerError(Exception):
    """A peer's process failed; the message holds the end of its log."""


def launch(
    python: str | Path, module: str, folder: Path, cores: Sequence[int], options: Sequence[str] = ()
) -> tuple[dict, float, float]:
    """Run a module of benchmarks/peers on some cores: its result, when it started (monotonic) and
    its peak memory in MB.

    Raises PeerError if it fails.
    """
    result, log = folder / "result.json", folder / "log"
    pinned = ["taskset", "-c", ",".join(map(str, cores))]
    command = [
        *pinned,
        str(python),
        "-m",
        f"benchmarks.peers.{module}",
        str(folder / "work.npz"),
        str(result),
        *options,
    ]
    result.unlink(missing_ok=True)
    with open(log, "wb") as output:  # never a pipe: TFF's worker would hold it open
        started, peak = time.monotonic(), 0.0
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=environments.ROOT,
            env={**os.environ, **ONE_THREAD, **CPU_ONLY},
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                peak = max(peak, common.resident_mb(common.tree(process.pid)))
                time.sleep(SAMPLE_S)
        finally:
            for pid in common.tree(process.pid) if process.poll() is None else []:
                os.kill(pid, signal.SIGKILL)
            process.wait()
    if process.returncode or not result.exists():
        raise PeerError("\n".join(log.read_text(errors="replace").splitlines()[-15:]))
    return json.loads(result.read_text()), started, peak


def run(
    peer: Peer, todo: common.Work, folder: Path, cores: Sequence[int], options: Sequence[str] = ()
) -> Run:
    """One process of a peer. Raises PeerError if it fails."""
    python = environments.python(peer.environment) if peer.environment else sys.executable
    result, started, peak = launch(python, peer.module, folder, cores, [*peer.options, *options])
    loss = result["held_out_loss"]
    if loss is None:
        with np.load(folder / "result.npz") as weights:
            loss = network.mean_loss(dict(weights), todo.held_out)
    return Run(
        seconds=tuple(np.diff(result["seconds"])[1:].tolist()),
        cpu_seconds=tuple(np.diff(result["cpu_seconds"])[1:].tolist()),
        tokens=tuple(todo.tokens(number) for number in range(1, todo.rounds)),
        first_s=result["seconds"][1] - started,
        peak_mb=peak,
        held_out_loss=loss,
        packages=result["packages"],
    )


def measure(
    names: Sequence[str], todo: common.Work, folder: Path, core: int, threads: int, repeats: int
) -> tuple[dict[str, list[Run]], list[dict]]:
    """Every peer once, then all over again in reverse: runs by peer, the floor before each turn.

    So a machine that slows down slows all. A peer that fails has fewer runs.
    """
    cores = [core, *sorted(os.sched_getaffinity(0) - {core})][:threads]
    turns: list[tuple[str, str, list[int], tuple[str, ...]]] = [
        (name, name, cores[:1], ()) for name in names
    ]
    if threads > 1:
        turns.append(("ours", f"ours-{threads}", cores, ("--threads", str(threads))))
    runs: dict[str, list[Run]] = {key: [] for _, key, _, _ in turns}
    floors = []
    for repeat in range(repeats):
        floors.append(launch(sys.executable, "gemm", folder, [core])[0])
        for name, key, pinned, options in turns[::-1] if repeat % 2 else turns:
            try:
                done = run(PEERS[name], todo, folder, pinned, options)
            except PeerError as error:
                print(f"{key} failed:\n{error}", file=sys.stderr, flush=True)
                continue
            runs[key].append(done)
            rate = sum(done.tokens) / sum(done.cpu_seconds)
            print(
                f"{repeat + 1}/{repeats} {key}: {rate:,.0f} tokens per CPU second, load "
                f"{os.getloadavg()[0]:.1f}",
                file=sys.stderr,
                flush=True,
            )
    return runs, floors


def show(rows: Sequence[Row]) -> str:
    """The rows as a table of text."""
    head = (
        "",
        "tokens/CPU s",
        "",
        "tokens/s",
        "",
        "ours is",
        "of floor",
        "first round",
        "peak MB",
        "held-out",
    )
    lines = [head]
    for one in rows:
        ratio = "" if one.ours_over is None else f"{one.ours_over:.2f} x"
        spans = [f"{low:,.0f}-{high:,.0f}" for low, high in (one.per_cpu_s_range, one.per_s_range)]
        rates = (f"{one.per_cpu_s:,.0f}", spans[0], f"{one.per_s:,.0f}", spans[1])
        lines.append(
            (
                one.title,
                *rates,
                ratio,
                f"{one.of_floor:.0%}",
                f"{one.first_s:.0f} s",
                f"{one.peak_mb:,.0f}",
                f"{one.held_out_loss:.4f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if i else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def processor() -> str:
    """What the kernel calls the processor."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()


def arguments() -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohort", type=int, default=8, help="clients a round")
    parser.add_argument("--rounds", type=int, default=4, help="measured, after one that is not")
    parser.add_argument(
        "--repeats", type=int, default=2, help="turns; every peer runs once in each"
    )
    parser.add_argument(
        "--core", type=int, default=max(os.sched_getaffinity(0)), help="the core all are pinned to"
    )
    parser.add_argument(
        "--cores",
        type=int,
        default=1,
        help="2: run ours with two worker threads on two cores as well",
    )
    parser.add_argument("--only", default=",".join(PEERS), help=f"some of {','.join(PEERS)}")
    parser.add_argument("--json", type=Path, help="write everything measured here")
    asked = parser.parse_args()
    asked.only = asked.only.split(",")
    if unknown := set(asked.only) - set(PEERS):
        parser.error(
            f"--only: expected some of {', '.join(PEERS)}, found {', '.join(sorted(unknown))}"
        )
    if not 1 <= asked.cores <= len(os.sched_getaffinity(0)):
        parser.error(f"--cores: expected 1 to {len(os.sched_getaffinity(0))}, found {asked.cores}")
    return asked


def main() -> None:
    """Measure, and print what the head of this file says."""
    asked = arguments()
    todo = work.build(asked.cohort, asked.rounds + 1)
    flop = flop_per_token(todo.weights)
    with tempfile.TemporaryDirectory() as folder:
        common.write(todo, Path(folder) / "work.npz")
        runs, floors = measure(
            asked.only, todo, Path(folder), asked.core, asked.cores, asked.repeats
        )
    gemm = {shape: max(floor[shape] for floor in floors) for shape in ("square", "softmax")}
    floor = gemm["square"] * 1e9 / flop
    complete = {key: done for key, done in runs.items() if len(done) == asked.repeats}
    ours, threaded = complete.get("ours", []), f"ours-{asked.cores}"
    rows = {
        key: row(PEERS[key].title, done, ours, floor)
        for key, done in complete.items()
        if key in PEERS
    }
    if threaded in complete:
        rows[threaded] = row(
            f"{PEERS['ours'].title}, {asked.cores} threads", complete[threaded], [], floor
        )
    print(show(list(rows.values())))
    tokens = sum(todo.tokens(number) for number in range(1, todo.rounds))
    print(
        f"\n{asked.rounds} rounds of {asked.cohort} clients, {tokens:,} real tokens, after one "
        f"round to warm up; {asked.repeats} turns; one core each"
    )
    print(
        f"floor: {floor:,.0f} tokens per CPU second = {gemm['square']:.1f} GFLOP/s of 512 x 512 "
        f"products / {flop / 1e6:.2f} MFLOP of products a token"
    )
    print(
        f"products of a softmax step ({floors[0]['softmax_rows']} tokens, "
        f"{len(todo.weights['embedding']):,} ids): {gemm['softmax']:.1f} GFLOP/s"
    )
    print(
        f"processor: {processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the "
        "end"
    )
    print(f"held-out loss before training: {network.mean_loss(todo.weights, todo.held_out):.4f}")
    losses = [
        one.held_out_loss
        for key, one in rows.items()
        if key not in PEERS or PEERS[key].same_network
    ]
    if losses and max(losses) - min(losses) > AGREE:
        print(f"WARNING: held-out losses differ by more than {AGREE}: not all did the same work")
    if "ours" in rows and threaded in rows:
        print(
            f"{asked.cores} threads on {asked.cores} cores: "
            f"{rows[threaded].per_s / rows['ours'].per_s:.2f} x the tokens per second of one"
        )
    if asked.json:
        record = {
            "settings": {
                "cohort": asked.cohort,
                "rounds": asked.rounds,
                "repeats": asked.repeats,
                "core": asked.core,
            },
            "machine": {"processor": processor(), "cores": os.cpu_count(), "load": os.getloadavg()},
            "flop_per_token": flop,
            "gflop_per_s": gemm,
            "floor_tokens_per_s": floor,
            "rows": {key: vars(one) for key, one in rows.items()},
            "runs": {key: [vars(one) for one in done] for key, done in runs.items()},
        }
        asked.json.write_text(json.dumps(record, indent=1))
    if len(complete) < len(runs):
        sys.exit(1)


if __name__ == "__main__":
    main()
