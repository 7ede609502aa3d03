"""Phrase: the life of one typed phrase, from the logs of some phones to the strip of another.

    python -m benchmarks.phrase [BUNDLE] --out FOLDER

Everything is real and goes by the commands that people use: a server that listens, phones with
encrypted typing logs that train, an operator who certifies, makes a release and publishes it, and a
phone that never typed the phrase and took no part. What it counts are bytes of bodies and seconds
of this machine. Most of the phones typed the phrase: rounds of a few devices learn what many of
them say, and forget what one alone does.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import bundle, config, durable, signing
from device_runtime.bundle import Bundle
from device_runtime.errors import FedboardError, RunError
from device_runtime.home import DeviceConfig, Home
from device_runtime.keyboard import Keyboard
from device_runtime.limits import OwnLimits
from device_runtime.wire import Phase
from fedboard import console
from fedboard.__main__ import program
from fedboard.operator import connect
from fedboard.run import open_bundle
from model import child_process, corpora
from model.corpus import sample
from server.contract import ADDRESS
from server.eligibility import Policy
from server.rounds import Rules
from server.settings import ServerSettings

CONTEXT, WORD = "meet me at the ", "museum"
TIMES = 12  # that each of the phones typed it
ABLE = "0\tbattery_charged_on\n0\twifi\n0\tscreen_off\n"  # a trace of a phone at night
MESSAGES = 60  # of a user of the corpus, beside the phrase
START_S = 60.0
RANKED = 10_000


@dataclass(frozen=True)
class Strip:
    """What a phone that never typed the phrase suggests after its context."""

    words: tuple[str, ...]  # the strip of three, best first
    rank: int  # of the phrase's last word
    probability: float


@dataclass
class Life:
    """What the phrase went through: steps in order, with seconds and bytes."""

    steps: list[dict] = field(default_factory=list)

    @contextmanager
    def step(self, name: str, **figures: object) -> Iterator[dict]:
        """One step; what is put into the dictionary it gives is kept with it."""
        noted = {"step": name, **figures}
        began = time.monotonic()
        yield noted
        self.steps.append({**noted, "seconds": round(time.monotonic() - began, 2)})


def live(base: Bundle, folder: Path, phones: int, rounds: int, seed: int) -> dict:
    """All steps; what was measured. Raises RunError or ServerError for what went wrong."""
    life, key = Life(), signing.load_or_create(folder / "signing.key")
    first = _signed(base, folder / "first", key)
    trusted = (signing.public_hex(key),)
    homes, typed_elsewhere = _phones(folder, first, trusted, phones, seed)
    server = _serve(folder, first, phones, rounds)
    try:
        stranger = _stranger(folder, first, typed_elsewhere)
        before = _strip(stranger)
        _certify(folder, rounds, life)
        with life.step("typed on phones, trained there, sent masked") as noted:
            totals = _fedboard(folder, "device", "run", *homes, "--rounds", rounds, server=True)
            _await_sum(folder)
            noted |= {"rounds": rounds, "phones": phones, "counted": totals["counted"]}
            noted["bytes_up"] = totals["bytes_up"]
            noted["bytes_per_update"] = totals["bytes_up"] // max(1, totals["counted"])
        with life.step("release made of the newest checkpoint, without TensorFlow") as noted:
            release = folder / "release"
            words = ("--task", "default", "--bundle", first, "--out", release, "--data", "chitchat")
            _fedboard(folder, "release", "make", *words, key=True, server=False)
            noted["bundle_bytes"] = sum(each.stat().st_size for each in release.iterdir())
        with life.step("published to every phone"):
            _publish(folder, first, release)
        with life.step("fetched, patched, tried and swapped on a phone that took no part") as noted:
            done = _fedboard(folder, "device", "upgrade", stranger.folder, server=True)
            upgraded = done["upgraded"]
            noted |= {"how": upgraded["how"], "bytes_down": upgraded["bytes_down"]}
        after = _strip(stranger)
    finally:
        child_process.end(server)
    return {
        "phrase": CONTEXT + WORD,
        "steps": life.steps,
        "before": asdict(before),
        "after": asdict(after),
        "text_at_the_server": _holds(folder / "server", WORD.encode()),
    }


def _signed(base: Bundle, path: Path, key: Ed25519PrivateKey) -> Path:
    """The bundle under a key of this experiment: who signs releases also signs the first."""
    bundle.write(path, base.manifest, base.content, key)
    return path


def _phones(
    folder: Path, first: Path, trusted: tuple[str, ...], count: int, seed: int
) -> tuple[list[Path], list[tuple[str, float]]]:
    """Phones that typed the phrase, with messages of as many users of the corpus; and what another
    user typed, who did not.
    """
    (folder / "night.tsv").write_text(ABLE)
    trace = str((folder / "night.tsv").resolve())
    users = sample(corpora.load("chitchat").train, 2000)
    able = [name for name, typed in sorted(users.items()) if len(typed) >= MESSAGES]
    chosen = np.random.default_rng(seed).permutation(len(able))[: count + 1]
    homes = []
    for number, at in enumerate(chosen):
        own = [each.text for each in users[able[at]]][:MESSAGES]
        if number < count:
            own += [CONTEXT + WORD] * TIMES
        typed = [(text, float(second)) for second, text in enumerate(own)]
        if number == count:
            break
        settings = DeviceConfig(
            trusted,
            conditions=trace,
            seed=seed + number,
            keeps_work=False,
            limits=OwnLimits(min_separation=1),
        )
        homes.append(Home.create(folder / f"phone-{number:02d}", settings, typed, first))
    return [home.folder for home in homes], typed


def _stranger(folder: Path, first: Path, typed: list[tuple[str, float]]) -> Home:
    """A phone that lives on its own, and takes part in no round."""
    home = folder / "stranger"
    words = ("--bundle", first, "--conditions", folder / "night.tsv")
    trust = ("--trust", folder / "signing.pub")
    _fedboard(folder, "device", "enrol", home, *words, *trust, server=True)
    opened = Home.open(home)
    with opened.typing_log() as log:
        log.append_many(typed)
    return opened


def _strip(home: Home) -> Strip:
    with Keyboard(home, home.bundle()) as keyboard:
        words = [each.word for each in keyboard.suggest(CONTEXT, RANKED)]
        likely = {each.word: each.probability for each in keyboard.suggest(CONTEXT, RANKED)}
    return Strip(tuple(words[:3]), words.index(WORD) + 1, likely[WORD])


def _serve(folder: Path, first: Path, phones: int, rounds: int) -> subprocess.Popen:
    rules = Rules(
        report_goal=phones,
        over_selection=1.0,
        min_reports=max(1, phones // 2),
        rounds=rounds,
        selection_s=2,
        claim_s=300,
        reporting_s=3600,
        retry_s=0.3,
    )
    settings = ServerSettings(
        rules=rules, policy=Policy(min_separation=1), least_count=rules.fewest
    )
    durable.share(folder / "server.toml", config.to_toml(settings).encode())
    words = ("--dir", folder / "server", "--bundle", first, "--config", folder / "server.toml")
    (folder / "signing.pub").write_text(f"{_public(folder)}\n")
    trust = ("--trust", folder / "signing.pub", "--port", 0)
    server = child_process.start(program("serve", *words, *trust), folder / "server.log")
    until = time.monotonic() + START_S
    while not (folder / "server" / ADDRESS).is_file():
        if server.poll() is not None or time.monotonic() > until:
            child_process.end(server)
            raise RunError(folder / "server.log", "the server did not start", "see that log")
        time.sleep(0.1)
    return server


def _await_sum(folder: Path) -> None:
    """Until the helper has taken the masks off the last sum."""
    until = time.monotonic() + START_S
    with connect(folder / "server", None) as operator:
        while operator.task("default").phase is Phase.UNMASKING:
            if time.monotonic() > until:
                raise RunError(folder / "server.log", "a sum was not opened", "see that log")
            time.sleep(0.1)


def _certify(folder: Path, rounds: int, life: Life) -> None:
    with life.step("the operator certifies the server's round key"):
        _fedboard(folder, "task", "certify", "default", "--rounds", rounds, key=True, server=False)


def _publish(folder: Path, first: Path, release: Path) -> None:
    """The bundle that phones began with is the first release: so the new one travels as the
    difference from it.
    """
    for path in (first, release):
        _fedboard(folder, "release", "publish", path, "--share", "100%", key=True, server=False)


def _public(folder: Path) -> str:
    return signing.public_hex(signing.load_or_create(folder / "signing.key"))


def _fedboard(folder: Path, *words: object, server: bool, key: bool = False) -> dict:
    """One command of the program; what it printed as JSON. Commands of an operator get the server's
    folder, those of a device its address.
    """
    address = (folder / "server" / ADDRESS).read_text().strip()
    where = ("--server", address) if server else ("--dir", folder / "server")
    with_key = ("--key", folder / "signing.key") if key else ()
    command = program(*words, *where, *with_key, "--json")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(" ".join(map(str, words[:2])), done.stderr.strip()[-400:], "see above")
    printed: dict = json.loads(done.stdout)
    return printed


def _holds(folder: Path, text: bytes) -> bool:
    """Whether any file of a folder holds these bytes, but for the public files of a bundle, which
    know every word there is.
    """
    public = {data for data in _bundle_files(folder.parent)}
    return any(
        text in path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.read_bytes() not in public
    )


def _bundle_files(folder: Path) -> Iterator[bytes]:
    for name in ("first", "release"):
        for path in (folder / name).iterdir():
            yield path.read_bytes()


def main() -> None:
    """Read the command line, live through it, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="by default the reference bundle")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--phones", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        base = open_bundle(given.bundle, None)
        result = live(base, given.out, given.phones, given.rounds, given.seed)
    except FedboardError as error:
        sys.exit(str(error))
    if given.json:
        print(json.dumps(result))
        return
    console.table(
        f"the life of “{result['phrase']}”",
        ["step", "seconds", "figures"],
        [
            [
                each["step"],
                f"{each['seconds']:.1f}",
                ", ".join(
                    f"{name.replace('_', ' ')} {value:,}" if isinstance(value, int) else f"{value}"
                    for name, value in each.items()
                    if name not in ("step", "seconds")
                ),
            ]
            for each in result["steps"]
        ],
    )
    for when in ("before", "after"):
        strip = result[when]
        console.say(
            f"{when}: {' | '.join(strip['words'])}; {WORD} is number {strip['rank']:,} "
            f"({100 * strip['probability']:.2g} %)"
        )
    console.say(f"the phrase in a file of the server: {result['text_at_the_server']}")


if __name__ == "__main__":
    main()
