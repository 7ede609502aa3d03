"""What a private sum costs device, server and helper: SecAgg+ beside leader and helper.

    python -m benchmarks.secagg [--devices 100 1000] [--values 1425408] [--core 0]

Of each round the server and five devices run in full, with real messages. The other devices send
real keys, shares, consents and shares again, and masked words of a few numbers: what is added for
them is scaled. A tenth vanishes before it sends its words. CPU seconds are of one thread; bytes are
those of the messages' bodies. `counted` is what the same work should take: how often the protocol
uses each primitive times what one use of it takes here, and bytes as if no message were text.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from device_runtime import config, masking, neighbours, packing, secagg, shamir, signing
from device_runtime.masking import Bound
from device_runtime.neighbours import Graph
from device_runtime.packing import Layout
from device_runtime.secagg import Refused, Session
from device_runtime.secagg_wire import BOX_BYTES, SHARE_BYTES
from device_runtime.terms import Aggregation, Terms
from device_runtime.update import HEADER_BYTES
from server import secagg as server
from server.secagg import Circle, Counted, Opened

GBOARD = 1_425_408  # values of an update of the size `gboard`, padded
LARGEST = 15  # codes of 4 bits
FULL = 5  # devices that mask a whole update
FEW = 12  # numbers of the others
LOST = 0.1  # of the devices


@dataclass
class Costs:
    """Of one round: seconds of CPU and bytes."""

    device_s: float = 0.0  # one device
    server_s: float = 0.0
    helper_s: float = 0.0
    up: float = 0.0  # one device
    down: float = 0.0  # one device, beside the checkpoint
    messages: int = 0  # that a device sends after its training
    steps: dict[str, float] = field(default_factory=dict)  # seconds of a device, by what it does


@dataclass(frozen=True)
class Round:
    """What is measured."""

    session: Session
    devices: int
    by: Layout
    random: Callable[[int], bytes]

    @property
    def lost(self) -> int:
        """Devices that vanish before they send their words."""
        return int(LOST * self.devices)

    @property
    def counted(self) -> int:
        """Devices whose words are summed."""
        return self.devices - self.lost


def of(devices: int, values: int, seed: int = 0) -> Round:
    """A round of so many devices that each send so many values."""
    most = {100: 108, 1000: 1092}.get(devices, devices)
    terms = Terms(
        Aggregation.SECAGG,
        bits=4,
        clipping_norm=1.0,
        dimension=values,
        shapes="e5" * 32,
        rotation_seed=1,
        most=most,
        fewest=max(1, devices // 2),
        min_separation=1,
    )
    session = Session("5e" * 16, "7a" * 16, 1, terms)
    return Round(session, devices, packing.layout(values, LARGEST, most), Random(seed).randbytes)


@contextmanager
def spent(into: dict[str, float], name: str) -> Iterator[None]:
    """Add the CPU seconds of what runs inside."""
    began = time.process_time()
    yield
    into[name] = into.get(name, 0.0) + time.process_time() - began


def size(message: Any) -> int:
    """Bytes of a message as it travels."""
    return len(config.to_json(message))


def accepted(answer: Any) -> Any:
    """What a device sends. Raises RuntimeError if it refuses."""
    if isinstance(answer, Refused):
        raise RuntimeError(f"a device refuses: {answer.detail}")
    return answer


def secagg_costs(round: Round) -> tuple[Costs, Graph]:
    """A round of SecAgg+."""
    session, random = round.session, round.random
    device: dict[str, float] = {}  # of the FULL
    there: dict[str, float] = {}  # at the server
    ignored: dict[str, float] = {}
    up = down = 0

    begun = []
    for number in range(round.devices):
        key = Ed25519PrivateKey.from_private_bytes(random(32))
        with spent(device if number < FULL else ignored, "keys"):
            begun.append(secagg.advertise(session, key, random))
    full_keys = {keys.public_key for _, keys in begun[:FULL]}
    for _, keys in begun:
        with spent(there, "keys"):
            assert server.why_not_keys(session, keys.public_key, keys, ()) is None
    with spent(there, "circle"):
        circle = server.arranged(session, (keys for _, keys in begun), random(32).hex())
    assert isinstance(circle, Circle), circle
    full = [place for place, keys in enumerate(circle.keys) if keys.public_key in full_keys]
    states = {circle.places[keys.public_key]: state for state, keys in begun}
    up += sum(size(circle.keys[place]) for place in full)

    sharing, shares = {}, {}
    for place, state in states.items():
        with spent(there, "rosters"):
            roster = server.roster(circle, place)
        with spent(device if place in full else ignored, "shares"):
            sharing[place], shares[place] = accepted(secagg.share(state, roster, random))
        with spent(there, "shares"):
            assert server.why_not_shares(circle, place, shares[place]) is None
        if place in full:
            up, down = up + size(shares[place]), down + size(roster)

    others = [place for place in range(round.devices) if place not in full]
    gone = frozenset(Random(1).sample(others, round.lost))
    everybody = frozenset(range(round.devices))
    counted = Counted(everybody, everybody - gone)
    few = packing.layout(FEW, LARGEST, session.terms.most)
    numbers = np.random.default_rng(0).integers(0, LARGEST + 1, round.by.count)
    total, masked = np.zeros(round.by.words, np.uint64), {}
    for place in sorted(counted.masked):
        with spent(there, "inboxes"):
            inbox = server.inbox(circle, place, shares)
        by = round.by if place in full else few
        with spent(device if place in full else ignored, "words"):
            masked[place], words = accepted(
                secagg.mask(sharing[place], inbox, numbers[: by.count], by)
            )
            body = packing.to_bytes(words, by)
        if place in full:
            with spent(there, "words of five"):
                total = packing.add(total, packing.from_bytes(body, by), by)
            up, down = up + HEADER_BYTES + len(body), down + size(inbox)

    agreed, consents = {}, {}
    announced = server.announced(circle, counted)
    for place, state in masked.items():
        with spent(device if place in full else ignored, "consent"):
            agreed[place], consents[place] = accepted(secagg.agree(state, announced))
        with spent(there, "consent"):
            assert server.why_not_consent(circle, place, counted, consents[place]) is None
        if place in full:
            up, down = up + size(consents[place]), down + size(announced)
    revealed = {}
    for place, state in agreed.items():
        with spent(there, "consents"):
            told = server.consents(circle, place, consents)
        with spent(device if place in full else ignored, "revealed"):
            revealed[place] = accepted(secagg.reveal(state, told))
        with spent(there, "revealed"):
            assert server.why_not_revealed(circle, place, counted, revealed[place]) is None
        if place in full:
            up, down = up + size(revealed[place]), down + size(told)
    with spent(there, "masks"):
        commitments = {place: each.commitment for place, each in shares.items()}
        opened = server.mask_sum(circle, counted, commitments, revealed, round.by)
        assert isinstance(opened, Opened), opened
    with spent(there, "opened"):
        packing.unpack(packing.subtract(total, opened.mask, round.by), round.by)
    there["words"] = there.pop("words of five") * round.counted / FULL
    costs = Costs(
        device_s=sum(device.values()) / FULL,
        server_s=sum(there.values()),
        up=up / FULL,
        down=down / FULL,
        messages=5,
        steps={name: seconds / FULL for name, seconds in device.items()},
    )
    return costs, circle.graph


def helper_costs(round: Round) -> Costs:
    """The same with a helper: a device sends one message, and what it does after that is nobody's
    concern, so that nobody is lost.
    """
    random, by = round.random, round.by
    device: dict[str, float] = {}
    leader: dict[str, float] = {}
    helper: dict[str, float] = {}
    private = X25519PrivateKey.from_private_bytes(random(32))
    seal_key = secagg.public_of(private)
    numbers = np.random.default_rng(0).integers(0, LARGEST + 1, by.count)
    total, seeds = np.zeros(by.words, np.uint64), []
    for number in range(round.devices):
        key = Ed25519PrivateKey.from_private_bytes(random(32))
        name = signing.public_hex(key)
        about = Bound("5e" * 16, "7a" * 16, 1, round.session.terms.name, name, seal_key)
        seed = random(masking.SEED_BYTES)
        with spent(device if number < FULL else {}, "update"):
            if number < FULL:
                body = packing.to_bytes(masking.masked(numbers, seed, by), by)
            seal = masking.seal(seed, about, random)
            signature = key.sign(about.signed(seal))
        with spent(leader, "signatures"):
            assert signing.verified(name, about.signed(seal), signature)
        if number < FULL:
            with spent(leader, "words of five"):
                total = packing.add(total, packing.from_bytes(body, by), by)
        with spent(helper, "seals"):
            assert signing.verified(name, about.signed(seal), signature)
            opened = masking.open_seal(seal, about, private)
            assert opened == seed
            seeds.append(opened)
    with spent(helper, "masks"):
        mask = masking.mask_sum(seeds, by)
    with spent(leader, "opened"):
        packing.unpack(packing.subtract(total, mask, by), by)
    leader["words"] = leader.pop("words of five") * round.devices / FULL
    return Costs(
        device_s=device["update"] / FULL,
        server_s=sum(leader.values()),
        helper_s=sum(helper.values()),
        up=HEADER_BYTES + masking.SEAL_BYTES + 64 + by.bytes,
        down=400,  # the key of the round that the helper signed, in the assignment
        messages=1,
    )


@dataclass(frozen=True)
class Units:
    """Seconds that one use of each primitive takes."""

    exchange: float
    sign: float
    verify: float
    box: float  # AES-GCM of two shares, with the key that it takes
    stream: float  # made and added
    read: float  # words out of bytes
    add: float
    pack: float
    unpack: float
    multiply: float  # in the field of shares


def units(by: Layout) -> Units:
    """Each primitive, used alone."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    private = X25519PrivateKey.from_private_bytes(bytes(32))
    public = X25519PrivateKey.from_private_bytes(b"1" * 32).public_key()
    name, signature = signing.public_hex(key), key.sign(b"")
    words, numbers = np.zeros(by.words, np.uint64), np.zeros(by.count, np.uint8)
    values = tuple(range(2**255, 2**255 + 1000))
    return Units(
        exchange=each(200, lambda: private.exchange(public)),
        sign=each(200, lambda: key.sign(b"")),
        verify=each(200, lambda: signing.verified(name, b"", signature)),
        box=each(200, lambda: AESGCM(bytes(32)).encrypt(bytes(12), bytes(66), None)),
        stream=each(5, lambda: masking.mask_sum([bytes(32)] * 8, by)) / 8,
        read=each(20, lambda: packing.from_bytes(bytes(by.bytes), by)),
        add=each(20, lambda: packing.add(words, words, by)),
        pack=each(5, lambda: packing.to_bytes(packing.pack(numbers, by), by)),
        unpack=each(5, lambda: packing.unpack(words, by)),
        multiply=each(5, lambda: shamir.share(1, values, 7)) / len(values),
    )


