"""What encoding costs: the error of a mean of updates, and what no number of them averages out.

    python -m benchmarks.encoding_error [BUNDLE] --devices 20 --messages 10

    own scale   update format 2: rotated, a scale of its own for each block of a device
    one range   `device_runtime/encoding.py`: permuted, rotated, one range for all, conditional
                rounding

Printed of real deltas of train users, and of the two hardest that one can make (one spike a block,
and all in one value): the relative error of the mean of as many devices as are asked for, the
longest that rounding makes an update, the bias, as far as some roundings of one delta show it (the
relative error of their mean, less what chance leaves of it), and the largest bias of any delta as
it follows from the range: what that cuts off of the rotated delta, relative to it.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from device_runtime import encoding, quantize, weights
from device_runtime.encoding import Encoding
from device_runtime.errors import FedboardError
from device_runtime.examples import rows
from device_runtime.finetune import finetune
from device_runtime.turn import Train
from fedboard.run import open_bundle
from model import corpora
from server.task import SERVED_NORM

BITS = (8, 4, 3)
SEED = 7  # of the rotation
Rounding = functools.partial[NDArray[np.float64]]  # of a delta and randomness


@dataclass(frozen=True)
class Figures:
    """What one way to encode makes of some deltas."""

    error: float  # of their mean, relative
    longest: float  # norm of a decoded update / clipping norm
    bias: float  # relative; of the first delta
    cut: float  # off by the range, relative; of the delta of which it cuts most


def own_scales(
    delta: NDArray[np.float32], rng: np.random.Generator, by: Encoding
) -> NDArray[np.float64]:
    """A delta, float32 [n], as the server read it in format 2: float64 [n]. It was scaled back to
    the clipping norm where rounding had made it longer.
    """
    blocks = quantize.rotate(clipped(delta, by.clipping_norm), by.seed).reshape(-1, quantize.BLOCK)
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    step = (high - low).astype(np.float64) / by.largest
    position = (blocks - low) / np.where(step > 0, step, 1)
    codes = np.minimum(np.floor(position + rng.random(blocks.shape)), by.largest)
    values = (low + step * codes).reshape(-1)
    values *= min(1.0, by.clipping_norm / max(float(np.linalg.norm(values)), 1e-30))
    return quantize.unrotate(values, by.seed, len(delta))


def one_range(
    delta: NDArray[np.float32], rng: np.random.Generator, by: Encoding
) -> NDArray[np.float64]:
    """The same in format 3."""
    return encoding.mean(encoding.encode({"all": delta}, by, rng), 1, by)


def clipped(delta: NDArray[np.float32], norm: float) -> NDArray[np.float32]:
    """A delta as it is encoded."""
    return quantize.clip({"all": delta}, norm)["all"]


def figures(
    deltas: Sequence[NDArray[np.float32]], encode: Rounding, by: Encoding, draws: int
) -> Figures:
    """What a way to encode makes of deltas."""
    norm, own = by.clipping_norm, encode.func is own_scales
    rng = np.random.default_rng(1)
    exact = [clipped(each, norm).astype(np.float64) for each in deltas]
    read = [encode(each, rng) for each in deltas]
    wanted = np.mean(exact, axis=0)
    error = np.linalg.norm(np.mean(read, axis=0) - wanted) / np.linalg.norm(wanted)
    longest = max(float(np.linalg.norm(each)) for each in read) / norm
    most = 0.0 if own else max(cut(each, by) for each in deltas)
    return Figures(float(error), longest, bias(exact[0], deltas[0], encode, draws), most)


def cut(delta: NDArray[np.float32], by: Encoding) -> float:
    """What the range cuts off of a delta, relative to it."""
    values = clipped(delta, by.clipping_norm)[encoding._places(by.dimension, by.stride)]
    rotated = quantize.rotate(values, by.seed).astype(np.float64)
    lost = rotated - np.clip(rotated, -by.half, by.half)
    return float(np.linalg.norm(lost) / np.linalg.norm(rotated))


def bias(
    exact: NDArray[np.float64], delta: NDArray[np.float32], encode: Rounding, draws: int
) -> float:
    """The relative error of the mean of many roundings of one delta, less what chance leaves of
    it: the spread of the roundings says how much that is.
    """
    rng, total, squares = np.random.default_rng(2), np.zeros_like(exact), 0.0
    for _ in range(draws):
        read = encode(delta, rng)
        total += read
        squares += float(read @ read)
    mean = total / draws
    spread = squares / draws - float(mean @ mean)  # of one rounding, squared
    left = float(np.square(mean - exact).sum()) - spread / (draws - 1)
    return float(np.sqrt(max(0.0, left)) / np.linalg.norm(exact))


def spike_a_block(by: Encoding) -> NDArray[np.float32]:
    """All in one value of each block, as they are rotated in format 3."""
    places = encoding._places(by.dimension, by.stride)[:: quantize.BLOCK]
    delta = np.zeros(by.dimension, np.float32)
    delta[places] = by.clipping_norm / np.sqrt(len(places))
    return delta


def one_value(by: Encoding) -> NDArray[np.float32]:
    """All in one value."""
    delta = np.zeros(by.dimension, np.float32)
    delta[by.dimension // 3] = by.clipping_norm
    return delta


def real(bundle_path: Path | None, devices: int, messages: int) -> list[NDArray[np.float32]]:
    """What devices learn of their newest messages: float32 [values] each, before any clip."""
    opened, chat = open_bundle(bundle_path, None), corpora.load("chitchat")
    users = [own for own in chat.train.values() if len(own) >= max(20, messages)]
    rng = np.random.default_rng(0)
    received = opened.checkpoint.weights
    learnt = []
    for user in rng.choice(len(users), devices, replace=False):
        said = [opened.vocabulary.ids(each.tokens) for each in users[user][-messages:]]
        own = rows(said, opened.plan.length)[-opened.plan.max_rows :]
        tuned = finetune(opened.train_graph, Train(received, own, opened.plan, rng))
        learnt.append(weights.flatten(tuned.delta))
    return learnt


def speed(delta: NDArray[np.float32], by: Encoding, repeats: int = 5) -> dict[str, float]:
    """Milliseconds of CPU that one encoding takes, the fastest of some."""
    rng = np.random.default_rng(0)
    ways: dict[str, Callable[[], object]] = {
        "own scale": lambda: own_scales_codes(delta, by, rng),
        "one range": lambda: encoding.encode({"all": delta}, by, rng),
    }
    return {name: min(_cpu_ms(way) for _ in range(repeats)) for name, way in ways.items()}


def own_scales_codes(delta: NDArray[np.float32], by: Encoding, rng: np.random.Generator) -> NDArray:
    """What a device did in format 2."""
    blocks = quantize.rotate(clipped(delta, by.clipping_norm), by.seed).reshape(-1, quantize.BLOCK)
    low, high = blocks.min(axis=1), blocks.max(axis=1)
    step = ((high.astype(np.float64) - low) / by.largest).astype(np.float32)
    position = (blocks.astype(np.float64) - low[:, None]) / step.astype(np.float64)[:, None]
    codes = np.floor(position + rng.random(blocks.shape))
    return np.clip(codes, 0, by.largest).astype(np.uint16)


def _cpu_ms(way: Callable[[], object]) -> float:
    began = time.process_time()
    way()
    return 1000 * (time.process_time() - began)


def table(
    cases: dict[str, Sequence[NDArray[np.float32]]], norm: float, draws: int
) -> Iterable[str]:
    """The rows of the table, as Markdown, each as it is known."""
    yield "| deltas | bits | format | error of the mean | longest / clip | bias | cut off at most |"
    yield "|---|---|---|---|---|---|---|"
    for name, deltas in cases.items():
        for bits in BITS:
            by = Encoding(len(deltas[0]), bits, norm, SEED)
            for way, encode in (("own scale", own_scales), ("one range", one_range)):
                of = figures(deltas, functools.partial(encode, by=by), by, draws)
                yield (
                    f"| {name} | {bits} | {way} | {of.error:.4f} | {of.longest:.4f} | "
                    f"{of.bias:.4f} | {of.cut:.5f} |"
                )


def main() -> None:
    """Measure, and print what the head of this file says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path, help="by default the reference bundle")
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--messages", type=int, default=10, help="of a device, the newest")
    parser.add_argument("--norm", type=float, default=SERVED_NORM, help="clipping norm")
    parser.add_argument("--draws", type=int, default=20, help="roundings that show the bias")
    asked = parser.parse_args()
    learnt = real(asked.bundle, asked.devices, asked.messages)
    norms = np.array([float(np.linalg.norm(each)) for each in learnt])
    by = Encoding(len(learnt[0]), BITS[0], asked.norm, SEED)
    print(
        f"{len(learnt)} devices, {asked.messages} messages each, {by.dimension:,} values, norms "
        f"{norms.min():.2f} to {norms.max():.2f}, clip {asked.norm:g}"
    )
    cases = {
        f"of {asked.messages} messages": learnt,
        "a spike a block": [spike_a_block(by)] * asked.devices,
        "all in one value": [one_value(by)] * asked.devices,
    }
    for line in table(cases, asked.norm, asked.draws):
        print(line, flush=True)
    for bits in BITS:
        took = speed(learnt[0], Encoding(by.dimension, bits, asked.norm, SEED))
        said = ", ".join(f"{name} {ms:.0f} ms" for name, ms in took.items())
        print(f"CPU of one encoding at {bits} bits: {said}")


if __name__ == "__main__":
    try:
        main()
    except FedboardError as error:
        sys.exit(str(error))
