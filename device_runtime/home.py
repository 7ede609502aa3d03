"""A device's home: the folder that holds all it knows, and the ledger of what it contributed.

    device.toml            who it trusts, which bundle it installed, where its conditions come from
    device.key             its private key: signs its requests
    typing_log.sqlite      what was typed, sealed; typing_log.key beside it
    words.sealed           words never to offer and words to allow, sealed
    removed                how many removals began and ended here: open keyboards look at it
    own_words.json         how far the user's own words are trusted: numbers, no words
    unfinished             a half-done epoch that waits for the next window, sealed
    sealed_update          a report that waits for its server's answer: it is sent as it is or not
    personal.json          whether the user's own weights are served, and why
    personal.sealed        those weights, sealed
    last_key               when a key was pressed last: its time, no content
    schedule.json          when it may check in again
    withheld.json          work it refused, whose server hears of it when the day is over
    signed.json            since when it has the weights of its bundle
    releases.json          what it has heard of releases, and what became of them
    fetched/               parts of a release that is on its way here, by their SHA-256
    terms.json             who sees its updates, by the terms of the work it was given last
    links.json             whose keys signed the checkpoints it was given: the newest
    evidence.json          two checkpoints that were signed for one round, if it was shown them
    logs.json              how far the log of its server was, and the policies it has agreed to
    forks.json             two heads of one log that contradict one another, if it was shown them
    bundles/               the bundles it installed, if none is used in place
    ledger.sqlite          what it contributed, round by round; never any text
    device.name            the name the server enrolled it under
    enrolment.json         that its key is a device's, signed by whom a helper may trust to say so
    device.server          the server's own name: whom it signs its requests for
    checkpoint/            the last checkpoint it fetched, named by its SHA-256

All but the bundle is its own: removing the folder removes the device.
"""

import contextlib
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, astuple, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import (
    chain,
    config,
    durable,
    enrolments,
    installed,
    keystore,
    limits,
    log_wire,
    sensors,
    signing,
    words,
)
from device_runtime.bundle import FOLDER as BUNDLE
from device_runtime.bundle import Bundle, open_verified
from device_runtime.causes import Cause
from device_runtime.chain import Chain, Contradiction, Evidence, Seen
from device_runtime.conditions import Source, trace_source, unknown
from device_runtime.errors import BundleError, ConfigError, FedboardError, RunError
from device_runtime.folder import Kind as FolderKind
from device_runtime.folder import clear, is_empty, replaced, require_free, settle, writing
from device_runtime.installed import Installed
from device_runtime.limits import OwnLimits
from device_runtime.log_wire import Fork, Forks, SeenLogs
from device_runtime.noise import Noise
from device_runtime.sensors import LAST_KEY
from device_runtime.spent import Part
from device_runtime.terms import Terms
from device_runtime.turn import SENT, History, Status
from device_runtime.typing_log import PATIENCE_S, Retention, TypingLog
from device_runtime.typing_log import wipe as wipe_log
from device_runtime.weights import digest
from device_runtime.wire import CERTIFIED, Assignment, Kind, Signed

CONFIG, KEY, NAME, SERVER = "device.toml", "device.key", "device.name", "device.server"
TYPING_LOG, LEDGER, CHECKPOINT = "typing_log.sqlite", "ledger.sqlite", "checkpoint"
OWN_WORDS, UNFINISHED, OUTGOING = "own_words.json", "unfinished", "sealed_update"
PERSONAL, PERSONAL_WEIGHTS = "personal.json", "personal.sealed"
SCHEDULE, BUNDLES, LOCK = "schedule.json", "bundles", "lock"
WITHHELD, SIGNED, ENROLMENT = "withheld.json", "signed.json", "enrolment.json"
RELEASES, FETCHED = "releases.json", "fetched"
LINKS, EVIDENCE, TERMS = "links.json", "evidence.json", "terms.json"
LOGS, FORKS = "logs.json", "forks.json"
REMOVED = "removed"
T = TypeVar("T")
SERVER_NAME = re.compile("[0-9a-f]{32}")
# files learned from what was typed
LEARNED = (OWN_WORDS, UNFINISHED, OUTGOING, PERSONAL, PERSONAL_WEIGHTS, LAST_KEY)


