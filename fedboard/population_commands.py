"""`fedboard fleet population ...`: the people and phones of a fleet, made, looked at and recorded.

Thin commands over `fedboard.people`.
"""

from pathlib import Path
from typing import Annotated

import typer

from fedboard import console
from fedboard.options import Json, Seed, emit

app = typer.Typer(
    no_args_is_help=True,
    help="The people and phones of a fleet: who they are, and when they are ready.",
)

Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Write over what is there, if it is of the same kind.")
]
MOST_DEVICES = 100_000_000


@app.command("make")
def population_make(
    out: Annotated[Path, typer.Argument(help="Folder to keep it in.")],
    devices: Annotated[int, typer.Option(min=1, max=MOST_DEVICES, help="Devices.")] = 1000,
    where: Annotated[
        str, typer.Option(help="Where its people live: `us`, or `world` for all time zones.")
    ] = "us",
    users: Annotated[
        int,
        typer.Option(
            min=1, max=10**9, help="Users of the corpus who type on them, some on several."
        ),
    ] = 1,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make a population: classes of phones, bandwidths, time zones, languages.

    A larger one of the same seed begins with the smaller one.
    """
    from device_runtime import folder
    from device_runtime.config import from_table
    from fleet import population

    folder.require_free(out, population.FOLDER, replace=overwrite)  # before the work
    told = {"devices": devices, "where": where}
    settings = from_table(population.PopulationSettings, told, "population")
    people = population.make(settings, users, seed)
    with folder.replaced(out, population.FOLDER) as path:
        population.save(people, path)
    digest = population.digest(people)
    if as_json:
        return emit({"folder": str(out), "devices": len(people), "digest": digest})
    console.say(f"{len(people):,} devices -> {out}", f"digest {digest}")


@app.command("show")
def population_show(
    source: Annotated[
        Path, typer.Argument(help="Folder of a population, or of an imported recording.")
    ],
    day: Annotated[
        int,
        typer.Option(
            min=0, max=3660, help="Day of a population that is looked at; day 0 is a Monday."
        ),
    ] = 1,
    turn_s: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=86_400.0,
            help="Seconds of a turn, for how many would drop out; by default what 32 batches take "
            "each device of a population, and a minute for a recording.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="SVG file to draw in who is ready by the hour, and who would drop out."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Who the devices are, how many charge, are on WiFi and idle by the hour, how many would not
    end a turn.
    """
    from device_runtime import durable
    from fedboard import people
    from fedboard.run import require_result_file, require_svg, writable

    if plot:  # before the work
        require_svg(plot)
        require_result_file(plot, "plot of a population", people.is_plot)
    shown = people.look(source, day, turn_s)
    if plot:
        with writable(plot) as path:
            durable.share(path, people.svg(shown).encode())
    if as_json:
        return emit(shown.to_json())
    for table in (*shown.tables, shown.by_hour()):
        console.table(*table)
    console.say(shown.sentence())
    if plot:
        console.say(f"plot: {plot}")


@app.command("import")
def population_import(
    source: Annotated[
        Path,
        typer.Argument(
            help="Recording of phones: a JSON file in FLASH's form, or a folder of .tsv files with "
            "lines of time<TAB>state."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to keep it in.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Read recorded phones for a fleet to replay, and say what their lines are.

    A fleet replays them with `lives = "traces"` and `traces = "OUT"` in `[population]` of its
    settings, again and again with `repeat = true`.
    """
    from device_runtime import folder
    from fedboard import people
    from fleet import traces

    folder.require_free(out, traces.FOLDER, replace=overwrite)  # before the work
    recording = traces.read(source)
    with folder.replaced(out, traces.FOLDER) as path:
        traces.save(recording, path)
    if as_json:
        return emit({"folder": str(out), **people.of_recording(recording).about})
    console.table(*people.quality_of(recording))
    console.say(f"{len(recording):,} devices -> {out}")
