"""`fedboard device ...`: phones, real or simulated.

Thin commands; nothing heavy is imported before the command that needs it.
"""

import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from device_runtime.errors import RunError
from device_runtime.shown import command, printable
from fedboard import console
from fedboard.options import MOST_DEVICES, MOST_ROUNDS, Data, Insecure, Json, Seed, Trust, emit

app = typer.Typer(no_args_is_help=True, help="Devices: phones with typing logs.")
log_app = typer.Typer(
    no_args_is_help=True, help="The typing log of a device. It takes text in and gives none out."
)
app.add_typer(log_app, name="log")

HomeFolder = Annotated[Path, typer.Argument(metavar="HOME", help="Folder of the device.")]


@app.command("create")
def device_create(
    folder: Annotated[Path, typer.Argument(help="Where the devices' folders go.")],
    bundle: Annotated[Path, typer.Option(help="Bundle they install.")],
    data: Data = "chitchat",
    count: Annotated[
        int,
        typer.Option(
            min=5, max=MOST_DEVICES, help="Devices, each with the typing log of one train user."
        ),
    ] = 24,
    rounds: Annotated[
        int,
        typer.Option(
            min=1, max=MOST_ROUNDS, help="Rounds their simulated conditions are drawn for."
        ),
    ] = 6,
    min_examples: Annotated[
        int, typer.Option(min=1, max=2000, help="Fewest messages of a user.")
    ] = 40,
    seed: Seed = 0,
    trust: Trust = None,
) -> None:
    """Make simulated phones: typing log, key, installed bundle, and a trace of conditions.

    A trace says when each is charging, on WiFi and idle.
    """
    from fedboard import devices
    from fedboard.run import trusted_keys
    from model import corpora

    draw = devices.Draw(count, rounds, min_examples, seed)
    users = corpora.load(data).train
    homes = devices.create_population(folder, bundle, trusted_keys(trust), users, draw)
    console.say(
        f"{len(homes)} devices in {folder}",
        f"next: {command('device', 'run', folder)}/device-* --server URL --rounds {rounds}",
    )


@app.command("enrol")
def device_enrol(
    folder: HomeFolder,
    server: Annotated[str, typer.Option(help="Address of the server it checks in at.")],
    bundle: Annotated[
        Path | None,
        typer.Option(help="Bundle to install: a folder or a zip. Needed for a new device."),
    ] = None,
    conditions: Annotated[
        str,
        typer.Option(help="Where its conditions come from: `linux`, `termux`, or a trace file."),
    ] = "linux",
    stated: Annotated[
        list[str] | None,
        typer.Option(
            help="A condition you vouch for where no sensor tells: charging, unmetered or idle. "
            "May be given again."
        ),
    ] = None,
    key_store: Annotated[
        str,
        typer.Option(
            help="Where the typing log's key lies: `file`, or `system` for the system's keystore."
        ),
    ] = "file",
    population: Annotated[str, typer.Option(help="Whose tasks it works for.")] = "default",
    device_class: Annotated[
        str,
        typer.Option(
            help="A coarse class the operator can name in a task's policy, such as `low`."
        ),
    ] = "",
    code_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the enrolment code, if the server asks for one; or set FEDBOARD_CODE."
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            help="File with what `fedboard device certify` printed of this device's public key: a "
            "helper may count no others."
        ),
    ] = None,
    insecure: Insecure = False,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Make this machine a device, and make its key known to the server.

    It gets a folder, a key and an installed bundle. May be done again.
    """
    from device_runtime.home import DeviceConfig, Home
    from fedboard import devices
    from fedboard.run import trusted_keys

    if bundle is None and not Home.is_there(folder):
        raise RunError(
            folder, "no device there yet, and no bundle to install", "pass --bundle BUNDLE"
        )
    if certificate is not None:
        if not Home.is_there(folder):
            raise RunError(
                folder,
                "no device there yet whose public key could have been certified",
                "enrol it without --certificate, and again once it is certified",
            )
        devices.keep_certificate(folder, certificate)
    settings = None
    if not Home.is_there(folder):
        source = (
            conditions if conditions in ("linux", "termux") else str(Path(conditions).resolve())
        )
        keys = tuple(sorted(trusted_keys(trust)))
        settings = DeviceConfig(
            keys,
            None,
            server,
            source,
            tuple(stated or ()),
            key_store=key_store,
            population=population,
            device_class=device_class,
            insecure=insecure,
        )
    code = devices.code(code_file)
    name = devices.enrol(folder, settings, bundle, server, code, insecure)
    if as_json:
        return emit({"device": name, "home": str(folder), "server": server})
    console.say(
        f"{folder} is enrolled at {server} as {name}",
        f"next: {command('device', 'run', folder)}; {command('device', 'status', folder)}",
    )


@app.command("certify")
def device_certify(
    devices_named: Annotated[
        list[str],
        typer.Argument(
            metavar="DEVICE...",
            help="Folder of a device, or the public key that its `fedboard device status` shows.",
        ),
    ],
    key: Annotated[
        Path,
        typer.Option(help="File with the private key that a helper trusts (`--enrolment-key`)."),
    ],
    as_json: Json = False,
) -> None:
    """Sign that these are devices: a helper with an enrolment key counts no others.

    A folder keeps its certificate, and its server hears of it at the next turn. That of a public
    key is printed: give it to the device with `fedboard device enrol --certificate FILE`.
    """
    from device_runtime import signing
    from fedboard import devices

    certificates = devices.certify(devices_named, key)
    if as_json:
        return emit({"certificates": [asdict(each) for each in certificates]})
    for named, certificate in zip(devices_named, certificates, strict=True):
        if named == certificate.text:
            emit(asdict(certificate))
        else:
            console.say(f"{named} is certified: {signing.name_of(certificate.text)}")


@app.command("install")
def device_install(
    folder: HomeFolder,
    bundle: Annotated[
        Path, typer.Argument(help="Bundle folder or zip, of a maker this device trusts.")
    ],
    as_json: Json = False,
) -> None:
    """Install a newer bundle: verified first, swapped in whole.

    The one before is kept; an older release is refused.
    """
    from device_runtime.home import Home

    manifest = Home.open(folder).install(bundle).manifest
    if as_json:
        return emit(
            {
                "release": manifest.release,
                "network": manifest.network,
                "round": manifest.lineage.round,
            }
        )
    console.say(
        f"{folder} uses release {manifest.release} of network `{manifest.network}`, round "
        f"{manifest.lineage.round}"
    )


@app.command("upgrade")
def device_upgrade(
    folder: HomeFolder,
    server: Annotated[
        str | None,
        typer.Option(help="Address of the server; by default the one it was enrolled at."),
    ] = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Go to the release that is offered to this device now, on any network.

    The daemon does this by itself after a turn, on an unmetered one. Fails with 1 if the device
    stays because a release was refused or could not be fetched.
    """
    from device_runtime import upgrade
    from fedboard import devices

    devices.block_tensorflow()
    if as_json:
        console.quiet()
    followed = devices.upgrade_now(folder, server, insecure)
    if as_json:
        emit(asdict(followed))
    for line in upgrade.sentences(followed):
        console.say(f"{folder}: {line}")
    if followed.upgraded is None:
        console.say(f"{folder}: {devices.why_it_stays(folder)}")
        if followed.refused or followed.left_out:
            raise typer.Exit(1)