@dataclass(frozen=True)
class DeviceConfig:
    """device.toml. Paths that are not absolute start in the device's home."""

    trusted: tuple[str, ...]  # public keys whose bundles it accepts, hexadecimal
    # folder of a bundle it uses in place, until a later release comes into its home; None: the
    # one installed in its home
    bundle: str | None = None
    server: str | None = None  # address it checks in at
    # `linux`, `termux`, or the trace of a simulated device; None: unknown, so it never trains
    conditions: str | None = None
    stated: tuple[str, ...] = ()  # conditions its owner vouches for where no sensor tells
    # of a simulated device's randomness; None: its own key's, another for every assignment
    seed: int | None = None
    spread_s: float = 60.0  # the first check-in of a process comes somewhere in it
    # a half-done epoch waits for the next window; else it is given back at once
    keeps_work: bool = True
    personal: bool = True  # the user's own weights are tried while it may train
    key_store: str = keystore.FILE  # where the typing log's key lies
    population: str = "default"  # whose tasks it works for
    device_class: str = ""  # coarse, such as "low"; never a model's name
    insecure: bool = False  # its server is another machine's, without TLS
    typing_log: Retention = field(default_factory=Retention)
    limits: OwnLimits = field(default_factory=OwnLimits)


FOLDER = FolderKind(
    "a device",
    lambda folder: config.is_toml_of(DeviceConfig, folder / CONFIG),
    (
        *(CONFIG, KEY, NAME, SERVER, SCHEDULE, WITHHELD, SIGNED, RELEASES, LINKS, EVIDENCE, LOCK),
        *(ENROLMENT, TERMS, LOGS, FORKS, REMOVED, words.FILE),
        *LEARNED,
        *(name + end for name in (TYPING_LOG, LEDGER) for end in ("", "-wal", "-shm", "-journal")),
        keystore.key_path(Path(TYPING_LOG)).name,
        f"{CHECKPOINT}/*.safetensors",
        f"{FETCHED}/*",
        f"{BUNDLES}/{installed.POINTER}",
        *(f"{BUNDLES}/*/{name}" for name in BUNDLE.holds),
    ),
    CONFIG,
    "choose another folder, or wipe that device first: fedboard device wipe --everything",
)

# where its settings are damaged: a device is known by its other files
_OURS = replace(FOLDER, is_ours=lambda folder: Home.is_any(folder) or (folder / CONFIG).exists())


def conditions_of(folder: Path, settings: DeviceConfig) -> Source:
    """Where the conditions of a device in `folder` come from. Raises ConfigError for a trace that
    cannot be read, or a signal that is none.
    """
    kind = settings.conditions
    if kind in sensors.KINDS:
        return sensors.named(kind, folder, settings.stated)
    return sensors.stated(unknown if kind is None else trace_source(folder / kind), settings.stated)


