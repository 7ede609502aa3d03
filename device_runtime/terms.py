"""Terms: how a task's updates are encoded and added up, and who can see them.

They stand in the task's certificate, signed by the bundle's maker: a device, a server and a helper
hold each other to them, and no server can choose who sees an update.
"""

import functools
import hashlib
import math
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Annotated, Any

from device_runtime import bounds, config, neighbours, packing, strategy
from device_runtime.bounds import Matches, Within
from device_runtime.encoding import COMPRESSIONS, Encoding
from device_runtime.errors import ConfigError
from device_runtime.neighbours import Impossible, Losses
from device_runtime.noise import Mechanism, Noise
from device_runtime.packing import Layout
from device_runtime.table import LARGEST, Table
from device_runtime.weights import digest

MOST_DEVICES = 100_000
LEAST_COUNT = 100  # devices of a sum, among which one hides well
# standard deviations of noise that a sum of updates has room for to either side. One value in 500
# million goes beyond and wraps around: that is done to what carries noise already, so it spends
# nothing, but it is off by twice the room and is not taken back by the noise of later rounds. With
# less room such values would add up to more than what correlated noise leaves
ROOM = 6.0
# the same of a sum of marks: one that wraps around would be a word that many have typed
TABLE_ROOM = 7.5


class Aggregation(StrEnum):
    """How updates become a sum, and so who can see a single one."""

    PLAIN = "plain"  # the server sees each
    HELPER = "helper"  # masked; a helper takes the masks off a sum: the two together see each
    SECAGG = "secagg"  # masked; the devices themselves take the masks off a sum


@dataclass(frozen=True)
class Terms:
    """Public numbers of a task. Raises ConfigError for a value out of its bounds."""

    aggregation: Aggregation
    bits: Annotated[int, Within(1, 16)]  # of a code
    clipping_norm: Annotated[float, Within(1e-9, 1e12)]
    dimension: Annotated[int, Within(1, 2**31)]  # values of the network, or entries of the table
    # `weights.shapes_hash` of the network, or SHA-256 of what the table's entries stand for
    shapes: Annotated[str, Matches("[0-9a-f]{64}", 64)]
    rotation_seed: Annotated[int, Within(0, 2**53 - 1)]
    most: Annotated[
        int, Within(1, MOST_DEVICES)
    ]  # reports of one sum: what its codes have room for
    fewest: Annotated[int, Within(1, MOST_DEVICES)]  # a sum of fewer is never opened
    min_separation: Annotated[int, Within(0, 2**31)]  # rounds between two reports of a device
    # rounds a report may be behind; masked reports weigh the same however late they are
    max_staleness: Annotated[int, Within(0, 2**31)] = 0
    # public key of the helper, hexadecimal; empty where there is none
    helper: Annotated[str, Matches("[0-9a-f]{64}|", 64)] = ""
    is_beside: bool = False  # whoever runs the server runs the helper too
    # of SecAgg+: shares of the devices that may be the server's, and that may vanish, and whether
    # the server may lie to devices about each other
    adversarial: Annotated[float, Within(0.0, 1.0)] = 0.05
    drop_out: Annotated[float, Within(0.0, 1.0)] = 0.1
    semi_malicious: bool = True
    # added to each sum of updates; None: nothing is
    noise: Noise | None = None
    # values of a delta / values of what travels: `encoding.Encoding.compression`
    compression: Annotated[int, Within(1, 64)] = 1
    # rounds that share one basis of what travels, and whose noise is correlated; 0: all do
    turn: Annotated[int, Within(0, 2**31)] = 0
    # of a task that counts: what is added up in the place of updates; None: updates are
    table: Table | None = None

    def __post_init__(self) -> None:
        bounds.check(self, "terms")
        self._require_table()
        if (self.aggregation is Aggregation.HELPER) != bool(self.helper):
            raise ConfigError(
                "terms.helper",
                f"expected a key for aggregation by a helper and no other, found "
                f"{self.helper[:16] or 'none'!r} for {self.aggregation}",
                "name the helper, or another aggregation",
            )
        if self.compression not in COMPRESSIONS:
            raise ConfigError(
                "terms.compression",
                f"expected a power of two up to {COMPRESSIONS[-1]}, found {self.compression}",
                "choose one, so that of each rotated block a whole part travels",
            )
        if self.turn and self.max_staleness:
            raise ConfigError(
                "terms.turn",
                f"expected 0 where reports may be {self.max_staleness} rounds late, found "
                f"{self.turn}: reports of two bases do not add up",
                "remove it, or have a task whose rounds are synchronous",
            )

    @functools.cached_property
    def name(self) -> str:
        """SHA-256: what seals and updates are bound to. Terms of a version that knew no noise keep
        theirs.
        """
        return digest(config.to_json(self.told))

    @property
    def told(self) -> dict[str, Any]:
        """All of it by name, but for what a version did not know that made the same terms."""
        table = {each.name: getattr(self, each.name) for each in fields(self)}
        if self.noise is None and self.compression == 1:
            del table["noise"], table["compression"]
        if not self.turn:
            del table["turn"]
        if self.table is None:
            del table["table"]
        return table

    @property
    def losses(self) -> Losses:
        """What a round of SecAgg+ has to bear."""
        return Losses(self.adversarial, self.drop_out, self.semi_malicious)

    @functools.cached_property
    def encoding(self) -> Encoding:
        """How a delta becomes codes; of a task that turns, all but the rotation: `encoding_at`."""
        of = self.dimension, self.bits, self.clipping_norm, self.rotation_seed
        return Encoding(*of, self.compression)

    def encoding_at(self, round: int) -> Encoding:
        """How a delta becomes codes in a round."""
        if not self.turn:
            return self.encoding
        return replace(self.encoding, seed=turned(self.rotation_seed, self.basis(round)))

    def basis(self, round: int) -> int:
        """The number of a round's basis; with another one the noise begins anew."""
        return round // self.turn if self.turn else 0

    @property
    def values(self) -> int:
        """Whole numbers of a report: the codes of an update, or the entries of a table."""
        return self.encoding.values if self.table is None else self.dimension

    @property
    def largest(self) -> int:
        """The largest of them."""
        return self.encoding.largest if self.table is None else LARGEST

    @property
    def deviation(self) -> float:
        """Standard deviation of one independent Gaussian of the noise, in codes, or in counts."""
        by = self.encoding
        if self.noise is None:
            return 0.0
        if self.table is not None:
            return self.noise.multiplier * self.table.norm
        return self.noise.multiplier * by.bound * by.clipping_norm / by.step

    @property
    def noise_norm(self) -> float:
        """L2 norm that the widest noise of a sum has on average."""
        if self.noise is None:
            return 0.0
        by, widest = self.encoding, strategy.row_norm(strategy.within(self.noise, self.turn))
        return widest * self.deviation * by.step * math.sqrt(by.values)

    @functools.cached_property
    def room(self) -> int:
        """Codes of noise, to either side, that a masked sum of updates has room for; what goes
        beyond wraps around. Noise that the server adds needs none.
        """
        if self.noise is None or self.aggregation is not Aggregation.HELPER:
            return 0
        widest = self.deviation * strategy.row_norm(strategy.within(self.noise, self.turn))
        return math.ceil((ROOM if self.table is None else TABLE_ROOM) * widest)

    @property
    def layout(self) -> Layout:
        """How the codes of an update lie in masked words."""
        return packing.layout(self.values, self.largest, self.most, self.room)

    def _require_table(self) -> None:
        """Raises ConfigError for the terms of a table that are none."""
        if self.table is None:
            return
        expected: dict[str, object] = {
            "bits": LARGEST.bit_length(),
            "clipping_norm": self.table.norm,
            "shapes": self.table.entries,
            "compression": 1,
            "turn": 0,
        }
        if self.noise is not None:  # nobody is in two of its sums
            expected |= {"noise.mechanism": Mechanism.GAUSSIAN, "noise.participations": 1}
        for name, wanted in expected.items():
            actual: object = self
            for part in name.split("."):
                actual = getattr(actual, part)
            if actual != wanted:
                raise ConfigError(
                    f"terms.{name}",
                    f"expected {str(wanted)[:16]} of a table, found {str(actual)[:16]}",
                    "make the task with `fedboard task count-words`",
                )


