"""A release without TensorFlow: a template and new weights -> a signed bundle, once it is right.

    template (a bundle) + checkpoint -> patched: predict.tflite with the weights that devices get
                                     -> measured: within the gate, no worse than what is served
                                     -> written: card, manifest, signature

The graphs are the template's: that of training byte for byte, that of predictions but for its
constants. So what was measured of a graph alone is taken over from the template.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from conversion import card, gate, int8
from conversion.gate import SURE
from conversion.scoring import bundle_engine
from device_runtime import bundle, patch, weights
from device_runtime.bundle import Bundle, Lineage, Manifest
from device_runtime.errors import BundleError
from device_runtime.weights import Checkpoint, Weights
from model import comparison, evaluation
from model.corpus import Users

CODES_APART = 0.501  # of a scale: rounding alone is half of one
GRAPH_NATS = 0.005  # mean difference of a word's loss: the graph rounds what passes through it too
GRAPH_ROWS = 256  # texts that the patched graph is held to the network on
TOLERANCE = 0.3  # points of top-1 a release may lose on the corpus before chance has to explain it
USERS, LAST = 200, 10  # of the corpus, and messages of each, that both releases are scored on
# figures of a template that are of its graph alone; the file with other constants has them too
OF_GRAPH = ("parity_steps", "parity_weights", "parity_loss")
EXPORT = "export it once with `fedboard export` and give that bundle with --bundle"
WITHIN_LIMITS = "yes: devices learnt it, each within its own limits"


@dataclass(frozen=True)
class Parts:
    """What a release is made of."""

    template: Bundle
    checkpoint: Checkpoint  # float32, as the server holds it
    lineage: Lineage
    release: int
    served: Bundle | None = None  # what devices run now; None: no release


@dataclass(frozen=True)
class Text:
    """What is measured on."""

    rows: np.ndarray  # int32 [n, plan.length + 1]
    said: str  # whose text it is, in words
    users: Users | None = None  # whose messages both releases are scored on; None: nobody's


@dataclass(frozen=True)
class Corpus:
    """The new release minus the one served, on the same words of the same users: top-1."""

    users: int
    words: int
    points: float  # gained
    interval: tuple[float, float]  # 95 %, points

    @property
    def error(self) -> float:
        """Standard error of the points gained, as wide as the interval says."""
        return (self.interval[1] - self.interval[0]) / 2 / 1.96

    @property
    def allowed(self) -> float:
        """Points that may be lost: as few words as are at hand refuse nothing by chance."""
        return max(TOLERANCE, SURE * self.error)

    @property
    def seen(self) -> float:
        """Points: a true loss of so much would have been refused in 95 of 100 comparisons."""
        return self.allowed + SURE * self.error

    @property
    def problem(self) -> str:
        """Why the release does worse, in words; empty if it does not."""
        low, high = self.interval
        words = (
            f"{-self.points:.2f} points of top-1 fewer than the release served on {self.words:,} "
            f"words of {self.users:,} users ({low:+.2f} to {high:+.2f})"
        )
        if high < 0:
            return f"{words}, expected none beyond chance"
        if self.points < -self.allowed:
            return f"{words}, expected at most {self.allowed:.2f}"
        return ""

    @property
    def manifest(self) -> dict[str, float]:
        """The figures that are signed, by name."""
        return {
            "served_words": float(self.words),
            "served_top1_points_gained": self.points,
            "served_top1_points_error": self.error,
            "served_top1_points_loss_seen": self.seen,
        }


@dataclass(frozen=True)
class Fleet:
    """The same by the task's federated evaluations: other devices for each."""

    devices: tuple[int, int]  # that scored the checkpoint served, and the new one
    points: float  # gained
    error: float  # its standard error, points
    worse: bool

    @property
    def problem(self) -> str:
        """Why the release does worse, in words; empty if it does not."""
        if not self.worse:
            return ""
        return (
            f"{-self.points:.2f} points of top-1 fewer than the checkpoint served, by what "
            f"{self.devices[1]} and {self.devices[0]} devices reported (standard error "
            f"{self.error:.2f})"
        )

    @property
    def manifest(self) -> dict[str, float]:
        """The figures that are signed, by name."""
        return {
            "fleet_devices": float(self.devices[1]),
            "fleet_top1_points_gained": self.points,
            "fleet_top1_points_error": self.error,
        }


