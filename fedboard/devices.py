"""The device stage: users -> device folders, and turns of several without TensorFlow."""

import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from device_runtime.bundle import Bundle
from device_runtime.errors import CorpusError, RunError
from fedboard import console
from model import child_process, corpus
from model.corpus import Users

if TYPE_CHECKING:
    from device_runtime.daemon import Connect, NotAsked
    from device_runtime.transport import Send
    from device_runtime.turn import Outcome
    from device_runtime.upgrade import Followed
    from device_runtime.wire import Signed

PUBLIC_KEY = re.compile("[0-9a-f]{64}")
BLOCKED = ("tensorflow", "tensorflow_federated")


@dataclass(frozen=True)
class Draw:
    """Which users get a device, and for how many rounds it has a trace."""

    count: int
    rounds: int
    least: int  # utterances a user must have typed
    seed: int


def block_tensorflow() -> None:
    """Make every later import of TensorFlow an ImportError: a phone has none, so nothing a device
    runs may need it.

    Raises RunError if it is loaded already.
    """
    if loaded := [name for name in BLOCKED if sys.modules.get(name) is not None]:
        raise RunError(
            "device",
            f"{', '.join(loaded)} is loaded in this process",
            "run devices in a process of their own",
        )
    for name in BLOCKED:
        sys.modules[name] = None  # type: ignore[assignment]


def choose(users: Users, count: int, least: int, seed: int) -> list[str]:
    """`count` users with at least `least` utterances each, drawn by seed. Raises CorpusError if
    there are fewer.
    """
    able = [
        user for user, utterances in corpus.sample(users, 2000).items() if len(utterances) >= least
    ]
    if len(able) < count:
        raise CorpusError(
            "devices",
            f"{len(able)} train users have {least} utterances or more, expected {count}",
            "ask for fewer --devices",
        )
    return [
        able[i] for i in sorted(np.random.default_rng([seed, 2]).permutation(len(able))[:count])
    ]


def create(
    folder: Path,
    bundle: Bundle,
    trusted: frozenset[str],
    users: Users,
    traces: Mapping[str, Path],
    seed: int,
) -> list[Path]:
    """One device folder a user, `device-000` and so on, each with that user's messages in its
    typing log and the conditions of that user's trace, and of the classes that a fleet's phones
    have.
    """
    from device_runtime.home import DeviceConfig, Home
    from device_runtime.limits import OwnLimits
    from fleet import population
    from fleet.population import PopulationSettings

    fleet = population.make(PopulationSettings(devices=len(traces)), len(traces), seed)
    homes = []
    for index, (name, trace) in enumerate(traces.items()):
        settings = DeviceConfig(
            bundle=str(bundle.path.resolve()),
            trusted=tuple(sorted(trusted)),
            conditions=str(trace.resolve()),
            seed=seed + index,
            device_class=fleet.classes[int(fleet.kind[index])].name,
            keeps_work=False,  # a simulated night ends with its round
            limits=OwnLimits(min_separation=1),  # there are no others for the rounds between
        )
        typed = [(utterance.text, float(i)) for i, utterance in enumerate(users[name])]
        homes.append(Home.create(folder / f"device-{index:03d}", settings, typed).folder)
    return homes


def create_population(
    folder: Path,
    bundle: Path,
    trusted: frozenset[str],
    users: Users,
    draw: Draw,
) -> list[Path]:
    """Devices of train users, with traces in which some are kept from training in every round, each
    for its own cause.
    """
    from device_runtime.bundle import open_verified
    from device_runtime.folder import require_free
    from device_runtime.home import FOLDER
    from fleet.nights import roles, traces_from_roles

    opened = open_verified(bundle, trusted)
    names = choose(users, draw.count, draw.least, draw.seed)
    for index in range(draw.count):  # before the first trace is written: one may be in use
        require_free(folder / f"device-{index:03d}", FOLDER, replace=False)
    parts = roles(draw.count, draw.rounds, draw.seed)
    traces = dict(zip(names, traces_from_roles(parts, folder / "traces"), strict=True))
    return create(folder, opened, trusted, users, traces, draw.seed)


