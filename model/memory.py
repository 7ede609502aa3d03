"""How glibc hands out memory, to TFF's worker and to this process.

With another C library all of it does nothing.
"""

import contextlib
import ctypes

# Each client's tensors are freed before the next one's are made. glibc would return the larger ones
# to the kernel every time and fetch them again page by page, and threads that do so wait for each
# other. These keep them, in few large pages.
WORKER = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # the most that glibc accepts
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
    "MALLOC_TOP_PAD_": str(32 << 20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
_M_ARENA_MAX = -8  # of malloc.h


def use_one_heap() -> None:
    """Let all threads share one heap from now on.

    Otherwise what one thread frees stays with it, and a process that trains for hours grows.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def trim() -> None:
    """Return to the kernel what is free."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
