"""SecAgg+ at the server: who stands where, what goes to whom, and what the masks of a sum are.

    Advertised of all --> arranged -> Circle --> roster of each
    Shares of those left -------------> inbox of each
    masked words of those left: summed elsewhere, as any masked words
    Consent of those left ------------> consents of each         (semi-malicious class)
    Revealed of those left -> mask_sum -> what is taken off the sum of words

Nothing is kept here and nothing waited for: messages are arguments, by place. `why_not_...` says
whether a message may be taken; a device whose message may not has dropped out. What has to come in
before the next step is `lacking`'s to say. Source: Bell et al. 2020, ePrint 2020/704.
"""

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from device_runtime import masking, neighbours, packing, secagg, shamir, signing
from device_runtime.neighbours import Graph, Impossible
from device_runtime.packing import Layout
from device_runtime.secagg import Distrust, Session, Sets
from device_runtime.secagg_wire import (
    Advertised,
    Announced,
    Box,
    Consent,
    Consents,
    Inbox,
    Neighbour,
    NeighbourConsent,
    Revealed,
    Roster,
    Share,
    Shares,
    to_bits,
)


@dataclass(frozen=True)
class Circle:
    """The devices of a round whose keys came in time, in their order."""

    session: Session
    order: str  # 32 random bytes, hexadecimal, drawn when the last keys were in
    keys: tuple[Advertised, ...]  # by place
    graph: Graph

    @functools.cached_property
    def places(self) -> dict[str, int]:
        """The place of each device, by its public key."""
        return {each.public_key: place for place, each in enumerate(self.keys)}

    def around(self, place: int) -> tuple[int, ...]:
        """The neighbours of a place."""
        return neighbours.around(place, len(self.keys), self.graph.degree)


@dataclass(frozen=True)
class Counted:
    """Who has sent shares, and of those whose masked words stand in the sum: places."""

    shared: frozenset[int]
    masked: frozenset[int]

    def sets(self, devices: int) -> Sets:
        """As devices are told of them."""
        return Sets(to_bits(self.shared, devices), to_bits(self.masked, devices))


@dataclass(frozen=True)
class Lost:
    """The sum cannot be opened: shares of these devices' secrets are too few, or wrong; of none:
    too few devices are counted.
    """

    places: tuple[int, ...]
    # who gave a share that fits no other: place of the giver, place whose secret it is of
    wrong: tuple[tuple[int, int], ...] = ()

    @property
    def reason(self) -> str:
        """Why, for the operator."""
        if not self.places:
            return "too few devices are left to hide among"
        wrong = f", and {len(self.wrong)} wrong ones came" if self.wrong else ""
        return f"of {len(self.places)} devices too few shares came to open the sum{wrong}"


@dataclass(frozen=True)
class Opened:
    """What is to be taken off the sum of masked words."""

    mask: NDArray[np.uint64]  # [words]
    wrong: tuple[tuple[int, int], ...]  # as in Lost


def why_not_keys(
    session: Session, public_key: str, keys: Advertised, earlier: Collection[Advertised]
) -> Distrust | None:
    """Of a device's keys, beside those of others that came before."""
    if keys.public_key != public_key:
        return Distrust.BAD_SIGNATURE
    if secagg.is_repeated((keys,)):
        return Distrust.REPLAYED_KEY
    names = {name for each in earlier for name in (each.mask_key, each.box_key)}
    if not names.isdisjoint((keys.mask_key, keys.box_key)):
        return Distrust.REPLAYED_KEY
    return secagg.why_not_keys(session, keys)


def arranged(session: Session, keys: Iterable[Advertised], order: str) -> Circle | Impossible:
    """All whose keys came, in the circle that the order gives; Impossible for too few of them."""
    ranked = tuple(sorted(keys, key=lambda each: secagg.rank(order, each.public_key)))
    if len(ranked) < session.terms.fewest:
        return Impossible.TOO_FEW_DEVICES
    graph = session.graph(len(ranked))
    return graph if isinstance(graph, Impossible) else Circle(session, order, ranked, graph)


