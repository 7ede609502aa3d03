"""Compression: what the ways to make room for noise cost the network in accuracy.

    python -m benchmarks.compression --out FOLDER [--rounds 300] [--ways none x4 fresh4] [--table]

The same budget, cohorts, rows and first weights for each way, as in `benchmarks/privacy_curve.py`;
then the top-1 and top-3 of the last weights on test users (of a run that ends early, on validation
users), the difference from updates that are not compressed, paired by user, and the bytes of an
upload with room for the noise at 100 and 1,000 devices, beside those of the `gboard` network's
8-bit update that nothing hides. Where a projection is drawn anew the noise begins anew: correlated
noise lives in one basis. As in all of these runs **a small cohort stands for a large report goal**:
no guarantee for the cohort.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.privacy_curve import Asked, scored, train
from device_runtime import config
from device_runtime.errors import FedboardError
from device_runtime.noise import Noise
from device_runtime.terms import Aggregation, Terms
from device_runtime.update import sealed_bytes
from fedboard import console
from model import comparison, corpora

TODAY = 1_426_238  # bytes of the 8-bit update of the network `gboard`, which nothing hides
GBOARD = 1_422_126  # its values
GBOARD_EMBEDDING = 960_000 + 384  # 10,004 rows of 96
WAYS = {
    "none": ("not compressed, 4 bits", {}),
    "x2": ("a half, the same in all rounds", {"compression": 2}),
    "x4": ("a quarter, the same in all rounds", {"compression": 4}),
    "x8": ("an eighth, the same in all rounds", {"compression": 8}),
    "fresh4": (
        "a quarter, another each round, independent noise",
        {"compression": 4, "mechanism": "gaussian", "turn": 1},
    ),
    "turns2": ("a half, another every 27 rounds", {"compression": 2, "turn": 27}),
    "turns4": ("a quarter, another every 27 rounds", {"compression": 4, "turn": 27}),
    "turns2bits3": (
        "a half, another every 27 rounds, 3 bits",
        {"compression": 2, "turn": 27, "bits": 3},
    ),
    "turns2bits2": (
        "a half, another every 27 rounds, 2 bits",
        {"compression": 2, "turn": 27, "bits": 2},
    ),
    "frozen": ("not the embedding, which stays as it began", {"way": "frozen"}),
    "embedding8": ("an eighth of the embedding, all of the rest", {"way": "embedding8"}),
    "bits3": ("not compressed, 3 bits", {"bits": 3}),
    "bits2": ("not compressed, 2 bits", {"bits": 2}),
}


def upload(asked: Asked, noise: Noise, devices: int) -> int:
    """Bytes of an upload of the network `gboard` that travels so, with room for this noise on sums
    of so many devices.
    """
    dimension = GBOARD - GBOARD_EMBEDDING * (asked.way == "frozen")
    if asked.way.startswith("embedding"):
        dimension -= GBOARD_EMBEDDING - GBOARD_EMBEDDING // int(asked.way.removeprefix("embedding"))
    terms = Terms(
        *(Aggregation.HELPER, asked.bits, asked.clip, dimension, "0" * 64, 1, devices, 2, 1),
        helper="1" * 64,
        noise=noise,
        compression=asked.compression,
        turn=asked.turn,
    )
    return sealed_bytes(terms.layout)


def rows(trainings: dict[str, Asked], folder: Path) -> Iterator[list[str]]:
    """A line of the table for each training that has ended."""
    beside = folder / f"{trainings['none'].name}.json"
    for way, asked in trainings.items():
        path = folder / f"{asked.name}.json"
        if not path.is_file():
            continue
        record = json.loads(path.read_text())
        own = scored(record)
        told = [WAYS[way][0], f"{record['noise']['multiplier']:.2f}"]
        told += [f"{record['noise_on_mean']:.2f}", f"{record['loss']:.3f}"]
        told += [f"{record[which]:.2%}" for which in ("top1", "top3")]
        if way != "none" and beside.is_file():
            plain = json.loads(beside.read_text())
            gains = comparison.compare(own, scored(plain), np.random.default_rng(0))
            low, high = gains.top1.interval
            told.append(f"{record['top1'] / plain['top1'] - 1:+.1%}")
            told.append(f"{100 * gains.top1.change:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})")
        else:
            told += ["", ""]
        noise = config.from_table(Noise, record["noise"], path.name)
        for devices in (100, 1000):
            told.append(f"{upload(asked, noise, devices) / TODAY:.2f}")
        yield told


def main() -> int:
    """Train what is missing, and print what the head of this file says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of what was trained")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--planned", type=int, default=300, help="rounds that the noise is for")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--epsilon", type=float, default=4.0)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    base = Asked(options.epsilon, rounds=options.rounds, planned=options.planned, rate=options.rate)
    trainings = {way: replace(base, **how) for way, (_, how) in WAYS.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    missing = [
        trainings[way]
        for way in options.ways
        if not (options.out / f"{trainings[way].name}.json").is_file()
    ]
    if missing and not options.table:
        corpus = corpora.load("chitchat")
        users = corpus.test if base.rounds == base.planned else corpus.validation
        for asked in missing:
            train(asked, corpus, options.out, users)
    heads = ["what travels", "multiplier", "noise on the mean, clips", "loss", "top-1", "top-3"]
    heads += ["top-1, relative", "top-1, points", "bytes, 100 devices", "1,000 devices"]
    console.table("beside today's 8-bit upload", heads, list(rows(trainings, options.out)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FedboardError as error:
        sys.exit(f"error: {error}")
