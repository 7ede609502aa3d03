"""Releases: what an operator may publish, what devices are told of it, and what strangers may get.

    Publication -> publish: signatures, numbers, files there -> one transaction: release, index
                                                                        |
                  work_out: predict.tflite of older releases -> differences, index
                                                                        |
                       check-in: SHA-256 of the index <- named   served -> its bytes, blobs

The server signs nothing here and can make no release: it passes on what the maker signed. Every
population has one index, the same for all who ask.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from device_runtime import bundle, codes, config
from device_runtime.bundle import MANIFEST_BYTES, PREDICT, Manifest
from device_runtime.causes import Cause
from device_runtime.errors import BundleError, CheckpointError, ConfigError, RunError
from device_runtime.log_wire import ReleaseEntry
from device_runtime.releases import (
    INDEX_BYTES,
    MOST_BUNDLE,
    MOST_NAMED,
    WHOLE,
    Blob,
    Newest,
    Offer,
    Statement,
)
from device_runtime.weights import digest
from device_runtime.wire import Signed
from server import standings
from server.blobs import Blobs
from server.contract import (
    DifferenceFrom,
    Publication,
    ReleaseReport,
    ReleaseReports,
    release_command,
)
from server.coordinator import Coordinator
from server.release_rows import StoredRelease, statement_in
from server.requests import Refused
from server.store import Rows
from server.task import Task

log = logging.getLogger("fedboard.server")

FROM = 4  # releases before one that it is also offered as a difference from
SMALLER = 0.75  # a difference is offered if it has at most this share of predict.tflite's bytes
_working_out = threading.Lock()  # one at a time: each holds two files and works hard


def publish(coordinator: Coordinator, message: Publication, now: float) -> StoredRelease:
    """Publish a release, or follow a further statement on one. The statement that stands already is
    answered as before. Refused, and nothing has changed, if anything does not hold together.
    """
    signed = message.statement
    statement = _statement(signed)
    with coordinator.store.reading() as rows:
        is_known = rows.releases.one(statement.population, statement.release) is not None
    if not is_known:
        manifest, encoded = _manifest(coordinator.blobs, statement, message)
        _require_files(coordinator.blobs, manifest)
    with coordinator.locked(), coordinator.store.transaction(durable=True) as rows:
        before = rows.releases.all(statement.population)
        old = next((each for each in before if each.release == statement.release), None)
        if old is not None and old.signed == signed:
            return old
        require_allowed(statement, signed.signer, before)
        if old is None:
            tasks = [stored.task for stored in rows.tasks()]
            _require_audit(manifest, tasks)
            known = {task.tokenizer for task in tasks if task.population == statement.population}
            known |= {each.manifest.tokenizer for each in before}
            kept = StoredRelease(
                statement.population,
                statement.release,
                encoded.decode(),
                message.signature,
                signed,
                manifest.tokenizer not in known,
                published_at=now,
                changed_at=now,
            )
            rows.releases.add(kept)
        else:
            kept = replace(old, signed=signed, changed_at=now)
            rows.releases.change(kept)
        renew(rows, statement.population, replaces_all=statement.withdrawn)
        coordinator.log.enter(rows, [_entry(statement, signed)])
    return kept


def _entry(statement: Statement, signed: Signed) -> ReleaseEntry:
    return ReleaseEntry(
        statement.population,
        statement.release,
        statement.manifest,
        digest(signed.text.encode()),
        statement.share,
        statement.withdrawn,
    )


def require_allowed(statement: Statement, signer: str, before: Sequence[StoredRelease]) -> None:
    """Refused unless a statement may follow what has been published in its population, newest
    first.
    """
    where = f"release {statement.release} of population {statement.population}"
    if before and before[0].signed.signer != signer:
        raise Refused(
            Cause.WRONG_STATE,
            f"{where}: signed with the key {signer[:16]}, expected {before[0].signed.signer[:16]} "
            "as all releases of that population; sign with that key, or publish to another one",
        )
    old = next((each for each in before if each.release == statement.release), None)
    if old is None:
        _require_new(statement, before, where)
        return
    stands = old.statement
    if old.sha != statement.manifest:
        raise Refused(
            Cause.WRONG_STATE,
            f"{where}: there is another bundle of that number; make this one with a higher number",
        )
    if stands.withdrawn:
        raise Refused(
            Cause.WRONG_STATE,
            f"{where}: withdrawn, which lasts; make a bundle with a higher number",
        )
    if old.stopped and not statement.withdrawn:
        raise Refused(
            Cause.WRONG_STATE,
            f"{where}: stopped ({old.stopped}); withdraw it, or make a bundle with a higher number",
        )
    if statement.serial == 1:
        raise Refused(
            Cause.WRONG_STATE,
            f"{where}: published already, to {_percent(stands.share)} of the devices; to more: "
            f"{release_command('promote', old.release, old.population)} --share ...",
        )
    if statement.serial != stands.serial + 1:
        raise Refused(
            Cause.WRONG_STATE,
            f"{where}: expected statement {stands.serial + 1}, found {statement.serial}; somebody "
            "else has said something of it: see `fedboard release list`, and say it again",
        )
    if not statement.withdrawn and statement.share <= stands.share:
        raise Refused(
            Cause.WRONG_STATE,
            f"{where}: expected a share above its {_percent(stands.share)}, found "
            f"{_percent(statement.share)}; a share only rises, and `withdraw` is the way down",
        )


def _require_audit(manifest: Manifest, tasks: Sequence[Task]) -> None:
    """Refused if the task that a release was learnt by lets none out without an audit."""
    line = manifest.lineage
    if line.audit is None and any(each.require_audit and each.name == line.task for each in tasks):
        raise Refused(
            Cause.WRONG_STATE,
            f"release {manifest.release}: expected an audit in its lineage, as task {line.task} "
            "requires, found none; ask `fedboard audit` of that bundle, and make it again with "
            "`fedboard release make --require-audit audit.json`",
        )


def _require_new(statement: Statement, before: Sequence[StoredRelease], where: str) -> None:
    if statement.withdrawn or not statement.share:
        raise Refused(
            Cause.WRONG_STATE,
            f"{where}: there is none; publish it first, to a share above 0 %",
        )
    if statement.serial != 1:
        raise Refused(
            Cause.WRONG_STATE,
            f"{where}: expected statement 1 of a new release, found {statement.serial}; publish it "
            "first",
        )
    highest = before[0].release if before else 0
    if statement.release <= highest:
        raise Refused(
            Cause.WRONG_STATE,
            f"{where}: expected a number above {highest}, the highest published; make the bundle "
            "with a higher number",
        )


def stop(rows: Rows, population: str, release: int, reason: str, now: float) -> bool:
    """Name a release no more, since it does worse; devices that run it stay until it is withdrawn.
    False, and nothing changes, if it is stopped or withdrawn already, or there is none.
    """
    old = rows.releases.one(population, release)
    if old is None or not old.is_offered:
        return False
    rows.releases.change(replace(old, stopped=reason, stopped_at=now))
    renew(rows, population, replaces_all=True)
    return True


def renew(rows: Rows, population: str, replaces_all: bool = False) -> None:
    """Work the index of a population out anew, as part of what has changed it. `replaces_all`: who
    was told of an older one gets it no more.
    """
    offers = newest(rows.releases.all(population), rows.releases.differences(population))
    rows.releases.add_index(population, config.to_json(offers), replaces_all)


def newest(
    releases: Sequence[StoredRelease], differences: Mapping[tuple[int, int], Blob | None]
) -> Newest:
    """What devices are told, newest first: all that is offered down to the newest release for all
    of them, what is withdrawn as long as there is room, then what is older; never what is stopped.
    """
    by_number = {each.release: each for each in releases}
    named = sorted(_named(releases), key=lambda each: each.release, reverse=True)
    offers: tuple[Offer, ...] = ()
    for each in named:
        blobs = {
            by_number[older].sha: blob
            for (release, older), blob in differences.items()
            if release == each.release and blob is not None and each.is_offered
        }
        offers += (Offer(each.signed, each.signature, blobs),)
    index = Newest(offers)
    if len(config.to_json(index)) > INDEX_BYTES:
        # signed texts are bounded, so without the differences it always has room
        index = Newest(tuple(replace(offer, differences={}) for offer in offers))
    return index


def _named(releases: Sequence[StoredRelease]) -> list[StoredRelease]:
    offered = sorted((each for each in releases if each.is_offered), key=lambda each: -each.release)
    whole = next((k for k, each in enumerate(offered) if each.statement.share == WHOLE), None)
    partial = offered if whole is None else offered[:whole]
    withdrawn = sorted(
        (each for each in releases if each.statement.withdrawn), key=lambda each: -each.release
    )
    goal = [] if whole is None else [offered[whole]]
    older = [] if whole is None else offered[whole + 1 :]
    return [*goal, *partial, *withdrawn, *older][:MOST_NAMED]


# differences


def work_out(coordinator: Coordinator, population: str | None = None) -> int:
    """Work out the differences that are missing, of one population or of all, without keeping
    others from the server, and renew the index. How many there were. Raises RunError if a blob
    cannot be read or kept, once all others have been worked out.
    """
    failed: list[RunError] = []
    with _working_out:
        with coordinator.store.reading() as rows:
            names = rows.releases.named() if population is None else [population]
            pairs = [pair for name in names for pair in _missing(rows, name)]
        for new, old in pairs:
            try:
                blob = _difference(coordinator.blobs, new, old)
            except RunError as error:
                failed.append(error)
                continue
            with coordinator.locked(), coordinator.store.transaction(durable=True) as rows:
                rows.releases.add_difference(new.population, new.release, old.release, blob)
                renew(rows, new.population)
    if failed:
        raise failed[0]
    return len(pairs)


def _missing(rows: Rows, population: str) -> list[tuple[StoredRelease, StoredRelease]]:
    releases = rows.releases.all(population)
    known = rows.releases.differences(population)
    return [
        (new, old)
        for place, new in enumerate(releases)
        if new.is_offered
        for old in [each for each in releases[place + 1 :] if fits(new, each)][:FROM]
        if (new.release, old.release) not in known
    ]


def fits(new: StoredRelease, old: StoredRelease) -> bool:
    """Whether the predict.tflite of one release can be made of another's."""
    one, other = new.manifest, old.manifest
    return one.constants is not None and (one.graph, one.tokenizer, one.constants) == (
        other.graph,
        other.tokenizer,
        other.constants,
    )


