"""Release rows: what a server keeps of published releases, read and written inside a transaction.

Each release stands as its newest statement leaves it, with its blobs, the differences from older
ones, and the indexes that check-ins name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import sqlalchemy as sa

from device_runtime import config, signing
from device_runtime.bundle import MANIFEST, Manifest
from device_runtime.errors import ConfigError
from device_runtime.releases import PURPOSE, Blob, Statement
from device_runtime.weights import digest
from device_runtime.wire import Signed
from server.tables import release_differences, release_files, release_indexes, releases

INDEXES_KEPT = 16  # of a population: who was told of an older one may still fetch it


@dataclass(frozen=True)
class StoredRelease:
    """A published release. What is signed was verified before it was kept."""

    population: str
    release: int
    encoded: str  # the manifest, as it was signed
    signature: str  # of the manifest
    signed: Signed  # the newest statement
    new_vocabulary: bool  # no release and no task of the population had it before
    published_at: float
    changed_at: float
    stopped: str = ""  # why it is not named any more
    stopped_at: float | None = None

    @cached_property
    def statement(self) -> Statement:
        """What is signed of it."""
        return statement_in(self.signed)

    @cached_property
    def manifest(self) -> Manifest:
        """What it is."""
        return config.from_json(Manifest, self.encoded.encode(), f"release {self.release}")

    @cached_property
    def sha(self) -> str:
        """SHA-256 of the manifest."""
        return digest(self.encoded.encode())

    @property
    def is_offered(self) -> bool:
        """Whether devices may take it: it is neither stopped nor withdrawn."""
        return not self.stopped and not self.statement.withdrawn


def statement_in(signed: Signed) -> Statement:
    """The statement, whoever signed it. Raises ConfigError if the signer did not, or it is none."""
    text = signing.text_of(signed, PURPOSE, frozenset({signed.signer}))
    if text is None:
        raise ConfigError("statement", "not signed by the key it names", "sign it again")
    return config.from_json(Statement, text, "statement")


class ReleaseRows:
    """Reading and writing inside one transaction."""

    def __init__(self, connection: sa.Connection):
        self._connection = connection

    def all(self, population: str | None = None) -> list[StoredRelease]:
        """The releases of one population, or of all, newest first."""
        query = sa.select(*_COLUMNS).order_by(releases.c.population, releases.c.release.desc())
        if population is not None:
            query = query.where(releases.c.population == population)
        return [_stored(row) for row in self._connection.execute(query)]

    def one(self, population: str, release: int) -> StoredRelease | None:
        """A release; None if there is none of that number."""
        row = self._connection.execute(
            sa.select(*_COLUMNS).where(_is(releases, population, release))
        ).one_or_none()
        return None if row is None else _stored(row)

    def add(self, release: StoredRelease) -> None:
        """Keep a new release with the names of its blobs."""
        self._connection.execute(releases.insert(), _row(release))
        at = {"population": release.population, "release": release.release}
        listed = {MANIFEST: release.sha}
        listed |= {name: file.sha256 for name, file in release.manifest.files.items()}
        self._connection.execute(
            release_files.insert(),
            [{**at, "file": name, "sha": sha} for name, sha in listed.items()],
        )

    def change(self, release: StoredRelease) -> None:
        """Keep what has changed of a release: its statement, and whether it is stopped."""
        self._connection.execute(
            releases.update()
            .where(_is(releases, release.population, release.release))
            .values(_row(release))
        )

    def differences(self, population: str) -> dict[tuple[int, int], Blob | None]:
        """By (release, older release); None where one would save too little."""
        query = sa.select(
            *(release_differences.c[name] for name in ("release", "older", "sha", "bytes"))
        ).where(release_differences.c.population == population)
        return {
            (release, older): Blob(sha, size) if sha else None
            for release, older, sha, size in self._connection.execute(query)
        }

    def add_difference(self, population: str, release: int, older: int, blob: Blob | None) -> None:
        """Keep the difference from an older release, or that it would save too little."""
        if (release, older) not in self.differences(population):
            kept = {"sha": "", "bytes": 0} if blob is None else vars(blob)
            row = {"population": population, "release": release, "older": older}
            row |= {"sha": kept.get("sha256", ""), "bytes": kept["bytes"]}
            self._connection.execute(release_differences.insert(), row)

    def named(self) -> Mapping[str, str]:
        """SHA-256 of the newest index of each population that has releases."""
        return dict(self._connection.execute(_NAMED).tuples().all())

    def add_index(self, population: str, body: bytes, replaces_all: bool) -> None:
        """Let check-ins name an index from now on. `replaces_all`: nobody gets an older one any
        more.
        """
        columns, mine = release_indexes.c, release_indexes.c.population == population
        query = sa.select(sa.func.max(columns.number)).where(mine)
        number = (self._connection.execute(query).scalar_one() or 0) + 1
        old = mine if replaces_all else mine & (columns.number <= number - INDEXES_KEPT)
        self._connection.execute(release_indexes.delete().where(old))
        self._connection.execute(release_indexes.update().where(mine).values(newest=False))
        row = {"population": population, "number": number, "sha": digest(body)}
        self._connection.execute(release_indexes.insert(), row | {"body": body, "newest": True})

    def index(self, sha: str) -> bytes | None:
        """The bytes of an index that somebody was told of; None if there is none of that name."""
        query = sa.select(release_indexes.c.body).where(release_indexes.c.sha == sha).limit(1)
        body = self._connection.execute(query).scalar_one_or_none()
        return None if body is None else bytes(body)

    def is_offered(self, sha: str) -> bool:
        """Whether a blob is part of a release that devices may take, or leads to one as a
        difference. One query, however many releases share the blob: strangers ask it.
        """
        parts = sa.union(
            *(
                sa.select(table.c.population, table.c.release).where(table.c.sha == sha)
                for table in (release_files, release_differences)
            )
        ).subquery()
        query = (
            sa.select(releases.c.statement)
            .join(parts, _is(releases, parts.c.population, parts.c.release))
            .where(releases.c.stopped == "")
            .order_by(releases.c.release.desc())
        )
        return any(
            not _stated(text).withdrawn for text in self._connection.execute(query).scalars()
        )


_NAMES = (
    *("population", "release", "manifest", "signature", "statement", "new_vocabulary"),
    *("published_at", "changed_at", "stopped", "stopped_at"),
)
_COLUMNS = tuple(releases.c[name] for name in _NAMES)
_NAMED = sa.select(release_indexes.c.population, release_indexes.c.sha).where(
    release_indexes.c.newest.is_(True)
)


def _is(table: sa.Table, population: Any, release: Any) -> Any:
    return (table.c.population == population) & (table.c.release == release)


@lru_cache(maxsize=512)
def _stated(text: str) -> Statement:
    """The statement in a column: verified before it was kept, and not at every request."""
    return statement_in(config.from_json(Signed, text.encode(), "statement"))


def _stored(row: Any) -> StoredRelease:
    population, release, encoded, signature, statement, *rest = row
    signed = config.from_json(Signed, statement.encode(), "statement")
    return StoredRelease(population, release, encoded, signature, signed, *rest)


def _row(release: StoredRelease) -> dict[str, Any]:
    values: Iterable[Any] = (
        *(release.population, release.release, release.encoded, release.signature),
        *(config.to_json(release.signed).decode(), release.new_vocabulary),
        *(release.published_at, release.changed_at, release.stopped, release.stopped_at),
    )
    return dict(zip(_NAMES, values, strict=True))
