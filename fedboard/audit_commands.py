"""`fedboard audit` and `fedboard data plant`: how much a network tells of what single users typed.

Thin commands; nothing heavy is imported before the command that needs it.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from device_runtime.shown import command
from fedboard import console
from fedboard.options import Data, Json, Seed, Trust, emit

MOST_TIMES = 10_000
SECRETS = "secrets.json"


def plant(
    data: Data,
    out: Annotated[Path, typer.Option(help="Corpus directory to write.")],
    secrets: Annotated[
        Path, typer.Option(help="File to write the secrets to, for `fedboard audit`.")
    ] = Path(SECRETS),
    users: Annotated[
        str, typer.Option(help="Users who type a secret, with commas between: some for each.")
    ] = "1,3,10",
    times: Annotated[
        int, typer.Option(min=1, max=MOST_TIMES, help="That each of its users types a secret.")
    ] = 20,
    each: Annotated[
        int, typer.Option(min=1, max=1000, help="Secrets of every length and number of users.")
    ] = 2,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write a corpus with secrets in it, of 1 to 4 words, that a few of its users typed.

    Train on it, then ask `fedboard audit` how much of them the network tells.
    """
    from conversion.audit import Planted
    from device_runtime.errors import ConfigError
    from fedboard import planting
    from fedboard.run import require_result_file
    from model import corpora

    def is_ours(path: Path) -> bool:
        try:
            planting.read(path)
        except ConfigError:
            return False
        return True

    try:
        numbers = tuple(int(number) for number in users.split(","))
    except ValueError:
        raise ConfigError(
            "--users", f"expected numbers such as 1,3,10, found {users!r}", "correct them"
        ) from None
    chosen = planting.Planting(users=numbers, times=times, each=each, seed=seed)
    require_result_file(secrets, "secrets of `fedboard data plant`", is_ours)
    planted: Planted = planting.plant(corpora.load(data), out, secrets, chosen)
    controls = sum(not secret.users for secret in planted.secrets)
    if as_json:
        return emit({"out": str(out), "secrets": len(planted.secrets), "controls": controls})
    console.say(
        f"{out}: {data} with {len(planted.secrets) - controls} secrets, of which {secrets} tells; "
        f"{controls} more that nobody typed"
    )
    console.say(f"next: {command('train', '--data', out, '--out', 'runs/planted')}")


def audit(
    target: Annotated[Path, typer.Argument(help="Run, checkpoint, bundle, or a device's folder.")],
    secrets: Annotated[
        Path,
        typer.Option(help="What was planted in its corpus: the file of `fedboard data plant`."),
    ] = Path(SECRETS),
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for audit.json, which `bundle build --require-audit` takes."),
    ] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw audit.svg there too.")] = False,
    fewest_users: Annotated[
        int,
        typer.Option(min=1, max=10**9, help="A secret of fewer users must not be told."),
    ] = 10,
    most_exposure: Annotated[
        float, typer.Option(min=0.0, max=64.0, help="Bits that such a secret may be exposed by.")
    ] = 10.0,
    seed: Seed = 0,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """How much a network tells of secrets: their exposure, and whether it says them by itself.

    Exit code 1 if it tells one of too few users. The int8 file and the float network of a bundle
    are asked alike; of a device's folder its personal network. A network that was trained on
    another corpus than that of the secrets is refused; of one whose corpus is not known, or that
    does not tell even what many users typed, it is said that its silence shows nothing.
    """
    from conversion.audit import Limits, doubts
    from device_runtime.errors import RunError
    from fedboard import audit as stage
    from fedboard.run import writable

    if plot and out is None:
        raise RunError("--plot", "expected a folder to draw into, found none", "pass --out DIR")
    limits = Limits(fewest_users, most_exposure)
    report = stage.audited(target, secrets, limits, seed, trust)
    name = None
    if out is not None:
        with writable(out / stage.REPORT):
            _, name = stage.write(report, out)
            if plot:
                stage.draw(report, out)
    if as_json:
        emit(
            {
                **asdict(report),
                "passed": report.passed,
                "doubts": doubts(report),
                "sha256": name,
            }
        )
    else:
        console.table(
            f"secrets told by checkpoint {report.checkpoint[:16]}",
            ["network", "words", "users", "secrets", "exposure", "largest", "of", "extracted"],
            [
                [
                    row.network,
                    f"{row.words}",
                    f"{row.users}" if row.users else "nobody",
                    f"{row.secrets}",
                    f"{row.exposure:.1f}",
                    f"{row.largest:.1f}",
                    f"{row.space:.1f}",
                    f"{row.extracted}",
                ]
                for row in stage.rows(report.told)
            ],
        )
        for problem in report.problems:
            console.say(problem, style="bold red")
        if report.passed:
            console.say(
                f"passed: no secret of fewer than {fewest_users} users is told (bits of exposure "
                f"up to {most_exposure:g} are chance)"
            )
        for doubt in doubts(report):
            console.say(doubt, style="bold")
        if report.passed and doubts(report):
            console.say(
                "so its silence shows nothing, and `--require-audit` takes no such report: "
                f"{stage.DOUBTED}",
                style="bold",
            )
        if out is not None:
            console.say(f"{out / stage.REPORT}: SHA-256 {name}")
    if not report.passed:
        raise typer.Exit(1)