def _difference(blobs: Blobs, new: StoredRelease, old: StoredRelease) -> Blob | None:
    constants = new.manifest.constants or {}
    before, after = (blobs.get(each.manifest.files[PREDICT].sha256) for each in (old, new))
    try:
        change = codes.encode(before, after, constants)
    except (BundleError, CheckpointError) as error:
        # whoever made the bundle has signed constants that are not where it says
        log.error(
            "no difference between releases",
            extra={"release": new.release, "older": old.release, "error": str(error)},
        )
        return None
    if len(change) > SMALLER * len(after):
        return None
    return Blob(blobs.put(change), len(change))


# what anybody may fetch


def named(coordinator: Coordinator, population: str) -> str:
    """SHA-256 of the index of a population's releases, as check-ins are told it; empty for one
    without.
    """
    with coordinator.store.reading() as rows:
        return rows.releases.named().get(population, "")


def served(coordinator: Coordinator, sha: str) -> bool:
    """Whether anybody may fetch the blob: an index that check-ins have named, or part of a release
    that is neither stopped nor withdrawn. An index is kept as a blob from now on.
    """
    with coordinator.store.reading() as rows:
        body = rows.releases.index(sha)
        if body is None:
            return rows.releases.is_offered(sha)
    if coordinator.blobs.size(sha) is None:
        coordinator.blobs.put(body)
    return True


