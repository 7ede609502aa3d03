"""`fedboard privacy ...`: what noise spends, and which noise a guarantee needs."""

from typing import Annotated

import typer

from device_runtime.noise import MOST_STEPS, Mechanism, Noise
from fedboard import console
from fedboard.options import Json, emit

app = typer.Typer(
    no_args_is_help=True,
    help="Differential privacy: what noise spends, and which noise a guarantee needs. Runs nothing "
    "and asks no server.",
)

Rounds = Annotated[
    int, typer.Option(min=1, max=MOST_STEPS, help="Sums that are released, one a round.")
]
Delta = Annotated[
    float, typer.Option(min=1e-300, max=0.5, help="At which epsilon is told: far below 1 / people.")
]


@app.command("account")
def privacy_account(
    noise_multiplier: Annotated[
        float,
        typer.Option(
            min=1e-6,
            max=1e6,
            help="Standard deviation of each independent Gaussian / (clip x rounding bound).",
        ),
    ],
    rounds: Rounds,
    min_separation: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST_STEPS,
            help="From one round of a device to its next, as a difference of round numbers: 1 for "
            "neighbours. Gboard's papers count the rounds in between, one less.",
        ),
    ],
    max_participations: Annotated[
        int, typer.Option(min=1, max=MOST_STEPS, help="Rounds that a device is in at most.")
    ],
    mechanism: Annotated[
        Mechanism, typer.Option(help="blt gets the buffers that are best for these numbers.")
    ] = Mechanism.BLT,
    delta: Delta = 1e-10,
    restart: Annotated[
        int,
        typer.Option(
            min=0, max=MOST_STEPS, help="tree: rounds after which it begins anew; 0: never."
        ),
    ] = 0,
    as_json: Json = False,
) -> None:
    """What so many rounds of a noise spend of the privacy of whoever takes part: rho and epsilon.

    A device that is absent adds zeros (zero-out adjacency); how many are in a round is public.
    """
    from fedboard import privacy

    noise = Noise(
        mechanism, noise_multiplier, 0.0, delta, rounds, max_participations, restart=restart
    )
    figures = privacy.figures(noise, min_separation)
    if as_json:
        return emit(privacy.table(figures))
    console.table(
        f"{mechanism}, noise multiplier {noise_multiplier:g}, {rounds:,} rounds, at most "
        f"{max_participations:,} of a device; {privacy.separation_said(min_separation)}",
        ["figure", "value"],
        privacy.rows(figures),
    )
