"""`fedboard helper`: the process of another party that opens sums and sees no update."""

import contextlib
import math
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from device_runtime.errors import RunError
from fedboard import console
from fedboard.options import MOST_DEVICES

DATABASE = "FEDBOARD_HELPER_DATABASE"  # environment: secrets stay out of files and commands
KEY, LOCK, SQLITE = "helper.key", "helper", "helper.sqlite"


def helper(
    dir: Annotated[
        Path,
        typer.Option(
            help="The helper's folder: its key, the leader's token, its database, the keys of "
            "rounds."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="0: any free one, written to DIR/address.")
    ] = 8100,
    least: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_DEVICES,
            help="Devices of the smallest sum it opens; by default as many as hide one well, 100.",
        ),
    ] = None,
    trust: Annotated[
        list[Path] | None,
        typer.Option(
            help="Public key file of a bundle's maker whose tasks it serves, as often as there are "
            "makers; by default any maker's."
        ),
    ] = None,
    enrolment_key: Annotated[
        Path | None,
        typer.Option(
            help="Public key file of whoever certifies devices: only those count towards the "
            "smallest sum."
        ),
    ] = None,
    max_epsilon: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1e6,
            help="Serve no task whose privacy budget is larger; by default it may be any.",
        ),
    ] = None,
    require_noise: Annotated[
        bool, typer.Option("--require-noise", help="Serve no task whose sums carry no noise.")
    ] = False,
    database: Annotated[
        str | None,
        typer.Option(
            help=f"SQLAlchemy URL of its database, unless {DATABASE} holds it; by default a file "
            "in DIR."
        ),
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="Certificate, PEM, with those between it and the root.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, if in another file.")] = (
        None
    ),
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Listen for other machines without TLS: behind a proxy that has it."
        ),
    ] = False,
) -> None:
    """Open sums of masked updates for a server, and see none of them: run by somebody else than
    the server.

    State survives a restart, and kill -9.
    """
    from device_runtime import durable, signing
    from device_runtime.helper_wire import TOKEN, TOKEN_FILE
    from device_runtime.terms import LEAST_COUNT
    from fedboard.run import public_key, trusted_keys, writable
    from fedboard.serve import Listening, require_address, require_private, tls_options, url_of
    from helper.desk import Desk, places_in
    from helper.endpoint import Access, app, serve
    from helper.store import Store, require_ours
    from helper.tasks import Rules
    from server import access, disk, logs
    from server.connections import bind
    from server.contract import ADDRESS
    from server.settings import Tls

    tls = tls_options(Tls(*(str(each) if each else "" for each in (tls_certificate, tls_key))))
    require_private(
        Listening(host, port, insecure), bool(tls), "give --tls-certificate and --tls-key"
    )
    makers = trusted_keys(trust) if trust else frozenset()
    remedy = "give the public key of whoever certifies devices: --enrolment-key FILE"
    certifier = public_key(enrolment_key, remedy) if enrolment_key else ""
    with contextlib.ExitStack() as ending:
        sock = ending.enter_context(bind(host, port))
        with writable(dir):
            dir.mkdir(mode=0o700, exist_ok=True)  # who took part is nobody else's affair
        with writable(dir / ADDRESS) as address:
            require_address(address)
        if not (dir / KEY).exists():
            _require_no_server(dir)
        require_ours(dir / SQLITE)
        identity = signing.load_or_create(dir / KEY)
        rules = Rules(
            signing.public_hex(identity),
            least or LEAST_COUNT,
            makers,
            certifier,
            math.inf if max_epsilon is None else max_epsilon,
            require_noise,
        )
        url_of_database = os.environ.get(DATABASE) or database
        if url_of_database:  # the lock of an SQLite file is of this folder too
            ending.callback(disk.Held(dir / LOCK).close)
        store = Store(url_of_database or dir / SQLITE, rules.helper)
        ending.callback(store.close)
        # only now: what stands in the folder may be another helper's
        with writable(dir / ADDRESS) as address:
            address.unlink(missing_ok=True)
        token = access.token(dir, os.environ.get(TOKEN), TOKEN_FILE)
        desk = Desk(store, places_in(dir), identity, rules, os.urandom)
        url = url_of(host, sock.getsockname()[1], bool(tls))
        console.say(f"helper {rules.helper}")
        place = TOKEN if os.environ.get(TOKEN) else dir / TOKEN_FILE
        console.say(f"listening on {url}; its leader needs the token in {place}")
        _say_what_it_can(rules.least, sorted(makers), certifier)
        _say_what_it_adds(max_epsilon, require_noise)
        durable.share(address, f"{url}\n".encode())
        logs.begin()
        serve(app(desk, Access(token), time.time), sock, **tls)


def _require_no_server(folder: Path) -> None:
    """Raises RunError for the folder of a server: its address would be replaced, and a copy of the
    folder would hold what both have.
    """
    from server.contract import TOKEN_FILE as OF_OPERATOR

    if (folder / OF_OPERATOR).exists():
        raise RunError(
            folder,
            f"expected a helper's own folder, found that of a server ({OF_OPERATOR})",
            "give another one, better on a machine of somebody else",
        )


def _say_what_it_can(least: int, makers: list[str], certifier: str) -> None:
    console.say(
        "it sees who took part in which round, and no update: neither words nor numbers of one",
        "together with the server whose sums it opens it could read every update: whoever runs "
        "both can",
    )
    from device_runtime.terms import LEAST_COUNT

    few = least < LEAST_COUNT
    console.say(
        f"it opens sums of at least {least} devices"
        + (f"; expected at least {LEAST_COUNT}: among few, one is easily guessed" if few else ""),
        style="red" if few else "",
    )
    if makers:
        console.say("it serves tasks signed by " + ", ".join(makers))
    else:
        console.say("it serves tasks signed by anybody; --trust FILE names whose alone")
    if certifier:
        console.say(f"only devices certified by {certifier} count towards its least")
    else:
        console.say(
            "any key counts as a device: a server could invent some to fill a sum around one; "
            "--enrolment-key FILE counts those alone that somebody has certified"
        )


def _say_what_it_adds(max_epsilon: float | None, require_noise: bool) -> None:
    from helper.tasks import MOST_DELTA

    console.say(
        "it adds noise to the sums of a task whose terms have some, which the server never sees "
        "without it, and opens none that would pass the task's budget by its own account"
    )
    if not require_noise:
        console.say(
            "it serves tasks without noise too, whose sums show what is in them; --require-noise "
            "serves none"
        )
    if max_epsilon is None:
        console.say("a task's budget may be any; --max-epsilon E serves none with a larger one")
    else:
        console.say(
            f"it serves no task with a budget larger than epsilon {max_epsilon:g} at a delta of "
            f"at most {MOST_DELTA:g}"
        )
