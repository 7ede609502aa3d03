"""`fedboard fleet ...`: many simulated devices and the real server on a virtual clock.

Thin commands over `fedboard.fleet_run`.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from device_runtime.errors import ConfigError
from device_runtime.shown import command
from fedboard import console, population_commands
from fedboard.options import Json, Trust, emit

if TYPE_CHECKING:  # the command line starts without it
    from fedboard.fleet_run import Show
    from fleet.settings import FleetSettings

app = typer.Typer(
    no_args_is_help=True,
    help="Fleets: thousands of simulated devices and the real server, on virtual time.",
)
app.add_typer(population_commands.app, name="population")

HOUR_S = 3600.0
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a fleet.")]
Engine = Annotated[
    str | None,
    typer.Option(
        help="Who computes what devices train: `here`, `pool` (processes of this machine) or `ray`."
        " The bytes are the same."
    ),
]
Address = Annotated[
    str | None, typer.Option(help="Address of a Ray cluster; by default one on this machine.")
]
Processes = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Processes of a pool; by default one a core.")
]


@app.command("simulate")
def simulate(
    out: Annotated[Path, typer.Option(help="Folder of the run, such as runs/fleet.")] = Path(
        "runs/fleet"
    ),
    preset: Annotated[
        str | None,
        typer.Option(help="tiny (under a minute), gboard-small, gboard-1m or flaky."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file such as a run's fleet.toml; other options go over it."),
    ] = None,
    days: Annotated[float | None, typer.Option(min=0.001, max=3660.0, help="Virtual days.")] = None,
    devices: Annotated[int | None, typer.Option(min=1, max=100_000_000, help="Devices.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**62, help="Repeats the run.")] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Signed bundle, folder or zip, that all devices have: their training is real, by "
            "its plan, on what the train users of a corpus type."
        ),
    ] = None,
    trust: Trust = None,
    data: Annotated[
        str | None, typer.Option(help="The corpus, with --bundle; by default `chitchat`.")
    ] = None,
    engine: Engine = None,
    address: Address = None,
    processes: Processes = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in the folder, where it was saved last."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write over an earlier fleet in the folder.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Let a fleet live its days in a folder: the real server, and devices that take the turn that
    phones take. Ctrl-C and kills lose nothing.
    """
    from fedboard import fleet_run

    computing = _computing(engine, address, processes, of_file=resume)
    if as_json:
        console.quiet()
    if resume:
        others = (preset, config, days, devices, seed, bundle, trust, data)
        if overwrite or any(each is not None for each in others):
            raise ConfigError(
                "--resume",
                "expected no other settings: the run has its own",
                "leave them out, or begin anew in another folder",
            )
        with _shown(_days_of(out), out) as show:
            told = fleet_run.go_on(out, show, computing)
    else:
        if bundle is None and (trust or data is not None):
            raise ConfigError(
                "fleet simulate",
                f"expected --bundle with {'--trust' if trust else '--data'}: a stand-in needs none",
                "name the bundle whose training is real, or leave it out",
            )
        settings = _settings(preset, config, days, devices, seed)
        if bundle is not None:
            settings = _trained(settings, bundle, trust, data)
        settings = computing(settings)
        with _shown(settings.days, out) as show:
            told = fleet_run.begin_new(out, settings, show, overwrite)
    page = _report(out)
    if as_json:
        return emit(asdict(told))
    from fedboard import fleet_show

    console.say(*fleet_show.heading(told))
    console.say(f"-> {out}" if page is None else f"-> {page}")


