"""Upgrade: how a device comes from the release it runs to the one that its maker signed for it.

    index --> what was learned is kept --> choose --> manifest --> files, by a difference where
                                             |                     the graph is the same
                       the last good one <---+          |
                                                   laid beside the old bundle --> tried --> used

Each arrow may be the last one of this process: what is laid is whole, what is not used is swept
away, and the next run begins anew with the parts that came. A release that is not as its maker
signed it, does not fit this device or does not work is refused, and not asked for again. What the
network or the disk did not let happen is tried again later. Whatever fails, the old bundle serves.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from device_runtime import bundle as bundles
from device_runtime import calls, codes, config, durable, installed, releases
from device_runtime.bounds import Each, OneOf, Within
from device_runtime.bundle import CHECKPOINT, MANIFEST, MANIFEST_BYTES, PREDICT, SIGNATURE, Bundle
from device_runtime.errors import (
    BundleError,
    ConfigError,
    FedboardError,
    RunError,
    ServerError,
    Unanswered,
    Unproven,
)
from device_runtime.home import BUNDLES, FETCHED, RELEASES, Home
from device_runtime.interpreter import Graph
from device_runtime.releases import MOST_BUNDLE, Choice, Named, Statement
from device_runtime.text import BOS
from device_runtime.transport import Meter, Send, persistent
from device_runtime.turn import Outcome, Status
from device_runtime.weights import digest
from device_runtime.wire import DAY_S, HASH, HASH_OR_NONE, SENTENCE, TIME

log = logging.getLogger("fedboard.device")

DIFFERENCE, WHOLE, BACK = "difference", "whole", "back"  # how an upgrade came
MOST_KNOWN, MOST_REFUSED = 256, 64  # releases remembered, the newest
ROOM = 1 << 20  # bytes that stay free on the disk
MOST_DEATHS = 2  # of processes that tried a release: one may have been ended by somebody else
FIRST_WAIT_S = 3600.0  # after a failure; twice as long after each further one, up to a day
TRIED_WITH = (5, 4, 6)  # token ids of the fixed context; a vocabulary has more
APART = 1e-3  # of the sum of probabilities from one
OTHER_RELEASE = "the release before goes on; publish a release that is as its manifest says"
_NUMBER = Within(0, 2**53 - 1)


@dataclass(frozen=True)
class Refused:
    """A release that this device does not take."""

    manifest: Annotated[str, HASH]
    release: Annotated[int, _NUMBER]
    why: Annotated[str, SENTENCE]


@dataclass(frozen=True)
class Failed:
    """An index that could not be followed to its end."""

    index: Annotated[str, HASH]
    at: Annotated[float, TIME]  # seconds of the device's clock
    times: Annotated[int, Within(1, 1000)]
    why: Annotated[str, SENTENCE]

    def waits(self, now: float) -> float:
        """Seconds until it is tried again; no longer than the whole wait, should the clock have
        gone back.
        """
        whole = min(FIRST_WAIT_S * 2.0 ** min(self.times - 1, 16), DAY_S)
        return min(max(self.at + whole - now, 0.0), whole)


@dataclass(frozen=True)
class Upgraded:
    """An upgrade that came to its end."""

    at: Annotated[float, TIME]  # seconds of the device's clock
    before: Annotated[int, _NUMBER]  # release it came from
    release: Annotated[int, _NUMBER]
    bytes_down: Annotated[int, _NUMBER]  # of bodies; of the last process that worked on it
    seconds: Annotated[float, TIME]
    how: Annotated[str, OneOf((DIFFERENCE, WHOLE, BACK))]


@dataclass(frozen=True)
class Remembered:
    """What a device has heard of releases and what became of them; in releases.json."""

    known: Annotated[tuple[Statement, ...], Each(most=MOST_KNOWN)] = ()
    followed: Annotated[str, HASH_OR_NONE] = ""  # index that there is nothing more to do for
    failed: Failed | None = None
    refused: Annotated[tuple[Refused, ...], Each(most=MOST_REFUSED)] = ()
    trying: Annotated[str, HASH_OR_NONE] = ""  # manifest that is being tried now
    deaths: Annotated[int, Within(0, 1000)] = 0  # of processes, while it was
    last: Upgraded | None = None
    judged_by: Annotated[str, SENTENCE] = ""  # what the refused ones were refused by
    heard_at: Annotated[float, TIME] = 0.0  # when the server was asked last which there are
    was_damaged: bool = False  # and what it said of upgrades is not known any more


@dataclass(frozen=True)
class Means:
    """What an upgrade needs of the world."""

    connect: Callable[[], AbstractContextManager[Send]]  # another connection than the turns'
    now: Callable[[], float] = time.time
    may_go_on: Callable[[], bool] = lambda: True  # asked before each transfer
    sleep: Callable[[float], object] = time.sleep
    say: Callable[[str], None] = lambda line: None  # what is being done, for a person


@dataclass(frozen=True)
class Followed:
    """What came of an index."""

    upgraded: Upgraded | None = None
    refused: tuple[Refused, ...] = ()  # in this run
    left_out: tuple[str, ...] = ()  # of the index, and why


def remembered(home: Home) -> Remembered:
    """What is in releases.json; a damaged file begins anew, as one does on a new device, but for
    that. A device with another runtime, or of another class, refuses nothing any more.
    """
    data = home.kept(RELEASES)
    past = Remembered(was_damaged=data is not None)
    with contextlib.suppress(ConfigError):
        past = past if data is None else config.from_json(Remembered, data, RELEASES)
    parts = (f"format {bundles.FORMAT}", bundles.runtime_version(), home.config.device_class)
    judged_by = ", ".join(parts)
    if past.judged_by == judged_by:
        return past
    return replace(past, followed="", failed=None, refused=(), judged_by=judged_by)


def has_upgraded(home: Home) -> bool:
    """Whether the device runs another bundle than its owner installed, or may do so."""
    past = remembered(home)
    return past.last is not None or past.was_damaged


def secret_of(home: Home) -> bytes:
    """What a device decides its shares by: of its key, told to nobody."""
    return bytes.fromhex(digest(b"fedboard-releases\n" + home.key.private_bytes_raw()))


def is_due(home: Home, index: str, now: float) -> bool:
    """Whether there may be anything to do for the index of this SHA-256 now."""
    past = remembered(home)
    if not index or past.followed == index:
        return False
    return past.failed is None or past.failed.index != index or past.failed.waits(now) <= 0


def ask(home: Home, send: Send, now: float) -> str:
    """SHA-256 of the index that the server names now, empty if it names none; it is asked without a
    name. Raises ServerError if it does not answer.
    """
    index = calls.newest(send, home.config.population)
    _keep(home, replace(remembered(home), heard_at=now))
    return index


def hears(home: Home, now: float) -> bool:
    """Whether it is time to ask: nothing has been heard of releases for a day. A clock that went
    back asks.
    """
    return not 0 <= now - remembered(home).heard_at < DAY_S


def follow(home: Home, index: str, means: Means) -> Followed:
    """Come to the release that the index of this SHA-256 offers to this device, if it offers one.
    The caller alone runs this device (`Home.alone`).

    A release that is not as it should be is refused, and the next best one is tried. Raises
    ServerError or RunError for what may go better later, BundleError for a device without a usable
    bundle; the device then runs what it ran.
    """
    past = remembered(home)
    try:
        with means.connect() as send:
            return _Following(home, means, Meter(send)).follow(index)
    except (ServerError, RunError, BundleError) as error:
        again = past.failed is not None and past.failed.index == index
        times = min(past.failed.times + 1, 1000) if again and past.failed else 1
        failed = Failed(index, means.now(), times, _sentence(error))
        _keep(home, replace(remembered(home), failed=failed))
        raise


def after(outcome: Outcome, home: Home, means: Means) -> Followed | None:
    """`follow` what was named in a turn, if there may be anything to do; None if not, or if it
    could not be done. Whatever goes wrong is one line of the log, and no harm to the turn.
    """
    index, is_half_done = outcome.releases, outcome.status is Status.PAUSED
    try:
        if is_half_done or not is_due(home, index, means.now()) or not means.may_go_on():
            return None
        followed = follow(home, index, means)
    except FedboardError as error:
        log.warning("no other release: %s", error)
    except Exception as error:  # a fault of ours must not end the device; its text may be anything
        log.error("no other release: failed with %s", type(error).__name__)
    else:
        for line in sentences(followed):
            log.info(line)
        return followed
    return None


class _Following:
    """One run along an index. It remembers what came over the connection."""

    def __init__(self, home: Home, means: Means, meter: Meter):
        self._home, self._means, self._meter = home, means, meter
        self._send = persistent(meter, sleep=means.sleep, may_repeat=means.may_go_on)
        self._began = means.now()
        self._folder = home.folder / BUNDLES
        installed.mend(self._folder, home.trusted)
        self._own = home.bundle()
        self._before = home.bundle_before()
        self._passed_over: frozenset[str] = frozenset()  # manifests, along this index

    def follow(self, index: str) -> Followed:
        home = self._home
        _bound_parts(home)
        try:
            data = self._fetch(index, releases.INDEX_BYTES, "the index of releases")
            heard = releases.statements_in(data, home.trusted, home.config.population)
        except ConfigError as error:  # it stays as it is
            self._change(followed=index, failed=None)
            return Followed(left_out=(str(error),))
        statements = releases.learned(
            {each.manifest: each for each in remembered(home).known},
            (named.statement for named in heard.named),
        )
        self._change(known=_newest(statements))
        by_manifest = {named.statement.manifest: named for named in heard.named}
        refused: list[Refused] = []
        while (choice := self._choose(statements, by_manifest)) is not None:
            try:
                upgraded = self._go_to(choice, by_manifest.get(choice.manifest))
            except BundleError as error:
                refused.append(Refused(choice.manifest, choice.release, _sentence(error)))
                self._means.say(f"release {choice.release} is refused: {error}")
                if isinstance(error, Unproven):  # the next index may say it better
                    self._passed_over |= {choice.manifest}
                else:
                    self._refuse(refused[-1])
                continue
            self._change(followed=index, failed=None)
            self._tidy()
            return Followed(upgraded, tuple(refused), heard.left_out)
        self._change(followed=index, failed=None)
        self._tidy()
        return Followed(None, tuple(refused), heard.left_out)

    def _choose(
        self, statements: Mapping[str, Statement], named: Mapping[str, Named]
    ) -> Choice | None:
        pointer, before = installed.pointer_of(self._folder), self._before
        device = releases.Device(
            _installed(self._own),
            None if before is None else _installed(before),
            self._own.manifest.release if pointer is None else pointer.release,
            statements,
            self._passed_over.union(each.manifest for each in remembered(self._home).refused),
        )
        return releases.choose(device, named, secret_of(self._home))

    def _go_to(self, choice: Choice, named: Named | None) -> Upgraded:
        """Run the chosen release. Raises BundleError if it is refused."""
        home, folder, past = self._home, self._folder, remembered(self._home)
        if past.trying == choice.manifest and past.deaths >= MOST_DEATHS:
            raise BundleError(
                f"release {choice.release}",
                f"the device died {past.deaths} times while it was tried",
                OTHER_RELEASE,
            )
        bundle = installed.opened(folder, choice.manifest, home.trusted)
        if bundle is None:
            if named is None:
                raise AssertionError("what is chosen lies on the device or is named")
            bundle = self._laid(self._built(named))
        _require_stated(bundle.manifest, choice.release, bundle.path)
        is_back = bundle.manifest.release < self._own.manifest.release
        how = BACK if is_back else DIFFERENCE if bundle.is_lean else WHOLE
        self._try(bundle, how)
        self._hold_old_checkpoint()
        with _of_the_disk():
            installed.use(folder, bundle, home.trusted, choice.is_withdrawal)
        old, new = (each.manifest.files[CHECKPOINT].sha256 for each in (self._own, bundle))
        home.go_on_counting(old, new)
        return self._upgraded(bundle, how)

    def _built(self, named: Named) -> Bundle:
        """A named release, whole or lean, verified; of what lies here and what has to be fetched.
        Raises BundleError for one that is refused.
        """
        home, statement = self._home, named.statement
        where = self._folder / statement.manifest
        encoded = self._part(statement.manifest, MANIFEST_BYTES, "its manifest")
        signature = named.offer.signature.encode()
        manifest = bundles.signed_manifest(encoded, signature, home.trusted, where)
        bundles.require_runtime(manifest, where / MANIFEST)
        _require_for(manifest, statement, home.config.device_class, where)
        is_lean = _has_graph(self._own, manifest)
        wanted = {name: file for name, file in manifest.files.items() if name != CHECKPOINT}
        content = self._here(manifest.files)
        lacking = {name: file for name, file in wanted.items() if name not in content}
        if not is_lean and CHECKPOINT not in content:
            lacking[CHECKPOINT] = manifest.files[CHECKPOINT]
        self._require_room(sum(file.bytes for file in lacking.values()))
        if is_lean and PREDICT in lacking:
            made = self._by_difference(named, manifest)
            if made is not None:
                content[PREDICT] = made
                del lacking[PREDICT]
        for name, file in sorted(lacking.items()):
            content[name] = self._part(file.sha256, file.bytes, name)
        content |= {MANIFEST: encoded, SIGNATURE: signature}
        lean = is_lean and CHECKPOINT not in content
        return bundles.of_files(where, home.trusted, lambda name, most: content[name], lean)

    def _here(self, files: Mapping[str, bundles.File]) -> dict[str, bytes]:
        """Those of the files that the device's bundles have, by their hashes."""
        both = [self._own, *([] if self._before is None else [self._before])]
        by_hash = {
            file.sha256: bundle.content[name]
            for bundle in both
            for name, file in bundle.manifest.files.items()
            if name in bundle.content
        }
        return {
            name: by_hash[file.sha256] for name, file in files.items() if file.sha256 in by_hash
        }

    def _by_difference(self, named: Named, manifest: bundles.Manifest) -> bytes | None:
        """predict.tflite out of one that lies here and a difference; None where there is no
        difference that does it and is smaller.
        """
        file, constants = manifest.files[PREDICT], manifest.constants
        for old in (self._own, self._before):
            if old is None or constants is None or not _has_graph(old, manifest):
                continue
            offered = named.offer.differences.get(installed.name_of(old))
            if offered is None or offered.bytes >= file.bytes:
                continue
            try:
                since = f"what changed since release {old.manifest.release}"
                data = self._part(offered.sha256, offered.bytes, since)
                return codes.apply(old.predict_graph, data, constants, file.sha256)
            except Unanswered:
                raise
            except (ServerError, BundleError) as error:
                self._means.say(f"the difference does not help, the whole file is fetched: {error}")
                with contextlib.suppress(OSError):
                    (self._home.folder / FETCHED / offered.sha256).unlink(missing_ok=True)
        return None

    def _laid(self, bundle: Bundle) -> Bundle:
        """Beside the one that is used. A device that used one in place gets a copy of that first:
        it is the last good one then.
        """
        with _of_the_disk():
            if installed.pointer_of(self._folder) is None:
                installed.put(self._folder, self._own, self._home.trusted)
                installed.use(self._folder, self._own, self._home.trusted)
            return installed.put(self._folder, bundle, self._home.trusted)

    def _try(self, bundle: Bundle, how: str) -> None:
        """Raises BundleError for a release that does not work here. That it is tried is on the disk
        before: a file that ends the process is not tried for ever.
        """
        past, name = remembered(self._home), installed.name_of(bundle)
        deaths = past.deaths + 1 if past.trying == name else 1
        self._change(trying=name, deaths=deaths)
        self._means.say(f"trying release {bundle.manifest.release}")
        require_works(bundle)
        # before it is used: from then on no check-in tells what the device runs
        self._change(trying="", deaths=0, last=self._upgraded(bundle, how))

    def _upgraded(self, bundle: Bundle, how: str) -> Upgraded:
        return Upgraded(
            self._began,
            self._own.manifest.release,
            bundle.manifest.release,
            self._meter.down,
            max(0.0, self._means.now() - self._began),
            how,
        )

    def _hold_old_checkpoint(self) -> None:
        """So that rounds still travel as differences, from a checkpoint that tells no release."""
        old = self._own.content.get(CHECKPOINT)
        if old is not None and self._home.checkpoint() is None:
            with _of_the_disk():
                self._home.keep_checkpoint(digest(old), old)

    def _part(self, sha256: str, most: int, what: str) -> bytes:
        """A part of a release, as an earlier run has kept it, or fetched and kept for a later."""
        path = self._home.folder / FETCHED / sha256
        with contextlib.suppress(OSError):
            if digest(data := path.read_bytes()) == sha256:
                return data
        data = self._fetch(sha256, most, what)
        with _of_the_disk():
            path.parent.mkdir(exist_ok=True)
            durable.write(path, data)
        return data

    def _fetch(self, sha256: str, most: int, what: str) -> bytes:
        if not self._means.may_go_on():
            raise RunError(
                self._home.folder,
                "expected an unmetered network until the release is here, found it lost",
                "it goes on at the next one",
            )
        before = self._meter.down
        data = calls.fetch_release(self._send, sha256, most)
        self._means.say(f"{what}: {self._meter.down - before:,} bytes")
        return data

    def _require_room(self, fetched: int) -> None:
        # as parts, and as a bundle beside the others
        needed = 2 * fetched + ROOM
        free = shutil.disk_usage(self._home.folder).free
        if free < needed:
            raise RunError(
                self._home.folder,
                f"expected {needed:,} bytes free for a release, found {free:,}",
                "make room",
            )

    def _refuse(self, refused: Refused) -> None:
        past = remembered(self._home).refused
        others = tuple(each for each in past if each.manifest != refused.manifest)
        # newest last
        self._change(refused=(*others, refused)[-MOST_REFUSED:], trying="", deaths=0)
        self._tidy()

    def _tidy(self) -> None:
        installed.tidy(self._folder)
        shutil.rmtree(self._home.folder / FETCHED, ignore_errors=True)

    def _change(self, **changes: object) -> None:
        _keep(self._home, replace(remembered(self._home), **changes))  # type: ignore[arg-type]


