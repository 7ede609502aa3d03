"""How glibc hands out memory to a server. With another C library all of it does nothing."""

import contextlib
import ctypes

LARGE = 1 << 20  # bytes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h


def give_back_large_blocks() -> None:
    """Let sums and bodies go back to the kernel when they are freed. Otherwise each of many threads
    keeps what it once needed, and a server grows.
    """
    with contextlib.suppress(OSError, AttributeError):
        change = ctypes.CDLL(None).mallopt
        for which, value in (
            (_M_ARENA_MAX, 2),
            (_M_MMAP_THRESHOLD, LARGE),
            (_M_TRIM_THRESHOLD, LARGE),
        ):
            change(which, value)
