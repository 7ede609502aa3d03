"""`fedboard bundle ...`: what a device installs.

Thin commands; nothing heavy is imported before the command that needs it.
"""

import json
import math
import re
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.cells import cell_len

from device_runtime.shown import printable, rounded_up
from fedboard import console
from fedboard.options import Json, Trust, emit

if TYPE_CHECKING:  # the command line starts without it
    from device_runtime.bundle import Lineage

EDGES = 10  # cells of a table of three columns that hold no text
SHOWN_OF_DIGEST = 16  # digits
_DIGEST = re.compile("[0-9a-f]{64}")

app = typer.Typer(no_args_is_help=True, help="Bundles: what a device installs.")


@app.command("verify")
def bundle_verify(
    path: Annotated[Path, typer.Argument(help="Bundle folder or zip.")],
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Check signature, sizes, hashes and vocabulary of a bundle, as a device does first."""
    from fedboard.run import open_bundle

    manifest = open_bundle(path, trust).manifest
    if as_json:
        return emit(asdict(manifest))
    console.table(
        f"{path}: whole, and signed by a trusted key",
        ["file", "bytes"],
        [[n, f"{f.bytes:,}"] for n, f in manifest.files.items()],
    )
    line = manifest.lineage
    console.say(
        f"network `{manifest.network}`, {manifest.vocabulary:,} ids; corpus {line.corpus}, round "
        f"{line.round}; privacy {line.privacy}"
    )


@app.command("show")
def bundle_show(
    path: Annotated[Path, typer.Argument(help="Bundle folder or zip.")],
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """What a bundle is: network, vocabulary, where it comes from, what was measured of it."""
    from device_runtime import exposure
    from fedboard.run import open_bundle

    opened = open_bundle(path, trust)
    manifest, plan = opened.manifest, opened.plan
    if as_json:
        return emit({**asdict(manifest), "plan": asdict(plan), "blocked": len(opened.blocked)})
    line = manifest.lineage
    console.say(
        f"{path}: release {manifest.release} of network `{manifest.network}` ({manifest.units} "
        f"units, embedding {manifest.embedding})"
    )
    console.say(
        f"{manifest.vocabulary:,} ids, {len(opened.blocked)} words never suggested; needs "
        f"tflite-runtime {manifest.minimum_runtime} or later"
    )
    console.say(f"language {manifest.language or 'not told'}; text rules {manifest.text_rules}")
    if manifest.device_class is not None:
        console.say(f"for devices of class `{manifest.device_class}`, and no others")
    console.say(
        f"from {line.corpus}, round {line.round}, checkpoint {line.checkpoint[:16]}; privacy "
        f"{line.privacy}"
    )
    if line.task is not None:
        console.say(_of_task(line))
    for seen in exposure.of_bundle(line.aggregation, manifest.pins):
        console.say(seen.text, style="bold red" if seen.warns else "")
    console.say(
        f"a device trains {plan.epochs} epoch at rate {plan.learning_rate:g}, clips at "
        f"{plan.clipping_norm:g}, uploads {plan.bits} bits a value"
    )
    console.table(
        "files",
        ["file", "bytes"],
        [[name, f"{file.bytes:,}"] for name, file in manifest.files.items()],
    )
    console.table(
        "measured before signing",
        ["figure", "value"],
        [
            [name, f"{value:,.0f}" if value == int(value) else f"{value:.3g}"]
            for name, value in manifest.gate.items()
        ],
    )


@app.command("diff")
def bundle_diff(
    old: Annotated[Path, typer.Argument(help="Bundle folder or zip.")],
    new: Annotated[Path, typer.Argument(help="Bundle folder or zip.")],
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """What differs between two bundles: fields, files, words, and how far the weights moved."""
    from device_runtime.bundle import difference
    from fedboard.run import open_bundle

    changed = difference(open_bundle(old, trust), open_bundle(new, trust))
    if as_json:
        return emit(asdict(changed))
    if not (changed.fields or changed.files):
        return console.say(f"{old} and {new} are the same")
    fields = {name: readable_pair(pair) for name, pair in changed.fields.items()}
    rows, long = by_length(fields, console.out.width)
    if rows:
        console.table(f"{old} and {new}", ["field", "old", "new"], rows)
    else:
        console.say(f"{old} and {new}")
    for name, before, after in long:
        console.say(f"  {name}", *_under("old", before), *_under("new", after))
    if changed.files:
        console.table(
            "files that differ",
            ["file", "old bytes", "new bytes"],
            [[name, *map(_bytes, pair)] for name, pair in changed.files.items()],
        )
    console.say(
        f"words: {len(changed.words_added):,} added{_few(changed.words_added)}, "
        f"{len(changed.words_removed):,} removed{_few(changed.words_removed)}"
    )
    if changed.weights is None:
        return console.say("weights: of other shapes")
    console.say(
        f"weights: L2 distance {changed.weights:.4g}, {changed.weights_changed:.1%} of the values "
        "as sent differ"
    )


@app.command("zip")
def bundle_zip(
    path: Annotated[Path, typer.Argument(help="Bundle folder or zip.")],
    out: Annotated[Path, typer.Argument(help="File to write, such as bundle.zip.")],
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """A bundle as one file, for a download.

    The same bundle gives the same bytes; every command takes either.
    """
    from device_runtime.bundle import is_zip_of_one, write_zip
    from fedboard.run import open_bundle, require_result_file

    require_result_file(out, "a bundle's zip", is_zip_of_one)
    write_zip(open_bundle(path, trust), out)
    if as_json:
        return emit({"zip": str(out), "bytes": out.stat().st_size})
    console.say(f"{out}: {out.stat().st_size:,} bytes")


def readable_pair(pair: tuple[str, str]) -> tuple[str, str]:
    """Two values of a manifest, each JSON or `-`, as people read them: digests by their beginning,
    numbers by four digits, unless the two would then look the same.

    >>> readable_pair(("0.986028552", "1499436.0")), readable_pair(("1.00001", "1.00002"))
    (('0.986', '1,499,436'), ('1.00001', '1.00002'))
    """
    short, whole = (tuple(_readable(each, shortens) for each in pair) for shortens in (True, False))
    old, new = whole if short[0] == short[1] else short
    return old, new


def by_length(
    fields: dict[str, tuple[str, str]], width: int
) -> tuple[list[list[str]], list[list[str]]]:
    """Fields as rows of name, old and new: those that a table of `width` cells has room for, and
    those whose values are too long for it.

    >>> by_length({"round": ("1", "2"), "privacy": ("none", "epsilon 6.5, delta 1e-6")}, 40)
    ([['round', '1', '2']], [['privacy', 'none', 'epsilon 6.5, delta 1e-6']])
    """
    room = (width - EDGES - max((cell_len(printable(name)) for name in fields), default=0)) // 2
    rows: tuple[list[list[str]], list[list[str]]] = ([], [])
    for name, pair in fields.items():
        rows[max(cell_len(printable(each)) for each in pair) > room].append([name, *pair])
    return rows


def _readable(encoded: str, shortens: bool) -> str:
    try:
        value = json.loads(encoded)
    except ValueError:
        return encoded  # there is none
    if isinstance(value, str):
        return value[:SHOWN_OF_DIGEST] if shortens and _DIGEST.fullmatch(value) else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-" if value is None else encoded
    if not shortens or not math.isfinite(value):
        return encoded
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


def _under(label: str, value: str) -> list[str]:
    """A long value under its field, broken between words."""
    width = max(20, console.out.width - len(label) - 6)
    lines = textwrap.wrap(printable(value), width, break_long_words=False, break_on_hyphens=False)
    first, *rest = lines or ["-"]
    return [f"    {label} {first}", *(f"    {' ' * len(label)} {line}" for line in rest)]


def _of_task(line: "Lineage") -> str:
    """Where a release comes from: what is known of it, and what is not."""
    known = {
        "epsilon": None if line.epsilon is None else rounded_up(line.epsilon),
        "delta": None if line.delta is None else f"{line.delta:g}",
        "audit": line.audit and line.audit[:16],
        "policy log": line.policy_log and line.policy_log[:16],
    }
    said = [f"{name} {value}" for name, value in known.items() if value is not None]
    return (
        f"learnt by task {line.task}: {line.rounds or 0:,} rounds, {line.participants or 0:,} "
        f"updates counted in them; {', '.join(said) or 'no accounting of privacy, no audit'}"
    )


def _bytes(size: int | None) -> str:
    return "-" if size is None else f"{size:,}"


def _few(words: tuple[str, ...]) -> str:
    return f" ({', '.join(words[:5])}{', ...' if len(words) > 5 else ''})" if words else ""
