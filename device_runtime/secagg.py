"""SecAgg+ on a device: four steps as states, each of which takes a message and gives the next.

    advertise -> Advertising -- Roster ----> share  -> Sharing   + Shares     two secrets, in shares
                 Sharing     -- Inbox -----> mask   -> Masked    + words      seed and streams added
                 Masked      -- Announced -> agree  -> Agreed    + Consent    one kind of share kept
                 Agreed      -- Consents --> reveal -> Revealed

An update is hidden by a stream of the device's own seed and by one that it shares with each
neighbour, which cancels in the sum. Neighbours hold shares of the seed and of the key behind the
shared streams; they give those of the seed if the update is counted and those of the key if it is
not, never of both, and only if enough of their own neighbours were told the same. Whatever cannot
be true of an honest server gives a Refused, and then the device sends nothing more. A state is used
once; secrets are in states only and never on a disk. Time is nowhere, randomness is an argument.
Sources: Bell et al. 2020, ePrint 2020/704; Bonawitz et al. 2017, ePrint 2017/281 (consistency).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from device_runtime import masking, neighbours, packing, shamir, signing
from device_runtime.causes import Cause
from device_runtime.errors import ConfigError
from device_runtime.masking import Random
from device_runtime.neighbours import Graph, Impossible
from device_runtime.packing import Layout
from device_runtime.secagg_wire import (
    MOST_NEIGHBOURS,
    SHARE_BYTES,
    Advertised,
    Announced,
    Box,
    Consent,
    Consents,
    Inbox,
    Revealed,
    Roster,
    Share,
    Shares,
    from_bits,
)
from device_runtime.terms import Terms
from device_runtime.weights import digest

_NONCE = bytes(12)  # the same always: each key is of one box
_ANYBODY = X25519PrivateKey.from_private_bytes(bytes(32))  # no secret: to try others' keys with


class Distrust(StrEnum):
    """Why a message of the protocol is refused, by a device or by the server."""

    TOO_FEW = "too_few"  # others are left to hide among: nobody need have lied
    BAD_SIGNATURE = "bad_signature"  # keys that their device did not sign for this round
    BAD_KEY = "bad_key"  # of small order: whoever uses it has no secret
    REPLAYED_KEY = "replayed_key"  # a key that stands there twice
    FORGED_NEIGHBOURS = "forged_neighbours"  # other ones than the order and the degree give
    FOREIGN_SHARES = "foreign_shares"  # boxes or shares of others than it is asked for
    WRONG_SHARE = "wrong_share"  # it does not fit what it is said to be a share of
    CONTRADICTION = "contradiction"  # sets of devices that cannot both be true
    DISAGREEMENT = "disagreement"  # neighbours were told of other sets


@dataclass(frozen=True)
class Refused:
    """The device sends nothing more in this round."""

    why: Distrust
    detail: str

    @property
    def cause(self) -> Cause:
        """With which cause it gives its assignment back."""
        return Cause.TIMED_OUT if self.why is Distrust.TOO_FEW else Cause.INCONSISTENT


@dataclass(frozen=True)
class Session:
    """The round that every key, box and signature is bound to."""

    server: str  # random name of its database
    task_id: str
    round: int
    terms: Terms

    def message(self, purpose: str, *more: str) -> bytes:
        """All of it as one text, and more lines."""
        parts = (self.server, self.task_id, str(self.round), self.terms.name, *more)
        return "\n".join((f"fedboard-secagg-{purpose}-v1", *parts)).encode()

    def keys_message(self, public_key: str, mask_key: str, box_key: str) -> bytes:
        """What a device signs of its keys."""
        return self.message("keys", public_key, mask_key, box_key)

    def consent_message(self, roster: Roster, sets: "Sets") -> bytes:
        """What a device signs of what it was told: the same for all that were told the same."""
        return self.message("consent", str(roster.devices), roster.order, sets.name)

    def commitment(self, public_key: str, seed: bytes) -> str:
        """What binds a device to its own seed and says nothing of it."""
        return digest(self.message("commitment", public_key) + b"\n" + seed)

    def graph(self, devices: int) -> Graph | Impossible:
        """How so many devices hold each other's secrets by the task's terms."""
        return neighbours.find(devices, self.terms.losses, MOST_NEIGHBOURS)


@dataclass(frozen=True)
class Sets:
    """Who has sent shares, and who masked words that are counted: places, as they travel."""

    shared: str
    masked: str

    @property
    def name(self) -> str:
        """SHA-256 of both."""
        return digest(f"{self.shared}\n{self.masked}".encode())


@dataclass(frozen=True)
class Advertising:
    """A device that has made its keys of the round."""

    session: Session
    key: Ed25519PrivateKey = field(repr=False)  # the device's own
    mask_key: X25519PrivateKey = field(repr=False)
    box_key: X25519PrivateKey = field(repr=False)
    advertised: Advertised


@dataclass(frozen=True)
class Sharing:
    """A device that has given shares of its secrets to its neighbours."""

    before: Advertising
    roster: Roster
    graph: Graph
    seed: bytes = field(repr=False)  # of its own stream
    box_secrets: Mapping[int, bytes] = field(repr=False)  # by place of the neighbour


@dataclass(frozen=True)
class Masked:
    """A device that has masked its numbers. It cannot any more: it has forgotten how."""

    session: Session
    key: Ed25519PrivateKey = field(repr=False)
    roster: Roster
    graph: Graph
    shared: str
    shares: Mapping[int, bytes] = field(repr=False)  # by place: of the seed, then of the key
    spoiled: tuple[int, ...]


@dataclass(frozen=True)
class Agreed:
    """A device that has said what it was told. Of each neighbour it has one share left."""

    session: Session
    roster: Roster
    graph: Graph
    sets: Sets
    revealed: Revealed = field(repr=False)


def advertise(
    session: Session, key: Ed25519PrivateKey, random: Random
) -> tuple[Advertising, Advertised]:
    """The first step: two fresh keys, signed with the device's own."""
    mask_key = X25519PrivateKey.from_private_bytes(random(32))
    box_key = X25519PrivateKey.from_private_bytes(random(32))
    names = (signing.public_hex(key), public_of(mask_key), public_of(box_key))
    advertised = Advertised(*names, key.sign(session.keys_message(*names)).hex())
    return Advertising(session, key, mask_key, box_key, advertised), advertised


