"""The demo: the stages one after the other, with a real server and devices, in plain words."""

import contextlib
import itertools
import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from device_runtime import bounds, calls, config, durable, interpreter
from device_runtime import bundle as bundles
from device_runtime import folder as folders
from device_runtime.bounds import Within
from device_runtime.causes import Step, label
from device_runtime.errors import RunError
from device_runtime.limits import OwnLimits
from device_runtime.shown import command
from device_runtime.terms import LEAST_COUNT
from device_runtime.transport import http, persistent
from device_runtime.wire import DAY_S, Phase, Plan, RoundReports, lost
from fedboard import console, devices, publishing, release, score
from fedboard.__main__ import program
from fedboard.certificates import certified, consent
from fedboard.export import Asked, export
from fedboard.operator import connect
from fedboard.report import build
from fedboard.report_material import Upgrade
from fedboard.run import (
    DEMO,
    SIMULATED,
    Run,
    Settings,
    folder_kind,
    require_free,
    signing_key,
    trusted_keys,
)
from fedboard.train import How, train
from fleet.nights import Role, role_counts
from model import child_process, corpora
from model.corpus import SPLITS, Corpus, Users, sample
from model.recipe import Recipe
from server.contract import ADDRESS
from server.eligibility import Policy
from server.rounds import Rules
from server.settings import ServerSettings

# what was typed before, and the letters of the next word
SUGGESTIONS = (
    ("", ""),
    ("i will see you", ""),
    ("how are", ""),
    ("i do not", ""),
    ("thank", ""),
    ("what is your", ""),
    ("see you", "to"),
    ("have a", "go"),
)
POPULATION = "default"
SHOWN = "the demo shows what its devices taught, whatever that is worth"
DEVICE_RATE = 0.1  # learning rate of local training on devices
START_S = 60.0  # for the server to listen
OPENED_S = 60.0  # for the helper to take the masks off a sum
LOOK_S = 0.3  # from one look at the rounds to the next
TITLES = {
    "before": "network, simulated rounds",
    "after": "network, after device rounds",
    "shipped": "int8 file as shipped",
}


@dataclass(frozen=True)
class Demo:
    """What can be changed."""

    out: Path = Path("runs/demo")
    data: str = "chitchat"
    size: str = "small"
    vocabulary: int = 5000
    rounds: int = 120
    cohort: int = 20
    device_rounds: Annotated[int, Within(1, 10_000)] = 6
    devices: Annotated[int, Within(5, 10_000)] = 24
    processes: Annotated[int, Within(1, 1000)] = 2
    min_examples: Annotated[int, Within(1, 1_000_000)] = 40
    seed: int = 0
    open_worker: bool = False  # as `fedboard train` has it

    def __post_init__(self) -> None:
        """Raises ConfigError for a number no demo could be run with; the recipe has the others'."""
        bounds.check(self)