def sentences(followed: Followed) -> list[str]:
    """What came of an index, in words."""
    lines = [f"release {refused.release} is refused: {refused.why}" for refused in followed.refused]
    lines += [f"left out: {why}" for why in followed.left_out]
    if followed.upgraded is not None:
        lines.append(sentence(followed.upgraded))
    return lines


def sentence(upgraded: Upgraded) -> str:
    """An upgrade in words.

    >>> sentence(Upgraded(0.0, 4, 5, 430_000, 2.0, DIFFERENCE))
    'release 5 instead of release 4, by a difference: 430,000 bytes in 2 s'
    """
    how = {
        DIFFERENCE: "by a difference",
        WHOLE: "whole",
        BACK: "back, since the other was withdrawn",
    }[upgraded.how]
    return (
        f"release {upgraded.release} instead of release {upgraded.before}, {how}: "
        f"{upgraded.bytes_down:,} bytes in {upgraded.seconds:.0f} s"
    )


def require_works(bundle: Bundle) -> None:
    """Raise BundleError unless both graphs open, and after a fixed context the probabilities of all
    words are numbers that sum to one.
    """
    try:
        predict = Graph(bundle.predict_graph)
        Graph(bundle.train_graph)
        state = predict.start()
        for token in (BOS, *TRIED_WITH):
            known = np.array([min(token, bundle.manifest.vocabulary - 1)], np.int32)
            results, state = predict.step("predict", state, token=known)
            scores = results["log_probs"][0].astype(np.float64)  # [vocabulary]
            total = float(np.exp(scores).sum())
            if not np.isfinite(scores).all() or not abs(total - 1) <= APART:
                raise ValueError(f"probabilities that sum to {total:g}")
            if len(scores) != bundle.manifest.vocabulary:
                raise ValueError(f"{len(scores)} of them")
    except (ValueError, RuntimeError, KeyError, IndexError) as error:
        raise BundleError(
            f"release {bundle.manifest.release}",
            "expected probabilities of all words of its vocabulary that sum to 1, found "
            f"{_reason(error)}",
            OTHER_RELEASE,
        ) from None


