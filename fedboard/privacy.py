"""Privacy in figures: a task's noise and how its devices take part -> what that spends."""

import math
from dataclasses import asdict, dataclass

from device_runtime import accountant, strategy
from device_runtime.accountant import Participation
from device_runtime.noise import Noise


@dataclass(frozen=True)
class Figures:
    """What so many rounds of a noise spend, and how wide it is."""

    mechanism: str
    noise_multiplier: float
    rounds: int
    min_separation: int  # as a difference of numbers of rounds
    rounds_between: int  # the same as those count it that count the rounds in between
    max_participations: int
    participations: int  # of them, as many as that separation lets a device have
    delta: float
    restart: int
    decays: tuple[float, ...]
    scales: tuple[float, ...]
    sensitivity: float
    rho: float
    epsilon: float  # of the whole as one Gaussian mechanism, exactly; infinite beyond a million
    epsilon_rdp: float  # the same by the conversion of Renyi differential privacy
    rho_by_separation: float  # where the most participations are left out of account
    row_norm: float  # stddev of the widest round's noise / of one independent Gaussian
    prefix_rmse: float  # of the noise in the sum of all rounds so far, in the same unit


def figures(noise: Noise, separation: int) -> Figures:
    """All figures of a task whose devices keep that separation. A BLT whose buffers are not named
    gets the best.
    """
    if not noise.decays:
        noise = strategy.optimised(noise, separation)
    whole = (noise.rounds,)
    sensitivity = strategy.sensitivity(noise, whole, separation, noise.participations)
    spent = accountant.account(noise, Participation(whole, separation, noise.participations))
    alone = accountant.account(noise, Participation(whole, separation, noise.rounds))
    return Figures(
        str(noise.mechanism),
        noise.multiplier,
        noise.rounds,
        separation,
        separation - 1,
        noise.participations,
        min(noise.participations, math.ceil(noise.rounds / separation)),
        noise.delta,
        noise.restart,
        noise.decays,
        noise.scales,
        sensitivity,
        spent.rho,
        spent.epsilon,
        accountant.epsilon_rdp(spent.rho, noise.delta),
        alone.rho,
        strategy.row_norm(noise),
        strategy.prefix_rmse(noise, noise.rounds),
    )


def rows(of: Figures) -> list[list[str]]:
    """The figures for a person, with what each of them is."""
    shown = [
        ["rho, zero-concentrated differential privacy", f"{of.rho:.4g}"],
        [f"epsilon at delta {of.delta:g}, exact", f"{of.epsilon:.2f}"],
        ["the same by the conversion of Renyi differential privacy", f"{of.epsilon_rdp:.2f}"],
        ["rho where the most participations are not counted", f"{of.rho_by_separation:.4g}"],
        ["sensitivity, in clips", f"{of.sensitivity:.4g}"],
        ["participations that the separation has room for", f"{of.participations:,}"],
        ["widest noise of a round / an independent Gaussian", f"{of.row_norm:.4g}"],
        ["noise in the sum of all rounds so far, RMSE", f"{of.prefix_rmse:.4g}"],
        ["sensitivity x RMSE: the noise that is needed", f"{of.sensitivity * of.prefix_rmse:.4g}"],
    ]
    if of.decays:
        buffers = [f"{d:.4f} ({s:.4f})" for d, s in zip(of.decays, of.scales, strict=True)]
        shown.append(["decays (scales) of the buffers", ", ".join(buffers)])
    return shown


def table(of: Figures) -> dict[str, object]:
    """The figures for a program: a number that JSON has no word for is null."""
    values = asdict(of)
    return {name: None if value == math.inf else value for name, value in values.items()}


def separation_said(separation: int) -> str:
    """A separation by both conventions.

    >>> separation_said(314)
    'min separation 314 as a difference of round numbers, 313 as rounds in between'
    """
    return (
        f"min separation {separation:,} as a difference of round numbers, {separation - 1:,} as "
        "rounds in between"
    )
