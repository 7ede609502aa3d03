"""`fedboard log ...`: is a server's log what it was, and does it hold together?

Anybody may ask: no token is needed. Thin commands over `fedboard.log_check`.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from device_runtime.errors import RunError
from fedboard import console
from fedboard.options import Insecure, Json, emit

if TYPE_CHECKING:  # the command line starts without it
    from device_runtime.log_wire import KeptHead
    from fedboard.log_check import Fetched

app = typer.Typer(
    no_args_is_help=True,
    help="The log of a server, which it cannot take back: policies, rounds, what they spent, "
    "releases.",
)

Source = Annotated[
    str,
    typer.Argument(
        help="Address of a server, folder of one that runs on this machine, or a file that "
        "`--save` has written."
    ),
]


@app.command("verify")
def log_verify(
    source: Source,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="File with the head that was verified last: the log must go on from it. Written "
            "anew once it does, and made the first time.",
        ),
    ] = None,
    helper_key: Annotated[
        str | None,
        typer.Option(
            "--helper-key",
            help="Public key of the helper that must have signed, as its owner tells it; by "
            "default one that the policies name.",
        ),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="File to keep the whole log in, as it was found.")
    ] = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Fetch a log and look whether it contradicts itself, its helper, or what was seen before."""
    from device_runtime import config, durable
    from fedboard import log_check

    before = None if from_ is None else _kept(from_)
    fetched = _fetched(source, insecure)
    if save is not None:
        log_check.save(save, fetched)
    checked = log_check.check(fetched, before, helper_key or "")
    if from_ is not None and not checked.contradictions and checked.head is not None:
        durable.write(from_, config.to_json(checked.head))
    if as_json:
        told = asdict(checked)
        del told["head"]
        emit(told)
    else:
        _say(checked)
    if checked.contradictions:
        raise typer.Exit(1)


@app.command("show")
def log_show(
    source: Source,
    most: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Newest entries that are shown.")
    ] = 50,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Show the newest entries of a log, without looking whether it holds together."""
    import json

    from device_runtime import log_wire
    from fedboard import log_check

    fetched = _fetched(source, insecure)
    first = max(0, len(fetched.entries) - most)
    shown = fetched.entries[first:]
    if as_json:
        emit({"first": first, "entries": [json.loads(each) for each in shown]})
        return
    if not shown:
        console.say("nothing has been entered: no task is certified, and no release published")
    for number, text in enumerate(shown, first):
        console.say(f"{number:>6}  {log_check.described(log_wire.read(text))}")


def _fetched(source: str, insecure: bool) -> "Fetched":
    from device_runtime.transport import http
    from fedboard import log_check
    from server.contract import ADDRESS

    path, address = Path(source), source
    if "://" not in source:
        if path.is_file():
            return log_check.load(path)
        try:
            address = (path / ADDRESS).read_text().strip()
        except OSError:
            raise RunError(
                source,
                "expected an address, the folder of a server that runs, or a log that was kept",
                "give one of them",
            ) from None
    with http(address, insecure) as send:
        return log_check.fetch(send)


def _kept(path: Path) -> "KeptHead | None":
    from device_runtime import config
    from device_runtime.errors import ConfigError
    from device_runtime.log_wire import KeptHead

    if not path.exists():
        return None
    try:
        kept = config.from_json(KeptHead, path.read_bytes(), path.name)
        _ = kept.says
    except (OSError, ConfigError) as error:
        raise RunError(
            path, f"is no head that was kept ({error})", "give another, or remove it to begin anew"
        ) from None
    return kept


def _some(count: int, what: str) -> str:
    return f"{count:,} {what}" + "s" * (count != 1)


def _say(checked) -> None:
    for each in checked.contradictions:
        console.say(each, style="red")
    if not checked.log:
        if not checked.contradictions:
            console.say("nothing has been entered: no task is certified, and no release published")
        return
    console.say(
        f"log {checked.log[:8]}: {checked.size:,} entries, root {checked.root[:16]}, signed by "
        f"{checked.key}",
        f"{checked.policies:,} {'policy' if checked.policies == 1 else 'policies'}, "
        f"{_some(checked.rounds, 'checkpoint')}, {_some(checked.releases, 'release')}",
    )
    for task_id, rho in sorted(checked.rho.items()):
        if rho:
            console.say(f"task {task_id[:8]} has spent rho {rho:.6g}")
    if checked.helper:
        console.say(
            f"helper {checked.helper} has signed the first {checked.countersigned:,}: it signs no "
            "other log of this server"
        )
    else:
        console.say(
            "no helper has signed it: that others are shown another log is not excluded; compare "
            "heads with them"
        )
    if not checked.contradictions:
        console.say("nothing in it contradicts anything")
