"""server.toml: the settings of a task and of the server that runs it, as they are written down.

An operator's client reads the same file and needs none of a server's packages.
"""

import ipaddress
import re
from dataclasses import dataclass, field

from device_runtime.errors import ConfigError
from server.task import TaskSettings

ENROLMENT, READERS = ("", "open", "code"), ("", "open", "token")
_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
# of a proxy's network, by version: 10.0.0.0/8 and fc00::/7 are the largest that can be one's own
_LEAST_PREFIX = {4: 8, 6: 7}
_NEVER_UNLIMITED = ("body_s", "least_bytes_per_s", "bodies_bytes", "header_s", "header_bytes")
# what a task's settings hold and a file of them does not decide, and who does
_BESIDE = (
    "a task that scores is made by `fedboard task create NAME --evaluates TASK`, or by "
    "`--compares-releases TASK`"
)
ELSEWHERE = {
    "kind": _BESIDE,
    "evaluates": _BESIDE,
    "table": "a task that counts is made by `fedboard task count-words NAME --words LIST`",
    "plan": "a task's plan is that of its bundle, made by `fedboard export`",
    "checkpoint": "a training task starts from the checkpoint of its `--bundle`",
    "text_rules": "a task reads text by the rules of its bundle's words",
    "language": "a task's language is that of its bundle",
    "is_beside": "a server knows whether its helper runs beside it",
}


@dataclass(frozen=True)
class Storage:
    """Where state lies; by default in the server's folder. The environment's FEDBOARD_DATABASE and
    FEDBOARD_BLOBS come first.
    """

    database: str = ""  # SQLAlchemy URL, such as postgresql+psycopg://fedboard@db/fedboard
    blobs: str = ""  # s3://bucket/prefix


@dataclass(frozen=True)
class Doors:
    """Who is let in."""

    # `open`: every device; `code`: with a code of `fedboard codes`. By default open only where
    # nobody but this machine can come: on its loopback address, behind no proxy
    enrolment: str = ""
    # `open`: pages, reports and metrics need no token; `token`: they do. The same default
    readers: str = ""
    # addresses or networks of the proxies whose X-Forwarded-For is believed, separated by commas
    behind_proxy: str = ""
    # where a browser may write from, such as https://fedboard.example, separated by commas; a page
    # of the server itself always may
    origins: str = ""

    def __post_init__(self) -> None:
        """Raises ConfigError for a word that is none of those, a proxy that could be anybody, and
        an origin that is none.
        """
        for name, allowed in (("enrolment", ENROLMENT), ("readers", READERS)):
            if getattr(self, name) not in allowed:
                expected = " or ".join(filter(None, allowed))
                raise ConfigError(
                    f"access.{name}",
                    f"expected {expected}, found {getattr(self, name)!r}",
                    "correct it",
                )
        for proxy in listed(self.behind_proxy):
            try:
                network = ipaddress.ip_network(proxy, strict=False)
                is_anybody = network.prefixlen < _LEAST_PREFIX[network.version]
            except ValueError:
                is_anybody = True
            if is_anybody:
                raise ConfigError(
                    "access.behind_proxy",
                    f"expected addresses or networks of your own proxies, found {proxy!r}",
                    "name them: whoever is believed can say that he is anybody",
                )
        for origin in listed(self.origins):
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    "access.origins",
                    f"expected such as https://fedboard.example, found {origin!r}",
                    "give scheme and host in lower case, and the port if it has one, no path",
                )

    def lets_in(self, is_local: bool) -> bool:
        """Whether what is not decided is open: a server that only its own machine reaches. Behind a
        proxy it never is, however it listens.
        """
        return is_local and not self.behind_proxy


def listed(names: str) -> list[str]:
    """Names that are separated by commas.

    >>> listed("10.0.0.1, ::1"), listed("")
    (['10.0.0.1', '::1'], [])
    """
    return [name.strip() for name in names.split(",") if name.strip()]


@dataclass(frozen=True)
class Limits:
    """How often one device and one address may ask: so many at once, and so many a second after
    that; and what one may hold of the server meanwhile. 0 = no limit.

    An address is an IPv4 address or a /64 of IPv6: whoever has one address of it has all.
    """

    device_burst: int = 120
    device_per_s: float = 2.0
    address_burst: int = 2000
    # of addresses other than this machine's own: many phones can share one
    address_per_s: float = 200.0
    # of files of releases to one address that is not this machine's
    release_burst_bytes: int = 256 << 20
    release_bytes_per_s: float = 4e6
    enrolment_burst: int = 60  # devices of one address that become known at once
    enrolment_per_s: float = 1.0
    body_s: float = 30.0  # a body takes at most this long
    least_bytes_per_s: float = 10_000.0  # and this much longer for every so many bytes of it
    bodies_bytes: int = 256 << 20  # of all bodies in memory at once
    device_bodies: int = 2  # of one device at once, and downloads as many
    connections: int = 0  # at once; 0 = as many as the system gives descriptors for
    # of one address, other than this machine's own and the proxies'
    connections_by_address: int = 256
    header_s: float = 10.0  # a request's head takes at most this long
    header_bytes: int = 16_384  # of its first line and headers

    def __post_init__(self) -> None:
        """Raises ConfigError for a limit that would let nothing through."""
        for name in self.__dataclass_fields__:
            least = 1 if name in _NEVER_UNLIMITED else 0
            if not getattr(self, name) >= least:
                raise ConfigError(
                    f"limits.{name}",
                    f"expected at least {least}, found {getattr(self, name)}",
                    "correct it",
                )


@dataclass(frozen=True)
class Tls:
    """The server's certificate; without one it speaks plain HTTP."""

    certificate: str = ""  # file, PEM, with those between it and the root
    key: str = ""


@dataclass(frozen=True)
class ServerSettings(TaskSettings):
    """server.toml: the settings of the task that --bundle starts, and of the server.

    Raises ConfigError for what a file of settings does not decide, see `ELSEWHERE`.
    """

    storage: Storage = field(default_factory=Storage)
    access: Doors = field(default_factory=Doors)
    limits: Limits = field(default_factory=Limits)
    tls: Tls = field(default_factory=Tls)

    def __post_init__(self) -> None:
        for name, who_does in ELSEWHERE.items():
            value = getattr(self, name)
            if value != getattr(TaskSettings, name):
                raise ConfigError(
                    f"task.{name}",
                    f"not decided by a file of settings, found {str(value)!r}",
                    f"remove it; {who_does}",
                )
        super().__post_init__()
