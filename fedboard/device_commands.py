"""`fedboard device ...`: phones, real or simulated. Thin commands; nothing heavy is imported before the command that needs it."""

from pathlib import Path
from typing import Annotated

import typer

from fedboard import console
from fedboard.options import Data, Json, Seed, Trust, emit

app = typer.Typer(no_args_is_help=True, help="Devices: phones with typing logs.")


@app.command("create")
def device_create(
    folder: Annotated[Path, typer.Argument(help="Where the devices' folders go.")],
    bundle: Annotated[Path, typer.Option(help="Bundle they install.")],
    data: Data = "chitchat",
    count: Annotated[int, typer.Option(help="Devices, each with the typing log of one train user.")] = 24,
    rounds: Annotated[int, typer.Option(help="Rounds their simulated conditions are drawn for.")] = 6,
    min_examples: Annotated[int, typer.Option(help="Fewest messages of a user.")] = 40,
    seed: Seed = 0,
    trust: Trust = None,
) -> None:
    """Make simulated phones: typing log, key, installed bundle, and a trace of when each is charging, on WiFi and idle."""
    from fedboard import devices
    from fedboard.run import trusted_keys
    from model import corpus

    made = devices.create_population(folder, bundle, trusted_keys(trust), corpus.load(data).train, count, rounds, min_examples, seed)
    console.say(f"{len(made)} devices in {folder}\nnext: fedboard device run {folder}/device-* --server URL --rounds {rounds}")


@app.command("run")
def device_run(
    homes: Annotated[list[Path], typer.Argument(help="Folders of devices; they take turns in this process.")],
    server: Annotated[str, typer.Option(help="Address of the server, such as http://127.0.0.1:8000.")],
    rounds: Annotated[int, typer.Option(help="Rounds to take part in.")] = 1,
    outcomes: Annotated[Path | None, typer.Option(help="Append one JSON line per turn.")] = None,
    as_json: Json = False,
) -> None:
    """Let devices check in, fine-tune and upload. TensorFlow cannot be imported in this process."""
    from fedboard import devices

    devices.block_tensorflow()
    if as_json:
        console.quiet()
    totals = devices.run(homes, server, rounds, outcomes)
    if as_json:
        return emit(totals)
    console.say(f"{totals['counted']} updates counted, {totals['bytes_up']:,} bytes up, peak memory {totals['peak_memory_mb']:.0f} MB")