# what is looked at before anything is kept


def _statement(signed: Signed) -> Statement:
    try:
        return statement_in(signed)
    except ConfigError as error:
        raise Refused(Cause.MALFORMED, str(error)) from None


def _manifest(blobs: Blobs, statement: Statement, message: Publication) -> tuple[Manifest, bytes]:
    """The manifest a statement names. Refused unless the same key signed it, with that number, in a
    format of ours.
    """
    size = blobs.size(statement.manifest)
    if size is None:
        raise Refused(
            Cause.UNKNOWN_BLOB, "manifest.json: there is none of that SHA-256; put it first"
        )
    if size > MANIFEST_BYTES:
        raise Refused(
            Cause.MALFORMED,
            f"manifest.json: expected at most {MANIFEST_BYTES:,} bytes, found {size:,}",
        )
    encoded = blobs.get(statement.manifest)
    where = Path(f"release-{statement.release}")
    signature, signers = message.signature.encode(), frozenset({message.statement.signer})
    try:
        manifest = bundle.signed_manifest(encoded, signature, signers, where)
    except BundleError as error:
        raise Refused(Cause.MALFORMED, str(error)) from None
    if manifest.release != statement.release:
        raise Refused(
            Cause.MALFORMED,
            f"the statement is on release {statement.release}, but the manifest it names is of "
            f"release {manifest.release}; sign one on that",
        )
    return manifest, encoded


