"""One measurement of `device.py` in a process of its own: what a phone runs and nothing else. Reads
its task as JSON from standard input.

Only `device_runtime` is imported, so that memory is a device's. Every time is taken twice: by the
clock on the wall and by the CPU time of this thread, which other processes on the machine disturb
less.
"""

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

MB = 1024 * 1024
READ_BYTES = 64 * MB  # far more than any cache holds
GEMM_SIZE = 512
PREFIX = re.compile(r"[\w']*$")  # letters of the word that is being typed
SURE = {"nats": 1000.0, "hits": 1000}  # a trust that serves the mix to everybody, which costs most


def status_mb(field: str) -> float:
    """A field of /proc/self/status, in MB of 2 ** 20 bytes."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field + ":")
    )
    return int(line.split()[1]) / 1024


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds of wall and of CPU time."""
    wall, cpu = time.perf_counter(), time.thread_time()
    work()
    return 1000 * (time.perf_counter() - wall), 1000 * (time.thread_time() - cpu)


def spread(times: list[tuple[float, float]]) -> dict[str, dict[str, float]]:
    """Percentiles of wall and CPU milliseconds."""
    columns = np.array(times).T
    return {
        clock: dict(
            zip(
                ("p50", "p99", "most"),
                map(float, np.percentile(column, [50, 99, 100])),
                strict=True,
            )
        )
        for clock, column in zip(("wall_ms", "cpu_ms"), columns, strict=True)
    }


def keys(message: str) -> list[tuple[str, str]]:
    """Context and prefix before each key of a message.

    >>> keys("hi u")
    [('', ''), ('', 'h'), ('', 'hi'), ('hi ', '')]
    """
    typed = (message[:end] for end in range(len(message)))
    return [
        (text[: place.start()], place.group())
        for text in typed
        for place in [PREFIX.search(text)]
        if place
    ]


def opened(task: dict):
    """The bundle a task names, verified by the keys it trusts."""
    from device_runtime.bundle import open_verified

    return open_verified(Path(task["bundle"]), frozenset(task["trusted"]))


def own_words(bundle, history: list[str]):
    """The words of a user whose own words are served."""
    from device_runtime.own_words import OwnWords, Trust
    from device_runtime.text import tokenise

    own = OwnWords(bundle.vocabulary, Trust(**SURE))
    for message in history:
        own.add(tokenise(message))
    return own


def own_network(bundle, kept: str):
    """A personal network that stands for one of a user's own: float weights, or the int8 file of
    them where the bundle can be patched; None for everybody's.
    """
    from dataclasses import replace

    from device_runtime import personal

    if not kept:
        return None
    if kept == "float":
        bundle = replace(bundle, manifest=replace(bundle.manifest, constants=None))
    return personal.shipped(bundle, bundle.checkpoint.weights)


def strip_of(task: dict, bundle, earlier: list[str], folder: Path):
    """What suggests after context and prefix, and what learns a message that was sent, for a user
    who typed `earlier`: a predictor alone, or an open keyboard in a home in `folder`.
    """
    from device_runtime import config
    from device_runtime.home import OWN_WORDS, DeviceConfig, Home
    from device_runtime.keyboard import Keyboard
    from device_runtime.own_words import Trust
    from device_runtime.predictor import Predictor

    if not task["keyboard"]:
        own = own_words(bundle, earlier) if task["own"] else None
        predictor = Predictor(bundle, own_network(bundle, task["personal"]), own)
        return predictor.suggest, predictor.typed
    settings = DeviceConfig((bundle.signer,), task["bundle"])
    home = Home.create(folder, settings, [(text, float(at)) for at, text in enumerate(earlier)])
    home.keep(OWN_WORDS, config.to_json(Trust(**SURE, words=1)))
    keyboard = Keyboard(home, bundle)
    return lambda context, prefix="": keyboard.suggest(context + prefix), keyboard.send


