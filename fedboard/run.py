"""A run's folder: what stands where, and how a target named on the command line is found in it."""

import os
import string
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import bundle, config, durable, folder, home, signing, weights
from device_runtime.bundle import Bundle, open_verified
from device_runtime.errors import CheckpointError, ConfigError, FedboardError, RunError
from device_runtime.text import Vocabulary
from model.recipe import Recipe

PROBE_BYTES = 4096
KEYS = Path(os.environ.get("FEDBOARD_KEYS", "runs/keys"))


@dataclass(frozen=True)
class Run:
    """Paths of one run."""

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
    def written(self) -> Path:
        """How words of the vocabulary are usually written, where they are compared otherwise."""
        return self.path / "written.txt"

    @property
    def left_out(self) -> Path:
        """Which words stayed out of the vocabulary, and why; a `spellings.Summary`."""
        return self.path / "left_out.json"

    @property
    def counts(self) -> Path:
        """What people typed, as a task has counted it: of a run whose vocabulary is its words."""
        return self.path / "counts.tsv"

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
    def users(self) -> Path:
        """Which users it used, where its clients keep to the limits of a device; see `Used`."""
        return self.path / "users.json"

    @property
    def tensorboard(self) -> Path:
        """The same for TensorBoard."""
        return self.path / "tensorboard"

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
    # file of a task's counts (`fedboard task counts --out`), whose words the vocabulary is; empty:
    # the corpus' own
    words: str = ""
    # folder of a fleet's population, by whose devices' days clients are drawn; empty: all clients
    # are always there
    population: str = ""

    def __post_init__(self) -> None:
        """Raises ConfigError for a name that no TOML file could hold, and for pieces of words that
        were counted whole.
        """
        if (self.words or self.recipe.least_people) and self.recipe.tokenizer != "words":
            raise ConfigError(
                "tokenizer",
                f"expected words where people are counted, found {self.recipe.tokenizer}",
                "leave out --least-people and --vocabulary-from: pieces are learnt from all text",
            )
        for name in ("data", "init", "words", "population"):
            try:
                getattr(self, name).encode()
            except UnicodeEncodeError:
                raise ConfigError(
                    name, "expected a name of UTF-8 characters, found others", "rename it"
                ) from None


@dataclass(frozen=True)
class Source:
    """The corpus that a run is trained on."""

    name: str  # as it was named: `chitchat`, or a directory
    path: str  # of a directory, absolute; empty for a corpus that has none
    digest: str  # SHA-256, see `model.corpus.Corpus`


@dataclass(frozen=True)
class Mark:
    """run.json: says that a folder is a run's, and which command's."""

    format: str
    kind: str  # TRAINED or DEMO
    corpus: Source | None = None  # None: not known


FORMAT, TRAINED, DEMO = "fedboard-run-1", "train", "demo"
MARK = "run.json"


def mark_of(folder: Path) -> Mark | None:
    """What a folder says of the run in it; None if it is no run's.

    Earlier versions wrote no run.json: a run of theirs has a config and first weights, a demo the
    bundle of its simulation too.
    """
    path = Path(folder) / MARK
    try:
        mark = config.from_json(Mark, path.read_bytes(), str(path))
        return mark if mark.format == FORMAT and mark.kind in (TRAINED, DEMO) else None
    except FileNotFoundError:
        pass
    except (OSError, ConfigError):
        return None
    try:
        Run(path.parent).settings()
        weights.read(Run(path.parent).first)
    except FedboardError:
        return None
    is_demo = bundle.FOLDER.is_ours(path.parent / SIMULATED)
    return Mark(FORMAT, DEMO if is_demo else TRAINED)


SIMULATED = "bundle-simulation"  # of a demo: its first bundle
_HOLDS = (
    "population/population.toml",
    "population/columns.npz",
    *(MARK, "config.toml", "tokenizer.model", "counts.tsv", "metrics.csv", "report.html"),
    *("users.json", "written.txt", "left_out.json"),
    *("summary.json", "suggestions.json", "rounds.json", "evaluations/*.json"),
    *(f"checkpoints/{name}.safetensors" for name in ("first", "last", "best", "after")),
    "metrics.csv_temp[0-9]*",
    "checkpoints/state/program_state_*/**",
    "tensorboard/events.out.tfevents.*",
    *(f"bundle/{name}" for name in bundle.FOLDER.holds),
)
_DEMO_HOLDS = (
    *(
        "server.toml",
        "server.log",
        "outcomes.jsonl",
        "devices-*.log",
        "evaluate-*.log",
        "upgrade.log",
    ),
    *(f"{SIMULATED}/{name}" for name in bundle.FOLDER.holds),
    *(f"server/{name}" for name in ("address", "operator.token", "server.sqlite*", "blobs/*")),
    "devices/traces/device-*.tsv",
    *(f"devices/device-*/{name}" for name in home.FOLDER.holds),
)