def turned(seed: int, basis: int) -> int:
    """Seed of the rotation of one basis of a task: 53 bits, any JSON reader keeps them."""
    named = f"fedboard-basis-v1 {seed} {basis}".encode()
    return int.from_bytes(hashlib.sha256(named).digest()[:8]) >> 11


def who_sees(terms: Terms) -> str:
    """Who can see the update of one device, in a sentence for people.

    >>> who_sees(Terms(Aggregation.PLAIN, 8, 1.0, 50, "0" * 64, 1, 2, 1, 1))
    'the server sees the update of every device'
    """
    if terms.aggregation is Aggregation.PLAIN:
        return "the server sees the update of every device"
    if terms.aggregation is Aggregation.SECAGG:
        lies = "even if it lies to them" if terms.semi_malicious else "and it does not lie to them"
        graph = neighbours.find(terms.most, terms.losses)
        return (
            "nobody sees the update of one device, as long as no more than "
            f"{100 * terms.adversarial:g} % of the devices are the server's own, {lies}; "
            + (graph.value if isinstance(graph, Impossible) else neighbours.described(graph))
        )
    if terms.is_beside:
        return (
            f"whoever runs the server also runs its helper ({terms.helper[:16]}) and so can see "
            "the update of every device"
        )
    return (
        f"the server and the helper {terms.helper[:16]} can see the update of a device together, "
        "neither of them alone"
    )


def why_exposed(terms: Terms) -> str:
    """What of the terms should worry the owner of a device, in a sentence: to be shown in red.
    Empty if nothing.

    >>> why_exposed(Terms(Aggregation.SECAGG, 4, 1.0, 50, "0" * 64, 1, 20, 12, 1))
    'a sum is opened of only 12 devices: expected at least 100'
    """
    if terms.aggregation is Aggregation.PLAIN:
        return "updates are not hidden: the server can read in each what was typed"
    few = ""
    if terms.fewest < LEAST_COUNT:
        few = f"a sum is opened of only {terms.fewest} devices: expected at least {LEAST_COUNT}"
    if terms.is_beside:
        return "; ".join(filter(None, ("server and helper are in one hand", few)))
    return few
