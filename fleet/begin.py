"""Begin: settings and a run's folder -> a fleet about to live its first day, or to go on with one.

RUN/typed/           what was typed, if not by one user who is made up
RUN/server/          what the servers keep
RUN/devices.bin      the names of the devices: made once, since that takes long
RUN/computing/       weights on their way to who computes
RUN/state/           `saved.py`
"""

import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from device_runtime import limits
from device_runtime.bundle import CHECKPOINT
from device_runtime.home import DeviceConfig
from device_runtime.signing import name_of
from device_runtime.terms import Aggregation
from device_runtime.weights import from_bytes
from device_runtime.wire import Enrolment, Plan
from fleet import bundles, computing, keys, pocket, pool, saved
from fleet.availability import Availability
from fleet.doors import Door, Http, Memory
from fleet.faults import Faulty, Luck, Unsteady
from fleet.lives import of, people
from fleet.pocket import Shared
from fleet.population import Population
from fleet.saved import SERVER, Saves
from fleet.servers import Servers
from fleet.settings import START, FleetSettings, Way
from fleet.simulate import Fleet, State
from fleet.typed import Typed
from server.task import for_bundle, in_language_of

TYPED = "typed"  # of a run's folder
ANYBODY = 2**31  # more users than type anywhere
NAMES, NAME_BYTES = "devices.bin", 16

# who looks at what comes to the server
Watched = Callable[[Door], Door]


def begin(
    settings: FleetSettings,
    run: Path,
    lives: Availability | None = None,
    watched: Watched = lambda door: door,
) -> Fleet:
    """A fleet in a folder without one. `lives`: when its devices are ready, if not as the settings
    say.
    """
    os.makedirs(run / SERVER, exist_ok=True)
    servers = _servers(settings, run)
    shared = _shared(settings, servers, run, lives)
    names = enrolled(settings, servers, shared.population)
    (run / NAMES).write_bytes("".join(names).encode())
    fleet = _fleet(settings, shared, servers, run, watched)
    servers.begin(
        for_bundle(in_language_of(settings.task, shared.bundle.manifest), shared.bundle.plan),
        from_bytes(shared.bundle.content[CHECKPOINT]),
        START,
    )
    return fleet


def require(settings: FleetSettings) -> None:
    """Raises what is wrong with settings that a folder can show, before anything is written."""
    bundle = bundles.installed(settings.training, settings.task.plan)
    for_bundle(settings.task, bundle.plan)
    named = settings.population
    if named.folder or named.traces:
        of(named, people(named, ANYBODY, settings.seed), settings.seed)
    computing.require(settings.training)


def go_on(
    settings: FleetSettings,
    run: Path,
    saves: Saves,
    lives: Availability | None = None,
    watched: Watched = lambda door: door,
) -> Fleet | None:
    """The fleet in a folder, where it was saved last; None if it never was. Raises RunError for a
    save that cannot be read.
    """
    values = saves.put_back()
    if values is None:
        return None
    servers = _servers(settings, run)
    try:
        shared = _shared(settings, servers, run, lives)
        state, drawn = saved.read(values.read_bytes(), shared, values)
        servers.go_on(drawn)
        return _fleet(settings, shared, servers, run, watched, state)
    except BaseException:
        servers.close()
        raise


def _servers(settings: FleetSettings, run: Path) -> Servers:
    helped = settings.task.aggregation is Aggregation.HELPER
    of = run / SERVER, settings.seed, settings.task.least_count if helped else 0
    if settings.faults.any:
        return Unsteady(*of, luck=Luck(settings.faults, settings.seed))
    return Servers(*of)


def _shared(
    settings: FleetSettings, servers: Servers, run: Path, lives: Availability | None
) -> Shared:
    bundle = bundles.installed(settings.training, settings.task.plan)
    typed = typed_in(run / TYPED, bundle.plan)
    luck = Luck(settings.faults, settings.seed)
    devices = luck.slowed(_people(settings, typed))
    if lives is None:
        lives = of(settings.population, devices, settings.seed)
    return Shared(
        settings.seed,
        devices,
        luck.interrupted(lives),
        typed,
        bundle,
        limits.of(bundle.plan, settings.limits, bundle.manifest.server_factor),
        DeviceConfig(
            trusted=tuple(sorted({*servers.trusted})), population=settings.task.population
        ),
        servers.coordinator.server,
        settings.needed,
        luck,
    )


def people_of(settings: FleetSettings, run: Path) -> Population:
    """The devices of a run."""
    bundle = bundles.installed(settings.training, settings.task.plan)
    return _people(settings, typed_in(run / TYPED, bundle.plan))


def _people(settings: FleetSettings, typed: Typed) -> Population:
    return people(settings.population, len(typed.messages), settings.seed)


def _fleet(
    settings: FleetSettings,
    shared: Shared,
    servers: Servers,
    run: Path,
    watched: Watched,
    state: State | None = None,
) -> Fleet:
    door = watched(door_of(settings, servers, run))
    faulty = Faulty(door, shared.luck, servers) if settings.faults.any else None
    engine = computing.engine(settings.training, shared.bundle, run)
    fleet = Fleet(settings, shared, servers, faulty or door, engine, state)
    if faulty is not None:
        faulty.late = fleet.state.late
    return fleet


def door_of(settings: FleetSettings, servers: Servers, run: Path) -> Door:
    """The way to servers that know all devices."""
    if settings.way is Way.HTTP:
        return _over_http(settings, servers)
    names = (run / NAMES).read_bytes().decode()
    places = range(0, len(names), NAME_BYTES)
    each = [names[first : first + NAME_BYTES] for first in places]
    return Memory(lambda: servers.coordinator, each.__getitem__)


def _over_http(settings: FleetSettings, servers: Servers) -> Http:
    luck = Luck(settings.faults, settings.seed)
    key_of = partial(pocket.key_of, settings.seed)
    return Http(lambda: servers.coordinator, key_of, luck.skew)


def typed_in(folder: Path, plan: Plan) -> Typed:
    """What is typed on the devices: the users in a folder, or one who is made up."""
    if folder.is_dir():
        return Typed.load(folder)
    return Typed.made_up(500, plan.length, plan.length)


def enrolled(settings: FleetSettings, servers: Servers, devices: Population) -> list[str]:
    """The names of all devices, which the server knows from now on."""
    if settings.way is Way.HTTP:
        with contextlib.closing(_over_http(settings, servers)) as door:
            return door.enrol(range(len(devices)), START)
    names: list[str] = []
    for some in keys.of_all(settings.seed, len(devices), pool.cores()):
        servers.coordinator.enrol_all([Enrolment(key) for key in some], START)
        names += map(name_of, some)
    return names
