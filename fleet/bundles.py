"""Bundles: what all devices of a fleet have installed: a signed one, or one that is made up."""

from pathlib import Path

import numpy as np

from device_runtime import config, weights
from device_runtime.bundle import (
    CHECKPOINT,
    PLAN,
    Bundle,
    File,
    Lineage,
    Manifest,
    open_verified,
)
from device_runtime.errors import ConfigError
from device_runtime.weights import Checkpoint, digest
from device_runtime.wire import Plan
from fleet.settings import Training

TOKENIZER = digest(b"fedboard-fleet made-up vocabulary")


def installed(training: Training, plan: Plan | None) -> Bundle:
    """The bundle that settings name, or one that is made up for a plan. Raises BundleError for one
    that no trusted key has signed, and ConfigError where there is neither bundle nor plan.
    """
    if training.bundle:
        return open_verified(Path(training.bundle), frozenset(training.trusted))
    if plan is None:
        raise ConfigError(
            "fleet.toml",
            "expected training.bundle, whose plan devices follow, or task.plan, found neither",
            "name a bundle, or write down a plan",
        )
    return made_up(plan, training.values)


def made_up(plan: Plan, values: int) -> Bundle:
    """A bundle without graphs or words, for training that is not real: its network is so many
    values, all zero.
    """
    checkpoint = Checkpoint({"values": np.zeros(values, np.float32)}, 0, "", TOKENIZER)
    half = weights.to_bytes(checkpoint, np.float16)
    content = {CHECKPOINT: half, PLAN: config.to_json(plan)}
    files = {name: File(len(data), digest(data)) for name, data in content.items()}
    manifest = Manifest(
        network="made up",
        embedding=1,
        units=1,
        vocabulary=4,
        tokenizer=TOKENIZER,
        shapes=weights.shapes_hash(checkpoint.weights),
        lineage=Lineage("made up", 0, digest(half)),
        files=files,
    )
    return Bundle(Path("made-up bundle"), manifest, content)