def _require_for(
    manifest: bundles.Manifest, statement: Statement, device_class: str, where: object
) -> None:
    """Raise BundleError for a release that is another than stated, or not for this device."""
    _require_stated(manifest, statement.release, where)
    if manifest.device_class not in (None, "", device_class):
        raise BundleError(
            where,
            f"expected a release for devices of class `{device_class}`, found one for "
            f"`{manifest.device_class}`",
            "publish one for this class too, or for all",
        )
    size = sum(file.bytes for file in manifest.files.values())
    if size > MOST_BUNDLE or any(file.bytes < 0 for file in manifest.files.values()):
        raise BundleError(
            where, f"expected at most {MOST_BUNDLE:,} bytes, found {size:,}", OTHER_RELEASE
        )


def _require_stated(manifest: bundles.Manifest, release: int, where: object) -> None:
    """Raise Unproven for a release of another number: the statement is wrong, not the bundle."""
    if manifest.release != release:
        raise Unproven(
            where,
            f"expected release {release}, as was stated, found {manifest.release}",
            OTHER_RELEASE,
        )


def _has_graph(old: Bundle, manifest: bundles.Manifest) -> bool:
    """Whether a release is the graph and vocabulary of an old one, with other weights."""
    same = old.manifest
    return (
        manifest.constants is not None
        and same.constants == manifest.constants
        and None is not same.graph == manifest.graph
        and same.tokenizer == manifest.tokenizer
        and same.shapes == manifest.shapes
    )