@dataclass
class _Clock:
    """Seconds each stage took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, number: int, name: str, why: str) -> Iterator[None]:
        console.heading(f"{number}. {name}")
        console.say(why)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
        console.say(f"{self.seconds[name]:.0f} s", style="dim")


def run(demo: Demo) -> Run:
    """All stages; returns the run. An interrupted or earlier demo in the folder is replaced, and
    files that are not a demo's stay.

    Raises RunError, before anything is written, for a folder that holds something else.
    """
    require_free(demo.out, replace=True, kind=DEMO)
    with folders.writing(demo.out, folder_kind(DEMO)):
        return _run(demo)


def _run(demo: Demo) -> Run:
    clock = _Clock()
    recipe = Recipe(
        size=demo.size,
        vocabulary=demo.vocabulary,
        rounds=demo.rounds,
        cohort=demo.cohort,
        seed=demo.seed,
        evaluate_every=max(1, demo.rounds // 10),
        plan=Plan(learning_rate=0.5, max_rows=64),
    )
    with clock.stage(
        1,
        "Corpus",
        "Every sender is a client: their messages stay together, and test users are never trained "
        "on.",
    ):
        corpus = corpora.load(demo.data)
        # too few users show now, not after training
        devices.choose(corpus.train, demo.devices, demo.min_examples, demo.seed)
        for name in SPLITS:
            split = corpus.split(name)
            console.say(
                f"  {name}: {len(split):,} users, "
                f"{sum(map(len, sample(split, corpus.most).values())):,} messages"
            )
    with clock.stage(
        2,
        "Federated training, simulated",
        f"{demo.rounds} rounds in TensorFlow Federated: {demo.cohort} clients a round train on "
        "their own messages, only their changes are averaged.",
    ):
        how = How(overwrite=True, kind=DEMO, open_worker=demo.open_worker)
        trained = train(Settings(demo.data, recipe=recipe), demo.out, how, corpus)
    with clock.stage(
        3,
        "Bundle for phones",
        "The network becomes two TFLite files: one that trains on the phone, one (int8) that "
        "predicts. Signed.",
    ):
        asked = Asked(None, None, None, DEVICE_RATE, OwnLimits().clipping_norm, release=1)
        _, first = export(trained.path, trained.path / SIMULATED, asked, corpus)
    with contextlib.ExitStack() as stack:
        with clock.stage(
            4,
            "Real rounds with devices",
            f"A server on this machine, and {demo.devices} devices in {demo.processes} processes "
            "that cannot import TensorFlow. Each holds the "
            "encrypted typing log of one train user. Only devices that charge, are on WiFi and "
            "idle may train. What they learn leaves masked, never as text: a helper beside the "
            "server takes the masks off the sum of a round, and of nothing less.",
        ):
            served = stack.enter_context(_serving(demo, trained, first, corpus.train))
            measured = _rounds_with_devices(demo, trained, served)
        with clock.stage(
            5,
            "The better keyboard",
            "What the last round learnt is put into the file that the devices have: a release, "
            "made without TensorFlow, signed and published. One device goes to it.",
        ):
            last = trained.bundle
            manifest, upgraded = _release(demo, trained, served, corpus)
            durable.share(
                trained.path / "suggestions.json", json.dumps(_suggestions(first, last)).encode()
            )
    with clock.stage(
        6,
        "Evaluation",
        "Next-word accuracy on test users nobody trained on, by protocol nwp-v2, beside n-gram "
        "models trained centrally.",
    ):
        scored = _scored(demo, trained, last)
    verdict = _verdict(scored, demo)
    sizes = {name: file.bytes for name, file in manifest.files.items()}
    summary = {
        "seconds": clock.seconds,
        "sizes": sizes,
        "seed": demo.seed,
        "devices": demo.devices,
        "processes": demo.processes,
        "verdict": verdict,
        "upgrade": asdict(upgraded),
    }
    durable.share(trained.path / "summary.json", json.dumps({**summary, **measured}).encode())
    path = build(trained)
    targets = scored["after"].summary.targets
    console.say("")
    console.table(
        f"{demo.data}: {targets:,} words of test users nobody trained on",
        score.COLUMNS,
        [score.row(row) for row in scored.values()],
    )
    console.say(verdict)
    console.heading(f"Report: {path}")
    scores = ("--data", demo.data, "--predictions", "predictions.jsonl")
    console.say(
        "Try next:",
        f"  {command('predict', last, 'i will see you')}",
        f"  {command('evaluate', last, *scores)}",
        f"  {command('train', '--out', 'runs/longer', '--rounds', 600)}",
    )
    return trained


@dataclass(frozen=True)
class _Served:
    """The demo's server, and the devices it has."""

    process: subprocess.Popen
    folder: Path
    url: str
    bundle: Path  # that devices and task start from
    homes: list[Path]
    task: str


