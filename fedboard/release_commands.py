"""`fedboard release ...`: how what was learned reaches the devices, and how it is taken back.

A release is published to a share of them, promoted to more, or withdrawn. Thin commands over
`fedboard.publishing`.
"""

import contextlib
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from device_runtime.shown import command
from fedboard import console
from fedboard.options import Insecure, Json, Trust, emit
from fedboard.task_commands import Folder, Server, TokenFile

if TYPE_CHECKING:  # the command line starts without it
    from server.contract import ReleaseReport

app = typer.Typer(
    no_args_is_help=True,
    help="Releases: make a bundle of what a task learned, publish it to a share of the devices, "
    "promote it, withdraw it.",
)

Number = Annotated[
    int, typer.Argument(min=1, max=2**31 - 1, help="Number of the release, as in its bundle.")
]
Key = Annotated[
    Path | None,
    typer.Option(
        help="Private key that signed the bundle; by default runs/keys/signing.key. It stays here."
    ),
]
Share = Annotated[str, typer.Option(help="Share of the devices in per cent, such as 5%.")]
Population = Annotated[str, typer.Option(help="Devices it is for.")]


@app.command("make")
def release_make(
    task: Annotated[str, typer.Option(help="Training task whose checkpoint is released.")],
    out: Annotated[Path, typer.Option(help="Bundle folder to write.")],
    round: Annotated[
        int | None,
        typer.Option(
            min=1, max=2**31 - 1, help="Round that made the checkpoint; by default the newest."
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Bundle whose graphs are patched; by default the release now served. The first "
            "time, the one the task was started with."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Corpus to measure on, or `none`: then on text that the network says itself. By "
            "default `chitchat` where it is installed. TFF's corpora load TensorFlow."
        ),
    ] = None,
    release: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2**31 - 1,
            help="Its number; by default one above every release before it.",
        ),
    ] = None,
    even_if_worse: Annotated[
        str,
        typer.Option(
            help="Why it is made even if it does worse than the release served: goes into its card."
        ),
    ] = "",
    require_audit: Annotated[
        Path | None,
        typer.Option(
            help="audit.json of `fedboard audit`: nothing is written unless it let this very "
            "checkpoint pass. Its SHA-256 goes into the lineage."
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="Private key to sign with; by default runs/keys/signing.key."),
    ] = None,
    trust: Trust = None,
    dir: Folder = None,
    server: Server = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Make a signed bundle of a task's newest checkpoint, without TensorFlow, if it is no worse
    than the release served. Publishes nothing.
    """
    from fedboard.operator import connect
    from fedboard.release import Asked, make

    asked = Asked(task, round, bundle, trust, data, key, release, even_if_worse, require_audit)
    with connect(dir, server, token_file, insecure) as operator:
        new = make(operator, out, asked)
    manifest = new.manifest
    if as_json:
        return emit(
            {
                **asdict(manifest),
                "out": str(out),
                "notes": list(new.notes),
                "step_ms": new.measured.gate.step_ms,
                "seconds": new.seconds,
            }
        )
    from conversion.card import figure
    from server.contract import POPULATION

    console.table(
        "measured before signing",
        ["figure", "value"],
        [[name, figure(value)] for name, value in sorted(manifest.gate.items())],
    )
    console.table(
        "seconds", ["step", "s"], [[name, f"{value:.3f}"] for name, value in new.seconds.items()]
    )
    console.say(*new.notes)
    line = manifest.lineage
    whose = () if new.population == POPULATION else ("--population", new.population)
    console.say(
        f"release {manifest.release} of task {line.task}, round {line.round} -> {out}; offer it: "
        f"{command('release', 'publish', out, '--share', '5%', *whose)}"
    )


@app.command("publish")
def release_publish(
    bundle: Annotated[Path, typer.Argument(help="Bundle to offer: a folder, or a zip of it.")],
    share: Share,
    population: Population = "default",
    key: Key = None,
    dir: Folder = None,
    server: Server = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Offer a signed bundle to a share of the devices; each decides for itself whether it is in.

    The same again goes on where it was cut off.
    """
    from device_runtime.bundle import MANIFEST
    from fedboard import publishing
    from fedboard.operator import connect

    part, private = publishing.share_of(share), publishing.maker_key(key)
    opened = publishing.open_own(bundle, private)
    with contextlib.ExitStack() as stack:
        operator = stack.enter_context(connect(dir, server, token_file, insecure))
        advance = None
        if not as_json:
            files = len({*opened.content, MANIFEST})
            advance = stack.enter_context(console.progress("files", files))
        report = publishing.publish(operator, opened, private, part, population, advance)
    _say(report, as_json)


