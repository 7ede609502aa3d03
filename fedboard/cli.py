"""The command line: thin commands over the stages.

Nothing heavy is imported before the command that needs it.
"""

import atexit
import contextlib
import os
import platform
import signal
import sys
import time
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

# first, so that what follows is ours
from fedboard import __main__ as program  # isort: skip

from device_runtime import durable
from device_runtime.errors import FedboardError, RunError
from device_runtime.shown import command
from fedboard import (
    audit_commands,
    bundle_commands,
    console,
    device_commands,
    failures,
    fleet_commands,
    helper_commands,
    log_commands,
    privacy_commands,
    release_commands,
    streams,
    task_commands,
    word_commands,
    words_commands,
)
from fedboard.options import (
    MOST_DEVICES,
    MOST_ROUNDS,
    MOST_USERS,
    MOST_WORDS,
    Data,
    Json,
    OpenWorker,
    Seed,
    Trust,
    emit,
)

if TYPE_CHECKING:  # the command line starts without it
    from device_runtime.bundle import Bundle

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Keyboard prediction by federated learning.",
)
data_app = typer.Typer(no_args_is_help=True, help="Corpora: import your own, look at one.")
app.add_typer(data_app, name="data")
app.add_typer(bundle_commands.app, name="bundle")
app.add_typer(device_commands.app, name="device")
app.add_typer(words_commands.app, name="words")
app.add_typer(task_commands.app, name="task")
app.add_typer(release_commands.app, name="release")
app.add_typer(privacy_commands.app, name="privacy")
app.add_typer(log_commands.app, name="log")
app.add_typer(fleet_commands.app, name="fleet")
app.command("codes")(task_commands.codes)
task_commands.app.command("count-words")(word_commands.task_count_words)
task_commands.app.command("counts")(word_commands.task_counts)
data_app.command("words")(word_commands.data_words)
app.command("helper")(helper_commands.helper)
app.command("audit")(audit_commands.audit)
data_app.command("plant")(audit_commands.plant)


MEGABYTE = 1_000_000
PARTS = 1000  # of a bar that shows shares
WEEK_S = 604_800.0
OURS = program.ROOMS
# by extra, the packages whose lack it mends, as they are imported: what it installs, and what comes
# along and is imported too. Each stands once, in an extra that brings it on every Python there is
# one for
EXTRAS = {
    "device": ("httpx", "tflite_runtime"),
    "litert": ("ai_edge_litert",),
    "keystore": ("keyring",),
    "keyboard": ("prompt_toolkit", "wcwidth"),
    "server": (
        "alembic",
        "cachetools",
        "fastapi",
        "httptools",
        "markupsafe",
        "nacl",
        "obstore",
        "prometheus_client",
        "pydantic",
        "sqlalchemy",
        "starlette",
        "uvicorn",
        "uvloop",
    ),
    "postgres": ("psycopg",),
    "simulation": ("flatbuffers", "grpc", "tensorflow", "tensorflow_federated"),
    "data": ("chitchat_dataset", "google", "polars", "spellchecker", "zstandard"),
    # a server misses its database first
    "report": ("jinja2", "matplotlib"),
    "scale": ("ray",),
}


def main() -> None:
    """Run a command: exit code 0 on success, 1 with one clear line on bad input, 2 for words that
    are no command, 130 on Ctrl-C.
    """
    try:
        streams.begin()
        code = app(prog_name="fedboard", standalone_mode=False)
        streams.end()
    except (KeyboardInterrupt, typer.Abort):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is leaving already
        console.note("interrupted")
        code = 130
    except Exception as error:
        code = _failed(error)
    with contextlib.suppress(FedboardError):
        streams.end()
    if code == 130:
        # an interrupt inside of an `eval`, wherever, makes Python end by the signal in the place of
        # this code: it must not come to that
        atexit._run_exitfuncs()
        os._exit(code)
    sys.exit(code or 0)


def _failed(error: Exception) -> int:
    """Say in one line what ended a command; its exit code."""
    if hasattr(error, "show"):  # the parser's own
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            console.note(failures.usage(error), style="red")
        return 2
    if isinstance(error, ModuleNotFoundError):  # a smaller installation, such as a device's
        package = (error.name or "").split(".")[0]
        if package not in OURS and failures.stranger() is None:
            console.note(lacking(package), style="red")
            return 1
    if os.environ.get(failures.TRACEBACK) and not isinstance(error, FedboardError):
        traceback.print_exception(error)
    console.note(failures.line(error), style="red")
    return 1