def roster(circle: Circle, place: int) -> Roster:
    """What the device at a place is told of its neighbours."""
    beside = tuple(Neighbour(each, circle.keys[each]) for each in circle.around(place))
    return Roster(len(circle.keys), circle.order, place, beside)


def why_not_shares(circle: Circle, place: int, shares: Shares) -> Distrust | None:
    """Of the shares of the device at a place: whether there is a box for each neighbour."""
    places = tuple(box.place for box in shares.boxes)
    return None if places == circle.around(place) else Distrust.FOREIGN_SHARES


def inbox(circle: Circle, place: int, shares: Mapping[int, Shares]) -> Inbox:
    """What the device at a place gets of the shares that came: those of neighbours, for it."""
    boxes = tuple(
        Box(each, box.box)
        for each in circle.around(place)
        if each in shares
        for box in shares[each].boxes
        if box.place == place
    )
    return Inbox(to_bits(shares, len(circle.keys)), boxes)


def announced(circle: Circle, counted: Counted) -> Announced:
    """What each device whose words are counted is told, and no other."""
    return Announced(to_bits(counted.masked, len(circle.keys)))


def why_not_consent(
    circle: Circle, place: int, counted: Counted, consent: Consent
) -> Distrust | None:
    """Of the consent of the device at a place."""
    if place not in counted.masked:
        return Distrust.CONTRADICTION
    told = Roster(len(circle.keys), circle.order, place, ())
    message = circle.session.consent_message(told, counted.sets(len(circle.keys)))
    signature = bytes.fromhex(consent.signature)
    valid = signing.verified(circle.keys[place].public_key, message, signature)
    return None if valid else Distrust.DISAGREEMENT


def consents(circle: Circle, place: int, given: Mapping[int, Consent]) -> Consents:
    """What the device at a place gets of the consents that came: those of its neighbours."""
    return Consents(
        tuple(
            NeighbourConsent(each, given[each].signature)
            for each in circle.around(place)
            if each in given
        )
    )


def why_not_revealed(
    circle: Circle, place: int, counted: Counted, revealed: Revealed
) -> Distrust | None:
    """Of what the device at a place reveals: a share of one secret of each neighbour, or its box
    was spoiled.
    """
    beside = set(circle.around(place)) & counted.shared
    seeds, keys = ([each.place for each in shares] for shares in (revealed.seeds, revealed.keys))
    every = [*seeds, *keys, *revealed.spoiled]
    if place not in counted.masked or sorted(every) != sorted(beside):
        return Distrust.FOREIGN_SHARES
    if not counted.masked.issuperset(seeds) or not counted.masked.isdisjoint(keys):
        return Distrust.CONTRADICTION
    if any(_number(each) >= shamir.PRIME for each in (*revealed.seeds, *revealed.keys)):
        return Distrust.WRONG_SHARE
    return None


def lacking(circle: Circle, counted: Counted, alive: Collection[int]) -> frozenset[int]:
    """Places whose secret the sum needs and too few of these devices can help to open.

    Before words are in, everybody alive may still be counted: `Counted(shared, alive)`.
    """
    alive = frozenset(alive)
    return frozenset(
        place
        for place in counted.masked | set(_dropped(circle, counted))
        if len(alive.intersection(circle.around(place))) < circle.graph.threshold
    )


def can_go_on(circle: Circle, counted: Counted, alive: Collection[int]) -> bool:
    """Whether these devices are enough to open the sum."""
    is_enough = len(counted.masked) >= circle.session.terms.fewest
    return is_enough and not lacking(circle, counted, alive)


