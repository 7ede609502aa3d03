"""How long a strip of pieces takes at every key of some texts, by the file a device installs.

taskset -c 0 python benchmarks/pieced_latency.py BUNDLE --key PUBLIC_HEX texts.txt ...
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from device_runtime.bundle import open_verified
from device_runtime.errors import FedboardError
from device_runtime.predictor import Predictor
from device_runtime.writing import split


def milliseconds(predictor: Predictor, texts: list[str]) -> list[float]:
    """Of this thread, of the suggestions before every key and after the last one."""
    taken = []
    for text in texts:
        for end in range(len(text) + 1):
            began = time.thread_time()
            predictor.suggest(*split(text[:end]))
            taken.append(1000 * (time.thread_time() - began))
    return taken


def main() -> None:
    """Measure, and print what the head of this file says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("files", nargs="+", type=Path, help="texts, one a line")
    parser.add_argument("--key", required=True, help="public key of who signed the bundle")
    parser.add_argument("--texts", type=int, default=100, help="of each file")
    asked = parser.parse_args()
    predictor = Predictor(open_verified(asked.bundle, frozenset({asked.key})))
    predictor.suggest("")  # the first one opens the file
    print(f"{'texts':<20} {'keys':>7} {'p50 ms':>7} {'p99 ms':>7} {'most ms':>8}")
    for file in asked.files:
        taken = milliseconds(predictor, file.read_text("utf-8").splitlines()[: asked.texts])
        middle, nearly, most = np.percentile(taken, [50, 99, 100])
        print(f"{file.name:<20} {len(taken):>7,} {middle:>7.2f} {nearly:>7.2f} {most:>8.2f}")


if __name__ == "__main__":
    try:
        main()
    except FedboardError as error:
        sys.exit(str(error))