def lacking(package: str) -> str:
    """What to do about a package that a command needs and this installation has not.

    >>> lacking("polars")
    'fedboard: expected the package polars for this command, found none; install fedboard[data]'
    """
    from fedboard import doctor

    extra = next((extra for extra, names in EXTRAS.items() if package in names), None)
    here = doctor.training(sys.version_info[:2], platform.machine())
    if extra is None:
        remedy = doctor.REINSTALL
    elif extra == "simulation" and not here.ok:
        remedy = here.remedy
    else:
        remedy = f"install fedboard[{extra}]"
    return f"fedboard: expected the package {package} for this command, found none; {remedy}"


@data_app.command("import")
def data_import(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="CSV, JSONL, JSON, Parquet, WhatsApp's _chat.txt or Telegram's result.json, plain "
            "or packed with gzip or zstd; folders of parts; - for standard input.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    user: Annotated[str, typer.Option(help="Column that says who typed.")] = "user",
    text: Annotated[str, typer.Option(help="Column with the message.")] = "text",
    timestamp: Annotated[
        str | None,
        typer.Option(
            help="Column with the time (ISO 8601 or epoch); by default `timestamp`, if it is there."
        ),
    ] = None,
    timestamp_format: Annotated[
        str | None, typer.Option(help="How times are written, such as '%d.%m.%Y %H:%M'.")
    ] = None,
    no_timestamp: Annotated[
        bool, typer.Option("--no-timestamp", help="Leave times out; rows stay in their order.")
    ] = False,
    delimiter: Annotated[
        str | None,
        typer.Option(
            help="Between CSV's columns; by default what the header shows of , ; and tab."
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(help="Of text that is not UTF-8 and bears no mark, such as cp1252."),
    ] = None,
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="csv, json, parquet, whatsapp or telegram; by default as name and content say.",
        ),
    ] = None,
    allow_damage: Annotated[
        bool,
        typer.Option(
            "--allow-damage", help="Go on where more than one row in a hundred cannot be read."
        ),
    ] = False,
    language: Annotated[
        str,
        typer.Option(help="What was typed, as a tag such as en, pt-BR or zh-Hant; two as en+de."),
    ] = "",
    as_json: Json = False,
) -> None:
    """Read files of messages, clean them by protocol nwp-v2, and write a corpus directory.

    Says how the files were read, and what was dropped and why.
    """
    from model import imported

    if as_json:
        console.quiet()
    reading = imported.Reading(
        user=user,
        text=text,
        timestamp=timestamp,
        timestamp_format=timestamp_format,
        no_timestamp=no_timestamp,
        delimiter=delimiter,
        encoding=encoding,
        format=file_format,
        allow_damage=allow_damage,
        language=language,
    )
    size = sum(source.size for source in imported.sources(files))
    with console.progress("MB read", size // MEGABYTE or 1) as advance:
        report = imported.import_file(
            files,
            out,
            reading,
            lambda read: advance(min(read, size) // MEGABYTE),
            lambda done, of: advance(size // MEGABYTE, f"sorted {done / of:.0%}"),
        )
    if as_json:
        return emit(asdict(report))
    console.say(
        f"{out}: kept {report.kept:,} of {report.rows:,} rows, {report.users:,} users, "
        f"{report.words:,} words"
    )
    for note in report.notes:
        console.say(f"  {note}")
    for drop in report.dropped:
        why = f": expected {drop.expected}, found {drop.found}" if drop.damage else ""
        places = ", ".join(drop.places) + ", ..." * (drop.rows > len(drop.places) > 0)
        where = f" ({places})" if places else ""
        console.say(f"  dropped {drop.rows:,}: {drop.reason}{why}{where}")
    console.say(f"next: {command('data', 'stats', out)}")


@data_app.command("stats")
def data_stats(
    data: Annotated[
        str,
        typer.Argument(help="`chitchat`, a corpus directory, `stackoverflow` or `shakespeare`."),
    ] = "chitchat",
    plot: Annotated[
        Path | None, typer.Option(help="SVG file to draw the plots into, such as stats.svg.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Users, utterances and words by split, how unevenly they are spread, and what was left out.

    `stackoverflow` and `shakespeare` are fetched once by TFF into the folder that FEDBOARD_CACHE
    names (by default ~/.tff). Of StackOverflow only 1,000 users of each split are read.
    """
    from fedboard import corpus_figures
    from fedboard.run import require_result_file, writable
    from model import corpora, corpus

    if plot:  # before the work
        require_result_file(plot, "plots of a corpus", corpus_figures.are_figures)
    stats = corpus.stats(corpora.load(data))
    if plot:
        with writable(plot) as path:
            durable.share(path, corpus_figures.svg(stats).encode())
    if as_json:
        return emit(asdict(stats))
    for table in corpus_figures.tables(stats):
        console.table(*table)
    for sentence in corpus_figures.sentences(stats):
        console.say(sentence)
    for title, bars in corpus_figures.plots(stats):
        console.say("", title)
        console.say(*corpus_figures.bars(bars, console.out.width, console.out.encoding))


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Run folder to write, such as runs/mine.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="`chitchat` (default), `stackoverflow`, `shakespeare`, or a corpus directory; "
            "with --resume where the run's corpus is now, if it was moved."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file such as configs/tiny.toml or a run's config.toml; other options go "
            "over it."
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(help="Rounds; with --resume a new end, which schedules are stretched to."),
    ] = None,
    cohort: Annotated[int | None, typer.Option(help="Clients a round.")] = None,
    size: Annotated[str | None, typer.Option(help="Network: tiny, small or gboard.")] = None,
    vocabulary: Annotated[
        int | None, typer.Option(help="Words (or pieces) of the vocabulary.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="`words` or SentencePiece `unigram` pieces.")
    ] = None,
    vocabulary_from: Annotated[
        Path | None,
        typer.Option(
            help="File of `fedboard task counts --out`: the vocabulary is its words, in the order "
            "of how many people typed them."
        ),
    ] = None,
    least_people: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_USERS,
            help="People who must have typed a word of the vocabulary; those of a corpus are then "
            "counted by person instead of by use.",
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(min=1, max=16, help="Encode updates as devices do, in so many bits a value."),
    ] = None,
    population: Annotated[
        Path | None,
        typer.Option(
            help="Folder of `fedboard fleet population make`: cohorts are drawn from the clients "
            "whose devices charge, are on WiFi and idle just then; by default all always are."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Repeats the run.")] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Looks at validation users in a row without a better top-1 after which training "
            "ends; 0: never."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run in the folder, after its last saved round."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier run in the folder.")] = False,
    central: Annotated[
        bool,
        typer.Option("--central", help="Train with all text in one place instead: the ceiling."),
    ] = False,
    init: Annotated[
        Path | None,
        typer.Option(help="Run or checkpoint whose weights and tokenizer training starts from."),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            help="TFF workers on other machines, host:port,host:port. See docs/scale-out.md."
        ),
    ] = None,
    round_deadline: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            max=WEEK_S,
            help="Seconds a round may take; then the run stops, resumable.",
        ),
    ] = None,
    open_worker: OpenWorker = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a round and nothing else.")
    ] = False,
) -> None:
    """Train the next-word network by federated averaging, simulated in TFF.

    Ctrl-C finishes the round and saves it; a second one leaves.
    """
    from device_runtime.config import from_toml
    from fedboard import train as stage
    from fedboard.run import Settings

    if as_json:
        console.quiet()
    fixed = {
        "--config": config,
        "--seed": seed,
        "--cohort": cohort,
        "--size": size,
        "--vocabulary": vocabulary,
        "--vocabulary-from": vocabulary_from,
        "--least-people": least_people,
        "--tokenizer": tokenizer,
        "--bits": bits,
        "--init": init,
        "--population": population,
    }
    if resume:
        changed = (
            [name for name, value in fixed.items() if value is not None]
            + ["--overwrite"] * overwrite
            + ["--central"] * central
        )
        if changed:
            raise RunError(
                "--resume",
                f"goes on with the run as it was, found {', '.join(changed)}",
                "leave them out, or start a new run",
            )
        settings = stage.resumed(out, rounds, patience)
    else:
        settings = from_toml(Settings, config) if config else Settings()
        named: dict[str, Any] = {
            "rounds": rounds,
            "cohort": cohort,
            "size": size,
            "vocabulary": vocabulary,
            "tokenizer": tokenizer,
            "least_people": least_people,
            "seed": seed,
            "patience": patience,
        }
        recipe = replace(
            settings.recipe, **{name: value for name, value in named.items() if value is not None}
        )
        if bits is not None:
            recipe = replace(recipe, encoded=True, plan=replace(recipe.plan, bits=bits))
        settings = Settings(
            settings.data if data is None else data,
            settings.init if init is None else str(init.absolute()),  # resumed from any folder
            central or settings.central,
            recipe,
            settings.words if vocabulary_from is None else str(vocabulary_from.absolute()),
            settings.population if population is None else str(population.absolute()),
        )
    if settings.central and settings.population:
        raise RunError(
            "--central", "draws no cohorts, so nobody need be there", "leave out --population"
        )
    if settings.central and (workers is not None or bits is not None):
        raise RunError(
            "--central",
            "trains in this process, and sends no updates",
            "leave out --workers and --bits",
        )
    addresses = () if workers is None else tuple(workers.split(","))
    how = stage.How(
        overwrite,
        resume,
        addresses,
        round_deadline,
        data=data if resume else None,
        open_worker=open_worker,
    )
    done = stage.train(settings, out, how, emit=emit if as_json else None)
    console.say(
        f"best checkpoint: {done.best}",
        f"next: {command('evaluate', out)}; {command('export', out)}",
    )


@app.command()
def worker(
    port: Annotated[
        int,
        typer.Option(
            min=1,
            max=65535,
            help="Port to listen on; close it to strangers: it runs whatever graph it is sent.",
        ),
    ],
    host: Annotated[
        str,
        typer.Option(help="The address of this machine to listen on, and no other."),
    ] = "127.0.0.1",
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Clients trained at once; by default one per core."),
    ] = None,
    open_worker: OpenWorker = False,
) -> None:
    """Train clients for `fedboard train --workers` on another machine.

    Runs until Ctrl-C. See docs/scale-out.md.
    """
    import os

    from model.worker import Served, serve

    serve(Served(port, host, threads or len(os.sched_getaffinity(0)), open_worker), console.say)


@app.command()
def export(
    target: Annotated[Path, typer.Argument(help="A run folder or a .safetensors checkpoint.")],
    out: Annotated[
        Path | None, typer.Option(help="Bundle folder to write; by default RUN/bundle.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Corpus to check parity on; by default the run's.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.model, if it is not in the run.")
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            help="Private key to sign with; by default runs/keys/signing.key, made on first use."
        ),
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Of local training on devices.")] = 0.1,
    clipping_norm: Annotated[
        float, typer.Option(help="Largest L2 norm of a device's delta.")
    ] = 10.0,
    bits: Annotated[int, typer.Option(help="Of one value of an upload, 1 to 16.")] = 8,
    release: Annotated[
        int | None,
        typer.Option(
            min=0, help="Devices never go back to a lower one; by default the checkpoint's round."
        ),
    ] = None,
    blocked: Annotated[
        Path | None,
        typer.Option(
            help="Words never suggested, one a line; by default a list of offensive ones."
        ),
    ] = None,
    server_factor: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            max=1e6,
            help="Largest step of your servers / clipping norm: a checkpoint further from this "
            "bundle's than its rounds allow is refused by devices. By default 10.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows of a train step; by default the run's.")
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a row; by default the run's.")
    ] = None,
    device_class: Annotated[
        str | None,
        typer.Option(
            "--for",
            help="Device class whose budgets of memory, bytes and time it must keep, such as "
            "`low`: see configs/device-classes.toml.",
        ),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Device classes in a TOML file; by default our own.")
    ] = None,
    aggregation: Annotated[
        str | None,
        typer.Option(
            help="`plain`, `helper` or `secagg`: its devices take part in no other tasks. By "
            "default a task's signed terms say who sees updates."
        ),
    ] = None,
    helper: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Public key of a helper, or a file with it: its devices take part in no task of "
            "another's.",
        ),
    ] = None,
    require_noise: Annotated[
        bool,
        typer.Option(
            "--require-noise",
            help="Its devices take part only where noise is added to every sum of updates.",
        ),
    ] = False,
    max_epsilon: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1e6,
            help="Its devices take part in no task whose budget is a larger epsilon at --at-delta; "
            "noise is required then.",
        ),
    ] = None,
    at_delta: Annotated[
        float | None,
        typer.Option(min=1e-300, max=0.5, help="Of --max-epsilon; by default 1e-10."),
    ] = None,
    require_audit: Annotated[
        Path | None,
        typer.Option(
            help="audit.json of `fedboard audit`: nothing is written unless it let this very "
            "checkpoint pass. Its SHA-256 goes into the lineage."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export train.tflite and int8 predict.tflite through the quality gate into a signed bundle."""
    from fedboard import export as stage

    if as_json:
        console.quiet()
    asked = stage.Asked(
        data,
        tokenizer,
        key,
        learning_rate,
        clipping_norm,
        bits,
        release,
        blocked,
        server_factor,
        batch_size,
        length,
        device_class,
        classes,
        stage.pins_of(aggregation, helper, require_noise, max_epsilon, at_delta),
        require_audit,
    )
    manifest, path = stage.export(target, out, asked)
    if as_json:
        return emit({"bundle": str(path), **asdict(manifest)})
    console.say(
        f"next: {command('bundle', 'verify', path)}; {command('predict', path, 'i will see you')}"
    )


bundle_commands.app.command("build")(export)  # by the name of what comes out


@app.command()
def evaluate(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="Runs, .safetensors checkpoints, bundles, or unigram, kn2, kn3, kn4. TARGET+own: "
            "mixed with each user's own words."
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="`chitchat`, `stackoverflow`, `shakespeare`, or a corpus directory; by default "
            "the one the runs were trained on, and `chitchat` where no target is a run's."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    predictions: Annotated[
        Path | None, typer.Option(help="Write one JSON line per target position (one target only).")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="tokenizer.model of the vocabulary, for baselines and bare checkpoints."),
    ] = None,
    vocabulary: Annotated[
        int, typer.Option(help="Words, for a baseline without --tokenizer.")
    ] = 10_000,
    name: Annotated[
        list[str] | None,
        typer.Option(help="What to call a target in the table; once for each, in order."),
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(help="JSON file for a target's result; once for each, in order."),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Print every measure of the protocol (--json always has them all)."
        ),
    ] = False,
    personal: Annotated[
        bool,
        typer.Option(
            "--personal",
            help="Score users with 40 messages or more on their newer half, the older one is "
            "history.",
        ),
    ] = False,
    paired: Annotated[
        bool,
        typer.Option(
            "--paired", help="Also compare two targets user by user: the second minus the first."
        ),
    ] = False,
    users: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_USERS,
            help="Users of the split to score at most, evenly spaced; by default 1,000 of a corpus "
            "of more than a million messages, and all of a smaller one.",
        ),
    ] = None,
    seed: Seed = 0,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Score next-word accuracy on held-out users by protocol nwp-v2.

    Loads no TensorFlow but for TFF's own corpora.
    """
    from fedboard import score, source
    from fedboard.run import trusted_keys, writable

    if predictions and len(targets) > 1:
        raise RunError(
            "--predictions", f"holds one target, found {len(targets)}", "evaluate them one by one"
        )
    if paired and len(targets) != 2:
        raise RunError(
            "--paired", f"compares two targets, found {len(targets)}", "name exactly two"
        )
    for option, values in (("--name", name), ("--out", out)):
        if values and len(values) != len(targets):
            raise RunError(
                option,
                f"expected {len(targets)} of them, found {len(values)}",
                "give one for each target",
            )
    score.require_files(predictions, out or [])  # before the work
    if as_json:
        console.quiet()
    # before the corpus is read: it may refuse
    asked = score.Asked(split, tokenizer, vocabulary, "", predictions, personal, users)
    corpus, data, notes = source.for_targets(
        [target.removesuffix(score.OWN) for target in targets], data
    )
    for note in notes:
        console.say(note)
    measured, results = [], []
    for i, target in enumerate(targets):
        with console.progress(f"scoring {target}", PARTS) as advance:

            def progress(done: int, total: int, advance: console.Advance = advance) -> None:
                advance(round(PARTS * done / total))

            named = replace(asked, name=name[i] if name else "")
            sums = score.measure(target, corpus, lambda: trusted_keys(trust), named, progress)
        scored = score.scored(sums, seed)
        if out:
            with writable(out[i]) as path:
                durable.share(path, score.to_json(scored).encode())
        measured.append(sums)
        results.append(scored)
    difference = score.compare(measured[0], measured[1], seed) if paired else None
    if as_json and difference:
        return emit(
            {
                "systems": [asdict(scored) for scored in results],
                "second_minus_first": asdict(difference),
            }
        )
    if as_json:
        return emit(
            [asdict(scored) for scored in results] if len(results) > 1 else asdict(results[0])
        )
    summary = results[0].summary
    title = f"{data}, {split} users: {summary.users} users, {summary.targets:,} words"
    if full:
        for columns, rows in score.full_tables(results):
            console.table(title, columns, rows)
    else:
        console.table(title, score.COLUMNS, [score.row(row) for row in results])
    for sentence in score.partly(corpus, asked, targets):
        console.say(sentence)
    for sums in measured:
        if sums.served is not None:
            console.say(
                f"{sums.name}: own words mixed in for {sums.served} of {summary.users} users; for "
                "the others they were not ahead"
            )
    for scored in results:
        if scored.device_limits:
            said = f"trained within the limits of a device: {scored.device_limits}"
            console.say(f"{scored.name}: {said}")
    if note := score.footnote(results):
        console.say(note)
    if difference:
        first, second = (scored.name for scored in results)
        for table in score.difference_tables(first, second, difference):
            console.table(*table)
        console.say(score.sentence(first, second, difference))


@app.command()
def predict(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="Bundle folder or zip; by default the repository's bundles/reference."),
    ] = None,
    text: Annotated[
        str | None,
        typer.Argument(help="What was typed; without it, lines are read from standard input."),
    ] = None,
    prefix: Annotated[str, typer.Option(help="Letters of the next word typed so far.")] = "",
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Suggest the next word, or complete a typed prefix.

    Without TEXT: a small keyboard on standard input. Each line is a text; one that is just `1`, `2`
    or `3` takes that word of the strip, and with a space behind it is a text too.
    """
    from device_runtime.keyboard import Keyboard
    from device_runtime.predictor import Predictor
    from fedboard import terminal_keyboard
    from fedboard.run import open_bundle

    opened = open_bundle(bundle, trust)
    if text is None:
        if sys.stdin.isatty():
            console.say(terminal_keyboard.LINES_HELP)
        return terminal_keyboard.converse(Keyboard(None, opened), sys.stdin)
    strip = Predictor(opened).suggest(text, prefix)
    if as_json:
        return emit([asdict(suggestion) for suggestion in strip])
    lines = [f"{suggestion.probability:6.1%}  {suggestion.word}" for suggestion in strip]
    console.say(*lines or ["no word of the vocabulary starts so"])


@app.command("keyboard")
def keyboard(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="Bundle folder or zip; by default the one of --home, else the repository's "
            "bundles/reference."
        ),
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(
            help="Device whose typing log is used; made on first use. By default one of your own."
        ),
    ] = None,
    incognito: Annotated[
        bool,
        typer.Option("--incognito", help="Begin with recording off; Ctrl-P turns it on and off."),
    ] = False,
    no_log: Annotated[
        bool,
        typer.Option(
            "--no-log", help="Use no typing log at all: nothing is read, nothing recorded."
        ),
    ] = False,
    trust: Trust = None,
) -> None:
    """A keyboard in the terminal: the strip of three follows each key.

    It learns from what you send, and counts the keys it saves.
    """
    from device_runtime import interpreter
    from device_runtime.home import Home
    from device_runtime.keyboard import Keyboard, home_of
    from fedboard import terminal_keyboard
    from fedboard.run import open_bundle

    if home and no_log:
        raise RunError("--no-log", "uses no typing log, found --home", "leave out one of them")
    # before a home is made
    terminal_keyboard.require_terminal()
    interpreter.load(interpreter.chosen())
    opened = (
        _bundle_of(home)
        if home and Home.is_there(home) and bundle is None
        else open_bundle(bundle, trust)
    )
    device = None if no_log else home_of(home or terminal_keyboard.default_home(), opened)
    with Keyboard(device, opened) as typed_on:
        session = terminal_keyboard.run(typed_on, incognito)
    console.say(
        f"{session.messages} messages, {session.keys} keys pressed, {session.saved:.1%} of "
        "keystrokes saved"
    )


def _bundle_of(home: Path) -> "Bundle":
    """The bundle that a home uses. Where the home is damaged or its bundle is gone, it is said, and
    the repository's reference bundle goes on, if there is one: typing does not stop for that.
    """
    from device_runtime.home import Home
    from fedboard.run import REFERENCE, open_bundle

    try:
        return Home.open(home).bundle()
    except FedboardError as error:
        if not (Home.is_any(home) and REFERENCE.is_dir()):
            raise
        console.note(f"{error}: the reference bundle is used")
        return open_bundle(None, None)


@app.command()
def serve(
    dir: Annotated[
        Path,
        typer.Option(
            help="The server's folder: its database and blobs, its address and its "
            "operator's token."
        ),
    ],
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Bundle to start a task from, if the server has none; see also `fedboard task "
            "create`."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="server.toml; see docs/operations.md.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="0: any free one, written to DIR/address.")
    ] = 8000,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Listen for other machines without TLS: behind a proxy that has it."
        ),
    ] = False,
    helper: Annotated[
        str | None,
        typer.Option(
            help="Address of the helper that opens sums, run by another party; its token in "
            "DIR/helper.token or FEDBOARD_HELPER_TOKEN. By default one runs beside the server."
        ),
    ] = None,
    aggregation: task_commands.WhoSees = None,
    trust: Trust = None,
) -> None:
    """Run the server: check-in, rounds, aggregation, a page to watch.

    State survives a restart, and kill -9. Beside it runs a helper, which opens sums of updates that
    the server cannot read: whoever runs both can.
    """
    from device_runtime.config import from_toml
    from fedboard import serve as stage
    from fedboard.run import open_bundle
    from server.settings import ServerSettings

    settings = from_toml(ServerSettings, config) if config else ServerSettings()
    if named := task_commands.named_aggregation(aggregation):
        settings = replace(settings, aggregation=named)
    opened = open_bundle(bundle, trust) if bundle else None
    at = stage.Listening(host, port, insecure)
    stage.serve(dir, opened, settings, at, time.time(), helper)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Run folder, or a fleet's.")]) -> None:
    """Write RUN/report.html from what the run's folder holds."""
    from fedboard import fleet_report
    from fedboard.report import build
    from fedboard.run import Run

    is_fleet = fleet_report.is_fleet(run)
    console.say(f"report: {fleet_report.build(run) if is_fleet else build(Run(run))}")


