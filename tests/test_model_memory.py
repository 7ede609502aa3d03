"""How glibc hands out memory: asked of glibc itself, in processes of their own."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from model import memory, worker

HEAPS = """
import ctypes, sys, threading
from model import memory
if sys.argv[1] == "one":
    memory.use_one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
together = threading.Barrier(4)

def allocate():
    libc.malloc(1000)
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
memory.trim()
report = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, report)
libc.fclose(report)
"""

glibc_only = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="these are settings of glibc"
)


def heaps(how: str) -> int:
    result = subprocess.run(
        [sys.executable, "-c", HEAPS, how],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    return result.stdout.count("<heap nr=")


@glibc_only
def test_threads_share_one_heap_where_each_had_its_own():
    assert heaps("one") == 1
    assert heaps("many") > 1


@pytest.mark.tensorflow
@glibc_only
def test_the_worker_starts_with_settings_that_keep_its_memory():
    with worker.running(1) as on:
        environment = Path(f"/proc/{on.process.pid}/environ").read_text().split("\0")
        assert {f"{name}={value}" for name, value in memory.WORKER.items()} <= set(environment)