@app.command("run")
def device_run(
    homes: Annotated[
        list[Path],
        typer.Argument(
            help="Folder of a device; with --rounds also of several, which take turns in this "
            "process."
        ),
    ],
    server: Annotated[
        str | None,
        typer.Option(help="Address of the server; by default the one it was enrolled at."),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="One turn, if a condition and the retry window allow it.")
    ] = False,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_ROUNDS,
            help="So many rounds, whatever the retry windows: for simulated devices.",
        ),
    ] = None,
    outcomes: Annotated[
        Path | None, typer.Option(help="Append one JSON line per turn (with --rounds).")
    ] = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Check in, fine-tune and upload: until it is ended, once, or for some rounds.

    TensorFlow cannot be imported in this process.
    """
    from fedboard import devices
    from fedboard.run import require_result_file

    devices.block_tensorflow()
    if as_json:
        console.quiet()
    if rounds is not None:
        if outcomes:
            require_result_file(outcomes, "outcomes of devices", devices.are_outcomes)
        with devices.way(homes[0], server, insecure) as send:
            connect = partial(devices.way, homes[0], server, insecure)
            totals = devices.run(homes, send, rounds, outcomes, connect)
        if as_json:
            return emit(totals)
        return console.say(
            f"{totals['counted']} updates counted, {totals['bytes_up']:,} bytes up, peak memory "
            f"{totals['peak_memory_mb']:.0f} MB"
        )
    if len(homes) > 1:
        raise RunError(
            "device run",
            f"expected one device, found {len(homes)}",
            "run each in a process of its own, or pass --rounds",
        )
    if not once:
        return devices.stay(homes[0], server, insecure)
    outcome = devices.once(homes[0], server, insecure)
    if as_json:
        return emit(asdict(outcome))
    console.say(f"{homes[0]}: {devices.sentence(outcome)}")


@app.command("personalise")
def device_personalise(folder: HomeFolder, as_json: Json = False) -> None:
    """Train the user's own weights now, or judge them again, if enough was typed.

    Nothing leaves the device; the daemon does this by itself.
    """
    from device_runtime import personal
    from device_runtime.home import Home
    from fedboard import device_words, devices

    devices.block_tensorflow()
    home = Home.open(folder)
    with home.alone():
        bundle = home.bundle()
        personal.update(home, bundle, time.time(), lambda: True)
    verdict = personal.verdict(home)
    if as_json:
        return emit(None if verdict is None else asdict(verdict))
    outdated = verdict is not None and not personal.is_of(verdict, bundle)
    console.say(device_words.personal_line(verdict, outdated))


@app.command("status")
def device_status(folder: HomeFolder, as_json: Json = False) -> None:
    """How a device stands: bundle, messages, whether it may train now, what it contributed."""
    from device_runtime.home import Home
    from fedboard import device_words

    home = Home.open(folder)
    status = device_words.status(home, 0.0 if home.simulated else time.time())
    if as_json:
        return emit(asdict(status))
    for line in device_words.status_lines(status):
        console.say(line)
    of_spending = device_words.spent_lines(status.spent, status.spent_in_all)
    for sentence in (*device_words.seen_lines(status), *of_spending):
        console.say(sentence.text, style="bold red" if sentence.warns else "")


@app.command("ledger")
def device_ledger(folder: HomeFolder, as_json: Json = False) -> None:
    """What this device contributed: when, to which round, of how many examples and bytes.

    And what did not count, and why; then what your phone has spent of your privacy, task by task.
    """
    from device_runtime import spent
    from device_runtime.home import Home, parts
    from fedboard import device_words

    lines = Home.open(folder).contributions()
    if as_json:
        return emit([asdict(line) for line in lines])
    for line in device_words.ledger_lines(lines):
        console.say(line)
    in_all = spent.total(parts(lines))
    for sentence in device_words.spent_lines(device_words.costs(lines), in_all):
        console.say(sentence.text, style="bold red" if sentence.warns else "")


@log_app.command("add")
def device_log_add(
    folder: HomeFolder,
    text: Annotated[
        str | None,
        typer.Argument(help="One message; without it, each line of standard input is one."),
    ] = None,
    private: Annotated[
        bool,
        typer.Option("--private", help="As a password field or incognito: it is not recorded."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Record what was typed, encrypted.

    Says how many messages were recorded, never what they hold.
    """
    from device_runtime.home import Home

    messages = [text] if text is not None else [line.rstrip("\r\n") for line in sys.stdin]
    now = time.time()
    with Home.open(folder).typing_log() as log:
        log.retain(now)
        recorded = 0 if private else log.append_many([(message, now) for message in messages])
        waiting = log.count()
    if as_json:
        return emit({"recorded": recorded, "messages": waiting})
    console.say(
        f"{recorded} recorded, {len(messages) - recorded} left out; {waiting:,} messages in the log"
    )