def run(
    folders: Sequence[Path],
    send: "Send",
    rounds: int,
    outcomes: Path | None,
    connect: "Connect | None" = None,
) -> dict[str, Any]:
    """Turns of the devices in `folders` with the server behind `send`; a JSON line for each goes to
    `outcomes` and to the console. What it came to. After a turn a device goes to the release that
    was named in it, by `connect`.

    The caller blocks TensorFlow first. Raises ServerError if the server cannot be reached, and
    whatever is wrong with a device's folder.
    """
    from device_runtime import drive, interpreter, upgrade
    from device_runtime.home import Home
    from device_runtime.turn import Outcome, Status

    homes = [Home.open(folder) for folder in folders]
    totals = {"turns": 0, "counted": 0, "bytes_up": 0, "bytes_down": 0}
    with ExitStack() as stack:
        lines = stack.enter_context(open(outcomes, "a")) if outcomes else None
        for home in homes:
            if not home.simulated:  # two processes at once would pass the limits of its day
                stack.enter_context(home.alone())

        def note(home: Home, outcome: Outcome) -> None:
            totals["turns"] += 1
            totals["counted"] += outcome.status is Status.COUNTED
            totals["bytes_up"] += outcome.bytes_up
            totals["bytes_down"] += outcome.bytes_down
            if lines:
                print(
                    json.dumps({"device": home.folder.name, **asdict(outcome)}),
                    file=lines,
                    flush=True,
                )
            console.say(f"{home.folder.name}: {sentence(outcome)}")
            if connect is None:
                return
            followed = upgrade.after(outcome, home, upgrade.Means(connect))
            for line in [] if followed is None else upgrade.sentences(followed):
                console.say(f"{home.folder.name}: {line}")

        seen = drive.run(homes, send, rounds, note)
    return {
        "devices": len(homes),
        "rounds": seen,
        **totals,
        "interpreter": str(interpreter.chosen()),
        "peak_memory_mb": child_process.peak_memory_mb(os.getpid()),
    }


def are_outcomes(path: Path) -> bool:
    """Whether the first line of a file is a turn's as `run` appends it."""
    try:
        with open(path, "rb") as lines:
            first = json.loads(next(lines))
    except (ValueError, RecursionError, StopIteration):
        return False
    return isinstance(first, dict) and {"device", "status"} <= set(first)


def sentence(outcome: "Outcome | NotAsked") -> str:
    """What came of a turn, in words."""
    from device_runtime import causes
    from device_runtime.daemon import NotAsked

    if isinstance(outcome, NotAsked):
        return (
            f"the server was not asked ({causes.sentence(outcome.cause)}); look again in "
            f"{outcome.retry_in_s:.0f} s"
        )
    losses = (
        ""
        if outcome.loss_after is None
        else f", loss {outcome.loss_before:.3f} -> {outcome.loss_after:.3f}"
    )
    round_number = "" if outcome.round is None else f" in round {outcome.round}"
    why = f" ({causes.sentence(outcome.cause)})" if outcome.cause else ""
    return f"{causes.label(outcome.status)}{round_number}{why}{losses}"


def enrol(
    folder: Path,
    settings: Any,
    bundle: Path | None,
    url: str,
    code: str = "",
    insecure: bool = False,
) -> str:
    """Make the device in `folder` if there is none, and its key known to its server, with a code if
    that asks for one. The name it got.

    Raises ServerError, and keeps the device for another try, if the server does not answer or does
    not take the code.
    """
    from device_runtime import calls
    from device_runtime.home import Home, conditions_of
    from device_runtime.transport import http, persistent

    if Home.is_there(folder):
        insecure = insecure or Home.open(folder).config.insecure
    # first: an address that is none, or conditions that cannot be read, make no device
    with http(url, insecure) as send:
        if not Home.is_there(folder):
            conditions_of(folder, settings)
            Home.create(folder, settings, bundle=bundle)
        home = Home.open(folder)
        if home.config.server != url:
            raise RunError(
                folder,
                f"belongs to {home.config.server}, not to {url}",
                "change `server` in its device.toml, or choose another folder",
            )
        signer = calls.meet(persistent(send), home.key)
        name = calls.enrol(persistent(send), signer, code, home.certificate).device
        home.keep_enrolment(name, signer.server)
    return name


def certify(named: Sequence[str], key: Path) -> "list[Signed]":
    """Certify devices, by their folders or public keys, with the private key in a file: their
    certificates, which those with a folder keep. Raises RunError, before the first is certified, if
    one is no device or there is no such key.
    """
    from device_runtime import enrolments, signing
    from device_runtime.home import Home

    if not key.is_file():
        raise RunError(key, "there is no private key", "give the file of the enrolment key")
    signer = signing.load_or_create(key)
    homes = [None if PUBLIC_KEY.fullmatch(each) else Home.open(Path(each)) for each in named]
    certificates = []
    for each, home in zip(named, homes, strict=True):
        public = each if home is None else signing.public_hex(home.key)
        certificates.append(enrolments.certificate(public, signer))
        if home is not None:
            home.keep_certificate(certificates[-1])
    return certificates


