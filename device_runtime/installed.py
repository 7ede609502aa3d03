"""The bundles installed on one device: the one it uses, and the last good one to fall back on.

    bundles/<SHA-256 of the manifest>/  a bundle, written whole before it gets this name
    bundles/current.json                which one is used, which one was before, and the highest
                                        release there ever was

A new bundle is verified where it comes from, copied, verified again, and only then pointed at:
power lost at any step leaves one whole bundle. One that came by a difference lacks its checkpoint.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from device_runtime import bundle as bundles
from device_runtime import config, durable
from device_runtime.bundle import FOLDER, MANIFEST, SIGNATURE, Bundle, open_verified
from device_runtime.errors import BundleError, ConfigError
from device_runtime.folder import clear, writing
from device_runtime.weights import digest

POINTER = "current.json"
# a bundle's folder, and what earlier versions left of one when they were killed
_NAME = re.compile(r"\.?[0-9a-f]{64}(\.old)?(\.[0-9]+)?")
# ours by its name, even where its manifest is damaged
_INSTALLED = replace(FOLDER, is_ours=lambda path: True)
INSTALL = "install a bundle: fedboard device install HOME BUNDLE"


@dataclass(frozen=True)
class Pointer:
    """Which bundle is used; in current.json."""

    current: str  # folder names
    before: str = ""  # the last good one
    release: int = 0  # the highest there ever was; lower only after a withdrawal


@dataclass(frozen=True)
class Installed:
    """The bundle in use."""

    bundle: Bundle
    problem: str | None = None  # why it is not the one that was installed last


def install(folder: Path, source: Path, trusted: frozenset[str]) -> Bundle:
    """Make the bundle at `source`, a folder or a zip, the one that is used. The same one again
    changes nothing.

    Raises BundleError, and changes nothing, for a bundle that is not whole and trusted, or of a
    lower release than there was.
    """
    folder = Path(folder)
    offered = open_verified(source, trusted)
    _require_later(offered, pointer_of(folder), source)
    put(folder, offered, trusted)
    return use(folder, offered, trusted)


def put(folder: Path, offered: Bundle, trusted: frozenset[str]) -> Bundle:
    """Lay a verified bundle beside the others, whole, without using it yet; as it then lies there.
    Raises BundleError if it cannot be written.
    """
    folder, name = Path(folder), name_of(offered)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder, pointer_of(folder), name)
        if opened(folder, name, trusted) is None:
            _copy(offered, folder / name)
    return open_verified(folder / name, trusted, lean=True)


def use(
    folder: Path, bundle: Bundle, trusted: frozenset[str], is_withdrawal: bool = False
) -> Bundle:
    """Point at a bundle that `put` has laid there. The one used so far becomes the last good one;
    in a withdrawal it does not, and the bundle may be of a lower release than there was.

    Raises BundleError, and changes nothing, for a lower one otherwise, or if nothing can be
    written.
    """
    folder, name, pointer = Path(folder), name_of(bundle), pointer_of(Path(folder))
    if not is_withdrawal:
        _require_later(bundle, pointer, bundle.path)
    with _writing(folder):
        if pointer is None or pointer.current != name:
            earlier = (pointer.current, pointer.before) if pointer else ()
            good = next(
                (
                    each
                    for each in earlier[is_withdrawal:]
                    if each not in ("", name) and opened(folder, each, trusted) is not None
                ),
                "",
            )
            latest = Pointer(name, good, bundle.manifest.release)
            durable.write(folder / POINTER, config.to_json(latest))
        _sweep(folder, pointer_of(folder))
    return open_verified(folder / name, trusted, lean=True)


def tidy(folder: Path) -> None:
    """Remove what lies there and is not used: a bundle that was laid and never pointed at."""
    pointer = pointer_of(Path(folder))
    if pointer is not None:
        with contextlib.suppress(OSError):
            _sweep(Path(folder), pointer)


def mend(folder: Path, trusted: frozenset[str]) -> None:
    """Write a damaged pointer anew: it names the bundle that is used while it is damaged. Raises
    BundleError if no bundle is whole or nothing can be written.
    """
    folder = Path(folder)
    try:
        pointer_of(folder)
    except BundleError:
        bundle = current(folder, trusted).bundle
        with _writing(folder):
            latest = Pointer(bundle.path.name, "", bundle.manifest.release)
            durable.write(folder / POINTER, config.to_json(latest))


def before(folder: Path, trusted: frozenset[str]) -> Bundle | None:
    """The last good one, that was used before; None if there is none or it is damaged."""
    try:
        pointer = pointer_of(Path(folder))
    except BundleError:
        return None
    return None if pointer is None else opened(folder, pointer.before, trusted)


def opened(folder: Path, name: str, trusted: frozenset[str]) -> Bundle | None:
    """The bundle that lies there under this name, used or not; None if none does or it is not
    whole.
    """
    if not name:
        return None
    try:
        return open_verified(Path(folder) / name, trusted, lean=True)
    except BundleError:
        return None


def name_of(bundle: Bundle) -> str:
    """The folder's name: the SHA-256 of the manifest."""
    return digest(bundle.encoded)


