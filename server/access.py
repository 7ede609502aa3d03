"""Access: who may ask. Devices prove themselves by signatures, operators by a token; both, and
strangers, only so often.
"""

import base64
import binascii
import functools
import hmac
import ipaddress
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nacl.bindings
import nacl.exceptions

from device_runtime import durable, signing
from device_runtime.addresses import is_loopback as is_loopback
from device_runtime.errors import RunError
from server.contract import TOKEN_FILE
from server.requests import Nonce

_HEX_32 = re.compile(r"[0-9a-f]{32}")
_ROUND = re.compile(r"0|[1-9][0-9]{0,9}")
_TIME = re.compile(r"0|[1-9][0-9]{0,10}")
_VERSION_2 = {"content-digest", "fedboard-signature"} | {
    f"fedboard-{name}" for name in ("device", "task", "round", "nonce")
}
_SINCE_VERSION_3 = {"fedboard-server", "fedboard-time"}
_PASSED_ON = {"via", "forwarded", "x-real-ip"} | {
    f"x-forwarded-{what}" for what in ("for", "host", "proto")
}
_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")


@dataclass(frozen=True)
class Proof:
    """What a signed request says of itself. The body is not read yet: its hash stands for it."""

    device: str
    nonce: Nonce
    signature: bytes
    body_digest: str  # SHA-256, hexadecimal
    task: str
    round: int
    server: str  # it is signed for

    @property
    def signed_for(self) -> tuple[str, int]:
        """The task and round it was signed for."""
        return self.task, self.round


def proof(headers: Mapping[str, str]) -> Proof | None:
    """The proof in a request's headers, or None if one is missing or malformed."""
    digest = _DIGEST.fullmatch(headers.get("content-digest", ""))
    number, nonce = headers.get("fedboard-round", ""), headers.get("fedboard-nonce", "")
    server, time = headers.get("fedboard-server", ""), headers.get("fedboard-time", "")
    if (
        digest is None
        or not _ROUND.fullmatch(number)
        or not _HEX_32.fullmatch(nonce)
        or not _HEX_32.fullmatch(server)
        or not _TIME.fullmatch(time)
    ):
        return None
    try:
        signature = _bytes_of(headers.get("fedboard-signature", ""))
        if len(signature) != nacl.bindings.crypto_sign_BYTES:
            return None
        hashed = _bytes_of(digest[1]).hex()
    except ValueError:
        return None
    return Proof(
        headers.get("fedboard-device", ""),
        Nonce(nonce, int(time)),
        signature,
        hashed,
        headers.get("fedboard-task", ""),
        int(number),
        server,
    )


def _bytes_of(text: str) -> bytes:
    """What a text of base64 and nothing else stands for. Raises ValueError for any other."""
    return binascii.a2b_base64(text, strict_mode=True)


def is_of_version_2(headers: Mapping[str, str]) -> bool:
    """Whether a device sends this that names neither a server nor a time in what it signs."""
    return headers.keys() >= _VERSION_2 and not _SINCE_VERSION_3 & headers.keys()


def is_signed(key: bytes, proof: Proof, method: str, path: str) -> bool:
    """Whether the holder of the Ed25519 `key` signed this request. By libsodium: OpenSSL, which
    devices sign with, verifies half as fast.
    """
    nonce = proof.nonce
    claim = signing.Claim(
        proof.body_digest, proof.task, proof.round, nonce.text, proof.server, nonce.time
    )
    message = signing.request_message(method, path, claim)
    try:
        nacl.bindings.crypto_sign_open(proof.signature + message, key)
    except nacl.exceptions.BadSignatureError:
        return False
    return True


def is_token(headers: Mapping[str, str], token: str, is_reading: bool = True) -> bool:
    """Whether a request carries the operator's token: as a bearer, or, if it only reads, as the
    password of any user. That is what a browser sends, also for pages that are not ours.
    """
    kind, _, secret = headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic":
        if not is_reading:
            return False
        try:
            secret = base64.b64decode(secret, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return False
    elif kind.lower() != "bearer":
        return False
    return hmac.compare_digest(secret.encode(), token.encode())


def is_ours(headers: Mapping[str, str], origins: Sequence[str]) -> bool:
    """Whether a writing request comes from no browser, or from a page of this server: of the host
    it asks, or of one of the origins its operator names. RFC 6454; Fetch Metadata, section 2.
    """
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return False
    origin = headers.get("origin")
    if origin is None or origin in origins:
        return True
    host = headers.get("host", "")
    return bool(host) and origin.lower() in (f"http://{host}".lower(), f"https://{host}".lower())


def is_passed_on(headers: Mapping[str, str]) -> bool:
    """Whether somebody says that he passes a request on for another: a proxy or a tunnel."""
    return not _PASSED_ON.isdisjoint(headers)


def names_this_machine(headers: Mapping[str, str], origins: Sequence[str]) -> bool:
    """Whether a request names its server as this machine: by an address, as `localhost`, or by the
    host of one of the origins. A page of elsewhere whose name has been made to lead here does not.
    """
    host = headers.get("host", "").lower()
    if any(origin.partition("://")[2] == host for origin in origins):
        return True
    name = host.rpartition("]")[0].removeprefix("[") if "]" in host else host.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in ("", "localhost")
    return True


def token(folder: Path, told: str | None = None, file: str = TOKEN_FILE) -> str:
    """The operator's token, or another that a file of a folder holds: the one told, or the one in
    the folder, made on first use. Raises RunError if it cannot be read or is too short.
    """
    path = Path(folder) / file
    if not told:
        try:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                durable.write(path, f"{secrets.token_urlsafe(32)}\n".encode(), mode=0o600)
            told = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(
                path,
                f"cannot be used ({getattr(error, 'strerror', None) or error})",
                "give a folder that can be written",
            ) from None
    if len(told) < 16:
        raise RunError(
            path,
            f"expected a token of at least 16 characters, found {len(told)}",
            "remove it to have a new one made",
        )
    return told


@functools.lru_cache(maxsize=10_000)
def network_of(host: str) -> str:
    """Whose address that is, as far as it can be told: of IPv6 a /64, which whoever has one address
    of it has whole; an IPv4 address stands for itself, also where it is written as an IPv6 one.

    >>> network_of("2001:db8::1:2:3:4"), network_of("::ffff:10.0.0.7"), network_of("::1")
    ('2001:db8::/64', '10.0.0.7', '::1')
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""  # whatever is no address is one
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        if not address.is_loopback:
            return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


class Buckets:
    """Token buckets by key, at most `most` of them: `burst` at once, `per_s` a second after that.
    Source: the token bucket of RFC 2697's kind.
    """

    def __init__(self, burst: int, per_s: float, most: int = 100_000):
        self._burst, self._per_s, self._most = burst, per_s, most
        # tokens left, at which time; the least recently used first
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait_s(self, key: str, now: float, cost: float = 1.0) -> float:
        """Take a token, or as many as it costs (all, if it costs more than a bucket holds): 0.0; or
        the seconds until there are so many.
        """
        if not self._burst:
            return 0.0
        cost = min(cost, self._burst)
        with self._lock:
            left, at = self._left.pop(key, (float(self._burst), now))
            left = min(self._burst, left + max(0.0, now - at) * self._per_s)
            taken = left >= cost
            self._left[key] = (left - cost * taken, now)
            if len(self._left) > self._most:
                self._left.popitem(last=False)
        return 0.0 if taken else (cost - left) / self._per_s if self._per_s else 60.0
