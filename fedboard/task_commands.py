"""`fedboard task ...` and `fedboard codes`: what an operator does with a running server. Thin
commands over `fedboard.operator`.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from device_runtime.errors import RunError
from device_runtime.shown import rounded_up
from fedboard import console
from fedboard.options import MOST_ROUNDS, Insecure, Json, Trust, emit

if TYPE_CHECKING:  # the command line starts without it
    from device_runtime.noise import Noise
    from device_runtime.terms import Aggregation, Terms
    from device_runtime.wire import RoundReport
    from server.contract import TaskReport

ROUNDS, DAYS = 1000, 90.0  # that a certificate holds, unless another number is given
DELTA = 1e-10  # of a budget, unless another is given
NOISE_OPTIONS = {  # by number of the noise, what gives it
    "multiplier": "--noise-multiplier",
    "epsilon": "--epsilon",
    "rounds": "--noise-rounds",
    "participations": "--max-participations",
}

app = typer.Typer(
    no_args_is_help=True,
    help="Tasks of a running server: make, certify, look at, pause, resume and roll back.",
)

Folder = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        help="Folder of a server that runs on this machine: address and token are read there.",
    ),
]
Server = Annotated[str | None, typer.Option(help="Address of a server elsewhere.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(help="File with the operator's token, unless FEDBOARD_OPERATOR_TOKEN holds it."),
]
Key = Annotated[
    Path | None,
    typer.Option(
        "--key",
        help="Private key that signed the devices' bundle; by default our own, "
        "runs/keys/signing.key. It stays on this machine.",
    ),
]
ForRounds = Annotated[
    int,
    typer.Option("--rounds", min=1, max=MOST_ROUNDS, help="Rounds that the certificate is for."),
]
ForDays = Annotated[
    float, typer.Option("--days", min=0.01, max=3660, help="Days until the certificate expires.")
]
WhoSees = Annotated[
    str | None,
    typer.Option(
        "--aggregation",
        help="Who can see one device's update: `helper` (the server and its helper together), "
        "`secagg` (too many devices in one hand) or `plain` (the server). By default as --config "
        "says, or helper.",
    ),
]
HelperKey = Annotated[
    str | None,
    typer.Option(
        "--helper-key",
        help="Public key of the helper, as its owner tells it: needed for a server elsewhere, "
        "which could name one of its own.",
    ),
]
Mechanism = Annotated[
    str | None,
    typer.Option(
        help="Noise on every sum of updates: `blt`, `tree` or `gaussian`. By default as --config "
        "says, or none: then nothing is claimed. `fedboard privacy plan` chooses the numbers."
    ),
]
Multiplier = Annotated[
    float | None,
    typer.Option(
        "--noise-multiplier",
        min=0.0,
        max=1e6,
        help="Standard deviation of each independent Gaussian / (clipping norm x rounding bound).",
    ),
]
Epsilon = Annotated[
    float | None,
    typer.Option(
        min=0.0, max=1e6, help="The budget at --delta: no round starts that could pass it."
    ),
]
Delta = Annotated[
    float | None, typer.Option(min=1e-300, max=0.5, help="By default as --config says, or 1e-10.")
]
NoiseRounds = Annotated[
    int | None,
    typer.Option("--noise-rounds", min=1, max=MOST_ROUNDS, help="Sums that are made at most."),
]
MostSums = Annotated[
    int | None,
    typer.Option(
        "--max-participations",
        min=1,
        max=MOST_ROUNDS,
        help="Sums with noise that one device is in at most.",
    ),
]
Restart = Annotated[
    int | None,
    typer.Option(min=0, max=MOST_ROUNDS, help="Of a tree: sums after which it begins anew."),
]
Compression = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=64,
        help="Values of an update / values that travel. By default as --config says, or 1.",
    ),
]
Turn = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=MOST_ROUNDS,
        help="Rounds that share one basis of what travels; the noise begins anew with the next. "
        "By default as --config says, or 0: all do.",
    ),
]
Name = Annotated[str, typer.Argument(help="Name of the task: a-z, 0-9, '.', '_' and '-'.")]
# by step of the funnel, a word that keeps the table within 80 columns
SHORT = {
    "checked_in": "asked",
    "assigned": "given",
    "downloaded": "loaded",
    "uploaded": "sent",
    "counted": "counted",
}
# columns of an evaluation: of all words, and of the median device and the middle half
SCORED = ("top-1/3 %", "devices' top-1 %")


@app.command("create")
def task_create(
    name: Name,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Bundle whose checkpoint and plan a training task starts from."),
    ] = None,
    evaluates: Annotated[
        str | None,
        typer.Option(
            help="Training task whose checkpoints are scored on the devices' held-back messages."
        ),
    ] = None,
    compares_releases: Annotated[
        str | None,
        typer.Option(
            help="Training task whose devices score the release they run and the one before, on "
            "held-back messages: staged releases that do worse stop by it."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file with the task's settings, as for `fedboard serve`."),
    ] = None,
    population: Annotated[
        str | None,
        typer.Option(
            help="Devices it is for: those that check in with this name; by default as --config "
            "says, or `default`."
        ),
    ] = None,
    aggregation: WhoSees = None,
    helper_key: HelperKey = None,
    mechanism: Mechanism = None,
    noise_multiplier: Multiplier = None,
    epsilon: Epsilon = None,
    delta: Delta = None,
    noise_rounds: NoiseRounds = None,
    max_participations: MostSums = None,
    restart: Restart = None,
    compression: Compression = None,
    turn: Turn = None,
    dir: Folder = None,
    server: Server = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    trust: Trust = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Start a training task from a bundle, or beside a training task one that scores. A training
    task is certified at once if the bundle's signing key is on this machine.
    """
    from device_runtime import signing, weights
    from device_runtime.config import from_toml
    from device_runtime.wire import DAY_S, Kind
    from fedboard.certificates import certified, consent
    from fedboard.operator import connect
    from fedboard.run import kept_key, open_bundle
    from server.settings import ServerSettings
    from server.task import TaskSettings, for_bundle, in_language_of, settings_of

    if sum(each is not None for each in (bundle, evaluates, compares_releases)) != 1:
        raise RunError(
            "--bundle, --evaluates, --compares-releases",
            "expected one of them",
            "give a bundle to train from, a training task to evaluate, or one whose devices "
            "compare releases",
        )
    settings = settings_of(from_toml(ServerSettings, config)) if config else TaskSettings()
    given_noise = {
        "mechanism": mechanism,
        "multiplier": noise_multiplier,
        "epsilon": epsilon,
        "delta": delta,
        "rounds": noise_rounds,
        "participations": max_participations,
        "restart": restart,
    }
    if bundle is None:  # a task that scores adds none
        settings = replace(settings, noise=None, compression=1, turn=0)
    settings = replace(
        settings,
        name=name,
        aggregation=named_aggregation(aggregation) or settings.aggregation,
        helper=helper_key or settings.helper,
        noise=noise_of(settings.noise, given_noise),
        compression=settings.compression if compression is None else compression,
        turn=settings.turn if turn is None else turn,
    )
    opened = open_bundle(bundle, trust) if bundle else None
    signer = kept_key(key) if opened else None
    is_makers = bool(opened and signer and signing.public_hex(signer) == opened.signer)
    if key is not None and opened and not is_makers:
        raise RunError(key, "is not the key that signed the bundle", "name the maker's key")
    with connect(dir, server, token_file, insecure) as operator:
        if opened:
            given = consent(operator, settings.aggregation, settings.helper, dir is not None)
            settings = replace(
                for_bundle(in_language_of(settings, opened.manifest), opened.plan),
                helper=given.helper,
                is_beside=given.is_beside,
                kind=Kind.TRAINING,
                evaluates="",
                population=population or settings.population,
                checkpoint=operator.put_checkpoint(weights.to_bytes(opened.checkpoint)),
            )
        else:
            kind = Kind.EVALUATION if evaluates else Kind.RELEASES
            scored = evaluates or compares_releases or ""
            settings = replace(settings, kind=kind, evaluates=scored)
        report = operator.create(settings)
        if opened and signer is not None and is_makers:
            given = replace(given, asked=settings)
            report, terms = certified(operator, name, signer, ROUNDS, DAY_S * DAYS, given)
            say_signed(terms, as_json)
    say(report, as_json)


