"""Computing: settings and a bundle -> the engine that computes what devices train."""

from device_runtime.bundle import TRAIN, Bundle
from fleet.engines import Engine, Here, fine_tune, stand_in
from fleet.settings import Training


def engine(settings: Training, bundle: Bundle) -> Engine:
    """The engine that settings name."""
    train, graph = (fine_tune, bundle.content[TRAIN]) if settings.bundle else (stand_in, b"")
    return Here(train, graph)
