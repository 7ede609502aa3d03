"""Releases: which bundle a device should run, by what its maker has signed.

A statement offers one release to a share of the devices, raises the share, or withdraws the
release, which is the only way down. It is the same for all: whether a device is in the share it
decides itself, by a hash of the release with a secret of its own.
"""

from dataclasses import dataclass, field
from typing import Annotated

from device_runtime import bounds
from device_runtime.bounds import Each, Matches, Within
from device_runtime.wire import HASH, TASK, Signed

FORMAT = 1
PURPOSE = "release"  # of the signature
WHOLE = 10_000  # of a share: hundredths of a per cent
MOST_NAMED = 8  # releases that a server names at once
INDEX_BYTES = 1 << 18  # of a Newest: more is none of ours


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