def mask_sum(
    circle: Circle,
    counted: Counted,
    commitments: Mapping[int, str],
    revealed: Mapping[int, Revealed],
    by: Layout,
) -> Opened | Lost:
    """The masks of all counted words, added: own streams of the counted, and what they share with
    the neighbours that dropped out. The same for the same messages.

    Commitments are those of the shares, by place; what is revealed has passed `why_not_revealed`.
    """
    if len(counted.masked) < circle.session.terms.fewest:
        return Lost(())
    seeds = _by_owner((place, each.seeds) for place, each in revealed.items())
    keys = _by_owner((place, each.keys) for place, each in revealed.items())
    lost: list[int] = []
    wrong: list[tuple[int, int]] = []
    opened: dict[int, bytes] = {}
    dropped = _dropped(circle, counted)
    for place in sorted(counted.masked | set(dropped)):
        is_counted = place in counted.masked
        shares = (seeds if is_counted else keys).get(place, {})
        secret = _secret(circle, place, shares, commitments[place] if is_counted else None)
        if secret is None:
            lost.append(place)
            continue
        opened[place], liars = secret
        wrong.extend((giver, place) for giver in sorted(liars))
    if lost:
        return Lost(tuple(lost), tuple(wrong))
    added: list[bytes] = []
    taken: list[bytes] = []
    for place in sorted(counted.masked):
        added.append(secagg.own_seed(circle.session, circle.keys[place].public_key, opened[place]))
    for place, beside in dropped.items():
        private = X25519PrivateKey.from_private_bytes(opened[place])
        for each in beside:
            seed = secagg.shared_seed(circle.session, private, circle.keys[each].mask_key)
            (added if each < place else taken).append(seed)
    mask = packing.subtract(masking.mask_sum(added, by), masking.mask_sum(taken, by), by)
    return Opened(mask, tuple(wrong))


def _dropped(circle: Circle, counted: Counted) -> dict[int, list[int]]:
    """Of those whose streams stand in the sum without their words: which neighbours are counted."""
    beside = {
        place: [each for each in circle.around(place) if each in counted.masked]
        for place in sorted(counted.shared - counted.masked)
    }
    return {place: each for place, each in beside.items() if each}


def _by_owner(revealed: Iterable[tuple[int, tuple[Share, ...]]]) -> dict[int, dict[int, int]]:
    """Shares by the place of whose secret they are, then by place of the giver."""
    owners: dict[int, dict[int, int]] = {}
    for giver, shares in sorted(revealed, key=lambda each: each[0]):
        for each in shares:
            owners.setdefault(each.place, {})[giver] = _number(each)
    return owners


def _secret(
    circle: Circle, place: int, shares: Mapping[int, int], commitment: str | None
) -> tuple[bytes, frozenset[int]] | None:
    """The secret of the device at a place and who gave wrong shares of it; None if they are too
    few, or too many are wrong. With a commitment it is its seed, else its mask key.
    """
    threshold = circle.graph.threshold
    if len(shares) < threshold:
        return None
    at = {giver + 1: share for giver, share in shares.items()}
    first = shamir.secret(dict(list(at.items())[:threshold]))
    if (secret := _proven(circle, place, first, commitment)) is not None:
        return secret, frozenset()
    corrected = shamir.corrected(at, threshold)
    if corrected is None:
        return None
    secret = _proven(circle, place, corrected.secret, commitment)
    return None if secret is None else (secret, frozenset(at - 1 for at in corrected.wrong))


def _proven(circle: Circle, place: int, number: int, commitment: str | None) -> bytes | None:
    """A secret as bytes, if it is what its device committed itself to."""
    if number >> (8 * shamir.SECRET_BYTES):
        return None
    secret = number.to_bytes(shamir.SECRET_BYTES, "little")
    own = circle.keys[place]
    if commitment is not None:
        is_it = circle.session.commitment(own.public_key, secret) == commitment
    else:
        is_it = secagg.public_of(X25519PrivateKey.from_private_bytes(secret)) == own.mask_key
    return secret if is_it else None


def _number(share: Share) -> int:
    return int.from_bytes(bytes.fromhex(share.share), "little")
