"""Moved: what was learned on one phone, as one file that another one opens with a passphrase.

    fedboard-words-1, a line break, salt (16), nonce (12), then AES-256-GCM of deflated JSON

The key is scrypt's of the passphrase (RFC 7914, n = 2^17, r = 8, p = 1), and what stands before the
sealed part is authenticated with it. Messages and the user's own lists move; keys, the ledger and
what was agreed with a server stay where they are. A message that was moved teaches the strip, and
contributes to no update of the new phone: the old one may have sent one of it.
"""

import contextlib
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from device_runtime import config, durable, words
from device_runtime.errors import ConfigError, RunError
from device_runtime.home import Home
from device_runtime.words import Lists

HEADER = b"fedboard-words-1\n"
SALT, NONCE, TAG = 16, 12, 16
COST = 1 << 17  # of scrypt: 128 MB and some tenths of a second for each guess
LEAST_LETTERS = 8  # of a passphrase
MOST_BYTES = 64 << 20  # of what is packed
_PRIVATE = 0o600


@dataclass(frozen=True)
class Message:
    """One message and when it was sent, in seconds since 1970."""

    text: str
    at: float


@dataclass(frozen=True)
class Learned:
    """All that moves."""

    messages: tuple[Message, ...] = ()
    lists: Lists = field(default_factory=Lists)


@dataclass(frozen=True)
class Taken:
    """What an import has added."""

    messages: int
    never: int
    allow: int


def of(home: Home) -> Learned:
    """What was learned in a device's home. Raises TypingLogError."""
    with home.typing_log() as log:
        return Learned(tuple(Message(*each) for each in log.dated()), words.read(home))


def pack(learned: Learned, passphrase: str, salt: bytes, nonce: bytes) -> bytes:
    """The file. Raises RunError for a passphrase that is too short, or too much to move."""
    require_passphrase(passphrase)
    data = config.to_json(learned)
    if len(data) > MOST_BYTES:
        raise RunError(
            "export", f"expected at most {MOST_BYTES:,} bytes, found {len(data):,}", "forget some"
        )
    before = HEADER + salt + nonce
    sealed = AESGCM(_key(passphrase, salt)).encrypt(nonce, zlib.compress(data), before)
    return before + sealed


def unpack(data: bytes, passphrase: str, where: object) -> Learned:
    """What a file holds. Raises RunError for another file, another passphrase or a damaged one."""
    begins = len(HEADER) + SALT + NONCE
    if not data.startswith(HEADER) or len(data) < begins + TAG:
        raise RunError(
            where, "expected a file of `fedboard words export`, found another", "give such a file"
        )
    salt, nonce = data[len(HEADER) : len(HEADER) + SALT], data[len(HEADER) + SALT : begins]
    try:
        packed = AESGCM(_key(passphrase, salt)).decrypt(nonce, data[begins:], data[:begins])
    except InvalidTag:
        raise RunError(
            where,
            "does not open with this passphrase, or was damaged on its way",
            "type the passphrase it was made with, or copy the file again",
        ) from None
    reader = zlib.decompressobj()
    try:
        table = reader.decompress(packed, MOST_BYTES + 1)
        if len(table) > MOST_BYTES:
            raise ConfigError(where, "holds too much", "export again")
        return config.from_json(Learned, table, "what it holds")
    except (zlib.error, ConfigError):
        raise RunError(where, "holds something else than it should", "export again") from None


def export(home: Home, file: Path, passphrase: str) -> Learned:
    """Write the file, whole or not at all, for its owner's eyes only; what it holds. Raises
    RunError if there is a file already.
    """
    if Path(file).exists():
        raise RunError(file, "is there already", "give another name")
    learned = of(home)
    data = pack(learned, passphrase, os.urandom(SALT), os.urandom(NONCE))
    try:
        durable.write(Path(file), data, _PRIVATE)
    except OSError as error:
        raise RunError(file, f"cannot be written ({error.strerror})", "choose another") from None
    return learned


def take(home: Home, file: Path, passphrase: str) -> Taken:
    """Add what a file holds to a device, each message and word once. Raises RunError, and changes
    nothing, for a file that cannot be read or opened.
    """
    try:
        with open(file, "rb") as opened:
            data = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise RunError(file, f"cannot be read ({error.strerror})", "give the file") from None
    learned = unpack(data, passphrase, file)
    before = words.read(home)
    with home.typing_log() as log:
        known = set(log.dated())
        pairs = ((each.text, each.at) for each in learned.messages)
        new = [pair for pair in dict.fromkeys(pairs) if pair not in known]
        lists = before
        for word in learned.lists.never:
            lists = lists if lists.barred(word) else words.with_never(lists, word)
        for word in learned.lists.allow:
            if not lists.barred(word) and word not in lists.allow:
                lists = words.with_allowed(lists, word)
        try:
            with contextlib.ExitStack() as both:
                if lists != before:  # written aside first, and in place once the messages are
                    place = durable.replacing(home.folder / words.FILE, _PRIVATE)
                    both.enter_context(place).write(words.sealed(home, lists))
                added = log.append_many(new, uses=log.retention.max_uses)
        except OSError as error:
            raise RunError(
                home.folder, f"cannot be written ({error.strerror})", "make room, and import again"
            ) from None
    return Taken(added, _more(lists.never, before.never), _more(lists.allow, before.allow))


def require_passphrase(passphrase: str) -> None:
    """Raises RunError for one that is too short."""
    if len(passphrase) < LEAST_LETTERS:
        raise RunError(
            "the passphrase",
            f"expected at least {LEAST_LETTERS} letters, found {len(passphrase)}",
            "take some words that nobody guesses",
        )


def _key(passphrase: str, salt: bytes) -> bytes:
    secret = passphrase.encode("utf-8", "surrogatepass")
    return Scrypt(salt=salt, length=32, n=COST, r=8, p=1).derive(secret)


def _more(after: Iterable[str], before: Iterable[str]) -> int:
    return len(set(after) - set(before))
