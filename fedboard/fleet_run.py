"""Fleet run: a fleet lives its days in a run's folder, and goes on there after any kill.

create or put back -> step, step, ... -> save now and then -> tables, summary
                       |
                       Ctrl-C: the step ends, all is saved, and the command that goes on is said
"""

import contextlib
import itertools
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from device_runtime import config, durable, folder
from device_runtime.wire import DAY_S
from fleet import begin, bundles, figures, runs, tables
from fleet.figures import Summary, Table
from fleet.measured import measured
from fleet.runs import REPORT, ROUNDS, Run
from fleet.saved import FOLDER, Saves
from fleet.settings import START, FleetSettings
from fleet.simulate import Fleet
from server import memory

SHARE = 0.05  # of the time that saving may take
UPDATE_BYTES = 128 << 10  # of memory that is given back: updates and checkpoints come and go
LEAST_S = 2.0  # between two saves
SHOWN_S = 0.5  # between two looks at how far it is


@dataclass(frozen=True)
class Progress:
    """How far a fleet is."""

    seconds: float  # since it began, of its own time
    round: int  # the one that is open, or the last one
    at_work: int
    check_ins: int
    check_ins_per_s: float  # of real time, of late

    def __str__(self) -> str:
        """
        >>> str(Progress(90_000.0, 7, 12, 5000, 812.4))
        'day 2, 01:00 · round 7 · 12 at work · 5,000 check-ins, 812/s'
        """
        day, rest = divmod(int(self.seconds), int(DAY_S))
        at = f"day {1 + day}, {rest // 3600:02}:{rest % 3600 // 60:02}"
        asked = f"{self.check_ins:,} check-ins, {self.check_ins_per_s:,.0f}/s"
        return f"{at} · round {self.round:,} · {self.at_work:,} at work · {asked}"


Show = Callable[[Progress], None]


class Stopped(KeyboardInterrupt):
    """Ctrl-C: what was done is saved."""


def begin_new(out: Path, settings: FleetSettings, show: Show, overwrite: bool = False) -> Summary:
    """Let a fleet live in a new folder: its summary. Raises RunError for a folder that is taken,
    unless it holds a fleet and is to be written over; Stopped after Ctrl-C.
    """
    folder.require_free(out, runs.KIND, replace=overwrite)
    begin.require(settings)  # before an earlier fleet is gone
    with folder.writing(out, runs.KIND) as path:
        folder.require_no_links(path, runs.KIND)
        try:
            run, fleet = _begun(path, settings)
        except Exception:
            folder.clear(path, runs.KIND)  # nothing has lived in it
            raise
        return _live(run, fleet, Saves(path), show)


def go_on(out: Path, show: Show, changed: Callable[[FleetSettings], FleetSettings]) -> Summary:
    """Let the fleet in a folder live on: its summary. `changed` may say who computes.

    Raises RunError for a folder without a fleet, or a save that cannot be read; Stopped after
    Ctrl-C.
    """
    runs.require(out)
    with folder.writing(out, runs.KIND) as path:
        folder.require_no_links(path, runs.KIND)
        run = Run(path)
        if run.is_over:
            shutil.rmtree(path / FOLDER, ignore_errors=True)
            return figures.read(path)[0]
        settings, saves = changed(run.settings), Saves(path)
        fleet = begin.go_on(settings, path, saves)
        if fleet is None:  # it was killed before its first save
            return _live(*_begun(path, run.settings, settings), saves, show)
        return _live(run, fleet, saves, show)


def _begun(
    path: Path, settings: FleetSettings, changed: FleetSettings | None = None
) -> tuple[Run, Fleet]:
    """A new run, and the fleet in it."""
    run = runs.create(path, settings)
    if settings.training.bundle:
        from fedboard import fleet_text

        bundle = bundles.installed(settings.training, settings.task.plan)
        users, corpus = settings.training.users, settings.training.corpus
        fleet_text.write(path / begin.TYPED, corpus, bundle, users)
    return run, begin.begin(changed or settings, path)


def _live(run: Run, fleet: Fleet, saves: Saves, show: Show) -> Summary:
    memory.give_back_large_blocks(UPDATE_BYTES)
    with contextlib.closing(fleet):
        with _interruptible() as is_stopped:
            watch = _Watch(fleet, saves, show, is_stopped)
            fleet.run(fleet.settings.days * DAY_S, watch)
            watch.save()
        if is_stopped():
            raise Stopped
        return _ended(run, fleet)


