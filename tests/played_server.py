"""A server that has lived: days of rounds with devices that are away, late or broken.

An evaluation beside the training, and a paused task.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from device_runtime import config
from device_runtime.causes import Cause
from device_runtime.weights import Checkpoint
from device_runtime.wire import Assignment, Kind, Reject, Scores
from server.coordinator import Coordinator, open_folder
from server.eligibility import Policy
from server.requests import Abandoning, CheckingIn, Reporting
from server.rounds import Rules
from server.step import ServerStep
from server.task import TaskSettings
from tests.toy_server import PLAN, READY, TOKENIZER, WEIGHTS, OneByOne, created, encoded, enrolled

HOUR_S = 3600.0


def played(folder: Path, rounds: int, now: float, seed: int = 0) -> OneByOne:
    """About so many rounds, an hour each, the last of them half done at `now`."""
    rules = Rules(report_goal=20, over_selection=1.3, selection_s=60, reporting_s=1800)
    store, blobs = open_folder(folder)
    start, began, step = (
        Checkpoint(WEIGHTS, 0, "", TOKENIZER),
        now - HOUR_S * rounds,
        ServerStep(0.5, algorithm="fedadam"),
    )
    created(
        Coordinator(store, blobs),
        TaskSettings(PLAN, rules=rules, policy=Policy(min_separation=2), step=step, seed=1),
        began,
        start,
    )
    created(
        Coordinator(store, blobs),
        TaskSettings(
            kind=Kind.EVALUATION,
            evaluates="default",
            name="accuracy",
            rules=Rules(report_goal=8, over_selection=1.5, selection_s=60),
            seed=1,
        ),
        began + 1,
    )
    created(
        Coordinator(store, blobs),
        TaskSettings(PLAN, name="swiss-german", population="de-ch", rules=rules, seed=2),
        now,
        start,
    )
    coordinator = OneByOne(store, blobs)
    coordinator.pause("swiss-german")
    rng, devices = np.random.default_rng(seed), enrolled(coordinator, 90)
    for number in range(rounds):
        at = now - HOUR_S * (rounds - number - 1) - 600
        _hour(coordinator, devices, at, rng, number, last=number == rounds - 1)
    return coordinator


def _hour(
    coordinator: Coordinator,
    devices: list[str],
    at: float,
    rng: np.random.Generator,
    number: int,
    last: bool,
) -> None:
    asking = [CheckingIn(devices[k], _condition(rng)) for k in rng.permutation(len(devices))]
    told = coordinator.handle(asking, at - 70)
    waiting = [isinstance(answer, Reject) and answer.cause is Cause.SELECTING for answer in told]
    asking = [asked for asked, waits in zip(asking, waiting, strict=True) if waits]
    answers = coordinator.handle(asking, at)
    for k, (asked, work) in enumerate(zip(asking, answers, strict=True)):
        if not isinstance(work, Assignment) or (last and k > 40):
            continue
        named = (work.task, work.round)
        fate = rng.random()
        if work.kind is Kind.EVALUATION:
            words = int(rng.integers(40, 120))
            top1 = int(words * (0.05 + 0.14 * (1 - np.exp(-number / 8)) + rng.normal(0, 0.01)))
            scores = Scores(
                words,
                max(0, top1),
                max(0, int(1.7 * top1)),
                int(0.9 * words),
                words * (4.7 + 2.0 * np.exp(-number / 8)),
            )
            coordinator.handle(
                [
                    Reporting(
                        asked.device,
                        work.assignment,
                        config.to_json(scores),
                        Kind.EVALUATION,
                        None,
                        named,
                    )
                ],
                at + 200,
            )
        elif fate < 0.05:
            coordinator.handle(
                [Reporting(asked.device, work.assignment, b"FBUP", signed_for=named)], at + 200
            )
        elif fate < 0.15:
            coordinator.handle(
                [Abandoning(asked.device, work.assignment, Cause.CONDITION_LOST, signed_for=named)],
                at + 250,
            )
        elif fate < 0.95:
            coordinator.blob(asked.device, work.checkpoint, at + 50, signed_for=named)
            coordinator.handle(
                [
                    Reporting(
                        asked.device,
                        work.assignment,
                        encoded(work, k),
                        signed_for=named,
                    )
                ],
                at + 300,
            )
    if not last:
        coordinator.tick(at + 2400)


def _condition(rng: np.random.Generator):
    charging, unmetered, idle = rng.random(3) < (0.75, 0.85, 0.8)
    return replace(
        READY,
        conditions=replace(
            READY.conditions, charging=bool(charging), unmetered=bool(unmetered), idle=bool(idle)
        ),
    )


if __name__ == "__main__":
    import sys
    import time

    from server import endpoint

    coordinator = played(Path(sys.argv[1]), int(sys.argv[2]), time.time())
    sock = endpoint.bind("127.0.0.1", 0)
    print(sock.getsockname()[1], flush=True)
    endpoint.serve(endpoint.app(coordinator), sock)
