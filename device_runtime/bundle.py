"""The bundle: what a device installs, and the only way in. Nothing is parsed before signature, sizes and hashes agree.

A bundle is a directory: manifest.json, manifest.sig (Ed25519 over the manifest's bytes), and the files the manifest lists with size and SHA-256.
"""

import os
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import config, signing, weights
from device_runtime.errors import BundleError, ConfigError
from device_runtime.text import Vocabulary
from device_runtime.wire import Plan

FORMAT = 1
TRAIN, PREDICT, TOKENIZER, CHECKPOINT, PLAN, CARD = (
    "train.tflite",
    "predict.tflite",
    "tokenizer.model",
    "checkpoint.safetensors",
    "plan.json",
    "MODEL_CARD.md",
)
FILES = (TRAIN, PREDICT, TOKENIZER, CHECKPOINT, PLAN, CARD)
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
EXPORT_AGAIN = "make it again with `fedboard export`"


@dataclass(frozen=True)
class File:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Lineage:
    """Where the model comes from."""

    corpus: str
    round: int
    checkpoint: str  # SHA-256 of the float32 checkpoint that was exported
    privacy: str = "none: no noise was added and updates were not securely aggregated"


@dataclass(frozen=True)
class Manifest:
    network: str  # size by name
    embedding: int
    units: int
    vocabulary: int  # ids the model scores
    tokenizer: str  # SHA-256 of tokenizer.model
    shapes: str  # `weights.shapes_hash`
    lineage: Lineage
    files: dict[str, File]
    gate: dict[str, float] = field(default_factory=dict)  # what was measured before signing
    minimum_runtime: str = "tflite 2.14"
    format: int = FORMAT


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: the manifest and the bytes of its files, held since their hashes were checked."""

    path: Path
    manifest: Manifest
    content: dict[str, bytes]

    @property
    def train_graph(self) -> bytes:
        return self.content[TRAIN]

    @property
    def predict_graph(self) -> bytes:
        return self.content[PREDICT]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.content[TOKENIZER], self.path / TOKENIZER)

    @cached_property
    def checkpoint(self) -> weights.Checkpoint:
        return weights.from_bytes(self.content[CHECKPOINT], self.path / CHECKPOINT)

    @cached_property
    def plan(self) -> Plan:
        return config.from_json(Plan, self.content[PLAN], str(self.path / PLAN))


def describe(content: dict[str, bytes]) -> dict[str, File]:
    """The manifest's file table."""
    return {name: File(len(data), weights.digest(data)) for name, data in sorted(content.items())}


def write(path: Path, manifest: Manifest, content: dict[str, bytes], key: Ed25519PrivateKey) -> None:
    """Sign and write a bundle, whole or not at all; an older bundle at `path` is replaced. The same inputs give the same bytes.

    Raises BundleError if `path` holds something that is not a bundle or cannot be written.
    """
    path = Path(path)
    if path.exists() and not (path / MANIFEST).is_file():
        raise BundleError(path, "exists and is not a bundle", "choose another output folder")
    encoded = config.to_json(manifest)
    temporary, old = path.with_name(f".{path.name}.{os.getpid()}"), path.with_name(f".{path.name}.old.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name, data in content.items():
            (temporary / name).write_bytes(data)
        (temporary / MANIFEST).write_bytes(encoded)
        (temporary / SIGNATURE).write_text(f"{signing.public_hex(key)}\n{key.sign(encoded).hex()}\n")
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    except OSError as error:
        raise BundleError(path, f"cannot be written ({error.strerror})", "choose a folder you may write to") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def open_verified(path: Path, trusted: frozenset[str]) -> Bundle:
    """The bundle at `path`, if it was signed by a trusted key (public, hexadecimal) and is complete and unaltered.

    Raises BundleError naming the first thing that is wrong. No file is parsed, and no graph opened, before its hash was checked.
    """
    path = Path(path)
    if not path.is_dir():
        raise BundleError(path, "is not a bundle folder", "give the folder that holds manifest.json")
    encoded = _read(path / MANIFEST)
    signer, _, signature = _read(path / SIGNATURE).decode("ascii", "replace").strip().partition("\n")
    if signer not in trusted:
        raise BundleError(path / SIGNATURE, f"signed by a key that is not trusted ({signer[:16]!r})", "pass the maker's public key with --trust")
    try:
        valid = signing.verified(signer, encoded, bytes.fromhex(signature))
    except ValueError:
        valid = False
    if not valid:
        raise BundleError(path / MANIFEST, "altered: its signature does not match", EXPORT_AGAIN)
    try:
        manifest = config.from_json(Manifest, encoded, str(path / MANIFEST))
    except ConfigError as error:
        raise BundleError(path / MANIFEST, f"not a manifest of format {FORMAT} ({error})", "update Fedboard or export again") from None
    if manifest.format != FORMAT:
        raise BundleError(path / MANIFEST, f"expected format {FORMAT}, found {manifest.format}", "update Fedboard or export again")
    if missing := sorted(set(FILES) - manifest.files.keys()):
        raise BundleError(path / MANIFEST, f"does not list {', '.join(missing)}", EXPORT_AGAIN)
    content = {}
    for name in FILES:
        data, expected = _read(path / name), manifest.files[name]
        if len(data) != expected.bytes:
            raise BundleError(path / name, f"expected {expected.bytes} bytes, found {len(data)}", EXPORT_AGAIN)
        if weights.digest(data) != expected.sha256:
            raise BundleError(path / name, "altered: its SHA-256 is not the manifest's", EXPORT_AGAIN)
        content[name] = data
    bundle = Bundle(path, manifest, content)
    if len(bundle.vocabulary) != manifest.vocabulary or bundle.vocabulary.hash != manifest.tokenizer:
        raise BundleError(path / MANIFEST, f"the model scores {manifest.vocabulary} ids but the vocabulary has {len(bundle.vocabulary)}",
                          "package both from one run")  # fmt: skip
    if weights.shapes_hash(bundle.checkpoint.weights) != manifest.shapes:
        raise BundleError(path / CHECKPOINT, "its arrays are not the shapes the graphs were made for", "package both from one run")
    return bundle


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(path, f"cannot be read ({error.strerror})", EXPORT_AGAIN) from None