@app.command("certify")
def task_certify(
    name: Name,
    rounds: ForRounds = ROUNDS,
    days: ForDays = DAYS,
    aggregation: WhoSees = None,
    helper_key: HelperKey = None,
    key: Key = None,
    dir: Folder = None,
    server: Server = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Certify the key with which a server signs a training task's checkpoints, and who can see its
    devices' updates: devices train from nothing else. Again before the rounds or the days are over.
    """
    from device_runtime.terms import Aggregation
    from device_runtime.wire import DAY_S
    from fedboard.certificates import certified, consent
    from fedboard.operator import connect
    from fedboard.run import KEYS, kept_key

    signer = kept_key(key)
    if signer is None:
        raise RunError(
            key or KEYS / "signing.key",
            "there is no such key",
            "give the private key that signed the devices' bundle with --key FILE",
        )
    with connect(dir, server, token_file, insecure) as operator:
        asked = named_aggregation(aggregation) or Aggregation.HELPER
        given = consent(operator, asked, helper_key or "", dir is not None)
        report, terms = certified(operator, name, signer, rounds, DAY_S * days, given)
    say_signed(terms, as_json)
    say(report, as_json)


@app.command("list")
def task_list(
    dir: Folder = None,
    server: Server = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Every task with its state, round and checkpoint."""
    from fedboard.operator import connect
    from server.task import State

    with connect(dir, server, token_file, insecure) as operator:
        reports = operator.tasks()
    if as_json:
        return emit([asdict(task) for task in reports])
    rows = [
        [
            task.name,
            task.kind,
            f"{task.aggregation}" if task.seen else "",
            task.state,
            str(task.committed),
            f"{task.round} {task.phase}",
            f"{task.counted}/{task.goal}",
            task.checkpoint[:8],
        ]
        for task in reports
    ]
    console.table(
        "tasks",
        ["task", "kind", "sums", "state", "committed", "round", "counted", "checkpoint"],
        rows,
    )
    for task in reports:
        if task.exposed:
            console.say(f"{task.name}: {task.exposed}", style="red")
        if task.over:
            console.say(f"{task.name}: no further round starts: {task.over}", style="red")
        elif task.budget is not None:
            console.say(f"{task.name}: {_budget(task)}")
        if task.waits:
            console.say(f"{task.name}: {task.waits}")
        if task.counts:
            console.say(f"{task.name}: {task.counts}")
        if task.refused and task.state is State.RUNNING:
            console.say(f"{task.name}: {task.refused}")
        if task.certify:
            console.say(f"{task.name}: {task.certify}")


@app.command("show")
def task_show(
    name: Name,
    rounds: Annotated[
        int, typer.Option(min=1, max=MOST_ROUNDS, help="How many of its newest rounds.")
    ] = 10,
    dir: Folder = None,
    server: Server = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """One task and the funnel of its newest rounds."""
    from device_runtime import causes
    from device_runtime.wire import FUNNEL, Kind, lost
    from fedboard.operator import connect

    with connect(dir, server, token_file, insecure) as operator:
        task, reports = operator.task(name), operator.rounds(name, rounds).rounds
    if as_json:
        return emit({**asdict(task), "rounds": [asdict(report) for report in reports]})
    console.say(
        f"{task.name}: {task.kind} task of population {task.population}, {task.state}; "
        f"{task.committed} rounds committed"
    )
    console.say(f"checkpoint {task.checkpoint} of round {task.checkpoint_round}")
    if task.privacy:
        console.say(f"privacy: {task.privacy}")
    if task.over:
        console.say(f"no further round starts: {task.over}", style="red")
    elif task.budget is not None:
        console.say(_budget(task))
    _say_seen(task)
    _say_signer(task)
    if task.refused:
        console.say(f"{task.name}: {task.refused}")
    if task.stopped:
        console.say(task.stopped)
    scored = task.kind is Kind.EVALUATION
    rows = [
        [
            str(report.round),
            report.phase,
            *(str(getattr(report, step)) for step in FUNNEL),
            *((_score(report), _spread(report)) if scored else ()),
            *((_epsilon(report),) if task.budget is not None else ()),
        ]
        for report in reports
    ]
    console.table(
        f"rounds of {name}: devices by step ({', '.join(map(causes.label, FUNNEL))})",
        ["round", "phase", *(SHORT[step] for step in FUNNEL), *(SCORED if scored else ())]
        + ["epsilon"] * (task.budget is not None),
        rows,
    )
    fallen = lost(reports, causes.Step.REFUSED, causes.Step.DROPPED)
    if fallen:
        said = ", ".join(f"{count} {causes.label(cause)}" for cause, count in fallen)
        console.say(f"refused or dropped: {said}")


@app.command("pause")
def task_pause(
    name: Name,
    dir: Folder = None,
    server: Server = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Admit no device any more; those at work may still report. `resume` undoes it."""
    from fedboard.operator import connect

    with connect(dir, server, token_file, insecure) as operator:
        say(operator.pause(name), as_json)


@app.command("resume")
def task_resume(
    name: Name,
    dir: Folder = None,
    server: Server = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Go on with a paused task."""
    from fedboard.operator import connect

    with connect(dir, server, token_file, insecure) as operator:
        say(operator.resume(name), as_json)


@app.command("rollback")
def task_rollback(
    name: Name,
    to: Annotated[
        str, typer.Option(help="Checkpoint to go on from: the round that made it, or its SHA-256.")
    ],
    dir: Folder = None,
    server: Server = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """End the open round without a result and go on from an earlier checkpoint. Nothing is deleted:
    rounds are numbered on.
    """
    from fedboard.operator import connect

    with connect(dir, server, token_file, insecure) as operator:
        say(operator.roll_back(name, to), as_json)


@app.command("checkpoint")
def task_checkpoint(
    name: Name,
    out: Annotated[Path, typer.Option(help="File to write, such as weights.safetensors.")],
    round: Annotated[
        int | None,
        typer.Option(
            min=0, max=2**31 - 1, help="Round that made it; by default the task's current one."
        ),
    ] = None,
    dir: Folder = None,
    server: Server = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Fetch the checkpoint of a training task: float32 weights, whole or not at all."""
    from device_runtime import durable, weights
    from fedboard.operator import connect
    from fedboard.run import is_checkpoint, require_result_file, writable

    require_result_file(out, "a checkpoint", is_checkpoint)
    with connect(dir, server, token_file, insecure) as operator:
        at, sha = operator.checkpoint_of(name, round)
        data = operator.checkpoint(name, sha)
    kept = weights.from_bytes(data, f"checkpoint of {name}")
    with writable(out) as place:
        durable.share(place, data)
    if as_json:
        return emit({"out": str(out), "task": name, "round": at, "sha256": sha, "bytes": len(data)})
    values = sum(array.size for array in kept.weights.values())
    console.say(f"{out}: {values:,} weights of round {at} of {name}, {len(data):,} bytes, {sha}")


def codes(
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 1,
    days: Annotated[float, typer.Option(help="Days until they expire.")] = 7.0,
    dir: Folder = None,
    server: Server = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Make enrolment codes, one a line. Each lets one device in; the server keeps only their
    hashes, so this is the only time they are shown.
    """
    from device_runtime.wire import DAY_S
    from fedboard.operator import connect

    with connect(dir, server, token_file, insecure) as operator:
        codes = operator.codes(count, DAY_S * days)
    if as_json:
        return emit(asdict(codes))
    typer.echo("\n".join(codes.codes))
    until = datetime.fromtimestamp(codes.expires_at, UTC)
    console.note(
        f"good until {until:%Y-%m-%d %H:%M} UTC; on each device: fedboard device enrol HOME "
        "--server URL --code-file FILE"
    )


def noise_of(before: "Noise | None", given: Mapping[str, object]) -> "Noise | None":
    """The noise of --config with what was given of its numbers; None if neither names any. Raises
    RunError for a number that is missing, ConfigError for one out of its bounds.
    """
    from device_runtime.config import from_table, read_json, to_json
    from device_runtime.noise import Noise

    named = {name: value for name, value in given.items() if value is not None}
    if not named:
        return before
    kept = {"mechanism": "blt", "delta": DELTA}
    if before is not None:
        kept = read_json(to_json(before), "noise")
        if named.keys() & {"mechanism", "rounds", "participations"}:
            kept |= {"decays": [], "scales": []}  # they were the best for other numbers
    table: dict[str, object] = {**kept, **named}
    for name, option in NOISE_OPTIONS.items():
        if name not in table:
            raise RunError(
                option,
                "expected beside the other numbers of the noise, found none",
                "give it: `fedboard privacy plan` chooses them",
            )
    return from_table(Noise, table, "noise")


def named_aggregation(word: str | None) -> "Aggregation | None":
    """What --aggregation says; None if it was not given. Raises RunError for a word that is
    none.
    """
    from device_runtime.terms import Aggregation

    if word is None:
        return None
    if word not in tuple(Aggregation):
        expected = ", ".join(Aggregation)
        raise RunError("--aggregation", f"expected one of {expected}, found {word!r}", "correct it")
    return Aggregation(word)


def _score(report: "RoundReport") -> str:
    """Top-1 and top-3 of an evaluation's round in per cent; empty before it is over."""
    sums = report.scores
    if sums is None:
        return ""
    return f"{100 * sums.top1 / sums.targets:.1f}/{100 * sums.top3 / sums.targets:.1f}"


def _spread(report: "RoundReport") -> str:
    """Top-1 of the median device and of those a quarter from either end; empty without any."""
    from device_runtime.scores import quartiles

    if report.scores is None or not sum(report.spread):
        return ""
    lower, median, upper = (100 * share for share in quartiles(report.spread))
    return f"{median:.1f} ({lower:.1f}-{upper:.1f})"


def _epsilon(report: "RoundReport") -> str:
    """What was spent once a round's sum was made; empty where none was."""
    return "" if report.epsilon is None else rounded_up(report.epsilon)


def _budget(task: "TaskReport") -> str:
    """What a task with noise has spent, and what there is room for."""
    sums = f"{task.sums:,} sum" + "s" * (task.sums != 1)
    return (
        f"epsilon {rounded_up(task.epsilon or 0.0)} of {task.budget:g} at delta {task.delta:g} is "
        f"spent after {sums}; at worst there is room for {task.left:,} more"
    )


def say(task: "TaskReport", as_json: bool) -> None:
    """A task that was made or changed, in short."""
    if as_json:
        return emit(asdict(task))
    console.say(
        f"{task.name}: {task.kind} task, {task.state}, round {task.round} from checkpoint "
        f"{task.checkpoint[:12]} of round {task.checkpoint_round}"
    )
    _say_seen(task)
    _say_signer(task)
    if task.refused:
        console.say(f"{task.name}: {task.refused}")


def _say_seen(task: "TaskReport") -> None:
    """Who can see a device's update, what of that is bad, what the newest round waits for, and
    who counts as a device.
    """
    if task.seen:
        console.say(task.seen)
    if task.exposed:
        console.say(task.exposed, style="red")
    if task.waits:
        console.say(task.waits)
    if task.counts:
        console.say(task.counts)


def say_signed(terms: "Terms", as_json: bool) -> None:
    """Whose key is in what was signed just now, and what bounds what sums give away."""
    from server.budget import described

    if as_json:
        return
    if terms.helper:
        console.say(f"signed: its sums are opened by the helper with the key {terms.helper}")
    if terms.noise is not None:
        console.say(f"signed: {described(terms.noise)}")
    if terms.compression != 1:
        console.say(f"signed: one value of {terms.compression} of an update travels")
    if terms.turn:
        console.say(f"signed: what travels has another basis every {terms.turn:,} rounds")


def _say_signer(task: "TaskReport") -> None:
    """Who certified a task's round key, until when, and what must be done about it."""
    if task.signer:
        until = datetime.fromtimestamp(task.expires_at, UTC)
        console.say(
            f"its round key is certified by {task.signer}, for rounds up to {task.last_round} and "
            f"until {until:%Y-%m-%d %H:%M} UTC"
        )
    if task.certify:
        console.say(f"{task.name}: {task.certify}")