class _Watch:
    """Asked after each step whether the fleet may go on: saves and shows it now and then."""

    def __init__(self, fleet: Fleet, saves: Saves, show: Show, is_stopped: Callable[[], bool]):
        self._fleet, self._saves, self._show, self._is_stopped = fleet, saves, show, is_stopped
        self._shown_at = self._began = time.monotonic()
        self._check_ins = _check_ins(fleet)
        self._next_save_at = self._began

    def __call__(self) -> bool:
        now = time.monotonic()
        if now >= self._next_save_at:
            self.save()
        if now >= self._shown_at + SHOWN_S:
            self._show(self._progress(now))
        return not self._is_stopped()

    def save(self) -> None:
        """Save, and plan the next time by how long that took."""
        began = time.monotonic()
        self._saves.save(self._fleet.state, self._fleet.servers)
        ended = time.monotonic()
        self._next_save_at = ended + max(LEAST_S, (ended - began) * (1 - SHARE) / SHARE)

    def _progress(self, now: float) -> Progress:
        fleet, check_ins = self._fleet, _check_ins(self._fleet)
        rate = (check_ins - self._check_ins) / (now - self._shown_at)
        self._shown_at, self._check_ins = now, check_ins
        with fleet.servers.coordinator.store.reading() as rows:
            opened = [each.state.round for each in rows.open_rounds().values()]
        round = max(opened, default=0)
        return Progress(fleet.now - START, round, len(fleet.state.turns), check_ins, rate)


def _check_ins(fleet: Fleet) -> int:
    return sum(fleet.state.check_ins.values())


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed meanwhile; pressed again it ends the process at once, and what was
    saved last stays.
    """
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _ended(run: Run, fleet: Fleet) -> Summary:
    """Write what became of a fleet that has lived all its days."""
    it = tables.lived(fleet, run.turns())
    it = replace(it, measured=measured(it, fleet.servers.coordinator.blobs.get))
    try:
        lines = b"".join(config.to_json(each) + b"\n" for each in it.rounds)
        (run.path / ROUNDS).parent.mkdir(exist_ok=True)
        durable.share(run.path / ROUNDS, lines)
        told = tables.write(it, run.path)
        shutil.rmtree(run.path / FOLDER)  # nothing is left to go on with
    except OSError as error:
        raise folder.cannot_write(runs.KIND, error.filename or run.path, error) from None
    return told


def report(run: Run) -> Path:
    """The page of a fleet that is over, written if it is not there. Raises RunError without room,
    ModuleNotFoundError where nothing is installed that draws.
    """
    from fedboard import fleet_report

    path = run.path / REPORT
    return path if path.exists() else fleet_report.build(run.path)


def shown(path: Path, round: int | None) -> tuple[Summary, Mapping[str, Table], Table | None]:
    """The figures and tables of a fleet that is over, and each turn of one round. Raises RunError
    for a folder without such a fleet.
    """
    runs.require(path)
    run = Run(path)
    if not run.is_over:
        raise runs.not_over(path)
    told, of = figures.read(path)
    if round is None:
        return told, of, None
    return told, of, tables.of_round(run.turns(), begin.people_of(run.settings, path), round)


@dataclass(frozen=True)
class Replayed:
    """What came of living a run again."""

    rounds: int  # of the run
    turns: int
    differ: tuple[str, ...]  # what is not the same, a sentence each
    versions: tuple[str, ...]  # what the two were not run by alike

    @property
    def is_identical(self) -> bool:
        """Whether all is the same, to the byte."""
        return not self.differ


def replay(path: Path, show: Show, changed: Callable[[FleetSettings], FleetSettings]) -> Replayed:
    """Live the fleet of a run again, elsewhere, and compare. `changed` may say who computes.

    Raises RunError for a folder without a fleet, or with one that is not over.
    """
    runs.require(path)
    run = Run(path)
    if not run.is_over:
        raise runs.not_over(path)
    versions = runs.differences(run.versions, runs.versions())
    with tempfile.TemporaryDirectory(prefix="fedboard-fleet-") as there:
        begin_new(Path(there) / "again", changed(run.settings), show)
        again = Run(Path(there) / "again")
        differ = [*_rounds_that_differ(run, again), *_turns_that_differ(run, again)]
    return Replayed(len(run.rounds()), len(run.turns()), tuple(differ), tuple(versions))


def _rounds_that_differ(run: Run, again: Run) -> list[str]:
    differ = []
    for before, after in itertools.zip_longest(run.rounds(), again.rounds()):
        if before == after:
            continue
        if before is None or after is None:
            differ.append(f"round {(before or after).round} is in one of the two alone")
            continue
        names = [name for name in vars(before) if getattr(before, name) != getattr(after, name)]
        said = (f"{each} {getattr(before, each)}, now {getattr(after, each)}" for each in names)
        differ.append(f"round {before.round}: {', '.join(said)}")
    return differ


def _turns_that_differ(run: Run, again: Run) -> list[str]:
    before, after = run.turns(), again.turns()
    if before.tobytes() == after.tobytes():
        return []
    shared = min(len(before), len(after))
    same = [a.tobytes() == b.tobytes() for a, b in zip(before, after, strict=False)]
    first = same.index(False) if False in same else shared
    return [f"turns: {len(before):,}, now {len(after):,}; the first {first:,} are the same"]