def share(state: Advertising, roster: Roster, random: Random) -> tuple[Sharing, Shares] | Refused:
    """The second step: a share of the own seed and of the mask key for each neighbour."""
    session, own = state.session, state.advertised
    graph = _graph(session, roster)
    if isinstance(graph, Refused):
        return graph
    refused = _why_not_beside(state, roster, graph)
    if refused:
        return refused
    seed = random(shamir.SECRET_BYTES)
    secrets = (seed, state.mask_key.private_bytes_raw())
    polynomials = [
        (
            int.from_bytes(secret, "little"),
            shamir.coefficients(random(shamir.randomness(graph.threshold))),
        )
        for secret in secrets
    ]
    box_secrets, boxes = {}, []
    for each in roster.neighbours:
        secret = _exchanged(state.box_key, each.keys.box_key)
        at = each.place + 1
        plain = b"".join(_written(shamir.share(*each_of, at)) for each_of in polynomials)
        key = _box_key(session, secret, own.box_key, each.keys.box_key)
        box_secrets[each.place] = secret
        boxes.append(Box(each.place, AESGCM(key).encrypt(_NONCE, plain, None).hex()))
    shares = Shares(session.commitment(own.public_key, seed), tuple(boxes))
    return Sharing(state, roster, graph, seed, box_secrets), shares


def mask(
    state: Sharing, inbox: Inbox, numbers: NDArray[Any], by: Layout
) -> tuple[Masked, NDArray[np.uint64]] | Refused:
    """The third step: numbers, whole and below the base, [count], as masked words, uint64 [words].

    A box that does not open costs its sender a share, and nobody the round: it is named later.
    """
    session, roster = state.before.session, state.roster
    shared = _places(inbox.shared, roster, "shared")
    if isinstance(shared, Refused):
        return shared
    beside = [each for each in roster.neighbours if each.place in shared]
    if roster.place not in shared:
        return Refused(Distrust.CONTRADICTION, "shared: this device sent shares and is left out")
    if [box.place for box in inbox.boxes] != [each.place for each in beside]:
        return Refused(
            Distrust.FOREIGN_SHARES, "boxes: expected one of each neighbour that sent shares"
        )
    refused = _why_not_enough(session, state.graph, len(shared), len(beside))
    if refused:
        return refused
    own, shares, spoiled = state.before.advertised, {}, []
    for each, box in zip(beside, inbox.boxes, strict=True):
        secret = state.box_secrets[each.place]
        plain = _opened(_box_key(session, secret, each.keys.box_key, own.box_key), box)
        if plain is None:
            spoiled.append(each.place)
        else:
            shares[each.place] = plain
    seeds = {
        each.place: shared_seed(session, state.before.mask_key, each.keys.mask_key)
        for each in beside
    }
    own_seeds = [own_seed(session, own.public_key, state.seed)]
    added = [seed for place, seed in seeds.items() if place > roster.place]
    taken = [seed for place, seed in seeds.items() if place < roster.place]
    words = packing.add(packing.pack(numbers, by), masking.mask_sum(own_seeds + added, by), by)
    masked = Masked(
        session, state.before.key, roster, state.graph, inbox.shared, shares, tuple(spoiled)
    )
    return masked, packing.subtract(words, masking.mask_sum(taken, by), by)