@dataclass(frozen=True)
class Measured:
    """All that is measured of a release before it is signed."""

    gate: gate.Gate
    codes_apart: float  # largest distance of a weight from its code, in scales
    graph_nats: float  # mean difference of a word's loss: patched graph, and network of its codes
    corpus: Corpus | None
    fleet: Fleet | None

    @property
    def manifest(self) -> dict[str, float]:
        """The figures that are signed, by name."""
        return {
            **self.gate.manifest,
            "patch_codes_apart": self.codes_apart,
            "patch_graph_nats": self.graph_nats,
            **(self.corpus.manifest if self.corpus else {}),
            **(self.fleet.manifest if self.fleet else {}),
        }

    @property
    def problems(self) -> list[str]:
        """Why it may not be signed, whatever anybody says; a figure that is no number is one."""
        apart = f"a weight is {self.codes_apart:.3f} scales from its code"
        nats = f"the patched graph and the network differ by {self.graph_nats:.4f} nats a word"
        return [
            *self.gate.problems,
            *(
                f"{words}, expected at most {limit}"
                for value, limit, words in (
                    (self.codes_apart, CODES_APART, apart),
                    (self.graph_nats, GRAPH_NATS, nats),
                )
                if not value <= limit
            ),
        ]

    @property
    def worse(self) -> list[str]:
        """Why it is worse than what is served: its maker may have reasons to release it still."""
        return [each.problem for each in (self.corpus, self.fleet) if each and each.problem]


@dataclass
class Clock:
    """Seconds that each step took, by name."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time the block."""
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began


def require_template(template: Bundle, checkpoint: Checkpoint) -> None:
    """Raises BundleError if the template cannot be patched to this checkpoint's weights."""
    manifest, where = template.manifest, template.path / bundle.MANIFEST
    if manifest.constants is None:
        raise BundleError(
            where,
            f"a bundle of format {manifest.format} does not say where its graph has its weights, "
            "so no other weights can be put there",
            EXPORT,
        )
    if weights.shapes_hash(checkpoint.weights) != manifest.shapes:
        raise BundleError(where, "its graphs are of another size than the checkpoint", EXPORT)
    if checkpoint.tokenizer != manifest.tokenizer:
        raise BundleError(
            where,
            f"expected the checkpoint's vocabulary {checkpoint.tokenizer[:16]}, found "
            f"{manifest.tokenizer[:16]}",
            EXPORT,
        )
    if missing := [name for name in OF_GRAPH if name not in manifest.gate]:
        raise BundleError(where, f"was signed without the figure {missing[0]}", EXPORT)