@dataclass(frozen=True)
class Contribution:
    """One line of the ledger: what a round took from this device, or why it took nothing."""

    round: int
    at: float  # seconds; when the turn began
    outcome: str
    cause: str  # empty when it counted
    examples: int  # trained on; words scored, of an evaluation
    bytes_up: int
    bytes_down: int
    task: str = "default"
    kind: str = Kind.TRAINING.value
    assignment: str = ""  # its name
    server: str = ""  # that gave it, and which of its tasks: names of tasks repeat
    task_id: str = ""
    # of scores: the weights, by `weights.values_hash`; of releases the SHA-256 of their manifests,
    # with a space between two
    scored: str = ""
    detail: str = ""  # of work that was refused: the limit, and what was asked
    up_to: int = 0  # of scores of releases: the newest message in them, by its number
    seen_by: str = ""  # of what left: who can see it by itself; an early version noted nobody
    # of an update that left: the noise of its sum, a `noise.Noise` as JSON; empty: there is none
    noise: str = ""
    # the log that has what this was agreed to, by its server's name; the numbers of the entries of
    # its policy and of its checkpoint. Empty before that was looked at, and of an early version
    log: str = ""
    policy_entry: int = 0
    checkpoint_entry: int = 0
    # of an update that left: the least and the largest number that its sum can have among those of
    # its task, by the log; 0 where there is no noise, and before the log was looked at
    first_sum: int = 0
    last_sum: int = 0

    @property
    def left(self) -> bool:
        """Whether a report left this device, or may have."""
        return self.outcome in SENT


@dataclass(frozen=True)
class Withheld:
    """Work that was refused, and when; in withheld.json."""

    assignment: Assignment
    at: float  # seconds of the device's clock


@dataclass(frozen=True)
class Since:
    """Since when a device has its bundle's weights; in signed.json."""

    checkpoint: str  # SHA-256
    at: float  # seconds of the device's clock


@dataclass(frozen=True)
class LastTerms:
    """Those of the work a device was given last; in terms.json."""

    task: str
    terms: Terms


