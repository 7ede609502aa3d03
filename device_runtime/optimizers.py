"""The server's optimizers by name: what recipe, simulation and server must agree on.

The recipe names one, TFF's simulation takes its steps, and the server goes on with the result. The
arithmetic is not here. It lies on the ground because `model` and `server` stand side by side and
see nothing else in common; no phone loads it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Optimizer:
    """What is said of an optimizer wherever its name is read.

    `builder` is what makes it in `tff.learning.optimizers`, with those of the numbers `momentum`,
    `beta_2` and `epsilon` that it `takes`; momentum is beta 1 where it takes a beta 2.
    """

    builder: str
    takes: tuple[str, ...] = ()
    momentum: float = 0.0  # where a server's settings name none
    served: bool = True  # whether a server can make its step, or only a simulation

    @property
    def adaptive(self) -> bool:
        """Whether each value moves by its own scale: what a coarse encoding adds is scaled up.

        >>> [name for name, optimizer in OPTIMIZERS.items() if optimizer.adaptive]
        ['fedadam', 'fedyogi', 'fedadagrad']
        """
        return "epsilon" in self.takes


# FedAvg: McMahan et al. 2017, arXiv:1602.05629; FedAvgM: Hsu et al. 2019, arXiv:1909.06335; the
# adaptive ones: Reddi et al. 2020, arXiv:2003.00295; FedProx: Li et al. 2018, arXiv:1812.06127,
# which is FedAvg to the server
OPTIMIZERS = {
    "fedavg": Optimizer("build_sgdm"),
    "fedavgm": Optimizer("build_sgdm", ("momentum",), momentum=0.9),
    "fedadam": Optimizer("build_adam", ("momentum", "beta_2", "epsilon"), momentum=0.9),
    "fedyogi": Optimizer("build_yogi", ("momentum", "beta_2", "epsilon"), momentum=0.9),
    "fedadagrad": Optimizer("build_adagrad", ("epsilon",), served=False),
    "fedprox": Optimizer("build_sgdm", served=False),
}
