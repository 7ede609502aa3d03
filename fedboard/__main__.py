"""The program: whoever imports this file imports our packages, whoever else's have their names.

Its children are started by this file's path: no folder on their way decides what runs.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOMS = ("device_runtime", "model", "server", "helper", "conversion", "fleet", "fedboard")
ROOT = Path(__file__).resolve().parents[1]  # the folder all of them lie in


class OwnRooms:
    """Finds our packages beside this file, and nothing else."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As `importlib.abc.MetaPathFinder` wants it."""
        return PathFinder.find_spec(name, [str(ROOT)], target) if name in ROOMS else None


def program(*words: object) -> list[str]:
    """A command of ours as a child process runs it."""
    return [sys.executable, "-P", str(ROOT / "fedboard" / "__main__.py"), *map(str, words)]


def namesakes(path: Sequence[str] | None = None) -> list[str]:
    """Files of others with the name of a package of ours, which come before it on the path."""
    path = sys.path if path is None else path
    others = []
    for name in ROOMS:
        spec = PathFinder.find_spec(name, list(path))
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
        place = next((place for place in places if place), None)
        if place and ROOT not in Path(place).resolve().parents:
            others.append(place)
    return others


def main() -> None:
    """Run a command: see `fedboard.cli.main`. Where a package it needs is somebody else's file of
    that name, it says which.
    """
    try:
        from fedboard import cli
    except (ImportError, AttributeError) as error:
        from fedboard import failures

        if failures.stranger() is None:
            raise
        sys.exit(failures.line(error))
    cli.main()


if not any(getattr(finder, "__name__", "") == OwnRooms.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, OwnRooms)

if __name__ == "__main__":
    main()
