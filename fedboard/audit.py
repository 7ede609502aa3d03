"""The audit stage: a run, a bundle or a device's home -> how much its networks tell of secrets."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from conversion import audit
from conversion.audit import FORMAT, Audit, Floats, Language, Limits, Told
from device_runtime import config, durable, personal, weights
from device_runtime.bundle import Bundle
from device_runtime.errors import ConfigError, RunError
from device_runtime.home import Home
from device_runtime.reader import Reader
from device_runtime.text import Vocabulary
from fedboard import planting
from fedboard.run import checkpoint_of, open_bundle, require_fit, vocabulary_of

REPORT, PLOT = "audit.json", "audit.svg"


@dataclass(frozen=True)
class Target:
    """The networks that are audited, by name, and the checkpoint that they come of."""

    checkpoint: str  # SHA-256
    vocabulary: Vocabulary
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
        return Target(bundle.manifest.lineage.checkpoint, bundle.vocabulary, networks)
    file = checkpoint_of(Path(path))
    checkpoint, vocabulary = weights.read(file), vocabulary_of(file)
    require_fit(checkpoint, vocabulary, file)
    vocabulary.require_words("an audit")
    name = weights.digest(weights.to_bytes(checkpoint))
    return Target(name, vocabulary, {"float": Floats(checkpoint.weights)})


def audited(
    path: Path, secrets: Path, limits: Limits, seed: int, trust: list[Path] | None
) -> Audit:
    """The audit of a target by the secrets that were planted in what it learnt from."""
    planted, data = planting.read(secrets)
    target = target_of(path, trust)
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
    return audit.judged(target.checkpoint, weights.digest(data), results, limits)


def write(report: Audit, out: Path) -> tuple[Path, str]:
    """audit.json in a folder, and its SHA-256: what a bundle's lineage names."""
    data = config.to_json(report)
    durable.share(Path(out) / REPORT, data)
    return Path(out) / REPORT, weights.digest(data)


def read(path: Path) -> tuple[Audit, str]:
    """A report and its SHA-256. Raises ConfigError for a file that is none."""
    remedy = "name the audit.json of `fedboard audit`"
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(path, f"cannot be read ({error.strerror})", remedy) from None
    report = config.from_json(Audit, data, str(path))
    if report.format != FORMAT:
        raise ConfigError(path, f"expected format {FORMAT}, found {report.format[:40]!r}", remedy)
    return report, weights.digest(data)


def required(path: Path, checkpoint: str) -> str:
    """The SHA-256 of a report that lets this very checkpoint pass. Raises RunError for another's,
    or one that does not pass.
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
    if not report.told or not again.passed or report.problems:
        reason = (*report.problems, *again.problems, "it asked for no secret")[0]
        raise RunError(
            path, f"expected an audit that passed, found: {reason}", "train with more noise"
        )
    return name


def is_silent(report: Audit) -> bool:
    """Whether none of its secrets is told, of however many users: a network that never learnt from
    the corpus they were planted in looks like that too, and passes.
    """
    most = report.limits.most_exposure
    return not any(each.users and (each.extracted or each.exposure > most) for each in report.told)


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
    return Target(bundle.manifest.lineage.checkpoint, bundle.vocabulary, {"personal": language})