def _require_files(blobs: Blobs, manifest: Manifest) -> None:
    whole = sum(file.bytes for file in manifest.files.values())
    if whole > MOST_BUNDLE:
        raise Refused(
            Cause.MALFORMED,
            f"release {manifest.release}: expected at most {MOST_BUNDLE:,} bytes of files, found "
            f"{whole:,}, which no device takes; make a smaller one",
        )
    for name, file in sorted(manifest.files.items()):
        size = blobs.size(file.sha256)
        if size is None:
            raise Refused(Cause.UNKNOWN_BLOB, f"{name}: there is none of its SHA-256; put it first")
        if size != file.bytes:
            raise Refused(
                Cause.MALFORMED,
                f"{name}: the manifest says {file.bytes:,} bytes, found {size:,}; make it again",
            )


# what an operator is told


def report(rows: Rows, release: StoredRelease) -> ReleaseReport:
    """A release, as an operator sees it."""
    manifest, statement = release.manifest, release.statement
    differences = rows.releases.differences(release.population)
    lineage = manifest.lineage
    standing = standings.one(rows, release)
    told = standing.figures.devices > 0
    return ReleaseReport(
        population=release.population,
        release=release.release,
        state=standing.state,
        share=statement.share,
        statement=release.signed,
        published_at=release.published_at,
        changed_at=release.changed_at,
        bytes=sum(file.bytes for file in manifest.files.values()) + len(release.encoded),
        differences=tuple(
            DifferenceFrom(older, blob.bytes)
            for (number, older), blob in sorted(differences.items(), reverse=True)
            if number == release.release and blob is not None
        ),
        network=manifest.network,
        tokenizer=manifest.tokenizer,
        new_vocabulary=release.new_vocabulary,
        device_class=manifest.device_class or "",
        corpus=lineage.corpus,
        task=lineage.task or "",
        round=lineage.round,
        checkpoint=lineage.checkpoint,
        participants=lineage.participants,
        privacy=lineage.privacy,
        stopped=release.stopped,
        stopped_at=release.stopped_at,
        devices=standing.figures.devices,
        top1=None if standing.right is None else standing.right.share,
        top3=standing.top3,
        median=standing.quartiles[1] if told else None,
        how=standing.sentence,
        signature=release.signature,
    )


def reports(coordinator: Coordinator) -> ReleaseReports:
    """Every release, by population, newest first."""
    with coordinator.store.reading() as rows:
        return ReleaseReports(tuple(report(rows, each) for each in rows.releases.all()))


def report_of(coordinator: Coordinator, release: StoredRelease) -> ReleaseReport:
    """The same of one, as it stands."""
    with coordinator.store.reading() as rows:
        return report(rows, rows.releases.one(release.population, release.release) or release)


def _percent(share: int) -> str:
    return f"{share / 100:g} %"