def _bound_parts(home: Home) -> None:
    """Forget all parts of releases that never came to an end once they are more than any release
    has.
    """
    folder = home.folder / FETCHED
    with contextlib.suppress(OSError):
        if sum(path.stat().st_size for path in folder.iterdir()) > MOST_BUNDLE:
            shutil.rmtree(folder, ignore_errors=True)


def _installed(bundle: Bundle) -> releases.Installed:
    return releases.Installed(bundle.manifest.release, installed.name_of(bundle))


def _newest(statements: Mapping[str, Statement]) -> tuple[Statement, ...]:
    newest_first = sorted(statements.values(), key=lambda each: (-each.release, each.manifest))
    return tuple(newest_first[:MOST_KNOWN])


@contextlib.contextmanager
def _of_the_disk() -> Iterator[None]:
    """What cannot be written is no fault of the release: it is tried again later."""
    try:
        yield
    except OSError as error:
        raise RunError(
            "release", f"cannot be written ({error.strerror})", "make room for it"
        ) from None
    except BundleError as error:
        raise RunError("release", f"cannot be laid on the disk ({error})", "make room") from None


def _keep(home: Home, state: Remembered) -> None:
    try:
        home.keep(RELEASES, config.to_json(state))
    except OSError as error:
        raise RunError(
            home.folder / RELEASES, f"cannot be written ({error.strerror})", "make room"
        ) from None


def _sentence(error: FedboardError) -> str:
    return "".join(each if " " <= each <= "~" else "?" for each in str(error))[:1000]


def _reason(error: Exception) -> str:
    return "".join(each if " " <= each <= "~" else "?" for each in str(error))[:200]