def agree(state: Masked, announced: Announced) -> tuple[Agreed, Consent] | Refused:
    """The fourth step begins: the sets are looked at, the shares for them chosen, all others
    forgotten. The consent goes to the neighbours where the server may lie; else nobody needs it.
    """
    roster, terms = state.roster, state.session.terms
    masked = _places(announced.masked, roster, "masked")
    if isinstance(masked, Refused):
        return masked
    shared = from_bits(state.shared, roster.devices, "shared")
    if not masked <= shared:
        return Refused(
            Distrust.CONTRADICTION, f"masked: {len(masked - shared)} of them sent no shares"
        )
    if roster.place not in masked:
        return Refused(Distrust.CONTRADICTION, "masked: this device sent its words and is left out")
    if len(masked) > terms.most:
        return Refused(
            Distrust.CONTRADICTION,
            f"masked: expected at most {terms.most} devices in a sum, found {len(masked)}",
        )
    beside = {each.place for each in roster.neighbours}
    refused = _why_not_enough(state.session, state.graph, len(masked), len(beside & masked))
    if refused:
        return refused
    sets = Sets(state.shared, announced.masked)
    revealed = Revealed(
        tuple(
            Share(place, plain[:SHARE_BYTES].hex())
            for place, plain in state.shares.items()
            if place in masked
        ),
        tuple(
            Share(place, plain[SHARE_BYTES:].hex())
            for place, plain in state.shares.items()
            if place not in masked
        ),
        state.spoiled,
    )
    signature = state.key.sign(state.session.consent_message(roster, sets))
    return (
        Agreed(state.session, roster, state.graph, sets, revealed),
        Consent(signature.hex()),
    )


def reveal(state: Agreed, consents: Consents) -> Revealed | Refused:
    """The fourth step ends: the shares, if as many neighbours as open a secret were told the same.
    In the semi-honest class nobody is asked for consent, and `consents` is empty.
    """
    if not state.session.terms.semi_malicious:
        return state.revealed
    masked = from_bits(state.sets.masked, state.roster.devices, "masked")
    beside = {each.place: each.keys for each in state.roster.neighbours if each.place in masked}
    message = state.session.consent_message(state.roster, state.sets)
    told: set[int] = set()
    for each in consents.neighbours:
        if each.place not in beside or each.place in told:
            return Refused(
                Distrust.FORGED_NEIGHBOURS, f"consents: place {each.place} is no neighbour's"
            )
        signature = bytes.fromhex(each.signature)
        if not signing.verified(beside[each.place].public_key, message, signature):
            return Refused(
                Distrust.DISAGREEMENT, f"consents: place {each.place} signed something else"
            )
        told.add(each.place)
    if len(told) < state.graph.threshold:
        return Refused(
            Distrust.TOO_FEW,
            f"consents: expected {state.graph.threshold} neighbours, found {len(told)}",
        )
    return state.revealed


def rank(order: str, public_key: str) -> str:
    """Devices stand in the circle by these: whoever knows the order can look whether they do."""
    return digest(f"fedboard-secagg-order-v1\n{order}\n{public_key}".encode())


def why_not_keys(session: Session, keys: Advertised) -> Distrust | None:
    """Whether these are keys, signed by their device for this round and no other."""
    if not all(map(_is_key, (keys.mask_key, keys.box_key))):
        return Distrust.BAD_KEY
    message = session.keys_message(keys.public_key, keys.mask_key, keys.box_key)
    valid = signing.verified(keys.public_key, message, bytes.fromhex(keys.signature))
    return None if valid else Distrust.BAD_SIGNATURE