@contextmanager
def _serving(demo: Demo, run: Run, bundle: Path, users: Users) -> Iterator[_Served]:
    """The server, while the block runs, with a task that devices may work for."""
    trusted = trusted_keys(None)
    counts = role_counts(demo.devices)
    goal = counts[Role.FINISHES] + counts[Role.UNPLUGGED]
    rules = Rules(
        report_goal=goal,
        # every able device is waited for, so the same seed always counts the same devices
        over_selection=1.0,
        min_reports=max(1, counts[Role.FINISHES] // 2),
        rounds=demo.device_rounds,
        # who asks after the window takes a place that nobody else wants: there is one for each
        selection_s=2,
        claim_s=300,
        reporting_s=3600,  # of the devices' clocks: a batch takes a minute on them
        retry_s=0.3,
    )
    settings = ServerSettings(
        seed=demo.seed,
        rules=rules,
        # all able devices are in every round
        policy=Policy(min_examples=min(10, demo.min_examples), min_separation=1),
        least_count=rules.fewest,
    )
    folder = run.path / "server"
    folder.mkdir(exist_ok=True)
    durable.share(run.path / "server.toml", config.to_toml(settings).encode())
    draw = devices.Draw(demo.devices, demo.device_rounds, demo.min_examples, demo.seed)
    homes = devices.create_population(run.path / "devices", bundle, trusted, users, draw)
    server = child_process.start(
        program(
            "serve",
            "--dir",
            folder,
            "--bundle",
            bundle,
            "--config",
            run.path / "server.toml",
            "--port",
            "0",
        ),
        run.path / "server.log",
    )
    try:
        url = _address(server, folder, run.path / "server.log")
        with connect(folder, None) as operator:  # in this process: a server never has the key
            given = consent(operator, settings.aggregation, settings.helper, is_here=True)
            key = signing_key(None)
            # on a busy machine some rounds come to nothing, and the others need a certificate too
            rounds = 50 * demo.device_rounds
            certified(operator, settings.name, key, rounds, DAY_S, given)
        console.say(
            f"a sum of {rules.fewest} devices is opened here, where {LEAST_COUNT} hide each other "
            "better; and whoever runs server and helper, as this demo does, can see every update",
            style="red",
        )
        console.say(
            f"server at {url}; {goal} of {len(homes)} devices are able to join each round, the "
            "others are refused for a cause"
        )
        yield _Served(server, folder, url, bundle, homes, settings.name)
    finally:
        child_process.end(server)


def _rounds_with_devices(demo: Demo, run: Run, served: _Served) -> dict:
    """Let the devices take part in every round, and keep what came of it.

    The last checkpoint and the rounds' reports go to the run's folder. Returns what was measured on
    the way.
    """
    homes, url = served.homes, served.url
    children: list[subprocess.Popen] = []
    try:
        hosts = [homes[i :: demo.processes] for i in range(demo.processes)]
        # each process on another interpreter, unless whoever runs the demo has chosen one
        chosen = interpreter.CHOICE in os.environ
        runtimes = [interpreter.chosen()] if chosen else interpreter.installed()
        choices = itertools.cycle(runtimes or [interpreter.chosen()])
        for i, own in enumerate(hosts):
            words = program(
                "device",
                "run",
                *own,
                "--server",
                url,
                "--rounds",
                demo.device_rounds,
                "--outcomes",
                run.path / "outcomes.jsonl",
                "--json",
            )
            environment = {"OMP_NUM_THREADS": "1", interpreter.CHOICE: next(choices).name}
            log = run.path / f"devices-{i}.log"
            children.append(child_process.start(words, log, environment))
        reports = _watch(demo, url, served.process, children, run)
        memory = {"server": child_process.peak_memory_mb(served.process.pid)}
    finally:
        for child in children:
            child_process.end(child)
    interpreters: Counter[str] = Counter()
    for i, own in enumerate(hosts):
        totals = totals_of(run.path / f"devices-{i}.log")
        interpreters[totals["interpreter"]] += len(own)
        name = f"device process {i + 1} ({len(own)} devices, {totals['interpreter']})"
        memory[name] = totals["peak_memory_mb"]
    durable.share(run.path / "rounds.json", config.to_json(reports))
    with connect(served.folder, None) as operator:
        _, sha = operator.checkpoint_of(served.task)
        durable.share(run.checkpoints / "after.safetensors", operator.checkpoint(served.task, sha))
    counted = sum(round.counted for round in reports.rounds)
    uploaded = sum(round.uploaded for round in reports.rounds)
    per_upload = sum(round.bytes_up for round in reports.rounds) // max(uploaded, 1)
    fallen = lost(reports.rounds, Step.REFUSED, Step.DROPPED)
    console.say(
        f"{counted} updates counted, {per_upload:,} bytes each; refused or dropped: "
        f"{', '.join(f'{number} {label(cause)}' for cause, number in fallen)}"
    )
    return {
        "memory_mb": {name: round(value, 1) for name, value in memory.items()},
        "bytes_per_upload": per_upload,
        "interpreters": dict(interpreters),
    }


def _release(
    demo: Demo, run: Run, served: _Served, corpus: Corpus
) -> tuple[bundles.Manifest, Upgrade]:
    """Publish the bundle that devices started with, then one of what they taught it, and let one
    device go from the one to the other.
    """
    private, trusted = signing_key(None), trusted_keys(None)
    whole = publishing.share_of("100%")
    asked = release.Asked(served.task, data=demo.data, even_if_worse=SHOWN)
    with connect(served.folder, None) as operator:
        before = bundles.open_verified(served.bundle, trusted)
        publishing.publish(operator, before, private, whole, POPULATION)
        new = release.make(operator, run.bundle, asked, corpus)
        console.say(*new.notes)
        after = bundles.open_verified(run.bundle, trusted)
        report = publishing.publish(operator, after, private, whole, POPULATION)
    log = run.path / "upgrade.log"
    words = program("device", "upgrade", served.homes[0], "--server", served.url, "--json")
    device = child_process.start(words, log)
    try:
        device.wait()
    finally:
        child_process.end(device)
    if device.returncode or not (last := totals_of(log)["upgraded"]):
        raise RunError("device upgrade", _last_line(log), "see upgrade.log in the run")
    upgraded = Upgrade(
        before.manifest.release,
        after.manifest.release,
        last["how"],
        last["bytes_down"],
        report.bytes,
        round(last["seconds"], 2),
    )
    console.say(
        f"release {upgraded.release}: {served.homes[0].name} went there from release "
        f"{upgraded.before} by {upgraded.bytes_down:,} bytes ({upgraded.how}) in "
        f"{upgraded.seconds:.1f} s; a whole bundle has {upgraded.bundle_bytes:,}"
    )
    return after.manifest, upgraded


def _watch(
    demo: Demo, url: str, server: subprocess.Popen, hosts: list[subprocess.Popen], run: Run
) -> RoundReports:
    """Wait until every device process is done and no sum is masked any more, showing rounds as they
    are committed.
    """
    unopened = 0
    with http(url) as send, console.progress("device rounds", demo.device_rounds) as advance:
        while True:
            running = [host for host in hosts if host.poll() is None]
            reports = calls.all_rounds(persistent(send))
            committed = [round for round in reports.rounds if round.phase is Phase.COMMITTED]
            last = committed[-1] if committed else None
            note = (
                f"round {last.round}: {last.checked_in} checked in, {last.assigned} assigned, "
                f"{last.counted} counted"
                if last
                else ""
            )
            advance(len(committed), note)
            for i, host in enumerate(hosts):
                if host.poll() not in (None, 0):
                    raise RunError(
                        f"device process {i + 1}",
                        f"ended with code {host.poll()}: "
                        f"{_last_line(run.path / f'devices-{i}.log')}",
                        "see that log",
                    )
            if server.poll() is not None:
                raise RunError(
                    "server",
                    f"ended with code {server.poll()}: {_last_line(run.path / 'server.log')}",
                    "see server.log in the run",
                )
            if not running:
                if not reports.rounds or reports.rounds[-1].phase is not Phase.UNMASKING:
                    return reports
                unopened += 1
                if unopened > OPENED_S / LOOK_S:
                    raise RunError(
                        "server",
                        f"the sum of round {reports.rounds[-1].round} was not opened",
                        "see server.log in the run, and helper.log in its server/helper",
                    )
            time.sleep(LOOK_S)


def _scored(demo: Demo, run: Run, bundle: Path) -> dict[str, score.Scored]:
    """Every system's accuracy, two processes at a time: `fedboard evaluate` on each."""
    targets = {
        **{name: name for name in score.BASELINES},
        "before": run.best,
        "after": run.checkpoints / "after.safetensors",
        "shipped": bundle,
    }
    names = list(targets)
    shares = [names[0::2], names[1::2]]
    run.evaluations.mkdir(exist_ok=True)
    children = []
    try:
        for i, share in enumerate(shares):
            titles = itertools.chain.from_iterable(
                ("--name", TITLES.get(name, score.TITLES.get(name, name))) for name in share
            )
            files = itertools.chain.from_iterable(
                ("--out", run.evaluations / f"{name}.json") for name in share
            )
            words = program(
                "evaluate",
                *(targets[name] for name in share),
                "--data",
                demo.data,
                "--tokenizer",
                run.tokenizer,
                *titles,
                *files,
            )
            children.append(
                child_process.start(
                    [*words, "--seed", str(demo.seed)],
                    run.path / f"evaluate-{i}.log",
                    {"OMP_NUM_THREADS": "1"},
                )
            )
        with console.progress("systems scored", len(names)) as advance:
            while True:
                done = sum((run.evaluations / f"{name}.json").is_file() for name in names)
                advance(done, "")
                for i, child in enumerate(children):
                    if child.poll() not in (None, 0):
                        raise RunError(
                            "evaluation",
                            _last_line(run.path / f"evaluate-{i}.log"),
                            "see that log in the run",
                        )
                if all(child.poll() == 0 for child in children):
                    break
                time.sleep(0.5)
    finally:
        for child in children:
            child_process.end(child)
    return {name: score.read(run.evaluations / f"{name}.json") for name in names}


def _suggestions(first: Path, last: Path) -> list[dict]:
    """What the strip shows before and after the device rounds."""
    from device_runtime.predictor import Predictor

    before, after = (
        Predictor(bundles.open_verified(path, trusted_keys(None))) for path in (first, last)
    )
    return [
        {
            "context": context,
            "prefix": prefix,
            "before": [[s.word, s.probability] for s in before.suggest(context, prefix)],
            "after": [[s.word, s.probability] for s in after.suggest(context, prefix)],
        }
        for context, prefix in SUGGESTIONS
    ]


def _verdict(scored: dict[str, score.Scored], demo: Demo) -> str:
    """Whether the network beats the bigram on top-1, by how much, and if not, why."""
    network, bigram = scored["after"].summary.top1, scored["kn2"].summary.top1
    apart = 100 * abs(network - bigram)
    if network > bigram:
        return f"The network's top-1 is {apart:.1f} points above the Kneser-Ney bigram's."
    return (
        f"The network's top-1 is {apart:.1f} points below the Kneser-Ney bigram's: {demo.rounds} "
        f"rounds of {demo.cohort} clients are too few for "
        f"it to catch up with counts over all the text at once; try more --rounds."
    )


def _address(server: subprocess.Popen, folder: Path, log: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        if (folder / ADDRESS).is_file():
            return (folder / ADDRESS).read_text().strip()
        time.sleep(0.1)
    raise RunError("server", f"did not start: {_last_line(log)}", "see server.log in the run")


def totals_of(log: Path) -> dict[str, Any]:
    """What `fedboard device run --json` said last: an interpreter may have written before it."""
    return json.loads(_last_line(log))


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"
