"""Begin: settings and a folder -> a fleet that is about to live its first day."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from device_runtime import limits
from device_runtime.bundle import CHECKPOINT, Bundle
from device_runtime.home import DeviceConfig
from device_runtime.signing import name_of, public_hex
from device_runtime.terms import Aggregation
from device_runtime.weights import from_bytes
from device_runtime.wire import Enrolment, Plan
from fleet import bundles, computing, pocket, population
from fleet.availability import Always, Availability
from fleet.doors import Door, Http, Memory
from fleet.faults import Faulty, Luck
from fleet.pocket import Shared
from fleet.population import Population
from fleet.servers import Servers
from fleet.settings import START, FleetSettings, Way
from fleet.simulate import Fleet
from fleet.typed import Typed
from server.task import for_bundle

TYPED = "typed"  # of a fleet's folder: what is typed on its devices
AT_ONCE = 10_000  # devices that enrol in one transaction


def begin(
    settings: FleetSettings,
    folder: Path,
    lives: Availability | None = None,
    watched: Callable[[Door], Door] = lambda door: door,
) -> Fleet:
    """A fleet in a folder that is empty, or holds what was typed alone. `watched`: who looks at
    what comes to the server.
    """
    bundle: Bundle = bundles.installed(settings.training, settings.task.plan)
    typed = typed_in(folder / TYPED, bundle.plan)
    luck = Luck(settings.faults, settings.seed)
    devices = luck.slowed(population.make(settings.population, len(typed.messages), settings.seed))
    os.makedirs(folder, exist_ok=True)
    helped = settings.task.aggregation is Aggregation.HELPER
    servers = Servers(folder, settings.seed, settings.task.least_count if helped else 0)
    door = watched(door_of(settings, servers, devices))
    if settings.faults.any:
        door = Faulty(door, luck, servers)
    servers.begin(
        for_bundle(settings.task, bundle.plan),
        from_bytes(bundle.content[CHECKPOINT]),
        START,
    )
    shared = Shared(
        settings.seed,
        devices,
        luck.interrupted(Always() if lives is None else lives),
        typed,
        bundle,
        limits.of(bundle.plan, settings.limits, bundle.manifest.server_factor),
        DeviceConfig(trusted=tuple(servers.trusted), population=settings.task.population),
        servers.coordinator.server,
        settings.needed,
        luck,
    )
    engine = computing.engine(settings.training, bundle, folder)
    return Fleet(settings, shared, servers, door, engine)


def door_of(settings: FleetSettings, servers: Servers, devices: Population) -> Door:
    """The way to servers that know all devices from now on."""
    if settings.way is Way.HTTP:
        over = Http(lambda: servers.coordinator, partial(pocket.key_of, settings.seed))
        over.enrol(range(len(devices)), START)
        return over
    names = enrolled(servers, devices, settings.seed)
    return Memory(lambda: servers.coordinator, names.__getitem__)


def typed_in(folder: Path, plan: Plan) -> Typed:
    """What is typed on the devices: the users in a folder, or one who is made up."""
    if folder.is_dir():
        return Typed.load(folder)
    return Typed.made_up(500, plan.length, plan.length)


def enrolled(servers: Servers, devices: Population, seed: int) -> list[str]:
    """The names of all devices, which the server knows from now on."""
    names: list[str] = []
    for first in range(0, len(devices), AT_ONCE):
        some = range(first, min(first + AT_ONCE, len(devices)))
        keys = [public_hex(pocket.key_of(seed, number)) for number in some]
        servers.coordinator.enrol_all([Enrolment(key) for key in keys], START)
        names += map(name_of, keys)
    return names
