"""The contract of SecAgg+ between a device and the server: every message of its steps.

Source: Bell et al. 2020, ePrint 2020/704. Under /v1/assignments/{id}/secagg, signed as all else:

    1 keys       PUT keys     Advertised      GET roster     -> Roster       who my neighbours are
    2 shares     PUT shares   Shares          GET inbox      -> Inbox        what they sealed to me
    3 masked     PUT of the update's masked words, as any update travels
                                              GET announced  -> Announced    whose words are counted
      consent    PUT consent  Consent         GET consents   -> Consents     (semi-malicious class)
    4 unmasking  PUT revealed Revealed

A device is known to its peers by its place in the order that the server drew, and to its
neighbours by its key as well. No message has room for a number of an update.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from device_runtime.bounds import Each, Matches, Within
from device_runtime.errors import ConfigError
from device_runtime.terms import MOST_DEVICES
from device_runtime.wire import HASH

MOST_NEIGHBOURS = 2048  # of one device: its messages stay well below a megabyte
SHARE_BYTES = 33  # of a number below the prime of `shamir`
BOX_BYTES = 2 * SHARE_BYTES + 16  # two shares encrypted, and their tag
PLACE = Within(0, MOST_DEVICES - 1)
PLACES = Matches("[0-9a-f]*", MOST_DEVICES // 4)  # a set of places, see `to_bits`
SIGNATURE = Matches("[0-9a-f]{128}", 128)
_LIST = Each(most=MOST_NEIGHBOURS)


@dataclass(frozen=True)
class Advertised:
    """The keys of a device for one round. Its signature binds them to it."""

    public_key: Annotated[str, HASH]  # of the device: Ed25519
    mask_key: Annotated[str, HASH]  # X25519: of the streams it shares with neighbours
    box_key: Annotated[str, HASH]  # X25519: shares for it are sealed to this one
    signature: Annotated[str, SIGNATURE]  # `secagg.Session.keys_message`


@dataclass(frozen=True)
class Neighbour:
    """A neighbour as the server names it."""

    place: Annotated[int, PLACE]
    keys: Advertised


@dataclass(frozen=True)
class Roster:
    """Where a device stands among those whose keys have come, and beside whom."""

    devices: Annotated[int, Within(1, MOST_DEVICES)]
    order: Annotated[str, HASH]  # drawn by the server: a device's rank, see `secagg.rank`
    place: Annotated[int, PLACE]  # the device's own
    neighbours: Annotated[tuple[Neighbour, ...], _LIST]  # by place


@dataclass(frozen=True)
class Box:
    """The shares of one device for another, sealed."""

    place: Annotated[int, PLACE]  # in Shares whom it is for; in an Inbox whose shares they are
    box: Annotated[str, Matches(f"[0-9a-f]{{{2 * BOX_BYTES}}}", 2 * BOX_BYTES)]


@dataclass(frozen=True)
class Shares:
    """The shares of a device's two secrets, a box for each neighbour."""

    commitment: Annotated[str, HASH]  # to its own seed, see `secagg.Session.commitment`
    boxes: Annotated[tuple[Box, ...], _LIST]  # by place, one for each neighbour


@dataclass(frozen=True)
class Inbox:
    """Who has sent shares, and those for this device."""

    shared: Annotated[str, PLACES]  # everybody's
    boxes: Annotated[tuple[Box, ...], _LIST]  # by place, of each neighbour among them


@dataclass(frozen=True)
class Announced:
    """Whose masked words are counted: all others have dropped out."""

    masked: Annotated[str, PLACES]


@dataclass(frozen=True)
class Consent:
    """A device was told of these sets, and will hear of no others."""

    signature: Annotated[str, SIGNATURE]  # `secagg.Session.consent_message`


@dataclass(frozen=True)
class NeighbourConsent:
    """The consent of a neighbour."""

    place: Annotated[int, PLACE]
    signature: Annotated[str, SIGNATURE]


@dataclass(frozen=True)
class Consents:
    """What a device's neighbours were told, by their own signatures."""

    neighbours: Annotated[tuple[NeighbourConsent, ...], _LIST] = ()  # by place


@dataclass(frozen=True)
class Share:
    """One share of another device's secret."""

    place: Annotated[int, PLACE]  # whose secret it is of
    share: Annotated[str, Matches(f"[0-9a-f]{{{2 * SHARE_BYTES}}}", 2 * SHARE_BYTES)]


@dataclass(frozen=True)
class Revealed:
    """What takes the masks off the sum: of each neighbour a share of one secret, never of both."""

    seeds: Annotated[tuple[Share, ...], _LIST] = ()  # of the counted: their own seeds; by place
    keys: Annotated[tuple[Share, ...], _LIST] = ()  # of those that dropped out: their mask keys
    # neighbours whose box did not open, or held no shares
    spoiled: Annotated[tuple[int, ...], Each(PLACE, MOST_NEIGHBOURS)] = ()


Sent = Advertised | Shares | Consent | Revealed
Heard = Roster | Inbox | Announced | Consents
# the last part of the path of each
SENT: Mapping[str, type[Sent]] = {
    "keys": Advertised,
    "shares": Shares,
    "consent": Consent,
    "revealed": Revealed,
}
HEARD: Mapping[str, type[Heard]] = {
    "roster": Roster,
    "inbox": Inbox,
    "announced": Announced,
    "consents": Consents,
}
MOST_BYTES = 1 << 20  # of a message


def to_bits(places: Iterable[int], devices: int) -> str:
    """A set of places among so many devices, eight a byte, the lowest first, in hexadecimal.

    >>> to_bits({0, 2, 9}, 12)
    '0502'
    """
    bits = np.zeros(devices, bool)
    bits[list(places)] = True
    return np.packbits(bits, bitorder="little").tobytes().hex()


def from_bits(text: str, devices: int, where: str) -> frozenset[int]:
    """The set of `to_bits`. Raises ConfigError for any other text.

    >>> sorted(from_bits("0502", 12, "masked"))
    [0, 2, 9]
    """
    if len(text) != 2 * -(-devices // 8) or not PLACES.holds(text):
        raise ConfigError(
            where,
            f"expected {2 * -(-devices // 8)} hexadecimal digits, found {len(text)} characters",
            "correct it",
        )
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), bitorder="little")
    places = frozenset(np.flatnonzero(bits).tolist())
    if places and max(places) >= devices:
        raise ConfigError(
            where, f"expected places below {devices}, found {max(places)}", "correct it"
        )
    return places