def is_repeated(keys: Iterable[Advertised]) -> bool:
    """Whether a key stands there twice, among those of one device or of several."""
    every = [name for each in keys for name in (each.public_key, each.mask_key, each.box_key)]
    return len(every) != len(set(every))


def own_seed(session: Session, public_key: str, seed: bytes) -> bytes:
    """What a device's own stream comes from."""
    return _derived(seed, session.message("own", public_key))


def shared_seed(session: Session, private: X25519PrivateKey, peer: str) -> bytes:
    """What the stream comes from that two neighbours share, the same for both. Of the two the one
    that stands earlier in the circle adds the stream and the other takes it off. Raises ValueError
    for a key of small order.
    """
    between = sorted((public_of(private), peer))
    return _derived(_exchanged(private, peer), session.message("shared", *between))


def public_of(key: X25519PrivateKey) -> str:
    """The public half, 32 bytes in hexadecimal."""
    return key.public_key().public_bytes_raw().hex()


def _graph(session: Session, roster: Roster) -> Graph | Refused:
    if roster.devices < session.terms.fewest:
        return Refused(
            Distrust.TOO_FEW,
            f"roster: expected at least {session.terms.fewest} devices, found {roster.devices}",
        )
    graph = session.graph(roster.devices)
    if isinstance(graph, Impossible):
        return Refused(Distrust.TOO_FEW, f"roster: {roster.devices} devices: {graph.value}")
    return graph


def _why_not_beside(state: Advertising, roster: Roster, graph: Graph) -> Refused | None:
    places = tuple(each.place for each in roster.neighbours)
    if roster.place >= roster.devices or places != neighbours.around(
        roster.place, roster.devices, graph.degree
    ):
        return Refused(
            Distrust.FORGED_NEIGHBOURS,
            f"roster: expected the {graph.degree} places around {roster.place} of "
            f"{roster.devices}, found {len(places)} others",
        )
    keys = {each.place: each.keys for each in roster.neighbours}
    if is_repeated((state.advertised, *keys.values())):
        return Refused(Distrust.REPLAYED_KEY, "roster: a key stands there twice")
    for place, each in keys.items():
        distrust = why_not_keys(state.session, each)
        if distrust:
            return Refused(
                distrust, f"roster: place {place} has no keys that its device signed for this round"
            )
    circle = sorted((keys | {roster.place: state.advertised}).items())
    ranks = [rank(roster.order, each.public_key) for _, each in circle]
    if ranks != sorted(ranks):
        return Refused(
            Distrust.FORGED_NEIGHBOURS, "roster: devices do not stand as the order has them"
        )
    return None


def _why_not_enough(session: Session, graph: Graph, devices: int, beside: int) -> Refused | None:
    if devices < session.terms.fewest:
        return Refused(
            Distrust.TOO_FEW,
            f"expected at least {session.terms.fewest} devices, found {devices}",
        )
    if beside < graph.threshold:
        return Refused(
            Distrust.TOO_FEW, f"expected at least {graph.threshold} neighbours, found {beside}"
        )
    return None


def _places(text: str, roster: Roster, where: str) -> frozenset[int] | Refused:
    try:
        return from_bits(text, roster.devices, where)
    except ConfigError as error:
        return Refused(Distrust.CONTRADICTION, str(error))


def _opened(key: bytes, box: Box) -> bytes | None:
    """Two shares; None if the box is damaged, was made for another, or holds no shares."""
    try:
        plain = AESGCM(key).decrypt(_NONCE, bytes.fromhex(box.box), None)
    except InvalidTag:
        return None
    halves = (plain[:SHARE_BYTES], plain[SHARE_BYTES:])
    valid = all(int.from_bytes(half, "little") < shamir.PRIME for half in halves)
    return plain if valid else None


def _box_key(session: Session, secret: bytes, sender: str, receiver: str) -> bytes:
    return _derived(secret, session.message("box", sender, receiver))


def _is_key(public: str) -> bool:
    try:
        _exchanged(_ANYBODY, public)
    except ValueError:
        return False
    return True


def _exchanged(private: X25519PrivateKey, peer: str) -> bytes:
    """Raises ValueError for a key of small order: it gives no shared secret."""
    return private.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(peer)))


def _derived(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)


def _written(number: int) -> bytes:
    return number.to_bytes(SHARE_BYTES, "little")
