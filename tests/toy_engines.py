"""Jobs that take a moment, and training that goes wrong: what engines are tested with."""

import os
import signal
import time

import numpy as np

from device_runtime.errors import RunError
from device_runtime.wire import Plan
from fleet.engines import Job, compute, stand_in

PLAN = Plan(batch_size=2, length=3)
BASE = {"a": np.arange(4, dtype=np.float32)}


def job(number, **of):
    random = np.random.default_rng(number).bit_generator.state
    return Job("base", np.ones((4, 4), np.int32), PLAN, random, **of)


def dies(graph, action, may_continue):
    os.kill(os.getpid(), signal.SIGKILL)


def refuses(graph, action, may_continue):
    raise RunError("interpreter", "there is none", "install one")


def slow(graph, action, may_continue):
    """Time enough to be killed in."""
    time.sleep(0.5)
    return stand_in(graph, action, may_continue)


def same(trained, number):
    """Whether a result is that of the job of this number, done here."""
    alone = compute(job(number), BASE, stand_in, b"")
    return trained.random == alone.random and np.array_equal(
        trained.tuned.delta["a"], alone.tuned.delta["a"]
    )
