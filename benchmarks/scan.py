"""Scan: is anything that was typed in what leaves a device, or in a file of a server or a helper?

    python -m benchmarks.scan [BUNDLE] --out FOLDER [--devices 5] [--rounds 2]
        [--noise 1.0 | --plain]

The whole path runs: devices whose typing logs hold marked messages train and upload by HTTP to a
server process with a helper process beside it. Every request of a device is kept as it is sent, and
every file of server and helper as often as it changes: databases, slots, logs. In all of it are
looked for (`traces.py`):

    marked words       UTF-8, UTF-16, escapes, per cent, hexadecimal, base64
    their ids          one after the other, in 8 to 64 bits of either byte order, varints, text
    updates            values of a delta, in 16, 32 and 64 bits; codes, by their correlation with
                       bytes, halves of bytes and the digits of masked words
    secrets            a device's key and its log's key everywhere, tokens outside of their files

also in what zlib and gzip packed. A leak of each kind is planted beside what was seen, and must be
found: a scan that misses one says so. Exit code 1 if it does, or if anything else is found, as with
--plain, where the server sees each update.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import traces
from benchmarks.traces import Find, Mark, Seen
from device_runtime import (
    bundle,
    chain,
    config,
    drive,
    durable,
    encoding,
    packing,
    signing,
    update,
    weights,
)
from device_runtime.bundle import Bundle
from device_runtime.errors import ConfigError, FedboardError, RunError, UpdateError
from device_runtime.finetune import finetune
from device_runtime.helper_wire import TOKEN_FILE as HELPER_TOKEN_FILE
from device_runtime.home import DeviceConfig, Home
from device_runtime.limits import OwnLimits
from device_runtime.noise import Mechanism, Noise
from device_runtime.terms import Aggregation, Terms
from device_runtime.text import FIRST_WORD, tokenise
from device_runtime.transport import Reply, Send, http
from device_runtime.turn import FineTuned, Outcome, Status, Train
from device_runtime.update import Form
from device_runtime.wire import Assignment, Phase
from fedboard import console
from fedboard.__main__ import program
from fedboard.operator import connect
from fedboard.run import open_bundle
from model import child_process
from server.contract import ADDRESS, TOKEN_FILE
from server.eligibility import Policy
from server.rounds import Rules
from server.settings import ServerSettings

ABLE = "0\tbattery_charged_on\n0\twifi\n0\tscreen_off\n"  # a trace of a phone at night
IDS = 8  # marked words one after the other that are in the vocabulary
TIMES = 12  # that each device typed its marked message
MESSAGES = 40  # of each
LOOK_S = 0.02  # from one look at the files to the next
START_S = 60.0
WINDOW = 65_536  # codes of each device that are correlated, at most
SERVER, HELPER, LOGS = "server", "server/helper", "logs"


@dataclass(frozen=True)
class Typed:
    """What one device typed that no other did."""

    device: int
    words: tuple[str, ...]  # that no vocabulary has
    known: tuple[str, ...]  # that the vocabulary has

    @property
    def message(self) -> str:
        """As it was typed."""
        return " ".join((*self.words, *self.known))


@dataclass
class Watch:
    """Everything that was sent, and every file as often as it changed."""

    requests: list[Seen] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    terms: list[Terms] = field(default_factory=list)
    deltas: list[NDArray[np.float32]] = field(default_factory=list)
    files: dict[bytes, Seen] = field(default_factory=dict)  # by what they hold
    _known: dict[Path, tuple[int, int, int]] = field(default_factory=dict)

    def sending(self, send: Send) -> Send:
        """The same way, each of whose requests is kept as it leaves."""

        def kept(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
            head = "".join(f"{name}: {value}\n" for name, value in headers.items())
            sent = f"{method} {path}\n{head}\n".encode() + bytes(body)
            self.requests.append(Seen(f"a device's {method} {path.partition('?')[0]}", sent))
            self.bodies.append(bytes(body))
            reply = send(method, path, body, headers)
            if path.startswith("/v1/check-in") and reply.status == 200:
                try:
                    given = config.from_json(Assignment, reply.body, "check-in")
                except ConfigError:  # no work
                    return reply
                self.terms.append(chain.terms_of(given))
            return reply

        return kept

    def training(self, graph: bytes, action: Train, may_continue: Callable[[], bool]) -> FineTuned:
        """The device's own training, of which the delta is kept."""
        tuned = finetune(graph, action, may_continue)
        self.deltas.append(weights.flatten(tuned.delta))
        return tuned

    def look(self, folder: Path) -> None:
        """Keep what files hold that have changed since the last look."""
        for path in (*(folder / SERVER).rglob("*"), *(folder / LOGS).rglob("*")):
            try:
                stat = path.stat()
                state = stat.st_mtime_ns, stat.st_size, stat.st_ino
                if not path.is_file() or self._known.get(path) == state:
                    continue
                data = path.read_bytes()
            except OSError:  # it is gone again
                continue
            self._known[path] = state
            self.files.setdefault(data, Seen(str(path.relative_to(folder)), data))

    @contextmanager
    def looking(self, folder: Path) -> Iterator[None]:
        """Look again and again while the block runs, and once more after it."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(LOOK_S):
                self.look(folder)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.look(folder)


@dataclass(frozen=True)
class Report:
    """What a scan has looked at, and found."""

    devices: int
    counted: int  # updates
    requests: int
    files: int  # as often as they changed
    megabytes: float
    forms: int  # that were looked for
    correlation: float  # the largest of codes with anything seen
    chance: float  # the same of codes that nobody sent
    finds: tuple[Find, ...]
    missed: tuple[str, ...]  # planted leaks that were not found


def scan(
    base: Bundle,
    folder: Path,
    devices: int,
    rounds: int,
    seed: int,
    is_plain: bool = False,
    multiplier: float = 0.0,
) -> Report:
    """Run the path, with noise of that multiplier if there is one, and look for what must not be
    seen. Raises RunError if it does not run.
    """
    key = signing.load_or_create(folder / "signing.key")
    first = folder / "first"
    bundle.write(first, base.manifest, base.content, key)
    typed = list(marked(base, devices, seed))
    homes = _homes(folder, first, signing.public_hex(key), typed, seed)
    watch, counted = Watch(), 0
    server = _serve(
        folder, first, _settings(devices, rounds, is_plain, multiplier), signing.public_hex(key)
    )
    try:
        with watch.looking(folder):
            _certify(folder, rounds, is_plain)
            with http((folder / SERVER / ADDRESS).read_text().strip()) as send:
                outcomes: list[Outcome] = []
                drive.run(
                    homes,
                    watch.sending(send),
                    rounds,
                    lambda home, outcome: outcomes.append(outcome),
                    watch.training,
                )
            counted = sum(each.status is Status.COUNTED for each in outcomes)
            _await_sums(folder)
    finally:
        child_process.end(server)
    watch.look(folder)  # the server's log says its last words
    if not counted or not watch.deltas:
        raise RunError(folder / LOGS, "no update was counted", "see server.log there")
    return judged(watch, typed, homes, folder, counted, seed, base)


def marked(base: Bundle, devices: int, seed: int) -> Iterator[Typed]:
    """What each device typed that no other did: words that nobody knows, and known ones in an order
    of its own.
    """
    rng = np.random.default_rng([seed, 1])
    known = [word for word in base.vocabulary.tokens[FIRST_WORD:] if tokenise(word) == [word]]
    for device in range(devices):
        letters = rng.integers(97, 123, (2, 12))
        strange = tuple("zq" + "".join(map(chr, each)) for each in letters)
        yield Typed(device, strange, tuple(rng.choice(known, IDS)))


def judged(
    watch: Watch,
    typed: Sequence[Typed],
    homes: Sequence[Home],
    folder: Path,
    counted: int,
    seed: int,
    base: Bundle,
) -> Report:
    """What is found in all that was seen, and whether planted leaks are."""
    rng = np.random.default_rng([seed, 2])
    marks = list(marks_of(base, typed))
    marks += [
        traces.of_values(f"delta {number}", delta, rng) for number, delta in enumerate(watch.deltas)
    ]
    secrets = list(_secrets(homes))
    tokens = [
        traces.of_secret(name, (folder / path).read_bytes().strip())
        for name, path in (
            ("the operator's token", f"{SERVER}/{TOKEN_FILE}"),
            ("the helper's token", f"{HELPER}/{HELPER_TOKEN_FILE}"),
        )
        if (folder / path).is_file()
    ]
    seen = [*watch.requests, *watch.files.values()]
    finds = traces.find(seen, [*marks, *secrets])
    finds += traces.find([each for each in seen if not _holds_token(each)], tokens)
    by = watch.terms[0].encoding
    codes = [encoding.encode({"all": each}, by, rng) for each in watch.deltas]
    pattern = _pattern(codes)
    strangers = _pattern(
        [encoding.encode({"all": rng.permutation(each)}, by, rng) for each in watch.deltas]
    )
    views = [(each.where, number) for each in seen for number in traces.numbers(each.data)]
    views += [(where, digits) for where, digits in _digits(watch)]
    least = 0.5 / np.sqrt(len(codes))  # one of them alone has twice that
    largest, chance = 0.0, 0.0
    for where, number in views:
        if len(number) < len(pattern):
            continue
        own, other = traces.correlations(number, [pattern, strangers])
        largest, chance = max(largest, own), max(chance, other)
        if own > least:
            finds.append(Find(where, "codes of an update", f"correlation {own:.2f}"))
    missed = tuple(_missed(typed, marks, secrets, codes, pattern, float(least), watch))
    return Report(
        len(homes),
        counted,
        len(watch.requests),
        len(watch.files),
        sum(len(each.data) for each in seen) / 1e6,
        sum(len(form) for mark in (*marks, *secrets, *tokens) for form in mark.forms.values()),
        largest,
        chance,
        tuple(finds),
        missed,
    )


def marks_of(base: Bundle, typed: Sequence[Typed]) -> Iterator[Mark]:
    """What of the marked messages must not be seen."""
    for each in typed:
        for word in each.words:
            yield traces.of_text(f"a word of device {each.device}", word)
        yield traces.of_text(f"words of device {each.device}", " ".join(each.known))
        ids = base.vocabulary.ids(list(each.known))
        yield traces.of_ids(f"ids of device {each.device}", ids)


def _secrets(homes: Sequence[Home]) -> Iterator[Mark]:
    for number, home in enumerate(homes):
        yield traces.of_secret(f"the key of device {number}", home.key.private_bytes_raw())
        log = home.folder / "typing_log.key"
        yield traces.of_secret(f"the log's key of device {number}", log.read_bytes())


def _holds_token(seen: Seen) -> bool:
    """Whether this is the file that a token is kept in."""
    return seen.where.endswith((TOKEN_FILE, HELPER_TOKEN_FILE))


def _pattern(codes: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """What the codes of any of them correlate with."""
    parts = [each[:WINDOW].astype(np.float64) for each in codes]
    return np.sum([(each - each.mean()) / each.std() for each in parts], 0)


def _digits(watch: Watch) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """The digits of the masked words that devices sent, and what is left of them in a code."""
    agreed = watch.terms[0]
    layout = agreed.layout
    for body in watch.bodies:
        try:
            if update.header(body).form is not Form.SEALED:
                continue
            words = update.sealed(body, layout).words
        except UpdateError:
            continue
        digits = packing.unpack(words, layout).astype(np.float64)
        yield "the digits of an update", digits
        yield "the digits of an update", digits % (agreed.encoding.largest + 1)


def _missed(
    typed: Sequence[Typed],
    marks: Sequence[Mark],
    secrets: Sequence[Mark],
    codes: Sequence[NDArray[Any]],
    pattern: NDArray[np.float64],
    least: float,
    watch: Watch,
) -> Iterator[str]:
    """Which planted leaks are not found: each form of every mark in a file of the server's, plain
    and packed, and the codes of one device, which begin anywhere.
    """
    some = max(watch.files.values(), key=lambda each: len(each.data)).data[:1000]
    for mark in (*marks, *secrets):
        for name, forms in mark.forms.items():
            for form in forms:
                for data in (some + form + some, zlib.compress(b"some " + form + b" thing")):
                    found = traces.find([Seen("planted", data)], [mark])
                    if name not in {each.form for each in found}:
                        yield f"{mark.what}, {name}"
    raw = update.pack(codes[0], 4) if codes[0].max() < 16 else codes[0].tobytes()
    views = traces.numbers(some[:777] + raw)
    if max(traces.correlations(each, [pattern])[0] for each in views) <= least:
        yield "codes of an update"


def _homes(
    folder: Path, first: Path, trusted: str, typed: Sequence[Typed], seed: int
) -> list[Home]:
    (folder / "night.tsv").write_text(ABLE)
    trace = str((folder / "night.tsv").resolve())
    limits = OwnLimits(
        clipping_norm=5.0,
        least_messages=5,
        least_words=20,
        least_score_words=10,
        updates_a_day=50,
        min_separation=1,
    )
    homes = []
    for each in typed:
        own = [f"{each.message} {number % 7}" for number in range(TIMES)]
        own += [f"i will see you {number}" for number in range(MESSAGES - TIMES)]
        settings = DeviceConfig(
            (trusted,),
            str(first.resolve()),
            conditions=trace,
            seed=seed + each.device,
            keeps_work=False,
            limits=limits,
        )
        said = [(text, float(second)) for second, text in enumerate(own)]
        homes.append(Home.create(folder / f"device-{each.device:02d}", settings, said))
    return homes


def _settings(devices: int, rounds: int, is_plain: bool, multiplier: float) -> ServerSettings:
    blt = {"decays": (0.9,), "scales": (0.3,)}
    noise = Noise(Mechanism.BLT, multiplier, 1e6, 1e-10, rounds, rounds, **blt)
    rules = Rules(
        report_goal=devices,
        over_selection=1.0,
        min_reports=devices,
        rounds=rounds,
        selection_s=5,
        claim_s=300,
        reporting_s=3600,
        retry_s=0.3,
    )
    return ServerSettings(
        rules=rules,
        policy=Policy(min_separation=1),
        least_count=devices,
        aggregation=Aggregation.PLAIN if is_plain else Aggregation.HELPER,
        noise=noise if multiplier else None,
    )


def _serve(
    folder: Path, first: Path, settings: ServerSettings, public: str
) -> "subprocess.Popen[bytes]":
    durable.share(folder / "server.toml", config.to_toml(settings).encode())
    (folder / "signing.pub").write_text(f"{public}\n")
    (folder / LOGS).mkdir()
    words = ("--dir", folder / SERVER, "--bundle", first, "--config", folder / "server.toml")
    trust = ("--trust", folder / "signing.pub", "--port", 0)
    server = child_process.start(program("serve", *words, *trust), folder / LOGS / "server.log")
    until = time.monotonic() + START_S
    while not (folder / SERVER / ADDRESS).is_file():
        if server.poll() is not None or time.monotonic() > until:
            child_process.end(server)
            raise RunError(folder / LOGS, "the server did not start", "see server.log there")
        time.sleep(0.1)
    return server


def _certify(folder: Path, rounds: int, is_plain: bool) -> None:
    key = ("--key", folder / "signing.key", "--dir", folder / SERVER, "--json")
    who_sees = ("--aggregation", Aggregation.PLAIN) if is_plain else ()
    words = program("task", "certify", "default", "--rounds", rounds, *key, *who_sees)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError("task certify", done.stderr.strip()[-400:], "see above")


def _await_sums(folder: Path) -> None:
    """Until the helper has taken the masks off the last sum."""
    until = time.monotonic() + START_S
    with connect(folder / SERVER, None) as operator:
        while operator.task("default").phase is Phase.UNMASKING:
            if time.monotonic() > until:
                raise RunError(folder / LOGS, "a sum was not opened", "see server.log there")
            time.sleep(0.1)


def main() -> None:
    """Run the scan and print what it found."""
    parser = argparse.ArgumentParser(description="look for what was typed in all that is sent")
    parser.add_argument("bundle", type=Path, nargs="?", help="by default the reference bundle")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--devices", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=0.0, help="multiplier of a BLT's noise")
    parser.add_argument("--plain", action="store_true", help="let the server see each update")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    try:
        base = open_bundle(asked.bundle, None)
        report = scan(
            base, asked.out, asked.devices, asked.rounds, asked.seed, asked.plain, asked.noise
        )
    except FedboardError as error:
        sys.exit(str(error))
    if asked.json:
        print(json.dumps(asdict(report)))
    else:
        _print(report)
    if report.finds or report.missed:
        sys.exit(1)


def _print(report: Report) -> None:
    figures = [
        ["devices, updates counted", f"{report.devices}, {report.counted}"],
        ["requests of devices", f"{report.requests:,}"],
        ["files of server and helper, as often as they changed", f"{report.files:,}"],
        ["megabytes looked at", f"{report.megabytes:.1f}"],
        ["forms looked for", f"{report.forms:,}"],
        ["largest correlation with codes sent", f"{report.correlation:.3f}"],
        ["the same with codes that nobody sent", f"{report.chance:.3f}"],
        ["planted leaks that were missed", f"{len(report.missed)}"],
        ["finds", f"{len(report.finds)}"],
    ]
    console.table("what was looked at", ["", ""], figures)
    if report.finds:
        rows = [[each.where, each.what, each.form] for each in report.finds]
        console.table("found", ["where", "what", "form"], rows)
    for each in report.missed:
        console.say(f"a planted leak was missed: {each}", style="bold red")


if __name__ == "__main__":
    main()
