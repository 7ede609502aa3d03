"""Releases: which bundle a device should run, by what its maker has signed.

A statement offers one release to a share of the devices, raises the share, or withdraws the
release, which is the only way down. It is the same for all: whether a device is in the share it
decides itself, by a hash of the release with a secret of its own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from device_runtime import bounds, config, signing
from device_runtime.bounds import Each, Matches, Within
from device_runtime.errors import ConfigError
from device_runtime.weights import digest
from device_runtime.wire import HASH, TASK, Signed

FORMAT = 1
PURPOSE = "release"  # of the signature
WHOLE = 10_000  # of a share: hundredths of a per cent
MOST_NAMED = 8  # releases that a server names at once
INDEX_BYTES = 1 << 18  # of a Newest: more is none of ours
MOST_BUNDLE = 64 << 20  # bytes of all files of a release: no device takes more


@dataclass(frozen=True)
class Statement:
    """What its maker says of a release. The newest serial of a release counts."""

    release: Annotated[int, Within(1, 2**31 - 1)]  # as in its manifest
    manifest: Annotated[str, HASH]  # SHA-256 of manifest.json
    population: Annotated[str, TASK]
    share: Annotated[int, Within(0, WHOLE)]  # of the devices it is offered to
    serial: Annotated[int, Within(1, 2**31 - 1)]  # rises with every statement on the release
    withdrawn: bool = False  # whoever runs it goes to the best release that is offered to him
    format: Annotated[int, Within(1, 1000)] = FORMAT

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of its bounds."""
        bounds.check(self, "release")


@dataclass(frozen=True)
class Blob:
    """Something to fetch."""

    sha256: Annotated[str, HASH]
    bytes: Annotated[int, Within(0, 2**31 - 1)]


@dataclass(frozen=True)
class Offer:
    """A statement and what helps to follow it: of this nothing is believed, since what comes of it
    is compared with the manifest.
    """

    statement: Signed
    # of the manifest; the same two lines as manifest.sig
    signature: Annotated[str, Matches("[0-9a-f\\n]*", 256)] = ""
    # by the SHA-256 of an older release's manifest: what makes this predict.tflite of that one
    differences: dict[str, Blob] = field(default_factory=dict)


@dataclass(frozen=True)
class Newest:
    """The releases of a population there are now, newest first. Its bytes are named by their
    SHA-256 in the answer to every check-in.
    """

    offers: Annotated[tuple[Offer, ...], Each(most=MOST_NAMED)] = ()


@dataclass(frozen=True)
class Named:
    """A release of an index whose statement was verified, and what helps to follow it."""

    statement: Statement
    offer: Offer


@dataclass(frozen=True)
class Index:
    """What of an index may be believed, and why the rest was left out."""

    named: tuple[Named, ...] = ()
    left_out: tuple[str, ...] = ()


def statements_in(data: bytes, trusted: frozenset[str], population: str) -> Index:
    """The statements of an index (bytes of a `Newest`) that a trusted key (public, hexadecimal)
    signed for this population. A damaged or foreign one is left out, and named by its place.

    Raises ConfigError for bytes that are no index at all.
    """
    table = config.read_json(data, "index of releases")
    offers = table.get("offers", []) if isinstance(table, dict) else None
    if not isinstance(offers, list) or len(offers) > MOST_NAMED:
        raise ConfigError(
            "index of releases",
            f"expected a table with at most {MOST_NAMED} offers, found another",
            "look at what the server publishes: fedboard release list",
        )
    named, left_out = [], []
    for place, each in enumerate(offers):
        where = f"offers[{place}]"
        try:
            offer = config.from_table(Offer, each, where)
            named.append(Named(_statement(offer, where, trusted, population), offer))
        except ConfigError as error:
            left_out.append(str(error))
    return Index(tuple(named), tuple(left_out))


def _statement(offer: Offer, where: str, trusted: frozenset[str], population: str) -> Statement:
    text = signing.text_of(offer.statement, PURPOSE, trusted)
    if text is None:
        raise ConfigError(
            where,
            f"expected a statement of a maker this device trusts, found one of "
            f"{offer.statement.signer[:16]}",
            "it is not followed",
        )
    statement = config.from_json(Statement, text, where)
    if statement.format != FORMAT or statement.population != population:
        expected = f"a statement of format {FORMAT} for `{population}`"
        actual = f"format {statement.format} for `{statement.population}`"
        raise ConfigError(where, f"expected {expected}, found {actual}", "it is not followed")
    return statement


def learned(known: Mapping[str, Statement], heard: Iterable[Statement]) -> dict[str, Statement]:
    """What is known of each release, by its manifest, after more was heard: the highest serial
    counts, whatever is said again later. Of equal serials a withdrawal counts, then the smallest
    share, whichever came first.
    """
    newest = dict(known)
    for each in heard:
        before = newest.get(each.manifest)
        if before is None or _rank(before) < _rank(each):
            newest[each.manifest] = each
    return newest


def _rank(statement: Statement) -> tuple[int, bool, int, int]:
    return statement.serial, statement.withdrawn, -statement.share, -statement.release


def uniform(secret: bytes, manifest: str) -> float:
    """Where a device stands among all: from 0 on, below 1, for each release elsewhere. Equal
    shares of those who hold a secret stand in equal parts.
    """
    return int(digest(secret + bytes.fromhex(manifest))[:13], 16) / 16**13


def is_offered(statement: Statement, secret: bytes) -> bool:
    """Whether a statement offers its release to the device with this secret.

    >>> all_of_them = Statement(1, "ab" * 32, "default", WHOLE, 1)
    >>> is_offered(all_of_them, b"one"), is_offered(all_of_them, b"another")
    (True, True)
    """
    return not statement.withdrawn and uniform(secret, statement.manifest) < (
        statement.share / WHOLE
    )


@dataclass(frozen=True)
class Installed:
    """A bundle that lies on the device."""

    release: int
    manifest: str  # SHA-256


@dataclass(frozen=True)
class Device:
    """What a device knows of itself and of releases when it chooses."""

    runs: Installed
    before: Installed | None  # the last good one, if it is still whole
    highest: int  # the highest release it ever ran
    known: Mapping[str, Statement]  # by manifest: `learned`
    refused: frozenset[str] = frozenset()  # manifests


@dataclass(frozen=True)
class Choice:
    """Which release a device goes to."""

    release: int
    manifest: str  # SHA-256
    is_withdrawal: bool  # the one it runs was withdrawn: it may go down


def choose(device: Device, named: Iterable[str], secret: bytes) -> Choice | None:
    """Which of the releases `named` now, by their manifests, the device goes to; None if it stays.

    It goes up to the highest that is offered to it. It goes down only from a release that was
    withdrawn: to the highest that is offered, or to the last good one, which was offered to it
    once. Whatever it refused it does not choose again.
    """
    of_own = device.known.get(device.runs.manifest)
    is_withdrawn = of_own is not None and of_own.withdrawn
    offered = {
        each.manifest: each.release
        for each in (device.known[manifest] for manifest in named if manifest in device.known)
        if is_offered(each, secret)
    }
    if is_withdrawn and device.before is not None:
        of_before = device.known.get(device.before.manifest)
        if of_before is None or not of_before.withdrawn:
            offered[device.before.manifest] = device.before.release
    least = 0 if is_withdrawn else max(device.runs.release + 1, device.highest)
    able = [
        (release, manifest)
        for manifest, release in offered.items()
        if release >= least and manifest not in device.refused and manifest != device.runs.manifest
    ]
    if not able:
        return None
    release, manifest = max(able)
    return Choice(release, manifest, is_withdrawn)
