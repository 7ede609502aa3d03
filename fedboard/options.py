"""What several commands share: their common options, and how they print one JSON object."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="`chitchat`, `stackoverflow`, `shakespeare`, or a directory made by `fedboard data "
        "import`.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Trust = Annotated[
    list[Path] | None,
    typer.Option(
        help="Public key file of a bundle's maker; by default our own, runs/keys/signing.pub."
    ),
]
OpenWorker = Annotated[
    bool,
    typer.Option(
        "--open-worker",
        help="Let TFF's worker listen on every interface where it can get no network of its own; "
        "see docs/scale-out.md.",
    ),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="Take a server of another machine without TLS: whoever is on the way reads along.",
    ),
]
# counts beyond these are slips of the hand, and would fill the memory first
MOST_ROUNDS, MOST_DEVICES, MOST_WORDS, MOST_USERS = 100_000, 100_000, 1_000_000, 10**9
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Repeats the run.")]


def emit(value: object) -> None:
    """One JSON object on standard output, whatever the console is told."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
