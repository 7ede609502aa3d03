"""Computing: settings and a bundle -> the engine that computes what devices train."""

from pathlib import Path

from device_runtime.bundle import TRAIN, Bundle
from fleet import on_ray, pool
from fleet.engines import Engine, Here, fine_tune, stand_in
from fleet.settings import Computing, Training

FOLDER = "computing"  # of a fleet's folder


def engine(settings: Training, bundle: Bundle, folder: Path) -> Engine:
    """The engine that settings name; `folder` is that of the fleet. Raises RunError where it cannot
    run.
    """
    train, graph = (fine_tune, bundle.content[TRAIN]) if settings.bundle else (stand_in, b"")
    processes = settings.processes or pool.cores()
    match settings.computing:
        case Computing.POOL:
            return pool.Pool(train, graph, processes, folder / FOLDER)
        case Computing.RAY:
            return on_ray.Ray(train, graph, processes, settings.address)
    return Here(train, graph)


def require(settings: Training) -> None:
    """Raises RunError where the engine that settings name cannot be had; nothing is begun."""
    if settings.computing is Computing.RAY:
        from fleet import on_ray

        on_ray.require(settings.address)