def eight_bits(values: int) -> int:
    """Bytes of an upload of 8 bits a value with a scale a block, as before updates added up."""
    return 60 + values + 8 * (values // 4096)


def each(times: int, work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times


def counted_secagg(round: Round, graph: Graph, unit: Units) -> Costs:
    """What the protocol's own counts give: of a device 4 k exchanges (keys tried, boxes, streams),
    2 k signatures looked at, 2 k boxes, k + 1 streams and two secrets shared; of the server a
    signature of keys and one of consent of each device, a secret put together for each, the streams
    of the counted and k of each that was lost.
    """
    k, t, n = graph.degree, graph.threshold, round.devices
    stays, gone = round.counted, round.lost
    sharing = 2 * k * (t - 1) * unit.multiply
    streams = stays + gone * k * (1 - LOST)
    places = -(-n // 8)
    return Costs(
        device_s=2 * unit.exchange
        + 2 * unit.sign
        + k * (2 * unit.verify + 4 * unit.exchange + 2 * unit.box)
        + sharing
        + (k + 1) * unit.stream
        + unit.pack,
        server_s=n * (unit.verify + 2 * unit.exchange)
        + stays * (unit.verify + unit.read + unit.add)
        + n * t * t * 2 * unit.multiply
        + streams * unit.stream
        + gone * k * (1 - LOST) * unit.exchange
        + unit.unpack,
        up=160 + 32 + k * BOX_BYTES + HEADER_BYTES + round.by.bytes + 64 + k * SHARE_BYTES,
        down=40 + k * (4 + 160) + places + k * BOX_BYTES + places + k * (4 + 64),
        messages=5,
    )


def counted_helper(round: Round, unit: Units) -> Costs:
    """One stream, one exchange and one signature of each device, and the same to open it."""
    n = round.devices
    return Costs(
        device_s=2 * unit.exchange + unit.box + unit.sign + unit.stream + unit.pack,
        server_s=n * (unit.verify + unit.read + unit.add) + unit.unpack,
        helper_s=n * (unit.verify + unit.exchange + unit.box + unit.stream),
        up=HEADER_BYTES + masking.SEAL_BYTES + 64 + round.by.bytes,
        down=200,
        messages=1,
    )


def rows(devices: int, values: int) -> list[str]:
    """The lines of the table for so many devices."""
    round = of(devices, values)
    measured, graph = secagg_costs(round)
    with_helper = helper_costs(replace(round, random=Random(2).randbytes))
    unit = units(round.by)
    theory, helper_theory = counted_secagg(round, graph, unit), counted_helper(round, unit)
    columns = (measured, theory, with_helper, helper_theory)

    def line(name: str, value: Callable[[Costs], str]) -> str:
        return f"| {devices:,} | {name} | " + " | ".join(map(value, columns)) + " |"

    steps = ", ".join(f"{name} {1000 * each:.1f}" for name, each in measured.steps.items())
    return [
        line("messages of a device", lambda each: str(each.messages)),
        line("a device sends, bytes", lambda each: f"{each.up:,.0f}"),
        line("of an upload of 8 bits", lambda each: f"{each.up / eight_bits(values):.3f}"),
        line("a device hears, bytes", lambda each: f"{each.down:,.0f}"),
        line("CPU of a device, ms", lambda each: f"{1000 * each.device_s:,.1f}"),
        line("CPU of the server, s", lambda each: f"{each.server_s:,.2f}"),
        line("CPU of the helper, s", lambda each: f"{each.helper_s:,.2f}" if each.helper_s else ""),
        f"{neighbours.described(graph)}; ms of a device: {steps}",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print what the head of this file says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--values", type=int, default=GBOARD, help="of an update, padded")
    parser.add_argument("--core", type=int, help="the only one to use")
    asked = parser.parse_args(arguments)
    if asked.core is not None:
        os.sched_setaffinity(0, {asked.core})
    table = [rows(devices, asked.values) for devices in asked.devices]
    print("| devices | | SecAgg+ | counted | leader and helper | counted |")
    print("|---|---|---|---|---|---|")
    for lines in table:
        print("\n".join(lines[:-1]))
    for lines in table:
        print(lines[-1])


if __name__ == "__main__":
    main()