@app.command("show")
def show(
    run: RunFolder,
    round: Annotated[
        int | None, typer.Option(min=1, max=2**31 - 1, help="Each device of this round.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What became of a fleet: its work, its rounds, who never took part; or of one round, turn by
    turn.
    """
    from fedboard import fleet_run, fleet_show

    told, tables, devices = fleet_run.shown(run, round)
    tables_shown = (
        fleet_show.fleet(tables)
        if devices is None or round is None
        else fleet_show.round_of(tables, devices, round)
    )
    if as_json:
        return emit({**asdict(told), "tables": tables, "turns": devices})
    console.say(*fleet_show.heading(told))
    for each in tables_shown:
        console.table(each.title, each.columns, each.rows)


@app.command("replay")
def replay(
    run: RunFolder,
    engine: Engine = None,
    address: Address = None,
    processes: Processes = None,
    as_json: Json = False,
) -> None:
    """Live a fleet again from its settings, elsewhere, and say whether every round and every turn
    is the same, to the byte: only then the exit code is 0.
    """
    from fedboard import fleet_run

    if as_json:
        console.quiet()
    with _shown(_days_of(run), None) as show:
        replayed = fleet_run.replay(run, show, _computing(engine, address, processes, of_file=True))
    if as_json:
        emit({**asdict(replayed), "identical": replayed.is_identical})
    elif replayed.is_identical:
        console.say(f"identical: {replayed.rounds:,} rounds and {replayed.turns:,} turns")
    else:
        console.say(*replayed.differ)
    for line in replayed.versions:
        console.note(f"run by another version: {line}")
    if not replayed.is_identical:
        raise typer.Exit(1)


def _settings(
    preset: str | None,
    config: Path | None,
    days: float | None,
    devices: int | None,
    seed: int | None,
) -> "FleetSettings":
    from device_runtime.config import from_toml
    from fleet import runs
    from fleet.settings import FleetSettings

    if (preset is None) == (config is None):
        raise ConfigError(
            "fleet simulate",
            "expected --preset or --config, one of the two",
            "name a preset, such as tiny",
        )
    settings = runs.preset(preset) if config is None else from_toml(FleetSettings, config)
    if devices is not None:
        settings = replace(settings, population=replace(settings.population, devices=devices))
    if days is not None:
        settings = replace(settings, days=days)
    return settings if seed is None else replace(settings, seed=seed)


def _trained(
    settings: "FleetSettings", bundle: Path, trust: list[Path] | None, data: str | None
) -> "FleetSettings":
    """Settings by which devices train for real, by the plan of their bundle."""
    from fedboard.run import REFERENCE, trusted_keys

    is_ours = bundle.resolve() == REFERENCE
    keys = trusted_keys(trust or ([REFERENCE.with_suffix(".pub")] if is_ours else None))
    corpus = settings.training.corpus if data is None else data
    training = replace(
        settings.training,
        bundle=str(bundle.resolve()),
        trusted=tuple(sorted(keys)),
        corpus=corpus,
    )
    return replace(settings, training=training, task=replace(settings.task, plan=None))


def _computing(
    engine: str | None, address: str | None, processes: int | None, of_file: bool
) -> "Callable[[FleetSettings], FleetSettings]":
    """Settings with another engine; `of_file`: those of a run, which may be somebody else's."""
    from fleet.settings import Computing

    if engine is not None and engine not in tuple(Computing):
        raise ConfigError(
            "--engine",
            f"expected one of {', '.join(Computing)}, found {engine[:40]!r}",
            "correct it",
        )

    def changed(settings: "FleetSettings") -> "FleetSettings":
        training = settings.training
        if of_file and engine is None and training.computing is Computing.RAY:
            # whoever computes may answer with anything: a file does not choose them
            console.say("computed on this machine; --engine ray --address names a cluster")
            training = replace(training, computing=Computing.POOL, address="")
        if engine is not None:
            training = replace(training, computing=Computing(engine))
        if address is not None:
            training = replace(training, address=address)
        if processes is not None:
            training = replace(training, processes=processes)
        return replace(settings, training=training)

    return changed


def _report(out: Path) -> Path | None:
    """The page of a fleet, where what draws it is installed."""
    from fedboard import fleet_run
    from fleet.runs import Run

    try:
        return fleet_run.report(Run(out))
    except ModuleNotFoundError as error:
        console.note(f"no report: {error.name} is not installed; install fedboard[report]")
        return None


def _days_of(run: Path) -> float:
    from fleet import runs

    runs.require(run)
    return runs.Run(run).settings.days


@contextlib.contextmanager
def _shown(days: float, out: Path | None) -> "Iterator[Show]":
    """How far a fleet is, as it goes; after Ctrl-C how it is gone on with."""
    from fedboard.fleet_run import Stopped

    hours = max(1, round(24 * days))
    try:
        with console.progress("virtual hours", hours) as advance:
            yield lambda at: advance(min(hours, int(at.seconds / HOUR_S)), str(at))
            advance(hours)
    except Stopped:
        if out is not None:
            again = command("fleet", "simulate", "--out", out, "--resume")
            console.note(f"all is saved; go on with: {again}")
        raise