@app.command("promote")
def release_promote(
    number: Number,
    share: Share,
    population: Population = "default",
    key: Key = None,
    dir: Folder = None,
    server: Server = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Offer a release to a larger share of the devices: who was in stays in."""
    from fedboard import publishing
    from fedboard.operator import connect

    part, private = publishing.share_of(share), publishing.maker_key(key)
    with connect(dir, server, token_file, insecure) as operator:
        release = publishing.pick(operator.releases(), number, population)
        report = publishing.promote(operator, release, private, part)
    _say(report, as_json)


@app.command("withdraw")
def release_withdraw(
    number: Number,
    population: Population = "default",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    key: Key = None,
    dir: Folder = None,
    server: Server = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Let every device that runs a release go to the best other one: the only way down, and it
    lasts.
    """
    from fedboard import publishing
    from fedboard.operator import connect

    private = publishing.maker_key(key)
    with connect(dir, server, token_file, insecure) as operator:
        releases = operator.releases()
        release = publishing.pick(releases, number, population)
        follows = publishing.after(releases, release)
        if not yes:
            typer.confirm(
                f"Withdraw release {number} of population {population} for good? ({follows})",
                abort=True,
                err=True,
            )
        report = publishing.withdraw(operator, release, private)
    _say(report, as_json)
    if not as_json:
        console.say(follows)


@app.command("list")
def release_list(
    population: Annotated[str | None, typer.Option(help="Of these devices only.")] = None,
    dir: Folder = None,
    server: Server = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Every release with its share, its state, its bytes and where its model comes from."""
    from fedboard.operator import connect
    from fedboard.publishing import percent
    from fedboard.readable import size

    with connect(dir, server, token_file, insecure) as operator:
        releases = [each for each in operator.releases() if population in (None, each.population)]
    if as_json:
        return emit([asdict(each) for each in releases])
    if not releases:
        where = "" if population is None else f" to population {population}"
        return console.say(f"nothing has been published{where}; see `fedboard release publish`")
    rows = [
        [
            f"{each.population} {each.release}",
            percent(each.share),
            each.state,
            f"{datetime.fromtimestamp(each.published_at, UTC):%Y-%m-%d}",
            size(each.bytes),
            f"{each.task or each.corpus} {each.round}",
            "-" if each.top1 is None else f"{100 * each.top1:.1f} ({each.devices:,})",
        ]
        for each in releases
    ]
    console.table(
        "releases (days in UTC; from: task or corpus, and round)",
        ["release", "share", "state", "published", "bundle", "from", "top-1"],
        rows,
    )
    for each in releases:
        for line in _details(each):
            console.say(f"{each.population} {each.release}: {line}")


def _details(release: "ReleaseReport") -> list[str]:
    """What does not fit a table."""
    lines = []
    if release.how:
        lines.append(release.how)
    if release.new_vocabulary:
        lines.append("a new vocabulary: it travels as a whole bundle, and tasks of the old one end")
    if release.differences:
        sizes = (f"{each.bytes:,} bytes from {each.release}" for each in release.differences)
        lines.append(f"differences: {', '.join(sizes)}")
    return lines


def _say(release: "ReleaseReport", as_json: bool) -> None:
    if as_json:
        return emit(asdict(release))
    from fedboard.publishing import percent
    from fedboard.readable import size

    console.say(
        f"release {release.release} of population {release.population}: {release.state}, "
        f"{percent(release.share)} of the devices, {size(release.bytes)}"
    )
    for line in _details(release):
        console.say(line)