def _wrote(path: Path) -> bool:
    """Whether what stands among a run's evaluations is one."""
    from fedboard import score

    if path.parent.name != "evaluations":
        return True
    try:
        score.read(path)
    except FedboardError:
        return False
    return True


def folder_kind(kind: str) -> folder.Kind:
    """What a folder of TRAINED or DEMO holds."""

    def is_ours(path: Path) -> bool:
        mark = mark_of(path)
        return mark is not None and mark.kind == kind

    return folder.Kind(
        "a run" if kind == TRAINED else "a demo",
        is_ours,
        _HOLDS if kind == TRAINED else _HOLDS + _DEMO_HOLDS,
        MARK,
        "choose another folder, or pass --overwrite",
        wrote=_wrote,
    )


def create(
    path: Path,
    settings: Settings,
    replace: bool,
    kind: str = TRAINED,
    corpus: Source | None = None,
) -> Run:
    """An empty run folder with its config, and the corpus it is trained on in its mark.

    An older run there is removed only if `replace`; files that are not a run's stay. The caller
    holds the folder (`folder.writing`).

    Raises RunError if the folder is taken or cannot be written.
    """
    require_free(path, replace, kind)
    run = Run(Path(path))
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        if not (run.path / MARK).exists():  # never without one: the folder stays known as ours
            durable.share(run.path / MARK, config.to_json(Mark(FORMAT, kind)))
        folder.clear(run.path, folder_kind(kind), keep=(MARK,))
        # only now: what is left of an earlier run must not be taken for one on this corpus
        durable.share(run.path / MARK, config.to_json(Mark(FORMAT, kind, corpus)))
        durable.share(run.config, config.to_toml(settings).encode())
        run.checkpoints.mkdir(exist_ok=True)
    except OSError as error:
        raise folder.cannot_write(folder_kind(kind), error.filename or run.path, error) from None
    return run


def require_free(path: Path, replace: bool, kind: str = TRAINED) -> None:
    """Raises RunError if a run cannot go to this folder because of what is in it."""
    folder.require_free(path, folder_kind(kind), replace)
    if Path(path).is_dir():
        folder.require_no_links(Path(path), folder_kind(kind))


@contextmanager
def writable(path: Path) -> Iterator[Path]:
    """A path whose folder exists: where a link leads, which itself stays.

    An operating system's refusal inside the block becomes a RunError.
    """
    try:
        place = Path(os.path.realpath(path))
        place.parent.mkdir(parents=True, exist_ok=True)
        yield place
    except OSError as error:
        raise RunError(
            path, f"cannot be written ({error.strerror})", "choose a place you may write to"
        ) from None