@dataclass(frozen=True)
class Home:
    """One device: its folder, its settings and its key."""

    folder: Path
    config: DeviceConfig
    key: Ed25519PrivateKey = field(repr=False)
    problem: str | None = None  # why its settings are not those of its folder
    patience_s: float = PATIENCE_S  # that it waits for another process which writes its typing log

    @classmethod
    def create(
        cls,
        folder: Path,
        settings: DeviceConfig,
        typed: Iterable[tuple[str, float]] = (),
        bundle: Path | None = None,
    ) -> "Home":
        """A new device in `folder`, with a fresh key and a typing log that holds `typed` (text and
        time in seconds). Whole or not at all.

        The bundle at `bundle` is installed in it, if given. Raises RunError if the folder is there
        already or cannot be written, BundleError for a bundle it does not trust.
        """
        # first: an error of whoever gives them is not one of the folder
        path, typed = (Path(folder), list(typed))
        require_free(path, FOLDER, replace=False)
        with replaced(path, FOLDER) as new:
            durable.write(new / CONFIG, config.to_toml(settings).encode())
            signing.load_or_create(new / KEY)
            with TypingLog(new / TYPING_LOG, settings.typing_log, settings.key_store) as log:
                log.append_many(typed)
            if bundle is not None:
                installed.install(new / BUNDLES, bundle, frozenset(settings.trusted))
        return cls.open(path)

    @staticmethod
    def is_there(folder: Path) -> bool:
        """Whether there is anything to open: not in an empty folder, or one in which a command was
        killed before it had made a device.
        """
        settle(folder, FOLDER)
        return Path(folder).exists() and not (Path(folder).is_dir() and is_empty(folder))

    @staticmethod
    def is_any(folder: Path) -> bool:
        """Whether anything of a device is in a folder, however damaged its settings are."""
        log = Path(folder) / TYPING_LOG
        names = (log, Path(folder) / KEY, keystore.key_path(log))
        return any(path.is_file() for path in names)

    @classmethod
    def open(cls, folder: Path) -> "Home":
        """The device that lives in `folder`. Raises ConfigError or RunError if there is none,
        naming the file.
        """
        folder = Path(folder)
        settle(folder, FOLDER)
        if not (folder / CONFIG).is_file():
            raise RunError(
                folder,
                f"expected a device's folder, found no {CONFIG} in it",
                "give the folder of a device, or an empty one where a new device is to be made",
            )
        settings = config.from_toml(DeviceConfig, folder / CONFIG)
        return cls(folder, settings, signing.load_or_create(folder / KEY))

    @classmethod
    def as_it_is(cls, folder: Path, settings: DeviceConfig | None = None) -> "Home":
        """The device in `folder`, also where its settings or its key are missing or damaged: what
        was typed can always be removed, and more be typed. `settings` take the place of damaged
        ones, but the typing log's key is looked for where it lies. Raises as `open` where there is
        nothing of a device.
        """
        try:
            return cls.open(folder)
        except FedboardError as error:
            path = Path(folder)
            log = path / TYPING_LOG
            if not cls.is_any(path):
                raise
            usual = replace(settings or DeviceConfig(()), key_store=keystore.name_of(log))
            # a key that it signs nothing with
            return cls(path, usual, Ed25519PrivateKey.generate(), str(error))

    def typing_log(self) -> TypingLog:
        """Its typing log, open: use it in a `with`."""
        settings = self.config
        path = self.folder / TYPING_LOG
        return TypingLog(path, settings.typing_log, settings.key_store, self.patience_s)

    def bundle(self) -> Bundle:
        """The bundle it uses, verified: the current one, or the last good one if that is damaged.
        Raises BundleError.
        """
        return self.installed().bundle

    def installed(self) -> Installed:
        """The same, and why it is not the one installed last. Raises BundleError."""
        if self.config.bundle is None:
            return installed.current(self._bundles, self.trusted)
        in_place = self.folder / self.config.bundle
        if not (self._bundles / installed.POINTER).exists():
            return Installed(open_verified(in_place, self.trusted))
        own = installed.current(self._bundles, self.trusted)
        try:
            shared = open_verified(in_place, self.trusted)
        except BundleError:
            return own
        return own if own.bundle.manifest.release >= shared.manifest.release else Installed(shared)

    @property
    def trusted(self) -> frozenset[str]:
        """The public keys whose bundles and releases it accepts, hexadecimal."""
        return frozenset(self.config.trusted)

    @property
    def _bundles(self) -> Path:
        return self.folder / BUNDLES

    def bundle_before(self) -> Bundle | None:
        """The last good one, used before; None if there is none, or it is damaged."""
        return installed.before(self._bundles, self.trusted)

    def before(self, running: Bundle) -> Bundle | None:
        """The bundle it used before the one that runs, if that is whole; None else."""
        last = self.bundle_before()
        return None if last is None or last.encoded == running.encoded else last

    def install(self, source: Path) -> Bundle:
        """Make the bundle at `source` the one it uses. Raises BundleError, and keeps the bundle it
        has, for one it does not trust or an older one than it has or uses in place.
        """
        if self.config.bundle is not None:
            self._require_no_older(open_verified(source, self.trusted), source)
        return installed.install(self._bundles, source, self.trusted)

    def _require_no_older(self, offered: Bundle, where: Path) -> None:
        try:
            used = open_verified(self.folder / (self.config.bundle or ""), self.trusted)
        except BundleError:  # then it is not used either
            return
        if offered.manifest.release < used.manifest.release:
            raise BundleError(
                where,
                f"release {offered.manifest.release} is older than release "
                f"{used.manifest.release}, which this device uses from {used.path}",
                "install a later release: a device never goes back",
            )

    @property
    def simulated(self) -> bool:
        """Whether it was made for a simulation, enrolled nowhere: it lives on the clock of its
        trace.
        """
        return (
            self.config.conditions is not None
            and self.config.conditions not in sensors.KINDS
            and self.config.server is None
        )

    @cached_property
    def conditions(self) -> Source:
        """Where its conditions come from. Raises ConfigError for a trace that cannot be read."""
        return conditions_of(self.folder, self.config)

    def held_checkpoint(self) -> str | None:
        """SHA-256 of the checkpoint it kept last, None if there is none or it is damaged."""
        data = self.checkpoint()
        return None if data is None else digest(data)

    def checkpoint(self) -> bytes | None:
        """The bytes of the checkpoint it kept last, if they are still whole."""
        kept = sorted((self.folder / CHECKPOINT).glob("*.safetensors"))
        data = kept[0].read_bytes() if kept else b""
        return data if kept and digest(data) == kept[0].stem else None

    def keep_checkpoint(self, sha256: str, data: bytes) -> None:
        """Keep this checkpoint, and only this one."""
        path = self._cached(sha256)
        path.parent.mkdir(exist_ok=True)
        durable.write(path, data)
        for other in path.parent.iterdir():
            if other != path:
                other.unlink(missing_ok=True)

    @property
    def name(self) -> str | None:
        """The name the server enrolled this device under, None before."""
        path = self.folder / NAME
        return path.read_text().strip() if path.is_file() else None

    def keep_name(self, name: str) -> None:
        """Remember the name the server enrolled this device under."""
        durable.write(self.folder / NAME, f"{name}\n".encode())

    @property
    def server_name(self) -> str | None:
        """The server's own name, as it was at enrolment; None before, and in a home of a version
        that signed for no server in particular.
        """
        kept = self.kept(SERVER) or b""
        name = kept.decode("ascii", "replace").strip()
        return name if SERVER_NAME.fullmatch(name) else None

    def keep_enrolment(self, name: str, server: str) -> None:
        """Remember the name this device was enrolled under, and by which server."""
        self.keep(SERVER, f"{server}\n".encode())
        self.keep_name(name)

    @property
    def certificate(self) -> Signed | None:
        """That its key is a device's, as it was signed; None if nobody has, or it is damaged."""
        data = self.kept(ENROLMENT)
        try:
            return None if data is None else config.from_json(Signed, data, ENROLMENT)
        except ConfigError:
            return None

    def keep_certificate(self, certificate: Signed) -> None:
        """Keep that its key is a device's. Its server hears so at the next turn, which enrols it
        anew. Raises RunError for the certificate of another key.
        """
        why = enrolments.why_not(certificate, signing.public_hex(self.key))
        if why:
            raise RunError(self.folder, why, "certify this device: fedboard device certify")
        self.drop(SERVER)  # first: a device that dies between the two enrols anew for nothing
        self.keep(ENROLMENT, config.to_json(certificate))

    def keep(self, name: str, data: bytes) -> None:
        """Write a small file of its own, whole or not at all."""
        durable.write(self.folder / name, data)

    def kept(self, name: str) -> bytes | None:
        """A small file of its own, None if there is none."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    def drop(self, *names: str) -> None:
        """Remove small files of its own."""
        for name in names:
            # the second from a process that was killed while it wrote
            for path in (self.folder / name, self.folder / f".{name}"):
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While this lasts no other process takes turns of this device. Raises RunError if one does
        now.
        """
        try:
            file = durable.lock(self.folder / LOCK)
        except durable.Locked as held:
            raise RunError(self.folder, f"{held} runs this device", "end that one first") from None
        with file:
            yield

    def wipe(self, everything: bool = False) -> None:
        """Remove what was typed and all that was learned from it; with `everything`, ledger, key
        and the folder itself too, unless it holds files that are not the device's.

        May be done again after a crash: the key of the typing log goes first, and without it
        nothing typed can be read.
        """
        with self._removing():
            self._count_removal(begins=True)
            try:
                wipe_log(self.folder / TYPING_LOG)
            finally:  # also when the system's keystore does not give its key up now
                self.drop(*LEARNED, words.FILE)
            if everything:
                with writing(self.folder, _OURS):
                    clear(self.folder, _OURS)
                with contextlib.suppress(OSError):  # something of somebody else's is in it
                    self.folder.rmdir()
            else:
                self._count_removal(begins=False)

    def forget(self, containing: str) -> int:
        """Remove every message with these words side by side, and all that was learned: it is
        learned again from what is left. The number of messages removed.
        """
        with self._removing(), self.typing_log() as log:
            return self._removed(log.forget(containing, self._begin_removal))

    def forget_since(self, at: float) -> int:
        """The same for every message typed at `at` (seconds) or later."""
        with self._removing(), self.typing_log() as log:
            return self._removed(log.forget_since(at, self._begin_removal))

    def forget_word(self, word: str) -> int:
        """Take one word out of every message, as `TypingLog.mask` does, and remove all that was
        learned: it is learned again. The number of messages that held it.

        May be done again after a crash: what was learned goes before the word, and once more after
        it, since another process may have learned it meanwhile.
        """
        with self._removing(), self.typing_log() as log:
            return self._removed(log.mask(word, self._begin_removal))

    def removals(self) -> int:
        """How many removals began here, and how many ended: together odd while one is under way,
        or after it was killed.
        """
        try:
            counted = int((self.kept(REMOVED) or b"0")[:20])
        except (OSError, ValueError):
            return 0
        return max(counted, 0)

    def _begin_removal(self) -> None:
        self._count_removal(begins=True)
        self.drop(*LEARNED)

    def _removed(self, number: int) -> int:
        """End a removal of so many messages, or one that was killed."""
        if number or self.removals() % 2:
            self.drop(*LEARNED)
            self._count_removal(begins=False)
        return number

    def _count_removal(self, begins: bool) -> None:
        before = self.removals()
        number = before + 1 + (before % 2 == begins)
        try:
            self.keep(REMOVED, f"{number}\n".encode())
        except OSError:  # a full disk stops no removal; that the file goes is noticed as well
            with contextlib.suppress(OSError):
                self.drop(REMOVED)

    def note(self, contribution: Contribution) -> None:
        """Write one line of the ledger, or write it anew: a round and the time of a turn name a
        line.
        """
        with self._ledger() as ledger:
            ledger.execute(
                f"INSERT OR REPLACE INTO contributions ({_NAMES}) VALUES "
                f"({', '.join('?' * len(fields(Contribution)))})",
                astuple(contribution),
            )

    def contributions(self) -> list[Contribution]:
        """The whole ledger, oldest first."""
        with self._ledger() as ledger:
            rows = ledger.execute(
                f"SELECT {_NAMES} FROM contributions ORDER BY at, round"
            ).fetchall()
        return [Contribution(*row) for row in rows]

    def withheld(self) -> Withheld | None:
        """Work that was refused and whose server has not heard of it yet; None also of a damaged
        file.
        """
        data = self.kept(WITHHELD)
        try:
            return None if data is None else config.from_json(Withheld, data, WITHHELD)
        except ConfigError:
            return None

    def withhold(self, assignment: Assignment, at: float) -> None:
        """Remember, durably, to give this back when the day of `at` is over."""
        self.keep(WITHHELD, config.to_json(Withheld(assignment, at)))

    def age_of(self, checkpoint: str, now: float) -> float:
        """Seconds since the bundle's checkpoint of this SHA-256 was first asked for here; a clock
        that went back begins to count anew.
        """
        data = self.kept(SIGNED)
        try:
            since = None if data is None else config.from_json(Since, data, SIGNED)
        except ConfigError:
            since = None
        if since is None or since.checkpoint != checkpoint or not since.at <= now:
            since = Since(checkpoint, now)
            self.keep(SIGNED, config.to_json(since))
        return now - since.at

    def go_on_counting(self, old: str, new: str) -> None:
        """The age of the bundle's checkpoint `old` is from now on that of `new`: an upgrade gives a
        server no more time for rounds, and takes none away.
        """
        data = self.kept(SIGNED)
        with contextlib.suppress(ConfigError):
            since = None if data is None else config.from_json(Since, data, SIGNED)
            if since is not None and since.checkpoint == old:
                self.keep(SIGNED, config.to_json(Since(new, since.at)))

    def seen(self) -> Seen:
        """Whose keys signed the checkpoints it was given; none of a damaged file."""
        return self._record(LINKS, Seen())

    def see(self, shown: Chain) -> None:
        """Remember who signed a checkpoint."""
        before = self.seen()
        after = chain.remembered(before, shown)
        if after != before:
            self.keep(LINKS, config.to_json(after))

    def evidence(self) -> tuple[Contradiction, ...]:
        """Pairs of checkpoints that were signed for one round."""
        return self._record(EVIDENCE, Evidence()).contradictions

    def accuse(self, contradiction: Contradiction) -> None:
        """Keep two signatures that contradict one another, unless they are kept already."""
        before = self.evidence()
        known = {(each.before.link, each.after.link) for each in before}
        if (contradiction.before.link, contradiction.after.link) not in known:
            kept = Evidence((*before, contradiction)[: chain.MOST_EVIDENCE])
            self.keep(EVIDENCE, config.to_json(kept))

    def logs(self) -> SeenLogs:
        """How far servers' logs were, and what it has agreed to; nothing of a damaged file."""
        return self._record(LOGS, SeenLogs())

    def see_log(self, seen: SeenLogs) -> None:
        """Remember how far a log is."""
        if seen != self.logs():
            self.keep(LOGS, config.to_json(seen))

    def forks(self) -> tuple[Fork, ...]:
        """Pairs of heads of one log that contradict one another."""
        return self._record(FORKS, Forks()).forks

    def accuse_log(self, fork: Fork) -> None:
        """Keep two heads that contradict one another, unless they are kept already."""
        before = Forks(self.forks())
        after = log_wire.accused(before, fork)
        if after != before:
            self.keep(FORKS, config.to_json(after))

    @property
    def terms(self) -> LastTerms | None:
        """Who sees its updates, by the work it was given last; None before the first."""
        data = self.kept(TERMS)
        try:
            return None if data is None else config.from_json(LastTerms, data, TERMS)
        except ConfigError:
            return None

    def keep_terms(self, task: str, terms: Terms) -> None:
        """Remember by whose terms it was given work."""
        last = LastTerms(task, terms)
        if last != self.terms:
            self.keep(TERMS, config.to_json(last))

    def _record(self, name: str, usual: T) -> T:
        """A small file of one record; `usual` if it is not there or damaged."""
        data = self.kept(name)
        try:
            return usual if data is None else config.from_json(type(usual), data, name)
        except ConfigError:
            return usual

    @contextlib.contextmanager
    def _removing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                self.folder,
                f"what was typed cannot be removed whole ({error.strerror})",
                "give yourself the right to write there, and do it again",
            ) from None

    def _cached(self, sha256: str) -> Path:
        return self.folder / CHECKPOINT / f"{sha256}.safetensors"

    @contextlib.contextmanager
    def _ledger(self) -> Iterator[sqlite3.Connection]:
        columns = ", ".join(_column(column) for column in fields(Contribution))
        try:
            with (
                contextlib.closing(sqlite3.connect(self.folder / LEDGER, timeout=30)) as ledger,
                ledger,
            ):
                ledger.execute(
                    f"CREATE TABLE IF NOT EXISTS contributions ({columns}, PRIMARY KEY (round, at))"
                )
                has = {row[1] for row in ledger.execute("PRAGMA table_info(contributions)")}
                for column in fields(Contribution):
                    if column.name not in has:  # an older ledger has fewer columns
                        ledger.execute(f"ALTER TABLE contributions ADD COLUMN {_column(column)}")
                yield ledger
        except sqlite3.Error as error:
            raise RunError(
                self.folder / LEDGER,
                f"cannot be used as a ledger ({error})",
                "move the file away to start a new ledger",
            ) from None


