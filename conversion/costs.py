"""Costs: what a bundle takes of a device: memory and time, in a process that does nothing else.

    bundle on disk -> a fresh process on one thread opens it as a device does, suggests a word at a
    time along some texts, trains one step -> its peak memory, and its CPU time for each

The process imports `device_runtime` alone. CPU time is what other programs on the machine disturb
least.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from device_runtime import config
from device_runtime.errors import ConfigError, RunError

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 300.0
TRAINED = 5  # steps timed
STATUS = Path("/proc/self/status")
TOO_FEW = "measure with more text"


@dataclass(frozen=True)
class Costs:
    """What one bundle takes on this machine."""

    ram_mb: float  # 2 ** 20 bytes: the peak of opening, suggesting and one train step
    suggestion_ms: float  # 99th percentile of the suggestions after a new word
    train_step_ms: float  # median


@dataclass(frozen=True)
class Task:
    """What the fresh process is to do."""

    bundle: str  # folder
    trusted: tuple[str, ...]  # public keys
    texts: tuple[str, ...]  # to suggest along


def measure(task: Task) -> Costs:
    """Measure a bundle in a process of its own.

    Raises RunError where this machine cannot tell the memory of a process, and where the process
    fails.
    """
    if not STATUS.exists():
        raise RunError(STATUS, "there is none on this system", "package for a class on Linux")
    one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "conversion.costs"]
    try:
        done = subprocess.run(
            command,
            input=config.to_json(task),
            capture_output=True,
            cwd=ROOT,
            env={**os.environ, **one_thread, "PYTHONPATH": str(ROOT)},
            timeout=PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        raise RunError(
            task.bundle, f"not measured within {PATIENCE_S:.0f} s", "try when less is running"
        ) from None
    try:
        return config.from_json(Costs, done.stdout, "the measuring process")
    except ConfigError:
        said = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise RunError(
            task.bundle, f"measuring it ended with {done.returncode} ({said})", "see what it said"
        ) from None


def _measured(task: Task) -> Costs:
    """In the fresh process: the costs of the task's bundle."""
    from device_runtime.bundle import open_verified
    from device_runtime.examples import rows
    from device_runtime.interpreter import Graph
    from device_runtime.predictor import Predictor
    from device_runtime.text import tokenise

    opened = open_verified(Path(task.bundle), frozenset(task.trusted))
    predictor, suggested = Predictor(opened), []
    predictor.suggest("")  # the first costs more: pages are read that stay
    for text in task.texts:
        words = text.split(" ")
        for count in range(1, len(words) + 1):
            context = " ".join(words[:count]) + " "
            suggested.append(_cpu_ms(partial(predictor.suggest, context)))
    plan, weights = opened.plan, opened.checkpoint.weights
    ids = (opened.vocabulary.ids(tokenise(text)) for text in task.texts)
    every = rows(ids, plan.length)
    if not suggested or not len(every):
        raise RunError(task.bundle, "no text to measure with", TOO_FEW)
    batch = np.resize(every, (plan.batch_size, plan.length + 1)).astype(np.int32)
    train, rate = Graph(opened.train_graph), np.float32(plan.learning_rate)
    step = partial(train.run, "train", rows=batch, learning_rate=rate, **weights)
    trained = [_cpu_ms(step) for _ in range(1 + TRAINED)]
    return Costs(_peak_mb(), float(np.percentile(suggested, 99)), float(np.median(trained[1:])))


def _cpu_ms(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return 1000 * (time.thread_time() - began)


def _peak_mb() -> float:
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    asked = config.from_json(Task, sys.stdin.buffer.read(), "task")
    sys.stdout.write(json.dumps(vars(_measured(asked))))