def typing(task: dict) -> dict:
    """Every suggestion of users who type their messages key by key, the message learned when it is
    sent.
    """
    bundle = opened(task)
    every, word, sent = [], [], []
    first = None
    with tempfile.TemporaryDirectory() as folder:
        for number, user in enumerate(task["users"]):
            began = time.perf_counter()
            suggest, learn = strip_of(task, bundle, user["earlier"], Path(folder) / str(number))
            suggest("")
            first = first or 1000 * (time.perf_counter() - began)
            for message in user["typed"]:
                for context, prefix in keys(message):
                    measured = timed(
                        lambda context=context, prefix=prefix, suggest=suggest: suggest(
                            context, prefix
                        )
                    )
                    every.append(measured)
                    if not prefix:
                        word.append(measured)
                sent.append(timed(lambda message=message, learn=learn: learn(message)))
    read = weight_bytes(bundle, 4 if task["personal"] == "float" else 1)
    speed = read_speed(task["repeats"])
    return {
        "keys": len(every),
        "suggestion": spread(every),
        "new_word": spread(word),
        "sent": spread(sent),
        "first_ms": first,
        "bytes_read": read,
        "read_gb_s": speed,
        "floor_ms": 1000 * read / speed / 1e9,
    }


def weight_bytes(bundle, width: int) -> int:
    """Bytes of weights one step reads: matrices of `width` bytes a value, biases of four."""
    manifest = bundle.manifest
    embedding, units, vocabulary = manifest.embedding, manifest.units, manifest.vocabulary
    return width * (vocabulary * embedding + 2 * 3 * units * embedding + units * embedding) + 4 * (
        vocabulary + 3 * units
    )


