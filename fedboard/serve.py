"""The server stage: a bundle and a folder -> a running service."""

from dataclasses import dataclass, field
from pathlib import Path

from device_runtime import weights
from device_runtime.bundle import Bundle
from device_runtime.errors import RunError
from fedboard import console
from fedboard.run import writable, write_whole
from server.aggregation import ServerStep
from server.eligibility import Policy
from server.rounds import Rules

ADDRESS = "address"  # file in the server's folder that holds its URL once it listens


@dataclass(frozen=True)
class ServerSettings:
    """server.toml: the rules of a task."""

    seed: int | None = None  # None: the operating system's randomness
    rules: Rules = field(default_factory=Rules)
    policy: Policy = field(default_factory=Policy)
    step: ServerStep = field(default_factory=ServerStep)


def serve(folder: Path, bundle: Bundle | None, settings: ServerSettings, host: str, port: int, now: float) -> None:
    """Serve until stopped. A folder that holds a task goes on with it; an empty one needs a bundle to start from."""
    from server.coordinator import Coordinator, create_task, has_task, open_folder
    from server.endpoint import app, bind
    from server.endpoint import serve as run

    with bind(host, port) as sock:
        with writable(folder / ADDRESS) as address:
            address.unlink(missing_ok=True)
        store, blobs = open_folder(folder)
        if has_task(store):
            console.say("going on with the task in this folder")
        elif bundle is None:
            raise RunError(folder, "holds no task yet", "pass --bundle to start one")
        else:
            create_task(store, blobs, bundle.checkpoint, bundle.plan, settings.rules, settings.policy, settings.step, now, settings.seed)
        url = f"http://{host if ':' not in host else f'[{host}]'}:{sock.getsockname()[1]}"
        console.say(f"listening on {url}")
        write_whole(address, f"{url}\n".encode())
        run(app(Coordinator(store, blobs)), sock)


def newest_checkpoint(folder: Path) -> weights.Checkpoint:
    """The float32 checkpoint a server's folder ends with."""
    from server.coordinator import Coordinator, open_folder

    store, blobs = open_folder(folder)
    stored = Coordinator(store, blobs).checkpoint
    return weights.from_bytes(blobs.get(stored.sha), folder)
