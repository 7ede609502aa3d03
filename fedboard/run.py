"""A run's folder: what stands where, and how a target named on the command line is found in it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import config, durable, signing, weights
from device_runtime.bundle import NO_PRIVACY, Bundle, open_verified
from device_runtime.errors import CheckpointError, RunError
from device_runtime.text import Vocabulary
from model.recipe import Recipe

KEYS = Path(os.environ.get("FEDBOARD_KEYS", "runs/keys"))


@dataclass(frozen=True)
class Run:
    """Paths of one run.

    `Settings` in config.toml mark a folder as ours, so that only such a folder is ever replaced.
    """

    path: Path

    @property
    def config(self) -> Path:
        """What the run was asked for; see `Settings`."""
        return self.path / "config.toml"

    @property
    def tokenizer(self) -> Path:
        """The vocabulary, as `.model`."""
        return self.path / "tokenizer.model"

    @property
    def checkpoints(self) -> Path:
        """Weights, and saved program states."""
        return self.path / "checkpoints"

    @property
    def first(self) -> Path:
        """The weights it started from."""
        return self.checkpoints / "first.safetensors"

    @property
    def state(self) -> Path:
        """Saved program states, from which --resume goes on."""
        return self.checkpoints / "state"

    @property
    def last(self) -> Path:
        """The weights evaluated last."""
        return self.checkpoints / "last.safetensors"

    @property
    def best(self) -> Path:
        """The weights that scored best."""
        return self.checkpoints / "best.safetensors"

    @property
    def metrics(self) -> Path:
        """A line of numbers a round."""
        return self.path / "metrics.csv"

    @property
    def evaluations(self) -> Path:
        """Results of `fedboard evaluate`, one file a system."""
        return self.path / "evaluations"

    @property
    def bundle(self) -> Path:
        """What devices install, where `fedboard export` writes it by default."""
        return self.path / "bundle"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    def settings(self) -> "Settings":
        """Its config.toml. Raises ConfigError for one that is none."""
        return config.from_toml(Settings, self.config)


@dataclass(frozen=True)
class Settings:
    """config.toml of a run: enough to do it again."""

    data: str = "chitchat"
    init: str = ""  # run or checkpoint whose weights and tokenizer training starts from
    central: bool = False  # whether all text is in one place
    recipe: Recipe = field(default_factory=Recipe)


def create(path: Path, settings: Settings, replace: bool) -> Run:
    """An empty run folder with its config.

    An older run there is removed only if `replace`; anything else there is an error.

    Raises RunError if the folder is taken or cannot be written.
    """
    require_free(path, replace)
    run = Run(Path(path))
    try:
        if run.config.is_file():
            clear(run)
        run.path.mkdir(parents=True, exist_ok=True)
        durable.share(run.config, config.to_toml(settings).encode())
        run.checkpoints.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(
            run.path, f"cannot be written ({error.strerror})", "choose a folder you may write to"
        ) from None
    return run


def require_free(path: Path, replace: bool) -> None:
    """Raises RunError if a run cannot go to this folder because of what is in it."""
    run = Run(Path(path))
    try:
        taken = run.path.exists() and any(run.path.iterdir())
    except OSError as error:
        raise RunError(
            run.path, f"cannot be read ({error.strerror})", "choose another folder"
        ) from None
    if taken and not run.config.is_file():
        raise RunError(run.path, "holds files that are not a Fedboard run", "choose another folder")
    if taken and not replace:
        raise RunError(
            run.path, "holds an earlier run", "choose another folder, or pass --overwrite"
        )


def clear(run: Run) -> None:
    """Remove a run's files, the config last.

    So an interrupted removal still leaves a folder known as ours.
    """
    for entry in sorted(run.path.iterdir(), key=lambda entry: entry == run.config):
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


@contextmanager
def writable(path: Path) -> Iterator[Path]:
    """A path whose folder exists.

    An operating system's refusal inside the block becomes a RunError.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        yield Path(path)
    except OSError as error:
        raise RunError(
            path, f"cannot be written ({error.strerror})", "choose a place you may write to"
        ) from None