def read_speed(repeats: int) -> float:
    """GB/s (of 10 ** 9 bytes) at which this core reads memory: the fastest of some sums of squares
    over 64 MB.
    """
    array = np.ones(READ_BYTES // 4, np.float32)
    best = min(timed(lambda: np.dot(array, array))[1] for _ in range(max(repeats, 3)))
    return READ_BYTES / best / 1e6


def predicting(task: dict) -> dict:
    """Memory of a process that only predicts: with `own`, as many words of a user's own as are ever
    counted.
    """
    from device_runtime.predictor import Predictor

    bundle = opened(task)
    predictor = Predictor(bundle, own=own_words(bundle, task["history"]) if task["own"] else None)
    for message in task["messages"]:
        for context, prefix in keys(message):
            predictor.suggest(context, prefix)
        predictor.typed(message)
    return {"peak_mb": status_mb("VmHWM"), "now_mb": status_mb("VmRSS")}


def finetuning(task: dict) -> dict:
    """Memory and time of a turn's work: open the bundle, read the typing log, train on the newest
    rows, encode the update.
    """
    from device_runtime import examples, text, update, weights
    from device_runtime.bundle import CHECKPOINT
    from device_runtime.finetune import finetune
    from device_runtime.terms import Aggregation, Terms
    from device_runtime.turn import Train
    from device_runtime.typing_log import TypingLog

    with tempfile.TemporaryDirectory() as folder:
        with TypingLog(Path(folder) / "typing_log.sqlite") as log:
            log.append_many([(message, float(at)) for at, message in enumerate(task["messages"])])
            typed = log.read(len(task["messages"]))
        bundle = opened(task)
        plan = bundle.plan
        checkpoint = weights.from_bytes(bundle.content[CHECKPOINT])
        rows = examples.rows(
            [bundle.vocabulary.ids(tokens) for tokens in map(text.tokenise, typed) if tokens],
            plan.length,
        )[-plan.max_rows :]
        rng = np.random.default_rng(0)
        before = status_mb("VmRSS")
        cpu = time.process_time()
        tuned = finetune(bundle.train_graph, Train(checkpoint.weights, rows, plan, rng))
        trained = time.process_time() - cpu
        values = sum(array.size for array in tuned.delta.values())
        of = plan.bits, plan.clipping_norm, values, bundle.manifest.shapes
        terms = Terms(Aggregation.PLAIN, *of, rotation_seed=1, most=1, fewest=1, min_separation=1)
        cpu = time.process_time()
        encoded = update.of_delta(tuned.delta, 1, terms, rng)
        return {
            "rows": len(rows),
            "batches": tuned.batches,
            "stopped": tuned.stopped,
            "loss": [tuned.loss_before, tuned.loss_after],
            "train_cpu_s": trained,
            "encode_cpu_s": time.process_time() - cpu,
            "upload_bytes": len(encoded),
            "before_mb": before,
            "peak_mb": status_mb("VmHWM"),
        }


def masking(task: dict) -> dict:
    """What hiding an update costs beyond encoding it, and keeping it on disk before it leaves: CPU
    seconds with a helper, beside those of the same codes in the open, and bytes of both, by how
    many may be named, the noise multiplier and the compression.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from device_runtime import durable, encoding, outgoing, protection, quantize, signing
    from device_runtime.noise import Mechanism, Noise
    from device_runtime.protection import Addressed, repeating
    from device_runtime.terms import Aggregation, Terms
    from device_runtime.turn import Label, Outgoing
    from device_runtime.typing_log import TypingLog
    from device_runtime.wire import Kind

    def report(codes: np.ndarray, about: Addressed, folder: Path) -> bytes:
        largest = about.terms.encoding.largest
        body = protection.protected(codes, largest, about, device, repeating(b""))
        of = about.round, about.server, about.task_id, about.terms.name
        label = Label("a5" * 16, *of, Kind.TRAINING, tuple(range(256)), 256)
        with TypingLog(folder / "typing_log.sqlite") as log:
            durable.write(folder / "report", outgoing.seal(Outgoing(label, body), log))
        return body

    bundle = opened(task)
    plan, values = bundle.plan, sum(array.size for array in bundle.checkpoint.weights.values())
    rng = np.random.default_rng(0)
    delta = {
        name: rng.normal(0, 1e-3, array.shape).astype(np.float32)
        for name, array in bundle.checkpoint.weights.items()
    }
    helper, device = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
    seal_key = X25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw().hex()
    # for 2,000 rounds, and at most 7 of a device
    blt = Noise(
        Mechanism.BLT,
        *(0.0, 8.0, 1e-10, 2000, 7),
        decays=(1.0, 0.9925, 0.7944),
        scales=(0.0076, 0.1277, 0.3278),
    )
    measured: list[dict] = []
    for most, multiplier, compression in task["cases"]:
        is_open = most == 1
        bits = 8 if is_open else 4
        terms = Terms(
            Aggregation.PLAIN if is_open else Aggregation.HELPER,
            *(bits, plan.clipping_norm, values, bundle.manifest.shapes, 1),
            most=most,
            fewest=1,
            min_separation=1,
            helper="" if is_open else signing.public_hex(helper),
            noise=replace(blt, multiplier=multiplier) if multiplier else None,
            compression=compression,
        )
        encode = partial(encoding.encode, delta, terms.encoding, rng)
        about = Addressed(terms, "5e" * 16, "7a" * 16, 1, "" if is_open else seal_key)
        codes = encode()
        encodes = [timed(encode) for _ in range(task["repeats"])]
        with tempfile.TemporaryDirectory() as folder:
            work = partial(report, codes, about, Path(folder))
            # the first calls prepare memory
            times = [timed(work) for _ in range(task["repeats"] + 2)][2:]
            body = work()
        by = protection.layout(len(codes), terms.encoding.largest, terms)
        measured.append(
            spread(times)
            | {
                "encode_cpu_ms": spread(encodes)["cpu_ms"]["p50"],
                "bytes": len(body),
                "words": 0 if is_open else by.bytes,
                "blocks": len(codes) // quantize.BLOCK,
                "bits": 0 if is_open else 8 * by.size / by.digits,
            }
        )
    return {"cases": measured}


def step(task: dict) -> dict:
    """One train step beside its matrix products alone, in turns: milliseconds of CPU time,
    medians.
    """
    if task["litert"]:
        sys.path.append(task["litert"])
    from device_runtime import interpreter

    bundle = opened(task)
    plan, weights = bundle.plan, bundle.checkpoint.weights
    rng = np.random.default_rng(0)
    rows = rng.integers(4, len(weights["output_bias"]), (plan.batch_size, plan.length + 1)).astype(
        np.int32
    )
    name = "ai-edge-litert" if task["litert"] else "tflite-runtime"
    graph = interpreter.Graph(bundle.train_graph, interpreter=name)
    rate = np.float32(plan.learning_rate)
    square = rng.random((GEMM_SIZE, GEMM_SIZE), np.float32)
    work = {
        "train": lambda: graph.run("train", rows=rows, learning_rate=rate, **weights),
        "square": lambda: square @ square,
        "products": products(weights, plan.batch_size, plan.length),
    }
    times: dict[str, list] = {name: [] for name in work}
    for repeat in range(task["repeats"] + 2):
        for name, run in work.items():
            measured = timed(run)
            if repeat >= 2:  # the first calls prepare memory
                times[name].append(measured)
    measured = {name: spread(each) for name, each in times.items()}
    flop = step_flop(weights, plan.batch_size, plan.length)
    speed = 2 * GEMM_SIZE**3 / measured["square"]["cpu_ms"]["p50"] / 1e6  # GFLOP/s
    floor = flop / speed / 1e6
    return {
        "interpreter": str(graph.runtime),
        "train": measured["train"],
        "flop": flop,
        "gflop_s": speed,
        "floor_ms": floor,
        "over_floor": measured["train"]["cpu_ms"]["p50"] / floor,
        "products_ms": measured["products"]["cpu_ms"]["p50"],
        "over_products": measured["train"]["cpu_ms"]["p50"] / measured["products"]["cpu_ms"]["p50"],
    }


def step_flop(weights: dict[str, np.ndarray], batch: int, length: int) -> int:
    """Operations of the matrix products of one step: 6 for each weight of a matrix at each of batch
    x length places, padding among them.
    """
    return 6 * sum(array.size for array in weights.values() if array.ndim == 2) * batch * length


def products(weights: dict[str, np.ndarray], batch: int, length: int) -> Callable[[], None]:
    """The same products in numpy, in the shapes in which a step must do them: time by time through
    the recurrence, all at once elsewhere.
    """
    rng = np.random.default_rng(0)
    table, kernel, projection = (
        weights["embedding"],
        weights["recurrent_kernel"],
        weights["projection"],
    )
    (vocabulary, embedding), units = table.shape, projection.shape[1]
    # each [batch * length, n]
    all_hidden, all_scores, all_gates, all_cells = (
        rng.random((batch * length, n), np.float32)
        for n in (embedding, vocabulary, 3 * units, units)
    )
    hidden, gates, cells = all_hidden[:batch], all_gates[:batch], all_cells[:batch]

    def run() -> None:
        all_hidden @ weights["input_kernel"].T
        for _ in range(length):
            hidden @ kernel.T
            cells @ projection.T
        all_hidden @ table.T
        all_scores @ table
        all_scores.T @ all_hidden
        for _ in range(length):
            hidden @ projection
            gates @ kernel
        all_gates @ weights["input_kernel"]
        all_gates.T @ all_hidden  # of the input kernel
        all_gates.T @ all_hidden  # of the recurrent kernel
        all_hidden.T @ all_cells

    return run


MEASURES = {
    measure.__name__: measure for measure in (typing, predicting, finetuning, masking, step)
}

if __name__ == "__main__":
    print(json.dumps(MEASURES[sys.argv[1]](json.load(sys.stdin))))