def history(lines: Iterable[Contribution], assignment: Assignment, now: float) -> History:
    """What the lines of a ledger say that bears on an assignment, at `now`, in seconds of the
    device's clock.

    Its task is the one of the same server and id. A round so far behind the last that the task must
    have begun anew counts as before the first. Training that failed counts as an update of its day:
    it told its server something.
    """
    lines = list(lines)
    alike = [line for line in lines if _counted_with(line.kind) == _counted_with(assignment.kind)]
    of_task = assignment.server, assignment.task, assignment.task_id
    sent = [
        line for line in alike if line.left and (line.server, line.task, line.task_id) == of_task
    ]
    rounds = (
        line.round
        for line in sent
        if line.assignment != assignment.assignment
        and line.round - assignment.round <= limits.ANOTHER_HISTORY
    )
    scores = [each for line in alike for each in _each_score(line)]
    scored: dict[str, int] = {}
    for line in scores:
        if line.left:
            scored[line.scored] = max(line.up_to, scored.get(line.scored, 0))
    return History(
        max(rounds, default=None),
        done_on(scores, now),
        again=any(line.assignment == assignment.assignment for line in sent),
        scored=scored,
        joined=any(
            line.assignment == assignment.assignment and line.outcome == Status.JOINED
            for line in alike
        ),
        none_today=any(
            line.kind == Kind.RELEASES
            and line.cause == Cause.OVER_LIMIT
            and not line.left
            and limits.same_day(line.at, now)
            for line in alike
        ),
        parts=parts(line for line in lines if line.assignment != assignment.assignment),
    )


