"""How memory is handed out to a server: by Python, and by glibc where that is the C library."""

import contextlib
import ctypes
import gc

# objects made and not yet gone, between two looks for those that hold one another: a crowd of
# requests under way has tens of thousands, and none of them is garbage
YOUNG = 50_000
LARGE = 1 << 20  # bytes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h


def give_back_large_blocks(least: int = LARGE) -> None:
    """Let sums and bodies of so many bytes go back to the kernel when they are freed. Otherwise
    each of many threads keeps what it once needed, and a server grows.
    """
    with contextlib.suppress(OSError, AttributeError):
        change = ctypes.CDLL(None).mallopt
        for which, value in (
            (_M_ARENA_MAX, 2),
            (_M_MMAP_THRESHOLD, least),
            (_M_TRIM_THRESHOLD, least),
        ):
            change(which, value)


def look_for_garbage_rarely() -> None:
    """Let Python look for garbage seldom, and not among what a server has loaded: nearly all that
    requests leave behind goes without being looked for.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 20, 20)