def current(folder: Path, trusted: frozenset[str]) -> Installed:
    """The bundle that is used: the one installed last, or the one before while that is damaged.
    Raises BundleError if neither is whole.

    While the pointer itself is damaged it is the whole bundle of the highest release.
    """
    try:
        pointer = pointer_of(Path(folder))
    except BundleError as error:
        paths = [path for path in sorted(Path(folder).iterdir()) if path.is_dir()]
        there = (opened(folder, path.name, trusted) for path in paths)
        bundles = [bundle for bundle in there if bundle is not None]
        if not bundles:
            raise
        return Installed(max(bundles, key=lambda bundle: bundle.manifest.release), str(error))
    if pointer is None:
        raise BundleError(folder, "no bundle is installed", INSTALL)
    try:
        return Installed(open_verified(Path(folder) / pointer.current, trusted, lean=True))
    except BundleError as error:
        if not pointer.before:
            raise
        return Installed(
            open_verified(Path(folder) / pointer.before, trusted, lean=True), str(error)
        )


def pointer_of(folder: Path) -> Pointer | None:
    """Which bundle is used; None before the first. Raises BundleError for a damaged pointer."""
    path = folder / POINTER
    try:
        return config.from_json(Pointer, path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except (OSError, ConfigError) as error:
        raise BundleError(
            path, f"cannot be read ({error})", f"remove this file and {INSTALL}"
        ) from None


def _copy(bundle: Bundle, path: Path) -> None:
    """In place of a damaged one of the same name."""
    signed = {MANIFEST: bundle.encoded, SIGNATURE: bundle.signature}
    bundles.copy(path, {**bundle.content, **signed}, _INSTALLED)


def _require_later(bundle: Bundle, pointer: Pointer | None, where: Path) -> None:
    if pointer is not None and bundle.manifest.release < pointer.release:
        problem = (
            f"release {bundle.manifest.release} is older than release {pointer.release}, which "
            "this device had"
        )
        raise BundleError(where, problem, "install a later release: a device never goes back")


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleError(
            folder,
            f"cannot be written ({error.strerror})",
            "make room or give yourself the right to write there",
        ) from None


def _sweep(folder: Path, pointer: Pointer | None, *kept: str) -> None:
    """Remove bundles that are neither used nor kept, and what a killed process left."""
    kept += (pointer.current, pointer.before) if pointer else ()
    for path in folder.iterdir():
        if path.name not in kept and _NAME.fullmatch(path.name) and not path.is_symlink():
            with contextlib.suppress(OSError, BundleError):
                with writing(path, _INSTALLED):
                    clear(path, _INSTALLED)
                path.rmdir()
