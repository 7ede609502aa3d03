"""Toy releases for the server's tests: signed bundles of a few bytes, and statements on them."""

import hashlib
from dataclasses import replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import bundle, config, signing
from device_runtime.bundle import Lineage, Manifest
from device_runtime.patch import Constant
from device_runtime.releases import PURPOSE, Statement
from device_runtime.weights import digest
from server import releases
from server.contract import Publication
from server.coordinator import Coordinator
from server.release_rows import StoredRelease
from tests.toy_server import SHAPES, TOKENIZER, key

MAKER = key(99)
CODES = 4000  # int8 codes of the one constant of a toy's predict.tflite
CONSTANTS = {"embedding": Constant("int8", offset=16, values=CODES, scale_offset=8)}


def predict(number: int) -> bytes:
    """A predict.tflite of one constant, little different from the ones before."""
    rng = np.random.default_rng(5)
    codes = rng.integers(-127, 128, CODES).astype(np.int8)
    for step in range(number):
        few = np.random.default_rng(step).integers(0, CODES, 40)
        codes[few] = np.clip(codes[few].astype(int) + 1, -127, 127)
    codes[0] = 127
    return b"TOYGRAPH" + np.float32(0.01).tobytes() + bytes(4) + codes.tobytes()


def content(number: int) -> dict[str, bytes]:
    """The files of a toy release: other weights for another number, all else the same."""
    files = {name: f"{name} of all\n".encode() for name in bundle.FILES}
    files |= {bundle.PREDICT: predict(number)}
    return files | {bundle.CHECKPOINT: hashlib.sha256(b"%d" % number).digest() * 100}


def manifest_of(number: int, **changes: object) -> Manifest:
    lineage = Lineage("toy", number, digest(b"%d" % number), task="default", participants=40)
    return replace(
        Manifest(
            *("own", 3, 4, 10, TOKENIZER, SHAPES, lineage, bundle.describe(content(number))),
            release=number,
            constants=CONSTANTS,
            graph="9a" * 32,
        ),
        **changes,
    )


def signature(encoded: bytes, maker: Ed25519PrivateKey = MAKER) -> str:
    """The two lines of manifest.sig."""
    return f"{signing.public_hex(maker)}\n{maker.sign(encoded).hex()}\n"


def stated(
    manifest: Manifest, share: int = 500, serial: int = 1, maker=MAKER, **changes: object
) -> Publication:
    """What a maker publishes of a bundle: its statement, and the manifest's signature."""
    encoded = manifest.encoded()
    statement = Statement(manifest.release, digest(encoded), "default", share, serial)
    text = config.to_json(replace(statement, **changes))
    return Publication(signing.sign_text(maker, PURPOSE, text), signature(encoded, maker))


def put(coordinator: Coordinator, number: int, manifest: Manifest | None = None) -> Manifest:
    """Put the files of a toy release into a server's blobs."""
    manifest = manifest or manifest_of(number)
    for data in (manifest.encoded(), *content(number).values()):
        coordinator.blobs.put(data)
    return manifest


def published(
    coordinator: Coordinator, number: int, share: int = 500, now: float = 1.0, **changes: object
) -> StoredRelease:
    """A toy release on a server."""
    manifest = put(coordinator, number, manifest_of(number, **changes))
    return releases.publish(coordinator, stated(manifest, share), now)


def named(coordinator: Coordinator, population: str = "default") -> str:
    """The index that check-ins name."""
    with coordinator.store.reading() as rows:
        return rows.releases.named()[population]


def index_of(coordinator: Coordinator, population: str = "default") -> releases.Newest:
    """The index that check-ins name, read as a device reads it."""
    with coordinator.store.reading() as rows:
        body = rows.releases.index(named(coordinator, population))
    return config.from_json(releases.Newest, body, "index")


def numbers(index: releases.Newest) -> list[int]:
    """The releases of an index in its order."""
    return [
        config.from_json(Statement, offer.statement.text.encode(), "statement").release
        for offer in index.offers
    ]