def require_result_file(path: Path, what: str, is_ours: Callable[[Path], bool]) -> None:
    """Raises RunError if a result cannot go to this file: a folder, a device, or a file with
    something else in it than `what` is there, or its folder cannot be written. Changes nothing.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise RunError(path, "is a folder, expected a file to write", "name a file in it")
        if path.exists() and not path.is_file():
            raise RunError(path, "is no ordinary file", "name another file")
        if path.is_file() and path.stat().st_size and not is_ours(path):
            remedy = "name another file; this one was left as it is"
            raise RunError(path, f"holds something else than {what}", remedy)
        place = Path(os.path.realpath(path))  # the link itself stays
        nearest = next(folder for folder in place.parents if folder.exists())
        if not nearest.is_dir():
            raise RunError(path, f"{nearest} is a file, expected a folder", "name another file")
        with tempfile.NamedTemporaryFile(dir=nearest, prefix=f".{path.name}.") as probe:
            probe.write(bytes(PROBE_BYTES))  # a full disk takes a file, but nothing into it
    except OSError as error:
        raise RunError(
            path, f"cannot be written ({error.strerror})", "choose a place you may write to"
        ) from None


def require_svg(path: Path) -> None:
    """Raises RunError for a plot's file whose name says that it holds another kind of picture."""
    if Path(path).suffix.lower() != ".svg":
        raise RunError(path, "expected a name that ends in .svg for an SVG drawing", "rename it")


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


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint of ours, whole."""
    try:
        weights.from_bytes(Path(path).read_bytes(), path)
    except (CheckpointError, OSError):
        return False
    return True


def run_of(target: Path) -> Run | None:
    """The run a target belongs to: the folder itself, or the one whose checkpoints/ holds it.

    None if there is none.
    """
    target = Path(target)
    return next(
        (run for run in (Run(target), Run(target.parent.parent)) if run.config.is_file()), None
    )


@dataclass(frozen=True)
class Used:
    """users.json of a run whose clients keep to the limits of a device: which train users it used;
    the others have typed too little for any update.
    """

    train: int  # users of the corpus
    users: tuple[str, ...]  # that updates could be made of


def used_of(run: Run | None) -> Used | None:
    """Which users a run used; None where that was not written. Raises ConfigError for a file that
    is none.
    """
    if run is None or not run.users.is_file():
        return None
    return config.from_json(Used, run.users.read_bytes(), str(run.users))


def limits_of(settings: Settings | None, used: Used | None = None) -> str:
    """Whether what a run learnt would have been learnt of devices, which hold their servers to
    limits of their own, and of how many users: what is known of the run, and no more.
    """
    if settings is None:
        return "unknown: the checkpoint came without its run"
    if settings.central:
        return "no: trained with all text in one place"
    if not settings.recipe.device_limits:
        return "no: simulated clients refused nothing (`device_limits` was off)"
    since = "; what it started from is not known" if settings.init else ""
    of = ""
    if used is not None:
        of = (
            f"; of {used.train:,} train users it used the {len(used.users):,} who have typed enough"
        )
    return f"yes, but for updates a day, as simulated rounds take no time{of}{since}"


def vocabulary_of(checkpoint: Path, tokenizer: Path | None = None) -> Vocabulary:
    """The vocabulary of a checkpoint file: the one named, else that beside it or one folder up."""
    if tokenizer is not None:
        return Vocabulary.read(tokenizer)
    for place in (checkpoint.parent, checkpoint.parent.parent):
        if (place / "tokenizer.model").is_file():
            return Vocabulary.read(place / "tokenizer.model")
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
    """Public keys whose bundles may be opened: the files given, else our own signing key's.

    Raises RunError for a file that is no public key.
    """
    return frozenset(map(public_key, trust or [KEYS / "signing.pub"]))


def public_key(path: Path, remedy: str = "pass the bundle maker's key with --trust FILE") -> str:
    """The public key in a file, hexadecimal. Raises RunError, with the remedy, for one without."""
    try:
        key = path.read_text().strip()
    except OSError as error:
        raise RunError(path, f"no trusted public key ({error.strerror})", remedy) from None
    except UnicodeDecodeError:
        key = ""
    if len(key) != 64 or not set(key) <= set(string.hexdigits):
        raise RunError(path, "expected a public key, 64 digits in hexadecimal", remedy)
    return key


def helper_key(named: str | None) -> str | None:
    """A helper's public key, written out or in a file; None if none is named. Raises RunError for
    what is neither.
    """
    if named is None:
        return None
    remedy = "give the key that `fedboard helper` prints, or a file with it"
    is_key = len(named) == 64 and set(named) <= set(string.hexdigits)
    return (named if is_key else public_key(Path(named), remedy)).lower()


# with its maker's public key beside it, reference.pub
REFERENCE = Path(__file__).parents[1] / "bundles" / "reference"
REFERENCE_KEY = REFERENCE.with_suffix(".pub")


def open_bundle(path: Path | None, trust: list[Path] | None) -> Bundle:
    """The verified bundle at `path`, a folder or a zip, or the repository's reference bundle, whose
    maker is trusted wherever a copy of it lies.

    A missing folder is said before a missing key.
    """
    if path is None or Path(path).resolve() == REFERENCE:
        if not REFERENCE.is_dir():
            raise RunError(
                "bundle",
                "none was named, and only a checkout of the repository has a reference bundle",
                "name a bundle's folder",
            )
        return open_verified(REFERENCE, trusted_keys(trust or [REFERENCE_KEY]))
    if not Path(path).exists():
        return open_verified(path, frozenset())
    return open_verified(path, trusted_keys(trust or _usual_makers()))


def _usual_makers() -> list[Path]:
    """Files of the keys whose bundles are opened where none is named: our own, and the reference
    bundle's.
    """
    own = KEYS / "signing.pub"
    if not REFERENCE_KEY.is_file():
        return [own]
    return [REFERENCE_KEY, own] if os.path.lexists(own) else [REFERENCE_KEY]


def kept_key(path: Path | None) -> Ed25519PrivateKey | None:
    """The private key bundles are signed with, if there is one already: what is signed with a key
    made now, no device would trust. Raises RunError for one that cannot be read.
    """
    return signing_key(path) if os.path.lexists(path or KEYS / "signing.key") else None


def signing_key(path: Path | None) -> Ed25519PrivateKey:
    """The private key bundles are signed with, made on first use.

    Its public half is kept beside it as `<name>.pub`. No file that is there is written over.
    Raises RunError for a key that cannot be read or made, and for another's public half beside it.
    """
    path = path or KEYS / "signing.key"
    elsewhere = "name another key with --key FILE"
    if path.is_dir() or path.suffix == ".pub":
        raise RunError(path, "expected a private key's file", elsewhere)
    public = path.with_suffix(".pub")
    other = RunError(public, "holds something else than this key's public half", elsewhere)
    try:
        shown = public.read_text().strip() if os.path.lexists(public) else None
    except (OSError, UnicodeDecodeError):
        raise other from None
    if shown is not None and not path.exists():
        raise other
    key = signing.load_or_create(path, elsewhere)
    if shown is None:
        with writable(public):
            durable.share(public, signing.public_hex(key).encode() + b"\n")
    elif shown != signing.public_hex(key):
        raise other
    return key
