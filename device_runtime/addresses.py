"""Addresses: which of them reach this machine only."""

import functools
import ipaddress


@functools.lru_cache(maxsize=10_000)
def is_loopback(host: str) -> bool:
    """Whether an address, as it is written, reaches this machine only. No name is looked up: what a
    name stands for is another's to say.

    >>> [is_loopback(each) for each in ("localhost", "127.8.0.1", "::1", "::ffff:127.0.0.1")]
    [True, True, True, True]
    >>> [is_loopback(each) for each in ("0.0.0.0", "localhost.example", "127.1", "10.0.0.1", "")]
    [False, False, False, False, False]
    """
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    inside = getattr(address, "ipv4_mapped", None)
    return (inside or address).is_loopback
