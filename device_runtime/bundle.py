"""The bundle: what a device installs, and the only way in. Nothing is parsed before signature,
sizes and hashes agree.

A bundle is a directory, or one zip of it: manifest.json, manifest.sig (Ed25519 over the manifest's
bytes), and the files the manifest lists with size and SHA-256. A folder that a device filled by a
difference may be lean: without the checkpoint, whose weights predict.tflite has in int8.
"""

import contextlib
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import (
    bounds,
    config,
    durable,
    folder,
    interpreter,
    patch,
    signing,
    versions,
    weights,
)
from device_runtime.agreement import Pins
from device_runtime.errors import BundleError, CheckpointError, ConfigError, Unproven
from device_runtime.patch import Constant
from device_runtime.terms import Aggregation
from device_runtime.text import RULES, Vocabulary, fold
from device_runtime.weights import Weights
from device_runtime.wire import Plan

FORMAT = 3
READABLE = (2, FORMAT)  # 2 has no constants: nobody can patch its graph
TRAIN, PREDICT, TOKENIZER, CHECKPOINT, PLAN, CARD = (
    "train.tflite",
    "predict.tflite",
    "tokenizer.model",
    "checkpoint.safetensors",
    "plan.json",
    "MODEL_CARD.md",
)
BLOCKED = "blocked.txt"
WRITTEN = "written.txt"  # words that are written otherwise than they are compared, one a line
FILES = (TRAIN, PREDICT, TOKENIZER, CHECKPOINT, PLAN, CARD)
OPTIONAL = (BLOCKED, WRITTEN)
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
MANIFEST_BYTES = 1 << 20  # more is no manifest of ours
NO_PRIVACY = "none: no noise was added and updates were not securely aggregated"
EXPORT_AGAIN = "make it again with `fedboard export`"
_KEY = re.compile("[0-9a-f]{64}")


def _is_ours(path: Path) -> bool:
    """Whether a folder's manifest is a bundle's, of whatever format."""
    try:
        table = json.loads(_read(path / MANIFEST, MANIFEST_BYTES))
    except (ValueError, RecursionError, BundleError):
        return False
    return (
        isinstance(table, dict)
        and isinstance(table.get("format"), int)
        and isinstance(table.get("tokenizer"), str)
        and all(isinstance(table.get(part), dict) for part in ("lineage", "files"))
    )


FOLDER = folder.Kind(
    "a bundle", _is_ours, (*FILES, *OPTIONAL, MANIFEST, SIGNATURE), MANIFEST, error=BundleError
)


