"""The audit stage: a run, a bundle or a device's home -> how much its networks tell of secrets."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from conversion import audit
from conversion.audit import FORMAT, Audit, Floats, Language, Limits, Planted, Told
from device_runtime import config, durable, personal, weights
from device_runtime.bundle import Bundle
from device_runtime.errors import ConfigError, RunError
from device_runtime.home import Home
from device_runtime.reader import Reader
from device_runtime.text import Vocabulary
from fedboard import planting, source
from fedboard.run import Source, checkpoint_of, open_bundle, require_fit, vocabulary_of

REPORT, PLOT = "audit.json", "audit.svg"
NOT_KNOWN = Source("", "", "")
DOUBTED = (
    "audit a run, or a bundle of one, that was trained on the corpus of `fedboard data plant`, "
    "with secrets of more --users or trained for longer"
)


@dataclass(frozen=True)
class Target:
    """The networks that are audited, by name, and the checkpoint that they come of."""

    checkpoint: str  # SHA-256
    vocabulary: Vocabulary
    corpus: Source  # it was trained on; without a digest or a name: not known
    networks: dict[str, Language] = field(repr=False)


@dataclass(frozen=True)
class Row:
    """Secrets of as many words and users together, told by one network."""

    network: str
    words: int
    users: int
    secrets: int
    exposure: float  # mean, bits
    largest: float
    space: float  # bits
    extracted: int


def target_of(path: Path, trust: list[Path] | None) -> Target:
    """What is audited of a run or checkpoint (its float network), a bundle (its int8 file, and its
    float network unless it is lean) or a device's home (the personal network).

    Raises RunError for a device that serves none, and whatever is wrong with the target.
    """
    if (Path(path) / "device.toml").is_file():
        return _of_home(Path(path))
    if (Path(path) / "manifest.json").is_file() or Path(path).suffix == ".zip":
        bundle = open_bundle(path, trust)
        networks: dict[str, Language] = {"int8": Reader(bundle.predict_graph)}
        if not bundle.is_lean:
            networks["float"] = Floats(bundle.checkpoint.weights)
        line = bundle.manifest.lineage
        # a release has been trained further than the run it lies in
        run = source.of_target(str(path)) if line.task is None else None
        trained = Source(line.corpus, "", "") if run is None else source.of(run)
        return Target(line.checkpoint, bundle.vocabulary, trained, networks)
    file = checkpoint_of(Path(path))
    checkpoint, vocabulary = weights.read(file), vocabulary_of(file)
    require_fit(checkpoint, vocabulary, file)
    vocabulary.require_words("an audit")
    name = weights.digest(weights.to_bytes(checkpoint))
    own = source.of_target(str(file))
    trained = NOT_KNOWN if own is None else source.of(own)
    return Target(name, vocabulary, trained, {"float": Floats(checkpoint.weights)})


def audited(
    path: Path, secrets: Path, limits: Limits, seed: int, trust: list[Path] | None
) -> Audit:
    """The audit of a target by the secrets that were planted in what it learnt from.

    Raises RunError for a target that was trained on another corpus.
    """
    if not Path(path).exists():
        raise RunError(
            path,
            "no such file or folder",
            "name a run, a checkpoint, a bundle or a device's folder",
        )
    planted, data = planting.read(secrets)
    target = target_of(path, trust)
    corpus = _same(target.corpus, planted, path, secrets)
    results: list[Told] = []
    for name, language in target.networks.items():
        rng = np.random.default_rng([seed, 7])  # the same candidates for all networks
        results += audit.told(name, language, target.vocabulary, planted, rng)
    if not results:
        raise ConfigError(
            secrets,
            "expected a secret whose words the vocabulary has, found none",
            "name the secrets of the corpus that it was trained on",
        )
    return audit.judged(target.checkpoint, weights.digest(data), results, limits, corpus)


def write(report: Audit, out: Path) -> tuple[Path, str]:
    """audit.json in a folder, and its SHA-256: what a bundle's lineage names."""
    data = config.to_json(report)
    durable.share(Path(out) / REPORT, data)
    return Path(out) / REPORT, weights.digest(data)