@log_app.command("forget")
def device_log_forget(
    folder: HomeFolder,
    words: Annotated[
        str | None,
        typer.Argument(
            help="Every message with these words side by side goes. Without them they are "
            "asked for."
        ),
    ] = None,
    last_hours: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1e6, help="What was typed in the last so many hours goes instead."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove some of what was typed, and what was learned from it on this device.

    Says how many messages went, never what they held.
    """
    from device_runtime.home import Home

    if words is not None and last_hours is not None:
        raise RunError(
            "log forget", "expected words or --last-hours, found both", "leave out one of them"
        )
    home = Home.as_it_is(folder)
    if words is None and last_hours is None:
        # asked for, they stay out of the shell's history
        words = typer.prompt("Words to forget", err=True)
    if not yes:
        which = "with these words" if last_hours is None else f"of the last {last_hours:g} hours"
        typer.confirm(
            f"Remove every message {which} from {printable(str(folder))}?", abort=True, err=True
        )
    removed = (
        home.forget(words or "")
        if last_hours is None
        else home.forget_since(time.time() - last_hours * 3600.0)
    )
    with home.typing_log() as log:
        waiting = log.count()
    if as_json:
        return emit({"removed": removed, "messages": waiting})
    console.say(f"{removed:,} removed; {waiting:,} messages in the log")


@app.command("wipe")
def device_wipe(
    folder: HomeFolder,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    everything: Annotated[
        bool, typer.Option("--everything", help="Remove ledger, key and the device itself too.")
    ] = False,
) -> None:
    """Remove what was typed and all that was learned from it.

    What was already sent cannot be taken back: see `fedboard device ledger`.
    """
    from device_runtime.home import Home

    home = Home.as_it_is(folder)
    if not yes:
        typer.confirm(
            f"Remove {'all of' if everything else 'what was typed on'} {printable(str(folder))}?",
            abort=True,
            err=True,
        )
    home.wipe(everything)
    kept = folder.exists()
    console.say(
        f"{folder}: the device is removed; files that are not its own stay there"
        if everything and kept
        else f"{folder}: removed"
        if everything
        else f"{folder}: what was typed and what was learned from it is gone; the ledger is kept"
    )
