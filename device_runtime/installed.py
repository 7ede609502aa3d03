"""The bundles installed on one device: the one it uses, and the last good one to fall back on.

    bundles/<SHA-256 of the manifest>/  a bundle, written whole before it gets this name
    bundles/current.json                which one is used, which one was before, and the highest
                                        release there ever was

A new bundle is verified where it comes from, copied, verified again, and only then pointed at:
power lost at any step leaves one whole bundle.
"""

import contextlib
import re
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
    release: int = 0  # the highest ever installed: a device never goes back to a lower one


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
    pointer = _pointer(folder)
    if pointer is not None and offered.manifest.release < pointer.release:
        problem = (
            f"release {offered.manifest.release} is older than release {pointer.release}, which "
            "this device had"
        )
        raise BundleError(source, problem, "install a later release: a device never goes back")
    name = digest(offered.encoded)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder, pointer)
        if not _whole(folder / name, trusted):
            _copy(offered, folder / name)
        if pointer is None or pointer.current != name:
            earlier = (pointer.current, pointer.before) if pointer else ()
            good = next(
                (
                    each
                    for each in earlier
                    if each not in ("", name) and _whole(folder / each, trusted)
                ),
                "",
            )
            durable.write(
                folder / POINTER, config.to_json(Pointer(name, good, offered.manifest.release))
            )
        _sweep(folder, _pointer(folder))
    except OSError as error:
        raise BundleError(
            folder,
            f"cannot be written ({error.strerror})",
            "make room or give yourself the right to write there",
        ) from None
    return open_verified(folder / name, trusted)


def current(folder: Path, trusted: frozenset[str]) -> Installed:
    """The bundle that is used: the one installed last, or the one before while that is damaged.
    Raises BundleError if neither is whole.

    While the pointer itself is damaged it is the whole bundle of the highest release.
    """
    try:
        pointer = _pointer(Path(folder))
    except BundleError as error:
        whole = [
            path
            for path in sorted(Path(folder).iterdir())
            if path.is_dir() and _whole(path, trusted)
        ]
        if not whole:
            raise
        bundles = [open_verified(path, trusted) for path in whole]
        return Installed(max(bundles, key=lambda bundle: bundle.manifest.release), str(error))
    if pointer is None:
        raise BundleError(folder, "no bundle is installed", INSTALL)
    try:
        return Installed(open_verified(Path(folder) / pointer.current, trusted))
    except BundleError as error:
        if not pointer.before:
            raise
        return Installed(open_verified(Path(folder) / pointer.before, trusted), str(error))


def _pointer(folder: Path) -> Pointer | None:
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


def _whole(path: Path, trusted: frozenset[str]) -> bool:
    try:
        open_verified(path, trusted)
    except BundleError:
        return False
    return True


def _sweep(folder: Path, pointer: Pointer | None) -> None:
    """Remove bundles that are no longer used, and what a killed process left."""
    kept = (pointer.current, pointer.before) if pointer else ()
    for path in folder.iterdir():
        if path.name not in kept and _NAME.fullmatch(path.name) and not path.is_symlink():
            with contextlib.suppress(OSError, BundleError):
                with writing(path, _INSTALLED):
                    clear(path, _INSTALLED)
                path.rmdir()
