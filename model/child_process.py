"""Child processes that never outlive us: ended when we end, killed by the kernel if we are killed.

The child runs in a session of its own, so Ctrl-C reaches only us and we end it in order. Before it
becomes the command it asks the kernel for SIGKILL at our death (Linux, prctl PR_SET_PDEATHSIG). Its
output goes to a file, never to a pipe that it could keep open.
"""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def start(
    command: list[str],
    log: Path | None = None,
    environment: dict[str, str] | None = None,
    pass_fds: tuple[int, ...] = (),
) -> subprocess.Popen:
    """Start a command whose output goes to `log` (or nowhere).

    Call it from a thread that lives as long as the child should.
    """
    # by its path: no folder on the way decides what runs
    launcher = [sys.executable, "-P", __file__, str(os.getpid()), *command]
    with open(log or os.devnull, "ab") as output:
        return subprocess.Popen(
            launcher,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=pass_fds,
            env={**os.environ, **(environment or {})},
        )


def end(child: subprocess.Popen, patience_s: float = 10.0) -> int:
    """Ask the child to stop, then make it; returns its exit code."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(patience_s)
        except subprocess.TimeoutExpired:
            child.kill()
    return child.wait()


def peak_memory_mb(pid: int) -> float:
    """Peak resident memory of a process since it became its command.

    getrusage would count the parent it was forked from.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def _become(parent: int, command: list[str]) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request to be told
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