def read(path: Path) -> tuple[Audit, str]:
    """A report and its SHA-256. Raises ConfigError for a file that is none."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            path, f"cannot be read ({error.strerror})", "name the audit.json of `fedboard audit`"
        ) from None
    anew = "audit it anew: `fedboard audit`"
    return audit.opened(Audit, FORMAT, data, path, anew), weights.digest(data)


def required(path: Path, checkpoint: str) -> str:
    """The SHA-256 of a report that lets this very checkpoint pass. Raises RunError for another's,
    one that does not pass, or one that shows nothing (`audit.doubts`).
    """
    report, name = read(path)
    if report.checkpoint != checkpoint:
        raise RunError(
            path,
            f"expected the audit of checkpoint {checkpoint[:16]}, found that of "
            f"{report.checkpoint[:16]}",
            "audit what you are about to release: `fedboard audit`",
        )
    # what it says of itself is not believed: its own figures are
    again = audit.judged(report.checkpoint, report.secrets, report.told, report.limits)
    if not again.passed or report.problems:
        reason = (*report.problems, *again.problems)[0]
        raise RunError(
            path, f"expected an audit that passed, found: {reason}", "train with more noise"
        )
    if unsure := audit.doubts(report):
        raise RunError(
            path, f"expected an audit that could have failed, found: {unsure[0]}", DOUBTED
        )
    return name


def rows(told: Sequence[Told]) -> list[Row]:
    """Secrets of as many words and users together."""
    groups: dict[tuple[str, int, int], list[Told]] = defaultdict(list)
    for each in told:
        groups[each.network, each.words, each.users].append(each)
    return [
        Row(
            network,
            words,
            users,
            len(own),
            float(np.mean([each.exposure for each in own])),
            max(each.exposure for each in own),
            max(each.space for each in own),
            sum(each.extracted for each in own),
        )
        for (network, words, users), own in sorted(groups.items())
    ]


def draw(report: Audit, out: Path) -> Path:
    """The exposure of every secret by the users who typed it, as an SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = sorted({each.network for each in report.told})
    users = sorted({each.users for each in report.told})
    figure, axes = pyplot.subplots(
        1, len(names), figsize=(4.2 * len(names), 3.2), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[0], names, strict=True):
        for each in report.told:
            if each.network == name:
                place = users.index(each.users) + 0.12 * (each.words - 2.5)
                colour = "#b3261e" if each.extracted and each.users else "#0b7a75"
                axis.plot(place, each.exposure, "o", color=colour, markersize=3 + each.words)
        axis.axhline(report.limits.most_exposure, color="#1f2328", linewidth=0.8, linestyle=":")
        axis.set_xticks(range(len(users)), [str(each) if each else "nobody" for each in users])
        axis.set_title(f"{name}: red is said by itself", fontsize=9)
        axis.set_xlabel("users who typed the secret (larger: more words)")
        axis.set_ylabel("exposure, bits")
        axis.spines[["top", "right"]].set_visible(False)
    path = Path(out) / PLOT
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def _same(trained: Source, planted: Planted, path: Path, secrets: Path) -> str:
    """What is known to be the corpus of both: its digest, or its name alone, or nothing."""
    if not (trained.digest or trained.name):
        return ""
    named = Source(Path(trained.name).name, trained.path, trained.digest)
    if source.is_same(named, Source(planted.name, "", planted.corpus)):
        return planted.corpus if trained.digest else planted.name
    raise RunError(
        path,
        f"was trained on the corpus {trained.name}, digest {source.short(trained)}, expected that "
        f"of {secrets}: {planted.name}, digest {planted.corpus[: source.SHORT]}",
        "name the secrets that were planted in its corpus with --secrets, or train on that one",
    )


def _of_home(folder: Path) -> Target:
    home = Home.open(folder)
    bundle: Bundle = home.bundle()
    served = personal.served(home, bundle)
    if served.network is None:
        raise RunError(
            folder,
            "expected a personal network, found none that this device serves",
            "see `fedboard device status`, or audit its bundle",
        )
    own = served.network
    language: Language = Reader(own) if isinstance(own, bytes) else Floats(own)
    checkpoint = bundle.manifest.lineage.checkpoint  # what its owner typed is no corpus
    return Target(checkpoint, bundle.vocabulary, NOT_KNOWN, {"personal": language})
