"""Publishing: a signed bundle and a share of the devices -> a statement that a server passes on.

The maker's key signs here, in the operator's process; the server gets what is signed. What a server
says of a release is believed as far as that key has signed it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import bundle, config, signing
from device_runtime.bundle import MANIFEST, SIGNATURE, Bundle
from device_runtime.errors import BundleError, RunError, ServerError
from device_runtime.releases import PURPOSE, WHOLE, Statement
from device_runtime.weights import digest
from fedboard.operator import Operator
from fedboard.run import KEYS, signing_key
from server.contract import Publication, ReleaseReport, ReleaseState, release_command

_SHARE = re.compile(r"(\d{1,3})(?:\.(\d{1,2}))?\s*%")


def share_of(text: str) -> int:
    """A share of the devices in per cent, as hundredths of a per cent. Raises RunError for what is
    none, or a share of nobody.

    >>> share_of("5%"), share_of("0.25 %"), share_of("100%")
    (500, 25, 10000)
    """
    matched = _SHARE.fullmatch(text.strip())
    if matched is None:
        raise RunError(
            "--share",
            f"expected a share in per cent such as 5% or 0.25%, found {text!r}",
            "write the sign, so that 5% of the devices and all of them cannot be mixed up",
        )
    whole, part = matched.groups()
    share = 100 * int(whole) + int((part or "").ljust(2, "0"))
    if not 0 < share <= WHOLE:
        raise RunError(
            "--share",
            f"expected more than 0% and at most 100%, found {text!r}",
            "give another share; `fedboard release withdraw` is the way down",
        )
    return share


def maker_key(path: Path | None) -> Ed25519PrivateKey:
    """The private key that signs bundles and what is said of them; none is made. Raises RunError if
    there is none.
    """
    path = path or KEYS / "signing.key"
    if not path.is_file():
        raise RunError(
            path,
            "expected the private key that signed the bundle, found none",
            "give it with --key FILE; it never leaves this machine",
        )
    return signing_key(path)


def open_own(path: Path, key: Ed25519PrivateKey) -> Bundle:
    """The bundle at a path, if that key signed it. Raises BundleError if another did, or it is not
    whole.
    """
    own = signing.public_hex(key)
    signer = _signer(path)
    if signer is not None and signer != own:
        raise BundleError(
            Path(path) / SIGNATURE,
            f"signed by {signer[:16]}, expected the key given ({own[:16]})",
            "give the key it was made with by --key FILE, or make it again",
        )
    return bundle.open_verified(path, frozenset({own}))


def _signer(path: Path) -> str | None:
    """Whom a bundle's folder says it is of; None for a zip, whose opening says it."""
    try:
        told = (Path(path) / SIGNATURE).read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return told.partition("\n")[0].strip()


def publish(
    operator: Operator,
    opened: Bundle,
    key: Ed25519PrivateKey,
    share: int,
    population: str,
    advance: Callable[[int, str], object] | None = None,
) -> ReleaseReport:
    """Put a bundle's files on a server and offer it to a share of the population's devices. The
    same again goes on where it was cut off. `advance` is told how many files are there.
    """
    release = opened.manifest.release
    if release < 1:
        raise BundleError(
            opened.path / MANIFEST,
            f"expected a release number of at least 1, found {release}",
            "make it with `fedboard release make`, or `fedboard export --release N`",
        )
    files = {**opened.content, MANIFEST: opened.encoded}
    for place, (name, data) in enumerate(sorted(files.items())):
        if advance is not None:
            advance(place, name)
        operator.put_release_file(data)
    if advance is not None:
        advance(len(files), "")
    first = Statement(release, digest(opened.encoded), population, share, 1)
    return operator.publish(_publication(first, opened.signature.decode("ascii"), key))