def parts(lines: Iterable[Contribution]) -> tuple[Part, ...]:
    """What the updates in the lines of a ledger were part of, task by task: each that left or may
    have, once. Noise that cannot be read bounds nothing, and so is none.
    """
    left = {
        # an early version noted no names
        (line.server, line.task_id, line.assignment or f"{line.at}"): line
        for line in lines
        if line.left and line.kind in CERTIFIED
    }
    together: dict[tuple[str, str, str, str], list[Contribution]] = {}
    for line in sorted(left.values(), key=lambda line: (line.round, line.first_sum)):
        of = line.server, line.task, line.task_id, line.noise
        together.setdefault(of, []).append(line)
    return tuple(
        Part(
            *(server, task, task_id),
            tuple(line.round for line in own),
            _noise(noise),
            tuple((line.first_sum, line.last_sum) for line in own)
            if all(line.first_sum for line in own)
            else (),
        )
        for (server, task, task_id, noise), own in together.items()
    )


def _noise(text: str) -> Noise | None:
    try:
        return config.from_json(Noise, text.encode(), LEDGER) if text else None
    except ConfigError:
        return None


def _counted_with(kind: str) -> str:
    """Which work of a day is counted together: scores are, whatever is scored."""
    return kind if kind in CERTIFIED else Kind.EVALUATION


def _each_score(line: Contribution) -> list[Contribution]:
    """A line of the ledger as one for each thing that was scored: two releases are two scores."""
    return [replace(line, scored=name) for name in line.scored.split(" ")]


def done_on(lines: Iterable[Contribution], now: float) -> int:
    """How many reports these lines tell of that left on the day of `now`, however often each was
    sent; and how often training failed, which tells of itself.
    """
    today = [line for line in lines if limits.same_day(line.at, now)]
    sent = {
        # an early version noted no names
        (line.server, line.task, line.task_id, line.assignment or line.at, line.scored)
        for line in today
        if line.left
    }
    return len(sent) + sum(line.cause == Cause.TRAINING_FAILED and not line.left for line in today)


_SQL: Mapping[Any, str] = {int: "INTEGER", float: "REAL", str: "TEXT"}


def _column(column: Field[Any]) -> str:
    default = "" if column.default is MISSING else f" DEFAULT '{column.default}'"
    return f"{column.name} {_SQL[column.type]} NOT NULL{default}"


_NAMES = ", ".join(column.name for column in fields(Contribution))
