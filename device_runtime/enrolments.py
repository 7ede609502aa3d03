"""Enrolment certificates: whose devices count, where a helper trusts one key to say so.

    fedboard device certify HOME --key KEY
      -->  home  --Enrolment-->  server  --SealedReport-->  helper

Whoever holds the key has looked at the device: a leader can invent phones, but not their
certificates. What is signed is the device's public key, and nothing else.
"""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import signing
from device_runtime.wire import Signed

ENROLMENT = "enrolment"  # purpose of the signature


def certificate(public_key: str, key: Ed25519PrivateKey) -> Signed:
    """That the device with this public key (hexadecimal) is one, signed."""
    return signing.sign_text(key, ENROLMENT, public_key.encode("ascii"))


def is_certified(public_key: str, signature: str, signer: str) -> bool:
    """Whether `signature` is that of a certificate of this device by `signer`; all of them are
    hexadecimal.

    >>> key, other = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
    >>> by, device = signing.public_hex(key), signing.public_hex(other)
    >>> signed = certificate(device, key)
    >>> is_certified(device, signed.signature, by), is_certified(by, signed.signature, by)
    (True, False)
    """
    shown = Signed(public_key, signer, signature)
    return signing.text_of(shown, ENROLMENT, frozenset({signer})) is not None


def why_not(certificate: Signed, public_key: str) -> str:
    """Why this is no certificate of the device with this public key, whoever signed it; empty if
    it is one.
    """
    if certificate.text != public_key:
        return (
            f"certificate: expected one of device key {public_key[:16]}, found one of "
            f"{certificate.text[:16] or 'none'}"
        )
    if not is_certified(public_key, certificate.signature, certificate.signer):
        return f"certificate: the signature is none of {certificate.signer[:16]}"
    return ""