def keep_certificate(folder: Path, file: Path) -> None:
    """Give a device the certificate in a file, as `certify` prints it. Raises RunError for a file
    without one, or that of another device.
    """
    from device_runtime import config
    from device_runtime.errors import ConfigError
    from device_runtime.home import Home
    from device_runtime.wire import Signed

    try:
        certificate = config.from_json(Signed, file.read_bytes(), "certificate")
    except (OSError, ConfigError) as error:
        reason = getattr(error, "strerror", None) or error
        remedy = "give the file with what `fedboard device certify KEY` printed"
        raise RunError(file, f"is no certificate of a device ({reason})", remedy) from None
    Home.open(folder).keep_certificate(certificate)


def code(file: Path | None) -> str:
    """The enrolment code: in a file or in FEDBOARD_CODE, where other users of the machine do not
    see it. Raises RunError for a file without one.
    """
    if file is None:
        return os.environ.get("FEDBOARD_CODE", "")
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(
            file,
            f"cannot be read ({getattr(error, 'strerror', None) or error})",
            "give the file with the enrolment code",
        ) from None


@contextmanager
def way(folder: Path, url: str | None, insecure: bool = False) -> "Iterator[Send]":
    """The way to the address given, else to the one the device was enrolled at; without TLS to
    another machine only if `insecure`, or if the device was enrolled there so. Each is a
    connection of its own.
    """
    from device_runtime.home import Home
    from device_runtime.transport import http

    settings, address = Home.open(folder).config, server_of(folder, url)
    so_enrolled = settings.insecure and settings.server == address
    with http(address, insecure or so_enrolled) as send:
        yield send


def once(folder: Path, url: str | None, insecure: bool = False) -> "Outcome | NotAsked":
    """One polite turn: nothing is asked of the server while a condition forbids it, or before its
    retry window is open.
    """
    from device_runtime.daemon import Daemon
    from device_runtime.home import Home

    home = Home.open(folder)
    with home.alone(), way(folder, url, insecure) as send:
        device = Daemon(home, send)
        device.follow_releases(partial(way, folder, url, insecure))
        return device.once()


def stay(folder: Path, url: str | None, insecure: bool = False) -> None:
    """Run the device until SIGTERM or SIGINT: work stops within one batch, and what is half done is
    kept.
    """
    from device_runtime.daemon import Daemon
    from device_runtime.home import Home

    home, ending = Home.open(folder), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with home.alone(), way(folder, url, insecure) as send:
        daemon = Daemon(home, send, may_go_on=lambda: not ending.is_set(), sleep=ending.wait)
        daemon.follow_releases(partial(way, folder, url, insecure))
        daemon.spread()
        while not ending.is_set():
            ending.wait(daemon.step())


def upgrade_now(folder: Path, url: str | None, insecure: bool = False) -> "Followed":
    """Ask the server which releases there are and go to the one that is offered, telling each step.
    An earlier failure is not waited out. Raises as `upgrade.ask` and `upgrade.follow`.
    """
    from device_runtime import upgrade
    from device_runtime.home import Home
    from device_runtime.transport import persistent

    home, connect = Home.open(folder), partial(way, folder, url, insecure)
    with home.alone():
        with connect() as send:
            index = upgrade.ask(home, persistent(send), time.time())
        if not index:
            return upgrade.Followed()
        return upgrade.follow(home, index, upgrade.Means(connect, say=console.say))


def why_it_stays(folder: Path) -> str:
    """Which release a device goes on with, in words, and which later ones it refused before."""
    from device_runtime import upgrade
    from device_runtime.home import Home

    home = Home.open(folder)
    runs = home.bundle().manifest.release
    later = [each for each in upgrade.remembered(home).refused if each.release > runs]
    said = "".join(f"; release {each.release} was refused: {each.why}" for each in later)
    return f"it goes on with release {runs}; no other is offered to it{said}"


def server_of(folder: Path, url: str | None) -> str:
    """The address given, else the one the device was enrolled at."""
    from device_runtime.home import Home

    address = url or Home.open(folder).config.server
    if address is None:
        raise RunError(folder, "no server is named in its device.toml", "pass --server URL")
    return address
