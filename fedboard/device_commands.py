"""`fedboard device ...`: phones, real or simulated. Thin commands; nothing heavy is imported before the command that needs it."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fedboard import console
from fedboard.options import Data, Json, Seed, Trust, emit

app = typer.Typer(no_args_is_help=True, help="Devices: phones with typing logs.")
log_app = typer.Typer(no_args_is_help=True, help="The typing log of a device. It takes text in and gives none out.")
app.add_typer(log_app, name="log")

HomeFolder = Annotated[Path, typer.Argument(metavar="HOME", help="Folder of the device.")]


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


@app.command("status")
def device_status(folder: HomeFolder, as_json: Json = False) -> None:
    """How a device stands: bundle, messages waiting, whether it may train now and why not, what it contributed."""
    from device_runtime.home import Home
    from fedboard import device_words

    home = Home.open(folder)
    found = device_words.status(home, time.time() if home.config.conditions is None else 0.0)
    if as_json:
        return emit(asdict(found))
    for line in device_words.status_lines(found):
        console.say(line)


@app.command("ledger")
def device_ledger(folder: HomeFolder, as_json: Json = False) -> None:
    """What this device contributed: when, to which round, of how many examples, in how many bytes, and what did not count and why."""
    from device_runtime.home import Home
    from fedboard import device_words

    lines = Home.open(folder).contributions()
    if as_json:
        return emit([asdict(line) for line in lines])
    for line in device_words.ledger_lines(lines):
        console.say(line)


@log_app.command("add")
def device_log_add(
    folder: HomeFolder,
    text: Annotated[str | None, typer.Argument(help="One message; without it, each line of standard input is one.")] = None,
    private: Annotated[bool, typer.Option("--private", help="As a password field or incognito: it is not recorded.")] = False,
    as_json: Json = False,
) -> None:
    """Record what was typed, encrypted. Says how many messages were recorded, never what they hold."""
    from device_runtime.home import Home

    messages = [text] if text is not None else [line.rstrip("\r\n") for line in sys.stdin]
    with Home.open(folder).typing_log() as log:
        recorded = 0 if private else log.append_many([(message, time.time()) for message in messages])
        waiting = log.count()
    if as_json:
        return emit({"recorded": recorded, "messages": waiting})
    console.say(f"{recorded} recorded, {len(messages) - recorded} left out; {waiting:,} messages in the log")


@log_app.command("forget")
def device_log_forget(
    folder: HomeFolder,
    words: Annotated[str | None, typer.Argument(help="Every message with these words side by side goes. Without them they are asked for.")] = None,
    last_hours: Annotated[float | None, typer.Option(min=0.0, help="What was typed in the last so many hours goes instead.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove some of what was typed. Says how many messages went, never what they held. What was learned of it goes with `fedboard device wipe`."""
    from device_runtime.errors import RunError
    from device_runtime.home import Home

    if words is not None and last_hours is not None:
        raise RunError("log forget", "expected words or --last-hours, found both", "leave out one of them")
    home = Home.open(folder)
    if words is None and last_hours is None:
        words = typer.prompt("Words to forget", err=True)  # asked for, they stay out of the shell's history
    if not yes:
        which = "with these words" if last_hours is None else f"of the last {last_hours:g} hours"
        typer.confirm(f"Remove every message {which} from {folder}?", abort=True, err=True)
    with home.typing_log() as log:
        removed = log.forget(words or "") if last_hours is None else log.forget_since(time.time() - last_hours * 3600.0)
        waiting = log.count()
    if as_json:
        return emit({"removed": removed, "messages": waiting})
    console.say(f"{removed:,} removed; {waiting:,} messages in the log")


@app.command("wipe")
def device_wipe(
    folder: HomeFolder,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    everything: Annotated[bool, typer.Option("--everything", help="Remove ledger, key and the device itself too.")] = False,
) -> None:
    """Remove what was typed and all that was learned from it. What was already sent cannot be taken back: see `fedboard device ledger`."""
    from device_runtime.home import Home

    home = Home.open(folder)
    if not yes:
        typer.confirm(f"Remove {'all of' if everything else 'what was typed on'} {folder}?", abort=True, err=True)
    home.wipe(everything)
    console.say(f"{folder}: removed" if everything else f"{folder}: what was typed and what was learned from it is gone; the ledger is kept")
