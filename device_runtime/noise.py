"""Noise: what is added to a sum of updates before anybody sees it, and the budget that bounds it.

    clip x rounding bound x multiplier = stddev of each independent Gaussian, on every value
                                |
              strategy.py: how a round's noise is made of them; accountant.py: what that spends

A device counts 1; one that is absent adds an update of zeros (zero-out adjacency), and how many
devices are in a sum is public. Part of a task's terms: a device, a server and a helper hold each
other to it.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from device_runtime import bounds
from device_runtime.bounds import Each, Within
from device_runtime.errors import ConfigError

MOST_STEPS = 100_000  # sums that one task releases
MOST_BUFFERS = 8  # of a BLT


class Mechanism(StrEnum):
    """How the noise of one round belongs to that of the others."""

    GAUSSIAN = "gaussian"  # it does not: Mironov 2017 and Bun and Steinke 2016
    TREE = "tree"  # DP-FTRL: Kairouz et al. 2021, arXiv:2103.00039, with Honaker's estimate
    BLT = "blt"  # buffered linear Toeplitz: McMahan et al. 2024, arXiv:2408.08868


@dataclass(frozen=True)
class Noise:
    """The public numbers of a task's noise. Raises ConfigError for a value out of its bounds."""

    mechanism: Mechanism
    # stddev of each independent Gaussian / (clipping norm x rounding bound)
    multiplier: Annotated[float, Within(0.0, 1e6)]
    epsilon: Annotated[float, Within(0.0, 1e6)]  # the budget at `delta`, of its whole life
    delta: Annotated[float, Within(1e-300, 0.5)]
    rounds: Annotated[int, Within(1, MOST_STEPS)]  # sums that are released at most
    # sums that one device is in at most
    participations: Annotated[int, Within(1, MOST_STEPS)]
    # of a tree: sums after which it begins anew; 0: never
    restart: Annotated[int, Within(0, MOST_STEPS)] = 0
    # of a BLT, the largest decay first: its matrix has 1 on the diagonal, then below it
    # sum(scale * decay ** (t - 1)); where a task's settings name none they are chosen with the task
    decays: Annotated[tuple[float, ...], Each(Within(0.0, 1.0), MOST_BUFFERS)] = ()
    scales: Annotated[tuple[float, ...], Each(Within(0.0, 1.0), MOST_BUFFERS)] = ()

    def __post_init__(self) -> None:
        bounds.check(self, "noise")
        is_blt = self.mechanism is Mechanism.BLT
        if len(self.decays) != len(self.scales) or (self.decays and not is_blt):
            raise ConfigError(
                "noise.decays",
                f"expected a decay and a scale for each buffer of a BLT and no other, found "
                f"{len(self.decays)} and {len(self.scales)} for {self.mechanism}",
                "let `fedboard privacy plan` choose them",
            )
        if self.restart and self.mechanism is not Mechanism.TREE:
            raise ConfigError(
                "noise.restart",
                f"expected 0 for {self.mechanism}, found {self.restart}",
                "remove it: a tree alone begins anew",
            )
        if sum(self.scales) > 1:
            raise ConfigError(
                "noise.scales",
                f"expected at most 1 together, as the account is of a matrix whose columns fall, "
                f"found {sum(self.scales):g}",
                "let `fedboard privacy plan` choose them",
            )
