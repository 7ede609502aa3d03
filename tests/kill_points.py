"""Ends a process at its n-th step on disk, for n = 1, 2, ... until it gets through: what each leaves is what a crash there would leave.

A step is a file opened for writing, renamed or removed, a folder made or removed, or an SQL statement: all that Python's audit hooks and SQLite tell.
"""

import os
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.utime", "os.chmod", "sqlite3.connect"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def every_kill(prepare: Callable[[], None], act: Callable[[], object], check: Callable[[], object], most: int = 500) -> int:
    """Prepare, let a child process act and kill it at its n-th step, then check; for every n. The number of steps."""
    for number in range(1, most):
        prepare()
        child = os.fork()
        if child == 0:
            _act_and_die(act, number)
        status = _ended(child)
        check()
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0, "the act failed by itself"
            return number - 1
    raise AssertionError(f"more than {most} steps")


def _ended(child: int, within_s: float = 60.0) -> int:
    """The status a child ends with; one that hangs is ended and fails the test."""
    end = time.monotonic() + within_s
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"the act did not end within {within_s:.0f} s")
        time.sleep(0.002)


def _act_and_die(act: Callable[[], object], number: int) -> None:
    left = number

    def step(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple) -> None:
        if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
            step()

    connect = sqlite3.connect

    def traced(*arguments: object, **named: object) -> sqlite3.Connection:
        connection = connect(*arguments, **named)
        connection.set_trace_callback(step)
        return connection

    try:
        sqlite3.connect = traced  # in this child only
        sys.addaudithook(hook)
        act()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