@dataclass(frozen=True)
class File:
    """Size and hash of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Lineage:
    """Where the model comes from."""

    corpus: str
    round: int
    checkpoint: str  # SHA-256 of the float32 checkpoint that was exported
    privacy: str = NO_PRIVACY
    # of a release made from a task's checkpoint; None, and not written, where nothing is known
    task: str | None = None
    rounds: int | None = None  # committed since the task's first checkpoint
    participants: int | None = None  # updates counted in them
    epsilon: float | None = None  # spent
    delta: float | None = None
    audit: str | None = None  # SHA-256 of the audit's report
    policy_log: str | None = None  # root of the log that the task's policy stands in
    aggregation: Aggregation | None = None  # how the updates of that task became sums
    # where the words of its vocabulary come from; None, and not written: those its corpus uses most
    words: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What the maker says of a bundle, and signs."""

    network: str  # size by name
    embedding: int
    units: int
    vocabulary: int  # ids the model scores
    tokenizer: str  # SHA-256 of tokenizer.model
    shapes: str  # `weights.shapes_hash`
    lineage: Lineage
    files: dict[str, File]
    gate: dict[str, float] = field(default_factory=dict)  # what was measured before signing
    release: int = 0  # a device never goes back to a lower one
    minimum_runtime: str = "2.14.0"  # version of tflite-runtime; every ai-edge-litert is newer
    format: int = FORMAT
    # largest step of a server of this maker's / clipping norm; None, and not written: the default
    # of `limits.SERVER_FACTOR`
    server_factor: float | None = None
    # where each array of the checkpoint stands in predict.tflite, by its name: see `patch.py`
    constants: dict[str, Constant] | None = None
    graph: str | None = None  # SHA-256 of predict.tflite with all of its constants zero
    device_class: str | None = None  # whose budgets it keeps; None: it was measured for none
    # what a task's terms must say, whoever signed them; None, and not written: whatever they say
    aggregation: Aggregation | None = None
    helper: str | None = None  # public key, hexadecimal
    noise: bool | None = None  # True: noise is added to every sum of updates
    epsilon: float | None = None  # that a task may spend at most, at `delta`
    delta: float | None = None
    rules: int | None = None  # text rules of its vocabulary; None, and not written: 1
    # of what it was trained on, as BCP 47 tags with "+" between them; None: nobody said
    language: str | None = None

    def encoded(self) -> bytes:
        """As it is signed: what is None is left out, so that an older reader knows every key."""
        lineage = {name: value for name, value in vars(self.lineage).items() if value is not None}
        table = {name: value for name, value in vars(self).items() if value is not None}
        return config.to_json({**table, "lineage": lineage})

    @property
    def text_rules(self) -> int:
        """Text rules of its vocabulary."""
        return self.rules or 1

    @property
    def pins(self) -> Pins:
        """What it says of who may see an update, and how well a sum hides it."""
        return Pins(self.aggregation, self.helper, self.noise, self.epsilon, self.delta)

    @property
    def arrays(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the checkpoint's arrays, by name; `shapes` is their hash."""
        gates = 3 * self.units
        return {
            "cell_bias": (gates,),
            "embedding": (self.vocabulary, self.embedding),
            "input_kernel": (gates, self.embedding),
            "output_bias": (self.vocabulary,),
            "projection": (self.embedding, self.units),
            "recurrent_kernel": (gates, self.embedding),
        }


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: the manifest and the bytes of its files, held since their hashes were
    checked.
    """

    path: Path
    manifest: Manifest
    content: dict[str, bytes]
    encoded: bytes = b""  # the manifest as it was signed
    signature: bytes = b""

    @property
    def signer(self) -> str:
        """The public key that signed it, hexadecimal."""
        return self.signature.decode("ascii", "replace").partition("\n")[0].strip()

    @property
    def train_graph(self) -> bytes:
        """The TFLite file that trains and scores; it holds no weights."""
        return self.content[TRAIN]

    @property
    def predict_graph(self) -> bytes:
        """The int8 TFLite file that predicts."""
        return self.content[PREDICT]

    @cached_property
    def blocked(self) -> frozenset[str]:
        """Words never suggested."""
        return frozenset(self.content.get(BLOCKED, b"").decode("utf-8", "replace").split())

    @cached_property
    def written(self) -> dict[str, str]:
        """How words are usually written, by how they are compared, where these differ."""
        forms = self.content.get(WRITTEN, b"").decode("utf-8", "replace").split("\n")
        return {fold(form): form for form in forms if form}

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words its ids stand for. Raises VocabularyError for a damaged one."""
        return Vocabulary(self.content[TOKENIZER], self.path / TOKENIZER)

    @cached_property
    def checkpoint(self) -> weights.Checkpoint:
        """The weights as they travel. Raises CheckpointError for damaged ones, and where it is
        lean.
        """
        if self.is_lean:
            raise CheckpointError(
                self.path / CHECKPOINT,
                "not there: this release came as a difference",
                "use the bundle of its maker",
            )
        return weights.from_bytes(self.content[CHECKPOINT], self.path / CHECKPOINT)

    @cached_property
    def plan(self) -> Plan:
        """How devices train, unless a task says otherwise."""
        return config.from_json(Plan, self.content[PLAN], str(self.path / PLAN))

    @property
    def is_lean(self) -> bool:
        """Whether its checkpoint is left out."""
        return CHECKPOINT not in self.content

    @cached_property
    def weights(self) -> Weights:
        """Its weights, float32 by name: the checkpoint's, or of a lean one what the int8 codes of
        predict.tflite stand for. Raises CheckpointError or BundleError for damaged ones.
        """
        if self.is_lean and self.manifest.constants is not None:
            return patch.weights_in(
                self.predict_graph, self.manifest.constants, self.manifest.arrays
            )
        return self.checkpoint.weights


@dataclass(frozen=True)
class Difference:
    """What differs between two bundles, old before new."""

    fields: dict[str, tuple[str, str]]  # of the manifest, as JSON; nested ones by their dotted name
    # bytes of those that differ; None where there is none
    files: dict[str, tuple[int | None, int | None]]
    words_added: tuple[str, ...]
    words_removed: tuple[str, ...]
    weights: float | None  # L2 distance of the checkpoints; None if their shapes differ
    weights_changed: float  # share of values that differ


def difference(old: Bundle, new: Bundle) -> Difference:
    """Compare two verified bundles. Of constants nothing is said: they follow from the graph."""
    before, after = (_flat(json.loads(config.to_json(each.manifest))) for each in (old, new))
    fields = {
        name: (before.get(name, "-"), after.get(name, "-"))
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    }
    names = sorted({*old.content, *new.content})
    changed = [name for name in names if old.content.get(name) != new.content.get(name)]
    had, has = old.vocabulary.tokens, new.vocabulary.tokens
    known, still = set(had), set(has)
    apart, share = None, 1.0
    if old.manifest.shapes == new.manifest.shapes:
        moved = weights.subtract(new.weights, old.weights)
        apart, share = weights.norm(moved), float(np.mean(weights.flatten(moved) != 0))
    return Difference(
        {
            name: pair
            for name, pair in fields.items()
            if not name.startswith(("files.", "constants."))
        },
        {name: (_size(old, name), _size(new, name)) for name in changed},
        tuple(word for word in has if word not in known),
        tuple(word for word in had if word not in still),
        apart,
        share,
    )


def _size(bundle: Bundle, name: str) -> int | None:
    return len(bundle.content[name]) if name in bundle.content else None


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in table.items():
        flat |= (
            _flat(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {prefix + name: json.dumps(value)}
        )
    return flat


def describe(content: dict[str, bytes]) -> dict[str, File]:
    """The manifest's file table."""
    return {name: File(len(data), weights.digest(data)) for name, data in sorted(content.items())}


def write(
    path: Path, manifest: Manifest, content: dict[str, bytes], key: Ed25519PrivateKey
) -> None:
    """Sign and write a bundle, whole or not at all; an older bundle at `path` is replaced. The same
    inputs give the same bytes.

    Raises BundleError if `path` holds something that is not a bundle or cannot be written.
    """
    encoded = manifest.encoded()
    signature = f"{signing.public_hex(key)}\n{key.sign(encoded).hex()}\n".encode()
    copy(path, {**content, MANIFEST: encoded, SIGNATURE: signature})


def copy(path: Path, content: dict[str, bytes], kind: folder.Kind = FOLDER) -> None:
    """Write all files of a bundle, by name, whole or not at all, in place of an older one."""
    with folder.replaced(path, kind) as new:
        for name, data in content.items():
            (new / name).write_bytes(data)


def write_zip(bundle: Bundle, path: Path) -> None:
    """A verified bundle as one file, uncompressed, whole or not at all: equal bundles have equal
    bytes. Raises BundleError if it cannot be, or is lean.
    """
    path = Path(path)
    if bundle.is_lean:
        raise BundleError(
            bundle.path / CHECKPOINT,
            "not there: this release came as a difference",
            "use the bundle of its maker",
        )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(
            {**bundle.content, MANIFEST: bundle.encoded, SIGNATURE: bundle.signature}.items()
        ):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr, entry.create_system = 0o100644 << 16, 3
            archive.writestr(entry, data)
    try:
        place = Path(os.path.realpath(path))  # a link stays, and what it leads to is written
        place.parent.mkdir(parents=True, exist_ok=True)
        durable.share(place, packed.getvalue())
    except OSError as error:
        raise BundleError(
            path, f"cannot be written ({error.strerror})", "choose a file you may write"
        ) from None


def is_zip_of_one(path: Path) -> bool:
    """Whether a file is a zip with the names of a bundle's files, and no other."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return False
    return {MANIFEST, SIGNATURE} <= names <= {MANIFEST, SIGNATURE, *FILES, *OPTIONAL}


def open_verified(path: Path, trusted: frozenset[str], lean: bool = False) -> Bundle:
    """The bundle at `path`, a folder or a zip, if it was signed by a trusted key (public,
    hexadecimal) and is complete and unaltered. `lean`: a folder may lack the checkpoint, where the
    manifest says how its weights are read from predict.tflite.

    Raises BundleError naming the first thing that is wrong. No file is parsed, and no graph opened,
    before its hash was checked.
    """
    path = Path(path)
    if path.is_file():
        return _from_zip(path, trusted)
    if not path.is_dir():
        raise BundleError(
            path,
            "is not a bundle folder",
            "give the folder that holds manifest.json, or a zip of it",
        )
    folder.settle(path, FOLDER)
    is_lean = lean and not os.path.lexists(path / CHECKPOINT)
    return of_files(path, trusted, lambda name, most: _read(path / name, most), is_lean)


def _from_zip(path: Path, trusted: frozenset[str]) -> Bundle:
    known = {MANIFEST, SIGNATURE, *FILES, *OPTIONAL}
    with contextlib.ExitStack() as stack:
        with _zip_errors(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
        entries: dict[str, zipfile.ZipInfo] = {}
        for entry in archive.infolist():
            if entry.filename not in known or entry.filename in entries:
                raise BundleError(
                    path,
                    f"holds {entry.filename!r}, which no bundle of format {FORMAT} has there",
                    EXPORT_AGAIN,
                )
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise BundleError(
                    path,
                    f"{entry.filename} is compressed or locked, expected it stored",
                    EXPORT_AGAIN,
                )
            entries[entry.filename] = entry

        def read(name: str, most: int) -> bytes:
            if name not in entries:
                raise BundleError(
                    path / name, "cannot be read (it is not in the zip)", EXPORT_AGAIN
                )
            if entries[name].file_size > most:
                raise BundleError(
                    path / name,
                    f"expected {most} bytes, found {entries[name].file_size}",
                    EXPORT_AGAIN,
                )
            with _zip_errors(path):
                return archive.read(name)

        return of_files(path, trusted, read)


@contextlib.contextmanager
def _zip_errors(path: Path) -> Iterator[None]:
    """Whatever zipfile raises at a damaged file: its own errors, and those of what it reads out of
    one.
    """
    try:
        yield
    except (
        OSError,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        ValueError,
    ) as error:
        raise BundleError(
            path, f"is neither a bundle folder nor a whole zip of one ({error})", EXPORT_AGAIN
        ) from None


def of_files(
    path: Path, trusted: frozenset[str], read: Callable[[str, int], bytes], lean: bool = False
) -> Bundle:
    """The bundle whose files `read(name, most bytes)` gives, verified; `lean`: without its
    checkpoint. Raises BundleError as `open_verified`.
    """
    encoded, signed = read(MANIFEST, MANIFEST_BYTES), read(SIGNATURE, MANIFEST_BYTES)
    manifest = signed_manifest(encoded, signed, trusted, path)
    require_runtime(manifest, path / MANIFEST)
    if lean and manifest.constants is None:
        raise BundleError(
            path / CHECKPOINT,
            "not there, and the manifest does not say where predict.tflite has its weights",
            EXPORT_AGAIN,
        )
    content = {}
    for name in sorted(manifest.files.keys() - ({CHECKPOINT} if lean else set())):
        expected = manifest.files[name]
        data = read(name, expected.bytes)
        if len(data) != expected.bytes:
            raise BundleError(
                path / name, f"expected {expected.bytes} bytes, found {len(data)}", EXPORT_AGAIN
            )
        if weights.digest(data) != expected.sha256:
            raise BundleError(
                path / name, "altered: its SHA-256 is not the manifest's", EXPORT_AGAIN
            )
        content[name] = data
    bundle = Bundle(path, manifest, content, encoded, signed)
    if (
        len(bundle.vocabulary) != manifest.vocabulary
        or bundle.vocabulary.hash != manifest.tokenizer
    ):
        raise BundleError(
            path / MANIFEST,
            f"the model scores {manifest.vocabulary} ids but the vocabulary has "
            f"{len(bundle.vocabulary)}",
            "package both from one run",
        )
    if not lean and weights.shapes_in(content[CHECKPOINT], path / CHECKPOINT) != manifest.shapes:
        raise BundleError(
            path / CHECKPOINT,
            "its arrays are not the shapes the graphs were made for",
            "package both from one run",
        )
    _require_constants(manifest, content[PREDICT], path / MANIFEST)
    return bundle


def signed_manifest(encoded: bytes, signed: bytes, trusted: frozenset[str], path: Path) -> Manifest:
    """The manifest of the bundle at `path` by its bytes and those of its manifest.sig, if a trusted
    key (public, hexadecimal) signed it; whether this runtime can use it is not asked. Raises
    BundleError naming what is wrong, of a signature Unproven.
    """
    signer, _, signature = signed.decode("ascii", "replace").strip().partition("\n")
    if signer not in trusted:
        raise Unproven(
            path / SIGNATURE,
            f"signed by a key that is not trusted ({signer[:16]!r})",
            "pass the maker's public key with --trust",
        )
    try:
        raw = bytes.fromhex(signature)
        # one spelling only
        valid = raw.hex() == signature and signing.verified(signer, encoded, raw)
    except ValueError:
        valid = False
    if not valid:
        raise Unproven(path / MANIFEST, "altered: its signature does not match", EXPORT_AGAIN)
    return _manifest(encoded, path / MANIFEST)


def _require_constants(manifest: Manifest, predict: bytes, where: Path) -> None:
    """Raises BundleError if what the manifest says of a graph's constants cannot be so."""
    if manifest.constants is None and manifest.graph is None:
        return
    if manifest.constants is None or manifest.graph is None:
        raise BundleError(
            where, "expected both constants and graph, or neither, found one of them", EXPORT_AGAIN
        )
    if weights.hash_of_shapes(manifest.arrays) != manifest.shapes:
        raise BundleError(where, "its shapes are not those of its network", EXPORT_AGAIN)
    try:
        patch.require_fit(predict, manifest.constants)
        patch.require_counts(
            manifest.constants,
            {name: math.prod(shape) for name, shape in manifest.arrays.items()},
        )
        is_same = patch.graph_hash(predict, manifest.constants) == manifest.graph
    except BundleError as error:
        raise BundleError(
            where, f"what it says of predict.tflite cannot be so ({error})", EXPORT_AGAIN
        ) from None
    if not is_same:
        raise BundleError(where, "predict.tflite is not of the graph that it names", EXPORT_AGAIN)


def _manifest(encoded: bytes, where: Path) -> Manifest:
    """A signed manifest, if it describes a bundle of ours."""
    try:
        table = json.loads(encoded)
        format = table.get("format") if isinstance(table, dict) else None
        if format not in READABLE:
            raise BundleError(
                where,
                f"expected format {' or '.join(map(str, READABLE))}, found {format!r}",
                "update Fedboard or export again",
            )
        manifest = config.from_json(Manifest, encoded, str(where))
    except (ValueError, RecursionError, ConfigError) as error:
        raise BundleError(
            where, f"not a manifest of format {FORMAT} ({error})", "update Fedboard or export again"
        ) from None
    if missing := sorted(set(FILES) - manifest.files.keys()):
        raise BundleError(where, f"does not list {', '.join(missing)}", EXPORT_AGAIN)
    if unknown := sorted(manifest.files.keys() - {*FILES, *OPTIONAL}):
        raise BundleError(
            where, f"lists {unknown[0]!r}, which no bundle of format {FORMAT} has", EXPORT_AGAIN
        )
    if not 1 <= manifest.text_rules <= RULES:
        raise BundleError(
            where,
            f"expected text rules {RULES} or earlier, found text rules {manifest.text_rules}",
            "update Fedboard: by its rules this bundle has other words",
        )
    if versions.numbers(manifest.minimum_runtime) is None:
        raise BundleError(
            where,
            "expected a version such as 2.14.0 as minimum_runtime, found "
            f"{manifest.minimum_runtime!r}",
            EXPORT_AGAIN,
        )
    try:
        require_pins(manifest.pins, str(where))
    except ConfigError as error:
        raise BundleError(where, f"cannot be so ({error})", EXPORT_AGAIN) from None
    return manifest


def require_pins(pins: Pins, where: str) -> None:
    """Raises ConfigError for a helper that is no key, or that no such aggregation has, and for a
    budget that is none.
    """
    _require_budget(pins, where)
    helper = pins.helper
    if helper is None:
        return
    if not _KEY.fullmatch(helper):
        raise ConfigError(
            f"{where}: helper",
            f"expected a public key of 64 hexadecimal digits, found {helper[:64]!r}",
            "give the key that `fedboard helper` prints",
        )
    if pins.aggregation not in (None, Aggregation.HELPER):
        raise ConfigError(
            f"{where}: helper",
            f"expected none for aggregation {pins.aggregation}, found {helper[:16]}",
            "leave out one of them",
        )


def _require_budget(pins: Pins, where: str) -> None:
    if (pins.epsilon is None) != (pins.delta is None):
        raise ConfigError(
            f"{where}: epsilon",
            f"expected an epsilon with its delta, found epsilon {pins.epsilon}, delta {pins.delta}",
            "give both or none",
        )
    if pins.epsilon is not None:
        bounds.within(f"{where}: epsilon", pins.epsilon, 0.0, 1e6)
        bounds.within(f"{where}: delta", pins.delta, 1e-300, 0.5)
    if pins.noise is False or (pins.epsilon is not None and not pins.noise):
        raise ConfigError(
            f"{where}: noise",
            f"expected true where noise is asked for, and else nothing, found {pins.noise}",
            "leave it out, or require noise",
        )


def require_runtime(manifest: Manifest, where: object) -> None:
    """Raises BundleError if the interpreter of this device is older than a bundle needs."""
    runtime = _named(interpreter.chosen()) if interpreter.installed() else ""
    if versions.meets(runtime, manifest.minimum_runtime) is False:
        raise BundleError(
            where,
            f"needs tflite-runtime {manifest.minimum_runtime} or later, found {runtime}",
            "update the runtime, or keep the bundle you have",
        )


def runtime_version() -> str:
    """What a device says of its interpreters when it checks in: the bare version of tflite-runtime,
    which any server understands, else `ai-edge-litert` and its version; empty where there is none.
    """
    runtimes = sorted(interpreter.installed(), key=lambda each: each.name == versions.LITERT)
    return _named(runtimes[0]) if runtimes else ""


def _named(runtime: interpreter.Runtime) -> str:
    return str(runtime) if runtime.name == versions.LITERT else runtime.version


def _read(path: Path, most: int) -> bytes:
    try:
        if (size := path.stat().st_size) > most:
            raise BundleError(path, f"expected {most} bytes, found {size}", EXPORT_AGAIN)
        return path.read_bytes()
    except OSError as error:
        raise BundleError(path, f"cannot be read ({error.strerror})", EXPORT_AGAIN) from None
