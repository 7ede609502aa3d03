"""Coverage-guided fuzzing of every reader of bytes from elsewhere: whatever they hold, it is read or refused by one of our errors.

python fuzz/readers.py manifest -max_total_time=60        (or zip, checkpoint, update, difference, typing_log, unfinished, schedule, trace)
"""

import contextlib
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["device_runtime", "zipfile", "safetensors"]):
    from device_runtime import bundle, conditions, config, daemon, difference, own_words, personal, quantize, unfinished, weights
    from device_runtime.errors import FedboardError
    from device_runtime.typing_log import TypingLog

import numpy as np

FOLDER = Path(tempfile.mkdtemp(prefix="fedboard-fuzz-"))
OLD = weights.to_bytes(weights.Checkpoint({"a": np.arange(6, dtype=np.float32)}), np.float16)
NEW = weights.to_bytes(weights.Checkpoint({"a": np.arange(6, dtype=np.float32) * 1.01}), np.float16)
LOG = FOLDER / "typing_log.sqlite"
with TypingLog(LOG) as log:
    log.append_many([("hello there", 1.0), ("how are you", 2.0)])
    SEALED = log.seal(b"{}", unfinished.PURPOSE)
LOG_BYTES = LOG.read_bytes()


def manifest(data: bytes) -> None:
    bundle._manifest(data, FOLDER)


def zip_(data: bytes) -> None:
    path = FOLDER / "bundle.zip"
    path.write_bytes(data)
    bundle.open_verified(path, frozenset({"ab" * 32}))


def checkpoint(data: bytes) -> None:
    found = weights.from_bytes(data)
    assert all(np.isfinite(array).all() for array in found.weights.values())


def update(data: bytes) -> None:
    found = quantize.decode(data)
    assert len(data) == quantize.encoded_bytes(found.dimension, found.bits)
    assert np.isfinite(quantize.values(found)).all()


def difference_(data: bytes) -> None:
    assert difference.apply(OLD, data) == NEW


def typing_log(data: bytes) -> None:
    LOG.write_bytes(data)
    for suffix in ("-wal", "-shm"):
        LOG.with_name(LOG.name + suffix).unlink(missing_ok=True)
    with TypingLog(LOG) as opened:
        assert set(opened.read(99)) <= {"hello there", "how are you"}
        opened.count(usable=True)


def unfinished_(data: bytes) -> None:
    with TypingLog(LOG) as opened:
        assert unfinished.unseal(data, opened) is None


def schedule(data: bytes) -> None:
    for kind in (daemon.Schedule, personal.Verdict):
        config.from_json(kind, data, "file")
    own_words.read_trust(data, "file")


def trace(data: bytes) -> None:
    conditions.parse(data.decode("utf-8", "replace"))(0.0)


READERS = {
    "manifest": (manifest, b'{"format":2}'),
    "zip": (zip_, b"PK\x05\x06" + bytes(18)),
    "checkpoint": (checkpoint, OLD),
    "update": (update, quantize.encode(np.ones(3, np.float32), 1, 2, "ab" * 32, 1, 1, np.random.default_rng(0))),
    "difference": (difference_, difference.encode(OLD, NEW)),
    "typing_log": (typing_log, LOG_BYTES),
    "unfinished": (unfinished_, SEALED[:-1] + bytes([SEALED[-1] ^ 1])),
    "schedule": (schedule, b'{"asked_at":1.0,"wait_s":2.0,"errors":0}'),
    "trace": (trace, b"1\twifi\n"),
}


def main() -> None:
    reader, seed = READERS[sys.argv.pop(1)]
    seeds = Path(tempfile.mkdtemp(prefix="fedboard-seeds-"))
    (seeds / "whole").write_bytes(seed)

    def one(data: bytes) -> None:
        with contextlib.suppress(FedboardError):  # refused by name: what a reader is to do
            reader(data)

    atheris.Setup([*sys.argv, str(seeds)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
