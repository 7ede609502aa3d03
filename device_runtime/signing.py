"""Ed25519 keys: who made this bundle, who sent this request. RFC 8032."""

import base64
import functools
import os
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from device_runtime import durable
from device_runtime.errors import RunError
from device_runtime.weights import digest
from device_runtime.wire import Signed


def public_hex(key: Ed25519PrivateKey) -> str:
    """The public half, 32 bytes in hexadecimal."""
    return key.public_key().public_bytes_raw().hex()


def load_or_create(path: Path, elsewhere: str = "choose another folder") -> Ed25519PrivateKey:
    """The private key in `path`, made there on first use, readable by its owner only. What is
    there already is never written over.

    Raises RunError if it is not a key, or none can be made; `elsewhere` says what to do then.
    """
    path = Path(path)
    try:
        if not os.path.lexists(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            secret = Ed25519PrivateKey.generate().private_bytes_raw().hex()
            _put(path, f"{secret}\n".encode())
    except OSError as error:
        raise RunError(
            path, f"no key can be made there ({error.strerror})", f"{elsewhere}, or make room"
        ) from None
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text().strip()))
    except OSError as error:
        raise RunError(
            path,
            f"the private key cannot be read ({error.strerror})",
            f"{elsewhere}, or change its permissions",
        ) from None
    except ValueError:
        raise RunError(
            path,
            "expected a private key, found: not 32 bytes in hexadecimal",
            f"{elsewhere}, or remove the file to have a new key made",
        ) from None


def _put(path: Path, data: bytes) -> None:
    """A new private file, whole or not at all. Another process may have been first: its one stays.

    Raises OSError if it cannot be written.
    """
    whole = path.with_name(f".{path.name}.{os.getpid()}.new")
    durable.write(whole, data, durable.PRIVATE)
    try:
        os.link(whole, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        os.replace(whole, path)
    finally:
        whole.unlink(missing_ok=True)
    durable.flush(path.parent)


def verified(public: str, message: bytes, signature: bytes) -> bool:
    """Whether `signature` over `message` was made by the holder of `public` (hexadecimal)."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def sign_text(key: Ed25519PrivateKey, purpose: str, text: bytes) -> Signed:
    """A text signed for one purpose: for any other the signature is none."""
    signature = key.sign(_for(purpose, text))
    return Signed(text.decode("ascii"), public_hex(key), signature.hex())


def text_of(signed: Signed, purpose: str, trusted: frozenset[str]) -> bytes | None:
    """The text, if one of the trusted keys (public, hexadecimal) signed it for this purpose; else
    None.
    """
    return _text_of(signed, purpose) if signed.signer in trusted else None


@functools.lru_cache(maxsize=64)  # the same few are shown with all work
def _text_of(signed: Signed, purpose: str) -> bytes | None:
    """The text, if its signer signed it for this purpose."""
    if not signed.text.isascii():
        return None
    text = signed.text.encode("ascii")
    try:
        signature = bytes.fromhex(signed.signature)
    except ValueError:
        return None
    valid = signature.hex() == signed.signature  # one spelling only
    return text if valid and verified(signed.signer, _for(purpose, text), signature) else None


def _for(purpose: str, text: bytes) -> bytes:
    return f"fedboard-{purpose}-v1\n".encode() + text


def name_of(public_key: str) -> str:
    """The name of the device that holds a key (hexadecimal): the start of the key's SHA-256."""
    return digest(bytes.fromhex(public_key))[:16]


@dataclass(frozen=True)
class Claim:
    """What the headers of a request say of it; with method and path, all that is signed."""

    body_digest: str  # SHA-256, hexadecimal
    task: str  # of the assignment it is about, "" if it is about none
    round: int
    nonce: str  # 32 hexadecimal digits
    server: str  # the server's own name, 32 hexadecimal digits
    time: int  # whole seconds since 1970


def request_message(method: str, path: str, claim: Claim) -> bytes:
    """What a device signs of a request: whatever is changed of it breaks the signature, and another
    server's signature is none here.
    """
    said = (claim.body_digest, claim.task, claim.round, claim.nonce, claim.server, claim.time)
    return "\n".join(("fedboard-request-v3", method.upper(), path, *map(str, said))).encode()


@dataclass(frozen=True)
class Request:
    """What a device asks of the server. `task` and `round` are those of the assignment it is about,
    if it is about one.
    """

    method: str
    path: str
    body: bytes = field(default=b"", repr=False)
    task: str = ""
    round: int = 0


def sign_request(
    key: Ed25519PrivateKey, device: str, request: Request, server: str, now: float
) -> dict[str, str]:
    """The headers that prove that `device` asks this of `server` at the time `now`, in seconds
    since 1970.

    The body's SHA-256 is a header of its own (RFC 9530), so that a server can refuse a stranger
    before it reads what he sends.
    """
    nonce, hashed = os.urandom(16).hex(), digest(request.body)
    claim = Claim(hashed, request.task, request.round, nonce, server, int(now))
    return headers_of(key, device, request.method, request.path, claim)


def headers_of(
    key: Ed25519PrivateKey, device: str, method: str, path: str, claim: Claim
) -> dict[str, str]:
    """The same for a claim that stands."""
    hashed = base64.b64encode(bytes.fromhex(claim.body_digest)).decode()
    return {
        "fedboard-device": device,
        "fedboard-task": claim.task,
        "fedboard-round": str(claim.round),
        "fedboard-nonce": claim.nonce,
        "fedboard-server": claim.server,
        "fedboard-time": str(claim.time),
        "fedboard-signature": base64.b64encode(
            key.sign(request_message(method, path, claim))
        ).decode(),
        "content-digest": f"sha-256=:{hashed}:",
    }
