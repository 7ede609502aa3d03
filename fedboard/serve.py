"""The server stage: a folder, or a database and a store of blobs, -> a running service."""

import contextlib
import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from device_runtime import durable
from device_runtime.addresses import is_loopback
from device_runtime.bundle import Bundle
from device_runtime.errors import RunError
from device_runtime.helper_wire import TOKEN as HELPER_TOKEN
from device_runtime.helper_wire import TOKEN_FILE as HELPER_TOKEN_FILE
from device_runtime.shown import command
from device_runtime.terms import Aggregation, why_exposed
from device_runtime.wire import CERTIFIED
from fedboard import console
from fedboard.helper_commands import KEY as HELPER_KEY
from fedboard.run import writable
from server.contract import ADDRESS, TOKEN, TOKEN_FILE
from server.settings import ServerSettings, Tls
from server.task import State, for_bundle, in_language_of, settings_of, terms, why_devices_refuse

if TYPE_CHECKING:  # the command line starts without it
    from server.helper_client import Helper
    from server.store import Store

# environment: secrets stay out of files and commands
DATABASE, BLOBS = "FEDBOARD_DATABASE", "FEDBOARD_BLOBS"


@dataclass(frozen=True)
class Listening:
    """Where a server listens."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    insecure: bool = False  # for other machines without TLS: behind a proxy that has it


def serve(
    folder: Path,
    bundle: Bundle | None,
    settings: ServerSettings,
    at: Listening,
    now: float,
    helper: str | None = None,
) -> None:
    """Serve until stopped. A server that has tasks goes on with them; one that has none starts one
    from a bundle, or waits for one to be made.

    `helper` is the address of the helper that opens sums; by default one runs beside the server, if
    any task has its sums opened so.
    """
    from server import access, chain, disk, logs, tasks
    from server.coordinator import Coordinator, open_folder
    from server.endpoint import Access, app, bind
    from server.endpoint import serve as run

    local, tls = access.is_loopback(at.host), tls_options(settings.tls)
    # by default
    is_open = settings.access.lets_in(local) and not at.insecure
    require_private(at, bool(tls), "set [tls] certificate and key")
    if helper is not None and not os.environ.get(HELPER_TOKEN):
        _line(folder / HELPER_TOKEN_FILE)  # before a folder is made for a server that cannot run
    with contextlib.ExitStack() as ending:
        sock = ending.enter_context(bind(at.host, at.port))
        with writable(folder / ADDRESS) as address:
            require_address(address)
        if (folder / HELPER_KEY).exists():
            raise RunError(
                folder,
                f"expected a server's own folder, found that of a helper ({HELPER_KEY})",
                "give another one: whoever has both can read every update",
            )
        store, blobs = open_folder(
            folder,
            os.environ.get(DATABASE) or settings.storage.database,
            os.environ.get(BLOBS) or settings.storage.blobs,
        )
        ending.callback(store.close)
        if store.shared:  # the lock of an SQLite file is of this folder too
            ending.callback(disk.Held(folder / "replica").close)
        # only now: what stands in the folder may be another server's
        with writable(folder / ADDRESS) as address:
            address.unlink(missing_ok=True)
        token = access.token(folder, os.environ.get(TOKEN))
        coordinator = Coordinator(
            store,
            blobs,
            helper=_helper(folder, settings, store, helper, ending),
            codes_needed=settings.access.enrolment == "code"
            or not (is_open or settings.access.enrolment),
        )
        if stored := coordinator.tasks():
            console.say("going on with the tasks of this server")
            for each in stored:
                if each.state is State.RUNNING and (refused := why_devices_refuse(each.task)):
                    console.say(f"{each.task.name}: {refused}")
                if each.task.kind in CERTIFIED and (bad := why_exposed(terms(each.task))):
                    console.say(f"{each.task.name}: {bad}", style="red")
                with store.reading() as rows:
                    to_do = chain.what_to_do(rows, each.task, each.state, now)
                if to_do:
                    console.say(f"{each.task.name}: {to_do}")
        elif bundle is not None:
            task = for_bundle(in_language_of(settings_of(settings), bundle.manifest), bundle.plan)
            tasks.create(coordinator, task, now, bundle.checkpoint)
            sums = (
                ()
                if task.aggregation is Aggregation.HELPER
                else ("--aggregation", task.aggregation)
            )
            certify = command("task", "certify", task.name, *sums, "--dir", folder)
            console.say(
                "devices get work once the bundle's maker has certified this task, in another "
                f"terminal: {certify}"
            )
        else:
            first = command("task", "create", "default", "--bundle", "BUNDLE", "--dir", folder)
            console.say(f"no task yet; start one: {first}")
        url = url_of(at.host, sock.getsockname()[1], bool(tls))
        readers = settings.access.readers == "open" or (is_open and not settings.access.readers)
        console.say(
            f"listening on {url}; open it in a browser to watch"
            + ("" if readers else f" (password: the token in {folder / TOKEN_FILE})")
        )
        durable.share(address, f"{url}\n".encode())
        logs.begin()
        doors = settings.access
        allowed = Access(
            token,
            readers,
            reads_only_here=not doors.readers,
            enrols_only_here=is_open and not doors.enrolment,
            limits=settings.limits,
            behind_proxy=doors.behind_proxy,
            origins=doors.origins,
        )
        run(app(coordinator, access_=allowed), sock, **tls)


def _helper(
    folder: Path,
    settings: ServerSettings,
    store: "Store",
    address: str | None,
    ending: contextlib.ExitStack,
) -> "Helper | None":
    """The helper that this server asks, which is started if it is to run beside it; None where
    nobody is to open sums so. Says who can see updates. Raises RunError if it cannot be had.
    """
    from fedboard.beside import Beside
    from server.helper_client import Helper, over_http

    told = os.environ.get(HELPER_TOKEN)
    if address is not None:
        token = told or _line(folder / HELPER_TOKEN_FILE)
        is_here = is_loopback(urlsplit(address).hostname or "")
        console.say(
            f"sums are opened by the helper at {address}: neither it nor this server sees an "
            "update, unless one party runs both" + (", as on this machine" if is_here else ""),
            style="red" if is_here else "",
        )
        return Helper(over_http(lambda: address), token, is_beside=is_here)
    with store.reading() as rows:
        kept = {each.task.aggregation for each in rows.tasks() if each.task.kind in CERTIFIED}
    wanted = kept | {settings.aggregation}
    if Aggregation.PLAIN in wanted:
        console.say("plain: this server can read every update", style="red")
    if Aggregation.HELPER not in wanted:
        return None
    if store.shared:
        console.say(
            "no helper is asked: the servers that share a database need one for all of them; name "
            f"it with --helper URL, and its token in {HELPER_TOKEN}"
        )
        return None
    beside = Beside(folder)
    ending.enter_context(beside.running())
    console.say(
        f"a helper runs beside this server, in {beside.folder}: whoever runs both can see every "
        "update; let another party run one, and name it with --helper URL",
        style="red",
    )
    return Helper(over_http(beside.address), told or beside.token(), is_beside=True)


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(
            path,
            f"the helper's token cannot be read ({getattr(error, 'strerror', None) or error})",
            f"write there what its owner has given you, or set {HELPER_TOKEN}",
        ) from None


def require_private(at: Listening, has_tls: bool, remedy: str) -> None:
    """Raises RunError if other machines could read along; `remedy` is how to get TLS."""
    from server import access

    if not (access.is_loopback(at.host) or has_tls or at.insecure):
        raise RunError(
            f"--host {at.host}",
            "other machines could read along",
            f"{remedy}, or pass --insecure behind a TLS proxy",
        )


def url_of(host: str, port: int, has_tls: bool) -> str:
    """Where whoever listens on a host's port can be reached from this machine.

    >>> url_of("::", 80, False), url_of("fd00::1", 443, True)
    ('http://127.0.0.1:80', 'https://[fd00::1]:443')
    """
    reachable = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"{'https' if has_tls else 'http'}://{reachable}:{port}"


def require_address(path: Path) -> None:
    """Raises RunError if something else than a server's address stands in its place: it would be
    replaced.
    """
    try:
        is_ours = re.fullmatch(r"https?://\S+\n", path.read_text()) is not None
    except FileNotFoundError:
        return
    except UnicodeDecodeError:
        is_ours = False
    if not is_ours:
        raise RunError(
            path,
            "is not a server's address, and a server writes its own there",
            "choose another folder, or move the file away",
        )


def tls_options(settings: Tls) -> dict[str, str]:
    """Uvicorn's options for it. Raises RunError for a certificate or key that cannot be used."""
    if not settings.certificate:
        return {}
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            settings.certificate, settings.key or None
        )
    except (OSError, ssl.SSLError) as error:
        where = settings.key or settings.certificate
        raise RunError(
            where,
            "the certificate and its key cannot be used "
            f"({getattr(error, 'strerror', None) or error})",
            "see [tls]",
        ) from None
    return {
        "ssl_certfile": settings.certificate,
        "ssl_keyfile": settings.key or settings.certificate,
    }
