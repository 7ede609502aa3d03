"""`fedboard privacy ...`: what noise spends, and which noise a guarantee needs."""

from pathlib import Path
from typing import Annotated

import typer

from device_runtime.noise import MOST_STEPS, Mechanism, Noise
from device_runtime.shown import rounded_up
from fedboard import console
from fedboard.options import MOST_DEVICES, MOST_USERS, Json, emit

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


@app.command("plan")
def privacy_plan(
    population: Annotated[int, typer.Option(min=1, max=MOST_USERS, help="Phones there are.")],
    rounds: Rounds,
    epsilon: Annotated[
        float, typer.Option(min=0.001, max=1000.0, help="The guarantee, at --delta.")
    ],
    delta: Delta = 1e-10,
    size: Annotated[
        str, typer.Option(help="Network: tiny, small or gboard, with 10,000 words.")
    ] = "gboard",
    values: Annotated[
        int | None,
        typer.Option(min=1, max=2**31 - 1, help="Values of another network, in place of --size."),
    ] = None,
    report_goal: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_DEVICES, help="Phones of a round; by default it is chosen."),
    ] = None,
    separation: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_STEPS,
            help="From one round of a phone to its next, as a difference of round numbers; by "
            "default as long as there are phones for.",
        ),
    ] = None,
    eligible: Annotated[
        float,
        typer.Option(
            min=0.000001, max=1.0, help="Share of the phones that can take part in the long run."
        ),
    ] = 0.5,
    rounds_a_day: Annotated[
        int, typer.Option(min=1, max=1440, help="Of which a phone should be in one at most.")
    ] = 24,
    bits: Annotated[
        int | None, typer.Option(min=1, max=16, help="Of a code; by default they are chosen.")
    ] = None,
    compression: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help="Values of an update / values that travel; by default chosen."
        ),
    ] = None,
    mechanism: Annotated[
        Mechanism | None, typer.Option(help="By default the one that needs the least noise.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="SVG file to draw epsilon against noise in, for several report goals."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Which noise, report goal, separation, bits and compression give a guarantee, what accuracy to
    expect, and what would help most.
    """
    from device_runtime import durable
    from fedboard import privacy_curve, privacy_plan, privacy_plot
    from fedboard.readable import size as bytes_said
    from fedboard.run import require_result_file, require_svg, writable

    if plot:  # before the work
        require_svg(plot)
        require_result_file(plot, "plot of a plan", privacy_plot.is_plot)
    question = privacy_plan.Question(
        population,
        rounds,
        epsilon,
        delta,
        privacy_plan.values_of(size) if values is None else values,
        eligible,
        rounds_a_day,
        report_goal,
        separation,
        bits,
        compression,
        mechanism,
    )
    plan = privacy_plan.choose(question)
    expected = privacy_curve.expected(privacy_curve.measured(), plan.noise_on_mean)
    if plot:
        with writable(plot) as path:
            durable.share(path, privacy_plot.svg(question, plan).encode())
    if as_json:
        return emit(privacy_plan.table(question, plan, expected.top1))
    console.say(
        f"epsilon {rounded_up(plan.epsilon)} at delta {delta:g} (rho {plan.rho:.4g}) for each of "
        f"{population:,} phones, after {rounds:,} rounds"
    )
    console.table(
        "chosen",
        ["setting", "value"],
        [
            ["mechanism", str(plan.noise.mechanism)],
            ["noise multiplier", f"{plan.noise.multiplier:g}"],
            ["report goal", f"{plan.report_goal:,}"],
            [
                "separation: difference of round numbers (rounds in between)",
                f"{plan.separation:,} ({plan.separation - 1:,})",
            ],
            ["rounds of one phone, at most", f"{plan.noise.participations:,}"],
            ["bits of a code", str(plan.bits)],
            ["compression", str(plan.compression)],
            ["upload of a phone and round", bytes_said(plan.upload_bytes)],
            ["the same / a masked upload without noise", f"{plan.upload_ratio:.2f}"],
            ["noise on the mean: one independent Gaussian, clips", f"{plan.gaussian_on_mean:.3g}"],
            ["noise on the mean: the widest round, clips", f"{plan.noise_on_mean:.3g}"],
            ["noise in the mean of all rounds, clips", f"{plan.noise_over_rounds:.3g}"],
        ],
    )
    console.say(privacy_plan.advice(question, plan), f"accuracy: {expected.said}")
    console.table(
        "what would help, for the same guarantee",
        ["change", "noise x", "on the mean", "phones", "upload"],
        [
            [
                each.what,
                f"{each.ratio:.2f}",
                f"{each.plan.noise_on_mean:.3g}",
                f"{each.population:,}",
                bytes_said(each.plan.upload_bytes),
            ]
            for each in privacy_plan.changes(question, plan)
        ],
    )
    console.table(
        "other mechanisms",
        ["mechanism", "noise in the mean of all rounds, clips"],
        [[name, f"{noise:.3g}"] for name, noise in privacy_plan.mechanisms(question, plan).items()],
    )
    console.say("It rests on:", *(f"- {each}" for each in privacy_plan.assumptions(question, plan)))
    console.heading("settings of the task")
    console.say(*privacy_plan.settings(plan))
    console.say(f"and of its bundle: --bits {plan.bits}")
