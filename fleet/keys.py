"""Keys: the public keys of all devices of a fleet, made by all cores where they are many."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context

from device_runtime.errors import RunError
from device_runtime.signing import public_hex
from fleet import pocket, pool

AT_ONCE = 10_000  # devices
MANY = 100_000  # devices: for fewer a process takes longer to start than it spares


def of_all(seed: int, devices: int, processes: int) -> Iterator[list[str]]:
    """The public keys (hexadecimal) of devices 0 to `devices` - 1, some thousands at a time.
    Raises RunError if a process of its own dies.
    """
    groups = [range(first, min(first + AT_ONCE, devices)) for first in range(0, devices, AT_ONCE)]
    of = partial(_of, seed)
    if devices < MANY or processes < 2:
        yield from map(of, groups)
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, context, pool.end_with_parent) as executor:
        with pool.only_here():
            keys = executor.map(of, groups)
        try:
            yield from keys
        except BrokenProcessPool as error:
            raise RunError(
                "fleet",
                "a process died that makes the keys of devices",
                "give the machine more memory, or ask for fewer devices",
            ) from error


def _of(seed: int, devices: range) -> list[str]:
    return [public_hex(pocket.key_of(seed, device)) for device in devices]