def patched(template: Bundle, checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files of the release, by name, without its card.

    Raises BundleError for a template that does not fit, or weights that are not finite in float16.
    """
    require_template(template, checkpoint)
    constants = template.manifest.constants or {}
    half = weights.as_sent(checkpoint.weights)  # what devices get is what is quantised
    predict = patch.predict(template.predict_graph, constants, half)
    return {
        **template.content,
        bundle.PREDICT: predict,
        bundle.CHECKPOINT: weights.to_bytes(checkpoint, np.float16),
    }


def measure(
    parts: Parts,
    content: dict[str, bytes],
    text: Text,
    fleet: Fleet | None,
    clock: Clock,
) -> Measured:
    """Measure the files of a release on a text, and against the release served."""
    half, template = weights.as_sent(parts.checkpoint.weights), parts.template.manifest
    predict = content[bundle.PREDICT]
    with clock.step("patched graph against the network"):
        stands_for = patch.weights_in(predict, template.constants or {}, template.arrays)
        codes_apart = _codes_apart(half, stands_for, template)
        graph_nats = _graph_nats(predict, stands_for, text.rows[:GRAPH_ROWS])
    with clock.step("int8 against float"):
        steps, *apart = (template.gate[name] for name in OF_GRAPH)
        measured = gate.measure(int(steps), (apart[0], apart[1]), predict, half, text.rows)
    corpus = None
    if parts.served is not None and text.users is not None:
        with clock.step("against the release served"):
            corpus = _against(replace(parts.template, content=content), parts.served, text.users)
    return Measured(measured, codes_apart, graph_nats, corpus, fleet)


def package(
    path: Path,
    parts: Parts,
    content: dict[str, bytes],
    measured: Measured,
    key: Ed25519PrivateKey,
    notes: tuple[str, ...],
    even_if_worse: str = "",
) -> Manifest:
    """Sign and write a release that was measured. Equal inputs give equal bytes.

    notes are sentences for its card. Raises BundleError, and writes nothing, if it breaks a limit,
    or does worse than the release served and no reason is given to release it still.
    """
    refuse(path, measured, even_if_worse)
    template = parts.template.manifest
    own = {*measured.manifest, *(name for name in template.gate if name.startswith(PASSING))}
    kept = {name: value for name, value in template.gate.items() if name not in own}
    figures = {**kept, **measured.manifest}
    files = {name: data for name, data in content.items() if name != bundle.CARD}
    size = card.NetworkSize(template.embedding, template.units)
    text = card.text(
        card.Card(
            template.network,
            size,
            template.vocabulary,
            parts.lineage,
            WITHIN_LIMITS,
            figures,
            files,
            notes,
            template.pins,
            template.language or "",
            template.text_rules or 1,
        )
    )
    files[bundle.CARD] = text.encode()
    manifest = replace(
        template,
        lineage=parts.lineage,
        files=bundle.describe(files),
        gate=figures,
        release=parts.release,
        format=bundle.FORMAT,
    )
    bundle.write(path, manifest, files, key)
    return manifest


PASSING = ("served_", "fleet_")  # figures of one release and none after it


def refuse(path: Path, measured: Measured, even_if_worse: str) -> None:
    """Raises BundleError if what was measured may not be signed."""
    if measured.problems:
        raise BundleError(
            path,
            "not signed: " + "; ".join(measured.problems),
            "train on, or export a bundle anew with `fedboard export`",
        )
    if measured.worse and not even_if_worse:
        raise BundleError(
            path,
            "not signed: " + "; ".join(measured.worse),
            "train on, make it of another --round, or give a reason with --even-if-worse",
        )


def _codes_apart(half: Weights, stands_for: Weights, manifest: Manifest) -> float:
    """Largest distance of a weight from what its code stands for, in scales; of an array that is
    held as it is, 0 if it is the same and infinity if not.
    """
    apart = 0.0
    for name, constant in (manifest.constants or {}).items():
        difference = float(np.abs(half[name] - stands_for[name]).max(initial=0.0))
        if constant.type == patch.INT8:
            scale = patch.scale_for(float(np.abs(half[name]).max(initial=0.0)) * constant.factor)
            apart = max(apart, difference * constant.factor / scale)
        elif difference:
            apart = float("inf")
    return apart


def _graph_nats(predict: bytes, stands_for: Weights, rows: np.ndarray) -> float:
    """How far the losses of the graph and of the network with the graph's own weights lie apart, in
    nats, over the words of rows: only what the graph rounds as it runs is left between them.
    """
    return abs(int8.difference(predict, stands_for, rows).nats)


def _against(new: Bundle, served: Bundle, users: Users) -> Corpus:
    """Score both on the same words, as their files are shipped. The same inputs draw the same
    interval.
    """
    scope = evaluation.Scope(last=LAST, max_users=USERS)
    left, right = (
        evaluation.evaluate(
            bundle_engine(each), users, each.vocabulary, replace(scope, blocked=each.blocked)
        )
        for each in (new, served)
    )
    change, low, high = comparison.difference(left, right, "top1", np.random.default_rng(0))
    return Corpus(len(left.users), left.total.targets, 100 * change, (100 * low, 100 * high))