@app.command()
def doctor(
    deep: Annotated[
        bool, typer.Option(help="Also import TFF and run a graph (half a minute).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check this machine: Python, packages, worker, corpus, memory, ports.

    Exit code 1 if something is wrong; that models cannot be trained here is a note.
    """
    from rich.text import Text

    from fedboard.doctor import checks

    results = checks(deep=deep)
    if as_json:
        emit([asdict(check) for check in results])
    else:
        for check in results:
            mark = ("ok  ", "green") if check.ok else ("BAD ", "red") if check.failed else "note"
            console.say(Text.assemble(mark, console.text(f" {check.name}: {check.found}")))
            if not check.ok:
                console.say(f"     {check.remedy}")
    if any(check.failed for check in results):
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Run folder; an earlier demo there is replaced.")
    ] = Path("runs/demo"),
    data: Data = "chitchat",
    size: Annotated[str, typer.Option(help="Network: tiny, small or gboard.")] = "small",
    vocabulary: Annotated[
        int, typer.Option(min=1, max=MOST_WORDS, help="Words of the vocabulary.")
    ] = 5000,
    rounds: Annotated[
        int, typer.Option(min=1, max=MOST_ROUNDS, help="Rounds of simulated training.")
    ] = 120,
    cohort: Annotated[
        int, typer.Option(min=1, max=MOST_DEVICES, help="Clients a round of it.")
    ] = 20,
    device_rounds: Annotated[
        int, typer.Option(min=1, max=MOST_ROUNDS, help="Rounds over HTTP with the devices.")
    ] = 6,
    devices: Annotated[int, typer.Option(min=5, max=MOST_DEVICES, help="Devices.")] = 24,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="Processes the devices run in.")
    ] = 2,
    min_examples: Annotated[
        int, typer.Option(min=1, max=2000, help="Fewest messages of a device's user.")
    ] = 40,
    seed: Seed = 0,
    open_worker: OpenWorker = False,
) -> None:
    """The whole path: corpus, training, bundle, server, devices, evaluation, report."""
    from fedboard.demo import Demo, run

    run(
        Demo(
            out,
            data,
            size,
            vocabulary,
            rounds,
            cohort,
            device_rounds,
            devices,
            processes,
            min_examples,
            seed,
            open_worker,
        )
    )


if __name__ == "__main__":
    main()
