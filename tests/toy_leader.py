"""A leader that a device's tests drive: one work for whoever asks, masked, and what it was sent.

Its helper's keys are at hand, so that what was sent can be opened.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from device_runtime import config, masking, packing, protection, signing, update, weights, wire
from device_runtime.bundle import Bundle
from device_runtime.helper_wire import SEAL_KEY, SealKey
from device_runtime.packing import Layout
from device_runtime.protection import layout
from device_runtime.terms import Aggregation, Terms
from device_runtime.transport import Reply
from device_runtime.turn import FineTuned, Progress
from device_runtime.wire import Assignment, Kind, Signed
from tests.toy_server import HELPER, chained

ROUND_KEY = X25519PrivateKey.from_private_bytes(bytes(range(32)))
SERVER, TASK_ID = "5e" * 16, "7a" * 16
ROUND = 9


def masked_terms(bundle: Bundle, **changed: object) -> Terms:
    """Terms of a task for this bundle whose masks HELPER takes off."""
    values = sum(array.size for array in bundle.checkpoint.weights.values())
    terms = Terms(
        Aggregation.HELPER,
        4,
        bundle.plan.clipping_norm,
        values,
        bundle.manifest.shapes,
        7,
        most=108,
        fewest=100,
        min_separation=1,
        helper=signing.public_hex(HELPER),
    )
    return replace(terms, **changed)


def seal_key(terms: Terms, by=HELPER, **changed: object) -> Signed:
    """The key of the round, as the helper signs it, or changed."""
    public = ROUND_KEY.public_key().public_bytes_raw().hex()
    said = SealKey(public, TASK_ID, ROUND, terms.name)
    return signing.sign_text(by, SEAL_KEY, config.to_json(replace(said, **changed)))


@dataclass
class Leader:
    """Answers a device in the place of a server: a function of a request, as a transport is.

    Bodies of reports are files of `folder`, in the order in which they came.
    """

    bundle: Bundle
    folder: Path
    terms: Terms
    seal_key: Signed | None = None
    name: str = "a5" * 16  # of all of its work
    task_id: str = TASK_ID
    round: int = ROUND
    made_in: int = 0  # round that made its checkpoint
    asked: list[str] = field(default_factory=list)  # method and path of each request
    given_back: list[str] = field(default_factory=list)

    def __call__(self, method, path, body, headers) -> Reply:
        self.asked.append(f"{method} {path}")
        if path == "/v1/server":
            return _json({"server": SERVER, "time": 0, "version": wire.VERSION})
        if path == "/v1/devices":
            return _json({"device": "d0" * 8})
        if path == "/v1/check-in":
            return Reply(200, {}, config.to_json(self.work()))
        if "/blobs/" in path:
            return Reply(200, {}, self.blobs[path.rpartition("/")[2]])
        if path.endswith("/abandon"):
            self.given_back.append(json.loads(body)["cause"])
            return _json({"counted": False, "retry_in_s": 1.0})
        (self.folder / f"{len(self.bodies()):04d}").write_bytes(body)
        return _json({"counted": True, "retry_in_s": 1.0})

    def work(self) -> Assignment:
        """Always the same, from the bundle's own checkpoint."""
        plan = config.to_json(self.bundle.plan)
        half = self.bundle.content["checkpoint.safetensors"]
        self.blobs = {weights.digest(data): data for data in (plan, half)}
        bare = Assignment(
            self.name,
            self.round,
            *self.blobs,
            self.bundle.manifest.shapes,
            deadline_s=3600.0,
            kind=Kind.TRAINING,
            server=SERVER,
            task_id=self.task_id,
        )
        return replace(chained(bare, self.made_in, terms=self.terms), seal_key=self.seal_key)

    def bodies(self) -> list[bytes]:
        """What was sent, oldest first."""
        return [path.read_bytes() for path in sorted(self.folder.iterdir())]


def seed_and_codes(
    body: bytes, leader: Leader, device: str, by: Layout | None = None
) -> tuple[bytes, list[int]]:
    """What the helper's key and the words together give away of a device's report for a leader's
    work: of an update, or of other numbers that lie by another layout.
    """
    terms, about = leader.terms, protection.addressed(leader.work(), leader.terms)
    assert isinstance(about, protection.Addressed)
    by = by or layout(terms.encoding.values, terms.encoding.largest, terms)
    sealed = update.sealed(body, by)
    bound = protection.bound_of(about, device)
    assert signing.verified(device, bound.signed(sealed.seal), sealed.signature)
    seed = masking.open_seal(sealed.seal, bound, ROUND_KEY)
    assert seed is not None
    bare = packing.unpack(packing.subtract(sealed.words, masking.mask(seed, by), by), by)
    return seed, bare.tolist()


def learnt(graph, action, may_continue) -> FineTuned:
    """In the place of training: what a device with these rows has learnt, in no time."""
    rng = np.random.default_rng(int(action.rows.sum()))
    values = action.weights
    delta = {name: rng.normal(0, 0.01, a.shape).astype(np.float32) for name, a in values.items()}
    return FineTuned(delta, 1, 2.0, 1.0, progress=Progress(values, 1, 2.0))


def _json(table: dict) -> Reply:
    return Reply(200, {}, json.dumps(table).encode())