def checkpoint_of(target: Path) -> Path:
    """The checkpoint file a target means: itself, or the best (else the last) of a run's folder."""
    target = Path(target)
    if target.is_dir():
        paths = [path for path in (Run(target).best, Run(target).last) if path.is_file()]
        if not paths:
            raise CheckpointError(
                target,
                "has no checkpoints/best.safetensors",
                "give a run of `fedboard train`, a bundle, or a .safetensors file",
            )
        return paths[0]
    if not target.is_file():
        raise CheckpointError(
            target,
            "no such file or folder",
            "give a run, a bundle, a .safetensors file, or a baseline's name",
        )
    return target


def run_of(target: Path) -> Run | None:
    """The run a target belongs to: the folder itself, or the one whose checkpoints/ holds it.

    None if there is none.
    """
    target = Path(target)
    return next(
        (run for run in (Run(target), Run(target.parent.parent)) if run.config.is_file()), None
    )


def privacy_of(settings: Settings | None) -> str:
    """What a bundle's lineage says of privacy: what is known of the run, and no more."""
    if settings is None:
        return "unknown: the checkpoint came without its run"
    if settings.central:
        return "none: trained with all text in one place"
    privacy = settings.recipe.privacy
    if privacy.mechanism == "none":
        return NO_PRIVACY
    return (
        f"{privacy.mechanism} noise of multiplier {privacy.noise_multiplier:g} was added in "
        "training, but nothing accounts for what was spent"
    )


def vocabulary_of(checkpoint: Path, tokenizer: Path | None = None) -> Vocabulary:
    """The vocabulary of a checkpoint file: the one named, else that beside it or one folder up."""
    if tokenizer is not None:
        return Vocabulary.read(tokenizer)
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        if (folder / "tokenizer.model").is_file():
            return Vocabulary.read(folder / "tokenizer.model")
    raise CheckpointError(
        checkpoint, "no tokenizer.model beside it or one folder up", "pass --tokenizer FILE"
    )


def require_fit(checkpoint: weights.Checkpoint, vocabulary: Vocabulary, where: object) -> None:
    """Raises CheckpointError if the checkpoint was trained with another vocabulary."""
    if checkpoint.tokenizer != vocabulary.hash:
        raise CheckpointError(
            where,
            "was trained with another vocabulary than the tokenizer given",
            "pass the tokenizer.model of its run",
        )


def trusted_keys(trust: list[Path] | None) -> frozenset[str]:
    """Public keys whose bundles may be opened: the files given, else our own signing key's."""
    paths = trust or [KEYS / "signing.pub"]
    try:
        return frozenset(path.read_text().strip() for path in paths)
    except OSError as error:
        raise RunError(
            paths[0],
            f"no trusted public key ({error.strerror})",
            "pass the bundle maker's key with --trust FILE",
        ) from None


# with its maker's public key beside it, reference.pub
REFERENCE = Path(__file__).parents[1] / "bundles" / "reference"


def open_bundle(path: Path | None, trust: list[Path] | None) -> Bundle:
    """The verified bundle at `path`, or the repository's reference bundle.

    A missing folder is said before a missing key.
    """
    if path is None or Path(path).resolve() == REFERENCE:
        if not REFERENCE.is_dir():
            raise RunError(
                "bundle",
                "none was named, and only a checkout of the repository has a reference bundle",
                "name a bundle's folder",
            )
        return open_verified(REFERENCE, trusted_keys(trust or [REFERENCE.with_suffix(".pub")]))
    return open_verified(path, trusted_keys(trust) if Path(path).exists() else frozenset())


def signing_key(path: Path | None) -> Ed25519PrivateKey:
    """The private key bundles are signed with, made on first use.

    Its public half is kept beside it as `<name>.pub`.
    """
    path = path or KEYS / "signing.key"
    key = signing.load_or_create(path)
    with writable(path.with_suffix(".pub")) as public:
        if not public.is_file() or public.read_text().strip() != signing.public_hex(key):
            durable.share(public, signing.public_hex(key).encode() + b"\n")
    return key
