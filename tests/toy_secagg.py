"""A round of SecAgg+ in one process: all devices and the server, message by message.

Devices are called by their places. Whoever is left out of a step has dropped out there.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from random import Random

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from device_runtime import packing, secagg
from device_runtime.packing import Layout
from device_runtime.secagg import Agreed, Masked, Refused, Session, Sharing
from device_runtime.secagg_wire import Announced, Consent, Consents, Revealed, Share, Shares
from device_runtime.terms import Aggregation, Terms
from server import secagg as server
from server.secagg import Circle, Counted, Lost, Opened

LARGEST = 15  # of a number: codes of 4 bits
MOST = 108
Told = Callable[[int], frozenset[int]]  # place -> whom the server says it counts


def session(fewest: int = 10, semi_malicious: bool = True, drop_out: float = 0.1) -> Session:
    """Round 3 of a task that bears 5 % adversaries."""
    terms = Terms(
        Aggregation.SECAGG,
        bits=4,
        clipping_norm=1.0,
        dimension=4096,
        shapes="e5" * 32,
        rotation_seed=1,
        most=MOST,
        fewest=fewest,
        min_separation=1,
        adversarial=0.05,
        drop_out=drop_out,
        semi_malicious=semi_malicious,
    )
    return Session("5e" * 16, "7a" * 16, 3, terms)


def layout(count: int) -> Layout:
    return packing.layout(count, LARGEST, MOST)


def numbers(place: int, count: int) -> NDArray[np.int64]:
    """What the device at a place wants summed."""
    return np.random.default_rng(place).integers(0, LARGEST + 1, count)


def key(name: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(name.to_bytes(32, "little"))


@dataclass(frozen=True)
class Begun:
    """A round in which all devices have sent keys and shares."""

    circle: Circle
    sharing: Mapping[int, Sharing]
    shares: Mapping[int, Shares]


def begun(devices: int, of: Session, seed: int = 0) -> Begun:
    random = Random(seed).randbytes
    states = [secagg.advertise(of, key(name), random) for name in range(1, devices + 1)]
    circle = server.arranged(of, (keys for _, keys in states), random(32).hex())
    assert isinstance(circle, Circle), circle
    sent = {}
    for state, keys in states:
        place = circle.places[keys.public_key]
        answer = secagg.share(state, server.roster(circle, place), random)
        assert not isinstance(answer, Refused), answer
        assert server.why_not_shares(circle, place, answer[1]) is None
        sent[place] = answer
    return Begun(
        circle,
        {place: state for place, (state, _) in sent.items()},
        {place: shares for place, (_, shares) in sent.items()},
    )


@dataclass(frozen=True)
class Words:
    """What the devices sent in the third step."""

    masked: Mapping[int, Masked]
    words: Mapping[int, NDArray[np.uint64]]

    def of(self, places: Collection[int]) -> "Words":
        """Those of some."""
        return Words(
            {place: self.masked[place] for place in places},
            {place: self.words[place] for place in places},
        )


def words_of(start: Begun, shared: Collection[int], by: Layout, sending: Iterable[int]) -> Words:
    """Whoever of `sending` does not refuse sends its words."""
    shares = {place: start.shares[place] for place in shared}
    answers = {
        place: secagg.mask(
            start.sharing[place],
            server.inbox(start.circle, place, shares),
            numbers(place, by.count),
            by,
        )
        for place in sending
    }
    sent = {place: each for place, each in answers.items() if not isinstance(each, Refused)}
    return Words(
        {place: state for place, (state, _) in sent.items()},
        {place: words for place, (_, words) in sent.items()},
    )


def agreeing(
    circle: Circle, masked: Mapping[int, Masked], told: Told
) -> dict[int, tuple[Agreed, Consent]]:
    """Those of the devices that do not refuse what each is told."""
    answers = {
        place: secagg.agree(state, announced(circle, told(place)))
        for place, state in masked.items()
    }
    return {place: each for place, each in answers.items() if not isinstance(each, Refused)}


def announced(circle: Circle, masked: Collection[int]) -> Announced:
    return server.announced(circle, Counted(frozenset(), frozenset(masked)))


@dataclass(frozen=True)
class Round:
    """A round that an honest server has run to its end."""

    counted: Counted
    words: Mapping[int, NDArray[np.uint64]]
    revealed: Mapping[int, Revealed]
    opened: Opened | Lost
    total: NDArray[np.uint64] | None  # the sum of the counted devices' numbers


def played(
    start: Begun, by: Layout, lost: Mapping[str, Collection[int]], whole: Words | None = None
) -> Round:
    """`lost` says who drops out before they send shares, words, consent or what they reveal.
    `whole` are the words of all of them, where they have been made before.
    """
    circle = start.circle

    def left(before: Iterable[int], step: str) -> frozenset[int]:
        return frozenset(before) - frozenset(lost.get(step, ()))

    shared = left(start.shares, "shares")
    sending = left(shared, "words")
    if whole is not None and shared == frozenset(start.shares):
        sent = whole.of(sending)
    else:
        sent = words_of(start, shared, by, sending)
    counted = Counted(shared, frozenset(sent.words))
    agreed = agreeing(circle, sent.masked, lambda _: counted.masked)
    consents = {place: agreed[place][1] for place in left(agreed, "consent")}
    for place, each in consents.items():
        assert server.why_not_consent(circle, place, counted, each) is None
    answers = {
        place: secagg.reveal(agreed[place][0], server.consents(circle, place, consents))
        for place in left(consents, "reveal")
    }
    revealed = {place: each for place, each in answers.items() if isinstance(each, Revealed)}
    for place, each in revealed.items():
        assert server.why_not_revealed(circle, place, counted, each) is None
    commitments = {place: each.commitment for place, each in start.shares.items()}
    opened = server.mask_sum(circle, counted, commitments, revealed, by)
    if isinstance(opened, Lost):
        return Round(counted, sent.words, revealed, opened, None)
    words = np.zeros(by.words, np.uint64)
    for each in counted.masked:
        words = packing.add(words, sent.words[each], by)
    total = packing.unpack(packing.subtract(words, opened.mask, by), by)
    return Round(counted, sent.words, revealed, opened, total)


@dataclass(frozen=True)
class View:
    """All that a server has, lying or not, with the adversaries that tell it what they know."""

    circle: Circle
    shared: frozenset[int]  # as all devices were told
    words: frozenset[int]  # whose words it has
    revealed: Mapping[int, Revealed]
    adversaries: Mapping[int, Masked]

    def opened(self, kind: str) -> frozenset[int]:
        """Whose seed, or mask key, it can put together."""
        givers: dict[int, set[int]] = {}
        for giver, each in self.revealed.items():
            for share in getattr(each, kind):
                givers.setdefault(share.place, set()).add(giver)
        for giver, state in self.adversaries.items():  # they have both
            for place in state.shares:
                givers.setdefault(place, set()).add(giver)
        return frozenset(self.adversaries) | {
            place for place, each in givers.items() if len(each) >= self.circle.graph.threshold
        }

    @property
    def sums(self) -> list[frozenset[int]]:
        """The smallest sums of honest devices' numbers that it can learn, each by whose they are.

        Every word is numbers + the device's own stream +- the streams it shares. A stream that is
        not known stands in one word, and nothing is learned of that, or in two with opposite signs,
        and only the sum of both is without it. So what is learned is the sum over each group that
        unknown streams hold together, if all else in it is known.
        """
        seeds, keys = self.opened("seeds"), self.opened("keys")
        honest = self.words - set(self.adversaries)
        groups: list[set[int]] = []
        left = set(honest)
        while left:
            group, edge = set(), [left.pop()]
            while edge:
                place = edge.pop()
                group.add(place)
                edge += [
                    each
                    for each in self.circle.around(place)
                    if each in self.shared and not {each, place} & keys and each not in group
                ]
            groups.append(group)
            left -= group
        return [frozenset(group) for group in groups if group <= honest & seeds]


def revealing(
    circle: Circle,
    agreed: Mapping[int, Agreed],
    consents: Mapping[int, Mapping[str, Consent]],
) -> dict[int, Revealed]:
    """What devices reveal to a server that shows each the consents that please it: of each
    neighbour that for the sets which this device was told of. `consents` has them by place and
    by `Sets.name`.
    """
    answers = {}
    for place, state in agreed.items():
        pleasing = {
            each: by_sets[state.sets.name]
            for each, by_sets in consents.items()
            if state.sets.name in by_sets
        }
        answers[place] = secagg.reveal(state, _only_counted(circle, place, state, pleasing))
    return {place: each for place, each in answers.items() if isinstance(each, Revealed)}


def _only_counted(
    circle: Circle, place: int, state: Agreed, consents: Mapping[int, Consent]
) -> Consents:
    masked = secagg.from_bits(state.sets.masked, len(circle.keys), "masked")
    return server.consents(
        circle, place, {each: consent for each, consent in consents.items() if each in masked}
    )


def altered(share: Share) -> Share:
    """The share with one bit turned."""
    first = int(share.share[:2], 16) ^ 1
    return Share(share.place, f"{first:02x}{share.share[2:]}")
