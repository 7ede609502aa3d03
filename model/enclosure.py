"""Enclosure: where a program that listens without a password runs, out of strangers' reach.

TFF's worker listens on every interface and has no option for another. Linux gives any user whose
administrator allows it a user and a network namespace: in there is one interface, its own loopback.
The worker runs there, and beside it a relay that passes on what arrives at one socket of ours. That
socket is made outside, and a socket belongs to the namespace it was made in:

    our process --> Unix socket in our folder, or one address and port   (this machine's network)
                        | inherited
                    relay --> 127.0.0.1 --> worker                       (a network of their own)

This file is also the program of the relay; it imports nothing of ours, as it is run by its path.
"""

import contextlib
import ctypes
import errno
import fcntl
import functools
import ipaddress
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

PORT = 65000  # of the worker, on the loopback that nobody else has
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG = 1
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_FLAGS = "16sH14x"  # struct ifreq: an interface's name and its flags
_PIECE = 1 << 20  # bytes passed on at once
_LAUNCHER = Path(__file__).with_name("child_process.py")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def command(inner: list[str], listener: socket.socket) -> list[str]:
    """The command that runs `inner`, which listens on `PORT`, in an enclosure behind `listener`.

    listener is a bound stream socket, handed over as an open file; it begins to listen as soon as
    the program inside does. If the program ends, so does the command, in the same way. If the
    command is ended by SIGTERM, or because its starter is gone, it removes the folder that a Unix
    socket lies in.
    """
    return [sys.executable, "-P", __file__, str(listener.fileno()), *inner]


@functools.cache
def obstacle() -> str:
    """Why this user can have no enclosure on this machine; empty if he can. It is tried once."""
    tried = subprocess.run(
        [sys.executable, "-P", __file__], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if tried.returncode == 0:
        return ""
    return (tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[-1]


@dataclass(frozen=True)
class Reach:
    """Who reaches what listens on every interface, by the addresses he would ask at."""

    neighbours: tuple[str, ...] = ()  # those of private and link-local addresses
    strangers: tuple[str, ...] = ()  # the whole internet


def reach() -> Reach:
    """Who reaches this machine.

    Where the kernel does not say which addresses this machine has, strangers do: what is not known
    to be closed is open.
    """
    try:
        routes, of_ipv6 = (Path(f"/proc/net/{name}") for name in ("fib_trie", "if_inet6"))
        ipv6 = of_ipv6.read_text() if of_ipv6.exists() else ""  # a kernel without IPv6
        return reach_at(addresses(routes.read_text(), ipv6))
    except (OSError, ValueError) as error:
        return Reach(strangers=(f"(unknown: {error})",))


def reach_at(known: list[Address]) -> Reach:
    """Who reaches a machine with these addresses.

    >>> reach_at([ipaddress.ip_address(one) for one in ("127.0.0.1", "10.0.0.2", "8.8.8.8")])
    Reach(neighbours=('10.0.0.2',), strangers=('8.8.8.8',))
    """
    return Reach(
        tuple(str(one) for one in known if not one.is_global and not one.is_loopback),
        tuple(str(one) for one in known if one.is_global),
    )


def addresses(fib_trie: str, if_inet6: str) -> list[Address]:
    """This machine's addresses, as the two files of /proc/net tell them; source: proc(5).

    >>> routes = [" |-- 192.0.2.2", "    /32 host LOCAL", " |-- 192.0.2.255", "    /32 link"]
    >>> addresses("\\n".join(routes), "00000000000000000000000000000001 01 80 10 80       lo")
    [IPv4Address('192.0.2.2'), IPv6Address('::1')]
    """
    ipv4 = set(re.findall(r"-- (\S+)\n\s+/32 host LOCAL", fib_trie))
    ipv6 = {int(line.split()[0], 16) for line in if_inet6.splitlines() if line.strip()}
    return [
        *sorted(map(ipaddress.IPv4Address, ipv4)),
        *sorted(map(ipaddress.IPv6Address, ipv6)),
    ]


def _enter() -> None:
    """Leave this machine's network for one of our own, with its loopback up. Raises OSError."""
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")
    # the same ids inside, so that what is written stays ours
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket() as any_socket:
        asked = struct.pack(_FLAGS, b"lo", 0)
        flags = struct.unpack(_FLAGS, fcntl.ioctl(any_socket, _SIOCGIFFLAGS, asked))[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack(_FLAGS, b"lo", flags | _IFF_UP))


def _try() -> None:
    try:
        _enter()
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        sys.exit(error.strerror or str(error))


def _run(listener: socket.socket, inner: list[str]) -> None:
    """Run the program and the relay until one of us ends; end as the program did."""
    starter = os.getppid()
    _enter()
    with listener:
        # in a session of its own and killed by the kernel if we are
        program = subprocess.Popen([sys.executable, "-P", str(_LAUNCHER), str(os.getpid()), *inner])

        def end(*_: object) -> None:
            program.kill()
            # also if our starter lives: it may be about to end, and can make the folder again
            if listener.family == socket.AF_UNIX:
                shutil.rmtree(Path(listener.getsockname()).parent, ignore_errors=True)

        signal.signal(signal.SIGTERM, end)
        # not SIGKILL, which would leave the folder
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != starter:
            end()
        # not to a thread of the relay: only this one would look up and end the program
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_relay, args=(listener,), daemon=True).start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        code = program.wait()
    if code >= 0:
        sys.exit(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what it died of is not our fault
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), -code)


def _relay(listener: socket.socket) -> None:
    while not _connected():
        time.sleep(0.02)
    listener.listen()
    while True:
        try:
            outer, _ = listener.accept()
        except OSError as error:
            if error.errno in (errno.ECONNABORTED, errno.EMFILE, errno.ENFILE):
                time.sleep(0.02)
                continue
            return  # the program has ended
        if inner := _connected():
            for one in (outer, inner):
                if one.family != socket.AF_UNIX:
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for pair in ((outer, inner), (inner, outer)):
                threading.Thread(target=_pass_on, args=pair, daemon=True).start()
        else:
            outer.close()


def _connected() -> socket.socket | None:
    with contextlib.suppress(OSError):
        return socket.create_connection(("127.0.0.1", PORT))
    return None


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    """Pass bytes on until their source has no more; both sockets close with the last use of them.

    What breaks on one side is broken off on the other.
    """
    piece = memoryview(bytearray(_PIECE))
    try:
        while size := source.recv_into(piece):
            sink.sendall(piece[:size])
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        _try()
    else:
        _run(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
