"""Terms: how a task's updates are encoded and added up, and who can see them.

They stand in the task's certificate, signed by the bundle's maker: a device, a server and a helper
hold each other to them, and no server can choose who sees an update.
"""

import functools
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from device_runtime import bounds, config
from device_runtime.bounds import Matches, Within
from device_runtime.encoding import Encoding
from device_runtime.errors import ConfigError
from device_runtime.weights import digest

MOST_DEVICES = 100_000


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
    dimension: Annotated[int, Within(1, 2**31)]  # values of the network
    shapes: Annotated[str, Matches("[0-9a-f]{64}", 64)]  # `weights.shapes_hash`
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

    def __post_init__(self) -> None:
        bounds.check(self, "terms")
        if (self.aggregation is Aggregation.HELPER) != bool(self.helper):
            raise ConfigError(
                "terms.helper",
                f"expected a key for aggregation by a helper and no other, found "
                f"{self.helper[:16] or 'none'!r} for {self.aggregation}",
                "name the helper, or another aggregation",
            )

    @functools.cached_property
    def name(self) -> str:
        """SHA-256: what seals and updates are bound to."""
        return digest(config.to_json(self))

    @functools.cached_property
    def encoding(self) -> Encoding:
        """How a delta becomes codes."""
        return Encoding(self.dimension, self.bits, self.clipping_norm, self.rotation_seed)
