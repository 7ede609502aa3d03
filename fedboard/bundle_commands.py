"""`fedboard bundle ...`: what a device installs. Thin commands; nothing heavy is imported before the command that needs it."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fedboard import console
from fedboard.options import Json, Trust, emit

app = typer.Typer(no_args_is_help=True, help="Bundles: what a device installs.")


@app.command("verify")
def bundle_verify(path: Annotated[Path, typer.Argument(help="Bundle folder.")], trust: Trust = None, as_json: Json = False) -> None:
    """Check signature, sizes, hashes and vocabulary of a bundle, as a device does before it opens one."""
    from fedboard.run import open_bundle

    manifest = open_bundle(path, trust).manifest
    if as_json:
        return emit(asdict(manifest))
    console.table(f"{path}: whole, and signed by a trusted key", ["file", "bytes"], [[n, f"{f.bytes:,}"] for n, f in manifest.files.items()])
    line = manifest.lineage
    console.say(f"network `{manifest.network}`, {manifest.vocabulary:,} ids; corpus {line.corpus}, round {line.round}; privacy {line.privacy}")