def statement_of(published: ReleaseReport, trusted: frozenset[str]) -> Statement | None:
    """What is signed of a release that a server tells of; None if no trusted key (public,
    hexadecimal) has signed it. Raises ServerError for a statement on another release.
    """
    where = f"release {published.release}"
    text = signing.text_of(published.statement, PURPOSE, trusted)
    if text is None:
        return None
    statement = config.from_json(Statement, text, where)
    if (statement.release, statement.population) != (published.release, published.population):
        raise ServerError(
            where,
            f"the server shows a statement on release {statement.release} of population "
            f"{statement.population} in its place",
            "check --server",
        )
    return statement


def following(
    published: ReleaseReport,
    key: Ed25519PrivateKey,
    share: int | None = None,
    withdrawn: bool = False,
) -> Publication:
    """The next statement on a release: the newest that this key has signed, with another
    share or withdrawn. Raises RunError if another key has signed it.
    """
    where, own = f"release {published.release}", signing.public_hex(key)
    statement = statement_of(published, frozenset({own}))
    if statement is None:
        raise RunError(
            where,
            f"its statement is signed by {published.statement.signer[:16]}, expected the key given "
            f"({own[:16]})",
            "give the key it was published with by --key FILE",
        )
    further = replace(
        statement,
        serial=statement.serial + 1,
        share=statement.share if share is None else share,
        withdrawn=withdrawn,
    )
    return _publication(further, "", key)


def promote(
    operator: Operator, release: ReleaseReport, key: Ed25519PrivateKey, share: int
) -> ReleaseReport:
    """Offer a release to a larger share. Raises RunError for one that is stopped or withdrawn, or
    a share that is not larger.
    """
    where = f"release {release.release}"
    if release.state is ReleaseState.WITHDRAWN:
        raise RunError(
            where, "was withdrawn, which lasts", "make and publish one with a higher number"
        )
    if release.state is ReleaseState.STOPPED:
        raise RunError(
            where,
            f"was stopped: {release.stopped}",
            f"{release_command('withdraw', release.release, release.population)}, or publish one "
            "with a higher number",
        )
    if share <= release.share:
        raise RunError(
            where,
            f"expected a share above its {percent(release.share)}, found {percent(share)}",
            "give a larger one; `fedboard release withdraw` is the way down",
        )
    return operator.publish(following(release, key, share=share))


def withdraw(operator: Operator, release: ReleaseReport, key: Ed25519PrivateKey) -> ReleaseReport:
    """Let whoever runs a release go to another. Raises RunError if it has been withdrawn."""
    if release.state is ReleaseState.WITHDRAWN:
        raise RunError(
            f"release {release.release}", "has been withdrawn already", "nothing is left to do"
        )
    return operator.publish(following(release, key, withdrawn=True))


def pick(releases: Sequence[ReleaseReport], number: int, population: str) -> ReleaseReport:
    """A release by its number. Raises RunError if there is none."""
    named = [each for each in releases if each.population == population]
    for each in named:
        if each.release == number:
            return each
    have = ", ".join(str(each.release) for each in named) or "none"
    raise RunError(
        f"release {number}",
        f"expected one published to population {population}, which has {have}",
        "see `fedboard release list`",
    )


def after(releases: Sequence[ReleaseReport], withdrawn: ReleaseReport) -> str:
    """Where devices go that run a release once it is withdrawn, in a sentence."""
    left = [
        each
        for each in releases
        if each.population == withdrawn.population
        and each.release != withdrawn.release
        and each.state is ReleaseState.OFFERED
    ]
    if not left:
        return "no other release is offered: devices that run it stay until one is"
    best = next((each for each in left if each.share == WHOLE), left[0])
    rest = "" if best.share == WHOLE else f", of which {percent(best.share)} are offered it"
    return f"devices that run it go to release {best.release}{rest}"


def percent(share: int) -> str:
    """Hundredths of a per cent, as they are typed.

    >>> percent(500), percent(25)
    ('5%', '0.25%')
    """
    return f"{share / 100:g}%"


def _publication(statement: Statement, signature: str, key: Ed25519PrivateKey) -> Publication:
    return Publication(signing.sign_text(key, PURPOSE, config.to_json(statement)), signature)
